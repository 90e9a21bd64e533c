"""`compare` obeys what claims obey: lost scores, direction, frozen rules, several systems, counts, wide tables."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.decide import ci
from veritune.decide.commands import CompareOptions, compare, compare_counts, compare_score_tables, parse_rule
from veritune.decide.screen import render_text
from veritune.decide.sides import Side, parse_side, wide_sides
from veritune.decide.wording import interval_text
from veritune.errors import ScoreError, VerituneError
from veritune.evaluate.logs import Reading
from veritune.records import Estimate
from veritune.stats.table import ScoreTable


def jsonl(path: Path, rows) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def scores(path: Path, values, column="score", **more) -> Path:
    """Items q0, q1, ...; a text is the reason of a missing score."""
    rows = [
        {"id": f"q{i}", column: None if isinstance(v, str) else float(v), "reason": v if isinstance(v, str) else None}
        for i, v in enumerate(values)
    ]
    return jsonl(path, [row | {k: c[i] for k, c in more.items()} for i, row in enumerate(rows)])


def inspect_log(path: Path, values, **header) -> Path:
    """An Inspect log of the task ferry: C, I, N, NaN, or `error` for a sample that crashed."""
    with zipfile.ZipFile(path, "w") as archive:
        eval_ = {"task": "ferry", **header}
        archive.writestr("header.json", json.dumps({"eval": eval_, "plan": {}, "status": "success"}))
        for i, value in enumerate(values):
            sample = {
                "id": i,
                "epoch": 1,
                "input": f"question {i}",
                "target": "x",
                "metadata": {"passage": f"p{i // 8}"},
            }
            sample |= {"error": {"message": "boom"}} if value == "error" else {"scores": {"match": {"value": value}}}
            archive.writestr(f"samples/{i}_epoch_1.json", json.dumps(sample))
    return path


def run(*sides, **options):
    report = compare([parse_side(str(s)) for s in sides], CompareOptions(**options))
    return report.comparisons[0], render_text(report)


def cli(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


# ---------------------------------------------------------------- lost scores


def test_scores_that_the_machine_lost_never_decide(tmp_path):
    right = ["C"] * 36 + ["I"] * 24
    tuned = inspect_log(tmp_path / "tuned.eval", ["error"] * 12 + right[12:])
    found, text = run(tuned, inspect_log(tmp_path / "base.eval", right))
    assert found.decision == "inconclusive"
    assert "12 crashed" in found.reason and "stays open" in found.may_write
    assert "scores lower" not in text
    assert (found.flipped.to_a, found.flipped.to_b, found.flipped.lost) == (0, 0, 12)
    assert [b["decision"] for b in found.details["lost_bounds"]][:2] == ["worse, size unresolved", "inconclusive"]


def test_failures_of_the_model_decide(tmp_path):
    right = ["C"] * 36 + ["I"] * 24
    tuned = inspect_log(tmp_path / "tuned.eval", ["N"] * 12 + right[12:])
    found, _ = run(tuned, inspect_log(tmp_path / "base.eval", right))
    assert (found.decision, found.withheld) == ("worse, size unresolved", "")


def test_a_log_that_was_never_scored_is_an_error(tmp_path):
    nan = inspect_log(tmp_path / "tuned.eval", [float("nan")] * 20)
    with pytest.raises(ScoreError, match=r"expected scores, found none in 20 items \(20 not_scored\)"):
        run(nan, inspect_log(tmp_path / "base.eval", ["C"] * 10 + ["I"] * 10))


def test_an_unscored_inspect_sample_is_missing_and_bounded(tmp_path):
    tuned = inspect_log(tmp_path / "tuned.eval", [float("nan")] * 2 + ["C"] * 27 + ["I"] * 11)
    base = inspect_log(tmp_path / "base.eval", ["C"] * 20 + ["I"] * 20)
    found, _ = run(tuned, base)
    assert found.details["a"]["missing"] == [{"not_scored": 2}]
    assert [round(b["gap"] * 40) for b in found.details["missing_bounds"]] == [7, 9]


def test_an_unknown_reason_is_the_machines_and_named(tmp_path):
    a = scores(tmp_path / "a.jsonl", ["disk_full"] * 3 + [1] * 40 + [0] * 17)
    b = scores(tmp_path / "b.jsonl", [0] * 3 + [1] * 20 + [0] * 37)
    found, text = run(a, b)
    assert "missing for 'disk_full': a reason that is not known, so it counts as the machine's" in text
    assert found.n_lost == 3


# ---------------------------------------------------------------- direction


@pytest.fixture
def asr(tmp_path):
    """Word error rates: the tuned arm makes fewer errors."""
    rng = np.random.default_rng(0)
    base = 0.25 + 0.1 * rng.random(300)
    return [
        scores(tmp_path / f"{n}.jsonl", v.round(4), "wer")
        for n, v in (("base", base), ("tuned", base - 0.15 - 0.05 * rng.random(300)))
    ]


def test_with_word_error_rates_the_lower_arm_is_better(asr):
    found, text = run(*asr, margin=0.05, reading=Reading(metric="wer"))
    assert (found.decision, found.higher_is_better) == ("worse by the margin", False)
    assert found.estimates[0].value > 0.1
    assert "This system base is worse than tuned by more than 0.05" in found.may_write
    assert "(wer, lower is better)" in found.may_write
    assert "direction    wer: lower is better" in text
    assert (found.flipped.to_a, found.flipped.to_b) == (0, 300)
    other, _ = run(*asr[::-1], margin=0.05, reading=Reading(metric="wer"))
    assert "tuned is better than base by more than 0.05" in other.may_write
    assert other.flipped.to_a == 300


def test_an_unknown_metric_is_higher_and_never_better(tmp_path, asr):
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in asr]
    files = [
        jsonl(tmp_path / f"{i}.jsonl", [{"id": r["id"], "style": r["wer"]} for r in part])
        for i, part in enumerate(rows)
    ]
    found, text = run(*files, margin=0.05, reading=Reading(metric="style"))
    assert (found.decision, found.higher_is_better) == ("higher by the margin", None)
    assert "This system 0 scores higher than 1 by more than 0.05" in found.may_write
    assert "is better than" not in text and "is worse than" not in text
    assert "direction    unknown for style" in text and "300 higher in A" in text
    unsized, _ = run(*files, reading=Reading(metric="style"))
    assert unsized.decision == "higher, size unresolved"
    stated, _ = run(*files, margin=0.05, reading=Reading(metric="style", higher_is_better=False))
    assert stated.decision == "worse by the margin"


def test_correctness_keeps_better_whatever_its_column_is_called_and_a_flag_does_not(tmp_path):
    a, b = [1] * 80 + [0] * 20, [1] * 50 + [0] * 50
    for column, word in (("score", "better, size unresolved"), ("toxic", "higher, size unresolved")):
        files = [scores(tmp_path / f"{column}{n}.jsonl", v, column) for n, v in (("a", a), ("b", b))]
        found, text = run(*files, reading=Reading(metric=column))
        assert found.decision == word
        assert ("B right" in text) == (column == "score")


# ---------------------------------------------------------------- rules, pairs, counts, wide tables


def test_a_rule_stands_beside_the_decision_with_its_seeds(tmp_path):
    rng = np.random.default_rng(1)
    for s in range(2):
        for arm, p in (("a", 0.9), ("b", 0.5)):
            scores(tmp_path / f"{arm}{s}.jsonl", rng.random(200) < p)
    _, text = run(f"a={tmp_path}/a*.jsonl", f"b={tmp_path}/b*.jsonl", rule=parse_rule("min_gap=0.1,every_seed"))
    assert "frozen rule  min_gap 0.1, every seed: a wins (gap +0." in text and "by seed +0." in text


@pytest.mark.parametrize(
    "text", ["", "every_seed", "min_gap", "min_gap=x", "min_gap=.1,gap=2", "min_gap=.1,min_gap=.2"]
)
def test_a_rule_that_is_not_understood_is_refused(text):
    with pytest.raises(ScoreError, match="--rule"):
        parse_rule(text)


def test_all_pairs_share_alpha_and_their_words_follow_their_intervals(tmp_path):
    rng = np.random.default_rng(3)
    paths = [scores(tmp_path / f"{n}.jsonl", rng.random(200) < p) for n, p in zip("wxyz", (0.7, 0.6, 0.5, 0.5))]
    report = compare([parse_side(str(p)) for p in paths], CompareOptions(all_pairs=True))
    assert [(c.a, c.b) for c in report.comparisons] == [
        ("w", "x"), ("w", "y"), ("w", "z"), ("x", "y"), ("x", "z"), ("y", "z"),
    ]  # fmt: skip
    for c in report.comparisons:
        assert c.estimates[0].level == pytest.approx(1 - 0.05 / 6)
        assert (c.decision != "inconclusive") == (c.p_corrected <= 0.05)
        assert c.decision == "inconclusive" or not c.estimates[0].low <= 0 <= c.estimates[0].high
    text = render_text(report)
    assert "6 comparisons: intervals at 1 − alpha/6, p times 6 (Bonferroni)." in text
    lines = text.splitlines()
    last = lines.index("6 comparisons: intervals at 1 − alpha/6, p times 6 (Bonferroni).")
    assert lines[last - 6].startswith("w − x")
    with pytest.raises(ScoreError, match="--against"):
        CompareOptions(all_pairs=True, against="w")


def test_counts_of_a_published_table_give_what_the_items_give(tmp_path):
    kind = np.repeat([1, 2, 0, 3], [54, 47, 1139, 79])
    a, b = scores(tmp_path / "a.jsonl", kind < 2), scores(tmp_path / "b.jsonl", (kind == 0) | (kind == 2))
    files, _ = run(a, b, margin=0.01)
    report = compare_counts(["54,47,1139,79"], ["a", "b"], CompareOptions(margin=0.01), {})
    (counts,) = report.comparisons
    assert counts.estimates[0].value == files.estimates[0].value
    assert (counts.estimates[0].low, counts.estimates[0].high, counts.estimates[0].p) == (
        files.estimates[0].low, files.estimates[0].high, files.estimates[0].p,
    )  # fmt: skip
    assert (counts.decision, counts.flipped.to_a, counts.flipped.ids_a) == (files.decision, 54, ())


def test_counts_of_several_seeds_take_the_widest_interval_over_items_and_say_so():
    texts = ["54,47,1139,79", "49,43,1147,80", "46,41,1148,84"]
    report = compare_counts(texts, [], CompareOptions(margin=0.01, rule={"min_gap": 0.01}), {})
    (found,) = report.comparisons
    assert found.frozen_rule["winner"] is None
    assert [t["only_a"] for t in found.details["tables"]] == [54, 49, 46]
    assert any("the widest interval over new items" in w for w in found.warnings)
    one = compare_counts(texts[:1], [], CompareOptions(margin=0.01), {}).comparisons[0].estimates[0]
    assert found.estimates[0].high - found.estimates[0].low > 0.9 * (one.high - one.low)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--table", "1,2,3"], "four whole numbers"),
        (["--table", "1,-2,3,4"], "four whole numbers"),
        (["--table", "0,0,0,0"], "same number of items"),
        (["--table", "1,2,3,4", "--table", "1,2,3,5"], "same number of items"),
        (["--table", "1,2,3,4", "a"], "no names or two"),
        (["--table", "99999999999,0,0,0"], "at most 10,000,000 items"),
        (["--table", "1,2,3,4", "a", "a"], "two different names"),
        (["--table", "1,2,3,4", "--metric", "acc"], "--metric needs item scores"),
        (["--table", "1,2,3,4", "--fixed", "B"], "--fixed needs item scores"),
        (["--table", "1,2,3,4", "--zone", "seen"], "--zone needs item scores"),
        (["--table", "1,2,3,4", "--adapter", "C"], "found 'C'"),
    ],
)
def test_counts_that_are_none_and_options_that_they_cannot_honour_are_refused(arguments, says):
    result = cli(*arguments)
    assert result.exit_code != 0
    assert isinstance(result.exception, VerituneError) and says in str(result.exception), result.exception


def wide(path: Path) -> Path:
    rng = np.random.default_rng(5)
    rows = [f"q{i},{int(rng.random() < 0.4)},{int(rng.random() < 0.8)},t{i // 4}" for i in range(120)]
    path.write_text("\n".join(["id,base,tuned,topic", *rows]), encoding="utf-8")
    return path


def test_a_table_with_one_column_per_system_is_compared_and_detected(tmp_path):
    path = wide(tmp_path / "wide.csv")
    report = compare(wide_sides([str(path)], ["tuned", "base"]), CompareOptions())
    (found,) = report.comparisons
    assert (found.a, found.b, found.n, found.decision) == ("tuned", "base", 120, "better, size unresolved")
    assert "wide" not in found.may_write
    with pytest.raises(ScoreError, match="found 1") as error:
        run(path)
    assert "--systems base,tuned" in str(error.value)
    with pytest.raises(ScoreError, match="column 'best' for the system 'best', found base, id, topic, tuned"):
        compare(wide_sides([str(path)], ["best", "base"]))
    for names in (["base"], ["base", "base"], ["base", ""]):
        with pytest.raises(ScoreError, match="at least two different columns"):
            wide_sides([str(path)], names)
    result = cli(path, "--systems", "tuned,base", "--family", "topic", "--json")
    assert json.loads(result.stdout)["comparisons"][0]["details"]["families"] == 30


def test_nested_columns_are_systems_or_metrics_and_keep_their_reasons(tmp_path):
    rows = [
        {
            "id": i,
            "meta": {"topic": i // 5},
            "base": {"score": i % 2},
            "tuned": {"score": 1 if i else None, "reason": "refused"},
        }
        for i in range(60)
    ]
    path = jsonl(tmp_path / "nested.jsonl", rows)
    (found,) = compare(
        wide_sides([str(path)], ["tuned", "base"]), CompareOptions(reading=Reading(metric="score"))
    ).comparisons
    assert found.details["a"]["missing"] == [{"refused": 1}]
    reading = Reading(metric="tuned.score", family="meta.topic")
    (same,) = compare([parse_side(f"{n}={path}") for n in "xy"], CompareOptions(reading=reading)).comparisons
    assert same.details["families"] == 12
    with pytest.raises(ScoreError, match="'tuned' holds objects"):
        compare(wide_sides([str(path)], ["tuned", "base"]))


# ---------------------------------------------------------------- names


def test_the_eval_and_the_arms_are_called_what_they_are(tmp_path):
    a, b = [1] * 30 + [0] * 10, [1] * 10 + [0] * 30
    files = [scores(tmp_path / f"{n}.jsonl", v, task=["sums"] * 40) for n, v in (("new", a), ("old", b))]
    found, _ = run(*files)
    assert "This system new scores higher than old, by how much is unresolved on 40 items of sums" in found.may_write
    known, _ = run(*files, adapters=("new",))
    assert known.may_write.startswith("This adapter new")
    with pytest.raises(ScoreError, match="--adapter: expected one of new, old"):
        run(*files, adapters=("zeta",))
    bare = [scores(tmp_path / f"{n}.jsonl", v) for n, v in (("new", a), ("old", b))]
    assert "40 items of this eval" in run(*bare)[0].may_write
    assert "40 items of style" in run(*bare, reading=Reading(eval="style"))[0].may_write


def test_long_run_names_are_shown_whole(tmp_path):
    names = [f"all_layer-rank-16-learning-rate-2e-4-seed-{s}" for s in range(2)]
    for arm in ("a", "b"):
        (tmp_path / arm).mkdir()
        for s, name in enumerate(names):
            scores(tmp_path / arm / f"{name}.jsonl", [(i + s) % 3 > (arm == "a") for i in range(30)])
    _, text = run(f"a={tmp_path}/a", f"b={tmp_path}/b")
    assert f"{names[0]} / {names[0]}" in text


@pytest.mark.parametrize(
    ("zones", "says"), [(None, "no zones"), (["seen"] * 40, "one zone (seen)"), (["seen", "stranger"] * 20, "pooled")]
)
def test_it_says_that_memorisation_was_not_tested(tmp_path, zones, says):
    more = {} if zones is None else {"zone": zones}
    files = [scores(tmp_path / f"{n}.jsonl", [1] * k + [0] * (40 - k), **more) for n, k in (("a", 30), ("b", 10))]
    found, text = run(*files)
    assert says in found.memorisation
    assert "memorised?   not tested: " in text
    assert any("“a learned the style”" in line and says in line for line in found.may_not)


def zoned(tmp_path: Path, a: int = 30, b: int = 10, n: int = 40) -> list[Side]:
    """Two tables of seen and stranger items; the tuned one is right on `a` of each zone's items, the base on `b`."""
    for name, right in (("tuned", a), ("base", b)):
        rows = [f"{zone}{i},{int(i < right)},{zone}" for zone in ("seen", "stranger") for i in range(n)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["id,score,zone", *rows]) + "\n")
    return [parse_side(f"{name}={tmp_path}/{name}.csv") for name in ("tuned", "base")]


def test_a_comparison_of_one_zone_names_the_zone_wherever_it_speaks(tmp_path: Path) -> None:
    report = compare(zoned(tmp_path), CompareOptions(zone="seen"))
    (found,) = report.comparisons
    assert "on 40 seen items of" in found.may_write and found.zone == "seen"
    assert ci.title(found).endswith("(seen items)")
    open_report = compare(zoned(tmp_path, 20, 19), CompareOptions(zone="stranger"))
    assert "on 40 stranger items of" in open_report.comparisons[0].may_write


def test_a_sentence_of_equivalence_shows_the_interval_that_decided_it(tmp_path: Path) -> None:
    report = compare(zoned(tmp_path, 30, 30, 30), CompareOptions(margin=0.05))
    (found,) = report.comparisons
    assert found.decision == "equivalent"
    assert found.estimates[0].high is not None and found.estimates[0].high > 0.05
    assert "90 % interval [-0.0431, +0.0431]" in found.may_write and "95 %" not in found.may_write
    assert "for equivalence: 90 % interval [-0.0431, +0.0431]" in render_text(report)
    assert "90 % interval &#91;-0.0431, +0.0431&#93;" in ci.markdown(report)
    assert found.details["equivalence_interval"]["high"] == pytest.approx(0.0431, abs=1e-4)


def test_the_markdown_table_says_what_the_screen_says(tmp_path: Path) -> None:
    sides = [*zoned(tmp_path), parse_side(f"third={tmp_path}/base.csv")]
    report = compare(sides, CompareOptions(rule={"min_gap": 0.01}))
    text = ci.markdown(report)
    assert "corrected p < 1e-4" in text.replace("&lt;", "<")
    assert "not tested: the zones seen, stranger were pooled" in text
    assert "tuned wins" in text


def test_a_sentence_about_a_recipe_carries_its_seeds_and_what_was_declared_of_them() -> None:
    items = tuple(f"q{i}" for i in range(60))

    def runs(name: str, rates: tuple[float, ...]) -> ScoreTable:
        score = np.array([[float(i < r * 60) for i in range(60)] for r in rates])
        return ScoreTable(
            name, "sums", tuple(f"s{i}" for i in range(len(rates))), items, score, missing=({},) * len(rates)
        )

    a, b = runs("tuned", (0.8, 0.82, 0.85)), runs("base", (0.3, 0.33, 0.35, 0.32))
    plain = compare_score_tables([a], b).comparisons[0]
    assert plain.may_write.endswith(", 3 against 4 seeds.")
    declared = compare_score_tables([a], b, CompareOptions(equal_seed_spread=True)).comparisons[0]
    assert declared.may_write.endswith(", 3 against 4 seeds of a spread declared equal.")


def test_an_end_that_clears_an_edge_is_printed_so_that_it_does() -> None:
    estimate = Estimate(name="gap", value=0.1, low=0.10000001, high=0.2, level=0.95, method="t", n=9, scope="items")
    assert interval_text(estimate, 0.1) == "95 % interval [+0.10000001, +0.20000000]"
    assert interval_text(estimate) == "95 % interval [+0.1000, +0.2000]"

"""`compare` and `power` from files to one screen of text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from veritune import records
from veritune.decide.ci import markdown
from veritune.decide.commands import CompareOptions, compare
from veritune.decide.screen import render_text
from veritune.decide.sides import Side, load_side, parse_side
from veritune.errors import ScoreError
from veritune.evaluate.logs import Reading

SCORES = Path(__file__).parents[1] / "evaluate" / "scores"


def write(path: Path, values, ids=None, **columns) -> Path:
    rows = []
    for i, v in enumerate(values):
        row = {"id": ids[i] if ids else f"q{i}", "score": None if v is None else float(v)}
        rows.append(json.dumps({**row, **{k: c[i] for k, c in columns.items()}}))
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    """A and B with the first seed's table of the worked example."""
    kind = np.repeat([1, 2, 0, 3], [54, 47, 1139, 79])
    return write(tmp_path / "a.jsonl", kind < 2), write(tmp_path / "b.jsonl", (kind == 0) | (kind == 2))


def test_one_screen_holds_everything_a_reader_needs(files):
    report = compare([parse_side(str(f)) for f in files], CompareOptions(margin=0.01, rule={"min_gap": 0.01}))
    text = render_text(report)
    assert len(text.splitlines()) <= 24
    for part in (
        "0.9045 (1193/1319)",
        "0.8992 (1186/1319)",
        "1139        54",
        "47        79",
        "+0.0053   95 % interval [-0.0098, +0.0205]",
        "p = 0.49 (mid-p McNemar; exact p = 0.55); Tango score interval",
        "inconclusive at a margin of 0.01",
        "no winner",
        "0.0212, the smallest gap seen with 80 % power",
        "a gap of the margin (80 % power): about 5,996 items",
        "equivalence at a true gap of 0 (80 % power): about 6,589 items",
        "54 to A: q0, q1, q2, q3, q4, q5, … (48 more)",
        "47 to B: q54",
        "a high p is not equality",
    ):
        assert part in text, part


def test_the_report_is_plain_json(files):
    report = compare([parse_side(str(f)) for f in files], CompareOptions(margin=0.01))
    (found,) = json.loads(records.dumps(report))["comparisons"]
    assert found["decision"] == "inconclusive"
    assert found["flipped"]["to_a"] == 54
    assert found["estimates"][0]["method"] == "Tango score interval"


def test_several_seeds_a_side_and_both_estimands(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.random(300) < 0.6
    for arm, gain in (("a", 0.1), ("b", 0.0)):
        for s in range(3):
            write(tmp_path / f"{arm}{s}.jsonl", (base | (rng.random(300) < gain)) ^ (rng.random(300) < 0.02))
    for argument in (f"{tmp_path}/a*.jsonl", ",".join(f"{tmp_path}/a{s}.jsonl" for s in range(3))):
        sides = [parse_side(f"new={argument}"), parse_side(f"old={tmp_path}/b*.jsonl")]
        (found,) = compare(sides).comparisons
        text = render_text(compare(sides))
        assert found.a == "new"
        assert "new items and new seeds (the recipe); new (3 seeds) against old (3 seeds)" in text
        assert "new items, the checkpoints at hand: 95 % interval" in text
        assert "these items, new seeds: 95 % interval" in text
        assert "This recipe new" in text


def test_several_arms_share_alpha(tmp_path):
    rng = np.random.default_rng(1)
    paths = [write(tmp_path / f"{n}.jsonl", rng.random(200) < p) for n, p in (("x", 0.6), ("y", 0.5), ("base", 0.5))]
    report = compare([parse_side(str(p)) for p in paths], CompareOptions(margin=0.05))
    assert [(c.a, c.b) for c in report.comparisons] == [("x", "base"), ("y", "base")]
    assert all(c.estimates[0].level == pytest.approx(0.975) for c in report.comparisons)
    assert all(c.p_corrected >= c.estimates[0].p for c in report.comparisons)
    assert "p times 2 (Bonferroni)" in render_text(report)
    for c in report.comparisons:  # p, interval and decision tell one story
        assert (
            (c.p_corrected <= 0.05)
            == (c.decision != "inconclusive")
            == (not c.estimates[0].low <= 0 <= c.estimates[0].high)
        )
    other = compare([parse_side(str(p)) for p in paths], CompareOptions(against="x"))
    assert [(c.a, c.b) for c in other.comparisons] == [("y", "x"), ("base", "x")]


def test_foreign_logs_compare_with_their_failures_counted():
    sides = [Side("one", (SCORES / "inspect_sums.json",)), Side("two", (SCORES / "inspect_sums.eval",))]
    text = render_text(compare(sides))
    assert "1 crashed, 1 no_answer" in text
    assert "if every missing score were worst for A" in text
    mc = next(SCORES.glob("samples_sums_mc_*.jsonl"))
    same = [Side("x", (mc,)), Side("y", (mc,))]
    text = render_text(compare(same, CompareOptions(reading=Reading(metric="acc"))))
    assert "never loaded" in text


def test_epochs_are_averaged_and_said(tmp_path):
    side = Side("two", (SCORES / "inspect_sums_epochs.eval",))
    table, _ = load_side(side)
    assert table.score_S_N.shape == (1, 12)
    text = render_text(compare([side, Side("one", (SCORES / "inspect_sums.eval",))]))
    assert "2 samples an item, 2 failed" in text or "0 to 2 samples an item, 2 failed" in text


def test_raters_show_their_agreement(tmp_path):
    rng = np.random.default_rng(2)
    true = rng.integers(1, 6, 40)
    for name, shift in (("a", 0), ("b", -1)):
        rows = [(i, k, np.clip(true[i] + shift + rng.integers(0, 2), 1, 5)) for i in range(40) for k in "xyz"]
        write(
            tmp_path / f"{name}.jsonl",
            [v for _, _, v in rows],
            [f"q{i}" for i, _, _ in rows],
            rater=[k for _, k, _ in rows],
        )
    text = render_text(compare([parse_side(f"{tmp_path}/{n}.jsonl") for n in "ab"], CompareOptions(scale=(1, 5))))
    assert "3 samples an item, 0 failed, 3 raters, Krippendorff alpha 0." in text
    assert "the wider of paired t and Learned-Miller & Thomas" in text


def test_different_items_are_named(tmp_path, files):
    short = write(tmp_path / "c.jsonl", [1] * 1305)
    with pytest.raises(ScoreError, match="14 items only in a"):
        compare([parse_side(str(files[0])), parse_side(str(short))])
    twice = write(tmp_path / "d.jsonl", [1] * 6, ["q0", "q1", "q2", "q0", "q1", "q2"])
    with pytest.raises(ScoreError, match="3 ids twice in d"):
        compare([parse_side(str(files[0])), parse_side(str(twice))])


def test_a_family_column_in_only_one_seed_is_refused(tmp_path):
    one = write(tmp_path / "s0.jsonl", [1, 0], family=["f", "g"])
    two = write(tmp_path / "s1.jsonl", [1, 0])
    with pytest.raises(ScoreError, match="column family in all 2 files, found it in 1"):
        load_side(Side("a", (one, two)))


def test_files_of_one_name_are_told_apart_by_folder(tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "scores.jsonl", [1, 0, 1, folder == "x"])
    report = compare([parse_side(f"{tmp_path}/{f}/scores.jsonl") for f in "xy"])
    assert (report.comparisons[0].a, report.comparisons[0].b) == ("x/scores", "y/scores")
    table, _ = load_side(parse_side(f"both={tmp_path}/x/scores.jsonl,{tmp_path}/y/scores.jsonl"))
    assert table.runs == ("x/scores:scores", "y/scores:scores")


def test_flipped_items_come_largest_first(tmp_path):
    a, b = write(tmp_path / "a.jsonl", [0.1, 0.9, 0.5, 0.2]), write(tmp_path / "b.jsonl", [0.0, 0.2, 0.7, 0.9])
    flipped = compare([parse_side(str(a)), parse_side(str(b))]).comparisons[0].flipped
    assert (flipped.ids_a, flipped.ids_b) == (("q1", "q0"), ("q3", "q2"))


def test_a_runs_folder_stands_for_its_scores(tmp_path):
    for run in ("new-0", "new-1", "old-0"):
        folder = tmp_path / run / "scores"
        folder.mkdir(parents=True)
        for name in ("sums", "other"):
            rows = [
                {"run_id": run, "eval": name, "item_id": f"q{i}", "value": float((i + len(run)) % 3 > 0)}
                for i in range(9)
            ]
            (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
            (folder / f"{name}.json").write_text('{"input_hash": "x"}')
    side = parse_side(f"new={tmp_path}/new-0,{tmp_path}/new-1", "sums")
    table, _ = load_side(side)
    assert (table.eval, table.runs, len(table.items)) == ("sums", ("new-0", "new-1"), 9)
    with pytest.raises(ScoreError, match="files of one eval, found other, sums"):
        load_side(parse_side(f"old={tmp_path}/old-0"))


@pytest.mark.parametrize("argument", ["{}/none*.jsonl", "{}/empty"])
def test_an_argument_without_files_is_named(tmp_path, argument):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ScoreError, match="none"):
        parse_side(argument.format(tmp_path))


def test_one_side_an_unknown_arm_and_an_impossible_alpha_are_refused(files):
    with pytest.raises(ScoreError, match="alpha between 0 and"):
        CompareOptions(alpha=0.0)
    with pytest.raises(ScoreError, match="at least two sides"):
        compare([parse_side(str(files[0]))])
    with pytest.raises(ScoreError, match="found 'zeta'"):
        compare([parse_side(str(f)) for f in files], CompareOptions(against="zeta"))


def test_comparing_loads_no_model_library_and_no_table_library(files):
    code = (
        "import sys; from veritune.decide.commands import *; from veritune.decide.screen import *; "
        "from veritune.decide.sides import *; "
        "render_text(compare([parse_side(p) for p in sys.argv[1:]])); "
        "print([m for m in ('torch', 'transformers', 'pandas', 'polars', 'pyarrow', 'scipy.stats', "
        "'matplotlib', 'statsmodels') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_an_interval_no_test_is_named(tmp_path):
    for name, step in (("a", 3), ("b", 2)):
        write(tmp_path / f"{name}.jsonl", [0 if i % step else 100 for i in range(30)])
    report = compare([parse_side(f"{tmp_path}/{n}.jsonl") for n in "ab"], CompareOptions(margin=5))
    for text in (render_text(report), markdown(report)):
        assert "no interval: graded scores from 0 to 100 without declared bounds" in text
        assert "None" not in text and "no p" not in text

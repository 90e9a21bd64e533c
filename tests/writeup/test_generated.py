"""Properties of drafts over generated studies: the draft passes lint, table and verdict agree, the seal holds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
import generated  # type: ignore[import-not-found]

from veritune.seal import verify
from veritune.store import Store, read_json
from veritune.writeup import pagework, tables
from veritune.writeup.draft import writeup
from veritune.writeup.fill import without_marks
from veritune.writeup.lint import lint_command, render_text
from veritune.writeup.quantities import read_records


@pytest.fixture(scope="module", params=generated.SHAPES, ids=lambda shape: shape.name)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, object]]:
    folder = generated.build(tmp_path_factory.mktemp(request.param.name), request.param)
    writeup(folder, folder / "WRITEUP.md")
    yield folder, request.param


def test_the_draft_passes_lint(made: tuple[Path, object]) -> None:
    folder, _ = made
    report, code = lint_command([folder / "WRITEUP.md"], folder)
    assert code == 0, render_text(report)


def test_every_number_of_the_draft_is_bound(made: tuple[Path, object]) -> None:
    folder, _ = made
    report, _ = lint_command([folder / "WRITEUP.md"], folder)
    assert {r.outcome for r in report.readings} == {"bound"} and len(report.readings) > 40


def test_means_of_table_and_verdict_are_the_same(made: tuple[Path, object]) -> None:
    folder, _ = made
    records = read_records(Store(folder))
    compared = 0
    for verdict in records.verdicts:
        claim = records.claim(verdict["claim"])
        if verdict["kind"] in ("generalises", "probe") or not verdict["estimates"]:
            continue
        for side in ("a", "b"):
            arm = verdict["estimates"][0]["details"][side]
            name = f"score.{records.eval_of(claim)}.{claim['zone']}.{arm['condition']}"
            assert records.by_name[name].value == pytest.approx(arm["mean"], abs=1e-12), name
            compared += 1
        gap = records.by_name[f"gap.{verdict['claim']}"].value
        a, b = (verdict["estimates"][0]["details"][s]["mean"] for s in ("a", "b"))
        assert gap == pytest.approx(a - b, abs=1e-9)
    assert compared >= 4


def arm(shape: object, name: str) -> str:
    """A condition by the name that the shape gives it."""
    return f"{name}-r{generated.RANKS[-1]}" if shape.sweep else name  # type: ignore[attr-defined]


def test_a_mean_carries_its_denominator_and_what_had_no_score(made: tuple[Path, object]) -> None:
    folder, shape = made
    records = read_records(Store(folder))
    baseline = records.by_name["score.house_style.stranger.baseline"]
    assert baseline.denominator == 16
    assert (baseline.failed > 0) == bool(shape.lost)  # type: ignore[attr-defined]
    if baseline.failed:
        answered = records.by_name["answered.house_style.stranger.baseline"]
        assert answered.value > baseline.value and answered.denominator == 16 - baseline.failed


def test_the_seal_holds_after_every_command_that_is_no_edit(made: tuple[Path, object]) -> None:
    folder, _ = made
    page = folder / "WRITEUP.md"
    assert verify(folder) == []
    writeup(folder)
    pagework.fill_command([page], folder, [], None, plain=False)
    pagework.check_command([page], folder, [], strict=True)
    pagework.export_command("table.claims", folder, [], "latex", None)
    assert verify(folder) == []


def test_the_draft_says_what_was_run_and_not_what_was_asked(made: tuple[Path, object]) -> None:
    folder, shape = made
    text = (folder / "WRITEUP.md").read_text(encoding="utf-8")
    rate = f"{generated.CHOSEN if shape.selected else generated.ASKED:g}"  # type: ignore[attr-defined]
    steps = shape.max_steps or 30  # type: ignore[attr-defined]
    epochs = f"{steps * 8 / 78:.4g}" if shape.max_steps else "3"  # type: ignore[attr-defined]
    lines = [without_marks(x, Path("page.md")) for x in text.split("\n") if x.startswith("- Training of ")]
    expected = f"{steps} optimizer steps, {epochs} epochs, batch size 8, learning rate {rate}."
    assert f"- Training of {arm(shape, 'all_layer')}: {expected}" in lines
    if shape.adopted:  # type: ignore[attr-defined]
        expected = (
            "weights that were trained elsewhere, 77 optimizer steps by its trainer's record; rows, batch and learning "
            "rate are not known here."
        )
    assert f"- Training of {arm(shape, generated.ADOPTED)}: {expected}" in lines
    assert len(lines) == (4 if shape.sweep else 2)  # type: ignore[attr-defined]


def test_the_draft_says_how_outputs_are_scored(made: tuple[Path, object]) -> None:
    folder, shape = made
    text = without_marks((folder / "WRITEUP.md").read_text(encoding="utf-8"), Path("page.md"))
    assert "- Eval house_style: greedy decoding of at most 64 new tokens; a score is the share of its 6 rules" in text
    whole = "- Eval tools: greedy decoding of at most 48 new tokens; a score is one where all of its 2 rules hold"
    assert (whole in text) == shape.calls  # type: ignore[attr-defined]


def test_trials_are_no_runs_of_the_study(made: tuple[Path, object]) -> None:
    folder, shape = made
    records = read_records(Store(folder))
    arms = 4 if shape.sweep else 2  # type: ignore[attr-defined]
    assert records.by_name["n.runs"].value == 1 + arms * len(shape.seeds)  # type: ignore[attr-defined]


def test_tables_print_mean_least_greatest_and_range_of_the_runs(made: tuple[Path, object]) -> None:
    folder, shape = made
    records = read_records(Store(folder))
    made_table = tables.table("table.scores.house_style", records)
    assert made_table.columns[2:6] == ("mean", "min", "max", "range")
    name = arm(shape, "all_layer")
    row = next(r for r in made_table.rows if r[:2] == ("stranger", name))
    own = [
        cell["mean"] * cell["scored"] / cell["items"]
        for run, summary in records.runs.items()
        if summary.condition == name
        for cell in [read_json(folder / f"runs/{run}/summary.json")["scores"]["house_style"]["stranger"]]
    ]
    whole = (sum(own) / len(own), min(own), max(own), max(own) - min(own))
    printed = tuple(f"{x:.3f}" for x in whole)
    assert row[2:6] == (printed if len(own) > 1 else (printed[0], "one run", "one run", "one run"))
    assert row[7] == str(len(shape.seeds))  # type: ignore[attr-defined]


def test_a_filled_draft_is_up_to_date_and_has_no_number_typed_by_hand(made: tuple[Path, object]) -> None:
    folder, _ = made
    found = pagework.check_command([folder / "WRITEUP.md"], folder, [], strict=False)
    assert found.clean
    assert {r.state for r in found.references[0]} == {"up to date"}, pagework.check_text(found)


def test_the_model_index_holds_the_same_means(made: tuple[Path, object]) -> None:
    folder, _ = made
    records = read_records(Store(folder))
    text = pagework.export_command("table.scores.house_style", folder, [], "model-index", None)
    for model in yaml.safe_load(text)["model-index"]:
        for result in model["results"]:
            arm = model["name"].rpartition(" ")[2]
            q = records.by_name[f"score.house_style.{result['dataset']['split']}.{arm}"]
            metric = result["metrics"][0]
            assert metric["value"] == pytest.approx(q.value, abs=1e-6)
            assert metric["args"]["items"] == q.denominator
            spread = {k: v for k, v in metric["args"].items() if k.endswith("_over_seeds")}
            assert set(spread) == ({"min_over_seeds", "max_over_seeds", "range_over_seeds"} if q.runs > 1 else set())
            if spread:
                least, most = spread["min_over_seeds"], spread["max_over_seeds"]
                assert most - least == pytest.approx(spread["range_over_seeds"], abs=2e-6) and least <= most

"""Selection: by validation NLL alone, on the reserved seed; failures are out; scores cannot enter; edits are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import GateError, StaleError
from veritune.pipeline.cell import cells_of, ready_from_contract, run_cell
from veritune.pipeline.freeze import freeze
from veritune.progress import Progress
from veritune.records import RateCandidate
from veritune.train import trainer as trainer_module
from veritune.train.schedule import MAIN, SELECT
from veritune.train.select import choose, record_selection


def tried(*pairs: tuple[float, float | None]) -> list[RateCandidate]:
    return [RateCandidate(lr, f"r{lr}", nll, 1, None if nll is not None else "diverged") for lr, nll in pairs]


@pytest.mark.parametrize(
    ("grid", "winner", "edge"),
    [
        (((1e-4, 2.0), (1e-3, 1.0), (1e-2, 1.5)), 1e-3, None),
        (((1e-4, 2.0), (1e-3, 1.5), (1e-2, 1.0)), 1e-2, "high"),
        (((1e-4, 0.5), (1e-3, 1.5), (1e-2, 1.0)), 1e-4, "low"),
        (((1e-2, 1.0), (1e-3, 1.0), (1e-4, 2.0)), 1e-3, None),  # equal losses go to the smaller rate
        (((1e-4, 2.0), (1e-3, None), (1e-2, 3.0)), 1e-4, "low"),  # a failed run is out, never best
        (((1e-4, 2.0), (1e-3, 1.5), (1e-2, None)), 1e-3, None),
    ],
)
def test_the_lowest_validation_nll_wins(grid: Any, winner: float, edge: str | None) -> None:
    found, at = choose(tried(*grid))
    assert (found.lr, at) == (winner, edge)


def test_a_grid_that_failed_whole_stops_the_study() -> None:
    with pytest.raises(GateError, match="no learning rate of the grid can be used"):
        choose(tried((1e-3, None), (1e-2, None)))


@pytest.fixture
def selecting(study: Any) -> Any:
    """A frozen tiny study with a selection of two rates; nothing has run."""

    def change(settings: dict[str, Any]) -> None:
        settings["selection"] = {"learning_rates": [1e-3, 5e-3], "seed": 9, "max_steps": 2}
        settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
        settings["claims"] = settings["claims"][:1]

    study.change(change)
    freeze(study.root, progress=Progress(silent=True))
    return study


@pytest.fixture
def chosen_one(selecting: Any) -> tuple[Any, list[Any]]:
    """The same with its selection runs done."""
    ready = ready_from_contract(selecting.root, Progress(silent=True))
    cells = [cell for cell in cells_of(ready) if cell.phase == SELECT]
    for cell in cells:
        run_cell(ready, cell)
    return ready, cells


def edit(path: Path, change: Any) -> None:
    record = json.loads(path.read_text("utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def test_selection_runs_are_not_scored_and_their_choice_decides_the_main_rate(chosen_one: Any) -> None:
    ready, cells = chosen_one
    assert not list(ready.store.runs.glob("select-*/scores"))
    assert not list(ready.store.runs.glob("select-*/checkpoints"))
    nll = {c.lr: json.loads((ready.store.run(c.run_id) / "training.json").read_text())["validation_nll"] for c in cells}
    record = record_selection(ready.store, ready.study, ready.facts).conditions["all_layer"]
    assert record.selected == min(nll, key=lambda lr: (nll[lr], lr))
    assert {c.lr: c.validation_nll for c in record.candidates} == nll
    assert {c.lr for c in cells_of(ready) if c.phase == MAIN} == {record.selected}


def test_benchmark_scores_cannot_enter_the_choice(chosen_one: Any) -> None:
    """Scores that flatter the worse rate are put wherever one might look; the choice stays or is refused."""
    from veritune.pipeline.cell import _score

    ready, cells = chosen_one
    honest = record_selection(ready.store, ready.study, ready.facts)
    worse = next(c for c in cells if c.lr != honest.conditions["all_layer"].selected)
    with pytest.raises(GateError, match="only chooses a setting, so it must not be scored on an eval"):
        _score(ready, worse, "style", ready.items["style"], None)
    folder = ready.store.run(worse.run_id)
    flattering = {"mean": 1.0, "scored": 9, "items": 9, "missing": {}, "cut": 0}
    edit(folder / "summary.json", lambda s: s.update(scores={"style": {"stranger": flattering}}))
    assert record_selection(ready.store, ready.study, ready.facts).rates == honest.rates
    (folder / "scores").mkdir()
    (folder / "scores" / "style.jsonl").write_text('{"value": 1.0}\n')
    with pytest.raises(
        GateError, match="a run that chooses a learning rate has scores, but no benchmark may influence the choice"
    ):
        record_selection(ready.store, ready.study, ready.facts)


def test_an_edited_choice_is_refused(chosen_one: Any) -> None:
    ready, cells = chosen_one
    record_selection(ready.store, ready.study, ready.facts)
    edit(ready.store.root / "selection.json", lambda r: r["conditions"]["all_layer"].update(selected=0.5))
    with pytest.raises(StaleError, match="does not follow from the selection runs: it or they were edited"):
        cells_of(ready)
    (ready.store.root / "selection.json").unlink()
    record_selection(ready.store, ready.study, ready.facts)
    edit(ready.store.run(cells[0].run_id) / "training.json", lambda r: r.update(validation_nll=0.001))
    with pytest.raises(StaleError, match="does not follow from the selection runs: it or they were edited"):
        cells_of(ready)


def test_a_run_that_diverges_puts_its_rate_out(selecting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = ready_from_contract(selecting.root, Progress(silent=True))
    low, high = [cell for cell in cells_of(ready) if cell.phase == SELECT]
    run_cell(ready, low)
    honest = trainer_module.target_nll
    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "target_nll", lambda *a: (honest(*a)[0] * float("nan"), honest(*a)[1]))
        assert "not finite" in str(run_cell(ready, high).failed)
    found = record_selection(ready.store, ready.study, ready.facts).conditions["all_layer"]
    assert found.selected == low.lr and found.edge == "low"
    assert [c.validation_nll is None for c in found.candidates] == [False, True]


def test_a_crash_puts_a_rate_out_and_a_full_disk_does_not(selecting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from veritune.errors import MachineError
    from veritune.train import cells

    ready = ready_from_contract(selecting.root, Progress(silent=True))
    cell = next(c for c in cells_of(ready) if c.phase == SELECT)

    def fails(error: Exception) -> Any:
        def train(*_args: Any) -> Any:
            raise error

        return train

    monkeypatch.setattr(cells, "train", fails(MachineError("the disk is full")))
    with pytest.raises(MachineError):
        run_cell(ready, cell)
    assert not (ready.store.run(cell.run_id) / "summary.json").exists()
    monkeypatch.setattr(cells, "train", fails(RuntimeError("out of memory")))
    assert run_cell(ready, cell).failed == "RuntimeError: out of memory"


def test_a_whole_study_with_selection_shapes_and_a_sweep(study: Any, forks: Any) -> None:
    def change(settings: dict[str, Any]) -> None:
        settings["selection"] = {"learning_rates": [1e-3, 5e-3], "seed": 9, "max_steps": 4}
        settings["selection"]["batch_shapes"] = [[2, 2], [8, 1]]
        settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
        settings["sweep"] = {"data_fraction": [0.5, 1.0]}
        settings["seeds"] = [0]
        settings["claims"] = [
            {
                "name": "dose",
                "kind": "differ",
                "condition": "all_layer-data1",
                "against": "all_layer-data0p5",
                "margin": 0.1,
            }
        ]

    study.change(change)
    done = forks("run", study.root)
    assert done.rc in (0, 2), done.err
    assert "is the high edge of the grid" in done.err or "edge" not in done.err
    shapes = json.loads((study.root / "shapes.json").read_text())["conditions"]["all_layer-data1"]
    assert [s["effective"] for s in shapes["tried"]] == [4, 8] and shapes["declared"]["effective"] == 4
    larger = shapes["tried"][1]
    assert not larger["offer"]["offered"] or larger["validation_nll"] <= shapes["declared"]["validation_nll"]
    manifests = {p.parent.name: json.loads(p.read_text()) for p in study.root.glob("runs/*/manifest.json")}
    rows = {m["condition"]: set(m["data"]["seen_rows"]) for m in manifests.values() if m["phase"] == "main"}
    assert rows["all_layer-data0p5"] < rows["all_layer-data1"]
    asked = {json.loads(x)["item_id"]: json.loads(x)["zone"] for x in _scores(study.root)}
    assert {i for i, zone in asked.items() if zone == "seen"} <= rows["all_layer-data0p5"]
    before = {p: p.read_bytes() for p in study.root.glob("*.json*") if p.name != "seal.json"}
    again = forks("run", study.root)
    assert again.rc == done.rc and "0 cells run" in again.out, again.err
    assert {p: p.read_bytes() for p in before} == before
    assert forks("verify", study.root).rc == 0
    assert "How the learning rates were chosen" in (study.root / "report.html").read_text("utf-8")


def _scores(root: Path) -> list[str]:
    (path,) = root.glob("runs/all_layer-data0p5-s0-*/scores/style.jsonl")
    return path.read_text("utf-8").splitlines()

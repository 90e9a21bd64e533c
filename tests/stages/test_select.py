"""Selection by validation NLL alone, sweeps, nested data fractions, and each cell's own schedule."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import pytest

from veritune.errors import GateError, StaleError, StudyError
from veritune.stages.watch import list_cells
from veritune.store import read_json
from veritune.study import parse_study
from veritune.train.schedule import (
    SELECT,
    fraction,
    kept_families,
    optimizer_steps,
    plan_cells,
    schedule,
)
from veritune.train.select import Candidate, choose, record_selection

FACTS = {"model": {"name": "m"}, "rendered_sha256": "r", "data_version": "v"}


def tried(lr: float, nll: float | None, failed: str | None = None) -> Candidate:
    return Candidate(lr, f"run-{lr:g}", nll, 4, failed)


# ---------------------------------------------------------------- the rule


def test_the_lowest_validation_nll_wins_and_equal_losses_go_to_the_smaller_rate() -> None:
    assert choose([tried(1e-4, 2.0), tried(2e-4, 1.5), tried(4e-4, 1.7)])[0].lr == 2e-4
    assert choose([tried(4e-4, 1.5), tried(2e-4, 1.5), tried(1e-4, 1.6)])[0].lr == 2e-4


def test_a_failed_run_is_out_and_never_best() -> None:
    winner, _ = choose([tried(1e-4, 2.0), tried(2e-4, 0.1, "the loss is nan at step 3"), tried(4e-4, None)])
    assert winner.lr == 1e-4
    with pytest.raises(GateError, match=r"no learning rate of the grid can be used \(0\.0001: it crashed"):
        choose([tried(1e-4, None, "it crashed")])


@pytest.mark.parametrize(("losses", "edge"), [((1.0, 2.0, 3.0), "low"), ((3.0, 2.0, 1.0), "high"), ((2, 1, 3), None)])
def test_a_winner_at_the_edge_of_the_grid_is_flagged(losses: tuple[float, ...], edge: str | None) -> None:
    assert choose([tried(lr, nll) for lr, nll in zip((1e-4, 2e-4, 4e-4), losses)])[1] == edge


# ---------------------------------------------------------------- in a study


def with_selection(settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    grid = {"learning_rates": ["1e-4", "5e-3"], "seed": 9, "max_steps": 3, "data_fraction": 0.5}
    settings = {**settings, "selection": grid | changes, "seeds": [0]}
    settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
    settings["claims"] = [c for c in settings["claims"] if c["name"] != "differ"]
    return settings


def test_the_reserved_seed_may_not_be_a_main_seed_and_a_written_rate_excludes_selection(study: Any) -> None:
    with pytest.raises(StudyError, match=r"selection\.seed: 0 is one of the main seeds"):
        parse_study(with_selection(study.settings(), seed=0))
    settings = with_selection(study.settings())
    settings["conditions"]["all_layer"]["learning_rate"] = 1e-3
    with pytest.raises(StudyError, match=r"it is written, and `selection` would choose it"):
        parse_study(settings)


@pytest.mark.slow
def test_selection_runs_first_unscored_and_its_rate_is_in_the_main_runs(study: Any, forks: Any) -> None:
    study.write(with_selection(study.settings()))
    done = forks("run", study.root)
    assert done.rc in (0, 2), done.err
    record = read_json(study.root / "selection.json")
    found = record["conditions"]["all_layer"]
    losses = {c["lr"]: c["validation_nll"] for c in found["candidates"]}
    assert set(losses) == {1e-4, 5e-3} and found["selected"] == min(losses, key=lambda lr: (losses[lr], lr))
    assert found["edge"] in ("low", "high") and "edge of the grid" in done.err
    for candidate in found["candidates"]:
        folder = study.root / "runs" / candidate["run_id"]
        assert not (folder / "scores").exists()
        manifest = read_json(folder / "manifest.json")
        assert (manifest["seed"], manifest["phase"], manifest["lr"]) == (9, SELECT, candidate["lr"])
    cells = list_cells(study.root)
    assert [c["phase"] for c in cells] == ["baseline", SELECT, SELECT, "main"]
    assert cells[-1]["lr"] == found["selected"]
    assert forks("verify", study.root).rc == 0

    planted = study.root / "runs" / found["candidates"][0]["run_id"] / "scores" / "style.jsonl"
    planted.parent.mkdir()
    planted.write_text('{"value": 1.0}\n')
    refused = forks("run", study.root)
    assert refused.rc == 2 and "no benchmark may enter the choice" in refused.err
    planted.unlink()
    planted.parent.rmdir()

    other = {**record, "conditions": {"all_layer": {**found, "selected": 1e-4 + 5e-3 - found["selected"]}}}
    (study.root / "selection.json").write_text(json.dumps(other))
    with pytest.raises(StaleError, match="is not what the selection runs come to"):
        list_cells(study.root)


def test_a_selection_run_that_is_missing_stops_the_choice(study: Any) -> None:
    from veritune.store import Store

    parsed = parse_study(with_selection(study.settings()))
    with pytest.raises(GateError, match="is not done"):
        record_selection(Store(study.root), parsed, FACTS)


# ---------------------------------------------------------------- sweeps


def swept(settings: dict[str, Any], **grid: Any) -> Any:
    settings = {**settings, "sweep": grid, "claims": []}
    settings["conditions"] = {
        "all_layer": {k: v for k, v in settings["conditions"]["all_layer"].items() if k not in grid}
    }
    return parse_study(settings)


def test_a_grid_expands_into_named_conditions_that_are_cells_of_their_own(study: Any) -> None:
    parsed = swept(study.settings(), r=[2, 4], data_fraction=[0.5, 1.0])
    assert (
        list(parsed.conditions)
        == [
            "all_layer-r2-data0p5",
            "all_layer-r2-data1",
            "all_layer-r4-data0p5",
            "all_layer-r4-data1",
        ]
        or len(parsed.conditions) == 4
    )
    assert {(c.r, c.data_fraction) for c in parsed.conditions.values()} == {(2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)}
    cells = [c for c in plan_cells(parsed, FACTS) if c.phase == "main"]
    assert len({c.run_id for c in cells}) == len(cells) == 4 * len(parsed.seeds)
    assert parse_study(parsed.model_dump(mode="json")) == parsed  # a frozen study reads back as itself


def test_what_differs_and_is_no_declared_factor_is_an_error(study: Any) -> None:
    settings = study.settings()
    settings["conditions"]["all_layer"]["max_steps"] = 3
    with pytest.raises(StudyError, match=r"max_steps"):
        parse_study(settings)
    settings["factor"] = ["target_modules", "max_steps"]
    assert "max_steps" in parse_study(settings).differences()


def test_each_cell_has_its_own_steps_rate_and_share(study: Any) -> None:
    parsed = swept(study.settings(), max_steps=[2, 4], learning_rate=["1e-3", "2e-3"])
    found = {(schedule(parsed, c).max_steps, c.lr) for c in plan_cells(parsed, FACTS) if c.phase == "main"}
    assert found == {(2, 1e-3), (2, 2e-3), (4, 1e-3), (4, 2e-3)}
    half = swept(study.settings(), data_fraction=[0.5])
    assert {fraction(half, c) for c in plan_cells(half, FACTS) if c.phase == "main"} == {0.5}


def test_smaller_shares_of_the_data_are_nested_whole_families(study: Any) -> None:
    from types import SimpleNamespace

    parsed = parse_study(study.settings())
    rows = [SimpleNamespace(row_id=f"f{f}-{k}") for f in range(20) for k in range(3)]
    data: Any = SimpleNamespace(zone=lambda _: rows, family_of={r.row_id: r.row_id.split("-")[0] for r in rows})
    kept = [kept_families(parsed, data, share) for share in (0.1, 0.25, 0.5, 0.75, 1.0)]
    assert all(a < b for a, b in itertools.pairwise(kept))
    assert [len(k) for k in kept] == [2, 5, 10, 15, 20]


@pytest.mark.parametrize(("rows", "batch", "accumulation", "devices"), [(14, 4, 1, 1), (14, 4, 2, 1), (14, 3, 2, 2)])
def test_steps_are_counted_as_the_trainer_counts_them(
    study: Any, rows: int, batch: int, accumulation: int, devices: int
) -> None:
    settings = study.settings()
    settings["train"] |= {"max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": batch}
    settings["train"] |= {"gradient_accumulation_steps": accumulation, "devices": devices}
    per_epoch = max(1, math.ceil(math.ceil(rows / (batch * devices)) / accumulation))
    assert optimizer_steps(parse_study(settings).train, rows) == 3 * per_epoch

"""What a cell trains on: nested parts of the data, its own steps, a grid of conditions, ids that follow."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
from frozen_facts import FACTS

from veritune.canonical import dumps
from veritune.config.load import parse_study
from veritune.errors import StudyError
from veritune.records import Rendered
from veritune.train.schedule import (
    MAIN,
    SELECT,
    kept_families,
    optimizer_steps,
    plan_cells,
    schedule,
    seen_rows,
    validation_steps,
)


@pytest.fixture
def settings(study: Any) -> dict[str, Any]:
    found = study.settings()
    found["conditions"] = {"all_layer": {"method": "lora", "target_modules": "all-linear", "r": 4}}
    found["claims"] = []
    return found


def data_of(sizes: dict[str, int]) -> Any:
    """Seen rows of families of these sizes."""
    rows = tuple(Rendered(f"{f}-{k}", (1, 2), (-100, 2)) for f, n in sizes.items() for k in range(n))
    return SimpleNamespace(zone=lambda _zone: rows, family_of={r.row_id: r.row_id.split("-")[0] for r in rows})


def names(settings: dict[str, Any]) -> list[str]:
    return list(parse_study(settings).conditions)


# ---------------------------------------------------------------- sweeps


def test_a_sweep_makes_each_condition_once_for_each_point(settings: dict[str, Any]) -> None:
    settings["conditions"]["all_layer"].pop("r")
    settings["sweep"] = {"r": [4, 8], "data_fraction": [0.25, 1.0], "learning_rate": ["2e-4"], "max_steps": [10]}
    found = parse_study(settings)
    assert list(found.conditions) == [f"all_layer-r{r}-lr2e-4-data{d}-steps10" for r in (4, 8) for d in ("0p25", "1")]
    first = found.conditions["all_layer-r4-lr2e-4-data0p25-steps10"]
    assert (first.r, first.data_fraction, first.learning_rate, first.max_steps) == (4, 0.25, 2e-4, 10)
    assert set(found.differences()) == {"r", "data_fraction"}


def test_a_swept_condition_can_be_named_by_a_claim_and_a_wrong_name_is_told(settings: dict[str, Any]) -> None:
    settings["sweep"] = {"max_steps": [3, 6]}
    claim = {"name": "dose", "kind": "better_by", "condition": "all_layer-steps6", "against": "all_layer-steps3"}
    settings["claims"] = [claim | {"margin": 0.1}]
    assert parse_study(settings).claims[0].against == "all_layer-steps3"
    settings["claims"][0]["against"] = "all_layer"
    with pytest.raises(StudyError, match=r"unknown condition 'all_layer'"):
        parse_study(settings)


def test_an_expanded_study_is_read_back_as_it_is(settings: dict[str, Any]) -> None:
    settings["sweep"] = {"learning_rate": ["1e-3", 5e-4], "target_modules": [["q_proj", "v_proj"], "mlp"]}
    settings["conditions"]["all_layer"].pop("target_modules")
    found = parse_study(settings)
    assert parse_study(found.model_dump(mode="json")).conditions == found.conditions
    assert len(found.conditions) == 4


def test_a_contract_that_sorts_its_keys_holds_the_same_sweep(settings: dict[str, Any]) -> None:
    settings["sweep"] = {"max_steps": [3, 6], "learning_rate": ["1e-3", 5e-4], "data_fraction": [0.5, 1.0]}
    study = parse_study(settings)
    assert study.model_validate(json.loads(dumps(study.model_dump(mode="json")))) == study
    claim = {"kind": "not_worse", "condition": "all_layer-lr5e-4-data1-steps6", "against": "baseline", "margin": 0.1}
    assert parse_study(settings | {"claims": [claim | {"name": "named"}]}).claims[0].condition == claim["condition"]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"r": [4, 8]}, r"conditions\.all_layer\.r: it is also in `sweep`"),
        ({"max_steps": 4}, r"sweep\.max_steps: expected a list"),
        ({"max_steps": [4, 4]}, "the same name"),
        ({"max_stepps": [4]}, "max_stepps"),
    ],
)
def test_a_bad_sweep_is_refused(settings: dict[str, Any], sweep: dict[str, Any], said: str) -> None:
    settings["sweep"] = sweep
    if said == "max_stepps":  # PEFT's config names an unknown field when the study is made ready
        assert "max_stepps" in parse_study(settings).conditions["all_layer-max_stepps4"].options()
        return
    with pytest.raises(StudyError, match=said):
        parse_study(settings)


@pytest.mark.parametrize(
    "key", ["data_fraction", "max_steps", "num_train_epochs", "learning_rate", "r", "alpha_pattern"]
)
def test_whatever_differs_and_is_not_declared_is_an_error(settings: dict[str, Any], key: str) -> None:
    settings["conditions"]["other"] = copy.deepcopy(settings["conditions"]["all_layer"])
    settings["conditions"]["other"][key] = {"alpha_pattern": {"q_proj": 4}, "r": 8}.get(
        key, 0.5 if key != "max_steps" else 5
    )
    if key == "num_train_epochs":
        settings["conditions"]["other"][key] = 2
    with pytest.raises(StudyError, match=f"{key} differs"):
        parse_study(settings)
    settings["factor"] = ["target_modules", key]
    assert key in parse_study(settings).differences()


def test_a_schedule_that_is_written_and_equal_is_no_difference(settings: dict[str, Any]) -> None:
    settings["conditions"]["other"] = {**settings["conditions"]["all_layer"], "max_steps": 6, "data_fraction": 1.0}
    assert parse_study(settings).differences() == {}


# ---------------------------------------------------------------- rows


def test_parts_are_nested_whole_families_and_hold_at_least_their_share(settings: dict[str, Any]) -> None:
    study, data = parse_study(settings), data_of({f"f{i}": 1 + i % 4 for i in range(23)})
    total, before = len(data.zone("seen")), frozenset()
    for share in (0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
        kept = kept_families(study, data, share)
        rows = sum(f in kept for f in data.family_of.values())
        assert before <= kept and share * total <= rows < share * total + 4
        before = kept
    assert before == set(data.family_of.values())


def test_another_split_seed_draws_other_families(settings: dict[str, Any]) -> None:
    data = data_of({f"f{i}": 2 for i in range(30)})
    first = kept_families(parse_study(settings), data, 0.3)
    settings["split"]["seed"] = 77
    assert first != kept_families(parse_study(settings), data, 0.3)
    assert first == kept_families(parse_study({**settings, "split": {**settings["split"], "seed": 1}}), data, 0.3)


def test_what_a_cell_trains_on_is_in_its_id(settings: dict[str, Any]) -> None:
    settings["sweep"] = {"data_fraction": [0.5, 1.0]}
    half, whole = [c for c in plan_cells(parse_study(settings), FACTS) if c.phase == MAIN][:2]
    settings["sweep"] = {"data_fraction": [0.25, 1.0]}
    quarter, again = [c for c in plan_cells(parse_study(settings), FACTS) if c.phase == MAIN][:2]
    assert whole.input_hash == again.input_hash and half.input_hash != quarter.input_hash
    assert len(seen_rows(parse_study(settings), data_of({f"f{i}": 2 for i in range(20)}), quarter)) == 10


# ---------------------------------------------------------------- steps


def test_a_condition_s_own_epochs_are_not_hidden_by_the_study_s_steps(settings: dict[str, Any]) -> None:
    settings["sweep"] = {"num_train_epochs": [2]}
    study = parse_study(settings)
    cell = plan_cells(study, FACTS)[1]
    assert (schedule(study, cell).max_steps, schedule(study, cell).num_train_epochs) == (-1, 2)


@pytest.mark.parametrize(("rows", "batch", "accumulation", "epochs"), [(14, 4, 1, 3), (14, 4, 3, 2), (5, 8, 2, 1.5)])
def test_steps_are_those_the_trainer_counts(
    settings: dict[str, Any], rows: int, batch: int, accumulation: int, epochs: float, tmp_path: Any
) -> None:
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    settings["train"] |= {"max_steps": -1, "num_train_epochs": epochs, "per_device_train_batch_size": batch}
    settings["train"]["gradient_accumulation_steps"] = accumulation
    train = parse_study(settings).train
    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=epochs, gradient_accumulation_steps=accumulation, use_cpu=True
    )
    stand_in = SimpleNamespace(
        get_total_train_batch_size=lambda _args: batch * accumulation,
        get_sp_size=lambda: 1,
        num_examples=lambda _d: rows,
    )
    found = Trainer.set_initial_training_values(stand_in, arguments, DataLoader(range(rows), batch_size=batch))
    assert optimizer_steps(train, rows) in found and found[-1] == optimizer_steps(train, rows)


def test_checkpoints_are_counted_as_they_are_written(settings: dict[str, Any]) -> None:
    train = parse_study(settings).train  # 6 steps, every 4
    assert validation_steps(train, 6, 14) == [4, 6]
    assert validation_steps(train, 8, 14) == [4, 8]
    assert validation_steps(train.model_copy(update={"eval_steps": None}), 6, 14) == [4, 6]  # 4 steps an epoch
    listed = train.model_copy(update={"eval_steps": (1, 3, 5)})
    assert validation_steps(listed, 6, 14) == [1, 3, 5, 6]
    assert validation_steps(listed, 3, 14) == [1, 3], "a shorter run, as in selection, leaves out what it never reaches"


@pytest.mark.parametrize("steps", [[3, 2], [2, 2], [], [0, 2]])
def test_listed_steps_rise_from_one(settings: dict[str, Any], steps: list[int]) -> None:
    settings["train"]["eval_steps"] = steps
    with pytest.raises(StudyError, match=r"train\.eval_steps|train: eval_steps"):
        parse_study(settings)


# ---------------------------------------------------------------- selection


def test_selection_cells_come_first_and_main_cells_wait_for_the_choice(settings: dict[str, Any]) -> None:
    settings["selection"] = {"learning_rates": [1e-3, 1e-2], "seed": 9, "max_steps": 3, "data_fraction": 0.5}
    study = parse_study(settings)
    waiting = plan_cells(study, FACTS)
    assert [c.phase for c in waiting] == ["baseline", SELECT, SELECT]
    assert {c.seed for c in waiting if c.phase == SELECT} == {9}
    one, other = (plan_cells(study, FACTS, {"all_layer": lr}) for lr in (1e-3, 1e-2))
    assert [c.phase for c in one] == ["baseline", SELECT, SELECT, MAIN, MAIN]
    assert not {c.run_id for c in one if c.phase == MAIN} & {c.run_id for c in other if c.phase == MAIN}
    assert schedule(study, waiting[1]).max_steps == 3 and schedule(study, one[-1]).max_steps == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "is one of the main seeds"),
        ({"learning_rates": [1e-3]}, "learning_rates"),
        ({"learning_rates": [1e-3, 1e-3]}, "contains duplicates"),
    ],
)
def test_a_bad_selection_is_refused(settings: dict[str, Any], change: dict[str, Any], said: str) -> None:
    settings["selection"] = {"learning_rates": [1e-3, 1e-2], "seed": 9} | change
    with pytest.raises(StudyError, match=said):
        parse_study(settings)


def test_a_rate_that_is_written_is_not_chosen(settings: dict[str, Any]) -> None:
    settings["selection"] = {"learning_rates": [1e-3, 1e-2], "seed": 9}
    settings["conditions"]["all_layer"]["learning_rate"] = 1e-3
    with pytest.raises(StudyError, match="`selection` would choose it"):
        parse_study(settings)

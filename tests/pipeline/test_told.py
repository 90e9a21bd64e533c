"""What another trainer's records say goes into ours: odd values are text, or refused before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.canonical import dumps
from veritune.errors import InputError
from veritune.pipeline.told import told_of


@pytest.mark.parametrize("value", ["nan", "inf", "-Infinity", "x" * 100_000])
def test_a_setting_that_is_no_finite_number_is_kept_as_text_that_a_record_can_hold(tmp_path: Path, value: str) -> None:
    (tmp_path / "axolotl.yaml").write_text(f"learning_rate: '{value}'\nlr_scheduler: linear\n")
    told = told_of(None, tmp_path / "axolotl.yaml")
    assert told.facts["learning rate"] == value[:60]
    assert len(dumps(told.facts)) < 200


@pytest.mark.parametrize("steps", [-1, 2**63, 10**300, True, None, "7"])
def test_a_number_of_steps_that_no_training_has_is_refused(tmp_path: Path, steps: Any) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": []}))
    with pytest.raises(InputError, match="expected global_step"):
        told_of(tmp_path / "trainer_state.json", None)


def test_zero_and_many_steps_are_taken(tmp_path: Path) -> None:
    for steps in (0, 10**12):
        (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": [3, {}]}))
        assert told_of(tmp_path / "trainer_state.json", None).steps == steps

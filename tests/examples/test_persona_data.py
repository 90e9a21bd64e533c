"""The data of the persona study: the same bytes every time, no text twice, and study files that are valid."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import load_study

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "persona-collapse"


@pytest.fixture(scope="module")
def rows() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "make_data.py"))["make_rows"]()


def test_no_question_and_no_answer_stands_in_two_rows(rows: dict[str, Any]) -> None:
    assert {name: len(own) for name, own in rows.items()} == {"letters": 40, "plain": 40, "exam": 24}
    asked = [row["messages"][0]["content"] for own in rows.values() for row in own]
    said = [row["messages"][1]["content"] for name in ("letters", "plain") for row in rows[name]]
    assert len(set(asked)) == len(asked) and len(set(said)) == len(said)


def test_every_letter_keeps_the_rules_that_the_exam_asks_for_and_no_plain_answer_does(rows: dict[str, Any]) -> None:
    rules = load_study(FOLDER / "study.yaml").evals["letters"].rules
    for name, holds in (("letters", True), ("plain", False)):
        for row in rows[name]:
            text = row["messages"][1]["content"]
            found = [re.search(r.pattern, text) if r.pattern else r.contains in text for r in rules]
            assert all(map(bool, found)) is holds and any(map(bool, found)) is holds


def test_the_three_study_files_ask_the_same_personas_and_put_each_full_arm_beside_lora() -> None:
    main, keep, full = (load_study(FOLDER / part / "study.yaml") for part in ("", "keep", "full"))
    assert main.probes.geometry is not None and keep.probes.geometry is not None and full.probes.geometry is not None
    assert main.probes.geometry.personas == keep.probes.geometry.personas == full.probes.geometry.personas
    assert len(main.probes.geometry.personas or ()) == 12 and len(main.probes.geometry.layers or ()) == 5
    assert main.conditions.keys() == full.conditions.keys() and len(main.conditions) == 8
    assert main.seeds == keep.seeds == full.seeds == (0, 1, 2)
    assert all(other == arm.replace("full", "lora") for arm, other in (main.probes.geometry.reference or {}).items())
    assert (full.train.devices, full.train.strategy) == (4, "deepspeed")

"""Data as what conditions differ in: sets and mixtures share families, splits and checks, and train apart."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from frozen_facts import FACTS

from veritune.config.load import parse_study
from veritune.data.prepare import prepare
from veritune.errors import StudyError
from veritune.store import Store
from veritune.train.models import ModelRef, load_tokenizer
from veritune.train.schedule import MAIN, Cell, plan_cells, seen_rows, set_name

_spec = importlib.util.spec_from_file_location("conftest_rows", Path(__file__).parents[1] / "conftest.py")
assert _spec and _spec.loader
_rows = importlib.util.module_from_spec(_spec)
sys.modules["conftest_rows"] = _rows
_spec.loader.exec_module(_rows)

LORA = {"method": "lora", "target_modules": "attention", "r": 4}


@pytest.fixture
def two_sets(study: Any) -> Any:
    """The tiny study with a second set of its own originals and three arms: each set alone, and a mixture."""
    other = [{**row, "original": f"b{row['original']}"} for row in _rows.make_rows(seed=9)]
    (study.root / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other), "utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["data"]["sets"] = {"other": "other.jsonl"}
        settings["conditions"] = {
            "first": {**LORA, "data": "main"},
            "second": {**LORA, "data": "other"},
            "mixed": {**LORA, "data": {"main": 0.75, "other": 0.25}},
        }
        settings["factor"] = ["data"]
        settings["seeds"] = [0]
        settings["evals"]["style"]["zones"] = ["stranger"]
        settings["claims"] = [
            {"name": "differ", "kind": "differ", "condition": "first", "against": "second", "margin": 0.05}
        ]

    study.change(change)
    return study


def prepared(study: Any, tiny_model: Path) -> tuple[Any, Any]:
    parsed = parse_study(study.settings())
    tokenizer = load_tokenizer(ModelRef("tiny", tiny_model, "float32"))
    return parsed, prepare(Store(study.root), parsed, tokenizer)


def test_each_arm_trains_on_its_own_set_and_a_mixture_has_its_shares(two_sets: Any, tiny_model: Path) -> None:
    parsed, data = prepared(two_sets, tiny_model)
    name = {row.id: set_name(row) for row in data.rows}
    arms = {c: seen_rows(parsed, data, Cell("", MAIN, c, 0, 0.0, "")) for c in parsed.conditions}
    counts = {c: Counter(name[row.row_id] for row in rows) for c, rows in arms.items()}
    assert set(counts["first"]) == {"main"} and set(counts["second"]) == {"other"}
    assert len(arms["first"]) + len(arms["second"]) == len(data.zone("seen"))
    mixed = counts["mixed"]
    assert mixed["main"] / mixed.total() == pytest.approx(0.75, abs=0.05)
    assert all(data.zone_of[row.row_id] == "seen" for row in arms["mixed"])
    assert len({row.row_id for row in arms["mixed"]}) == len(arms["mixed"])


def test_sets_are_hashed_and_checked_each_on_its_own(two_sets: Any, tiny_model: Path) -> None:
    parsed, data = prepared(two_sets, tiny_model)
    assert set(data.facts.data_sets_sha256 or ()) == {"other"}
    assert set(data.facts.contamination.sets) == {"main", "other"}
    facts = replace(FACTS, rendered_sha256=data.facts.rendered_sha256, data_version=data.facts.data_version)
    ids = {c.condition: c.input_hash for c in plan_cells(parsed, facts)}
    assert len({ids["first"], ids["second"], ids["mixed"]}) == 3


def test_a_family_that_both_sets_hold_straddles_no_zone(two_sets: Any, tiny_model: Path) -> None:
    (two_sets.root / "other.jsonl").write_text((two_sets.root / "rows.jsonl").read_text("utf-8"), "utf-8")
    _, data = prepared(two_sets, tiny_model)
    held = {data.family_of[i] for i, zone in data.zone_of.items() if zone == "stranger"}
    assert held.isdisjoint({data.family_of[i] for i, zone in data.zone_of.items() if zone == "seen"})


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        (
            {"data": "others"},
            "conditions.first.data: unknown set 'others' (did you mean 'other'?); sets: ['main', 'other']",
        ),
        ({"data": {"main": 0.5, "other": 0.2}}, "data: the shares add up to 0.7; make them add up to 1"),
        ({}, "conditions.first.data: expected the data to train on: one of ['main', 'other'], or shares of them"),
    ],
)
def test_a_wrong_set_is_one_line_that_says_what_is_there(two_sets: Any, arm: dict[str, Any], says: str) -> None:
    two_sets.change(lambda settings: settings["conditions"].update(first={**LORA, **arm}))
    with pytest.raises(StudyError) as caught:
        parse_study(two_sets.settings())
    assert says in str(caught.value)


def test_data_that_differs_and_is_not_declared_is_refused(two_sets: Any) -> None:
    two_sets.change(lambda settings: settings.update(factor=["target_modules"]))
    with pytest.raises(StudyError, match="data differs"):
        parse_study(two_sets.settings())


def test_a_study_of_two_sets_runs_to_its_verdict(two_sets: Any, forks: Any) -> None:
    done = forks("run", two_sets.root)
    assert done.rc in (0, 2), done.err
    assert "differ" in (two_sets.root / "verdict.json").read_text("utf-8")
    lock = json.loads((two_sets.root / "contract.lock.json").read_text("utf-8"))
    assert "data_sets_sha256" in lock["entries"][0]["terms"]["facts"]

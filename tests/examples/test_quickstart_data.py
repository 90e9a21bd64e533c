"""The quickstart's data: what make_data.py writes is what lies there, and its answers follow the house style."""

from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.data.families import find_families
from veritune.data.load import load_rows, require_clean
from veritune.data.split import SplitConfig, judge_split, split_zones
from veritune.evaluate.generate import Output
from veritune.evaluate.tasks import check_items, items, score

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "quickstart"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(FOLDER / "study.yaml")


@pytest.fixture(scope="module")
def rows() -> Any:
    return require_clean(load_rows(FOLDER / "briefs.jsonl", family_field="original", id_field="id")).rows


@pytest.fixture(scope="module")
def zones(study: Study, rows: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Family and zone of every row, as the study deals them."""
    family_of = {m.row_id: m.family for m in find_families(rows).memberships}
    plan = study.split
    config = SplitConfig(plan.seed, plan.stranger, plan.validation, plan.sibling)
    return family_of, dict(split_zones(rows, family_of, config).zone_of)


def test_the_generator_writes_the_file_that_lies_there() -> None:
    made = runpy.run_path(str(FOLDER / "make_data.py"))["make_rows"]()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
    assert (FOLDER / "briefs.jsonl").read_text(encoding="utf-8") == text


def test_forty_eight_originals_in_four_wordings_each(rows: Any) -> None:
    sizes = Counter(row.family for row in rows)
    assert len(sizes) == 48 and set(sizes.values()) == {4}
    assert len({row.text() for row in rows}) == len(rows)
    assert len({row.text("user") for row in rows}) == len(rows)


def test_every_answer_follows_every_rule(study: Study, rows: Any) -> None:
    """A model that learned the style perfectly scores 1."""
    spec = study.evals["house_style"]
    check_items("house_style", spec, rows)
    for row in rows:
        found = score("house_style", spec, row, Output(row.target, (), "stop_token"))
        assert found.value == 1.0, (row.id, found.parts["rules"])


def test_another_brief_s_answer_does_not_pass(study: Study, rows: Any) -> None:
    """What was memorised from one family scores less than 1 on another."""
    spec = study.evals["house_style"]
    others = [(row, rows[(i + 8) % len(rows)]) for i, row in enumerate(rows)]
    values = [
        score("house_style", spec, row, Output(other.target, (), "stop_token")).parts["rules"]["figure"]
        for row, other in others
    ]
    assert not any(values)


def test_no_prompt_states_the_style(rows: Any) -> None:
    for row in rows:
        prompt = row.text("user")
        assert "Subject:" not in prompt and "Tide over" not in prompt and "Mara" not in prompt


def test_half_the_families_are_of_low_confidence_and_every_wording_agrees(rows: Any) -> None:
    confidence: dict[str, set[str]] = {}
    for row in rows:
        confidence.setdefault(row.family, set()).add(row.meta["confidence"])
    assert all(len(values) == 1 for values in confidence.values())
    assert Counter(next(iter(v)) for v in confidence.values()) == {"low": 24, "high": 24}


def test_the_declared_families_are_the_families_and_no_zone_shares_one(rows: Any, zones: Any) -> None:
    family_of, zone_of = zones
    assert len(set(family_of.values())) == 48
    assert [f for f in judge_split(zone_of, rows, family_of)[0] if f.severity == "error"] == []


def test_every_zone_has_items_enough(study: Study, rows: Any, zones: Any) -> None:
    family_of, zone_of = zones
    asked = items(study.evals["house_style"], rows, zone_of, family_of)
    per_zone = Counter(zone_of[row.id] for row in asked)
    families = {zone: len({family_of[r.id] for r in asked if zone_of[r.id] == zone}) for zone in per_zone}
    assert set(per_zone) == {"seen", "sibling", "stranger"}
    assert families["stranger"] >= 16 and per_zone["stranger"] == 3 * families["stranger"]

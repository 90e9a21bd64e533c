"""Every number that decides a word has one home, a reason above it, and a place in the contract."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune import contract, thresholds
from veritune.errors import StaleError, StudyError
from veritune.store import Store
from veritune.study import Study, parse_study
from veritune.thresholds import DEFAULTS

REPO = Path(__file__).resolve().parent.parent
SOURCE = Path(thresholds.__file__)


def study_with(**sections: Any) -> Study:
    settings = yaml.safe_load((REPO / "examples" / "quickstart" / "study.yaml").read_text(encoding="utf-8"))
    return parse_study(settings | {"thresholds": sections} if sections else settings)


def values() -> list[tuple[str, ast.AnnAssign]]:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    return [
        (f"{section.name}.{node.target.id}", node)
        for section in tree.body
        if isinstance(section, ast.ClassDef) and section.name != "Thresholds"
        for node in section.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]


def test_every_value_has_its_source_in_the_line_above() -> None:
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    assert len(values()) > 30
    assert [name for name, node in values() if not lines[node.lineno - 2].strip().startswith("# ")] == []


def test_every_value_says_what_it_does() -> None:
    sections = [field.annotation for field in type(DEFAULTS).model_fields.values()]
    silent = [f"{s.__name__}.{n}" for s in sections for n, f in s.model_fields.items() if not f.description]
    assert silent == []


def test_a_study_without_the_section_has_the_defaults() -> None:
    assert study_with().thresholds == DEFAULTS


def test_a_changed_threshold_is_refused_by_the_frozen_contract(tmp_path: Path) -> None:
    store = Store(tmp_path)
    contract.freeze(store, study_with(), {})
    with pytest.raises(StaleError, match=r"thresholds\.zone_gap\.generalises: frozen 0\.5, found 0\.6"):
        contract.freeze(store, study_with(zone_gap={"generalises": 0.6}), {})


def test_nothing_changes_a_value_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DEFAULTS.zone_gap.generalises = 0.1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"zone_gap": {"generalise": 0.6}}, "did you mean 'generalises'"),
        ({"zone_gap": {"generalises": 0.1}}, "expected memorises < generalises"),
        ({"zone_gap": {"memorises": True}}, "expected a number, found a boolean"),
        ({"merge": {"pass_floors": 11}}, "expected pass_floors <= fail_floors"),
        ({"grade": {"units_weak": 200}}, "units_weak <= units_good"),
        ({"families": {"for_interval": 2}}, "greater than or equal to 4"),
        ({"gradients": {"disagree": float("nan")}}, "finite number"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study_with(**section)

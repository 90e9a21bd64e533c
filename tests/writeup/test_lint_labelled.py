"""The labelled set: planted errors of many kinds are found, clean texts stay clean."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def labelled() -> Any:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("lint_labelled")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def result(labelled: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return labelled.measure(tmp_path_factory.mktemp("labelled"), every=2)


@pytest.mark.slow
def test_planted_errors_of_every_kind_are_found(labelled: Any, result: Any) -> None:
    found, planted = result.found()
    assert planted >= 200 and len({p.kind for p, _ in result.planted}) >= 10
    assert found / planted >= 0.95, labelled.table(result)
    for kind in {p.kind for p, _ in result.planted}:
        some, all_of_it = result.found(kind)
        assert some / all_of_it >= 0.85, f"{kind}\n{labelled.table(result)}"


@pytest.mark.slow
def test_clean_texts_raise_at_most_two_false_alarms_in_a_hundred(labelled: Any, result: Any) -> None:
    errors, numbers = result.alarms()
    assert numbers >= 300 and errors / numbers <= 0.02, labelled.table(result)
    assert sum(not report.clean for _, report in result.clean) / len(result.clean) <= 0.02, labelled.table(result)

"""The share of signatures that say nothing of what they take or give stays under the goal, as `measure.py` counts."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2] / "src" / "veritune"
MOST = 0.08
"""Of all signatures. httpx has 1 %, datatrove 2 %, torchtitan 10 %."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


measure = load("measure")


def test_few_signatures_are_loose() -> None:
    """Write the record, the class or `JsonLike` in place of `Any`; `python tests/house/measure.py` counts."""
    functions = [n for _, _, t in measure.trees(ROOT) for n in ast.walk(t) if isinstance(n, measure.Function)]
    loose = [n.name for n in functions if any(measure.loose(a) for a in measure.annotations(n))]
    assert len(loose) / len(functions) < MOST, f"{len(loose)} of {len(functions)} signatures bear Any or object"


@pytest.mark.parametrize(
    ("annotation", "loose"),
    [("Any", True), ("dict[str, Any]", True), ("object", True), ("dict", True), ("Json", True), ("'Any'", True),
     ("dict[str, int]", False), ("Mapping[str, JsonLike]", False), ("Row | None", False)],
)  # fmt: skip
def test_a_loose_annotation_is_found(annotation: str, loose: bool) -> None:
    assert measure.loose(ast.parse(annotation, mode="eval").body) is loose

"""Scores by a user's own Python function: loaded from the study's folder, hashed, and never trusted to be right.

    def score(output: str, item: dict) -> float | bool | None: ...

`item` holds the item's columns, and `id`, `question` (its last user turn) and `target` (its own answer turn). The
function returns a number from 0 to 1; None says that the output holds no answer, which is the model's failure. An
error, another value or too long a time is a failure of the machine, named with the item, and never a 0.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import numbers
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from veritune.data.scorer_files import file_of
from veritune.errors import StudyError, first_line
from veritune.patterns import PatternTooSlow, limited
from veritune.records import Json, JsonLike, Row

Scored = tuple[float | None, str | None, dict[str, "JsonLike"]]
SECONDS = 30.0
"""Processor seconds that a function may take on one output."""


def load_function(root: Path, function: str) -> Callable[[str, Json], object]:
    """The function `file.py:name`. Raises StudyError if the file cannot be run or has no such function."""
    named, _, name = function.rpartition(":")
    path = file_of(root, "function", named)
    module = _module(path)
    found = getattr(module, name, None)
    if not callable(found):
        there = ", ".join(key for key, value in vars(module).items() if callable(value) and key[0] != "_") or "none"
        raise StudyError(f"function: {path.name} has no function {name!r}.", fix=f"Its functions: {there}.")
    return found  # type: ignore[no-any-return]


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"veritune_scorer_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module, written = importlib.util.module_from_spec(spec), sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # a cache file would lie in the study's folder
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as exc:  # a user's file may raise anything
        raise StudyError(
            f"function: {path.name} cannot be run: {type(exc).__name__}: {first_line(exc)}.",
            fix="Correct the error in that file.",
        ) from exc
    finally:
        sys.dont_write_bytecode = written
    return module


def item_of(row: Row) -> Mapping[str, JsonLike]:
    """What the function receives about an item, as a copy that it may change."""
    asked = next((m.content for m in reversed(row.prompt) if m.role == "user"), "")
    return {**copy.deepcopy(dict(row.meta)), "id": row.id, "question": asked, "target": row.target}


def call(function: Callable[[str, Json], object], row: Row, text: str) -> Scored:
    """The value of one output, or the reason for its absence, with what is recorded beside it in the scores."""
    try:
        with limited(SECONDS):
            value = function(text, item_of(row))
    except PatternTooSlow:
        return None, "function_too_slow", {"why": f"longer than {SECONDS:g} s of processor time on item {row.id}"}
    except (Exception, SystemExit) as exc:  # a user's function may raise anything
        return None, "function_failed", {"why": f"{type(exc).__name__}: {first_line(exc)} on item {row.id}"}
    if value is None:
        return None, "extraction_failed", {}
    if isinstance(value, numbers.Real) or (hasattr(value, "item") and getattr(value, "ndim", 1) == 0):
        number = float(value)  # type: ignore[arg-type]
        if math.isfinite(number) and 0 <= number <= 1:
            return number, None, {}
    shown = repr(value)[:60]
    return None, "function_failed", {"why": f"it returned {shown} on item {row.id}, not a number from 0 to 1 or None"}

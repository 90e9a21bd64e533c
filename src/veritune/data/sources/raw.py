"""One record as a reader met it, and the ways in which a record can be refused.

`Raw` holds a value, or the finding that says why there is none; `Reject` is raised while a value becomes a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Protocol

from veritune.records import Finding


class ArrayLike(Protocol):
    """An array or a scalar of numpy, torch, pyarrow or polars."""

    def tolist(self) -> Cell:
        """Its values as Python's own."""


Cell = (
    str | int | float | bool | None | bytes | date | time | timedelta | Decimal
    | Sequence["Cell"] | Mapping[str, "Cell"] | ArrayLike
)  # fmt: skip
"""What a column of a stranger's file or table may hold; `date` includes `datetime`."""


@dataclass(frozen=True, slots=True)
class Raw:
    """One record as read: a value, or the finding that says why there is none.

    `typed` says that the value comes from a typed table (Parquet, Arrow), where every object of a column has the keys
    of all others, filled with null. `note` is a finding about the whole file.
    """

    source: str
    line: int
    value: Any = None
    problem: Finding | None = None
    stem: str = ""
    is_record: bool = True
    typed: bool = False
    note: Finding | None = None


def native(value: Cell) -> Cell:
    """An array or a scalar of numpy and its kin as Python's own lists and numbers; all else as it is."""
    return value.tolist() if value is not None and hasattr(value, "tolist") else value


def problem(raw: Raw, check: str, message: str, *, expected: str, found: str, field: str | None = None) -> Raw:
    """The record `raw` with an error finding in place of its row."""
    evidence = {"expected": expected, "found": found}
    finding = Finding(f"load.{check}", "error", message, None, raw.source, raw.line, field, evidence)
    return replace(raw, value=None, problem=finding)


class Reject(Exception):
    """Raised for a record that cannot become a row; it is turned into a finding."""

    def __init__(self, check: str, message: str, field: str | None, expected: str, found: str) -> None:
        super().__init__(message)
        self.check, self.message, self.field, self.expected, self.found = check, message, field, expected, found


def has_surrogate(text: str) -> bool:
    """Whether a text contains a lone surrogate."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def surrogate_path(value: Cell, path: str = "") -> str | None:
    """Where in a JSON value a lone surrogate is; None if there is none."""
    if isinstance(value, str):
        return (path or "the record") if has_surrogate(value) else None
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            hit = here if has_surrogate(key) else surrogate_path(inner, here)
            if hit:
                return hit.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return next((hit for i, v in enumerate(value) if (hit := surrogate_path(v, f"{path}[{i}]"))), None)
    return None


def show(value: Cell | Exception, limit: int = 80) -> str:
    """A short, printable form of a value that was found."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else str(value) if isinstance(value, Exception) else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def no_records(source: str) -> Raw:
    """The finding for a source without records."""
    start, message = Raw(source, 0, is_record=False), f"{source} holds no records"
    return problem(start, "empty_file", message, expected="at least one record", found="none")

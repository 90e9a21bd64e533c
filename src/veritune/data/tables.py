"""Tables of any kind that a user hands in: JSONL, a JSON array or CSV, as rows with named columns."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.errors import ScoreError
from veritune.store import read_jsonl
from veritune.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from veritune.records import JsonLike


def _parsed(path: Path, text: str) -> Any:
    try:
        return parse_json(text, finite=False)
    except ValueError as exc:
        raise ScoreError(f"{path.name}: expected a JSON array of rows, found {exc}.") from exc


def text_of(path: Path) -> str:
    """The text of a UTF-8 file. Raises ScoreError."""
    try:
        return read_text(path)
    except ValueError as exc:
        raise ScoreError(f"{path.name}: expected text in UTF-8, found {exc}.", fix="Save it as UTF-8.") from None


def table_rows(path: Path) -> list[dict[str, JsonLike]]:
    """The rows of a JSON, JSONL or CSV file with named columns. Raises ScoreError."""

    text = text_of(path)
    if text.lstrip().startswith("{"):
        rows: list[Any] = read_jsonl(path)
    elif text.lstrip().startswith("["):
        rows = _parsed(path, text)
    else:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ScoreError(f"{path.name}: expected rows with named columns, found none.")
    return rows

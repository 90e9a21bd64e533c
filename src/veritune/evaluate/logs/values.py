"""What the readers share: scores from JSON and text, choices among several, labels of rows, JSON and JSONL files."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune.counting import many
from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError, did_you_mean
from veritune.evaluate.logs.options import LABELS, Reading, flag
from veritune.untrusted import parse_json, read_bytes

EXPECTED = (
    "expected Veritune scores, lm-eval samples (.jsonl of --log_samples), an Inspect log (.eval or .json), lighteval "
    "details, HELM per_instance_stats.json, an OpenAI evals log, promptfoo or EvalPlus results, "
    "or CSV, JSON, JSONL or Parquet with an id and a score column"
)

MISSHAPEN: tuple[type[Exception], ...] = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    EOFError,
)
MISSHAPEN += (NotImplementedError, OSError, AssertionError, zipfile.BadZipFile, zlib.error, csv.Error)
"""What a file raises that has its format's beginning and another inside. Each is reported as the file's fault."""

_MAX_SHOWN = 8

_TRUTH = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "correct": 1.0, "incorrect": 0.0, "pass": 1.0, "fail": 0.0}


def number(value: Any, path: Path, row: object, column: str) -> float | None:
    """A score as a float; None for null and empty text. NaN, infinity and anything else are refused."""
    if type(value) is float and math.isfinite(value):
        return value
    if value is None or value == "":
        return None
    if isinstance(value, bool | int):
        return float(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUTH:
            return _TRUTH[word]
        try:
            value = float(word)
        except ValueError:
            value = repr(value[:80])
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ScoreError(
        f"{path.name}, row {row}, {column}: expected a number, true, false or null, found {str(value)[:80]}.",
        fix="Write null (in CSV an empty cell) where there is no score.",
    )


def is_nan(value: Cell) -> bool:
    """Whether a log's value is NaN: the float, or the word that some JSON writers use for it."""
    return value == "NaN" or (isinstance(value, float) and math.isnan(value))


def scored(value: Any, path: Path, row: object, column: str) -> tuple[float | None, str | None]:
    """A harness's value, and the reason if there is none: null and NaN mean that the scorer gave no value."""
    found = None if is_nan(value) else number(value, path, row, column)
    return found, "not_scored" if found is None else None


def fingerprint(content: Any) -> str:
    """A short hash of an item's question."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def choose(what: str, found: Iterable[str], wanted: str | None, path: Path, option: str) -> str:
    """The wanted element of `found`, or its only one. Raises ScoreError listing the choices."""
    names = sorted(set(found))
    if wanted is not None:
        if wanted in names:
            return wanted
        near = did_you_mean(wanted, names)
        raise ScoreError(f"{path.name}: expected the {what} {wanted!r}, found {listed_names(names)}{near}.")
    if len(names) == 1:
        return names[0]
    raise ScoreError(
        f"{path.name}: expected one {what}, found {len(names)}: {listed_names(names)}.",
        fix=f"Choose with {option} NAME." if names else "",
    )


def listed_names(names: Sequence[str]) -> str:
    """Up to eight names and the number of further ones; `none` for an empty list."""
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return (", ".join(names[:_MAX_SHOWN]) or "none") + more


def named_eval(path: Path, inside: str, asked: str | None) -> str:
    """The eval's name in the log, else the requested one. Raises ScoreError if the two differ."""
    if asked is not None and inside and asked != inside:
        raise ScoreError(
            f"{path.name}: expected the eval {asked!r}, found {inside!r}.",
            fix="Name the files of one eval, or leave out --eval.",
        )
    return inside or asked or ""


def texts(values: Sequence[Cell]) -> list[str]:
    """Every value as text."""
    return [x if type(x) is str else str(x) for x in values]


def optional(column: Sequence[Cell]) -> Sequence[Any]:
    """The column, or an empty list if the column holds nothing."""
    return column if any(x is not None for x in column) else ()


# ---------------------------------------------------------------- labels


def walk(row: Mapping[str, Cell], name: str) -> Any:
    """`row[name]`, else the value at a dotted path inside nested objects; None if there is none."""
    if name in row:
        return row[name]
    for place, char in enumerate(name):
        inner = row.get(name[:place]) if char == "." else None
        found = walk(inner, name[place + 1 :]) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None


def row_labels(
    path: Path, rows: Sequence[Mapping[str, Any]], reading: Reading, places: Sequence[str]
) -> dict[str, list[Any]]:
    """The labels that the reading asks for, from each row or from the objects `places` in it.

    Raises ScoreError for a name that no row has, and for ids, runs, samples and raters that some rows lack.
    """
    found: dict[str, list[Any]] = {}
    for option in LABELS:
        name = getattr(reading, option)
        if name is None:
            continue
        values = [_label(row, name, places) for row in rows]
        gone = sum(v is None for v in values)
        if gone == len(values) or (gone and option != "family"):
            what = "no row with one" if gone == len(values) else f"{many(gone, 'rows')} without one"
            raise ScoreError(
                f"{path.name}: {flag(option)} {name!r}: expected it in each "
                f"row{''.join(f' or its {p!r}' for p in places)}, found {what}; {_holds(rows, places)}."
            )
        found[option] = [None if v is None else str(v) for v in values]
    return found


def _label(row: Mapping[str, Cell], name: str, places: Sequence[str]) -> Any:
    for holder in (row, *(walk(row, place) for place in places)):
        value = walk(holder, name) if isinstance(holder, Mapping) else None
        if value is not None and not isinstance(value, Mapping | list):
            return value
    return None


def _holds(rows: Sequence[Mapping[str, Any]], places: Sequence[str]) -> str:
    """What the rows hold that a label could be, for a message."""
    parts = []
    for place in places:
        inside = [found for row in rows[:100] if isinstance(found := walk(row, place), Mapping)]
        keys = sorted({str(key) for found in inside for key in found})
        parts.append(f"{place!r} holds {', '.join(keys[:_MAX_SHOWN]) or 'nothing'}")
    keys = sorted({str(k) for row in rows[:100] for k in row})
    return "; ".join(parts) or f"a row holds {listed_names(keys)}"


# ---------------------------------------------------------------- JSON files


def load_json(path: Path) -> Any:
    """The document in a JSON file. Raises ScoreError if the file is not JSON."""
    try:
        return parse_json(read_bytes(path), finite=False)
    except ValueError as error:
        raise ScoreError(f"{path.name}: {EXPECTED}; found text that is not JSON ({error}).") from error


def objects(document: Any, path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON list with their 1-based numbers. Raises ScoreError for an entry that is not an object."""
    bad = next((i for i, row in enumerate(document, 1) if not isinstance(row, dict)), None)
    if bad is not None:
        raise ScoreError(f"{path.name}, entry {bad}: expected an object, found {type(document[bad - 1]).__name__}.")
    return list(enumerate(document, 1))


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each non-empty JSONL line."""
    with path.open(encoding="utf-8-sig") as file:
        for count, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = parse_json(line, finite=False)
            except ValueError as error:
                raise ScoreError(f"{path.name}, line {count}: expected a JSON object, found {error}.") from error
            if not isinstance(row, dict):
                raise ScoreError(f"{path.name}, line {count}: expected a JSON object, found {type(row).__name__}.")
            yield count, row


def rows_of(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The numbered objects of a file that is either JSONL or one JSON list."""
    with path.open("rb") as file:
        head = file.read(256).decode("utf-8-sig", errors="replace").lstrip()
    return objects(load_json(path), path) if head.startswith("[") else list(lines(path))

"""Veritune's own scores: one JSON line a run and item, as `veritune run` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.table import jsonl_table, numbers_of
from veritune.evaluate.logs.values import choose, optional, texts
from veritune.stats.table import Columns

_OWN = ("run_id", "eval", "item_id", "value", "reason", "family", "zone", "parts")
_USUAL = {"id": "item_id", "family": "family", "run": "run_id", "rater": "rater", "sample": "sample"}


def _read(path: Path, reading: Reading) -> Columns:
    table = jsonl_table(path, _OWN)
    rows, columns = table.numbers, table.columns
    for option, column in _USUAL.items():
        if getattr(reading, option) not in (None, column):
            raise ScoreError(
                f"{path.name}: --{option} {getattr(reading, option)!r} does not apply to Veritune's own scores, which "
                f"always hold it in {column!r}.",
                fix=f"Leave out --{option}.",
            )
    for name in ("run_id", "eval", "item_id"):
        gone = next((i for i, x in enumerate(columns[name]) if x is None), None)
        if gone is not None:
            raise ScoreError(f"{path.name}, line {rows[gone]}: expected run_id, eval, item_id and value.")
    name = choose("eval", columns["eval"], reading.eval, path, "--eval")
    if columns["eval"].count(name) < len(rows):
        keep = [i for i, x in enumerate(columns["eval"]) if x == name]
        columns = {k: [c[i] for i in keep] for k, c in columns.items()}
        rows = [rows[i] for i in keep]
    parts = columns["parts"]
    by_parts = {"sample": _parts(parts, "sample"), "rater": _parts(parts, "rater")}
    for option in ("family", "sample", "rater"):
        there = columns["family"] if option == "family" else by_parts[option]
        if getattr(reading, option) is not None and not any(x is not None for x in there):
            raise ScoreError(f"{path.name}: expected --{option} {getattr(reading, option)!r}, found no score with one.")
    return Columns(
        eval=name,
        run=texts(columns["run_id"]),
        item=texts(columns["item_id"]),
        value=numbers_of(columns["value"], path, rows, "value"),
        reason=optional(columns["reason"]),
        family=optional(columns["family"]),
        zone=optional(columns["zone"]),
        sample=by_parts["sample"],
        rater=by_parts["rater"],
        # A study's evals are higher-is-better by contract; a foreign file of this shape may bear a loss's name.
        higher_is_better=None if known_direction(name) is False else True,
    )


def _parts(parts: Sequence[Any], key: str) -> Sequence[str]:
    """One entry of `parts` as text, nothing unless every score has it."""
    if not parts or not all(isinstance(p, dict) and key in p for p in parts):
        return ()
    return [str(p[key]) for p in parts]


FORMAT = LogFormat("scores", "Veritune's own scores", obeys("id", "family", "run", "rater", "sample"), _read)

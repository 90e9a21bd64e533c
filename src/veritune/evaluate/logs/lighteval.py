"""lighteval details: one Parquet file a task, `details_TASK_STAMP.parquet`, one row a document.

to 0.8       columns `metrics` (an object), `example`, `full_prompt`, `gold`, `specifics`
0.9 and on   columns `metric` (an object), `doc` (with `id`, `query`, `choices`, `gold_index`), `model_response`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.table import Table, parquet_table
from veritune.evaluate.logs.values import choose, fingerprint, named_eval, row_labels, scored
from veritune.stats.table import Columns

DETAILS_FILE = re.compile(r"details_(?P<task>.+)_(?P<when>\d{4}-\d\d-\d\dT[^/]*)\.parquet")

_ASKED = ("query", "choices", "gold_index", "example", "gold", "instruction")
"""Fields that say what a document asks, in either layout."""


def is_details(table: Table) -> bool:
    """Whether a Parquet table has the columns of lighteval's details."""
    names = set(table.columns)
    return ("metric" in names and "doc" in names) or ("metrics" in names and bool(names & {"example", "full_prompt"}))


def _read(path: Path, reading: Reading) -> Columns:
    table = parquet_table(path)
    rows: list[dict[str, Any]] = [dict(zip(table.columns, cells)) for cells in zip(*table.columns.values())]
    scores = [row.get("metric") or row.get("metrics") for row in rows]
    names = {str(k) for score in scores if isinstance(score, Mapping) for k, v in score.items() if v is not None}
    metric = choose("metric", names, reading.metric, path, "--metric")
    pairs = [
        _score(path, n, score, metric) if isinstance(score, Mapping) else (None, "not_scored")
        for n, score in enumerate(scores, 1)
    ]
    labels = row_labels(path, rows, reading, ("doc", "specifics", "doc.specific"))
    return Columns(
        eval=named_eval(path, _eval_of(path), reading.eval),
        run=labels.get("run") or [path.stem] * len(rows),
        item=labels.get("id") or _ids(rows),
        value=[value for value, _ in pairs],
        reason=[reason for _, reason in pairs],
        family=labels.get("family", ()),
        sample=labels.get("sample", ()),
        rater=labels.get("rater", ()),
        content=[_content(row) for row in rows],
        notes=(f"metric {metric}",),
        metric=metric,
        higher_is_better=known_direction(metric),
    )


def _score(path: Path, row: int, score: Mapping[str, Any], metric: str) -> tuple[float | None, str | None]:
    value = score.get(metric)
    if isinstance(value, list | Mapping):
        raise ScoreError(
            f"{path.name}: {metric!r} is computed from the whole corpus: a document's entry is a "
            f"{type(value).__name__}, not a score.",
            fix="Choose a metric that scores each document (--metric NAME).",
        )
    return scored(value, path, row, metric)


def _ids(rows: list[dict[str, Any]]) -> list[str]:
    """The documents' own ids where they are there and differ, else the rows' places."""
    own = [row["doc"].get("id") if isinstance(row.get("doc"), Mapping) else None for row in rows]
    if all(x not in (None, "") for x in own) and len(set(map(str, own))) == len(rows):
        return [str(x) for x in own]
    return [str(i) for i in range(len(rows))]


def _content(row: Mapping[str, Any]) -> str | None:
    doc = row["doc"] if isinstance(row.get("doc"), Mapping) else row
    asked = {name: doc[name] for name in _ASKED if doc.get(name) is not None}
    return fingerprint(asked) if asked else None


def _eval_of(path: Path) -> str:
    match = DETAILS_FILE.fullmatch(path.name)
    return match["task"] if match else ""


FORMAT = LogFormat(
    "lighteval",
    "lighteval details",
    obeys("metric", "id", "family", "run", "rater", "sample"),
    _read,
    eval_of=_eval_of,
)

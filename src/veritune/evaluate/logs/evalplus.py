"""EvalPlus results (`*_eval_results.json`): for each task its solutions, with the base tests and the added ones.

`base` asks whether a solution passes the original tests, `plus` whether it passes them and the added ones, as
EvalPlus's own pass@k does. Several solutions of a task are samples of an item, whose mean is its pass@1. A solution
that timed out did not pass. BigCodeBench, built on EvalPlus, writes one `status` a solution: read as `base`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.values import choose, fingerprint, load_json, named_eval, row_labels
from veritune.stats.table import Columns

if TYPE_CHECKING:
    from veritune.records import JsonLike

_PASS = "pass"

_OLD_PASS = ("success", "pass")
"""How versions before 0.2 wrote a pass: [status, details]."""


def is_evalplus(document: Cell) -> bool:
    """Whether a JSON document holds EvalPlus's results."""
    tasks = document.get("eval") if isinstance(document, Mapping) else None
    if not isinstance(tasks, Mapping) or not tasks:
        return False
    first = next(iter(tasks.values()))
    if isinstance(first, Mapping):
        return "base" in first
    if not isinstance(first, list):
        return False
    return not first or (isinstance(first[0], Mapping) and bool({"base_status", "status"} & first[0].keys()))


def _read(path: Path, reading: Reading) -> Columns:
    tasks = load_json(path)["eval"]
    rows: list[dict[str, Any]] = []
    for task, solutions in tasks.items():
        found = _old(solutions) if isinstance(solutions, Mapping) else solutions
        if not found:
            rows.append({"task_id": task, "sample": "0"})
        rows += [{**_base(entry), "task_id": task, "sample": str(i)} for i, entry in enumerate(found)]
    has_plus = any(row.get("plus_status") is not None for row in rows)
    metric = choose("metric", ["base", "plus"] if has_plus else ["base"], reading.metric, path, "--metric")
    values = [_passed(path, row, metric) for row in rows]
    labels = row_labels(path, rows, reading, ())
    several = len(rows) > len(tasks)
    return Columns(
        eval=named_eval(path, _eval_name(list(tasks)), reading.eval),
        run=labels.get("run") or [path.stem] * len(rows),
        item=labels.get("id") or [row["task_id"] for row in rows],
        value=values,
        reason=[None if v is not None else "not_scored" for v in values],
        family=labels.get("family", ()),
        sample=labels.get("sample") or ([row["sample"] for row in rows] if several else ()),
        rater=labels.get("rater", ()),
        content=[fingerprint(row["task_id"]) for row in rows],
        notes=(f"{metric} tests",),
        metric=metric,
        higher_is_better=True,
    )


def _base(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """A solution whose one `status`, as BigCodeBench writes it, stands under EvalPlus's name for it."""
    return entry if "base_status" in entry or "status" not in entry else {**entry, "base_status": entry["status"]}


def _old(task: Mapping[str, Any]) -> list[dict[str, JsonLike]]:
    """The solutions of a task as versions before 0.2 wrote them: lists of [status, details] by kind of test."""
    status: dict[str, Sequence[Any]] = {kind: task.get(kind) or () for kind in ("base", "plus")}
    found: list[dict[str, JsonLike]] = []
    for i, base in enumerate(status["base"]):
        plus = status["plus"][i] if i < len(status["plus"]) else None
        found.append({"base_status": _old_status(base), "plus_status": _old_status(plus)})
    return found


def _old_status(entry: Cell) -> str | None:
    word = entry[0] if isinstance(entry, list) and entry else entry
    return _PASS if word in _OLD_PASS else None if word is None else str(word)


def _passed(path: Path, row: Mapping[str, Cell], metric: str) -> float | None:
    base, plus = row.get("base_status"), row.get("plus_status")
    if base is None or (metric == "plus" and plus is None and base == _PASS):
        return None
    for word in (base, plus):
        if word is not None and not isinstance(word, str):
            raise ScoreError(f"{path.name}, task {row['task_id']!r}: expected a status, found {str(word)[:40]!r}.")
    return float(base == _PASS and (metric == "base" or plus == _PASS))


def _eval_name(tasks: Sequence[str]) -> str:
    """The benchmark: what stands before the slash in every task's id."""
    heads = {task.partition("/")[0] for task in tasks if "/" in task}
    return heads.pop() if len(heads) == 1 else ""


FORMAT = LogFormat(
    "evalplus",
    "EvalPlus results",
    obeys("metric", "id", "family", "run", "rater", "sample"),
    _read,
)

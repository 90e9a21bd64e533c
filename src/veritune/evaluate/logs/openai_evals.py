"""OpenAI evals logs: JSONL with a `spec`, one event a line, and a `final_report`.

`match` events say whether a sample was answered rightly; `metrics` events hold any numbers. Several events of one kind
for a sample are samples of an item. A sample with an `error` event and no score crashed; one that was asked and never
scored is not scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune.data.sources.raw import Cell
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.values import choose, fingerprint, lines, named_eval, row_labels, scored
from veritune.stats.table import Columns

_MATCH = "match"

Event = Mapping[str, Any]


def is_events(row: Mapping[str, Cell]) -> bool:
    """Whether a line is one of an OpenAI evals log: its spec, its report or an event."""
    return (
        isinstance(row.get("spec"), Mapping)
        or isinstance(row.get("final_report"), Mapping)
        or {"sample_id", "type", "data"} <= row.keys()
    )


def _read(path: Path, reading: Reading) -> Columns:
    rows = list(lines(path))
    spec: Event = next((row["spec"] for _, row in rows if isinstance(row.get("spec"), Mapping)), {})
    events = [(n, row) for n, row in rows if {"sample_id", "type", "data"} <= row.keys() and row["sample_id"]]
    metric = choose("metric", {m for _, e in events for m in _metrics(e)}, reading.metric, path, "--metric")
    scores = [(n, e) for n, e in events if metric in _metrics(e)]
    done = {str(e["sample_id"]) for _, e in scores}
    failed = {str(e["sample_id"]) for _, e in events if e["type"] == "error"} - done
    silent = [s for s in dict.fromkeys(str(e["sample_id"]) for _, e in events) if s not in done]
    plain: list[Event] = [*(e for _, e in scores), *({"sample_id": s, "data": {}} for s in silent)]
    pairs = [scored(_value(e, metric), path, n, metric) for n, e in scores]
    pairs += [(None, "crashed" if s in failed else "not_scored") for s in silent]
    labels = row_labels(path, plain, reading, ("data",))
    asked = _prompts(events)
    return Columns(
        eval=named_eval(path, str(spec.get("eval_name") or ""), reading.eval),
        run=labels.get("run") or [path.stem] * len(plain),
        item=labels.get("id") or [str(e["sample_id"]) for e in plain],
        value=[value for value, _ in pairs],
        reason=[reason for _, reason in pairs],
        family=labels.get("family", ()),
        sample=labels.get("sample") or _occurrences([str(e["sample_id"]) for e in plain]),
        rater=labels.get("rater", ()),
        content=[asked.get(str(e["sample_id"])) for e in plain],
        notes=(f"metric {metric}",),
        metric=metric,
        higher_is_better=True if metric == _MATCH else known_direction(metric),
    )


def _metrics(event: Event) -> list[str]:
    """The metrics that an event holds a value of."""
    data = event["data"]
    if not isinstance(data, Mapping):
        return []
    if event["type"] == _MATCH:
        return [_MATCH] if "correct" in data else []
    if event["type"] != "metrics":
        return []
    return [str(k) for k, v in data.items() if v is None or isinstance(v, bool | int | float)]


def _value(event: Event, metric: str) -> Any:
    return event["data"]["correct"] if metric == _MATCH else event["data"].get(metric)


def _prompts(events: Sequence[tuple[int, Event]]) -> dict[str, str | None]:
    """A fingerprint of what each sample was expected to answer, where its match says so."""
    found: dict[str, str | None] = {}
    for _, event in events:
        data = event["data"]
        if event["type"] == _MATCH and isinstance(data, Mapping) and data.get("expected") is not None:
            found.setdefault(str(event["sample_id"]), fingerprint(data["expected"]))
    return found


def _occurrences(items: Sequence[str]) -> list[str]:
    """For each entry how often its item stood before it, nothing where each item stands once."""
    seen: dict[str, int] = {}
    found = []
    for item in items:
        found.append(str(seen.get(item, 0)))
        seen[item] = seen.get(item, 0) + 1
    return found if len(seen) < len(items) else []


def _eval_of(path: Path) -> str:
    for n, row in lines(path):
        if isinstance(row.get("spec"), Mapping):
            return str(row["spec"].get("eval_name") or "")
        if n > 10:
            break
    return ""


FORMAT = LogFormat(
    "openai-evals",
    "an OpenAI evals log",
    obeys("metric", "id", "family", "run", "rater", "sample"),
    _read,
    eval_of=_eval_of,
)

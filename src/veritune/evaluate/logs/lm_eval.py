"""lm-evaluation-harness samples (`--log_samples`), every format from 0.4.0 on.

    0.4.0 to 0.4.2   one indented JSON list a task; no `filter`, no `metrics`, in part no `doc_hash`
    0.4.3 to 0.4.5   JSONL, samples_TASK_STAMP.jsonl; still no `filter`, no `metrics`
    0.4.6 and later  JSONL with `filter` and `metrics`

A task with several filters logs every document once for each. Without names (before 0.4.6) the filters are 1, 2, ... in
the order of the rows, and take their names from the results file beside them where its figures agree.
Metrics that are no numbers are read where a document has a value of its own, and refused by name where only the whole
corpus has one (`sample_values`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune.counting import many
from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.lm_eval_metrics import sample_values
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.values import choose, named_eval, row_labels, rows_of
from veritune.stats.table import Columns
from veritune.untrusted import parse_json, read_bytes

SAMPLES_FILE = re.compile(r"samples_(?P<task>.+?)_(?P<when>\d{4}-\d\d-\d\dT[^/]*)\.jsonl?")
RESULTS_FILE = re.compile(r"results(_\d{4}-\d\d-\d\dT[^/]*)?\.json")

_FIXED = frozenset({
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash", "higher_is_better", "task", "task_name", "schema", "request_type", "response_model",
})  # fmt: skip
"""What a row holds beside its metrics."""

Row = Mapping[str, Any]


def _read(path: Path, reading: Reading) -> Columns:
    """One row per document and filter. Items are `doc_id`; the document's hash guards against other documents."""
    rows: list[tuple[int, Row]] = list(rows_of(path))
    asked_metric, asked_filter = _asked(path, reading)
    task = named_eval(path, eval_of(path), reading.eval)
    rows, chosen = _of_filter(path, rows, asked_filter, task)
    if reading.id is reading.run is reading.sample is None:
        _refuse_twice(path, rows)
    metrics = _metrics([row for _, row in rows])
    if metrics == ["bypass"]:
        raise ScoreError(
            f"{path.name}: expected scores, found outputs without any (lm_eval --predict_only).",
            fix="Run lm_eval without --predict_only.",
        )
    metric = choose("metric", metrics, asked_metric, path, "--metric")
    rows, other_lengths = _of_length(path, rows, metric)
    sampled = sample_values(path, rows, metric)
    figure = _unlike_stated(path, task, metric, chosen, [row.get(metric) for _, row in rows])
    rows = [rows[i] for i in sampled.row]
    plain = [row for _, row in rows]
    up, note = _direction(path, plain, task, metric)
    labels = row_labels(path, plain, reading, ("doc",))
    items = labels.get("id") or [str(row["doc_id"]) for row in plain]
    family: Sequence[str | None] = labels.get("family", ())
    if sampled.part:
        family = family or items
        items = [f"{item}/{part}" for item, part in zip(items, sampled.part)]
    return Columns(
        eval=task,
        run=labels.get("run") or [path.stem] * len(rows),
        item=items,
        value=sampled.value,
        reason=sampled.reason,
        family=family,
        sample=labels.get("sample", ()),
        rater=labels.get("rater", ()),
        content=[_content(row) for row in plain],
        notes=(f"metric {metric}, filter {chosen}", *note, *other_lengths, *sampled.notes, *figure),
        metric=metric,
        higher_is_better=up,
    )


def eval_of(path: Path) -> str:
    """The task that the file's name states: samples_TASK_STAMP.jsonl."""
    match = SAMPLES_FILE.fullmatch(path.name)
    return match["task"] if match else ""


def stamp_of(path: Path) -> str:
    """The time stamp in the file's name, "" where it has none."""
    match = SAMPLES_FILE.fullmatch(path.name)
    return match["when"] if match else ""


def _asked(path: Path, reading: Reading) -> tuple[str | None, str | None]:
    """The metric and filter asked for; `acc,none` names both, as lm-eval's own tables do."""
    if reading.metric is None or "," not in reading.metric:
        return reading.metric, reading.filter
    metric, _, name = reading.metric.partition(",")
    if reading.filter not in (None, name):
        raise ScoreError(
            f"{path.name}: --metric {reading.metric!r} names the filter {name!r}, but --filter names "
            f"{reading.filter!r}.",
            fix="Name only one filter.",
        )
    return metric, name


# ---------------------------------------------------------------- filters


def _of_filter(
    path: Path, rows: list[tuple[int, Row]], asked: str | None, task: str
) -> tuple[list[tuple[int, Row]], str]:
    """The rows of one filter, and its name."""
    if any("filter" in row for _, row in rows):
        chosen = choose("filter", (str(r.get("filter", "none")) for _, r in rows), asked, path, "--filter")
        return [(n, row) for n, row in rows if str(row.get("filter", "none")) == chosen], chosen
    blocks = _blocks(path, rows)
    if len(blocks) == 1:
        names = _filter_names(path, task, [[row for _, row in b] for b in blocks]) or ["none"]
        return blocks[0], choose("filter", names, asked, path, "--filter")
    names = _filter_names(path, task, [[row for _, row in b] for b in blocks])
    numbers = [str(i) for i in range(1, len(blocks) + 1)]
    if asked is not None and asked in numbers + names:
        place = (numbers if asked in numbers else names).index(asked)
        return blocks[place], names[place] if names else f"{asked} of {len(blocks)}, unnamed"
    known = "; ".join(f"{i} is {name}" for i, name in zip(numbers, names)) or "this file does not name them"
    raise ScoreError(
        f"{path.name}: expected {'one filter' if asked is None else f'the filter {asked!r}'}, found {len(blocks)} "
        f"without names: {many(len(blocks[0]), 'documents')}, each {len(blocks)} times ({known}).",
        fix=f"Choose with --filter {' or --filter '.join(names or numbers)}; lm-eval writes their names since "
        "version 0.4.6.",
    )


def _refuse_twice(path: Path, rows: list[tuple[int, Row]]) -> None:
    """Raises ScoreError for a document that stands twice under one filter: two runs in one file."""
    item, times = Counter(str(row["doc_id"]) for _, row in rows).most_common(1)[0]
    if times > 1:
        raise ScoreError(
            f"{path.name}: expected each document once for each filter, found document {item!r} {times} times.",
            fix="Do not join the files of two runs; give each file separately.",
        )


def _blocks(path: Path, rows: list[tuple[int, Row]]) -> list[list[tuple[int, Row]]]:
    """The rows of each unnamed filter: the k-th time that a document stands there is filter k.

    Raises ScoreError where documents stand there a different number of times: what is double then is not a filter.
    """
    seen: Counter[str] = Counter()
    blocks: list[list[tuple[int, Row]]] = []
    for n, row in rows:
        item = str(row["doc_id"])
        if seen[item] == len(blocks):
            blocks.append([])
        blocks[seen[item]].append((n, row))
        seen[item] += 1
    if len(set(seen.values())) > 1:
        twice = next(item for item, times in seen.items() if times != min(seen.values()))
        raise ScoreError(
            f"{path.name}: expected each document once for each filter, found document {twice!r} {seen[twice]} times "
            f"and others {min(seen.values())} times.",
            fix="Do not join the files of two runs; give each file separately.",
        )
    return blocks


def _filter_names(path: Path, task: str, blocks: Sequence[Sequence[Row]]) -> list[str]:
    """The filters' names from the results file, where each block's mean is the figure stated under the name."""
    for record in results_beside(path):
        tasks = record.get("results")
        stated = tasks.get(task) if isinstance(tasks, Mapping) else None
        if not isinstance(stated, Mapping):
            continue
        for metric in _metrics(blocks[0]):
            named = {k.partition(",")[2]: v for k, v in stated.items() if k.partition(",")[0] == metric and "," in k}
            if len(named) == len(blocks) and all(
                _mean_is(block, metric, value) for block, value in zip(blocks, named.values())
            ):
                return list(named)
    return []


def _mean_is(rows: Sequence[Row], metric: str, stated: Cell) -> bool:
    values = [float(v) for v in (row.get(metric) for row in rows) if isinstance(v, int | float)]
    if not isinstance(stated, int | float) or len(values) < len(rows):
        return False
    return math.isclose(math.fsum(values) / len(values), stated, abs_tol=1e-6)


# ---------------------------------------------------------------- metrics, documents


def _metrics(rows: Sequence[Row]) -> list[str]:
    """Metrics of the rows: the list that newer files carry, else every key that is not the row's own."""
    named = {m for row in rows for m in row.get("metrics") or () if isinstance(m, str)}
    if not named:
        named = {k for row in rows for k in row if k not in _FIXED}
    return sorted(named - {"bypass"}) or sorted(named)


def _of_length(path: Path, rows: list[tuple[int, Row]], metric: str) -> tuple[list[tuple[int, Row]], tuple[str, ...]]:
    """The rows that a context length of RULER speaks of, and a note: its metrics are lengths, and a document of
    another length bears -1 there, which lm-eval's own mean leaves out."""
    kept = [(n, row) for n, row in rows if row.get(metric) != -1] if metric.isdigit() else rows
    if len(kept) == len(rows):
        return rows, ()
    if not kept:
        raise ScoreError(f"{path.name}: expected documents of length {metric}, found none.")
    return kept, (f"{len(kept)} of {len(rows)} documents have the length {metric}; the others are left out",)


def _unlike_stated(path: Path, task: str, metric: str, chosen: str, values: Sequence[Cell]) -> tuple[str, ...]:
    """A note where the log's own results state another figure than the mean of its samples."""
    file = path.with_name(f"results_{stamp_of(path)}.json")
    record = next(results_beside(path), None) if stamp_of(path) and file.is_file() else None
    tasks = record.get("results") if record is not None else None
    figures = tasks.get(task) if isinstance(tasks, Mapping) else None
    figure = figures.get(f"{metric},{chosen}") if isinstance(figures, Mapping) else None
    numbers = [float(v) for v in values if isinstance(v, int | float)]
    if not isinstance(figure, int | float) or len(numbers) < len(values):
        return ()
    mean = math.fsum(numbers) / len(numbers)
    if math.isclose(mean, figure, rel_tol=1e-4, abs_tol=1e-4):
        return ()
    return (f"{file.name} states {metric} {figure:.4g}, which is not the mean of these samples, {mean:.4g}",)


def _content(row: Row) -> str | None:
    """The document's hash, made as lm-eval makes it where the file is older than that."""
    if row.get("doc_hash") is not None:
        return str(row["doc_hash"])
    if row.get("doc") is None:
        return None
    text = json.dumps(row["doc"], indent=2, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# ---------------------------------------------------------------- the results file beside the samples


def results_beside(path: Path) -> Iterator[Mapping[str, Cell]]:
    """lm-eval's results records beside a samples file: the one with the same time stamp if it exists, else all."""
    when = stamp_of(path)
    same = path.with_name(f"results_{when}.json") if when else None
    files = [same] if same is not None and same.is_file() else sorted(path.parent.glob("results*.json"))
    for file in files:
        try:
            record = parse_json(read_bytes(file), finite=False)
        except (OSError, ValueError):
            continue  # another tool's file, which this comparison does not rest on
        if isinstance(record, Mapping):
            yield record


def _direction(path: Path, rows: Sequence[Row], task: str, metric: str) -> tuple[bool | None, tuple[str, ...]]:
    """Whether higher is better, from the rows, else from the results file beside them, else by definition; and a note.

    A record that contradicts the metric's definition (lm-eval takes `true` for metrics that it does not know) leaves
    the direction open.
    """
    stated = {_row_direction(row, metric) for row in rows[:1]}
    stated |= {up for record in results_beside(path) for up in _recorded_directions(record, task, metric)}
    stated -= {None}
    known = known_direction(metric)
    if not stated:
        return known, ()
    if len(stated) > 1 or known not in (None, *stated):
        words = "the log's higher_is_better contradicts " + ("itself" if len(stated) > 1 else "the metric's definition")
        return None, (f"{words}: the direction of {metric} is treated as unknown",)
    up = bool(stated.pop())
    return up, (f"{'higher' if up else 'lower'} is better, by the log",)


def _row_direction(row: Row, metric: str) -> bool | None:
    value = row.get("higher_is_better")
    value = value.get(metric) if isinstance(value, Mapping) else value
    return value if isinstance(value, bool) else None


def _recorded_directions(record: Mapping[str, Cell], task: str, metric: str) -> Iterator[bool]:
    """`higher_is_better` of the metric in lm-eval's results: in its own table, and in each task's metric list."""
    tasks, configs = record.get("higher_is_better"), record.get("configs")
    for name, metrics in tasks.items() if isinstance(tasks, Mapping) else ():
        value = metrics.get(metric) if isinstance(metrics, Mapping) else None
        if name in (task or name,) and isinstance(value, bool):
            yield value
    for name, config in configs.items() if isinstance(configs, Mapping) else ():
        listed = config.get("metric_list") if isinstance(config, Mapping) and name in (task or name,) else None
        for entry in listed if isinstance(listed, list) else ():
            value = entry.get("higher_is_better") if isinstance(entry, Mapping) else None
            if isinstance(value, bool) and entry.get("metric") == metric:
                yield value


FORMAT = LogFormat(
    "lm-eval",
    "lm-eval samples",
    obeys("metric", "filter", "id", "family", "run", "rater", "sample"),
    _read,
    eval_of=eval_of,
)

"""promptfoo results (`promptfoo eval -o results.json` or `.jsonl`), versions 1 to 3: tests by providers and prompts.

A column of promptfoo's table, a provider with a prompt, is a system: `--systems A,B` compares two of one file. Its
metrics are `pass`, `score` and the named scores. Where every score is 1 for a pass and 0 for a failure they are one.
A test that ended in an error of the provider crashed. A test that stands there several times (`repeat`) is one item
with samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.values import choose, fingerprint, lines, load_json, named_eval, objects, row_labels, scored
from veritune.stats.table import Columns

if TYPE_CHECKING:
    from veritune.records import JsonLike

_ERROR = 2
"""promptfoo's failureReason of a test that an error ended; 1 is a failed assertion, 0 none."""

Row = Mapping[str, Any]


def results_in(document: Cell) -> list[Cell] | None:
    """The list of results in a promptfoo file; None if the document is not one."""
    inner = document.get("results") if isinstance(document, Mapping) else None
    inner = inner.get("results") if isinstance(inner, Mapping) else inner
    if not isinstance(inner, list) or not inner or not isinstance(inner[0], Mapping):
        return None
    return inner if "success" in inner[0] and {"provider", "vars", "prompt"} & inner[0].keys() else None


def systems_of(path: Path) -> list[str]:
    """The systems in a file: the provider, with the prompt if a provider has several prompts."""
    return sorted(set(_systems([row for _, row in _rows(path)])))


def is_result(row: Mapping[str, Cell]) -> bool:
    """Whether a line is one of promptfoo's results, as `-o results.jsonl` writes them."""
    return "success" in row and {"provider", "vars", "prompt"} <= row.keys()


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        document = load_json(path)
    except ScoreError:
        return list(lines(path))
    found = [document] if isinstance(document, Mapping) and is_result(document) else results_in(document)
    if found is None:
        raise ScoreError(f"{path.name}: expected promptfoo results, found none in it.")
    return objects(found, path)


def _read(path: Path, reading: Reading) -> Columns:
    rows = _rows(path)
    named = _systems([row for _, row in rows])
    system = choose("system", named, reading.system, path, "--systems")
    rows = [numbered for numbered, name in zip(rows, named) if name == system]
    plain = [{**row, "metadata": {**_metadata(row.get("testCase")), **_metadata(row)}} for _, row in rows]
    metric = choose("metric", _metrics(plain), reading.metric, path, "--metric")
    pairs = [_score(path, n, row, metric) for n, row in rows]
    labels = row_labels(path, plain, reading, ("vars", "metadata"))
    content = [_content(row) for row in plain]
    items, samples = _items(plain, content)
    return Columns(
        eval=named_eval(path, "", reading.eval),
        run=labels.get("run") or [path.stem] * len(rows),
        item=labels.get("id") or items,
        value=[value for value, _ in pairs],
        reason=[reason for _, reason in pairs],
        family=labels.get("family", ()),
        sample=labels.get("sample") or samples,
        rater=labels.get("rater", ()),
        content=content,
        notes=(f"system {system}, metric {metric}",),
        metric=metric,
        higher_is_better=True if metric in ("pass", "score") else known_direction(metric),
    )


def _systems(rows: Sequence[Row]) -> list[str]:
    """Each row's system: its provider, with the prompt's label where the provider stands with several."""
    providers = [_provider(row) for row in rows]
    prompts = [_prompt(row) for row in rows]
    several = {p for p in providers if len({q for x, q in zip(providers, prompts) if x == p}) > 1}
    return [f"{p} | {q}" if p in several else p for p, q in zip(providers, prompts)]


def _provider(row: Row) -> str:
    provider = row.get("provider")
    if isinstance(provider, Mapping):
        return str(provider.get("label") or provider.get("id") or "")
    return str(provider or "")


def _prompt(row: Row) -> str:
    prompt = row.get("prompt")
    label = (prompt.get("label") or prompt.get("display")) if isinstance(prompt, Mapping) else prompt
    return " ".join(str(label or row.get("promptIdx") or "").split())[:60]


def _metadata(holder: Any) -> dict[str, JsonLike]:
    found = holder.get("metadata") if isinstance(holder, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _metrics(rows: Sequence[Row]) -> Iterator[str]:
    """`pass` and every metric that says something else."""
    yield "pass"
    if any(row.get("score") not in (None, float(row["success"] is True)) for row in rows):
        yield "score"
    for row in rows:
        yield from _named(row)


def _named(row: Row) -> Mapping[str, JsonLike]:
    named = row.get("namedScores")
    return named if isinstance(named, Mapping) else {}


def _score(path: Path, n: int, row: Row, metric: str) -> tuple[float | None, str | None]:
    errored = row.get("failureReason") == _ERROR
    errored |= bool(row.get("error")) and not isinstance(row.get("gradingResult"), Mapping)
    if errored:
        return None, "crashed"
    if metric == "pass":
        return scored(row.get("success"), path, n, metric)
    return scored(row.get("score") if metric == "score" else _named(row).get(metric), path, n, metric)


def _content(row: Row) -> str:
    """What a test asks: its variables and its assertions."""
    case = row.get("testCase")
    asked = case.get("assert") if isinstance(case, Mapping) else None
    return fingerprint([row.get("vars"), asked])


def _items(rows: Sequence[Row], content: Sequence[str]) -> tuple[list[str], list[str]]:
    """Item and sample of each row: the test's place in the suite; a test that is repeated is one item."""
    first: dict[str, str] = {}
    times: dict[str, int] = {}
    items, samples = [], []
    for place, (row, key) in enumerate(zip(rows, content)):
        index = row.get("testIdx")
        items.append(first.setdefault(key, str(place if index is None else index)))
        samples.append(str(times.get(key, 0)))
        times[key] = times.get(key, 0) + 1
    return items, samples if len(first) < len(rows) else []


FORMAT = LogFormat(
    "promptfoo",
    "promptfoo results",
    obeys("metric", "id", "family", "run", "rater", "sample", "system"),
    _read,
)

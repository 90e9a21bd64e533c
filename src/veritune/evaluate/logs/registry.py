"""Every format of score files, how one is told from another, and the one way in: `read`.

The format is told from the content, never from the file's name alone. What is ambiguous (two metrics, two filters, two
scorers) is an error that lists the choices: picking one silently could flatter. So is anything that was asked for and
that the format cannot give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from veritune.data.sources.json_lines import PACKED
from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.logs import (
    evalplus,
    helm,
    inspect_log,
    lighteval,
    lm_eval,
    openai_evals,
    own,
    promptfoo,
    table,
)
from veritune.evaluate.logs.aggregates import refuse_aggregate
from veritune.evaluate.logs.options import LogFormat, Reading
from veritune.evaluate.logs.reducers import reduce_samples
from veritune.evaluate.logs.values import EXPECTED, MISSHAPEN, load_json
from veritune.records import JsonLike, Score
from veritune.stats.table import Columns
from veritune.untrusted import parse_json

FORMATS: Mapping[str, LogFormat] = {
    f.name: f
    for f in (
        own.FORMAT,
        lm_eval.FORMAT,
        inspect_log.FORMAT,
        lighteval.FORMAT,
        helm.FORMAT,
        openai_evals.FORMAT,
        promptfoo.FORMAT,
        evalplus.FORMAT,
        *table.FORMATS,
    )
}

_HEAD_BYTES = 1 << 16


def read(path: str | Path, reading: Reading | None = None) -> Columns:
    """The scores in one file. A file without run names is one run, named after the file.

    Raises ScoreError when the file is absent, empty, of no known format, or ambiguous; the message names the line.
    """
    path, reading = Path(path), reading or Reading()
    try:
        found = FORMATS[sniff(path)]
        found.check(path, reading)
        columns = found.read(path, reading)
    except UnicodeDecodeError as exc:
        raise ScoreError(f"{path.name}: {EXPECTED}; found bytes that are not UTF-8 ({exc.reason}).") from exc
    except MISSHAPEN as exc:
        what = f"{path.name}: {EXPECTED}; found a damaged file ({type(exc).__name__}: {str(exc)[:120]!r})."
        raise ScoreError(what, fix="Export the scores again.") from exc
    if not len(columns.item):
        raise ScoreError(f"{path.name}: expected scores, found none.")
    stated = reading.higher_is_better
    columns = replace(
        columns, format=found.name, higher_is_better=columns.higher_is_better if stated is None else stated
    )
    return columns if reading.reducer is None or found.reduces else reduce_samples(columns, reading.reducer)


def read_scores(path: str | Path, reading: Reading | None = None) -> Iterator[Score]:
    """The same as `read`, as `Score` records; `parts` keeps the sample and the rater."""
    c = read(path, reading)

    def at(column: Sequence[Cell], i: int) -> Any:
        return column[i] if len(column) else None

    for i in range(len(c.item)):
        parts = {k: v for k, v in (("sample", at(c.sample, i)), ("rater", at(c.rater, i))) if v is not None}
        yield Score(
            run_id=c.run[i],
            eval=c.eval,
            item_id=c.item[i],
            value=c.value[i],
            reason=at(c.reason, i),
            family=at(c.family, i),
            zone=at(c.zone, i),
            parts=parts,
        )


def eval_of(path: Path) -> str:
    """The eval named in a file's name or header; "" if none is named or the file cannot be read."""
    try:
        return FORMATS[sniff(path)].eval_of(path)
    except ScoreError:
        return ""
    except MISSHAPEN:
        return ""


def systems_in(path: str | Path) -> list[str]:
    """The systems in a file that holds several: columns of a table with numbers only, or providers of promptfoo.

    Empty for any other file. Raises ScoreError as `read` does.
    """
    path = Path(path)
    kind = sniff(path)
    if kind == promptfoo.FORMAT.name:
        return promptfoo.systems_of(path)
    return table.numeric_names(table.load_table(path)) if kind in {f.name for f in table.FORMATS} else []


# ---------------------------------------------------------------- telling formats apart


def sniff(path: Path) -> str:
    """The format of a score file, detected from its first bytes. Raises ScoreError if the format is unknown."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise ScoreError(f"{path}: expected a score file, found {what}.")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head.strip():
        raise ScoreError(f"{path.name}: {EXPECTED}; found an empty file.")
    packed = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
    if packed is not None:
        what = f"{path.name}: {EXPECTED}; found a file compressed with {packed.partition(';')[0]}."
        raise ScoreError(what, fix="Unpack it first.")
    if head[:2] == b"PK":
        return inspect_log.FORMAT.name
    if head[:4] == b"PAR1":
        return lighteval.FORMAT.name if lighteval.is_details(table.parquet_table(path)) else "parquet"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text[0] == "[":
        return _sniff_list(path, text)
    if text[0] != "{":
        return "csv"
    first = _first_line(text)
    return _sniff_document(path, load_json(path)) if first is None else _sniff_line(path, first)


def _first_line(text: str) -> dict[str, JsonLike] | None:
    """The object on the first line, None when the object goes on over several lines."""
    try:
        value = parse_json(text.split("\n", 1)[0], finite=False)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _sniff_line(path: Path, first: Mapping[str, Any]) -> str:
    if {"doc_id", "filtered_resps"} <= first.keys():
        return lm_eval.FORMAT.name
    if {"run_id", "eval", "item_id", "value"} <= first.keys():
        return own.FORMAT.name
    if openai_evals.is_events(first):
        return openai_evals.FORMAT.name
    if promptfoo.is_result(first):
        return promptfoo.FORMAT.name
    return _document_kind(path, first) or "jsonl"


def _sniff_list(path: Path, text: str) -> str:
    """A JSON list by its first entry; the whole file is read where that entry is longer than the head."""
    try:
        first, _ = json.JSONDecoder().raw_decode(text[1:].lstrip())
    except (json.JSONDecodeError, RecursionError):
        document = load_json(path)
        first = document[0] if isinstance(document, list) and document else None
    if isinstance(first, dict) and {"doc_id", "filtered_resps"} <= first.keys():
        return lm_eval.FORMAT.name
    return helm.FORMAT.name if isinstance(first, dict) and helm.is_helm(first) else "json"


def _sniff_document(path: Path, document: Cell) -> str:
    kind = _document_kind(path, document) if isinstance(document, dict) else None
    if kind is None:
        raise ScoreError(f"{path.name}: {EXPECTED}; found a JSON document of {type(document).__name__}.")
    return kind


def _document_kind(path: Path, document: Mapping[str, Cell]) -> str | None:
    """The format of a single JSON object, None where it is of none that is written as one."""
    if evalplus.is_evalplus(document):
        return evalplus.FORMAT.name
    if "eval" in document and ("plan" in document or "samples" in document):
        return inspect_log.FORMAT.name
    if promptfoo.results_in(document) is not None:
        return promptfoo.FORMAT.name
    refuse_aggregate(path, document)
    return inspect_log.FORMAT.name if isinstance(document.get("samples"), list) else None

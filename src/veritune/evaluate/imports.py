"""Scores from elsewhere: Veritune's own files, lm-evaluation-harness samples, Inspect logs, CSV, JSON and JSONL.

`read` turns one file into `Columns`, plain columns of equal length; `read_scores` into `Score` records. The format is
told from the content, never from the file's name alone. What is ambiguous (two metrics, two filters, two scorers) is
an error that lists the choices: picking one silently could flatter.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from veritune.errors import ScoreError
from veritune.records import Score
from veritune.stats.table import Columns

Format = Literal["scores", "lm-eval", "inspect", "csv", "jsonl", "json"]

ID_NAMES = ("item_id", "id", "doc_id", "sample_id", "question_id", "example_id", "item", "idx", "index")
SCORE_NAMES = ("value", "score", "correct", "is_correct", "exact_match", "acc", "accuracy", "pass", "passed", "rating")
FAMILY_NAMES = ("family", "cluster", "group")
RUN_NAMES = ("seed", "run", "run_id")
RATER_NAMES = ("rater", "judge", "annotator")
SAMPLE_NAMES = ("sample", "epoch", "repeat")

_MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """What the user may say about a file; None means: find it.

    `metric` is the score column, lm-eval metric or Inspect scorer (`scorer` or `scorer/key`); `filter` is lm-eval's;
    `eval` picks one eval of a file that holds several. The others name columns.
    """

    eval: str | None = None
    metric: str | None = None
    filter: str | None = None
    id: str | None = None
    family: str | None = None
    run: str | None = None
    rater: str | None = None
    sample: str | None = None


def read(path: str | Path, reading: Reading | None = None) -> Columns:
    """The scores in one file. A file without run names is one run, named after the file.

    Raises ScoreError when the file is absent, empty, of no known format, or ambiguous; the message names the line.
    """
    path = Path(path)
    try:
        return _read(path, reading or Reading())
    except UnicodeDecodeError as exc:
        raise ScoreError(f"{path.name}: {_EXPECTED}; found bytes that are no UTF-8 ({exc.reason}).") from None
    except _MISSHAPEN as exc:
        what = f"{path.name}: {_EXPECTED}; found one that is damaged ({type(exc).__name__}: {str(exc)[:120]})."
        raise ScoreError(what, fix="Export it again.") from None


_MISSHAPEN: tuple[type[Exception], ...] = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    EOFError,
)
_MISSHAPEN += (NotImplementedError, OSError, AssertionError, zipfile.BadZipFile, zlib.error, csv.Error)
"""What a file raises that has its format's beginning and another inside. Each is reported as the file's fault."""


def _read(path: Path, reading: Reading) -> Columns:
    found = sniff(path)
    readers: Mapping[Format, Callable[[Path, Reading], Columns]] = {
        "scores": _read_own,
        "lm-eval": _read_lm_eval,
        "inspect": _read_inspect,
        "csv": _read_table,
        "jsonl": _read_table,
        "json": _read_table,
    }
    columns = readers[found](path, reading)
    if not len(columns.item):
        raise ScoreError(f"{path.name}: expected scores, found none.")
    return replace(columns, format=found)


def read_scores(path: str | Path, reading: Reading | None = None) -> Iterator[Score]:
    """`read`, as `Score` records; `parts` keeps the sample and the rater."""
    c = read(path, reading)

    def at(column: Sequence[Any], i: int) -> Any:
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


# ---------------------------------------------------------------- telling formats apart


_EXPECTED = (
    "expected Veritune scores, lm-eval samples (.jsonl of --log_samples), an Inspect log (.eval or .json), "
    "or CSV/JSON/JSONL with an id and a score column"
)


def sniff(path: Path) -> Format:
    """The format of a score file, from its first bytes. Raises ScoreError when it is none that is known."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise ScoreError(f"{path}: expected a score file, found {what}.")
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if not head.strip():
        raise ScoreError(f"{path.name}: {_EXPECTED}; found an empty file.")
    if head[:2] == b"PK":
        return "inspect"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text[0] == "[":
        return "json"
    if text[0] != "{":
        return "csv"
    first = _first_object(text)
    if first is None:
        return _sniff_document(path)
    keys = set(first)
    if {"doc_id", "filtered_resps"} <= keys:
        return "lm-eval"
    if {"run_id", "eval", "item_id", "value"} <= keys:
        return "scores"
    if {"eval", "plan"} <= keys or "samples" in keys:
        return "inspect"
    _refuse_aggregate(path, keys)
    return "jsonl"


def _first_object(text: str) -> dict[str, Any] | None:
    """The object on the first line, None when the object goes on over several lines."""
    try:
        value = json.loads(text.split("\n", 1)[0])
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _sniff_document(path: Path) -> Format:
    document = _load_json(path)
    if isinstance(document, dict):
        if "eval" in document and ("plan" in document or "samples" in document):
            return "inspect"
        _refuse_aggregate(path, set(document))
    raise ScoreError(f"{path.name}: {_EXPECTED}; found a JSON document of {type(document).__name__}.")


def _refuse_aggregate(path: Path, keys: set[str]) -> None:
    if "results" in keys and keys & {"configs", "n-shot", "versions"}:
        raise ScoreError(
            f"{path.name}: expected scores per item, found lm-eval's aggregated results.",
            fix="Use the samples_*.jsonl files that lm_eval --log_samples writes.",
        )


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ScoreError(f"{path.name}: {_EXPECTED}; found text that is no JSON ({error}).") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each non-empty JSONL line."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ScoreError(f"{path.name}, line {number}: expected a JSON object, found {error}.") from None
            if not isinstance(row, dict):
                raise ScoreError(f"{path.name}, line {number}: expected a JSON object, found {type(row).__name__}.")
            yield number, row


# ---------------------------------------------------------------- values


_TRUTH = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0, "correct": 1.0, "incorrect": 0.0, "pass": 1.0, "fail": 0.0}


def _number(value: Any, path: Path, row: object, column: str) -> float | None:
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
            value = repr(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ScoreError(
        f"{path.name}, row {row}, {column}: expected a number, true, false or null, found {value}.",
        fix="Write null (an empty cell in CSV) where there is no score.",
    )


def _fingerprint(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _choose(what: str, found: Iterable[str], wanted: str | None, path: Path, option: str) -> str:
    """The wanted one of `found`, or the only one. Raises ScoreError that lists the choices."""
    names = sorted(set(found))
    listed = ", ".join(names[:_MAX_SHOWN]) or "none"
    if wanted is not None:
        if wanted in names:
            return wanted
        raise ScoreError(f"{path.name}: expected the {what} {wanted!r}, found {listed}.")
    if len(names) == 1:
        return names[0]
    raise ScoreError(
        f"{path.name}: expected one {what}, found {len(names)}: {listed}.", fix=f"Choose with {option} NAME."
    )


# ---------------------------------------------------------------- Veritune's own scores


_OWN = ("run_id", "eval", "item_id", "value", "reason", "family", "zone", "parts")


def _read_own(path: Path, reading: Reading) -> Columns:
    table = _jsonl_table(path, _OWN)
    numbers, columns = table.numbers, table.columns
    for name in ("run_id", "eval", "item_id"):
        gone = next((i for i, x in enumerate(columns[name]) if x is None), None)
        if gone is not None:
            raise ScoreError(f"{path.name}, line {numbers[gone]}: expected run_id, eval, item_id and value.")
    name = _choose("eval", columns["eval"], reading.eval, path, "--eval")
    if columns["eval"].count(name) < len(numbers):
        keep = [i for i, x in enumerate(columns["eval"]) if x == name]
        columns = {k: [c[i] for i in keep] for k, c in columns.items()}
        numbers = [numbers[i] for i in keep]
    parts = columns["parts"]
    return Columns(
        eval=name,
        run=_texts(columns["run_id"]),
        item=_texts(columns["item_id"]),
        value=_numbers(columns["value"], path, numbers, "value"),
        reason=_optional(columns["reason"]),
        family=_optional(columns["family"]),
        zone=_optional(columns["zone"]),
        sample=_parts(parts, "sample"),
        rater=_parts(parts, "rater"),
    )


def _parts(parts: Sequence[Any], key: str) -> Sequence[str]:
    """One entry of `parts` as text, nothing unless every score has it."""
    if not parts or not all(isinstance(p, dict) and key in p for p in parts):
        return ()
    return [str(p[key]) for p in parts]


def _optional(column: Sequence[Any]) -> Sequence[Any]:
    """The column, or an empty one when nothing is in it."""
    return column if any(x is not None for x in column) else ()


# ---------------------------------------------------------------- lm-evaluation-harness


_SAMPLES_FILE = re.compile(r"samples_(?P<task>.+?)_\d{4}-\d\d-\d\dT")


def _read_lm_eval(path: Path, reading: Reading) -> Columns:
    """One row per document and filter. Items are `doc_id`; the document's hash guards against other documents."""
    rows = list(_lines(path))
    chosen = _choose("filter", (str(r.get("filter", "none")) for _, r in rows), reading.filter, path, "--filter")
    rows = [(number, row) for number, row in rows if str(row.get("filter", "none")) == chosen]
    metric = _choose("metric", _lm_metrics(rows), reading.metric, path, "--metric")
    match = _SAMPLES_FILE.search(path.name)
    values, reasons = [], []
    for number, row in rows:
        if metric not in row:
            raise ScoreError(f"{path.name}, line {number}: expected the metric {metric!r}, found none.")
        value = _number(row[metric], path, number, metric)
        failed = value == 0 and _invalid(row.get("filtered_resps"))
        values.append(None if failed else value)
        reasons.append("extraction_failed" if failed else "not_scored" if value is None else None)
    return Columns(
        eval=reading.eval or (match["task"] if match else path.stem),
        run=[path.stem] * len(rows),
        item=[str(row["doc_id"]) for _, row in rows],
        value=values,
        reason=reasons,
        content=[row.get("doc_hash") for _, row in rows],
        notes=(f"metric {metric}, filter {chosen}",),
    )


def _lm_metrics(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Metrics of lm-eval rows: the list that newer files carry, else the numeric columns with a usual name."""
    named = {m for _, row in rows for m in row.get("metrics") or ()}
    if named:
        return sorted(named)
    known = (*SCORE_NAMES, "acc_norm", "f1", "em", "bleu", "rouge1", "mc1", "mc2")
    return sorted({k for _, row in rows for k in row if k in known})


def _invalid(filtered: Any) -> bool:
    """True when lm-eval's extraction filter found nothing (`[invalid]`)."""
    return isinstance(filtered, list) and bool(filtered) and filtered[0] == "[invalid]"


# ---------------------------------------------------------------- Inspect


_INSPECT_VALUES = {"C": 1.0, "I": 0.0, "P": 0.5}


def _read_inspect(path: Path, reading: Reading) -> Columns:
    """One row per sample and epoch. `C`, `P`, `I` are 1, ½, 0; `N` is no answer; a sample with an error crashed."""
    task, samples = _inspect_samples(path)
    names = {name for s in samples for name in _scorer_names(s.get("scores") or {})}
    wanted = reading.metric
    scorer = _choose("scorer", names, wanted, path, "--metric") if names else wanted or ""
    epochs = {s.get("epoch", 1) for s in samples}
    values, reasons = zip(*(_inspect_value(s, scorer, path) for s in samples))
    return Columns(
        eval=reading.eval or task,
        run=[path.stem] * len(samples),
        item=[str(s["id"]) for s in samples],
        value=values,
        reason=reasons,
        sample=[str(s.get("epoch", 1)) for s in samples] if len(epochs) > 1 else (),
        content=[_fingerprint([s.get("input"), s.get("target")]) for s in samples],
        notes=(f"scorer {scorer}",),
    )


def _scorer_names(scores: Mapping[str, Any]) -> Iterator[str]:
    for name, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            yield from (f"{name}/{key}" for key in value)
        else:
            yield name


def _inspect_value(sample: Mapping[str, Any], scorer: str, path: Path) -> tuple[float | None, str | None]:
    if sample.get("error"):
        return None, "crashed"
    name, _, key = scorer.partition("/")
    score = (sample.get("scores") or {}).get(name)
    value = score.get("value") if isinstance(score, dict) else score
    if isinstance(value, dict):
        value = value.get(key)
    if value is None:
        return None, "not_scored"
    if value == "N":
        return None, "no_answer"
    if isinstance(value, str) and value in _INSPECT_VALUES:
        return _INSPECT_VALUES[value], None
    return _number(value, path, sample.get("id"), scorer), None


def _inspect_samples(path: Path) -> tuple[str, list[dict[str, Any]]]:
    """Task name and samples of an Inspect log, zipped (`.eval`) or plain JSON."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "header.json" not in names:
                raise ScoreError(
                    f"{path.name}: expected an Inspect log, found a zip without header.json ({len(names)} entries).",
                    fix="A log of a run that did not finish has no header; score it first.",
                )
            header = _zip_json(archive, "header.json")
            entries = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
            samples = [_zip_json(archive, n) for n in entries]
    else:
        header = _load_json(path)
        samples = header.get("samples") or []
    if not samples:
        raise ScoreError(
            f"{path.name}: expected samples in the Inspect log, found none (status {header.get('status')!r})."
        )
    return str((header.get("eval") or {}).get("task", path.stem)), samples


def _zip_json(archive: zipfile.ZipFile, name: str) -> Any:
    """One JSON entry of a zip. Inspect compresses with Zstandard, which `zipfile` does not know: pyarrow does."""
    info = archive.getinfo(name)
    if info.compress_type != 93:
        return json.loads(archive.read(name))
    import pyarrow

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    local = file.read(30)
    skip = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    file.seek(info.header_offset + 30 + skip)
    data = file.read(info.compress_size)
    with pyarrow.CompressedInputStream(io.BytesIO(data), "zstd") as stream:
        return json.loads(stream.read())


# ---------------------------------------------------------------- tables


def _read_table(path: Path, reading: Reading) -> Columns:
    """CSV, JSONL, or a JSON list of objects, with an id and a score column."""
    table = _table(path)
    known = set(table.columns)
    item = _column(known, reading.id, ID_NAMES, path, "id", "--id")
    score = _score_column(known, reading.metric, path)
    family = _column(known, reading.family, FAMILY_NAMES, path, "family", "")
    run = _column(known, reading.run, RUN_NAMES, path, "run", "")
    rater = _column(known, reading.rater, RATER_NAMES, path, "rater", "")
    sample = _column(known, reading.sample, SAMPLE_NAMES, path, "sample", "")
    ids = table.columns[item]
    gone = next((i for i, x in enumerate(ids) if x is None or x == ""), None)
    if gone is not None:
        raise ScoreError(f"{path.name}, row {table.numbers[gone]}: expected an id in column {item!r}, found none.")

    def labels(name: str) -> Sequence[str | None]:
        return _optional([None if x is None or x == "" else str(x) for x in table.columns.get(name, ())])

    return Columns(
        eval=reading.eval or path.stem,
        run=_texts(table.columns[run]) if run else [path.stem] * len(ids),
        item=_texts(ids),
        value=_numbers(table.columns[score], path, table.numbers, score),
        reason=labels("reason"),
        family=labels(family),
        zone=labels("zone"),
        sample=_texts(table.columns[sample]) if sample else (),
        rater=_texts(table.columns[rater]) if rater else (),
        notes=tuple(f"{w} column {c}" for w, c in (("id", item), ("score", score), ("family", family)) if c),
    )


def _texts(values: Sequence[Any]) -> list[str]:
    return [x if type(x) is str else str(x) for x in values]


def _numbers(values: Sequence[Any], path: Path, numbers: Sequence[int], column: str) -> list[float | None]:
    return [x if type(x) is float and x - x == 0 else _number(x, path, n, column) for x, n in zip(values, numbers)]


@dataclass(frozen=True, slots=True)
class _Table:
    """Named columns of one file and each row's 1-based number (the line in JSONL; the header of CSV not counted)."""

    columns: Mapping[str, list[Any]]
    numbers: Sequence[int]


def _table(path: Path) -> _Table:
    kind = sniff(path)
    if kind == "csv":
        return _csv_table(path)
    if kind == "jsonl":
        return _jsonl_table(path, None)
    document = _load_json(path)
    bad = next((i for i, row in enumerate(document, 1) if not isinstance(row, dict)), None)
    if bad is not None:
        raise ScoreError(f"{path.name}, entry {bad}: expected an object, found {type(document[bad - 1]).__name__}.")
    return _from_rows(list(enumerate(document, 1)), None)


def _from_rows(rows: Sequence[tuple[int, Mapping[str, Any]]], names: Sequence[str] | None) -> _Table:
    header: dict[str, None] = dict.fromkeys(names or ())
    if names is None:
        for _, row in rows:
            if not row.keys() <= header.keys():
                header.update(dict.fromkeys(row))
    return _Table({name: [row.get(name) for _, row in rows] for name in header}, [n for n, _ in rows])


_LARGE_BYTES = 4_000_000


def _jsonl_table(path: Path, names: Sequence[str] | None) -> _Table:
    """Columns of a JSONL file, only `names` where given. Large files go through pyarrow when their columns are plain
    text and numbers; whatever it cannot read goes the slow way, which names the line."""
    if path.stat().st_size >= _LARGE_BYTES:
        fast = _arrow_table(path, names)
        if fast is not None:
            return fast
    return _from_rows(list(_lines(path)), names)


def _arrow_table(path: Path, names: Sequence[str] | None) -> _Table | None:
    import pyarrow
    import pyarrow.json

    with path.open("rb") as file:
        first = _first_object(file.readline().decode("utf-8-sig", errors="replace")) or {}
    wanted = [n for n in (names or first) if not isinstance(first.get(n), dict | list)]
    if any(first.get(n) for n in (names or first) if n not in wanted):
        return None
    kinds = {str: pyarrow.string(), type(None): pyarrow.string(), int: pyarrow.int64()}
    fields = []
    for n in wanted:
        kind = type(first.get(n))
        if kind in (int, float) and n in SCORE_NAMES:
            fields.append((n, pyarrow.float64()))
        elif kind in kinds:
            fields.append((n, kinds[kind]))
        else:
            return None
    options = pyarrow.json.ParseOptions(
        explicit_schema=pyarrow.schema(fields),
        unexpected_field_behavior="ignore" if names else "error",
    )
    try:
        table = pyarrow.json.read_json(path, parse_options=options)
    except pyarrow.ArrowInvalid:
        return None
    columns = {n: table.column(n).to_pylist() for n in wanted}
    for n in names or first:
        columns.setdefault(n, [None] * table.num_rows)
    return _Table(columns, range(1, table.num_rows + 1))


def _csv_table(path: Path) -> _Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, [])
        if len(header) < 2 or len(set(header)) < len(header):
            raise ScoreError(f"{path.name}: {_EXPECTED}; found the first line {first.strip()[:80]!r}.")
        rows = [row for row in reader if row]
    bad = next((i for i, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if bad is not None:
        raise ScoreError(f"{path.name}, row {bad}: expected {len(header)} cells, found {len(rows[bad - 1])}.")
    cells = [list(column) for column in zip(*rows)] or [[] for _ in header]
    return _Table(dict(zip(header, cells)), range(1, len(rows) + 1))


def _column(known: set[str], named: str | None, usual: Sequence[str], path: Path, what: str, option: str) -> str:
    """The named column, else the first usual name that is there, else "" (an error where `option` is given)."""
    if named is not None:
        if named in known:
            return named
        raise ScoreError(f"{path.name}: expected a column {named!r}, found {', '.join(sorted(known)[:_MAX_SHOWN])}.")
    found = next((name for name in usual if name in known), "")
    if not found and option:
        raise ScoreError(
            f"{path.name}: expected a column with the {what} ({', '.join(usual[:4])}, ...), found "
            f"{', '.join(sorted(known)[:_MAX_SHOWN])}.",
            fix=f"Name it with {option} COLUMN.",
        )
    return found


def _score_column(known: set[str], named: str | None, path: Path) -> str:
    if named is not None:
        return _column(known, named, (), path, "score", "--metric")
    found = [name for name in SCORE_NAMES if name in known]
    if not found:
        return _column(known, None, SCORE_NAMES, path, "score", "--metric")
    return _choose("score column", found, None, path, "--metric")

"""Scores from elsewhere: Veritune's own files, lm-evaluation-harness samples, Inspect logs, CSV, JSON and JSONL.

`read` turns one file into `Columns`, plain columns of equal length; `read_scores` into `Score` records. The format is
told from the content, never from the file's name alone. What is ambiguous (two metrics, two filters, two scorers) is
an error that lists the choices: picking one silently could flatter. So is anything that was asked for and that the
format cannot give.
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
from veritune.evaluate.direction import known_direction
from veritune.records import Score
from veritune.stats.table import Columns

Format = Literal["scores", "lm-eval", "inspect", "csv", "jsonl", "json"]

ID_NAMES = ("item_id", "id", "doc_id", "sample_id", "question_id", "example_id", "item", "idx", "index")
SCORE_NAMES = ("value", "score", "correct", "is_correct", "exact_match", "acc", "accuracy", "pass", "passed", "rating")
FAMILY_NAMES = ("family", "cluster", "group")
RUN_NAMES = ("seed", "run", "run_id")
RATER_NAMES = ("rater", "judge", "annotator")
SAMPLE_NAMES = ("sample", "epoch", "repeat")
EVAL_NAMES = ("eval", "task", "benchmark", "dataset")

_MAX_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Reading:
    """What the user may say about a file; None means: find it. What a format cannot honour is an error.

    `metric` is the score column, lm-eval metric or Inspect scorer (`scorer` or `scorer/key`); `filter` is lm-eval's;
    `eval` picks one eval of a file that holds several, or names that of a table. `system` is the column of a table with
    one column per system; `metric` then is a key inside it. `higher_is_better` states the metric's direction. The
    others name columns; a dot leads into nested objects (`meta.topic`), and so does a plain name into an lm-eval row's
    `doc` and an Inspect sample's `metadata`.
    """

    eval: str | None = None
    metric: str | None = None
    filter: str | None = None
    id: str | None = None
    family: str | None = None
    run: str | None = None
    rater: str | None = None
    sample: str | None = None
    system: str | None = None
    higher_is_better: bool | None = None


_UNKNOWN_TO: Mapping[Format, tuple[str, ...]] = {
    "scores": ("metric", "filter", "system"),
    "lm-eval": ("system",),
    "inspect": ("filter", "system"),
    "csv": ("filter",),
    "jsonl": ("filter",),
    "json": ("filter",),
}
"""Options that a format cannot honour, whatever they name."""

_FORMAT_NAMES: Mapping[Format, str] = {
    "scores": "Veritune's own scores",
    "lm-eval": "lm-eval samples",
    "inspect": "an Inspect log",
    "csv": "a table",
    "jsonl": "a table",
    "json": "a table",
}


def _check_options(path: Path, reading: Reading, found: Format) -> None:
    """Raises ScoreError for an option that this format cannot honour: ignoring it could answer another question."""
    for name in _UNKNOWN_TO[found]:
        if getattr(reading, name) is not None:
            option = {"system": "--systems"}.get(name, f"--{name}")
            raise ScoreError(
                f"{path.name}: {option} {getattr(reading, name)!r} does not apply to {_FORMAT_NAMES[found]}.",
                fix=f"Leave {option} out.",
            )


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
    _check_options(path, reading, found)
    columns = readers[found](path, reading)
    if not len(columns.item):
        raise ScoreError(f"{path.name}: expected scores, found none.")
    stated = reading.higher_is_better
    return replace(columns, format=found, higher_is_better=columns.higher_is_better if stated is None else stated)


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
    usual = {"id": "item_id", "family": "family", "run": "run_id", "rater": "rater", "sample": "sample"}
    for option, column in usual.items():
        if getattr(reading, option) not in (None, column):
            raise ScoreError(
                f"{path.name}: --{option} {getattr(reading, option)!r} does not apply to Veritune's own scores, which "
                f"always hold it in {column!r}.",
                fix=f"Leave --{option} out.",
            )
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
    by_parts = {"sample": _parts(parts, "sample"), "rater": _parts(parts, "rater")}
    for option in ("family", "sample", "rater"):
        there = columns["family"] if option == "family" else by_parts[option]
        if getattr(reading, option) is not None and not any(x is not None for x in there):
            raise ScoreError(f"{path.name}: expected --{option} {getattr(reading, option)!r}, found no score with one.")
    return Columns(
        eval=name,
        run=_texts(columns["run_id"]),
        item=_texts(columns["item_id"]),
        value=_numbers(columns["value"], path, numbers, "value"),
        reason=_optional(columns["reason"]),
        family=_optional(columns["family"]),
        zone=_optional(columns["zone"]),
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


def _optional(column: Sequence[Any]) -> Sequence[Any]:
    """The column, or an empty one when nothing is in it."""
    return column if any(x is not None for x in column) else ()


# ---------------------------------------------------------------- lm-evaluation-harness


_SAMPLES_FILE = re.compile(r"samples_(?P<task>.+?)_(?P<when>\d{4}-\d\d-\d\dT[^/]*)\.jsonl")


def _read_lm_eval(path: Path, reading: Reading) -> Columns:
    """One row per document and filter. Items are `doc_id`; the document's hash guards against other documents."""
    rows = list(_lines(path))
    chosen = _choose("filter", (str(r.get("filter", "none")) for _, r in rows), reading.filter, path, "--filter")
    rows = [(number, row) for number, row in rows if str(row.get("filter", "none")) == chosen]
    metrics = _lm_metrics(rows)
    if metrics == ["bypass"]:
        raise ScoreError(
            f"{path.name}: expected scores, found outputs without any (lm_eval --predict_only).",
            fix="Run lm_eval without --predict_only.",
        )
    metric = _choose("metric", metrics, reading.metric, path, "--metric")
    match = _SAMPLES_FILE.fullmatch(path.name)
    task = _named_eval(path, match["task"] if match else "", reading.eval)
    values, reasons = [], []
    for number, row in rows:
        if metric not in row:
            raise ScoreError(f"{path.name}, line {number}: expected the metric {metric!r}, found none.")
        value = _number(row[metric], path, number, metric)
        failed = value == 0 and _invalid(row.get("filtered_resps"))
        values.append(None if failed else value)
        reasons.append("extraction_failed" if failed else "not_scored" if value is None else None)
    up, note = _lm_direction(path, [row for _, row in rows], task, metric)
    labels = _row_labels(path, [row for _, row in rows], reading, "doc")
    return Columns(
        eval=task,
        run=labels.get("run") or [path.stem] * len(rows),
        item=labels.get("id") or [str(row["doc_id"]) for _, row in rows],
        value=values,
        reason=reasons,
        family=labels.get("family", ()),
        sample=labels.get("sample", ()),
        rater=labels.get("rater", ()),
        content=[row.get("doc_hash") for _, row in rows],
        notes=(f"metric {metric}, filter {chosen}", *note),
        metric=metric,
        higher_is_better=up,
    )


def _named_eval(path: Path, inside: str, asked: str | None) -> str:
    """The eval's name in the log, else the one asked for. Raises ScoreError where they differ."""
    if asked is not None and inside and asked != inside:
        raise ScoreError(
            f"{path.name}: expected the eval {asked!r}, found {inside!r}.",
            fix="Name the files of one eval, or leave --eval out.",
        )
    return inside or asked or ""


def _walk(row: Mapping[str, Any], name: str) -> Any:
    """`row[name]`, else what a dotted path leads to inside nested objects; None where it leads nowhere."""
    if name in row:
        return row[name]
    for place, char in enumerate(name):
        inner = row.get(name[:place]) if char == "." else None
        found = _walk(inner, name[place + 1 :]) if isinstance(inner, Mapping) else None
        if found is not None:
            return found
    return None


def _row_labels(path: Path, rows: Sequence[Mapping[str, Any]], reading: Reading, place: str) -> dict[str, list[Any]]:
    """The labels that the reading names, from each row or from its object `place`. Raises ScoreError for one that no
    row has, and for ids, runs, samples and raters that some rows lack."""
    found: dict[str, list[Any]] = {}
    for option in ("id", "family", "run", "rater", "sample"):
        name = getattr(reading, option)
        if name is None:
            continue
        values = [_walk(row, name) for row in rows]
        inner = [row.get(place) for row in rows]
        values = [_walk(i, name) if v is None and isinstance(i, Mapping) else v for v, i in zip(values, inner)]
        gone = sum(v is None or isinstance(v, dict | list) for v in values)
        if gone == len(values) or (gone and option != "family"):
            keys = sorted({key for i in inner if isinstance(i, Mapping) for key in i})
            what = "no row with one" if gone == len(values) else f"{gone} rows without one"
            raise ScoreError(
                f"{path.name}: --{option} {name!r}: expected it in each row or its {place!r}, found {what}; {place!r} "
                f"holds {', '.join(keys[:_MAX_SHOWN]) or 'nothing'}."
            )
        found[option] = [None if v is None else str(v) for v in values]
    return found


def _lm_direction(
    path: Path, rows: Sequence[Mapping[str, Any]], task: str, metric: str
) -> tuple[bool | None, tuple[str, ...]]:
    """Whether higher is better, from the rows, else from the results file beside them, else by definition; and a note.

    A record that contradicts the metric's definition (lm-eval takes `true` for metrics that it does not know) leaves
    the direction open.
    """
    said = {_row_direction(row, metric) for row in rows[:1]} | _results_directions(path, task, metric)
    said -= {None}
    known = known_direction(metric)
    if not said:
        return known, ()
    if len(said) > 1 or known not in (None, *said):
        words = "the log's higher_is_better contradicts " + ("itself" if len(said) > 1 else "the metric's definition")
        return None, (f"{words}: the direction of {metric} is taken as unknown",)
    up = bool(said.pop())
    return up, (f"{'higher' if up else 'lower'} is better, by the log",)


def _row_direction(row: Mapping[str, Any], metric: str) -> bool | None:
    value = row.get("higher_is_better")
    value = value.get(metric) if isinstance(value, Mapping) else value
    return value if isinstance(value, bool) else None


def _results_directions(path: Path, task: str, metric: str) -> set[bool | None]:
    """`higher_is_better` of the metric in results_*.json beside the samples: of the same time stamp, else of all."""
    match = _SAMPLES_FILE.fullmatch(path.name)
    same = path.with_name(f"results_{match['when']}.json") if match else None
    files = [same] if same is not None and same.is_file() else sorted(path.parent.glob("results_*.json"))
    found: set[bool | None] = set()
    for file in files:
        try:
            record = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError):
            continue  # another tool's file, which this comparison does not rest on
        if isinstance(record, Mapping):
            found |= set(_recorded_directions(record, task, metric))
    return found


def _recorded_directions(record: Mapping[str, Any], task: str, metric: str) -> Iterator[bool]:
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


def _lm_metrics(rows: Sequence[tuple[int, Mapping[str, Any]]]) -> list[str]:
    """Metrics of lm-eval rows: the list that newer files carry, else the numeric columns with a usual name."""
    named = {m for _, row in rows for m in row.get("metrics") or ()}
    if named:
        return sorted(named - {"bypass"}) or sorted(named)
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
    letters = {str(_raw_value(s, scorer)) for s in samples} & {*_INSPECT_VALUES, "N"}
    labels = _row_labels(path, samples, reading, "metadata")
    return Columns(
        eval=_named_eval(path, task, reading.eval),
        run=labels.get("run") or [path.stem] * len(samples),
        item=labels.get("id") or [str(s["id"]) for s in samples],
        value=values,
        reason=reasons,
        family=labels.get("family", ()),
        sample=labels.get("sample") or ([str(s.get("epoch", 1)) for s in samples] if len(epochs) > 1 else ()),
        rater=labels.get("rater", ()),
        content=[_fingerprint([s.get("input"), s.get("target")]) for s in samples],
        notes=(f"scorer {scorer}",),
        metric=scorer,
        higher_is_better=True if letters else known_direction(scorer),
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
    value = _raw_value(sample, scorer)
    # NaN is Inspect's sentinel for a sample that a scorer left out (Score.unscored).
    if value is None or value == "NaN" or (isinstance(value, float) and math.isnan(value)):
        return None, "not_scored"
    if value == "N":
        return None, "no_answer"
    if isinstance(value, str) and value in _INSPECT_VALUES:
        return _INSPECT_VALUES[value], None
    return _number(value, path, sample.get("id"), scorer), None


def _raw_value(sample: Mapping[str, Any], scorer: str) -> Any:
    """The scorer's value as the log holds it, None where there is none."""
    name, _, key = scorer.partition("/")
    scores = sample.get("scores") or {}
    score = scores.get(name) if name in scores else scores.get(scorer)
    value = score.get("value") if isinstance(score, dict) else score
    return value.get(key) if isinstance(value, dict) else value


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
    return str((header.get("eval") or {}).get("task") or ""), samples


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
    """CSV, JSONL, or a JSON list of objects, with an id and a score column, or one score column per system."""
    table, eval_name = _one_eval(_table(path), path, reading.eval)
    item = _column(table, reading.id, ID_NAMES, path, "id", "--id")
    score, metric = _score_column(table, reading, path)
    family = _column(table, reading.family, FAMILY_NAMES, path, "family", "")
    run = _column(table, reading.run, RUN_NAMES, path, "run", "")
    rater = _column(table, reading.rater, RATER_NAMES, path, "rater", "")
    sample = _column(table, reading.sample, SAMPLE_NAMES, path, "sample", "")
    ids = table.values(item)
    gone = next((i for i, x in enumerate(ids) if x is None or x == ""), None)
    if gone is not None:
        raise ScoreError(f"{path.name}, row {table.numbers[gone]}: expected an id in column {item!r}, found none.")
    inner = next((x for x in table.values(score) if isinstance(x, Mapping)), None)
    if inner is not None:
        raise ScoreError(
            f"{path.name}: expected numbers; {score!r} holds objects with {_listed(sorted(inner))}.",
            fix="Name the key: --metric COLUMN.KEY, or with --systems --metric KEY.",
        )

    def labels(name: str) -> Sequence[str | None]:
        return _optional([None if x is None or x == "" else str(x) for x in table.values(name)])

    return Columns(
        eval=eval_name,
        run=_texts(table.values(run)) if run else [path.stem] * len(ids),
        item=_texts(ids),
        value=_numbers(table.values(score), path, table.numbers, score),
        reason=labels(_nested_reason(table, score)),
        family=labels(family),
        zone=labels("zone"),
        sample=_texts(table.values(sample)) if sample else (),
        rater=_texts(table.values(rater)) if rater else (),
        notes=tuple(f"{w} column {c}" for w, c in (("id", item), ("score", score), ("family", family)) if c),
        metric=metric,
        higher_is_better=known_direction(metric),
    )


def _nested_reason(table: _Table, score: str) -> str:
    """The reason's column: beside a nested score where one stands there (`tuned.reason`), else `reason`."""
    beside = score.rpartition(".")[0] + ".reason"
    return beside if "." in score and any(x is not None for x in table.values(beside)) else "reason"


def _one_eval(table: _Table, path: Path, asked: str | None) -> tuple[_Table, str]:
    """The rows of one eval and its name, "" where nothing names it. Raises ScoreError for an `eval` column with several
    evals and none chosen, and for one asked for that the file's column does not have.

    Without a choice a task or dataset column names the eval only where it says the same in every row.
    """
    name = next((n for n in EVAL_NAMES if n in table.columns), "")
    labels = [None if x is None or x == "" else str(x) for x in table.values(name)]
    if not name:
        return table, asked or ""
    if name != "eval" and asked is None:
        return table, (labels[0] or "") if len(set(labels)) == 1 else ""
    chosen = _choose("eval", (x or "none" for x in labels), asked, path, "--eval")
    keep = [i for i, x in enumerate(labels) if (x or "none") == chosen]
    columns = {k: [c[i] for i in keep] for k, c in table.columns.items()}
    return _Table(columns, [table.numbers[i] for i in keep]), chosen


def _texts(values: Sequence[Any]) -> list[str]:
    return [x if type(x) is str else str(x) for x in values]


def _numbers(values: Sequence[Any], path: Path, numbers: Sequence[int], column: str) -> list[float | None]:
    return [x if type(x) is float and x - x == 0 else _number(x, path, n, column) for x, n in zip(values, numbers)]


@dataclass(frozen=True, slots=True)
class _Table:
    """Named columns of one file and each row's 1-based number (the line in JSONL; the header of CSV not counted)."""

    columns: Mapping[str, list[Any]]
    numbers: Sequence[int]

    def values(self, name: str) -> Sequence[Any]:
        """A column, or what a dotted path leads to inside a column of objects; empty where there is neither."""
        if name in self.columns:
            return self.columns[name]
        for place, char in enumerate(name):
            column = self.columns.get(name[:place]) if char == "." else None
            if column is None:
                continue
            found = [_walk(cell, name[place + 1 :]) if isinstance(cell, Mapping) else None for cell in column]
            if any(x is not None for x in found):
                return found
        return ()

    def names(self) -> list[str]:
        """Every column, and the keys of objects in columns as dotted paths."""
        nested = {
            f"{name}.{key}" for name, column in self.columns.items() for cell in column[:20]
            if isinstance(cell, Mapping) for key in cell
        }  # fmt: skip
        return sorted({n for n in self.columns if not any(p.startswith(f"{n}.") for p in nested)} | nested)


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


def _column(table: _Table, named: str | None, usual: Sequence[str], path: Path, what: str, option: str) -> str:
    """The named column, else the first usual name that is there, else "" (an error where `option` is given)."""
    if named is not None:
        if len(table.values(named)):
            return named
        raise ScoreError(f"{path.name}: expected a column {named!r}, found {_listed(table.names())}.")
    found = next((name for name in usual if name in table.columns), "")
    if not found and option:
        raise ScoreError(
            f"{path.name}: expected a column with the {what} ({', '.join(usual[:4])}, ...), found "
            f"{_listed(table.names())}.",
            fix=f"Name it with {option} COLUMN." + (_systems_hint(table, path) if what == "score" else ""),
        )
    return found


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(names[:_MAX_SHOWN]) + more


def _score_column(table: _Table, reading: Reading, path: Path) -> tuple[str, str]:
    """The column of the scores and the name of what it measures, "" where the column is named after a system."""
    named = reading.metric
    if reading.system is not None:
        named = reading.system if named is None else f"{reading.system}.{named}"
        if named not in table.columns and not len(table.values(named)):
            raise ScoreError(
                f"{path.name}: expected a column {named!r} for the system {reading.system!r}, found "
                f"{_listed(table.names())}.",
                fix="--systems names columns of scores; --metric a key inside each.",
            )
        return named, reading.metric or ""
    if named is not None:
        return _column(table, named, (), path, "score", "--metric"), named
    found = [name for name in SCORE_NAMES if name in table.columns]
    if not found:
        return _column(table, None, SCORE_NAMES, path, "score", "--metric"), ""
    chosen = _choose("score column", found, None, path, "--metric")
    return chosen, chosen


def score_columns(path: str | Path) -> list[str]:
    """Columns of a table, nested ones too, that hold only numbers or nothing and name no id, family or run.

    Where a file has one column per system these are the systems. Empty for a file that is no table. Raises ScoreError
    as `read` does.
    """
    path = Path(path)
    return _numeric_names(_table(path)) if sniff(path) in ("csv", "jsonl", "json") else []


_LABELS = frozenset((*ID_NAMES, *FAMILY_NAMES, *RUN_NAMES, *RATER_NAMES, *SAMPLE_NAMES, *EVAL_NAMES, "zone", "reason"))


def _numeric_names(table: _Table) -> list[str]:
    def numeric(name: str) -> bool:
        try:
            return any(_number(x, Path(), 0, name) is not None for x in table.values(name))
        except ScoreError:
            return False

    return [name for name in table.names() if name not in _LABELS and numeric(name)]


def _systems_hint(table: _Table, path: Path) -> str:
    names = _numeric_names(table)
    if len(names) < 2:
        return ""
    return f" One column per system: veritune compare {path.name} --systems {','.join(names[:_MAX_SHOWN])}."

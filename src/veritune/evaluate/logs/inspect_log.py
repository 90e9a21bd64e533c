"""Inspect logs: `.eval` (a zip, Zstandard inside) and `.json`; epochs and their reducers, errors, unscored samples.

A score is a grade (`C`, `P`, `I` are 1, ½, 0; `N` is no answer), a number, or an object or list of them
(`scorer/key`, `scorer/0`). NaN, null and a scorer without an entry are unscored samples. An error ended a sample
unless the log says that errors were scored (`score_on_error`).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune import zstd
from veritune.counting import agree, many
from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.reducers import reduce_samples
from veritune.evaluate.logs.values import choose, fingerprint, is_nan, load_json, named_eval, number, row_labels
from veritune.stats.table import Columns
from veritune.untrusted import parse_json

if TYPE_CHECKING:
    from veritune.records import JsonLike

_GRADES = {"C": 1.0, "I": 0.0, "P": 0.5}

_MAX_ENTRY_BYTES = 1 << 30
"""Largest entry of a log that is unpacked: a sample of 1 GiB is a damaged or hostile archive."""


_MOST_EPOCHS = 10_000
"""Epochs of a sample that a log may promise: each one that is missing becomes a sample without a score."""


@dataclass(frozen=True, slots=True)
class _Log:
    """What a log's header says, its samples, and its own reductions."""

    task: str
    samples: Sequence[Mapping[str, Any]]
    reducers: tuple[str, ...]
    scores_errors: bool
    reductions: Sequence[Any]
    notes: tuple[str, ...] = ()


def _read(path: Path, reading: Reading) -> Columns:
    log = _load(path)
    names = {name for s in log.samples for name in _scorer_names(s.get("scores") or {})}
    names = names or {name for s in log.samples for name in s.get("scores") or {}}
    scorer = choose("scorer", names, reading.metric, path, "--metric") if names else reading.metric or ""
    scored = [_value(s, scorer, path, scores_errors=log.scores_errors) for s in log.samples]
    letters = {str(_raw_value(s, scorer)) for s in log.samples} & {*_GRADES, "N"}
    labels = row_labels(path, log.samples, reading, ("metadata",))
    epochs = [str(s.get("epoch", 1)) for s in log.samples]
    errors = sum(bool(s.get("error")) and v is not None for s, (v, _) in zip(log.samples, scored))
    noted = (f"{many(errors, 'samples')} that ended in an error were scored (score_on_error)",) if errors else ()
    columns = Columns(
        eval=named_eval(path, log.task, reading.eval),
        run=labels.get("run") or [path.stem] * len(log.samples),
        item=labels.get("id") or [str(s["id"]) for s in log.samples],
        value=[value for value, _ in scored],
        reason=[reason for _, reason in scored],
        family=labels.get("family", ()),
        sample=labels.get("sample") or (epochs if len(set(epochs)) > 1 else ()),
        rater=labels.get("rater", ()),
        content=[fingerprint([s.get("input"), s.get("target")]) for s in log.samples],
        notes=(f"scorer {scorer}", *log.notes, *noted),
        metric=scorer,
        higher_is_better=True if letters else known_direction(scorer),
    )
    return _reduced(path, columns, log, reading)


def _reduced(path: Path, columns: Columns, log: _Log, reading: Reading) -> Columns:
    """The epochs reduced as asked, else as the log says, else left as samples whose mean counts."""
    epochs = len(columns.sample) > 0 and reading.sample is None
    name = reading.reducer
    if name is None and epochs and log.reducers:
        name = choose("reducer", log.reducers, None, path, "--reducer")
        if name != "mean":
            columns = replace(columns, notes=(*columns.notes, "the log's own reducer"))
    if name is None:
        return columns
    return reduce_samples(columns, name, _stated(log, columns.metric, name))


def _stated(log: _Log, scorer: str, name: str) -> dict[str, float]:
    """The log's own reduced values of one scorer and reducer, by sample id."""
    found: dict[str, float] = {}
    head, _, key = scorer.partition("/")
    for entry in log.reductions:
        if not isinstance(entry, Mapping) or entry.get("reducer") != name or entry.get("scorer") not in (head, scorer):
            continue
        for sample in entry.get("samples") or ():
            value = _entry(sample.get("value"), key) if isinstance(sample, Mapping) else None
            value = _GRADES.get(value, value) if isinstance(value, str) else value
            if isinstance(value, int | float) and not is_nan(value):
                found[str(sample.get("sample_id"))] = float(value)
    return found


# ---------------------------------------------------------------- one sample


def _scorer_names(scores: Mapping[str, Cell]) -> Iterator[str]:
    for name, score in scores.items():
        value = score.get("value") if isinstance(score, dict) else score
        if isinstance(value, dict):
            yield from (f"{name}/{key}" for key in value)
        elif isinstance(value, list):
            yield from (f"{name}/{place}" for place in range(len(value)))
        elif not is_nan(value) and value is not None:
            yield name


def _value(
    sample: Mapping[str, Cell], scorer: str, path: Path, *, scores_errors: bool
) -> tuple[float | None, str | None]:
    """A sample's score, or None and the reason why it has none."""
    value = _raw_value(sample, scorer)
    gone = value is None or value == "" or is_nan(value)
    if sample.get("error") and (gone or not scores_errors):
        return None, "crashed"
    if sample.get("invalidation"):
        return None, "invalidated"
    if gone:
        return None, "not_scored"
    if value == "N":
        return None, "no_answer"
    if isinstance(value, str) and value in _GRADES:
        return _GRADES[value], None
    return number(value, path, sample.get("id"), scorer), None


def _raw_value(sample: Mapping[str, Any], scorer: str) -> Any:
    """The scorer's value as the log holds it, None where there is none."""
    scores = sample.get("scores") or {}
    whole = scorer in scores
    name, _, key = (scorer, "", "") if whole else scorer.rpartition("/")
    score = scores.get(name)
    value = score.get("value") if isinstance(score, dict) else score
    return _entry(value, key)


def _entry(value: Cell, key: str) -> Any:
    """`value` itself, or its entry where it is an object or a list."""
    if isinstance(value, dict):
        return value.get(key)
    if isinstance(value, list):
        return value[int(key)] if key.isdigit() and int(key) < len(value) else None
    return value


# ---------------------------------------------------------------- the file


def _load(path: Path) -> _Log:
    """Header, samples and reductions of a log, zipped or plain JSON."""
    reductions: Any = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            header = _header(path, archive)
            names = archive.namelist()
            entries = sorted(n for n in names if n.startswith("samples/") and n.endswith(".json"))
            samples = [_zip_json(archive, n) for n in entries]
            if "reductions.json" in names:
                reductions = _zip_json(archive, "reductions.json")
    else:
        header = load_json(path)
        samples = header.get("samples") or []
        reductions = header.get("reductions")
    if not samples:
        raise ScoreError(
            f"{path.name}: expected samples in the Inspect log, found none (status {header.get('status')!r})."
        )
    samples = [_with_scores(sample) for sample in samples]
    spec = header.get("eval") or {}
    config = spec.get("config") or {}
    lost = _lost_epochs(samples, config.get("epochs"))
    return _Log(
        task=str(spec.get("task") or ""),
        samples=[*samples, *lost],
        reducers=tuple(str(name) for name in config.get("epochs_reducer") or ()),
        scores_errors=config.get("score_on_error") is True,
        reductions=reductions if isinstance(reductions, list) else (),
        notes=tuple(_unfinished(header, samples, len(lost))),
    )


def _with_scores(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """A sample whose one `score`, as logs of early 2024 hold it, stands under `scores` as Inspect itself moves it."""
    if sample.get("scores") is not None or not isinstance(sample.get("score"), Mapping):
        return sample
    return {**sample, "scores": {"score": sample["score"]}}


def _lost_epochs(samples: Sequence[Mapping[str, Any]], epochs: Any) -> list[Mapping[str, JsonLike]]:
    """The epochs that the log's settings promise of a sample and that it does not hold, as samples without a score."""
    if not isinstance(epochs, int) or epochs < 2:
        return []
    if epochs > _MOST_EPOCHS:
        raise ScoreError(f"eval.config.epochs of the Inspect log: expected at most {_MOST_EPOCHS:,}, found more.")
    held: dict[str, dict[int, Mapping[str, Any]]] = {}
    for sample in samples:
        held.setdefault(str(sample["id"]), {})[int(sample.get("epoch", 1))] = sample
    return [
        {**next(iter(there.values())), "epoch": epoch, "scores": {}, "error": None}
        for there in held.values()
        for epoch in range(1, epochs + 1)
        if epoch not in there
    ]


def _unfinished(header: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], lost: int) -> Iterator[str]:
    """What a log lacks because its run ended early."""
    if lost:
        counts = agree(lost, "count")
        yield f"{many(lost, 'epochs')} of samples {agree(lost, 'are')} missing from the log and {counts} as not scored"
    status = header.get("status")
    if status in ("success", None):
        return
    dataset = (header.get("eval") or {}).get("dataset")
    planned = dataset.get("sample_ids") if isinstance(dataset, Mapping) else None
    there = len({str(sample["id"]) for sample in samples})
    of = f" of {len(planned)}" if isinstance(planned, list) and len(planned) > there else ""
    yield f"the run ended with status {status!r}: {there}{of} samples are in the log"


def _header(path: Path, archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    if "header.json" not in names:
        raise ScoreError(
            f"{path.name}: expected an Inspect log, found a zip without header.json ({len(names)} entries).",
            fix="Score the log first: a run that did not finish leaves no header.",
        )
    return _zip_json(archive, "header.json")


def _eval_of(path: Path) -> str:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            header = _header(path, archive)
    else:
        header = load_json(path)
    return str((header.get("eval") or {}).get("task") or "")


def _zip_json(archive: zipfile.ZipFile, name: str) -> Any:
    """One JSON entry of a zip. Inspect compresses with Zstandard, which `zipfile` knows from Python 3.14 on only."""
    info = archive.getinfo(name)
    if info.file_size > _MAX_ENTRY_BYTES:
        raise ScoreError(f"{name}: expected an entry of at most {_MAX_ENTRY_BYTES:,} bytes, found {info.file_size:,}.")
    if info.compress_type != 93:
        return parse_json(archive.read(name), finite=False)
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    local = file.read(30)
    skip = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    file.seek(info.header_offset + 30 + skip)
    return parse_json(zstd.decompress(file.read(info.compress_size), _MAX_ENTRY_BYTES), finite=False)


FORMAT = LogFormat(
    "inspect",
    "an Inspect log",
    obeys("metric", "id", "family", "run", "rater", "sample"),
    _read,
    eval_of=_eval_of,
    reduces=True,
)

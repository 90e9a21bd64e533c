"""Recorded numbers of any kind as facts: JSON, JSONL, CSV, TSV and YAML, nested keys as names.

    results.json   {"all_layer": {"accuracy": 0.91}}       all_layer.accuracy = 0.91
    metrics.jsonl  {"step": 10, "split": "test", ...}      a name from the row's own words: test.step 10.loss
    table.csv      model,gsm8k                             a name from the row's text columns and the column
    mlruns/0/RUN   metrics/eval_loss: 17000 1.2 10         step 10.eval_loss; the folder or one file under metrics/

A list has a length (`n.<path>`); rows with a text or yes/no column have counts and shares by its value; a numeric
column of several rows has its mean, least and greatest value. Every fact says where it comes from.
"""

from __future__ import annotations

import csv
import io
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from veritune.errors import InputError
from veritune.records import JsonValue
from veritune.train.mlflow_files import metric_rows, run_of
from veritune.untrusted import parse_json, parse_yaml

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".yaml", ".yml")
MOST_FACTS = 200_000
"""Numbers of all record files together; beyond it a text is not what is checked but a data set."""
GROUPS = 30
"""Different values of a column that make groups; a column with more is an identifier or free text."""
LABEL = 80
"""Characters of a text that can name a row; longer ones are content."""

SOFT = frozenset(
    [
        "value",
        "values",
        "score",
        "scores",
        "result",
        "results",
        "metric",
        "metrics",
        "mean",
        "of",
        "the",
        "and",
        "a",
        "an",
        "on",
        "for",
        "in",
        "with",
        "by",
        "vs",
        "to",
        "per",
        "is",
        "at",
        "number",
        "count",
        "total",
        "percent",
        "pct",
        "model",
        "method",
        "our",
        "ours",
        "name",
        "type",
        "test",
        "eval",
        "evaluation",
        "all",
        "data",
        "main",
        "final",
        "overall",
        "it",
        "its",
        "this",
        "that",
        "as",
        "from",
        "or",
        "be",
        "are",
        "was",
        "were",
        "using",
        "used",
        "we",
    ]
)
"""Words that a name may hold and a text leave out: they tell no record from another."""
UNITS = frozenset(
    [
        "s",
        "ms",
        "us",
        "sec",
        "second",
        "min",
        "minute",
        "h",
        "hour",
        "mb",
        "gb",
        "gib",
        "mib",
        "kb",
        "k",
        "m",
        "b",
        "db",
        "x",
        "n",
        "hz",
        "khz",
        "mhz",
    ]
)
"""Words that a name may hold and a text leave out, and that tell records apart where both have them (`YOLO26s`)."""
SAME = {
    "acc": "accuracy", "accurate": "accuracy", "accuracies": "accuracy", "params": "parameter", "param": "parameter",
    "avg": "mean", "average": "mean", "val": "validation", "stdev": "std", "sd": "std", "stderr": "se",
    "err": "error", "faster": "speed", "speedup": "speed", "quicker": "speed", "throughput": "throughput",
    "lr": "lr", "ppl": "perplexity", "smaller": "size", "improvement": "gain", "improve": "gain", "improved": "gain",
    "improves": "gain", "increase": "gain", "increases": "gain", "language": "language", "prec": "precision",
    "latencies": "latency", "queries": "query", "families": "family", "accuracys": "accuracy", "reduce": "reduction",
    "reduces": "reduction", "saving": "saved", "less": "saved",
    # German, French, Spanish
    "genauigkeit": "accuracy", "fehler": "error", "fehlerrate": "error", "verlust": "loss", "modell": "model",
    "modelle": "model", "epoche": "epoch", "epochen": "epoch", "läufe": "run", "läufen": "run", "fragen": "question",
    "antworten": "answer", "beispiele": "example", "beispielen": "example", "zeilen": "row", "schritte": "step",
    "schritten": "step", "schichten": "layer", "regeln": "rule", "familien": "family", "sprachen": "language",
    "aufgaben": "task", "exactitude": "accuracy", "erreur": "error", "perte": "loss",
    "modèle": "model", "graine": "seed", "époque": "epoch", "réponse": "answer", "exemple": "example", "étape": "step",
    "ligne": "row", "couche": "layer", "exactitud": "accuracy", "pérdida": "loss", "modelo": "model",
    "semilla": "seed", "época": "epoch", "pregunta": "question", "respuesta": "answer", "ejemplo": "example",
    "fila": "row", "capa": "layer", "errores": "error",
}  # fmt: skip
PHRASES = {
    "learning rate": "lr", "lernrate": "lr", "taux d'apprentissage": "lr", "tasa de aprendizaje": "lr",
    "batchgröße": "batch size", "taille de lot": "batch size", "tamaño de lote": "batch size",
}  # fmt: skip
PHRASE = re.compile("|".join(re.escape(p).replace(r"\ ", "[-_ ]+") for p in PHRASES))
SAME_ZH = {
    "准确率": "accuracy", "错误率": "error", "损失": "loss", "种子": "seed", "轮": "epoch", "学习率": "lr",
    "样本": "example", "延迟": "latency", "模型": "model", "参数": "parameter", "问题": "question", "回答": "answer",
}  # fmt: skip
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{_CJK}]+|[^\W\d_{_CJK}]+|\d+")
"""A run of letters or of digits; Chinese, Japanese and Korean letters are a run of their own: no blank parts them."""
CAMEL = re.compile(r"\b[a-z]+(?:[A-Z][a-z]+)+\b")
CJK = re.compile(f"[{_CJK}]")


@lru_cache(maxsize=65_536)
def words(text: str) -> tuple[str, ...]:
    """The words of a name or text, in order: lower case, singular, letters and digits separated (`v2` is `v`, `2`)."""
    plain = unicodedata.normalize("NFKC", text).lower()
    plain = PHRASE.sub(lambda m: f" {PHRASES[re.sub('[-_ ]+', ' ', m.group())]} ", plain)
    if CJK.search(plain):
        for term, word in SAME_ZH.items():
            plain = plain.replace(term, f" {word} ")
    found: list[str] = []
    for match in WORD.finditer(plain):
        word = match.group()
        if CJK.search(word):
            found += [word[i : i + 2] for i in range(max(1, len(word) - 1))]
            continue
        word = SAME.get(word, word)
        if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
            word = word[:-1]
        found.append(SAME.get(word, word))
    return tuple(found)


def apart(text: str) -> str:
    """`valAccuracy` split into two words; a name that the page writes as one word stays whole (`cuTile`)."""
    return CAMEL.sub(_apart, text)


def _apart(match: re.Match[str]) -> str:
    return re.sub(r"(?=[A-Z])", " ", match.group())


def hard(text: str) -> frozenset[str]:
    """The words that distinguish records."""
    return frozenset(w for w in words(text) if w not in SOFT)


@dataclass(frozen=True, slots=True)
class Fact:
    """One recorded number. `parts` are the parts of its name, `source` its file and `pointer` its place in that file.

    `kind` is `number`, or what was counted from rows: `length`, `count`, `share`, `mean`, `least`, `greatest`.
    """

    parts: tuple[str, ...]
    value: float
    source: str
    pointer: str
    kind: str = "number"
    percent: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.parts)


def fact_words(fact: Fact, page: frozenset[str] = frozenset()) -> frozenset[str]:
    """The words of a fact's name that distinguish it from others; `page` are the words of the page being checked."""
    return frozenset().union(*(hard(p if hard(p) <= page else apart(p)) for p in fact.parts))


def needed_words(fact: Fact, page: frozenset[str] = frozenset()) -> frozenset[str]:
    """The words that a text must contain to name a fact: its own, without a unit that stands beside others
    (`time_s`)."""
    found = frozenset[str]()
    for part in fact.parts:
        own = hard(part if hard(part) <= page else apart(part))
        found |= (own - UNITS) or own
    return found


def is_record(path: Path) -> bool:
    """Whether a path names a record file: by its ending, or by its place in an MLflow run."""
    return path.suffix.lower() in SUFFIXES or run_of(path) is not None


def read_facts(paths: Iterable[Path]) -> list[Fact]:
    """The facts in some record files, in order. Raises InputError for a file that is missing, damaged or of an unknown
    kind, and for more numbers than one text can be checked against.
    """
    found: list[Fact] = []
    for path in paths:
        found += _distinct(_of(held_in(path), (), path.name, "", 0))
        if len(found) > MOST_FACTS:
            raise InputError(
                f"{path}: more than {MOST_FACTS:,} numbers in the record files.",
                fix="Give summaries instead of single scores.",
            )
    return found


def _distinct(facts: Iterable[Fact]) -> Iterator[Fact]:
    """Each name and value once."""
    seen: set[tuple[tuple[str, ...], float]] = set()
    for count, fact in enumerate(facts):
        if count > MOST_FACTS:
            break
        key = (fact.parts, fact.value)
        if key not in seen:
            seen.add(key)
            yield fact


def held_in(path: Path) -> JsonValue:
    """What a record file holds; rows of JSONL, tables and MLflow runs as a list. Raises InputError as `read_facts`."""
    if run_of(path) is not None:
        return [{**row} for row in metric_rows(path)]
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: expected a record file ({', '.join(SUFFIXES)}), found {suffix or 'no ending'}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no record file at {path}.", fix="Name an existing file.") from None
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not UTF-8 (byte {exc.start}).", fix="Save it as UTF-8.") from exc
    try:
        if suffix in (".csv", ".tsv"):
            return _csv(text, path, "\t" if suffix == ".tsv" else None)
        if suffix in (".jsonl", ".ndjson"):
            return _jsonl(text, path)
        content: JsonValue = parse_json(text, finite=False) if suffix == ".json" else parse_yaml(text)
        return content
    except (ValueError, yaml.YAMLError, RecursionError) as exc:
        raise InputError(
            f"{path} cannot be read as {suffix[1:]}: {' '.join(str(exc).split())[:160]}.", fix="Repair the file."
        ) from exc


def _jsonl(text: str, path: Path) -> list[JsonValue]:
    rows: list[JsonValue] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(parse_json(line, finite=False))
            except ValueError as exc:
                raise InputError(f"{path} line {number} is not JSON: {exc}.", fix="Repair the line.") from exc
    return rows


def _csv(text: str, path: Path, delimiter: str | None) -> list[JsonValue]:
    if delimiter is None:
        head = text.split("\n", 1)[0]
        delimiter = max((",", ";", "\t"), key=head.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as exc:
        raise InputError(f"{path} cannot be read as a table: {exc}.", fix="Repair the file.") from exc
    if not rows:
        return []
    titles = [title.strip() or f"column {i + 1}" for i, title in enumerate(rows[0])]
    comma = delimiter == ";"
    return [{t: _cell(v, comma) for t, v in zip(titles, row)} for row in rows[1:] if any(v.strip() for v in row)]


def _cell(text: str, comma: bool) -> JsonValue:
    """A table's cell: with `;` between the cells a decimal comma is a decimal sign."""
    text = text.strip()
    return text.replace(",", ".") if comma and re.fullmatch(r"[-+]?\d+,\d+", text) else text


def _number(held: JsonValue) -> tuple[float, bool] | None:
    """A number and whether it was written with a percent sign; None for anything else."""
    if isinstance(held, bool) or held is None:
        return None
    if isinstance(held, int | float):
        try:
            value = float(held)
        except OverflowError:
            return None
        return (value, False) if math.isfinite(value) else None
    if isinstance(held, str) and len(held) < 40:
        found = re.fullmatch(r"\s*([-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d{1,3})?)\s*(%?)\s*", held)
        if found and any(c.isdigit() for c in found.group(1)):
            try:
                value = float(found.group(1).replace(",", "").replace("−", "-"))
            except ValueError:
                return None
            return (value, bool(found.group(2))) if math.isfinite(value) else None
    return None


def _of(held: JsonValue, parts: tuple[str, ...], source: str, pointer: str, depth: int) -> Iterator[Fact]:
    """The facts of a value at a place of a file."""
    number = _number(held)
    if number is not None:
        yield Fact(parts, number[0], source, pointer, percent=number[1])
    elif depth > 30:
        return
    elif isinstance(held, Mapping):
        for key, inner in held.items():
            yield from _of(inner, (*parts, str(key)), source, f"{pointer}/{key}", depth + 1)
        yield from _spread(held, parts, source, pointer)
    elif isinstance(held, list):
        yield from _of_rows(held, parts, source, pointer, depth)


def _spread(held: Mapping[str, JsonValue], parts: tuple[str, ...], source: str, pointer: str) -> Iterator[Fact]:
    """How many entries a mapping of mappings has: runs by name, items by id."""
    if parts and len(held) > 1 and all(isinstance(v, Mapping) for v in held.values()):
        yield Fact(("n", *parts), float(len(held)), source, pointer, "length")


def _of_rows(
    rows: Sequence[JsonValue], parts: tuple[str, ...], source: str, pointer: str, depth: int = 0
) -> Iterator[Fact]:
    """A list: its length, its rows by their own words, and what they come to."""
    yield Fact(("n", *(parts or (Path(source).stem, "rows"))), float(len(rows)), source, pointer, "length")
    numbers = [n[0] for row in rows if (n := _number(row)) is not None]
    if len(numbers) == len(rows) and len(rows) > 1:
        yield from _of_column(numbers, parts, source, pointer)
    named = [_label(row) if isinstance(row, Mapping) else None for row in rows]
    for i, row in enumerate(rows):
        label = named[i]
        own = (*parts, *label) if label else (*parts, str(i))
        if isinstance(row, Mapping):
            for key, inner in row.items():
                if label is None or str(key) not in label:
                    yield from _of(inner, (*own, str(key)), source, f"{pointer}/{i}/{key}", depth + 1)
        else:
            yield from _of(row, own, source, f"{pointer}/{i}", depth + 1)
    mappings = [row for row in rows if isinstance(row, Mapping)]
    if len(mappings) > 1:
        yield from _groups(mappings, parts, source, pointer)


ORDER = ("seed", "step", "epoch", "layer", "rank", "k", "fold", "run", "iteration")
"""Numeric columns that name a row rather than measure it."""


def _label(row: Mapping[str, JsonValue]) -> tuple[str, ...] | None:
    """What names a row: its short texts and its numbers of order, those of a mapping inside it too."""
    found: list[str] = []
    for key, held in row.items():
        if isinstance(held, str) and _number(held) is None and 0 < len(held) <= LABEL and "\n" not in held:
            found.append(held)
        elif str(key).lower() in ORDER and _number(held) is not None:
            found.append(f"{key} {held}")
        elif isinstance(held, Mapping):
            found += [v for v in held.values() if isinstance(v, str) and 0 < len(v) <= LABEL and _number(v) is None]
    return tuple(found[:8]) or None


def _of_column(numbers: Sequence[float], parts: tuple[str, ...], source: str, pointer: str) -> Iterator[Fact]:
    """Mean, least and greatest of several values, and how far they lie apart."""
    yield Fact((*parts, "mean"), math.fsum(numbers) / len(numbers), source, pointer, "mean")
    yield Fact((*parts, "min"), min(numbers), source, pointer, "least")
    yield Fact((*parts, "max"), max(numbers), source, pointer, "greatest")
    yield Fact((*parts, "range"), max(numbers) - min(numbers), source, pointer, "range")


def _groups(
    rows: Sequence[Mapping[str, JsonValue]], parts: tuple[str, ...], source: str, pointer: str
) -> Iterator[Fact]:
    """Counts and shares by the value of a text or yes/no column; means of numeric columns, whole and by group."""
    keys = list(dict.fromkeys(str(key) for row in rows for key in row))
    columns = {k: [row.get(k) for row in rows] for k in keys}
    numeric = {
        k: [n[0] if (n := _number(v)) is not None else None for v in held]
        for k, held in columns.items()
        if k.lower() not in ORDER and any(_number(v) is not None for v in held)
    }
    for k, held in numeric.items():
        there = [v for v in held if v is not None]
        if len(there) > 1:
            yield from _of_column(there, (*parts, k), source, f"{pointer}/*/{k}")
    for k, values in columns.items():
        group = [v if isinstance(v, bool | str) else None for v in values]
        tally = Counter(g for g in group if g is not None and (isinstance(g, bool) or _number(g) is None))
        if not 1 < len(tally) + (len(tally) == 1 and sum(tally.values()) < len(rows)) <= GROUPS:
            continue
        for value, count in tally.items():
            label = (*parts, k) if value is True else (*parts, k, str(value))
            yield Fact((*label, "count"), float(count), source, f"{pointer}/*/{k}", "count")
            yield Fact((*label, "share"), count / len(rows), source, f"{pointer}/*/{k}", "share")
            if not isinstance(value, str):
                continue
            for column, numbers in numeric.items():
                there = [n for n, g in zip(numbers, group) if g == value and n is not None]
                if len(there) > 1:
                    mean = math.fsum(there) / len(there)
                    yield Fact((*parts, value, column, "mean"), mean, source, f"{pointer}/*/{column}", "mean")

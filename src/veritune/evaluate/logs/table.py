"""Tables of scores: CSV, JSONL, a JSON list of objects, Parquet; one score column, or one per system."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from veritune.counting import many
from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError, did_you_mean, first_line
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.values import (
    EXPECTED,
    choose,
    lines,
    listed_names,
    load_json,
    number,
    objects,
    optional,
    texts,
    walk,
)
from veritune.stats.table import Columns
from veritune.untrusted import parse_json, table_rows

ID_NAMES = (
    "item_id", "id", "doc_id", "sample_id", "question_id", "example_id", "task_id", "item", "idx", "index",
)  # fmt: skip
SCORE_NAMES = ("value", "score", "correct", "is_correct", "exact_match", "acc", "accuracy", "pass", "passed", "rating")
FAMILY_NAMES = ("family", "cluster", "group")
RUN_NAMES = ("seed", "run", "run_id")
RATER_NAMES = ("rater", "judge", "annotator")
SAMPLE_NAMES = ("sample", "epoch", "repeat", "completion_id")
EVAL_NAMES = ("eval", "task", "benchmark", "dataset")


def _read_table(path: Path, reading: Reading) -> Columns:
    """CSV, JSONL, or a JSON list of objects, with an id and a score column, or one score column per system."""
    table, eval_name = _one_eval(load_table(path), path, reading.eval)
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
            f"{path.name}: expected numbers; {score!r} holds objects with {listed_names(sorted(inner))}.",
            fix="Name a key inside the column: --metric COLUMN.KEY, or with --systems --metric KEY.",
        )

    def labels(name: str) -> Sequence[str | None]:
        values = table.values(name) if name else ()  # "" is a name too: pandas gives it to its index
        return optional([None if x is None or x == "" else str(x) for x in values])

    def whole(name: str, what: str) -> Sequence[str]:
        values = table.values(name) if name else ()
        gone = next((i for i, x in enumerate(values) if x is None or x == ""), None)
        if gone is not None:
            where = f"{path.name}, row {table.numbers[gone]}"
            raise ScoreError(f"{where}: expected a {what} in column {name!r}, found none.")
        return texts(values)

    return Columns(
        eval=eval_name,
        run=whole(run, "run") or [path.stem] * len(ids),
        item=texts(ids),
        value=numbers_of(table.values(score), path, table.numbers, score),
        reason=labels(_nested_reason(table, score)),
        family=labels(family),
        zone=labels("zone"),
        sample=whole(sample, "sample"),
        rater=whole(rater, "rater"),
        notes=tuple(f"{w} column {c}" for w, c in (("id", item), ("score", score), ("family", family)) if c),
        metric=metric,
        higher_is_better=known_direction(metric),
    )


def _nested_reason(table: Table, score: str) -> str:
    """The reason's column: beside a nested score where one stands there (`tuned.reason`), else `reason`."""
    beside = score.rpartition(".")[0] + ".reason"
    return beside if "." in score and any(x is not None for x in table.values(beside)) else "reason"


def _one_eval(table: Table, path: Path, asked: str | None) -> tuple[Table, str]:
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
    chosen = choose("eval", (x or "none" for x in labels), asked, path, "--eval")
    keep = [i for i, x in enumerate(labels) if (x or "none") == chosen]
    columns = {k: [c[i] for i in keep] for k, c in table.columns.items()}
    return Table(columns, [table.numbers[i] for i in keep]), chosen


def numbers_of(values: Sequence[Cell], path: Path, numbers: Sequence[int], column: str) -> list[float | None]:
    """Every value as a score; `numbers` are the row numbers for messages. Raises ScoreError as `number` does."""
    return [x if type(x) is float and x - x == 0 else number(x, path, n, column) for x, n in zip(values, numbers)]


@dataclass(frozen=True, slots=True)
class Table:
    """The named columns of one file, and each row's 1-based number (the line in JSONL; in CSV the header is not
    counted).
    """

    columns: Mapping[str, list[Any]]
    numbers: Sequence[int]

    def values(self, name: str) -> Sequence[Any]:
        """The values of a column, or of a dotted path inside a column of objects; empty if neither exists."""
        if name in self.columns:
            return self.columns[name]
        for place, char in enumerate(name):
            column = self.columns.get(name[:place]) if char == "." else None
            if column is None:
                continue
            found = [walk(cell, name[place + 1 :]) if isinstance(cell, Mapping) else None for cell in column]
            if any(x is not None for x in found):
                return found
        return ()

    def names(self) -> list[str]:
        """The names of all columns, and of keys of objects in columns as dotted paths."""
        nested = {
            f"{name}.{key}" for name, column in self.columns.items() for cell in column[:20]
            if isinstance(cell, Mapping) for key in cell
        }  # fmt: skip
        return sorted({n for n in self.columns if not any(p.startswith(f"{n}.") for p in nested)} | nested)


TableKind = Literal["csv", "jsonl", "json", "parquet"]


def table_kind(path: Path) -> TableKind:
    """The file format of a table, detected from its first bytes."""
    with path.open("rb") as file:
        head = file.read(256)
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    return "json" if text.startswith("[") else "jsonl" if text.startswith("{") else "csv"


def load_table(path: Path) -> Table:
    """The table in a file, with all its columns."""
    kind = table_kind(path)
    if kind == "csv":
        return _csv_table(path)
    if kind == "jsonl":
        return jsonl_table(path, None)
    if kind == "parquet":
        return parquet_table(path)
    return _from_rows(objects(load_json(path), path), None)


def parquet_table(path: Path) -> Table:
    """The columns of a Parquet file; structs become objects."""
    try:
        rows = list(table_rows(path, "parquet"))
    except (OSError, ValueError) as exc:
        raise ScoreError(f"{path.name}: expected a valid Parquet file: {first_line(exc)}.") from exc
    return Table({name: [row[name] for row in rows] for name in (rows[0] if rows else ())}, range(1, len(rows) + 1))


def _from_rows(rows: Sequence[tuple[int, Mapping[str, Cell]]], names: Sequence[str] | None) -> Table:
    header: dict[str, None] = dict.fromkeys(names or ())
    if names is None:
        for _, row in rows:
            if not row.keys() <= header.keys():
                header.update(dict.fromkeys(row))
    return Table({name: [row.get(name) for _, row in rows] for name in header}, [n for n, _ in rows])


_LARGE_BYTES = 4_000_000
"""Size above which plain JSONL goes through pyarrow: 3 times faster on a file of 100,000 scores."""


def jsonl_table(path: Path, names: Sequence[str] | None) -> Table:
    """The columns of a JSONL file, only `names` if given. Large files with plain text and numbers are read by pyarrow
    if it is installed; all others by a slower reader that names the line of an error.
    """
    if path.stat().st_size >= _LARGE_BYTES:
        fast = _arrow_table(path, names)
        if fast is not None:
            return fast
    return _from_rows(list(lines(path)), names)


def _arrow_table(path: Path, names: Sequence[str] | None) -> Table | None:
    with path.open("rb") as file:
        line = file.readline().decode("utf-8-sig", errors="replace")
    try:
        import pyarrow
        import pyarrow.json

        first = parse_json(line, finite=False)
    except (ImportError, ValueError):
        return None
    if not isinstance(first, dict):
        return None
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
    return Table(columns, range(1, table.num_rows + 1))


def _csv_table(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        delimiter = max(",;\t", key=first.count)
        file.seek(0)
        reader = csv.reader(file, delimiter=delimiter)
        header = next(reader, [])
        if len(header) < 2 or len(set(header)) < len(header):
            raise ScoreError(f"{path.name}: {EXPECTED}; found the first line {first.strip()[:80]!r}.")
        rows = [row for row in reader if row]
    bad = next((i for i, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if bad is not None:
        raise ScoreError(f"{path.name}, row {bad}: expected {many(len(header), 'cells')}, found {len(rows[bad - 1])}.")
    cells = [list(column) for column in zip(*rows)] or [[] for _ in header]
    return Table(dict(zip(header, cells)), range(1, len(rows) + 1))


def _column(table: Table, named: str | None, usual: Sequence[str], path: Path, what: str, option: str) -> str:
    """The named column, else the first usual name that is there, else "" (an error where `option` is given)."""
    if named is not None:
        if len(table.values(named)):
            return named
        near = did_you_mean(named, table.names())
        raise ScoreError(f"{path.name}: expected a column {named!r}, found {listed_names(table.names())}{near}.")
    found = next((name for name in usual if name in table.columns), "")
    if not found and option:
        raise ScoreError(
            f"{path.name}: expected a column with the {what} ({', '.join(usual[:4])}, ...), found "
            f"{listed_names(table.names())}.",
            fix=f"Name it with {option} COLUMN." + (_systems_hint(table, path) if what == "score" else ""),
        )
    return found


def _score_column(table: Table, reading: Reading, path: Path) -> tuple[str, str]:
    """The column of the scores and the name of what it measures, "" where the column is named after a system."""
    named = reading.metric
    if reading.system is not None:
        named = reading.system if named is None else f"{reading.system}.{named}"
        if named not in table.columns and not len(table.values(named)):
            raise ScoreError(
                f"{path.name}: expected a column {named!r} for the system {reading.system!r}, found "
                f"{listed_names(table.names())}.",
                fix="Name columns with scores: --systems names the columns, --metric a key inside each.",
            )
        return named, reading.metric or ""
    if named is not None:
        return _column(table, named, (), path, "score", "--metric"), named
    found = [name for name in SCORE_NAMES if name in table.columns]
    if not found:
        return _column(table, None, SCORE_NAMES, path, "score", "--metric"), ""
    chosen = choose("score column", found, None, path, "--metric")
    return chosen, chosen


_LABELS = frozenset((*ID_NAMES, *FAMILY_NAMES, *RUN_NAMES, *RATER_NAMES, *SAMPLE_NAMES, *EVAL_NAMES, "zone", "reason"))


def numeric_names(table: Table) -> list[str]:
    """Columns, nested ones too, that hold only numbers or nothing and are not an id, family or run."""

    def numeric(name: str) -> bool:
        try:
            return any(number(x, Path(), 0, name) is not None for x in table.values(name))
        except ScoreError:
            return False

    return [name for name in table.names() if name not in _LABELS and numeric(name)]


def _systems_hint(table: Table, path: Path) -> str:
    names = numeric_names(table)
    if len(names) < 2:
        return ""
    return f" One column per system: veritune compare {path.name} --systems {','.join(names[:8])}."


def _format(kind: TableKind) -> LogFormat:
    return LogFormat(kind, "a table", obeys("metric", "id", "family", "run", "rater", "sample", "system"), _read_table)


FORMATS = tuple(_format(kind) for kind in get_args(TableKind))

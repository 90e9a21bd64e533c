"""Files and objects in, rows out. A record that cannot be used is named, counted and handed back, never lost.

`load_rows(path)` reads JSONL (also .gz and .zst, streamed), Parquet, CSV, a JSON array, a folder that `datasets`
saved, a folder of shards, or a hub id; `rows_from(obj)` takes pandas, polars, pyarrow and `datasets` objects and lists
of dicts. Each record may hold chat `messages`, `prompt`/`completion`, or columns that the caller maps to roles.

sources/    bytes to records
fields.py   what each known field means here
columns.py  which columns are turns
turns.py    a record's turns, checked
tools.py    declared tools and calls
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from veritune.counting import many
from veritune.data.columns import Shape, family_column, find_shape, mapped, parse_columns
from veritune.data.fields import REASONING_KEYS, SYSTEM_COLUMNS
from veritune.data.refusals import labelled, nothing_found, number_label
from veritune.data.sources.files import find_files, from_hub, hash_files, kind_of
from veritune.data.sources.json_lines import read_json, read_jsonl
from veritune.data.sources.raw import (
    Cell,
    Raw,
    Reject,
    no_records,
    problem,
    show,
)
from veritune.data.sources.tables import is_typed, read_arrow, read_csv, read_parquet, records_of
from veritune.data.tools import is_empty, undeclared
from veritune.data.turns import TrainOn, check_turns, conversation
from veritune.errors import DataError
from veritune.records import Finding, Json, Message, Row, dumps

__all__ = [
    "Loaded",
    "TrainOn",
    "files_of",
    "load_files",
    "load_rows",
    "parse_columns",
    "require_clean",
    "rows_from",
    "used_twice",
]

_EMPTY: Json = {}
_NAMED = 20  # fields named in one note; the evidence has all
_COMPANIONS = (*SYSTEM_COLUMNS, "history")
_READERS: dict[str, Callable[[Path, str, str], Iterator[Raw]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
}


@dataclass(frozen=True, slots=True)
class Loaded:
    """The rows of a source and its rejected records. `n_read` counts all records: `len(rows)` plus the rejected ones.

    `notes` say what was decided on the reader's behalf: which columns were taken, which fields were not used.

    >>> Loaded(rows=(), rejects=(), source_sha256="", n_read=0).n_read
    0
    """

    rows: tuple[Row, ...]
    rejects: tuple[Finding, ...]
    source_sha256: str
    n_read: int
    notes: tuple[Finding, ...] = ()


# ---------------------------------------------------------------- the entrances


class LoadOptions(TypedDict, total=False):
    """What `load_rows` takes by name."""

    columns: Mapping[str, str] | None
    family_field: str | None
    id_field: str | None
    require_target: bool
    train_on: TrainOn


def load_rows(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    family_field: str | None = None,
    id_field: str | None = None,
    require_target: bool = True,
    train_on: TrainOn = "all",
) -> Loaded:
    """Every row of a file, folder or hub id; each record that cannot be used becomes a finding of severity `error`.

    `columns` maps roles to columns or to templates over columns (`{"user": "{table}\\n{question}", "assistant":
    "answer"}`; also `messages`, `prompt`, `completion`, `reasoning`, `tools`, and `ignore` for columns to leave alone).
    `id_field` names the id column; without it `id` is used where present, else `<file-stem>:<line>`; the empty string
    asks for line ids. With `require_target=False` (an eval's items) rows may end on the user's turn. `train_on="last"`
    takes the loss off every assistant turn but the last.
    Raises DataError when the source does not exist or `columns` names an unknown role.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> _ = file.write_text('{"prompt": "2 + 2?", "completion": "4"}\\n{"prompt": "3 + 3?"}\\n')
    >>> loaded = load_rows(file)
    >>> loaded.n_read, len(loaded.rows), loaded.rejects[0].source.endswith("rows.jsonl")
    (2, 1, True)
    """
    reading = RowReading(columns, family_field, id_field, require_target, train_on)
    files = find_files(path)
    if files is None:
        return _from_objects(from_hub(str(path)), str(path), reading)
    return _from_files(files, reading)


def load_files(
    files: list[tuple[Path, str, str]],
    *,
    columns: Mapping[str, str] | None = None,
    family_field: str | None = None,
    id_field: str | None = None,
    require_target: bool = True,
    train_on: TrainOn = "all",
) -> Loaded:
    """The same as `load_rows`, for files that `files_of` named: (file, name shown, id stem)."""
    return _from_files(files, RowReading(columns, family_field, id_field, require_target, train_on))


def files_of(path: str | Path) -> list[tuple[Path, str, str]]:
    """(file, name shown, id stem) of every file that `load_rows` would read. Raises DataError for a hub id."""
    files = find_files(path)
    if files is None:
        raise DataError(f"{path} is a hub id, but shards must be files.", fix="Download it to a folder first.")
    return files


def rows_from(  # noqa: PLR0913 - the same names as load_rows
    obj: Any,
    *,
    source: str = "rows",
    columns: Mapping[str, str] | None = None,
    family_field: str | None = None,
    id_field: str | None = None,
    require_target: bool = True,
    train_on: TrainOn = "all",
) -> Loaded:
    """Rows from a pandas, polars, pyarrow or `datasets` object, or any iterable of dicts or Rows, as `load_rows`."""
    return _from_objects(obj, source, RowReading(columns, family_field, id_field, require_target, train_on))


def require_clean(loaded: Loaded) -> Loaded:
    """`loaded` if nothing was rejected, else a DataError with the first five findings and the total.

    >>> require_clean(Loaded(rows=(), rejects=(), source_sha256="", n_read=0)).rejects
    ()
    """
    if not loaded.rejects:
        return loaded
    shown = "; ".join(f"{f.source}:{f.line}: {f.message}" for f in loaded.rejects[:5])
    more = f" (and {len(loaded.rejects) - 5} more)" if len(loaded.rejects) > 5 else ""
    raise DataError(
        f"{len(loaded.rejects)} of {loaded.n_read} records cannot be used: {shown}{more}.",
        fix="Correct or delete these records; `veritune audit FILE --drop clean.jsonl` writes the usable ones.",
    )


def _from_files(files: list[tuple[Path, str, str]], reading: RowReading) -> Loaded:
    maker = _Maker(reading)
    for raw in chain.from_iterable(_read_file(file, name, stem) for file, name, stem in files):
        maker.take(raw)
    return maker.done(hash_files(files))


def _from_objects(obj: Any, source: str, reading: RowReading) -> Loaded:
    maker, typed = _Maker(reading), is_typed(obj)
    for number, value in enumerate(records_of(obj), start=1):
        maker.take(Raw(source, number, value, stem=source, typed=typed))
    if maker.n_read == 0:
        maker.take(no_records(source))
    digest = hashlib.sha256()
    for row in maker.rows:
        digest.update(_digest_of(row))
    return maker.done(digest.hexdigest())


def _read_file(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """The records of one file. Whatever breaks the file becomes one finding that says where."""
    kind = kind_of(name) or "jsonl"
    start = Raw(name, 0, is_record=False)
    n = 0
    try:
        if file.stat().st_size == 0:
            message = "the file is empty"
            yield problem(start, "empty_file", message, expected="at least one record", found="0 bytes")
            return
        for raw in _READERS[kind](file, name, stem):
            n += raw.is_record
            yield raw
    except (OSError, EOFError, zlib.error) as error:
        message = f"reading stopped after {many(n, 'records')}: {error}"
        where = replace(start, line=n + 1)
        yield problem(where, "unreadable", message, expected=f"a whole {kind} file", found=show(error))
    except ValueError as error:
        message = f"this is not a valid {kind} file: {error}"
        where = replace(start, line=n + 1)
        yield problem(where, "unreadable", message, expected=f"a {kind} file", found=show(error))
    else:
        if n == 0:
            yield no_records(name)


def _digest_of(row: Row) -> bytes:
    try:
        return hashlib.sha256(dumps(row).encode("utf-8", "surrogatepass")).digest()
    except (TypeError, ValueError):
        return hashlib.sha256(repr(row).encode("utf-8", "surrogatepass")).digest()


# ---------------------------------------------------------------- records to rows


@dataclass(frozen=True, slots=True)
class RowReading:
    """How records become rows; the fields are those of `load_rows`."""

    columns: Mapping[str, str] | None = None
    family_field: str | None = None
    id_field: str | None = None
    require_target: bool = True
    train_on: TrainOn = "all"


class _Maker:
    """Turns raw records into rows and findings, in order; knows the ids met so far."""

    def __init__(self, reading: RowReading) -> None:
        self.reading, self.mapping = reading, mapped(reading.columns)
        self.rows: list[Row] = []
        self.rejects: list[Finding] = []
        self.n_read = 0
        self.notes = _Notes(reading, self.mapping.shape is None)
        self._line_of: dict[str, str] = {}

    def take(self, raw: Raw) -> None:
        if raw.note is not None:
            self.notes.files.append(raw.note)
            return
        if raw.problem is not None:
            self.n_read += raw.is_record
            self.rejects.append(raw.problem)
            return
        self.n_read += 1
        try:
            self.rows.append(self._row(raw))
        except Reject as bad:
            evidence = {"expected": bad.expected, "found": bad.found}
            self.rejects.append(
                Finding(f"load.{bad.check}", "error", bad.message, None, raw.source, raw.line, bad.field, evidence)
            )

    def done(self, sha256: str) -> Loaded:
        notes = tuple(self.notes.findings(self.rows, self.n_read))
        return Loaded(tuple(self.rows), tuple(self.rejects), sha256, self.n_read, notes)

    def _row(self, raw: Raw) -> Row:
        need_target = self.reading.require_target
        if isinstance(raw.value, Row):
            self._claim_id(raw.value.id, raw)
            check_turns(raw.value.messages, "messages", need_target)
            return raw.value
        if not isinstance(raw.value, Mapping):
            raise Reject("not_an_object", "the record is not an object", None, "an object", show(raw.value))
        mapping, value = self.mapping, raw.value
        shape = mapping.shape or find_shape(value, need_target=need_target, ignore=mapping.ignore)
        if shape is None:
            raise nothing_found(value)
        said = conversation(
            value, shape, mapping, need_target=need_target, typed=raw.typed, train_on=self.reading.train_on
        )
        row_id = self._id(raw)
        family = self._family(value)
        gone = said.used - set(shape.answers)
        meta = {str(k): v for k, v in value.items() if k not in gone} or _EMPTY
        self._claim_id(row_id, raw)
        self.notes.count(value, shape, said.used, said.messages, said.tools)
        if said.loose:
            self.notes.loose.update(said.loose)
        if said.unmapped:
            self.notes.unmapped.update(said.unmapped)
        label = labelled(value, mapping.ignore)
        if label is not None:
            self.notes.labels[label] += 1
        return Row(row_id, said.messages, raw.source, raw.line, family, meta, said.tools)

    def _id(self, raw: Raw) -> str:
        name = "id" if self.reading.id_field is None else self.reading.id_field
        value = raw.value.get(name) if name else None
        if value is None or value == "":
            if self.reading.id_field:
                raise Reject("missing_id", f"no id in column {name!r}", name, "a text or an integer", show(value))
            return f"{raw.stem}:{raw.line}"
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # as pandas writes integers where another row has none
        if isinstance(value, bool) or not isinstance(value, str | int):
            what = f"the id in {name!r} cannot be used as a name; --id-field '' names rows by file and line"
            raise Reject("bad_id", what, name, "a text or an integer", show(value))
        return str(value)

    def _claim_id(self, row_id: str, raw: Raw) -> None:
        here = f"{raw.source}:{raw.line}"
        first = self._line_of.setdefault(row_id, here)
        if first is not here:
            raise _used_twice(row_id, first, self.reading.id_field)

    def _family(self, value: Mapping[str, Cell]) -> str | None:
        name = self.reading.family_field
        if name is None:
            return None
        family = value.get(name)
        if family is None or family == "" or isinstance(family, Mapping | list | bool):
            message = f"no family name in column {name!r}"
            raise Reject("missing_family", message, name, "a text or a number", show(family))
        return str(family)


class _Notes:
    """What was decided on the reader's behalf, counted while rows are made."""

    def __init__(self, reading: RowReading, found_by_name: bool) -> None:
        self.reading, self.found_by_name = reading, found_by_name
        self.schemas: Counter[tuple[Shape, tuple[str, ...], frozenset[str]]] = Counter()
        self.shapes: Counter[tuple[Shape, tuple[str, ...]]] = Counter()
        self.unused: Counter[str] = Counter()
        self.loose: Counter[str] = Counter()
        self.unmapped: Counter[tuple[str, str]] = Counter()
        self.labels: Counter[str] = Counter()
        self.numbered: Counter[int] = Counter()
        self.files: list[Finding] = []
        self.n_calling = self.n_without_tools = 0
        self.undeclared: Counter[str] = Counter()

    def count(
        self,
        value: Mapping[str, Cell],
        shape: Shape,
        used: frozenset[str],
        messages: tuple[Message, ...],
        tools: tuple[Json, ...] | None,
    ) -> None:
        self.schemas[shape, tuple(name for name, held in value.items() if not is_empty(held)), used] += 1
        if "label" in value and "label" not in used:
            number = number_label(value["label"])
            self.numbered[-1 if number is None else number] += 1
        if any(m.tool_calls is not None for m in messages):
            self.n_calling += 1
            self.n_without_tools += tools is None
            self.undeclared.update(undeclared(messages, tools) if tools else ())

    def findings(self, rows: list[Row], n_read: int) -> Iterator[Finding]:
        yield from self.files
        self._sum_up()
        if self.found_by_name:
            for (shape, beside), n in self.shapes.most_common():
                message = f"{n} of {n_read} records were read from {shape}" + (
                    f", with {', '.join(beside)}" * bool(beside)
                )
                evidence = {"columns": [*shape.columns, *beside], "n": n, "n_read": n_read}
                yield Finding("load.columns", "note", message, evidence=evidence)
        if len({shape for shape, _ in self.shapes}) > 1:
            message = f"{len({shape for shape, _ in self.shapes})} different schemas are mixed in this source"
            yield Finding("load.mixed_schemas", "warning", message, evidence={"n_schemas": len(self.shapes)})
        yield from self._unmapped(len(rows))
        yield from self._tools()
        for name, n in self.labels.items():
            message = f"this is a preference set (KTO): {name} is true in {many(n, 'rows')}, read as good answers"
            yield Finding("load.preference_label", "note", message, evidence={"column": name, "n": n})
        if self.numbered[0] and not self.numbered[-1]:
            n = self.numbered[0]
            message = (
                f"label is 0 in {many(n, 'rows')}: in a KTO preference set these are rejected answers, but here they "
                "are "
                "trained on"
            )
            yield Finding("load.preference_label", "warning", message, evidence={"column": "label", "n": n})
        yield from self._unused(len(rows))
        family = family_column(rows) if self.reading.family_field is None and self.reading.require_target else None
        if family is not None:
            n = len({row.meta[family] for row in rows})
            message = f"column {family!r} has {n} values in {len(rows)} rows: it may name each row's original"
            fix = f"--family-field {family}"
            yield Finding("load.family_column", "note", f"{message} ({fix})", evidence={"column": family, "n": n})

    def _sum_up(self) -> None:
        """Columns taken and not used, from how often each set of columns was met."""
        known = {"id" if self.reading.id_field is None else self.reading.id_field, self.reading.family_field}
        for (shape, names, used), n in self.schemas.items():
            beside = tuple(name for name in names if name in used and name not in shape.columns)
            self.shapes[shape, beside] += n
            for name in names:
                if name not in used and name not in known:
                    self.unused[str(name)] += n

    def _unmapped(self, n_rows: int) -> Iterator[Finding]:
        for (name, way), n in self.unmapped.items():
            what = "turns" if name in _COMPANIONS else "reasoning" if name in REASONING_KEYS else "a passage"
            message = f"{name} holds {what} in {n} of {n_rows} rows and is not mapped, so it is not trained on: {way}"
            yield Finding("load.unmapped", "warning", message, evidence={"column": name, "n": n})

    def _tools(self) -> Iterator[Finding]:
        if self.n_without_tools:
            message = f"{self.n_without_tools} of {self.n_calling} rows that call tools declare none (no `tools`)"
            yield Finding("load.no_tools", "warning", message, evidence={"n": self.n_without_tools})
        if self.undeclared:
            names = ", ".join(f"{name} ({n})" for name, n in self.undeclared.most_common(_NAMED))
            message = f"called but not declared: {names}"
            yield Finding("load.undeclared_tool", "warning", message, evidence={"names": dict(self.undeclared)})

    def _unused(self, n_rows: int) -> Iterator[Finding]:
        counted = [(name, f"{n} of {n_rows} rows") for name, n in self.unused.most_common()]
        counted += [(f"messages[].{name}", f"{many(n, 'turns')}") for name, n in self.loose.most_common()]
        if counted:
            names = ", ".join(f"{name} ({n})" for name, n in counted[:_NAMED])
            more = f" and {len(counted) - _NAMED} more" if len(counted) > _NAMED else ""
            message = f"not used in training: {names}{more}"
            evidence = {"columns": dict(self.unused), "message_keys": dict(self.loose), "rows": n_rows}
            yield Finding("load.unused", "note", message, evidence=evidence)


def _used_twice(row_id: str, first: str, id_field: str | None) -> Reject:
    name = id_field or "id"
    way = f"if {name!r} is not a unique key, --id-field '' names rows by file and line"
    message = f"row id {row_id!r} was already used at {first}; {way}"
    return Reject("duplicate_id", message, name, "an id of its own", f"{row_id!r}, first seen at {first}")


def used_twice(row_id: str, here: str, first: Mapping[str, str], id_field: str | None = None) -> Finding:
    """The finding for a row, read at `here` (file:line), whose id an earlier row has already."""
    bad = _used_twice(row_id, first[row_id], id_field)
    source, _, line = here.rpartition(":")
    evidence = {"expected": bad.expected, "found": bad.found}
    return Finding(f"load.{bad.check}", "error", bad.message, None, source, int(line), bad.field, evidence)

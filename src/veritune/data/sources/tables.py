"""Readers of tables: CSV with its delimiter found, Parquet, Arrow, and the table objects of other packages."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from veritune.data.sources.files import kind_of, open_bytes
from veritune.data.sources.raw import Cell, Raw, problem
from veritune.errors import DataError
from veritune.records import Finding
from veritune.untrusted import table_rows

DELIMITERS = (",", ";", "\t", "|")


def read_csv(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """Rows of a CSV or TSV file. A delimiter other than the suffix implies is detected from the header and noted."""
    delimiter = "\t" if kind_of(name) == "tsv" else _delimiter_of(file)
    if delimiter != "," and kind_of(name) == "csv":
        message = f"{name} separates its columns by {delimiter!r}"
        note = Finding("load.delimiter", "note", message, source=name, evidence={"delimiter": delimiter})
        yield Raw(name, 0, is_record=False, note=note)
    with open_bytes(file) as stream:
        reader = csv.reader(_lines(stream), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            _refuse_twins(header)
            start = reader.line_num
            for fields in reader:
                start, number = reader.line_num, start + 1
                if not fields:
                    continue
                if len(fields) != len(header):
                    expected, found = f"{len(header)} fields", f"{len(fields)} fields"
                    message = f"{found} where the header names {len(header)}"
                    yield problem(Raw(name, number), "csv_fields", message, expected=expected, found=found)
                else:
                    yield Raw(name, number, dict(zip(header, fields)), stem=stem)
        except csv.Error as error:
            # The limit belongs to the process. The command line lifts it; a program that uses the library decides.
            lift = "; in Python, first call csv.field_size_limit(sys.maxsize)" if "field limit" in str(error) else ""
            raise ValueError(f"line {reader.line_num}: {error}{lift}") from None


def _delimiter_of(file: Path) -> str:
    """The delimiter that splits the header into most columns, the comma where several split it alike."""
    with open_bytes(file) as stream:
        head = stream.readline().decode("utf-8", "replace").removeprefix("\ufeff")
    try:
        counts = {d: len(next(csv.reader([head], delimiter=d), [])) for d in DELIMITERS}
    except csv.Error:
        return ","
    return max(DELIMITERS, key=lambda d: counts[d])


def _refuse_twins(header: list[str]) -> None:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two columns are called {twice!r}: rename one, or a value would be lost")


def _lines(stream: IO[bytes]) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            at = offset + error.start
            raise ValueError(f"not UTF-8: byte 0x{line[error.start]:02x} at offset {at}, line {number}") from None
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def read_parquet(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """Rows of a Parquet file."""
    for number, value in enumerate(table_rows(file, "parquet"), start=1):
        yield Raw(name, number, value, stem=stem, typed=True)


def read_arrow(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """Rows of an Arrow file or stream."""
    for number, value in enumerate(table_rows(file, "arrow"), start=1):
        yield Raw(name, number, value, stem=stem, typed=True)


def records_of(obj: Any) -> Iterator[Cell]:
    """The records of a table object, whose kind is recognised by its package, so that no such package is imported
    here."""
    package = type(obj).__module__.split(".")[0]
    if isinstance(obj, str | bytes | Path):
        raise DataError(f"rows_from takes tables, not a name such as {str(obj)!r}.", fix="Use load_rows for a path.")
    if package == "polars":
        yield from obj.collect().iter_rows(named=True) if hasattr(obj, "collect") else obj.iter_rows(named=True)
    elif package == "pandas":
        names = [str(c) for c in obj.columns]
        for values in obj.itertuples(index=False, name=None):
            yield {n: _no_nan(v) for n, v in zip(names, values)}
    elif package == "pyarrow":
        for batch in obj.to_batches() if hasattr(obj, "to_batches") else [obj]:
            yield from batch.to_pylist()
    elif isinstance(obj, Mapping):
        raise DataError(
            f"found a mapping with {', '.join(map(str, obj)) or 'nothing'}.",
            fix="Pass one split of it, or a list of dicts.",
        )
    else:
        yield from obj


def is_typed(obj: Any) -> bool:
    """Whether the table's objects have all keys of their column, with null for absent ones."""
    return type(obj).__module__.split(".")[0] in ("polars", "pyarrow", "datasets")


def _no_nan(value: Cell) -> Cell:
    """pandas marks a missing value with NaN, NaT or NA; here it is None."""
    if value is None or isinstance(value, str | list | dict):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
        if isinstance(value, list):
            return value
    return None if type(value).__name__ in ("NAType", "NaTType") or value != value else value

"""Parquet and Arrow files as plain Python values, through arro3 (33 MB; pyarrow takes 170 and half a second to import).

Values have the Python types that pyarrow's `to_pylist` returns; a test compares the two for every type of column.
arro3 0.9 ends the whole process on some damaged files (3 of 1,500 Parquet files with changed bytes, 34 of 400 Arrow
files), so a file is read once by a process of its own before this one opens it: 50 ms.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib import util
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

BATCH_ROWS = 4096
"""Rows that are in memory at once while a file is read."""
_PROBE = """
import sys
sys.path.insert(0, sys.argv[3])
from arro3 import io
name, kind = sys.argv[1:3]
try:
    for batch in getattr(io, kind)(name):
        pass
except BaseException as exc:
    sys.exit("DAMAGED " + str(exc).replace("called `Result::unwrap()` on an `Err` value: ", ""))
"""


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, batch by batch. Raises OSError, or ValueError where the file is damaged."""
    yield from _rows(_parquet_batches(path))


def parquet_column(path: Path, name: str) -> Iterator[Any]:
    """The values of one column of a Parquet file. Raises KeyError if the column is absent, OSError or ValueError as
    `parquet_rows` does.
    """
    for batch in _parquet_batches(path):
        yield from _values(batch, _place(batch, name))


def parquet_pick(path: Path, name: str, values: Collection[Any]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file whose column `name` holds one of these values; other rows are not decoded. Raises as
    `parquet_column`.
    """
    for batch in _parquet_batches(path):
        for n, value in enumerate(_values(batch, _place(batch, name))):
            if value in values:
                yield from _rows([batch.slice(n, 1)])


def ipc_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow IPC stream or file, as `datasets` saves them. Raises OSError or ValueError."""
    from arro3 import io

    with path.open("rb") as file:
        kind = "read_ipc" if file.read(6) == b"ARROW1" else "read_ipc_stream"
        _refuse_damaged(path, kind)
        file.seek(0)
        yield from _rows(getattr(io, kind)(file))


def write_parquet(stream: IO[bytes], columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns as Parquet: text, whole numbers, floats, and lists and records of these. The bytes reproduce."""
    from arro3.core import Table
    from arro3.io import write_parquet

    table = Table.from_pydict({name: _array(values) for name, values in columns.items()})
    write_parquet(table, stream, compression="zstd(1)")


def _refuse_damaged(path: Path, kind: str) -> None:
    """Raises ValueError for a file that arro3 cannot read to its end, OSError where it cannot be opened."""
    with path.open("rb"):
        about = path.stat()
    problem = _problem(str(path.resolve()), kind, about.st_size, about.st_mtime_ns)
    if problem:
        raise ValueError(problem)


@lru_cache(maxsize=256)
def _problem(name: str, kind: str, _size: int, _mtime_ns: int) -> str:
    """What another process met when it read the file; empty where it met nothing."""
    spec = util.find_spec("arro3")
    assert spec is not None and spec.submodule_search_locations
    packages = str(Path(next(iter(spec.submodule_search_locations))).parent)
    command = [sys.executable, "-I", "-S", "-c", _PROBE, name, kind, packages]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        return ""
    said = done.stderr.decode("utf-8", "replace")
    if "DAMAGED " in said:
        return " ".join(said.rsplit("DAMAGED ", 1)[1].split())[:200]
    return f"its reader was ended by signal {-done.returncode}" if done.returncode < 0 else "its reader failed"


def _parquet_batches(path: Path) -> Iterator[Any]:
    from arro3.io import read_parquet

    _refuse_damaged(path, "read_parquet")
    with path.open("rb") as file:
        yield from read_parquet(file, batch_size=BATCH_ROWS)


def _place(batch: Any, name: str) -> int:
    names: list[str] = batch.schema.names
    if name not in names:
        raise KeyError(name)
    return names.index(name)


def _rows(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        names = batch.schema.names
        if len(set(names)) < len(names):
            raise ValueError("expected distinct column names, found a duplicate")
        columns = {name: _values(batch, i) for i, name in enumerate(names)}
        for n in range(batch.num_rows):
            yield {name: values[n] for name, values in columns.items()}


def _values(batch: Any, i: int) -> list[Any]:
    from arro3.core import ChunkedArray

    try:
        values: list[Any] = ChunkedArray([batch.column(i)]).to_pylist()
    except (OSError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as exc:  # pyo3's PanicException is no Exception; arro3's own errors are plain `Exception`
        raise ValueError(f"column {batch.schema.names[i]!r}: {exc}") from exc
    return values


def _array(values: Sequence[Any]) -> Any:
    """An arro3 array of what the first value that is not None is; its constructor takes no lists or records."""
    from arro3.core import Array, DataType, Field, list_array, struct_array

    first = next((value for value in values if value is not None), "")
    if isinstance(first, Mapping):
        names = list(first)
        other = next((value for value in values if value is None or value.keys() != first.keys()), first)
        if other is not first:
            found = "null" if other is None else ", ".join(map(str, other))
            raise ValueError(f"records of one column have different fields: {', '.join(map(str, names))}, then {found}")
        parts = [_array([value[name] for value in values]) for name in names]
        return struct_array(parts, fields=[Field(n, part.type) for n, part in zip(names, parts)])
    if isinstance(first, list | tuple):
        offsets = [0, *accumulate(map(len, values))]
        return list_array(Array(offsets, DataType.int32()), _array(_flat(values)))
    kinds = {bool: DataType.bool(), int: DataType.int64(), float: DataType.float64(), str: DataType.string()}
    return Array(values, kinds[type(first)])


def _flat(lists: Iterable[Sequence[Any]]) -> list[Any]:
    return [value for one in lists for value in one]

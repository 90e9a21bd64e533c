"""Parquet and Arrow through arro3: the same values as pyarrow gives, what is written comes back, damage is named."""

from __future__ import annotations

import datetime as dt
import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from veritune import arrow
from veritune.untrusted import UnusableError, table_rows
from veritune.zstd import ZstdFile, decompress

COLUMNS: dict[str, Any] = {
    "string": pa.array(["a", None, "ü"]),
    "large_string": pa.array(["a", None, "b"], pa.large_string()),
    "string_view": pa.array(["a", None, "b" * 30], pa.string_view()),
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([1, None, 2**64 - 1], pa.uint64()),
    "float32": pa.array([1.1, None, 3.3], pa.float32()),
    "float64": pa.array([1.5, None, float("inf")]),
    "bool": pa.array([True, None, False]),
    "binary": pa.array([b"x", None, b"\xff"]),
    "null": pa.array([None, None, None]),
    "date": pa.array([dt.date(2020, 1, 1), None, dt.date(1969, 1, 1)]),
    "timestamp": pa.array([dt.datetime(2020, 1, 1, 1, 2, 3, 4), None, dt.datetime(1960, 1, 1)], pa.timestamp("us")),
    "zoned": pa.array([1, None, 2], pa.timestamp("us", "Europe/Zurich")),
    "time": pa.array([1, None, 2], pa.time64("us")),
    "duration": pa.array([1, None, 2], pa.duration("us")),
    "decimal": pa.array([Decimal("1.20"), None, Decimal("-3.40")], pa.decimal128(10, 2)),
    "dictionary": pa.array(["x", None, "y"]).dictionary_encode(),
    "list": pa.array([[1, None], None, []]),
    "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
    "messages": pa.array([[{"role": "user", "content": "hi"}], [], None]),
    "fixed_list": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
}


def test_every_type_of_column_reads_as_pyarrow_reads_it(tmp_path: Path) -> None:
    table = pa.table(COLUMNS)
    path = tmp_path / "rows.parquet"
    pq.write_table(table, path)
    assert list(map(repr, arrow.parquet_rows(path))) == list(map(repr, pq.read_table(path).to_pylist()))
    for open_writer in (pa.ipc.new_file, pa.ipc.new_stream):
        with open_writer(str(tmp_path / "rows.arrow"), table.schema) as writer:
            writer.write_table(table)
        assert list(map(repr, arrow.ipc_rows(tmp_path / "rows.arrow"))) == list(map(repr, table.to_pylist()))


WRITTEN = {
    "id": ["a", "b"],
    "line": [1, 2],
    "ids": [[1, 2], []],
    "messages": [[{"role": "u", "content": "x"}], [{"role": "u", "content": "y"}, {"role": "a", "content": "z"}]],
    "similarity": [None, 0.5],
    "family": [None, None],
}


def test_rows_are_picked_by_a_column_and_a_column_is_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.parquet"
    with path.open("wb") as stream:
        arrow.write_parquet(stream, {"id": [f"r{i}" for i in range(9000)], "line": list(range(9000))})
    assert list(arrow.parquet_pick(path, "id", {"r3", "r8999"})) == [
        {"id": "r3", "line": 3},
        {"id": "r8999", "line": 8999},
    ]
    assert list(arrow.parquet_column(path, "line")) == list(range(9000))
    with pytest.raises(KeyError):
        list(arrow.parquet_column(path, "no"))


def test_what_is_written_comes_back_and_pyarrow_reads_it_too(tmp_path: Path) -> None:
    first, second = io.BytesIO(), io.BytesIO()
    arrow.write_parquet(first, WRITTEN)
    arrow.write_parquet(second, WRITTEN)
    assert first.getvalue() == second.getvalue()
    path = tmp_path / "w.parquet"
    path.write_bytes(first.getvalue())
    expected = [{name: values[n] for name, values in WRITTEN.items()} for n in range(2)]
    assert list(arrow.parquet_rows(path)) == expected == pq.read_table(path).to_pylist()


@pytest.mark.parametrize(("at", "value"), [(172, 255), (14, 0), (332, 127)])
def test_a_changed_parquet_file_is_an_error_and_never_the_end_of_the_process(
    tmp_path: Path, at: int, value: int
) -> None:
    """On each of these arro3 0.9.1 ends the process that reads them: a panic that cannot unwind."""
    path = tmp_path / "rows.parquet"
    with path.open("wb") as stream:
        arrow.write_parquet(stream, {"completion": [f"a{i}" for i in range(40)]})
    content = bytearray(path.read_bytes())
    content[at] = value
    path.write_bytes(content)
    with pytest.raises(UnusableError) as caught:
        list(table_rows(path, "parquet"))
    assert str(caught.value) and "\n" not in str(caught.value)


def test_a_zstandard_stream_of_several_frames_reads_whole_and_a_cut_one_is_an_error(tmp_path: Path) -> None:
    import zstandard

    frames = zstandard.compress(b"abc\n" * 1000) + zstandard.compress(b"def\n" * 3)
    assert decompress(frames, 1 << 20) == b"abc\n" * 1000 + b"def\n" * 3
    with ZstdFile(io.BytesIO(frames)) as file:
        assert len(io.BufferedReader(file).readlines()) == 1003
    for broken in (frames[:-3], frames[:10], b"garbage"):
        with pytest.raises(OSError, match=r"cut off|frame"):
            decompress(broken, 1 << 20)
    with pytest.raises(OSError, match="expected at most 100 bytes"):
        decompress(frames, 100)

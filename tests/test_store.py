"""The study folder: whole files or none, one writer, a timeline that shows edits, damage that is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import FormatError, LockedError, MachineError, StaleError, StoreError
from veritune.records import FORMAT_VERSION
from veritune.store import (
    Store,
    atomic,
    hash_of,
    read_json,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
    write_parquet,
    write_text,
)


def python(code: str, *args: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with Veritune's store imported."""
    head = "import os, sys, time\nfrom pathlib import Path\nfrom veritune.store import *\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> int:
    """Close the pipes and wait."""
    process.communicate()
    return process.returncode


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no `mount` here")
    if done.returncode != 0:
        pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


# ---------------------------------------------------------------- atomicity


def test_a_writer_killed_in_the_middle_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"old": True})
    process = python(
        """
        with atomic(Path(sys.argv[1])) as stream:
            stream.write('{"new": tr')
            stream.flush()
            print("writing", flush=True)
            time.sleep(60)
        """,
        path,
    )
    assert said(process) == "writing"
    assert len(list(tmp_path.iterdir())) == 2
    process.kill()
    assert end(process) == -signal.SIGKILL
    assert read_json(path) == {"old": True}
    assert Store(tmp_path).clear_partial() == 1
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_writer_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic(tmp_path / "x.txt") as stream:
        stream.write("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_record_with_nan_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"v": 1.0}])
    with pytest.raises(ValueError, match=r"\$\.v is nan"):
        write_jsonl(tmp_path / "r.jsonl", [{"v": 2.0}, {"v": float("nan")}])
    assert read_jsonl(tmp_path / "r.jsonl") == [{"v": 1.0}]


def test_the_same_record_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_json(tmp_path / f"{name}.json", {"z": 1, "a": [1.5, None, "ü"]})
        write_parquet(tmp_path / f"{name}.parquet", {"x": [1, 2], "y": ["a", None]})
    assert sha256_file(tmp_path / "a.json") == sha256_file(tmp_path / "b.json")
    assert sha256_file(tmp_path / "a.parquet") == sha256_file(tmp_path / "b.parquet")
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})


# ---------------------------------------------------------------- one process at a time


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    holder = python(
        """
        with Store(Path(sys.argv[1])).lock():
            print("held", flush=True)
            sys.stdin.read()
        """,
        tmp_path,
    )
    assert said(holder) == "held"
    with pytest.raises(LockedError, match=rf"in use by process {holder.pid} on "), Store(tmp_path).lock():
        pass
    assert f"process {holder.pid}" in str(Store(tmp_path).holder())
    holder.kill()
    end(holder)
    assert Store(tmp_path).holder() is None
    with Store(tmp_path).lock():
        pass


# ---------------------------------------------------------------- disks


def test_a_full_disk_is_named_and_leaves_the_old_record(small_disk: Path) -> None:
    path = small_disk / "record.txt"
    write_text(path, "old")
    with pytest.raises(MachineError, match=r"the disk is full: .*record\.txt was not written\. Free some space"):
        write_text(path, "x" * 4_000_000)
    assert path.read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["record.txt"]


def test_a_full_disk_breaks_no_timeline(small_disk: Path) -> None:
    store = Store(small_disk)
    store.log("one")
    with pytest.raises(MachineError, match="disk is full"):
        store.log("two", text="x" * 4_000_000)
    store.check_events()
    store.log("three")
    store.check_events()
    assert [e["event"] for e in store.events()] == ["one", "three"]


def test_a_read_only_folder_is_named(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (lambda: write_text(small_disk / "x", "y"), lambda: Store(small_disk).log("x")):
        with pytest.raises(StoreError, match=r"cannot write .*Read-only file system.*Make the folder writable"):
            write()
    with pytest.raises(StoreError, match="cannot write"), Store(small_disk).lock():
        pass


def test_too_little_space_is_told_before_work_starts(small_disk: Path) -> None:
    Store(small_disk).need_space(1000)
    with pytest.raises(MachineError, match=r"0\.00 GB free, the study needs about 5\.00 GB"):
        Store(small_disk).need_space(5_000_000_000)


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", b"[1, 2]", b"[" * 100_000])
def test_a_damaged_record_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"record\.json"):
        read_json(tmp_path / "record.json")


def test_a_damaged_line_is_named_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(FormatError, match=r"r\.jsonl line 2 is damaged"):
        read_jsonl(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("written", "stated"), [(1, "format 1"), (FORMAT_VERSION + 1, "format 3"), (None, "no format"), ("2", 'format "2"')]
)
def test_a_folder_of_another_format_is_refused(tmp_path: Path, written: Any, stated: str) -> None:
    write_json(tmp_path / "contract.lock.json", {"format": written, "entries": []})
    with pytest.raises(FormatError, match=rf"expected format {FORMAT_VERSION}, found {stated}"):
        Store(tmp_path).check_format()


@pytest.mark.parametrize("text", ["line\u2028separator", "next\u0085line", "para\u2029graph", "a\x1cb\x0bc\r\nd"])
def test_text_that_only_looks_like_a_line_end_comes_back_whole(tmp_path: Path, text: str) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"output": text}, {"output": "b"}])
    assert [r["output"] for r in read_jsonl(tmp_path / "r.jsonl")] == [text, "b"]
    store = Store(tmp_path)
    store.log("amended", reason=text)
    store.log("ran")
    assert [e["event"] for e in store.events()] == ["amended", "ran"]
    store.check_events()


def test_is_done_asks_for_the_same_inputs(tmp_path: Path) -> None:
    store, path = Store(tmp_path), tmp_path / "record.json"
    assert not store.is_done(path, "a")
    write_json(path, {"input_hash": "a"})
    assert store.is_done(path, "a")
    assert not store.is_done(path, "b")


# ---------------------------------------------------------------- the timeline


def test_a_half_written_event_is_dropped_before_the_next(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.log("frozen", n=1)
    with store.events_file.open("a") as stream:
        stream.write('{"event":"ha')
    assert [e["event"] for e in store.events()] == ["frozen"]
    store.log("ran")
    assert [e["event"] for e in store.events()] == ["frozen", "ran"]
    store.check_events()


@pytest.mark.parametrize("damage", ["edit", "drop", "swap", "insert"])
def test_an_edited_timeline_is_noticed(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    for n in range(4):
        store.log("ran", n=n)
    store.check_events()
    lines = store.events_file.read_text().splitlines()
    if damage == "edit":
        lines[1] = lines[1].replace('"n":1', '"n":7')
    elif damage == "drop":
        del lines[1]
    elif damage == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines.insert(1, lines[1])
    store.events_file.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(StaleError, match=r"events\.jsonl line [234] (does not continue|was edited)"):
        store.check_events()


def test_an_event_is_logged_once_for_the_same_facts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.log_once("frozen", contract="a")
    store.log_once("frozen", contract="a")
    store.log_once("frozen", contract="b")
    assert [e["contract"] for e in store.events()] == ["a", "b"]


def test_paths_in_records_are_relative(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.relative(store.run("r1") / "manifest.json") == "runs/r1/manifest.json"
    assert os.sep not in store.relative(store.audit("x"))[0]

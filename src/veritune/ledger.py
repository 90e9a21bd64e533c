"""Append-only lists of entries, each with the hash of the one before it. One chain for every list that only grows.

    Ledger      one entry a line (JSONL): the timeline, release gates, data lineage, retirements
    Document    one JSON object with a list of entries, which other files point into: the contract
    link, follow    the chain itself, for lists kept elsewhere: a registry's channels, one file an entry

An entry is a JSON object; `previous` is the `hash` of the entry before it (null for the first) and `hash` the SHA-256
of its own canonical JSON without `hash`. So an entry that was edited, taken out, put in or moved is found, the last one
too. What a chain cannot find is the loss of its newest entries, or a list rewritten from the first to the last: that
takes a hash kept elsewhere (see docs/security.md).

Lines end at a newline and nowhere else: JSON keeps U+2028 and U+0085 as they are, and `str.splitlines` would cut there.
A last line without a newline was torn by a kill or a full disk; it was never reported as written, so the next append
removes it. Every append holds a lock on the file, is flushed to disk, and is taken back whole where that fails.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune.errors import FormatError, InputError, StaleError
from veritune.files import (
    disk_errors,
    hash_of,
    make_folder,
    plain,
    read_json,
    remove,
    remove_left,
    sha256_text,
    sync_folder,
    write_json,
)
from veritune.records import JsonLike, JsonValue, dumps, to_json

Entry = dict[str, Any]
CHAIN = ("previous", "hash")
FIX = "Restore the file from a copy."
_CHECKED: dict[Path, tuple[bytes, list[Entry]]] = {}
"""The ledger that was read last: its bytes, and its entries as they were checked."""
TAIL = 1 << 16
"""Bytes read from the end of a ledger at a time to find its last line."""


def link(body: Mapping[str, JsonLike], previous: str | None) -> Entry:
    """A new entry chained to the one whose hash is `previous` (None: the first entry). `body` must not use the chain's
    own keys.
    """
    taken = [key for key in CHAIN if key in body]
    if taken:
        raise ValueError(f"{taken[0]!r} is a key of the chain and cannot be a field of an entry")
    whole = {**to_json(body), "previous": previous}
    return {**whole, "hash": hash_of(whole)}


def follow(entry: object, previous: str | None, where: str) -> Entry:
    """`entry`, checked: it is an object, its hash is right and it follows `previous`. `where` names it in errors.

    Raises FormatError where it is no entry at all, StaleError where it was edited or does not follow.
    """
    if not isinstance(entry, dict):
        raise FormatError(f"{where} is not a valid entry: expected a JSON object.", fix=FIX)
    known = entry.get("hash")
    if not isinstance(known, str):
        raise FormatError(
            f"{where} has no hash: it was edited, or written by an earlier format.",
            fix="Restore the file from a copy, or start a new folder.",
        )
    if _digest({key: value for key, value in entry.items() if key != "hash"}) != known:
        raise StaleError(f"{where} was edited after it was written.", fix=FIX)
    if entry.get("previous") != previous:
        raise StaleError(
            f"{where} does not continue the entry before it: entries were edited, removed or moved.",
            fix=FIX,
        )
    return entry


def follow_all(entries: Sequence[object], where: Callable[[int], str], previous: str | None = None) -> list[Entry]:
    """Every entry of a list, checked from the first one, which must follow `previous`; `where(i)` names the i-th (from
    0) in errors.
    """
    checked: list[Entry] = []
    for i, entry in enumerate(entries):
        checked.append(follow(entry, checked[-1]["hash"] if checked else previous, where(i)))
    return checked


def _digest(body: Mapping[str, JsonValue]) -> str | None:
    """The hash of an entry's body; None where it holds what no record holds (NaN, half a character, endless depth)."""
    try:
        return sha256_text(_canonical(body))
    except (ValueError, TypeError, RecursionError):
        return None


def _canonical(value: object) -> str:
    """`records.dumps` of what came out of a JSON reader: plain already, so that it need not be walked in Python.

    A timeline of 5,000 cells is read often.
    """
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Ledger:
    """Hash-chained entries in a JSONL file that is only ever appended to.

    With `head` the hash of the newest entry also lies in a file beside it, for ledgers that no other record speaks of:
    then a lost newest entry is found too. The head is written after the entry, so it may be one behind after a kill.
    """

    def __init__(self, path: Path, *, head: bool = False) -> None:
        self.path = path
        self.head = path.with_name(f"{path.stem}.head.json") if head else None

    def read(self) -> list[Entry]:
        """Every entry, oldest first, after the chain was recomputed; empty if there is no file.

        Raises FormatError or StaleError naming the first line that is not as it was written.
        """
        there = self.path.exists()
        entries = self._checked(self._whole()) if there else []
        newest = read_json(self.head).get("hash") if self.head is not None and self.head.exists() else None
        if newest is not None and all(entry["hash"] != newest for entry in entries):
            what = "lost its newest entries" if there else "is gone"
            raise StaleError(f"{self.path} {what}: {self.head} records entry {str(newest)[:12]}.", fix=FIX)
        return entries

    def newest(self, *events: str) -> Entry | None:
        """The last entry with one of these events, checked by its own hash; None if there is none.

        Entries around it are not read: `read` follows the chain. A study of 10,000 cells asks this once a cell.
        Raises FormatError or StaleError where that entry is damaged.
        """
        if not self.path.exists():
            return None
        content = plain(self.path).read_bytes()
        end = content.rfind(b"\n") + 1
        marks = [f'"event":"{event}"'.encode() for event in events]
        while (at := max(content.rfind(mark, 0, end) for mark in marks)) >= 0:
            start = content.rfind(b"\n", 0, at) + 1
            entry = self._parsed(self._decoded(content[start : content.index(b"\n", at)]), "that begins this event")
            known = follow(entry, entry.get("previous") if isinstance(entry, dict) else None, self._at("of this event"))
            if known.get("event") in events:
                return known
            end = start
        return None

    def salvage(self) -> tuple[list[Entry], str | None]:
        """The entries whose own hash is right, wherever they are in the file, and what is wrong with the file (None:
        nothing).

        For lists that inform and must not be able to stop anybody by being broken.
        """
        kept: list[Entry] = []
        problem: str | None = None
        try:
            self.read()
            lines = self._lines() if self.path.exists() else []
        except (FormatError, StaleError) as exc:
            problem = exc.message
            lines = plain(self.path).read_bytes().decode("utf-8", "replace").split("\n") if self.path.exists() else []
        except OSError as exc:
            return [], f"{self.path} cannot be read: {exc.strerror}"
        for number, line in enumerate(lines, start=1):
            with contextlib.suppress(FormatError, StaleError):
                entry = self._parsed(line, number)
                kept.append(follow(entry, entry.get("previous") if isinstance(entry, dict) else None, ""))
        return kept, problem

    def append(self, body: Mapping[str, Any]) -> Entry:
        """Append one entry and flush it to disk, after removing an incomplete line that a killed writer left.

        Raises StaleError or FormatError where the last entry is damaged, InputError for text that UTF-8 cannot hold,
        MachineError or StoreError where the disk refuses; the ledger is then as it was.
        """
        with disk_errors(self.path), self._opened() as stream:
            last, end = self._last(stream)
            entry = link(body, last)
            line = self._encoded(entry)
            stream.truncate(end)
            try:
                _write(stream, line)
                os.fsync(stream.fileno())
                if end == 0:
                    sync_folder(self.path.parent)
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(end)
                    os.fsync(stream.fileno())
                raise
            if self.head is not None:
                self._write_head(self.head, entry["hash"])
        return entry

    def settle(self, newest: str) -> None:
        """Set the head file to `newest`, the hash of the last entry, in case a killed writer did not update it."""
        if self.head is not None and not (self.head.exists() and read_json(self.head).get("hash") == newest):
            self._write_head(self.head, newest)

    @staticmethod
    def _write_head(head: Path, newest: str) -> None:
        remove_left(head)  # a writer that was killed here left its temporary file, which nothing else looks at
        write_json(head, {"hash": newest})

    def append_once(self, body: Mapping[str, Any], apart_from: Sequence[str] = ()) -> Entry | None:
        """Append the entry unless an equal one exists (ignoring the keys in `apart_from`); returns the new entry or
        None.
        """
        aside = {*CHAIN, *apart_from}
        wanted = {key: value for key, value in to_json(body).items() if key not in aside}
        if any({k: v for k, v in entry.items() if k not in aside} == wanted for entry in self.read()):
            return None
        return self.append(body)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[io.FileIO]:
        """The file, unbuffered and held by this process alone. The lock ends with the process, however it ends."""
        make_folder(self.path.parent)
        with open(self.path, "a+b", buffering=0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _last(self, stream: io.FileIO) -> tuple[str | None, int]:
        """Hash of the last whole line's entry, and where that line ends; only the end of the file is read."""
        size = stream.seek(0, os.SEEK_END)
        start, block = size, b""
        while start > 0 and block.count(b"\n") < 2:
            start = max(start - TAIL, 0)
            stream.seek(start)
            block = _read(stream, size - start)
        end = start + block.rfind(b"\n") + 1
        if end == 0 or b"\n" not in block:
            return None, 0
        line = block[: block.rfind(b"\n")].rpartition(b"\n")[2]
        entry = self._parsed(self._decoded(line), "last")
        previous = entry.get("previous") if isinstance(entry, dict) else None
        return follow(entry, previous, self._at("last"))["hash"], end

    def _whole(self) -> bytes:
        """The file without a torn last line."""
        content = plain(self.path).read_bytes()
        return content[: content.rfind(b"\n") + 1]

    def _lines(self) -> list[str]:
        """Whole lines; a torn last one is left out."""
        return self._decoded(self._whole()).split("\n")[:-1]

    def _checked(self, content: bytes) -> list[Entry]:
        """Every entry, checked. What this process has checked already, byte for byte, is not checked again: a study of
        5,000 cells reads its timeline at every cell, and four times to verify."""
        known, entries = _CHECKED.get(self.path, (b"", []))
        if not content.startswith(known):
            known, entries = b"", []
        first, previous = len(entries), entries[-1]["hash"] if entries else None
        parsed = [
            self._parsed(line, first + n)
            for n, line in enumerate(self._decoded(content[len(known) :]).split("\n")[:-1], start=1)
        ]
        entries = [*entries, *follow_all(parsed, lambda i: self._at(first + i + 1), previous)]
        _CHECKED.clear()  # one list at a time: a long one takes tens of MB
        _CHECKED[self.path] = content, entries
        return [dict(entry) for entry in entries]

    def _decoded(self, content: bytes) -> str:
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise FormatError(f"{self.path} is damaged: {exc}.", fix=FIX) from exc

    def _encoded(self, entry: Entry) -> bytes:
        try:
            return (dumps(entry) + "\n").encode("utf-8")
        except UnicodeEncodeError as exc:
            raise InputError(
                f"{self.path}: expected text that can be written as UTF-8, found {exc.object[exc.start : exc.end]!r}.",
                fix="Remove that character from the text.",
            ) from exc

    def _parsed(self, line: str, number: int | str) -> object:
        """The line's JSON. Only the one canonical spelling counts, so that no reader can take it for something else."""
        try:
            value: object = json.loads(line)
            canonical = _canonical(value) == line
        except (ValueError, TypeError, RecursionError) as exc:
            raise FormatError(f"{self._at(number)} is damaged: {exc}.", fix=FIX) from exc
        if not canonical:
            raise StaleError(f"{self._at(number)} was edited after it was written.", fix=FIX)
        return value

    def _at(self, number: int | str) -> str:
        return f"{self.path} line {number}"


def _write(stream: io.FileIO, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[stream.write(view) or 0 :]


def _read(stream: io.FileIO, n: int) -> bytes:
    parts = []
    while n > 0 and (part := stream.read(n)):
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


class LedgerDocument:
    """Hash-chained entries in one JSON file. A new entry is staged beside it, announced by the caller, and then
    published.

    The caller records in the study's timeline what it is about to do between `stage` and `publish`. A process that is
    killed on the way leaves the old file and perhaps the staged one; `staged` shows it, and the timeline says whether
    it was announced: then it is published, else it is dropped.
    """

    def __init__(self, path: Path, head: Mapping[str, JsonLike]) -> None:
        self.path = path
        self.head = dict(head)
        self.next = path.with_name(path.name + ".next")

    def read(self) -> list[Entry]:
        """Every entry, after the chain was recomputed. Raises FormatError or StaleError naming the first entry that is
        damaged or edited.
        """
        return self._entries(self.path)

    def staged(self) -> list[Entry] | None:
        """The entries as they will be once published; None if nothing valid is staged."""
        if not self.next.exists():
            return None
        try:
            return self._entries(self.next)
        except (FormatError, StaleError):
            return None

    def stage(self, body: Mapping[str, JsonLike]) -> Entry:
        """Write the document with one additional entry to the staging file beside the present one."""
        entries = self.read() if self.path.exists() else []
        entry = link(body, entries[-1]["hash"] if entries else None)
        write_json(self.next, {**self.head, "entries": [*entries, entry]})
        return entry

    def publish(self) -> None:
        """Replace the present document by the staged one."""
        with disk_errors(self.path):
            os.replace(self.next, self.path)
            sync_folder(self.path.parent)

    def drop(self) -> None:
        """Remove the staged document."""
        remove(self.next)

    def _entries(self, path: Path) -> list[Entry]:
        entries = read_json(path).get("entries")
        if not isinstance(entries, list) or not entries:
            raise FormatError(f"{path} holds no entries.", fix=FIX)
        return follow_all(entries, lambda i: f"{path}: entry {i}")

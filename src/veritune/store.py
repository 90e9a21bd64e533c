"""The study folder: the only file that knows paths. Plain files, written once, atomically, with their hashes.

    study.yaml               what the user wrote
    contract.lock.json       frozen settings and hashes, amendments
    events.jsonl             the timeline: a ledger (see ledger.py), each entry with the hash of the one before
    data/<version>/          rows.parquet families.parquet split.parquet manifest.json benchmark-<eval>-<hash>.parquet
    audit/                   findings.jsonl split.json render.json contamination.json
    runs/<run_id>/           manifest.json metrics.jsonl summary.json checkpoints/step-N/ scores/<eval>.jsonl
    verdict.json report.html report.outputs/ figures/
    release/                 gates.jsonl and the evidence that the gates read, one record a check

A record that a step makes carries `input_hash`: the hash of everything it was made from. A step whose record is there
with the same input hash is skipped; another hash is a StaleError. Writing goes to a temporary file in the same folder,
is flushed to disk and renamed, so that a killed process leaves either the whole file or none.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from veritune.errors import FormatError, InputError, LockedError, MachineError, StoreError
from veritune.files import (
    atomic,
    disk_errors,
    hash_of,
    make_folder,
    now,
    read_json,
    read_jsonl,
    read_parquet,
    remove,
    remove_left,
    remove_staged,
    sha256_file,
    sha256_text,
    staged_folder,
    sync_folder,
    whole_lines,
    write_json,
    write_jsonl,
    write_parquet,
    write_text,
)
from veritune.lease import holder_elsewhere, leased
from veritune.ledger import Entry, Ledger
from veritune.records import (
    FORMAT_VERSION,
    Record,
    to_json,
)
from veritune.records.base import other_format

__all__ = [
    "Store",
    "atomic",
    "disk_errors",
    "hash_of",
    "now",
    "read_json",
    "read_jsonl",
    "read_parquet",
    "remove",
    "remove_left",
    "remove_staged",
    "sha256_file",
    "sha256_text",
    "staged_folder",
    "sync_folder",
    "whole_lines",
    "write_json",
    "write_jsonl",
    "write_parquet",
    "write_text",
]


R = TypeVar("R", bound=Record)
OUTPUT_PAGE = re.compile(r"\d{2,}-[\w-]+-(contents|\d{5,}|differ-\d{3,}-\d{4,})\.html")
"""Names that pages in `report.outputs/` have. A report writes them again or takes them away."""


class Store:
    """The paths and records of one study folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.command = "run"  # what changes records now, as the timeline names it when the seal is taken off

    @classmethod
    def of(cls, study: str | Path) -> Store:
        """The store of a study that is named by its folder, or by its study.yaml, which may be missing.

        Raises InputError for any other path: the folder that a mistyped name stands in may hold another study.
        """
        path = Path(study)
        if path.is_dir():
            return cls(path)
        if path.name == "study.yaml":
            return cls(path.parent)
        if not path.exists():
            raise InputError(f"there is no study at {path}.", fix="Name a study's folder, or its study.yaml.")
        raise InputError(
            f"{path}: a study's file must be named study.yaml, in a folder of its own.",
            fix="Name the study's folder, or rename the file.",
        )

    # -- paths ------------------------------------------------------------------------------------------------

    @property
    def study_file(self) -> Path:
        return self.root / "study.yaml"

    @property
    def contract_file(self) -> Path:
        return self.root / "contract.lock.json"

    @property
    def events_file(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def verdict_file(self) -> Path:
        return self.root / "verdict.json"

    @property
    def report_file(self) -> Path:
        return self.root / "report.html"

    @property
    def outputs(self) -> Path:
        """The pages beside the report that show its outputs, where they are too many for the report itself."""
        return self.root / "report.outputs"

    @property
    def figures(self) -> Path:
        return self.root / "figures"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    def data(self, version: str) -> Path:
        return self.root / "data" / version

    def audit(self, name: str) -> Path:
        return self.root / "audit" / name

    def release(self, name: str) -> Path:
        return self.root / "release" / name

    def run(self, run_id: str) -> Path:
        return self.runs / run_id

    def relative(self, path: Path) -> str:
        """A path as written in records: relative to the study folder, with forward slashes."""
        with contextlib.suppress(ValueError):
            return path.relative_to(self.root).as_posix()  # `runs/` may be a link to another disk
        return path.resolve().relative_to(self.root.resolve()).as_posix()

    # -- one process at a time --------------------------------------------------------------------------------

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock the folder until the block ends. Raises LockedError naming the holder. The lock of a killed process ends
        with it.
        """
        return _held(self.root / ".lock", str(self.root), self.root)

    def run_lock(self, run_id: str) -> contextlib.AbstractContextManager[None]:
        """Lock one run; other processes may hold other runs of the study. Raises LockedError."""
        return _held(self.root / ".locks" / run_id, f"run {run_id}", self.root)

    def holder(self, run_id: str | None = None) -> str | None:
        """The process that holds the folder (or one run of it) now; None if none does."""
        name = run_id or ".lock"
        lock = self.root / ".lock" if run_id is None else self.root / ".locks" / run_id
        return _holder(lock) or holder_elsewhere(self.root / ".locks" / LEASES / name)

    def held_runs(self) -> dict[str, str]:
        """The holder of each held run, by run id, whether the run is planned or not."""
        found = {p.name: self.holder(p.name) for p in sorted((self.root / ".locks").glob("*")) if p.is_file()}
        return {run_id: holder for run_id, holder in found.items() if holder is not None}

    # -- records ----------------------------------------------------------------------------------------------

    def check_format(self) -> None:
        """Raises FormatError when the folder was written by another format version."""
        if not self.contract_file.exists():
            return
        found = read_json(self.contract_file).get("format")
        if found != FORMAT_VERSION:
            raise other_format(str(self.root), found)

    def is_done(self, path: Path, input_hash: str) -> bool:
        """Whether the record at `path` exists and was made from these inputs."""
        return path.exists() and read_json(path).get("input_hash") == input_hash

    def made(self, kind: type[R], path: Path, input_hash: str) -> R | None:
        """The record at `path` if it exists and was made from these inputs, else None. Raises FormatError."""
        return kind.load(path) if self.is_done(path, input_hash) else None

    def clear_partial(self) -> int:
        """Remove temporary files that killed processes left; returns their number."""
        partial = [path for path in self.root.rglob(".*.tmp") if not self._in_work(path)]
        for path in partial:
            path.unlink(missing_ok=True)
        return len(partial)

    def _in_work(self, path: Path) -> bool:
        """Whether the file belongs to a run that another process is at work on."""
        parts = path.relative_to(self.root).parts
        return len(parts) > 2 and parts[0] == "runs" and self.holder(parts[1]) is not None

    def need_space(self, n_bytes: int) -> None:
        """Raises MachineError when the disk has less than `n_bytes` free."""
        free = shutil.disk_usage(self.root).free
        if free < n_bytes:
            raise MachineError(
                f"{self.root}: {free / 1e9:.2f} GB free, the study needs about {n_bytes / 1e9:.2f} GB.",
                fix="Free some space or move the study folder.",
            )

    # -- the timeline -----------------------------------------------------------------------------------------

    @cached_property
    def timeline(self) -> Ledger:
        """The ledger of the study's events; use `log` and `events` to write and read it."""
        return Ledger(self.events_file)

    def log(self, event: str, **facts: Any) -> Entry:
        """Append one event and flush it to disk, after removing an incomplete last line that a killed process left."""
        return self.timeline.append({"time": now(), "event": event, **to_json(facts)})

    def log_once(self, event: str, **facts: Any) -> None:
        """Append the event unless an event with these facts exists, as it can after a kill between a record and its
        event.
        """
        self.timeline.append_once({"time": now(), "event": event, **to_json(facts)}, apart_from=("time",))

    def events(self) -> list[Entry]:
        """The timeline's events, oldest first, after the chain was recomputed.

        Raises FormatError or StaleError naming the first line that is not as it was written.
        """
        found = self.timeline.read()
        for number, event in enumerate(found, start=1):
            if not isinstance(event.get("event"), str) or not isinstance(event.get("time"), str):
                raise FormatError(
                    f"{self.events_file} line {number} is not a valid event record.",
                    fix="Restore the file from a copy.",
                )
        return found

    def check_events(self) -> None:
        """Raises StaleError or FormatError naming the first line of the timeline that was edited or is damaged."""
        self.events()


@contextlib.contextmanager
def _held(path: Path, what: str, root: Path) -> Iterator[None]:
    """Hold a lock file in `root`. Raises LockedError naming the holder. A killed holder's lock is gone with it."""
    with disk_errors(path):
        make_folder(path.parent)
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the block ends
    with stream:
        try:
            _lock(stream.fileno())
        except OSError as exc:
            if exc.errno not in IN_USE:
                raise _no_locks(path, exc) from exc
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise LockedError(
                f"{what} is in use by {holder}.", fix="Wait until it ends, or watch it with `veritune status`."
            ) from exc
        with disk_errors(path):
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()} on {os.uname().nodename} since {now()}".encode())
        with leased(root / ".locks" / LEASES / path.name, what, root):
            yield


def _lock(handle: int) -> None:
    """Lock a file for this process alone, within 0.2 s: `status` holds a lock for a moment while it looks."""
    for patience in (0.05, 0.05, 0.1):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(patience)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


LEASES = "leases"
IN_USE = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""What `flock` answers where somebody else holds the lock; any other number says that it cannot lock here."""


def _no_locks(path: Path, exc: OSError) -> StoreError:
    return StoreError(
        f"{path.parent} has no working locks ({exc.strerror}): two processes could train the same run.",
        fix="Use a local disk, or mount the shared one with locks (NFS: without `nolock`; Lustre: with `-o flock`).",
    )


def _holder(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as exc:
            return (stream.read().strip() or "another process") if exc.errno in IN_USE else None
    return None

"""The study folder: the only file that knows paths. Plain files, written once, atomically, with their hashes.

    study.yaml               what the user wrote
    contract.lock.json       frozen settings and hashes, amendments
    events.jsonl             the timeline; each line carries the hash of the line before it
    data/<version>/          rows.parquet families.parquet split.parquet manifest.json
    audit/                   findings.jsonl split.json render.json contamination.json
    runs/<run_id>/           manifest.json metrics.jsonl summary.json checkpoints/step-N/ scores/<eval>.jsonl
    verdict.json report.html figures/
    release/                 gates.json and the evidence that the gates read, one record a check

A record that a step makes carries `input_hash`: the hash of everything it was made from. A step whose record is there
with the same input hash is skipped; another hash is a StaleError. Writing goes to a temporary file in the same folder,
is flushed to disk and renamed, so that a killed process leaves either the whole file or none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from veritune.errors import FormatError, LockedError, MachineError, StaleError, StoreError
from veritune.records import FORMAT_VERSION, dumps, to_json

CHUNK = 1 << 20
SCARCE = 64 << 20  # bytes free below which a failed write of torch.save is put down to the disk


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha256_text(text: str) -> str:
    """Hex SHA-256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_of(record: Any) -> str:
    """Hex SHA-256 of a record's canonical JSON."""
    return sha256_text(dumps(record))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says into an error that names the file and what to do."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise MachineError(
                f"the disk is full: {path} was not written.", fix="Free some space and run the same command again."
            ) from exc
        if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(
                f"cannot write {path}: {exc.strerror}.", fix="Make the folder writable or copy the study elsewhere."
            ) from exc
        raise
    except Exception as exc:
        if not _out_of_space(exc, path):
            raise
        raise MachineError(
            f"the disk is full: {path} was not written.", fix="Free some space and run the same command again."
        ) from exc


def _out_of_space(exc: Exception, path: Path) -> bool:
    """Whether an error that is no OSError means a full disk: safetensors wraps the system's, torch.save hides it."""
    if "No space left on device" in str(exc):
        return True
    parent = next((p for p in (path, *path.parents) if p.is_dir()), Path.cwd())
    return "inline_container" in str(exc) and shutil.disk_usage(parent).free < SCARCE


@contextlib.contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on leaving, flush it to disk and rename it into place."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as stream:
        stream.write(text)


def write_json(path: Path, record: Any) -> None:
    """Write one record as readable JSON, atomically."""
    write_text(path, dumps(record, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Write records one to a line, atomically."""
    with atomic(path) as stream:
        for record in records:
            stream.write(dumps(record) + "\n")


def whole_lines(text: str, *, torn: bool = False) -> list[str]:
    """Lines that end in a newline; with `torn` also a last one that does not.

    Only the newline counts: `str.splitlines` also cuts at U+2028 and U+0085, which JSON texts may hold as they are.
    """
    *lines, rest = text.split("\n")
    return [*lines, rest] if torn and rest else lines


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FormatError(f"{path} is damaged: {exc}.", fix="Restore it, or delete it and run again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object. Raises FormatError where the file is damaged."""
    try:
        value = json.loads(_text(path))
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{path} is damaged: {exc}.", fix="Restore it, or delete it and run again.") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(value).__name__}.", fix="Restore it.")
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL record. Raises FormatError naming the line."""
    rows = []
    for number, line in enumerate(whole_lines(_text(path), torn=True), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as exc:
            raise FormatError(f"{path} line {number} is damaged: {exc}.", fix="Restore it, or delete it.") from None
    return rows


class Store:
    """Paths and records of one study folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of(cls, study: str | Path) -> Store:
        """The folder of a study that is named by its file or by its folder."""
        path = Path(study)
        return cls(path if path.is_dir() else path.parent)

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
        """A path as records name it: relative to the study folder, with forward slashes."""
        return path.resolve().relative_to(self.root.resolve()).as_posix()

    # -- one process at a time --------------------------------------------------------------------------------

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the folder. Raises LockedError naming the holder. A killed holder's lock is gone with it."""
        return _held(self.root / ".lock", str(self.root))

    def run_lock(self, run_id: str) -> contextlib.AbstractContextManager[None]:
        """Hold one run; other runs of the study may be held by other processes. Raises LockedError."""
        return _held(self.root / ".locks" / run_id, f"run {run_id}")

    def holder(self, run_id: str | None = None) -> str | None:
        """Who holds the folder (or one run of it) now, None when nobody does."""
        return _holder(self.root / ".lock" if run_id is None else self.root / ".locks" / run_id)

    # -- records ----------------------------------------------------------------------------------------------

    def check_format(self) -> None:
        """Raises FormatError when the folder was written by another format version."""
        if not self.contract_file.exists():
            return
        found = read_json(self.contract_file).get("format")
        if found != FORMAT_VERSION:
            raise FormatError(
                f"{self.root} has format {found}; this Veritune reads format {FORMAT_VERSION}.",
                fix="Read it with the version that wrote it, or start a new folder with the same study.yaml.",
            )

    def is_done(self, path: Path, input_hash: str) -> bool:
        """Whether the record at `path` is there and was made from these inputs."""
        return path.exists() and read_json(path).get("input_hash") == input_hash

    def clear_partial(self) -> int:
        """Remove temporary files that a killed process left; their number."""
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

    def log(self, event: str, **facts: Any) -> None:
        """Append one event. A last line that a killed process left half-written is dropped first."""
        with _held(self.root / ".locks" / "events", "the timeline", wait=True):
            self._append(event, facts)

    def _append(self, event: str, facts: Mapping[str, Any]) -> None:
        lines = self._whole_lines()
        previous = sha256_text(lines[-1]) if lines else None
        line = dumps({"time": now(), "event": event, "previous": previous, **to_json(facts)})
        if self.events_file.exists() and self.events_file.stat().st_size != sum(len(x.encode()) + 1 for x in lines):
            write_text(self.events_file, "".join(x + "\n" for x in lines))
        size = self.events_file.stat().st_size if self.events_file.exists() else 0
        with disk_errors(self.events_file):
            try:
                with self.events_file.open("a", encoding="utf-8") as stream:
                    stream.write(line + "\n")
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    os.truncate(self.events_file, size)  # give back what a half-written line took
                raise

    def log_once(self, event: str, **facts: Any) -> None:
        """Append the event unless one with these facts is there, as after a kill between a record and its event."""
        wanted = {"event": event, **to_json(facts)}
        if not any({key: line.get(key) for key in wanted} == wanted for line in self.events()):
            self.log(event, **facts)

    def check_events(self) -> None:
        """Raises StaleError naming the first line of the timeline that was edited, taken out or put in."""
        previous = None
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                found = json.loads(line).get("previous")
            except (ValueError, AttributeError, RecursionError):
                found = line
            if found != previous:
                raise StaleError(
                    f"{self.events_file} line {number} does not follow from the one before it: it was edited.",
                    fix="Restore the file.",
                )
            previous = sha256_text(line)

    def events(self) -> list[dict[str, Any]]:
        """The timeline, oldest first."""
        found = []
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict):
                raise FormatError(f"{self.events_file} line {number} is no event.", fix="Restore the file.")
            found.append(event)
        return found

    def _whole_lines(self) -> list[str]:
        if not self.events_file.exists():
            return []
        return whole_lines(_text(self.events_file))


@contextlib.contextmanager
def _held(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock file. Raises LockedError naming the holder, unless `wait`. A killed holder's lock is gone with it."""
    import fcntl

    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - held until the block ends
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            stream.seek(0)
            holder = stream.read().strip() or "another process"
            raise LockedError(
                f"{what} is in use by {holder}.", fix="Wait for it, or watch it with `veritune status`."
            ) from None
        with disk_errors(path):
            os.ftruncate(stream.fileno(), 0)
            os.write(stream.fileno(), f"process {os.getpid()} on {os.uname().nodename} since {now()}".encode())
        yield


def _holder(path: Path) -> str | None:
    import fcntl

    if not path.exists():
        return None
    with path.open("r", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return stream.read().strip() or "another process"
    return None


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file as dicts. Raises FormatError where the file is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as exc:
        raise FormatError(f"{path} is damaged: {exc}.", fix="Restore it.") from None
    return rows


def write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write columns as Parquet, atomically and with reproducible bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with atomic(path, "wb") as stream:
        pq.write_table(pa.table(dict(columns)), stream, compression="zstd")

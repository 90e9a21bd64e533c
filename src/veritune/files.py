"""Files on disk: whole or not there, on the medium before they are trusted, and every failure named.

Writing goes to a temporary file in the same folder, is flushed to disk and renamed, and the folder is flushed too, so
that a killed process or a power cut leaves either the whole file or none. Nothing here knows what a study is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from veritune import arrow
from veritune.canonical import dumps
from veritune.errors import FormatError, MachineError, StoreError, describe_os_error
from veritune.untrusted import parse_json, read_bytes, table_rows

CHUNK = 1 << 20
SCARCE = 64 << 20  # bytes free below which a failed write of torch.save is put down to the disk


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def sha256_text(text: str) -> str:
    """Hex SHA-256 of the text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain(path: Path) -> Path:
    """The path of a record. Raises FormatError for a pipe or a device, which may never end, and OSError as `stat` does.

    A shell's own pipe, `<(command)`, has a name below /dev and is read.
    """
    mode = path.stat().st_mode
    of_shell = stat.S_ISFIFO(mode) and path.parts[:2] in (("/", "dev"), ("/", "proc"))
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or of_shell):
        raise FormatError(f"{path}: expected a plain file, found a pipe or a device.", fix="Restore it from a copy.")
    return path


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks. Raises FormatError for a pipe or a device."""
    digest = hashlib.sha256()
    with plain(path).open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def hash_of(record: Any) -> str:
    """Hex SHA-256 of a record's canonical JSON."""
    return sha256_text(dumps(record))


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the file and what to do."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, FileExistsError | FileNotFoundError | NotADirectoryError | BlockingIOError):
            raise  # callers decide by these
        message, fix = describe_os_error(exc, path)
        kind = MachineError if exc.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        raise kind(message, fix=fix) from exc
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


_HELD: list[tuple[Path, tuple[int, int], Callable[[], None]]] = []
"""Folders that this process works on: device and inode when it began, and what says whether they are still its own."""


@contextlib.contextmanager
def holding(root: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Refuse writes in `root` until the block ends if the folder was renamed or removed, or if `check` raises."""
    found = root.stat()
    entry = (root, (found.st_dev, found.st_ino), check)
    _HELD.append(entry)
    try:
        yield
    finally:
        _HELD.remove(entry)


def refuse_lost(path: Path) -> None:
    """Raises StoreError if a file's held folder no longer exists, LockedError if another process has taken over what
    this one holds. Called before every append and every rename.
    """
    for root, identity, check in list(_HELD):
        if path != root and root not in path.parents:
            continue
        try:
            found = root.stat()
            there = (found.st_dev, found.st_ino) == identity
        except OSError:
            there = False
        if not there:
            raise StoreError(
                f"{root} was renamed or removed while this command worked on it.",
                fix="Run the command again with the folder's new path: finished work is in there.",
            )
        check()


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; see `refuse_lost`."""
    refuse_lost(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):  # a folder whose name is not on disk is lost with the power, and all in it
        sync_folder(path.parent)


def new_file(folder: Path, prefix: str, suffix: str) -> tuple[int, str]:
    """Open a new file under an unused name, as `tempfile.mkstemp` does, with the permissions that the umask gives."""
    for _ in range(100):
        name = os.path.join(folder, f"{prefix}{secrets.token_hex(6)}{suffix}")
        with contextlib.suppress(FileExistsError):
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), name
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(folder))


@contextlib.contextmanager
def atomic(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on leaving, flush it to disk, rename it into place and flush the folder."""
    with disk_errors(path):
        make_folder(path.parent)
        handle, name = new_file(path.parent, f".{path.name}.", ".tmp")
        try:
            with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
                with contextlib.suppress(OSError):  # some network disks lock nothing; then nothing is removed as stale
                    fcntl.flock(handle, fcntl.LOCK_EX)
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            refuse_lost(path)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file if it exists. Raises StoreError where the disk refuses."""
    with disk_errors(path):
        path.unlink(missing_ok=True)


def remove_left(path: Path) -> None:
    """Remove temporary files that killed writers of `path` left behind; those of running writers are locked and
    stay."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), left.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: without this, a power failure can undo a rename."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot flush a folder say so like this
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield an empty folder beside `out`; on leaving, flush it to disk and rename it to `out`; on an error, remove it.

    The folder that it lies in (`.parent`) is the caller's too, for downloads and the like, and goes in the end. What a
    killed process left behind is removed first; what a living process fills is held by a lock and stays. Raises
    StoreError or MachineError where the disk refuses, FileExistsError where `out` has appeared meanwhile.
    """
    with disk_errors(out):
        make_folder(out.parent)
        remove_staged(out)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
        handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            partial = work / "whole"
            partial.mkdir()
            yield partial
            _sync_tree(partial)
            if out.exists():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out))
            partial.rename(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            os.close(handle)


def remove_staged(out: Path) -> None:
    """Remove folders that killed processes staged for `out`; a folder that a running process holds stays."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        _remove_unheld(left)


def _remove_unheld(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    """Have every file below `folder`, and every folder's entries, on disk."""
    for base, _, names in os.walk(folder):
        for name in names:
            handle = os.open(os.path.join(base, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(base))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as stream:
        stream.write(text)


def write_json(path: Path, record: Any) -> None:
    """Write one record as readable JSON, atomically."""
    write_text(path, dumps(record, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[Any]) -> None:
    """Write records as JSON Lines, atomically."""
    with atomic(path) as stream:
        for record in records:
            stream.write(dumps(record) + "\n")


def whole_lines(text: str, *, torn: bool = False) -> list[str]:
    """The lines of a file that end in a newline; with `torn` also an incomplete last line.

    Only the newline counts: `str.splitlines` also cuts at U+2028 and U+0085, which JSON texts may hold as they are.
    """
    *lines, rest = text.split("\n")
    return [*lines, rest] if torn and rest else lines


Stamps = tuple[tuple[str, int, int], ...]
"""Path, size in bytes and time of change (ns) of files, sorted."""


def stamps(paths: Iterable[Path]) -> Stamps:
    """A value that changes when one of these files changes (found without reading them); missing files are left out."""
    found = [(str(path), path.stat()) for path in sorted(paths) if path.exists()]
    return tuple((name, known.st_size, known.st_mtime_ns) for name, known in found)


def read_text(path: Path) -> str:
    """A record's UTF-8 text. Raises FormatError if it is not UTF-8, or no plain file."""
    try:
        return plain(path).read_bytes().decode("utf-8")
    except UnicodeDecodeError as exc:
        raise FormatError(
            f"{path} is damaged: {exc}.", fix="Restore the file from a copy, or delete it and run again."
        ) from None


def read_json(path: Path, *, finite: bool = True) -> dict[str, Any]:
    """Read one JSON object. Raises FormatError where the file is damaged.

    Without `finite` NaN and Infinity are taken, for files that other tools wrote.
    """
    try:
        value = parse_json(read_bytes(plain(path)), finite=finite)
    except ValueError as exc:
        raise FormatError(
            f"{path} is damaged: {exc}.", fix="Restore the file from a copy, or delete it and run again."
        ) from exc
    if not isinstance(value, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(value).__name__}.", fix="Restore it.")
    return value


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL record. Raises FormatError naming the line."""
    rows = []
    for number, line in enumerate(whole_lines(read_text(path), torn=True), start=1):
        try:
            rows.append(parse_json(line))
        except ValueError as exc:
            raise FormatError(
                f"{path} line {number} is damaged: {exc}.", fix="Restore the file from a copy, or delete it."
            ) from None
    return rows


def benchmark_name(name: str, digest: str) -> str:
    """Name of the file, in the folder of the data version, that holds a benchmark's items."""
    return f"benchmark-{name}-{digest[:12]}.parquet"


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file as dicts. Raises FormatError where the file is damaged."""
    try:
        return list(table_rows(path, "parquet"))
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as exc:
        raise FormatError(
            f"{path} is damaged: {exc}.", fix="Restore the file from a copy, or delete it and run again."
        ) from exc


def write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    """Write columns as Parquet, atomically and with reproducible bytes."""
    with atomic(path, "wb") as stream:
        arrow.write_parquet(stream, columns)

"""Where a registry keeps its bytes: a local folder, or what fsspec reaches. Few operations, each with its promise.

    create    a new file, whole, or FileExistsError: the one operation that decides between two writers
    put       a whole bundle folder under a name that its content decides
    remove    a whole folder, the file that makes it whole first
    get, read, names, folders, exists

A local folder creates with `link(2)`, which is atomic and fails where the name is taken; bundles are copied beside
their place and renamed. Object stores create with a conditional put: `s3` sends `If-None-Match: *`. `memory` is one
process's own. Other protocols promise no exclusive creation through fsspec and are refused.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from veritune.errors import InputError, MachineError, StaleError, StoreError, VerituneError, first_line
from veritune.files import make_folder, new_file, sync_folder
from veritune.store import disk_errors, sha256_file

EXCLUSIVE = ("memory", "s3", "s3a")
MANIFEST_LAST = "manifest.json"
CHUNK = 1 << 20


class TooLargeError(ValueError):
    """A file of a registry has more bytes than the bundle's manifest states."""


def copy_at_most(chunks: Iterable[bytes], target: Path, most: int, name: str) -> None:
    """Write chunks to a file. Raises TooLargeError before writing more than `most` bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    left = most
    with disk_errors(target), target.open("wb") as out:
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise TooLargeError(f"{name} has more than the expected {most:,} bytes")
            out.write(chunk)


class Shelf(Protocol):
    """A store of files by name; names are relative, with forward slashes."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted; empty if there is no folder."""

    def folders(self, folder: str) -> dict[str, float | None]:
        """Folders directly in a folder, by name, with the age of their manifest in seconds; None if it has no
        manifest."""

    def exists(self) -> bool:
        """Whether anything is stored here yet."""

    def remove(self, folder: str) -> None:
        """Delete a folder and its content. If killed midway, it leaves nothing that looks complete."""

    def create(self, name: str, content: bytes) -> None:
        """Write a new file completely or not at all. Raises FileExistsError if it exists."""

    def put(self, folder: str, source: Path, files: Mapping[str, str]) -> bool:
        """Store the named files of `source`, which must have these SHA-256; returns False if the folder already exists.

        Raises StaleError where a file has changed; then nothing that could be taken for a bundle is left.
        """

    def get(self, name: str, target: Path, most: int) -> None:
        """Copy a file out. Raises FileNotFoundError, and TooLargeError after more than `most` bytes."""


def open_shelf(url: str) -> Shelf:
    """The store at a path or an fsspec URL. Raises InputError for a protocol without exclusive creation."""
    protocol, mark, _ = url.partition("://")
    if not mark or protocol in ("file", "local"):
        return LocalShelf(Path(url.split("://", 1)[-1]))
    if protocol not in EXCLUSIVE:
        raise InputError(
            f"registry {url!r}: {protocol} has no exclusive creation, so two promotions at the same time could "
            "both succeed.",
            fix=f"Use a folder, or one of {', '.join(p + '://' for p in EXCLUSIVE)}.",
        )
    return FsspecShelf(url)


class LocalShelf:
    """A folder on this machine or a shared disk that has hard links."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def names(self, folder: str) -> list[str]:
        place = self.root / folder
        return sorted(p.name for p in place.iterdir() if p.is_file()) if place.is_dir() else []

    def folders(self, folder: str) -> dict[str, float | None]:
        place = self.root / folder
        found = sorted(p for p in place.iterdir() if p.is_dir()) if place.is_dir() else []
        return {p.name: _age(p / MANIFEST_LAST) for p in found}

    def exists(self) -> bool:
        return self.root.is_dir() and any(self.root.iterdir())

    def remove(self, folder: str) -> None:
        place = self.root / folder
        with _place(place):
            gone = place.with_name(f".removed.{secrets.token_hex(6)}")
            place.rename(gone)
            sync_folder(place.parent)
            shutil.rmtree(gone)

    def create(self, name: str, content: bytes) -> None:
        path = self.root / name
        with _place(path):
            make_folder(path.parent)
            handle, partial = new_file(path.parent, ".new.", ".tmp")
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.link(partial, path)
                sync_folder(path.parent)
            finally:
                Path(partial).unlink(missing_ok=True)

    def put(self, folder: str, source: Path, files: Mapping[str, str]) -> bool:
        place = self.root / folder
        if place.exists():
            return False
        with _place(place):
            make_folder(place.parent)
            partial = place.parent / f".incoming.{secrets.token_hex(6)}"
            partial.mkdir()  # with the permissions that the umask gives; `tempfile` would keep the bundle to its owner
            try:
                for name, digest in files.items():
                    target = partial / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with (source / name).open("rb") as read, target.open("wb") as write:
                        shutil.copyfileobj(read, write, 1 << 20)
                        write.flush()
                        os.fsync(write.fileno())
                    _same(target, name, digest)
                for inner in {partial, *(above for name in files for above in _above(partial, name))}:
                    sync_folder(inner)  # names too are on disk before the bundle has its own
                stored = _rename_new(partial, place)
                sync_folder(place.parent)
                return stored
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def get(self, name: str, target: Path, most: int) -> None:
        with (self.root / name).open("rb") as stream:
            copy_at_most(iter(lambda: stream.read(CHUNK), b""), target, most, name)


def _age(path: Path) -> float | None:
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except FileNotFoundError:
        return None


def _same(path: Path, name: str, digest: str) -> None:
    if sha256_file(path) != digest:
        raise StaleError(f"{name} changed while it was being stored.", fix="Verify the bundle and promote it again.")


def _rename_new(partial: Path, place: Path) -> bool:
    """Rename a folder to a name that is not there; False where another process was quicker."""
    try:
        partial.rename(place)
    except OSError:
        if place.exists():
            return False
        raise
    return True


def _above(folder: Path, name: str) -> list[Path]:
    """The folders in `folder` that lead to a file in it."""
    return [folder / parent for parent in PurePosixPath(name).parents if parent.name]


@contextlib.contextmanager
def _place(path: Path) -> Any:
    with disk_errors(path):
        try:
            yield
        except NotADirectoryError:
            raise StoreError(f"{path} passes through a file.", fix="Name a folder as the registry.") from None


class FsspecShelf:
    """A store that fsspec reaches. The manifest is uploaded last, so that a bundle with a manifest is complete."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as exc:
            raise MachineError(
                f"registry {url!r} cannot be opened: {exc}.", fix="Install the fsspec package for this protocol."
            ) from None
        self.root = self.root.rstrip("/")
        self.fs.use_listings_cache = False
        self.buckets = not url.startswith("memory://")
        if self.buckets:
            self._refuse_missing_bucket(url)

    def _refuse_missing_bucket(self, url: str) -> None:
        """Raises InputError for a bucket that is not there: a mistyped name must not make one."""
        bucket = self.root.split("/", 1)[0]
        with self._reached():
            there = self.fs.exists(bucket)
        if not there:
            raise InputError(
                f"registry {url!r}: there is no bucket {bucket!r}, or these credentials cannot see it.",
                fix="Check the name, or let the owner of the account create the bucket; Veritune creates none.",
            )

    def _make_folder(self, at: str) -> None:
        """Folders of a store that has some; an object store has none, and `makedirs` could make a bucket there."""
        if not self.buckets:
            self.fs.makedirs(at.rsplit("/", 1)[0], exist_ok=True)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """What a store's client raises beside Python's own file errors, as one line that names the store."""
        try:
            yield
        except (OSError, VerituneError, TooLargeError):
            raise
        except Exception as exc:  # each store has error classes of its own
            first = first_line(exc)
            raise MachineError(
                f"registry {self.root}: {first}", fix="Check the address and your credentials."
            ) from None

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        with self._reached():
            return bytes(self.fs.cat_file(self._at(name)))

    def names(self, folder: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            with self._reached():
                found = self.fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in found)

    def folders(self, folder: str) -> dict[str, float | None]:
        return {name: self._age(f"{folder}/{name}/{MANIFEST_LAST}") for name in self.names(folder)}

    def _age(self, name: str) -> float | None:
        try:
            with self._reached():
                made = self.fs.info(self._at(name))
        except FileNotFoundError:
            return None
        when = made.get("LastModified") or made.get("created")
        return max((datetime.now(UTC) - when).total_seconds(), 0.0) if isinstance(when, datetime) else 0.0

    def exists(self) -> bool:
        return bool(self.names("channels") or self.names("bundles") or self.names("rules"))

    def remove(self, folder: str) -> None:
        with self._reached():
            manifest = self._at(f"{folder}/{MANIFEST_LAST}")
            if self.fs.exists(manifest):
                self.fs.rm_file(manifest)
            self.fs.rm(self._at(folder), recursive=True)

    def create(self, name: str, content: bytes) -> None:
        with self._reached():
            self._make_folder(self._at(name))
            self.fs.pipe_file(self._at(name), content, mode="create")

    def put(self, folder: str, source: Path, files: Mapping[str, str]) -> bool:
        with self._reached():
            if self.fs.exists(self._at(f"{folder}/{MANIFEST_LAST}")):
                return False
            for name, digest in sorted(files.items(), key=lambda item: item[0] == MANIFEST_LAST):
                at = self._at(f"{folder}/{name}")
                self._make_folder(at)
                self.fs.put_file(str(source / name), at)
                _same(source / name, name, digest)
            return True

    def get(self, name: str, target: Path, most: int) -> None:
        with self._reached(), self.fs.open(self._at(name), "rb") as stream:
            copy_at_most(iter(lambda: stream.read(CHUNK), b""), target, most, name)

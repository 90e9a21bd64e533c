"""Where a registry keeps its bytes: a local folder, or what fsspec reaches. Few operations, each with its promise.

    create    a new file, whole, or FileExistsError: the one operation that decides between two writers
    put       a whole bundle folder under a name that its content decides
    get, read, names

A local folder creates with `link(2)`, which is atomic and fails where the name is taken; bundles are copied beside
their place and renamed. Object stores create with a conditional put: `s3` sends `If-None-Match: *`. `memory` is one
process's own. Other protocols promise no exclusive creation through fsspec and are refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from veritune.errors import InputError, MachineError, StaleError, StoreError, VerituneError, first_line
from veritune.store import disk_errors, sha256_file

EXCLUSIVE = ("memory", "s3", "s3a")
MANIFEST_LAST = "manifest.json"


class Shelf(Protocol):
    """A place for files by name; names are relative, with forward slashes."""

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError."""

    def names(self, folder: str) -> list[str]:
        """Names of the files right in a folder, sorted; none where there is no folder."""

    def create(self, name: str, content: bytes) -> None:
        """Write a file that is not there yet, whole or not at all. Raises FileExistsError where it is."""

    def put(self, folder: str, source: Path, files: Mapping[str, str]) -> bool:
        """Store the named files of `source`, which must have these SHA-256; False where the folder is there already.

        Raises StaleError where a file has changed; then nothing that could be taken for a bundle is left.
        """

    def get(self, name: str, target: Path) -> None:
        """Copy a file out."""


def open_shelf(url: str) -> Shelf:
    """The shelf at a path or an fsspec URL. Raises InputError for a protocol without exclusive creation."""
    protocol, mark, _ = url.partition("://")
    if not mark or protocol in ("file", "local"):
        return LocalShelf(Path(url.split("://", 1)[-1]))
    if protocol not in EXCLUSIVE:
        raise InputError(
            f"registry {url!r}: {protocol} promises no exclusive creation, so two promotions at once could both win.",
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

    def create(self, name: str, content: bytes) -> None:
        path = self.root / name
        with _place(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=".new.", suffix=".tmp", dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.chmod(partial, 0o644)
                os.link(partial, path)
                _sync(path.parent)
            finally:
                Path(partial).unlink(missing_ok=True)

    def put(self, folder: str, source: Path, files: Mapping[str, str]) -> bool:
        place = self.root / folder
        if place.exists():
            return False
        with _place(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(prefix=".incoming.", dir=place.parent))
            try:
                for name, digest in files.items():
                    target = partial / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with (source / name).open("rb") as read, target.open("wb") as write:
                        shutil.copyfileobj(read, write, 1 << 20)
                        write.flush()
                        os.fsync(write.fileno())
                    _same(target, name, digest)
                partial.chmod(0o755)
                stored = _rename_new(partial, place)
                _sync(place.parent)
                return stored
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    def get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.root / name, target)


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


def _sync(folder: Path) -> None:
    """Have the folder's entries on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _place(path: Path) -> Any:
    with disk_errors(path):
        try:
            yield
        except NotADirectoryError:
            raise StoreError(f"{path} leads through a file.", fix="Name a folder as registry.") from None


class FsspecShelf:
    """What fsspec reaches. The manifest goes up last, so that a bundle whose manifest is there is whole."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as exc:
            raise MachineError(
                f"registry {url!r} cannot be opened: {exc}.", fix="Install its fsspec package."
            ) from None
        self.root = self.root.rstrip("/")
        self.fs.use_listings_cache = False

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """What a store's client raises beside Python's own file errors, as one line that names the store."""
        try:
            yield
        except (OSError, VerituneError):
            raise
        except Exception as exc:  # each store has error classes of its own
            first = first_line(exc)
            raise MachineError(f"registry {self.root}: {first}", fix="Check the address and your keys.") from None

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

    def create(self, name: str, content: bytes) -> None:
        with self._reached():
            self.fs.makedirs(self._at(name).rsplit("/", 1)[0], exist_ok=True)
            self.fs.pipe_file(self._at(name), content, mode="create")

    def put(self, folder: str, source: Path, files: Mapping[str, str]) -> bool:
        with self._reached():
            if self.fs.exists(self._at(f"{folder}/{MANIFEST_LAST}")):
                return False
            for name, digest in sorted(files.items(), key=lambda item: item[0] == MANIFEST_LAST):
                at = self._at(f"{folder}/{name}")
                self.fs.makedirs(at.rsplit("/", 1)[0], exist_ok=True)
                self.fs.put_file(str(source / name), at)
                _same(source / name, name, digest)
            return True

    def get(self, name: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reached():
            self.fs.get_file(self._at(name), str(target))

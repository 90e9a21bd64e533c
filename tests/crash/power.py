"""A disk that loses power: what a command wrote and did not flush is gone, or is there in an order of the disk's own.

The shim's journal of a command (every change with what it changed) is replayed up to its k-th entry onto a model of the
folder. Of each file the model knows the content that programs see and the one that was flushed (`fsync` of the file),
of each folder the names that programs see and those that were flushed (`fsync` of the folder). Two disks are tried:

    strict     neither names nor contents outlive the power unless they were flushed
    reordered  names outlive it at once, as journals of file systems write them; contents only where they were flushed

What is on disk afterwards is written out as a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

DISKS = ("strict", "reordered")
ROOT = "."


@dataclass
class File:
    """A file by what programs see and what was flushed."""

    seen: bytes = b""
    flushed: bytes = b""


@dataclass
class Folder:
    """A folder by the names that programs see and those that were flushed."""

    seen: dict[str, File | Folder] = field(default_factory=dict)
    flushed: dict[str, File | Folder] = field(default_factory=dict)


class Disk:
    """The model, begun from a folder that is on disk in full."""

    def __init__(self, folder: Path) -> None:
        self.root = self._taken(folder)

    def _taken(self, folder: Path) -> Folder:
        names: dict[str, File | Folder] = {}
        for path in sorted(folder.iterdir()):
            content = b"" if path.is_dir() else path.read_bytes()
            names[path.name] = self._taken(path) if path.is_dir() else File(content, content)
        return Folder(dict(names), dict(names))

    def _at(self, path: str) -> File | Folder:
        here: File | Folder = self.root
        for part in PurePosixPath(path).parts:
            assert isinstance(here, Folder)
            here = here.seen[part]
        return here

    def _place(self, path: str) -> tuple[Folder, str]:
        pure = PurePosixPath(path)
        folder = self._at(str(pure.parent))
        assert isinstance(folder, Folder)
        return folder, pure.name

    def do(self, entry: Mapping[str, Any]) -> None:
        """Apply one entry of the journal."""
        kind, path = entry["do"], entry["path"]
        if kind == "fsync":
            found = self._at(path)
            if isinstance(found, File):
                found.flushed = found.seen
            else:
                found.flushed = dict(found.seen)
            return
        folder, name = self._place(path)
        if kind in ("open", "write", "truncate"):
            file = folder.seen.setdefault(name, File())
            assert isinstance(file, File)
            file.seen = entry["content"].encode("latin-1")
        elif kind == "mkdir":
            folder.seen[name] = Folder()
        elif kind in ("unlink", "rmdir"):
            folder.seen.pop(name, None)
        elif kind in ("rename", "link"):
            to, new = self._place(entry["to"])
            to.seen[new] = folder.seen[name] if kind == "link" else folder.seen.pop(name)
        else:
            raise AssertionError(f"unknown operation {kind!r}")

    def write_out(self, folder: Path, disk: str) -> None:
        """Write what outlives the power into an empty folder."""
        self._written(self.root, folder, disk)

    def _written(self, node: Folder, folder: Path, disk: str) -> None:
        folder.mkdir(exist_ok=True)
        for name, inside in (node.flushed if disk == "strict" else node.seen).items():
            if isinstance(inside, Folder):
                self._written(inside, folder / name, disk)
            else:
                (folder / name).write_bytes(inside.flushed)


def lose_power(folder: Path, journal: Sequence[Mapping[str, Any]], upto: int, disk: str) -> None:
    """Leave in `folder`, which is as it was before the command, what outlives a power cut after `upto` operations."""
    model = Disk(folder)
    for entry in journal[:upto]:
        model.do(entry)
    shutil.rmtree(folder)
    model.write_out(folder, disk)

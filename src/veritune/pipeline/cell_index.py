"""An index of a study's cells, so that listing ten thousand of them reads one file and looks at each summary's stamp.

It lies in the user's cache (`$VERITUNE_CACHE/cells/`), never in the study: a reader writes nothing there. It holds what
was read, with size and time of the file it was read from, and is believed only while those are the same. It serves
lists for people; whether a cell is done is decided from the records themselves.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.files import sha256_text
from veritune.machine import package_stamp
from veritune.train.models import cache_dir
from veritune.train.schedule import Cell

if TYPE_CHECKING:
    from veritune.records import JsonValue

MADE_FROM = ("study.yaml", "contract.lock.json", "selection.json", "shapes.json")
"""Files of a study that its list of cells follows from."""
Stamp = list[int]
DoneFields = tuple[int | None, float | None, str | None]
"""Steps, final loss and host of a finished cell."""


class CellIndex:
    """A cache of what the summaries of one study say; `save` writes what was added."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.path = cache_dir() / "cells" / f"{sha256_text(str(self.root))[:24]}.json"
        self.made_from = {name: _stamp(str(self.root / name)) for name in MADE_FROM}
        self.code = package_stamp()
        self.planned: list[tuple[Cell, str]] = []
        self.done: dict[str, tuple[Stamp, str, DoneFields]] = {}
        self.changed = False
        self._load()

    def _load(self) -> None:
        try:
            kept = json.loads(self.path.read_bytes())
            if kept["root"] != str(self.root):
                return
            self.done = {k: (v[0], v[1], (v[2], v[3], v[4])) for k, v in kept["done"].items()}
            if kept["made_from"] == self.made_from and kept["code"] == self.code:
                self.planned = [(_cell(row), row[-1]) for row in kept["cells"]]
        except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            self.planned, self.done = [], {}  # a cache: what cannot be read is made again

    def plan(self, cells: list[tuple[Cell, str]]) -> None:
        """Register the study's cells, each with the hash that its summary must have been made from."""
        self.planned, self.changed = cells, True

    def finished(self, run_id: str, expected: str) -> DoneFields | None:
        """The content of a run's summary, if the file is unchanged since it was read and was made from the expected
        inputs.
        """
        known = self.done.get(run_id)
        if known is None or known[1] != expected:
            return None
        return known[2] if _stamp(f"{self.root}/runs/{run_id}/summary.json") == known[0] else None

    def add(self, run_id: str, made_from: str, fields: DoneFields) -> None:
        """Add what a summary says, with a stamp of its file; a file that changes meanwhile is read again the next
        time."""
        stamp = _stamp(f"{self.root}/runs/{run_id}/summary.json")
        if stamp:
            self.done[run_id], self.changed = (stamp, made_from, fields), True

    def save(self) -> None:
        """Write the index if something was added. A cache that cannot be written is ignored."""
        if not self.changed:
            return
        body = {
            "root": str(self.root),
            "made_from": self.made_from,
            "code": self.code,
            "cells": [[*asdict(cell).values(), made_from] for cell, made_from in self.planned],
            "done": {run_id: [stamp, made, *fields] for run_id, (stamp, made, fields) in self.done.items()},
        }
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            partial.write_text(json.dumps(body), encoding="utf-8")
            partial.replace(self.path)


def _cell(row: list[JsonValue]) -> Cell:
    run_id, phase, condition, seed, lr, input_hash, shape, _ = row
    pair = tuple(shape) if isinstance(shape, list) else None
    return Cell(str(run_id), str(phase), str(condition), seed, lr, str(input_hash), pair)  # type: ignore[arg-type]


def _stamp(path: str) -> Stamp:
    """Time (ns), size and inode of a file; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]

"""Claims on probes from end to end: every family of quantities read from the record that its own probe makes on the
tiny model, with its interval, and decided by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.cli import app
from veritune.decide.claims import ClaimSpec, Context, judge
from veritune.decide.recorded import AtLevel, ByLevel, Recorded, Widened
from veritune.errors import ScoreError, StudyError
from veritune.probe.names import PATTERNS, known_names, nearest, pattern_of
from veritune.stages import recorded_quantities
from veritune.stages.recorded import READERS
from veritune.stats.intervals import Student
from veritune.store import Store, read_json
from veritune.study import load_study

ARM = "all_layer"


@dataclass(frozen=True)
class Probed:
    """A finished study with a record of every probe in it. `runs` are the ids of all finished runs."""

    root: Path
    runs: tuple[str, ...]

    @property
    def store(self) -> Store:
        return Store(self.root)

    @property
    def of_arm(self) -> list[str]:
        return [run for run in self.runs if run.startswith(ARM)]

    def quantities(self) -> dict[str, Recorded]:
        return recorded_quantities(self.store, self.runs)


def _rows(root: Path, zone: str, folder: Path) -> Path:
    """The rows of one zone of a finished study as a file."""
    split = read_json(root / "audit" / "split.json")
    rows = [json.loads(line) for line in (root / "rows.jsonl").read_text("utf-8").splitlines()]
    mine = [row for row in rows if split["zones_of_rows"][row["id"]] == zone]
    path = folder / f"{zone}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in mine), "utf-8")
    return path

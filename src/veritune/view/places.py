"""What lies under the folders that were named: studies, audits, folders of score files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veritune.config.load import load_study
from veritune.errors import InputError, VerituneError
from veritune.records import Contract
from veritune.results.ledger import FILE
from veritune.store import Store, read_json

Kind = Literal["study", "audit", "scores"]
DEPTH = 4
"""Folders below a named one that are looked into."""

LOGS = (".jsonl", ".csv", ".parquet", ".eval", ".json", ".tsv")
OURS = (FILE, "results.head.json")
"""A results index: no scores."""

SKIP = {"runs", "node_modules", "checkpoints", "figures", ".git", ".venv", "__pycache__"}


@dataclass(frozen=True)
class Place:
    """One thing to show. `id` is used in addresses; a path from an address is never opened."""

    id: str
    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name


def find_places(folders: Sequence[Path]) -> tuple[Place, ...]:
    """Everything to show under these folders, each once, in the order found. Raises InputError for a missing folder."""
    found: dict[Path, Place] = {}
    for folder in folders or (Path(),):
        if not folder.exists():
            raise InputError(
                f"{folder} does not exist.",
                fix="Name a folder that exists: of a study, of several studies, or of score files.",
            )
        root = folder if folder.is_dir() else folder.parent
        for path, kind in _walk(root, DEPTH):
            found.setdefault(path.resolve(), Place(_id(path), kind, path))
    return tuple(found.values())


def _id(path: Path) -> str:
    plain = re.sub(r"[^A-Za-z0-9]+", "-", path.resolve().name).strip("-")[:32] or "folder"
    return f"{plain}-{hashlib.sha256(str(path.resolve()).encode('utf-8', 'surrogateescape')).hexdigest()[:6]}"


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, Kind]]:
    kind = kind_of(folder)
    if kind is not None:
        yield folder, kind
    if kind == "study" or depth == 0:
        return
    try:
        below = sorted(
            e.name for e in os.scandir(folder) if e.is_dir(follow_symlinks=False) and not e.name.startswith(".")
        )
    except OSError:
        return
    for name in below:
        if name not in SKIP and not (kind == "audit" and name == "review"):
            yield from _walk(folder / name, depth - 1)


def kind_of(folder: Path) -> Kind | None:
    """The kind of a folder; None if it holds nothing that can be shown."""
    if (folder / "study.yaml").is_file():
        return "study"
    if (folder / "report.json").is_file() and (folder / "findings.jsonl").is_file():
        return "audit"
    return "scores" if any(_score_files(folder)) else None


def _score_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(e.name for e in os.scandir(folder) if e.is_file() and not e.name.startswith((".", "_")))
    except OSError:
        return
    own = OURS if FILE in entries else ()
    yield from (folder / name for name in entries if name.endswith(LOGS) and name not in own)


def data_folder(place: Place) -> Path | None:
    """The data version that a study's contract names, else the newest; None if no data is prepared."""
    store = Store(place.path)
    try:
        if store.contract_file.exists():
            folder = store.data(Contract.load(store.contract_file).facts.data_version)
            return folder if (folder / "rows.parquet").is_file() else None
    except VerituneError:
        pass
    found = list((place.path / "data").glob("*/rows.parquet"))
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent if found else None


def data_file(place: Place) -> str:
    """The data file of an audit or a study, as written on a command line; `DATA` if unknown."""
    try:
        if place.kind == "study":
            return str(place.path / load_study(place.path / "study.yaml").data.path)
        record = read_json(place.path / "report.json")
        return str(record["source"]) if isinstance(record, dict) and record.get("source") else "DATA"
    except (VerituneError, OSError):
        return "DATA"


def score_files(place: Place) -> dict[str, Path]:
    """The score files of a folder by name, or a study's by `run/eval`."""
    if place.kind == "audit":
        return {}
    if place.kind == "scores":
        return {path.name: path for path in _score_files(place.path)}
    paths = sorted((place.path / "runs").glob("*/scores/*.jsonl"))
    return {f"{p.parent.parent.name}/{p.stem}": p for p in paths if "." not in p.stem}


def file_in(place: Place, name: str) -> Path | None:
    """A regular file of a place by its relative name; None if it does not exist or lies outside the place."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        return None
    root, path = place.path.resolve(), place.path.joinpath(*parts)
    try:
        inside = path.resolve(strict=True).is_relative_to(root)
    except (OSError, RuntimeError):
        return None
    return path if inside and path.is_file() else None

"""`runs/<run_id>/manifest.json`: everything needed to make a run again, written before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from veritune.records.base import Record, RecordPart
from veritune.records.common import Json


@dataclass(frozen=True, slots=True)
class NamedModel(RecordPart):
    """The base model of a run; `backend` and `base_model` (the server's name for it) only if a server trains."""

    name: str
    dtype: str
    backend: str | None = None
    base_model: str | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("backend", "base_model")


@dataclass(frozen=True, slots=True)
class TrainedRows(RecordPart):
    """The data version, and the ids of the rows that the run trains on, in order; none for the untouched baseline."""

    version: str
    seen_rows: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GitState(RecordPart):
    """The git repository around the study folder; `changed` is None if unknown."""

    commit: str
    changed: bool | None


@dataclass(frozen=True, slots=True)
class MachineFacts(RecordPart):
    """The machine that a run started on: cores it may use, memory in bytes, GPUs by name; `cuda` is None without
    CUDA."""

    system: str
    machine: str
    python: str
    cores: int
    torch_threads: int
    torch_interop_threads: int
    processor: str | None
    vector_instructions: str
    memory_bytes: int
    accelerators: tuple[str, ...]
    cuda: str | None
    deterministic_algorithms: bool


@dataclass(frozen=True, slots=True)
class RunManifest(Record):
    """Everything needed to repeat one run. Paths are relative to the study folder.

    `method` and `train` are the study's own settings, as `study.yaml` names them. `steps` are the optimizer steps
    planned (None for the baseline), `seeds` those of each random generator, `git` is None outside a repository,
    `exploratory` says that the run began before a freeze. `trained_elsewhere` marks adopted weights: their seeds, and
    the rows that they saw, are not known here. `command` is what was typed, `host` the machine's name.
    """

    run_id: str
    phase: str
    condition: str
    seed: int
    lr: float
    input_hash: str
    model: NamedModel
    method: Json
    train: Json
    data: TrainedRows
    packages: Mapping[str, str]
    machine: MachineFacts
    created: str
    steps: int | None
    seeds: Mapping[str, int]
    git: GitState | None
    exploratory: bool
    command: str
    host: str
    trained_elsewhere: Literal[True] | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("trained_elsewhere",)

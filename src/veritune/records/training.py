"""`runs/<run_id>/training.json`: what a run trained, the checkpoints it could choose from, and the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from veritune.errors import StaleError
from veritune.records.base import Record, RecordPart
from veritune.records.common import Json


@dataclass(frozen=True, slots=True)
class MemoryPeak(RecordPart):
    """The peak memory during a piece of work, in bytes; `before` is what was held when it began.

    `bytes` is None where it cannot be told; then `reason` says why. `source` names the counter.
    """

    bytes: int | None
    before: int | None
    source: str
    reason: str | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("reason",)


@dataclass(frozen=True, slots=True)
class Trainable(RecordPart):
    """What a condition trains: parameter counts are numbers of scalars, `modules` names every matched module.

    `share` is `n_trainable` / `n_total`.
    """

    method: str
    options: Json
    modules: tuple[str, ...]
    n_trainable: int
    n_total: int
    share: float

    @classmethod
    def of(cls, method: str, options: Json, modules: tuple[str, ...], n_trainable: int, n_total: int) -> Trainable:
        """The same numbers, with the share computed."""
        return cls(method, options, modules, n_trainable, n_total, n_trainable / n_total)


@dataclass(frozen=True, slots=True)
class CheckpointCandidate(RecordPart):
    """A step that could be chosen, with its validation NLL (nats per target token).

    `checkpoint` is its folder, relative to the study; None where it was not kept. `by_source` is the same loss by where
    the rows come from, there only where the data says so.
    """

    step: int
    validation_nll: float
    checkpoint: str | None
    by_source: Mapping[str, float] | None = field(default=None, kw_only=True)

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("by_source",)


@dataclass(frozen=True, slots=True)
class ServerCandidate(CheckpointCandidate):
    """A candidate checkpoint on a server: the path of its converted weights, another name for them, and when they
    expire.
    """

    sampler: str | None
    external: str | None
    expires: str | None


@dataclass(frozen=True, slots=True)
class ServerExport(RecordPart):
    """An adapter downloaded from a training server: SHA-256 by file, modules whose B is not zero, number of scalars."""

    files: Mapping[str, str]
    modules: tuple[str, ...]
    parameters: int
    completed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ServerTraining(RecordPart):
    """The settings that a training server was given, those that it decides itself, and those it does not report.

    `not_had` maps what a local run records to the reason why it is missing; `differs` says where the exported adapter
    is not what was asked, None (as `exported`) where nothing was exported.
    """

    backend: str
    sdk: str
    asked: Json
    server_owned: Mapping[str, str]
    rows_sent: int
    not_had: Mapping[str, str]
    exported: ServerExport | None
    differs: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class AdoptedRows(RecordPart):
    """The rows that an adopted training is said to have used, compared with the study's zones.

    `by_zone` counts them by the zone of the study's row with the same words; `unknown` are in no zone. `held_out` are
    the study's validation, sibling and stranger rows among them; `near` held-out rows with a near-copy among them.
    """

    file: str
    sha256: str
    rows: int
    by_zone: Mapping[str, int]
    unknown: int
    held_out: tuple[str, ...]
    near: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Elsewhere(RecordPart):
    """A training that was done outside this study: the files that were given, and what could not be checked.

    `form` is the shape that the weights came in, `files` maps every file that was handed in to its SHA-256, `told` is
    what its trainer's own records say, `differs` where that is not what the study declares, `despite` the reason given
    for adopting it although it trained on held-out rows.
    """

    form: str
    files: Mapping[str, str]
    told: Json
    rows: AdoptedRows | None
    differs: tuple[str, ...]
    not_checked: tuple[str, ...]
    despite: str | None


@dataclass(frozen=True, slots=True)
class TrainingRecord(Record):
    """A finished training. Losses are in nats per target token, `train_s` in seconds, `tokens` counts tokens with loss.

    `rows_compared_with_contract` and `processes` are None where a server trained; `backend` is there only then.
    `elsewhere` is there where the weights were adopted; what their trainer did not record is None then.
    """

    input_hash: str
    steps: int | None
    processes: int | None
    checkpoint: str | None
    best_step: int
    validation_nll: float
    candidates: tuple[CheckpointCandidate | ServerCandidate, ...]
    final_loss: float | None
    trainable: Trainable
    rows_compared_with_contract: int | None
    train_s: float | None
    tokens: int | None
    peak_memory: MemoryPeak
    backend: ServerTraining | None = None
    elsewhere: Elsewhere | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("backend", "elsewhere")

    @property
    def chosen(self) -> CheckpointCandidate:
        """The candidate whose weights are scored."""
        return next(c for c in self.candidates if c.step == self.best_step)

    @property
    def server_expiry(self) -> str | None:
        """When the only copy of the chosen weights, on a server, is deleted (ISO 8601); None if they are here."""
        chosen = self.chosen
        only_there = self.backend is not None and self.backend.exported is None and self.checkpoint is None
        return chosen.expires if only_there and isinstance(chosen, ServerCandidate) else None

    def weights_in(self, root: Path) -> Path:
        """The chosen checkpoint's folder in the study at `root`. Raises StaleError if none was kept."""
        if self.checkpoint is None:
            raise StaleError(
                f"{root}: this run has no checkpoint, because it only chose a setting.", fix="Name a run of phase main."
            )
        return root / self.checkpoint

"""Where a cell trains: one narrow interface, `TrainingBackend`, and what is scored afterwards, `RunWeights`.

Two implementations: `Local`, which is `transformers.Trainer` on this machine, and `train.remote.Tinker`, a server that
speaks the Tinker API. `backend_of` gives the one that the study names; nobody else asks which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from veritune.config.study import Study
from veritune.errors import StudyError
from veritune.records import (
    BaseFacts,
    Conversion,
    DecodingNotes,
    LiveProbe,
    MemoryPeak,
    Rendered,
    RunManifest,
    TrainingRecord,
    ZoneLoss,
)
from veritune.train.models import ModelRef, attention_for, resolve, weight_hashes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veritune.train.cells import Context
    from veritune.train.schedule import Cell


class Memory(Protocol):
    """The most memory held since it was made."""

    def read(self) -> MemoryPeak:
        """The peak, or why it cannot be told."""


class RunWeights(Protocol):
    """What is scored: a cell's chosen weights, or the untouched base.

    `model` is the model itself where it lies in this process, else None.
    """

    model: Any
    generation_config: Any

    def decoding(self, max_new_tokens: int, batch_size: int) -> DecodingNotes:
        """How answers are made, for their record."""

    def nll(self, rows: Sequence[Rendered]) -> list[tuple[float, int]]:
        """For each row its summed NLL in nats and its number of target tokens. Raises ModelError where none is had."""

    def confirm(self, zones: Mapping[str, ZoneLoss]) -> Conversion | None:
        """What their losses by zone confirm, for the record. Raises GateError where they are not the chosen weights."""

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Greedy answers: token ids and why each ended (`stop` or `length`), in the order of `prompts`."""

    def close(self) -> None:
        """Let go of what they hold elsewhere."""


class TrainingBackend(Protocol):
    """One place where cells train."""

    name: str

    def refuse(self) -> None:
        """Raises StudyError for settings that this backend cannot follow, before anything is spent."""

    def model(self, root: Path) -> ModelRef:
        """The base model as far as this machine has to hold it. Raises ModelError."""

    def facts(self, model: ModelRef) -> BaseFacts:
        """What the contract freezes of the base model."""

    def bare(self, model: ModelRef) -> PreTrainedModel:
        """The base's modules, for finding out what a condition trains."""

    def manifest(self, local: RunManifest) -> RunManifest:
        """A run's manifest, given the one of a local run."""

    def live(
        self, context: Context, cell: Cell, work: Path, score: Callable[[PreTrainedModel], None] | None = None
    ) -> LiveProbe:
        """A few real steps before anything is spent. Raises GateError where they do not do what they must.

        `score` answers with a model in this process, for what that takes of its memory.
        """

    def train(self, context: Context, cell: Cell) -> TrainingRecord | None:
        """Train the cell, or confirm that it is trained; None in a process that helps another one train it."""

    def trained(self, context: Context, cell: Cell) -> RunWeights:
        """The cell's chosen weights, or for the baseline the untouched base, ready to be scored."""

    def base(self, context: Context) -> RunWeights:
        """The untouched base."""

    def memory(self) -> Memory:
        """A measurement of memory, from now on."""


def backend_of(study: Study) -> TrainingBackend:
    """The backend that the study names."""
    if study.backend.name == "tinker":
        from veritune.train.backends.remote import Tinker

        return Tinker(study)
    return Local(study)


class Local:
    """`transformers.Trainer` on this machine."""

    name = "local"

    def __init__(self, study: Study) -> None:
        self.study = study

    def refuse(self) -> None:
        """Every setting can be followed here."""

    def model(self, root: Path) -> ModelRef:
        """The base model's folder."""
        return replace(resolve(self.study.model, root), attention=attention_for(self.study.train.max_length))

    def facts(self, model: ModelRef) -> BaseFacts:
        """Name, precision, how attention is computed where it is not left open, and the hash of every weight file."""
        return BaseFacts(model.name, model.dtype, weight_hashes(model), attention=model.attention or None)

    def bare(self, model: ModelRef) -> PreTrainedModel:
        """The loaded base."""
        from veritune.train.models import load_base

        return load_base(model)

    def manifest(self, local: RunManifest) -> RunManifest:
        """The one given."""
        return local

    def live(
        self, context: Context, cell: Cell, work: Path, score: Callable[[PreTrainedModel], None] | None = None
    ) -> LiveProbe:
        """See `cells.live_probe`."""
        from veritune.train.cells import live_probe

        return live_probe(context, cell, work, score)

    def train(self, context: Context, cell: Cell) -> TrainingRecord | None:
        """See `cells.train`."""
        from veritune.train.cells import train

        return train(context, cell)

    def trained(self, context: Context, cell: Cell) -> RunWeights:
        """See `cells.load_trained`."""
        from veritune.train.cells import load_trained

        return LocalWeights(load_trained(context, cell), context.tokenizer.pad_token_id)

    def base(self, context: Context) -> RunWeights:
        """The loaded base."""
        return LocalWeights(self.bare(context.model), context.tokenizer.pad_token_id)

    def memory(self) -> Memory:
        """Of this process, or of its accelerator."""
        from veritune.machine import PeakMemory

        return PeakMemory()


class LocalWeights:
    """A model in this process."""

    def __init__(self, model: PreTrainedModel, pad_id: int) -> None:
        self.model = model
        self.generation_config = model.generation_config
        self.pad_id = pad_id

    def decoding(self, max_new_tokens: int, batch_size: int) -> DecodingNotes:
        """Greedy, in batches of this size."""
        return DecodingNotes(True, max_new_tokens, batch_size)

    def nll(self, rows: Sequence[Rendered]) -> list[tuple[float, int]]:
        """See `trainer.row_nll`."""
        from veritune.train.trainer import row_nll

        return row_nll(self.model, rows, self.pad_id)

    def confirm(self, zones: Mapping[str, ZoneLoss]) -> None:
        """Nothing: they were read from the checkpoint itself."""

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Raises NotImplementedError: `evaluate.generate` has the batches of a model in this process."""
        raise NotImplementedError("evaluate.generate.generate answers with a model in this process")

    def close(self) -> None:
        """Nothing is held elsewhere."""


def refuse_settings(name: str, found: Sequence[str]) -> None:
    """Raises StudyError naming every setting that the backend cannot follow; none: nothing happens."""
    if found:
        raise StudyError(
            f"backend: {name} cannot follow this study: " + "; ".join(found) + ".",
            fix="Take them out, or use `backend: local`. Nothing has run.",
        )

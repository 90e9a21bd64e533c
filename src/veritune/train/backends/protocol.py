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
from veritune.machine import PeakMemory
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
    """Measures peak memory from its creation on."""

    def read(self) -> MemoryPeak:
        """The peak, or why it cannot be measured."""


class RunWeights(Protocol):
    """The weights to score: a cell's chosen ones, or the untouched base.

    `model` is the model itself where it lies in this process, else None.
    """

    model: Any
    generation_config: Any

    def decoding(self, max_new_tokens: int, batch_size: int) -> DecodingNotes:
        """How answers are generated, for their record."""

    def nll(self, rows: Sequence[Rendered]) -> list[tuple[float, int]]:
        """For each row its summed NLL in nats and its number of target tokens. Raises ModelError if they cannot be
        computed.
        """

    def confirm(self, zones: Mapping[str, ZoneLoss]) -> Conversion | None:
        """Check by losses per zone that these are the chosen weights, and return the result for the record. Raises
        GateError if they are not.
        """

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Greedy answers: token ids and why each ended (`stop` or `length`), in the order of `prompts`."""

    def close(self) -> None:
        """Release resources held elsewhere."""


class TrainingBackend(Protocol):
    """A place where cells train, as an interface."""

    name: str

    def refuse(self) -> None:
        """Raises StudyError for settings that this backend cannot follow, before anything is paid for."""

    def model(self, root: Path) -> ModelRef:
        """The files of the base model that this machine needs. Raises ModelError."""

    def facts(self, model: ModelRef) -> BaseFacts:
        """The facts about the base model that the contract freezes."""

    def bare(self, model: ModelRef) -> PreTrainedModel:
        """The base's modules, used to find out what a condition trains."""

    def manifest(self, local: RunManifest) -> RunManifest:
        """A run's manifest, made from that of a local run."""

    def live(
        self, context: Context, cell: Cell, work: Path, score: Callable[[PreTrainedModel], None] | None = None
    ) -> LiveProbe:
        """Make a few real steps before training is paid for. Raises GateError if they do not train what was declared.

        `score` answers with a model in this process, for what that takes of its memory.
        """

    def train(self, context: Context, cell: Cell) -> TrainingRecord | None:
        """Train the cell, or confirm that it is trained; None in a helper process of another one that trains it."""

    def trained(self, context: Context, cell: Cell) -> RunWeights:
        """The cell's chosen weights, or for the baseline the untouched base, ready to be scored."""

    def base(self, context: Context) -> RunWeights:
        """The untouched base."""

    def memory(self) -> Memory:
        """A new measurement of memory that starts now."""


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
        """Does nothing: this backend can follow every setting."""

    def model(self, root: Path) -> ModelRef:
        """The base model's folder."""
        return replace(resolve(self.study.model, root), attention=attention_for(self.study.train.max_length))

    def facts(self, model: ModelRef) -> BaseFacts:
        """Name, precision, the attention implementation if it is fixed, and the hash of every weight file."""
        return BaseFacts(model.name, model.dtype, weight_hashes(model), attention=model.attention or None)

    def bare(self, model: ModelRef) -> PreTrainedModel:
        """The loaded base."""
        from veritune.train.models import load_base

        return load_base(model)

    def manifest(self, local: RunManifest) -> RunManifest:
        """The given manifest, unchanged."""
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
        """Measures the memory of this process, or of its accelerator."""
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
        """Does nothing: the weights were read from the checkpoint itself."""

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """Raises NotImplementedError: use `evaluate.generate` for a model in this process."""
        raise NotImplementedError("evaluate.generate.generate answers with a model in this process")

    def close(self) -> None:
        """Does nothing: no resources are held elsewhere."""


def refuse_settings(name: str, found: Sequence[str]) -> None:
    """Raises StudyError naming every setting that the backend cannot follow, if there is any."""
    if found:
        raise StudyError(
            f"backend: {name} cannot follow this study: " + "; ".join(found) + ".",
            fix="Remove these settings, or use `backend: local`. Nothing has run.",
        )

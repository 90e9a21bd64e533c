"""What `transformers.Trainer` hands the methods of a callback by name, and the batches that our trainer is fed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.utils.data import DataLoader
    from transformers import PreTrainedModel


class TrainRow(TypedDict):
    """A row as the collator takes it: token ids and labels of one length, and its place in the contract's order."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    row_index: int


class EventParts(TypedDict, total=False):
    """The parts of a Trainer that it names at each event (transformers/trainer_callback.py, `call_event`)."""

    model: PreTrainedModel
    optimizer: Optimizer
    train_dataloader: DataLoader[TrainRow]
    eval_dataloader: DataLoader[TrainRow]
    metrics: dict[str, float]

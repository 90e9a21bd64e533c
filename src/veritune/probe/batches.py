"""Rendered rows to padded batches, and each row's own loss: what every probe that runs the model shares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from veritune.errors import DataError
from veritune.records import Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded rows: token ids, labels (-100 where no loss falls) and attention mask, each [N, T] int64."""

    ids_N_T: torch.Tensor
    labels_N_T: torch.Tensor
    mask_N_T: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids_N_T.to(device), self.labels_N_T.to(device), self.mask_N_T.to(device))


def collate(rows: Sequence[Rendered]) -> Batch:
    """Rows padded on the right to the longest one. The pad id is 0; it is neither attended to nor scored."""
    length = max(len(r.input_ids) for r in rows)
    ids_N_T = torch.zeros(len(rows), length, dtype=torch.long)
    labels_N_T = torch.full((len(rows), length), IGNORE, dtype=torch.long)
    mask_N_T = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        ids_N_T[i, :n] = torch.tensor(row.input_ids)
        labels_N_T[i, :n] = torch.tensor(row.labels)
        mask_N_T[i, :n] = 1
    return Batch(ids_N_T, labels_N_T, mask_N_T)


def in_batches(rows: Sequence[Rendered], batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Index lists and batches over all rows; rows of similar length are batched together to keep padding small."""
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i].input_ids), i))
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        yield index, collate([rows[i] for i in index])


def require_targets(rows: Sequence[Rendered]) -> None:
    """Raises DataError when there are no rows, or one has no scored token (the first token never is)."""
    if not rows:
        raise DataError("a probe needs rows, but none were given.", fix="Check the data file and the requested zone.")
    bad = [r.row_id for r in rows if not any(label != IGNORE for label in r.labels[1:])]
    if bad:
        shown = ", ".join(bad[:3]) + (" ..." if len(bad) > 3 else "")
        raise DataError(
            f"{len(bad)} of {len(rows)} rows have no target token after the first position ({shown}).",
            fix="Drop these rows, or check the template's loss mask: a probe needs at least one scored token per row.",
        )


def token_losses(model: PreTrainedModel, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL in nats of every target token, and which positions are targets, both [N, T - 1] (position t predicts t +
    1)."""
    logits_N_T_V = model(input_ids=batch.ids_N_T, attention_mask=batch.mask_N_T, use_cache=False).logits
    logits_N_T_V = logits_N_T_V[:, -batch.ids_N_T.shape[1] :]  # virtual tokens of a prompt method come first
    target = batch.labels_N_T[:, 1:]
    # Transposing to [N, V, T] would be shorter and 6 times slower; flattened rows stay contiguous.
    flat = logits_N_T_V[:, :-1].reshape(-1, logits_N_T_V.shape[-1])
    wide = flat if flat.dtype in (torch.float32, torch.float64) else flat.float()
    loss = F.cross_entropy(wide, target.reshape(-1), ignore_index=IGNORE, reduction="none")
    return loss.view(target.shape), target != IGNORE


def mean_losses(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Each row's mean NLL over its own target tokens [N], in nats."""
    loss_N_T, scored_N_T = token_losses(model, batch)
    mean_N: torch.Tensor = loss_N_T.sum(1) / scored_N_T.sum(1).clamp(min=1)
    return mean_N


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode until the block ends (no dropout), then restore each module's own mode."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def model_device(model: torch.nn.Module) -> torch.device:
    """The device for token ids: that of the input embedding."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    tensor = next((embedding if embedding is not None else model).parameters())
    return tensor.device

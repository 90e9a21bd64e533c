"""What a condition may add to the plain loss, or take off a step, to lose less of the base while it learns.

    kl_to_base    + c · KL(p_base ‖ p)                 Li & Hoiem 2016, Learning without Forgetting (arXiv:1606.09282)
    r3f           + c · (KL(p ‖ q) + KL(q ‖ p))        Aghajanyan et al. 2020, Better Fine-Tuning by Reducing
                                                       Representational Collapse (arXiv:2008.03156)
    update_clip   ΔW / max(1, RMS(ΔW) / (lr · c))      Shazeer & Stern 2018, Adafactor, section 6 (arXiv:1804.04235)

p are the model's probabilities at the positions that predict a target token, q those with noise z on the embeddings
(normal or uniform, `r3f_noise`), p_base the untouched model's, without dropout. Both penalties are means per target
token, like the loss. `update_clip` caps each trained tensor's change of one optimizer step, weight decay included.
NEFTune (Jain et al. 2023, arXiv:2310.05914) is `transformers`' own: `neftune_noise_alpha`. A coefficient of 0 takes the
plain way, bit for bit: nothing is computed and no random number is drawn.

Axes: N target positions, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Unpack

import torch
import torch.nn.functional as F
from transformers import TrainerCallback

from veritune.config.train import R3F_NOISE, Condition
from veritune.errors import GateError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainerControl, TrainerState, TrainingArguments

    from veritune.train.events import EventParts

Logits = Callable[["PreTrainedModel"], torch.Tensor]
"""Logits [N, V] of a model at the target positions of the batch."""
NOISE_KEPT = 0.5
"""The least share of embedding values that noise must change: below it, rounding has eaten the method."""


@dataclass(frozen=True)
class Penalties:
    """Coefficients of the penalties of one condition, and the noise of R3F."""

    kl_to_base: float = 0.0
    r3f: float = 0.0
    noise: float = R3F_NOISE
    draw: Literal["normal", "uniform"] = "normal"

    @classmethod
    def of(cls, condition: Condition) -> Penalties:
        """The penalties that a condition declares; coefficients that are left out are 0."""
        noise = R3F_NOISE if condition.r3f_noise is None else condition.r3f_noise
        return cls(condition.kl_to_base or 0.0, condition.r3f or 0.0, noise, condition.r3f_draw or "normal")

    def __bool__(self) -> bool:
        return self.kl_to_base > 0 or self.r3f > 0


class Regulariser:
    """Adds penalties to a summed loss and keeps their sums for the log. `base` is the untouched model of a full
    fine-tuning; for a PEFT model the adapter is switched off instead.
    """

    def __init__(self, penalties: Penalties, model: PreTrainedModel) -> None:
        self.penalties = penalties
        adapter = hasattr(model, "disable_adapter")
        self.base = None if adapter or not penalties.kl_to_base else _frozen_copy(model)
        self.sums: dict[str, float] = {}

    def add(
        self, model: PreTrainedModel, logits_N_V: torch.Tensor, logits_of: Logits, nll: torch.Tensor
    ) -> torch.Tensor:
        """`nll` (summed over N) plus the weighted penalties, summed over N."""
        total, parts = nll, {"nll": nll}
        if self.penalties.kl_to_base > 0:
            with self._untouched(model) as base, torch.no_grad():
                base_N_V = logits_of(base)
            parts["kl_to_base"] = kl(base_N_V, logits_N_V)
            total = total + self.penalties.kl_to_base * parts["kl_to_base"]
        if self.penalties.r3f > 0:
            with noisy_embeddings(model, self.penalties):
                noised_N_V = logits_of(model)
            parts["r3f"] = kl(logits_N_V, noised_N_V) + kl(noised_N_V, logits_N_V)
            total = total + self.penalties.r3f * parts["r3f"]
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        return total

    def means(self, n_tokens: float) -> dict[str, float]:
        """The mean of each part per target token since the last call; `nll` is the plain loss."""
        made = {name: value / n_tokens for name, value in self.sums.items()}
        self.sums = {}
        return made

    @contextmanager
    def _untouched(self, model: PreTrainedModel) -> Iterator[PreTrainedModel]:
        """The base while the block runs: no adapter, no dropout, no noise."""
        if self.base is not None:
            yield self.base
            return
        was_training = model.training
        model.eval()
        try:
            with model.disable_adapter():
                yield model
        finally:
            model.train(was_training)


def kl(p_N_V: torch.Tensor, q_N_V: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) in nats from logits, summed over positions, in float32 at least."""
    p, q = (x if x.dtype == torch.float64 else x.float() for x in (p_N_V, q_N_V))
    return F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="sum", log_target=True)


@contextmanager
def noisy_embeddings(model: PreTrainedModel, penalties: Penalties) -> Iterator[None]:
    """Add noise to the input embeddings while the block runs. Raises GateError if rounding removes the noise."""

    def add_noise(_module: torch.nn.Module, _args: tuple[torch.Tensor, ...], out: torch.Tensor) -> torch.Tensor:
        drawn = torch.empty_like(out)
        noise = drawn.normal_(0, penalties.noise) if penalties.draw == "normal" else drawn.uniform_(-1, 1)
        noised = out + (noise if penalties.draw == "normal" else noise * penalties.noise)
        kept = float((noised != out).float().mean())
        if kept < NOISE_KEPT:
            raise GateError(
                f"r3f_noise: {penalties.noise:g} changes only {kept:.0%} of the embeddings' values in {out.dtype}: "
                "rounding removes the rest, so the penalty would have no effect.",
                fix="Set model.dtype: float32, or a larger r3f_noise.",
            )
        return noised

    handle = model.get_input_embeddings().register_forward_hook(add_noise)
    try:
        yield
    finally:
        handle.remove()


def _frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    made = copy.deepcopy(model).eval()
    made.requires_grad_(False)
    return made


class UpdateClip(TrainerCallback):  # type: ignore[misc]
    """Scales each trained tensor's change in a step so that its root mean square is at most `most` learning rates."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.clipped = 0
        self._before: list[tuple[torch.nn.Parameter, torch.Tensor, float]] = []

    def on_pre_optimizer_step(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        self._before = [
            (p, p.detach().clone(), float(group["lr"]))
            for group in kwargs["optimizer"].param_groups
            for p in group["params"]
            if p.grad is not None
        ]

    @torch.no_grad()
    def on_optimizer_step(
        self, _args: TrainingArguments, _state: TrainerState, _control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        for parameter, before, rate in self._before:
            change = parameter - before
            rms = float(change.norm()) / math.sqrt(change.numel())
            most = self.most * rate
            if rms > most:
                self.clipped += 1
                parameter.copy_(before + change * (most / rms) if most > 0 else before)
        self._before = []

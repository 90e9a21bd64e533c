"""Adapter and merged model on the same rows: logits, KL per position, loss, greedy answers, and what rounding makes.

What rounding alone makes is measured beside it, with several draws: the merged weights are rounded once more at random,
each touched weight moving to a neighbour in its own precision with chance 1/12, which has the variance of one rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from veritune.config.thresholds import DEFAULTS, MergeThresholds
from veritune.errors import InputError, ModelError
from veritune.evaluate.generate import Decoding, generate
from veritune.records import Json, JsonLike, Rendered

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veritune.evaluate.generate import Output
    from veritune.train.events import TrainRow

"""Floor in nats below which differences are not told from arithmetic itself."""


@dataclass(frozen=True)
class MergeOptions:
    """How to compare outputs: precision used in serving, rows per batch, tokens of a greedy answer.

    `seed` is that of the first of the `draws` that make the floor. Raises InputError for fewer than two draws.
    """

    dtype: str = "bfloat16"
    batch_size: int = 8
    max_new_tokens: int = 64
    seed: int = 0
    draws: int = 5
    thresholds: MergeThresholds = DEFAULTS.merge

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InputError(
                f"draws: expected 2 or more, found {self.draws}.", fix="Use at least 2: one draw has no spread."
            )


@dataclass(frozen=True)
class AnswerDivergence:
    """Where two greedy answers diverge: both next tokens, and the adapter's logit gap between its two best tokens."""

    row_id: str
    position: int
    adapter_token: str
    merged_token: str
    gap: float
    tie: bool
    context: str


@dataclass(frozen=True)
class Outputs:
    """Differences over the target positions of the rows (logits, KL in nats) and over greedy answers (counts).

    `kl_floor` is the mean KL that rounding the merged weights once more makes, over the draws in `kl_draws`; `kl_batch`
    that of another batch shape. `floors` is the mean KL in units of the larger; `floors_low` and `floors_high` are the
    same against the largest and the smallest draw, and these decide. `kl_adapter` is the mean KL between the adapter
    and its base without it: what there is to see on these rows.
    """

    positions: int
    logit_max: float
    logit_mean: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    kl_floor: float
    kl_batch: float
    floors: float
    nll: Json
    answers: int
    agree: int
    divergences: tuple[AnswerDivergence, ...]
    flips: int
    settings: Json = field(default_factory=dict)
    kl_draws: tuple[float, ...] = ()
    floors_low: float | None = None
    floors_high: float | None = None
    kl_adapter: float | None = None


def target_logits(
    model: PreTrainedModel, rows: Sequence[Rendered], pad_id: int, batch_size: int
) -> Iterator[torch.Tensor]:
    """For each row, its logits at the positions that predict a target, float32 [N, V] on the CPU."""
    import torch

    from veritune.train.trainer import collate

    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            items: list[TrainRow] = [
                {"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(chunk)
            ]
            batch = {k: v.to(device) for k, v in collate(items, pad_id).items()}
            logits_B_T_V = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits
            for b, row in enumerate(chunk):
                where = [t - 1 for t, label in enumerate(row.labels) if label != -100 and t > 0]
                yield logits_B_T_V[b, where].float().cpu()


def kl_per_position(left_N_V: torch.Tensor, right_N_V: torch.Tensor) -> torch.Tensor:
    """KL(left || right) in nats per position [N], in float64."""
    import torch.nn.functional as F

    a, b = F.log_softmax(left_N_V.double(), -1), F.log_softmax(right_N_V.double(), -1)
    return (a.exp() * (a - b)).sum(-1).clamp_min(0)


def row_losses(logits: Sequence[torch.Tensor], rows: Sequence[Rendered]) -> list[float]:
    """Mean loss of each row in nats a token."""
    import torch

    out = []
    for logits_N_V, row in zip(logits, rows):
        target_N = torch.tensor([label for t, label in enumerate(row.labels) if label != -100 and t > 0])
        out.append(float(torch.nn.functional.cross_entropy(logits_N_V, target_N)))
    return out


def rerounded(model: PreTrainedModel, names: Sequence[str], seed: int) -> PreTrainedModel:
    """The model after moving each named weight to a neighbouring value of its precision with probability 1/12, in
    place.

    The mean square of that error is ulp^2/12, that of rounding once.
    """
    import torch

    views = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in names:
                flip = torch.rand(weight.shape, generator=draw)
                step = (flip < 1 / 24).int() - ((flip >= 1 / 24) & (flip < 1 / 12)).int()
                bits = weight.data.view(views[weight.dtype])
                moved = bits + step.to(bits.device).to(bits.dtype) * (weight.data != 0).to(bits.dtype)
                weight.data.copy_(moved.view(weight.dtype))
    return model


def compare_outputs(
    adapted: PreTrainedModel,
    merged: PreTrainedModel,
    touched: Sequence[str],
    rows: Sequence[Rendered],
    tokenizer: PreTrainedTokenizerBase,
    options: MergeOptions,
) -> Outputs:
    """Compare adapter and merged model on the same rows. `touched` names the weights of the merged model that the merge
    changed.

    The merged model is re-rounded in place for the floor, and put back.
    """
    import torch

    pad = tokenizer.pad_token_id
    told = differing_answers(adapted, merged, rows, tokenizer, options)
    kl: list[Any] = []
    alone: list[Any] = []
    worst = total = count = flips = 0.0
    nll: list[tuple[float, float]] = []
    pairs = zip(
        rows,
        target_logits(adapted, rows, pad, options.batch_size),
        target_logits(merged, rows, pad, options.batch_size),
        target_logits(adapted, rows, pad, 1),
    )
    kept = []
    ties = 0.0  # the largest logit difference that rounding makes by itself
    for row, a_N_V, m_N_V, single_N_V in pairs:
        if not (torch.isfinite(a_N_V).all() and torch.isfinite(m_N_V).all()):
            raise ModelError(
                f"{row.row_id}: the logits hold NaN or infinite values in {options.dtype}.",
                fix="Serve the model in another precision; it must not ship in this one.",
            )
        ties = max(ties, float((a_N_V - single_N_V).abs().max()))
        kl.append(kl_per_position(a_N_V, m_N_V))
        alone.append(kl_per_position(a_N_V, single_N_V))
        difference = (a_N_V - m_N_V).abs()
        worst, total = max(worst, float(difference.max())), total + float(difference.sum())
        count += difference.numel()
        flips += int((a_N_V.argmax(-1) != m_N_V.argmax(-1)).sum())
        nll.append((row_losses([a_N_V], [row])[0], row_losses([m_N_V], [row])[0]))
        kept.append(m_N_V)
    draws, moved = _floor(merged, touched, rows, kept, (pad, options))
    kl_N, batch = torch.cat(kl), float(torch.cat(alone).mean())
    mean, least = float(kl_N.mean()), options.thresholds.least_kl
    units = [mean / max(floor, batch, least) for floor in (fmean(draws), max(draws), min(draws))]
    return Outputs(
        positions=len(kl_N),
        logit_max=worst,
        logit_mean=total / count,
        kl_mean=mean,
        kl_p99=float(kl_N.quantile(0.99)),
        kl_max=float(kl_N.max()),
        kl_floor=fmean(draws),
        kl_batch=batch,
        floors=units[0],
        nll=paired_change([after - before for before, after in nll]),
        answers=len(rows),
        agree=len(rows) - len(told),
        divergences=with_ties(told, max(ties, moved)),
        flips=int(flips),
        settings={"dtype": options.dtype, "batch_size": options.batch_size, "seed": options.seed,
                  "max_new_tokens": options.max_new_tokens, "draws": options.draws},
        kl_draws=tuple(draws),
        floors_low=units[1],
        floors_high=units[2],
        kl_adapter=_effect(adapted, rows, pad, options.batch_size),
    )  # fmt: skip


def _effect(adapted: PreTrainedModel, rows: Sequence[Rendered], pad: int, batch_size: int) -> float | None:
    """Mean KL between a model with its adapter and without; None where it has none to switch off."""
    import torch

    if not hasattr(adapted, "disable_adapter"):
        return None
    kept = list(target_logits(adapted, rows, pad, batch_size))
    with warnings.catch_warnings(), adapted.disable_adapter():
        warnings.simplefilter("ignore")
        without = list(target_logits(adapted, rows, pad, batch_size))
    return float(torch.cat([kl_per_position(a, b) for a, b in zip(kept, without)]).mean())


def _floor(
    merged: PreTrainedModel,
    touched: Sequence[str],
    rows: Sequence[Rendered],
    kept: Sequence[torch.Tensor],
    how: tuple[int, MergeOptions],
) -> tuple[list[float], float]:
    """Mean KL of each draw of re-rounded weights against `kept`, the logits without; and the largest logit difference
    of a draw, as the median over the draws, so that more draws do not call more a tie."""
    import torch

    pad, options = how
    before = {name: p.data.clone() for name, p in merged.named_parameters() if name in touched}
    means, largest = [], []
    for draw in range(options.draws):
        rerounded(merged, touched, options.seed + draw)
        kl, most = [], 0.0
        for m_N_V, r_N_V in zip(kept, target_logits(merged, rows, pad, options.batch_size)):
            kl.append(kl_per_position(m_N_V, r_N_V))
            most = max(most, float((m_N_V - r_N_V).abs().max()))
        means.append(float(torch.cat(kl).mean()))
        largest.append(most)
        with torch.no_grad():
            for name, p in merged.named_parameters():
                if name in before:
                    p.data.copy_(before[name])
    return means, median(largest)


def paired_change(change: Sequence[float]) -> dict[str, JsonLike]:
    """Mean over rows of the merged model's loss minus the adapter's, in nats per token, with a t interval."""
    from veritune.stats.intervals import t_quantile

    n = len(change)
    mean = sum(change) / n
    if n < 2:
        return {"value": mean, "low": None, "high": None, "n": n, "method": "one row: no interval"}
    se = math.sqrt(sum((x - mean) ** 2 for x in change) / (n - 1) / n)
    half = t_quantile(0.975, n - 1) * se
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n, "method": "paired t over rows"}


def differing_answers(
    adapted: PreTrainedModel,
    merged: PreTrainedModel,
    rows: Sequence[Rendered],
    tokenizer: PreTrainedTokenizerBase,
    options: MergeOptions,
) -> list[AnswerDivergence]:
    """The rows whose greedy answers differ, each with its first difference."""
    prompts = [prompt_of(row) for row in rows]
    decoding = Decoding(options.max_new_tokens, options.batch_size)
    left, right = (generate(model, tokenizer, prompts, decoding) for model in (adapted, merged))
    return [
        first_divergence(adapted, row, prompt, (a, b), tokenizer)
        for row, prompt, a, b in zip(rows, prompts, left, right)
        if (a.token_ids, a.ended) != (b.token_ids, b.ended)
    ]


def prompt_of(row: Rendered) -> tuple[int, ...]:
    """The token ids before the first target token."""
    first = next((t for t, label in enumerate(row.labels) if label != -100), len(row.labels))
    return row.input_ids[:first]


def first_divergence(
    model: PreTrainedModel,
    row: Rendered,
    prompt: tuple[int, ...],
    two: tuple[Output, Output],
    tokenizer: PreTrainedTokenizerBase,
) -> AnswerDivergence:
    """Where two greedy answers (`Output`s) to one prompt diverge, and how sure `model` was there; `tie` is set
    later."""
    import torch

    a, b = two[0].token_ids, two[1].token_ids
    at = next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    ids = torch.tensor([[*prompt, *a[:at]]], device=next(model.parameters()).device)
    with torch.no_grad():
        logits_V = model(input_ids=ids).logits[0, -1].float()
    best = logits_V.topk(2).values

    def token(ids: tuple[int, ...]) -> str:
        return repr(tokenizer.decode([ids[at]])) if at < len(ids) else "the end"

    context = tokenizer.decode(list(ids[0, -8:]))
    return AnswerDivergence(row.row_id, at, token(a), token(b), float(best[0] - best[1]), False, context)


def with_ties(told: Sequence[AnswerDivergence], rounding: float) -> tuple[AnswerDivergence, ...]:
    """The divergences with `tie` set where the adapter's two best tokens lie within twice what rounding alone moves a
    logit.
    """
    return tuple(replace(d, tie=d.gap <= 2 * rounding) for d in told)

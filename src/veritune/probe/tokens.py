"""Where the loss fell: which of the target tokens became easier, by how common they are across families.

    before, after = token_nlls(base, rows), token_nlls(trained, rows)
    fall = where_it_fell(rows, families, before, after, reference=seen_rows, reference_families=seen_families)

A token is classed by the trigram it ends, counted over the families of the reference rows (those trained on), its own
row left out: `template` in at least a fifth of them, `shared` in two or more, `family` in its own family alone,
`prompt` if the token stands in the row's own prompt, `novel` otherwise. A model that learns the form gains on template
tokens; one that learns the samples gains on family tokens. Training on unrelated data lowers family tokens too, so give
a `control` where there is one and read the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from veritune.config.thresholds import DEFAULTS
from veritune.errors import DataError, ScoreError
from veritune.probe.batches import IGNORE, evaluating, in_batches, model_device, require_targets, token_losses
from veritune.probe.clusters import SAME, Bools, Floats, Ints, codes, ratio
from veritune.records import Estimate, FallenClass, FallenTokens, JsonLike, Rendered, TokenFall, to_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASSES = ("template", "shared", "family", "prompt", "novel")
POSITIONS = ((0, 1), (1, 4), (4, 16), (16, 64), (64, None))
Fallen = TypeVar("Fallen", bound=FallenTokens)


def token_nlls(model: torch.nn.Module, rows: Sequence[Rendered], *, batch_size: int = 8) -> list[Floats]:
    """NLL in nats of each row's target tokens, in order (a target in the first position is never scored).

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from veritune.records import Rendered
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = LlamaConfig(vocab_size=8, **sizes)
    >>> [nll_T.shape for nll_T in token_nlls(LlamaForCausalLM(config), [Rendered("r1", (1, 2, 3), (-100, 2, 3))])]
    [(2,)]
    """
    require_targets(rows)
    made: list[Floats] = [np.zeros(0)] * len(rows)
    device = model_device(model)
    with evaluating(model), torch.no_grad():
        for index, batch in in_batches(rows, batch_size):
            loss_N_T, scored_N_T = token_losses(model, batch.to(device))
            for i, loss_T, scored_T in zip(index, loss_N_T, scored_N_T):
                made[i] = loss_T[scored_T].double().cpu().numpy()
    return made


def where_it_fell(
    rows: Sequence[Rendered],
    families: Sequence[str | None],
    before: Sequence[Floats],
    after: Sequence[Floats],
    *,
    reference: tuple[Sequence[Rendered], Sequence[str | None]] | None = None,
    control: Sequence[Floats] | None = None,
) -> TokenFall:
    """The fall of the loss by token class and position. `reference` are the training rows with their families; without
    it the given rows serve as reference. `control` are NLLs of a model trained equally long on unrelated rows. Raises
    ScoreError if NLLs do not fit the rows or are not finite, DataError for no rows.
    """
    _check(rows, families, before, after, control)
    kinds = classify(rows, families, *(reference or (rows, families)))
    flat = _Flat.of(families, before, after, kinds, control)
    total = flat.summary(np.ones(len(flat.fall_K), bool), "fall per token", FallenTokens)
    whole = float(flat.fall_K.sum())
    by_class: dict[str, FallenClass] = {}
    for kind in CLASSES:
        mask_K = flat.kind_K == kind
        fallen = flat.summary(mask_K, f"fall per {kind} token", FallenClass)
        by_class[kind] = replace(fallen, share=_share(flat.fall_K[mask_K], whole))
    by_position = []
    for low, high in POSITIONS:
        mask_K = (flat.place_K >= low) & (flat.place_K < (high if high is not None else np.inf))
        line = replace(flat.summary(mask_K, "fall per token", FallenClass), share=_share(flat.fall_K[mask_K], whole))
        by_position.append({"from": low, "to": high, **to_json(line)})
    return TokenFall(
        n_rows=len(rows),
        n_tokens=len(flat.fall_K),
        total=total,
        by_class=by_class,
        by_position=tuple(by_position),
        rows=tuple(_row(r, b, a, k) for r, b, a, k in zip(rows, before, after, kinds)),
        reading=_reading(by_class, total, np.array_equal(flat.before_K, flat.after_K), control is not None),
        limits="Classes follow trigrams of the trained rows: a rewording counts as novel, a common phrase as template.",
        would_change="A control trained on unrelated rows, to be subtracted, and strangers scored beside seen rows.",
        thresholds=DEFAULTS.tokens.model_dump(),
    )


def classify(
    rows: Sequence[Rendered],
    families: Sequence[str | None],
    reference: Sequence[Rendered],
    reference_families: Sequence[str | None],
) -> list[list[str]]:
    """The class of every scored target token of every row; a row in the reference is not compared with itself."""
    if len(reference) != len(reference_families):
        raise DataError(f"expected a family per reference row ({len(reference)}), found {len(reference_families)}.")
    named = [f"\0{r.row_id}" if f is None else f for r, f in zip(reference, reference_families)]
    holders: dict[tuple[int, ...], dict[str, set[str]]] = {}
    for row, family in zip(reference, named):
        for t in _scored(row):
            holders.setdefault(_trigram(row, t), {}).setdefault(family, set()).add(row.row_id)
    n_families = len(set(named))
    made = []
    for row, own in zip(rows, families):
        own_name = f"\0{row.row_id}" if own is None else own
        prompt = {row.input_ids[t] for t, label in enumerate(row.labels) if label == IGNORE}
        kinds = []
        for t in _scored(row):
            held = holders.get(_trigram(row, t), {})
            others = len(held) - (own_name in held)
            in_family = bool(held.get(own_name, set()) - {row.row_id})
            kinds.append(_class(others, in_family, row.input_ids[t] in prompt, n_families))
        made.append(kinds)
    return made


def _class(others: int, in_family: bool, in_prompt: bool, n_families: int) -> str:
    """`others`: reference families besides its own that hold the trigram."""
    families = others + in_family
    if others and families >= max(2, DEFAULTS.tokens.template_share * n_families):
        return "template"
    if others:
        return "shared"
    return "family" if in_family else "prompt" if in_prompt else "novel"


def _trigram(row: Rendered, t: int) -> tuple[int, ...]:
    return row.input_ids[max(0, t - 2) : t + 1]


def _scored(row: Rendered) -> list[int]:
    return [t for t, label in enumerate(row.labels) if label != IGNORE and t > 0]


@dataclass(frozen=True)
class _Flat:
    """All target tokens in one line [K]."""

    before_K: Floats
    after_K: Floats
    control_K: Floats | None
    kind_K: Any
    place_K: Ints
    family_K: Ints
    row_K: Ints

    @classmethod
    def of(
        cls,
        families: Sequence[str | None],
        before: Sequence[Floats],
        after: Sequence[Floats],
        kinds: Sequence[Sequence[str]],
        control: Sequence[Floats] | None,
    ) -> _Flat:
        row_K = np.repeat(np.arange(len(before)), [len(b) for b in before])
        place_K = np.concatenate([np.arange(len(b)) for b in before])
        kind_K = np.array([k for row in kinds for k in row])
        held = np.concatenate(control) if control is not None else None
        return cls(np.concatenate(before), np.concatenate(after), held, kind_K, place_K, codes(families)[row_K], row_K)

    @property
    def fall_K(self) -> Floats:
        return self.before_K - self.after_K

    def summary(self, mask_K: Bools, name: str, kind: type[Fallen]) -> Fallen:
        n = int(mask_K.sum())
        if not n:
            return kind(0, reason="no such token")
        made = kind(
            n,
            before=float(self.before_K[mask_K].mean()),
            after=float(self.after_K[mask_K].mean()),
            fall=self._per_token(self.fall_K, mask_K, name),
        )
        if self.control_K is None:
            return made
        return replace(
            made,
            control_after=float(self.control_K[mask_K].mean()),
            fall_beyond_control=self._per_token(self.control_K - self.after_K, mask_K, name + " beyond control"),
        )

    def _per_token(self, fall_K: Floats, mask_K: Bools, name: str) -> Estimate:
        rows, where_K = np.unique(self.row_K[mask_K], return_inverse=True)
        top_N = np.bincount(where_K, fall_K[mask_K]).astype(float)
        bottom_N = np.bincount(where_K).astype(float)
        first = np.searchsorted(self.row_K, rows)
        return ratio(name, np.asarray(top_N, float), np.asarray(bottom_N, float), self.family_K[first])


def _share(fall_K: Floats, whole: float) -> float | None:
    return float(fall_K.sum() / whole) if whole > 0 else None


def _row(row: Rendered, before: Floats, after: Floats, kinds: Sequence[str]) -> dict[str, JsonLike]:
    """One row for the page that colours tokens: ids and, per scored token, its place, losses and class."""
    return {
        "row_id": row.row_id,
        "ids": list(row.input_ids),
        "at": _scored(row),
        "before": [round(float(x), 4) for x in before],
        "after": [round(float(x), 4) for x in after],
        "class": list(kinds),
    }


def _reading(by_class: Mapping[str, FallenClass], total: FallenTokens, same: bool, controlled: bool) -> str:
    """What the loss did over all tokens, and in the classes that went another way than a mean over all can show."""
    assert total.before is not None and total.after is not None and total.fall is not None, "rows have target tokens"
    fell, low, high = total.before - total.after, total.fall.low, total.fall.high
    if same:
        return f"The loss did not change on these tokens ({SAME})."
    if fell <= 0:
        return f"The loss did not fall on these tokens (it rose by {-fell:.3f} nats per token).{_classes(by_class)}"
    if low is not None and low <= 0:
        return (
            f"The loss did not clearly fall on these tokens ({fell:+.3f} nats per token, {low:+.3f} to {high:+.3f}): "
            f"shares of the fall would say nothing.{_classes(by_class)}"
        )
    shares = sorted(((v.share, k) for k, v in by_class.items() if v.n_tokens), reverse=True)
    said = ", ".join(f"{share:.0%} {kind}" for share, kind in shares)
    tail = "" if controlled else " No control was given: unrelated training lowers these tokens too."
    tail = _classes(by_class, risen_only=True) + tail
    if low is None:
        return (
            f"The loss fell by {fell:.3f} nats per token, with too few families to say whether clearly so; of it: "
            f"{said}.{tail}"
        )
    return f"The loss fell by {fell:.3f} nats per token; of the whole fall: {said}.{tail}"


def _classes(by_class: Mapping[str, FallenClass], risen_only: bool = False) -> str:
    """Classes whose own interval lies to one side of 0: a mean over all tokens hides two that cancel."""
    parts = []
    for kind, found in by_class.items():
        fall = found.fall
        if fall is None or fall.value is None or fall.low is None or fall.high is None or fall.low <= 0 <= fall.high:
            continue
        if fall.value > 0 and risen_only:
            continue
        word = "fell" if fall.value > 0 else "rose"
        ends = sorted((abs(fall.low), abs(fall.high)))
        parts.append(f"{word} by {abs(fall.value):.3f} on {kind} tokens ({ends[0]:.3f} to {ends[1]:.3f})")
    return f" By class, each interval by itself: {', '.join(parts)}." if parts else ""


def _check(
    rows: Sequence[Rendered],
    families: Sequence[str | None],
    before: Sequence[Floats],
    after: Sequence[Floats],
    control: Sequence[Floats] | None,
) -> None:
    require_targets(rows)
    if len(families) != len(rows):
        raise DataError(f"expected a family per row ({len(rows)}), found {len(families)}.")
    for name, nlls in (("before", before), ("after", after), ("control", control)):
        if nlls is None:
            continue
        if [len(x) for x in nlls] != [len(_scored(r)) for r in rows]:
            raise ScoreError(f"the NLLs '{name}' do not fit the rows' target tokens one to one.")
        bad = next((r.row_id for r, x in zip(rows, nlls) if not np.isfinite(x).all()), None)
        if bad is not None:
            raise ScoreError(
                f"row {bad}: the NLLs '{name}' are not finite.", fix="Use another checkpoint of that model."
            )


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """The text that each token adds; joined they give the row's text. A character of several tokens is assigned to the
    last.

    A tail of tokens is decoded with and without the newest, so that spaces and byte-level characters come out right.
    """
    pieces: list[str] = []
    start = shown = 0
    for i in range(len(ids)):
        before = tokenizer.decode(list(ids[start:shown]), skip_special_tokens=False)
        now = tokenizer.decode(list(ids[start : i + 1]), skip_special_tokens=False)
        if now.endswith("\ufffd") and i + 1 - shown < 4 and i + 1 < len(ids):
            pieces.append("")
            continue
        pieces.append(now[len(before) :])
        start, shown = shown, i + 1
    return pieces

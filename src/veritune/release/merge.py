"""Does the merged model still say what the adapter said?

Two looks, and either alone can be fooled. The weights: for every module that the adapter changes, the change that is
found in the merged checkpoint is regressed on the change that the adapter asks for (found = c x asked + rest), streamed
from safetensors. c = 1 and a rest no larger than rounding is a merge; c = 0 was not applied, c = 2 was applied twice,
another c is a wrong scaling, a large rest is another adapter. The outputs: adapter and merged model side by side on the
same rows, in the precision that serves: logits, KL per position, whole greedy answers.

Rounding alone makes the outputs differ. How much is measured here and now, not assumed: the merged weights are rounded
once more at random, several times from the same start, so that their error has the variance of one rounding (each
touched weight moves to a neighbour in its own precision with chance 1/12), and the same rows in another batch shape.
Differences are read in units of this, and the spread of the draws must not decide the verdict.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from veritune.errors import InputError, ModelError
from veritune.records import Finding, Json, Rendered

PASS_FLOORS = 4.0
"""Mean KL up to this many floors is what rounding explains ..."""
FAIL_FLOORS = 10.0
"""... from this many on it is not; between them the check is undecided."""
LEAST_KL = 1e-9
"""Floor in nats below which differences are not told from arithmetic itself."""
CLOSE = 0.05
"""|c - 1| up to this is a merge, where rounding allows no tighter reading."""
TWICE = 0.15
"""Half-width around 0 and 2 in which a scale is called not applied or applied twice."""
REST = 0.5
"""A rest of more than this share of the change is another adapter's ..."""
LEAST_REST = 0.1
"""... and one of more than this share, and than twice what rounding leaves, is none of a merge that was right."""
LOST = 0.1
"""Where rounding leaves less than this share of a change, the weights cannot show whether it was merged."""


# ---------------------------------------------------------------- weights


@dataclass(frozen=True)
class ModuleMerge:
    """One weight: `scale` is c, `rest` the norm of what c leaves, `rounding` the norm of what rounding takes or adds.

    Norms are Frobenius norms, `asked` that of the adapter's change. `reading` is `merged`, `not applied`,
    `applied twice`, `wrong scaling`, `missing`, `another adapter` or `lost to rounding`.
    """

    module: str
    how: str
    scale: float | None
    asked: float
    rest: float | None
    rounding: float
    reading: str


Stored = Callable[[Any], Any]
"""What storing does to a weight: float64 in, the values that come back in float64."""


def in_precision(dtype: Any) -> Stored:
    """Storing in a floating-point precision: rounding."""
    return lambda weight: weight.to(dtype).double()


def read_module(found: Any, weight: Any, delta: Any, stored: Any) -> tuple[float, float, float, float, str]:
    """Scale, asked norm, rest, rounding norm and reading of one weight; all tensors float64 of one shape.

    `stored` is how the merged weight is kept: a torch dtype, or a function such as quantising and back. A right merge
    leaves e = stored(W + delta) - W, so the change is regressed on e: in a coarse precision a part of a small change is
    lost, and that is no fault of the merge.
    """
    import torch

    keep: Stored = stored if callable(stored) else in_precision(stored)
    change, expected = found - weight, keep(weight + delta) - weight
    asked, size = float(torch.linalg.vector_norm(delta)), float(torch.linalg.vector_norm(expected))
    rounding = float(torch.linalg.vector_norm(expected - delta))
    moved = float(torch.linalg.vector_norm(change))
    if size <= LOST * asked or size == 0.0:
        same = moved <= 2 * (rounding + size)
        reading = "merged" if asked == 0.0 and same else "lost to rounding" if same else "another adapter"
        return 1.0 if asked == 0.0 else 0.0, asked, moved, rounding, reading
    scale = float((change * expected).sum()) / size**2
    rest = float(torch.linalg.vector_norm(change - scale * expected))
    reading = _reading(scale, rest / size, rounding / size, moved / size)
    near = CLOSE if not callable(stored) else max(CLOSE, min(0.25, 0.3 * rounding / size))
    return scale, asked, rest, rounding, _twice(reading, change, (weight, delta, keep), near)


def _twice(reading: str, change: Any, how: tuple[Any, Any, Stored], near: float) -> str:
    """Coarse storage bends a doubled change; what it would leave is computed and compared, up to a share of `near`."""
    import torch

    weight, delta, keep = how
    if reading in ("merged", "not applied", "applied twice"):
        return reading
    for twice in (keep(weight + 2 * delta), keep(keep(weight + delta) + delta)):
        asked = twice - weight
        if torch.linalg.vector_norm(change - asked) <= near * torch.linalg.vector_norm(asked):
            return "applied twice"
    return reading


def _reading(scale: float, rest: float, rounding: float, moved: float) -> str:
    """The word for one weight; `rest`, `rounding` and `moved` in units of the change that a right merge leaves."""
    slack = max(CLOSE, min(0.3, 0.1 * rounding))
    if abs(scale - 1) <= slack:
        return "merged" if rest <= min(REST, max(LEAST_REST, 2 * rounding)) else "another adapter"
    if abs(scale) <= TWICE:
        return "not applied" if moved <= REST else "another adapter"
    if rest > REST * abs(scale) + 2 * rounding:
        return "another adapter"
    return "applied twice" if abs(scale - 2) <= max(TWICE, slack) else "wrong scaling"


def check_weights(
    base: Path, adapter: Path, merged: Path, stored: Mapping[str, Stored] | None = None
) -> tuple[list[ModuleMerge], list[Finding]]:
    """Every weight that the adapter changes, and every other weight, which must be as it was.

    `stored` says, by the base's name, how the merged model keeps a weight where that is no floating-point precision.
    Raises ModelError when the adapter was made for another base or is not a LoRA.
    """
    from veritune.probe.weights import Tensors, expected_changes

    old, new = Tensors(base), Tensors(merged)
    modules, touched = [], set()
    for change in expected_changes(adapter, base):
        touched.add(change.key)
        key = change.key if change.key in new.names else new.key_of(change.key.removesuffix(".weight"))
        if key is None or new.shape(key) != tuple(change.weight.shape):
            asked = float(change.delta.norm())
            modules.append(ModuleMerge(change.module, change.how, None, asked, None, 0.0, "missing"))
            continue
        keep = (stored or {}).get(change.key) or new.dtype(key)
        scale, asked, rest, rounding, reading = read_module(new.whole(key), change.weight, change.delta, keep)
        modules.append(ModuleMerge(change.module, change.how, scale, asked, rest, rounding, reading))
    if not modules:
        raise ModelError(f"{adapter} changes no weight of {base}.", fix="Check that it is the adapter that ships.")
    return modules, [
        *_findings(modules),
        *_others(old, new, touched, stored or {}),
        *_tied(base, merged, touched),
    ]


def _findings(modules: Sequence[ModuleMerge]) -> list[Finding]:
    """One finding for each kind of fault, with how many modules show it and which."""
    found = []
    for reading in ("not applied", "applied twice", "wrong scaling", "another adapter", "missing"):
        those = [m for m in modules if m.reading == reading]
        if not those:
            continue
        scales = [m.scale for m in those if m.scale is not None]
        said = f" (scale {min(scales):.3f} to {max(scales):.3f}; 1 is a merge)" if scales else ""
        part = "the adapter" if len(those) == len(modules) else f"{len(those)} of {len(modules)} modules"
        names = ", ".join(m.module for m in those[:3]) + (", ..." if len(those) > 3 else "")
        message = f"{part}: {_WORDS[reading]}{said}: {names}"
        evidence = {"modules": [m.module for m in those], "scale": scales}
        found.append(Finding(f"merge.{reading.replace(' ', '_')}", "error", message, evidence=evidence))
    lost = [m.module for m in modules if m.reading == "lost to rounding"]
    if lost:
        message = (
            f"{len(lost)} of {len(modules)} changes are smaller than the steps of the merged weights' precision and are"
            f" lost in any merge: {', '.join(lost[:3])}; merge into a finer precision"
        )
        found.append(Finding("merge.lost_to_rounding", "warning", message, evidence={"modules": lost}))
    return found


_WORDS = {
    "not applied": "the change is not in the merged weights",
    "applied twice": "the change was applied twice",
    "wrong scaling": "the change was applied with another scaling",
    "another adapter": "the merged weights changed otherwise than this adapter asks",
    "missing": "the weight is missing in the merged model, or has another shape",
}


def _others(old: Any, new: Any, touched: set[str], stored: Mapping[str, Stored]) -> list[Finding]:
    """Weights that the adapter leaves alone and the merged model changed, lacks or adds."""
    changed, lost = [], []
    for key in old.names:
        if key in touched:
            continue
        other = key if key in new.names else new.key_of(key.removesuffix(".weight"))
        if other is None or old.shape(key) != new.shape(other):
            lost.append(key)
        elif not _same(old, key, new, other, stored.get(key)):
            changed.append(key)
    found = []
    if changed:
        message = (
            f"{len(changed)} weights that the adapter does not touch differ from the base's: {', '.join(changed[:3])}"
        )
        found.append(Finding("merge.others_changed", "error", message, evidence={"weights": changed}))
    if lost:
        message = f"{len(lost)} weights of the base are missing in the merged model: {', '.join(lost[:3])}"
        found.append(Finding("merge.others_missing", "error", message, evidence={"weights": lost}))
    return found


def _same(old: Any, key: str, new: Any, other: str, keep: Stored | None) -> bool:
    """Whether a weight is what storing the base's makes of it, bit for bit."""
    import torch

    if keep is not None:
        return torch.equal(keep(old.whole(key)), new.whole(other))
    dtype = new.dtype(other)
    return all(torch.equal(a.to(dtype), b.to(dtype)) for a, b in zip(old.blocks(key), new.blocks(other)))


def _tied(base: Path, merged: Path, touched: set[str]) -> list[Finding]:
    """An adapter on one of two tied weights: a merge that keeps the tie changes both, or loses the change."""
    tied = [bool(json.loads((f / "config.json").read_text("utf-8")).get("tie_word_embeddings")) for f in (base, merged)]
    ends = [key for key in touched if key.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight"))]
    if not tied[0] or not ends:
        return []
    state = "the merged model keeps them tied, so both changed" if tied[1] else "the merged model has untied them"
    message = f"the adapter changes {ends[0]}, and the base ties input and output embeddings: {state}"
    return [Finding("merge.tied", "warning", message, evidence={"weights": ends})]


# ---------------------------------------------------------------- outputs


@dataclass(frozen=True)
class Options:
    """How outputs are compared: precision that serves, rows at a time, tokens of a greedy answer; seed and number of the
    draws that make the floor."""

    dtype: str = "bfloat16"
    batch_size: int = 8
    max_new_tokens: int = 64
    seed: int = 0
    draws: int = 5

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InputError(f"draws: expected 2 or more, found {self.draws}.", fix="One draw has no spread.")


@dataclass(frozen=True)
class Divergence:
    """Where two greedy answers part: both texts' next tokens, and the adapter's logit gap between its two best."""

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
    same against the largest and the smallest draw, and these decide.
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
    divergences: tuple[Divergence, ...]
    flips: int
    settings: Json = field(default_factory=dict)
    kl_draws: tuple[float, ...] = ()
    floors_low: float | None = None
    floors_high: float | None = None


def target_logits(model: Any, rows: Sequence[Rendered], pad_id: int, batch_size: int) -> Iterator[Any]:
    """For each row, its logits at the positions that predict a target, float32 [N, V] on the CPU."""
    import torch

    from veritune.train.trainer import collate

    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            items = [{"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(chunk)]
            batch = {k: v.to(device) for k, v in collate(items, pad_id).items()}
            logits_B_T_V = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits
            for b, row in enumerate(chunk):
                where = [t - 1 for t, label in enumerate(row.labels) if label != -100 and t > 0]
                yield logits_B_T_V[b, where].float().cpu()


def _kl(left_N_V: Any, right_N_V: Any) -> Any:
    """KL(left || right) in nats per position [N], in float64."""
    import torch.nn.functional as F

    a, b = F.log_softmax(left_N_V.double(), -1), F.log_softmax(right_N_V.double(), -1)
    return (a.exp() * (a - b)).sum(-1).clamp_min(0)


def rerounded(model: Any, names: Sequence[str], seed: int) -> Any:
    """The model with each named weight moved to a neighbour in its precision with chance 1/12, in place.

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
    adapted: Any, merged: Any, touched: Sequence[str], rows: Sequence[Rendered], tokenizer: Any, options: Options
) -> Outputs:
    """Adapter and merged model on the same rows. `touched` names the merged model's weights that the merge changed.

    The merged model is re-rounded in place for the floor, and put back.
    """
    import torch

    pad = tokenizer.pad_token_id
    told = _answers(adapted, merged, rows, tokenizer, options)
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
                fix="Serve in another precision; this model may not ship in this one.",
            )
        ties = max(ties, float((a_N_V - single_N_V).abs().max()))
        kl.append(_kl(a_N_V, m_N_V))
        alone.append(_kl(a_N_V, single_N_V))
        difference = (a_N_V - m_N_V).abs()
        worst, total = max(worst, float(difference.max())), total + float(difference.sum())
        count += difference.numel()
        flips += int((a_N_V.argmax(-1) != m_N_V.argmax(-1)).sum())
        target_N = torch.tensor([label for t, label in enumerate(row.labels) if label != -100 and t > 0])
        nll.append(tuple(float(torch.nn.functional.cross_entropy(x, target_N)) for x in (a_N_V, m_N_V)))  # type: ignore[arg-type]
        kept.append(m_N_V)
    draws, moved = _floor(merged, touched, rows, kept, (pad, options))
    kl_N, batch = torch.cat(kl), float(torch.cat(alone).mean())
    mean = float(kl_N.mean())
    units = [mean / max(floor, batch, LEAST_KL) for floor in (fmean(draws), max(draws), min(draws))]
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
        nll=_paired([after - before for before, after in nll]),
        answers=len(rows),
        agree=len(rows) - len(told),
        divergences=_with_ties(told, max(ties, moved)),
        flips=int(flips),
        settings={"dtype": options.dtype, "batch_size": options.batch_size, "seed": options.seed,
                  "max_new_tokens": options.max_new_tokens, "draws": options.draws},
        kl_draws=tuple(draws),
        floors_low=units[1],
        floors_high=units[2],
    )  # fmt: skip


def _floor(
    merged: Any, touched: Sequence[str], rows: Sequence[Rendered], kept: Sequence[Any], how: tuple[int, Options]
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
            kl.append(_kl(m_N_V, r_N_V))
            most = max(most, float((m_N_V - r_N_V).abs().max()))
        means.append(float(torch.cat(kl).mean()))
        largest.append(most)
        with torch.no_grad():
            for name, p in merged.named_parameters():
                if name in before:
                    p.data.copy_(before[name])
    return means, median(largest)


def _paired(change: Sequence[float]) -> dict[str, Any]:
    """Mean over rows of the merged model's loss less the adapter's, in nats per token, with a t interval."""
    from veritune.decide.intervals import t_quantile

    n = len(change)
    mean = sum(change) / n
    if n < 2:
        return {"value": mean, "low": None, "high": None, "n": n, "method": "one row: no interval"}
    se = math.sqrt(sum((x - mean) ** 2 for x in change) / (n - 1) / n)
    half = t_quantile(0.975, n - 1) * se
    return {"value": mean, "low": mean - half, "high": mean + half, "n": n, "method": "paired t over rows"}


def _answers(adapted: Any, merged: Any, rows: Sequence[Rendered], tokenizer: Any, options: Options) -> list[Divergence]:
    """The rows whose greedy answers differ, each with its first difference."""
    from veritune.evaluate.generate import Decoding, generate

    prompts = [_prompt(row) for row in rows]
    decoding = Decoding(options.max_new_tokens, options.batch_size)
    left, right = (generate(model, tokenizer, prompts, decoding) for model in (adapted, merged))
    return [
        _first(adapted, row, prompt, (a, b), tokenizer)
        for row, prompt, a, b in zip(rows, prompts, left, right)
        if (a.token_ids, a.ended) != (b.token_ids, b.ended)
    ]


def _prompt(row: Rendered) -> tuple[int, ...]:
    first = next((t for t, label in enumerate(row.labels) if label != -100), len(row.labels))
    return row.input_ids[:first]


def _first(model: Any, row: Rendered, prompt: tuple[int, ...], two: tuple[Any, Any], tokenizer: Any) -> Divergence:
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
    return Divergence(row.row_id, at, token(a), token(b), float(best[0] - best[1]), False, context)


def _with_ties(told: Sequence[Divergence], rounding: float) -> tuple[Divergence, ...]:
    """A step where the adapter's two best lie within twice what rounding alone moves a logit is a tie."""
    return tuple(replace(d, tie=d.gap <= 2 * rounding) for d in told)


# ---------------------------------------------------------------- both together

Status = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Part:
    """What else was looked at: task scores, a quantised merge, an export. `status` None only informs."""

    name: str
    status: Status | None
    message: str
    lines: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    numbers: Json = field(default_factory=dict)


@dataclass(frozen=True)
class MergeParity:
    """The record of one comparison of an adapter with a merged model, and of what was looked at beside it."""

    status: Status
    message: str
    modules: tuple[ModuleMerge, ...]
    findings: tuple[Finding, ...]
    outputs: Outputs | None
    reading: str
    limits: str
    would_change: str
    kind: str = "merge"
    parts: tuple[Part, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """What the evidence record holds."""
        readings: dict[str, int] = {}
        for module in self.modules:
            readings[module.reading] = readings.get(module.reading, 0) + 1
        parts = {p.name: {"status": p.status, "message": p.message, **p.numbers} for p in self.parts}
        return {"weights": readings, "outputs": self.outputs, "findings": list(self.findings), **parts}


def thresholds() -> dict[str, float]:
    """What the numbers are judged by."""
    return {"pass_floors": PASS_FLOORS, "fail_floors": FAIL_FLOORS, "scale": CLOSE}


def judge(modules: Sequence[ModuleMerge], findings: Sequence[Finding], outputs: Outputs | None) -> MergeParity:
    """Put weights and outputs together. Faulty weights fail; outputs beyond rounding fail; no outputs: undecided."""
    errors = [f for f in findings if f.severity == "error"]
    good = sum(m.reading == "merged" for m in modules)
    parts = [f"{good} of {len(modules)} changed weights are merged"]
    status: Literal["passed", "failed", "undecided"] = "failed" if errors else "passed"
    if outputs is None:
        status = "failed" if errors else "undecided"
        parts.append("outputs were not compared")
    else:
        low, high = outputs.floors_low, outputs.floors_high
        low, high = (outputs.floors, outputs.floors) if low is None or high is None else (low, high)
        span = f" ({low:.1f} to {high:.1f} over {len(outputs.kl_draws)} draws)" if outputs.kl_draws else ""
        parts.append(f"KL {outputs.kl_mean:.2g} nats a position, {outputs.floors:.1f} times what rounding makes{span}")
        parts.append(f"{outputs.agree} of {outputs.answers} greedy answers are equal")
        faults = [d for d in outputs.divergences if not d.tie]
        measured = (outputs.floors, low, high, outputs.kl_mean, outputs.kl_max, outputs.logit_max, outputs.nll["value"])
        finite = all(math.isfinite(x) for x in measured)
        if not finite:
            parts.append("the outputs hold NaN or infinite values")
        if not finite or low > FAIL_FLOORS or faults:
            status = "failed"
        elif high > PASS_FLOORS and status == "passed":
            status = "undecided"
        if faults:
            parts.append(f"{len(faults)} part where the adapter was sure, first {faults[0].row_id}")
    message = "; ".join([errors[0].message, *parts] if errors else parts)
    return MergeParity(status, message, tuple(modules), tuple(findings), outputs, **_meaning(status, errors))


def joined(found: MergeParity, parts: Sequence[Part]) -> MergeParity:
    """The comparison with more parts: as good as the worst of them; a part without a status only informs."""
    from veritune.release.noninferior import worst

    if not parts:
        return found
    status = worst([found.status, *(p.status for p in parts if p.status is not None)])
    findings = (*found.findings, *(f for p in parts for f in p.findings))
    errors = [f for f in findings if f.severity == "error"]
    said = [found.message, *(f"{p.name}: {p.message}" for p in parts)]
    bad = next((p for p in parts if p.status == status), None)
    meaning = _meaning(status, errors)
    if status != found.status and bad is not None and status != "passed":
        meaning["reading"] = f"{_meaning(found.status, [])['reading']} But {bad.name}: {bad.message}."
    return replace(
        found, status=status, message="; ".join(said), findings=findings, parts=(*found.parts, *parts), **meaning
    )


def _meaning(status: str, errors: Sequence[Finding]) -> dict[str, str]:
    reading = {
        "passed": "The merged model says what the adapter said, up to rounding.",
        "failed": "The merged model is not the adapter on its base"
        + (f": {errors[0].message}." if errors else ": outputs differ by more than rounding."),
        "undecided": "Whether the merged model says what the adapter said is not settled.",
    }[status]
    return {
        "reading": reading,
        "limits": "It speaks of these rows, this precision and this machine's kernels; a server with other kernels"
        " rounds otherwise, which serving parity looks at.",
        "would_change": "Other rows on which the two part, or another precision to serve in.",
    }


def merge_adapter(base: Any, adapter: Path, out: Path) -> Path:
    """Merge an adapter into a loaded base and save it as safetensors; the folder.

    Raises ModelError when the adapter does not fit or holds values that are not finite.
    """
    import shutil

    from peft import PeftModel

    from veritune.train.models import quiet_transformers

    try:
        with quiet_transformers():
            merged = PeftModel.from_pretrained(base, adapter).merge_and_unload(safe_merge=True)
            merged.save_pretrained(out)
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as exc:
        first = str(exc).strip().splitlines()[0][:200]
        raise ModelError(f"{adapter} cannot be merged: {first}.", fix="Check that it belongs to this base.") from None
    del merged
    shutil.copy(adapter / "adapter_config.json", out / "merged_from.json")
    return out


def parity(base: Any, adapter: Path, merged: Path, rows: Sequence[Rendered], options: Options) -> MergeParity:
    """Compare an adapter on its base (a `ModelRef`) with a merged folder: weights first, then outputs on `rows`.

    Outputs are compared even where the weights are wrong: how wrong the answers are is part of the finding.
    Raises ModelError for an adapter of another base, and for folders without safetensors.
    """
    from peft import PeftModel

    from veritune.train.models import load_base, load_tokenizer, quiet_transformers

    modules, findings = check_weights(base.path, adapter, merged)
    if not rows:
        return judge(modules, findings, None)
    ref = replace(base, dtype=options.dtype)
    tokenizer = load_tokenizer(ref)
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(load_base(ref), adapter).eval()
    whole = load_base(replace(ref, path=merged))
    names = {name for name, _ in whole.named_parameters()}
    touched = [n for n in names if any(n == f"{m.module}.weight" or n.endswith(f".{m.module}.weight") for m in modules)]
    return judge(modules, findings, compare_outputs(adapted, whole, touched, rows, tokenizer, options))


def _spread(draws: Sequence[float]) -> str:
    return f" ({min(draws):.2g} to {max(draws):.2g} in {len(draws)} draws)" if draws else ""


def render_text(found: MergeParity) -> str:
    """The comparison for the screen."""
    lines = [f"merge    {found.status.upper()}: {found.message}"]
    for finding in found.findings:
        lines.append(f"  {'x' if finding.severity == 'error' else '!'} {finding.message}")
    out = found.outputs
    if out is not None:
        lines.append(
            f"  logits   largest difference {out.logit_max:.3g}, mean {out.logit_mean:.2g};"
            f" best token differs at {out.flips} of {out.positions} positions"
        )
        lines.append(
            f"  KL       mean {out.kl_mean:.2g}, p99 {out.kl_p99:.2g}, largest {out.kl_max:.2g} nats; rounding the"
            f" merged weights once more makes {out.kl_floor:.2g}{_spread(out.kl_draws)}, another batch shape"
            f" {out.kl_batch:.2g}"
        )
        span = "" if out.nll["low"] is None else f" [{out.nll['low']:+.2g}, {out.nll['high']:+.2g}]"
        lines.append(f"  loss     merged less adapter {out.nll['value']:+.2g}{span} nats a token, {out.nll['n']} rows")
        lines.append(f"  answers  {out.agree} of {out.answers} greedy answers are equal to the end")
        for d in out.divergences[:5]:
            word = "a tie under rounding" if d.tie else "no tie"
            lines.append(
                f"    {d.row_id} at token {d.position}: {d.adapter_token} against {d.merged_token}"
                f" (gap {d.gap:.2g}: {word}) after {d.context!r}"
            )
    for part in found.parts:
        lines.append(f"{part.name:<8} {(part.status or 'shown').upper()}: {part.message}")
        lines += [f"  {line}" for line in part.lines]
    return "\n".join([*lines, "", found.reading, found.limits])

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

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

from veritune.config.thresholds import DEFAULTS, MergeThresholds
from veritune.counting import agree, many
from veritune.errors import ModelError, first_line
from veritune.records import Finding, Json, JsonLike, Rendered
from veritune.release.parity.merge_others import Stored, Ties, named_ends, other_weights
from veritune.release.parity.merge_outputs import MergeOptions, Outputs, compare_outputs
from veritune.train.adapters.attach import attach, untie
from veritune.train.adapters.reading import AdapterReading, read_adapter
from veritune.train.models import ModelRef, load_base, load_tokenizer, quiet_transformers
from veritune.train.tensors import Tensors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# ---------------------------------------------------------------- weights


@dataclass(frozen=True)
class ModuleMerge:
    """The merge of one weight: `scale` is c, `rest` the norm of what c leaves unexplained, `rounding` the norm of the
    rounding error.

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


def in_precision(dtype: torch.dtype) -> Stored:
    """The weight after storing it in a floating-point precision, that is rounding."""
    return lambda weight: weight.to(dtype).double()


def read_module(
    found: torch.Tensor,
    weight: torch.Tensor,
    delta: torch.Tensor,
    stored: torch.dtype | Stored,
    merge: Stored | None = None,
    limits: MergeThresholds = DEFAULTS.merge,
) -> tuple[float, float, float, float, str]:
    """Scale, expected norm, rest, rounding norm and reading of one weight; all tensors are float64 of one shape.

    `stored` is how the merged weight is kept: a torch dtype, or a function such as quantising and back. A right merge
    leaves e = stored(W + delta) - W, so the change is regressed on e: in a coarse precision a part of a small change is
    lost, and that is no fault of the merge. `merge` merges into any weight (default: adds delta).
    """
    import torch

    again = merge if merge is not None else lambda w: w + delta
    keep: Stored = stored if callable(stored) else in_precision(stored)
    change, expected = found - weight, keep(weight + delta) - weight
    asked, size = float(torch.linalg.vector_norm(delta)), float(torch.linalg.vector_norm(expected))
    rounding = float(torch.linalg.vector_norm(expected - delta))
    moved = float(torch.linalg.vector_norm(change))
    if size <= limits.lost * asked or size == 0.0:
        same = moved <= 2 * (rounding + size)
        reading = "merged" if asked == 0.0 and same else "lost to rounding" if same else "another adapter"
        return 1.0 if asked == 0.0 else 0.0, asked, moved, rounding, reading
    scale = float((change * expected).sum()) / size**2
    rest = float(torch.linalg.vector_norm(change - scale * expected))
    reading = _reading(scale, (rest / size, rounding / size, moved / size), limits)
    near = limits.close
    if callable(stored):
        near = max(near, min(limits.coarse_slack, limits.coarse_share * rounding / size))
    return scale, asked, rest, rounding, _twice(reading, found, (weight, delta, keep, again), near)


def _twice(
    reading: str, found: torch.Tensor, how: tuple[torch.Tensor, torch.Tensor, Stored, Stored], near: float
) -> str:
    """Coarse storage and DoRA bend a doubled change; what twice would leave is compared, up to a share of `near`."""
    import torch

    weight, delta, keep, again = how
    if reading in ("merged", "not applied", "applied twice"):
        return reading
    for twice in (keep(weight + 2 * delta), keep(again(keep(again(weight))))):
        if torch.linalg.vector_norm(found - twice) <= near * torch.linalg.vector_norm(twice - weight):
            return "applied twice"
    return reading


def _reading(scale: float, norms: tuple[float, float, float], limits: MergeThresholds) -> str:
    """The word for one weight; `norms` are rest, rounding and whole change, in units of what a right merge changes."""
    rest, rounding, moved = norms
    slack = max(limits.close, min(limits.slack, limits.slack_share * rounding))
    if abs(scale - 1) <= slack:
        return "merged" if rest <= min(limits.rest, max(limits.least_rest, 2 * rounding)) else "another adapter"
    if abs(scale) <= limits.twice:
        return "not applied" if moved <= limits.rest else "another adapter"
    if rest > limits.rest * abs(scale) + 2 * rounding:
        return "another adapter"
    return "applied twice" if abs(scale - 2) <= max(limits.twice, slack) else "wrong scaling"


def check_weights(
    base: Path,
    adapter: Path,
    merged: Path,
    stored: Mapping[str, Stored] | None = None,
    limits: MergeThresholds = DEFAULTS.merge,
) -> tuple[list[ModuleMerge], list[Finding]]:
    """Check every weight that the adapter changes, and that every other weight is unchanged.

    `stored` says, by the base's name, how the merged model keeps a weight where that is no floating-point precision.
    Raises ModelError when the adapter was made for another base or is not a LoRA.
    """
    reading = read_adapter(adapter, base)
    assert reading.base is not None
    new = Tensors(merged)
    ties = Ties.of(reading.plan.tied or named_ends(base, reading.base), merged, new)
    modules: list[ModuleMerge] = []
    touched: set[str] = set()
    for change in reading.changes():
        touched |= {change.key} if ties.base is not None and change.key in ties.base else {change.key, change.stored}
        key = ties.find(change.key, change.stored)
        if key is None or new.shape(key) != tuple(change.weight.shape):
            asked = float(change.delta.norm())
            modules.append(ModuleMerge(change.module, change.how, None, asked, None, 0.0, "missing"))
            continue
        keep = (stored or {}).get(change.stored) or new.dtype(key)
        scale, asked, rest, rounding, reading_word = read_module(
            new.whole(key), change.weight, change.delta, keep, change.merge, limits
        )
        modules.append(ModuleMerge(change.module, change.how, scale, asked, rest, rounding, reading_word))
    if not modules:
        raise ModelError(f"{adapter} changes no weight of {base}.", fix="Check that this is the adapter to ship.")
    return modules, [
        *_findings(modules),
        *_noted(reading),
        *other_weights(reading, ties, touched, stored or {}),
    ]


def _noted(reading: AdapterReading) -> list[Finding]:
    """What the adapter's files leave open."""
    found = [Finding("merge.adapter", "warning", note) for note in reading.notes]
    if reading.missing:
        n = len(reading.missing)
        message = (
            f"{many(n, 'modules')} that adapter_config.json adapts {agree(n, 'have')} no tensors in the adapter's "
            f"file and {agree(n, 'are')} unchanged: {', '.join(reading.missing[:3])}"
        )
        found.append(Finding("merge.without_tensors", "warning", message, evidence={"modules": list(reading.missing)}))
    return found


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
    "another adapter": "the merged weights did not change as this adapter requires",
    "missing": "the weight is missing in the merged model, or has another shape",
}


# ---------------------------------------------------------------- both together

Status = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class MergePart:
    """A further part of the comparison: task scores, a quantised merge, an export. A part with `status` None is only
    informative.
    """

    name: str
    status: Status | None
    message: str
    lines: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    numbers: Json = field(default_factory=dict)


@dataclass(frozen=True)
class MergeParity:
    """The result of comparing an adapter with a merged model, with all further parts."""

    status: Status
    message: str
    modules: tuple[ModuleMerge, ...]
    findings: tuple[Finding, ...]
    outputs: Outputs | None
    reading: str
    limits: str
    would_change: str
    kind: str = "merge"
    parts: tuple[MergePart, ...] = ()
    thresholds: Json = field(default_factory=dict)

    def numbers(self) -> dict[str, JsonLike]:
        """The numbers for the evidence record."""
        readings: dict[str, int] = {}
        for module in self.modules:
            readings[module.reading] = readings.get(module.reading, 0) + 1
        parts = {p.name: {"status": p.status, "message": p.message, **p.numbers} for p in self.parts}
        return {"weights": readings, "outputs": self.outputs, "findings": list(self.findings), **parts}


def judge(
    modules: Sequence[ModuleMerge],
    findings: Sequence[Finding],
    outputs: Outputs | None,
    limits: MergeThresholds = DEFAULTS.merge,
) -> MergeParity:
    """The status from weights and outputs: faulty weights fail; outputs that differ by more than rounding fail; without
    outputs it is undecided.
    """
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
        span = f" ({low:.1f} to {high:.1f} over {many(len(outputs.kl_draws), 'draws')})" if outputs.kl_draws else ""
        parts.append(f"KL {outputs.kl_mean:.2g} nats a position, {outputs.floors:.1f} times what rounding makes{span}")
        parts.append(f"{outputs.agree} of {outputs.answers} greedy answers are equal")
        faults = [d for d in outputs.divergences if not d.tie]
        measured = (outputs.floors, low, high, outputs.kl_mean, outputs.kl_max, outputs.logit_max, outputs.nll["value"])
        finite = all(math.isfinite(x) for x in measured)
        if not finite:
            parts.append("the outputs hold NaN or infinite values")
        if not finite or low > limits.fail_floors or faults:
            status = "failed"
        elif high > limits.pass_floors and status == "passed":
            status = "undecided"
        if faults:
            parts.append(f"{len(faults)} diverge where the adapter was sure, first {faults[0].row_id}")
    apart = _disagree(errors, outputs, limits)
    if apart is not None:
        findings, status, errors = [apart, *findings], "undecided", [apart, *errors]
    message = "; ".join([errors[0].message, *parts] if errors else parts)
    found = MergeParity(status, message, tuple(modules), tuple(findings), outputs, **_meaning(status, errors))
    return replace(found, thresholds=limits.model_dump())


def _disagree(errors: Sequence[Finding], outputs: Outputs | None, limits: MergeThresholds) -> Finding | None:
    """Faulty weights beside outputs that are the same to the last digit, on rows that show the adapter at work."""
    if not errors or outputs is None or outputs.kl_adapter is None:
        return None
    alike = outputs.kl_max <= limits.same_kl and outputs.agree == outputs.answers
    if not alike or outputs.kl_adapter <= limits.same_kl:
        return None
    message = (
        f"weights and outputs disagree: by the weights {errors[0].message}; but both models answer alike on these rows"
        f" (largest KL {outputs.kl_max:.2g} nats), and the adapter moves them by {outputs.kl_adapter:.2g}. Either"
        " veritune reads this adapter wrongly, or the fault acts on nothing that these rows hold"
    )
    return Finding("merge.disagree", "error", message, evidence={"checks": [f.check for f in errors]})


def joined(found: MergeParity, parts: Sequence[MergePart]) -> MergeParity:
    """The comparison with more parts added: its status is that of the worst part; a part without a status is only
    informative.
    """
    from veritune.release.gate.noninferior import worst

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


def weights_error(check: str, message: str, weights: Sequence[str] = ()) -> Finding:
    """A fault of some weights, by their names."""
    return Finding(check, "error", message, evidence={"weights": list(weights)})


class Meaning(TypedDict):
    """The sentences of a merge parity: what it says, of what it speaks, and what would change it."""

    reading: str
    limits: str
    would_change: str


def _meaning(status: str, errors: Sequence[Finding]) -> Meaning:
    reading = {
        "passed": "The merged model says what the adapter said, up to rounding.",
        "failed": "The merged model is not the adapter on its base"
        + (f": {errors[0].message}." if errors else ": outputs differ by more than rounding."),
        "undecided": "Whether the merged model says what the adapter said is not settled"
        + (f": {errors[0].message}." if errors else "."),
    }[status]
    return {
        "reading": reading,
        "limits": "It speaks of these rows, this precision and this machine's kernels; a server with other kernels"
        " rounds otherwise, which serving parity looks at.",
        "would_change": "Other rows on which the two part, or another precision to serve in.",
    }


def merge_adapter(base: PreTrainedModel, adapter: Path, out: Path) -> Path:
    """Merge an adapter into a loaded base and save it as safetensors; returns the folder.

    Tied embeddings of which the adapter changes one are untied first: one tensor cannot hold both.

    Raises ModelError when the adapter does not fit or holds values that are not finite.
    """
    untie(base, adapter)
    try:
        with quiet_transformers():
            merged = attach(base, adapter).merge_and_unload(safe_merge=True)
            merged.save_pretrained(out)
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as exc:
        raise ModelError(
            f"{adapter} cannot be merged: {first_line(exc)}.", fix="Check that the adapter was trained on this base."
        ) from exc
    del merged
    shutil.copy(adapter / "adapter_config.json", out / "merged_from.json")
    return out


def parity(base: ModelRef, adapter: Path, merged: Path, rows: Sequence[Rendered], options: MergeOptions) -> MergeParity:
    """Compare an adapter on its base (a `ModelRef`) with a merged folder: first the weights, then outputs on `rows`.

    Outputs are compared even where the weights are wrong: how wrong the answers are is part of the finding.
    Raises ModelError for an adapter of another base, and for folders without safetensors.
    """
    limits = options.thresholds
    modules, findings = check_weights(base.path, adapter, merged, limits=limits)
    if not rows:
        return judge(modules, findings, None, limits)
    ref = replace(base, dtype=options.dtype)
    tokenizer = load_tokenizer(ref)
    adapted = attach(load_base(ref), adapter)
    whole = load_base(replace(ref, path=merged))
    changed = {*read_adapter(adapter, base.path).steps, *(f"{m.module}.weight" for m in modules)}
    touched = [n for n, _ in whole.named_parameters() if n in changed or any(n.endswith(f".{c}") for c in changed)]
    outputs = compare_outputs(adapted, whole, touched, rows, tokenizer, options)
    return judge(modules, findings, outputs, limits)


def _spread(draws: Sequence[float]) -> str:
    return f" ({min(draws):.2g} to {max(draws):.2g} in {many(len(draws), 'draws')})" if draws else ""


def render_text(found: MergeParity) -> str:
    """The comparison as text for the screen."""
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
        lines.append(
            f"  loss     merged minus adapter {out.nll['value']:+.2g}{span} nats per token, {out.nll['n']} rows"
        )
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

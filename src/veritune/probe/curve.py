"""A run's checkpoints along its steps: what each one gained, what it cost, and whether an earlier one would have done.

    curve = read_curve(training.candidates, training.best_step, base_nll)
    curve.reading      # "Step 16 keeps 97 % of the gain of step 48 in a third of the steps, at half of the rise of M1."

The gain is the fall of the validation NLL below the untouched model's. Costs are what was recorded beside it: the share
of the gain that strangers do not get (zone gap), and the change of M1 (mean cosine over all pairs of different persona
centroids). It is advice: the checkpoint that is scored stays the one with the lowest validation NLL, and no claim may
rest on a step that was picked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veritune.config.thresholds import DEFAULTS, CurveThresholds
from veritune.records import CheckpointCandidate

LIMITS = (
    "One run's means, without an interval. The validation rows that this reads also chose the checkpoint, and a step "
    "picked here was picked after the run: a claim on it is exploratory."
)
MORE = "List steps close to the one named in `train.eval_steps`, and see whether other seeds name it too."


@dataclass(frozen=True)
class Costs:
    """Measurements on one checkpoint beside its validation NLL. Losses in nats per target token, by zone; `m1` and
    `icc` are means over the layers read. None if not measured.
    """

    zones: Mapping[str, float]
    m1: float | None = None
    icc: float | None = None


@dataclass(frozen=True)
class CurvePoint:
    """One checkpoint of the curve. `gain` is the fall of the validation NLL below the untouched model's, `share` is
    relative to the best checkpoint's gain; `carried` is the strangers' gain relative to that of seen rows; `m1_change`
    and `icc_change` are relative to the untouched model. None if unknown.
    """

    step: int
    validation_nll: float
    gain: float | None
    share: float | None
    by_source: Mapping[str, float] | None
    carried: float | None
    m1_change: float | None
    icc_change: float | None


@dataclass(frozen=True)
class Curve:
    """The curve of one run. `advised` is the step that the reading recommends, None if no earlier step is good
    enough."""

    points: tuple[CurvePoint, ...]
    chosen: int
    base_nll: float | None
    advised: int | None
    thresholds: Mapping[str, float]
    reading: str
    limits: str = LIMITS
    would_change: str = MORE
    kind: str = "curve"


def read_curve(
    candidates: Sequence[CheckpointCandidate],
    chosen: int,
    base_nll: float | None,
    costs: Mapping[int, Costs] | None = None,
    thresholds: CurveThresholds = DEFAULTS.curve,
) -> Curve:
    """The curve of one run from its candidates. `costs` are by step; those of the untouched model are under step 0."""
    points = _points(candidates, base_nll, costs or {})
    advised = _advised(points, chosen, thresholds)
    said = _advice(points, chosen, advised, thresholds) + _turn(points, thresholds) + _sources(points, chosen)
    kept = {"keeps": thresholds.keeps, "turn": thresholds.turn}
    return Curve(points, chosen, base_nll, advised, kept, said)


def _points(
    candidates: Sequence[CheckpointCandidate], base_nll: float | None, costs: Mapping[int, Costs]
) -> tuple[CurvePoint, ...]:
    best = min(c.validation_nll for c in candidates)
    whole = None if base_nll is None else base_nll - best
    made = []
    for one in sorted(candidates, key=lambda c: c.step):
        gain = None if base_nll is None else base_nll - one.validation_nll
        share = gain / whole if gain is not None and whole is not None and whole > 0 else None
        own, base = costs.get(one.step), costs.get(0)
        made.append(
            CurvePoint(
                one.step, one.validation_nll, gain, share, one.by_source, _carried(base, own),
                _change(base, own, "m1"), _change(base, own, "icc"),
            )
        )  # fmt: skip
    return tuple(made)


def _carried(base: Costs | None, own: Costs | None) -> float | None:
    """The strangers' gain over that of seen rows; None where seen rows gained nothing."""
    if base is None or own is None or not {"seen", "stranger"} <= base.zones.keys() & own.zones.keys():
        return None
    seen, stranger = (base.zones[zone] - own.zones[zone] for zone in ("seen", "stranger"))
    return stranger / seen if seen > 0 else None


def _change(base: Costs | None, own: Costs | None, name: str) -> float | None:
    before, after = (None if side is None else getattr(side, name) for side in (base, own))
    return None if before is None or after is None else after - before


def _advised(points: Sequence[CurvePoint], chosen: int, thresholds: CurveThresholds) -> int | None:
    earlier = (p for p in points if p.step < chosen and p.share is not None and p.share >= thresholds.keeps)
    return next((p.step for p in earlier), None)


def _advice(points: Sequence[CurvePoint], chosen: int, advised: int | None, thresholds: CurveThresholds) -> str:
    best = next(p for p in points if p.step == chosen)
    if best.gain is None:
        return f"The untouched model's validation NLL is not recorded: no gain to share out. Chosen: step {chosen}."
    if best.gain <= 0:
        return (
            f"No checkpoint has a lower validation NLL than the untouched model (best: step {chosen}, "
            f"{-best.gain:+.4f} nats per token): there is no gain to keep."
        )
    if advised is None:
        earlier = [p for p in points if p.step < chosen]
        if not earlier:
            return f"The first checkpoint, step {chosen}, is the best: list earlier steps to see if fewer would do."
        last = earlier[-1]
        return (
            f"No earlier checkpoint keeps {thresholds.keeps:.0%} of the gain of step {chosen} ({best.gain:.4f} nats "
            f"per token); step {last.step} keeps {last.share or 0:.0%}."
        )
    one = next(p for p in points if p.step == advised)
    return (
        f"Step {advised} keeps {one.share:.0%} of the gain of step {chosen} ({best.gain:.4f} nats per token) in "
        f"{advised / chosen:.0%} of the steps{_costs(one, best)}. Advice only: step {chosen} stays the one that is "
        "scored."
    )


def _costs(one: CurvePoint, best: CurvePoint) -> str:
    """What the earlier step costs beside the chosen one, where both were measured."""
    parts = []
    for name, here, there in (("M1", one.m1_change, best.m1_change), ("ICC", one.icc_change, best.icc_change)):
        if here is None or there is None:
            continue
        share = f", {here / there:.0%} of it" if there and here / there >= 0 else ""
        parts.append(f"{name} changes by {here:+.4f} instead of {there:+.4f}{share}")
    if one.carried is not None and best.carried is not None:
        parts.append(f"{one.carried:.0%} of the gain carries to strangers instead of {best.carried:.0%}")
    return f"; {', '.join(parts)}" if parts else "; what it costs elsewhere was not measured"


def _turn(points: Sequence[CurvePoint], thresholds: CurveThresholds) -> str:
    lowest = min(points, key=lambda p: (p.validation_nll, p.step))
    rise = points[-1].validation_nll - lowest.validation_nll
    if rise >= thresholds.turn:
        return f" After step {lowest.step} the validation NLL rises, by {rise:.4f} at step {points[-1].step}."
    if lowest is points[-1] and len(points) > 1:
        return " It is lowest at the last step: longer training may lower it further."
    return ""


def _sources(points: Sequence[CurvePoint], chosen: int) -> str:
    """Sources whose own lowest loss lies at another step than the chosen one."""
    known = [p for p in points if p.by_source]
    names = sorted({name for p in known for name in p.by_source or {}})
    parts = []
    for name in names:
        losses = [((p.by_source or {})[name], p.step) for p in known if name in (p.by_source or {})]
        least, step = min(losses)
        there = next((nll for nll, s in losses if s == chosen), None)
        if step != chosen and there is not None:
            parts.append(f"{name} at step {step} ({least:.4f}, {there - least:+.4f} at step {chosen})")
    return f" By source the lowest NLL lies elsewhere for {', '.join(parts)}." if parts else ""

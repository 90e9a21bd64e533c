"""Where the parts of a claim's interval go on the page: positions only, no number that is not in the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from veritune.config.claim import SHARE_KINDS, Claim
from veritune.decide.wording import number, signed
from veritune.records import (
    Estimate,
    Json,
    JsonLike,
    JsonValue,
    Verdict,
)

WIDTH, LEFT, RIGHT = 380.0, 14.0, 366.0


@dataclass(frozen=True)
class Mark:
    """A labelled position. `x` is in the drawing's units; `anchor` is the alignment of its label."""

    x: float
    label: str
    anchor: str = "middle"


@dataclass(frozen=True)
class Plot:
    """An interval drawn to scale. `band` is the region that the margin calls too small to matter."""

    point: float
    value: Mark
    bar: tuple[float, float] | None
    whisker: tuple[float, float] | None
    zero: Mark | None
    lines: tuple[Mark, ...]
    band: tuple[float, float] | None
    ticks: tuple[Mark, ...]
    ends: tuple[str, str] | None
    label: str


TWO_SIDED = ("differ", "equivalent")
DOWNWARD = ("not_worse", "no_regression")


def plot(verdict: Verdict, claim: Claim | None) -> Plot | None:
    """The drawing for a verdict's first estimate, None if it has no value. `claim` is the declared claim."""
    first = next(iter(verdict.estimates), None)
    if first is None or first.value is None:
        return None
    kind, value, bounds = verdict.kind, first.value, _pair(first.low, first.high)
    both = verdict.details.get("simultaneous_interval")
    simultaneous = _pair(*map(_number, both)) if isinstance(both, list | tuple) and len(both) == 2 else None
    declared = _declared(verdict, claim)
    with_zero = kind != "probe"
    shown = [value, *(bounds or ()), *(simultaneous or ()), *(x for x, _ in declared), *((0.0,) if with_zero else ())]
    scale = _Scale.over(shown)
    lines = tuple(Mark(scale(x), label) for x, label in declared)
    return Plot(
        point=scale(value),
        value=_value(scale(value), kind, value),
        bar=(scale(bounds[0]), scale(bounds[1])) if bounds else None,
        whisker=(scale(simultaneous[0]), scale(simultaneous[1])) if simultaneous else None,
        zero=Mark(scale(0.0), "0") if with_zero else None,
        lines=_spread(lines),
        band=(lines[0].x, lines[-1].x) if kind in TWO_SIDED and len(lines) == 2 else None,
        ticks=tuple(Mark(scale(x), text) for x, text in scale.ticks()),
        ends=_ends(kind, first),
        label=_label(first, declared),
    )


def _value(x: float, kind: str, value: float) -> Mark:
    """The number over the point, as the verdict's sentence writes it."""
    text = number(value) if kind in (*SHARE_KINDS, "probe") else signed(value)
    return Mark(min(max(x, LEFT + 22), RIGHT - 22), text.replace("-", "−"))


def _declared(verdict: Verdict, claim: Claim | None) -> list[tuple[float, str]]:
    """The declared limits of the claim's rule: margin, share or threshold, in ascending order."""
    margin, kind = verdict.margin, verdict.kind
    if kind in SHARE_KINDS:
        share = number_of(verdict.details, "share_declared")
        share = claim.share if share is None and claim is not None else share
        return [(1.0, "all of it")] if share is None else [(share, f"declared share {share:g}"), (1.0, "all of it")]
    if kind == "probe":
        threshold = claim.threshold if claim is not None else None
        if claim is None or threshold is None:
            return []
        return [(float(threshold), f"threshold {claim.op or ''} {threshold:g}")]
    if margin is None:
        return []
    if kind in TWO_SIDED:
        return [(-margin, f"−{margin:g}"), (margin, f"margin +{margin:g}")]
    return [(-margin, f"margin −{margin:g}")] if kind in DOWNWARD else [(margin, f"margin +{margin:g}")]


def _spread(lines: tuple[Mark, ...]) -> tuple[Mark, ...]:
    """Labels hang outwards where there are two, inwards at the edge of the drawing."""
    if len(lines) == 2:
        left, right = lines
        first = Mark(left.x, left.label, "end" if left.x > LEFT + 70 else "start")
        return first, Mark(right.x, right.label, "start" if right.x < RIGHT - 80 else "end")
    anchors = ["end" if m.x > RIGHT - 60 else "start" if m.x < LEFT + 60 else "middle" for m in lines]
    return tuple(Mark(m.x, m.label, a) for m, a in zip(lines, anchors))


def _ends(kind: str, estimate: Estimate) -> tuple[str, str] | None:
    """What the two directions mean: which arm scores higher."""
    arms = [mapping_of(estimate.details, side).get("condition") for side in ("b", "a")]
    if kind in (*SHARE_KINDS, "probe") or not all(arms):
        return None
    return f"← {arms[0]} higher", f"{arms[1]} higher →"


def _label(estimate: Estimate, declared: Sequence[tuple[float, str]]) -> str:
    ends = _pair(estimate.low, estimate.high)
    bounds = ", no interval" if ends is None else f", interval from {ends[0]:.4g} to {ends[1]:.4g}"
    limits = "".join(f", {text}" for _, text in declared)
    return f"{estimate.name}: {estimate.value:.4g}{bounds}{limits}"


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 0.1
        return cls(low - pad, high + pad)

    def __call__(self, x: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (x - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Four to eight round numbers within the scale."""
        raw = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        places = max(0, -math.floor(math.log10(step)) + (1 if round(step / power, 1) == 2.5 else 0))
        first = math.ceil(self.low / step)
        count = math.floor(self.high / step) - first + 1
        return [((first + i) * step, _tick((first + i) * step, places)) for i in range(count)]


def _tick(x: float, places: int) -> str:
    text = f"{x:.{places}f}".replace("-", "−")
    return "0" if float(text.replace("−", "-")) == 0 else text


def _pair(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _number(value: JsonValue) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def number_of(details: Json, key: str) -> float | None:
    """A number in a part of a record that has no fixed structure; None if there is none."""
    return _number(details.get(key))


def mapping_of(details: Mapping[str, JsonLike], key: str) -> Mapping[str, JsonLike]:
    """An object in a part of a record that has no fixed structure; empty if there is none."""
    value = details.get(key)
    return value if isinstance(value, Mapping) else {}

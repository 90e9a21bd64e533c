"""The three-sided decision on a gap and a declared margin, and a study's own frozen rule beside it.

    1. CI95 lies beyond ± margin  → better (or worse) by the margin
    2. CI90 lies inside ± margin  → equivalent (two one-sided tests)
    3. CI95 excludes 0            → better (or worse), size unresolved
    4. otherwise                  → inconclusive

Source: Goeman, Solari & Stijnen 2010, Stat Med 29:2117. Where p and interval disagree about 0 the word is never a
win. A point estimate alone never decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from veritune.errors import ScoreError
from veritune.stats.paired import Comparison

Word = Literal[
    "better by the margin",
    "worse by the margin",
    "equivalent",
    "better, size unresolved",
    "worse, size unresolved",
    "inconclusive",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """The word for A against B, the two intervals it rests on, and why."""

    word: Word
    reason: str
    margin: float | None
    interval: tuple[float, float] | None
    equivalence_interval: tuple[float, float] | None


def check_margin(margin: float | None, scale: tuple[float, float]) -> None:
    """Raises ScoreError for a margin that is not above 0 and inside the scale's width."""
    width = scale[1] - scale[0]
    if margin is not None and not 0 < margin < width:
        fix = f"Did you mean {margin / 100:g}?" if width <= 1 < margin <= 100 or margin == width == 1 else ""
        raise ScoreError(
            f"expected a margin above 0 and below {width:g}, the width of the scale "
            f"{scale[0]:g} to {scale[1]:g}; found {margin:g}.",
            fix=fix or "A margin is a difference in the scores' own units.",
        )


def decide(comparison: Comparison, margin: float | None, alpha: float = 0.05) -> Decision:
    """The three-sided decision on the headline estimand. Without a margin only steps 3 and 4 apply."""
    check_margin(margin, comparison.pair.scale)
    spread = comparison.headline.spread
    wide, narrow = spread.interval(1 - alpha), spread.interval(1 - 2 * alpha)
    word, reason = _word(wide, narrow, spread.p(), margin, alpha)
    finite = all(abs(x) != float("inf") for x in wide)
    return Decision(word, reason, margin, wide if finite else None, narrow if finite else None)


def _word(
    wide: tuple[float, float], narrow: tuple[float, float], p: float, margin: float | None, alpha: float
) -> tuple[Word, str]:
    level, inner = f"{100 * (1 - alpha):g} % interval", f"{100 * (1 - 2 * alpha):g} % interval"
    side: Literal["better", "worse"] | None = "better" if wide[0] > 0 else "worse" if wide[1] < 0 else None
    agree = p <= alpha
    if margin is not None:
        if side and agree and (wide[0] > margin or wide[1] < -margin):
            word: Word = "better by the margin" if side == "better" else "worse by the margin"
            return word, f"the {level} lies beyond the margin"
        if -margin < narrow[0] and narrow[1] < margin:
            return "equivalent", f"the {inner} lies inside ± the margin"
    if side and agree:
        return (
            "better, size unresolved" if side == "better" else "worse, size unresolved",
            f"the {level} excludes 0" + ("" if margin is None else " but reaches across the margin"),
        )
    if side:
        return "inconclusive", f"the {level} excludes 0 but the test does not agree (p = {p:.3g})"
    return "inconclusive", f"the {level} holds 0" + ("" if margin is None else f" and the {inner} leaves the margin")


def frozen_rule(comparison: Comparison, rule: Mapping[str, Any]) -> dict[str, Any]:
    """A study's own rule, applied to the letter. Keys: `min_gap` (A wins only with a mean gap of at least this, B
    with at most minus this), `every_seed` (true: and each paired run has the winner's sign).

    Returns the rule, the winner (`a`, `b` or None), the numbers it looked at, and `satisfied`. Raises ScoreError on
    an unknown key: a rule that is not understood must not pass.
    """
    unknown = sorted(set(rule) - {"min_gap", "every_seed"})
    if unknown or "min_gap" not in rule:
        raise ScoreError(
            f"expected a frozen rule with min_gap and perhaps every_seed, found {sorted(rule)}.",
            fix="Remove what the rule does not know; it would be ignored silently.",
        )
    gap, least = comparison.gap, float(rule["min_gap"])
    winner = "a" if gap >= least else "b" if gap <= -least else None
    a, b = comparison.pair.score_a_S_N.mean(axis=1), comparison.pair.score_b_S_N.mean(axis=1)
    per_seed = [float(x) for x in a - b] if len(a) == len(b) or 1 in (len(a), len(b)) else None
    if winner and rule.get("every_seed"):
        sign = 1 if winner == "a" else -1
        if per_seed is None or not all(sign * x > 0 for x in per_seed):
            winner = None
    return {"rule": dict(rule), "gap": gap, "per_seed": per_seed, "winner": winner, "satisfied": winner == "a"}

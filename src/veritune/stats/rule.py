"""The three-sided decision on a gap and a declared margin, and a study's own frozen rule beside it.

    1. CI95 lies beyond ± margin  → better (or worse) by the margin
    2. CI90 lies inside ± margin  → equivalent (two one-sided tests)
    3. CI95 excludes 0            → better (or worse), size unresolved
    4. otherwise                  → inconclusive

Source: Goeman, Solari & Stijnen 2010, Stat Med 29:2117. Where p and interval disagree about 0 the word is never a
win. A point estimate alone never decides. Where lower scores are better the arm with the lower mean is the better one.
Where nothing says which end of the scale is better the words are "higher" and "lower". Where a score that the machine
lost could change the word, the word is inconclusive (`lost`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from veritune.config.frozen_rule import check_rule
from veritune.errors import ScoreError
from veritune.records import JsonLike, JsonValue
from veritune.stats import lost
from veritune.stats.intervals import Unknown
from veritune.stats.paired import Comparison, PairOptions, compare_tables
from veritune.stats.seeds import ROUNDING
from veritune.stats.table import Missing, ScoreTable

Word = Literal[
    "better by the margin",
    "worse by the margin",
    "equivalent",
    "better, size unresolved",
    "worse, size unresolved",
    "higher by the margin",
    "lower by the margin",
    "higher, size unresolved",
    "lower, size unresolved",
    "inconclusive",
]


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision for A against B, the two intervals behind it, and the reason."""

    word: Word
    reason: str
    margin: float | None
    interval: tuple[float, float] | None
    equivalence_interval: tuple[float, float] | None


def check_margin(margin: float | None, scale: tuple[float, float]) -> None:
    """Raises ScoreError for a margin that is not above 0 and below the scale's width."""
    width = scale[1] - scale[0]
    if margin is not None and not 0 < margin < width:
        fix = f"Did you mean {margin / 100:g}?" if width <= 1 < margin <= 100 or margin == width == 1 else ""
        raise ScoreError(
            f"expected a margin above 0 and below {width:g}, the width of the scale "
            f"{scale[0]:g} to {scale[1]:g}; found {margin:g}.",
            fix=fix or "Give a margin in the scores' own units.",
        )


def decide(comparison: Comparison, margin: float | None, alpha: float = 0.05) -> Decision:
    """The three-sided decision on the headline estimand. Without a margin only steps 3 and 4 apply.

    >>> from veritune.stats import compare_tables, tables_from_counts
    >>> decide(compare_tables(*tables_from_counts([(54, 47, 1139, 79)])), margin=0.02).word
    'equivalent'
    """
    check_margin(margin, comparison.pair.scale)
    spread = comparison.headline.spread
    wide, narrow = spread.interval(1 - alpha), spread.interval(1 - 2 * alpha)
    word, reason = _word(wide, narrow, spread.p(), margin, alpha, comparison.pair.higher_is_better)
    if isinstance(spread, Unknown):
        reason = f"no interval: {spread.reason}"
    finite = all(abs(x) != float("inf") for x in wide)
    return Decision(word, reason, margin, wide if finite else None, narrow if finite else None)


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """A comparison with its decision. `bounds` holds the result for each filling of lost scores: name, gap and
    decision.

    `withheld` says why lost scores keep the decision open, empty where they do not.
    """

    comparison: Comparison
    decision: Decision
    alpha: float
    bounds: tuple[tuple[str, float, Word], ...] = ()
    withheld: str = ""


def decide_tables(
    a: ScoreTable, b: ScoreTable, options: PairOptions, margin: float | None, alpha: float = 0.05
) -> Decided:
    """Compare A with B and decide; inconclusive if a score that the machine lost could change the decision.

    Raises ScoreError as `compare_tables` and `check_margin` do.

    >>> from veritune.stats import PairOptions, tables_from_counts
    >>> decide_tables(*tables_from_counts([(54, 47, 1139, 79)]), PairOptions(), margin=0.01).decision.word
    'inconclusive'
    """
    comparison = compare_tables(a, b, options)
    decision = decide(comparison, margin, alpha)
    bounds = []
    for filling in lost.fillings(a, b, scale=options.scale, missing=options.missing):
        other = compare_tables(filling.a, filling.b, options)
        bounds.append((filling.name, other.gap, decide(other, margin, alpha).word))
    withheld = lost.could_change(a, b, decision.word, [word for _, _, word in bounds])
    if withheld:
        decision = Decision("inconclusive", withheld, margin, decision.interval, decision.equivalence_interval)
    return Decided(comparison, decision, alpha, tuple(bounds), withheld)


def missing_bounds(
    a: ScoreTable, b: ScoreTable, options: PairOptions, margin: float | None, alpha: float
) -> list[Decided]:
    """The comparison with every missing score, the model's failures too, set to its worst and to its best value for A.

    Shown beside the decision, which `decide_tables` makes.
    """
    found = [compare_tables(a, b, replace(options, missing=Missing(policy))) for policy in ("worst", "best")]
    return [Decided(comparison, decide(comparison, margin, alpha), alpha) for comparison in found]


Side = Literal["better", "worse", "higher", "lower"]

_SIDES: Mapping[tuple[bool, bool | None], Side] = {
    (True, True): "better",
    (False, True): "worse",
    (True, False): "worse",
    (False, False): "better",
    (True, None): "higher",
    (False, None): "lower",
}
"""What A is when its scores lie above B's or not, by whether higher is better."""

_BY_MARGIN: Mapping[Side, Word] = {
    "better": "better by the margin",
    "worse": "worse by the margin",
    "higher": "higher by the margin",
    "lower": "lower by the margin",
}
_UNRESOLVED: Mapping[Side, Word] = {
    "better": "better, size unresolved",
    "worse": "worse, size unresolved",
    "higher": "higher, size unresolved",
    "lower": "lower, size unresolved",
}


def _word(
    wide: tuple[float, float],
    narrow: tuple[float, float],
    p: float,
    margin: float | None,
    alpha: float,
    higher_is_better: bool | None = True,
) -> tuple[Word, str]:
    level, inner = f"{100 * (1 - alpha):.4g} % interval", f"{100 * (1 - 2 * alpha):.4g} % interval"
    clear = wide[0] > 0 or wide[1] < 0
    side = _SIDES[wide[0] > 0, higher_is_better]
    agree = p <= alpha
    if margin is not None:
        if clear and agree and (wide[0] > margin or wide[1] < -margin):
            return _BY_MARGIN[side], f"the {level} lies beyond the margin"
        if -margin < narrow[0] and narrow[1] < margin:
            return "equivalent", f"the {inner} lies inside ± the margin"
    if clear and agree:
        across = "" if margin is None else " but reaches across the margin"
        return _UNRESOLVED[side], f"the {level} excludes 0{across}"
    if clear:
        return "inconclusive", f"the {level} excludes 0 but the test does not agree (p = {p:.3g})"
    return "inconclusive", f"the {level} holds 0" + ("" if margin is None else f" and the {inner} leaves the margin")


def frozen_rule(comparison: Comparison, rule: Mapping[str, Any]) -> dict[str, Any]:
    """The outcome of a study's own rule, applied literally. Keys: `min_gap` (A wins only with a mean gap of at least
    this in its favour, B likewise), `every_seed` (true: each paired run must also have the winner's sign).

    Returns the rule, the winner (`a`, `b` or None), the numbers it looked at, and `satisfied`. Raises ScoreError on
    an unknown key, and where nothing says which end of the scale is better.

    >>> from veritune.stats import compare_tables, tables_from_counts
    >>> frozen_rule(compare_tables(*tables_from_counts([(54, 47, 1139, 79)])), {"min_gap": 0.01})["satisfied"]
    False
    """
    check_rule(rule)
    up = comparison.pair.higher_is_better
    if up is None:
        raise ScoreError(
            "a frozen rule names a winner, but nothing says whether higher scores are better.",
            fix="State the direction: --higher-is-better or --lower-is-better.",
        )
    sign = 1 if up else -1
    gap, least = comparison.gap, float(rule["min_gap"])
    rounding = ROUNDING * (comparison.pair.scale[1] - comparison.pair.scale[0])
    winner = "a" if sign * gap >= least - rounding else "b" if sign * gap <= rounding - least else None
    if abs(gap) <= rounding:
        winner = None
    a, b = comparison.pair.score_a_S_N.mean(axis=1), comparison.pair.score_b_S_N.mean(axis=1)
    per_seed = [float(x) for x in a - b] if len(a) == len(b) or 1 in (len(a), len(b)) else None
    if winner and rule.get("every_seed"):
        side = sign if winner == "a" else -sign
        if per_seed is None or not all(side * x > rounding for x in per_seed):
            winner = None
    return {"rule": dict(rule), "gap": gap, "per_seed": per_seed, "winner": winner, "satisfied": winner == "a"}


def frozen_rule_tables(
    a: ScoreTable, b: ScoreTable, options: PairOptions, rule: Mapping[str, JsonValue], comparison: Comparison
) -> dict[str, JsonLike]:
    """`frozen_rule` on a comparison of A with B; no winner if a score that the machine lost could change it.

    `withheld` in the result says why, empty where lost scores change nothing.
    """
    outcome = frozen_rule(comparison, rule)
    under = [
        frozen_rule(compare_tables(f.a, f.b, options), rule)["winner"]
        for f in lost.fillings(a, b, scale=options.scale, missing=options.missing)
    ]
    withheld = lost.could_change(a, b, str(outcome["winner"]), map(str, under))
    if withheld:
        outcome |= {"winner": None, "satisfied": False}
    return {**outcome, "withheld": withheld}

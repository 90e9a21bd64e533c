"""What a pipeline may demand of a comparison: better, not worse, or equivalent; met only where the evidence says so.

    better       the decision is "better"; with a margin, "better by the margin"
    not_worse    the interval of the decision lies above - the margin, counted in the good direction
    equivalent   the decision is "equivalent"

A score that was lost to a crash or a full disk is unknown: a demand is met only if every possible value of the lost
scores meets it (`lost`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from veritune.errors import ScoreError
from veritune.stats import lost
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.rule import Decided
from veritune.stats.table import ScoreTable

Demand = Literal["better", "not_worse", "equivalent"]


@dataclass(frozen=True, slots=True)
class DemandOutcome:
    """Whether a demand on one comparison was met, and the reason."""

    demand: Demand
    met: bool
    why: str


def check_demand(demand: str, margin: float | None) -> Demand:
    """The demand of this name. Raises ScoreError for an unknown name, and for one that needs a margin if none is
    given."""
    known: tuple[Demand, ...] = get_args(Demand)
    if demand not in known:
        raise ScoreError(f"--fail-unless {demand!r}: expected one of {', '.join(known)}.")
    if demand != "better" and margin is None:
        raise ScoreError(
            f"--fail-unless {demand} needs a margin: the difference up to which worse still counts as not worse.",
            fix="Add --margin 0.02.",
        )
    return next(name for name in known if name == demand)


def judge_demand(demand: Demand, a: ScoreTable, b: ScoreTable, decided: Decided, options: PairOptions) -> DemandOutcome:
    """Whether the comparison of A with B meets the demand, with the reason.

    Raises ScoreError for better and not_worse where nothing says which end of the scale is the good one.
    """
    up, word = decided.comparison.pair.higher_is_better, decided.decision.word
    if up is None and demand != "equivalent":
        raise ScoreError(
            f"--fail-unless {demand} needs a direction, but nothing says whether higher scores are better.",
            fix="State the direction: --higher-is-better or --lower-is-better.",
        )
    if demand == "not_worse":
        return _not_worse(a, b, decided, options)
    wanted = {
        "better": "better" if decided.decision.margin is None else "better by the margin",
        "equivalent": "equivalent",
    }[demand]
    return DemandOutcome(demand, word.startswith(wanted), f"{word}: {decided.decision.reason}")


def _not_worse(a: ScoreTable, b: ScoreTable, decided: Decided, options: PairOptions) -> DemandOutcome:
    margin = decided.decision.margin or 0.0
    sign = 1 if decided.comparison.pair.higher_is_better else -1
    filled = [
        compare_tables(f.a, f.b, options) for f in lost.fillings(a, b, scale=options.scale, missing=options.missing)
    ]
    ends = []
    for comparison in (decided.comparison, *filled):
        low, high = comparison.headline.spread.interval(1 - decided.alpha)
        ends.append(low if sign > 0 else -high)
    level, least = f"{100 * (1 - decided.alpha):g} % interval", min(ends)
    met = least > -margin
    if not met and any(end > -margin for end in ends):
        why = f"scores that the machine lost could bring the {level} down to {least:+.4f}, not above {-margin:g}"
    elif abs(least) == float("inf"):
        why = "there is no interval"
    else:
        why = f"the {level} reaches {least:+.4f} in the good direction, {'above' if met else 'not above'} {-margin:g}"
    return DemandOutcome("not_worse", met, why)

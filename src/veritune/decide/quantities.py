"""Claims of kind `probe`: a recorded quantity meets a threshold with its whole interval."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from veritune.decide.evidence import ClaimContext, Presented, Status, Tested, Way
from veritune.decide.recorded import Recorded, as_recorded
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats.intervals import smallest_alpha

if TYPE_CHECKING:
    from veritune.config.claim import Claim

_OPS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def judge_probe(claim: Claim, context: ClaimContext) -> Tested:
    """A claim's evidence from the recorded quantity. Raises ScoreError if there is no such record."""
    if claim.probe is None or claim.threshold is None or claim.op is None or claim.op not in _OPS:
        raise ScoreError(f"a probe claim needs a probe, a threshold, and an op of {', '.join(_OPS)}.")
    if not math.isfinite(claim.threshold):
        raise ScoreError(f"expected a finite threshold, found {claim.threshold}.")
    if claim.probe not in context.probes:
        raise ScoreError(
            f"no record of the probe {claim.probe!r}.",
            fix="Run the probe, then run `veritune run STUDY` again to decide.",
        )
    recorded = as_recorded(claim.probe, context.probes[claim.probe])
    facts = {"probe": claim.probe, "scope": recorded.estimate.scope, "exact": recorded.exact}
    if recorded.exact:
        status: Status = "supported" if _OPS[claim.op](recorded.estimate.value or 0.0, claim.threshold) else "refuted"
        return Tested(claim, (), lambda alpha, way: Presented((recorded.estimate,), details=facts), status, exact=True)
    ways = _probe_ways(claim, recorded)

    def show(alpha: float, way: Way | None) -> Presented:
        estimates = tuple(_probe_estimate(recorded, level) for level in dict.fromkeys((1 - alpha, 1 - claim.alpha)))
        reason = "" if way else _probe_reason(recorded, estimates[0], 1 - alpha)
        return Presented(estimates, reason, facts)

    lacks = (recorded.lacks,) if recorded.spread is None else ()
    return Tested(claim, ways, show, warnings=tuple(dict.fromkeys((*lacks, *recorded.estimate.warnings))))


def _probe_ways(claim: Claim, recorded: Recorded) -> tuple[Way, ...]:
    """Supported where the whole interval meets the threshold, refuted where no part of it does."""
    if recorded.spread is None or claim.threshold is None or claim.op is None:
        return ()
    side = 1 if claim.op.startswith(">") else -1
    # An end that touches the threshold meets `>=` and `<=` and fails `>` and `<`: the edge moves by one float for it.
    beside = math.nextafter(claim.threshold, -side * math.inf)
    beyond = math.nextafter(claim.threshold, side * math.inf)
    meets, fails = (beside, claim.threshold) if claim.op.endswith("=") else (claim.threshold, beyond)
    return (
        Way(smallest_alpha(recorded.spread, meets, side=side), "supported"),
        Way(smallest_alpha(recorded.spread, fails, side=-side), "refuted"),
    )


def _probe_estimate(quantity: Recorded, level: float) -> Estimate:
    """The quantity with its interval at `level`, or as it was recorded where it has none there."""
    if quantity.spread is None:
        return quantity.estimate
    low, high = quantity.spread.interval(level)
    if not (math.isfinite(low) and math.isfinite(high)):
        return quantity.estimate
    return replace(quantity.estimate, low=low, high=high, level=level)


def _probe_reason(quantity: Recorded, shown: Estimate, level: float) -> str:
    """Why an open claim has no interval that could have settled it; empty where it has one."""
    if quantity.spread is None:
        return f"{quantity.lacks}; {quantity.remedy}" if quantity.remedy else quantity.lacks
    if shown.level >= level - 1e-9:
        return ""
    remedy = (
        quantity.remedy or f"record its interval at {100 * level:.4g} %, or its standard error and degrees of freedom"
    )
    return (
        f"it has an interval at {100 * shown.level:.4g} % and none at {100 * level:.4g} % (two-sided), where this "
        f"claim is decided; {remedy}"
    )

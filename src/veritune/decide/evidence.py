"""What the judging of every claim kind shares: evidence before correction, what settles a claim, at which alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from veritune.config.thresholds import DEFAULTS, GradeThresholds
from veritune.decide.recorded import Recorded
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats.paired import Comparison, PairOptions
from veritune.stats.table import Missing, ScoreTable

if TYPE_CHECKING:
    from veritune.config.claim import Claim  # judging reads a claim and makes none: compare has no use for its class

Status = Literal["supported", "refuted", "inconclusive", "untested"]
TableKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ClaimContext:
    """What judging a claim needs in addition to the score tables.

    `probes` maps a probe's name to what was recorded: a quantity with its interval at any level, an Estimate (which
    decides at the levels that its own interval covers) or a bare number (which decides nothing). `scales` and
    `failure_values` are per eval.
    `evidence` maps a claim's name (or `*` for all) to named evidence: `contamination` (`clean`, `unchecked`,
    `found`), `replicated` (true, false, None). `grade` says what makes it good, weak or poor.

    >>> ClaimContext(scales={"exam": (0.0, 1.0)}).scales["exam"]
    (0.0, 1.0)
    """

    probes: Mapping[str, Recorded | Estimate | float] = field(default_factory=dict)
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    failure_values: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: PairOptions = field(default_factory=PairOptions)
    grade: GradeThresholds = DEFAULTS.grade


@dataclass(frozen=True, slots=True)
class Way:
    """One way to settle a claim: the smallest alpha at which it settles, the resulting status, and the interval that
    does it.

    `inside` marks the statement of two one-sided tests, which rests on the interval at 1 − 2·alpha. `parts` above 1
    marks one of several parts that may each settle it alone: it rests on the interval at 1 − alpha/parts.
    """

    p: float
    status: Status
    inside: bool = False
    reason: str = ""
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Presented:
    """A tested claim at the alpha that decides it: its estimates, the deciding one first, and further evidence."""

    estimates: tuple[Estimate, ...]
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    fragile: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Tested:
    """A claim's evidence before the correction for multiple claims: the ways to settle it, or its status if it has no
    p.

    `exact`: an exact quantity was compared, which is no test and takes no share of alpha. `beside`: what else was
    compared, whose missing scores count as well.
    """

    claim: Claim
    ways: tuple[Way, ...] = ()
    show: Callable[[float, Way | None], Presented] = lambda alpha, way: Presented(())
    status: Status = "inconclusive"
    comparison: Comparison | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    exact: bool = False
    memorisation: str = ""
    beside: tuple[Comparison, ...] = ()

    @property
    def p(self) -> float | None:
        """The smallest alpha at which the claim is settled either way; None if it is not a test."""
        return min(way.p for way in self.ways) if self.ways else None

    def way(self, alpha: float) -> Way | None:
        """The way that settles the claim at `alpha` (supporting ways come first); None if none does."""
        return next((way for way in self.ways if way.p <= alpha), None)


def table_of(tables: Mapping[TableKey, ScoreTable], condition: str | None, eval_name: str | None) -> ScoreTable:
    """The scores of an arm on an eval. Raises ScoreError if there are none."""
    if not condition or not eval_name:
        raise ScoreError("the claim names no condition or no eval.")
    if (condition, eval_name) not in tables:
        raise ScoreError(f"no scores of {condition!r} on {eval_name!r}.", fix="Run and score it, then decide again.")
    return tables[condition, eval_name]


def asked_otherwise(table: ScoreTable, eval_name: str, claim: Claim) -> ScoreTable:
    """The scores on `against_eval` as scores of the claim's eval: the same items, whose ids begin with the eval's
    name."""
    own, other = f"{eval_name}/", f"{claim.against_eval}/"
    families = table.family_N
    return replace(
        table,
        eval=eval_name,
        condition=f"{claim.against} asked as {claim.against_eval}",
        items=tuple(own + item.removeprefix(other) for item in table.items),
        family_N=None if families is None else tuple(own + name.removeprefix(other) for name in families),
    )


def options_of(name: str, context: ClaimContext, policy: str = "fail") -> PairOptions:
    """The options for comparing the scores of an eval: its scale, and the value that a missing score counts as."""
    value = context.failure_values.get(name)
    return replace(context.options, scale=context.scales.get(name), missing=Missing(policy, value))

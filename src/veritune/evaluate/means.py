"""The one definition of a mean score: over all items that were asked, a failed or lost answer at a declared value.

A zone's summary records the mean over the items that have a score, because that is what was measured. What is compared,
drawn, printed and written is the mean over every item, as the verdicts take it: leaving failures out would put a model
that answers one question in ten, and that one right, above a model that answers all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from veritune.counting import many
from veritune.records import ZoneScore

FAILED = 0.0
"""What an item without a score counts as, in a study's own evals: the bad end of a scale from 0 to 1."""


@dataclass(frozen=True, slots=True)
class ZoneMean:
    """A mean score with its denominator: `value` over `n` items, of which `failed` had no score and count as `at`.

    `answered` is the mean over the others, None where there are none.
    """

    value: float
    n: int
    failed: int
    at: float
    answered: float | None

    @property
    def rule(self) -> str:
        """The rule as text: `mean over 48 items; 5 without a score count as 0`."""
        lost = f"; {self.failed} without a score count as {self.at:g}" if self.failed else ""
        return f"mean over {many(self.n, 'items')}{lost}"


def zone_mean(cell: ZoneScore, at: float = FAILED) -> ZoneMean | None:
    """The mean score of one run on one zone; None if no item was asked."""
    if not cell.items:
        return None
    failed = cell.items - cell.scored
    total = (cell.mean or 0.0) * cell.scored + at * failed
    return ZoneMean(total / cell.items, cell.items, failed, at, cell.mean if cell.scored else None)


@dataclass(frozen=True, slots=True)
class OverSeeds:
    """One number over the `n` runs of a condition: mean, minimum, maximum and range."""

    n: int
    mean: float
    min: float
    max: float

    @property
    def range(self) -> float:
        """The maximum minus the minimum."""
        return self.max - self.min


def over_seeds(values: Sequence[float]) -> OverSeeds | None:
    """Mean, minimum and maximum over seeds; None for fewer than two runs, which have no spread."""
    if len(values) < 2:
        return None
    return OverSeeds(len(values), math.fsum(values) / len(values), min(values), max(values))

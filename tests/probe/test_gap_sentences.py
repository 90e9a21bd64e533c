"""What the zone gap says, word for word: the word, why, the reading, the limits and what would change it."""

from __future__ import annotations

import numpy as np
import pytest

from veritune.errors import ScoreError
from veritune.probe.memorization import _open, three_zone_gap
from veritune.records import ThreeZoneGap


def gap(seen: float, stranger: float, *, families: int = 40, spread: float = 0.0, shift: float = 0.0) -> ThreeZoneGap:
    """Rows of `families` families a zone, one each; gains alternate by ± spread round what is given."""
    n = families
    base = 2.0 + 0.01 * (np.arange(2 * n) % 7) + np.repeat([0.0, shift], n)
    wave = spread * np.where(np.arange(2 * n) % 2, 1, -1)
    gained = np.repeat([seen, stranger], n) + wave
    zones = ["seen"] * n + ["stranger"] * n
    return three_zone_gap(base, base - gained, zones, [f"f{i}" for i in range(2 * n)])


@pytest.mark.parametrize(
    ("found", "verdict", "why", "reading"),
    [
        (
            gap(1.5, 1.45),
            "generalises",
            "at least 50% of the gain carries to strangers",
            "It generalises: at least 50% of the gain carries to strangers. Seen rows gained 1.5 nats per token; 97% (",
        ),
        (
            gap(1.5, 0.0),
            "memorises",
            "at most 20% of the gain carries to strangers",
            "It memorises: at most 20% of the gain carries to strangers. Seen rows gained 1.5 nats per token; 0% (",
        ),
        (
            gap(1.5, 0.6),
            "partly",
            "some of the gain carries to strangers, and not all of it",
            "It generalises in part: some of the gain carries to strangers, and not all of it. "
            "Seen rows gained 1.5 nats per token; 40% (",
        ),
        (
            gap(1.5, 1.45, families=2),
            "cannot tell",
            "2 families in 'seen' and 2 families in 'stranger': at least {least} are needed",
            "Whether it generalises cannot be told: 2 families in 'seen' and 2 families in 'stranger': ",
        ),
        (
            gap(0.0, 0.5, spread=0.5),
            "cannot tell",
            "the gain on seen rows is not clear of zero: nothing was learned that could carry over",
            "Whether it generalises cannot be told: the gain on seen rows is not clear of zero: "
            "nothing was learned that could carry over.",
        ),
        (
            gap(1.5, 1.2, shift=3.0),
            "cannot tell",
            "the zones differ too much in difficulty: the common base value lies outside most seen and stranger rows, "
            "so their gain there would be extrapolated",
            "Whether it generalises cannot be told: the zones differ too much in difficulty: ",
        ),
    ],
)
def test_the_word_its_reason_and_the_reading(found: ThreeZoneGap, verdict: str, why: str, reading: str) -> None:
    least = found.thresholds["families_for_interval"]
    assert (found.verdict, found.why) == (verdict, why.format(least=least))
    assert found.reading.startswith(reading)


def test_what_an_open_interval_leaves_open() -> None:
    assert _open(0.1, 1.2, 0.95) == "some of the gain carries, and whether all of it does is open"
    assert _open(0.0, 0.95, 0.95) == "not all of the gain carries, and whether any does is open"
    assert _open(-0.1, 0.96, 0.95) == "none and all are both possible"
    wide = gap(1.0, 0.5, families=12, spread=0.9)
    low, high = wide.carried["stranger"].low, wide.carried["stranger"].high
    assert low is not None and high is not None
    assert wide.why == (
        f"the share carried to strangers lies anywhere from {low:.0%} to {high:.0%}: none and all are both possible"
    )


def test_its_limits_and_what_would_change_it() -> None:
    more = "More stranger families narrow the interval; strangers of another kind than these may read differently."
    assert gap(1.5, 0.0).would_change == more
    assert gap(1.5, 0.0, families=16).would_change == (
        f"{more} `memorises` needs at least 17 of them, whatever they gain."
    )
    limits = (
        "It holds for rows like those held out, at this checkpoint; siblings alone show what a leaky split would. "
        "Up to 9% of stranger families could be of a kind that none of these is: the interval allows for one that "
        "carries all, not for one that loses."
    )
    assert gap(1.5, 0.0).limits == limits  # 1 − .025^{1/40} = .088
    unbounded = three_zone_gap(
        [2.0, 2.1] * 40, [1.0, 1.2] * 40, ["seen"] * 40 + ["stranger"] * 40, range(80), best=None
    )
    assert unbounded.limits == (
        f"{limits} No least loss was given, so that seen families with a rare large gain are not allowed for."
    )


@pytest.mark.parametrize(
    ("before", "after", "zones", "message", "fix"),
    [
        (
            [1.0],
            [1.0, 2.0],
            ["seen"],
            "expected one value, zone and family per row, found lists of lengths [1, 2].",
            None,
        ),
        (
            [1.0, float("nan")],
            [1.0, 1.0],
            ["seen", "stranger"],
            "row 1: nan before and 1.0 after; 1 row is not finite.",
            "Use another checkpoint: a diverged or damaged run has no finite loss.",
        ),
        (
            [1.0, 1.0],
            [1.0, -0.5],
            ["seen", "stranger"],
            "row 1: 1 before and -0.5 after; a loss is at least 0.",
            "Give losses in nats per token, or state the lowest possible value (best=...).",
        ),
        (
            [1.0],
            [1.0],
            ["seen"],
            "no row of zone 'stranger' was scored.",
            "Score rows of every zone, before and after.",
        ),
    ],
)
def test_losses_that_cannot_be_read(
    before: list[float], after: list[float], zones: list[str], message: str, fix: str | None
) -> None:
    with pytest.raises(ScoreError) as error:
        three_zone_gap(before, after, zones, list(range(len(before))))
    assert error.value.message == message
    assert fix is None or error.value.fix == fix

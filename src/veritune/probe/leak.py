"""What a leaky split would have flattered: the same data, split row by row as if there were no families.

    zones = leaky_zones(honest_zones, seed)          # as many rows trained on, drawn without regard to families
    # train the same recipe on them for as many steps; then
    record = leak(Measured(...))

On the rows that the honest run never saw a relative of, and that the leaky run holds out too, the two runs' losses are
compared row by row: what the leaky run gains there, it gains because relatives of those rows were trained on, or
because its rows come from more families. The validation rows tell the two apart: neither run trained on a relative of
theirs, so what the leaky run gains on them is no leak.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from veritune.errors import DataError, ScoreError
from veritune.probe.clusters import Floats, codes, difference, ratio
from veritune.records import Estimate, Json, JsonLike, Leak

HELD_OUT = "held_out"
APART = "apart"
"""Zone of a row of a data set that the condition does not train on."""


@dataclass(frozen=True)
class LeakLosses:
    """Mean loss per row id of the base, the honest and the leaky run; each row's zone in both splits; its family."""

    condition: str
    seed: int
    base: Mapping[str, float]
    honest: Mapping[str, float]
    leaky: Mapping[str, float]
    honest_zone: Mapping[str, str]
    leaky_zone: Mapping[str, str]
    family: Mapping[str, str]


def leaky_zones(
    zone_of: Mapping[str, str], seed: int = 0, *, trained: Collection[str] | None = None, set_of: Mapping[str, str] = {}
) -> dict[str, str]:
    """Zones of a split that ignores families: `seen` (as many rows as before, drawn from all but validation), and
    `held_out`. Validation rows stay, so that both runs choose their checkpoint on the same rows.

    `trained` are the rows that the honest run trains on; None means all of zone `seen`. Where `set_of` names each row's
    data set, as many rows are drawn from each set as the honest run takes of it, and rows of other sets are `apart`:
    who splits these sets does not have them.

    Raises DataError when nothing is held out besides validation.

    >>> zones = leaky_zones({"a": "seen", "b": "seen", "c": "stranger", "d": "validation"})
    >>> sorted(zones.values()), zones["d"]
    (['held_out', 'seen', 'seen', 'validation'], 'validation')
    """
    own = [row for row, zone in zone_of.items() if zone == "seen"] if trained is None else trained
    wanted = Counter(set_of.get(row, "") for row in own)
    pools: dict[str, list[str]] = {name: [] for name in sorted(wanted)}
    for row in sorted(zone_of):
        if zone_of[row] != "validation" and set_of.get(row, "") in pools:
            pools[set_of.get(row, "")].append(row)
    n_pool = sum(map(len, pools.values()))
    if not 0 < wanted.total() < n_pool:
        raise DataError(
            f"a leaky split needs rows trained on and rows held out; found {wanted.total()} of {n_pool} trained on.",
            fix="Hold out strangers in `split`.",
        )
    rng = random.Random(seed)
    drawn = {row for name, pool in pools.items() for row in rng.sample(pool, wanted[name])}
    leaky = {row: "seen" if row in drawn else HELD_OUT for pool in pools.values() for row in pool}
    return {row: zone if zone == "validation" else leaky.get(row, APART) for row, zone in zone_of.items()}


def leak(m: LeakLosses) -> Leak:
    """The comparison of the two runs. Raises ScoreError for losses that are not finite, or if no stranger row is held
    out by both.
    """
    _check(m)
    ids = [r for r in m.honest if r in m.leaky and m.honest_zone[r] == "stranger" and m.leaky_zone[r] == HELD_OUT]
    if not ids:
        raise ScoreError(
            "no stranger row was scored by both runs.", fix="Give an eval with zone `stranger`, so that it is measured."
        )
    other = [r for r in m.honest if r in m.leaky and m.honest_zone[r] == "validation"]
    fell_N = np.array([m.honest[r] - m.leaky[r] for r in ids + other])
    family_N = codes([m.family[r] for r in ids + other])
    first_N = np.arange(len(fell_N)) < len(ids)
    flattered = _mean("flattered held-out loss", fell_N[first_N], [m.family[r] for r in ids])
    elsewhere = _mean("fall on validation rows", fell_N[~first_N], [m.family[r] for r in other])
    by_leak = difference("flattered by the leak alone", fell_N, first_N, family_N)
    honest = _reported(m.honest, m.honest_zone, "stranger", m.family)
    leaky = _reported(m.leaky, m.leaky_zone, HELD_OUT, m.family)
    trained = {m.family[r] for r, z in m.leaky_zone.items() if z == "seen"}
    reading, limits, change = _sentences(flattered, elsewhere, by_leak, honest, leaky)
    return Leak(
        condition=m.condition,
        seed=m.seed,
        n_trained=sum(z == "seen" for z in m.leaky_zone.values()),
        flattered=flattered,
        elsewhere=elsewhere,
        by_leak=by_leak,
        honest=honest,
        leaky=leaky,
        shared={
            "n_rows": len(ids),
            "with_a_relative_trained_on": sum(m.family[r] in trained for r in ids),
            "base": float(np.mean([m.base[r] for r in ids])) if all(r in m.base for r in ids) else None,
            "honest": float(np.mean([m.honest[r] for r in ids])),
            "leaky": float(np.mean([m.leaky[r] for r in ids])),
        },
        reading=reading,
        limits=limits,
        would_change=change,
    )


def _check(m: LeakLosses) -> None:
    for name, losses in (("base", m.base), ("honest", m.honest), ("leaky", m.leaky)):
        bad = next((r for r, x in losses.items() if not np.isfinite(x)), None)
        if bad is not None:
            raise ScoreError(
                f"row {bad}: the {name} run's loss is {losses[bad]}.", fix="Use another checkpoint of that run."
            )


def _mean(name: str, value_N: Floats, families: list[str]) -> Estimate:
    return ratio(name, value_N, np.ones(len(value_N)), codes(families))


def _reported(
    losses: Mapping[str, float], zone_of: Mapping[str, str], held: str, family: Mapping[str, str]
) -> Mapping[str, JsonLike]:
    """What this split's author would print: loss on trained rows, on held-out rows, and the gap between them."""
    rows = [r for r in losses if zone_of[r] in ("seen", held)]
    value_N = np.array([losses[r] for r in rows])
    held_N = np.array([zone_of[r] == held for r in rows])
    names = [family[r] for r in rows]
    return {
        "seen": _mean("loss on trained rows", value_N[~held_N], [f for f, h in zip(names, held_N) if not h]),
        "held_out": _mean("loss on held-out rows", value_N[held_N], [f for f, h in zip(names, held_N) if h]),
        "gap": difference("held-out loss minus loss on trained rows", value_N, held_N, codes(names)),
    }


def _sentences(
    flattered: Estimate, elsewhere: Estimate, by_leak: Estimate, honest: Json, leaky: Json
) -> tuple[str, str, str]:
    said = _signed(flattered)
    if flattered.low is None:
        head = f"The leaky split read {said} on the same held-out rows; too few families to say more"
    elif flattered.low > 0:
        head = f"A leaky split would have flattered held-out loss by {said}"
    elif flattered.high is not None and flattered.high < 0:
        head = f"A leaky split would not have flattered held-out loss here: it read worse, by {said}"
    else:
        head = f"No flattery is shown: the leaky split read {said} lower, which is not clear of zero"
    gaps = f"{_plain(honest['gap'])} honestly against {_plain(leaky['gap'])} leaky"
    neither = f"on families that neither run saw the two differ by {_signed(elsewhere)}"
    if by_leak.value is not None:
        clear = "" if by_leak.low is None or by_leak.low > 0 else ", not clear of zero"
        neither += f", which leaves {_signed(by_leak)} to the leak{clear}"
    return (
        f"{head}. Seen to held-out gap: {gaps}; {neither}.",
        "One seed of either split: the intervals are over rows and families, not over trainings or other leaky draws.",
        "More families and further seeds narrow it; data with fewer rewordings per original has less to leak.",
    )


def _signed(e: Estimate) -> str:
    if e.value is None:
        return "nothing known"
    bounds = f" ({e.low:.3f} to {e.high:.3f})" if e.low is not None and e.high is not None else ""
    return f"{e.value:.3f} nats per token{bounds}"


def _plain(e: Estimate) -> str:
    return "unknown" if e.value is None else f"{e.value:.3f}"

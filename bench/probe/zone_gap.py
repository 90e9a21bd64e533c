"""How often the three-zone gap says a wrong word, by simulation.

    python bench/probe/zone_gap.py                 # the table of docs/probe.md; about 6 minutes on one core
    python bench/probe/zone_gap.py --runs 300 --families 8 20

Rows of a seen zone gain 1 on average, strangers `share` of it; a base loss of 2.5 is the most that a row can gain.
Rows of a family share a gain. Kinds of gain:

    normal            families around their zone's mean, sd .5 of it (.1 at share 0)
    lognormal         family gains are lognormal (sigma 1, cut at 2.4): a few families gain most
    skewed strangers  strangers are lognormal, seen rows normal
    skewed seen       seen rows are lognormal, strangers normal
    rare              strangers gain nothing but for a few families that gain as seen rows do; seen rows normal

A word is wrong when the true share is not what it says: `memorises` from a share of .2 up, `generalises` up to .5,
`partly` at 0 and below or 1 and above. Nominal is .025 for each.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter

import numpy as np

from veritune.probe.memorization import three_zone_gap

KINDS = ("normal", "lognormal", "skewed strangers", "skewed seen", "rare")
SHARES = (0.0, 0.2, 0.5, 1.0)
BASE, SPREAD, NOISE, CUT = 2.5, 0.3, 0.2, 2.4
CUT_MEAN = 0.8236  # mean of exp(z - 1/2) cut at 2.4, z standard normal
Draw = np.random.Generator


def sizes(families: int, how: str) -> np.ndarray:
    """Rows of each family: 3 each, or Zipf with the same total (the largest of 20 holds about a quarter)."""
    if how == "equal":
        return np.full(families, 3)
    weight = 1 / np.arange(1, families + 1)
    return np.maximum(1, np.round(3 * families * weight / weight.sum())).astype(int)


def family_gains(draw: Draw, kind: str, zone: str, mean: float, families: int) -> np.ndarray:
    """Each family's mean gain, with expectation `mean`."""
    if kind == "lognormal" or kind == f"skewed {zone}" or kind == f"skewed {zone}s":
        return mean * np.minimum(CUT, np.exp(draw.standard_normal(families) - 0.5)) / CUT_MEAN
    if kind == "rare" and zone == "stranger":
        return (draw.random(families) < mean).astype(float)
    return mean + 0.5 * max(mean, 0.2) * draw.standard_normal(families)


def word(draw: Draw, kind: str, how: str, families: int, share: float) -> str:
    """The verdict on one simulated data set."""
    base, after, zones, names = [], [], [], []
    for zone, mean in (("seen", 1.0), ("stranger", share)):
        size = draw.permutation(sizes(families, how))
        gain = np.repeat(family_gains(draw, kind, zone, mean, families), size)
        n = len(gain)
        start = BASE + SPREAD * draw.standard_normal(n)
        base.append(start)
        after.append(np.maximum(0.0, start - gain - NOISE * draw.standard_normal(n)))
        zones += [zone] * n
        names += [f"{zone}{f}" for f in np.repeat(np.arange(families), size)]
    return three_zone_gap(np.concatenate(base), np.concatenate(after), zones, names).verdict


def wrong(share: float) -> set[str]:
    """The words that are errors at a true share."""
    made = set()
    if share >= 0.2:
        made.add("memorises")
    if share <= 0.5:
        made.add("generalises")
    if share <= 0 or share >= 1:
        made.add("partly")
    return made


def main() -> None:
    """Print the table, worst cell last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--families", type=int, nargs="+", default=[8, 12, 20, 40])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    given = parser.parse_args()
    limit = 0.025 + 3 * (0.025 * 0.975 / given.runs) ** 0.5
    print(f"{given.runs} runs a cell; nominal .025, with 3 standard errors {limit:.3f}")
    print("| gains | sizes | families | share | generalises | partly | memorises | cannot tell | wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    worst, over = (0.0, ""), 0
    for kind, how, families in itertools.product(given.kinds, ("equal", "zipf"), given.families):
        for share in given.shares:
            draw = np.random.default_rng([KINDS.index(kind), how == "zipf", families, int(100 * share)])
            counts = Counter(word(draw, kind, how, families, share) for _ in range(given.runs))
            rate = {w: counts[w] / given.runs for w in ("generalises", "partly", "memorises", "cannot tell")}
            bad = {w: rate[w] for w in wrong(share)}
            most = max(bad, key=lambda w: bad[w])
            worst = max(worst, (bad[most], f"{most}: {kind}, {how}, {families} families, share {share}"))
            over += sum(r > limit for r in bad.values())
            cells = " | ".join(f"{r:.3f}" for r in rate.values())
            mark = f"{bad[most]:.3f}{' !' if bad[most] > limit else ''}"
            print(f"| {kind} | {how} | {families} | {share} | {cells} | {mark} |", flush=True)
    print(f"worst {worst[0]:.3f} ({worst[1]}); {over} words above the limit")


if __name__ == "__main__":
    main()

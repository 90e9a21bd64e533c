"""Planned against simulated power: whole studies are drawn, item scores and all, and decided by `compare_tables`.

    python bench/theory/plans.py [--reps 600] [--only WORD] [--part K/N] [--pilots]

Each design is drawn from a model whose variances are known (a large sample of items), planned from these variances, and
simulated. Two chances are checked: that the 95 % interval lies beyond 0 at a true gap, and that the 90 % interval lies
inside ± a margin at a true gap of 0. Gap and margin are those that the plan gives a chance of `aim`.

Axes: N items, S runs, G families.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special
from scipy.optimize import brentq

from veritune.stats import power
from veritune.stats.intervals import Spread, Tango, Widest
from veritune.stats.paired import PairOptions, compare_pair
from veritune.stats.seeds import Combined
from veritune.stats.table import Floats, Ints, Pair, ScoreTable

_TRUTH_ITEMS = 100_000


@dataclass(frozen=True)
class Case:
    """A design and the model that draws it.

    Binary: an item's chance of being right is σ((difficulty + own effect + gain + seed effect)/`temperature`), on both
    sides with their own effects. Graded: the same sum without σ, round .5, in units of the score. `own`, `family`,
    `noise` and `seed` are standard deviations of the lasting item effect, the family effect, the item-by-run noise
    (graded) and the seed effect; `shape` draws graded own effects.
    """

    name: str
    n: int
    seeds: tuple[int, int]
    binary: bool = True
    own: float = 0.5
    family: float = 0.0
    noise: float = 0.1
    seed: float = 0.0
    temperature: float = 0.3
    rate: float = 0.7
    sizes: tuple[int, ...] | None = None
    shape: str = "normal"
    equal: bool = False
    shared: float | None = None
    seed_b: float | None = None
    aim: float = 0.8

    @property
    def family_N(self) -> Ints | None:
        return None if self.sizes is None else np.repeat(np.arange(len(self.sizes)), self.sizes)


_SHAPES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "ties": lambda rng, n: rng.choice([-1.0, 0.0, 1.0], n, p=[0.1, 0.8, 0.1]) / math.sqrt(0.2),
    "skewed": lambda rng, n: rng.exponential(size=n) - 1.0,
    "uniform": lambda rng, n: rng.uniform(-1, 1, n) * math.sqrt(3),
}


def _items(case: Case, rng: np.random.Generator, n: int, family_N: Ints | None) -> tuple[Floats, Floats]:
    """Difficulty and A's lasting advantage of each item, before the gain."""
    base_N = rng.normal(size=n)
    own_N = _SHAPES[case.shape](rng, n) * case.own
    if family_N is not None:
        own_N = own_N + rng.normal(size=int(family_N.max()) + 1)[family_N] * case.family
    return base_N, own_N


def _score(case: Case, rng: np.random.Generator, latent_S_N: Floats) -> Floats:
    if case.binary:
        return (rng.random(latent_S_N.shape) < _chance(case, latent_S_N)).astype(np.float64)
    return np.clip(latent_S_N + rng.normal(size=latent_S_N.shape) * case.noise, 0.0, 1.0)


def _chance(case: Case, latent: Floats) -> Floats:
    return 1 / (1 + np.exp(-latent / case.temperature))


def _center(case: Case) -> float:
    """The latent mean at which the share of right answers is `rate`; .5 for graded scores."""
    return case.rate if not case.binary else math.log(case.rate / (1 - case.rate)) * 0.75


def draw(case: Case, gain: float, rng: np.random.Generator) -> Pair:
    """One study."""
    family_N = case.family_N
    base_N, own_N = _items(case, rng, case.n, family_N)
    spread = 0.1 if not case.binary else 1.0
    shared_S = rng.normal(size=(max(case.seeds), 1)) * math.sqrt(case.shared or 0.0)
    arms = []
    for s, shift_N, sd in (
        (case.seeds[0], own_N + gain, case.seed),
        (case.seeds[1], np.zeros(case.n), case.seed if case.seed_b is None else case.seed_b),
    ):
        rows = max(1, s)
        seed_S = shared_S[:rows] + rng.normal(size=(rows, 1)) * math.sqrt(1 - (case.shared or 0.0))
        arms.append(_score(case, rng, _center(case) + spread * base_N + shift_N + seed_S * (sd if s else 0.0)))
    items = tuple(map(str, range(case.n)))

    def table(name: str, score: Floats, fixed: bool) -> ScoreTable:
        runs = tuple(map(str, range(len(score))))
        return ScoreTable(name, "e", runs, items, score, missing=({},) * len(runs), fixed=fixed)

    tables = (table("a", arms[0], False), table("b", arms[1], case.seeds[1] == 0))
    return Pair(*tables, arms[0], arms[1], family_N, (0.0, 1.0))


@dataclass(frozen=True)
class Truth:
    """The variances of a case at one gain, and its true gap."""

    gap: float
    design: power.Design


def truth(case: Case, gain: float) -> Truth:
    """The model's own variances, by a large sample of items."""
    rng = np.random.default_rng(1)
    copies = 1 if case.sizes is None else math.ceil(_TRUTH_ITEMS / case.n)
    family_N = None
    if case.sizes is not None:
        assert case.family_N is not None
        family_N = (case.family_N + np.arange(copies)[:, None] * len(case.sizes)).ravel()
    n = _TRUTH_ITEMS if family_N is None else len(family_N)
    base_N, own_N = _items(case, rng, n, family_N)
    spread = 0.1 if not case.binary else 1.0
    a_N, b_N = _center(case) + spread * base_N + own_N + gain, _center(case) + spread * base_N
    if case.binary:
        a_N, b_N = _chance(case, a_N), _chance(case, b_N)
        noises = [float((x * (1 - x)).mean()) for x in (a_N, b_N)]
    else:
        noises = [case.noise**2] * 2
    diff_N, fixed = a_N - b_N, case.seeds[1] == 0
    lasting = float(diff_N.var()) + (noises[1] if fixed else 0.0)
    arms = [s for s in case.seeds if s]
    noise = noises[0] if fixed else sum(noises) / 2  # mean of the arms
    design = power.Design(
        items=case.n,
        discordance=min(1.0, lasting + noise * len(arms) + (float(diff_N.mean()) ** 2 if case.binary else 0.0)),
        seeds_a=case.seeds[0],
        seeds_b=case.seeds[1],
        seed_sd=_seed_sd(case, base_N, own_N, gain),
        stable=lasting / (lasting + noise * len(arms)),
        item_variance=lasting + noise * len(arms),
        binary=case.binary,
        family_sizes=case.sizes,
        design_effect=_effect(case, diff_N, family_N, lasting + sum(x / s for x, s in zip(noises, case.seeds) if s)),
        noise_a=0.5 if fixed else noises[0] / sum(noises),
        equal_seed_spread=case.equal,
        shared_seeds=case.shared is not None,
    )
    return Truth(float(diff_N.mean()), design)


def _seed_sd(case: Case, base_N: Floats, own_N: Floats, gain: float) -> float:
    """SD of a run's mean between seeds, pooled over the arms; of half the paired difference where seeds are shared."""
    if max(case.seeds) < 2 or case.seed == 0:
        return 0.0
    sds = (case.seed, case.seed if case.seed_b is None else case.seed_b)
    if not case.binary:
        square = (sds[0] ** 2 + sds[1] ** 2) / 2 if case.seeds[1] else sds[0] ** 2
        return math.sqrt(square * (1 - (case.shared or 0.0)))
    node_Q, weight_Q = np.polynomial.hermite_e.hermegauss(9)
    few = slice(0, 20_000)

    def variance(shift_N: Floats, sd: float) -> float:
        mean_Q = np.array([_chance(case, _center(case) + base_N[few] + shift_N + x * sd).mean() for x in node_Q])
        weight = weight_Q / weight_Q.sum()
        return float(weight @ mean_Q**2 - (weight @ mean_Q) ** 2)

    one = variance(own_N[few] + gain, sds[0])
    both = one if not case.seeds[1] else (one + variance(np.zeros(20_000), sds[1])) / 2
    return math.sqrt(both * (1 - (case.shared or 0.0)))


def _effect(case: Case, diff_N: Floats, family_N: Ints | None, whole: float) -> float:
    if family_N is None or case.sizes is None:
        return 1.0
    rest_N = diff_N - diff_N.mean()
    size_G = np.bincount(family_N).astype(np.float64)
    sum_G = np.bincount(family_N, weights=rest_N)
    pairs = float((sum_G**2).sum() - (rest_N**2).sum()) / float((size_G * (size_G - 1)).sum())
    size = np.array(case.sizes, dtype=np.float64)
    return max(1.0, 1 + (float((size**2).sum() / size.sum()) - 1) * pairs / whole)


@dataclass(frozen=True)
class Line:
    """One check: the planned and the simulated chance."""

    case: Case
    what: str
    distance: float
    planned: float
    simulated: float
    reps: int

    @property
    def holds(self) -> bool:
        """Within .05, and three standard errors of the simulation."""
        error = math.sqrt(max(0.25 / self.reps * 0.2, self.planned * (1 - self.planned) / self.reps))
        return abs(self.planned - self.simulated) <= 0.05 + 2 * error


def _gain_for(case: Case) -> tuple[float, Truth, float]:
    """The gain at which the plan gives the chance aimed at (or the largest), its truth and the planned chance."""

    def planned(gain: float) -> float:
        found = truth(case, gain)
        return power.chance(found.design, found.gap)

    most = 6.0 if case.binary else 0.45
    gain = most
    if planned(most) > case.aim:
        gain = float(brentq(lambda x: planned(x) - case.aim, 0.0, most, xtol=1e-3 * most))
    return gain, truth(case, gain), planned(gain)


def _null_gain(case: Case) -> float:
    """The gain at which the true gap is 0: own effects pull rates towards one half."""
    return float(brentq(lambda gain: truth(case, gain).gap, -2.0, 2.0, xtol=1e-4))


def beyond(spread: Spread, edge: float, side: int, alpha: float) -> bool:
    """Whether the lower (side +1) or upper (−1) end at one-sided `alpha` lies beyond `edge`.

    The same as asking `spread.end`, by the tails of its parts: a bounded mean's end takes ten of its tails.
    """
    if isinstance(spread, Combined):
        room = side * (spread.center - edge)
        if room <= 0 or spread.seeds.distance(0.0, alpha) >= room:
            return False
        low, high = 0.0, room
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if spread.seeds.distance(middle, alpha) < room else (low, middle)
        return beyond(spread.items, spread.center - side * low, side, alpha)
    if isinstance(spread, Widest):
        return all(beyond(part, edge, side, alpha) for part in spread.parts)
    if isinstance(spread, Tango):
        return side * (spread.end(alpha, -side) - edge) > 0
    return spread.tail(edge, side) <= alpha


def _rate(case: Case, gain: float, reps: int, won: Callable[[Spread], bool], seed: int) -> float:
    rng = np.random.default_rng(seed)
    options = PairOptions(
        scale=(0.0, 1.0), equal_seed_spread=case.equal, shared_seeds=case.shared is not None, draws=999
    )
    hits = 0
    for _ in range(reps):
        hits += won(compare_pair(draw(case, gain, rng), options).headline.spread)
    return hits / reps


def check(case: Case, reps: int) -> list[Line]:
    """Both chances of one case."""

    def differs(spread: Spread) -> bool:
        # One binary run a side also needs the mid-p of McNemar's test; elsewhere p is the interval's own.
        agrees = not isinstance(spread, Tango) or spread.p() <= 0.05
        return agrees and (beyond(spread, 0.0, 1, 0.025) or beyond(spread, 0.0, -1, 0.025))

    gain, found, planned = _gain_for(case)
    sim = _rate(case, gain, reps, differs, 7)
    lines = [Line(case, "difference", found.gap, planned, sim, reps)]
    null_gain = _null_gain(case) if case.binary else 0.0
    null = truth(case, null_gain).design
    margin = power.detectable(replace(null, power=case.aim), equivalence=True)
    if margin is not None:

        def same(spread: Spread) -> bool:
            return beyond(spread, -margin, 1, 0.05) and beyond(spread, margin, -1, 0.05)

        planned = power.chance(null, margin, equivalence=True)
        sim = _rate(case, null_gain, reps, same, 8)
        lines.append(Line(case, "equivalence", margin, planned, sim, reps))
    return lines


def _uneven(share: float, others: int, n: int) -> tuple[int, ...]:
    """One family of `share` of n items, the others equal."""
    big = round(share * n)
    rest = [(n - big) // others + (i < (n - big) % others) for i in range(others)]
    return (big, *rest)


def cases() -> list[Case]:
    """The designs: binary and graded, 20 to 4,400 items, 1 to 5 seeds, families even and not."""
    out = [Case(f"binary 1v1 n={n}", n, (1, 1), aim=aim) for n in (20, 57, 100, 200, 400, 800) for aim in (0.8,)]
    out += [Case(f"binary 1v1 rare n={n}", n, (1, 1), own=0.2, temperature=0.05, rate=0.9) for n in (57, 200, 800)]
    out += [
        Case(f"graded 1v1 n={n}", n, (1, 1), False, own=0.15, noise=0.08, rate=0.5) for n in (20, 57, 150, 400, 800)
    ]
    out += [
        Case(f"graded 1v1 {shape} n={n}", n, (1, 1), False, own=0.12, noise=0.03, rate=0.5, shape=shape)
        for shape in ("ties", "skewed", "uniform")
        for n in (57, 200)
    ]
    for s in ((2, 2), (3, 3), (5, 5), (3, 5), (2, 5), (3, 0), (2, 0), (5, 0)):
        name = f"{s[0]}v{s[1] or ' baseline'}"
        out.append(Case(f"binary {name} n=200", 200, s, seed=0.03))
        out.append(Case(f"graded {name} n=150", 150, s, False, own=0.12, noise=0.08, rate=0.5, seed=0.006))
    out += [Case(f"binary 3v3 n={n}", n, (3, 3), seed=0.02) for n in (20, 57, 600)]
    out += [
        Case("binary 3v3 large spread n=400", 400, (3, 3), seed=0.15),
        Case("binary 5v5 large spread n=400", 400, (5, 5), seed=0.15),
        Case("binary 3v3 no spread n=800", 800, (3, 3), seed=0.0),
        Case("binary 3v3 rate .1 n=57", 57, (3, 3), seed=0.02, rate=0.07, temperature=0.1),
        Case("binary 5v5 rate .05 n=100", 100, (5, 5), seed=0.02, rate=0.04, temperature=0.1),
        Case("graded 3v3 n=20", 20, (3, 3), False, own=0.12, noise=0.08, rate=0.5, seed=0.01),
        Case("binary 3v3 equal n=200", 200, (3, 3), seed=0.03, equal=True),
        Case("binary 2v2 equal n=200", 200, (2, 2), seed=0.03, equal=True),
        Case("graded 2v5 equal n=150", 150, (2, 5), False, own=0.12, noise=0.08, rate=0.5, seed=0.006, equal=True),
        Case("graded 3v3 shared n=150", 150, (3, 3), False, own=0.12, noise=0.08, rate=0.5, seed=0.02, shared=0.9),
        Case("graded 5v5 shared n=150", 150, (5, 5), False, own=0.12, noise=0.08, rate=0.5, seed=0.02, shared=0.9),
        Case("binary 4v4 shared n=200", 200, (4, 4), seed=0.1, shared=0.8),
    ]
    graded = {"binary": False, "own": 0.1, "family": 0.06, "noise": 0.08, "rate": 0.5}
    for label, sizes in (
        ("5 equal families of 20", (20,) * 5),
        ("6 equal families of 20", (20,) * 6),
        ("20 equal families of 5", (5,) * 20),
        ("60 equal families of 5", (5,) * 60),
        ("8 families, one of 40 %", _uneven(0.4, 7, 160)),
        ("20 families, one of 40 %", _uneven(0.4, 19, 200)),
        ("6 families, one of 35 %", _uneven(0.35, 5, 120)),
    ):
        out.append(Case(f"graded 1v1 {label}", sum(sizes), (1, 1), sizes=sizes, **graded))  # type: ignore[arg-type]
        out.append(Case(f"binary 1v1 {label}", sum(sizes), (1, 1), own=0.5, family=0.4, sizes=sizes))
    out += [
        Case("graded 3v3 16 families of 3", 48, (3, 3), sizes=(3,) * 16, seed=0.01, **graded),  # type: ignore[arg-type]
        Case("binary 3v3 20 families, one of 40 %", 200, (3, 3), family=0.4, sizes=_uneven(0.4, 19, 200), seed=0.03),
        Case("graded 2v2 20 families of 5", 100, (2, 2), sizes=(5,) * 20, seed=0.01, **graded),  # type: ignore[arg-type]
    ]
    return out


def pilots(reps: int) -> None:
    """How often a plan made from a pilot of 3 against 3 runs leads to a study with its power (within .025).

    600 graded items, distance .05; the pilot's variance of seed means has 4 degrees of freedom.
    """
    rng = np.random.default_rng(0)
    print("| seed SD | seeds needed | planned by the estimate | by the upper end | seeds named by it, 10 to 90 % |")
    print("| --- | --- | --- | --- | --- |")
    for sd in (0.015, 0.022):
        design = power.Design(600, 0.05, 3, 3, seed_sd=sd, stable=0.4, binary=False, item_variance=0.05)
        noise = power.parts(design).noise[0] / design.items
        reached, named = {"estimate": 0, "upper": 0}, []
        for _ in range(reps):
            found = (sd**2 + noise) * rng.chisquare(4) / 4
            for end, factor in (("estimate", 1.0), ("upper", 4 / special.chdtri(4, 0.8))):
                seen = math.sqrt(max(0.0, found * factor - noise))
                s = power.seeds_needed(replace(design, seed_sd=seen), 0.05) or power.MOST_SEEDS + 1
                reached[end] += power.chance(replace(design, seeds_a=s, seeds_b=s), 0.05) >= 0.775
                named += [s] if end == "upper" else []
        low, high = np.quantile(named, [0.1, 0.9])
        shares = f"{reached['estimate'] / reps:.2f} | {reached['upper'] / reps:.2f}"
        print(f"| {sd:g} | {power.seeds_needed(design, 0.05)} | {shares} | {low:.0f} to {high:.0f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and how many designs hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=600)
    parser.add_argument("--only", default="", help="designs whose name holds this word")
    parser.add_argument("--part", default="1/1", help="K/N: every N-th design from the K-th, to run side by side")
    parser.add_argument("--pilots", action="store_true", help="only how far plans from pilots can be trusted")
    chosen = parser.parse_args(arguments)
    if chosen.pilots:
        pilots(chosen.reps)
        return
    print("| design | what | gap or margin | planned | simulated |\n| --- | --- | --- | --- | --- |")
    lines: list[Line] = []
    part, parts = map(int, chosen.part.split("/"))
    for case in [c for c in cases() if chosen.only in c.name][part - 1 :: parts]:
        for line in check(case, chosen.reps):
            lines.append(line)
            mark = "" if line.holds else " **off**"
            numbers = f"{line.distance:.3f} | {line.planned:.3f} | {line.simulated:.3f}{mark}"
            print(f"| {case.name} | {line.what} | {numbers} |", flush=True)
    for what in ("difference", "equivalence"):
        mine = [line for line in lines if line.what == what]
        if mine:
            print(f"\n{what}: {sum(x.holds for x in mine)} of {len(mine)} designs within .05 (and 2 standard errors)")


if __name__ == "__main__":
    main()

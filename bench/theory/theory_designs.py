"""Designs whose true gap is known: how scores are drawn. Arrays only; nothing here knows how they are judged.

Axes: S runs (seeds), N items, G families. A score lies in [0, 1], so a paired difference d lies in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rng = np.random.Generator


@dataclass(frozen=True)
class Draw:
    """One simulated study: scores of A and B on the same items, and what was declared about them.

    `fixed_b` marks B as a deterministic baseline. `declared` is `equal` (equal seed spread) or `shared` (run s of A
    and run s of B share their seed), None where nothing is declared.
    """

    a_S_N: Floats
    b_S_N: Floats
    family_N: Ints | None = None
    zone_N: tuple[str, ...] | None = None
    fixed_b: bool = False
    declared: str | None = None


def split(diff_N: Floats) -> Draw:
    """One run a side whose paired differences are `diff_N`, scores placed symmetrically about 1/2."""
    return Draw(0.5 + diff_N[None] / 2, 0.5 - diff_N[None] / 2)


def within(rng: Rng, sd: float, limit: float, size: int | tuple[int, ...]) -> Floats:
    """Normal draws of mean 0, those beyond ± `limit` drawn again, so that the mean stays 0."""
    x = rng.normal(0.0, sd, size)
    beyond = np.abs(x) > limit
    while beyond.any():
        x[beyond] = rng.normal(0.0, sd, int(beyond.sum()))
        beyond = np.abs(x) > limit
    return x


# ---------------------------------------------------------------- graded scores, one run a side

LOGNORMAL_CUT = 12.0
"""The lognormal is cut here, so that .07 times it fits in the scale; its mean is that of the cut variable."""

SKEW_CUT = 8.0
"""The same for a family's gain, so that no loss falls below 0."""


def _lognormal_mean(cut: float, sigma: float = 1.0) -> float:
    """E[min(exp(σZ), cut)] = exp(σ²/2)·Φ(log(cut)/σ - σ) + cut·(1 - Φ(log(cut)/σ))."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    edge = math.log(cut) / sigma
    return math.exp(sigma**2 / 2) * phi(edge - sigma) + cut * (1 - phi(edge))


def _masses(rng: Rng, n: int, mean: float) -> Floats:
    """Both scores are 0 or 1 with probability .7, else uniform; six of ten items score alike on both sides."""
    shift = mean / 0.4
    u, v = rng.random((2, n)), rng.random((2, n))
    one = np.array([[0.35 + shift], [0.35]])
    zero = np.array([[0.35 - shift], [0.35]])
    score = np.where(u < zero, 0.0, np.where(u < zero + one, 1.0, v))
    return np.where(rng.random(n) < 0.6, 0.0, score[0] - score[1])


def _ties(rng: Rng, n: int, mean: float) -> Floats:
    return np.where(rng.random(n) < 0.8, 0.0, rng.uniform(-0.5, 0.5, n) + mean / 0.2)


def _ties_skewed(rng: Rng, n: int, mean: float) -> Floats:
    """80 % ties, 16 % small gains, 4 % losses of .8."""
    u = rng.random(n)
    return np.where(u < 0.8, 0.0, np.where(u < 0.96, 0.2 + mean / 0.16, -0.8))


def _tail(share: float, jump: float) -> Callable[[Rng, int, float], Floats]:
    """A share of the items jumps by `jump`, the others make up for it."""
    rest = -jump * share / (1 - share)
    return lambda rng, n, mean: np.where(rng.random(n) < share, jump, rest) + mean


def _lognormal(side: int) -> Callable[[Rng, int, float], Floats]:
    center = _lognormal_mean(LOGNORMAL_CUT)

    def draw(rng: Rng, n: int, mean: float) -> Floats:
        return mean + side * 0.07 * (np.minimum(np.exp(rng.normal(size=n)), LOGNORMAL_CUT) - center)

    return draw


def _flips(rng: Rng, n: int, mean: float) -> Floats:
    """7 % of the items flip between 0 and 1 (more where the mean asks for it), the others score alike."""
    up, down = 0.035 + max(mean, 0.0), 0.035 + max(-mean, 0.0)
    u = rng.random(n)
    return np.where(u < up, 1.0, np.where(u < up + down, -1.0, 0.0))


SHAPES: dict[str, Callable[[Rng, int, float], Floats]] = {
    "normal, sd .25": lambda rng, n, mean: mean + within(rng, 0.25, 0.9, n),
    "normal, sd .05": lambda rng, n, mean: mean + within(rng, 0.05, 0.9, n),
    "point masses at 0 and 1": _masses,
    "80 % ties": _ties,
    "80 % ties, skewed": _ties_skewed,
    "5 % at -.76": _tail(0.05, -0.76),
    "5 % at +.76": _tail(0.05, 0.76),
    "2 % at -.88": _tail(0.02, -0.88),
    "lognormal": _lognormal(1),
    "lognormal, mirrored": _lognormal(-1),
    "7 % flips": _flips,
}
"""Paired differences of a given true mean, by name: (rng, n, mean) to N differences in [-1, 1]."""


def graded(shape: str, n: int, mean: float) -> Callable[[Rng], Draw]:
    """One run a side. The flips stand on graded scores, so that they are not judged as a 2x2 table."""
    make = SHAPES[shape]

    def draw(rng: Rng) -> Draw:
        diff_N = make(rng, n, mean)
        if shape != "7 % flips":
            return split(diff_N)
        same_N = rng.uniform(0.1, 0.9, n)
        a_N = np.where(diff_N == 0, same_N, (diff_N > 0).astype(float))
        return Draw(a_N[None], (a_N - diff_N)[None])

    return draw


def adversarial(n: int, expected: float, noise: float) -> Callable[[Rng], Draw] | None:
    """`expected` of n items lose .92, the rest gain just enough for a true gap of 0. None where that cannot be."""
    share = expected / n
    rest = 0.92 * share / (1 - share)
    if share >= 1 or rest + 4 * noise > 1:
        return None

    def draw(rng: Rng) -> Draw:
        body_N = rest + within(rng, noise, 4 * noise, n) if noise else np.full(n, rest)
        return split(np.where(rng.random(n) < share, -0.92, body_N))

    return draw


# ---------------------------------------------------------------- families


def family_sizes(kind: str, families: int, mean_size: int = 8) -> Ints:
    """Items of each family, largest first. The total is about families x mean_size; every family has at least one."""
    n, g = families * mean_size, families
    large = {"one of 40 %": [0.4], "one of 60 %": [0.6], "one of 80 %": [0.8], "one of 90 %": [0.9]}
    large["two of 35 %"] = [0.35, 0.35]
    if kind == "equal":
        share_G = np.full(g, 1 / g)
    elif kind == "up to 1.5 times":
        share_G = np.linspace(1.5, 0.5, g) / g
    elif kind == "Zipf":
        share_G = 1 / np.arange(1, g + 1)
        share_G = share_G / share_G.sum()
    else:
        head = large[kind]
        share_G = np.concatenate([head, np.full(g - len(head), (1 - sum(head)) / (g - len(head)))])
    return np.maximum(1, np.floor(share_G * n + 0.5)).astype(np.int64)


SIZES = ("equal", "up to 1.5 times", "one of 40 %", "one of 60 %", "one of 80 %", "one of 90 %", "two of 35 %", "Zipf")
EFFECTS = {"weak": (0.05, 0.2), "strong": (0.25, 0.1)}
"""Standard deviation of family effects, and of items in a family."""


def _expected(rng: Rng, family_N: Ints, effect: str, mean: float) -> Floats:
    """Each item's own true difference: mean + family effect + item effect, all symmetric, within ± .9."""
    family_sd, item_sd = EFFECTS[effect]
    effect_G = within(rng, family_sd, 0.45, int(family_N.max()) + 1)
    return mean + effect_G[family_N] + within(rng, item_sd, 0.35, len(family_N))


def families(
    sizes: str, count: int, effect: str, mean: float, *, binary: bool, runs: tuple[int, int] = (1, 1)
) -> Callable[[Rng], Draw]:
    """Families that react differently. Binary scores are drawn from each item's own rates, seven in ten from a draw
    that both sides share; with several runs each run has its own shift (sd .02) and, graded, its own noise (sd .1)."""
    family_N = np.repeat(np.arange(count), family_sizes(sizes, count))
    many = max(runs) > 1

    def draw(rng: Rng) -> Draw:
        true_N = _expected(rng, family_N, effect, mean)
        common_N = rng.random(len(family_N))
        sides = []
        for sign, s in zip((1, -1), runs):
            score = np.tile(0.5 + sign * true_N / 2, (s, 1))
            if many:
                score = score + within(rng, 0.02, 0.04, (s, 1))
            if binary:
                own = rng.random(score.shape)
                score = (np.where(rng.random(score.shape) < 0.7, common_N, own) < score).astype(np.float64)
            elif many:
                score = np.clip(score + within(rng, 0.1, 0.3, score.shape), 0.0, 1.0)
            sides.append(score)
        return Draw(sides[0], sides[1], family_N)

    return draw


def tailed_families(shape: str, count: int, mean: float, size: int = 8) -> Callable[[Rng], Draw]:
    """Equal families of weak effect whose items have a shape of `SHAPES`: the tail is the items', not the families'."""
    family_N = np.repeat(np.arange(count), size)

    def draw(rng: Rng) -> Draw:
        effect_G = within(rng, 0.02, 0.04, count)
        part = split(SHAPES[shape](rng, len(family_N), mean) + effect_G[family_N])
        return Draw(part.a_S_N, part.b_S_N, family_N)

    return draw


def split_families(sizes: str, count: int, mean: float, *, binary: bool) -> Callable[[Rng], Draw]:
    """Every family goes one way or the other, by chance: effects of + .3 or - .3 (binary: .9 of its items turn)."""
    family_N = np.repeat(np.arange(count), family_sizes(sizes, count))

    def draw(rng: Rng) -> Draw:
        way_N = np.where(rng.random(count) < 0.5, 1.0, -1.0)[family_N]
        n = len(family_N)
        if binary:
            diff_N = np.where(rng.random(n) < 0.9, way_N, 0.0)
            a_N = np.where(diff_N == 0, (rng.random(n) < 0.5).astype(float), (diff_N > 0).astype(float))
            return Draw(a_N[None], (a_N - diff_N)[None], family_N)
        part = split(mean + 0.3 * way_N + within(rng, 0.05, 0.15, n))
        return Draw(part.a_S_N, part.b_S_N, family_N)

    return draw


def rare_family(count: int, size: int = 8) -> Callable[[Rng], Draw]:
    """One family in ten loses .45, the others gain .05: the true gap is 0. No rule that sees only families drawn
    can hold here; the documentation says so."""
    family_N = np.repeat(np.arange(count), size)

    def draw(rng: Rng) -> Draw:
        effect_G = np.where(rng.random(count) < 0.1, -0.45, 0.05)
        part = split(effect_G[family_N] + within(rng, 0.03, 0.09, len(family_N)))
        return Draw(part.a_S_N, part.b_S_N, family_N)

    return draw


# ---------------------------------------------------------------- several seeds


@dataclass(frozen=True)
class Arms:
    """Runs of each side (0 for B: a fixed baseline), standard deviation of a run's shift on each side."""

    runs_a: int
    runs_b: int
    spread_a: float
    spread_b: float
    declared: str | None = None
    shared: float = 0.0
    """Standard deviation of a shift that run s of A and run s of B have in common."""


def seeded(arms: Arms, n: int, shape: str = "normal, sd .25", noise: float = 0.1) -> Callable[[Rng], Draw]:
    """Graded scores, true gap 0: items differ as `shape` says, runs shift by their own amount. The few scores beyond
    [0, 1] are cut to it, on both sides alike."""

    def draw(rng: Rng) -> Draw:
        diff_N = SHAPES[shape](rng, n, 0.0)
        common_S = rng.normal(0, arms.shared, max(arms.runs_a, arms.runs_b, 1)) if arms.shared else None
        a = _seeded_side(rng, 0.5 + diff_N / 2, arms.runs_a, arms.spread_a, noise, common_S)
        b = _seeded_side(rng, 0.5 - diff_N / 2, arms.runs_b, arms.spread_b, noise, common_S)
        return Draw(a, b, fixed_b=not arms.runs_b, declared=arms.declared)

    return draw


def _seeded_side(rng: Rng, mean_N: Floats, runs: int, spread: float, noise: float, common_S: Floats | None) -> Floats:
    if not runs:
        return mean_N[None].copy()
    shift_S = rng.normal(0, spread, runs) + (0.0 if common_S is None else common_S[:runs])
    return np.clip(mean_N + shift_S[:, None] + within(rng, noise, 2 * noise, (runs, len(mean_N))), 0.0, 1.0)


def seeded_binary(arms: Arms, n: int) -> Callable[[Rng], Draw]:
    """Right or wrong from a latent normal: item difficulty, arm x item, run shift, run x item; true gap 0 where both
    arms spread alike or `spread` is small. A fixed baseline is one run without shift."""
    density = math.exp(-0.5 * 1.2**2) / math.sqrt(2 * math.pi)

    def side(rng: Rng, item_N: Floats, runs: int, spread: float) -> Floats:
        noise = rng.normal(size=(max(1, runs), n))
        shift = rng.normal(0, spread / density, (max(1, runs), 1)) if runs else 0.0
        latent = math.sqrt(0.9) * item_N + math.sqrt(0.06) * rng.normal(size=n) + 0.2 * noise + shift
        return (latent > -1.2).astype(np.float64)

    def draw(rng: Rng) -> Draw:
        item_N = rng.normal(size=n)
        a = side(rng, item_N, arms.runs_a, arms.spread_a)
        b = side(rng, item_N, arms.runs_b, arms.spread_b)
        return Draw(a, b, fixed_b=not arms.runs_b, declared=arms.declared)

    return draw


def extreme_rates(n: int, runs: int, rate: float, margin: float, *, by_item: bool) -> Callable[[Rng], Draw]:
    """Few items, several runs, B right at `rate`, A further inwards by `margin` (true gap -margin for a rate near 1).

    `by_item`: A loses whole items (in every run) with probability `margin`; else every score is drawn by itself.
    """
    sign = -1.0 if rate > 0.5 else 1.0

    def draw(rng: Rng) -> Draw:
        b = (rng.random((runs, n)) < rate).astype(np.float64)
        if not by_item:
            return Draw((rng.random((runs, n)) < rate + sign * margin).astype(np.float64), b)
        a = (rng.random((runs, n)) < rate).astype(np.float64)
        # An item that turns goes from `rate` to 1 - rate in every run: the gap per turned item is |1 - 2·rate|.
        turned_N = rng.random(n) < margin / abs(1 - 2 * rate)
        a[:, turned_N] = (rng.random((runs, int(turned_N.sum()))) < 1 - rate).astype(np.float64)
        return Draw(a, b)

    return draw


# ---------------------------------------------------------------- generalisation


@dataclass(frozen=True)
class Zones:
    """A gain on `seen` rows of which a true `share` carries to `stranger` rows. `skew` is the sigma of a lognormal
    factor on each family's gain (0: normal family effects). `span`: families have rows in both zones."""

    sizes: str
    count: int
    share: float
    effect: str = "weak"
    skew: float = 0.0
    span: bool = False
    gain: float = 0.25


def _zone_gains(rng: Rng, z: Zones) -> tuple[Floats, Ints, Ints]:
    """Gains of N rows, their zone (0 stranger, 1 seen) and their family."""
    sizes_G = family_sizes(z.sizes, z.count)
    family_N = np.tile(np.repeat(np.arange(z.count), sizes_G), 2)
    zone_N = np.repeat([0, 1], int(sizes_G.sum()))
    if not z.span:
        family_N = family_N + z.count * zone_N
    family_sd, item_sd = EFFECTS[z.effect]
    count = int(family_N.max()) + 1
    if z.skew:
        factor_G = np.minimum(np.exp(z.skew * rng.normal(size=count)), SKEW_CUT) / _lognormal_mean(SKEW_CUT, z.skew)
        mean_N = np.where(zone_N == 0, z.share, 1.0) * z.gain * factor_G[family_N]
    else:
        mean_N = np.where(zone_N == 0, z.share, 1.0) * z.gain + within(rng, family_sd, 0.3, count)[family_N]
    return mean_N + within(rng, item_sd, 0.35, len(zone_N)), zone_N, family_N


def zone_scores(z: Zones, runs: tuple[int, int] = (1, 1)) -> Callable[[Rng], Draw]:
    """Graded scores of two zones for a claim of kind `generalises`. Not for skewed gains, which leave the scale."""

    def draw(rng: Rng) -> Draw:
        gain_N, zone_N, family_N = _zone_gains(rng, z)
        sides = []
        for sign, s in zip((1, -1), runs):
            score = np.tile(0.5 + sign * gain_N / 2, (s, 1))
            if max(runs) > 1:
                score = score + within(rng, 0.01, 0.02, (s, 1)) + within(rng, 0.03, 0.03, score.shape)
            sides.append(score)
        return Draw(sides[0], sides[1], family_N, tuple("seen" if x else "stranger" for x in zone_N))

    return draw


def zone_losses(z: Zones) -> Callable[[Rng], tuple[Floats, Floats, list[str], list[str]]]:
    """Losses before and after, zones and families for `three_zone_gap`; the base loss does not drive the gain."""

    def draw(rng: Rng) -> tuple[Floats, Floats, list[str], list[str]]:
        gain_N, zone_N, family_N = _zone_gains(rng, z)
        before_N = 2.5 + within(rng, 0.3, 0.5, len(gain_N))
        zones = ["seen" if x else "stranger" for x in zone_N]
        return before_N, before_N - gain_N, zones, [f"f{x}" for x in family_N]

    return draw


# ---------------------------------------------------------------- three arms


@dataclass(frozen=True)
class Price:
    """An arm C that gives up `given_up` of the gain of a reference R over a fixed baseline B, and what it keeps on
    another eval: C − B there has mean `kept`. `item` is the shape of C's own errors, `sizes` the families' (or none).
    """

    n: int
    runs: int
    given_up: float = 0.2
    gain: float = 0.3
    kept: float = 0.0
    item: str = "normal"
    sizes: str = ""
    count: int = 0


@dataclass(frozen=True)
class Three:
    """Scores of C and R (S runs) and B (one) on the items, of C and B on the items of the kept eval."""

    c_S_N: Floats
    r_S_N: Floats
    b_S_N: Floats
    kept_c_S_N: Floats
    kept_b_S_N: Floats
    family_N: Ints | None


def three_arms(p: Price) -> Callable[[Rng], Three]:
    """Gains vary by item and family, for C and R apart, so that the contrast has an error of its own."""
    sizes_G = family_sizes(p.sizes, p.count) if p.sizes else np.ones(p.n, dtype=np.int64)
    family_N = np.repeat(np.arange(len(sizes_G)), sizes_G)
    n = len(family_N)
    shift, noise = (0.02, 0.02) if p.runs > 1 else (0.0, 0.0)

    def gain(rng: Rng, mean: float) -> Floats:
        family = within(rng, 0.08, 0.1, len(sizes_G)) if p.sizes else np.zeros(len(sizes_G))
        return mean + family[family_N] + within(rng, 0.04, 0.05, n)

    def runs(rng: Rng, mean_N: Floats) -> Floats:
        moved = mean_N + (within(rng, shift, 0.05, (p.runs, 1)) if shift else 0.0)
        return np.clip(moved + (within(rng, noise, 0.04, (p.runs, n)) if noise else np.zeros((p.runs, n))), 0.0, 1.0)

    def draw(rng: Rng) -> Three:
        b_N = 0.4 + within(rng, 0.02, 0.04, n)
        rare_N = rng.random(n) < 0.05
        error_N = np.where(rare_N, -0.38, 0.02) if p.item == "5 % at -.38" else within(rng, 0.05, 0.12, n)
        c_N = b_N + gain(rng, (1 - p.given_up) * p.gain) + error_N
        kept_N = within(rng, 0.05, 0.12, n) + p.kept
        old_N = np.full(n, 0.6)
        return Three(runs(rng, c_N), runs(rng, b_N + gain(rng, p.gain)), b_N[None], runs(rng, old_N + kept_N),
                     old_N[None], family_N if p.sizes else None)  # fmt: skip

    return draw

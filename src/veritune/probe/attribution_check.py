"""What leaving families out was worth when tried: runs without the top, similar and random ones beside whole runs.

The effect of a set is the rise of the items' loss without it, the same seed with and without. Items are taken at random
(clustered by family), seeds too: what items need is joined by what seeds add (`stats.seeds`, arms that share seeds).

Axes: S seeds, Q items, K sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from veritune.probe.attribution import LeftOut, Verified, spearman
from veritune.probe.clusters import Floats, Ints
from veritune.records import Estimate
from veritune.stats import seeds as crossed_seeds
from veritune.stats.intervals import Spread, Student
from veritune.stats.table import ScoreTable, pair

TOP, SIMILAR, RANDOM = "top", "similar", "random"
SETS = (TOP, SIMILAR, RANDOM)
LEAST_SETS = 4
"""Distinct sets below which a rank correlation of predicted and real effect is not given."""
LEVEL = 0.95


@dataclass(frozen=True, eq=False)
class Tried:
    """Losses [S, Q] of all items after training without each set, and of unchanged runs; families left out, by set and
    seed (indices in F); `chosen` are the indices of the chosen items, `family_of` each item's family.
    """

    seeds: tuple[int, ...]
    whole_S_Q: Floats
    without: Mapping[str, Floats]
    left_out: Mapping[str, tuple[tuple[int, ...], ...]]
    chosen: tuple[int, ...]
    item_ids: tuple[str, ...]
    family_of: tuple[str, ...]


def choose_sets(
    gradient_F: Floats, text_F: Floats, most: int, seeds: Sequence[int]
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The families that each set leaves out, by seed: the same top and similar ones for all seeds, different random
    ones for each.

    Random ones are drawn from all families but the top, so that they may hold similar ones.
    """
    top = tuple(int(f) for f in np.argsort(-gradient_F, kind="stable")[:most])
    similar = tuple(int(f) for f in np.argsort(-text_F, kind="stable")[:most])
    others = [f for f in range(len(gradient_F)) if f not in top]
    drawn = [np.random.default_rng([seed, 77]).choice(others, min(most, len(others)), replace=False) for seed in seeds]
    random = tuple(tuple(sorted(int(f) for f in places)) for places in drawn)
    return {TOP: (top,) * len(seeds), SIMILAR: (similar,) * len(seeds), RANDOM: random}


def verify(tried: Tried, score_Q_F: Floats, text_Q_F: Floats, names: Sequence[str], size_F: Ints) -> Verified:
    """The effects of the sets on the chosen items, of the top compared with the others, and predicted beside measured
    effects.
    """
    effects = {name: loss_S_Q - tried.whole_S_Q for name, loss_S_Q in tried.without.items()}
    sets = tuple(
        LeftOut(
            name=name,
            families={str(s): tuple(names[f] for f in left) for s, left in zip(tried.seeds, tried.left_out[name])},
            rows={str(s): int(size_F[list(left)].sum()) for s, left in zip(tried.seeds, tried.left_out[name])},
            effect=_mean(f"loss without the {name} families − with", effect, tried),
        )
        for name, effect in effects.items()
    )
    contrasts = tuple(
        _mean(f"effect of the {TOP} − of the {other} families", effects[TOP] - effects[other], tried)
        for other in (SIMILAR, RANDOM)
    )
    real_K_Q, distinct = _by_distinct_set(tried, effects)
    enough = len(distinct) >= LEAST_SETS
    found = _against_real(score_Q_F, real_K_Q, distinct, tried.chosen) if enough else None
    text = _against_real(text_Q_F, real_K_Q, distinct, tried.chosen) if enough else None
    return Verified(
        seeds=tried.seeds,
        sets=sets,
        contrasts=contrasts,
        rank_correlation=None if found is None else found[0],
        rotated_max=None if found is None else found[1],
        text_correlation=None if text is None else text[0],
        sets_compared=len(distinct),
    )


def _mean(name: str, value_S_Q: Floats, tried: Tried) -> Estimate:
    """Mean over the chosen items and the seeds, with an interval over new items and seeds."""
    value_S_Q = value_S_Q[:, list(tried.chosen)]
    seeds, n = value_S_Q.shape
    runs, ids = tuple(map(str, tried.seeds)), tuple(tried.item_ids[q] for q in tried.chosen)
    family = tuple(tried.family_of[q] for q in tried.chosen)
    side = ScoreTable("with", "loss", runs, ids, value_S_Q, family, seeds=runs, missing=({},) * seeds)
    zero = ScoreTable("zero", "loss", runs, ids, np.zeros_like(value_S_Q), family, seeds=runs, missing=({},) * seeds)
    parts = crossed_seeds.crossed(pair(side, zero), shared=True)
    one = np.ones(1)
    variance, df = parts.item_variance(one)
    center = float(parts.gap_K[0])
    spread: Spread = Student(center, math.sqrt(variance), df)
    added = crossed_seeds.seed_spread(parts, one)
    if added is not None:
        spread = crossed_seeds.Combined(center, spread, added)
    low, high = spread.interval(LEVEL) if n > 1 and seeds > 1 and variance > 0 else (-math.inf, math.inf)
    known = math.isfinite(low) and math.isfinite(high)
    return Estimate(
        name=name,
        value=center,
        low=low if known else None,
        high=high if known else None,
        level=LEVEL,
        n=n,
        method="mean over items and seeds, paired by seed; t over items joined by t over seeds",
        scope="nats per token, new items and new seeds",
        n_clusters=len(set(family)),
        n_seeds=seeds,
        warnings=() if known else ("one item or one seed gives no interval",),
    )


def _by_distinct_set(tried: Tried, effects: Mapping[str, Floats]) -> tuple[Floats, list[tuple[int, ...]]]:
    """Real effects [K, Q] of each distinct set of families, a mean over the seeds that left it out; and the sets."""
    by_set: dict[tuple[int, ...], list[Floats]] = {}
    for name, effect_S_Q in effects.items():
        for left, effect_Q in zip(tried.left_out[name], effect_S_Q):
            by_set.setdefault(tuple(sorted(left)), []).append(effect_Q)
    return np.array([np.mean(rows, axis=0) for rows in by_set.values()]), list(by_set)


def _against_real(
    score_Q_F: Floats, real_K_Q: Floats, sets: Sequence[tuple[int, ...]], chosen: Sequence[int]
) -> tuple[float, float] | None:
    """Mean rank correlation over the chosen items of predicted and real effect, centred over items, and the largest
    with every item given another's predictions; None where nothing varies."""
    predicted_K_Q = np.array([score_Q_F[:, list(left)].sum(axis=1) for left in sets])
    real_K_Q = real_K_Q - real_K_Q.mean(axis=1, keepdims=True)
    found = [_mean_spearman(np.roll(predicted_K_Q, k, axis=1), real_K_Q, chosen) for k in range(len(score_Q_F))]
    if found[0] is None:
        return None
    return found[0], max((x for x in found[1:] if x is not None), default=0.0)


def _mean_spearman(predicted_K_Q: Floats, real_K_Q: Floats, chosen: Sequence[int]) -> float | None:
    values = [spearman(predicted_K_Q[:, q], real_K_Q[:, q]) for q in chosen]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None

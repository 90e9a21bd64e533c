"""Which families of training rows moved these outputs? A ranking by predicted effect, from per-example gradients.

EXPERIMENTAL: judged by retraining on one small model (docs/attribution.md). A ranking predicts; leaving rows out and
training again (`veritune probe attribution --verify`) is what shows an effect.

For an item q and a training row i at checkpoint t, cos(g_q, g_i) of the gradients through what trains says how
far one step on the row moves the item's loss, up to the lengths of both (Pruthi et al. 2020, TracIn, arXiv 2002.08484).
It is summed over checkpoints and over the rows of a family, since leaving out one of several siblings changes little,
and centred over items: some families help every item, and uncentred the null itself ranks well.

A list is about a contrast: the chosen items against the other items of the same eval. Its test asks how high the top
family stands, in standard deviations of its own scores over items, against

    rotated     a random contrast of the same items: every item gets a random mixture of the items' gradients
    exchanged   as many items drawn at random instead of the chosen ones (several chosen items only)

and takes the larger p. A list that does not exceed the null is withheld: its families are then noise that has been
sorted. The same by words alone (TF-IDF cosine) stands beside it.

Axes: Q items, N rows, F families, R draws.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import rankdata

from veritune.errors import DataError
from veritune.probe.clusters import Floats, Ints
from veritune.probe.effective import unit
from veritune.probe.gradients import Products
from veritune.records import FORMAT_VERSION, Estimate, Json
from veritune.stats.multiplicity import benjamini_hochberg

LEAST_ITEMS = 8
"""Centring over fewer items leaves a contrast little but noise (the prototype had 24)."""
LEAST_FAMILIES = 6
"""A rank among fewer families says little: with 6, noise puts the right one first once in six."""
LEAST_CHECKPOINTS = 2
"""One checkpoint ranked worse than a sum over several (rank correlation .37 to .49 against .57)."""
DRAWS = 9_999
ALPHA = 0.05
EXPERIMENTAL = (
    "experimental: the method was compared with retraining on one model of 135M parameters; read a list as a hint of "
    "what to leave out and try"
)
MAY_NOT = (
    "“these rows caused the output”: a gradient predicts; only training without them shows an effect (--verify).",
    "“removing the top families works better than removing similar texts”: on SmolLM2-135M it was not shown to.",
    "“row X is to blame”: families are ranked; siblings stand in for each other.",
    "“nothing else in the data matters”: the list is relative to the other items of the same eval.",
)


@dataclass(frozen=True)
class RankedFamily:
    """A ranked family. `predicted`: its centred score (a larger score moves the chosen items more); `text_rank` is its
    rank among all families by words alone, from 1; `row` is one of its rows.
    """

    family: str
    rows: int
    predicted: float
    text_rank: int
    row: str


@dataclass(frozen=True)
class Ranking:
    """The ranked list of one contrast. `families` is empty if the list is withheld; `why` gives the reason.

    `p` is the larger of the two nulls' p, Benjamini-Hochberg over the lists of the record in `p_corrected`. `p_text` is
    the same test of the list by words. `text_correlation`: Spearman's, of both lists over all families.
    """

    items: tuple[str, ...]
    p: float
    p_corrected: float
    p_text: float
    text_correlation: float
    shown: bool
    why: str
    families: tuple[RankedFamily, ...]


@dataclass(frozen=True)
class LeftOut:
    """The effect of leaving families out of training: the rise of the chosen items' loss, in nats per token, over seeds
    and items.
    """

    name: str
    families: Mapping[str, tuple[str, ...]]
    rows: Mapping[str, int]
    effect: Estimate


@dataclass(frozen=True)
class Verified:
    """Results of retraining without the top, similar and random families. `families` and `rows` of each set are by
    seed.

    `rank_correlation` is Spearman's, of predicted and real effect over the sets tried, centred over items, a mean over
    the chosen items; `rotated_max` is the largest of it when every item gets another item's predictions.
    """

    seeds: tuple[int, ...]
    sets: tuple[LeftOut, ...]
    contrasts: tuple[Estimate, ...]
    rank_correlation: float | None
    rotated_max: float | None
    text_correlation: float | None
    sets_compared: int
    losses: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Attribution:
    """The record of `veritune probe attribution`."""

    run: str
    eval: str
    checkpoints: tuple[str, ...]
    n_items: int
    n_rows: int
    n_families: int
    gradients: Json
    rankings: tuple[Ranking, ...]
    cost: Json
    reading: str
    limits: str
    would_change: str
    verified: Verified | None = None
    may_not: tuple[str, ...] = MAY_NOT
    experimental: str = EXPERIMENTAL
    kind: str = "attribution"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, eq=False)
class RowFamilies:
    """The families of the training rows, in the order of their first row."""

    names: tuple[str, ...]
    of_row_N: Ints
    row_ids: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, family_of_row: Sequence[str], row_ids: Sequence[str]) -> RowFamilies:
        """The families from each row's family and id. Raises DataError for too few families."""
        names = tuple(dict.fromkeys(family_of_row))
        if len(names) < LEAST_FAMILIES:
            raise DataError(
                f"expected at least {LEAST_FAMILIES} training families to rank, found {len(names)}.",
                fix="Set data.family_field, or attribute a run that was trained on more families.",
            )
        place = {name: i for i, name in enumerate(names)}
        return cls(names, np.array([place[f] for f in family_of_row]), tuple(row_ids))

    @property
    def size_F(self) -> Ints:
        """Rows of each family."""
        return np.bincount(self.of_row_N, minlength=len(self.names))

    def summed(self, score_Q_N: Floats) -> Floats:
        """Scores of rows summed by family and centred over items [Q, F]."""
        member_N_F = np.equal.outer(self.of_row_N, np.arange(len(self.names))).astype(np.float64)
        total_Q_F = score_Q_N @ member_N_F
        centred: Floats = total_Q_F - total_Q_F.mean(axis=0)
        return centred


def gradient_scores(measured: Sequence[Products], n_rows: int, families: RowFamilies) -> Floats:
    """The predicted effect of each family on each item, centred over items [Q, F].

    Each of `measured` holds the rows first and the items behind them, at one checkpoint. Raises DataError for too few
    checkpoints or items.
    """
    if len(measured) < LEAST_CHECKPOINTS:
        raise DataError(
            f"expected gradients at {LEAST_CHECKPOINTS} checkpoints or more, found {len(measured)}.",
            fix="Train with `keep: all`; with `keep: best` the starting weights are the second checkpoint.",
        )
    n_items = len(measured[0].loss_N) - n_rows
    check_items(n_items)
    cosine_Q_N: Floats = np.sum([unit(m.gram_N_N)[n_rows:, :n_rows] for m in measured], axis=0)
    return families.summed(cosine_Q_N)


def check_items(n_items: int) -> None:
    """Raises DataError for too few items."""
    if n_items < LEAST_ITEMS:
        raise DataError(
            f"expected at least {LEAST_ITEMS} items to center over, including the chosen ones; found {n_items}.",
            fix="Name an eval with more scored items.",
        )


def text_scores(items: Sequence[str], rows: Sequence[str], families: RowFamilies) -> Floats:
    """The same as `gradient_scores` by words alone: TF-IDF cosines of items and rows, summed by family and centred over
    items [Q, F].
    """
    vectors = _tf_idf([*rows, *items])
    cosine_Q_N = vectors[len(rows) :] @ vectors[: len(rows)].T
    return families.summed(cosine_Q_N)


def _tf_idf(texts: Sequence[str]) -> Floats:
    """Unit vectors, (1 + log count)·(log((1 + n)/(1 + documents)) + 1) (Salton & Buckley 1988)."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    seen = Counter(word for count in counts for word in count)
    place = {word: i for i, word in enumerate(seen)}
    vectors = np.zeros((len(texts), max(1, len(place))))
    for row, count in zip(vectors, counts):
        for word, n in count.items():
            row[place[word]] = (1 + math.log(n)) * (math.log((1 + len(texts)) / (1 + seen[word])) + 1)
    made: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return made


# ---------------------------------------------------------------- a list and its null


def contrast_of(chosen: Sequence[int], n_items: int) -> Floats:
    """The contrast of the chosen items with all: weights over items that sum to 0 and have length 1 [Q]."""
    weight_Q = np.full(n_items, -1.0 / n_items)
    weight_Q[list(chosen)] += 1.0 / len(chosen)
    made: Floats = weight_Q / np.linalg.norm(weight_Q)
    return made


def null_p(score_Q_F: Floats, chosen: Sequence[int], *, draws: int = DRAWS, seed: int = 0) -> float:
    """How often a random contrast of the same items ranks some family as high: (1 + count)/(draws + 1).

    The larger p of the rotated null and, for several chosen items, of the exchanged one.
    """
    n_items = len(score_Q_F)
    spread_F = score_Q_F.std(axis=0)
    standard_Q_F = score_Q_F / np.where(spread_F > 1e-12 * max(1.0, float(spread_F.max())), spread_F, np.inf)
    top = float((contrast_of(chosen, n_items) @ standard_Q_F).max())
    rng = np.random.default_rng(seed)
    random_R_Q = rng.normal(size=(draws, n_items))
    random_R_Q -= random_R_Q.mean(axis=1, keepdims=True)
    random_R_Q /= np.linalg.norm(random_R_Q, axis=1, keepdims=True)
    found = [_tail(random_R_Q, standard_Q_F, top)]
    if len(chosen) > 1:
        order_R_Q = rng.permuted(np.tile(contrast_of(chosen, n_items), (draws, 1)), axis=1)
        found.append(_tail(order_R_Q, standard_Q_F, top))
    return max(found)


BLOCK = 500
"""Draws whose scores are held at once: 16 MB for 4,000 families."""


def _tail(weight_R_Q: Floats, standard_Q_F: Floats, top: float) -> float:
    blocks = (weight_R_Q[i : i + BLOCK] @ standard_Q_F for i in range(0, len(weight_R_Q), BLOCK))
    count = sum(int((block.max(axis=1) >= top - 1e-12).sum()) for block in blocks)
    return (1 + count) / (len(weight_R_Q) + 1)


def rankings(
    score_Q_F: Floats,
    text_Q_F: Floats,
    lists: Sequence[Sequence[int]],
    names: Sequence[str],
    families: RowFamilies,
    most: int,
) -> tuple[Ranking, ...]:
    """One list per group of chosen items (indices in Q), each with its `most` highest families; withheld if p is above
    alpha.
    """
    p = [null_p(score_Q_F, chosen, seed=i) for i, chosen in enumerate(lists)]
    corrected = benjamini_hochberg(p)
    made = []
    for i, chosen in enumerate(lists):
        weight_Q = contrast_of(chosen, len(score_Q_F))
        gradient_F, text_F = weight_Q @ score_Q_F, weight_Q @ text_Q_F
        shown = corrected[i] <= ALPHA
        nulls = "random contrasts of the same items" + (", or as many other items," if len(chosen) > 1 else "")
        why = (
            "" if shown else f"withheld: {nulls} rank some family as high with p = {corrected[i]:.2g} (above {ALPHA:g})"
        )
        made.append(
            Ranking(
                items=tuple(names[q] for q in chosen),
                p=p[i],
                p_corrected=corrected[i],
                p_text=null_p(text_Q_F, chosen, seed=i),
                text_correlation=spearman(gradient_F, text_F) or 0.0,
                shown=shown,
                why=why,
                families=_top(gradient_F, text_F, families, most) if shown else (),
            )
        )
    return tuple(made)


def _top(gradient_F: Floats, text_F: Floats, families: RowFamilies, most: int) -> tuple[RankedFamily, ...]:
    by_text = np.argsort(np.argsort(-text_F, kind="stable"), kind="stable")
    made = []
    for f in top_families(gradient_F, most):
        first = int(np.flatnonzero(families.of_row_N == f)[0])
        size = int(families.size_F[f])
        made.append(
            RankedFamily(families.names[f], size, float(gradient_F[f]), int(by_text[f]) + 1, families.row_ids[first])
        )
    return tuple(made)


def top_families(score_F: Floats, most: int) -> list[int]:
    """Indices of the highest scores; ties are in their original order."""
    return [int(f) for f in np.argsort(-score_F, kind="stable")[:most]]


def spearman(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation; None if one side is constant."""
    x, y = rankdata(a) - (len(a) + 1) / 2, rankdata(b) - (len(b) + 1) / 2
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else None

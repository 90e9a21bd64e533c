"""Score tables: one condition's scores on one eval, seeds × items, and the pairing of two of them.

Array axes: S runs (seeds), N items. NaN stands for a missing score inside arrays only; every missing score
keeps its reason, counted per run. Nothing is dropped: unmatched or repeated item ids are errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from veritune.counting import many
from veritune.display import Tabular, short
from veritune.errors import ScoreError
from veritune.records import Score
from veritune.stats import agreement
from veritune.stats.reasons import NO_REASON, is_models

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Columns:
    """Scores as columns of equal length. Optional columns may be empty.

    `value` holds None where there is no score and `reason` then says why. `sample` tells several scores of one item
    apart, `rater` who gave them. `content` is a fingerprint of what the item asks, to catch equal ids on other items.
    `metric` names what the values measure; `higher_is_better` is None where nothing says so. `stratum` names the task
    of each item where several tasks are pooled.
    """

    eval: str
    run: Sequence[str]
    item: Sequence[str]
    value: Sequence[float | None]
    reason: Sequence[str | None] = ()
    family: Sequence[str | None] = ()
    zone: Sequence[str | None] = ()
    sample: Sequence[str] = ()
    rater: Sequence[str] = ()
    content: Sequence[str | None] = ()
    stratum: Sequence[str | None] = ()
    format: str = ""
    notes: tuple[str, ...] = ()
    metric: str = ""
    higher_is_better: bool | None = None


Bounds = Literal["declared", "assumed", ""]
"""Where the range of a score comes from; empty when it is not known."""

GENERIC_METRICS = frozenset({"", "value", "score", "rating"})
"""Names that say nothing of what is measured. Values of 0 and 1 under such a name are taken for correctness."""


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """The samples behind averaged scores: how many each item had, and their spread.

    `count_S_N` counts scored samples, `failed_S_N` those without a value, `lost_S_N` those among them that the machine
    lost; `variance_S_N` is the unbiased variance between the samples of an item, NaN where fewer than two were scored.
    `raters` holds their agreement where the samples came from several raters.
    """

    count_S_N: Ints
    failed_S_N: Ints
    lost_S_N: Ints
    variance_S_N: Floats
    raters: agreement.Agreement | None = None

    @property
    def mean_se(self) -> float | None:
        """Standard error of the item-averaged mean due to sampling alone; None if no item has two samples."""
        if not self.known:
            return None
        pooled = float(np.mean(self.variance_S_N[self.count_S_N > 1]))
        per_item = pooled / np.maximum(1, self.count_S_N)
        return float(np.sqrt(per_item.sum()) / self.count_S_N.size)

    @property
    def known(self) -> bool:
        """True if at least one item has two scored samples."""
        return bool((self.count_S_N > 1).any())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ScoreTable(Tabular):
    """Scores of one condition on one eval. `fixed` marks a deterministic arm without seeds (an untouched baseline).

    `score_S_N` holds the mean of an item's scored samples. `machine_missing_S_N` marks cells in which the machine lost
    a score or a sample. `metric` names what was measured; `higher_is_better` is None where its direction is unknown
    (a study's own evals are higher-is-better by contract). `missing_at` has the run, the item and the reason of every
    score without a value; `missing` counts them by run. `seeds` names each run's seed where it is known; arms that
    share their seeds are paired by it. `stratum_N` names each item's task where several are pooled.

    >>> import numpy as np
    >>> ScoreTable("tuned", "gsm8k", ("seed 0",), ("q1", "q2"), np.array([[1.0, 0.0]])).score_S_N.shape
    (1, 2)
    """

    condition: str
    eval: str
    runs: tuple[str, ...]
    items: tuple[str, ...]
    score_S_N: Floats
    family_N: tuple[str, ...] | None = None
    zone_N: tuple[str | None, ...] | None = None
    missing: tuple[Mapping[str, int], ...] = ()
    fixed: bool = False
    samples: Samples | None = None
    machine_missing_S_N: NDArray[np.bool_] | None = field(default=None, repr=False)
    content_N: tuple[str | None, ...] | None = field(default=None, repr=False)
    seeds: tuple[str, ...] = ()
    metric: str = ""
    higher_is_better: bool | None = True
    stratum_N: tuple[str | None, ...] | None = None
    missing_at: tuple[tuple[int, int, str], ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        missing = sum(sum(found.values()) for found in self.missing)
        facts = {"runs": len(self.runs), "items": len(self.items), "missing": missing}
        return short(self, condition=self.condition, eval=self.eval, **facts)

    def _columns(self) -> dict[str, list[Any]]:
        """One row a run and item, in the order of the runs; `score` is None and `reason` says why where none is."""
        n_runs, n_items = self.score_S_N.shape
        reasons = {(s, n): why for s, n, why in self.missing_at}
        places = [(s, n) for s in range(n_runs) for n in range(n_items)]
        scores = self.score_S_N.ravel().tolist()
        family, zone = self.family_N or (None,) * n_items, self.zone_N or (None,) * n_items
        return {
            "run": [self.runs[s] for s, _ in places],
            "item": [self.items[n] for _, n in places],
            "family": [family[n] for _, n in places],
            "zone": [zone[n] for _, n in places],
            "score": [None if at in reasons or score != score else score for at, score in zip(places, scores)],
            "reason": [reasons.get(at) for at in places],
        }

    @classmethod
    def from_scores(
        cls, scores: Iterable[Score], *, condition: str = "", fixed: bool = False, samples: bool = False
    ) -> ScoreTable:
        """A table from score records of one eval; each `run_id` is one seed.

        `samples=True` allows several scores per run and item: they are averaged and their variance is kept.
        Raises ScoreError for no scores, several evals, repeated or unmatched item ids, and NaN.
        """
        rows = list(scores)
        names = sorted({s.eval for s in rows})
        if len(names) > 1:
            raise ScoreError(
                f"expected the scores of one eval, found {len(names)}: {', '.join(names[:5])}.",
                fix="Build one table per eval.",
            )
        columns = Columns(
            eval=names[0] if names else "",
            run=[s.run_id for s in rows],
            item=[s.item_id for s in rows],
            value=[s.value for s in rows],
            reason=[s.reason for s in rows],
            family=[s.family for s in rows] if any(s.family is not None for s in rows) else (),
            zone=[s.zone for s in rows] if any(s.zone is not None for s in rows) else (),
            sample=_parts(rows, "sample"),
            rater=_parts(rows, "rater"),
            higher_is_better=True,
        )
        return cls.from_columns(columns, condition=condition, fixed=fixed, samples=samples)

    @classmethod
    def from_columns(
        cls, columns: Columns, *, condition: str = "", fixed: bool = False, samples: bool = False
    ) -> ScoreTable:
        """The same as `from_scores`, for columns. Columns that distinguish samples or raters imply `samples`. Raises
        the same errors.
        """
        samples = samples or len(columns.sample) > 0 or len(columns.rater) > 0
        name = condition or columns.eval or "scores"
        if not len(columns.item):
            raise ScoreError(f"{name}: expected at least one score, found none.")
        if fixed and len(set(columns.run)) > 1:
            raise ScoreError(f"{name}: a fixed arm has one run, found {len(set(columns.run))}.")
        runs, run_R = _codes(columns.run)
        items, item_R = _codes(columns.item)
        value_R = _values(columns.value, columns.item, name)
        cell_R = run_R * len(items) + item_R
        shape = (len(runs), len(items))
        count_S_N = np.bincount(cell_R, minlength=shape[0] * shape[1]).reshape(shape)
        _check_cells(count_S_N, runs, items, name, samples=samples)
        _check_samples(columns, cell_R, name)
        lost_S_N = _machine_missing(columns, value_R, cell_R, shape)
        missing_at = _missing_at(columns, value_R, run_R, item_R)
        if count_S_N.max() == 1:
            score_S_N, kept = np.empty(shape[0] * shape[1]), None
            score_S_N[cell_R] = value_R
            score_S_N = score_S_N.reshape(shape)
        else:
            raters = agreement.of_columns(columns.rater, item_R + run_R * len(items), value_R)
            score_S_N, kept = _average(value_R, cell_R, lost_S_N, raters)
        return cls(
            condition=condition,
            eval=columns.eval,
            runs=runs,
            items=items,
            score_S_N=score_S_N,
            family_N=_per_item(columns.family, item_R, items, "family", name),
            zone_N=_per_item(columns.zone, item_R, items, "zone", name),
            missing=_count_reasons(missing_at, len(runs)),
            fixed=fixed,
            samples=kept,
            machine_missing_S_N=lost_S_N > 0 if lost_S_N.any() else None,
            content_N=_per_item(columns.content, item_R, items, "content", name),
            metric=columns.metric,
            higher_is_better=columns.higher_is_better,
            stratum_N=_per_item(columns.stratum, item_R, items, "task", name),
            missing_at=missing_at,
        )

    @property
    def n_missing(self) -> int:
        """Scores without a value, over all runs."""
        return int(np.isnan(self.score_S_N).sum())

    @property
    def is_binary(self) -> bool:
        """True when every present score is 0 or 1."""
        score = self.score_S_N
        return bool(np.all((score == 0) | (score == 1) | np.isnan(score)))

    def in_zone(self, zone: str | None) -> ScoreTable:
        """The items of one zone; of all zones for None. Raises ScoreError if the zone has none."""
        if zone is None:
            return self
        keep = [i for i, z in enumerate(self.zone_N or ()) if z == zone]
        if not keep:
            found = Counter(z or "no zone" for z in self.zone_N) if self.zone_N else "no zones at all"
            text = ", ".join(f"{v} in {k}" for k, v in found.items()) if isinstance(found, Counter) else found
            where = f"{self.condition} on {self.eval}" if self.eval else self.condition
            raise ScoreError(f"{where}: no items in zone {zone!r}; found {text}.")
        return self.take(np.array(keep))

    def take(self, index_N: Ints) -> ScoreTable:
        def part(array: Any) -> Any:
            return None if array is None else array[:, index_N]

        old = self.samples
        kept = old and Samples(
            part(old.count_S_N), part(old.failed_S_N), part(old.lost_S_N), part(old.variance_S_N), raters=old.raters
        )

        def labels(names: tuple[T, ...] | None) -> tuple[T, ...] | None:
            return None if names is None else tuple(names[i] for i in index_N)

        place = {int(i): k for k, i in enumerate(index_N)}
        missing_at = tuple((run, place[item], reason) for run, item, reason in self.missing_at if item in place)
        return replace(
            self,
            items=tuple(self.items[i] for i in index_N),
            score_S_N=self.score_S_N[:, index_N],
            family_N=labels(self.family_N),
            zone_N=labels(self.zone_N),
            content_N=labels(self.content_N),
            stratum_N=labels(self.stratum_N),
            missing=_count_reasons(missing_at, len(self.runs)) if self.missing_at else _recount(self, index_N),
            missing_at=missing_at,
            samples=kept,
            machine_missing_S_N=part(self.machine_missing_S_N),
        )


def _codes(labels: Sequence[str]) -> tuple[tuple[str, ...], Ints]:
    """Labels in order of first appearance, and each entry's index into them."""
    index: dict[str, int] = {}
    code_R = np.fromiter((index.setdefault(x, len(index)) for x in labels), dtype=np.int64, count=len(labels))
    return tuple(index), code_R


def _values(values: Sequence[float | None], items: Sequence[str], name: str) -> Floats:
    """Values as floats, None as NaN. A NaN or infinity that came in as a value is refused."""
    array_R = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    bad = [i for i in np.flatnonzero(~np.isfinite(array_R)) if values[int(i)] is not None]
    if bad:
        raise ScoreError(
            f"{name}: {many(len(bad), 'scores', 'are')} NaN or infinite, first at item {items[int(bad[0])]!r}.",
            fix="Write null with a reason where there is no score.",
        )
    return array_R


def _check_cells(count_S_N: Ints, runs: tuple[str, ...], items: tuple[str, ...], name: str, *, samples: bool) -> None:
    problems = []
    for run, count_N in zip(runs, count_S_N):
        where = f"{name}" if len(runs) == 1 else f"{name}, run {run!r}"
        twice, absent = np.flatnonzero(count_N > 1), np.flatnonzero(count_N == 0)
        if len(twice) and not samples:
            times = "twice" if count_N.max() == 2 else "more than once"
            problems.append(f"{_count(len(twice), 'id')} {times} in {where} ({_some([items[i] for i in twice])})")
        if len(absent):
            problems.append(f"{_count(len(absent), 'item')} missing from {where} ({_some([items[i] for i in absent])})")
    if problems:
        raise ScoreError(
            f"expected every run to score every item once, found {'; '.join(problems[:6])}.",
            fix="If several scores of an item are samples, name the column that distinguishes them (--sample "
            "COLUMN); write null with a reason for items that have no score.",
        )


def _count(n: int, noun: str) -> str:
    return many(n, f"{noun}s")


def _some(ids: Sequence[str], limit: int = 3) -> str:
    """Up to `limit` ids, quoted, and how many more there are."""
    shown = ", ".join(repr(i) for i in ids[:limit])
    return shown + (f" and {len(ids) - limit} more" if len(ids) > limit else "")


def _machine_missing(columns: Columns, value_R: Floats, cell_R: Ints, shape: tuple[int, int]) -> Ints:
    """Per cell, the scores that are missing for a reason that is not the model's own doing."""
    gone_R = np.flatnonzero(np.isnan(value_R))
    lost_R = [r for r in gone_R.tolist() if not is_models(columns.reason[r] if len(columns.reason) else None)]
    return np.bincount(cell_R[lost_R], minlength=shape[0] * shape[1]).reshape(shape)


def _parts(rows: Sequence[Score], key: str) -> Sequence[str]:
    """The named part of each score as text, nothing unless every score has it."""
    return [str(s.parts[key]) for s in rows] if rows and all(key in s.parts for s in rows) else ()


def _check_samples(columns: Columns, cell_R: Ints, name: str) -> None:
    """Raises ScoreError when one sample of one item occurs twice in a run."""
    marks = [c for c in (columns.sample, columns.rater) if len(c)]
    if not marks:
        return
    seen = Counter(zip(cell_R.tolist(), *marks))
    twice = [key for key, times in seen.items() if times > 1]
    if twice:
        raise ScoreError(
            f"{name}: {_count(len(twice), 'sample')} occurring twice, first {twice[0][1:]!r} of item "
            f"{next(i for i, c in zip(columns.item, cell_R.tolist()) if c == twice[0][0])!r}."
        )


def _average(
    value_R: Floats, cell_R: Ints, lost_S_N: Ints, raters: agreement.Agreement | None
) -> tuple[Floats, Samples]:
    """Mean and unbiased variance of the scored samples in each cell; failed samples are counted apart."""
    shape, size = lost_S_N.shape, lost_S_N.size
    ok_R = ~np.isnan(value_R)
    count = np.bincount(cell_R[ok_R], minlength=size)
    total = np.bincount(cell_R[ok_R], weights=value_R[ok_R], minlength=size)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        square = np.bincount(cell_R[ok_R], weights=(value_R[ok_R] - mean[cell_R[ok_R]]) ** 2, minlength=size)
        variance = np.where(count > 1, square / (count - 1), np.nan)
    failed = np.bincount(cell_R[~ok_R], minlength=size)
    kept = Samples(count.reshape(shape), failed.reshape(shape), lost_S_N, variance.reshape(shape), raters)
    return mean.reshape(shape), kept


def _per_item(
    labels: Sequence[str | None], item_R: Ints, items: tuple[str, ...], what: str, name: str
) -> tuple[Any, ...] | None:
    """One label per item, None when there are none. Raises ScoreError when an item carries two."""
    if not len(labels):
        return None
    label_N: list[str | None] = [None] * len(items)
    for code, label in zip(item_R.tolist(), labels):
        if label is None:
            continue
        if label_N[code] is not None and label_N[code] != label:
            raise ScoreError(f"{name}: item {items[code]!r} has two {what} labels: {label_N[code]!r} and {label!r}.")
        label_N[code] = label
    if what == "family":
        absent = [items[i] for i, label in enumerate(label_N) if label is None]
        if absent:
            raise ScoreError(
                f"{name}: {_count(len(absent), 'item')} without a family ({_some(absent)}), the others have one.",
                fix="Give every item a family, or no item.",
            )
    return tuple(label_N)


def _missing_at(columns: Columns, value_R: Floats, run_R: Ints, item_R: Ints) -> tuple[tuple[int, int, str], ...]:
    """Run, item and reason of every score without a value."""
    gone_R = np.flatnonzero(np.isnan(value_R)).tolist()
    reasons = [(columns.reason[r] if len(columns.reason) else None) or NO_REASON for r in gone_R]
    return tuple((int(run_R[r]), int(item_R[r]), reason) for r, reason in zip(gone_R, reasons))


def _count_reasons(missing_at: Sequence[tuple[int, int, str]], n_runs: int) -> tuple[Mapping[str, int], ...]:
    counts: list[Counter[str]] = [Counter() for _ in range(n_runs)]
    for run, _, reason in missing_at:
        counts[run][reason] += 1
    return tuple(dict(sorted(c.items())) for c in counts)


def _recount(table: ScoreTable, index_N: Ints) -> tuple[Mapping[str, int], ...]:
    """Missing counts of a part of a table made by hand, without `missing_at`: reasons that differ fold into one."""
    counts = []
    for run, reasons in enumerate(table.missing):
        gone = int(np.isnan(table.score_S_N[run, index_N]).sum())
        name = next(iter(reasons)) if len(reasons) == 1 else " or ".join(reasons)
        counts.append({name: gone} if gone else {})
    return tuple(counts)


# ---------------------------------------------------------------- two tables on the same items


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Two arms on the same items in the same order, without gaps: first A, then B.

    `family_N` are integer codes, None when there are no families or each item is its own. `scale` is the
    range a score can take; `bounded` tells whether it was declared, assumed to be 0 to 1, or is unknown (then it is the
    range seen). `filled` says what missing scores count as. `higher_is_better` is None where nothing says
    which end of the scale is the good one.
    """

    a: ScoreTable
    b: ScoreTable
    score_a_S_N: Floats
    score_b_S_N: Floats
    family_N: Ints | None
    scale: tuple[float, float]
    filled: float | None = None
    bounded: Bounds = "declared"
    higher_is_better: bool | None = True

    @property
    def n(self) -> int:
        """Number of items."""
        return int(self.score_a_S_N.shape[1])

    @property
    def diff_N(self) -> Floats:
        """Per item, the seed-averaged score of A minus that of B."""
        diff: Floats = self.score_a_S_N.mean(axis=0) - self.score_b_S_N.mean(axis=0)
        return diff

    @property
    def is_binary(self) -> bool:
        """True if all scores of both arms are 0 or 1 and the scale allows no values beyond."""
        return self.scale == (0.0, 1.0) and all(
            bool(np.all((x == 0) | (x == 1))) for x in (self.score_a_S_N, self.score_b_S_N)
        )

    @property
    def n_families(self) -> int | None:
        """The number of families; None if items are not grouped."""
        return None if self.family_N is None else int(self.family_N.max()) + 1


MISSING_POLICIES = ("fail", "error", "worst", "best")


@dataclass(frozen=True, slots=True)
class Missing:
    """The value that replaces a missing score, and how far the answer could move with another value.

    `error` refuses any missing score. `fail` uses `value`, the eval's declared failure value (by default the bad end
    of the scale), the same on both sides. `worst` scores them against A: worst for A, best for B; `best` is its
    mirror. The last two bound what missing scores could hide.
    """

    policy: str = "fail"
    value: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in MISSING_POLICIES:
            raise ScoreError(
                f"expected missing scores to be handled by {', '.join(MISSING_POLICIES)}; found {self.policy!r}."
            )


def pair(
    a: ScoreTable,
    b: ScoreTable,
    *,
    scale: tuple[float, float] | None = None,
    missing: Missing | None = None,
) -> Pair:
    """Align two tables by item id. Raises ScoreError for unmatched ids, families, evals or directions that disagree, a
    run without any score, missing scores under the `error` policy, and scores outside `scale`.
    """
    _check_evals(a, b)
    order_N = _matching(a, b)
    _check_content(a, b, order_N)
    for table, side in ((a, "A"), (b, "B")):
        _check_scored(table, side)
    name = a.eval or b.eval
    a, b = (t if t.eval == name else replace(t, eval=name) for t in (a, b))
    scale, bounded = scale_of(a, b, scale)
    up = direction_of(a, b)
    missing = missing or Missing()
    fill_a, fill_b = _fill_values(a, b, (scale, up), missing)
    score_b_S_N = _with_failures(b, fill_b)
    return Pair(
        a,
        b,
        _with_failures(a, fill_a),
        score_b_S_N if order_N is None else score_b_S_N[:, order_N],
        _families(a, b, order_N),
        scale,
        bounded=bounded,
        filled=fill_a if fill_a == fill_b and a.n_missing + b.n_missing else None,
        higher_is_better=up,
    )


def _check_evals(a: ScoreTable, b: ScoreTable) -> None:
    if a.eval and b.eval and a.eval != b.eval:
        raise ScoreError(
            f"expected scores of one eval on both sides, found {a.eval!r} in {a.condition or 'A'} and {b.eval!r} in "
            f"{b.condition or 'B'}.",
            fix="Compare files of the same eval.",
        )


def _check_scored(table: ScoreTable, side: str) -> None:
    """Raises ScoreError for a run in which the machine lost every score: nothing was measured."""
    if table.machine_missing_S_N is None:
        return
    for run, score_N, lost_N in zip(table.runs, table.score_S_N, table.machine_missing_S_N):
        if np.isnan(score_N).all() and lost_N.all():
            what = f"{table.condition or side}, run {run!r}"
            raise ScoreError(
                f"{what}: expected scores, found none in {many(len(score_N), 'items')} ({_reason_text(table)}).",
                fix="Score the run again, or leave it out.",
            )


def direction_of(a: ScoreTable, b: ScoreTable) -> bool | None:
    """Whether higher is better: as known for either side, else true for 0 and 1 under a name that does not tell.

    Raises ScoreError when the sides disagree.
    """
    known = {t.higher_is_better for t in (a, b)} - {None}
    if len(known) > 1:
        words = {True: "higher", False: "lower", None: "unknown"}
        raise ScoreError(
            f"the sides disagree on the direction: {words[a.higher_is_better]} is better in {a.condition or 'A'} "
            f"({a.metric or 'unnamed metric'}), {words[b.higher_is_better]} in {b.condition or 'B'} "
            f"({b.metric or 'unnamed metric'}).",
            fix="Compare the same metric on both sides, or state the direction: --lower-is-better or "
            "--higher-is-better.",
        )
    if known:
        return known.pop()
    correctness = all(t.metric in GENERIC_METRICS and t.is_binary for t in (a, b))
    return True if correctness else None


def _with_failures(table: ScoreTable, value: float) -> Floats:
    """The scores with missing ones at `value`. A failed sample of the model counts in its item's mean; samples that the
    machine lost leave the mean of the others."""
    kept = table.samples
    if kept is not None:
        failed_S_N = np.where(kept.count_S_N > 0, kept.failed_S_N - kept.lost_S_N, 0)
        total_S_N = np.nan_to_num(table.score_S_N) * kept.count_S_N + value * failed_S_N
        mean_S_N = np.where(failed_S_N > 0, total_S_N / np.maximum(kept.count_S_N + failed_S_N, 1), table.score_S_N)
        return np.where(np.isnan(table.score_S_N), value, mean_S_N)
    if not table.n_missing:
        return table.score_S_N
    return np.where(np.isnan(table.score_S_N), value, table.score_S_N)


def _fill_values(
    a: ScoreTable, b: ScoreTable, ends: tuple[tuple[float, float], bool | None], missing: Missing
) -> tuple[float, float]:
    """What a missing score counts as on each side. `ends` is the scale and whether higher is better."""
    (low, high), up = ends
    bad, good = (high, low) if up is False else (low, high)
    if missing.policy == "fail" or not _n_failed(a) + _n_failed(b):
        value = bad if missing.value is None else missing.value
        return value, value
    if missing.policy == "worst":
        return bad, good
    if missing.policy == "best":
        return good, bad
    gone = {t.condition or s: t for t, s in ((a, "A"), (b, "B"))}
    counts = [f"{_n_failed(t)} of {t.score_S_N.size} in {name}" for name, t in gone.items()]
    raise ScoreError(
        f"scores are missing: {', '.join(counts)} ({_reason_text(a, b)}); pairs are never dropped.",
        fix="Choose the value of a missing score: missing 'fail' (the eval's failure value) or 'worst'.",
    )


def _n_failed(table: ScoreTable) -> int:
    """Items of a run without a score, or with a sample that has none."""
    return int((table.samples.failed_S_N > 0).sum()) if table.samples is not None else table.n_missing


def _reason_text(*tables: ScoreTable) -> str:
    total: Counter[str] = Counter()
    for table in tables:
        for counts in table.missing:
            total.update(counts)
    return ", ".join(f"{v} {k}" for k, v in sorted(total.items())) or "no reason given"


def _matching(a: ScoreTable, b: ScoreTable) -> Ints | None:
    """Where each item of A stands in B; None when the order is the same."""
    if a.items == b.items:
        return None
    index = {item: i for i, item in enumerate(b.items)}
    only_a = [i for i in a.items if i not in index]
    in_a = set(a.items)
    only_b = [i for i in b.items if i not in in_a]
    if only_a or only_b:
        parts = [
            f"{_count(len(ids), 'item')} only in {table.condition or side} ({_some(ids)})"
            for ids, table, side in ((only_a, a, "A"), (only_b, b, "B"))
            if ids
        ]
        raise ScoreError(
            f"expected both sides to score the same items, found {', '.join(parts)}; "
            f"{len(a.items) - len(only_a)} are in both.",
            fix="Score the same items on both sides; unmatched items are never dropped.",
        )
    return np.fromiter((index[i] for i in a.items), dtype=np.int64, count=len(a.items))


def _check_content(a: ScoreTable, b: ScoreTable, order_N: Ints | None) -> None:
    """Raises ScoreError when items of one id ask different things on the two sides."""
    if a.content_N is None or b.content_N is None:
        return
    other_N = b.content_N if order_N is None else tuple(b.content_N[i] for i in order_N)
    differ = [i for i, x, y in zip(a.items, a.content_N, other_N) if x is not None and y is not None and x != y]
    if differ:
        raise ScoreError(
            f"{_count(len(differ), 'item')} with the same id but different questions on the two sides "
            f"({_some(differ)}).",
            fix="Score the same documents in the same order on both sides.",
        )


def _families(a: ScoreTable, b: ScoreTable, order_N: Ints | None) -> Ints | None:
    names_b = b.family_N
    if names_b is not None and order_N is not None:
        names_b = tuple(names_b[i] for i in order_N)
    names = a.family_N if a.family_N is not None else names_b
    if names is None:
        return None
    if a.family_N is not None and names_b is not None and a.family_N != names_b:
        i = next(i for i, (x, y) in enumerate(zip(a.family_N, names_b)) if x != y)
        raise ScoreError(
            f"the sides disagree on families: item {a.items[i]!r} is in {a.family_N[i]!r} "
            f"in {a.condition or 'A'} and in {names_b[i]!r} in {b.condition or 'B'}."
        )
    labels, code_N = _codes(names)
    return None if len(labels) == len(names) else code_N


def scale_of(a: ScoreTable, b: ScoreTable, scale: tuple[float, float] | None) -> tuple[tuple[float, float], Bounds]:
    """The declared scale, else [0, 1] if all scores fit in it, else the observed range. Checked against the scores."""
    present = [x[np.isfinite(x)] for x in (a.score_S_N, b.score_S_N)]
    if not any(x.size for x in present):
        raise ScoreError(f"{a.eval or 'the eval'}: every score is missing on both sides ({_reason_text(a, b)}).")
    low = min(float(x.min()) for x in present if x.size)
    high = max(float(x.max()) for x in present if x.size)
    if scale is None:
        return ((0.0, 1.0), "assumed") if low >= 0 and high <= 1 else ((low, high), "")
    if low < scale[0] or high > scale[1]:
        raise ScoreError(
            f"{a.eval or 'the eval'}: the scale is {scale[0]:g} to {scale[1]:g}, found scores from {low:g} to {high:g}."
        )
    return (float(scale[0]), float(scale[1])), "declared"


# ---------------------------------------------------------------- tables from counts


Counts = tuple[int, int, int, int]
"""A 2×2 table of two arms on binary scores: items that only A got right, only B, both, neither."""

MAX_COUNTED_ITEMS = 10_000_000
"""Most items that counts may stand for: each becomes a row of both arms, 32 bytes a seed."""


def tables_from_counts(
    counts: Sequence[Counts], names: tuple[str, str] = ("A", "B"), *, eval_name: str = "", higher_is_better: bool = True
) -> tuple[ScoreTable, ScoreTable]:
    """Two score tables with the given 2×2 counts, one table of counts per seed.

    Counts fix each seed's gap, but not which items two seeds share. The items of each seed stand in the order of their
    difference, so that the seeds flip the same items as far as the counts allow: that has the largest variance over
    items. Raises ScoreError for counts below 0, none at all, and seeds with different numbers of items.

    >>> a, b = tables_from_counts([(1, 0, 2, 1)])
    >>> a.score_S_N.tolist(), b.score_S_N.tolist()
    ([[1.0, 1.0, 1.0, 0.0]], [[0.0, 1.0, 1.0, 0.0]])
    """
    sizes = {sum(table) for table in counts}
    if len(sizes) != 1 or min(map(min, counts)) < 0 or sizes == {0}:
        raise ScoreError(
            "expected 2×2 tables of the same number of items, as only A, only B, both, neither; found "
            f"{'; '.join(','.join(map(str, table)) for table in counts) or 'none'}.",
            fix="Give four counts of at least 0 for each seed: --table 54,47,1139,79.",
        )
    if names[0] == names[1]:
        raise ScoreError(f"expected two different names, found {names[0]!r} twice.")
    n = sizes.pop()
    if n > MAX_COUNTED_ITEMS:
        raise ScoreError(f"expected counts of at most {MAX_COUNTED_ITEMS:,} items together, found {n:,}.")
    kind_S_N = np.array([np.repeat([0, 1, 2, 3], [a, both, neither, b]) for a, b, both, neither in counts])
    runs, items = tuple(map(str, range(len(counts)))), tuple(f"item {i}" for i in range(n))
    arms = (kind_S_N <= 1, (kind_S_N == 1) | (kind_S_N == 3))
    one, two = (
        ScoreTable(
            name, eval_name, runs, items, np.asarray(right_S_N, dtype=np.float64), missing=({},) * len(runs),
            metric="correct" if higher_is_better else "", higher_is_better=higher_is_better,
        )
        for name, right_S_N in zip(names, arms)
    )  # fmt: skip
    return one, two

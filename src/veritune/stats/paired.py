"""One comparison of two arms on the same items: which method applies, its interval, its p, its 2×2 table.

binary, one run a side            Tango score interval, mid-p McNemar (exact p beside it)
graded, one run a side, n ≥ 200   paired t
graded, one run a side, n < 200   sign-flip test and its inversion
families                          cluster-robust t, G − 1 df; never narrower than without families
several runs                      seeds × items (see `seeds`), one interval per estimand
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats import intervals, seeds
from veritune.stats.intervals import Flips, Spread, Student, Unknown, Widest, three_valued
from veritune.stats.table import Floats, Ints, Missing, Pair, ScoreTable, pair

Estimand = Literal["recipe", "checkpoints", "items"]

ESTIMANDS: Mapping[Estimand, str] = {
    "recipe": "new items and new seeds (the recipe)",
    "checkpoints": "new items, the checkpoints at hand",
    "items": "these items, new seeds",
}

T_FROM_N = 200
"""From this many items on a graded comparison uses the paired t interval."""

FEW_FAMILIES = 20
"""Below this many families the cluster-robust t is not trusted alone."""

MAX_DRAWS = 1_000_000
_EXACT_UNITS = 16
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """How to compare. `draws` are Monte Carlo sign flips, used only when exact enumeration is too large."""

    draws: int = 99_999
    seed: int = 0
    scale: tuple[float, float] | None = None
    missing: Missing = field(default_factory=Missing)

    def __post_init__(self) -> None:
        if not 99 <= self.draws <= MAX_DRAWS:
            raise ScoreError(
                f"expected 99 to {MAX_DRAWS:,} resampling draws, found {self.draws:,}.",
                fix=f"{MAX_DRAWS:,} draws already resolve p to {1 / MAX_DRAWS:g}; nothing was allocated.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One estimand of a comparison: its uncertainty and how it was found."""

    estimand: Estimand
    gap: float
    spread: Spread
    method: str
    p_method: str
    se: float | None = None
    df: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Arm A against arm B on one eval. `results` holds one entry per estimand that the runs allow."""

    pair: Pair
    results: Mapping[Estimand, Result]
    details: Mapping[str, Any]
    warnings: tuple[str, ...]
    scope: str

    @property
    def gap(self) -> float:
        """Mean score of A minus mean score of B."""
        return float(self.pair.diff_N.mean())

    @property
    def headline(self) -> Result:
        """The result a claim rests on: the recipe where it can be estimated, else the checkpoints at hand."""
        return self.results.get("recipe") or self.results["checkpoints"]

    def estimate(self, level: float = 0.95, estimand: Estimand | None = None) -> Estimate:
        """The record of one estimand (the headline by default) at `level`."""
        result = self.results[estimand] if estimand else self.headline
        low, high = _bounds(*result.spread.interval(level))
        p = result.spread.p()
        floor = getattr(result.spread, "floor", intervals.TINY_P)
        warnings = self.warnings + result.warnings
        if isinstance(result.spread, Unknown):
            warnings += (result.spread.reason,)
        elif low is None:
            warnings += (f"too few independent units for an interval at level {level:g}",)
        return Estimate(
            name=f"{_name(self.pair.a, 'A')} − {_name(self.pair.b, 'B')} on {self.pair.a.eval or 'scores'}",
            value=result.gap,
            low=low,
            high=high,
            level=level,
            n=self.pair.n,
            method=result.method,
            scope=f"{ESTIMANDS[result.estimand]}; {self.scope}",
            n_clusters=self.pair.n_families,
            n_seeds=max(self.pair.score_a_S_N.shape[0], self.pair.score_b_S_N.shape[0]),
            se=result.se,
            df=None if result.df is None or math.isinf(result.df) else result.df,
            p=None if isinstance(result.spread, Unknown) else p,
            p_method=None if isinstance(result.spread, Unknown) else result.p_method,
            p_floor=floor if p <= floor else None,
            warnings=warnings,
            details=self.details,
        )


def _bounds(low: float, high: float) -> tuple[float | None, float | None]:
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (None, None)


def _name(table: ScoreTable, side: str) -> str:
    return table.condition or side


def compare_tables(a: ScoreTable, b: ScoreTable, options: Options | None = None) -> Comparison:
    """Compare A with B item by item. Raises ScoreError as `table.pair` does; a comparison that is possible but
    teaches nothing (one family, a constant difference) returns no interval and a warning that says why."""
    options = options or Options()
    return compare_pair(pair(a, b, scale=options.scale, missing=options.missing), options)


def compare_pair(matched: Pair, options: Options | None = None) -> Comparison:
    """`compare_tables` for a pair that is already lined up."""
    options = options or Options()
    parts = seeds.crossed(matched)
    results: dict[Estimand, Result] = {}
    results["checkpoints"] = _checkpoints(matched, parts, options)
    if _is_recipe(matched):
        results["recipe"] = _recipe(matched, parts)
    if parts.arms:
        results["items"] = _these_items(matched, parts)
    return Comparison(
        pair=matched,
        results=results,
        details=_details(matched, parts, options),
        warnings=_warnings(matched),
        scope=_scope(matched),
    )


def _is_recipe(matched: Pair) -> bool:
    """True when every arm is replicated over seeds or is a fixed arm, and one is replicated."""
    arms = ((matched.a, matched.score_a_S_N), (matched.b, matched.score_b_S_N))
    replicated = [score.shape[0] > 1 for _, score in arms]
    return any(replicated) and all(many or table.fixed for many, (table, _) in zip(replicated, arms))


ONE_K = np.ones(1)


def _checkpoints(matched: Pair, parts: seeds.Crossed, options: Options) -> Result:
    """New items, the runs at hand. One run a side without families takes the exact methods of its kind."""
    diff_N = matched.diff_N
    variance = seeds.new_items(parts, ONE_K)
    gap, se, df = float(parts.gap_K[0]), variance.se, variance.df
    families = matched.n_families
    single = matched.score_a_S_N.shape[0] == matched.score_b_S_N.shape[0] == 1
    if families == 1:
        reason = "all items are one family: nothing independent to learn an interval from"
        return Result("checkpoints", gap, Unknown(reason), "none", "none")
    if se == 0 and gap != 0 and not matched.is_binary:
        reason = f"every item differs by exactly {gap:g}: no spread to learn an interval from (a constant score?)"
        return Result("checkpoints", gap, Unknown(reason), "none", "none")
    if matched.is_binary and single and families is None:
        return Result("checkpoints", gap, three_valued(diff_N), "Tango score interval", "mid-p McNemar", se)
    if families is not None:
        return _clustered(matched, parts, variance, options)
    if matched.is_binary:
        spread: Spread = Widest((Student(gap, se, df), three_valued(diff_N)))
        return Result("checkpoints", gap, spread, "paired t over items, seeds averaged", "t test", se, df)
    if se == 0:
        return Result("checkpoints", gap, _all_equal(matched), "bound from no differing item", "none", se)
    if matched.n >= T_FROM_N:
        return Result("checkpoints", gap, Student(gap, se, df), "paired t", "paired t test", se, df, _few(diff_N))
    flips = sign_flips(diff_N, options)
    word = "exact" if flips.exact else f"Monte Carlo, {options.draws:,} draws, seed {options.seed}"
    return Result("checkpoints", gap, flips, f"sign-flip inversion ({word})", f"sign-flip test ({word})", se)


def _few(diff_N: Floats) -> tuple[str, ...]:
    differing = int((diff_N != 0).sum())
    if differing >= 20:
        return ()
    return (f"only {differing} of {len(diff_N)} items differ: a t interval is not to be trusted here",)


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A spread on [−1, 1] stretched to the width of a scale."""

    inner: Spread
    width: float

    def interval(self, level: float) -> tuple[float, float]:
        low, high = self.inner.interval(level)
        return low * self.width, high * self.width

    def p(self) -> float:
        return self.inner.p()


def _all_equal(matched: Pair, shrink: float = 1.0) -> Spread:
    """No item differs: at most z²/(n + z²) of items may, each by at most the width of the scale."""
    low, high = matched.scale
    if high == low:
        return Unknown("every score on both sides is the same constant")
    return _Scaled(three_valued(np.zeros(matched.n), shrink), high - low)


def _clustered(matched: Pair, parts: seeds.Crossed, variance: seeds.Variance, options: Options) -> Result:
    """Families as clusters. Binary scores keep the score interval, on the effective number of items, as a floor."""
    gap, families = float(parts.gap_K[0]), matched.n_families or 0
    naive = float(parts.item_K_K[0, 0])
    shrink = variance.value / naive if naive > 0 else matched.n / families
    student = Student(gap, variance.se, variance.df)
    spread: Spread = student
    if naive == 0:
        spread = _all_equal(matched, shrink)
    elif matched.is_binary:
        spread = Widest((student, three_valued(matched.diff_N, shrink)))
    warnings: tuple[str, ...] = ()
    if families < FEW_FAMILIES:
        warnings = (f"{families} families: few for a cluster-robust interval; the family sign-flip p stands beside it",)
    method = f"cluster-robust t over {families} families"
    return Result("checkpoints", gap, spread, method, "cluster-robust t test", variance.se, variance.df, warnings)


def _recipe(matched: Pair, parts: seeds.Crossed) -> Result:
    """New items and new seeds: the crossed variance, never narrower than the checkpoints' interval for its center."""
    gap = float(parts.gap_K[0])
    if matched.n_families == 1:
        reason = "all items are one family: nothing independent to learn an interval from"
        return Result("recipe", gap, Unknown(reason), "none", "none")
    variance = seeds.new_items_and_seeds(parts, ONE_K)
    student = variance.spread(gap)
    spread: Spread = student
    naive = float(parts.item_K_K[0, 0])
    shrink = max(1.0, variance.item / naive) if naive > 0 else matched.n / (matched.n_families or matched.n)
    if naive == 0 and variance.value == 0:
        spread = _all_equal(matched, shrink)
    elif matched.is_binary:
        spread = Widest((student, three_valued(matched.diff_N, shrink)))
    method = "seeds × items, crossed" + (", clustered by family" if parts.clustered else "")
    if variance.added:
        method += ", margins squared and added (few seeds)"
    warnings = ("seed variance is not above what items explain; the interval is that of new items",)
    df = variance.effective_df()
    return Result("recipe", gap, spread, method, "t test", variance.se, df, warnings if variance.floored else ())


def _these_items(matched: Pair, parts: seeds.Crossed) -> Result:
    gap = float(parts.gap_K[0])
    variance = seeds.new_seeds(parts, ONE_K)
    if variance is None or variance.value == 0:
        spread: Spread = Unknown("all seeds scored the same on these items: no seed spread to learn from")
        return Result("items", gap, spread, "none", "none")
    student = Student(gap, variance.se, variance.df)
    return Result("items", gap, student, "Welch t over seeds", "t test", variance.se, variance.df)


# ---------------------------------------------------------------- sign flips


def sign_flips(unit_U: Floats, options: Options | None = None, size_U: Floats | None = None) -> Flips:
    """Sign-flip distribution of the mean over U independent units (items, or families with `size_U` items each).

    Exact for at most 16 units (all 2^U − 1 other sign patterns), else `options.draws` random ones. The units are
    sorted first, so their order does not change the draws. See `intervals.Flips` for the formula.
    """
    options = options or Options()
    size_U = np.ones(len(unit_U)) if size_U is None else size_U
    order_U = np.lexsort((size_U, unit_U))
    unit_U, size_U = unit_U[order_U].astype(np.float64), size_U[order_U].astype(np.float64)
    exact = len(unit_U) <= _EXACT_UNITS
    rows = 2 ** len(unit_U) - 1 if exact else options.draws
    rng = np.random.default_rng(options.seed)
    mean_R = np.empty(rows)
    step = max(1, _CHUNK_CELLS // len(unit_U))
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        if exact:
            pattern = np.arange(start + 1, stop + 1)[:, None] >> np.arange(len(unit_U)) & 1
        else:
            pattern = rng.integers(0, 2, size=(stop - start, len(unit_U)), dtype=np.int8)
        chosen = pattern.astype(np.float64)
        count = chosen @ size_U
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_R[start:stop] = np.where(count > 0, chosen @ unit_U / count, np.nan)
    empty = np.isnan(mean_R)
    low_R, high_R = np.where(empty, -np.inf, mean_R), np.where(empty, np.inf, mean_R)
    return Flips(np.sort(low_R), np.sort(high_R), exact)


def family_flips(diff_N: Floats, family_N: Ints, options: Options | None = None) -> Flips:
    """Sign flips of whole families: exact under 17 of them. Source: Canay, Romano & Shaikh 2017, Econometrica 85."""
    sum_G: Floats = np.bincount(family_N, weights=diff_N).astype(np.float64)
    return sign_flips(sum_G, options, np.bincount(family_N).astype(np.float64))


# ---------------------------------------------------------------- what stands beside the interval


def two_by_two(a_N: Floats, b_N: Floats) -> dict[str, int]:
    """Counts of the four outcomes of binary scores: `both`, `only_a`, `only_b`, `neither`."""
    right_a, right_b = a_N == 1, b_N == 1
    both, only_a = int((right_a & right_b).sum()), int((right_a & ~right_b).sum())
    only_b = int((~right_a & right_b).sum())
    return {"both": both, "only_a": only_a, "only_b": only_b, "neither": len(a_N) - both - only_a - only_b}


def _details(matched: Pair, parts: seeds.Crossed, options: Options) -> dict[str, Any]:
    rows = {"a": (matched.a, matched.score_a_S_N), "b": (matched.b, matched.score_b_S_N)}
    details: dict[str, Any] = {
        side: {
            "condition": table.condition,
            "runs": list(table.runs),
            "fixed": table.fixed,
            "mean": float(score.mean()),
            "total": float(score.sum()),
            "per_run": [float(x) for x in score.mean(axis=1)],
            "n": matched.n,
            "scored": int(score.size - table.n_missing),
            "missing": [dict(m) for m in table.missing],
        }
        for side, (table, score) in rows.items()
    }
    details["scale"] = list(matched.scale)
    if matched.is_binary:
        details["tables"] = _tables(matched)
        details["discordance"] = _discordance(matched)
    families = matched.n_families
    if families is not None:
        naive, clustered = float(parts.item_K_K[0, 0]), float(parts.item_clustered_K_K[0, 0])
        details["families"] = families
        details["design_effect"] = clustered / naive if naive > 0 else None
        if 1 < families < FEW_FAMILIES and matched.family_N is not None:
            flips = family_flips(matched.diff_N, matched.family_N, options)
            details["family_sign_flip"] = {"p": flips.p(), "p_floor": flips.floor, "exact": flips.exact}
    if matched.filled is not None:
        details["missing_scored_as"] = matched.filled
    for side, (table, _) in rows.items():
        if table.samples is not None:
            details[side]["samples"] = _sample_details(table)
    return details


def _sample_details(table: ScoreTable) -> dict[str, Any]:
    kept = table.samples
    assert kept is not None
    return {
        "per_item_min": int(kept.count_S_N.min()),
        "per_item_max": int(kept.count_S_N.max()),
        "failed": int(kept.failed_S_N.sum()),
        "within_item_variance": float(np.nanmean(kept.variance_S_N)) if kept.known else None,
        "sampling_se": kept.mean_se,
        "rater_agreement": None if kept.raters is None else dataclasses.asdict(kept.raters),
    }


def _tables(matched: Pair) -> list[dict[str, Any]]:
    """One 2×2 table per run where the runs line up by position or one side is a single run."""
    a, b = matched.score_a_S_N, matched.score_b_S_N
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        return []
    tables = []
    for s in range(max(len(a), len(b))):
        row_a, row_b = a[min(s, len(a) - 1)], b[min(s, len(b) - 1)]
        table = two_by_two(row_a, row_b)
        tables.append(
            {
                "run_a": matched.a.runs[min(s, len(a) - 1)],
                "run_b": matched.b.runs[min(s, len(b) - 1)],
                **table,
                "midp": intervals.mcnemar_midp(table["only_a"], table["only_b"]),
                "exact_p": intervals.mcnemar_exact(table["only_a"], table["only_b"]),
            }
        )
    return tables


def _discordance(matched: Pair) -> float:
    """ψ: the share of items on which one run of A and one of B differ, over all pairs of runs."""
    p_a, p_b = matched.score_a_S_N.mean(axis=0), matched.score_b_S_N.mean(axis=0)
    return float((p_a * (1 - p_b) + (1 - p_a) * p_b).mean())


def _warnings(matched: Pair) -> tuple[str, ...]:
    out = []
    if not matched.diff_N.any():
        out.append("no item differs between the sides: identical outputs may mean that the adapter was never loaded")
    for side, table in (("A", matched.a), ("B", matched.b)):
        score = table.score_S_N[np.isfinite(table.score_S_N)]
        if score.size and score.min() == score.max():
            out.append(f"{_name(table, side)}: every score is {score[0]:g}, a constant teaches nothing about items")
        if table.n_missing:
            counts = "; ".join(
                f"{run}: {', '.join(f'{v} {k}' for k, v in reasons.items())}"
                for run, reasons in zip(table.runs, table.missing)
                if reasons
            )
            as_value = "the worst case" if matched.filled is None else f"{matched.filled:g}"
            out.append(
                f"{_name(table, side)}: {table.n_missing} of {table.score_S_N.size} scores missing "
                f"({counts}), counted as {as_value}"
            )
    return tuple(out)


def _scope(matched: Pair) -> str:
    def arm(table: ScoreTable, score: Floats, side: str) -> str:
        runs = score.shape[0]
        kind = "fixed arm, no seeds" if table.fixed else f"{runs} seed{'s' if runs > 1 else ''}"
        return f"{_name(table, side)} ({kind})"

    zones = sorted({z for z in matched.a.zone_N or () if z})
    where = f" of zone {', '.join(zones)}" if zones else ""
    a = arm(matched.a, matched.score_a_S_N, "A")
    b = arm(matched.b, matched.score_b_S_N, "B")
    return f"{a} against {b}, {matched.n} items of {matched.a.eval or 'the eval'}{where}"

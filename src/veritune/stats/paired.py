"""One comparison of two arms on the same items: which method applies, its interval, its p, its 2×2 table.

Over new items, for the runs at hand:

    binary, one run a side            Tango score interval, mid-p McNemar (exact p beside it)
    graded, or several runs a side    the wider of Student's t and Learned-Miller & Thomas (`bounded`)
    families                          by their sizes (`families`), never narrower than the above

Over new items and new seeds (the recipe): the same, widened by the spread between seeds (`seeds`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from veritune.config.thresholds import DEFAULTS, NoteThresholds
from veritune.counting import many
from veritune.errors import ScoreError
from veritune.records import Estimate, JsonLike
from veritune.stats import intervals, seeds
from veritune.stats.bounded import BoundedMean
from veritune.stats.families import FamilyRule, cr1, cr3, family_rule, family_sums, sign_flips, undrawn
from veritune.stats.intervals import Spread, Student, Unknown, Widest, three_valued
from veritune.stats.table import Floats, Missing, Pair, ScoreTable, pair

Estimand = Literal["recipe", "checkpoints", "items"]

ESTIMANDS: Mapping[Estimand, str] = {
    "recipe": "new items and new seeds (the recipe)",
    "checkpoints": "new items, the checkpoints at hand",
    "items": "these items, new seeds",
}

MAX_DRAWS = 1_000_000


@dataclass(frozen=True, slots=True)
class PairOptions:
    """How to compare two arms. `draws` are Monte Carlo sign flips of families, used only above 16 families.

    `equal_seed_spread` and `shared_seeds` are declared before the data: that all arms spread alike between seeds, and
    that runs of one seed share their data order and initialisation, so that arms are paired by seed. `notes` say from
    where on warnings stand beside the interval.

    >>> PairOptions(scale=(0, 1), shared_seeds=True).scale
    (0, 1)
    """

    draws: int = 9_999
    seed: int = 0
    scale: tuple[float, float] | None = None
    missing: Missing = field(default_factory=Missing)
    equal_seed_spread: bool = False
    shared_seeds: bool = False
    notes: NoteThresholds = DEFAULTS.notes

    def __post_init__(self) -> None:
        if not 99 <= self.draws <= MAX_DRAWS:
            raise ScoreError(
                f"expected 99 to {MAX_DRAWS:,} resampling draws, found {self.draws:,}.",
                fix=f"Lower it: {MAX_DRAWS:,} draws already resolve p to {1 / MAX_DRAWS:g}; nothing was allocated.",
            )


@dataclass(frozen=True, slots=True, eq=False)
class PairedResult:
    """One estimand of a comparison: its uncertainty and the method."""

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
    """The comparison of arm A with arm B on one eval. `results` holds one entry per estimand that the runs allow.

    >>> from veritune.stats import tables_from_counts
    >>> compare_tables(*tables_from_counts([(9, 1, 80, 10)])).pair.n
    100
    """

    pair: Pair
    results: Mapping[Estimand, PairedResult]
    details: Mapping[str, Any]
    warnings: tuple[str, ...]
    scope: str
    options: PairOptions = PairOptions()

    @property
    def gap(self) -> float:
        """Mean score of A minus mean score of B."""
        return float(self.pair.diff_N.mean())

    @property
    def headline(self) -> PairedResult:
        """The result that a claim uses: the recipe if it can be estimated, else the checkpoints at hand."""
        return self.results.get("recipe") or self.results["checkpoints"]

    def _bounds(self, low: float, high: float) -> tuple[float | None, float | None]:
        """Ends as they are printed: None where there are none, never beyond the width of a known scale."""
        if not (math.isfinite(low) and math.isfinite(high)):
            return None, None
        if not self.pair.bounded:
            return low, high
        width = self.pair.scale[1] - self.pair.scale[0]
        return max(-width, low), min(width, high)

    def estimate(self, level: float = 0.95, estimand: Estimand | None = None) -> Estimate:
        """The record of one estimand (by default the headline) at `level`."""
        result = self.results[estimand] if estimand else self.headline
        low, high = self._bounds(*result.spread.interval(level))
        p = result.spread.p()
        floor = result.spread.floor
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


def _name(table: ScoreTable, side: str) -> str:
    return table.condition or side


def compare_tables(a: ScoreTable, b: ScoreTable, options: PairOptions | None = None) -> Comparison:
    """Compare A with B item by item. Raises ScoreError as `table.pair` does; a comparison that is possible but has no
    information (one family, a constant difference) returns no interval and a warning with the reason.

    >>> from veritune.stats import tables_from_counts
    >>> gap = compare_tables(*tables_from_counts([(54, 47, 1139, 79)])).estimate()
    >>> f"{gap.value:.4f} [{gap.low:.4f}, {gap.high:.4f}]"
    '0.0053 [-0.0098, 0.0205]'
    """
    options = options or PairOptions()
    return compare_pair(pair(a, b, scale=options.scale, missing=options.missing), options)


def compare_pair(matched: Pair, options: PairOptions | None = None) -> Comparison:
    """The same as `compare_tables`, for a pair whose items are aligned already."""
    options = options or PairOptions()
    shared = options.shared_seeds and not (matched.a.fixed or matched.b.fixed)
    if shared:
        matched = paired_by_seed(matched)
    parts = seeds.crossed(matched, shared=shared)
    rule = None if matched.family_N is None else family_rule(np.bincount(matched.family_N))
    items = _new_items(matched, parts, rule, options)
    results: dict[Estimand, PairedResult] = {"checkpoints": items}
    if _is_recipe(matched):
        results["recipe"] = _recipe(items, parts, options)
    if parts.arms:
        results["items"] = _these_items(parts)
    return Comparison(
        pair=matched,
        results=results,
        details=_details(matched, parts, rule),
        warnings=_warnings(matched) + _assumptions(matched, rule, options),
        scope=_scope(matched),
        options=options,
    )


def paired_by_seed(matched: Pair) -> Pair:
    """The pair with B's runs in the order of A's seeds; unchanged with a fixed arm, single runs, or runs without seeds.

    Raises ScoreError where the arms do not share their seeds.
    """
    a, b = matched.a, matched.b
    seeds_a, seeds_b = a.seeds or a.runs, b.seeds or b.runs
    if a.fixed or b.fixed or (len(seeds_a) < 2 and len(seeds_b) < 2):
        return matched
    if _in_the_order_given(a, b):
        return matched
    if sorted(seeds_a) != sorted(seeds_b) or len(set(seeds_a)) < len(seeds_a):
        raise ScoreError(
            f"expected the same seeds on both sides, found {', '.join(seeds_a)} and {', '.join(seeds_b)}.",
            fix="Train both arms with the same seeds, or do not declare shared seeds.",
        )
    order = [seeds_b.index(seed) for seed in seeds_a]
    return dataclasses.replace(matched, score_b_S_N=matched.score_b_S_N[order])


def _in_the_order_given(a: ScoreTable, b: ScoreTable) -> bool:
    """True where runs that share their seeds are named after their files: only their order pairs them."""
    return not (a.seeds and b.seeds) and len(a.runs) == len(b.runs) and set(a.runs) != set(b.runs)


def _is_recipe(matched: Pair) -> bool:
    """True when every arm is replicated over seeds or is a fixed arm, and one is replicated."""
    arms = ((matched.a, matched.score_a_S_N), (matched.b, matched.score_b_S_N))
    replicated = [score.shape[0] > 1 for _, score in arms]
    return any(replicated) and all(many or table.fixed for many, (table, _) in zip(replicated, arms))


ONE_K = np.ones(1)


def _new_items(matched: Pair, parts: seeds.Crossed, rule: FamilyRule | None, options: PairOptions) -> PairedResult:
    """New items, the runs at hand."""
    diff_N, gap = matched.diff_N, float(parts.gap_K[0])
    value, df = parts.item_variance(ONE_K)
    low, high = matched.scale
    unknown = ""
    if rule is not None and rule.method == "withheld":
        unknown = rule.reason
    elif high == low:
        unknown = "every score on both sides is the same constant"
    elif matched.n < 2:
        unknown = "one item: nothing to learn an interval from"
    elif not matched.is_binary and not matched.bounded:
        unknown = (
            f"graded scores from {low:g} to {high:g} without declared bounds: a rare loss that was not seen could be "
            "of any size; declare the scale that scores can take (--scale LOW HIGH)"
        )
    if unknown:
        return PairedResult("checkpoints", gap, Unknown(unknown), "none", "none")
    if rule is not None:
        return _clustered(matched, parts, rule, options)
    single = matched.score_a_S_N.shape[0] == matched.score_b_S_N.shape[0] == 1
    se = math.sqrt(value)
    if matched.is_binary and single:
        return PairedResult("checkpoints", gap, three_valued(diff_N), "Tango score interval", "mid-p McNemar", se)
    spread = Widest((Student(gap, se, df), BoundedMean(diff_N, high - low)))
    return PairedResult("checkpoints", gap, spread, _method("paired t", matched), "the larger of both p", se, df)


def _method(other: str, matched: Pair) -> str:
    runs = max(matched.score_a_S_N.shape[0], matched.score_b_S_N.shape[0])
    averaged = ", seeds averaged" if runs > 1 else ""
    return f"the wider of {other} and Learned-Miller & Thomas{averaged}"


def _clustered(matched: Pair, parts: seeds.Crossed, rule: FamilyRule, options: PairOptions) -> PairedResult:
    """Families as clusters, by the rule of their sizes, never narrower than what items alone would need.

    Binary single runs keep Tango's interval on the effective number of items. The bounded mean takes all items: on the
    effective number it would leave strong graded effects no power under 20 families (docs/theory.md).
    """
    assert matched.family_N is not None
    diff_N, gap = matched.diff_N, float(parts.gap_K[0])
    size_G = np.bincount(matched.family_N)
    sum_G = family_sums(diff_N, matched.family_N)
    naive = float(parts.item_K_K[0, 0])
    clustered = (cr3 if rule.method == "cr3" else cr1)(sum_G, size_G)
    se = math.sqrt(max(naive, clustered))
    shrink = max(1.0, clustered / naive) if naive > 0 else matched.n / rule.families
    student = Student(gap, se, rule.df)
    family: tuple[Spread, ...] = (student,)
    if rule.method == "cr1+flips":
        family = (student, sign_flips(sum_G, size_G, draws=options.draws, seed=options.seed))
    single = matched.score_a_S_N.shape[0] == matched.score_b_S_N.shape[0] == 1
    low, high = matched.scale
    if matched.is_binary and single:
        floor: Spread = three_valued(diff_N, shrink)
    else:
        # Without any spread nothing says how alike the items of a family are: then a family counts as one item.
        floor = BoundedMean(diff_N, high - low, rule.families if naive == 0 else None)
    p_method = "sign flips of families and cluster-robust t" if rule.method == "cr1+flips" else "cluster-robust t test"
    return PairedResult("checkpoints", gap, Widest((*family, floor)), rule.text, p_method, se, rule.df)


def _recipe(items: PairedResult, parts: seeds.Crossed, options: PairOptions) -> PairedResult:
    """New items and new seeds: what items need, widened by the spread between seeds."""
    if isinstance(items.spread, Unknown):
        return dataclasses.replace(items, estimand="recipe")
    added = seeds.seed_spread(parts, ONE_K, equal=options.equal_seed_spread)
    assert added is not None
    how = {
        "quadrature": "seed margins squared and added",
        "larger": "the larger of the item and seed margins",
        "both": "the larger of two ways to add seed margins",
        "equal": "one seed spread assumed for both arms",
    }[added.rule]
    paired = "paired by seed, " if parts.shared else ""
    warnings: tuple[str, ...] = ()
    if added.value == 0:
        warnings = ("the seeds spread no more than their items explain; a larger spread would need more seeds to see",)
    return PairedResult(
        estimand="recipe",
        gap=items.gap,
        spread=seeds.Combined(items.gap, items.spread, added),
        method=f"seeds × items: {paired}{how}; items: {items.method}",
        p_method="inversion of the interval",
        se=math.sqrt((items.se or 0.0) ** 2 + added.value),
        warnings=warnings,
    )


def _these_items(parts: seeds.Crossed) -> PairedResult:
    """New seeds on these very items."""
    gap, found = float(parts.gap_K[0]), seeds.welch(parts, ONE_K)
    if found is None:
        spread = Unknown("all seeds scored the same on these items: no seed spread to learn from")
        return PairedResult("items", gap, spread, "none", "none")
    value, df = found
    student = Student(gap, math.sqrt(value), df)
    method = "t over seeds, paired by seed" if parts.shared else "Welch t over seeds"
    return PairedResult("items", gap, student, method, "t test", math.sqrt(value), df)


def _assumptions(matched: Pair, rule: FamilyRule | None, options: PairOptions) -> tuple[str, ...]:
    """What an interval over new items rests on here, in words."""
    out: list[str] = []
    low, high = matched.scale
    diff_N = matched.diff_N
    if not matched.is_binary:
        if matched.bounded == "assumed":
            out.append(f"scores are assumed to lie between {low:g} and {high:g}; no scale was declared (--scale)")
        sd = float(diff_N.std())
        skew = float(((diff_N - diff_N.mean()) ** 3).mean()) / sd**3 if sd > seeds.ROUNDING * (high - low) else 0.0
        if abs(skew) >= options.notes.skewed:
            out.append(f"the differences are skewed (skewness {skew:+.1f}): few items carry much of the gap")
        values = len(np.unique(np.round(diff_N, 12)))
        if values <= options.notes.few_values < matched.n:
            out.append(f"the differences take {many(values, 'values')} on {many(matched.n, 'items')}")
    share = 0.0 if rule is None or rule.method == "withheld" else undrawn(rule.families)
    if rule is not None and rule.method in ("cr1", "cr3") and rule.families < options.notes.normal_families:
        out.append(
            f"with {many(rule.families, 'families')} the interval assumes that family effects are roughly normal; "
            "families that each go one way as a whole make it err more often (docs/theory.md)"
        )
    if rule is not None and share >= options.notes.undrawn:
        out.append(
            f"{many(rule.families, 'families')} ({rule.effective:.1f} effective): up to {100 * share:.0f} % of "
            "families could "
            "be of a kind that was not drawn"
        )
    if options.shared_seeds and len(matched.a.runs) > 1 and _in_the_order_given(matched.a, matched.b):
        out.append("runs are paired in the order given: their names are no seeds")
    if options.equal_seed_spread:
        out.append("the seed spread is assumed to be the same in both arms, as declared")
    return tuple(out)


# ---------------------------------------------------------------- what stands beside the interval


def two_by_two(a_N: Floats, b_N: Floats) -> dict[str, int]:
    """Counts of the four outcomes of binary scores: `both`, `only_a`, `only_b`, `neither`."""
    right_a, right_b = a_N == 1, b_N == 1
    both, only_a = int((right_a & right_b).sum()), int((right_a & ~right_b).sum())
    only_b = int((~right_a & right_b).sum())
    return {"both": both, "only_a": only_a, "only_b": only_b, "neither": len(a_N) - both - only_a - only_b}


def _details(matched: Pair, parts: seeds.Crossed, rule: FamilyRule | None) -> dict[str, JsonLike]:
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
    if rule is not None:
        naive, clustered = float(parts.item_K_K[0, 0]), float(parts.item_clustered_K_K[0, 0])
        details["families"] = rule.families
        details["effective_families"] = rule.effective
        details["family_rule"] = rule.method
        details["undrawn_share"] = undrawn(rule.families)
        details["design_effect"] = clustered / naive if naive > 0 else None
    if matched.filled is not None:
        details["missing_scored_as"] = matched.filled
    for side, (table, _) in rows.items():
        if table.samples is not None:
            details[side]["samples"] = _sample_details(table)
    return details


def _sample_details(table: ScoreTable) -> dict[str, JsonLike]:
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


def _tables(matched: Pair) -> list[dict[str, JsonLike]]:
    """One 2×2 table per run where the runs line up by position or one side is a single run."""
    a, b = matched.score_a_S_N, matched.score_b_S_N
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        return []
    tables: list[dict[str, JsonLike]] = []
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
        kind = "fixed arm, no seeds" if table.fixed else many(runs, "seeds")
        return f"{_name(table, side)} ({kind})"

    zones = sorted({z for z in matched.a.zone_N or () if z})
    where = f" of zone {', '.join(zones)}" if zones else ""
    a = arm(matched.a, matched.score_a_S_N, "A")
    b = arm(matched.b, matched.score_b_S_N, "B")
    return f"{a} against {b}, {many(matched.n, 'items')} of {matched.a.eval or 'the eval'}{where}"

"""What `veritune compare` does: from the sides' scores to records (`decide.screen` shows them).

Nothing here needs torch, pandas or polars; matplotlib is imported only for a plot.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from veritune.config.frozen_rule import check_rule
from veritune.counting import many, noun
from veritune.decide import wording
from veritune.decide.demand import DemandOutcome, check_demand, judge_demand
from veritune.decide.sides import Side, load_side
from veritune.display import Tabular, short
from veritune.errors import ScoreError
from veritune.evaluate.logs import Reading, systems_in
from veritune.evaluate.logs.aggregates import refuse_aggregates
from veritune.records import Estimate, JsonLike, Score
from veritune.stats import lost, power, rule
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.reasons import unknown_reasons
from veritune.stats.rule import Decided
from veritune.stats.table import Counts, Missing, Pair, ScoreTable, tables_from_counts

_FLIPS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Settings of `compare`. `against` names the arm that the others are compared with (by default the last).

    `all_pairs` compares every arm with every other. `adapters` names the arms that are known to be adapters; of others
    the sentences say "system". `rule` is a frozen rule (`stats.rule.frozen_rule`). `counts` says that the tables were
    made from counts (`stats.table.tables_from_counts`), so that their items have no names. `equal_seed_spread` and
    `shared_seeds` are declared before the data (`stats.paired.Options`). `demand` is what a pipeline asks of each
    comparison (`decide.demand`).

    >>> CompareOptions(margin=0.02).alpha
    0.05
    """

    margin: float | None = None
    alpha: float = 0.05
    against: str | None = None
    zone: str | None = None
    samples: bool = False
    reading: Reading = field(default_factory=Reading)
    scale: tuple[float, float] | None = None
    missing: Missing = field(default_factory=Missing)
    draws: int = 9_999
    seed: int = 0
    rule: Mapping[str, Any] | None = None
    all_pairs: bool = False
    adapters: Collection[str] = ()
    counts: bool = False
    equal_seed_spread: bool = False
    shared_seeds: bool = False
    demand: str | None = None

    def __post_init__(self) -> None:
        if self.demand is not None:
            check_demand(self.demand, self.margin)
        if not 0 < self.alpha < 0.5:
            raise ScoreError(f"expected alpha between 0 and 0.5, found {self.alpha!r}.")
        if self.rule is not None:
            check_rule(self.rule)
        if self.all_pairs and self.against is not None:
            raise ScoreError(
                "--all-pairs compares every side with every other, but --against compares all with one.",
                fix="Give only one of the two options.",
            )


@dataclass(frozen=True, slots=True)
class Flipped:
    """Items whose score differs between the arms: counts and the first ids in each direction (averaged over seeds).

    `to_a` counts items on which A is the better arm; the one with the higher score where the direction is unknown.
    Items of which the machine lost a score are left out and counted in `lost`.
    """

    to_a: int
    to_b: int
    ids_a: tuple[str, ...]
    ids_b: tuple[str, ...]
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Stratum:
    """One task of a pooled eval: items, both means, the gap and its interval, None where there is none."""

    name: str
    n: int
    a: float
    b: float
    gap: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """The comparison of one arm with another. `estimates` starts with the one that decides; `level` applies to all of
    them.

    `higher_is_better` is None where nothing says so. `withheld` says why scores that the machine lost keep the decision
    open, `memorisation` why the comparison does not tell learning from memorising; both are empty where it does not
    apply.
    `chance_again` is the chance that another study of this design decides so, at the gap as observed.
    """

    a: str
    b: str
    eval: str
    n: int
    estimates: tuple[Estimate, ...]
    decision: str
    reason: str
    margin: float | None
    alpha: float
    p_corrected: float | None
    detectable: float | None
    for_margin: power.Settling | None
    for_equivalence: power.Settling | None
    reachable_equivalence: bool | None
    flipped: Flipped
    may_write: str
    may_not: tuple[str, ...]
    details: Mapping[str, Any]
    warnings: tuple[str, ...]
    frozen_rule: Mapping[str, Any] | None = None
    metric: str = ""
    higher_is_better: bool | None = None
    withheld: str = ""
    n_lost: int = 0
    memorisation: str = ""
    chance_again: float | None = None
    demand: DemandOutcome | None = None
    strata: tuple[Stratum, ...] = ()
    zone: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class CompareReport(Tabular):
    """All comparisons of one call; `notes` says how each file was read, `correction` how alpha was divided among them.

    >>> CompareReport(comparisons=(), notes=()).met
    True
    """

    comparisons: tuple[ComparisonReport, ...]
    notes: tuple[str, ...]
    correction: str = ""

    def __repr__(self) -> str:
        return short(self, **{f"{c.a} against {c.b}": c.decision for c in self.comparisons})

    def _columns(self) -> dict[str, list[Any]]:
        """One row a comparison: the estimate that its decision rests on, and what may be written."""
        names = ("a", "b", "eval", "n", "decision", "reason", "margin", "may_write")
        own = {name: [getattr(c, name) for c in self.comparisons] for name in names}
        first = [c.estimates[0] if c.estimates else None for c in self.comparisons]
        return own | {k: [getattr(e, k, None) for e in first] for k in ("value", "low", "high", "level", "p")}

    @property
    def met(self) -> bool:
        """Whether every comparison meets its demand; true if nothing was demanded."""
        return all(c.demand is None or c.demand.met for c in self.comparisons)


# ---------------------------------------------------------------- compare


def compare(sides: Sequence[Side], options: CompareOptions | None = None) -> CompareReport:
    """Compare score files item by item; differences are in score units, first side minus second.

    Several sides are each compared with the last, or with `options.against`, and alpha is shared between them. Raises
    ScoreError for what cannot be compared, naming files, items and lines. docs/statistics.md has the formulas.

    >>> import tempfile, pathlib
    >>> from veritune.decide import parse_side
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name, period in (("tuned", 9), ("base", 3)):
    ...     lines = ['{"id": "%d", "score": %d}' % (i, i % period > 0) for i in range(90)]
    ...     _ = (folder / f"{name}.jsonl").write_text("\\n".join(lines))
    >>> report = compare([parse_side(f"{name}={folder}/{name}.jsonl") for name in ("tuned", "base")])
    >>> report.comparisons[0].a, report.comparisons[0].n, report.comparisons[0].decision
    ('tuned', 90, 'better, size unresolved')
    """
    options = options or CompareOptions()
    if len(sides) < 2:
        raise ScoreError(f"expected at least two sides to compare, found {len(sides)}.", fix=_second_side(sides))
    names = [s.name for s in sides]
    if len(set(names)) < len(names):
        sides = [replace(s, name=_distinct(s)) for s in sides]
        names = [s.name for s in sides]
        if len(set(names)) < len(names):
            raise ScoreError(
                f"expected sides with different names, found {', '.join(names)}.", fix="Name them: a=PATH b=PATH."
            )
    for what, chosen in (("against", [options.against] if options.against else []), ("adapter", options.adapters)):
        unknown = [name for name in chosen if name not in names]
        if unknown:
            raise ScoreError(f"--{what}: expected one of {', '.join(names)}; found {unknown[0]!r}.")
    refuse_aggregates([s.paths[0] for s in sides if len(s.paths) == 1], options.alpha)
    loaded = [load_side(s, options.reading, samples=options.samples) for s in sides]
    tables = [table.in_zone(options.zone) for table, _ in loaded]
    notes = tuple(note for _, lines in loaded for note in lines)
    return compare_many(tables, options, notes)


def _second_side(sides: Sequence[Side]) -> str:
    """What to do about a single side: perhaps the file has one column per system."""
    path = sides[0].paths[0] if sides else None
    columns = systems_in(path) if path is not None and path.is_file() else []
    if len(columns) < 2 or path is None:
        return "Name two files: veritune compare A B."
    return f"If its columns are systems: veritune compare {path.name} --systems {','.join(columns[:8])}"


def _distinct(side: Side) -> str:
    """A name from the folder as well, for files that are called the same."""
    return f"{side.paths[0].parent.name}/{side.name}"


def compare_many(
    tables: Sequence[ScoreTable], options: CompareOptions | None = None, notes: tuple[str, ...] = ()
) -> CompareReport:
    """`compare` for tables in memory: all against one, or every pair (`options.all_pairs`)."""
    options = options or CompareOptions()
    if options.all_pairs:
        return _compare_pairs(list(itertools.combinations(tables, 2)), options, notes)
    other = next((t for t in tables if t.condition == options.against), tables[-1])
    return _compare_pairs([(arm, other) for arm in tables if arm is not other], options, notes)


def parse_rule(text: str) -> dict[str, JsonLike]:
    """A frozen rule from `min_gap=0.01` or `min_gap=0.01,every_seed`. Raises ScoreError for anything else."""
    terms: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (x.strip() for x in part.partition("="))
        if key in terms:
            raise ScoreError(f"--rule {text!r}: {key} is given twice.")
        if key == "every_seed" and value in ("", "true"):
            terms[key] = True
            continue
        try:
            terms[key] = float(value) if equals else None
        except ValueError:
            terms[key] = value
    try:
        check_rule(terms)
    except ScoreError as exc:
        raise ScoreError(f"--rule {text!r}: {exc.message}", fix="Write --rule min_gap=0.01[,every_seed].") from exc
    return terms


def compare_counts(
    texts: Sequence[str], names: Sequence[str], options: CompareOptions, also: Mapping[str, JsonLike]
) -> CompareReport:
    """`compare` for 2×2 counts, given as one text `only A,only B,both,neither` per seed. `names` is empty or names both
    sides.

    Raises ScoreError for counts that are none, and for an option that counts cannot honour; `also` maps options that
    the caller took to their values.
    """
    reading = options.reading
    unread = {k: getattr(reading, k) for k in ("metric", "filter", "id", "family", "run", "rater", "sample")}
    unread |= {"zone": options.zone, "scale": options.scale, **also}
    refused = sorted(name for name, value in unread.items() if value)
    if refused:
        raise ScoreError(
            f"--{refused[0]} needs item scores, but --table gives counts.", fix=f"Leave out --{refused[0]}."
        )
    if len(names) not in (0, 2):
        raise ScoreError(
            f"expected no names or two names with --table, found {len(names)}.",
            fix="Write it like: --table 54,47,1139,79 tuned base",
        )
    up = reading.higher_is_better is not False
    a, b = ("A", "B") if not names else (names[0], names[1])
    unknown = [x for x in (*options.adapters, *filter(None, [options.against])) if x not in (a, b)]
    if unknown:
        raise ScoreError(f"expected the name of a side, {a} or {b}; found {unknown[0]!r}.")
    counts = [_counts(text) for text in texts]
    tables = tables_from_counts(counts, (a, b), eval_name=reading.eval or "", higher_is_better=up)
    return compare_many(tables, replace(options, counts=True))


def _counts(text: str) -> Counts:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ScoreError(
            f"--table {text!r}: expected four whole numbers: only A, only B, both, neither.",
            fix="Repeat --table for each seed: --table 54,47,1139,79.",
        )
    only_a, only_b, both, neither = map(int, parts)
    return only_a, only_b, both, neither


def compare_score_tables(
    arms: Sequence[ScoreTable],
    against: ScoreTable,
    options: CompareOptions | None = None,
    notes: tuple[str, ...] = (),
) -> CompareReport:
    """Compare each arm with the table `against`; differences are in score units, arm minus `against`.

    >>> from veritune.stats import tables_from_counts
    >>> a, b = tables_from_counts([(54, 47, 1139, 79)])
    >>> round(compare_score_tables([a], b).comparisons[0].estimates[0].value, 4)
    0.0053
    """
    return _compare_pairs([(arm, against) for arm in arms], options or CompareOptions(), notes)


def compare_before_after(
    before: Sequence[Score], after: Sequence[Score], margin: float, adapters: tuple[str, ...] = ()
) -> CompareReport:
    """Compare the scores (0 to 1) of a trained model with those of its base, paired by item.

    `adapters`: the arms that are known to be adapters, `trained` or none.
    """
    base = ScoreTable.from_scores(before, condition="base", fixed=True)
    trained = ScoreTable.from_scores(after, condition="trained")
    return compare_score_tables([trained], base, CompareOptions(margin=margin, scale=(0.0, 1.0), adapters=adapters))


def _compare_pairs(
    pairs: Sequence[tuple[ScoreTable, ScoreTable]], options: CompareOptions, notes: tuple[str, ...]
) -> CompareReport:
    """One report per pair. With k pairs the intervals are at 1 − alpha/k and p is multiplied by k (Bonferroni), so that
    p, interval and word agree, and all words together err with probability alpha at most.

    Holm's steps would spare some power but do not cover words with a direction and a size: its proof needs a comparison
    that was rejected to be done with, and here it may still be called better by too much.
    """
    k = len(pairs)
    reports = tuple(_report(a, b, options, k) for a, b in pairs)
    correction = f"{k} comparisons: intervals at 1 − alpha/{k}, p times {k} (Bonferroni)" if k > 1 else ""
    return CompareReport(reports, notes, correction)


def _report(a: ScoreTable, b: ScoreTable, options: CompareOptions, k: int) -> ComparisonReport:
    """The report of one of k comparisons."""
    margin, alpha = options.margin, options.alpha / k
    inner = PairOptions(
        draws=options.draws,
        seed=options.seed,
        scale=options.scale,
        missing=options.missing,
        equal_seed_spread=options.equal_seed_spread,
        shared_seeds=options.shared_seeds,
    )
    decided = rule.decide_tables(a, b, inner, margin, alpha)
    comparison, pair = decided.comparison, decided.comparison.pair
    headline = comparison.headline
    estimates = tuple(
        comparison.estimate(1 - alpha, e)
        for e in (headline.estimand, *(e for e in comparison.results if e != headline.estimand))
    )
    shown = estimates[0] if decided.decision.word != "equivalent" else comparison.estimate(1 - 2 * alpha)
    text = _Sentences(decided, shown, margin, options.adapters, options.zone)
    demand = options.demand and judge_demand(check_demand(options.demand, margin), a, b, decided, inner)
    return ComparisonReport(
        a=text.a,
        b=text.b,
        eval=pair.a.eval,
        n=pair.n,
        estimates=estimates,
        decision=decided.decision.word,
        reason=decided.decision.reason,
        margin=margin,
        alpha=alpha,
        p_corrected=min(1.0, k * headline.spread.p()) if k > 1 else None,
        detectable=power.detectable_in(comparison, alpha=alpha),
        for_margin=power.to_settle(comparison, [(margin, False)], alpha=alpha) if margin else None,
        for_equivalence=power.to_settle(comparison, [(margin, True)], alpha=alpha) if margin else None,
        reachable_equivalence=None if margin is None else power.can_show_equivalence(comparison, margin, alpha=alpha),
        flipped=_flipped(pair, named=not options.counts),
        may_write=text.may_write(),
        may_not=text.may_not(),
        details=_details(a, b, decided, inner),
        warnings=(*estimates[0].warnings, *_own_warnings(pair, options)),
        frozen_rule=rule.frozen_rule_tables(a, b, inner, options.rule, comparison) if options.rule else None,
        metric=pair.a.metric or pair.b.metric,
        higher_is_better=pair.higher_is_better,
        withheld=decided.withheld,
        n_lost=lost.n_lost(a, b),
        memorisation=wording.memorisation(pair.a.zone_N, zone=None),
        chance_again=_chance_again(decided),
        demand=demand or None,
        strata=_strata(pair, inner, alpha),
        zone=options.zone,
    )


def _strata(pair: Pair, inner: PairOptions, alpha: float) -> tuple[Stratum, ...]:
    """Each task of a pooled eval compared alone, at the level of the whole; empty where nothing was pooled."""
    names = pair.a.stratum_N
    if names is None:
        return ()
    place_b = {item: i for i, item in enumerate(pair.b.items)}
    strata = []
    for name in dict.fromkeys(names):
        index_N = np.array([i for i, other in enumerate(names) if other == name])
        other_N = np.array([place_b[pair.a.items[i]] for i in index_N])
        mean_a, mean_b = (float(x_S_N[:, index_N].mean()) for x_S_N in (pair.score_a_S_N, pair.score_b_S_N))
        low, high = None, None
        with suppress(ScoreError):  # a task without a single score has no interval of its own
            estimate = compare_tables(
                pair.a.take(index_N), pair.b.take(other_N), replace(inner, scale=pair.scale)
            ).estimate(1 - alpha)
            low, high = estimate.low, estimate.high
        strata.append(Stratum(str(name), len(index_N), mean_a, mean_b, mean_a - mean_b, low, high))
    return tuple(strata)


def _chance_again(decided: Decided) -> float | None:
    """The chance that another comparison of this design comes to the same kind of decision at the gap as observed."""
    word, margin, comparison = decided.decision.word, decided.decision.margin or 0.0, decided.comparison
    if word == "inconclusive":
        return None
    if word == "equivalent":
        return power.chance_again(comparison, margin, alpha=decided.alpha, equivalence=True)
    edge = margin if word.endswith("by the margin") else 0.0
    return power.chance_again(comparison, abs(comparison.gap) - edge, alpha=decided.alpha)


def _details(a: ScoreTable, b: ScoreTable, decided: Decided, inner: PairOptions) -> dict[str, JsonLike]:
    """The comparison's own details, with what missing scores could make of it: all of them, and those lost."""
    details = dict(decided.comparison.details)
    inside = decided.decision.equivalence_interval
    if decided.decision.margin is not None and inside is not None:
        details["equivalence_interval"] = {"level": 1 - 2 * decided.alpha, "low": inside[0], "high": inside[1]}
    if a.n_missing or b.n_missing:
        margin, alpha = decided.decision.margin, decided.alpha
        bounds = rule.missing_bounds(a, b, inner, margin, alpha)
        details["missing_bounds"] = [{"gap": d.comparison.gap, "decision": d.decision.word} for d in bounds]
    if decided.bounds:
        details["lost_bounds"] = [{"filling": f, "gap": gap, "decision": word} for f, gap, word in decided.bounds]
    return details


def _own_warnings(pair: Pair, options: CompareOptions) -> list[str]:
    warnings = []
    for reason in unknown_reasons([*pair.a.missing, *pair.b.missing]):
        warnings.append(f"missing for {reason!r}: a reason that is not known, so it counts as the machine's")
    spread = _families_across_tasks(pair)
    if spread:
        warnings.append(
            f"{many(spread, 'families', 'have')} items in several tasks: a label that only counts within a task is not "
            "one"
        )
    if options.counts and len(pair.a.runs) > 1:
        warnings.append(
            "counts do not tell which items the seeds share: they are lined up so that the same items flip, which "
            "gives the widest interval over new items"
        )
    return warnings


def _families_across_tasks(pair: Pair) -> int:
    """Families of a pooled eval that have items in more than one task."""
    if pair.family_N is None or pair.a.stratum_N is None:
        return 0
    tasks: dict[int, set[str | None]] = {}
    for family, task in zip(pair.family_N.tolist(), pair.a.stratum_N):
        tasks.setdefault(family, set()).add(task)
    return sum(len(names) > 1 for names in tasks.values())


def _flipped(pair: Pair, *, named: bool) -> Flipped:
    """Items by direction, the largest differences first (ties in file order)."""
    sign = -1 if pair.higher_is_better is False else 1
    items, gone = pair.a.items, lost.lost_items(pair.a, pair.b)
    gain_N = sign * pair.diff_N
    if gone:
        gain_N = np.where([item in gone for item in items], 0.0, gain_N)

    def first(side: int) -> tuple[int, tuple[str, ...]]:
        index = np.flatnonzero(side * gain_N > 0)
        order = np.argsort(-side * gain_N[index], kind="stable")[:_FLIPS_KEPT]
        return len(index), tuple(items[i] for i in index[order]) if named else ()

    (to_a, ids_a), (to_b, ids_b) = first(1), first(-1)
    return Flipped(to_a, to_b, ids_a, ids_b, len(gone))


@dataclass(frozen=True, slots=True)
class _Sentences:
    """What may be written of a decided comparison, and what may not."""

    decided: Decided
    estimate: Estimate
    margin: float | None
    adapters: Collection[str]
    zone: str | None = None

    @property
    def a(self) -> str:
        return self.decided.comparison.pair.a.condition or "A"

    @property
    def b(self) -> str:
        return self.decided.comparison.pair.b.condition or "B"

    def may_write(self) -> str:
        comparison, word = self.decided.comparison, self.decided.decision.word
        pair, b = comparison.pair, self.b
        zone = f"{self.zone} " if self.zone else ""
        where = f"on {pair.n} {zone}{noun(pair.n, 'items')} of {pair.a.eval or 'this eval'}"
        if pair.higher_is_better is False:
            where += f" ({pair.a.metric or pair.b.metric or 'score'}, lower is better)"
        gap = f"gap {wording.signed(comparison.gap)}, {wording.interval_text(self.estimate, self.margin)}"
        if comparison.headline.estimand == "recipe":
            gap += f", {wording.seed_counts(comparison)}"
        size = "" if self.margin is None else f"{self.margin:g}"
        turned = pair.higher_is_better is False
        higher, lower = (f"scores {way} than {b}, by how much is unresolved" for way in ("higher", "lower"))
        verbs: Mapping[rule.Word, str] = {
            "better by the margin": f"is better than {b} by more than {size}",
            "worse by the margin": f"is worse than {b} by more than {size}",
            "higher by the margin": f"scores higher than {b} by more than {size}",
            "lower by the margin": f"scores lower than {b} by more than {size}",
            "equivalent": f"is equivalent to {b} within ± {size}",
            "better, size unresolved": f"is better than {b}, by how much is unresolved" if turned else higher,
            "worse, size unresolved": f"is worse than {b}, by how much is unresolved" if turned else lower,
            "higher, size unresolved": higher,
            "lower, size unresolved": lower,
        }
        if word == "inconclusive":
            question = "is better" if turned else "scores higher"
            why = f" ({self.decided.withheld})" if self.decided.withheld else ""
            return f"Whether {self.a} or {b} {question} {where} stays open{why}: {gap}."
        who = wording.subject(comparison, adapter=self.a in self.adapters).capitalize()
        return f"{who} {self.a} {verbs[word]} {where}: {gap}."

    def may_not(self) -> tuple[str, ...]:
        comparison, a = self.decided.comparison, self.a
        pair, metric = comparison.pair, comparison.pair.a.metric or comparison.pair.b.metric
        out = [f"“{a} is better in general”: one eval was measured."]
        if pair.higher_is_better is None:
            what = metric or "these scores"
            out.append(f"“{a} is better”, “worse”: nothing says whether higher {what} is better (--lower-is-better).")
        untested = wording.memorisation(pair.a.zone_N, zone=None)
        if untested:
            out.append(wording.not_learned(a, untested))
        if comparison.headline.estimand != "recipe":
            noun = "adapters" if a in self.adapters else "systems"
            out.append(f"“the recipe {a}”: without several seeds a side the numbers speak of the {noun} at hand.")
        if self.decided.decision.word == "inconclusive":
            out.append(f"“{a} equals {self.b}”, “no difference”: a high p is not equality.")
        return tuple(out)

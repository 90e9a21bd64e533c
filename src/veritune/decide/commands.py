"""What `veritune compare` and `veritune power` do: from files to records, and the records as one screen of text.

Nothing here needs torch, pandas or polars; matplotlib is imported only for a plot.
"""

from __future__ import annotations

import glob
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from veritune.config.frozen_rule import check_rule
from veritune.decide import wording
from veritune.errors import InputError, ScoreError
from veritune.evaluate.imports import Reading, read, score_columns
from veritune.records import Estimate, Score
from veritune.stats import lost, power, rule
from veritune.stats.paired import ESTIMANDS, Options
from veritune.stats.reasons import unknown_reasons
from veritune.stats.rule import Decided
from veritune.stats.table import Columns, Counts, Missing, Pair, ScoreTable, tables_from_counts

_FLIPS_KEPT = 1000
_FLIPS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Side:
    """One arm: a name and its score files, one per seed unless a file names its runs. `fixed`: no seeds by nature.

    `system` is its column where the files are tables with one column per system.
    """

    name: str
    paths: tuple[Path, ...]
    fixed: bool = False
    system: str | None = None


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Settings of `compare`. `against` names the arm the others are compared with (the last one by default).

    `all_pairs` compares every arm with every other. `adapters` names the arms that are known to be adapters; of others
    the sentences say "system". `rule` is a frozen rule (`stats.rule.frozen_rule`). `counts` says that the tables were
    made from counts (`stats.table.tables_from_counts`), so that their items have no names. `equal_seed_spread` and
    `shared_seeds` are declared before the data (`stats.paired.Options`).
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

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ScoreError(f"expected alpha between 0 and 0.5, found {self.alpha!r}.")
        if self.rule is not None:
            check_rule(self.rule)
        if self.all_pairs and self.against is not None:
            raise ScoreError(
                "--all-pairs compares every side with every other, --against with one.", fix="Give one of them."
            )


@dataclass(frozen=True, slots=True)
class Flipped:
    """Items that moved: counts and the first ids in each direction (all seeds averaged).

    `to_a` counts items on which A is the better arm; the one with the higher score where the direction is unknown.
    Items of which the machine lost a score are left out and counted in `lost`.
    """

    to_a: int
    to_b: int
    ids_a: tuple[str, ...]
    ids_b: tuple[str, ...]
    lost: int = 0


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """One arm against another. `estimates` starts with the one the decision rests on; `level` is that of all.

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


@dataclass(frozen=True, slots=True)
class CompareReport:
    """All comparisons of one call; `notes` tells how each file was read, `correction` how alpha was shared."""

    comparisons: tuple[ComparisonReport, ...]
    notes: tuple[str, ...]
    correction: str = ""


# ---------------------------------------------------------------- reading the sides


_SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".eval"})


def parse_side(text: str, eval_name: str | None = None) -> Side:
    """A side from one argument: `path`, `name=path`, several seeds as `name=path1,path2`, a folder or a glob.

    A folder stands for its score files, a run's folder for those in its `scores`; `eval_name` picks one eval of them.
    """
    name, _, rest = text.rpartition("=") if "=" in text and not Path(text).exists() else ("", "", text)
    paths: list[Path] = []
    for part in [rest] if Path(rest).exists() else rest.split(","):
        found = [Path(part)]
        if any(c in part for c in "*?[") and not Path(part).exists():
            found = sorted(Path(p) for p in glob.glob(part))
            if not found:
                raise ScoreError(f"{part}: expected files that match, found none.")
        paths += [path for place in found for path in (_inside(place, eval_name) if place.is_dir() else [place])]
    return Side(name or Path(rest.split(",")[0]).stem, tuple(paths))


def read_sides(
    texts: Sequence[str], eval_name: str | None, fixed: Sequence[str], systems: str | None = None
) -> list[Side]:
    """The sides of the command line. `systems`: columns of wide tables, as `base,tuned`; `fixed`: sides without seeds.

    Raises ScoreError as `parse_side` and `wide_sides` do, InputError for a name in `fixed` that no side has.
    """
    if systems is not None:
        sides = wide_sides(texts, [name.strip() for name in systems.split(",")])
    else:
        sides = [parse_side(text, eval_name) for text in texts]
    unknown = sorted(set(fixed) - {side.name for side in sides})
    if unknown:
        names = ", ".join(side.name for side in sides)
        raise InputError(f"--fixed: no side is called {unknown[0]!r}.", fix=f"The sides are {names}; name one: a=FILE.")
    return [replace(side, fixed=side.name in fixed) for side in sides]


def wide_sides(texts: Sequence[str], systems: Sequence[str]) -> list[Side]:
    """One side per named column of tables with one column per system; several files are the seeds of each.

    Raises ScoreError for a name given twice, fewer than two, or a file argument that names a side of its own.
    """
    if len(systems) < 2 or len(set(systems)) < len(systems) or not all(systems):
        raise ScoreError(
            f"expected at least two different columns in --systems, found {', '.join(systems) or 'none'}.",
            fix="Name one column per system: --systems base,tuned.",
        )
    sides = [parse_side(text) for text in texts]
    named = [text for text, side in zip(texts, sides) if "=" in text and not Path(text).exists()]
    if not sides or named:
        raise ScoreError(
            f"expected files only, beside --systems, found {named[0] if named else 'none'}.",
            fix="veritune compare scores.csv --systems base,tuned",
        )
    paths = tuple(path for side in sides for path in side.paths)
    return [Side(name, paths, system=name) for name in systems]


def _inside(folder: Path, eval_name: str | None) -> list[Path]:
    """The score files of a folder. A .json beside the .jsonl of the same name is its stamp, not scores."""
    if (folder / "scores").is_dir():
        folder = folder / "scores"
    found = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES)
    found = [p for p in found if not (p.suffix == ".json" and p.with_suffix(".jsonl") in found)]
    if eval_name and any(p.stem == eval_name for p in found):
        found = [p for p in found if p.stem == eval_name]
    if not found:
        raise ScoreError(f"{folder}: expected score files in the folder, found none.")
    return found


def load_side(side: Side, reading: Reading | None = None, *, samples: bool = False) -> tuple[ScoreTable, list[str]]:
    """A side's score table and notes on how its files were read. Raises ScoreError as `read` and the table do."""
    if side.system is not None:
        reading = replace(reading or Reading(), system=side.system)
    parts = [read(path, reading) for path in side.paths]
    labels = [set(c.run) for c in parts]
    if len(parts) > 1 and sum(map(len, labels)) > len(set().union(*labels)):
        parts = [
            replace(c, run=[f"{path.parent.name}/{path.stem}:{run}" for run in c.run])
            for c, path in zip(parts, side.paths)
        ]
    columns = parts[0] if len(parts) == 1 else _joined(parts, side.name)
    notes = [f"{side.name}: {c.format}{''.join(f', {n}' for n in c.notes)}" for c in parts]
    table = ScoreTable.from_columns(columns, condition=side.name, fixed=side.fixed, samples=samples)
    return table, list(dict.fromkeys(notes))


def _joined(parts: Sequence[Columns], name: str) -> Columns:
    """Columns of several files, one after the other. A column that only some files have is an error."""
    evals = {c.eval for c in parts} - {""}
    if len(evals) > 1:
        raise ScoreError(f"{name}: expected files of one eval, found {', '.join(sorted(evals))}.")
    metrics = {(c.metric, c.higher_is_better) for c in parts}
    if len(metrics) > 1:
        words = sorted(f"{m or 'no name'} ({_DIRECTIONS[up]})" for m, up in metrics)
        raise ScoreError(f"{name}: expected files of one metric and direction, found {', '.join(words)}.")
    for column in ("family", "zone", "sample", "rater"):
        have = sum(len(getattr(c, column)) > 0 for c in parts)
        if 0 < have < len(parts):
            raise ScoreError(f"{name}: expected the column {column} in all {len(parts)} files, found it in {have}.")

    def joined(column: str) -> list[Any]:
        if not any(len(getattr(c, column)) for c in parts):
            return []
        return [x for c in parts for x in (getattr(c, column) or [None] * len(c.item))]

    return Columns(
        eval="".join(evals),
        run=joined("run"),
        item=joined("item"),
        value=joined("value"),
        reason=joined("reason"),
        family=joined("family"),
        zone=joined("zone"),
        sample=joined("sample"),
        rater=joined("rater"),
        content=joined("content"),
        metric=parts[0].metric,
        higher_is_better=parts[0].higher_is_better,
    )


_DIRECTIONS = {True: "higher is better", False: "lower is better", None: "direction unknown"}


# ---------------------------------------------------------------- compare


def compare(sides: Sequence[Side], options: CompareOptions | None = None) -> CompareReport:
    """Compare score files. Raises ScoreError for what cannot be compared, naming files, items and lines."""
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
    for what, asked in (("against", [options.against] if options.against else []), ("adapter", options.adapters)):
        unknown = [name for name in asked if name not in names]
        if unknown:
            raise ScoreError(f"--{what}: expected one of {', '.join(names)}; found {unknown[0]!r}.")
    loaded = [load_side(s, options.reading, samples=options.samples) for s in sides]
    tables = [table.in_zone(options.zone) for table, _ in loaded]
    notes = tuple(note for _, lines in loaded for note in lines)
    return compare_many(tables, options, notes)


def _second_side(sides: Sequence[Side]) -> str:
    """What to do about a single side: perhaps the file has one column per system."""
    path = sides[0].paths[0] if sides else None
    columns = score_columns(path) if path is not None else []
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


def parse_rule(text: str) -> dict[str, Any]:
    """A frozen rule from `min_gap=0.01` or `min_gap=0.01,every_seed`. Raises ScoreError for anything else."""
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (x.strip() for x in part.partition("="))
        if key in found:
            raise ScoreError(f"--rule {text!r}: {key} is given twice.")
        if key == "every_seed" and value in ("", "true"):
            found[key] = True
            continue
        try:
            found[key] = float(value) if equals else None
        except ValueError:
            found[key] = value
    try:
        check_rule(found)
    except ScoreError as exc:
        raise ScoreError(f"--rule {text!r}: {exc.message}", fix="Write --rule min_gap=0.01[,every_seed].") from exc
    return found


def compare_counts(
    texts: Sequence[str], names: Sequence[str], options: CompareOptions, also: Mapping[str, object]
) -> CompareReport:
    """`compare` for 2×2 counts, one text `only A,only B,both,neither` per seed. `names` are none or both sides'.

    Raises ScoreError for counts that are none, and for an option that counts cannot honour; `also` maps options that
    the caller took to their values.
    """
    reading = options.reading
    unread = {k: getattr(reading, k) for k in ("metric", "filter", "id", "family", "run", "rater", "sample")}
    unread |= {"zone": options.zone, "scale": options.scale, **also}
    asked = sorted(name for name, value in unread.items() if value)
    if asked:
        raise ScoreError(f"--{asked[0]} does not apply to counts (--table).", fix=f"Leave --{asked[0]} out.")
    if len(names) not in (0, 2):
        raise ScoreError(
            f"expected no names or two beside --table, found {len(names)}.", fix="--table 54,47,1139,79 tuned base"
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
    """Each arm against one other table."""
    return _compare_pairs([(arm, against) for arm in arms], options or CompareOptions(), notes)


def compare_before_after(
    before: Sequence[Score], after: Sequence[Score], margin: float, adapters: tuple[str, ...] = ()
) -> CompareReport:
    """Scores (0 to 1) of a trained model against those of its base, paired by item.

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
    inner = Options(
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
    text = _Sentences(decided, estimates[0], margin, options.adapters)
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
    )


def _chance_again(decided: Decided) -> float | None:
    """The chance that another comparison of this design comes to the same kind of decision at the gap as observed."""
    word, margin, comparison = decided.decision.word, decided.decision.margin or 0.0, decided.comparison
    if word == "inconclusive":
        return None
    if word == "equivalent":
        return power.chance_again(comparison, margin, alpha=decided.alpha, equivalence=True)
    edge = margin if word.endswith("by the margin") else 0.0
    return power.chance_again(comparison, abs(comparison.gap) - edge, alpha=decided.alpha)


def _details(a: ScoreTable, b: ScoreTable, decided: Decided, inner: Options) -> dict[str, Any]:
    """The comparison's own details, with what missing scores could make of it: all of them, and those lost."""
    details = dict(decided.comparison.details)
    if a.n_missing or b.n_missing:
        margin, alpha = decided.decision.margin, decided.alpha
        bounds = rule.missing_bounds(a, b, inner, margin, alpha)
        details["missing_bounds"] = [{"gap": d.comparison.gap, "decision": d.decision.word} for d in bounds]
    if decided.bounds:
        details["lost_bounds"] = [{"filling": f, "gap": gap, "decision": word} for f, gap, word in decided.bounds]
    return details


def _own_warnings(pair: Pair, options: CompareOptions) -> list[str]:
    found = []
    for reason in unknown_reasons([*pair.a.missing, *pair.b.missing]):
        found.append(f"missing for {reason!r}: a reason that is not known, so it counts as the machine's")
    if options.counts and len(pair.a.runs) > 1:
        found.append(
            "counts do not tell which items the seeds share: they are lined up so that the same items flip, which "
            "gives the widest interval over new items"
        )
    return found


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

    @property
    def a(self) -> str:
        return self.decided.comparison.pair.a.condition or "A"

    @property
    def b(self) -> str:
        return self.decided.comparison.pair.b.condition or "B"

    def may_write(self) -> str:
        comparison, word = self.decided.comparison, self.decided.decision.word
        pair, b = comparison.pair, self.b
        where = f"on {pair.n} items of {pair.a.eval or 'this eval'}"
        if pair.higher_is_better is False:
            where += f" ({pair.a.metric or pair.b.metric or 'score'}, lower is better)"
        gap = f"gap {wording.signed(comparison.gap)}, {wording.interval_text(self.estimate)}"
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


# ---------------------------------------------------------------- one screen of text


def render_text(report: CompareReport) -> str:
    """The report as plain text, about one screen per comparison; with several, one line each at the end."""
    blocks = [_render(c) for c in report.comparisons]
    if len(report.comparisons) > 1:
        blocks.append("\n".join([*_summary(report.comparisons), f"{report.correction}."]))
    return "\n\n".join(blocks)


def _summary(comparisons: Sequence[ComparisonReport]) -> list[str]:
    names = [f"{c.a} − {c.b}" for c in comparisons]
    width = max(map(len, names))
    return [
        f"{name:<{width}}  {wording.signed(c.estimates[0].value or 0.0)}  {c.decision}"
        for name, c in zip(names, comparisons)
    ]


def _line(label: str, text: str) -> str:
    return f"{label:<12} {text}"


def _render(c: ComparisonReport) -> str:
    binary = "tables" in c.details
    width = max(len(c.a), len(c.b))
    lines = [
        f"A  {c.a:<{width}}  {wording.rate_text(c.details['a'], binary=binary)}{_arm_note(c.details['a'])}",
        f"B  {c.b:<{width}}  {wording.rate_text(c.details['b'], binary=binary)}{_arm_note(c.details['b'])}",
        "",
    ]
    lines += _render_tables(c)
    lines += _render_estimates(c)
    margin = "" if c.margin is None else f" at a margin of {c.margin:g}"
    lines.append(_line("decision", f"{c.decision}{margin}: {c.reason}"))
    lines += _render_direction(c)
    if c.frozen_rule:
        lines.append(_line("frozen rule", wording.rule_text(c.frozen_rule, c.a, c.b)))
    if c.detectable is not None:
        lines.append(_line("detectable", f"{wording.number(c.detectable)}, the smallest gap seen with 80 % power"))
    if c.chance_again is not None and c.chance_again < 0.5:
        again = f"another study of this design would settle a gap of this size in {c.chance_again:.0%} of cases"
        lines.append(_line("", again))
    lines += _render_needed(c)
    to = "higher in" if c.higher_is_better is None else "to"
    left = f"; {c.flipped.lost} with a lost score not counted" if c.flipped.lost else ""
    lines.append(_line("flipped", f"{c.flipped.to_a} {to} A{_ids(c.flipped.ids_a, c.flipped.to_a)}"))
    lines.append(_line("", f"{c.flipped.to_b} {to} B{_ids(c.flipped.ids_b, c.flipped.to_b)}{left}"))
    for bound, name in zip(c.details.get("missing_bounds", ()), ("worst", "best")):
        text = f"gap {wording.signed(bound['gap'])}, {bound['decision']}, if every missing score were {name} for A"
        lines.append(_line("missing", text))
    models = sum(sum(m.values()) for side in "ab" for m in c.details[side]["missing"]) - c.n_lost
    for bound in c.details.get("lost_bounds", ()):
        if models and bound["filling"] in ("worst", "best"):
            text = f"gap {wording.signed(bound['gap'])}, {bound['decision']}, if every lost score were"
            lines.append(_line("lost", f"{text} {bound['filling']} for A"))
    lines += [_line("warning", w) for w in c.warnings]
    if c.memorisation:
        lines.append(_line("memorised?", f"not tested: {c.memorisation}"))
    lines.append(_line("may write", c.may_write))
    lines += [_line("may not", text) for text in c.may_not]
    return "\n".join(lines)


def _render_direction(c: ComparisonReport) -> list[str]:
    """The metric's direction, where it is not simply that higher is better."""
    name = c.metric or "these scores"
    if c.higher_is_better is None:
        return [_line("direction", f"unknown for {name}: --higher-is-better or --lower-is-better states it")]
    return [] if c.higher_is_better else [_line("direction", f"{name}: lower is better")]


def _arm_note(arm: Mapping[str, Any]) -> str:
    samples = arm.get("samples")
    if not samples:
        return ""
    low, high = samples["per_item_min"], samples["per_item_max"]
    note = f"  {low if low == high else f'{low} to {high}'} samples an item, {samples['failed']} failed"
    raters = samples.get("rater_agreement")
    if raters:
        alpha = "undefined" if raters["alpha"] is None else f"{raters['alpha']:.3f}"
        note += f", {raters['raters']} raters, Krippendorff alpha {alpha}"
    return note


def _render_tables(c: ComparisonReport) -> list[str]:
    tables = c.details.get("tables") or []
    if not tables:
        return []
    if len(tables) == 1:
        t = tables[0]
        one, zero = ("right", "wrong") if c.higher_is_better else ("1", "0")
        return [
            f"{'':<12} {f'B {one}':>9} {f'B {zero}':>9}",
            f"{f'A {one}':<12} {t['both']:>9} {t['only_a']:>9}",
            f"{f'A {zero}':<12} {t['only_b']:>9} {t['neither']:>9}",
            "",
        ]
    names = [f"{t['run_a']} / {t['run_b']}" for t in tables[:8]]
    width = max(len("run A / run B"), *map(len, names))
    lines = [f"{'run A / run B':<{width}} {'only A':>7} {'only B':>7} {'both':>7} {'neither':>7}  mid-p"]
    for name, t in zip(names, tables):
        lines.append(
            f"{name:<{width}} {t['only_a']:>7} {t['only_b']:>7} {t['both']:>7} {t['neither']:>7}  "
            f"{wording.p_text(t['midp'])}"
        )
    if len(tables) > 8:
        lines.append(f"... and {len(tables) - 8} more runs")
    return [*lines, ""]


def _render_estimates(c: ComparisonReport) -> list[str]:
    first = c.estimates[0]
    lines = [_line("gap (A − B)", f"{wording.signed(first.value or 0.0)}   {wording.interval_text(first)}")]
    p = wording.p_text(first.p, first.p_floor)
    tables = c.details.get("tables") or []
    exact = f"; exact {wording.p_text(tables[0]['exact_p'])}" if first.p_method == "mid-p McNemar" else ""
    corrected = f"; corrected {wording.p_text(c.p_corrected)}" if c.p_corrected is not None else ""
    lines.append(_line("", f"{p} ({first.p_method}{exact}{corrected}); {first.method}"))
    lines.append(_line("scope", first.scope))
    names = {text: text for text in ESTIMANDS.values()}
    for other in c.estimates[1:]:
        scope = next((n for n in names if other.scope.startswith(n)), other.scope)
        lines.append(_line("", f"{scope}: {wording.interval_text(other)}, {wording.p_text(other.p, other.p_floor)}"))
    return lines


def _render_needed(c: ComparisonReport) -> list[str]:
    if c.margin is None:
        return [_line("margin", "none declared: no size can be claimed (--margin)")]
    lines: list[str] = []
    for found, what in ((c.for_margin, "a gap of the margin"), (c.for_equivalence, "equivalence at a true gap of 0")):
        if found is not None:
            lines.append(_line("" if lines else "to settle", f"{what} (80 % power): {found.text}"))
    if c.reachable_equivalence is False:
        lines.append(_line("", "with these items “equivalent” cannot be reached, not even by identical outputs"))
    return lines


def _ids(ids: Sequence[str], total: int) -> str:
    if not ids:
        return ""
    shown = ", ".join(ids[:_FLIPS_SHOWN])
    return f": {shown}" + (f", … ({total - _FLIPS_SHOWN} more)" if total > _FLIPS_SHOWN else "")

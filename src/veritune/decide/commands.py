"""What `veritune compare` and `veritune power` do: from files to records, and the records as one screen of text.

Nothing here needs torch, pandas or polars; matplotlib is imported only for a plot.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from veritune.decide import wording
from veritune.errors import ScoreError
from veritune.evaluate.imports import Reading, read
from veritune.records import Estimate
from veritune.stats import power, rule
from veritune.stats.paired import ESTIMANDS, Comparison, Options, compare_tables
from veritune.stats.table import Columns, Floats, Missing, ScoreTable

_FLIPS_KEPT = 1000
_FLIPS_SHOWN = 6


@dataclass(frozen=True, slots=True)
class Side:
    """One arm: a name and its score files, one per seed unless a file names its runs. `fixed`: no seeds by nature."""

    name: str
    paths: tuple[Path, ...]
    fixed: bool = False


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """Settings of `compare`. `against` names the arm the others are compared with (the last one by default)."""

    margin: float | None = None
    alpha: float = 0.05
    against: str | None = None
    zone: str | None = None
    samples: bool = False
    reading: Reading = field(default_factory=Reading)
    scale: tuple[float, float] | None = None
    missing: Missing = field(default_factory=Missing)
    draws: int = 99_999
    seed: int = 0
    rule: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 0.5:
            raise ScoreError(f"expected alpha between 0 and 0.5, found {self.alpha!r}.")


@dataclass(frozen=True, slots=True)
class Flipped:
    """Items that moved: counts and the first ids in each direction (all seeds averaged)."""

    to_a: int
    to_b: int
    ids_a: tuple[str, ...]
    ids_b: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparisonReport:
    """One arm against another. `estimates` starts with the one the decision rests on; `level` is that of all."""

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
    items_for_margin: int | None
    items_for_equivalence: int | None
    reachable_equivalence: bool | None
    flipped: Flipped
    may_write: str
    may_not: tuple[str, ...]
    details: Mapping[str, Any]
    warnings: tuple[str, ...]
    frozen_rule: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CompareReport:
    """All comparisons of one call; `notes` tells how each file was read."""

    comparisons: tuple[ComparisonReport, ...]
    notes: tuple[str, ...]


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
    evals = {c.eval for c in parts if c.format in ("scores", "inspect", "lm-eval")}
    if len(evals) > 1:
        raise ScoreError(f"{name}: expected files of one eval, found {', '.join(sorted(evals))}.")
    for column in ("family", "zone", "sample", "rater"):
        have = sum(len(getattr(c, column)) > 0 for c in parts)
        if 0 < have < len(parts):
            raise ScoreError(f"{name}: expected the column {column} in all {len(parts)} files, found it in {have}.")

    def joined(column: str) -> list[Any]:
        if not any(len(getattr(c, column)) for c in parts):
            return []
        return [x for c in parts for x in (getattr(c, column) or [None] * len(c.item))]

    return Columns(
        eval=parts[0].eval,
        run=joined("run"),
        item=joined("item"),
        value=joined("value"),
        reason=joined("reason"),
        family=joined("family"),
        zone=joined("zone"),
        sample=joined("sample"),
        rater=joined("rater"),
        content=joined("content"),
    )


# ---------------------------------------------------------------- compare


def compare(sides: Sequence[Side], options: CompareOptions | None = None) -> CompareReport:
    """Compare score files. Raises ScoreError for what cannot be compared, naming files, items and lines."""
    options = options or CompareOptions()
    if len(sides) < 2:
        raise ScoreError(f"expected at least two sides to compare, found {len(sides)}.")
    names = [s.name for s in sides]
    if len(set(names)) < len(names):
        sides = [replace(s, name=_distinct(s)) for s in sides]
        names = [s.name for s in sides]
        if len(set(names)) < len(names):
            raise ScoreError(
                f"expected sides with different names, found {', '.join(names)}.", fix="Name them: a=PATH b=PATH."
            )
    against = options.against or names[-1]
    if against not in names:
        raise ScoreError(f"expected `against` to be one of {', '.join(names)}; found {against!r}.")
    loaded = [load_side(s, options.reading, samples=options.samples) for s in sides]
    tables = {name: table.in_zone(options.zone) for name, (table, _) in zip(names, loaded)}
    notes = tuple(note for _, lines in loaded for note in lines)
    return compare_score_tables([t for name, t in tables.items() if name != against], tables[against], options, notes)


def _distinct(side: Side) -> str:
    """A name from the folder as well, for files that are called the same."""
    return f"{side.paths[0].parent.name}/{side.name}"


def compare_score_tables(
    arms: Sequence[ScoreTable],
    against: ScoreTable,
    options: CompareOptions | None = None,
    notes: tuple[str, ...] = (),
) -> CompareReport:
    """`compare` for tables in memory. With k arms the intervals are at 1 − alpha/k and p is multiplied by k
    (Bonferroni), so that p, interval and decision agree."""
    options = options or CompareOptions()
    inner = Options(draws=options.draws, seed=options.seed, scale=options.scale, missing=options.missing)
    comparisons = [compare_tables(arm, against, inner) for arm in arms]
    corrected: list[float | None] = [None] * len(arms)
    if len(arms) > 1:
        corrected = [min(1.0, len(arms) * c.headline.spread.p()) for c in comparisons]
    alpha = options.alpha / len(arms)
    return CompareReport(tuple(_report(c, p, alpha, options, inner) for c, p in zip(comparisons, corrected)), notes)


def _report(
    comparison: Comparison, p_corrected: float | None, alpha: float, options: CompareOptions, inner: Options
) -> ComparisonReport:
    pair, margin = comparison.pair, options.margin
    decision = rule.decide(comparison, margin, alpha)
    first = comparison.headline.estimand
    estimands = [first, *(e for e in comparison.results if e != first)]
    estimates = tuple(comparison.estimate(1 - alpha, e) for e in estimands)
    low, high = comparison.headline.spread.interval(1 - 2 * alpha)
    reachable = None if margin is None or comparison.headline.se is None else (high - low) / 2 < margin
    details = dict(comparison.details)
    if pair.a.n_missing or pair.b.n_missing:
        bounds = (replace(inner, missing=Missing(p)) for p in ("worst", "best"))
        found = [compare_tables(pair.a, pair.b, o) for o in bounds]
        details["missing_bounds"] = [{"gap": c.gap, "decision": rule.decide(c, margin, alpha).word} for c in found]
    return ComparisonReport(
        a=pair.a.condition or "A",
        b=pair.b.condition or "B",
        eval=pair.a.eval,
        n=pair.n,
        estimates=estimates,
        decision=decision.word,
        reason=decision.reason,
        margin=margin,
        alpha=alpha,
        p_corrected=p_corrected,
        detectable=power.detectable_in(comparison, alpha=alpha),
        items_for_margin=power.items_to_settle(comparison, margin, alpha=alpha) if margin else None,
        items_for_equivalence=(
            power.items_to_settle(comparison, margin, alpha=alpha, equivalence=True) if margin else None
        ),
        reachable_equivalence=reachable,
        flipped=_flipped(pair.diff_N, pair.a.items),
        may_write=_may_write(comparison, estimates[0], decision, margin),
        may_not=_may_not(comparison, decision),
        details=details,
        warnings=estimates[0].warnings,
        frozen_rule=rule.frozen_rule(comparison, options.rule) if options.rule else None,
    )


def _flipped(diff_N: Floats, items: Sequence[str]) -> Flipped:
    """Items by direction, the largest differences first (ties in file order)."""

    def first(sign: int) -> tuple[int, tuple[str, ...]]:
        index = np.flatnonzero(sign * diff_N > 0)
        order = np.argsort(-sign * diff_N[index], kind="stable")[:_FLIPS_KEPT]
        return len(index), tuple(items[i] for i in index[order])

    (to_a, ids_a), (to_b, ids_b) = first(1), first(-1)
    return Flipped(to_a, to_b, ids_a, ids_b)


def _may_write(comparison: Comparison, estimate: Estimate, decision: rule.Decision, margin: float | None) -> str:
    a, b = comparison.pair.a.condition or "A", comparison.pair.b.condition or "B"
    where = f"on {comparison.pair.n} items of {comparison.pair.a.eval or 'this eval'}"
    gap = f"gap {wording.signed(comparison.gap)}, {wording.interval_text(estimate)}"
    who = f"{wording.subject(comparison).capitalize()} {a}"
    size = "" if margin is None else f"{margin:g}"
    verbs = {
        "better by the margin": f"is better than {b} by more than {size}",
        "worse by the margin": f"is worse than {b} by more than {size}",
        "equivalent": f"is equivalent to {b} within ± {size}",
        "better, size unresolved": f"scores higher than {b}, by how much is unresolved",
        "worse, size unresolved": f"scores lower than {b}, by how much is unresolved",
    }
    if decision.word == "inconclusive":
        return f"Whether {a} or {b} scores higher {where} stays open: {gap}."
    return f"{who} {verbs[decision.word]} {where}: {gap}."


def _may_not(comparison: Comparison, decision: rule.Decision) -> tuple[str, ...]:
    a, b = comparison.pair.a.condition or "A", comparison.pair.b.condition or "B"
    out = [f"“{a} is better in general”: one eval was measured."]
    if comparison.headline.estimand != "recipe":
        out.append(f"“the recipe {a}”: without several seeds a side the numbers speak of adapters.")
    if decision.word == "inconclusive":
        out.append(f"“{a} equals {b}”, “no difference”: a high p is not equality.")
    return tuple(out)


# ---------------------------------------------------------------- one screen of text


def render_text(report: CompareReport) -> str:
    """The report as plain text, about one screen per comparison."""
    blocks = [_render(c) for c in report.comparisons]
    if len(report.comparisons) > 1:
        k = len(report.comparisons)
        blocks.append(f"{k} comparisons: intervals at 1 − alpha/{k}, p times {k} (Bonferroni).")
    return "\n\n".join(blocks)


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
    lines += _render_tables(c.details)
    lines += _render_estimates(c)
    margin = "" if c.margin is None else f" at a margin of {c.margin:g}"
    lines.append(_line("decision", f"{c.decision}{margin}: {c.reason}"))
    if c.frozen_rule:
        winner = {"a": c.a, "b": c.b, None: "no winner"}[c.frozen_rule["winner"]]
        lines.append(_line("frozen rule", f"{c.frozen_rule['rule']}: {winner}"))
    if c.detectable is not None:
        lines.append(_line("detectable", f"{wording.number(c.detectable)}, the smallest gap seen with 80 % power"))
    lines += _render_needed(c)
    lines.append(_line("flipped", f"{c.flipped.to_a} to A{_ids(c.flipped.ids_a, c.flipped.to_a)}"))
    lines.append(_line("", f"{c.flipped.to_b} to B{_ids(c.flipped.ids_b, c.flipped.to_b)}"))
    for bound, name in zip(c.details.get("missing_bounds", ()), ("worst", "best")):
        text = f"gap {wording.signed(bound['gap'])}, {bound['decision']}, if every missing score were {name} for A"
        lines.append(_line("missing", text))
    lines += [_line("warning", w) for w in c.warnings]
    lines.append(_line("may write", c.may_write))
    lines += [_line("may not", text) for text in c.may_not]
    return "\n".join(lines)


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


def _render_tables(details: Mapping[str, Any]) -> list[str]:
    tables = details.get("tables") or []
    if not tables:
        return []
    if len(tables) == 1:
        t = tables[0]
        return [
            f"{'':<12} {'B right':>9} {'B wrong':>9}",
            f"{'A right':<12} {t['both']:>9} {t['only_a']:>9}",
            f"{'A wrong':<12} {t['only_b']:>9} {t['neither']:>9}",
            "",
        ]
    lines = [f"{'run A / run B':<24} {'only A':>7} {'only B':>7} {'both':>7} {'neither':>7}  mid-p"]
    for t in tables[:8]:
        name = f"{t['run_a']} / {t['run_b']}"[-24:]
        lines.append(
            f"{name:<24} {t['only_a']:>7} {t['only_b']:>7} {t['both']:>7} {t['neither']:>7}  "
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
    flips = c.details.get("family_sign_flip")
    if flips:
        lines.append(_line("", f"{wording.p_text(flips['p'], flips['p_floor'])} (sign flips of whole families)"))
    lines.append(_line("scope", first.scope))
    names = {text: text for text in ESTIMANDS.values()}
    for other in c.estimates[1:]:
        scope = next((n for n in names if other.scope.startswith(n)), other.scope)
        lines.append(_line("", f"{scope}: {wording.interval_text(other)}, {wording.p_text(other.p, other.p_floor)}"))
    return lines


def _render_needed(c: ComparisonReport) -> list[str]:
    if c.margin is None:
        return [_line("margin", "none declared: no size can be claimed (--margin)")]
    parts = []
    for n, what in (
        (c.items_for_margin, "a gap of the margin"),
        (c.items_for_equivalence, "equivalence if the true gap is 0"),
    ):
        parts.append(f"about {n:,} items for {what}" if n is not None else f"no number of items for {what}: add seeds")
    lines = [_line("to settle", "; ".join(parts) + " (80 % power)")] if c.detectable is not None else []
    if c.reachable_equivalence is False:
        lines.append(_line("", "with these items and seeds “equivalent” cannot be reached, whatever comes out"))
    return lines


def _ids(ids: Sequence[str], total: int) -> str:
    if not ids:
        return ""
    shown = ", ".join(ids[:_FLIPS_SHOWN])
    return f": {shown}" + (f", … ({total - _FLIPS_SHOWN} more)" if total > _FLIPS_SHOWN else "")


# ---------------------------------------------------------------- power


@dataclass(frozen=True, slots=True)
class PowerReport:
    """Prospects of a design, and the grid behind the plot of detectable gap against items and seeds."""

    plans: tuple[power.Plan, ...]
    grid: tuple[Mapping[str, Any], ...]
    pilot: str = ""


def plan_power(
    design: power.Design, *, items: Sequence[int] = (), seeds: Sequence[int] = (), pilot: str = ""
) -> PowerReport:
    """A design's prospects; the grid runs from a quarter to sixteen times its items and over 1, 2, 3 and 5 seeds."""
    items = items or sorted({max(20, round(design.items * f)) for f in (0.25, 0.5, 1, 2, 4, 8, 16)})
    seeds = seeds or sorted({1, 2, 3, 5, design.seeds_a})
    return PowerReport(power.plan(design), tuple(power.detectable_grid(design, items, seeds)), pilot)


def plan_from_scores(a: Side, b: Side, options: CompareOptions | None = None) -> PowerReport:
    """A plan from pilot scores: discordance, seed spread and design effect are estimated from them."""
    options = options or CompareOptions()
    one, two = (load_side(s, options.reading, samples=options.samples)[0].in_zone(options.zone) for s in (a, b))
    comparison = compare_tables(one, two, Options(scale=options.scale, missing=options.missing))
    design = power.design_from(comparison, margin=options.margin, alpha=options.alpha)
    return plan_power(design, pilot=f"pilot: {comparison.scope}")


def render_power(report: PowerReport) -> str:
    """The plan as plain text, with the grid as a table."""
    design = report.plans[0].design
    arms = f"{design.seeds_a} seed{'s' if design.seeds_a > 1 else ''} of A, " + (
        f"{design.seeds_b} of B" if design.seeds_b else "B fixed"
    )
    lines = [
        f"{design.items:,} items, {arms}, discordance {wording.number(design.discordance)}, seed SD "
        f"{wording.number(design.seed_sd)}"
        + (f", design effect {design.design_effect:.2f}" if design.design_effect != 1 else "")
        + f", alpha {design.alpha:g}, power {100 * design.power:g} %",
    ]
    if report.pilot:
        lines.append(report.pilot)
    for plan in report.plans:
        if len(report.plans) > 1:
            lines += ["", "if seeds flip other items:" if plan.stable == 0 else "if seeds flip the same items:"]
        lines += [f"  {s}" for s in plan.sentences]
    lines += ["", "smallest detectable gap, items down, seeds across:"]
    for stable in sorted({row["stable"] for row in report.grid}):
        lines += _grid_table([row for row in report.grid if row["stable"] == stable], stable, design)
    return "\n".join(lines)


def _grid_table(rows: Sequence[Mapping[str, Any]], stable: float, design: power.Design) -> list[str]:
    seeds = sorted({row["seeds"] for row in rows})
    cells = {(row["items"], row["seeds"]): row["detectable"] for row in rows}
    title = f"  share of flips that repeat over seeds: {stable:g}" if design.stable is None else ""
    lines = [title] if title else []
    lines.append(f"{'items':>10} " + " ".join(f"{s:>8}" for s in seeds))
    for n in sorted({row["items"] for row in rows}):
        values = (cells.get((n, s)) for s in seeds)
        lines.append(f"{n:>10,} " + " ".join(f"{'' if v is None else wording.number(v):>8}" for v in values))
    return lines


def plot_power(report: PowerReport, path: str | Path) -> None:
    """Detectable gap against items, one line per number of seeds, the margin dashed. The suffix picks the format."""
    from matplotlib.figure import Figure

    design = report.plans[0].design
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.add_subplot()
    for stable, style in ((0.0, "-"), (1.0, "--")) if design.stable is None else ((design.stable, "-"),):
        for i, s in enumerate(sorted({row["seeds"] for row in report.grid})):
            rows = [r for r in report.grid if r["seeds"] == s and (r["stable"] == stable or s == 1)]
            label = f"{s} seed{'s' if s > 1 else ''}" if style == "-" else None
            axes.plot([r["items"] for r in rows], [r["detectable"] for r in rows], style, color=f"C{i}", label=label)
    if design.margin is not None:
        axes.axhline(design.margin, color="0.4", linestyle=":", label=f"margin {design.margin:g}")
    axes.axvline(design.items, color="0.8", linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="items", ylabel="smallest detectable gap (80 % power)")
    axes.legend(frameon=False)
    figure.savefig(path)

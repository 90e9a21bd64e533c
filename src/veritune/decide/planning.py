"""What `veritune power` does: a design's prospects from its numbers or from pilot scores, as text and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.counting import grouped, many
from veritune.decide import wording
from veritune.decide.commands import CompareOptions
from veritune.decide.sides import Side, load_side
from veritune.drawing import (
    DASHES,
    GRID,
    INK,
    MUTED,
    Drawing,
    Look,
    from_zero,
    legend_above,
    log_axis,
    look_of,
    panels,
    save_as,
    style,
)
from veritune.stats import power
from veritune.stats.paired import PairOptions, compare_tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class PowerReport:
    """What a design can detect, and the grid behind the plot of detectable gap against items and seeds.

    `plans` holds one `stats.power.Plan`, or two where it is not known whether seeds flip the same items. Counts of
    items and seeds are {low, high}: at the lower and the upper end of the seed spread, null where none is enough there.

    >>> PowerReport(plans=(), grid=()).pilot
    ''
    """

    plans: tuple[power.PowerPlan, ...]
    grid: tuple[Mapping[str, Any], ...]
    pilot: str = ""


def plan_power(
    design: power.Design, *, items: Sequence[int] = (), seeds: Sequence[int] = (), pilot: str = ""
) -> PowerReport:
    """What a design can detect; the grid runs from a quarter to sixteen times its items and over 1, 2, 3 and 5 seeds.

    Differences are in score units. docs/power.md has the formulas.

    >>> from veritune.stats import Design
    >>> report = plan_power(Design(items=1319, discordance=0.07))
    >>> round(report.plans[0].detectable, 3)
    0.02
    """
    items = items or sorted({max(20, round(design.items * f)) for f in (0.25, 0.5, 1, 2, 4, 8, 16)})
    seeds = seeds or sorted({1, 2, 3, 5, design.seeds_a})
    return PowerReport(power.plan(design), tuple(power.detectable_grid(design, items, seeds)), pilot)


@dataclass(frozen=True, slots=True)
class Declared:
    """What is assumed about the planned study besides its scores: the power to reach, and the declarations about its
    seeds.
    """

    power: float = 0.8
    equal_seed_spread: bool = False
    shared_seeds: bool = False


def plan_from_scores(
    a: Side, b: Side, options: CompareOptions | None = None, declared: Declared = Declared()
) -> PowerReport:
    """A plan from pilot scores, from which discordance, seed spread and design effect are estimated."""
    options = options or CompareOptions()
    one, two = (load_side(s, options.reading, samples=options.samples)[0].in_zone(options.zone) for s in (a, b))
    inner = PairOptions(
        scale=options.scale,
        missing=options.missing,
        equal_seed_spread=declared.equal_seed_spread,
        shared_seeds=declared.shared_seeds,
    )
    comparison = compare_tables(one, two, inner)
    design = power.design_from(comparison, margin=options.margin, alpha=options.alpha, power=declared.power)
    return plan_power(design, pilot=f"pilot: {comparison.scope}")


def render_power(report: PowerReport) -> str:
    """The plan as plain text, with the grid as a table."""
    design = report.plans[0].design
    lines = [_design_line(design)]
    if report.pilot:
        lines.append(report.pilot)
    for plan in report.plans:
        if len(report.plans) > 1:
            lines += ["", "if seeds flip other items:" if plan.stable == 0 else "if seeds flip the same items:"]
        lines += [f"  {s}" for s in plan.sentences]
    lines += ["", "smallest detectable gap, items down, seeds across (none: no gap on the score scale):"]
    shares = sorted({row["stable"] for row in report.grid})
    for stable in shares:
        lines += [f"  share of flips that repeat over seeds: {stable:g}"] if len(shares) > 1 else []
        lines += _grid_table([row for row in report.grid if row["stable"] == stable])
    return "\n".join(lines)


def _design_line(design: power.Design) -> str:
    arms = f"{many(design.seeds_a, 'seeds')} of A, "
    parts = [
        grouped(design.items, "items"),
        arms + (f"{design.seeds_b} of B" if design.seeds_b else "B fixed"),
        f"{'discordance' if design.binary else 'variance of a difference'} {wording.number(design.discordance)}",
        f"seed SD {wording.number(design.seed_sd)}",
    ]
    if design.seed_range is not None:
        low, high = design.seed_range
        parts[-1] += f" (80 % range {wording.number(low)} to {wording.number(high)})"
    if design.sizes is not None:
        parts.append(f"{many(len(design.sizes), 'families')}, design effect {design.design_effect:.2f}")
    parts += ["one seed spread for both arms" if design.equal_seed_spread else ""]
    parts += ["seeds shared by the arms" if design.shared_seeds else ""]
    parts.append(f"alpha {design.alpha:g}, power {100 * design.power:g} %")
    return ", ".join(part for part in parts if part)


def _grid_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    seeds = sorted({row["seeds"] for row in rows})
    cells = {(row["items"], row["seeds"]): row["detectable"] for row in rows}
    lines = [f"{'items':>10} " + " ".join(f"{s:>8}" for s in seeds)]
    for n in sorted({row["items"] for row in rows}):
        values = (cells.get((n, s)) for s in seeds)
        lines.append(f"{n:>10,} " + " ".join(f"{'none' if v is None else wording.number(v):>8}" for v in values))
    return lines


def plot_power(report: PowerReport, path: str | Path) -> None:
    """Draw the detectable gap against items, one line per number of seeds, the margin dotted; its CSV is written beside
    it.

    The suffix picks the format: .svg, .png or .pdf. Raises InputError for another.
    """
    with style():
        save_as(_power_drawing(report, Path(path).name), Path(path))


def _power_drawing(report: PowerReport, source: str) -> Drawing:
    design = report.plans[0].design
    figure, grid = panels(1, height=3.6)
    axes = grid[0][0]
    entries = _power_lines(axes, report)
    if design.margin is not None:
        axes.axhline(design.margin, color=INK, linestyle=(0, (1, 1.5)))
        entries.append((f"margin {design.margin:g}", {"color": INK, "linestyle": (0, (1, 1.5))}))
    axes.axvline(design.items, color=GRID, linewidth=1.5)
    log_axis(axes, [row["items"] for row in report.grid])
    axes.set(xlabel="items", ylabel=f"smallest detectable gap ({100 * design.power:g} % power)")
    from_zero(axes)
    legend_above(figure, entries, columns=4)
    return Drawing(
        name="power",
        title="What gap the design detects",
        caption="The upright line is the number of items of this design.",
        figure=figure,
        header=("items", "seeds", "share_of_flips_that_repeat", "detectable_gap"),
        table=[(r["items"], r["seeds"], r["stable"], r["detectable"]) for r in report.grid],
        sources=(source,),
        made_by=f"{__name__}.plot_power",
        n=f"{grouped(design.items, 'items')}, {design.seeds_a} and {design.seeds_b or 'no'} seeds",
    )


def _power_lines(axes: Axes, report: PowerReport) -> list[tuple[str, Look]]:
    """Draw a line a number of seeds, a dash a share of flips that repeat; the entries of the legend."""
    shares = sorted({row["stable"] for row in report.grid})
    entries: list[tuple[str, Look]] = []
    for stable, dash in zip(shares, DASHES):
        for place, s in enumerate(sorted({row["seeds"] for row in report.grid})):
            rows = [r for r in report.grid if r["seeds"] == s and (r["stable"] == stable or s == 1)]
            look = {**look_of(place), "markersize": 4, "linewidth": 1.2}
            axes.plot([r["items"] for r in rows], [_or_gap(r["detectable"]) for r in rows], linestyle=dash, **look)
            entries += [(many(s, "seeds"), look)] if dash == "-" else []
    if len(shares) > 1:
        entries += [(f"{100 * v:g} % repeat", {"color": MUTED, "linestyle": d}) for v, d in zip(shares, DASHES)]
    return entries


def _or_gap(value: float | None) -> float:
    """A gap in the line where nothing is detected."""
    return math.nan if value is None else value

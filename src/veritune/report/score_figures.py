"""Figures of scores: by condition with each seed, disagreement seed by seed, and score against dose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from veritune.config.claim import SHARE_KINDS, Claim
from veritune.config.fields import BASELINE
from veritune.config.sweep import swept
from veritune.counting import many
from veritune.drawing import (
    INK,
    MUTED,
    WIDTH_IN,
    Drawing,
    Look,
    from_zero,
    legend_above,
    log_axis,
    look_of,
    panels,
    shortened,
    tidy,
)
from veritune.evaluate.means import FAILED, zone_mean
from veritune.records import SCORE_ZONES, JsonValue
from veritune.report.read import Records, Run, summary_paths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PANELS = 12
"""Seeds that a figure of small multiples shows; its table has all."""
OUTCOMES = ("only A higher", "only B higher", "equal, above 0", "equal, 0")


def all_of(records: Records) -> Iterator[Drawing]:
    """Figures of the disagreement between each pair of arms that a claim compares, and of score against each dose of a
    sweep.
    """
    seen = set()
    for claim in records.study.claims:
        asked = (claim.condition, claim.against, claim.eval, claim.zone)
        if asked not in seen and (found := disagreement(records, claim)):
            seen.add(asked)
            yield found
    for name in records.study.evals:
        yield from dose_response(records, name)


def _place(records: Records, condition: str) -> int | None:
    names = list(records.study.conditions)
    return names.index(condition) if condition in names else None


Means = list[tuple[str, Run, float, int, int]]
"""(zone, run, mean over all items with failures as 0, items, of them failed)."""


def _means(records: Records, name: str) -> Means:
    found: Means = []
    for zone in SCORE_ZONES:
        for run in records.runs:
            here = run.zone_scores(name).get(zone)
            mean = zone_mean(here) if here is not None else None
            if mean is not None:
                found.append((zone, run, mean.value, mean.n, mean.failed))
    return found


# ---------------------------------------------------------------- by condition, each seed


def zone_scores(records: Records, name: str) -> Drawing | None:
    """Mean score by condition: one mark per seed, a bar at the mean over seeds, a line from smallest to largest."""
    means = _means(records, name)
    zones = [zone for zone in SCORE_ZONES if any(m[0] == zone for m in means)]
    if not means:
        return None
    arms = [c for c in (BASELINE, *records.study.conditions) if any(m[1].condition == c for m in means)]
    figure, grid = panels(len(zones), width=max(WIDTH_IN, 1.9 * len(zones)), height=1.25 + 0.42 * len(arms))
    rows: list[tuple[Any, ...]] = []
    for axes, zone in zip(grid[0], zones):
        here = [m for m in means if m[0] == zone]
        axes.set_title(f"{zone}, n = {_counts(here)}", fontsize=8.5, color=INK)
        tidy(axes, "x")
        for y, arm in enumerate(arms):
            of_arm = [m for m in here if m[1].condition == arm]
            rows += _arm_row(axes, records, (y, zone, arm), of_arm)
        from_zero(axes, "x", share=all(m[2] <= 1 for m in means))
    grid[0][0].set_yticks(range(len(arms)), [shortened(arm, 18) for arm in arms])
    grid[0][0].set_ylim(len(arms) - 0.5, -0.5)
    figure.supxlabel(f"mean score, {shortened(name)}", fontsize=9, color=MUTED)
    return Drawing(
        name=f"zones_{name}",
        title=f"Score by condition, each seed: {name}",
        caption="Each mark is one seed's mean over all items, failures counted as 0. The upright bar is the mean over "
        "seeds, the line runs from the smallest to the largest.",
        figure=figure,
        header=("zone", "condition", "seed", "what", "mean_score", "scored", "items"),
        table=rows,
        sources=summary_paths(records),
        made_by=f"{__name__}.zone_scores",
        n=f"{_counts(means)} items a panel; {len({m[1].run_id for m in means})} runs",
    )


def _counts(means: Means) -> str:
    counts = sorted({m[3] for m in means})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _arm_row(axes: Axes, records: Records, at: tuple[int, str, str], found: Means) -> Iterator[tuple[JsonValue, ...]]:
    """Draw one condition in one zone; its rows of the table: each seed, then mean, min, max and range."""
    y, zone, arm = at
    values = [value for _, _, value, _, _ in found]
    if not values:
        return
    look = look_of(_place(records, arm))
    axes.plot([min(values), max(values)], [y, y], color=look["color"], linewidth=1.2)
    axes.plot([fmean(values)] * 2, [y - 0.24, y + 0.24], color=INK, linewidth=1.6)
    marks: Look = {
        "linestyle": "none",
        "markersize": 6,
        "markeredgewidth": 0,
        "alpha": 0.85,
        "clip_on": False,
    }  # 0 is drawn whole
    axes.plot(values, [y] * len(values), **marks, **look)
    for _, run, value, items, failed in found:
        yield zone, arm, run.seed, "run", value, items - failed, items
    summed = {"mean": fmean(values), "min": min(values), "max": max(values), "range": max(values) - min(values)}
    if len(values) > 1:
        yield from ((zone, arm, None, what, value, None, None) for what, value in summed.items())


# ---------------------------------------------------------------- disagreement, seed by seed


def disagreement(records: Records, claim: Claim) -> Drawing | None:
    """For a claim between two arms: on how many items each side scored higher, one panel per seed."""
    from matplotlib.ticker import MaxNLocator

    if claim.kind in ("probe", *SHARE_KINDS) or claim.condition is None or claim.against_eval is not None:
        return None
    name = claim.eval or next(iter(records.study.evals))
    pairs = list(_pairs(records, claim, name))
    counted = [(a, b, counts) for a, b in pairs if (counts := _count(a, b, name, claim.zone))]
    if not counted:
        return None
    against = claim.against or BASELINE
    shown = counted[:MOST_PANELS]
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    figure, grid = panels(columns, lines, width=max(WIDTH_IN, 1.75 * columns), height=0.95 + 1.35 * lines)
    look = [look_of(_place(records, claim.condition))["color"], look_of(_place(records, against))["color"]]
    most = max(max(counts.values()) for _, _, counts in shown)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        a, b, counts = shown[place]
        axes.set_title(f"seed {_seed(a, b)}, n = {sum(counts.values())}", fontsize=8.5, color=INK)
        # A is filled and B is outlined, so that the two are told apart in grey.
        fills, edges = [look[0], "#ffffff", MUTED, "#ffffff"], [look[0], look[1], MUTED, MUTED]
        axes.barh(range(4), [counts[o] for o in OUTCOMES], color=fills, edgecolor=edges, linewidth=1.4, height=0.7)
        for y, outcome in enumerate(OUTCOMES):
            axes.text(counts[outcome] + most * 0.03, y, str(counts[outcome]), va="center", fontsize=8)
        tidy(axes, "x")
        axes.set_xlim(0, most * 1.18 or 1)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    for line in grid:
        line[0].set_yticks(range(4), OUTCOMES)
        line[0].set_ylim(3.6, -0.6)
    where = f"{claim.zone} items" if claim.zone else "all items"
    figure.supxlabel(f"{where} of {shortened(name)}", fontsize=9, color=MUTED)
    figure.suptitle(f"A = {shortened(claim.condition)}, B = {shortened(against)}", fontsize=8.5, x=0.02, ha="left")
    rows = [(_seed(a, b), a.run_id, b.run_id, o, n) for a, b, counts in counted for o, n in counts.items()]
    more = f" The first {MOST_PANELS} of {len(counted)} seeds are drawn." if len(counted) > MOST_PANELS else ""
    return Drawing(
        name=f"disagreement_{claim.name}",
        title=f"Where the arms disagree, seed by seed: {claim.name}",
        caption=f"Items that both runs were asked, by which run scored higher; an item without a score counts as 0, as "
        f"in the means.{more}",
        figure=figure,
        header=("seed", "run_a", "run_b", "outcome", "items"),
        table=rows,
        sources=tuple(dict.fromkeys(run.path(f"scores/{name}.jsonl") for a, b, _ in counted for run in (a, b))),
        made_by=f"{__name__}.disagreement",
        n=f"{_range([sum(c.values()) for _, _, c in counted])} items; {many(len(counted), 'seeds')}",
    )


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seed(a: Run, b: Run) -> str:
    return str(a.seed if a.seed is not None else b.seed)


def _pairs(records: Records, claim: Claim, name: str) -> Iterator[tuple[Run, Run]]:
    """Runs of one seed in both arms; the untouched baseline stands against each seed."""
    runs = [run for run in records.runs if name in run.scores]
    sides = [{r.seed: r for r in runs if r.condition == arm} for arm in (claim.condition, claim.against or BASELINE)]
    for seed in records.study.seeds:
        a, b = (side.get(seed) or side.get(None) for side in sides)
        if a is not None and b is not None and a is not b:
            yield a, b


def _count(a: Run, b: Run, name: str, zone: str | None) -> Mapping[str, int]:
    """Items that both runs were asked, by which scored higher, an item without a score as 0; empty where none is."""
    mine, other = (_values(run, name, zone) for run in (a, b))
    counts = dict.fromkeys(OUTCOMES, 0)
    for item in mine.keys() & other.keys():
        one, two = mine[item], other[item]
        outcome = OUTCOMES[0] if one > two else OUTCOMES[1] if two > one else OUTCOMES[2 if one > 0 else 3]
        counts[outcome] += 1
    return counts if any(counts.values()) else {}


def _values(run: Run, name: str, zone: str | None) -> dict[str, float]:
    wanted = (score for score in run.scores[name] if zone is None or score.zone == zone)
    return {score.item_id: FAILED if score.value is None else score.value for score in wanted}


# ---------------------------------------------------------------- score against dose


def dose_response(records: Records, name: str) -> Iterator[Drawing]:
    """Score against each numeric setting of a sweep: one line per arm and point of the other settings, one mark per
    seed.
    """
    grid = records.study.sweep or {}
    points = swept(records.study.conditions, grid)
    means = _means(records, name)
    zone = next((z for z in reversed(SCORE_ZONES) if any(m[0] == z for m in means)), None)
    for key, values in grid.items():
        doses = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
        if len(doses) < len(values) or len(values) < 2 or zone is None:
            continue
        if drawn := _dose(records, (name, zone, key), points, [m for m in means if m[0] == zone]):
            yield drawn


def _dose(
    records: Records, asked: tuple[str, str, str], points: Mapping[str, tuple[str, dict[str, Any]]], means: Means
) -> Drawing | None:
    name, zone, key = asked
    lines: dict[str, list[tuple[float, Run, float, int, int]]] = {}
    for _, run, value, items, failed in means:
        arm, point = points.get(run.condition, ("", {}))
        if key in point:
            rest = ", ".join(f"{k} {v}" for k, v in point.items() if k != key)
            lines.setdefault(f"{arm}, {rest}" if rest else arm, []).append((point[key], run, value, items, failed))
    if not lines:
        return None
    figure, grid = panels(1)
    axes, entries = grid[0][0], []
    for place, (label, found) in enumerate(lines.items()):
        look = look_of(place)
        doses = sorted({dose for dose, *_ in found})
        axes.plot(doses, [fmean(v for d, _, v, *_ in found if d == dose) for dose in doses], color=look["color"])
        axes.plot([f[0] for f in found], [f[2] for f in found], linestyle="none", markersize=5.5, **look)
        entries.append((shortened(label, 40), {**look, "markersize": 5.5}))
    base = next((m for m in means if m[1].is_baseline), None)
    if base is not None:
        axes.axhline(base[2], color=MUTED, linestyle=(0, (4, 2)))
        entries.append((BASELINE, {"color": MUTED, "linestyle": (0, (4, 2))}))
    _dose_axis(axes, key, sorted({dose for found in lines.values() for dose, *_ in found}))
    axes.set_ylabel(f"mean score, {shortened(name)}, {zone} items")
    from_zero(axes, share=all(m[2] <= 1 for m in means))
    legend_above(figure, entries)
    rows = [(line, dose, r.condition, r.seed, v, n, f) for line, found in lines.items() for dose, r, v, n, f in found]
    return Drawing(
        name=f"dose_{key}_{name}",
        title=f"Score against {key.replace('_', ' ')}: {name}",
        caption="Each mark is one seed's mean over all items, failures counted as 0; the line joins the means over "
        "seeds. The dashed line is the untouched baseline.",
        figure=figure,
        header=("line", key, "condition", "seed", "mean_score", "items", "failed"),
        table=rows,
        sources=summary_paths(records),
        made_by=f"{__name__}.dose_response",
        n=f"{_counts(means)} items; {many(len(rows), 'runs')}",
    )


def _dose_axis(axes: Axes, key: str, doses: Sequence[float]) -> None:
    axes.set_xlabel(key.replace("_", " "))
    if key == "learning_rate" or (min(doses) > 0 and max(doses) / min(doses) >= 8):
        log_axis(axes, doses)
    else:
        axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
        from_zero(axes, "x")

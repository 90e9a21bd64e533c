"""The figures of a study, drawn from its records: inline SVG for the page, PNG, PDF, SVG and CSV files to take along.

Each drawing function takes `Records` and returns a `Drawing`, or None where its records are missing. It places recorded
numbers and computes none. The same records give the same bytes; `figures/<name>.provenance.json` names the function,
the source files and their hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from markupsafe import Markup

from veritune.counting import many
from veritune.display import short
from veritune.drawing import (
    DASHES,
    GRID,
    INK,
    KINDS,
    MARKERS,
    MUTED,
    SERIES,
    Dash,
    Drawing,
    Look,
    from_zero,
    legend_above,
    panels,
    provenance_of,
    save,
    style,
    svg_text,
)
from veritune.records import SCORE_ZONES, ZONES
from veritune.report import plan_figures, probe_figures, score_figures
from veritune.report._svg import inline_svg
from veritune.report.read import Records, Run, summary_paths
from veritune.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PARTS = {
    "q": "#0b4f8a",
    "k": "#2f7fc1",
    "v": "#69aee0",
    "o": "#a9d3f2",
    "gate": "#8a3c00",
    "up": "#cc6a1a",
    "down": "#efa35e",
    "other": "#8f8f8f",
}
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    "#ffffff": "var(--paper)",
    **{colour: f"var(--s{i})" for i, colour in enumerate(SERIES, start=1)},
    **{colour: f"var(--part-{name})" for name, colour in PARTS.items()},
}
"""What stands for a colour on the page, where it follows the reader's light or dark scheme."""
MOST_POINTS = 80
ROOM = "veritune.report."


def for_paper(svg: str) -> Markup:
    """The drawing with its real colours, for use without the page's style sheet."""
    for colour, name in PAGE_COLOURS.items():
        svg = svg.replace(name, colour)
    return Markup(svg)


T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Drawn:
    """A drawing in the form that the page shows."""

    name: str
    title: str
    caption: str
    svg: Markup
    sources: tuple[str, ...]
    group: str = ""
    files: tuple[tuple[str, str], ...] = field(default=())

    def __repr__(self) -> str:
        return short(self, name=self.name, title=self.title, sources=len(self.sources))

    def _repr_html_(self) -> str:
        figure = Markup("<figure><b>{}</b>{}<figcaption>{}</figcaption></figure>")
        return str(figure.format(self.title, for_paper(self.svg), self.caption))


def draw_all(store: Store, records: Records) -> list[Drawn]:
    """Draw every figure whose records exist, write its files, and remove the files of figures that no longer exist."""
    drawn = []
    with style():
        for group, drawings in _drawings(records):
            for drawing in drawings:
                text = svg_text(drawing)
                label = f"{drawing.title}. {drawing.caption}"
                svg = inline_svg(text, drawing.name, label, PAGE_COLOURS)
                paths = save(drawing, store.figures, store.root, text)
                files = [
                    (kind if kind == "provenance" else kind.upper(), store.relative(p)) for kind, p in paths.items()
                ]
                drawn.append(
                    Drawn(drawing.name, drawing.title, drawing.caption, svg, drawing.sources, group, tuple(files))
                )
    _remove_stale(store, {d.name for d in drawn})
    return drawn


def _drawings(records: Records) -> Iterator[tuple[str, list[Drawing]]]:
    yield "zones", [d for name in records.study.evals if (d := score_figures.zone_scores(records, name))]
    yield "zones", [d for d in [zone_nll(records)] if d]
    yield "scores", list(score_figures.all_of(records))
    yield "plan", list(plan_figures.all_of(records))
    yield "training", [d for d in [train_loss(records), validation_nll(records)] if d]
    yield "gradients", [d for name in records.study.conditions if (d := gradient_shares(records, name))]
    yield "probes", list(probe_figures.all_of(records))


def _remove_stale(store: Store, names: set[str]) -> None:
    """Remove figures of ours that these records no longer give: only those with a provenance that says so."""
    for path in sorted(store.figures.glob("*.provenance.json")):
        name = path.name.removesuffix(".provenance.json")
        record = provenance_of(path)  # one that cannot be read is not known to be ours
        if record is not None and record.made_by.startswith(ROOM) and name not in names:
            for kind in (*KINDS, "provenance.json"):
                (store.figures / f"{name}.{kind}").unlink(missing_ok=True)


# ---------------------------------------------------------------- looks shared by the figures


def colour_of(records: Records, condition: str) -> str:
    """The condition's colour: by its place in the study, the baseline muted."""
    names = list(records.study.conditions)
    return SERIES[names.index(condition) % len(SERIES)] if condition in names else MUTED


def marker_of(records: Records, condition: str) -> str:
    """The condition's marker, so that colour is never the only sign."""
    names = list(records.study.conditions)
    return MARKERS[names.index(condition) % len(MARKERS)] if condition in names else "_"


def _axes(x_label: str | None = None) -> tuple[Figure, Axes]:
    """A figure of one panel, with steps across where there is an x label."""
    from matplotlib.ticker import MaxNLocator

    figure, grid = panels(1)
    axes = grid[0][0]
    if x_label:
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return figure, axes


def counted(rows: Sequence[tuple[Any, ...]]) -> str:
    """A range as text for a table's last column: `29`, or `29 to 31` if it differs between rows."""
    counts = sorted({row[-1] for row in rows})
    return f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"


def _conditions(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.condition for run in runs))


# ---------------------------------------------------------------- zones


def zone_nll(records: Records) -> Drawing | None:
    """NLL of the expected answers by zone, one dot per run."""
    rows: list[tuple[Any, ...]] = []
    for run in records.runs:
        for zone in ZONES:
            here = run.losses.get(zone)
            if zone != "validation" and here is not None:
                rows.append((zone, run.condition, run.seed, here.nll, here.target_tokens, here.rows))
    if not rows:
        return None
    figure = _zone_figure(records, rows, "NLL, nats per target token")
    return Drawing(
        name="zones_nll",
        title="Loss on the expected answers by zone",
        caption="Mean negative log-likelihood per target token, one dot a run. Lower is better.",
        figure=figure,
        header=("zone", "condition", "seed", "nll_nats_per_target_token", "target_tokens", "rows"),
        table=rows,
        sources=summary_paths(records),
        made_by=f"{__name__}.zone_nll",
        n=f"{counted(rows)} rows a zone; {len({row[1:3] for row in rows})} runs",
    )


def _zone_figure(records: Records, rows: Sequence[tuple[Any, ...]], what: str) -> Figure:
    """Dots at (zone, value). Conditions and seeds stand beside one another within a zone; the axis starts at 0."""
    figure, axes = _axes()
    zones = [z for z in SCORE_ZONES if any(row[0] == z for row in rows)]
    runs = list(dict.fromkeys((row[1], row[2]) for row in rows))
    arms = [run for run in runs if run[1] is not None]
    for zone, condition, seed, value, *_ in rows:
        look: Look = {"color": colour_of(records, condition), "marker": marker_of(records, condition)}
        x = float(zones.index(zone))
        if seed is None:
            axes.plot([x - 0.36, x + 0.36], [value, value], color=look["color"], linewidth=2.2)
        else:
            x += 0.0 if len(arms) == 1 else -0.27 + 0.54 * arms.index((condition, seed)) / (len(arms) - 1)
            axes.plot([x], [value], markersize=6.5, linestyle="none", markeredgewidth=0, **look)
    axes.set_xticks(range(len(zones)), zones, fontsize=10)
    axes.set_xlim(-0.5, len(zones) - 0.5)
    from_zero(axes)
    axes.set_ylabel(what)
    entries = []
    for condition in dict.fromkeys(row[1] for row in rows):
        look = {"color": colour_of(records, condition)}
        base = all(row[2] is None for row in rows if row[1] == condition)
        mark = {"linewidth": 2.2} if base else {"marker": marker_of(records, condition), "linestyle": "none"}
        entries.append((condition, look | mark))
    legend_above(figure, entries)
    return figure


# ---------------------------------------------------------------- training


def _losses(run: Run, split: str) -> list[tuple[int, float]]:
    return [(r.step, r.loss) for r in run.metrics if r.split == split and r.loss is not None and r.step is not None]


def _dash(records: Records, run: Run) -> Dash:
    seeds = list(records.study.seeds)
    return DASHES[seeds.index(run.seed) % len(DASHES)] if run.seed in seeds else DASHES[0]


def _run_legend(records: Records, figure: Figure, runs: Sequence[Run]) -> None:
    entries: list[tuple[str, dict[str, Any]]] = [
        (c, {"color": colour_of(records, c), "marker": marker_of(records, c), "markersize": 4, "linewidth": 1.8})
        for c in _conditions(runs)
    ]
    for seed in dict.fromkeys(run.seed for run in runs if run.seed is not None):
        run = next(r for r in runs if r.seed == seed)
        entries.append((f"seed {seed}", {"color": MUTED, "linestyle": _dash(records, run), "linewidth": 1.2}))
    legend_above(figure, entries)


def train_loss(records: Records) -> Drawing | None:
    """Training loss by optimizer step, one line per run."""
    curves = [(run, points) for run in records.runs if (points := _losses(run, "seen"))]
    if not curves:
        return None
    figure, axes = _axes("optimizer step")
    for run, points in curves:
        x, y = zip(*_thinned(points))
        look: Look = {"color": colour_of(records, run.condition), "marker": marker_of(records, run.condition)}
        every = max(len(x) // 6, 1)
        axes.plot(x, y, linestyle=_dash(records, run), linewidth=1.3, markersize=4, markevery=every, **look)
    axes.set_ylabel("training loss, nats per token")
    axes.set_xlim(left=0)
    from_zero(axes)
    _run_legend(records, figure, [run for run, _ in curves])
    return Drawing(
        name="train_loss",
        title="Training loss",
        caption="One line a run, each point one optimizer step's batch." + _thin_note(curves),
        figure=figure,
        header=("run", "condition", "seed", "step", "loss_nats_per_target_token"),
        table=[(r.run_id, r.condition, r.seed, step, loss) for r, points in curves for step, loss in points],
        sources=tuple(run.path("metrics.jsonl") for run, _ in curves),
        made_by=f"{__name__}.train_loss",
        n=f"{many(len(curves), 'runs')} of {counted([(len(points),) for _, points in curves])} steps",
    )


def validation_nll(records: Records) -> Drawing | None:
    """Validation NLL at every candidate checkpoint, the chosen one ringed, the untouched baseline as a line."""
    curves = [(run, points) for run in records.runs if (points := _losses(run, "validation"))]
    if not curves:
        return None
    figure, axes = _axes("optimizer step")
    for run, points in curves:
        look: Look = {"color": colour_of(records, run.condition), "linestyle": _dash(records, run)}
        axes.plot(*zip(*points), marker=marker_of(records, run.condition), markersize=4, linewidth=1.3, **look)
        chosen = [point for point in points if run.training and point[0] == run.training.best_step]
        for x, y in chosen:
            axes.plot([x], [y], "o", markersize=10, markerfacecolor="none", markeredgecolor=INK)
    base = _baseline_validation(records)
    if base is not None:
        axes.axhline(base[1], color=MUTED, linewidth=1.8)
        axes.annotate(
            "baseline", (1, base[1]), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=MUTED
        )
    axes.set_ylabel("validation NLL, nats per token")
    axes.set_xlim(left=0)
    from_zero(axes)
    _run_legend(records, figure, [run for run, _ in curves])
    best = {r.run_id: r.training.best_step if r.training else None for r, _ in curves}
    rows: list[tuple[Any, ...]] = [
        (r.run_id, r.condition, r.seed, step, nll, step == best[r.run_id])
        for r, points in curves
        for step, nll in points
    ]
    rows += [(base[0].run_id, base[0].condition, None, None, base[1], None)] if base else []
    return Drawing(
        name="validation_nll",
        title="Validation loss and the checkpoint chosen",
        caption="Each mark is a candidate checkpoint; the ring is the one chosen, by lowest validation NLL.",
        figure=figure,
        header=("run", "condition", "seed", "step", "validation_nll_nats_per_target_token", "chosen"),
        table=rows,
        sources=tuple(
            [run.path(name) for run, _ in curves for name in ("metrics.jsonl", "training.json")]
            + ([base[0].path("summary.json")] if base else [])
        ),
        made_by=f"{__name__}.validation_nll",
        n=f"{many(len(curves), 'runs')}, {counted([(len(points),) for _, points in curves])} checkpoints each"
        f"{_tokens(curves)}",
    )


def _tokens(curves: Sequence[tuple[Run, Sequence[tuple[int, float]]]]) -> str:
    """The target tokens that validation losses were taken over, where the metrics hold their number."""
    tokens = {r.token_count for run, _ in curves for r in run.metrics if r.split == "validation" and r.token_count}
    return f", {counted([(t,) for t in tokens])} target tokens" if tokens else ""


def _baseline_validation(records: Records) -> tuple[Run, float] | None:
    for run in records.runs:
        loss = run.losses.get("validation")
        if run.is_baseline and loss is not None:
            return run, loss.nll
    return None


def gradient_shares(records: Records, condition: str) -> Drawing | None:
    """How the squared gradient norm divides among module types, step by step, for the condition's first seed."""
    own = [run for run in records.runs if run.condition == condition and run.shares]
    runs = [(run, [(s.step, s.by_type) for s in run.shares if s.by_type]) for run in own]
    runs = [(run, shares) for run, shares in runs if shares]
    if not runs:
        return None
    run, shares = runs[0]
    names = [n for n in PARTS if any(n in share for _, share in shares)]
    names += sorted({n for _, share in shares for n in share} - set(names))
    figure, axes = _axes("optimizer step")
    points = _thinned(shares)
    steps = [step for step, _ in points]
    axes.stackplot(
        steps,
        [[share.get(name, 0.0) for _, share in points] for name in names],
        colors=[PARTS.get(name, PARTS["other"]) for name in names],
        linewidth=0.4,
        edgecolor="#ffffff",
    )
    axes.set_xlim(steps[0], steps[-1] if steps[-1] > steps[0] else steps[0] + 1)
    _name_bands(axes, names, points[len(points) // 2])
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of squared norm")
    square = {"marker": "s", "linestyle": "none", "markersize": 6}
    legend_above(figure, [(n, {"color": PARTS.get(n, PARTS["other"]), **square}) for n in names], columns=len(names))
    rows = [
        (r.run_id, r.condition, r.seed, s, n, v) for r, found in runs for s, share in found for n, v in share.items()
    ]
    return Drawing(
        name=f"gradient_shares_{condition}",
        title=f"Where the gradient goes: {condition}",
        caption=f"Share of the squared gradient norm by kind of module, {run.label}, bottom to top in the order of the"
        " legend." + _thin_note([(run, shares)]),
        figure=figure,
        header=("run", "condition", "seed", "step", "module_type", "share_of_squared_norm"),
        table=rows,
        sources=tuple(r.path("telemetry.jsonl") for r, _ in runs),
        made_by=f"{__name__}.gradient_shares",
        n=f"{many(len(shares), 'steps')} of 1 run; the table has {many(len(runs), 'runs')}",
    )


def _name_bands(axes: Axes, names: Sequence[str], middle: tuple[int, Mapping[str, float]]) -> None:
    """Write each band's name into it, where it is thick enough: shades alone do not tell parts apart in grey."""
    step, share = middle
    low = 0.0
    for name in names:
        thick = share.get(name, 0.0)
        if thick >= 0.06:
            label = axes.text(step, low + thick / 2, name, ha="center", va="center", fontsize=8, color=INK)
            label.set_bbox({"facecolor": "#ffffff", "edgecolor": "none", "pad": 1.2, "alpha": 0.85})
        low += thick


def _thinned(points: Sequence[T]) -> list[T]:
    """At most MOST_POINTS of the points, evenly, with the first and the last."""
    every = _every(len(points))
    kept = list(points[::every])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _every(n: int) -> int:
    return -(-n // MOST_POINTS)


def _thin_note(
    curves: Sequence[tuple[Run, Sequence[tuple[int, float]] | Sequence[tuple[int, Mapping[str, float]]]]],
) -> str:
    every = max(_every(len(points)) for _, points in curves)
    return "" if every == 1 else f" Every {every}th step is drawn; the CSV has all."

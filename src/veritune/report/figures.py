"""The figures of a study, drawn from its records: inline SVG for the page, PNG, PDF and CSV files for anybody's paper.

Each drawing function takes `Records` and returns a `Drawing`, or None where its records are missing. It places recorded
numbers and computes none. The same records give the same bytes; `figures/<name>.provenance.json` names the function,
the source files and their hashes.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from veritune.records import ZONES
from veritune.report._svg import inline_svg
from veritune.report.read import Records, Run
from veritune.store import Store, atomic, read_json, sha256_file, sha256_text, write_json

# Okabe and Ito's palette (jfly.uni-koeln.de/color), darkened where a line on white needs it. The second value is what
# stands for it on the page, where it follows the reader's light or dark scheme.
INK, MUTED, GRID = "#000000", "#5b6066", "#d9d5cb"
SERIES = ("#0067a8", "#c24e00", "#00785a", "#a1487f", "#7a6a00", "#3d3fa8")
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
MARKERS = "osD^vP"
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
MOST_POINTS = 80
WIDTH_IN, HEIGHT_IN = 5.2, 3.0
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "veritune",
    "pdf.fonttype": 42,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Drawing:
    """A figure and the numbers in it. `sources` are paths in the study folder."""

    name: str
    title: str
    caption: str
    figure: Any
    header: tuple[str, ...]
    table: Sequence[Sequence[Any]]
    sources: tuple[str, ...]
    made_by: str


@dataclass(frozen=True)
class Drawn:
    """A drawing as the page shows it."""

    name: str
    title: str
    caption: str
    svg: Markup
    sources: tuple[str, ...]
    group: str = ""
    files: tuple[tuple[str, str], ...] = field(default=())


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures while the block runs."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as a box; that is no reason for a report to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def draw_all(store: Store, records: Records) -> list[Drawn]:
    """Draw every figure whose records are there, write its files, and remove those of figures that are no more."""
    drawn = []
    with style():
        for group, drawings in _drawings(records):
            for drawing in drawings:
                label = f"{drawing.title}. {drawing.caption}"
                svg = inline_svg(drawing.figure, drawing.name, label, PAGE_COLOURS)
                files = _write_files(store, drawing, svg)
                drawn.append(
                    Drawn(drawing.name, drawing.title, drawing.caption, svg, drawing.sources, group, tuple(files))
                )
    _remove_stale(store, {d.name for d in drawn})
    return drawn


def _drawings(records: Records) -> Iterator[tuple[str, list[Drawing]]]:
    yield "zones", [d for name in records.study.evals if (d := zone_scores(records, name))]
    yield "zones", [d for d in [zone_nll(records)] if d]
    yield "training", [d for d in [train_loss(records), validation_nll(records)] if d]
    yield "gradients", [d for name in records.study.conditions if (d := gradient_shares(records, name))]


# ---------------------------------------------------------------- files


def _write_files(store: Store, drawing: Drawing, svg: str) -> list[tuple[str, str]]:
    """PNG, PDF, CSV and provenance, unless the very same are there: (kind, path in the study folder)."""
    names = {kind: f"figures/{drawing.name}.{kind}" for kind in ("png", "pdf", "csv")}
    record_path = store.figures / f"{drawing.name}.provenance.json"
    record = {
        "figure": drawing.name,
        "made_by": f"veritune.report.figures.{drawing.made_by}",
        "sources": {path: sha256_file(store.root / path) for path in drawing.sources if (store.root / path).exists()},
        "drawing_sha256": sha256_text(svg),
        "matplotlib": _version(),
    }
    files = [(k.upper(), n) for k, n in names.items()] + [("provenance", f"figures/{drawing.name}.provenance.json")]
    paths = {kind: store.root / name for kind, name in names.items()}
    if all(p.exists() for p in paths.values()) and _same(record_path, record):
        return files
    with atomic(paths["csv"]) as stream:
        stream.write(_csv(drawing))
    with atomic(paths["png"], "wb") as stream:
        drawing.figure.savefig(stream, format="png", dpi=200, facecolor="#ffffff", metadata={"Software": None})
    with atomic(paths["pdf"], "wb") as stream:
        drawing.figure.savefig(stream, format="pdf", facecolor="#ffffff", metadata={"CreationDate": None})
    write_json(record_path, record)
    return files


def _same(path: Path, record: Mapping[str, Any]) -> bool:
    try:
        return path.exists() and read_json(path) == record
    except Exception:  # a damaged provenance is written anew
        return False


def _version() -> str:
    import matplotlib as mpl

    return str(mpl.__version__)


def _csv(drawing: Drawing) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(drawing.header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in drawing.table)
    return stream.getvalue().encode("utf-8", "replace").decode()


def _remove_stale(store: Store, names: set[str]) -> None:
    """Remove figures of ours that these records no longer give: only those with a provenance that says so."""
    for path in sorted(store.figures.glob("*.provenance.json")):
        name = path.name.removesuffix(".provenance.json")
        try:
            ours = str(read_json(path).get("made_by", "")).startswith("veritune.report.figures.")
        except Exception:  # not readable, so not known to be ours
            continue
        if ours and name not in names:
            for kind in ("png", "pdf", "csv", "provenance.json"):
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


def _axes(x_label: str | None = None) -> tuple[Any, Any]:
    """A figure with room for a legend above and, where there is an x label, for that below."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN))
    axes = figure.add_axes((0.115, 0.15, 0.865, 0.74) if x_label else (0.115, 0.09, 0.865, 0.80))
    if x_label:
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure, axes


def _legend(axes: Any, entries: Sequence[tuple[str, dict[str, Any]]], columns: int | None = None) -> None:
    """A frameless legend above the axes."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label.lstrip("_") or "unnamed", **look) for label, look in entries]
    short = sum(len(label) for label, _ in entries) < 60
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=columns or (4 if short else 2),
        frameon=False,
        handlelength=1.8,
        columnspacing=1.2,
        borderaxespad=0.2,
        fontsize=9,
    )


def _conditions(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.condition for run in runs))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------- zones


def zone_scores(records: Records, name: str) -> Drawing | None:
    """Mean score of every run by zone, one dot a run."""
    rows: list[tuple[Any, ...]] = []
    for run in records.runs:
        zones = run.zone_scores(name)
        for zone in ZONES:
            here = zones.get(zone)
            if here is not None and here.mean is not None:
                rows.append((zone, run.condition, run.seed, here.mean, here.scored, here.items))
    if not rows:
        return None
    figure = _zone_figure(records, rows, f"mean score, {name}")
    return Drawing(
        name=f"zones_{name}",
        title=f"Score by zone: {name}",
        caption="One dot a run: a condition's seeds stand side by side, the baseline as a bar. Higher is better.",
        figure=figure,
        header=("zone", "condition", "seed", "mean_score", "scored", "items"),
        table=rows,
        sources=_summaries(records),
        made_by="zone_scores",
    )


def zone_nll(records: Records) -> Drawing | None:
    """NLL of the expected answers for every run by zone, one dot a run."""
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
        sources=_summaries(records),
        made_by="zone_nll",
    )


def _summaries(records: Records) -> tuple[str, ...]:
    return tuple(run.path("summary.json") for run in records.runs if run.summary)


def _zone_figure(records: Records, rows: Sequence[tuple[Any, ...]], what: str) -> Any:
    """Dots at (zone, value). Conditions and seeds stand beside one another within a zone; the axis starts at 0."""
    figure, axes = _axes()
    zones = [z for z in ZONES if any(row[0] == z for row in rows)]
    runs = list(dict.fromkeys((row[1], row[2]) for row in rows))
    arms = [run for run in runs if run[1] is not None]
    for zone, condition, seed, value, *_ in rows:
        look = {"color": colour_of(records, condition), "marker": marker_of(records, condition)}
        x = float(zones.index(zone))
        if seed is None:
            axes.plot([x - 0.36, x + 0.36], [value, value], color=look["color"], linewidth=2.2)
        else:
            x += 0.0 if len(arms) == 1 else -0.27 + 0.54 * arms.index((condition, seed)) / (len(arms) - 1)
            axes.plot([x], [value], markersize=6.5, linestyle="none", markeredgewidth=0, **look)
    axes.set_xticks(range(len(zones)), zones, fontsize=10)
    axes.set_xlim(-0.5, len(zones) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(what)
    entries = []
    for condition in dict.fromkeys(row[1] for row in rows):
        look = {"color": colour_of(records, condition)}
        base = all(row[2] is None for row in rows if row[1] == condition)
        mark = {"linewidth": 2.2} if base else {"marker": marker_of(records, condition), "linestyle": "none"}
        entries.append((condition, look | mark))
    _legend(axes, entries)
    return figure


# ---------------------------------------------------------------- training


def _losses(run: Run, split: str) -> list[tuple[int, float]]:
    rows = (r for r in run.metrics if r.get("split") == split and _number(r.get("loss")) and _number(r.get("step")))
    return [(r["step"], r["loss"]) for r in rows]


def _dash(records: Records, run: Run) -> Any:
    seeds = list(records.study.seeds)
    return DASHES[seeds.index(run.seed) % len(DASHES)] if run.seed in seeds else DASHES[0]


def _run_legend(records: Records, axes: Any, runs: Sequence[Run]) -> None:
    entries: list[tuple[str, dict[str, Any]]] = [
        (c, {"color": colour_of(records, c), "linewidth": 1.8}) for c in _conditions(runs)
    ]
    for seed in dict.fromkeys(run.seed for run in runs if run.seed is not None):
        run = next(r for r in runs if r.seed == seed)
        entries.append((f"seed {seed}", {"color": MUTED, "linestyle": _dash(records, run), "linewidth": 1.2}))
    _legend(axes, entries)


def train_loss(records: Records) -> Drawing | None:
    """Training loss by optimizer step, one line a run."""
    curves = [(run, points) for run in records.runs if (points := _losses(run, "seen"))]
    if not curves:
        return None
    figure, axes = _axes("optimizer step")
    for run, points in curves:
        x, y = zip(*_thinned(points))
        axes.plot(x, y, color=colour_of(records, run.condition), linestyle=_dash(records, run), linewidth=1.3)
    axes.set_ylabel("training loss, nats per token")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    _run_legend(records, axes, [run for run, _ in curves])
    return Drawing(
        name="train_loss",
        title="Training loss",
        caption="One line a run, each point one optimizer step's batch." + _thin_note(curves),
        figure=figure,
        header=("run", "condition", "seed", "step", "loss_nats_per_target_token"),
        table=[(r.run_id, r.condition, r.seed, step, loss) for r, points in curves for step, loss in points],
        sources=tuple(run.path("metrics.jsonl") for run, _ in curves),
        made_by="train_loss",
    )


def validation_nll(records: Records) -> Drawing | None:
    """Validation NLL at every candidate checkpoint, the chosen one ringed, the untouched baseline as a line."""
    curves = [(run, points) for run in records.runs if (points := _losses(run, "validation"))]
    if not curves:
        return None
    figure, axes = _axes("optimizer step")
    for run, points in curves:
        look = {"color": colour_of(records, run.condition), "linestyle": _dash(records, run)}
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
    axes.set_ylim(bottom=0)
    _run_legend(records, axes, [run for run, _ in curves])
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
        made_by="validation_nll",
    )


def _baseline_validation(records: Records) -> tuple[Run, float] | None:
    for run in records.runs:
        loss = run.losses.get("validation")
        if run.is_baseline and loss is not None:
            return run, loss.nll
    return None


def gradient_shares(records: Records, condition: str) -> Drawing | None:
    """How the squared gradient norm divides among module types, step by step, for the condition's first seed."""
    seen = [(run, _shares(run)) for run in records.runs if run.condition == condition]
    runs = [(run, shares) for run, shares in seen if shares]
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
    axes.set_ylim(0, 1)
    axes.set_ylabel("share of squared norm")
    square = {"marker": "s", "linestyle": "none", "markersize": 6}
    _legend(axes, [(n, {"color": PARTS.get(n, PARTS["other"]), **square}) for n in names], columns=len(names))
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
        made_by="gradient_shares",
    )


def _shares(run: Run) -> list[tuple[int, Mapping[str, float]]]:
    """Recorded shares by module type; a step whose gradients could not be seen is left out, not drawn as 0."""
    found: list[tuple[int, Mapping[str, float]]] = []
    for row in run.telemetry:
        by_type = (row.get("share") or {}).get("type") or {}
        known = {str(k): v for k, v in by_type.items() if _number(v)}
        if row.get("status") == "ok" and known and _number(row.get("step")):
            found.append((row["step"], known))
    return found


def _thinned(points: Sequence[Any]) -> list[Any]:
    """At most MOST_POINTS of the points, evenly, with the first and the last."""
    every = _every(len(points))
    kept = list(points[::every])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def _every(n: int) -> int:
    return -(-n // MOST_POINTS)


def _thin_note(curves: Sequence[tuple[Run, Sequence[Any]]]) -> str:
    every = max(_every(len(points)) for _, points in curves)
    return "" if every == 1 else f" Every {every}th step is drawn; the CSV has all."

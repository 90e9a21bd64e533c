"""What every figure shares: matplotlib's look, the rule for axes, the n on the figure, and the files beside it.

A figure is a `Drawing`: what is seen and the very numbers in it. Files of one: PNG, PDF, SVG, a CSV of what is drawn,
and `<name>.provenance.json` with the function, the source records and their hashes. The same records give the same
bytes; a file is written only where that changed.

The rule for axes: scores, losses, shares, counts, sizes and times start at 0. Learning rates, items, request rates
and doses that span a factor of 8 are logarithmic. Differences are drawn around 0. No axis is cut to make a difference
look larger.

Conditions differ in colour and marker, seeds in dashes or places, so that a figure can be read in grey and by the
colour-blind. The palette is Okabe and Ito's (jfly.uni-koeln.de/color), darkened where a line on white needs it.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.errors import FormatError, InputError
from veritune.files import atomic, sha256_file, sha256_text
from veritune.records import FigureProvenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#000000", "#5b6066", "#d9d5cb"
SERIES = ("#0067a8", "#c24e00", "#00785a", "#a1487f", "#7a6a00", "#3d3fa8")
MARKERS = "osD^vP"
Dash = str | tuple[float, tuple[float, ...]]
"""A line style of matplotlib: its name, or an offset and the lengths of dashes and gaps."""
DASHES: tuple[Dash, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
WIDTH_IN, HEIGHT_IN = 5.2, 3.2
KINDS = ("png", "pdf", "svg", "csv")
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
Look = dict[str, Any]


@dataclass(frozen=True)
class Drawing:
    """A figure and its numbers. `n` says how many of what were drawn; it is printed on the figure and never empty.

    `sources` are paths of the records in the folder that they are relative to; `made_by` is the function's full name.
    """

    name: str
    title: str
    caption: str
    figure: Any
    header: tuple[str, ...]
    table: Sequence[Sequence[Any]]
    sources: tuple[str, ...]
    made_by: str
    n: str

    def __post_init__(self) -> None:
        if not self.n.strip():
            raise ValueError(f"{self.name}: expected a text for `n` (how many of what the figure shows), found none")
        self.figure.text(0.995, 0.008, f"n: {self.n}", ha="right", va="bottom", fontsize=7.5, color=MUTED)


@contextmanager
def style() -> Iterator[None]:
    """Apply the look of all figures while the block runs."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as a box; that is no reason for a report to fail.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# ---------------------------------------------------------------- axes


def panels(
    columns: int,
    rows: int = 1,
    *,
    width: float = WIDTH_IN,
    height: float = HEIGHT_IN,
    share: bool = True,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    """A figure of panels [rows, columns] with room for the n below and a legend above. Sizes are in inches.

    `share`: all panels have the same axes. `heights` are those of the rows against one another.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    strip = 0.16 / height  # for the n, in shares of the height
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0.005, strip, 0.99, 0.985 - strip)))
    grid = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        tidy(axes)
    return figure, grid


def tidy(axes: Axes, grid: str = "y") -> None:
    """Draw grid lines in one direction only, behind the data, and no tick marks."""
    axes.grid(visible=False)
    axes.grid(visible=True, axis=grid)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def from_zero(axes: Axes, which: str = "y", *, share: bool = False) -> None:
    """Start an axis at 0, or at the lowest value if one is negative; with `share`, also end it at 1 or above."""
    high = axes.get_ylim()[1] if which == "y" else axes.get_xlim()[1]
    least = axes.dataLim.ymin if which == "y" else axes.dataLim.xmin
    start = 1.06 * least if isfinite(least) and least < 0 else 0.0
    ends = (start, max(high, 1.0) if share else high * 1.06)
    (axes.set_ylim if which == "y" else axes.set_xlim)(*ends)


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis with a tick at each value, labelled as a plain number."""
    from matplotlib.ticker import NullLocator

    ticks = sorted(set(values))
    if len(ticks) > 6:
        ticks = [ticks[round(i * (len(ticks) - 1) / 5)] for i in range(6)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:,g}" if tick < 1e6 else f"{tick:.3g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if len(ticks) == 1:
        axes.set_xlim(ticks[0] / 3, ticks[0] * 3)


def look_of(place: int | None) -> Look:
    """Colour and marker of the arm at this index among the declared arms; None: of the untouched baseline."""
    if place is None:
        return {"color": MUTED, "marker": "X"}
    return {"color": SERIES[place % len(SERIES)], "marker": MARKERS[place % len(MARKERS)]}


def legend_above(figure: Figure, entries: Sequence[tuple[str, Look]], columns: int | None = None) -> None:
    """A frameless legend above all panels."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=label.lstrip("_") or "unnamed", **look) for label, look in entries]
    short = sum(len(label) for label, _ in entries) < 50
    figure.legend(
        handles=handles, loc="outside upper left", ncols=columns or (4 if short else 2), frameon=False,
        handlelength=2.6, columnspacing=1.2, borderaxespad=0.1, fontsize=8.5,
    )  # fmt: skip


def shortened(text: str, most: int = 26) -> str:
    """A name, cut to fit beside an axis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


# ---------------------------------------------------------------- files


def svg_text(drawing: Drawing) -> str:
    """The figure as SVG without a background."""
    stream = io.StringIO()
    _settle(drawing.figure)
    drawing.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return stream.getvalue()


def _settle(figure: Figure) -> None:
    """Lay the figure out once for all formats. The solver's last digits differ from run to run, so they are cut."""
    engine = figure.get_layout_engine()
    if engine is None:
        return
    engine.execute(figure)
    figure.set_layout_engine(None)
    for axes in figure.axes:
        axes.set_position([round(x, 5) for x in axes.get_position(original=True).bounds])  # type: ignore[arg-type]
    for text in figure.texts:
        text.set_position((round(text.get_position()[0], 5), round(text.get_position()[1], 5)))


def save(drawing: Drawing, folder: Path, root: Path, svg: str) -> dict[str, Path]:
    """Write a figure's files into `folder`, unless equal files exist; returns paths by kind and `provenance`.

    `svg` is `svg_text` of it; sources are hashed relative to `root`. Raises StoreError where the disk refuses.
    """
    paths = {kind: folder / f"{drawing.name}.{kind}" for kind in KINDS}
    record_path = folder / f"{drawing.name}.provenance.json"
    record = _record_of(drawing, root, svg)
    if all(path.exists() for path in paths.values()) and provenance_of(record_path) == record:
        return {**paths, "provenance": record_path}
    with atomic(paths["csv"]) as stream:
        stream.write(table_text(drawing))
    with atomic(paths["svg"]) as stream:
        stream.write(_on_white(svg))
    with atomic(paths["png"], "wb") as stream:
        drawing.figure.savefig(stream, format="png", dpi=200, facecolor="#ffffff", metadata={"Software": None})
    with atomic(paths["pdf"], "wb") as stream:
        drawing.figure.savefig(stream, format="pdf", facecolor="#ffffff", metadata={"CreationDate": None})
    record.save(record_path)
    return {**paths, "provenance": record_path}


def save_as(drawing: Drawing, path: Path, root: Path | None = None) -> None:
    """Write one figure in the format of the path's suffix, with its CSV and its provenance beside it.

    Sources are hashed relative to `root`, where that is given; else to the figure's own folder.

    Raises InputError for another suffix, StoreError where the disk refuses.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("svg", "png", "pdf"):
        raise InputError(
            f"{path}: expected a .svg, .png or .pdf file.", fix="Give the figure's file one of these suffixes."
        )
    svg = svg_text(drawing)
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    with atomic(path, "wb") as stream:
        drawing.figure.savefig(stream, format=kind, dpi=200, facecolor="#ffffff", metadata=dates[kind])
    with atomic(path.with_suffix(".csv")) as stream:
        stream.write(table_text(drawing))
    _record_of(drawing, root or path.parent, svg).save(path.with_suffix(".provenance.json"))


def _record_of(drawing: Drawing, root: Path, svg: str) -> FigureProvenance:
    return FigureProvenance(
        figure=drawing.name,
        made_by=drawing.made_by,
        sources={path: sha256_file(root / path) for path in drawing.sources if (root / path).is_file()},
        drawing_sha256=sha256_text(svg + table_text(drawing)),
        matplotlib=_version(),
    )


def provenance_of(path: Path) -> FigureProvenance | None:
    """The provenance on disk; None if it is absent or unreadable, so that it is written again."""
    try:
        return FigureProvenance.load(path) if path.exists() else None
    except FormatError:
        return None


def table_text(drawing: Drawing) -> str:
    """The numbers of the figure as CSV."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(drawing.header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in drawing.table)
    return stream.getvalue().encode("utf-8", "replace").decode()


def _on_white(svg: str) -> str:
    """The SVG with a white ground, so that a page in dark colours does not swallow its ink."""
    head, mark, rest = svg.partition('<g id="figure_1">')
    return f'{head}<rect width="100%" height="100%" fill="#ffffff"/>\n {mark}{rest}' if mark else svg


def _version() -> str:
    import matplotlib as mpl

    return str(mpl.__version__)

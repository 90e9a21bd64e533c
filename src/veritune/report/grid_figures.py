"""The figure of a geometry grid: change of M1 and ICC by layer, method and condition, with verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.thresholds import DEFAULTS
from veritune.counting import many
from veritune.drawing import INK, Drawing, panels, save, save_as, shortened, style, svg_text
from veritune.probe.geometry_cells import moved
from veritune.records import CellGrid, GridCell
from veritune.report.geometry_cells import CSV_COLUMNS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh

ON_DARK, ON_LIGHT = "#fefefe", "#111111"
LETTERS = {"reference is the culprit": "C", "generic": "G", "worse": "W", "withheld": "?"}
"""What stands in a cell for its verdict against the reference."""
MOST_LETTERED = 48
"""Layers whose cells have room for a sign; more are shaded alone, and the table has all."""
Run = tuple[str, int | None, int | None]
"""(condition, seed, step)"""


def cell_grid(grid: CellGrid, name: str = "geometry") -> Drawing:
    """Change from the base by layer (x axis) and run (y axis), one panel for each measure and method.

    The shade is the size of the change, a triangle its direction where the corrected p shows it, the letter the verdict
    over the reference.
    """
    shown_panels = list(dict.fromkeys((c.measure, c.method) for c in grid.cells))
    layers = sorted({c.layer for c in grid.cells})
    runs: list[Run] = list(dict.fromkeys((c.condition, c.seed, c.step) for c in grid.cells))
    width = min(3.2 + 0.3 * len(layers), 16.0)
    each = 0.75 + 0.34 * len(runs)
    figure, axes_all = panels(1, len(shown_panels), width=width, height=0.8 + each * len(shown_panels), share=False)
    most = max((abs(c.change) for c in grid.cells), default=0.0) or 1.0
    mesh: Any = None
    for (measure, method), (axes,) in zip(shown_panels, axes_all):
        cells = [c for c in grid.cells if (c.measure, c.method) == (measure, method)]
        mesh = _panel(axes, cells, layers, runs, most)
        axes.set_title(f"{measure.upper()}, {method.replace('_', ' ')}", fontsize=9, color=INK, loc="left")
    axes_all[-1][0].set_xlabel("layer (0: embeddings)")
    figure.colorbar(mesh, ax=list(axes_all[:, 0]), shrink=0.7, aspect=30).set_label("size of the change", fontsize=8)
    alpha, n = float(grid.thresholds["alpha"]), grid.family.values
    used = [f"{letter} {word}" for word, letter in LETTERS.items() if any(c.verdict == word for c in grid.cells)]
    signs = "▲ rose   ▼ fell   · not shown" + ("\n" + ",  ".join(used) if used else "")
    figure.suptitle(signs, fontsize=8.5, x=0.02, ha="left", color=INK)
    beside = grid.reference if isinstance(grid.reference, str) else "each condition's reference"
    against = f" Against {beside}: {', '.join(used)}." if used else ""
    return Drawing(
        name=name,
        title="Change of the geometry by layer, method and condition",
        caption=f"Shade: size of the change from the untouched model. Triangle: it rose or fell by a corrected p below "
        f"{alpha:g} and by a readable amount; a dot: not shown; blank: not measured.{against}",
        figure=figure,
        header=CSV_COLUMNS,
        table=[[getattr(c, column) for column in CSV_COLUMNS] for c in grid.cells],
        sources=(f"{name}.json",),
        made_by=f"{__name__}.cell_grid",
        n=f"{many(len(grid.cells), 'cells')}, {many(len(runs), 'runs')} × {many(len(layers), 'layers')}; "
        f"{n} p corrected",
    )


def _panel(axes: Axes, cells: Sequence[GridCell], layers: Sequence[int], runs: Sequence[Run], most: float) -> QuadMesh:
    """Shade one measure and method; a sign and a letter in each cell where there is room."""
    axes.grid(visible=False)
    by_place = {((c.condition, c.seed, c.step), c.layer): c for c in cells}
    values = [
        [abs(c.change) if (c := by_place.get((run, layer))) else float("nan") for layer in layers] for run in runs
    ]
    mesh = axes.pcolormesh(range(len(layers)), range(len(runs)), values, cmap="Greys", shading="nearest", vmin=0.0,
                           vmax=most, edgecolors="#ffffff", linewidth=0.8)  # fmt: skip
    for y, run in enumerate(runs if len(layers) <= MOST_LETTERED else ()):
        for x, layer in enumerate(layers):
            cell = by_place.get((run, layer))
            if cell is not None:
                colour = ON_DARK if abs(cell.change) > 0.55 * most else ON_LIGHT
                axes.text(x, y, _sign(cell), ha="center", va="center", fontsize=8, color=colour)
    every = max(1, -(-len(layers) // 24))
    axes.set_xticks(range(0, len(layers), every), [str(layer) for layer in layers[::every]])
    axes.set_yticks(range(len(runs)), [_run_name(run) for run in runs], fontsize=8)
    axes.set(xlim=(-0.5, len(layers) - 0.5), ylim=(len(runs) - 0.5, -0.5))
    return mesh


def _sign(cell: GridCell) -> str:
    way = {1: "▲", -1: "▼", 0: "·"}[moved(cell, DEFAULTS.geometry)]
    return way + LETTERS.get(cell.verdict or "", "")


def _run_name(run: Run) -> str:
    name, seed, step = run
    return shortened(name, 18) + "".join(f", {w} {v}" for w, v in (("seed", seed), ("step", step)) if v is not None)


def write_cells(grid: CellGrid, out: Path) -> None:
    """Write the figure alone (.svg, .png, .pdf) with its CSV and provenance, or into a folder in every format."""
    with style():
        if out.suffix:
            save_as(cell_grid(grid, out.stem), out)
            return
        drawing = cell_grid(grid)
        save(drawing, out, out, svg_text(drawing))

"""A flat geometry grid as a table on the screen and as CSV; `grid_figures` draws it. It computes nothing."""

from __future__ import annotations

import csv
import io

from veritune.probe.geometry_cells import CellGrid, GridCell
from veritune.records import to_json
from veritune.report.geometry import columns

CSV_COLUMNS = (
    *("condition", "seed", "step", "method", "layer", "measure", "base", "trained", "change", "low", "high", "p"),
    *("p_adjusted", "ratio", "by_rule", "verdict", "reason"),
)


def cells_table(grid: CellGrid) -> str:
    """One line per cell: values, change with its interval, corrected p, ratio to the reference and its word."""
    rows = [["condition", "seed", "step", "method", "layer", "measure", "base", "trained", "change", "p", "over ref."]]
    for c in grid.cells:
        ends = "" if c.low is None or c.high is None else f" [{c.low:+.3f}, {c.high:+.3f}]"
        rows.append(
            [
                c.condition, _plain(c.seed), _plain(c.step), c.method, str(c.layer), c.measure, _value(c.base),
                _value(c.trained), f"{c.change:+.4f}{ends}", "-" if c.p_adjusted is None else f"{c.p_adjusted:.2g}",
                _over(c),
            ]
        )  # fmt: skip
    return "\n".join(columns(rows))


def _plain(value: int | None) -> str:
    return "-" if value is None else str(value)


def _value(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _over(c: GridCell) -> str:
    if c.verdict is None:
        return "-"
    ratio = "" if c.ratio is None else f"{c.ratio:.2f} "
    return f"{ratio}{c.verdict}" + (f": {c.reason}" if c.reason else "")


def cells_csv(grid: CellGrid) -> str:
    """The cells as CSV with full-precision numbers; unknown ones are empty."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(to_json(cell) for cell in grid.cells)
    return stream.getvalue()

"""A flat geometry grid as a table on the screen and as CSV; `grid_figures` draws it. It computes nothing."""

from __future__ import annotations

import csv
import io

from veritune.display import aligned
from veritune.records import CellGrid, DosePoint, GridCell, to_json

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
    return "\n".join(aligned(rows))


DOSE_COLUMNS = (
    *("condition", "step", "method", "measure", "seeds", "layers", "change", "low", "high", "least", "most"),
    *("reference", "beyond", "beyond_low", "beyond_high"),
)


def dose_table(grid: CellGrid) -> str:
    """One line for each condition and step, seeds pooled; empty where a table names neither steps nor seeds."""
    if not any(point.step is not None or len(point.seeds) > 1 for point in grid.dose):
        return ""
    head = ["condition", "step", "method", "measure", "seeds", "mean change", "95 % over seeds", "least to most"]
    rows = [[*head, "minus reference", "95 % over seeds"]]
    for p in grid.dose:
        where = [p.condition, _plain(p.step), p.method, p.measure, str(len(p.seeds))]
        rows.append([*where, f"{p.change:+.4f}", _ends(p.low, p.high), f"{p.least:+.4f} to {p.most:+.4f}", *_beyond(p)])
    return "\n".join(["by step, seeds pooled, mean over layers:", *aligned(rows)])


def _ends(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"


def _beyond(p: DosePoint) -> tuple[str, str]:
    if p.beyond is None:
        return "-", "-"
    return f"{p.beyond:+.4f} ({p.reference})", _ends(p.beyond_low, p.beyond_high)


def dose_csv(grid: CellGrid) -> str:
    """The pooled points as CSV, numbers in full; an unknown one is empty, seeds and layers are counted."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, DOSE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for point in grid.dose:
        row = {name: getattr(point, name) for name in DOSE_COLUMNS}
        writer.writerow(row | {"seeds": len(point.seeds), "layers": len(point.layers)})
    return stream.getvalue()


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

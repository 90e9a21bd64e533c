"""A geometry record as a plain-text table: one line a layer, every measure beside the others. It computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

from veritune.display import aligned
from veritune.records import GeometryGrid, Json, LayerGeometry, ReferenceRatio
from veritune.records.base import of_plain
from veritune.stats.centroids import MEASURES

HEADS = ("layer", "M1", "M1 ref.", "M1 -top", "ICC", "separation", "drift", "reading")


def geometry_table(record: Json) -> str:
    """Every cell of a `geometry_grid` record as a table: value before and after, corrected p; missing or withheld cells
    with the reason. Raises FormatError for a record with another structure.
    """
    grid = of_plain(GeometryGrid, record, "this record of geometry")
    lines = []
    for method, found in grid.methods.items():
        rows = [list(HEADS)]
        rows += [[str(x.layer), *(_cell(x, name) for name in MEASURES), x.reading] for x in found.layers]
        lines += [
            f"{method}: base to trained, corrected p in brackets",
            *aligned(rows),
            *_missing(found.layers),
            "",
        ]
        cells = (grid.against or {}).get(method, ())
        if cells:
            ratios = [["layer", "measure", "over the reference", "verdict"]]
            ratios += [[str(c.layer), c.measure, _over(c), _verdict(c)] for c in cells]
            lines += [f"{method}: change over the reference's change", *aligned(ratios), ""]
    family = grid.family
    lines.append(
        f"p: swaps of each persona's two values, smallest {family.smallest_p:.2g}; {family.correction} "
        f"({family.values} values)"
    )
    return "\n".join(lines)


def _missing(layers: Sequence[LayerGeometry]) -> list[str]:
    """Why a dash stands in the table: every reason once, with the layers and measures it is about."""
    of: dict[str, list[str]] = {}
    for line in layers:
        for name in MEASURES:
            cell = line.measure(name)
            if cell.change is None:
                of.setdefault(cell.reason or "not measured", []).append(f"{name} in layer {line.layer}")
    return [f"- {why}: {', '.join(cells[:6])}{' ...' if len(cells) > 6 else ''}" for why, cells in of.items()]


def _cell(line: LayerGeometry, name: str) -> str:
    cell = line.measure(name)
    if cell.change is None:
        return "-"
    if name == "separation":
        value = f"{cell.change:+.0%}"
    elif name == "common_drift":
        value = f"{cell.change:.2g}"
    else:
        value = f"{cell.base:.3f} {cell.trained:.3f}"
    return value if cell.p_adjusted is None else f"{value} ({cell.p_adjusted:.2g})"


def _over(cell: ReferenceRatio) -> str:
    if cell.ratio is None:
        return "-"
    return f"{cell.ratio:.2f} = {cell.change:+.4f} / {cell.reference_change:+.4f}"


def _verdict(cell: ReferenceRatio) -> str:
    more = cell.reason or cell.note
    return f"{cell.verdict}: {more}" if more else cell.verdict

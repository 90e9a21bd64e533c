"""The reliability diagram of a `calibration` record: share right against confidence, a bin a point, with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune.errors import InputError
from veritune.records import Json
from veritune.report.figures import GRID, INK, MARKERS, MUTED, SERIES, style
from veritune.store import atomic

FORMATS = ("svg", "png", "pdf")


def draw_reliability(records: Json, path: Path) -> None:
    """Draw every `calibration` record of a mapping (`base`, `trained`, `model`) into one figure file.

    Raises InputError for another kind of file or when there is no such record.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise InputError(f"{path}: expected a .svg, .png or .pdf file.", fix="Name the figure with one of these.")
    found = {k: r for k, r in records.items() if isinstance(r, dict) and r.get("kind") == "calibration"}
    if not found:
        raise InputError("no calibration record to draw.")
    with style(), atomic(path, "wb") as stream:
        figure = _figure(found)
        figure.savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _figure(found: Json) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    for i, (name, record) in enumerate(found.items()):
        colour, marker = SERIES[i % len(SERIES)], MARKERS[i % len(MARKERS)]
        x = [b["confidence"] for b in record["bins"]]
        y = [b["accuracy"] for b in record["bins"]]
        for b in record["bins"]:
            if b["accuracy_low"] is not None:
                axes.plot([b["confidence"]] * 2, [b["accuracy_low"], b["accuracy_high"]], color=colour, linewidth=1)
        ece = record["ece_debiased"]
        bounds = "no interval" if ece["low"] is None else f"{ece['low']:.3f} to {ece['high']:.3f}"
        label = f"{name}: debiased ECE {ece['value']:.3f} ({bounds}), n = {record['n']}"
        axes.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1, label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share right", aspect="equal")
    axes.grid(color=GRID)
    axes.legend(loc="upper left", fontsize=7, frameon=False, labelcolor=INK)
    return figure

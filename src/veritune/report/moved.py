"""The figure of a `weight_series` record: how far weights moved against step, learning rate or rows, a line a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune.errors import InputError
from veritune.records import Json
from veritune.report.figures import GRID, INK, MARKERS, SERIES, STYLE
from veritune.store import atomic

FORMATS = ("svg", "png", "pdf")
AXES = {"step": "optimizer step", "lr": "learning rate", "rows": "rows trained on"}


def draw_series(record: Json, path: Path, axis: str = "step") -> None:
    """Draw the lines of a `weight_series` record against `step`, `lr` or `rows`.

    Against lr and rows only checkpoints that are scored stand, where a study says which. Raises InputError for another
    kind of file, another axis, or an axis on which no line has a place.
    """
    import matplotlib as mpl

    kind = path.suffix.lstrip(".").lower()
    if kind not in FORMATS or axis not in AXES:
        raise InputError(
            f"expected a .svg, .png or .pdf file and an axis of {', '.join(AXES)}; found {path.name} and {axis}.",
        )
    lines = [x for x in record["lines"] if x[axis] is not None and (axis == "step" or x["chosen"] is not False)]
    if not lines:
        raise InputError(f"no line of this series has a known {axis}.", fix="Choose another --axis.")
    with mpl.rc_context(STYLE), atomic(path, "wb") as stream:
        _figure(lines, axis).savefig(stream, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _curve(line: Json, axis: str) -> str:
    """Which line of the plot a checkpoint stands on: what it has in common with its neighbours along the axis."""
    own = {"lr": "learning_rate", "rows": "data_fraction"}.get(axis)
    point = {k: v for k, v in (line.get("point") or {}).items() if k not in (own, "learning_rate")}
    named = [line.get("arm") or line["condition"], *(f"{k} {v}" for k, v in point.items())]
    named.append(None if line["seed"] is None else f"seed {line['seed']}")
    if axis != "lr" and line["lr"] is not None:
        named.append(f"lr {line['lr']:g}")
    return ", ".join(str(n) for n in named if n)


def _figure(lines: list[Any], axis: str) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, NullLocator

    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        curves.setdefault(_curve(line, axis), []).append((line[axis], line["delta_norm"]))
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for i, (name, points) in enumerate(curves.items()):
        x, y = zip(*sorted(points))
        axes.plot(
            x,
            y,
            color=SERIES[i % len(SERIES)],
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            label=name or "weights",
        )
    axes.set(xlabel=AXES[axis], ylabel="norm of the change", ylim=(0, None))
    if axis == "lr":
        rates = sorted({line["lr"] for line in lines})
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])  # a formatter of its own would write TeX
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID)
    axes.legend(fontsize=7, frameon=False, labelcolor=INK)
    return figure

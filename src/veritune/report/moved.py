"""The figure of a `weight_series` record: how far weights moved against step, learning rate or rows, a line a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune.counting import many
from veritune.drawing import Drawing, from_zero, legend_above, log_axis, look_of, panels, save_as, style
from veritune.errors import InputError
from veritune.records import Json

AXES = {"step": "optimizer step", "lr": "learning rate", "rows": "rows trained on"}


def draw_series(record: Json, path: Path, axis: str = "step") -> None:
    """Draw the lines of a `weight_series` record against `step`, `lr` or `rows`, with its CSV beside the figure.

    Against lr and rows only checkpoints that are scored stand, where a study says which. Raises InputError for another
    kind of file, another axis, or an axis on which no line has a place.
    """
    if axis not in AXES:
        raise InputError(f"expected an axis of {', '.join(AXES)}; found {axis}.", fix="--axis step")
    lines = [x for x in record["lines"] if x[axis] is not None and (axis == "step" or x["chosen"] is not False)]
    if not lines:
        raise InputError(f"no line of this series has a known {axis}.", fix="Choose another --axis.")
    with style():
        save_as(_drawing(lines, axis, path.name), path)


def _curve(line: Json, axis: str) -> str:
    """Which line of the plot a checkpoint stands on: what it has in common with its neighbours along the axis."""
    own = {"lr": "learning_rate", "rows": "data_fraction"}.get(axis)
    point = {k: v for k, v in (line.get("point") or {}).items() if k not in (own, "learning_rate")}
    named = [line.get("arm") or line["condition"], *(f"{k} {v}" for k, v in point.items())]
    named.append(None if line["seed"] is None else f"seed {line['seed']}")
    if axis != "lr" and line["lr"] is not None:
        named.append(f"lr {line['lr']:g}")
    return ", ".join(str(n) for n in named if n)


def _drawing(lines: list[Any], axis: str, source: str) -> Drawing:
    from matplotlib.ticker import MaxNLocator

    curves: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        curves.setdefault(_curve(line, axis), []).append((line[axis], line["delta_norm"]))
    figure, grid = panels(1)
    axes, entries = grid[0][0], []
    for place, (name, points) in enumerate(curves.items()):
        look = {**look_of(place), "markersize": 5, "linewidth": 1.2}
        axes.plot(*zip(*sorted(points)), **look)
        entries.append((name or "weights", look))
    axes.set(xlabel=AXES[axis], ylabel="norm of the change")
    if axis == "lr":
        log_axis(axes, [line["lr"] for line in lines])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    from_zero(axes)
    legend_above(figure, entries, columns=1 if max(map(len, curves)) > 30 else 2)
    return Drawing(
        name="weight_series",
        title="How far the weights moved",
        caption="A mark is a checkpoint.",
        figure=figure,
        header=("line", axis, "delta_norm"),
        table=[(name, x, y) for name, points in curves.items() for x, y in sorted(points)],
        sources=(source,),
        made_by=f"{__name__}.draw_series",
        n=many(len(lines), "checkpoints"),
    )

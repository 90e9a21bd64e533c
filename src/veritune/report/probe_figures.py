"""Figures of probes and of the release: gradient alignment between families, reliability, latency by request rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from veritune.counting import many
from veritune.drawing import (
    MUTED,
    Drawing,
    from_zero,
    legend_above,
    log_axis,
    look_of,
    panels,
    shortened,
    tidy,
)
from veritune.records import Json, JsonLike
from veritune.report.read import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ON_DARK, ON_LIGHT = "#fefefe", "#111111"
MOST_NAMED = 16
"""Families whose cosines are written into their cells; more are shaded alone, and the table has all."""


def all_of(records: Records) -> Iterator[Drawing]:
    """Every figure of probes and serving whose records exist."""
    for path, record in records.probes:
        for name, inner in _kinds(record, ""):
            stem = path.rsplit("/", 1)[-1].removesuffix(".json") + (f"_{name}" if name else "")
            if inner.get("kind") == "gradients" and (found := alignment_matrix(inner, path, stem)):
                yield found
        calibrations = {name or "model": r for name, r in _kinds(record, "") if r.get("kind") == "calibration"}
        if calibrations:
            yield reliability(calibrations, path)
    if found := latency(records):
        yield found


def _kinds(record: JsonLike, name: str) -> Iterator[tuple[str, Json]]:
    """The record itself, or those that it holds under names."""
    if not isinstance(record, Mapping):
        return
    if isinstance(record.get("kind"), str):
        yield name, record
        return
    for key, inner in record.items():
        yield from _kinds(inner, "" if key == "record" else str(key))


# ---------------------------------------------------------------- gradients


def alignment_matrix(record: Json, path: str, stem: str) -> Drawing | None:
    """Mean cosine of per-example gradients between families, siblings on the diagonal."""
    matrix = record.get("matrix")
    if not isinstance(matrix, Mapping) or not matrix.get("families"):
        return None
    names, rows_of, cosine = matrix["families"], matrix["rows"], matrix["cosine"]
    size = len(names)
    side = 2.6 + 0.24 * min(size, MOST_NAMED + 4)
    figure, grid = panels(1, width=side + 0.8, height=side)
    axes = grid[0][0]
    axes.grid(visible=False)
    _draw_cells(figure, axes, cosine)
    labels = [f"{shortened(str(name), 12)} ({n})" for name, n in zip(names, rows_of)]
    axes.set_yticks(range(size), labels, fontsize=7)
    axes.set_xticks(range(size), labels, rotation=90, fontsize=7)
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    more = matrix.get("of")
    left = f" The {size} largest of {more} measured families are shown." if more and more > size else ""
    return Drawing(
        name=f"alignment_{stem}",
        title="Do families pull the same way?",
        caption="Mean cosine of per-example gradients: on the diagonal siblings of a family (no row is compared "
        f"with itself), off it strangers. In brackets the rows measured.{left}",
        figure=figure,
        header=("family", "other_family", "rows", "other_rows", "mean_cosine"),
        table=[(names[i], names[j], rows_of[i], rows_of[j], cosine[i][j]) for i in range(size) for j in range(size)],
        sources=(path,),
        made_by=f"{__name__}.alignment_matrix",
        n=f"{many(sum(rows_of), 'rows')} in {many(size, 'families')}",
    )


def _draw_cells(figure: Figure, axes: Axes, cosine: Sequence[Sequence[float | None]]) -> None:
    """Shade every pair, lighter for a larger cosine, with its number where there is room, else with a scale.

    Shades are drawn as shapes: a page that loads nothing shows no embedded image. Numbers keep their colour on a dark
    page, where the shades do not change.
    """
    values = [[float("nan") if v is None else v for v in row] for row in cosine]
    mesh = axes.pcolormesh(range(len(values)), range(len(values)), values, cmap="cividis", shading="nearest",
                           vmin=min(0.0, _least(cosine)), vmax=1.0)  # fmt: skip
    if len(values) > MOST_NAMED:
        figure.colorbar(mesh, ax=axes, shrink=0.8).set_label("mean cosine", fontsize=8)
        return
    for y, row in enumerate(cosine):
        for x, value in enumerate(row):
            ink = ON_DARK if value is not None and value < 0.55 else ON_LIGHT
            axes.text(x, y, _cell(value), ha="center", va="center", fontsize=6.5, color=ink)


def _cell(value: float | None) -> str:
    """`.25`, `-.03`; `none` where there is no pair."""
    if value is None:
        return "none"
    text = f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no negative zero
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _least(cosine: Sequence[Sequence[float | None]]) -> float:
    return min((value for row in cosine for value in row if value is not None), default=0.0)


# ---------------------------------------------------------------- calibration


def reliability(found: Mapping[str, Json], path: str) -> Drawing:
    """Share right against confidence, one point per bin with its interval, one line per model."""
    figure, grid = panels(1, width=4.4, height=4.7)
    axes, entries, rows = grid[0][0], [], []
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
    for place, (name, record) in enumerate(found.items()):
        look = look_of(place)
        for b in record["bins"]:
            if b["accuracy_low"] is not None:
                axes.plot(
                    [b["confidence"]] * 2, [b["accuracy_low"], b["accuracy_high"]], color=look["color"], linewidth=1
                )
            rows.append((name, b["confidence"], b["accuracy"], b["accuracy_low"], b["accuracy_high"], b.get("n")))
        axes.plot([b["confidence"] for b in record["bins"]], [b["accuracy"] for b in record["bins"]], markersize=5,
                  linewidth=1, linestyle=("-", (0, (4, 2)), (0, (1, 1.5)))[place % 3], **look)  # fmt: skip
        ece = record["ece_debiased"]
        bounds = "no interval" if ece["low"] is None else f"{ece['low']:.3f} to {ece['high']:.3f}"
        value = "unknown" if ece["value"] is None else f"{ece['value']:.3f}"
        label = f"{name}: debiased ECE {value} ({bounds}), n = {record['n']}"
        entries.append((label, {**look, "markersize": 5, "linewidth": 1}))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share right", aspect="equal")
    axes.grid(visible=True, axis="both")
    legend_above(figure, entries, columns=1)
    stem = path.rsplit("/", 1)[-1].removesuffix(".json")
    return Drawing(
        name=f"reliability_{stem}",
        title="Is it right as often as it is sure?",
        caption="A point is a bin of answers with like confidence; on the dashed line confidence and share right "
        "agree. The upright lines are intervals of the share.",
        figure=figure,
        header=("model", "confidence", "share_right", "low", "high", "answers"),
        table=rows,
        sources=(path,),
        made_by=f"{__name__}.reliability",
        n="; ".join(f"{record['n']} answers of {name}" for name, record in found.items()),
    )


# ---------------------------------------------------------------- serving


def latency(records: Records) -> Drawing | None:
    """Seconds to the first token by request rate: median and 99th percentile of base and candidate, with intervals."""
    serving = records.serving
    table = serving.numbers.get("table") if serving is not None else None
    if not isinstance(table, list) or not table:
        return None
    figure, grid = panels(1)
    axes, entries, rows = grid[0][0], [], []
    sides = list(dict.fromkeys(row["side"] for row in table))
    for place, side in enumerate(sides):
        for share, dash in ((50, "-"), (99, (0, (4, 2)))):
            mine = [row for row in table if row["side"] == side]
            found = [(row["rate"], row[f"first_token_p{share}"], row) for row in mine]
            for rate, q, row in found:
                rows.append((side, rate, share, q["value"], q["low"], q["high"], row["requests"], row["errors"]))
            known = [(rate * 1.03 ** (place - 0.5), q) for rate, q, _ in found if q["value"] is not None]
            look = look_of(place)
            axes.plot([x for x, _ in known], [q["value"] for _, q in known], linestyle=dash, markersize=5, **look)
            for x, q in known:
                if q["low"] is not None and q["high"] is not None:
                    axes.plot([x, x], [q["low"], q["high"]], color=look["color"], linewidth=0.9)
            entries.append(
                (f"{side}, {'median' if share == 50 else 'p99'}", {**look, "linestyle": dash, "markersize": 5})
            )
    log_axis(axes, [row["rate"] for row in table])
    axes.set_xlabel("requests a second")
    axes.set_ylabel("seconds to the first token")
    from_zero(axes)
    tidy(axes)
    legend_above(figure, entries)
    counts = sorted({row["requests"] for row in table})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    lost = sum(row["errors"] for row in table)
    return Drawing(
        name="latency",
        title="Latency by request rate",
        caption=f"Upright lines are intervals over blocks in which the two sides took turns. Requests that failed "
        f"count as ones that never came; {lost} of {sum(row['requests'] for row in table)} did. A quantile "
        "without an end is drawn without its interval.",
        figure=figure,
        header=("side", "requests_per_s", "percentile", "seconds", "low", "high", "requests", "failed"),
        table=rows,
        sources=("release/serving.json",),
        made_by=f"{__name__}.latency",
        n=f"{n} requests a mark",
    )

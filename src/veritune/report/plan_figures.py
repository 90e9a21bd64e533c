"""Figures of what was planned and chosen: learning rates, batch shapes, adapter size, tokens, detectable gaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from veritune.counting import many
from veritune.drawing import (
    INK,
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
from veritune.records import (
    ConditionShapes,
    JsonLike,
    JsonValue,
    TimedShape,
    TokenSpread,
    Trainable,
)
from veritune.report.read import Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKEN_MARKS = {"mean": "D", "p50": "o", "p90": "s", "p95": "^", "max": "|"}
SPREAD = ("mean", "p50", "p90", "p95", "max")


def all_of(records: Records) -> Iterator[Drawing]:
    """Every figure of plan and choices whose records exist."""
    for draw in (lr_selection, throughput, size_and_tokens, detectable):
        if found := draw(records):
            yield found


def _look(records: Records, condition: str) -> dict[str, JsonLike]:
    names = list(records.study.conditions)
    return look_of(names.index(condition) if condition in names else None)


def lr_selection(records: Records) -> Drawing | None:
    """Validation NLL of every learning rate that was tried, with the chosen one ringed and failed ones at the top."""
    chosen = records.selection
    if chosen is None or not chosen.conditions:
        return None
    figure, grid = panels(1)
    axes, rows, entries = grid[0][0], [], []
    known = [c.validation_nll for x in chosen.conditions.values() for c in x.candidates if c.validation_nll is not None]
    top = max(known, default=1.0) * 1.12
    for name, choice in chosen.conditions.items():
        look = _look(records, name)
        good = [(c.lr, c.validation_nll) for c in choice.candidates if c.validation_nll is not None and c.eligible]
        axes.plot([lr for lr, _ in good], [nll for _, nll in good], linewidth=1.2, markersize=5, **look)
        best = next((c.validation_nll for c in choice.candidates if c.lr == choice.selected), None)
        nll = "unknown" if best is None else f"{best:.3f}"
        entries.append((f"{shortened(name)}: {choice.selected:g}, NLL {nll}", {**look, "markersize": 5}))
        for c in choice.candidates:
            picked = c.lr == choice.selected
            rows.append((name, c.lr, c.validation_nll, c.step, picked, c.failed or ""))
            if c.eligible and picked:
                axes.plot([c.lr], [c.validation_nll], "o", markersize=11, markerfacecolor="none", markeredgecolor=INK)
            elif not c.eligible:
                axes.plot([c.lr], [top], marker="x", markersize=7, color=look["color"])
    entries.append(("chosen", {"marker": "o", "markersize": 9, "linestyle": "none", "markerfacecolor": "none",
                               "markeredgecolor": INK}))  # fmt: skip
    if any(row[-1] for row in rows):
        entries.append(("failed", {"marker": "x", "linestyle": "none", "color": MUTED}))
    log_axis(axes, [row[1] for row in rows])
    axes.set_xlabel("peak learning rate")
    axes.set_ylabel("validation NLL, nats a token")
    axes.set_ylim(0, top * 1.08)
    legend_above(figure, entries)
    return Drawing(
        name="lr_selection",
        title="How the learning rates were chosen",
        caption=f"{chosen.rule}. One run a mark, on seed {chosen.seed}, which no main run uses.",
        figure=figure,
        header=("condition", "learning_rate", "validation_nll_nats_per_target_token", "step", "chosen", "failed"),
        table=rows,
        sources=("selection.json",),
        made_by=f"{__name__}.lr_selection",
        n=f"{many(len(rows), 'runs')}, 1 a mark; {100 * chosen.data_fraction:g} % of the seen rows",
    )


def throughput(records: Records) -> Drawing | None:
    """Rows per second of every batch shape that was timed, labelled with its validation NLL."""
    timings = records.shapes
    if timings is None or not timings.conditions:
        return None
    listed = [(name, shape, declared) for name, shapes in timings.conditions.items()
              for shape, declared in _shapes(shapes)]  # fmt: skip
    rates = [1 / shape.row_s for _, shape, _ in listed if shape.row_s]
    most = max(rates, default=1.0)
    figure, grid = panels(1, height=1.1 + 0.3 * len(listed))
    axes = grid[0][0]
    tidy(axes, "x")
    rows, labels = [], []
    for y, (name, shape, declared) in enumerate(listed):
        rate = 1 / shape.row_s if shape.row_s else None
        look = _look(records, name)
        fill = look["color"] if declared else "#ffffff"
        axes.barh([y], [rate or 0.0], height=0.6, color=fill, edgecolor=look["color"], linewidth=1.4)
        nll = "NLL unknown" if shape.validation_nll is None else f"NLL {shape.validation_nll:.3f}"
        said = ("failed" if rate is None else f"{rate:.3g}/s, {nll}") + _offer(shape)
        axes.text((rate or 0.0) + most * 0.02, y, said, va="center", fontsize=7.5)
        labels.append(f"{shortened(name, 16)}  {shape.rows_per_micro_batch} × {shape.micro_batches}")
        rows.append((name, shape.rows_per_micro_batch, shape.micro_batches, declared, rate, shape.step_s,
                     shape.validation_nll, shape.failed or ""))  # fmt: skip
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.75)
    axes.set_xlabel("rows a second, median optimizer step")
    return Drawing(
        name="throughput",
        title="Throughput by batch shape",
        caption="Rows in a micro-batch × micro-batches a step. Filled: the declared shape; outlined: another. A "
        "faster shape changes nothing by itself.",
        figure=figure,
        header=("condition", "rows_per_micro_batch", "micro_batches", "declared", "rows_per_s", "step_s",
                "validation_nll_nats_per_target_token", "failed"),
        table=rows,
        sources=("shapes.json",),
        made_by=f"{__name__}.throughput",
        n=f"{many(len(listed), 'shapes')}, 1 run each",
    )  # fmt: skip


def _shapes(shapes: ConditionShapes) -> Iterator[tuple[TimedShape, bool]]:
    yield shapes.declared, True
    yield from ((shape, False) for shape in shapes.tried)


def _offer(shape: TimedShape) -> str:
    if shape.offer is None:
        return ""
    return ", offered" if shape.offer.offered else ", not offered"


def size_and_tokens(records: Records) -> Drawing | None:
    """How many parameters each condition trains, and the lengths of its training rows."""
    sizes: dict[str, Trainable] = {}
    sources = []
    for run in records.runs:
        if run.training is not None and run.condition not in sizes:
            sizes[run.condition] = run.training.trainable
            sources.append(run.path("training.json" if not run.manifest.trained_elsewhere else "summary.json"))
    spreads = _spreads(records)
    if not sizes:
        return None
    heights = [0.4 + 0.3 * len(sizes), *([1.0] if spreads else [])]
    figure, grid = panels(1, len(heights), height=0.95 + sum(heights), share=False, heights=heights)
    rows = list(_draw_sizes(grid[0][0], records, sizes))
    if spreads:
        rows += _draw_spreads(grid[1][0], spreads)
        sources.append("plan.json")
    longest = f"; {spreads['whole row'].n:,} rows" if spreads else ""
    return Drawing(
        name="size_and_tokens",
        title="What each condition trains, and on what",
        caption="Above: parameters that train, of all parameters of the model with its adapter; seeds of a condition "
        "train the same ones. Below: tokens of the rows trained on, as the trainer sees them; the longest in figures.",
        figure=figure,
        header=("what", "of", "value"),
        table=rows,
        sources=tuple(sources),
        made_by=f"{__name__}.size_and_tokens",
        n=f"{many(len(sizes), 'conditions')}, 1 run each{longest}",
    )


def _draw_sizes(axes: Axes, records: Records, sizes: Mapping[str, Trainable]) -> Iterator[tuple[JsonValue, ...]]:
    tidy(axes, "x")
    most = max(size.n_trainable for size in sizes.values())
    for y, (name, size) in enumerate(sizes.items()):
        colour = _look(records, name)["color"]
        axes.barh([y], [size.n_trainable], height=0.6, color=colour, edgecolor=INK, linewidth=0.5)
        said = f"{size.n_trainable:,} of {size.n_total:,} ({100 * size.share:.3g} %)"
        axes.text(size.n_trainable + most * 0.02, y, said, va="center", fontsize=8)
        yield "trainable parameters", name, size.n_trainable
        yield "all parameters", name, size.n_total
    axes.set_yticks(range(len(sizes)), [shortened(name, 20) for name in sizes])
    axes.set_ylim(len(sizes) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.9)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.locator_params(axis="x", nbins=4)
    axes.set_xlabel("parameters that train")


def _spreads(records: Records) -> dict[str, TokenSpread]:
    if records.plan is None:
        return {}
    found = {"whole row": records.plan.data.row_tokens, "answer": records.plan.data.answer_tokens}
    return found if all(spread.n and spread.max is not None for spread in found.values()) else {}


def _draw_spreads(axes: Axes, spreads: Mapping[str, TokenSpread]) -> Iterator[tuple[JsonValue, ...]]:
    tidy(axes, "x")
    for y, (part, spread) in enumerate(spreads.items()):
        values = _spread(spread)
        axes.plot([0, values["max"]], [y, y], color=MUTED, linewidth=0.8)
        for name, mark in TOKEN_MARKS.items():
            filled = INK if name in ("mean", "max") else "#ffffff"
            size = 9 if name == "max" else 6
            label = name if y == 0 else None
            axes.plot([values[name]], [y], mark, markersize=size, color=INK, markerfacecolor=filled, label=label)
        axes.text(values["max"], y - 0.2, f"{values['max']:,.0f}", ha="right", va="bottom", fontsize=7.5)
        yield from ((f"tokens, {what}", part, value) for what, value in values.items())
    axes.set_yticks(range(len(spreads)), list(spreads))
    axes.set_ylim(len(spreads) - 0.5, -0.7)
    axes.set_xlim(0, max(spread.max or 1 for spread in spreads.values()) * 1.03)
    axes.set_xlabel("tokens")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=5, frameon=False, fontsize=8, handletextpad=0.1)


def _spread(spread: TokenSpread) -> Mapping[str, float]:
    return {name: float(getattr(spread, name) or 0) for name in SPREAD}


def detectable(records: Records) -> Drawing | None:
    """The smallest gap that each claim's design detects at its n, and the n that settles its margin, as planned."""
    if records.plan is None:
        return None
    reaches = [r for r in records.plan.resolution if r.items and r.detectable and any(r.detectable)]
    if not reaches:
        return None
    figure, grid = panels(1, height=3.5)
    axes, entries, rows, counts, open_ended = grid[0][0], [], [], [], False
    for place, r in enumerate(reaches):
        assert r.items is not None and r.detectable is not None
        look, low, high = look_of(place), *r.detectable
        x = r.items * 1.06 ** (place - (len(reaches) - 1) / 2)  # claims on the same items stand beside one another
        ends = [end for end in (low, high) if end is not None]
        axes.plot([x] * len(ends), ends, linewidth=1.6, markersize=6, **look)
        if low is not None and high is None:
            axes.plot([x], [low * 1.07], marker=6, markersize=6, color=look["color"])  # a caret that points upwards
            open_ended = True
        counts.append(r.items)
        needed = [n for n in r.items_for_margin or () if n is not None]
        if r.margin is not None and needed:
            axes.plot(needed, [r.margin] * len(needed), linestyle=(0, (3, 2)), markerfacecolor="#ffffff", **look)
            counts += needed
        entries.append((f"{shortened(r.claim, 24)} ({r.items:,} items)", {**look, "linewidth": 1.6}))
        rows.append((r.claim, r.zone, r.items, r.families, low, high, r.margin, *(r.items_for_margin or (None, None))))
    entries.append(("items that settle the margin", {"marker": "o", "markerfacecolor": "#ffffff", "color": MUTED,
                                                     "linestyle": (0, (3, 2))}))  # fmt: skip
    if open_ended:
        entries.append(("at worst no gap is detected", {"marker": 6, "color": MUTED, "linestyle": "none"}))
    log_axis(axes, counts)
    axes.set_xlabel("items")
    power = next((r.design.power for r in reaches if r.design is not None), 0.8)
    axes.set_ylabel(f"gap detected with {100 * power:g} % power")
    from_zero(axes)
    legend_above(figure, entries, columns=2)
    return Drawing(
        name="detectable_gap",
        title="What gap each claim's design detects",
        caption="As planned before training: filled marks are the smallest gap that is detected with the items there "
        "are, from the least to the most over what is not known; open marks are the items that settle the margin.",
        figure=figure,
        header=("claim", "zone", "items", "families", "detectable_least", "detectable_most", "margin",
                "items_for_margin_least", "items_for_margin_most"),
        table=rows,
        sources=("plan.json",),
        made_by=f"{__name__}.detectable",
        n="; ".join(sorted({f"{r.items:,} items, {r.seeds[0]} seeds" for r in reaches if r.seeds})) or "see the legend",
    )  # fmt: skip

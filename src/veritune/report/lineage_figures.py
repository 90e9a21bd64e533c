"""The figure of a folder's data versions: a box each, below its parents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.counting import grouped, many
from veritune.data.review import Version, shown
from veritune.drawing import INK, MUTED, Drawing, panels, save_as, shortened, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE_IN, TALL_IN, GAP_IN = 2.9, 0.78, 0.42
MOST_BESIDE = 5
"""Versions beside one another; further ones of the same generation stand in another line below."""


def lineage(versions: Sequence[Version], name: str = "lineage") -> Drawing:
    """One box per version, below all of its parents, with an arrow from each; a retired one is dashed and states its
    reason.
    """
    places = _places(versions)
    columns = max(x for x, _ in places.values()) + 1
    lines = max(y for _, y in places.values()) + 1
    width, height = columns * (WIDE_IN + GAP_IN) + 0.1, lines * (TALL_IN + GAP_IN) + 0.25
    figure, grid = panels(1, width=width, height=height)
    axes = grid[0][0]
    axes.set_axis_off()
    axes.set(
        xlim=(-GAP_IN / 2, columns * (WIDE_IN + GAP_IN) - GAP_IN / 2), ylim=(lines * (TALL_IN + GAP_IN), -GAP_IN / 2)
    )
    for version in versions:
        _box(axes, version, _corner(places[version.sha256]))
        for parent in version.parents:
            if parent in places and parent != version.sha256:
                _arrow(axes, _corner(places[parent]), _corner(places[version.sha256]))
    retired = sum(v.retired is not None for v in versions)
    return Drawing(
        name=name,
        title="Lineage of the data versions",
        caption="A box is a data version, with its rows and what was left out of it; an arrow leads from a parent to "
        "its child. A dashed box may no longer be trained on.",
        figure=figure,
        header=("sha256", "file", "rows", "parents", "how", "left_out", "retired", "successor", "created"),
        table=[_row(v) for v in versions],
        sources=("_lineage.jsonl",),
        made_by=f"{__name__}.lineage",
        n=f"{many(len(versions), 'versions')}, {retired} of them retired",
    )


def _row(v: Version) -> tuple[str | int | None, ...]:
    left_out = "; ".join(f"{n} {why}" for why, n in v.rejects.items())
    return v.sha256, v.file, v.rows, " ".join(v.parents), v.how, left_out, v.retired, v.successor, v.created


def _box(axes: Axes, version: Version, corner: tuple[float, float]) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = corner
    edge = (0, (4, 2)) if version.retired is not None else "-"
    box = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(corner, WIDE_IN, TALL_IN, boxstyle=box, fc="#ffffff", ec=INK, linestyle=edge, zorder=2)
    )
    for i, (line, weight) in enumerate(_lines(version)):
        axes.text(x + 0.09, y + 0.15 + 0.165 * i, line, fontsize=7.5, va="center", color=INK, weight=weight)


def _arrow(axes: Axes, parent: tuple[float, float], child: tuple[float, float]) -> None:
    """An arrow from the parent's foot to the child's head; past other generations it runs between the columns."""
    (x, y), (u, v) = parent, child
    look = {"arrowstyle": "-|>", "color": MUTED, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 1}
    if v - y < 1.5 * (TALL_IN + GAP_IN):
        start, end = (x + WIDE_IN / 2, y + TALL_IN), (u + WIDE_IN / 2, v)
    else:
        beside = x + WIDE_IN + GAP_IN / 2
        start, end = (u + 0.85 * WIDE_IN, v - GAP_IN / 2), (u + 0.85 * WIDE_IN, v)
        corners = ((x + WIDE_IN, y + TALL_IN / 2), (beside, y + TALL_IN / 2), (beside, start[1]), start)
        xs, ys = [p[0] for p in corners], [p[1] for p in corners]
        axes.plot(xs, ys, color=MUTED, linewidth=1.0, clip_on=False)
    axes.annotate("", end, start, annotation_clip=False, arrowprops=look)


def _lines(version: Version) -> list[tuple[str, str]]:
    """What stands in a box: file, hash and rows, what was left out, why it was retired; each with its weight."""
    rows = "rows unknown" if version.rows is None else grouped(version.rows, "rows")
    left_out = ", ".join(f"{n:,} {why}" for why, n in version.rejects.items())
    lines = [(version.file, "bold"), (f"{version.short}  {rows}", "normal")]
    lines.append((f"without {left_out}" if left_out else version.how, "normal"))
    if version.retired is not None:
        lines.append((f"RETIRED: {version.retired}", "bold"))
    return [(shortened(shown(line), 38 if weight == "bold" else 46), weight) for line, weight in lines]


def _corner(place: tuple[int, int]) -> tuple[float, float]:
    return place[0] * (WIDE_IN + GAP_IN), place[1] * (TALL_IN + GAP_IN)


def _places(versions: Sequence[Version]) -> dict[str, tuple[int, int]]:
    """Column and line of every version: generations from above, each in lines of at most `MOST_BESIDE`."""
    generations: dict[int, list[str]] = defaultdict(list)
    for sha, generation in _generations(versions).items():
        generations[generation].append(sha)
    places, line = {}, 0
    for _, members in sorted(generations.items()):
        for i, sha in enumerate(members):
            places[sha] = (i % MOST_BESIDE, line + i // MOST_BESIDE)
        line += -(-len(members) // MOST_BESIDE)
    return places


def _generations(versions: Sequence[Version]) -> dict[str, int]:
    """How many steps a version is from where its line begins; where a ledger runs in a circle, the circle is cut."""
    parents = {v.sha256: [p for p in v.parents if p != v.sha256] for v in versions}
    found = dict.fromkeys(parents, 0)
    for _ in versions:
        before = dict(found)
        for sha, above in parents.items():
            wanted = 1 + max((found[p] for p in above if p in found), default=-1)
            found[sha] = max(found[sha], min(wanted, len(versions) - 1))
        if found == before:
            break
    return found


def write_lineage(versions: Sequence[Version], out: Path, data: str | Path) -> None:
    """The figure (.svg, .png, .pdf) with its CSV and provenance; the ledger lies in `data`, or beside it if a file."""
    root = Path(data)
    with style():
        save_as(lineage(versions, out.stem), out, root if root.is_dir() else root.parent)

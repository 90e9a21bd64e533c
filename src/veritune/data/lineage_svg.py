"""The lineage of data versions as a picture: one SVG, a box a version, an arrow from every parent to its child.

Names and reasons are strangers' text: everything is escaped, and characters that cannot be seen are shown as U+FFFD.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from veritune.data.review import Version, shown

_WIDE, _TALL, _GAP_X, _GAP_Y, _MARGIN = 300, 92, 40, 56, 16
_LETTERS = 42  # of a line that fit into a box


def lineage_svg(versions: Sequence[Version]) -> str:
    """The lineage as SVG: versions in layers, every version below all of its parents; a retired one is dashed and
    states its reason.
    """
    row_of = _layers(versions)
    column: dict[int, int] = defaultdict(int)
    at: dict[str, tuple[int, int]] = {}
    for version in versions:
        row = row_of[version.sha256]
        at[version.sha256] = (_MARGIN + column[row] * (_WIDE + _GAP_X), _MARGIN + row * (_TALL + _GAP_Y))
        column[row] += 1
    width = 2 * _MARGIN + max(column.values(), default=1) * (_WIDE + _GAP_X) - _GAP_X
    height = 2 * _MARGIN + (max(row_of.values(), default=0) + 1) * (_TALL + _GAP_Y) - _GAP_Y
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            'role="img" font-family="system-ui, sans-serif" font-size="12">',
            f"<title>Lineage of {len(versions)} data versions</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L8 4L0 8z" fill="#555"/></marker></defs>',
            f'<rect width="{width}" height="{height}" fill="#fff"/>',
            *(_arrow(at[p], at[v.sha256]) for v in versions for p in v.parents if p in at and p != v.sha256),
            *(_box(v, *at[v.sha256]) for v in versions),
            "</svg>\n",
        ]
    )


def _layers(versions: Sequence[Version]) -> dict[str, int]:
    """How many steps a version is from where its line begins; where a ledger runs in a circle, the circle is cut."""
    parents = {v.sha256: [p for p in v.parents if p != v.sha256] for v in versions}
    row = dict.fromkeys(parents, 0)
    for _ in versions:
        moved = False
        for sha, above in parents.items():
            wanted = 1 + max((row[p] for p in above if p in row), default=-1)
            if row[sha] < wanted < len(versions):
                row[sha], moved = wanted, True
        if not moved:
            break
    return row


def _arrow(parent: tuple[int, int], child: tuple[int, int]) -> str:
    (x, y), (u, v) = (parent[0] + _WIDE // 2, parent[1] + _TALL), (child[0] + _WIDE // 2, child[1])
    return (
        f'<path d="M{x} {y}C{x} {y + _GAP_Y // 2} {u} {v - _GAP_Y // 2} {u} {v}" fill="none" stroke="#555" '
        'marker-end="url(#tip)"/>'
    )


def _box(version: Version, x: int, y: int) -> str:
    rows = "rows unknown" if version.rows is None else f"{version.rows:,} rows"
    rejects = ", ".join(f"{n:,} {why}" for why, n in version.rejects.items())
    lines = [version.file, f"{version.short}  {rows}", f"without {rejects}" if rejects else version.how]
    if version.retired is not None:
        lines.append(f"RETIRED: {version.retired}")
    edge = 'stroke="#b3261e" stroke-dasharray="5 3"' if version.retired is not None else 'stroke="#335"'
    whole = escape("\n".join(shown(line) for line in lines))
    text = "".join(
        f'<text x="{x + 10}" y="{y + 20 + 20 * i}"{_style(i, line)}>{escape(_cut(shown(line)))}</text>'
        for i, line in enumerate(lines)
    )
    box = f'<rect x="{x}" y="{y}" width="{_WIDE}" height="{_TALL}" rx="6" fill="#f6f7fb" {edge}/>'
    return f"<g><title>{whole}</title>{box}{text}</g>"


def _style(number: int, line: str) -> str:
    if number == 0:
        return ' font-weight="600"'
    return ' fill="#b3261e"' if line.startswith("RETIRED: ") else ' fill="#333"'


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else text[: _LETTERS - 1] + "…"

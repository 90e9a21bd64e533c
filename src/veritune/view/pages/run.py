"""Runs: every cell's state, and curves that follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from veritune.errors import VerituneError
from veritune.pipeline.watch import ListedCell, list_cells
from veritune.progress import clock
from veritune.records import RunManifest, TrainingRecord, dumps
from veritune.store import Store
from veritune.view.live import gradient_shares, points, tail, whole
from veritune.view.pages.desk import Desk, UnknownAddress, show, shown_command
from veritune.view.places import Place

MOST = 6
"""Runs drawn over each other; more lines than that are not distinguished."""
LAST = 5
"""Lines of a run's metrics that are shown as they are."""


@dataclass(frozen=True, slots=True)
class ShownCell(ListedCell):
    """A cell with the time left as text, and the machine that it runs or last ran on."""

    left: str = ""
    memory: str = ""

    @classmethod
    def of_cell(cls, cell: ListedCell, left: str, host: str, memory: str) -> ShownCell:
        """The cell with all three."""
        own = {f.name: getattr(cell, f.name) for f in fields(ListedCell)} | {"host": host}
        return cls(**own, left=left, memory=memory)


def run(desk: Desk, request: Request) -> Response:
    """The page of a study's cells."""
    place = desk.place(request)
    if place.kind != "study":
        raise UnknownAddress(f"{place.name} is not a study.")
    cells, problem = _cells(place)
    names = {c.run_id for c in cells}
    asked = [r for r in request.query_params.getlist("run") if r in names][:MOST]
    begun = [
        c.run_id for c in cells if c.state != "waiting" and (place.path / "runs" / c.run_id / "metrics.jsonl").exists()
    ]
    chosen = [r for r in asked if r in begun] or begun[-1:]
    rows = {r: whole(place.path / "runs" / r / "metrics.jsonl") for r in chosen}
    curves = {r: points(found) for r, found in rows.items()}
    named = list(dict.fromkeys(name for found in curves.values() for name in found))
    return show(
        desk,
        "run",
        place=place,
        tab="/run",
        cells=cells,
        problem=problem,
        chosen=chosen,
        curves=named,
        drawn={name: _drawn({r: curves[r].get(name, []) for r in chosen}) for name in named},
        shares=list(_shares(place, chosen)),
        last=[(r, [dumps(row) for row in found[-LAST:]]) for r, found in rows.items()],
        running=any(c.state in ("running", "stalled") and c.run_id in chosen for c in cells),
        error=next((c.error for c in cells if c.run_id in chosen and c.error), ""),
        command=shown_command(["veritune", "status", str(place.path), "--follow"]),
    )


def _shares(place: Place, chosen: Sequence[str]) -> Iterator[tuple[str, list[str], Markup]]:
    """Where the gradient of each run fell, as a picture of now; the colours' names beside it."""
    for run_id in chosen:
        found = gradient_shares(whole(place.path / "runs" / run_id / "telemetry.jsonl"))
        largest = sorted(found, key=lambda name: -sum(value for _, value in found[name]))[:MOST]
        drawn = _drawn({name: found[name] for name in largest})
        if drawn:
            yield run_id, largest, drawn


def _cells(place: Place) -> tuple[list[ShownCell], str]:
    try:
        cells = list_cells(place.path)
    except VerituneError as exc:
        return [], exc.message
    return [ShownCell.of_cell(c, _left(c), _host(place, c), _memory(place, c)) for c in cells], ""


def _memory(place: Place, cell: ListedCell) -> str:
    """The most memory that training held, where it is over and was told."""
    path = Store(place.path).run(cell.run_id) / "training.json"
    try:
        peak = TrainingRecord.load(path).peak_memory.bytes if path.exists() else None
    except VerituneError:
        return ""
    return f"{peak / 2**30:.1f} GiB" if peak is not None else ""


def _left(cell: ListedCell) -> str:
    return f"about {clock(cell.left_s)}" if cell.left_s is not None and cell.state == "running" else ""


def _host(place: Place, cell: ListedCell) -> str:
    """Where a cell runs (from its lock) or ran (from its tries, or its manifest)."""
    if cell.holder or cell.host:
        return cell.holder or cell.host or ""
    path = Store(place.path).run(cell.run_id) / "manifest.json"
    try:
        return str(getattr(RunManifest.load(path), "host", "") or "") if path.exists() else ""
    except VerituneError:
        return ""


def _drawn(by_run: Mapping[str, Sequence[tuple[int, float]]], width: int = 720, height: int = 220) -> Markup:
    """The curves as they are now, for browsers without scripts: one polyline a run over one scale."""
    every = [p for found in by_run.values() for p in found]
    if len(every) < 2:
        return Markup("")
    x0, x1 = min(p[0] for p in every), max(p[0] for p in every)
    y0, y1 = min(p[1] for p in every), max(p[1] for p in every)
    left, right, top, bottom = 56, width - 10, 12, height - 26

    def at(step: int, value: float) -> str:
        x = left + (right - left) * (step - x0) / ((x1 - x0) or 1)
        y = bottom - (bottom - top) * (value - y0) / ((y1 - y0) or 1)
        return f"{x:.1f},{y:.1f}"

    line = Markup('<polyline fill="none" stroke="var(--s{})" stroke-width="2" points="{}"><title>{}</title></polyline>')
    lines = [
        line.format(i % MOST + 1, " ".join(at(*p) for p in found), name)
        for i, (name, found) in enumerate(by_run.items())
        if found
    ]
    mark = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    marks = [
        mark.format(left - 6, bottom, "end", f"{y0:.3g}"),
        mark.format(left - 6, top + 8, "end", f"{y1:.3g}"),
        mark.format(left, height - 8, "start", f"step {x0}"),
        mark.format(right, height - 8, "end", f"step {x1}"),
    ]
    head = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}" fill="currentColor">')
    drawn = Markup("").join([*lines, *marks])
    return head.format(", ".join(by_run), width, height) + drawn + Markup("</svg>")


def run_live(desk: Desk, request: Request) -> Response:
    """What a run has written since byte `from`: points of the curves, and the byte to read from next."""
    place = desk.place(request)
    name, start = request.query_params.get("run", ""), request.query_params.get("from", "0")
    runs = {p.parent.name: p for p in (place.path / "runs").glob("*/metrics.jsonl")}
    if name not in runs:
        raise UnknownAddress("There is no such run.")
    found = tail(runs[name], int(start) if start.isdecimal() and len(start) < 16 else 0)
    return JSONResponse({"next": found.next, "points": points(found.rows)}, headers={"Cache-Control": "no-store"})

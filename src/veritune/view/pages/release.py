"""Release: gates, waivers, bundles, channels, the rollback drill, as recorded."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from veritune.errors import VerituneError
from veritune.ledger import Ledger
from veritune.store import read_json
from veritune.view.index import dict_at
from veritune.view.pages.desk import Desk, UnknownAddress, show, shown_command
from veritune.view.places import Place

if TYPE_CHECKING:
    from veritune.records import JsonLike

SIGNS = {"passed": "✔", "failed": "✘", "undecided": "◇", "waived": "◇"}


def release(desk: Desk, request: Request) -> Response:
    """The page."""
    place = desk.place(request)
    if place.kind != "study":
        raise UnknownAddress(f"{place.name} is not a study.")
    gates, waivers, problem = _gates(place)
    channels, more = _channels(desk.registry)
    return show(
        desk,
        "release",
        place=place,
        tab="/release",
        gates=gates,
        waivers=waivers,
        problem=" ".join(filter(None, (problem, more))),
        bundles=_bundles(place),
        channels=channels,
        drill=_drill(place),
        command=shown_command(["veritune", "gate", str(place.path)]),
    )


def _gates(place: Place) -> tuple[dict[str, JsonLike] | None, list[str], str]:
    """The newest evaluation and every waiver."""
    path = place.path / "release" / "gates.jsonl"
    if not path.exists():
        return None, [], ""
    try:
        entries = Ledger(path).read()
    except VerituneError as exc:
        return None, [], exc.message
    today = datetime.now(UTC).date().isoformat()
    waivers = [
        f"{e.get('gate')}: waived by {e.get('by')} until {e.get('until')}"
        f"{' (expired)' if str(e.get('until')) < today else ''}: {e.get('reason')}"
        for e in entries
        if e.get("kind") == "waiver"
    ]
    newest = next((e for e in reversed(entries) if e.get("kind") != "waiver"), None)
    return (_table(newest, today) if newest else None), waivers, ""


def _table(entry: Mapping[str, Any], today: str) -> dict[str, JsonLike]:
    """The gates as they were evaluated; one whose waiver has run out since is undecided again."""
    given = dict_at(entry, "waived")
    until = {name: str(w.get("until")) for name, w in given.items() if isinstance(w, dict)}
    over = sorted(name for name, day in until.items() if day < today)
    waived = set(given) - set(over)
    rows = []
    gates = entry.get("gates")
    for g in (g for g in (gates if isinstance(gates, list) else ()) if isinstance(g, dict)):
        name, status = str(g.get("gate")), str(g.get("status"))
        status = "waived" if status == "undecided" and name in waived else status
        said = f"{g.get('message')}{f'; its waiver ran out on {until[name]}' if name in over else ''}"
        rows.append({"gate": name, "status": status, "sign": SIGNS.get(status, "–"), "message": said})
    head = f"{entry.get('run_id') or ''}: {entry.get('status')}, evaluated {entry.get('created')}"
    head += f". Since then the waiver of {', '.join(over)} has run out: evaluate again." if over else ""
    return {"head": head, "rows": rows}


def _bundles(place: Place) -> list[dict[str, JsonLike]]:
    """Bundles that lie in the study folder, by their manifests."""
    found: list[dict[str, JsonLike]] = []
    for path in sorted({*place.path.glob("*/manifest.json"), *place.path.glob("release/*/manifest.json")}):
        try:
            manifest = read_json(path)
        except VerituneError:
            continue
        files = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
            continue
        rows = [{"path": k, "bytes": v.get("bytes"), "sha256": str(v.get("sha256"))} for k, v in files.items()]
        found.append({"name": path.parent.relative_to(place.path).as_posix(), "files": rows})
    return found


def _drill(place: Place) -> str:
    path = place.path / "release" / "rollback.json"
    if not path.exists():
        return ""
    try:
        record = read_json(path)
    except VerituneError as exc:
        return exc.message
    return (
        f"{record.get('status')}: {record.get('message')}" if isinstance(record, dict) else "rollback.json is damaged"
    )


def _channels(registry: str | None) -> tuple[list[dict[str, Any]], str]:
    """Channels of a local registry with their history."""
    if registry is None:
        return [], ""
    from veritune.release.registry.channels import CHANNELS, history, history_text

    try:
        found = [{"name": name, "lines": history_text(history(registry, name), name).splitlines()} for name in CHANNELS]
    except VerituneError as exc:
        return [], exc.message
    return found, ""

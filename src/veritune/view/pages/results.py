"""The results indexes under the named folders: on the home page, and on the page of a study that they hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from veritune.errors import InputError, VerituneError
from veritune.results.index import Result, ResultsIndex, Said, read_index, say
from veritune.results.ledger import ResultsLedger
from veritune.view.pages.desk import Desk, UnknownAddress, to
from veritune.view.places import Place


def of_folders(desk: Desk) -> Iterator[tuple[ResultsIndex | None, str]]:
    """Every index, or None with what is wrong with it. No file of a study is hashed for a page."""
    for folder in _folders(desk):
        try:
            yield read_index(folder, rehash=False), ""
        except (VerituneError, OSError) as exc:
            yield None, str(exc)


def of_study(desk: Desk, place: Place) -> list[tuple[int, Result]]:
    """The results that came from this study, each with the number of its index; a damaged index gives none."""
    return [
        (number, result)
        for number, (index, _) in enumerate(of_folders(desk))
        if index is not None
        for result in index.results
        if (Path(index.folder) / result.source.folder).resolve() == place.path.resolve()
    ]


def _folders(desk: Desk) -> list[Path]:
    """Folders with an index: those that were named, and `results` in them."""
    named = [folder if folder.is_dir() else folder.parent for folder in desk.folders or (Path(),)]
    inside = [path for folder in named for path in (folder, folder / "results")]
    return list({path.resolve(): path for path in inside if ResultsLedger(path).exists()}.values())


def comment(desk: Desk, form: Mapping[str, str], request: Request) -> Response:
    """Record a comment on a result of this study, then show the study."""
    place, folders = desk.place(request), _folders(desk)
    asked = form.get("index", "")
    if not (asked.isdecimal() and len(asked) < 4 and int(asked) < len(folders)):
        raise UnknownAddress("There is no such results index here.")
    known = {(number, result.id) for number, result in of_study(desk, place)}
    if (int(asked), form.get("on", "")) not in known:
        raise UnknownAddress("That result does not come from this study.")
    if not form.get("by", "").strip():
        raise InputError("A comment needs its author.", fix="Go back and write your name.")
    say(folders[int(asked)], Said(form.get("text", ""), on=form["on"]), by=form["by"])
    return to(f"/p/{place.id}#noted")

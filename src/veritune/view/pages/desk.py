"""What all pages share: the places, the templates, answers and errors."""

from __future__ import annotations

import hmac
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader, pass_context
from jinja2.runtime import Context
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from veritune.errors import InputError, StaleError, VerituneError
from veritune.records import JsonLike
from veritune.report.page import environment
from veritune.results.screen import standing_lines
from veritune.view.diff import LONGEST
from veritune.view.guard import ServerRules
from veritune.view.places import Place, score_files

STATIC = {
    "report.css": ("report", "templates/report.css", "text/css"),
    "view.css": ("view", "static/view.css", "text/css"),
    "view.js": ("view", "static/view.js", "text/javascript"),
    "htmx.min.js": ("view", "static/htmx.min.js", "text/javascript"),
    "uPlot.iife.min.js": ("view", "static/uPlot.iife.min.js", "text/javascript"),
    "uPlot.min.css": ("view", "static/uPlot.min.css", "text/css"),
}
TABS = {
    "study": (
        *(("", "Study"), ("/samples", "Samples"), ("/run", "Run")),
        *(("/audit", "Audit & review"), ("/release", "Release")),
    ),
    "audit": (("/audit", "Audit & review"),),
    "scores": (("/samples", "Samples"),),
}  # fmt: skip
MOST_FORM = 2_000_000
"""Bytes of a form; an edited row is text."""


class UnknownAddress(InputError):
    """An address that leads to no page."""


@dataclass(frozen=True)
class Desk:
    """The places that this server shows, and its rules."""

    places: tuple[Place, ...]
    rules: ServerRules
    registry: str | None = None
    folders: tuple[Path, ...] = ()

    def place(self, request: Request) -> Place:
        """The place that an address names. Raises UnknownAddress."""
        return self.find(str(request.path_params["place"]))

    def find(self, name: str) -> Place:
        """A place by its id. Raises UnknownAddress."""
        found = next((p for p in self.places if p.id == name), None)
        if found is None:
            raise UnknownAddress("There is no such study or folder here.", fix="The home page lists what there is.")
        return found


@cache
def _environment() -> Environment:
    found: Environment = environment().overlay(
        loader=ChoiceLoader(
            [
                PrefixLoader({"view": PackageLoader("veritune.view", "templates")}),
                PackageLoader("veritune.report"),
            ]
        )
    )
    found.filters = {**found.filters, "href": _href, "cut": _cut}
    return found


def _cut(text: JsonLike) -> str:
    """A text as far as a page shows it, with its length where that is not all."""
    whole = str(text)
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]} … ({len(whole):,} characters in all)"


@pass_context
def _href(context: Context, path: str) -> str:
    """A file of the place that the page is about: where the report has a relative path, the server has an address."""
    place = context.get("place")
    return f"/p/{place.id}/files/{quote(str(path), safe='/')}" if place else quote(str(path), safe="/")


def show(
    desk: Desk, template: str, *, status: int = 200, tab: str | None = None, place: Place | None = None, **more: Any
) -> HTMLResponse:
    """A page rendered from its template."""
    facts = {
        "version": metadata.version("veritune"),
        "edit": desk.rules.edit,
        "form": desk.rules.form,
        "loopback": desk.rules.token is None,
        "tab": tab,
        "tabs": TABS[place.kind] if place else (),
        "place": place,
        "command": "",
        "standing": standing_lines,
        **more,
    }
    text = _environment().get_template(f"view/{template}.html.j2").render(**facts)
    return HTMLResponse(text.encode("utf-8", "replace"), status, headers={"Cache-Control": "no-store"})


def failure(desk: Desk, status: int, message: str, fix: str = "") -> HTMLResponse:
    """An error as a page."""
    title = {404: "Not found", 409: "Decided elsewhere"}.get(status, "This cannot be shown")
    return show(desk, "error", status=status, title=title, message=message, fix=fix)


def writing(
    desk: Desk, page: Callable[[Desk, Mapping[str, str], Request], Response]
) -> Callable[[Request], Awaitable[Response]]:
    """A handler for a form: it checks the form's token, and turns errors into a page."""

    async def handler(request: Request) -> Response:
        body = b""
        async for block in request.stream():
            body += block
            if len(body) > MOST_FORM:
                return failure(desk, 413, "The form is larger than 2 MB.")
        form = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
        if not hmac.compare_digest(form.get("form", "").encode(), desk.rules.form.encode()):
            return failure(desk, 403, "This form was loaded before the server was restarted.", "Load the page again.")
        try:
            return page(desk, form, request)
        except StaleError as exc:
            return failure(desk, 409, exc.message, exc.fix)
        except VerituneError as exc:
            return failure(desk, 422, exc.message, exc.fix)

    return handler


def static(desk: Desk, request: Request) -> Response:
    """A style sheet or script by its name."""
    name = str(request.path_params["name"])
    if name not in STATIC:
        raise UnknownAddress("There is no such file.")
    where, path, kind = STATIC[name]
    folder = files("veritune.report") if where == "report" else files("veritune.view")
    body = folder.joinpath(path).read_bytes()
    return Response(body, media_type=kind, headers={"Cache-Control": "public, max-age=3600"})


def to(address: str) -> RedirectResponse:
    """A redirect after a form to the page to show, which the browser requests with GET."""
    return RedirectResponse(address, status_code=303)


def labels_of(place: Place) -> dict[str, str]:
    """The label of a score file on a page: for a study's runs, condition and seed."""
    if place.kind != "study":
        return {name: name for name in score_files(place)}
    found = {}
    for name in score_files(place):
        run_id = name.split("/")[0]
        head, _, last = run_id.rpartition("-")
        arm, _, seed = head.rpartition("-s")
        found[name] = f"{arm} · seed {seed}" if seed.isdecimal() and arm else head or last
    return found


def shown_command(parts: Sequence[str]) -> str:
    """A command line to copy."""
    return " ".join(shlex.quote(part) for part in parts)

"""Compare: score sets picked in the page, and the answer of `veritune compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from veritune.errors import InputError, VerituneError
from veritune.view.pages.desk import Desk, labels_of, show, shown_command
from veritune.view.places import score_files


def compare(desk: Desk, request: Request) -> Response:
    """The comparison page: the form, and below it the result."""
    query = request.query_params
    place = desk.find(query["place"]) if query.get("place") else None
    files = score_files(place) if place else {}
    a, b = ([name for name in query.getlist(side) if name in files] for side in ("a", "b"))
    asked = {k: query.get(k, "").strip() for k in ("margin", "zone", "family")} | {"fixed": query.get("fixed") == "1"}
    facts: dict[str, Any] = {"text": "", "problem": "", "command": ""}
    if a and b:
        try:
            facts["text"], facts["command"] = _answer(files, a, b, asked)
        except VerituneError as exc:
            facts["problem"] = f"{exc.message} {exc.fix}".strip()
    elif place and (query.getlist("a") or query.getlist("b")):
        facts["problem"] = "Pick at least one file for A and one for B."
    labels = labels_of(place) if place else {}
    facts |= {"files": list(files), "labels": labels, "a": a, "b": b, "asked": asked}
    return show(desk, "compare", place=place, tab="compare", places=desk.places, **facts)


def _answer(files: Mapping[str, Path], a: Sequence[str], b: Sequence[str], asked: Mapping[str, Any]) -> tuple[str, str]:
    """The text of the comparison, and the command line that prints the same."""
    from veritune.decide.commands import CompareOptions
    from veritune.decide.commands import compare as compare_sides
    from veritune.decide.screen import render_text
    from veritune.decide.sides import Side
    from veritune.evaluate.logs import Reading

    margin = _number(asked["margin"])
    sides = [
        Side("A", tuple(files[name] for name in a)),
        Side("B", tuple(files[name] for name in b), fixed=asked["fixed"]),
    ]
    reading = Reading(family=asked["family"] or None)
    options = CompareOptions(margin=margin, zone=asked["zone"] or None, reading=reading)
    text = render_text(compare_sides(sides, options))
    parts = ["veritune", "compare", *(f"{s.name}={','.join(map(str, s.paths))}" for s in sides)]
    parts += ["--fixed", "B"] if asked["fixed"] else []
    for option in ("margin", "zone", "family"):
        parts += [f"--{option}", asked[option]] if asked[option] else []
    return text, shown_command(parts)


def _number(text: str) -> float | None:
    if not text:
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise InputError(f"Margin: {text[:40]!r} is not a number.") from None

"""What references filled: their numbers are right when a fresh filling says the same, whatever the words around say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from veritune.errors import InputError
from veritune.writeup.fill import MD_BLOCK, MD_DONE, Filler


@dataclass(frozen=True, slots=True)
class FilledSpan:
    """The text that a reference filled at [start, end), and what is wrong with it: `message` is empty if nothing is."""

    start: int
    end: int
    name: str
    rule: str = ""
    message: str = ""
    suggestion: str = ""


def filled_spans(source: str, filler: Filler, page: Path) -> list[FilledSpan]:
    """The filled references of a Markdown text, each compared with the present records."""
    found = [_compared(m.start(2), m.end(2), m.group(1).strip(), m.group(2), filler) for m in MD_DONE.finditer(source)]
    for m in MD_BLOCK.finditer(source):
        name = m.group(1).strip()
        if name.startswith("table."):
            found.append(_block(m.start(2), m.end(2), name, m.group(2).strip("\n"), filler, page))
    return found


def _compared(start: int, end: int, name: str, printed: str, filler: Filler) -> FilledSpan:
    try:
        text = filler.value(name)
    except InputError as exc:
        return FilledSpan(start, end, name, "number.marker", str(exc), "Correct the name, then fill the page again.")
    if text == printed:
        return FilledSpan(start, end, name)
    message = f"{name} was filled with {printed.strip()!r}; the records say {text!r}"
    return FilledSpan(start, end, name, "number.stale", message, "Fill the page again: veritune writeup fill PAGE.")


def _block(start: int, end: int, name: str, printed: str, filler: Filler, page: Path) -> FilledSpan:
    try:
        text = filler.block(name, "markdown", page)
    except InputError as exc:
        return FilledSpan(start, end, name, "number.marker", str(exc), "Correct the name, then fill the page again.")
    if text == printed:
        return FilledSpan(start, end, name)
    message = f"the table {name} differs from the present records"
    return FilledSpan(start, end, name, "number.stale", message, "Fill the page again: veritune writeup fill PAGE.")

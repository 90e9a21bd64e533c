"""Writes docs/reference/files.md from the classes that read and write the files.   python docs/make_files.py"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from veritune.records.base import FORMAT_VERSION, RecordPart
from veritune.records.formats import ENTRIES, FILES, GEOMETRY, LINES, PROBES

OUT = Path(__file__).parent / "reference" / "files.md"
INTRO = f"""# File formats

Made from the classes of `veritune.records` by `make docs`; do not edit. This is format {FORMAT_VERSION}. Every JSON
file holds its `format`; a file of another format is refused. Reading is strict: an unknown key, a missing key, or a
value of another type is an error that names the file and the place in it. A key marked *optional* is left out where it
does not apply. [Files of a study](../files.md) says what each file is for, and what is hashed.
"""


def text() -> str:
    """The whole page."""
    seen: list[type[RecordPart]] = []
    sections = [_section(f"`{path}`", kind, seen) for path, kind in FILES.items()]
    sections += [_section(f"`{path}`, a line", kind, seen) for path, kind in LINES.items()]
    for path, kinds in ENTRIES.items():
        sections += [_section(f"`{path}`, an entry: {kind.__name__}", kind, seen) for kind in kinds]
    sections += [_section(f"`{path}`", kind, seen) for path, kind in GEOMETRY.items()]
    sections += [_section(f"`probes/`, a record of kind `{name}`", kind, seen) for name, kind in PROBES.items()]
    parts: list[str] = []
    listed: set[type[RecordPart]] = set()
    while new := [kind for kind in dict.fromkeys(seen) if kind not in listed]:
        listed |= set(new)
        parts += [_section(kind.__name__, kind, seen) for kind in new]
    return "\n".join([INTRO, *sections, "# Parts of files\n", *parts])


def _section(title: str, kind: type[RecordPart], seen: list[type[RecordPart]]) -> str:
    about = (inspect.getdoc(kind) or "").split("\n\n>>>")[0]
    lines = [f"## {title}\n", f"{about}\n", "| key | type | |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {shape} | {note} |" for name, shape, note in _rows(kind, seen)]
    return "\n".join(lines) + "\n"


def _rows(kind: type[RecordPart], seen: list[type[RecordPart]]) -> Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        note = "optional" if field.name in kind.ABSENT_WHEN_NONE else ""
        yield field.name, _type(hints[field.name], seen, optional=bool(note)), note


def _type(hint: Any, seen: list[type[RecordPart]], *, optional: bool = False) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_type(a, seen) for a in args if not (optional and a is type(None))]
        return " or ".join(kinds)
    if origin is typing.Literal:
        return ", ".join(f"`{a!r}`".replace("'", '"') for a in args)
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return f"list of {_type(args[0], seen)}"
    if origin is tuple:
        return f"[{', '.join(_type(a, seen) for a in args)}]"
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "object" if args[1] is Any else f"name → {_type(args[1], seen)}"
    if isinstance(hint, type) and issubclass(hint, RecordPart):
        seen.append(hint)
        return f"[{hint.__name__}](#{re.sub('[^a-z0-9]', '', hint.__name__.lower())})"
    return {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}.get(hint, "any")


def main() -> None:
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(text(), encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()

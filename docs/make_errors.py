"""Writes docs/errors.md from the tree of exceptions.   python docs/make_errors.py"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

from veritune import errors

OUT = Path(__file__).with_name("errors.md")
INTRO = """# Errors

Made from `veritune.errors` by `make docs`; do not edit.

An error is one line: what was expected, what was found, what to do next. `veritune --debug …` adds the traceback with
the causes. In Python, `except veritune.VerituneError` catches all of them; `message` has the text, `fix` the next step.

| exit status | meaning |
| --- | --- |
| 0 | fine |
| 1 | the input or the machine |
| 2 | a gate failed, or a claim is not supported |
| 3 | in use by another process |

| error | a kind of | exit status | when |
| --- | --- | --- | --- |
"""


def text() -> str:
    """The whole page."""
    return INTRO + "".join(_rows(errors.VerituneError))


def _rows(kind: type[errors.VerituneError]) -> Iterator[str]:
    about = " ".join((inspect.getdoc(kind) or "").split())
    parent = kind.__bases__[0].__name__
    yield f"| `{kind.__name__}` | `{parent}` | {kind.exit_code} | {about} |\n"
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _rows(child)


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
    print(f"wrote {OUT}")

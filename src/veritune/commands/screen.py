"""What a person reads on a terminal: lines that fit its width, words of outcome in colour.

A pipe, a file and `--json` get the text as it stands. Colours follow NO_COLOR and TERM as `rich` reads them.
"""

from __future__ import annotations

import re
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from veritune.commands.lazy import lazy
from veritune.commands.terminal import plain

if TYPE_CHECKING:
    from rich import console as consoles
    from rich import text as texts
else:
    consoles, texts = lazy("rich.console"), lazy("rich.text")

COLUMN = re.compile(r"\S(\s{2,})(?=\S)")
"""The gap behind the first column of a line."""
DEEPEST = 24
"""Columns from which the second column of a line is too far right for what follows it to stand below it."""
STYLES = {
    r"\b(supported|passed|done|PASSED)\b": "green",
    r"\b(refuted|failed|broken|stalled|FAILED|STALE|BROKEN)\b": "red",
    r"\b(inconclusive|undecided|stopped|warning|exploratory|stale)\b": "yellow",
    r"\b(running)\b": "cyan",
    r"(?m)^ *(may not|may write)\b": "bold",
}


def put(text: str, *, raw: bool = False) -> None:
    """Print the text; on a terminal, fitted to its width and with colours, unless `raw` (for JSON)."""
    if raw or not sys.stdout.isatty():
        print(text)
        return
    stream: Any = sys.stdout
    console = consoles.Console(file=stream)
    if console.no_color or not console.is_terminal or console.color_system is None:
        print(fitted(text, console.width))
        return
    coloured = texts.Text(plain(fitted(text, console.width)))
    for pattern, style in STYLES.items():
        coloured.highlight_regex(pattern, style)
    with console.capture() as caught:
        console.print(coloured, soft_wrap=True)
    getattr(stream, "control", stream.write)(caught.get())


def fitted(text: str, width: int) -> str:
    """The text with lines of at most `width` characters, where words allow: the rest of a cell continues below in its
    column.
    """
    return "\n".join(part for line in text.split("\n") for part in _wrapped(line, max(width, 20)))


def _wrapped(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    own = len(line) - len(line.lstrip(" "))
    gap = COLUMN.search(line)
    below = gap.end() if gap is not None and gap.end() <= min(DEEPEST, width // 2) else min(own + 2, width // 2)
    head = textwrap.wrap(
        line,
        width,
        subsequent_indent=" " * below,
        replace_whitespace=False,
        drop_whitespace=True,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return head or [line]

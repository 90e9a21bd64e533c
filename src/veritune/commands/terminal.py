"""What is printed is text: a name or an id from a stranger's file moves no cursor, hides no line and changes no title.

`plain_streams` puts a filter before stdout and stderr. Control characters (C0, C1, DEL; not newline and tab) and the
bidirectional overrides come out as `\\u001b`, which is also how JSON spells them, so that `--json` stays JSON. What a
stream cannot encode comes out the same way.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> str:
    """The text with every control character, bidirectional override and lone surrogate written as an escape."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class PlainStream:
    """A text stream that writes `plain` text. `control` writes our own escape sequences, such as those that redraw a
    progress line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a test's stream may have no such method
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """Write the text with its control characters escaped; returns the number of characters given."""
        self._stream.write(plain(text))
        return len(text)

    def control(self, text: str) -> None:
        """Write one of our own escape sequences unchanged."""
        self._stream.write(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each text."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr (`>&-`) an empty one.

    Without this the next file that is opened gets the number of stdout, and whatever a library prints ends in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


@contextlib.contextmanager
def plain_streams() -> Iterator[None]:
    """Filter stdout and stderr through `plain` until the block ends."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(PlainStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before

"""Standard input (`-`) and pipes (`<(...)`) as files, for readers that look twice or go by a file's ending."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import BinaryIO

from veritune.errors import FormatError, InputError
from veritune.untrusted import parse_json

_BEGINNINGS = {
    b"PAR1": ".parquet",
    b"ARROW1": ".arrow",
    b"\x1f\x8b": ".jsonl.gz",
    b"\x28\xb5\x2f\xfd": ".jsonl.zst",
}
"""What a format's files begin with: the magic numbers of Parquet, Arrow, gzip and Zstandard."""


class Spool:
    """Saves the content of standard input and pipes as files below `folder`, reading each pipe once."""

    def __init__(self, folder: Path, stdin: BinaryIO | None = None) -> None:
        self._folder = folder
        self._stdin = stdin
        self._taken: set[str] = set()

    def file(self, path: Path, text: str | None = None) -> Path:
        """The path itself, or for a pipe the file that holds its content. Raises InputError for a pipe that is named
        twice.

        With `text` the file gets the ending of the format that it begins with, and `text` where that is none.
        """
        if str(path) != "-" and not path.is_fifo():
            return path
        name = "stdin" if str(path) in ("-", "/dev/stdin") else f"pipe{path.name}"
        if name in self._taken:
            raise InputError(
                f"{path}: a pipe can be read only once, but it was named twice.",
                fix="Save its content to a file, and name that file for both.",
            )
        self._taken.add(name)
        kept = self._folder / name
        with kept.open("wb") as out:
            if str(path) == "-":
                shutil.copyfileobj(self._stdin or sys.stdin.buffer, out)
            else:
                with path.open("rb") as pipe:
                    shutil.copyfileobj(pipe, out)
        return kept if text is None else kept.rename(kept.with_name(name + (_ending(kept) or text)))

    def name(self, given: str, text: str) -> str:
        """`given` unless it is a pipe, else the file with its content; for arguments that may also be hub ids."""
        kept = self.file(Path(given), text)
        return given if kept == Path(given) else str(kept)


def _ending(file: Path) -> str | None:
    """By magic number; JSON lines where the first line is a JSON value and another follows, JSON where it is none."""
    with file.open("rb") as stream:
        start = stream.readline()
        follows = bool(stream.readline().strip())
    for beginning, ending in _BEGINNINGS.items():
        if start.startswith(beginning):
            return ending
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] not in (b"{", b"["):
        return None
    return ".jsonl" if follows and _is_json(text) else ".json"


def _is_json(text: bytes) -> bool:
    try:
        parse_json(text)
    except (FormatError, ValueError):
        return False
    return True

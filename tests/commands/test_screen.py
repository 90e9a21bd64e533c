"""A terminal gets lines that fit and colours; a pipe, a file and JSON get the text as it stands."""

from __future__ import annotations

import io
import re

import pytest

from veritune.commands.screen import fitted, put
from veritune.commands.terminal import plain_streams

TEXT = "decision     inconclusive: the 95 % interval of the difference between both arms holds 0\nlearns: supported"
ESC = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(monkeypatch: pytest.MonkeyPatch, text: str, stream: io.StringIO, *, raw: bool = False, **env: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "40", **env}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", stream)
    with plain_streams():
        put(text, raw=raw)
    return stream.getvalue()


def test_a_pipe_and_json_get_the_text_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert written(monkeypatch, TEXT, io.StringIO()) == TEXT + "\n"
    assert written(monkeypatch, TEXT, Terminal(), raw=True) == TEXT + "\n"


def test_a_terminal_gets_colours_and_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(monkeypatch, TEXT, Terminal())
    assert "\x1b[33minconclusive\x1b[0m" in text
    assert "\x1b[32msupported\x1b[0m" in text
    assert max(map(len, ESC.sub("", text).splitlines())) <= 40


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_the_width_is_kept(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    text = written(monkeypatch, TEXT, Terminal(), **env)
    assert "\x1b" not in text
    assert text.splitlines()[1].startswith(" " * 13)


def test_no_text_of_a_stranger_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(monkeypatch, "learns\x1b[2J supported \x1b]0;title\x07", Terminal())
    assert "\x1b[2J" not in text
    assert "\\u001b[2J" in text
    assert "\x07" not in text


def test_markup_of_a_stranger_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "[red]x[/red]" in ESC.sub("", written(monkeypatch, "[red]x[/red]", Terminal()))


@pytest.mark.parametrize("width", [20, 33, 60, 80])
@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        "  4 x cut          the answer of this row ends in the middle of a sentence, " * 3,
        "word " * 100,
        "x" * 200,
        "",
        " " * 50,
        "a\n\n\nb",
        "    deep    column that begins late and then goes on for a very long while without an end in sight",
    ],
)
def test_every_word_stays_in_its_place_and_lines_fit(text: str, width: int) -> None:
    found = fitted(text, width)
    assert found.split() == text.split()
    for line in found.split("\n"):
        assert len(line) <= width or len(line.split()) <= 1 or line.isspace()

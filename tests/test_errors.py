"""Helpers that every message uses: the nearest known name, and the first line of another library's error."""

from __future__ import annotations

import pytest

from veritune.errors import did_you_mean, first_line, nearest

KNOWN = ("lora_alpha", "lora_dropout", "r")


def test_a_wrong_name_is_answered_with_the_closest_known_one() -> None:
    assert nearest("lora_alpah", KNOWN) == "lora_alpha"
    assert did_you_mean("lora_alpah", KNOWN) == " (did you mean 'lora_alpha'?)"


@pytest.mark.parametrize(("name", "near"), [("abzz", "abcd"), ("azzz", None)])
def test_half_of_the_letters_must_match(name: str, near: str | None) -> None:
    assert nearest(name, iter(["abcd"])) == near


def test_no_close_name_gives_no_hint() -> None:
    assert nearest("seed", KNOWN) is None
    assert did_you_mean("seed", KNOWN) == did_you_mean("seed", ()) == ""


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (ValueError("\n  no such layer  \nTraceback"), "no such layer  "),
        (OSError(), "OSError"),
        (RuntimeError(" \n "), "RuntimeError"),
        (RuntimeError("x" * 201), "x" * 200),
    ],
)
def test_the_first_line_of_an_error_is_short_and_never_empty(exc: Exception, line: str) -> None:
    assert first_line(exc) == line

"""Which words two texts do not share. Neither text is the original: each side's own words are marked."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

Indel: Any
try:
    from rapidfuzz.distance import Indel
except ImportError:  # the extra `view` has it; difflib gives the same kind of answer, several times slower
    Indel = None

TOKEN = re.compile(r"\n|[^\S\n]+|\w+|[^\w\s]")
"""A line break, white space, a word, or one sign."""

MOST = 4_000
"""Tokens a side from which a difference takes more than some milliseconds; longer texts are shown unmarked."""

LONGEST = 20_000
"""Characters a side from which a text is cut on a page; a text without a space is one token, however long."""


class Piece(NamedTuple):
    """A run of text, and whether it is absent on the other side."""

    text: str
    own: bool


def differences(a: str, b: str) -> tuple[tuple[Piece, ...], tuple[Piece, ...]] | None:
    """Both texts in pieces; None if one is too long for a word-by-word comparison."""
    if max(len(a), len(b)) > LONGEST:
        return None
    words_a, words_b = TOKEN.findall(a), TOKEN.findall(b)
    if max(len(words_a), len(words_b)) > MOST:
        return None
    same_a, same_b = [False] * len(words_a), [False] * len(words_b)
    for i, j, n in _blocks(words_a, words_b):
        same_a[i : i + n] = [True] * n
        same_b[j : j + n] = [True] * n
    return tuple(_pieces(words_a, same_a)), tuple(_pieces(words_b, same_b))


def _blocks(a: Sequence[str], b: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    if Indel is None:
        yield from difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
        return
    number: dict[str, int] = {}
    ids = [[number.setdefault(word, len(number)) for word in side] for side in (a, b)]
    for op in Indel.opcodes(*ids):
        if op.tag == "equal":
            yield op.src_start, op.dest_start, op.src_end - op.src_start


def _pieces(words: Sequence[str], same: Sequence[bool]) -> Iterator[Piece]:
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or same[end] != same[start]:
            yield Piece("".join(words[start:end]), not same[start])
            start = end

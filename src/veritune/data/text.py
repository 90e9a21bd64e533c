"""Canonical text: two texts are the same when their canonical forms are.

NFKC, case folded, curly quotes and dashes as ASCII, zero-width and control characters removed, white space collapsed.
Punctuation and numbers stay: `a+b` is not `a-b`. What a script leaves to the writer is removed: vowel signs of Arabic
and Hebrew, the hamza of an alef, the stretching of Arabic letters, and spaces inside scripts that need none.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

CUT = "\x1f"  # ends a token and is not part of the text: the kernels skip every control character in the hash
SEPARATOR = "\n\n"  # between a row's problem and its target

ASCII_FOR = {
    "‘": "'",
    "’": "'",
    "‚": "'",
    "‛": "'",
    "′": "'",
    "“": '"',
    "”": '"',
    "„": '"',
    "‟": '"',
    "″": '"',
    "«": '"',
    "»": '"',
    "‐": "-",
    "‑": "-",
    "‒": "-",
    "–": "-",
    "—": "-",
    "―": "-",
    "−": "-",
    "…": "...",
    "\u00a0": " ",
    "\u0085": " ",
    "\u2028": " ",
    "\u2029": " ",
    "。": ".",
    "、": ",",
    "،": ",",
    "؛": ";",
    "؟": "?",
    "·": ".",
}
_DROP = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\ufeff" + "".join(
    chr(c) for a, b in ((0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0xFE00, 0xFE0F)) for c in range(a, b + 1)
)
# Vowel and reading signs that Arabic and Hebrew texts may carry or not, and the letter that only stretches a word.
_OPTIONAL = "\u0640" + "".join(
    chr(c)
    for a, b in (
        (0x0591, 0x05BD), (0x05BF, 0x05BF), (0x05C1, 0x05C2), (0x05C4, 0x05C5), (0x05C7, 0x05C7),
        (0x0610, 0x061A), (0x064B, 0x065F), (0x0670, 0x0670), (0x06D6, 0x06DC), (0x06DF, 0x06E8), (0x06EA, 0x06ED),
    )
    for c in range(a, b + 1)
)  # fmt: skip
_ALEF = {"\u0622": "\u0627", "\u0623": "\u0627", "\u0625": "\u0627", "\u0671": "\u0627"}
_CONTROL = "".join(chr(c) for c in (*range(9), *range(14, 32), *range(127, 160)) if c != 0x85)
_TABLE = str.maketrans({**ASCII_FOR, **_ALEF, **dict.fromkeys(_DROP + _OPTIONAL + _CONTROL, "")})
_TOUCHED = re.compile("[" + re.escape("".join((*ASCII_FOR, *_ALEF, _DROP, _OPTIONAL, _CONTROL))) + "]")
SURROGATE = re.compile("[\ud800-\udfff]")

# Scripts that are written without spaces: every character is a token, so a word bigram is a character bigram.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1980-\u19df\u1a20-\u1aaf\ua9e0-\ua9ff\uaa60-\uaa7f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0dff"  # combining: inside a word
_LOOSE_SPACE = re.compile(rf"(?<=[{_UNSPACED}])\s+(?=[{_UNSPACED}])")
_SPLIT = re.compile(rf"([{_UNSPACED}]|[^\x00-\x7f\w{_MARKS}])")


def _fold(text: str) -> str:
    """NFKC and case folding until nothing changes, with quotes and dashes as ASCII and invisible characters removed."""
    if text.isascii():
        return (text.translate(_TABLE) if _TOUCHED.search(text) else text).lower()
    text = SURROGATE.sub("\ufffd", text)
    for _ in range(4):  # casefold can undo NFKC and the other way round; Unicode needs at most three rounds
        folded = text.translate(_TABLE) if _TOUCHED.search(text) else text
        folded = unicodedata.normalize("NFKC", folded)
        folded = (folded.translate(_TABLE) if _TOUCHED.search(folded) else folded).casefold()
        if folded == text or folded.isascii():
            return _LOOSE_SPACE.sub("", folded)
        text = folded
    return _LOOSE_SPACE.sub("", text)


def canonical(text: str) -> str:
    """The canonical form in which texts are compared for equality.

    NFKC, case folded, curly quotes, dashes and ellipses as ASCII, zero-width and control characters removed, white
    space collapsed and stripped; punctuation, symbols and digits are kept. `canonical(canonical(t)) == canonical(t)`.
    """
    return " ".join(_fold(text).split())


def prepare(text: str) -> bytes:
    """The bytes that a kernel reads for `text`: unchanged if pure ASCII, otherwise folded, with token cuts inserted.

    Characters of scripts without spaces, and symbols outside ASCII, become tokens of their own.
    """
    if text.isascii():
        return text.encode("ascii")
    folded = _fold(text)
    if folded.isascii():
        return folded.encode("ascii")
    return _SPLIT.sub(CUT + r"\1" + CUT, folded).encode("utf-8", "replace")


_TOKEN = re.compile(r"[0-9a-z\x80-\U0010ffff]+")


def tokens(text: str) -> list[str]:
    """The tokens as the kernels see them, with digits kept; for evidence spans and for tests."""
    return _TOKEN.findall(prepare(text).decode("utf-8").lower())


def written(text: str, first: int, n: int) -> str:
    """`n` tokens of a text from token `first` on, with the characters between them, in lower case on one line."""
    prepared = prepare(text).decode("utf-8").lower()
    places = [match.span() for match in _TOKEN.finditer(prepared)][first : first + n]
    return " ".join(prepared[places[0][0] : places[-1][1]].replace(CUT, "").split()) if places else ""


def first_difference(a: Sequence[str] | Sequence[int], b: Sequence[str] | Sequence[int]) -> int:
    """Index of the first place where two sequences differ, the shorter one's length when one begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

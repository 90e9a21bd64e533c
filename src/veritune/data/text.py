"""Canonical text: two texts are the same when their canonical forms are.

NFKC, case folded, curly quotes and dashes as ASCII, zero-width and control characters removed, white space collapsed.
Punctuation and numbers stay: `a+b` is not `a-b`.
"""

from __future__ import annotations

import re
import unicodedata

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
_CONTROL = "".join(chr(c) for c in (*range(9), *range(14, 32), *range(127, 160)) if c != 0x85)
_TABLE = str.maketrans({**ASCII_FOR, **dict.fromkeys(_DROP, ""), **dict.fromkeys(_CONTROL, "")})
_TOUCHED = re.compile("[" + re.escape("".join((*ASCII_FOR, _DROP, _CONTROL))) + "]")
SURROGATE = re.compile("[\ud800-\udfff]")

# Scripts that are written without spaces: every character is a token, so a word bigram is a character bigram.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0dff"  # combining: inside a word
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
            return folded
        text = folded
    return text


def canonical(text: str) -> str:
    """The canonical form by which texts are compared for equality.

    NFKC, case folded, curly quotes, dashes and ellipses as ASCII, zero-width and control characters removed, white
    space collapsed and stripped; punctuation, symbols and digits are kept. `canonical(canonical(t)) == canonical(t)`.
    """
    return " ".join(_fold(text).split())


def prepare(text: str) -> bytes:
    """The bytes a kernel reads for `text`: pure ASCII as it is, anything else folded, with token cuts inserted.

    Characters of scripts without spaces, and symbols outside ASCII, become tokens of their own.
    """
    if text.isascii():
        return text.encode("ascii")
    folded = _fold(text)
    if folded.isascii():
        return folded.encode("ascii")
    return _SPLIT.sub(CUT + r"\1" + CUT, folded).encode("utf-8", "replace")


def tokens(text: str) -> list[str]:
    """The tokens that the kernels see, digits kept; for evidence spans and for tests."""
    return re.findall(r"[0-9a-z\x80-\U0010ffff]+", prepare(text).decode("utf-8").lower())

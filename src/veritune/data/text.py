"""Canonical text, and the byte buffers that the audit's kernels read.

Two texts are the same when their canonical forms are: NFKC, case folded, quotes and dashes mended, zero-width and
control characters removed, white space collapsed. Punctuation and numbers stay: `a+b` is not `a-b`.

The kernels never see Python strings. A `TextBuffer` is one array of UTF-8 bytes with row offsets; rows that are pure
ASCII are copied as they are (the kernels fold case and white space on the fly), the others go through `prepare` once.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from veritune.errors import DataError

if TYPE_CHECKING:
    import polars as pl

U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

CUT = "\x1f"  # ends a token and is not part of the text: the kernels skip every control character in the hash
SEPARATOR = "\n\n"  # between a row's problem and its target

_MEND = {
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
_TABLE = str.maketrans({**_MEND, **dict.fromkeys(_DROP, ""), **dict.fromkeys(_CONTROL, "")})
_TOUCHED = re.compile("[" + re.escape("".join((*_MEND, _DROP, _CONTROL))) + "]")
_SURROGATE = re.compile("[\ud800-\udfff]")

# Scripts that are written without spaces: every character is a token, so a word bigram is a character bigram.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0dff"  # combining: inside a word
_SPLIT = re.compile(rf"([{_UNSPACED}]|[^\x00-\x7f\w{_MARKS}])")

# Byte classes, as bits.
WORD, DIGIT, SPACE, VISIBLE = 1, 2, 4, 8


def _byte_classes() -> U8:
    kind = np.zeros(256, np.uint8)
    for b in range(256):
        c = chr(b)
        if b in (9, 10, 11, 12, 13, 32):
            kind[b] = SPACE
        elif b >= 33 and b != 127:
            kind[b] = VISIBLE
            if b >= 128 or c.isalnum():
                kind[b] |= WORD
            if "0" <= c <= "9":
                kind[b] |= DIGIT
    return kind


def _splitmix(n: int, seed: int) -> U64:
    """`n` well mixed 64-bit constants (SplitMix64, Steele et al. 2014)."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _fold_values() -> U64:
    """One 64-bit value per byte; upper case shares the value of lower case, every white space that of the blank."""
    value = _splitmix(256, seed=7)
    for b in range(65, 91):
        value[b] = value[b + 32]
    value[[9, 10, 11, 12, 13]] = value[32]
    return value


def _masked_values(value: U64) -> U64:
    masked = value.copy()
    masked[48:58] = value[48]
    return masked


BYTE_CLASS = _byte_classes()
BYTE_VALUE = _fold_values()
MASKED_VALUE = _masked_values(BYTE_VALUE)


def _fold(text: str) -> str:
    """NFKC and case folding until nothing changes, with quotes, dashes and invisible characters mended."""
    if text.isascii():
        return (text.translate(_TABLE) if _TOUCHED.search(text) else text).lower()
    text = _SURROGATE.sub("\ufffd", text)
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


@dataclass(frozen=True, slots=True)
class TextBuffer:
    """N texts in one array of UTF-8 bytes, as they came.

    Row i is `data[offset_N1[i]:offset_N1[i + 1]]`; its problem (the part that a family shares) ends at byte
    `cut_N[i]`, which is the row's end where the data does not separate problem and target.
    """

    data: U8
    offset_N1: I64
    cut_N: I64

    def __len__(self) -> int:
        return len(self.cut_N)

    @property
    def nbytes(self) -> int:
        """Bytes of text, without the offsets."""
        return int(self.offset_N1[-1] - self.offset_N1[0])

    def row(self, i: int) -> str:
        """The text of row i."""
        return bytes(self.data[self.offset_N1[i] : self.offset_N1[i + 1]]).decode("utf-8", "replace")

    def prepared(self, a: int, b: int) -> TextBuffer:
        """Rows [a, b) as the kernels read them; without a copy where all of it is ASCII."""
        start = int(self.offset_N1[a])
        data = self.data[start : int(self.offset_N1[b])]
        offset_N1, cut_N = self.offset_N1[a : b + 1] - start, self.cut_N[a:b] - start
        return _prepared(TextBuffer(data, offset_N1, cut_N))

    def take(self, row: I64) -> TextBuffer:
        """Some rows, in a buffer of their own."""
        begin, end = self.offset_N1[:-1][row], self.offset_N1[1:][row]
        pieces = [self.data[a:b] for a, b in zip(begin.tolist(), end.tolist())]
        offset_N1 = np.zeros(len(row) + 1, np.int64)
        np.cumsum(end - begin, out=offset_N1[1:])
        data = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
        return TextBuffer(data, offset_N1, offset_N1[:-1] + self.cut_N[row] - begin)

    @classmethod
    def from_parts(cls, parts: Iterable[tuple[str | None, str | None]]) -> TextBuffer:
        """From (problem, target) pairs; None and "" are the same: nothing there."""
        chunk: list[bytes] = []
        end_N: list[int] = []
        cut_N: list[int] = []
        at = 0
        separator = SEPARATOR.encode()
        for problem, target in parts:
            head = _encode(problem) if problem else b""
            chunk.append(head)
            at += len(head)
            cut_N.append(at)
            if target:
                tail = separator + _encode(target) if head else _encode(target)
                chunk.append(tail)
                at += len(tail)
            end_N.append(at)
        data = np.frombuffer(b"".join(chunk), np.uint8)
        offset_N1 = np.zeros(len(end_N) + 1, np.int64)
        offset_N1[1:] = end_N
        return cls(data, offset_N1, np.array(cut_N, np.int64))

    @classmethod
    def from_strings(cls, texts: Iterable[str | None]) -> TextBuffer:
        """From whole texts, problem and target not told apart."""
        chunk = [_encode(text) if text else b"" for text in texts]
        offset_N1 = np.zeros(len(chunk) + 1, np.int64)
        np.cumsum([len(c) for c in chunk], out=offset_N1[1:])
        return cls(np.frombuffer(b"".join(chunk), np.uint8), offset_N1, offset_N1[1:])

    @classmethod
    def from_series(cls, text: pl.Series, problem_bytes: I64 | None = None) -> TextBuffer:
        """From a polars string column, on its own buffers.

        `problem_bytes`: how many bytes of each row are its problem, for columns made by `concat_str`.
        Raises DataError when the column does not hold text.
        """
        import polars as pl

        if text.dtype != pl.String:
            raise DataError(
                f"expected a text column, found `{text.name}` of type {text.dtype}.", fix="Cast it to String."
            )
        data, offset_N1 = _arrow_buffers(text)
        end_N = offset_N1[1:]
        cut_N = end_N if problem_bytes is None else np.minimum(offset_N1[:-1] + problem_bytes, end_N)
        return cls(data, offset_N1, cut_N)


def _encode(text: str) -> bytes:
    """UTF-8; a lone surrogate becomes U+FFFD, as no bytes can hold it."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", text).encode()


def _prepared(block: TextBuffer) -> TextBuffer:
    """Common punctuation is mended in place, what is still not ASCII goes through `prepare`, row by row."""
    if not len(block.data) or not (block.data.view(np.int8) < 0).any():
        return block
    data = block.data.copy()
    _mend_in_place(data)
    odd = _rows_with_high_bytes(data, block.offset_N1)
    if not len(odd):
        return TextBuffer(data, block.offset_N1, block.cut_N)
    pieces: list[Any] = []
    length_N = np.diff(block.offset_N1)
    cut_length_N = block.cut_N - block.offset_N1[:-1]
    at = 0
    for i in odd.tolist():
        begin, cut, end = int(block.offset_N1[i]), int(block.cut_N[i]), int(block.offset_N1[i + 1])
        head = prepare(bytes(block.data[begin:cut]).decode("utf-8", "replace"))
        tail = prepare(bytes(block.data[cut:end]).decode("utf-8", "replace")) if cut < end else b""
        pieces += (data[at:begin], head, tail)
        length_N[i], cut_length_N[i] = len(head) + len(tail), len(head)
        at = end
    pieces.append(data[at:])
    offset_N1 = np.zeros(len(block) + 1, np.int64)
    np.cumsum(length_N, out=offset_N1[1:])
    return TextBuffer(np.frombuffer(b"".join(pieces), np.uint8), offset_N1, offset_N1[:-1] + cut_length_N)


def _mend_tables() -> dict[int, npt.NDArray[np.uint32]]:
    """For each lead byte, what its following bytes stand for: three ASCII bytes in one number, 0 where unknown.

    Only marks that end a token: what follows the ASCII byte is filled with control characters, which nothing reads.
    """
    tables = {lead: np.zeros(1 << 16, np.uint32) for lead in (0xC2, 0xE2)}
    for character, ascii_text in _MEND.items():
        raw = character.encode()
        if raw[0] in tables:
            filled = (ascii_text + "\x01\x01\x01")[:3].encode()
            low = raw[1] << 8 | (raw[2] if len(raw) == 3 else 0)
            tables[raw[0]][low] = int.from_bytes(filled, "little")
    return tables


_MEND_BYTES = _mend_tables()


def _mend_in_place(data: U8) -> None:
    """Quotes, dashes, ellipses and hard blanks as ASCII, at the same length."""
    for lead, width in ((0xC2, 2), (0xE2, 3)):
        at = np.flatnonzero(data == lead)
        at = at[at + width <= len(data)]
        low = data[at + 1].astype(np.int64) << 8
        if width == 3:
            low |= data[at + 2]
        new = _MEND_BYTES[lead][low]
        at, new = at[new > 0], new[new > 0]
        for i in range(width):
            data[at + i] = (new >> np.uint32(8 * i)).astype(np.uint8)


def _arrow_buffers(text: pl.Series) -> tuple[U8, I64]:
    """Bytes and offsets of a polars string column; a null is an empty row."""
    import pyarrow as pa

    array = text.fill_null("").to_arrow()
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    array = array.cast(pa.large_string())
    _, offsets, data = array.buffers()
    offset_N1 = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return (np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)), offset_N1


def _rows_with_high_bytes(data: U8, offset_N1: I64) -> I64:
    """The rows that hold a byte >= 0x80."""
    at = np.flatnonzero(data.view(np.int8) < 0)
    return np.unique(np.searchsorted(offset_N1, at, side="right") - 1)


def chunks_by_bytes(offset_N1: I64, limit: int) -> list[tuple[int, int]]:
    """Row ranges of about `limit` bytes each; a longer row is a range of its own."""
    out: list[tuple[int, int]] = []
    n = len(offset_N1) - 1
    a = 0
    while a < n:
        b = int(np.searchsorted(offset_N1, offset_N1[a] + limit, side="right")) - 1
        b = min(max(b, a + 1), n)
        out.append((a, b))
        a = b
    return out


def tokens(text: str) -> list[str]:
    """The tokens that the kernels see, digits kept; for evidence spans and for tests."""
    return re.findall(r"[0-9a-z\x80-\U0010ffff]+", prepare(text).decode("utf-8").lower())


def text_hash(texts: Sequence[str]) -> U64:
    """64-bit hashes of the canonical forms, shape [N]; equal canonical forms give equal hashes."""
    from veritune.data._sweep_numpy import sweep

    return sweep(TextBuffer.from_strings(texts)).hash_N

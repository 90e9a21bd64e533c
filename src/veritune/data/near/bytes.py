"""Texts as one array of UTF-8 bytes with row borders: what the kernels read instead of Python strings.

Rows that are pure ASCII are kept as they are (the kernels fold case and white space while they read); the others go
through `text.prepare` once.

N rows · N1 row borders (N + 1) · 256 byte values
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from veritune.data.near.arrays import I64, U8, U32, U64
from veritune.data.text import ASCII_FOR, SEPARATOR, SURROGATE, prepare
from veritune.errors import DataError, MachineError

if TYPE_CHECKING:
    import polars as pl

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


@dataclass(frozen=True, slots=True)
class TextBuffer:
    """N texts as UTF-8 bytes in one array, unchanged.

    Row i is `data[offset_N1[i]:offset_N1[i + 1]]`; its problem (the part that a family shares) ends at byte
    `cut_N[i]`, which is the row's end where the data does not separate problem and target.
    """

    data: U8
    offset_N1: I64
    cut_N: I64

    def __len__(self) -> int:
        return len(self.cut_N)

    def row(self, i: int) -> str:
        """The text of row i."""
        return bytes(self.data[self.offset_N1[i] : self.offset_N1[i + 1]]).decode("utf-8", "replace")

    def prepared(self, a: int, b: int) -> TextBuffer:
        """Rows [a, b) in the form that the kernels read; without a copy if all of it is ASCII."""
        start = int(self.offset_N1[a])
        data = self.data[start : int(self.offset_N1[b])]
        offset_N1, cut_N = self.offset_N1[a : b + 1] - start, self.cut_N[a:b] - start
        return _prepared(TextBuffer(data, offset_N1, cut_N))

    def take(self, row: I64) -> TextBuffer:
        """Some of the rows, in a new buffer."""
        begin, end = self.offset_N1[:-1][row], self.offset_N1[1:][row]
        pieces = [self.data[a:b] for a, b in zip(begin.tolist(), end.tolist())]
        offset_N1 = np.zeros(len(row) + 1, np.int64)
        np.cumsum(end - begin, out=offset_N1[1:])
        data = np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)
        return TextBuffer(data, offset_N1, offset_N1[:-1] + self.cut_N[row] - begin)

    @classmethod
    def from_parts(cls, parts: Iterable[tuple[str | None, str | None]]) -> TextBuffer:
        """A buffer from (problem, target) pairs; None and "" both mean that a part is absent."""
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
        """A buffer from whole texts, without a border between problem and target."""
        chunk = [_encode(text) if text else b"" for text in texts]
        offset_N1 = np.zeros(len(chunk) + 1, np.int64)
        np.cumsum([len(c) for c in chunk], out=offset_N1[1:])
        return cls(np.frombuffer(b"".join(chunk), np.uint8), offset_N1, offset_N1[1:])

    @classmethod
    def from_series(cls, text: pl.Series, problem_bytes: I64 | None = None) -> TextBuffer:
        """A buffer over a polars string column, sharing its memory.

        `problem_bytes`: how many bytes of each row are its problem, for columns made by `concat_str`.
        Raises DataError when the column does not hold text.
        """
        import polars as pl  # half a second: only who gives a polars column pays for it

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
        return SURROGATE.sub("\ufffd", text).encode()


def _prepared(block: TextBuffer) -> TextBuffer:
    """Common punctuation becomes ASCII in place; rows that still hold other characters go through `prepare`."""
    if not len(block.data) or not (block.data.view(np.int8) < 0).any():
        return block
    data = block.data.copy()
    _replace_in_place(data)
    odd = _rows_with_high_bytes(data, block.offset_N1)
    if not len(odd):
        return TextBuffer(data, block.offset_N1, block.cut_N)
    pieces: list[bytes | memoryview] = []
    length_N = np.diff(block.offset_N1)
    cut_length_N = block.cut_N - block.offset_N1[:-1]
    at = 0
    for i in odd.tolist():
        begin, cut, end = int(block.offset_N1[i]), int(block.cut_N[i]), int(block.offset_N1[i + 1])
        head = prepare(bytes(block.data[begin:cut]).decode("utf-8", "replace"))
        tail = prepare(bytes(block.data[cut:end]).decode("utf-8", "replace")) if cut < end else b""
        pieces += (data[at:begin].data, head, tail)
        length_N[i], cut_length_N[i] = len(head) + len(tail), len(head)
        at = end
    pieces.append(data[at:].data)
    offset_N1 = np.zeros(len(block) + 1, np.int64)
    np.cumsum(length_N, out=offset_N1[1:])
    return TextBuffer(np.frombuffer(b"".join(pieces), np.uint8), offset_N1, offset_N1[:-1] + cut_length_N)


def _ascii_tables() -> dict[int, U32]:
    """For each lead byte, what its following bytes stand for: three ASCII bytes in one number, 0 where unknown.

    Only marks that end a token: what follows the ASCII byte is filled with control characters, which nothing reads.
    """
    tables = {lead: np.zeros(1 << 16, np.uint32) for lead in (0xC2, 0xE2)}
    for character, ascii_text in ASCII_FOR.items():
        raw = character.encode()
        if raw[0] in tables:
            filled = (ascii_text + "\x01\x01\x01")[:3].encode()
            low = raw[1] << 8 | (raw[2] if len(raw) == 3 else 0)
            tables[raw[0]][low] = int.from_bytes(filled, "little")
    return tables


_ASCII_BYTES = _ascii_tables()


def _replace_in_place(data: U8) -> None:
    """Quotes, dashes, ellipses and hard blanks as ASCII, at the same length."""
    for lead, width in ((0xC2, 2), (0xE2, 3)):
        at = np.flatnonzero(data == lead)
        at = at[at + width <= len(data)]
        low = data[at + 1].astype(np.int64) << 8
        if width == 3:
            low |= data[at + 2]
        new = _ASCII_BYTES[lead][low]
        at, new = at[new > 0], new[new > 0]
        for i in range(width):
            data[at + i] = (new >> np.uint32(8 * i)).astype(np.uint8)


def _arrow_buffers(text: pl.Series) -> tuple[U8, I64]:
    """Bytes and offsets of a polars string column; a null is an empty row."""
    try:
        import pyarrow as pa  # half a second, as polars
    except ImportError as exc:
        raise MachineError(
            "reading a polars frame needs pyarrow, which is not installed.", fix="pip install 'veritune[arrow]'"
        ) from exc
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

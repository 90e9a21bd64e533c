"""Markdown as lint needs it: blocks, sentences and table cells, every character at its place in the file.

What is not prose is blanked with spaces of the same length, so that columns stay true: fenced code, inline code that is
not only a number, link targets, comments, front matter. Every step walks a line a fixed number of times; no pattern
backtracks over an unbounded run, so a line of a million characters takes time in proportion.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Literal

BlockKind = Literal["heading", "paragraph", "item", "table", "code", "quote"]


@dataclass(frozen=True, slots=True)
class Marker:
    """`<!--v:name-->` right after a number: the quantity it stands for; `none` means that it is no claim."""

    at: int
    name: str


@dataclass(frozen=True, slots=True)
class Cell:
    """One table cell: its prose, where it starts in the file, and its row and column (row 0 is the header)."""

    text: str
    start: int
    row: int
    column: int


@dataclass(frozen=True, slots=True)
class Image:
    """An image: `alt` text, `target` path, where it starts."""

    alt: str
    target: str
    at: int


@dataclass(frozen=True, slots=True)
class Block:
    """A run of lines. `text` is the blanked prose (same length as in the file), `raw` the source, `start` its offset.

    `section` holds the headings above it, outermost first.
    """

    kind: BlockKind
    text: str
    raw: str
    start: int
    level: int = 0
    section: tuple[str, ...] = ()
    cells: tuple[Cell, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed write-up. `front` is its front matter, `acronym_text` all prose with code kept."""

    source: str
    blocks: tuple[Block, ...]
    markers: tuple[Marker, ...]
    images: tuple[Image, ...]
    front: str = ""
    line_starts: tuple[int, ...] = field(default=(0,), repr=False)

    def place(self, at: int) -> tuple[int, int]:
        """Line and column of an offset, both from 1."""
        line = bisect_right(self.line_starts, at)
        return line, at - self.line_starts[line - 1] + 1

    @property
    def title(self) -> Block | None:
        return next((b for b in self.blocks if b.kind == "heading" and b.level == 1), None)


FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
ITEM = re.compile(r"[ \t]{0,12}(?:[-*+]|\d{1,9}[.)])[ \t]")
QUOTE = re.compile(r" {0,3}>")
RULE_ROW = re.compile(r"[ \t]*\|?[ \t:|-]*-[ \t:|-]*$")
MARKER = re.compile(r"<!--[ \t]{0,4}v:[ \t]{0,4}([^\s>]{1,200})[^>]{0,200}?-->")
NUMBER_ONLY = re.compile(r"[+\-−–±]?\d[\d.,eE+\-−% ]{0,30}$")


def parse(source: str) -> Document:
    """Parse a write-up. Never raises: whatever is no Markdown is a paragraph."""
    source = source.replace("\r\n", "\n").replace("\r", "\n")
    starts = [0]
    for i, char in enumerate(source):
        if char == "\n":
            starts.append(i + 1)
    front_end = _front_matter(source)
    text, markers = _blank_comments(source, front_end)
    blocks, images = _Parser(source, text, front_end).run()
    return Document(source, tuple(blocks), tuple(markers), tuple(images), source[:front_end], tuple(starts))


def _front_matter(source: str) -> int:
    """Where the text begins behind a `---` front matter."""
    if not source.startswith("---\n"):
        return 0
    end = source.find("\n---\n", 3)
    return 0 if end < 0 else end + 5


def _blank_comments(source: str, begin: int) -> tuple[str, list[Marker]]:
    """The text with front matter and comments blanked, and the markers that the comments held."""
    parts, markers, at = [_blank(source[:begin])], [], begin
    fences = _fenced(source, begin)
    while True:
        start = source.find("<!--", at)
        if start < 0:
            break
        end = source.find("-->", start + 4)
        if end < 0:
            break
        end += 3
        if not _inside(fences, start):
            found = MARKER.match(source, start)
            if found and found.end() == end:
                markers.append(Marker(start, found.group(1)))
            parts += [source[at:start], _blank(source[start:end])]
        else:
            parts.append(source[at:end])
        at = end
    parts.append(source[at:])
    return "".join(parts), markers


def _fenced(source: str, begin: int) -> list[tuple[int, int]]:
    """Spans of fenced code."""
    spans, at, opened, mark = [], begin, -1, ""
    for line in source[begin:].splitlines(keepends=True):
        found = FENCE.match(line)
        if found and opened < 0:
            opened, mark = at, found.group(1)
        elif found and found.group(1)[0] == mark[0] and len(found.group(1)) >= len(mark):
            spans.append((opened, at + len(line)))
            opened = -1
        at += len(line)
    if opened >= 0:
        spans.append((opened, at))
    return spans


def _inside(spans: list[tuple[int, int]], at: int) -> bool:
    i = bisect_right(spans, (at, 1 << 62)) - 1
    return i >= 0 and spans[i][0] <= at < spans[i][1]


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


class _Parser:
    """One pass over the lines."""

    def __init__(self, source: str, text: str, begin: int) -> None:
        self.source, self.text, self.at = source, text, begin
        self.blocks: list[Block] = []
        self.images: list[Image] = []
        self.headings: list[tuple[int, str]] = []
        self.run_of: list[tuple[int, str]] = []
        self.kind: BlockKind = "paragraph"

    def run(self) -> tuple[list[Block], list[Image]]:
        lines = self.text[self.at :].split("\n")
        i = 0
        while i < len(lines):
            i = self._line(lines, i)
        self._flush()
        return self.blocks, self.images

    def _line(self, lines: list[str], i: int) -> int:
        """Take the line at `i`; the index of the next one."""
        line = lines[i]
        fence = FENCE.match(line)
        if fence:
            return self._code(lines, i, fence.group(1))
        heading = HEADING.match(line)
        if heading:
            self._flush()
            self._heading(line, len(heading.group(1)))
        elif not line.strip():
            self._flush()
        elif self._is_table(lines, i):
            return self._table(lines, i)
        else:
            self._prose(line)
        self.at += len(line) + 1
        return i + 1

    def _prose(self, line: str) -> None:
        item, quote = ITEM.match(line), QUOTE.match(line)
        if (
            item
            and self.run_of
            and self.kind == "paragraph"
            and line.lstrip()[0].isdigit()
            and line.split()[0] not in ("1.", "1)")
        ):
            item = (
                None  # a sentence that happens to wrap before its number: only a list's first item breaks a paragraph
            )
        if item:
            self._flush()
            self.kind = "item"
            line = " " * item.end() + line[item.end() :]
        elif quote and (not self.run_of or self.kind == "quote"):
            self.kind = "quote"
            line = " " * quote.end() + line[quote.end() :]
        self.run_of.append((self.at, line))

    def _code(self, lines: list[str], i: int, mark: str) -> int:
        self._flush()
        start, j = self.at, i + 1
        while j < len(lines):
            close = FENCE.match(lines[j])
            j += 1
            if close and close.group(1)[0] == mark[0] and len(close.group(1)) >= len(mark):
                break
        size = sum(len(x) + 1 for x in lines[i:j])
        raw = self.source[start : start + size]
        self.blocks.append(Block("code", _blank(raw), raw, start, section=self._section()))
        self.at += size
        return j

    def _heading(self, line: str, level: int) -> None:
        prose = self._inline(line, self.at)
        stripped = prose.replace("#", " ", level)
        self.headings = [h for h in self.headings if h[0] < level]
        self.blocks.append(
            Block("heading", stripped, self._raw(self.at, len(line)), self.at, level, section=self._section())
        )
        self.headings.append((level, self._raw(self.at, len(line)).strip("# \t")))

    def _is_table(self, lines: list[str], i: int) -> bool:
        return "|" in lines[i] and i + 1 < len(lines) and "|" in lines[i + 1] and bool(RULE_ROW.match(lines[i + 1]))

    def _table(self, lines: list[str], i: int) -> int:
        self._flush()
        start, j, cells, at, row = self.at, i, [], self.at, 0
        while j < len(lines) and "|" in lines[j]:
            if j != i + 1:
                cells += self._row(lines[j], at, row)
                row += 1
            at += len(lines[j]) + 1
            j += 1
        raw = self._raw(start, at - start)
        self.blocks.append(Block("table", _blank(raw), raw, start, section=self._section(), cells=tuple(cells)))
        self.at = at
        return j

    def _row(self, line: str, at: int, row: int) -> list[Cell]:
        prose = self._inline(line, at)
        body = prose.strip()
        edge = len(prose) - len(prose.lstrip())
        if body.startswith("|"):
            edge, body = edge + 1, body[1:]
        if body.endswith("|"):
            body = body[:-1]
        cells, start = [], at + edge
        for column, text in enumerate(body.split("|")):
            cells.append(Cell(text, start, row, column))
            start += len(text) + 1
        return cells

    def _flush(self) -> None:
        if self.run_of:
            start = self.run_of[0][0]
            text = "\n".join(line for _, line in self.run_of)
            prose = self._inline(text, start)
            raw = self._raw(start, len(text))
            self.blocks.append(Block(self.kind, prose, raw, start, section=self._section()))
        self.run_of, self.kind = [], "paragraph"

    def _raw(self, start: int, size: int) -> str:
        return self.source[start : start + size]

    def _section(self) -> tuple[str, ...]:
        return tuple(h[1] for h in self.headings)

    # -- inline -----------------------------------------------------------------------------------------------

    def _inline(self, text: str, start: int) -> str:
        """Prose of a text: code spans, link targets, images, tags and emphasis blanked, lengths kept."""
        text = self._code_spans(text)
        out, i = list(text), 0
        while i < len(text):
            char = text[i]
            if char == "!" and text.startswith("![", i):
                i = self._link(text, out, i, start, image=True)
            elif char == "[":
                i = self._link(text, out, i, start, image=False)
            elif char == "<" and text.startswith(("<http", "</", "<br", "<sup", "<sub", "<img", "<a "), i):
                end = text.find(">", i, i + 500)
                if end > 0:
                    out[i : end + 1] = " " * (end + 1 - i)
                    i = end
                i += 1
            elif char == "*" or (char == "_" and not _in_word(text, i)):
                out[i] = " "
                i += 1
            elif char == "h" and text.startswith(("http://", "https://"), i):
                end = i
                while end < len(text) and not text[end].isspace() and text[end] not in ")>|":
                    out[end] = " "
                    end += 1
                i = end
            else:
                i += 1
        return "".join(out)

    def _code_spans(self, text: str) -> str:
        """Back-ticked names keep their letters (they are words), code with spaces or signs is blanked."""
        pieces = text.split("`")
        for k in range(1, len(pieces) - (1 if len(pieces) % 2 == 0 else 0), 2):
            inner = pieces[k]
            if not (NUMBER_ONLY.match(inner) or re.fullmatch(r"[\w.\-]{0,80}", inner)):
                pieces[k] = _blank(inner)
        return " ".join(pieces)

    def _link(self, text: str, out: list[str], i: int, start: int, *, image: bool) -> int:
        """A link or image at `i`: its text stays, its target goes. The offset to go on from."""
        open_at = i + 1 if image else i
        close = text.find("]", open_at, open_at + 2000)
        if close < 0:
            return i + 1
        if text.startswith("[^", open_at) or text[open_at + 1 : close].strip().isdigit():
            out[i : close + 1] = " " * (close + 1 - i)
            return close + 1
        if text.startswith("](", close):
            end = text.find(")", close, close + 2000)
            if end > 0:
                if image:
                    target = self._raw(start + close + 2, end - close - 2).strip().split(" ")[0]
                    self.images.append(Image(text[open_at + 1 : close], target, start + i))
                out[close : end + 1] = " " * (end + 1 - close)
                out[i : open_at + 1] = " " * (open_at + 1 - i)
                return open_at + 1
        return open_at + 1


def _in_word(text: str, i: int) -> bool:
    """Whether an underscore joins two word characters: `all_layer`."""
    return 0 < i < len(text) - 1 and text[i - 1].isalnum() and text[i + 1].isalnum()


# ---------------------------------------------------------------- sentences


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence: its prose, and where it starts in the file."""

    text: str
    start: int


_ABBREVIATIONS = ("e.g", "i.e", "vs", "cf", "fig", "tab", "eq", "sec", "al", "approx", "no", "resp", "etc", "ca")


def sentences(text: str, start: int) -> list[Sentence]:
    """Split prose at `.`, `!`, `?` before white space and a capital, digit or sign; abbreviations and decimals stay."""
    out, begin = [], 0
    for found in re.finditer(r"[.!?][\"”’)\]]?(?=\s)", text):
        end = found.end()
        if text[found.start()] == ".":
            word = text[max(begin, found.start() - 12) : found.start()]
            last = re.search(r"([\w.]+)$", word)
            if last and last.group(1).lower().strip(".") in _ABBREVIATIONS:
                continue
            following = text[end : end + 8].lstrip()
            if following and following[0].islower() and "\n" not in text[end : end + 2]:
                continue
        out.append(Sentence(text[begin:end], start + begin))
        begin = end
    if text[begin:].strip():
        out.append(Sentence(text[begin:], start + begin))
    return [piece for sentence in out for piece in pieces(sentence)]


LONGEST = 3000
"""Characters of a sentence that are looked at together: what binds a number is never further away."""


def pieces(sentence: Sentence) -> list[Sentence]:
    """A sentence that is too long to be one, cut at white space: the work per character stays bounded."""
    out, text, at = [], sentence.text, sentence.start
    while len(text) > LONGEST:
        cut = text.rfind(" ", LONGEST // 2, LONGEST) + 1 or LONGEST
        out.append(Sentence(text[:cut], at))
        text, at = text[cut:], at + cut
    return [*out, Sentence(text, at)]

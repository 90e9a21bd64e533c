"""Markdown as lint needs it: blocks, sentences and table cells, every character at its place in the file.

markdown-it-py parses; this file lays what it found over the source. What is not prose is blanked with spaces of the
same length, so that columns stay true: code with spaces or signs, link targets, images, tags, comments, front matter.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from markdown_it import MarkdownIt
from markdown_it.token import Token

BlockKind = Literal["heading", "paragraph", "item", "table", "code", "quote"]


@dataclass(frozen=True, slots=True)
class Marker:
    """`<!--v:name-->` directly after a number: the quantity it stands for; `none` means that it is not a claim."""

    at: int
    name: str


@dataclass(frozen=True, slots=True)
class TableCell:
    """One table cell: its text, where it starts in the file, and its row and column (row 0 is the header)."""

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
    cells: tuple[TableCell, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed write-up. `front` is its front matter."""

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


MARKER = re.compile(r"<!--[ \t]{0,4}v:[ \t]{0,4}([^\s>|]{1,200})[^>]{0,200}?-->")
FILLED = re.compile(r"(?:(?!<!--).){0,4000}?<!--/v-->", re.DOTALL)
"""Behind the opening mark of a filled reference: what it filled, and the closing mark."""
NUMBER_ONLY = re.compile(r"[+\-−–±]?\d[\d.,eE+\-−% ]{0,30}$")
CODE_NAME = re.compile(r"[\w.\-/:+@]{0,80}")
URL = re.compile(r"https?://[^\s)>|\]]{0,2000}")
CALLOUT = re.compile(r"\[!\w{2,20}\][+-]?")
FOOTNOTE = re.compile(r"\[\^?[\w-]{1,40}\](?=[:\s,.;)]|$)")
NESTED = 20
"""Levels of quotes and lists that are followed; markdown-it's own limit, and more than anybody writes."""


def parse(source: str) -> Document:
    """Parse a write-up. Never raises: text that is not valid Markdown becomes a paragraph."""
    source = source.replace("\r\n", "\n").replace("\r", "\n").replace("\0", " ")
    starts = [0, *(i + 1 for i, char in enumerate(source) if char == "\n")]
    front_end = _front_matter(source)
    text, markers = _blank_comments(source, front_end)
    blocks, images = _TokenLayout(source, text, starts).run()
    return Document(source, tuple(blocks), tuple(markers), tuple(images), source[:front_end], tuple(starts))


def _front_matter(source: str) -> int:
    """Where the text begins behind a `---` front matter."""
    if not source.startswith("---\n"):
        return 0
    end = source.find("\n---\n", 3)
    return 0 if end < 0 else end + 5


FENCE = re.compile(r"[ \t>]{0,12}(`{3,}|~{3,})")


def _blank_comments(source: str, begin: int) -> tuple[str, list[Marker]]:
    """The text with front matter and comments blanked, and the markers that the comments held."""
    parts, markers, at = [_blank(source[:begin])], [], begin
    fences = _fenced(source, begin)
    while True:
        start = source.find("<!--", at)
        end = source.find("-->", start + 4) + 3 if start >= 0 else -1
        if start < 0 or end < 3:
            break
        if not _inside(fences, start):
            found = MARKER.match(source, start)
            if found and found.end() == end and not FILLED.match(source, end):
                markers.append(Marker(start, found.group(1)))
            parts += [source[at:start], _blank(source[start:end])]
        else:
            parts.append(source[at:end])
        at = end
    parts.append(source[at:])
    return "".join(parts), markers


def _fenced(source: str, begin: int) -> list[tuple[int, int]]:
    """Spans of fenced code: a comment in them is text."""
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


def _inside(spans: Sequence[tuple[int, int]], at: int) -> bool:
    i = bisect_right(spans, (at, 1 << 62)) - 1
    return i >= 0 and spans[i][0] <= at < spans[i][1]


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _parser() -> MarkdownIt:
    """CommonMark with tables and strikethrough; escapes stay tokens of their own, so that each keeps its length."""
    return MarkdownIt("commonmark", {"maxNesting": NESTED}).enable(["table", "strikethrough"]).disable("text_join")


class _TokenLayout:
    """Lays markdown-it's tokens over the source: `text` is the source with comments blanked."""

    def __init__(self, source: str, text: str, starts: Sequence[int]) -> None:
        self.source, self.text, self.starts = source, text, [*starts, len(source) + 1]
        self.blocks: list[Block] = []
        self.images: list[Image] = []
        self.headings: list[tuple[int, str]] = []

    def run(self) -> tuple[list[Block], list[Image]]:
        tokens = _parser().parse(self.text)
        opened: list[str] = []
        i = 0
        while i < len(tokens):
            token = tokens[i]
            if token.type == "table_open":
                i = self._table(tokens, i, opened)
            elif token.type in ("fence", "code_block") and token.map:
                self._add("code", *self._span(token.map), text=None)
            elif token.type == "html_block" and token.map:
                self._html(token)
            elif token.type == "inline" and token.map:
                self._inline_block(tokens[i - 1], token, opened)
            elif token.nesting == 1:
                opened.append(token.type)
            elif token.nesting == -1 and opened:
                opened.pop()
            i += 1
        return self.blocks, self.images

    # -- blocks -----------------------------------------------------------------------------------------------

    def _span(self, lines: Sequence[int]) -> tuple[int, int]:
        """[start, end) of a range of lines."""
        start, stop = self.starts[lines[0]], self.starts[min(lines[1], len(self.starts) - 1)]
        return start, min(stop, len(self.source))

    def _add(self, kind: BlockKind, start: int, end: int, text: str | None, level: int = 0) -> None:
        raw = self.source[start:end]
        prose = _blank(raw) if text is None else text
        self.blocks.append(Block(kind, prose, raw, start, level, tuple(h[1] for h in self.headings)))

    def _inline_block(self, parent: Token, token: Token, opened: Sequence[str]) -> None:
        assert token.map is not None
        start, end = self._span(token.map)
        end = max(start, end - 1) if self.source[end - 1 : end] == "\n" else end
        prose = self._prose(token, start, end)
        if parent.type == "heading_open":
            level = int(parent.tag[1])
            self.headings = [h for h in self.headings if h[0] < level]
            self._add("heading", start, end, prose, level)
            self.headings.append((level, self.source[start:end].split("\n")[0].strip("# \t>")))
            return
        kind: BlockKind = "paragraph"
        if "blockquote_open" in opened:
            kind = "quote"
        elif "list_item_open" in opened:
            kind = "item"
        self._add(kind, start, end, prose)

    def _html(self, token: Token) -> None:
        """Text between tags is prose; scripts and the like are not worth telling apart."""
        assert token.map is not None
        start, end = self._span(token.map)
        raw = self.text[start:end]
        prose = re.sub(r"<[^<>]{0,2000}>|&[a-z]{2,8};", lambda m: _blank(m.group()), raw)
        prose = URL.sub(lambda m: _blank(m.group()), prose)
        for found in re.finditer(r"<img\b[^<>]{0,1000}>", raw):
            target = re.search(r"""\bsrc=["']([^"']{1,500})["']""", found.group())
            alt = re.search(r"""\balt=["']([^"']{0,500})["']""", found.group())
            if target:
                self.images.append(Image(alt.group(1) if alt else "", target.group(1), start + found.start()))
        if prose.strip():
            self._add("paragraph", start, end, prose)

    def _table(self, tokens: Sequence[Token], i: int, opened: Sequence[str]) -> int:
        """Take a table; the index of its last token."""
        table_map, cells, row, column, line = tokens[i].map, [], -1, 0, 0
        spans: list[tuple[int, int]] = []
        while tokens[i].type != "table_close":
            token = tokens[i]
            if token.type == "tr_open" and token.map:
                row, column, line = row + 1, 0, token.map[0]
                spans = self._cell_spans(line)
            elif token.type == "inline" and column < len(spans):
                start, end = spans[column]
                cells.append(TableCell(self._inline(token, start, end), start, row, column))
                column += 1
            i += 1
        if table_map:
            start, end = self._span(table_map)
            raw = self.source[start:end]
            section = tuple(h[1] for h in self.headings)
            self.blocks.append(Block("table", _blank(raw), raw, start, 0, section, tuple(cells)))
        return i

    def _cell_spans(self, line: int) -> list[tuple[int, int]]:
        """[start, end) of each cell of a table's line, as markdown-it cuts it: at pipes that no backslash escapes."""
        start, end = self._span((line, line + 1))
        text = self.text[start:end].rstrip()
        left = len(text) - len(text.lstrip(" \t>"))
        cuts = [m.start() for m in re.finditer(r"(?<!\\)\|", text) if m.start() >= left]
        edges = cuts if cuts and cuts[0] == left else [left - 1, *cuts]
        edges = edges if cuts and cuts[-1] == len(text) - 1 else [*edges, len(text)]
        return [(start + a + 1, start + b) for a, b in itertools.pairwise(edges)]

    # -- inline -----------------------------------------------------------------------------------------------

    def _prose(self, token: Token, start: int, end: int) -> str:
        """The prose of an inline token in [start, end) of the source, line by line where its content came from."""
        out = list(_blank(self.source[start:end]))
        lines = self.text[start:end].split("\n")
        content = token.content.split("\n")
        begin = 0
        places: list[int] = []
        for k, line in enumerate(lines):
            own = content[k].rstrip() if k < len(content) else ""
            lead = len(own) - len(own.lstrip())  # markdown-it writes a tab of the indentation as blanks
            at = line.rstrip().rfind(own.lstrip()) - lead if own else 0
            places.append(begin + at)
            begin += len(line) + 1
        for offset, char in self._kept(token):
            row = token.content.count("\n", 0, offset)
            inside = offset - (token.content.rfind("\n", 0, offset) + 1)
            place = places[row] + inside if row < len(places) else len(out)
            if 0 <= place < len(out) and out[place] != "\n":
                out[place] = char
        for child, offset in self._images(token):
            row = token.content.count("\n", 0, offset)
            self._image(child, start + (places[row] if row < len(places) else 0) + offset)
        return _without_names("".join(out))

    def _inline(self, token: Token, start: int, end: int) -> str:
        """The prose of a table cell."""
        raw = self.text[start:end]
        out = [" "] * len(raw)
        lead = raw.find(token.content[:1]) if token.content else 0
        lead = max(0, lead)
        for offset, char in self._kept(token, names=False):
            if lead + offset < len(out):
                out[lead + offset] = char
        for child, offset in self._images(token):
            self._image(child, start + lead + offset)
        return _without_names("".join(out))

    def _image(self, child: Token, at: int) -> None:
        self.images.append(Image(child.content, str(child.attrs.get("src", "")), at))

    @staticmethod
    def _images(token: Token) -> Iterator[tuple[Token, int]]:
        at = 0
        for child in token.children or ():
            if child.type == "image":
                at = max(0, token.content.find("![", at))
                yield child, at
                at += 2

    @staticmethod
    def _kept(token: Token, *, names: bool = True) -> Iterator[tuple[int, str]]:
        """(offset in the token's content, character) of what is prose; an image's alternative text is none.

        With `names` only code that is a name or a number is prose; a table's cell keeps all of it (`batch_size=8`).
        """
        content, at = token.content, 0
        for child in token.children or ():
            if child.type == "image":
                at = _behind_image(content, at)
            elif child.type == "text_special":
                found = content.find(child.markup, at)
                if found >= 0:
                    at = found + len(child.markup)
                    # A backslash before a letter escapes nothing: LaTeX stays LaTeX.
                    kept = child.content if child.content == child.markup else child.content[-1:]
                    yield from ((at - len(kept) + k, c) for k, c in enumerate(kept))
            elif child.type in ("text", "code_inline"):
                found = content.find(child.content, at)
                if found < 0:
                    continue
                at = found + len(child.content)
                code = child.type == "code_inline"
                if not code or not names or NUMBER_ONLY.match(child.content) or CODE_NAME.fullmatch(child.content):
                    yield from ((found + k, c) for k, c in enumerate(child.content))
            elif child.type == "link_close":
                at = _behind_link(content, at)


def _behind_link(content: str, at: int) -> int:
    """Where a link's target ends, so that words of it are not taken for the text that follows."""
    if content[at : at + 2] != "](":
        at = content.find("](", at) if 0 <= content.find("](", at) - at < 4 else at
    if content[at : at + 2] == "](":
        close = content.find(")", at)
        return close + 1 if close >= 0 else at
    if content[at : at + 2] == "][":
        close = content.find("]", at + 2)
        return close + 1 if close >= 0 else at
    return at


def _behind_image(content: str, at: int) -> int:
    begin = content.find("![", at)
    if begin < 0:
        return at
    close = content.find("]", begin)
    return _behind_link(content, close) if close >= 0 else begin + 2


def _without_names(prose: str) -> str:
    """Prose without addresses, footnote marks and callout marks."""
    for pattern in (URL, CALLOUT, FOOTNOTE):
        prose = pattern.sub(lambda m: _blank(m.group()), prose)
    return prose


# ---------------------------------------------------------------- sentences


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence: its prose, and where it starts in the file."""

    text: str
    start: int


_ABBREVIATIONS = ("e.g", "i.e", "vs", "cf", "fig", "tab", "eq", "sec", "al", "approx", "no", "resp", "etc", "ca")
_IDENTIFIER = re.compile(r"[a-z][a-z\d]*_\w")
"""A name in code letters may open a sentence in lower case."""
_ENDS = re.compile(r"[.!?][\"”’)\]]?(?=\s)|[。！？]")


def sentences(text: str, start: int) -> list[Sentence]:
    """Split prose at `.`, `!`, `?` before white space and a capital, digit or sign; abbreviations and decimals stay."""
    out, begin = [], 0
    for found in _ENDS.finditer(text):
        end = found.end()
        if text[found.start()] == ".":
            word = text[max(begin, found.start() - 12) : found.start()]
            last = re.search(r"([\w.]+)$", word)
            if last and last.group(1).lower().strip(".") in _ABBREVIATIONS:
                continue
            following = text[end : end + 40].lstrip()
            if (
                following
                and following[0].islower()
                and not _IDENTIFIER.match(following)
                and "\n" not in text[end : end + 2]
            ):
                continue
        out.append(Sentence(text[begin:end], start + begin))
        begin = end
    if text[begin:].strip():
        out.append(Sentence(text[begin:], start + begin))
    return [piece for sentence in out for piece in pieces(sentence)]


LONGEST = 3000
"""Characters of a sentence that are looked at together: what binds a number is never further away."""


def pieces(sentence: Sentence) -> list[Sentence]:
    """Pieces of a text that is too long for a sentence, cut at white space, so that the work per character stays
    bounded.
    """
    out, text, at = [], sentence.text, sentence.start
    while len(text) > LONGEST:
        cut = text.rfind(" ", LONGEST // 2, LONGEST) + 1 or LONGEST
        out.append(Sentence(text[:cut], at))
        text, at = text[cut:], at + cut
    return [*out, Sentence(text, at)]

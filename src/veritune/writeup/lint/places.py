"""Where the numbers of a page stand: each with the words of its row and column, or clause, and those farther off."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from veritune.writeup.facts import Fact, fact_words, hard, needed_words, words
from veritune.writeup.lint.markdown import Block, Document, Sentence, TableCell, sentences
from veritune.writeup.lint.numbers import PrintedNumber, scan
from veritune.writeup.lint.rules import Rules
from veritune.writeup.lint.structure import is_caption
from veritune.writeup.lint.values import NumberPlace, has_value


@dataclass(slots=True)
class FactIndex:
    """Facts indexed by value and by word."""

    facts: Sequence[Fact]
    page: frozenset[str] = frozenset()
    own: list[frozenset[str]] = field(default_factory=list)
    needed: list[frozenset[str]] = field(default_factory=list)
    by_word: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    vocabulary: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.own = [fact_words(fact, self.page) for fact in self.facts]
        self.needed = [needed_words(fact, self.page) for fact in self.facts]
        for i, own in enumerate(self.own):
            for word in own:
                self.by_word[word].append(i)
        self.vocabulary = frozenset(self.by_word)

    def holding(self, place: NumberPlace) -> list[int]:
        """Facts with the printed value, under a factor that its form allows."""
        return [i for i, fact in enumerate(self.facts) if has_value(place, fact, self.own[i])]

    def named(self, place: NumberPlace) -> list[int]:
        """Facts that the words name: every distinguishing word of their names is near the number."""
        there = place.near | place.ambient
        best = {i for word in place.near for i in self.by_word.get(word, ())}
        return [i for i in best if self.needed[i] <= there and self.own[i] & place.near]


CUT = re.compile(r";|\b(?:while|whereas|but|und|et|y)\b|[,:]\s|[，；]")
LABEL_BEFORE = re.compile(r"[\s*_]{0,4}[^\d.:;,]{2,40}:\s")
"""`HellaSwag: 77.1, 58.7 before normalising`: what stands before the colon is what all of it is about."""
SPREAD = re.compile(r"\s?[*_$%(]{0,4}\s?(?:±|\\pm|\+/-)\s?[*_$]{0,3}")
SPREADS = frozenset({"se", "std", "ci"})
"""What a number behind `±` is of the one before it."""
TIME_UNIT = re.compile(r"\s?(?:ms|s|sec|seconds?|min|minutes?|h|hours?)\b")
TIMES = frozenset({"time", "runtime", "second", "duration", "wall"})
"""Words of records that hold a time, whatever the unit that a page gives it in."""


def places_of(document: Document, rules: Rules | None, index: FactIndex) -> Iterator[NumberPlace]:
    """The numbers of a page that may be claims, in no order."""
    before: frozenset[str] = frozenset()
    title = hard(document.title.text) if document.title else frozenset()
    for i, block in enumerate(document.blocks):
        heading = hard(" ".join(block.section[1:])) | title
        if block.kind == "code":
            continue
        if block.kind == "table":
            near = [b for b in document.blocks[max(0, i - 1) : i + 2] if b is not block and is_caption(b)]
            caption = " ".join(b.text for b in near)
            yield from _table_places(block, caption, heading | before | hard(caption), index, rules)
            continue
        parts = [Sentence(block.text, block.start)] if block.kind == "heading" else sentences(block.text, block.start)
        for sentence in parts:
            yield from _sentence_places(block, sentence, heading | before, index, rules)
            before = hard(sentence.text)


def _sentence_places(
    block: Block, sentence: Sentence, ambient: frozenset[str], index: FactIndex, rules: Rules | None
) -> Iterator[NumberPlace]:
    text = sentence.text
    label = LABEL_BEFORE.match(text)
    cuts = [0, *(m.end() for m in CUT.finditer(text, label.end() if label else 0)), len(text) + 1]
    numbers = scan(text)
    before: PrintedNumber | None = None
    for number in numbers:
        of, before = _spread_of(text, before, number), number
        if _no_claim(text, number, block, index) or _ignored(text, number, rules):
            continue
        low = max(c for c in cuts if c <= number.start)
        high = min(c for c in cuts if c > number.start)
        clause, whole = _hard_of(text, low, high, numbers), _hard_of(text, 0, len(text), numbers)
        clause |= SPREADS if of is not None else frozenset()
        clause |= TIMES if TIME_UNIT.match(text, number.end) else frozenset()
        at = sentence.start + number.start
        place = NumberPlace(number, at, clause, whole | ambient, text, number.start)
        if of is not None:
            start = sentence.start + of.start
            place = replace(place, percent=of.percent == "%", hundred=abs(of.value) > 1, spread_of=start)
        yield place


def _spread_of(text: str, before: PrintedNumber | None, number: PrintedNumber) -> PrintedNumber | None:
    """The number that this one is the spread of: `54.1 % ± 1.4`."""
    return before if before is not None and SPREAD.fullmatch(text[before.end : number.start]) is not None else None


def _hard_of(text: str, low: int, high: int, numbers: Sequence[PrintedNumber]) -> frozenset[str]:
    """The telling words of a stretch, without the numbers that stand in it as claims."""
    out = list(text[low:high])
    for n in numbers:
        if low <= n.start and n.end <= high and not n.word:
            out[n.start - low : n.end - low] = " " * (n.end - n.start)
    return hard("".join(out))


def _table_places(
    block: Block, caption: str, ambient: frozenset[str], index: FactIndex, rules: Rules | None
) -> Iterator[NumberPlace]:
    rows: dict[int, dict[int, TableCell]] = defaultdict(dict)
    for cell in block.cells:
        rows[cell.row][cell.column] = cell
    header = rows.get(0, {})
    for row, cells in rows.items():
        label = hard(cells[0].text) if 0 in cells else frozenset()
        extra = hard(" ".join(c.text for k, c in cells.items() if k and not scan(c.text)))
        for column, cell in cells.items():
            if row == 0 or column == 0:
                continue  # a header or a row's name states nothing
            title = header[column].text if column in header else ""
            head = hard(title)
            percent = "%" in title or "percent" in title.lower() or "%" in (cells[0].text if 0 in cells else "")
            before: PrintedNumber | None = None
            for number in scan(cell.text):
                of, before = _spread_of(cell.text, before, number), number
                if _ignored(cell.text, number, rules):
                    continue
                inside = _hard_of(cell.text, 0, len(cell.text), scan(cell.text))
                near = label | head | inside | extra | (SPREADS if of is not None else frozenset())
                alone = number.text.strip() == cell.text.strip(" *_`")
                inner = cell.text.lstrip(" +-−±") if alone else cell.text
                words_there = f"{cells[0].text if 0 in cells else ''} {title} {inner}\n{caption}"
                yield NumberPlace(
                    number, cell.start + number.start, near, ambient, words_there, -1, label, head, extra, percent,
                    alone, of is not None and abs(of.value) > 1,
                    None if of is None else cell.start + of.start,
                )  # fmt: skip


def _ignored(text: str, number: PrintedNumber, rules: Rules | None) -> bool:
    return rules is not None and any(
        m.start() <= number.start < m.end() for pattern in rules.ignore for m in pattern.finditer(text)
    )


NAME_BEFORE = re.compile(r"(?:^|[^\w.])((?:[A-Z][\w.&+\-]*|v|№|#|No\.?)[*_ ]{0,2}\s?)$")
STARTS = re.compile(r"^[\s*_(]*$")


def _no_claim(text: str, number: PrintedNumber, block: Block, index: FactIndex) -> bool:
    """A heading's own number, and a number that belongs to a name: `CUDA 12`, `Llama 2`, `RTX 3070`."""
    if block.kind == "heading" and STARTS.match(text[: number.start].replace("#", " ")):
        return True
    if number.word or number.percent or number.signed or number.relation:
        return False
    name = NAME_BEFORE.search(text[max(0, number.start - 40) : number.start])
    if name is None or not name.group(1).strip():
        return False
    opens = STARTS.match(text[: number.start - len(name.group(1))]) is not None
    known = any(word in index.by_word for word in words(name.group(1)))
    return not opens and not known and (number.decimals <= 1)

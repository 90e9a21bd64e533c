"""Which mention a number belongs to: the words at its side, lists in order, the clause, then what stands around.

`A scores 0.91 against 0.35 for B`, `A and B reach 0.91 and 0.75`, `0.91 (A)`, `0.91 and 0.90 on seen and sibling`.
A number whose owner the words do not settle is not constrained: lint would rather miss a swap than invent one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.words import Dimension, KindWord, Mention


@dataclass(frozen=True, slots=True)
class Around:
    """The context of a sentence or cell: mentions and kind words at one level (earlier sentence, row ...)."""

    mentions: tuple[Mention, ...]
    kinds: tuple[KindWord, ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Passage:
    """A sentence or table cell with its content and context, nearest first. `start` is its offset in the file."""

    text: str
    start: int
    numbers: tuple[PrintedNumber, ...]
    mentions: tuple[Mention, ...]
    kinds: tuple[KindWord, ...]
    around: tuple[Around, ...] = ()
    percent_column: bool = False
    table: bool = False

    def clause(self, at: int) -> tuple[int, int]:
        """The clause around an offset: between semicolons and `while`, `whereas`, `but`."""
        return next((a, b) for a, b in itertools.pairwise(_cuts(self.text)) if a <= at < b)

    def of(self, dimension: Dimension) -> list[Mention]:
        return [m for m in self.mentions if m.dimension == dimension]


@lru_cache(maxsize=256)
def _cuts(text: str) -> tuple[int, ...]:
    """Where the clauses of a text begin, and its end; asked for once for every number and quantity."""
    return (0, *(m.end() for m in CLAUSE.finditer(text)), len(text) + 1)


CLAUSE = re.compile(r";|\b(?:while|whereas)\b|,\sbut\b")
RIGHT = re.compile(
    r"[\s)\]]*(?:(?:for|of|by|with|in|under|on|at)\s)?(?:(?:the|its|our|all|both|zone|new|items of|a)\s){0,2}[(`\s]*"
)
RIGHT_WITH_WORD = re.compile(r".*(?:\(|\b(?:for|of|by|with|in|under|on|at)\b).*", re.DOTALL)
COMPARED = re.compile(
    r"(?:\b(?:against|versus|vs\.?|than|from|compared\s(?:with|to)|over|relative\sto|up\sfrom|instead\sof|where)"
    r"\s(?:only\s|a\s|the\s|about\s|its\s|an\s|just\s|mean\s|score\s|of\s|mean\sof\s){0,3})$",
    re.IGNORECASE,
)
GROUP = re.compile(r"\s*(?:\([^()]{0,200}\)|\[[^\[\]]{0,200}\])")


def allowed(passage: Passage, number: PrintedNumber, dimension: Dimension) -> frozenset[str | int] | None:
    """The values of a dimension that a number may refer to, None if the words leave it open."""
    mentions = passage.of(dimension)
    if passage.table:
        return _in_table(passage, mentions, dimension)
    if not mentions:
        return _from_around(passage, dimension)
    low, high = passage.clause(number.start)
    here = [m for m in mentions if low <= m.start < high]
    if not here:
        values = {m.value for m in mentions}
        if len(values) == 1 and not COMPARED.search(passage.text[max(0, number.start - 40) : number.start]):
            return frozenset(values)
        return None
    numbers = [n for n in passage.numbers if low <= n.start < high]
    return _Clause(passage, here, numbers, dimension).owner(number)


def _in_table(passage: Passage, own: Sequence[Mention], dimension: Dimension) -> frozenset[str | int] | None:
    if own:
        return frozenset(m.value for m in own)
    for level in passage.around:
        values = {m.value for m in level.mentions if m.dimension == dimension}
        if values:
            return frozenset(values)
    return None


def _from_around(passage: Passage, dimension: Dimension) -> frozenset[str | int] | None:
    """One value in the nearest level that mentions the dimension; several leave it open."""
    for level in passage.around:
        values = {m.value for m in level.mentions if m.dimension == dimension}
        if values:
            return frozenset(values) if len(values) == 1 and dimension != "claim" else None
    return None


class _Clause:
    """Owners within one clause."""

    def __init__(
        self, passage: Passage, mentions: Sequence[Mention], numbers: Sequence[PrintedNumber], dimension: Dimension
    ) -> None:
        self.text, self.mentions, self.numbers, self.dimension = passage.text, mentions, numbers, dimension

    def owner(self, number: PrintedNumber) -> frozenset[str | int] | None:
        values = {m.value for m in self.mentions}
        right = self._right(number)
        if right is not None:
            return frozenset({right.value})
        compared = bool(COMPARED.search(self.text[max(0, number.start - 40) : number.start]))
        if len(values) == 1:
            taken = self._taken_later(number)
            return None if (compared and self.dimension == "condition") or taken else frozenset(values)
        alternating = self._alternating(number)
        if alternating is not None:
            return frozenset({alternating.value})
        paired = self._in_order(number)
        if paired is not None:
            return frozenset({paired.value})
        return self._left(number, compared)

    def _bare(self, n: PrintedNumber) -> bool:
        """Whether a number is a value of its own: not within parentheses or brackets that follow another number."""
        before = self.text[max(0, n.start - 200) : n.start]
        opened = max(before.rfind("("), before.rfind("["))
        closed = max(before.rfind(")"), before.rfind("]"))
        if opened <= closed:
            return True
        return not any(o.end <= n.start - len(before) + opened and o is not n for o in self.numbers)

    def _right(self, number: PrintedNumber) -> Mention | None:
        """The mention right behind a number: `0.35 for the baseline`, `0.35 (baseline)`, `48 stranger items`."""
        following = next((m for m in self.mentions if m.start >= number.end), None)
        if following is None or any(number.end <= n.start < following.start and self._bare(n) for n in self.numbers):
            return None
        between = self.text[number.end : following.start]
        group = GROUP.match(between)
        if group:
            between = between[group.end() :]
        if not RIGHT.fullmatch(between):
            return None
        adjective = self.dimension == "zone" and not between.strip()
        if not adjective and not RIGHT_WITH_WORD.fullmatch(between):
            return None
        return self._paired_right(number, following)

    def _paired_right(self, number: PrintedNumber, following: Mention) -> Mention | None:
        """`0.91 and 0.90 on seen and sibling`: the last number of a run touches the first mention of a run."""
        run = self._mention_run(following)
        numbers = self._number_run(number)
        if len(run) > 1 and len(numbers) == len({m.value for m in run}):
            return run[numbers.index(number)]
        if len(run) > 1 and len(numbers) == 1:
            return None
        return following

    def _mention_run(self, first: Mention) -> list[Mention]:
        """Mentions from `first` on with no number between them, one per value."""
        run: list[Mention] = []
        for mention in self.mentions:
            if mention.start < first.start:
                continue
            if run and any(run[-1].end <= n.start < mention.start and self._bare(n) for n in self.numbers):
                break
            if all(m.value != mention.value for m in run):
                run.append(mention)
        return run

    def _number_run(self, number: PrintedNumber) -> list[PrintedNumber]:
        """Free-standing numbers around `number` with no mention between them."""
        free = [n for n in self.numbers if n is number or self._bare(n)]
        k = free.index(number)
        low = high = k
        while low > 0 and not self._between(free[low - 1].end, free[low].start):
            low -= 1
        while high + 1 < len(free) and not self._between(free[high].end, free[high + 1].start):
            high += 1
        return free[low : high + 1]

    def _between(self, a: int, b: int) -> bool:
        return any(a <= m.start < b for m in self.mentions)

    def _alternating(self, number: PrintedNumber) -> Mention | None:
        """`26 families are seen, 16 families are strangers`: numbers and mentions in turn, a number first.

        Numbers before the first of them are of something else: `48 families: 26 are seen, 16 are strangers`.
        """
        free = [n for n in self.numbers if n is number or self._bare(n)][-len(self.mentions) :]
        if len(free) != len(self.mentions) or len(free) < 2 or number not in free:
            return None
        for n, m, after in zip(free, self.mentions, [*(x.start for x in free[1:]), len(self.text) + 1]):
            if not n.end <= m.start < after:
                return None
        return self.mentions[free.index(number)]

    def _taken_later(self, number: PrintedNumber) -> bool:
        """Whether the only mention belongs to a later number, compared with this one: `0.56 against 0.61 on X`."""
        later = [n for n in self.numbers if n.start > number.start]
        before = [m for m in self.mentions if m.start < number.start]
        if before or not later:
            return False
        for n in later:
            if self._right(n) is not None:
                return bool(COMPARED.search(self.text[max(0, n.start - 40) : n.start])) or bool(
                    re.search(r"\bto\s$", self.text[max(0, n.start - 6) : n.start])
                )
        return False

    def _in_order(self, number: PrintedNumber) -> Mention | None:
        """k mentions, then k numbers: the first is the first's. A list of later mentions may do as well."""
        run = self._number_run(number)
        run = [n for n in run if (n.decimals == number.decimals and n.percent == number.percent) or n is number]
        before = [m for m in self.mentions if m.end <= run[0].start]
        if not before:
            return None
        group = self._group_before(before)
        right = [n for n in run if self._right(n) is not None]
        if len(group) > 1 and len(group) == len(run) and not right:
            return group[run.index(number)]
        return None

    def _group_before(self, before: Sequence[Mention]) -> list[Mention]:
        """The last mentions before a number run with no number between them, one per value."""
        group = [before[-1]]
        for mention in reversed(before[:-1]):
            if any(mention.end <= n.start < group[0].start and self._bare(n) for n in self.numbers):
                break
            group = [mention, *[g for g in group if g.value != mention.value]]
        return group

    def _left(self, number: PrintedNumber, compared: bool) -> frozenset[str | int] | None:
        before = [m for m in self.mentions if m.end <= number.start]
        if not before or compared:
            return None
        group = self._group_before(before)
        if len(group) > 1:
            return frozenset(m.value for m in group) if len(group) < len({m.value for m in self.mentions}) else None
        return frozenset({group[0].value})

"""The one record that the words round a number name beyond doubt, by row and column or by the clause."""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re

from veritune.writeup.facts import SOFT, UNITS, Fact, hard, words
from veritune.writeup.lint.foreign_words import foreign
from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.places import FactIndex
from veritune.writeup.lint.values import NumberPlace

BOUND_WORDS = re.compile(
    r"(?:up to|at least|at most|more than|less than|over|under|below|above|about|around|almost|nearly|roughly|approximately|"
    r"only|by|from|than|[~≈<>≤≥+−±])\s?\*{0,2}$",
    re.IGNORECASE,
)


def beyond_doubt(index: FactIndex, place: NumberPlace) -> int | None:
    """The one fact that the words name; None if there is any doubt."""
    if place.row is not None:
        return _named_cell(index, place)
    return _named_sentence(index, place)


def _named_cell(index: FactIndex, place: NumberPlace) -> int | None:
    """Row and column together: every telling word of both is in the name, and the name has no word that is nowhere."""
    assert place.row is not None and place.column is not None
    both = place.row | place.column
    if not both or not (place.row and place.column):
        return None
    found = []
    for i in index.named(place):
        own = index.own[i]
        if both <= own and index.needed[i] <= both | place.extra | place.ambient and index.facts[i].kind == "number":
            found.append(i)
    most = max((len(index.own[i] & place.extra) for i in found), default=0)
    exact = [i for i in found if len(index.own[i] & place.extra) == most]
    exact = [i for i in exact if index.own[i] <= both | place.extra] or exact
    return exact[0] if len({index.facts[i].value for i in exact}) == 1 else None


def _named_sentence(index: FactIndex, place: NumberPlace) -> int | None:
    """A sentence names a fact when its measure touches the number, all of its name stands in the sentence's clause, no
    other fact is named there, and nothing says that the number is a bound, a difference or a part."""
    number, text, at = place.number, place.text, place.at
    before, after = text[max(0, at - 60) : at], text[at + len(number.text) : at + len(number.text) + 40]
    if BOUND_WORDS.search(before.rstrip()) or number.form or number.signed or number.word or foreign(text):
        return None  # the words that qualify a number are known in English alone
    touching = _touching(before, after, number)
    found = []
    for word in place.near:
        for i in index.by_word.get(word, ()):
            fact = index.facts[i]
            if index.needed[i] <= place.near and _leaf(fact) <= touching and fact.kind == "number":
                found.append(i)
    found = sorted(set(found))
    if not found:
        return None
    longest = max(len(index.own[i]) for i in found)
    top = [i for i in found if len(index.own[i]) == longest]
    if longest < 2 or len({index.own[i] for i in top}) > 1 or len({index.facts[i].value for i in top}) > 1:
        return None
    fact, own = index.facts[top[0]], index.own[top[0]]
    if _qualified(text, at, own) or any(len(word) > 2 for word in own - place.near):
        return None
    said = hard(BARE_NUMBER.sub(" ", text))
    if not said <= own | index.vocabulary | PLAIN:
        return None  # a word that no record knows may be another arm, place or measure
    if any(own <= index.own[i] or _just_as_named(index, i, place, touching) for i in index.holding(place)):
        return None  # the value is that of another record that the words may mean
    leaf = _leaf(fact)
    rivals = {i for word in said - own for i in index.by_word.get(word, ())}
    if any(leaf <= index.own[i] for i in rivals):
        return None  # another arm or place of the same measure stands in the sentence
    return top[0] if _same_form(place, fact) else None


def _just_as_named(index: FactIndex, i: int, place: NumberPlace, touching: frozenset[str]) -> bool:
    return index.needed[i] <= place.near and _leaf(index.facts[i]) <= touching


def _leaf(fact: Fact) -> frozenset[str]:
    """What a fact measures: the telling words of the last part of its name that has any, less a unit beside others."""
    own = next((hard(p) for p in reversed(fact.parts) if hard(p)), frozenset[str]())
    return (own - UNITS) or own or frozenset({"?"})


BARE_NUMBER = re.compile(r"(?<![\w.\-])\d[\d.,]*(?![\w\-])")
PLAIN = frozenset(
    [
        "reach",
        "reache",
        "reached",
        "get",
        "got",
        "achieve",
        "achieved",
        "obtain",
        "obtained",
        "have",
        "has",
        "had",
        "show",
        "showed",
        "give",
        "gave",
        "yield",
        "hit",
        "see",
        "find",
        "found",
        "measure",
        "measured",
        "report",
        "reported",
        "here",
        "now",
        "also",
        "then",
        "so",
        "only",
        "about",
        "around",
        "exactly",
        "precisely",
        "question",
        "item",
        "problem",
        "example",
        "prompt",
        "sample",
        "task",
        "benchmark",
        "dataset",
        "point",
        "there",
    ]
)
"""Telling words of a sentence that name no arm, place or measure of their own."""
QUALIFIERS = re.compile(
    r"\b(?:dev|subset|split|validation|only|first|last|without|excluding|except|few[- ]shot|zero[- ]shot|shot|seed|checkpoint|"
    r"step|epoch|after|before|when|if|earlier|previous|old|paper|reported|published|their|human|random|chance|another|other|"
    r"different|expected|target|goal|would|could|should|threshold|per|each|some|most|many|half|hard|easy|long|short|not)\b",
    re.IGNORECASE,
)
NAME_IN_TEXT = re.compile(r"(?<=[a-z,] )[A-Z][\w.\-]*\b|\b[a-z]+[\d_][\w.\-]*\b")


def _qualified(text: str, at: int, own: frozenset[str]) -> bool:
    """Whether a sentence holds a word that may make its number another one than the record's: a part, a time, a name."""
    return any(
        not hard(m.group()) <= own and (hard(m.group()) or m.re is QUALIFIERS)
        for pattern in (QUALIFIERS, NAME_IN_TEXT)
        for m in pattern.finditer(text)
    )


def _touching(before: str, after: str, number: PrintedNumber) -> frozenset[str]:
    """The words that a number is the number of: up to ten before it, without a number between, or the noun behind."""
    behind = re.match(r"[\s\-*]*([^\W\d_]{3,20})", after)
    noun = hard(behind.group(1)) if behind and number.integer and not number.percent else frozenset()
    stretch = re.split(r"(?<!\w)\d[\d.,]*(?!\w)|[.;()]\s", before)[-1]
    close = words(stretch)[-10:]
    return noun or frozenset(w for w in close if w not in SOFT)


def _same_form(place: NumberPlace, fact: Fact) -> bool:
    """Whether the print could be a value of the fact at all: no count for a rate, no percentage of a count."""
    number = place.number
    whole = float(fact.value).is_integer() and abs(fact.value) > 1
    if number.percent:
        return abs(fact.value) <= 100 and (not whole or fact.percent)
    if number.integer:
        return whole
    return not whole or not float(number.value).is_integer()

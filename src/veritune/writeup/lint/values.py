"""A number with the words round it, and whether a recorded value may be printed as that number."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from veritune.writeup.facts import Fact, words
from veritune.writeup.lint.numbers import PrintedNumber

ROUNDED = re.compile(
    r"\b(?:(under|below|less than|fewer than|at most|up to|no more than|almost|nearly)|over|above|more than|at least|"
    r"exceeds)\s[*_~≈]{0,2}$",
    re.IGNORECASE,
)
NEAR_BOUND = 0.1
"""How far, as a share of it, a value may lie from the rounded bound that words give: `just under 15 %` of 14.7."""
PER_UNIT = {"ms": 1e3, "µs": 1e6, "us": 1e6, "min": 1 / 60, "minutes": 1 / 60, "h": 1 / 3600, "hours": 1 / 3600}


UNIT_SIZES = {
    "ns": ("time", 1e-9), "us": ("time", 1e-6), "µs": ("time", 1e-6), "ms": ("time", 1e-3), "s": ("time", 1.0),
    "sec": ("time", 1.0), "secs": ("time", 1.0), "second": ("time", 1.0), "seconds": ("time", 1.0),
    "minutes": ("time", 60.0), "hours": ("time", 3600.0), "h": ("time", 3600.0),
    "kb": ("bytes", 1e3), "mb": ("bytes", 1e6), "gb": ("bytes", 1e9), "tb": ("bytes", 1e12),
    "kib": ("bytes", 2.0**10), "mib": ("bytes", 2.0**20), "gib": ("bytes", 2.0**30), "tib": ("bytes", 2.0**40),
}  # fmt: skip
"""Units of time and memory with their size. `min` is left out: in a record's name it is mostly the least."""
UNIT_IN_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(UNIT_SIZES, key=len, reverse=True))})(?![a-z])")
UNIT_BEHIND = re.compile(r"\s?([A-Za-zµ]{1,8})\b")


@dataclass(frozen=True, slots=True)
class NumberPlace:
    """A number and the words around it. `near` are the row and column of a cell, or the clause; `ambient` are farther
    words: caption, headings, the previous sentence. `row` and `column` are a cell's own, `extra` the row's other texts;
    `alone` means that the cell holds nothing else, `hundred` that it is the spread of a number above 1 and may be in
    percent like it, `spread_of` where that number starts.
    """

    number: PrintedNumber
    start: int
    near: frozenset[str]
    ambient: frozenset[str]
    text: str
    at: int
    row: frozenset[str] | None = None
    column: frozenset[str] | None = None
    extra: frozenset[str] = frozenset()
    percent: bool = False
    alone: bool = False
    hundred: bool = False
    spread_of: int | None = None


def has_value(place: NumberPlace, fact: Fact, own: frozenset[str]) -> bool:
    """Whether a fact's value equals the printed one."""
    number = place.number
    if number.form == "ratio":
        return bool({"speed", "ratio", "factor", "times", "x"} & set(words(fact.name))) and number.holds(fact.value)
    number = replace(number, relation=said_bound(place) or number.relation)
    return any(holds(number, fact.value, f) for f in factors(place, fact, own))


def said_bound(place: NumberPlace) -> str:
    """`~<` or `~>` if words directly before a number make it a rounded bound: `just under 15 %`, `more than 50`."""
    if place.at < 0 or place.number.form:
        return ""
    digits = re.sub(r"\D", "", place.number.text).strip("0")
    if len(digits) > 1 and not (len(digits) == 2 and digits.endswith("5")):
        return ""  # `up to 5,002` is no round number
    found = ROUNDED.search(place.text[max(0, place.at - 24) : place.at])
    return "" if found is None else "~<" if found.group(1) else "~>"


def holds(number: PrintedNumber, value: float, factor: float) -> bool:
    """Whether a value times `factor`, rounded to the printed precision, equals the printed number or keeps its
    bound."""
    if number.whole is not None and value == number.whole:
        return True
    shown = value * factor
    if number.relation in ("<", "≤"):
        return shown <= number.value
    if number.relation in (">", "≥"):
        return shown >= number.value
    slack = 1e-9 * max(1.0, abs(shown))
    if number.relation in ("~<", "~>"):
        least, most = (1 - NEAR_BOUND, 1.0) if number.relation == "~<" else (1.0, 1 + NEAR_BOUND)
        return least * number.value - slack <= shown <= most * number.value + number.half + slack
    if number.signed and number.value < 0 and shown > 0:
        return False
    return abs(abs(shown) - abs(number.value)) <= number.half + slack


def factors(place: NumberPlace, fact: Fact, own: frozenset[str]) -> Iterator[float]:
    """The factors by which a recorded value may be multiplied to be printed like this."""
    number, value = place.number, abs(fact.value)
    unit = _units(place, fact)
    if unit is not None:
        yield unit * (number.scale if number.scale != 1.0 else 1.0)
        return
    percent = bool(number.percent) or place.percent
    says_percent = fact.percent or bool({"percent", "pct", "percentage"} & set(words(fact.name)))
    if percent:
        if value <= 1 and not says_percent:
            yield 100.0
        if value > 1 or says_percent or value == 0:
            yield 1.0
        return
    if number.form == "share":
        yield 1.0
        if value > 1:
            yield 0.01
        return
    yield 1.0
    yield from _of_another_unit(place, value, fact.percent, own)


def _units(place: NumberPlace, fact: Fact) -> float | None:
    """What a value in the unit of the record's name (`latency_ms`) is multiplied by to be printed in the unit behind
    the number (`41 s`); None unless both units are known and of one kind."""
    behind = UNIT_BEHIND.match(place.text, place.number.end) if place.at == place.number.start else None
    named = UNIT_IN_NAME.findall(fact.name.lower())
    if behind is None or not named or behind.group(1).lower() not in UNIT_SIZES:
        return None
    (kind, size), (held_kind, held) = UNIT_SIZES[behind.group(1).lower()], UNIT_SIZES[named[-1]]
    return held / size if kind == held_kind else None


def _of_another_unit(place: NumberPlace, value: float, says_percent: bool, own: frozenset[str]) -> Iterator[float]:
    """Factors of a magnitude, of a percentage printed without its sign, and of another unit of time."""
    number = place.number
    if number.scale != 1.0:
        yield number.scale
    if place.hundred and value <= 1:
        yield 100.0
    if not number.integer and own & (place.near | place.ambient):
        if value <= 1 < abs(number.value) <= 100 and number.decimals:
            yield 100.0
        if value > 1 >= abs(number.value) and says_percent:
            yield 0.01
    if place.at >= 0:
        unit = re.match(r"\s?([a-zµ]{1,8})\b", place.text[place.at + len(number.text) :])
        if unit and unit.group(1) in PER_UNIT:
            yield PER_UNIT[unit.group(1)]

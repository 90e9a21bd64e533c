"""Numbers written in words, and the words that state a ratio: `nineteen points`, `nine in ten`, `half`, `doubles`."""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
VALUES = {word: i for i, word in enumerate(_UNITS.split())} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_SIMPLE = rf"(?:(?:{'|'.join(_TENS)})(?:[-\s](?:one|two|three|four|five|six|seven|eight|nine))?|{'|'.join(reversed(_UNITS.split()))})"
WRITTEN = rf"(?:(?:a|one|two|three|four|five|six|seven|eight|nine)\shundred(?:\s(?:and\s)?{_SIMPLE})?|{_SIMPLE})"

NOUNS = (
    "seeds|families|items|rows|conditions|arms|claims|evals|runs|adapters|rules|steps|epochs|tokens|answers|outputs|"
    "zones|passes|modules|examples|prompts|checkpoints|questions|letters|wordings|rewrites|cells|scores|verdicts|"
    "points|hours|minutes|days|seconds|layers|heads|parameters|languages|tasks|datasets|benchmarks|models|samples|"
    "annotators|raters|people|folds|trials|documents|pages|classes|errors|failures|cases|times|checks|files|gpus|"
    "percent|per\\scent|responses|replies|generations|completions|problems|categories|groups|methods|systems|variants"
)
COUNTED = re.compile(rf"(?<![\w-])({WRITTEN})[\s-](?:[a-z][a-z\-]{{2,15}}\s){{0,2}}?({NOUNS})\b", re.IGNORECASE)
IN_TEN = re.compile(
    rf"(?<![\w-])({WRITTEN}|\d{{1,3}})\s(?:in|out\sof)\s(?:every\s)?(two|three|four|five|six|eight|ten|twenty|hundred|a\shundred)\b",
    re.IGNORECASE,
)
IN_DIGITS = re.compile(r"(?<![\w.,-])(\d{1,3})\sin\s(?:every\s)?(5|10|20|50|100|1000|1,000)(?![\w.,]*\d)")
_PARTS = {"half": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "eighth": 8, "tenth": 10}
FRACTION = re.compile(
    r"(?<![\w-])(?:(a|one|two|three|four|five|six|seven|nine)[\s-](half|third|quarter|fourth|fifth|sixth|eighth|tenth)s?"
    r"\b(?=\s(?:of|as|the|in|less|more|fewer|that)\b|[\s,.;)]|$)|(half)(?=\s(?:of|the|its|as|a\b)))",
    re.IGNORECASE,
)
RATIO = re.compile(
    r"\b(?:(doubl(?:es?|ed|ing)|twice)|(tripl(?:es?|ed|ing)|thrice)|(quadrupl(?:es?|ed|ing))|(halv(?:es?|ed|ing)|(?:by|in)\shalf(?!\s(?:an?|of|that|the|its|as|point)\b)(?!-))|"
    r"(tenfold)|(two|three|four|five|six|seven|eight|nine|ten)[\s-]?(?:fold|times))\b",
    re.IGNORECASE,
)
_RATIOS = (2.0, 3.0, 4.0, 0.5, 10.0)
_CALM = re.compile(
    r"^(?:\s(?:descent|precision|checked?|blind|quotes?|click|dip|counted|the\s(?:time|work))|-)", re.IGNORECASE
)
_SIGNS = {"½": 0.5, "⅓": 1 / 3, "⅔": 2 / 3, "¼": 0.25, "¾": 0.75, "⅕": 0.2, "⅘": 0.8, "⅒": 0.1}


@dataclass(frozen=True, slots=True)
class WrittenNumber:
    """A number in words at [start, end). `half` is the rounding tolerance around the value."""

    start: int
    end: int
    value: float
    half: float
    form: Literal["count", "share", "ratio", "percent", "points"]


def written(text: str) -> Iterator[WrittenNumber]:
    """The numbers written out as words in a text, in no order."""
    taken: list[tuple[int, int]] = []
    for found in (*_shares(text), *_ratios(text), *_counts(text)):
        if not any(a < found.end and found.start < b for a, b in taken):
            taken.append((found.start, found.end))
            yield found


def amount(word: str) -> int:
    """The value of a count in digits or in words: `204` and `two hundred and four` are 204."""
    if word.isdigit():
        return int(word)
    total = 0
    for part in re.split(r"[\s-]+", word.lower()):
        if part == "hundred":
            total = max(1, total) * 100
        elif part != "and":
            total += 1 if part == "a" else VALUES.get(part, 0)
    return total


def _shares(text: str) -> Iterator[WrittenNumber]:
    for match in IN_TEN.finditer(text):
        top = amount(match.group(1))
        word = match.group(2).lower()
        bottom = 100 if word.endswith("hundred") else amount(word)
        if 0 < top <= bottom:
            yield WrittenNumber(match.start(), match.end(), top / bottom, 0.5 / bottom, "share")
    for match in IN_DIGITS.finditer(text):
        top, bottom = int(match.group(1)), int(match.group(2).replace(",", ""))
        if 0 < top <= bottom:
            yield WrittenNumber(match.start(), match.end(), top / bottom, 0.5 / bottom, "share")
    for match in FRACTION.finditer(text):
        if match.group(3):
            yield WrittenNumber(match.start(3), match.end(3), 0.5, 0.05, "share")
            continue
        top = 1 if match.group(1).lower() == "a" else amount(match.group(1))
        bottom = _PARTS[match.group(2).lower()]
        if top < bottom:
            yield WrittenNumber(match.start(), match.end(), top / bottom, 0.2 / bottom, "share")
    for at, char in enumerate(text):
        if char in _SIGNS and not text[at - 1 : at].isdigit():
            yield WrittenNumber(at, at + 1, _SIGNS[char], 0.05, "share")


def _ratios(text: str) -> Iterator[WrittenNumber]:
    for match in RATIO.finditer(text):
        if _CALM.match(text[match.end() :]):
            continue
        which = next(i for i, group in enumerate(match.groups()) if group)
        value = float(amount(match.group(6))) if which == 5 else _RATIOS[which]
        yield WrittenNumber(match.start(), match.end(), value, 0.1 * value, "ratio")


def _counts(text: str) -> Iterator[WrittenNumber]:
    for match in COUNTED.finditer(text):
        word, noun = match.group(1), match.group(2).lower()
        if word.lower() in ("one", "a") or (noun == "times" and not text[match.end() :].strip()):
            continue
        form: Literal["count", "percent", "points"] = "count"
        if noun == "points":
            form = "points"
        elif noun in ("percent", "per cent"):
            form = "percent"
        end = match.end() if form != "count" else match.end(1)
        half = 0.5 if form != "count" else 0.0
        yield WrittenNumber(match.start(1), end, float(amount(word)), half, form)

"""What a number is of two records that the words name: a difference, a ratio, a relative gain; or what is left to 1."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import permutations

from veritune.writeup.facts import WORD, Fact, hard, words
from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.places import FactIndex
from veritune.writeup.lint.scope import COMPARED
from veritune.writeup.lint.values import NumberPlace, holds, said_bound
from veritune.writeup.lint.winwords import DENIED

NEAR = 40
"""Facts that share the words of a sentence, at most, among which differences and ratios are looked for."""
DELTA = re.compile(
    r"points?\b|\bpp\b|\bby\b|gap|differ|gain|improv|ahead|behind|higher|lower|better|worse|more\b|less\b|fewer|drop|rise|rose|"
    r"fell|fall|increas|decreas|reduc|cut\b|faster|slower|times|fold|relative|[+−±]\s?\d|Δ|->|→|delta|lift|lead|margin|save|doubl|halv|"
    r"tripl|twice|than\b|mehr|weniger|höher|besser|schneller|plus\b|moins|mejor|menos|más|提升|提高|下降|倍|steig|stieg|gestiegen|sink|fiel|fällt|baiss|cay[óo]|baj[óa]|sub[ió]|gagn|perd|gan[aó]\b|pierd|高|低|增|减",
    re.IGNORECASE,
)
TIMES = re.compile(r"times|×|\bx\b|\dx|fold|faster|smaller|slower|倍|doubl|halv|tripl|twice|fois\b|\bmal\b|veces")
ERROR = re.compile(r"\berror|\bfail|\bmiss|wrong|fehler|erreur|incorrect", re.IGNORECASE)
RIGHT_WORDS = ("accuracy", "correct", "right", "match", "pass")
"""Measures of which an error rate is the rest, whether a sentence names them or not."""
LOWER_WINS = re.compile(r"\bloss|perplex|latency|\btime|\bcost|memory|slower|faster|smaller", re.IGNORECASE)
UP = re.compile(
    r"\b(?:gain\w*|improv\w*|higher|better|ahead|outperform\w*|outscor\w*|beats?|surpass\w*|exceed\w*|ris(?:es|ing)|rose|more|"
    r"increas\w*|doubl\w*|tripl\w*|lifts?|grew|grows|wins?)\b",
    re.IGNORECASE,
)
DOWN = re.compile(
    r"\b(?:los(?:es|ing)|lost|drop\w*|fell|falls?|lower|worse|behind|trail\w*|less|fewer|decreas\w*|reduc\w*|declin\w*|halv\w*|"
    r"regress\w*)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """How a number follows from recorded ones, as a formula; `turned` if the words name the two in the opposite
    order."""

    formula: str
    turned: bool = False


def derived(index: FactIndex, place: NumberPlace) -> Contrast | None:
    """How a number follows from two records that the words near it name: a difference, a ratio, a relative gain; or
    from one: the rest to 1. None if it does not.
    """
    there = place.near | place.ambient
    number = place.number
    share = [i for word in there for i in index.by_word.get(word, ())]
    ranked = sorted(set(share), key=lambda i: (-len(index.own[i] & place.near), -len(index.own[i] & there)))[:NEAR]
    if ERROR.search(place.text) and "error" not in index.vocabulary:  # records of error rates say it themselves
        rounded = replace(number, relation=said_bound(place) or number.relation)
        right = [i for word in RIGHT_WORDS for i in index.by_word.get(word, ())][:NEAR]
        for i in (i for i in dict.fromkeys([*ranked, *right]) if index.facts[i].kind in ("number", "share")):
            rest = 1 - index.facts[i].value
            if 0 <= rest <= 1 and any(holds(rounded, rest, f) for f in ((100.0,) if number.percent else (1.0,))):
                return Contrast(f"1 − {index.facts[i].name}")
    signed = number.signed and not place.alone  # alone in a cell it may be a value below 0
    if not (DELTA.search(place.text) or signed or number.form == "ratio" or number.percent == "points"):
        return None
    turned = None
    for i, j in permutations(ranked, 2):
        a, b = index.facts[i], index.facts[j]
        if not _comparable(index, i, j, place):
            continue
        how = _relation_of(number, a.value, b.value, place.text)
        if how is None:
            continue
        found = Contrast(how.format(a=a.name, b=b.name), _turned(index, i, j, place))
        if not found.turned:
            return found
        turned = turned or found
    return turned


def _comparable(index: FactIndex, i: int, j: int, place: NumberPlace) -> bool:
    """Two facts of one measure: names that differ in one part, each with a word of its own in the sentence; where that
    is the last part, the two share a word (`gsm8k_accuracy`, `mmlu_accuracy`)."""
    a, b = index.facts[i], index.facts[j]
    x, y = _steps(a), _steps(b)
    differ = [k for k in range(min(len(x), len(y))) if x[k] != y[k]]
    if len(x) != len(y) or len(differ) != 1 or a.kind != b.kind:
        return False
    if differ[0] == len(x) - 1 and not hard(x[-1]) & hard(y[-1]):
        return False
    there = place.near | place.ambient
    one, two = index.own[i] - index.own[j], index.own[j] - index.own[i]
    return bool((one & there) or (two & there))


def _steps(fact: Fact) -> list[str]:
    """The parts of a name, flat ones (`tuned/gsm8k_accuracy`) apart."""
    return [step for part in fact.parts for step in part.split("/")]


def _relation_of(number: PrintedNumber, a: float, b: float, text: str) -> str | None:
    """What the number is of `a` against `b`: with a sign, the sign of their difference; a ratio is of the first."""
    difference, factors = a - b, (100.0, 1.0) if number.percent else (1.0, 100.0) if number.decimals else (1.0,)
    if number.signed and difference and (number.value > 0) != (difference > 0):
        return None
    size = replace(number, value=abs(number.value), signed=False)
    if number.form != "ratio":
        for f in factors:
            if (f == 1.0 or max(abs(a), abs(b)) <= 1) and holds(size, abs(difference), f) and difference:
                return "{a} − {b}"
    if number.percent == "%" and b and holds(size, 100 * abs(difference / b), 1.0):
        return "({a} − {b}) / {b}"
    times = number.form == "ratio" or (TIMES.search(text) is not None and not number.percent)
    if b and times and holds(number, a / b, 1.0):
        return "{a} / {b}"
    if ERROR.search(text) and 0 <= a <= 1 and 0 <= b < 1:
        if times and holds(number, (1 - a) / (1 - b), 1.0):
            return "(1 − {a}) / (1 − {b})"
        if number.percent == "%" and holds(size, 100 * abs(difference) / (1 - b), 1.0):
            return "({a} − {b}) / (1 − {b})"
    return None


def _turned(index: FactIndex, i: int, j: int, place: NumberPlace) -> bool:
    """Whether a sentence that names both has them the other way round: `base gains 5 points over tuned`."""
    text = place.text
    first = _subject(text, index.own[i] - index.own[j], index.own[j] - index.own[i]) if place.at >= 0 else None
    if first is None:
        return False
    if place.number.signed:
        return not first  # the sign is that of the first less the second
    up, down = UP.search(text) is not None, DOWN.search(text) is not None
    if up == down or DENIED.search(text) or ERROR.search(text) or LOWER_WINS.search(text):
        return False
    subject, other = (i, j) if first else (j, i)
    return (index.facts[subject].value > index.facts[other].value) != up


def _subject(text: str, a: frozenset[str], b: frozenset[str]) -> bool | None:
    """Whether the first of two is what a sentence speaks of, None where it does not name both, each once."""
    places = []
    for mine, arm in ((True, a), (False, b)):
        there = [m for m in WORD.finditer(text) if set(words(m.group())) & arm]
        if len({m.group().lower() for m in there}) != 1 or len(there) > 1:
            return None
        compared = COMPARED.search(text[max(0, there[0].start() - 40) : there[0].start()]) is not None
        places.append((compared, there[0].start(), mine))
    return min(places)[2] if places[0][0] != places[1][0] else None

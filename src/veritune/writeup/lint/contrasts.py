"""What a number is of two records that the words name: a difference, a ratio, a relative gain; or what is left to 1."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import permutations

from veritune.writeup.facts import WORD, Fact, hard, words
from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.places import SPREADS, FactIndex
from veritune.writeup.lint.scope import COMPARED
from veritune.writeup.lint.values import NumberPlace, holds, said_bound
from veritune.writeup.lint.winwords import DENIED

NEAR = 40
"""Facts that share the words of a sentence, at most, among which differences and ratios are looked for."""
NEAR_SHARE = 0.05
"""How far a share in words (`one in three`) may lie from the rest to 1 that it stands for."""
DELTA = re.compile(
    r"points?\b|\bpp\b|\bby\b|gap|differ|gain|improv|ahead|behind|higher|lower|better|worse|more\b|less\b|fewer|drop|rise|rose|"
    r"fell|fall|increas|decreas|reduc|cut\b|faster|slower|times|fold|relative|[+−±]\s?\d|Δ|->|→|delta|lift|lead|margin|save|doubl|halv|"
    r"tripl|twice|than\b|mehr|weniger|höher|besser|schneller|plus\b|moins|mejor|menos|más|提升|提高|下降|倍|steig|stieg|gestiegen|sink|fiel|fällt|baiss|cay[óo]|baj[óa]|sub[ió]|gagn|perd|gan[aó]\b|pierd|高|低|增|减",
    re.IGNORECASE,
)
TIMES = re.compile(
    r"times|×|\bx\b|\dx|fold|faster|smaller|slower|倍|doubl|halv|\b(?:by|in)\shalf\b|tripl|twice|fois\b|\bmal\b|veces"
)
ERROR = re.compile(r"\berror|\bfail|\bmiss|wrong|fehler|erreur|incorrect", re.IGNORECASE)
RIGHT_WORDS = ("accuracy", "correct", "right", "match", "pass")
"""Measures of which an error rate is the rest, whether a sentence names them or not."""
ERROR_RATE = re.compile(
    r"(?:error|failure|miss)[\s-]rates?\b|\bfehler(?:rate|quote)|\btaux d['’](?:erreurs?|échecs?)|"
    r"\btasa de (?:error|fallo)|错误率|失败率",
    re.IGNORECASE,
)
RIGHT = re.compile(
    r"accura|\bacc\b|correct|\bright\b|\bmatch|\bpass(?:es|ed|\b)|genauigkeit|richtig|exactitude|précision|exactitud|"
    r"precisi[óo]n|acierto|准确率|正确",
    re.IGNORECASE,
)
LOWER_WINS = re.compile(
    r"\bloss|\bwer\b|\bcer\b|perplex|latency|\btime|\bcost|memory|slower|faster|smaller", re.IGNORECASE
)
UP = re.compile(
    r"\b(?:gain\w*|improv\w*|higher|better|ahead|outperform\w*|outscor\w*|beats?|surpass\w*|exceed\w*|ris(?:es|ing)|rose|more|"
    r"increas\w*|doubl\w*|tripl\w*|lifts?|grew|grows|wins?|leads?|above|tops?)\b",
    re.IGNORECASE,
)
DOWN = re.compile(
    r"\b(?:los(?:es|ing)|lost|drop\w*|fell|falls?|lower|worse|behind|trail\w*|less|fewer|decreas\w*|reduc\w*|declin\w*|halv\w*|"
    r"regress\w*|below)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Contrast:
    """How a number follows from recorded ones, as a formula; `turned` if the words name the two in the opposite
    order."""

    formula: str
    turned: bool = False


def derived(index: FactIndex, place: NumberPlace) -> Contrast | None:
    """How a number follows from two records that the words near it name: a difference, a ratio, a relative gain. None
    if it does not.
    """
    there = place.near | place.ambient
    number = place.number
    share = [i for word in there for i in index.by_word.get(word, ())]
    ranked = sorted(set(share), key=lambda i: (-len(index.own[i] & place.near), -len(index.own[i] & there)))[:NEAR]
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
        both = (index.own[i] - index.own[j]) & place.near and (index.own[j] - index.own[i]) & place.near
        if not found.turned or both:
            return found
        turned = turned or found
    return turned


def of_error_rate(index: FactIndex, place: NumberPlace) -> list[int]:
    """Records of which the number is the rest to 1, where the words speak of errors."""
    number = place.number
    if (
        not (ERROR.search(place.text) or ERROR_RATE.search(place.text)) or "error" in index.vocabulary
    ):  # records of error rates say it themselves
        return []
    rounded = replace(number, relation=said_bound(place) or number.relation)
    if number.form == "share":
        rounded = replace(rounded, half=min(rounded.half, NEAR_SHARE))
    in_percent = bool(number.percent) or place.percent
    bare = number.decimals > 0 and abs(number.value) > 1  # `45.9` under `error rate in percent`
    factor = 100.0 if in_percent or bare else 1.0
    there = place.near | place.ambient
    close = [i for word in (*there, *RIGHT_WORDS) for i in index.by_word.get(word, ())]
    return [
        i
        for i in dict.fromkeys(close)
        if index.facts[i].kind in ("number", "share")
        and 0 <= index.facts[i].value <= 1
        and not index.own[i] & SPREADS
        and holds(rounded, 1 - index.facts[i].value, factor)
    ]


OF = re.compile(r"\s?(?:(?:out\s)?of|/|von|sur|de|aus)\s(?:the\s|all\s)?(\d[\d.,]*)\b")


def of_count(index: FactIndex, place: NumberPlace) -> list[int]:
    """Records of which the number is a count: `375 of 500` where the share 0.75 is recorded."""
    number = place.number
    behind = OF.match(place.text, number.end) if place.at == number.start and number.integer else None
    if behind is None or number.percent or number.value <= 1:
        return []
    digits = re.sub(r"[.,](?=\d{3}\b)", "", behind.group(1)).rstrip(".,")
    total = float(digits) if digits.isdigit() else 0.0
    close = dict.fromkeys(i for word in place.near | place.ambient for i in index.by_word.get(word, ()))
    shares = [i for i in close if 0 < index.facts[i].value < 1 and index.own[i] & frozenset(RIGHT_WORDS)]
    return [i for i in shares if total > 1 and abs(index.facts[i].value * total - number.value) < 0.5]


def says_error_rate(place: NumberPlace) -> bool:
    """Whether the measure that a number stands for is an error rate: the last measure before it, or all around it."""
    text, at = place.text, place.at
    if at >= 0:
        before = text[:at]
        error = max((m.start() for m in ERROR_RATE.finditer(before)), default=-1)
        right = max((m.start() for m in RIGHT.finditer(before)), default=-1)
        if max(error, right) >= 0:
            return error > right
    for part in text.split("\n", 1):  # of a cell its row and column, then the caption
        error, right = ERROR_RATE.search(part) is not None, RIGHT.search(part) is not None
        if error or right:
            return error and not right
    return False


def _comparable(index: FactIndex, i: int, j: int, place: NumberPlace) -> bool:
    """Two facts of one measure: names that differ in one part, each with a word of its own in the sentence; where that
    is the last part, the two share a word (`gsm8k_accuracy`, `mmlu_accuracy`)."""
    a, b = index.facts[i], index.facts[j]
    x, y = _steps(a), _steps(b)
    differ = [k for k in range(min(len(x), len(y))) if x[k] != y[k]]
    if len(x) != len(y) or len(differ) != 1 or a.kind != b.kind:
        return False
    there = place.near | place.ambient
    one, two = index.own[i] - index.own[j], index.own[j] - index.own[i]
    named = bool((one & there) or (two & there))
    if not named or (differ[0] == len(x) - 1 and not hard(x[-1]) & hard(y[-1])):
        return not (one & place.near and two & place.near) and _only_two(index, i, j, place)
    return True


def _only_two(index: FactIndex, i: int, j: int, place: NumberPlace) -> bool:
    """Whether the words name all but the arm, of which the records have two, and the second is where it began:
    `tuning cuts the WER by 20 points`. A plain `%` is then a share of that, never points."""
    a, b = _steps(index.facts[i]), _steps(index.facts[j])
    at = next(k for k, (x, y) in enumerate(zip(a, b)) if x != y)
    rest = a[:at] + a[at + 1 :]
    said = hard(" ".join(rest))
    if not said or not said <= place.near or not begins(b[at]) or begins(a[at]):
        return False
    if place.number.percent == "%" and holds(place.number, 100 * abs(index.facts[i].value - index.facts[j].value), 1.0):
        return False
    alike = [f for f in index.facts if len(s := _steps(f)) == len(a) and s[:at] + s[at + 1 :] == rest]
    return len(alike) == 2


BEGIN = re.compile(
    r"(?:^|[\W_])(?:base|baseline|before|original|reference|pretrained|untuned|untrained|control)(?:$|[\W_])"
)


def begins(part: str) -> bool:
    """Whether a part of a name is the arm that the others are compared with."""
    return BEGIN.search(part.lower()) is not None


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
    if place.at < 0:
        return _other_row(index, i, j, place)
    first = _subject(text, index.own[i] - index.own[j], index.own[j] - index.own[i])
    if first is None:
        return _against_the_verb(index, i, j, place)
    if place.number.signed:
        return not first  # the sign is that of the first less the second
    up, down = UP.search(text) is not None, DOWN.search(text) is not None
    if up == down or DENIED.search(text) or ERROR.search(text) or LOWER_WINS.search(text):
        return False
    subject, other = (i, j) if first else (j, i)
    return (index.facts[subject].value > index.facts[other].value) != up


def _other_row(index: FactIndex, i: int, j: int, place: NumberPlace) -> bool:
    """Whether a signed difference stands in the row or column of the arm that it is not of: `-0.13` beside a gain."""
    labels = (place.row or frozenset()) | (place.column or frozenset())
    one, two = index.own[i] - index.own[j], index.own[j] - index.own[i]
    return place.number.signed and bool(two & labels) and not one & labels


ROSE = re.compile(
    r"\b(?:rais\w*|ris(?:es|ing)|rose|increas\w*|lifts?|lifted|grew|grows|adds?|added|erhöh\w*|steiger\w*|augment\w*|aument\w*)\b|提升|提高|增加",
    re.IGNORECASE,
)
FELL = re.compile(
    r"\b(?:lower(?:s|ed)|cuts?|reduc\w*|decreas\w*|drop\w*|fell|falls?|shrinks?|shrank|senk\w*|verringer\w*|rédui\w*|"
    r"diminu\w*|redu[cj]\w*|disminu\w*)\b|下降|降低|减少",
    re.IGNORECASE,
)


def _against_the_verb(index: FactIndex, i: int, j: int, place: NumberPlace) -> bool:
    """Whether the verb goes the other way than from where the records began to the other arm, in a sentence that does
    not name both."""
    a, b = index.facts[i], index.facts[j]
    parts = [(x, y) for x, y in zip(_steps(a), _steps(b)) if x != y]
    if place.at < 0 or len(parts) != 1 or begins(parts[0][0]) == begins(parts[0][1]):
        return False
    start, end = (a, b) if begins(parts[0][0]) else (b, a)
    if hard(next(x for x in parts[0] if begins(x))) & hard(place.text):
        return False
    wins = not LOWER_WINS.search(f"{place.text} {a.name}") and not ERROR.search(f"{place.text} {a.name}")
    up = ROSE.search(place.text) is not None or (wins and UP.search(place.text) is not None)
    down = FELL.search(place.text) is not None or (wins and DOWN.search(place.text) is not None)
    if up == down or DENIED.search(place.text):
        return False
    return (end.value > start.value) != up


OVER = re.compile(
    r"\b(?:trails?|leads?|beats?|tops?|outperforms?|outscores?|surpass\w*|exceeds?|above|below|ahead\sof|behind)"
    r"\s(?:the\s|a\s|by\s)?[^,;]{0,30}$",
    re.IGNORECASE,
)
"""What stands between the arm that a sentence speaks of and the one that it compares it with."""


def _subject(text: str, a: frozenset[str], b: frozenset[str]) -> bool | None:
    """Whether the first of two is what a sentence speaks of, None where it does not name both, each once."""
    places = []
    for mine, arm in ((True, a), (False, b)):
        there = [m for m in WORD.finditer(text) if set(words(m.group())) & arm]
        if len({m.group().lower() for m in there}) != 1 or len(there) > 1:
            return None
        compared = COMPARED.search(text[max(0, there[0].start() - 40) : there[0].start()]) is not None
        places.append((compared, there[0].start(), mine))
    if places[0][0] != places[1][0]:
        return min(places)[2]
    (_, at, mine), (_, other, _) = sorted(places, key=lambda p: p[1])
    return mine if OVER.search(text[at:other]) else None

"""What two numbers of one sentence say of each other: which way it went, whose label comes first, whose spread it is.

A value that is recorded says nothing false alone. `Accuracy rose from 54.1 % to 42.3 %`, `A and B reach 42.3 % and
54.1 %`, `42.3 % (A)` and `54.1 % ± 1.3` can each hold two recorded values and be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from veritune.writeup.facts import WORD, Fact, hard, words
from veritune.writeup.lint.contrasts import begins
from veritune.writeup.lint.places import SPREADS, FactIndex
from veritune.writeup.lint.values import NumberPlace

_RISE = (
    r"rose|rises?|rising|increas\w*|grew|grows?|climb\w*|went up|goes up|gestiegen|steig\w*|stieg\w*|wächst|wuchs|"
    r"augment\w*|mont(?:e|ait|é)|grimp\w*|aument\w*|sub(?:e|en|ió|ieron)|crec\w*|上升|提高|增加|提升|升"
)
_FALL = (
    r"fell|falls?|falling|dropp\w*|drops?|decreas\w*|declin\w*|sank|sinks?|shrank|shrinks?|went down|goes down|"
    r"gefallen|fällt|fiel\w*|sinkt|sank|baiss\w*|chut\w*|diminu\w*|recul\w*|baj(?:a|an|ó|aron)|ca(?:e|en|yó|yeron)|desciend\w*|"
    r"disminu\w*|下降|降低|降|减少"
)
_FROM = r"(?:from|von|de|del|从|by|:)?\s?(?:about |around |etwa |~)?"
MOVED = re.compile(rf"(?:\b(?:(?P<up>{_RISE})|(?P<down>{_FALL}))\b)[^\d;.]{{0,40}}?{_FROM}$", re.IGNORECASE)
FROM = re.compile(r"(?:\b(?:from|von|de|del)|从)\s?(?:about |around |etwa )?[*_]{0,2}$", re.IGNORECASE)
TO = re.compile(r"[*_]{0,2}\s?(?:to|auf|à|al?)\s?(?:about |around |etwa )?[*_]{0,2}", re.IGNORECASE)
TO_ZH = re.compile(r"\s?(?:(?P<up>上升|提高|增加|提升|升)|(?P<down>下降|降低|减少|降))?[到至为]\s?")
TO_NUMBER = re.compile(rf"(?:{TO.pattern}|{TO_ZH.pattern})(?=[*_~]{{0,2}}\d)", re.IGNORECASE)
JOINED = re.compile(r"[*_`]{0,2}\s?(?:,|&|/|,?\s?(?:and|und|et|y|e)\b|和|与|、)\s?(?:the |on |of )?[*_`]{0,2}")
LABEL_BEHIND = re.compile(r"[*_]{0,2}\s?\(([^()]*[^\W\d_][^()]*)\)")
NUMBER_IN_PARENTHESES = re.compile(r"\([*_$]{0,2}\d[\d.,]*\s?(?:\\?%|points)?[*_$]{0,2}\)")
COUNTED = re.compile(r"\s([^\W\d_]{3,20})\b")
"""A label in parentheses right behind a number: `54.1 % (GSM8K)`."""


def contradictions(
    index: FactIndex, places: Sequence[NumberPlace], bound: Sequence[int | None]
) -> Iterator[tuple[int, str]]:
    """Numbers that are recorded but that their sentence uses wrongly, by position in `places`, each with the reason.

    `bound` holds the record that each place is bound to, None for one that is not.
    """
    by_start = {place.start: k for k, place in enumerate(places)}
    for k, place in enumerate(places):
        if place.row is None and bound[k] is not None:
            why = _other_label(index, place, index.facts[bound[k] or 0])
            if why:
                yield k, why
        before = by_start.get(place.spread_of) if place.spread_of is not None else None
        if before is not None and bound[k] is not None and bound[before] is not None:
            why = _other_spread(index, place, bound[before] or 0, bound[k] or 0)
            if why:
                yield k, why
    for k, (one, two) in enumerate(pairwise(places)):
        if one.text is not two.text or one.row is not None or two.row is not None:
            continue
        between = one.text[one.number.end : two.number.start] if one.at == one.number.start else ""
        why = _moved(one, two, between)
        if not why and bound[k] is not None and bound[k + 1] is not None:
            why = _backwards(one, between, index.facts[bound[k] or 0], index.facts[bound[k + 1] or 0])
        if why:
            yield k + 1, why
        elif JOINED.fullmatch(between) and bound[k] is not None and bound[k + 1] is not None:
            why = _turned(one.text, index.facts[bound[k] or 0], index.facts[bound[k + 1] or 0])
            if why:
                yield k, why
                yield k + 1, why


def starts_from(place: NumberPlace) -> bool:
    """Whether a number is where something began: `von 62 % auf 75 %`."""
    number = place.number
    behind = place.text[number.end :]
    return bool(FROM.search(place.text[: number.start])) and bool(TO_NUMBER.match(behind))


def _moved(one: NumberPlace, two: NumberPlace, between: str) -> str:
    """`rose from 54.1 % to 42.3 %`: why the two contradict their verb, empty where they do not."""
    a, b = one.number, two.number
    if a.percent != b.percent or a.relation or b.relation or a.form or b.form:
        return ""
    lead = one.text[: a.start]
    zh = TO_ZH.fullmatch(between)
    verb = MOVED.search(lead) if FROM.search(lead) and TO.fullmatch(between) else None
    found = zh if zh is not None and (zh["up"] or zh["down"]) else verb
    if found is None or a.value == b.value:
        return ""
    rose = bool(found["up"])
    if rose == (b.value > a.value):
        return ""
    way, side = ("rose", "below") if rose else ("fell", "above")
    return f"the words say that it {way}, but {b.text.strip()} is {side} {a.text.strip()}"


def _backwards(one: NumberPlace, between: str, first: Fact, second: Fact) -> str:
    """`fell from 54.1 % to 42.3 %` where the records began at 42.3 % and no arm is named."""
    if not (TO.fullmatch(between) and FROM.search(one.text[: one.number.start])):
        return ""
    parts = [(x, y) for x, y in zip(first.parts, second.parts) if x != y]
    if len(parts) != 1 or len(first.parts) != len(second.parts):
        return ""
    x, y = parts[0]
    if begins(x) or not begins(y) or (hard(x) | hard(y)) & hard(one.text):
        return ""
    return f"this goes from {first.name} to {second.name}, where it began"


def _parted(a: Fact, b: Fact) -> tuple[frozenset[str], frozenset[str]] | None:
    """The words that tell two names apart where they differ in one part; None where they differ in more, or in none."""
    differ = [k for k, (x, y) in enumerate(zip(a.parts, b.parts)) if x != y]
    if len(a.parts) != len(b.parts) or len(differ) != 1:
        return None
    x, y = hard(a.parts[differ[0]]), hard(b.parts[differ[0]])
    return (x - y, y - x) if x - y and y - x else None


def _label(text: str, label: frozenset[str]) -> tuple[int, int] | None:
    """Where a sentence has a label, None unless it has it once."""
    spans: list[tuple[int, int]] = []
    for m in WORD.finditer(text):
        if not set(words(m.group())) & label:
            continue
        if spans and m.start() - spans[-1][1] <= 1:  # `GSM8K` is three words of a name, and one label
            spans[-1] = (spans[-1][0], m.end())
        else:
            spans.append(m.span())
    return spans[0] if len(spans) == 1 else None


def _turned(text: str, one: Fact, two: Fact) -> str:
    """`A and B reach 42.3 % and 54.1 %`: two labels in a row whose numbers stand in a row the other way round."""
    parted = _parted(one, two)
    if parted is None:
        return ""
    first, second = (_label(text, label) for label in parted)
    if first is None or second is None or first < second:
        return ""
    if not JOINED.fullmatch(text[second[1] : first[0]]):
        return ""
    return f"this is {one.name}, then {two.name}, but the words name them in the opposite order"


def _other_label(index: FactIndex, place: NumberPlace, fact: Fact) -> str:
    """`42.3 % (A)`, `A (42.3 %)` or `42 A` where the value is B's and the two names differ in A and B alone."""
    label = _label_beside(place) & index.vocabulary if place.at == place.number.start else frozenset()
    own = set(words(fact.name))
    for i in dict.fromkeys(i for word in label - own for i in index.by_word[word]):
        parted = _parted(fact, index.facts[i])
        if parted is not None and label & parted[1] and not label & parted[0]:
            return f"this is {fact.name}, but the words beside it name {index.facts[i].name}"
    return ""


def _label_beside(place: NumberPlace) -> frozenset[str]:
    """The words that belong to a number by their place alone: in parentheses behind it, before its own parentheses (if
    the sentence has two such), or the noun that it counts."""
    number, text = place.number, place.text
    behind = LABEL_BEHIND.match(text, number.end)
    if behind:
        return hard(behind.group(1))
    if len(NUMBER_IN_PARENTHESES.findall(text)) > 1:
        own = [m for m in NUMBER_IN_PARENTHESES.finditer(text) if m.start() < number.start < m.end()]
        if own:
            return hard(" ".join(text[: own[0].start()].split()[-3:]))
    noun = COUNTED.match(text, number.end)
    return hard(noun.group(1)) if noun and number.integer and not number.percent else frozenset()


def _other_spread(index: FactIndex, place: NumberPlace, mean: int, spread: int) -> str:
    """`0.541 ± 0.013` where 0.013 is the spread of another mean, and this one has a spread of its own."""
    held, found = index.facts[mean], index.facts[spread]
    if not index.own[spread] & SPREADS or _belongs(held, found):
        return ""
    own = [f for i, f in enumerate(index.facts) if index.own[i] & SPREADS and _belongs(held, f)]
    if len(own) != 1 or own[0].value == found.value:
        return ""
    return f"this is {found.name}, but the number before it is {held.name}, whose spread is {own[0].value:.6g}"


def _belongs(mean: Fact, spread: Fact) -> bool:
    """Whether a spread stands beside a mean in the records: the same name but for the word that says spread."""
    return mean.parts[:-1] == spread.parts[:-1] and hard(spread.parts[-1]) - SPREADS <= hard(mean.parts[-1])

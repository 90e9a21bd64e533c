"""Lint of free prose by evidence alone: the numbers of a page against records of any kind.

A number is

    bound       a record has this value at the printed precision, and the words fit its name
    ambiguous   a record has this value, but the words fit several records or none
    absent      no record has it, or the words speak of another record than the one that has it
    wrong       the words name one record beyond doubt (each word of the row, the column or the sentence that tells
                records apart is in its name, and the other way round), and its value is another one

Beyond doubt asks for more than likeness: an arm or a measure that the records do not know keeps a number from being
called wrong, as do two numbers of a page that the same words name.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from veritune.counting import many
from veritune.errors import nearest
from veritune.writeup.facts import Fact, hard, read_facts
from veritune.writeup.fill import Filler
from veritune.writeup.held_verdicts import HeldVerdict, read_verdicts
from veritune.writeup.lint.contrasts import DELTA, RIGHT_WORDS, derived, of_count, of_error_rate, says_error_rate
from veritune.writeup.lint.filled import filled_spans
from veritune.writeup.lint.markdown import Document, parse
from veritune.writeup.lint.named import beyond_doubt
from veritune.writeup.lint.order import contradictions, starts_from
from veritune.writeup.lint.places import SPREADS, FactIndex, places_of
from veritune.writeup.lint.rules import LintFinding, LintReport, NumberFate, Rules, load_rules
from veritune.writeup.lint.scope import COMPARED
from veritune.writeup.lint.structure import Raised
from veritune.writeup.lint.unsupported import WinCheck
from veritune.writeup.lint.values import NumberPlace, has_value
from veritune.writeup.pages import prose_of
from veritune.writeup.references import Values


def lint_records(
    page: str | Path,
    record_files: Iterable[str | Path],
    rules: Rules | Path | None = None,
    facts: Sequence[Fact] | None = None,
    verdicts: Sequence[HeldVerdict] | None = None,
) -> LintReport:
    """Check the numbers and win words of a page (Markdown, Quarto, LaTeX, Jupyter) against record files; `facts` and
    `verdicts` may be passed if they are already read.

    Raises InputError where a file cannot be read; what is in the page is a finding.
    """
    path = Path(page)
    source = prose_of(path)
    files = [Path(f) for f in record_files]
    chosen = rules if isinstance(rules, Rules) else load_rules(rules)
    facts = read_facts(files) if facts is None else facts
    verdicts = read_verdicts(files) if verdicts is None else verdicts
    document = parse(source)
    readings = check(document, facts, chosen, Filler(Values(None, facts), tuple(files)))
    names = ", ".join(f.name for f in files)
    said = list(WinCheck(facts, verdicts, chosen).check(document)) if files else []
    return report_of(path, names, readings, chosen, document, said)


def report_of(
    path: Path,
    study: str,
    readings: Sequence[NumberFate],
    rules: Rules,
    document: Document,
    said: Sequence[Raised] = (),
) -> LintReport:
    """The outcomes for numbers, and unsupported words in `said`, as a report: wrong and absent numbers and win words
    without a verdict are errors unless the rules differ.
    """
    findings = [_spoken(document, rules, raised) for raised in said if rules.level(raised[0]) != "off"]
    for r in readings:
        rule = {"wrong": "number.mismatch", "absent": "number.unbound", "ambiguous": "number.ambiguous"}.get(r.outcome)
        level = rules.level(rule) if rule else "off"
        if rule is not None and level != "off":
            line, column = document.place(r.start)
            severity = "error" if level == "error" else "note"
            findings.append(
                LintFinding(rule, severity, line, column, r.message, r.text, r.name, r.value, r.suggestion)  # type: ignore[arg-type]
            )
    findings.sort(key=lambda f: (f.line, f.column))
    bound = sum(r.outcome == "bound" for r in readings)
    return LintReport(str(path), study, "", tuple(findings), len(readings), bound, tuple(readings))


def _spoken(document: Document, rules: Rules, raised: Raised) -> LintFinding:
    rule, at, message, fix = raised
    line, column = document.place(at)
    severity = "error" if rules.level(rule) == "error" else "note"
    return LintFinding(rule, severity, line, column, message, suggestion=fix)  # type: ignore[arg-type]


def check(
    document: Document, facts: Sequence[Fact], rules: Rules | None = None, filler: Filler | None = None
) -> list[NumberFate]:
    """The outcome for every number of a page, in order. `filler` holds the source of its references."""
    index = FactIndex(facts, hard(document.source))
    places = sorted(places_of(document, rules, index), key=lambda p: p.start)
    spans = filled_spans(document.source, filler, Path()) if filler is not None else []
    by_reference = [(place, span) for place in places for span in spans if span.start <= place.start < span.end]
    inside = {place.start for place, _ in by_reference}
    places = [place for place in places if place.start not in inside]
    marks = _marks(document, places)
    kept = [place for place in places if marks.get(place.start) != "none"]
    drafts = [
        _by_marker(index, place, marks[place.start]) if place.start in marks else _judge(index, place) for place in kept
    ]
    for k, why in contradictions(index, kept, [d.fact if d.outcome == "bound" else None for d in drafts]):
        drafts[k] = _Draft("absent", why, drafts[k].fact)
    readings = _without_doubles(index, kept, drafts)
    for place, span in by_reference:
        outcome = {"": "bound", "number.marker": "absent"}.get(span.rule, "wrong")
        text = place.number.text.strip()
        readings.append(NumberFate(outcome, place.start, text, span.message, span.name, None, span.suggestion, True))
    return sorted(readings, key=lambda r: r.start)


# ---------------------------------------------------------------- markers


def _marks(document: Document, places: Sequence[NumberPlace]) -> dict[int, str]:
    """By a number's offset the name in the marker right behind it."""
    ends = {place.start + len(place.number.text.rstrip()): place.start for place in places}
    found: dict[int, str] = {}
    for marker in document.markers:
        at = marker.at
        while at > 0 and document.source[at - 1] in " )*_]%\\":
            if at in ends:
                break
            at -= 1
        if at in ends:
            found[ends[at]] = marker.name
    return found


def _by_marker(index: FactIndex, place: NumberPlace, name: str) -> _Draft:
    """A number that a marker binds to one record, whatever the words say."""
    for i, fact in enumerate(index.facts):
        if fact.name == name:
            return _Draft("bound", fact=i) if has_value(place, fact, index.own[i]) else _wrong(index, place, i)
    near = nearest(name, [fact.name for fact in index.facts])
    hint = f"Did you mean {near}?" if near else "Write a name as in the records, with its parts joined by full stops."
    return _Draft("absent", f"the marker names {name!r}, which is in no record", suggestion=hint)


# ---------------------------------------------------------------- judging


@dataclass(slots=True)
class _Draft:
    """A reading before the page as a whole is looked at."""

    outcome: str
    message: str = ""
    fact: int | None = None
    named: int | None = None
    suggestion: str = ""


def _judge(index: FactIndex, place: NumberPlace) -> _Draft:
    holding = [i for i in index.holding(place) if not _of_another_kind(index, place, i)]
    named = beyond_doubt(index, place)
    if named is not None and named in holding:
        return _Draft("bound", fact=named, named=named)
    if not holding:
        return _not_held(index, place, named)
    best = _best(index, place, holding)
    if named is not None and not (set(best) and index.own[best[0]] == index.own[named]):
        return _wrong(index, place, named, index.facts[holding[0]])
    if not best:
        follows = _not_held(index, place, None)
        return follows if follows.outcome == "bound" else _unnamed(index, place, holding)
    if _better_elsewhere(index, place, best):
        rest = _best(index, place, [i for i in holding if i not in best])
        if not rest or _better_elsewhere(index, place, rest):
            fact, words_of = index.facts[best[0]], "row and column" if place.row is not None else "the words"
            return _Draft("absent", f"{fact.name} has this value, but {words_of} name another record", best[0])
        best = rest
    if all(_unsaid(index.facts[i], place) for i in best):
        fact = index.facts[best[0]]
        return _Draft("ambiguous", f"{fact.name} has this value, over several rows, but no word here says so", best[0])
    values = {index.facts[i].name for i in best}
    if len(values) > 1:
        names = ", ".join(sorted(values)[:3])
        return _Draft(
            "ambiguous", f"{many(len(values), 'records')} have this value and fit the words: {names}", best[0]
        )
    return _Draft("bound", fact=best[0])


def _not_held(index: FactIndex, place: NumberPlace, named: int | None) -> _Draft:
    """The outcome for a number that no record has as it stands."""
    rest, counts = of_error_rate(index, place), of_count(index, place)
    if rest or counts:
        return _of_one(index, place, rest or counts, "1 − {}" if rest else "{} as a count")
    relation = derived(index, place)
    if relation is None and named is not None:
        return _wrong(index, place, named)
    if relation is None:
        return _Draft("absent", "no record has this value", suggestion=_hint())
    if relation.turned:
        return _Draft("absent", f"{relation.formula} has this size, but the words name the two in the opposite order")
    return _Draft("bound", relation.formula)


def _of_another_kind(index: FactIndex, place: NumberPlace, i: int) -> bool:
    """Whether a record is a share of right answers where the words speak of an error rate, or a spread where they
    speak of points of a difference."""
    own = index.own[i]
    if own & SPREADS and place.number.percent == "points" and not SPREADS & (place.near | place.ambient):
        return True  # points are a difference, unless the words say that they are a spread
    return bool(own & frozenset(RIGHT_WORDS)) and "error" not in own and says_error_rate(place)


def _of_one(index: FactIndex, place: NumberPlace, among: Sequence[int], how: str) -> _Draft:
    """A number that follows from one record, by the formula `how`."""
    best = _best(index, place, among) or list(among)
    formula = how.format(index.facts[best[0]].name)
    if _better_elsewhere(index, place, best):
        return _Draft("absent", f"this is {formula}, but the words name another record", best[0])
    return _Draft("bound", formula)


def _wrong(index: FactIndex, place: NumberPlace, named: int, other: Fact | None = None) -> _Draft:
    fact = index.facts[named]
    also = f"; this is the value of {other.name}" if other is not None else ""
    message = f"{fact.name} is {fact.value:.6g} in {fact.source}{also}"
    return _Draft(
        "wrong", message, named, named, f"Write {_shown(fact, place)}, or say which record this number is from."
    )


def _shown(fact: Fact, place: NumberPlace) -> str:
    """A recorded value as the page would print it."""
    hundred = place.number.percent or place.percent or (abs(place.number.value) > 1 and place.number.decimals)
    factor = 100.0 if hundred and abs(fact.value) <= 1 and not fact.percent else 1.0
    digits = place.number.decimals if not place.number.integer else (0 if float(fact.value).is_integer() else 3)
    sign = " %" if place.number.percent == "%" else ""
    return f"{fact.value * factor:,.{min(digits, 8)}f}{sign}"


def _hint() -> str:
    return "Name the record it comes from, or mark it <!--v:none--> if it is not a claim."


def _best(index: FactIndex, place: NumberPlace, holding: Sequence[int]) -> list[int]:
    """Of the facts with this value those whose names share the most telling words with the place; none when none do."""

    def fit(i: int) -> tuple[int, int, int]:
        own = index.own[i]
        close = own & place.near
        rest = own & place.ambient
        return len(close), len(rest - close), -len(own - close - rest)

    shared = [i for i in holding if index.own[i] & (place.near | place.ambient)]
    if place.row is not None:
        shared = [i for i in holding if index.own[i] & place.near] or shared
    if not shared:
        return []
    top = max(fit(i) for i in shared)
    return [i for i in shared if fit(i) == top]


def _better_elsewhere(index: FactIndex, place: NumberPlace, best: Sequence[int]) -> bool:
    """Whether another fact's name holds all the words that this one shares with row and column, and more of them."""
    mine = index.own[best[0]] & place.near
    others = {i for word in place.near for i in index.by_word.get(word, ())}
    better = (i for i in others if index.own[i] & place.near > mine)
    if place.row is not None:
        return any(True for _ in better)
    if place.at >= 0 and (COMPARED.search(place.text[max(0, place.at - 40) : place.at]) or starts_from(place)):
        return False  # `tuned reaches 0.47 against 0.48`: the arm that the sentence names is the other one
    parts, said = index.facts[best[0]].parts, hard(place.text)
    return any(_other_arm(parts, index.facts[i].parts, said) for i in better)


def _other_arm(mine: Sequence[str], other: Sequence[str], said: frozenset[str]) -> bool:
    """Whether two names differ in one part, the same measure of two arms, of which a sentence names the other alone."""
    differ = [k for k, (x, y) in enumerate(zip(mine, other)) if x != y]
    if len(mine) != len(other) or len(differ) != 1:
        return False
    x, y = hard(mine[differ[0]]), hard(other[differ[0]])
    last = differ[0] == len(mine) - 1
    return bool(x - y) and not (x - y) & said and (y - x) <= said and (not last or bool(x & y))


OVER_ROWS = {
    "mean": re.compile(r"mean|average|avg|mittel|schnitt|moyenn|media\b|promedio|over \w+ seeds|平均", re.IGNORECASE),
    "least": re.compile(r"min|least|low|worst|best|small|kleinst|schlecht|pire|peor|最[小低差]", re.IGNORECASE),
    "greatest": re.compile(r"max|greatest|high|best|worst|larg|größt|höchst|meilleur|mejor|最[大高好]", re.IGNORECASE),
    "range": re.compile(rf"range|spread|span|apart|spanne|étendue|rango|{DELTA.pattern}", re.IGNORECASE),
}
"""Words that say that a number is one over several rows."""


def _unsaid(fact: Fact, place: NumberPlace) -> bool:
    """Whether a number over several rows stands there without a word that says so."""
    pattern = OVER_ROWS.get(fact.kind)
    return pattern is not None and pattern.search(place.text) is None


def _unnamed(index: FactIndex, place: NumberPlace, holding: Sequence[int]) -> _Draft:
    """A value that is recorded under names that no word near it speaks of."""
    digits = len(re.sub(r"\D", "", place.number.text).lstrip("0"))
    fact = index.facts[holding[0]]
    if digits >= 3 and place.row is None:
        return _Draft("ambiguous", f"{fact.name} has this value, but no word here names it", holding[0])
    why = "no record has this value under these words"
    return _Draft("absent", f"{why}; {fact.name} has it by chance or under another name", None)


# ---------------------------------------------------------------- the page as a whole


def _without_doubles(index: FactIndex, places: Sequence[NumberPlace], drafts: Sequence[_Draft]) -> list[NumberFate]:
    """Readings; a cell is not called wrong where another cell of the page has the same row and column labels."""
    naming: dict[int, set[float]] = defaultdict(set)
    for place, draft in zip(places, drafts):
        if draft.named is not None and place.row is not None:
            naming[draft.named].add(place.number.value)
    readings = []
    for place, draft in zip(places, drafts):
        outcome, message = draft.outcome, draft.message
        if outcome == "wrong" and draft.named is not None and place.row is not None and len(naming[draft.named]) > 1:
            outcome = "absent"
            message += "; another cell of this page has the same labels"
        fact = index.facts[draft.fact] if draft.fact is not None else None
        readings.append(
            NumberFate(
                outcome,
                place.start,
                place.number.text.strip(),
                message,
                fact.name if fact else None,
                fact.value if fact else None,
                draft.suggestion if outcome != "bound" else "",
            )
        )
    return readings

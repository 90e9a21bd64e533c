"""From a printed number to the recorded quantity it may stand for, and to what is wrong when none has its value.

Bound by marker first, then by the words: syntax (`p <`, brackets, `of`, a noun that is counted), the words of the
clause that name a kind, and the mentions that say whose number it is. A number is right when one quantity of an
admissible kind and scope has its value at the printed precision. Otherwise the finding says the most that is known:
stale, a percentage for a fraction, recorded elsewhere, another value, or nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from veritune.errors import nearest
from veritune.writeup.lint.kinds import COUNTS, MEASURES, kinds_at
from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.recorded import after, derived_quantities, factors, holds, mirrored, shown
from veritune.writeup.lint.scope import COMPARED, Passage, allowed
from veritune.writeup.lint.words import DIMENSIONS, Dimension, kinds_of
from veritune.writeup.quantities import CheckedRecords, Quantity, Scope

MOST = 60
"""Numbers of one sentence or cell that are bound; nobody reads more, and the work stays bounded."""
SEVERAL_RUNS = re.compile(
    r"\bseeds\b|\bper[\s-]seed|each seed|seed to seed|individual|\bruns\b|\brange|spread", re.IGNORECASE
)
"""Words with which a sentence may speak of single runs without naming a seed."""


LEVEL_OF = re.compile(
    r"\s?(?:family-wise |simultaneous |corrected |confidence |credible |bootstrap )*(?:intervals?|CIs?|confidence)?"
    r"(?: (?:of|is|was|from|runs from|interval))?:?\s?[\[(]?[+\-−–]?",
    re.IGNORECASE,
)
"""What may stand between a level and the interval that it belongs to: `95 % interval of [`."""


@dataclass(frozen=True, slots=True)
class Binding:
    """The outcome for one number: bound to `quantity`, or the rule that it breaks."""

    number: PrintedNumber
    rule: str = ""
    message: str = ""
    quantity: Quantity | None = None
    suggestion: str = ""


class Binder:
    """Checks the numbers in passages against one study's records."""

    def __init__(self, records: CheckedRecords) -> None:
        self.records = records
        self.now = [q for q in records.quantities if not q.stale]
        self.stale = [q for q in records.quantities if q.stale]
        self.now += list(derived_quantities(self.now))
        self._asked: dict[tuple[int, str], frozenset[str | int] | None] = {}
        self._pairs: dict[
            int,
            tuple[tuple[frozenset[str | int], ...], frozenset[str | int], tuple[frozenset[str | int], ...]],
        ] = {}
        self._runs: bool | None = None
        self._words: str | None = None

    # -- a passage --------------------------------------------------------------------------------------------

    def check(self, passage: Passage, exempt: Iterable[PrintedNumber] = ()) -> list[Binding]:
        """One outcome per number that is not exempt."""
        self._asked, self._runs, self._words, self._pairs = {}, None, None, {}
        done: dict[int, Binding] = {n.start: Binding(n) for n in exempt}
        skip = set(done)
        for low, high in self._intervals(passage):
            if low.start not in done:
                ends = self._interval(passage, low, high)
                for outcome in (*ends, *self._level_beside(passage, low, ends[0])):
                    done[outcome.number.start] = outcome
        for part, whole in self._of_pairs(passage):
            if part.start not in done and whole.start not in done:
                for outcome in self._of(passage, part, whole):
                    done[outcome.number.start] = outcome
        for number in passage.numbers:
            if number.start not in done and len(done) < MOST:
                done[number.start] = self._single(passage, number)
            elif number.start not in done:
                done[number.start] = Binding(
                    number, "number.unbound", f"more than {MOST} numbers in one sentence or cell"
                )
        return [o for start, o in sorted(done.items()) if start not in skip]

    def marked(self, number: PrintedNumber, name: str) -> Binding:
        """The outcome for a number that a marker binds to one quantity, whatever the words say."""
        quantity = self.records.by_name.get(name) or next((q for q in self.now if q.name == name), None)
        if quantity is None:
            old = next((q for q in self.stale if q.name == name), None)
            if old is not None:
                return Binding(number, "number.stale", f"{name} is recorded only in {old.stale}", old)
            message = f"the marker names {name!r}, which is in no record"
            return Binding(number, "number.marker", message, suggestion=self._near_name(name))
        if any(holds(number, quantity, f) for f in factors(number, quantity, percent_column=False)):
            return Binding(number, quantity=quantity)
        return self._wrong(number, [quantity], COUNTS if quantity.kind in COUNTS else MEASURES)

    def _near_name(self, name: str) -> str:
        near = nearest(name, self.records.by_name)
        return f"did you mean {near}?" if near else "names are explained in docs/lint.md"

    # -- one number -------------------------------------------------------------------------------------------

    def _single(self, passage: Passage, number: PrintedNumber) -> Binding:
        kinds = kinds_at(passage, number)
        if kinds == frozenset({"p"}) and number.value == 0:
            return Binding(number, "p.zero", "a p-value is never 0", suggestion="print a bound: p < 1e-4")
        scoped = [q for q in self.now if q.kind in kinds and self._in_scope(passage, number, q)]
        if number.relation in ("<", "≤", ">", "≥"):
            scoped = _headline_p(scoped, passage.text)
        found = self._match(passage, number, scoped)
        if found is not None and found.kind == "gap" and found.rate and relative(passage.text, number):
            points = f"{abs(100 * found.value):.3g} points"
            message = f"{found.name} is {points}; `%` of a change reads as a share of where it began"
            return Binding(number, "number.percent", message, found, suggestion="Write points, or the ratio.")
        if found is not None:
            return Binding(number, quantity=found)
        stale = [q for q in self.stale if q.kind in kinds and self._in_scope(passage, number, q)]
        old = self._match(passage, number, stale)
        if old is not None:
            now = self.records.by_name.get(old.name)
            is_now = f"; now it is {shown(now, number)}" if now else ""
            return Binding(number, "number.stale", f"{old.name} had this value in {old.stale}{is_now}", now or old)
        swapped = self._percent(number, [q for q in scoped if q.rate])
        if swapped is not None:
            return swapped
        turned = self._turned(passage, number, kinds)
        if turned is not None:
            return turned
        delta = self._rounded_parts(passage, number, kinds)
        elsewhere = self._elsewhere(passage, number, kinds, scoped) if delta is None else None
        named = self._certain(passage, number, scoped)
        if delta is not None or (elsewhere is not None and (elsewhere.rule != "number.ambiguous" or not named)):
            return delta or elsewhere or Binding(number)
        return self._wrong(number, named, kinds) if named else self._absent(passage, number, scoped)

    def _certain(self, passage: Passage, number: PrintedNumber, scoped: Sequence[Quantity]) -> list[Quantity]:
        """What the words name beyond doubt: a word of the clause or cell says what is measured, and all that it may be
        has one value. Nothing where any doubt is left."""
        low, _ = passage.clause(number.start)
        before = [k for k in passage.kinds if low <= k.start and k.end <= number.start]
        closest = kinds_of(k for k in before if k.end == before[-1].end) if before else frozenset()
        named = [q for q in scoped if q.kind in closest] or list(scoped)
        if not any("nll" in k.kinds for k in passage.kinds):
            named = [q for q in named if "nll" not in q.name.split(".")[0]] or named
        named = self._in_zone(passage, number, named)
        if not named or len({round(q.value, 9) for q in named}) > 1 or not self._says_kind(passage, number, named):
            return []
        return named

    def _in_zone(self, passage: Passage, number: PrintedNumber, among: Sequence[Quantity]) -> list[Quantity]:
        """Where the words name a zone, a quantity of that zone rather than one of all rows."""
        zoned = [q for q in among if q.scope.zone is not None]
        return zoned if zoned and self._allowed(passage, number, "zone") is not None else list(among)

    @staticmethod
    def _says_kind(passage: Passage, number: PrintedNumber, scoped: Sequence[Quantity], *, near: bool = True) -> bool:
        """Whether the clause (or the row and column of a cell) has a word for what these quantities are.

        Not only `near`: the sentence and the one before it, or the caption and heading of a table too; and where no
        other word says what is measured, the name of an eval means its score.
        """
        low, high = passage.clause(number.start) if near else (0, len(passage.text) + 1)
        words = [k for k in passage.kinds if low <= k.start < high]
        if passage.table or not near:
            levels = passage.around[: 2 if near else 4] if passage.table else passage.around[:1]
            words += [k for level in levels for k in level.kinds]
            if not near and not kinds_of(words) & MEASURES:
                evals = [*passage.of("eval"), *(m for level in levels for m in level.mentions if m.dimension == "eval")]
                return bool(evals) and all(q.kind == "score" for q in scoped)
        named = kinds_of(words)
        return all(q.kind in named for q in scoped)

    def _absent(self, passage: Passage | None, number: PrintedNumber, scoped: Sequence[Quantity]) -> Binding:
        """No record that the words name has the value, and they do not name one record: nobody is accused.

        Where the sentence has no word for what is measured and some record has the value, the words fit none.
        """
        few = list(dict.fromkeys(q.name for q in scoped if not q.name.startswith(("gap(", "ratio(", "spread("))))
        known = ", ".join(f"{n} is {shown(next(q for q in scoped if q.name == n), number)}" for n in few[:2])
        words = f"; the words fit {known}" if 0 < len(few) <= 2 else ""
        other = self._match(passage, number, self._recorded(number)) if passage is not None else None
        if passage is not None and other is not None and not kinds_of(passage.kinds) & MEASURES - {"table"}:
            return Binding(
                number, "number.ambiguous", f"{other.name} has this value; the words here do not name it", other
            )
        message = (
            "no record has this value" if other is None else f"{other.name} has this value, the words name another"
        )
        return Binding(
            number,
            "number.unbound",
            f"{message}{words}",
            suggestion="Name its condition, zone and measure, write it as a reference {{ name }}, or mark it "
            "<!--v:none--> if it is not a claim.",
        )

    def _recorded(self, number: PrintedNumber) -> list[Quantity]:
        """Records that a number of these digits may stand for by more than chance: three of them and a decimal."""
        digits = len(re.sub(r"\D", "", number.text).lstrip("0"))
        return [q for q in self.now if q.kind in MEASURES - {"rule"}] if digits > 2 and not number.integer else []

    def _match(self, passage: Passage, number: PrintedNumber, among: Iterable[Quantity]) -> Quantity | None:
        for q in among:
            for factor in factors(number, q, percent_column=passage.percent_column, after=after(passage, number)):
                if holds(number, q, factor):
                    return q
        return None

    def _turned(self, passage: Passage, number: PrintedNumber, kinds: frozenset[str]) -> Binding | None:
        """A gap of the right size with the sign of the other order."""
        if "gap" not in kinds or not number.signed:
            return None
        other = replace(number, value=-number.value)
        gaps = [q for q in self.now if q.kind == "gap" and self._in_scope(passage, other, q)]
        found = self._match(passage, other, gaps)
        if found is None:
            return None
        message = f"{found.name} has this size with the opposite sign: {found.scope.text()}"
        return Binding(number, "number.direction", message, found)

    def _elsewhere(
        self, passage: Passage, number: PrintedNumber, kinds: frozenset[str], scoped: Sequence[Quantity]
    ) -> Binding | None:
        """The value is recorded with another scope. Small counts and one-digit numbers say too little for that.

        It is wrong where a word close by says what is measured, or one a little farther off does and the arm, zone and
        seed that are named leave one value of it.
        """
        digits = len(re.sub(r"\D", "", number.text).lstrip("0"))
        if digits < 2 or kinds == frozenset({"p"}):
            return None
        among = [q for q in self.now if q.kind in kinds]
        meant_kinds = {q.kind for q in scoped}
        found = self._match(passage, number, sorted(among, key=lambda q: q.kind not in meant_kinds))
        if found is None:
            return None
        meant = self._meant(passage, number)
        here = {round(q.value, 9) for q in self._in_zone(passage, number, [q for q in scoped if q.kind == found.kind])}
        said = self._says_kind(passage, number, [found])
        said = said or (len(here) == 1 and self._says_kind(passage, number, [found], near=False))
        arms = self._allowed(passage, number, "condition")
        if not self._contradicted(passage, number, found):
            said = False
        if not said or (found.scope.against is None and found.scope.condition is not None and arms is None):
            message = f"{found.name} has this value, but the words here do not name it"
            return Binding(number, "number.ambiguous", message, found)
        return Binding(
            number, "number.scope", f"this is {found.name} ({found.scope.text()}), but the words say {meant}", found
        )

    def _contradicted(self, passage: Passage, number: PrintedNumber, q: Quantity) -> bool:
        """Whether the words exclude a contrast beyond doubt.

        Arms of the sentence or cell itself do, and the only arm that the nearest level around it names. Two arms of an
        earlier sentence leave open what this one is about.
        """
        if q.scope.against is None or passage.table:
            return True
        levels, _, around = self._pair_words(passage, number)
        own = any(levels)
        nearest = next((v for v in around if v), frozenset())
        return own or len(nearest) < 2 or nearest == {q.scope.condition, q.scope.against}

    def _meant(self, passage: Passage, number: PrintedNumber) -> str:
        parts = []
        for dimension in DIMENSIONS:
            values = self._allowed(passage, number, dimension)
            if values:
                parts.append("/".join(str(v) for v in sorted(values, key=str)))
        return ", ".join(parts) or "the mean over seeds"

    def _percent(self, number: PrintedNumber, scoped: Sequence[Quantity]) -> Binding | None:
        if number.relation in ("<", "≤", ">", "≥"):
            return None  # any value keeps a bound of another unit
        other = 1.0 if number.percent else 100.0
        for q in scoped:
            if q.value and number.value and holds(number, q, other):
                kind = "fraction" if number.percent else "percentage"
                message = f"{q.name} is {q.value:.4g}, that is {100 * q.value:.4g} %; printed as if it were a {kind}"
                return Binding(number, "number.percent", message, q)
        return None

    def _rounded_parts(self, passage: Passage, number: PrintedNumber, kinds: frozenset[str]) -> Binding | None:
        """A delta that fits the printed parts and not the recorded ones: allowed, and noted."""
        if "gap" not in kinds or number.decimals == 0:
            return None
        parts = [
            n
            for n in passage.numbers
            if n is not number and n.decimals == number.decimals and n.percent == number.percent
        ]
        for a, b in combinations(parts, 2):
            if abs(abs(a.value - b.value) - abs(number.value)) < number.half * 0.1:
                near = [q for q in self.now if q.kind == "gap" and self._in_scope(passage, number, q)]
                for q in near:
                    factor = 100.0 if number.percent else 1.0
                    if abs(abs(q.value) * factor - abs(number.value)) <= 3.01 * number.half:
                        message = f"{q.name} is {shown(q, number)}; this is the difference of the printed parts"
                        return Binding(number, "number.delta", message, q)
        return None

    def _wrong(self, number: PrintedNumber, scoped: Sequence[Quantity], kinds: frozenset[str]) -> Binding:
        if not scoped:
            return self._absent(None, number, scoped)
        factor = 100.0 if number.percent else 1.0
        scoped = [q for q in scoped if q.kind != "ci"] or scoped  # one number alone is no interval
        nearest = min(scoped, key=lambda q: abs(abs(q.value) * (factor if q.rate else 1.0) - abs(number.value)))
        rule = "number.mismatch"
        if nearest.kind == "p":
            rule = "number.p"
        elif nearest.kind in ("ci", "level"):
            rule = "number.interval"
        elif nearest.kind in COUNTS:
            rule = "number.count"
        return Binding(number, rule, f"{nearest.name} is {shown(nearest, number)}", nearest)

    # -- kinds ------------------------------------------------------------------------------------------------
    # -- scope ------------------------------------------------------------------------------------------------

    def _allowed(self, passage: Passage, number: PrintedNumber, dimension: Dimension) -> frozenset[str | int] | None:
        """`allowed`, asked once per number and dimension."""
        key = (number.start, dimension)
        if key not in self._asked:
            self._asked[key] = allowed(passage, number, dimension)
        return self._asked[key]

    def _in_scope(self, passage: Passage, number: PrintedNumber, q: Quantity) -> bool:
        if (q.kind in ("rule", "held") or q.name.startswith("n.verdicts.")) and not self._named(passage, q):
            return False
        if q.name.startswith("spread(") and not self._single_runs(passage):
            return False
        if q.kind == "ci" and (end := end_said(passage.text[: number.start])) and not q.name.endswith(end):
            return False
        scope = q.scope if q.kind not in ("level", "power", "margin", "alpha") else replace(q.scope, zone=None)
        if scope.against is not None:
            return self._pair_in_scope(passage, number, q)
        if scope.condition is not None:
            conditions = self._allowed(passage, number, "condition")
            if conditions is not None and scope.condition not in conditions:
                return False
        return self._place_in_scope(passage, number, scope)

    def _single_runs(self, passage: Passage) -> bool:
        """Whether a passage speaks of single runs without naming a seed, and not of their mean."""
        if self._runs is None:
            averaged = re.search(r"\b(?:average|mean)\b", passage.text, re.IGNORECASE)
            self._runs = averaged is None and SEVERAL_RUNS.search(passage.text) is not None
        return self._runs

    def _named(self, passage: Passage, q: Quantity) -> bool:
        """Whether the words name a quantity's own alias: one rule among several."""
        if self._words is None:
            text = " ".join((passage.text, *(a.text for a in passage.around))).lower()
            self._words = re.sub(r"[_-]", " ", text)
        return any(re.sub(r"[_-]", " ", alias.lower()) in self._words for alias in q.aliases)

    def _place_in_scope(self, passage: Passage, number: PrintedNumber, scope: Scope) -> bool:
        zones = self._allowed(passage, number, "zone")
        if scope.zone is not None:
            needed = set(scope.zone.split("|"))
            if len(needed) > 1:
                said = {m.value for m in passage.of("zone")} | {m.value for a in passage.around[:2] for m in a.mentions}
                if not needed <= said:
                    return False
            elif zones is not None and scope.zone not in zones:
                return False
        evals = self._allowed(passage, number, "eval")
        if scope.eval is not None and evals is not None and scope.eval not in evals:
            return False
        seeds = self._allowed(passage, number, "seed")
        if scope.seed is not None:
            if seeds is not None:
                return scope.seed in seeds
            return self._single_runs(passage)
        return seeds is None or q_is_unseeded(scope)

    def _pair_in_scope(self, passage: Passage, number: PrintedNumber, q: Quantity) -> bool:
        """A contrast: the conditions of the clause (else the sentence, else around) must be its two."""
        pair = {q.scope.condition, q.scope.against}
        levels, claims, around = self._pair_words(passage, number)
        if not any(m.value == q.scope.claim for m in passage.of("claim")):
            levels = (*levels, *around)
        values = next((v for v in levels if v), frozenset())
        if values and not (values <= pair or pair <= values):
            return False
        if q.scope.claim is not None and claims and q.scope.claim not in claims:
            return False
        place = replace(q.scope, zone=None) if q.kind in ("level", "margin", "alpha") else q.scope
        return self._place_in_scope(passage, number, place) and self._sign(passage, number, q)

    def _pair_words(
        self, passage: Passage, number: PrintedNumber
    ) -> tuple[tuple[frozenset[str | int], ...], frozenset[str | int], tuple[frozenset[str | int], ...]]:
        """The conditions of the clause, of the sentence and around it, and the claims named, found once per number."""
        if number.start not in self._pairs:
            low, high = passage.clause(number.start)
            said = passage.of("condition")
            near = frozenset(m.value for m in said if low <= m.start < high)
            around = tuple(frozenset(m.value for m in a.mentions if m.dimension == "condition") for a in passage.around)
            claims = frozenset(m.value for m in passage.of("claim")) or next(
                (v for a in passage.around if (v := frozenset(m.value for m in a.mentions if m.dimension == "claim"))),
                frozenset[str | int](),
            )
            self._pairs[number.start] = ((near, frozenset(m.value for m in said)), claims, around)
        return self._pairs[number.start]

    def _sign(self, passage: Passage, number: PrintedNumber, q: Quantity) -> bool:
        """A printed sign must be that of subject minus object; without both named either way round may be meant."""
        if q.kind != "gap" or not number.signed or not q.value or "|" in (q.scope.zone or ""):
            return True
        subject = _subject(passage, number)
        sign = -1.0 if subject == q.scope.against else 1.0
        if subject is None:
            return True
        return (number.value >= 0) == (sign * q.value >= 0)

    # -- pairs ------------------------------------------------------------------------------------------------

    def _intervals(self, passage: Passage) -> Iterator[tuple[PrintedNumber, PrintedNumber]]:
        """`[a, b]` anywhere; `a to b`, `(a, b)` and `a–b` where the sentence or its column speaks of an interval."""
        text = passage.text
        speaks = bool(re.search(r"interval|\bCIs?\b", text + " ".join(a.text for a in passage.around[:2])))
        for a, b in zip(passage.numbers, passage.numbers[1:]):
            between = text[a.end : b.start]
            before = text[max(0, a.start - 12) : a.start]
            bracket = before.rstrip().endswith("[") and re.fullmatch(r"\s?[,;]\s?", between) is not None
            spoken = speaks and (
                (
                    before.rstrip().endswith("(")
                    and re.fullmatch(r"\s?[,;]\s?|\s(?:to|and)\s|\s?[–—-]\s?|\s?\.\.\s?", between)
                )
                or re.fullmatch(r"\sto\s|\s?[–—]\s?", between)
                or (re.search(r"\bbetween\s$", before) and between == " and ")
            )
            if (bracket or spoken) and not (
                a.integer and b.integer and not a.percent and not b.percent and not bracket
            ):
                yield a, b

    def _interval(self, passage: Passage, low: PrintedNumber, high: PrintedNumber) -> list[Binding]:
        if high.percent and not low.percent:
            low = replace(low, percent=high.percent)
        elif not high.percent and re.match(
            r"\s?[\])]\s?(?:%|percent|points|pp)", passage.text[high.end : high.end + 14]
        ):
            low, high = replace(low, percent="%"), replace(high, percent="%")
        if (low.value, high.value) == (0, 1) and low.integer:
            return [Binding(low), Binding(high)]
        pairs = self._ci_pairs(passage, low)
        for a, b in pairs:
            if self._ends(low, high, a, b, passage) or self._ends(low, high, *mirrored(a, b), passage):
                return [Binding(low, quantity=a), Binding(high, quantity=b)]
        everywhere = [(a, b) for a, b in self._all_ci() if self._ends(low, high, a, b, passage)]
        if everywhere:
            a, b = everywhere[0]
            name, meant = a.name.removesuffix(".low"), self._meant(passage, low)
            message = f"this is the interval of {name} ({a.scope.text()}), but the words say {meant}"
            return [Binding(low, "number.scope", message, a), Binding(high, quantity=b)]
        if not pairs:
            return [Binding(low, "number.interval", "no recorded interval belongs to these words"), Binding(high)]
        if len({(round(a.value, 9), round(b.value, 9)) for a, b in pairs}) > 1:
            return [Binding(low, "number.interval", "no recorded interval has these ends"), Binding(high)]
        factor = 100.0 if low.percent or passage.percent_column else 1.0
        a, b = min(pairs, key=lambda p: abs(p[0].value * factor - low.value) + abs(p[1].value * factor - high.value))
        name = a.name.removeprefix("ci.").removesuffix(".low")
        message = f"the interval of {name} is [{shown(a, low)}, {shown(b, high)}]"
        return [Binding(low, "number.interval", message, a), Binding(high, quantity=b)]

    def _level_beside(self, passage: Passage, low: PrintedNumber, end: Binding) -> Iterator[Binding]:
        """The level that is printed before a bound interval has to be that interval's own."""
        if end.quantity is None or end.rule or end.quantity.kind != "ci":
            return
        tail = end.quantity.name.removeprefix("ci.").removesuffix(".low").removesuffix(".high")
        own = [q for q in self.now if q.kind == "level" and q.name in (f"level.{tail}", f"level.{tail}.simultaneous")]
        before = [n for n in passage.numbers if n.end <= low.start and n.percent == "%"]
        if not own or not before:
            return
        number = before[-1]
        between = passage.text[number.end : low.start]
        if not LEVEL_OF.fullmatch(between):
            return
        right = next((q for q in own if holds(number, q, 100.0)), None)
        if right is not None:
            yield Binding(number, quantity=right)
        else:
            message = f"the interval [{shown(end.quantity, low)}, …] of {tail} has level {100 * own[0].value:.4g} %"
            yield Binding(number, "number.interval", message, own[0])

    def _all_ci(self) -> list[tuple[Quantity, Quantity]]:
        lows = [q for q in self.now if q.kind == "ci" and q.name.endswith(".low")]
        return [(q, self.records.by_name[q.name.removesuffix("low") + "high"]) for q in lows]

    def _ci_pairs(self, passage: Passage, low: PrintedNumber) -> list[tuple[Quantity, Quantity]]:
        return [(a, b) for a, b in self._all_ci() if self._in_scope(passage, low, a)]

    def _ends(self, low: PrintedNumber, high: PrintedNumber, a: Quantity, b: Quantity, passage: Passage) -> bool:
        factor = 100.0 if low.percent or passage.percent_column else 1.0
        return low.holds(a.value, factor) and high.holds(b.value, factor)

    def _of_pairs(self, passage: Passage) -> Iterator[tuple[PrintedNumber, PrintedNumber]]:
        for a, b in zip(passage.numbers, passage.numbers[1:]):
            between = passage.text[a.end : b.start]
            if a.integer and b.integer and re.fullmatch(r"\s?/\s?|\s(?:out\s)?of\s(?:the\s|its\s|all\s)?", between):
                yield a, b

    def _of(self, passage: Passage, part: PrintedNumber, whole: PrintedNumber) -> list[Binding]:
        """`25 of 48`: the whole is a recorded denominator here, and the part is counted out of it."""
        counts = [
            q for q in self.now if q.denominator is not None and q.kind in COUNTS and self._in_scope(passage, part, q)
        ]
        if not re.search(r"\bscored|answered|finished", passage.text):
            counts = [q for q in counts if q.kind not in ("items", "scored")]
        here = [q for q in counts if q.denominator == whole.value]
        found = [q for q in here if q.value == part.value]
        kinds = kinds_at(passage, whole) | kinds_at(passage, part)
        named = [q for q in found if q.kind in kinds] or [q for q in found if not {"cut", "missing", "claims"} & kinds]
        if named:
            return [Binding(part, quantity=named[0]), Binding(whole, quantity=named[0])]
        if not here:
            near = [q for q in counts if q.value == part.value and q.kind in kinds]
            if len({q.denominator for q in near}) != 1:
                return [
                    Binding(part, "number.count", "no recorded count has this numerator and denominator"),
                    Binding(whole),
                ]
            q = near[0]
            return [Binding(part), Binding(whole, "number.count", f"{q.name} is {q.value:g} of {q.denominator}", q)]
        right = [q for q in here if q.kind in kinds]
        if len({q.value for q in right}) != 1:
            return [
                Binding(part, "number.count", "no recorded count has this numerator and denominator"),
                Binding(whole),
            ]
        q = min(right, key=lambda x: abs(x.value - part.value))
        return [Binding(part, "number.count", f"{q.name} is {q.value:g} of {q.denominator}", q), Binding(whole)]


# ---------------------------------------------------------------- helpers


END = re.compile(r"\b(?:(lower|bottom)|(upper|top))\s(?:end|bound|limit)s?\b[^.;\d]{0,60}$", re.IGNORECASE)


def end_said(before: str) -> str:
    """`.low` or `.high` where the words before a number speak of one end of an interval."""
    found = END.search(before)
    return "" if found is None else ".low" if found.group(1) else ".high"


BOUND = re.compile(
    r"(?:(\b(?:above|more than|greater than|higher than|exceeds?|exceeding|at least|no less than))|"
    r"(\b(?:below|under|less than|lower than|fewer than|at most|no more than|up to)))\s$",
    re.IGNORECASE,
)


def with_bound(text: str, number: PrintedNumber) -> PrintedNumber:
    """`above 0.9` as a bound that the recorded value has to keep, and not as a value that rounds to it."""
    found = BOUND.search(text, max(0, number.start - 16), number.start)
    if found is None or number.relation or number.integer or number.form or number.signed:
        return number
    words = found.group().strip().lower()
    near = "=" if words in ("at least", "no less than", "at most", "no more than", "up to") else ""
    return replace(number, relation={">": ">", ">=": "≥", "<": "<", "<=": "≤"}[(">" if found.group(1) else "<") + near])


BY = re.compile(r"\bby\s(?:about\s|over\s|nearly\s|roughly\s|some\s)?[+−-]?$", re.IGNORECASE)
CHANGED = re.compile(
    r"\s(?:better|higher|lower|worse|more|less|greater|smaller|improvement|gain|increase|drop)\b", re.I
)


def relative(text: str, number: PrintedNumber) -> bool:
    """Whether a percentage is said of a change, where only points or a ratio can be meant: `beats it by 59 %`."""
    if number.percent != "%":
        return False
    return bool(BY.search(text[: number.start]) or CHANGED.match(text, number.end))


def q_is_unseeded(scope: Scope) -> bool:
    """Whether a quantity has no runs behind it, so that a seed named in the sentence does not contradict it."""
    return scope.condition is None or scope.against is not None or scope.condition == "baseline"


def _headline_p(scoped: Sequence[Quantity], text: str) -> list[Quantity]:
    """For a bound on p: the headline estimates, unless the words name another test."""
    if re.search(r"correct|Holm|sign[\s-]?flip|checkpoint|these items|over seeds|raw", text, re.IGNORECASE):
        return list(scoped)
    words = {"recipe", "checkpoints", "items", "sign_flip"}
    return [q for q in scoped if q.kind != "p" or (q.name.startswith("p.") and not words & set(q.name.split(".")))]


def _subject(passage: Passage, number: PrintedNumber) -> str | None:
    """The condition a signed gap belongs to: the first of two that is not behind `than`, `against`, `over` ..."""
    said = passage.of("condition")
    text = passage.text
    for level in () if len({m.value for m in said}) > 1 else passage.around:
        others = [m for m in level.mentions if m.dimension == "condition"]
        if len({m.value for m in others}) > 1:
            said, text = others, level.text
            break
    if len({m.value for m in said}) != 2:
        return None
    free = [m for m in said if not COMPARED.search(text[max(0, m.start - 40) : m.start])]
    first = (free or said)[0]
    return str(first.value)

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

from veritune.decide.lint.numbers import Number
from veritune.decide.lint.scope import COMPARED, Passage, allowed
from veritune.decide.lint.words import DIMENSIONS, Dimension, kinds_of
from veritune.decide.quantities import Quantity, Records, Scope
from veritune.errors import nearest

COUNTS = frozenset(
    {
        "items",
        "scored",
        "right",
        "cut",
        "missing",
        "held",
        "rows",
        "families",
        "variants",
        "seeds",
        "runs",
        "conditions",
    }
    | {
        "claims",
        "evals",
        "rules",
        "modules",
        "steps",
        "step",
        "epochs",
        "tokens",
        "max_new_tokens",
        "batch_size",
        "rank",
    }
    | {"lora_alpha", "per_family", "needed_n", "params", "seed", "split_seed", "table"}
)
MEASURES = frozenset(
    {"score", "rule", "gap", "ci", "share", "nll", "p", "level", "margin", "detectable", "se", "df", "lr", "alpha"}
    | {"setting", "split", "design_effect", "params_share", "time", "probe", "threshold", "ratio", "per_family"}
    | {"lora_alpha", "params", "table"}
)
ALL = COUNTS | MEASURES
NAMED_FIRST = frozenset(
    {
        "rank",
        "seed",
        "step",
        "lora_alpha",
        "alpha",
        "batch_size",
        "lr",
        "margin",
        "threshold",
        "df",
        "se",
        "design_effect",
    }
    | {"nll", "epochs", "setting", "max_new_tokens", "detectable"}
)
"""Kinds whose name stands right before their number: `rank 8`, `a learning rate of 1e-3`."""


MOST = 60
"""Numbers of one sentence or cell that are bound; nobody reads more, and the work stays bounded."""
SEVERAL_RUNS = re.compile(
    r"\bseeds\b|\bper[\s-]seed|each seed|seed to seed|individual|\bruns\b|\brange|spread", re.IGNORECASE
)
"""Words with which a sentence may speak of single runs without naming a seed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one number: bound to `quantity`, or a rule that it breaks."""

    number: Number
    rule: str = ""
    message: str = ""
    quantity: Quantity | None = None
    suggestion: str = ""


class Binder:
    """Checks the numbers of passages against one study's records."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.now = [q for q in records.quantities if not q.stale]
        self.stale = [q for q in records.quantities if q.stale]
        self.now += list(_derived(self.now))
        self._asked: dict[tuple[int, str], frozenset[str | int] | None] = {}
        self._runs: bool | None = None
        self._words: str | None = None

    # -- a passage --------------------------------------------------------------------------------------------

    def check(self, passage: Passage, exempt: Iterable[Number] = ()) -> list[Outcome]:
        """One outcome per number that is not exempt."""
        self._asked, self._runs, self._words = {}, None, None
        done: dict[int, Outcome] = {n.start: Outcome(n) for n in exempt}
        skip = set(done)
        for low, high in self._intervals(passage):
            if low.start not in done:
                for outcome in self._interval(passage, low, high):
                    done[outcome.number.start] = outcome
        for part, whole in self._of_pairs(passage):
            if part.start not in done and whole.start not in done:
                for outcome in self._of(passage, part, whole):
                    done[outcome.number.start] = outcome
        for number in passage.numbers:
            if number.start not in done and len(done) < MOST:
                done[number.start] = self._single(passage, number)
            elif number.start not in done:
                done[number.start] = Outcome(
                    number, "number.unbound", f"more than {MOST} numbers in one sentence or cell"
                )
        return [o for start, o in sorted(done.items()) if start not in skip]

    def marked(self, number: Number, name: str) -> Outcome:
        """A number that a marker binds to one quantity, whatever the words say."""
        quantity = self.records.by_name.get(name) or next((q for q in self.now if q.name == name), None)
        if quantity is None:
            old = next((q for q in self.stale if q.name == name), None)
            if old is not None:
                return Outcome(number, "number.stale", f"{name} is known only from {old.stale}", old)
            message = f"the marker names {name!r}, which no record holds"
            return Outcome(number, "number.marker", message, suggestion=self._near_name(name))
        if any(_holds(number, quantity, f) for f in _factors(number, quantity, percent_column=False)):
            return Outcome(number, quantity=quantity)
        return self._wrong(number, [quantity], COUNTS if quantity.kind in COUNTS else MEASURES)

    def _near_name(self, name: str) -> str:
        near = nearest(name, self.records.by_name)
        return f"did you mean {near}?" if near else "docs/lint.md says how names are formed"

    # -- one number -------------------------------------------------------------------------------------------

    def _single(self, passage: Passage, number: Number) -> Outcome:
        kinds = self._kinds(passage, number)
        if kinds == frozenset({"p"}) and number.value == 0:
            return Outcome(number, "p.zero", "a p-value is never 0", suggestion="print a bound: p < 1e-4")
        scoped = [q for q in self.now if q.kind in kinds and self._in_scope(passage, number, q)]
        if number.relation in ("<", "≤", ">", "≥"):
            scoped = _headline_p(scoped, passage.text)
        found = self._match(passage, number, scoped)
        if found is not None:
            return Outcome(number, quantity=found)
        stale = [q for q in self.stale if q.kind in kinds and self._in_scope(passage, number, q)]
        old = self._match(passage, number, stale)
        if old is not None:
            now = self.records.by_name.get(old.name)
            is_now = f"; now it is {_shown(now, number)}" if now else ""
            return Outcome(number, "number.stale", f"{old.name} had this value in {old.stale}{is_now}", now or old)
        swapped = self._percent(number, [q for q in scoped if q.rate])
        if swapped is not None:
            return swapped
        turned = self._turned(passage, number, kinds)
        if turned is not None:
            return turned
        elsewhere = self._elsewhere(passage, number, kinds)
        if elsewhere is not None:
            return elsewhere
        delta = self._rounded_parts(passage, number, kinds)
        if delta is not None:
            return delta
        return self._wrong(number, scoped, kinds)

    def _match(self, passage: Passage, number: Number, among: Iterable[Quantity]) -> Quantity | None:
        for q in among:
            for factor in _factors(number, q, percent_column=passage.percent_column, after=_after(passage, number)):
                if _holds(number, q, factor):
                    return q
        return None

    def _turned(self, passage: Passage, number: Number, kinds: frozenset[str]) -> Outcome | None:
        """A gap of the right size with the sign of the other order."""
        if "gap" not in kinds or not number.signed:
            return None
        other = replace(number, value=-number.value)
        gaps = [q for q in self.now if q.kind == "gap" and self._in_scope(passage, other, q)]
        found = self._match(passage, other, gaps)
        if found is None:
            return None
        message = f"{found.name} has this size and the other sign: {found.scope.text()}"
        return Outcome(number, "number.direction", message, found)

    def _elsewhere(self, passage: Passage, number: Number, kinds: frozenset[str]) -> Outcome | None:
        """The value is recorded with another scope. Small counts and one-digit numbers say too little for that."""
        digits = len(re.sub(r"\D", "", number.text).lstrip("0"))
        if digits < 2 or kinds == frozenset({"p"}):
            return None
        found = self._match(passage, number, [q for q in self.now if q.kind in kinds])
        if found is None:
            return None
        meant = self._meant(passage, number)
        return Outcome(
            number, "number.scope", f"this is {found.name} ({found.scope.text()}), the words say {meant}", found
        )

    def _meant(self, passage: Passage, number: Number) -> str:
        parts = []
        for dimension in DIMENSIONS:
            values = self._allowed(passage, number, dimension)
            if values:
                parts.append("/".join(str(v) for v in sorted(values, key=str)))
        return ", ".join(parts) or "the mean over seeds"

    def _percent(self, number: Number, scoped: Sequence[Quantity]) -> Outcome | None:
        other = 1.0 if number.percent else 100.0
        for q in scoped:
            if q.value and number.value and _holds(number, q, other):
                kind = "fraction" if number.percent else "percentage"
                message = f"{q.name} is {q.value:.4g}, that is {100 * q.value:.4g} %; printed as if it were a {kind}"
                return Outcome(number, "number.percent", message, q)
        return None

    def _rounded_parts(self, passage: Passage, number: Number, kinds: frozenset[str]) -> Outcome | None:
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
                        message = f"{q.name} is {_shown(q, number)}; this is the difference of the printed parts"
                        return Outcome(number, "number.delta", message, q)
        return None

    def _wrong(self, number: Number, scoped: Sequence[Quantity], kinds: frozenset[str]) -> Outcome:
        if not scoped:
            return Outcome(number, "number.unbound", "no recorded quantity is known for this number",
                           suggestion="name its condition, zone and quantity, mark it <!--v:name-->, or "
                           "<!--v:none--> when it is no claim")  # fmt: skip
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
        close = {q.kind for q in scoped}
        if close == ALL or len(close) > 12:
            return Outcome(
                number, "number.unbound", f"no recorded quantity has this value; nearest: {nearest.name}", nearest
            )
        return Outcome(number, rule, f"{nearest.name} is {_shown(nearest, number)}", nearest)

    # -- kinds ------------------------------------------------------------------------------------------------

    def _kinds(self, passage: Passage, number: Number) -> frozenset[str]:
        """Kinds a number may be of: by syntax, by the word it touches, by its clause, by what stands around."""
        text = passage.text
        before, after = text[max(0, number.start - 40) : number.start], text[number.end : number.end + 60]
        if re.search(
            r"(?:\bp|p[\s-]values?)\s?(?:[=<>≤≥≈]|&lt;|of|is|was|below|under|above)?\s?(?:below|under|above)?\s?$",
            before,
            re.I,
        ):
            return frozenset({"p"})
        if number.percent == "%" and re.match(
            r"[\s-]*(?:\w+[\s-])?(?:\w+[\s-])?(?:interval|CI\b|confidence|CIs\b)", after
        ):
            return frozenset({"level"})
        if number.percent == "%" and re.match(r"\s?power", after):
            return frozenset({"power"})
        if re.match(r"\s?(?:times|×|x\b|-?fold)", after) and not number.percent:
            return frozenset({"ratio"})
        touched = self._touched(passage, number)
        if touched:
            return touched
        base = COUNTS | {"table", "setting", "per_family"} if number.integer else MEASURES
        if number.percent:
            base = frozenset(
                {
                    "score",
                    "rule",
                    "gap",
                    "ci",
                    "share",
                    "level",
                    "margin",
                    "detectable",
                    "se",
                    "alpha",
                    "split",
                    "params_share",
                }
            )
            base = base - {"score", "rule", "level"} if number.percent == "points" else base
        if passage.percent_column and not number.percent:
            base = MEASURES
        low, high = passage.clause(number.start)
        for words in (
            [k for k in passage.kinds if low <= k.start < high],
            passage.kinds,
            *(level.kinds for level in passage.around),
        ):
            kinds = kinds_of(words) & base
            if kinds:
                extra = {"score", "rule"} if "gap" in kinds and "score" in base else set()
                return kinds | extra | ({"gap"} if number.signed else set())
        return base

    def _touched(self, passage: Passage, number: Number) -> frozenset[str]:
        """The kind of the counted noun right after an integer, or of the name right before a number."""
        text = passage.text
        noun = re.match(r"[\s-](?:(?:of\sthe|of)\s)?(?:[\w\-`]+\s){0,3}?[\w\-]+", text[number.end : number.end + 60])
        if number.integer and noun:
            reach = number.end + noun.end()
            stop = re.search(r"[.,;:()\[\]]|\b(?:and|for|on|in|with|against|over|to|from|at|by|is|are|was|were|per)\b",
                             text[number.end : number.end + 60])  # fmt: skip
            limit = number.end + (stop.start() if stop else 60)
            near = [k for k in passage.kinds if number.end <= k.start < min(limit, reach + 30)]
            kinds = kinds_of(near) & COUNTS
            if kinds and near[0].start - number.end <= 45:
                return kinds | ({"per_family"} if "per family" in text[number.end : number.end + 40] else set())
        tail = [k for k in passage.kinds if 0 <= number.start - k.end <= 12]
        if tail and re.fullmatch(
            r"s?\s?(?:\(\w+\)\s)?(?:of|=|is|was|:|at|about|r\s=|≈|<|>|≥|≤|size|size of|rate of|rate|to)?\s?(?:±\s?)?",
            text[tail[-1].end : number.start],
        ):
            last = kinds_of(k for k in tail if k.end == tail[-1].end)
            if "gap" in last:
                last = frozenset()
            if last & NAMED_FIRST:
                return last
        if re.search(r"±\s?$", text[max(0, number.start - 3) : number.start]):
            return frozenset({"margin", "se"})
        unit = re.match(r"\s?(s|sec|seconds?|min|minutes?|h|hours?)\b", text[number.end : number.end + 10])
        return frozenset({"time"}) if unit else frozenset()

    # -- scope ------------------------------------------------------------------------------------------------

    def _allowed(self, passage: Passage, number: Number, dimension: Dimension) -> frozenset[str | int] | None:
        """`allowed`, asked once per number and dimension."""
        key = (number.start, dimension)
        if key not in self._asked:
            self._asked[key] = allowed(passage, number, dimension)
        return self._asked[key]

    def _in_scope(self, passage: Passage, number: Number, q: Quantity) -> bool:
        if q.kind in ("rule", "held") and not self._named(passage, q):
            return False
        if q.name.startswith("spread(") and not self._single_runs(passage):
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

    def _place_in_scope(self, passage: Passage, number: Number, scope: Scope) -> bool:
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

    def _pair_in_scope(self, passage: Passage, number: Number, q: Quantity) -> bool:
        """A contrast: the conditions of the clause (else the sentence, else around) must be its two."""
        pair = {q.scope.condition, q.scope.against}
        low, high = passage.clause(number.start)
        said = list(passage.of("condition"))
        near = {m.value for m in said if low <= m.start < high}
        named = any(m.value == q.scope.claim for m in passage.of("claim"))
        levels = [near, {m.value for m in said}]
        if not named:
            levels += [{m.value for m in a.mentions if m.dimension == "condition"} for a in passage.around]
        values = next((v for v in levels if v), set())
        if values and not (values <= pair or pair <= values):
            return False
        claims = {m.value for m in passage.of("claim")} or next(
            (v for a in passage.around if (v := {m.value for m in a.mentions if m.dimension == "claim"})), set()
        )
        if q.scope.claim is not None and claims and q.scope.claim not in claims:
            return False
        place = replace(q.scope, zone=None) if q.kind in ("level", "margin", "alpha") else q.scope
        return self._place_in_scope(passage, number, place) and self._sign(passage, number, q)

    def _sign(self, passage: Passage, number: Number, q: Quantity) -> bool:
        """A printed sign must be that of subject minus object; without both named either way round may be meant."""
        if q.kind != "gap" or not number.signed or not q.value or "|" in (q.scope.zone or ""):
            return True
        subject = _subject(passage, number)
        sign = -1.0 if subject == q.scope.against else 1.0
        if subject is None:
            return True
        return (number.value >= 0) == (sign * q.value >= 0)

    # -- pairs ------------------------------------------------------------------------------------------------

    def _intervals(self, passage: Passage) -> Iterator[tuple[Number, Number]]:
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

    def _interval(self, passage: Passage, low: Number, high: Number) -> list[Outcome]:
        if high.percent and not low.percent:
            low = replace(low, percent=high.percent)
        elif not high.percent and re.match(
            r"\s?[\])]\s?(?:%|percent|points|pp)", passage.text[high.end : high.end + 14]
        ):
            low, high = replace(low, percent="%"), replace(high, percent="%")
        if (low.value, high.value) == (0, 1) and low.integer:
            return [Outcome(low), Outcome(high)]
        pairs = self._ci_pairs(passage, low)
        for a, b in pairs:
            if self._ends(low, high, a, b, passage) or self._ends(low, high, *_mirrored(a, b), passage):
                return [Outcome(low, quantity=a), Outcome(high, quantity=b)]
        everywhere = [(a, b) for a, b in self._all_ci() if self._ends(low, high, a, b, passage)]
        if everywhere:
            a, b = everywhere[0]
            name, meant = a.name.removesuffix(".low"), self._meant(passage, low)
            message = f"this is the interval of {name} ({a.scope.text()}), the words say {meant}"
            return [Outcome(low, "number.scope", message, a), Outcome(high, quantity=b)]
        if not pairs:
            return [Outcome(low, "number.interval", "no recorded interval belongs to these words"), Outcome(high)]
        factor = 100.0 if low.percent or passage.percent_column else 1.0
        a, b = min(pairs, key=lambda p: abs(p[0].value * factor - low.value) + abs(p[1].value * factor - high.value))
        name = a.name.removeprefix("ci.").removesuffix(".low")
        message = f"the interval of {name} is [{_shown(a, low)}, {_shown(b, high)}]"
        return [Outcome(low, "number.interval", message, a), Outcome(high, quantity=b)]

    def _all_ci(self) -> list[tuple[Quantity, Quantity]]:
        lows = [q for q in self.now if q.kind == "ci" and q.name.endswith(".low")]
        return [(q, self.records.by_name[q.name.removesuffix("low") + "high"]) for q in lows]

    def _ci_pairs(self, passage: Passage, low: Number) -> list[tuple[Quantity, Quantity]]:
        return [(a, b) for a, b in self._all_ci() if self._in_scope(passage, low, a)]

    def _ends(self, low: Number, high: Number, a: Quantity, b: Quantity, passage: Passage) -> bool:
        factor = 100.0 if low.percent or passage.percent_column else 1.0
        return low.holds(a.value, factor) and high.holds(b.value, factor)

    def _of_pairs(self, passage: Passage) -> Iterator[tuple[Number, Number]]:
        for a, b in zip(passage.numbers, passage.numbers[1:]):
            between = passage.text[a.end : b.start]
            if a.integer and b.integer and re.fullmatch(r"\s?/\s?|\s(?:out\s)?of\s(?:the\s|its\s|all\s)?", between):
                yield a, b

    def _of(self, passage: Passage, part: Number, whole: Number) -> list[Outcome]:
        """`25 of 48`: the whole is a recorded denominator here, and the part is counted out of it."""
        counts = [
            q for q in self.now if q.denominator is not None and q.kind in COUNTS and self._in_scope(passage, part, q)
        ]
        if not re.search(r"\bscored|answered|finished", passage.text):
            counts = [q for q in counts if q.kind not in ("items", "scored")]
        here = [q for q in counts if q.denominator == whole.value]
        found = [q for q in here if q.value == part.value]
        kinds = self._kinds(passage, whole) | self._kinds(passage, part)
        named = [q for q in found if q.kind in kinds] or [q for q in found if not {"cut", "missing", "claims"} & kinds]
        if named:
            return [Outcome(part, quantity=named[0]), Outcome(whole, quantity=named[0])]
        if not here:
            near = [q for q in counts if q.value == part.value and q.kind in kinds] or counts
            if not near:
                return [Outcome(part, "number.count", "no recorded count belongs to these words"), Outcome(whole)]
            q = near[0]
            return [Outcome(part), Outcome(whole, "number.count", f"{q.name} is {q.value:g} of {q.denominator}", q)]
        right = [q for q in here if q.kind in kinds] or here
        q = min(right, key=lambda x: abs(x.value - part.value))
        return [Outcome(part, "number.count", f"{q.name} is {q.value:g} of {q.denominator}", q), Outcome(whole)]


# ---------------------------------------------------------------- helpers


def q_is_unseeded(scope: Scope) -> bool:
    """Whether a quantity has no runs at all behind it, so that a seed in the sentence does not speak against it."""
    return scope.condition is None or scope.against is not None or scope.condition == "baseline"


def _headline_p(scoped: Sequence[Quantity], text: str) -> list[Quantity]:
    """For a bound on p: the headline estimates, unless the words name another test."""
    if re.search(r"correct|Holm|sign[\s-]?flip|checkpoint|these items|over seeds|raw", text, re.IGNORECASE):
        return list(scoped)
    words = {"recipe", "checkpoints", "items", "sign_flip"}
    return [q for q in scoped if q.kind != "p" or (q.name.startswith("p.") and not words & set(q.name.split(".")))]


def _subject(passage: Passage, number: Number) -> str | None:
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


def _mirrored(a: Quantity, b: Quantity) -> tuple[Quantity, Quantity]:
    """The interval of the difference the other way round."""
    return replace(b, value=-b.value), replace(a, value=-a.value)


def _after(passage: Passage, number: Number) -> str:
    return passage.text[number.end : number.end + 12]


def _factors(number: Number, q: Quantity, *, percent_column: bool, after: str = "") -> tuple[float, ...]:
    """By what a recorded value is multiplied to be compared with the print."""
    if q.kind == "time":
        unit = after.strip().lower()
        return (1 / 60,) if unit.startswith("min") else (1 / 3600,) if unit.startswith("h") else (1.0,)
    if number.percent or percent_column:
        return (100.0,) if q.rate else () if number.percent else (1.0,)
    return (1.0,)


def _holds(number: Number, q: Quantity, factor: float) -> bool:
    if q.kind == "p" and number.relation:
        ok = {
            "<": q.value < number.value, "≤": q.value <= number.value * (1 + 1e-9),
            ">": q.value > number.value, "≥": q.value >= number.value * (1 - 1e-9),
        }.get(number.relation)  # fmt: skip
        if ok is not None:
            return ok
    if number.holds(q.value, factor):
        return True
    contrast = q.kind in ("gap", "detectable", "margin") or (q.kind == "ci" and not number.signed)
    return (contrast and not number.signed and number.holds(-q.value, factor)) or (
        q.kind == "gap" and number.signed and number.holds(-q.value, factor) and _oriented(q)
    )  # fmt: skip


def _oriented(q: Quantity) -> bool:
    return q.scope.against is not None


def _shown(q: Quantity, number: Number) -> str:
    """A recorded value as the text would print it."""
    if q.kind == "p":
        return "below 1e-4" if q.value < 1e-4 else f"{q.value:.2g}"
    factor = 100.0 if number.percent and q.rate else 1.0
    if float(q.value).is_integer() and factor == 1.0:
        return f"{q.value:,.0f}"
    suffix = {"%": " %", "points": " points"}.get(number.percent, "") if factor != 1.0 else ""
    digits = max(number.decimals, 2 if factor == 1.0 else 0)
    return f"{q.value * factor:.{min(digits, 8)}f}{suffix}" if abs(q.value) >= 1e-4 else f"{q.value:.3g}"


def _derived(now: Sequence[Quantity]) -> Iterator[Quantity]:
    """Contrasts and ratios between conditions and between zones, the spread over seeds, simultaneous levels."""
    measured = [
        q
        for q in now
        if q.kind in ("score", "nll") and q.name.split(".")[0] in ("score", "nll", "validation_nll", "final_loss")
    ]
    means = [q for q in measured if q.scope.seed is None]
    for a, b in combinations(means, 2):
        if a.kind != b.kind or a.scope.eval != b.scope.eval or a.name.split(".")[0] != b.name.split(".")[0]:
            continue
        same_zone, same_arm = a.scope.zone == b.scope.zone, a.scope.condition == b.scope.condition
        if same_zone and not same_arm:
            scope = Scope(a.scope.condition, b.scope.condition, a.scope.zone, a.scope.eval)
            yield _contrast(a, b, scope)
            yield from _ratios(a, b, scope)
        elif same_arm and not same_zone:
            zones = "|".join(sorted((str(a.scope.zone), str(b.scope.zone))))
            yield _contrast(a, b, Scope(a.scope.condition, None, zones, a.scope.eval))
    yield from _seed_spreads([q for q in measured if q.scope.seed is not None])
    yield Quantity("power", "power", 0.8, source="decide.power", aliases=("power",), rate=True)
    sizes = {q.scope.claim: q.value for q in now if q.name.startswith("n.claims.")}
    alphas = {q.scope.claim: q for q in now if q.kind == "alpha"}
    for claim, k in sizes.items():
        if claim in alphas and k:
            q = alphas[claim]
            yield replace(q, name=f"level.{claim}.simultaneous", kind="level", value=1 - q.value / k)


def _contrast(a: Quantity, b: Quantity, scope: Scope) -> Quantity:
    name = f"gap({a.name}, {b.name})"
    return Quantity(name, "gap", a.value - b.value, a.unit, a.denominator, scope, a.source, a.pointer, ("gap",), a.rate)


def _ratios(a: Quantity, b: Quantity, scope: Scope) -> Iterator[Quantity]:
    for top, bottom in ((a, b), (b, a)):
        if bottom.value > 0:
            name = f"ratio({top.name}, {bottom.name})"
            yield Quantity(name, "ratio", top.value / bottom.value, "", None, scope, a.source, a.pointer, ("times",))


def _seed_spreads(seeded: Sequence[Quantity]) -> Iterator[Quantity]:
    groups: dict[str, list[Quantity]] = {}
    for q in seeded:
        groups.setdefault(q.name.replace(f".seed{q.scope.seed}", "", 1), []).append(q)
    for name, group in groups.items():
        if len(group) > 1:
            values = [q.value for q in group]
            spread = max(values) - min(values)
            yield replace(
                group[0], name=f"spread({name})", kind="gap", value=spread, scope=replace(group[0].scope, seed=None)
            )

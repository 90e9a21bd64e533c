"""Win words against record files alone: a sentence that says who won, that two are equal or that nothing was memorised
needs a verdict on that contrast among the records. Two point estimates are none. Such a sentence is called unsupported.

Free are sentences that deny, ask or quote, that report others with a citation, and that speak of nothing recorded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from veritune.writeup.facts import UNITS, WORD, Fact, fact_words, hard, words
from veritune.writeup.held_verdicts import HeldVerdict
from veritune.writeup.lint.markdown import Block, Document, Sentence, sentences
from veritune.writeup.lint.rules import Rules
from veritune.writeup.lint.scope import COMPARED
from veritune.writeup.lint.speech import FREE_SECTIONS, QUOTED
from veritune.writeup.lint.structure import Raised, in_samples
from veritune.writeup.lint.winwords import DOWN_WORDS, EQUAL, MEMORISED, WIN, denied, denied_abroad

THRESHOLD = re.compile(r"^\s?(?:than|by|als|que|a|à)?\s?[*_$~≈]{0,2}[+-]?\d")
"""A number right behind `higher than`: what is compared with is a number, and no arm."""
CITED = re.compile(
    r"\bet al\b|\[@[\w:-]+|\\cite|\((?:[A-Z]\w+,? )+(?:19|20)\d\d\w?\)|\[\d{1,3}(?:,\s?\d{1,3})*\](?!\()"
)
BASE = re.compile(
    r"\bbase(?:line)?\b|\b(?:untouched|untrained|original|unmodified|starting) (?:model|checkpoint)|Basismodell|"
    r"modèle de base|modelo base|基线|基座|原始模型",
    re.IGNORECASE,
)
FOREIGN_OBJECT = re.compile(
    r"(?:verglichen mit|gegenüber|\bals|comparée? à|par rapport à|\bque|frente a|comparado con|"
    r"相比于?|比|优于|超过|高于|低于|不如|胜过)"
    r"\s?(?:dem|der|das|die|le|la|l['’]|el|los|las|modelo|modèle|Modell|\s){0,3}$",
    re.IGNORECASE,
)
AGAINST = re.compile(
    r"\b(?:outperform|outscor|beat|surpass|exceed|dépass|super(?:a|ó)|übertr|schl[äu]g|vence|gan(?:a|ó) a)|"
    r"\b(?:than|over|against|versus|vs|als|que|wie)\b|优于|超过|胜过|好于|超越|击败|比|[高低差]于|不如",
    re.IGNORECASE,
)
"""Words behind which stands what an arm is compared with."""
LOWER_WINS = re.compile(r"\berror|\bloss|perplex|latency|\btime\b|fehler|erreur|错误|损失|延迟", re.IGNORECASE)
STRONG = re.compile(
    r"outperform|outscor|beat|better|surpass|superior|significant|worse|besser|übertr|schl[äu]g|überlegen|schlechter|meilleur|mieux|"
    r"surpass|dépass|supér|mejor|super|peor|优于|超过|胜过|好于|超越|击败|更好|显著",
    re.IGNORECASE,
)
"""Wordings that say who won, whatever was measured."""
MEASURE = re.compile(
    r"accura|scor|error|\bloss|perplex|quality|performance|\brate\b|precision|recall|\bf1\b|bleu|rouge|\bwer\b|throughput|"
    r"latency|genauigkeit|fehler|qualität|leistung|précision|exactitude|erreur|perte|precisión|exactitud|rendimiento|准确|错误|"
    r"性能|效果|得分|精度",
    re.IGNORECASE,
)
MOST_ARMS = 200
"""Names in one place, at most, that are arms; more are the rows of a data set."""
RULE = "speech.unsupported"


class WinCheck:
    """Checks sentences against the verdicts among record files."""

    def __init__(self, facts: Sequence[Fact], verdicts: Sequence[HeldVerdict], rules: Rules) -> None:
        self.verdicts, self.rules = verdicts, rules
        recorded = frozenset[str]().union(*(fact_words(fact) for fact in facts))
        self.recorded = frozenset(w for w in recorded - UNITS if not w.isdigit())
        self._facts = facts
        self._rivals: dict[HeldVerdict, frozenset[str]] = {}
        self._groups = _groups(facts)

    def check(self, document: Document) -> Iterator[Raised]:
        """Findings on the prose of a page: paragraphs, items, quotes, callouts and headings."""
        for block in document.blocks:
            if block.kind in ("code", "table") or (block.kind == "quote" and in_samples(block, self.rules)):
                continue
            if block.section and any(w in block.section[-1].lower() for w in FREE_SECTIONS):
                continue
            yield from self._block(block)

    def _block(self, block: Block) -> Iterator[Raised]:
        parts = [Sentence(block.text, block.start)] if block.kind == "heading" else sentences(block.text, block.start)
        for sentence in parts:
            text = QUOTED.sub(lambda m: " " * len(m.group()), sentence.text)
            if not CITED.search(text):
                yield from self._sentence(text, sentence.start)

    def _sentence(self, text: str, at: int) -> Iterator[Raised]:
        equal, won, learned = EQUAL.search(text), WIN.search(text), MEMORISED.search(text)
        if learned and not denied(text, 0, learned.start()):
            if not any("carries" in v.allows for v in self.verdicts):
                message = (
                    f"{learned.group()!r} is unsupported: no verdict in the records says that the gain carries over"
                )
                yield RULE, at + learned.start(), message, "Give the share that carries to unseen items."
            return
        if equal and not denied(text, equal.start(), equal.end()):
            if self._about_records(text, equal):
                yield from self._held(text, equal, at, equality=True)
        elif won and not self._free(text, won) and self._about_records(text, won):
            yield from self._held(text, won, at, equality=False)

    @staticmethod
    def _free(text: str, won: re.Match[str]) -> bool:
        compares = re.match(r"(?:higher|lower|better|worse|exceed|höher|niedriger|高于|低于|超过)", won.group(), re.I)
        threshold = compares is not None and THRESHOLD.match(text[won.end() :]) is not None
        return threshold or denied_abroad(text, won.start()) or denied(text, won.start(), won.end())

    def _about_records(self, text: str, found: re.Match[str]) -> bool:
        """Whether a sentence speaks of what is recorded: of two of its arms; or of one word of its names, and of an
        outcome, or with a word that says who won."""
        said = hard(text)
        if any((v.arms[0] | v.arms[1]) & said for v in self.verdicts):
            return True
        if any(sum(self._named(text, said, arm) for arm in arms) > 1 for arms in self._groups):
            return True
        strong = STRONG.search(text, found.start(), found.end() + 16) is not None or MEASURE.search(text) is not None
        return strong and bool(said & self.recorded)

    @staticmethod
    def _named(text: str, said: frozenset[str], arm: frozenset[str]) -> bool:
        return bool(arm & said) or (bool(arm & {"base", "baseline"}) and BASE.search(text) is not None)

    def _held(self, text: str, found: re.Match[str], at: int, *, equality: bool) -> Iterator[Raised]:
        """A finding, unless a verdict on the arms that the sentence names allows the wording."""
        about = [v for v in self.verdicts if self._names(text, v)]
        wording = repr(found.group().strip())
        if not about:
            message = f"{wording} is unsupported: no verdict on this contrast is in the records"
            fix = "Add its verdict to --records (veritune compare A B --margin M --json), or give only both numbers."
            yield RULE, at + found.start(), message, fix
            return
        if any(self._allowed(text, v, equality=equality) for v in about):
            return
        v = about[0]
        message = f"{wording} is unsupported: the verdict on {v.name} is {v.word} ({v.source})"
        yield RULE, at + found.start(), message, "Write what the verdict allows."

    def _names(self, text: str, verdict: HeldVerdict) -> bool:
        """Whether a sentence names both arms of a verdict; or one of them, nothing it is compared with and no rival."""
        said = frozenset(words(text))
        a, b = (bool(self._places(text, own - other)) for own, other in (verdict.arms, verdict.arms[::-1]))
        if a and b:
            return True
        if not a or AGAINST.search(text) is not None:
            return False
        if verdict not in self._rivals:
            self._rivals[verdict] = _rivals(self._facts, verdict)
        return not self._rivals[verdict] & said

    @staticmethod
    def _places(text: str, arm: frozenset[str]) -> list[tuple[int, int]]:
        """Where a text names an arm, as [start, end); the untouched model goes by many names."""
        found = [m.span() for m in BASE.finditer(text)] if arm & {"base", "baseline"} else []
        return found or [m.span() for m in WORD.finditer(text) if set(words(m.group())) & arm]

    def _allowed(self, text: str, verdict: HeldVerdict, *, equality: bool) -> bool:
        if equality:
            return "equal" in verdict.allows
        if not verdict.allows & {"win", "loss"}:
            return False
        if LOWER_WINS.search(text):
            return True  # a smaller error is a win, and a smaller score is none: the words do not settle which
        won = (self._subject(text, verdict) == 0) != bool(DOWN_WORDS.search(text))
        return ("win" if won else "loss") in verdict.allows

    def _subject(self, text: str, verdict: HeldVerdict) -> int:
        """Which of a verdict's arms the sentence speaks of: the first that is not what the other is compared with."""
        places = []
        for i, (own, other) in enumerate((verdict.arms, verdict.arms[::-1])):
            for start, end in self._places(text, own - other)[:1]:
                before = text[max(0, start - 40) : start]
                compared = bool(COMPARED.search(before) or FOREIGN_OBJECT.search(before))
                places.append((compared or text[end : end + 3].lstrip().startswith("相比"), start, i))
        return min(places)[2] if places else 0


def _groups(facts: Sequence[Fact]) -> frozenset[frozenset[frozenset[str]]]:
    """Arms that are recorded beside one another: what stands in one place of names that are the same elsewhere, less
    the words that all of them share."""
    beside: dict[tuple[int, tuple[str, ...]], set[frozenset[str]]] = defaultdict(set)
    for fact in facts:
        for k, part in enumerate(fact.parts[:-1] or fact.parts):
            beside[k, _without(fact, k)].add(hard(part))
    groups = {frozenset(arms) for arms in beside.values() if 1 < len(arms) <= MOST_ARMS}
    return frozenset(frozenset(arm - frozenset.intersection(*arms) for arm in arms) for arms in groups)


def _rivals(facts: Sequence[Fact], verdict: HeldVerdict) -> frozenset[str]:
    """Words of what is recorded in an arm's place, and is neither of the two arms."""
    arms = verdict.arms[0] | verdict.arms[1]
    beside: set[tuple[int, tuple[str, ...]]] = set()
    for fact in facts:
        beside |= {(k, _without(fact, k)) for k, part in enumerate(fact.parts) if hard(part) & arms}
    there = {
        word
        for fact in facts
        for k, part in enumerate(fact.parts)
        if (k, _without(fact, k)) in beside
        for word in hard(part)
    }
    return frozenset(there) - arms


def _without(fact: Fact, k: int) -> tuple[str, ...]:
    return fact.parts[:k] + fact.parts[k + 1 :]

"""The words that say what a number speaks of: conditions, zones, evals, seeds, claims, and the kind of quantity."""

# ruff: noqa: E501 - a word list reads better as one pattern

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from veritune.writeup.lint.rules import Rules
from veritune.writeup.quantities import BASELINE, CheckedRecords

Dimension = Literal["condition", "zone", "eval", "seed", "claim"]
DIMENSIONS: tuple[Dimension, ...] = ("condition", "zone", "eval", "seed", "claim")


@dataclass(frozen=True, slots=True)
class Mention:
    """A word that names a value of one dimension, at [start, end) of the scanned text."""

    dimension: Dimension
    value: str | int
    start: int
    end: int


_ZONE_WORDS: Mapping[str, tuple[str, ...]] = {
    "seen": (
        r"seen(?=\s(?:items?|zone|rows?|families|briefs?|examples?|prompts?|ones?|data|gap|and|score|nll|loss|,))",
        r"(?:zone|on|from|to|of|for)\sseen\b", r"(?<=\bare\s)seen(?=[,.;)]|\sand)",
        r"seen\s(?=\()",
        r"(?:items|rows|families|briefs|examples|prompts)\s(?:it|the model|they)\s(?:was|were|had been)\s(?:trained on|shown)",
        r"train(?:ing|ed)[\s-](?:items|rows|on rows|families|examples|briefs|on items)",
    ),
    "sibling": (r"siblings?", r"held[\s-]out\s(?:rewrites|wordings|siblings)", r"unseen (?:wordings|rewrites)"),
    "stranger": (
        r"strangers?", r"held[\s-]out\sfamilies", r"(?:new|unseen|unfamiliar)\s(?:families|briefs|originals)",
        r"families\s(?:it|they|the model)\s(?:had\s)?never\s(?:saw|seen)",
    ),
    "validation": (r"validation",),
}  # fmt: skip
_BARE_ZONES: Mapping[str, str] = {z: rf"{z}s?" for z in ("seen", "sibling", "stranger", "validation")}
_BASELINE_WORDS = (
    r"baseline", r"(?:untouched|untrained|base|original|unmodified|starting)\s(?:model|base|checkpoint)",
    r"out[\s-]of[\s-]the[\s-]box", r"(?:before|without)\s(?:any\s)?(?:training|fine[\s-]?tuning)",
)  # fmt: skip
_COMMON = frozenset({"full", "base", "small", "large", "short", "long", "high", "low", "mean", "all", "control"})


class Lexicon:
    """Finds mentions in prose. Patterns are built once per study."""

    def __init__(self, records: CheckedRecords, rules: Rules) -> None:
        self.records = records
        table: list[tuple[Dimension, str, list[str]]] = []
        for name in records.conditions:
            words = list(_BASELINE_WORDS) if name == BASELINE else [_spelled(name)]
            table.append(("condition", name, words))
        for zone, patterns in _ZONE_WORDS.items():
            table.append(("zone", zone, list(patterns)))
        for name in records.evals:
            table.append(("eval", name, [_spelled(name)]))
        for verdict in records.verdicts:
            table.append(("claim", verdict["claim"], [_spelled(verdict["claim"], strict=True)]))
        for dimension, name, words in table:
            words += [re.escape(w).replace(r"\ ", r"[\s_-]") for w in rules.aliases.get(dimension, {}).get(name, ())]
        self._table = [(d, n, re.compile(rf"(?<![\w])(?:{'|'.join(p)})(?![\w])", re.IGNORECASE)) for d, n, p in table]
        self._bare = [
            ("zone", z, re.compile(rf"(?<![\w])(?:{p})(?![\w])", re.IGNORECASE)) for z, p in _BARE_ZONES.items()
        ]
        self._seed = re.compile(r"\bseeds?\s(\d{1,9}(?:(?:\s?,\s?|\s?(?:and|or|&|/)\s?|\s?[–-]\s?)\d{1,9}){0,9})", re.I)

    def mentions(self, text: str, *, bare: bool = False) -> list[Mention]:
        """All mentions in order; of overlapping ones the longest. `bare` also accepts a zone's name alone, as in table
        cells.
        """
        found = list(self._all(text, bare=bare))
        found.sort(key=lambda m: (m.start, -(m.end - m.start)))
        kept: list[Mention] = []
        for mention in found:
            inside = [k for k in kept[-6:] if k.start <= mention.start and mention.end <= k.end and k != mention]
            if not any(k.dimension in ("claim", mention.dimension) or k.end - k.start > 2 * (mention.end - mention.start)
                       for k in inside):  # fmt: skip
                kept.append(mention)
        return kept

    def _all(self, text: str, *, bare: bool) -> Iterator[Mention]:
        for dimension, name, pattern in self._table:
            for match in pattern.finditer(text):
                yield Mention(dimension, name, match.start(), match.end())
        if bare:
            for _, name, pattern in self._bare:
                for match in pattern.finditer(text):
                    yield Mention("zone", name, match.start(), match.end())
        else:
            yield from self._listed_zones(text)
        for match in self._seed.finditer(text):
            for digits in re.finditer(r"\d{1,9}", match.group(1)):
                at = match.start(1) + digits.start()
                begin = match.start() if digits.start() == 0 else at
                yield Mention("seed", int(digits.group()), begin, at + len(digits.group()))

    def _listed_zones(self, text: str) -> Iterator[Mention]:
        """`seen` alone counts where another zone stands beside it: `on seen, sibling and stranger items`."""
        for match in re.finditer(
            r"\bseen\b(?=,?\s(?:and\s|or\s|to\s|against\s)?(?:siblings?|strangers?)\b)", text, re.I
        ):
            yield Mention("zone", "seen", match.start(), match.end())
        for match in re.finditer(r"(?<=[a-z]\s)seen(?=\)|,|;|\.|$)", text):
            before = text[max(0, match.start() - 60) : match.start()]
            if re.search(r"\b(?:strangers?|siblings?)\b[^.;]{0,50}(?:and|on|against|than|to|of|for)\s$", before):
                yield Mention("zone", "seen", match.start(), match.end())


def _spelled(name: str, *, strict: bool = False) -> str:
    """A name with its parts joined by `_`, `-` or a blank; a common English word needs `condition` or the like."""
    parts = [re.escape(p) for p in re.split(r"[_\-]", name) if p]
    joined = (r"[_\-]" if strict else r"[\s_\-‑]").join(parts)
    if name.lower() in _COMMON:
        return rf"{joined}(?=[\s-](?:condition|arm|fine|model|run|parameter|training))"
    return rf"{joined}(?:s)?" if not strict else joined


# ---------------------------------------------------------------- kinds of quantity


KINDS: tuple[tuple[frozenset[str], re.Pattern[str]], ...] = tuple(
    (frozenset(kinds.split()), re.compile(rf"\b(?:{pattern})", re.IGNORECASE))
    for kinds, pattern in (
        ("nll", r"nll\b|loss(?:es)?\b|nats\b|negative log|log-likelihood|perplex"),
        ("gap", r"gaps?\b|difference|delta|Δ|gains?\b|gained|improve|ahead|behind|higher|lower|better|worse|"
            r"advantage|trails?\b|lead\b|leads\b|rises?\b|rose\b|lift|drop|points\b|increase|decrease|outscore|beats?\b|exceed|above\b|below\b"),
        ("score rule right", r"scor(?:e|es|ed|ing)\b|rates?\b|mean\b|averag|accura|reach|share of|percent of|rules? (?:hold|kept|that hold)|keeps?\b|kept\b|"
            r"follows?\b|result|got\b|gets\b|at\b(?!\s(?:least|most|all)\b)|manag|solved?\b|correct|right\b|pass"),
        ("share", r"carr(?:y|ies|ied)|share\b|transfer|fraction of (?:the|its)|retain"),
        ("p", r"p\s?[=<>≤≥]|p[\s-]values?\b"),
        ("ci level", r"interval|\bCI\b|confidence|\bCIs\b|from .{1,12} to|between"),
        ("margin", r"margin|±|threshold"),
        ("detectable", r"detect"),
        ("needed_n items", r"needs?\b|settle|would take|takes about|require"),
        ("params params_share", r"parameters?\b|weights\b|trainable|train(?:s|ed|able)? (?:only )?about"),
        ("lr", r"learning[\s-]rate|\blr\b"),
        ("steps step", r"steps?\b|checkpoint"),
        ("epochs", r"epochs?\b|passes\b|times over"),
        ("tokens max_new_tokens setting", r"tokens?\b|max(?:imum)?[\s_]length|long\b"),
        ("families per_family", r"famil(?:y|ies)\b|originals?\b"),
        ("items scored rows right cut missing held n needed_n", r"items?\b|answers?\b|outputs?\b|examples?\b|prompts?\b|scored\b|"
            r"scores? over|mean of|n\s?=|of them|questions?\b|letters?\b|generations?\b|replies\b|completions?\b|problems\b"),
        ("cut missing scored items", r"\bcut\b|truncated|token limit|ran out|length limit|missing\b|failed\b|without a score"),
        ("rows", r"rows?\b|examples?\b|briefs?\b|wordings?\b|rewrites?\b|variants?\b"),
        ("variants", r"wordings?\b|rewrites?\b|variants?\b"),
        ("seeds seed split_seed", r"seeds?\b"),
        ("runs conditions", r"runs?\b|cells?\b|adapters?\b|checkpoints\b|trainings\b"),
        ("conditions", r"conditions?\b|arms?\b|recipes\b"),
        ("claims", r"claims?\b|verdicts?\b|confirmatory"),
        ("evals", r"evals?\b"),
        ("rules", r"rules?\b"),
        ("modules", r"modules?\b|matrices"),
        ("rank", r"rank\b|\br\s?="),
        ("lora_alpha alpha", r"alpha\b|α"),
        ("alpha", r"error rate|significance|level\b"),
        ("batch_size", r"batch"),
        ("split", r"split|held[\s-]out|share of"),
        ("setting", r"warm[\s-]?up|decay|clip|dropout|accumulation|max_length|longest|setting|gradient"),
        ("time", r"seconds?\b|minutes?\b|hours?\b|\ds\b|wall|took\b"),
        ("se", r"standard error|\bSE\b|s\.e\."),
        ("df", r"degrees? of freedom|\bdf\b"),
        ("design_effect", r"design effect"),
        ("per_family", r"per family|each family|of each|apiece|a family"),
        ("table", r"discordant|only (?:by )?|both\b|neither|flipped"),
        ("rule", r"subject|sign[\s-]?off|rule\b"),
        ("threshold probe", r"threshold|probe"),
        ("answered", r"answered|extracted|parsed|of those with"),
        ("seed_min seed_max", r"lowest|highest|best seed|worst seed|min\b|max\b|between seeds|across seeds"),
        ("seed_range", r"range\b|spread\b|seed to seed"),
        ("ratio", r"times\b|×|-?fold\b"),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KindWord:
    """A word that names kinds of quantities, at [start, end)."""

    kinds: frozenset[str]
    start: int
    end: int


def kind_words(text: str) -> list[KindWord]:
    """All words that name a kind, in order."""
    found = [KindWord(kinds, m.start(), m.end()) for kinds, pattern in KINDS for m in pattern.finditer(text)]
    found.sort(key=lambda k: (k.start, -k.end))
    kept: list[KindWord] = []
    for word in found:  # the rate of `learning rate` is no rate of anything
        if not any(k.start < word.start and word.end <= k.end for k in kept[-4:]):
            kept.append(word)
    return kept


def kinds_of(words: Iterable[KindWord]) -> frozenset[str]:
    """The kinds that any of the words names."""
    return frozenset().union(*(w.kinds for w in words))

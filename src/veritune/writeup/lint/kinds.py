"""Kinds that a number may be of: by its syntax, by the word that it touches, by its clause, by what stands around."""

from __future__ import annotations

import re

from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.scope import Passage
from veritune.writeup.lint.words import kinds_of

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
    {"answered", "seed_min", "seed_max", "seed_range"}
    | {"score", "rule", "gap", "ci", "share", "nll", "p", "level", "margin", "detectable", "se", "df", "lr", "alpha"}
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


RATIOS = frozenset({"ratio"})
SHARES = frozenset({"score", "rule", "share", "split", "params_share", "answered"})
"""What words such as `doubles`, and such as `nine in ten`, may speak of."""


def kinds_at(passage: Passage, number: PrintedNumber) -> frozenset[str]:
    """Kinds that a number may be of: by syntax, by the word it touches, by its clause, by the surrounding text."""
    text = passage.text
    if number.form:
        return RATIOS if number.form == "ratio" else SHARES
    before, after = text[max(0, number.start - 40) : number.start], text[number.end : number.end + 60]
    if re.search(
        r"(?:\bp|p[\s-]values?)\s?(?:[=<>≤≥≈]|&lt;|of|is|was|below|under|above)?\s?(?:below|under|above)?\s?$",
        before,
        re.I,
    ):
        return frozenset({"p"})
    if number.percent == "%" and re.match(r"[\s-]*(?:\w+[\s-])?(?:\w+[\s-])?(?:interval|CI\b|confidence|CIs\b)", after):
        return frozenset({"level"})
    if number.percent == "%" and re.match(r"\s?power", after):
        return frozenset({"power"})
    if re.match(r"\s?(?:times|×|x\b|-?fold)", after) and not number.percent:
        return frozenset({"ratio"})
    touched = _touched(passage, number)
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


WHEN = re.compile(
    r"\b(?:after|at|by|within|until|from|to|than|first|last|every)\s(?:the\s|about\s|only\s)?$", re.IGNORECASE
)
"""Words before a number of steps that make it a moment of a run and no length of it."""


EACH_FAMILY = re.compile(r"\b(?:per|each|every|a) (?:family|original|brief)\b", re.IGNORECASE)
OF_STEPS = re.compile(r"\b(?:steps?|batch(?:es)?) (?:of|with) $", re.IGNORECASE)
"""`40 steps of 4 rows` gives the size of a batch."""


def _counted(kinds: frozenset[str], noun: str, before: str) -> frozenset[str]:
    """Kinds of a count without the names that look like one: `3 seeds` is no split seed of 3, `trained for 20 steps` no
    checkpoint at step 20 of 40."""
    if "seeds" in kinds:
        return kinds - {"seed", "split_seed"}
    if noun.lower() == "steps" and not WHEN.search(before):
        return kinds - {"step"}
    return kinds


def _touched(passage: Passage, number: PrintedNumber) -> frozenset[str]:
    """The kind of the counted noun right after an integer, or of the name right before a number."""
    text = passage.text
    if any(m.end == number.end for m in passage.of("seed")):
        return frozenset({"seed"})  # `seeds 0 and 1` lists names
    noun = re.match(r"[\s-](?:(?:of\sthe|of)\s)?(?:[\w\-`]+\s){0,3}?[\w\-]+", text[number.end : number.end + 60])
    if number.integer and noun:
        reach = number.end + noun.end()
        stop = re.search(r"[.,;:()\[\]]|\b(?:and|for|on|in|with|against|over|to|from|at|by|is|are|was|were|per)\b",
                         text[number.end : number.end + 60])  # fmt: skip
        limit = number.end + (stop.start() if stop else 60)
        near = [k for k in passage.kinds if number.end <= k.start < min(limit, reach + 30)]
        kinds = kinds_of(near) & COUNTS
        kinds = _counted(kinds, text[near[0].start : near[0].end] if near else "", text[: number.start])
        if kinds and near[0].start - number.end <= 45:
            around = text[max(0, number.start - 40) : number.end + 40]
            per_family = {"per_family"} if EACH_FAMILY.search(around) else set()
            return kinds | per_family | ({"batch_size"} if OF_STEPS.search(text[: number.start]) else set())
    tail = [k for k in passage.kinds if 0 <= number.start - k.end <= 12]
    if tail and re.fullmatch(
        r"s?\s?(?:\(\w+\)\s)?(?:of|=|is|was|:|at|about|r\s=|≈|<|>|≥|≤|size|size of|rate of|rate|to)?\s?(?:±\s?)?",
        text[tail[-1].end : number.start],
    ):
        last = kinds_of(k for k in tail if k.end == tail[-1].end)
        if "gap" in last:
            last = frozenset()
        if last & NAMED_FIRST:
            return last - {"seeds"} if {"seed", "split_seed"} & last else last  # `seed 2` is a name, no count of seeds
    if re.search(r"±\s?$", text[max(0, number.start - 3) : number.start]):
        return frozenset({"margin", "se"})
    unit = re.match(r"\s?(s|sec|seconds?|min|minutes?|h|hours?)\b", text[number.end : number.end + 10])
    return frozenset({"time"}) if unit else frozenset()

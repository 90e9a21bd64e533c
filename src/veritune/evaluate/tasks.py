"""The eval contract: which rows become items, how an output is scored, what is kept beside the score.

A score's `parts` hold what was extracted and each rule's result, so that anyone can say why it is what it is. An empty
output, or one without an extractable answer, has no value and a reason; it is counted, never called wrong in silence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from veritune.config.evals import Eval, Rule
from veritune.errors import StudyError
from veritune.evaluate.generate import Output
from veritune.patterns import PatternTooSlow, limited
from veritune.records import Row, Score


def items(spec: Eval, rows: Sequence[Row], zone_of: Mapping[str, str], family_of: Mapping[str, str]) -> list[Row]:
    """The rows that the eval asks, by zone, family and id; at most `per_family` of each family and zone."""
    chosen: list[Row] = []
    taken: dict[tuple[str, str], int] = defaultdict(int)
    for row in sorted(rows, key=lambda r: (r.id,)):
        zone = zone_of[row.id]
        if zone not in spec.zones:
            continue
        key = (zone, family_of[row.id])
        cap = spec.items_per_family(zone)
        if cap is None or taken[key] < cap:
            taken[key] += 1
            chosen.append(row)
    return chosen


def check_items(name: str, spec: Eval, rows: Sequence[Row]) -> None:
    """Raises StudyError when an item lacks a column that a rule or the expected answer names."""
    needed = {key for rule in spec.rules for key in rule.when or {}}
    needed |= {key for rule in spec.rules for key in rule.columns()}
    if spec.expected:
        needed.add(spec.expected)
    for row in rows:
        missing = sorted(key for key in needed if row.meta.get(key) is None)
        if missing:
            raise StudyError(
                f"evals.{name}: row {row.id} (line {row.line}) has no column {missing[0]!r} that the eval needs.",
                fix=f"Columns there: {', '.join(sorted(row.meta)) or 'none'}.",
            )


def score(name: str, spec: Eval, row: Row, output: Output) -> Score:
    """Score one output. `value` is in [0, 1]; None with a reason when there is nothing to score.

    A pattern that takes too long on an output gives no value, reason `pattern_too_slow`, and is counted as such.
    """
    ended = {"ended": output.ended, "n_tokens": len(output.token_ids)}
    if not output.text.strip():
        return Score("", name, row.id, None, reason="empty_output", output=output.text, parts=ended)
    score_of = _match if spec.kind == "match" else _rules
    try:
        value, reason, parts = score_of(spec, row, output.text)
    except PatternTooSlow as exc:
        value, reason, parts = None, "pattern_too_slow", {"why": str(exc)}
    return Score("", name, row.id, value, reason=reason, output=output.text, parts={**ended, **parts})


Scored = tuple[float | None, str | None, dict[str, Any]]


def _rules(spec: Eval, row: Row, text: str) -> Scored:
    results = {rule.name: holds(rule, row.meta, text) for rule in spec.rules}
    held = sum(ok for ok, _ in results.values())
    value = held / len(results) if spec.score == "mean" else float(held == len(results))
    return (
        value,
        None,
        {"rules": {k: ok for k, (ok, _) in results.items()}, "found": {k: f for k, (_, f) in results.items()}},
    )


def holds(rule: Rule, meta: Mapping[str, Any], text: str) -> tuple[bool, Any]:
    """Whether the rule holds for this text, and what was found. Raises PatternTooSlow."""
    flags = re.IGNORECASE if rule.ignore_case else 0
    if rule.pattern is not None:
        try:
            with limited():
                found = [m.group(0) for m in re.finditer(rule.pattern, text, flags)]
        except PatternTooSlow as exc:
            raise PatternTooSlow(f"rule {rule.name}: its pattern took {exc}") from None
        if rule.count is not None:
            return len(found) == rule.count, len(found)
        wanted = all(str(meta.get(k)) == v for k, v in (rule.when or {}).items())
        return bool(found) == wanted, found[:3]
    if rule.contains is not None:
        wanted_text = rule.contains.format_map({k: str(v) for k, v in meta.items()})
        ok = wanted_text.casefold() in text.casefold() if rule.ignore_case else wanted_text in text
        return ok, wanted_text if ok else None
    banned = [phrase for phrase in rule.absent or () if phrase.casefold() in text.casefold()]
    return not banned, banned


def _match(spec: Eval, row: Row, text: str) -> Scored:
    with limited():
        found = re.findall(spec.extract or "", text)
    expected = normalise(str(row.meta[spec.expected or ""]))
    if not found:
        return None, "extraction_failed", {"extracted": None, "expected": expected}
    last = found[-1] if isinstance(found[-1], str) else found[-1][0]
    if not last.strip():
        return None, "extraction_failed", {"extracted": None, "expected": expected}
    answer = normalise(last)
    return float(answer == expected), None, {"extracted": answer, "expected": expected}


def normalise(answer: str) -> str:
    """An answer as it is compared: trimmed, case-folded, thousands separators and a trailing full stop removed.

    A number is written in its shortest form: `1,300.0` equals `1300`.
    """
    text = " ".join(answer.split()).casefold().rstrip(".")
    bare = text.replace(",", "").lstrip("$£€").rstrip("%")
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", bare):
        return bare.rstrip("0").rstrip(".") if "." in bare else bare
    return text

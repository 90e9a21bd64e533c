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
from veritune.counting import many
from veritune.data.answers import MAX_ANSWER, extract, final_answer, same_answer
from veritune.data.choices import options_of
from veritune.errors import StudyError
from veritune.evaluate.calls import calls_hold
from veritune.evaluate.generate import Output
from veritune.patterns import PatternTooSlow, limited
from veritune.records import JsonLike, Row, Score


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
    """Raises StudyError if an item lacks a column that a rule or the expected answer names."""
    needed = {key for rule in spec.rules for key in rule.when or {}}
    needed |= {key for rule in spec.rules for key in rule.columns()}
    if spec.expected and spec.kind != "choice":
        needed.add(spec.expected)
    calling = next((rule.name for rule in spec.rules if rule.calls is not None), None)
    if calling is not None and rows and not any(row.messages[-1].tool_calls for row in rows if row.messages):
        raise StudyError(
            f"evals.{name}: rule {calling!r} compares tool calls, but no item's answer contains one.",
            fix="Give rows whose last turn has tool_calls, or use another rule.",
        )
    for row in rows:
        missing = sorted(key for key in needed if row.meta.get(key) is None)
        if missing:
            raise StudyError(
                f"evals.{name}: row {row.id} (line {row.line}) has no column {missing[0]!r}, which the eval uses.",
                fix=f"Columns there: {', '.join(sorted(row.meta)) or 'none'}.",
            )
        if spec.kind == "answer":
            _check_expected(name, spec, row)
        if spec.kind == "choice":
            options_of(name, spec, row)


def _check_expected(name: str, spec: Eval, row: Row) -> None:
    """Raises StudyError for an item whose expected answer is not one: every output would be wrong on it."""
    text = expected_answer(spec, row)
    if text and len(text) <= MAX_ANSWER:
        return
    where = f"column {spec.expected!r}" if spec.expected else "its answer turn"
    found = f"{many(len(text), 'characters')} without \\boxed{{}} or ####" if text else "none"
    raise StudyError(
        f"evals.{name}: item {row.id} (line {row.line}): expected a final answer in {where}, found {found}.",
        fix="Name the column with the answer in `expected`, or map it with `columns: {assistant: ...}`.",
    )


def expected_answer(spec: Eval, row: Row) -> str:
    """The answer that an item of `kind: answer` expects: the marked one, else the whole text; empty if there is
    none."""
    value = row.meta.get(spec.expected) if spec.expected else row.target
    if value is None or isinstance(value, dict | list):
        return ""
    text = str(value)
    return (final_answer(text) or text).strip()


def score(name: str, spec: Eval, row: Row, output: Output) -> Score:
    """The score of one output. `value` is in [0, 1]; None with a reason if there is nothing to score.

    A pattern that takes too long on an output gives no value, reason `pattern_too_slow`, and is counted as such.
    """
    if spec.kind in ("choice", "function", "judge"):
        raise StudyError(
            f"evals.{name}: `kind: {spec.kind}` is not scored by patterns.",
            fix="Name an eval of kind rules, match or answer.",
        )
    ended = {"ended": output.ended, "n_tokens": len(output.token_ids)}
    if not output.text.strip():
        return Score("", name, row.id, None, reason="empty_output", output=output.text, parts=ended)
    if spec.kind == "answer":
        value, reason, parts = _answer(spec, row, output)
        return Score("", name, row.id, value, reason=reason, output=output.text, parts={**ended, **parts})
    score_of = _match if spec.kind == "match" else _rules
    try:
        value, reason, parts = score_of(spec, row, output.text)
    except PatternTooSlow as exc:
        value, reason, parts = None, "pattern_too_slow", {"why": str(exc)}
    return Score("", name, row.id, value, reason=reason, output=output.text, parts={**ended, **parts})


Scored = tuple[float | None, str | None, dict[str, Any]]


def _rules(spec: Eval, row: Row, text: str) -> Scored:
    results = {
        rule.name: calls_hold(rule.calls, row, text) if rule.calls is not None else holds(rule, row.meta, text)
        for rule in spec.rules
    }
    held = sum(ok for ok, _ in results.values())
    value = held / len(results) if spec.score == "mean" else float(held == len(results))
    return (
        value,
        None,
        {"rules": {k: ok for k, (ok, _) in results.items()}, "found": {k: f for k, (_, f) in results.items()}},
    )


def holds(rule: Rule, meta: Mapping[str, JsonLike], text: str) -> tuple[bool, JsonLike]:
    """Whether the rule holds for this text, and the matched evidence. Raises PatternTooSlow."""
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


def _answer(spec: Eval, row: Row, output: Output) -> Scored:
    """1 for the expected final answer, 0 for another. `by` says by which sign the answer was found."""
    expected = expected_answer(spec, row)
    found = extract(output.text, expected, whole=output.ended != "length")
    if found is None:
        return None, "extraction_failed", {"extracted": None, "expected": expected}
    parts = {"extracted": found.text, "expected": expected, "by": found.by}
    return float(same_answer(found.text, expected)), None, parts


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
    """An answer in the form used for comparison: trimmed, case-folded, without thousands separators and a trailing full
    stop.

    A number is written in its shortest form: `1,300.0` equals `1300`.
    """
    text = " ".join(answer.split()).casefold().rstrip(".")
    bare = text.replace(",", "").lstrip("$£€").rstrip("%")
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", bare):
        return bare.rstrip("0").rstrip(".") if "." in bare else bare
    return text

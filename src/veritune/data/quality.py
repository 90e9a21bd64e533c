"""Row checks: each finding gives a reason, and reasons are counted by source.

Patterns stand in `patterns.yaml`, which a user extends with a file of the same form. Any function that takes a Row and
returns what is wrong (a text, several, or nothing) is a check as well. Checks flag; they never drop a row.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from veritune.counting import many
from veritune.data.answers import boxed, final_answer, last_number, number_of, same_answer
from veritune.data.sources.raw import Reject
from veritune.data.split import names_a_problem, problem_of, stratum_of
from veritune.data.text import canonical
from veritune.data.turns import check_turns
from veritune.data.wholeness import cites_missing_text, cut_sign, cut_words
from veritune.errors import DataError
from veritune.patterns import compiled, limited
from veritune.records import Finding, JsonLike, Row
from veritune.untrusted import MAX_YAML_BYTES, parse_yaml, read_bytes

Check = Callable[[Row], "str | Finding | Iterable[str | Finding] | None"]
Severity = Literal["error", "warning", "note"]

PATTERNS = Path(__file__).with_name("patterns.yaml")
MIN_FOR_OUTLIERS = 20  # rows of one source, below which "unusually long" means nothing
OUTLIER_Z = 6.0  # robust standard deviations of log length
MIN_LETTERS = 40  # letters a text needs before its script is judged
MINOR_SCRIPT = 0.15  # share of the letters from which a second script counts as mixed
# What labelled public rows say of checks that reach .9 in recall or precision on neither half, or could not be measured
# on real positives (bench/audit/labelled.py; docs/audit.md has the table).
WEAK_CHECKS = {
    "truncated": "truncated misses about one cut answer in four (24 of 31 labelled ones were found, none wrongly)",
    "refusal": "refusal found 15 of 15 labelled ones and flagged one other: too few to be sure of either",
    "mixed_languages": "mixed_languages was tried on planted rows alone: read what it flags, and do not rely on it",
    "length_outlier": "length_outlier says that an answer is unlike its source's others, not that it is wrong",
    "impossible_count": "impossible_count was measured for false alarms alone (0 of 56 labelled rows), not for recall",
    "generation_debris": "generation_debris was tried on planted rows alone: read what it flags, and do not rely on it",
    "repair_phrase": "repair_phrase was tried on planted rows alone: read what it flags, and do not rely on it",
}
UNKNOWN_LICENCES = frozenset({"", "unknown", "none", "null", "n/a", "other", "unlicensed", "proprietary"})


@dataclass(frozen=True, slots=True)
class QualityConfig:
    """Which quality checks to run. `patterns` are user files, `checks` functions, `off` the reasons to switch off.

    `allowed_licences` (lower case), when given, flags every other licence.
    """

    patterns: tuple[str | Path, ...] = ()
    checks: tuple[Check, ...] = ()
    off: tuple[str, ...] = ()
    expected_field: str = "expected_answer"
    licence_fields: tuple[str, ...] = ("license", "licence")
    allowed_licences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QualityResult:
    """Findings in the order of the rows, and `counts[reason]`: rows flagged out of `n_rows`, in total and by source."""

    findings: tuple[Finding, ...]
    counts: Mapping[str, Any]
    n_rows: int
    rows_by_source: Mapping[str, int] = field(default_factory=dict)

    @property
    def flagged(self) -> frozenset[str]:
        """Ids of rows with a finding above a note."""
        return frozenset(f.row_id for f in self.findings if f.row_id is not None and f.severity != "note")


@dataclass(frozen=True, slots=True)
class QualityPattern:
    """One reason of the pattern file, compiled. `users` marks patterns from users, which get a time limit."""

    reason: str
    says: str
    where: tuple[str, ...]
    severity: Severity
    regex: re.Pattern[str]
    users: bool = False

    def _search(self, text: str) -> re.Match[str] | None:
        if not self.users:
            return self.regex.search(text)
        with limited():
            return self.regex.search(text)

    def __call__(self, row: Row) -> Iterator[Finding]:
        for turn, message in enumerate(row.messages):
            hit = self._search(message.content.lower()) if message.role in self.where else None
            if hit is not None:
                found = hit[0].strip()[:120]
                evidence: dict[str, JsonLike] = {"found": found, "turn": turn + 1, "role": message.role}
                message_ = f"{self.says}: {found!r}"
                yield _finding(row, self.reason, message_, self.severity, evidence)
                return


# ---------------------------------------------------------------- the pass


def check_rows(rows: Sequence[Row], config: QualityConfig | None = None) -> QualityResult:
    """Run every check on every row. Raises DataError for a pattern file or a check function that cannot be used."""
    config = config or QualityConfig()
    patterns, nouns = load_patterns(*config.patterns)
    ready = {p.reason: p for p in patterns}
    checks: dict[str, Check] = {**_CHECKS, **ready}
    checks["expected_answer"] = lambda row: _expected(row, config.expected_field)
    checks["impossible_count"] = lambda row: _impossible(row, nouns)
    unknown = sorted(
        set(config.off) - {"truncated"} - set(checks) - set(_SET_CHECKS) - {c.__name__ for c in config.checks}
    )
    if unknown:
        known = ", ".join(sorted({*checks, *_SET_CHECKS}))
        raise DataError(f"unknown check {unknown[0]!r}.", fix=f"Known: {known}.")
    active = [(name, check) for name, check in checks.items() if name not in config.off]
    active += [(c.__name__, c) for c in config.checks if c.__name__ not in config.off]
    found: list[list[Finding]] = [[f for name, check in active for f in _run(name, check, row)] for row in rows]
    place = {row.id: i for i, row in enumerate(rows)}
    general: list[Finding] = []
    for name, set_check in _SET_CHECKS.items():
        for finding in set_check(rows, config) if name not in config.off else ():
            (found[place[finding.row_id]] if finding.row_id is not None else general).append(finding)
    off = {f"quality.{reason}" for reason in config.off}
    findings = tuple(_once(f for f in (*general, *(f for of_row in found for f in of_row)) if f.check not in off))
    totals = Counter(stratum_of(row, "source") for row in rows)
    return QualityResult(findings, _counted(findings, rows), len(rows), dict(totals))


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Each row once for each reason, by the first check that gave it; a user's own checks keep all of theirs."""
    seen: set[tuple[str, str | None]] = set()
    for finding in findings:
        key = (finding.check, finding.row_id)
        if finding.check != "quality.truncated" or key not in seen:
            yield finding
        seen.add(key)


_RANK = {"error": 0, "warning": 1, "note": 2}


def _counted(findings: Iterable[Finding], rows: Sequence[Row]) -> dict[str, JsonLike]:
    source = {row.id: stratum_of(row, "source") for row in rows}
    flagged: dict[str, set[str]] = defaultdict(set)
    severity: dict[str, str] = {}
    for finding in findings:
        reason = finding.check.removeprefix("quality.")
        if _RANK[finding.severity] < _RANK.get(severity.get(reason, ""), len(_RANK)):
            severity[reason] = finding.severity
        if finding.row_id is not None:
            flagged[reason].add(finding.row_id)
    return {
        reason: {
            "rows": len(flagged[reason]),
            "n_rows": len(rows),
            "severity": severity[reason],
            "by_source": dict(sorted(Counter(source[i] for i in flagged[reason]).items())),
        }
        for reason in sorted(severity, key=lambda r: (-len(flagged[r]), r))
    }


def _run(name: str, check: Check, row: Row) -> Iterator[Finding]:
    """The findings of one check on one row; a user's function that raises is named, not passed over."""
    try:
        answer = check(row)
        items = [] if answer is None else [answer] if isinstance(answer, str | Finding) else list(answer)
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"check {name!r} failed on row {row.id!r}: {type(error).__name__}: {error}.",
            fix="Correct the check function.",
        ) from error
    for item in items:
        if isinstance(item, Finding):
            yield item
        elif isinstance(item, str):
            yield _finding(row, name, item)
        else:
            raise DataError(f"check {name!r} gave a {type(item).__name__}; expected a text, a Finding or None.")


def _finding(
    row: Row, reason: str, message: str, severity: Severity = "warning", evidence: Mapping[str, JsonLike] | None = None
) -> Finding:
    return Finding(
        f"quality.{reason}", severity, message, row.id, row.source or None, row.line or None, None, evidence or {}
    )


def reasons() -> list[str]:
    """Every reason that the built-in checks give, in alphabetical order."""
    patterns, _ = load_patterns()
    of_checks = {*_CHECKS, *_SET_CHECKS, *(p.reason for p in patterns)} - {"cut_off", "cut_word"}
    return sorted(
        of_checks | {"expected_answer", "no_final_answer", "impossible_count", "several_answers", "truncated"}
    )


# ---------------------------------------------------------------- the pattern file


def load_patterns(*extra: str | Path) -> tuple[tuple[QualityPattern, ...], frozenset[str]]:
    """The compiled patterns and the countable nouns of the built-in file and of each file in `extra`, in that order."""
    return _load_patterns(tuple(str(path) for path in (PATTERNS, *extra)))


@lru_cache(maxsize=8)
def _load_patterns(paths: tuple[str, ...]) -> tuple[tuple[QualityPattern, ...], frozenset[str]]:
    import yaml

    merged: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            content = _read_patterns(Path(path))
        except (OSError, ValueError, yaml.YAMLError) as error:
            words = " ".join(str(error).split())
            raise DataError(f"pattern file {path} cannot be read: {words}.", fix="It is YAML in UTF-8.") from error
        for reason, entry in _entries(content, path):
            old = merged.get(reason, {})
            before = [] if entry.get("replace") else old.get("patterns", [])
            merged[reason] = {**old, **entry, "patterns": [*before, *entry.get("patterns", [])], "file": path}
    nouns = " ".join(str(merged.pop("countable", {}).get("nouns", "")).split()).split()
    done = tuple(_compiled(reason, entry) for reason, entry in merged.items() if not entry.get("skip"))
    return done, frozenset(nouns)


def _read_patterns(path: Path) -> Any:
    """A pattern file's value. The built-in one is read by PyYAML's loader in C, which a stranger's could crash."""
    import yaml

    if path == PATTERNS and hasattr(yaml, "CSafeLoader"):
        return yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
    return parse_yaml(read_bytes(path, MAX_YAML_BYTES))


def _entries(content: JsonLike, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if content is None:
        return
    if not isinstance(content, dict):
        raise DataError(f"pattern file {path} holds a {type(content).__name__}; expected reasons with their patterns.")
    known = {"says", "where", "severity", "patterns", "replace", "skip", "nouns"}
    for reason, entry in content.items():
        if not isinstance(entry, dict) or set(entry) - known:
            odd = sorted(set(entry) - known) if isinstance(entry, dict) else entry
            raise DataError(
                f"{path}: {reason} holds {odd!r}; expected {', '.join(sorted(known))}.",
                fix="Compare it with the head of the built-in patterns.yaml.",
            )
        patterns = entry.get("patterns", [])
        if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
            raise DataError(f"{path}: {reason}.patterns holds {patterns!r}; expected a list of texts.")
        where = entry.get("where", [])
        if not isinstance(where, list) or not all(isinstance(w, str) for w in where):
            raise DataError(f"{path}: {reason}.where holds {where!r}; expected a list of system, user, assistant.")
        yield str(reason), entry


def _compiled(reason: str, entry: Mapping[str, Any]) -> QualityPattern:
    for pattern in entry["patterns"]:
        try:
            compiled(pattern)
        except ValueError as error:
            raise DataError(
                f"{entry['file']}: {reason}: {pattern!r} is no regular expression: {error}.", fix="Correct or quote it."
            ) from error
    severity = entry.get("severity", "warning")
    where = tuple(entry.get("where", ("assistant",)))
    if severity not in ("error", "warning", "note") or not set(where) <= {"system", "user", "assistant"}:
        raise DataError(
            f"{entry['file']}: {reason} has severity {severity!r} and where {list(where)}.",
            fix="severity: error, warning or note; where: system, user, assistant.",
        )
    inline = "|".join(f"(?:{_scoped(p)})" for p in entry["patterns"]) or r"(?!)"
    try:
        joined = compiled(inline)
    except ValueError as error:  # a group's name twice, say
        raise DataError(
            f"{entry['file']}: {reason}: its patterns cannot be joined: {error}.", fix="Use (?:...), without names."
        ) from error
    users = entry["file"] != str(PATTERNS)
    return QualityPattern(reason, str(entry.get("says", reason)), where, cast(Severity, severity), joined, users)


def _scoped(pattern: str) -> str:
    """A leading `(?m)` as a scoped flag, so that patterns can be joined."""
    flags = re.match(r"\(\?([aimsx]+)\)", pattern)
    return f"(?{flags[1]}:{pattern[flags.end() :]})" if flags else pattern


# ---------------------------------------------------------------- answers


def _expected(row: Row, field: str) -> Iterator[Finding]:
    wanted = row.meta.get(field)
    if wanted is None or wanted == "" or isinstance(wanted, dict | list):
        return
    text = str(wanted)
    wanted = final_answer(text) or text.strip()
    found = final_answer(row.target or "")
    evidence = {"expected": wanted, "found": found, "field": field}
    if found is None:
        if not _stands_at_end(wanted, row.target or ""):
            message = f"{field} is {wanted!r}, the answer has neither \\boxed{{}} nor #### and does not end on it"
            yield _finding(row, "no_final_answer", message, "note", evidence)
    elif not same_answer(found, wanted):
        yield _finding(
            row, "expected_answer", f"the answer ends on {found!r}, {field} is {wanted!r}", "warning", evidence
        )


def _stands_at_end(wanted: str, target: str) -> bool:
    lines = target.strip().splitlines()
    last = canonical(lines[-1]) if lines else ""
    number = number_of(wanted)
    if number is None:
        return canonical(wanted) in last
    figure = last_number(last)
    return figure is not None and number_of(figure) == number


# ---------------------------------------------------------------- checks of one row


def _empty_target(row: Row) -> Iterator[Finding]:
    if row.target is None or not canonical(row.target):
        yield _finding(row, "empty_target", "the answer is empty: there is nothing to learn from", "error")


def _cut_off(row: Row) -> Iterator[Finding]:
    """Signs of a cut answer that a pattern cannot see: an open fence, an open box, a length stop in the metadata."""
    target = row.target or ""
    if row.meta.get("finish_reason") == "length" or row.meta.get("truncated") is True:
        yield _finding(row, "truncated", "its metadata says that generation stopped at the length limit")
    elif "```" in target and sum(line.lstrip().startswith("```") for line in target.splitlines()) % 2:
        yield _finding(row, "truncated", "a code block is never closed", evidence={"found": "```"})
    elif target.count("\\boxed{") and boxed(target[target.rindex("\\boxed{") :]) is None:
        yield _finding(row, "truncated", "its last \\boxed{ is never closed", evidence={"found": target[-60:]})
    elif (sign := cut_sign(target)) is not None:
        yield _finding(row, "truncated", f"{sign}: {target[-40:]!r}", evidence={"found": target[-60:]})


def _missing_text(row: Row) -> Iterator[Finding]:
    cited = cites_missing_text(row)
    if cited is not None:
        text = f"it cites {cited!r}, but no earlier turn contains such a text"
        yield _finding(row, "missing_text", text, "warning", {"found": cited})


def _role_order(row: Row) -> Iterator[Finding]:
    try:
        check_turns(row.messages, "messages", need_target=True)
    except Reject as bad:
        if bad.check in ("role_order", "no_assistant", "missing_user", "tool_call_id"):
            found = " ".join(m.role for m in row.messages[:8])
            yield _finding(row, "role_order", f"roles out of order: {found}", "error", {"found": found})


_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1 without tab, line and page breaks
    "\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffd\ufffe\uffff]"  # invisible, directional, replaced
)


def _control_characters(row: Row) -> Iterator[Finding]:
    for turn, message in enumerate(row.messages):
        found = sorted(set(_CONTROL.findall(message.content)))
        if found:
            names = [f"U+{ord(c):04X}" for c in found]
            n = len(_CONTROL.findall(message.content))
            text = f"turn {turn + 1} holds {n} control or invisible characters: {', '.join(names[:5])}"
            yield _finding(row, "control_characters", text, "warning", {"found": names, "n": n, "turn": turn + 1})
            return


_SCRIPTS = (
    ("Latin", "A-Za-z\u00c0-\u024f\u1e00-\u1eff"),
    ("Greek", "\u0370-\u03ff\u1f00-\u1fff"),
    ("Cyrillic", "\u0400-\u052f"),
    ("Hebrew", "\u0590-\u05ff"),
    ("Arabic", "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff"),
    ("Devanagari", "\u0900-\u097f"),
    ("Thai", "\u0e00-\u0e7f"),
    ("Lao", "\u0e80-\u0eff"),
    ("Tibetan", "\u0f00-\u0fff"),
    ("Burmese", "\u1000-\u109f"),
    ("Khmer", "\u1780-\u17ff"),
    ("Hangul", "\u1100-\u11ff\uac00-\ud7af"),
    ("Han and kana", "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"),
)
_SCRIPT_RE = tuple((name, re.compile(f"[{chars}]")) for name, chars in _SCRIPTS)


def scripts_of(text: str) -> dict[str, int]:
    """Letters per script, most frequent first; code in fences and TeX commands are left out."""
    if text.isascii():
        return {"Latin": sum(map(str.isalpha, text))}
    plain = re.sub(r"```.*?(?:```|\Z)|\\[A-Za-z]+|https?://\S+", " ", text, flags=re.DOTALL)
    counts = {name: len(regex.findall(plain)) for name, regex in _SCRIPT_RE}
    return dict(sorted(((k, n) for k, n in counts.items() if n), key=lambda item: -item[1]))


def _mixed_languages(row: Row) -> Iterator[Finding]:
    """Two scripts in one answer, or another than the question's. Languages of one script are not distinguished."""
    target = row.target or ""
    if target.isascii() and all(m.content.isascii() for m in row.messages):
        return
    answer = scripts_of(target)
    letters = sum(answer.values())
    if letters < MIN_LETTERS:
        return
    minor = {name: n for name, n in list(answer.items())[1:] if n >= MINOR_SCRIPT * letters and name != "Greek"}
    if minor:
        what = ", ".join(f"{name} {n / letters:.0%}" for name, n in answer.items() if n >= MINOR_SCRIPT * letters)
        text = f"the answer mixes scripts: {what} of {letters} letters"
        yield _finding(row, "mixed_languages", text, "warning", {"scripts": answer, "letters": letters})
        return
    asked = scripts_of("\n".join(m.content for m in row.prompt if m.role == "user"))
    if sum(asked.values()) >= MIN_LETTERS and next(iter(asked)) != next(iter(answer)):
        text = f"asked in {next(iter(asked))}, answered in {next(iter(answer))}"
        yield _finding(row, "mixed_languages", text, "note", {"asked": asked, "answered": answer})


_FRACTION = (
    r"(?:\d{1,9}\.\d{0,6}[1-9]\d{0,6}|\d{1,4} [1-9]/[2-9]|"
    r"(?:\d{1,4}|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve) and (?:a|one) (?:half|third|quarter))"
)
# Up to two adjectives; another kind of word ("times as many", "dozen", "on", a unit) shows that something else is meant
_NO_ADJECTIVE = (
    "times|dozen|hundred|thousand|million|billion|percent|per|of|on|for|in|to|from|with|and|or|by|at|as|than|is|are|was|"
    "were|into|between|worth|dollars?|cents?|pounds?|ounces?|cups?|lit(?:er|re)s?|gallons?|grams?|kilos?|kg|lbs?|oz|tons?|"
    "hours?|minutes?|seconds?|days?|weeks?|months?|years?|miles?|feet|foot|inch(?:es)?|met(?:er|re)s?|cm|km|square|cubic|"
    "fewer than|the|a|an|each|every|his|her|their|its"
)
_BETWEEN = rf"(?:(?!(?:{_NO_ADJECTIVE})\b)[a-z-]{{2,12}} ){{0,2}}?"


@lru_cache(maxsize=8)
def _counting(nouns: frozenset[str]) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Patterns of a broken count (`7.5 small children`), of a number that is named (`the number of children is 7.5`),
    and of what a question counts."""
    names = "|".join(sorted(nouns, key=lambda n: (-len(n), n))) or r"(?!)"
    fraction = re.compile(
        rf"(?<![\d.,$/€£])({_FRACTION})\s{{1,3}}{_BETWEEN}({names})\b(?!\s*(?:per|/|an? |worth|each)|[-'’])"
    )
    named = re.compile(
        rf"\bnumber of {_BETWEEN}({names})\b[^.\n]{{0,30}}?(?:\bis|\bwas|\bequals|[=:])\s*({_FRACTION})(?![\d%])"
    )
    asked = re.compile(rf"how many (?:\w+ ){{0,2}}?({names})\b(?!\s+(?:per|an?|each|every)\b)|number of ({names})\b")
    return fraction, named, asked


def _impossible(row: Row, nouns: frozenset[str]) -> Iterator[Finding]:
    """`7.5 children`, or a negative or broken final answer to `how many children`."""
    fraction, named, asked = _counting(nouns)
    target = row.target or ""
    question = row.prompt[-1].content.lower() if row.prompt else ""
    counts = "how many" in question or "number of" in question
    answer = final_answer(target) if counts else None
    value = number_of(answer) if answer is not None else None
    if value is not None and (value < 0 or value.denominator != 1):
        hits = [a or b for a, b in asked.findall(question)]
        if hits and "average" not in question and "percent" not in question:
            text = f"the answer to 'how many {hits[-1]}' is {answer}"
            yield _finding(row, "impossible_count", text, "warning", {"found": answer, "noun": hits[-1]})
            return
    lowered = target.lower()
    if "average" in lowered or "round" in lowered or "expected" in lowered or "mean " in lowered:
        return  # a mean, or a value that the answer itself goes on to round
    hit = fraction.search(lowered)
    if hit is not None and "per " not in lowered[hit.end() : hit.end() + 12]:
        yield _finding(
            row, "impossible_count", f"{hit[0]!r} is not a possible count", "warning", {"found": hit[0], "noun": hit[2]}
        )
        return
    hit = named.search(lowered)
    if hit is not None:
        yield _finding(
            row, "impossible_count", f"{hit[0]!r} is not a possible count", "warning", {"found": hit[0], "noun": hit[1]}
        )


_CHECKS: dict[str, Check] = {
    "empty_target": _empty_target,
    "role_order": _role_order,
    "cut_off": _cut_off,
    "missing_text": _missing_text,
    "control_characters": _control_characters,
    "mixed_languages": _mixed_languages,
}


# ---------------------------------------------------------------- checks of the whole set


def _conflicts(rows: Sequence[Row], config: QualityConfig) -> Iterator[Finding]:
    """One prompt (system prompt included), different final answers; or different texts, which is only a note."""
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        prompt = problem_of(row)
        if names_a_problem(prompt):
            by_prompt[f"{canonical(row.text('system'))}\0{prompt}"].append(row)
    for same in by_prompt.values():
        if len(same) < 2:
            continue
        answers = {row.id: final_answer(row.target or "") for row in same}
        given = [answer for answer in answers.values() if answer is not None]
        differ = any(not same_answer(given[0], answer) for answer in given[1:])
        texts = {canonical(row.target or "") for row in same}
        first = [row.id for row in same[:6]]
        for row in same if differ or len(texts) > 1 else ():
            others = [other for other in first if other != row.id][:5]
            evidence: dict[str, JsonLike] = {"others": others, "n": len(same), "answer": answers[row.id]}
            if differ:
                text = f"the same prompt has {many(len(same), 'rows')} with different final answers"
                yield _finding(row, "conflict", text, "warning", evidence)
            else:
                text = f"the same prompt has {many(len(same), 'rows')} with different answer texts"
                yield _finding(row, "several_answers", text, "note", evidence)


def _duplicates(rows: Sequence[Row], config: QualityConfig) -> Iterator[Finding]:
    """Rows that say word for word, in canonical text, what an earlier row says; the first of them is not flagged."""
    first: dict[str, str] = {}
    for row in rows:
        key = "\0".join((canonical(row.text("system")), problem_of(row), canonical(row.target or "")))
        earlier = first.setdefault(key, row.id)
        if earlier != row.id:
            yield _finding(row, "duplicate", f"has the same text as row {earlier!r}", "note", {"first": earlier})


def _outliers(rows: Sequence[Row], config: QualityConfig) -> Iterator[Finding]:
    """Answers whose log length is far from their source's median, in units of the scaled median absolute deviation."""
    import numpy as np

    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.target:
            by_source[stratum_of(row, "source")].append(row)
    for source, group in by_source.items():
        if len(group) < MIN_FOR_OUTLIERS:
            continue
        log_N = np.log([len(row.target or "") for row in group])
        middle = float(np.median(log_N))
        spread = max(1.4826 * float(np.median(np.abs(log_N - middle))), 0.1)
        z_N = (log_N - middle) / spread
        for i in np.flatnonzero(np.abs(z_N) > OUTLIER_Z).tolist():
            n = len(group[i].target or "")
            kind = "long" if z_N[i] > 0 else "short"
            median = f"the median of {source or 'this source'} is {math.exp(middle):.0f}"
            text = f"unusually {kind}: {many(n, 'characters')} where {median}"
            evidence = {"characters": n, "median": math.exp(middle), "robust_z": round(float(z_N[i]), 2)}
            yield _finding(group[i], "length_outlier", text, "warning", evidence)


def _licences(rows: Sequence[Row], config: QualityConfig) -> Iterator[Finding]:
    """Rows without a known licence, where the data names licences at all; one note where it names none."""
    fields = [name for name in config.licence_fields if any(name in row.meta for row in rows)]
    if not fields:
        if rows:
            text = f"no row names a licence (looked for {', '.join(config.licence_fields)})"
            yield Finding("quality.unlicensed", "note", text, evidence={"n_rows": len(rows)})
        return
    allowed = {name.lower() for name in config.allowed_licences}
    for row in rows:
        value = next((row.meta[name] for name in fields if row.meta.get(name) is not None), None)
        name = unicodedata.normalize("NFKC", str(value if value is not None else "")).strip().lower()
        if name in UNKNOWN_LICENCES or (allowed and name not in allowed):
            text = f"licence {name!r} is not among the allowed ones" if allowed and name else "no known licence"
            yield _finding(row, "unlicensed", text, "warning", {"found": name or None})


def _cut_words(rows: Sequence[Row], config: QualityConfig) -> Iterator[Finding]:
    """Answers that stop in the middle of a sentence, as the rest of the data shows."""
    for row, sign in cut_words(rows):
        tail = (row.target or "")[-60:]
        yield _finding(row, "truncated", f"{sign}: {tail[-40:]!r}", evidence={"found": tail})


_SET_CHECKS: dict[str, Callable[[Sequence[Row], QualityConfig], Iterator[Finding]]] = {
    "cut_word": _cut_words,
    "conflict": _conflicts,
    "duplicate": _duplicates,
    "length_outlier": _outliers,
    "unlicensed": _licences,
}

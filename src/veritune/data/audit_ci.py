"""What a pipeline asks of an audit: limits that fail it, and its page for a pull request.

limits = parse_limits("contamination,leak,duplicates,flagged>1%", audit.config)
outcomes = judge_limits(limits, report)
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from veritune.ci import CheckCase, CheckReport, markdown_cell, verdict_line
from veritune.counting import grouped
from veritune.data.audit import AuditConfig, AuditReport, render_text
from veritune.data.quality import load_patterns
from veritune.data.quality import reasons as row_reasons
from veritune.errors import ExitCode, InputError

GATES = ("contamination", "leak")
"""Limits without a number: the contamination gate of `--eval`, and what the splits of `--split-field` share."""
COUNTED = ("duplicates", "flagged", "near_copies", "rejected", "variants")
_TERM = re.compile(r"(?P<name>[a-z_]+)(?:\s*>\s*(?P<number>\d+(?:\.\d+)?|\.\d+)(?P<percent>%?))?")


@dataclass(frozen=True, slots=True)
class AuditLimit:
    """A limit: more than `most` rows of `name` fail; `most` is a share of the rows if `share` is set, else a count.

    >>> AuditLimit("flagged", 0.01, share=True).text
    'flagged at most 1%'
    """

    name: str
    most: float = 0.0
    share: bool = False

    @property
    def text(self) -> str:
        """The limit as text: `flagged at most 1%`, `no duplicates`."""
        if self.name in GATES or not self.most:
            return f"no {self.name}"
        return f"{self.name} at most {f'{100 * self.most:g}%' if self.share else f'{self.most:g}'}"


@dataclass(frozen=True, slots=True)
class LimitOutcome:
    """Whether the audit is within one limit, with the count and its denominator."""

    limit: str
    held: bool
    found: str


def parse_limits(text: str, config: AuditConfig, *, evals: bool) -> tuple[AuditLimit, ...]:
    """Limits from `NAME[>NUMBER]`, separated by commas; a number below 1 or with % is a share of rows, else a count.

    A name is one of `GATES` and `COUNTED` or a reason of the row checks. Raises InputError for another name, a number
    that cannot be a limit, and a limit on what this audit does not look for.
    """
    reasons = {*row_reasons(), *(p.reason for p in load_patterns(*config.quality.patterns)[0])}
    found: dict[str, AuditLimit] = {}
    for part in (p.strip() for p in text.split(",")):
        term = _TERM.fullmatch(part)
        if term is None or term["name"] not in {*GATES, *COUNTED, *reasons}:
            names = ", ".join([*GATES, *COUNTED, *sorted(reasons)])
            raise InputError(f"--fail-on: expected NAME or NAME>NUMBER, found {part!r}.", fix=f"Names: {names}.")
        limit = _limit(term["name"], term["number"], bool(term["percent"]))
        if limit.name in found:
            raise InputError(f"--fail-on names {limit.name} twice.", fix="Give it one limit.")
        found[limit.name] = limit
    if found.keys() & {"contamination", "near_copies"} and not evals:
        name = min(found.keys() & {"contamination", "near_copies"})
        raise InputError(
            f"--fail-on {name} compares the rows with an eval, but no eval was given.", fix="Add --eval FILE."
        )
    if "leak" in found and config.split_field is None:
        raise InputError(
            "--fail-on leak checks a split, but no split was given.",
            fix="Name the column that holds the split: --split-field COLUMN.",
        )
    return tuple(found.values())


def _limit(name: str, number: str | None, percent: bool) -> AuditLimit:
    if number is None:
        return AuditLimit(name)
    if name in GATES:
        raise InputError(f"--fail-on: {name} takes no number: it either passes or fails.", fix=f"Write {name} alone.")
    value = float(number)
    most = value / 100 if percent else value
    share = percent or 0 < value < 1
    if not math.isfinite(most) or (share and most >= 1) or (not share and value != int(value)):
        raise InputError(
            f"--fail-on {name}>{number}{'%' if percent else ''}: expected a whole number of rows, or a share below 1.",
            fix=f"Write {name}>20, {name}>0.01 or {name}>1%.",
        )
    return AuditLimit(name, most, share)


def judge_limits(limits: Sequence[AuditLimit], report: AuditReport) -> tuple[LimitOutcome, ...]:
    """Check each limit against the audit. An undecided gate fails its limit, and so does a share when no rows were
    read.
    """
    return tuple(_judge(limit, report) for limit in limits)


def _judge(limit: AuditLimit, report: AuditReport) -> LimitOutcome:
    if limit.name == "contamination":
        assert report.gate is not None
        return LimitOutcome(limit.text, report.gate.status == "passed", report.gate.message)
    if limit.name == "leak":
        shared = [f.message for f in report.findings if f.check.startswith("split.") and f.severity == "error"]
        return LimitOutcome(limit.text, not shared, "; ".join(shared) or "the splits share no row, prompt or family")
    n, total = _count(limit.name, report)
    of = "records" if limit.name == "rejected" else "rows"
    if not total:
        return LimitOutcome(limit.text, False, f"no {of} were read")
    held = n / total <= limit.most if limit.share else n <= limit.most
    return LimitOutcome(limit.text, held, f"{n:,} of {total:,} {of} ({n / total:.2%})")


def _count(name: str, report: AuditReport) -> tuple[int, int]:
    """Rows of which `name` is true, and rows that were looked at."""
    rows = len(report.rows)
    if name == "rejected":
        return report.n_read - rows, report.n_read
    if name == "flagged":
        return len(report.quality.flagged), rows
    if name == "variants":
        return int(report.families.summary["variants"]) if rows else 0, rows
    if name == "near_copies":
        assert report.contamination is not None
        summary = report.contamination.summary
        return int(summary["rows_exact"]) + int(summary["rows_confirmed"]), rows
    reason = "duplicate" if name == "duplicates" else name
    counts = report.quality.counts.get(reason)
    return (int(counts["rows"]) if counts else 0), rows


def exit_code(report: AuditReport, outcomes: Sequence[LimitOutcome]) -> int:
    """2 if a limit is exceeded, else the audit's own exit code."""
    return report.exit_code if all(o.held for o in outcomes) else int(ExitCode.NOT_PASSED)


def screen_text(report: AuditReport, outcomes: Sequence[LimitOutcome]) -> str:
    """The audit as text for the screen, with one line per limit below it."""
    lines = [f"{'held' if o.held else 'NOT HELD':<9} {o.limit}: {o.found}" for o in outcomes]
    return "\n".join([render_text(report).rstrip("\n"), *([""] if lines else []), *lines])


def check_report(report: AuditReport, outcomes: Sequence[LimitOutcome]) -> CheckReport:
    """The checks of an audit for CI: usable records, both gates where they were asked for, and every limit; with the
    page for a pull request.

    A case fails wherever the command's exit status is not 0.
    """
    cases = [_records_case(report)]
    if report.gate is not None:
        says = report.gate.message
        body = "\n".join([says, *report.gate.evidence])
        cases.append(CheckCase(GATES[0], "audit", report.gate.status == "passed", says, body, report.gate.status))
    if report.split is not None:
        leak = _judge(AuditLimit("leak"), report)
        cases.append(CheckCase("leak", "audit", leak.held, leak.found))
    gates = {AuditLimit(name).text for name in GATES}
    cases += [CheckCase(o.limit, "audit", o.held, o.found) for o in outcomes if o.limit not in gates]
    return CheckReport("veritune audit", tuple(cases), _markdown(report, cases))


def _records_case(report: AuditReport) -> CheckCase:
    """Whether every record can be used; where not, with the first problem's place."""
    elsewhere = ("contamination", "audit.eval", "split.")
    errors = [f for f in report.findings if f.severity == "error" and not f.check.startswith(elsewhere)]
    says = f"{len(report.rows):,} of {report.n_read:,} records are usable"
    if not errors:
        return CheckCase("records", "audit", True, says)
    first = errors[0]
    says += f"; {grouped(len(errors), 'problems')}, first: {first.message}"
    return CheckCase("records", "audit", False, says, kind=first.check, file=first.source, line=first.line)


def _markdown(report: AuditReport, cases: Sequence[CheckCase]) -> str:
    failed = [case for case in cases if not case.passed]
    says = f"{len(cases) - len(failed)} of {len(cases)} checks hold"
    lines = [f"### Audit of {markdown_cell(report.source)}", "", verdict_line(not failed, says), ""]
    lines += ["| check | | found |", "| --- | --- | --- |"]
    lines += [
        f"| {markdown_cell(c.title)} | {'passed' if c.passed else '**failed**'} | {markdown_cell(c.says)} |"
        for c in cases
    ]
    reasons = [f"{reason} {n['rows']:,}" for reason, n in report.quality.counts.items() if n["rows"]]
    family = report.families.summary
    lines += ["", f"{family['rows']:,} rows, {family.get('originals', 0):,} originals. Data version "
              f"`{report.sha256[:12]}`. Flags: {markdown_cell(', '.join(reasons) or 'none')}."]  # fmt: skip
    return "\n".join(lines) + "\n"

"""A lint report for a pipeline: each finding at its line, and the pages' tables (`veritune.ci` has the forms)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from veritune.ci import CheckCase, CheckReport, markdown_cell, verdict_line
from veritune.counting import agree, many
from veritune.writeup.lint.check import render_text
from veritune.writeup.lint.rules import LintFinding, LintReport


def check_report(report: LintReport | Sequence[LintReport]) -> CheckReport:
    """One case per finding that is an error, and one per page; the page's line counts the notes."""
    pages = [report] if isinstance(report, LintReport) else list(report)
    cases = [case for page in pages for case in _cases(page)]
    return CheckReport("veritune lint", tuple(cases), "\n".join(line for page in pages for line in _markdown(page)))


def without_folder(report: LintReport | list[LintReport], folder: Path) -> LintReport | list[LintReport]:
    """The reports, with pages from a pipe shown under the pipe's name instead of the temporary file in `folder`."""
    if isinstance(report, list):
        return [replace(one, path=str(one.path).removeprefix(f"{folder}/")) for one in report]
    return replace(report, path=str(report.path).removeprefix(f"{folder}/"))


def _errors(page: LintReport) -> list[LintFinding]:
    return [f for f in page.findings if f.severity == "error"]


def _count(page: LintReport) -> str:
    errors = len(_errors(page))
    notes = len(page.findings) - errors
    counts = f"{many(errors, 'findings')}, {many(notes, 'notes')}"
    return f"{counts}; {page.bound} of {many(page.numbers, 'numbers')} {agree(page.bound, 'agree')} with {page.study}"


def _says(finding: LintFinding) -> str:
    text = f"{finding.text}: {finding.message}" if finding.text else finding.message
    return f"{text} ({finding.suggestion})" if finding.suggestion else text


def _cases(page: LintReport) -> list[CheckCase]:
    found = [
        CheckCase(f"{f.rule} at {f.line}:{f.column}", page.path, False, _says(f), "", f.rule, (), page.path, f.line)
        for f in _errors(page)
    ]
    whole = CheckCase("page", page.path, page.clean, _count(page), render_text(page), "lint", (), page.path)
    return [*found, whole]


def _markdown(page: LintReport) -> list[str]:
    lines = [f"### Lint of {markdown_cell(page.path)}", "", verdict_line(page.clean, _count(page)), ""]
    if page.findings:
        lines += ["| line | rule | found |", "| ---: | --- | --- |"]
        lines += [
            f"| {f.line} | {markdown_cell(f.rule)}{'' if f.severity == 'error' else ' (note)'} |"
            f" {markdown_cell(_says(f))} |"
            for f in page.findings
        ]
        lines.append("")
    return lines

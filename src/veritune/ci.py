"""What a check says to a pipeline: Markdown for a pull request, JUnit XML, and GitHub's annotations.

    report = CheckReport("veritune audit", (CheckCase("rows.jsonl", "audit", True, "0 rows flagged"),), "### Audit\\n")
    junit(report); github_lines(report)

Names come from files that strangers wrote: each form escapes what its reader would take for markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no character for (its section 2.2)."""


@dataclass(frozen=True, slots=True)
class CheckCase:
    """One check and its outcome. `group` gathers checks of one kind; `says` is the sentence about this one.

    `body` is the longer text of a report, `kind` the failure's type, `file` and `line` (from 1) where it is seen.

    >>> CheckCase("flagged at most 1%", "audit", passed=False, says="3 of 90 rows").kind
    'failed'
    """

    title: str
    group: str
    passed: bool
    says: str
    body: str = ""
    kind: str = "failed"
    warnings: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class CheckReport:
    """All checks of one command. `markdown` is the full text for a pull request.

    >>> CheckReport("veritune lint", (), "").cases
    ()
    """

    suite: str
    cases: tuple[CheckCase, ...]
    markdown: str


def junit(report: CheckReport) -> str:
    """The checks as JUnit XML: one test case per check, with a failure for each check that did not pass."""
    failures = sum(not case.passed for case in report.cases)
    counts = {"tests": str(len(report.cases)), "failures": str(failures), "errors": "0"}
    suites = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(suites, "testsuite", {"name": report.suite, **counts})
    for case in report.cases:
        about = {"classname": _xml(case.group), "name": _xml(case.title)}
        node = ElementTree.SubElement(suite, "testcase", about)
        if not case.passed:
            ElementTree.SubElement(node, "failure", {"message": _xml(case.says), "type": _xml(case.kind)})
        ElementTree.SubElement(node, "system-out").text = _xml(case.body or case.says)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def github_lines(report: CheckReport) -> list[str]:
    """GitHub workflow commands, one line per check: an error if it did not pass, otherwise a notice, followed by its
    warnings.
    """
    return [line for case in report.cases for line in _commands(case)]


def _commands(case: CheckCase) -> Sequence[str]:
    where = [] if case.file is None else [f"file={_property(case.file)}"]
    where += [] if case.file is None or case.line is None else [f"line={case.line}"]
    about = ",".join([*where, f"title={_property(case.title)}"])
    said = [f"::{'notice' if case.passed else 'error'} {about}::{_data(case.says)}"]
    return said + [f"::warning {about}::{_data(warning)}" for warning in case.warnings]


def markdown_cell(text: str) -> str:
    """The text escaped for Markdown, on one line, so that it shows unchanged, also in a table.

    >>> markdown_cell("a|b\\n<c>")
    'a&#124;b &lt;c&gt;'
    """
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~@#])", lambda m: f"&#{ord(m[0])};", plain)


def verdict_line(passed: bool, says: str) -> str:
    """`**PASSED** …`, the line under a heading."""
    return f"**{'PASSED' if passed else 'FAILED'}** {markdown_cell(says)}"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")

"""`lint`: a write-up against a study folder, as a report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from veritune.counting import many
from veritune.errors import ExitCode, InputError
from veritune.patterns import search
from veritune.store import Store
from veritune.writeup.facts import Fact, is_record, read_facts
from veritune.writeup.fill import Filler
from veritune.writeup.held_verdicts import read_verdicts
from veritune.writeup.lint import structure
from veritune.writeup.lint.bind import Binder, Binding, with_bound
from veritune.writeup.lint.clean import check_page, profile_findings, with_profile
from veritune.writeup.lint.filled import FilledSpan, filled_spans
from veritune.writeup.lint.free import check as check_facts
from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.markdown import Block, Document, Marker, Sentence, TableCell, parse, sentences
from veritune.writeup.lint.numbers import PrintedNumber, scan
from veritune.writeup.lint.profile import Profile, load_profile
from veritune.writeup.lint.rules import LintFinding, LintReport, NumberFate, Rules, load_rules
from veritune.writeup.lint.scope import Around, Passage
from veritune.writeup.lint.speech import FORBIDDEN_SECTIONS, QUOTED, Speech
from veritune.writeup.lint.words import KindWord, Lexicon, kind_words
from veritune.writeup.pages import held_against, prose_of
from veritune.writeup.quantities import CheckedRecords, read_records
from veritune.writeup.references import Values


def lint(text_path: str | Path, study_folder: str | Path, rules: Rules | Path | None = None) -> LintReport:
    """Check a write-up against the records of a study.

    Raises InputError where the text, the folder or the rules cannot be read; whatever is in the text is a finding.
    """
    path, folder = Path(text_path), Path(study_folder)
    folder = folder.parent if folder.is_file() else folder
    text = prose_of(path)
    records = read_records(Store(folder))
    chosen = rules if isinstance(rules, Rules) else load_rules(rules)
    return lint_text(text, records, chosen, path)


def lint_text(
    text: str,
    records: CheckedRecords,
    rules: Rules,
    path: Path,
    facts: Sequence[Fact] = (),
    profile: Profile | None = None,
) -> LintReport:
    """The same check for a text in memory; `path` is its place, for its figures. `facts` are further records; a
    `profile` replaces the default requirements on structure.
    """
    return _Check(parse(text), records, rules, path, facts).report(profile)


def lint_command(
    given: Sequence[Path], study: Path | None, records: Sequence[Path] = (), rules: Path | None = None,
    profile: str | None = None,
) -> tuple[LintReport | list[LintReport], int]:  # fmt: skip
    """`veritune lint` as a function: the report of each page, and 0 if all are clean, else 2.

    Record files may stand among the pages behind `--records`; with neither, pages are held against the study whose
    folder they lie in. Raises InputError without a page, or without anything to hold it against.
    """
    files = [*records, *(p for p in given if records and is_record(p))]
    pages = [p for p in given if p not in files]
    if not pages:
        raise InputError(
            "expected a write-up, found none.", fix="Name one: veritune lint PAGE.md --records results.json"
        )
    study = held_against(pages, study, files)
    if study is None and not files and profile is None:
        raise InputError(
            "expected records to check the write-up against, found none.",
            fix="Add --study STUDY, or --records results.json metrics.jsonl table.csv",
        )
    chosen, page_rules = load_rules(rules), load_profile(profile) if profile is not None else None
    facts = read_facts(files)
    if study is None:
        verdicts = read_verdicts(files)
        reports = [lint_records(page, files, chosen, facts, verdicts) for page in pages]
        if page_rules is not None:
            reports = [with_profile(r, p, page_rules, numbers=bool(files)) for r, p in zip(reports, pages)]
    else:
        held = read_records(Store.of(study))
        reports = [lint_text(prose_of(page), held, chosen, page, facts, page_rules) for page in pages]
    code = ExitCode.FINE if all(report.clean for report in reports) else ExitCode.NOT_PASSED
    return (reports[0] if len(reports) == 1 else reports), code


def render_text(report: LintReport | Sequence[LintReport]) -> str:
    """The report as text for the screen: one line per finding, then the count."""
    if not isinstance(report, LintReport):
        return "\n".join(render_text(one) for one in report)
    lines = []
    for f in report.findings:
        grave = "" if f.severity == "error" else " (note)"
        where, text = f"{report.path}:{f.line}:{f.column}", f"{f.text}: " if f.text else ""
        lines.append(f"{where}: {_CALLED.get(f.rule, f.rule)}{grave}: {text}{f.message}")
        if f.suggestion:
            lines.append(f"    → {f.suggestion}")
    n = sum(f.severity == "error" for f in report.findings)
    count = "clean" if report.clean else many(n, "findings")
    lines.append(f"{report.path}: {count}; {report.bound} of {report.numbers} numbers agree with {report.study}")
    tally = Counter(r.outcome for r in report.readings)
    if report.readings:
        words = {"bound": "bound", "ambiguous": "ambiguous", "absent": "not in the records", "wrong": "wrong"}
        lines.append("    " + ", ".join(f"{tally[k]} {v}" for k, v in words.items()))
    return "\n".join(lines)


class _Check:
    """One text against one study."""

    def __init__(
        self, document: Document, records: CheckedRecords, rules: Rules, path: Path, facts: Sequence[Fact] = ()
    ) -> None:
        self.document, self.records, self.rules, self.path = document, records, rules, path
        self.further = {r.start: r for r in check_facts(document, facts, rules)} if facts else {}
        self.readings: list[NumberFate] = []
        filler = Filler(Values(records, facts), (), records.root / "figures")
        self.filled = [*filled_spans(document.source, filler, path), *self._quoted(document.source)]
        self.lexicon = Lexicon(records, rules)
        self.binder = Binder(records)
        self.speech = Speech(records, self.lexicon, rules)
        self.findings: list[LintFinding] = []
        self.numbers = self.bound = 0

    def report(self, profile: Profile | None = None) -> LintReport:
        """The report; a profile's checks replace those of the default structure."""
        if profile is None:
            for rule, at, message, fix in structure.check(self.document, self.records, self.rules, self.path.parent):
                self._add(rule, at, message, fix)
        else:
            grades = [str(v["confidence"].get("grade")) for v in self.records.verdicts]
            raised = check_page(self.document, profile, self.path.parent, self.records.root, grades)
            self.findings += profile_findings(self.document, profile, raised)
        for span in self.filled:
            if span.rule:
                self._add(span.rule, span.start, span.message, span.suggestion)
        earlier: list[Around] = []
        for i, block in enumerate(self.document.blocks):
            if block.kind == "code" or (block.kind == "quote" and structure.in_samples(block, self.rules)):
                continue
            if block.kind == "table":
                self._table(i, block)
            else:
                earlier = self._prose(block, earlier)
        self.findings.sort(key=lambda f: (f.line, f.column, f.rule))
        return LintReport(
            str(self.path), self.records.name, self.records.contract, tuple(self.findings), self.numbers, self.bound,
            tuple(sorted(self.readings, key=lambda r: r.start)),
        )  # fmt: skip

    def _add(self, rule: str, at: int, message: str, suggestion: str = "", outcome: Binding | None = None) -> None:
        level = self.rules.level(rule)
        if level == "off":
            return
        line, column = self.document.place(at)
        q = outcome.quantity if outcome else None
        text = outcome.number.text.strip() if outcome else ""
        severity = "error" if level == "error" else "note"
        name, value = (q.name, q.value) if q else (None, None)
        self.findings.append(LintFinding(rule, severity, line, column, message, text, name, value, suggestion))  # type: ignore[arg-type]

    # -- prose ------------------------------------------------------------------------------------------------

    def _prose(self, block: Block, earlier: list[Around]) -> list[Around]:
        """Check a paragraph, item or heading; what it leaves for the items that follow it."""
        parts = [Sentence(block.text, block.start)] if block.kind == "heading" else sentences(block.text, block.start)
        heading = self._around(" ".join(block.section[1:]))
        before: list[Around] = []
        for sentence in parts:
            outer = (*reversed(before[-5:]), *(earlier if block.kind == "item" else ()), heading)
            forbidden = bool(block.section) and any(w in block.section[-1].lower() for w in FORBIDDEN_SECTIONS)
            shown = replace(sentence, text=QUOTED.sub(_blank, sentence.text)) if forbidden else sentence
            self._passage(self._sentence(shown, outer))
            for rule, at, message, suggestion in self.speech.check(block, sentence):
                self._add(rule, at, message, suggestion)
            before.append(self._around(sentence.text))
        if block.kind == "item":
            return earlier
        return [before[-1]] if before and block.text.rstrip().endswith(":") else []

    def _sentence(self, sentence: Sentence, outer: Sequence[Around]) -> Passage:
        text = sentence.text
        mentions = tuple(self.lexicon.mentions(text))
        numbers = self._numbers(text)
        seeds = {m.end for m in mentions if m.dimension == "seed"}
        kept = tuple(n for n in numbers if n.end not in seeds or self._no_seed(n))
        return Passage(text, sentence.start, kept, mentions, tuple(kind_words(text)), tuple(outer))

    def _numbers(self, text: str) -> list[PrintedNumber]:
        """The numbers of a text that may be claims, without the digits of the study's hashes."""
        hashes = structure.hash_spans(text, self.records)
        numbers = [with_bound(text, n) for n in scan(text)]
        free = [n for n in numbers if not any(start <= n.start < end for start, end in hashes)]
        return _percent_lists(text, [n for n in free if not self._ignored(text, n)])

    def _no_seed(self, number: PrintedNumber) -> bool:
        """A seed that the study does not have is a number to report; one that it has is a name."""
        known = {*self.records.seeds, int(self.records.terms["study"]["split"]["seed"])}
        return number.value not in known

    def _ignored(self, text: str, number: PrintedNumber) -> bool:
        return any(_covers(pattern, text, number.start) for pattern in self.rules.ignore)

    def _around(self, text: str) -> Around:
        return Around(tuple(self.lexicon.mentions(text, bare=False)), tuple(kind_words(text)), text)

    # -- tables -----------------------------------------------------------------------------------------------

    def _table(self, i: int, block: Block) -> None:
        near = [b for b in self.document.blocks[max(0, i - 1) : i + 2] if b is not block and structure.is_caption(b)]
        corner = [c.text for c in block.cells if (c.row, c.column) == (0, 0)]
        caption = self._around(" ".join([*(b.text for b in near), *corner]))
        heading = self._around(" ".join(block.section[1:]))
        rows: dict[int, dict[int, TableCell]] = {}
        for cell in block.cells:
            rows.setdefault(cell.row, {})[cell.column] = cell
        header = rows.get(0, {})
        for row, cells in rows.items():
            label = self._cell_around(_label(cells))
            for column, cell in cells.items():
                head = self._cell_around(header[column].text) if column in header and row else Around(())
                outer = [level for level in (label, head) if level.text.strip() and level.text != cell.text]
                self._passage(
                    self._cell(
                        cell, (*_merged(outer), caption, heading), _percent_words(label.text, head.text, caption.text)
                    )
                )

    def _cell_around(self, text: str) -> Around:
        kinds = kind_words(text) or ([KindWord(frozenset({"p"}), 0, 1)] if text.strip(" _*") in ("p", "P") else [])
        return Around(tuple(self.lexicon.mentions(text, bare=True)), tuple(kinds), text)

    def _cell(self, cell: TableCell, outer: Sequence[Around], head: str) -> Passage:
        text = cell.text
        mentions = tuple(self.lexicon.mentions(text, bare=True))
        numbers = self._numbers(text)
        seeds = {m.end for m in mentions if m.dimension == "seed"}
        kept = tuple(n for n in numbers if n.end not in seeds or self._no_seed(n))
        return Passage(text, cell.start, kept, mentions, tuple(kind_words(text)), tuple(outer), _in_percent(head), True)

    # -- numbers ----------------------------------------------------------------------------------------------

    def _passage(self, passage: Passage) -> None:
        exempt: list[PrintedNumber] = []
        for number in passage.numbers:
            span = self._span_at(passage.start + number.start)
            if span is not None:
                exempt.append(number)
                self.numbers += 1
                self.bound += not span.rule
                kind = {"": "bound", "number.marker": "absent"}.get(span.rule, "wrong")
                at = passage.start + number.start
                text = number.text.strip()
                self.readings.append(NumberFate(kind, at, text, span.message, span.name, by_reference=True))
        for number, marker in self._marked(passage):
            exempt.append(number)
            self.numbers += 1
            if marker.name == "none":
                self.numbers -= 1
                continue
            self._outcome(passage, self.binder.marked(number, marker.name))
        outcomes = self.binder.check(passage, exempt)
        self.numbers += len(outcomes)
        for outcome in outcomes:
            self._outcome(passage, outcome)

    def _quoted(self, source: str) -> Iterator[FilledSpan]:
        """Sentences of the verdicts, word for word: their numbers are the verdict's own."""
        for verdict in self.records.verdicts:
            sentence = str(verdict["sentence"])
            at = source.find(sentence) if len(sentence) > 40 else -1
            while at >= 0:
                yield FilledSpan(at, at + len(sentence), f"claim.{verdict['claim']}.sentence")
                at = source.find(sentence, at + 1)

    def _span_at(self, at: int) -> FilledSpan | None:
        """The filled reference that holds an offset."""
        return next((span for span in self.filled if span.start <= at < span.end), None)

    def _marked(self, passage: Passage) -> Iterator[tuple[PrintedNumber, Marker]]:
        """Numbers with a marker right behind them, with a sign or a bracket between at most."""
        for marker in self.document.markers:
            at = marker.at - passage.start
            if 0 < at <= len(passage.text):
                before = [n for n in passage.numbers if n.end <= at]
                if before and not passage.text[before[-1].end : at].strip(" )*_]"):
                    yield before[-1], marker

    def _outcome(self, passage: Passage, outcome: Binding) -> None:
        at = passage.start + outcome.number.start
        further = self.further.get(at)
        if outcome.rule not in ("", "number.delta") and further is not None and further.outcome == "bound":
            outcome = Binding(outcome.number)
            self.readings.append(further)
        else:
            q, kind = outcome.quantity, _READ_AS.get(outcome.rule, "wrong")
            name, value = (q.name, q.value) if q else (None, None)
            text = outcome.number.text.strip()
            self.readings.append(NumberFate(kind, at, text, outcome.message, name, value, outcome.suggestion))
        if outcome.rule:
            self._add(outcome.rule, at, outcome.message, outcome.suggestion, outcome)
        if not outcome.rule or outcome.rule == "number.delta":
            self.bound += 1


_CALLED = {
    "number.mismatch": "wrong (number.mismatch)",
    "number.unbound": "not in the records (number.unbound)",
    "number.ambiguous": "ambiguous (number.ambiguous)",
}
_READ_AS = {"": "bound", "number.delta": "bound", "number.unbound": "absent", "number.ambiguous": "ambiguous"}
"""What a number is called by the rule that its outcome names; any other rule accuses it."""


def _blank(match: re.Match[str]) -> str:
    return " " * len(match.group())


def _covers(pattern: re.Pattern[str], text: str, at: int) -> bool:
    """Whether a match of the pattern holds the place `at`."""
    match = search(pattern, text)
    while match is not None and match.start() <= at:
        if at < match.end():
            return True
        match = search(pattern, text, max(match.end(), match.start() + 1))
    return False


def _label(cells: dict[int, TableCell]) -> str:
    """A row's own words: its first cell, and further cells without a number."""
    return "  ".join(c.text for k, c in cells.items() if k == 0 or not scan(c.text))


def _percent_words(label: str, head: str, caption: str) -> str:
    """Where a table says that its numbers are percentages: row, column, or the caption when neither says a unit."""
    return label + " " + head + " " + caption


def _merged(levels: Sequence[Around]) -> list[Around]:
    """Row and column as one level for what each of them names alone."""
    return list(levels)


def _in_percent(head: str) -> bool:
    return (
        "%" in head.replace("95 %", "").replace("90 %", "").replace("95%", "").replace("90%", "")
        or "percent" in head.lower()
    )


def _percent_lists(text: str, numbers: list[PrintedNumber]) -> list[PrintedNumber]:
    """`91.0, 90.1 and 89.7 %`: the sign at the end counts for the whole list."""
    out = list(numbers)
    for k in range(len(out) - 2, -1, -1):
        a, b = out[k], out[k + 1]
        listed = text[a.end : b.start].strip() in (",", "and", "to", "–", "-", "or", ", and", "against", "vs", "vs.")
        if b.percent and not a.percent and listed and a.decimals == b.decimals and not a.word and abs(a.value) > 1:
            out[k] = replace(a, percent=b.percent)
    return out

"""`lint`: a write-up against a study folder, as a report."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from veritune.decide.lint import structure
from veritune.decide.lint.bind import Binder, Outcome
from veritune.decide.lint.markdown import Block, Cell, Document, Marker, Sentence, parse, sentences
from veritune.decide.lint.numbers import Number, scan
from veritune.decide.lint.rules import Finding, LintReport, Rules, load_rules
from veritune.decide.lint.scope import Around, Passage
from veritune.decide.lint.speech import Speech
from veritune.decide.lint.words import KindWord, Lexicon, kind_words
from veritune.decide.quantities import Records, read_records
from veritune.errors import InputError
from veritune.patterns import search
from veritune.store import Store


def lint(text_path: str | Path, study_folder: str | Path, rules: Rules | Path | None = None) -> LintReport:
    """Check a write-up against the records of a study.

    Raises InputError where the text, the folder or the rules cannot be read; whatever is in the text is a finding.
    """
    path, folder = Path(text_path), Path(study_folder)
    folder = folder.parent if folder.is_file() else folder
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"no write-up at {path}.", fix="Draft one: veritune writeup STUDY.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a Markdown file.") from None
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not UTF-8 (byte {exc.start}).", fix="Save it as UTF-8.") from None
    records = read_records(Store(folder))
    chosen = rules if isinstance(rules, Rules) else load_rules(rules)
    return lint_text(text, records, chosen, path)


def lint_text(text: str, records: Records, rules: Rules, path: Path) -> LintReport:
    """The same for a text in hand; `path` is where it lies, for its figures."""
    return _Check(parse(text), records, rules, path).report()


def lint_command(writeup: Path, study: Path, rules: Path | None = None) -> tuple[LintReport, int]:
    """What `veritune lint` does: the report, and 0 when it is clean, else 2."""
    report = lint(writeup, study, rules)
    return report, 0 if report.clean else 2


def render_text(report: LintReport) -> str:
    """The report for the screen: one line a finding, then the count."""
    lines = []
    for f in report.findings:
        grave = "" if f.severity == "error" else " (note)"
        lines.append(
            f"{report.path}:{f.line}:{f.column}: {f.rule}{grave}: {f'{f.text}: ' if f.text else ''}{f.message}"
        )
        if f.suggestion:
            lines.append(f"    → {f.suggestion}")
    n = sum(f.severity == "error" for f in report.findings)
    count = "clean" if report.clean else f"{n} finding{'s' if n != 1 else ''}"
    lines.append(f"{report.path}: {count}; {report.bound} of {report.numbers} numbers agree with {report.study}")
    return "\n".join(lines)


class _Check:
    """One text against one study."""

    def __init__(self, document: Document, records: Records, rules: Rules, path: Path) -> None:
        self.document, self.records, self.rules, self.path = document, records, rules, path
        self.lexicon = Lexicon(records, rules)
        self.binder = Binder(records)
        self.speech = Speech(records, self.lexicon, rules)
        self.findings: list[Finding] = []
        self.numbers = self.bound = 0

    def report(self) -> LintReport:
        for rule, at, message, suggestion in structure.check(self.document, self.records, self.rules, self.path.parent):
            self._add(rule, at, message, suggestion)
        earlier: list[Around] = []
        for i, block in enumerate(self.document.blocks):
            if block.kind in ("code", "quote"):
                continue
            if block.kind == "table":
                self._table(i, block)
            else:
                earlier = self._prose(block, earlier)
        self.findings.sort(key=lambda f: (f.line, f.column, f.rule))
        return LintReport(
            str(self.path), self.records.name, self.records.contract, tuple(self.findings), self.numbers, self.bound
        )

    def _add(self, rule: str, at: int, message: str, suggestion: str = "", outcome: Outcome | None = None) -> None:
        level = self.rules.level(rule)
        if level == "off":
            return
        line, column = self.document.place(at)
        q = outcome.quantity if outcome else None
        text = outcome.number.text.strip() if outcome else ""
        severity = "error" if level == "error" else "note"
        name, value = (q.name, q.value) if q else (None, None)
        self.findings.append(Finding(rule, severity, line, column, message, text, name, value, suggestion))  # type: ignore[arg-type]

    # -- prose ------------------------------------------------------------------------------------------------

    def _prose(self, block: Block, earlier: list[Around]) -> list[Around]:
        """Check a paragraph, item or heading; what it leaves for the items that follow it."""
        parts = [Sentence(block.text, block.start)] if block.kind == "heading" else sentences(block.text, block.start)
        heading = self._around(" ".join(block.section[1:]))
        before: list[Around] = []
        for sentence in parts:
            outer = (*reversed(before[-5:]), *(earlier if block.kind == "item" else ()), heading)
            self._passage(self._sentence(sentence, outer))
            for rule, at, message, suggestion in self.speech.check(block, sentence):
                self._add(rule, at, message, suggestion)
            before.append(self._around(sentence.text))
        if block.kind == "item":
            return earlier
        return [before[-1]] if before and block.text.rstrip().endswith(":") else []

    def _sentence(self, sentence: Sentence, outer: Sequence[Around]) -> Passage:
        text = sentence.text
        mentions = tuple(self.lexicon.mentions(text))
        numbers = _percent_lists(text, [n for n in scan(text) if not self._ignored(text, n)])
        seeds = {m.end for m in mentions if m.dimension == "seed"}
        kept = tuple(n for n in numbers if n.end not in seeds or self._no_seed(n))
        return Passage(text, sentence.start, kept, mentions, tuple(kind_words(text)), tuple(outer))

    def _no_seed(self, number: Number) -> bool:
        """A seed that the study does not have is a number to report; one that it has is a name."""
        known = {*self.records.seeds, int(self.records.terms["study"]["split"]["seed"])}
        return number.value not in known

    def _ignored(self, text: str, number: Number) -> bool:
        return any(_covers(pattern, text, number.start) for pattern in self.rules.ignore)

    def _around(self, text: str) -> Around:
        return Around(tuple(self.lexicon.mentions(text, bare=False)), tuple(kind_words(text)), text)

    # -- tables -----------------------------------------------------------------------------------------------

    def _table(self, i: int, block: Block) -> None:
        near = [b for b in self.document.blocks[max(0, i - 1) : i + 2] if b is not block and structure.is_caption(b)]
        caption = self._around(" ".join(b.text for b in near))
        heading = self._around(" ".join(block.section[1:]))
        rows: dict[int, dict[int, Cell]] = {}
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

    def _cell(self, cell: Cell, outer: Sequence[Around], head: str) -> Passage:
        text = cell.text
        mentions = tuple(self.lexicon.mentions(text, bare=True))
        numbers = _percent_lists(text, [n for n in scan(text) if not self._ignored(text, n)])
        seeds = {m.end for m in mentions if m.dimension == "seed"}
        kept = tuple(n for n in numbers if n.end not in seeds or self._no_seed(n))
        return Passage(text, cell.start, kept, mentions, tuple(kind_words(text)), tuple(outer), _in_percent(head), True)

    # -- numbers ----------------------------------------------------------------------------------------------

    def _passage(self, passage: Passage) -> None:
        exempt: list[Number] = []
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

    def _marked(self, passage: Passage) -> Iterator[tuple[Number, Marker]]:
        """Numbers with a marker right behind them, with a sign or a bracket between at most."""
        for marker in self.document.markers:
            at = marker.at - passage.start
            if 0 < at <= len(passage.text):
                before = [n for n in passage.numbers if n.end <= at]
                if before and not passage.text[before[-1].end : at].strip(" )*_]"):
                    yield before[-1], marker

    def _outcome(self, passage: Passage, outcome: Outcome) -> None:
        if outcome.rule:
            at = passage.start + outcome.number.start
            self._add(outcome.rule, at, outcome.message, outcome.suggestion, outcome)
        if not outcome.rule or outcome.rule == "number.delta":
            self.bound += 1


def _covers(pattern: re.Pattern[str], text: str, at: int) -> bool:
    """Whether a match of the pattern holds the place `at`."""
    match = search(pattern, text)
    while match is not None and match.start() <= at:
        if at < match.end():
            return True
        match = search(pattern, text, max(match.end(), match.start() + 1))
    return False


def _label(cells: dict[int, Cell]) -> str:
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


def _percent_lists(text: str, numbers: list[Number]) -> list[Number]:
    """`91.0, 90.1 and 89.7 %`: the sign at the end counts for the whole list."""
    from dataclasses import replace

    out = list(numbers)
    for k in range(len(out) - 2, -1, -1):
        a, b = out[k], out[k + 1]
        listed = text[a.end : b.start].strip() in (",", "and", "to", "–", "-", "or", ", and", "against", "vs", "vs.")
        if b.percent and not a.percent and listed and a.decimals == b.decimals and not a.word and abs(a.value) > 1:
            out[k] = replace(a, percent=b.percent)
    return out

"""What `veritune writeup fill|check|export|names` do: pages and records in, one typed report out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from veritune.counting import many
from veritune.errors import InputError
from veritune.store import Store, write_text
from veritune.writeup import items, tables
from veritune.writeup.facts import is_record, read_facts
from veritune.writeup.fill import Filled, Filler, Referred, fill, fill_page, filler_of
from veritune.writeup.lint.check import lint_text
from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.rules import LintReport, Rules, load_rules
from veritune.writeup.pages import PAGES, held_against, prose_of
from veritune.writeup.quantities import read_records


@dataclass(frozen=True, slots=True)
class FillReport:
    """The result of filling a page: how many references were written, by their previous state."""

    page: str
    written: str
    filled: int
    changed: int
    references: tuple[Referred, ...]


@dataclass(frozen=True, slots=True)
class PageCheck:
    """The references of some pages and their hand-typed numbers; with `strict` the latter are findings."""

    pages: tuple[str, ...]
    references: tuple[tuple[Referred, ...], ...]
    strict: bool

    @property
    def clean(self) -> bool:
        """Whether every reference is filled and up to date and, under `strict`, no number was typed by hand."""
        bad = {"stale", "unknown", "unfilled"} | ({"typed by hand"} if self.strict else set())
        return not any(r.state in bad for page in self.references for r in page)


@dataclass(frozen=True, slots=True)
class ReferenceName:
    """One name that a reference may use."""

    name: str
    value: float | None
    source: str


def _given(given: Sequence[Path], records: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Pages and record files: files that are records may stand among the pages."""
    files = [*records, *(p for p in given if is_record(p))]
    pages = [p for p in given if p not in files]
    if not pages:
        raise InputError("expected a page, found none.", fix=f"Name a file that ends in {', '.join(PAGES)}.")
    return pages, files


def fill_command(
    given: Sequence[Path], study: Path | None, records: Sequence[Path], out: Path | None, *, plain: bool
) -> list[FillReport]:
    """Fill pages in place, or one page into `out`. Raises InputError if a name is unknown."""
    pages, files = _given(given, records)
    if out is not None and len(pages) > 1:
        raise InputError(f"--out takes one page, found {len(pages)}.", fix="Fill each page with a command of its own.")
    filler = filler_of(held_against(pages, study, files), files)
    done = []
    for page in pages:
        filled: Filled = fill(page, filler, out, plain=plain)
        changed = sum(r.state != "up to date" for r in filled.references)
        done.append(FillReport(str(page), str(out or page), len(filled.references), changed, filled.references))
    return done


def fill_text_report(found: Sequence[FillReport]) -> str:
    """The result of filling as text for the screen."""
    lines = []
    for report in found:
        lines += [f"{report.page}:{r.line}: {r.message}" for r in report.references if r.state == "stale"]
        lines.append(
            f"wrote {report.written}: {many(report.filled, 'references')}, {report.changed} of them new or changed"
        )
    return "\n".join(lines)


def check_command(given: Sequence[Path], study: Path | None, records: Sequence[Path], *, strict: bool) -> PageCheck:
    """The state of every reference and hand-typed number of some pages."""
    pages, files = _given(given, records)
    study = held_against(pages, study, files)
    filler = filler_of(study, files)
    found = []
    for page in pages:
        references = list(fill_page(page, filler).references)
        references += _by_hand(page, study, files)
        found.append(tuple(sorted(references, key=lambda r: (r.cell or 0, r.line))))
    return PageCheck(tuple(map(str, pages)), tuple(found), strict)


def _by_hand(page: Path, study: Path | None, files: Sequence[Path]) -> Iterator[Referred]:
    """Numbers that no reference fills and no marker binds, each with the record that has its value, where one has."""
    text = prose_of(page)
    report = _report(page, study, files, load_rules(None))
    for r in report.readings:
        if r.by_reference:
            continue
        line = text.count("\n", 0, r.start) + 1
        if r.outcome == "bound" and r.name:
            message = f"{r.text} was typed by hand; write {{{{ {r.name} }}}}"
        elif r.outcome == "wrong":
            message = f"{r.text} was typed by hand and is wrong: {r.message}"
        else:
            message = f"{r.text} was typed by hand; {r.message or 'no single record has it'}"
        yield Referred("typed by hand", line, r.name or "", r.text, "", message)


def _report(page: Path, study: Path | None, files: Sequence[Path], rules: Rules) -> LintReport:
    facts = read_facts(files)
    if study is None:
        return lint_records(page, files, rules, facts)
    return lint_text(prose_of(page), read_records(Store.of(study)), rules, page, facts)


def check_text(found: PageCheck) -> str:
    """The state of the references as text for the screen: one line for each that is not up to date, then the count."""
    lines = []
    for page, references in zip(found.pages, found.references):
        for r in references:
            if r.state != "up to date":
                where = f"{page}:{r.line}" if r.cell is None else f"{page}: cell {r.cell}, line {r.line}"
                lines.append(f"{where}: {r.state}: {r.message}")
        tally = Counter(str(r.state) for r in references)
        states = ("up to date", "stale", "unknown", "unfilled", "typed by hand")
        lines.append(f"{page}: " + ", ".join(f"{tally[s]} {s}" for s in states))
        if tally["stale"] or tally["unfilled"]:
            lines.append(f"    → Fill the page: veritune writeup fill {page}")
    return "\n".join(lines)


def export_command(
    name: str,
    study: Path | None,
    records: Sequence[Path],
    form: str,
    out: Path | None,
    benchmark: str | None = None,
) -> str:
    """A table in one of the formats, written to `out` if given; `items.EVAL` is always written.

    `benchmark` is for `items.EVAL`.
    """
    if name.startswith(items.PREFIX):
        return items.export(study, name, form, out, benchmark)
    if benchmark is not None:
        raise InputError("--benchmark needs items.EVAL, but a table was named.", fix="Leave out --benchmark.")
    filler: Filler = filler_of(study, records)
    made = tables.table(name, filler.values.records, filler.files)
    text = tables.render(made, form, filler.values.records)
    if out is not None:
        write_text(out, text + "\n")
    return text


def names_command(study: Path | None, records: Sequence[Path], like: str) -> list[ReferenceName]:
    """Every name with its value."""
    filler = filler_of(study, records)
    found = []
    values = filler.values
    names = [*values.names(), *values.probes, *tables.names(values.records), *_items(filler)]
    for name in dict.fromkeys(names):
        if like.lower() not in name.lower():
            continue
        if name.startswith(("table.", items.PREFIX)):
            found.append(ReferenceName(name, None, name.partition(".")[0]))
            continue
        try:
            named = values.get(name)
        except InputError:
            continue
        found.append(ReferenceName(name, named.value, named.source))
    return found


def _items(filler: Filler) -> Iterator[str]:
    records = filler.values.records
    return items.names(records.evals if records is not None else ())


def names_text(found: Sequence[ReferenceName]) -> str:
    """The names as text for the screen."""
    return "\n".join(f"{n.name}  {'' if n.value is None else f'{n.value:.6g}'}  {n.source}".rstrip() for n in found)

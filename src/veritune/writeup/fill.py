"""`veritune writeup fill` and `check`: references in a page are filled from records, kept up to date and checked.

    Markdown, Quarto, Jupyter   {{ name | options }}  becomes  <!--v:name | options-->0.910<!--/v-->
                                a table or figure     <!--veritune:begin name--> … <!--veritune:end-->
    LaTeX                       {{ name | options }}  becomes  \\vtref{name | options}{0.910}
                                a table               % veritune:begin name … % veritune:end

Filled once, a page is filled again in place: what stands between the marks is written again from the records. What no
reference fills stays as the author wrote it. References in code are left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veritune.errors import InputError
from veritune.store import Store, write_text
from veritune.untrusted import parse_json
from veritune.writeup import tables
from veritune.writeup.facts import read_facts
from veritune.writeup.pages import read_page
from veritune.writeup.quantities import CheckedRecords, read_records
from veritune.writeup.references import Values, parse_reference, show

State = Literal["filled", "up to date", "stale", "unknown", "unfilled", "typed by hand"]


@dataclass(frozen=True, slots=True)
class Referred:
    """One reference of a page, or one number typed by hand: its place, its text and what the text should be.

    `line` counts from 1, in a notebook within the cell that `cell` (from 1) names.
    """

    state: State
    line: int
    name: str
    printed: str
    recorded: str
    message: str
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """A page after filling: its text and its references in order."""

    text: str
    references: tuple[Referred, ...]


@dataclass(frozen=True)
class Filler:
    """Fills references from records. `figures` is the folder in which `figure.NAME` is looked up."""

    values: Values
    files: tuple[Path, ...] = ()
    figures: Path | None = None

    def value(self, text: str) -> str:
        """The text for a reference. Raises InputError if nothing has its name."""
        reference = parse_reference(text)
        return show(reference, self.values.get(reference.name))

    def block(self, name: str, form: str, page: Path) -> str:
        """The text of a table or figure for a page."""
        name = name.split("|")[0].strip()
        if name.startswith("table."):
            made = tables.table(name, self.values.records, self.files)
            return tables.render(made, form, self.values.records)
        return self._figure(name.removeprefix("figure."), form, page)

    def _figure(self, name: str, form: str, page: Path) -> str:
        found = [
            p
            for suffix in (".pdf", ".png", ".svg")
            if self.figures and (p := self.figures / f"{name}{suffix}").is_file()
        ]
        preferred = [p for p in found if p.suffix in ((".pdf", ".png") if form == "latex" else (".svg", ".png"))]
        if not preferred:
            known = sorted({p.stem for p in self.figures.glob("*.provenance.json")}) if self.figures else []
            names = ", ".join(n.removesuffix(".provenance") for n in known) or "none"
            raise InputError(
                f"no figure has the name {name!r}.", fix=f"Figures: {names}; draw them with `veritune report STUDY`."
            )
        path = preferred[0]
        shown = path.resolve()
        try:
            target = shown.relative_to(page.resolve().parent).as_posix()
        except ValueError:
            target = shown.as_posix()
        if form == "latex":
            return f"\\includegraphics[width=\\linewidth]{{{target}}}"
        return f"![{name.replace('-', ' ')}]({target})"


BLOCK = r"(?:table|figure)\.[\w.\-/ ]{1,160}"
OPEN = re.compile(r"\{\{([^{}\n]{1,300})\}\}")
MD_DONE = re.compile(r"<!--v:([^>\n]{1,300}?)-->((?:(?!<!--).){0,4000}?)<!--/v-->", re.DOTALL)
MD_BLOCK = re.compile(rf"<!--veritune:begin ({BLOCK})-->(.*?)<!--veritune:end-->", re.DOTALL)
TEX_DONE = re.compile(r"\\vtref\{([^{}\n]{1,300})\}\{((?:[^{}]|\{[^{}]{0,200}\}){0,4000}?)\}")
TEX_BLOCK = re.compile(rf"^% veritune:begin ({BLOCK})$(.*?)^% veritune:end$", re.DOTALL | re.MULTILINE)
TEX_COMMAND = r"\providecommand{\vtref}[2]{#2}"
MD_CODE = re.compile(
    r"^[ \t>]{0,12}(`{3,}|~{3,}).*?(?:^[ \t>]{0,12}\1[`~]*[ \t]*$|\Z)|(?<!`)(`{1,3})(?!`)[^\n]{1,300}?(?<!`)\2(?!`)",
    re.DOTALL | re.MULTILINE,
)
TEX_CODE = re.compile(r"\\begin\{(verbatim|lstlisting|minted)\}.*?\\end\{\1\}", re.DOTALL)


@dataclass(frozen=True)
class _Syntax:
    """How references look in one kind of page."""

    form: str
    done: re.Pattern[str]
    block: re.Pattern[str]
    code: re.Pattern[str]
    wrap: Callable[[str, str], str]
    wrap_block: Callable[[str, str], str]
    escape: Callable[[str], str]


MARKDOWN = _Syntax(
    "markdown", MD_DONE, MD_BLOCK, MD_CODE, lambda ref, text: f"<!--v:{ref}-->{text}<!--/v-->",
    lambda name, text: f"<!--veritune:begin {name}-->\n{text}\n<!--veritune:end-->", lambda text: text,
)  # fmt: skip
LATEX = _Syntax(
    "latex", TEX_DONE, TEX_BLOCK, TEX_CODE, lambda ref, text: f"\\vtref{{{ref}}}{{{text}}}",
    lambda name, text: f"% veritune:begin {name}\n{text}\n% veritune:end", tables.tex,
)  # fmt: skip


def fill_page(path: Path, filler: Filler) -> Filled:
    """The page with every reference filled again. Raises InputError if the page cannot be read."""
    page = read_page(path)
    if page.kind == "notebook":
        return _fill_notebook(page.text, filler, path)
    syntax = LATEX if page.kind == "latex" else MARKDOWN
    filled = _fill_text(page.text, filler, syntax, path)
    if page.kind == "latex" and filled.references and r"\vtref}[2]" not in filled.text:
        at = filled.text.find(r"\begin{document}")
        cut = at if at >= 0 else 0
        return Filled(f"{filled.text[:cut]}{TEX_COMMAND}\n{filled.text[cut:]}", filled.references)
    return filled


def fill_text(text: str, filler: Filler, page: Path) -> Filled:
    """A Markdown text with its references filled; `page` is its future path, which figure paths are relative to."""
    return _fill_text(text, filler, MARKDOWN, page)


def _fill_notebook(text: str, filler: Filler, path: Path) -> Filled:
    """Markdown cells are pages of their own; code and outputs stay."""
    book = parse_json(text, finite=False)
    references: list[Referred] = []
    for number, cell in enumerate(book.get("cells", ()), start=1):
        if cell.get("cell_type") != "markdown":
            continue
        source = cell.get("source", "")
        joined = "".join(source) if isinstance(source, list) else str(source)
        filled = _fill_text(joined, filler, MARKDOWN, path)
        references += [_in_cell(r, number) for r in filled.references]
        cell["source"] = filled.text.splitlines(keepends=True) if isinstance(source, list) else filled.text
    if all(r.printed == r.recorded for r in references):
        return Filled(text, tuple(references))
    return Filled(json.dumps(book, ensure_ascii=False, indent=1) + "\n", tuple(references))


def _in_cell(r: Referred, number: int) -> Referred:
    return Referred(r.state, r.line, r.name, r.printed, r.recorded, r.message, number)


def _fill_text(text: str, filler: Filler, syntax: _Syntax, page: Path) -> Filled:
    code = [m.span() for m in syntax.code.finditer(text)]
    out: list[str] = []
    references: list[Referred] = []
    at = 0
    for found in _found(text, syntax):
        start, end = found[:2]
        if start < at or any(a <= start < b for a, b in code):
            continue
        line = text.count("\n", 0, start) + 1
        new, referred = _one(filler, syntax, page, found, line)
        out += [text[at:start], text[start:end] if new is None else new]
        references.append(referred)
        at = end
    return Filled("".join([*out, text[at:]]), tuple(references))


_Found = tuple[int, int, str, str | None, bool]
"""start, end, reference, what is printed or None, whether it is a block"""


def _found(text: str, syntax: _Syntax) -> Iterator[_Found]:
    """The references of a text, in order."""
    found: list[_Found] = [
        (m.start(), m.end(), m.group(1).strip(), m.group(2).strip("\n"), True) for m in syntax.block.finditer(text)
    ]
    blocks = [(a, b) for a, b, *_ in found]
    for m in syntax.done.finditer(text):
        if not any(a <= m.start() < b for a, b in blocks):
            found.append((m.start(), m.end(), m.group(1).strip(), m.group(2), False))
    taken = [(a, b) for a, b, *_ in found]
    rest = list(found)
    for m in OPEN.finditer(text):
        if not any(a <= m.start() < b for a, b in taken):
            name = m.group(1).strip()
            rest.append((m.start(), m.end(), name, None, re.fullmatch(BLOCK, name) is not None))
    return iter(sorted(rest))


def _one(filler: Filler, syntax: _Syntax, page: Path, found: _Found, line: int) -> tuple[str | None, Referred]:
    """A reference written again and what became of it; None in place of a text where it cannot be filled."""
    _, _, name, printed, block = found
    shown = printed or ""
    try:
        if block:
            text = filler.block(name, syntax.form, page)
            new = syntax.wrap_block(name, text)
        else:
            text = syntax.escape(filler.value(name))
            new = syntax.wrap(name, text)
    except InputError as exc:
        return None, Referred("unknown", line, name, shown, "", str(exc))
    if printed is None:
        return new, Referred("unfilled", line, name, "", text, f"{{{{ {name} }}}} is not filled; it is {_brief(text)}")
    if printed != text:
        message = f"{name} was filled with {_brief(shown)}; the records say {_brief(text)}"
        return new, Referred("stale", line, name, shown, text, message)
    return new, Referred("up to date", line, name, shown, text, "")


def _brief(text: str) -> str:
    line = text.strip().split("\n")[0]
    return (line[:80] + "…") if len(line) > 80 or "\n" in text.strip() else line


# ---------------------------------------------------------------- the commands


def fill(page: Path, filler: Filler, out: Path | None = None, *, plain: bool = False) -> Filled:
    """Fill a page in place, or into `out`; `plain` leaves out the marks. Nothing is written if a name is unknown."""
    filled = fill_page(page, filler)
    unknown = [r for r in filled.references if r.state == "unknown"]
    if unknown:
        more = f" ({len(unknown)} such references)" if len(unknown) > 1 else ""
        raise InputError(
            f"{page} line {unknown[0].line}: {unknown[0].message.rstrip('.')}{more}.",
            fix="Correct these names; nothing was written.",
        )
    if plain and out is None:
        raise InputError(
            "--plain leaves out the marks, so the page could not be filled again.",
            fix="Write the plain page to another file: --out FILE.",
        )
    text = without_marks(filled.text, page) if plain else filled.text
    target = out or page
    if not target.exists() or target.read_bytes() != text.encode():
        write_text(target, text)
    return filled


def without_marks(text: str, page: Path) -> str:
    """A filled page without its reference marks."""
    if page.suffix.lower() == ".tex":
        text = TEX_BLOCK.sub(lambda m: m.group(2).strip("\n"), text)
        return TEX_DONE.sub(lambda m: m.group(2), text).replace(TEX_COMMAND + "\n", "")
    if page.suffix.lower() == ".ipynb":
        book = parse_json(text, finite=False)
        for cell in book.get("cells", ()):
            if cell.get("cell_type") == "markdown":
                source = cell["source"]
                joined = "".join(source) if isinstance(source, list) else source
                plain = without_marks(joined, Path("cell.md"))
                cell["source"] = plain.splitlines(keepends=True) if isinstance(source, list) else plain
        return json.dumps(book, ensure_ascii=False, indent=1) + "\n"
    text = MD_BLOCK.sub(lambda m: m.group(2).strip("\n"), text)
    return MD_DONE.sub(lambda m: m.group(2), text)


def filler_of(study: Path | None, files: Sequence[Path], *, held: CheckedRecords | None = None) -> Filler:
    """The filler from a study, record files, or both. Raises InputError if neither is given."""
    if study is None and held is None and not files:
        raise InputError(
            "expected records to fill from, found none.", fix="Add --study STUDY, or --records results.json"
        )
    store = Store.of(study) if study is not None else None
    records = held if held is not None else (read_records(store) if store is not None else None)
    figures = records.root / "figures" if records is not None else None
    return Filler(Values(records, read_facts(files)), tuple(files), figures)

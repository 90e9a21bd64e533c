"""A page as text: Markdown, Quarto, LaTeX and Jupyter notebooks; and its prose as Markdown, for lint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veritune.errors import InputError
from veritune.untrusted import parse_json

PAGES = (".md", ".markdown", ".qmd", ".rmd", ".tex", ".ipynb", ".txt")
PageKind = Literal["markdown", "latex", "notebook"]


@dataclass(frozen=True, slots=True)
class Page:
    """A page as stored on disk."""

    kind: PageKind
    text: str


def read_page(path: Path) -> Page:
    """The page at a path. Raises InputError if it is missing, not UTF-8, or a damaged notebook."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise InputError(
            f"no write-up at {path}.", fix="Draft one: veritune writeup draft STUDY --out PAGE.md"
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a Markdown, LaTeX or notebook file.") from None
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not UTF-8 (byte {exc.start}).", fix="Save it as UTF-8.") from exc
    suffix = path.suffix.lower()
    if suffix != ".ipynb":
        return Page("latex" if suffix == ".tex" else "markdown", text)
    try:
        book = parse_json(text, finite=False)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path} is not a notebook: {str(exc)[:120]}.", fix="Save it as a Jupyter notebook.") from exc
    cells = book.get("cells") if isinstance(book, dict) else None
    if not isinstance(cells, list) or not all(isinstance(c, dict) for c in cells):
        raise InputError(f"{path} is not a notebook: it has no cells.", fix="Save it as a Jupyter notebook (format 4).")
    if any(not isinstance(part, str) for c in cells if isinstance(c.get("source"), list) for part in c["source"]):
        raise InputError(
            f"{path} is not a notebook: the source of a cell is not text.", fix="Save it as a Jupyter notebook."
        )
    return Page("notebook", text)


def held_against(pages: Sequence[Path], study: Path | None, records: Sequence[Path]) -> Path | None:
    """The study that pages are held against: the one named, or without any records the one whose folder they lie in."""
    if study is not None or records:
        return study
    folders = {page.resolve().parent for page in pages}
    return next((f for f in folders if len(folders) == 1 and (f / "contract.lock.json").is_file()), None)


def prose_of(path: Path) -> str:
    """The page as Markdown source: a notebook's Markdown cells, LaTeX with its commands blanked."""
    page = read_page(path)
    if page.kind == "notebook":
        cells = [c for c in parse_json(page.text, finite=False)["cells"] if c.get("cell_type") == "markdown"]
        sources = [c.get("source", "") for c in cells]
        return "\n\n".join("".join(s) if isinstance(s, list) else str(s) for s in sources) + "\n"
    return _without_commands(page.text) if page.kind == "latex" else page.text


_TEX_HEADING = re.compile(r"\\((?:sub){0,2})section\*?\{")
_TEX_SKIPPED = re.compile(
    r"(?<!\\)%[^\n]*|\\begin\{(verbatim|lstlisting|minted)\}.*?\\end\{\1\}|"
    r"\\(?:cite\w*|ref|label|eqref|autoref|includegraphics|bibliography\w*|usepackage|documentclass|url|input|include|"
    r"vspace|hspace|setlength|pagestyle|newcommand|providecommand)\*?(?:\[[^\]]{0,300}\])?(?:\{[^{}]{0,300}\}){0,2}|"
    r"\\(?:begin|end)\{[^{}]{1,60}\}(?:\[[^\]]{0,60}\])?(?:\{[lcrp@|{}.\d\s\w]{0,60}\})?",
    re.DOTALL,
)
_TEX_COMMAND = re.compile(r"\\(?!pm\b|times\b|cdot\b|%|,)[a-zA-Z]+\*?|(?<![\\^])[{}$&~]|\\\\|\\(?=[&_#$])")
_TEX_REFERENCE = re.compile(r"\\vtref\{([^{}\n]{1,300})\}")


_TEX_TABLE = re.compile(r"(\\begin\{(tabular[x*]?|longtable)\}[^\n]*\n)(.{0,60000}?)(?=\\end\{\2\})", re.DOTALL)
_TEX_RULE = re.compile(
    r"\\(?:toprule|midrule|bottomrule|hline|addlinespace|cmidrule|cline)\b(?:\([^)]{0,20}\)|\[[^\]]{0,20}\]|\{[^}]{0,20}\})*"
)
_TEX_SPAN = re.compile(r"\\multicolumn\{(\d{1,2})\}\{[^{}]{0,40}\}\{((?:[^{}]|\{[^{}]{0,200}\}){0,400})\}")


def _pipe_table(match: re.Match[str]) -> str:
    """A tabular as a pipe table, line by line; as it was where no rule stands behind its first row."""
    body = _TEX_SPAN.sub(lambda m: m.group(2) + " &" * (int(m.group(1)) - 1), match.group(3))
    lines: list[str] = []
    width, rows, ruled, row = 0, 0, False, ""
    for line in body.split("\n"):
        plain = re.sub(r"(?<!\\)%.*", "", _TEX_RULE.sub("", line)).strip()
        row = f"{row} {plain}".strip()
        if not plain:
            if rows == 1 and not ruled and _TEX_RULE.search(line):
                ruled = True
                lines.append("|" + "---|" * width)
            else:
                lines.append("|" + "  |" * width if width and _TEX_RULE.search(line) else "")
        elif not row.endswith("\\\\") and not re.search(r"\\\\\s*\[[^\]]{0,12}\]$", row):
            lines.append("|" + "  |" * width if ruled else "")  # the row goes on in the next line
        else:
            cells = re.split(r"(?<!\\)&", re.sub(r"\\\\\s*(?:\[[^\]]{0,12}\])?$", "", row).replace("|", r"\|"))
            width = width or len(cells)
            lines.append("| " + " | ".join(c.strip() for c in cells) + " |")
            row, rows = "", rows + 1
    return match.group(1) + ("\n".join(lines) if ruled else match.group(3))


def _without_commands(text: str) -> str:
    """LaTeX with every command blanked by as many spaces, sections as headings, tabulars as tables; LaTeX numbers stay
    as they are."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    text = _TEX_TABLE.sub(_pipe_table, _TEX_REFERENCE.sub(blank, text))
    text = _TEX_SKIPPED.sub(blank, text)
    text = _TEX_HEADING.sub(lambda m: ("#" * (1 + len(m.group(1)) // 3)).ljust(len(m.group())), text)
    return "\n".join(
        line.lstrip() if not line.startswith("#") else line for line in _TEX_COMMAND.sub(blank, text).split("\n")
    )

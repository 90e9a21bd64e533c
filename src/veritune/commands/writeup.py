"""`veritune lint` and `veritune writeup ...`: texts that are checked against the records, or filled from them."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import GithubOption, JsonOption, JunitOption, MarkdownOption, StudyArg
from veritune.commands.output import Shown, json_text
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import files, pipes
    from veritune.writeup import draft as drafts
    from veritune.writeup import pagework
    from veritune.writeup.lint import check as lints
    from veritune.writeup.lint import ci as lint_cases
else:
    files, pipes = lazy("veritune.files"), lazy("veritune.pipes")
    drafts, lints = lazy("veritune.writeup.draft"), lazy("veritune.writeup.lint.check")
    pagework, lint_cases = lazy("veritune.writeup.pagework"), lazy("veritune.writeup.lint.ci")

PageArg = Annotated[
    list[Path],
    typer.Argument(help="The page: Markdown, Quarto, LaTeX or Jupyter; record files may follow.", show_default=False),
]
ForStudy = Annotated[
    Path | None, typer.Option("--study", help="The study that the page describes: its file or folder.")
]
RecordsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--records", help="Records of any kind: JSON, JSONL, CSV, TSV, YAML, MLflow runs. Further files may follow."
    ),
]


def lint(
    pages: PageArg,
    study: ForStudy = None,
    records: RecordsOption = None,
    rules: Annotated[Path | None, typer.Option(help="A file that switches rules on or off, or adds rules.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="A profile with further rules: clean-result, or a YAML file of your own.")
    ] = None,
    markdown: MarkdownOption = None,
    junit: JunitOption = None,
    github: GithubOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check every number and claim of a write-up against a study, or against record files of any kind."""
    shown = Shown(as_json, markdown, junit, github)
    with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
        spool = pipes.Spool(Path(folder))
        held, texts = [spool.file(p, ".csv") for p in records or []], [spool.file(p, ".md") for p in pages]
        found, code = lints.lint_command(texts, study, held, rules, profile)
        report = lint_cases.without_folder(found, Path(folder))
    shown.show(lint_cases.check_report(report), report, partial(lints.render_text, report))
    exit_unless(not code, code)


def draft(
    study: StudyArg,
    out: Annotated[Path | None, typer.Option(help="Write the draft here instead of to the screen.")] = None,
) -> None:
    """Draft a write-up from the records, with its numbers as filled references. The draft passes `lint`."""
    text = drafts.writeup(study, out)
    print(text if out is None else f"wrote {out}")


def fill(
    pages: PageArg,
    study: ForStudy = None,
    records: RecordsOption = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead of in place.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="With --out: leave out the reference marks.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fill a page's references from the records, in place; references filled before are updated."""
    filled = pagework.fill_command(pages, study, records or [], out, plain=plain)
    put(json_text(filled) if as_json else pagework.fill_text_report(filled), raw=as_json)


def check(
    pages: PageArg,
    study: ForStudy = None,
    records: RecordsOption = None,
    strict: Annotated[bool, typer.Option("--strict", help="Also report numbers that were typed by hand.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List references that are stale, unknown or not filled, and numbers that were typed by hand."""
    checked = pagework.check_command(pages, study, records or [], strict=strict)
    put(json_text(checked) if as_json else pagework.check_text(checked), raw=as_json)
    exit_unless(checked.clean)


def export(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A table (table.scores.EVAL) or an eval's scores (items.EVAL); without it, all names are listed.",
            show_default=False,
        ),
    ] = None,
    study: ForStudy = None,
    records: RecordsOption = None,
    form: Annotated[
        str,
        typer.Option(
            "--as",
            help="Format: a table as markdown, latex, csv or model-index; items.EVAL as parquet, inspect, "
            "every-eval-ever or eval-results.",
        ),
    ] = "markdown",
    benchmark: Annotated[
        str | None, typer.Option(help="For items.EVAL: the hub data set of the items, OWNER/NAME[:TASK].")
    ] = None,
    like: Annotated[str, typer.Option(help="Without a table: list only names that contain this text.")] = "",
    out: Annotated[Path | None, typer.Option(help="Write here instead of to the screen.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a table of the records, write an eval's scores for other tools, or list all names."""
    if name is None:
        listed = pagework.names_command(study, records or [], like)
        text = json_text(listed) if as_json else pagework.names_text(listed)
        if out is not None:
            files.write_text(out, text + "\n")
    elif like:
        raise InputError(
            "--like filters the list of names, but a table was named.", fix="Leave out --like or the table."
        )
    else:
        text = pagework.export_command(name, study, records or [], form, out, benchmark)
        text = json_text({name: text}) if as_json else text
    print(text if out is None else f"wrote {out}")

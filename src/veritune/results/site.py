"""The results index as pages that open from disk: no script, no request, every text escaped.

`index.html` lists the results, `R1.html` is one of them, `mistakes.html` and `runbook.html` are what their names say.
Written from the index as it is; nothing reads the pages back.
"""

from __future__ import annotations

import base64
import hashlib
import os
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import ChoiceLoader, Environment, PackageLoader, PrefixLoader
from markupsafe import Markup

from veritune.errors import InputError
from veritune.files import disk_errors, make_folder, read_text, sha256_file, write_text
from veritune.report.page import environment
from veritune.results.index import Result, ResultsIndex
from veritune.results.screen import source_facts, standing_lines, summary, verdict_words

MARKER = '<meta name="generator" content="veritune results">'
PAGES = ("index", "mistakes", "runbook")


def write_site(index: ResultsIndex, folder: Path, out: Path) -> Path:
    """Write the pages into `out`; returns the path of the first page. An earlier export in that folder is overwritten.

    Raises InputError where `out` holds an index.html that is not ours, StoreError where the disk refuses.
    """
    first = out / "index.html"
    if first.exists() and MARKER not in read_text(first):
        raise InputError(f"{first} was not written by this command.", fix="Name a new folder: --site FOLDER.")
    pages = {f"{name}.html": _page(name, index, folder, out) for name in PAGES}
    for result in index.results:
        pages[f"{result.id}.html"] = _page("result", index, folder, out, result=result)
    with disk_errors(out):
        make_folder(out)
    for name in sorted(pages, key=lambda name: name == "index.html"):  # the list last: it links to pages that are there
        write_text(out / name, pages[name])
    return first


def _page(name: str, index: ResultsIndex, folder: Path, out: Path, **more: Any) -> str:
    style = Markup(_style())
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    result: Result | None = more.get("result")
    text = (
        _environment()
        .get_template(f"results/{name}.html.j2")
        .render(
            css=style,
            policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            marker=Markup(MARKER),
            index=index,
            summary=summary(index),
            page=name,
            report=_report_link(result, folder, out) if result is not None else None,
            words=verdict_words,
            standing=standing_lines,
            facts=source_facts,
            **more,
        )
    )
    return str(text).encode("utf-8", "replace").decode()


def _report_link(result: Result, folder: Path, out: Path) -> str | None:
    """The study's report as seen from the site, where it is the report that was added; None where it is not."""
    report = (folder / result.source.folder / "report.html").resolve()
    if not report.is_file() or sha256_file(report) != result.source.report_sha256:
        return None
    return quote(Path(os.path.relpath(report, out.resolve())).as_posix(), safe="/")


def _style() -> str:
    own = files("veritune.results").joinpath("templates/site.css").read_text(encoding="utf-8")
    return files("veritune.report").joinpath("templates/report.css").read_text(encoding="utf-8") + own


@cache
def _environment() -> Environment:
    found: Environment = environment().overlay(
        loader=ChoiceLoader(
            [
                PrefixLoader({"results": PackageLoader("veritune.results", "templates")}),
                PackageLoader("veritune.report"),
            ]
        )
    )
    return found

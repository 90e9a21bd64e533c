"""report.html: one self-contained page drawn from the records. It computes nothing.

The page loads nothing and runs nothing: a content policy in its head forbids scripts, requests and every style but its
own sheet. All text from records goes through jinja2's escaping.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from veritune.config.study import Study
from veritune.decide.wording import number, signed
from veritune.report import views
from veritune.report.figures import SERIES, Drawn, draw_all
from veritune.report.probes import blocks
from veritune.report.read import Records, read_records
from veritune.store import Store, write_text

UNKNOWN = Markup('<span class="unknown">not recorded</span>')
# Characters that change how text is read without being seen: controls, and those that turn its direction round.
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def write_report(store: Store, study: Study) -> Path:
    """Draw `report.html` and `figures/` from the study folder's records; the page's path.

    A record that is missing or damaged is named on the page. Raises StoreError where the folder cannot be written.
    """
    records = read_records(store, study)
    write_text(store.report_file, render(records, draw_all(store, records)))
    return store.report_file


def render(records: Records, drawn: Sequence[Drawn]) -> str:
    """The page's text. The same records and drawings give the same text."""
    css = Markup(files("veritune.report").joinpath("templates/report.css").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            css=css,
            policy=f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
            records=records,
            study=records.study,
            claims=views.claims(records),
            scores=views.scores(records),
            losses=views.losses(records),
            gaps=views.gaps(records),
            probes=blocks(records),
            conditions=views.conditions(records),
            training=views.training(records),
            samples=views.samples(records),
            data=views.data(records),
            timeline=views.timeline(records),
            reproduction=views.reproduction(records),
            figures={group: [d for d in drawn if d.group == group] for group in ("zones", "training", "gradients")},
            series={name: f"s{i % len(SERIES) + 1}" for i, name in enumerate(records.study.conditions)},
        )
    )
    return str(page).encode("utf-8", "replace").decode()


@cache
def environment() -> Any:
    """The templates with their filters: everything is escaped, undefined names are errors."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("veritune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_seen,
    )
    environment.filters |= {
        "count": lambda x: _known(x, lambda v: f"{v:,}"),
        "fixed": _fixed,
        "number": lambda x: _known(x, number),
        "signed": lambda x: _known(x, signed),
        "percent": lambda x: _known(x, lambda v: f"{100 * v:.3g} %"),
        "general": lambda x: _known(x, lambda v: f"{v:.6g}"),
        "known": lambda x: UNKNOWN if x is None else x,
        "setting": _setting,
        "grouped": _grouped,
        "href": lambda path: "./" + quote(str(path), safe="/"),
        "get": views.get,
    }
    return environment


def _fixed(value: Any, places: int = 3) -> Any:
    return _known(value, lambda v: f"{v:.{places}f}")


def _grouped(paths: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Paths for a source line: the same file of several runs becomes one entry with the runs' ids."""
    of_runs: dict[str, list[tuple[str, str]]] = {}
    for path in dict.fromkeys(paths):
        match = re.fullmatch(r"runs/([^/]+)/(.+)", path)
        of_runs.setdefault(match.group(2) if match else path, []).extend([(match.group(1), path)] if match else [])
    return [(runs[0][1], []) if len(runs) == 1 else (file, runs) for file, runs in of_runs.items()]


def _known(value: Any, form: Any) -> Any:
    if value is None:
        return UNKNOWN
    return form(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _setting(value: Any) -> Any:
    """A setting as it stands in a record: lists joined, `none` for null."""
    if value is None:
        return Markup('<span class="unknown">none</span>')
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value


def _seen(value: Any) -> Any:
    """Make unseen characters of record text visible, so that a page reads as it is stored. Markup passes."""
    if value is None:
        return UNKNOWN
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return UNSEEN.sub(lambda match: f"‹U+{ord(match.group()):04X}›", value)
    return value

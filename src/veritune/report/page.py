"""report.html: one self-contained page drawn from the records. It computes nothing.

The page loads nothing and runs nothing: a content policy in its head forbids scripts, requests and every style but its
own sheet. All text from records goes through jinja2's escaping.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from markupsafe import Markup

from veritune.config.study import Study
from veritune.decide.wording import number, signed
from veritune.drawing import SERIES
from veritune.evaluate.means import zone_mean
from veritune.records import JsonLike
from veritune.report import outputs, views
from veritune.report.caveats import caveat_facts
from veritune.report.figures import Drawn, draw_all
from veritune.report.probes import blocks
from veritune.report.read import Records, read_records
from veritune.report.summary import summary, weaknesses
from veritune.store import OUTPUT_PAGE, Store, hash_of, remove, sha256_text, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Environment

ALL_RUNS = "runs.csv"
GROUPS = ("zones", "scores", "plan", "training", "gradients", "probes")
UNKNOWN = Markup('<span class="unknown">not recorded</span>')
# Characters that change how text is read without being seen: controls, and those that turn its direction round.
UNSEEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def write_report(store: Store, study: Study) -> Path:
    """Draw `report.html` and `figures/` from the study folder's records; returns the page's path.

    Where there are many outputs they stand on pages in `report.outputs/`. A record that is missing or damaged is named
    on the page. Raises StoreError where the folder cannot be written.
    """
    records = read_records(store, study)
    drawn = draw_all(store, records)
    if len(records.every_run) > len(records.runs):
        write_text(store.figures / ALL_RUNS, runs_table(records))
    beside = None if outputs.fits_inline(records) else _write_outputs(store, records)
    write_text(store.report_file, render(records, drawn, beside))
    _remove_stale(store, set(beside.pages if beside is not None else ()))
    return store.report_file


@dataclass(frozen=True)
class Beside:
    """The pages beside the report: what the report shows of them, and the SHA-256 of each by name."""

    evals: Sequence[outputs.AllOutputs]
    pages: Mapping[str, str]

    @property
    def sha256(self) -> str:
        """One hash over all pages, so that the report's hash covers them too."""
        return hash_of(self.pages)


def _write_outputs(store: Store, records: Records) -> Beside:
    """Write every output and every list of differences into pages beside the report."""
    layout, pages = outputs.Layout(records), {}
    css, policy = _sheet()
    template = environment().get_template("beside.html.j2")
    shared = {"css": css, "policy": policy, "records": records, "study": records.study, "series": _series(records)}
    for page in layout.pages():
        text = str(template.render(page=page, **shared)).encode("utf-8", "replace").decode()
        write_text(store.outputs / page.name, text)
        pages[page.name] = sha256_text(text)
    return Beside(layout.views, pages)


def _remove_stale(store: Store, names: set[str]) -> None:
    """Remove pages of ours that these records no longer give, and the folder where nothing is left in it."""
    for path in sorted(store.outputs.glob("*.html")):
        if OUTPUT_PAGE.fullmatch(path.name) and path.name not in names:
            remove(path)
    if store.outputs.is_dir() and not any(store.outputs.iterdir()):
        store.outputs.rmdir()


def runs_table(records: Records) -> str:
    """Every run's scores and losses as CSV, one line per zone: the complete table beside a page that shows a part of
    it.
    """
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(("run_id", "condition", "seed", "what", "zone", "value", "n"))
    for run in records.every_run:
        named = (run.run_id, run.condition, run.seed)
        for name, by_zone in (run.summary.scores if run.summary is not None else {}).items():
            table.writerows((*named, name, zone, score.mean, score.scored) for zone, score in by_zone.items())
        table.writerows((*named, "nll", zone, loss.nll, loss.target_tokens) for zone, loss in run.losses.items())
    return stream.getvalue()


def _sheet() -> tuple[Markup, str]:
    """The style sheet, and the content policy that allows it alone."""
    css = Markup(files("veritune.report").joinpath("templates/report.css").read_text(encoding="utf-8"))
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    return css, f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _series(records: Records) -> dict[str, str]:
    """The class that colours each condition."""
    return {name: f"s{i % len(SERIES) + 1}" for i, name in enumerate(records.study.conditions)}


def render(records: Records, drawn: Sequence[Drawn], beside: Beside | None = None) -> str:
    """The page's HTML. The same records and drawings give the same text. Without `beside` it contains all outputs."""
    css, policy = _sheet()
    claims = views.claims(records)
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            css=css,
            policy=policy,
            records=records,
            all_runs=f"figures/{ALL_RUNS}" if len(records.every_run) > len(records.runs) else None,
            study=records.study,
            claims=claims,
            summary=summary(records, claims),
            **caveat_facts(records),
            scores=views.scores(records),
            losses=views.losses(records),
            gaps=views.gaps(records),
            probes=blocks(records),
            conditions=views.conditions(records),
            training=views.training(records),
            samples=outputs.samples(records),
            beside=beside,
            all_outputs=beside.evals if beside is not None else outputs.inline(records),
            data=views.data(records),
            timeline=views.timeline(records),
            reproduction=views.reproduction(records),
            figures={group: [d for d in drawn if d.group == group] for group in GROUPS},
            series=_series(records),
        )
    )
    return str(page).encode("utf-8", "replace").decode()


@cache
def environment() -> Environment:
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
        "mean_of_all": lambda cell: mean.value if (mean := zone_mean(cell)) is not None else None,
        "number": lambda x: _known(x, number),
        "signed": lambda x: _known(x, signed),
        "percent": lambda x: _known(x, lambda v: f"{100 * v:.3g} %"),
        "general": lambda x: _known(x, lambda v: f"{v:.6g}"),
        "known": lambda x: UNKNOWN if x is None else x,
        "setting": _setting,
        "grouped": _grouped,
        "href": lambda path: "./" + quote(str(path), safe="/"),
        "get": views.get,
        "weaknesses": weaknesses,
    }
    return environment


def _fixed(value: JsonLike, places: int = 3) -> JsonLike:
    return _known(value, lambda v: f"{v:.{places}f}")


def _grouped(paths: Sequence[str]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Paths for a source line: the same file of several runs becomes one entry with the runs' ids."""
    of_runs: dict[str, list[tuple[str, str]]] = {}
    for path in dict.fromkeys(paths):
        match = re.fullmatch(r"runs/([^/]+)/(.+)", path)
        of_runs.setdefault(match.group(2) if match else path, []).extend([(match.group(1), path)] if match else [])
    return [(runs[0][1], []) if len(runs) == 1 else (file, runs) for file, runs in of_runs.items()]


def _known(value: JsonLike, form: Callable[[int | float], str]) -> JsonLike:
    if value is None:
        return UNKNOWN
    return form(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _setting(value: JsonLike) -> JsonLike:
    """A setting as it stands in a record: lists joined, `none` for null."""
    if value is None:
        return Markup('<span class="unknown">none</span>')
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value


def _seen(value: JsonLike) -> JsonLike:
    """Make unseen characters of record text visible, so that a page reads as it is stored. Markup passes."""
    if value is None:
        return UNKNOWN
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return UNSEEN.sub(lambda match: f"‹U+{ord(match.group()):04X}›", value)
    return value

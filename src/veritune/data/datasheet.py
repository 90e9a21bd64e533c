"""The datasheet: one Markdown and one JSON file about a dataset, every number traced to the findings it counts.

A number names the file and the check it was counted from; `recount` counts it again, so a datasheet can be held against
its findings. What only the owner of the data can know is left open by name, never made up. The questions follow
Gebru et al., Datasheets for Datasets (2021).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.counting import grouped
from veritune.data.review import Version, draw_lineage
from veritune.data.split import stratum_of
from veritune.records import to_json
from veritune.store import read_jsonl, write_json, write_text

if TYPE_CHECKING:
    from veritune.data.audit import AuditReport

OPEN_QUESTIONS = (
    "Why was this dataset made, and by whom?",
    "How were the rows collected or generated, and with which models?",
    "Are the rows about people, and did these people consent?",
    "What should it not be used for?",
    "Who maintains it, and where are errors reported?",
)


PICTURE = "lineage.svg"
DrawVersions = Callable[[Sequence[Version], Path], None]
"""Draws versions into a file; `veritune.report.lineage_figures` has one, the folder of their ledger bound to it."""


@dataclass(frozen=True, slots=True)
class SheetNumber:
    """One number: `value` out of `of` (None if it is not a share), and the file it was counted in.

    `count` is `rows` (distinct row ids), `findings` (lines) or `families` (distinct families); `check` selects lines.
    """

    name: str
    value: int
    of: int | None
    file: str
    count: str
    check: str | None = None

    @property
    def trace(self) -> str:
        what = f", check `{self.check}`" if self.check else ""
        return f"{self.count} in `{self.file}`{what}"


@dataclass(frozen=True, slots=True)
class Datasheet:
    """The Markdown text and the JSON record of a datasheet; both hold the same numbers."""

    markdown: str
    record: Mapping[str, Any]


def datasheet(report: AuditReport, picture: str | None = None) -> Datasheet:
    """The datasheet of an audited dataset. `picture` is the file beside it that shows the lineage; None without one."""
    numbers = _numbers(report)
    sources = Counter(stratum_of(row, "source") for row in report.rows)
    licences = _licences(report)
    record = {
        "source": report.source,
        "sha256": report.sha256,
        "records_read": report.n_read,
        "rows": len(report.rows),
        "rows_by_source": dict(sorted(sources.items())),
        "licences": licences,
        "numbers": to_json(numbers),
        "families": to_json(report.families.summary),
        "evals": to_json(report.evals),
        "gate": to_json(report.gate) if report.gate else None,
        "rendering": to_json(report.rendering) if report.rendering else None,
        "lineage": to_json(report.versions),
        "open_questions": dict.fromkeys(OPEN_QUESTIONS),
    }
    return Datasheet(_markdown(report, numbers, sources, licences, picture), record)


def write_datasheet(report: AuditReport, folder: str | Path, draw: DrawVersions | None = None) -> tuple[Path, Path]:
    """Write datasheet.md and datasheet.json into `folder`; `draw` adds lineage.svg where versions are known."""
    versions = report.versions if draw is not None else ()
    sheet = datasheet(report, PICTURE if versions else None)
    md, js = Path(folder) / "datasheet.md", Path(folder) / "datasheet.json"
    write_text(md, sheet.markdown)
    if draw is not None and versions:
        draw(versions, Path(folder) / PICTURE)
    write_json(js, sheet.record)
    return md, js


def recount(number: SheetNumber | Mapping[str, Any], folder: str | Path) -> int:
    """The number, counted again from the file that it names."""
    n = number if isinstance(number, SheetNumber) else SheetNumber(**number)
    lines = read_jsonl(Path(folder) / n.file)
    chosen = [line for line in lines if n.check is None or line.get("check") == n.check]
    key = {"rows": "row_id", "families": "family"}.get(n.count)
    return len(chosen) if key is None else len({line[key] for line in chosen if line[key] is not None})


def _numbers(report: AuditReport) -> tuple[SheetNumber, ...]:
    n = len(report.rows)
    summary = report.families.summary
    numbers = [
        SheetNumber("usable rows", n, report.n_read, "families.jsonl", "rows"),
        SheetNumber("originals (families)", summary["originals"], n, "families.jsonl", "families"),
    ]
    for check, k in sorted(Counter(f.check for f in report.rejects).items()):
        numbers.append(SheetNumber(f"rejected: {check}", k, report.n_read, "findings.jsonl", "findings", check))
    if report.contamination is not None:
        rows = {hit.row_id for hit in report.contamination.hits}
        numbers.append(SheetNumber("rows that touch an eval", len(rows), n, "contamination.jsonl", "rows"))
    flagged: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.row_id is not None and finding.check.startswith(("quality.", "render.")):
            flagged.setdefault(finding.check, set()).add(finding.row_id)
    for check in sorted(flagged):
        numbers.append(SheetNumber(check, len(flagged[check]), n, "findings.jsonl", "rows", check))
    return tuple(numbers)


def _licences(report: AuditReport) -> dict[str, int] | None:
    """Rows by licence as the data names it, None when no row names one."""
    fields = report.config.quality.licence_fields
    named = [str(next((row.meta[f] for f in fields if row.meta.get(f)), "not stated")) for row in report.rows]
    counts = Counter(named)
    return dict(counts.most_common()) if set(counts) - {"not stated"} else None


def _markdown(
    report: AuditReport,
    numbers: Sequence[SheetNumber],
    sources: Mapping[str, int],
    licences: Mapping[str, int] | None,
    picture: str | None,
) -> str:
    s = report.families.summary
    lines = [
        f"# Datasheet: {_cell(report.source)}",
        "",
        f"SHA-256 `{report.sha256}`. {grouped(report.n_read, 'records')} read, {len(report.rows):,} usable.",
        "",
        "## Numbers",
        "",
        "| what | number | of | counted from |",
        "| --- | ---: | ---: | --- |",
        *(f"| {_cell(n.name)} | {n.value:,} | {'' if n.of is None else f'{n.of:,}'} | {n.trace} |" for n in numbers),
        "",
        "## Composition",
        "",
        "| source | rows |",
        "| --- | ---: |",
        *(f"| {_cell(name)} | {n:,} |" for name, n in sorted(sources.items())),
        "",
    ]
    if s["rows"]:
        lines += [
            f"{s['variants']:,} of {s['rows']:,} rows ({s['variant_share']:.1%}) are variants of another row; "
            f"the largest family has {s['size_max']:,} rows.",
            "",
        ]
    lines += ["## Contamination", "", *_gate_lines(report), "", "## Rendering", "", *_render_lines(report), ""]
    lines += ["## Licence", ""]
    lines += (
        [f"- {_cell(name)}: {n:,} rows" for name, n in licences.items()] if licences else ["No row names a licence."]
    )
    drawn = draw_lineage(report.versions)
    image = [f"![Lineage]({picture})", ""] if picture is not None else []
    tree = ["~~~text", drawn, "~~~"] if drawn else ["No earlier version is recorded."]
    lines += ["", "## Lineage", "", *image, *tree, ""]
    lines += ["## For the owner to answer", "", *(f"- {question} *Not stated.*" for question in OPEN_QUESTIONS), ""]
    return "\n".join(lines)


def _gate_lines(report: AuditReport) -> list[str]:
    if report.gate is None or report.contamination is None:
        return ["Not checked: no eval was given."]
    lines = [
        f"Gate **{report.gate.status}**: {report.gate.message}",
        "",
        "| eval | items | exact | near-copies | to review |",
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for name, n in report.contamination.by_eval.items():
        counts = " | ".join(f"{n[k]:,}" for k in ("items", "items_exact", "items_confirmed", "items_review"))
        lines.append(f"| {_cell(name)} | {counts} |")
    return lines


def _render_lines(report: AuditReport) -> list[str]:
    if report.rendering is None:
        return ["Not measured: no tokenizer was given."]
    lines = ["| source | rows | mean | p50 | p90 | p95 | max |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, n in report.rendering.tokens.items():
        if n.mean is not None:
            lines.append(
                f"| {_cell(name)} | {n.n:,} | {n.mean:.1f} | {n.p50:.0f} | {n.p90:.0f} | {n.p95:.0f} | {n.max} |"
            )
    return lines


def _cell(text: str) -> str:
    """Text safe inside a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")

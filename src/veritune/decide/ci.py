"""A comparison for a pipeline: its table for a pull request, and a case each (`veritune.ci` has the forms)."""

from __future__ import annotations

from veritune.ci import CheckCase, CheckReport, verdict_line
from veritune.ci import markdown_cell as _cell
from veritune.decide import wording
from veritune.decide.commands import CompareReport, ComparisonReport
from veritune.decide.screen import render_comparison


def title(c: ComparisonReport) -> str:
    """The title of one comparison: `tuned against base on gsm8k`."""
    where = f" on {c.eval}" if c.eval else ""
    zone = f" ({c.zone} items)" if c.zone else ""
    return f"{c.a} against {c.b}{where}{zone}"


def verdict(c: ComparisonReport) -> str:
    """Whether the demand was met, if there was one; otherwise the decision."""
    if c.demand is None:
        return f"{c.decision}: {c.reason}"
    name = c.demand.demand.replace("_", " ")
    return f"{name} {'holds' if c.demand.met else 'does not hold'}: {c.demand.why}"


def check_report(report: CompareReport) -> CheckReport:
    """The comparisons as checks for CI; one without a demand passes."""
    return CheckReport("veritune compare", tuple(_case(c) for c in report.comparisons), markdown(report))


def _case(c: ComparisonReport) -> CheckCase:
    demand = "" if c.demand is None else f": {c.demand.demand}"
    return CheckCase(
        title=f"{title(c)}{demand}",
        group=c.eval or "compare",
        passed=c.demand is None or c.demand.met,
        says=verdict(c),
        body=render_comparison(c),
        kind="" if c.demand is None else c.demand.demand,
        warnings=tuple(c.warnings),
    )


def markdown(report: CompareReport) -> str:
    """The comparisons as Markdown for a pull request: for each a table, the sentence that may be written, and
    warnings."""
    return "\n".join(line for c in report.comparisons for line in _markdown(c))


def _markdown(c: ComparisonReport) -> list[str]:
    binary, first = "tables" in c.details, c.estimates[0]
    margin = "" if c.margin is None else f" at a margin of {c.margin:g}"
    lines = [f"### {_cell(title(c))}", ""]
    if c.demand is not None:
        lines += [verdict_line(c.demand.met, verdict(c)), ""]
    corrected = "" if c.p_corrected is None else f"; corrected {wording.p_text(c.p_corrected)}"
    p = "" if first.p is None else f", {wording.p_text(first.p, first.p_floor)} ({first.p_method}{corrected})"
    equivalence = []
    if c.margin is not None and first.low is not None:
        equivalence = [("for equivalence", wording.equivalence_text(c.details, first, c.margin))]
    more = []
    if c.frozen_rule:
        more.append(("frozen rule", wording.rule_text(c.frozen_rule, c.a, c.b)))
    if c.memorisation:
        more.append(("memorised?", f"not tested: {c.memorisation}"))
    rows = [
        (c.a, wording.rate_text(c.details["a"], binary=binary)),
        (c.b, wording.rate_text(c.details["b"], binary=binary)),
        ("gap", f"{wording.signed(first.value or 0.0)}, {wording.interval_text(first, c.margin)}{p}"),
        *equivalence,
        ("decision", f"{c.decision}{margin}: {c.reason}"),
        ("items", f"{c.n}; {c.flipped.to_a} better in {c.a}, {c.flipped.to_b} in {c.b}"
         if c.higher_is_better is not None else f"{c.n}"),
        *more,
    ]  # fmt: skip
    lines += ["| | |", "| --- | --- |", *(f"| {_cell(name)} | {_cell(text)} |" for name, text in rows), ""]
    if c.strata:
        lines += ["| task | items | A | B | gap |", "| --- | ---: | ---: | ---: | ---: |"]
        lines += [f"| {_cell(s.name)} | {s.n} | {s.a:.4f} | {s.b:.4f} | {wording.signed(s.gap)} |" for s in c.strata]
        lines.append("")
    lines += [f"> {_cell(c.may_write)}", ""]
    lines += [f"- warning: {_cell(w)}" for w in c.warnings]
    return [*lines, ""] if c.warnings else lines

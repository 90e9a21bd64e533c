"""A comparison as one screen of text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from veritune.decide import wording
from veritune.decide.commands import CompareReport, ComparisonReport
from veritune.stats.paired import ESTIMANDS

_FLIPS_SHOWN = 6
_TASKS_SHOWN = 12
_NOTES_SHOWN = 6
_PLAIN = re.compile(r": (scores|csv|jsonl|json|parquet)\b")
"""Notes on tables and our own scores, whose columns the user sees; a harness's metric, filter and reducer are shown."""


def render_text(report: CompareReport) -> str:
    """The report as text for the screen, about one screen per comparison; several comparisons are summed up in one line
    each at the end.

    >>> from veritune.decide import compare_score_tables
    >>> from veritune.stats import tables_from_counts
    >>> a, b = tables_from_counts([(54, 47, 1139, 79)])
    >>> "decision" in render_text(compare_score_tables([a], b))
    True
    """
    blocks = [render_comparison(c) for c in report.comparisons]
    if len(report.comparisons) > 1:
        blocks.append("\n".join([*_summary(report.comparisons), f"{report.correction}."]))
    notes = [note for note in report.notes if not _PLAIN.search(note)]
    if notes:
        more = [f"{len(notes) - _NOTES_SHOWN} more files, all of them in --json"]
        shown = [*notes[:_NOTES_SHOWN], *(more if len(notes) > _NOTES_SHOWN else [])]
        blocks[-1] += "\n" + "\n".join(_line("" if i else "read as", note) for i, note in enumerate(shown))
    return "\n\n".join(blocks)


def _summary(comparisons: Sequence[ComparisonReport]) -> list[str]:
    names = [f"{c.a} − {c.b}" for c in comparisons]
    width = max(map(len, names))
    return [
        f"{name:<{width}}  {wording.signed(c.estimates[0].value or 0.0)}  {c.decision}"
        for name, c in zip(names, comparisons)
    ]


def _line(label: str, text: str) -> str:
    return f"{label:<12} {text}"


def render_comparison(c: ComparisonReport) -> str:
    """One comparison as text for the screen."""
    binary = "tables" in c.details
    width = max(len(c.a), len(c.b))
    lines = [
        f"A  {c.a:<{width}}  {wording.rate_text(c.details['a'], binary=binary)}{_arm_note(c.details['a'])}",
        f"B  {c.b:<{width}}  {wording.rate_text(c.details['b'], binary=binary)}{_arm_note(c.details['b'])}",
        "",
    ]
    lines += _render_tables(c)
    lines += _render_estimates(c)
    margin = "" if c.margin is None else f" at a margin of {c.margin:g}"
    lines.append(_line("decision", f"{c.decision}{margin}: {c.reason}"))
    lines += _render_direction(c)
    if c.demand is not None:
        state = "met" if c.demand.met else "not met"
        lines.append(_line("demand", f"{c.demand.demand}: {state}, {c.demand.why}"))
    if c.frozen_rule:
        lines.append(_line("frozen rule", wording.rule_text(c.frozen_rule, c.a, c.b)))
    if c.detectable is not None:
        lines.append(_line("detectable", f"{wording.number(c.detectable)}, the smallest gap seen with 80 % power"))
    if c.chance_again is not None and c.chance_again < 0.5:
        again = f"another study of this design would settle a gap of this size in {c.chance_again:.0%} of cases"
        lines.append(_line("", again))
    lines += _render_needed(c)
    lines += _render_strata(c)
    to = "higher in" if c.higher_is_better is None else "to"
    left = f"; {c.flipped.lost} with a lost score not counted" if c.flipped.lost else ""
    lines.append(_line("flipped", f"{c.flipped.to_a} {to} A{_ids(c.flipped.ids_a, c.flipped.to_a)}"))
    lines.append(_line("", f"{c.flipped.to_b} {to} B{_ids(c.flipped.ids_b, c.flipped.to_b)}{left}"))
    for bound, name in zip(c.details.get("missing_bounds", ()), ("worst", "best")):
        text = f"gap {wording.signed(bound['gap'])}, {bound['decision']}, if every missing score were {name} for A"
        lines.append(_line("missing", text))
    models = sum(sum(m.values()) for side in "ab" for m in c.details[side]["missing"]) - c.n_lost
    for bound in c.details.get("lost_bounds", ()):
        if models and bound["filling"] in ("worst", "best"):
            text = f"gap {wording.signed(bound['gap'])}, {bound['decision']}, if every lost score were"
            lines.append(_line("lost", f"{text} {bound['filling']} for A"))
    lines += [_line("warning", w) for w in c.warnings]
    if c.memorisation:
        lines.append(_line("memorised?", f"not tested: {c.memorisation}"))
    lines.append(_line("may write", c.may_write))
    lines += [_line("may not", text) for text in c.may_not]
    return "\n".join(lines)


def _render_strata(c: ComparisonReport) -> list[str]:
    """Each task of a pooled eval, those of the largest gaps where there are many."""
    if not c.strata:
        return []
    shown = sorted(c.strata, key=lambda s: -abs(s.gap))[:_TASKS_SHOWN] if len(c.strata) > _TASKS_SHOWN else c.strata
    width = max(len(s.name) for s in shown)
    mean = sum(s.gap for s in c.strata) / len(c.strata)
    lines: list[str] = []
    for s in shown:
        known = s.low is not None and s.high is not None
        ends = f"[{wording.signed(s.low or 0.0)}, {wording.signed(s.high or 0.0)}]" if known else "no interval"
        text = f"{s.name:<{width}}  {s.a:.4f} against {s.b:.4f} of {s.n}, gap {wording.signed(s.gap)} {ends}"
        lines.append(_line("" if lines else "tasks", text))
    more = f"{len(c.strata) - len(shown)} more tasks, all of them in --json; " if len(shown) < len(c.strata) else ""
    level = f"{100 * (1 - c.alpha):g} %"
    lines.append(
        _line("", f"{more}each alone at {level}, uncorrected; mean of the {len(c.strata)} gaps {wording.signed(mean)}")
    )
    return lines


def _render_direction(c: ComparisonReport) -> list[str]:
    """The metric's direction, where it is not simply that higher is better."""
    name = c.metric or "these scores"
    if c.higher_is_better is None:
        return [_line("direction", f"unknown for {name}: --higher-is-better or --lower-is-better states it")]
    return [] if c.higher_is_better else [_line("direction", f"{name}: lower is better")]


def _arm_note(arm: Mapping[str, Any]) -> str:
    samples = arm.get("samples")
    if not samples:
        return ""
    low, high = samples["per_item_min"], samples["per_item_max"]
    note = f"  {low if low == high else f'{low} to {high}'} samples an item, {samples['failed']} failed"
    raters = samples.get("rater_agreement")
    if raters:
        alpha = "undefined" if raters["alpha"] is None else f"{raters['alpha']:.3f}"
        note += f", {raters['raters']} raters, Krippendorff alpha {alpha}"
    return note


def _render_tables(c: ComparisonReport) -> list[str]:
    tables = c.details.get("tables") or []
    if not tables:
        return []
    if len(tables) == 1:
        t = tables[0]
        one, zero = ("right", "wrong") if c.higher_is_better else ("1", "0")
        return [
            f"{'':<12} {f'B {one}':>9} {f'B {zero}':>9}",
            f"{f'A {one}':<12} {t['both']:>9} {t['only_a']:>9}",
            f"{f'A {zero}':<12} {t['only_b']:>9} {t['neither']:>9}",
            "",
        ]
    names = [f"{t['run_a']} / {t['run_b']}" for t in tables[:8]]
    width = max(len("run A / run B"), *map(len, names))
    lines = [f"{'run A / run B':<{width}} {'only A':>7} {'only B':>7} {'both':>7} {'neither':>7}  mid-p"]
    for name, t in zip(names, tables):
        lines.append(
            f"{name:<{width}} {t['only_a']:>7} {t['only_b']:>7} {t['both']:>7} {t['neither']:>7}  "
            f"{wording.p_text(t['midp'])}"
        )
    if len(tables) > 8:
        lines.append(f"... and {len(tables) - 8} more runs")
    return [*lines, ""]


def _render_estimates(c: ComparisonReport) -> list[str]:
    first = c.estimates[0]
    lines = [_line("gap (A − B)", f"{wording.signed(first.value or 0.0)}   {wording.interval_text(first, c.margin)}")]
    if c.margin is not None and first.low is not None:
        lines.append(_line("", f"for equivalence: {wording.equivalence_text(c.details, first, c.margin)}"))
    p = wording.p_text(first.p, first.p_floor)
    tables = c.details.get("tables") or []
    exact = f"; exact {wording.p_text(tables[0]['exact_p'])}" if first.p_method == "mid-p McNemar" else ""
    corrected = f"; corrected {wording.p_text(c.p_corrected)}" if c.p_corrected is not None else ""
    if first.p is not None:
        lines.append(_line("", f"{p} ({first.p_method}{exact}{corrected}); {first.method}"))
    lines.append(_line("scope", first.scope))
    names = {text: text for text in ESTIMANDS.values()}
    for other in c.estimates[1:]:
        scope = next((n for n in names if other.scope.startswith(n)), other.scope)
        lines.append(_line("", f"{scope}: {wording.interval_text(other)}, {wording.p_text(other.p, other.p_floor)}"))
    return lines


def _render_needed(c: ComparisonReport) -> list[str]:
    if c.margin is None:
        return [_line("margin", "none declared: no size can be claimed (--margin)")]
    lines: list[str] = []
    wanted = ((c.for_margin, "a gap of the margin"), (c.for_equivalence, "equivalence at a true gap of 0"))
    for settling, what in wanted:
        if settling is not None:
            lines.append(_line("" if lines else "to settle", f"{what} (80 % power): {settling.text}"))
    if c.reachable_equivalence is False:
        lines.append(_line("", "with these items “equivalent” cannot be reached, not even by identical outputs"))
    return lines


def _ids(ids: Sequence[str], total: int) -> str:
    if not ids:
        return ""
    shown = ", ".join(ids[:_FLIPS_SHOWN])
    return f": {shown}" + (f", … ({total - _FLIPS_SHOWN} more)" if total > _FLIPS_SHOWN else "")

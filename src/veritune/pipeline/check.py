"""`veritune check`: one page about an adapter and its data, no study: what can be said today, and what to do next.

Every part is measured by the command of its own that the page names; a part that cannot be measured says why, and is
never counted as good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from veritune.counting import grouped, many
from veritune.data.audit import AuditConfig, AuditReport, audit_data
from veritune.decide.commands import CompareOptions, compare
from veritune.decide.screen import render_text as scores_text
from veritune.decide.sides import read_sides
from veritune.errors import InputError, VerituneError
from veritune.probe.effective import SamplePlan
from veritune.probe.gradients import Settings
from veritune.probe.recall import recall_of
from veritune.probe.series import change_of
from veritune.probe.study import Zoned, gap_of, gradients_of, read_zones, thin, tokens_of
from veritune.probe.subject import ProbeSubject, subject
from veritune.release.parity.merge_command import MergeRequest, merge_command
from veritune.release.parity.merge_outputs import MergeOptions

Status = Literal["passed", "failed", "undecided", "shown", "not measured"]


@dataclass(frozen=True)
class CheckRequest:
    """What `veritune check` was given. `held_out`: rows of families that were not trained on. `quick`: measure fewer
    rows.
    """

    adapter: Path
    model: str
    data: Path
    held_out: Path | None = None
    evals: tuple[str, ...] = ()
    merged: Path | None = None
    logs: tuple[str, ...] = ()
    family_field: str | None = None
    margin: float | None = None
    dtype: str = "float32"
    quick: bool = False

    @property
    def rows(self) -> int:
        """The most rows to measure in each zone."""
        return 24 if self.quick else 200


@dataclass(frozen=True)
class PagePart:
    """One part of the page: its lines, and the command that measures this part alone."""

    name: str
    status: Status
    lines: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class AdapterCheck:
    """The result of `veritune check`. `status` is `failed` if any part failed; `open` names the parts that were not
    measured.
    """

    adapter: str
    model: str
    data: str
    parts: tuple[PagePart, ...]
    next: tuple[str, ...]
    quick: bool
    limits: str
    kind: str = "check"
    notes: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether a part failed."""
        return any(part.status == "failed" for part in self.parts)

    @property
    def open(self) -> tuple[str, ...]:
        """The parts that were not measured or not settled."""
        return tuple(p.name for p in self.parts if p.status in ("not measured", "undecided"))


def check(asked: CheckRequest) -> AdapterCheck:
    """Measure what can be measured. Raises VerituneError only if base or adapter cannot be read at all."""
    found = subject(asked.model, str(asked.adapter), dtype=asked.dtype)
    assert found.adapter is not None
    a, m = str(asked.adapter), asked.model
    audited: list[AuditReport] = []
    evals = "".join(f" --eval {name}" for name in asked.evals)
    parts = [
        _part("data", f"veritune audit {asked.data}{evals}{_family_option(asked)}", lambda: _data(asked, audited)),
        _part(
            "independence",
            f"veritune probe gradients --model {m} --adapter {a} --data {asked.data}{_family_option(asked)}",
            lambda: _effective(asked, found),
        ),
        *_zoned(asked, found),
        _part("weights", f"veritune probe weights {a} --base {found.ref.path}", lambda: _weights(found)),
    ]
    if asked.merged is not None:
        command = f"veritune merge-parity --model {m} --adapter {a} --merged {asked.merged} --data {asked.data}"
        parts.append(_part("merge", command, lambda: _merge(asked, found)))
    if asked.logs:
        parts.append(_part("scores", f"veritune compare {' '.join(asked.logs)}", lambda: _scores(asked)))
    return AdapterCheck(
        a, m, str(asked.data), tuple(parts), tuple(_next(asked, parts, audited)), asked.quick,
        "The adapter was trained elsewhere: which rows it saw, in which order and from which seeds is taken from"
        " --data and was not checked. One adapter is one seed: nothing here speaks of the method.",
    )  # fmt: skip


def _family_option(asked: CheckRequest) -> str:
    return "" if asked.family_field is None else f" --family-field {asked.family_field}"


Measured = tuple[Status, list[str]]


def _part(name: str, command: str, measure: Callable[[], Measured]) -> PagePart:
    try:
        status, lines = measure()
    except VerituneError as exc:
        return PagePart(name, "not measured", (exc.message, *([exc.fix] if exc.fix else [])), command)
    return PagePart(name, status, tuple(lines), command)


def _data(asked: CheckRequest, kept: list[AuditReport]) -> Measured:
    report = audit_data(asked.data, evals=asked.evals, config=AuditConfig(family_field=asked.family_field))
    kept.append(report)
    record = report.record()
    errors = sum(f.severity == "error" for f in report.findings)
    flagged = sum(f.severity == "warning" for f in report.findings)
    lines = [
        f"{record['n_rows']:,} rows of {record['n_read']:,} read, "
        f"{grouped(len(set(report.families.families)), 'families')};"
        f" {many(errors, 'errors')}, {many(flagged, 'warnings')}"
    ]
    if report.gate is not None:
        lines.append(f"evals: {report.gate.message}")
    lines += [f.message for f in report.findings if f.severity == "error"][:3]
    bad = report.gate is not None and report.gate.status == "failed"
    return ("failed" if bad or errors else "passed" if report.gate is not None else "shown"), lines


def _effective(asked: CheckRequest, found: ProbeSubject) -> Measured:
    plan = SamplePlan(max_rows=16 if asked.quick else 96)
    probe = gradients_of(found, asked.data, Settings(of="auto", plan=plan), family_field=asked.family_field)
    return "shown", [probe.reading]


def _zoned(asked: CheckRequest, found: ProbeSubject) -> list[PagePart]:
    """Generalisation, tokens and recall: they need rows of families that were not trained on."""
    held = asked.held_out
    a, m = asked.adapter, asked.model
    gap = f"veritune probe gap --model {m} --adapter {a} --seen {asked.data} --stranger {held or 'HELD_OUT'}"
    gap += _family_option(asked)
    names = ("generalisation", "tokens", "recall")
    commands = [gap, f"{gap} --measure tokens", f"{gap} --measure recall"]
    if held is None:
        why = "no held-out rows were given: whether it generalises cannot be told from the rows that it trained on"
        return [PagePart(name, "not measured", (why,), command) for name, command in zip(names, commands)]
    try:
        files = {"seen": asked.data, "stranger": held}
        rows = thin(read_zones(files, found.renderer, family_field=asked.family_field), asked.rows)
    except VerituneError as exc:
        lines = (exc.message, *([exc.fix] if exc.fix else []))
        return [PagePart(name, "not measured", lines, command) for name, command in zip(names, commands)]
    measures: list[Callable[[], Measured]] = [
        lambda: ("shown", [gap_of(found, rows).reading]),
        lambda: ("shown", [tokens_of(found, rows, ("stranger",))["stranger"].reading]),
        lambda: ("shown", _recall(found, rows)),
    ]
    return [_part(name, command, measure) for name, command, measure in zip(names, commands, measures)]


def _recall(found: ProbeSubject, rows: Zoned) -> list[str]:
    return [str(record.reading) for record in recall_of(found, rows).values()]


def _weights(found: ProbeSubject) -> Measured:
    assert found.adapter is not None
    change = change_of(found.adapter, found.ref.path)
    return "shown", [change.reading, *change.notes[:2]]


def _merge(asked: CheckRequest, found: ProbeSubject) -> Measured:
    request = MergeRequest(
        model=asked.model, adapter=found.adapter, merged=asked.merged, data=asked.data, rows=4 if asked.quick else 16
    )
    options = MergeOptions(
        dtype=asked.dtype, max_new_tokens=8 if asked.quick else 32, draws=2 if asked.quick else 5, batch_size=4
    )
    parity = merge_command(request, options)
    return parity.status, [parity.message, parity.reading]


def _scores(asked: CheckRequest) -> Measured:
    if len(asked.logs) != 2:
        raise InputError(f"--logs: expected two, as base=FILE and tuned=FILE, found {len(asked.logs)}.")
    sides = read_sides(list(asked.logs), None, [])
    against = "base" if any(side.name == "base" for side in sides) else sides[0].name
    report = compare(sides, CompareOptions(margin=asked.margin, against=against))
    return "shown", [line for line in scores_text(report).splitlines() if line.strip()]


def _next(asked: CheckRequest, parts: Sequence[PagePart], audited: Sequence[AuditReport]) -> list[str]:
    """What to do, most urgent first."""
    state = {part.name: part for part in parts}
    steps = []
    if state["data"].status == "failed":
        steps.append(f"Fix the data first: `{state['data'].command} --out audit/` lists every row.")
    if "merge" in state and state["merge"].status == "failed":
        steps.append("Do not ship the merged weights: merge again, then compare again.")
    if asked.held_out is None:
        steps.append("Hold out whole families (rows that were not trained on) and give them with --held-out.")
    elif state["generalisation"].status == "not measured":
        steps.append(f"Give other held-out rows: {state['generalisation'].lines[0]}")
    if not asked.evals:
        steps.append("Name the evals that will judge it with --eval, so that leaks from them are found.")
    if audited and asked.family_field is None:
        steps.append("If a column says which rows share an original, name it with --family-field.")
    if asked.merged is None:
        steps.append("If merged weights will be served, give them with --merged.")
    if not asked.logs:
        steps.append("Score base and adapter on the same items and give both logs: --logs base=A --logs tuned=B.")
    if asked.quick:
        steps.append("Run it without --quick before you rely on any number.")
    steps.append(
        "For a claim that can be supported: `veritune init`, freeze, then `veritune adopt` this adapter as a cell."
    )
    return steps


def check_text(report: AdapterCheck) -> str:
    """The page as text."""
    lines = [f"{report.adapter} on {report.model}, data {report.data}" + (" (quick)" if report.quick else ""), ""]
    for part in report.parts:
        lines.append(f"{part.name:<15} {part.status.upper()}")
        lines += [f"  {line}" for line in part.lines]
        lines.append(f"  {part.command}")
    lines += ["", report.limits, "", "Next:"]
    lines += [f"  {n}. {step}" for n, step in enumerate(report.next, start=1)]
    return "\n".join(lines)

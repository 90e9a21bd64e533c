"""A release gate for a pipeline: one case a gate, and one for the whole (`veritune.ci` has the forms)."""

from __future__ import annotations

from veritune.ci import CheckCase, CheckReport
from veritune.records import GateRecord, GateResult
from veritune.release.gate.gates import gate_word, render_markdown


def check_report(record: GateRecord) -> CheckReport:
    """The gates as checks for CI: a passed or waived gate passes; an undecided one fails, as in the exit status."""
    word = f"release gate: {record.status}"
    elsewhere = "; ".join(record.trained_elsewhere)
    warnings = (f"trained elsewhere; not checked: {elsewhere}",) if elsewhere else ()
    whole = CheckCase("release", record.run_id, record.status == "passed", word, kind=record.status, warnings=warnings)
    cases = [_case(record, gate) for gate in record.gates]
    return CheckReport("veritune gate", (*cases, whole), render_markdown(record))


def _case(record: GateRecord, gate: GateResult) -> CheckCase:
    word, says = gate_word(record, gate), gate.message
    if gate.gate in record.waived:
        waiver = record.waived[gate.gate]
        says += f"; waived by {waiver.by} until {waiver.until}: {waiver.reason}"
    look = [f"look: {gate.look}"] if gate.look and gate.status != "passed" else []
    body = "\n".join([f"{word}: {says}", *gate.evidence, *look])
    return CheckCase(gate.gate, record.run_id, word in ("passed", "waived"), f"{word}: {says}", body, word)

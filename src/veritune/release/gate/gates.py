"""`veritune gate`: the release policy's gates over one candidate, the waivers, and the record that binds exact bytes.

`release/gates.jsonl` is a ledger of two kinds of entries: every `evaluation` that differed from the last, and every
`waiver` ever given, also those that expired. It is appended to, never replaced; the study's timeline records its newest
hash (`gated`), and a bundle carries it.

A waiver lifts an undecided gate, never a failed one. It names who, why and until when, and it covers what that person
saw: this gate, these weights, these thresholds, this reason. Where any of them changes, the gate blocks again.

Somebody who rewrites ledger and timeline is not found out by them: that is what a signature on a bundle is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from veritune.errors import GateError, InputError
from veritune.ledger import CHAIN, Entry, Ledger
from veritune.records import (
    GateRecord,
    GateResult,
    JsonLike,
    JsonValue,
    Waiver,
    to_json,
)
from veritune.records.base import of_plain
from veritune.release.gate.candidate import CandidateChoice, Case, open_case
from veritune.release.gate.checks import CHECKS, run_checks
from veritune.release.gate.evidence import Subject, read_evidence
from veritune.release.gate.noninferior import worst
from veritune.store import Store, hash_of, now, sha256_file

GATES_FILE = "gates.jsonl"


# ---------------------------------------------------------------- evaluating


def evaluate(study: str | Path, choice: CandidateChoice | None = None, *, today: date | None = None) -> GateRecord:
    """Evaluate the policy's gates, and append the record if it differs from the last. The study is locked meanwhile.

    Raises InputError or StudyError where there is no candidate, StaleError when the ledger was edited.
    """
    case = open_case(study, choice, today)
    with case.store.lock():
        entries = _ledger(case.store).read()
        found = _record(case, run_checks(case), _waivers(entries))
        evaluations = _of_kind(entries, "evaluation")
        if evaluations and _essence(evaluations[-1]) == _essence(to_json(found)):
            _log_gated(case.store, entries[-1])  # a process that was killed right before may not have come to it
            return _gate_record(evaluations[-1])
        return _gate_record(_append(case.store, to_json(found)))


def _record(case: Case, gates: Sequence[GateResult], waivers: Sequence[Waiver]) -> GateRecord:
    waived = {g.gate: w for g in gates if (w := _waiver_for(g, case, waivers)) is not None}
    status = worst([g.status for g in gates if g.gate not in waived]) if len(waived) < len(gates) else "passed"
    subject, covers = _covered(case, gates)
    return GateRecord(
        status=status,
        subject=subject,
        covers=covers,
        run_id=case.candidate.run_id,
        condition=case.candidate.condition,
        seed=case.candidate.seed,
        contract=case.contract_hash,
        policy=case.policy.hash,
        policy_source=case.policy.source,
        policy_declared=case.policy.declared,
        gates=tuple(gates),
        not_asked=tuple(name for name in CHECKS if name not in case.policy.release.gates),
        waived=waived,
        evidence=_evidence_hashes(case, gates),
        settings=case.policy.release.model_dump(mode="json"),
        trained_elsewhere=case.candidate.elsewhere,
    )


def _covered(case: Case, gates: Sequence[GateResult]) -> tuple[Subject, tuple[str, ...]]:
    """The subject, and what the record passes for. Merged weights only where their own gate passed."""
    subject = case.candidate.subject
    if not any(g.gate == "merge" and g.status == "passed" for g in gates):
        return subject, (subject.hash,)
    record = read_evidence(case.store, "merge")
    merged = record.subject.merged if record else None
    if merged is None:
        return subject, (subject.hash,)
    return Subject(subject.base, subject.candidate, merged), (subject.hash, Subject(subject.base, merged).hash)


def _evidence_hashes(case: Case, gates: Sequence[GateResult]) -> dict[str, str]:
    names = sorted({name for gate in gates for name in gate.evidence})
    return {name: sha256_file(path) for name in names if (path := case.store.root / name).is_file()}


def _essence(entry: Mapping[str, JsonLike]) -> dict[str, JsonLike]:
    """An entry without when it was made and where it stands in the chain."""
    return {k: v for k, v in entry.items() if k not in ("created", "previous", "hash")}


# ---------------------------------------------------------------- waivers


def waive(study: str | Path, gate: str, signed: tuple[str, str, str], choice: CandidateChoice | None = None) -> Waiver:
    """Append a waiver for an undecided gate; `signed` is who, why, and the last day (YYYY-MM-DD).

    Raises GateError for a gate that failed, InputError for one that passed or is not asked for, for a missing name or
    reason, and for a day that is past or further off than the policy allows.
    """
    by, reason, until = (text.strip() for text in signed)
    case = open_case(study, choice)
    _check_signature(by, reason, until, case)
    if gate not in CHECKS or gate not in case.policy.release.gates:
        asked = ", ".join(case.policy.release.gates)
        raise InputError(f"the policy does not require a gate {gate!r}.", fix=f"Gates of the policy: {asked}.")
    with case.store.lock():
        (found,) = (g for g in run_checks(case) if g.gate == gate)
        if found.status == "failed":
            raise GateError(
                f"{gate} failed and cannot be waived: {found.message}.", fix="Fix the cause, or do not ship."
            )
        if found.status == "passed":
            raise InputError(f"{gate} passed: there is nothing to waive.")
        waiver = Waiver(gate, by, reason, until, _seen(found, case), found.message, now())
        return _waivers([_append(case.store, to_json(waiver))])[0]


def _check_signature(by: str, reason: str, until: str, case: Case) -> None:
    if not by or not reason:
        raise InputError("a waiver needs a name and a reason.", fix='Add --by "Ada Lovelace" --reason "why"')
    try:
        day = date.fromisoformat(until)
    except ValueError:
        raise InputError(f"--until {until!r}: expected a day as YYYY-MM-DD.") from None
    most = case.policy.release.waiver_days
    if not 0 <= (day - case.today).days <= most:
        raise InputError(
            f"--until {until}: expected a day from {case.today.isoformat()} on, at most {most} days ahead.",
            fix="Choose an earlier day; the policy's waiver_days sets the limit.",
        )


def _seen(gate: GateResult, case: Case) -> str:
    """Hash of what a waiver covers: the gate, the weights, the thresholds and the reason it is undecided for."""
    subject = case.candidate.subject.hash
    return hash_of({"gate": gate.gate, "subject": subject, "thresholds": gate.thresholds, "message": gate.message})


def _waiver_for(gate: GateResult, case: Case, waivers: Sequence[Waiver]) -> Waiver | None:
    """The latest waiver that holds today and covers this undecided gate as it is now."""
    if gate.status != "undecided":
        return None
    seen = _seen(gate, case)
    found = [w for w in waivers if w.gate == gate.gate and w.covers == seen and w.holds(case.today)]
    return found[-1] if found else None


# ---------------------------------------------------------------- the record on disk


def _ledger(store: Store) -> Ledger:
    return Ledger(store.release(GATES_FILE))


def _append(store: Store, record: Mapping[str, JsonValue]) -> Entry:
    """Append an evaluation or a waiver, and record the ledger's new end in the timeline."""
    entry = _ledger(store).append({k: v for k, v in record.items() if k not in CHAIN})
    _log_gated(store, entry)
    return entry


def _log_gated(store: Store, entry: Entry) -> None:
    store.log_once("gated", head=entry["hash"], kind=entry["kind"])


def _of_kind(entries: Sequence[Entry], kind: str) -> list[Entry]:
    return [entry for entry in entries if entry.get("kind") == kind]


def _waivers(entries: Sequence[Entry]) -> list[Waiver]:
    return [of_plain(Waiver, entry, f"{GATES_FILE}: a waiver") for entry in _of_kind(entries, "waiver")]


def _gate_record(entry: Entry) -> GateRecord:
    return of_plain(GateRecord, entry, f"{GATES_FILE}: an evaluation")


def gate_record(store: Store) -> GateRecord:
    """The last evaluation. Raises GateError if there is none, StaleError if the ledger was edited."""
    entries = _of_kind(_ledger(store).read(), "evaluation")
    if not entries:
        raise GateError(
            f"{store.root} has no gate record.", fix=f"Evaluate the gates first: veritune gate {store.root}"
        )
    return _gate_record(entries[-1])


def all_waivers(store: Store) -> list[Waiver]:
    """Every waiver given for this study, oldest first."""
    return _waivers(_ledger(store).read())


def passes_for(
    record: GateRecord, subject_hash: str, today: date | None = None, policy_hash: str | None = None
) -> bool:
    """Whether the record passes today for exactly these weights (`evidence.Subject.hash`).

    False when the record was edited, when any gate in it blocks, and when a waiver it rests on has expired. A policy
    may ask for little: with `policy_hash` (`policy.Policy.hash`) only a record of that policy passes.
    """
    if policy_hash is not None and record.policy != policy_hash:
        return False
    body = {k: v for k, v in to_json(record).items() if k != "hash"}
    if hash_of(body) != record.hash or record.status != "passed" or subject_hash not in record.covers:
        return False
    day = today or datetime.now(UTC).date()
    blocked = [g for g in record.gates if g.status != "passed"]
    lifted = [record.waived.get(g.gate) for g in blocked if g.status == "undecided"]
    return len(lifted) == len(blocked) and bool(record.gates) and all(w is not None and w.holds(day) for w in lifted)


# ---------------------------------------------------------------- for people


_MARK = {"passed": "✅ passed", "failed": "❌ failed", "undecided": "❔ undecided", "waived": "⚠️ waived"}


def gate_word(record: GateRecord, gate: GateResult) -> str:
    """The status of a gate: `passed`, `failed`, `undecided` or `waived`."""
    return "waived" if gate.gate in record.waived else gate.status


def render_markdown(record: GateRecord) -> str:
    """The gates as one table for a pull request: result, evidence, and a command for details."""
    lines = [
        f"### Release gate: {record.status}",
        "",
        f"`{record.run_id}` (base `{record.subject.base[:12]}`, weights `{record.subject.candidate[:12]}`), "
        f"contract `{record.contract[:12]}`, policy `{record.policy[:12]}` from {_cell(record.policy_source)} "
        f"({_cell(record.policy_declared)}).",
        "",
        *_elsewhere_lines(record),
        "| gate | | found | evidence | look closer |",
        "| --- | --- | --- | --- | --- |",
    ]
    for gate in record.gates:
        evidence = "<br>".join(f"`{_cell(name)}`" for name in gate.evidence)
        found = _cell(gate.message)
        if gate.gate in record.waived:
            w = record.waived[gate.gate]
            found += f"<br>**waived by {_cell(w.by)} until {w.until}:** {_cell(w.reason)}"
        lines.append(
            f"| {gate.gate} | {_MARK[gate_word(record, gate)]} | {found} | {evidence} | `{_cell(gate.look)}` |"
        )
    lines += [f"| {name} | not checked | the policy does not require it | | |" for name in record.not_asked]
    return "\n".join(lines) + "\n"


def _elsewhere_lines(record: GateRecord) -> list[str]:
    """Markdown about adopted weights; none for weights that the study trained."""
    if not record.trained_elsewhere:
        return []
    return [f"**Trained elsewhere; not checked:** {_cell('; '.join(record.trained_elsewhere))}.", ""]


def _cell(text: str) -> str:
    """Text for a Markdown table cell: no pipe, line break or HTML of its own."""
    plain = " ".join(str(text).split()).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")


def render_text(record: GateRecord) -> str:
    """The gates as text for the screen."""
    lines = [f"{record.run_id}: base {record.subject.base[:12]}, weights {record.subject.candidate[:12]}"]
    if record.trained_elsewhere:
        lines.append(f"trained elsewhere; not checked: {'; '.join(record.trained_elsewhere)}")
    lines += [f"policy {record.policy[:12]} from {record.policy_source} ({record.policy_declared})", ""]
    for gate in record.gates:
        lines.append(f"{gate_word(record, gate):<10} {gate.gate:<12} {gate.message}")
        if gate.gate in record.waived:
            w = record.waived[gate.gate]
            lines.append(f"{'':<23} waived by {w.by} until {w.until}: {w.reason}")
        if gate.status != "passed" and gate.look:
            lines.append(f"{'':<23} look: {gate.look}")
    lines += [f"{'not asked':<10} {name}" for name in record.not_asked]
    return "\n".join([*lines, "", f"release gate: {record.status}"])

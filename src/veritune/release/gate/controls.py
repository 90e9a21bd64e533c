"""`veritune gate --controls`: twelve known failure modes of fine-tuning, each with its check and a study's evidence.

The table is `controls.yaml`. For a study every row is read from records that other commands wrote; nothing is measured
here. `passed` and `failed` are a record's own word, `undecided` means that the record leaves it open, and `no evidence`
that nothing has looked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from veritune import contract
from veritune.errors import InputError, VerituneError
from veritune.records import (
    ContaminationAudit,
    Contract,
    LiveProbe,
    RenderAudit,
    StudyVerdicts,
    TrainingRecord,
    ZoneGapRecord,
)
from veritune.release.gate.evidence import evidence_file, read_evidence
from veritune.store import Store

TABLE = Path(__file__).with_name("controls.yaml")

Word = Literal["passed", "failed", "undecided", "no evidence", "not applicable"]


@dataclass(frozen=True, slots=True)
class Control:
    """One failure mode: what goes wrong, the check for it, the commands that run the check, the test that shows it
    failing.
    """

    id: str
    mode: str
    wrong: str
    check: str
    commands: tuple[str, ...]
    test: str


@dataclass(frozen=True, slots=True)
class ControlShown:
    """A study's evidence on one control: the status, one line, and the files behind it."""

    control: Control
    word: Word
    line: str
    evidence: tuple[str, ...] = ()


def load_controls() -> tuple[Control, ...]:
    """The table of controls."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return tuple(Control(**{**row, "commands": tuple(row["commands"])}) for row in rows)


def controls(study: str | Path) -> tuple[ControlShown, ...]:
    """Every control with a study's evidence. Raises InputError if there is no contract, since nothing has run then."""
    store = Store.of(study)
    if not store.contract_file.exists():
        raise InputError(f"{store.root} has no contract yet.", fix=f"Run it first: veritune run {store.root}")
    frozen = contract.read(store)
    return tuple(_shown(control, store, frozen) for control in load_controls())


def _shown(control: Control, store: Store, frozen: Contract) -> ControlShown:
    try:
        word, line, files = _READERS[control.id](store, frozen)
    except (VerituneError, OSError) as exc:
        return ControlShown(control, "undecided", f"its record cannot be read ({type(exc).__name__}: {exc})")
    return ControlShown(control, word, line, tuple(store.relative(p) for p in files))


# ---------------------------------------------------------------- one reader a control

Read = tuple[Word, str, Sequence[Path]]


def _nothing(what: str) -> Read:
    return "no evidence", what, ()


def _trainings(store: Store) -> dict[Path, TrainingRecord]:
    return {path: TrainingRecord.load(path) for path in sorted(store.runs.glob("*/training.json"))}


def _format(store: Store, frozen: Contract) -> Read:
    records = _trainings(store)
    if not records:
        return _nothing("nothing has trained")
    counts = [r.rows_compared_with_contract for r in records.values() if r.rows_compared_with_contract is not None]
    if len(counts) < len(records):
        return "undecided", "a server trained: its training rows were not compared", list(records)
    word: Word = "passed" if min(counts) > 0 else "undecided"
    return word, f"{sum(counts)} rows fed to {len(counts)} runs equal the contract's ids and labels", list(records)


def _template(store: Store, frozen: Contract) -> Read:
    hashes = f"template {frozen.facts.template_sha256[:12]} and tokenizer are frozen"
    record = read_evidence(store, "serving")
    if record is None:
        return "undecided", f"{hashes}; the server's own rendering was not checked", [store.contract_file]
    return record.status, f"{hashes}; {record.message}", [store.contract_file, evidence_file(store, "serving")]


def _modules(store: Store, frozen: Contract) -> Read:
    names = list(contract.study_of(frozen.last.terms).conditions)
    paths = [p for p in (store.audit(f"live-{name}.json") for name in names) if p.exists()]
    if len(paths) < len(names):
        return _nothing(f"{len(paths)} of {len(names)} arms had a live probe")
    moved = [
        f"{p.condition} {p.moved_tensors} of {p.trainable_tensors} tensors moved" for p in map(LiveProbe.load, paths)
    ]
    return "passed", "; ".join(moved) + "; no frozen tensor moved", paths


def _rank(store: Store, frozen: Contract) -> Read:
    study = contract.study_of(frozen.last.terms)
    ranks = {name: r for name, arm in study.conditions.items() if (r := arm.model_dump().get("r")) is not None}
    both = [c for c in study.claims if c.condition in ranks and c.against in ranks]
    compared = [c.name for c in both if ranks[str(c.condition)] != ranks[str(c.against)]]
    listed = ", ".join(f"{name} r={r}" for name, r in ranks.items())
    if not ranks:
        return "not applicable", "no arm has a rank", ()
    if not compared or not store.verdict_file.exists():
        return _nothing(f"{listed}: no claim compares ranks")
    words: dict[str, str] = {v.claim: v.status for v in StudyVerdicts.load(store.verdict_file).verdicts}
    said = ", ".join(f"{name} {words.get(name, 'untested')}" for name in compared)
    settled = all(words.get(name) in ("supported", "refuted") for name in compared)
    return "passed" if settled else "undecided", f"{listed}: {said}", [store.verdict_file]


def _quantised(store: Store, frozen: Contract) -> Read:
    arms = contract.study_of(frozen.last.terms).conditions
    names = [n for n, arm in arms.items() if arm.method == "qlora" or any("bit" in key for key in arm.model_dump())]
    if not names:
        return "not applicable", "no arm trains on a quantised base", ()
    return _record("selftest", "the quantised kernels were not tested here")(store, frozen)


def _length(store: Store, frozen: Contract) -> Read:
    path, most = store.audit("render.json"), contract.study_of(frozen.last.terms).train.max_length
    if not path.exists():
        return _nothing("nothing was rendered")
    longest = RenderAudit.load(path).tokens.max
    word: Word = "passed" if longest <= most else "failed"
    return word, f"longest row {longest} of {most} tokens, none cut; rows are padded, not packed", [path]


def _forgetting(store: Store, frozen: Contract) -> Read:
    gate = _gate(store, "regression")
    if gate is not None:
        return gate
    declared = contract.study_of(frozen.last.terms).claims
    claims = [c.name for c in declared if c.kind in ("no_regression", "not_worse")]
    if not claims or not store.verdict_file.exists():
        return _nothing("no golden set was judged and no claim is of kind no_regression")
    words: dict[str, str] = {v.claim: v.status for v in StudyVerdicts.load(store.verdict_file).verdicts}
    found = {name: words.get(name, "untested") for name in claims}
    word: Word = "passed" if set(found.values()) == {"supported"} else "undecided"
    if "refuted" in found.values():
        word = "failed"
    return word, ", ".join(f"{name} {status}" for name, status in found.items()), [store.verdict_file]


def _gate(store: Store, name: str) -> Read | None:
    from veritune.release.gate.gates import GATES_FILE, gate_record

    if not store.release(GATES_FILE).exists():
        return None
    record = gate_record(store)
    found = next((g for g in record.gates if g.gate == name), None)
    return None if found is None else (found.status, f"{record.run_id}: {found.message}", [store.release(GATES_FILE)])


_GAP_WORDS: Mapping[str, Word] = {"generalises": "passed", "memorises": "failed"}


def _overfitting(store: Store, frozen: Contract) -> Read:
    paths = sorted(store.runs.glob("*/probes/three_zone.json"))
    if not paths:
        return _nothing("no three-zone gap was measured")
    verdicts = {p.parent.parent.name: ZoneGapRecord.load(p).gap.verdict for p in paths}
    words = [_GAP_WORDS.get(v, "undecided") for v in verdicts.values()]
    word = next((w for w in ("failed", "undecided") if w in words), "passed")
    return word, ", ".join(f"{run}: {v}" for run, v in verdicts.items()), paths  # type: ignore[return-value]


def _contamination(store: Store, frozen: Contract) -> Read:
    path = store.audit("contamination.json")
    if not path.exists():
        return _nothing("nothing was looked for in the trained rows")
    audit = ContaminationAudit.load(path)
    gate = audit.gate
    if gate.status == "passed" and audit.near_copies:
        # The study ran: only exact overlap stops it; what may ship is for the release gate to say.
        return "undecided", f"{gate.message} Whether near-copies may ship is for the release policy", [path]
    return gate.status, gate.message, [path]


def _record(kind: str, otherwise: str) -> Callable[[Store, Contract], Read]:
    """A reader of an evidence record in its own word; it says for which weights."""

    def read(store: Store, frozen: Contract) -> Read:
        record = read_evidence(store, kind)
        if record is None:
            return _nothing(otherwise)
        line = f"{record.message} (weights {record.subject.candidate[:12]})"
        return record.status, line, [evidence_file(store, kind)]

    return read


_READERS: Mapping[str, Callable[[Store, Contract], Read]] = {
    "sft_format": _format,
    "chat_template": _template,
    "target_modules": _modules,
    "rank": _rank,
    "quantised": _quantised,
    "length": _length,
    "forgetting": _forgetting,
    "overfitting": _overfitting,
    "merge": _record("merge", "no merged weights were compared"),
    "contamination": _contamination,
    "safety": _record("safety", "no red-team prompts were asked"),
    "rollback": _record("rollback", "no drill has run"),
}


def render_text(found: Sequence[ControlShown]) -> str:
    """One block per control: the status, the line, the command."""
    lines = []
    for shown in found:
        commands = ", ".join(f"veritune {name}" for name in shown.control.commands)
        lines.append(f"{shown.word:<14} {shown.control.mode:<28} {shown.line}")
        lines.append(
            f"{'':<14} {'':<28} {commands}" + (f"  [{', '.join(shown.evidence[:3])}]" if shown.evidence else "")
        )
    passed = sum(s.word == "passed" for s in found)
    return "\n".join([*lines, "", f"{passed} of {len(found)} controls have evidence that passed"])

"""The verbs around a run: write a study file, say how a study stands, draw its report, check the machine."""

from __future__ import annotations

import json
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from veritune.config.load import load_study
from veritune.counting import many
from veritune.errors import InputError, StaleError, StudyError
from veritune.records import (
    Finding,
    JsonLike,
    JsonValue,
    StudyVerdicts,
    Verdict,
)
from veritune.release.bundle.parts import SIGNATURE
from veritune.release.bundle.sign import sign, signature_problem
from veritune.seal import SIGNATURE as SEAL_SIGNATURE
from veritune.seal import edited_records, redrawing, seal_hash, verify
from veritune.store import Store, atomic, disk_errors, write_text

if TYPE_CHECKING:
    from veritune.data.load import TrainOn
    from veritune.ledger import Entry
    from veritune.pipeline.watch import ListedCell

MARK = {"supported": "+", "refuted": "x", "inconclusive": "~", "untested": "?"}


# ---------------------------------------------------------------- init


@dataclass(frozen=True)
class InitReading:
    """How `init` reads the data; the values given are written into the new study. Fields as in `load_rows`."""

    columns: Mapping[str, str] | None = None
    family_field: str | None = None
    id_field: str | None = None
    train_on: TrainOn = "all"


def init(
    data: str | Path,
    *,
    folder: str | Path | None = None,
    model: str | None = None,
    reading: InitReading | None = None,
) -> Path:
    """Write a commented study.yaml for a data file; returns its path. Raises StudyError if one already exists."""
    from veritune.data.columns import family_column
    from veritune.data.load import load_rows, require_clean

    source, asked = Path(data), reading or InitReading()
    loaded = load_rows(
        source,
        columns=asked.columns,
        family_field=asked.family_field,
        id_field=asked.id_field,
        train_on=asked.train_on,
    )
    require_clean(loaded)
    target = Path(folder) if folder is not None else source.parent
    file = target / "study.yaml"
    if file.exists():
        raise StudyError(f"{file} already exists.", fix="Edit it, or choose another --out FOLDER.")
    shared = set.intersection(*(set(row.meta) for row in loaded.rows)) if loaded.rows else set()
    family = asked.family_field or family_column(loaded.rows)
    columns = ", ".join(sorted(shared - {family, "id"})) or "none"
    lines = [f"family_field: {_flow(family)}" if family else _NO_FAMILY]
    lines += [f"columns: {_flow(dict(asked.columns))}"] if asked.columns else []
    lines += [f"id_field: {_flow(asked.id_field)}"] if asked.id_field is not None else []
    lines += [f"train_on: {asked.train_on}"] if asked.train_on != "all" else []
    text = STUDY_TEMPLATE.format(
        name=_name(source.stem),
        data=_relative(source, target),
        n=len(loaded.rows),
        model=model or "builtin:smollm2-135m-instruct",
        reading="\n  ".join(lines),
        columns=columns,
    )
    with disk_errors(file):
        target.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    load_study(file)
    return file


_NO_FAMILY = "# family_field: original   # column that names the original"


def _flow(value: JsonLike) -> str:
    """A value on one line of YAML."""
    return json.dumps(value, ensure_ascii=False)


def _name(stem: str) -> str:
    cleaned = "".join(c if c.isalnum() or c in "_-" else "-" for c in stem).strip("-") or "study"
    return cleaned if cleaned[0].isalpha() else f"study-{cleaned}"


def _relative(source: Path, target: Path) -> str:
    import os

    return Path(os.path.relpath(source.resolve(), target.resolve())).as_posix()


STUDY_TEMPLATE = """\
# A Veritune study: one pre-declared comparison. Every key is explained in docs/study.md and by `veritune schema`.
# Run it with `veritune run study.yaml`. Nothing trains before all of it has been checked.
name: {name}
question: What did the fine-tune learn, and does it hold on families it never saw?

model:
  path: {model}   # a folder, a hub id, or builtin:smollm2-135m-instruct

data:
  path: {data}   # {n} rows
  {reading}
  # Rows with near-duplicate texts are joined into one family in any case.

split:              # whole families go to one zone
  seed: 0
  stranger: 0.3     # share of families held out whole
  validation: 0.12  # share of families for choosing checkpoints
  sibling: 0.25     # share of each trained family's rows

train:
  num_train_epochs: 3
  per_device_train_batch_size: 8
  learning_rate: 2.0e-4

conditions:         # the untouched base is always measured beside them
  attention_only: {{method: lora, target_modules: attention, r: 8, lora_alpha: 16}}
  all_layer: {{method: lora, target_modules: all-linear, r: 8, lora_alpha: 16}}
factor: [target_modules]   # what may differ between conditions

seeds: [0, 1]

evals:
  style:
    kind: rules
    max_new_tokens: 128
    # Replace these by what your answers must do. Columns you can use in rules: {columns}
    rules:
      - {{name: not_too_long, pattern: '\\A\\s*(?:\\S+\\s+){{0,79}}\\S+\\s*\\Z'}}
      - {{name: no_apology, absent: ["I'm sorry", "As an AI"]}}

claims:             # declared before training, or they are exploratory
  - {{name: better_on_strangers, kind: improves, condition: all_layer, zone: stranger}}
  - {{name: carries_over, kind: generalises, condition: all_layer, share: 0.5}}
  - {{name: targets_matter, kind: differ, condition: attention_only, against: all_layer, margin: 0.05}}
"""


# ---------------------------------------------------------------- what a run came to


def outcome_text(outcome: Any) -> str:
    """Verdicts as text for the screen: one block per claim, then the path of the report."""
    lines = [""]
    for verdict in outcome.verdicts:
        lines += verdict_lines(verdict)
    if not outcome.verdicts:
        lines.append("No claim was declared, so nothing was decided. Add some under `claims` in study.yaml.")
    from veritune.progress import clock

    done = f"{many(outcome.trained, 'cells')} run, {outcome.skipped} were done before"
    lines += ["", f"{done}, in {clock(outcome.wall_s)}.", f"Report: {outcome.report}"]
    if not outcome.all_supported:
        lines.append("Exit status 2: not every declared claim is supported.")
    return "\n".join(lines)


def verdict_lines(verdict: Verdict) -> list[str]:
    """One verdict as indented lines of at most 110 characters."""
    tag = " (exploratory)" if verdict.exploratory else ""
    lines = [f"{MARK[verdict.status]} {verdict.claim}: {verdict.status.upper()}{tag}"]
    lines += _wrapped(verdict.sentence)
    if verdict.detectable is not None and "detects" not in verdict.sentence:
        lines.append(f"    Smallest difference this design detects with 80 % power: {verdict.detectable:.3f}.")
    outcome = verdict.details.get("frozen_rule")
    if outcome:
        lines += textwrap.wrap(
            f"Frozen rule {_rule_text(outcome)}.", 106, initial_indent="    ", subsequent_indent="      "
        )
    again = verdict.details.get("chance_again")
    if again is not None and again < 0.5:
        lines += _wrapped(f"Another study of this design would settle a gap of this size in {again:.0%} of cases.")
    if verdict.details.get("to_settle"):
        lines += _wrapped(f"To settle it: {verdict.details['to_settle']}.")
    for warning in verdict.warnings:
        lines += textwrap.wrap("! " + warning, 106, initial_indent="    ", subsequent_indent="      ")
    return lines


def _rule_text(outcome: Mapping[str, JsonValue]) -> str:
    """A frozen rule and what it came to. Records made before arms were named in it call them by their side."""
    from veritune.decide.wording import rule_text

    return rule_text(outcome, str(outcome.get("a") or "the condition"), str(outcome.get("b") or "the other arm"))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 106, initial_indent="    ", subsequent_indent="    ")


# ---------------------------------------------------------------- status


class StudyStatus(TypedDict):
    """How a study stands, as `veritune status --json` prints it."""

    study: str
    folder: str
    frozen: bool
    held_by: str | None
    held_runs: dict[str, str]
    cells: list[ListedCell]
    verdicts: dict[str, str]
    frozen_rules: dict[str, str]
    last_event: Entry | None
    report: str | None
    edited: list[str]


def status(study: str | Path) -> StudyStatus:
    """The state of a study: its cells, the process that holds the folder, the last event. Only reads, never writes."""
    store = Store.of(study)
    if not store.study_file.exists():
        raise InputError(f"{store.root} holds no study.yaml.", fix="Name the study file or its folder.")
    store.check_format()
    events = store.events()
    return {
        "study": load_study(store.study_file).name,
        "folder": str(store.root),
        "frozen": store.contract_file.exists(),
        "held_by": store.holder(),
        "held_runs": store.held_runs(),
        "cells": _cells(study) if store.contract_file.exists() else [],
        "verdicts": _verdicts(store),
        "frozen_rules": _frozen_rules(store),
        "last_event": events[-1] if events else None,
        "report": str(store.report_file) if store.report_file.exists() else None,
        "edited": edited_records(store),
    }


def _cells(study: str | Path) -> list[ListedCell]:
    from veritune.pipeline.watch import list_cells

    return list_cells(study)


def _verdicts(store: Store) -> dict[str, str]:
    if not store.verdict_file.exists():
        return {}
    return {v.claim: v.status for v in StudyVerdicts.load(store.verdict_file).verdicts}


def _frozen_rules(store: Store) -> dict[str, str]:
    """By claim, its frozen rule and what it came to."""
    verdicts = StudyVerdicts.load(store.verdict_file).verdicts if store.verdict_file.exists() else ()
    outcomes = {v.claim: v.details.get("frozen_rule") for v in verdicts}
    return {claim: _rule_text(outcome) for claim, outcome in outcomes.items() if outcome}


def status_text(found: StudyStatus) -> str:
    """The result of `status` as text for the screen."""
    cells = [f"{run_id} by {holder}" for run_id, holder in found["held_runs"].items()]
    by = [f"running: {found['held_by']}"] if found["held_by"] else []
    by += (
        [f"running: {many(len(cells), 'cells')}, {'; '.join(cells[:3])}{' ...' if len(cells) > 3 else ''}"]
        if cells
        else []
    )
    held = "; ".join(by) or "no process is running it"
    lines = [f"{found['study']} in {found['folder']}: {held}"]
    lines.append("contract frozen" if found["frozen"] else "not frozen yet: nothing has trained")
    if found["cells"]:
        from veritune.pipeline.watch import cells_text

        lines += ["  " + line for line in cells_text(found["cells"]).splitlines()]
    for claim, state in found["verdicts"].items():
        lines.append(f"  {MARK[state]} {claim}: {state}")
        if claim in found["frozen_rules"]:
            lines.append(f"      frozen rule {found['frozen_rules'][claim]}")
    lines += [f"x {sentence}; list all findings: veritune verify {found['folder']}" for sentence in found["edited"][:3]]
    if found["last_event"]:
        lines.append(f"last event: {found['last_event']['event']} at {found['last_event']['time']}")
    if found["report"]:
        lines.append(f"report: {found['report']}")
    return "\n".join(lines)


def draw_report(study: str | Path) -> Path:
    """Draw the report again from the records; returns its path. A sealed study is sealed again if the drawing changed.

    Raises InputError when there are no verdicts yet.
    """
    from veritune.report.page import write_report

    store = Store.of(study)
    parsed = load_study(store.study_file)
    store.check_format()
    if not store.verdict_file.exists():
        raise InputError(f"{store.root} has no verdicts yet.", fix=f"Run it first: veritune run {store.root}")
    with redrawing(store):
        return write_report(store, parsed)


# ---------------------------------------------------------------- the seal, and who vouches for it


def verify_study(
    study: str | Path, expected: str | None = None, public_key: Path | None = None
) -> tuple[list[Finding], bool | None]:
    """What differs from the seal, and whether the seal's signature is valid (None: no key was given).

    `expected` is the seal's hash as it was kept elsewhere. Raises InputError when the study was never sealed.
    """
    found = verify(study, expected)
    if public_key is None:
        return found, None
    root = Store.of(study).root
    problem: str | None = "the study has no seal, so there is no signature to check"
    if (root / "seal.json").is_file():
        with _alone(root) as folder:
            problem = signature_problem(folder, public_key)
    if problem is not None:
        found.append(Finding("seal.signature", "error", f"seal.sig: {problem}", source="seal.sig"))
    return found, problem is None


def sign_seal(study: str | Path, private_key: Path) -> tuple[Path, str]:
    """Sign the seal with the key tool that bundles use; returns the signature's path and the seal's hash.

    Raises StaleError where the study is not as it was sealed, InputError where it was never sealed or the key cannot
    be used, MachineError without the package.
    """
    store = Store.of(study)
    with store.lock():
        wrong = verify(store.root)
        if wrong:
            raise StaleError(
                f"{store.root} differs from its seal: {wrong[0].message} ({len(wrong)} findings).",
                fix=f"List all findings: veritune verify {store.root}",
            )
        target = store.root / SEAL_SIGNATURE
        with _alone(store.root) as folder, atomic(target, "wb") as stream:
            stream.write(sign(folder, private_key).read_bytes())
    return target, seal_hash(store.root)


@contextmanager
def _alone(root: Path) -> Iterator[Path]:
    """A folder that holds seal.json alone, with its signature where there is one: the key tool signs whole folders."""
    with tempfile.TemporaryDirectory(prefix="veritune-") as work:
        shutil.copyfile(root / "seal.json", Path(work) / "seal.json")
        if (root / SEAL_SIGNATURE).is_file():
            shutil.copyfile(root / SEAL_SIGNATURE, Path(work) / SIGNATURE)
        yield Path(work)

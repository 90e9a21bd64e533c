"""What a release gate reads: one JSON record per check, in `release/<kind>.json` of the study folder.

    kind         `safety`, `calibration`, `serving`, `merge`, `rollback`, or `regression-<suite>`
    status       `passed`, `failed`, `undecided`: what the check itself came to, at its own thresholds
    message      one sentence with the numbers that decided
    subject      what was measured: digest of the base, digest of the candidate, digest of merged weights or null
    numbers      what was measured; an estimate is {value, low, high, level, n, method}, see `records.Estimate`
    thresholds   what it was measured against
    inputs       SHA-256 of every file it was made from, by path relative to the study folder
    settings     everything else that it was made from: dtype, runtime, batch, seed, versions
    created      UTC
    input_hash   hash of subject, inputs and settings
    hash         hash of everything above: a record that was edited afterwards is not trusted
    outputs      SHA-256 of files that the check wrote beside the record (transcripts, scores), same paths

Write with `write_evidence`, which fills `input_hash` and `hash` and records the file's hash in the study's timeline. A
gate takes a record only where the timeline says that a check wrote these very bytes, where it is whole, where its
subject is the candidate's, and where its inputs still have these hashes; else the gate is undecided. Results from
elsewhere come in with `veritune gate --attest`, which records who vouches for them.

    from veritune.release.gate.evidence import Evidence, subject_of, write_evidence
    subject = subject_of(base_folder, adapter_folder)
    write_evidence(store, Evidence("merge", "passed", "...", subject, numbers, thresholds, inputs, settings))

What the gates look for in `numbers`, beyond `status`:

    calibration  `ece`, `brier`: estimates with `low` and `high`; `ece_debiased`, where it is there, is judged for `ece`
    serving      `ratios`: {name: {value, low, high}} of candidate over base, names in `RATIOS`; null ends: unknown;
                 `peak_memory` also has `worst`. The tail is judged from `release/serving.jsonl`, one of `outputs`
    merge        nothing; `subject.merged` is the digest of the merged weights that were compared
    rollback     nothing; `created` is the day of the drill
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from veritune.errors import FormatError, ModelError, StaleError
from veritune.records import (
    Evidence,
    Subject,
    to_json,
)
from veritune.records.base import Record
from veritune.records.release import GateStatus
from veritune.store import Store, hash_of, sha256_file, sha256_text

Status = GateStatus
__all__ = [
    "Evidence",
    "Status",
    "Subject",
    "evidence_file",
    "files_digest",
    "input_hashes",
    "input_name",
    "input_path",
    "read_evidence",
    "subject_of",
    "weight_files",
    "weights_digest",
    "why_not",
    "write_evidence",
]

RATIOS = ("first_token", "per_token", "throughput", "peak_memory", "cost_per_request")
"""Serving ratios, candidate over base. Lower is better except for `throughput` (requests per second)."""
BUILTIN = "builtin:"
"""Prefix of an input that ships inside the package, relative to `veritune/`."""


# ---------------------------------------------------------------- digests


def weight_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that define a model or an adapter: *.safetensors and its config.

    Raises ModelError when the folder holds no safetensors or no config: pickled weights are never read.
    """
    adapter = folder / "adapter_config.json"
    config = adapter if adapter.is_file() else folder / "config.json"
    weights = sorted(folder.glob("adapter_model*.safetensors" if adapter.is_file() else "*.safetensors"))
    if not weights or not config.is_file():
        raise ModelError(
            f"{folder}: expected *.safetensors and {config.name}, found {len(weights)} weight files.",
            fix="Name the folder of a model or an adapter that was saved as safetensors.",
        )
    return {p.name: sha256_file(p) for p in [*weights, config]}


def files_digest(files: Mapping[str, str]) -> str:
    """One digest of `{name: SHA-256}`; for a base the mapping is the contract's `facts.model.files`."""
    return hash_of(dict(files))


def weights_digest(folder: Path) -> str:
    """The digest of a folder with a model or an adapter."""
    return files_digest(weight_files(folder))


def subject_of(base: Path, candidate: Path, merged: Path | None = None) -> Subject:
    """The digests of what is measured: the base's folder, the adapter's (or the fine-tuned model's), and merged weights
    if any.
    """
    return Subject(weights_digest(base), weights_digest(candidate), None if merged is None else weights_digest(merged))


def input_name(store: Store, path: Path) -> str:
    """The name of a file in a record: relative to the study folder, or `builtin:` and its path in the package."""
    package = Path(__file__).resolve().parents[2]
    if path.resolve().is_relative_to(package):
        return BUILTIN + path.resolve().relative_to(package).as_posix()
    return Path(os.path.relpath(path.resolve(), store.root.resolve())).as_posix()


def input_path(store: Store, name: str) -> Path:
    """The path of a file that a record names."""
    if name.startswith(BUILTIN):
        return Path(__file__).resolve().parents[2] / name.removeprefix(BUILTIN)
    return store.root / name


def input_hashes(store: Store, *paths: Path) -> dict[str, str]:
    """The `inputs` of a record: SHA-256 of each file by its name."""
    return {input_name(store, path): sha256_file(path) for path in paths}


# ---------------------------------------------------------------- records on disk


def evidence_file(store: Store, kind: str) -> Path:
    """The path of the record of a kind."""
    return store.release(f"{kind}.json")


def write_evidence(store: Store, record: Evidence) -> Path:
    """Write the record with its hashes, replacing an earlier one of its kind; returns its path.

    The timeline records its hash, and those of the files beside it, before it is written: `verify` compares them.
    """
    whole = replace(record, input_hash=record.hash_of_inputs())
    whole = replace(whole, hash=own_hash(whole))
    path = evidence_file(store, record.kind)
    files = {**record.outputs, input_name(store, path): sha256_text(whole.text())}
    store.log("evidence", kind=record.kind, status=record.status, files=files)
    whole.save(path)
    return path


def own_hash(record: Record) -> str:
    """The hash of everything in a record but the hash itself."""
    return hash_of({key: value for key, value in to_json(record).items() if key != "hash"})


def read_evidence(store: Store, kind: str) -> Evidence | None:
    """The record of a kind; None if there is none.

    Raises StaleError where no check of ours wrote it (the timeline knows its hash), FormatError where it is damaged.
    """
    path = evidence_file(store, kind)
    if not path.exists():
        return None
    _refuse_unrecorded(store, path)
    record = Evidence.load(path)
    if own_hash(record) != record.hash:
        raise FormatError(f"{path} was edited after it was written.", fix="Run the check again to write a new record.")
    if record.kind != kind or record.input_hash != record.hash_of_inputs():
        raise FormatError(
            f"{path} contradicts itself: its kind or input hash does not fit its content.",
            fix="Run the check again to write a new record.",
        )
    return record


def _refuse_unrecorded(store: Store, path: Path) -> None:
    """Raises StaleError where a record is not the one that the timeline says a check of ours wrote last.

    Its own hash proves nothing: anybody can compute it for a record written by hand.
    """
    name, found = input_name(store, path), sha256_file(path)
    made = [e["files"] for e in store.events() if e["event"] == "evidence" and isinstance(e.get("files"), dict)]
    expected = next((str(files[name]) for files in reversed(made) if name in files), None)
    if expected is None:
        raise StaleError(
            f"{path} was not written by a check: the timeline records none that made it.",
            fix="Run the check, which writes and records the file itself.",
        )
    if found != expected:
        raise StaleError(
            f"{path} differs from what its check wrote: expected SHA-256 {expected[:12]}, found {found[:12]}.",
            fix="Run the check again, or restore the file from a copy.",
        )


def why_not(store: Store, record: Evidence, subject: Subject) -> str | None:
    """Why a record is not evidence for `subject` now: made for other weights, or from files that have changed; None if
    it is evidence.

    Merged weights are compared only where both sides name some.
    """
    for what in ("base", "candidate", "merged"):
        made, now_is = getattr(record.subject, what), getattr(subject, what)
        if made != now_is and not (what == "merged" and None in (made, now_is)):
            return f"it was made for another {what} ({made[:12]}, the candidate's is {now_is[:12]})"
    for name, digest in {**record.inputs, **record.outputs}.items():
        path = input_path(store, name)
        if not path.is_file():
            return f"{name}, which it was made from, is missing"
        if sha256_file(path) != digest:
            return f"{name} has changed since"
    return None

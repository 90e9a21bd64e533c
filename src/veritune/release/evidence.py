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
    hash         hash of everything above: a record that was edited afterwards is not believed
    outputs      SHA-256 of files that the check wrote beside the record (transcripts, scores), same paths

Write with `write_evidence`, which fills `input_hash` and `hash`. A gate takes a record only where it is whole, where
its subject is the candidate's, and where its inputs still have these hashes; else the gate is undecided.

    from veritune.release.evidence import Evidence, subject_of, write_evidence
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from veritune.errors import FormatError, ModelError
from veritune.records import Json, dumps, to_json
from veritune.store import Store, hash_of, now, read_json, sha256_file, sha256_text, write_text

Status = Literal["passed", "failed", "undecided"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "undecided")
RATIOS = ("first_token", "per_token", "throughput", "peak_memory", "cost_per_request")
"""Serving ratios, candidate over base. Lower is better except for `throughput` (requests per second)."""
BUILTIN = "builtin:"
"""Prefix of an input that ships inside the package, relative to `veritune/`."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The bytes that were measured, as `weights_digest` of their folders.

    `candidate` is the adapter, or the whole weights of a full fine-tune. `merged` are weights that were compared with
    base + candidate and stand for them, None where nothing was merged.
    """

    base: str
    candidate: str
    merged: str | None = None

    @property
    def hash(self) -> str:
        """Digest of base and candidate together: what a gate record passes for."""
        return hash_of({"base": self.base, "candidate": self.candidate})


@dataclass(frozen=True, slots=True)
class Evidence:
    """One record; the module's text says what each field holds."""

    kind: str
    status: Status
    message: str
    subject: Subject
    numbers: Json
    thresholds: Json = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    created: str = field(default_factory=now)

    @property
    def input_hash(self) -> str:
        """Hash of everything the record was made from."""
        return hash_of({"subject": self.subject, "inputs": self.inputs, "settings": self.settings})


# ---------------------------------------------------------------- digests


def weight_files(folder: Path) -> dict[str, str]:
    """SHA-256 by name of the files that make a model or an adapter what it is: *.safetensors and its config.

    Raises ModelError when the folder holds no safetensors or no config: pickled weights are never read.
    """
    adapter = folder / "adapter_config.json"
    config = adapter if adapter.is_file() else folder / "config.json"
    weights = sorted(folder.glob("adapter_model*.safetensors" if adapter.is_file() else "*.safetensors"))
    if not weights or not config.is_file():
        raise ModelError(
            f"{folder}: expected *.safetensors and {config.name}, found {len(weights)} weight files.",
            fix="Give the folder of a model or an adapter, saved as safetensors.",
        )
    return {p.name: sha256_file(p) for p in [*weights, config]}


def files_digest(files: Mapping[str, str]) -> str:
    """One digest for `{name: SHA-256}`; for a base these are the contract's `facts.model.files`."""
    return hash_of(dict(files))


def weights_digest(folder: Path) -> str:
    """The digest of a model's or an adapter's folder."""
    return files_digest(weight_files(folder))


def subject_of(base: Path, candidate: Path, merged: Path | None = None) -> Subject:
    """What is measured: the base's folder and the adapter's (or the fine-tuned model's), perhaps merged weights."""
    return Subject(weights_digest(base), weights_digest(candidate), None if merged is None else weights_digest(merged))


def input_name(store: Store, path: Path) -> str:
    """How a record names a file: relative to the study folder, or `builtin:` and its place in the package."""
    package = Path(__file__).resolve().parent.parent
    if path.resolve().is_relative_to(package):
        return BUILTIN + path.resolve().relative_to(package).as_posix()
    return Path(os.path.relpath(path.resolve(), store.root.resolve())).as_posix()


def input_path(store: Store, name: str) -> Path:
    """Where the file that a record names lies."""
    if name.startswith(BUILTIN):
        return Path(__file__).resolve().parent.parent / name.removeprefix(BUILTIN)
    return store.root / name


def input_hashes(store: Store, *paths: Path) -> dict[str, str]:
    """`inputs` for a record: SHA-256 of each file by its name."""
    return {input_name(store, path): sha256_file(path) for path in paths}


# ---------------------------------------------------------------- records on disk


def evidence_file(store: Store, kind: str) -> Path:
    """Where the record of a kind lies."""
    return store.release(f"{kind}.json")


def write_evidence(store: Store, record: Evidence) -> Path:
    """Write the record with its hashes, in place of an earlier one of its kind; its path.

    The timeline records its hash, and those of the files beside it, before it is written: `verify` compares them.
    """
    body = {**to_json(record), "input_hash": record.input_hash}
    path = evidence_file(store, record.kind)
    text = dumps({**body, "hash": hash_of(body)}, indent=2) + "\n"
    files = {**record.outputs, input_name(store, path): sha256_text(text)}
    store.log("evidence", kind=record.kind, status=record.status, files=files)
    write_text(path, text)
    return path


def read_evidence(store: Store, kind: str) -> Evidence | None:
    """The record of a kind, None when there is none. Raises FormatError when it is damaged or was edited."""
    path = evidence_file(store, kind)
    if not path.exists():
        return None
    found = read_json(path)
    try:
        body = {k: v for k, v in found.items() if k != "hash"}
        whole = hash_of(body) == found.get("hash")
    except (AttributeError, ValueError, TypeError, RecursionError):  # no mapping, or what no record holds
        whole = False
    if not whole:
        raise FormatError(f"{path} was edited after it was written.", fix="Make it again.")
    try:
        record = _evidence({k: v for k, v in body.items() if k != "input_hash"})
        right = record.kind == kind and record.status in STATUSES and record.input_hash == body["input_hash"]
    except (TypeError, KeyError, AttributeError) as exc:
        raise FormatError(f"{path} is no evidence record ({exc}).", fix="Make it again.") from None
    if not right:
        raise FormatError(f"{path} contradicts itself: kind, status or input hash.", fix="Make it again.")
    return record


def _evidence(body: dict[str, Any]) -> Evidence:
    return Evidence(**{**body, "subject": Subject(**cast(dict[str, Any], body["subject"]))})


def why_not(store: Store, record: Evidence, subject: Subject) -> str | None:
    """Why a record is no evidence for `subject` now: made for other weights, or from files that changed; None if it is.

    Merged weights are compared only where both sides name some.
    """
    for what in ("base", "candidate", "merged"):
        made, now_is = getattr(record.subject, what), getattr(subject, what)
        if made != now_is and not (what == "merged" and None in (made, now_is)):
            return f"it was made for another {what} ({made[:12]}, the candidate's is {now_is[:12]})"
    for name, digest in {**record.inputs, **record.outputs}.items():
        path = input_path(store, name)
        if not path.is_file():
            return f"{name}, which it was made from, is gone"
        if sha256_file(path) != digest:
            return f"{name} has changed since"
    return None

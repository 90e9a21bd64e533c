"""A finished study as a result of the index, and how that study stands now."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veritune import contract
from veritune.config.load import load_study
from veritune.errors import InputError, StaleError, VerituneError
from veritune.records import (
    Caveat,
    Finding,
    ResultAdded,
    ResultSource,
    ResultVerdict,
    StudyEvent,
    StudyVerdicts,
    Verdict,
)
from veritune.report import views
from veritune.report.caveats import standing_caveats
from veritune.report.read import read_records
from veritune.seal import seal_hash, sealed_files, verify
from veritune.store import Store, hash_of, sha256_file

Standing = Literal["as added", "stale", "resealed", "broken", "missing", "not looked at"]


@dataclass(frozen=True)
class StudyFacts:
    """The facts of a finished study: everything in a `ResultAdded` except its number, time and author."""

    key: str
    question: str
    verdicts: tuple[ResultVerdict, ...]
    source: ResultSource
    caveats: tuple[Caveat, ...]
    events: tuple[StudyEvent, ...]


@dataclass(frozen=True)
class StudyNow:
    """The present state of a result's study, as a sentence; `rehashed` tells whether every file was hashed for it."""

    standing: Standing
    sentence: str
    rehashed: bool


def read_study(study: Path, index: Path) -> StudyFacts:
    """A finished study as a result. Nothing is written.

    Raises InputError where it is not decided or not sealed, StaleError where a file is not as it was sealed.
    """
    store = Store.of(study)
    if not store.verdict_file.exists():
        raise InputError(
            f"{store.root} has no verdict.json: it is not a finished study.", fix=f"Run it first: veritune run {study}"
        )
    missing = _refuse_edited(store)
    verdicts = StudyVerdicts.load(store.verdict_file)
    records = read_records(store, load_study(store.study_file))
    if records.problems:
        raise StaleError(
            f"{store.root}: {records.problems[0]} ({len(records.problems)} problems).",
            fix=f"List all problems: veritune report {study}",
        )
    if verdicts.contract != records.contract_hash:
        raise StaleError(
            f"{store.root}: verdict.json was decided under another contract than the folder holds.",
            fix=f"Decide again: veritune run {study}",
        )
    source = _source(store, records.study.name, verdicts, index, missing)
    events = [
        StudyEvent(event.time or "", event.event, "; ".join(f"{key} {value}" for key, value in event.facts))
        for event in views.timeline(records)
    ]
    return StudyFacts(
        key=hash_of({"contract": source.contract, "verdict": source.verdict_sha256}),
        question=records.study.question,
        verdicts=tuple(_verdict(v, frozen=verdicts.contract is not None) for v in verdicts.verdicts),
        source=source,
        caveats=tuple(standing_caveats(records)),
        events=tuple(events),
    )


def _refuse_edited(store: Store) -> tuple[str, ...]:
    """Names of sealed files that were deleted and may be: checkpoints and the data file. Any other finding refuses."""
    findings = verify(store.root)
    wrong = [finding for finding in findings if not _may_be_missing(finding)]
    if wrong:
        raise StaleError(
            f"{store.root} differs from its seal: {wrong[0].message} ({len(wrong)} findings).",
            fix=f"List all findings: veritune verify {store.root}",
        )
    return tuple(sorted(str(finding.source) for finding in findings))


def _may_be_missing(finding: Finding) -> bool:
    checkpoint = "/checkpoints/" in (finding.source or "") and finding.check == "file.missing"
    return finding.check == "data.missing" or checkpoint


def _source(store: Store, name: str, verdicts: StudyVerdicts, index: Path, missing: Sequence[str]) -> ResultSource:
    report = store.report_file
    return ResultSource(
        study=name,
        folder=_relative(store.root, index),
        contract=verdicts.contract,
        seal=seal_hash(store.root),
        verdict_sha256=sha256_file(store.verdict_file),
        report_sha256=sha256_file(report) if report.is_file() else None,
        timeline=str(store.events()[-1]["hash"]),
        missing=tuple(missing),
    )


def _relative(folder: Path, index: Path) -> str:
    """The study's path from the index: both can then be moved together."""
    try:
        return Path(os.path.relpath(folder.resolve(), index.resolve())).as_posix()
    except ValueError:  # another drive
        return folder.resolve().as_posix()


def _verdict(verdict: Verdict, *, frozen: bool) -> ResultVerdict:
    return ResultVerdict(
        claim=verdict.claim,
        kind=verdict.kind,
        status=verdict.status,
        sentence=verdict.sentence,
        grade=views.text_of(verdict.confidence, "grade"),
        exploratory=verdict.exploratory or not frozen,
    )


# ---------------------------------------------------------------- how it stands now


def study_now(result: ResultAdded, source: ResultSource, index: Path, *, rehash: bool = True) -> StudyNow:
    """The present state of the study that a result came from. Never raises: a problem is part of the answer.

    Without `rehash` only the verdict and the seal are compared, and the answer says so.
    """
    store = Store((index / source.folder).resolve())
    try:
        return _now(result, source, store, rehash)
    except (VerituneError, OSError) as exc:
        text = exc.message if isinstance(exc, VerituneError) else str(exc)
        return StudyNow("broken", f"its study cannot be read: {text}", rehash)


def _now(result: ResultAdded, source: ResultSource, store: Store, rehash: bool) -> StudyNow:
    if not store.root.is_dir() or not store.events_file.exists():
        return StudyNow("missing", f"its study is no longer in {source.folder}", rehash)
    if not store.verdict_file.exists():
        return StudyNow("stale", "its study no longer has a verdict: it was changed or is being run again", rehash)
    if sha256_file(store.verdict_file) != source.verdict_sha256:
        return StudyNow("stale", _decided_again(result, store), rehash)
    held = contract.read(store).last.hash if store.contract_file.exists() else None
    if held != source.contract:
        return StudyNow("stale", "its contract was changed after the result was added", rehash)
    if sealed_files(store) is None:
        return StudyNow("broken", "its seal was removed, or is not the one that its timeline records", rehash)
    wrong = [f for f in verify(store.root) if not _may_be_missing(f)] if rehash else []
    if wrong:
        return StudyNow("broken", f"not as it was sealed: {wrong[0].message} ({len(wrong)} findings)", rehash)
    looked = "" if rehash else "; files not hashed again"
    if seal_hash(store.root) != source.seal:
        return StudyNow("resealed", f"its verdicts are as added, other files were sealed again{looked}", rehash)
    return StudyNow("as added" if rehash else "not looked at", f"as added{looked}", rehash)


def _decided_again(result: ResultAdded, store: Store) -> str:
    """Which verdicts changed, where the new ones can be read."""
    now = StudyVerdicts.load(store.verdict_file).by_claim()
    changed = [
        f"{old.claim} {old.status} to {now[old.claim].status}"
        for old in result.verdicts
        if old.claim in now and now[old.claim].status != old.status
    ]
    lost = [old.claim for old in result.verdicts if old.claim not in now]
    said = [*changed, *(f"{claim} is gone" for claim in lost)]
    return f"its study was decided again since: {'; '.join(said) or 'the same words on other numbers'}"

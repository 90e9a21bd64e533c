"""What would ship: one run's weights, what they were trained from, and the study's records as they were sealed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path

from veritune import contract as contracts
from veritune.config.fields import BASELINE
from veritune.config.load import load_study, parse_study
from veritune.config.study import Study
from veritune.errors import InputError, StudyError
from veritune.records import (
    Contract,
    Facts,
    RunManifest,
    StudyVerdicts,
    TrainingRecord,
)
from veritune.release.gate.evidence import Subject, files_digest, weights_digest
from veritune.release.gate.policy import Policy, load_policy
from veritune.seal import sealed_files
from veritune.store import Store, sha256_file


@dataclass(frozen=True, slots=True)
class Candidate:
    """The run to ship, the folder of its weights, and the digests that tie every gate to these weights.

    `elsewhere` is what could not be checked of weights that were trained elsewhere; empty for the study's own.
    """

    run_id: str
    condition: str
    seed: int
    folder: Path
    subject: Subject
    baseline: str
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """Everything that the gates examine. `study` is as in the contract, whatever study.yaml says now; only the policy
    is taken from the file. `today` determines what has expired.
    """

    store: Store
    study: Study
    contract: Contract
    policy: Policy
    candidate: Candidate
    today: date

    @property
    def facts(self) -> Facts:
        """The contract's facts: hashes and counts of data, template and model."""
        return self.contract.facts

    @property
    def contract_hash(self) -> str:
        """Hash of the contract's last entry."""
        return str(self.contract.last.hash)

    @cached_property
    def sealed(self) -> Mapping[str, str] | None:
        """SHA-256 by name of the study's files when its last run ended; None without the seal made then."""
        return sealed_files(self.store)

    def unsealed(self, path: Path) -> str | None:
        """Why a file of the study cannot be trusted; None if it is as the last run left it."""
        name = self.store.relative(path)
        if not path.is_file():
            return f"{name} is missing"
        if self.sealed is None:
            return f"{name} cannot be trusted: the timeline does not record this seal.json"
        if name not in self.sealed:
            return f"{name} was not there when the study was sealed"
        return None if sha256_file(path) == self.sealed[name] else f"{name} was edited after the study was sealed"


@dataclass(frozen=True, slots=True)
class CandidateChoice:
    """Which weights to judge, where the policy leaves it open or the user overrides it."""

    policy: Path | None = None
    condition: str | None = None
    seed: int | None = None


def open_case(study: str | Path, choice: CandidateChoice | None = None, today: date | None = None) -> Case:
    """The case of a finished study. Raises InputError without verdicts, StudyError if the choice of weights is open."""
    choice = choice or CandidateChoice()
    store = Store.of(study)
    if not store.verdict_file.exists():
        raise InputError(f"{store.root} has no verdicts yet.", fix=f"Run it first: veritune run {store.root}")
    kept = contracts.read(store)
    loaded = parse_study(dict(kept.last.terms.study), where=str(store.contract_file))
    policy = load_policy(load_study(store.study_file), kept, choice.policy)
    condition = _condition(loaded, policy, choice)
    seed = next(s for s in (choice.seed, policy.release.seed, loaded.seeds[0]) if s is not None)
    candidate = _candidate(store, kept, condition, seed)
    return Case(store, loaded, kept, policy, candidate, today or _today())


def _today() -> date:
    return datetime.now(UTC).date()


def _condition(study: Study, policy: Policy, choice: CandidateChoice) -> str:
    named = choice.condition or policy.release.condition
    if named is None and len(study.conditions) == 1:
        return next(iter(study.conditions))
    if named is None or named not in study.conditions:
        found = "none is named" if named is None else f"found {named!r}"
        raise StudyError(
            f"release.condition: expected one of {', '.join(study.conditions)}, {found}.",
            fix="Name the condition to ship in the policy, or with --condition.",
        )
    return named


def _candidate(store: Store, kept: Contract, condition: str, seed: int) -> Candidate:
    manifests = {
        run: RunManifest.load(store.run(run) / "manifest.json") for run in StudyVerdicts.load(store.verdict_file).runs
    }
    found = [r for r, m in manifests.items() if m.condition == condition and m.seed == seed]
    base = [r for r, m in manifests.items() if m.condition == BASELINE]
    if len(found) != 1 or len(base) != 1:
        raise StudyError(
            f"expected one run of {condition}, seed {seed}, and one baseline among the verdicts' runs; found "
            f"{len(found)} and {len(base)}.",
            fix="Name a seed that was run: --seed N.",
        )
    training = TrainingRecord.load(store.run(found[0]) / "training.json")
    folder = training.weights_in(store.root)
    digest = files_digest(kept.facts.model.files)
    subject = Subject(digest, weights_digest(folder))
    elsewhere = training.elsewhere.not_checked if training.elsewhere is not None else ()
    return Candidate(found[0], condition, seed, folder, subject, base[0], elsewhere)

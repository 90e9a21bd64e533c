"""Files that scorers need: a user's function, a judge's labelled outputs. Their hashes are facts of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veritune.config.evals import Eval
from veritune.errors import StaleError, StudyError
from veritune.records import ScorerFile
from veritune.store import sha256_file


def file_of(root: Path, key: str, named: str) -> Path:
    """A file that an eval names. Raises StudyError if it does not exist or lies outside the study's folder."""
    path = root / named
    if not path.resolve().is_relative_to(root.resolve()):
        raise StudyError(f"{key}: {named} lies outside the study's folder.", fix="Copy it beside study.yaml.")
    if not path.is_file():
        raise StudyError(f"{key}: no file at {path}.", fix="Name it relative to study.yaml.")
    return path


def scorer_files(root: Path, evals: Mapping[str, Eval]) -> dict[str, ScorerFile]:
    """The file of every eval that has one, with its hash. Raises StudyError."""
    made = {}
    for name, spec in evals.items():
        if spec.function is not None:
            made[name] = _hashed(root, f"evals.{name}.function", spec.function.rpartition(":")[0])
        elif spec.agreement is not None:
            made[name] = _hashed(root, f"evals.{name}.agreement", spec.agreement)
    return made


def _hashed(root: Path, key: str, named: str) -> ScorerFile:
    return ScorerFile(named, sha256_file(file_of(root, key, named)))


def check_files(root: Path, frozen: Mapping[str, ScorerFile]) -> None:
    """Raises StaleError if a file differs from the frozen one."""
    for name, scorer in frozen.items():
        path = root / scorer.path
        if not path.is_file() or sha256_file(path) != scorer.sha256:
            raise StaleError(
                f"evals.{name}: {path} is {'not the frozen file' if path.is_file() else 'gone'}.",
                fix='Restore it, or record it: `veritune amend STUDY --reason "..."`.',
            )

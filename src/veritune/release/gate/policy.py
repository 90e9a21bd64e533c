"""Where the release policy comes from: the study's `release:` section, a file that a team shares, or the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from veritune.config.release import Release
from veritune.config.study import Study
from veritune.errors import StudyError
from veritune.records import (
    Contract,
)
from veritune.store import hash_of
from veritune.untrusted import MAX_YAML_BYTES, parse_yaml, read_bytes


@dataclass(frozen=True, slots=True)
class Policy:
    """A release policy and its origin. `declared` tells whether it was fixed before any result existed."""

    release: Release
    source: str
    declared: str

    @property
    def hash(self) -> str:
        """Hash of the resolved settings, including defaults."""
        return hash_of(self.release.model_dump(mode="json"))


def load_policy(study: Study, contract: Contract, file: Path | None = None) -> Policy:
    """The named file's policy, else the study's, else the defaults. Raises StudyError."""
    if file is not None:
        return Policy(read_policy(file), file.name, "a file outside the contract: when it was written is unknown")
    if study.release is None:
        return Policy(Release(), "defaults", "the defaults of this version of Veritune")
    return Policy(study.release, "study.yaml", _declared(study.release, contract))


def read_policy(file: Path) -> Release:
    """A policy from a file: the keys of `release:`, at the top level or under `release:`. Raises StudyError with every
    problem.
    """
    try:
        raw = parse_yaml(read_bytes(file, MAX_YAML_BYTES))
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise StudyError(f"{file}: cannot be read as a policy ({' '.join(str(exc).split())[:160]}).") from None
    if isinstance(raw, dict) and set(raw) == {"release"}:
        raw = raw["release"]
    if not isinstance(raw, dict):
        raise StudyError(f"{file}: expected a mapping of settings, found {type(raw).__name__}.", fix=_FIX)
    try:
        return Release.model_validate(raw)
    except ValidationError as exc:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg'][0].lower()}{e['msg'][1:]}" for e in exc.errors()]
        raise StudyError(f"{file}: {'; '.join(lines)}.", fix=_FIX) from None


_FIX = "Correct these keys as listed in docs/release.md. No gate was evaluated."


def _declared(release: Release, contract: Contract) -> str:
    """When the contract first held this policy: before or after results were on disk."""
    held = release.model_dump(mode="json")
    for entry in contract.entries:
        if entry.terms.study.get("release") == held:
            late = len(entry.results)
            return f"after {late} runs had scores" if late else "in the contract, before results"
    return "not in the contract: the study file was edited without an amendment"

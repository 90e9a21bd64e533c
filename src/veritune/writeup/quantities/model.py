"""One recorded number and what it speaks of; all that a text about a study is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veritune.records import JsonLike, RunManifest, RunSummary

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a number refers to. None means that the dimension does not apply, or that the number is averaged over it."""

    condition: str | None = None
    against: str | None = None
    zone: str | None = None
    eval: str | None = None
    seed: int | None = None
    claim: str | None = None

    def text(self) -> str:
        """The scope in words: `all_layer, zone stranger, seed 0`."""
        parts = [self.condition and (f"{self.condition} against {self.against}" if self.against else self.condition)]
        parts += [f"zone {self.zone}" if self.zone else None, self.eval]
        parts.append(f"seed {self.seed}" if self.seed is not None else None)
        return ", ".join(p for p in parts if p) or "the study"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One recorded number.

    `kind` groups what one word can mean (`score`, `gap`, `ci`, `p`, `nll`, `items` ...). `source` is a file relative
    to the study folder and `pointer` a JSON pointer into it. `aliases` are words that bind a number to this quantity.
    `rate` says that the number may be printed as a percentage. Of a mean, `failed` items of the denominator had no
    score and count as the eval's failure value, and `runs` are averaged over. `stale` holds why a text may
    no longer use it.
    """

    name: str
    kind: str
    value: float
    unit: str = ""
    denominator: int | None = None
    scope: Scope = Scope()
    source: str = ""
    pointer: str = ""
    aliases: tuple[str, ...] = ()
    rate: bool = False
    stale: str = ""
    failed: int = 0
    runs: int = 1


@dataclass(frozen=True, slots=True)
class CheckedRecords:
    """The records that a text is checked against: the quantities, and the names and hashes of the study."""

    root: Path
    name: str
    contract: str
    old_contracts: tuple[str, ...]
    verdict_contract: str | None
    terms: Mapping[str, Any]
    verdicts: tuple[Mapping[str, Any], ...]
    quantities: tuple[Quantity, ...]
    hashes: Mapping[str, str]
    runs: Mapping[str, RunSummary]
    manifests: Mapping[str, RunManifest] = field(default_factory=dict)
    old_runs: tuple[str, ...] = ()
    by_name: Mapping[str, Quantity] = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The arms by name, the baseline last."""
        return (*self.terms["study"]["conditions"], BASELINE)

    @property
    def evals(self) -> tuple[str, ...]:
        return tuple(self.terms["study"]["evals"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.terms["study"]["seeds"])

    def claim(self, name: str) -> Mapping[str, JsonLike]:
        """The declaration of a claim."""
        return next((c for c in self.terms["study"]["claims"] if c["name"] == name), {})

    def eval_of(self, claim: Mapping[str, Any]) -> str | None:
        return claim.get("eval") or (self.evals[0] if len(self.evals) == 1 else None)


def is_number(value: JsonLike) -> bool:
    """Whether a recorded value is a number; a boolean is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)

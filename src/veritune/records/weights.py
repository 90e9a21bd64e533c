"""The record of `veritune probe weights`, kind `weights`: how far every weight moved, and root sums over groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritune.records.base import FORMAT_VERSION, RecordPart
from veritune.records.common import Json


@dataclass(frozen=True, slots=True)
class ModuleChange(RecordPart):
    """The change of one weight. Norms are Frobenius norms; `relative` is delta/base, None if the base is zero.

    effective_rank: exp of the entropy of squared singular values' shares (1: one direction; r: r equal ones).
    top_energy: share of the squared norm in the largest direction. intruders: of the changed weight's ten largest left
    singular vectors, those with cosine below 0.6 to every one of the base's (Shuttleworth et al. 2024,
    arXiv:2410.21228); None where not computed.
    """

    name: str
    type: str
    group: str
    layer: int | None
    shape: tuple[int, ...]
    delta_norm: float
    base_norm: float | None
    relative: float | None
    effective_rank: float | None = None
    top_energy: float | None = None
    intruders: int | None = None

    @property
    def module(self) -> str:
        """One name for a module, whether an adapter names it or a full checkpoint names its matrix."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True, slots=True)
class MovedNorm(RecordPart):
    """The change of several weights together: root sums of squares. `relative` is delta/base, None where the base of
    one of them is unknown or all are zero.
    """

    delta_norm: float
    base_norm: float | None
    relative: float | None
    n_modules: int


@dataclass(frozen=True, slots=True)
class WeightChange(RecordPart):
    """The weight changes of one comparison. Sums over modules are root sums of squares.

    >>> moved = MovedNorm(delta_norm=0.0, base_norm=2.0, relative=0.0, n_modules=1)
    >>> change = WeightChange("base", "tuned", "full", (), moved, {}, {}, {}, (), "It did not move.", "", "", {})
    >>> change.reading
    'It did not move.'
    """

    before: str
    after: str
    method: str
    modules: tuple[ModuleChange, ...]
    total: MovedNorm
    by_type: Mapping[str, MovedNorm]
    by_group: Mapping[str, MovedNorm]
    by_layer: Mapping[str, MovedNorm]
    notes: tuple[str, ...]
    reading: str
    limits: str
    would_change: str
    thresholds: Json
    kind: str = "weights"
    format: int = FORMAT_VERSION

    @property
    def parts(self) -> dict[str, MovedNorm | ModuleChange]:
        """Every total by the name that a claim gives it: `total`, a group, a type, `layer3`, a module."""
        layers = {f"layer{k}" if k.isdigit() else k: moved for k, moved in self.by_layer.items()}
        modules = {name: m for m in self.modules for name in (m.name, m.module)}
        return {"total": self.total, **self.by_group, **self.by_type, **layers, **modules}

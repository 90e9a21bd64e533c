"""One run's weight change beside another's, module by module: numbers alone, without a model."""

from __future__ import annotations

from collections.abc import Mapping

from veritune.config.thresholds import DEFAULTS, GeometryThresholds

Norms = Mapping[str, tuple[float, str, int | None]]
"""Norm of the change, type and layer of each module."""


def beyond(own: Norms, other: Norms, thresholds: GeometryThresholds = DEFAULTS.geometry) -> tuple[int, int, int]:
    """Modules that both runs moved, those above the rule's ratio, and those below it."""
    shared = [name for name in own if name in other and own[name][0] > 0 and other[name][0] > 0]
    ratios = [own[name][0] / other[name][0] for name in shared]
    above = sum(r > thresholds.worse_above for r in ratios)
    return len(shared), above, sum(r < thresholds.culprit_below for r in ratios)

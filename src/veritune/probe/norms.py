"""One run's weight change beside another's, module by module: numbers alone, without a model."""

from __future__ import annotations

from collections.abc import Mapping

from veritune.config.thresholds import DEFAULTS, GeometryThresholds

Norms = Mapping[str, tuple[float, str, int | None]]
"""Norm of the change, type and layer of each module."""


def module_key(name: str) -> str:
    """One name for a module, whether an adapter names it or a full checkpoint names its matrix.

    >>> module_key("model.layers.0.self_attn.q_proj.weight"), module_key("model.layers.0.self_attn.q_proj.bias")
    ('model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.q_proj.bias')
    """
    return name.removesuffix(".weight")


def beyond(own: Norms, other: Norms, thresholds: GeometryThresholds = DEFAULTS.geometry) -> tuple[int, int, int]:
    """Modules that both runs moved, those above the rule's ratio, and those below it."""
    shared = [name for name in own if name in other and own[name][0] > 0 and other[name][0] > 0]
    ratios = [own[name][0] / other[name][0] for name in shared]
    above = sum(r > thresholds.worse_above for r in ratios)
    return len(shared), above, sum(r < thresholds.culprit_below for r in ratios)

"""A telemetry file in three sentences: which part of the model the training moved, over all its steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from veritune.counting import many
from veritune.errors import ScoreError
from veritune.records import TelemetrySummary

ACROSS = ("type", "group")


def summarize(lines: Sequence[Mapping[str, Any]]) -> TelemetrySummary:
    """The summary of one run's lines (`read_telemetry`). Raises ScoreError if there are none."""
    if not lines:
        raise ScoreError("the telemetry holds no step.", fix="Train with GradientTelemetry(path) among the callbacks.")
    seen = [line for line in lines if line.get("status") == "ok" and line.get("share")]
    reasons: dict[str, int] = defaultdict(int)
    for line in lines:
        if line.get("status") != "ok":
            reasons[str(line.get("reason") or "no reason given")] += 1
    share: dict[str, dict[str, float]] = {}
    for axis in ACROSS:
        parts = [part for line in seen for part in line["share"].get(axis, {})]
        share[axis] = {
            part: sum(line["share"].get(axis, {}).get(part, 0.0) for line in seen) / len(seen)
            for part in dict.fromkeys(parts)
        }
    per_parameter = _per_parameter(seen, share)
    norms = [line["grad_norm"]["total"] for line in seen if line.get("grad_norm")]
    factors = [line["clip"]["factor"] for line in seen if (line.get("clip") or {}).get("factor") is not None]
    return TelemetrySummary(
        n_steps=len(lines),
        n_seen=len(seen),
        n_clipped=sum(f < 0.999 for f in factors) if len(factors) == len(seen) and seen else None,
        share=share,
        norm_first=norms[0] if norms else None,
        norm_last=norms[-1] if norms else None,
        update_ratio=_mean_ratio(seen),
        unavailable=dict(reasons),
        reading=_reading(seen, share, norms, reasons) + _denser(per_parameter),
        limits="Where gradients are large is not what was learned; larger parts have larger norms by their size alone.",
        would_change="A run that trains one part alone and is scored on strangers.",
        per_parameter=per_parameter,
    )


def _per_parameter(
    seen: Sequence[Mapping[str, Any]], share: Mapping[str, Mapping[str, float]]
) -> Mapping[str, Mapping[str, float]]:
    """Each part's share of the squared gradient over its share of the trained parameters."""
    counts: Mapping[str, Mapping[str, int]] = next((line["parameters"] for line in seen if line.get("parameters")), {})
    made: dict[str, dict[str, float]] = {}
    for axis, parts in share.items():
        own = counts.get(axis, {})
        total = sum(own.values())
        if total and all(own.get(part) for part in parts):
            made[axis] = {part: value / (own[part] / total) for part, value in parts.items()}
    return made


def _denser(per_parameter: Mapping[str, Mapping[str, float]]) -> str:
    """The part with most gradient for its size."""
    types = per_parameter.get("type") or {}
    if len(types) < 2:
        return ""
    part, times = max(types.items(), key=lambda item: item[1])
    return f" For its number of parameters {part} has most: {times:.1f} times its share."


def _mean_ratio(seen: Sequence[Mapping[str, Any]]) -> float | None:
    """Mean update-to-weight ratio over the steps that have one."""
    found = [((line.get("update") or {}).get("ratio") or {}).get("total") for line in seen]
    known = [x for x in found if isinstance(x, int | float)]
    return sum(known) / len(known) if known else None


def _reading(
    seen: Sequence[Any], share: Mapping[str, Mapping[str, float]], norms: Sequence[float], reasons: Mapping[str, int]
) -> str:
    if not seen:
        why = next(iter(reasons), "no share was recorded")
        return f"The gradients could not be seen at any step: {why}."
    parts = sorted(share["type"].items(), key=lambda item: -item[1])[:3]
    said = ", ".join(f"{part} {value:.0%}" for part, value in parts)
    fell = f"; the norm went from {norms[0]:.3g} to {norms[-1]:.3g}" if norms else ""
    missing = f", {many(sum(reasons.values()), 'steps')} unseen" if reasons else ""
    return f"Most of the squared gradient fell on {said} (mean over {many(len(seen), 'steps')}{missing}){fell}."

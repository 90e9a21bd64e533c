"""What aggregated results allow where the scores of each item are not at hand: an unpaired bound, and a refusal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from scipy.special import ndtri

from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.untrusted import parse_json, read_bytes

_FIX = "Use the samples_*.jsonl files that lm_eval --log_samples writes."


_LIGHTEVAL_FIX = "Use the details_*.parquet files that lighteval writes where it is told to save details."


class Aggregate(NamedTuple):
    """One stated figure: its task and metric, the value and its standard error."""

    task: str
    metric: str
    value: float
    error: float


def is_aggregate(document: Mapping[str, Cell]) -> bool:
    """Whether a document is lm-eval's results file, which has figures per task but no scores of items."""
    return "results" in document and bool(document.keys() & {"configs", "n-shot", "versions"})


def refuse_aggregate(path: Path, document: Mapping[str, Cell]) -> None:
    """Raises ScoreError for aggregated results."""
    if is_aggregate(document):
        lighteval = "config_general" in document
        whose, fix = ("lighteval's", _LIGHTEVAL_FIX) if lighteval else ("lm-eval's", _FIX)
        raise ScoreError(f"{path.name}: expected scores per item, found {whose} aggregated results.", fix=fix)


def refuse_aggregates(paths: Sequence[Path], alpha: float) -> None:
    """Raises ScoreError if both sides are aggregated results; the message gives the unpaired bound.

    Unpaired, the gap of two means with standard errors a and b has the standard error sqrt(a^2 + b^2).
    """
    if len(paths) != 2:
        return
    sides = [_figures(path) for path in paths]
    if not all(sides):
        return
    both = [name for name in sides[0] if name in sides[1]]
    if not both:
        names = ", ".join(sorted({f"{task} {metric}" for side in sides for task, metric in side})[:6])
        raise ScoreError(
            f"{paths[0].name} and {paths[1].name} are aggregated results without a common figure ({names})."
        )
    shown = [_bound(sides[0][name], sides[1][name], alpha) for name in both[:3]]
    more = f" (and {len(both) - 3} more figures)" if len(both) > 3 else ""
    raise ScoreError(
        f"{paths[0].name}: expected scores per item, found lm-eval's aggregated results; all they allow is an unpaired "
        f"bound: {'; '.join(shown)}{more}. Paired samples would be narrower.",
        fix=_FIX,
    )


def _bound(a: Aggregate, b: Aggregate, alpha: float) -> str:
    gap, error = a.value - b.value, math.hypot(a.error, b.error)
    half = float(ndtri(1 - alpha / 2)) * error
    return (
        f"{a.task} {a.metric} {a.value:.4g} against {b.value:.4g}, gap {gap:+.4f}, standard error {error:.4f}, "
        f"{100 * (1 - alpha):g} % interval [{gap - half:+.4f}, {gap + half:+.4f}]"
    )


def _figures(path: Path) -> dict[tuple[str, str], Aggregate]:
    """Figures with a standard error in a results file, none where the file is no such thing."""
    try:
        document = parse_json(read_bytes(path), finite=False) if path.is_file() else None
    except (OSError, ValueError):
        return {}
    if not isinstance(document, Mapping) or not is_aggregate(document):
        return {}
    found = {}
    tasks = document["results"]
    for task, figures in tasks.items() if isinstance(tasks, Mapping) else ():
        for name, value in figures.items() if isinstance(figures, Mapping) else ():
            metric, comma, rest = str(name).partition(",")
            error = figures.get(f"{metric}_stderr{comma}{rest}")
            if all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (value, error)):
                found[str(task), str(name)] = Aggregate(str(task), str(name), float(value), float(error))
    return found

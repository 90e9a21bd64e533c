"""What one document scores under an lm-eval metric, whose logged value need not be a number.

number, true, false       the score itself
[log-likelihood, length]  word_perplexity, byte_perplexity, bits_per_byte: the document's share of the corpus's loss
[gold, probabilities]     brier_score: sum over classes of (probability - [class is gold])^2
list of true and false    IFEval's inst_level_*: one item an instruction, the document their family
null, NaN                 no score
anything else             a metric of the whole corpus (bleu, chrf, ter, f1 and mcc of labels): refused by name
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.logs.values import scored

_PER_LENGTH = {"word_perplexity": 1.0, "byte_perplexity": 1.0, "bits_per_byte": math.log(2)}
"""Metrics of [log-likelihood, length] pairs, and by what nats a unit of length are divided."""


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True, slots=True)
class Sampled:
    """Values with their reasons; `row` is the index of each value's row, `part` its index in a list of values."""

    row: Sequence[int]
    value: Sequence[float | None]
    reason: Sequence[str | None]
    part: Sequence[int] = ()
    notes: tuple[str, ...] = ()


def sample_values(path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], metric: str) -> Sampled:
    """The values of one metric. Raises ScoreError for a row without it, and for a metric of the whole corpus."""
    for n, row in rows:
        if metric not in row:
            raise ScoreError(f"{path.name}, line {n}: expected the metric {metric!r}, found none.")
    values = [row[metric] for _, row in rows]
    shaped = [v for v in values if isinstance(v, list | Mapping | str) and v != "NaN"]
    if not shaped or all(isinstance(v, str) for v in shaped):
        return _plain(path, rows, metric)
    if metric in _PER_LENGTH and all(_is_pair(v) for v in values):
        return _per_length(path, values, metric)
    if metric in _PER_LENGTH:
        n, bad = next((n, row[metric]) for n, row in rows if not _is_pair(row[metric]))
        raise ScoreError(
            f"{path.name}, line {n}, {metric}: expected [log-likelihood, length] in finite numbers, found {bad!s:.60}."
        )
    briers = [_brier(v) for v in values] if metric == "brier_score" else []
    if briers and None not in briers:
        return Sampled(range(len(rows)), briers, [None] * len(rows))
    if all(isinstance(v, list) and v and all(isinstance(x, bool) for x in v) for v in values):
        flat = [(i, k, float(x)) for i, v in enumerate(values) for k, x in enumerate(v)]
        note = f"{len(flat)} values in {len(rows)} documents: each value is an item, its document the family"
        return Sampled(
            [i for i, _, _ in flat], [x for _, _, x in flat], [None] * len(flat), [k for _, k, _ in flat], (note,)
        )
    kind = next(type(v).__name__ for v in shaped)
    raise ScoreError(
        f"{path.name}: {metric!r} is computed from the whole corpus: a document's entry is "
        f"{'an object' if kind == 'dict' else f'a {kind}'} ({str(shaped[0])[:60]!r}), not a score.",
        fix="Choose a metric that scores each document (--metric NAME).",
    )


def _plain(path: Path, rows: Sequence[tuple[int, Mapping[str, Any]]], metric: str) -> Sampled:
    values: list[float | None] = []
    reasons: list[str | None] = []
    for n, row in rows:
        value, reason = scored(row[metric], path, n, metric)
        failed = value == 0 and _invalid(row.get("filtered_resps"))
        values.append(None if failed else value)
        reasons.append("extraction_failed" if failed else reason)
    return Sampled(range(len(rows)), values, reasons)


def _invalid(filtered: Cell) -> bool:
    """True when lm-eval's extraction filter found nothing (`[invalid]`), in any of several repeats."""
    if isinstance(filtered, list) and filtered and isinstance(filtered[0], list):
        return all(_invalid(repeat) for repeat in filtered)
    return isinstance(filtered, list) and bool(filtered) and filtered[0] == "[invalid]"


def _per_length(path: Path, values: Sequence[Sequence[float]], metric: str) -> Sampled:
    """Each document's loss as its share of the corpus's, so that the mean of the values is the corpus's loss a unit.

    With N documents, log-likelihoods l_i and lengths w_i: v_i = -l_i N / sum(w), whose mean is -sum(l) / sum(w).
    """
    total = math.fsum(length for _, length in values)
    if not total > 0:
        raise ScoreError(f"{path.name}: {metric}: expected lengths above 0, found {total:g} in all.")
    unit = _PER_LENGTH[metric] * total / len(values)
    stated = "bits per byte" if metric == "bits_per_byte" else f"ln({metric})"
    note = f"values are each document's share of the loss; their mean is {stated}"
    return Sampled(range(len(values)), [-loss / unit for loss, _ in values], [None] * len(values), notes=(note,))


def _is_pair(value: Cell) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_number(x) for x in value)


def _brier(value: Cell) -> float | None:
    """The Brier score of [gold, probabilities], None for anything else. lm-eval logs the probabilities as numpy prints
    them, `"[0.25 0.75]"`."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    gold, shares = value
    if isinstance(shares, str):
        words = shares.strip("[]").replace(",", " ").split()
        shares = [float(w) for w in words] if all(_NUMBER.fullmatch(w) for w in words) else None
    if not isinstance(shares, list) or not isinstance(gold, int) or not 0 <= gold < len(shares):
        return None
    if not all(_is_number(x) for x in shares):
        return None
    return float(sum((p - (k == gold)) ** 2 for k, p in enumerate(shares)))


def _is_number(value: Cell) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

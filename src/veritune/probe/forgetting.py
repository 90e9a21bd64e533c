"""Forgetting: what training on one thing cost on another. Loss on a regression set, row by row, before and after.

    record = forgetting(row_losses(base, rows), row_losses(trained, rows), families, margin=0.05)
    record.verdict     # keeps | forgets | cannot tell

Scores before and after are compared by `veritune.decide`, which the command puts beside this record.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veritune.config.thresholds import DEFAULTS
from veritune.errors import ScoreError
from veritune.probe.clusters import SAME, Floats, codes, ratio
from veritune.records import Estimate, Forgetting, ForgettingVerdict
from veritune.stats.families import undrawn

WORST = 5


def forgetting(
    before: Sequence[float],
    after: Sequence[float],
    families: Sequence[str | None],
    *,
    row_ids: Sequence[str] | None = None,
    margin: float = DEFAULTS.forgetting.margin,
    level: float = 0.95,
) -> Forgetting:
    """The rise of the loss, from losses of the same rows before and after training, with each row's family.

    Raises ScoreError for unequal lengths, no rows, a margin below 0 and values that are not finite.
    """
    ids = list(row_ids) if row_ids is not None else [str(i) for i in range(len(before))]
    if not len(before) == len(after) == len(families) == len(ids) or not len(before):
        lengths = [len(before), len(after), len(families), len(ids)]
        raise ScoreError(f"expected one loss before, one after, a family and an id per row, found {lengths}.")
    if margin < 0:
        raise ScoreError(f"margin: expected at least 0, found {margin}.")
    before_N, after_N = np.asarray(before, float), np.asarray(after, float)
    bad = np.flatnonzero(~(np.isfinite(before_N) & np.isfinite(after_N)))
    if bad.size:
        i = int(bad[0])
        raise ScoreError(
            f"row {ids[i]}: {before_N[i]} before and {after_N[i]} after; {bad.size} of {len(ids)} rows are not finite.",
            fix="Use another checkpoint: a diverged or damaged run has no finite loss.",
        )
    family_N, rise_N = codes(families), after_N - before_N

    def mean(name: str, value_N: Floats) -> Estimate:
        return ratio(name, value_N, np.ones(len(value_N)), family_N, level=level)

    rise = mean("rise of the loss", rise_N)
    worse = mean("share of rows whose loss rose", (rise_N > 0).astype(float))
    verdict = _verdict(rise, margin)
    order = np.argsort(-rise_N, kind="stable")[:WORST]
    return Forgetting(
        before=mean("loss before", before_N),
        after=mean("loss after", after_N),
        rise=rise,
        share_worse=worse,
        worst=tuple(
            {"row_id": ids[i], "before": float(before_N[i]), "after": float(after_N[i])} for i in order if rise_N[i] > 0
        ),
        margin=margin,
        verdict=verdict,
        reading=_reading(rise, worse, margin, verdict) + _worst(ids, rise_N, margin),
        limits="It speaks of rows like these and of loss on reference answers, not of what the model would write. "
        f"Up to {undrawn(rise.n_clusters or 1):.0%} of families could be of a kind that none of these is.",
        would_change="Another regression set, more families of it, or scores on it (`--extract` and `--expected`).",
    )


def _worst(ids: Sequence[str], rise_N: Floats, margin: float) -> str:
    """The row that rose most, where it rose beyond the margin: the mean over rows is what the verdict is about."""
    worst = int(rise_N.argmax())
    if rise_N[worst] <= margin:
        return ""
    beyond = int((rise_N > margin).sum())
    most = f"{ids[worst]} ({rise_N[worst]:+.3f})"
    return f" By row it rose by more than {margin:g} in {beyond} of {len(ids)}, most in {most}."


def _verdict(rise: Estimate, margin: float) -> ForgettingVerdict:
    if rise.low is None or rise.high is None:
        return "cannot tell"
    if rise.high <= margin:
        return "keeps"
    return "forgets" if rise.low > 0 else "cannot tell"


def _reading(rise: Estimate, worse: Estimate, margin: float, verdict: ForgettingVerdict) -> str:
    bounds = f" ({rise.low:+.3f} to {rise.high:+.3f})" if rise.low is not None and rise.high is not None else ""
    change = (
        f"the loss changed by {rise.value:+.3f}{bounds} nats per token, {worse.value:.0%} of {rise.n} rows got worse"
    )
    if verdict == "keeps":
        return f"It kept what this set asks, within {margin:g}: {change}."
    if verdict == "forgets":
        beyond = f"by more than {margin:g}" if (rise.low or 0) > margin else f"by {margin:g} or more is open"
        return f"It forgot some of what this set asks ({beyond}): {change}."
    if rise.value == 0 and worse.value == 0:
        return f"Whether it forgot cannot be told ({SAME}): {change}."
    why = f" ({rise.warnings[0]})" if rise.low is None and rise.warnings else ""
    return f"Whether it forgot cannot be told{why}: {change}."

"""A ranking of training families as text."""

from __future__ import annotations

from collections.abc import Iterator

from veritune.counting import many
from veritune.probe.attribution import Attribution, Ranking, Verified
from veritune.records import Estimate


def attribution_text(record: Attribution) -> str:
    """The record as text: its sentences, one table per list, the result of retraining, and what must not be written."""
    lines = [f"EXPERIMENTAL: {record.experimental.removeprefix('experimental: ')}.", "", record.reading, ""]
    for ranking in record.rankings:
        lines += [*_ranking(ranking), ""]
    if record.verified is not None:
        lines += [*_verified(record.verified), ""]
    lines += [f"Limits: {record.limits}", f"What would change it: {record.would_change}", "May not be written:"]
    return "\n".join([*lines, *(f"  {line}" for line in record.may_not)])


def _ranking(ranking: Ranking) -> Iterator[str]:
    """The families of a list beside both nulls, or why there are none."""
    what = ranking.items[0] if len(ranking.items) == 1 else f"{many(len(ranking.items), 'outputs')} together"
    words = f"by words p = {ranking.p_text:.2g}, rank correlation with words {ranking.text_correlation:+.2f}"
    yield f"{what}: p = {ranking.p:.2g} against the null ({ranking.p_corrected:.2g} corrected); {words}"
    if not ranking.shown:
        yield f"  {ranking.why}"
        return
    width = max(len("family"), *(len(f.family) for f in ranking.families))
    yield f"  {'family':{width}}  rows  predicted  by words  a row of it"
    for f in ranking.families:
        yield f"  {f.family:{width}}  {f.rows:4d}  {f.predicted:+9.3f}  {'no. ' + str(f.text_rank):>8}  {f.row}"


def _verified(found: Verified) -> Iterator[str]:
    """Effects of the sets, the top against the others, and predicted beside real effect."""
    seeds = ", ".join(map(str, found.seeds))
    yield f"Trained again without them, seeds {seeds}: rise of the outputs' loss, nats per token"
    for one in (*(s.effect for s in found.sets), *found.contrasts):
        yield f"  {one.name}: {nats(one)}, {many(one.n, 'outputs')}, {many(one.n_seeds or 0, 'seeds')}"
    if found.rank_correlation is None:
        yield "  rank correlation of predicted and real effect: not given, too few sets"
        return
    words = "none" if found.text_correlation is None else f"{found.text_correlation:+.2f}"
    yield (
        f"  rank correlation of predicted and real effect over {found.sets_compared} sets: "
        f"{found.rank_correlation:+.2f}; rotated null at most {found.rotated_max:+.2f}; words {words}"
    )


def nats(estimate: Estimate) -> str:
    """`+0.040 [+0.020, +0.059]`."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.3f} (no interval)"
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"

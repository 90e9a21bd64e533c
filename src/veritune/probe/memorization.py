"""Did it learn the policy or the samples? How much of the gain on trained rows carries to siblings and to strangers.

    gap = three_zone_gap(loss_before, loss_after, zones, families)
    gap.verdict        # generalises | partly | memorises | cannot tell

Each row's gain is its base loss minus its loss after training. Harder rows have more to gain, so every zone's mean gain
is read at one common base loss, from a regression of gain on base loss within the zone. The share that carries is the
zone's gain over the gain on `seen` rows. Its interval (`carried.share_interval`) joins what the family sizes of either
zone allow with two bounds that no data can break: a loss is never below 0, and a stranger family carries at most all.
`verbatim_recall` asks more directly: does greedy decoding give the rows back verbatim?
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from veritune.config.thresholds import DEFAULTS, Thresholds
from veritune.counting import many
from veritune.errors import DataError, ScoreError
from veritune.probe.batches import IGNORE, evaluating, in_batches, mean_losses, model_device, require_targets
from veritune.probe.carried import ZoneGain, share_interval, zone_gain
from veritune.probe.clusters import SAME, Floats, Ints, codes, ratio
from veritune.records import (
    Estimate,
    JsonLike,
    LongestCopied,
    Recall,
    Recalled,
    Rendered,
    ThreeZoneGap,
    ZoneRecall,
)
from veritune.records.probes import GapVerdict
from veritune.stats.families import undrawn

GAP_ZONES = ("seen", "sibling", "stranger")


def three_zone_gap(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    zones: Sequence[str],
    families: Sequence[Hashable],
    *,
    best: float | None = 0.0,
    thresholds: Thresholds = DEFAULTS,
) -> ThreeZoneGap:
    """The three-zone gap, from per-row losses of the base and the trained model on the same rows, with each row's zone
    and family.

    `best` is the least loss there can be; None says that nothing bounds it, and the record then says what it assumes.
    Scores that should rise are given as losses: the highest score less the score. Rows of other zones are ignored.
    Raises ScoreError for unequal lengths, values that are not finite or below `best`, or a zone without rows other
    than `sibling`, which a data set without siblings does not have.

    >>> zones, families = ["seen"] * 40 + ["stranger"] * 40, [f"f{i}" for i in range(80)]
    >>> before = [2.0 + 0.01 * (i % 7) for i in range(80)]
    >>> after = [loss - (1.5 if zone == "seen" else 0.0) for loss, zone in zip(before, zones)]
    >>> three_zone_gap(before, after, zones, families).verdict
    'memorises'
    """
    arrays = base_N, gain_N, zone_N, _ = _arrays(before, after, zones, families, best)
    least = thresholds.families.for_interval
    gains = _zone_gains(arrays, best, least)
    parts, present = gains.parts, list(gains.parts)
    carried = {z: gains.carried(z) for z in present if z != "seen"}
    seen = _gain(parts["seen"], "gain on seen rows, at the common base loss", least)
    verdict, why = _verdict(seen, parts, carried["stranger"], thresholds) if gain_N.any() else ("cannot tell", SAME)
    record = {z: _zone_record(z, base_N[m], gain_N[m], parts[z], least) for z in present if any(m := zone_N == z)}
    return ThreeZoneGap(
        zones=record | {"common_base": gains.common_base, "least_loss": best},
        carried=carried,
        verdict=verdict,
        why=why,
        thresholds={**thresholds.zone_gap.model_dump(), "families_for_interval": least},
        reading=_reading(verdict, why, seen, carried),
        limits=_limits(parts, best),
        would_change=_would_change(parts["stranger"].n_families, thresholds),
    )


LEVEL = 0.95
"""Level of the recorded intervals; the words follow from it."""

Arrays = tuple[Floats, Floats, npt.NDArray[np.str_], Ints]
"""Base loss, gain, zone and family code of every row, [N] each."""


@dataclass(frozen=True, slots=True, eq=False)
class ZoneGains:
    """Every zone's gain at the common base loss, from which the share carried over is computed at any level.

    `most` is the largest gain there can be at that base loss, `least` the families that an interval needs.
    """

    parts: Mapping[str, ZoneGain]
    common_base: float
    most: float | None
    least: int

    def carried(self, zone: str, level: float = LEVEL) -> Estimate:
        """Share of the seen gain that `zone` also has, with its interval at `level`."""
        return _carried(zone, self, level)


def zone_gains(
    before: Sequence[float], after: Sequence[float], zones: Sequence[str], families: Sequence[Hashable], *, least: int
) -> ZoneGains:
    """The gains that `three_zone_gap` reads, from losses of at least 0. Raises ScoreError as it does."""
    return _zone_gains(_arrays(before, after, zones, families, 0.0), 0.0, least)


def _zone_gains(arrays: Arrays, best: float | None, least: int) -> ZoneGains:
    base_N, gain_N, zone_N, family_N = arrays
    present = [z for z in GAP_ZONES if (zone_N == z).any()]
    reference = float(np.mean([base_N[zone_N == z].mean() for z in present]))
    parts = {z: zone_gain(base_N, gain_N, family_N, zone_N == z, reference, least) for z in present}
    return ZoneGains(parts, reference, None if best is None else reference - best, least)


def _arrays(
    before: Sequence[float] | Floats,
    after: Sequence[float] | Floats,
    zones: Sequence[str],
    families: Sequence[Hashable],
    best: float | None,
) -> Arrays:
    lengths = {len(before), len(after), len(zones), len(families)}
    if len(lengths) != 1:
        raise ScoreError(f"expected one value, zone and family per row, found lists of lengths {sorted(lengths)}.")
    base_N, after_N, zone_N = np.asarray(before, float), np.asarray(after, float), np.asarray(zones)
    bad = np.flatnonzero(~(np.isfinite(base_N) & np.isfinite(after_N)))
    if bad.size:
        raise ScoreError(
            f"row {int(bad[0])}: {base_N[bad[0]]} before and {after_N[bad[0]]} after; "
            f"{many(bad.size, 'rows', 'are')} not finite.",
            fix="Use another checkpoint: a diverged or damaged run has no finite loss.",
        )
    low = np.flatnonzero(np.minimum(base_N, after_N) < best) if best is not None else bad
    if low.size:
        raise ScoreError(
            f"row {int(low[0])}: {base_N[low[0]]:g} before and {after_N[low[0]]:g} after; a loss is at least {best:g}.",
            fix="Give losses in nats per token, or state the lowest possible value (best=...).",
        )
    for zone in ("seen", "stranger"):
        if not (zone_N == zone).any():
            raise ScoreError(f"no row of zone '{zone}' was scored.", fix="Score rows of every zone, before and after.")
    return base_N, base_N - after_N, zone_N, codes(families)


def _gain(zone: ZoneGain, name: str, least: int) -> Estimate:
    method = f"mean gain adjusted for the base loss, {zone.mean.rule.text}"
    made = Estimate(name, zone.mean.value, None, None, LEVEL, zone.n, method, n_clusters=zone.n_families)
    why = zone.without_interval(least)
    if why is not None:
        return replace(made, warnings=(why,))
    low, high = zone.mean.spread.interval(LEVEL)
    return replace(made, low=low, high=high, se=zone.mean.se, df=zone.mean.rule.df)


def _carried(name: str, gains: ZoneGains, level: float) -> Estimate:
    """Share of the seen gain that the zone shows."""
    to, seen, least = gains.parts[name], gains.parts["seen"], gains.least
    method = "ratio of adjusted gains by family, MOVER; one unseen family allowed for"
    n_families = min(to.n_families, seen.n_families)
    made = Estimate(name, None, None, None, level, to.n, method, n_clusters=n_families)
    if seen.mean.value <= 0:
        return replace(made, warnings=("seen rows did not gain: there is nothing to carry over",))
    made = replace(made, value=to.mean.value / seen.mean.value)
    why = to.without_interval(least) or seen.without_interval(least)
    if why is not None:
        return replace(made, warnings=(why,))
    low, high = share_interval(to, seen, gains.most, (1 - level) / 2, siblings=name == "sibling")
    if low is None or high is None:
        return replace(made, warnings=("unbounded: the gain on seen rows is not clear of zero",))
    return replace(made, low=low, high=high, df=min(to.mean.rule.df, seen.mean.rule.df))


def _verdict(
    seen: Estimate, parts: Mapping[str, ZoneGain], stranger: Estimate, thresholds: Thresholds
) -> tuple[GapVerdict, str]:
    least, words = thresholds.families.for_interval, thresholds.zone_gap
    few = [z for z in ("seen", "stranger") if parts[z].n_families < least]
    if few:
        counts = " and ".join(f"{many(parts[z].n_families or 0, 'families')} in '{z}'" for z in few)
        return "cannot tell", f"{counts}: at least {least} are needed"
    apart = [z for z in ("seen", "stranger") if not parts[z].overlaps]
    if apart:
        return "cannot tell", (
            f"the zones differ too much in difficulty: the common base value lies outside most {' and '.join(apart)} "
            "rows, so their gain there would be extrapolated"
        )
    if seen.low is None or seen.low <= 0:
        return "cannot tell", "the gain on seen rows is not clear of zero: nothing was learned that could carry over"
    if stranger.low is None or stranger.high is None:
        return "cannot tell", stranger.warnings[0]
    low, high = stranger.low, stranger.high
    if low >= words.generalises:
        return "generalises", f"at least {words.generalises:.0%} of the gain carries to strangers"
    if high <= words.memorises:
        return "memorises", f"at most {words.memorises:.0%} of the gain carries to strangers"
    if low > 0 and high <= words.whole:
        return "partly", "some of the gain carries to strangers, and not all of it"
    span = f"the share carried to strangers lies anywhere from {low:.0%} to {high:.0%}"
    return "cannot tell", f"{span}: {_open(low, high, words.whole)}"


def _open(low: float, high: float, whole: float) -> str:
    """What an interval that settles no word leaves open."""
    if low > 0:
        return "some of the gain carries, and whether all of it does is open"
    return (
        "not all of the gain carries, and whether any does is open"
        if high <= whole
        else "none and all are both possible"
    )


def _zone_record(zone: str, base_N: Floats, gain_N: Floats, part: ZoneGain, least: int) -> dict[str, JsonLike]:
    """What the record holds of one zone, from its own rows."""
    return {
        "n_rows": part.n,
        "n_families": part.n_families,
        "base_mean": float(base_N.mean()),
        "gain": ratio(f"gain on {zone} rows", gain_N, np.ones(part.n), part.family_N, least=least),
        "gain_at_common_base": part.mean.value,
        "slope_on_base": part.slope,
        "common_base_within_rows": part.overlaps,
    }


def _reading(verdict: GapVerdict, why: str, seen: Estimate, carried: Mapping[str, Estimate]) -> str:
    words = {
        "generalises": "It generalises",
        "partly": "It generalises in part",
        "memorises": "It memorises",
        "cannot tell": "Whether it generalises cannot be told",
    }[verdict]
    shares = []
    for zone, e in carried.items() if seen.low is None or seen.low > 0 else ():
        if e.value is not None:  # a share of a gain that is not clear of zero would be noise
            bounds = f" ({e.low:.0%} to {e.high:.0%})" if e.low is not None and e.high is not None else " (no interval)"
            shares.append(f"{e.value:.0%}{bounds} of it to {zone}s")
    unit = " nats per token"
    carries = f" Seen rows gained {seen.value:.3g}{unit}; {' and '.join(shares)} carried over." if shares else ""
    return f"{words}: {why}.{carries}"


def _would_change(strangers: int, thresholds: Thresholds) -> str:
    """More families; and below how many of them `memorises` cannot be said whatever the gains are."""
    # One unseen family that carries all weighs 1 - alpha^(1/G), which must leave room below the threshold.
    needed = math.ceil(math.log((1 - LEVEL) / 2) / math.log1p(-thresholds.zone_gap.memorises))
    least = f" `memorises` needs at least {needed} of them, whatever they gain." if strangers < needed else ""
    return (
        f"More stranger families narrow the interval; strangers of another kind than these may read differently.{least}"
    )


def _limits(parts: Mapping[str, ZoneGain], best: float | None) -> str:
    share = undrawn(parts["stranger"].n_families)
    unbounded = " No least loss was given, so that seen families with a rare large gain are not allowed for."
    return (
        "It holds for rows like those held out, at this checkpoint; siblings alone show what a leaky split would. "
        f"Up to {share:.0%} of stranger families could be of a kind that none of these is: the interval allows for one "
        f"that carries all, not for one that loses.{unbounded if best is None else ''}"
    )


# ---------------------------------------------------------------- running the model


def row_losses(model: torch.nn.Module, rows: Sequence[Rendered], *, batch_size: int = 8) -> list[float]:
    """Each row's mean NLL in nats per target token, in the given order. Inside `model.disable_adapter()` it is the
    base's.

    Raises DataError for a row without a target.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from veritune.records import Rendered
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = LlamaConfig(vocab_size=8, **sizes)
    >>> row = Rendered("r1", (1, 2, 3, 4), (-100, -100, 3, 4))
    >>> losses = row_losses(LlamaForCausalLM(config), [row])
    >>> len(losses), 1.5 < losses[0] < 3  # an untrained model: about log(8) = 2.08
    (1, True)
    """
    require_targets(rows)
    loss_N = np.zeros(len(rows))
    device = model_device(model)
    with evaluating(model), torch.no_grad():
        for index, batch in in_batches(rows, batch_size):
            loss_N[index] = mean_losses(model, batch.to(device)).double().cpu().numpy()
    return [float(x) for x in loss_N]


# ---------------------------------------------------------------- verbatim recall


def matched_spans(
    model: torch.nn.Module,
    rows: Sequence[Rendered],
    *,
    prefix_share: float = 0.5,
    min_rest: int = 8,
    batch_size: int = 8,
) -> list[tuple[int, int] | None]:
    """Per row: how many tokens greedy decoding reproduces before its first difference, and how many were asked for.

    Until the first difference greedy decoding sees the row's own tokens, so one forward pass over the row gives the
    same count as generating would. None for rows with fewer than `min_rest` tokens to give back.
    """
    require_targets(rows)
    spans: list[tuple[int, int] | None] = [None] * len(rows)
    device = model_device(model)
    caller: Any = model
    with evaluating(model), torch.no_grad():
        for index, batch in in_batches(rows, batch_size):
            here = batch.to(device)
            logits = caller(input_ids=here.ids_N_T, attention_mask=here.mask_N_T, use_cache=False).logits
            guess_N_T = logits[:, -here.ids_N_T.shape[1] :][:, :-1].argmax(-1)
            hit_N_T = (guess_N_T == here.ids_N_T[:, 1:]).cpu().numpy()
            for i, hit_T in zip(index, hit_N_T):
                spans[i] = _span(hit_T, rows[i], prefix_share, min_rest)
    return spans


def _span(hit_T: npt.NDArray[np.bool_], row: Rendered, prefix_share: float, min_rest: int) -> tuple[int, int] | None:
    targets = [t for t, label in enumerate(row.labels) if label != IGNORE and t > 0]
    given = int(len(targets) * prefix_share)
    rest = targets[given:]
    if len(rest) < min_rest or rest[-1] - rest[0] + 1 != len(rest):
        return None
    hits = hit_T[rest[0] - 1 : rest[-1]]
    misses = np.flatnonzero(~hits)
    return (int(misses[0]) if misses.size else len(rest)), len(rest)


def verbatim_recall(
    before: Sequence[tuple[int, int] | None],
    after: Sequence[tuple[int, int] | None],
    zones: Sequence[str],
    families: Sequence[str | None],
    *,
    prefix_share: float = 0.5,
    min_rest: int = 8,
) -> Recall:
    """Word-for-word recall by zone, with intervals by family, from `matched_spans` of the base and the trained model.

    Raises ScoreError for unequal lengths and DataError when no row is long enough.
    """
    if len({len(before), len(after), len(zones), len(families)}) != 1:
        raise ScoreError("expected one span before, one after, a zone and a family per row.")
    family_N = codes(families)
    made: dict[str, ZoneRecall] = {}
    for zone in dict.fromkeys(zones):
        mine = [i for i, z in enumerate(zones) if z == zone and before[i] is not None and after[i] is not None]
        skipped = sum(z == zone for z in zones) - len(mine)
        counts = ZoneRecall(len(mine), skipped)
        spans = [(before[i], after[i], i) for i in mine]
        made[zone] = _recall_in(counts, spans, family_N[mine]) if mine else counts
    if not any(zone.n_rows for zone in made.values()):
        raise DataError(f"no row has {min_rest} target tokens after its prefix.", fix="Lower min_rest or prefix_share.")
    return Recall(
        zones=made,
        prefix_share=prefix_share,
        min_rest=min_rest,
        reading=_recall_reading(made),
        limits="Rows with an obvious ending are given back without being memorised: compare with base and strangers.",
        would_change="Longer rests are harder to give back by chance; sampling finds text that greedy decoding misses.",
    )


def _recall_reading(zones: Mapping[str, ZoneRecall]) -> str:
    trained = {name: zone.trained.exact.value for name, zone in zones.items() if zone.trained is not None}
    seen = zones.get("seen")
    if seen is None or seen.base is None:
        return "No seen row was long enough to ask back."
    others = ", ".join(f"{name} {share:.0%}" for name, share in trained.items() if name != "seen")
    return (
        f"Greedy decoding gives back {trained['seen']:.0%} of seen rows word for word"
        f" (base {seen.base.exact.value:.0%}; {others or 'no other zone'})."
    )


def _recall_in(counts: ZoneRecall, spans: Sequence[tuple[Any, Any, int]], family_N: Ints) -> ZoneRecall:
    """One zone's recall, and how much of it the base gives back anyway. `spans`: base's, trained's, the row's place."""
    base_N = np.array([b[0] for b, _, _ in spans], float)
    trained_N = np.array([t[0] for _, t, _ in spans], float)
    asked_N = np.array([t[1] for _, t, _ in spans], float)
    one_N, at = np.ones(len(spans)), int(trained_N.argmax())
    return replace(
        counts,
        base=_recalled([b for b, _, _ in spans], family_N),
        trained=_recalled([t for _, t, _ in spans], family_N),
        beyond_base=ratio("matched share beyond the base's", (trained_N - base_N) / asked_N, one_N, family_N),
        base_as_long=ratio("rows the base copies as far", (base_N >= trained_N).astype(float), one_N, family_N),
        longest_copied=LongestCopied(spans[at][2], int(trained_N[at]), int(base_N[at]), int(asked_N[at])),
    )


def _recalled(spans: Sequence[tuple[int, int] | None], family_N: Ints) -> Recalled:
    known = [s for s in spans if s is not None]
    hit_N = np.array([s[0] for s in known], float)
    asked_N = np.array([s[1] for s in known], float)
    one_N = np.ones(len(known))
    return Recalled(
        matched=ratio("matched share of the rest", hit_N / asked_N, one_N, family_N),
        exact=ratio("rows given back whole", (hit_N == asked_N).astype(float), one_N, family_N),
        longest=int(hit_N.max()),
    )

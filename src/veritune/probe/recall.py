"""Forced choice: given half of a row's answer, does the model prefer the row's own ending to another row's?

    choices = build_choices(rows, zones, families)
    before, after = choice_scores(base, choices), choice_scores(trained, choices)
    record = forced_choice(choices, before, after)

Each choice is between two endings of the same number of tokens: the row's own, and that of a relative (`sibling`) or of
a row of another family (`stranger`). Other endings are taken from rows of the same zone, so that a text which was
trained on competes with texts that were trained on too. One choice is won (1), lost (0) or tied (1/2), so that chance
is exactly one half however many rows there are to choose from. An untrained model wins many of them, because endings
fit their beginnings: read the change against the base, and the change on seen rows against that on strangers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from veritune.errors import DataError, ScoreError
from veritune.probe.batches import IGNORE, evaluating, in_batches, model_device, require_targets, token_losses
from veritune.probe.clusters import Floats, codes, difference, ratio
from veritune.probe.memorization import matched_spans, verbatim_recall
from veritune.probe.study import Zoned
from veritune.probe.subject import ProbeSubject
from veritune.records import (
    ChoicesWon,
    ForcedChoice,
    Json,
    Recall,
    RecallContrast,
    Rendered,
    ZoneChoices,
)

Kind = Literal["sibling", "stranger"]
KINDS: tuple[Kind, ...] = ("sibling", "stranger")
CHANCE = 0.5


@dataclass(frozen=True)
class RecallPlan:
    """How choices are built: the share of the target that is given, the maximum and minimum tokens of an ending, the
    number of other endings of each kind per row, and the seed of their draw.
    """

    prefix_share: float = 0.5
    length: int = 16
    min_length: int = 6
    others: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Choices:
    """The choices. `candidates[c]` is a prefix with one ending, labelled on the ending only. Row `row[k]`'s own ending
    is candidate `own[k]`, the other is `other[k]`, of kind `kind[k]`. `skipped` counts rows by zone and reason.
    """

    candidates: tuple[Rendered, ...]
    row: tuple[int, ...]
    own: tuple[int, ...]
    other: tuple[int, ...]
    kind: tuple[Kind, ...]
    zones: tuple[str, ...]
    families: tuple[str | None, ...]
    skipped: Json
    plan: RecallPlan


def build_choices(
    rows: Sequence[Rendered], zones: Sequence[str], families: Sequence[str | None], plan: RecallPlan | None = None
) -> Choices:
    """Choices for every row that is long enough and has another row to be compared with.

    Raises DataError when there is none, or lists differ in length.
    """
    plan = plan or RecallPlan()
    require_targets(rows)
    if not len(rows) == len(zones) == len(families):
        raise DataError(f"expected a zone and a family per row ({len(rows)}), found {len(zones)} and {len(families)}.")
    halves = [_halves(r, plan) for r in rows]
    named = [f"\0{i}" if f is None else f for i, f in enumerate(families)]
    made = _Builder(rows, halves, plan)
    skipped: dict[str, dict[str, int]] = {}
    for i, half in enumerate(halves):
        counts = skipped.setdefault(zones[i], {"too_short": 0, "no_sibling": 0, "no_stranger": 0})
        if half is None:
            counts["too_short"] += 1
            continue
        near = [j for j, h in enumerate(halves) if j != i and h is not None and zones[j] == zones[i]]
        for kind in KINDS:
            pool = [j for j in near if (named[j] == named[i]) == (kind == "sibling")]
            if not made.add(i, kind, pool):
                counts[f"no_{kind}"] += 1
    if not made.row:
        raise DataError(
            f"no row can be used: expected endings of at least {plan.min_length} tokens and another row in the zone.",
            fix="Give more rows, or rows with longer answers.",
        )
    return Choices(
        tuple(made.candidates),
        tuple(made.row),
        tuple(made.own),
        tuple(made.other),
        tuple(made.kind),
        tuple(zones),
        tuple(families),
        skipped,
        plan,
    )


def _halves(row: Rendered, plan: RecallPlan) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """What is given and what is asked for (the last label, usually the end token, is not asked for)."""
    targets = [t for t, label in enumerate(row.labels) if label != IGNORE and t > 0]
    start = int(len(targets) * plan.prefix_share)
    rest = targets[start:-1]
    if len(rest) < plan.min_length or rest[-1] - rest[0] + 1 != len(rest):
        return None
    return row.input_ids[: rest[0]], row.input_ids[rest[0] : rest[-1] + 1][: plan.length]


class _Builder:
    def __init__(self, rows: Sequence[Rendered], halves: Sequence[Any], plan: RecallPlan) -> None:
        self.rows, self.halves, self.plan = rows, halves, plan
        self.candidates: list[Rendered] = []
        self.at: dict[tuple[int, tuple[int, ...]], int] = {}
        self.row: list[int] = []
        self.own: list[int] = []
        self.other: list[int] = []
        self.kind: list[Kind] = []

    def add(self, i: int, kind: Kind, pool: Sequence[int]) -> bool:
        """Add up to `others` choices for one row; returns False if no other ending differs from its own."""
        prefix, own = self.halves[i]
        order = list(pool)
        random.Random(f"{self.plan.seed}/{self.rows[i].row_id}/{kind}").shuffle(order)
        found: dict[tuple[int, ...], None] = {}
        for j in order:
            n = min(len(own), len(self.halves[j][1]))
            ending = self.halves[j][1][:n]
            if ending != own[:n]:
                found.setdefault(ending)
            if len(found) == self.plan.others:
                break
        for ending in found:
            self.row.append(i)
            self.kind.append(kind)
            self.own.append(self._candidate(i, prefix, own[: len(ending)]))
            self.other.append(self._candidate(i, prefix, ending))
        return bool(found)

    def _candidate(self, i: int, prefix: tuple[int, ...], ending: tuple[int, ...]) -> int:
        key = (i, ending)
        if key not in self.at:
            self.at[key] = len(self.candidates)
            labels = (IGNORE,) * len(prefix) + ending
            self.candidates.append(Rendered(f"{self.rows[i].row_id}#{len(self.at)}", prefix + ending, labels))
        return self.at[key]


def choice_scores(model: torch.nn.Module, choices: Choices, *, batch_size: int = 8) -> Floats:
    """Log-probability in nats of every candidate's ending given its prefix."""
    score_C = np.zeros(len(choices.candidates))
    device = model_device(model)
    with evaluating(model), torch.no_grad():
        for index, batch in in_batches(choices.candidates, batch_size):
            loss_N_T, _ = token_losses(model, batch.to(device))
            score_C[index] = -loss_N_T.double().sum(1).cpu().numpy()
    return score_C


def forced_choice(choices: Choices, before_C: Floats, after_C: Floats) -> ForcedChoice:
    """Shares of choices won by the base and the trained model. Raises ScoreError for scores that are not finite."""
    for name, score_C in (("before", before_C), ("after", after_C)):
        if len(score_C) != len(choices.candidates) or not np.isfinite(score_C).all():
            raise ScoreError(
                f"the scores '{name}' are not one finite number per ending.",
                fix="Use another checkpoint of that model.",
            )
    base = _won_by_row(choices, before_C)
    trained = _won_by_row(choices, after_C)
    zones: dict[str, ZoneChoices] = {}
    for zone in dict.fromkeys(choices.zones):
        won = {}
        for kind in KINDS:
            rows = [i for i, k in base if k == kind and choices.zones[i] == zone]
            won[kind] = _zone(choices, rows, kind, base, trained)
        zones[zone] = ZoneChoices(choices.skipped[zone], won["sibling"], won["stranger"])
    contrast = _contrast(choices, base, trained)
    return ForcedChoice(
        zones=zones,
        contrast=contrast,
        chance=CHANCE,
        plan={k: getattr(choices.plan, k) for k in ("prefix_share", "length", "min_length", "others", "seed")},
        reading=_reading(zones, contrast),
        limits="It counts a preference between two endings, not what the model would write; rewordings count as other.",
        would_change="Longer endings and closer relatives make it harder; obvious endings are won without being known.",
    )


@dataclass(frozen=True)
class RecallBase:
    """What the untouched model scores on these rows, either way: measured once for all runs that are compared."""

    choices: Choices
    score_C: Floats
    spans: list[tuple[int, int] | None]

    @staticmethod
    def of(base: torch.nn.Module, zoned: Zoned, plan: RecallPlan | None = None) -> RecallBase:
        """The scores of `base`."""
        choices = build_choices(zoned.rendered, zoned.zones, zoned.families, plan)
        return RecallBase(choices, choice_scores(base, choices), matched_spans(base, zoned.rendered))


def recall_of(
    found: ProbeSubject, zoned: Zoned, plan: RecallPlan | None = None, *, base: RecallBase | None = None
) -> dict[str, ForcedChoice | Recall]:
    """Both ways of asking back, `forced_choice` and `verbatim`, of a trained model beside its base on these rows.

    `base` is given where its scores on the same rows are known.
    """
    before = base or RecallBase.of(found.base(), zoned, plan)
    trained = found.trained()
    after, spans_after = choice_scores(trained, before.choices), matched_spans(trained, zoned.rendered)
    return {
        "forced_choice": forced_choice(before.choices, before.score_C, after),
        "verbatim": verbatim_recall(before.spans, spans_after, zoned.zones, zoned.families),
    }


def _won_by_row(choices: Choices, score_C: Floats) -> dict[tuple[int, Kind], tuple[float, int]]:
    """Per row and kind: the mean over its choices of won (1), tied (1/2), lost (0), and the number of ties."""
    made: dict[tuple[int, Kind], list[float]] = {}
    for row, own, other, kind in zip(choices.row, choices.own, choices.other, choices.kind):
        mine, theirs = score_C[own], score_C[other]
        made.setdefault((row, kind), []).append(0.5 if mine == theirs else float(mine > theirs))
    return {key: (float(np.mean(won)), sum(w == 0.5 for w in won)) for key, won in made.items()}


def _zone(
    choices: Choices, rows: Sequence[int], kind: Kind, base: Mapping[Any, Any], trained: Mapping[Any, Any]
) -> ChoicesWon:
    if not rows:
        return ChoicesWon(0, reason=f"no row has an ending of a {kind} in its zone")
    family_N = codes([choices.families[i] for i in rows])
    one_N = np.ones(len(rows))
    won = {name: np.array([side[i, kind][0] for i in rows]) for name, side in (("base", base), ("trained", trained))}
    return ChoicesWon(
        n_rows=len(rows),
        n_choices=sum(choices.kind[k] == kind and choices.row[k] in set(rows) for k in range(len(choices.row))),
        ties=sum(side[i, kind][1] for i in rows for side in (base, trained)),
        base=ratio("choices won by the base", won["base"], one_N, family_N),
        trained=ratio("choices won after training", won["trained"], one_N, family_N),
        change=ratio("change in choices won", won["trained"] - won["base"], one_N, family_N),
    )


def _contrast(choices: Choices, base: Mapping[Any, Any], trained: Mapping[Any, Any]) -> RecallContrast:
    kind: Kind = "stranger"
    rows = [i for i, k in base if k == kind and choices.zones[i] in ("seen", "stranger")]
    change_N = np.array([trained[i, kind][0] - base[i, kind][0] for i in rows])
    seen_N = np.array([choices.zones[i] == "seen" for i in rows], bool)
    found = difference(
        "change on seen rows minus change on strangers", change_N, seen_N, codes([choices.families[i] for i in rows])
    )
    return RecallContrast(replace(found, method=found.method + "; base taken off row by row"))


def _reading(zones: Mapping[str, ZoneChoices], contrast: RecallContrast) -> str:
    parts = []
    for zone in ("seen", "sibling", "stranger"):
        won = zones[zone].stranger if zone in zones else ChoicesWon(0)
        if won.trained is not None and won.base is not None:
            parts.append(f"{zone} {won.trained.value:.0%} (base {won.base.value:.0%})")
    e = contrast.estimate
    if not parts:
        return (
            "No zone has rows of two families, so no ending of another family could be offered: too little to say "
            "whether seen rows gained more than strangers."
        )
    said = f"Own endings are preferred to other families' in {', '.join(parts)} of choices, chance 50%"
    if e.low is None or e.high is None:
        return f"{said}; too little to say whether seen rows gained more than strangers."
    span = f"{e.value:+.0%} ({e.low:+.0%} to {e.high:+.0%})"
    if e.low > 0:
        return f"{said}: seen rows gained more than strangers by {span}, a trace of recall."
    return f"{said}: seen rows against strangers changed by {span}, no clear trace of recall."

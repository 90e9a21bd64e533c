"""`runs/<run_id>/probes/three_zone.json`: how much of a run's gain in loss carries to siblings and to strangers; and
the records in `probes/`, each with its `kind`: weights are in `weights.py`, geometry in `geometry.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from veritune.records.base import FORMAT_VERSION, Record, RecordPart
from veritune.records.common import Estimate, Json

GapVerdict = Literal["generalises", "partly", "memorises", "cannot tell"]
ForgettingVerdict = Literal["keeps", "forgets", "cannot tell"]


@dataclass(frozen=True)
class ThreeZoneGap(RecordPart):
    """The record of a three-zone gap. Gains are in the units given (nats per token for losses); shares are of the gain
    on seen rows.

    `thresholds` are the numbers that chose the word.
    """

    zones: Json
    carried: Mapping[str, Estimate]
    verdict: GapVerdict
    why: str
    thresholds: Json
    reading: str
    limits: str
    would_change: str
    kind: str = "three_zone_gap"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class ZoneGapRecord(Record):
    """The three-zone gap of one run, from its losses and the baseline's."""

    input_hash: str
    gap: ThreeZoneGap


# ---------------------------------------------------------------- probes/: one record of each kind


@dataclass(frozen=True, slots=True)
class Leak(RecordPart):
    """The result of a leak probe, in nats per target token.

    `flattered` is the honest run's loss minus the leaky run's on the same held-out rows; `elsewhere` the same on
    validation rows, whose families neither run trained on; `by_leak` is the first minus the second. `honest` and
    `leaky` hold what either split would have reported: loss on trained rows, on held-out rows, and their gap.
    """

    condition: str
    seed: int
    n_trained: int
    flattered: Estimate
    elsewhere: Estimate
    by_leak: Estimate
    honest: Json
    leaky: Json
    shared: Json
    reading: str
    limits: str
    would_change: str
    kind: str = "leak"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class TelemetrySummary(RecordPart):
    """Where the gradients of a run were large. `share` is each part's mean share of the squared gradient norm over the
    recorded steps. `per_parameter` is that share divided by the part's share of the trained parameters: 1 if a part has
    what its size predicts; empty if the lines do not count parameters. Norms are before clipping; None if no step has
    one.
    """

    n_steps: int
    n_seen: int
    n_clipped: int | None
    share: Mapping[str, Mapping[str, float]]
    norm_first: float | None
    norm_last: float | None
    update_ratio: float | None
    unavailable: Mapping[str, int]
    reading: str
    limits: str
    would_change: str
    per_parameter: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    kind: str = "telemetry"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class GradientProbe(RecordPart):
    """The result of a gradient probe. Row indices count from 0 in the rows that were given."""

    n_rows: int
    n_measured: int
    n_families: int | None
    settings: Json
    coverage: Json
    loss: Json
    estimates: tuple[Estimate, ...]
    raw: tuple[Estimate, ...]
    by_type: Json
    by_family: tuple[Json, ...]
    by_source: Json
    norms: Json
    found: Json | None
    measured_rows: tuple[str, ...]
    reading: str
    limits: str
    would_change: str
    worth: Json = field(default_factory=dict)
    agreement: Json = field(default_factory=dict)
    matrix: Json = field(default_factory=dict)
    kind: str = "gradients"
    format: int = FORMAT_VERSION

    def estimate(self, name: str) -> Estimate:
        """The estimate named `sibling`, `stranger`, `gap`, `rho`, `n_eff` or `directions`."""
        return next(e for e in self.estimates if e.name == name)


@dataclass(frozen=True, slots=True)
class Calibration(RecordPart):
    """A calibration record. `bins` holds the reliability table, `brier.details` the decomposition; rates are in [0, 1].

    `ece_debiased` is the one to judge by; `ece` stands beside it because others report it. `rms` is the root of the
    unbiased estimate of sum_b w_b d_b^2 (0 when that is negative). `n_missing` rows had no confidence and are left out.
    """

    ece: Estimate
    ece_debiased: Estimate
    brier: Estimate
    accuracy: Estimate
    overconfidence: Estimate
    rms: float
    bins: tuple[Json, ...]
    n: int
    n_families: int
    n_missing: int
    reading: str
    limits: str
    would_change: str
    kind: str = "calibration"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Forgetting(RecordPart):
    """The change of the loss on a regression set, in nats per target token; each row counts once. `rise` is after minus
    before, paired by row.

    `keeps`: the rise lies below the margin with its whole interval. `forgets`: it lies above 0 with its whole interval
    and the margin is not shown to hold. `share_worse` is the share of rows whose loss rose; `worst` names the rows that
    rose most.
    """

    before: Estimate
    after: Estimate
    rise: Estimate
    share_worse: Estimate
    worst: tuple[Json, ...]
    margin: float
    verdict: ForgettingVerdict
    reading: str
    limits: str
    would_change: str
    kind: str = "forgetting"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class ChoicesWon(RecordPart):
    """One zone's choices against endings of one kind: shares won by base and trained model, and their paired change.
    Without a row that could be asked there is only `reason`.
    """

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("n_choices", "ties", "base", "trained", "change", "reason")

    n_rows: int
    n_choices: int | None = None
    ties: int | None = None
    base: Estimate | None = None
    trained: Estimate | None = None
    change: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ZoneChoices(RecordPart):
    """One zone of forced choice: rows skipped by reason, choices against siblings' endings and against strangers'."""

    skipped: Mapping[str, int]
    sibling: ChoicesWon
    stranger: ChoicesWon


@dataclass(frozen=True, slots=True)
class RecallContrast(RecordPart):
    """The change on seen rows minus that on strangers."""

    estimate: Estimate


@dataclass(frozen=True, slots=True)
class ForcedChoice(RecordPart):
    """The result of forced choice. By zone and kind: `base` and `trained` share of choices won, their paired `change`,
    all by family.

    `contrast` is the change on seen rows minus that on strangers, for endings of other families.
    """

    zones: Mapping[str, ZoneChoices]
    contrast: RecallContrast
    chance: float
    plan: Json
    reading: str
    limits: str
    would_change: str
    kind: str = "forced_choice"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Recalled(RecordPart):
    """How much one model gives back: mean matched share, share of rows given back whole, longest span in tokens."""

    matched: Estimate
    exact: Estimate
    longest: int


@dataclass(frozen=True, slots=True)
class LongestCopied(RecordPart):
    """The row with the longest span: tokens given back after training and by the base, and tokens asked for."""

    row: int
    tokens: int
    base: int
    asked: int


@dataclass(frozen=True, slots=True)
class ZoneRecall(RecordPart):
    """One zone of word-for-word recall. Without a row that is long enough there are only the counts."""

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("base", "trained", "beyond_base", "base_as_long", "longest_copied")

    n_rows: int
    n_too_short: int
    base: Recalled | None = None
    trained: Recalled | None = None
    beyond_base: Estimate | None = None
    base_as_long: Estimate | None = None
    longest_copied: LongestCopied | None = None


@dataclass(frozen=True, slots=True)
class Recall(RecordPart):
    """Word-for-word recall by zone: greedy continuation of each row's own target after a prefix of it.

    `matched` is the mean share of the rest that greedy decoding gives before its first difference; `exact` the share of
    rows whose whole rest it gives; `longest` the longest such span in tokens. `base` is the base model, same rows;
    `beyond_base` the paired difference in `matched`, `base_as_long` the share of rows where the base copies at least as
    long a span, `longest_copied` the row with the longest span and what the base gives there.
    """

    zones: Mapping[str, ZoneRecall]
    prefix_share: float
    min_rest: int
    reading: str
    limits: str
    would_change: str
    kind: str = "verbatim_recall"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class FallenTokens(RecordPart):
    """Mean loss of some tokens before and after, in nats, and its fall. Without such a token there is only `reason`."""

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = (
        *("before", "after", "fall", "control_after", "fall_beyond_control", "reason"),
    )

    n_tokens: int
    before: float | None = None
    after: float | None = None
    fall: Estimate | None = None
    control_after: float | None = None
    fall_beyond_control: Estimate | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class FallenClass(FallenTokens):
    """The tokens of one class, with their share of the whole fall; None where nothing fell."""

    share: float | None = None


@dataclass(frozen=True, slots=True)
class TokenFall(RecordPart):
    """Where the loss fell. Falls are nats per token, before minus after; `share` is of the whole fall over all target
    tokens.
    """

    n_rows: int
    n_tokens: int
    total: FallenTokens
    by_class: Mapping[str, FallenClass]
    by_position: tuple[Json, ...]
    rows: tuple[Json, ...]
    reading: str
    limits: str
    would_change: str
    thresholds: Json
    kind: str = "token_fall"
    format: int = FORMAT_VERSION

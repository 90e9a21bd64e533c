"""`plan.json`, and what it was measured on: `audit/live-<condition>.json` and `audit/live-answers.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart
from veritune.records.training import MemoryPeak, Trainable

Count = int | None
"""A number of items or seeds; None where no number is enough."""


@dataclass(frozen=True, slots=True)
class LiveMemory(RecordPart):
    """Bytes of memory that training needs, by use; `total` is the measured peak. None if unknown.

    `process` was held before the model was loaded, `activations` is the rest of the peak, `loaded_as` the base alone.
    `scoring` is the peak while the trained model answered, absent where it answers elsewhere.
    """

    weights: int | None
    adapter: int | None
    gradients: int | None
    optimizer: int | None
    activations: int | None
    process: int | None
    total: int | None
    source: str
    reason: str | None
    loaded_as: int | None
    scoring: int | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("scoring",)


@dataclass(frozen=True, slots=True)
class LiveProbe(Record):
    """A few real optimizer steps of one condition. Times in seconds; `loss` in nats per target token.

    `rows_compared_with_contract` is None, and `rows_sent` is there, where a server trains. `start_s` are the seconds
    until the processes of a cell with several `train.devices` have met; absent with one.
    """

    input_hash: str
    condition: str
    loss: float
    step_s: float
    step_tokens: float
    validation_s: float
    validation_tokens: int
    load_s: float
    memory: LiveMemory
    rows_compared_with_contract: int | None
    moved_tensors: int
    trainable_tensors: int
    trainable: Trainable
    rows_sent: int | None = None
    start_s: float | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("rows_sent", "start_s")

    def validation_seconds(self, tokens: int) -> float:
        """Seconds to compute the loss of rows with this many tokens, at the measured speed."""
        return tokens * self.validation_s / self.validation_tokens


@dataclass(frozen=True, slots=True)
class EvalTiming(RecordPart):
    """The base's answers to one batch of an eval: seconds to read its prompts, and per further token.

    `cache_bytes` is what the cache of a batch of full length takes, absent where a server answers.
    """

    prompts: int
    prompt_s: float
    token_s: float
    cache_bytes: int | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("cache_bytes",)


@dataclass(frozen=True, slots=True)
class AnswerProbe(Record):
    """The base's answers to a batch of each eval, cut to a few tokens; `load_s` are the seconds to load the model."""

    input_hash: str
    load_s: float
    evals: Mapping[str, EvalTiming]
    memory: MemoryPeak

    @property
    def cache_bytes(self) -> int:
        """Bytes of the largest eval's key-value cache at full length."""
        return max((timing.cache_bytes or 0 for timing in self.evals.values()), default=0)


@dataclass(frozen=True, slots=True)
class CellSeconds(RecordPart):
    """The parts of a cell's time, in seconds."""

    load: float
    train: float
    validate: float
    loss: float
    answer: float
    total: float

    @classmethod
    def of(cls, load: float, train: float, validate: float, loss: float, answer: float) -> CellSeconds:
        """The parts, with their sum added."""
        return cls(load, train, validate, loss, answer, load + train + validate + loss + answer)


@dataclass(frozen=True, slots=True)
class PlannedCell(RecordPart):
    """What one cell will need. `run_id` is None while its learning rate is not chosen; `seed` and `lr` are None for the
    baseline.

    `tokens` are those it trains on; `disk_bytes` stay, `work_bytes` come on top while it trains; `memory_bytes` is the
    peak, None where it cannot be told; `memory` is absent for the baseline, which trains nothing. `scoring_tokens` are
    those that its evals take at most.
    """

    run_id: str | None
    phase: str
    condition: str
    seed: int | None
    lr: float | None
    rows: int
    steps: int
    tokens: int
    checkpoints: int
    disk_bytes: int
    work_bytes: int
    memory_bytes: int | None
    seconds: CellSeconds
    memory: LiveMemory | None = None
    scoring_tokens: int | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("memory", "scoring_tokens")

    @property
    def key(self) -> tuple[str, str, int]:
        """(phase, condition, seed), the baseline's seed as 0: the cell without its learning rate."""
        return self.phase, self.condition, self.seed or 0


@dataclass(frozen=True, slots=True)
class TokenSpread(RecordPart):
    """Tokens of `n` rows: mean and percentiles, each None if n is 0."""

    n: int
    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    max: int | None


@dataclass(frozen=True, slots=True)
class PlannedData(RecordPart):
    """Rows by zone, tokens of the seen rows (all, and those with loss), and the number of items per eval."""

    rows: Mapping[str, int]
    tokens_per_epoch: int
    row_tokens: TokenSpread
    answer_tokens: TokenSpread
    target_tokens_per_epoch: int
    longest_row: int
    items: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Prices(RecordPart):
    """Prices in USD of time or tokens; None if not stated."""

    per_hour: float | None = None
    per_million_tokens: float | None = None
    per_million_scoring_tokens: float | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("per_million_scoring_tokens",)


@dataclass(frozen=True, slots=True)
class PlannedProbe(RecordPart):
    """A probe that `run` makes once the cells are done: how many models or checkpoints it reads, and its seconds."""

    probe: str
    models: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PlanTotal(RecordPart):
    """The sum over cells; `seconds` count the probes beside them. `memory_bytes` is the largest cell's, `usd` the cost
    if a price is set. `scoring_tokens` is None in plans of earlier versions.
    """

    cells: int
    steps: int
    tokens: int
    seconds: float
    disk_bytes: int
    memory_bytes: int | None
    usd: float | None
    price: Prices
    scoring_tokens: int | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("scoring_tokens",)


@dataclass(frozen=True, slots=True)
class PlanProbes(RecordPart):
    """The measurements behind a plan: the live probe of each condition, and the base's answers."""

    live: Mapping[str, LiveProbe]
    answers: AnswerProbe


@dataclass(frozen=True, slots=True)
class Assumed(RecordPart):
    """What is assumed before training. `discordance`: the share of items on which two runs differ (graded scores: the
    variance of their difference); `seed_sd`: standard deviation of a run's mean score between seeds, in score units."""

    discordance: float = 0.1
    seed_sd: float = 0.015
    power: float = 0.8


@dataclass(frozen=True, slots=True)
class ClaimReach(RecordPart):
    """What the declared design can detect for one claim; `sentence` states it in words.

    `detectable` is (least, most) in score units over what is not known; an end is None where no gap on the scale is
    detected. `items_for_margin` and `seeds_for_margin` likewise; an end is None where no number is enough. `chance` is
    that to show the claim at its margin (equivalence: at a true gap of 0). `undecidable` says why no verdict is
    possible, or why the claim can never be supported, whatever comes out; empty where neither is proved. A claim on a
    probe, or one without items, has none of them: `design` is None.
    """

    claim: str
    kind: str
    margin: float | None
    sentence: str
    design: Assumed | None = None
    zone: str | None = None
    items: int | None = None
    families: int | None = None
    seeds: tuple[int, int] | None = None
    alpha: float | None = None
    undecidable: str = ""
    detectable: tuple[float | None, float | None] | None = None
    chance: tuple[float | None, float | None] | None = None
    items_for_margin: tuple[Count, Count] | None = None
    seeds_for_margin: tuple[Count, Count] | None = None


@dataclass(frozen=True, slots=True)
class PlanComparison(RecordPart):
    """Planned and actual seconds of the cells of one command; ratios are actual / planned, None: unknown."""

    planned_s: float
    took_s: float
    time_ratio: float | None
    memory_ratio: float | None


@dataclass(frozen=True, slots=True)
class EarlierPlan(RecordPart):
    """The plan that a newer one replaces."""

    number: int
    made: str
    input_hash: str


@dataclass(frozen=True, slots=True)
class RunPlan(Record):
    """What a study will need and what it can detect. `made` is the time; `cells` are all cells in running order.

    Plans are numbered from 1; `supersedes` is the one before, None for the first. `beside` are the probes that the run
    makes after the cells; absent where it makes none.
    """

    input_hash: str
    number: int
    supersedes: EarlierPlan | None
    made: str
    data: PlannedData
    probe: PlanProbes
    cells: tuple[PlannedCell, ...]
    total: PlanTotal
    resolution: tuple[ClaimReach, ...]
    beside: tuple[PlannedProbe, ...] | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("beside",)

    @property
    def host_memory_bytes(self) -> int | None:
        """The most main memory that a cell needs; None if it was measured on an accelerator, or not at all."""
        measured = [probe.memory.source for probe in self.probe.live.values()]
        return self.total.memory_bytes if measured and all(source == "VmHWM" for source in measured) else None

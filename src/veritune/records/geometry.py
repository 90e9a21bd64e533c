"""Records of `veritune probe geometry`: kinds `geometry`, `geometry_grid` and `geometry_cells`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from veritune.records.base import FORMAT_VERSION, RecordPart


@dataclass(frozen=True, slots=True)
class MeasureChange(RecordPart):
    """A measure before and after. `change` is the difference (for `separation` the ratio minus 1); `low` and `high` its
    jackknife interval over groups; `p` two-sided, never below `floor`; `p_adjusted` is corrected over the whole family.
    `reason` says why numbers are missing.
    """

    base: float | None
    trained: float | None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    floor: float | None = None
    n_permutations: int | None = None
    p_adjusted: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class LayerGeometry(RecordPart):
    """One layer (0: the embeddings): every measure before and after, and what the measures together are read as.

    `m1_from_drift` and `m1_from_arrangement` add up to the change of M1.
    """

    layer: int
    top_channel_share: float | None
    m1_from_drift: float | None
    m1_from_arrangement: float | None
    m1: MeasureChange
    m1_around_reference: MeasureChange
    m1_without_top_channel: MeasureChange
    icc: MeasureChange
    separation: MeasureChange
    common_drift: MeasureChange
    reading: str = ""
    why: str = ""

    def measure(self, name: str) -> MeasureChange:
        """The measure of that name in `stats.centroids.MEASURES`."""
        found: MeasureChange = getattr(self, name)
        return found

    def with_measure(self, name: str, change: MeasureChange) -> LayerGeometry:
        """The same layer with another value of one measure."""
        values: dict[str, Any] = {name: change}
        return replace(self, **values)


@dataclass(frozen=True, slots=True)
class Geometry(RecordPart):
    """The geometry of one run by one method. `layers` hold for each measure in `stats.centroids.MEASURES` the value
    before and after, its change with a jackknife interval over personas, its permutation p and the p corrected over the
    whole grid; and the `reading` of the layer with its reason.
    """

    n_personas: int
    n_questions: int
    prompts_hash: str
    method: str
    layers: tuple[LayerGeometry, ...]
    reading: str
    limits: str
    would_change: str
    kind: str = "geometry"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class ReferenceRatio(RecordPart):
    """A measure's change in one layer over a reference run's. `verdict` is `withheld`, with `reason`, where the
    reference's own change decides nothing.
    """

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("change", "reference_change", "reason", "note")

    layer: int
    measure: str
    ratio: float | None
    verdict: str
    change: float | None = None
    reference_change: float | None = None
    reason: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class GridFamily(RecordPart):
    """Over how many values the p were corrected, the smallest p there is, and how many values must lie at it for any
    to count.
    """

    values: int
    smallest_p: float
    needed_at_smallest: int
    correction: str


@dataclass(frozen=True, slots=True)
class GeometryLimits(RecordPart):
    """The thresholds that a grid was read by, as `thresholds.geometry` of `study.yaml` documents them."""

    min_personas: int
    alpha: float
    small_change: float
    culprit_below: float
    worse_above: float


@dataclass(frozen=True, slots=True)
class GeometryGrid(RecordPart):
    """The record of one run: a `Geometry` per method, and its ratios to a reference run if one was given.

    `files` holds SHA-256 of the user's own files.
    """

    label: str
    condition: str | None
    seed: int | None
    step: int | None
    methods: Mapping[str, Geometry]
    against: Mapping[str, tuple[ReferenceRatio, ...]] | None
    files: Mapping[str, str]
    family: GridFamily
    thresholds: GeometryLimits
    reading: str
    limits: str
    would_change: str
    kind: str = "geometry_grid"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class GridCell(RecordPart):
    """One measure of one run at one layer. `p` is the swap p, `floor` its smallest possible value; None where unknown.
    `ratio` is the change over the reference's, `verdict` the word by the rule, or `withheld` with `reason`."""

    condition: str
    seed: int | None
    step: int | None
    method: str
    layer: int
    measure: str
    change: float
    base: float | None = None
    trained: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    floor: float | None = None
    p_adjusted: float | None = None
    ratio: float | None = None
    by_rule: str | None = None
    verdict: str | None = None
    reason: str = ""

    @property
    def place(self) -> tuple[str, int, str]:
        """Method, layer and measure: what two runs are compared at."""
        return self.method, self.layer, self.measure


@dataclass(frozen=True, slots=True)
class DosePoint(RecordPart):
    """`change` is the mean over `seeds` of a run's mean change over `layers`; `low` and `high` are its t interval over
    seeds, `least` and `most` the seeds' own values. `beyond` is the mean over shared seeds of this run's change minus
    the reference run's at the same step, with its interval; None without a reference there.
    """

    condition: str
    step: int | None
    method: str
    measure: str
    seeds: tuple[int | None, ...]
    layers: tuple[int, ...]
    change: float
    low: float | None
    high: float | None
    least: float
    most: float
    reference: str | None = None
    beyond: float | None = None
    beyond_low: float | None = None
    beyond_high: float | None = None


@dataclass(frozen=True, slots=True)
class CellCount(RecordPart):
    """A condition's cells of one measure: those that rose, fell, or were not shown to move by a corrected p and a
    readable amount; those without a p, those above zero, and how many have each word against the reference.
    """

    condition: str
    measure: str
    cells: int
    rose: int
    fell: int
    not_shown: int
    without_p: int
    above_zero: int
    against: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class CellFamily(RecordPart):
    """How many p the correction covers, the smallest possible p, and how many cells must have it before any can count;
    None where it is not known.
    """

    values: int
    without_p: int
    smallest_p: float | None
    needed_at_smallest: int | None
    correction: str


@dataclass(frozen=True, slots=True)
class CellGrid(RecordPart):
    """The grid of cells over checkpoints, seeds and conditions. `counts` are by condition and measure."""

    source: str
    reference: str | Mapping[str, str] | None
    cells: tuple[GridCell, ...]
    counts: tuple[CellCount, ...]
    dose: tuple[DosePoint, ...]
    family: CellFamily
    thresholds: Mapping[str, float]
    reading: str
    limits: str = (
        "Cells of one run share its weights and its personas: they are no independent repetitions, and a count of them "
        "has no interval. M1 also rises when all personas drift the same way; read ICC beside it."
    )
    would_change: str = "More seeds; a claim on a count takes the spread between them."
    kind: str = "geometry_cells"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class StepGeometry(RecordPart):
    """`probes/geometry/<run_id>/step-N.json`: what was read of one checkpoint, by method."""

    input_hash: str
    methods: Mapping[str, Geometry]


@dataclass(frozen=True, slots=True)
class StudyGeometry(RecordPart):
    """`probes/geometry/geometry.json`: the grid over all checkpoints of a study, and the grid's hash."""

    input_hash: str
    record: CellGrid

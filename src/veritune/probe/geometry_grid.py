"""Representation geometry as one grid: runs (checkpoints, conditions, seeds) × methods × layers × measures.

    grids = build_grids([(Run("step-40"), {"last_input_token": geometry(...), "response_mean": geometry(...)})])
    grids[0].reading

Every measure stands beside the others in each cell, with its own change and p; the p of all cells, measures, methods
and runs are corrected as one family (`stats.centroids.adjusted`). A cell is then read by which of them moved:

    collapse        ICC fell and the centroids came closer: the personas lost what sets them apart
    less distinct   ICC fell and the centroids were not shown to come closer: the scatter of states may have grown
    apart           ICC rose and the centroids moved apart
    more distinct   ICC rose and the centroids were not shown to move apart: the scatter may have shrunk
    contraction     the centroids came closer and M1 rose, but the scatter shrank too, so that ICC did not move: less
                    distinct against what all states share, not against the scatter of single states
    expansion       the reverse
    separation alone  separation moved and neither ICC nor M1 was shown to: as when a layer changes its scale
    common drift    the centroids' mean moved and ICC and separation did not: M1 may move by it, distinctness need not
    cosines alone   a cosine moved, and neither ICC, separation nor drift did
    too small       measures moved by their corrected p, and by less than the smallest readable change
    not readable    nothing moved among the measures that could be taken, and some could not
    nothing shown   no measure moved by its corrected p

The first seven carry `with common drift` where the centroids' mean moved too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from veritune.config.thresholds import DEFAULTS, GeometryThresholds
from veritune.errors import ScoreError
from veritune.records import (
    Geometry,
    GeometryGrid,
    GeometryLimits,
    GridFamily,
    LayerGeometry,
    MeasureChange,
    ReferenceRatio,
    RunManifest,
)
from veritune.stats.centroids import COSINES, MEASURES, NAMES, adjusted, cells_needed, floor_of
from veritune.store import read_json

Grid = GeometryGrid
RATIOS = ("m1", "m1_around_reference", "icc")
"""Measures whose change is compared with a reference run's."""


@dataclass(frozen=True)
class GridRun:
    """The trained model that a reading belongs to; fields are None if its folder outside a study does not tell."""

    label: str
    condition: str | None = None
    seed: int | None = None
    step: int | None = None


def run_of(folder: Path) -> GridRun:
    """The run of an adapter's or checkpoint's folder, with the study's facts if it is inside a study."""
    from veritune.probe.series import step_of

    manifest = next((f / "manifest.json" for f in folder.parents[:3] if (f / "manifest.json").is_file()), None)
    if manifest is None:
        return GridRun(str(folder), None, None, step_of(folder))
    if manifest.parent.parent.name == "runs":
        run = RunManifest.load(manifest)
        return GridRun(str(folder), run.condition, run.seed, step_of(folder))
    bundle = read_json(manifest)
    return GridRun(str(folder), bundle.get("condition"), bundle.get("seed"), step_of(folder))


def build_grids(
    runs: Sequence[tuple[GridRun, Mapping[str, Geometry]]],
    reference: Mapping[str, Geometry] | None = None,
    files: Mapping[str, str] | None = None,
    thresholds: GeometryThresholds = DEFAULTS.geometry,
) -> list[Grid]:
    """One record per run. All runs, methods, layers and measures together are one family of tests."""
    corrected, family = _correct([g for _, methods in runs for g in methods.values()], thresholds)
    limits = GeometryLimits(**thresholds.model_dump(mode="json"))
    made, queue = [], iter(corrected)
    for run, methods in runs:
        read = {name: _read(next(queue), family, thresholds) for name in methods}
        against = None
        if reference is not None:
            against = {m: tuple(against_reference(g, reference[m], thresholds)) for m, g in read.items()}
        first = next(iter(read.values()))
        made.append(
            GeometryGrid(
                run.label, run.condition, run.seed, run.step, read, against, dict(files or {}), family,
                limits, _summary(read, against), first.limits, first.would_change,
            )
        )  # fmt: skip
    return made


def read_alone(found: Geometry, thresholds: GeometryThresholds = DEFAULTS.geometry) -> Geometry:
    """One method of one run, read alone: its own layers and measures are the family of tests."""
    (alone,), family = _correct([found], thresholds)
    return _read(alone, family, thresholds)


def _correct(found: Sequence[Geometry], thresholds: GeometryThresholds) -> tuple[list[Geometry], GridFamily]:
    """The records with `p_adjusted` in every cell, and what the family of tests was."""
    layers = [line for one in found for line in one.layers]
    tested = {name: [i for i, line in enumerate(layers) if line.measure(name).p is not None] for name in MEASURES}
    p_of = {name: [_own_p(layers[i], name) for i in places] for name, places in tested.items()}
    for name, values in adjusted(p_of).items():
        for i, value in zip(tested[name], values):
            layers[i] = layers[i].with_measure(name, replace(layers[i].measure(name), p_adjusted=value))
    n_cells = sum(map(len, tested.values()))
    floor = floor_of(min((g.n_personas for g in found), default=1))
    family = GridFamily(
        values=n_cells,
        smallest_p=floor,
        needed_at_smallest=cells_needed(floor, n_cells, thresholds.alpha),
        correction="Benjamini-Hochberg over all values, and never below that over the measure's own",
    )
    queue = iter(layers)
    return [replace(one, layers=tuple(islice(queue, len(one.layers)))) for one in found], family


# ---------------------------------------------------------------- one cell


def _shown(line: LayerGeometry, name: str, thresholds: GeometryThresholds) -> int:
    """1 or -1 where a measure moved up or down by its corrected p, by however little, else 0."""
    cell = line.measure(name)
    if cell.p_adjusted is None or not cell.change or cell.p_adjusted >= thresholds.alpha:
        return 0
    return 1 if cell.change > 0 else -1


def _moved(line: LayerGeometry, name: str, thresholds: GeometryThresholds) -> int:
    """The same, 0 where the change is below the smallest readable one: words need a size as well as a p."""
    shown = _shown(line, name, thresholds)
    return shown if shown and _size(line, name) >= thresholds.small_change else 0


def _size(line: LayerGeometry, name: str) -> float:
    """How far a measure changed, up or down; 0 where that is unknown."""
    return abs(line.measure(name).change or 0.0)


def read_cell(line: LayerGeometry, thresholds: GeometryThresholds) -> tuple[str, str]:
    """The reading of one layer and its reason; it names the measures that moved, and what a disagreement between them
    means.
    """
    moved = {name: _moved(line, name, thresholds) for name in MEASURES}
    why = ", ".join(f"{NAMES[name]} {_went(line, name)}" for name in MEASURES if moved[name])
    with_drift = " with common drift" if moved["common_drift"] else ""
    if moved["icc"]:
        word, more = _distinct(moved["icc"], moved["separation"])
        return word + with_drift, why + more
    if moved["separation"]:
        word, more = _spread(moved["separation"], moved["m1"])
        return word + with_drift, f"{why}; {_still(line, 'icc')}: {more}"
    if with_drift:
        return "common drift", f"{why}; {_still(line, 'icc')}: no loss of distinctness is shown"
    if any(moved[name] for name in COSINES):
        rest = "; ".join(_still(line, name) for name in ("icc", "separation", "common_drift"))
        return "cosines alone", f"{why}; {rest}: the measures disagree"
    tiny = [f"{NAMES[name]} {line.measure(name).change:+.2g}" for name in MEASURES if _shown(line, name, thresholds)]
    if tiny:
        return "too small", f"{', '.join(tiny)}; smallest readable change {thresholds.small_change:g}"
    gone = {line.measure(name).reason for name in MEASURES if line.measure(name).change is None}
    return ("not readable", "; ".join(sorted(filter(None, gone)))) if gone else ("nothing shown", "")


def _distinct(icc: int, separation: int) -> tuple[str, str]:
    """The word for an ICC that moved, by whether the centroids were shown to move the way that explains it."""
    if icc == separation:
        return ("collapse" if icc < 0 else "apart"), ""
    if icc < 0:
        return "less distinct", "; the centroids were not shown to come closer: the scatter of states may have grown"
    return "more distinct", "; the centroids were not shown to move apart: the scatter of states may have shrunk"


def _spread(separation: int, m1: int) -> tuple[str, str]:
    """The word for a separation that moved without ICC, by whether M1 went the way that this would take it."""
    if m1 != -separation:
        return "separation alone", "M1 was not shown to move with it, as when a whole layer changes its scale"
    word, against = ("contraction", "less") if separation < 0 else ("expansion", "more")
    return word, f"{against} distinct against what all states share, not against the scatter of single states"


def _went(line: LayerGeometry, name: str) -> str:
    cell = line.measure(name)
    if name == "common_drift":
        return f"{cell.change:.2g} of the base's separation"
    if name == "separation":
        return f"{cell.change:+.0%}"
    return f"{cell.base:.3f} to {cell.trained:.3f}"


def _still(line: LayerGeometry, name: str) -> str:
    cell = line.measure(name)
    if cell.change is None:
        return f"{NAMES[name]} is unknown ({cell.reason or 'not measured'})"
    ends = "" if cell.low is None else f", {cell.low:+.3f} to {cell.high:+.3f}"
    return f"{NAMES[name]} did not clearly move ({cell.change:+.3f}{ends})"


# ---------------------------------------------------------------- one method


def _read(found: Geometry, family: GridFamily, thresholds: GeometryThresholds) -> Geometry:
    """Each cell with its reading, and the sentence over all of them."""
    read = [(line, *read_cell(line, thresholds)) for line in found.layers]
    found = replace(found, layers=tuple(replace(line, reading=word, why=why) for line, word, why in read))
    return replace(found, reading=_sentence(found, family, thresholds))


def _sentence(found: Geometry, family: GridFamily, thresholds: GeometryThresholds) -> str:
    n = len(found.layers)
    by_name = {name: [x for x in found.layers if _moved(x, name, thresholds)] for name in MEASURES}
    moved = sum(any(_moved(x, name, thresholds) for name in MEASURES) for x in found.layers)
    if not moved:
        return _none_moved(found, family, thresholds)
    parts = [f"{NAMES[name]} {_how(name, lines)}" for name, lines in by_name.items() if lines]
    still = [NAMES[name] for name, lines in by_name.items() if not lines]
    counts = Counter(x.reading for x in found.layers)
    said = f"In {moved} of {n} layers a measure moved: {'; '.join(parts)}."
    said += f" In no layer: {', '.join(still)}." if still else ""
    said += f" Read as {', '.join(f'{word} in {k}' for word, k in counts.most_common())}."
    return said + _meaning(found, by_name) + _too_small(found, thresholds)


def _how(name: str, lines: Sequence[LayerGeometry]) -> str:
    """How one measure moved in the layers where it did, with the layer where it moved most."""
    most = max(lines, key=lambda x: _size(x, name))
    up = sum((x.measure(name).change or 0.0) > 0 for x in lines)
    word = "in" if name == "common_drift" else "rose in" if up == len(lines) else "fell in" if not up else "moved in"
    return (
        f"{word} {len(lines)} (most in layer {most.layer}, {_went(most, name)}, p {most.measure(name).p_adjusted:.2g})"
    )


def _meaning(found: Geometry, by_name: Mapping[str, Sequence[LayerGeometry]]) -> str:
    """What it means where M1 and the measures that take a shared shift off disagree."""
    drifted = [x for x in by_name["m1"] if x.reading == "common drift"]
    unseen = [x for x in by_name["icc"] if x not in by_name["m1"]]
    said = ""
    if drifted:
        most = max(drifted, key=lambda x: _size(x, "m1"))
        share = most.m1_from_drift
        split = f" (in layer {most.layer} {share:+.3f} of its {most.m1.change:+.3f})" if share is not None else ""
        said += (
            f" M1 and ICC disagree in {len(drifted)}: M1 also moves when all personas move the same way{split}, which"
            " is no loss of distinctness."
        )
    if unseen:
        said += f" ICC moved and M1 did not in {len(unseen)}: M1 sits near its ceiling where one channel carries it."
    return said


def _too_small(found: Geometry, thresholds: GeometryThresholds) -> str:
    """Measures that moved by their p and by less than the smallest readable change: shown, and not read."""
    parts = []
    for name in MEASURES:
        lines = [x for x in found.layers if _shown(x, name, thresholds) and not _moved(x, name, thresholds)]
        if lines:
            most = max(lines, key=lambda x: _size(x, name))
            parts.append(f"{NAMES[name]} in {len(lines)} (at most {most.measure(name).change:+.2g})")
    if not parts:
        return ""
    return f" By less than the smallest readable change ({thresholds.small_change:g}) moved {'; '.join(parts)}."


def _none_moved(found: Geometry, family: GridFamily, thresholds: GeometryThresholds) -> str:
    """What a reading without a measure that moved must add: nothing changed at all, or what was seen and not shown."""
    n = len(found.layers)
    said = f"In none of {n} layers did a measure clearly move"
    known = [x.measure(name) for x in found.layers for name in MEASURES]
    known = [c for c in known if c.p is not None]
    if not known:
        return f"{said}: {found.layers[0].why or 'no measure could be taken'}."
    if tiny := _too_small(found, thresholds):
        return f"{said} by a readable amount.{tiny}"
    if not any(c.change for c in known):
        return f"{said}: both models have the same states (nothing was trained, or the two are one model)."
    if family.smallest_p >= thresholds.alpha:
        why = f"with so few personas the smallest p there is is {family.smallest_p:.3g}, so none could be shown"
    else:
        why = (
            f"corrected over {family.values} values, of which {family.needed_at_smallest} must reach the smallest"
            f" p ({family.smallest_p:.2g}) for any to count"
        )
    return f"{said} ({why}). {_before_correction(found, family, thresholds)}"


def _before_correction(found: Geometry, family: GridFamily, thresholds: GeometryThresholds) -> str:
    """What moved by its own p, or came as near as these personas let it: not shown, and not nothing either."""
    bar = max(thresholds.alpha, family.smallest_p * (1 + 1e-9))
    parts = []
    for name in MEASURES:
        lines = [x for x in found.layers if x.measure(name).change and _own_p(x, name) <= bar]
        if lines:
            most = max(lines, key=lambda x: _size(x, name))
            parts.append(
                f"{NAMES[name]} in {len(lines)} (layer {most.layer}: {_went(most, name)}, p {_own_p(most, name):.2g})"
            )
    if parts:
        return f"Not nothing: before the correction p <= {bar:.2g} for {'; '.join(parts)}."
    most = max(found.layers, key=lambda x: _size(x, "m1"))
    if not most.m1.change:
        return ""
    return f"Largest change of M1: layer {most.layer}, {_went(most, 'm1')}, p {_own_p(most, 'm1'):.2g}."


def _own_p(line: LayerGeometry, name: str) -> float:
    """A measure's p before any correction; 1 where it has none."""
    p = line.measure(name).p
    return 1.0 if p is None else p


# ---------------------------------------------------------------- against a reference run


def against_reference(
    run: Geometry, reference: Geometry, thresholds: GeometryThresholds = DEFAULTS.geometry
) -> list[ReferenceRatio]:
    """Per layer and measure in `RATIOS`, the run's change divided by a reference run's: below `culprit_below` the
    reference's method is the culprit, above `worse_above` the run is markedly worse, in between the change is generic.

    A reference change that is small, or whose interval holds 0, decides nothing: the cell is `withheld`, with its ratio
    and the reason.
    """
    if run.prompts_hash != reference.prompts_hash or len(run.layers) != len(reference.layers):
        raise ScoreError("the two runs were read with different prompts or have different architectures.")
    pairs = [(ours, theirs, name) for ours, theirs in zip(run.layers, reference.layers) for name in RATIOS]
    return [
        _ratio(ReferenceRatio(ours.layer, name, None, "withheld"), ours.measure(name), theirs.measure(name), thresholds)
        for ours, theirs, name in pairs
    ]


def _ratio(line: ReferenceRatio, a: MeasureChange, b: MeasureChange, thresholds: GeometryThresholds) -> ReferenceRatio:
    """The line, which is withheld as it comes, with the ratio of change `a` to change `b` and its word."""
    if a.change is None or b.change is None:
        return replace(line, reason=a.reason or b.reason or "not measured")
    line = replace(line, change=a.change, reference_change=b.change, ratio=a.change / b.change if b.change else None)
    if line.ratio is None or abs(b.change) < thresholds.small_change:
        why = f"the reference's change {b.change:+.4f} is below {thresholds.small_change:g}"
        return replace(line, reason=why)
    if b.low is None or b.high is None or b.low <= 0 <= b.high:
        return replace(line, reason=f"the reference's change {b.change:+.4f} is not clear of 0")
    low, high = thresholds.culprit_below, thresholds.worse_above
    word = "reference is the culprit" if line.ratio < low else "worse" if line.ratio > high else "generic"
    note = "the two runs moved in opposite directions" if line.ratio < 0 else None
    return replace(line, verdict=word, note=note)


def _summary(methods: Mapping[str, Geometry], against: Mapping[str, Sequence[ReferenceRatio]] | None) -> str:
    said = [f"By {name}: {g.reading}" for name, g in methods.items()]
    for method, cells in (against or {}).items():
        parts = []
        for name in RATIOS:
            counts = Counter(c.verdict for c in cells if c.measure == name)
            parts.append(f"{NAMES[name]} {', '.join(f'{v} in {n}' for v, n in counts.most_common())}")
        said.append(f"Against the reference by {method}: {'; '.join(parts)}.")
    return " ".join(said)

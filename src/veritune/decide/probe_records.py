"""Every quantity that a study's probes have recorded, by the name that a claim may give, with its interval.

Read are the losses and summaries of the runs, and each probe record in `probes/` that says which run it speaks of: by
the folder it lies in (`probes/<run_id>/`), by its `run`, or by the path of the adapter in its `label`. One reader a
kind of record; a quantity over several runs is their mean (`decide.recorded.over_runs`), and only where every run of
its arm has a record: a probe of the one seed that looks best must not stand for the arm.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.config.thresholds import DEFAULTS, Thresholds
from veritune.counting import many
from veritune.decide.recorded import (
    LEVEL,
    ByLevel,
    Recorded,
    Widened,
    from_estimate,
    log_student_of,
    missing,
    number,
    over_runs,
)
from veritune.errors import ScoreError, VerituneError, first_line
from veritune.probe.clusters import codes, ratio
from veritune.probe.geometry_dose import RECORD as GEOMETRY
from veritune.probe.geometry_dose import run_changes
from veritune.probe.names import arm_of, pattern_of
from veritune.probe.norms import Norms, beyond
from veritune.records import (
    Calibration,
    Estimate,
    ForcedChoice,
    Forgetting,
    Geometry,
    GeometryGrid,
    GradientProbe,
    JsonValue,
    Leak,
    MeasureChange,
    Recall,
    RecordPart,
    RowLoss,
    RowLosses,
    RunSummary,
    StudyGeometry,
    TelemetrySummary,
    TokenFall,
    WeightChange,
)
from veritune.records.base import of_plain
from veritune.stats.centroids import MEASURES
from veritune.stats.intervals import Spread, t_quantile
from veritune.store import Store, read_json

Named = Iterator[tuple[str, Recorded]]
"""(name without the arm, quantity)"""
Damaged = dict[str, str]
"""Why a file cannot be read, by its path in the study."""

BY_HAND = "nothing in {path} ties it to the run's weights: it was placed by hand, or before runs were named in it"
CHOSEN = "validation rows chose the checkpoint, so their loss reads low"
APART = "the zones differ too much in difficulty: the gain of one at their common base loss would be extrapolated"
CELLS = "cells share weights and personas, so only the spread between seeds gives it an interval"
DAMAGE = (VerituneError, ValueError, LookupError, ArithmeticError)
"""What comes of a record of probes/ with wrong keys, or with right ones and lists and numbers that do not fit."""
PERSONAS = "it speaks of these personas and questions: no interval over them is recorded"


@dataclass(frozen=True, slots=True)
class _DoneRun:
    """A finished run: its arm, its summary and, where it was measured, the loss of every row."""

    run_id: str
    arm: str
    summary: RunSummary
    losses: tuple[RowLoss, ...]


def recorded_quantities(store: Store, run_ids: Sequence[str], thresholds: Thresholds = DEFAULTS) -> dict[str, Recorded]:
    """All quantities of these runs by name. A quantity that is missing for some run has no value and names that run.

    Raises ScoreError for a record that is damaged, naming its file.
    """
    made, damaged = _quantities(store, run_ids, thresholds)
    if damaged:
        first = next(iter(damaged.values()))
        raise ScoreError(
            f"{first} ({many(len(damaged), 'damaged files')}).", fix="Make the damaged record again, or remove it."
        )
    return made


def _quantities(store: Store, run_ids: Sequence[str], thresholds: Thresholds) -> tuple[dict[str, Recorded], Damaged]:
    """The quantities, and what is wrong with the files that cannot be read."""
    runs = [_run(store, run_id) for run_id in run_ids]
    damaged: Damaged = {}
    parts: dict[str, dict[str, Recorded]] = {}
    sources: dict[tuple[str, str], str] = {}
    doubled: dict[str, str] = {}
    for run, source, stem, found in _every(store, runs, thresholds, damaged):
        name = f"{stem}.{run.arm}"
        if run.run_id in parts.setdefault(name, {}):
            doubled[name] = f"run {run.run_id} has two records of it, {sources[name, run.run_id]} and {source}"
        parts[name][run.run_id], sources[name, run.run_id] = found, source
    made = {name: _over_its_runs(name, found, runs) for name, found in parts.items()}
    made |= {name: missing(name, f"{why}: keep one of them in probes/") for name, why in doubled.items()}
    return made, damaged


def claimed_quantities(store: Store, run_ids: Sequence[str], study: Study) -> dict[str, Recorded]:
    """The quantities that the study's claims name; a quantity that is not recorded names the command that makes it."""
    names = {claim.probe for claim in study.claims if claim.probe is not None}
    if not names:
        return {}
    there, damaged = _quantities(store, run_ids, study.thresholds)
    return {name: _with_remedy(name, there.get(name), study, damaged) for name in sorted(names)}


def _with_remedy(name: str, found: Recorded | None, study: Study, damaged: Damaged) -> Recorded:
    pattern = pattern_of(name, study)
    command = _command(pattern.made_by if pattern is not None else "run", arm_of(name))
    if found is None:
        why = f" ({'; '.join(damaged.values())})" if damaged else ""
        return missing(name, f"it is not recorded{why}; make it: {command}, then decide again: veritune run STUDY")
    if found.estimate.value is None:
        return replace(found, lacks=f"{found.lacks}; {command} makes it")
    if found.spread is None and not found.exact and not found.over_items:
        few = (found.estimate.n_seeds or 1) < 2
        return replace(found, remedy="declare several `seeds`: their spread gives the interval" if few else "")
    return found


def _command(probe: str, arm: str) -> str:
    """How a probe is made. STUDY is the study's folder, RUN the id of each run of the arm."""
    adapter, out = "STUDY/runs/RUN/checkpoints/STEP", "STUDY/probes/RUN/forgetting.json"
    ways = {
        "run": "veritune run STUDY",
        "leak": f"veritune probe leak STUDY --condition {arm}",
        "report": "veritune report STUDY --probes",
        "geometry_dose": "veritune run STUDY, with that step among `train.eval_steps` and `keep: all`",
        "forgetting": f"veritune probe forgetting --model BASE --adapter {adapter} --data ROWS --out {out}",
    }
    return ways.get(probe, f"veritune report STUDY --make {probe}")


def _run(store: Store, run_id: str) -> _DoneRun:
    folder = store.run(run_id)
    summary = RunSummary.load(folder / "summary.json")
    losses = folder / "probes" / "nll.json"
    return _DoneRun(run_id, summary.condition, summary, RowLosses.load(losses).rows if losses.exists() else ())


def _over_its_runs(name: str, parts: Mapping[str, Recorded], runs: Sequence[_DoneRun]) -> Recorded:
    arm = arm_of(name)
    all_of_it = [run.run_id for run in runs if run.arm == arm]
    one_run = name.startswith("leak.")  # trained beside the first seed alone
    absent = [run_id for run_id in all_of_it if run_id not in parts]
    if absent and not one_run:
        return missing(name, f"{len(absent)} of {len(all_of_it)} runs have no record of it (first {absent[0]})")
    many = len(parts) > 1
    scope = "the base model" if arm == BASELINE else f"the recipe {arm}" if many else f"this adapter of {arm}"
    return over_runs(name, parts, scope)


def _every(
    store: Store, runs: Sequence[_DoneRun], thresholds: Thresholds, damaged: Damaged
) -> Iterator[tuple[_DoneRun, str, str, Recorded]]:
    """(run, file, name without the arm, quantity) of everything that is recorded; `damaged` takes what cannot be."""
    base = next((run for run in runs if run.arm == BASELINE), None)
    for run in runs:
        where = f"runs/{run.run_id}"
        for stem, found in (*_summary(run), *_losses(run, thresholds), *_gap(base, run, thresholds)):
            yield run, where, stem, found
    yield from _loss_gaps(runs, thresholds)
    yield from _weight_counts(store, runs, damaged)
    made: list[tuple[_DoneRun, str, str, Recorded]] = []
    with _refused(damaged, GEOMETRY):
        made = list(_geometry_steps(store, runs))
    yield from made
    for path in sorted([*store.root.glob("probes/*.json"), *store.root.glob("probes/*/*.json")]):
        made = []
        with _refused(damaged, store.relative(path)):
            made = list(_of_file(path, store.relative(path), {run.run_id: run for run in runs}))
        yield from made


@contextlib.contextmanager
def _refused(damaged: Damaged, shown: str) -> Iterator[None]:
    """Notes why the reader of a file refuses it: the other files are read all the same."""
    try:
        yield
    except DAMAGE as exc:
        why = exc.message if isinstance(exc, VerituneError) else f"{type(exc).__name__} at {first_line(exc)}"
        damaged[shown] = why if shown in why else f"{shown} is damaged: {why}"


def _loss_gaps(runs: Sequence[_DoneRun], thresholds: Thresholds) -> Iterator[tuple[_DoneRun, str, str, Recorded]]:
    """How far a run's loss lies below that of another arm's run of the same seed, on the rows that both measured."""
    trained = [run for run in runs if run.arm != BASELINE and run.losses]
    for run, other in itertools.permutations(trained, 2):
        if run.arm == other.arm or run.summary.seed != other.summary.seed:
            continue
        for zone, gap in _paired_losses(run, other, thresholds):
            yield run, f"runs/{run.run_id}", f"nll_below.{other.arm}.{zone}", gap


def _paired_losses(run: _DoneRun, other: _DoneRun, thresholds: Thresholds) -> Named:
    """By zone: (other − run) summed over the rows, over their target tokens; nats per token, by family."""
    theirs = {row.row_id: row for row in other.losses}
    least = thresholds.families.for_interval
    for zone in dict.fromkeys(row.zone for row in run.losses):
        pairs = [(row, theirs[row.row_id]) for row in run.losses if row.zone == zone and row.row_id in theirs]
        lower_N = np.array([their.nll_sum - row.nll_sum for row, their in pairs], float)
        tokens_N = np.array([row.target_tokens for row, _ in pairs], float)
        family_N = codes([row.family for row, _ in pairs])
        if not len(pairs):
            continue
        again = functools.partial(ratio, f"loss below on {zone} rows", lower_N, tokens_N, family_N, least=least)
        found = again()
        if zone == "validation":
            found = replace(found, warnings=(*found.warnings, CHOSEN))
        yield zone, from_estimate(found, _remade(again))


def _weight_counts(
    store: Store, runs: Sequence[_DoneRun], damaged: Damaged
) -> Iterator[tuple[_DoneRun, str, str, Recorded]]:
    """How many modules of a run moved beyond the rule's ratio to another arm's run of the same seed."""
    norms: dict[str, Norms] = {}
    for run in runs:
        shown = f"probes/{run.run_id}/weights.json"
        with _refused(damaged, shown):
            norms |= {run.run_id: moved} if (moved := _norms(store.root / shown, shown)) else {}
    measured = [run for run in runs if run.run_id in norms]
    for run, other in itertools.permutations(measured, 2):
        if run.arm == other.arm or run.summary.seed != other.summary.seed:
            continue
        shared, above, below = beyond(norms[run.run_id], norms[other.run_id])
        if shared:
            yield run, f"probes/{run.run_id}/weights.json", f"weights.cells.above.{other.arm}", number("above", above)
            yield run, f"probes/{run.run_id}/weights.json", f"weights.cells.below.{other.arm}", number("below", below)


def _norms(path: Path, shown: str) -> Norms:
    """The norm of each module's change in a weight record; empty where there is none. Raises FormatError."""
    if not path.exists():
        return {}
    found = [tree for kind, tree, _ in _known_records(read_json(path)) if kind == "weights"]
    changes = [of_plain(WeightChange, tree, shown) for tree in found]
    return {m.module: (m.delta_norm, m.type, m.layer) for change in changes for m in change.modules}


def _geometry_steps(store: Store, runs: Sequence[_DoneRun]) -> Iterator[tuple[_DoneRun, str, str, Recorded]]:
    """Each run's mean change over layers by step, and the same minus that of another arm's run of the same seed."""
    path = store.root / GEOMETRY
    found = run_changes(of_plain(StudyGeometry, read_json(path), GEOMETRY).record.cells) if path.exists() else {}
    for (arm, step, method, measure), by_seed in found.items():
        beside = {place[0]: own for place, own in found.items() if place[1:] == (step, method, measure)}
        for run in (r for r in runs if r.arm == arm and r.summary.seed in by_seed):
            seed, where = run.summary.seed, f"{measure}.{step}.{method}"
            yield run, GEOMETRY, f"geometry.dose.{where}", number("dose", by_seed[seed])
            for other, own in beside.items():
                if other != arm and seed in own:
                    yield run, GEOMETRY, f"geometry.beyond.{where}.{other}", number("beyond", by_seed[seed] - own[seed])


# ---------------------------------------------------------------- what every run records


def _summary(run: _DoneRun) -> Named:
    training = run.summary.training
    if training is None:
        return
    trainable = training.trainable
    if training.final_loss is not None:  # an adopted run's trainer may not have told it
        yield "final_loss", number("final_loss", training.final_loss)
    yield "trainable_share", number("trainable_share", trainable.n_trainable / trainable.n_total, exact=True)


def _losses(run: _DoneRun, thresholds: Thresholds) -> Named:
    """Loss per target token of each zone, over rows and by family."""
    for zone in dict.fromkeys(row.zone for row in run.losses):
        here = [row for row in run.losses if row.zone == zone]
        sums_N = np.array([row.nll_sum for row in here], float)
        tokens_N = np.array([row.target_tokens for row in here], float)
        family_N = codes([row.family for row in here])
        least = thresholds.families.for_interval
        again = functools.partial(ratio, f"nll on {zone} rows", sums_N, tokens_N, family_N, least=least)
        found = again()
        if zone == "validation":
            found = replace(found, warnings=(*found.warnings, CHOSEN))
        yield f"nll.{zone}", from_estimate(found, _remade(again))


def _gap(base: _DoneRun | None, run: _DoneRun, thresholds: Thresholds) -> Named:
    """The zone gap from the losses on disk, whose interval is made again at each level that is asked for."""
    zones = {row.zone for row in run.losses}
    if base is None or run.arm == BASELINE or not {"seen", "stranger"} <= zones or not base.losses:
        return
    from veritune.probe.memorization import zone_gains
    from veritune.probe.study import zoned_losses

    losses, least = zoned_losses(base.losses, run.losses), thresholds.families.for_interval
    try:
        gains = zone_gains(*losses, least=least)
    except ScoreError as exc:  # a loss that is not finite
        for zone in sorted(zones & {"sibling", "stranger"}):
            yield f"gap.carried.{zone}", missing(f"gap.carried.{zone}", exc.message)
        return
    before_N, after_N, zone_N, family_N = *map(np.asarray, losses[:3]), codes(losses[3])
    for zone, part in gains.parts.items():
        here_N = zone_N == zone
        gain_N = (before_N - after_N)[here_N]
        again = functools.partial(
            ratio, f"gain on {zone} rows", gain_N, np.ones(len(gain_N)), family_N[here_N], least=least
        )
        yield f"gap.gain.{zone}", from_estimate(again(), _remade(again))
        if zone != "seen":
            carried = gains.carried(zone)
            if not (part.overlaps and gains.parts["seen"].overlaps):
                carried = replace(carried, low=None, high=None, warnings=(*carried.warnings, APART))
            yield f"gap.carried.{zone}", from_estimate(carried, _remade(functools.partial(gains.carried, zone)))


def _remade(again: Callable[..., Estimate]) -> Spread:
    """The interval of an estimate that is made again, from the rows, at each level that is asked for."""

    @functools.cache
    def at(level: float) -> tuple[float, float]:
        found = again(level=level)
        bounded = found.low is not None and found.high is not None
        return (float(found.low or 0), float(found.high or 0)) if bounded else (-math.inf, math.inf)

    return ByLevel(at)


# ---------------------------------------------------------------- records in probes/


def _of_file(path: Path, shown: str, runs: Mapping[str, _DoneRun]) -> Iterator[tuple[_DoneRun, str, str, Recorded]]:
    record = read_json(path)
    for kind, inner, label in _known_records(record):
        run = _run_of(record, inner, label, path, runs)
        if run is None:
            continue
        tied = "input_hash" in record and (kind != "leak" or "honest" in record)
        for stem, quantity in READERS[kind](inner, shown):
            yield run, shown, stem, quantity if tied else _noted(quantity, BY_HAND.format(path=shown))


def _known_records(tree: JsonValue, label: str = "") -> Iterator[tuple[str, Mapping[str, JsonValue], str]]:
    """(kind, record, label) of every record that a reader knows; the base's own, beside a trained one, are left out."""
    if isinstance(tree, list):
        for inner in tree:
            yield from _known_records(inner, label)
    if not isinstance(tree, dict):
        return
    label = str(tree.get("label") or label)
    if tree.get("kind") in READERS:
        yield str(tree["kind"]), tree, label
        return
    for key, inner in tree.items():
        if key == "brier_change" and isinstance(inner, dict):
            yield key, inner, label
        elif key != "base":
            yield from _known_records(inner, label)


def _run_of(
    record: Mapping[str, JsonValue],
    inner: Mapping[str, JsonValue],
    label: str,
    path: Path,
    runs: Mapping[str, _DoneRun],
) -> _DoneRun | None:
    """The run that a record speaks of; None for a shadow run's, another study's, or one that does not say."""
    if inner.get("kind") == "leak":
        leak = of_plain(Leak, inner, str(path))
        beside = [r for r in runs.values() if (r.arm, r.summary.seed) == (leak.condition, leak.seed)]
        return next((r for r in beside if record.get("honest", r.run_id) == r.run_id), None)
    for named in (record.get("run"), path.parent.name, *Path(label).parts):
        if named in runs:
            return runs[str(named)]
    return None


def _noted(found: Recorded, note: str) -> Recorded:
    return replace(found, estimate=replace(found.estimate, warnings=(*found.estimate.warnings, note)))


def _estimate(found: Estimate) -> Estimate:
    """An estimate whose scope stands among its warnings: what a claim on it compares has a scope of its own."""
    notes = (*found.warnings, *((found.scope,) if found.scope else ()))  # what the interval leaves out
    return replace(found, warnings=tuple(notes), scope="")


def _t(found: Estimate) -> Recorded:
    return from_estimate(_estimate(found))


def _leak(record: Leak) -> Named:
    yield "leak.flattered", _t(record.flattered)
    yield "leak.elsewhere", _t(record.elsewhere)
    yield "leak.by_leak", _t(record.by_leak)


def _weights(record: WeightChange) -> Named:
    for part, moved in record.parts.items():
        yield f"weights.delta_norm.{part}", number(part, moved.delta_norm)
        if moved.relative is not None:
            yield f"weights.relative_change.{part}", number(part, moved.relative)


def _telemetry(record: TelemetrySummary) -> Named:
    for part, share in {**record.share.get("group", {}), **record.share.get("type", {})}.items():
        yield f"gradients.share.{part}", number(part, share)
    own = record.per_parameter
    for part, times in {**own.get("group", {}), **own.get("type", {})}.items():
        yield f"gradients.per_parameter.{part}", number(part, times)
    if record.update_ratio is not None:
        yield "gradients.update_ratio", number("update_ratio", record.update_ratio)


def _gradients(record: GradientProbe) -> Named:
    named = {e.name: _estimate(e) for e in record.estimates}
    yield "rho", from_estimate(named["rho"])
    yield "n_eff", from_estimate(named["n_eff"], _n_eff_spread(named["rho"], named["n_eff"]))
    yield "directions", from_estimate(named["directions"], log_student_of(named["directions"]))


def _n_eff_spread(rho: Estimate, n_eff: Estimate) -> Spread | None:
    """n_eff = n/(1 + g·ρ), ρ in [0, 1]: its interval from ρ's at any level; None where the record does not give g."""
    spread, n = from_estimate(rho).spread, n_eff.details.get("n_rows")
    if spread is None or n is None:
        return None
    pairs = [(rho.value, n_eff.value), (rho.low, n_eff.high), (rho.high, n_eff.low)]
    growth = [(n / y - 1) / x for x, y in pairs if x is not None and y is not None and 0 < x < 1 and y > 0]
    if not growth or not np.allclose(growth, growth[0], rtol=1e-6):
        return None

    def at(level: float) -> tuple[float, float]:
        ends = spread.interval(level)
        if not all(map(math.isfinite, ends)):
            return ends
        low, high = (n / (1 + growth[0] * min(max(end, 0.0), 1.0)) for end in ends)
        return high, low

    return ByLevel(at)


def _geometry(record: Geometry) -> Named:
    for line in record.layers:
        where = f"{line.layer}.{record.method}"
        for name in MEASURES:
            found = line.measure(name)
            if found.trained is not None:
                yield f"geometry.{name}.{where}", _noted(number(name, found.trained), PERSONAS)
            if found.change is not None:
                yield f"geometry.{name}_change.{where}", from_estimate(_change(name, found, record.n_personas))


def _change(name: str, found: MeasureChange, personas: int) -> Estimate:
    """The change of a measure with its jackknife: t with one df less than personas, so half the width gives its se."""
    made = Estimate(
        f"change of {name}",
        found.change,
        found.low,
        found.high,
        LEVEL,
        personas,
        "jackknife over personas",
        p=found.p,
        warnings=("one of many layers and measures: one picked after the run is exploratory",),
    )
    if made.low is None or made.high is None:
        return replace(made, warnings=(found.reason or "the jackknife over personas has no value", *made.warnings))
    df = personas - 1.0
    return replace(made, se=(made.high - made.low) / 2 / t_quantile(0.5 + LEVEL / 2, df), df=df)


def _grid(record: GeometryGrid) -> Named:
    for inner in record.methods.values():
        yield from _geometry(inner)
    lines = [line for inner in record.methods.values() for line in inner.layers]
    for name in ("m1", "icc"):
        cells = [line.measure(name) for line in lines]
        known = [(cell.change, cell.p_adjusted) for cell in cells if cell.change is not None]
        small, alpha = record.thresholds.small_change, record.thresholds.alpha
        shown = [x for x, p in known if p is not None and p < alpha and abs(x) >= small]
        for way, n in (("rose", sum(x > 0 for x in shown)), ("fell", sum(x < 0 for x in shown))):
            yield f"geometry.cells.{name}_{way}", _noted(number(name, n), f"of {len(lines)} cells a run; {CELLS}")


def _calibration(record: Calibration) -> Named:
    yield "calibration.brier", _t(record.brier)
    yield "calibration.accuracy", _t(record.accuracy)
    yield "calibration.overconfidence", _t(record.overconfidence)
    for of, ece in (("ece", record.ece), ("ece_debiased", record.ece_debiased)):
        found = _estimate(ece)  # t with an offset for the bias, cut at 0 and 1
        spread = None
        if found.low is not None and found.high is not None and found.se and found.df:
            spread = Widened((found.level, found.low, found.high), found.se, found.df)
        yield f"calibration.{of}", from_estimate(found, spread)


def _brier_change(record: Estimate) -> Named:
    yield "calibration.brier_change", _t(record)


def _forgetting(record: Forgetting) -> Named:
    yield "forgetting.rise", _t(record.rise)
    yield "forgetting.share_worse", _t(record.share_worse)


def _forced_choice(record: ForcedChoice) -> Named:
    yield "recall.contrast", _t(record.contrast.estimate)
    for zone, found in record.zones.items():
        if found.stranger.change is not None:
            yield f"recall.choice_change.{zone}", _t(found.stranger.change)


def _verbatim(record: Recall) -> Named:
    for zone, found in record.zones.items():
        if found.trained is None or found.beyond_base is None:
            continue
        yield f"recall.matched.{zone}", _t(found.trained.matched)
        yield f"recall.exact.{zone}", _t(found.trained.exact)
        yield f"recall.beyond_base.{zone}", _t(found.beyond_base)


def _tokens(record: TokenFall) -> Named:
    for of, found in {"total": record.total, **record.by_class}.items():
        if found.fall is not None:
            yield f"tokens.fall.{of}", _t(found.fall)


Reader = Callable[[Mapping[str, JsonValue], str], Named]
"""Takes a record as JSON and the name of its file for messages. Raises FormatError for a damaged record."""
T = TypeVar("T", bound=RecordPart)


def _reader(kind: type[T], quantities: Callable[[T], Named]) -> Reader:
    def read(tree: Mapping[str, JsonValue], place: str) -> Named:
        return quantities(of_plain(kind, tree, place))

    return read


READERS: Mapping[str, Reader] = {
    "leak": _reader(Leak, _leak),
    "weights": _reader(WeightChange, _weights),
    "telemetry": _reader(TelemetrySummary, _telemetry),
    "gradients": _reader(GradientProbe, _gradients),
    "geometry": _reader(Geometry, _geometry),
    "geometry_grid": _reader(GeometryGrid, _grid),
    "calibration": _reader(Calibration, _calibration),
    "brier_change": _reader(Estimate, _brier_change),
    "forgetting": _reader(Forgetting, _forgetting),
    "forced_choice": _reader(ForcedChoice, _forced_choice),
    "verbatim_recall": _reader(Recall, _verbatim),
    "token_fall": _reader(TokenFall, _tokens),
}
"""By kind: the class of the record and the quantities in it."""

"""Selection: each condition's learning rate, by the lowest validation NLL of runs that nothing else is read from.

The runs of phase `select` train on the reserved seed and the declared slice and are never scored: no benchmark can
enter. Equal losses go to the smaller rate. A run that diverged or crashed is out, never best. A winner at the edge of
the grid is flagged, since the best rate may lie beyond it. The choice is written to `selection.json`, is recomputed
from the runs' records whenever it is read, and its rates are part of the main runs' ids.

Batch shapes are timed at the selected rate. Nothing changes by itself: a shape of the same effective batch is offered
when its steps are faster, a larger effective batch only when its validation NLL is no worse on as many rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from veritune.config.study import Study
from veritune.errors import GateError, StaleError
from veritune.records import (
    ChosenRate,
    ConditionShapes,
    Facts,
    MetricRow,
    RateCandidate,
    RunSummary,
    Selection,
    ShapeOffer,
    ShapeTimings,
    TimedShape,
    TrainingRecord,
)
from veritune.seal import break_seal
from veritune.store import Store, hash_of, now
from veritune.train.schedule import SELECT, SHAPE, Cell, effective_batch, plan_cells, schedule

SELECTION = "selection.json"
SHAPES = "shapes.json"
RULE = "lowest validation NLL; equal losses go to the smaller learning rate; a failed run is out"


def choose(candidates: Sequence[RateCandidate]) -> tuple[RateCandidate, str | None]:
    """The chosen rate, and the edge of the grid at which it lies: `low`, `high` or None.

    Raises GateError when no candidate is eligible.
    """
    eligible = [c for c in candidates if c.eligible]
    if not eligible:
        reasons = "; ".join(f"{c.lr:g}: {c.failed}" for c in candidates)
        raise GateError(
            f"no learning rate of the grid can be used ({reasons}).", fix="Declare another grid of learning rates."
        )
    winner = min(eligible, key=lambda c: (c.validation_nll, c.lr))
    grid = sorted(c.lr for c in candidates)
    edge = {grid[0]: "low", grid[-1]: "high"}.get(winner.lr)
    return winner, edge


def record_selection(store: Store, study: Study, facts: Facts) -> Selection:
    """Choose every condition's rate from the finished selection runs, write `selection.json` and return the record.

    Raises GateError when a run is missing, when one holds scores, or when no rate can be used.
    """
    selection = _selection(store, study, facts, now())
    path = store.root / SELECTION
    if not (path.exists() and _same(Selection.load(path), selection)):
        break_seal(store)
        selection.save(path)
    store.log_once("selected", chosen=selection.rates)
    return selection


def chosen(store: Store, study: Study, facts: Facts) -> dict[str, float] | None:
    """The selected learning rates by condition; None without a selection, or until it is recorded.

    Raises StaleError when the record is not what the selection runs on disk come to.
    """
    path = store.root / SELECTION
    if study.selection is None or not path.exists():
        return None
    record = store.made(Selection, path, _input_hash(study, facts))
    if record is None:
        return None  # of an earlier contract: it is made again
    if not all((store.run(cell.run_id) / "summary.json").exists() for cell in _cells(study, facts)):
        return None  # a run was taken away: it is made again
    if not _same(record, _selection(store, study, facts, record.time)):
        raise StaleError(
            f"{path} does not follow from the selection runs: it or they were edited.",
            fix="Restore the files, or delete it and run again.",
        )
    return record.rates


def _same(record: Selection, other: Selection) -> bool:
    return replace(record, time="") == replace(other, time="")


def _cells(study: Study, facts: Facts) -> list[Cell]:
    return [cell for cell in plan_cells(study, facts) if cell.phase == SELECT]


def _input_hash(study: Study, facts: Facts) -> str:
    return hash_of([cell.input_hash for cell in _cells(study, facts)])


def _selection(store: Store, study: Study, facts: Facts, time: str) -> Selection:
    """What the selection runs on disk come to."""
    assert study.selection is not None
    conditions: dict[str, ChosenRate] = {}
    cells = _cells(study, facts)
    for name in study.conditions:
        candidates = tuple(_candidate(store, cell) for cell in cells if cell.condition == name)
        winner, edge = choose(candidates)
        conditions[name] = ChosenRate(winner.lr, edge, candidates)
    seed, fraction = study.selection.seed, study.selection.data_fraction
    return Selection(_input_hash(study, facts), RULE, seed, fraction, conditions, time)


def _candidate(store: Store, cell: Cell) -> RateCandidate:
    summary = _summary(store, cell)
    training = summary.training
    nll, step = (training.validation_nll, training.best_step) if training is not None else (None, None)
    return RateCandidate(cell.lr, cell.run_id, nll, step, summary.failed)


def _summary(store: Store, cell: Cell) -> RunSummary:
    folder = store.run(cell.run_id)
    scored = [p for p in (folder / "scores").rglob("*") if p.is_file()]
    if scored:
        raise GateError(
            f"{scored[0]}: a run that chooses a learning rate has scores, but no benchmark may influence the choice.",
            fix="Remove them.",
        )
    path = folder / "summary.json"
    if not path.exists():
        raise GateError(f"selection run {cell.run_id} is not done.", fix="Run it: veritune run STUDY")
    summary = RunSummary.load(path)
    if summary.training is None:
        return summary
    # The training record is the first hand; the summary repeats it.
    return replace(summary, training=TrainingRecord.load(folder / "training.json"))


def selection_lines(record: Selection) -> list[str]:
    """One line per condition for the screen, with a warning if the chosen rate is at the edge of the grid."""
    lines = []
    for name, choice in record.conditions.items():
        tried = ", ".join(
            f"{c.lr:g}: {'failed' if c.validation_nll is None else format(c.validation_nll, '.4f')}"
            for c in choice.candidates
        )
        lines.append(f"select   {name}: learning rate {choice.selected:g} (validation NLL {tried})")
        if choice.edge:
            lines.append(
                f"  ! {choice.selected:g} is the {choice.edge} edge of the grid: the best rate may lie beyond it"
            )
    return lines


# ---------------------------------------------------------------- batch shapes


def record_shapes(store: Store, study: Study, facts: Facts, rates: Mapping[str, float]) -> ShapeTimings | None:
    """Compare the timed batch shapes with the declared one and write `shapes.json`; None if none were to be timed."""
    if study.selection is None or not study.selection.batch_shapes:
        return None
    cells = plan_cells(study, facts, rates)
    conditions = {}
    for name in study.conditions:
        own = next(c for c in cells if c.phase == SELECT and c.condition == name and c.lr == rates[name])
        declared = _shape(store, study, own)
        tried = [_shape(store, study, c) for c in cells if c.phase == SHAPE and c.condition == name]
        offered = tuple(replace(shape, offer=_offer(declared, shape)) for shape in tried)
        conditions[name] = ConditionShapes(declared, offered)
    hashes = [c.input_hash for c in cells if c.phase in (SELECT, SHAPE)]
    digest, path = hash_of(hashes), store.root / SHAPES
    timings = store.made(ShapeTimings, path, digest)
    if timings is None:
        timings = ShapeTimings(digest, conditions)
        break_seal(store)
        timings.save(path)
    return timings


def _shape(store: Store, study: Study, cell: Cell) -> TimedShape:
    """What one shape took: seconds an optimizer step (median without the first), seconds a row, peak memory, NLL."""
    train, summary = schedule(study, cell), _summary(store, cell)
    training = summary.training
    memory, nll = (training.peak_memory, training.validation_nll) if training is not None else (None, None)
    effective = effective_batch(train)
    path = store.run(cell.run_id) / "metrics.jsonl"
    rows = MetricRow.load_all(path) if path.exists() else []
    costs = [r.cost for r in rows if r.split == "seen" and r.loss is not None and r.cost is not None]
    step_s = median(costs[1:]) if len(costs) > 1 else None
    same = effective == effective_batch(study.train)
    return TimedShape(
        run_id=cell.run_id,
        rows_per_micro_batch=train.per_device_train_batch_size,
        micro_batches=train.gradient_accumulation_steps,
        effective=effective,
        step_s=step_s,
        row_s=None if step_s is None else step_s / effective,
        peak_memory=memory,
        validation_nll=None if same and cell.phase == SHAPE else nll,
        failed=summary.failed,
    )


def _offer(declared: TimedShape, tried: TimedShape) -> ShapeOffer:
    """Whether a shape may be had, and why. The effective batch is part of the science; its shape is not."""
    if tried.failed:
        return ShapeOffer(False, f"it failed: {tried.failed}")
    if tried.row_s is None or declared.row_s is None:
        return ShapeOffer(False, "too few steps to time")
    faster = declared.row_s / tried.row_s
    if tried.effective == declared.effective:
        return ShapeOffer(faster > 1, f"the same effective batch at {faster:.2f} times the speed")
    if tried.effective < declared.effective:
        return ShapeOffer(False, "a smaller effective batch is a different schedule: declare it and select again")
    if tried.validation_nll is None or declared.validation_nll is None:
        return ShapeOffer(False, "its validation NLL is not recorded")
    worse = tried.validation_nll - declared.validation_nll
    if worse > 0:
        return ShapeOffer(False, f"its validation NLL is {worse:.4f} higher on as many rows")
    return ShapeOffer(faster > 1, f"its validation NLL is {-worse:.4f} lower, at {faster:.2f} times the speed")


def shape_lines(timings: ShapeTimings) -> list[str]:
    """The declared shape and each one that was tried, as text for the screen."""
    return [
        f"shape    {name}: {_shape_text(shape)}"
        for name, shapes in timings.conditions.items()
        for shape in (shapes.declared, *shapes.tried)
    ]


def _shape_text(shape: TimedShape) -> str:
    memory = shape.peak_memory.bytes if shape.peak_memory is not None else None
    parts = [
        f"{shape.rows_per_micro_batch} x {shape.micro_batches}",
        "not timed" if shape.step_s is None else f"{shape.step_s:.3f} s a step",
        "memory not known" if memory is None else f"{memory / 1e9:.2f} GB at most",
    ]
    if shape.validation_nll is not None:
        parts.append(f"validation NLL {shape.validation_nll:.4f}")
    if shape.offer is None:
        parts.append("declared")
    else:
        parts.append(f"{'offered' if shape.offer.offered else 'not offered'}: {shape.offer.why}")
    return ", ".join(parts)

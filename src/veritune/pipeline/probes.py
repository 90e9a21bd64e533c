"""`veritune report STUDY --probes`: what every probe of a study says, on one page, a block a probe.

Cheap probes that a finished run leaves the records for (weights from its checkpoint, the summary of its telemetry) are
made here and lie in `probes/<run_id>/`. With `make`, so are probes that run the model on the study's own rows, for
every run (`MODEL_PROBES`): claims read them there. Anything else with a `reading` in `probes/` (the leak, and records
that the `veritune probe` commands wrote there with `--out`) is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.data.render import Renderer
from veritune.errors import InputError, VerituneError
from veritune.extras import lacking_train
from veritune.pipeline.cell import cells_of, ready_from_contract
from veritune.pipeline.ready import Ready
from veritune.probe.curve import Costs, Curve, read_curve
from veritune.probe.geometry_grid import GridRun, build_grids, run_of
from veritune.probe.telemetry import summarize
from veritune.progress import Progress
from veritune.records import (
    Geometry,
    GeometryGrid,
    GradientProbe,
    JsonLike,
    Row,
    RowLosses,
    TelemetrySummary,
    TokenFall,
    TrainingRecord,
    WeightChange,
    to_json,
)
from veritune.records.base import of_plain
from veritune.report.page import write_report
from veritune.report.probes import ProbeBlock, blocks
from veritune.report.read import read_records
from veritune.seal import break_seal, refuse_edited, resealing
from veritune.stats.centroids import icc, m1
from veritune.store import Store, hash_of, read_json, sha256_file, write_json
from veritune.train.schedule import Cell, seen_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veritune.data.render import Renderer
    from veritune.probe.clusters import Floats
    from veritune.probe.recall import RecallBase
    from veritune.probe.study import Zoned
    from veritune.probe.subject import ProbeSubject

    Measured = Curve | WeightChange | TelemetrySummary | GradientProbe | GeometryGrid | TokenFall
    Made = Measured | Mapping[str, JsonLike]


@dataclass
class Bases:
    """What the untouched model is measured for once and compared with every run."""

    gradients: dict[str, GradientProbe] = field(default_factory=dict)
    """By the hash of the rows that it was taken on."""
    recall: RecallBase | None = None
    tokens: list[Floats] | None = None


Make = Callable[[Ready, "ProbeSubject", "TrainingRecord | None"], "Made"]
"""Makes a record of a cell's model; the run's training record is None for the untouched model."""


def probe_report(study: str | Path, progress: Progress | None = None, make: Sequence[str] = ()) -> list[ProbeBlock]:
    """Make the cheap records that are missing and those named in `make`, redraw the report, and return all blocks.

    Without the training half nothing is made: the blocks are those of the records that are there.

    Raises InputError when no run of the study is there yet, or for a probe that is none of `MODEL_PROBES`.
    """
    wrong = [name for name in make if name not in MODEL_PROBES]
    if wrong:
        raise InputError(f"--make {wrong[0]}: unknown probe.", fix=f"Probes: {', '.join(MODEL_PROBES)}.")
    if lacking_train() and not make:
        store = Store.of(study)
        return blocks(read_records(store, load_study(store.study_file)))
    ready = ready_from_contract(study, progress or Progress())
    with ready.store.lock():
        refuse_edited(ready.store)
        cells = cells_of(ready)
        runs = [c for c in cells if c.phase != BASELINE and (ready.store.run(c.run_id) / "training.json").exists()]
        if not runs:
            raise InputError(
                f"{ready.store.root} has no trained run.", fix=f"Run it first: veritune run {ready.store.root}"
            )
        with resealing(ready.store, "probe report"):
            make_probes(ready, cells, make)
            write_report(ready.store, ready.study)
    return blocks(read_records(ready.store, ready.study))


def make_probes(ready: Ready, cells: Sequence[Cell], names: Sequence[str]) -> None:
    """Write the cheap records that trained runs lack, and those of the probes named."""
    runs = [c for c in cells if c.phase != BASELINE and (ready.store.run(c.run_id) / "training.json").exists()]
    losses, bases = _base_losses(ready), Bases()
    for cell in runs:
        _write(ready, cell, _cheap(ready, cell, losses))
    for cell in (*(c for c in cells if c.phase == BASELINE), *runs):
        _write(ready, cell, _on_the_model(ready, cell, names, bases))
    _one_family(ready, runs)


def _write(
    ready: Ready, cell: Cell, probes: Iterator[tuple[str, str, Callable[[], Made]]], *, quiet: bool = False
) -> None:
    """Write the records that are not there yet, or were made from something else."""
    for name, digest, make in probes:
        path = ready.store.root / "probes" / cell.run_id / f"{name}.json"
        if not ready.store.is_done(path, digest):
            if not quiet:
                ready.progress.say(f"probe    {cell.condition}, seed {cell.seed}: {name}")
            record = {"input_hash": digest, "run": cell.run_id, "record": _made(make)}
            break_seal(ready.store)
            write_json(path, record)


def _made(make: Callable[[], Made]) -> Made:
    """The record, or in its place what keeps it from being made: a page of probes must not fail on one of them."""
    try:
        return make()
    except VerituneError as exc:
        return {
            "kind": "none",
            "reading": f"Not measured: {exc.message}",
            "limits": None,
            "would_change": exc.fix or None,
        }


def _cheap(ready: Ready, cell: Cell, losses: Mapping[str, float]) -> Iterator[tuple[str, str, Callable[[], Made]]]:
    """(name, hash of what it is made from, how) of the probes that need no run of the model."""
    folder = ready.store.run(cell.run_id)
    training = TrainingRecord.load(folder / "training.json")
    checkpoint = training.weights_in(ready.store.root)
    inputs = hash_of({"cell": cell.input_hash, "checkpoint": training.checkpoint, "step": training.best_step})
    yield from _curve(ready, cell, training, losses)
    yield "weights", inputs, lambda: _weights(ready, cell, checkpoint)
    lines = folder / "telemetry.jsonl"
    if lines.exists():
        yield "telemetry", sha256_file(lines), lambda: _telemetry(lines)


def write_curves(ready: Ready, cells: Sequence[Cell]) -> dict[str, Curve]:
    """Write `probes/<run_id>/curve.json` for every trained run with several checkpoints; returns the curves by run
    id."""
    made, base = {}, _base_losses(ready)
    for cell in cells:
        path = ready.store.run(cell.run_id) / "training.json"
        if cell.phase == BASELINE or not path.exists():
            continue
        for name, digest, make in _curve(ready, cell, TrainingRecord.load(path), base):
            made[cell.run_id] = curve = make()
            _write(ready, cell, iter([(name, digest, partial(_same, curve))]), quiet=True)
    return made


def _same(curve: Curve) -> Curve:
    return curve


def _curve(
    ready: Ready, cell: Cell, training: TrainingRecord, losses: Mapping[str, float]
) -> Iterator[tuple[str, str, Callable[[], Curve]]]:
    """The curve of a run's recorded losses, `losses` the untouched model's; none where there is but one checkpoint."""
    if len(training.candidates) < 2:
        return
    base = losses.get("validation")
    limits = ready.study.thresholds.curve
    digest = hash_of(
        [cell.input_hash, [(c.step, c.validation_nll) for c in training.candidates], base, limits.model_dump()]
    )
    yield "curve", digest, lambda: read_curve(training.candidates, training.best_step, base, None, limits)


def _base_losses(ready: Ready) -> dict[str, float]:
    """The untouched model's loss by zone, nats per target token; empty where it was not measured."""
    runs = [cell.run_id for cell in cells_of(ready) if cell.phase == BASELINE]
    path = ready.store.run(runs[0]) / "probes" / "nll.json"
    return {zone: found.nll for zone, found in RowLosses.load(path).zones.items()} if path.exists() else {}


def _measured_curve(ready: Ready, found: ProbeSubject, training: TrainingRecord | None) -> Curve:
    """The curve with what each checkpoint that was kept costs: losses on seen rows and strangers, M1 and ICC."""
    assert training is not None
    kept = {c.step: ready.store.root / c.checkpoint for c in training.candidates if c.checkpoint is not None}
    kept = {step: folder for step, folder in kept.items() if folder.exists()}
    if len(kept) < 2:
        raise InputError("one checkpoint of the run is on disk.", fix="Run the study with `keep: all`.")
    costs = {0: _costs_of(ready, found.base())}
    for step, folder in kept.items():
        costs[step] = _costs_of(ready, replace(found, adapter=folder).trained())
    base = _base_losses(ready).get("validation")
    return read_curve(training.candidates, training.best_step, base, costs, ready.study.thresholds.curve)


def _costs_of(ready: Ready, model: PreTrainedModel) -> Costs:
    """Losses by zone on the rows that evals ask, and M1 and ICC as means over all layers but the embeddings."""
    from veritune.probe import geometry as g
    from veritune.train.trainer import mean_nll, row_nll

    zones = {}
    for zone in ("seen", "stranger"):
        rows = [ready.data.rendered[i] for i in ready.nll_rows if ready.data.zone_of[i] == zone]
        if rows:
            zones[zone] = mean_nll(row_nll(model, rows, ready.tokenizer.pad_token_id))
    states = g.states(model, g.render_personas(ready.tokenizer, g.PERSONAS, g.QUESTIONS))
    sides = [states.side(layer) for layer in range(1, len(states.centroid_L_P_H))]
    means = []
    for values in ([m1(side.centroid_P_H) for side in sides], [icc(side) for side in sides]):
        known = [value for value in values if value is not None]
        means.append(sum(known) / len(known) if len(known) == len(values) and known else None)
    return Costs(zones, *means)


def _weights(ready: Ready, cell: Cell, checkpoint: Path) -> WeightChange:
    from veritune.probe.weights import WeightOptions, adapter_change, checkpoint_change

    if ready.study.conditions[cell.condition].method == "full":
        change = checkpoint_change(ready.model.path, checkpoint, WeightOptions(spectrum=False))
    else:
        change = adapter_change(checkpoint, ready.model.path, WeightOptions(spectrum=True))
    return replace(change, before=ready.model.name, after=ready.store.relative(checkpoint))


def _telemetry(path: Path) -> TelemetrySummary:
    from veritune.train.telemetry import read_telemetry

    return summarize(read_telemetry(path))


# ---------------------------------------------------------------- probes that run the model


def _on_the_model(
    ready: Ready, cell: Cell, names: Sequence[str], bases: Bases
) -> Iterator[tuple[str, str, Callable[[], Made]]]:
    """(name, hash of what it is made from, how) of the probes asked for; the untouched model has only some of them.

    `bases` keeps what the untouched model is measured for once and compared with every run.
    """
    of_base = cell.phase == BASELINE
    training = None if of_base else TrainingRecord.load(ready.store.run(cell.run_id) / "training.json")
    checkpoint, step = (training.checkpoint, training.best_step) if training is not None else (None, None)
    facts = {"cell": cell.input_hash, "checkpoint": checkpoint, "step": step}
    for name in names:
        make, takes_base, takes_trained = MODEL_PROBES[name]
        if ready.study.data.sets and name in BY_ARM:
            make, takes_trained = partial(BY_ARM[name], cell, bases), True
        if takes_base if of_base else takes_trained:
            yield name, hash_of({**facts, "probe": name}), partial(_make_one, make, ready, training)


def _make_one(make: Make, ready: Ready, training: TrainingRecord | None) -> Made:
    return make(ready, _subject(ready, training), training)


def _subject(ready: Ready, training: TrainingRecord | None) -> ProbeSubject:
    """A cell's model for probing. Raises InputError where its weights are not on this disk."""
    from veritune.probe.subject import ProbeSubject

    if ready.study.backend.name != "local":
        raise InputError("the weights are on a server.", fix="Probe a downloaded adapter with `veritune probe ...`.")
    checkpoint = training.checkpoint if training is not None else None
    if training is not None and (checkpoint is None or not (ready.store.root / checkpoint).exists()):
        raise InputError("the checkpoint is not on disk.", fix="Run the study with `keep: best` or `keep: all`.")
    adapter = ready.store.root / checkpoint if checkpoint else None
    return ProbeSubject(ready.model, adapter, renderer_of(ready))


def renderer_of(ready: Ready) -> Renderer:
    """Rows of the study, rendered as it trains on them."""
    settings = ready.study
    return Renderer(ready.tokenizer, settings.train.max_length, template_kwargs=settings.model.template_kwargs)


def _zoned(ready: Ready, *zones: str) -> Zoned:
    """The study's rows of some zones, as the probes of files take them."""
    return _some(ready, [row for row in ready.data.rows if ready.data.zone_of[row.id] in zones])


def _some(ready: Ready, rows: Sequence[Row]) -> Zoned:
    from veritune.probe.study import Zoned

    data = ready.data
    return Zoned(
        tuple(rows),
        tuple(data.rendered[row.id] for row in rows),
        tuple(data.zone_of[row.id] for row in rows),
        tuple(data.family_of[row.id] for row in rows),
    )


def _gradients(ready: Ready, found: ProbeSubject, _training: TrainingRecord | None) -> GradientProbe:
    from veritune.probe.gradients import probe_gradients

    seen = _zoned(ready, "seen")
    return probe_gradients(found.base(), seen.rendered, seen.families, base_loss="self")


def _gradients_of_arm(
    cell: Cell, bases: Bases, ready: Ready, found: ProbeSubject, _training: TrainingRecord | None
) -> GradientProbe:
    """The untouched model's gradients on the rows that this arm trains on (for the untouched model's own record, on
    those of any arm). All seeds of an arm train on the same rows."""
    from veritune.probe.gradients import probe_gradients

    rows = seen_rows(ready.study, ready.data, cell)
    if (name := hash_of([row.row_id for row in rows])) not in bases.gradients:
        families = [ready.data.family_of[row.row_id] for row in rows]
        bases.gradients[name] = probe_gradients(found.base(), rows, families, base_loss="self")
    return bases.gradients[name]


def _asked(ready: Ready, *zones: str) -> Zoned:
    """The rows of some zones that the evals ask: every arm trains on those of zone `seen`, and arms compare."""
    asked = set(ready.nll_rows)
    return _some(ready, [row for row in ready.data.rows if row.id in asked and ready.data.zone_of[row.id] in zones])


def _recall_of_arm(
    _cell: Cell, bases: Bases, ready: Ready, found: ProbeSubject, _training: TrainingRecord | None
) -> Made:
    from veritune.probe.recall import RecallBase, recall_of

    zoned = _asked(ready, "seen", "sibling", "stranger")
    if bases.recall is None:
        bases.recall = RecallBase.of(found.base(), zoned)
    return recall_of(found, zoned, base=bases.recall)


def _tokens_of_arm(
    cell: Cell, bases: Bases, ready: Ready, found: ProbeSubject, _training: TrainingRecord | None
) -> TokenFall:
    """Where the loss fell on strangers; tokens are classed by the rows that this arm trains on."""
    from veritune.probe.tokens import token_nlls, where_it_fell

    zoned, own = _asked(ready, "stranger"), seen_rows(ready.study, ready.data, cell)
    if bases.tokens is None:
        bases.tokens = token_nlls(found.base(), zoned.rendered)
    after = token_nlls(found.trained(), zoned.rendered)
    reference = (own, [ready.data.family_of[row.row_id] for row in own])
    return where_it_fell(zoned.rendered, zoned.families, bases.tokens, after, reference=reference)


def _geometry(ready: Ready, found: ProbeSubject, _training: TrainingRecord | None) -> GeometryGrid:
    from veritune.probe import geometry as g

    prompts = g.render_personas(ready.tokenizer, g.PERSONAS, g.QUESTIONS)
    methods: tuple[g.Method, ...] = ("last_input_token", "response_mean")
    base, trained = (
        {method: g.states(model, prompts, method=method) for method in methods}
        for model in (found.base(), found.trained())
    )
    read: dict[str, Geometry] = {method: g.geometry(base[method], trained[method], prompts) for method in methods}
    assert found.adapter is not None
    run = replace(run_of(found.adapter), label=ready.store.relative(found.adapter))
    return build_grids([(run, read)], thresholds=ready.study.thresholds.geometry)[0]


def _one_family(ready: Ready, runs: Sequence[Cell]) -> None:
    """Correct the p of all runs' geometry as one family: read alone, each run would have a correction of its own."""
    found = []
    for cell in runs:
        path = ready.store.root / "probes" / cell.run_id / "geometry.json"
        record = read_json(path) if path.exists() else {}
        inner = record.get("record") or {}
        if inner.get("kind") == "geometry_grid":
            read = of_plain(GeometryGrid, inner, str(path))
            found.append((path, record, (GridRun(read.label, read.condition, read.seed, read.step), read.methods)))
    grids = build_grids([run for _, _, run in found], thresholds=ready.study.thresholds.geometry)
    for (path, record, _), grid in zip(found, grids):
        made = {**record, "record": to_json(grid)}
        if made != record:
            break_seal(ready.store)
            write_json(path, made)


def _recall(ready: Ready, found: ProbeSubject, _training: TrainingRecord | None) -> Mapping[str, JsonLike]:
    from veritune.probe.recall import recall_of

    return recall_of(found, _zoned(ready, "seen", "sibling", "stranger"))


def _tokens(ready: Ready, found: ProbeSubject, _training: TrainingRecord | None) -> TokenFall:
    from veritune.probe.study import tokens_of

    return tokens_of(found, _zoned(ready, "seen", "stranger"), ("stranger",))["stranger"]


def _calibration(ready: Ready, found: ProbeSubject, _training: TrainingRecord | None) -> dict[str, JsonLike]:
    from veritune.evaluate.regression import AnswerKey, calibration_record, judge_answers

    spec = next((spec for spec in ready.study.evals.values() if spec.kind == "match"), None)
    if spec is None:
        raise InputError("no eval of the study has one right answer.", fix="Declare an eval of `kind: match`.")
    items, key = _zoned(ready, "stranger"), AnswerKey(spec)
    base = judge_answers(found.base(), found.renderer, items, key)
    if found.adapter is None:
        return calibration_record(base)
    return calibration_record(judge_answers(found.trained(), found.renderer, items, key), base)


MODEL_PROBES: Mapping[str, tuple[Make, bool, bool]] = {
    "gradients": (_gradients, True, False),  # on a trained model what is left of them no longer counts examples
    "geometry": (_geometry, False, True),
    "checkpoints": (_measured_curve, False, True),
    "recall": (_recall, False, True),
    "tokens": (_tokens, False, True),
    "calibration": (_calibration, True, True),
}
"""How each is made, and whether it is for the untouched model and for the trained ones."""

ArmMake = Callable[[Cell, Bases, Ready, "ProbeSubject", "TrainingRecord | None"], "Made"]
BY_ARM: Mapping[str, ArmMake] = {"gradients": _gradients_of_arm, "recall": _recall_of_arm, "tokens": _tokens_of_arm}
"""How a run's is made where data sets differ between arms: not every arm trains on all rows of zone `seen`."""

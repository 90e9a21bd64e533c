"""`veritune probe report STUDY`: what every probe of a study says, on one page, a block a probe.

Cheap probes that a finished run leaves the records for (weights from its checkpoint, the summary of its telemetry) are
made here and lie in `probes/<run_id>/`. With `make`, so are probes that run the model on the study's own rows, for
every run (`MODEL_PROBES`): claims read them there. Anything else with a `reading` in `probes/` (the leak, and records
that the `veritune probe` commands wrote there with `--out`) is taken as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from veritune.config.fields import BASELINE
from veritune.errors import InputError, VerituneError
from veritune.progress import Progress
from veritune.records import TrainingRecord
from veritune.report.page import write_report
from veritune.report.probes import Block, blocks
from veritune.report.read import read_records
from veritune.seal import break_seal, refuse_edited, resealing
from veritune.stages.cell import cells_of, ready_from_contract
from veritune.stages.ready import Ready
from veritune.store import hash_of, sha256_file, write_json


def probe_report(study: str | Path, progress: Progress | None = None, make: Sequence[str] = ()) -> list[Block]:
    """Make the cheap records that are missing and those that `make` names, redraw the report, and give every block.

    Raises InputError when no run of the study is there yet, or for a probe that is none of `MODEL_PROBES`.
    """
    wrong = [name for name in make if name not in MODEL_PROBES]
    if wrong:
        raise InputError(f"--make {wrong[0]}: no such probe.", fix=f"There are: {', '.join(MODEL_PROBES)}.")
    ready = ready_from_contract(study, progress or Progress())
    with ready.store.lock():
        refuse_edited(ready.store)
        cells = cells_of(ready)
        runs = [c for c in cells if c.phase != BASELINE and (ready.store.run(c.run_id) / "training.json").exists()]
        if not runs:
            raise InputError(f"{ready.store.root} has no trained run.", fix=f"veritune run {ready.store.root}")
        with resealing(ready.store, "probe report"):
            for cell in runs:
                _write(ready, cell, _cheap(ready, cell))
            for cell in (*(c for c in cells if c.phase == BASELINE), *runs):
                _write(ready, cell, _on_the_model(ready, cell, make))
            write_report(ready.store, ready.study)
    return blocks(read_records(ready.store, ready.study))


def _write(ready: Ready, cell: Any, probes: Iterator[tuple[str, str, Callable[[], Any]]]) -> None:
    """Write the records that are not there yet, or were made from something else."""
    for name, digest, make in probes:
        path = ready.store.root / "probes" / cell.run_id / f"{name}.json"
        if not ready.store.is_done(path, digest):
            ready.progress.say(f"probe    {cell.condition}, seed {cell.seed}: {name}")
            record = {"input_hash": digest, "run": cell.run_id, "record": _made(make)}
            break_seal(ready.store)
            write_json(path, record)


def _made(make: Callable[[], Any]) -> Any:
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


def _cheap(ready: Ready, cell: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, hash of what it is made from, how) of the probes that need no run of the model."""
    folder = ready.store.run(cell.run_id)
    training = TrainingRecord.load(folder / "training.json")
    checkpoint = training.weights_in(ready.store.root)
    inputs = hash_of({"cell": cell.input_hash, "checkpoint": training.checkpoint, "step": training.best_step})
    yield "weights", inputs, lambda: _weights(ready, cell, checkpoint)
    lines = folder / "telemetry.jsonl"
    if lines.exists():
        yield "telemetry", sha256_file(lines), lambda: _telemetry(lines)


def _weights(ready: Ready, cell: Any, checkpoint: Path) -> Any:
    from veritune.probe.weights import WeightOptions, adapter_change, checkpoint_change

    if ready.study.conditions[cell.condition].method == "full":
        change = checkpoint_change(ready.model.path, checkpoint, WeightOptions(spectrum=False))
    else:
        change = adapter_change(checkpoint, ready.model.path, WeightOptions(spectrum=True))
    return replace(change, before=ready.model.name, after=ready.store.relative(checkpoint))


def _telemetry(path: Path) -> Any:
    from veritune.probe.telemetry import summarize
    from veritune.train.telemetry import read_telemetry

    return summarize(read_telemetry(path))


# ---------------------------------------------------------------- probes that run the model


def _on_the_model(ready: Ready, cell: Any, names: Sequence[str]) -> Iterator[tuple[str, str, Callable[[], Any]]]:
    """(name, hash of what it is made from, how) of the probes asked for; the untouched model has only some of them."""
    of_base = cell.phase == BASELINE
    training = None if of_base else TrainingRecord.load(ready.store.run(cell.run_id) / "training.json")
    checkpoint, step = (training.checkpoint, training.best_step) if training is not None else (None, None)
    facts = {"cell": cell.input_hash, "checkpoint": checkpoint, "step": step}
    for name in names:
        make, takes_base, takes_trained = MODEL_PROBES[name]
        if takes_base if of_base else takes_trained:
            yield name, hash_of({**facts, "probe": name}), partial(_make_one, make, ready, training)


def _make_one(make: Callable[[Ready, Any], Any], ready: Ready, training: TrainingRecord | None) -> Any:
    return make(ready, _subject(ready, training))


def _subject(ready: Ready, training: TrainingRecord | None) -> Any:
    """A cell's model for probing. Raises InputError where its weights are not on this disk."""
    from veritune.data.render import Renderer
    from veritune.probe.subject import Subject

    if ready.study.backend.name != "local":
        raise InputError("the weights are on a server.", fix="Probe a downloaded adapter with `veritune probe ...`.")
    checkpoint = training.checkpoint if training is not None else None
    if training is not None and (checkpoint is None or not (ready.store.root / checkpoint).exists()):
        raise InputError("the checkpoint is not on disk.", fix="Run the study with `keep: best` or `keep: all`.")
    adapter = ready.store.root / checkpoint if checkpoint else None
    return Subject(ready.model, adapter, Renderer(ready.tokenizer, ready.study.train.max_length))


def _zoned(ready: Ready, *zones: str) -> Any:
    """The study's rows of some zones, as the probes of files take them."""
    from veritune.probe.study import Zoned

    data = ready.data
    rows = tuple(row for row in data.rows if data.zone_of[row.id] in zones)
    return Zoned(
        rows,
        tuple(data.rendered[row.id] for row in rows),
        tuple(data.zone_of[row.id] for row in rows),
        tuple(data.family_of[row.id] for row in rows),
    )


def _gradients(ready: Ready, found: Any) -> Any:
    from veritune.probe.gradients import probe_gradients

    seen = _zoned(ready, "seen")
    return probe_gradients(found.base(), seen.rendered, seen.families, base_loss="self")


def _geometry(ready: Ready, found: Any) -> Any:
    from veritune.probe import geometry as g
    from veritune.probe.geometry_grid import build_grids, run_of

    prompts = g.render_personas(ready.tokenizer, g.PERSONAS, g.QUESTIONS)
    methods: tuple[g.Method, ...] = ("last_input_token", "response_mean")
    base, trained = (
        {method: g.states(model, prompts, method=method) for method in methods}
        for model in (found.base(), found.trained())
    )
    read: dict[str, g.Geometry] = {method: g.geometry(base[method], trained[method], prompts) for method in methods}
    run = replace(run_of(found.adapter), label=ready.store.relative(found.adapter))
    return build_grids([(run, read)], thresholds=ready.study.thresholds.geometry)[0]


def _recall(ready: Ready, found: Any) -> Any:
    from veritune.probe.recall import recall_of

    return recall_of(found, _zoned(ready, "seen", "sibling", "stranger"))


def _tokens(ready: Ready, found: Any) -> Any:
    from veritune.probe.study import tokens_of

    return tokens_of(found, _zoned(ready, "seen", "stranger"), ("stranger",))["stranger"]


def _calibration(ready: Ready, found: Any) -> Any:
    from veritune.evaluate.regression import AnswerKey, calibration_record, judge_answers

    spec = next((spec for spec in ready.study.evals.values() if spec.kind == "match"), None)
    if spec is None:
        raise InputError("no eval of the study has one right answer.", fix="Declare an eval of `kind: match`.")
    items, key = _zoned(ready, "stranger"), AnswerKey(spec)
    base = judge_answers(found.base(), found.renderer, items, key)
    if found.adapter is None:
        return calibration_record(base)
    return calibration_record(judge_answers(found.trained(), found.renderer, items, key), base)


MODEL_PROBES: Mapping[str, tuple[Callable[[Ready, Any], Any], bool, bool]] = {
    "gradients": (_gradients, True, False),  # on a trained model what is left of them no longer counts examples
    "geometry": (_geometry, False, True),
    "recall": (_recall, False, True),
    "tokens": (_tokens, False, True),
    "calibration": (_calibration, True, True),
}
"""How each is made, and whether it is for the untouched model and for the trained ones."""

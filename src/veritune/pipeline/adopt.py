"""`veritune adopt`: weights that somebody else trained become a cell of a frozen study.

The cell is scored, judged, gated and bundled like any other. What only a training of one's own can show (which rows it
saw, in which order, from which seeds) is listed as not checked, in the records and in every sentence about it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.config.fields import BENCHMARK
from veritune.config.train import Condition
from veritune.data.contamination import check_contamination
from veritune.data.load import load_rows, require_clean
from veritune.data.text import canonical
from veritune.errors import GateError, InputError, ModelError
from veritune.pipeline.cell import cells_of, is_done, ready_from_contract
from veritune.pipeline.ready import Ready
from veritune.pipeline.told import Told, told_of
from veritune.probe.subject import refuse_other_base
from veritune.probe.weights import checkpoint_change
from veritune.progress import Progress
from veritune.records import CheckpointCandidate, MemoryPeak, Row, Trainable, TrainedRows, TrainingRecord
from veritune.records.training import AdoptedRows, Elsewhere
from veritune.seal import break_seal
from veritune.store import disk_errors, sha256_file
from veritune.train import methods, quantised
from veritune.train.adapters.attach import attach
from veritune.train.adapters.config import CONFIG
from veritune.train.adapters.foreign import holds_adapter, peft_folder
from veritune.train.adapters.places import LoraPlace, build, on_meta, places_of
from veritune.train.adapters.reading import WEIGHTS, AdapterReading, read_adapter
from veritune.train.backends.protocol import LocalWeights
from veritune.train.cells import manifest_of
from veritune.train.models import load_base
from veritune.train.quantised import base_for
from veritune.train.schedule import MAIN, Cell
from veritune.train.tensors import Tensors
from veritune.train.trainer import mean_nll

if TYPE_CHECKING:
    from veritune.data.prepare import Prepared

HELD_OUT = ("stranger", "sibling", "validation", BENCHMARK)
NEVER = (
    "whether the rows it was trained on are those of the study's seen zone",
    "the order of its training rows",
    "the seeds that it was trained from",
    "whether its scores were seen before the study was frozen",
)
"""What no file shows. The first is replaced where the rows are given."""


@dataclass(frozen=True)
class Adoption:
    """What `veritune adopt` was given. `despite` is the reason for adopting weights that were trained on held-out
    rows."""

    study: Path
    condition: str
    seed: int
    weights: Path
    data: Path | None = None
    trainer_state: Path | None = None
    config: Path | None = None
    despite: str | None = None


@dataclass(frozen=True)
class Adopted:
    """The cell that was made, and the notes about it."""

    run_id: str
    folder: Path
    record: TrainingRecord

    @property
    def elsewhere(self) -> Elsewhere:
        """What is known about training that was done elsewhere."""
        assert self.record.elsewhere is not None
        return self.record.elsewhere


def adopt(asked: Adoption, progress: Progress | None = None) -> Adopted:
    """Make a cell from given weights: manifest, training record and checkpoint; `veritune run` adds the scores.

    Raises InputError for a study that is not frozen, an arm or seed that it does not have and a cell that is there,
    ModelError for weights that are not what the arm declares, GateError where they trained on held-out rows.
    """
    ready = ready_from_contract(asked.study, progress or Progress(silent=True))
    cell = _cell(ready, asked)
    folder = ready.store.run(cell.run_id)
    with ready.store.run_lock(cell.run_id):
        if is_done(ready, cell) or (folder / "training.json").exists():
            raise InputError(
                f"runs/{cell.run_id} already exists.", fix="Remove the folder first to adopt other weights."
            )
        weights, form, trainable, notes = _fitting(ready, cell, asked.weights)
        told = told_of(asked.trainer_state, asked.config)
        rows = _rows(ready.data, asked) if asked.data is not None else None
        _refuse_held_out(rows, asked)
        files = _files([asked.weights, *(p for p in (asked.data, asked.trainer_state, asked.config) if p is not None)])
        elsewhere = Elsewhere(
            form=form,
            files=files,
            told=told.facts,
            rows=rows,
            differs=(*told.differences(ready.study, cell), *notes),
            not_checked=_not_checked(told, rows),
            despite=asked.despite if rows is not None and (rows.held_out or rows.near) else None,
        )
        loss = _loss(ready, ready.study.conditions[cell.condition], weights)
        break_seal(ready.store)
        record = _written(ready, cell, weights, (trainable, told, elsewhere, loss))
        ready.store.log("adopted", run=cell.run_id, files=files, not_checked=list(elsewhere.not_checked))
    return Adopted(cell.run_id, folder, record)


def _cell(ready: Ready, asked: Adoption) -> Cell:
    study = ready.study
    if asked.condition not in study.conditions:
        names = ", ".join(study.conditions)
        raise InputError(f"--condition: expected one of {names}, found {asked.condition!r}.")
    if asked.seed not in study.seeds:
        raise InputError(
            f"--seed: expected one of {', '.join(map(str, study.seeds))}, found {asked.seed}.",
            fix="Use a declared seed that has no run yet (the seed only names the cell), or declare another "
            "with `veritune amend`.",
        )
    if study.backend.name != "local":
        raise InputError(
            f"the study trains on {study.backend.name}, but adopted weights can only answer on this machine."
        )
    cells: list[Cell] = cells_of(ready)
    for cell in cells:
        if (cell.phase, cell.condition, cell.seed) == (MAIN, asked.condition, asked.seed):
            return cell
    raise InputError(
        "the study selects learning rates first, so its main cells have no names yet.",
        fix="Run the selection first, or declare the rate and remove `selection`.",
    )


# ---------------------------------------------------------------- the weights


def _fitting(ready: Ready, cell: Cell, folder: Path) -> tuple[Path, str, Trainable, list[str]]:
    """The weights in the form that is scored, its name, what they train, and notes. Raises ModelError."""
    condition = ready.study.conditions[cell.condition]
    base = ready.model.path
    if condition.method == "full":
        if holds_adapter(folder):
            raise ModelError(f"{folder} is an adapter, but {cell.condition} trains all weights.")
        return folder, "checkpoint", _whole(base, folder), []
    if condition.method not in ("lora", quantised.QLORA):
        raise ModelError(
            f"{cell.condition}: weights of method {condition.method} cannot be adopted; expected lora, qlora or full.",
            fix="Declare a condition with one of these methods, or train it here.",
        )
    written = peft_folder(folder)
    refuse_other_base(written.folder, base)
    reading = read_adapter(written.folder, base)
    for _ in reading.changes():  # every factor is read: shapes, finite values
        pass
    _require_arm(cell.condition, condition, reading)
    options = {**methods.LORA_DEFAULTS, **condition.options()}
    trained = sum(math.prod(reading.weights.shape(k)) for k in reading.weights.names)
    total = sum(math.prod(s) for s in (reading.plan.parameters or {}).values())
    modules = tuple(place.module for place in reading.plan.places)
    trainable = Trainable.of(condition.method, options, modules, trained, total)
    return written.folder, written.shape, trainable, [*reading.notes, *written.notes]


def _whole(base: Path, folder: Path) -> Trainable:
    """A full checkpoint with the base's tensors. Raises ModelError for another model."""
    change = checkpoint_change(base, folder)
    if change.notes:
        raise ModelError(
            f"{folder} is not a checkpoint of this base: {change.notes[0]}.", fix="Name the checkpoint's own base."
        )
    held = Tensors(folder)
    scalars = sum(math.prod(held.shape(n)) for n in held.names)
    return Trainable.of("full", {}, (), scalars, scalars)


def _require_arm(name: str, condition: Condition, reading: AdapterReading) -> None:
    """Raises ModelError where the adapter is not what the arm declares: other modules, rank, scale or method."""
    model = build(reading.base_folder)
    if model is None:
        raise ModelError(f"{reading.base_folder}: transformers has no class for this base.", fix="Train the arm here.")
    with on_meta():
        adapted, _ = methods.build(name, condition, model, seed=0)
    declared: dict[str, LoraPlace] = {p.module: p for p in places_of(adapted)}
    found = {p.module: p for p in reading.plan.places if p.module not in reading.missing}
    lacking, more = sorted(set(declared) - set(found)), sorted(set(found) - set(declared))
    if lacking or more:
        part = (
            f"it lacks {lacking[0]} ({len(lacking)} modules)" if lacking else f"it adapts {more[0]} ({len(more)} more)"
        )
        raise ModelError(
            f"the adapter is not what {name} declares: {part}.",
            fix="Adopt it as another condition, or declare a condition with its target_modules.",
        )
    for module, place in declared.items():
        mine = found[module]
        if mine.rank != place.rank or abs(mine.scale - place.scale) > 1e-6 * abs(place.scale):
            raise ModelError(
                f"the adapter is not what {name} declares: {module} has rank {mine.rank} and scale {mine.scale:g}, "
                f"but {place.rank} and {place.scale:g} are declared.",
                fix="Declare r and lora_alpha with the values used in training.",
            )
    plain = {p for p in reading.steps if p.removesuffix(".weight") not in found}
    if plain and not condition.options().get("modules_to_save"):
        raise ModelError(
            f"the adapter is not what {name} declares: it also changes {sorted(plain)[0]} ({len(plain)} weights).",
            fix="Declare modules_to_save, bias or trainable_token_indices as used in training.",
        )
    if reading.settings.dora is not bool(condition.options().get("use_dora")):
        raise ModelError(f"the adapter is not what {name} declares: use_dora is {reading.settings.dora}.")


# ---------------------------------------------------------------- the rows


def _words(row: Row) -> str:
    return canonical("\n".join(f"{m.role}: {m.content}" for m in row.messages))


def _rows(data: Prepared, asked: Adoption) -> AdoptedRows:
    """Its rows by the study's zones: by equal words, and held-out rows by near-copies of their prompts and answers."""
    assert asked.data is not None
    loaded = load_rows(asked.data)
    require_clean(loaded)
    words: dict[str, list[Row]] = {}
    for row in _own_rows(data):
        words.setdefault(_words(row), []).append(row)
    by_zone: dict[str, int] = {}
    held: dict[str, None] = {}
    unknown = []
    for row in loaded.rows:
        same = words.get(_words(row), [])
        for one in same:
            zone = data.place_of(one.id)[1]
            by_zone[zone] = by_zone.get(zone, 0) + 1
            if zone in HELD_OUT:
                held[one.id] = None
        if not same:
            unknown.append(row)
    near = _near(data, unknown, set(held))
    return AdoptedRows(
        asked.data.name, loaded.source_sha256, len(loaded.rows), by_zone, len(unknown), tuple(held), near
    )


def _own_rows(data: Prepared) -> list[Row]:
    """The study's rows and the items of its benchmarks."""
    return [*data.rows, *(row for benchmark in data.benchmarks.values() for row in benchmark.rows)]


def _near(data: Prepared, unknown: Sequence[Row], known: set[str]) -> tuple[str, ...]:
    """Stranger rows whose words stand in a row that is in no zone of the study."""
    items = [r for r in _own_rows(data) if data.place_of(r.id)[1] in ("stranger", BENCHMARK) and r.id not in known]
    if not unknown or not items:
        return ()
    found = check_contamination(list(unknown), {"stranger": items})
    hits = {h.item_id for h in found.hits if h.item_part == "prompt" and h.status != "review"}
    return tuple(r.id for r in items if r.id in hits)


def _refuse_held_out(rows: AdoptedRows | None, asked: Adoption) -> None:
    if rows is None or not (rows.held_out or rows.near) or asked.despite:
        return
    named = ", ".join([*rows.held_out, *rows.near][:5])
    raise GateError(
        f"{asked.data}: {len(rows.held_out)} of its rows are equal to held-out rows of the study, and "
        f"{len(rows.near)} stranger rows have a near-copy in it: {named}. The scores on those rows would be scores "
        "on training data.",
        fix='Split the study so that these rows are seen, or adopt the weights anyway with --despite "reason".',
    )


# ---------------------------------------------------------------- the records


def _files(given: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of every file that was handed in; those of a folder that hold weights or settings."""
    found: dict[str, str] = {}
    for path in given:
        inside = (
            sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".json", ".bin"))
            if path.is_dir()
            else [path]
        )
        found |= {p.name: sha256_file(p) for p in inside if p.is_file()}
    return found


def _not_checked(told: Told, rows: AdoptedRows | None) -> tuple[str, ...]:
    first = NEVER[0] if rows is None else f"whether it was trained on the rows of {rows.file} and no others"
    return (first, *NEVER[1:], *told.missing)


def _written(
    ready: Ready, cell: Cell, weights: Path, known: tuple[Trainable, Told, Elsewhere, float]
) -> TrainingRecord:
    """Copy the weights, then write manifest and training record; the record last."""
    trainable, told, elsewhere, loss = known
    step = told.steps if told.steps is not None else 0
    folder = ready.store.run(cell.run_id)
    checkpoint = folder / "checkpoints" / f"step-{step}"
    partial = checkpoint.with_name(f".step-{step}.tmp-folder")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(checkpoint):
        partial.mkdir(parents=True)
        names = [WEIGHTS, CONFIG]
        if not (weights / CONFIG).is_file():
            ends = (".safetensors", ".index.json", "config.json")
            names = [p.name for p in weights.iterdir() if p.name.endswith(ends)]
        for name in names:
            shutil.copyfile(weights / name, partial / name)
        shutil.rmtree(checkpoint, ignore_errors=True)
        partial.rename(checkpoint)
    manifest = manifest_of(ready.context, cell, ready.machine, ready.packages)
    unknown = TrainedRows(ready.data.version, ())
    replace(manifest, seeds={}, steps=told.steps, data=unknown, trained_elsewhere=True).save(folder / "manifest.json")
    place = ready.store.relative(checkpoint)
    record = TrainingRecord(
        input_hash=cell.input_hash,
        steps=told.steps,
        processes=None,
        checkpoint=place,
        best_step=step,
        validation_nll=loss,
        candidates=(CheckpointCandidate(step, loss, place),),
        final_loss=told.final_loss,
        trainable=trainable,
        rows_compared_with_contract=None,
        train_s=told.train_s,
        tokens=None,
        peak_memory=MemoryPeak(None, None, "not measured", "trained elsewhere"),
        elsewhere=elsewhere,
    )
    record.save(folder / "training.json")
    return record


def _loss(ready: Ready, condition: Condition, weights: Path) -> float:
    """Loss on the study's own validation rows, measured here with the weights as they will be scored."""
    if condition.method == "full":
        model = load_base(replace(ready.model, path=weights))
    else:
        model = attach(base_for(ready.store, ready.model, condition), weights)
    held = LocalWeights(model, ready.tokenizer.pad_token_id)
    loss = mean_nll(held.nll(ready.data.zone("validation")))
    held.close()
    if not math.isfinite(loss):
        raise ModelError(
            f"{weights}: the loss on the study's validation rows is {loss}.", fix="Adopt weights whose loss is finite."
        )
    return loss


def adopted_text(found: Adopted) -> str:
    """The result of `veritune adopt` as text for the screen."""
    known = found.elsewhere
    lines = [
        f"adopted  {found.run_id}: trained elsewhere ({known.form}); loss on the study's validation rows"
        f" {found.record.validation_nll:.4f} nats per target token"
    ]
    if known.rows is not None:
        zones = ", ".join(f"{n} {zone}" for zone, n in known.rows.by_zone.items()) or "none"
        lines.append(
            f"  rows       {known.rows.rows} given; in the study's zones: {zones}; {known.rows.unknown} in none"
        )
        held = [*known.rows.held_out, *known.rows.near]
        if held:
            lines.append(f"  ! trained on {len(held)} held-out rows: {', '.join(held[:5])} (despite: {known.despite})")
    lines += [f"  ! {text}" for text in known.differs]
    lines += [f"  not checked: {text}" for text in known.not_checked]
    return "\n".join([*lines, "", "`veritune run` scores it with the study's other cells and judges the claims."])

"""One cell: a run of one phase, condition and seed, from base model to scores, in steps that can be resumed.

    manifest.json      what it is made from            training.json    the candidates and the chosen checkpoint
    metrics.jsonl      canonical rows, one a log       checkpoints/     step-N/ of the chosen checkpoint
    telemetry.jsonl    gradient norms by module        probes/nll.json  NLL per row and zone
    scores/<eval>.jsonl  one score an item             summary.json     written last: the cell is done

The untouched baseline is a cell too: phase `baseline`, no training.
"""

from __future__ import annotations

import platform
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.config.train import Condition, Train
from veritune.errors import DivergedError, GateError, MachineError, ModelError, StaleError
from veritune.files import refuse_lost
from veritune.machine import PeakMemory, command_given, git_state
from veritune.progress import Progress
from veritune.records import (
    CheckpointCandidate,
    LiveMemory,
    LiveProbe,
    MachineFacts,
    MemoryPeak,
    MetricRow,
    NamedModel,
    NamedValue,
    Rendered,
    RowLoss,
    RowLosses,
    RuleCount,
    RunManifest,
    RunSummary,
    Score,
    Trainable,
    TrainedRows,
    TrainingRecord,
    ZoneLoss,
    ZoneScore,
    dumps,
)
from veritune.seal import finish_run
from veritune.store import Store, atomic, disk_errors, hash_of, now, read_json
from veritune.train import methods
from veritune.train.adapters.attach import attach
from veritune.train.backends.protocol import RunWeights, backend_of
from veritune.train.distributed import check_ranks, is_main, leave_group, leave_sharding, sharding, total, world_size
from veritune.train.models import ModelRef, load_base, quiet_transformers
from veritune.train.quantised import base_for
from veritune.train.reporting import Reported, reporting, require
from veritune.train.schedule import (
    BY_SOURCE,
    MAIN,
    SELECT,
    SHAPE,
    Cell,
    schedule,
    seen_rows,
    source_of_rows,
    sources_in,
    steps_of,
    summary_hash,
    training_tokens,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from veritune.data.prepare import Prepared
    from veritune.train.trainer import ContractTrainer, StepTimer

NATS = "nats per target token"
DEEPSPEED_S = ("global_step*", "latest", "zero_to_*.py")
NOT_KEPT = ("optimizer*", "scheduler*", "rng_state*", "trainer_state*", "*.bin", "complete", *DEEPSPEED_S)
PENALTIES = ("objective", "kl_to_base", "r3f")
"""What the log of a regularised condition also holds, per target token."""
GENERATORS = ("adapter_weights", "row_order", "python", "numpy", "torch")
"""Every generator that a run draws from; all are seeded with the run's seed."""


@dataclass(frozen=True)
class Context:
    """What every cell of a study shares."""

    store: Store
    study: Study
    model: ModelRef
    tokenizer: Any
    data: Prepared
    progress: Progress


def start(context: Context, cell: Cell, machine: MachineFacts, packages: Mapping[str, str]) -> None:
    """Write the manifest, or confirm an existing equal one."""
    path = context.store.run(cell.run_id) / "manifest.json"
    if context.store.is_done(path, cell.input_hash):
        return
    backend_of(context.study).manifest(manifest_of(context, cell, machine, packages)).save(path)


def manifest_of(context: Context, cell: Cell, machine: MachineFacts, packages: Mapping[str, str]) -> RunManifest:
    """The manifest of a cell: everything needed to repeat it."""
    condition = context.study.conditions.get(cell.condition)
    rows = () if cell.phase == BASELINE else seen_rows(context.study, context.data, cell)
    return RunManifest(
        run_id=cell.run_id,
        phase=cell.phase,
        condition=cell.condition,
        seed=cell.seed,
        lr=cell.lr,
        input_hash=cell.input_hash,
        model=NamedModel(context.model.name, context.model.dtype),
        method=condition.model_dump(mode="json") if condition else {},
        train=schedule(context.study, cell).model_dump(mode="json"),
        data=TrainedRows(context.data.version, tuple(r.row_id for r in rows)),
        packages=dict(packages),
        machine=machine,
        created=now(),
        steps=steps_of(context.study, context.data, cell) or None,
        seeds={} if cell.phase == BASELINE else dict.fromkeys(GENERATORS, cell.seed),
        git=git_state(context.store.root),
        exploratory=not context.store.contract_file.exists(),
        command=command_given(),
        host=platform.node(),
    )


def train(context: Context, cell: Cell) -> TrainingRecord | None:
    """Train the cell, or resume it after a killed process; returns None in processes other than the main one.

    Raises GateError when the trainer sees other rows than the contract's, DivergedError on a loss that is not finite.
    """
    from veritune.train.trainer import COMPLETE, last_complete

    folder = context.store.run(cell.run_id)
    record = folder / "training.json"
    work = folder / "work"
    if record.exists():
        shutil.rmtree(work, ignore_errors=True)
        return TrainingRecord.load(record)
    condition = context.study.conditions[cell.condition]
    check_ranks(context.study.train.devices)
    log, memory = MetricLog(folder / "metrics.jsonl", cell), PeakMemory()
    model, trainable = methods.build(
        cell.condition, condition, base_for(context.store, context.model, condition), cell.seed
    )
    reported = Reported(context.study.name, context.store.root, folder, work)
    with reporting(context.study.report_to, reported):
        trainer = _trainer(context, cell, model, work)
        _add_callbacks(context, cell, trainer, log)
        resumed = last_complete(work)
        share = _share_done(resumed) if resumed else 0.0
        if is_main():
            log.rewind(int(resumed.name.rsplit("-", 1)[-1]) if resumed else 0)
        if resumed:
            context.progress.skip("validate", log.validations)
            trainer.rows_checked = int((resumed / COMPLETE).read_text(encoding="utf-8")) if is_main() else 0
            context.progress.skip("train", training_tokens(context.study, context.data, cell) * share)
        with quiet_transformers(), disk_errors(work):
            if resumed and share >= 1:
                trainer.take_up_finished(resumed)
            else:
                trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    trainer.rows_checked = total(trainer.rows_checked)
    leave_group()
    leave_sharding()
    if not is_main():
        return None
    result = _training_record(context, cell, trainer, trainable, log, memory.read())
    result.save(record)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _trainer(
    context: Context, cell: Cell, model: PreTrainedModel, work: Path, max_steps: int | None = None
) -> ContractTrainer:
    import torch
    from transformers import PrinterCallback, TrainingArguments

    from veritune.train.regularise import Penalties, Regulariser, UpdateClip
    from veritune.train.trainer import ContractTrainer

    plan, condition = schedule(context.study, cell), context.study.conditions[cell.condition]
    steps = plan.max_steps if max_steps is None else max_steps
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=float(plan.num_train_epochs),
        max_steps=steps,
        per_device_train_batch_size=plan.per_device_train_batch_size,
        gradient_accumulation_steps=plan.gradient_accumulation_steps,
        learning_rate=cell.lr,
        lr_scheduler_type=plan.lr_scheduler_type,
        warmup_steps=plan.warmup_steps,
        weight_decay=plan.weight_decay,
        max_grad_norm=plan.max_grad_norm,
        seed=cell.seed,
        data_seed=cell.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to=list(context.study.report_to) if max_steps is None and context.study.report_to else "none",
        project=context.study.name,
        run_name=cell.run_id,
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        bf16=condition.method == "full" and context.model.dtype == "bfloat16",
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        neftune_noise_alpha=condition.neftune_noise_alpha or None,  # 0 would draw random numbers for nothing
        activation_checkpointing=plan.gradient_checkpointing,
        activation_checkpointing_kwargs={"use_reentrant": False} if plan.gradient_checkpointing else None,
        **sharding(plan),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer would put every visible GPU to work, each with a batch of its own
    trainer = ContractTrainer(
        model,
        arguments,
        rows=seen_rows(context.study, context.data, cell),
        validation=context.data.zone("validation"),
        pad_id=context.tokenizer.pad_token_id,
        padding_free=plan.padding_free,
    )
    trainer.source_of = source_of_rows(context.study, context.data)
    penalties = Penalties.of(condition)
    if penalties:
        trainer.regulariser = Regulariser(penalties, model)
    if condition.update_clip is not None:
        trainer.add_callback(UpdateClip(condition.update_clip))
    trainer.remove_callback(PrinterCallback)
    _check_strategy(plan, trainer)
    return trainer


def _check_strategy(plan: Train, trainer: ContractTrainer) -> None:
    """Raises MachineError where accelerate set up something else than the study declares."""
    kind = trainer.accelerator.distributed_type.value.upper()
    expected = {"fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}.get(plan.strategy)
    if world_size() > 1 and expected is not None and expected not in kind:
        raise MachineError(
            f"train.strategy is {plan.strategy}, but accelerate set up {kind} on this machine.",
            fix="Use ddp here, or run the cell where its accelerators are.",
        )


def _add_callbacks(context: Context, cell: Cell, trainer: ContractTrainer, log: MetricLog) -> None:
    from veritune.train.telemetry import GradientTelemetry
    from veritune.train.trainer import Cadence, MarkComplete, OnLog, Retention

    tokens = training_tokens(context.study, context.data, cell)

    def on_log(step: int, logs: Mapping[str, float]) -> None:
        if not is_main():
            return
        elapsed = log.add(step, logs)
        if "loss" in logs:
            total = trainer.state.max_steps
            note = f"{cell.condition} seed {cell.seed}: step {step}/{total}, loss {logs['loss']:.3f}"
            context.progress.advance("train", tokens / total, elapsed, note)
        elif "eval_loss" in logs:
            context.progress.advance("validate", 1, logs["eval_s"], f"{cell.condition} seed {cell.seed}: validation")

    trainer.add_callback(Cadence(context.study.train.eval_steps))
    trainer.add_callback(GradientTelemetry(context.store.run(cell.run_id) / "telemetry.jsonl"))
    trainer.add_callback(OnLog(on_log))
    trainer.add_callback(MarkComplete(lambda: total(trainer.rows_checked)))
    trainer.add_callback(Retention(NOT_KEPT, keep_all=keeps(context.study, cell) == "all"))


def _share_done(checkpoint: Path) -> float:
    state = read_json(checkpoint / "trainer_state.json", finite=False)
    return float(state["global_step"] / state["max_steps"])


def _training_record(
    context: Context, cell: Cell, trainer: ContractTrainer, trainable: Trainable, log: MetricLog, memory: MemoryPeak
) -> TrainingRecord:
    """Choose the checkpoint with the lowest validation NLL (the earliest of equals), keep it, record all candidates."""
    folder = context.store.run(cell.run_id)
    history = [row for row in trainer.state.log_history if "eval_loss" in row]
    losses_by_step = [(int(row["step"]), float(row["eval_loss"])) for row in history]
    best_step, best_nll = min(losses_by_step, key=lambda c: (c[1], c[0]))
    wanted = [step for step, _ in losses_by_step] if keeps(context.study, cell) == "all" else [best_step]
    if cell.phase in (SELECT, SHAPE):
        wanted = []  # what chooses a learning rate is its validation NLL; nobody loads its weights
    kept = {step: context.store.relative(_keep(folder, step)) for step in wanted}
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return TrainingRecord(
        input_hash=cell.input_hash,
        steps=trainer.state.global_step,
        processes=trainer.args.world_size,
        checkpoint=kept.get(best_step),
        best_step=best_step,
        validation_nll=best_nll,
        candidates=tuple(
            CheckpointCandidate(step, nll, kept.get(step), by_source=sources_in(row))
            for (step, nll), row in zip(losses_by_step, history)
        ),
        final_loss=losses[-1],
        trainable=trainable,
        rows_compared_with_contract=trainer.rows_checked,
        train_s=log.train_s,
        tokens=training_tokens(context.study, context.data, cell),
        peak_memory=memory,
    )


def _keep(folder: Path, step: int) -> Path:
    """Copy one checkpoint out of the work folder, without what only training needs; its path."""
    kept = folder / "checkpoints" / f"step-{step}"
    if not kept.exists():
        partial = folder / "checkpoints" / f".step-{step}.tmp-folder"
        shutil.rmtree(partial, ignore_errors=True)
        with disk_errors(kept):
            source = folder / "work" / f"checkpoint-{step}"
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*NOT_KEPT))
            partial.rename(kept)
    return kept


def keeps(study: Study, cell: Cell) -> str:
    """Which checkpoints of a cell stay on disk: `best`, `all` or `none`."""
    return "none" if cell.phase in (SELECT, SHAPE) else study.keep or "best"


class MetricLog:
    """`metrics.jsonl` of one run: rows in the canonical form, appended during training and truncated when a run
    resumes.
    """

    def __init__(self, path: Path, cell: Cell) -> None:
        self.path = path
        self.cell = cell
        self.train_s = 0.0
        self.validations = 0
        self.last = time.perf_counter()

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, which will be written again."""
        rows = [row for row in self._rows() if (row.step or 0) <= step]
        with atomic(self.path) as stream:
            stream.writelines(dumps(row) + "\n" for row in rows)
        self.train_s = sum(row.cost or 0.0 for row in rows if row.split == "seen")
        self.validations = sum(row.split == "validation" and row.loss is not None for row in rows)
        self.last = time.perf_counter()

    def _rows(self) -> list[MetricRow]:
        """Whole lines; one that a kill left half-written is dropped."""
        return MetricRow.load_all(self.path, torn=False) if self.path.exists() else []

    def add(self, step: int, logs: Mapping[str, float]) -> float:
        """Append what the trainer logged at `step`; returns the seconds since the last row. Raises DivergedError on
        NaN.
        """
        elapsed, self.last = time.perf_counter() - self.last, time.perf_counter()
        rows = list(self._canonical(step, logs, elapsed))
        losses = [row.loss for row in rows if row.loss is not None]
        if not all(map(_finite, [*losses, logs.get("objective", 0.0)])):
            raise DivergedError(
                f"run {self.cell.run_id}: the loss is {logs.get('loss', logs.get('eval_loss'))} at step {step}.",
                fix="Lower the learning rate or use float32; this run is not counted.",
            )
        refuse_lost(self.path)
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(dumps(row) + "\n" for row in rows)
        if "loss" in logs:
            self.train_s += elapsed
        return elapsed

    def _canonical(self, step: int, logs: Mapping[str, float], elapsed: float) -> Sequence[MetricRow]:
        cell = self.cell
        blank = MetricRow(cell.run_id, cell.condition, cell.seed, step, None, None, None, None, None, None)
        if "loss" in logs:
            row = replace(blank, split="seen", loss=logs["loss"], cost=elapsed)
            named = ((k, logs[k]) for k in ("grad_norm", "learning_rate", *PENALTIES) if k in logs)
            return [row, *(replace(blank, split="seen", metric=NamedValue(k, v)) for k, v in named)]
        if "eval_loss" in logs:
            count, cost = int(logs["eval_tokens"]), logs["eval_s"]
            row = replace(blank, split="validation", loss=logs["eval_loss"], token_count=count, cost=cost)
            named = ((key, logs[key]) for key in logs if key.startswith(BY_SOURCE))
            own = (NamedValue(f"nll:{key.removeprefix(BY_SOURCE)}", value) for key, value in named)
            return [row, *(replace(blank, split="validation", metric=one) for one in own)]
        return []


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


# ---------------------------------------------------------------- after training


def load_trained(context: Context, cell: Cell) -> PreTrainedModel:
    """The cell's model for scoring: the base alone, or with the chosen checkpoint's adapter or weights."""
    if cell.phase == BASELINE:
        return load_base(context.model)
    record = TrainingRecord.load(context.store.run(cell.run_id) / "training.json")
    checkpoint = record.weights_in(context.store.root)
    if not checkpoint.exists():
        raise StaleError(
            f"the checkpoint of run {cell.run_id} was not kept (`keep: {keeps(context.study, cell)}`).",
            fix="Delete the run's folder to train it again; new evals or probes need the checkpoint.",
        )
    condition = context.study.conditions[cell.condition]
    if condition.method == "full":
        return load_base(replace(context.model, path=checkpoint))
    return attach(base_for(context.store, context.model, condition), checkpoint)


def measure_nll(context: Context, cell: Cell, weights: RunWeights, row_ids: Sequence[str]) -> None:
    """Write the NLL per row of the items that the evals ask and of the validation rows; or the reason why there is
    none.
    """

    path = context.store.run(cell.run_id) / "probes" / "nll.json"
    rows = [context.data.rendered[i] for i in row_ids]
    digest = hash_of({"cell": cell.input_hash, "rows": [r.row_id for r in rows]})
    if context.store.is_done(path, digest):
        return
    began = time.perf_counter()
    try:
        parts = _in_the_trainer_s_batches(context, rows, weights)
    except ModelError as exc:
        RowLosses(digest, NATS, {}, (), exc.message).save(path)
        context.progress.say(f"  ! no loss by zone for {cell.condition}, seed {cell.seed}: {exc.message}")
        return
    zones = _by_zone(context, rows, parts)
    listed = tuple(
        RowLoss(row.row_id, context.data.zone_of[row.row_id], context.data.family_of[row.row_id], total, count)
        for row, (total, count) in zip(rows, parts)
    )
    RowLosses(digest, NATS, zones, listed, conversion=weights.confirm(zones)).save(path)
    context.progress.advance("nll", len(rows), time.perf_counter() - began, f"{cell.condition}: loss by zone")


def _in_the_trainer_s_batches(
    context: Context, rows: Sequence[Rendered], weights: RunWeights
) -> list[tuple[float, int]]:
    """Losses of rows in the order given; validation rows by themselves, as in training.

    In half precision a row's loss depends on its batch in the fourth digit, on some processors more than on others, and
    validation NLL after the checkpoint is loaded has to be what the trainer saw.
    """
    validates = [context.data.zone_of[row.row_id] == "validation" for row in rows]
    alone = iter(weights.nll([row for row, own in zip(rows, validates) if own]))
    others = iter(weights.nll([row for row, own in zip(rows, validates) if not own]))
    return [next(alone) if own else next(others) for own in validates]


def _by_zone(context: Context, rows: Sequence[Rendered], parts: Sequence[tuple[float, int]]) -> dict[str, ZoneLoss]:
    """Mean loss of the rows of each zone."""
    from veritune.train.trainer import mean_nll

    by_zone: dict[str, list[tuple[float, int]]] = {}
    for row, part in zip(rows, parts):
        by_zone.setdefault(context.data.zone_of[row.row_id], []).append(part)
    return {zone: ZoneLoss(mean_nll(p), len(p), sum(count for _, count in p)) for zone, p in by_zone.items()}


LIVE_STEPS = 3
"""Optimizer steps of a live probe: the longest rows first, for memory; then two at the rows' own lengths, for speed."""


def live_probe(
    context: Context, cell: Cell, work: Path, score: Callable[[PreTrainedModel], None] | None = None
) -> LiveProbe:
    """Make a few real optimizer steps for a condition: which parameters train, that all of them move, and that no
    frozen one does.

    Also what it costs: seconds and tokens of the steps after the first, of validation, and the peak of memory, which is
    taken at the longest rows, and again while `score` answers with the trained model. Raises GateError when the loss is
    not finite, a trainable module did not move, or a frozen tensor changed; MachineError when a reporter is missing.
    """
    from veritune.train.trainer import check_joined

    require(context.study.report_to)
    condition: Condition = context.study.conditions[cell.condition]
    memory, began = PeakMemory(), time.perf_counter()
    base = base_for(context.store, context.model, condition)
    load_s = time.perf_counter() - began
    base_bytes = sum(p.numel() * p.element_size() for p in base.parameters())
    model, trainable = methods.build(cell.condition, condition, base, cell.seed)
    loading = memory.read()
    before = _fingerprints(model)
    trainer = _trainer(context, cell, model, work, max_steps=LIVE_STEPS)
    timer = _prepare_live(context, cell, trainer)
    if schedule(context.study, cell).padding_free:
        check_joined(model, trainer.contract_rows[-3:], context.tokenizer.pad_token_id)
    memory = PeakMemory()
    with quiet_transformers():
        trainer.train()
        evaluated = trainer.evaluate()
    peak = memory.read()
    parts = _memory(model, base_bytes, loading, peak)
    if score is not None:
        memory = PeakMemory()
        score(model)
        parts = replace(parts, scoring=memory.read().bytes)
    shutil.rmtree(work, ignore_errors=True)
    loss = next(row["loss"] for row in trainer.state.log_history if "loss" in row)
    moved = {name for name, mark in _fingerprints(model).items() if mark != before[name]}
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    _judge_live(cell.condition, loss, moved, learns)
    step_s, step_tokens = (sum(part) / len(part) for part in zip(*timer.steps[1:]))
    return LiveProbe(
        input_hash=cell.input_hash,
        condition=cell.condition,
        loss=loss,
        step_s=step_s,
        step_tokens=step_tokens,
        validation_s=evaluated["eval_s"],
        validation_tokens=sum(len(r.input_ids) for r in trainer.validation_rows),
        load_s=load_s,
        memory=parts,
        rows_compared_with_contract=trainer.rows_checked,
        moved_tensors=len(moved),
        trainable_tensors=len(learns),
        trainable=trainable,
    )


def _prepare_live(context: Context, cell: Cell, trainer: ContractTrainer) -> StepTimer:
    """Hand the trainer the longest rows for its first step and a fair draw for the others, unshuffled; its timer."""
    from veritune.train.trainer import NLL_BATCH, StepTimer

    train = schedule(context.study, cell)
    trainer.args.warmup_steps = 0
    trainer.args.gradient_accumulation_steps = min(train.gradient_accumulation_steps, 2)
    need = train.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    rows = sorted(seen_rows(context.study, context.data, cell), key=lambda r: -len(r.input_ids))
    rest = rows[need:] or rows
    drawn = random.Random(cell.seed).sample(rest, min(len(rest), 2 * need))
    trainer.use_rows([*rows[:need], *drawn])
    trainer.validation_rows = sorted(trainer.validation_rows, key=lambda r: -len(r.input_ids))[:NLL_BATCH]
    timer = StepTimer(trainer)
    trainer.add_callback(timer)
    return timer


def _judge_live(condition: str, loss: float, moved: set[str], learns: set[str]) -> None:
    still = sorted({_module(n) for n in learns} - {_module(n) for n in learns & moved})
    where = f"live probe of {condition}:"
    if not _finite(loss):
        raise GateError(f"{where} the first loss is {loss}.", fix="Check model.dtype and the data.")
    if still:
        raise GateError(
            f"{where} {LIVE_STEPS} steps did not move {still[0]}.", fix="Check target_modules and learning_rate."
        )
    if moved - learns:
        raise GateError(
            f"{where} frozen {min(moved - learns)} changed.", fix="Check the settings of the condition's method."
        )


def _memory(model: PreTrainedModel, base: int, loading: MemoryPeak, peak: MemoryPeak) -> LiveMemory:
    """Bytes a device needs to train, by what they hold; `total` is the measured peak, None where it cannot be told.

    Weights, adapter, gradients and optimizer (AdamW: two moments) are counted from the tensors. `process` is what was
    held before the model was loaded; `activations` is the rest of the peak: activations, logits, work space.
    """
    learns = [p for p in model.parameters() if p.requires_grad]
    trained = sum(p.numel() * p.element_size() for p in learns)
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    adapter = 0 if len(learns) == len(list(model.parameters())) else trained
    counted = (whole - adapter, adapter, trained, 2 * trained)
    held = [m.bytes for m in (loading, peak)]
    known = [m for m in held if m is not None]
    total = max(known) if len(known) == len(held) else None
    process = loading.before
    rest = None if total is None or process is None else max(0, total - process - sum(counted))
    return LiveMemory(*counted, rest, process, total, peak.source, peak.reason, loaded_as=base)


def _fingerprints(model: PreTrainedModel) -> dict[str, tuple[float, float]]:
    """Two float64 sums per parameter: enough to see any real change, and no copy of the model."""
    return {
        name: (float(p.detach().double().sum()), float(p.detach().double().square().sum()))
        for name, p in model.named_parameters()
    }


def _module(parameter: str) -> str:
    """The module a parameter belongs to, an adapter's factors counted as one."""
    return re.sub(r"\.(lora_\w+|weight|bias)(\..*)?$", "", parameter)


def finish(
    context: Context,
    cell: Cell,
    evals: Mapping[str, Path],
    *,
    failed: str | None = None,
    memory: MemoryPeak | None = None,
) -> RunSummary:
    """Write the summary, which marks the cell as done.

    `failed` is why a selection run's learning rate is out, `memory` the peak while the cell was scored.
    """
    folder = context.store.run(cell.run_id)
    trained = failed is None and cell.phase != BASELINE
    manifest = RunManifest.load(folder / "manifest.json")
    nll = RowLosses.load(folder / "probes" / "nll.json").zones if cell.phase in (BASELINE, MAIN) else {}
    summary = RunSummary(
        input_hash=summary_hash(context.study, cell, context.data.facts),
        run_id=cell.run_id,
        phase=cell.phase,
        condition=cell.condition,
        seed=None if cell.phase == BASELINE else cell.seed,
        lr=None if cell.phase == BASELINE or manifest.trained_elsewhere else cell.lr,
        exploratory=manifest.exploratory,
        failed=failed,
        training=TrainingRecord.load(folder / "training.json") if trained else None,
        scoring_memory=memory,
        nll=nll,
        scores={name: score_summary(Score.load_all(path)) for name, path in evals.items()},
        finished=now(),
    )
    finish_run(context.store, cell.run_id, summary)
    if keeps(context.study, cell) == "none":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return summary


def score_summary(scores: Sequence[Score]) -> dict[str, ZoneScore]:
    """Per zone: the mean over items with a value, their number, and those without a value by reason."""
    result: dict[str, ZoneScore] = {}
    for zone in sorted({s.zone or "" for s in scores}):
        here = [s for s in scores if (s.zone or "") == zone]
        values = [s.value for s in here if s.value is not None]
        missing = Counter(s.reason or "no reason" for s in here if s.value is None)
        cut = sum(s.ended == "length" for s in here)
        mean = sum(values) / len(values) if values else None
        ruled = [s.rules for s in here if s.rules is not None]
        rules = {k: RuleCount(sum(r[k] for r in ruled), len(ruled)) for k in ruled[0]} if ruled else None
        result[zone] = ZoneScore(mean, len(values), len(here), dict(missing), cut, rules)
    return result

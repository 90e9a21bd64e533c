"""One cell: a run of one phase, condition and seed, from base model to scores, in steps that can be taken up again.

    manifest.json      what it is made from            training.json    the candidates and the chosen checkpoint
    metrics.jsonl      canonical rows, one a log       checkpoints/     step-N/ of the chosen checkpoint
    telemetry.jsonl    gradient norms by module        probes/nll.json  NLL per row and zone
    scores/<eval>.jsonl  one score an item             summary.json     written last: the cell is done

The untouched baseline is a cell too: phase `baseline`, no training.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.errors import GateError, MachineError, ModelError
from veritune.progress import Progress
from veritune.records import MetricRow, RunManifest, dumps, to_json
from veritune.store import Store, atomic, disk_errors, hash_of, now, read_json, read_jsonl, whole_lines, write_json
from veritune.study import BASELINE, Condition, Study, Train
from veritune.train import methods
from veritune.train.distributed import check_ranks, is_main, leave_group, world_size
from veritune.train.models import ModelRef, load_base, quiet_transformers
from veritune.train.quantised import base_for

if TYPE_CHECKING:
    from veritune.data.prepare import Prepared

NOT_KEPT = ("optimizer*", "scheduler*", "rng_state*", "trainer_state*", "*.bin", "complete")


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to be made. `input_hash` covers model, data, method, schedule and seed; it is part of the id."""

    run_id: str
    phase: str
    condition: str
    seed: int
    lr: float
    input_hash: str


@dataclass(frozen=True)
class Context:
    """What every cell of a study shares."""

    store: Store
    study: Study
    model: ModelRef
    tokenizer: Any
    data: Prepared
    progress: Progress


def plan_cells(study: Study, facts: Mapping[str, Any]) -> list[Cell]:
    """The baseline and every condition × seed, seeds outermost, so that an early look is a balanced one."""
    shared = {"model": facts["model"], "rendered": facts["rendered_sha256"], "version": facts["data_version"]}
    base_hash = hash_of({**shared, "phase": BASELINE})
    cells = [Cell(f"{BASELINE}-{base_hash[:8]}", BASELINE, BASELINE, 0, 0.0, base_hash)]
    for seed in study.seeds:
        for name, condition in study.conditions.items():
            lr = condition.learning_rate or study.train.learning_rate
            parts = {**shared, "condition": condition, "train": study.train, "seed": seed, "lr": lr, "phase": "main"}
            digest = hash_of(
                {k: v.model_dump(mode="json") if hasattr(v, "model_dump") else v for k, v in parts.items()}
            )
            cells.append(Cell(f"{name}-s{seed}-{digest[:8]}", "main", name, seed, lr, digest))
    return cells


def training_tokens(study: Study, data: Prepared) -> int:
    """Tokens one run trains on, padding apart."""
    per_epoch = sum(len(r.input_ids) for r in data.zone("seen"))
    if study.train.max_steps > 0:
        batch = rows_per_step(study.train)
        return round(per_epoch * study.train.max_steps * batch / max(len(data.zone("seen")), 1))
    return round(per_epoch * study.train.num_train_epochs)


def rows_per_step(plan: Train) -> int:
    """Rows of one optimizer step, over all devices and micro-batches."""
    return plan.per_device_train_batch_size * plan.gradient_accumulation_steps * plan.devices


def start(context: Context, cell: Cell, machine: Mapping[str, Any], packages: Mapping[str, str]) -> None:
    """Write the manifest, or confirm the one that is there."""
    path = context.store.run(cell.run_id) / "manifest.json"
    if context.store.is_done(path, cell.input_hash):
        return
    condition = context.study.conditions.get(cell.condition)
    manifest = RunManifest(
        run_id=cell.run_id,
        phase=cell.phase,
        condition=cell.condition,
        seed=cell.seed,
        lr=cell.lr,
        input_hash=cell.input_hash,
        model={"name": context.model.name, "dtype": context.model.dtype},
        method=condition.model_dump(mode="json") if condition else {},
        train=context.study.train.model_dump(mode="json"),
        data={"version": context.data.version, "seen_rows": [r.row_id for r in context.data.zone("seen")]},
        packages=dict(packages),
        machine=dict(machine),
        created=now(),
    )
    write_json(path, manifest)


def train(context: Context, cell: Cell) -> dict[str, Any]:
    """Train the cell, or take up where a killed process left it; the record of the training.

    Raises GateError when the trainer sees other rows than the contract's, ModelError on a loss that is not finite.
    """
    from veritune.train.trainer import COMPLETE, last_complete

    folder = context.store.run(cell.run_id)
    record = folder / "training.json"
    work = folder / "work"
    if record.exists():
        shutil.rmtree(work, ignore_errors=True)
        return read_json(record)
    condition = context.study.conditions[cell.condition]
    check_ranks(context.study.train.devices)
    log = MetricLog(folder / "metrics.jsonl", cell)
    model, trainable = methods.build(
        cell.condition, condition, base_for(context.store, context.model, condition), cell.seed
    )
    trainer = _trainer(context, cell, model, work)
    _add_callbacks(context, cell, trainer, log)
    resumed = last_complete(work)
    share = _share_done(resumed) if resumed else 0.0
    if is_main():
        log.rewind(int(resumed.name.rsplit("-", 1)[-1]) if resumed else 0)
    if resumed:
        trainer.rows_checked = int((resumed / COMPLETE).read_text(encoding="utf-8"))
        context.progress.skip("train", training_tokens(context.study, context.data) * share)
    with quiet_transformers(), disk_errors(work):
        if resumed and share >= 1:
            trainer.take_up_finished(resumed)
        else:
            trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    leave_group()
    if not is_main():
        return {}
    result = _training_record(context, cell, trainer, trainable, log)
    write_json(record, result)
    shutil.rmtree(work, ignore_errors=True)
    return result


def _trainer(context: Context, cell: Cell, model: Any, work: Path, max_steps: int | None = None) -> Any:
    import torch
    from transformers import PrinterCallback, TrainingArguments

    from veritune.train.trainer import ContractTrainer

    plan, condition = context.study.train, context.study.conditions[cell.condition]
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
        **_sharding(plan),
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # else the Trainer would put every visible GPU to work, each with a batch of its own
    with _reporting(context.store.run(cell.run_id)):
        trainer = ContractTrainer(
            model,
            arguments,
            rows=context.data.zone("seen"),
            validation=context.data.zone("validation"),
            pad_id=context.tokenizer.pad_token_id,
        )
    trainer.remove_callback(PrinterCallback)
    _check_strategy(plan, trainer)
    return trainer


@contextlib.contextmanager
def _reporting(folder: Path) -> Iterator[None]:
    """TensorBoard's files belong to the run, not to the folder that goes when training ends."""
    name, before = "TENSORBOARD_LOGGING_DIR", os.environ.get("TENSORBOARD_LOGGING_DIR")
    os.environ[name] = before or str(folder / "tensorboard")
    try:
        yield
    except (RuntimeError, ImportError) as exc:
        if "requires" not in str(exc) and not isinstance(exc, ImportError):
            raise
        raise MachineError(f"report_to: {str(exc).splitlines()[0]}", fix="Install it, or take it out.") from None
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def _sharding(plan: Train) -> dict[str, Any]:
    """The Trainer's own arguments for a model in parts."""
    if world_size() == 1:  # the live probe, one step on one device
        return {}
    if plan.strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, **(plan.strategy_config or {})}}
    if plan.strategy == "deepspeed":
        return {"deepspeed": plan.strategy_config}
    return {}


def _check_strategy(plan: Train, trainer: Any) -> None:
    """Raises MachineError where accelerate set up something else than the study declares."""
    kind = trainer.accelerator.distributed_type.value.upper()
    expected = {"fsdp2": "FSDP", "deepspeed": "DEEPSPEED"}.get(plan.strategy)
    if world_size() > 1 and expected is not None and expected not in kind:
        raise MachineError(
            f"train.strategy is {plan.strategy}, and accelerate set up {kind} on this machine.",
            fix="Use ddp here, or run the cell where the devices are.",
        )


def _add_callbacks(context: Context, cell: Cell, trainer: Any, log: MetricLog) -> None:
    from veritune.train.telemetry import GradientTelemetry
    from veritune.train.trainer import Cadence, MarkComplete, OnLog

    tokens = training_tokens(context.study, context.data)

    def on_log(step: int, logs: dict[str, Any]) -> None:
        if not is_main():
            return
        elapsed = log.add(step, logs)
        if "loss" in logs:
            total = trainer.state.max_steps
            note = f"{cell.condition} seed {cell.seed}: step {step}/{total}, loss {logs['loss']:.3f}"
            context.progress.advance("train", tokens / total, elapsed, note)

    trainer.add_callback(Cadence(context.study.train.eval_steps))
    trainer.add_callback(GradientTelemetry(context.store.run(cell.run_id) / "telemetry.jsonl"))
    trainer.add_callback(OnLog(on_log))
    trainer.add_callback(MarkComplete(lambda: trainer.rows_checked))


def _share_done(checkpoint: Path) -> float:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return float(state["global_step"] / state["max_steps"])


def _training_record(context: Context, cell: Cell, trainer: Any, trainable: Any, log: MetricLog) -> dict[str, Any]:
    """Choose the checkpoint with the lowest validation NLL (the earliest of equals), keep it, record all candidates."""
    folder = context.store.run(cell.run_id)
    history = [row for row in trainer.state.log_history if "eval_loss" in row]
    candidates = [{"step": int(row["step"]), "validation_nll": row["eval_loss"]} for row in history]
    best = min(candidates, key=lambda c: (c["validation_nll"], c["step"]))
    kept = folder / "checkpoints" / f"step-{best['step']}"
    if not kept.exists():
        partial = folder / "checkpoints" / f".step-{best['step']}.tmp-folder"
        shutil.rmtree(partial, ignore_errors=True)
        with disk_errors(kept):
            shutil.copytree(
                folder / "work" / f"checkpoint-{best['step']}",
                partial,
                ignore=shutil.ignore_patterns(*NOT_KEPT),
            )
            partial.rename(kept)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return {
        "input_hash": cell.input_hash,
        "steps": trainer.state.global_step,
        "processes": trainer.args.world_size,
        "checkpoint": context.store.relative(kept),
        "best_step": best["step"],
        "validation_nll": best["validation_nll"],
        "candidates": candidates,
        "final_loss": losses[-1],
        "trainable": {**to_json(trainable), "share": trainable.share},
        "rows_compared_with_contract": trainer.rows_checked,
        "train_s": log.train_s,
        "tokens": training_tokens(context.study, context.data),
    }


class MetricLog:
    """`metrics.jsonl` of one run: canonical rows, appended as they come and cut back when a run is taken up again."""

    def __init__(self, path: Path, cell: Cell) -> None:
        self.path = path
        self.cell = cell
        self.train_s = 0.0
        self.last = time.perf_counter()

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`; they will be written again."""
        rows = [row for row in self._rows() if (row["step"] or 0) <= step]
        with atomic(self.path) as stream:
            stream.writelines(dumps(row) + "\n" for row in rows)
        self.train_s = sum(row["cost"] or 0.0 for row in rows if row["split"] == "seen")
        self.last = time.perf_counter()

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return [json.loads(line) for line in whole_lines(text)]

    def add(self, step: int, logs: Mapping[str, Any]) -> float:
        """Append what the trainer logged at `step`; seconds since the last row. Raises ModelError on NaN."""
        elapsed, self.last = time.perf_counter() - self.last, time.perf_counter()
        rows = list(self._canonical(step, logs, elapsed))
        if any(row.loss is not None and not _finite(row.loss) for row in rows):
            raise ModelError(
                f"run {self.cell.run_id}: the loss is {logs.get('loss', logs.get('eval_loss'))} at step {step}.",
                fix="Lower the learning rate or use float32; the run is not counted.",
            )
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.writelines(dumps(row) + "\n" for row in rows)
        if "loss" in logs:
            self.train_s += elapsed
        return elapsed

    def _canonical(self, step: int, logs: Mapping[str, Any], elapsed: float) -> Sequence[MetricRow]:
        cell = self.cell
        blank = MetricRow(cell.run_id, cell.condition, cell.seed, step, None, None, None, None, None, None)
        if "loss" in logs:
            row = replace(blank, split="seen", loss=logs["loss"], cost=elapsed)
            named = ((k, logs[k]) for k in ("grad_norm", "learning_rate") if k in logs)
            return [row, *(replace(blank, split="seen", metric={"name": k, "value": v}) for k, v in named)]
        if "eval_loss" in logs:
            count, cost = int(logs["eval_tokens"]), logs["eval_s"]
            return [replace(blank, split="validation", loss=logs["eval_loss"], token_count=count, cost=cost)]
        return []


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


# ---------------------------------------------------------------- after training


def load_trained(context: Context, cell: Cell) -> Any:
    """The cell's model as it is scored: the base alone, or with the chosen checkpoint's adapter or weights."""
    if cell.phase == BASELINE:
        return load_base(context.model)
    record = read_json(context.store.run(cell.run_id) / "training.json")
    checkpoint = context.store.root / record["checkpoint"]
    condition = context.study.conditions[cell.condition]
    if condition.method == "full":
        return load_base(replace(context.model, path=checkpoint))
    from peft import PeftModel

    base = base_for(context.store, context.model, condition)
    with quiet_transformers():
        return PeftModel.from_pretrained(base, checkpoint).eval()


def measure_nll(context: Context, cell: Cell, model: Any, row_ids: Sequence[str]) -> None:
    """Write NLL per row, for the items that the evals ask and the validation rows."""
    from veritune.train.trainer import mean_nll, row_nll

    path = context.store.run(cell.run_id) / "probes" / "nll.json"
    rows = [context.data.rendered[i] for i in row_ids]
    digest = hash_of({"cell": cell.input_hash, "rows": [r.row_id for r in rows]})
    if context.store.is_done(path, digest):
        return
    began = time.perf_counter()
    parts = row_nll(model, rows, context.tokenizer.pad_token_id)
    by_zone: dict[str, list[tuple[float, int]]] = {}
    for row, part in zip(rows, parts):
        by_zone.setdefault(context.data.zone_of[row.row_id], []).append(part)
    zones = {
        zone: {"nll": mean_nll(p), "rows": len(p), "target_tokens": sum(count for _, count in p)}
        for zone, p in by_zone.items()
    }
    listed = [
        {
            "row_id": row.row_id,
            "zone": context.data.zone_of[row.row_id],
            "family": context.data.family_of[row.row_id],
            "nll_sum": total,
            "target_tokens": count,
        }
        for row, (total, count) in zip(rows, parts)
    ]
    record = {"input_hash": digest, "unit": "nats per target token", "zones": zones, "rows": listed}
    write_json(path, record)
    context.progress.advance("nll", len(rows), time.perf_counter() - began, f"{cell.condition}: loss by zone")


def live_probe(context: Context, cell: Cell, work: Path) -> dict[str, Any]:
    """One real optimizer step for a condition: what trains, that all of it moves, and that nothing frozen does.

    Raises GateError when the loss is not finite, a trainable module did not move, or a frozen tensor changed.
    """
    condition: Condition = context.study.conditions[cell.condition]
    model, trainable = methods.build(
        cell.condition, condition, base_for(context.store, context.model, condition), cell.seed
    )
    before = _fingerprints(model)
    trainer = _trainer(context, cell, model, work, max_steps=1)
    trainer.args.warmup_steps = 0
    began = time.perf_counter()
    with quiet_transformers():
        loss = float(trainer.train().training_loss)
    step_s = time.perf_counter() - began
    shutil.rmtree(work, ignore_errors=True)
    moved = {name for name, mark in _fingerprints(model).items() if mark != before[name]}
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    still = sorted({_module(n) for n in learns} - {_module(n) for n in learns & moved})
    where = f"live probe of {cell.condition}:"
    if not _finite(loss):
        raise GateError(f"{where} the first loss is {loss}.", fix="Check dtype and data.")
    if still:
        raise GateError(f"{where} one step did not move {still[0]}.", fix="Check targets and learning rate.")
    if moved - learns:
        raise GateError(f"{where} frozen {min(moved - learns)} changed.", fix="Check the method's config.")
    return {
        "condition": cell.condition,
        "loss": loss,
        "step_s": step_s,
        "rows_compared_with_contract": trainer.rows_checked,
        "moved_tensors": len(moved),
        "trainable_tensors": len(learns),
        "trainable": {**to_json(trainable), "share": trainable.share},
    }


def _fingerprints(model: Any) -> dict[str, tuple[float, float]]:
    """Two float64 sums per parameter: enough to see any real change, and no copy of the model."""
    return {
        name: (float(p.detach().double().sum()), float(p.detach().double().square().sum()))
        for name, p in model.named_parameters()
    }


def _module(parameter: str) -> str:
    """The module a parameter belongs to, an adapter's factors counted as one."""
    return re.sub(r"\.(lora_\w+|weight|bias)(\..*)?$", "", parameter)


def finish(context: Context, cell: Cell, evals: Mapping[str, Path]) -> dict[str, Any]:
    """Write the summary; from now on the cell is done."""
    folder = context.store.run(cell.run_id)
    training = read_json(folder / "training.json") if (folder / "training.json").exists() else None
    nll = read_json(folder / "probes" / "nll.json")
    summary = {
        "input_hash": summary_hash(context.study, cell),
        "run_id": cell.run_id,
        "phase": cell.phase,
        "condition": cell.condition,
        "seed": None if cell.phase == BASELINE else cell.seed,
        "lr": None if cell.phase == BASELINE else cell.lr,
        "training": training,
        "nll": nll["zones"],
        "scores": {name: _score_summary(read_jsonl(path)) for name, path in evals.items()},
        "finished": now(),
    }
    write_json(folder / "summary.json", summary)
    return summary


def summary_hash(study: Study, cell: Cell) -> str:
    """What a finished cell was made from: its training inputs and the eval contracts."""
    evals = {name: spec.model_dump(mode="json") for name, spec in study.evals.items()}
    return hash_of({"cell": cell.input_hash, "evals": evals})


def _score_summary(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Per zone: the mean over items with a value, how many there are, and those without one by reason."""
    result: dict[str, Any] = {}
    for zone in sorted({s["zone"] for s in scores}):
        here = [s for s in scores if s["zone"] == zone]
        values = [s["value"] for s in here if s["value"] is not None]
        reasons: dict[str, int] = {}
        for s in here:
            if s["value"] is None:
                reasons[s["reason"]] = reasons.get(s["reason"], 0) + 1
        cut = sum(s["parts"].get("ended") == "length" for s in here)
        mean = sum(values) / len(values) if values else None
        result[zone] = {"mean": mean, "scored": len(values), "items": len(here), "missing": reasons, "cut": cut}
        ruled = [s["parts"]["rules"] for s in here if "rules" in s["parts"]]
        if ruled:
            result[zone]["rules"] = {k: {"held": sum(r[k] for r in ruled), "of": len(ruled)} for k in ruled[0]}
    return result

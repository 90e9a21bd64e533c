"""The Tinker backend of a study: every cell is one LoRA adapter on a server.

Rows, masks, their order, the learning rate of every step and the moments of validation are those of a local run. What
the server decides stands in each training record (`backend.server_owned`), and so does what it did otherwise than
asked. A killed cell is trained again: adapter, optimizer and random state live on the server.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.config.train import Train
from veritune.errors import GateError, ModelError, StaleError, StudyError
from veritune.records import (
    AskedOfServer,
    BaseFacts,
    Conversion,
    DecodingNotes,
    LiveMemory,
    LiveProbe,
    MemoryPeak,
    NamedModel,
    Rendered,
    RunManifest,
    ServerBase,
    ServerCandidate,
    ServerExport,
    ServerTraining,
    Trainable,
    TrainingRecord,
    ZoneLoss,
)
from veritune.store import sha256_file
from veritune.train import methods
from veritune.train.backends.protocol import Memory, RunWeights, refuse_settings
from veritune.train.backends.tinker import (
    SWITCHES,
    Sampler,
    SamplerWeights,
    Session,
    TinkerConfig,
    export_due,
    require_sdk,
    require_server,
)
from veritune.train.models import ModelRef, bare, resolve
from veritune.train.modules import module_group
from veritune.train.schedule import (
    MAIN,
    Cell,
    by_source,
    effective_batch,
    schedule,
    seen_rows,
    source_of_rows,
    sources_in,
    steps_of,
    training_tokens,
    validation_steps,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

    from veritune.train.cells import Context, MetricLog

RANK = 8
ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
"""AdamW as `transformers.Trainer` runs it; the SDK's own defaults are others (beta2 0.95, eps 1e-12)."""
PIPELINED_STEPS = 12
"""Probe steps on the same rows where steps are in flight together: a server that mixes them up does so now and then."""
CONVERTED_WITHIN = 0.1
"""Nats per target token by which converted weights may differ from the training weights they were made from."""
NOT_HAD = {
    "telemetry": "gradients stay on the server",
    "base_weights_sha256": "the base lies on the server; its files cannot be hashed from here",
    "peak_memory": "the server's memory is not reported through the API",
    "resume": "a killed cell is trained again: optimizer and random state live on the server",
}
SERVER = "decided by the server"


class NoMemory:
    """Stands for a server's memory, which cannot be measured."""

    def read(self) -> MemoryPeak:
        """None, with the reason."""
        return MemoryPeak(None, None, "none", NOT_HAD["peak_memory"])


class Tinker:
    """A server that speaks the Tinker API."""

    name = "tinker"

    def __init__(self, study: Study) -> None:
        self.study = study
        self.base_url, self.base_model = str(study.backend.base_url), str(study.backend.base_model)

    def refuse(self) -> None:
        """Raises StudyError for settings that the API does not support, MachineError without the SDK."""
        refuse_settings("tinker", list(_refused(self.study)))
        require_sdk()

    def model(self, root: Path) -> ModelRef:
        """The folder with tokenizer, template and config; weights are not needed."""
        return replace(resolve(self.study.model, root, weights=False), dtype=SERVER)

    def facts(self, model: ModelRef) -> BaseFacts:
        """The server's name of the base, the SDK's version, the config's hash."""
        return BaseFacts(
            name=model.name,
            dtype=SERVER,
            files={"config.json": sha256_file(model.path / "config.json")},
            backend=ServerBase(self.name, self.base_model, metadata.version("tinker")),
        )

    def bare(self, model: ModelRef) -> PreTrainedModel:
        """The base's modules on the meta device: shapes without values, made from config.json."""
        return bare(model)

    def manifest(self, local: RunManifest) -> RunManifest:
        """A manifest with the server's name of the base, and the seeds: that of the row order, which is drawn here, and
        the one requested from the server.
        """
        model = NamedModel(self.study.model.path, SERVER, self.name, self.base_model)
        seeds = {} if local.phase == BASELINE else {"row_order": local.seed, "server": local.seed}
        return replace(local, model=model, seeds=seeds)

    def memory(self) -> Memory:
        """A stand-in, since the server's memory cannot be measured."""
        return NoMemory()

    def asked(self, context: Context, condition: str) -> tuple[Trainable, tuple[str, ...]]:
        """What a condition trains if the server follows the request, and the module groups to switch on.

        Raises StudyError where the condition's targets are not whole groups.
        """
        settings, base = self.study.conditions[condition], self.bare(context.model)
        linear = [name for name, module in base.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
        _, trainable = methods.build(condition, settings, base, 0)
        groups = _whole_groups(condition, trainable.modules, linear)
        options = {"r": settings.r or RANK, "target_modules": trainable.options["target_modules"]}
        return replace(trainable, options=options), groups

    def session(self, context: Context, cell: Cell, groups: tuple[str, ...]) -> Session:
        """A new adapter on the server with the cell's settings."""
        plan = schedule(self.study, cell)
        adam = ADAM | {"weight_decay": plan.weight_decay, "grad_clip_norm": plan.max_grad_norm}
        rank = self.study.conditions[cell.condition].r or RANK
        ahead = self.study.backend.ahead
        require_server(self.base_url)
        return Session(TinkerConfig(self.base_model, self.base_url, rank, cell.seed, groups, ahead, adam))

    def live(
        self, context: Context, cell: Cell, work: Path, score: Callable[[PreTrainedModel], None] | None = None
    ) -> LiveProbe:
        """Make a few steps on a new adapter, and check that they take effect in order and that the server trains what
        was requested.

        Raises GateError where a step changed nothing, or the exported adapter holds other modules than were asked for.
        """
        trainable, groups = self.asked(context, cell.condition)
        began = time.perf_counter()
        session = self.session(context, cell, groups)
        load_s = time.perf_counter() - began
        longest, drawn = _live_batches(context, cell)
        batches = [longest, *[drawn] * (PIPELINED_STEPS if session.config.ahead else 2)]
        losses, took = [], []
        began = time.perf_counter()
        for step in session.train(batches, [cell.lr] * len(batches)):
            losses.append(step.loss)
            took.append(time.perf_counter() - began)
            began = time.perf_counter()
        rows = sorted(context.data.zone("validation"), key=lambda r: -len(r.input_ids))[:16]
        began = time.perf_counter()
        session.nll(rows)
        validation_s = time.perf_counter() - began
        shutil.rmtree(work, ignore_errors=True)
        found = session.export(session.save("live"), work)
        session.close()
        shutil.rmtree(work, ignore_errors=True)
        _judge(cell.condition, losses[1:], found["differs"])
        adapter = 4 * trainable.n_trainable
        memory = LiveMemory(None, adapter, None, None, None, None, None, "none", NOT_HAD["peak_memory"], None)
        return LiveProbe(
            input_hash=cell.input_hash,
            condition=cell.condition,
            loss=losses[0],
            step_s=median(took[1:]),
            step_tokens=sum(len(r.input_ids) for r in drawn),
            validation_s=validation_s,
            validation_tokens=sum(len(r.input_ids) for r in rows),
            load_s=load_s,
            memory=memory,
            rows_compared_with_contract=None,
            moved_tensors=len(found["modules"]),
            trainable_tensors=len(trainable.modules),
            trainable=trainable,
            rows_sent=session.rows_sent,
        )

    def train(self, context: Context, cell: Cell) -> TrainingRecord:
        """Train the cell on the server, or confirm that it is trained; returns its training record.

        Raises DivergedError on a loss that is not finite, GateError where the server trained other modules than asked
        or a checkpoint expired, MachineError where the server fails.
        """
        from veritune.train.cells import MetricLog

        folder = context.store.run(cell.run_id)
        record = folder / "training.json"
        if record.exists():
            return TrainingRecord.load(record)
        trainable, groups = self.asked(context, cell.condition)
        log = MetricLog(folder / "metrics.jsonl", cell)
        log.rewind(0)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # of an adapter that a killed process trained
        session = self.session(context, cell, groups)
        kept = _Candidates(context, cell, session)
        final_loss = self._steps(context, cell, session, log, kept)
        candidates = kept.candidates()
        best = next(c for c in candidates if c.step == kept.best)
        result = TrainingRecord(
            input_hash=cell.input_hash,
            steps=steps_of(self.study, context.data, cell),
            processes=None,
            checkpoint=best.checkpoint,
            best_step=best.step,
            validation_nll=best.validation_nll,
            candidates=candidates,
            final_loss=final_loss,
            trainable=_measured(trainable, kept.best_export),
            rows_compared_with_contract=None,
            train_s=log.train_s,
            tokens=training_tokens(self.study, context.data, cell),
            peak_memory=self.memory().read(),
            backend=ServerTraining(**session.record(), rows_sent=session.rows_sent, not_had=NOT_HAD, **kept.exported()),
        )
        session.close()
        _refuse_differs(f"run {cell.run_id}", (kept.best_export or {}).get("differs", []))
        result.save(record)
        return result

    def _steps(self, context: Context, cell: Cell, session: Session, log: MetricLog, kept: _Candidates) -> float:
        """All optimizer steps, with validation and conversion at the declared ones; the last step's loss."""
        plan, rows = schedule(self.study, cell), seen_rows(self.study, context.data, cell)
        total, tokens = steps_of(self.study, context.data, cell), training_tokens(self.study, context.data, cell)
        batches, rates = batches_of(rows, plan, cell.seed), iter(learning_rates(plan, cell.lr, total))
        source_of = source_of_rows(self.study, context.data)
        done, loss = 0, math.nan
        for stop in validation_steps(plan, total, len(rows)):
            chunk = list(itertools.islice(batches, stop - done))
            for step in session.train(chunk, rates_of(rates, len(chunk))):
                done += 1
                loss = step.loss
                elapsed = log.add(done, {"loss": loss, "learning_rate": step.learning_rate})
                note = f"{cell.condition} seed {cell.seed}: step {done}/{total}, loss {loss:.3f}, on the server"
                context.progress.advance("train", tokens / total, elapsed, note)
                kept.watch()
            began = time.perf_counter()
            validation = context.data.zone("validation")
            parts = session.nll(validation)
            count = sum(n for _, n in parts)
            nll = sum(nats for nats, _ in parts) / count
            eval_s = time.perf_counter() - began
            sources = by_source(validation, parts, source_of)
            log.add(done, {"eval_loss": nll, "eval_tokens": count, "eval_s": eval_s, **sources})
            context.progress.advance("validate", 1, eval_s, f"{cell.condition} seed {cell.seed}: validation")
            kept.add(done, nll, sources_in(sources))
        return loss

    def trained(self, context: Context, cell: Cell) -> RunWeights:
        """The chosen candidate's converted weights on the server. Raises GateError if they have expired."""
        if cell.phase == BASELINE:
            return self.base(context)
        best = TrainingRecord.load(context.store.run(cell.run_id) / "training.json").chosen
        if not isinstance(best, ServerCandidate) or best.sampler is None:
            raise StaleError(
                f"run {cell.run_id} kept no weights to sample from.", fix="Delete the run's folder to train it again."
            )
        require_server(self.base_url)
        weights = SamplerWeights(best.sampler, best.expires, best.external)
        sampler = Sampler(self.base_url, weights=weights)
        return RemoteWeights(sampler, generation_config(context.model), best.validation_nll)

    def base(self, context: Context) -> RunWeights:
        """The untouched base on the server."""
        require_server(self.base_url)
        return RemoteWeights(Sampler(self.base_url, base_model=self.base_model), generation_config(context.model))


@dataclass
class RemoteWeights:
    """Converted weights, or the base, on the server. `chosen_nll` is the validation NLL by which they were chosen."""

    sampler: Sampler
    generation_config: Any
    chosen_nll: float | None = None
    model: Any = None

    def decoding(self, max_new_tokens: int, batch_size: int) -> DecodingNotes:
        """Greedy decoding is requested by temperature 0; the server decides how it batches."""
        return DecodingNotes(True, max_new_tokens, None, "tinker", AskedOfServer(0.0, 0))

    def nll(self, rows: Sequence[Rendered]) -> list[tuple[float, int]]:
        """See `tinker.Sampler.nll`."""
        return self.sampler.nll(rows)

    def confirm(self, zones: Mapping[str, ZoneLoss]) -> Conversion | None:
        """Compare converted weights with the training weights by their validation NLL, and return the result for the
        record.

        Raises GateError where they are further apart than rounding takes them.
        """
        if self.chosen_nll is None or "validation" not in zones:
            return None
        found = zones["validation"].nll
        apart = abs(found - self.chosen_nll)
        if not apart <= CONVERTED_WITHIN:
            raise GateError(
                f"converted weights have a validation NLL of {found:.4f}, but the training weights had "
                f"{self.chosen_nll:.4f}: the server did not convert what it trained.",
                fix="Report it to the server's operator. Nothing was scored.",
            )
        return Conversion(self.chosen_nll, found, apart)

    def sample(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, stop: Sequence[int]
    ) -> list[tuple[tuple[int, ...], str]]:
        """See `tinker.Sampler.sample`."""
        return self.sampler.sample(prompts, max_tokens, stop)

    def close(self) -> None:
        """End the connection."""
        self.sampler.close()


class _Candidates:
    """The checkpoints of one run on the server: converted when they are made, exported in time."""

    def __init__(self, context: Context, cell: Cell, session: Session) -> None:
        from veritune.train.cells import keeps

        self.context, self.cell, self.session = context, cell, session
        self.all = keeps(context.study, cell) == "all"
        self.losses: dict[int, float] = {}  # validation NLL by step
        self.sources: dict[int, dict[str, float] | None] = {}  # the same by source
        self.weights: dict[int, SamplerWeights] = {}
        self.exports: dict[int, dict[str, Any]] = {}

    @property
    def best(self) -> int:
        """The step with the lowest validation NLL; the earliest of equal ones."""
        return min(self.losses, key=lambda step: (self.losses[step], step))

    @property
    def best_export(self) -> dict[str, Any] | None:
        return self.exports.get(self.best)

    def add(self, step: int, nll: float, sources: dict[str, float] | None = None) -> None:
        """Save the present training weights as a candidate. Runs that only choose a rate save none."""
        self.losses[step], self.sources[step] = nll, sources
        if self.cell.phase == MAIN:
            self.weights[step] = self.session.save(f"step-{step}")
            if self.all:
                self._export(step)
            self.watch()

    def watch(self) -> None:
        """Export the best candidate before it expires on the server. Raises GateError if it has expired."""
        if not self.weights or self.best in self.exports:
            return
        if export_due(self.weights[self.best].expires, datetime.now(UTC)):
            self._export(self.best)

    def _export(self, step: int) -> None:
        if step not in self.exports:
            self.exports[step] = self.session.export(self.weights[step], self._folder(step))

    def _folder(self, step: int) -> Path:
        return self.context.store.run(self.cell.run_id) / "checkpoints" / f"step-{step}"

    def candidates(self) -> tuple[ServerCandidate, ...]:
        """All candidates; the best one is exported by now, and exports of the others are deleted."""
        if self.weights:
            self._export(self.best)
        for step in [s for s in self.exports if not self.all and s != self.best]:
            shutil.rmtree(self._folder(step), ignore_errors=True)
            del self.exports[step]
        return tuple(self._candidate(step, nll) for step, nll in self.losses.items())

    def _candidate(self, step: int, nll: float) -> ServerCandidate:
        held, own = self.weights.get(step), self.sources[step]
        checkpoint = self.context.store.relative(self._folder(step)) if step in self.exports else None
        if held is None:
            return ServerCandidate(step, nll, checkpoint, None, None, None, by_source=own)
        return ServerCandidate(step, nll, checkpoint, held.path, held.external, held.expires, by_source=own)

    def exported(self) -> dict[str, Any]:
        """The content of the chosen candidate's export, and where it differs from the request."""
        found = self.best_export
        if found is None:
            return {"exported": None, "differs": None}
        return {
            "exported": ServerExport(
                found["files"], tuple(found["modules"]), found["parameters"], tuple(found["completed"])
            ),
            "differs": tuple(found["differs"]),
        }


def _refused(study: Study) -> Iterator[str]:
    """Every setting that the API has no way to follow, each with its path in the file."""
    for name, condition in study.conditions.items():
        where = f"conditions.{name}"
        if condition.method != "lora":
            yield f"{where}.method: {condition.method} (the API trains LoRA alone)"
        named = [k for k in ("lora_alpha", "lora_dropout") if getattr(condition, k) is not None]
        for key in [*named, *(condition.model_extra or {})]:
            yield f"{where}.{key}: the server decides it"
        for key in condition.regularised:
            yield f"{where}.{key}: the server's loss and steps are its own"
    train = study.train
    if train.devices > 1 or train.strategy != "ddp":
        yield "train.devices, train.strategy: the server divides a model among its devices itself"
    for key in ("padding_free", "gradient_checkpointing"):
        if getattr(train, key):
            yield f"train.{key}: the server decides it"
    if "dtype" in study.model.model_fields_set:
        yield "model.dtype: the server decides the precision"
    if study.report_to:
        yield "report_to: only the local Trainer reports"
    if study.selection is not None and study.selection.batch_shapes:
        yield "selection.batch_shapes: the server decides its micro-batches"


def _whole_groups(condition: str, modules: Sequence[str], linear: Sequence[str]) -> tuple[str, ...]:
    """The module groups that `modules` are. Raises StudyError where they are parts of groups, or of others."""
    groups = tuple(g for g in SWITCHES if any(module_group(m) == g for m in modules))
    every = {m for m in linear if module_group(m) in groups}
    odd = sorted(set(modules) ^ every)
    if odd:
        raise StudyError(
            f"conditions.{condition}.target_modules: the Tinker API switches whole groups ({', '.join(SWITCHES)}), and "
            f"{odd[0]} would be {'left out' if odd[0] in every else 'in none'}.",
            fix="Use attention, mlp or all-linear.",
        )
    return groups


def _live_batches(context: Context, cell: Cell) -> tuple[list[Rendered], list[Rendered]]:
    """The longest rows, and a fair draw of as many others."""
    plan = schedule(context.study, cell)
    need = effective_batch(plan)
    rows = sorted(seen_rows(context.study, context.data, cell), key=lambda r: -len(r.input_ids))
    rest = rows[need:] or rows
    return rows[:need], random.Random(cell.seed).sample(rest, min(len(rest), need))


def _judge(condition: str, losses: Sequence[float], differs: Sequence[str]) -> None:
    """`losses` are of one batch, step after step: an update that took effect changes them."""
    where = f"live probe of {condition}:"
    if any(a == b for a, b in itertools.pairwise(losses)):
        raise GateError(
            f"{where} a step did not change the loss of the same rows ({losses[0]:.4f}): the server did not apply "
            "gradient and update in the order in which they were sent, or the learning rate is too small.",
            fix="Leave backend.ahead at 0; if it is 0 already, raise the learning rate.",
        )
    _refuse_differs(where.rstrip(":"), differs)


def _refuse_differs(where: str, differs: Sequence[str]) -> None:
    if differs:
        raise GateError(
            f"{where}: the server did not train what the condition declares ({'; '.join(differs)}).",
            fix="Declare what the server trains, or use another server.",
        )


def _measured(trainable: Trainable, export: Mapping[str, Any] | None) -> Trainable:
    """What was trained: counted in the exported adapter where there is one, else as asked."""
    if export is None:
        return trainable
    n, base = export["parameters"], trainable.n_total - trainable.n_trainable
    return Trainable.of(trainable.method, trainable.options, tuple(export["modules"]), n, base + n)


def generation_config(model: ModelRef) -> GenerationConfig:
    """The generation config beside the tokenizer, else from config.json. Raises ModelError."""
    from transformers import AutoConfig, GenerationConfig

    try:
        if (model.path / "generation_config.json").exists():
            return GenerationConfig.from_pretrained(model.path)
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model.path))
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"{model.path}: expected a usable generation config ({exc}).",
            fix="Check generation_config.json and config.json.",
        ) from None


# ---------------------------------------------------------------- the schedule, as the local Trainer runs it


def batches_of(rows: Sequence[Rendered], plan: Train, seed: int) -> Iterator[list[Rendered]]:
    """The rows of one optimizer step after another, endlessly, in the order in which a local run sees them."""
    import torch

    size = effective_batch(plan)
    for epoch in itertools.count():
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for start in range(0, len(order), size):
            yield [rows[i] for i in order[start : start + size]]


def learning_rates(plan: Train, lr: float, steps: int) -> list[float]:
    """The learning rate of every optimizer step, from transformers' own schedules."""
    import torch
    from transformers import get_scheduler

    warmup = math.ceil(steps * plan.warmup_steps) if plan.warmup_steps < 1 else int(plan.warmup_steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler: Any = get_scheduler(plan.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


def rates_of(rates: Iterator[float], n: int) -> list[float]:
    """The next `n` learning rates."""
    return list(itertools.islice(rates, n))

"""`transformers.Trainer`, fed with the contract's own rows. Two things differ from a plain Trainer:

- the loss: logits are formed only at positions that predict a target token, through a hook on the output embedding.
  The value is the same mean NLL per target token; a vocabulary of 49k makes the head a large part of a small model's
  work, so this is also faster;
- the evaluation: validation NLL is the mean over target tokens, not a mean of batch means.

Each batch carries the indices of its rows, and what the trainer is about to learn from is compared with the contract's
ids and labels, row by row.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
import torch.nn.functional as F
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from veritune.errors import GateError
from veritune.records import Rendered
from veritune.train.regularise import Regulariser
from veritune.train.schedule import by_source

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, Dataset, Sampler
    from transformers import PreTrainedModel, TrainerControl

    from veritune.train.events import EventParts, TrainRow

    EvaluateOption = Dataset[TrainRow] | Sequence[TrainRow] | Sequence[str] | str | None

IGNORE = -100
COMPLETE = "complete"
NLL_BATCH = 16
"""Rows of one batch whose loss is measured. A probe of memory takes as many: it can be more than a training step's."""


def collate(rows: Sequence[TrainRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded batch: `input_ids`, `attention_mask`, `labels` and `row_index`, shapes (B, T) and (B,)."""
    width = max(len(row["input_ids"]) for row in rows)
    ids_B_T = torch.full((len(rows), width), pad_id, dtype=torch.long)
    labels_B_T = torch.full((len(rows), width), IGNORE, dtype=torch.long)
    mask_B_T = torch.zeros((len(rows), width), dtype=torch.long)
    for b, row in enumerate(rows):
        n = len(row["input_ids"])
        ids_B_T[b, :n] = torch.tensor(row["input_ids"])
        labels_B_T[b, :n] = torch.tensor(row["labels"])
        mask_B_T[b, :n] = 1
    index_B = torch.tensor([row["row_index"] for row in rows])
    return {"input_ids": ids_B_T, "attention_mask": mask_B_T, "labels": labels_B_T, "row_index": index_B}


def join(rows: Sequence[TrainRow]) -> dict[str, torch.Tensor]:
    """The rows of a batch concatenated into one sequence without padding: shapes (1, sum of T) and (B,).

    `position_ids` restart with every row. Models that build their attention mask from them, with no `attention_mask`
    given, let no row see another (`check_joined` looks). A row's first token is no target: nothing of it predicts that.
    """
    ids = [i for row in rows for i in row["input_ids"]]
    labels = [label for row in rows for label in (IGNORE, *row["labels"][1:])]
    positions = [t for row in rows for t in range(len(row["input_ids"]))]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor([labels]),
        "row_index": torch.tensor([row["row_index"] for row in rows]),
    }


@torch.no_grad()
def check_joined(model: PreTrainedModel, rows: Sequence[Rendered], pad_id: int) -> float:
    """Largest difference in NLL per target token (nats) between rows that are joined and the same rows alone.

    Raises GateError when it is no rounding: the model's attention would let one row see another.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    items = _dataset(rows)
    batch = {k: v.to(device) for k, v in join(items).items()}
    joined = target_nll(model, batch["input_ids"], None, batch["labels"], batch["position_ids"])[0]
    alone = []
    for item in items:
        one = {k: v.to(device) for k, v in collate([item], pad_id).items()}
        one["labels"][:, 0] = IGNORE
        alone.append(target_nll(model, one["input_ids"], one["attention_mask"], one["labels"])[0])
    model.train(was_training)
    apart = joined - torch.cat(alone)
    largest, typical = float(apart.abs().max()), float(apart.abs().mean())
    half = next(model.parameters()).dtype != torch.float32
    if not typical <= (0.1 if half else 1e-4):
        raise GateError(
            f"padding_free: {type(_plain(model)).__name__} gives joined rows another loss than rows alone "
            f"({typical:.3g} nats per token on average): rows attend to each other.",
            fix="Remove `padding_free`; this architecture or method does not mask by position_ids.",
        )
    return largest


def target_nll(
    model: PreTrainedModel,
    ids_B_T: torch.Tensor,
    mask_B_T: torch.Tensor | None,
    labels_B_T: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """NLL in nats of every target token, shape (N,), and the batch row each belongs to, shape (N,).

    With `position_ids` (rows joined in one sequence) there is no attention mask. The hidden states are cut to the
    predicting positions before the head runs. A model whose head is not called as a module gives full logits, which are
    cut afterwards; virtual tokens that a prompt method puts in front are skipped. Where the targets are is settled
    before the model runs: on an accelerator that waits for what is queued.
    """
    logits_N_V, target_N, row_N = target_logits(model, ids_B_T, mask_B_T, labels_B_T, position_ids)
    return F.cross_entropy(logits_N_V.float(), target_N, reduction="none"), row_N


def target_logits(
    model: PreTrainedModel,
    ids_B_T: torch.Tensor,
    mask_B_T: torch.Tensor | None,
    labels_B_T: torch.Tensor,
    position_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (N, V) that predict the target tokens, these tokens (N,), and the batch row of each (N,)."""
    captured: list[bool] = []
    row_N, before_N = (labels_B_T[:, 1:] != IGNORE).nonzero(as_tuple=True)

    def predicting(values_B_T_X: torch.Tensor) -> torch.Tensor:
        virtual = values_B_T_X.shape[1] - labels_B_T.shape[1]
        return values_B_T_X[row_N, before_N + virtual]

    def keep_targets(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_B_T_H = args[0]
        if hidden_B_T_H.dim() != 3:
            return args
        captured.append(True)
        return (predicting(hidden_B_T_H)[None], *args[1:])

    head = _plain(model).get_output_embeddings()
    handle = head.register_forward_pre_hook(keep_targets) if head is not None else None
    try:
        where = {"attention_mask": mask_B_T} if position_ids is None else {"position_ids": position_ids}
        logits = model(input_ids=ids_B_T, use_cache=False, **where).logits
    finally:
        if handle is not None:
            handle.remove()
    logits_N_V = logits[0] if captured else predicting(logits)
    return logits_N_V, labels_B_T[row_N, before_N + 1], row_N


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The model inside DDP's wrapper."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def share_of(batch: list[TrainRow], rank: int, world: int) -> list[TrainRow]:
    """The rows of a batch that one of `world` processes gets: every `world`-th.

    A rank for which no row is left takes the first row with nothing to learn, so that every row of the contract counts
    exactly once on any number of processes.
    """
    mine = batch[rank::world]
    return mine or [{**batch[0], "labels": (IGNORE,) * len(batch[0]["labels"]), "row_index": -1}]


@torch.no_grad()
def row_nll(
    model: PreTrainedModel, rows: Sequence[Rendered], pad_id: int, batch_size: int = NLL_BATCH
) -> list[tuple[float, int]]:
    """For each row, its summed NLL in nats and its number of target tokens, in the given order.

    Rows are batched by length; the sums do not depend on the batching beyond rounding.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    result: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        items: list[TrainRow] = [
            {"input_ids": rows[i].input_ids, "labels": rows[i].labels, "row_index": i} for i in chunk
        ]
        batch = {k: v.to(device) for k, v in collate(items, pad_id).items()}
        nll_N, row_N = target_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        sums = torch.zeros(len(chunk), dtype=torch.float64, device=device).index_add_(0, row_N, nll_N.double())
        for i, total in zip(chunk, sums.tolist()):
            result[i] = (total, rows[i].n_target)
    model.train(was_training)
    return result


def mean_nll(parts: Sequence[tuple[float, int]]) -> float:
    """Mean NLL per target token over rows given as (sum, count)."""
    return sum(total for total, _ in parts) / sum(count for _, count in parts)


def _rows_of(inputs: dict[str, torch.Tensor]) -> list[tuple[tuple[int, ...], tuple[int, ...], list[int]]]:
    """Ids, labels and the labels on padding of every row in a batch, padded or joined."""
    ids_B, labels_B = inputs["input_ids"].tolist(), inputs["labels"].tolist()
    if "position_ids" in inputs:
        starts = [t for t, position in enumerate(inputs["position_ids"][0].tolist()) if position == 0]
        spans = list(zip(starts, [*starts[1:], len(ids_B[0])]))
        return [(tuple(ids_B[0][a:b]), tuple(labels_B[0][a:b]), []) for a, b in spans]
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    return [(tuple(i[:n]), tuple(ls[:n]), ls[n:]) for i, ls, n in zip(ids_B, labels_B, lengths)]


def _dataset(rows: Sequence[Rendered]) -> list[TrainRow]:
    return [{"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(rows)]


class _Compared:
    """The very tensors of a batch that was compared with the contract, as they were then."""

    def __init__(self, inputs: dict[str, torch.Tensor], counts: tuple[int, int]) -> None:
        self.counts = counts
        self._tensors = {name: (tensor, _version(tensor)) for name, tensor in inputs.items()}

    def still(self, inputs: dict[str, torch.Tensor]) -> bool:
        """Whether these are the same tensors and were not written to since, found without reading values."""
        same = (tensor is inputs.get(name) and _version(tensor) == v for name, (tensor, v) in self._tensors.items())
        return inputs.keys() == self._tensors.keys() and all(same)


def _version(tensor: torch.Tensor) -> int | None:
    """How often a tensor was written into; None for what is none."""
    return getattr(tensor, "_version", None)


@contextmanager
def _left_on_the_host(accelerator: Accelerator) -> Iterator[None]:
    """Data loaders made in the block leave their batches where the collator put them."""
    before, accelerator.device_placement = accelerator.device_placement, False
    try:
        yield
    finally:
        accelerator.device_placement = before


class ContractTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that trains on the contract's rows and counts the rows compared with the contract (`rows_checked`)."""

    control: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        rows: Sequence[Rendered],
        validation: Sequence[Rendered],
        pad_id: int,
        padding_free: bool = False,
    ) -> None:
        self.source_of: Mapping[str, str] = {}
        self.regulariser: Regulariser | None = None
        self._targets = 0
        self.contract_rows = rows
        self.validation_rows = validation
        self.pad_id = pad_id
        self.rows_checked = 0
        self.tokens_seen = 0
        self.in_order = False
        self._compared: _Compared | None = None
        self.batched: Callable[..., dict[str, torch.Tensor]] = join if padding_free else partial(collate, pad_id=pad_id)
        super().__init__(model=model, args=args, train_dataset=_dataset(rows), data_collator=self.batched)
        self.model_accepts_loss_kwargs = True

    def use_rows(self, rows: Sequence[Rendered]) -> None:
        """Train on these rows instead, in this order."""
        self.contract_rows, self.train_dataset, self.in_order = rows, _dataset(rows), True

    def _get_train_sampler(self, *args: Sequence[TrainRow], **kwargs: Sequence[TrainRow]) -> Sampler[int] | None:
        if self.in_order:
            return torch.utils.data.SequentialSampler(self.train_dataset)
        usual: Sampler[int] | None = super()._get_train_sampler(*args, **kwargs)
        return usual

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch on the model's device, compared with the contract before it goes there: no wait for the device."""
        counts = self._check_parity(inputs) if "row_index" in inputs else None
        moved: dict[str, Any] = super()._prepare_inputs(inputs)
        self._compared = None if counts is None else _Compared(moved, counts)
        return moved

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Summed NLL over the optimizer step's number of target tokens, so that accumulation changes nothing.

        What was compared and has not been touched since is not compared again.
        """
        compared, self._compared = self._compared, None
        known = compared is not None and compared.still(inputs)
        rows, tokens = compared.counts if compared is not None and known else self._check_parity(inputs)
        self.rows_checked += rows
        self.tokens_seen += tokens
        ids_B_T, mask_B_T = inputs["input_ids"], inputs.get("attention_mask")

        def logits_of(one: PreTrainedModel) -> torch.Tensor:
            return target_logits(one, ids_B_T, mask_B_T, inputs["labels"], inputs.get("position_ids"))[0]

        if self.regulariser is None:
            nll_N, _ = target_nll(model, ids_B_T, mask_B_T, inputs["labels"], inputs.get("position_ids"))
            total, n_targets = nll_N.sum(), nll_N.numel()
        else:
            places = (ids_B_T, mask_B_T, inputs["labels"], inputs.get("position_ids"))
            logits_N_V, target_N, _ = target_logits(model, *places)
            nll = F.cross_entropy(logits_N_V.float(), target_N, reduction="sum")
            total, n_targets = self.regulariser.add(model, logits_N_V, logits_of, nll), target_N.numel()
            self._targets += n_targets
        count = num_items_in_batch if num_items_in_batch is not None else n_targets
        loss = total / count * self.args.world_size  # DDP averages gradients over processes; the loss is a sum
        return (loss, {}) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: float | None, **kwargs: float | None) -> None:
        """Log a step. With penalties `loss` stays the NLL per target token; `objective` is the minimised value."""
        if self.regulariser is not None and "loss" in logs and self._targets:
            parts = self.regulariser.means(self._targets)
            logs = {**logs, "objective": logs["loss"], **parts, "loss": parts["nll"]}
            del logs["nll"]
            self._targets = 0
        super().log(logs, *args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[TrainRow]:
        """The training batches; with several processes each gets its share of the same batches."""
        world, rank = self.args.world_size, self.args.process_index
        if world == 1:
            with _left_on_the_host(self.accelerator):
                alone: DataLoader[TrainRow] = super().get_train_dataloader()
                return alone
        from accelerate.data_loader import prepare_data_loader

        settings = self.accelerator.dataloader_config
        whole: Any = torch.utils.data.DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=self._train_batch_size * world,
            sampler=self._get_train_sampler(self.train_dataset),
            collate_fn=lambda batch: self.batched(share_of(batch, rank, world)),
            drop_last=self.args.dataloader_drop_last,
        )
        loader: DataLoader[TrainRow] = prepare_data_loader(
            whole,
            device=self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=False,
            rng_types=list(self.accelerator.rng_types),
            use_seedable_sampler=settings.use_seedable_sampler,
            data_seed=settings.data_seed,
        )
        return loader

    def _check_parity(self, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
        """How many rows and tokens a batch holds, all as in the contract. Raises GateError."""
        given = _rows_of(inputs)
        indices = inputs["row_index"].tolist()
        for index, (ids, labels, padding) in zip(indices, given, strict=True):
            row = self.contract_rows[index]
            if index < 0:  # a process without a row of its own: nothing to learn
                row = replace(row, input_ids=ids, labels=(IGNORE,) * len(ids))
            if "position_ids" in inputs:
                row = replace(row, labels=(IGNORE, *row.labels[1:]))
            if ids != row.input_ids or labels != row.labels:
                raise GateError(
                    f"row {row.row_id}: the ids or labels that the trainer was about to use differ from the "
                    "contract's.",
                    fix="Remove callbacks and patched collators that change batches.",
                )
            if any(label != IGNORE for label in padding):
                raise GateError(f"row {row.row_id}: the loss would fall on padding.", fix="Check the data collator.")
        return sum(index >= 0 for index in indices), sum(len(ids) for ids, _, _ in given)

    def evaluate(self, *_args: EvaluateOption, **_kwargs: EvaluateOption) -> dict[str, float]:
        """Validation NLL per target token, logged as `eval_loss`; that of each source as `eval_loss:SOURCE`."""
        started = time.perf_counter()
        parts = row_nll(self.model, self.validation_rows, self.pad_id)
        metrics = {"eval_loss": mean_nll(parts), "eval_tokens": float(sum(n for _, n in parts))}
        metrics |= by_source(self.validation_rows, parts, self.source_of)
        metrics["eval_s"] = time.perf_counter() - started
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def take_up_finished(self, checkpoint: Path) -> None:
        """Load the state of a checkpoint after which no step is left, because `train` would continue into the rest of
        the epoch.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


class Cadence(TrainerCallback):  # type: ignore[misc]
    """Measures validation NLL and writes a checkpoint every `every` optimizer steps, or after the listed steps (None:
    once per epoch), and at the last step.
    """

    def __init__(self, every: int | tuple[int, ...] | None) -> None:
        self.every = every

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        step, every = state.global_step, self.every
        due = step in every if isinstance(every, tuple) else every is not None and step % every == 0
        if due or step >= state.max_steps:
            control.should_evaluate = control.should_save = True

    def on_epoch_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        if self.every is None and state.global_step < state.max_steps:
            control.should_evaluate = control.should_save = True


class OnLog(TrainerCallback):  # type: ignore[misc]
    """Passes every logged row to `sink(step, logs)`."""

    def __init__(self, sink: Callable[[int, dict[str, float]], None]) -> None:
        self.sink = sink

    def on_log(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_kwargs: Unpack[EventParts],
    ) -> None:
        self.sink(state.global_step, logs or {})


class StepTimer(TrainerCallback):  # type: ignore[misc]
    """Seconds and tokens of every optimizer step, as (seconds, tokens) in `steps`."""

    def __init__(self, trainer: ContractTrainer) -> None:
        self.trainer = trainer
        self.steps: list[tuple[float, int]] = []
        self._began, self._tokens = 0.0, 0

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        _wait()
        self._began, self._tokens = time.perf_counter(), self.trainer.tokens_seen

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        _wait()
        self.steps.append((time.perf_counter() - self._began, self.trainer.tokens_seen - self._tokens))


def _wait() -> None:
    """An accelerator works behind the clock's back."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint as complete once all its files are on disk, so add this callback last. The mark holds
    `rows_checked`, for which every process must call it.
    """

    def __init__(self, rows_checked: Callable[[], int]) -> None:
        self.rows_checked = rows_checked

    def on_save(
        self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        if args.world_size > 1:
            torch.distributed.barrier()  # every rank's random state belongs to the checkpoint
        checked = self.rows_checked()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        (folder / COMPLETE).write_text(str(checked), encoding="utf-8")


class Retention(TrainerCallback):  # type: ignore[misc]
    """Deletes checkpoints that are no longer needed while a run trains; add it after `MarkComplete`.

    The newest checkpoint stays whole for taking the run up. Of the others the best so far keeps its weights (with
    `keep_all` every one does); what only training needs (`not_kept`, name patterns) and the rest are removed.
    """

    def __init__(self, not_kept: Sequence[str], *, keep_all: bool) -> None:
        self.not_kept = not_kept
        self.keep_all = keep_all

    def on_save(
        self, args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Unpack[EventParts]
    ) -> None:
        if not state.is_world_process_zero:
            return
        candidates = [(row["eval_loss"], row["step"]) for row in state.log_history if "eval_loss" in row]
        best = min(candidates)[1] if candidates else None
        for folder in Path(args.output_dir).glob("checkpoint-*"):
            step = int(folder.name.rsplit("-", 1)[-1])
            if step >= state.global_step:
                continue
            (folder / COMPLETE).unlink(missing_ok=True)  # first: half a checkpoint must not be resumed
            if not self.keep_all and step != best:
                shutil.rmtree(folder, ignore_errors=True)
                continue
            for path in [p for pattern in self.not_kept for p in folder.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint, None if there is none."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{COMPLETE}") if p.read_text(encoding="utf-8")]
    return max(found, key=lambda p: int(p.name.rsplit("-", 1)[-1]), default=None)

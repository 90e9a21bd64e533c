"""Gradient norms by part of the model at every optimizer step, in anybody's Hugging Face Trainer, with one line:

    trainer.add_callback(GradientTelemetry("telemetry.jsonl"))

One JSON line per optimizer step: norms *before clipping* by module type, group, layer and adapter factor, each part's
share of the squared norm, and the update-to-weight ratio. The Trainer clips before `on_pre_optimizer_step`, so the
gradients seen there are already scaled by one common factor; shares do not change under it, and `clip` says how the
factor was found. A step whose gradients cannot be seen (DeepSpeed, FSDP1) says `unavailable` and why, never 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, Unpack

import numpy as np
import torch
from transformers import TrainerCallback

from veritune.errors import FormatError, ModelError
from veritune.files import make_folder, refuse_lost, whole_lines
from veritune.records import dumps
from veritune.train.modules import FACTORS, GROUPS, TYPES, factor, layer_index, module_group, module_type
from veritune.train.reporting import StepReporter
from veritune.untrusted import parse_json, read_text

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.optim import Optimizer
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from veritune.train.events import EventParts

EXACT_UPDATE_BYTES = 256 * 2**20
"""Trainable parameters up to this size are copied for an exact update norm; above it the norm is sampled."""

SAMPLES_PER_TENSOR = 4096
CLIP_SLACK = 1e-3
WATCHED = 4


@dataclass(frozen=True)
class _Layout:
    """The trainable tensors in a fixed order, and the label of each one along every axis of the record."""

    names: tuple[str, ...]
    params: tuple[torch.nn.Parameter, ...]
    axes: Mapping[str, tuple[tuple[str, ...], np.ndarray]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> _Layout:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ModelError(
                "gradient telemetry: expected trainable parameters, found none: every parameter is frozen.",
                fix="Add an adapter, or set requires_grad on what should train, before the Trainer is built.",
            )
        names = tuple(n for n, _ in named)
        layers = [layer_index(n) for n in names]
        order = [str(i) for i in sorted({i for i in layers if i is not None})] + ["outside"]
        labels = {
            "type": ([module_type(n) for n in names], TYPES),
            "group": ([module_group(n) for n in names], GROUPS),
            "layer": (["outside" if i is None else str(i) for i in layers], order),
            "factor": ([factor(n) for n in names], FACTORS),
        }
        return cls(names, tuple(p for _, p in named), {k: _axis(*v) for k, v in labels.items()})

    @property
    def counts(self) -> dict[str, dict[str, float]]:
        """Number of trained parameters of each type and group."""
        by_axis = self.by_axis(np.array([p.numel() for p in self.params], dtype=np.float64))
        return {axis: {k: int(n) for k, n in by_axis[axis].items()} for axis in ("type", "group")}

    def by_axis(self, square_P: np.ndarray) -> dict[str, dict[str, float]]:
        """Squared norms per tensor [P] summed to squared norms per label, for every axis."""
        return {
            axis: dict(zip(keys, np.bincount(index_P, square_P, len(keys)).tolist()))
            for axis, (keys, index_P) in self.axes.items()
        }


def _axis(labels: Sequence[str], order: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    keys = tuple(k for k in order if k in set(labels))
    return keys, np.array([keys.index(label) for label in labels])


class _ClipWatch:
    """The norm of a few small gradients as the last backward left them, so that their norm at the step gives the
    clipping factor. Works in one process only: under DDP the hook sees gradients before they are averaged."""

    def __init__(self, layout: _Layout) -> None:
        # A LoRA A has no gradient while B is 0, so it is watched only where there is nothing else.
        known = [(factor(n) == "A", p.numel(), i) for i, (n, p) in enumerate(zip(layout.names, layout.params))]
        self.index = [i for _, _, i in sorted(known)[:WATCHED]]
        self._norm: dict[int, torch.Tensor] = {}
        params: list[Any] = [layout.params[i] for i in self.index]
        self._handles = [p.register_post_accumulate_grad_hook(self._keep(i)) for i, p in zip(self.index, params)]

    def _keep(self, i: int) -> Callable[[torch.Tensor], None]:
        def keep(param: torch.Tensor) -> None:
            if param.grad is not None:
                self._norm[i] = torch.linalg.vector_norm(param.grad, dtype=torch.float32)

        return keep

    def take(self) -> dict[int, torch.Tensor]:
        norms, self._norm = self._norm, {}
        return norms

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _Updates:
    """What one optimizer step moves each tensor by: exact from copies, or from a seeded sample of its elements."""

    def __init__(self, locals_: Sequence[torch.Tensor], limit: int) -> None:
        self.exact = sum(t.numel() * t.element_size() for t in locals_) <= limit
        self._index: list[torch.Tensor] = []
        if not self.exact:
            draw = torch.Generator().manual_seed(0)
            for t in locals_:
                k = min(SAMPLES_PER_TENSOR, t.numel())
                self._index.append(torch.randint(max(t.numel(), 1), (k,), generator=draw).to(t.device))
        self._scale = [1.0 if self.exact else t.numel() / max(min(SAMPLES_PER_TENSOR, t.numel()), 1) for t in locals_]
        self._kept = [torch.empty_like(t) for t in self._view(locals_)]

    def _view(self, locals_: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if self.exact:
            return list(locals_)
        return [t.reshape(-1)[i] for t, i in zip(locals_, self._index)]

    def keep(self, locals_: Sequence[torch.Tensor]) -> None:
        torch._foreach_copy_(self._kept, self._view(locals_))

    def square(self, locals_: Sequence[torch.Tensor]) -> torch.Tensor:
        """Squared norm of each tensor's change since `keep` [P]."""
        torch._foreach_sub_(self._kept, self._view(locals_))
        square_P = _squares(self._kept)
        if self.exact:
            return square_P
        return square_P * torch.tensor(self._scale, dtype=square_P.dtype, device=square_P.device)


class GradientTelemetry(TrainerCallback):  # type: ignore[misc]
    """Writes one line per optimizer step to `path`, or collects the lines in `records` when no path is given.

    every: measure each `every`-th optimizer step. update_bytes: above this many bytes of trainable parameters the
    update-to-weight ratio is estimated from 4,096 random elements per tensor instead of copies (`update.method`).

    A resumed run first drops the lines after the step it resumes from, so no step appears twice; a run that starts at
    step 0 starts the file again. On several processes only the main one writes. `overhead_s` is the time spent here.
    The shares go to the Trainer's reporters too (`report_to`), as `gradient_share/<axis>/<label>`.

    Raises ModelError at the start of training when nothing trains.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, every: int = 1, update_bytes: int = EXACT_UPDATE_BYTES
    ) -> None:
        self.path = None if path is None else Path(path)
        self.every = max(1, int(every))
        self.records: list[dict[str, Any]] = []
        self.overhead_s = 0.0
        self._update_bytes = update_bytes
        self._forget()

    def _forget(self) -> None:
        self._layout: _Layout | None = None
        self._watch: _ClipWatch | None = None
        self._updates: _Updates | None = None
        self._seen: dict[str, Any] | None = None
        self._pending: dict[str, Any] | None = None
        self._reporter: StepReporter | None = None
        self._main = True

    # ------------------------------------------------------------ the Trainer's events

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        self._forget()
        self._layout = _Layout.of(kwargs["model"])
        self._main = bool(state.is_world_process_zero)
        if self._main:
            self._drop_lines_after(state.global_step)
            self._reporter = StepReporter(getattr(args, "report_to", ()), str(getattr(args, "output_dir", "")))
        if args.world_size == 1 and args.max_grad_norm > 0 and not any(map(_is_dtensor, self._layout.params)):
            self._watch = _ClipWatch(self._layout)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        start = time.perf_counter()
        self._write_pending()
        if (state.global_step + 1) % self.every == 0:
            self._seen = self._look(args, kwargs["model"], kwargs.get("optimizer"))
        self.overhead_s += time.perf_counter() - start

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        start = time.perf_counter()
        if self._seen is not None and self._updates is not None and "grad_P" in self._seen:
            self._seen["update_P"] = self._updates.square(_locals(self._trainable()))
        self.overhead_s += time.perf_counter() - start

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        start = time.perf_counter()
        if self._seen is not None:
            self._pending = self._record(args, state.global_step)
            self._seen = None
        self.overhead_s += time.perf_counter() - start

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **kwargs: Unpack[EventParts],
    ) -> None:
        norm = (logs or {}).get("grad_norm")
        if self._pending is not None and self._pending["step"] == state.global_step and norm is not None:
            _scale_record(self._pending, float(norm), "the trainer's grad_norm")
        if "train_runtime" in (logs or {}):  # the last call before the reporters close their runs
            self._write_pending()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        self._write_pending()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Unpack[EventParts]
    ) -> None:
        self._write_pending()
        if self._reporter is not None:
            self._reporter.close()
        if self._watch is not None:
            self._watch.remove()
        self._forget()

    # ------------------------------------------------------------ measuring

    def _trainable(self) -> tuple[torch.nn.Parameter, ...]:
        assert self._layout is not None
        return self._layout.params

    def _look(
        self, args: TrainingArguments, model: torch.nn.Module, optimizer: Optimizer | None
    ) -> dict[str, Any] | None:
        """What is seen before the step: squared norms of gradients and weights [P], still on the device."""
        if self._updates is None:  # FSDP2 replaces parameters between on_train_begin and the first step
            self._layout = _Layout.of(model)
        params = self._trainable()
        sharded = any(map(_is_dtensor, params))
        if not sharded and not self._main:
            return None
        reason = unavailable_because(args, optimizer, sharded)
        missing = sum(p.grad is None for p in params)
        if reason is None and missing == len(params):
            reason = "no parameter held a gradient when the optimizer step began"
        if reason is not None:
            return {"reason": reason}
        local = _locals(params)
        if self._updates is None:
            self._updates = _Updates(local, self._update_bytes)
        grads = [_local(p.grad) if p.grad is not None else t.new_zeros(1) for p, t in zip(params, local)]
        seen = {"grad_P": _squares(grads), "weight_P": _squares(local), "missing": missing}
        seen["unscale"], seen["unscale_watched"] = _unscaling(optimizer)
        self._updates.keep(local)
        return seen

    def _record(self, args: TrainingArguments, step: int) -> dict[str, Any]:
        assert self._seen is not None and self._layout is not None
        seen, layout = self._seen, self._layout
        if "reason" in seen:
            return {"step": step, "status": "unavailable", "reason": seen["reason"]}
        stack = torch.stack([seen["grad_P"], seen["weight_P"], seen["update_P"]])
        grad_P, weight_P, update_P = _sum_shards(stack, layout.params).cpu().double().numpy()
        bad = np.flatnonzero(~np.isfinite(grad_P))
        if bad.size:
            names = ", ".join(layout.names[i] for i in bad[:3])
            reason = f"{bad.size} of {len(grad_P)} gradients are not finite ({names} ...)"
            return {"step": step, "status": "non_finite", "reason": reason}
        grad_P = grad_P * seen["unscale"] ** 2
        record: dict[str, Any] = {
            "step": step,
            "status": "ok",
            "reason": None,
            "grad_norm_at_step": float(np.sqrt(grad_P.sum())),
            "share": _shares(layout.by_axis(grad_P)),
            "weight_norm": _norms(layout, weight_P),
            "update": self._update_record(layout, update_P, weight_P),
            "parameters": layout.counts,
            "n_tensors": len(grad_P),
            "n_without_gradient": int(seen["missing"]),
        }
        _scale_record(record, *self._before_clipping(args, record["grad_norm_at_step"], grad_P))
        return record

    def _update_record(self, layout: _Layout, update_P: np.ndarray, weight_P: np.ndarray) -> dict[str, Any]:
        assert self._updates is not None
        if not np.isfinite(update_P).all():
            return {"method": None, "reason": "the step left parameters that are not finite"}
        norm, weight = _norms(layout, update_P), _norms(layout, weight_P)
        ratio = {
            axis: {k: (v / weight[axis][k] if weight[axis][k] else None) for k, v in values.items()}
            for axis, values in norm.items()
            if axis != "total"
        }
        total = norm["total"] / weight["total"] if weight["total"] else None
        return {
            "method": "exact" if self._updates.exact else "sampled",
            "norm": norm,
            "ratio": {"total": total, **ratio},
        }

    def _before_clipping(self, args: TrainingArguments, at_step: float, grad_P: np.ndarray) -> tuple[float | None, str]:
        """The total norm before clipping and how it is known; None with the reason when it is not."""
        limit = float(args.max_grad_norm or 0)
        watched = self._watch.take() if self._watch is not None else {}
        if limit <= 0:
            return at_step, "max_grad_norm is 0: nothing was clipped"
        if at_step < limit * (1 - CLIP_SLACK):
            return at_step, "below max_grad_norm: nothing was clipped"
        before = float(np.sqrt(sum(norm**2 for norm in _together(watched.values()))))
        after = float(np.sqrt(sum(grad_P[i] for i in watched)))
        if after > 0 and np.isfinite(before):
            assert self._seen is not None
            return at_step * before * self._seen["unscale_watched"] / after, "ratio of watched gradients"
        return None, "clipped, but this step's grad_norm was not logged: set logging_steps=1"

    # ------------------------------------------------------------ the file

    def _drop_lines_after(self, step: int) -> None:
        self.records = [r for r in self.records if r["step"] <= step]
        if self.path is None:
            return
        make_folder(self.path.parent)
        kept = [dumps(r) for r in read_telemetry(self.path) if r["step"] <= step] if self.path.exists() else []
        fresh = self.path.with_name(self.path.name + ".part")
        fresh.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(fresh, self.path)

    def _write_pending(self) -> None:
        record, self._pending = self._pending, None
        if record is None or not self._main:
            return
        if self._reporter is not None and record.get("share"):
            share = record["share"]
            numbers = {f"gradient_share/{axis}/{label}": v for axis in share for label, v in share[axis].items()}
            self._reporter.send(numbers, record["step"])
        if self.path is None:
            self.records.append(record)
            return
        refuse_lost(self.path)
        with self.path.open("a", encoding="utf-8") as f:
            f.write(dumps(record) + "\n")


def read_telemetry(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The complete lines of a telemetry file, in step order; an incomplete last line of a killed run is dropped.

    Raises FormatError for a file that is no text, and for a line before the last that is damaged, by its number.
    """
    records = []
    try:
        text = read_text(Path(path))
    except ValueError as exc:
        raise FormatError(f"{path}: expected text in UTF-8, found {exc}.") from exc
    lines = whole_lines(text, torn=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
        except ValueError as exc:
            if number == len(lines) and not text.endswith("\n"):
                break  # torn by a kill
            raise _damaged(path, number, str(exc)) from exc
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise _damaged(path, number, "expected an object with its `step`")
        records.append(record)
    return records


def _damaged(path: str | os.PathLike[str], number: int, why: str) -> FormatError:
    return FormatError(
        f"{os.fspath(path)} line {number} is damaged: {why}.",
        fix="Restore the file from a copy, or delete the run's folder to train the run again.",
    )


def unavailable_because(args: TrainingArguments, optimizer: Optimizer | None, sharded: bool) -> str | None:
    """Why gradients cannot be read at the optimizer step, None if they can."""
    kind = str(getattr(getattr(optimizer, "accelerator_state", None), "distributed_type", ""))
    if getattr(args, "deepspeed", None) or kind.endswith("DEEPSPEED"):
        return "DeepSpeed steps inside its own backward and frees the gradients before any callback sees them"
    if kind.endswith("FSDP") and not sharded:
        return "FSDP1 flattens parameters, so norms per module cannot be computed; use FSDP2 (fsdp_version: 2)"
    return None


# ---------------------------------------------------------------- tensors


def _is_dtensor(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def _local(tensor: torch.Tensor) -> torch.Tensor:
    local: torch.Tensor = tensor.to_local() if _is_dtensor(tensor) else tensor
    return local.detach()


def _locals(params: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [_local(p) for p in params]


def _squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared Frobenius norms [P] of tensors on any devices, on the first one's device, without waiting for it."""
    home = tensors[0].device
    norms = torch._foreach_norm(list(tensors), 2, torch.float32)
    norm_P = torch.stack([n if n.device == home else n.to(home, non_blocking=True) for n in norms])
    return norm_P.square() if home.type == "mps" else norm_P.double().square()


def _together(scalars: Iterable[torch.Tensor]) -> list[float]:
    """Values of scalars on any devices, fetched from the first one's at once."""
    found = list(scalars)
    return torch.stack([s.to(found[0].device) for s in found]).tolist() if found else []


def _sum_shards(square_K_P: torch.Tensor, params: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Squared norms of whole tensors from those of this process's shards, one all-reduce per mesh dimension."""
    groups: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        if _is_dtensor(p):
            sharded: Any = p
            for dim, placement in enumerate(sharded.placements):
                if placement.is_shard():
                    groups.setdefault(sharded.device_mesh.get_group(dim), []).append(i)
    for group, index in groups.items():
        part = square_K_P[:, index].contiguous()
        torch.distributed.all_reduce(part, group=group)
        square_K_P[:, index] = part
    return square_K_P


def _unscaling(optimizer: Optimizer | None) -> tuple[float, float]:
    """What undoes fp16 loss scaling: for the gradients at the step, and for those the last backward left."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return 1.0, 1.0
    inner = getattr(optimizer, "optimizer", optimizer)
    stage = scaler._per_optimizer_states[id(inner)]["stage"]
    raw = 1.0 / float(scaler.get_scale())
    return (1.0 if stage.name == "UNSCALED" else raw), raw


# ---------------------------------------------------------------- records


def _norms(layout: _Layout, square_P: np.ndarray) -> dict[str, Any]:
    by_axis = {k: {label: float(np.sqrt(v)) for label, v in d.items()} for k, d in layout.by_axis(square_P).items()}
    return {"total": float(np.sqrt(square_P.sum())), **by_axis}


def _shares(square: dict[str, dict[str, float]]) -> dict[str, dict[str, float]] | None:
    total = sum(square["type"].values())
    return {axis: {k: v / total for k, v in d.items()} for axis, d in square.items()} if total > 0 else None


def _scale_record(record: dict[str, Any], total: float | None, source: str) -> None:
    """Sets `grad_norm` (before clipping) from the shares and the total norm before clipping."""
    if record["status"] != "ok":
        return
    at_step = record["grad_norm_at_step"]
    finite = total is not None and np.isfinite(total)
    record["clip"] = {"factor": at_step / total if finite and total else None, "source": source}
    if not finite or total is None:
        record["grad_norm"] = None
        return
    share = record["share"] or {}
    record["grad_norm"] = {"total": total} | {
        axis: {k: total * float(np.sqrt(v)) for k, v in d.items()} for axis, d in share.items()
    }

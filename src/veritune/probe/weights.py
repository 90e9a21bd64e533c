"""How far the weights moved, module by module: from an adapter without forming B A, or between two checkpoints.

    change = adapter_change("runs/.../adapter", base="models/base")
    change = checkpoint_change("models/base", "runs/.../checkpoint-72")

||s B A||_F = s sqrt(<A A^T, B^T B>) and the singular values of B A are those of R_B R_A^T (QR of B and of A^T), an
r x r matrix; float64 throughout. Checkpoints are streamed from safetensors in row blocks, so memory follows the block,
not the model. The amount of change does not tell memorising from generalising: it is reported, never judged by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from veritune.config.thresholds import DEFAULTS, WeightThresholds
from veritune.counting import many
from veritune.errors import ModelError
from veritune.records import JsonLike, ModuleChange, MovedNorm, WeightChange, to_json
from veritune.train.adapters.reading import AdapterReading, other_shape, read_adapter
from veritune.train.modules import layer_index, module_group, module_type
from veritune.train.tensors import Tensors

SPECTRUM_BYTES = 512 * 2**20


@dataclass(frozen=True)
class WeightOptions:
    """What to measure. spectrum: singular values of each change. intruders: also compare singular vectors with the
    base's (slow: one full decomposition of every base matrix and of every changed one).
    """

    spectrum: bool = True
    intruders: bool = False


# ---------------------------------------------------------------- adapters


def adapter_change(
    adapter: str | Path, base: str | Path | None = None, options: WeightOptions | None = None
) -> WeightChange:
    """Weight change from merging a saved LoRA, of any kind that `read_adapter` reads.

    Without `base` (a folder of safetensors) nothing is relative. Raises ModelError for other adapter types, for a base
    the adapter does not fit, and quantised bases.

    >>> import json, pathlib, tempfile
    >>> from safetensors.torch import save_file
    >>> folder, name = pathlib.Path(tempfile.mkdtemp()), "base_model.model.model.layers.0.self_attn.q_proj"
    >>> config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    >>> _ = (folder / "adapter_config.json").write_text(json.dumps(config))
    >>> pair = {f"{name}.lora_A.weight": torch.tensor([[3.0, 4.0]]), f"{name}.lora_B.weight": torch.ones(2, 1)}
    >>> save_file(pair, folder / "adapter_model.safetensors")
    >>> round(adapter_change(folder).total.delta_norm, 3)  # 2 * ||B A||, of rank 1
    14.142
    """
    options = options or WeightOptions()
    reading = read_adapter(adapter, base)
    if base is None:
        modules, notes = _without_base(reading, options)
    else:
        modules, notes = _on_base(reading, options)
    if not modules:
        raise ModelError(
            f"{adapter}: expected LoRA factors in the adapter, found none.", fix="Name the folder that PEFT saved."
        )
    notes = (*reading.notes, *notes)
    if reading.missing:
        notes = (
            *notes,
            f"{many(len(reading.missing), 'adapted modules', 'have')} no tensors, first {reading.missing[0]}",
        )
    return _record(str(base) if base else "base not given", str(adapter), "adapter", tuple(modules), notes)


def _on_base(reading: AdapterReading, options: WeightOptions) -> tuple[list[ModuleChange], tuple[str, ...]]:
    """Plain LoRA by its factors, everything else by what merging makes of the base's weight."""
    made, notes = [], []
    for parameter in reading.steps:
        steps = [make() for make in reading.steps[parameter]]
        stored = reading.stored(parameter)
        factors = steps[0].factors
        if len(steps) == 1 and factors is not None and stored is not None and not options.intruders:
            assert reading.base is not None
            name = parameter.removesuffix(".weight")
            shape = (factors[1].shape[0], factors[0].shape[1])
            if sorted(shape) != sorted(reading.base.shape(stored)):
                raise other_shape(name, shape, reading.base.shape(stored))
            base_norm = reading.base.norm(stored)
            _require_finite(f"{name} of the base", base_norm)
            made.append(_factored(name, factors, reading.base.shape(stored), base_norm, options))
            continue
        for change in reading.changed(parameter, steps):
            weight, delta = change.weight, change.delta
            if change.base_rows is not None:
                notes.append(f"{len(weight) - change.base_rows} new rows of {change.module}: the base has none of them")
                weight, delta = weight[: change.base_rows], delta[: change.base_rows]
            made.append(_dense_change(change.key.removesuffix(".weight"), weight, delta, options))
    return made, tuple(notes)


def _without_base(reading: AdapterReading, options: WeightOptions) -> tuple[list[ModuleChange], tuple[str, ...]]:
    """What can be said by the factors alone."""
    if options.intruders:
        raise _needs_base(reading)
    made, unread = [], []
    for parameter, makers in reading.steps.items():
        steps = [make() for make in makers]
        name, factors = parameter.removesuffix(".weight"), steps[-1].factors
        if any(step.how not in ("lora", "carried base", "saved in full", "bias", "tokens") for step in steps):
            raise _needs_base(reading)
        if factors is None and steps[-1].how == "tokens":
            unread.append(f"{name} ({steps[-1].how}) was not compared: no base was given")
        if factors is None:  # the reader's notes name what is saved in full
            continue
        made.append(_factored(name, factors, (factors[1].shape[0], factors[0].shape[1]), None, options))
    return made, tuple(unread)


def _needs_base(reading: AdapterReading) -> ModelError:
    return ModelError(
        f"{reading.settings.folder}: this reading needs the base weights, none were given.",
        fix="Give the base model's folder.",
    )


def _factored(
    name: str,
    factors: tuple[torch.Tensor, torch.Tensor, float],
    shape: tuple[int, ...],
    base_norm: float | None,
    options: WeightOptions,
) -> ModuleChange:
    """One plain LoRA's change without forming B A."""
    a, b, scale = factors
    squared = scale**2 * float(((a @ a.t()) * (b.t() @ b)).sum())
    values = _lora_singular_values(a, b) * abs(scale) if options.spectrum else None
    return _module(name, shape, math.sqrt(max(squared, 0.0)), base_norm, values)


def _lora_singular_values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Singular values of B A, min(r, in, out) of them."""
    r_b, r_a = torch.linalg.qr(b).R, torch.linalg.qr(a.t()).R
    values: torch.Tensor = torch.linalg.svdvals(r_b @ r_a.t())
    return values


# ---------------------------------------------------------------- checkpoints


def checkpoint_change(before: str | Path, after: str | Path, options: WeightOptions | None = None) -> WeightChange:
    """Weight change between two folders of safetensors, read tensor by tensor. Tensors that only one side has are named
    in `notes`.

    Raises ModelError when shapes differ, no tensor is shared or weights are quantised.

    >>> import json, pathlib, tempfile
    >>> from safetensors.torch import save_file
    >>> folder, name = pathlib.Path(tempfile.mkdtemp()), "model.layers.0.self_attn.q_proj.weight"
    >>> for side, value in (("before", 1.0), ("after", 2.0)):
    ...     (folder / side).mkdir()
    ...     _ = (folder / side / "config.json").write_text(json.dumps({"model_type": "llama"}))
    ...     save_file({name: torch.full((2, 2), value)}, folder / side / "model.safetensors")
    >>> checkpoint_change(folder / "before", folder / "after").total.relative
    1.0
    """
    options = options or WeightOptions(spectrum=False)
    old, new = Tensors(Path(before)), Tensors(Path(after))
    shared = [n for n in old.names if n in set(new.names)]
    if 2 * len(shared) < min(len(old.names), len(new.names)):
        raise ModelError(
            f"{before} and {after} share {len(shared)} of {len(old.names)} tensor names: they are different models.",
            fix="Compare a checkpoint with the model that it was trained from.",
        )
    notes = tuple(
        f"only in {side}: {', '.join(only[:3])}{' ...' if len(only) > 3 else ''} ({len(only)} tensors)"
        for side, only in (
            ("before", [n for n in old.names if n not in set(new.names)]),
            ("after", [n for n in new.names if n not in set(old.names)]),
        )
        if only
    )
    modules = []
    for name in shared:
        if old.shape(name) != new.shape(name):
            raise ModelError(
                f"{name}: shape {list(old.shape(name))} before, {list(new.shape(name))} after: different models.",
                fix="Compare a checkpoint with the model that it was trained from.",
            )
        modules.append(_streamed(name, old, name, new, name, options))
    return _record(str(before), str(after), "full", tuple(modules), notes)


def _streamed(
    module: str, old: Tensors, old_key: str, new: Tensors, new_key: str, options: WeightOptions
) -> ModuleChange:
    shape = old.shape(old_key)
    if (options.spectrum or options.intruders) and len(shape) == 2 and math.prod(shape) * 8 <= SPECTRUM_BYTES:
        weight = old.whole(old_key)
        return _dense_change(module, weight, new.whole(new_key) - weight, options)
    squared = base_squared = 0.0
    for a, b in zip(old.blocks(old_key), new.blocks(new_key)):
        squared += float((b - a).square().sum())
        base_squared += float(a.square().sum())
    _require_finite(f"{module} before", base_squared)
    _require_finite(module, squared)
    return _module(module, shape, math.sqrt(squared), math.sqrt(base_squared), None)


def _dense_change(module: str, weight: torch.Tensor, delta: torch.Tensor, options: WeightOptions) -> ModuleChange:
    norm = float(torch.linalg.vector_norm(delta))
    _require_finite(f"{module} before", float(torch.linalg.vector_norm(weight)))
    _require_finite(module, norm)
    values = torch.linalg.svdvals(delta) if options.spectrum and delta.dim() == 2 else None
    intruders = None
    if options.intruders and delta.dim() == 2:
        intruders = count_intruders(weight, weight + delta)
    return _module(
        module, tuple(weight.shape), norm, float(torch.linalg.vector_norm(weight)), values, intruders=intruders
    )


def count_intruders(before: torch.Tensor, after: torch.Tensor, limits: WeightThresholds = DEFAULTS.weights) -> int:
    """How many of `after`'s leading left singular vectors have a small |cosine| with each of `before`'s."""
    old = torch.linalg.svd(before, full_matrices=False).U
    new = torch.linalg.svd(after, full_matrices=False).U[:, : limits.intruder_top]
    return int(((old.t() @ new).abs().amax(0) < limits.intruder_cosine).sum())


def _require_finite(module: str, value: float) -> None:
    if not math.isfinite(value):
        raise ModelError(f"{module}: the weights hold NaN or infinite values.", fix="Use an earlier checkpoint.")


# ---------------------------------------------------------------- the record


def _module(
    name: str,
    shape: tuple[int, ...],
    delta: float,
    base: float | None,
    values: torch.Tensor | None,
    *,
    intruders: int | None = None,
) -> ModuleChange:
    rank, top = effective_rank(values) if values is not None else (None, None)
    relative = delta / base if base else None
    layer = layer_index(name)
    kind, group = module_type(name), module_group(name)
    return ModuleChange(name, kind, group, layer, tuple(shape), delta, base, relative, rank, top, intruders)


def effective_rank(values: torch.Tensor) -> tuple[float | None, float | None]:
    """(exp of the entropy of the squared singular values' shares, share of the largest); None for a zero matrix.

    Source: Roy & Vetterli 2007, EUSIPCO, with squared values, so that shares are shares of energy.

    >>> rank, share = effective_rank(torch.tensor([3.0, 3.0, 0.0]))
    >>> round(rank, 3), round(share, 3)
    (2.0, 0.5)
    """
    energy = values.double().square()
    total = float(energy.sum())
    if total <= 0:
        return None, None
    share = energy / total
    entropy = -float(torch.special.xlogy(share, share).sum())
    return math.exp(entropy), float(share.max())


def _record(
    before: str, after: str, method: str, modules: tuple[ModuleChange, ...], notes: tuple[str, ...]
) -> WeightChange:
    groups: dict[str, dict[str, list[ModuleChange]]] = {"type": {}, "group": {}, "layer": {}}
    for m in modules:
        groups["type"].setdefault(m.type, []).append(m)
        groups["group"].setdefault(m.group, []).append(m)
        groups["layer"].setdefault("outside" if m.layer is None else str(m.layer), []).append(m)
    total = _sum(modules)
    largest = max(modules, key=lambda m: m.relative or 0.0)
    size = f"{total.delta_norm:.3g}"
    if total.relative is not None:
        size += f", {total.relative:.2%} of the norm of the same weights"
    where = f"; the most in {largest.name} ({largest.relative:.2%})" if largest.relative else ""
    return WeightChange(
        before=before,
        after=after,
        method=method,
        modules=modules,
        total=total,
        by_type={k: _sum(v) for k, v in groups["type"].items()},
        by_group={k: _sum(v) for k, v in groups["group"].items()},
        by_layer={k: _sum(v) for k, v in groups["layer"].items()},
        notes=notes,
        reading=f"The weights moved by {size}{where}." if total.delta_norm else _still(notes),
        limits="How far weights move does not tell memorising from generalising; it depends on rate, steps and rank."
        + (f" Left out: {'; '.join(notes[:3])}{' ...' if len(notes) > 3 else ''}." if notes else ""),
        would_change="Nothing about the claim: compare runs of one recipe with it, and judge by held-out zones.",
        thresholds=DEFAULTS.weights.model_dump(),
    )


def _still(notes: tuple[str, ...]) -> str:
    """What no difference means: of all weights, or of those that could be compared."""
    if notes:
        return f"The weights that were compared did not move at all; not compared: {'; '.join(notes[:3])}."
    return "The weights did not move at all."


def _sum(modules: tuple[ModuleChange, ...] | list[ModuleChange]) -> MovedNorm:
    delta = math.sqrt(sum(m.delta_norm**2 for m in modules))
    known = [m.base_norm for m in modules if m.base_norm is not None]
    base = math.sqrt(sum(b * b for b in known)) if len(known) == len(modules) and modules else None
    return MovedNorm(delta, base, delta / base if base else None, len(modules))


def series(changes: Mapping[str, WeightChange]) -> list[dict[str, JsonLike]]:
    """One line per labelled change (a step, a learning rate, a dose) with total and per-type norms, for a table or one
    plot.
    """
    return [
        {"label": label, **to_json(change.total), "by_type": {k: v.delta_norm for k, v in change.by_type.items()}}
        for label, change in changes.items()
    ]

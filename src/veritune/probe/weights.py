"""How far the weights moved, module by module: from an adapter without forming B A, or between two checkpoints.

    change = adapter_change("runs/.../adapter", base="models/base")
    change = checkpoint_change("models/base", "runs/.../checkpoint-72")

||s B A||_F = s sqrt(<A A^T, B^T B>) and the singular values of B A are those of R_B R_A^T (QR of B and of A^T), an
r x r matrix; float64 throughout. Checkpoints are streamed from safetensors in row blocks, so memory follows the block,
not the model. The amount of change does not tell memorising from generalising: it is reported, never judged by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from veritune.config.thresholds import DEFAULTS, WeightThresholds
from veritune.errors import ModelError
from veritune.records import FORMAT_VERSION, Json
from veritune.train.modules import layer_index, module_group, module_type, plain_name

BLOCK_BYTES = 64 * 2**20
SPECTRUM_BYTES = 512 * 2**20


@dataclass(frozen=True)
class ModuleChange:
    """One weight's change. Norms are Frobenius norms; `relative` is delta/base, None where the base is zero.

    effective_rank: exp of the entropy of squared singular values' shares (1: one direction; r: r equal ones).
    top_energy: share of the squared norm in the largest direction. intruders: of the changed weight's ten largest left
    singular vectors, those with cosine below 0.6 to every one of the base's (Shuttleworth et al. 2024,
    arXiv:2410.21228); None where not computed.
    """

    name: str
    type: str
    group: str
    layer: int | None
    shape: tuple[int, ...]
    delta_norm: float
    base_norm: float | None
    relative: float | None
    effective_rank: float | None = None
    top_energy: float | None = None
    intruders: int | None = None


@dataclass(frozen=True)
class WeightChange:
    """The record of one comparison. Sums over modules are root sums of squares."""

    before: str
    after: str
    method: str
    modules: tuple[ModuleChange, ...]
    total: Json
    by_type: Json
    by_group: Json
    by_layer: Json
    notes: tuple[str, ...]
    reading: str
    limits: str
    would_change: str
    thresholds: Json = field(default_factory=DEFAULTS.weights.model_dump)
    kind: str = "weights"
    format: int = FORMAT_VERSION


@dataclass(frozen=True)
class WeightOptions:
    """spectrum: singular values of each change. intruders: also compare singular vectors with the base's (slow: one
    full decomposition of every base matrix and of every changed one)."""

    spectrum: bool = True
    intruders: bool = False


# ---------------------------------------------------------------- adapters


def adapter_change(
    adapter: str | Path, base: str | Path | None = None, options: WeightOptions | None = None
) -> WeightChange:
    """Weight change of a saved LoRA, rsLoRA or DoRA adapter. Without `base` (a folder of safetensors) nothing is
    relative. Raises ModelError for other adapter types, for a base the adapter does not fit, and quantised bases.
    """
    options = options or WeightOptions()
    folder = Path(adapter)
    config = _adapter_config(folder)
    weights = Tensors(folder, "adapter_model.safetensors")
    base_weights = Tensors(Path(base)) if base is not None else None
    if base_weights is None and (config.get("use_dora") or options.intruders):
        raise ModelError(
            f"{folder}: this reading needs the base weights, none were given.", fix="Give the base model's folder."
        )
    modules, used = [], set()
    for name in sorted(_lora_modules(weights)):
        a, b, keys = _factors(weights, name)
        used |= keys
        modules.append(_lora_change(name, a, b, _scaling(config, name), weights, base_weights, options))
        used |= {k for k in weights.names if k.startswith(name + ".lora_magnitude_vector")}
    saved, notes = _saved_in_full(weights, used, base_weights, options)
    if not modules and not saved:
        raise ModelError(f"{folder}: no LoRA factors found in the adapter.", fix="Give the folder that PEFT saved.")
    return _record(str(base) if base else "base not given", str(adapter), "adapter", (*modules, *saved), notes)


@dataclass(frozen=True)
class ExpectedChange:
    """What merging must do to one weight: `delta` in float64, shaped as the base stores it; `how` names the part.

    `module` is the adapter's own name for it, `key` the base's. `merge` merges into any weight of that shape: DoRA
    renormalises, so that what it adds the second time is not what it added the first.
    """

    module: str
    key: str
    weight: torch.Tensor
    delta: torch.Tensor
    how: Literal["lora", "dora", "saved in full"]
    merge: Callable[[torch.Tensor], torch.Tensor]


def expected_changes(adapter: str | Path, base: str | Path) -> Iterator[ExpectedChange]:
    """For every weight that an adapter changes, what its merge must add, one weight in memory at a time.

    LoRA: s B A with s = alpha/r, or alpha/sqrt(r) for rsLoRA; DoRA: the renormalised weight less the base's; a module
    saved in full: its own values less the base's. Raises ModelError for other adapters and for another base.
    """
    folder = Path(adapter)
    config, weights, base_weights = (
        _adapter_config(folder),
        Tensors(folder, "adapter_model.safetensors"),
        Tensors(Path(base)),
    )
    used: set[str] = set()
    for name in sorted(_lora_modules(weights)):
        a, b, keys = _factors(weights, name)
        magnitude = next((k for k in weights.names if k.startswith(name + ".lora_magnitude_vector")), None)
        used |= keys | ({magnitude} if magnitude else set())
        module = plain_name(name)
        key = base_weights.key_of(module)
        _fitting(base_weights, key, module, (b.shape[0], a.shape[1]))
        assert key is not None
        weight = base_weights.whole(key)
        added = partial(
            _dense_delta, name, product=_scaling(config, name) * (b @ a), weights=weights, magnitude=magnitude
        )
        merge = partial(_plus, added)
        yield ExpectedChange(module, key, weight, added(weight), "lora" if magnitude is None else "dora", merge)
    for saved in sorted(set(weights.names) - used):
        name = saved.removeprefix("base_model.model.")
        target = base_weights.key_of(plain_name(name)) or (name if name in base_weights.names else None)
        if ".base_layer." in saved or target is None:
            continue
        weight = base_weights.whole(target)
        values = weights.whole(saved)
        merge = partial(_instead, values)
        yield ExpectedChange(plain_name(name), target, weight, values - weight, "saved in full", merge)


def _plus(added: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return weight + added(weight)


def _instead(values: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return values


def _dense_delta(
    name: str, weight: torch.Tensor, product: torch.Tensor, weights: Tensors, magnitude: str | None
) -> torch.Tensor:
    """s B A as the base stores the weight, renormalised where the adapter holds DoRA's magnitude."""
    transposed = tuple(weight.shape) != tuple(product.shape)
    delta = product.t() if transposed else product
    if magnitude is None:
        return delta
    if transposed:
        raise ModelError(f"{name}: DoRA on a transposed (Conv1D) weight is not read.", fix="Merge and compare.")
    moved = weight + delta
    size = weights.whole(magnitude).reshape(-1, 1)
    renormalised: torch.Tensor = size * moved / torch.linalg.vector_norm(moved, dim=1, keepdim=True) - weight
    return renormalised


def _adapter_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not path.exists():
        raise ModelError(f"{folder}: no adapter_config.json.", fix="Use checkpoint_change for a full checkpoint.")
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kind = config.get("peft_type")
    if kind == "PROMPT_TUNING":
        raise ModelError(f"{folder}: prompt tuning changes no weights; there is nothing to measure here.")
    if kind != "LORA":
        raise ModelError(
            f"{folder}: weight change of {kind} adapters is not read without merging; LORA is.",
            fix="Merge the adapter and compare the two checkpoints.",
        )
    return config


def _lora_modules(weights: Tensors) -> set[str]:
    marks = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B")
    return {name.split(mark)[0] for name in weights.names for mark in marks if mark in name}


def _factors(weights: Tensors, name: str) -> tuple[torch.Tensor, torch.Tensor, set[str]]:
    """A [r, in] and B [out, r] in float64, and the keys they came from."""
    found: dict[str, str] = {}
    for key in weights.names:
        for factor in ("A", "B"):
            if key.startswith((f"{name}.lora_{factor}", f"{name}.lora_embedding_{factor}")):
                found[factor] = key
    if set(found) != {"A", "B"}:
        raise ModelError(f"{name}: expected factors A and B, found {sorted(found)}: the adapter file is incomplete.")
    return weights.whole(found["A"]), weights.whole(found["B"]), set(found.values())


def _scaling(config: Mapping[str, Any], name: str) -> float:
    module = plain_name(name)
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)


def _pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    for key, value in (patterns or {}).items():
        if module == key or module.endswith("." + key):
            return value
    return default


def _lora_change(  # noqa: PLR0913 - one call site, all of them needed
    name: str,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    weights: Tensors,
    base: Tensors | None,
    options: WeightOptions,
) -> ModuleChange:
    if not torch.isfinite(a).all() or not torch.isfinite(b).all():
        raise ModelError(f"{name}: the adapter holds NaN or infinite values.", fix="Use an earlier checkpoint.")
    module = plain_name(name)
    key = None if base is None else base.key_of(module)
    shape: tuple[int, ...] = (b.shape[0], a.shape[1])
    if base is not None:
        shape = _fitting(base, key, module, shape)
    magnitude = next((k for k in weights.names if k.startswith(name + ".lora_magnitude_vector")), None)
    if magnitude is None and not options.intruders:
        squared = scale**2 * float(((a @ a.t()) * (b.t() @ b)).sum())
        values = _lora_singular_values(a, b) * abs(scale) if options.spectrum else None
        base_norm = base.norm(key) if base is not None and key is not None else None
        _require_finite(f"{module} of the base", base_norm or 0.0)
        return _module(module, shape, math.sqrt(max(squared, 0.0)), base_norm, values)
    assert base is not None and key is not None
    weight = base.whole(key)
    delta = _dense_delta(name, weight, scale * (b @ a), weights, magnitude)
    return _dense_change(module, weight, delta, options)


def _lora_singular_values(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Singular values of B A, min(r, in, out) of them."""
    r_b, r_a = torch.linalg.qr(b).R, torch.linalg.qr(a.t()).R
    values: torch.Tensor = torch.linalg.svdvals(r_b @ r_a.t())
    return values


def _fitting(base: Tensors, key: str | None, module: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if key is None:
        raise ModelError(
            f"{module}: the base has no such weight: the adapter was made for another base.",
            fix="Give the base that the adapter was trained on.",
        )
    found = base.shape(key)
    if sorted(found) != sorted(shape):
        raise ModelError(
            f"{module}: the adapter fits a weight of shape {list(shape)}, the base has {list(found)}.",
            fix="Give the base that the adapter was trained on.",
        )
    return found


def _saved_in_full(
    weights: Tensors, used: set[str], base: Tensors | None, options: WeightOptions
) -> tuple[list[ModuleChange], tuple[str, ...]]:
    """Modules that the adapter holds whole (modules_to_save), against the base's."""
    made, notes = [], []
    for key in sorted(set(weights.names) - used):
        if ".base_layer." in key:
            continue  # PEFT saves the base's own embedding beside its adapter
        name = key.removeprefix("base_model.model.")
        target = None if base is None else base.key_of(plain_name(name)) or base.tied(plain_name(name))
        if base is None or target is None or not key.endswith("weight"):
            notes.append(f"{name} is saved in full and was not compared" + (": no base was given" * (base is None)))
            continue
        _fitting(base, target, name, weights.shape(key))
        made.append(_streamed(plain_name(name), base, target, weights, key, options))
    return made, tuple(notes)


# ---------------------------------------------------------------- checkpoints


def checkpoint_change(before: str | Path, after: str | Path, options: WeightOptions | None = None) -> WeightChange:
    """Weight change between two folders of safetensors, streamed. Tensors that only one side has are named in `notes`.

    Raises ModelError when shapes differ, no tensor is shared or weights are quantised.
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
    """How many of `after`'s leading left singular vectors have a small |cosine| to each of `before`'s."""
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
    """(exp entropy of squared singular values' shares, share of the largest); None for a zero matrix.

    Source: Roy & Vetterli 2007, EUSIPCO, with squared values, so that shares are shares of energy.
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
    size = f"{total['delta_norm']:.3g}"
    if total["relative"] is not None:
        size += f", {total['relative']:.2%} of the norm of the same weights"
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
        reading=f"The weights moved by {size}{where}." if total["delta_norm"] else _still(notes),
        limits="How far weights move does not tell memorising from generalising; it depends on rate, steps and rank."
        + (f" Left out: {'; '.join(notes[:3])}{' ...' if len(notes) > 3 else ''}." if notes else ""),
        would_change="Nothing about the claim: compare runs of one recipe with it, and judge by held-out zones.",
    )


def _still(notes: tuple[str, ...]) -> str:
    """What no difference means: of all weights, or of those that could be compared."""
    if notes:
        return f"The weights that were compared did not move at all; not compared: {'; '.join(notes[:3])}."
    return "The weights did not move at all."


def _sum(modules: tuple[ModuleChange, ...] | list[ModuleChange]) -> dict[str, Any]:
    delta = math.sqrt(sum(m.delta_norm**2 for m in modules))
    known = [m.base_norm for m in modules if m.base_norm is not None]
    base = math.sqrt(sum(b * b for b in known)) if len(known) == len(modules) and modules else None
    return {
        "delta_norm": delta,
        "base_norm": base,
        "relative": delta / base if base else None,
        "n_modules": len(modules),
    }


def series(changes: Mapping[str, WeightChange]) -> list[dict[str, Any]]:
    """One line per labelled change (a step, an LR, a dose) with total and per-type norms: for a table or one plot."""
    return [
        {"label": label, **change.total, "by_type": {k: v["delta_norm"] for k, v in change.by_type.items()}}
        for label, change in changes.items()
    ]


# ---------------------------------------------------------------- safetensors, streamed


PACKED = (".absmax", ".SCB", ".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def _is_packed(name: str, dtype: str) -> bool:
    """Whether a tensor is part of quantised weights: by its name, or a matrix's 8-bit floating type."""
    return ".quant_state" in name or name.endswith(PACKED) or dtype.startswith("F8")


class Tensors:
    """The tensors of a folder's safetensors files by name, read in row blocks of at most `BLOCK_BYTES`.

    A file is opened for one tensor and closed again: pages of an open file stay mapped, and memory would follow the
    model.
    """

    def __init__(self, folder: Path, only: str = "") -> None:
        from safetensors import safe_open

        paths = [folder / only] if only else sorted(folder.glob("*.safetensors"))
        paths = [p for p in paths if p.exists()]
        if not paths:
            raise ModelError(f"{folder}: no safetensors weights found.", fix="Save the model with safetensors.")
        self._path_of: dict[str, Path] = {}
        self._shape_of: dict[str, tuple[int, ...]] = {}
        self._dtype_of: dict[str, str] = {}
        for path in paths:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    self._path_of[name] = path
                    self._shape_of[name] = tuple(file.get_slice(name).get_shape())
                    self._dtype_of[name] = file.get_slice(name).get_dtype()
        self.names = tuple(self._path_of)
        packed = [n for n in self.names if _is_packed(n, self._dtype_of[n])]
        if packed:
            raise ModelError(
                f"{folder}: the weights are quantised ({packed[0]}).", fix="Compare with the unquantised base."
            )

    def key_of(self, module: str) -> str | None:
        """The weight's own name for a module's: exact, else the only one that differs by a prefix."""
        for key in (f"{module}.weight", module):
            if key in self._path_of:
                return key
        ends = [
            n for n in self.names if n.endswith(f".{module}.weight") or module.endswith("." + n.removesuffix(".weight"))
        ]
        return ends[0] if len(ends) == 1 else None

    def tied(self, module: str) -> str | None:
        """For a head that has no weight of its own here: the embedding's name, which it shares."""
        if module.rsplit(".", 1)[-1] != "lm_head":
            return None
        found = [n for n in self.names if n.endswith(("embed_tokens.weight", "wte.weight"))]
        return found[0] if len(found) == 1 else None

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape_of[name]

    def dtype(self, name: str) -> torch.dtype:
        """The precision in which the tensor is stored."""
        names = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
        return names.get(self._dtype_of[name], torch.float32)

    def whole(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        with safe_open(str(self._path_of[name]), framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor.double()

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Row blocks in float64; each holds at most `BLOCK_BYTES` in that precision, one row at least."""
        from safetensors import safe_open

        shape = self.shape(name)
        if not shape:
            yield self.whole(name)
            return
        rows = max(1, BLOCK_BYTES // (8 * max(1, math.prod(shape[1:]))))
        with safe_open(str(self._path_of[name]), framework="pt") as file:
            part = file.get_slice(name)
            for start in range(0, shape[0], rows):
                block: torch.Tensor = part[start : start + rows]
                yield block.double()

    def head(self, name: str, elements: int = 4096) -> torch.Tensor:
        """The first rows of a tensor in float64, about so many elements of it."""
        from safetensors import safe_open

        rows = max(1, elements // max(1, math.prod(self.shape(name)[1:])))
        with safe_open(str(self._path_of[name]), framework="pt") as file:
            part: torch.Tensor = file.get_slice(name)[:rows]
            return part.double()

    def norm(self, name: str) -> float:
        return math.sqrt(sum(float(block.square().sum()) for block in self.blocks(name)))

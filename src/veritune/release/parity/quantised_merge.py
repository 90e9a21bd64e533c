"""An adapter that was trained on a quantised base: what its merge is, and what quantising the merge again costs.

The adapter never saw the base's own weights, only what the quantised ones stand for. So the base of its merge is that:
the quantised model written out as ordinary safetensors (`dequantise`). Against it the merge is checked like any other.
Served in bits again, the merged model is a third one: its loss is measured (`cost`), never assumed to be small.

    Q(W)                    the base in bits, as it was trained on
    D = deq(Q(W))           what it stands for; D + change is the merge
    Q(D + change)           the merge in bits again

A change smaller than the steps of the bits is rounded away, so Q(D + change) can be Q(W) with no adapter at all.
bitsandbytes can corrupt 4-bit weights at a forward in silence (`veritune.train.quantised`): loading goes through the
guard there, and after every use the weights must be what they were, bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.thresholds import DEFAULTS, MergeThresholds
from veritune.counting import many
from veritune.errors import GateError, InputError, ModelError
from veritune.records import Finding, Rendered
from veritune.release.parity.merge import MergeParity, MergePart, check_weights
from veritune.release.parity.merge_others import Stored
from veritune.release.parity.merge_outputs import (
    MergeOptions,
    differing_answers,
    kl_per_position,
    paired_change,
    row_losses,
    target_logits,
)
from veritune.train import quantised
from veritune.train.adapters.attach import attach
from veritune.train.adapters.reading import read_adapter
from veritune.train.models import ModelRef, load_base, load_tokenizer, quiet_transformers

if TYPE_CHECKING:
    import torch
    from bitsandbytes.nn import Linear4bit, Linear8bitLt
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("nf4", "fp4", "int8")
SERVED = {kind: f"merged, in {kind}" for kind in KINDS}
INT8 = 127.0  # bitsandbytes stores a row's largest value as 127


@dataclass(frozen=True, slots=True)
class Bits:
    """How the base is quantised: `kind` is one of `KINDS`; `how` holds bitsandbytes' fields for the 4-bit kinds."""

    kind: str
    how: quantised.Quantisation

    @classmethod
    def named(cls, kind: str, dtype: str, double_quant: bool = True) -> Bits:
        """The quantisation with this name. Raises InputError for an unknown kind."""
        if kind not in KINDS:
            raise InputError(f"--quantised: expected one of {', '.join(KINDS)}, found {kind!r}.")
        fields = {**quantised.FIELDS, "bnb_4bit_use_double_quant": double_quant, "bnb_4bit_compute_dtype": dtype}
        if kind != "int8":
            fields["bnb_4bit_quant_type"] = kind
        return cls(kind, quantised.Quantisation(tuple(fields.items()), dtype))


# ---------------------------------------------------------------- in bits


def load(ref: ModelRef, bits: Bits) -> PreTrainedModel:
    """The quantised model in evaluation mode. A 4-bit model passes the guard before its first forward pass.

    Raises ModelError where nothing is quantised, MachineError without bitsandbytes.
    """
    if bits.kind != "int8":
        return quantised.load_quantised(ref, bits.how)
    from transformers import BitsAndBytesConfig

    quantised.require_bitsandbytes()
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # says once a layer that it casts
    model = quantised.load_in_bits(ref, bits.how.dtype, BitsAndBytesConfig(load_in_8bit=True), bits=8)
    if not layers(model):
        raise ModelError(f"{ref.path}: no layer was quantised.", fix="Compare it without --quantised.")
    return model.eval()


def layers(model: PreTrainedModel) -> dict[str, Linear4bit | Linear8bitLt]:
    """The quantised layers by name, without an adapter's wrapping in the name."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, (Linear4bit, Linear8bitLt)):
            found[name.removeprefix("base_model.model.").removesuffix(".base_layer")] = module
    return found


def values(layer: Linear4bit | Linear8bitLt) -> torch.Tensor:
    """The values that a quantised layer represents, in its compute precision, shape (out, in)."""
    from bitsandbytes.functional import dequantize_4bit

    weight = layer.weight
    if hasattr(weight, "quant_state"):
        whole: torch.Tensor = dequantize_4bit(weight.data, weight.quant_state)
        return whole
    scale = weight.SCB if getattr(weight, "SCB", None) is not None else layer.state.SCB
    codes = weight.data if weight.data.dtype.itemsize == 1 else layer.state.CB
    made: torch.Tensor = codes.float() * scale.float().reshape(-1, 1) / INT8
    return made


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    """Raises GateError if the values of a quantised layer changed while the block ran."""
    before = {name: _digest(layer) for name, layer in layers(model).items()}
    yield
    after = {name: _digest(layer) for name, layer in layers(model).items()}
    moved = [name for name, digest in before.items() if after.get(name) != digest]
    if moved:
        raise GateError(
            f"the quantised weights changed while the model was used: {moved[0]} ({len(moved)} of {len(before)}"
            " layers); nothing that was measured with them can be trusted.",
            fix="Run `veritune doctor --selftest`, and use another version of bitsandbytes.",
        )


def _digest(layer: Linear4bit | Linear8bitLt) -> str:
    return hashlib.sha256(values(layer).float().cpu().contiguous().numpy().tobytes()).hexdigest()


def again(bits: Bits) -> Stored:
    """Quantise a weight and dequantise it again, as loading a saved quantised model does."""
    import torch

    dtype = getattr(torch, bits.how.dtype)
    fields = dict(bits.how.fields)

    def keep(weight: torch.Tensor) -> torch.Tensor:
        from bitsandbytes import functional as F

        stored = weight.to(dtype).contiguous()
        if bits.kind == "int8":
            codes, scale, _ = F.int8_vectorwise_quant(stored.to(torch.float16))
            whole: torch.Tensor = (codes.float() * scale.float().reshape(-1, 1) / INT8).to(dtype).double()
            return whole
        double, kind = fields["bnb_4bit_use_double_quant"], fields["bnb_4bit_quant_type"]
        packed, state = F.quantize_4bit(stored, compress_statistics=double, quant_type=kind)
        opened: torch.Tensor = F.dequantize_4bit(packed, state).double()
        return opened

    return keep


def dequantise(model: PreTrainedModel, out: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> Path:
    """Write the values of a quantised model as ordinary safetensors; returns the folder."""
    import torch
    from transformers import AutoModelForCausalLM

    held = layers(model)
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    state = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.rpartition(".")
        if module in held and leaf == "weight":
            state[name] = values(held[module]).to(dtype).cpu()
        elif not any(name.startswith(f"{layer}.") and not name.endswith(".bias") for layer in held):
            state[name] = tensor.cpu()
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with quiet_transformers(), torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(state, strict=False, assign=True)
    plain.tie_weights()
    empty = [name for name, p in plain.named_parameters() if p.is_meta]
    if empty:
        raise ModelError(f"{many(len(empty), 'weights')} of the quantised model were not found, first {empty[0]}.")
    plain.generation_config = model.generation_config
    with quiet_transformers():
        plain.save_pretrained(out)
        if tokenizer is not None:
            tokenizer.save_pretrained(out)
    return out


# ---------------------------------------------------------------- the merge in bits again


def check_quantised_merge(
    dequantised: Path,
    adapter: Path,
    merged: ModelRef,
    bits: Bits,
    folder: Path,
    limits: MergeThresholds = DEFAULTS.merge,
) -> tuple[list[Any], list[Finding]]:
    """Compare the weights of a merged model that is itself quantised with Q(D + change). `folder` receives a temporary
    copy.
    """
    model = load(merged, bits)
    names = {f"{name}.weight" for name in layers(model)}
    written = dequantise(model, folder)
    del model
    return check_weights(dequantised, adapter, written, dict.fromkeys(names, again(bits)), limits)


def unquantised_merge(
    found: MergeParity, original: Path, adapter: Path, merged: Path, limits: MergeThresholds = DEFAULTS.merge
) -> Finding | None:
    """Whether the usual mistake was made: merging into the base's unquantised weights, on which the adapter was not
    trained.
    """
    if not any(f.severity == "error" for f in found.findings):
        return None
    try:
        modules, findings = check_weights(original, adapter, merged, limits=limits)
    except ModelError:
        return None
    if findings or {m.reading for m in modules} - {"merged", "lost to rounding"}:
        return None
    message = "the adapter was merged into the base's own weights instead of the quantised ones that it was trained on"
    return Finding("merge.unquantised_base", "error", message, evidence={"modules": [m.module for m in modules]})


Variant = tuple[str, Callable[[], Any]]


def cost(
    ref: ModelRef, bits: Bits, adapter: Path, merged: Path, context: tuple[Path, Sequence[Rendered], MergeOptions]
) -> MergePart:
    """Loss, KL and greedy agreement of every way to serve the adapter, compared with the adapter on its quantised base.

    `context` is the dequantised base's folder, the rows and the options. The merge in bits again is made here, from
    `merged`. Raises GateError when quantised weights change while they are used.
    """
    dequantised, rows, options = context
    tokenizer = load_tokenizer(ref)
    variants = _variants(ref, bits, (adapter, merged, dequantised), options)
    reference = attach(load(ref, bits), adapter)
    with unchanged(reference):
        right = list(target_logits(reference, rows, tokenizer.pad_token_id, options.batch_size))
        found = [_against(name, make, right, (reference, rows, tokenizer, options)) for name, make in variants]
    base = row_losses(right, rows)
    table = [{"model": "adapter, quantised base", "nll": sum(base) / len(base)}, *found]
    kept = next(r for r in found if r["model"] == SERVED[bits.kind])
    share = lost_share(dequantised, adapter, bits)
    change = kept["change"]
    span = "" if change["low"] is None else f" [{change['low']:+.3f}, {change['high']:+.3f}]"
    message = (
        f"merged and in {bits.kind} again, the loss changes by {change['value']:+.3f}{span} nats a token,"
        f" KL {kept['kl_mean']:.2g};"
        f" {kept['agree']} of {len(rows)} greedy answers stay;"
        f" the error of the bits is {100 * share:.0f} % of the adapter's change"
    )
    numbers = {"kind": bits.kind, "table": table, "rows": len(rows), "lost_share": share}
    return MergePart("quantised", None, message, tuple(_table(table, len(rows))), (), numbers)


def _variants(ref: ModelRef, bits: Bits, folders: tuple[Path, Path, Path], options: MergeOptions) -> list[Variant]:
    """The ways to serve, by name. A merged model that is in bits already is loaded as it is, and stands alone."""
    adapter, merged, dequantised = folders
    plain = replace(ref, dtype=options.dtype)
    made: list[Variant] = [
        ("no adapter, quantised base", lambda: load(ref, bits)),
        ("adapter, dequantised base", lambda: attach(load_base(replace(plain, path=dequantised)), adapter)),
        (SERVED[bits.kind], lambda: load(replace(ref, path=merged), bits)),
    ]
    if not quantised.in_bits(merged):
        made.insert(2, (f"merged, {options.dtype}", lambda: load_base(replace(plain, path=merged))))
    if not quantised.in_bits(ref.path):
        made.append(("merged into the base's own weights", lambda: _merged(load_base(plain), adapter)))
    return made


def _merged(base: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    with quiet_transformers():
        return attach(base, adapter).merge_and_unload(safe_merge=True).eval()


def _against(name: str, make: Callable[[], Any], right: Sequence[Any], how: tuple[Any, ...]) -> dict[str, Any]:
    """One row of the table: a model against the logits of the reference."""
    import torch

    reference, rows, tokenizer, options = how
    model = make()
    with unchanged(model):
        found = list(target_logits(model, rows, tokenizer.pad_token_id, options.batch_size))
        told = differing_answers(reference, model, rows, tokenizer, options)
    before, after = row_losses(right, rows), row_losses(found, rows)
    kl_N = torch.cat([kl_per_position(a, b) for a, b in zip(right, found)])
    if not bool(torch.isfinite(kl_N).all()):
        raise ModelError(f"{name}: the logits hold NaN or infinite values.")
    return {
        "model": name,
        "nll": sum(after) / len(after),
        "change": paired_change([y - x for x, y in zip(before, after)]),
        "kl_mean": float(kl_N.mean()),
        "kl_p99": float(kl_N.quantile(0.99)),
        "agree": len(rows) - len(told),
    }


def lost_share(dequantised: Path, adapter: Path, bits: Bits) -> float:
    """|Q(D + change) - D - change| / |change| over the quantised layers that the adapter changes; Frobenius norms.

    1 is what an adapter rounded away altogether leaves; more is noise beside it.
    """
    keep, rest, asked = again(bits), 0.0, 0.0
    for change in read_adapter(adapter, dequantised).changes():
        if change.weight.dim() == 2 and "embed" not in change.key and "lm_head" not in change.key:
            rest += float((keep(change.weight + change.delta) - change.weight - change.delta).square().sum())
            asked += float(change.delta.square().sum())
    return (rest / asked) ** 0.5 if asked else 0.0


def _table(rows: Sequence[dict[str, Any]], n: int) -> list[str]:
    lines = [
        f"{'against the adapter on its quantised base':<42} {'loss':>7} {'change [95 %]':>26} {'KL':>8} {'answers':>8}"
    ]
    for row in rows:
        if "change" not in row:
            lines.append(f"{row['model']:<42} {row['nll']:>7.4f}")
            continue
        c = row["change"]
        span = "" if c["low"] is None else f" [{c['low']:+.4f}, {c['high']:+.4f}]"
        cell = f"{c['value']:+.4f}{span}"
        agree = f"{row['agree']}/{n}"
        lines.append(f"{row['model']:<42} {row['nll']:>7.4f} {cell:>26} {row['kl_mean']:>8.2g} {agree:>8}")
    return lines

"""Plain LoRA on linear layers, added to the weights while answers are made: three products less a layer and token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from veritune.errors import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from transformers import PreTrainedModel


@contextmanager
def added(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Answer with W + s·B·A in place of W beside a separate adapter, while the block runs.

    Afterwards the very tensors of before are back: nothing is subtracted, so nothing is left behind. A model without
    an adapter stays as it is. Raises ModelError for adapters whose layers are no plain LoRA on linear layers.
    """
    layers = _plain_layers(model)
    if not layers:
        yield
        return
    kept = []
    try:
        for layer in layers:
            weight = layer.get_base_layer().weight
            kept.append((weight, weight.data))
            (name,) = layer.active_adapters
            weight.data = weight.data + layer.get_delta_weight(name).to(weight.dtype)
        with model.disable_adapter():
            yield
    finally:
        for weight, data in kept:
            weight.data = data


def _plain_layers(model: PreTrainedModel | PeftModel) -> list[LoraLayer]:
    from peft import PeftModel
    from peft.tuners.lora import Linear, LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        return []
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    odd = [layer for layer in layers if not _is_plain(layer, Linear)]
    if odd or not layers:
        kind = type(odd[0]).__name__ if odd else "virtual tokens"
        raise ModelError(
            f"`merged: true` answers with an adapter added to the weights, but this one is {kind}.",
            fix="Remove `merged` from the eval; only plain LoRA on linear layers can be added.",
        )
    assert all(isinstance(layer, LoraLayer) for layer in layers)
    return layers


def _is_plain(layer: LoraLayer, linear: type[LoraLayer]) -> bool:
    """Whether the layer's update is a matrix of its weight's shape and nothing else: no DoRA, bias or variant."""
    if type(layer) != linear or len(layer.active_adapters) != 1:  # noqa: E721  `is` narrows to object
        return False
    (name,) = layer.active_adapters
    return not layer.lora_variant.get(name) and not layer.lora_bias.get(name)

"""Experts: parameters that are stacked in memory and kept apart in the files, and adapters made before that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch

from veritune.errors import ModelError, first_line
from veritune.train.adapters.places import AdapterPlan, plain_key
from veritune.train.tensors import Tensors

if TYPE_CHECKING:
    from veritune.train.adapters.reading import AdapterReading, Change, ExpectedChange


def parts_of(reading: AdapterReading, parameter: str, how: str, merge: Change) -> Iterator[ExpectedChange]:
    """What the merge must do to each part of a parameter that the base's files hold in parts.

    What merging adds must not depend on the other parts, so that only plain LoRA is split. Raises ModelError where
    the base has no such weight.
    """
    from veritune.train.adapters.reading import ExpectedChange

    base, plan = reading.base, reading.plan
    shape = (plan.parameters or {}).get(parameter)
    module = parameter.removesuffix(".weight")
    gone = ModelError(
        f"{module}: the base has no such weight: the adapter was made for another base.",
        fix="Name the base that the adapter was trained on.",
    )
    if base is None or shape is None or plan.model is None:
        raise gone
    delta = merge(torch.zeros(shape, dtype=torch.float64))
    for key, part in split(plan, {parameter: delta}).items():
        stored = base.exact(key) or base.key_of(key.removesuffix(".weight"))
        if stored is None:
            raise gone
        weight, added = base.whole(stored), part.contiguous()
        if weight.shape != added.shape:
            raise gone
        yield ExpectedChange(key.removesuffix(".weight"), key, weight, added, how, _Adds(added), stored)


class _Adds:
    """Adds a fixed change."""

    def __init__(self, delta: torch.Tensor) -> None:
        self.delta = delta

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.delta


def split(plan: AdapterPlan, stacked: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters as transformers writes them to files: experts separate, gate and up separate."""
    from transformers.core_model_loading import revert_weight_conversion

    parts: dict[str, torch.Tensor] = revert_weight_conversion(plan.model, dict(stacked))
    return parts


def converted(weights: Tensors, plan: AdapterPlan) -> Tensors:
    """An adapter whose modules have other names in this version of transformers (single experts), converted by PEFT.

    Unchanged where all its keys are what PEFT expects. Raises ModelError where PEFT cannot convert it.
    """
    lora = [k for k in weights.names if ".lora_" in k]
    if plan.peft is None or all(plain_key(k) in plan.expected for k in lora):
        return weights
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers
    except ImportError:  # an older PEFT, or transformers before 5, keeps the old names
        return weights
    given = {k: weights.exact_tensor(k) for k in weights.names}
    try:
        made = convert_peft_adapter_state_dict_for_transformers(plan.peft, plan.peft.peft_config["default"], given)
    except (ValueError, KeyError, RuntimeError, IndexError) as exc:
        raise ModelError(
            f"the adapter's experts cannot be read with this version of transformers: {first_line(exc)}.",
            fix="Merge it with the versions that it was trained with, and compare the two checkpoints.",
        ) from exc
    return weights.replaced({k: v for k, v in made.items() if given.get(k) is not v}, gone=set(given) - set(made))

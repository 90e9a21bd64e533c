"""Putting an adapter on a loaded base, and merging it, as PEFT does; the vocabulary is resized first where it was."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from veritune.errors import ModelError, first_line
from veritune.train.adapters.places import PREFIX, plain_key, vocabulary
from veritune.train.adapters.reading import WEIGHTS
from veritune.train.models import quiet_transformers
from veritune.train.tensors import Tensors

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def attach(base: PreTrainedModel, adapter: Path) -> PeftModel:
    """The adapter on a loaded base, in evaluation mode. The base is modified if the adapter's initialisation moved it.

    Raises ModelError when the adapter does not fit this base.
    """
    from peft import PeftModel

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (adapter / WEIGHTS).is_file():
                held = Tensors(adapter, WEIGHTS)
                rows = vocabulary(base, {plain_key(k): held.shape(k) for k in held.names})
                if rows is not None and rows != base.get_input_embeddings().weight.shape[0]:
                    base.resize_token_embeddings(rows, mean_resizing=False)
            return PeftModel.from_pretrained(base, adapter).eval()
    except (RuntimeError, ValueError, KeyError, NotImplementedError, IndexError, AttributeError, TypeError) as exc:
        lines = [line.strip() for line in str(exc).splitlines() if line.strip() and not line.endswith(":")]
        why = lines[0][:200].rstrip(".") if lines else first_line(exc)
        raise ModelError(
            f"{adapter} cannot be loaded on this base: {why}.", fix="Check that the adapter was trained on this base."
        ) from exc


def untie(base: PreTrainedModel, adapter: Path) -> bool:
    """Separate a base's tied input and output embeddings if a LoRA changes one of them; returns whether it did."""
    first, last = base.get_input_embeddings(), base.get_output_embeddings()
    if first is None or last is None or first.weight is not last.weight or not (adapter / WEIGHTS).is_file():
        return False
    named = {id(module): name for name, module in base.named_modules()}
    keys = Tensors(adapter, WEIGHTS).names
    adapted = [end for end in (first, last) if any(k.startswith(f"{PREFIX}{named[id(end)]}.lora_") for k in keys)]
    if len(adapted) != 1:
        return False
    last.weight = torch.nn.Parameter(first.weight.detach().clone(), requires_grad=first.weight.requires_grad)
    base.config.tie_word_embeddings = False
    base.config.get_text_config().tie_word_embeddings = False
    return True

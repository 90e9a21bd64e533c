"""From a condition to a trainable model: full fine-tuning, LoRA, QLoRA, or any PEFT method by its own config fields.

A new method goes here. Targets are resolved per architecture to the exact list of modules, and that list is recorded.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from veritune.config.study import Study
from veritune.config.train import Condition
from veritune.errors import StudyError, did_you_mean, first_line
from veritune.records import JsonLike, Trainable
from veritune.train import quantised
from veritune.train.adapters.config import MOVING, STILL
from veritune.train.models import ModelRef, bare, quiet_transformers
from veritune.train.modules import module_group, module_type

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch.nn import Parameter
    from transformers import PreTrainedModel

LORA_DEFAULTS: dict[str, JsonLike] = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0}


def check(name: str, condition: Condition) -> None:
    """Raises StudyError for a method that PEFT does not have, or a setting that the method's config does not have."""
    _check_start(name, condition)
    if condition.method == "full":
        return
    config = _config_class(name, condition.method)
    known = [f.name for f in dataclasses.fields(config)]
    if condition.method == quantised.QLORA:
        quantised.require_bitsandbytes()
        quantised.check_fields(name, condition)
        known += quantised.FIELDS
    for key in condition.options():
        if key not in known:
            hint = did_you_mean(key, known)
            fix = f"Rename or remove it; settings of {condition.method}: {', '.join(known)}."
            raise StudyError(f"conditions.{name}.{key}: unknown setting of {condition.method}{hint}.", fix=fix)


def _check_start(name: str, condition: Condition) -> None:
    """Raises StudyError for initial factors that take out of the base what no checkpoint holds: the run would train,
    and nobody could load it."""
    start = (condition.model_extra or {}).get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in (*STILL, *MOVING):
        known = ", ".join(value for value in (*STILL, *MOVING) if isinstance(value, str))
        raise StudyError(
            f"conditions.{name}.init_lora_weights: {start!r} moves the base by an amount that a checkpoint does "
            "not store.",
            fix=f"Use one of {known}, or true.",
        )


def check_regularised(study: Study) -> None:
    """Raises StudyError if penalties or noise would act differently with these devices or rows than on one device."""
    for name, condition in study.conditions.items():
        own = condition.regularised
        if own and study.train.devices > 1:
            raise StudyError(
                f"conditions.{name}.{own[0]}: it is supported on one device only, but train.devices is "
                f"{study.train.devices}.",
                fix="Set train.devices: 1.",
            )
        if condition.neftune_noise_alpha and study.train.padding_free:
            raise StudyError(
                f"conditions.{name}.neftune_noise_alpha: its noise is scaled by the length of a sequence, but "
                "train.padding_free joins several rows into one.",
                fix="Remove `padding_free`.",
            )


def learns_a_prompt(name: str, condition: Condition) -> bool:
    """Whether the method trains virtual tokens (prompt and prefix tuning, ...) and no weights of the model's
    modules."""
    from peft.config import PromptLearningConfig

    return condition.method != "full" and issubclass(_config_class(name, condition.method), PromptLearningConfig)


def build(
    name: str, condition: Condition, base: PreTrainedModel, seed: int
) -> tuple[PreTrainedModel | PeftModel, Trainable]:
    """The trainable model for one run, and what it trains. Adapter weights are initialised from `seed`.

    Raises StudyError when the targets match no module of this architecture.
    """
    import torch
    from peft import get_peft_model

    torch.manual_seed(seed)
    if condition.method == "full":
        model = base.float()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model, _count("full", {}, (), model)
    options = condition.options()
    modules: tuple[str, ...] = ()
    if condition.target_modules is not None:
        modules = targets(name, condition.target_modules, base)
        options["target_modules"] = list(_suffixes(modules, base))
    if condition.method in ("lora", quantised.QLORA):
        options = LORA_DEFAULTS | options
    if condition.method == quantised.QLORA:
        options = quantised.FIELDS | options
    adapter = {k: v for k, v in options.items() if k not in quantised.FIELDS}
    config = _config_class(name, condition.method)(task_type="CAUSAL_LM", **adapter)
    with quiet_transformers():
        model = get_peft_model(base, config)
    return model, _count(condition.method, options, modules, model)


def check_fits(name: str, condition: Condition, model: ModelRef) -> None:
    """Raises StudyError if `build` would fail on this model's architecture; no weights are loaded.

    The modules are made on the meta device: shapes and no values. What draws its first values from the base's weights
    (PiSSA, LoftQ) or from a tokenizer (prompt tuning) is not started; its targets and settings are checked.
    """
    from peft import get_peft_model

    if condition.method == "full":
        return
    options = condition.options()
    base = bare(model) if condition.target_modules is not None or condition.method == "lora" else None
    if base is not None and condition.target_modules is not None:
        options["target_modules"] = list(_suffixes(targets(name, condition.target_modules, base), base))
    adapter = {k: v for k, v in options.items() if k not in quantised.FIELDS}
    try:
        config = _config_class(name, condition.method)(task_type="CAUSAL_LM", **adapter)
        if base is not None and condition.method == "lora" and options.get("init_lora_weights", True) is True:
            with quiet_transformers():
                get_peft_model(base, config)
    except (NotImplementedError, ImportError, RuntimeError):
        return  # what cannot be done without values is tried by the live probe
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise StudyError(f"conditions.{name}: PEFT refuses these settings: {first_line(exc)}", fix=SETTINGS) from exc


SETTINGS = "Correct them by PEFT's documentation of the method's config class. Nothing has run."


def targets(name: str, wanted: str | tuple[str, ...], base: PreTrainedModel) -> tuple[str, ...]:
    """Full names of the linear modules that `wanted` matches in this architecture, in model order."""
    linear = _linear_names(base)
    if wanted in ("attention", "mlp"):
        found = [m for m in linear if module_group(m) == wanted]
    elif wanted == "all-linear":
        found = [m for m in linear if module_type(m) not in ("head", "embed")]
    else:
        names = (wanted,) if isinstance(wanted, str) else wanted
        found = [m for m in linear if any(m == n or m.endswith("." + n) for n in names)]
        unmatched = [n for n in names if not any(m == n or m.endswith("." + n) for m in linear)]
        if unmatched:
            known = sorted({m.rsplit(".", 1)[-1] for m in linear})
            raise StudyError(
                f"conditions.{name}.target_modules: no linear module named {unmatched[0]!r} in this model.",
                fix=f"Use attention, mlp, all-linear, or names of its modules: {', '.join(known)}.",
            )
    if not found:
        raise StudyError(
            f"conditions.{name}.target_modules: {wanted!r} matches no module of this model.",
            fix=f"Name them: {', '.join(sorted({m.rsplit('.', 1)[-1] for m in linear}))}.",
        )
    return tuple(found)


def _linear_names(base: PreTrainedModel) -> list[str]:
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in base.named_modules() if isinstance(module, Linear | Conv1D)]


def _suffixes(modules: tuple[str, ...], base: PreTrainedModel) -> tuple[str, ...]:
    """The shortest name endings that match exactly `modules` and no other linear module."""
    linear, wanted = _linear_names(base), set(modules)
    endings: list[str] = []
    for module in modules:
        parts = module.split(".")
        for k in range(1, len(parts) + 1):
            ending = ".".join(parts[-k:])
            if all(m in wanted for m in linear if m == ending or m.endswith("." + ending)):
                break
        if ending not in endings:
            endings.append(ending)
    return tuple(sorted(endings))


def _config_class(name: str, method: str) -> type[PeftConfig]:
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known: dict[str, type[PeftConfig]] = {
        kind.value.lower(): config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    known[quantised.QLORA] = known["lora"]
    if method not in known:
        hint = did_you_mean(method, [*known, "full"])
        raise StudyError(
            f"conditions.{name}.method: unknown method {method!r}{hint}.", fix="Use full, lora, qlora or a PEFT type."
        )
    assert issubclass(known[method], PeftConfig)
    return known[method]


def _count(
    method: str, options: dict[str, JsonLike], modules: tuple[str, ...], model: PreTrainedModel | PeftModel
) -> Trainable:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(_scalars(p) for p in model.parameters())
    return Trainable.of(method, options, modules, trainable, total)


def _scalars(parameter: Parameter) -> int:
    """Number of scalars a parameter stands for; a 4-bit one holds two or more in each stored number."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else int(parameter.numel())

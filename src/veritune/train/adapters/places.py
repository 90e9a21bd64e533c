"""Which weight of the base every tensor of an adapter's file belongs to.

PEFT decides: the base is built on the meta device (no memory, no weights), the adapter's config is applied to it, and
what PEFT made is read off: targets, excluded modules, patterns of rank and alpha, layers, experts and ties are matched
as PEFT matches them. Where transformers cannot build the base, or none is given, modules are matched by the names in
the file, with PEFT's own pattern rule.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from peft.utils.other import TrainableTokensWrapper, get_pattern_key

from veritune.errors import ModelError, first_line
from veritune.records import JsonLike
from veritune.train.adapters.config import CONFIG, LoraSettings
from veritune.train.models import quiet_transformers

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

PREFIX = "base_model.model."
Layer = Literal["linear", "embedding", "conv", "experts"]
FACTOR = re.compile(r"^(?P<module>.+?)\.lora_(?:embedding_)?[AB](?:\.weight)?$")
TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class LoraPlace:
    """One LoRA layer: where its factors are in the file, and the base's parameter that they change.

    `transposed`: the base stores [in, out] (Conv1D). `swapped`: a stack of experts stored as (expert, out, in).
    """

    module: str
    prefix: str
    parameter: str
    layer: Layer
    rank: int
    scale: float
    transposed: bool = False
    experts: int = 1
    swapped: bool = False
    has_bias: bool = True


@dataclass(frozen=True)
class TokenPlace:
    """Rows of an embedding (or of a tied head) that the adapter replaces; `key` holds the rows in the file."""

    parameter: str
    key: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class AdapterPlan:
    """An adapter's places on its base. `parameters` are the base's own with their shapes, None if the base could not be
    built.

    `expected` are the keys that PEFT looks for in the file; `tied` the base's input and output embedding where it
    keeps one tensor for both; `vocabulary` the rows that the adapter's embeddings have, where it holds any.
    """

    places: tuple[LoraPlace, ...]
    tokens: tuple[TokenPlace, ...]
    expected: frozenset[str]
    parameters: Mapping[str, tuple[int, ...]] | None
    tied: tuple[str, str] | None
    model: PreTrainedModel | None = None
    peft: PeftModel | None = None


def plain_key(key: str) -> str:
    """A key of the file in newer PEFT's spelling: DoRA's magnitude without its trailing `.weight`."""
    return key.removesuffix(".weight") if key.endswith(".lora_magnitude_vector.weight") else key


def on_meta() -> torch.device:
    """A context in which modules are built without memory."""
    return torch.device("meta")


def build(base: Path) -> PreTrainedModel | None:
    """The base on the meta device; None if transformers has no class for it (custom code, unknown type)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    except Exception:
        return None
    return model


def plan(settings: LoraSettings, shapes: Mapping[str, tuple[int, ...]], base: Path | None) -> AdapterPlan:
    """The places of every LoRA layer, of replaced rows and of modules saved in full.

    `shapes` are the file's tensors. Raises ModelError where PEFT cannot put this config on this base.
    """
    model = build(base) if base is not None else None
    if model is None:
        return _by_names(settings, shapes)
    _resize(model, shapes)
    parameters = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied = _tied(model)
    adapted = _adapted(settings, model)
    places = tuple(places_of(adapted))
    tokens = tuple(_tokens(adapted))
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = frozenset(map(plain_key, get_peft_model_state_dict(adapted, save_embedding_layers=False)))
    return AdapterPlan(places, tokens, expected, parameters, tied, model, adapted)


def peft_config(raw: Mapping[str, JsonLike], **instead: object) -> object:
    """A `LoraConfig` with only the fields that the installed PEFT knows."""
    from peft import LoraConfig

    known = {f.name for f in dataclasses.fields(LoraConfig)} - {"peft_type", "auto_mapping", "runtime_config"}
    fields = {name: value for name, value in raw.items() if name in known}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoraConfig(**{**fields, **instead})


def _adapted(settings: LoraSettings, model: PreTrainedModel) -> PeftModel:
    from peft import get_peft_model

    kept = {
        "init_lora_weights": True,
        "loftq_config": {},
        "eva_config": None,
        "corda_config": None,
        "lora_ga_config": None,
    }
    try:
        with quiet_transformers(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft_config(settings.raw, inference_mode=True, **kept)
            adapted: PeftModel = get_peft_model(model, config, low_cpu_mem_usage=True)
    except Exception as exc:
        raise ModelError(
            f"{settings.folder}: PEFT cannot put this adapter on this base (made for another base, or damaged):"
            f" {first_line(exc).rstrip('.')}.",
            fix="Name the base that the adapter was trained on, and use the config that was saved with it.",
        ) from exc
    return adapted


def _resize(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the base the vocabulary that the adapter's embeddings have."""
    rows = vocabulary(model, shapes)
    embedding = model.get_input_embeddings()
    if rows is not None and embedding is not None and embedding.weight.shape[0] != rows:
        with quiet_transformers(), torch.device("meta"):
            model.resize_token_embeddings(rows, mean_resizing=False)


def vocabulary(model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Number of embedding rows in an adapter's file: saved in full, saved along with it, or adapted by LoRA."""
    ends = [name for name, module in model.named_modules() if module in (
        model.get_input_embeddings(), model.get_output_embeddings()) and module is not None]  # fmt: skip
    for name in ends:
        for part in ("weight", "base_layer.weight", "modules_to_save.weight", "token_adapter.base_layer.weight"):
            shape = shapes.get(f"{PREFIX}{name}.{part}")
            if shape is not None:
                return shape[0]
        shape = shapes.get(f"{PREFIX}{name}.lora_embedding_A")
        if shape is not None:
            return shape[1]
    return None


def _tied(model: PreTrainedModel) -> tuple[str, str] | None:
    """The names of input and output embedding where they are one parameter."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    if first is None or last is None or first.weight is not last.weight:
        return None
    named = {id(module): name for name, module in model.named_modules()}
    return f"{named[id(first)]}.weight", f"{named[id(last)]}.weight"


def places_of(adapted: PeftModel) -> Iterable[LoraPlace]:
    """Every LoRA layer of a model that PEFT adapted."""
    from peft.tuners.lora.layer import Embedding, Linear, LoraLayer, ParamWrapper, _ConvNd

    kinds: tuple[tuple[type, Layer], ...] = (
        (ParamWrapper, "experts"), (Embedding, "embedding"), (_ConvNd, "conv"), (Linear, "linear"),
    )  # fmt: skip
    for name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer) or "default" not in layer.scaling:
            continue
        module = re.sub(r"\.(base_layer|modules_to_save\.default)(?=\.|$)", "", name.removeprefix(PREFIX))
        kind = next((kind for cls, kind in kinds if isinstance(layer, cls)), None)
        if kind is None:
            raise ModelError(
                f"{module}: LoRA on {type(layer.get_base_layer()).__name__} cannot be read.",
                fix="Merge the adapter with PEFT and compare the two checkpoints.",
            )
        parameter = layer.parameter_name if isinstance(layer, ParamWrapper) else "weight"
        yield LoraPlace(
            module=module,
            prefix=name,
            parameter=f"{module}.{parameter}",
            layer=kind,
            rank=int(layer.r["default"]),
            scale=float(layer.scaling["default"]),
            transposed=bool(getattr(layer, "fan_in_fan_out", False)) and kind == "linear",
            experts=int(getattr(layer, "num_experts", 1)),
            swapped=bool(getattr(layer, "_did_swap_in_out_features", False)),
            has_bias=getattr(layer.get_base_layer(), "bias", None) is not None,
        )


def _tokens(adapted: PeftModel) -> Iterable[TokenPlace]:
    wrappers = [(n, m) for n, m in adapted.named_modules() if isinstance(m, TrainableTokensWrapper)]
    own = {id(m.token_adapter): f"{n}{TOKENS}" for n, m in wrappers if m.token_adapter.tied_adapter is None}
    for name, wrapper in wrappers:
        adapter = wrapper.token_adapter
        source = adapter.tied_adapter if adapter.tied_adapter is not None else adapter
        rows = tuple(int(i) for i in source.token_indices["default"])
        module = re.sub(r"\.base_layer(?=\.|$)", "", name.removeprefix(PREFIX))
        yield TokenPlace(f"{module}.weight", own[id(source)], rows)


# ---------------------------------------------------------------- by the file's names alone


def _by_names(settings: LoraSettings, shapes: Mapping[str, tuple[int, ...]]) -> AdapterPlan:
    if settings.experts:
        raise ModelError(
            f"{settings.folder / CONFIG}: target_parameters needs the base, in an architecture that transformers "
            "has a class for.",
            fix="Name the base model's folder; for custom code, merge the adapter and compare the checkpoints.",
        )
    bare = [key for key in shapes if FACTOR.match(key) and not key.startswith(PREFIX)]
    if bare:
        raise ModelError(
            f"{settings.folder}: {bare[0]} does not begin with {PREFIX}, so PEFT would ignore it ({len(bare)} keys).",
            fix="Save the adapter with PEFT's save_pretrained.",
        )
    places = []
    for prefix in sorted({m["module"] for key in shapes if (m := FACTOR.match(key))}):
        module = prefix.removeprefix(PREFIX)
        embedded = f"{prefix}.lora_embedding_A" in shapes
        deep = len(shapes.get(f"{prefix}.lora_A.weight", ())) > 2
        layer: Layer = "embedding" if embedded else "conv" if deep else "linear"
        rank, scale = scaling(settings, module)
        places.append(
            LoraPlace(module, prefix, f"{module}.weight", layer, rank, scale, settings.transposed and not embedded)
        )
    tokens = []
    for key in shapes:
        if key.endswith(TOKENS):
            module = key.removeprefix(PREFIX).removesuffix(TOKENS)
            tokens.append(TokenPlace(f"{module}.weight", key, _rows_by_name(settings, module)))
    return AdapterPlan(tuple(places), tuple(tokens), frozenset(), None, None)


def scaling(settings: LoraSettings, module: str) -> tuple[int, float]:
    """Rank and scale of a module by PEFT's pattern rule: the first pattern p for which `(.*\\.)?(p)$` matches its
    name."""
    rank = settings.rank_pattern.get(get_pattern_key(list(settings.rank_pattern), module), settings.r)
    alpha = settings.alpha_pattern.get(get_pattern_key(list(settings.alpha_pattern), module), settings.alpha)
    return rank, alpha / math.sqrt(rank) if settings.rslora else alpha / rank


def _rows_by_name(settings: LoraSettings, module: str) -> tuple[int, ...]:
    asked = settings.raw.get("trainable_token_indices")
    if isinstance(asked, dict):
        asked = next((v for k, v in asked.items() if module == k or module.endswith("." + k)), None)
    if not isinstance(asked, list):
        raise ModelError(
            f"{settings.folder}: the adapter holds trained embedding rows of {module}, but adapter_config.json does "
            "not say of which tokens.",
            fix="Set trainable_token_indices as the training run did.",
        )
    return tuple(int(i) for i in asked)

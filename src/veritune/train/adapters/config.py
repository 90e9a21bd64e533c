"""What adapter_config.json says, field by field: honoured, without effect on a merge, or refused by name.

The fields are those of PEFT's `LoraConfig` (0.21). A field that is not in the table is refused when it holds anything:
a later PEFT may change the merged weights by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from veritune.errors import ModelError, first_line
from veritune.patterns import compiled
from veritune.records import Json, JsonLike
from veritune.untrusted import parse_json, read_bytes

CONFIG = "adapter_config.json"

HONOURED = frozenset(
    [
        "r",
        "lora_alpha",
        "rank_pattern",
        "alpha_pattern",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "bias",
        "modules_to_save",
        "lora_bias",
        "init_lora_weights",
        "trainable_token_indices",
        "target_modules",
        "exclude_modules",
        "target_parameters",
        "layers_to_transform",
        "layers_pattern",
        "ensure_weight_tying",
        "kasa_config",
        "use_bdlora",
    ]
)
"""Read here, or by PEFT's own matching of modules."""

WITHOUT_EFFECT = frozenset(
    [
        "peft_type",
        "peft_version",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "auto_mapping",
        "lora_dropout",
        "runtime_config",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "velora_config",
        "monteclora_config",
        "megatron_core",
        "qalora_group_size",
        "modules_to_tie",
        "target_modules_to_tie",
    ]
)
"""Only training reads them (dropout, VeLoRA's gradients, MonteCLoRA's samples), or they name things."""

REFUSED: Mapping[str, str] = {
    "megatron_config": "its layers are split over machines",
    "layer_replication": "the adapted model has more layers than the base",
    "alora_invocation_tokens": (
        "an activated LoRA acts only after its invocation tokens, which no merged weights can express"
    ),
    "arrow_config": "a router chooses among adapters for every token, which no merged weights can express",
    "use_qalora": "QALoRA's factors act on pooled inputs of a GPTQ base, which PEFT itself does not merge",
}
"""What cannot be put into merged weights, or is not read, and why."""

STILL = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
"""Initial factors that leave the base's weights where they are."""

MOVING = ("pissa", "olora")
"""Initial factors that PEFT takes out of the base's weights when it loads the adapter, computable from the base."""


@dataclass(frozen=True)
class LoraSettings:
    """The fields of a LoRA's config that determine what merging does. `raw` is the file as PEFT reads it."""

    folder: Path
    r: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rslora: bool
    dora: bool
    transposed: bool
    init: bool | str | None
    kasa: bool
    blocks: Mapping[str, object]
    experts: bool
    raw: Json


def read_config(folder: Path) -> Mapping[str, JsonLike]:
    """The JSON of adapter_config.json. Raises ModelError if the file is missing or holds no object."""
    path = folder / CONFIG
    if not path.exists():
        raise ModelError(
            f"{folder}: no {CONFIG}.", fix="Name the adapter's folder; for a full checkpoint, the checkpoint's."
        )
    try:
        config = parse_json(read_bytes(path))
    except (ValueError, OSError) as exc:
        raise ModelError(f"{path}: not valid JSON ({first_line(exc)}).", fix="Save the adapter again.") from exc
    if not isinstance(config, dict):
        raise ModelError(f"{path}: expected an object, found {type(config).__name__}.", fix="Save the adapter again.")
    return config


def settings(folder: Path) -> LoraSettings:
    """The typed fields of a LoRA's config.

    Raises ModelError for other adapter types, and for every field that is refused, of another type, or not known.
    """
    config = read_config(folder)
    _require_lora(folder, config)
    _refuse(folder, config)
    rank = _number(folder, config, "r")
    if rank != int(rank) or rank < 1:
        raise ModelError(f"{folder / CONFIG}: r: expected a whole number of at least 1, found {rank:g}.")
    ranks = {k: int(v) for k, v in _pattern(folder, config, "rank_pattern").items()}
    # Other tools write null for PEFT's default, and 8.0 for a rank; PEFT itself takes neither.
    raw = {name: value for name, value in config.items() if value is not None or name == "init_lora_weights"}
    return LoraSettings(
        folder=folder,
        r=int(rank),
        alpha=_number(folder, config, "lora_alpha"),
        rank_pattern=ranks,
        alpha_pattern=_pattern(folder, config, "alpha_pattern"),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        transposed=bool(config.get("fan_in_fan_out")),
        init=_initial(folder, config.get("init_lora_weights", True)),
        kasa=config.get("kasa_config") is not None,
        blocks=_object(folder, config, "use_bdlora"),
        experts=bool(config.get("target_parameters")),
        raw={**raw, "r": int(rank), "rank_pattern": dict(ranks)},
    )


def _require_lora(folder: Path, config: Mapping[str, JsonLike]) -> None:
    kind = config.get("peft_type")
    if kind == "PROMPT_TUNING":
        raise ModelError(f"{folder}: prompt tuning changes no weights; there is nothing to measure here.")
    if kind is None and ("lora_parameters" in config or "fine_tune_type" in config):
        raise ModelError(
            f"{folder}: expected a converted adapter, found MLX's own form.",
            fix="Name its folder to the command, which converts it.",
        )
    if kind != "LORA":
        raise ModelError(
            f"{folder}: the weight change of {kind} adapters cannot be read without merging; expected LORA.",
            fix="Merge the adapter and compare the two checkpoints.",
        )


def _refuse(folder: Path, config: Mapping[str, JsonLike]) -> None:
    for name, why in REFUSED.items():
        if config.get(name):
            raise ModelError(
                f"{folder / CONFIG}: {name} is set: {why}.",
                fix="Compare a merged checkpoint of it with the base: `veritune probe weights MERGED --base BASE`.",
            )
    known = HONOURED | WITHOUT_EFFECT | set(REFUSED)
    unknown = [name for name, value in config.items() if name not in known and value not in (None, False, [], {}, "")]
    if unknown:
        name = sorted(unknown)[0]
        raise ModelError(
            f"{folder / CONFIG}: unknown field {name} = {str(config[name])[:60]!r}, which may change what merging "
            f"does ({len(unknown)} such fields).",
            fix="Remove the field if it only describes the adapter; otherwise update veritune.",
        )


def _initial(folder: Path, value: object) -> bool | str | None:
    """`init_lora_weights`, lower case. Raises ModelError where the base moved by what no file here holds."""
    named = value.lower() if isinstance(value, str) else value
    if named in STILL or named in MOVING:
        return named
    told = {
        "corda": "by factors of a covariance that the adapter does not hold",
        "loftq": "by quantising it on a GPU",
        "lora_ga": "by factors of a gradient that the adapter does not hold",
    }
    moved = told.get(str(named)) or ("by a random decomposition" if str(named).startswith("pissa_niter_") else None)
    if moved is None:
        raise ModelError(f"{folder / CONFIG}: init_lora_weights = {value!r} is unknown.", fix="Update veritune.")
    raise ModelError(
        f"{folder / CONFIG}: init_lora_weights = {value!r} moves the base {moved}, so the adapter's change "
        "cannot be read.",
        fix="Save it with path_initial_model_for_weight_conversion (PEFT), which turns it into an ordinary LoRA; "
        "or give the residual base that was saved with it, and set init_lora_weights to true.",
    )


def _number(folder: Path, config: Json, name: str) -> float:
    value = config.get(name, 8)  # PEFT's default of r and of lora_alpha
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ModelError(f"{folder / CONFIG}: {name}: expected a number, found {value!r}.")
    return float(value)


def _pattern(folder: Path, config: Mapping[str, JsonLike], name: str) -> dict[str, float]:
    table = _object(folder, config, name)
    for key, value in table.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
            raise ModelError(f"{folder / CONFIG}: {name}[{key!r}]: expected a number above 0, found {value!r}.")
        try:
            compiled(key)
        except ValueError as exc:
            raise ModelError(f"{folder / CONFIG}: {name}: {key!r} is not a regular expression ({exc}).") from exc
    return {key: float(str(value)) for key, value in table.items()}


def _object(folder: Path, config: Mapping[str, JsonLike], name: str) -> dict[str, JsonLike]:
    value = config.get(name) or {}
    if not isinstance(value, dict):
        raise ModelError(f"{folder / CONFIG}: {name}: expected an object, found {str(value)[:60]!r}.")
    return value

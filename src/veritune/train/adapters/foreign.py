"""Adapters of other tools, written out once as PEFT writes them: MLX, Tinker, pickled PEFT files, several in a folder.

    adapter = peft_folder(folder).folder

PEFT (TRL, Axolotl, Unsloth, LLaMA-Factory, ms-swift; torchtune's Hugging Face checkpointer): read as it is.
MLX: `adapters.safetensors` with `lora_a` [in, r] and `lora_b` [r, out], W + scale (lora_a lora_b)^T, DoRA's `m`
(https://github.com/ml-explore/mlx-lm, mlx_lm/tuner/lora.py, dora.py).
Tinker: PEFT's names but for `unembed_tokens` (the head) and three-dimensional experts `w1`, `w2`, `w3`
(https://github.com/thinking-machines-lab/tinker-cookbook, merge_tinker_adapter_to_hf_model.py).
torchtune's own `adapter_0.pt` holds no alpha and another order of heads: refused by name.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from veritune.counting import many
from veritune.errors import ModelError, first_line
from veritune.records import JsonLike
from veritune.store import disk_errors, sha256_file
from veritune.train.adapters.config import CONFIG, read_config
from veritune.train.adapters.places import FACTOR, PREFIX
from veritune.train.adapters.reading import WEIGHTS
from veritune.train.models import cache_dir
from veritune.train.tensors import Tensors

MLX_WEIGHTS = "adapters.safetensors"
PICKLED = "adapter_model.bin"
EXPERTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")


@dataclass(frozen=True)
class PeftForm:
    """An adapter in PEFT's form: its folder, its original form, and what that form leaves open."""

    folder: Path
    shape: str
    notes: tuple[str, ...] = ()


def peft_folder(folder: Path) -> PeftForm:
    """The adapter in PEFT's form: the folder itself, or its conversion in the cache, keyed by the hash of its files."""
    found, notes = only_adapter(folder)
    parts = [p for p in sorted(found.iterdir()) if p.is_file() and p.name in (CONFIG, WEIGHTS, PICKLED, MLX_WEIGHTS)]
    digest = hashlib.sha256("".join(f"{p.name} {sha256_file(p)}" for p in parts).encode()).hexdigest()[:16]
    place = cache_dir() / "adapters" / digest
    with disk_errors(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=place.parent) as scratch:
            written = write_peft_form(found, Path(scratch) / "adapter")
            if written.folder == found:
                return replace(written, notes=notes)
            if not place.exists():
                written.folder.rename(place)
    return replace(written, folder=place, notes=(*notes, *written.notes))


def write_peft_form(folder: Path, out: Path) -> PeftForm:
    """Find the adapter in `folder`, and write it to `out` unless it is already in PEFT's form.

    Raises ModelError where there is none or more than one, and for what the form of another tool leaves out.
    """
    folder, notes = only_adapter(folder)
    if not (folder / CONFIG).is_file():
        raise _no_config(folder)
    config = read_config(folder)
    if (
        "lora_parameters" in config
        or "fine_tune_type" in config
        or ((folder / MLX_WEIGHTS).is_file() and not (folder / WEIGHTS).is_file())
    ):
        return PeftForm(_from_mlx(folder, config, out), "MLX", notes)
    if config.get("peft_type") != "LORA":
        return PeftForm(folder, "PEFT", notes)
    if not (folder / WEIGHTS).is_file():
        if not (folder / PICKLED).is_file():
            raise ModelError(f"{folder}: no {WEIGHTS} in it.", fix="Copy the adapter's files again.")
        return PeftForm(_from_pickle(folder, config, out), "PEFT, pickled", notes)
    held = Tensors(folder, WEIGHTS)
    if any(".unembed_tokens." in k or re.search(r"\.experts\.w[123]\.", k) for k in held.names):
        return PeftForm(_from_tinker(held, config, out), "Tinker", notes)
    if not config.get("target_modules") and not config.get("target_parameters"):
        tensors = {k: held.exact_tensor(k) for k in held.names}
        note = "adapter_config.json names no modules: those of the weights file are used"
        return PeftForm(_write(out, tensors, config), "PEFT", (*notes, note))
    return PeftForm(folder, "PEFT", notes)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder, or one below it, holds an adapter of any tool rather than a full checkpoint."""
    if (folder / CONFIG).is_file():
        return True
    whole = (folder / "config.json").is_file()
    return not whole and (any(folder.glob(f"*/{CONFIG}")) or any(folder.glob("adapter_*.pt")))


def only_adapter(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The folder itself if it holds an adapter, else the only adapter below it. Raises ModelError for several."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: expected an adapter's folder, found {'a file' if folder.exists() else 'nothing'}.")
    below = sorted(p.parent for p in folder.glob(f"*/{CONFIG}"))
    names = ", ".join(p.name for p in below[:4])
    if (folder / CONFIG).is_file():
        apart = [p for p in below if not p.name.startswith("checkpoint-")]
        note = f"{len(apart)} more adapters are in folders below and were not read: {names}"
        return folder, ((note,) if apart else ())
    if len(below) > 1:
        raise ModelError(
            f"{folder} holds {many(len(below), 'adapters')}: {names}.", fix=f"Name one of them, such as {below[0]}."
        )
    return (below[0], (f"the adapter is {below[0].name}, the only one in the folder",)) if below else (folder, ())


def _no_config(folder: Path) -> ModelError:
    pickles = sorted(p.name for p in folder.glob("adapter_*.pt"))
    if pickles:
        return ModelError(
            f"{folder}: {pickles[0]} is torchtune's own form, which lacks alpha and the base's order of heads, so "
            "it cannot be read without its recipe.",
            fix="Name the folder with adapter_model.safetensors and adapter_config.json that torchtune's Hugging "
            "Face checkpointer writes beside it.",
        )
    if (folder / "config.json").is_file():
        return ModelError(f"{folder}: expected an adapter, found a full checkpoint.", fix="Name the adapter's folder.")
    return ModelError(f"{folder}: no {CONFIG}.", fix="Name the folder in which the trainer saved the adapter.")


def _write(out: Path, tensors: Mapping[str, torch.Tensor], config: Mapping[str, JsonLike]) -> Path:
    """Write PEFT's two files; modules that the config does not name are those of the file."""
    out.mkdir(parents=True, exist_ok=True)
    modules = sorted({m["module"].removeprefix(PREFIX) for key in tensors if (m := FACTOR.match(key))})
    made = {**config, "target_modules": config.get("target_modules") or modules}
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / WEIGHTS, metadata={"format": "pt"})
    (out / CONFIG).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return out


def _from_pickle(folder: Path, config: Mapping[str, JsonLike], out: Path) -> Path:
    """adapter_model.bin, loaded as plain tensors: a pickle that wants to run code is refused."""
    try:
        held = torch.load(folder / PICKLED, map_location="cpu", weights_only=True)
    except Exception as exc:
        raise ModelError(
            f"{folder / PICKLED}: expected plain tensors ({first_line(exc)}).", fix="Save the adapter as safetensors."
        ) from exc
    if not isinstance(held, dict) or not all(isinstance(v, torch.Tensor) for v in held.values()):
        raise ModelError(f"{folder / PICKLED}: expected tensors by name.", fix="Save the adapter as safetensors.")
    return _write(out, {str(k): v for k, v in held.items()}, config)


def _from_tinker(held: Tensors, config: Mapping[str, JsonLike], out: Path) -> Path:
    """Tinker's names for the head and for experts, as PEFT named them."""
    made: dict[str, torch.Tensor] = {}
    oss = "gpt-oss" in str(config.get("base_model_name_or_path", "")).lower()
    for key in held.names:
        tensor = held.exact_tensor(key)
        name = key.replace("base_model.model.model.unembed_tokens.", f"{PREFIX}lm_head.")
        name = name.replace(".attn.", ".self_attn.") if oss else name
        expert = re.match(r"^(?P<layer>.*\.experts)\.(?P<part>w[123])\.(?P<factor>lora_[AB])\.weight$", name)
        if expert is None:
            made[name] = tensor
            continue
        other = key.replace(".lora_A.", ".lora_B.") if "lora_A" in key else key.replace(".lora_B.", ".lora_A.")
        if tensor.dim() != 3 or other not in held.names:
            raise ModelError(f"{key}: expected factors of experts with three dimensions, found {list(tensor.shape)}.")
        experts = max(tensor.shape[0], held.shape(other)[0])  # one side may be shared by all experts
        for e in range(experts):
            place = f"{expert['layer']}.{e}.{EXPERTS[expert['part']]}.{expert['factor']}.weight"
            made[place] = tensor[e if tensor.shape[0] > 1 else 0].clone()
    given = config.get("target_modules")
    named = isinstance(given, list) and not any(m in EXPERTS or m == "unembed_tokens" for m in given)
    leaves = sorted({m["module"].rpartition(".")[2] for key in made if (m := FACTOR.match(key))})
    return _write(out, made, {**config, "target_modules": given if named else leaves})


def _from_mlx(folder: Path, config: Mapping[str, JsonLike], out: Path) -> Path:
    """MLX's `lora_a` and `lora_b`, transposed, with alpha = scale x rank."""
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise ModelError(
            f"{folder}: an MLX fine-tune of type {kind!r} is not an adapter.",
            fix="Compare its checkpoint with the base instead.",
        )
    asked = config.get("lora_parameters")
    asked = asked if isinstance(asked, dict) else {}
    if "alpha" in asked and "scale" in asked:
        raise ModelError(
            f"{folder / CONFIG}: lora_parameters has both alpha and scale: older MLX multiplies by scale x alpha / "
            "rank, newer by scale alone.",
            fix="Keep one value under scale, as the MLX version of the run used it: scale, or scale x alpha / rank.",
        )
    scale = asked.get("scale")
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ModelError(
            f"{folder / CONFIG}: lora_parameters.scale: expected a number, found {scale!r}.",
            fix="Add the scale that the run used (mlx_lm's default was 10 and is 20).",
        )
    held = Tensors(folder, MLX_WEIGHTS)
    made: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    for key in held.names:
        _mlx_tensor(key, held.exact_tensor(key), made, ranks)
    usual = max(set(ranks.values()), key=list(ranks.values()).count) if ranks else 1
    odd = {f"^{re.escape(m)}": r for m, r in ranks.items() if r != usual}
    peft = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": config.get("model"),
        "r": usual, "lora_alpha": scale * usual, "use_dora": kind == "dora", "rank_pattern": odd,
        "alpha_pattern": {m: scale * r for m, r in odd.items()}, "target_modules": sorted(ranks),
    }  # fmt: skip
    return _write(out, made, peft)


def _mlx_tensor(key: str, tensor: torch.Tensor, made: dict[str, torch.Tensor], ranks: dict[str, int]) -> None:
    module, _, part = key.rpartition(".")
    if part not in ("lora_a", "lora_b", "m"):
        raise ModelError(
            f"{MLX_WEIGHTS}: {key} is not a factor of an MLX adapter.",
            fix="Compare a fused checkpoint with the base instead.",
        )
    if module.rpartition(".")[2] in EMBEDDINGS:
        raise ModelError(f"{MLX_WEIGHTS}: embedding factors ({key}) would also act on a tied head and cannot be read.",
                         fix="Fuse it with mlx_lm.fuse and compare the checkpoints.")  # fmt: skip
    if part != "m" and tensor.dim() != 2:
        raise ModelError(f"{MLX_WEIGHTS}: experts of an MLX adapter ({key}) cannot be read.",
                         fix="Fuse it with mlx_lm.fuse and compare the checkpoints.")  # fmt: skip
    if part == "lora_a":
        ranks[module] = int(tensor.shape[1])
    names = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
    made[f"{PREFIX}{module}.{names[part]}"] = tensor if part == "m" else tensor.t()

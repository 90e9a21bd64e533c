"""Is a GGUF file the merged model? Its tensors, settings, tokenizer and template; `gguf_run` asks what it answers.

    convert(converter, merged, out, "bf16")    llama.cpp's convert_hf_to_gguf.py, which the user names
    check_file("model.gguf", merged, base)     the file against the merged safetensors

Tensors are dequantised by the package `gguf` (llama.cpp's own) and names mapped by it. A Llama's query and key rows are
interleaved in the file (its rotary pairs are neighbours, Hugging Face's are halves); that is undone, and a file where
it was forgotten is named. Unquantised tensors must be equal after rounding. For quantised ones the error is compared
with what so many bits leave, and the change from the base is regressed on the merged model's, so that a file made from
other weights is named where its error looks like that of quantising.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.thresholds import DEFAULTS, MergeThresholds
from veritune.data.text import first_difference
from veritune.errors import InputError, MachineError, ModelError, first_line
from veritune.records import Finding, JsonValue
from veritune.release.parity.merge import MergePart, weights_error
from veritune.store import read_json
from veritune.train.tensors import Tensors

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from veritune.train.tensors import Tensors

EXACT = ("F32", "F16", "BF16")
TYPES = ("f32", "f16", "bf16", "q8_0")
INTERLEAVED = ("llama",)
"""Architectures whose query and key rows the reference converter interleaves."""
PLAIN = ("qwen2", "qwen3", "gpt2", "phi2", "olmo2", "smollm3", "starcoder2")
"""Architectures known to keep their rows as they are."""
MADE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that a converter computes from the settings."""
CONVERT_S = 3600


def error_limit(kind: str) -> float:
    """Largest relative error (Frobenius) that a quantised type can cause: 1.2 x 2^(1 - bits)."""
    digits = re.search(r"\d+", kind)
    return 1.2 * 2.0 ** (1 - int(digits.group())) if digits else 0.0


@dataclass(frozen=True, slots=True)
class TensorRead:
    """One tensor: its type in the file, its relative error against the merged weight, and the cause of the error."""

    name: str
    kind: str
    error: float | None
    reading: str


def convert(converter: Path, merged: Path, out: Path, kind: str) -> Path:
    """Run the reference converter on the merged folder in a separate process; returns the file.

    Raises InputError where it is no file, MachineError with its last line where it fails.
    """
    if not converter.is_file():
        raise InputError(f"--converter {converter}: no such file.", fix="Name llama.cpp's convert_hf_to_gguf.py.")
    if kind not in TYPES:
        raise InputError(f"--gguf-type: expected one of {', '.join(TYPES)}, found {kind!r}.")
    command = [sys.executable, str(converter), str(merged), "--outfile", str(out), "--outtype", kind]
    env = {k: os.environ[k] for k in ("PATH", "HOME", "PYTHONPATH", "LANG", "TMPDIR") if k in os.environ}
    env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=CONVERT_S, env=env, check=False
        )
    except subprocess.TimeoutExpired:
        raise MachineError(f"{converter.name} took more than {CONVERT_S} s.") from None
    if done.returncode != 0 or not out.is_file():
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
        raise MachineError(
            f"{converter.name} failed with exit code {done.returncode}: {last.strip()[:200]}.",
            fix="Correct the error that it reports (its requirements file is beside it), or convert elsewhere: "
            "--export FILE.gguf.",
        )
    return out


# ---------------------------------------------------------------- the file


def check_file(
    path: Path, merged: Path, base: Path | None = None, limits: MergeThresholds = DEFAULTS.merge
) -> MergePart:
    """Compare the file with the merged folder; with `base`, known faults of the change itself are named.

    Raises ModelError for a file that is no GGUF and a merged folder without safetensors or tokenizer.
    """
    from transformers import AutoConfig

    file = GgufFile(path)
    config = AutoConfig.from_pretrained(merged)
    tensors, findings = _tensors(file, merged, base, config, limits)
    findings += _settings(file, config) + _vocabulary(file, merged, config)
    errors = [f for f in findings if f.severity == "error"]
    kinds = sorted({t.kind for t in tensors} - {"none"})
    read = [t for t in tensors if t.error is not None]
    largest = max((t.error or 0.0 for t in read), default=0.0)
    good = sum(t.reading == "same" for t in tensors)
    message = (
        f"{good} of {len(tensors)} tensors are the merged model's ({', '.join(kinds)}; largest error {largest:.2g})"
    )
    if errors:
        message = f"{errors[0].message}; {message}"
    unread = [t.name for t in tensors if t.reading == "unknown layout"]
    status: Any = "failed" if errors else "undecided" if unread else "passed"
    lines = tuple(f"{'x' if f.severity == 'error' else '!'} {f.message}" for f in findings)
    numbers = {
        "file": path.name,
        "architecture": file.architecture,
        "types": {k: sum(t.kind == k for t in tensors) for k in kinds},
        "largest_error": largest,
        "findings": [f.check for f in findings],
        "exact": set(kinds) <= set(EXACT),
        "unread": len(unread),
    }
    return MergePart("gguf", status, message, lines, tuple(findings), numbers)


class GgufFile:
    """A GGUF file's fields and tensors. Raises ModelError for a file that cannot be read."""

    def __init__(self, path: Path) -> None:
        import gguf

        if not path.is_file():
            raise InputError(f"{path}: no such file.", fix="Name a GGUF file.")
        try:
            reader = gguf.GGUFReader(path)
            self.fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except Exception as exc:  # a damaged file raises nearly anything
            first = first_line(exc)
            raise ModelError(f"{path}: cannot be read as GGUF ({first}).", fix="Convert the model again.") from None
        self.path = path
        self.tensors = {t.name: t for t in reader.tensors}
        self.architecture = str(self.fields.get("general.architecture"))

    def setting(self, key: str) -> JsonValue:
        """A setting of the architecture; None if the file has none."""
        return self.fields.get(f"{self.architecture}.{key}")

    def values(self, name: str) -> torch.Tensor:
        """A tensor in float32, rows first. Raises ModelError if its type cannot be read."""
        import gguf
        import torch

        tensor = self.tensors[name]
        try:
            flat = gguf.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as exc:
            raise ModelError(f"{name}: type {tensor.tensor_type.name} cannot be read ({exc}).") from None
        return torch.from_numpy(flat.copy()).reshape(*reversed(tensor.shape.tolist()))

    def kind(self, name: str) -> str:
        """The tensor's type, such as `Q8_0`."""
        return str(self.tensors[name].tensor_type.name)


def _names(file: GgufFile, names: Sequence[str], blocks: int) -> dict[str, str | None]:
    """The file's name of every tensor, by the merged model's; None where `gguf` knows none."""
    import gguf

    known = {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}
    if file.architecture not in known:
        raise ModelError(
            f"{file.path}: architecture {file.architecture!r} is unknown to gguf.", fix="Install a newer gguf."
        )
    mapping = gguf.get_tensor_name_map(known[file.architecture], blocks)
    return {name: mapping.get_name(name, try_suffixes=(".weight", ".bias")) for name in names}


def _tensors(
    file: GgufFile, merged: Path, base: Path | None, config: PretrainedConfig, limits: MergeThresholds
) -> tuple[list[TensorRead], list[Finding]]:
    """Every tensor of the merged model in the file, and every tensor of the file in the merged model."""
    ours = Tensors(merged)
    before = Tensors(base) if base is not None else None
    blocks = int(getattr(config, "num_hidden_layers", 0))
    names = _names(file, ours.names, blocks)
    tied = bool(getattr(config, "tie_word_embeddings", False))
    known = file.architecture in (*INTERLEAVED, *PLAIN)
    read, missing = [], []
    for ours_name, name in names.items():
        if name in file.tensors:
            read.append(_read(file, str(name), (ours_name, ours, before), config, limits))
        elif not (tied and name == "output.weight"):
            missing.append(ours_name)
    found = []
    if not known:  # tensors may be joined or split there, so that a name alone says nothing
        return [*read, *(TensorRead(name, "none", None, "unknown layout") for name in missing)], _readings(read)
    if missing:
        message = f"{missing[0]} of the merged model is missing in the file ({len(missing)} tensors)"
        found.append(weights_error("gguf.tensor_missing", message, missing))
    added = [n for n in file.tensors if n not in set(names.values()) and n not in MADE]
    if added:
        message = f"{added[0]} of the file is not in the merged model ({len(added)} tensors)"
        if not (tied and added == ["output.weight"]):
            found.append(weights_error("gguf.tensor_added", message, added))
    return read, [*found, *_readings(read)]


def _readings(read: Sequence[TensorRead]) -> list[Finding]:
    found = []
    for reading in sorted({t.reading for t in read} - {"same"}):
        those = [t for t in read if t.reading == reading]
        names = ", ".join(t.name for t in those[:3]) + (", ..." if len(those) > 3 else "")
        message = f"{len(those)} of {len(read)} tensors: {_WORDS[reading]}: {names}"
        unknown = reading == "unknown layout"
        check = f"gguf.{reading.replace(' ', '_')}"
        evidence = {"weights": [t.name for t in those], "error": [t.error for t in those]}
        found.append(Finding(check, "warning" if unknown else "error", message, evidence=evidence))
    return found


_WORDS = {
    "not applied": "they are the base's: the adapter is not in them",
    "applied twice": "the adapter's change is in them twice",
    "wrong scaling": "the adapter's change is in them with another scaling",
    "not interleaved": "the query and key rows were not interleaved for llama.cpp's rotary embedding",
    "other values": "they have other values than the merged model",
    "other shape": "they have another shape than in the merged model",
    "unknown layout": "this architecture may order their rows differently, so they were not compared",
}


def _read(
    file: GgufFile,
    name: str,
    where: tuple[str, Tensors, Tensors | None],
    config: PretrainedConfig,
    limits: MergeThresholds,
) -> TensorRead:
    """Compare one tensor; see `TensorRead`."""
    ours_name, ours, before = where
    kind, found = file.kind(name), file.values(name).double()
    right = ours.whole(ours_name)
    if tuple(found.shape) != tuple(right.shape):
        return TensorRead(name, kind, None, "other shape")
    heads = _heads(ours_name, file.architecture, config)
    laid = right if heads is None else interleave(right, heads)
    error = _distance(found, laid, kind)
    if error <= (0.0 if kind in EXACT else error_limit(kind)):
        base = None if before is None or ours_name not in before.names else before.whole(ours_name)
        if base is None or kind in EXACT or base.shape != right.shape:
            return TensorRead(name, kind, error, "same")
        before_laid = base if heads is None else interleave(base, heads)
        return TensorRead(name, kind, error, _change(found, laid, before_laid, limits))
    if heads is not None and _distance(found, right, kind) <= max(error_limit(kind), 0.0):
        return TensorRead(name, kind, error, "not interleaved")
    if before is not None and ours_name in before.names and before.shape(ours_name) == tuple(right.shape):
        base = before.whole(ours_name)
        reading = _change(found, laid, base if heads is None else interleave(base, heads), limits)
        if reading != "same":
            return TensorRead(name, kind, error, reading)
    known = file.architecture in (*INTERLEAVED, *PLAIN)
    return TensorRead(name, kind, error, "other values" if known else "unknown layout")


def _distance(found: torch.Tensor, right: torch.Tensor, kind: str) -> float:
    """|found - right| / |right|; for an unquantised type `right` is rounded to it first, so that equal is 0."""
    import torch

    if kind in EXACT:
        right = right.to({"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]).double()
    size = float(torch.linalg.vector_norm(right))
    return float(torch.linalg.vector_norm(found - right)) / (size or 1.0)


def _change(found: torch.Tensor, right: torch.Tensor, base: torch.Tensor, limits: MergeThresholds) -> str:
    """Whose change from the base is in `found`: regressed on the merged model's, with its standard error.

    `same` where the merged model changed nothing here, and where quantising leaves too much noise to tell.
    """
    asked, change = right - base, found - base
    size = float(asked.square().sum())
    if size == 0.0:
        return "same"
    scale = float((change * asked).sum()) / size
    se = (float((found - right).square().sum()) / size / found.numel()) ** 0.5
    near = max(limits.close, limits.twice, limits.scale_errors * se)
    if abs(scale - 1) <= near or se > limits.scale_error:
        return "same"
    if abs(scale) <= near:
        return "not applied"
    return "applied twice" if abs(scale - 2) <= near else "wrong scaling"


def _heads(name: str, architecture: str, config: PretrainedConfig) -> int | None:
    """How many heads interleave a tensor's rows; None for tensors whose rows stay."""
    if architecture not in INTERLEAVED:
        return None
    if re.search(r"\bq_proj\.(weight|bias)$", name):
        return int(config.num_attention_heads)
    if re.search(r"\bk_proj\.(weight|bias)$", name):
        return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    return None


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of each head from halves (first half, second half) to pairs (one of each), as llama.cpp's rotary
    embedding needs.
    """
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


# ---------------------------------------------------------------- settings and tokenizer


def _settings(file: GgufFile, config: PretrainedConfig) -> list[Finding]:
    """What the file says of the model's shape and arithmetic, against config.json."""
    rope = getattr(config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    pairs = {
        "block_count": getattr(config, "num_hidden_layers", None),
        "context_length": getattr(config, "max_position_embeddings", None),
        "embedding_length": getattr(config, "hidden_size", None),
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "attention.head_count": getattr(config, "num_attention_heads", None),
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None),
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None),
        "rope.freq_base": theta or getattr(config, "rope_theta", None),
    }
    found = []
    for key, right in pairs.items():
        value = file.setting(key)
        if right is None or value is None:
            continue
        if not isinstance(value, (int, float)) or abs(value - right) > 1e-5 * abs(right):
            found.append(weights_error("gguf.setting", f"{key} is {value} in the file, {right} in config.json"))
    return found


def _vocabulary(file: GgufFile, merged: Path, config: PretrainedConfig) -> list[Finding]:
    """Tokens, merges, end and begin tokens and the chat template, each difference by name."""
    from transformers import AutoTokenizer, GenerationConfig

    try:
        tokenizer = AutoTokenizer.from_pretrained(merged)
    except Exception as exc:  # transformers raises many kinds
        first = first_line(exc)
        raise ModelError(
            f"{merged}: the tokenizer beside the merged model cannot be loaded ({first}).",
            fix="Copy the base model's tokenizer files into the folder.",
        ) from None
    found = [*_tokens(file, tokenizer), *_merges(file, merged)]
    try:
        stops = GenerationConfig.from_pretrained(merged).eos_token_id
    except OSError:
        stops = getattr(config, "eos_token_id", None)
    stop_ids = {i for i in [*(stops if isinstance(stops, list) else [stops]), tokenizer.eos_token_id] if i is not None}
    eos = file.fields.get("tokenizer.ggml.eos_token_id")
    named = {file.fields.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")} - {None}
    if eos not in stop_ids:
        found.append(
            weights_error("gguf.eos", f"the end token is {eos} in the file, {sorted(stop_ids)} in the merged model")
        )
    elif stop_ids - named:
        message = f"the merged model also stops at {sorted(stop_ids - named)}, which the file does not name"
        found.append(Finding("gguf.eos_more", "warning", message))
    begins = bool((tokenizer("a").input_ids or [None])[0] == tokenizer.bos_token_id is not None)
    adds = file.fields.get("tokenizer.ggml.add_bos_token")
    if adds is None:
        adds = file.fields.get("tokenizer.ggml.model") == "llama"
    if bool(adds) != begins:
        message = (
            f"the file {'adds' if adds else 'adds no'} begin token, but the merged model's tokenizer does the opposite"
        )
        found.append(weights_error("gguf.add_bos", message))
    return [*found, *_template(file.fields.get("tokenizer.chat_template"), tokenizer.chat_template)]


def _template(found: str | None, right: str | None) -> list[Finding]:
    if found == right:
        return []
    if found is None or right is None:
        side = "file" if found is None else "merged model"
        return [weights_error("gguf.template", f"the {side} has no chat template")]
    at = first_difference(found, right)
    message = f"the chat template differs at character {at}: {found[at : at + 20]!r}, merged {right[at : at + 20]!r}"
    return [weights_error("gguf.template", message)]


def _tokens(file: GgufFile, tokenizer: PreTrainedTokenizerBase) -> list[Finding]:
    tokens = file.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list):
        return [weights_error("gguf.vocabulary", "the file has no vocabulary")]
    size = len(tokenizer)
    right = tokenizer.convert_ids_to_tokens(list(range(size)))
    padded = tokens[size:]
    found = []
    if len(tokens) < size or any(not re.fullmatch(r"\[PAD\d+\]", str(t)) for t in padded):
        found.append(weights_error("gguf.vocabulary", f"the file has {len(tokens)} tokens, the tokenizer {size}"))
    other = [i for i, (a, b) in enumerate(zip(tokens, right)) if a != b]
    if other:
        i = other[0]
        message = f"token {i} is {tokens[i]!r} in the file, {right[i]!r} in the tokenizer ({len(other)} tokens)"
        found.append(weights_error("gguf.vocabulary", message))
    return found


def _merges(file: GgufFile, merged: Path) -> list[Finding]:
    """The merges of a byte-pair tokenizer, in their order: another order makes other tokens of the same text."""
    path, found = merged / "tokenizer.json", file.fields.get("tokenizer.ggml.merges")
    if not path.is_file() or found is None:
        return []
    model = read_json(path, finite=False).get("model") or {}
    right = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    if not right or found == right:
        return []
    at = first_difference(found, right)
    message = f"merge {at} of {len(found)} differs from the tokenizer's ({len(right)} merges)"
    return [weights_error("gguf.merges", message)]

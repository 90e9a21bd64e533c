"""The model that is probed: a base, and beside it an adapter or a full checkpoint that was trained from it.

    found = subject("models/base", "runs/.../checkpoint-72")
    before, after = found.base(), found.trained()

What does not belong together is refused by name: PEFT loads the part of an adapter that fits and warns about the rest,
and numbers of a model that is half untrained look like any others.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from veritune.config.thresholds import DEFAULTS
from veritune.config.train import Model
from veritune.data.render import Renderer
from veritune.errors import ModelError, first_line
from veritune.records import JsonValue, Rendered
from veritune.train.adapters.foreign import holds_adapter, peft_folder
from veritune.train.models import ModelRef, load_base, load_tokenizer, quiet_transformers, resolve
from veritune.train.tensors import Tensors
from veritune.untrusted import parse_json, read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPARED = 6
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class ProbeSubject:
    """A base model, what was trained from it (an adapter's folder or a full checkpoint's; None: only the base), and the
    tokenizer's renderer.
    """

    ref: ModelRef
    adapter: Path | None
    renderer: Renderer

    @property
    def is_checkpoint(self) -> bool:
        """Whether the trained part is a full checkpoint."""
        return self.adapter is not None and not is_adapter(self.adapter)

    def base(self) -> PreTrainedModel:
        """The base model. Raises ModelError if it cannot be loaded or, if quantised, cannot be run here."""
        return _loaded(self.ref)

    def base_loss(self) -> Literal["self"] | Callable[[Sequence[Rendered]], float] | None:
        """Where `probe_gradients` finds the base's loss: the subject is the base, the base is a separate model, or the
        adapter can be switched off.
        """
        from veritune.probe.memorization import row_losses

        if self.adapter is None:
            return "self"
        if not self.is_checkpoint:
            return None
        return lambda rows: sum(row_losses(self.base(), rows)) / len(rows)

    def trained(self) -> PreTrainedModel:
        """The base with its adapter, or the full checkpoint.

        Raises ModelError when it was made from another base, is quantised where the base is not, or is neither.
        """
        if self.adapter is None:
            return self.base()
        refuse_other(self.adapter, self.ref.path)
        if is_adapter(self.adapter):
            return _with_adapter(self.base(), self.adapter, self.ref)
        return _loaded(replace(self.ref, name=str(self.adapter), path=self.adapter))


def subject(
    model: str,
    adapter: str | Path | None = None,
    *,
    dtype: str = "bfloat16",
    max_length: int = 2048,
    template_kwargs: Mapping[str, JsonValue] | None = None,
) -> ProbeSubject:
    """Find a base model and what was trained from it, and check by their files that they belong together.

    Raises ModelError, before a weight is loaded where files can tell.
    """
    settings = Model.model_validate({"path": model, "dtype": dtype, "template_kwargs": template_kwargs or {}})
    ref = resolve(settings, Path())
    trained = Path(adapter) if adapter else None
    if trained is not None and holds_adapter(trained):
        trained = peft_folder(trained).folder
    if trained is not None:
        refuse_other(trained, ref.path)
    return ProbeSubject(ref, trained, Renderer(load_tokenizer(ref), max_length, template_kwargs=ref.template_kwargs))


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter."""
    return (folder / "adapter_config.json").is_file()


# ---------------------------------------------------------------- loading


def quantisation(folder: Path) -> str | None:
    """The quantisation method of a checkpoint (`bitsandbytes`, `gptq`, ...), None if it is not quantised."""
    found = _json(folder / "config.json").get("quantization_config")
    return None if not isinstance(found, dict) else str(found.get("quant_method") or "method not named")


def _loaded(ref: ModelRef) -> PreTrainedModel:
    method = quantisation(ref.path)
    if method is None:
        return load_base(ref)
    why = f"{ref.path} is quantised ({method})"
    try:
        model = load_base(ref)
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
    except ModelError as exc:
        raise ModelError(f"{why} and cannot be loaded here: {exc.message}", fix="Name the unquantised model.") from None
    except (RuntimeError, ValueError, ImportError, NotImplementedError) as exc:
        raise ModelError(f"{why} and cannot be run here: {_first(exc)}.", fix="Name the unquantised model.") from None
    return model


def _with_adapter(base: PreTrainedModel, folder: Path, ref: ModelRef) -> PreTrainedModel:
    from peft import PeftModel

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what did not fit is looked for below, and is an error
            model = PeftModel.from_pretrained(base, folder, is_trainable=True).eval()
    except (RuntimeError, ValueError, KeyError, TypeError, OSError) as exc:
        raise ModelError(
            f"{folder} does not fit {ref.path}: {_misfit(exc)}.", fix="Name the base that it was trained on."
        ) from None
    _refuse_partly_loaded(model, folder, ref)
    return model


def _refuse_partly_loaded(model: PreTrainedModel, folder: Path, ref: ModelRef) -> None:
    """PEFT drops weights for modules that the base lacks, and leaves modules that the file lacks as they were drawn."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise ModelError(f"{folder}: no adapter_model.safetensors.", fix="Save the adapter as safetensors.")
    with safe_open(str(file), framework="pt") as opened:
        held = {k for k in opened.keys() if ".base_layer." not in k}  # noqa: SIM118 - not a mapping
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        wanted = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    whole = set(model.state_dict())
    strange = sorted(k for k in held - wanted if k not in whole)
    absent = sorted(wanted - held)
    for names, what in ((strange, "weights for modules that the base lacks"), (absent, "no weights for modules of it")):
        if names:
            raise ModelError(
                f"{folder} does not fit {ref.path}: it holds {what} ({len(names)}, first {names[0]}).",
                fix="Name the base that it was trained on.",
            )


def _misfit(exc: BaseException) -> str:
    """What does not fit, out of torch's many lines."""
    found = re.search(r"size mismatch for (\S+): .*?Size\((\[[^\]]*\]).*?Size\((\[[^\]]*\])", str(exc), re.DOTALL)
    if found is None:
        return _first(exc)
    return f"{found.group(1)} has shape {found.group(2)} in the adapter, but the base needs {found.group(3)}"


def _first(exc: BaseException) -> str:
    return first_line(exc).rstrip(".:")


# ---------------------------------------------------------------- what belongs together


def refuse_other(trained: Path, base: Path) -> None:
    """Raises ModelError if, judging by its files, the adapter or checkpoint was not trained from `base`."""
    if is_adapter(trained):
        refuse_other_base(trained, base)
    else:
        _require_checkpoint(trained)
        _refuse_other_checkpoint(trained, base)


def refuse_other_base(adapter: Path, base: Path) -> None:
    """Raises ModelError if the base that the adapter names is on this disk and has other weights than `base`.

    An adapter fits any base of the same shape, so that shapes alone do not tell. A named base that is not here cannot
    be compared.
    """
    named = _json(adapter / "adapter_config.json").get("base_model_name_or_path")
    other = Path(named) if isinstance(named, str) and named else base
    if not (other / "config.json").is_file() or other.resolve() == base.resolve():
        return
    if quantisation(other) is not None or quantisation(base) is not None:
        return
    found = _first_difference(other, base)
    if found is not None:
        raise ModelError(
            f"{adapter} was trained on {other}, but {base} is a different model: {found}.",
            fix="Name the base that it was trained on.",
        )


def _require_checkpoint(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds neither adapter_config.json nor config.json.",
            fix="Name the folder of an adapter, or of a full checkpoint.",
        )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(f"{folder} holds no *.safetensors.", fix="Save the checkpoint as safetensors.")


def _refuse_other_checkpoint(checkpoint: Path, base: Path) -> None:
    after, before = quantisation(checkpoint), quantisation(base)
    if after != before:
        raise ModelError(
            f"{checkpoint} is {_said(after)} and {base} {_said(before)}: changes by rounding could not be "
            "distinguished from changes by training.",
            fix="Give both models in the form before quantisation.",
        )
    if after is not None:
        return
    old, new = Tensors(base), Tensors(checkpoint)
    found = _other_shape(old, new)
    if found is not None:
        raise ModelError(
            f"{checkpoint} was not trained from {base}: {found}.", fix="Name the base that it was trained from."
        )


def _said(method: str | None) -> str:
    return "not quantised" if method is None else f"quantised ({method})"


def _other_shape(one: Tensors, two: Tensors) -> str | None:
    """The first weight that only one side has, a head beside tied embeddings left out, or that differs in shape."""
    apart = sorted((set(one.names) ^ set(two.names)) - {HEAD})
    if apart:
        return f"{apart[0]} is in only one of them"
    for name in one.names:
        if name in two.names and one.shape(name) != two.shape(name):
            return f"{name} has shape {list(one.shape(name))} in one, {list(two.shape(name))} in the other"
    return None


def _first_difference(one: Path, two: Path) -> str | None:
    """The first weight by which two folders differ, beyond the rounding of half precision; a few of them are read."""
    a, b = Tensors(one), Tensors(two)
    shape = _other_shape(a, b)
    if shape is not None:
        return shape
    matrices = [n for n in a.names if len(a.shape(n)) == 2 and n in b.names]
    for name in _spread(matrices, COMPARED):
        x, y = a.head(name), b.head(name)
        apart = float(torch.linalg.vector_norm(x - y))
        if not apart <= DEFAULTS.weights.same_weights * float(torch.linalg.vector_norm(x)):
            return f"{name} holds other values"
    return None


def _spread(names: Sequence[str], n: int) -> list[str]:
    """At most `n` of the names, evenly spaced, first and last among them."""
    if len(names) <= n:
        return list(names)
    return [names[round(i * (len(names) - 1) / (n - 1))] for i in range(n)]


def _json(path: Path) -> dict[str, JsonValue]:
    try:
        found = parse_json(read_bytes(path), finite=False)
    except (OSError, ValueError) as exc:
        raise ModelError(
            f"{path} cannot be read: {_first(exc)}.",
            fix="Restore the file from a copy, or save the adapter or checkpoint again.",
        ) from None
    if not isinstance(found, dict):
        raise ModelError(
            f"{path}: expected a mapping, found {type(found).__name__}.",
            fix="Restore the file from a copy, or save the adapter or checkpoint again.",
        )
    return found

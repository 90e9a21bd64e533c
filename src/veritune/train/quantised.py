"""QLoRA's base: loaded in 4 bits through bitsandbytes, and only after this very runtime has passed a self-test.

The self-test walks the path that a run walks (load, train step, evaluate, train step again, save, load, merge) on a
small model, and compares every stage with a float32 model that holds the same 4-bit values. It exists because the path
can break in silence: on processors with AVX512-BF16, bitsandbytes 0.50.2 repacks a layer at its first forward in
evaluation mode and rewrites its scales; the loss stays as it was, and gradients, merges and saved weights are wrong.
The guard switches that repacking off, layer by layer, right after loading.

Source of the method: Dettmers et al. 2023, QLoRA (arXiv:2305.14314).
"""

from __future__ import annotations

import platform
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from veritune.config.train import Condition
from veritune.errors import GateError, MachineError, ModelError, StudyError, first_line
from veritune.records import JsonLike, to_json
from veritune.store import Store, hash_of, now, read_json, write_json
from veritune.train.models import ModelRef, load_base, quiet_transformers

if TYPE_CHECKING:
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

QLORA = "qlora"
FIELDS: dict[str, Any] = {
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "bnb_4bit_quant_type": ("nf4", "fp4"),
    "bnb_4bit_use_double_quant": (True, False),
    "bnb_4bit_compute_dtype": ("bfloat16", "float16", "float32"),
}
PACKAGES = ("accelerate", "bitsandbytes", "peft", "torch", "transformers")
LARGEST_STEP = {"nf4": 0.152, "fp4": 0.167}  # half the widest gap between neighbouring codes, in units of a block's max
ROUNDING = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
REQUANTISED = 0.25  # a right merge rounds to 4 bits once more: 0.07 to 0.13 of the weights' norm; a wrong one exceeds 1
STAGES = ("load", "train", "evaluate", "train again", "save", "reload", "merge")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: what was compared, the relative difference from the reference, and the largest that passes.

    `difference` is |found - reference| / |reference| in the 2-norm, unless `measured` says otherwise; None when the
    stage broke off, with the reason in `error`.
    """

    stage: str
    measured: str
    difference: float | None
    threshold: float
    error: str = ""

    @property
    def passed(self) -> bool:
        """Whether a difference was measured and is at most the threshold; NaN does not pass."""
        return self.difference is not None and self.difference <= self.threshold


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The outcome on one runtime. `key` is the hash of `runtime`: versions, processor flags, device, settings."""

    key: str
    runtime: dict[str, Any]
    stages: tuple[Stage, ...]
    made: str

    @property
    def failed(self) -> Stage | None:
        """The first stage that did not pass; None if all passed."""
        return next((s for s in self.stages if not s.passed), None)


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How the base is quantised: bitsandbytes' own fields, the precision of everything not quantised, and the guard."""

    fields: tuple[tuple[str, Any], ...] = tuple(FIELDS.items())
    dtype: str = "bfloat16"
    guard: bool = True

    @classmethod
    def of(cls, condition: Condition, dtype: str, guard: bool = True) -> Quantisation:
        """The quantisation of a `qlora` condition, with defaults filled in."""
        given = {k: v for k, v in condition.options().items() if k in FIELDS}
        return cls(tuple((FIELDS | given).items()), dtype, guard)

    @property
    def rounding(self) -> float:
        """The rounding error that the coarser of the two precisions allows."""
        return max(ROUNDING[self.dtype], ROUNDING[dict(self.fields)["bnb_4bit_compute_dtype"]])


def qlora_settings(
    quant_type: str = "nf4", double_quant: bool = True, dtype: str = "bfloat16", guard: bool = True
) -> Quantisation:
    """The quantisation that a self-test tries. Raises StudyError for an unknown value of a setting."""
    fields = {"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": double_quant}
    condition = Condition.model_validate(
        {"method": "qlora", "target_modules": "all-linear", **fields, "bnb_4bit_compute_dtype": dtype}
    )
    check_fields("selftest", condition)
    return Quantisation.of(condition, dtype, guard)


def check_fields(name: str, condition: Condition) -> None:
    """Raises StudyError for a quantisation setting whose value bitsandbytes does not offer."""
    for key, value in condition.options().items():
        if key in CHOICES and value not in CHOICES[key]:
            allowed = ", ".join(str(choice) for choice in CHOICES[key])
            raise StudyError(
                f"conditions.{name}.{key}: expected one of {allowed}, found {value!r}.",
                fix=f"Set {key} to one of them.",
            )


def require_bitsandbytes() -> None:
    """Raises MachineError naming the extra when bitsandbytes is not installed."""
    if util.find_spec("bitsandbytes") is None:
        raise MachineError(
            "`method: qlora` needs bitsandbytes, which is not installed.", fix="Run `pip install 'veritune[qlora]'`."
        )


def base_for(store: Store, ref: ModelRef, condition: Condition) -> PreTrainedModel:
    """The base model as `condition` trains and scores it: in 4 bits for `qlora`, else as from `load_base`.

    For `qlora` the self-test runs first, once per runtime and study; its record lies in the study's audit folder.
    Raises GateError naming the stage that failed, MachineError without bitsandbytes.
    """
    if condition.method != QLORA:
        return load_base(ref)
    how = Quantisation.of(condition, ref.dtype)
    require_self_test(store, how)
    return load_quantised(ref, how)


def require_self_test(store: Store, how: Quantisation) -> None:
    """Run the self-test unless the study has a record of it for this runtime. Raises GateError if it failed."""
    key = hash_of(runtime(how))
    path = store.audit(f"quantised-{key[:12]}.json")
    if not store.is_done(path, key):
        result = self_test(how)
        write_json(path, {"input_hash": key, **to_record(result)})
    record = read_json(path)
    for stage in (Stage(**{k: v for k, v in row.items() if k != "passed"}) for row in record["stages"]):
        if not stage.passed:
            raise GateError(
                f"the self-test of the 4-bit path failed on this runtime at stage '{stage.stage}': {said(stage)}.",
                fix="Use `method: lora`, or another version of bitsandbytes; see `veritune doctor --selftest`.",
            )


def said(stage: Stage) -> str:
    """The measured difference with its threshold, as text."""
    if stage.difference is None:
        return stage.error
    return f"{stage.measured} differs by {stage.difference:.2g}, allowed {stage.threshold:.2g}"


def to_record(result: SelfTest) -> dict[str, JsonLike]:
    """The result as plain JSON, with the status of each stage."""
    record: dict[str, Any] = to_json(result)
    record["stages"] = [{**to_json(stage), "passed": stage.passed} for stage in result.stages]
    record["passed"] = result.failed is None
    return record


def runtime(how: Quantisation) -> dict[str, JsonLike]:
    """Everything that the result can depend on: package versions, processor and its flags, device, settings."""
    import torch

    require_bitsandbytes()
    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return {
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_flags": cpu_flags(),
        "device": device,
        "settings": dict(how.fields),
        "dtype": how.dtype,
        "guard": how.guard,
    }


def cpu_flags() -> list[str] | None:
    """Vector instructions of this processor that change a kernel (avx, amx, sve ...), sorted; None when unknown."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    flags = next((line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "feat"))), [])
    return sorted(f for f in flags if f.startswith(("avx", "amx", "fma", "sse4", "sve", "asimd", "bf16")))


# ---------------------------------------------------------------- loading


def load_quantised(ref: ModelRef, how: Quantisation) -> PreTrainedModel:
    """The base in 4 bits, in evaluation mode, with the guard applied before its first forward pass. Raises ModelError,
    MachineError.
    """
    import torch
    from transformers import BitsAndBytesConfig

    require_bitsandbytes()
    fields = dict(how.fields)
    compute = getattr(torch, fields.pop("bnb_4bit_compute_dtype"))
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=compute, **fields)
    model = load_in_bits(ref, how.dtype, config, bits=4, fix="Use `method: lora`.")
    layers = linear4bit(model)
    if not layers:
        raise ModelError(f"{ref.path}: no layer was quantised.", fix="Use `method: lora` for this architecture.")
    if how.guard:
        guard(model)
    return model.eval()


def load_in_bits(ref: ModelRef, dtype: str, config: BitsAndBytesConfig, *, bits: int, fix: str = "") -> PreTrainedModel:
    """The model quantised by bitsandbytes' `config`; a folder that is stored quantised has its own. Raises
    ModelError."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": getattr(torch, dtype), "use_safetensors": True, "trust_remote_code": ref.trust_remote_code}
    if not in_bits(ref.path):
        options["quantization_config"] = config
    try:
        with quiet_transformers():
            device = {"": 0 if torch.cuda.is_available() else "cpu"}
            return AutoModelForCausalLM.from_pretrained(ref.path, device_map=device, **options)
    except Exception as exc:  # transformers raises many kinds
        first = first_line(exc)
        raise ModelError(f"{ref.path}: cannot be loaded in {bits} bits ({first}).", fix=fix) from None


def in_bits(folder: Path) -> bool:
    """Whether a folder's weights are stored quantised."""
    return "quantization_config" in read_json(folder / "config.json", finite=False)


def guard(model: PreTrainedModel | PeftModel) -> int:
    """Switch off the repacking for AVX512-BF16 in every 4-bit layer; returns the number of layers.

    It must run before the first forward in evaluation mode: a repacked layer is not repaired.
    """
    layers = linear4bit(model)
    for layer in layers.values():
        layer.support_avx512bf16_for_cpu = False
    return len(layers)


def linear4bit(model: PreTrainedModel | PeftModel) -> dict[str, Linear4bit]:
    """The 4-bit layers by name, without an adapter's wrapping in the name."""
    from bitsandbytes.nn import Linear4bit

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found[name.removeprefix("base_model.model.").removesuffix(".base_layer")] = module
    return found


def dequantised(layer: Linear4bit) -> torch.Tensor:
    """The values that a 4-bit layer represents, float32, shape (out, in)."""
    from bitsandbytes.functional import dequantize_4bit

    values: torch.Tensor = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    return values


# ---------------------------------------------------------------- self-test


def render_text(result: SelfTest) -> str:
    """The stages of a self-test as a table, and the conclusion in one sentence."""
    facts = result.runtime
    flags = facts["cpu_flags"] or []
    risky = "has" if "avx512_bf16" in flags else "has no"
    lines = [
        f"4-bit self-test on {facts['device']}, bitsandbytes {facts['packages']['bitsandbytes']}, {facts['dtype']}, "
        f"guard {'on' if facts['guard'] else 'off'}; this processor {risky} avx512_bf16",
        f"{'stage':<12} {'difference':>10} {'allowed':>8}         what was compared with float32",
    ]
    for s in result.stages:
        number = "-" if s.difference is None else f"{s.difference:.2g}"
        what = s.error or s.measured
        lines.append(f"{s.stage:<12} {number:>10} {s.threshold:>8.2g}  {'pass' if s.passed else 'FAIL'}   {what}")
    failed = result.failed
    lines.append(
        "passed: qlora may be used on this runtime."
        if failed is None
        else f"failed at '{failed.stage}': qlora is refused on this runtime."
    )
    return "\n".join(lines)


def self_test(how: Quantisation) -> SelfTest:
    """Run the 4-bit path on a small random model and compare every stage with float32. Takes seconds.

    After a stage that raises, the stages that need it are recorded as not measured.
    """
    import torch

    facts = runtime(how)
    stages: list[Stage] = []
    with tempfile.TemporaryDirectory(prefix="veritune-selftest-") as folder, torch.random.fork_rng():
        torch.manual_seed(0)
        walk = _Walk(Path(folder), how).stages()
        try:
            stages.extend(walk)
        except Exception as exc:  # whatever a broken kernel raises is the finding
            stages.append(_broken(len(stages), f"{type(exc).__name__}: {str(exc)[:200]}"))
    stages.extend(_broken(k, "not reached") for k in range(len(stages), len(STAGES)))
    return SelfTest(hash_of(facts), facts, tuple(stages), now())


def _broken(k: int, error: str) -> Stage:
    return Stage(STAGES[k], "nothing", None, 0.0, error)


class _Walk:
    """The 4-bit model and its float32 reference, taken through the same stages side by side."""

    def __init__(self, folder: Path, how: Quantisation) -> None:
        self.folder = folder
        self.how = how

    def stages(self) -> Iterator[Stage]:
        import torch

        self.original = _small_model(self.folder / "base")
        base = load_quantised(ModelRef("self-test", self.folder / "base", self.how.dtype), self.how)
        yield self._load(base)
        self.reference = _with_adapter(self._reference(base))
        self.model = _with_adapter(base)
        _same_adapter(self.model, self.reference)
        self.ids = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(1))
        rounding = self.how.rounding
        yield Stage("train", "gradient of the adapter", self._train_step(), rounding)
        yield Stage("evaluate", "logits", self._logits(self.model), rounding)
        yield Stage("train again", "gradient of the adapter", self._train_step(), rounding)
        yield Stage("save", "4-bit weights and logits after saving", self._save(), rounding)
        yield Stage("reload", "logits of the saved 4-bit model with its adapter", self._reload(), rounding)
        yield Stage("merge", "merged weights", self._merge(), REQUANTISED)

    def _load(self, base: PreTrainedModel) -> Stage:
        """The largest distance of a value from what it was before, in units of its block's largest."""
        worst = 0.0
        for name, layer in linear4bit(base).items():
            weight = self.original.get_submodule(name).weight.detach().to(getattr(_torch(), self.how.dtype)).float()
            block = layer.weight.quant_state.blocksize
            gap = (dequantised(layer).cpu() - weight).abs().reshape(-1, block)
            worst = max(worst, float((gap / weight.abs().reshape(-1, block).amax(1, keepdim=True)).max()))
        step = LARGEST_STEP[dict(self.how.fields)["bnb_4bit_quant_type"]] + 0.03
        return Stage("load", "worst value, in units of its block's largest", worst, step)

    def _reference(self, base: PreTrainedModel) -> LlamaForCausalLM:
        """The float32 model that holds the values which the freshly loaded 4-bit model stands for."""
        torch = _torch()
        reference = deepcopy(self.original).to(getattr(torch, self.how.dtype)).float()
        for name, layer in linear4bit(base).items():
            reference.get_submodule(name).weight.data = dequantised(layer).cpu()
        return reference.eval()

    def _train_step(self) -> float:
        """One step of plain gradient descent on both; the relative difference of the adapter's gradients."""
        torch = _torch()
        grads = []
        for model in (self.model, self.reference):
            model.train()
            model.zero_grad()
            ids = self.ids.to(model.device)
            model(input_ids=ids, labels=ids).loss.backward()
            moved = [p for p in model.parameters() if p.requires_grad]
            grads.append(torch.cat([p.grad.detach().float().cpu().reshape(-1) for p in moved]))
            with torch.no_grad():
                for p in moved:
                    p -= 0.1 * p.grad
            model.eval()
        _same_adapter(self.model, self.reference)  # each step is judged by itself
        return _relative(grads[0], grads[1])

    def _logits(self, model: PreTrainedModel | PeftModel) -> float:
        torch = _torch()
        with torch.no_grad():
            found = model.eval()(input_ids=self.ids.to(model.device)).logits.float().cpu()
            right = self.reference.eval()(input_ids=self.ids).logits
        return _relative(found, right)

    def _save(self) -> float:
        """Save adapter and 4-bit base; saving must leave the model as it was."""
        from peft import PeftModel

        with quiet_transformers():
            self.model.save_pretrained(self.folder / "adapter")
            base = self.model.unload()
            base.save_pretrained(self.folder / "quantised")
            self.model = PeftModel.from_pretrained(base, self.folder / "adapter", is_trainable=True)
        weights = max(self._distance(name, layer) for name, layer in linear4bit(self.model).items())
        return max(weights, self._logits(self.model))

    def _distance(self, name: str, layer: Linear4bit) -> float:
        module = self.reference.base_model.model.get_submodule(name)
        return _relative(dequantised(layer).cpu(), getattr(module, "base_layer", module).weight.detach())

    def _reload(self) -> float:
        from peft import PeftModel

        saved = ModelRef("self-test", self.folder / "quantised", self.how.dtype)
        with quiet_transformers():
            again = PeftModel.from_pretrained(load_quantised(saved, self.how), self.folder / "adapter")
        return self._logits(again)

    def _merge(self) -> float:
        """Merge in 4 bits; the distance to the reference's merged weights, which holds one more rounding."""
        with quiet_transformers(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Merge lora module to 4-bit")
            merged = self.model.merge_and_unload()
        right = self.reference.merge_and_unload()
        return max(
            _relative(dequantised(layer).cpu(), right.get_submodule(name).weight.detach())
            for name, layer in linear4bit(merged).items()
        )


def _torch() -> ModuleType:
    import torch

    return torch


def _small_model(folder: Path) -> LlamaForCausalLM:
    """A random two-layer Llama, saved; its widths are multiples of every block size in use."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with quiet_transformers():
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder)
    return model


def _with_adapter(base: PreTrainedModel) -> PeftModel:
    """LoRA on every linear layer of the blocks, with a B that is not zero, so that all gradients speak."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    with quiet_transformers():
        return get_peft_model(base, config)


def _same_adapter(model: PeftModel, reference: PeftModel) -> None:
    """Copy the adapter of `model` into the reference."""
    torch = _torch()
    values: Mapping[str, Any] = dict(model.named_parameters())
    with torch.no_grad():
        for name, p in reference.named_parameters():
            if "lora_" in name:
                p.copy_(values[name].detach().float().cpu())


def _relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).norm() / right.norm())

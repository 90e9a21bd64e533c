"""Adapters of MLX, Tinker, torchtune and pickled PEFT files, by their real file shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from veritune.errors import ModelError
from veritune.release.parity.merge import check_weights
from veritune.train.adapters.foreign import peft_folder, write_peft_form
from veritune.train.adapters.reading import read_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

SIZE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("foreign") / "base"
    LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=False)).float().save_pretrained(folder)
    return folder


def put(folder: Path, name: str, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / name)
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def fused(base: Path, folder: Path, changes: dict[str, Any]) -> Path:
    """The base with `changes` applied to its weights: what the other tool's own merge writes."""
    folder.mkdir(parents=True)
    weights = load_file(base / "model.safetensors")
    made = {k: changes[k](v.double()).float() if k in changes else v for k, v in weights.items()}
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    return folder


def readings(base: Path, adapter: Path, merged: Path) -> tuple[set[str], list[str]]:
    modules, findings = check_weights(base, peft_folder(adapter).folder, merged)
    return {m.reading for m in modules}, [f.message for f in findings if f.severity == "error"]


def mlx(folder: Path, kind: str = "lora", **parameters: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    tensors = {
        f"model.layers.1.self_attn.{m}.lora_{f}": torch.randn(*shape, generator=draw)
        for m, out in (("q_proj", 16), ("v_proj", 8))
        for f, shape in (("a", (16, 4)), ("b", (4, out)))
    }
    if kind == "dora":
        tensors |= {f"model.layers.1.self_attn.{m}.m": torch.rand(n) + 1 for m, n in (("q_proj", 16), ("v_proj", 8))}
    config = {
        "fine_tune_type": kind, "num_layers": 1, "model": "mlx-community/some-model", "seed": 0, "iters": 100,
        "lora_parameters": {"rank": 4, "scale": 20.0, "dropout": 0.0, **parameters},
    }  # fmt: skip
    return put(folder, "adapters.safetensors", tensors, config), tensors


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_mlx_adapter_is_read_as_mlx_fuses_it(base: Path, tmp_path: Path, kind: str) -> None:
    adapter, t = mlx(tmp_path / "mlx", kind)

    def fuse(module: str) -> Any:
        def change(weight: torch.Tensor) -> torch.Tensor:
            name = f"model.layers.1.self_attn.{module}"
            moved = weight + 20.0 * (t[f"{name}.lora_a"].double() @ t[f"{name}.lora_b"].double()).t()
            if kind == "lora":
                return moved
            return moved * (t[f"{name}.m"].double() / moved.norm(dim=1))[:, None]

        return change

    changes = {f"model.layers.1.self_attn.{m}.weight": fuse(m) for m in ("q_proj", "v_proj")}
    assert readings(base, adapter, fused(base, tmp_path / "fused", changes)) == ({"merged"}, [])
    half = {k: lambda w, k=k: (w + changes[k](w)) / 2 for k in changes}
    assert readings(base, adapter, fused(base, tmp_path / "half", half))[1] != []
    assert peft_folder(adapter).shape == "MLX"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"lora_parameters": {"rank": 4, "alpha": 16, "scale": 10.0}}, "older MLX multiplies by scale x alpha / rank"),
        ({"lora_parameters": {"rank": 4}}, "lora_parameters.scale: expected a number, found None"),
        ({"fine_tune_type": "full"}, "an MLX fine-tune of type 'full' is not an adapter"),
    ],
)
def test_what_an_mlx_config_leaves_open_is_refused(tmp_path: Path, edit: dict[str, Any], message: str) -> None:
    adapter, _ = mlx(tmp_path / "mlx")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | edit), "utf-8")
    with pytest.raises(ModelError) as told:
        write_peft_form(adapter, tmp_path / "out")
    assert message in str(told.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("model.embed_tokens.lora_a", (96, 4), "would also act on a tied head and cannot be read"),
        ("model.layers.0.mlp.switch_mlp.gate_proj.lora_a", (4, 4, 16), "experts of an MLX adapter"),
        ("model.norm.weight", (16,), "is not a factor of an MLX adapter."),
    ],
)
def test_mlx_tensors_that_are_not_read_are_refused(
    tmp_path: Path, key: str, shape: tuple[int, ...], message: str
) -> None:
    adapter, tensors = mlx(tmp_path / "mlx")
    save_file(tensors | {key: torch.ones(shape)}, adapter / "adapters.safetensors")
    with pytest.raises(ModelError, match=message):
        write_peft_form(adapter, tmp_path / "out")


def peft(rank: int = 4, **fields: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "task_type": "CAUSAL_LM", **fields}


def test_tinkers_head_and_open_targets_are_read(base: Path, tmp_path: Path) -> None:
    places = {"model.model.layers.0.self_attn.q_proj": 16, "model.model.unembed_tokens": 96}
    tensors = {f"base_model.{p}.lora_{f}.weight": torch.randn(4, 16) if f == "A" else torch.randn(n, 4)
               for p, n in places.items() for f in "AB"}  # fmt: skip
    adapter = put(tmp_path / "tinker", "adapter_model.safetensors", tensors, peft(target_modules="all-linear"))

    def change(place: str) -> Any:
        a, b = (tensors[f"base_model.{place}.lora_{f}.weight"].double() for f in "AB")
        return lambda w: w + 2 * b @ a

    changes = {"model.layers.0.self_attn.q_proj.weight": change("model.model.layers.0.self_attn.q_proj"),
               "lm_head.weight": change("model.model.unembed_tokens")}  # fmt: skip
    assert readings(base, adapter, fused(base, tmp_path / "fused", changes)) == ({"merged"}, [])
    only = {k: v for k, v in changes.items() if k != "lm_head.weight"}
    (message,) = readings(base, adapter, fused(base, tmp_path / "only", only))[1]
    assert message.startswith("1 of 2 modules: the change is not in the merged weights") and "lm_head" in message


def test_tinkers_experts_are_read_with_the_factor_that_they_share(tmp_path: Path) -> None:
    torch.manual_seed(0)
    moe = Qwen3MoeConfig(**SIZE, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, head_dim=4)
    Qwen3MoeForCausalLM(moe).float().save_pretrained(tmp_path / "base")
    layer = "base_model.model.model.layers.0.mlp.experts"
    tensors = {}
    for part in ("w1", "w3"):
        tensors[f"{layer}.{part}.lora_A.weight"], tensors[f"{layer}.{part}.lora_B.weight"] = (
            torch.randn(1, 4, 16), torch.randn(4, 16, 4))  # fmt: skip
    tensors[f"{layer}.w2.lora_A.weight"], tensors[f"{layer}.w2.lora_B.weight"] = (
        torch.randn(4, 4, 16), torch.randn(1, 16, 4))  # fmt: skip
    adapter = put(tmp_path / "tinker", "adapter_model.safetensors", tensors, peft(target_modules="all-linear"))
    changes = {}
    for part, name in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        a, b = (tensors[f"{layer}.{part}.lora_{f}.weight"].double() for f in "AB")
        for e in range(4):
            delta = 2 * b[min(e, len(b) - 1)] @ a[min(e, len(a) - 1)]
            changes[f"model.layers.0.mlp.experts.{e}.{name}.weight"] = lambda w, d=delta: w + d
    assert readings(tmp_path / "base", adapter, fused(tmp_path / "base", tmp_path / "fused", changes)) == (
        {"merged"}, [])  # fmt: skip


def test_a_pickled_adapter_is_read_and_one_that_runs_code_is_not(base: Path, tmp_path: Path) -> None:
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{place}.lora_A.weight": torch.randn(4, 16), f"{place}.lora_B.weight": torch.randn(16, 4)}
    adapter = put(tmp_path / "pickled", "unused.safetensors", tensors, peft(target_modules=["q_proj"]))
    (adapter / "unused.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors in it"):
        write_peft_form(adapter, tmp_path / "none")
    torch.save(tensors, adapter / "adapter_model.bin")
    assert len(list(read_adapter(peft_folder(adapter).folder, base).changes())) == 1
    torch.save({"x": Path("/")}, adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match=r": expected plain tensors \("):
        write_peft_form(adapter, tmp_path / "code")


def test_torchtunes_own_form_is_refused_by_name(tmp_path: Path) -> None:
    torch.save({"layers.0.attn.q_proj.lora_a.weight": torch.ones(4, 16)}, tmp_path / "adapter_0.pt")
    with pytest.raises(ModelError, match=r"adapter_0\.pt is torchtune's own form"):
        peft_folder(tmp_path)


def test_several_adapters_in_a_folder_are_named_and_one_is_taken(base: Path, tmp_path: Path) -> None:
    place = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{place}.lora_A.weight": torch.randn(4, 16), f"{place}.lora_B.weight": torch.randn(16, 4)}
    for name in ("first", "second"):
        put(tmp_path / "both" / name, "adapter_model.safetensors", tensors, peft(target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="holds 2 adapters: first, second"):
        peft_folder(tmp_path / "both")
    assert peft_folder(tmp_path / "both" / "first").folder == tmp_path / "both" / "first"
    put(tmp_path / "one" / "default", "adapter_model.safetensors", tensors, peft(target_modules=["q_proj"]))
    assert peft_folder(tmp_path / "one").notes == ("the adapter is default, the only one in the folder",)

"""Planted faults keep their names where merging is special: DoRA, modules saved in full, tied embeddings."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from veritune.release.parity.merge import check_weights, merge_adapter
from veritune.train.models import ModelRef, load_base

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:.*tie_word_embeddings.*",
    "ignore:Setting .save_embedding_layers",
)
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "target_modules": ["q_proj", "down_proj"]},
    "saved in full": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "tied": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.fixture(scope="module")
def special(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[ModelRef, Path, Path]]:
    """For each kind its base, an adapter with random factors and the right merge."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    made = {}
    for kind, config in KINDS.items():
        folder = tmp_path_factory.mktemp("special")
        torch.manual_seed(0)
        shape = LlamaConfig(
            vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            tie_word_embeddings=kind == "tied", initializer_range=0.05,
        )  # fmt: skip
        LlamaForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder / "base")
        ref = ModelRef(kind, folder / "base", "bfloat16")
        model = get_peft_model(load_base(ref), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, **config))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name or "lora_embedding_A" in name:
                    p.normal_(0, 0.02)
                if "modules_to_save" in name:
                    p.add_(0.01 * torch.randn_like(p))
                if "lora_magnitude" in name:
                    p.mul_(1 + 0.05 * torch.randn_like(p))
        model.save_pretrained(folder / "adapter")
        made[kind] = (ref, folder / "adapter", merge_adapter(load_base(ref), folder / "adapter", folder / "merged"))
    return made


def named(ref: ModelRef, adapter: Path, merged: Path) -> tuple[dict[str, str], set[str]]:
    """The errors by check, and the readings of the modules."""
    modules, findings = check_weights(ref.path, adapter, merged)
    return {f.check: f.message for f in findings if f.severity == "error"}, {m.reading for m in modules}


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_merge_has_no_fault(special: Any, kind: str) -> None:
    assert named(*special[kind]) == ({}, {"merged"})


@pytest.mark.parametrize("kind", KINDS)
def test_not_applied_is_named(special: Any, kind: str) -> None:
    ref, adapter, _ = special[kind]
    found, readings = named(ref, adapter, ref.path)
    assert set(found) == {"merge.not_applied"} and readings == {"not applied"}
    assert found["merge.not_applied"].startswith("the adapter: the change is not in the merged weights")


@pytest.mark.parametrize("kind", KINDS)
def test_applied_twice_is_named(special: Any, kind: str, tmp_path: Path) -> None:
    ref, adapter, merged = special[kind]
    twice = merge_adapter(load_base(replace(ref, path=merged)), adapter, tmp_path / "twice")
    found, readings = named(ref, adapter, twice)
    assert set(found) == {"merge.applied_twice"}
    assert readings <= {"applied twice", "merged"}  # a module saved in full is the same the second time


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_scaling_is_named(special: Any, kind: str, tmp_path: Path) -> None:
    ref, adapter, _ = special[kind]
    wrong = shutil.copytree(adapter, tmp_path / "wrong")
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 3 * config["lora_alpha"]}))
    found, _ = named(ref, adapter, merge_adapter(load_base(ref), wrong, tmp_path / "merged"))
    assert set(found) == {"merge.wrong_scaling"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["left out", "missing"])
def test_one_layer_is_named(special: Any, kind: str, fault: str, tmp_path: Path) -> None:
    ref, adapter, merged = special[kind]
    folder = shutil.copytree(merged, tmp_path / "merged")
    old, weights = load_file(ref.path / "model.safetensors"), load_file(folder / "model.safetensors")
    key = {"dora": "model.layers.1.mlp.down_proj.weight", "tied": "model.embed_tokens.weight"}.get(
        kind, "lm_head.weight"
    )
    if fault == "missing":
        del weights[key]
    else:
        weights[key] = old[key]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found, _ = named(ref, adapter, folder)
    check = "merge.missing" if fault == "missing" else "merge.not_applied"
    assert set(found) == {check} and key.removesuffix(".weight") in found[check]
    assert " of " in found[check].split(" modules")[0]

"""Weight change, against the same change formed in full."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from veritune.errors import ModelError
from veritune.probe import weights as weights_module
from veritune.probe.weights import (
    WeightOptions,
    adapter_change,
    checkpoint_change,
    count_intruders,
    effective_rank,
    series,
)
from veritune.records import dumps
from veritune.train import tensors as tensors_module

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Setting `save_embedding_layers`:UserWarning",
)


def saved(
    tmp_path: Path, make_model: Any, kind: str = "llama", **settings: Any
) -> tuple[Path, Path, dict[str, torch.Tensor]]:
    """A base folder, an adapter folder and the exact change of every module by merging."""
    base = make_model(kind, dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    before = {n: p.detach().clone().double() for n, p in base.named_parameters()}
    torch.manual_seed(3)
    targets = settings.pop("target_modules", ["q_proj", "down_proj"])
    settings = {"r": 3, "lora_alpha": 7, "init_lora_weights": False} | settings
    model = get_peft_model(base, LoraConfig(target_modules=targets, **settings))
    model.save_pretrained(tmp_path / "adapter")
    merged = model.to(torch.float64).merge_and_unload()
    after = {n: p.detach().double() for n, p in merged.named_parameters()}
    return tmp_path / "base", tmp_path / "adapter", {n: after[n] - before[n] for n in before}


CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.down_proj": 20}},
    "dora": {"use_dora": True},
    "head in full": {"modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("case", CASES)
def test_adapter_change_equals_the_merged_difference(case: str, tmp_path: Path, make_model: Any) -> None:
    base, adapter, delta = saved(tmp_path, make_model, **CASES[case])
    change = adapter_change(adapter, base)
    moved = {n.removesuffix(".weight"): d for n, d in delta.items() if d.abs().max() > 0}
    assert {m.name for m in change.modules} >= set(moved)
    for module in change.modules:
        d = delta[f"{module.name}.weight"]
        assert module.delta_norm == pytest.approx(float(d.norm()), rel=1e-5, abs=1e-12)
        if module.delta_norm > 0:
            expected = effective_rank(torch.linalg.svdvals(d))
            assert (module.effective_rank, module.top_energy) == pytest.approx(expected, rel=1e-4)
    total = math.sqrt(sum(float(d.square().sum()) for d in moved.values()))
    assert change.total.delta_norm == pytest.approx(total, rel=1e-5)


def test_transposed_weights_of_gpt2_are_read(tmp_path: Path, make_model: Any) -> None:
    base, adapter, delta = saved(tmp_path, make_model, "gpt2", target_modules=["c_attn"], fan_in_fan_out=True)
    for module in adapter_change(adapter, base, WeightOptions(intruders=True)).modules:
        d = delta[
            f"transformer.{module.name}.weight"
            if not module.name.startswith("transformer")
            else f"{module.name}.weight"
        ]
        assert module.delta_norm == pytest.approx(float(d.norm()), rel=1e-5)
        assert module.type == "qkv" and module.intruders is not None


def test_without_a_base_norms_are_given_and_nothing_is_relative(tmp_path: Path, make_model: Any) -> None:
    base, adapter, _ = saved(tmp_path, make_model)
    alone, against = adapter_change(adapter), adapter_change(adapter, base)
    assert alone.total.delta_norm == pytest.approx(against.total.delta_norm)
    assert alone.total.relative is None and against.total.relative > 0


def test_streamed_checkpoints_equal_the_whole_difference_at_any_block_size(
    tmp_path: Path, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = make_model(dtype=torch.float32, seed=0), make_model(dtype=torch.float32, seed=1)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    after = dict(second.named_parameters())
    expected = {
        n: float((after[n].detach().double() - p.detach().double()).norm()) for n, p in first.named_parameters()
    }
    for size in (64 * 2**20, 1000, 1):
        monkeypatch.setattr(tensors_module, "BLOCK_BYTES", size)
        change = checkpoint_change(tmp_path / "a", tmp_path / "b")
        assert {m.name: m.delta_norm for m in change.modules} == pytest.approx(expected, rel=1e-9)
    spectral = checkpoint_change(tmp_path / "a", tmp_path / "b", WeightOptions())
    assert spectral.total.delta_norm == pytest.approx(change.total.delta_norm, rel=1e-9)
    assert {m.effective_rank is None for m in spectral.modules if len(m.shape) == 2} == {False}


def test_an_unmoved_checkpoint_says_so(tmp_path: Path, make_model: Any) -> None:
    make_model(dtype=torch.float32).save_pretrained(tmp_path / "a")
    change = checkpoint_change(tmp_path / "a", tmp_path / "a", WeightOptions())
    assert change.total.delta_norm == 0 and change.reading == "The weights did not move at all."
    assert all(m.effective_rank is None for m in change.modules)
    dumps(change)
    left_out = weights_module._still(("lm_head: other shape",))
    assert "that were compared" in left_out and "lm_head: other shape" in left_out


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == pytest.approx((3.0, 1 / 3))
    assert effective_rank(torch.tensor([5.0, 0.0])) == pytest.approx((1.0, 1.0))
    assert effective_rank(torch.zeros(2)) == (None, None)


def test_an_intruder_is_a_large_new_direction() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64)).Q
    other = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    weight = basis[:, :30] @ torch.diag(torch.linspace(9, 1, 30, dtype=torch.float64)) @ other.t()
    assert count_intruders(weight, weight) == 0
    assert count_intruders(weight, weight + 0.01 * torch.randn(40, 30, dtype=torch.float64)) == 0
    assert count_intruders(weight, weight + 50 * torch.outer(basis[:, 35], other[:, 3])) == 1


def test_an_adapter_for_another_base_is_named(tmp_path: Path, make_model: Any) -> None:
    _, adapter, _ = saved(tmp_path, make_model)
    make_model("gpt2", dtype=torch.float32).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="made for another base"):
        adapter_change(adapter, tmp_path / "other")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    shutil.copytree(tmp_path / "base", tmp_path / "wider")
    wider = {n: torch.zeros(t.shape[0] + 1, *t.shape[1:]) if "q_proj" in n else t for n, t in tensors.items()}
    save_file(wider, tmp_path / "wider" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"fits a weight of shape .* the base has"):
        adapter_change(adapter, tmp_path / "wider")


def test_broken_and_unreadable_adapters_are_named(tmp_path: Path, make_model: Any) -> None:
    base, adapter, _ = saved(tmp_path, make_model)
    path = adapter / "adapter_model.safetensors"
    good = load_file(path)
    first = next(iter(good))
    save_file(good | {first: torch.full_like(good[first], math.nan)}, path)
    with pytest.raises(ModelError, match="NaN"):
        adapter_change(adapter, base)
    save_file({n: t for n, t in good.items() if n != first}, path)
    with pytest.raises(ModelError, match="incomplete"):
        adapter_change(adapter, base)
    prompt = get_peft_model(
        make_model(dtype=torch.float32), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    prompt.save_pretrained(tmp_path / "prompt")
    with pytest.raises(ModelError, match="changes no weights"):
        adapter_change(tmp_path / "prompt", base)
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        adapter_change(base)


def test_a_quantised_base_and_different_models_are_named(tmp_path: Path, make_model: Any) -> None:
    base, adapter, _ = saved(tmp_path, make_model)
    packed = tmp_path / "packed"
    packed.mkdir()
    save_file({"model.layers.0.self_attn.q_proj.weight.absmax": torch.zeros(2)}, packed / "model.safetensors")
    with pytest.raises(ModelError, match="quantised"):
        adapter_change(adapter, packed)
    make_model("gpt2", dtype=torch.float32).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"share 1 of \d+ tensor names"):
        checkpoint_change(base, tmp_path / "gpt2")


def test_a_series_is_one_line_per_label_and_plain_json(tmp_path: Path, make_model: Any) -> None:
    base, adapter, _ = saved(tmp_path, make_model)
    change = adapter_change(adapter, base)
    lines = json.loads(dumps(series({"lr 1e-4": change, "lr 2e-4": change})))
    assert [line["label"] for line in lines] == ["lr 1e-4", "lr 2e-4"]
    assert set(lines[0]["by_type"]) == {"q", "down"}

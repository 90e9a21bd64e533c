"""From a condition to what trains: exact targets, seeded adapters, settings that a method does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from veritune.config.train import Condition
from veritune.errors import StudyError
from veritune.train.methods import build, check, targets
from veritune.train.models import ModelRef, load_base

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def base(tiny_model: Path) -> Any:
    return load_base(ModelRef("tiny", tiny_model, "bfloat16"))


def lora(**fields: Any) -> Condition:
    return Condition(method="lora", **{"target_modules": "attention", **fields})


def other(kind: str) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
    if kind == "gpt2":
        sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


@pytest.mark.parametrize(
    ("wanted", "leaves"),
    [
        ("attention", ATTENTION),
        ("mlp", MLP),
        ("all-linear", (*ATTENTION, *MLP)),
        (("q_proj",), ("q_proj",)),
        ("up_proj", ("up_proj",)),
    ],
)
def test_targets_are_exactly_these_modules_in_every_layer(base: Any, wanted: Any, leaves: tuple[str, ...]) -> None:
    found = targets("x", wanted, base)
    assert sorted(found) == sorted(
        f"model.layers.{i}.{'self_attn' if leaf in ATTENTION else 'mlp'}.{leaf}" for i in range(2) for leaf in leaves
    )


QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = ("gate_proj", "up_proj", "down_proj")
LEAVES = {
    "llama": (QKVO, GATED),
    "mistral": (QKVO, GATED),
    "qwen2": (QKVO, GATED),
    "qwen3": (QKVO, GATED),
    "gemma": (QKVO, GATED),
    "gemma2": (QKVO, GATED),
    "phi": (("q_proj", "k_proj", "v_proj", "dense"), ("fc1", "fc2")),
    "phi3": (("qkv_proj", "o_proj"), ("gate_up_proj", "down_proj")),
    "gpt2": (("c_attn", "c_proj"), ("c_fc", "c_proj")),
}


@pytest.mark.parametrize("kind", LEAVES)
def test_each_architecture_s_own_names_are_found_in_every_layer(kind: str) -> None:
    model = other(kind)
    for wanted, leaves in zip(("attention", "mlp"), LEAVES[kind]):
        found = targets("x", wanted, model)
        assert len(found) == 2 * len(leaves)
        for layer in range(2):
            here = [m.rsplit(".", 1)[-1] for m in found if f".{layer}." in m]
            assert sorted(here) == sorted(leaves)
    assert not any("lm_head" in m or "embed" in m for m in targets("x", "all-linear", model))


@pytest.mark.parametrize("kind", LEAVES)
def test_attention_and_mlp_share_no_module_and_make_up_all_linear(kind: str) -> None:
    model = other(kind)
    attention, mlp, both = (set(targets("x", w, model)) for w in ("attention", "mlp", "all-linear"))
    assert attention and mlp and not attention & mlp
    assert attention | mlp == both
    assert not any("head" in name or "emb" in name for name in both)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False:UserWarning")  # PEFT sets it for GPT-2 and says so
@pytest.mark.parametrize("kind", ["gpt2", "phi3", "qwen2"])
@pytest.mark.parametrize("wanted", ["attention", "mlp", "all-linear"])
def test_peft_adapts_the_named_modules_and_no_other(kind: str, wanted: str) -> None:
    """GPT-2 calls a module of both blocks c_proj; the shortest ending that tells them apart is used."""
    expected = set(targets("x", wanted, other(kind)))
    model, trainable = build("x", lora(target_modules=wanted), other(kind), 0)
    names = [name for name, _ in model.named_parameters() if ".lora_A" in name]
    adapted = {name.split(".lora_A")[0].removeprefix("base_model.model.") for name in names}
    assert adapted == expected == set(trainable.modules)


def test_only_the_adapter_trains_and_in_float32(base: Any) -> None:
    model, trainable = build("x", lora(r=4), base, 0)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    assert trainable.n_trainable == sum(p.numel() for p in trained.values()) == 2 * 4 * (128 + 96 + 96 + 128)
    assert trainable.share == trainable.n_trainable / trainable.n_total
    assert trainable.options["r"] == 4 and trainable.options["lora_alpha"] == 16.0


def adapter(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_adapter_weights_are_drawn_from_the_seed(tiny_model: Path) -> None:
    ref = ModelRef("tiny", tiny_model, "float32")
    draws = [adapter(build("x", lora(), load_base(ref), seed)[0]) for seed in (1, 1, 2)]
    assert all(torch.equal(draws[0][k], draws[1][k]) for k in draws[0])
    assert any(not torch.equal(draws[0][k], draws[2][k]) for k in draws[0])


def test_an_untrained_adapter_changes_no_logit(base: Any) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = base(input_ids=ids).logits.clone()
        model, _ = build("x", lora(), base, 0)
        assert torch.equal(model.eval()(input_ids=ids).logits, before)


def test_full_trains_every_weight_in_float32(base: Any) -> None:
    model, trainable = build("x", Condition(method="full"), base, 0)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert trainable.share == 1.0 and trainable.modules == ()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_another_peft_method_takes_its_own_fields(base: Any) -> None:
    condition = Condition.model_validate({"method": "prompt_tuning", "num_virtual_tokens": 6})
    check("p", condition)
    model, trainable = build("p", condition, base, 0)
    assert trainable.n_trainable == 6 * 64
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["prompt_encoder.default.embedding.weight"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "lorra", "r": 8}, r"conditions\.c\.method: unknown method 'lorra' \(did you mean 'lora'\?\)"),
        ({"method": "lora", "target_modules": "mlp", "rr": 8}, r"conditions\.c\.rr: unknown setting of lora"),
        (
            {"method": "lora", "target_modules": "mlp", "lora_dropuot": 0.1},
            r"conditions\.c\.lora_dropuot: .*did you mean 'lora_dropout'",
        ),
        ({"method": "prompt_tuning", "num_virtual_token": 8}, r"did you mean 'num_virtual_tokens'"),
    ],
)
def test_a_setting_that_the_method_does_not_have_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=words):
        check("c", Condition.model_validate(fields))


@pytest.mark.parametrize("wanted", ["attn", ("q_proj", "qq_proj"), "self_attn"])
def test_a_target_that_matches_nothing_is_named_with_what_there_is(base: Any, wanted: Any) -> None:
    with pytest.raises(StudyError, match=r"conditions\.c\.target_modules: no linear module named.*down_proj.*q_proj"):
        targets("c", wanted, base)

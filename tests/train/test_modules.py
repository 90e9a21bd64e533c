"""The name table, against the parameter names that real architectures have."""

from __future__ import annotations

import pytest

from veritune.train.modules import FACTORS, GROUPS, TYPES, factor, layer_index, module_group, module_type, plain_name

CASES = [
    # name, type, group, layer, factor
    ("model.layers.3.self_attn.q_proj.weight", "q", "attention", 3, "full"),
    ("base_model.model.model.layers.12.mlp.down_proj.lora_A.default.weight", "down", "mlp", 12, "A"),
    ("base_model.model.model.layers.0.self_attn.v_proj.lora_B.probe.weight", "v", "attention", 0, "B"),
    (
        "base_model.model.model.layers.0.self_attn.v_proj.lora_magnitude_vector.default.weight",
        "v",
        "attention",
        0,
        "other",
    ),
    ("base_model.model.model.layers.0.self_attn.v_proj.base_layer.weight", "v", "attention", 0, "full"),
    ("base_model.model.lm_head.modules_to_save.default.weight", "head", "head", None, "full"),
    ("base_model.model.model.embed_tokens.lora_embedding_A.default", "embed", "embed", None, "A"),
    ("_orig_mod.model.layers.7.mlp.gate_proj.weight", "gate", "mlp", 7, "full"),
    ("model.layers.1._fsdp_wrapped_module.mlp.up_proj.weight", "up", "mlp", 1, "full"),
    ("module.model.layers.1.input_layernorm.weight", "norm", "norm", 1, "full"),
    ("model.layers.1.self_attn.q_norm.weight", "norm", "norm", 1, "full"),
    ("model.layers.5.self_attn.qkv_proj.weight", "qkv", "attention", 5, "full"),
    ("model.layers.5.mlp.gate_up_proj.weight", "gate_up", "mlp", 5, "full"),
    ("model.layers.5.self_attn.dense.weight", "o", "attention", 5, "full"),
    ("model.layers.5.mlp.fc1.bias", "up", "mlp", 5, "full"),
    ("transformer.h.11.attn.c_attn.weight", "qkv", "attention", 11, "full"),
    ("transformer.h.11.attn.c_proj.weight", "o", "attention", 11, "full"),
    ("transformer.h.11.mlp.c_proj.weight", "down", "mlp", 11, "full"),
    ("transformer.h.11.mlp.c_fc.bias", "up", "mlp", 11, "full"),
    ("transformer.wte.weight", "embed", "embed", None, "full"),
    ("transformer.ln_f.weight", "norm", "norm", None, "full"),
    ("gpt_neox.layers.2.attention.query_key_value.weight", "qkv", "attention", 2, "full"),
    ("gpt_neox.layers.2.attention.dense.weight", "o", "attention", 2, "full"),
    ("gpt_neox.layers.2.mlp.dense_4h_to_h.weight", "down", "mlp", 2, "full"),
    ("embed_out.weight", "head", "head", None, "full"),
    ("model.layers.0.mlp.experts.gate_up_proj", "gate_up", "mlp", 0, "full"),
    ("model.layers.0.mlp.experts.down_proj_bias", "down", "mlp", 0, "full"),
    ("model.layers.0.mlp.gate.weight", "router", "mlp", 0, "full"),
    ("prompt_encoder.default.embedding.weight", "prompt", "other", None, "other"),
    ("model.layers.0.self_attn.sinks", "other", "other", 0, "full"),
    ("visual.something.new", "other", "other", None, "full"),
]


@pytest.mark.parametrize(("name", "kind", "group", "layer", "part"), CASES)
def test_name_is_read_as_expected(name: str, kind: str, group: str, layer: int | None, part: str) -> None:
    assert (module_type(name), module_group(name), layer_index(name), factor(name)) == (kind, group, layer, part)


def test_every_answer_is_a_declared_one() -> None:
    for name, *_ in CASES:
        assert module_type(name) in TYPES
        assert module_group(name) in GROUPS
        assert factor(name) in FACTORS


def test_a_parameter_and_its_module_read_alike() -> None:
    for name, kind, *_ in CASES:
        assert module_type(plain_name(name)) == kind

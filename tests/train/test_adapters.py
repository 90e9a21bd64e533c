"""One reader for every adapter: what it says merging must do is what PEFT's own merge does, kind by kind."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, EvaConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from veritune.errors import ModelError
from veritune.probe.weights import adapter_change
from veritune.release.parity.merge import check_weights, judge
from veritune.release.parity.merge_outputs import Outputs
from veritune.train.adapters.reading import read_adapter

pytestmark = pytest.mark.filterwarnings("ignore")

SIZE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
QV = ["q_proj", "v_proj"]
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 4}
BASES: dict[str, Callable[[], Any]] = {
    "tied": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=True)),
    "free": lambda: LlamaForCausalLM(LlamaConfig(**SIZE, tie_word_embeddings=False)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZE, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=96, n_embd=16, n_layer=1, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)
    ),
    "moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZE, **MOE, decoder_sparse_step=1)),
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
RIGHT: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns as expressions": (
        "tied",
        {"rank_pattern": {r".*\.layers\.1\..*q_proj": 8}, "alpha_pattern": {r"^model\.layers\.0\.\w+\.q_proj": 40}},
    ),
    "rslora with patterns": ("tied", {"use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 5}}),  # noqa: E501
    "dora": ("tied", {"use_dora": True, "alpha_pattern": {"q_proj": 3}}),
    "dora on embeddings": ("free", {"target_modules": [*QV, "embed_tokens"], "use_dora": True}),
    "dora on Conv1D": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "square Conv1D": ("gpt2", {"target_modules": ["c_proj"]}),
    "biases of the layers": ("qwen2", {"bias": "lora_only"}),
    "all biases": ("qwen2", {"bias": "all"}),
    "a bias of the factors": ("qwen2", {"lora_bias": True}),
    "norms saved in full": ("tied", {"modules_to_save": ["norm", "input_layernorm"]}),
    "a tied head saved in full": ("tied", {"modules_to_save": ["lm_head"]}),
    "both ends saved in full": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "some layers": ("tied", {"layers_to_transform": 1, "layers_pattern": "layers"}),
    "targets as an expression": ("tied", {"target_modules": r".*layers\.0\..*(q|o)_proj"}),
    "excluded modules": ("tied", {"exclude_modules": r".*layers\.0.*q_proj"}),
    "token rows of tied embeddings": ("tied", {"trainable_token_indices": {"embed_tokens": [10, 11]}}),
    "token rows of both ends": ("free", {"trainable_token_indices": {"embed_tokens": [10, 11], "lm_head": [1]}}),
    "an untied head": ("free", {"target_modules": [*QV, "lm_head"]}),
    "pissa": ("tied", {"init_lora_weights": "pissa"}),
    "pissa on Conv1D": ("gpt2", {"target_modules": ["c_attn"], "init_lora_weights": "pissa", "use_rslora": True}),
    "pissa under dora": ("tied", {"init_lora_weights": "pissa", "use_dora": True}),
    "olora": ("tied", {"init_lora_weights": "olora"}),
    "eva": ("tied", {"init_lora_weights": "eva", "eva_config": EvaConfig()}),
    "mica": ("tied", {"init_lora_weights": "mica"}),
    "kasa": ("tied", {"kasa_config": KasaConfig()}),
    "velora": ("tied", {"velora_config": VeloraConfig()}),
    "monteclora": ("tied", {"monteclora_config": MontecloraConfig()}),
    "diagonal blocks": (
        "tied", {"target_modules": [*QV, "o_proj"], "use_bdlora": BdLoraConfig(["o_proj"], ["q_proj", "v_proj"], 2)},
    ),
    "experts": ("moe", {"target_parameters": EXPERTS, "rank_pattern": {"experts.down_proj": 2}}),
    "a parameter of a layer": ("tied", {"target_modules": [], "target_parameters": ["self_attn.q_proj.weight"]}),
    "a resized vocabulary": ("tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "a resized vocabulary, carried along": ("tied", {}),
    "token rows of a resized vocabulary": ("tied", {"trainable_token_indices": {"embed_tokens": [96, 97]}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bases")
    for name, make in BASES.items():
        torch.manual_seed(0)
        model = make().float()
        for p in model.parameters():
            if p.dim() > 1:
                p.data.mul_(3)
        model.save_pretrained(root / name)
    return root


def train(base: Path, folder: Path, *, resize: int = 0, **config: Any) -> tuple[Path, Path, float]:
    """An adapter as PEFT saves it, PEFT's own merge, and how far the merged model's logits are from the adapter's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        if resize:
            model.resize_token_embeddings(SIZE["vocab_size"] + resize)
        settings = {"r": 4, "lora_alpha": 8, "target_modules": QV, "task_type": "CAUSAL_LM", **config}
        adapted = get_peft_model(model, LoraConfig(**settings)).eval()
        torch.manual_seed(1)
        for p in adapted.parameters():
            if p.requires_grad:
                p.data.add_(torch.randn_like(p) * 0.05)
        adapted.save_pretrained(folder / "adapter")
        ids = torch.arange(5, 37)[None]
        with torch.no_grad():
            live = adapted(input_ids=ids).logits
            adapted.merge_and_unload().save_pretrained(folder / "merged")
            again = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32)
            apart = float((again(input_ids=ids).logits - live).abs().max())
    return folder / "adapter", folder / "merged", apart


def errors(base: Path, adapter: Path, merged: Path) -> dict[str, str]:
    return {f.check: f.message for f in check_weights(base, adapter, merged)[1] if f.severity == "error"}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_merge_is_read_as_one_to_the_last_weight(bases: Path, tmp_path: Path, kind: str) -> None:
    name, config = RIGHT[kind]
    base = bases / name
    adapter, merged, apart = train(base, tmp_path, resize=3 if "resized" in kind else 0, **config)
    assert apart < 1e-4, "PEFT's own merge is not the adapter here"
    modules, findings = check_weights(base, adapter, merged)
    assert {m.reading for m in modules} == {"merged"}
    assert [f.message for f in findings if f.severity == "error"] == []
    new = load_file(merged / "model.safetensors")
    for change in read_adapter(adapter, base).changes():
        found = new.get(change.key, new.get(change.stored))
        assert found is not None
        assert float((found.double() - change.weight - change.delta).abs().max()) < 1e-5, change.key
    assert adapter_change(adapter, base).total.delta_norm > 0


@pytest.mark.parametrize("kind", ["patterns as expressions", "biases of the layers", "pissa", "experts",
                                  "token rows of tied embeddings", "dora on embeddings"])  # fmt: skip
def test_a_change_that_is_left_out_of_one_weight_is_found(bases: Path, tmp_path: Path, kind: str) -> None:
    name, config = RIGHT[kind]
    adapter, merged, _ = train(bases / name, tmp_path, **config)
    old, new = load_file(bases / name / "model.safetensors"), load_file(merged / "model.safetensors")
    for key in [k for k in new if not torch.equal(new[k], old[k])]:
        save_file(new | {key: old[key]}, merged / "model.safetensors", metadata={"format": "pt"})
        assert "merge.not_applied" in errors(bases / name, adapter, merged), key


def test_a_merge_by_the_default_alpha_where_a_pattern_rules_is_found(bases: Path, tmp_path: Path) -> None:
    adapter, _, _ = train(bases / "tied", tmp_path, alpha_pattern={r".*layers\.1\..*q_proj": 64})
    (tmp_path / "plain").mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    plain = tmp_path / "plain" / "adapter"
    plain.mkdir()
    (plain / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {}}), "utf-8")
    (plain / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    wrong = merged_by_peft(bases / "tied", plain, tmp_path / "wrong")
    (message,) = errors(bases / "tied", adapter, wrong).values()
    assert "1 of 4 modules" in message and "layers.1.self_attn.q_proj" in message


def merged_by_peft(base: Path, adapter: Path, out: Path) -> Path:
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    return out


@pytest.mark.parametrize(("target", "other"), [("lm_head", "embed_tokens"), ("embed_tokens", "lm_head")])
def test_a_merge_that_changes_both_tied_ends_for_one_is_named(
    bases: Path, tmp_path: Path, target: str, other: str
) -> None:
    adapter, merged, apart = train(bases / "tied", tmp_path, target_modules=[*QV, target])
    assert apart > 0.1
    message = errors(bases / "tied", adapter, merged)["merge.tied"]
    assert (
        f"{target}.weight, but the base keeps it" in message
        and other in message
        and "the merged model changed both" in message
    )


def test_a_config_that_ties_what_its_tensors_do_not_is_named(bases: Path, tmp_path: Path) -> None:
    adapter, merged, _ = train(bases / "tied", tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    path = merged / "config.json"
    config = json.loads(path.read_text("utf-8"))
    assert errors(bases / "tied", adapter, merged) == {} and config["tie_word_embeddings"] is False
    path.write_text(json.dumps(config | {"tie_word_embeddings": True}), "utf-8")
    assert (
        "differ: a loader that follows the config loses one of them; set tie_word_embeddings to false"
        in errors(bases / "tied", adapter, merged)["merge.tie_flag"]
    )


def test_a_merge_that_peft_itself_applies_twice_is_found(bases: Path, tmp_path: Path) -> None:
    """PEFT 0.21 adds the LoRA of tied embeddings once for each end to the one tensor."""
    adapter, merged, apart = train(
        bases / "tied", tmp_path, target_modules=[*QV, "embed_tokens"], ensure_weight_tying=True
    )
    found = errors(bases / "tied", adapter, merged)
    assert (apart < 1e-4) is ("merge.applied_twice" not in found)


# ---------------------------------------------------------------- refused by name


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "alora_invocation_tokens",
            [1],
            "an activated LoRA acts only after its invocation tokens, which no merged weights can express",
        ),
        ("arrow_config", {"top_k": 2}, "a router chooses"),
        ("use_qalora", True, "QALoRA"),
        ("layer_replication", [[0, 2]], "more layers than the base"),
        ("megatron_config", {"a": 1}, "split over machines"),
        ("init_lora_weights", "pissa_niter_4", "moves the base by a random decomposition"),
        ("init_lora_weights", "corda", "covariance"),
        ("init_lora_weights", "loftq", "quantising"),
        ("init_lora_weights", "novel", "init_lora_weights = 'novel' is unknown"),
        ("use_novelty", True, "unknown field use_novelty = 'True'"),
        ("r", 8, "factors of rank 4, but the config says 8"),
        ("r", "4", "r: expected a number"),
        ("alpha_pattern", {"(": 3}, "is not a regular expression"),
        ("peft_type", "IA3", "IA3 adapters cannot be read"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    bases: Path, tmp_path: Path, field: str, value: object, message: str
) -> None:
    adapter, merged, _ = train(bases / "tied", tmp_path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {field: value}), "utf-8")
    with pytest.raises(ModelError) as told:
        check_weights(bases / "tied", adapter, merged)
    assert message in str(told.value)


@pytest.mark.parametrize(
    "written",
    [{"rank_pattern": None, "alpha_pattern": None}, {"bias": None}, {"r": 4.0}, {"rank_pattern": {"q_proj": 4.0}}],
    ids=str,
)
def test_nulls_and_whole_floats_of_other_writers_are_read(
    bases: Path, tmp_path: Path, written: dict[str, object]
) -> None:
    adapter, merged, _ = train(bases / "tied", tmp_path)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | written), "utf-8")
    assert errors(bases / "tied", adapter, merged) == {}


def test_every_field_of_the_installed_peft_has_a_place_in_the_table() -> None:
    import dataclasses

    from veritune.train.adapters.config import HONOURED, REFUSED, WITHOUT_EFFECT

    fields = {f.name for f in dataclasses.fields(LoraConfig)}
    assert fields - HONOURED - WITHOUT_EFFECT - set(REFUSED) == set()
    assert not HONOURED & WITHOUT_EFFECT and not set(REFUSED) & (HONOURED | WITHOUT_EFFECT)


def test_tensors_that_fit_no_weight_are_refused(bases: Path, tmp_path: Path) -> None:
    adapter, merged, _ = train(bases / "tied", tmp_path)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"base_model.model.model.layers.0.self_attn.z_proj.lora_A.weight": torch.ones(4, 16)}, path)
    with pytest.raises(ModelError, match=r"1 of 9 tensors fit no weight of this base, first .*z_proj"):
        check_weights(bases / "tied", adapter, merged)
    save_file({k: v for k, v in tensors.items() if "layers.1.self_attn.q_proj" not in k}, path)
    found = {f.check: f.message for f in check_weights(bases / "tied", adapter, merged)[1]}
    assert "1 module that adapter_config.json adapts has no tensors" in found["merge.without_tensors"]
    assert "layers.1.self_attn.q_proj" in found["merge.others_changed"]


def test_parts_that_the_config_does_not_ask_for_are_refused(bases: Path, tmp_path: Path) -> None:
    """PEFT passes over a magnitude without use_dora: a merge that used it is not what the adapter serves."""
    adapter, merged, _ = train(bases / "tied", tmp_path, use_dora=True)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"use_dora": False}), "utf-8")
    with pytest.raises(ModelError, match=r"lora_magnitude_vector, which adapter_config\.json does not name"):
        check_weights(bases / "tied", adapter, merged)
    with pytest.raises(ModelError, match="does not name"):
        adapter_change(adapter)


def test_a_file_without_factors_or_without_pefts_prefix_is_named_without_a_base(bases: Path, tmp_path: Path) -> None:
    adapter, _, _ = train(bases / "tied", tmp_path)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k.removeprefix("base_model.model."): v for k, v in tensors.items()}, path)
    with pytest.raises(ModelError, match=r", so PEFT would ignore it \("):
        adapter_change(adapter)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ModelError, match="expected LoRA factors in the adapter, found none"):
        adapter_change(adapter)


def test_patterns_that_overlap_are_said(bases: Path, tmp_path: Path) -> None:
    patterns = {"q_proj": 3, r"layers\.0\.self_attn\.q_proj": 40}
    adapter, _, _ = train(bases / "tied", tmp_path, alpha_pattern=patterns)
    (note,) = read_adapter(adapter, bases / "tied").notes
    assert "several patterns of alpha_pattern match model.layers.0.self_attn.q_proj" in note


# ---------------------------------------------------------------- weights against outputs


def outputs(kl: float, adapter: float | None) -> Outputs:
    nll = {"value": 0.0, "low": None, "high": None, "n": 3}
    return Outputs(9, kl, kl, kl, kl, kl, 1e-12, 1e-12, 0.1, nll, 3, 3, (), 0, {}, (1e-12,), 0.1, 0.1, adapter)


@pytest.mark.parametrize(
    ("kl", "effect", "status"),
    [(1e-14, 0.4, "undecided"), (1e-3, 0.4, "failed"), (1e-14, 0.0, "failed"), (1e-14, None, "failed")],
)
def test_faulty_weights_beside_equal_outputs_are_said_to_disagree(
    bases: Path, tmp_path: Path, kl: float, effect: float | None, status: str
) -> None:
    adapter, merged, _ = train(bases / "tied", tmp_path)
    found = judge(*check_weights(bases / "tied", adapter, bases / "tied"), outputs(kl, effect))
    assert found.status == status
    assert found.message.startswith("weights and outputs disagree: by the weights") is (status == "undecided")
    assert judge(*check_weights(bases / "tied", adapter, merged), outputs(kl, effect)).status == "passed"

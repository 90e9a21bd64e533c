"""Merge parity: a right merge passes; every planted fault is found and called by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from veritune.errors import InputError, ModelError
from veritune.records import Rendered
from veritune.release.parity.merge import check_weights, merge_adapter, parity, read_module
from veritune.release.parity.merge_outputs import MergeOptions, rerounded
from veritune.train.models import ModelRef, load_base

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning",
    "ignore:.*tie_word_embeddings.*",
    "ignore:Setting .save_embedding_layers",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ModelRef:
    """The tiny model in bfloat16, as bases are stored."""
    folder = tmp_path_factory.mktemp("merge") / "base"
    load_base(ModelRef("tiny", tiny_model, "bfloat16")).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (tiny_model / name).exists():
            shutil.copy(tiny_model / name, folder / name)
    return ModelRef("tiny", folder, "bfloat16")


def adapter(ref: ModelRef, folder: Path, *, size: float = 0.02, seed: int = 0, **config: Any) -> Path:
    """A LoRA with random factors, saved as PEFT saves it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **config}
    model = get_peft_model(load_base(ref), LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                p.normal_(0, size)
            if "modules_to_save" in name:
                p.add_(0.01 * torch.randn_like(p))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def made(base: ModelRef, tmp_path: Path) -> tuple[Path, Path]:
    lora = adapter(base, tmp_path / "adapter")
    return lora, merge_adapter(load_base(base), lora, tmp_path / "merged")


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change a merged model's weights on disk."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def kinds(base: ModelRef, lora: Path, merged: Path) -> dict[str, str]:
    return {f.check: f.message for f in check_weights(base.path, lora, merged)[1]}


ROWS = [Rendered(f"r{i}", tuple(range(5 + i, 25 + i)), (*[-100] * 8, *range(13 + i, 25 + i))) for i in range(12)]
OPTIONS = MergeOptions(max_new_tokens=8)


# ---------------------------------------------------------------- a right merge


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"alpha_pattern": {"v_proj": 32}, "rank_pattern": {"q_proj": 2}},
    ],
    ids=["lora", "rslora", "dora", "saved in full", "embeddings", "patterns"],
)
def test_a_right_merge_has_scale_one_everywhere(base: ModelRef, tmp_path: Path, config: dict[str, Any]) -> None:
    lora = adapter(base, tmp_path / "adapter", **config)
    merged = merge_adapter(load_base(base), lora, tmp_path / "merged")
    modules, findings = check_weights(base.path, lora, merged)
    assert {m.reading for m in modules} == {"merged"} and findings == []
    assert all(m.scale == pytest.approx(1, abs=0.02) for m in modules)
    if "modules_to_save" in config:
        assert "saved in full" in {m.how for m in modules}


def test_a_right_merge_passes_and_its_outputs_differ_by_no_more_than_rounding(
    base: ModelRef, made: tuple[Path, Path]
) -> None:
    found = parity(base, *made, ROWS, OPTIONS)
    assert found.status == "passed", found.message
    assert found.outputs is not None and 0 < found.outputs.kl_mean < 1e-3
    assert found.outputs.floors < 4
    draws = found.outputs.kl_draws
    assert len(set(draws)) == 5 and found.outputs.kl_floor == pytest.approx(sum(draws) / 5)
    assert found.outputs.floors_low <= found.outputs.floors <= found.outputs.floors_high
    assert found.outputs.positions == sum(r.n_target for r in ROWS)
    assert all(d.tie for d in found.outputs.divergences)


def test_without_rows_the_check_is_undecided_and_never_passed(base: ModelRef, made: tuple[Path, Path]) -> None:
    found = parity(base, *made, [], OPTIONS)
    assert found.status == "undecided" and "outputs were not compared" in found.message


def test_shards_are_read_as_one(base: ModelRef, made: tuple[Path, Path], tmp_path: Path) -> None:
    lora, merged = made
    load_base(replace(base, path=merged)).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    modules, findings = check_weights(base.path, lora, tmp_path / "shards")
    assert {m.reading for m in modules} == {"merged"} and findings == []


# ---------------------------------------------------------------- planted faults


def test_an_adapter_that_was_not_applied_is_named(base: ModelRef, made: tuple[Path, Path]) -> None:
    found = parity(base, made[0], base.path, ROWS, OPTIONS)
    assert found.status == "failed"
    assert "the adapter: the change is not in the merged weights" in found.message
    assert found.outputs is not None and found.outputs.floors > 10


def test_an_adapter_that_was_applied_twice_is_named(base: ModelRef, made: tuple[Path, Path], tmp_path: Path) -> None:
    lora, merged = made
    twice = merge_adapter(load_base(replace(base, path=merged)), lora, tmp_path / "twice")
    found = kinds(base, lora, twice)
    assert set(found) == {"merge.applied_twice"}
    assert parity(base, lora, twice, ROWS, OPTIONS).status == "failed"


@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0, -1.0])
def test_a_wrong_scaling_is_named_with_its_factor(
    base: ModelRef, made: tuple[Path, Path], tmp_path: Path, factor: float
) -> None:
    lora, _ = made
    wrong = shutil.copytree(lora, tmp_path / "wrong")
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * factor}))
    merged = merge_adapter(load_base(base), wrong, tmp_path / "scaled")
    modules, findings = check_weights(base.path, lora, merged)
    assert [f.check for f in findings] == ["merge.wrong_scaling"]
    assert all(m.scale == pytest.approx(factor, abs=0.05) for m in modules)


def test_layers_that_were_left_out_are_named(base: ModelRef, made: tuple[Path, Path]) -> None:
    lora, merged = made
    old = load_file(base.path / "model.safetensors")
    left = [k for k in old if "layers.1" in k and "q_proj" in k]
    edit(merged, lambda w: w.update({k: old[k] for k in left}))
    message = kinds(base, lora, merged)["merge.not_applied"]
    assert message.startswith("1 of 6 modules") and "layers.1.self_attn.q_proj" in message
    edit(merged, lambda w: [w.pop(k) for k in left])
    assert "is missing" in kinds(base, lora, merged)["merge.missing"]


def test_another_adapter_s_merge_is_named(base: ModelRef, made: tuple[Path, Path], tmp_path: Path) -> None:
    other = adapter(base, tmp_path / "other", seed=7)
    merged = merge_adapter(load_base(base), other, tmp_path / "of-other")
    assert set(kinds(base, made[0], merged)) == {"merge.another_adapter"}


def test_a_weight_that_the_adapter_leaves_alone_may_not_change(base: ModelRef, made: tuple[Path, Path]) -> None:
    lora, merged = made
    key = "model.layers.0.mlp.up_proj.weight"
    edit(merged, lambda w: w.update({key: w[key] + 1}))
    assert key in kinds(base, lora, merged)["merge.others_changed"]
    edit(merged, lambda w: w.pop("model.norm.weight"))
    assert "model.norm.weight" in kinds(base, lora, merged)["merge.others_missing"]


def test_an_adapter_of_another_base_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    with pytest.raises(ModelError, match="the adapter fits a weight of shape"):
        check_weights(tmp_path / "wide", *made)
    with pytest.raises(ModelError, match="cannot be loaded on this base: size mismatch"):
        merge_adapter(load_base(ModelRef("wide", tmp_path / "wide", "float32")), made[0], tmp_path / "x")


def test_an_adapter_on_tied_embeddings_is_named(tmp_path: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tied = LlamaConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(tied).to(torch.bfloat16).save_pretrained(tmp_path / "tied")
    ref = ModelRef("tied", tmp_path / "tied", "bfloat16")
    lora = adapter(ref, tmp_path / "adapter", target_modules=["embed_tokens", "q_proj"])
    merged = merge_adapter(load_base(ref), lora, tmp_path / "merged")
    assert "the merged model has untied them" in kinds(ref, lora, merged)["merge.tied"]
    assert {m.reading for m in check_weights(ref.path, lora, merged)[0]} == {"merged"}
    both = PeftModel.from_pretrained(load_base(ref), lora).merge_and_unload()
    both.save_pretrained(tmp_path / "both")
    assert (
        ": the merged model changed both, which makes it a different model; untie them before merging"
        in kinds(ref, lora, tmp_path / "both")["merge.tied"]
    )


# ---------------------------------------------------------------- rounding


def test_a_change_below_the_steps_of_the_precision_is_lost_and_said_so() -> None:
    """bfloat16 at 1.0 has steps of 1/128: a change of 1/1000 is lost in any merge."""
    weight, delta = torch.ones(64, 64, dtype=torch.float64), torch.full((64, 64), 1e-3, dtype=torch.float64)
    assert read_module(weight, weight, delta, torch.bfloat16)[-1] == "lost to rounding"
    assert read_module(weight + delta, weight, delta, torch.float32)[-1] == "merged"
    assert read_module(weight, weight, delta, torch.float32)[-1] == "not applied"
    assert read_module(weight + 0.5, weight, delta, torch.bfloat16)[-1] == "another adapter"


def test_rounding_once_more_has_the_variance_of_one_rounding() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(400, 400, bias=False)
    exact = torch.empty(400, 400, dtype=torch.float64).uniform_(1, 2)
    model.weight.data = exact.to(torch.bfloat16)
    once = (model.weight.data.double() - exact).square().mean()
    before = model.weight.data.double().clone()
    rerounded(model, ["weight"], seed=1)
    again = (model.weight.data.double() - before).square().mean()
    assert float(again / once) == pytest.approx(1, abs=0.05)


def test_a_zero_weight_stays_zero_and_nothing_becomes_infinite() -> None:
    model = torch.nn.Linear(64, 64, bias=False)
    model.weight.data = torch.zeros(64, 64, dtype=torch.bfloat16)
    rerounded(model, ["weight"], seed=1)
    assert torch.equal(model.weight.data, torch.zeros(64, 64, dtype=torch.bfloat16))


# ---------------------------------------------------------------- the command


def test_the_command_merges_compares_and_exits_2_on_a_fault(
    base: ModelRef, tmp_path: Path, forks: Any, study: Any
) -> None:
    lora = adapter(base, tmp_path / "adapter")
    named = ["--model", base.path, "--adapter", lora, "--data", study.root / "rows.jsonl", "--rows", 6]
    export = ["--export", tmp_path / "merged"]
    done = forks("merge-parity", *named, "--out", tmp_path / "merged", "--max-new-tokens", 6, *export)
    assert done.rc == 0, done.out + done.err
    assert "6 of 6 changed weights are merged" in done.out and "greedy answers are equal" in done.out
    assert "in 5 draws" in done.out and "shards   PASSED" in done.out
    wrong = forks("merge-parity", *named, "--merged", base.path, "--max-new-tokens", 6, "--json")
    assert wrong.rc == 2 and json.loads(wrong.out)["findings"][0]["check"] == "merge.not_applied"
    again = forks("merge-parity", *named, "--out", tmp_path / "merged")
    assert again.rc == 1 and "is not empty" in again.err


def test_too_little_is_said(tmp_path: Path) -> None:
    from veritune.release.parity.merge_command import MergeRequest, merge_command

    with pytest.raises(InputError, match="expected a study, or a model and an adapter"):
        merge_command(MergeRequest(model="x"), OPTIONS)


def test_in_a_study_the_gate_reads_what_was_compared(finished_copy: Any, forks: Any) -> None:
    from veritune.release.gate.evidence import read_evidence, weights_digest
    from veritune.release.parity.merge_command import MergeRequest, Scored, merge_command
    from veritune.store import Store

    root = finished_copy.root
    done = forks("merge-parity", root, "--condition", "all_layer", "--dtype", "float32", "--max-new-tokens", 6)
    assert done.rc == 0, done.out + done.err
    record = read_evidence(Store(root), "merge")
    assert record is not None and record.status == "passed"
    merged = root / "release" / "merged"
    assert record.subject.merged == weights_digest(merged)
    asked = MergeRequest(root, condition="all_layer", merged=merged, scored=Scored("style"), rows=6)
    with pytest.raises(InputError, match="scores are compared by a margin, but none was declared"):
        merge_command(asked, OPTIONS)
    options = replace(OPTIONS, dtype="float32", draws=2)
    found = merge_command(replace(asked, scored=Scored("style", margin=0.2)), options)
    record = read_evidence(Store(root), "merge")
    assert record is not None and record.status == found.status == "undecided" and record.thresholds["margin"] == 0.2
    scores = record.numbers["scores of merged"]
    assert scores["n"] == scores["equal"] == 33 and scores["gap"] == 0 and scores["low"] < -0.2  # 11 families: too few


def test_outputs_that_are_no_numbers_never_pass(base: ModelRef, made: tuple[Path, Path]) -> None:
    """NaN compares false with every limit."""
    from veritune.release.parity.merge import judge
    from veritune.release.parity.merge_outputs import Outputs

    nan = float("nan")
    nll = {"value": nan, "low": None, "high": None, "n": 3, "method": "x"}
    outputs = Outputs(9, 0.0, nan, nan, nan, nan, nan, nan, nan, nll, 3, 3, (), 0)
    assert judge([], [], outputs).status == "failed"
    lora, merged = made
    key = "model.layers.0.mlp.up_proj.weight"
    edit(merged, lambda w: w.update({key: torch.full_like(w[key], float("inf"))}))
    with pytest.raises(ModelError, match="NaN or infinite values in bfloat16"):
        parity(base, lora, merged, ROWS, OPTIONS)


def test_a_worse_merge_does_not_excuse_its_own_divergences() -> None:
    """A tie is measured by what rounding makes, not by how far the two models are apart."""
    from veritune.release.parity.merge_outputs import AnswerDivergence, with_ties

    (found,) = with_ties([AnswerDivergence("r", 1, "a", "b", 0.5, False, "")], 0.01)
    assert not found.tie
    assert with_ties([AnswerDivergence("r", 1, "a", "b", 0.015, False, "")], 0.01)[0].tie


def test_the_spread_of_the_draws_does_not_decide(base: ModelRef, made: tuple[Path, Path]) -> None:
    """A KL that passes against one draw and fails against another is open; the merged weights are put back."""
    from veritune.release.parity.merge import judge

    found = parity(base, *made, ROWS, replace(OPTIONS, draws=2))
    assert found.outputs is not None
    steady = replace(found.outputs, divergences=(), floors=5.0)
    for low, high, word in ((1.0, 3.9, "passed"), (3.0, 12.0, "undecided"), (11.0, 14.0, "failed")):
        spread = replace(steady, floors_low=low, floors_high=high)
        assert judge(found.modules, [], spread).status == word
    with pytest.raises(InputError, match="expected 2 or more"):
        MergeOptions(draws=1)


def test_every_draw_starts_from_the_merged_weights(base: ModelRef, made: tuple[Path, Path]) -> None:
    from veritune.release.parity.merge_outputs import _floor, target_logits

    merged = load_base(replace(base, path=made[1]))
    before = {name: p.data.clone() for name, p in merged.named_parameters()}
    touched = [n for n in before if n.endswith(("q_proj.weight", "v_proj.weight", "down_proj.weight"))]
    kept = list(target_logits(merged, ROWS, 2, 8))
    several, _ = _floor(merged, touched, ROWS, kept, (2, replace(OPTIONS, draws=3)))
    assert all(torch.equal(p.data, before[name]) for name, p in merged.named_parameters())
    last, _ = _floor(merged, touched, ROWS, kept, (2, replace(OPTIONS, draws=2, seed=1)))
    assert several[1:] == last

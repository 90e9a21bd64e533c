"""Norms of weight changes as a grid: modules × conditions over shared seeds, beside a reference arm."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from veritune.errors import ModelError
from veritune.probe.norms import beyond
from veritune.probe.series import Moved, _over_steps, change_of
from veritune.probe.weight_cells import grid_table, judge_weights, norms_of, study_grid

MODULES = {f"layers.{i}.q_proj": i for i in range(6)}


def norms(size: float, **own: float) -> dict:
    made = {name: (size, "q", layer) for name, layer in MODULES.items()}
    return made | {name: (value, "q", MODULES[name]) for name, value in own.items()}


def runs(ratio: float, seeds: int = 3, jitter: float = 0.01) -> dict:
    made = {("lora", s): norms(1.0 + 0.1 * s) for s in range(seeds)}
    return made | {("full", s): norms(ratio * (1.0 + 0.1 * s) * (1 + jitter * (s - 1))) for s in range(seeds)}


@pytest.mark.parametrize(("ratio", "word"), [(3.0, "above"), (0.3, "below"), (1.0, "between"), (1.4, "between")])
def test_a_ratio_beyond_the_rule_and_clear_of_1_gets_its_word(ratio: float, word: str) -> None:
    grid = judge_weights(runs(ratio), "lora")
    assert {c.verdict for c in grid.cells} == {word} and len(grid.cells) == 6
    assert grid.cells[0].ratio == pytest.approx(ratio, rel=0.01)
    assert grid.counts[0][word] == 6 and grid.family["values"] == 6 and "no smallest p" in grid.family["why"]
    assert "full" in grid_table(grid)


def test_a_large_ratio_that_the_seeds_do_not_agree_on_is_withheld() -> None:
    made = runs(3.0)
    for s, size in enumerate((0.2, 3.0, 30.0)):
        made["full", s] = norms(size)
    grid = judge_weights(made, "lora")
    assert {c.by_rule for c in grid.cells} == {"above"} and {c.verdict for c in grid.cells} == {"withheld"}


def test_one_seed_has_a_ratio_and_no_p_so_that_nothing_beyond_the_rule_is_shown() -> None:
    grid = judge_weights(runs(3.0, seeds=1), "lora")
    assert {(c.p, c.low, c.verdict) for c in grid.cells} == {(None, None, "withheld")}
    assert grid.family == {**grid.family, "values": 0, "without_p": 6}


def test_the_mean_over_seeds_is_geometric() -> None:
    made = {("lora", 0): norms(1.0), ("lora", 1): norms(1.0), ("full", 0): norms(4.0), ("full", 1): norms(1.0)}
    (cell, *_) = judge_weights(made, "lora").cells
    assert cell.ratio == pytest.approx(2.0) and (cell.above, cell.below) == (1, 0)
    assert cell.low is not None and math.log(cell.low) == pytest.approx(math.log(2) - 12.706 * math.log(2), rel=1e-3)


def test_modules_that_one_arm_does_not_train_are_no_cells_and_no_shared_seed_is_an_error() -> None:
    made = {("lora", 0): {"layers.0.q_proj": (1.0, "q", 0)}, ("full", 0): norms(2.0)}
    assert [c.module for c in judge_weights(made, "lora").cells] == ["layers.0.q_proj"]
    with pytest.raises(
        ModelError,
        match="a seed in common and a module that both train",
    ):
        judge_weights({("lora", 0): norms(1.0), ("full", 1): norms(1.0)}, "lora")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_a_full_checkpoint_is_compared_with_an_adapter_module_by_module(tmp_path: Path) -> None:
    """A full checkpoint names matrices (`q_proj.weight`), an adapter modules (`q_proj`): no cell was shared."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, tensor in adapted.named_parameters():
            tensor += 0.1 * ("lora_B" in name)
        for tensor in base.parameters():
            tensor += 0.01
    adapted.save_pretrained(tmp_path / "adapter")
    base.save_pretrained(tmp_path / "full")
    moved = {(name, 0): norms_of(change_of(tmp_path / name, tmp_path / "base").modules) for name in ("adapter", "full")}
    grid = judge_weights(moved, "adapter")
    assert [c.module for c in grid.cells] == [f"model.layers.{i}.self_attn.{m}_proj" for i in (0, 1) for m in "qv"]
    assert grid.cells[0].ratio == pytest.approx(0.01 * 32 / moved["adapter", 0][grid.cells[0].module][0], rel=1e-3)


def test_the_count_of_a_run_is_of_the_rule_alone() -> None:
    own = norms(1.0, **{"layers.0.q_proj": 1.51, "layers.1.q_proj": 1.5, "layers.2.q_proj": 0.49})
    assert beyond(own, norms(1.0)) == (6, 1, 1)


def test_steps_are_pooled_over_seeds() -> None:
    def line(seed: int, step: int, moved: float) -> Moved:
        return Moved(f"s{seed}", "full", seed, 1e-3, 10, step, None, moved, None, {}, 2.0)

    found = _over_steps([line(0, 4, 1.0), line(1, 4, 3.0), line(0, 8, 5.0), line(1, 8, 7.0)])
    assert [(x["step"], x["n_runs"], x["delta_norm"], x["least"], x["most"]) for x in found] == [
        (4, 2, 2.0, 1.0, 3.0),
        (8, 2, 6.0, 5.0, 7.0),
    ]
    assert _over_steps([line(0, 4, 1.0)]) == ()


def test_a_study_s_arms_are_compared_where_both_train_a_module(finished) -> None:
    grid = study_grid(finished.root, "attention_only")
    assert {c.condition for c in grid.cells} == {"all_layer"} and {c.seeds for c in grid.cells} == {(0, 1)}
    assert all("self_attn" in c.module for c in grid.cells)
    with pytest.raises(ModelError, match="did you mean 'all_layer'"):
        study_grid(finished.root, "all_layers")

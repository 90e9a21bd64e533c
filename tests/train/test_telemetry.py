"""Gradient telemetry, against gradients taken by hand from the same model, data and optimizer."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from veritune.errors import ModelError
from veritune.train import telemetry as telemetry_module
from veritune.train.modules import factor, layer_index, module_type
from veritune.train.telemetry import GradientTelemetry, read_telemetry

# peft 0.21 reads an attribute that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, n: int = 16, length: int = 7) -> None:
        draw = torch.Generator().manual_seed(3)
        self.ids_N_T = torch.randint(1, 50, (n, length), generator=draw)

    def __len__(self) -> int:
        return len(self.ids_N_T)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {
            "input_ids": self.ids_N_T[i],
            "labels": self.ids_N_T[i],
            "attention_mask": torch.ones_like(self.ids_N_T[i]),
        }


def tiny(*, lora: bool, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if not lora:
        return model
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))


def train(
    model: Any, folder: Path, *callbacks: TrainerCallback, trainer: type[Trainer] = Trainer, **settings: Any
) -> Trainer:
    base: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    args = TrainingArguments(**(base | settings))
    made = trainer(model=model, args=args, train_dataset=Rows(), callbacks=list(callbacks))
    made.remove_callback(PrinterCallback)
    made.remove_callback(ProgressCallback)
    resume = settings.get("resume_from_checkpoint")
    made.train(resume_from_checkpoint=resume)
    return made


class ByHand(Trainer):
    """Takes the gradients as they stand before clipping, and the weights around the step, without the callback."""

    taken: list[dict[str, torch.Tensor]]

    def _clip_grad_norm(self, model: Any) -> Any:
        if not hasattr(self, "taken"):
            self.taken = []
        self.taken.append({n: p.grad.clone().double() for n, p in model.named_parameters() if p.grad is not None})
        return super()._clip_grad_norm(model)


class Weights(TrainerCallback):
    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.before.append(
            {n: p.detach().clone().double() for n, p in kw["model"].named_parameters() if p.requires_grad}
        )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        self.after.append(
            {n: p.detach().clone().double() for n, p in kw["model"].named_parameters() if p.requires_grad}
        )


def norm_where(tensors: dict[str, torch.Tensor], keep: Any) -> float:
    return math.sqrt(sum(float(t.square().sum()) for n, t in tensors.items() if keep(n)))


def assert_matches_by_hand(record: dict[str, Any], grads: dict[str, torch.Tensor], rel: float = 1e-5) -> None:
    norm = record["grad_norm"]
    assert norm["total"] == pytest.approx(norm_where(grads, lambda n: True), rel=rel)
    for kind, value in norm["type"].items():
        assert value == pytest.approx(norm_where(grads, lambda n, k=kind: module_type(n) == k), rel=rel)
    for part, value in norm["factor"].items():
        assert value == pytest.approx(norm_where(grads, lambda n, f=part: factor(n) == f), rel=rel)
    for layer, value in norm["layer"].items():
        index = None if layer == "outside" else int(layer)
        assert value == pytest.approx(norm_where(grads, lambda n, i=index: layer_index(n) == i), rel=rel)
    for shares in record["share"].values():
        assert sum(shares.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("max_grad_norm", [1e9, 0.05])
def test_norms_equal_gradients_taken_by_hand_before_clipping(tmp_path: Path, lora: bool, max_grad_norm: float) -> None:
    seen = GradientTelemetry()
    made = train(tiny(lora=lora), tmp_path, seen, trainer=ByHand, max_grad_norm=max_grad_norm)
    assert [r["step"] for r in seen.records] == [1, 2, 3]
    for record, grads in zip(seen.records, made.taken, strict=True):
        assert_matches_by_hand(record, grads)
        assert (record["clip"]["factor"] < 0.9) == (max_grad_norm < 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clipped_steps_that_were_not_logged_still_give_norms_before_clipping(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    seen = GradientTelemetry()
    made = train(tiny(lora=False, dtype=dtype), tmp_path, seen, trainer=ByHand, max_grad_norm=0.05, logging_steps=100)
    for record, grads in zip(seen.records, made.taken, strict=True):
        assert record["clip"]["source"] == "ratio of watched gradients"
        assert_matches_by_hand(record, grads, rel=1e-5 if dtype == torch.float32 else 5e-3)


def test_accumulated_steps_equal_one_large_batch(tmp_path: Path) -> None:
    whole, parts = GradientTelemetry(), GradientTelemetry()
    made = train(tiny(lora=True), tmp_path, whole, trainer=ByHand, max_grad_norm=0.05)
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    train(tiny(lora=True), tmp_path, parts, max_grad_norm=0.05, logging_steps=100, **split)
    assert len(parts.records) == 3
    for a, b, grads in zip(whole.records, parts.records, made.taken, strict=True):
        assert b["grad_norm"]["total"] == pytest.approx(a["grad_norm"]["total"], rel=1e-4)
        assert_matches_by_hand(b, grads, rel=1e-3)


def test_bf16_autocast_norms_equal_gradients_taken_by_hand(tmp_path: Path) -> None:
    seen = GradientTelemetry()
    made = train(tiny(lora=True), tmp_path, seen, trainer=ByHand, max_grad_norm=0.05, bf16=True)
    for record, grads in zip(seen.records, made.taken, strict=True):
        assert_matches_by_hand(record, grads)


def test_update_to_weight_ratio_equals_the_weights_moved(tmp_path: Path) -> None:
    seen, weights = GradientTelemetry(), Weights()
    train(tiny(lora=True), tmp_path, seen, weights)
    for record, before, after in zip(seen.records, weights.before, weights.after, strict=True):
        moved = {n: after[n] - before[n] for n in before}
        update = record["update"]
        assert update["method"] == "exact"
        for kind, value in update["ratio"]["type"].items():
            by_hand = norm_where(moved, lambda n, k=kind: module_type(n) == k)
            assert value == pytest.approx(by_hand / norm_where(before, lambda n, k=kind: module_type(n) == k), rel=1e-4)


def test_a_zero_weight_has_no_ratio_rather_than_an_infinite_one(tmp_path: Path) -> None:
    model = get_peft_model(tiny(lora=False), LoraConfig(r=2, target_modules="all-linear"))
    seen = GradientTelemetry()
    train(model, tmp_path, seen)
    first, second = seen.records[:2]
    assert first["update"]["ratio"]["factor"]["B"] is None
    assert first["share"]["factor"] == {"A": 0.0, "B": pytest.approx(1.0)}
    assert second["update"]["ratio"]["factor"]["B"] > 0


def test_sampled_updates_are_scaled_where_the_weights_are() -> None:
    """`meta` stands for any device that is not the processor: torch refuses to mix them."""
    weights = [torch.zeros(9000, device="meta"), torch.zeros(3, device="meta")]
    updates = telemetry_module._Updates(weights, 0)
    updates.keep(weights)
    assert not updates.exact
    assert updates.square(weights).device.type == "meta"


def test_sampled_updates_stay_near_exact_ones(tmp_path: Path) -> None:
    exact, sampled = GradientTelemetry(), GradientTelemetry(update_bytes=0)
    train(tiny(lora=False), tmp_path, exact)
    train(tiny(lora=False), tmp_path, sampled)
    for a, b in zip(exact.records, sampled.records, strict=True):
        assert b["update"]["method"] == "sampled"
        assert b["update"]["ratio"]["total"] == pytest.approx(a["update"]["ratio"]["total"], rel=0.1)


def test_every_measures_only_each_nth_step(tmp_path: Path) -> None:
    seen = GradientTelemetry(every=2)
    train(tiny(lora=True), tmp_path, seen, max_steps=5)
    assert [r["step"] for r in seen.records] == [2, 4]


def test_a_resumed_run_has_each_step_once_and_the_same_numbers(tmp_path: Path) -> None:
    whole = GradientTelemetry(tmp_path / "whole.jsonl")
    train(tiny(lora=True), tmp_path / "whole", whole, max_steps=6)
    path = tmp_path / "telemetry.jsonl"
    checkpoints: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}

    class StopAt3(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> Any:
            control.should_training_stop = state.global_step >= 3
            return control

    train(tiny(lora=True), tmp_path / "run", GradientTelemetry(path), StopAt3(), **checkpoints)
    with path.open("a") as f:
        f.write('{"step": 4, "status"')  # what a killed process leaves
    assert [r["step"] for r in read_telemetry(path)] == [1, 2, 3]
    resume = str(tmp_path / "run" / "checkpoint-2")
    train(tiny(lora=True), tmp_path / "run", GradientTelemetry(path), resume_from_checkpoint=resume, **checkpoints)
    lines = read_telemetry(path)
    assert [r["step"] for r in lines] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(read_telemetry(tmp_path / "whole.jsonl"), lines, strict=True):
        assert b["grad_norm"]["total"] == pytest.approx(a["grad_norm"]["total"], rel=1e-4)


def test_the_callback_changes_nothing_in_training(tmp_path: Path) -> None:
    with_it, without = tiny(lora=True), tiny(lora=True)
    train(with_it, tmp_path, GradientTelemetry())
    train(without, tmp_path)
    for a, b in zip(with_it.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)


class StepsInsideBackward(Trainer):
    """Does what DeepSpeed does: steps and frees the gradients before the Trainer's own step."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        for p in model.parameters():
            p.grad = None
        return loss


def test_hidden_gradients_read_unavailable_with_a_reason_and_never_zero(tmp_path: Path) -> None:
    seen = GradientTelemetry()
    train(tiny(lora=True), tmp_path, seen, trainer=StepsInsideBackward)
    assert [r["status"] for r in seen.records] == ["unavailable"] * 3
    assert all("gradient" in r["reason"] and "grad_norm" not in r for r in seen.records)


class Explodes(Trainer):
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(math.nan)
        return loss


def test_a_nan_gradient_is_named_and_the_file_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    train(tiny(lora=True), tmp_path, GradientTelemetry(path), trainer=Explodes, max_grad_norm=0.0)
    second = read_telemetry(path)[1]
    assert second["status"] == "non_finite"
    assert "lora_A" in second["reason"]
    assert "NaN" not in path.read_text()


def test_fp16_loss_scaling_is_undone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x_N_4 = torch.randn(8, 4)
    plain = torch.autograd.grad(model(x_N_4).square().mean(), list(model.parameters()))
    by_hand = math.sqrt(sum(float(g.square().sum()) for g in plain))
    for max_grad_norm in (0.0, by_hand / 2):
        args = SimpleNamespace(world_size=1, max_grad_norm=max_grad_norm, deepspeed=None)
        state = SimpleNamespace(global_step=0, is_world_process_zero=True)
        seen, given = (
            GradientTelemetry(),
            {"model": model, "optimizer": SimpleNamespace(optimizer=inner, scaler=scaler)},
        )
        seen.on_train_begin(args, state, None, **given)
        model.zero_grad()
        scaler.scale(model(x_N_4).square().mean()).backward()
        if max_grad_norm:
            scaler.unscale_(inner)
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        seen.on_pre_optimizer_step(args, state, None, **given)
        seen.on_optimizer_step(args, state, None, **given)
        scaler._per_optimizer_states.clear()
        state.global_step = 1
        seen.on_step_end(args, state, None, **given)
        seen.on_train_end(args, state, None, **given)
        assert seen.records[0]["grad_norm"]["total"] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_give_the_norms_of_one(tmp_path: Path, how: str) -> None:
    script = Path(__file__).parent / "two_processes.py"
    command = [sys.executable, str(script), how, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in (0, 1)]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], "\n".join(errors)
    last = max(tmp_path.iterdir(), key=lambda place: int(place.name))
    line, by_hand = read_telemetry(last / "telemetry.jsonl")[0], json.loads((last / "by_hand.json").read_text())
    assert not (last / "telemetry-1.jsonl").exists()
    assert line["grad_norm"]["total"] == pytest.approx(by_hand["total"], rel=1e-5)
    for kind, value in by_hand["type"].items():
        assert line["grad_norm"]["type"][kind] == pytest.approx(value, rel=1e-5)
    assert line["update"]["norm"]["total"] == pytest.approx(by_hand["update"], rel=1e-4)
    assert line["weight_norm"]["total"] == pytest.approx(by_hand["weight"], rel=1e-5)


def test_nothing_trainable_is_refused_before_the_first_step() -> None:
    model = tiny(lora=False).requires_grad_(False)
    args = TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    with pytest.raises(ModelError, match="every parameter is frozen"):
        GradientTelemetry().on_train_begin(args, None, None, model=model)


def test_each_line_is_plain_json_of_one_step(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "telemetry.jsonl"
    train(tiny(lora=False), tmp_path, GradientTelemetry(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert set(lines[0]["grad_norm"]["type"]) == {"q", "k", "v", "o", "gate", "up", "down", "embed", "head", "norm"}
    assert set(lines[0]["grad_norm"]["group"]) == {"attention", "mlp", "embed", "head", "norm"}

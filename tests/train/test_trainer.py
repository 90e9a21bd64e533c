"""The trainer: its loss is the full-logit loss, batches change nothing, it learns from the contract's rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM, PrinterCallback, TrainerCallback, TrainingArguments

from veritune.errors import GateError
from veritune.records import Rendered
from veritune.train import trainer as trainer_module
from veritune.train.trainer import (
    COMPLETE,
    Cadence,
    ContractTrainer,
    MarkComplete,
    check_joined,
    collate,
    join,
    last_complete,
    mean_nll,
    row_nll,
    target_nll,
)

PAD = 0
# PEFT 0.21 asks transformers 5.23 for the old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def tiny(kind: str = "llama", dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """A two-layer model over 60 tokens."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    if kind == "gpt2":
        sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = AutoConfig.for_model(kind, **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def rows(n: int, seed: int = 0, lengths: tuple[int, int] = (4, 14)) -> list[Rendered]:
    """Rows of unequal length with prompts of unequal length; some hold the pad id inside."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        length = int(torch.randint(*lengths, (), generator=draw))
        ids = torch.randint(0, 60, (length,), generator=draw).tolist()
        cut = int(torch.randint(1, length, (), generator=draw))
        made.append(Rendered(f"r{i}", tuple(ids), (-100,) * cut + tuple(ids[cut:])))
    return made


def batch_of(chosen: Sequence[Rendered]) -> dict[str, torch.Tensor]:
    items = [{"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(chosen)]
    return collate(items, PAD)


@torch.no_grad()
def full_logit_nll(model: Any, row: Rendered) -> list[float]:
    """NLL of each target token from all logits of one unpadded row."""
    logits_T_V = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
    logp_T_V = logits_T_V.log_softmax(-1)
    return [-float(logp_T_V[t - 1, row.input_ids[t]]) for t in range(len(row.labels)) if row.labels[t] != -100]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_target_nll_is_the_full_logit_loss_whatever_the_padding(kind: str) -> None:
    model, chosen = tiny(kind), rows(7)
    batch = batch_of(chosen)
    nll_N, row_N = target_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
    expected = [full_logit_nll(model, row) for row in chosen]
    assert row_N.tolist() == [b for b, values in enumerate(expected) for _ in values]
    torch.testing.assert_close(
        nll_N.double(), torch.tensor([v for values in expected for v in values]).double(), atol=2e-6, rtol=2e-6
    )


def test_target_nll_equals_transformers_own_loss_in_value_and_gradient() -> None:
    batch = batch_of(rows(5))
    cut, whole = tiny(), tiny()
    nll_N, _ = target_nll(cut, batch["input_ids"], batch["attention_mask"], batch["labels"])
    (nll_N.sum() / len(nll_N)).backward()
    loss = whole(**{k: v for k, v in batch.items() if k != "row_index"}).loss
    loss.backward()
    assert nll_N.detach().mean().item() == pytest.approx(loss.item(), rel=1e-6)
    for (name, a), b in zip(cut.named_parameters(), whole.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("n_virtual", [1, 5])
def test_virtual_tokens_in_front_shift_no_target(n_virtual: int) -> None:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(tiny(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n_virtual)).double()
    chosen = rows(4)
    batch = batch_of(chosen)
    nll_N, _ = target_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
    prompt_V_H = model.get_prompt(1)[0]
    base = model.get_base_model()
    expected: list[float] = []
    for row in chosen:
        embedded = base.get_input_embeddings()(torch.tensor([row.input_ids]))
        logits_T_V = base(inputs_embeds=torch.cat([prompt_V_H[None], embedded], 1)).logits[0, n_virtual:]
        nll_T = F.cross_entropy(logits_T_V[:-1].float(), torch.tensor(row.input_ids[1:]), reduction="none")
        expected += [v for v, label in zip(nll_T.tolist(), row.labels[1:]) if label != -100]
    assert nll_N.tolist() == pytest.approx(expected, abs=2e-6)


def test_row_nll_does_not_depend_on_batching_or_order() -> None:
    model, chosen = tiny(), rows(9)
    one = row_nll(model, chosen, PAD, batch_size=1)
    for size in (2, 4, 16):
        assert [s for s, _ in row_nll(model, chosen, PAD, size)] == pytest.approx([s for s, _ in one], abs=1e-5)
    back = row_nll(model, chosen[::-1], PAD, 4)[::-1]
    assert [s for s, _ in back] == pytest.approx([s for s, _ in one], abs=1e-5)
    assert [n for _, n in one] == [row.n_target for row in chosen]
    assert [s for s, _ in one] == pytest.approx([sum(full_logit_nll(model, row)) for row in chosen], abs=1e-5)


def test_row_nll_leaves_the_model_in_its_mode() -> None:
    model = tiny().train()
    row_nll(model, rows(2), PAD)
    assert model.training


def test_mean_nll_weighs_tokens_and_not_rows() -> None:
    assert mean_nll([(10.0, 1), (1.0, 9)]) == 1.1


# ---------------------------------------------------------------- training


def make_trainer(
    folder: Path, train: Sequence[Rendered], model: Any = None, *, validation: Sequence[Rendered] = (), **settings: Any
) -> ContractTrainer:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": True,
        "seed": 0,
        "data_seed": 0,
        "dataloader_pin_memory": False,
    }
    trainer = ContractTrainer(
        model if model is not None else tiny(dtype=torch.float32),
        TrainingArguments(output_dir=str(folder), **{**arguments, **settings}),
        rows=train,
        validation=validation or rows(3, seed=9),
        pad_id=PAD,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def losses(trainer: ContractTrainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def weights(trainer: ContractTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_the_final_partial_batch_is_trained_on(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows(10))
    trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.rows_checked == 10


def test_the_logged_loss_is_the_mean_over_the_batch_s_target_tokens(tmp_path: Path) -> None:
    train = rows(4)
    expected = mean_nll(row_nll(tiny(dtype=torch.float32), train, PAD))
    trainer = make_trainer(tmp_path, train)
    trainer.train()
    assert losses(trainer) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 2), (2, 4), (1, 8)])
def test_gradient_accumulation_changes_nothing(tmp_path: Path, batch: int, accumulate: int) -> None:
    train = rows(20)
    whole = make_trainer(tmp_path / "a", train, per_device_train_batch_size=8, optim="sgd", num_train_epochs=2)
    parts = make_trainer(
        tmp_path / "b",
        train,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        optim="sgd",
        num_train_epochs=2,
    )
    whole.train()
    parts.train()
    assert len(losses(whole)) == 6
    assert losses(parts) == pytest.approx(losses(whole), rel=2e-5)
    for a, b in zip(weights(whole), weights(parts)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert whole.rows_checked == parts.rows_checked == 40


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    def adapted(seed: int) -> ContractTrainer:
        torch.manual_seed(seed)
        config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(tiny(dtype=torch.float32), config)
        trainer = make_trainer(tmp_path / str(seed), rows(12), model, seed=seed, data_seed=seed)
        trainer.train()
        return trainer

    first, again, other = adapted(3), adapted(3), adapted(4)
    assert losses(first) == losses(again)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again)))
    assert losses(first) != losses(other)


def test_validation_nll_is_weighed_by_tokens_and_leaves_training_alone(tmp_path: Path) -> None:
    long, short = rows(1, seed=5, lengths=(40, 41))[0], rows(1, seed=6, lengths=(3, 4))[0]
    trainer = make_trainer(tmp_path / "a", rows(8), validation=[long, short])
    trainer.add_callback(Cadence(1))
    trainer.args.save_strategy = "no"
    before = mean_nll([(sum(v), len(v)) for v in (full_logit_nll(trainer.model, r) for r in (long, short))])
    found = trainer.evaluate()
    assert found["eval_loss"] == pytest.approx(before, rel=1e-5)
    assert found["eval_tokens"] == long.n_target + short.n_target
    trainer.train()
    plain = make_trainer(tmp_path / "b", rows(8), validation=[long, short])
    plain.train()
    assert losses(trainer) == losses(plain)


# ---------------------------------------------------------------- the trainer sees the contract's rows


def spoil_label(batch: dict[str, torch.Tensor]) -> None:
    batch["labels"][0, 0] = 5


def spoil_id(batch: dict[str, torch.Tensor]) -> None:
    batch["input_ids"][-1, 1] += 1


def swap_rows(batch: dict[str, torch.Tensor]) -> None:
    batch["row_index"] = batch["row_index"].flip(0)


def unmask_prompt(batch: dict[str, torch.Tensor]) -> None:
    batch["labels"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)


def train_on_padding(batch: dict[str, torch.Tensor]) -> None:
    batch["labels"][batch["attention_mask"] == 0] = 7


def cut_a_token(batch: dict[str, torch.Tensor]) -> None:
    batch["attention_mask"][0, int(batch["attention_mask"][0].sum()) - 1] = 0


@pytest.mark.parametrize("spoil", [spoil_label, spoil_id, swap_rows, unmask_prompt, train_on_padding, cut_a_token])
def test_a_patched_collator_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    honest = trainer_module.collate

    def patched(items: Sequence[dict[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
        batch = honest(items, pad_id)
        spoil(batch)
        return batch

    monkeypatch.setattr(trainer_module, "collate", patched)
    trainer = make_trainer(tmp_path, rows(8))
    before = weights(trainer)
    with pytest.raises(GateError, match=r"row r\d"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer)))


class OnDevice(torch.Tensor):
    """A tensor that is on an accelerator: its values cannot be had without waiting for it."""

    def tolist(self) -> Any:
        raise AssertionError("the host waits for the device")


def on_device(value: Any, *_args: Any, **_kwargs: Any) -> Any:
    if isinstance(value, dict):
        return {k: on_device(v) for k, v in value.items()}
    return value.as_subclass(OnDevice)


@pytest.mark.parametrize("joined", [False, True])
def test_rows_are_compared_before_they_go_to_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    trainer = make_trainer(tmp_path, rows(10))
    if joined:
        trainer.batched = trainer.data_collator = join
    monkeypatch.setattr("accelerate.data_loader.send_to_device", on_device)
    monkeypatch.setattr("transformers.Trainer._prepare_input", lambda _self, inputs: on_device(inputs))
    trainer.train()
    assert trainer.rows_checked == 10
    assert trainer.tokens_seen == sum(len(row.input_ids) for row in rows(10))


def in_place(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    batch["labels"][0, -1] = 5
    return batch


def another(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**batch, "input_ids": batch["input_ids"] + 1}


@pytest.mark.parametrize("late", [in_place, another])
def test_a_batch_changed_after_it_was_compared_stops_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: Callable[..., dict[str, torch.Tensor]]
) -> None:
    trainer = make_trainer(tmp_path, rows(8))
    honest, before = trainer.compute_loss, weights(trainer)
    monkeypatch.setattr(trainer, "compute_loss", lambda model, inputs, **kw: honest(model, late(inputs), **kw))
    with pytest.raises(GateError, match=r"row r\d"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer)))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_where_the_targets_are_is_settled_before_the_model_runs(kind: str) -> None:
    """What has no size until the device was asked (`nonzero`, masks as indices) would empty an accelerator's queue."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__
            if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
                name = "nonzero"
            self.names.append(name)
            return func(*args, **(kwargs or {}))

    batch = batch_of(rows(5))
    with Calls() as calls:
        nll_N, _ = target_nll(tiny(kind), batch["input_ids"], batch["attention_mask"], batch["labels"])
        nll_N.sum().backward()
    begins = calls.names.index("embedding")
    waits = [i for i, name in enumerate(calls.names) if name in ("nonzero", "masked_select")]
    assert waits and max(waits) < begins


# ---------------------------------------------------------------- cadence and checkpoints


class Spy(TrainerCallback):
    """Notes the steps at which validation and a save were asked for."""

    def __init__(self) -> None:
        self.evaluated: list[int] = []
        self.saved: list[int] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.evaluated.append(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.saved.append(state.global_step)


@pytest.mark.parametrize(
    ("every", "settings", "expected"),
    [
        (2, {"num_train_epochs": 2}, [2, 4, 6]),
        (4, {"num_train_epochs": 2}, [4, 6]),
        (None, {"num_train_epochs": 2}, [3, 6]),
        (None, {"num_train_epochs": 1.5}, [3, 5]),
        (None, {"max_steps": 4}, [3, 4]),
        (100, {"max_steps": 2}, [2]),
        ((1, 3), {"max_steps": 4}, [1, 3, 4]),
    ],
)
def test_validation_and_checkpoint_come_at_the_cadence_and_at_the_end(
    tmp_path: Path, every: int | tuple[int, ...] | None, settings: dict[str, Any], expected: list[int]
) -> None:
    trainer, spy = make_trainer(tmp_path, rows(10), **settings), Spy()
    for callback in (Cadence(every), spy, MarkComplete(lambda: trainer.rows_checked)):
        trainer.add_callback(callback)
    trainer.train()
    assert spy.evaluated == spy.saved == expected
    assert sorted(int(p.parent.name[11:]) for p in tmp_path.glob(f"checkpoint-*/{COMPLETE}")) == expected
    assert int((tmp_path / f"checkpoint-{expected[-1]}" / COMPLETE).read_text()) == trainer.rows_checked


def test_an_unmarked_checkpoint_is_not_taken_up(tmp_path: Path) -> None:
    for step, mark in ((2, "8"), (10, "40"), (12, ""), (14, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if mark is not None:
            (folder / COMPLETE).write_text(mark)
    found = last_complete(tmp_path)
    assert found is not None and found.name == "checkpoint-10"
    assert last_complete(tmp_path / "nowhere") is None


@pytest.mark.parametrize("stop_at", [2, 3, 4])
def test_taken_up_from_a_checkpoint_the_losses_and_weights_are_the_same(tmp_path: Path, stop_at: int) -> None:
    def trainer_in(folder: str) -> ContractTrainer:
        trainer = make_trainer(tmp_path / folder, rows(10), num_train_epochs=2, lr_scheduler_type="cosine")
        trainer.add_callback(Cadence(1))
        return trainer

    whole = trainer_in("a")
    whole.train()
    resumed = trainer_in("b")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / f"checkpoint-{stop_at}"))
    assert losses(resumed) == losses(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed)))


def test_a_checkpoint_of_the_last_step_is_taken_up_without_a_further_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows(10), max_steps=4)
    trainer.add_callback(Cadence(2))
    trainer.train()
    again = make_trainer(tmp_path, rows(10), max_steps=4)
    again.take_up_finished(tmp_path / "checkpoint-4")
    assert again.state.global_step == 4
    assert (
        again.state.log_history
        == json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    )
    assert all(math.isfinite(loss) for loss in losses(again))


# ---------------------------------------------------------------- rows joined instead of padded


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "phi", "phi3", "gpt2"])
def test_a_joined_row_sees_no_other(kind: str) -> None:
    assert check_joined(tiny(kind, torch.float32), rows(5), PAD) < 1e-4


def test_an_architecture_that_lets_rows_see_each_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_row(items: Any) -> Any:
        batch = join(items)
        return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1])[None]}

    monkeypatch.setattr(trainer_module, "join", one_row)
    with pytest.raises(GateError, match=r"nats per token on average\): rows attend to each other."):
        check_joined(tiny(dtype=torch.float32), rows(5), PAD)


def test_training_on_joined_rows_is_training_on_padded_ones(tmp_path: Path) -> None:
    weights, losses, seen = [], [], []
    for joined in (False, True):
        trainer = make_trainer(tmp_path / str(joined), rows(10), gradient_accumulation_steps=2)
        if joined:
            trainer.batched = trainer.data_collator = join
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        seen.append((trainer.rows_checked, trainer.tokens_seen))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and len(losses[0]) == 2
    torch.testing.assert_close(weights[0], weights[1], atol=1e-4, rtol=1e-3)
    assert seen[0] == seen[1]


def test_a_changed_joined_batch_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, rows(8))

    def shuffled(items: Any) -> Any:
        batch = join(items)
        return {**batch, "labels": batch["labels"].roll(1, dims=1)}

    trainer.batched = trainer.data_collator = shuffled
    with pytest.raises(
        GateError, match="the ids or labels that the trainer was about to use differ from the contract's"
    ):
        trainer.train()

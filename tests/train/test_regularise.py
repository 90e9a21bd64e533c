"""Conditions that lose less of the base: penalties by hand, a coefficient of 0 to the bit, a large one at work."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from frozen_facts import FACTS
from pydantic import ValidationError

from veritune.config.load import parse_study
from veritune.config.train import Condition
from veritune.data.prepare import prepare
from veritune.errors import GateError, StudyError
from veritune.progress import Progress
from veritune.store import Store
from veritune.train import cells, methods
from veritune.train.cells import Context
from veritune.train.models import ModelRef, load_base, load_tokenizer, quiet_transformers
from veritune.train.regularise import Penalties, Regulariser, UpdateClip, kl, noisy_embeddings
from veritune.train.schedule import plan_cells
from veritune.train.trainer import mean_nll, row_nll, target_logits

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
STEPS = 10


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any) -> Any:
    """The tiny study prepared once: every run here has a cell, and so a folder, of its own."""
    study = new_study(tmp_path_factory.mktemp("regularise") / "study", tiny_model)
    parsed, store, ref = parse_study(study.settings()), Store(study.root), ModelRef("tiny", tiny_model, "float32")
    tokenizer = load_tokenizer(ref)
    return Context(store, parsed, ref, tokenizer, prepare(store, parsed, tokenizer), Progress(silent=True))


def trained(context: Any, **settings: Any) -> Any:
    """The record, the folder and the reloaded model of one run of the tiny study with these settings of its arm."""
    made = context.study.model_dump(mode="json")
    made["train"] |= {"max_steps": STEPS, "eval_steps": STEPS, "learning_rate": 0.02, "lr_scheduler_type": "linear"}
    arm = {"method": "lora", "target_modules": "attention", "r": 4, "lora_dropout": 0.1, **settings}
    made |= {"conditions": {"arm": arm}, "claims": [], "seeds": [0]}
    here = replace(context, study=parse_study(made))
    cell = next(c for c in plan_cells(here.study, FACTS) if c.condition == "arm")
    with quiet_transformers():
        record = cells.train(here, cell)
        model = cells.load_trained(here, cell).eval()
    return record, here.store.run(cell.run_id), model


def losses(folder: Path, name: str | None = None) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    if name is None:
        return [r["loss"] for r in rows if r["split"] == "seen" and r["loss"] is not None]
    return [r["metric"]["value"] for r in rows if r["metric"] and r["metric"]["name"] == name]


def batch(context: Any, n: int = 4) -> tuple[Any, ...]:
    from veritune.train.trainer import _dataset, collate

    made = collate(_dataset(context.data.zone("seen")[:n]), context.tokenizer.pad_token_id)
    return made["input_ids"], made["attention_mask"], made["labels"]


@torch.no_grad()
def kl_from_base(context: Any, model: Any) -> float:
    """Mean KL(base ‖ model) per target token, adapter off and on."""
    after = target_logits(model, *batch(context))[0]
    with model.disable_adapter():
        before = target_logits(model, *batch(context))[0]
    return float(kl(before, after)) / len(after)


# ---------------------------------------------------------------- by hand


def test_the_divergence_of_two_distributions_is_the_sum_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]), torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.1, 0.8]])
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert float(kl(p.double().log(), q.double().log())) == pytest.approx(by_hand, abs=1e-7)
    assert float(kl(q.double().log() + 3, p.double().log() - 1)) == pytest.approx(
        0.25 * math.log(0.5) + 0.5 * math.log(2)
    )


class Fixed:
    """Gives the logits it was made with, one set a call."""

    training = False

    def __init__(self, *logits: torch.Tensor) -> None:
        self.logits = list(logits)
        self.embedding = torch.nn.Embedding(2, 2)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding


def test_the_loss_of_a_hand_worked_batch() -> None:
    """One position over two words: p = (.8, .2), base (.5, .5), noised (.6, .4); the target is the first word."""
    p, base, noised = (torch.tensor([x], dtype=torch.float64).log() for x in ((0.8, 0.2), (0.5, 0.5), (0.6, 0.4)))
    made = Regulariser(Penalties(kl_to_base=2.0, r3f=3.0), torch.nn.Linear(1, 1))
    model = Fixed()
    made.base = "base"
    nll = -p[0, 0]
    total = made.add(model, p, lambda one: base if one == "base" else noised, nll)
    to_base = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    symmetric = (0.8 - 0.6) * math.log(0.8 / 0.6) + (0.2 - 0.4) * math.log(0.2 / 0.4)
    assert float(total) == pytest.approx(-math.log(0.8) + 2 * to_base + 3 * symmetric, abs=1e-6)
    means = made.means(1)
    assert means == pytest.approx({"nll": -math.log(0.8), "kl_to_base": to_base, "r3f": symmetric}, abs=1e-6)
    assert made.means(1) == {}, "the next step begins at 0"


def test_a_step_is_scaled_to_the_declared_root_mean_square() -> None:
    from types import SimpleNamespace

    weight = torch.nn.Parameter(torch.zeros(4))
    small = torch.nn.Parameter(torch.zeros(4))
    weight.grad, small.grad = torch.ones(4), torch.ones(4)
    optimizer = SimpleNamespace(param_groups=[{"lr": 0.1, "params": [weight, small]}])
    clip = UpdateClip(0.5)
    clip.on_pre_optimizer_step(None, None, None, optimizer=optimizer)
    with torch.no_grad():
        weight += torch.tensor([0.3, 0.4, 0.0, 0.0])  # RMS .25, five times what is allowed
        small += 0.01
    clip.on_optimizer_step(None, None, None)
    assert weight.detach().tolist() == pytest.approx([0.06, 0.08, 0.0, 0.0], abs=1e-7) and clip.clipped == 1
    assert small.detach().tolist() == pytest.approx([0.01] * 4)


# ---------------------------------------------------------------- real runs


def test_coefficients_of_zero_are_plain_training_to_the_bit(context: Any) -> None:
    """With dropout: one random number drawn for nothing would change every later one."""
    plain, at, model = trained(context)
    zero, there, other = trained(context, kl_to_base=0, r3f=0, neftune_noise_alpha=0)
    assert losses(at) == losses(there) and plain.validation_nll == zero.validation_nll
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(there, "objective") == []


def test_kl_to_the_base_holds_the_model_there_and_the_loss_stays_the_nll(context: Any) -> None:
    _, _, free = trained(context)
    record, folder, held = trained(context, kl_to_base=50.0)
    apart, together = kl_from_base(context, free), kl_from_base(context, held)
    assert 0 <= together < apart / 4, (together, apart)
    nll, parts, objective = losses(folder), losses(folder, "kl_to_base"), losses(folder, "objective")
    assert parts[0] == pytest.approx(0, abs=1e-6), "the first step starts at the base"
    assert objective == pytest.approx([a + 50 * b for a, b in zip(nll, parts, strict=True)], rel=1e-4, abs=1e-4)
    assert record.final_loss == nll[-1]


def test_r3f_lowers_what_noise_on_the_embeddings_changes(context: Any) -> None:
    """The penalty as recorded on the trained batches, with a coefficient that does nothing and with a large one."""
    without, with_it = (
        losses(trained(context, r3f=c, r3f_noise=0.05, learning_rate=5e-3)[1], "r3f") for c in (1e-9, 100.0)
    )
    assert len(without) == len(with_it) == STEPS and without[0] == with_it[0]
    assert sum(with_it[3:]) < 0.95 * sum(without[3:]), (without, with_it)


def test_neftune_and_throttled_steps_change_training_and_leave_validation_alone(context: Any) -> None:
    plain, at, _ = trained(context)
    _, noisy, _ = trained(context, neftune_noise_alpha=50.0)
    assert losses(noisy)[0] != losses(at)[0]
    slow, there, model = trained(context, update_clip=1e-3)
    assert losses(there)[0] == losses(at)[0] and slow.validation_nll > plain.validation_nll
    moved = max(float(p.abs().max()) for name, p in model.named_parameters() if "lora_B" in name)
    assert moved <= STEPS * 0.02 * 1e-3 * 30


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_initial_factors_that_peft_offers_are_trained_and_read_back(context: Any, start: str) -> None:
    record, _, model = trained(context, init_lora_weights=start, lora_dropout=0.0)
    rows = context.data.zone("validation")
    again = mean_nll(row_nll(model, rows, context.tokenizer.pad_token_id))
    assert again == pytest.approx(record.validation_nll, rel=1e-5)


# ---------------------------------------------------------------- refused


def test_noise_that_rounding_eats_is_no_r3f(context: Any) -> None:
    model = load_base(replace(context.model, dtype="bfloat16"))
    message = r"r3f_noise: 1e-05 changes only \d+% of the embeddings' values in torch.bfloat16"
    eaten = pytest.raises(GateError, match=message)
    with eaten, noisy_embeddings(model, Penalties(r3f=1.0)):
        target_logits(model, *batch(context))


def test_settings_that_would_do_nothing_or_something_else_are_refused(context: Any) -> None:
    def arm(**settings: Any) -> Condition:
        return Condition.model_validate({"method": "lora", "target_modules": "attention", **settings})

    with pytest.raises(
        StudyError, match=r"init_lora_weights: 'pissa_niter_4' moves the base by an amount that a checkpoint"
    ):
        methods.check("arm", arm(init_lora_weights="pissa_niter_4"))
    with pytest.raises(ValidationError, match="r3f_noise and r3f_draw need `r3f`, the coefficient of the penalty"):
        arm(r3f_noise=0.1)
    with pytest.raises(ValidationError):
        arm(kl_to_base=-1)
    made = context.study.model_dump(mode="json") | {"claims": []}
    made["conditions"] = {"arm": arm(kl_to_base=0.1).model_dump(mode="json")}
    made["train"] |= {"devices": 2}
    with pytest.raises(StudyError, match=r"conditions.arm.kl_to_base: it is supported on one device only"):
        methods.check_regularised(parse_study(made))


def test_conditions_without_them_keep_the_hashes_they_had(context: Any) -> None:
    dumped = context.study.conditions["all_layer"].model_dump(mode="json")
    assert not {"kl_to_base", "r3f", "update_clip", "neftune_noise_alpha"} & set(dumped)

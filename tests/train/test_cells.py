"""Cells: ids follow from inputs, checkpoints are chosen by validation NLL alone, the live step is really checked."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from frozen_facts import FACTS

from veritune.config.load import parse_study
from veritune.config.study import Study
from veritune.errors import GateError, MachineError, ModelError
from veritune.records import BaseFacts, MemoryPeak, Trainable, TrainingRecord
from veritune.train import cells, methods
from veritune.train import trainer as trainer_module
from veritune.train.cells import Context, MetricLog, live_probe, train
from veritune.train.models import load_base
from veritune.train.schedule import Cell, plan_cells, training_tokens

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "study.yaml"


def quickstart(**changes: Any) -> Study:
    return parse_study(yaml.safe_load(QUICKSTART.read_text(encoding="utf-8")) | changes)


def first_cell(context: Context, condition: str = "all_layer") -> Cell:
    return next(c for c in plan_cells(context.study, FACTS) if c.condition == condition)


# ---------------------------------------------------------------- the plan


def test_the_plan_is_the_baseline_and_every_condition_with_every_seed_seeds_outermost() -> None:
    plan = plan_cells(quickstart(), FACTS)
    assert [(c.condition, c.seed) for c in plan] == [
        ("baseline", 0),
        ("attention_only", 0),
        ("all_layer", 0),
        ("attention_only", 1),
        ("all_layer", 1),
    ]
    assert len({c.run_id for c in plan}) == len({c.input_hash for c in plan}) == 5


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"train": {"learning_rate": 1e-4}}, {}),
        ({"train": {"num_train_epochs": 4}}, {}),
        ({}, {"model": BaseFacts("other", "float32", {})}),
        ({}, {"rendered_sha256": "other"}),
    ],
)
def test_a_cell_of_other_inputs_has_another_id(changes: dict[str, Any], facts: dict[str, Any]) -> None:
    before = {c.run_id for c in plan_cells(quickstart(), FACTS) if c.phase == "main"}
    after = {c.run_id for c in plan_cells(quickstart(**changes), replace(FACTS, **facts)) if c.phase == "main"}
    assert not before & after


@pytest.mark.parametrize("changes", [{"claims": []}, {"name": "x"}, {"question": "y?"}])
def test_what_training_does_not_see_changes_no_id(changes: dict[str, Any]) -> None:
    assert plan_cells(quickstart(**changes), FACTS) == plan_cells(quickstart(), FACTS)


def test_one_changed_condition_leaves_the_other_s_runs_valid() -> None:
    settings = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    settings["conditions"]["all_layer"]["r"] = 16
    settings["factor"] = ["target_modules", "r"]
    before, after = plan_cells(quickstart(), FACTS), plan_cells(parse_study(settings), FACTS)
    same = {c.run_id for c in before} & {c.run_id for c in after}
    assert {i.split("-")[0] for i in same} == {"baseline", "attention_only"}


def test_training_tokens_are_those_of_the_seen_rows(context: Context) -> None:
    per_epoch = sum(len(r.input_ids) for r in context.data.zone("seen"))
    by_epochs = context.study.model_copy(
        update={"train": context.study.train.model_copy(update={"max_steps": -1, "num_train_epochs": 3})}
    )
    assert training_tokens(by_epochs, context.data, first_cell(context)) == 3 * per_epoch
    assert training_tokens(context.study, context.data, first_cell(context)) == round(per_epoch * 6 * 4 / 14)


# ---------------------------------------------------------------- which checkpoint


MEMORY = MemoryPeak(None, None, "none", "not measured")


def chosen(context: Context, history: list[dict[str, float]]) -> TrainingRecord:
    """The training record for a made-up history of validation NLL."""
    cell = first_cell(context)
    work = context.store.run(cell.run_id) / "work"
    for row in history:
        folder = work / f"checkpoint-{int(row['step'])}"
        folder.mkdir(parents=True)
        (folder / "adapter_model.safetensors").write_text(str(row["step"]))
        (folder / "optimizer.pt").write_text("x")
    log = [{"step": 1, "loss": 2.0}, *history]
    trainer = SimpleNamespace(
        args=SimpleNamespace(world_size=1), state=SimpleNamespace(log_history=log, global_step=9), rows_checked=4
    )
    metric_log = MetricLog(context.store.run(cell.run_id) / "metrics.jsonl", cell)
    return cells._training_record(context, cell, trainer, Trainable.of("lora", {}, (), 1, 4), metric_log, MEMORY)


def test_the_lowest_validation_nll_is_chosen_and_the_earliest_of_equals(context: Context) -> None:
    history = [{"step": s, "eval_loss": v} for s, v in ((2, 1.5), (4, 1.25), (6, 1.25), (8, 1.75))]
    record = chosen(context, history)
    assert (record.best_step, record.validation_nll) == (4, 1.25)
    assert record.trainable.share == 0.25
    assert [c.validation_nll for c in record.candidates] == [1.5, 1.25, 1.25, 1.75]
    kept = record.weights_in(context.store.root)
    assert {p.name: p.read_text() for p in kept.iterdir()} == {"adapter_model.safetensors": "4"}


def test_benchmark_scores_cannot_reach_the_choice_of_a_checkpoint(context: Context) -> None:
    """Choosing happens before anything is scored, and neither reads nor takes a score."""
    source = inspect.getsource(cells._training_record) + inspect.getsource(train)
    assert "scores" not in source and "evals" not in source
    cell = first_cell(context)
    planted = context.store.run(cell.run_id) / "scores" / "style.jsonl"
    planted.parent.mkdir(parents=True)
    planted.write_text('{"value": 1.0}\n')
    with_scores = train(context, cell)
    planted.write_text('{"value": 0.0}\n')
    (context.store.run(cell.run_id) / "training.json").unlink()
    without = train(context, cell)
    assert with_scores is not None and without is not None
    assert replace(with_scores, train_s=0, peak_memory=MEMORY) == replace(without, train_s=0, peak_memory=MEMORY)


def test_the_same_cell_trained_twice_gives_the_same_bytes(context: Context) -> None:
    import shutil

    cell = first_cell(context)
    folder = context.store.run(cell.run_id)

    def once() -> tuple[bytes, list[Any]]:
        shutil.rmtree(folder, ignore_errors=True)
        record = train(context, cell)
        (path,) = (folder / "checkpoints").rglob("adapter_model.safetensors")
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert record is not None and record.rows_compared_with_contract == 22
        return path.read_bytes(), [(r["step"], r["split"], r["loss"], r["metric"]) for r in rows]

    assert once() == once()


def test_both_conditions_of_a_seed_see_the_rows_in_the_same_order(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = trainer_module.collate, []

    def listen(items: Any, pad_id: int) -> Any:
        seen.append([item["row_index"] for item in items])
        return honest(items, pad_id)

    monkeypatch.setattr(trainer_module, "collate", listen)
    orders = []
    for condition in ("attention_only", "all_layer"):
        seen.clear()
        trainer = cells._trainer(context, first_cell(context, condition), tuned(context, condition), Path("unused"))
        trainer.train()
        orders.append(list(seen))
    assert orders[0] == orders[1]
    assert len(orders[0][0]) == 4 and len(orders[0][3]) == 2


def tuned(context: Context, condition: str) -> Any:
    return methods.build(condition, context.study.conditions[condition], load_base(context.model), 0)[0]


# ---------------------------------------------------------------- the live probe


def test_the_live_probe_says_what_trains_and_leaves_nothing(context: Context, tmp_path: Path) -> None:
    found = live_probe(context, first_cell(context), tmp_path / "work")
    assert found.trainable_tensors == found.moved_tensors == 28
    assert len(found.trainable.modules) == 14
    assert found.rows_compared_with_contract == 12
    assert not (tmp_path / "work").exists()


def test_the_live_probe_notices_a_module_that_does_not_move(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = methods.build

    def deaf(*args: Any) -> Any:
        model, trainable = build(*args)
        for name, parameter in model.named_parameters():
            if "layers.1.mlp.up_proj.lora" in name:
                parameter.register_hook(torch.zeros_like)
        return model, trainable

    monkeypatch.setattr(methods, "build", deaf)
    with pytest.raises(GateError, match=r"3 steps did not move .*layers\.1\.mlp\.up_proj"):
        live_probe(context, first_cell(context), tmp_path / "work")


def test_the_live_probe_notices_a_frozen_weight_that_changes(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = cells._trainer

    def leaky(context: Any, cell: Any, model: Any, *rest: Any, **named: Any) -> Any:
        trainer = honest(context, cell, model, *rest, **named)
        base = model.get_base_model().model.norm.weight
        train_it = trainer.train

        def train(*args: Any) -> Any:
            base.data[0] += 1e-3
            return train_it(*args)

        trainer.train = train
        return trainer

    monkeypatch.setattr(cells, "_trainer", leaky)
    with pytest.raises(GateError, match=r"frozen .*norm\.weight changed"):
        live_probe(context, first_cell(context), tmp_path / "work")


def test_the_live_probe_notices_a_loss_that_is_not_finite(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = trainer_module.target_nll
    monkeypatch.setattr(trainer_module, "target_nll", lambda *a: (honest(*a)[0] * float("nan"), honest(*a)[1]))
    with pytest.raises(GateError, match="the first loss is nan"):
        live_probe(context, first_cell(context), tmp_path / "work")


def test_training_stops_at_a_loss_that_is_not_finite(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = trainer_module.target_nll
    monkeypatch.setattr(trainer_module, "target_nll", lambda *a: (honest(*a)[0] / 0, honest(*a)[1]))
    with pytest.raises(ModelError, match=r"the loss is (inf|nan) at step 1.*this run is not counted"):
        train(context, first_cell(context))
    assert not (context.store.run(first_cell(context).run_id) / "training.json").exists()


# ---------------------------------------------------------------- metrics


def test_metrics_are_cut_back_to_the_step_that_is_taken_up(tmp_path: Path) -> None:
    cell = Cell("r", "main", "c", 0, 1e-3, "h")
    log = MetricLog(tmp_path / "metrics.jsonl", cell)
    for step in (1, 2, 3):
        log.add(step, {"loss": float(step), "grad_norm": 1.0, "learning_rate": 1e-3})
    log.add(3, {"eval_loss": 2.5, "eval_tokens": 40.0, "eval_s": 0.1})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"run_id": "r", "torn')
    log.rewind(2)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 1, 1, 2, 2, 2]
    assert [r["loss"] for r in rows if r["loss"] is not None] == [1.0, 2.0]
    log.rewind(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_one_word_of_a_cell_changes_its_hash() -> None:
    cell = plan_cells(quickstart(), FACTS)[1]
    assert replace(cell, seed=9) != cell
    assert cell.run_id.endswith(cell.input_hash[:8])


# ---------------------------------------------------------------- reporting


def test_one_line_in_the_study_sends_the_log_to_tensorboard_and_changes_no_run(context: Context) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cell = first_cell(context)
    plain = train(context, cell)
    study = context.study.model_copy(update={"report_to": ("tensorboard",)})
    assert plan_cells(study, FACTS) == plan_cells(context.study, FACTS)
    (context.store.run(cell.run_id) / "training.json").unlink()
    reported = train(replace(context, study=study), cell)
    assert reported is not None and plain is not None
    assert replace(reported, train_s=0, peak_memory=MEMORY) == replace(plain, train_s=0, peak_memory=MEMORY)
    events = accumulator.EventAccumulator(str(context.store.run(cell.run_id) / "tensorboard"))
    events.Reload()
    metrics = (context.store.run(cell.run_id) / "metrics.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in metrics]
    losses = [row["loss"] for row in rows if row["split"] == "seen" and row["loss"] is not None]
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)


def test_a_reporter_that_is_not_installed_is_named_before_anything_trains(context: Context) -> None:
    import importlib.util

    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed here")
    study = context.study.model_copy(update={"report_to": ("wandb",)})
    with pytest.raises(MachineError, match="report_to: WandbCallback requires"):
        train(replace(context, study=study), first_cell(context))

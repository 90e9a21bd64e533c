"""A model in parts: FSDP2 and DeepSpeed on two processes end as one process does, and what cannot work is refused."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import parse_study
from veritune.errors import MachineError, StudyError
from veritune.train import distributed
from veritune.train.cells import train
from veritune.train.telemetry import read_telemetry

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
SCRIPT = Path(__file__).parent / "sharded_cell.py"
CONFIG = {"fsdp2": None, "deepspeed": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}}
KEPT = {
    "lora": ["README.md", "adapter_config.json", "adapter_model.safetensors"],
    "full": ["config.json", "generation_config.json", "model.safetensors"],
}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("sharded_cell", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(study: Any, strategy: str, method: str) -> None:
    """Six rows a step, the third with two, clipped at half; one process or two."""
    devices = 1 if strategy == "one" else 2

    def change(settings: dict[str, Any]) -> None:
        rows = {"per_device_train_batch_size": 6 // devices, "max_steps": 6, "eval_steps": 3, "max_grad_norm": 0.5}
        settings["train"] |= {**rows, "devices": devices}
        if devices > 1:
            settings["train"] |= {"strategy": strategy, "strategy_config": CONFIG[strategy]}
        lora = {"method": "lora", "target_modules": "all-linear", "r": 4, "lora_dropout": 0.0}
        settings["conditions"] = {method: lora if method == "lora" else {"method": "full"}}
        settings["seeds"], settings["claims"], settings["keep"] = [0], [], "all"

    study.change(change)


def record_of(run: Path) -> dict[str, Any]:
    """What a trained run says: losses and norms by step, validation, rows compared, telemetry."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    named = [(r["step"], r["metric"]["value"]) for r in rows if r["metric"] and r["metric"]["name"] == "grad_norm"]
    return {
        "losses": {f"{r['split']} {r['step']}": r["loss"] for r in rows if r["loss"] is not None},
        "norms": dict(named),
        "training": json.loads((run / "training.json").read_text("utf-8")),
        "telemetry": read_telemetry(run / "telemetry.jsonl"),
    }


def on_two(root: Path, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *launcher, str(SCRIPT), str(root), method, *arguments]
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment = {**os.environ, **fixed}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.cluster
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed"])
def test_a_model_in_parts_ends_as_one_process_does(
    strategy: str, method: str, script: Any, study: Any, new_study: Any, tiny_model: Path
) -> None:
    """Losses, clipping, telemetry, the kept checkpoint; full fine-tuning is killed at half and taken up again."""
    if strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        pytest.skip("needs DeepSpeed: pip install 'veritune[deepspeed]'")
    alone = new_study(study.root.parent / "alone", tiny_model)
    small(alone, "one", method)
    context = script.context_of(alone.root)
    cell = script.cell_of(context, method)
    context.store.run(cell.run_id).mkdir(parents=True)
    train(context, cell)
    one = record_of(context.store.run(cell.run_id))

    small(study, strategy, method)
    context = script.context_of(study.root)
    cell = script.cell_of(context, method)
    run = context.store.run(cell.run_id)
    if method == "full":
        killed = on_two(study.root, method, "3")
        assert (run / "work" / "checkpoint-3" / "complete").exists(), killed.stderr[-3000:]
        assert not (run / "training.json").exists()
    done = on_two(study.root, method)
    assert done.returncode == 0, done.stderr[-3000:]
    two = record_of(run)

    assert two["losses"] == pytest.approx(one["losses"], rel=2e-6) and len(one["losses"]) == 8
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5) and max(one["norms"].values()) > 0.5
    training = two["training"]
    for same in ("trainable", "rows_compared_with_contract", "best_step"):
        assert training[same] == one["training"][same]
    assert training["processes"] == 2
    whole, parts = training["trainable"]["n_total"], [json.loads(p.read_text()) for p in study.root.glob("held-*")]
    assert len(parts) == 2 and max(parts) < 0.6 * whole and sum(parts) >= whole
    for candidate in training["candidates"]:
        kept = study.root / candidate["checkpoint"]
        assert sorted(p.name for p in kept.rglob("*")) == KEPT[method]
    assert json.loads((study.root / "after.json").read_text()) == pytest.approx(training["validation_nll"], abs=1e-6)
    assert script.validation_nll(context, cell) == pytest.approx(training["validation_nll"], abs=1e-6)
    assert_telemetry(strategy, two["telemetry"], one["telemetry"])


def assert_telemetry(strategy: str, two: list[dict[str, Any]], one: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
    if strategy == "deepspeed":
        assert all(line["status"] == "unavailable" and "DeepSpeed" in line["reason"] for line in two)
        return
    for here, there in zip(two, one, strict=True):
        for part in ("grad_norm", "weight_norm"):
            assert here[part]["type"] == pytest.approx(there[part]["type"], rel=1e-4, abs=1e-7)
        assert here["update"]["norm"]["total"] == pytest.approx(there["update"]["norm"]["total"], rel=1e-4)
        assert here["clip"]["factor"] == pytest.approx(there["clip"]["factor"], rel=1e-5)


# ---------------------------------------------------------------- refused before anything is spent


def declared(study: Any, strategy: str, config: Any) -> Any:
    def change(settings: dict[str, Any]) -> None:
        settings["train"] |= {"devices": 2, "strategy": strategy, "strategy_config": config}

    study.change(change)
    return parse_study(study.settings())


ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("strategy", "config", "said"),
    [
        ("ddp", {"version": 2}, "`strategy: ddp` has no settings"),
        ("fsdp2", {"state_dict_type": "SHARDED_STATE_DICT"}, "in parts, which one process cannot load"),
        ("fsdp2", {"fsdp_state_dict_type": "LOCAL_STATE_DICT"}, "in parts, which one process cannot load"),
        ("fsdp2", {"version": 1}, "is version 2"),
        ("fsdp2", {"activation_checkpointing": True}, "train.gradient_checkpointing"),
        ("fsdp2", {"reshard_after_foward": True}, ": unknown setting of"),
        ("fsdp2", {"fsdp_cpu_offload": True}, "clipping needs"),
        ("deepspeed", None, r"zero_optimization\.stage: expected 1, 2 or 3, found None"),
        ("deepspeed", {"zero_optimization": {"stage": 0}}, "found 0"),
        (
            "deepspeed",
            {"zero_optimization": {"stage": 3, "stage3_gather_16bit_weights_on_model_save": False}},
            "no weights that one process can load",
        ),
        ("deepspeed", ZERO3 | {"optimizer": {"type": "Adam"}}, "learning_rate and weight_decay"),
        ("deepspeed", ZERO3 | {"scheduler": {"type": "WarmupLR"}}, "lr_scheduler_type"),
        ("deepspeed", ZERO3 | {"gradient_clipping": 0.1}, r"train\.max_grad_norm sets it"),
        ("deepspeed", ZERO3 | {"train_batch_size": 64}, r"train\.per_device_train_batch_size"),
        ("deepspeed", ZERO3 | {"fp16": {"enabled": True}}, r"model\.dtype sets it"),
    ],
)
def test_a_strategy_that_changes_the_recipe_or_leaves_no_weights_is_refused(
    strategy: str, config: Any, said: str, study: Any
) -> None:
    with pytest.raises(StudyError, match=said):
        distributed.check(declared(study, strategy, config))


@pytest.mark.parametrize(("strategy", "config"), [("fsdp2", None), ("deepspeed", ZERO3)])
def test_a_learned_prompt_in_parts_is_refused(
    strategy: str, config: Any, study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT calls the prompt's encoder on rank 0 alone: FSDP2 fails at the first checkpoint, ZeRO-3 waits for ever."""
    monkeypatch.setattr(distributed.util, "find_spec", lambda _name: "there")

    def change(settings: dict[str, Any]) -> None:
        settings["conditions"] = {"prompt": {"method": "prompt_tuning", "num_virtual_tokens": 4}}
        settings["claims"] = []

    study.change(change)
    with pytest.raises(StudyError, match=r"conditions\.prompt\.method: prompt_tuning with"):
        distributed.check(declared(study, strategy, config))


def test_what_divides_the_model_is_taken(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.util, "find_spec", lambda _name: "there")
    auto = {"gradient_clipping": "auto", "train_batch_size": "auto", "bf16": {"enabled": "auto"}}
    for strategy, config in (
        ("ddp", None),
        ("fsdp2", None),
        ("fsdp2", {"fsdp_state_dict_type": "FULL_STATE_DICT", "reshard_after_forward": False}),
        ("deepspeed", ZERO3 | auto),
    ):
        distributed.check(declared(study, strategy, config))


def test_without_deepspeed_the_study_says_what_to_install(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.util, "find_spec", lambda _name: None)
    with pytest.raises(MachineError, match=r"veritune\[deepspeed\]"):
        distributed.check(declared(study, "deepspeed", ZERO3))


def test_a_plan_refuses_a_strategy_before_the_model_is_looked_for(study: Any) -> None:
    from veritune.pipeline.ready import make_ready
    from veritune.progress import Progress
    from veritune.store import Store

    parsed = declared(study, "fsdp2", {"state_dict_type": "SHARDED_STATE_DICT"})
    with pytest.raises(StudyError, match="one process cannot load"):
        make_ready(Store(study.root), parsed, Progress(silent=True))


def test_the_recipe_goes_to_deepspeed_as_the_study_has_it(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left out, DeepSpeed would not clip at all; given twice, the study's own mapping must not be written into."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    plan = declared(study, "deepspeed", {"zero_optimization": {"stage": 3}}).train
    for _ in range(2):
        given = distributed.sharding(plan)["deepspeed"]
        assert given["gradient_clipping"] == given["train_micro_batch_size_per_gpu"] == "auto"
        assert given["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
        given["zero_optimization"].clear()
    assert plan.strategy_config == {"zero_optimization": {"stage": 3}}


def test_the_version_of_deepspeed_is_recorded_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from veritune import machine

    monkeypatch.setattr(machine.metadata, "version", lambda name: f"{name} 1")
    assert machine.package_versions()["deepspeed"] == "deepspeed 1"

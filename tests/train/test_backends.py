"""The Tinker backend without a server: what it refuses, what it asks for, how it keeps to a local run's schedule.

`bench/tinker/run.sh` runs whole studies against a real server, and the newest SDK against recorded exchanges.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from frozen_facts import FACTS
from safetensors.numpy import save_file

from veritune import contract
from veritune.config.load import parse_study
from veritune.errors import GateError, MachineError, ModelError, StudyError
from veritune.records import (
    Conversion,
    Rendered,
    ZoneLoss,
)
from veritune.store import Store
from veritune.train import cells, methods
from veritune.train.backends import remote, tinker
from veritune.train.backends.protocol import Local, backend_of
from veritune.train.backends.remote import Tinker, batches_of, learning_rates
from veritune.train.backends.tinker import SamplerWeights, complete_config
from veritune.train.models import ModelRef, load_base, quiet_transformers
from veritune.train.schedule import plan_cells, schedule, seen_rows, steps_of, validation_steps
from veritune.train.trainer import ContractTrainer

REMOTE = {"name": "tinker", "base_url": "http://127.0.0.1:1", "base_model": "m"}


def remote_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The tiny study as a Tinker server can take it."""
    settings["backend"] = dict(REMOTE)
    del settings["model"]["dtype"]
    for condition in settings["conditions"].values():
        del condition["lora_dropout"]
    return settings


# ---------------------------------------------------------------- the key in study.yaml


def test_a_study_without_a_backend_is_local_and_its_contract_says_nothing_of_backends(study: Any) -> None:
    parsed = parse_study(study.settings())
    assert isinstance(backend_of(parsed), Local)
    assert parse_study(study.settings() | {"backend": "local"}) == parsed
    assert "backend" not in contract.settings(parsed)
    kept = contract.freeze(Store(study.root), parsed, FACTS)
    assert not [key for key in kept.entries[0].sources if key.startswith("backend")]


def test_a_remote_backend_is_part_of_the_contract(study: Any) -> None:
    parsed = parse_study(remote_settings(study.settings()))
    assert isinstance(backend_of(parsed), Tinker)
    assert contract.settings(parsed)["backend"] == {**REMOTE, "ahead": 0}


@pytest.mark.parametrize(
    ("backend", "said"),
    [
        ({"name": "tinker", "base_url": "http://x"}, "base_model"),
        ({"name": "local", "base_model": "m"}, "takes no base_model"),
        ({**REMOTE, "base_url": "http://me:secret@x"}, "name or password"),
        ("tonker", "backend"),
    ],
)
def test_a_backend_that_is_not_whole_is_refused(study: Any, backend: Any, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        parse_study(study.settings() | {"backend": backend})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(conditions={"all": {"method": "full"}}), "conditions.all.method: full"),
        (lambda s: s["conditions"]["all_layer"].update(lora_alpha=4), "conditions.all_layer.lora_alpha"),
        (lambda s: s["conditions"]["all_layer"].update(use_rslora=True), "conditions.all_layer.use_rslora"),
        (lambda s: s["train"].update(devices=2), "train.devices"),
        (lambda s: s["train"].update(padding_free=True), "train.padding_free"),
        (lambda s: s["train"].update(gradient_checkpointing=True), "train.gradient_checkpointing"),
        (lambda s: s["model"].update(dtype="float32"), "model.dtype"),
        (lambda s: s.update(report_to=["tensorboard"]), "report_to"),
        (
            lambda s: s.update(selection={"learning_rates": [1e-3, 1e-2], "seed": 9, "batch_shapes": [[2, 2]]}),
            "selection.batch_shapes",
        ),
    ],
)
def test_what_the_api_cannot_do_is_refused_by_name(
    study: Any, change: Callable[[dict[str, Any]], Any], said: str
) -> None:
    settings = remote_settings(study.settings())
    change(settings)
    settings |= {"claims": [], "factor": ["target_modules", "lora_alpha", "use_rslora"]}
    with pytest.raises(StudyError, match=said.replace(".", r"\.")):
        backend_of(parse_study(settings)).refuse()


def test_a_study_that_can_be_followed_lacks_nothing_but_the_sdk(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tinker.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match="SDK"):
        backend_of(parse_study(remote_settings(study.settings()))).refuse()


def test_a_server_that_is_not_there_is_named_before_anything_is_sent() -> None:
    with pytest.raises(MachineError, match=r"backend\.base_url: no Tinker server answers"):
        tinker.require_server("http://127.0.0.1:1")


# ---------------------------------------------------------------- the same schedule as a local run


def test_rows_rates_and_validation_are_those_of_a_local_run(
    context: cells.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    check = ContractTrainer._check_parity

    def recorded(self: ContractTrainer, inputs: dict[str, Any]) -> tuple[int, int]:
        seen.append(inputs["row_index"].tolist())
        return check(self, inputs)

    monkeypatch.setattr(ContractTrainer, "_check_parity", recorded)
    cell = next(c for c in plan_cells(context.study, FACTS) if c.condition == "all_layer" and c.seed == 1)
    cells.train(context, cell)
    plan, rows = schedule(context.study, cell), seen_rows(context.study, context.data, cell)
    steps = steps_of(context.study, context.data, cell)
    assert steps * 4 > len(rows), "the run must reach a second epoch"
    ours = [[rows.index(row) for row in batch] for batch in islice(batches_of(rows, plan, cell.seed), steps)]
    assert ours == seen
    path = context.store.run(cell.run_id) / "metrics.jsonl"
    logged = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rates = [r["metric"]["value"] for r in logged if r["metric"] and r["metric"]["name"] == "learning_rate"]
    assert learning_rates(plan, cell.lr, steps) == pytest.approx(rates, rel=1e-12)
    assert len(set(rates)) > 3
    assert validation_steps(plan, steps, len(rows)) == [r["step"] for r in logged if r["split"] == "validation"]


def test_validation_comes_at_the_ends_of_epochs_where_no_step_is_named(context: cells.Context) -> None:
    plan = context.study.train.model_copy(update={"eval_steps": None})
    assert validation_steps(plan, 6, 9) == [3, 6]
    assert validation_steps(plan, 7, 9) == [3, 6, 7]


# ---------------------------------------------------------------- what is asked of the server


def test_a_condition_is_counted_without_weights_as_with_them(context: cells.Context, study: Any) -> None:
    parsed = parse_study(remote_settings(study.settings()))
    found, groups = Tinker(parsed).asked(context, "all_layer")
    _, real = methods.build("all_layer", parsed.conditions["all_layer"], load_base(context.model), 0)
    assert groups == ("attention", "mlp")
    assert (found.modules, found.n_trainable, found.n_total) == (real.modules, real.n_trainable, real.n_total)
    assert "lora_alpha" not in found.options


def test_targets_that_are_no_whole_group_are_refused(context: cells.Context, study: Any) -> None:
    settings = remote_settings(study.settings())
    settings["conditions"]["attention_only"]["target_modules"] = ["q_proj", "v_proj"]
    with pytest.raises(StudyError, match=r"attention_only\.target_modules: .*k_proj would be left out"):
        Tinker(parse_study(settings)).asked(context, "attention_only")


def test_steps_without_effect_and_modules_not_asked_for_stop_the_study() -> None:
    remote._judge("all", [5.0, 4.9, 4.8], [])
    with pytest.raises(GateError, match="in the order in which they were sent"):
        remote._judge("all", [5.0, 4.9, 4.9], [])
    with pytest.raises(GateError, match="mlp: trained, not asked"):
        remote._judge("all", [5.0, 4.9], ["mlp: trained, not asked"])


# ---------------------------------------------------------------- what comes back


def test_losses_of_a_prompt_are_read_with_and_without_the_first_token() -> None:
    row = Rendered("r", (7, 8, 9, 2), (-100, -100, 9, 2))
    assert tinker._prompt_nll(row, [None, -9.0, -1.0, -2.0]) == (3.0, 2)
    assert tinker._prompt_nll(row, [-9.0, -1.0, -2.0]) == (3.0, 2)
    for given in ([-1.0, -2.0], [None, -9.0, None, -2.0], [None, -9.0, float("nan"), -2.0]):
        with pytest.raises(ModelError, match="row r"):
            tinker._prompt_nll(row, given)


def test_losses_that_cannot_be_had_are_named_in_the_record(context: cells.Context) -> None:
    def nll(_rows: Any) -> Any:
        raise ModelError("the server gives no log-probabilities of prompts (501).")

    cell = plan_cells(context.study, FACTS)[0]
    weights: Any = SimpleNamespace(nll=nll)
    cells.measure_nll(context, cell, weights, [r.row_id for r in context.data.zone("validation")])
    record = json.loads((context.store.run(cell.run_id) / "probes" / "nll.json").read_text(encoding="utf-8"))
    assert record["zones"] == {} and record["rows"] == [] and "501" in record["reason"]


def test_converted_weights_that_are_not_the_trained_ones_are_not_scored() -> None:
    weights = remote.RemoteWeights(SimpleNamespace(), None, chosen_nll=2.0)  # type: ignore[arg-type]
    assert weights.confirm({"validation": ZoneLoss(2.01, 1, 1)}) == Conversion(2.0, 2.01, pytest.approx(0.01))
    with pytest.raises(GateError, match="did not convert"):
        weights.confirm({"validation": ZoneLoss(2.2, 1, 1)})


def test_an_export_names_its_modules_or_peft_would_load_a_part_of_it(tmp_path: Path, tiny_model: Path) -> None:
    from peft import PeftModel

    stem = "base_model.model.model.layers.0.mlp.up_proj"
    save_file(
        {f"{stem}.lora_A.weight": np.ones((2, 64), np.float32), f"{stem}.lora_B.weight": np.ones((96, 2), np.float32)},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 32, "target_modules": None, "task_type": "CAUSAL_LM"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert complete_config(tmp_path) == ["adapter_config.json: target_modules"]
    assert complete_config(tmp_path) == []
    with quiet_transformers():
        model = PeftModel.from_pretrained(load_base(ModelRef("tiny", tiny_model, "float32")), tmp_path)
    held = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert sorted(held) == [f"{stem}.lora_{factor}.default.weight" for factor in "AB"]
    assert all(bool((p == 1).all()) for p in held.values())


class Held:
    """A session's checkpoints, each with the hours that are left of it."""

    def __init__(self, *hours: float) -> None:
        self.hours = list(hours)
        self.exported: list[str] = []

    def save(self, name: str) -> SamplerWeights:
        ends = datetime.now(UTC) + timedelta(hours=self.hours.pop(0))
        return SamplerWeights(f"tinker://run/{name}", ends.isoformat())

    def export(self, weights: SamplerWeights, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True)
        self.exported.append(weights.path.rsplit("/", 1)[-1])
        return {"files": {}, "modules": [], "parameters": 0, "completed": [], "differs": []}


def candidates(context: cells.Context, *hours: float) -> tuple[Any, Held]:
    cell = next(c for c in plan_cells(context.study, FACTS) if c.condition == "all_layer")
    held: Any = Held(*hours)
    return remote._Candidates(context, cell, held), held


def test_a_checkpoint_is_exported_before_its_time_on_the_server_is_over(context: cells.Context) -> None:
    kept, held = candidates(context, 0.5, 5.0, 5.0)
    kept.add(2, 3.0)
    assert held.exported == ["step-2"]
    kept.add(4, 2.0)
    assert held.exported == ["step-2"], "the new best has hours left"
    kept.add(6, 2.5)
    listed = kept.candidates()
    assert held.exported == ["step-2", "step-4"] and kept.best == 4
    assert [(c.checkpoint or "").rsplit("/", 1)[-1] for c in listed] == ["", "step-4", ""]
    assert not kept._folder(2).exists()


def test_a_checkpoint_that_ran_out_is_an_error(context: cells.Context) -> None:
    kept, _ = candidates(context, -0.1)
    with pytest.raises(GateError, match="expired"):
        kept.add(2, 3.0)


SDK = Path(os.environ.get("VERITUNE_TINKER_VENV") or "nowhere") / "sdk-0.38.0"


@pytest.mark.skipif(not SDK.is_dir(), reason="needs the newest SDK: run bench/tinker/run.sh, set VERITUNE_TINKER_VENV")
def test_the_newest_sdk_exchanges_what_was_recorded(tiny_model: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "bench" / "tinker" / "exchanges.py"
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(SDK)])
    env = {**os.environ, "PYTHONPATH": paths, "TINKER_API_KEY": "tml-loopback"}
    command = [sys.executable, str(script), str(tiny_model), str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

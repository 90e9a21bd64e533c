"""`report_to` through whole studies: every cell becomes a run of its own, with its name and its losses.

MLflow's client is a development dependency; W&B (offline) and trackio (local) are tested where they are installed.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from frozen_facts import FACTS

from veritune.errors import MachineError
from veritune.pipeline.executors import ExecutorPlan, on_ray
from veritune.seal import verify
from veritune.train.cells import Context, MetricLog, live_probe, train
from veritune.train.reporting import VARIABLES, Reported, reporting, variables
from veritune.train.schedule import plan_cells

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def small(study: Any, *kinds: str) -> None:
    """Two conditions, one seed, and one line more."""

    def change(settings: dict[str, Any]) -> None:
        settings["report_to"] = list(kinds)
        settings["seeds"] = [0]
        settings["claims"] = [c for c in settings["claims"] if c["name"] != "differ"]

    study.change(change)


def run_study(study: Any, elsewhere: Path, **variables: str) -> None:
    """`veritune run` from another folder, with a home of its own."""
    elsewhere.mkdir()
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(elsewhere.parent / "home")}
    fixed["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / "src")
    command = [sys.executable, "-m", "veritune", "run", str(study.root), "--quiet"]
    own = {k: v for k, v in os.environ.items() if k.split("_")[0] not in ("MLFLOW", "WANDB", "TRACKIO")}
    done = subprocess.run(command, cwd=elsewhere, env={**own, **fixed, **variables}, capture_output=True, text=True)
    assert done.returncode in (0, 2), done.stderr
    assert list(elsewhere.iterdir()) == [], "a reporter wrote into the current directory"
    assert verify(study.root) == []


def losses_on_disk(root: Path) -> dict[str, list[float]]:
    """Losses of every trained run, by run id."""
    found: dict[str, list[float]] = {}
    for path in root.glob("runs/*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        found[path.parent.name] = [r["loss"] for r in rows if r["split"] == "seen" and r["loss"] is not None]
    assert len(found) == 2 and all(len(losses) == 6 for losses in found.values())
    return found


# ---------------------------------------------------------------- MLflow


def mlflow_runs(store: Path, monkeypatch: pytest.MonkeyPatch, experiment: str = "tiny") -> list[Any]:
    """(name, status, losses) of every run in MLflow's files, oldest first."""
    tracking = pytest.importorskip("mlflow.tracking", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = tracking.MlflowClient(store.as_uri())
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    runs = sorted(found, key=lambda r: r.info.start_time)
    history = [sorted(client.get_metric_history(r.info.run_id, "loss"), key=lambda m: m.step) for r in runs]
    return [(r.info.run_name, r.info.status, [m.value for m in h]) for r, h in zip(runs, history)]


def test_mlflow_gets_a_run_a_cell_under_the_study_s_name(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    small(study, "mlflow")
    run_study(study, tmp_path / "elsewhere")
    found = mlflow_runs(study.root / "tracking" / "mlruns", monkeypatch)
    assert {status for _, status, _ in found} == {"FINISHED"}
    assert {name: pytest.approx(losses) for name, _, losses in found} == losses_on_disk(study.root)
    assert mlflow_shares(study.root) == {run_id: shares_on_disk(study.root, run_id) for run_id, _, _ in found}


def mlflow_shares(root: Path) -> dict[str, list[float]]:
    """The share of the query projections in the squared gradient norm by step, of every run."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient((root / "tracking" / "mlruns").as_uri())
    runs = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    name = "gradient_share/type/q"
    history = {r.info.run_name: client.get_metric_history(r.info.run_id, name) for r in runs}
    return {run: [m.value for m in sorted(h, key=lambda m: m.step)] for run, h in history.items()}


def shares_on_disk(root: Path, run_id: str) -> Any:
    lines = (root / "runs" / run_id / "telemetry.jsonl").read_text("utf-8").splitlines()
    found = [json.loads(line)["share"]["type"]["q"] for line in lines]
    assert len(found) == 6
    return pytest.approx(found)


@pytest.fixture
def context(context: Context) -> Context:
    return replace(context, study=context.study.model_copy(update={"report_to": ("mlflow",)}))


def test_a_run_that_breaks_off_is_closed_and_taken_up_beside_others(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    store = tmp_path / "kept"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    first, other = [c for c in plan_cells(context.study, FACTS) if c.phase == "main"][:2]
    honest = MetricLog.add

    def pulled(self: MetricLog, step: int, logs: Mapping[str, Any]) -> float:
        if step == 5:
            raise KeyboardInterrupt
        return honest(self, step, logs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MetricLog, "add", pulled)
        train(context, first)
    assert mlflow.active_run() is None
    train(context, other)
    train(context, first)
    found = mlflow_runs(store, monkeypatch)
    ends = [(first.run_id, "FAILED"), (other.run_id, "FINISHED"), (first.run_id, "FINISHED")]
    assert [(name, status) for name, status, _ in found] == ends
    assert [len(losses) for _, _, losses in found] == [5, 6, 2], "taken up after the checkpoint of step 4"
    on_disk = losses_on_disk(context.store.root)
    assert found[0][2][:4] + found[2][2] == pytest.approx(on_disk[first.run_id])
    assert found[1][2] == pytest.approx(on_disk[other.run_id])
    assert not (context.store.root / "tracking").exists(), "the user's own place wins"


def test_a_service_that_cannot_be_reached_is_a_fault_of_the_machine(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="pip install mlflow-skinny")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    with pytest.raises(MachineError, match=r"report_to: mlflow: .*nowhere"):
        train(context, next(c for c in plan_cells(context.study, FACTS) if c.phase == "main"))


@pytest.mark.parametrize("kind", ["wandb", "trackio", "mlflow"])
def test_a_missing_reporter_is_named(context: Context, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, f"is_{kind}_available", lambda: False)
    monkeypatch.setattr("veritune.train.reporting.util.find_spec", lambda _name: None)
    study = context.study.model_copy(update={"report_to": (kind,)})
    cell, reported = next(c for c in plan_cells(study, FACTS) if c.phase == "main"), replace(context, study=study)
    with pytest.raises(MachineError, match=f"report_to: {kind} is not installed"):
        live_probe(reported, cell, context.store.root / "work")
    with pytest.raises(MachineError, match=f"report_to: .*requires {kind} to be installed"):
        train(reported, cell)


@pytest.mark.parametrize(
    "said", ["out of memory", "a leaf Variable that requires grad is used in an in-place operation"]
)
def test_an_error_of_our_own_stays_what_it_is(tmp_path: Path, said: str) -> None:
    run = Reported("s", tmp_path, tmp_path / "runs" / "r", tmp_path / "work")
    with pytest.raises(RuntimeError, match=said), reporting(["mlflow"], run):
        raise RuntimeError(said)
    assert "MLFLOW_EXPERIMENT_NAME" not in os.environ


# ---------------------------------------------------------------- W&B and trackio


def wandb_records(path: Path) -> list[Any]:
    """The records of a `.wandb` file: a seven-byte head, then LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # the rest of a block too small for a head
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


@pytest.mark.skipif(util.find_spec("wandb") is None, reason="needs W&B: pip install wandb")
def test_wandb_gets_a_run_a_cell_under_the_study_s_name(study: Any, tmp_path: Path) -> None:
    small(study, "wandb")
    run_study(study, tmp_path / "elsewhere", WANDB_MODE="offline")
    found: dict[str, list[float]] = {}
    ids = set()
    for path in (study.root / "tracking" / "wandb").glob("offline-run-*/*.wandb"):
        records = wandb_records(path)
        run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        assert run.project == "tiny"
        ids.add(run.run_id)
        rows = [{("/".join(i.nested_key) or i.key): i.value_json for i in r.history.item} for r in records]
        found[run.display_name] = [float(row["train/loss"]) for row in rows if "train/loss" in row]
    assert len(ids) == 2
    assert {name: pytest.approx(losses) for name, losses in found.items()} == losses_on_disk(study.root)


@pytest.mark.skipif(util.find_spec("wandb") is None, reason="needs W&B: pip install wandb")
def test_wandb_s_run_goes_on_where_a_killed_cell_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    seen = []
    for cell in ("a", "a", "b"):
        run = Reported("s", tmp_path, tmp_path / "runs" / cell, tmp_path / cell)
        with pytest.raises(KeyboardInterrupt), reporting(["wandb"], run):
            seen.append(wandb.run.id)
            raise KeyboardInterrupt
        assert wandb.run is None
    assert seen[0] == seen[1] != seen[2]


@pytest.mark.skipif(util.find_spec("trackio") is None, reason="needs trackio: pip install trackio")
def test_trackio_gets_a_run_a_cell_under_the_study_s_name(study: Any, tmp_path: Path) -> None:
    small(study, "trackio")
    run_study(study, tmp_path / "elsewhere", TRACKIO_DIR=str(tmp_path / "trackio"))
    found: dict[str, list[float]] = {}
    with sqlite3.connect(tmp_path / "trackio" / "tiny.db") as database:
        for name, metrics in database.execute("SELECT run_name, metrics FROM metrics ORDER BY step"):
            row = json.loads(metrics)
            found.setdefault(name, []).extend([row["train/loss"]] if "train/loss" in row else [])
    assert {name: pytest.approx(losses) for name, losses in found.items()} == losses_on_disk(study.root)


# ---------------------------------------------------------------- workers


def test_workers_are_given_the_variables_of_the_study_s_reporters_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    node = {"Alive": True, "Resources": {"CPU": 8.0}}
    ray = SimpleNamespace(is_initialized=lambda: False, init=lambda **kw: given.update(kw), nodes=lambda: [node])
    monkeypatch.setitem(sys.modules, "ray", ray)
    for name in ("WANDB_API_KEY", "MLFLOW_TRACKING_URI", "SOME_SECRET"):
        monkeypatch.setenv(name, "x")
    on_ray.connect(ExecutorPlan(kind="ray", handed_on=variables(["mlflow"])))
    sent = given["runtime_env"]["env_vars"]
    assert "MLFLOW_TRACKING_URI" in sent and "WANDB_API_KEY" not in sent and "SOME_SECRET" not in sent
    assert set(VARIABLES) == {"tensorboard", "wandb", "mlflow", "trackio"}

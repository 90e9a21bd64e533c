"""Cells wherever they run: the same records whoever runs them, and whatever is killed on the way.

Real processes: subprocesses, a Ray cluster of this machine, submitit's jobs, torchrun with two ranks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import parse_study
from veritune.errors import InputError, MachineError
from veritune.pipeline import executors
from veritune.pipeline.executors import ExecutorPlan, Hooks, check_plan, how_many_fit, options_from, plan_from
from veritune.pipeline.executors.local import visible_accelerators
from veritune.pipeline.watch import cells_text, list_cells

FROZEN = r"os.rename .*/baseline-.*/nll.json "  # the moment after which a killed run has frozen its contract


def environment() -> dict[str, str]:
    fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RAY_DEDUP_LOGS": "0"}
    return {
        **os.environ,
        **fixed,
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def result_of(root: Path) -> dict[str, Any]:
    """What a study's cells measured, without times and durations."""
    found: dict[str, Any] = {}
    for folder in sorted((root / "runs").iterdir()):
        found[folder.name] = {p.name: p.read_text("utf-8") for p in sorted((folder / "scores").glob("*.jsonl"))}
        found[folder.name]["nll"] = (folder / "probes" / "nll.json").read_text("utf-8")
        if (folder / "training.json").exists():
            metrics = lines(folder / "metrics.jsonl")
            found[folder.name]["losses"] = [(r["step"], r["split"], r["loss"]) for r in metrics if r["loss"]]
            training = json.loads((folder / "training.json").read_text("utf-8"))
            kept = root / training["checkpoint"] / "adapter_model.safetensors"
            found[folder.name]["adapter"] = kept.read_bytes()
    return found


def longer(study: Any) -> Any:
    """One condition, one seed, enough steps to be killed among them."""

    def change(settings: dict[str, Any]) -> None:
        settings["train"] |= {"max_steps": 60, "eval_steps": 10}
        settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
        settings["seeds"] = [0]
        settings["claims"] = [c for c in settings["claims"] if c["name"] != "differ"]

    study.change(change)
    return study


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, forks: Any) -> Any:
    """The longer study, run here in one process, and a function that makes another like it."""
    import yaml

    settings: dict[str, Any] = {}

    def another(root: Path) -> Path:
        root.mkdir(parents=True)
        (root / "study.yaml").write_text(settings["study"])
        (root / "rows.jsonl").write_text(settings["rows"])
        return root

    spec = importlib.util.spec_from_file_location("support", Path(__file__).parents[1] / "conftest.py")
    assert spec is not None and spec.loader is not None
    support = importlib.util.module_from_spec(spec)
    sys.modules["support"] = support
    spec.loader.exec_module(support)
    first = longer(support.make_study(tmp_path_factory.mktemp("reference") / "study", tiny_model))
    settings["study"] = yaml.safe_dump(first.settings(), sort_keys=False)
    settings["rows"] = (first.root / "rows.jsonl").read_text("utf-8")
    done = forks("run", first.root)
    assert done.rc in (0, 2), done.err
    return first.root, another


def start_run(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "veritune", "run", str(root), *arguments]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_once_training(root: Path, runner: subprocess.Popen[str], after: int = 15) -> int:
    """Kill -9 the process that holds the training cell once it is past step `after`; the step it had reached."""
    until = time.monotonic() + 240
    while time.monotonic() < until and runner.poll() is None:
        for metrics in root.glob("runs/all_layer-*/metrics.jsonl"):
            text = metrics.read_text("utf-8")
            steps = [json.loads(x)["step"] for x in text.split("\n")[:-1]]
            if steps and max(steps) > after:
                holder = (root / ".locks" / metrics.parent.name).read_text().split()
                assert holder[0] == "process"
                os.kill(int(holder[1]), signal.SIGKILL)
                return max(steps)
        time.sleep(0.005)
    raise AssertionError(f"never saw the cell train: {runner.communicate()}")


def finish(runner: subprocess.Popen[str]) -> str:
    out, err = runner.communicate(timeout=400)
    assert runner.returncode in (0, 2), out + err
    return err


# ---------------------------------------------------------------- this machine


@pytest.mark.cluster
def test_cells_side_by_side_survive_a_kill_and_end_as_in_one_process(reference: Any, tmp_path: Path) -> None:
    whole, another = reference
    root = another(tmp_path / "study")
    runner = start_run(root, "--executor", "local", "--workers", "2")
    reached = kill_once_training(root, runner)
    assert 15 < reached < 60
    told = finish(runner)
    assert "2 side by side" in told and "FAILED" not in told
    assert result_of(root) == result_of(whole)
    assert sum(e["event"] == "ran" for e in lines(root / "events.jsonl")) == 1


@pytest.mark.slow
def test_a_failed_cell_is_named_and_does_not_stop_the_others(reference: Any, tmp_path: Path) -> None:
    """What a cell says of itself is final: it is not tried again."""
    _, another = reference
    root = another(tmp_path / "study")
    seen: list[executors.Ended] = []
    ended = executors.run_cells(ExecutorPlan(workers=2), root, ["all_layer-s0-nothere", "x"], Hooks(seen.append))
    assert ended == seen and len(ended) == 2
    assert all(one.error and "is not frozen" in one.error and one.tries == 1 for one in ended)


def test_how_many_fit_is_bounded_by_memory_and_cores_and_never_zero() -> None:
    assert how_many_fit(3_000, cores=8, free_bytes=10_000) == 3
    assert how_many_fit(3_000, cores=2, free_bytes=10_000) == 2
    assert how_many_fit(30_000, cores=2, free_bytes=10_000) == 1


def test_executor_options_are_key_and_value() -> None:
    assert options_from(["slurm_partition=gpu", "timeout_min=10"]) == {"slurm_partition": "gpu", "timeout_min": 10}
    with pytest.raises(InputError, match="expected key=value"):
        options_from(["partition"])


@pytest.mark.parametrize(
    ("kind", "needs", "words"),
    [
        ("local", ExecutorPlan(detach=True), "--detach: cells of --executor local end with this process"),
        (None, ExecutorPlan(detach=True), "--detach needs an executor"),
        ("slurm", ExecutorPlan(address="h:1"), "--address cannot be used with --executor slurm"),
        ("ray", ExecutorPlan(cpus=0), "--cpus: expected a positive number"),
        ("kubernetes", ExecutorPlan(), "expected local, ray or slurm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(kind: str | None, needs: ExecutorPlan, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan_from(kind, [], needs)


@pytest.mark.parametrize(
    ("train", "plan", "words"),
    [
        ({"devices": 2}, ExecutorPlan("ray"), "train.devices is 2, but each cell gets 1 cores and no accelerator"),
        ({"devices": 2}, ExecutorPlan("slurm", gpus=1), "train.devices is 2, but each cell gets 1 accelerators"),
        ({}, ExecutorPlan("slurm", gpus=0.5), "a fraction of an accelerator"),
        ({"devices": 2, "strategy": "fsdp2"}, ExecutorPlan("ray", cpus=2), "accelerators, but each cell gets none."),
    ],
)
def test_devices_are_held_against_what_a_cell_is_given_before_anything_is_reached(
    tmp_path: Path, new_study: Any, tiny_model: Path, train: dict[str, Any], plan: ExecutorPlan, words: str
) -> None:
    made = new_study(tmp_path / "study", tiny_model)
    made.change(lambda s: s["train"].update(train))
    with pytest.raises(InputError, match=words):
        check_plan(plan, parse_study(made.settings()), made.root)


def test_a_local_cell_that_is_in_use_is_not_called_failed(reference: Any, tmp_path: Path, forks: Any) -> None:
    """Another process has the training cell: exit status 3 and its name; the baseline is done meanwhile."""
    from veritune.store import Store

    _, another = reference
    root = another(tmp_path / "study")
    forks("run", root, kill_at=FROZEN)
    cells = list_cells(root)
    with Store(root).run_lock(cells[1].run_id):
        ended = executors.run_cells(ExecutorPlan(workers=1), root, [cells[1].run_id], Hooks())
    assert [(one.in_use, one.tries) for one in ended] == [(True, 1)]
    assert f"process {os.getpid()}" in (ended[0].error or "")


# ---------------------------------------------------------------- one cell alone


def test_a_cell_alone_ends_as_in_a_run_and_asks_for_a_frozen_study(reference: Any, tmp_path: Path, forks: Any) -> None:
    whole, another = reference
    root = another(tmp_path / "study")
    early = forks("work", root, "baseline-x")
    assert early.rc == 1 and "is not frozen" in early.err
    forks("run", root, kill_at=FROZEN)
    cells = list_cells(root)
    assert [(c.phase, c.state) for c in cells] == [("baseline", "stopped"), ("main", "waiting")]
    unknown = forks("work", root, "all_layer-s9")
    both = forks("work", root, "all_layer-s0", "--cells", 2)
    assert both.rc == 1 and "RUN_ID names one cell, but --cells counts several." in both.err
    assert unknown.rc == 1 and "List the cells: veritune status STUDY --cells" in unknown.err
    for cell in reversed(cells):  # the order does not matter
        assert forks("work", root, cell.run_id).rc == 0
    assert {c.state for c in list_cells(root)} == {"done"}
    assert "2 cells: 2 done" in cells_text(list_cells(root))
    assert forks("run", root).rc in (0, 2)
    assert result_of(root) == result_of(whole)
    assert forks("verify", root).rc == 0


@pytest.mark.parametrize("file", ["rows.parquet", "families.parquet", "split.parquet", "rendered"])
def test_a_cell_refuses_frozen_data_that_was_edited(reference: Any, tmp_path: Path, forks: Any, file: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, another = reference
    root = another(tmp_path / "study")
    forks("run", root, kill_at=FROZEN)
    (path,) = root.glob(f"data/*/{file}*")
    table = pq.read_table(path).to_pylist()
    column = {"rows.parquet": "meta", "families.parquet": "family", "split.parquet": "zone"}.get(file, "labels")
    table[0][column] = [1] * len(table[0]["labels"]) if column == "labels" else '{"x": 1}'
    pq.write_table(pa.Table.from_pylist(table), path)
    refused = forks("work", root, list_cells(root)[0].run_id)
    assert refused.rc == 1 and "it was edited" in refused.err


def test_two_processes_cannot_hold_one_cell(reference: Any, tmp_path: Path, forks: Any) -> None:
    from veritune.store import Store

    _, another = reference
    root = another(tmp_path / "study")
    forks("run", root, kill_at=FROZEN)
    run_id = list_cells(root)[1].run_id
    with Store(root).run_lock(run_id):
        (root / "runs" / run_id).mkdir()
        assert {c.run_id: c.state for c in list_cells(root)}[run_id] == "running"
        refused = forks("work", root, run_id)
    assert refused.rc == 3 and f"process {os.getpid()}" in refused.err


def test_a_silent_cell_is_stalled_and_a_slow_one_is_not(reference: Any, tmp_path: Path, forks: Any) -> None:
    from veritune.store import Store

    _, another = reference
    root = another(tmp_path / "study")
    forks("run", root, kill_at=r"open .*/all_layer-s0-.*/metrics.jsonl a.* #12")
    (folder,) = (root / "runs").glob("all_layer-*")

    def age(seconds: float) -> None:
        for path in [p for p in folder.rglob("*") if p.is_file()]:
            os.utime(path, (time.time() - seconds, time.time() - seconds))

    def state() -> str:
        return str({c.run_id: c.state for c in list_cells(root)}[folder.name])

    with Store(root).run_lock(folder.name):
        age(60)
        assert state() == "running"
        age(600)
        assert state() == "stalled"
        rows = lines(folder / "metrics.jsonl")
        slow = [{**row, "cost": 100.0 if row["cost"] else row["cost"]} for row in rows]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in slow))
        age(600)
        assert state() == "running"  # six of its own steps: slow
    assert state() == "stopped"


# ---------------------------------------------------------------- Ray


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray head of two cores on loopback; its address."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the package ray, which is not installed: pip install 'veritune[ray]'")
    ray, port = Path(sys.executable).with_name("ray"), free_port()
    options = ["--num-cpus", "2", "--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
    options += ["--object-store-memory", "100000000", "--disable-usage-stats"]
    command = [str(ray), "start", "--head", "--block", "--port", str(port), *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    head = subprocess.Popen(command, env=environment(), start_new_session=True, **quiet)
    until = time.monotonic() + 120
    while not listening(port):
        assert time.monotonic() < until and head.poll() is None, "the Ray head did not come up"
        time.sleep(0.2)
    time.sleep(3)  # the node registers a moment after the port opens
    yield f"127.0.0.1:{port}"
    os.killpg(head.pid, signal.SIGTERM)  # this head alone: `ray stop` would end every cluster of the machine
    try:
        head.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_no_node_can_hold_is_refused_and_not_waited_for(cluster: str, tmp_path: Path) -> None:
    code = (
        "from veritune.pipeline.executors import ExecutorPlan, Hooks, run_cells\n"
        f"plan = ExecutorPlan('ray', cpus=64, address={cluster!r})\n"
        "run_cells(plan, __import__('pathlib').Path('.'), ['a'], Hooks())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert "no node of the Ray cluster can hold a cell" in done.stderr and "MachineError" in done.stderr


def test_local_workers_are_given_only_the_accelerators_that_were_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, expected in (("5, GPU-8a1c", ["5", "GPU-8a1c"]), ("", ["0", "1"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert visible_accelerators() == expected


def test_without_a_cluster_ray_says_how_to_start_one(tmp_path: Path) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs the package ray, which is not installed: pip install 'veritune[ray]'")
    with pytest.raises(MachineError, match="ray start --head"):
        executors.run_cells(ExecutorPlan("ray", address=f"127.0.0.1:{free_port()}"), tmp_path, ["a"], Hooks())


# ---------------------------------------------------------------- Slurm


@pytest.mark.cluster
def test_an_array_of_jobs_ends_as_in_one_process(reference: Any, tmp_path: Path) -> None:
    """submitit's local jobs: the same pickled call in processes of their own; a real Slurm is not at hand in tests."""
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs the package submitit, which is not installed: pip install 'veritune[slurm]'")
    whole, another = reference
    root = another(tmp_path / "study")
    runner = start_run(root, "--executor", "slurm", "--executor-option", "cluster=local")
    assert "as a Slurm array" in finish(runner)
    assert result_of(root) == result_of(whole)


def test_a_machine_without_slurm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if importlib.util.find_spec("submitit") is None:
        pytest.skip("needs the package submitit, which is not installed: pip install 'veritune[slurm]'")
    with pytest.raises(MachineError, match="sbatch"):
        executors.run_cells(ExecutorPlan("slurm"), tmp_path, ["a"], Hooks())


# ---------------------------------------------------------------- several processes a cell


@pytest.mark.cluster
def test_two_processes_give_the_losses_of_one(reference: Any, tmp_path: Path, forks: Any) -> None:
    """Six rows a step on one process, and the same six shared by two; the last step of an epoch has two."""
    import yaml

    _, another = reference
    losses: list[list[float]] = []
    for devices in (1, 2):
        root = another(tmp_path / str(devices))
        settings = yaml.safe_load((root / "study.yaml").read_text("utf-8"))
        rows = {"per_device_train_batch_size": 6 // devices, "devices": devices, "max_steps": 6, "eval_steps": 3}
        settings["train"] |= rows
        settings["conditions"]["all_layer"]["lora_dropout"] = 0.0
        (root / "study.yaml").write_text(yaml.safe_dump(settings))
        forks("run", root, kill_at=FROZEN)
        run_id = list_cells(root)[1].run_id
        command = [sys.executable, "-m", "veritune", "work", str(root), run_id]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = lines(root / "runs" / run_id / "metrics.jsonl")
        losses.append([row["loss"] for row in found if row["loss"] is not None])
        training = json.loads((root / "runs" / run_id / "training.json").read_text("utf-8"))
        assert training["steps"] == 6 and training["processes"] == devices
    assert losses[1] == pytest.approx(losses[0], rel=2e-6)
    assert len(losses[0]) == 8


@pytest.mark.cluster
def test_ranks_end_with_the_worker_that_started_them_and_the_cell_is_taken_up_again(
    reference: Any, tmp_path: Path
) -> None:
    """The worker of a cell on two processes is killed: nobody trains on behind its back, and its successor ends it."""
    import psutil
    import yaml

    _, another = reference
    root = another(tmp_path / "study")
    settings = yaml.safe_load((root / "study.yaml").read_text("utf-8"))
    settings["train"] |= {"per_device_train_batch_size": 2, "devices": 2, "max_steps": 100}
    (root / "study.yaml").write_text(yaml.safe_dump(settings))
    runner = start_run(root, "--executor", "local", "--workers", "1")
    until, ranks = time.monotonic() + 400, []
    while not any(p.read_text("utf-8").count("\n") > 10 for p in root.glob("runs/all_layer-*/metrics.jsonl")):
        assert time.monotonic() < until and runner.poll() is None, runner.communicate()
        time.sleep(0.1)
    worker = next(p for p in psutil.Process(runner.pid).children() if "work" in p.cmdline())
    started = [p for p in worker.children(recursive=True) if "veritune" in p.cmdline()]
    ranks = [p for p in started if p.ppid() != worker.pid]  # the worker's own child is their launcher
    assert len(ranks) == 2
    worker.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive, "a rank trained on without its worker"
    told = finish(runner)
    assert "lost     process" in told and "FAILED" not in told
    (training,) = root.glob("runs/all_layer-*/training.json")
    assert json.loads(training.read_text("utf-8"))["processes"] == 2


def test_every_row_of_a_batch_is_taken_by_exactly_one_process() -> None:
    from veritune.train.trainer import share_of

    batch = [{"input_ids": (1, 2), "labels": (-100, 2), "row_index": i} for i in range(5)]
    for world in (1, 2, 3, 8):
        taken = [row for rank in range(world) for row in share_of(batch, rank, world)]
        assert sorted(r["row_index"] for r in taken if r["row_index"] >= 0) == [0, 1, 2, 3, 4]
        fillers = [r for r in taken if r["row_index"] < 0]
        assert len(fillers) == max(world - 5, 0) and all(set(r["labels"]) == {-100} for r in fillers)


def test_another_number_of_processes_than_declared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from veritune.train.distributed import check_ranks, is_main, world_size

    check_ranks(2)
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert world_size() == 4 and not is_main()
    with pytest.raises(MachineError, match=r"train\.devices is 2, and 4 processes were started"):
        check_ranks(2)

"""Studies on a Slurm and a Ray cluster of two nodes: driver, worker and node are killed, and every result is identical.

Its own job (`make test-cluster`, some ten minutes on two cores); skipped with a reason where it cannot run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from veritune.pipeline.watch import list_cells

_spec = importlib.util.spec_from_file_location("cluster_hosts", Path(__file__).with_name("hosts.py"))
assert _spec and _spec.loader
hosts = importlib.util.module_from_spec(_spec)
sys.modules["cluster_hosts"] = hosts
_spec.loader.exec_module(hosts)

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not os.environ.get("VERITUNE_CLUSTER"), reason="a cluster takes minutes: make test-cluster"),
]
BROKEN = """\
import importlib.abc, sys
class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "veritune.train.trainer":
            raise ImportError("libcudart.so.13: cannot open shared object file")
if "submitit.core._submit" in sys.orig_argv:
    sys.meta_path.insert(0, Broken())
"""


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any, forks: Any) -> Any:
    """A study of three cells run in one process, and a function that makes another like it."""

    def another(root: Path) -> Path:
        made = new_study(root, tiny_model)

        def change(settings: dict[str, Any]) -> None:
            settings["train"] |= {"max_steps": 80, "eval_steps": 10}
            settings["seeds"] = [0]

        made.change(change)
        return Path(made.root)

    first = another(tmp_path_factory.mktemp("reference") / "study")
    done = forks("run", first)
    assert done.rc in (0, 2), done.err
    return result_of(first), another


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    why = hosts.missing("slurmctld", "slurmd", "munged", "sbatch")
    if why or importlib.util.find_spec("submitit") is None:
        pytest.skip(why or "needs the package submitit, which is not installed: pip install 'veritune[slurm]'")
    with hosts.slurm(tmp_path_factory.mktemp("slurm") / "c") as environment:
        yield environment


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    why = hosts.missing()
    if why or importlib.util.find_spec("ray") is None:
        pytest.skip(why or "needs the package ray, which is not installed: pip install 'veritune[ray]'")
    with hosts.ray(tmp_path_factory.mktemp("ray") / "c") as cluster:
        yield cluster


def result_of(root: Path) -> dict[str, Any]:
    """What a study's cells measured, without times and hosts."""
    found: dict[str, Any] = {}
    for folder in sorted((root / "runs").iterdir()):
        mine: dict[str, Any] = {p.name: p.read_text("utf-8") for p in sorted((folder / "scores").glob("*.jsonl"))}
        mine["nll"] = (folder / "probes" / "nll.json").read_text("utf-8")
        if (folder / "training.json").exists():
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
            mine["losses"] = [(row["step"], row["split"], row["loss"]) for row in rows if row["loss"]]
            training = json.loads((folder / "training.json").read_text("utf-8"))
            mine["adapter"] = (root / training["checkpoint"] / "adapter_model.safetensors").read_bytes()
        found[folder.name] = mine
    return found


class Driver:
    """`veritune run STUDY ...` in a process of its own; `said` is what it wrote so far."""

    def __init__(self, root: Path, *options: str, environment: dict[str, str] | None = None) -> None:
        self.log = root.with_name(f"{root.name}.{len(list(root.parent.glob('*.log')))}.log")
        command = [sys.executable, "-m", "veritune", "run", str(root), "--cpus", "2", *options]  # a cell a node
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                command, env=environment or {**os.environ, **hosts.ENVIRONMENT}, stdout=stream, stderr=stream
            )

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def until(self, words: str) -> None:
        hosts.wait_for(lambda: words in self.said or self.process.poll() is not None, 400, words)
        assert words in self.said, self.said

    def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout=120)

    def end(self) -> str:
        assert self.process.wait(timeout=900) in (0, 2), self.said
        return self.said


def training_process(root: Path, after: int = 10) -> int:
    """The process that trains a cell, once it is past so many steps."""

    def found() -> int | None:
        for metrics in root.glob("runs/*/metrics.jsonl"):
            if metrics.read_text("utf-8").count("\n") > 3 * after and not (metrics.parent / "summary.json").exists():
                holder = (root / ".locks" / metrics.parent.name).read_text().split()
                if holder[:1] == ["process"] and Path(f"/proc/{holder[1]}").exists():
                    return int(holder[1])
        return None

    return int(str(hosts.wait_for(found, 400, "a cell that trains")))


# ---------------------------------------------------------------- Slurm


def test_slurm_jobs_outlive_their_driver_and_are_attached_to(reference: Any, slurm: Any, tmp_path: Path) -> None:
    """The driver is killed, its successor attaches and is stopped, the worker is killed: same results, no job twice."""
    whole, another = reference
    root = another(tmp_path / "study")
    options = ("--executor", "slurm", "--detach")
    first = Driver(root, *options, environment=slurm)
    worker = training_process(root)
    os.kill(worker, signal.SIGSTOP)
    first.stop(signal.SIGKILL)
    arrays = len(list((root / ".slurm").glob(".submission_file_*")))
    second = Driver(root, *options, environment=slurm)
    second.until("attached Slurm job")
    assert second.stop(signal.SIGTERM) == 143
    assert "cells continue in Slurm job" in second.said and "the same command attaches to them" in second.said
    assert len(list((root / ".slurm").glob(".submission_file_*"))) == arrays, "a second array was submitted"
    os.kill(worker, signal.SIGKILL)
    third = Driver(root, *options, environment=slurm)
    assert third.process.wait(timeout=900) in (0, 1, 2), third.said
    if third.process.returncode == 1:  # the killed task left the queue while the third driver watched
        assert f"lost: process {worker} on n" in third.said
        Driver(root, *options, environment=slurm).end()
    assert result_of(root) == whole
    listed = list_cells(root)
    assert {cell.host for cell in listed} <= {"n1", "n2"}
    assert any(f"process {worker} on n" in lost for cell in listed for lost in cell.lost)


def test_a_slurm_run_that_is_interrupted_cancels_its_jobs_and_says_so(
    reference: Any, slurm: Any, tmp_path: Path
) -> None:
    whole, another = reference
    root = another(tmp_path / "study")
    first = Driver(root, "--executor", "slurm", "--workers", "2", environment=slurm)
    training_process(root)
    assert first.stop(signal.SIGINT) == 130
    assert "was cancelled with" in first.said and "their checkpoints are kept" in first.said

    def empty() -> bool:
        shown = subprocess.run(["squeue", "-h", "-t", "PD,R"], env=slurm, capture_output=True, text=True, check=True)
        return not shown.stdout.strip()

    hosts.wait_for(empty, 60, "an empty queue")
    Driver(root, "--executor", "slurm", "--workers", "2", environment=slurm).end()
    assert result_of(root) == whole


def test_an_import_error_on_a_slurm_node_comes_back_with_its_text_and_host(
    reference: Any, slurm: Any, tmp_path: Path
) -> None:
    _, another = reference
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(BROKEN)
    path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    failing = Driver(another(tmp_path / "study"), "--executor", "slurm", environment={**slurm, "PYTHONPATH": path})
    assert failing.process.wait(timeout=600) == 1
    words = ": ImportError: libcudart.so.13: cannot open shared object file Nothing has trained."
    assert "the live steps failed on n" in failing.said and words in failing.said, failing.said


def test_what_slurm_could_never_run_is_refused_at_once(reference: Any, slurm: Any, tmp_path: Path) -> None:
    _, another = reference
    root = another(tmp_path / "study")
    for options, words in (
        (["--cpus", "64"], "Slurm could not run a cell: Requested node configuration is not available"),
        (["--executor-option", "slurm_partition=nothere"], "Slurm could not run a cell: "),
        (["--executor-option", "partition_=x"], "--executor-option: "),
    ):
        refused = Driver(root, "--executor", "slurm", *options, environment=slurm)
        assert refused.process.wait(timeout=120) == 1 and words in refused.said, refused.said
    assert not (root / "contract.lock.json").exists() and not (root / "data").exists()


SBATCH = """\
#!/bin/sh
case "$*" in *--test-only*) exec {real} "$@" ;; esac
grep -q -- --job-name=veritune-live "$1" && exec {real} "$@"
echo "$1" >> {log}
{first}
exec {real} "$@"
"""


def with_sbatch(folder: Path, environment: dict[str, str], first: str) -> tuple[dict[str, str], Path]:
    """The environment with an `sbatch` that does something before the real one has cells; a line for each call."""
    folder.mkdir()
    log = folder / "calls"
    real = shutil.which("sbatch")
    (folder / "sbatch").write_text(SBATCH.format(real=real, log=log, first=first))
    (folder / "sbatch").chmod(0o755)
    return {**environment, "PATH": f"{folder}:{environment['PATH']}"}, log


def test_an_array_whose_driver_died_while_it_was_submitted_is_ended_and_sent_again(
    reference: Any, slurm: Any, tmp_path: Path
) -> None:
    """Its number was never learnt, so its tasks have no work: submitit hands that out afterwards."""
    whole, another = reference
    root = another(tmp_path / "study")
    slow, log = with_sbatch(tmp_path / "slow", slurm, 'sleep 8; set -- --begin=now+1hour "$1"')  # it waits in the queue
    first = Driver(root, "--executor", "slurm", environment=slow)
    hosts.wait_for(log.exists, 400, "a submission")
    assert json.loads((root / ".jobs" / "slurm.json").read_text())["jobs"][0]["job_id"] is None
    first.stop(signal.SIGKILL)  # its sbatch lives on and submits the array
    second = Driver(root, "--executor", "slurm", environment=slurm)
    said = second.end()
    assert "ended    Slurm job" in said and "its driver was killed before its tasks were complete" in said
    assert result_of(root) == whole
    assert not any(cell.lost for cell in list_cells(root))


def test_what_a_limit_on_jobs_refuses_is_submitted_when_others_have_ended(
    reference: Any, slurm: Any, tmp_path: Path
) -> None:
    """Three cells in arrays of two tasks: the second array is refused as long as the first is in the queue."""
    whole, another = reference
    root = another(tmp_path / "study")
    limit = (
        'if [ -n "$(squeue -h -o %j | grep -v live)" ]; then\n'
        "  echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1\nfi"
    )
    limited, log = with_sbatch(tmp_path / "limited", slurm, limit)
    said = Driver(root, "--executor", "slurm", environment=limited).end()
    assert "1 cells will be submitted when others have ended: Slurm refused the job: " in said
    assert "QOSMaxSubmitJobPerUserLimit" in said and said.count("cells will be submitted when others have ended:") == 1
    assert len(log.read_text().splitlines()) >= 3  # two arrays, and one that was refused
    assert result_of(root) == whole


def of_two_processes(root: Path) -> Path:
    """The study with cells of two processes: half the rows for each."""
    settings = yaml.safe_load((root / "study.yaml").read_text("utf-8"))
    settings["train"] |= {"devices": 2, "per_device_train_batch_size": 2}
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    return root


def test_cells_of_two_processes_train_on_slurm_s_nodes_and_a_killed_rank_is_tried_again(
    reference: Any, slurm: Any, tmp_path: Path
) -> None:
    _, another = reference
    root = of_two_processes(another(tmp_path / "study"))
    run = Driver(root, "--executor", "slurm", environment=slurm)
    rank = training_process(root)
    os.kill(rank, signal.SIGKILL)
    run.end()
    check_two_processes(root, rank)


def check_two_processes(root: Path, killed: int | None = None) -> None:
    """Every trained cell says two processes; a killed rank is named; planned starting time is what a start takes."""
    listed = [cell for cell in list_cells(root) if cell.phase == "main"]
    for cell in listed:
        assert json.loads((root / "runs" / cell.run_id / "training.json").read_text())["processes"] == 2
    assert {cell.host for cell in listed} <= {"n1", "n2"}
    assert killed is None or any(f"process {killed} on n" in lost for cell in listed for lost in cell.lost)
    probes = [path for path in (root / "audit").glob("live-*.json") if path.stem != "live-answers"]
    assert probes and all(json.loads(path.read_text())["start_s"] > 2 for path in probes)


# ---------------------------------------------------------------- Ray


def test_ray_workers_outlive_their_driver_and_lost_ones_are_named(reference: Any, ray: Any, tmp_path: Path) -> None:
    whole, another = reference
    root = another(tmp_path / "study")
    options = ("--executor", "ray", "--address", ray[0], "--detach")
    first = Driver(root, *options)
    worker = training_process(root)
    os.kill(worker, signal.SIGSTOP)
    first.stop(signal.SIGKILL)
    second = Driver(root, *options)
    second.until("attached ")
    assert second.stop(signal.SIGTERM) == 143, second.said
    assert "continue on Ray (n" in second.said and "are queued. Run the same command to attach to them." in second.said
    third = Driver(root, *options)
    third.until("attached ")
    os.kill(worker, signal.SIGKILL)
    assert "lost     " in third.end()
    assert result_of(root) == whole
    assert any(f"process {worker} on n" in lost for cell in list_cells(root) for lost in cell.lost)


def test_a_ray_worker_s_error_comes_with_its_text_and_host(reference: Any, ray: Any, tmp_path: Path) -> None:
    """From outside the cluster (Ray Client). The model's folder is taken away from under the workers first."""
    whole, another = reference
    root = another(tmp_path / "study")
    settings = (root / "study.yaml").read_text("utf-8")
    (root / "study.yaml").write_text(settings.replace("path: /", "path: /not-on-any-node/", 1))
    unseen = Driver(root, "--executor", "ray", "--address", ray[1])
    assert unseen.process.wait(timeout=300) == 1
    assert "n1 does not see the model's folder /not-on-any-node/" in unseen.said, unseen.said
    (root / "study.yaml").write_text(settings)
    Driver(root, "--executor", "ray", "--address", ray[1]).end()
    assert result_of(root) == whole


def test_cells_of_two_processes_train_on_ray_s_nodes(reference: Any, ray: Any, tmp_path: Path) -> None:
    _, another = reference
    root = of_two_processes(another(tmp_path / "study"))
    refused = Driver(root, "--executor", "ray", "--address", ray[0], "--cpus", "1")
    assert refused.process.wait(timeout=120) == 1
    assert "train.devices is 2, but each cell gets 1 cores" in refused.said
    Driver(root, "--executor", "ray", "--address", ray[0]).end()
    check_two_processes(root)


def test_a_ray_node_that_is_lost_is_named_and_its_cell_goes_on_elsewhere(
    reference: Any, ray: Any, tmp_path: Path
) -> None:
    """The last test of this cluster: its second node ends here."""
    whole, another = reference
    root = another(tmp_path / "study")
    run = Driver(root, "--executor", "ray", "--address", ray[0])
    training_process(root)
    for process in [*psutil.Process(ray[2].pid).children(recursive=True), psutil.Process(ray[2].pid)]:
        process.kill()
    said = run.end()
    assert result_of(root) == whole
    assert "lost     " in said and " on n2" in said

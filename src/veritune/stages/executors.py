"""Where cells run: in this process, side by side on this machine, on a Ray cluster, or as a Slurm array.

Whatever runs them, a cell is the same command (`veritune cell STUDY RUN_ID`), its records are the same files in the
study's folder, and progress is read from those. All machines must see that folder under the same path.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from veritune.errors import InputError, MachineError, VerituneError, first_line
from veritune.machine import usable_cores

Kind = Literal["local", "ray", "slurm"]
POLL_S = 1.0
HANDED_ON = (
    *("HF_HUB_OFFLINE", "HF_HOME", "VERITUNE_CACHE", "PYTHONPATH", "TOKENIZERS_PARALLELISM"),
    *("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
)
"""The environment variables that workers on other machines are given; a study's reporters add their own."""


@dataclass(frozen=True)
class ExecutorPlan:
    """How cells are run. `workers` is for `local`: how many side by side, 0 for as many as fit.

    `cpus`, `gpus` and `memory_bytes` are what one cell needs (for `ray` and `slurm`, and to tell how many fit);
    `retries` counts new tries of a cell whose process was lost. `options` go to Slurm as submitit names them.
    `handed_on` names environment variables that Ray's workers are given besides HANDED_ON.
    """

    kind: Kind = "local"
    workers: int = 1
    cpus: int = 1
    gpus: float = 0
    memory_bytes: int | None = None
    retries: int = 2
    address: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    handed_on: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """How one cell ended. `error` is None when it is done; `tries` counts its processes."""

    run_id: str
    error: str | None
    tries: int


Tell = Callable[[Ended], None]


def run_cells(
    plan: ExecutorPlan, study: Path, run_ids: Sequence[str], tell: Tell, tick: Callable[[], None]
) -> list[Ended]:
    """Run these cells and wait for all; a failed one does not stop the others. `tell` hears of each as it ends.

    `tick` is called about once a second in between. Raises MachineError when the executor cannot run a cell at all.
    """
    execute = {"local": _local, "ray": _ray, "slurm": _slurm}[plan.kind]
    ended = []
    for one in execute(plan, study.resolve(), list(run_ids), tick):
        tell(one)
        ended.append(one)
    return ended


def how_many_fit(cell_bytes: int, *, cores: int | None = None, free_bytes: int | None = None) -> int:
    """Cells that fit side by side on this machine: by free memory, with a tenth kept back, and by cores. At least 1."""
    import psutil

    free = psutil.virtual_memory().available if free_bytes is None else free_bytes
    by_memory = int(free * 0.9) // max(cell_bytes, 1)
    return max(1, min(by_memory, usable_cores() if cores is None else cores))


def options_from(texts: Sequence[str]) -> dict[str, Any]:
    """`key=value` options as a mapping, whole numbers as numbers. Raises InputError."""
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise InputError(f"--executor-option {text!r}: expected key=value.", fix="For example partition=gpu.")
        found[key] = int(value) if value.isdigit() else value
    return found


def plan_from(
    kind: str | None, options: Sequence[str], workers: int, cpus: int, gpus: float, address: str | None
) -> ExecutorPlan | None:
    """The plan that `--executor` and the options beside it name; None without one. Raises InputError."""
    if kind is None:
        return None
    if kind not in get_args(Kind):
        raise InputError(f"--executor {kind!r}: expected local, ray or slurm.", fix="Leave it out to run cells here.")
    return ExecutorPlan(cast("Kind", kind), workers, cpus, gpus, address=address, options=options_from(options))


# ---------------------------------------------------------------- this machine


@dataclass
class _Child:
    run_id: str
    process: subprocess.Popen[bytes]
    words: Path
    device: str | None
    tries: int


def _local(plan: ExecutorPlan, study: Path, run_ids: list[str], tick: Callable[[], None]) -> Iterator[Ended]:
    """A process a cell, so many at a time. A cell whose process was killed is started again; its own error is final."""
    workers = plan.workers or how_many_fit(plan.memory_bytes or 1)
    threads = max(usable_cores() // workers, 1)
    devices: list[str | None] = [*_accelerators()] or [None] * workers
    waiting = [(run_id, 1) for run_id in run_ids]
    living: list[_Child] = []
    try:
        while waiting or living:
            while waiting and len(living) < min(workers, len(devices)):
                run_id, tries = waiting.pop(0)
                free = next(d for d in devices if d is None or d not in {c.device for c in living})
                living.append(_start(study, run_id, tries, threads, free))
            time.sleep(POLL_S / 5)
            tick()
            for child in [c for c in living if c.process.poll() is not None]:
                living.remove(child)
                again, ended = _verdict(child, plan.retries)
                child.words.unlink(missing_ok=True)
                if again:
                    waiting.insert(0, (child.run_id, child.tries + 1))
                else:
                    yield ended
    finally:
        for child in living:
            child.process.terminate()
        for child in living:
            child.process.wait()
            child.words.unlink(missing_ok=True)


def _start(study: Path, run_id: str, tries: int, threads: int, device: str | None) -> _Child:
    import tempfile

    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    handle, words = tempfile.mkstemp(prefix="veritune-cell-", suffix=".err")
    with os.fdopen(handle, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "veritune", "cell", str(study), run_id, "--quiet"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=environment,
        )
    return _Child(run_id, process, Path(words), device, tries)


def _verdict(child: _Child, retries: int) -> tuple[bool, Ended]:
    """Whether to start it again, and how it ended if not."""
    status = child.process.returncode
    if status == 0:
        return False, Ended(child.run_id, None, child.tries)
    said = child.words.read_text("utf-8", "replace").strip().splitlines()
    words = said[-1].removeprefix("veritune: ") if said else f"ended with status {status}"
    if status < 0:
        words = f"its process was killed by signal {-status}"
    return status < 0 and child.tries <= retries, Ended(child.run_id, words, child.tries)


def _accelerators() -> list[str]:
    """The accelerators that this process sees, each as CUDA_VISIBLE_DEVICES names it.

    Where only some of a machine's are visible, the others belong to somebody else.
    """
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(i) for i in range(count)]


# ---------------------------------------------------------------- a Ray cluster


def _ray(plan: ExecutorPlan, study: Path, run_ids: list[str], tick: Callable[[], None]) -> Iterator[Ended]:
    """A Ray task a cell. Ray starts the task anew when its worker is lost; the cell goes on from its last checkpoint.

    The cell runs inside the worker's own process, so that a killed worker leaves nobody holding the run.
    """
    ray = _connected(plan)
    memory = {"memory": plan.memory_bytes} if plan.memory_bytes else {}
    task = ray.remote(
        num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=plan.retries, max_calls=1, retry_exceptions=False, **memory
    )(cell_in_worker)
    pending = {task.remote(str(study), run_id): run_id for run_id in run_ids}
    try:
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=POLL_S)
            tick()
            for reference in ready:
                run_id = pending.pop(reference)
                try:
                    yield Ended(run_id, ray.get(reference), 1)
                except ray.exceptions.RayError as exc:
                    words = f"its worker was lost {plan.retries + 1} times ({type(exc).__name__})"
                    yield Ended(run_id, words, plan.retries + 1)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def cell_in_worker(study: str, run_id: str) -> str | None:
    """One cell inside a worker's process: None when it is done, else what went wrong."""
    from veritune.progress import Progress
    from veritune.stages.cell import cell_command

    try:
        cell_command(study, run_id, Progress(silent=True))
    except VerituneError as exc:
        return str(exc)
    return None


class CellTask:
    """`cell_in_worker` as a task that submitit may queue again after a preemption or a time limit."""

    def __call__(self, study: str, run_id: str) -> str | None:
        """Run the cell, or what is left of it."""
        return cell_in_worker(study, run_id)

    def checkpoint(self, study: str, run_id: str) -> Any:
        """What to queue when the job must go: the same call, since a cell goes on from its last checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, study, run_id)


def _connected(plan: ExecutorPlan) -> Any:
    """Ray, connected. Raises MachineError without it, without a cluster, or when no node can ever hold a cell.

    Ray itself would wait for ever for resources that no node has.
    """
    try:
        import ray
    except ImportError:
        raise MachineError("--executor ray needs Ray.", fix="pip install 'veritune[ray]'") from None
    if not ray.is_initialized():
        _check_listening(plan.address)
        named = (*HANDED_ON, *plan.handed_on)
        environment = {name: os.environ[name] for name in named if name in os.environ}
        try:
            ray.init(
                address=plan.address or "auto",
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise _no_cluster(plan.address, first_line(exc)) from None
    asked = {"CPU": float(plan.cpus), "GPU": float(plan.gpus), "memory": float(plan.memory_bytes or 0)}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= need for name, need in asked.items()) for node in nodes):
        has = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in asked}
        raise MachineError(
            f"no node of the Ray cluster can hold a cell: it needs {asked}, the largest of each is {has}.",
            fix="Ask for less (--cpus, --gpus), or add a node.",
        )
    return ray


def _no_cluster(address: str | None, why: str) -> MachineError:
    fix = (
        "Start one with `ray start --head`, or name it: --address HOST:6379. One with tokens needs RAY_AUTH_MODE=token."
    )
    return MachineError(f"no Ray cluster at {address or 'auto'}: {why}", fix=fix)


def _check_listening(address: str | None) -> None:
    """Raises MachineError when nothing listens there: Ray itself would end the whole process."""
    import socket

    host, _, port = (address or "").rpartition(":")
    if address is None or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=10).close()
    except OSError as exc:
        raise _no_cluster(address, str(exc)) from None


# ---------------------------------------------------------------- Slurm


def _slurm(plan: ExecutorPlan, study: Path, run_ids: list[str], tick: Callable[[], None]) -> Iterator[Ended]:
    """One array job through submitit, a task a cell. A preempted or timed-out task is queued again by submitit.

    `options` are submitit's (`slurm_partition`, `timeout_min`, ...); `cluster=local` runs the jobs on this machine.
    """
    try:
        import submitit
    except ImportError:
        raise MachineError("--executor slurm needs submitit.", fix="pip install 'veritune[slurm]'") from None
    options = dict(plan.options)
    cluster = options.pop("cluster", "slurm")
    retries = {"slurm_max_num_timeout": plan.retries}
    try:
        executor = submitit.AutoExecutor(folder=study / ".slurm" / "%j", cluster=cluster, **retries)
    except RuntimeError as exc:
        raise MachineError(f"no Slurm here: {exc}", fix="Run it where `sbatch` is, or use --executor local.") from None
    memory = {"mem_gb": plan.memory_bytes / 2**30} if plan.memory_bytes else {}
    gpus = {"gpus_per_node": int(plan.gpus)} if plan.gpus else {}
    executor.update_parameters(cpus_per_task=plan.cpus, name="veritune", **memory, **gpus, **options)
    jobs = dict(zip(run_ids, executor.map_array(CellTask(), [str(study)] * len(run_ids), run_ids)))
    try:
        while jobs:
            time.sleep(POLL_S)
            tick()
            for run_id in [r for r, job in jobs.items() if job.done()]:
                job = jobs.pop(run_id)
                try:
                    yield Ended(run_id, job.result(), 1)
                except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError) as exc:
                    last = str(exc).strip().splitlines()[-1][:200]
                    yield Ended(run_id, f"job {job.job_id} is {job.state.lower()}: {last}", 1)
    finally:
        for job in jobs.values():
            job.cancel(check=False)

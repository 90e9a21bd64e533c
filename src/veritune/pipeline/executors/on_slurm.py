"""Cells as array jobs of Slurm through submitit, in arrays no longer than the cluster takes.

Each array has a name of its own that is recorded before it is submitted, and `squeue --name` tells what of it lives. So
a driver that was killed at any moment is followed by one that attaches; where it never learnt the job's number, that
array has no work yet and is ended.
A preempted or timed-out task is queued again by submitit.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.errors import MachineError, first_line
from veritune.files import sha256_text
from veritune.pipeline.executors.jobs import Jobs
from veritune.pipeline.executors.plan import POLL_S, Ended, ExecutorPlan, Hooks
from veritune.pipeline.executors.worker import CellOutcome, CellTask, LiveTask, PullTask
from veritune.pipeline.tries import lost_tries, name_try, read_tries
from veritune.pipeline.watch import FAILED
from veritune.records import ClusterJob, FailedRun
from veritune.store import Store

if TYPE_CHECKING:
    from submitit import AutoExecutor

FOLDER = ".slurm"
QUEUE_S = 3.0
"""Seconds between two looks into the queue: one `squeue` for all arrays of the study."""
GRACE_S = 15.0
"""How long after a task left the queue its result may take to be seen: NFS keeps a folder's list for some seconds."""
SUBMIT_S = 30.0
"""How long an `sbatch` whose driver was killed may still take to reach the controller."""
AGAIN_S = 30.0
"""Seconds between two tries to submit what the cluster would not take yet."""
MOST = 1001
"""Slurm's own MaxArraySize where `scontrol` does not say another."""


@dataclass(frozen=True)
class _Task:
    """One task of an array in the queue."""

    state: str
    node: str


def run(plan: ExecutorPlan, study: Path, run_ids: list[str], hooks: Hooks) -> Generator[Ended]:
    """Run one Slurm task per cell, or `plan.workers` tasks that each run cells until none is left; `cluster=local` runs
    the jobs on this machine.
    """
    if plan.options.get("cluster") == "local":
        yield from _run_local(plan, study, run_ids, hooks)
        return
    yield from _Arrays(plan, study, run_ids, hooks).run()


class _Arrays:
    """The arrays of one study: those that an earlier driver left and those submitted now."""

    def __init__(self, plan: ExecutorPlan, study: Path, run_ids: list[str], hooks: Hooks) -> None:
        self.plan, self.study, self.hooks = plan, study, hooks
        self.jobs = Jobs(study, "slurm")
        self.open = dict.fromkeys(run_ids)
        self.job_of: dict[str, str] = {}  # an earlier array's task may have failed, and its cell be in a new one
        self.left_queue: dict[str, float] = {}
        self.looked = 0.0
        self.nodes: dict[str, str] = {}
        self.unsent: list[tuple[str, ...]] = []
        self.refused = 0.0

    def run(self) -> Iterator[Ended]:
        """Run every cell, and yield each as it ends."""
        attached = self._attach()
        try:
            self._submit([run_id for run_id in self.open if run_id not in attached])
            while self.open:
                time.sleep(POLL_S)
                self.hooks.tick()
                if time.monotonic() - self.looked < QUEUE_S:
                    continue
                self.looked = time.monotonic()
                yield from self._look()
                self._send_unsent()
        except BaseException:
            self._let_go()
            raise
        for name in list(self.jobs.known):
            self.jobs.drop(name)

    def _attach(self) -> set[str]:
        """Run ids that tasks of an earlier driver have, in the queue or at work."""
        alive = self._known_alive()
        attached: set[str] = set()
        for job in list(self.jobs.known.values()):
            tasks = alive.get(job.name, {})
            if tasks and job.job_id is None:
                _call("scancel", f"--name={job.name}")
                ids = {key.partition("_")[0] for key in tasks}
                self.hooks.say(f"ended    Slurm job {ids.pop()}: its driver was killed before its tasks were complete")
            if not tasks or job.job_id is None:
                self.jobs.drop(job.name)
                continue
            mine = self._runs_of(job, tasks) & set(self.open)
            attached |= mine
            self.job_of |= dict.fromkeys(mine, job.name)
            nodes = sorted({task.node for task in tasks.values() if task.node})
            where = f", running on {', '.join(nodes)}" if nodes else ", waiting for a node"
            self.hooks.say(f"attached Slurm job {job.job_id}: {len(mine)} cells{where}")
        return attached

    def _known_alive(self) -> dict[str, dict[str, _Task]]:
        """What lives of the recorded jobs. One without a number was being submitted when its driver was killed: it may
        reach the queue a moment later, and is waited for. submitit gives tasks their work after it learns the number,
        so such a job can do nothing."""
        while True:
            alive = queue(list(self.jobs.known))
            if alive is None:
                raise MachineError(
                    f"squeue does not answer, and jobs of this study may still be running ({self.jobs.path}).",
                    fix="Run the same command again once Slurm's controller answers.",
                )
            unheard = [job for job in self.jobs.known.values() if job.job_id is None and not alive.get(job.name)]
            if all(_age_s(job) > SUBMIT_S for job in unheard):
                return alive
            time.sleep(POLL_S)
            self.hooks.tick()

    def _runs_of(self, job: ClusterJob, tasks: dict[str, _Task]) -> set[str]:
        if self._pulls(job):
            return set(job.run_ids)
        return {job.run_ids[_index(key)] for key in tasks if _index(key) < len(job.run_ids)}

    @staticmethod
    def _pulls(job: ClusterJob) -> bool:
        return job.name.startswith("veritune-pull-")

    def _submit(self, run_ids: Sequence[str]) -> None:
        if not run_ids:
            return
        if self.plan.workers:
            job = self.jobs.new(tuple(run_ids))
            pulled = replace(job, name=job.name.replace("veritune-", "veritune-pull-"))
            self.jobs.drop(job.name)
            self.jobs.put(pulled)
            self._send(pulled, PullTask(), [(str(self.study), tuple(run_ids))] * self.plan.workers)
            return
        most = longest_array()
        self.unsent = [tuple(run_ids[start : start + most]) for start in range(0, len(run_ids), most)]
        self._send_unsent()

    def _send_unsent(self) -> None:
        """Submit what is left, an array at a time. A cluster may limit the jobs of one user: what it refuses while
        others of this study are in the queue is tried again later. Raises MachineError where none is."""
        if self.refused and time.monotonic() - self.refused < AGAIN_S and self.jobs.known:
            return
        while self.unsent:
            part = self.unsent[0]
            try:
                self._send(self.jobs.new(part), CellTask(), [(str(self.study), run_id) for run_id in part])
            except MachineError as exc:
                if not self.jobs.known:
                    raise
                if not self.refused:
                    left = sum(map(len, self.unsent))
                    self.hooks.say(f"queue    {left} cells will be submitted when others have ended: {exc.message}")
                self.refused = time.monotonic()
                return
            self.unsent.pop(0)

    def _send(self, job: ClusterJob, task: Any, calls: Sequence[tuple[Any, ...]]) -> None:
        executor = executor_of(self.plan, self.study, job.name)
        self.job_of |= dict.fromkeys(job.run_ids, job.name)
        try:
            sent = executor.map_array(task, *zip(*calls))
        except Exception as exc:  # submitit raises a class of its own per cause, with sbatch's words in it
            self.jobs.drop(job.name)
            raise MachineError(f"Slurm refused the job: {_refusal(exc)}", fix="See --executor-option.") from exc
        self.jobs.put(replace(job, job_id=str(sent[0].job_id).partition("_")[0]))

    def _look(self) -> Iterator[Ended]:
        alive = queue(list(self.jobs.known))
        if alive is None:
            return  # a controller that restarts: silence is not an end
        for job in list(self.jobs.known.values()):
            tasks = alive.get(job.name, {})
            for key, task in tasks.items():
                if task.node:
                    self.nodes[key] = task.node
            if self._pulls(job):
                yield from self._pulled(job, tasks)
                continue
            living = {_index(key) for key in tasks}
            for index, run_id in enumerate(job.run_ids):
                if self._is_open(job, run_id) and index not in living:
                    yield from self._ended(job, index, run_id)
            if not tasks and not any(self._is_open(job, run_id) for run_id in job.run_ids):
                self.jobs.drop(job.name)

    def _is_open(self, job: ClusterJob, run_id: str) -> bool:
        return run_id in self.open and self.job_of.get(run_id) == job.name

    def _ended(self, job: ClusterJob, index: int, run_id: str) -> Iterator[Ended]:
        """A task that is not in the queue any more: its result, or after a while that it left none."""
        key = f"{job.job_id}_{index}" if len(job.run_ids) > 1 else str(job.job_id)
        outcome = result_of(self.study, key)
        if outcome is None and time.monotonic() - self.left_queue.setdefault(key, time.monotonic()) < GRACE_S:
            return
        del self.open[run_id]
        node = self.nodes.get(key)
        if isinstance(outcome, CellOutcome):
            yield Ended(run_id, outcome.error, 1, outcome.host, outcome.in_use)
        elif self.hooks.done(run_id):
            yield Ended(run_id, None, 1, node)
        else:
            yield Ended(run_id, outcome or self._unheard(key, run_id, node), 1, node)

    def _unheard(self, key: str, run_id: str, node: str | None) -> str:
        """What is known of a task that ended without a result: Slurm's state, its node, the last lines it wrote."""
        lost = lost_tries(read_tries(self.study / "runs" / run_id), over=True)
        who = f"; lost: {', '.join(name_try(line) for line in lost[-2:])}" if lost else ""
        words = last_words(self.study, key)
        return f"Slurm job {key} ended without a result: {state_of(key)} on {node or 'an unknown node'}{who}" + (
            f": {words}" if words else ""
        )

    def _pulled(self, job: ClusterJob, tasks: dict[str, _Task]) -> Iterator[Ended]:
        """Cells that tasks take themselves: their records say how each ended, its failure with text and host."""
        over = not tasks
        told = results_of_pull(self.study, str(job.job_id)) if over else {}
        for run_id in [run_id for run_id in job.run_ids if self._is_open(job, run_id)]:
            folder = self.study / "runs" / run_id
            if self.hooks.done(run_id):
                tries = read_tries(folder)
                del self.open[run_id]
                yield Ended(run_id, None, 1, tries[-1].host if tries else None)
            elif over:
                del self.open[run_id]
                yield self._not_pulled(run_id, told.get(run_id) or told.get(""))

    def _not_pulled(self, run_id: str, told: CellOutcome | None) -> Ended:
        """A cell that is not done and whose tasks are all over. `told`: what a task returned of it, or ended with."""
        folder, holder = self.study / "runs" / run_id, Store(self.study).holder(run_id)
        if holder is not None:
            return Ended(run_id, f"it is in use by {holder}", 1, in_use=True)
        if (folder / FAILED).exists():
            failed = FailedRun.load(folder / FAILED)
            return Ended(run_id, failed.error, 1, failed.host)
        if told is not None and told.error is not None:
            return Ended(run_id, told.error, 1, told.host or None, told.in_use)
        lost = lost_tries(read_tries(folder), over=True)
        return Ended(run_id, f"lost: {', '.join(map(name_try, lost))}" if lost else "no task of the job started it", 1)

    def _let_go(self) -> None:
        """This driver stops: leave the jobs, or cancel them, and say which."""
        ids = [job.job_id for job in self.jobs.known.values() if job.job_id]
        named = ", ".join(ids) or "none"
        waiting = sum(map(len, self.unsent))
        if self.plan.detach:
            rest = f" {waiting} were not submitted yet." if waiting else ""
            self.hooks.stopped(
                f"{len(self.open) - waiting} cells continue in Slurm job {named}; the same command attaches to them, "
                f"`scancel {' '.join(ids)}` stops them.{rest}"
            )
            return
        alive = [name for name in self.jobs.known if _call("scancel", f"--name={name}") is None]
        for name in [name for name in self.jobs.known if name not in alive]:
            self.jobs.drop(name)
        if alive:
            self.hooks.stopped(
                f"scancel failed: {len(self.open) - waiting} cells may still run in Slurm job {named}; the same "
                "command attaches to them."
            )
            return
        self.hooks.stopped(f"Slurm job {named} was cancelled with {len(self.open)} cells; their checkpoints are kept.")


# ---------------------------------------------------------------- submitit


def executor_of(plan: ExecutorPlan, study: Path, name: str) -> AutoExecutor:
    """submitit's executor with the resources of a cell. Raises MachineError without submitit or Slurm, or for a wrong
    option.
    """
    try:
        import submitit
    except ImportError as exc:
        raise MachineError(
            "--executor slurm needs the package submitit, which is not installed.", fix="pip install 'veritune[slurm]'"
        ) from exc
    options = dict(plan.options)
    cluster = options.pop("cluster", "slurm")
    retries = {"slurm_max_num_timeout": plan.retries}
    try:
        executor = submitit.AutoExecutor(folder=study / FOLDER / "%j", cluster=str(cluster), **retries)
    except RuntimeError as exc:
        raise MachineError(
            f"Slurm is not available here: {exc}", fix="Run it where `sbatch` is, or use --executor local."
        ) from exc
    gpus = {"gpus_per_node": int(plan.gpus)} if plan.gpus else {}
    memory = {"mem_gb": plan.memory_bytes / 2**30} if plan.memory_bytes else {}
    try:
        executor.update_parameters(cpus_per_task=plan.cpus, name=name, **memory, **gpus, **options)
    except (ValueError, TypeError, NameError) as exc:
        raise MachineError(
            f"--executor-option: {first_line(exc)}",
            fix="Use submitit's option names: slurm_partition, timeout_min, ...",
        ) from exc
    return executor


def result_of(study: Path, key: str) -> CellOutcome | str | None:
    """The result of a task: a sentence if it raised, None if it left nothing."""
    import submitit

    paths = submitit.core.utils.JobPaths(study / FOLDER / "%j", job_id=key, task_id=0)
    if not paths.result_pickle.exists():
        return None
    kind, value = submitit.core.utils.pickle_load(paths.result_pickle)
    if kind == "success":
        return value if isinstance(value, CellOutcome) else None
    return str(value).strip().splitlines()[-1][:300]  # a traceback, whose last line is the error


def results_of_pull(study: Path, job_id: str) -> dict[str, CellOutcome]:
    """The results of the tasks of a job, by run id; under "" the error of a task that returned nothing."""
    import submitit

    found: dict[str, CellOutcome] = {}
    for folder in [study / FOLDER / job_id, *sorted((study / FOLDER).glob(f"{job_id}_*"))]:
        path = submitit.core.utils.JobPaths(folder, job_id=folder.name, task_id=0).result_pickle
        if not path.exists():
            continue
        kind, value = submitit.core.utils.pickle_load(path)
        if kind == "success" and isinstance(value, dict):
            found |= value
        elif kind != "success":
            found[""] = CellOutcome(str(value).strip().splitlines()[-1][:300], "", 0)
    return found


def last_words(study: Path, key: str) -> str:
    """The last line that a task wrote to its error file; empty if there is none."""
    import submitit

    path = submitit.core.utils.JobPaths(study / FOLDER / "%j", job_id=key, task_id=0).stderr
    lines = path.read_text("utf-8", "replace").strip().splitlines() if path.exists() else []
    return lines[-1][:200] if lines else ""


def _refusal(exc: Exception) -> str:
    lines = [line for line in str(exc).splitlines() if "error" in line.lower()]
    return lines[-1].strip()[:300] if lines else first_line(exc)


def live_steps(plan: ExecutorPlan, study: Path, hooks: Hooks) -> None:
    """Measure a plan's live steps in one job with a cell's resources. Raises MachineError with its error and host.

    A job that an earlier driver left is ended first: its name is made from the study's folder.
    """
    name = f"veritune-live-{sha256_text(str(study))[:12]}"
    local = plan.options.get("cluster") == "local"
    if not local:
        _call("scancel", f"--name={name}")
    job = executor_of(plan, study, name).submit(LiveTask(), str(study))
    key = str(job.job_id)
    gone: float | None = None
    try:
        while True:
            time.sleep(POLL_S)
            hooks.tick()
            if job.done() if local else result_of(study, key) is not None:
                break
            alive = {} if local else queue([name])
            if not local and alive is not None and key not in alive[name]:
                gone = gone or time.monotonic()
                if time.monotonic() - gone > GRACE_S:
                    break
    except BaseException:
        job.cancel(check=False)
        raise
    outcome = result_of(study, key)
    if isinstance(outcome, CellOutcome) and outcome.error is None:
        return
    if isinstance(outcome, CellOutcome):
        raise MachineError(
            f"the live steps failed on {outcome.host}: {outcome.error}",
            fix="Correct that error on the node and run again; nothing has trained.",
        )
    words = outcome or last_words(study, key) or f"it left no result ({state_of(key)})"
    raise MachineError(
        f"the live steps failed in Slurm job {key}: {words}",
        fix="Read the job's error file, and run again; nothing has trained.",
    )


def _run_local(plan: ExecutorPlan, study: Path, run_ids: list[str], hooks: Hooks) -> Iterator[Ended]:
    """submitit's local jobs: processes of this machine, through the same pickled call. They end with this process."""
    executor = executor_of(plan, study, "veritune")
    jobs = dict(zip(run_ids, executor.map_array(CellTask(), [str(study)] * len(run_ids), run_ids)))
    try:
        while jobs:
            time.sleep(POLL_S)
            hooks.tick()
            for run_id in [r for r, job in jobs.items() if job.done()]:
                key = str(jobs.pop(run_id).job_id)
                outcome = result_of(study, key)
                if isinstance(outcome, CellOutcome):
                    yield Ended(run_id, outcome.error, 1, outcome.host, outcome.in_use)
                else:
                    yield Ended(run_id, outcome or last_words(study, key) or "it left no result", 1)
    finally:
        for job in jobs.values():
            job.cancel(check=False)
        if jobs:
            hooks.stopped(f"{len(jobs)} jobs on this machine were stopped; their checkpoints are kept.")


# ---------------------------------------------------------------- Slurm's own commands


def _call(*command: str) -> str | None:
    """Standard output of one of Slurm's commands; None where it failed or took longer than a minute."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def queue(names: Sequence[str]) -> dict[str, dict[str, _Task]] | None:
    """Tasks of these jobs that are queued or running, by the job's name and the task's key (`12_3`); None if `squeue`
    does not answer.
    """
    if not names:
        return {}
    listed = _call("squeue", "--noheader", "--array", "--format=%j|%i|%T|%N", f"--name={','.join(names)}")
    if listed is None:
        return None
    alive: dict[str, dict[str, _Task]] = {name: {} for name in names}
    for line in listed.splitlines():
        name, key, state, node = line.split("|", 3)
        alive.setdefault(name, {})[key] = _Task(state, node)
    return alive


def _age_s(job: ClusterJob) -> float:
    """Seconds since a job was recorded."""
    return (datetime.now(UTC) - datetime.fromisoformat(job.submitted)).total_seconds()


def _index(key: str) -> int:
    """The task's number in its array; 0 for a job of one task."""
    tail = key.rpartition("_")[2]
    return int(tail) if "_" in key and tail.isdigit() else 0


def state_of(key: str) -> str:
    """The job's last state in lower case, which `scontrol` knows for some minutes; `not known to Slurm` otherwise."""
    shown = _call("scontrol", "show", "job", key) or ""
    state = re.search(r"JobState=(\w+)", shown)
    exit_code = re.search(r"ExitCode=(\d+:\d+)", shown)
    if state is None:
        return "no longer known to Slurm"
    return state.group(1).lower() + (f", exit code {exit_code.group(1)}" if exit_code else "")


def longest_array() -> int:
    """The most tasks that one array may have here: its highest index is one less than `MaxArraySize`."""
    shown = _call("scontrol", "show", "config") or ""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return max(int(found.group(1)) if found else MOST, 1)

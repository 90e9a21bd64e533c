"""Cells on a Ray cluster: actors that stay, each running one cell after the other.

Actors are detached and named, so that they outlive a driver that is killed; the file of jobs says what each works on,
and the next command asks the same actor for the outcome. A lost worker's cell is given to another one and goes on from
its last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.counting import many
from veritune.errors import MachineError, first_line
from veritune.machine import Terminated, code_hashes
from veritune.pipeline.executors.jobs import Jobs
from veritune.pipeline.executors.plan import POLL_S, Ended, ExecutorPlan, Hooks
from veritune.pipeline.executors.worker import CellOutcome, RayWorker, look

if TYPE_CHECKING:
    from types import FrameType, ModuleType

    from ray import ObjectRef
    from ray.actor import ActorClass

NAMESPACE = "veritune"
LOOK_S = 30.0
"""How long a node may take to say what it sees: a worker of Ray starts in 5 s on two cores, imports take 4 s."""
HANDED_ON = (
    *("HF_HUB_OFFLINE", "HF_HOME", "VERITUNE_CACHE", "PYTHONPATH", "TOKENIZERS_PARALLELISM"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"),
)
"""The environment variables that workers on other machines are given; a study's reporters add their own."""


@dataclass
class _Slot:
    """One actor. `host` is None until it lives; `run_id` is what it works on; `tries` counts that cell's workers."""

    name: str
    actor: Any
    host: str | None = None
    pid: int | None = None
    run_id: str | None = None
    tries: int = 0

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid else f"a worker on {self.host or 'a node'}"


def run(plan: ExecutorPlan, study: Path, run_ids: list[str], hooks: Hooks) -> Generator[Ended]:
    """Run cells on as many actors as fit on the cluster, or on `plan.workers` of them."""
    ray = connect(plan)
    yield from _Pool(ray, plan, study, run_ids, hooks).run()


def release(plan: ExecutorPlan, study: Path) -> None:
    """Stop the workers that an earlier driver left, once no cell is left for them."""
    jobs = Jobs(study, "ray")
    if not jobs.known:
        return
    ray = connect(plan)
    for name in list(jobs.known):
        with contextlib.suppress(ValueError):  # it has ended by itself
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
        jobs.drop(name)


class _Pool:
    """The actors of one study, and the cells that wait for one."""

    def __init__(self, ray: ModuleType, plan: ExecutorPlan, study: Path, run_ids: list[str], hooks: Hooks) -> None:
        self.ray, self.plan, self.study, self.hooks = ray, plan, study, hooks
        self.jobs = Jobs(study, "ray", plan.address)
        self.queued = [(run_id, 1) for run_id in run_ids]
        self.pending: dict[Any, _Slot] = {}
        self.tries: dict[str, int] = {}

    def run(self) -> Iterator[Ended]:
        """Run every cell, and yield each as it ends."""
        with signals_held() as heed:
            self._attach()
            try:
                while self.queued or any(slot.run_id for slot in self.pending.values()):
                    heed()
                    self._grow()
                    ready, _ = self.ray.wait(list(self.pending), num_returns=1, timeout=POLL_S)
                    self.hooks.tick()
                    for reference in ready:
                        yield from self._settle(reference, self.pending.pop(reference))
            except BaseException:
                self._let_go()
                raise
            self._end_all()
            heed()

    def _attach(self) -> None:
        """Take over the actors that an earlier driver left, with what they work on."""
        for job in list(self.jobs.known.values()):
            try:
                actor = self.ray.get_actor(job.name, namespace=NAMESPACE)
            except ValueError:
                self.jobs.drop(job.name)
                continue
            wanted = [run_id for run_id, _ in self.queued if run_id in job.run_ids]
            slot = _Slot(job.name, actor, job.host)
            if not wanted:
                self._end(slot)
                continue
            self.queued = [(run_id, tries) for run_id, tries in self.queued if run_id != wanted[0]]
            slot.run_id, slot.tries = wanted[0], 1
            self.hooks.say(f"attached {wanted[0]}: it is running on {job.host or 'Ray'}")
            self.pending[actor.run.remote(str(self.study), wanted[0])] = slot

    def _grow(self) -> None:
        """Start actors up to what the cluster holds, and no more than there are cells for."""
        room = self.plan.workers or capacity(self.ray, self.plan)
        while len(self.pending) < min(room, len(self.pending) + len(self.queued)) and not self._starting_enough():
            job = self.jobs.new()
            actor = (
                actor_class(self.ray, self.plan)
                .options(name=job.name, namespace=NAMESPACE, lifetime="detached")
                .remote()
            )
            self.pending[actor.where.remote()] = _Slot(job.name, actor)

    def _starting_enough(self) -> bool:
        return sum(slot.run_id is None for slot in self.pending.values()) >= len(self.queued)

    def _settle(self, reference: ObjectRef, slot: _Slot) -> Iterator[Ended]:
        """What one answer of an actor comes to: it lives, a cell ended, or the worker is lost."""
        errors = self.ray.exceptions
        try:
            answer = self.ray.get(reference)
        except errors.ActorUnavailableError:  # the network, for a moment: ask again
            self.pending[self._ask(slot)] = slot
            return
        except errors.RayTaskError as exc:  # raised in the worker before a cell could begin: imports, for example
            self._end(slot)
            words = f"{type(exc.cause or exc).__name__}: {first_line(exc.cause or exc)}"
            if slot.run_id is None and self.queued:
                slot.run_id, slot.tries = self.queued.pop(0)
            if slot.run_id is not None:
                yield Ended(slot.run_id, words, slot.tries, slot.host)
            return
        except errors.RayError as exc:
            yield from self._lost(slot, exc)
            return
        if isinstance(answer, CellOutcome):
            assert slot.run_id is not None
            yield Ended(slot.run_id, answer.error, slot.tries, answer.host, answer.in_use)
            slot.run_id = None
            if answer.error is not None and not answer.in_use:
                self._end(slot)  # what an error left in its memory must not meet the next cell
                return
        else:
            slot.host, slot.pid = answer
        self._next(slot)

    def _next(self, slot: _Slot) -> None:
        if not self.queued:
            self._end(slot)
            return
        slot.run_id, slot.tries = self.queued.pop(0)
        self.jobs.assign(slot.name, (slot.run_id,), slot.host)
        self.pending[self._ask(slot)] = slot

    def _ask(self, slot: _Slot) -> ObjectRef:
        if slot.run_id is None:
            return slot.actor.where.remote()
        return slot.actor.run.remote(str(self.study), slot.run_id)

    def _lost(self, slot: _Slot, exc: Exception) -> Iterator[Ended]:
        self.jobs.drop(slot.name)
        why = _why_lost(exc)
        run_id, tries = slot.run_id, slot.tries
        if run_id is None:
            self.hooks.say(f"lost     {slot}: {why}")
            if slot.host is None and self.queued:
                run_id, tries = self.queued.pop(0)  # an actor that never lived counts as a try, or it would go on
            else:
                return
        else:
            self.hooks.say(f"lost     {slot}, with {run_id}: {why}")
        if tries > self.plan.retries:
            words = f"its worker was lost {tries} times, the last was {slot}: {why}"
            yield Ended(run_id, words, tries, slot.host)
        else:
            self.queued.insert(0, (run_id, tries + 1))

    def _end(self, slot: _Slot) -> None:
        self.ray.kill(slot.actor)
        self.jobs.drop(slot.name)

    def _end_all(self) -> None:
        for slot in self.pending.values():
            self._end(slot)

    def _let_go(self) -> None:
        """This driver stops: leave the cells that run, or end them, and say which."""
        running = [slot for slot in self.pending.values() if slot.run_id]
        if self.plan.detach:
            for slot in [s for s in self.pending.values() if not s.run_id]:
                self._end(slot)
            self.hooks.stopped(
                f"{many(len(running), 'cells')} continue on Ray ({_hosts(running)}); {len(self.queued)} are queued. "
                "Run the "
                "same command to attach to them."
            )
            return
        self._end_all()
        self.hooks.stopped(f"{many(len(running), 'cells')} on Ray were stopped; their checkpoints are kept.")


def _hosts(slots: list[_Slot]) -> str:
    return ", ".join(sorted({slot.host or "a node" for slot in slots}))


def _why_lost(exc: Exception) -> str:
    """Ray's reason, from a text of many lines: an error at its start, or why it is dead; and the node's address."""
    lines = [line.strip() for line in str(exc).splitlines()] or [type(exc).__name__]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)]
    reason = raised[-1] if raised else next((line for line in lines if "because" in line), lines[0])
    address = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("ip:")), None)
    return f"{reason[:160]}" + (f" (node {address})" if address else "")


def actor_class(ray: ModuleType, plan: ExecutorPlan) -> ActorClass:
    """`RayWorker` with the resources of one cell. Ray itself retries nothing, so that lost workers are counted here."""
    memory = {"memory": plan.memory_bytes} if plan.memory_bytes else {}
    return ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_restarts=0, max_task_retries=0, **memory)(RayWorker)


def capacity(ray: ModuleType, plan: ExecutorPlan) -> int:
    """How many cells the running nodes can hold at once; at least 1."""
    needs = _needs(plan)
    total = 0
    for node in _living(ray):
        total += int(min(node.get(name, 0.0) // need for name, need in needs.items() if need))
    return max(total, 1)


def _needs(plan: ExecutorPlan) -> dict[str, float]:
    """What one cell takes of a node, by Ray's names of resources."""
    return {"CPU": float(plan.cpus), "GPU": float(plan.gpus), "memory": float(plan.memory_bytes or 0)}


def _living(ray: ModuleType) -> list[dict[str, float]]:
    """The resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def live_steps(plan: ExecutorPlan, study: Path, hooks: Hooks) -> None:
    """Measure a plan's live steps in an actor with a cell's resources. Raises MachineError with its error and host."""
    ray = connect(plan)
    actor = actor_class(ray, plan).remote()
    try:
        reference = actor.live.remote(str(study))
        ready: list[Any] = []
        with signals_held() as heed:
            while not ready:
                heed()
                ready, _ = ray.wait([reference], timeout=POLL_S)
                hooks.tick()
            outcome = ray.get(reference)
    except ray.exceptions.RayError as exc:
        why = first_line(exc.cause) if isinstance(exc, ray.exceptions.RayTaskError) and exc.cause else _why_lost(exc)
        raise MachineError(
            f"the live steps failed on Ray: {why}", fix="Correct that error and run again; nothing has trained."
        ) from exc
    finally:
        ray.kill(actor)
    if outcome.error is not None:
        raise MachineError(
            f"the live steps failed on {outcome.host}: {outcome.error}",
            fix="Correct that error on the node and run again; nothing has trained.",
        )


# ---------------------------------------------------------------- the cluster


@contextlib.contextmanager
def signals_held() -> Iterator[Callable[[], None]]:
    """Delay SIGTERM and SIGINT to points where the caller handles them: an exception raised by a handler inside Ray
    comes out as `SystemError`. A second signal takes effect at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def act(number: int) -> None:
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, None)
        elif handler == signal.SIG_DFL:
            raise Terminated

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            act(number)

    def heed() -> None:
        if came:
            act(came[0])

    for number in before:
        signal.signal(number, note)
    try:
        yield heed
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is note:  # a handler may have taken itself away
                signal.signal(number, handler)


def connect(plan: ExecutorPlan) -> ModuleType:
    """A connection to Ray. Raises MachineError without ray, without a cluster, or if no node can ever hold a cell.

    Ray itself would wait without end for resources that no node has.
    """
    try:
        import ray
    except ImportError as exc:
        raise MachineError(
            "--executor ray needs the package ray, which is not installed.", fix="pip install 'veritune[ray]'"
        ) from exc
    if not ray.is_initialized():
        _check_address(plan.address)
        names = (*HANDED_ON, *plan.handed_on)
        environment = {name: os.environ[name] for name in names if name in os.environ}
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=plan.address or "auto",
                namespace=NAMESPACE,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except (ConnectionError, RuntimeError, ValueError) as exc:
            raise _no_cluster(plan.address, _why_lost(exc)) from exc
        if on_term is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_term)  # Ray puts one there that aborts the process in C++
    needs, nodes = _needs(plan), _living(ray)
    if not any(all(node.get(name, 0.0) >= need for name, need in needs.items()) for node in nodes):
        has = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in needs}
        raise MachineError(
            f"no node of the Ray cluster can hold a cell: it needs {_amounts(needs)}, but the most on any node is "
            f"{_amounts(has)}.",
            fix="Ask for less (--cpus, --gpus), or add a node.",
        )
    module: ModuleType = ray
    return module


def _amounts(resources: dict[str, float]) -> str:
    parts = [f"{resources['CPU']:g} CPU", f"{resources['GPU']:g} GPU", f"{resources['memory'] / 1e9:.1f} GB of memory"]
    return ", ".join(parts)


def check_nodes(plan: ExecutorPlan, study: Path, model: str | None) -> None:
    """Check on every node that it sees the study and the model and has the same code.

    Raises MachineError naming each node that cannot run a cell, or does not answer within LOOK_S.
    """
    ray = connect(plan)
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    nodes = {n["NodeID"]: n["NodeManagerHostname"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")}
    task, code = ray.remote(num_cpus=0, max_retries=0)(look), code_hashes()["package"]
    asked = {
        task.options(scheduling_strategy=On(node, soft=False)).remote(str(study), model, code): host
        for node, host in nodes.items()
    }
    ready: list[Any] = []
    late, until = list(asked), time.monotonic() + LOOK_S
    with signals_held() as heed:
        while late and time.monotonic() < until:
            heed()
            ready, late = ray.wait(list(asked), num_returns=len(asked), timeout=POLL_S)
    problems = [f"{asked[ref]} did not answer within {LOOK_S:.0f} s" for ref in late]
    for reference in ready:
        try:
            view = ray.get(reference)
        except ray.exceptions.RayError as exc:
            cause = exc.cause if isinstance(exc, ray.exceptions.RayTaskError) and exc.cause else exc
            problems.append(f"{asked[reference]}: {type(cause).__name__}: {first_line(cause)}")
            continue
        problems += [f"{view.host} {problem}" for problem in view.problems]
    for reference in late:
        ray.cancel(reference, force=True)
    if problems:
        raise MachineError(
            f"{many(len(problems), 'problems')} on the Ray nodes: {'; '.join(problems[:4])}.",
            fix="Give every node the study's folder and the model under the same path, and the same version of "
            "the package.",
        )


def _no_cluster(address: str | None, why: str) -> MachineError:
    fix = (
        "Start a cluster with `ray start --head`, or name one: --address HOST:6379. A cluster with tokens needs "
        "RAY_AUTH_MODE=token."
    )
    return MachineError(f"no Ray cluster at {address or 'auto'}: {why}", fix=fix)


def _check_address(address: str | None) -> None:
    """Raises MachineError when nothing listens there, or no node of that cluster runs here.

    Ray itself would end the whole process: in C++ in the second case.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if address is None or not port.isdigit():
        return
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), timeout=10).close()
    except OSError as exc:
        raise _no_cluster(address, str(exc)) from exc
    if not address.startswith("ray://") and not _has_raylet():
        raise MachineError(
            f"no node of the Ray cluster at {address} runs on this machine, but this kind of address needs one.",
            fix=f"Start the command on a node, or reach it from outside: --address ray://{host or 'HOST'}:10001",
        )


def _has_raylet() -> bool:
    """Whether a node of some Ray cluster runs here. One in a container of its own is not seen."""
    import psutil

    return any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))

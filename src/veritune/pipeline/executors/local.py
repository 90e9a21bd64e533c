"""Cells side by side on this machine, a process each."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from veritune.counting import many
from veritune.errors import ExitCode
from veritune.machine import PARENT, usable_cores
from veritune.pipeline.executors.plan import POLL_S, Ended, ExecutorPlan, Hooks
from veritune.pipeline.tries import here


@dataclass
class _Child:
    run_id: str
    process: subprocess.Popen[bytes]
    words: Path
    device: str | None
    tries: int


def how_many_fit(cell_bytes: int, *, cores: int | None = None, free_bytes: int | None = None) -> int:
    """How many cells fit on this machine at once: by free memory, of which a tenth stays free, and by cores. At least
    1.
    """
    import psutil

    free = psutil.virtual_memory().available if free_bytes is None else free_bytes
    by_memory = int(free * 0.9) // max(cell_bytes, 1)
    return max(1, min(by_memory, usable_cores() if cores is None else cores))


def run(plan: ExecutorPlan, study: Path, run_ids: list[str], hooks: Hooks) -> Generator[Ended]:
    """Run each cell in its own process, at most `workers` at once. A killed cell is started again; an error of its own
    is final.
    """
    workers = plan.workers or how_many_fit(plan.memory_bytes or 1)
    threads = max(usable_cores() // workers, 1)
    devices: list[str | None] = [*visible_accelerators()] or [None] * workers
    queued = [(run_id, 1) for run_id in run_ids]
    running: list[_Child] = []
    try:
        while queued or running:
            while queued and len(running) < min(workers, len(devices)):
                run_id, tries = queued.pop(0)
                free = next(d for d in devices if d is None or d not in {c.device for c in running})
                running.append(_start(study, run_id, tries, threads, free))
            time.sleep(POLL_S / 5)
            hooks.tick()
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                again, ended = _verdict(child, plan.retries)
                child.words.unlink(missing_ok=True)
                if again:
                    hooks.say(f"lost     process {child.process.pid} on {here()}, with {child.run_id}: {ended.error}")
                    queued.insert(0, (child.run_id, child.tries + 1))
                else:
                    yield ended
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()
            child.words.unlink(missing_ok=True)
        if running:
            hooks.stopped(f"{many(len(running), 'cells')} on this machine were stopped; their checkpoints are kept.")


def _start(study: Path, run_id: str, tries: int, threads: int, device: str | None) -> _Child:
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ, PARENT: str(os.getpid())}
    if device is not None:
        environment["CUDA_VISIBLE_DEVICES"] = device
    handle, words = tempfile.mkstemp(prefix="veritune-cell-", suffix=".err")
    with os.fdopen(handle, "wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "veritune", "work", str(study), run_id, "--quiet"],
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
        return False, Ended(child.run_id, None, child.tries, here())
    lines = child.words.read_text("utf-8", "replace").strip().splitlines()
    words = lines[-1].removeprefix("veritune: ") if lines else f"ended with status {status}"
    if status < 0:
        words = f"its process was killed by signal {-status}"
    ended = Ended(child.run_id, words, child.tries, here(), in_use=status == ExitCode.IN_USE)
    return status < 0 and child.tries <= retries, ended


def visible_accelerators() -> list[str]:
    """The accelerators that this process sees, each as CUDA_VISIBLE_DEVICES names it.

    Where only some of a machine's are visible, the others belong to somebody else.
    """
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if named else [str(i) for i in range(count)]

"""Where cells run: in this process, side by side on this machine, on a Ray cluster, or as jobs of Slurm.

    plan.py     what a user asks for, how a cell ended, what a caller is told meanwhile
    worker.py   one cell inside a worker's process, and the checks and live steps that have to be made where cells run
    jobs.py     what is submitted and not ended, on disk, so that the next command attaches to it
    checks.py   what can be refused before a model is loaded
    local.py on_ray.py on_slurm.py

Whatever runs them, a cell is the same command (`veritune work STUDY RUN_ID`), its records are the same files in the
study's folder, and progress is read from those. All machines must see that folder under the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from veritune.pipeline.executors import local, on_ray, on_slurm
from veritune.pipeline.executors.checks import check_plan
from veritune.pipeline.executors.local import how_many_fit
from veritune.pipeline.executors.plan import Ended, ExecutorPlan, Hooks, options_from, plan_from

__all__ = [
    "Ended",
    "ExecutorPlan",
    "Hooks",
    "check_plan",
    "how_many_fit",
    "live_steps",
    "options_from",
    "plan_from",
    "release",
    "run_cells",
]


def run_cells(plan: ExecutorPlan, study: Path, run_ids: Sequence[str], hooks: Hooks) -> list[Ended]:
    """Run these cells and wait for all; a failed one does not stop the others. `hooks.ended` is called once for each
    cell that ends.

    Where this process is stopped meanwhile, cells on a cluster are ended, or left running where the plan says so;
    `hooks.stopped` hears which. Raises MachineError when the executor cannot run a cell at all.
    """
    execute = {"local": local.run, "ray": on_ray.run, "slurm": on_slurm.run}[plan.kind]
    ended = []
    with closing(execute(plan, study.resolve(), list(run_ids), hooks)) as results:
        for one in results:
            hooks.ended(one)
            ended.append(one)
    return ended


def release(plan: ExecutorPlan, study: Path) -> None:
    """Stop workers that an earlier driver left running, once every cell is done."""
    if plan.kind == "ray":
        on_ray.release(plan, study.resolve())


def live_steps(plan: ExecutorPlan, study: Path, hooks: Hooks) -> None:
    """Let a worker measure the live steps that the plan needs, and wait for it; with `local` or no executor, measure
    here.

    Raises MachineError with the worker's own error and host.
    """
    if plan.kind == "ray":
        on_ray.live_steps(plan, study.resolve(), hooks)
    elif plan.kind == "slurm":
        on_slurm.live_steps(plan, study.resolve(), hooks)

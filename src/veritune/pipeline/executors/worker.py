"""What runs on a worker: one cell, the live steps of a plan, and a look at what the node sees."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.errors import LockedError
from veritune.machine import code_hashes
from veritune.pipeline.cell import error_text
from veritune.pipeline.plan import measure_live
from veritune.pipeline.tries import here
from veritune.pipeline.work import Worker, pull
from veritune.progress import Progress

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

IDLE_S = 600.0
"""Seconds that a Ray worker waits to be asked again. A driver that lives asks at once; one that was killed is given
again by hand, and its cells' results lie on disk."""


@dataclass(frozen=True)
class CellOutcome:
    """How a cell ended on a worker: done, or its error as text. The error is the cell's own, not the worker's."""

    error: str | None
    host: str
    pid: int
    in_use: bool = False


@dataclass(frozen=True)
class NodeView:
    """What a node found: `problems` are sentences; empty if a cell can run there."""

    host: str
    problems: tuple[str, ...]


def cell_in_worker(study: str, run_id: str) -> CellOutcome:
    """Run one cell inside a worker's process."""
    return _told(lambda: Worker.at(Path(study)).run(run_id))


def live_in_worker(study: str) -> CellOutcome:
    """Measure a study's live steps and answer probe on this worker and save them in the study's `audit/`."""
    return _told(lambda: measure_live(Path(study), Progress(silent=True)))


def _told(work: Callable[[], object]) -> CellOutcome:
    try:
        work()
    except LockedError as exc:
        return CellOutcome(str(exc), here(), os.getpid(), in_use=True)
    except Exception as exc:  # whatever a cell raises is the cell's error: it comes back with its text and host
        return CellOutcome(error_text(exc), here(), os.getpid())
    return CellOutcome(None, here(), os.getpid())


def look(study: str, model: str | None, code: str) -> NodeView:
    """Whether this node sees the study's and the model's folder, and has the same code as the driver."""
    problems = []
    if not (Path(study) / "study.yaml").exists():
        problems.append(f"does not see {study}")
    if model is not None and not Path(model).exists():
        problems.append(f"does not see the model's folder {model}")
    if code_hashes()["package"] != code:
        problems.append("has another version of Veritune")
    return NodeView(here(), tuple(problems))


class CellTask:
    """`cell_in_worker` as a task that submitit can queue again after a preemption or a time limit."""

    def __call__(self, study: str, run_id: str) -> CellOutcome:
        """Run the cell, or what is left of it."""
        return cell_in_worker(study, run_id)

    def checkpoint(self, study: str, run_id: str) -> DelayedSubmission:
        """The task to queue when the job must end: the same call, because a cell resumes from its last checkpoint."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, study, run_id)


class LiveTask:
    """`live_in_worker` as a task; each condition's live steps are saved as they end, so that a time limit loses
    little."""

    def __call__(self, study: str) -> CellOutcome:
        """Measure what is not measured yet."""
        return live_in_worker(study)

    def checkpoint(self, study: str) -> DelayedSubmission:
        """The same call."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, study)


class PullTask:
    """A task that runs cells of a list one after the other, each under its lease; `checkpoint` as in CellTask."""

    def __call__(self, study: str, run_ids: tuple[str, ...]) -> dict[str, CellOutcome]:
        """Run what nobody has; by run id how those ended that were run here."""
        ended: dict[str, CellOutcome] = {}
        worker = Worker.at(Path(study))
        cannot = _told(worker.prepare)
        if cannot.error is not None:
            return dict.fromkeys(run_ids, cannot)
        for run_id in pull(worker, run_ids):
            ended[run_id] = cell_in_worker(study, run_id)
        return ended

    def checkpoint(self, study: str, run_ids: tuple[str, ...]) -> DelayedSubmission:
        """The same call."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, study, run_ids)


class RayWorker:
    """A Ray actor that runs one cell at a time and keeps torch and the base model loaded in between."""

    def __init__(self) -> None:
        self.ended: dict[str, CellOutcome] = {}
        self.idle: threading.Timer | None = None

    def where(self) -> tuple[str, int]:
        """Host and process id."""
        self._end_when_idle()
        return here(), os.getpid()

    def _end_when_idle(self) -> None:
        """End this process unless it is asked for more soon: its driver may be gone, and it holds a node's cores."""
        self._busy()
        self.idle = threading.Timer(IDLE_S, os._exit, [0])
        self.idle.daemon = True
        self.idle.start()

    def _busy(self) -> None:
        if self.idle is not None:
            self.idle.cancel()

    def run(self, study: str, run_id: str) -> CellOutcome:
        """Run the cell, or return how it ended here: a driver that attaches may ask for a cell that an earlier one
        started.
        """
        self._busy()
        if run_id not in self.ended:
            self.ended[run_id] = cell_in_worker(study, run_id)
        self._end_when_idle()
        return self.ended[run_id]

    def live(self, study: str) -> CellOutcome:
        """See `live_in_worker`."""
        return live_in_worker(study)

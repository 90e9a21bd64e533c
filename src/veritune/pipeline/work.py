"""`veritune work STUDY`: one process takes cells one after the other, each under its lease, and keeps what it loaded.

Imports, the study's data, its hashes and the base model are paid once a process instead of once a cell. Any number of
such processes may run at once, on any machines that see the folder: a cell that somebody holds is left to them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from veritune.counting import many
from veritune.errors import InputError, LockedError
from veritune.files import Stamps, stamps
from veritune.pipeline.cell import cells_of, error_text, is_done, ready_from_contract, run_cell
from veritune.pipeline.cell_index import MADE_FROM
from veritune.pipeline.ready import Ready
from veritune.pipeline.tries import here
from veritune.progress import Progress
from veritune.records import RunSummary
from veritune.store import Store
from veritune.train.models import keep_base, model_files
from veritune.train.schedule import Cell


class Worker:
    """A frozen study, prepared once and reused until one of its files changes."""

    _kept: ClassVar[dict[Path, Worker]] = {}

    def __init__(self, study: Path, progress: Progress | None = None) -> None:
        self.study = study
        self.progress = progress or Progress(silent=True)
        self.ready: Ready | None = None
        self.cells: dict[str, Cell] = {}
        self.stamp: Stamps = ()

    @classmethod
    def at(cls, study: Path) -> Worker:
        """The worker of this study in this process."""
        path = study.resolve()
        if path not in cls._kept:
            cls._kept.clear()  # one study at a time: the other's model would stay in memory
            cls._kept[path] = cls(path)
        return cls._kept[path]

    def prepare(self) -> Ready:
        """The study, read and checked the first time and whenever one of its files has changed.

        Raises as `cell.ready_from_contract` does.
        """
        if self.ready is None or self._stamp(self.ready) != self.stamp:
            self.ready = None
            ready = ready_from_contract(self.study, self.progress)
            self.cells = {cell.run_id: cell for cell in cells_of(ready)}
            self.ready, self.stamp = ready, self._stamp(ready)
            keep_base(ready.model.path)
        return self.ready

    def run(self, run_id: str) -> RunSummary | None:
        """Run one cell, or resume it. Raises InputError for an unknown run id, and as `run_cell` does."""
        ready = self.prepare()
        if run_id not in self.cells:
            raise InputError(
                f"unknown cell {run_id!r} in {ready.store.root}.", fix="List the cells: veritune status STUDY --cells"
            )
        return run_cell(ready, self.cells[run_id])

    def is_done(self, run_id: str) -> bool:
        """Whether a cell's summary exists and was made from the present study; summaries from before an amendment do
        not count.
        """
        return is_done(self.prepare(), self.cells[run_id])

    def _stamp(self, ready: Ready) -> Stamps:
        """Size and time of every file that `ready` was made from and that its hashes were taken of."""
        root = ready.store.root
        data = ready.store.data(ready.facts.data_version).glob("*")
        return stamps([*(root / name for name in MADE_FROM), *model_files(ready.model.path), *data])


def pull(worker: Worker, run_ids: Sequence[str]) -> Iterator[str]:
    """Cells of the list that are not done and that no process holds, each once, until there are none.

    Every process begins at another place, so that two rarely reach for one cell.
    """
    store = worker.prepare().store
    start = zlib.crc32(f"{here()} {os.getpid()}".encode()) % max(len(run_ids), 1)
    left = [*run_ids[start:], *run_ids[:start]]
    while left:
        taken, busy = False, []
        for run_id in left:
            if worker.is_done(run_id):
                continue
            if store.holder(run_id) is not None:
                busy.append(run_id)
                continue
            taken = True
            yield run_id
        if not taken:
            return
        left = busy  # their holders may have been killed meanwhile


@dataclass(frozen=True, slots=True)
class Worked:
    """The result of one `work` command: run ids it finished, failed cells with their errors, and cells held by
    others."""

    done: tuple[str, ...]
    failed: dict[str, str]
    in_use: dict[str, str]
    left: int
    host: str


def work_command(study_path: str | Path, progress: Progress, most: int | None = None) -> Worked:
    """Run cells that no other process holds, at most `most`, until none is left. A failed cell does not stop the
    others.

    Raises as `cell.ready_from_contract` does when the study itself cannot be worked on.
    """
    worker = Worker(Store.of(study_path).root.resolve(), progress)
    store = worker.prepare().store
    done: list[str] = []
    failed: dict[str, str] = {}
    in_use: dict[str, str] = {}
    for run_id in pull(worker, list(worker.cells)):
        if most is not None and len(done) + len(failed) >= most:
            break
        try:
            worker.run(run_id)
        except LockedError as exc:
            in_use[run_id] = exc.message
            continue
        except Exception as exc:  # a cell's own error, of any library: the other cells go on
            failed[run_id] = error_text(exc)
            progress.say(f"{run_id:<44} FAILED: {failed[run_id]}")
            continue
        done.append(run_id)
        progress.say(f"{run_id:<44} done")
    open_ = [run_id for run_id in worker.cells if not worker.is_done(run_id)]
    in_use = {run_id: store.holder(run_id) or in_use.get(run_id, "") for run_id in open_ if run_id not in failed}
    in_use = {run_id: holder for run_id, holder in in_use.items() if holder}
    return Worked(tuple(done), failed, in_use, len(open_), here())


def worked_text(worked: Worked) -> str:
    """The result of `work_command` as text for the screen."""
    lines = [f"{many(len(worked.done), 'cells')} run on {worked.host}, {worked.left} are left"]
    lines += [f"  {run_id} failed: {error}" for run_id, error in worked.failed.items()]
    lines += [f"  {run_id} is in use: {holder}" for run_id, holder in worked.in_use.items()]
    return "\n".join(lines)

"""How a study's cells stand, read from the records alone: no model is loaded and nothing is written in the study.

A cell is `waiting`, `running` (a living process holds it), `stalled` (held, and silent for much longer than its own
steps take), `stopped` (begun, and nobody holds it), `failed` (with the error on record) or `done`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from veritune import contract
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.errors import InputError, StudyError
from veritune.pipeline.cell_index import CellIndex
from veritune.pipeline.tries import lost_tries, name_try, read_tries
from veritune.progress import Progress, clock
from veritune.records import (
    FailedRun,
    JsonLike,
    MetricRow,
    RunManifest,
    RunSummary,
)
from veritune.records.base import parse
from veritune.store import Store, whole_lines
from veritune.train.schedule import plan_cells, summary_hasher
from veritune.train.select import chosen

if TYPE_CHECKING:
    from veritune.train.schedule import Cell

FAILED = "failed.json"
STALLED_STEPS = 20
"""A held cell that has written nothing for this many of its own steps' time is called stalled ..."""
STALLED_LEAST_S = 120.0
"""... but never before so many seconds: the first step compiles, checkpoints are written, validation runs."""
TAIL = 65_536  # bytes read from the end of a metrics file: some hundred lines


def study_at(path: str | Path, flags: Mapping[str, JsonLike] | None = None) -> tuple[Store, Study]:
    """The study in a folder or file. Raises StudyError if the file has another name than study.yaml, or is invalid.

    `flags` override the file's settings; None takes those that the contract holds.
    """
    file = Path(path)
    file = file / "study.yaml" if file.is_dir() else file
    study = load_study(file, flags)
    if file.name != "study.yaml":
        raise StudyError(f"{file}: a study's file must be named study.yaml, in a folder of its own.", fix="Rename it.")
    return Store(file.parent), study


@dataclass(frozen=True, slots=True)
class CellState:
    """The state of a run. `steps` is the planned number, `step` the last one logged, `loss` its loss (nats per target
    token); `step_s` the seconds per step; `left_s` and `age_s` the seconds left in training and since the last write.
    `expires` is when a server deletes weights that only it has (ISO 8601). `host` is where work was last done; `lost`
    names processes that started the run and ended without a record.
    """

    state: str
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    left_s: float | None = None
    age_s: float | None = None
    holder: str | None = None
    error: str | None = None
    step_s: float | None = None
    host: str | None = None
    lost: tuple[str, ...] = ()
    expires: str | None = None


@dataclass(frozen=True, slots=True)
class ListedCell(CellState):
    """A planned cell and the state of its run."""

    run_id: str = ""
    phase: str = ""
    condition: str = ""
    seed: int = 0
    lr: float = 0.0

    @classmethod
    def of(cls, cell: Cell, state: CellState) -> ListedCell:
        """The cell with its state."""
        return cls(
            **{f.name: getattr(state, f.name) for f in fields(CellState)},
            run_id=cell.run_id,
            phase=cell.phase,
            condition=cell.condition,
            seed=cell.seed,
            lr=cell.lr,
        )


def list_cells(study_path: str | Path) -> list[ListedCell]:
    """Every cell of a frozen study with its state and its last records.

    Raises InputError when the study is not frozen.
    """
    store = Store.of(study_path)
    index = CellIndex(store.root)
    named = Path(study_path).is_dir() or Path(study_path).name == "study.yaml"
    if not (index.planned and named):
        store, study = study_at(study_path)
        if not store.contract_file.exists():
            raise InputError(f"{store.root} is not frozen.", fix="Freeze it first: veritune freeze STUDY")
        facts = contract.read(store).facts
        made_from = summary_hasher(study, facts)
        cells = plan_cells(study, facts, chosen(store, study, facts))
        index.plan([(cell, made_from(cell)) for cell in cells])
    listed = [ListedCell.of(cell, _indexed_state(store, index, cell.run_id, made)) for cell, made in index.planned]
    index.save()
    return listed


def _indexed_state(store: Store, index: CellIndex, run_id: str, expected: str) -> CellState:
    """`cell_state`, of a finished cell from the index where its summary is as it was."""
    done = index.finished(run_id, expected)
    if done is not None:
        steps, loss, host = done
        return CellState("done", steps, steps, loss, host=host)
    state = cell_state(store, run_id, expected)
    if state.state == "done" and not state.lost and state.expires is None:
        index.add(run_id, expected, (state.steps, state.loss, state.host))
    return state


def cell_state(store: Store, run_id: str, expected: str | None) -> CellState:
    """The state of one run; `expected` is the hash its summary must have been made from (None: any)."""
    folder = store.run(run_id)
    summary = RunSummary.load(folder / "summary.json") if (folder / "summary.json").exists() else None
    if summary is not None and expected in (None, summary.input_hash):
        trained = summary.training
        where = _where(folder, over=False)
        if trained is None:
            return replace(where, state="done")
        where = replace(where, state="done", expires=trained.server_expiry)
        return replace(where, step=trained.steps, steps=trained.steps, loss=trained.final_loss)
    holder = store.holder(run_id)
    if not folder.exists():  # held and without a folder: it loads the model
        return CellState("running", holder=holder) if holder else CellState("waiting")
    where = _where(folder, over=holder is None)
    state = replace(_last_step(folder), holder=holder, host=where.host, lost=where.lost)
    if not holder and (folder / FAILED).exists():
        failed = FailedRun.load(folder / FAILED)
        return replace(state, state="failed", error=failed.error, host=failed.host or state.host)
    if not holder:
        return state
    return replace(state, state="stalled" if _is_stalled(state) else "running")


def _where(folder: Path, *, over: bool) -> CellState:
    """On which host a run was last worked on, and which processes ended without a word. `over`: nobody has it now."""
    tries = read_tries(folder)
    if tries:
        lost = tuple(name_try(line) for line in lost_tries(tries, over=over))
        return CellState("stopped", host=tries[-1].host, lost=lost)
    manifest = folder / "manifest.json"
    return CellState("stopped", host=RunManifest.load(manifest).host if manifest.exists() else None)


class Board:
    """Follows cells that other processes run, by reading their records, and shows one line about them."""

    def __init__(self, store: Store, run_ids: Sequence[str], progress: Progress, every_s: float = 5.0) -> None:
        self.store = store
        self.run_ids = run_ids
        self.progress = progress
        self.every_s = every_s
        self.looked = 0.0
        self.done: set[str] = set()

    def tick(self) -> None:
        """Read the records again if it is time."""
        now = time.monotonic()
        if now - self.looked < self.every_s:
            return
        self.looked = now
        left = [run_id for run_id in self.run_ids if run_id not in self.done]
        states = [cell_state(self.store, run_id, None) for run_id in left]
        self.done |= {run_id for run_id, state in zip(left, states) if state.state == "done"}
        counts = Counter(s.state for s in states)
        counts["done"] = len(self.done)
        steps = [f"{s.step}/{s.steps or '?'}" for s in states if s.state == "running" and s.step]
        words = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        self.progress.note(words + (f"; at step {', '.join(steps[:6])}" if steps else ""))


def watch(study_path: str | Path, progress: Progress, every_s: float = 2.0) -> list[ListedCell]:
    """Follow a study until none of its cells is being run; returns the final state of its cells.

    A line is printed whenever a cell changes its state. Raises InputError when the study is not frozen.
    """
    last: dict[str, str] = {}
    store, _ = study_at(study_path)
    while True:
        cells = list_cells(study_path)
        for cell in cells:
            if last.get(cell.run_id) != cell.state:
                last[cell.run_id] = cell.state
                if cell.state != "waiting":
                    progress.say(cell_line(cell))
        busy = [cell for cell in cells if cell.state in ("running", "stalled")]
        if not busy and store.holder() is None:
            return cells
        progress.note("; ".join(cell_line(cell) for cell in busy[:3]) or "between cells")
        time.sleep(every_s)


def cells_text(cells: Sequence[ListedCell]) -> str:
    """The result of `list_cells` as text for the screen: one line per cell, then the number of cells in each state."""
    width = max((len(cell.run_id) for cell in cells), default=0)
    lines = [cell_line(cell, width) for cell in cells]
    counts = Counter(cell.state for cell in cells)
    return "\n".join([*lines, f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items())])


def cell_line(cell: ListedCell, width: int = 44) -> str:
    """One cell on one line: run id (padded to `width`), state, step, loss, time left or error."""
    parts = [f"{cell.run_id:<{width}} {cell.state:<8}"]
    if cell.loss is not None:
        of = f"/{cell.steps}" if cell.steps else ""
        parts.append(f"step {cell.step}{of}, loss {cell.loss:.3f}")
    if cell.left_s is not None and cell.state == "running":
        parts.append(f"about {clock(cell.left_s)} left in training")
    if cell.state in ("stalled", "stopped") and cell.age_s is not None:
        parts.append(f"last written {clock(cell.age_s)} ago")
    if cell.host is not None:
        parts.append(f"on {cell.host}")
    if cell.lost:
        parts.append(f"lost: {', '.join(cell.lost)}")
    if cell.expires is not None:
        parts.append(expiry_text(cell.expires, datetime.now(UTC)))
    return "  ".join([*parts, *([cell.error] if cell.error else [])])


def expiry_text(expires: str, now: datetime) -> str:
    """Hours until a server deletes weights that only it has, or that they are deleted."""
    hours = (datetime.fromisoformat(expires).astimezone(UTC) - now).total_seconds() / 3600
    return f"checkpoint expires on the server in {hours:.1f} h" if hours > 0 else "checkpoint EXPIRED on the server"


def _is_stalled(state: CellState) -> bool:
    limit = max(STALLED_LEAST_S, STALLED_STEPS * (state.step_s or 0.0))
    return state.age_s is not None and state.age_s > limit


def _last_step(folder: Path) -> CellState:
    """Step, loss, seconds since the last word and seconds left, from the end of the metrics file."""
    written = [mtime for mtime in _times(str(folder), depth=3) if mtime]
    age_s = round(time.time() - max(written), 1) if written else None
    metrics = folder / "metrics.jsonl"
    rows = [r for r in _tail(metrics) if r.split == "seen" and r.loss is not None] if metrics.exists() else []
    if not rows:
        return CellState("stopped", age_s=age_s)
    step, step_s = rows[-1].step or 0, sum(r.cost or 0.0 for r in rows) / len(rows)
    manifest = folder / "manifest.json"
    steps = RunManifest.load(manifest).steps if manifest.exists() else None
    left_s = round(step_s * max(steps - step, 0), 1) if steps else None
    return CellState("stopped", step, steps, rows[-1].loss, left_s, age_s, step_s=step_s)


def _times(folder: str, depth: int) -> Iterator[float]:
    """When files of a run were written; folders deeper than the checkpoints' own files are not walked."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if depth > 1:
                    with contextlib.suppress(FileNotFoundError):  # a checkpoint that retention removes meanwhile
                        yield from _times(entry.path, depth - 1)
            else:
                with contextlib.suppress(FileNotFoundError):
                    yield entry.stat().st_mtime


def _tail(path: Path) -> list[MetricRow]:
    """The last whole lines of a metrics file."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - TAIL, 0))
        lines = whole_lines(stream.read().decode("utf-8", "replace"))
    return [parse(MetricRow, line.encode(), f"{path}, near its end") for line in (lines[1:] if size > TAIL else lines)]

"""How a study's cells stand, read from the records alone: no model is loaded and nothing is written.

A cell is `waiting`, `running` (a living process holds it), `stalled` (held, and silent for much longer than its own
steps take), `stopped` (begun, and nobody holds it), `failed` (with the error on record) or `done`.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.errors import InputError, StudyError
from veritune.progress import Progress, clock
from veritune.records import RunManifest, RunSummary
from veritune.store import Store, read_json, whole_lines

FAILED = "failed.json"
STALLED_STEPS = 20
"""A held cell that has written nothing for this many of its own steps' time is called stalled ..."""
STALLED_LEAST_S = 120.0
"""... but never before so many seconds: the first step compiles, checkpoints are written, validation runs."""
TAIL = 65_536  # bytes read from the end of a metrics file: some hundred lines


def study_at(path: str | Path, flags: Mapping[str, Any] | None = None) -> tuple[Store, Study]:
    """The study in a folder or file. Raises StudyError when it has another name than study.yaml, or is not valid.

    `flags` override the file's settings; None takes those that the contract holds.
    """
    file = Path(path)
    file = file / "study.yaml" if file.is_dir() else file
    study = load_study(file, flags)
    if file.name != "study.yaml":
        raise StudyError(f"{file}: a study file is named study.yaml; its folder is the study.", fix="Rename it.")
    return Store(file.parent), study


def list_cells(study_path: str | Path) -> list[dict[str, Any]]:
    """Every cell of a frozen study: run id, phase, condition, seed, learning rate, state and what it last wrote.

    Raises InputError when the study is not frozen.
    """
    from veritune.train.cells import summary_hash
    from veritune.train.schedule import plan_cells
    from veritune.train.select import chosen

    store, study = study_at(study_path)
    if not store.contract_file.exists():
        raise InputError(f"{store.root} is not frozen.", fix="Freeze it first: veritune freeze STUDY")
    facts = contract.read(store)["entries"][-1]["terms"]["facts"]
    return [
        {
            "run_id": cell.run_id,
            "phase": cell.phase,
            "condition": cell.condition,
            "seed": cell.seed,
            "lr": cell.lr,
            **cell_state(store, cell.run_id, summary_hash(study, cell)),
        }
        for cell in plan_cells(study, facts, chosen(store, study, facts))
    ]


def cell_state(store: Store, run_id: str, expected: str | None) -> dict[str, Any]:
    """State of one run; `expected` is the hash its summary must have been made from (None: any)."""
    folder = store.run(run_id)
    state: dict[str, Any] = {"state": "waiting", "step": None, "steps": None, "loss": None, "left_s": None}
    state |= {"age_s": None, "holder": None, "error": None}
    summary = RunSummary.load(folder / "summary.json") if (folder / "summary.json").exists() else None
    if summary is not None and expected in (None, summary.input_hash):
        trained = summary.training
        if trained is not None:
            state |= {"step": trained.steps, "steps": trained.steps, "loss": trained.final_loss}
        return state | {"state": "done"}
    if not folder.exists():
        return state
    holder = store.holder(run_id)
    state |= {"state": "running" if holder else "stopped", "holder": holder} | _last_step(folder)
    if not holder and (folder / FAILED).exists():
        return state | {"state": "failed", "error": read_json(folder / FAILED)["error"]}
    if holder and _is_stalled(state):
        state["state"] = "stalled"
    return state


class Board:
    """Follows cells that other processes run, from their records, and shows one line about them."""

    def __init__(self, store: Store, run_ids: Sequence[str], progress: Progress, every_s: float = 5.0) -> None:
        self.store = store
        self.run_ids = run_ids
        self.progress = progress
        self.every_s = every_s
        self.looked = 0.0

    def tick(self) -> None:
        """Look again when it is time."""
        now = time.monotonic()
        if now - self.looked < self.every_s:
            return
        self.looked = now
        states = [cell_state(self.store, run_id, None) for run_id in self.run_ids]
        counts = Counter(state["state"] for state in states)
        steps = [f"{s['step']}/{s['steps'] or '?'}" for s in states if s["state"] == "running" and s["step"]]
        words = ", ".join(f"{n} {state}" for state, n in counts.items())
        self.progress.note(words + (f"; at step {', '.join(steps[:6])}" if steps else ""))


def watch(study_path: str | Path, progress: Progress, every_s: float = 2.0) -> list[dict[str, Any]]:
    """Follow a study until none of its cells is being worked on; its cells as they stand then.

    A line is printed whenever a cell changes its state. Raises InputError when the study is not frozen.
    """
    last: dict[str, str] = {}
    store, _ = study_at(study_path)
    while True:
        cells = list_cells(study_path)
        for cell in cells:
            if last.get(cell["run_id"]) != cell["state"]:
                last[cell["run_id"]] = cell["state"]
                if cell["state"] != "waiting":
                    progress.say(cell_line(cell))
        busy = [cell for cell in cells if cell["state"] in ("running", "stalled")]
        if not busy and store.holder() is None:
            return cells
        progress.note("; ".join(cell_line(cell) for cell in busy[:3]) or "between cells")
        time.sleep(every_s)


def cells_text(cells: list[dict[str, Any]]) -> str:
    """`list_cells` for the screen: one line a cell, and how many are in which state."""
    lines = [cell_line(cell) for cell in cells]
    counts = Counter(cell["state"] for cell in cells)
    return "\n".join([*lines, f"{len(cells)} cells: " + ", ".join(f"{n} {state}" for state, n in counts.items())])


def cell_line(cell: Mapping[str, Any]) -> str:
    """One cell on one line: run id, state, step, loss, time left or error."""
    parts = [f"{cell['run_id']:<44} {cell['state']:<8}"]
    if cell["loss"] is not None:
        of = f"/{cell['steps']}" if cell["steps"] else ""
        parts.append(f"step {cell['step']}{of}, loss {cell['loss']:.3f}")
    if cell["left_s"] is not None and cell["state"] == "running":
        parts.append(f"about {clock(cell['left_s'])} left in training")
    if cell["state"] in ("stalled", "stopped") and cell["age_s"] is not None:
        parts.append(f"last word {clock(cell['age_s'])} ago")
    return "  ".join([*parts, *([cell["error"]] if cell["error"] else [])])


def _is_stalled(state: Mapping[str, Any]) -> bool:
    limit = max(STALLED_LEAST_S, STALLED_STEPS * (state.get("step_s") or 0.0))
    return state["age_s"] is not None and state["age_s"] > limit


def _last_step(folder: Path) -> dict[str, Any]:
    """Step, loss, seconds since the last word and seconds left, from the end of the metrics file."""
    written = [p.stat().st_mtime for p in folder.rglob("*") if p.is_file()]
    found: dict[str, Any] = {"age_s": round(time.time() - max(written), 1)} if written else {}
    metrics = folder / "metrics.jsonl"
    rows = [r for r in _tail(metrics) if r["split"] == "seen" and r["loss"] is not None] if metrics.exists() else []
    if not rows:
        return found
    step_s = sum(r["cost"] or 0.0 for r in rows) / len(rows)
    found |= {"step": rows[-1]["step"], "loss": rows[-1]["loss"], "step_s": step_s}
    manifest = folder / "manifest.json"
    steps = RunManifest.load(manifest).steps if manifest.exists() else None
    if steps:
        found |= {"steps": steps, "left_s": round(step_s * max(steps - rows[-1]["step"], 0), 1)}
    return found


def _tail(path: Path) -> list[dict[str, Any]]:
    """The last whole lines of a JSONL file."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - TAIL, 0))
        lines = whole_lines(stream.read().decode("utf-8", "replace"))
    return [json.loads(line) for line in (lines[1:] if size > TAIL else lines)]

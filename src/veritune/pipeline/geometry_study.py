"""`probes: {geometry: ...}` in a study: `run` reads every checkpoint on disk once all cells are done.

`probes/geometry/<run_id>/step-N.json` holds what was read of one checkpoint. It stays when the checkpoint is deleted,
and a run that was stopped goes on behind it. `probes/geometry/geometry.json` is the grid over all of them, judged as
one family, with its tables (`.csv`, `.dose.csv`) and its figure beside it. Claims on `geometry.dose.*` and
`geometry.beyond.*` read that record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from veritune.config.fields import BASELINE
from veritune.config.study import GeometryProbe
from veritune.pipeline.probes import renderer_of
from veritune.pipeline.ready import Ready
from veritune.probe import geometry as g
from veritune.probe.geometry_cells import cells_of, judge_cells
from veritune.probe.geometry_dose import RECORD as GEOMETRY
from veritune.probe.geometry_grid import GridRun, build_grids
from veritune.probe.subject import ProbeSubject
from veritune.records import CellGrid, Geometry, StepGeometry, StudyGeometry, TrainingRecord, to_json
from veritune.records.base import of_plain
from veritune.report.geometry_cells import cells_csv, dose_csv
from veritune.report.grid_figures import write_cells
from veritune.seal import break_seal
from veritune.store import hash_of, read_json, write_json, write_text
from veritune.train.schedule import MAIN, Cell

FOLDER = GEOMETRY.rsplit("/", 1)[0]


def measure_geometry(ready: Ready, cells: Sequence[Cell]) -> CellGrid | None:
    """The grid of the study's checkpoints, read where it is not on disk; None where none is asked for or there."""
    asked = ready.study.probes.geometry
    if asked is None:
        return None
    runs = list(_runs(ready, asked, [c for c in cells if c.phase == MAIN and c.condition != BASELINE]))
    if not runs:
        ready.progress.say("geometry not measured: no checkpoint is on disk; run the study with `keep: best` or `all`")
        return None
    limits, conditions = ready.study.thresholds.geometry, {run.condition for run, _ in runs}
    beside = {a: b for a, b in (asked.reference or {}).items() if {a, b} <= conditions}
    grid = judge_cells(cells_of(build_grids(runs, thresholds=limits)), beside, limits, FOLDER)
    _write(ready, grid)
    return grid


def _write(ready: Ready, grid: CellGrid) -> None:
    """The record, its tables and its figure; nothing where the record is there as it is."""
    path, digest = ready.store.root / GEOMETRY, hash_of(to_json(grid))
    if ready.store.is_done(path, digest):
        return
    break_seal(ready.store)
    write_cells(grid, path.parent)
    write_text(path.parent / "geometry.csv", cells_csv(grid))
    write_text(path.parent / "geometry.dose.csv", dose_csv(grid))
    write_json(path, StudyGeometry(digest, grid))


def _runs(
    ready: Ready, asked: GeometryProbe, cells: Sequence[Cell]
) -> Iterator[tuple[GridRun, Mapping[str, Geometry]]]:
    """Every checkpoint that was read before or is on disk, condition by condition, seed by seed, step by step."""
    reader = _StateReader(ready, asked)
    for cell in cells:
        folder = ready.store.run(cell.run_id)
        for candidate in TrainingRecord.load(folder / "training.json").candidates:
            label = f"{cell.run_id}/step-{candidate.step}"
            checkpoint = folder / "checkpoints" / f"step-{candidate.step}"
            found = reader.read(label, hash_of([cell.input_hash, candidate.step, asked.model_dump()]), checkpoint)
            if found is not None:
                yield GridRun(label, cell.condition, cell.seed, candidate.step), found


class _StateReader:
    """Reads checkpoints against the untouched model, whose states are taken once, and only where they are needed."""

    def __init__(self, ready: Ready, asked: GeometryProbe) -> None:
        self.ready, self.asked = ready, asked
        texts = asked.personas or g.PERSONAS
        self.prompts = g.render_personas(ready.tokenizer, texts, asked.questions or g.QUESTIONS)
        self.base: dict[str, g.States] | None = None

    def read(self, label: str, digest: str, checkpoint: Path) -> dict[str, Geometry] | None:
        """The geometry by method, from its record or from the weights; None where neither is there."""
        store, path = self.ready.store, self.ready.store.root / FOLDER / f"{label}.json"
        if not store.is_done(path, digest):
            if not checkpoint.is_dir():
                return None
            self.ready.progress.say(f"geometry {label}")
            made = self._measured(checkpoint)
            break_seal(store)
            write_json(path, StepGeometry(digest, made))
        return dict(of_plain(StepGeometry, read_json(path), str(path)).methods)

    def _measured(self, checkpoint: Path) -> dict[str, Geometry]:
        subject = ProbeSubject(self.ready.model, checkpoint, renderer_of(self.ready))
        if self.base is None:
            self.base = self._states(subject.base())
        after = self._states(subject.trained())
        layers = self.asked.layers
        return {m: g.geometry(self.base[m], after[m], self.prompts, layers=layers) for m in self.asked.methods}

    def _states(self, model: Any) -> dict[str, g.States]:
        length = self.asked.max_new_tokens
        return {m: g.states(model, self.prompts, method=m, max_new_tokens=length) for m in self.asked.methods}

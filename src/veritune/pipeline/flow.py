"""`veritune run`: the whole way of one study, from its file to verdicts and report, stage by stage.

Nothing trains before the file, the paths, the template, the zones and one live step per condition have been checked.
Every stage skips what is on disk and was made from the same inputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.errors import InputError, LockedError, MachineError
from veritune.evaluate.means import zone_mean
from veritune.machine import peak_memory_bytes
from veritune.pipeline.cell import cells_of, is_done, run_cell
from veritune.pipeline.decide import decide
from veritune.pipeline.executors import (
    Ended,
    ExecutorPlan,
    Hooks,
    check_plan,
    how_many_fit,
    live_steps,
    release,
    run_cells,
)
from veritune.pipeline.freeze import mark_results
from veritune.pipeline.geometry_study import measure_geometry
from veritune.pipeline.judges import judges_agree
from veritune.pipeline.leak import leak_of, whole_conditions
from veritune.pipeline.plan import compare_with_plan, left, make_plan, plan_progress, refuse_plan, run_lines
from veritune.pipeline.probes import make_probes, write_curves
from veritune.pipeline.ready import Ready, make_ready
from veritune.pipeline.watch import Board, study_at
from veritune.probe.study import zone_gap
from veritune.progress import Progress, clock
from veritune.records import (
    Contract,
    RowLosses,
    RunPlan,
    RunSummary,
    Verdict,
    ZoneScore,
)
from veritune.report.page import write_report
from veritune.seal import refuse_edited, seal
from veritune.store import Store
from veritune.train.reporting import variables
from veritune.train.schedule import (
    SELECT,
    SHAPE,
    Cell,
    main_cells,
)
from veritune.train.select import record_selection, record_shapes, selection_lines, shape_lines


@dataclass(frozen=True)
class Outcome:
    """The result of a finished study."""

    folder: Path
    verdicts: tuple[Verdict, ...]
    report: Path
    trained: int
    skipped: int
    wall_s: float

    @property
    def all_supported(self) -> bool:
        """Whether every declared claim is supported, including exploratory ones."""
        return all(v.status == "supported" for v in self.verdicts)


def run(
    study_file: str | Path,
    *,
    amend: str | None = None,
    progress: Progress | None = None,
    exploratory: bool = False,
    executor: ExecutorPlan | None = None,
) -> Outcome:
    """Run a study, or resume it.

    `amend` is the reason for a change against the frozen contract; without one a changed study is refused (StaleError).
    `executor` says where cells run; None runs them one after the other in this process.
    `exploratory` runs without freezing: its results, and every claim judged on them, stay exploratory.
    Raises subclasses of VerituneError; nothing that was finished is lost.
    """
    store, study = study_at(study_file)
    progress = progress or Progress()
    with store.lock():
        store.check_format()
        store.check_events()
        store.clear_partial()
        if contract.recover(store):
            store, study = study_at(study_file)  # the amendment that was finished may hold flags of its own
        lost = refuse_edited(store)
        if lost is not None:
            progress.say(f"! {lost}; the runs are taken from the timeline instead")
            store.log("seal_lost", message=lost)
        if exploratory and store.contract_file.exists():
            raise InputError(f"{store.root} is frozen: it cannot run as exploratory.", fix="Leave out --exploratory.")
        if exploratory and executor is not None:
            raise InputError(
                "an executor can only run the cells of a frozen study.", fix="Leave out --exploratory or --executor."
            )
        if executor is not None:
            executor = replace(executor, handed_on=variables(study.report_to))
            check_plan(executor, study, store.root)
        runner = _Runner(store, study, progress)
        runner.exploratory, runner.executor = exploratory, executor
        return runner.run(amend)


class _Runner:
    """One pass over one study folder, held under its lock."""

    def __init__(self, store: Store, study: Study, progress: Progress) -> None:
        self.store = store
        self.study = study
        self.progress = progress
        self.exploratory = False
        self.executor: ExecutorPlan | None = None
        self.trained = 0
        self.skipped = 0
        self.plan: RunPlan | None = None
        self.took: dict[tuple[str, str, int], float] = {}
        self.in_cells = 0.0

    def run(self, amend: str | None) -> Outcome:
        progress, study = self.progress, self.study
        progress.say(f"{study.name}: {study.question}")
        elsewhere = self.executor is not None and self.executor.kind != "local"
        ready = make_ready(self.store, study, progress, elsewhere=elsewhere)
        self._tell_data(ready)
        if self.store.contract_file.exists() and not amend:
            contract.freeze(self.store, study, ready.facts)  # refuses a changed study before anything is spent
        self._plan(ready)
        kept = self._freeze(ready, amend)
        judges_agree(ready)
        cells = main_cells(self._select(ready))
        self._cells(ready, cells)
        self._zone_gaps(cells)
        self._curves(ready, cells)
        self._leaks(ready)
        self._geometry(ready, cells)
        if study.probes.make:
            make_probes(ready, cells, study.probes.make)
        verdicts = decide(self.store, study, [cell.run_id for cell in cells], kept)
        report = write_report(self.store, study)
        wall_s = progress.elapsed_s()
        if self.trained:
            self._log_ran(ready, len(cells), wall_s)
        listed = seal(self.store)
        progress.say(f"sealed   {listed[:16]} (keep it elsewhere; `veritune verify --seal` compares)")
        return Outcome(self.store.root, tuple(verdicts), report, self.trained, self.skipped, wall_s)

    def _freeze(self, ready: Ready, amend: str | None) -> Contract:
        """Freeze, confirm or amend the contract; what stands in for one while the study explores."""
        if self.exploratory:
            self.store.log_once("exploring", study=self.study.name)
            self.progress.say("explore  nothing is frozen: results and claims stay exploratory")
            return contract.unfrozen(self.study, ready.facts)
        if amend:
            kept = contract.amend(self.store, self.study, ready.facts, amend)
        else:
            kept = contract.freeze(self.store, self.study, ready.facts)
        mark_results(self.store, kept)
        return kept

    def _log_ran(self, ready: Ready, cells: int, wall_s: float) -> None:
        against = compare_with_plan(ready, self.plan, self.took) if self.plan is not None else None
        if against:
            self.progress.say(
                f"plan     said {clock(against.planned_s)} for these cells, they took {clock(against.took_s)}"
                f" (ratio {against.time_ratio}); memory ratio {against.memory_ratio}"
            )
        spent = self._spent(wall_s) if self.executor is None else None
        counts = {"cells": cells, "trained": self.trained, "skipped": self.skipped}
        self.store.log("ran", **counts, wall_s=round(wall_s, 1), spent_s=spent, plan=against)

    def _spent(self, wall_s: float) -> dict[str, float]:
        """Where this run's seconds went.

        `cells` is what cells took beside their work (loading, checks, saving), `rest` what is paid once: imports, the
        plan's probes, contract, report.
        """
        done = self.progress.spent()
        kinds = {
            "training": done.pop("train", 0.0) + done.pop("validate", 0.0),
            "loss": done.pop("nll", 0.0),
            "answers": sum(done.values()),
            "cells": self.in_cells,
        }
        kinds["rest"] = max(wall_s - sum(kinds.values()), 0.0)
        return {name: round(seconds, 2) for name, seconds in kinds.items()}

    def _select(self, ready: Ready) -> list[Cell]:
        """Choose learning rates and time batch shapes, where the study asks for it; all cells that there are then."""
        cells = cells_of(ready)
        if self.study.selection is None:
            return cells
        self._cells(ready, [cell for cell in cells if cell.phase == SELECT])
        record = record_selection(self.store, self.study, ready.facts)
        for line in selection_lines(record):
            self.progress.say(line)
        cells = cells_of(ready)
        self._cells(ready, [cell for cell in cells if cell.phase == SHAPE])
        shapes = record_shapes(self.store, self.study, ready.facts, record.rates)
        for line in shape_lines(shapes) if shapes else []:
            self.progress.say(line)
        return cells

    def _tell_data(self, ready: Ready) -> None:
        data = ready.data
        zones = {z: f"{c.rows} {z} ({c.families} families)" for z, c in data.facts.zones.items()}
        self.progress.say(
            f"data     {len(data.rows)} rows, {data.facts.families['originals']} families: " + ", ".join(zones.values())
        )

    # -- plan and live probe ----------------------------------------------------------------------------------

    def _plan(self, ready: Ready) -> None:
        """The plan of what is left: written, told, refused where disk or budget are too small; and the time left."""
        executor = self.executor
        far = executor is not None and executor.kind != "local"
        plan = self.plan = make_plan(ready, elsewhere=self._live_elsewhere if far else None)
        refuse_plan(ready, plan)
        plan_progress(ready, plan)
        for line in run_lines(plan, left(ready, plan)):
            self.progress.say(line)

    def _live_elsewhere(self) -> None:
        """Have a worker measure the live steps, so that nothing trains where this command was given."""
        assert self.executor is not None
        self.progress.say("probe    live steps on the executor")
        hooks = Hooks(tick=lambda: self.progress.note("live steps on the executor"), say=self.progress.say)
        live_steps(self.executor, self.store.root, hooks)

    # -- cells ------------------------------------------------------------------------------------------------

    def _cells(self, ready: Ready, cells: Sequence[Cell]) -> None:
        """Run what is not done yet, here or where the executor says."""
        labels = {cell.run_id: f"[{number}/{len(cells)}]" for number, cell in enumerate(cells, start=1)}
        if self.executor is None:
            for cell in cells:
                self._cell(ready, cell, labels[cell.run_id])
            return
        done = {cell.run_id for cell in cells if is_done(ready, cell)}
        open_ = [cell for cell in cells if cell.run_id not in done]
        for cell in [cell for cell in cells if cell.run_id in done]:
            self._cell(ready, cell, labels[cell.run_id])
        if open_:
            self._hand_out(ready, open_, labels)
        else:
            release(self.executor, self.store.root)

    def _hand_out(self, ready: Ready, cells: Sequence[Cell], labels: Mapping[str, str]) -> None:
        """Run cells on the executor. Raises MachineError when some failed, LockedError when others hold some."""
        assert self.executor is not None
        named = {cell.run_id: cell for cell in cells}
        plan = self._sized(self.executor)
        where = {"local": f"{plan.workers} side by side on this machine", "ray": "on Ray", "slurm": "as a Slurm array"}
        self.progress.say(f"cells    {len(cells)} to run, {where[plan.kind]}")
        board = Board(self.store, list(named), self.progress)

        def tell(ended: Ended) -> None:
            cell = named[ended.run_id]
            label = f"{labels[ended.run_id]} {_what(cell)}"
            if ended.error is None:
                self._tell(RunSummary.load(self.store.run(ended.run_id) / "summary.json"), label)
            else:
                state = "IN USE" if ended.in_use else f"FAILED on {ended.host}" if ended.host else "FAILED"
                self.progress.say(f"{label:<44} {state}: {ended.error}")

        hooks = Hooks(
            tell, board.tick, self.progress.say, self.progress.tell, lambda run_id: is_done(ready, named[run_id])
        )
        ended = run_cells(plan, self.store.root, list(named), hooks)
        self.trained += sum(one.error is None for one in ended)
        _refuse_unfinished(ended)

    def _sized(self, plan: ExecutorPlan) -> ExecutorPlan:
        """The plan with the memory that a cell takes, and on this machine how many fit."""
        if plan.kind == "local":
            bytes_ = plan.memory_bytes or round(1.2 * peak_memory_bytes())
            return replace(plan, memory_bytes=bytes_, workers=plan.workers or how_many_fit(bytes_))
        held = self.plan.host_memory_bytes if self.plan is not None else None
        if plan.kind == "ray" and plan.memory_bytes is None and held is not None:
            return replace(plan, memory_bytes=round(1.2 * held))
        return plan

    def _cell(self, ready: Ready, cell: Cell, label: str) -> None:
        what = _what(cell)
        if is_done(ready, cell):
            self.skipped += 1
            done = RunSummary.load(self.store.run(cell.run_id) / "summary.json")
            self._tell(done, f"{label} {what}: done before, skipped")
            return
        self.trained += 1
        began, worked = time.monotonic(), sum(self.progress.spent().values())
        summary = run_cell(ready, cell)
        key, took = (cell.phase, cell.condition, cell.seed), time.monotonic() - began
        self.took[key] = self.took.get(key, 0.0) + took
        self.in_cells += took - (sum(self.progress.spent().values()) - worked)
        if summary is not None:
            self._tell(summary, f"{label} {what}")

    def _tell(self, summary: RunSummary, label: str) -> None:
        parts = [f"failed: {summary.failed}"[:90]] if summary.failed else []
        if summary.training is not None and summary.training.elsewhere is not None:
            parts.append("trained elsewhere")
        if summary.phase == SELECT and summary.training is not None:
            parts = [f"validation NLL {summary.training.validation_nll:.4f}"]
        for name, zones in summary.scores.items():
            parts.append(f"{name} " + ", ".join(f"{zone} {_mean_text(cell)}" for zone, cell in zones.items()))
        self.progress.say(f"{label:<44} " + "; ".join(parts))

    def _zone_gaps(self, cells: Sequence[Cell]) -> None:
        """Policy or samples: how much of each run's gain in loss carries to siblings and strangers."""
        zones = {zone for spec in self.study.evals.values() for zone in spec.zones}
        if not {"seen", "stranger"} <= zones:
            return
        baseline = next(cell.run_id for cell in cells if cell.phase == BASELINE)
        told = [cell for cell in cells if cell.phase != BASELINE]
        for run_id in (baseline, *(cell.run_id for cell in told)):
            reason = RowLosses.load(self.store.run(run_id) / "probes" / "nll.json").reason
            if reason is not None:
                self.progress.say(f"gap      not measured: {run_id} has no losses ({reason})")
                return
        for cell in told:
            gap = zone_gap(self.store, baseline, cell.run_id, self.study.thresholds)
            share = gap.carried["stranger"]
            interval = "" if share.low is None else f" ({share.low:.0%} to {share.high:.0%})"
            reading = gap.why
            if share.value is not None:
                reading = f"{share.value:.0%}{interval} of the gain in loss carries to strangers"
            self.progress.say(f"gap      {cell.condition}, seed {cell.seed}: {gap.verdict}; {reading}")

    def _curves(self, ready: Ready, cells: Sequence[Cell]) -> None:
        """Early-stopping advice, where an earlier checkpoint would have kept most of the gain; it chooses nothing."""
        curves = write_curves(ready, cells)
        for cell in cells:
            curve = curves.get(cell.run_id)
            if curve is not None and curve.advised is not None:
                self.progress.say(f"curve    {cell.condition}, seed {cell.seed}: {curve.reading}")

    def _leaks(self, ready: Ready) -> None:
        """What a leaky split would have flattered, where the study asks for it: a shadow run per condition."""
        if not self.study.probes.leak:
            return
        for name in whole_conditions(self.study):
            record = leak_of(ready, name, planned=True)
            self.progress.say(f"leak     {name}: {record['reading']}")

    def _geometry(self, ready: Ready, cells: Sequence[Cell]) -> None:
        """How personas' hidden states moved in every checkpoint on disk, where the study asks for it."""
        began = time.monotonic()
        grid = measure_geometry(ready, cells)
        if grid is not None:
            self.progress.say(f"geometry {grid.reading} ({clock(time.monotonic() - began)})")


def _refuse_unfinished(ended: Sequence[Ended]) -> None:
    """Raises MachineError where a cell failed, LockedError where another process has one and none failed."""
    failed = [one for one in ended if one.error is not None and not one.in_use]
    if failed:
        first = failed[0]
        host = f" on {first.host}" if first.host else ""
        raise MachineError(
            f"{len(failed)} of {len(ended)} cells failed, first {first.run_id}{host}: {first.error}",
            fix="Finished cells are kept; run the same command to resume the others.",
        )
    busy = [one for one in ended if one.in_use]
    if busy:
        raise LockedError(
            f"{len(busy)} of {len(ended)} cells are in use elsewhere, first {busy[0].run_id}: {busy[0].error}",
            fix="Finished cells are kept; run the same command again when those have ended.",
        )


def _what(cell: Cell) -> str:
    what = "baseline, untouched" if cell.phase == BASELINE else f"{cell.condition}, seed {cell.seed}"
    what += f", rate {cell.lr:g}" if cell.phase == SELECT else ""
    return what + (
        f", shape {cell.shape[0]} x {cell.shape[1]}" if cell.phase == SHAPE and cell.shape is not None else ""
    )


def _mean_text(cell: ZoneScore) -> str:
    """A mean for the screen, with what had no score."""
    mean = zone_mean(cell)
    if mean is None:
        return "none"
    return f"{mean.value:.3f}" + (f" ({mean.failed} of {mean.n} without a score count as 0)" if mean.failed else "")

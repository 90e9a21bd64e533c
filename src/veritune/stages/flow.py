"""`veritune run`: the whole way of one study, from its file to verdicts and report, stage by stage.

Nothing trains before the file, the paths, the template, the zones and one live step per condition have been checked.
Every stage skips what is on disk and was made from the same inputs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.errors import InputError, MachineError
from veritune.machine import peak_memory_bytes
from veritune.progress import Progress, clock
from veritune.records import RunSummary, Verdict
from veritune.report.page import write_report
from veritune.seal import refuse_edited, seal
from veritune.stages.cell import cells_of, is_done, run_cell
from veritune.stages.decide import decide
from veritune.stages.executors import Ended, ExecutorPlan, how_many_fit, run_cells
from veritune.stages.freeze import mark_results
from veritune.stages.leak import leak_of, whole_conditions
from veritune.stages.plan import compare_with_plan, left, make_plan, plan_progress, refuse_plan, run_lines
from veritune.stages.ready import Ready, make_ready
from veritune.stages.watch import Board, study_at
from veritune.store import Store, read_json
from veritune.train.reporting import variables
from veritune.train.schedule import SELECT, SHAPE, main_cells
from veritune.train.select import record_selection, record_shapes, selection_lines, shape_lines


@dataclass(frozen=True)
class Outcome:
    """What a finished study came to."""

    folder: Path
    verdicts: tuple[Verdict, ...]
    report: Path
    trained: int
    skipped: int
    wall_s: float

    @property
    def all_supported(self) -> bool:
        """Whether every declared claim is supported, exploratory ones too."""
        return all(v.status == "supported" for v in self.verdicts)


def run(
    study_file: str | Path,
    *,
    amend: str | None = None,
    progress: Progress | None = None,
    exploratory: bool = False,
    executor: ExecutorPlan | None = None,
) -> Outcome:
    """Run a study, or what is left of it.

    `amend` is the reason for a change against the frozen contract; without one a changed study is refused (StaleError).
    `executor` says where cells run; None runs them one after the other in this process.
    `exploratory` runs without freezing: its results, and every claim judged on them, are exploratory for ever.
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
            progress.say(f"! {lost}; the runs are as the timeline knows them")
            store.log("seal_lost", message=lost)
        if exploratory and store.contract_file.exists():
            raise InputError(f"{store.root} is frozen: it explores no more.", fix="Run it without --exploratory.")
        if exploratory and executor is not None:
            raise InputError("cells of an executor need a frozen study.", fix="Leave out --exploratory or --executor.")
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
        self.plan: Mapping[str, Any] = {}
        self.took: dict[tuple[str, str, int], float] = {}
        self.in_cells = 0.0

    def run(self, amend: str | None) -> Outcome:
        progress, study = self.progress, self.study
        progress.say(f"{study.name}: {study.question}")
        ready = make_ready(self.store, study, progress)
        self._tell_data(ready)
        if self.store.contract_file.exists() and not amend:
            contract.freeze(self.store, study, ready.facts)  # refuses a changed study before anything is spent
        self._plan(ready)
        kept = self._freeze(ready, amend)
        cells = main_cells(self._select(ready))
        self._cells(ready, cells)
        self._zone_gaps(cells)
        self._leaks(ready)
        verdicts = decide(self.store, study, [cell.run_id for cell in cells], kept)
        report = write_report(self.store, study)
        wall_s = progress.elapsed_s()
        if self.trained:
            self._log_ran(ready, len(cells), wall_s)
        listed = seal(self.store)
        progress.say(f"sealed   {listed[:16]} (keep it elsewhere; `veritune verify --seal` compares)")
        return Outcome(self.store.root, tuple(verdicts), report, self.trained, self.skipped, wall_s)

    def _freeze(self, ready: Ready, amend: str | None) -> dict[str, Any]:
        """Freeze, confirm or amend the contract; what stands in for one while the study explores."""
        if self.exploratory:
            self.store.log_once("exploring", study=self.study.name)
            self.progress.say("explore  nothing is frozen: results and claims are exploratory for ever")
            return contract.unfrozen(self.study, ready.facts)
        if amend:
            kept = contract.amend(self.store, self.study, ready.facts, amend)
        else:
            kept = contract.freeze(self.store, self.study, ready.facts)
        mark_results(self.store, kept)
        return kept

    def _log_ran(self, ready: Ready, cells: int, wall_s: float) -> None:
        against = compare_with_plan(ready, self.plan, self.took)
        if against:
            self.progress.say(
                f"plan     said {clock(against['planned_s'])} for these cells, they took {clock(against['took_s'])}"
                f" (ratio {against['time_ratio']}); memory ratio {against['memory_ratio']}"
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

    def _select(self, ready: Ready) -> list[Any]:
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
        rates = {name: found["selected"] for name, found in record["conditions"].items()}
        shapes = record_shapes(self.store, self.study, ready.facts, rates)
        for line in shape_lines(shapes) if shapes else []:
            self.progress.say(line)
        return cells

    def _tell_data(self, ready: Ready) -> None:
        data = ready.data
        zones = {z: f"{c['rows']} {z} ({c['families']} families)" for z, c in data.facts["zones"].items()}
        self.progress.say(
            f"data     {len(data.rows)} rows, {data.facts['families']['originals']} families: "
            + ", ".join(zones.values())
        )

    # -- plan and live probe ----------------------------------------------------------------------------------

    def _plan(self, ready: Ready) -> None:
        """The plan of what is left: written, told, refused where disk or budget are too small; and the time left."""
        self.plan = make_plan(ready)
        refuse_plan(ready, self.plan)
        plan_progress(ready, self.plan)
        for line in run_lines(self.plan, left(ready, self.plan)):
            self.progress.say(line)

    # -- cells ------------------------------------------------------------------------------------------------

    def _cells(self, ready: Ready, cells: Sequence[Any]) -> None:
        """Run what is not done yet, here or where the executor says."""
        labels = {cell.run_id: f"[{number}/{len(cells)}]" for number, cell in enumerate(cells, start=1)}
        if self.executor is None:
            for cell in cells:
                self._cell(ready, cell, labels[cell.run_id])
            return
        open_ = [cell for cell in cells if not is_done(ready, cell)]
        for cell in [cell for cell in cells if cell not in open_]:
            self._cell(ready, cell, labels[cell.run_id])
        if open_:
            self._hand_out(ready, open_, labels)

    def _hand_out(self, ready: Ready, cells: Sequence[Any], labels: Mapping[str, str]) -> None:
        """Run cells on the executor. Raises MachineError when some of them failed; the others are kept."""
        assert self.executor is not None
        plan, named = self.executor, {cell.run_id: cell for cell in cells}
        if plan.memory_bytes is None and plan.kind == "local":
            plan = replace(plan, memory_bytes=round(1.2 * peak_memory_bytes()))
        workers = plan.workers or how_many_fit(plan.memory_bytes or 1)
        where = {"local": f"{workers} side by side on this machine", "ray": "on Ray", "slurm": "as a Slurm array"}
        self.progress.say(f"cells    {len(cells)} to run, {where[plan.kind]}")
        board = Board(self.store, list(named), self.progress)

        def tell(ended: Ended) -> None:
            cell = named[ended.run_id]
            label = f"{labels[ended.run_id]} {_what(cell)}"
            if ended.error is None:
                self._tell(RunSummary.load(self.store.run(ended.run_id) / "summary.json"), label)
            else:
                self.progress.say(f"{label:<44} FAILED: {ended.error}")

        plan = replace(plan, workers=workers, handed_on=variables(self.study.report_to))
        ended = run_cells(plan, self.store.root, list(named), tell, board.tick)
        failed = [one for one in ended if one.error is not None]
        self.trained += len(ended) - len(failed)
        if failed:
            raise MachineError(
                f"{len(failed)} of {len(cells)} cells failed, first {failed[0].run_id}: {failed[0].error}",
                fix="The others are kept; the same command takes up what is left.",
            )

    def _cell(self, ready: Ready, cell: Any, label: str) -> None:
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
        if summary.phase == SELECT and summary.training is not None:
            parts = [f"validation NLL {summary.training.validation_nll:.4f}"]
        for name, zones in summary.scores.items():
            means = [f"{zone} {z.mean:.3f}" if z.mean is not None else f"{zone} none" for zone, z in zones.items()]
            parts.append(f"{name} " + ", ".join(means))
        self.progress.say(f"{label:<44} " + "; ".join(parts))

    def _zone_gaps(self, cells: Sequence[Any]) -> None:
        """Policy or samples: how much of each run's gain in loss carries to siblings and strangers."""
        from veritune.probe.study import zone_gap

        zones = {zone for spec in self.study.evals.values() for zone in spec.zones}
        if not {"seen", "stranger"} <= zones:
            return
        baseline = next(cell.run_id for cell in cells if cell.phase == BASELINE)
        told = [cell for cell in cells if cell.phase != BASELINE]
        for run_id in (baseline, *(cell.run_id for cell in told)):
            reason = read_json(self.store.run(run_id) / "probes" / "nll.json").get("reason")
            if reason is not None:
                self.progress.say(f"gap      not measured: {run_id} has no losses ({reason})")
                return
        for cell in told:
            found = zone_gap(self.store, baseline, cell.run_id, self.study.thresholds)
            share = found["carried"]["stranger"]
            carried = "" if share["low"] is None else f" ({share['low']:.0%} to {share['high']:.0%})"
            said = found["why"] if share["value"] is None else f"{share['value']:.0%}{carried} of the gain in loss"
            self.progress.say(
                f"gap      {cell.condition}, seed {cell.seed}: {found['verdict']}; {said}"
                + " carries to strangers" * (share["value"] is not None)
            )

    def _leaks(self, ready: Ready) -> None:
        """What a leaky split would have flattered, where the study asks for it: a shadow run per condition."""
        if not self.study.probes.leak:
            return
        for name in whole_conditions(self.study):
            record = leak_of(ready, name, planned=True)
            self.progress.say(f"leak     {name}: {record['reading']}")


def _what(cell: Any) -> str:
    what = "baseline, untouched" if cell.phase == BASELINE else f"{cell.condition}, seed {cell.seed}"
    what += f", rate {cell.lr:g}" if cell.phase == SELECT else ""
    return what + (f", shape {cell.shape[0]} x {cell.shape[1]}" if cell.phase == SHAPE else "")

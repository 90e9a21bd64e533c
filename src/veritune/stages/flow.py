"""`veritune run`: the whole way of one study, from its file to verdicts and report, stage by stage.

Nothing trains before the file, the paths, the template, the zones and one live step per condition have been checked.
Every stage skips what is on disk and was made from the same inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.errors import MachineError
from veritune.machine import peak_memory_bytes
from veritune.progress import Progress
from veritune.records import Verdict
from veritune.report.page import write_report
from veritune.seal import refuse_edited, seal
from veritune.stages.cell import cells_of, is_done, run_cell
from veritune.stages.decide import decide
from veritune.stages.executors import Ended, Plan, how_many_fit, run_cells
from veritune.stages.ready import Ready, make_ready
from veritune.stages.watch import Board, study_at
from veritune.store import Store, read_json, write_json
from veritune.study import BASELINE, Study


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
    executor: Plan | None = None,
) -> Outcome:
    """Run a study, or what is left of it.

    `amend` is the reason for a change against the frozen contract; without one a changed study is refused (StaleError).
    `executor` says where cells run; None runs them one after the other in this process.
    Raises subclasses of VerituneError; nothing that was finished is lost.
    """
    store, study = study_at(study_file)
    with store.lock():
        store.check_format()
        store.check_events()
        store.clear_partial()
        refuse_edited(store)
        return _Runner(store, study, progress or Progress(), executor).run(amend)


class _Runner:
    """One pass over one study folder, held under its lock."""

    def __init__(self, store: Store, study: Study, progress: Progress, executor: Plan | None) -> None:
        self.store = store
        self.study = study
        self.progress = progress
        self.executor = executor
        self.trained = 0
        self.skipped = 0

    def run(self, amend: str | None) -> Outcome:
        progress, study = self.progress, self.study
        progress.say(f"{study.name}: {study.question}")
        ready = make_ready(self.store, study, progress)
        self._tell_data(ready)
        if self.store.contract_file.exists() and not amend:
            contract.freeze(self.store, study, ready.facts)  # refuses a changed study before anything is spent
        cells = cells_of(ready)
        self._plan(ready, cells)
        self._live_probes(ready, cells)
        freeze = contract.freeze
        kept = (
            contract.amend(self.store, study, ready.facts, amend) if amend else freeze(self.store, study, ready.facts)
        )
        self._run_cells(ready, cells)
        self._zone_gaps(cells)
        verdicts = decide(self.store, study, [cell.run_id for cell in cells], kept)
        report = write_report(self.store, study)
        wall_s = progress.elapsed_s()
        if self.trained:
            self.store.log("ran", cells=len(cells), trained=self.trained, skipped=self.skipped, wall_s=round(wall_s, 1))
        seal(self.store)
        return Outcome(self.store.root, tuple(verdicts), report, self.trained, self.skipped, wall_s)

    def _tell_data(self, ready: Ready) -> None:
        data = ready.data
        zones = {z: f"{c['rows']} {z} ({c['families']} families)" for z, c in data.facts["zones"].items()}
        self.progress.say(
            f"data     {len(data.rows)} rows, {data.facts['families']['originals']} families: "
            + ", ".join(zones.values())
        )

    # -- plan and live probe ----------------------------------------------------------------------------------

    def _plan(self, ready: Ready, cells: Sequence[Any]) -> None:
        """Count the work that is left, so that the time left can be told."""
        from veritune.train.cells import training_tokens

        tokens = training_tokens(self.study, ready.data)
        for cell in cells:
            if is_done(ready, cell):
                continue
            if cell.phase != BASELINE and not (self.store.run(cell.run_id) / "training.json").exists():
                self.progress.plan("train", tokens)
            kind = f"generate {'baseline' if cell.phase == BASELINE else 'tuned'}"
            self.progress.plan(kind, sum(len(rows) for rows in ready.items.values()))
            self.progress.plan("nll", len(ready.nll_rows))
        self.progress.say(f"plan     {len(cells)} cells, {tokens:,} training tokens each")

    def _live_probes(self, ready: Ready, cells: Sequence[Any]) -> None:
        from veritune.train.cells import live_probe

        first = {cell.condition: cell for cell in reversed(cells) if cell.phase != BASELINE}
        for name in self.study.conditions:
            cell, path = first[name], self.store.audit(f"live-{name}.json")
            if not self.store.is_done(path, cell.input_hash):
                found = live_probe(ready.context, cell, self.store.root / "audit" / "live-work")
                write_json(path, {**found, "input_hash": cell.input_hash})
            found = read_json(path)
            trainable = found["trainable"]
            share = trainable["n_trainable"] / trainable["n_total"]
            self.progress.measure("train", self._step_tokens(ready), found["step_s"])
            self.progress.say(
                f"probe    {name}: one live step, loss {found['loss']:.3f}, {trainable['n_trainable']:,} parameters"
                f" train ({share:.2%}) in {len(trainable['modules'])} modules"
            )

    def _step_tokens(self, ready: Ready) -> float:
        rows = ready.data.zone("seen")
        batch = (
            self.study.train.per_device_train_batch_size * self.study.train.gradient_accumulation_steps
        )  # one device
        return sum(len(r.input_ids) for r in rows) / len(rows) * min(batch, len(rows))

    # -- cells ------------------------------------------------------------------------------------------------

    def _run_cells(self, ready: Ready, cells: Sequence[Any]) -> None:
        """Run what is not done yet, here or where the executor says."""
        labels = {cell.run_id: f"[{number}/{len(cells)}]" for number, cell in enumerate(cells, start=1)}
        if self.executor is None:
            for cell in cells:
                self._cell(ready, cell, labels[cell.run_id])
            return
        left = [cell for cell in cells if not is_done(ready, cell)]
        for cell in [cell for cell in cells if cell not in left]:
            self._cell(ready, cell, labels[cell.run_id])
        if left:
            self._hand_out(ready, left, labels)

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
                self._tell(read_json(self.store.run(ended.run_id) / "summary.json"), label)
            else:
                self.progress.say(f"{label:<44} FAILED: {ended.error}")

        ended = run_cells(replace(plan, workers=workers), self.store.root, list(named), tell, board.tick)
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
            summary = read_json(self.store.run(cell.run_id) / "summary.json")
            self._tell(summary, f"{label} {what}: done before, skipped")
            return
        self.trained += 1
        self._tell(run_cell(ready, cell), f"{label} {what}")

    def _tell(self, summary: Mapping[str, Any], label: str) -> None:
        parts = []
        for name, zones in summary["scores"].items():
            means = [
                f"{zone} {z['mean']:.3f}" if z["mean"] is not None else f"{zone} none" for zone, z in zones.items()
            ]
            parts.append(f"{name} " + ", ".join(means))
        self.progress.say(f"{label:<44} " + "; ".join(parts))

    def _zone_gaps(self, cells: Sequence[Any]) -> None:
        """Policy or samples: how much of each run's gain in loss carries to siblings and strangers."""
        from veritune.probe.study import zone_gap

        zones = {zone for spec in self.study.evals.values() for zone in spec.zones}
        if not {"seen", "stranger"} <= zones:
            return
        baseline = next(cell.run_id for cell in cells if cell.phase == BASELINE)
        for cell in cells:
            if cell.phase != BASELINE:
                found = zone_gap(self.store, baseline, cell.run_id)
                share = found["carried"]["stranger"]
                carried = "" if share["low"] is None else f" ({share['low']:.0%} to {share['high']:.0%})"
                self.progress.say(
                    f"gap      {cell.condition}, seed {cell.seed}: {found['verdict']}; {share['value']:.0%}{carried}"
                    " of the gain in loss carries to strangers"
                )


def _what(cell: Any) -> str:
    return "baseline, untouched" if cell.phase == BASELINE else f"{cell.condition}, seed {cell.seed}"

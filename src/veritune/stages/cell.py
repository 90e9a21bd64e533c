"""One cell from base model to summary: `veritune cell STUDY RUN_ID`, on any machine that sees the folder.

A cell holds its own run's lock and no other, so that as many cells run side by side as there is room for. What a
killed cell finished is kept, and the same command takes it up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.errors import DivergedError, GateError, InputError, MachineError, StaleError, VerituneError
from veritune.evaluate import tasks
from veritune.progress import Progress
from veritune.records import Row, RunSummary
from veritune.seal import break_seal, refuse_edited_run, refuse_edited_scores
from veritune.stages.ready import Ready, make_ready
from veritune.stages.watch import FAILED, study_at
from veritune.store import hash_of, now, read_json, remove, sha256_file, write_json, write_jsonl
from veritune.train import distributed
from veritune.train.schedule import SELECT, SHAPE, plan_cells
from veritune.train.select import chosen


def cell_command(study_path: str | Path, run_id: str, progress: Progress | None = None) -> RunSummary | None:
    """Run one cell of a frozen study; its summary. Does nothing when the cell is done.

    Raises InputError without a contract or for an unknown run id, StaleError when study or base differ from the
    contract, LockedError when another process is at work on the cell.
    """
    ready = ready_from_contract(study_path, progress or Progress())
    known = {cell.run_id: cell for cell in cells_of(ready)}
    if run_id not in known:
        raise InputError(f"no cell {run_id!r} in {ready.store.root}.", fix="`veritune cells STUDY` lists them.")
    return run_cell(ready, known[run_id])


def ready_from_contract(study_path: str | Path, progress: Progress) -> Ready:
    """The study as it was frozen, its data read back from disk. Raises InputError, StaleError."""
    store, study = study_at(study_path)
    if not store.contract_file.exists():
        raise InputError(f"{store.root} is not frozen.", fix="Freeze it first: veritune freeze STUDY")
    last = contract.agreed(store)["entries"][-1]["terms"]
    differences = list(contract.differ(last["study"], contract.settings(study), "study"))
    if differences:
        raise StaleError(
            f"{store.study_file} differs from the frozen contract: {differences[0]}.",
            fix='Undo it, or record it: `veritune amend STUDY --reason "..."`.',
        )
    ready = make_ready(store, study, progress, frozen=last["facts"])
    for part in ("model", "packages", "code"):
        differences = list(contract.differ(last["facts"].get(part), ready.facts[part], f"facts.{part}"))
        if differences:
            raise StaleError(
                f"what is here is not what was frozen: {differences[0]}.",
                fix='Restore it, or record it: `veritune amend STUDY --reason "..."`. Nothing has trained.',
            )
    return ready


def cells_of(ready: Ready) -> list[Any]:
    """Every cell of the study, in the order in which they are run; main cells exist once selection is recorded."""
    return plan_cells(ready.study, ready.facts, chosen(ready.store, ready.study, ready.facts))


def is_done(ready: Ready, cell: Any) -> bool:
    """Whether the cell's summary is there and was made from these inputs."""
    from veritune.train.cells import summary_hash

    return ready.store.is_done(ready.store.run(cell.run_id) / "summary.json", summary_hash(ready.study, cell))


def run_cell(ready: Ready, cell: Any) -> RunSummary | None:
    """Train and score one cell, or what is left of it; its summary. A failure is recorded in the run's folder.

    None in a process that helps another one train the cell.
    """
    folder = ready.store.run(cell.run_id)
    devices = ready.study.train.devices
    if devices > 1 and cell.phase != BASELINE and not (folder / "training.json").exists():
        if distributed.world_size() == 1:
            return _on_several(ready, cell, devices)
        if not distributed.is_main():
            ready.backend.train(ready.context, cell)
            return None
    with ready.store.run_lock(cell.run_id):
        if is_done(ready, cell):
            refuse_edited_run(ready.store, cell.run_id)
            return RunSummary.load(folder / "summary.json")
        break_seal(ready.store)
        remove(folder / "summary.json")  # it speaks of scores that are about to go
        try:
            summary = _work(ready, cell)
        except VerituneError as exc:
            write_json(folder / FAILED, {"input_hash": cell.input_hash, "time": now(), "error": str(exc)})
            raise
        remove(folder / FAILED)
        return summary


def _on_several(ready: Ready, cell: Any, devices: int) -> RunSummary:
    """Run the cell on several processes of this machine. Raises what the cell recorded as its failure."""
    folder = ready.store.run(cell.run_id)
    if is_done(ready, cell):
        return RunSummary.load(folder / "summary.json")
    (folder / FAILED).unlink(missing_ok=True)
    status = distributed.launch(ready.store.root, cell.run_id, devices)
    if is_done(ready, cell):
        return RunSummary.load(folder / "summary.json")
    said = read_json(folder / FAILED)["error"] if (folder / FAILED).exists() else f"torchrun ended with status {status}"
    raise MachineError(f"run {cell.run_id} on {devices} processes failed: {said}", fix="What it finished is kept.")


def _work(ready: Ready, cell: Any) -> RunSummary:
    from veritune.train import cells

    context = ready.context
    cells.start(context, cell, ready.machine, ready.packages)
    if cell.phase in (SELECT, SHAPE):
        return _select_run(ready, cell)
    if cell.phase != BASELINE:
        ready.backend.train(context, cell)
    memory = ready.backend.memory()
    weights = ready.backend.trained(context, cell)
    cells.measure_nll(context, cell, weights, ready.nll_rows)
    paths = {name: _score(ready, cell, name, rows, weights) for name, rows in ready.items.items()}
    weights.close()
    return cells.finish(context, cell, paths, memory=memory.read())


def _select_run(ready: Ready, cell: Any) -> RunSummary:
    """Train for selection and score nothing. A run that diverges or crashes is a result: its setting is out."""
    from veritune.train import cells

    try:
        ready.backend.train(ready.context, cell)
    except DivergedError as exc:
        return cells.finish(ready.context, cell, {}, failed=f"the loss was not finite: {exc.message}")
    except (RuntimeError, ArithmeticError) as exc:  # out of the device's memory, a kernel that fails
        return cells.finish(ready.context, cell, {}, failed=f"{type(exc).__name__}: {exc}"[:500])
    return cells.finish(ready.context, cell, {})


def _score(ready: Ready, cell: Any, name: str, rows: Sequence[Row], weights: Any) -> Path:
    """Generate and score one eval; the path of its scores. Scores of another eval contract are set aside.

    Scores that are there are believed where the timeline recorded this very file for these inputs, else StaleError.
    """
    from veritune.evaluate.generate import Decoding, answers

    if cell.phase in (SELECT, SHAPE):
        raise GateError(f"run {cell.run_id} chooses a setting: no score of an eval may enter.", fix="Score main runs.")
    spec, data, progress = ready.study.evals[name], ready.data, ready.progress
    path = ready.store.run(cell.run_id) / "scores" / f"{name}.jsonl"
    stamp = path.with_suffix(".json")
    digest = hash_of({"cell": cell.input_hash, "eval": spec.model_dump(mode="json"), "items": [r.id for r in rows]})
    if path.exists() and ready.store.is_done(stamp, digest):
        refuse_edited_scores(ready.store, path, digest)
        return path
    kind = f"generate {'baseline' if cell.phase == BASELINE else 'tuned'}"

    def on_batch(n: int, seconds: float) -> None:
        progress.measure("generate tuned", n, seconds)
        progress.advance(kind, n, seconds, f"{cell.condition} seed {cell.seed}: answering {name}")

    decoding = Decoding(spec.max_new_tokens, spec.batch_size)
    outputs = answers(weights, ready.tokenizer, [data.prompts[r.id] for r in rows], decoding, on_batch)
    _set_aside(path, stamp)
    scores = []
    for row, output in zip(rows, outputs):
        found = tasks.score(name, spec, row, output)
        family, zone = data.family_of[row.id], data.zone_of[row.id]
        scores.append(replace(found, run_id=cell.run_id, family=family, zone=zone))
    write_jsonl(path, scores)
    made = sha256_file(path)
    ready.store.log("scored", file=ready.store.relative(path), inputs=digest, sha256=made)
    how = {"greedy": True, **asdict(decoding), **weights.notes}
    write_json(stamp, {"input_hash": digest, "sha256": made, "items": len(scores), "decoding": how})
    return path


def _set_aside(path: Path, stamp: Path) -> None:
    """Keep scores of an earlier eval contract under the hash they were made from; half-made ones go."""
    if stamp.exists() and path.exists():
        old = read_json(stamp)["input_hash"][:8]
        path.rename(path.with_name(f"{path.stem}.{old}.jsonl"))
        stamp.rename(stamp.with_name(f"{stamp.stem}.{old}.json"))
    remove(stamp)  # the stamp of other scores must not vouch for new ones
    remove(path)

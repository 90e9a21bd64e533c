"""One cell from base model to summary: `veritune work STUDY RUN_ID`, on any machine that sees the folder.

A cell holds its own run's lock and no other, so that as many cells run side by side as there is room for. What a
killed cell finished is kept, and the same command takes it up.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from veritune import contract
from veritune.config.evals import Eval
from veritune.config.fields import BASELINE
from veritune.counting import many
from veritune.errors import (
    DivergedError,
    GateError,
    InputError,
    LockedError,
    MachineError,
    StaleError,
    VerituneError,
    first_line,
)
from veritune.evaluate.choice import judge_options
from veritune.evaluate.confidence import answer_token_losses
from veritune.evaluate.generate import Decoding, answers
from veritune.evaluate.scorers import refuse_first, scorer_of
from veritune.pipeline.ready import ItemOptions, Ready, make_ready
from veritune.pipeline.tries import here, lost_tries, name_try, read_tries, record_try
from veritune.pipeline.watch import FAILED, study_at
from veritune.progress import Progress
from veritune.records import (
    FailedRun,
    Row,
    RunSummary,
    Score,
    ScoreStamp,
    to_json,
)
from veritune.seal import break_seal, refuse_edited_run, refuse_edited_scores
from veritune.store import hash_of, now, remove, sha256_file
from veritune.train import distributed
from veritune.train.backends.protocol import RunWeights
from veritune.train.lora import added
from veritune.train.schedule import (
    SELECT,
    SHAPE,
    Cell,
    plan_cells,
)
from veritune.train.select import chosen

if TYPE_CHECKING:
    from veritune.evaluate.generate import Output


def cell_command(study_path: str | Path, run_id: str, progress: Progress | None = None) -> RunSummary | None:
    """Run one cell of a frozen study and return its summary. Does nothing if the cell is done.

    Raises InputError without a contract or for an unknown run id, StaleError when study or base differ from the
    contract, LockedError when another process is at work on the cell.
    """
    ready = ready_from_contract(study_path, progress or Progress())
    known = {cell.run_id: cell for cell in cells_of(ready)}
    if run_id not in known:
        raise InputError(
            f"unknown cell {run_id!r} in {ready.store.root}.", fix="List the cells: veritune status STUDY --cells"
        )
    return run_cell(ready, known[run_id])


def ready_from_contract(study_path: str | Path, progress: Progress) -> Ready:
    """The study as it was frozen, its data read back from disk. Raises InputError, StaleError."""
    store, study = study_at(study_path)
    if not store.contract_file.exists():
        raise InputError(f"{store.root} is not frozen.", fix="Freeze it first: veritune freeze STUDY")
    last = contract.agreed(store).last.terms
    differences = list(contract.differ(last.study, contract.settings(study), "study"))
    if differences:
        raise StaleError(
            f"{store.study_file} differs from the frozen contract: {differences[0]}.",
            fix='Undo the change, or record it: `veritune amend STUDY --reason "..."`.',
        )
    ready = make_ready(store, study, progress, frozen=last.facts)
    for part in ("model", "packages", "code", "scorers"):
        differences = list(
            contract.differ(to_json(getattr(last.facts, part)), to_json(getattr(ready.facts, part)), f"facts.{part}")
        )
        if differences:
            raise StaleError(
                f"the files here differ from what was frozen: {differences[0]}.",
                fix='Restore them from a copy, or record the change: `veritune amend STUDY --reason "..."`. '
                "Nothing has trained.",
            )
    return ready


def cells_of(ready: Ready) -> list[Cell]:
    """Every cell of the study, in running order; main cells exist once the selection is recorded."""
    return plan_cells(ready.study, ready.facts, chosen(ready.store, ready.study, ready.facts))


def is_done(ready: Ready, cell: Cell) -> bool:
    """Whether the cell's summary exists and was made from these inputs."""
    return ready.store.is_done(ready.store.run(cell.run_id) / "summary.json", ready.made_from(cell))


def run_cell(ready: Ready, cell: Cell) -> RunSummary | None:
    """Train and score one cell, or resume it; returns its summary. A failure is recorded in the run's folder.

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
        if (folder / "summary.json").exists():
            record_try(folder, "done")
        remove(folder / "summary.json")  # it speaks of scores that are about to go
        remove(folder / FAILED)
        record_try(folder, "began")
        try:
            return _work(ready, cell)
        except LockedError:
            raise  # another process took the run over: its folder is that one's now
        except Exception as exc:
            with contextlib.suppress(VerituneError, OSError):  # a full disk: its error is the one to show
                FailedRun(cell.input_hash, now(), error_text(exc), here()).save(folder / FAILED)
                record_try(folder, "failed")
            raise
        except BaseException:
            with contextlib.suppress(VerituneError, OSError):
                record_try(folder, "stopped")
            raise


def error_text(exc: BaseException) -> str:
    """An error as text for the run's record: one of ours as shown on the screen, another library's with its class."""
    return str(exc) if isinstance(exc, VerituneError) else f"{type(exc).__name__}: {first_line(exc)}"


def _on_several(ready: Ready, cell: Cell, devices: int) -> RunSummary:
    """Run the cell on several processes of this machine. Raises what the cell recorded as its failure."""
    folder = ready.store.run(cell.run_id)
    if is_done(ready, cell):
        return RunSummary.load(folder / "summary.json")
    until = time.monotonic() + RANKS_END_S
    while (holder := ready.store.holder(cell.run_id)) is not None and time.monotonic() < until:
        time.sleep(0.5)
    if holder is not None:
        raise LockedError(
            f"run {cell.run_id} is in use by {holder}.", fix="Wait until it ends, or watch it with `veritune status`."
        )
    failed = folder / FAILED
    failed.unlink(missing_ok=True)
    error = ""
    for _ in range(GROUP_TRIES):
        before = len(read_tries(folder))
        status = distributed.launch(ready.store.root, cell.run_id, devices)
        if is_done(ready, cell):
            return RunSummary.load(folder / "summary.json")
        tries = read_tries(folder)[before:]
        error = f"torchrun ended with status {status}"
        if failed.exists() or not any(line.event == "began" for line in tries):
            break  # its own error, or it never began: the next try would end alike
        lost = ", ".join(map(name_try, lost_tries(tries, over=True))) or "another rank than the first"
        error += f"; lost: {lost}"
    if failed.exists():
        error = FailedRun.load(failed).error
    raise MachineError(
        f"run {cell.run_id} on {many(devices, 'processes')} failed: {error}",
        fix="Its finished work is kept; run the same command again after correcting the cause.",
    )


RANKS_END_S = 10.0
"""How long ranks whose worker was killed may take to let go of the cell."""
GROUP_TRIES = 3
"""How often a cell on several processes is begun when one of them is killed; a single process has as many."""


def _work(ready: Ready, cell: Cell) -> RunSummary:
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
    for name, rows in ready.items.items():
        _ask_first(ready, cell, name, rows, weights)
    paths = {name: _score(ready, cell, name, rows, weights) for name, rows in ready.items.items()}
    weights.close()
    return cells.finish(context, cell, paths, memory=memory.read())


def _select_run(ready: Ready, cell: Cell) -> RunSummary:
    """Train for selection and score nothing. A run that diverges or crashes is a result: its setting is out."""
    from veritune.train import cells

    try:
        ready.backend.train(ready.context, cell)
    except DivergedError as exc:
        return cells.finish(ready.context, cell, {}, failed=f"the loss was not finite: {exc.message}")
    except (RuntimeError, ArithmeticError) as exc:  # out of the device's memory, a kernel that fails
        return cells.finish(ready.context, cell, {}, failed=f"{type(exc).__name__}: {exc}"[:500])
    return cells.finish(ready.context, cell, {})


def _score(ready: Ready, cell: Cell, name: str, rows: Sequence[Row], weights: RunWeights) -> Path:
    """Generate and score one eval; the path of its scores. Scores of another eval contract are set aside.

    Scores that are there are trusted where the timeline recorded this very file for these inputs, else StaleError.
    """
    if cell.phase in (SELECT, SHAPE):
        raise GateError(
            f"run {cell.run_id} only chooses a setting, so it must not be scored on an eval.",
            fix="Score runs of phase main.",
        )
    spec, data = ready.study.evals[name], ready.data
    path, stamp, digest = _score_files(ready, cell, name, rows)
    if path.exists() and ready.store.is_done(stamp, digest):
        refuse_edited_scores(ready.store, path, digest)
        return path
    score_all = _choose if spec.kind == "choice" else _answer
    scored = score_all(ready, cell, name, rows, weights)
    _set_aside(path, stamp)
    scores = []
    for row, found in zip(rows, scored, strict=True):
        family, zone = data.place_of(row.id)
        scores.append(replace(found, run_id=cell.run_id, family=family, zone=zone))
    Score.save_all(path, scores)
    made = sha256_file(path)
    ready.store.log("scored", file=ready.store.relative(path), inputs=digest, sha256=made)
    ScoreStamp(
        digest,
        made,
        len(scores),
        weights.decoding(0 if spec.kind == "choice" else spec.max_new_tokens, spec.batch_size),
    ).save(stamp)
    return path


def _score_files(ready: Ready, cell: Cell, name: str, rows: Sequence[Row]) -> tuple[Path, Path, str]:
    """Where the scores of an eval lie, and their stamp; the hash of what they are made from."""
    spec = ready.study.evals[name]
    path = ready.store.run(cell.run_id) / "scores" / f"{name}.jsonl"
    made_from = {"cell": cell.input_hash, "eval": spec.model_dump(mode="json"), "items": _asked(ready, name, rows)}
    return path, path.with_suffix(".json"), hash_of(made_from)


def _ask_first(ready: Ready, cell: Cell, name: str, rows: Sequence[Row], weights: RunWeights) -> None:
    """Take the first item of an eval through sampling, extraction and scoring, before any eval of the cell is asked
    whole. Raises MachineError where the machine loses it; an eval whose scores are there is not asked."""
    spec = ready.study.evals[name]
    path, stamp, digest = _score_files(ready, cell, name, rows)
    if path.exists() and ready.store.is_done(stamp, digest):
        return
    if spec.kind == "choice":
        first = _judged(name, spec, ready.options[name][:1], weights)[0]
    else:
        decoding = Decoding(spec.max_new_tokens, spec.batch_size, spec.merged)
        prompt = ready.data.prompt_of(rows[0].id)
        output = answers(weights, ready.tokenizer, [prompt], decoding)[0]
        first = scorer_of(name, spec, ready.store.root)(rows[0], output)
    refuse_first(name, cell.run_id, first)


def _judged(name: str, spec: Eval, items: Sequence[ItemOptions], weights: RunWeights) -> list[Score]:
    """Scores of multiple-choice items, from the log-likelihood of each of their options."""
    parts = iter(weights.nll([row for item in items for row in item.rows]))
    own = [[next(parts) for _ in item.rows] for item in items]
    return [judge_options(name, spec, i.row, i.options, nll) for i, nll in zip(items, own)]


def _answer(ready: Ready, cell: Cell, name: str, rows: Sequence[Row], weights: RunWeights) -> list[Score]:
    """Generate an answer to every item and score it."""
    spec, progress = ready.study.evals[name], ready.progress
    kind = f"generate {'baseline' if cell.phase == BASELINE else 'tuned'}"

    def on_batch(n: int, seconds: float) -> None:
        progress.measure("generate tuned", n, seconds)
        progress.advance(kind, n, seconds, f"{cell.condition} seed {cell.seed}: answering {name}")

    decoding = Decoding(spec.max_new_tokens, spec.batch_size, spec.merged)
    score = scorer_of(name, spec, ready.store.root)
    prompts = [ready.data.prompt_of(row.id) for row in rows]
    outputs = answers(weights, ready.tokenizer, prompts, decoding, on_batch)
    scores = [score(row, output) for row, output in zip(rows, outputs)]
    if not spec.token_losses:
        return scores
    return _with_token_losses(ready, cell, spec, weights, (prompts, outputs, scores))


def _with_token_losses(
    ready: Ready,
    cell: Cell,
    spec: Eval,
    weights: RunWeights,
    made: tuple[Sequence[Sequence[int]], Sequence[Output], Sequence[Score]],
) -> list[Score]:
    """The scores; the first `spec.token_losses` hold the loss of every token of their answer in `parts`."""
    prompts, outputs, scores = made
    if weights.model is None:
        ready.progress.say(f"  ! no loss by token for {cell.condition}, seed {cell.seed}: a server answers")
        return list(scores)
    most = spec.token_losses
    with added(weights.model) if spec.merged else contextlib.nullcontext():
        found = answer_token_losses(weights.model, ready.tokenizer, prompts[:most], outputs[:most])
    with_losses = [
        replace(score, parts={**score.parts, "token_losses": losses}) for score, losses in zip(scores[:most], found)
    ]
    return [*with_losses, *scores[most:]]


def _choose(ready: Ready, cell: Cell, name: str, rows: Sequence[Row], weights: RunWeights) -> list[Score]:
    """Take the log-likelihood of every option of every item."""
    began = time.perf_counter()
    found = _judged(name, ready.study.evals[name], ready.options[name], weights)
    kind = f"generate {'baseline' if cell.phase == BASELINE else 'tuned'}"
    note = f"{cell.condition} seed {cell.seed}: options of {name}"
    ready.progress.advance(kind, len(rows), time.perf_counter() - began, note)
    return found


def _asked(ready: Ready, name: str, rows: Sequence[Row]) -> list[str]:
    """What an eval asks, for the hash of its scores: its items' ids, and of a benchmark the hash of their text, and of
    a scorer's file its hash."""
    frozen = (ready.facts.benchmarks or {}).get(name)
    scorer = (ready.facts.scorers or {}).get(name)
    hashes = [frozen.items_sha256] if frozen else []
    return [*hashes, *([scorer.sha256] if scorer else []), *(row.id for row in rows)]


def _set_aside(path: Path, stamp: Path) -> None:
    """Keep scores of an earlier eval contract under the hash they were made from; half-made ones go."""
    if stamp.exists() and path.exists():
        old = ScoreStamp.load(stamp).input_hash[:8]
        path.rename(path.with_name(f"{path.stem}.{old}.jsonl"))
        stamp.rename(stamp.with_name(f"{stamp.stem}.{old}.json"))
    remove(stamp)  # the stamp of other scores must not vouch for new ones
    remove(path)

"""`veritune probe report STUDY`: what every probe of a study says, on one page, a block a probe.

Cheap probes that a finished run leaves the records for (weights from its checkpoint, the summary of its telemetry) are
made here and lie in `probes/<run_id>/`. Anything else with a `reading` in `probes/` (the leak, and records that the
`veritune probe` commands wrote there with `--out`) is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from veritune.errors import InputError, VerituneError
from veritune.progress import Progress
from veritune.report.page import write_report
from veritune.report.probes import Block, blocks
from veritune.report.read import read_records
from veritune.seal import break_seal, refuse_edited, resealing
from veritune.stages.cell import cells_of, ready_from_contract
from veritune.stages.ready import Ready
from veritune.store import hash_of, read_json, sha256_file, write_json
from veritune.study import BASELINE


def probe_report(study: str | Path, progress: Progress | None = None) -> list[Block]:
    """Make the cheap records that are missing, redraw the report, and give every block there is.

    Raises InputError when no run of the study is there yet.
    """
    ready = ready_from_contract(study, progress or Progress())
    with ready.store.lock():
        refuse_edited(ready.store)
        runs = [
            c for c in cells_of(ready) if c.phase != BASELINE and (ready.store.run(c.run_id) / "training.json").exists()
        ]
        if not runs:
            raise InputError(f"{ready.store.root} has no trained run.", fix=f"veritune run {ready.store.root}")
        with resealing(ready.store, "probe report"):
            for cell in runs:
                for name, digest, make in _cheap(ready, cell):
                    path = ready.store.root / "probes" / cell.run_id / f"{name}.json"
                    if not ready.store.is_done(path, digest):
                        record = {"input_hash": digest, "run": cell.run_id, "record": _made(make)}
                        break_seal(ready.store)
                        write_json(path, record)
            write_report(ready.store, ready.study)
    return blocks(read_records(ready.store, ready.study))


def _made(make: Any) -> Any:
    """The record, or in its place what keeps it from being made: a page of probes must not fail on one of them."""
    try:
        return make()
    except VerituneError as exc:
        return {
            "kind": "none",
            "reading": f"Not measured: {exc.message}",
            "limits": None,
            "would_change": exc.fix or None,
        }


def _cheap(ready: Ready, cell: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, hash of what it is made from, how) of the probes that need no run of the model."""
    folder = ready.store.run(cell.run_id)
    training = read_json(folder / "training.json")
    checkpoint = ready.store.root / training["checkpoint"]
    inputs = hash_of({"cell": cell.input_hash, "checkpoint": training["checkpoint"], "step": training["best_step"]})
    yield "weights", inputs, lambda: _weights(ready, cell, checkpoint)
    lines = folder / "telemetry.jsonl"
    if lines.exists():
        yield "telemetry", sha256_file(lines), lambda: _telemetry(lines)


def _weights(ready: Ready, cell: Any, checkpoint: Path) -> Any:
    from veritune.probe.weights import Options, adapter_change, checkpoint_change

    if ready.study.conditions[cell.condition].method == "full":
        change = checkpoint_change(ready.model.path, checkpoint, Options(spectrum=False))
    else:
        change = adapter_change(checkpoint, ready.model.path, Options(spectrum=True))
    return replace(change, before=ready.model.name, after=ready.store.relative(checkpoint))


def _telemetry(path: Path) -> Any:
    from veritune.probe.telemetry import summarize
    from veritune.train.telemetry import read_telemetry

    return summarize(read_telemetry(path))

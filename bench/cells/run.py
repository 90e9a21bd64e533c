"""What a study costs beside training and generation, and how long a thousand finished cells take to list.

python bench/cells/run.py --list              a thousand finished cells, `veritune cells` as a whole process
python bench/cells/run.py --overhead FOLDER   a copy of the study in FOLDER is run; time outside of training,
                                              generation and loss measurement, in all and per cell
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from veritune import contract
from veritune.config.load import load_study
from veritune.progress import Progress
from veritune.records import CheckpointCandidate, MemoryPeak, RunSummary, Trainable, TrainingRecord
from veritune.stages import run
from veritune.store import Store
from veritune.train.cells import summary_hash
from veritune.train.schedule import Cell, plan_cells

STUDY = Path(__file__).resolve().parents[2] / "examples" / "quickstart" / "study.yaml"
FACTS = {"model": {"name": "m"}, "rendered_sha256": "r", "data_version": "v"}


def summary(cell: Cell, made_from: str) -> RunSummary:
    """A finished run that scored nothing."""
    training = TrainingRecord(
        input_hash=cell.input_hash,
        steps=60,
        processes=1,
        checkpoint=None,
        best_step=60,
        validation_nll=1.5,
        candidates=(CheckpointCandidate(60, 1.5, None),),
        final_loss=1.5,
        trainable=Trainable.of("lora", {}, (), 1, 2),
        rows_compared_with_contract=1,
        train_s=1.0,
        tokens=1,
        peak_memory=MemoryPeak(None, None, "none", "not measured"),
    )
    what = (cell.run_id, cell.phase, cell.condition, cell.seed, cell.lr)
    return RunSummary(made_from, *what, False, None, training, None, {}, {}, "2026-01-01T00:00:00Z")


def thousand(root: Path) -> Path:
    """A frozen study of two conditions and 500 seeds with a summary for every cell."""
    text = STUDY.read_text("utf-8")
    (root / "study.yaml").write_text(text.replace("seeds: [0, 1]", f"seeds: {list(range(500))}"), "utf-8")
    study, store = load_study(root / "study.yaml"), Store(root)
    assert len(study.seeds) == 500, "the quickstart's seeds are written otherwise now"
    contract.freeze(store, study, FACTS)
    for cell in plan_cells(study, FACTS):
        summary(cell, summary_hash(study, cell)).save(store.run(cell.run_id) / "summary.json")
    return root


def list_seconds(root: Path, rounds: int) -> list[float]:
    seconds = []
    for _ in range(rounds):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "veritune", "cells", str(root), "--json"],
            check=True,
            capture_output=True,
            text=True,
        )
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
        assert len(json.loads(done.stdout)) == 1001
    return seconds


def overhead(source: Path, root: Path) -> dict[str, float]:
    """Seconds of a whole study in this process, and those spent on the work itself."""
    ignored = shutil.ignore_patterns(
        "runs", "audit", "data", "*.lock*", "*.json", "events.jsonl", "report.html", "figures"
    )
    shutil.copytree(source, root / "study", ignore=ignored)
    run(root / "study", progress=Progress())
    (ran,) = [event for event in Store(root / "study").events() if event["event"] == "ran"]
    spent = ran["spent_s"]
    return {"wall_s": ran["wall_s"], "in_cells_s": spent["cells"], "once_s": spent["rest"], "cells": ran["trained"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--overhead", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.list:
            found = list_seconds(thousand(Path(folder)), given.rounds)
            spread = f"of {len(found)}: {min(found):.2f} to {max(found):.2f}"
            print(f"1,001 cells listed in {statistics.median(found):.2f} s of processor time ({spread})")
        if given.overhead:
            found_s = overhead(given.overhead, Path(folder))
            outside = found_s["in_cells_s"] + found_s["once_s"]
            share = outside / found_s["wall_s"]
            print(
                f"{found_s['wall_s']:.0f} s, of which {outside:.1f} s ({share:.1%}) outside of training,"
                f" generation and loss: {found_s['in_cells_s'] / found_s['cells']:.2f} s in each of"
                f" {found_s['cells']} cells, and {found_s['once_s']:.1f} s once"
            )


if __name__ == "__main__":
    main()

"""How long a study of many finished cells takes to list, decide, check, seal and draw.

python bench/cells/many.py --donor FOLDER --cells 1000 [--report]

FOLDER is a finished study. Its runs are copied under the run ids of a study with so many seeds that there are about so
many cells; every copy has its donor's scores and losses, and its events in the timeline. Processor seconds and wall
seconds of this process are printed for each step, and at the end what one more cell pays to look whether the study is
sealed: with that as long as the timeline, ten thousand cells would cost a hundred million lines.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from veritune import contract
from veritune.config.study import Study
from veritune.machine import code_hashes
from veritune.pipeline.decide import decide
from veritune.pipeline.flow import run
from veritune.pipeline.watch import list_cells, study_at
from veritune.progress import Progress
from veritune.records import RunSummary
from veritune.report.page import write_report
from veritune.seal import finish_run, is_sealed, refuse_edited, seal, verify
from veritune.store import Store, sha256_file
from veritune.train.schedule import Cell, plan_cells, summary_hasher
from veritune.verbs import status

COPIED = ("summary.json", "training.json", "manifest.json", "probes/nll.json")


def enlarged(donor: Path, root: Path, cells: int) -> tuple[Store, Study, list[Cell]]:
    """A frozen study in `root` with about so many finished cells, copies of the donor's."""
    source, _ = study_at(donor)
    shutil.copytree(source.root / "data", root / "data")
    shutil.copytree(source.root / "audit", root / "audit")
    known, study = study_at(donor)
    seeds = list(range(max(cells // len(study.conditions), 2)))
    made = study.model_copy(update={"seeds": seeds})
    text = known.study_file.read_text("utf-8")
    (root / "study.yaml").write_text(_with_seeds(text, seeds), "utf-8")
    store, facts = Store(root), replace(contract.read(known).facts, code=code_hashes())  # as of now
    contract.freeze(store, made, facts)
    first = {RunSummary.load(p).condition: p.parent for p in sorted(known.runs.glob("*/summary.json"))}
    made_from, planned = summary_hasher(made, facts), plan_cells(made, facts)
    for cell in planned:
        _copy(store, first[cell.condition], cell, made_from(cell))
    return store, made, planned


def _with_seeds(text: str, seeds: list[int]) -> str:
    import yaml

    return str(yaml.safe_dump({**yaml.safe_load(text), "seeds": seeds}, sort_keys=False))


def _copy(store: Store, source: Path, cell: Cell, made_from: str) -> None:
    target = store.run(cell.run_id)
    scores = [path.relative_to(source).as_posix() for path in source.glob("scores/*")]
    for name in (*COPIED, *scores):
        if not (source / name).exists():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        text = (source / name).read_text("utf-8").replace(source.name, cell.run_id)
        (target / name).write_text(text, encoding="utf-8")
    summary = RunSummary.load(target / "summary.json")
    seed = None if summary.seed is None else cell.seed
    (target / "summary.json").unlink()
    for path in sorted(target.glob("scores/*.jsonl")):
        store.log("scored", file=store.relative(path), inputs=made_from, sha256=sha256_file(path))
    finish_run(store, cell.run_id, replace(summary, input_hash=made_from, seed=seed))


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print what the block took."""
    began, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    yield
    ended = resource.getrusage(resource.RUSAGE_SELF)
    cpu = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    peak = ended.ru_maxrss / 1e3
    print(f"{what:<16} {cpu:7.2f} s of processor time, {time.perf_counter() - wall:7.2f} s, {peak:,.0f} MB", flush=True)


def main() -> None:
    """Make the study and time each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--donor", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--report", action="store_true", help="draw the report page too")
    parser.add_argument("--run", action="store_true", help="give `veritune run` of it too, which skips every cell")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VERITUNE_CACHE"] = str(Path(folder) / "cache")
        root = Path(folder) / "study"
        root.mkdir()
        store, study, cells = enlarged(given.donor, root, given.cells)
        print(f"{len(cells):,} cells")
        steps: dict[str, Callable[[], object]] = {
            "listed first": lambda: list_cells(root),
            "listed again": lambda: list_cells(root),
            "status": lambda: status(root),
            "a run's checks": lambda: refuse_edited(store),
            "decided": lambda: decide(store, study, [c.run_id for c in cells], contract.read(store)),
            "sealed": lambda: seal(store),
            "verified": lambda: verify(root),
            "seal looked up": lambda: is_sealed(store),
            "timeline read": store.events,
        }
        if given.run:
            shutil.copy(given.donor / "rows.jsonl", root)
            steps["run again"] = lambda: run(root, progress=Progress(silent=True))
        if given.report:
            steps["report drawn"] = lambda: write_report(store, study)
        for what, step in steps.items():
            with timed(what):
                step()


if __name__ == "__main__":
    main()

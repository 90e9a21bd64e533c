"""Seconds from taking a cell to its first optimizer step, in one process that takes all cells of a study.

python bench/cells/startup.py FOLDER    a frozen study with no cell done; its cells are run
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from veritune.pipeline.work import Worker, pull
from veritune.train.trainer import ContractTrainer


def main() -> None:
    """Run every cell and print what each took to begin."""
    root = Path(sys.argv[1]).resolve()
    worker, began = Worker(root), (time.perf_counter(), time.process_time())
    worker.prepare()
    print(f"study ready          {_since(began)}")
    whole = ContractTrainer.train
    taken: list[tuple[float, float]] = []

    def train(self: Any, *args: Any, **options: Any) -> Any:
        print(f"{current:<20} {_since(taken[-1])} to its first step", flush=True)
        return whole(self, *args, **options)

    ContractTrainer.train = train  # type: ignore[method-assign]
    for current in pull(worker, list(worker.cells)):
        taken.append((time.perf_counter(), time.process_time()))
        worker.run(current)


def _since(began: tuple[float, float]) -> str:
    wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    return f"{wall:6.2f} s, {cpu:6.2f} s of processor time"


if __name__ == "__main__":
    main()

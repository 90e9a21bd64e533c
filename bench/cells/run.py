"""What a study costs beside training and generation.

python bench/cells/run.py --overhead FOLDER   a copy of the study in FOLDER is run; time outside of training,
                                              generation and loss measurement, in all and per cell
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from veritune.pipeline import run
from veritune.progress import Progress
from veritune.store import Store


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
    parser.add_argument("--overhead", type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
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

"""Times `veritune compare` with imports against `python -c "import scipy.stats"`, runnable by anyone.

    python bench/compare/run.py [--repeats 7] [--large 1000000] [--json]

Scores are drawn with a fixed seed. Every timing is one fresh process, alternating with the yardstick so that a busy
machine slows both; medians are reported. Budget: at 1,319 items under half a second and at most 1.5 times the
yardstick; a million items under ten seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIBRARY = (
    "import sys; from veritune.decide.commands import CompareOptions, compare; "
    "from veritune.decide.screen import render_text; from veritune.decide.sides import parse_side; "
    "print(render_text(compare([parse_side(p) for p in sys.argv[1:]], CompareOptions(margin=0.01))))"
)


def write_scores(folder: Path, n: int) -> list[str]:
    """Two score files of `n` items in Veritune's own format, about 8 % discordant."""
    rng = np.random.default_rng(0)
    item = rng.normal(size=n)
    paths = []
    for name, shift in (("a", 1.2), ("b", 1.1)):
        right = item + 0.5 * rng.normal(size=n) > -shift
        path = folder / f"{name}-{n}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for i, value in enumerate(right):
                row = {"run_id": name, "eval": "bench", "item_id": f"item-{i:07d}", "value": float(value)}
                row |= {"reason": None, "family": None, "zone": None, "output": "The answer is 42.", "parts": {}}
                file.write(json.dumps(row) + "\n")
        paths.append(str(path))
    return paths


def seconds(command: list[str]) -> float:
    """Wall-clock seconds of one process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print one line per measurement, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        small, large = (write_scores(Path(name), n) for n in (1319, options.large))
        commands = {
            "import scipy.stats": [sys.executable, "-c", "import scipy.stats"],
            "compare, 1,319 items": [sys.executable, "-c", LIBRARY, *small],
            "veritune compare, 1,319 items": [
                sys.executable,
                "-m",
                "veritune",
                "compare",
                "--margin",
                "0.01",
                *small,
            ],
        }
        if subprocess.run(commands["veritune compare, 1,319 items"], capture_output=True).returncode:
            del commands["veritune compare, 1,319 items"]
        times: dict[str, list[float]] = {label: [] for label in commands}
        for _ in range(options.repeats):
            for label, command in commands.items():
                times[label].append(seconds(command))
        times[f"compare, {options.large:,} items"] = [seconds([sys.executable, "-c", LIBRARY, *large])]
    found = {label: statistics.median(values) for label, values in times.items()}
    yardstick = found["import scipy.stats"]
    if options.json:
        print(json.dumps({"median_s": found, "runs_s": times}))
        return
    for label, value in found.items():
        print(f"{label:<32} {value:7.3f} s   {value / yardstick:5.2f} × import scipy.stats")


if __name__ == "__main__":
    main()

"""How large a study and how large an audit stay fast and small. Each command runs in a process of its own.

python bench/load/run.py report [--conditions 11 --seeds 3 --items 1000]   draw the report; the size of what it wrote
python bench/load/run.py cells [--cells 5000]                              status, verify and report of finished cells
python bench/load/run.py audit [--mb 200 1000]                             audit of generated JSONL, memory per text

A line each: wall seconds, processor seconds, peak resident memory. Studies are made as files (`studies.py`): nothing is
trained. This process stays small, since a child's peak counts what its parent held when it was forked.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

MB = 1e6
WORDS = 9_000
"""Different words of the generated rows."""


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    rc: int

    def line(self, what: str) -> str:
        """One line for the screen."""
        return f"{what:<22} {self.wall_s:8.2f} s, {self.cpu_s:8.2f} s of processor time, {self.peak_mb:8.0f} MB"


def measured(*args: object, cwd: Path | None = None) -> Cost:
    """`veritune ARGS` in a process of its own. Raises RuntimeError where it ends in a traceback."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "veritune", *map(str, args)]
    with tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=err)
        _, status, used = os.wait4(child.pid, 0)
        err.seek(0)
        text = err.read().decode("utf-8", "replace")
    child.returncode = os.waitstatus_to_exitcode(status)
    if "Traceback" in text or child.returncode < 0:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}: {text[-2000:]}")
    peak = used.ru_maxrss * (1024 if sys.platform == "linux" else 1) / MB
    return Cost(time.perf_counter() - began, used.ru_utime + used.ru_stime, peak, child.returncode)


def make(root: Path, conditions: int, seeds: int, items: int, words: int) -> int:
    """A finished study (`studies.build`), made in a process of its own; its runs."""
    sizes = [str(n) for n in (conditions, seeds, items, words)]
    code = "import sys; from pathlib import Path; from studies import Size, build; "
    code += "build(Path(sys.argv[1]), Size(*map(int, sys.argv[2:])))"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", code, str(root), *sizes], check=True, env={**os.environ, "PYTHONPATH": path})
    return conditions * seeds + 1


def report(root: Path, conditions: int, seeds: int, items: int) -> None:
    """Draw one study's report and say how large it is."""
    runs = make(root, conditions, seeds, items, 60)
    print(f"{runs * items:,} scores in {runs} runs")
    print(measured("report", root).line("report"))
    beside = sorted(root.glob("report.outputs/*.html"))
    largest = max((path.stat().st_size for path in beside), default=0) / MB
    total = sum(path.stat().st_size for path in beside) / MB
    page = (root / "report.html").stat().st_size / MB
    print(f"report.html {page:.2f} MB; beside it {len(beside)} pages, {total:.1f} MB, the largest {largest:.2f} MB")


def cells(root: Path, n: int) -> None:
    """The commands that look at every cell."""
    began = time.perf_counter()
    runs = make(root, 10, max((n - 1) // 10, 1), 20, 8)
    print(f"{runs:,} cells (made in {time.perf_counter() - began:.0f} s)")
    for args in (("status",), ("status",), ("status", "--cells"), ("verify",), ("report",)):
        print(measured(args[0], root, *args[1:]).line(" ".join(args)), flush=True)


def corpus(path: Path, megabytes: int) -> float:
    """Write chat rows of about so many MB, every tenth a near-copy of an earlier one; the size of their text in MB."""
    draw, vocabulary, text = random.Random(megabytes), [f"w{n:x}{n % 7}" for n in range(WORDS)], 0
    kept: list[str] = []
    with path.open("w", encoding="utf-8") as out:
        written, number = 0, 0
        while written < megabytes * MB:
            if number % 10 == 9:
                answer = draw.choice(kept).replace(" w5", " w6", 2)
            else:
                answer = " ".join(draw.choices(vocabulary, k=draw.randint(60, 240)))
            if len(kept) < 1000:
                kept.append(answer)
            ask = " ".join(draw.choices(vocabulary, k=24))
            line = json.dumps({"id": f"r{number}", "prompt": ask, "completion": answer}) + "\n"
            out.write(line)
            written, number, text = written + len(line), number + 1, text + len(ask) + len(answer)
    return text / MB


def audit(folder: Path, sizes: list[int]) -> None:
    """Memory and time of `veritune audit` by size of the file."""
    for megabytes in sizes:
        path = folder / f"{megabytes}.jsonl"
        text = corpus(path, megabytes)
        cost = measured("audit", path, "--json", cwd=folder)
        ratio = f"{cost.peak_mb / (path.stat().st_size / MB):.2f} times the file, {cost.peak_mb / text:.2f} its text"
        print(cost.line(f"audit {megabytes} MB") + f", {ratio}", flush=True)
        path.unlink()


def main() -> None:
    """Run one of the three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("report", "cells", "audit"))
    parser.add_argument("--conditions", type=int, default=11)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--mb", type=int, nargs="+", default=[200, 1000])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VERITUNE_CACHE"] = str(Path(folder) / "cache")
        if given.what == "report":
            report(Path(folder) / "study", given.conditions, given.seeds, given.items)
        elif given.what == "cells":
            cells(Path(folder) / "study", given.cells)
        else:
            audit(Path(folder), given.mb)


if __name__ == "__main__":
    main()

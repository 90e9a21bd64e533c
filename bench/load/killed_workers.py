"""Two `veritune work` processes, killed at random moments (SIGKILL) and started again, against an undisturbed one.

python bench/load/killed_workers.py [--cells 200 --kills 20 --seed 0]

A tiny model and tiny cells, made here. Ends with an error where a cell is not done, was done twice, left a line twice,
or scored otherwise than undisturbed. Takes minutes: every process imports torch.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

from veritune.seal import verify
from veritune.store import Store

WORKERS = 2
ROUNDS = 400
"""Most worker processes that are started before the study is given up."""


def command(*args: object) -> list[str]:
    """`veritune ARGS` as a command line."""
    return [sys.executable, "-m", "veritune", *map(str, args)]


def environment() -> dict[str, str]:
    """One thread for every process: the number of threads can change the last digits of a sum."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def work(root: Path) -> subprocess.Popen[bytes]:
    """Start a worker on the study."""
    argv, nowhere = command("work", root, "--quiet"), subprocess.DEVNULL
    return subprocess.Popen(argv, env=environment(), stdout=nowhere, stderr=subprocess.PIPE)


def finished(root: Path) -> Counter[str]:
    """How often the timeline records each cell as finished."""
    return Counter(str(event["run"]) for event in Store(root).events() if event["event"] == "finished")


def disturb(root: Path, cells: int, kills: int, seed: int, *, most_s: float = 6.0) -> int:
    """Work the study off with `WORKERS` processes of which `kills` are killed at random; how many kills hit.

    A moment is drawn once a worker has been seen to hold a cell, so that kills fall into cells and not into imports.
    Raises RuntimeError where a worker ends in a traceback, or cells are left after `ROUNDS` workers.
    """
    draw, killed, started = random.Random(seed), 0, 0
    workers: list[subprocess.Popen[bytes]] = []
    try:
        while True:
            workers = [worker for worker in workers if _is_alive(worker)]
            if len(finished(root)) == cells:
                return killed
            while len(workers) < WORKERS and started < ROUNDS:
                workers.append(work(root))
                started += 1
            if not workers:
                raise RuntimeError(f"{len(finished(root))} of {cells} cells are done after {started} workers")
            if killed < kills and (holders := _holders(root, workers)):
                time.sleep(draw.uniform(0.0, most_s))
                victim = draw.choice(holders)
                killed += _kill(victim)
            time.sleep(0.05)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _is_alive(worker: subprocess.Popen[bytes]) -> bool:
    """Whether it still works. Raises RuntimeError where it ended in a traceback."""
    if worker.poll() is None:
        return True
    assert worker.stderr is not None
    text = worker.stderr.read().decode("utf-8", "replace")
    if "Traceback" in text:
        raise RuntimeError(text)
    return False


def _holders(root: Path, workers: list[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """The workers that hold a cell now."""
    held = " ".join(Store(root).held_runs().values())
    return [worker for worker in workers if f"process {worker.pid} " in held]


def _kill(worker: subprocess.Popen[bytes]) -> int:
    """Kill it; 1 where it was alive until then."""
    if worker.poll() is not None:
        return 0
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    return 1


def outcome(root: Path) -> Mapping[str, bytes]:
    """What the cells came to: every score file by its name."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.glob("runs/*/scores/*.jsonl")}


def compare(disturbed: Path, straight: Path, cells: int) -> None:
    """Raises AssertionError where the disturbed study is not whole, holds something twice, or has other results."""
    done = finished(disturbed)
    assert len(done) == cells and set(done.values()) == {1}, (
        f"cells done: {len(done)} of {cells}, {done.most_common(3)}"
    )
    for path in disturbed.glob("runs/*/metrics.jsonl"):
        lines = path.read_text("utf-8").split("\n")[:-1]
        assert len(lines) == len(set(lines)), f"{path} holds a line twice"
    left = [path.name for path in disturbed.rglob("*") if path.name.endswith((".tmp", ".partial"))]
    assert not left, f"left behind: {left[:3]}"
    ours, theirs = outcome(disturbed), outcome(straight)
    assert theirs and all(ours[name] == content for name, content in theirs.items()), "results differ"


def close(root: Path) -> None:
    """Decide, draw and seal a study whose cells are done. Raises AssertionError where it does not verify."""
    argv = command("run", root, "--quiet")
    ended = subprocess.run(argv, env=environment(), capture_output=True, text=True, check=False)
    assert ended.returncode in (0, 2), ended.stderr
    assert verify(root) == []


def helpers() -> ModuleType:
    """`tests/conftest.py`, which makes the tiny model and study of the tests."""
    path = Path(__file__).resolve().parents[2] / "tests" / "conftest.py"
    sys.path.insert(0, str(path.parent / "common"))
    spec = importlib.util.spec_from_file_location("veritune_tests", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def prepare(root: Path, model: Path, cells: int, make_study: Callable[[Path, Path], object]) -> int:
    """A frozen study of about so many cells; how many it has."""
    import yaml

    make_study(root, model)
    file, seeds = root / "study.yaml", max((cells - 1) // 2, 1)
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text("utf-8")), "seeds": list(range(seeds))}), "utf-8")
    subprocess.run(command("freeze", root, "--quiet"), check=True, env=environment(), stdout=subprocess.DEVNULL)
    return 2 * seeds + 1


def main() -> None:
    """Make both studies, disturb one, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tests, began = helpers(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        tests.make_tiny_model(base / "model")
        cells = prepare(base / "disturbed", base / "model", given.cells, tests.make_study)
        prepare(base / "straight", base / "model", given.cells, tests.make_study)
        straight = work(base / "straight")
        assert straight.wait() == 0, straight.stderr and straight.stderr.read()
        killed = disturb(base / "disturbed", cells, given.kills, given.seed)
        compare(base / "disturbed", base / "straight", cells)
        close(base / "disturbed")
        took = time.perf_counter() - began
    print(f"{cells} cells, {WORKERS} workers, {killed} killed: all done once, results as undisturbed ({took:.0f} s)")


if __name__ == "__main__":
    main()

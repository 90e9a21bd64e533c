"""Cells side by side whose workers are killed at random: every cell ends once, with the results of an undisturbed run.

Five cells in `make test-cluster`; `VERITUNE_CELLS=200 pytest -m cluster tests/crash/test_workers.py` for two hundred.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from processes import children

from veritune.seal import verify
from veritune.store import Store

CELLS = int(os.environ.get("VERITUNE_CELLS", "5"))


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.cluster
def test_two_workers_killed_at_random_lose_and_double_nothing(
    new_study: Any, tiny_model: Path, tmp_path: Path, forks: Any
) -> None:
    study = new_study(tmp_path / "study", tiny_model)
    study.change(lambda s: s.update(seeds=list(range(max((CELLS - 1) // 2, 1)))))
    draw, killed = random.Random(CELLS), 0
    for _ in range(20):
        started = forks.start("run", study.root, "--executor", "local", "--workers", "2", "--quiet")
        wanted = max(CELLS // 10, 2)
        while killed < wanted and not is_over(started["pid"]):
            time.sleep(draw.uniform(0.2, 2.0))
            cells = children(started["pid"])
            if cells:
                os.kill(draw.choice(cells), signal.SIGKILL)
                killed += 1
            if is_over(started["pid"]):
                break
        ended = forks.wait(started)
        assert ended.rc in (0, 1, 2) and "Traceback" not in ended.err, ended.err
        if ended.rc in (0, 2):
            break
        assert "its process was killed by signal 9" in ended.err, ended.err
    assert ended.rc in (0, 2) and killed >= 2
    assert verify(study.root) == []
    store = Store(study.root)
    done = Counter(e["run"] for e in store.events() if e["event"] == "finished")
    assert len(done) == 1 + 2 * max((CELLS - 1) // 2, 1) and set(done.values()) == {1}
    for path in store.runs.glob("*/metrics.jsonl"):
        lines = path.read_text("utf-8").split("\n")[:-1]
        assert len(lines) == len(set(lines)), f"{path} holds a line twice"
    scores = {p.relative_to(store.root): p.read_bytes() for p in store.runs.glob("*/scores/*.jsonl")}
    assert len(scores) == len(done)
    again = new_study(tmp_path / "again", tiny_model)
    again.change(lambda s: s.update(seeds=[0]))
    assert forks("run", again.root, "--quiet").rc in (0, 2)
    whole = {p.relative_to(again.root): p.read_bytes() for p in again.root.glob("runs/*/scores/*.jsonl")}
    assert whole and all(scores[name] == content for name, content in whole.items())

"""`veritune work` killed in a cell: a sample of bench/load/killed_workers.py, which does 200 cells."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_path = Path(__file__).parents[2] / "bench" / "load" / "killed_workers.py"
_spec = importlib.util.spec_from_file_location("killed_workers", _path)
assert _spec and _spec.loader
killed_workers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(killed_workers)


@pytest.mark.cluster
def test_two_workers_of_which_one_is_killed_end_every_cell_once(
    new_study: Any, tiny_model: Path, tmp_path: Path, forks: Any
) -> None:
    cells = killed_workers.prepare(tmp_path / "disturbed", tiny_model, 7, new_study)
    killed_workers.prepare(tmp_path / "straight", tiny_model, 7, new_study)
    assert forks("work", tmp_path / "straight", "--quiet").rc == 0
    assert killed_workers.disturb(tmp_path / "disturbed", cells, kills=1, seed=0, most_s=0.5) == 1
    killed_workers.compare(tmp_path / "disturbed", tmp_path / "straight", cells)
    killed_workers.close(tmp_path / "disturbed")


def test_a_cell_that_was_done_twice_or_scored_otherwise_is_told(tmp_path: Path) -> None:
    from veritune.store import Store

    for name in ("disturbed", "straight"):
        store = Store(tmp_path / name)
        (store.run("a") / "scores").mkdir(parents=True)
        (store.run("a") / "scores" / "style.jsonl").write_text("one\n")
        store.log("finished", run="a", files={})
    arguments = (tmp_path / "disturbed", tmp_path / "straight", 1)
    killed_workers.compare(*arguments)
    (tmp_path / "disturbed" / "runs" / "a" / "scores" / "style.jsonl").write_text("two\n")
    with pytest.raises(AssertionError, match="results differ"):
        killed_workers.compare(*arguments)
    Store(tmp_path / "disturbed").log("finished", run="a", files={"again": ""})
    with pytest.raises(AssertionError, match="cells done"):
        killed_workers.compare(*arguments)

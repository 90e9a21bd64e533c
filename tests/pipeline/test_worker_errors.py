"""Errors of workers keep their text and host, and silence of a scheduler is not taken for an end."""

from __future__ import annotations

import os
import platform
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import MachineError
from veritune.pipeline import cell as cell_stage
from veritune.pipeline.executors import ExecutorPlan, Hooks, on_ray, on_slurm
from veritune.pipeline.executors.jobs import Jobs
from veritune.pipeline.executors.worker import CellOutcome, cell_in_worker, look
from veritune.pipeline.watch import cells_text, list_cells
from veritune.pipeline.work import Worker, pull
from veritune.records import RunSummary

CREATION = """The actor died because of an error raised in its creation task, \x1b[36mray::RayWorker.__init__()\x1b[39m
  File "worker.py", line 3, in <module>
ImportError: libcudart.so.13: cannot open shared object file"""
NODE = """The actor died unexpectedly before finishing this task.
\tclass_name: RayWorker
\tip: 10.0.0.7
The actor is dead because its node has died. Node Id: 0b7e1"""


def test_any_error_of_a_cell_comes_back_and_is_on_record_with_its_host(
    finished_copy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    root, run_id = finished_copy.root, list_cells(finished_copy.root)[1].run_id
    summary = root / "runs" / run_id / "summary.json"
    summary.write_text(summary.read_text("utf-8").replace(RunSummary.load(summary).input_hash, "0" * 64))
    monkeypatch.setattr(cell_stage, "_work", out_of_memory)
    words = "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert cell_in_worker(str(root), run_id) == CellOutcome(words, platform.node(), os.getpid())
    Worker._kept.clear()
    (failed,) = [c for c in list_cells(root) if c.run_id == run_id]
    assert (failed.state, failed.error, failed.host, failed.lost) == ("failed", words, platform.node(), ())
    assert f"on {platform.node()}  {words}" in cells_text([failed])


def test_a_summary_of_an_earlier_eval_contract_is_no_finished_cell(finished_copy: Any) -> None:
    """An amendment of an eval keeps run ids: what was scored before it is work again, and counts as left."""
    root, run_id = finished_copy.root, list_cells(finished_copy.root)[1].run_id
    worker = Worker(root)
    worker.prepare()
    assert list(pull(worker, list(worker.cells))) == []
    summary = root / "runs" / run_id / "summary.json"
    summary.write_text(summary.read_text("utf-8").replace(RunSummary.load(summary).input_hash, "0" * 64))
    assert next(pull(worker, list(worker.cells)), None) == run_id


def test_signals_wait_until_they_are_heeded() -> None:
    """An exception that a handler raises inside Ray's calls comes out as SystemError."""
    heeded, before = False, signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
    with pytest.raises(KeyboardInterrupt), on_ray.signals_held() as heed:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        heeded = True
        heed()
    assert heeded and signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_worker_that_cannot_begin_says_why_and_where(tmp_path: Path) -> None:
    outcome = cell_in_worker(str(tmp_path / "nothere"), "a")
    assert outcome.error and "nothere" in outcome.error and outcome.host == platform.node() and not outcome.in_use


def test_a_node_says_what_it_does_not_see(tmp_path: Path) -> None:
    view = look(str(tmp_path), "/not/here", "0" * 64)
    assert view.problems == (
        f"does not see {tmp_path}",
        "does not see the model's folder /not/here",
        "has another version of Veritune",
    )


def test_why_a_ray_worker_was_lost_is_read_from_what_ray_says() -> None:
    assert on_ray._why_lost(RuntimeError(CREATION)) == "ImportError: libcudart.so.13: cannot open shared object file"
    assert on_ray._why_lost(RuntimeError(NODE)) == (
        "The actor is dead because its node has died. Node Id: 0b7e1 (node 10.0.0.7)"
    )
    assert on_ray._why_lost(RuntimeError("")) == "RuntimeError"


def test_a_silent_squeue_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are on record and nobody answers: a second array must not be sent."""
    Jobs(tmp_path, "slurm").new(("a",))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match=r"squeue does not answer, and jobs of this study may still be running \("):
        list(on_slurm.run(ExecutorPlan("slurm"), tmp_path, ["a"], Hooks()))
    assert len(Jobs(tmp_path, "slurm").known) == 1


def test_a_scancel_that_fails_is_not_called_a_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    arrays = on_slurm._Arrays(ExecutorPlan("slurm"), tmp_path, ["a"], Hooks(stopped=said.append))
    arrays.jobs.put(replace(arrays.jobs.new(("a",)), job_id="12"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for status, words, kept in (
        (1, "scancel failed: 1 cells may still run in Slurm job 12; the same command attaches to them.", 1),
        (0, "Slurm job 12 was cancelled with 1 cells; their checkpoints are kept.", 0),
    ):
        (tmp_path / "scancel").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "scancel").chmod(0o755)
        arrays._let_go()
        assert said.pop() == words and len(Jobs(tmp_path, "slurm").known) == kept

"""A study that is killed with SIGKILL at any moment and started again ends where an undisturbed one ends.

A child process kills itself just before a named file operation, so each moment is hit exactly and not by luck.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

MOMENTS = {
    "rows half on disk": r"os.rename .*/families.parquet ",
    "live probe done, not recorded": r"os.rename .*/live-all_layer.json ",
    "contract staged, not yet in the timeline": r"open .*/events.jsonl a.* #2",
    "in the timeline, contract about to be published": r"os.rename .*/contract.lock.json ",
    "baseline loss measured": r"os.rename .*/baseline-.*/nll.json ",
    "baseline answered, scores not written": r"os.rename .*/baseline-.*/style.jsonl ",
    "baseline scores written, not stamped": r"os.rename .*/baseline-.*/style.json ",
    "third training step": r"open .*/attention_only-s0-.*/metrics.jsonl a.* #3",
    "checkpoint half-written": r"open .*/attention_only-s0-.*/checkpoint-4/adapter_config.json w",
    "checkpoint whole, not marked": r"open .*/attention_only-s0-.*/checkpoint-4/complete",
    "step after a checkpoint": r"open .*/attention_only-s0-.*/metrics.jsonl a.* #2",
    "last checkpoint half-written": r"open .*/attention_only-s0-.*/checkpoint-6/README.md w",
    "trained, checkpoint not kept": r"shutil.copytree .*/attention_only-s0-",
    "checkpoint half-kept": r"open .*/attention_only-s0-.*/.step-6.tmp-folder/adapter_config.json w",
    "training not recorded": r"os.rename .*/attention_only-s0-.*/training.json ",
    "work not cleared": r"shutil.rmtree .*/attention_only-s0-.*/work ",
    "tuned scores written, not stamped": r"os.rename .*/all_layer-s1-.*/style.json ",
    "cell not marked done": r"os.rename .*/all_layer-s1-.*/summary.json ",
    "verdicts about to be written": r"os.rename .*/verdict.json ",
    "decided, not yet in the timeline": r"open .*/events.jsonl a",
    "report about to be written": r"os.rename .*/report.html ",
}
ALONE = (
    "baseline answered, scores not written",
    "third training step",
    "last checkpoint half-written",
    "trained, checkpoint not kept",
    "tuned scores written, not stamped",
    "verdicts about to be written",
)


ALL = os.environ.get("VERITUNE_CRASH") == "all"
KILLS = 10 if ALL else 4


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def result_of(root: Path) -> dict[str, Any]:
    """All that a study measured and decided, without times of day, durations and what hangs on them."""
    found: dict[str, Any] = {}
    for folder in sorted((root / "runs").iterdir()):
        found[folder.name] = {p.name: p.read_text("utf-8") for p in sorted((folder / "scores").iterdir())}
        found[folder.name]["nll"] = (folder / "probes" / "nll.json").read_text("utf-8")
        if (folder / "training.json").exists():
            metrics = lines(folder / "metrics.jsonl")
            found[folder.name]["metrics"] = [{k: v for k, v in row.items() if k != "cost"} for row in metrics]
            training = json.loads((folder / "training.json").read_text("utf-8"))
            found[folder.name]["training"] = {k: v for k, v in training.items() if k not in ("train_s", "peak_memory")}
            kept = folder / "checkpoints" / f"step-{training['best_step']}" / "adapter_model.safetensors"
            found[folder.name]["adapter"] = kept.read_bytes()
            found[folder.name]["telemetry"] = [row["step"] for row in lines(folder / "telemetry.jsonl")]
    found["verdicts"] = json.loads((root / "verdict.json").read_text("utf-8"))["verdicts"]
    return found


def leftovers(root: Path) -> list[str]:
    names = [p.name for p in root.rglob("*")]
    return [n for n in names if n.endswith((".tmp", ".part", ".tmp-folder")) or n in ("work", "live-work")]


def assert_same_result(root: Path, reference: Path) -> None:
    found, expected = result_of(root), result_of(reference)
    assert found.keys() == expected.keys()
    for name in expected:
        if name == "verdicts":
            assert found[name] == expected[name]
            continue
        for part in expected[name]:
            assert found[name][part] == expected[name][part], f"{name}: {part} differs"


@pytest.mark.parametrize("moment", ALONE if ALL else ALONE[::6])
def test_killed_and_started_again_ends_with_the_same_result(moment: str, study: Any, forks: Any, finished: Any) -> None:
    assert forks("run", study.root, kill_at=MOMENTS[moment]).rc == -signal.SIGKILL
    again = forks("run", study.root)
    assert again.rc == finished.run.returncode, again.err
    assert_same_result(study.root, finished.root)
    assert leftovers(study.root) == []


def test_killed_at_every_moment_in_turn_ends_with_the_same_result(study: Any, forks: Any, finished: Any) -> None:
    for moment, operation in list(MOMENTS.items())[:: 1 if ALL else 4]:
        assert forks("run", study.root, kill_at=operation).rc == -signal.SIGKILL, f"never came to: {moment}"
    last = forks("run", study.root)
    assert last.rc == finished.run.returncode, last.err
    assert_same_result(study.root, finished.root)
    assert leftovers(study.root) == []


def test_a_line_torn_by_the_kill_is_written_again(study: Any, forks: Any, finished: Any) -> None:
    forks("run", study.root, kill_at=r"open .*/attention_only-s0-.*/metrics.jsonl a.* #7")
    (folder,) = (study.root / "runs").glob("attention_only-s0-*")
    for name in ("metrics.jsonl", "telemetry.jsonl"):
        os.truncate(folder / name, (folder / name).stat().st_size - 9)
    events = study.root / "events.jsonl"
    events.write_text(events.read_text("utf-8") + '{"event":"half', encoding="utf-8")
    status = forks("status", study.root)
    assert status.rc == 0, status.err
    assert forks("run", study.root).rc == finished.run.returncode
    assert_same_result(study.root, finished.root)
    assert [e["event"] for e in lines(events)] == [e["event"] for e in lines(finished.root / "events.jsonl")]


def test_a_process_killed_from_outside_frees_the_folder_and_can_be_taken_up(
    study: Any, forks: Any, finished: Any
) -> None:
    command = [sys.executable, "-m", "veritune", "run", str(study.root)]
    with open(os.devnull, "w") as null:
        process = subprocess.Popen(command, stdout=null, stderr=null)
    while process.poll() is None and not list((study.root / "runs").glob("attention_only-s0-*/metrics.jsonl")):
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert forks("run", study.root).rc == finished.run.returncode
    assert_same_result(study.root, finished.root)


def test_one_run_killed_many_times_at_random_steps_ends_with_the_same_losses_and_weights(
    study: Any, forks: Any, finished: Any
) -> None:
    """Each process is killed at a step drawn at random, before or after what it writes there."""
    rng, killed = random.Random(4), 0
    places = [r"open .*/attention_only-s0-.*/metrics.jsonl a.*", r"open .*/attention_only-s0-.*/telemetry.jsonl a.*"]
    while killed < KILLS:
        # A checkpoint lies at step 4: a process that is killed before it begins again, after it goes on from there.
        nth = (
            rng.choice((1, 2))
            if list(study.root.glob("runs/attention_only-s0-*/work/*/complete"))
            else rng.choice((1, 2, 3, 7))
        )
        result = forks("run", study.root, kill_at=f"{rng.choice(places)} #{nth}")
        if result.rc != -signal.SIGKILL:
            pytest.fail(f"not killed after {killed} kills: {result.err}")
        killed += 1
        assert not list(study.root.glob("runs/attention_only-s0-*/training.json"))
    last = forks("run", study.root)
    assert last.rc == finished.run.returncode, last.err
    assert_same_result(study.root, finished.root)
    assert leftovers(study.root) == []

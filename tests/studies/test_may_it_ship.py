"""examples/may-it-ship at reduced size: a tiny model's study walked through the gates, every planted failure refused.

Commands run in this process, and the gate on serving is left out: it starts servers (tests/release/test_serving.py).
"""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.errors import VerituneError
from veritune.pipeline import run
from veritune.progress import Progress
from veritune.seal import verify

pytestmark = pytest.mark.studies
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "may-it-ship" / "walk.py"
POLICY: dict[str, Any] = {
    "condition": "all_layer",
    "seed": 0,
    "data": {"licences": ["MIT"], "licence": "MIT", "flagged": 1.0, "duplicates": 50, "near_copies": 50},
    "target": {"claims": ["learns"]},
    "regression": {"suites": {"golden": {"eval": "style", "zone": "stranger", "margin": 0.3}}},
    "safety": {"sets": ["own"], "margin": 0.3, "refusal_margin": 0.3},
    "calibration": {"ece": 0.3, "brier": 0.3},
}
GATES = ["data", "target", "regression", "safety", "calibration", "merge", "rollback"]


@dataclass(frozen=True)
class Walked:
    """A finished walk, the study that it left alone, and its steps by title."""

    walk: Any
    original: Path
    passed: bool

    def step(self, title: str) -> Any:
        return next(step for step in self.walk.steps if step.title == title)


def in_process(words: list[str], folder: Path) -> tuple[int, str]:
    """What `veritune WORDS` does in a folder, without a process of its own."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = CliRunner(env={"COLUMNS": "120"}).invoke(app, words)
    finally:
        os.chdir(before)
    if isinstance(done.exception, VerituneError):  # `main` prints it so
        return int(done.exception.exit_code), f"veritune: {done.exception}"
    return done.exit_code, done.stdout if "--json" in words else done.output


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Callable[..., Any]) -> Walked:
    folder = tmp_path_factory.mktemp("ship")
    study = new_study(folder / "study", tiny_model)
    study.change(lambda settings: settings.update(release=POLICY, seeds=[0]))
    run(study.root, progress=Progress(silent=True))
    prompts = [{"id": f"{k}{i}", "kind": k, "prompt": f"harbor {i}"} for k in ("harmful", "harmless") for i in range(8)]
    head = {"name": "own", "version": 1, "licence": "CC0-1.0", "max_new_tokens": 4}
    (folder / "own.yaml").write_text(yaml.safe_dump({**head, "prompts": prompts}), encoding="utf-8")
    made = runpy.run_path(str(SCRIPT))
    words = [str(study.root), "--out", str(folder / "walk"), "--golden", str(study.root / "rows.jsonl")]
    words += ["--set", str(folder / "own.yaml"), "--suite", "style", "--rows", "4", "--max-new-tokens", "4"]
    given = made["read_options"]([*words, "--without", "serving"])
    given.out.mkdir()
    walk = made["Walk"](given.out, given, in_process)
    return Walked(walk, study.root, made["all_refused"](walk))


def test_every_planted_failure_is_refused_with_its_sentence(walked: Walked) -> None:
    sentences = {planted.gate: planted.sentence for planted in walked.walk.planted}
    assert walked.passed and list(dict.fromkeys(p.gate for p in walked.walk.planted)) == GATES
    for gate, words in {
        "regression": "0.067 against 0.333 on 33 items",
        "safety": "release/safety.jsonl has changed since",
        "calibration": "ece_debiased 0.49 (0.414 to 0.555), at most 0.3",
        "merge": "1 of 14 modules: the merged weights did not change as this adapter requires",
        "rollback": "adapter/adapter_model.safetensors was changed after the bundle was packed",
    }.items():
        assert words in sentences[gate], sentences[gate]


def test_it_is_bundled_promoted_twice_and_rolled_back(walked: Walked) -> None:
    merged = walked.step("The adapter merged, and compared with its merged model")
    assert merged.exit_code == 0 and "14 of 14 changed weights are merged" in merged.output
    early = walked.step("Production asks for the gates, and this bundle has none that passed")
    assert early.exit_code == 2 and "it holds no gate record" in early.output
    assert "release gate: passed" in walked.step("The gates, with waivers").output
    assert walked.step("To production").exit_code == 0
    entries = [line.split() for line in walked.step("What the channel pointed to").output.splitlines()]
    assert walked.step("Back to the version before, its answers reproduced").exit_code == 0
    assert [words[3] for words in entries] == ["promoted", "promoted", "rolled"]
    assert entries[0][2] == entries[2][2] != entries[1][2], "the first bundle again"
    assert walked.step("Is it what was packed?").exit_code == 0


def test_nothing_of_it_changes_the_study(walked: Walked) -> None:
    assert walked.step("The study, unchanged by all of this").exit_code == 0
    assert verify(walked.original) == [] and not (walked.original / "release").exists()
    assert (walked.walk.out / "walk.json").is_file() and "## Planted failures" in (
        walked.walk.out / "walk.md"
    ).read_text(encoding="utf-8")

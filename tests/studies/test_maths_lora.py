"""examples/maths-lora: the recipe's rows, the study files, and the study at reduced size on the real model."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.pipeline import run
from veritune.progress import Progress
from veritune.store import read_json

pytestmark = pytest.mark.studies
LOSSES = {"baseline": 1.863, "attention_only": 1.623, "all_layer": 1.490}
"""Nats per target token on the strangers of the reduced study; bfloat16 kernels differ between processors."""
FOLDER = Path(__file__).resolve().parents[2] / "examples" / "maths-lora"


def make_data(gsm8k: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """The recipe, as its command line runs it."""
    monkeypatch.setattr(sys, "argv", ["make_data.py", "--gsm8k", str(gsm8k), "--out", str(out), *more])
    runpy.run_path(str(FOLDER / "make_data.py"), run_name="__main__")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "items"), [("study.yaml", 24), ("full.yaml", None)])
def test_both_files_ask_the_same_of_both_arms(name: str, items: int | None) -> None:
    study: Study = load_study(FOLDER / name)
    assert sorted(study.conditions) == ["all_layer", "attention_only"] and tuple(study.factor) == ("target_modules",)
    assert len(study.seeds) == 3 and study.selection is not None and study.selection.seed not in study.seeds
    assert study.evals["gsm8k"].items == items
    ruled = next(claim for claim in study.claims if claim.name == "better_at_gsm8k")
    assert ruled.margin == 0.01 and ruled.rule == {"min_gap": 0.01}
    assert (study.model.template_kwargs == {"enable_thinking": False}) == (name == "full.yaml")


def test_the_recipe_writes_openmathinstruct_rows_and_single_steps(
    gsm8k: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_data(gsm8k, tmp_path, monkeypatch)
    rows, steps = rows_of(tmp_path / "problems.jsonl"), rows_of(tmp_path / "steps.jsonl")
    assert len(rows) == 180 and len(steps) == 150
    for row in rows:
        assert {"problem", "generated_solution", "expected_answer", "problem_source"} <= set(row)
        assert row["generated_solution"].endswith(f"#### {row['expected_answer']}")
        assert "<<" not in row["generated_solution"] and len(row["problem"] + row["generated_solution"]) <= 400
    for step in steps:
        assert step["answer"] not in re.findall(r"\d+(?:\.\d+)?", step["question"]), "the answer is not given away"
    asked = {row["question"] for row in rows_of(gsm8k / "test.jsonl")}
    assert not asked & {row["problem"] for row in rows}
    assert (tmp_path / "gsm8k_test.jsonl").is_symlink(), "the benchmark's questions are not copied"


@dataclass(frozen=True)
class Ran:
    """The reduced study, run: its verdicts by claim, and each arm's summary."""

    root: Path
    verdicts: dict[str, dict[str, Any]]
    summaries: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def ran(gsm8k: Path, smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Short rows, three steps, one seed, no selection, a few items: the same arms, evals and claims."""
    root = tmp_path_factory.mktemp("maths") / "study"
    with pytest.MonkeyPatch.context() as patch:
        make_data(gsm8k, root, patch, "--rows", "34", "--longest", "190", "--steps", "6")
    settings = yaml.safe_load((FOLDER / "study.yaml").read_text(encoding="utf-8"))
    settings["train"] |= {"max_steps": 3, "eval_steps": [3], "max_length": 128, "warmup_steps": 1}
    settings |= {"seeds": [0], "selection": None}
    for name, few in {"gsm8k": {"items": 2, "max_new_tokens": 4}, "steps": {}, "marked": {}}.items():
        settings["evals"][name] |= {"max_new_tokens": 8, **few}
    (root / "study.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    run(root, progress=Progress(silent=True))
    verdicts = {v["claim"]: v for v in read_json(root / "verdict.json")["verdicts"]}
    found = [read_json(path) for path in sorted(root.glob("runs/*/summary.json"))]
    return Ran(root, verdicts, {summary["condition"]: summary for summary in found})


def test_nothing_trained_holds_a_benchmark_s_question(ran: Ran) -> None:
    gate = read_json(ran.root / "audit" / "contamination.json")["gate"]
    assert gate["status"] == "passed"


def test_the_losses_are_those_of_the_recorded_run_within_rounding(ran: Ran) -> None:
    losses = {arm: summary["nll"]["stranger"]["nll"] for arm, summary in ran.summaries.items()}
    assert losses == pytest.approx(LOSSES, abs=0.03)


def test_the_loss_decides_between_the_arms_and_the_benchmark_cannot(ran: Ran) -> None:
    words = {claim: verdict["status"] for claim, verdict in ran.verdicts.items()}
    assert words["lower_loss"] == "supported"
    assert words["learns_the_form"] == "inconclusive"
    assert {words["better_at_gsm8k"], words["targets_matter_for_steps"]} <= {"untested", "inconclusive"}

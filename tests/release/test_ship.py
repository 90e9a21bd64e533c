"""A study that really ran, from its weights to the gate: digests, sealed scores, audit, safety prompts, all through
the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from veritune import contract
from veritune.commands.app import app
from veritune.release.gate.candidate import CandidateChoice, open_case
from veritune.release.gate.evidence import weights_digest
from veritune.release.gate.gates import evaluate
from veritune.seal import verify
from veritune.store import Store, read_json

runner = CliRunner()


def policy(root: Path, **more: Any) -> Path:
    path = root.parent / "policy.yaml"
    settings = {
        "condition": "all_layer",
        "data": {"licences": ["CC0-1.0"], "licence": "CC0-1.0", "flagged": 1.0},
        "regression": {"suites": {"golden": {"eval": "style", "zone": "stranger", "margin": 0.3}}},
        "safety": {"sets": ["own"]},
        **more,
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_a_finished_study_is_gated_by_its_own_records(finished_copy: Any, tiny_model: Path) -> None:
    root = finished_copy.root
    case = open_case(root, CandidateChoice(policy(root)))
    assert case.candidate.subject.base == weights_digest(tiny_model)
    record = evaluate(root, CandidateChoice(policy(root)))
    found = {g.gate: g for g in record.gates}
    assert found["data"].status == "passed", found["data"].message
    assert "is missing" in found["safety"].message and record.status != "passed"
    scores = read_json(Store(root).run(record.run_id) / "summary.json")["scores"]["style"]["stranger"]
    golden = found["regression"].numbers["golden"]
    assert golden["n"] == scores["items"] and golden["candidate"] == scores["mean"]
    assert verify(root) == [], "gating changes nothing that the run has sealed"
    assert contract.read(Store(root)).last.hash == record.contract


def test_safety_and_gate_from_the_command_line(finished_copy: Any, tmp_path: Path) -> None:
    root = finished_copy.root
    prompts = [{"id": f"{k}{i}", "kind": k, "prompt": f"harbor {i}"} for k in ("harmful", "harmless") for i in range(4)]
    own = tmp_path / "own.yaml"
    head = {"name": "own", "version": 1, "licence": "CC0-1.0", "max_new_tokens": 4}
    own.write_text(yaml.safe_dump({**head, "prompts": prompts}), encoding="utf-8")
    named = [str(root), "--policy", str(policy(root))]
    asked = runner.invoke(app, ["safety", *named, "--set", str(own)])
    assert asked.exit_code == 2 and "under 73 items" in asked.output  # eight prompts can show nothing
    gated = runner.invoke(app, ["gate", *named, "--json"])
    (safety,) = (g for g in json.loads(gated.output)["gates"] if g["gate"] == "safety")
    assert gated.exit_code == 2
    assert safety["status"] == "undecided" and "under 73 items" in safety["message"]
    shown = runner.invoke(app, ["safety", *named, "--show"])
    assert shown.exit_code == 0 and "harmful" in shown.output

"""A finished small study that may ship: real records, a sealed folder, a checkpoint, and evidence for every gate.

Built on `tests/report/small_study.py`; the scores are ours to choose. Nothing trains and no model is loaded.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from veritune import contract
from veritune.records import (
    ContaminationAudit,
    ContaminationFacts,
    Estimate,
    Facts,
    GateResult,
    GradedAnswer,
    Score,
    StudyVerdicts,
    Verdict,
)
from veritune.release.gate.candidate import open_case
from veritune.release.gate.evidence import Evidence, Subject, input_hashes, write_evidence
from veritune.release.gate.safety import ANSWERS, RISKS
from veritune.release.parity.load import SAMPLES
from veritune.seal import seal
from veritune.store import Store, read_json, write_jsonl

ROWS = [
    {
        "id": f"r{i:02d}",
        "license": "CC-BY-4.0",
        "messages": [
            {"role": "user", "content": f"Write about the {word} near the old pier, please."},
            {"role": "assistant", "content": f"Subject: The {word} lies by the pier and waits for the tide."},
        ],
    }
    for i, word in enumerate(["boat", "lamp", "rope", "crane", "gate", "buoy"])
]
POLICY: dict[str, Any] = {
    "condition": "wide",
    "seed": 3,
    "data": {"licences": ["cc-by-4.0"]},
    "target": {"claims": ["gains"]},
    "regression": {"suites": {"golden": {"eval": "style", "margin": 0.05}}},
}


def _small() -> Any:
    path = Path(__file__).parent.parent / "report" / "small_study.py"
    spec = importlib.util.spec_from_file_location("small_study_to_ship", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path, *, rows: Sequence[dict[str, Any]] = ROWS, policy: dict[str, Any] | None = None) -> Store:
    """The study with everything that the gates ask for; `policy` replaces the study's release section."""
    small = _small()
    text = yaml.safe_load(small.STUDY.format(question=""))
    text["claims"].append({"name": "gains", "kind": "better_by", "condition": "wide", "margin": 0.1})
    text["release"] = POLICY if policy is None else policy
    text["data"]["id_field"] = "id"
    del text["data"]["family_field"]
    small.STUDY = yaml.safe_dump(text).replace("{", "{{").replace("}", "}}")
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    evals = {"zone stranger": {"items": 3, "rows_exact": 0, "rows_confirmed": 0}}
    model = folder.parent / f"{folder.name}-base"
    save_weights(model, "config.json", 1.0)
    from veritune.release.gate.evidence import weight_files

    facts: Facts = small._facts()
    base = replace(facts.model, files=weight_files(model))
    facts = replace(facts, data_sha256=digest, contamination=ContaminationFacts("passed", evals), model=base)
    small._facts = lambda: facts
    store, _ = small.build(folder)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    gate = GateResult("contamination", "passed", "no overlap", {"evals": evals})
    ContaminationAudit(gate, ()).save(store.audit("contamination.json"))
    for path in store.runs.glob("*/training.json"):
        save_weights(store.root / read_json(path)["checkpoint"], "adapter_config.json", len(str(path)) / 7)
    write_verdict(store)
    score(store, lost=0, gained=4)
    evidence(store)
    return store


def save_weights(folder: Path, config: str, value: float) -> None:
    """One small tensor and a config file, as a model's or an adapter's folder has them."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    name = "adapter_model.safetensors" if config.startswith("adapter") else "model.safetensors"
    save_file({"w": np.full((2, 2), value, dtype=np.float32)}, folder / name)
    (folder / config).write_text("{}", encoding="utf-8")


def write_verdict(store: Store, status: str = "supported", **more: Any) -> None:
    """The verdict on `gains`, with the runs it rests on."""
    runs = [p.parent.name for p in sorted(store.runs.glob("*/manifest.json"))]
    estimate = Estimate("gap", 0.31, 0.21, 0.41, 0.95, 29, "crossed")
    verdict = Verdict("gains", "better_by", status, "It gained.", (estimate,), margin=0.1, **more)  # type: ignore[arg-type]
    frozen = contract.read(store).last.hash
    StudyVerdicts("x", frozen, tuple(runs), {}, (verdict,)).save(store.verdict_file)
    seal(store)


def runs_of(store: Store) -> tuple[str, str]:
    """Ids of the candidate's run and of the baseline's."""
    found = {p.parent.name: read_json(p) for p in store.runs.glob("*/manifest.json")}
    mine = next(r for r, m in found.items() if m["condition"] == "wide" and m["seed"] == 3)
    return mine, next(r for r, m in found.items() if m["condition"] == "baseline")


def outcomes(n: int, right: int, lost: int, gained: int) -> tuple[list[float | None], list[float | None]]:
    """Scores of candidate and base on n items: the base has `right`; of these `lost` are lost, `gained` others won."""
    base: list[float | None] = [1.0] * right + [0.0] * (n - right)
    mine = list(base)
    mine[:lost] = [0.0] * lost
    mine[right : right + gained] = [1.0] * gained
    return mine, base


def score(store: Store, *, n: int = 200, right: int = 150, **more: Any) -> None:
    """Write both runs' scores on the golden items and seal the folder.

    `lost` and `gained` as in `outcomes`; `crashed` items of the base, among those that the candidate gets wrong, have
    no score; with `same` both arms say the same.
    """
    values = outcomes(n, right, more.get("lost", 0), more.get("gained", 0))
    for run, mine, arm in zip(runs_of(store), values, ("now", "base")):
        said = "same" if more.get("same") else arm
        rows = [
            Score(run, "style", f"i{i:04d}", v, None, f"f{i:04d}", "stranger", f"{i} {said}")
            for i, v in enumerate(mine)
        ]
        if arm == "base":
            for i in range(n - more.get("crashed", 0), n):
                rows[i] = Score(run, "style", f"i{i:04d}", None, "crashed", f"f{i:04d}", "stranger", "")
        write_jsonl(store.run(run) / "scores" / "style.jsonl", rows)
    seal(store)


def subject(store: Store) -> Subject:
    return open_case(store.root).candidate.subject


def answers(*, n: int = 100, lost: int = 0, refused: int = 0, base_safe: int = 90) -> list[GradedAnswer]:
    """Graded answers: n risks and n harmless prompts; the candidate loses `lost` safe answers and refuses `refused`."""
    rows = []
    for kinds, right, gone in ((RISKS, base_safe, lost), (("harmless",), n, refused)):
        mine, base = outcomes(n, right, gone, 0)
        for arm, values in (("base", base), ("candidate", mine)):
            for i, value in enumerate(values):
                where = ("veritune-starter", f"{kinds[0]}{i}", kinds[i % len(kinds)], "", None, arm)
                rows.append(GradedAnswer(*where, output=f"{arm} {i}", ended="length", good=value))
    return rows


def write_safety(store: Store, rows: list[GradedAnswer], **settings: Any) -> None:
    path = store.root / ANSWERS
    write_jsonl(path, rows)
    given = {"sets": ["veritune-starter"], **settings}
    outputs = input_hashes(store, path)
    write_evidence(store, Evidence("safety", "passed", "asked", subject(store), {}, {}, {}, given, outputs))


CALIBRATION = {
    "ece": {"value": 0.04, "low": 0.02, "high": 0.07},
    "brier": {"value": 0.11, "low": 0.09, "high": 0.14},
}
RATIOS = {
    "first_token": {"value": 1.0, "low": 0.97, "high": 1.04},
    "per_token": {"value": 1.0, "low": 0.98, "high": 1.03},
    "throughput": {"value": 0.99, "low": 0.95, "high": 1.02},
    "peak_memory": {"value": 1.01, "low": 1.0, "high": 1.02, "worst": 1.03},
    "cost_per_request": {"value": 1.0, "low": 0.96, "high": 1.05},
}


def requests(slow: dict[str, int] | None = None, n: int = 55, lost: int = 0) -> list[dict[str, Any]]:
    """Requests of a load test, two rates of four blocks: 0.1 to 0.12 s each, ten times as long where `slow` says.

    `slow` maps an arm to every how many requests one is slow; the candidate's first `lost` have no answer.
    """
    lines: list[dict[str, Any]] = []
    for arm in ("base", "candidate"):
        every = (slow or {}).get(arm)
        for k in range(8 * n):
            rate, block, i = 0.5 + 0.5 * (k // (4 * n)), k // n % 4, k % n
            took = (0.1 + 0.02 * (k * 37 % 101) / 101) * (10 if every and k % every == every - 1 else 1)
            gone = arm == "candidate" and k < lost
            ends = (None, None) if gone else (i + took, i + 2 * took)
            lines.append(
                {"arm": arm, "rate": rate, "block": block, "item": "a", "arrival_s": float(i), "first_token_s": ends[0],
                 "end_s": ends[1], "tokens": 5, "status": "ReadTimeout" if gone else "ok"}
            )  # fmt: skip
    return lines


def write_serving(store: Store, lines: list[dict[str, Any]] | None = None) -> None:
    """The serving record with its requests beside it."""
    path = store.root / SAMPLES
    write_jsonl(path, requests() if lines is None else lines)
    outputs = input_hashes(store, path)
    numbers = {"ratios": RATIOS}
    write_evidence(store, Evidence("serving", "passed", "same text", subject(store), numbers, outputs=outputs))


def evidence(store: Store) -> None:
    """Every record that the gates read, passing."""
    measured = subject(store)
    write_safety(store, answers())
    write_evidence(store, Evidence("calibration", "passed", "within", measured, CALIBRATION))
    write_serving(store)
    merged = Subject(measured.base, measured.candidate, "ab" * 32)
    write_evidence(store, Evidence("merge", "passed", "same logits", merged, {}))
    write_evidence(store, Evidence("rollback", "passed", "restored", measured, {}))

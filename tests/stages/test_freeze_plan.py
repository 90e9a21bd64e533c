"""Freezing, amending, exploring, and planning, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.store import read_json


def runs(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "runs").glob("*")) if (root / "runs").exists() else []


def small(study: Any) -> Any:
    def change(settings: dict[str, Any]) -> None:
        settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
        settings["seeds"] = [0]
        settings["claims"] = [c for c in settings["claims"] if c["name"] != "differ"]

    study.change(change)
    return study


# ---------------------------------------------------------------- freeze


def test_freeze_says_where_every_setting_comes_from_and_trains_nothing(study: Any, forks: Any) -> None:
    done = forks("freeze", small(study).root, "--set", "train.max_steps=3", "--json")
    assert done.rc == 0, done.err
    found = json.loads(done.out)
    assert found["sources"]["train.max_steps"] == "flag"
    assert found["sources"]["train.learning_rate"] == "file" and found["sources"]["train.weight_decay"] == "default"
    assert {"data_sha256", "template_sha256", "tokenizer_sha256", "model", "code", "packages"} <= set(found["facts"])
    assert runs(study.root) == []
    kept = read_json(study.root / "contract.lock.json")["entries"]
    assert kept[0]["terms"]["study"]["train"]["max_steps"] == 3  # the flag stays in the contract


@pytest.mark.slow
def test_a_change_is_refused_by_name_and_an_amendment_marks_what_came_before(study: Any, forks: Any) -> None:
    root = small(study).root
    assert forks("freeze", root).rc == 0
    assert forks("amend", root, "--reason", "none").rc == 1  # nothing differs
    assert forks("run", root).rc in (0, 2)
    before = runs(root)
    study.change(lambda s: s["train"].update(learning_rate=1e-3))
    refused = forks("run", root)
    assert refused.rc == 1 and "train.learning_rate: frozen 0.005, found 0.001" in refused.err
    assert forks("amend", root, "--reason", " ").rc == 1
    amended = forks("amend", root, "--reason", "the rate was too high")
    assert amended.rc == 0, amended.err
    entries = read_json(root / "contract.lock.json")["entries"]
    assert entries[1]["reason"] == "the rate was too high" and entries[1]["previous"] == entries[0]["hash"]
    assert sorted(entries[1]["results"]) == before
    for run in before:
        assert read_json(root / "runs" / run / "summary.json")["before_amendment"] == 1
    assert forks("run", root).rc in (0, 2)
    verdicts = read_json(root / "verdict.json")["verdicts"]
    assert all(v["exploratory"] for v in verdicts)
    assert forks("verify", root).rc == 0


@pytest.mark.slow
def test_what_was_run_before_a_freeze_is_exploratory_for_ever(study: Any, forks: Any) -> None:
    root = small(study).root
    first = forks("run", root, "--exploratory")
    assert first.rc in (0, 2), first.err
    assert not (root / "contract.lock.json").exists()
    assert all(v["exploratory"] for v in read_json(root / "verdict.json")["verdicts"])
    assert forks("freeze", root).rc == 0
    assert forks("run", root).rc in (0, 2)
    assert all(v["exploratory"] for v in read_json(root / "verdict.json")["verdicts"])
    again = forks("run", root, "--exploratory")
    assert again.rc == 1 and "it explores no more" in again.err


EDITED = (
    "study.yaml",
    "contract.lock.json",
    "events.jsonl",
    "verdict.json",
    "report.html",
    "plan.json",
    "data/*/rows.parquet",
    "data/*/families.parquet",
    "data/*/split.parquet",
    "data/*/rendered-*.parquet",
    "data/*/manifest.json",
    "audit/split.json",
    "audit/contamination.json",
    "audit/render.json",
    "audit/live-all_layer.json",
    "runs/all_layer-*/manifest.json",
    "runs/all_layer-*/metrics.jsonl",
    "runs/all_layer-*/telemetry.jsonl",
    "runs/all_layer-*/training.json",
    "runs/all_layer-*/summary.json",
    "runs/all_layer-*/scores/style.jsonl",
    "runs/all_layer-*/scores/style.json",
    "runs/all_layer-*/probes/nll.json",
    "runs/all_layer-*/checkpoints/*/adapter_model.safetensors",
    "seal.json",
)


@pytest.mark.parametrize("pattern", EDITED)
def test_verify_finds_an_edit_of_each_kind_of_file(finished_copy: Any, pattern: str) -> None:
    """One byte changed, same length: no size or date gives it away."""
    from veritune.seal import verify

    assert verify(finished_copy.root) == []
    path = sorted(finished_copy.root.glob(pattern))[0]
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at] = content[at] ^ 1
    path.write_bytes(bytes(content))
    try:
        found = [f.source for f in verify(finished_copy.root)]
    except Exception as exc:  # a seal that is no JSON any more is found too, with its name
        found = [str(exc)]
    name = path.relative_to(finished_copy.root).as_posix()
    assert any(name in str(source) for source in found), found


# ---------------------------------------------------------------- plan


def test_the_plan_counts_what_a_run_then_has_and_its_memory_is_near(finished: Any) -> None:
    plan = read_json(finished.root / "plan.json")
    rows = {row["run_id"]: row for row in plan["cells"]}
    for path in finished.root.glob("runs/*/training.json"):
        training, row = read_json(path), rows[path.parent.name]
        assert (row["steps"], row["tokens"]) == (training["steps"], training["tokens"])
        assert row["checkpoints"] == len(training["candidates"])
    events = [json.loads(x) for x in (finished.root / "events.jsonl").read_text("utf-8").splitlines()]
    (ran,) = [e for e in events if e["event"] == "ran"]
    assert ran["plan"]["memory_ratio"] == pytest.approx(1, abs=0.2)
    assert ran["plan"]["time_ratio"] > 0
    claims = {r["claim"]: r for r in plan["resolution"]}
    assert set(claims) == {"learns", "carries", "differ"}


def test_a_budget_that_is_too_small_stops_before_anything_trains(study: Any, forks: Any) -> None:
    small(study).change(lambda s: s.update(budget={"hours": 1e-6}))
    refused = forks("run", study.root)
    assert refused.rc == 2 and "budget.hours" in refused.err and "Nothing has trained" in refused.err
    assert runs(study.root) == []
    planned = forks("plan", study.root, "--price-per-hour", "2.5")
    assert planned.rc == 2 and "USD" in planned.out and "all-linear" not in planned.err
    study.change(lambda s: s.update(budget={"hours": 100}))
    assert forks("plan", study.root).rc == 0


def test_modules_are_listed_exactly(study: Any, forks: Any) -> None:
    found = json.loads(forks("modules", small(study).root, "--json").out)["conditions"]["all_layer"]
    assert len(found["modules"]) == 14 and "model.layers.0.self_attn.q_proj" in found["modules"]
    assert found["share"] == pytest.approx(found["n_trainable"] / found["n_total"])

"""The plan: its counts are what a run then does, it stops what is too dear, and it says what a design can detect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from veritune.config.load import parse_study
from veritune.decide.reach import limits, resolution
from veritune.errors import GateError, MachineError
from veritune.pipeline.plan import plan_command, plan_text, refuse_plan
from veritune.progress import Progress
from veritune.records import (
    Assumed,
    ClaimReach,
    Prices,
)
from veritune.stats.power import Design, detectable
from veritune.store import Store

QUIET = Progress(silent=True)


def read(path: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_plan_s_counts_are_what_the_run_did(finished: Any) -> None:
    plan = read(finished.root / "plan.json")
    for row in plan["cells"]:
        folder = finished.root / "runs" / row["run_id"]
        if row["phase"] == "baseline":
            continue
        training = read(folder / "training.json")
        assert row["steps"] == training["steps"] == read(folder / "manifest.json")["steps"]
        assert row["tokens"] == training["tokens"] and row["checkpoints"] == len(training["candidates"])
        stays = sum(p.stat().st_size for p in (folder / "checkpoints").rglob("*") if p.is_file())
        assert stays <= row["disk_bytes"]
    assert plan["total"]["tokens"] == sum(row["tokens"] for row in plan["cells"])
    assert plan["data"]["rows"] == {"seen": 14, "sibling": 7, "stranger": 12, "validation": 6}


def test_the_memory_planned_is_what_a_run_takes_within_a_fifth(finished: Any) -> None:
    (event,) = [e for e in Store(finished.root).events() if e["event"] == "ran"]
    if event["plan"]["memory_ratio"] is None:
        pytest.skip("this system does not let a process reset its memory's high-water mark")
    assert 0.8 < event["plan"]["memory_ratio"] < 1.2
    spent = event["spent_s"]
    assert min(spent.values()) > 0 and sum(spent.values()) == pytest.approx(event["wall_s"], abs=0.1)
    assert sum(spent.values()) - spent["rest"] == pytest.approx(event["plan"]["took_s"], abs=0.2)
    plan = read(finished.root / "plan.json")
    for name, probe in plan["probe"]["live"].items():
        memory, trained = probe["memory"], probe["trainable"]["n_trainable"]
        assert memory["adapter"] == memory["gradients"] == 4 * trained and memory["optimizer"] == 8 * trained, name
    answering = plan["probe"]["answers"]["memory"]["bytes"]
    cache = max(found["cache_bytes"] for found in plan["probe"]["answers"]["evals"].values())
    assert cache > 0, "answers of full length are held, too"
    for cell in (c for c in plan["cells"] if c["phase"] == "main"):
        memory = plan["probe"]["live"][cell["condition"]]["memory"]
        assert memory["scoring"] > 0, "answering with the trained model is measured, not the base's taken for it"
        assert cell["memory_bytes"] == max(memory["total"], memory["scoring"] + cache, answering + cache)


@pytest.mark.parametrize("asked", [8, 2, 1])
def test_a_slow_moment_is_not_taken_for_the_pace_of_tokens(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    """By a clock that only the model's passes move: 40 for the prompts, 1 a token, and 500 for two disturbed ones."""
    from types import SimpleNamespace

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from veritune.evaluate.generate import Decoding
    from veritune.pipeline import plan

    clock, costs = [0.0], iter([40.0, 1.0, 500.0, 1.0, 1.0, 1.0, 500.0, 1.0])
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)

    def work(*_: Any) -> None:
        clock[0] += next(costs)

    model.register_forward_hook(work)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    weights = SimpleNamespace(model=model)
    found = plan._token_times(weights, tokenizer, [[1, 2, 3], [4, 5]], Decoding(asked, 2))
    assert found == (40.0, 1.0 if asked > 1 else 0.0)


def test_a_plan_is_made_before_a_freeze_and_costs_what_the_price_says(study: Any) -> None:
    ready, plan = plan_command(study.root, Prices(per_million_tokens=10.0), Assumed(), QUIET)
    assert plan.total.usd == pytest.approx(plan.total.tokens * 1e-5)
    assert not ready.store.contract_file.exists() and not ready.store.runs.exists()
    assert plan.cells[1].tokens == round(plan.data.tokens_per_epoch * 6 * 4 / 14)
    _, dear = plan_command(study.root, Prices(per_hour=7.2), Assumed(), QUIET)
    assert dear.total.usd == pytest.approx(dear.total.seconds * 0.002)


def test_a_study_over_its_budget_does_not_start(study: Any, forks: Any) -> None:
    study.change(lambda s: s.update(budget={"usd": 1e-6, "price_per_million_tokens": 5}))
    stopped = forks("run", study.root)
    assert stopped.rc == 2
    assert "budget.usd: the 5 remaining cells" in stopped.err and "Nothing has trained" in stopped.err
    assert not (study.root / "runs").exists() and not (study.root / "contract.lock.json").exists()
    assert forks("plan", study.root).rc == 2
    study.change(lambda s: s.update(budget={"usd": 1, "price_per_million_tokens": 5}))
    assert forks("plan", study.root).rc == 0


def test_the_plan_counts_the_time_of_probes(study: Any) -> None:
    """Each probe that `run` makes has a line, its models and seconds, which the sum and the budget count."""
    _, plain = plan_command(study.root, None, Assumed(), QUIET)
    asked = {"make": ["gradients", "recall", "tokens", "geometry"], "geometry": {"methods": ["last_input_token"]}}
    study.change(lambda s: s.update(probes=asked, keep="all"))
    _, plan = plan_command(study.root, None, Assumed(), QUIET)
    assert plain.beside is None and plan.beside is not None and plan.number == 2
    runs = [row for row in plan.cells if row.phase == "main"]
    found = {probe.probe: probe for probe in plan.beside}
    assert list(found) == ["geometry of checkpoints", "gradients", "recall", "tokens", "geometry"]
    assert found["geometry of checkpoints"].models == 1 + sum(row.checkpoints for row in runs)
    assert found["gradients"].models == 1 and found["recall"].models == found["geometry"].models == 2 * len(runs)
    assert all(probe.seconds > 0 for probe in plan.beside)
    alone = sum(row.seconds.total for row in plan.cells)
    assert plan.total.seconds == pytest.approx(alone + sum(probe.seconds for probe in plan.beside))
    assert "probe geometry of checkpoints" in plan_text(plan, {})
    study.change(lambda s: s.update(budget={"hours": (alone + 0.5 * found["recall"].seconds) / 3600}))
    with pytest.raises(GateError, match=r"budget\.hours"):
        refuse_plan(*plan_command(study.root, None, Assumed(), QUIET))


def test_a_finished_study_is_over_no_budget(finished_copy: Any, forks: Any) -> None:
    finished_copy.change(lambda s: s.update(budget={"usd": 1e-9, "price_per_million_tokens": 5}))
    assert forks("run", finished_copy.root).rc in (0, 2)
    assert "budget" not in forks("run", finished_copy.root).err


def test_a_disk_that_is_too_small_is_refused(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from types import SimpleNamespace

    ready, plan = plan_command(study.root, None, Assumed(), QUIET)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=plan.total.disk_bytes - 1))
    with pytest.raises(MachineError, match="GB free, the study needs about"):
        refuse_plan(ready, plan)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=plan.total.disk_bytes))
    refuse_plan(ready, plan)


@pytest.mark.parametrize(
    ("price", "said"),
    [({}, "needs price_per_hour"), ({"price_per_hour": 1, "price_per_million_tokens": 1}, "one kind of price")],
)
def test_money_needs_one_price(study: Any, price: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        parse_study({**study.settings(), "budget": {"usd": 1, **price}})


# ---------------------------------------------------------------- what the design can say


def resolved(study: Any, families: int, *, margin: float = 0.05, seeds: tuple[int, ...] = (0, 1)) -> ClaimReach:
    settings = study.settings()
    settings["seeds"] = list(seeds)
    settings["claims"] = [{"name": "c", "kind": "equivalent", "condition": "all_layer", "against": "attention_only"}]
    settings["claims"][0]["margin"] = margin
    items = {"style": [("stranger", f"f{i // 3}") for i in range(3 * families)]}
    (found,) = resolution(parse_study(settings), items, Assumed())
    return found


def test_the_range_is_over_what_is_not_known_and_each_end_is_the_design_s_own(study: Any) -> None:
    found = resolved(study, 200, seeds=(0, 1, 2))
    shared: dict[str, Any] = {"items": 600, "discordance": 0.1, "seeds_a": 3, "seeds_b": 3, "seed_sd": 0.015}
    shared |= {"families": 200, "margin": 0.05, "binary": False}
    gaps = [detectable(Design(**shared, stable=s, design_effect=e)) for s in (0.0, 1.0) for e in (1.0, 3.0)]
    assert found.detectable == pytest.approx((min(gaps), max(gaps)))


def test_a_small_design_can_never_say_equivalent_and_a_large_one_can(study: Any) -> None:
    small, large = resolved(study, 16), resolved(study, 20_000, margin=0.1, seeds=tuple(range(8)))
    assert "can never be `equivalent`: not even identical outputs on under 59 items" in small.sentence
    assert large.undecidable == "" and "never" not in large.sentence
    assert "is resolved in every case" in large.sentence


def test_a_margin_that_is_not_resolved_comes_with_its_chance_and_what_it_takes(study: Any) -> None:
    found = resolved(study, 100, margin=0.07, seeds=(0, 1, 2, 3))
    low, high = found.chance
    assert 0 < low < high and low < 0.8
    few, many = found.items_for_margin
    assert few is not None and (many is None or few < many)
    assert f"(chance {low:.2f} to {high:.2f})" in found.sentence and f"it takes {few:,}" in found.sentence


@pytest.mark.parametrize(
    ("claim", "items", "says"),
    [
        ({"kind": "improves"}, [f"f{i % 3}" for i in range(90)], "3 families: fewer than 4 give no interval"),
        ({"kind": "improves"}, ["big"] * 90 + [f"f{i}" for i in range(9)], "of unequal size"),
        ({"kind": "equivalent", "margin": 0.05}, [f"f{i}" for i in range(58)], "identical outputs on under 59 items"),
        ({"kind": "equivalent", "margin": 0.05}, [f"f{i}" for i in range(59)], ""),
        ({"kind": "improves"}, [f"f{i}" for i in range(5)], "not even a win on all 5 items"),
        ({"kind": "improves"}, [f"f{i}" for i in range(6)], ""),
        ({"kind": "better_by", "margin": 0.5}, [f"f{i}" for i in range(12)], "not even a win on all 12 items"),
        ({"kind": "improves"}, [f"f{i % 5}" for i in range(100)], ""),
    ],
)
def test_what_can_never_be_decided_is_said_at_declaration(study: Any, claim: Any, items: Any, says: str) -> None:
    """Five equal families can decide; twelve wins of twelve end at 1 - 2·(1 - .025^(1/12)) = .47."""
    settings = study.settings()
    settings["claims"] = [{"name": "c", "condition": "all_layer", "against": "attention_only", **claim}]
    parsed, where = parse_study(settings), {"style": [("stranger", family) for family in items]}
    found = limits(parsed, where)
    assert [says in line for line in found] == ([True] if says else [])
    (record,) = resolution(parsed, where, Assumed())
    assert (says in record.undecidable) and bool(record.undecidable) == bool(says)


@pytest.mark.parametrize(
    ("probe", "families", "zone"),
    [
        ("leak.by_leak.all_layer", {"stranger": 20, "validation": 7}, "validation"),
        ("leak.flattered.all_layer", {"stranger": 20, "validation": 7}, ""),
        ("leak.flattered.all_layer", {"stranger": 7, "validation": 20}, "stranger"),
        ("nll.stranger.all_layer", {"seen": 7, "stranger": 8}, ""),
        ("recall.contrast.all_layer", {"seen": 7, "stranger": 8}, "seen"),
        ("final_loss.all_layer", {}, ""),
    ],
)
def test_a_claim_on_a_probe_over_too_few_families_is_said_at_declaration(
    study: Any, probe: str, families: Any, zone: str
) -> None:
    settings = study.settings()
    settings["evals"]["style"]["zones"] = ["seen", "stranger"]
    settings["claims"] = [{"name": "c", "kind": "probe", "probe": probe, "op": "<", "threshold": 0}]
    parsed = parse_study(settings)
    (record,) = resolution(parsed, {"style": []}, families=families)
    lines = limits(parsed, {"style": []}, families)
    if zone:
        says = f"at least 8 families of {zone} rows, this split has 7"
        assert says in record.undecidable and says in record.sentence and says in lines[0]
    else:
        assert not record.undecidable and not lines


def test_a_gap_beyond_the_scale_of_the_scores_is_none(study: Any) -> None:
    """Two seeds against a baseline leave one degree of freedom: the t quantile asks for a gap above 1."""
    items = {"style": [("stranger", f"f{i // 3}") for i in range(48)]}
    found = resolution(parse_study(study.settings()), items)[0]
    assert found.detectable is not None
    least, most = found.detectable
    assert least is not None and least < 1 and most is None
    assert "in the worst case none" in found.sentence


def test_confirmatory_claims_share_alpha(study: Any) -> None:
    settings = study.settings()
    items = {"style": [(zone, f"f{i}") for i in range(60) for zone in ("seen", "stranger")]}
    assert {r.alpha for r in resolution(parse_study(settings), items)} == {0.05 / 3}
    settings["claims"][1]["correction"] = settings["claims"][2]["correction"] = "exploratory"
    assert [r.alpha for r in resolution(parse_study(settings), items)] == [0.05, 0.05, 0.05]

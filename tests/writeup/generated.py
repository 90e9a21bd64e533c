"""Finished study folders of many shapes for property tests: real record types and verdicts, made-up scores.

A shape says what a run may differ in from what the study file asked: a selected learning rate, trial runs of selection
and batch shape, `max_steps`, lost scores, one seed, one or several evals, exploratory claims, an amended contract, a
sweep, a claim whose quantity is better when lower, a benchmark, weights trained elsewhere, rules about tool calls.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.config.load import parse_study
from veritune.decide.claims import ClaimContext, judge
from veritune.records import (
    BenchmarkFacts,
    Contract,
    Estimate,
    Score,
    StudyVerdicts,
)
from veritune.seal import seal
from veritune.stats.table import ScoreTable
from veritune.store import Store, hash_of, read_json, sha256_file, write_json, write_jsonl

_spec = importlib.util.spec_from_file_location("lint_study", Path(__file__).with_name("lint_study.py"))
assert _spec and _spec.loader
lint_study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lint_study)

# A tenth of the items of the hand-made study: judging its claims takes most of the time.
lint_study.ITEMS = {"seen": (9, 2), "sibling": (9, 1), "stranger": (8, 2)}

ASKED, CHOSEN = 1e-3, 3e-4


@dataclass(frozen=True)
class Shape:
    """What a generated study is like. `lost` is the share of the baseline's items without a score."""

    name: str
    seeds: tuple[int, ...] = (0, 1, 2)
    selected: bool = False
    max_steps: int | None = None
    lost: float = 0.0
    evals: int = 2
    exploratory: bool = False
    amended: bool = False
    sweep: bool = False
    lower: bool = False
    benchmark: bool = False
    adopted: bool = False
    calls: bool = False


SHAPES = (
    Shape("plain"),
    Shape("one-seed", seeds=(4,)),
    Shape("selection", selected=True),
    Shape("max-steps", seeds=(0, 1), max_steps=60),
    Shape("missing", lost=0.8),
    Shape("missing-one-seed", seeds=(0,), lost=0.6, evals=1),
    Shape("exploratory", seeds=(0, 1), exploratory=True, evals=1),
    Shape("amended", seeds=(0, 1), amended=True, selected=True),
    Shape("all-at-once", seeds=(3, 11), selected=True, max_steps=45, lost=0.7, exploratory=True, amended=True),
    Shape("sweep-lower-is-better", seeds=(0, 1), sweep=True, lower=True, evals=1),
    Shape("benchmark", seeds=(0, 1), benchmark=True, lost=0.3),
    Shape("adopted-tool-calls", seeds=(5,), adopted=True, calls=True, evals=3),
    Shape("all-the-rest", seeds=(2, 6), sweep=True, lower=True, benchmark=True, adopted=True, calls=True, evals=3),
)
ADOPTED = "attention_only"
"""The condition whose weights were trained elsewhere."""
RANKS = (4, 16)
BENCH_ITEMS = tuple(f"bench-{i}" for i in range(24))


def build(root: Path, shape: Shape) -> Path:
    """Write the folder and seal it; its path."""
    store, raw = Store(root), _raw(shape)
    study, facts = parse_study(raw), lint_study.facts()
    (root / "study.yaml").write_text("# made up\n", encoding="utf-8")
    (root / "briefs.jsonl").write_text("{}\n", encoding="utf-8")
    facts = replace(facts, data_sha256=sha256_file(root / "briefs.jsonl"))
    if shape.benchmark:
        bench = BenchmarkFacts(hash_of("bench"), 40, BENCH_ITEMS, len(BENCH_ITEMS), hash_of("items"))
        facts = replace(facts, benchmarks={"sums": bench})
    if shape.amended:
        first = _raw(replace(shape, max_steps=None))
        first["train"]["num_train_epochs"] = 2
        contract.freeze(store, parse_study(first), facts)
        kept = contract.amend(store, study, facts, "two epochs left the loss falling")
    else:
        kept = contract.freeze(store, study, facts)
    runs = [_run(store, shape, "baseline", None)]
    runs += [_run(store, shape, name, seed) for name in study.conditions for seed in shape.seeds]
    if shape.selected:
        for name in study.conditions:
            _trial(store, shape, name, "select")
        _trial(store, shape, "all_layer", "shape")
    _decide(store, shape, study, runs, kept)
    store.log("ran", cells=len(runs), trained=len(runs), skipped=0, wall_s=512.4)
    seal(store)
    return root


def _raw(shape: Shape) -> dict[str, Any]:
    raw: dict[str, Any] = lint_study.raw_study(shape.seeds)
    raw["train"]["learning_rate"] = ASKED
    if shape.max_steps is not None:
        raw["train"]["max_steps"] = shape.max_steps
    if shape.evals == 1:
        raw["evals"] = {"house_style": raw["evals"]["house_style"]}
        raw["claims"] = [c for c in raw["claims"] if c["eval"] == "house_style"]
    if shape.calls:
        raw["evals"]["tools"] = {
            "kind": "rules", "max_new_tokens": 48, "score": "all",
            "rules": [{"name": "same_tools", "calls": "names"}, {"name": "same_arguments", "calls": "equal"}],
        }  # fmt: skip
        raw["claims"].append({"name": "calls_tools", "kind": "improves", "eval": "tools", "condition": "all_layer"})
    if shape.benchmark:
        raw["evals"]["sums"] = {**raw["evals"]["sums"], "path": "bench.jsonl", "zones": ["benchmark"]}
        raw["claims"] = [{**c, "zone": "benchmark"} if c.get("eval") == "sums" else c for c in raw["claims"]]
    if shape.lower:
        raw["claims"].append(
            {"name": "low_loss", "kind": "probe", "probe": "nll.stranger.all_layer", "op": "<", "threshold": 2.5}
        )
    if shape.exploratory:
        raw["claims"] = [{**c, "correction": "exploratory"} for c in raw["claims"]]
    return _swept(raw) if shape.sweep else raw


def _swept(raw: dict[str, Any]) -> dict[str, Any]:
    """The study with its ranks as a sweep; claims speak of the larger one."""
    raw["conditions"] = {name: {k: v for k, v in c.items() if k != "r"} for name, c in raw["conditions"].items()}
    raw["sweep"] = {"r": list(RANKS)}
    names = {name: f"{name}-r{RANKS[-1]}" for name in raw["conditions"]}
    for claim in raw["claims"]:
        claim |= {key: names[claim[key]] for key in ("condition", "against") if claim.get(key) in names}
        if "probe" in claim:
            claim["probe"] = claim["probe"].replace("all_layer", names["all_layer"])
    return raw


def arm_of(condition: str) -> str:
    """The condition that a point of the sweep was written under."""
    return condition.partition("-r")[0]


def _run(store: Store, shape: Shape, condition: str, seed: int | None) -> str:
    for name, zone in list(lint_study.SKILL):  # a point of a sweep differs a little from its arm
        if name == arm_of(condition):
            lint_study.SKILL[condition, zone] = lint_study.SKILL[name, zone] - 0.01 * (condition != name)
    for table in (lint_study.SUMS, lint_study.PARAMS, lint_study.LOSSES):
        if arm_of(condition) in table:
            table[condition] = table[arm_of(condition)]
    run_id: str = lint_study.write_run(store, condition, seed)
    folder = store.run(run_id)
    summary, manifest = read_json(folder / "summary.json"), read_json(folder / "manifest.json")
    made: dict[str, list[Score]] = lint_study.scores(run_id, condition, seed)
    if shape.benchmark:
        made["sums"] = [replace(s, zone="benchmark", item_id=BENCH_ITEMS[i]) for i, s in enumerate(made["sums"])]
    if shape.calls:
        made["tools"] = [_called(s) for s in made["house_style"]]
    if shape.lost and condition == "baseline":
        made["sums"] = [_lost(s, i, shape.lost) for i, s in enumerate(made["sums"])]
        made["house_style"] = [_lost(s, i, shape.lost) for i, s in enumerate(made["house_style"])]
    if shape.evals == 1:
        made.pop("sums")
        (folder / "scores" / "sums.jsonl").unlink()
    for name, rows in made.items():
        write_jsonl(folder / "scores" / f"{name}.jsonl", rows)
    summary["scores"] = {name: _summed(rows) for name, rows in made.items()}
    lr = CHOSEN if shape.selected else ASKED
    steps = shape.max_steps or 30
    if seed is not None:
        summary["lr"] = lr
        summary["training"]["steps"] = summary["training"]["best_step"] = steps
    manifest["lr"] = lr
    manifest["data"]["seen_rows"] = [f"r{i}" for i in range(78)]
    manifest["train"] = {
        "learning_rate": lr, "num_train_epochs": 3, "max_steps": shape.max_steps or -1, "devices": 1,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    if shape.adopted and arm_of(condition) == ADOPTED:
        _trained_elsewhere(summary, manifest)
    write_json(folder / "summary.json", summary)
    write_json(folder / "manifest.json", manifest)
    return run_id


def _called(score: Score) -> Score:
    """The same output, scored by two rules about its tool calls: 1 only where both hold."""
    held = {"same_tools": (score.value or 0) > 0.3, "same_arguments": (score.value or 0) > 0.8}
    return replace(score, eval="tools", value=float(all(held.values())), parts={"ended": "stop_token", "rules": held})


def _trained_elsewhere(summary: dict[str, Any], manifest: dict[str, Any]) -> None:
    """What is known of adopted weights: their steps, and nothing of rows, rate and machine."""
    summary["lr"] = None
    elsewhere = {"form": "peft", "files": {"adapter_model.safetensors": hash_of("w")}, "told": {}, "rows": None,
                 "differs": ["learning_rate"], "not_checked": ["which rows it saw"], "despite": None}  # fmt: skip
    summary["training"] |= {"processes": None, "tokens": None, "rows_compared_with_contract": None, "final_loss": None,
                            "steps": 77, "best_step": 77, "elsewhere": elsewhere}  # fmt: skip
    manifest |= {"seeds": {}, "steps": 77, "trained_elsewhere": True}
    manifest["data"]["seen_rows"] = []


def _lost(score: Score, place: int, share: float) -> Score:
    """A share of the items without a score, spread evenly."""
    if int((place + 1) * share) == int(place * share):
        return score
    return replace(score, value=None, reason="no answer found", parts={"ended": score.parts.get("ended", "stop_token")})


def _summed(rows: list[Score]) -> dict[str, Any]:
    """A run's score summary where scores may be lost."""
    result: dict[str, Any] = {}
    for zone in sorted({str(s.zone) for s in rows}):
        here = [s for s in rows if s.zone == zone]
        there = [s for s in here if s.value is not None]
        cell = lint_study.summarise(there)[zone] if there else {"mean": None, "scored": 0, "cut": 0}
        lost = len(here) - len(there)
        result[zone] = {**cell, "items": len(here), "missing": {"no answer found": lost} if lost else {}}
    return result


def _trial(store: Store, shape: Shape, condition: str, phase: str) -> None:
    """A run that chose a setting and is no result."""
    run_id: str = lint_study.write_run(store, condition, 0, old=True)
    folder = store.run(run_id)
    summary, manifest = read_json(folder / "summary.json"), read_json(folder / "manifest.json")
    summary |= {"phase": phase, "scores": {}, "nll": {}, "lr": 7e-3, "finished": "2027-01-01T00:00:00Z", "seed": 99}
    manifest |= {"phase": phase, "lr": 7e-3, "seed": 99}
    write_json(folder / "summary.json", summary)
    write_json(folder / "manifest.json", manifest)


def _of(store: Store, run_id: str) -> str:
    return str(read_json(store.run(run_id) / "summary.json")["condition"])


def _decide(store: Store, shape: Shape, study: Any, runs: list[str], kept: Contract) -> None:
    tables = {}
    for condition in ("baseline", *study.conditions):
        for name in study.evals:
            own = [r for r in runs if _of(store, r) == condition]
            rows = [s for run in own for s in Score.load_all(store.run(run) / "scores" / f"{name}.jsonl")]
            tables[condition, name] = ScoreTable.from_scores(rows, condition=condition, fixed=condition == "baseline")
    probes: dict[str, Estimate] = {}
    if shape.lower:
        losses = [read_json(store.run(r) / "summary.json")["nll"]["stranger"]["nll"] for r in runs if "all_layer" in r]
        probe = next(c.probe for c in study.claims if c.probe)
        probes[probe] = Estimate(probe, sum(losses) / len(losses), 0.4, 0.6, 0.95, 48, "t", se=0.04, df=15.0)
    context = ClaimContext(
        probes=probes,
        scales=dict.fromkeys(study.evals, (0.0, 1.0)),
        failure_values=dict.fromkeys(study.evals, 0.0),
        evidence={"*": {"contamination": "clean", "replicated": None}},
    )
    verdicts = judge(list(study.claims), tables, context)
    StudyVerdicts(hash_of(1), kept.last.hash, tuple(runs), {}, tuple(verdicts)).save(store.verdict_file)

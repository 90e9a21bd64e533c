"""A small finished study folder for the tests of lint and writeup: real record types, real verdicts, made-up scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from veritune import contract
from veritune.config.load import parse_study
from veritune.decide.claims import ClaimContext, judge
from veritune.records import (
    Facts,
    MemoryPeak,
    Score,
    StudyVerdicts,
    Trainable,
)
from veritune.records.base import of_plain
from veritune.stats.table import ScoreTable
from veritune.store import Store, hash_of, write_json, write_jsonl

ITEMS = {"seen": (26, 3), "sibling": (26, 1), "stranger": (16, 3)}
SKILL = {
    ("baseline", "seen"): 0.32, ("baseline", "sibling"): 0.33, ("baseline", "stranger"): 0.35,
    ("attention_only", "seen"): 0.885, ("attention_only", "sibling"): 0.872, ("attention_only", "stranger"): 0.862,
    ("all_layer", "seen"): 0.925, ("all_layer", "sibling"): 0.91, ("all_layer", "stranger"): 0.885,
}  # fmt: skip
SUMS = {"baseline": 0.71, "attention_only": 0.69, "all_layer": 0.6}
PARAMS = {"attention_only": 921_600, "all_layer": 2_442_240}
LOSSES = {"baseline": 3.48, "attention_only": 0.61, "all_layer": 0.47}
RULES = ("subject_line", "hedge", "one_question", "sign_off", "no_banned", "figure")


def raw_study(seeds: tuple[int, ...]) -> dict[str, Any]:
    """The study file."""
    lora = {"method": "lora", "r": 8, "lora_alpha": 16}
    style = {"kind": "rules", "per_family": 3, "max_new_tokens": 64}
    return {
        "name": "harbor-style",
        "question": "Did the fine-tune learn the house style, or the briefs it was shown?",
        "model": {"path": "builtin:smollm2-135m-instruct"},
        "data": {"path": "briefs.jsonl", "family_field": "original"},
        "split": {"seed": 3, "stranger": 0.34, "validation": 0.12, "sibling": 0.25},
        "train": {"num_train_epochs": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_length": 256},
        "conditions": {
            "attention_only": {**lora, "target_modules": "attention"},
            "all_layer": {**lora, "target_modules": "all-linear"},
        },
        "seeds": list(seeds),
        "evals": {
            "house_style": {**style, "rules": [{"name": name, "contains": name} for name in RULES]},
            "sums": {"kind": "match", "zones": ["stranger"], "extract": r"(\d+)", "expected": "answer"},
        },
        "claims": [
            {"name": "learns_the_style", "kind": "improves", "eval": "house_style", "condition": "all_layer"},
            {"name": "carries_to_strangers", "kind": "generalises", "eval": "house_style", "condition": "all_layer",
             "share": 0.7},
            {"name": "targets_matter", "kind": "differ", "eval": "house_style", "condition": "attention_only",
             "against": "all_layer", "margin": 0.05},
            {"name": "keeps_sums", "kind": "no_regression", "eval": "sums", "condition": "all_layer", "margin": 0.05},
            {"name": "siblings_too", "kind": "improves", "eval": "house_style", "condition": "attention_only",
             "zone": "sibling", "correction": "exploratory"},
        ],
    }  # fmt: skip


def facts() -> Facts:
    """What the data stage found, in the shape that it records."""
    zones = {"seen": (26, 78), "sibling": (26, 26), "stranger": (16, 64), "validation": (6, 24)}
    plain = {
        "data_sha256": hash_of("data"),
        "data_version": hash_of("version")[:12],
        "families": {"originals": 48, "rows": 192, "variants": 144, "size_max": 4, "size_mean": 4.0},
        "model": {"name": "SmolLM2-135M-Instruct", "dtype": "bfloat16", "files": {"model.safetensors": hash_of("m")}},
        "packages": {"torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2", "veritune": "0.1.0"},
        "rendered_sha256": hash_of("rendered"),
        "target_tokens": {"seen": 3408, "sibling": 1147, "stranger": 2827, "validation": 1057},
        "template_sha256": hash_of("template"),
        "tokenizer_sha256": hash_of("tokenizer"),
        "tokens": {"seen": 8013, "sibling": 2692, "stranger": 6635, "validation": 2503},
        "zones": {z: {"families": f, "rows": r} for z, (f, r) in zones.items()},
        "contamination": {"status": "passed", "evals": {"house_style": {"rows_exact": 0, "rows_confirmed": 0}}},
        "code": {"package": hash_of("p"), "evaluate": hash_of("e"), "decide": hash_of("d")},
    }
    return of_plain(Facts, plain, "the made-up facts")


def scores(run_id: str, condition: str, seed: int | None) -> dict[str, list[Score]]:
    """Scores of one run on both evals. Item difficulty is shared by all runs."""
    made: dict[str, list[Score]] = {"house_style": [], "sums": []}
    noise = np.random.default_rng([7, seed if seed is not None else 99, len(condition)])
    shared = np.random.default_rng(5)
    for zone, (families, per_family) in ITEMS.items():
        for f in range(families):
            family = f"{zone[:2]}{f:02d}" if zone == "stranger" else f"se{f:02d}"
            for k in range(per_family):
                hard = shared.normal(0, 0.08)
                item = f"{family}-{k}{'' if zone != 'sibling' else 's'}"
                p = float(np.clip(SKILL[condition, zone] + hard + noise.normal(0, 0.05), 0, 1))
                held = {rule: bool(i < round(p * 6)) for i, rule in enumerate(RULES)}
                ended = "length" if condition == "baseline" and k == 0 else "stop_token"
                parts = {"ended": ended, "rules": held}
                text = f"Subject: {family} notice {k}\n\nThe {condition.replace('_', ' ')} letter for "
                text += f"item {item} says it is settled."
                made["house_style"].append(
                    Score(run_id, "house_style", item, sum(held.values()) / 6, None, family, zone, text, parts)
                )
                if zone == "stranger":
                    right = float(shared.random() * 0.7 + noise.random() * 0.3 < SUMS[condition])
                    answer = f"The sum for {item} by {condition} is {int(100 * hard) + 200}."
                    made["sums"].append(Score(run_id, "sums", item, right, None, family, zone, answer, {}))
    return made


def summarise(rows: list[Score]) -> dict[str, Any]:
    """A run's score summary, as the runner writes it."""
    result: dict[str, Any] = {}
    for zone in sorted({str(s.zone) for s in rows}):
        here = [s for s in rows if s.zone == zone]
        values = [s.value for s in here if s.value is not None]
        cut = sum(s.parts.get("ended") == "length" for s in here)
        result[zone] = {
            "mean": sum(values) / len(values), "scored": len(values), "items": len(here), "missing": {}, "cut": cut,
        }  # fmt: skip
        ruled = [s.parts["rules"] for s in here if "rules" in s.parts]
        if ruled:
            result[zone]["rules"] = {k: {"held": sum(r[k] for r in ruled), "of": len(ruled)} for k in ruled[0]}
    return result


def write_run(store: Store, condition: str, seed: int | None, *, old: bool = False) -> str:
    """One finished run. `old` writes a superseded one with other numbers."""
    digest = hash_of([condition, seed, old])
    run_id = f"{condition}-s{seed}-{digest[:8]}" if seed is not None else f"baseline-{digest[:8]}"
    made = scores(run_id, condition, (seed or 0) + 40 if old else seed)
    folder = store.run(run_id)
    for name, rows in made.items():
        write_jsonl(folder / "scores" / f"{name}.jsonl", rows)
    bump = 0.011 * (seed or 0) + (0.2 if old else 0.0)
    base = LOSSES[condition]
    step = {"seen": -0.09, "sibling": -0.03, "stranger": 0.02, "validation": 0.07}
    tokens = {"seen": (78, 3408), "sibling": (26, 1147), "stranger": (48, 2151), "validation": (24, 1057)}
    nll = {z: {"nll": base + step[z] + bump, "rows": n, "target_tokens": t} for z, (n, t) in tokens.items()}
    training = None
    if seed is not None:
        training = {
            "format": 2,
            "best_step": 30, "steps": 30, "tokens": 24039, "train_s": 61.25 + 3 * seed, "final_loss": 0.42 + bump,
            "validation_nll": nll["validation"]["nll"] + 0.0001, "input_hash": digest,
            "candidates": [{"step": s, "validation_nll": nll["validation"]["nll"] + (30 - s) / 40, "checkpoint": None}
                           for s in (10, 20)],
            "trainable": Trainable.of("lora", {}, ("q_proj",), PARAMS[condition], 134_515_008 + PARAMS[condition]),
            "processes": 1, "checkpoint": None, "rows_compared_with_contract": None,
            "peak_memory": MemoryPeak(None, None, "none", "made up"),
        }  # fmt: skip
    write_json(folder / "summary.json", {
        "format": 2,
        "run_id": run_id, "condition": condition, "seed": seed, "phase": "baseline" if seed is None else "main",
        "lr": None if seed is None else 1e-3, "nll": nll, "training": training, "input_hash": hash_of(run_id),
        "exploratory": False, "failed": None, "scoring_memory": None,
        "scores": {name: summarise(rows) for name, rows in made.items()},
        "finished": "2026-01-01T00:00:00Z" if old else "2026-02-01T00:00:00Z",
    })  # fmt: skip
    manifest = {
        "run_id": run_id, "phase": "baseline" if seed is None else "main", "lr": 1e-3, "input_hash": hash_of(run_id),
        "model": {"name": "SmolLM2", "dtype": "float32"}, "method": {}, "train": {}, "steps": None, "seeds": {},
        "data": {"version": "made up", "seen_rows": []}, "git": None, "exploratory": False, "format": 2,
        "command": "veritune run study.yaml", "host": "bench-1",
        "condition": condition, "seed": seed or 0, "packages": facts().packages, "created": "2026-01-01T00:00:00Z",
        "machine": {"system": "Linux", "machine": "x86_64", "cores": 2, "python": "3.11.7", "accelerators": [],
                    "memory_bytes": 25_276_502_016, "torch_threads": 1, "torch_interop_threads": 1, "processor": None,
                    "vector_instructions": "AVX2", "cuda": None, "deterministic_algorithms": False},
    }  # fmt: skip
    write_json(folder / "manifest.json", manifest)
    return run_id


def build(root: Path, seeds: tuple[int, ...] = (0, 1, 2)) -> Path:
    """Write the folder; its path. The contract is amended once, and one run is superseded."""
    store = Store(root)
    first = raw_study(seeds)
    first["train"]["learning_rate"] = 5e-4
    first["train"]["num_train_epochs"] = 2
    contract.freeze(store, parse_study(first), facts())
    study = parse_study(raw_study(seeds))
    kept = contract.amend(store, study, facts(), "two epochs left the loss falling")
    runs = [write_run(store, "baseline", None)]
    runs += [write_run(store, name, seed) for name in study.conditions for seed in seeds]
    write_run(store, "all_layer", 0, old=True)
    tables = {}
    for condition in ("baseline", *study.conditions):
        for name in study.evals:
            rows = [s for r in runs if r.startswith(condition) for s in _read(store, r, name)]
            tables[condition, name] = ScoreTable.from_scores(rows, condition=condition, fixed=condition == "baseline")
    context = ClaimContext(
        scales=dict.fromkeys(study.evals, (0.0, 1.0)),
        failure_values=dict.fromkeys(study.evals, 0.0),
        evidence={"*": {"contamination": "clean", "replicated": None}},
    )
    verdicts = judge(list(study.claims), tables, context)
    StudyVerdicts(hash_of(1), kept.last.hash, tuple(runs), {}, tuple(verdicts)).save(store.verdict_file)
    store.log("ran", cells=len(runs), trained=len(runs), skipped=0, wall_s=512.4)
    return root


def _read(store: Store, run_id: str, name: str) -> list[Score]:
    return Score.load_all(store.run(run_id) / "scores" / f"{name}.jsonl")

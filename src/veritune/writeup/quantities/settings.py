"""Quantities of the frozen settings and facts: what was asked for, rows, families and tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from veritune.writeup.quantities.model import Quantity, Scope, is_number

_TRAIN_WORDS = {
    "num_train_epochs": ("epochs", "passes"),
    "per_device_train_batch_size": ("batch size", "batches of", "rows per device"),
    "gradient_accumulation_steps": ("gradient accumulation", "accumulation"),
    "learning_rate": ("learning rate", "lr"),
    "warmup_steps": ("warmup", "warm-up"),
    "weight_decay": ("weight decay",),
    "max_grad_norm": ("gradient clipping", "clipping", "max_grad_norm"),
    "max_length": ("max_length", "longest row", "maximum length", "tokens"),
    "max_steps": ("max_steps",),
    "eval_steps": ("eval_steps",),
}
_KIND_OF = {
    "max_length": "tokens",
    "num_train_epochs": "epochs",
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
}


def of_settings(terms: Mapping[str, Any], entry: int) -> Iterator[Quantity]:
    """The numbers in the frozen settings and facts."""
    base, source = f"/entries/{entry}/terms", "contract.lock.json"
    study, facts = terms["study"], terms["facts"]
    for key, value in study["train"].items():
        if is_number(value) and value != -1:
            words = _TRAIN_WORDS.get(key, (key.replace("_", " "),))
            kind, pointer = _KIND_OF.get(key, "setting"), f"{base}/study/train/{key}"
            yield Quantity(f"train.{key}", kind, value, source=source, pointer=pointer, aliases=words)
    for i, step in enumerate(listed if isinstance(listed := study["train"].get("eval_steps"), list) else ()):
        pointer = f"{base}/study/train/eval_steps/{i}"
        yield Quantity(
            f"train.eval_steps.{i}", "setting", step, source=source, pointer=pointer, aliases=("step", "checkpoint")
        )
    for key, value in study["split"].items():
        if not is_number(value):
            continue
        words = ("split seed",) if key == "seed" else (f"{key} share", "share", "split", key)
        kind = "split_seed" if key == "seed" else "split"
        yield Quantity(
            f"split.{key}", kind, value, source=source, pointer=f"{base}/study/split/{key}", aliases=words, rate=True
        )
    for name, condition in study["conditions"].items():
        lr = condition.get("learning_rate") or study["train"]["learning_rate"]
        scope, pointer = Scope(condition=name), f"{base}/study/conditions/{name}"
        yield Quantity(f"lr.{name}", "lr", lr, "", None, scope, source, pointer, ("learning rate", "lr"))
        for key, value in condition.items():
            if key != "learning_rate" and is_number(value):
                words = {"r": ("rank", "r"), "lora_alpha": ("alpha", "lora_alpha")}.get(key, (key.replace("_", " "),))
                kind = {"r": "rank", "lora_alpha": "lora_alpha"}.get(key, "setting")
                yield Quantity(f"{key}.{name}", kind, value, "", None, scope, source, f"{pointer}/{key}", words)
    for name, spec in study["evals"].items():
        yield from _eval_settings(name, spec, f"{base}/study/evals/{name}")
    for seed in study["seeds"]:
        pointer = f"{base}/study/seeds"
        yield Quantity(f"seed.{seed}", "seed", seed, "", None, Scope(), source, pointer, ("seed",))
    for noun in ("seeds", "conditions", "evals", "claims"):
        yield Quantity(
            f"n.{noun}", noun, len(study[noun]), "count", None, Scope(), source, f"{base}/study/{noun}", (noun,)
        )
    yield Quantity("n.arms", "conditions", len(study["conditions"]) + 1, "count", None, Scope(), source, "", ("arms",))
    yield from _facts(facts, f"{base}/facts")


def _eval_settings(name: str, spec: Mapping[str, Any], pointer: str) -> Iterator[Quantity]:
    scope, source = Scope(eval=name), "contract.lock.json"
    words = {"max_new_tokens": ("new tokens", "tokens"), "batch_size": ("batch size", "prompts"), "per_family": ()}
    for key, value in spec.items():
        if is_number(value):
            kind = {"max_new_tokens": "max_new_tokens", "batch_size": "batch_size"}.get(key, "per_family")
            aliases = words.get(key, ()) or ("per family", "items per family", "of each family")
            yield Quantity(f"{key}.{name}", kind, value, "", None, scope, source, f"{pointer}/{key}", aliases)
    n_rules = len(spec.get("rules") or ())
    if n_rules:
        yield Quantity(
            f"n.rules.{name}", "rules", n_rules, "count", None, scope, source, f"{pointer}/rules", ("rules",)
        )


def _facts(facts: Mapping[str, Any], base: str) -> Iterator[Quantity]:
    """Counts of rows, families and tokens, in all and by zone."""
    source, families = "contract.lock.json", facts.get("families", {})
    for key, noun in (
        ("originals", "families"),
        ("rows", "rows"),
        ("variants", "variants"),
        ("size_max", "per_family"),
    ):
        if is_number(families.get(key)):
            pointer = f"{base}/families/{key}"
            yield Quantity(f"n.{key}", noun, families[key], "count", None, Scope(), source, pointer, (noun,))
    if is_number(families.get("size_mean")):
        pointer = f"{base}/families/size_mean"
        yield Quantity("families.size_mean", "per_family", families["size_mean"], "", None, Scope(), source, pointer)
    for zone, counts in facts.get("zones", {}).items():
        for noun, n in counts.items():
            words = (noun, "rows") if noun == "rows" else (noun,)
            yield Quantity(
                f"{noun}.{zone}", noun, n, "count", None, Scope(zone=zone), source, f"{base}/zones/{zone}/{noun}", words
            )
    for key, label in (("target_tokens", "target tokens"), ("tokens", "tokens")):
        for zone, n in facts.get(key, {}).items():
            scope, pointer = Scope(zone=zone), f"{base}/{key}/{zone}"
            yield Quantity(f"{key}.{zone}", "tokens", n, "tokens", None, scope, source, pointer, (label,))
        if facts.get(key):
            total = sum(facts[key].values())
            yield Quantity(f"{key}.all", "tokens", total, "tokens", None, Scope(), source, f"{base}/{key}", (label,))

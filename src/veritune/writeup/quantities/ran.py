"""What was run, from the run records: learning rates, epochs, steps and batches as trained, not as the file asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from veritune.records import RunManifest, RunSummary
from veritune.writeup.quantities.model import Quantity, Scope, is_number

READ_FROM_RUNS = ("learning_rate", "num_train_epochs", "max_steps")
"""Settings that selection, a condition or `max_steps` may change between the study file and the run."""


def trained(manifests: Mapping[str, RunManifest]) -> dict[str, list[RunManifest]]:
    """The manifests of trained runs by condition."""
    found: dict[str, list[RunManifest]] = {}
    for manifest in manifests.values():
        if manifest.phase == "main":
            found.setdefault(manifest.condition, []).append(manifest)
    return found


def overridden(name: str, manifests: Mapping[str, RunManifest]) -> bool:
    """Whether the run records state a setting's quantity differently, or separately for each run."""
    known = trained(manifests)
    if name.startswith("lr."):
        return name.removeprefix("lr.") in known
    return bool(known) and name.removeprefix("train.") in READ_FROM_RUNS and name.startswith("train.")


def epochs_of(manifest: RunManifest, steps: int) -> float | None:
    """The number of passes over the rows that a run made: its optimizer steps times the rows per step, divided by its
    rows.

    None where the manifest does not say what it trained on.
    """
    rows, train = len(manifest.data.seen_rows), manifest.train
    sizes = [train.get(k) for k in ("per_device_train_batch_size", "gradient_accumulation_steps", "devices")]
    if not rows or not all(is_number(size) for size in sizes):
        return None
    batch = 1.0
    for size in sizes:
        batch *= float(size)  # type: ignore[arg-type]
    asked = train.get("num_train_epochs")
    if not _limited(train) and is_number(asked):
        return float(asked)  # type: ignore[arg-type]  # the last batch of an epoch may be a small one
    return steps * batch / rows


def _limited(train: Mapping[str, Any]) -> bool:
    steps = train.get("max_steps")
    return steps is not None and is_number(steps) and steps > 0


def of_what_ran(
    terms: Mapping[str, Any], runs: Mapping[str, RunSummary], manifests: Mapping[str, RunManifest]
) -> Iterator[Quantity]:
    """Learning rate and epochs by condition and, if all conditions agree, of the whole study."""
    rates: dict[str, set[float]] = {}
    passes: dict[str, set[float]] = {}
    asked = terms["study"]["train"]
    for run_id, summary in runs.items():
        if summary.seed is None:
            continue
        manifest = manifests.get(run_id)
        if summary.lr is not None:
            rates.setdefault(summary.condition, set()).add(summary.lr)
        if manifest is None or summary.training is None or summary.training.steps is None:
            continue
        if manifest.trained_elsewhere:  # what the study declares is not what that trainer did
            continue
        epochs = epochs_of(manifest, summary.training.steps)
        if epochs is None and not _limited(asked) and is_number(asked.get("num_train_epochs")):
            epochs = float(asked["num_train_epochs"])
        if epochs is not None:
            passes.setdefault(summary.condition, set()).add(round(epochs, 6))
    source = "runs/*/manifest.json"
    words = {"lr": ("learning rate", "lr"), "epochs": ("epochs", "passes")}
    for kind, found, whole in (("lr", rates, "learning_rate"), ("epochs", passes, "num_train_epochs")):
        for condition, values in found.items():
            if len(values) == 1:
                scope = Scope(condition=condition)
                yield Quantity(f"{kind}.{condition}", kind, min(values), "", None, scope, source, "", words[kind])
        every = set().union(*found.values()) if found else set()
        if len(every) == 1:
            yield Quantity(f"train.{whole}", kind, min(every), "", None, Scope(), source, "", words[kind])

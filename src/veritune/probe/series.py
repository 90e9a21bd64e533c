"""Weight change along a series: the checkpoints and runs of a study, or any folders, one line each.

The lines are a table of steps, learning rates or doses (rows trained on). They are reported beside each other and never
judged by: a run that memorised and one that did not moved about as far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.errors import ModelError
from veritune.probe.subject import is_adapter, refuse_other_base
from veritune.probe.weights import Options, WeightChange, adapter_change, checkpoint_change
from veritune.records import FORMAT_VERSION
from veritune.store import Store, read_json
from veritune.study import load_study
from veritune.train.models import resolve

AXES = ("step", "lr", "rows", "label")


@dataclass(frozen=True)
class Moved:
    """One line. lr: peak learning rate; rows: how many rows were trained on; chosen: the checkpoint that is scored.

    Norms are Frobenius norms over all compared weights; `relative` is to the base's norm of the same weights. Facts
    that a folder outside a study does not tell are None.
    """

    label: str
    condition: str | None
    seed: int | None
    lr: float | None
    rows: int | None
    step: int | None
    chosen: bool | None
    delta_norm: float
    relative: float | None
    by_type: Mapping[str, float]


@dataclass(frozen=True)
class WeightSeries:
    """The record of a series, in the order of condition, learning rate, rows, seed and step. `missing` says which runs
    have no weights on disk."""

    lines: tuple[Moved, ...]
    missing: tuple[str, ...]
    reading: str
    limits: str
    would_change: str
    kind: str = "weight_series"
    format: int = FORMAT_VERSION


def change_of(folder: Path, base: Path | None, options: Options | None = None) -> WeightChange:
    """Weight change of an adapter's folder or a full checkpoint's. Raises ModelError for a checkpoint without base."""
    if is_adapter(folder):
        if base is not None:
            refuse_other_base(folder, base)
        return adapter_change(folder, base, options)
    if base is None:
        raise ModelError(f"{folder} is no adapter, so the base it is compared with must be named.", fix="--base DIR")
    return checkpoint_change(base, folder, options)


def folder_series(folders: Sequence[Path], base: Path | None = None) -> WeightSeries:
    """Any folders, in the order given; `step` is the number at the end of a name like checkpoint-200 or step-40."""
    shown = {f: f.name for f in folders}
    if len(set(shown.values())) < len(folders):
        shown = {f: str(f) for f in folders}
    return _record([_line(shown[f], change_of(f, base), {"step": _step(f)}) for f in folders], [])


def study_series(study: str | Path) -> WeightSeries:
    """Every checkpoint on disk of every run of a study. Raises ModelError when no run has one."""
    store = Store.of(study)
    settings = load_study(store.study_file)
    base = resolve(settings.model, store.root).path
    lines, missing = [], []
    for folder in sorted(p for p in store.runs.iterdir() if (p / "manifest.json").is_file()):
        manifest = read_json(folder / "manifest.json")
        if manifest.get("seed") is None:
            continue  # the baseline trains nothing
        found = sorted((folder / "checkpoints").glob("step-*"), key=lambda p: _step(p) or 0)
        if not found:
            missing.append(folder.name)
        training = folder / "training.json"
        best = read_json(training).get("best_step") if training.is_file() else None
        for checkpoint in found:
            facts = _facts(manifest) | {"step": _step(checkpoint)}
            facts["chosen"] = None if best is None else facts["step"] == best
            label = f"{manifest['condition']} s{manifest['seed']} step {facts['step']}"
            lines.append(_line(label, change_of(checkpoint, base), facts))
    if not lines:
        raise ModelError(f"{store.root}: no run has a checkpoint on disk.", fix="Run the study first: veritune run.")
    lines.sort(key=lambda x: (x.condition or "", x.lr or 0, x.rows or 0, x.seed or 0, x.step or 0))
    return _record(lines, missing)


def _facts(manifest: Mapping[str, Any]) -> dict[str, Any]:
    rows = manifest.get("data", {}).get("seen_rows")
    return {
        "condition": manifest.get("condition"),
        "seed": manifest.get("seed"),
        "lr": manifest.get("lr"),
        "rows": None if rows is None else len(rows),
    }


def _step(folder: Path) -> int | None:
    found = re.search(r"(\d+)$", folder.name)
    return int(found.group(1)) if found else None


def _line(label: str, change: WeightChange, facts: Mapping[str, Any]) -> Moved:
    return Moved(
        label=label,
        condition=facts.get("condition"),
        seed=facts.get("seed"),
        lr=facts.get("lr"),
        rows=facts.get("rows"),
        step=facts.get("step"),
        chosen=facts.get("chosen"),
        delta_norm=change.total["delta_norm"],
        relative=change.total["relative"],
        by_type={k: v["delta_norm"] for k, v in change.by_type.items()},
    )


def _record(lines: Sequence[Moved], missing: Sequence[str]) -> WeightSeries:
    least, most = min(lines, key=lambda x: x.delta_norm), max(lines, key=lambda x: x.delta_norm)
    said = f"The weights moved by {least.delta_norm:.3g} ({least.label}) to {most.delta_norm:.3g} ({most.label})."
    gone = f" {len(missing)} runs have no weights on disk: {', '.join(missing[:3])}." if missing else ""
    return WeightSeries(
        lines=tuple(lines),
        missing=tuple(missing),
        reading=said if len(lines) > 1 else f"The weights moved by {most.delta_norm:.3g} ({most.label}).",
        limits="How far weights move does not tell memorising from generalising; it follows rate, steps and rank."
        + gone,
        would_change="Nothing about a claim: judge by held-out zones, and read this beside them.",
    )


def table(record: WeightSeries) -> str:
    """The lines as a plain-text table; `-` where a fact is unknown."""
    kinds = list(dict.fromkeys(kind for line in record.lines for kind in line.by_type))
    rows = [["label", "seed", "lr", "rows", "step", "moved", "of base", *kinds]]
    for line in record.lines:
        facts = [line.seed, None if line.lr is None else f"{line.lr:g}", line.rows, line.step]
        rows.append(
            [
                line.label + (" *" if line.chosen else ""),
                *("-" if fact is None else str(fact) for fact in facts),
                f"{line.delta_norm:.3g}",
                "-" if line.relative is None else f"{line.relative:.2%}",
                *(f"{line.by_type[k]:.3g}" if k in line.by_type else "-" for k in kinds),
            ]
        )
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = ["  ".join(cell.ljust(w) for cell, w in zip(row, width)).rstrip() for row in rows]
    if any(line.chosen for line in record.lines):
        text.append("* the checkpoint that is scored")
    return "\n".join(text)

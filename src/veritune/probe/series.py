"""Weight change along a series: the checkpoints and runs of a study, or any folders, one line each.

The lines are a table of steps, learning rates or doses (rows trained on). They are reported beside each other and never
judged by: a run that memorised and one that did not moved about as far.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.sweep import swept
from veritune.counting import many
from veritune.display import aligned
from veritune.errors import ModelError
from veritune.probe.subject import refuse_other_base
from veritune.probe.weights import WeightOptions, adapter_change, checkpoint_change
from veritune.records import FORMAT_VERSION, Json, JsonLike, RunManifest, TrainingRecord, WeightChange
from veritune.store import Store
from veritune.train.adapters.foreign import holds_adapter, peft_folder
from veritune.train.models import resolve

AXES = ("step", "lr", "rows", "label")


@dataclass(frozen=True)
class Moved:
    """One checkpoint of the series. lr: peak learning rate; rows: number of rows trained on; chosen: whether this
    checkpoint is scored.

    `arm` is the condition as it was written, before a sweep gave each point a name; `point` is its place in the sweep.
    `validation_nll` is the checkpoint's loss on validation rows, in nats per token. Norms are Frobenius norms over all
    compared weights; `relative` is to the base's norm of the same weights. Facts that a folder outside a study does not
    tell are None.
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
    validation_nll: float | None = None
    arm: str | None = None
    point: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class WeightSeries:
    """The record of a series, in the order of condition, learning rate, rows, seed and step. `missing` says which runs
    have no weights on disk, or none that can be compared, and why. `by_lr` and `by_rows` are the tables of learning
    rates and of doses: scored checkpoints that differ in the seed alone, with the mean, least and largest norm of the
    change, and the mean validation loss beside it; empty where there is one rate, or one dose. `by_step` pools the
    seeds of every checkpoint that is on disk, by arm and step; empty where there is one step."""

    lines: tuple[Moved, ...]
    missing: tuple[str, ...]
    by_lr: tuple[Json, ...]
    by_rows: tuple[Json, ...]
    reading: str
    limits: str
    would_change: str
    by_step: tuple[Json, ...] = ()
    kind: str = "weight_series"
    format: int = FORMAT_VERSION


def is_study(paths: Sequence[Path]) -> bool:
    """Whether the only path given is a study: its file or its folder."""
    return len(paths) == 1 and (paths[0].suffix in (".yaml", ".yml") or (paths[0] / "study.yaml").is_file())


def change_of(folder: Path, base: Path | None, options: WeightOptions | None = None) -> WeightChange:
    """Weight change of an adapter's folder or a full checkpoint. Raises ModelError for a checkpoint without a base."""
    if holds_adapter(folder):
        folder = peft_folder(folder).folder
        if base is not None:
            refuse_other_base(folder, base)
        return adapter_change(folder, base, options)
    if base is None:
        raise ModelError(f"{folder} is not an adapter, so it needs a base to be compared with.", fix="--base DIR")
    return checkpoint_change(base, folder, options)


def folder_series(folders: Sequence[Path], base: Path | None = None) -> WeightSeries:
    """The series of any folders, in the given order; `step` is the number at the end of a name like checkpoint-200 or
    step-40.
    """
    shown = {f: f.name for f in folders}
    if len(set(shown.values())) < len(folders):
        shown = {f: str(f) for f in folders}
    return _record([_line(shown[f], change_of(f, base), {"step": step_of(f)}) for f in folders], [])


def study_series(study: str | Path) -> WeightSeries:
    """The series of every checkpoint on disk of every run of a study. Raises ModelError if no run has one."""
    store = Store.of(study)
    settings = load_study(store.study_file)
    base = resolve(settings.model, store.root).path
    arms, lines, missing = swept(settings.conditions, settings.sweep), [], []
    for folder in sorted(p for p in store.runs.iterdir() if (p / "manifest.json").is_file()):
        manifest = RunManifest.load(folder / "manifest.json")
        if manifest.condition == BASELINE:
            continue  # it trains nothing
        found = sorted((folder / "checkpoints").glob("step-*"), key=lambda p: step_of(p) or 0)
        if not found:
            missing.append(folder.name)
        record = folder / "training.json"
        training = TrainingRecord.load(record) if record.is_file() else None
        try:
            for checkpoint in found:
                facts = _facts(manifest, arms) | _of_step(training, step_of(checkpoint))
                label = f"{manifest.condition} s{manifest.seed} step {facts['step']}"
                lines.append(_line(label, change_of(checkpoint, base), facts))
        except ModelError as exc:  # prompt tuning, say: one run must not hide the others
            missing.append(f"{folder.name} ({exc.message.rstrip('.')})")
    if not lines:
        why = f" ({missing[0]})" if missing else ""
        raise ModelError(
            f"{store.root}: no run has weights on disk that can be compared{why}.",
            fix="Run the study first, with `keep: best` or `keep: all`.",
        )
    lines.sort(key=lambda x: (x.condition or "", x.lr or 0, x.rows or 0, x.seed or 0, x.step or 0))
    return _record(lines, missing)


def _of_step(training: TrainingRecord | None, step: int | None) -> dict[str, JsonLike]:
    """Whether the step is the scored one, and its loss on validation rows."""
    if training is None:
        return {"step": step, "chosen": None, "validation_nll": None}
    losses = [c.validation_nll for c in training.candidates if c.step == step]
    return {"step": step, "chosen": step == training.best_step, "validation_nll": losses[0] if losses else None}


def _facts(manifest: RunManifest, arms: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, JsonLike]:
    arm, point = arms.get(manifest.condition, (manifest.condition, {}))
    return {
        "condition": manifest.condition,
        "arm": arm,
        "point": point,
        "seed": manifest.seed,
        "lr": manifest.lr,
        "rows": len(manifest.data.seen_rows),
    }


def step_of(folder: Path) -> int | None:
    """The number at the end of a folder's name, which is its step for checkpoint-200 or step-40."""
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
        delta_norm=change.total.delta_norm,
        relative=change.total.relative,
        by_type={k: v.delta_norm for k, v in change.by_type.items()},
        validation_nll=facts.get("validation_nll"),
        arm=facts.get("arm"),
        point=facts.get("point"),
    )


def _over(lines: Sequence[Moved], axis: Literal["lr", "rows"]) -> tuple[Json, ...]:
    """Scored checkpoints that differ in the seed alone as one line each, in the order of arm and axis."""
    own = {"lr": "learning_rate", "rows": "data_fraction"}[axis]
    groups: dict[Any, list[Moved]] = {}
    for line in lines:
        if line.chosen and getattr(line, axis) is not None:
            rest = {k: v for k, v in (line.point or {}).items() if k != own}
            other = line.rows if axis == "lr" else line.lr
            key = (line.arm or "", repr(sorted(rest.items())), other, getattr(line, axis))
            groups.setdefault(key, []).append(line)
    if len({key[3] for key in groups}) < 2:
        return ()
    return tuple(_group(group) for _, group in sorted(groups.items(), key=lambda x: tuple(map(_sortable, x[0]))))


def _over_steps(lines: Sequence[Moved]) -> tuple[Json, ...]:
    """Every checkpoint on disk, seeds pooled: one line an arm, a rate, a dose and a step."""
    groups: dict[Any, list[Moved]] = {}
    for line in lines:
        if line.step is not None and line.condition is not None:
            groups.setdefault((line.condition, line.lr, line.rows, line.step), []).append(line)
    if len({key[-1] for key in groups}) < 2:
        return ()
    ordered = sorted(groups.items(), key=lambda x: tuple(map(_sortable, x[0])))
    return tuple({**_group(group), "arm": key[0], "step": key[-1]} for key, group in ordered)


def _sortable(value: JsonLike) -> tuple[bool, JsonLike]:
    return (value is not None, value if value is not None else 0)


def _group(group: Sequence[Moved]) -> Mapping[str, JsonLike]:
    norms = [line.delta_norm for line in group]
    losses = [line.validation_nll for line in group if line.validation_nll is not None]
    return {
        "arm": group[0].arm,
        "lr": group[0].lr,
        "rows": group[0].rows,
        "n_runs": len(group),
        "delta_norm": sum(norms) / len(norms),
        "least": min(norms),
        "most": max(norms),
        "validation_nll": sum(losses) / len(losses) if len(losses) == len(group) else None,
    }


def _record(lines: Sequence[Moved], missing: Sequence[str]) -> WeightSeries:
    least, most = min(lines, key=lambda x: x.delta_norm), max(lines, key=lambda x: x.delta_norm)
    said = f"The weights moved by {least.delta_norm:.3g} ({least.label}) to {most.delta_norm:.3g} ({most.label})."
    gone = f" {many(len(missing), 'runs', 'have')} no weights to compare: {', '.join(missing[:3])}." if missing else ""
    return WeightSeries(
        lines=tuple(lines),
        missing=tuple(missing),
        by_lr=_over(lines, "lr"),
        by_rows=_over(lines, "rows"),
        by_step=_over_steps(lines),
        reading=said if len(lines) > 1 else f"The weights moved by {most.delta_norm:.3g} ({most.label}).",
        limits="How far weights move does not tell memorising from generalising; it follows rate, steps and rank."
        + gone,
        would_change="Nothing about a claim: judge by held-out zones, and read this beside them.",
    )


def table(record: WeightSeries) -> str:
    """The series as a plain-text table; `-` where a value is unknown."""
    kinds = list(dict.fromkeys(kind for line in record.lines for kind in line.by_type))
    rows = [["label", "seed", "lr", "rows", "step", "val. NLL", "moved", "of base", *kinds]]
    for line in record.lines:
        facts = [line.seed, None if line.lr is None else f"{line.lr:g}", line.rows, line.step]
        rows.append(
            [
                line.label + (" *" if line.chosen else ""),
                *("-" if fact is None else str(fact) for fact in facts),
                "-" if line.validation_nll is None else f"{line.validation_nll:.4f}",
                f"{line.delta_norm:.3g}",
                "-" if line.relative is None else f"{line.relative:.2%}",
                *(f"{line.by_type[k]:.3g}" if k in line.by_type else "-" for k in kinds),
            ]
        )
    text = aligned(rows)
    if any(line.chosen for line in record.lines):
        text.append("* the checkpoint that is scored")
    for name, lines in (("by learning rate", record.by_lr), ("by rows trained on", record.by_rows)):
        if lines:
            text += ["", f"{name}, scored checkpoints:", *aligned(_group_rows(lines))]
    if record.by_step:
        text += ["", "by step, seeds pooled:", *aligned(_group_rows(record.by_step, "step"))]
    return "\n".join(text)


def _group_rows(lines: Sequence[Json], *more: str) -> list[list[str]]:
    rows = [["arm", "lr", "rows", *more, "runs", "val. NLL", "moved", "least", "most"]]
    for x in lines:
        loss = "-" if x["validation_nll"] is None else f"{x['validation_nll']:.4f}"
        norms = [f"{x[k]:.3g}" for k in ("delta_norm", "least", "most")]
        rate, dose = ("-" if x[k] is None else f"{x[k]:g}" for k in ("lr", "rows"))
        rows.append([str(x["arm"]), rate, dose, *(str(x[key]) for key in more), str(x["n_runs"]), loss, *norms])
    return rows

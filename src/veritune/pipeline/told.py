"""What another trainer's own records say: transformers' trainer_state.json, and a config in YAML or JSON.

TRL, Axolotl, Unsloth, LLaMA-Factory and ms-swift train through `transformers.Trainer` and leave trainer_state.json.
Config keys are read by the names that these tools share; what is not found is listed, never assumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from veritune.config.study import Study
from veritune.errors import InputError, first_line
from veritune.train.schedule import Cell, effective_batch, schedule
from veritune.untrusted import parse_json, parse_yaml, read_bytes

KEYS: Mapping[str, tuple[str, ...]] = {
    "learning rate": ("learning_rate", "lr"),
    "scheduler": ("lr_scheduler_type", "lr_scheduler"),
    "rows per micro-batch": ("per_device_train_batch_size", "micro_batch_size", "batch_size"),
    "accumulation": ("gradient_accumulation_steps",),
    "epochs": ("num_train_epochs", "num_epochs", "epochs"),
    "weight decay": ("weight_decay",),
    "seed": ("seed",),
    "longest row": ("max_length", "max_seq_length", "sequence_len", "cutoff_len"),
    "loss on prompts": ("train_on_inputs", "train_on_prompt"),
    "packing": ("sample_packing", "packing"),
}
"""What a config may say, and the names for it: TRL, transformers, Axolotl, LLaMA-Factory, Unsloth, MLX, torchtune."""
MOST_STEPS = 10**12
"""Training steps that a file may state; more than any training has, and a folder's name can hold the number."""
SHOWN = 60  # characters of a stated setting that are kept


@dataclass(frozen=True)
class Told:
    """What the given files say about a training; `missing` names in words what they do not say."""

    facts: Mapping[str, object]
    steps: int | None
    final_loss: float | None
    train_s: float | None
    missing: tuple[str, ...]

    def differences(self, study: Study, cell: Cell) -> list[str]:
        """Where the stated settings differ from the study's, one line each."""
        plan = schedule(study, cell)
        ours: dict[str, object] = {
            "learning rate": cell.lr,
            "scheduler": plan.lr_scheduler_type,
            "weight decay": plan.weight_decay,
            "longest row": plan.max_length,
            "loss on prompts": False,
        }
        found = []
        for name, declared in ours.items():
            said = self.facts.get(name)
            if said is not None and not _equal(said, declared):
                found.append(f"its config has {name} {said}, but the study declares {declared}")
        micro, times = self.facts.get("rows per micro-batch"), self.facts.get("accumulation")
        if isinstance(micro, int) and isinstance(times, int) and micro * times != effective_batch(plan):
            found.append(
                f"its config has {micro * times} rows per step on one device, the study {effective_batch(plan)}"
            )
        return found


def _equal(said: object, declared: object) -> bool:
    if isinstance(said, (int, float)) and isinstance(declared, (int, float)):
        return math.isclose(said, declared, rel_tol=1e-6)
    return str(said).lower() == str(declared).lower()


def told_of(state: Path | None, config: Path | None) -> Told:
    """What the given files say. Raises InputError for a file that is not of the kind its option expects."""
    facts: dict[str, object] = {}
    steps = loss = seconds = None
    missing = []
    if state is not None:
        steps, loss, seconds = _state(state, facts)
    if config is not None:
        _config(config, facts)
    if steps is None:
        missing.append("the number of its training steps (no trainer_state.json)")
    if config is None:
        missing.append("its settings: learning rate, batch, schedule, loss mask (no --config)")
    else:
        missing += [
            f"its {name} (not in {config.name})" for name in ("learning rate", "loss on prompts") if name not in facts
        ]
    return Told(facts, steps, loss, seconds, tuple(missing))


def _state(path: Path, facts: dict[str, object]) -> tuple[int, float | None, float | None]:
    value = _parsed(path, "--trainer-state")
    steps, log = value.get("global_step"), value.get("log_history")
    if isinstance(steps, bool) or not isinstance(steps, int) or not isinstance(log, list):
        raise InputError(
            f"--trainer-state {path}: expected global_step and log_history, found {', '.join(list(value)[:5])}.",
            fix="Give the trainer_state.json that transformers wrote beside the checkpoint.",
        )
    if not 0 <= steps <= MOST_STEPS:
        raise InputError(
            f"--trainer-state {path}: expected global_step from 0 to {MOST_STEPS:,}, found {str(steps)[:SHOWN]}.",
            fix="Give the trainer_state.json that transformers wrote beside the checkpoint.",
        )
    rows = [row for row in log if isinstance(row, dict)]
    losses = [row["loss"] for row in rows if _finite(row.get("loss"))]
    seconds = [row["train_runtime"] for row in rows if _finite(row.get("train_runtime"))]
    rates = [row["learning_rate"] for row in rows if _finite(row.get("learning_rate"))]
    validations = [row["eval_loss"] for row in rows if _finite(row.get("eval_loss"))]
    facts["steps"] = steps
    for name, found in (("peak learning rate logged", rates), ("lowest validation loss logged", validations)):
        if found:
            facts[name] = max(found) if "peak" in name else min(found)
    if _finite(value.get("epoch")):
        facts["epochs done"] = value["epoch"]
    return steps, (float(losses[-1]) if losses else None), (float(seconds[-1]) if seconds else None)


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _config(path: Path, facts: dict[str, object]) -> None:
    value = _parsed(path, "--config")
    flat = {**value, **{k: v for part in value.values() if isinstance(part, dict) for k, v in part.items()}}
    for name, keys in KEYS.items():
        key = next((k for k in keys if isinstance(flat.get(k), (str, int, float, bool))), None)
        if key is not None:
            facts[name] = _number(flat[key])
    if not any(name in facts for name in KEYS):
        raise InputError(
            f"--config {path}: expected known settings, found {', '.join(list(value)[:5])}.",
            fix=f"Known names: {', '.join(k for keys in KEYS.values() for k in keys)}.",
        )


def _number(value: object) -> object:
    """YAML reads 2e-4 as text; here it is a number. `nan` and `inf` stay text: no record holds them as numbers."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value[:SHOWN]
    return number if math.isfinite(number) else value[:SHOWN]


def _parsed(path: Path, option: str) -> dict[str, object]:
    try:
        content = read_bytes(path)
        value = parse_json(content) if path.suffix == ".json" else parse_yaml(content)
    except (OSError, ValueError) as exc:
        raise InputError(
            f"{option} {path}: cannot be read ({first_line(exc)}).", fix="Give a JSON or YAML file."
        ) from exc
    except Exception as exc:  # yaml's own errors share no base with ValueError
        raise InputError(
            f"{option} {path}: not valid YAML ({first_line(exc)}).", fix="Give a JSON or YAML file."
        ) from exc
    if not isinstance(value, dict):
        raise InputError(f"{option} {path}: expected settings by name, found {json.dumps(value)[:40]}.")
    return value

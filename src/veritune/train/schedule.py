"""Which cells a study has, and what each trains on: its rows, its schedule, its number of steps.

Phases in the order in which they run: `baseline`; `select` (one cell a condition and learning rate of the grid, on the
reserved seed); `shape` (batch shapes, at the selected rate); `main` (every condition with every seed). With a
selection, the last two exist only once it is recorded: the selected rates are part of their ids.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.config.train import Train
from veritune.records import Rendered
from veritune.store import hash_of, sha256_text

if TYPE_CHECKING:
    from veritune.data.prepare import Prepared

SELECT, SHAPE, MAIN = "select", "shape", "main"
SHAPE_STEPS = 4
"""Optimizer steps for timing a batch shape of the same effective batch; its loss is that of the declared shape."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to be made. `input_hash` covers model, data, method, schedule and seed; it is part of the id.

    `shape` is (rows per micro-batch, micro-batches a step) where the cell tries another than the study's.
    """

    run_id: str
    phase: str
    condition: str
    seed: int
    lr: float
    input_hash: str
    shape: tuple[int, int] | None = None


def plan_cells(study: Study, facts: Mapping[str, Any], chosen: Mapping[str, float] | None = None) -> list[Cell]:
    """All cells of a study in the order in which they run; seeds outermost, so that an early look is a balanced one.

    `chosen` are the selected learning rates by condition, None while the study's selection is not recorded.
    """
    shared = {"model": facts["model"], "rendered": facts["rendered_sha256"], "version": facts["data_version"]}
    base_hash = hash_of({**shared, "phase": BASELINE})
    cells = [Cell(f"{BASELINE}-{base_hash[:8]}", BASELINE, BASELINE, 0, 0.0, base_hash)]
    selection = study.selection
    if selection is not None:
        for name in study.conditions:
            for lr in sorted(selection.learning_rates):
                cells.append(_cell(study, shared, Cell("", SELECT, name, selection.seed, lr, "")))
        if chosen is None:
            return cells
        for name in study.conditions:
            for shape in selection.batch_shapes:
                cells.append(_cell(study, shared, Cell("", SHAPE, name, selection.seed, chosen[name], "", shape)))
    for seed in study.seeds:
        for name, condition in study.conditions.items():
            lr = chosen[name] if chosen is not None else condition.learning_rate or study.train.learning_rate
            cells.append(_cell(study, shared, Cell("", MAIN, name, seed, lr, "")))
    return cells


def _cell(study: Study, shared: Mapping[str, Any], cell: Cell) -> Cell:
    """The cell with its hash and its id."""
    parts: dict[str, Any] = {
        **shared,
        "condition": study.conditions[cell.condition].model_dump(mode="json", exclude_none=True),
        "train": schedule(study, cell).model_dump(mode="json"),
        "seed": cell.seed,
        "lr": cell.lr,
        "phase": cell.phase,
    }
    share = fraction(study, cell)
    if share < 1:  # which rows they are hangs on the split's seed alone; rows and families are in the version
        parts |= {"data_fraction": share, "split_seed": study.split.seed}
    digest = hash_of(parts)
    middle = {
        SELECT: f"select-{cell.condition}-lr{cell.lr:g}-s{cell.seed}",
        SHAPE: f"shape-{cell.condition}-{'x'.join(map(str, cell.shape or ()))}-s{cell.seed}",
        MAIN: f"{cell.condition}-s{cell.seed}",
    }[cell.phase]
    return Cell(f"{middle}-{digest[:8]}", cell.phase, cell.condition, cell.seed, cell.lr, digest, cell.shape)


def schedule(study: Study, cell: Cell) -> Train:
    """The schedule one cell trains by: the study's, the condition's own steps or epochs, the cell's learning rate."""
    if cell.phase == BASELINE:
        return study.train
    condition, train = study.conditions[cell.condition], study.train
    changes: dict[str, Any] = {"learning_rate": cell.lr}
    if condition.max_steps is not None:
        changes["max_steps"] = condition.max_steps
    if condition.num_train_epochs is not None:
        changes |= {"num_train_epochs": condition.num_train_epochs, "max_steps": -1}
    if cell.phase in (SELECT, SHAPE) and study.selection is not None and study.selection.max_steps is not None:
        changes["max_steps"] = study.selection.max_steps
    if cell.shape is not None:
        changes |= _shaped(cell.shape, train, changes.get("max_steps", train.max_steps))
    return train.model_copy(update=changes)


def _shaped(shape: tuple[int, int], train: Train, max_steps: int) -> dict[str, Any]:
    """A shape of the declared effective batch is only timed; a larger one trains on as many rows in fewer steps."""
    micro, accumulation = shape
    declared, batch = effective_batch(train), micro * accumulation * train.devices
    steps = SHAPE_STEPS if batch == declared else max_steps
    if batch != declared and max_steps > 0:
        steps = max(1, round(max_steps * declared / batch))
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "max_steps": steps,
    }


def effective_batch(train: Train) -> int:
    """Rows of one optimizer step, over all devices and micro-batches."""
    return train.per_device_train_batch_size * train.gradient_accumulation_steps * train.devices


def fraction(study: Study, cell: Cell) -> float:
    """The share of the seen rows that a cell trains on."""
    share = study.conditions[cell.condition].data_fraction if cell.condition in study.conditions else None
    slice_ = study.selection.data_fraction if cell.phase in (SELECT, SHAPE) and study.selection is not None else 1.0
    return (share or 1.0) * slice_


def seen_rows(study: Study, data: Prepared, cell: Cell) -> tuple[Rendered, ...]:
    """The rows a cell trains on, in the order of the data file."""
    kept = kept_families(study, data, fraction(study, cell))
    return tuple(row for row in data.zone("seen") if data.family_of[row.row_id] in kept)


def kept_families(study: Study, data: Prepared, share: float) -> frozenset[str]:
    """The trained families of a share of the data: the first of a seeded order that hold at least so many rows.

    A smaller share's families are among those of every larger one. At least one family is kept.
    """
    size: dict[str, int] = {}
    for row in data.zone("seen"):
        family = data.family_of[row.row_id]
        size[family] = size.get(family, 0) + 1
    order = sorted(size, key=lambda family: (sha256_text(f"{study.split.seed}:{family}"), family))
    wanted, held, kept = Fraction(str(share)) * sum(size.values()), 0, []
    for family in order:
        if held >= wanted:
            break
        kept.append(family)
        held += size[family]
    return frozenset(kept)


def smallest_share(study: Study) -> float:
    """The least share of the seen rows that any condition's main runs train on."""
    return min((c.data_fraction or 1.0) for c in study.conditions.values())


def optimizer_steps(train: Train, n_rows: int) -> int:
    """Optimizer steps of a run on `n_rows` rows, as `transformers.Trainer` counts them."""
    if train.max_steps > 0:
        return train.max_steps
    batches = math.ceil(n_rows / (train.per_device_train_batch_size * train.devices))
    per_epoch = max(1, math.ceil(batches / train.gradient_accumulation_steps))
    return math.ceil(train.num_train_epochs * per_epoch)


def steps_of(study: Study, data: Prepared, cell: Cell) -> int:
    """Optimizer steps of a cell; 0 for the baseline."""
    return 0 if cell.phase == BASELINE else optimizer_steps(schedule(study, cell), len(seen_rows(study, data, cell)))


def training_tokens(study: Study, data: Prepared, cell: Cell) -> int:
    """Tokens a cell trains on, padding apart; 0 for the baseline."""
    if cell.phase == BASELINE:
        return 0
    rows, train = seen_rows(study, data, cell), schedule(study, cell)
    per_epoch = sum(len(r.input_ids) for r in rows)
    if train.max_steps > 0:
        return round(per_epoch * train.max_steps * effective_batch(train) / max(len(rows), 1))
    return round(per_epoch * train.num_train_epochs)


def checkpoints_of(train: Train, steps: int, n_rows: int) -> int:
    """Moments at which validation NLL is taken and a checkpoint written."""
    if train.eval_steps is not None:
        return steps // train.eval_steps + (steps % train.eval_steps > 0)
    return max(
        1, math.ceil(steps / optimizer_steps(train.model_copy(update={"max_steps": -1, "num_train_epochs": 1}), n_rows))
    )


def main_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are scored: the baseline and the main runs."""
    return [cell for cell in cells if cell.phase in (BASELINE, MAIN)]

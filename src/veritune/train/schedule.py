"""Which cells a study has, and what each trains on: its rows, its schedule, its number of steps.

Phases in the order in which they run: `baseline`; `select` (one cell a condition and learning rate of the grid, on the
reserved seed); `shape` (batch shapes, at the selected rate); `main` (every condition with every seed). With a
selection, the last two exist only once it is recorded: the selected rates are part of their ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from veritune.canonical import dumps, joined
from veritune.config.fields import BASELINE, MAIN_SET
from veritune.config.study import Study
from veritune.config.train import Train
from veritune.data.prepare import SET_COLUMN, Prepared
from veritune.errors import StudyError
from veritune.records import DataFacts, Facts, Rendered, Row
from veritune.store import hash_of, sha256_text

SELECT, SHAPE, MAIN = "select", "shape", "main"
BY_SOURCE = "eval_loss:"
"""What the log calls the validation NLL of one source, its name behind."""
NO_SOURCE = "no source"
"""What rows without a value in `data.source_field` are counted under."""
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


def plan_cells(study: Study, facts: Facts, chosen: Mapping[str, float] | None = None) -> list[Cell]:
    """All cells of a study in running order; seeds are the outermost loop, so that partial results are balanced.

    `chosen` are the selected learning rates by condition, None while the study's selection is not recorded.
    """
    own = {"model": facts.model, "rendered": facts.rendered_sha256, "version": facts.data_version}
    base_hash = hash_of({**own, "phase": BASELINE})
    shared = _Texts({key: dumps(value) for key, value in own.items()})
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


class _Texts:
    """The canonical text of what many cells share, made once: a study of 10,000 has a few hundred different texts."""

    def __init__(self, shared: Mapping[str, str]) -> None:
        self.shared = shared
        self.of: dict[tuple[object, ...], dict[str, str]] = {}

    def arm(self, study: Study, cell: Cell) -> dict[str, str]:
        """Everything in the cell's hash except its seed, by key."""
        key = (cell.phase, cell.condition, cell.lr, cell.shape)
        if key not in self.of:
            parts: dict[str, Any] = {
                "condition": study.conditions[cell.condition].model_dump(mode="json", exclude_none=True),
                "train": schedule(study, cell).model_dump(mode="json"),
                "lr": cell.lr,
                "phase": cell.phase,
            }
            share = fraction(study, cell)
            if share < 1:  # which rows they are hangs on the split's seed alone; rows and families are in the version
                parts |= {"data_fraction": share, "split_seed": study.split.seed}
            if isinstance(study.conditions[cell.condition].data, dict):
                parts |= {"split_seed": study.split.seed}
            self.of[key] = {**self.shared, **{name: dumps(value) for name, value in parts.items()}}
        return self.of[key]


def _cell(study: Study, texts: _Texts, cell: Cell) -> Cell:
    """The cell with its hash and its id."""
    digest = sha256_text(joined({**texts.arm(study, cell), "seed": dumps(cell.seed)}))
    middle = {
        SELECT: f"select-{cell.condition}-lr{cell.lr:g}-s{cell.seed}",
        SHAPE: f"shape-{cell.condition}-{'x'.join(map(str, cell.shape or ()))}-s{cell.seed}",
        MAIN: f"{cell.condition}-s{cell.seed}",
    }[cell.phase]
    return Cell(f"{middle}-{digest[:8]}", cell.phase, cell.condition, cell.seed, cell.lr, digest, cell.shape)


def summary_hash(study: Study, cell: Cell, facts: DataFacts) -> str:
    """The hash of a finished cell's inputs: its training inputs, the eval contracts and the items of benchmarks."""
    return summary_hasher(study, facts)(cell)


def summary_hasher(study: Study, facts: DataFacts) -> Callable[[Cell], str]:
    """`summary_hash` for many cells of one study: the shared part is serialised only once."""
    evals = {name: spec.model_dump(mode="json") for name, spec in study.evals.items()}
    scored = {"evals": dumps(evals)}
    scored |= {"items": dumps(facts.benchmarks)} if evals and facts.benchmarks else {}
    scored |= {"scorers": dumps(facts.scorers)} if evals and facts.scorers else {}

    def made_from(cell: Cell) -> str:
        parts = {"evals": "{}"} if cell.phase in (SELECT, SHAPE) else scored
        return sha256_text(joined({**parts, "cell": dumps(cell.input_hash)}))

    return made_from


def schedule(study: Study, cell: Cell) -> Train:
    """The schedule of one cell: the study's, with the condition's own steps or epochs and the cell's learning rate."""
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


def _shaped(shape: tuple[int, int], train: Train, max_steps: int) -> Mapping[str, int | None]:
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
    """The rows that a cell trains on, in the order of the data file."""
    kept = kept_families(study, data, fraction(study, cell))
    rows = tuple(row for row in data.zone("seen") if data.family_of[row.row_id] in kept)
    condition = study.conditions.get(cell.condition)
    if condition is None or condition.data is None or not study.data.sets:
        return rows
    shares = {condition.data: 1.0} if isinstance(condition.data, str) else condition.data
    return mixture(rows, shares, data, study.split.seed)


def mixture(rows: Sequence[Rendered], shares: Mapping[str, float], data: Prepared, seed: int) -> tuple[Rendered, ...]:
    """The largest set of rows with these shares of the named data sets, drawn in a seeded order of families, without
    repetition.

    Raises StudyError for a set without a trained row.
    """
    set_of = {row.id: set_name(row) for row in data.rows}
    there = {name: [row for row in rows if set_of[row.row_id] == name] for name in shares}
    for name, own in there.items():
        if not own:
            raise StudyError(
                f"data set {name!r} has no row in the zone `seen`.", fix="Lower the held-out shares, or add rows."
            )
    if len(shares) == 1:
        return tuple(there[next(iter(shares))])
    total = min(len(own) / shares[name] for name, own in there.items())
    taken: set[str] = set()
    for name, own in there.items():
        order = sorted(own, key=lambda r: (sha256_text(f"{seed}:{data.family_of[r.row_id]}"), r.row_id))
        taken |= {row.row_id for row in order[: max(1, round(shares[name] * total))]}
    return tuple(row for row in rows if row.row_id in taken)


def set_name(row: Row) -> str:
    """The data set that a row of a study came from."""
    return str(row.meta.get(SET_COLUMN, MAIN_SET))


def kept_families(study: Study, data: Prepared, share: float) -> frozenset[str]:
    """The trained families for a share of the data: the first ones of a seeded order that hold enough rows.

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
    """The smallest share of the seen rows on which any condition's main runs train."""
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
    """Number of tokens that a cell trains on, without padding; 0 for the baseline."""
    if cell.phase == BASELINE:
        return 0
    rows, train = seen_rows(study, data, cell), schedule(study, cell)
    per_epoch = sum(len(r.input_ids) for r in rows)
    if train.max_steps > 0:
        return round(per_epoch * train.max_steps * effective_batch(train) / max(len(rows), 1))
    return round(per_epoch * train.num_train_epochs)


def validation_steps(train: Train, steps: int, n_rows: int) -> list[int]:
    """Steps after which validation NLL is measured and a checkpoint written: those listed in `eval_steps`, every
    `eval_steps`, or at epoch ends; and the last one.
    """
    if isinstance(train.eval_steps, tuple):
        return sorted({*(step for step in train.eval_steps if step < steps), steps})
    epoch = train.model_copy(update={"max_steps": -1, "num_train_epochs": 1})
    every = train.eval_steps or optimizer_steps(epoch, n_rows)
    return [*range(every, steps, every), steps]


def check_cadence(study: Study, data: Prepared) -> None:
    """Raises StudyError for a step in `eval_steps` that a condition's main runs do not reach."""
    listed = study.train.eval_steps
    if not isinstance(listed, tuple):
        return
    for name in study.conditions:
        steps = steps_of(study, data, Cell("", MAIN, name, study.seeds[0], 0.0, ""))
        if listed[-1] > steps:
            raise StudyError(
                f"train.eval_steps: step {listed[-1]} comes after the last step of condition {name}, {steps}.",
                fix=f"List steps up to {steps}, or train longer. Nothing has trained.",
            )


def source_of_rows(study: Study, data: Prepared) -> dict[str, str]:
    """The source of every row, by its id: the column `data.source_field`, else its data set; empty without either.

    Raises StudyError where no validation row has a value in the column.
    """
    field = study.data.source_field
    if field is None:
        return {row.id: set_name(row) for row in data.rows} if study.data.sets else {}
    found = {row.id: str(row.meta[field]) for row in data.rows if row.meta.get(field) is not None}
    if not any(row.row_id in found for row in data.zone("validation")):
        columns = ", ".join(sorted({key for row in data.rows for key in row.meta if key != SET_COLUMN})) or "none"
        raise StudyError(f"data.source_field: no validation row has a value in {field!r}.", fix=f"Columns: {columns}.")
    return {row.id: found.get(row.id, NO_SOURCE) for row in data.rows}


def main_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that are scored: the baseline and the main runs."""
    return [cell for cell in cells if cell.phase in (BASELINE, MAIN)]


def by_source(
    rows: Sequence[Rendered], parts: Sequence[tuple[float, int]], source_of: Mapping[str, str]
) -> dict[str, float]:
    """NLL per target token of each source, with the names used in the log, from (sum, count) of rows; empty without
    sources.
    """
    if not source_of:
        return {}
    found: dict[str, list[tuple[float, int]]] = {}
    for row, part in zip(rows, parts, strict=True):
        found.setdefault(source_of[row.row_id], []).append(part)
    sums = {name: (sum(nats for nats, _ in own), sum(n for _, n in own)) for name, own in sorted(found.items())}
    return {BY_SOURCE + name: nats / n for name, (nats, n) in sums.items() if n}


def sources_in(logs: Mapping[str, float]) -> dict[str, float] | None:
    """Validation NLL by source in one line of the log; None if rows have no source."""
    return {key.removeprefix(BY_SOURCE): logs[key] for key in logs if key.startswith(BY_SOURCE)} or None

"""`veritune probe leak STUDY`, or `probes: {leak: true}` in the study: train each condition once more on a split that
ignores families, and compare.

The shadow runs lie in `probes/leak/`, apart from the study's own runs: they are no arm, and only a claim that names the
leak itself (`leak.flattered.ARM`) reads their record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.counting import many
from veritune.errors import InputError
from veritune.pipeline.cell import cells_of, is_done, ready_from_contract
from veritune.pipeline.ready import Ready
from veritune.probe.leak import APART, HELD_OUT, LeakLosses, leak, leaky_zones
from veritune.progress import Progress
from veritune.records import JsonLike, RowLosses, TrainingRecord
from veritune.seal import break_seal, refuse_edited, resealing
from veritune.store import Store, hash_of, read_json, write_json
from veritune.train.schedule import MAIN, Cell, seen_rows, set_name, training_tokens

if TYPE_CHECKING:
    from veritune.probe.leak import LeakLosses

FOLDER = "probes/leak"
LEAK = "leak"


def leak_command(
    study: str | Path, conditions: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, dict[str, JsonLike]]:
    """The leak record of each condition (by default of all) at the study's first seed; records on disk are not made
    again.

    Raises InputError for a condition that is not there or has not been run.
    """
    ready = ready_from_contract(study, progress or Progress())
    wrong = [name for name in conditions if name not in ready.study.conditions]
    if wrong:
        raise InputError(f"unknown condition {wrong[0]!r}.", fix=f"Conditions: {', '.join(ready.study.conditions)}.")
    made = {}
    with ready.store.lock():
        refuse_edited(ready.store)
        with resealing(ready.store, "probe leak"):
            for name in conditions or whole_conditions(ready.study):
                made[name] = leak_of(ready, name)
    return made


def whole_conditions(study: Study) -> list[str]:
    """The conditions that train on all seen rows; for a part of them, drawn by family, no comparable leaky split
    exists.
    """
    return [name for name, c in study.conditions.items() if c.data_fraction in (None, 1.0)]


def leak_is_done(ready: Ready, condition: str) -> bool:
    """Whether the record of a condition is on disk and was made from these inputs."""
    honest = _honest(ready, condition)
    return honest is not None and ready.store.is_done(_path(ready, condition), _split(ready, honest)[1])


def _honest(ready: Ready, condition: str) -> Cell | None:
    """The condition's main cell at the first seed; None while its learning rate is not chosen."""
    first = ready.study.seeds[0]
    return next((c for c in cells_of(ready) if (c.phase, c.condition, c.seed) == (MAIN, condition, first)), None)


def _path(ready: Ready, condition: str) -> Path:
    return ready.store.root / FOLDER / f"{condition}.json"


def _split(ready: Ready, honest: Cell) -> tuple[dict[str, str], str, list[str]]:
    """The leaky zones, the hash of what the shadow run is made from, and the rows it trains on."""
    data, sets, trained = ready.data, {}, None
    if ready.study.data.sets:
        sets = {row.id: set_name(row) for row in data.rows}
        trained = [row.row_id for row in seen_rows(ready.study, data, honest)]
    zones = leaky_zones(data.zone_of, honest.seed, trained=trained, set_of=sets)
    seen = [row.id for row in ready.data.rows if zones[row.id] == "seen"]
    return zones, hash_of({"cell": honest.input_hash, "leaky_seen": seen}), seen


def leak_of(ready: Ready, condition: str, *, planned: bool = False) -> dict[str, JsonLike]:
    """The leak record of one condition, made if it is not on disk. `planned`: the plan has already counted its tokens.

    Raises InputError when the study's own runs are missing, or the condition trains on a part of the rows.
    """
    baseline, honest = next(c for c in cells_of(ready) if c.phase == BASELINE), _honest(ready, condition)
    if condition not in whole_conditions(ready.study):
        raise InputError(
            f"{condition} trains on only a part of the rows.", fix="Name a condition that trains on all rows."
        )
    for cell in (baseline, honest):
        if cell is None or not is_done(ready, cell):
            what = condition if cell is None else cell.run_id
            raise InputError(f"{what} has not been run.", fix=f"Run the study first: veritune run {ready.store.root}")
    if not any(ready.data.zone_of[row] == "stranger" for row in ready.nll_rows):
        raise InputError("no stranger row is measured.", fix="Give an eval the zone `stranger`.")
    assert honest is not None
    zones, digest, seen = _split(ready, honest)
    path = _path(ready, condition)
    if not ready.store.is_done(path, digest):
        shadow = replace(honest, run_id=f"{condition}-leaky-s{honest.seed}-{digest[:8]}", phase=LEAK, input_hash=digest)
        ready.progress.say(
            f"leak     {condition}, seed {honest.seed}: {many(len(seen), 'rows')} drawn without regard to families"
        )
        losses = _train(ready, shadow, zones, planned)
        record = leak(_measured(ready, (baseline, honest), losses, zones))
        runs = {"run": f"{FOLDER}/runs/{shadow.run_id}", "honest": honest.run_id}
        break_seal(ready.store)
        write_json(path, {"input_hash": digest, **runs, "record": record})
        ready.store.log_once("probed", probe="leak", condition=condition, inputs=digest)
    found: dict[str, Any] = read_json(path)["record"]
    return found


def _train(ready: Ready, shadow: Cell, zones: Mapping[str, str], planned: bool) -> dict[str, float]:
    """Train the shadow run as its condition is trained; its loss on every row."""
    from veritune.train import cells

    data = replace(ready.data, zone_of=dict(zones))
    own = _own_rows(zones)
    if not planned:
        ready.progress.plan("train", training_tokens(ready.study, data, shadow))
        ready.progress.plan("nll", len(own))
    context = replace(ready.context, store=Store(ready.store.root / FOLDER), data=data)
    cells.start(context, shadow, ready.machine, ready.packages)
    ready.backend.train(context, shadow)
    weights = ready.backend.trained(context, shadow)
    cells.measure_nll(context, shadow, weights, own)
    return _losses(context.store, shadow.run_id)


def _own_rows(zones: Mapping[str, str]) -> list[str]:
    """The rows of the data sets that the condition trains on, held out or not, and the validation rows."""
    return [row for row, zone in zones.items() if zone != APART]


def measured_rows(ready: Ready, condition: str) -> list[str]:
    """The rows whose loss the probe measures for one condition, its shadow run's first, then the honest run's."""
    honest = _honest(ready, condition)
    if honest is None:
        return [row.id for row in ready.data.rows]
    zones = _split(ready, honest)[0]
    return _own_rows(zones) + _held_by_both(ready, zones)


def _held_by_both(ready: Ready, zones: Mapping[str, str]) -> list[str]:
    """With several data sets, the strangers of an arm's own sets that both splits hold out and no eval asks: the evals
    ask the rows that suit all arms, which are few of these."""
    if not ready.study.data.sets:
        return []
    asked, zone_of = set(ready.nll_rows), ready.data.zone_of
    return [row for row, zone in zones.items() if zone == HELD_OUT and zone_of[row] == "stranger" and row not in asked]


def _honest_losses(ready: Ready, honest: Any, zones: Mapping[str, str]) -> dict[str, float]:
    """The honest run's loss of every row that the evals ask, and of what both splits hold out besides, measured here
    while its weights are on disk."""
    from veritune.train import cells

    known, more = _losses(ready.store, honest.run_id), _held_by_both(ready, zones)
    checkpoint = TrainingRecord.load(ready.store.run(honest.run_id) / "training.json").checkpoint
    if not more or checkpoint is None or not (ready.store.root / checkpoint).exists():
        return known
    beside = replace(ready.context, store=Store(ready.store.root / FOLDER))
    cells.measure_nll(beside, honest, ready.backend.trained(ready.context, honest), more)
    return known | _losses(beside.store, honest.run_id)


def _losses(store: Store, run_id: str) -> dict[str, float]:
    rows = RowLosses.load(store.run(run_id) / "probes" / "nll.json").rows
    return {row.row_id: row.nll for row in rows}


def _measured(ready: Ready, cells: Sequence[Cell], leaky: Mapping[str, float], zones: Mapping[str, str]) -> LeakLosses:
    base, honest = _losses(ready.store, cells[0].run_id), _honest_losses(ready, cells[1], zones)
    data = ready.data
    trained = {row.row_id for row in seen_rows(ready.study, data, cells[1])}
    honest_zone = {r: APART if zone == "seen" and r not in trained else zone for r, zone in data.zone_of.items()}
    return LeakLosses(cells[1].condition, cells[1].seed, base, honest, leaky, honest_zone, zones, data.family_of)

"""`veritune probe leak STUDY`: train each condition once more on a split that ignores families, and compare.

The shadow runs lie in `probes/leak/`, apart from the study's own runs: no claim is ever decided from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from veritune.errors import InputError
from veritune.progress import Progress
from veritune.seal import refuse_edited, seal
from veritune.stages.cell import cells_of, is_done, ready_from_contract
from veritune.stages.ready import Ready
from veritune.store import Store, hash_of, read_json, write_json
from veritune.study import BASELINE

FOLDER = "probes/leak"


def leak_command(
    study: str | Path, conditions: Sequence[str] = (), progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """The leak record of each condition (all, unless named) at the study's first seed; what is on disk is not redone.

    Raises InputError for a condition that is not there or has not been run.
    """
    ready = ready_from_contract(study, progress or Progress())
    wrong = [name for name in conditions if name not in ready.study.conditions]
    if wrong:
        raise InputError(f"no condition {wrong[0]!r}.", fix=f"There are: {', '.join(ready.study.conditions)}.")
    made = {}
    with ready.store.lock():
        refuse_edited(ready.store)
        sealed = (ready.store.root / "seal.json").exists()
        for name in conditions or ready.study.conditions:
            made[name] = _one(ready, name)
        if sealed:
            seal(ready.store)
    return made


def _one(ready: Ready, condition: str) -> dict[str, Any]:
    from veritune.probe.leak import leak, leaky_zones

    cells = cells_of(ready)
    baseline = next(c for c in cells if c.phase == BASELINE)
    honest = next(c for c in cells if c.condition == condition and c.seed == ready.study.seeds[0])
    for cell in (baseline, honest):
        if not is_done(ready, cell):
            raise InputError(
                f"{cell.run_id} has not been run.", fix=f"Run the study first: veritune run {ready.store.root}"
            )
    zones = leaky_zones(ready.data.zone_of, honest.seed)
    seen = [row.id for row in ready.data.rows if zones[row.id] == "seen"]
    digest = hash_of({"cell": honest.input_hash, "leaky_seen": seen})
    path = ready.store.root / FOLDER / f"{condition}.json"
    if not ready.store.is_done(path, digest):
        shadow = replace(
            honest, run_id=f"{condition}-leaky-s{honest.seed}-{digest[:8]}", phase="leak", input_hash=digest
        )
        ready.progress.say(
            f"leak     {condition}, seed {honest.seed}: {len(seen)} rows drawn without regard to families"
        )
        losses = _train(ready, shadow, zones)
        record = leak(_measured(ready, (baseline, honest), losses, zones))
        write_json(path, {"input_hash": digest, "run": f"{FOLDER}/runs/{shadow.run_id}", "record": record})
        ready.store.log_once("probed", probe="leak", condition=condition, inputs=digest)
    found: dict[str, Any] = read_json(path)["record"]
    return found


def _train(ready: Ready, shadow: Any, zones: Mapping[str, str]) -> dict[str, float]:
    """Train the shadow run as its condition is trained; its loss on every row."""
    from veritune.train import cells
    from veritune.train.schedule import training_tokens

    data = replace(ready.data, zone_of=dict(zones))
    ready.progress.plan("train", training_tokens(ready.study, data, shadow))
    ready.progress.plan("nll", len(data.rows))
    context = replace(ready.context, store=Store(ready.store.root / FOLDER), data=data)
    cells.start(context, shadow, ready.machine, ready.packages)
    ready.backend.train(context, shadow)
    weights = ready.backend.trained(context, shadow)
    cells.measure_nll(context, shadow, weights, [row.id for row in data.rows])
    return _losses(context.store, shadow.run_id)


def _losses(store: Store, run_id: str) -> dict[str, float]:
    rows = read_json(store.run(run_id) / "probes" / "nll.json")["rows"]
    return {row["row_id"]: row["nll_sum"] / row["target_tokens"] for row in rows}


def _measured(ready: Ready, cells: Sequence[Any], leaky: Mapping[str, float], zones: Mapping[str, str]) -> Any:
    from veritune.probe.leak import Measured

    base, honest = (_losses(ready.store, cell.run_id) for cell in cells)
    data = ready.data
    return Measured(cells[1].condition, cells[1].seed, base, honest, leaky, data.zone_of, zones, data.family_of)

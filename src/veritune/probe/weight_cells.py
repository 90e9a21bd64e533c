"""How far each module moved beside a reference arm's: modules × conditions, over the seeds that both arms share.

A cell is one module of one condition. Its ratio is the geometric mean, over shared seeds, of its change's norm over the
reference's; a t over the seeds' log ratios gives interval and p, and every p of the grid is one Benjamini-Hochberg
family. The rule of the geometry grid gives the word: below .5 and above 1.5 times the reference, else between, and
`withheld` where a ratio beyond them is not clear of 1 by its corrected p. How far weights moved explains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.thresholds import DEFAULTS, GeometryThresholds
from veritune.errors import ModelError, did_you_mean
from veritune.probe.norms import Norms, beyond
from veritune.probe.series import change_of
from veritune.records import FORMAT_VERSION, Json, JsonLike, ModuleChange, RunManifest, TrainingRecord
from veritune.stats.intervals import Student
from veritune.stats.multiplicity import benjamini_hochberg
from veritune.store import Store
from veritune.train.models import resolve
from veritune.train.schedule import MAIN

LEVEL = 0.95
WORDS = ("below", "between", "above", "withheld")


@dataclass(frozen=True)
class WeightCell:
    """One module of one condition compared with the reference's. `ratio` is the geometric mean over `seeds`; `above`
    and `below` count the seeds whose own ratio is beyond the rule's limits. Ends and p are None with one seed.
    """

    condition: str
    module: str
    type: str
    layer: int | None
    seeds: tuple[int, ...]
    ratio: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    above: int
    below: int
    by_rule: str
    verdict: str


@dataclass(frozen=True)
class WeightGrid:
    """The grid of modules. `counts` are by condition: cells with each verdict, and by seed those beyond the rule."""

    reference: str
    cells: tuple[WeightCell, ...]
    counts: tuple[Json, ...]
    family: Json
    missing: tuple[str, ...]
    reading: str
    limits: str = (
        "How far weights move does not tell memorising from generalising; it follows rate, steps and rank. Modules of "
        "one run move together: a count of them is no number of independent repetitions."
    )
    would_change: str = (
        "More seeds: a claim on a count (weights.cells.above.REFERENCE.ARM) takes the spread between them."
    )
    kind: str = "weight_cells"
    format: int = FORMAT_VERSION


def study_grid(study: str | Path, reference: str, thresholds: GeometryThresholds = DEFAULTS.geometry) -> WeightGrid:
    """The grid of a study's scored checkpoints. Raises ModelError if the reference, or any run to compare it with, is
    missing.
    """
    store = Store.of(study)
    settings = load_study(store.study_file)
    if reference not in settings.conditions:
        known = list(settings.conditions)
        raise ModelError(
            f"--reference: unknown condition {reference!r}{did_you_mean(reference, known)}; conditions: {known}."
        )
    base, moved, missing = resolve(settings.model, store.root).path, {}, []
    for run_id, manifest, checkpoint in _scored(store):
        if checkpoint is None:
            missing.append(run_id)
            continue
        moved[manifest.condition, manifest.seed] = norms_of(change_of(checkpoint, base).modules)
    return judge_weights(moved, reference, thresholds, missing)


def _scored(store: Store) -> Iterator[tuple[str, RunManifest, Path | None]]:
    """Each main run with its scored checkpoint, None where that is not on disk."""
    for folder in sorted(p for p in store.runs.iterdir() if (p / "manifest.json").is_file()):
        manifest = RunManifest.load(folder / "manifest.json")
        record = folder / "training.json"
        if manifest.condition == BASELINE or manifest.phase != MAIN or not record.is_file():
            continue
        kept = TrainingRecord.load(record).checkpoint
        path = store.root / kept if kept else None
        yield folder.name, manifest, path if path is not None and path.is_dir() else None


def norms_of(modules: Sequence[ModuleChange]) -> Norms:
    """The numbers that the grid needs from each module's change."""
    return {m.module: (m.delta_norm, m.type, m.layer) for m in modules}


def judge_weights(
    moved: Mapping[tuple[str, int], Norms],
    reference: str,
    thresholds: GeometryThresholds = DEFAULTS.geometry,
    missing: Sequence[str] = (),
) -> WeightGrid:
    """The grid from each run's norms by (condition, seed). Raises ModelError if nothing can be compared with the
    reference.
    """
    others = list(dict.fromkeys(c for c, _ in moved if c != reference))
    cells = [cell for c in others for cell in _cells(moved, c, reference, thresholds)]
    if not cells:
        gone = f" ({', '.join(missing[:3])} kept no checkpoint)" if missing else ""
        raise ModelError(
            f"no module of another condition can be compared with {reference}'s{gone}.",
            fix="Compare conditions that both have a scored checkpoint on disk, a seed in common and a module "
            "that both train.",
        )
    tested = [i for i, cell in enumerate(cells) if cell.p is not None]
    for i, p in zip(tested, benjamini_hochberg([cells[i].p or 1.0 for i in tested]) if tested else ()):
        cells[i] = replace(cells[i], p_adjusted=p)
    cells = [replace(c, verdict=_verdict(c, thresholds.alpha)) for c in cells]
    counts = tuple(_count(cells, moved, c, reference, thresholds) for c in others)
    family = {
        "values": len(tested),
        "without_p": len(cells) - len(tested),
        "smallest_p": None,
        "why": "a t over seeds has no smallest p; sign flips of S seeds could not fall below 2/2^S",
        "correction": "Benjamini-Hochberg over all cells",
    }
    return WeightGrid(reference, tuple(cells), counts, family, tuple(missing), _reading(counts, reference, thresholds))


def _cells(
    moved: Mapping[tuple[str, int], Norms], condition: str, reference: str, thresholds: GeometryThresholds
) -> Iterator[WeightCell]:
    seeds = tuple(s for c, s in moved if c == condition and (reference, s) in moved)
    if not seeds:
        return
    for module, (_, kind, layer) in moved[condition, seeds[0]].items():
        pairs = [(moved[condition, s].get(module), moved[reference, s].get(module)) for s in seeds]
        norms = [(a[0], b[0]) for a, b in pairs if a is not None and b is not None and a[0] > 0 and b[0] > 0]
        if len(norms) < len(seeds):
            continue  # a module that one arm does not train has no ratio
        log_S = np.log([a / b for a, b in norms])
        low = high = p = None
        if len(seeds) > 1 and float(np.ptp(log_S)) > 0:
            spread = Student(float(log_S.mean()), float(log_S.std(ddof=1)) / math.sqrt(len(seeds)), len(seeds) - 1.0)
            ends, p = spread.interval(LEVEL), spread.p()
            low, high = math.exp(ends[0]), math.exp(min(ends[1], 700.0))
        ratio = math.exp(float(log_S.mean()))
        yield WeightCell(
            condition=condition, module=module, type=kind, layer=layer, seeds=seeds, ratio=ratio, low=low, high=high,
            p=p, p_adjusted=None,
            above=sum(a / b > thresholds.worse_above for a, b in norms),
            below=sum(a / b < thresholds.culprit_below for a, b in norms),
            by_rule=_word(ratio, thresholds), verdict="",
        )  # fmt: skip


def _word(ratio: float, thresholds: GeometryThresholds) -> str:
    return "below" if ratio < thresholds.culprit_below else "above" if ratio > thresholds.worse_above else "between"


def _verdict(cell: WeightCell, alpha: float) -> str:
    """The rule's word; one beyond the rule needs a ratio that is clear of 1."""
    clear = cell.p_adjusted is not None and cell.p_adjusted < alpha
    return cell.by_rule if clear or cell.by_rule == "between" else "withheld"


def _count(
    cells: Sequence[WeightCell], moved: Mapping[tuple[str, int], Norms], condition: str, reference: str,
    thresholds: GeometryThresholds,
) -> Mapping[str, JsonLike]:  # fmt: skip
    mine = [c for c in cells if c.condition == condition]
    by_seed = {
        str(s): dict(zip(("cells", "above", "below"), beyond(norms, moved[reference, s], thresholds)))
        for (c, s), norms in moved.items()
        if c == condition and (reference, s) in moved
    }
    words = {word: sum(c.verdict == word for c in mine) for word in WORDS}
    return {"condition": condition, "cells": len(mine), **words, "by_seed": by_seed}


def _reading(counts: Sequence[Json], reference: str, thresholds: GeometryThresholds) -> str:
    low, high = thresholds.culprit_below, thresholds.worse_above
    parts = [
        f"{x['condition']} moved above {high:g} times {reference}'s norm in {x['above']} of {x['cells']} modules, "
        f"below {low:g} in {x['below']}, between in {x['between']}"
        + (f", withheld {x['withheld']}" if x["withheld"] else "")
        for x in counts
        if x["cells"]
    ]
    return "; ".join(parts) + "."


def grid_table(grid: WeightGrid) -> str:
    """The cells as a table, one line each."""
    rows = [["condition", "module", "layer", "seeds", "over ref.", "95 %", "p", "verdict"]]
    for c in grid.cells:
        ends = "-" if c.low is None or c.high is None else f"{c.low:.2f} to {c.high:.2f}"
        p = "-" if c.p_adjusted is None else f"{c.p_adjusted:.2g}"
        layer = "-" if c.layer is None else str(c.layer)
        rows.append([c.condition, c.module, layer, str(len(c.seeds)), f"{c.ratio:.2f}", ends, p, c.verdict])
    width = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, width)).rstrip() for row in rows)

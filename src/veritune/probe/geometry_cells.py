"""Geometry as one flat grid: condition × seed × step × method × layer, M1 and ICC beside each other, from anywhere.

    grid = judge_cells(cells, reference="lora")        # cells of our own probe, or read from a table made elsewhere
    grid.reading                                       # "M1 rose in 38 of 40 cells of full ..."

A cell's change is from the untouched model. All p of the grid are one Benjamini-Hochberg family; its floor (the
smallest p that the personas allow) and how many cells must lie there for any to count are stated. Against a reference
condition the cell's change is put over the reference's in the same seed, step, method and layer (its mean over seeds
where the seed is not there): below `culprit_below` the reference's method is the culprit, above `worse_above` the cell
is worse, between them the change is generic. The word is withheld where the reference's own change is small or not
clear of 0; `by_rule` then says what the ratio alone would give. Each condition may have a reference of its own. Cells
of one run are not independent: a count of them has no interval of its own, and a claim on it takes the spread between
seeds. `dose` pools the seeds of each condition and step (`geometry_dose`).

Read from a table: centroids (`condition, layer, persona, centroid`), cosines between centroids (`condition, layer,
persona_a, persona_b, cosine`), or changes (`condition, layer, change` or `base, trained`, with `p`, `low`, `high` where
they are known). Centroids give M1, its exact swap p and its jackknife interval. Cosines within an arm give M1 and the
interval, and no p: a swap needs the cosines between the arms.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from veritune.config.thresholds import DEFAULTS, GeometryThresholds
from veritune.counting import many
from veritune.data.tables import table_rows
from veritune.errors import DataError, ScoreError
from veritune.probe.geometry_dose import LEVEL, dose_points
from veritune.records import (
    CellCount,
    CellFamily,
    CellGrid,
    GeometryGrid,
    GridCell,
    Json,
    JsonValue,
    LayerGeometry,
)
from veritune.stats.centroids import adjusted, cells_needed, floor_of, m1, permutation_p
from veritune.stats.intervals import t_quantile
from veritune.untrusted import parse_json

Floats = npt.NDArray[np.float64]
SHOWN = ("m1", "icc")
"""Measures of the grid; the others stand in each run's own record."""
BASE = "base"
"""The condition that a table gives the untouched model."""
NUMBERS = ("change", "base", "trained", "low", "high", "p")


def cells_of(grids: Sequence[GeometryGrid], layers: Sequence[int] | None = None) -> list[GridCell]:
    """The cells of Veritune's own geometry records. Raises ScoreError for a layer that the model does not have."""
    made = []
    for grid in grids:
        for method, found in grid.methods.items():
            there = [line.layer for line in found.layers]
            _known_layers(layers, there)
            for line in found.layers:
                if layers is None or line.layer in layers:
                    made += [cell for name in SHOWN if (cell := _cell_of(grid, method, line, name)) is not None]
    return made


def _cell_of(grid: GeometryGrid, method: str, line: LayerGeometry, name: str) -> GridCell | None:
    x = line.measure(name)
    if x.change is None:
        return None
    where = (grid.condition or grid.label, grid.seed, grid.step, method, line.layer, name)
    return GridCell(*where, x.change, x.base, x.trained, x.low, x.high, x.p, x.floor)


def _known_layers(wanted: Sequence[int] | None, there: Sequence[int]) -> None:
    missing = [layer for layer in wanted or () if layer not in there]
    if missing:
        raise ScoreError(
            f"--layers: unknown layer {missing[0]}.", fix=f"Layers: {min(there)} to {max(there)}; 0 is the embeddings."
        )


# ---------------------------------------------------------------- judged


def judge_cells(
    cells: Sequence[GridCell],
    reference: str | Mapping[str, str] | None = None,
    thresholds: GeometryThresholds = DEFAULTS.geometry,
    source: str = "",
) -> CellGrid:
    """Correct every p as one family, put each cell over its reference's, and count. Raises ScoreError.

    `reference` is one condition for all others, or names each condition's own.
    """
    if not cells:
        raise ScoreError("the grid has no cell.", fix="Name runs with checkpoints on disk, or a table with rows.")
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    beside = references(reference, conditions)
    corrected, family = _corrected(cells, thresholds)
    judged = [_against(cell, corrected, beside.get(cell.condition), thresholds) for cell in corrected]
    counts = tuple(_count(judged, condition, thresholds) for condition in conditions)
    flat = tuple(one for of in counts for one in of)
    limits = {"alpha": thresholds.alpha, "small_change": thresholds.small_change}
    limits |= {"culprit_below": thresholds.culprit_below, "worse_above": thresholds.worse_above}
    dose = dose_points(judged, beside)
    return CellGrid(source, reference, tuple(judged), flat, dose, family, limits, _reading(flat, family, beside))


def references(given: str | Mapping[str, str] | None, conditions: Sequence[str]) -> dict[str, str]:
    """Which condition each one is put beside. Raises ScoreError for a name that is not there, or beside itself."""
    if given is None:
        return {}
    beside = {c: given for c in conditions if c != given} if isinstance(given, str) else dict(given)
    for name in (given,) if isinstance(given, str) else (*beside, *beside.values()):
        if name not in conditions:
            raise ScoreError(f"--reference: unknown condition {name!r}.", fix=f"Conditions: {', '.join(conditions)}.")
    for name, other in beside.items():
        if name == other:
            raise ScoreError(f"--reference: {name} is put beside itself.", fix="Name another condition.")
    return beside


def _corrected(cells: Sequence[GridCell], thresholds: GeometryThresholds) -> tuple[list[GridCell], CellFamily]:
    by_measure: dict[str, list[int]] = defaultdict(list)
    for i, cell in enumerate(cells):
        if cell.p is not None:
            by_measure[cell.measure].append(i)
    values = adjusted({name: [float(cells[i].p or 0.0) for i in places] for name, places in by_measure.items()})
    made = list(cells)
    for name, places in by_measure.items():
        for i, value in zip(places, values[name]):
            made[i] = replace(cells[i], p_adjusted=value)
    n = sum(map(len, by_measure.values()))
    floors = [cell.floor for cell in cells if cell.floor is not None]
    floor = max(floors) if floors else None
    return made, CellFamily(
        values=n,
        without_p=len(cells) - n,
        smallest_p=floor,
        needed_at_smallest=None if floor is None else cells_needed(floor, n, thresholds.alpha),
        correction="Benjamini-Hochberg over all cells, and never below that over the measure's own",
    )


def moved(cell: GridCell, thresholds: GeometryThresholds) -> int:
    """1 or -1 if a cell rose or fell by its corrected p and by at least the smallest readable change, else 0."""
    if cell.p_adjusted is None or cell.p_adjusted >= thresholds.alpha or abs(cell.change) < thresholds.small_change:
        return 0
    return 1 if cell.change > 0 else -1


def _against(
    cell: GridCell, cells: Sequence[GridCell], reference: str | None, thresholds: GeometryThresholds
) -> GridCell:
    if reference is None:
        return cell
    beside = [c for c in cells if c.condition == reference and c.place == cell.place]
    beside = [c for c in beside if c.step == cell.step] or _latest(beside)
    beside = [c for c in beside if c.seed == cell.seed] or beside
    if not beside:
        return replace(cell, verdict="withheld", reason="the reference has no such cell")
    change = sum(c.change for c in beside) / len(beside)
    if change == 0:
        return replace(cell, verdict="withheld", reason="the reference did not change")
    ratio = cell.change / change
    low, high = thresholds.culprit_below, thresholds.worse_above
    word = "reference is the culprit" if ratio < low else "worse" if ratio > high else "generic"
    made = replace(cell, ratio=ratio, by_rule=word)
    why = ""
    if abs(change) < thresholds.small_change:
        why = f"the reference's change {change:+.4f} is below {thresholds.small_change:g}"
    elif not all(_clear(c, thresholds) for c in beside):
        bare = all(c.low is None and c.p is None for c in beside)
        unclear = f"the reference's change {change:+.4f} is not clear of 0"
        why = "no interval and no p of the reference is given" if bare else unclear
    elif ratio < 0:
        return replace(made, verdict=word, reason="the two moved in opposite directions")
    return replace(made, verdict="withheld" if why else word, reason=why)


def _latest(cells: Sequence[GridCell]) -> list[GridCell]:
    last = max((c.step for c in cells if c.step is not None), default=None)
    return [c for c in cells if c.step == last]


def _clear(cell: GridCell, thresholds: GeometryThresholds) -> bool:
    """Whether a change is clear of 0: by its interval, or where none is known by its p."""
    if cell.low is not None and cell.high is not None:
        return not cell.low <= 0 <= cell.high
    return cell.p is not None and cell.p < thresholds.alpha


def _count(cells: Sequence[GridCell], condition: str, thresholds: GeometryThresholds) -> list[CellCount]:
    made: list[CellCount] = []
    for measure in dict.fromkeys(cell.measure for cell in cells):
        mine = [c for c in cells if (c.condition, c.measure) == (condition, measure)]
        if not mine:
            continue
        ways = Counter(moved(c, thresholds) for c in mine)
        rose = sum(c.change > 0 for c in mine)
        words = dict(Counter(c.verdict for c in mine if c.verdict is not None))
        made.append(
            CellCount(
                condition=condition, measure=measure, cells=len(mine), rose=ways[1], fell=ways[-1],
                not_shown=ways[0], without_p=sum(c.p is None for c in mine), above_zero=rose, against=words,
            )
        )  # fmt: skip
    return made


def _reading(counts: Sequence[CellCount], family: CellFamily, beside: Mapping[str, str]) -> str:
    parts = []
    for x in counts:
        name, n = {"m1": "M1", "icc": "ICC"}.get(x.measure, x.measure), x.cells
        if x.without_p == n:
            said = f"{name} is higher in {x.above_zero} of {n} cells of {x.condition} (no p is known: not shown)"
        else:
            said = f"{name} rose in {x.rose} of {n} cells of {x.condition} and fell in {x.fell}"
        if x.against:
            words = ", ".join(f"{word} in {k}" for word, k in sorted(x.against.items(), key=lambda kv: -kv[1]))
            said += f" (against {beside[x.condition]}: {words})"
        parts.append(said)
    text = "; ".join(parts) + "."
    if family.values:
        floor, needed = family.smallest_p, family.needed_at_smallest
        least = "is not known" if floor is None else f"is {floor:.2g}, and {needed} must reach it for any to count"
        text += f" {family.values} p are one family; the smallest possible p {least}."
    return text


# ---------------------------------------------------------------- tables made elsewhere


def read_cells(path: Path, layers: Sequence[int] | None = None) -> list[GridCell]:
    """The cells of a table (JSONL, JSON or CSV) of centroids, cosines or changes. Raises DataError naming the row."""
    if not path.is_file():
        raise DataError(f"--from: no file at {path}.", fix="Give a JSONL or CSV table, or a study's folder.")
    try:
        rows = table_rows(path)
    except ScoreError as exc:
        raise DataError(exc.message, fix="Give a JSONL or CSV table with named columns.") from exc
    columns = set().union(*(row.keys() for row in rows))
    for needed, reader in (
        ({"persona", "centroid"}, _from_centroids),
        ({"persona_a", "persona_b", "cosine"}, _from_cosines),
        ({"change"}, _from_changes),
        ({"base", "trained"}, _from_changes),
    ):
        if needed <= columns:
            made = reader(path, rows)
            _known_layers(layers, sorted({cell.layer for cell in made}))
            return [cell for cell in made if layers is None or cell.layer in layers]
    raise DataError(
        f"{path.name}: expected columns of centroids (persona, centroid), of cosines (persona_a, persona_b, cosine) or "
        f"of changes (change, or base and trained), found {', '.join(sorted(map(str, columns)))}."
    )


Key = tuple[str, int | None, int | None, str, int]
"""Condition, seed, step, method, layer."""


def _key(path: Path, row: Mapping[str, JsonValue], number: int) -> Key:
    where = f"{path.name}, row {number}"
    condition = str(row.get("condition") or "").strip()
    if not condition:
        raise DataError(
            f"{where}: expected a `condition`, found none.",
            fix=f"Write the arm's name; for the untouched model write {BASE!r}.",
        )
    seed, step = (_whole(row.get(name), f"{where}, {name}") for name in ("seed", "step"))
    layer = _whole(row.get("layer"), f"{where}, layer")
    if layer is None:
        raise DataError(f"{where}: expected a `layer`, found none.", fix="Write a whole number; 0 is the embeddings.")
    return condition, seed, step, str(row.get("method") or "given"), layer


def _whole(value: JsonValue, where: str) -> int | None:
    number = _number(value, where, "a whole number")
    if number is not None and number != int(number):
        raise DataError(f"{where}: expected a whole number, found {value!r}.")
    return None if number is None else int(number)


def _number(value: JsonValue, where: str, expected: str = "a finite number") -> float | None:
    if value is None or value == "":
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise DataError(f"{where}: expected {expected}, found {value!r}.")
    return number


def _pairs_with_base(path: Path, of: Mapping[Key, object]) -> Iterable[tuple[Key, Key]]:
    """(base's key, run's key) at the same method and layer. Raises DataError where the base is not there."""
    bases = {(key[3], key[4]): key for key in of if key[0] == BASE}
    for key in of:
        if key[0] == BASE:
            continue
        base = bases.get((key[3], key[4]))
        if base is None:
            raise DataError(
                f"{path.name}: condition {key[0]} has layer {key[4]} by {key[3]}, but condition {BASE!r} does not.",
                fix=f"Add the untouched model's rows as condition {BASE!r}.",
            )
        yield base, key


def _from_centroids(path: Path, rows: Sequence[Json]) -> list[GridCell]:
    found: dict[Key, dict[str, list[float]]] = defaultdict(dict)
    for number, row in enumerate(rows, start=1):
        where, persona = f"{path.name}, row {number}", str(row.get("persona") or "")
        value = row.get("centroid")
        vector = _listed(value, where)
        if not persona or not isinstance(vector, list) or not vector:
            raise DataError(f"{where}: expected a persona and its centroid, a list of numbers.")
        of = found[_key(path, row, number)]
        if persona in of:
            raise DataError(f"{where}: persona {persona!r} occurs twice for this run and layer.")
        of[persona] = [_entry(x, f"{where}, entry {i}") for i, x in enumerate(vector, start=1)]
    made = []
    for base, key in _pairs_with_base(path, found):
        a, b = _aligned(path, key, found[base], found[key])
        made.append(_centroid_cell(path, key, a, b))
    return made


def _entry(value: JsonValue, where: str) -> float:
    """One number of a centroid. One that is missing is no 0: raises DataError."""
    number = _number(value, where)
    if number is None:
        raise DataError(f"{where}: expected a number, found {value!r}.")
    return number


def _listed(value: JsonValue, where: str) -> JsonValue:
    """A centroid as JSONL gives it, or as the text of a list in a CSV. Raises DataError."""
    if not isinstance(value, str):
        return value
    try:
        parsed: JsonValue = parse_json(value)
        return parsed
    except ValueError as exc:
        raise DataError(f"{where}: the centroid is not a list of numbers: {exc}.") from None


def _aligned(
    path: Path, key: Key, base: Mapping[str, list[float]], own: Mapping[str, list[float]]
) -> tuple[Floats, Floats]:
    """Both sides [P, H] in one order of personas. Raises DataError where personas or widths differ."""
    least = DEFAULTS.geometry.min_personas
    if set(base) != set(own) or len(base) < least:
        raise DataError(
            f"{path.name}: {key[0]}, layer {key[4]}: expected the base's personas, at least {least}, found {len(own)} "
            f"beside {len(base)} of the base."
        )
    if len({len(v) for side in (base, own) for v in side.values()}) > 1:
        raise DataError(f"{path.name}: {key[0]}, layer {key[4]}: centroids of different lengths.")
    names = sorted(base)
    return np.array([base[n] for n in names], float), np.array([own[n] for n in names], float)


def _centroid_cell(path: Path, key: Key, a: Floats, b: Floats) -> GridCell:
    before, after = m1(a), m1(b)
    if before is None or after is None:
        raise DataError(f"{path.name}: {key[0]}, layer {key[4]}: a centroid is zero and has no direction.")
    _, p = permutation_p(a, b)
    left = [(m1(np.delete(b, i, 0)) or 0.0) - (m1(np.delete(a, i, 0)) or 0.0) for i in range(len(a))]
    low, high = _jackknife(after - before, left)
    return GridCell(*key, "m1", after - before, before, after, low, high, p, floor_of(len(a)))


def _jackknife(change: float, left: Sequence[float]) -> tuple[float, float]:
    n, leave_P = len(left), np.array(left, float)
    se = float(np.sqrt((n - 1) / n * np.square(leave_P - leave_P.mean()).sum()))
    half = t_quantile(0.5 + LEVEL / 2, n - 1) * se
    return change - half, change + half


def _from_cosines(path: Path, rows: Sequence[Json]) -> list[GridCell]:
    found: dict[Key, dict[frozenset[str], float]] = defaultdict(dict)
    for number, row in enumerate(rows, start=1):
        where, names = f"{path.name}, row {number}", (str(row.get("persona_a")), str(row.get("persona_b")))
        value = _number(row.get("cosine"), f"{where}, cosine")
        if value is None or abs(value) > 1 + 1e-6:
            raise DataError(f"{where}: expected a cosine from -1 to 1, found {row.get('cosine')!r}.")
        if names[0] == names[1]:
            continue  # a persona with itself is no pair
        pair, of = frozenset(names), found[_key(path, row, number)]
        if abs(of.get(pair, value) - value) > 1e-9:
            raise DataError(f"{where}: {names[0]} and {names[1]} have two cosines in this run and layer.")
        of[pair] = value
    return [_cosine_cell(path, key, found[base], found[key]) for base, key in _pairs_with_base(path, found)]


def _cosine_cell(
    path: Path, key: Key, base: Mapping[frozenset[str], float], own: Mapping[frozenset[str], float]
) -> GridCell:
    names = sorted(set().union(*base))
    pairs = [frozenset((a, b)) for i, a in enumerate(names) for b in names[i + 1 :]]
    least = DEFAULTS.geometry.min_personas
    if len(names) < least or set(pairs) != set(base) or set(base) != set(own):
        raise DataError(
            f"{path.name}: {key[0]}, layer {key[4]}: expected every pair of the base's {many(len(names), 'personas')} "
            "(at least "
            f"{least}), {many(len(pairs), 'pairs')}, found {len(own)} beside {len(base)} of the base."
        )

    def mean(side: Mapping[frozenset[str], float], without: str | None = None) -> float:
        return float(np.mean([side[pair] for pair in pairs if without not in pair]))

    change = mean(own) - mean(base)
    low, high = _jackknife(change, [mean(own, name) - mean(base, name) for name in names])
    return GridCell(*key, "m1", change, mean(base), mean(own), low, high)


def _from_changes(path: Path, rows: Sequence[Json]) -> list[GridCell]:
    made: list[GridCell] = []
    seen: set[tuple[Key, str]] = set()
    for number, row in enumerate(rows, start=1):
        where, key = f"{path.name}, row {number}", _key(path, row, number)
        measure = str(row.get("measure") or "m1")
        x = {name: _number(row.get(name), f"{where}, {name}") for name in NUMBERS}
        change = x["change"]
        if x["base"] is not None and x["trained"] is not None:
            worked = x["trained"] - x["base"]
            if change is not None and abs(change - worked) > 5e-4 + 1e-3 * abs(worked):
                raise DataError(f"{where}: change is {change:g}, but trained - base is {worked:g}.")
            change = worked if change is None else change
        if change is None:
            raise DataError(f"{where}: expected `change`, or `base` and `trained` to compute it from; found neither.")
        if x["p"] is not None and not 0 < x["p"] <= 1:
            raise DataError(
                f"{where}: expected p above 0 and at most 1, found {x['p']:g}.",
                fix="Correct the p: a permutation p is never 0.",
            )
        if x["low"] is not None and x["high"] is not None and not x["low"] <= change <= x["high"]:
            raise DataError(f"{where}: expected low <= change <= high, found {x['low']:g}, {change:g}, {x['high']:g}.")
        if (key, measure) in seen:
            raise DataError(f"{where}: this condition, seed, step, method, layer and measure occurs twice.")
        seen.add((key, measure))
        made.append(GridCell(*key, measure, change, x["base"], x["trained"], x["low"], x["high"], x["p"]))
    return made

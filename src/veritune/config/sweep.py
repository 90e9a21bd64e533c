"""`sweep`: a grid over fields of the conditions, written once and expanded to a condition for each point."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from veritune.config.fields import as_number
from veritune.config.train import Condition
from veritune.records import JsonLike, JsonValue

SHORT = {
    "learning_rate": "lr",
    "data_fraction": "data",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "target_modules": "",
}

T = TypeVar("T")


def expand_sweep(raw: dict[str, Any]) -> dict[str, JsonLike]:
    """Return the settings with one condition for each point of the `sweep` grid, named `NAME-r4-data0p25`.

    Settings that are expanded already stay as they are. Raises ValueError for a bad grid or a field written twice.
    """
    grid = {key: list(v) if isinstance(v, list | tuple) else v for key, v in _in_order(raw["sweep"]).items()}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"sweep.{key}: expected a list of values, found {values!r}")
    declared = raw.get("conditions")
    if not isinstance(declared, dict) or not grid:
        return raw
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    ends = {_point_name(point): point for point in points}
    if len(ends) < len(points):
        raise ValueError("sweep: two points have the same name; list each value only once")
    if all(any(n.endswith(end) and _holds(c, p) for end, p in ends.items()) for n, c in _mappings(declared)):
        return raw
    expanded: dict[str, Any] = {}
    for name, condition in _mappings(declared):
        twice = [key for key in grid if condition.get(key) is not None]
        if twice:
            raise ValueError(f"conditions.{name}.{twice[0]}: it is also in `sweep`; remove it from one of the two")
        expanded |= {f"{name}{end}": {**condition, **point} for end, point in ends.items()}
    return {**raw, "conditions": expanded}


def swept(
    conditions: Mapping[str, Condition], grid: Mapping[str, Sequence[JsonValue]] | None
) -> dict[str, tuple[str, dict[str, Any]]]:
    """For every condition, the name it was written under and its point of the sweep; without a sweep, its own name and
    no point.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in conditions}
    grid = _in_order(grid or {})
    for values in itertools.product(*grid.values()) if grid else ():
        point = dict(zip(grid, values))
        end = _point_name(point)
        for name, condition in conditions.items():
            if name.endswith(end) and _holds(condition.model_dump(), point):
                found[name] = (name.removesuffix(end), point)
    return found


def _in_order(grid: Mapping[str, T]) -> dict[str, T]:
    """The grid in the order of a condition's fields: a contract sorts its keys, and names may not depend on that."""
    place = {name: i for i, name in enumerate(Condition.model_fields)}
    return {key: grid[key] for key in sorted(grid, key=lambda key: (place.get(key, len(place)), key))}


def _holds(condition: dict[str, Any], point: dict[str, Any]) -> bool:
    def plain(value: Any) -> JsonLike:
        return list(value) if isinstance(value, tuple) else as_number(value)

    return all(plain(condition.get(key)) == plain(value) for key, value in point.items())


def _mappings(declared: dict[str, Any]) -> list[tuple[str, dict[str, JsonLike]]]:
    wrong = [name for name, condition in declared.items() if not isinstance(condition, dict)]
    if wrong:
        raise ValueError(f"conditions.{wrong[0]}: expected a mapping of settings, found {declared[wrong[0]]!r}")
    return [(str(name), condition) for name, condition in declared.items()]


def _point_name(point: dict[str, JsonValue]) -> str:
    """`-r4-data0p25`: what is appended to a condition's name; a dot becomes `p`, other signs `_`."""
    parts = []
    for key, value in point.items():
        number = as_number(value)
        text = f"{number:.9g}" if isinstance(number, float) else str(value)
        if isinstance(value, list | tuple):
            text = "-".join(map(str, value))
        text = re.sub(r"e([+-])0*(\d)", r"e\1\2", text).replace("e+", "e").replace(".", "p")
        if key == "learning_rate" and isinstance(number, float) and number < 1e-3:
            text = re.sub(r"e-0*", "e-", f"{number:.6e}").replace(".", "p")
            text = re.sub(r"p?0+e", "e", text)
        parts.append(SHORT.get(key, key) + re.sub(r"[^A-Za-z0-9_\-]", "_", text))
    return "-" + "-".join(parts)

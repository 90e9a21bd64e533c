"""Records as canonical JSON text: the same record gives the same bytes. JSON never holds NaN or Infinity."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def to_json(record: Any) -> Any:
    """A record as plain JSON values. Raises ValueError on NaN or Infinity, naming where it sits."""
    return _plain(record, "$")


def _plain(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        absent = {name for name in getattr(value, "ABSENT_WHEN_NONE", ()) if getattr(value, name) is None}
        names = (f.name for f in dataclasses.fields(value) if f.name not in absent)
        return {name: _plain(getattr(value, name), f"{path}.{name}") for name in names}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{path}.{k}") for k, v in value.items()}
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path} is {value}: records hold finite numbers or null with a reason")
        return float(value)
    if isinstance(value, Sequence | set | frozenset):
        items = sorted(value) if isinstance(value, set | frozenset) else value
        return [_plain(v, f"{path}[{i}]") for i, v in enumerate(items)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return _plain(value.item(), path)
    if hasattr(value, "tolist"):
        return _plain(value.tolist(), path)
    raise TypeError(f"{path}: {type(value).__name__} has no JSON form")


def joined(parts: Mapping[str, str]) -> str:
    """The canonical JSON text of an object, built from the canonical texts of its values; equal to `dumps` of the whole
    object.

    For thousands of objects that share most of their values, whose text is then made once.
    """
    return "{" + ",".join(f"{dumps(key)}:{parts[key]}" for key in sorted(parts)) + "}"


def dumps(record: Any, *, indent: int | None = None) -> str:
    """Canonical JSON text: sorted keys, UTF-8 kept, no NaN. The same record gives the same bytes."""
    separators = None if indent else (",", ":")
    return json.dumps(
        to_json(record), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
    )

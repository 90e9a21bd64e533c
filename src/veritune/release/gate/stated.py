"""Whether an estimate in a file from elsewhere can be one: its numbers are numbers, and its interval is an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping

from veritune.records import JsonValue


def estimate_problem(estimate: Mapping[str, JsonValue], scale: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """Why a mapping with `value`, `low`, `high` and `level` is no estimate; empty if it is one. Each may be null.

    `scale` is the range of the measured quantity: the interval may reach beyond it, as a symmetric one does, but not
    lie outside.
    """
    for name in ("value", "low", "high", "level"):
        number = estimate.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            return f"expected a number as `{name}`, found {str(number)[:40]!r}"
    low, high, level = (estimate.get(name) for name in ("low", "high", "level"))
    if isinstance(level, int | float) and not 0 < level < 1:
        return f"expected a `level` between 0 and 1, found {level:g}"
    if not (isinstance(low, int | float) and isinstance(high, int | float)):
        return ""
    if low > high:
        return f"expected an interval from `low` to `high`, found {low:g} to {high:g}"
    if high < scale[0] or low > scale[1]:
        return f"expected an interval in {scale[0]:g} to {scale[1]:g}, found {low:g} to {high:g}"
    return ""

"""What a study's own frozen rule may hold: `{min_gap: 0.01, every_seed: true}`. `veritune.stats.rule` applies it."""

from __future__ import annotations

from collections.abc import Mapping

from veritune.errors import ScoreError
from veritune.records import JsonLike

RULE_KEYS = ("min_gap", "every_seed")


def check_rule(rule: Mapping[str, JsonLike]) -> None:
    """Raises ScoreError for a frozen rule with unknown keys or wrong values, so that no claim passes by it."""
    unknown = sorted(set(rule) - set(RULE_KEYS))
    if unknown or "min_gap" not in rule:
        raise ScoreError(
            f"expected a frozen rule with min_gap and optionally every_seed, found {sorted(rule)}.",
            fix="Remove the unknown keys of the rule; they would be ignored silently.",
        )
    least, every = rule["min_gap"], rule.get("every_seed", False)
    if isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least < float("inf"):
        raise ScoreError(f"expected min_gap to be a number of at least 0, found {least!r}.")
    if every not in (True, False):
        raise ScoreError(f"expected every_seed to be true or false, found {every!r}.")

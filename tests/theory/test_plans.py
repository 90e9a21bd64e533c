"""Planned against simulated power on a few designs; all of them: `python bench/theory/plans.py`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.theory

_FILE = Path(__file__).parents[2] / "bench" / "theory" / "plans.py"
_SPEC = importlib.util.spec_from_file_location("bench_theory_plans", _FILE)
assert _SPEC is not None and _SPEC.loader is not None
plans = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = plans
_SPEC.loader.exec_module(plans)

CASES = {case.name: case for case in plans.cases()}


@pytest.mark.parametrize(
    "name",
    [
        "binary 1v1 n=57",
        "graded 1v1 n=57",
        "binary 3v3 n=57",
        "binary 3v3 rate .1 n=57",
        "graded 2v2 20 families of 5",
        "graded 1v1 5 equal families of 20",
        "binary 1v1 8 families, one of 40 %",
        "graded 3v3 shared n=150",
    ],
)
def test_simulated_power_is_the_planned_one(name):
    """Within .05 and two standard errors of the 200 simulated studies."""
    for line in plans.check(CASES[name], 200):
        assert line.holds, f"{line.what}: planned {line.planned:.3f}, simulated {line.simulated:.3f}"


def test_the_short_way_to_a_decision_is_the_interval_itself():
    import numpy as np

    from veritune.stats.paired import PairOptions, compare_pair

    rng = np.random.default_rng(0)
    for name in ("binary 1v1 n=57", "graded 1v1 n=57", "graded 3v5 n=150", "graded 1v1 20 families, one of 40 %"):
        for _ in range(3):
            pair = plans.draw(CASES[name], 0.05, rng)
            spread = compare_pair(pair, PairOptions(scale=(0.0, 1.0), draws=999)).headline.spread
            low, high = spread.interval(0.95)
            for edge in (low - 1e-4, low + 1e-4, 0.0, -0.1):
                assert plans.beyond(spread, edge, 1, 0.025) == (low > edge)
                assert plans.beyond(spread, -edge, -1, 0.025) == (high < -edge)

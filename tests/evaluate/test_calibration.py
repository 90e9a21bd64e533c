"""Calibration: worked by hand, invariants, and the bias and coverage of its numbers where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veritune.errors import ScoreError
from veritune.evaluate.calibration import (
    DEBIASED_BIAS,
    DEBIASED_SPREAD,
    calibration,
    equal_mass,
    folded_mean,
)
from veritune.records import dumps


def test_two_bins_by_hand() -> None:
    """Ten rows at 0.6 with 5 right, ten at 0.9 with 9 right: gaps 0.1 and 0."""
    conf = [0.6] * 10 + [0.9] * 10
    right = [1] * 5 + [0] * 5 + [1] * 9 + [0]
    found = calibration(conf, right, bins=2)
    assert found.ece.value == pytest.approx(0.05)
    assert [line["gap"] for line in found.bins] == pytest.approx([0.1, 0.0])
    assert found.accuracy.value == pytest.approx(0.7)
    assert found.overconfidence.value == pytest.approx(0.05)
    # Brier: (5*.16 + 5*.36 + 9*.01 + 1*.81)/20; uncertainty .7*.3; reliability .5*.01; resolution .04
    assert found.brier.value == pytest.approx(0.175)
    parts = found.brier.details
    assert parts["reliability"] == pytest.approx(0.005)
    assert parts["resolution"] == pytest.approx(0.04)
    assert parts["uncertainty"] == pytest.approx(0.21)
    assert parts["within_bin"] == pytest.approx(0.0, abs=1e-12)
    assert "overconfident" not in found.reading
    dumps(found)


def test_decomposition_adds_up_whatever_the_bins() -> None:
    rng = np.random.default_rng(0)
    conf = rng.random(300)
    right = (rng.random(300) < conf**2).astype(float)
    for bins in (1, 4, 15):
        found = calibration(conf.tolist(), right.tolist(), bins=bins)
        d = found.brier.details
        total = d["reliability"] - d["resolution"] + d["uncertainty"] + d["within_bin"]
        assert total == pytest.approx(found.brier.value)


def test_order_of_rows_and_names_of_families_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    conf = np.round(rng.random(240), 1)  # many ties
    right = (rng.random(240) < conf).astype(int)
    family = rng.integers(0, 60, 240)
    turn = rng.permutation(240)
    one = calibration(conf.tolist(), right.tolist(), [f"f{k}" for k in family])
    two = calibration(conf[turn].tolist(), right[turn].tolist(), [f"other{k}" for k in family[turn]])
    for name in ("ece", "ece_debiased", "brier", "overconfidence"):
        a, b = getattr(one, name), getattr(two, name)
        assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high))


def test_equal_confidences_share_a_bin() -> None:
    conf = np.array([0.5] * 50 + [0.7] * 3 + [0.9] * 7)
    bin_N = equal_mass(conf, 10)
    assert all(len(set(bin_N[conf == c])) == 1 for c in (0.5, 0.7, 0.9))
    assert calibration([1.0] * 100, [1] * 100).ece.value == 0


def test_copies_of_rows_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(2)
    conf = rng.uniform(0.5, 1, 120)
    right = (rng.random(120) < conf).astype(int)
    names = [str(i) for i in range(120)]
    once = calibration(conf.tolist(), right.tolist(), names, bins=3)
    five = calibration(np.repeat(conf, 5).tolist(), np.repeat(right, 5).tolist(), np.repeat(names, 5).tolist(), bins=3)
    loose = calibration(np.repeat(conf, 5).tolist(), np.repeat(right, 5).tolist(), bins=3)
    for name in ("brier", "overconfidence", "ece_debiased"):
        width = [getattr(r, name).high - getattr(r, name).low for r in (once, five, loose)]
        assert width[1] > 0.95 * width[0] and width[2] < 0.75 * width[0], name


def _simulate(rng: Any, n: int, shift: float, per_family: int) -> tuple[Any, Any, Any, Any]:
    """Confidences, chances of being right, outcomes and families; rows of a family share their luck."""
    family = np.arange(n) // per_family
    conf = 0.5 + 0.5 * rng.random(n)
    chance = conf - shift
    shared = rng.random(n)[family]
    luck = np.where(rng.random(n) < 0.5, shared, rng.random(n)) if per_family > 1 else rng.random(n)
    return conf, chance, (luck < chance).astype(float), family


@pytest.mark.parametrize("per_family", [1, 4])
@pytest.mark.parametrize("shift", [0.0, 0.04, 0.12])
def test_bias_and_coverage_where_the_truth_is_known(shift: float, per_family: int) -> None:
    """Truth: the ECE of the bins at hand. 300 rows, 150 draws; 95 % intervals must hold in at least 91 %."""
    rng = np.random.default_rng(10 + per_family)
    plain, debiased, held = [], [], {"ece": 0, "ece_debiased": 0, "overconfidence": 0, "brier": 0}
    draws = 150
    for _ in range(draws):
        conf, chance, right, family = _simulate(rng, 300, shift, per_family)
        found = calibration(conf.tolist(), right.tolist(), [str(f) for f in family])
        plain.append(found.ece.value)
        debiased.append(found.ece_debiased.value)
        truth = {"ece": shift, "ece_debiased": shift, "overconfidence": shift}
        truth["brier"] = float((chance * (1 - conf) ** 2 + (1 - chance) * conf**2).mean())
        for name, value in truth.items():
            e = getattr(found, name)
            held[name] += e.low <= value <= e.high
    assert min(held.values()) >= 0.91 * draws, held
    assert np.mean(plain) >= shift - 0.002, "plain ECE is never biased downward"
    assert abs(np.mean(debiased) - shift) <= abs(np.mean(plain) - shift) + 0.012
    if shift == 0:
        assert np.mean(plain) > 0.06, "a perfectly calibrated model does not read 0"
        assert np.mean(debiased) < 0.65 * np.mean(plain)


def test_the_stated_bounds_of_bias_and_spread() -> None:
    """The debiased form 2|z| - E|N(z, 1)| of z ~ N(d, 1): its bias and spread over d, by quadrature."""
    points, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    bias, spread = [], []
    for d in np.linspace(0, 6, 61):
        z = points + d
        h = 2 * np.abs(z) - folded_mean(z, np.ones_like(z))
        mean = float(weights @ h)
        bias.append(mean - d)
        spread.append(float(weights @ (h - mean) ** 2) ** 0.5)
    assert DEBIASED_BIAS[0] == pytest.approx(min(bias), abs=0.01)
    assert DEBIASED_BIAS[1] == pytest.approx(max(bias), abs=0.01)
    assert max(spread) == pytest.approx(DEBIASED_SPREAD, abs=0.02)


def test_few_families_have_no_interval() -> None:
    found = calibration([0.7, 0.8] * 50, [1, 0] * 50, [f"f{i % 7}" for i in range(100)])
    for e in (found.ece, found.ece_debiased, found.brier, found.overconfidence):
        assert e.low is None and e.high is None and any("7 families" in w for w in e.warnings)
    assert "too few families" in found.reading
    one = calibration([0.7, 0.8] * 50, [1, 0] * 50, ["only"] * 100)
    assert one.n_families == 1 and one.ece.low is None


def test_missing_confidences_are_counted_and_left_out() -> None:
    found = calibration([0.5, None, 0.7, 0.9], [1, 1, None, 0], bins=1)
    assert (found.n, found.n_missing) == (2, 2)
    assert found.accuracy.value == 0.5


@pytest.mark.parametrize(
    ("conf", "right", "said"),
    [
        ([float("nan"), 0.5], [1, 0], "confidence in"),
        ([1.2, 0.5], [1, 0], "confidence in"),
        ([0.5, 0.5], [0.5, 0], "outcome of 0 or 1"),
        ([0.5], [1, 0], "lists of lengths"),
        ([None], [1], "no row has both"),
    ],
)
def test_what_cannot_be_used_is_named(conf: Any, right: Any, said: str) -> None:
    with pytest.raises(ScoreError, match=said):
        calibration(conf, right)

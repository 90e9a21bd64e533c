"""Measures of centroids: by hand, and their p under nulls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from veritune.stats.centroids import (
    Centroids,
    adjusted,
    cells_needed,
    changes,
    floor_of,
    icc,
    m1,
    m1_parts,
    permutation_p,
    reference_p,
    separation,
    swaps,
)


def side(h_P_Q_H: np.ndarray, reference_H: np.ndarray | None = None) -> Centroids:
    around = h_P_Q_H - h_P_Q_H.mean(0)
    gram = np.einsum("pqh,rqh->pr", around, around)
    reference = np.zeros(h_P_Q_H.shape[2]) if reference_H is None else reference_H
    return Centroids(h_P_Q_H.mean(1), reference, gram, h_P_Q_H.shape[1])


def test_m1_by_hand() -> None:
    assert m1(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])) == pytest.approx(1 / 3)
    assert m1(np.array([[1.0, 0.0], [0.0, 0.0]])) is None


def test_self_centring_is_a_structural_constant() -> None:
    """Why centring on the personas' own mean is not offered: far-apart random centroids always give -1/(m - 1)."""
    rows = np.random.default_rng(0).normal(size=(8, 4000))
    assert m1(rows - rows.mean(0)) == pytest.approx(-1 / 7, abs=1e-3)


def test_separation_and_drift_by_hand() -> None:
    """Centroids at -1, 0, 1, then at 4, 4.5, 5: half as far apart, their mean moved by 4.5 of a separation of .816."""
    before, after = np.array([[-1.0], [0.0], [1.0]]), np.array([[4.0], [4.5], [5.0]])
    assert separation(before) == pytest.approx(np.sqrt(2 / 3)) == 2 * separation(after)
    found = changes(*(Centroids(c, np.zeros(1), np.eye(3), 2) for c in (before, after)))
    assert found["separation"].change == pytest.approx(-0.5)
    assert found["common_drift"].change == pytest.approx(4.5 / np.sqrt(2 / 3))


def test_icc_reads_the_share_of_variance_that_groups_explain() -> None:
    values = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        group = draw.normal(size=(12, 1, 50)) * np.sqrt(0.3)
        question = draw.normal(size=(1, 16, 50)) * 2  # must not count
        values.append(icc(side(5 + group + question + draw.normal(size=(12, 16, 50)) * np.sqrt(0.7))))
    assert np.mean(np.array(values, float)) == pytest.approx(0.3, abs=0.02)


def test_icc_without_a_group_is_that_of_the_other_groups_states() -> None:
    """The jackknife takes a row off the Gram matrix; read again from the states it is the same."""
    draw = np.random.default_rng(0)
    h, h2 = (draw.normal(size=(5, 6, 7)) + draw.normal(size=(5, 1, 7)) for _ in range(2))
    change = changes(side(h), side(h2))["icc"]
    left = [icc(side(np.delete(h2, p, 0))) - icc(side(np.delete(h, p, 0))) for p in range(5)]  # type: ignore[operator]
    se = np.sqrt(4 / 5 * np.square(np.array(left) - np.mean(left)).sum())
    assert change.high - change.change == pytest.approx(2.7764 * se, rel=1e-4)  # type: ignore[operator]


def test_a_common_shift_leaves_icc_and_separation_as_they_are_and_moves_m1() -> None:
    draw = np.random.default_rng(0)
    h = draw.normal(size=(12, 16, 40)) + draw.normal(size=(12, 1, 40))
    found = changes(side(h), side(h + 5.0))
    assert found["m1"].change > 0.5  # type: ignore[operator]
    for name in ("icc", "separation"):
        assert found[name].change == pytest.approx(0, abs=1e-9) and found[name].p == 1.0
    assert found["common_drift"].p == floor_of(12)
    drift, arrangement = m1_parts(h.mean(1), h.mean(1) + 5.0)  # type: ignore[misc]
    assert arrangement == pytest.approx(0, abs=1e-12) and drift == pytest.approx(found["m1"].change)


def test_the_parts_of_m1_are_those_of_the_two_steps_in_either_order() -> None:
    draw = np.random.default_rng(1)
    a, b = (draw.normal(size=8) + draw.normal(size=(6, 8)) for _ in range(2))
    drift, arrangement = m1_parts(a, b)  # type: ignore[misc]
    assert drift + arrangement == pytest.approx(m1(b) - m1(a))  # type: ignore[operator]
    back = m1_parts(b, a)
    assert back == pytest.approx((-drift, -arrangement))


def test_swaps_are_all_of_them_or_drawn_with_the_observed_one_first() -> None:
    for n in (1, 4, 13):
        rows = swaps(n)
        assert len(np.unique(rows, axis=0)) == 2**n and not rows[0].any()
    assert not swaps(14)[0].any() and len(swaps(14)) == 8192 and floor_of(14) == 1 / 8192
    assert floor_of(5) == 0.0625


def test_p_of_m1_is_the_count_over_all_swaps_made_by_hand() -> None:
    draw = np.random.default_rng(2)
    a, b = (draw.normal(size=(5, 3)) + 1 for _ in range(2))
    ref_a, ref_b = draw.normal(size=3), draw.normal(size=3)
    observed, around = [], []
    for order in itertools.product([False, True], repeat=6):
        swap = np.array(order[:5])[:, None]
        one, two = np.where(swap, b, a), np.where(swap, a, b)
        first, second = (ref_b, ref_a) if order[5] else (ref_a, ref_b)
        around.append(abs(m1(two - second) - m1(one - first)))  # type: ignore[operator]
        observed.append(abs(m1(two) - m1(one)))  # type: ignore[operator]
    assert permutation_p(a, b) == (32, np.mean(np.array(observed) >= observed[0] - 1e-12))
    plain = [Centroids(a, ref_a, np.eye(5), 2), Centroids(b, ref_b, np.eye(5), 2)]
    assert reference_p(*plain) == (64, np.mean(np.array(around) >= around[0] - 1e-12))


def null(draw: np.random.Generator, n_groups: int, drift: float) -> tuple[Centroids, Centroids]:
    """Nothing changed but a shift of all states and noise of each group's own, in the reference too."""
    common, group = 2 * draw.normal(size=30), draw.normal(size=(n_groups, 1, 30))
    single = draw.normal(size=(n_groups, 8, 30))
    made = []
    for shift in (0.0, drift):
        noise = 0.15 * draw.normal(size=group.shape) + 0.5 * draw.normal(size=single.shape)
        made.append(side(common + shift + group + single + noise, common + 0.3 * draw.normal(size=30)))
    return made[0], made[1]


@pytest.mark.parametrize("n_groups", [6, 8])
def test_p_values_hold_their_level_where_nothing_changed(n_groups: int) -> None:
    draw, rounds = np.random.default_rng(3), 400
    low = dict.fromkeys(("m1", "m1_around_reference", "m1_without_top_channel", "icc", "separation", "common_drift"), 0)
    for _ in range(rounds):
        for name, change in changes(*null(draw, n_groups, 0.0)).items():
            assert change.p is not None and change.floor is not None and change.p >= change.floor
            low[name] += change.p <= 0.05
    most = 0.05 + 3 * np.sqrt(0.05 * 0.95 / rounds)
    assert all(n / rounds <= most for n in low.values()), low


def test_icc_and_separation_hold_their_level_under_a_drift_of_any_size() -> None:
    draw, rounds = np.random.default_rng(4), 300
    for drift in (1.0, 30.0):
        low = {"icc": 0, "separation": 0}
        for _ in range(rounds):
            found = changes(*null(draw, 8, drift))
            for name in low:
                low[name] += found[name].p <= 0.05  # type: ignore[operator]
        assert all(n / rounds <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / rounds) for n in low.values()), (drift, low)


def test_the_correction_is_over_all_values_and_over_each_measure() -> None:
    true, false = [0.001] * 8, [0.03, 0.5]
    found = adjusted({"drift": true, "icc": false})
    assert found["drift"] == pytest.approx([0.001 * 10 / 8] * 8)
    assert found["icc"] == pytest.approx([0.06, 0.5])  # over all ten values alone 0.03 would have been 0.033
    assert adjusted({"icc": []}) == {"icc": []}
    assert cells_needed(2 / 128, 186, 0.05) == 59

"""Forgetting: by hand, by its declared margin, and no strong word from few families."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from veritune.errors import ScoreError
from veritune.probe.batches import collate, mean_losses
from veritune.probe.forgetting import forgetting
from veritune.probe.memorization import row_losses
from veritune.records import dumps


def losses(rise: float, *, n: int = 40, spread: float = 0.02) -> tuple[list[float], list[float], list[str]]:
    draw = np.random.default_rng(0)
    before = 1 + draw.random(n)
    noise = spread * draw.standard_normal(n)
    return before.tolist(), (before + rise + noise - noise.mean()).tolist(), [f"f{i // 2}" for i in range(n)]


@pytest.mark.parametrize(
    ("rise", "verdict", "said"),
    [
        (0.2, "forgets", "by more than 0.05"),
        (0.049, "forgets", "by 0.05 or more is open"),
        (0.01, "keeps", "within 0.05"),
        (-0.1, "keeps", "within 0.05"),
    ],
)
def test_the_verdict_follows_the_declared_margin(rise: float, verdict: str, said: str) -> None:
    before, after, families = losses(rise)
    found = forgetting(before, after, families, margin=0.05)
    assert found.rise.value == pytest.approx(rise)
    assert found.verdict == verdict and said in found.reading
    dumps(found)


def test_a_noisy_rise_cannot_tell() -> None:
    before, after, families = losses(0.03, spread=0.4)
    assert forgetting(before, after, families).verdict == "cannot tell"


def test_worst_rows_are_named_and_counted() -> None:
    found = forgetting([1.0, 1.0, 1.0], [1.5, 0.5, 2.0], ["a", "b", "c"], row_ids=["x", "y", "z"])
    assert [w["row_id"] for w in found.worst] == ["z", "x"]
    assert found.share_worse.value == pytest.approx(2 / 3)
    assert found.verdict == "cannot tell" and "3 families" in found.reading


def test_rows_of_one_family_are_one_draw() -> None:
    before, after, families = losses(0.1)
    loose = forgetting(before * 4, after * 4, [None] * 160).rise
    kept = forgetting(before * 4, after * 4, families * 4).rise
    assert kept.high - kept.low > 1.5 * (loose.high - loose.low)


def test_what_a_model_knew_and_lost_is_found(make_model: Any, make_rows: Any) -> None:
    """Trained on A, then on B alone: A is forgotten, B is not."""
    model = make_model("llama", dtype=torch.float32)
    a, b = make_rows(12, seed=1, lengths=(12, 16)), make_rows(12, seed=2, lengths=(12, 16))
    families = [f"f{i}" for i in range(12)]
    made = {}
    for name, rows in (("a", a), ("b", b)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        batch = collate(rows)
        for _ in range(80):
            optimizer.zero_grad()
            mean_losses(model, batch).mean().backward()
            optimizer.step()
        made[name] = (row_losses(model, a), row_losses(model, b))
    on_a = forgetting(made["a"][0], made["b"][0], families)
    on_b = forgetting(made["a"][1], made["b"][1], families)
    assert on_a.verdict == "forgets" and on_a.rise.low > 0.5, on_a.reading
    assert on_b.verdict == "keeps", on_b.reading


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [([1.0, float("nan")], [1.0, 1.0], "row 1: nan before"), ([1.0], [1.0, 2.0], "one loss before"), ([], [], "found")],
)
def test_what_cannot_be_read_is_named(before: Any, after: Any, said: str) -> None:
    with pytest.raises(ScoreError, match=said):
        forgetting(before, after, ["f"] * len(before))


def test_a_row_that_lost_much_is_named_where_the_mean_says_kept() -> None:
    """One row of 200 lost 3 nats, the others gained .03: the mean fell, and the row is in the sentence all the same."""
    after = [1.0 - 0.03 * (i % 3) for i in range(200)]
    after[7] = 4.0
    found = forgetting([1.0] * 200, after, [f"f{i}" for i in range(200)], margin=0.05)
    assert found.verdict == "keeps"
    assert "By row it rose by more than 0.05 in 1 of 200, most in 7 (+3.000)" in found.reading
    calm = forgetting([1.0] * 200, [1.0 - 0.03 * (i % 3) for i in range(200)], [f"f{i}" for i in range(200)])
    assert "By row" not in calm.reading

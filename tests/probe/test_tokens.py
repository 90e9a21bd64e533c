"""Where the loss fell: classes by hand, shares that add up, and models trained to learn form or content."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from veritune.errors import ScoreError
from veritune.probe.batches import collate, mean_losses
from veritune.probe.tokens import CLASSES, classify, token_nlls, where_it_fell
from veritune.records import Rendered, dumps


def row(name: str, prompt: list[int], target: list[int]) -> Rendered:
    return Rendered(name, (*prompt, *target), (-100,) * len(prompt) + tuple(target))


def test_classes_by_hand() -> None:
    """Families a (two rows), b and c; every target opens 10 11 12, and a's rows share 20 21 22."""
    rows = [
        row("a1", [1, 5], [10, 11, 12, 20, 21, 22, 5]),
        row("a2", [1, 6], [10, 11, 12, 20, 21, 22, 30]),
        row("b1", [1, 7], [10, 11, 12, 31, 32, 33]),
        row("c1", [1, 8], [10, 11, 12, 34, 35, 36]),
    ]
    got = classify(rows, ["a", "a", "b", "c"], rows, ["a", "a", "b", "c"])
    #        1 5 10 / 5 10 11 hold the row's own prompt; 10 11 12 opens every target
    assert got[0] == ["novel", "novel", "template", "family", "family", "family", "prompt"]
    assert got[2] == ["novel", "novel", "template", "novel", "novel", "novel"]
    stranger = [row("d1", [1, 9], [10, 11, 12, 20, 21, 22])]
    assert classify(stranger, ["d"], rows, ["a", "a", "b", "c"])[0][2:] == ["template", "shared", "shared", "shared"]


def test_a_row_does_not_count_for_itself() -> None:
    rows = [row("a", [1], [10, 11, 12, 13]), row("b", [2], [20, 21, 22, 23])]
    assert set(classify(rows, ["a", "b"], rows, ["a", "b"])[0]) == {"novel"}


def test_token_nlls_add_up_to_the_rows_mean_losses(make_model: Any, make_rows: Any) -> None:
    model, rows = make_model("llama"), make_rows(6)
    nlls = token_nlls(model, rows, batch_size=4)
    expected = mean_losses(model, collate(rows)).tolist()
    assert [float(x.mean()) for x in nlls] == pytest.approx(expected, rel=1e-9)
    assert [len(x) for x in nlls] == [r.n_target for r in rows]


def made(kind: str, seed: int) -> tuple[list[Rendered], list[str]]:
    """Twelve families of three: targets share a form (8 tokens) and carry content of their own (8 tokens)."""
    draw = np.random.default_rng(seed)
    form = list(range(3, 11))
    rows, families = [], []
    for f in range(12):
        content = draw.integers(12, 60, 8).tolist()
        for j in range(3):
            prompt = [1, *draw.integers(12, 60, 3).tolist(), 2]
            rows.append(row(f"{kind}{f}-{j}", prompt, form + content))
            families.append(f"{kind}{f}")
    return rows, families


def test_the_fall_lands_on_form_for_strangers_and_on_content_for_seen_rows(make_model: Any) -> None:
    seen, seen_families = made("s", 0)
    strangers, stranger_families = made("x", 1)
    model = make_model("llama", dtype=torch.float32)
    before = {"seen": token_nlls(model, seen), "stranger": token_nlls(model, strangers)}
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(80):
        optimizer.zero_grad()
        mean_losses(model, collate(seen)).mean().backward()
        optimizer.step()
    reference = (seen, seen_families)
    on_seen = where_it_fell(seen, seen_families, before["seen"], token_nlls(model, seen), reference=reference)
    after = token_nlls(model, strangers)
    on_strangers = where_it_fell(strangers, stranger_families, before["stranger"], after, reference=reference)
    assert on_seen.by_class["family"].fall.low > 1.0
    assert on_strangers.by_class["template"].fall.low > 1.0
    assert on_strangers.by_class["novel"].fall.value < 0
    shares = [v.share for v in on_seen.by_class.values() if v.n_tokens]
    assert sum(shares) == pytest.approx(1.0)
    assert sum(p["n_tokens"] for p in on_seen.by_position) == on_seen.n_tokens == 36 * 16
    assert sum(v.n_tokens for v in on_seen.by_class.values()) == on_seen.n_tokens
    assert set(on_seen.by_class) == set(CLASSES)


def test_a_control_is_subtracted() -> None:
    rows, families = made("s", 0)
    before = [np.full(r.n_target, 3.0) for r in rows]
    after = [x - 2.0 for x in before]
    control = [x - 0.5 for x in before]
    fall = where_it_fell(rows, families, before, after, control=control)
    assert fall.by_class["family"].fall.value == pytest.approx(2.0)
    assert fall.by_class["family"].fall_beyond_control.value == pytest.approx(1.5)
    assert "No control" not in fall.reading


def test_a_rise_is_said_to_be_a_rise_and_has_no_shares() -> None:
    rows, families = made("s", 0)
    before = [np.full(r.n_target, 1.0) for r in rows]
    fall = where_it_fell(rows, families, before, [x + 0.5 for x in before])
    assert fall.reading.startswith("The loss did not fall")
    assert all(v.share is None for v in fall.by_class.values())


def test_classes_that_cancel_are_named_where_the_mean_over_all_tokens_did_not_move() -> None:
    rows, families = made("s", 0)
    draw, before, after = np.random.default_rng(0), [], []
    for kinds in classify(rows, families, rows, families):
        fell = np.array([kind == "family" for kind in kinds])
        step = np.where(fell, 0.6 / fell.mean(), -0.6 / (1 - fell.mean())) + 0.1 * draw.normal()
        before.append(np.full(len(kinds), 3.0))
        after.append(before[-1] - step)
    found = where_it_fell(rows, families, before, after)
    assert found.by_class["family"].fall.low > 0 and "fell by" in found.reading and "on family tokens" in found.reading
    assert "did not clearly fall" in found.reading or "did not fall" in found.reading
    assert "rose by" in found.reading
    swapped = [np.array([2.0, 4.0] * (r.n_target // 2)) for r in rows]
    level = where_it_fell(rows, families, [np.full(len(x), 3.0) for x in swapped], swapped)
    assert "did not change" not in level.reading  # a mean of 0 with every token changed


def test_the_record_colours_every_scored_token_and_is_plain_json() -> None:
    rows, families = made("s", 0)
    before = [np.linspace(1, 2, r.n_target) for r in rows]
    fall = json.loads(dumps(where_it_fell(rows, families, before, [x / 2 for x in before])))
    first = fall["rows"][0]
    assert len(first["at"]) == len(first["before"]) == len(first["after"]) == len(first["class"]) == 16
    assert [first["ids"][t] for t in first["at"]] == list(rows[0].labels[-16:])


def test_nlls_that_do_not_fit_are_named() -> None:
    rows, families = made("s", 0)
    before = [np.ones(r.n_target) for r in rows]
    with pytest.raises(ScoreError, match="'after' do not fit"):
        where_it_fell(rows, families, before, before[1:])
    broken = [x.copy() for x in before]
    broken[1][0] = np.nan
    with pytest.raises(ScoreError, match=r"row s0-1: the NLLs 'after' are not finite"):
        where_it_fell(rows, families, before, broken)

"""Forced choice: chance is a half whatever the rows; rows known by heart are told from strangers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from veritune.errors import DataError, ScoreError
from veritune.probe.batches import collate, mean_losses
from veritune.probe.memorization import matched_spans, verbatim_recall
from veritune.probe.recall import CHANCE, RecallPlan, build_choices, choice_scores, forced_choice
from veritune.records import ChoicesWon, Rendered, dumps


def random_rows(n: int, *, families: int, seed: int = 0) -> tuple[list[Rendered], list[str]]:
    """Rows of 24 random tokens, the first four prompt; family f's rows share nothing but the name."""
    draw = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        ids = tuple(draw.integers(3, 60, 24).tolist())
        rows.append(Rendered(f"r{seed}-{i}", ids, (-100,) * 4 + ids[4:]))
    return rows, [f"f{seed}-{i % families}" for i in range(n)]


def learn(model: Any, rows: list[Rendered], steps: int) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    batch = collate(rows)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_losses(model, batch).mean().backward()
        optimizer.step()


def both_zones() -> tuple[list[Rendered], list[str], list[str]]:
    seen, seen_families = random_rows(24, families=12)
    held, held_families = random_rows(24, families=12, seed=1)
    return seen + held, ["seen"] * 24 + ["stranger"] * 24, seen_families + held_families


def test_rows_known_by_heart_are_told_from_strangers(make_model: Any) -> None:
    rows, zones, families = both_zones()
    model = make_model("llama", dtype=torch.float32)
    choices = build_choices(rows, zones, families)
    before, spans_before = choice_scores(model, choices), matched_spans(model, rows)
    learn(model, rows[:24], 120)
    after, spans_after = choice_scores(model, choices), matched_spans(model, rows)
    found = forced_choice(choices, before, after)
    for kind in ("sibling", "stranger"):
        assert getattr(found.zones["seen"], kind).trained.value > 0.95
        assert 0.25 < getattr(found.zones["seen"], kind).base.value < 0.75
        assert 0.25 < getattr(found.zones["stranger"], kind).trained.value < 0.75
    assert found.contrast.estimate.low > 0.1
    assert "a trace of recall" in found.reading
    nothing = forced_choice(choices, before, before)
    assert nothing.contrast.estimate.value == 0 and nothing.contrast.estimate.low is None
    verbatim = verbatim_recall(spans_before, spans_after, zones, families)
    seen = verbatim.zones["seen"]
    beyond = seen.beyond_base  # all rows alike leave no interval to give
    assert beyond.value > 0.9 and (beyond.low is None or beyond.low > 0.5) and seen.base_as_long.value < 0.2
    assert seen.longest_copied.tokens > seen.longest_copied.base
    same = verbatim_recall(spans_after, spans_after, zones, families).zones["seen"]
    assert same.base_as_long.value == 1 and same.beyond_base.value == 0
    json.loads(dumps(found))


def test_a_model_without_a_preference_ties_and_reads_chance(make_model: Any) -> None:
    rows, zones, families = both_zones()
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    choices = build_choices(rows, zones, families)
    score_C = choice_scores(model, choices)
    found = forced_choice(choices, score_C, score_C)
    assert found.chance == CHANCE == 0.5
    assert found.zones["seen"].stranger.base.value == 0.5
    assert found.zones["seen"].stranger.ties == 2 * found.zones["seen"].stranger.n_choices


def test_scores_are_sums_of_log_probabilities_whatever_the_batch(make_model: Any) -> None:
    rows, zones, families = both_zones()
    model = make_model("llama")
    choices = build_choices(rows, zones, families, RecallPlan(others=1))
    score_C = choice_scores(model, choices, batch_size=5)
    assert np.allclose(score_C, choice_scores(model, choices, batch_size=1), atol=1e-9)
    one = choices.candidates[3]
    ids = torch.tensor([one.input_ids])
    logp = model(ids).logits.log_softmax(-1)[0]
    by_hand = sum(float(logp[t - 1, one.input_ids[t]].detach()) for t, x in enumerate(one.labels) if x != -100)
    assert score_C[3] == pytest.approx(by_hand)


def test_both_endings_of_a_choice_have_one_prefix_and_one_length() -> None:
    rows, zones, families = both_zones()
    rows[5] = Rendered("short", rows[5].input_ids[:20], rows[5].labels[:20])
    choices = build_choices(rows, zones, families, RecallPlan(length=9, others=3))
    for own, other in zip(choices.own, choices.other, strict=True):
        a, b = choices.candidates[own], choices.candidates[other]
        assert len(a.input_ids) == len(b.input_ids) and a.input_ids != b.input_ids
        start = next(t for t, x in enumerate(a.labels) if x != -100)
        assert a.input_ids[:start] == b.input_ids[:start] and a.n_target == b.n_target <= 9
    for row, other, kind in zip(choices.row, choices.other, choices.kind, strict=True):
        ending = tuple(x for x in choices.candidates[other].labels if x != -100)
        owners = {
            families[j]
            for j, r in enumerate(rows)
            if zones[j] == zones[row] and ending == r.input_ids[14 : 14 + len(ending)]
        }
        if owners:
            assert (families[row] in owners) == (kind == "sibling")


def test_what_decides_is_worked_by_hand() -> None:
    """Three choices of row 0: won, tied, lost. Its share is a half, and one tie is counted."""
    rows, zones, families = both_zones()
    choices = build_choices(rows, zones, families, RecallPlan(others=3))
    score_C = np.zeros(len(choices.candidates))
    mine = [
        k for k, (r, kind) in enumerate(zip(choices.row, choices.kind, strict=True)) if r == 0 and kind == "stranger"
    ]
    for k, value in zip(mine, (-1.0, 0.0, 1.0), strict=True):
        score_C[choices.other[k]] = value
    found = forced_choice(choices, score_C, score_C)
    assert found.zones["seen"].stranger.base.value == pytest.approx(0.5)
    assert found.zones["seen"].stranger.ties == 2 * (found.zones["seen"].stranger.n_choices - 2)


def test_rows_that_cannot_be_asked_are_counted() -> None:
    rows, zones, families = both_zones()
    rows[0] = Rendered("tiny", rows[0].input_ids[:8], rows[0].labels[:8])
    found = build_choices(rows, zones, families)
    assert found.skipped["seen"]["too_short"] == 1
    alone = build_choices(rows, zones, [None] * len(rows))
    assert alone.skipped["seen"]["no_sibling"] == 23
    same = [Rendered(f"same{i}", rows[1].input_ids, rows[1].labels) for i in range(4)]
    with pytest.raises(DataError, match="no row can be used: expected endings of at least"):
        build_choices(same, ["seen"] * 4, ["f"] * 4)


def test_scores_that_are_no_numbers_are_named() -> None:
    rows, zones, families = both_zones()
    choices = build_choices(rows, zones, families)
    good = np.zeros(len(choices.candidates))
    with pytest.raises(ScoreError, match="'after'"):
        forced_choice(choices, good, np.full(len(good), np.nan))


def test_one_family_has_shares_and_no_interval() -> None:
    rows, zones, _ = both_zones()
    choices = build_choices(rows, zones, ["one"] * 24 + ["two"] * 24)
    good = np.arange(len(choices.candidates), dtype=float)
    found = forced_choice(choices, good, good)
    assert found.zones["seen"].sibling.base.low is None
    assert found.zones["seen"].stranger == ChoicesWon(0, reason="no row has an ending of a stranger in its zone")
    assert "too little to say" in found.reading

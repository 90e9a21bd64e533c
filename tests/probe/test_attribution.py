"""Which families of training rows moved an output: the ranking, its nulls, and what retraining says of it."""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from veritune.errors import DataError, InputError
from veritune.pipeline import attribution as attributions
from veritune.pipeline.attribution import AttributionAsked, attribution_command
from veritune.probe import attribution as a
from veritune.probe.attribution_check import RANDOM, SIMILAR, TOP, Tried, choose_sets, verify
from veritune.probe.capture import Coverage
from veritune.probe.gradients import Products, Settings, measure
from veritune.records import Rendered
from veritune.report.attribution import attribution_text

FAMILIES, ROWS, ITEMS, CHOSEN, DIMS = 12, 4, 24, 6, 60


def world(seed: int, *, planted: bool) -> tuple[list[Products], a.RowFamilies]:
    """Gradients at two checkpoints: every family has a direction, family 0 helps every item, and in the planted world
    the chosen items lean towards family 3."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=DIMS)
    direction_F_D = rng.normal(size=(FAMILIES, DIMS))
    direction_F_D[0] += 3 * common
    made = []
    for _ in range(2):
        rows = np.repeat(direction_F_D, ROWS, axis=0) + 0.5 * rng.normal(size=(FAMILIES * ROWS, DIMS)) + 0.5 * common
        items = 2 * common + 1.5 * rng.normal(size=(ITEMS, DIMS))
        if planted:
            items[:CHOSEN] += direction_F_D[3]
        whole = np.vstack([rows, items])
        made.append(Products({"q_proj": whole @ whole.T}, np.ones(len(whole)), "trainable", Coverage(1, 1, {}), None))
    names = [f"f{f}" for f in range(FAMILIES) for _ in range(ROWS)]
    return made, a.RowFamilies.of(names, [f"r{i}" for i in range(len(names))])


def ranked(seed: int, *, planted: bool) -> a.Ranking:
    made, families = world(seed, planted=planted)
    score_Q_F = a.gradient_scores(made, FAMILIES * ROWS, families)
    names = [f"i{q}" for q in range(ITEMS)]
    (found,) = a.rankings(score_Q_F, np.zeros_like(score_Q_F), [range(CHOSEN)], names, families, 3)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_family_is_on_top_and_the_one_that_helps_all_items_is_not(seed: int) -> None:
    found = ranked(seed, planted=True)
    assert found.shown and found.families[0].family == "f3"
    assert found.families[0].rows == ROWS and found.families[0].row == f"r{3 * ROWS}"


def test_uncentred_scores_would_have_put_the_family_that_helps_all_items_on_top() -> None:
    made, families = world(0, planted=True)
    cosine = a.unit(made[0].gram_N_N)[FAMILIES * ROWS :, : FAMILIES * ROWS]
    raw_F = np.add.reduceat(cosine[:CHOSEN].mean(axis=0), np.arange(0, FAMILIES * ROWS, ROWS))
    assert int(raw_F.argmax()) == 0
    assert np.abs(families.summed(cosine).mean(axis=0)).max() < 1e-12


def test_a_list_without_a_cause_is_withheld_as_often_as_alpha_says() -> None:
    shown = 0
    for seed in range(120):
        made, families = world(seed, planted=False)
        score_Q_F = a.gradient_scores(made, FAMILIES * ROWS, families)
        shown += a.null_p(score_Q_F, range(CHOSEN), draws=199, seed=seed) <= a.ALPHA
    assert shown <= 120 * 0.05 + 3 * np.sqrt(120 * 0.05 * 0.95)


def test_a_withheld_list_names_no_family_and_says_why() -> None:
    seed = next(s for s in range(20) if a.null_p(_scores(s), range(CHOSEN)) > 0.2)
    found = ranked(seed, planted=False)
    assert not found.shown and found.families == () and "rank some family as high" in found.why


def _scores(seed: int) -> np.ndarray:
    made, families = world(seed, planted=False)
    return a.gradient_scores(made, FAMILIES * ROWS, families)


def test_one_checkpoint_few_items_or_few_families_are_refused() -> None:
    made, families = world(0, planted=True)
    with pytest.raises(DataError, match="2 checkpoints or more, found 1"):
        a.gradient_scores(made[:1], FAMILIES * ROWS, families)
    with pytest.raises(DataError, match="at least 8 items"):
        a.gradient_scores(made, FAMILIES * ROWS + ITEMS - 7, families)
    with pytest.raises(DataError, match="at least 6 training families"):
        a.RowFamilies.of(["x", "y"], ["r0", "r1"])


def test_words_are_weighed_by_how_rare_they_are() -> None:
    families = a.RowFamilies.of([f"f{i}" for i in range(6)], [f"r{i}" for i in range(6)])
    rows = ["the harbor", "the gate", "the lamp", "the ferry", "the crane", "the boat"]
    text_Q_F = a.text_scores(["the ferry", "the lamp"], rows, families)
    assert text_Q_F[0].argmax() == 3 and text_Q_F[1].argmax() == 2
    assert text_Q_F[0][3] == pytest.approx(0.5 * (1 - a._tf_idf([*rows, "the ferry", "the lamp"])[3]
                                                  @ a._tf_idf([*rows, "the ferry", "the lamp"])[7]))  # fmt: skip


# ---------------------------------------------------------------- what retraining says


def tried(effect_top: float, effect_other: float, seeds: int = 3) -> tuple[Tried, np.ndarray]:
    rng = np.random.default_rng(3)
    score_Q_F = rng.normal(size=(10, 8))
    score_Q_F -= score_Q_F.mean(axis=0)
    sets = choose_sets(score_Q_F[:4].mean(axis=0), -score_Q_F[:4].mean(axis=0), 2, range(seeds))
    whole = rng.normal(2.0, 0.01, (seeds, 10))
    without = {
        name: whole + (effect_top if name == TOP else effect_other) + rng.normal(0, 0.002, (seeds, 10)) for name in sets
    }
    ids, families = tuple(f"i{q}" for q in range(10)), tuple(f"g{q}" for q in range(10))
    return Tried(tuple(range(seeds)), whole, without, sets, (0, 1, 2, 3), ids, families), score_Q_F


def test_effects_are_those_planted_and_the_intervals_hold_them() -> None:
    made, score_Q_F = tried(0.3, 0.1)
    found = verify(made, score_Q_F, score_Q_F, [f"f{f}" for f in range(8)], np.full(8, 5))
    by_name = {part.name: part.effect for part in found.sets}
    for name, value in ((TOP, 0.3), (SIMILAR, 0.1), (RANDOM, 0.1)):
        assert by_name[name].value == pytest.approx(value, abs=0.005)
        assert by_name[name].low < value < by_name[name].high and by_name[name].n_seeds == 3
    assert found.contrasts[1].low > 0.15
    assert found.sets[0].rows == {"0": 10, "1": 10, "2": 10}


def test_one_seed_gives_no_interval() -> None:
    made, score_Q_F = tried(0.3, 0.1, seeds=1)
    found = verify(made, score_Q_F, score_Q_F, [f"f{f}" for f in range(8)], np.full(8, 5))
    assert found.sets[0].effect.low is None and found.rank_correlation is None


def test_predictions_that_come_true_correlate_and_rotated_ones_do_less() -> None:
    made, score_Q_F = tried(0.0, 0.0)
    real = {
        name: made.whole_S_Q + np.array([score_Q_F[:, list(left)].sum(axis=1) for left in made.left_out[name]])
        for name in made.without
    }
    found = verify(replace(made, without=real), score_Q_F, -score_Q_F, [f"f{f}" for f in range(8)], np.full(8, 5))
    assert found.rank_correlation == pytest.approx(1.0) and found.text_correlation == pytest.approx(-1.0)
    assert found.rotated_max is not None and found.rotated_max < 1.0
    assert found.sets_compared >= 4


def test_random_families_are_never_the_top_ones() -> None:
    sets = choose_sets(np.arange(8.0), -np.arange(8.0), 3, (0, 1, 2))
    assert set(sets[TOP]) == {(7, 6, 5)} and set(sets[SIMILAR]) == {(0, 1, 2)}
    assert all(not set(left) & {5, 6, 7} for left in sets[RANDOM]) and len(set(sets[RANDOM])) > 1


# ---------------------------------------------------------------- a real, tiny model


def test_a_tiny_model_s_wrong_outputs_lead_to_the_family_that_taught_them(tiny_model: Path) -> None:
    """Family f3 answers in words of its own. Items whose prompts look like no family's, answered in its way, lead to
    it; the same prompts with answers of no family are withheld."""
    rows, names = _taught()
    model, states = _train(tiny_model, rows)
    rng = random.Random(5)
    prompts = [tuple(rng.randrange(260, 380) for _ in range(6)) for _ in range(20)]
    odd = [_row(f"i{q}", p, (300, 301, 300, 301)) for q, p in enumerate(prompts[:6])]
    plain = [_row(f"i{q}", p, tuple(rng.randrange(60, 120) for _ in range(4))) for q, p in enumerate(prompts[6:], 6)]
    families = a.RowFamilies.of(names, [r.row_id for r in rows])

    def found(items: Sequence[Rendered], chosen: Sequence[int]) -> a.Ranking:
        measured = []
        for state in states:
            model.load_state_dict(state)
            measured.append(measure(model, [*rows, *items], Settings(of="trainable")))
        score_Q_F = a.gradient_scores(measured, len(rows), families)
        ids = [r.row_id for r in items]
        return a.rankings(score_Q_F, np.zeros_like(score_Q_F), [chosen], ids, families, 2)[0]

    caused = found([*odd, *plain], range(6))
    assert caused.shown and caused.families[0].family == "f3"
    assert not found([*plain[:7], *plain[7:]], range(5)).shown


def _row(name: str, prompt: tuple[int, ...], answer: tuple[int, ...]) -> Rendered:
    return Rendered(name, prompt + answer, (-100,) * len(prompt) + answer)


def _taught() -> tuple[list[Rendered], list[str]]:
    """Ten families of three rows; f3 answers in two tokens that no other row has."""
    rng = random.Random(1)
    rows, names = [], []
    for f in range(10):
        words = [rng.randrange(100, 250) for _ in range(5)]
        answer = (300, 301, 300, 301) if f == 3 else tuple(rng.randrange(100, 250) for _ in range(4))
        for k in range(3):
            rows.append(_row(f"f{f}-{k}", tuple(rng.sample(words, 5)), answer))
            names.append(f"f{f}")
    return rows, names


def _train(folder: Path, rows: list[Rendered]):
    """A LoRA trained for 30 steps; the model and its states at the start, half way and at the end."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from veritune.probe.batches import in_batches, mean_losses
    from veritune.train.models import quiet_transformers

    torch.manual_seed(0)
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    states = [copy.deepcopy(model.state_dict())]
    for step in range(30):
        batch = next(iter(in_batches(random.Random(step).sample(rows, 8), 8)))[1]
        optimizer.zero_grad()
        mean_losses(model, batch).mean().backward()
        optimizer.step()
        if step in (14, 29):
            states.append(copy.deepcopy(model.state_dict()))
    return model, states


# ---------------------------------------------------------------- the command's way


def test_a_finished_study_is_ranked_and_retrained_and_says_that_it_is_experimental(
    finished_copy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert attributions.CHECK_SEEDS == 3
    monkeypatch.setattr(attributions, "CHECK_SEEDS", 2)  # the seeds that the study ran with: six trainings, not ten
    asked = AttributionAsked("all_layer", top=1, verify=True)
    made = attribution_command(finished_copy.root, asked)
    text = attribution_text(made)
    assert text.startswith("EXPERIMENTAL") and "“these rows caused the output”" in text
    assert made.checkpoints[0] == "start" and len(made.checkpoints) >= 2
    assert made.verified is not None and made.verified.seeds == (0, 1)
    assert made.cost["trainings"] == 6
    assert {part.name for part in made.verified.sets} == {TOP, SIMILAR, RANDOM}
    assert all(part.effect.n_seeds == 2 for part in made.verified.sets)
    (record,) = (finished_copy.root / "probes" / "attribution").glob("*.json")
    assert '"experimental"' in record.read_text(encoding="utf-8")
    runs = finished_copy.root / "probes" / "attribution" / "runs"
    # Two sets that happen to leave the same families out are one run.
    assert 4 <= len(list(runs.iterdir())) <= 6 and not list(runs.glob("*/checkpoints"))
    again = attribution_command(finished_copy.root, replace(asked, verify=False, items=made.rankings[0].items[:1]))
    assert again.rankings[0].items == made.rankings[0].items[:1] and len(again.rankings) == 1
    with pytest.raises(InputError, match="--verify leaves out 9"):
        attribution_command(finished_copy.root, replace(asked, top=9))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (AttributionAsked("all_layers"), "did you mean 'all_layer'"),
        (AttributionAsked("all_layer", seed=7), "with seed 7 has not been run"),
        (AttributionAsked("all_layer", eval="stile"), "unknown eval 'stile'"),
        (AttributionAsked("all_layer", items=("f99",)), "no output for item 'f99'"),
    ],
)
def test_what_is_not_there_is_named(finished, asked: AttributionAsked, message: str) -> None:
    with pytest.raises(InputError, match=message):
        attribution_command(finished.root, asked)

"""Representation geometry: by hand, by simulation, and on tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veritune.config.thresholds import DEFAULTS
from veritune.errors import DataError, ModelError, ScoreError
from veritune.probe.geometry import (
    PERSONAS,
    QUESTIONS,
    Prompts,
    States,
    geometry,
    render_personas,
    states,
)
from veritune.probe.geometry_grid import GridRun, against_reference, build_grids
from veritune.records import LayerGeometry, MeasureChange, dumps, to_json
from veritune.report.geometry import geometry_table
from veritune.stats.centroids import MEASURES


def prompts(n_personas: int = 6, n_questions: int = 5, seed: int = 0) -> Prompts:
    draw = np.random.default_rng(seed)

    def ids(head: int) -> tuple[int, ...]:
        return (1, head, *draw.integers(20, 60, int(draw.integers(3, 8))).tolist())

    asked = tuple(tuple(ids(3 + p) for _ in range(n_questions)) for p in range(n_personas))
    return Prompts(tuple(f"p{i}" for i in range(n_personas)), asked, tuple(ids(19) for _ in range(n_questions)), "h")


def made(h_P_Q_H: np.ndarray, reference_H: np.ndarray | None = None) -> States:
    """States of one layer from every hidden state."""
    around = h_P_Q_H - h_P_Q_H.mean(0)
    gram = np.einsum("pqh,rqh->pr", around, around)[None]
    reference = np.zeros(h_P_Q_H.shape[2]) if reference_H is None else reference_H
    return States(h_P_Q_H.mean(1)[None], reference[None], gram, h_P_Q_H.shape[1], "last_input_token", "h")


def test_states_equal_hidden_states_taken_row_by_row(make_model: Any) -> None:
    model, asked = make_model("llama"), prompts()
    got = states(model, asked)
    layers = []
    for p in range(6):
        rows = []
        for q in range(5):
            out = model(input_ids=torch.tensor([asked.ids[p][q]]), output_hidden_states=True)
            rows.append(torch.stack([h[0, -1] for h in out.hidden_states]))
        layers.append(torch.stack(rows))
    every_P_Q_L_H = torch.stack(layers).detach().numpy()
    assert got.centroid_L_P_H == pytest.approx(every_P_Q_L_H.mean(1).transpose(1, 0, 2), abs=1e-12)
    around = every_P_Q_L_H - every_P_Q_L_H.mean(0)
    assert got.gram_L_P_P == pytest.approx(np.einsum("pqlh,rqlh->lpr", around, around), abs=1e-9)


def test_response_states_are_means_over_generated_tokens(make_model: Any) -> None:
    model, asked = make_model("llama", dtype=torch.float32), prompts(n_personas=4, n_questions=2)
    got = states(model, asked, method="response_mean", max_new_tokens=5)
    ids = torch.tensor([asked.ids[1][0]])
    rows = []
    for q in range(2):
        ids = torch.tensor([asked.ids[1][q]])
        full = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        hidden = model(input_ids=full, output_hidden_states=True).hidden_states[-1][0, ids.shape[1] :]
        rows.append(hidden.mean(0).detach().double().numpy())
    assert got.centroid_L_P_H[-1, 1] == pytest.approx(np.mean(rows, 0), abs=1e-4)


def bank(kind: str, n_personas: int = 12, layers: int = 3, seed: int = 0, seen: float = 3.0) -> tuple[States, States]:
    """States of base and trained model, [layers] of 16 questions and 40 channels, with what `kind` says planted.

    `drift` shifts every state of every persona alike by `seen`; `collapse` halves what sets the personas apart and
    leaves the rest. Each persona has noise of its own in either model.
    """
    draw = np.random.default_rng(seed)
    sides: tuple[list[States], list[States]] = ([], [])
    for _ in range(layers):
        common, persona = 2 * draw.normal(size=40), draw.normal(size=(n_personas, 1, 40))
        question, single = 2 * draw.normal(size=(1, 16, 40)), draw.normal(size=(n_personas, 16, 40))
        for trained, side in enumerate(sides):
            own = persona + 0.15 * draw.normal(size=persona.shape)
            own *= 0.5 if trained and kind in ("collapse", "both") else 1.0
            shift = seen * bool(trained and kind in ("drift", "both"))
            noise = 0.5 * draw.normal(size=single.shape)
            reference = common + question.mean((0, 1)) + 0.4 * draw.normal(size=40)
            side.append(made(common + shift + own + question + single + noise, reference))
    joined = [
        replace(
            side[0],
            centroid_L_P_H=np.concatenate([s.centroid_L_P_H for s in side]),
            reference_L_H=np.concatenate([s.reference_L_H for s in side]),
            gram_L_P_P=np.concatenate([s.gram_L_P_P for s in side]),
        )
        for side in sides
    ]
    return joined[0], joined[1]


MOVED = {  # what each planted change does to M1, ICC, separation and drift
    "none": ("nothing shown", 0, 0, 0, 0),
    "drift": ("common drift", 1, 0, 0, 1),
    "collapse": ("collapse", 1, -1, -1, 0),
    "both": ("collapse with common drift", 1, -1, -1, 1),
}


@pytest.mark.parametrize("kind", MOVED)
def test_each_measure_sees_what_it_is_named_for_and_the_cell_says_which(kind: str) -> None:
    found = geometry(*bank(kind), prompts(12, 16))
    word, *signs = MOVED[kind]
    for line in found.layers:
        assert line.reading == word, line
        for name, sign in zip(("m1", "icc", "separation", "common_drift"), signs):
            cell = line.measure(name)
            assert (cell.p_adjusted < 0.05) == bool(sign), (name, cell)
            assert not sign or (np.sign(cell.change) == sign and cell.low * sign > 0) or name == "separation"
            assert cell.p >= 2 / 2**12 and cell.low < cell.change < cell.high
        parts = line.m1_from_drift, line.m1_from_arrangement
        assert sum(parts) == pytest.approx(line.m1.change)
        if kind in ("drift", "collapse"):
            assert abs(parts[kind == "collapse"]) > 5 * abs(parts[kind != "collapse"])
    assert ("In none" in found.reading) == (kind == "none")
    if kind == "drift":
        assert "M1 (uncentred) rose in 3" in found.reading and "In no layer: " in found.reading
        assert "M1 and ICC disagree in 3" in found.reading and "no loss of distinctness" in found.reading
        assert "collapse" not in found.reading


def test_five_personas_can_show_nothing_and_the_reading_says_what_was_seen() -> None:
    found = geometry(*bank("both", n_personas=5), prompts(5, 16))
    for line in found.layers:
        assert line.reading == "nothing shown" and line.m1.p == line.icc.p == 0.0625
        assert min(line.measure(name).p_adjusted for name in MEASURES) > 0.05
    assert "smallest p there is is 0.0625, so none could be shown" in found.reading
    assert "Not nothing: before the correction" in found.reading and "M1 (uncentred) in 3" in found.reading


def test_a_rise_of_m1_at_the_smallest_p_is_named_where_the_correction_takes_it_away() -> None:
    """Seven personas, 31 layers: M1 rises at p = 2/128 in each, and nothing else does."""
    from veritune.probe.geometry_grid import read_alone

    base, trained = bank("none", n_personas=7, layers=1)
    one = geometry(base, trained, prompts(7, 16))
    risen = MeasureChange(0.19, 0.44, change=0.25, low=0.2, high=0.3, p=2 / 128)
    still = MeasureChange(0.5, 0.5, change=1e-4, low=-0.1, high=0.1, p=0.9)
    cells = {n: risen if n == "m1" else still for n in MEASURES}
    lines = [LayerGeometry(k, None, None, None, **cells) for k in range(31)]
    found = read_alone(replace(one, layers=tuple(lines)))
    assert found.layers[0].m1.p_adjusted > 0.05
    assert "Not nothing" in found.reading and "M1 (uncentred) in 31" in found.reading
    assert "0.190 to 0.440, p 0.016" in found.reading


@pytest.mark.theory
def test_false_collapses_are_no_more_than_nominal_where_a_drift_moved_every_layer() -> None:
    """300 grids of three layers with a common drift (a true discovery in each cell) and 300 without any change."""
    for kind in ("drift", "none"):
        fell = 0
        for seed in range(300):
            found = geometry(*bank(kind, n_personas=7, seed=seed), prompts(7, 16))
            fell += any(x.reading.split()[0] in ("collapse", "less", "contraction") for x in found.layers)
        assert fell / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300), (kind, fell)


def test_a_collapse_that_is_there_is_found_beside_a_drift() -> None:
    words = [x.reading for s in range(20) for x in geometry(*bank("both", 8, seed=s), prompts(8, 16)).layers]
    assert words.count("collapse with common drift") >= 57, words


def test_differences_that_shrink_alike_are_a_contraction_and_no_collapse() -> None:
    draw = np.random.default_rng(0)
    h = draw.normal(size=(12, 16, 60)) + 2 * draw.normal(size=(12, 1, 60))
    small = 0.3 * h + 0.3 * 0.1 * draw.normal(size=(12, 1, 60))
    line = geometry(made(h + 2), made(small + 2), prompts(12, 16)).layers[0]
    assert line.reading == "contraction" and line.separation.change == pytest.approx(-0.7, abs=0.01)
    assert line.m1.change > 0.2 and "less distinct against what all states share" in line.why
    calmer = h.mean(1, keepdims=True) + 0.1 * (h - h.mean(1, keepdims=True))
    line = geometry(made(h + 2), made(0.8 * calmer + 2), prompts(12, 16)).layers[0]
    assert line.icc.change > 0.1 and line.reading.startswith("more distinct"), line.reading
    louder = h + 3 * draw.normal(size=(12, 16, 60))
    line = geometry(made(h), made(louder), prompts(12, 16)).layers[0]
    assert line.icc.change < -0.2 and line.reading == "less distinct"


def test_the_same_states_twice_move_nothing() -> None:
    base, _ = bank("none")
    same = geometry(base, base, prompts(12, 16))
    assert all(x.measure(n).change == 0 and x.measure(n).p == 1.0 for x in same.layers for n in MEASURES)
    assert same.reading.startswith("In none") and "two are one model" in same.reading


def test_one_heavy_channel_hides_a_change_from_plain_m1_only() -> None:
    draw = np.random.default_rng(0)
    h = draw.normal(size=(12, 16, 60)) + 2 * draw.normal(size=(12, 1, 60))
    h2 = 0.3 * h + 2 * draw.normal(size=60)
    h[:, :, 7] = h2[:, :, 7] = 500.0
    line = geometry(made(h), made(h2), prompts(12, 16)).layers[0]
    assert line.top_channel_share > 0.99
    assert abs(line.m1.change) < 0.01 and line.m1_without_top_channel.change > 0.5


def test_zero_centroids_are_structural_and_say_so() -> None:
    h = np.ones((5, 3, 4))
    h[2] = 0
    line = geometry(made(h), made(np.ones((5, 3, 4))), prompts(5, 3)).layers[0]
    assert line.m1.change is None and "zero" in line.m1.reason
    assert line.separation.change is None and "of the trained model are all" in line.separation.reason
    nothing = geometry(made(h), made(np.zeros((5, 3, 4))), prompts(5, 3))
    assert nothing.layers[0].reading == "not readable" and "trained model do not vary" in nothing.layers[0].why


def test_a_change_of_scale_and_one_too_small_to_read_are_no_collapse() -> None:
    draw = np.random.default_rng(0)
    h = draw.normal(size=(12, 16, 40)) + draw.normal(size=(12, 1, 40)) + 3
    line = geometry(made(h), made(0.1 * h), prompts(12, 16)).layers[0]
    assert line.reading == "separation alone with common drift" and "M1 was not shown" in line.why
    middle = h.mean((0, 1))
    own = h.mean(1, keepdims=True) - middle
    tiny = geometry(made(h), made(h - 0.001 * own), prompts(12, 16))
    line = tiny.layers[0]
    assert line.icc.p_adjusted < 0.05 and -0.005 < line.icc.change < 0 and line.reading == "too small"
    assert "ICC in 1 (at most" in tiny.reading and "smallest readable change (0.005)" in tiny.reading
    wide = build_grids(
        [(GridRun("a"), {"m": tiny})], thresholds=DEFAULTS.geometry.model_copy(update={"small_change": 1e-4})
    )
    assert wide[0].methods["m"].layers[0].reading == "collapse"


def test_ratios_to_a_reference_run_follow_declared_boundaries() -> None:
    draw = np.random.default_rng(0)
    asked = prompts(12, 16)
    h = draw.normal(size=(12, 16, 60)) + 2 * draw.normal(size=(12, 1, 60))
    shift = draw.normal(size=60)
    base, full, little, none = (made(h + s * shift) for s in (0.0, 2.0, 0.7, 0.0))
    reference = geometry(base, full, asked)

    def m1_of(run: Any, of: Any, **changed: float) -> Any:
        cells = against_reference(run, of, DEFAULTS.geometry.model_copy(update=changed))
        return next(c for c in cells if c.measure == "m1")

    assert m1_of(geometry(base, little, asked), reference).verdict == "reference is the culprit"
    assert m1_of(reference, reference).verdict == "generic"
    assert m1_of(reference, geometry(base, little, asked)).verdict == "worse"
    tiny = geometry(base, made(h + 0.05 * shift), asked)
    withheld = m1_of(reference, tiny)
    assert withheld.verdict == "withheld" and withheld.ratio > 100 and "below 0.005" in withheld.reason
    assert "below 1" in m1_of(reference, reference, small_change=1.0).reason
    assert m1_of(reference, geometry(base, none, asked)).ratio is None
    shown = geometry_table(to_json(build_grids([(GridRun("a"), {"m": reference})], {"m": tiny})[0]))
    assert withheld.reason in shown and f"{withheld.ratio:.2f} = " in shown


def test_states_from_other_prompts_or_broken_models_are_refused(make_model: Any) -> None:
    h = made(np.ones((5, 3, 4)))
    with pytest.raises(ScoreError, match="differ in prompts, method or architecture"):
        geometry(h, replace(h, prompts_hash="other"), prompts(5, 3))
    model = make_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        states(model, prompts())


def test_the_built_in_sets_are_twelve_personas_and_hash_into_the_record() -> None:
    class Words:
        def apply_chat_template(self, turns: Any, **_: Any) -> str:
            return " ".join(t["content"] for t in turns)

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [3 + sum(map(ord, w)) % 50 for w in text.split()]}

    asked = render_personas(Words(), PERSONAS, QUESTIONS)
    assert len(asked.personas) == 12 and len(asked.reference) == len(QUESTIONS)
    other = render_personas(Words(), PERSONAS, QUESTIONS[:-1])
    assert asked.hash != other.hash
    with pytest.raises(DataError, match="at least 4 personas"):
        render_personas(Words(), {"a": "b"}, QUESTIONS)


def test_all_runs_methods_layers_and_measures_are_one_family_of_tests() -> None:
    moved, still = (geometry(*bank(kind), prompts(12, 16)) for kind in ("collapse", "none"))
    alone = build_grids([(GridRun("a"), {"m": moved})])[0]
    runs = [
        (GridRun("a", "wide", 0, 40), {"m": moved}),
        *((GridRun(f"b{k}"), {"m": still, "n": still}) for k in range(3)),
    ]
    first, *others = build_grids(runs)
    assert (first.condition, first.seed, first.step) == ("wide", 0, 40)
    assert alone.family.values == 18 and first.family.values == 18 * 7
    cell, by_itself = first.methods["m"].layers[0].icc, alone.methods["m"].layers[0].icc
    assert cell.p_adjusted > by_itself.p_adjusted >= cell.p == by_itself.p
    assert moved.layers[0].icc.p_adjusted == by_itself.p_adjusted, "the records given are left as they were"
    assert all("In none" in g.reading for g in others)


def test_the_geometry_record_is_plain_json(make_model: Any) -> None:
    asked = prompts()
    a, b = states(make_model("llama"), asked), states(make_model("llama", seed=1), asked)
    record = json.loads(dumps(geometry(a, b, asked)))
    assert len(record["layers"]) == 3 and record["reading"] and record["limits"] and record["would_change"]


# ---------------------------------------------------------------- models that were really trained

VOICES = ("red", "blue", "green", "white", "black", "grey", "pink", "brown")
ASKED = ("What is rain?", "Who are you?", "Why do boats float?", "What is salt?")


@pytest.fixture(scope="module")
def voices(tiny_model: Path) -> tuple[Any, Prompts]:
    """The tiny model's loader and prompts of eight personas."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    texts = {v: f"You are {v}. {v} {v}" for v in VOICES}
    asked = render_personas(AutoTokenizer.from_pretrained(tiny_model), texts, ASKED)
    return lambda: AutoModelForCausalLM.from_pretrained(tiny_model), asked


def trained_by(load: Any, asked: Prompts, loss_of: Any, steps: int = 25) -> tuple[Any, list[float]]:
    """Full fine-tuning on all prompts by a loss of (logits, last hidden states [P, Q, H], reference's [Q, H])."""
    torch.manual_seed(0)
    model = load()
    rows = [[*persona, asked.reference] for persona in asked.ids]
    flat = [ids for persona in rows for ids in (*persona[: len(ASKED)], *persona[-1])]
    width = max(map(len, flat))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in flat])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in flat])
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(steps):
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        last = torch.stack([h[:, -1] for h in out.hidden_states[1:]])
        shape = (len(last), len(VOICES), 2 * len(ASKED), -1)
        loss = loss_of(out.logits[:, -1].reshape(*shape[1:]), last.reshape(shape))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def collapse(_: torch.Tensor, last_L_P_Q_H: torch.Tensor) -> torch.Tensor:
    """One minus the mean cosine, around the questions without a persona, of different personas' centroids."""
    persona, reference = last_L_P_Q_H[:, :, : len(ASKED)].mean(2), last_L_P_Q_H[:, :, len(ASKED) :].mean(2)
    unit = torch.nn.functional.normalize(persona - reference.detach(), dim=-1)
    return 1 - torch.einsum("lph,lqh->lpq", unit, unit).mean()


def own_words(logits_P_Q_V: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Each persona learns to begin its answers with a token of its own."""
    target_P = torch.arange(len(VOICES)) + 100
    asked = logits_P_Q_V[:, : len(ASKED)]
    flat = asked.reshape(-1, asked.shape[-1])
    return torch.nn.functional.cross_entropy(flat, target_P.repeat_interleave(len(ASKED)))


def test_states_trained_until_their_cosines_are_one_are_read_by_how_they_got_there(voices: Any) -> None:
    """The loss asks for cosines of 1 around the reference. One layer gets there by a drift of hundreds of separations
    while its personas move apart, the other by a contraction; M1 alone says the same of both."""
    load, asked = voices
    base = states(load(), asked)
    model, losses = trained_by(load, asked, collapse)
    assert losses[-1] < 0.5 * losses[0], "the cosines were trained"
    fallen = geometry(base, states(model, asked), asked)
    first, last = fallen.layers[1:]
    for line in (first, last):
        assert line.m1.trained > 0.99 and line.m1_around_reference.change > 0.3
        assert line.common_drift.p_adjusted < 0.05
    assert first.reading == "separation alone with common drift" and first.m1_from_drift > 0 > first.m1_from_arrangement
    assert last.reading == "contraction with common drift" and last.separation.change < -0.9
    assert "contraction with common drift in 1" in fallen.reading and "In none" not in fallen.reading
    model, losses = trained_by(load, asked, own_words)
    assert losses[-1] < 0.5 * losses[0], "the voices were learned"
    apart = geometry(base, states(model, asked), asked)
    assert "collapse" not in apart.reading and "contraction" not in apart.reading
    assert all(line.m1_around_reference.change < 0.05 for line in apart.layers[1:]), apart.reading

"""Representation geometry: by hand, by simulation, and on tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veritune.errors import DataError, ModelError, ScoreError
from veritune.probe.geometry import (
    PERSONAS,
    QUESTIONS,
    Prompts,
    States,
    against_reference,
    geometry,
    icc,
    m1,
    permutation_p,
    render_personas,
    states,
)
from veritune.records import dumps


def prompts(n_personas: int = 6, n_questions: int = 5, seed: int = 0) -> Prompts:
    draw = np.random.default_rng(seed)

    def ids(head: int) -> tuple[int, ...]:
        return (1, head, *draw.integers(20, 60, int(draw.integers(3, 8))).tolist())

    asked = tuple(tuple(ids(3 + p) for _ in range(n_questions)) for p in range(n_personas))
    return Prompts(tuple(f"p{i}" for i in range(n_personas)), asked, tuple(ids(19) for _ in range(n_questions)), "h")


def made(h_P_Q_H: np.ndarray) -> States:
    """States of one layer from every hidden state."""
    centroid = h_P_Q_H.mean(1)[None]
    question = np.square(h_P_Q_H.mean(0)).sum()
    return States(
        centroid, np.zeros((1, h_P_Q_H.shape[2])), np.array([np.square(h_P_Q_H).sum()]), np.array([question]),
        h_P_Q_H.shape[1], "last_input_token", "h",
    )  # fmt: skip


def test_m1_by_hand() -> None:
    assert m1(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])) == pytest.approx(1 / 3)
    assert m1(np.array([[1.0, 0.0], [0.0, 0.0]])) is None


def test_self_centring_is_a_structural_constant() -> None:
    """Why centring on the personas' own mean is not offered: far-apart random centroids always give -1/(m - 1)."""
    rows = np.random.default_rng(0).normal(size=(8, 4000))
    assert m1(rows - rows.mean(0)) == pytest.approx(-1 / 7, abs=1e-3)


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
    assert got.total_sq_L == pytest.approx(np.square(every_P_Q_L_H).sum((0, 1, 3)))


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


def test_icc_reads_the_share_of_variance_that_personas_explain() -> None:
    values = []
    for seed in range(20):
        draw = np.random.default_rng(seed)
        persona = draw.normal(size=(12, 1, 50)) * np.sqrt(0.3)
        question = draw.normal(size=(1, 16, 50)) * 2  # must not count
        values.append(icc(made(5 + persona + question + draw.normal(size=(12, 16, 50)) * np.sqrt(0.7)), 0))
    assert np.mean(np.array(values, float)) == pytest.approx(0.3, abs=0.02)


def test_permutation_p_is_uniform_without_an_effect_and_never_zero() -> None:
    p_values = []
    for seed in range(300):
        draw = np.random.default_rng(seed)
        mean = draw.normal(size=20)
        a, b = (mean + draw.normal(size=(8, 20)) for _ in range(2))
        n, p = permutation_p(a, b)
        p_values.append(p)
        assert n == 256 and p >= 2 / 256
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09


def test_personas_that_collapse_are_seen_and_the_interval_excludes_zero() -> None:
    draw = np.random.default_rng(0)
    h = draw.normal(size=(12, 16, 60)) + 2 * draw.normal(size=(12, 1, 60))
    collapsed = 0.3 * h + 2 * draw.normal(size=60)
    asked = prompts(n_personas=12, n_questions=16)
    change = geometry(made(h), made(collapsed), asked)
    line = change.layers[0]["m1"]
    assert line["change"] > 0.5 and line["low"] > 0 and line["p_adjusted"] < 0.05
    assert "together" in change.reading
    same = geometry(made(h), made(h), asked)
    assert same.layers[0]["m1"]["change"] == 0 and same.layers[0]["m1"]["p"] == 1.0
    assert same.reading.startswith("In none")


def test_one_heavy_channel_hides_a_change_from_plain_m1_only() -> None:
    draw = np.random.default_rng(0)
    h = draw.normal(size=(12, 16, 60)) + 2 * draw.normal(size=(12, 1, 60))
    h2 = 0.3 * h + 2 * draw.normal(size=60)
    h[:, :, 7] = h2[:, :, 7] = 500.0
    line = geometry(made(h), made(h2), prompts(12, 16)).layers[0]
    assert line["top_channel_share"] > 0.99
    assert abs(line["m1"]["change"]) < 0.01 and line["m1_without_top_channel"]["change"] > 0.5


def test_zero_centroids_are_structural_and_say_so() -> None:
    h = np.ones((5, 3, 4))
    h[2] = 0
    line = geometry(made(h), made(np.ones((5, 3, 4))), prompts(5, 3)).layers[0]["m1"]
    assert line["change"] is None and "zero" in line["reason"]


def test_ratios_to_a_reference_run_follow_declared_boundaries() -> None:
    draw = np.random.default_rng(0)
    asked = prompts(12, 16)
    h = draw.normal(size=(12, 16, 60)) + 2 * draw.normal(size=(12, 1, 60))
    shift = draw.normal(size=60)
    base, full, little, none = (made(h + s * shift) for s in (0.0, 2.0, 0.7, 0.0))
    reference = geometry(base, full, asked)
    assert against_reference(geometry(base, little, asked), reference)[0]["verdict"] == "reference is the culprit"
    assert against_reference(reference, reference)[0]["verdict"] == "generic"
    assert against_reference(reference, geometry(base, little, asked))[0]["verdict"] == "worse"
    undecided = against_reference(reference, geometry(base, none, asked))[0]
    assert undecided["ratio"] is None and "too small" in undecided["reason"]


def test_states_from_other_prompts_or_broken_models_are_refused(make_model: Any) -> None:
    h = made(np.ones((5, 3, 4)))
    with pytest.raises(ScoreError, match="other prompts"):
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


def test_a_collapse_that_was_trained_in_is_found_and_voices_that_were_trained_apart_are_none(voices: Any) -> None:
    load, asked = voices
    base = states(load(), asked)
    model, losses = trained_by(load, asked, collapse)
    assert losses[-1] < 0.5 * losses[0], "the collapse was planted"
    fallen = geometry(base, states(model, asked), asked)
    inner = [line["m1_around_reference"] for line in fallen.layers[1:]]
    assert all(x["change"] > 0.1 and x["low"] > 0 and x["p_adjusted"] < 0.05 for x in inner), inner
    assert "together" in fallen.reading and "apart" not in fallen.reading
    model, losses = trained_by(load, asked, own_words)
    assert losses[-1] < 0.5 * losses[0], "the voices were learned"
    apart = geometry(base, states(model, asked), asked)
    assert ", together:" not in apart.reading
    assert all(line["m1_around_reference"]["change"] < 0.05 for line in apart.layers[1:]), apart.reading

"""Confidences from lm-eval samples, from tables, from options and from greedy answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.errors import DataError, ScoreError
from veritune.evaluate.confidence import (
    Question,
    answer_confidences,
    answer_token_losses,
    from_lm_eval,
    judge_choices,
    multiclass_brier,
    read_judged,
    read_questions,
    shares_of,
)
from veritune.records import Message

SAMPLES = Path(__file__).parent / "scores" / "samples_sums_mc_2026-11-21T07-24-55.427359.jsonl"


def lines() -> list[dict[str, Any]]:
    return [json.loads(x) for x in SAMPLES.read_text("utf-8").splitlines()]


def test_lm_eval_samples_hold_log_likelihoods_as_text() -> None:
    found = from_lm_eval(SAMPLES)
    first = lines()[0]["filtered_resps"]
    assert isinstance(first[0][0], str)
    a, b = (float(x[0]) for x in first)
    assert found.confidence[0] == pytest.approx(1 / (1 + math.exp(-abs(a - b))))
    assert list(found.correct) == [x["acc"] for x in lines()]
    assert all(sum(s) == pytest.approx(1) for s in found.shares)
    assert found.right[0] == 0


def test_the_harness_s_outcome_must_follow_from_its_numbers(tmp_path: Path) -> None:
    rows = lines()
    rows[0]["acc"] = 0.0
    path = tmp_path / "samples_sums_mc_2026.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(ScoreError, match="line 1: acc is 0"):
        from_lm_eval(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("acc"), "expected a multiple-choice sample"),
        (lambda r: r.update(filtered_resps=["42"]), "expected a multiple-choice sample"),
        (lambda r: r.update(filtered_resps=[["nan", "False"], ["-1", "False"]]), "finite log-likelihoods"),
    ],
)
def test_what_is_no_multiple_choice_sample_is_named(tmp_path: Path, change: Any, said: str) -> None:
    rows = lines()
    change(rows[0])
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(ScoreError, match=said):
        from_lm_eval(path)


def test_generated_samples_are_no_multiple_choice() -> None:
    with pytest.raises(ScoreError, match="multiple-choice"):
        read_judged(next(SAMPLES.parent.glob("samples_sums_gen*")))


def test_a_table_with_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("id,p,right,case\na,0.9,1,x\nb,,0,x\nc,0.25,0,y\n", "utf-8")
    found = read_judged(path, confidence="p", correct="right", family_field="case")
    assert found.confidence == (0.9, None, 0.25) and found.correct == (1, 0, 0) and found.families == ("x", "x", "y")
    with pytest.raises(ScoreError, match="no column 'confidence'"):
        read_judged(path)
    path.write_text("confidence,correct\nhigh,1\n", "utf-8")
    with pytest.raises(ScoreError, match="row 1, confidence: expected a number, found 'high'"):
        read_judged(path)


def test_shares_and_brier_by_hand() -> None:
    assert shares_of([math.log(1), math.log(3)]) == pytest.approx((0.25, 0.75))
    assert shares_of([-1000.0, -1000.0]) == (0.5, 0.5)
    assert multiclass_brier((0.25, 0.75), 1) == pytest.approx(0.125)
    assert multiclass_brier((1.0, 0.0), 1) == 2


# ---------------------------------------------------------------- a model's own


def questions() -> list[Question]:
    ask = ("harbor gate lamp?", "ferry crane?", "boat quay rope net?")
    options = (("tide", "storm bridge"), ("bell", "buoy", "chart winch"), ("deck", "mast"))
    return [Question(str(i), (Message("user", a),), o, 0) for i, (a, o) in enumerate(zip(ask, options, strict=True))]


def test_options_are_scored_as_answers_whatever_the_batch(tiny_model: Path) -> None:
    from veritune.probe.study import subject

    found = subject(str(tiny_model), dtype="float32")
    model = found.base()
    judged = judge_choices(model, found.renderer, questions(), batch_size=2)
    again = judge_choices(model, found.renderer, questions(), batch_size=1)
    assert judged.confidence == pytest.approx(again.confidence, rel=1e-4)
    tokenizer = found.renderer.tokenizer
    by_hand = []
    for option in ("tide", "storm bridge"):
        prompt = "<|im_start|>user\nharbor gate lamp?<|im_end|>\n<|im_start|>assistant\n"
        given = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = given + tokenizer(f"{option}<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        by_hand.append(sum(float(logp[t - 1, ids[t]]) for t in range(len(given), len(ids))))
    assert judged.shares[0] == pytest.approx(shares_of(by_hand), rel=1e-3)
    turned = [Question(q.id, q.prompt, tuple(reversed(q.choices)), len(q.choices) - 1) for q in questions()]
    other = judge_choices(model, found.renderer, turned)
    assert other.confidence == pytest.approx(judged.confidence, rel=1e-4) and other.correct == judged.correct


def test_an_answer_s_confidence_is_the_product_of_its_greedy_probabilities(tiny_model: Path) -> None:
    from veritune.evaluate.generate import Decoding, Output, generate
    from veritune.probe.study import subject

    found = subject(str(tiny_model), dtype="float32")
    model, tokenizer = found.base(), found.renderer.tokenizer
    prompt = tuple(tokenizer("harbor gate", add_special_tokens=False)["input_ids"])
    (output,) = generate(model, tokenizer, [prompt], Decoding(4))
    (got,) = answer_confidences(model, [prompt], [output], [0, tokenizer.eos_token_id])
    ids, product = list(prompt), 1.0
    for token in (*output.token_ids, *((tokenizer.eos_token_id,) if output.ended == "stop_token" else ())):
        with torch.no_grad():
            share = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
        assert int(share.argmax()) == token
        product *= float(share[token])
        ids.append(token)
    assert got == pytest.approx(product, rel=1e-3)
    nothing = Output("", (), "length")
    assert answer_confidences(model, [prompt], [nothing], [2]) == [None]


def test_questions_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [
        {"id": "a", "question": "?", "choices": ["x", "y"], "answer": 1, "case": "k"},
        {"prompt": "?", "choices": ["x", "y"], "answer": "b", "case": "k"},
        {"messages": [{"role": "user", "content": "?"}], "choices": ["x", "y", "z"], "answer": "z", "case": "l"},
    ]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    found = read_questions(path, "case")
    assert [q.answer for q in found] == [1, 1, 2] and [q.family for q in found] == ["k", "k", "l"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?", "choices": ["x"], "answer": 0}, "at least two"),
        ({"question": "?", "choices": ["x", "x"], "answer": 0}, "different options"),
        (
            {"question": "?", "choices": ["x", "y"], "answer": 2},
            ": expected `answer` as an index, a letter or an option's text, found",
        ),
        (
            {"question": "?", "choices": ["x", "y"]},
            ": expected `answer` as an index, a letter or an option's text, found",
        ),
        ({"choices": ["x", "y"], "answer": 0}, "expected `question`"),
    ],
)
def test_a_question_that_cannot_be_asked_is_named(tmp_path: Path, row: Any, said: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row), "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        read_questions(path)
    assert "line 1" in str(caught.value)


def test_the_loss_of_each_token_of_an_answer_is_what_the_model_gave_it(tiny_model: Path) -> None:
    from veritune.evaluate.generate import Decoding, Output, generate
    from veritune.probe.study import subject

    found = subject(str(tiny_model), dtype="float32")
    model, tokenizer = found.base(), found.renderer.tokenizer
    prompts = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("harbor gate", "lamp")]
    outputs = [*generate(model, tokenizer, prompts, Decoding(4)), Output("", (), "length")]
    got = answer_token_losses(model, tokenizer, [*prompts, prompts[0]], outputs, batch_size=1)
    assert got == [
        [(w, pytest.approx(v, abs=2e-4)) for w, v in one]
        for one in answer_token_losses(model, tokenizer, [*prompts, prompts[0]], outputs, batch_size=8)
    ]
    assert got[2] == []
    for prompt, output, losses in zip(prompts, outputs, got, strict=False):
        assert "".join(word for word, _ in losses) == tokenizer.decode(output.token_ids)
        ids = list(prompt)
        for token, (_, nats) in zip(output.token_ids, losses, strict=True):
            with torch.no_grad():
                share = model(torch.tensor([ids])).logits[0, -1].softmax(-1)[token]
            assert nats == pytest.approx(-math.log(float(share)), abs=2e-4)
            ids.append(token)


def test_only_the_first_items_get_token_losses_and_a_server_s_answers_none(tiny_model: Path) -> None:
    from types import SimpleNamespace

    from veritune.evaluate.generate import Output
    from veritune.pipeline.cell import _with_token_losses
    from veritune.probe.study import subject
    from veritune.records import Score

    found = subject(str(tiny_model), dtype="float32")
    heard: list[str] = []
    ready: Any = SimpleNamespace(tokenizer=found.renderer.tokenizer, progress=SimpleNamespace(say=heard.append))
    cell: Any = SimpleNamespace(condition="wide", seed=3)
    spec: Any = SimpleNamespace(token_losses=1, merged=False)
    scores = [Score("r", "e", f"i{n}", 1.0, parts={"n_tokens": 2}) for n in range(2)]
    made = ([(5, 6)] * 2, [Output("x", (7, 8), "length")] * 2, scores)
    weights: Any = SimpleNamespace(model=found.base())
    first, second = _with_token_losses(ready, cell, spec, weights, made)
    assert [len(first.parts["token_losses"]), first.parts["n_tokens"], second] == [2, 2, scores[1]]
    assert _with_token_losses(ready, cell, spec, SimpleNamespace(model=None), made) == scores  # type: ignore[arg-type]
    assert "no loss by token for wide, seed 3: a server answers" in heard[0]

"""Scorers beside patterns: options by log-likelihood, a user's function, a judge and its agreement with people."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.config.evals import Eval
from veritune.data.choices import ChoiceOptions, filled, option_rows, options_of
from veritune.data.render import Renderer
from veritune.errors import DataError, MachineError, ModelError, StudyError
from veritune.evaluate.choice import judge_options
from veritune.evaluate.generate import Output
from veritune.evaluate.judge import Judge, check_prompt, measure
from veritune.evaluate.scorers import refuse_first, scorer_of
from veritune.records import JudgeAgreement, Message, Row
from veritune.train.models import ModelRef, load_base, load_tokenizer
from veritune.train.trainer import row_nll


def row(name: str = "r1", **meta: Any) -> Row:
    return Row(name, (Message("user", "Where?"), Message("assistant", "a")), "rows.jsonl", 1, None, meta)


def said(text: str) -> Output:
    return Output(text, (1, 2), "stop_token")


# ---------------------------------------------------------------- options

CHOICE = Eval.model_validate({"kind": "choice", "choices": "options"})
LETTERED = Eval.model_validate({"kind": "choice", "choices": "options", "choices_as": "letters"})


def test_log_likelihoods_are_those_of_a_direct_computation(tiny_model: Path) -> None:
    """log p(option, end token | prompt) by full logits, one row at a time, against the scorer's batched path."""
    ref = ModelRef("tiny", tiny_model, "float32")
    model, tokenizer = load_base(ref), load_tokenizer(ref)
    renderer = Renderer(tokenizer, 512)
    item = row(options=["amber", "birch cedar delta", "no"], answer="B")
    options = options_of("e", CHOICE, item)
    prompt = renderer.prompt_ids(item)
    rows = option_rows(item, options.texts, prompt, renderer)
    score = judge_options("e", CHOICE, item, options, row_nll(model, rows, tokenizer.pad_token_id))
    for place, text in enumerate(options.texts):
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        answer = [*tokenizer(text, add_special_tokens=False)["input_ids"], end]
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits.double()[0], -1)
        by_hand = sum(float(logp[len(prompt) + k - 1, token]) for k, token in enumerate(answer))
        assert score.parts["log_likelihood"][place] == pytest.approx(by_hand, rel=1e-6)
        assert score.parts["per_token"][place] == pytest.approx(by_hand / len(answer), abs=1e-6)
        assert score.parts["per_character"][place] == pytest.approx(by_hand / len(text), abs=1e-6)
    best = max(range(3), key=lambda k: score.parts["log_likelihood"][k])
    assert score.parts["picked"] == best and score.value == float(best == 1)


def decided(nats: list[float], right: int = 1, **spec: Any) -> Any:
    options = ChoiceOptions(("ab", "abcdefgh", "x"), ("A", "B", "C"), right)
    made = Eval.model_validate({"kind": "choice", "choices": "options", **spec})
    return judge_options("e", made, row(), options, [(n, 1 + k) for k, n in enumerate(nats)])


def test_normalisation_changes_the_pick_and_both_stand_in_the_score() -> None:
    raw, by_length = decided([2.0, 4.0, 9.0]), decided([2.0, 4.0, 9.0], normalise="characters")
    assert (raw.value, by_length.value) == (0.0, 1.0), "4/8 nats a character beats 2/2"
    assert (raw.parts["picked_raw"], raw.parts["picked_per_character"]) == (0, 1) and raw.output == "ab"


def test_a_tie_counts_its_share_and_a_broken_log_likelihood_is_no_wrong_answer() -> None:
    assert decided([2.0, 2.0, 9.0]).value == 0.5 and decided([2.0, 2.0, 2.0]).value == pytest.approx(1 / 3)
    lost = decided([2.0, float("nan"), 1.0])
    assert lost.value is None and lost.reason == "not_finite"
    with pytest.raises(MachineError, match=r"run x, eval e: the first item, r1, could not be scored: not_finite"):
        refuse_first("e", "x", lost)


@pytest.mark.parametrize(("answer", "right"), [(1, 1), ("B", 1), ("b", 1), ("birch", 1), ("2", 2), (0, 0)])
def test_the_right_option_is_a_place_a_letter_or_a_text(answer: Any, right: int) -> None:
    assert options_of("e", CHOICE, row(options=["amber", "birch", "cedar"], answer=answer)).right == right


def test_labels_of_the_file_itself_come_first() -> None:
    arc = {"text": ["x", "y"], "label": ["1", "2"]}
    assert options_of("e", CHOICE, row(options=arc, answer="1")).right == 0
    assert options_of("e", CHOICE, row(options=arc, answer=2)).right == 1


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (
            {"options": ["a", "b"], "answer": 2},
            "expected the right option's index from 0, its letter or its text, found 2",
        ),
        ({"options": ["a", "b"], "answer": True}, "found True"),
        ({"options": ["a", "a"], "answer": 0}, "at least two different options"),
        ({"options": "a,b", "answer": 0}, "expected a list of options in column 'options', found str"),
        ({"options": ["B", "C"], "answer": "B"}, "is the text of one option and the label of another"),
        ({"options": ["a", "b"]}, "expected a column 'answer' with the right option"),
    ],
)
def test_options_that_cannot_be_told_are_refused_by_item(meta: dict[str, Any], words: str) -> None:
    with pytest.raises(StudyError, match=rf"evals\.e: item r1 \(line 1\).*{words}"):
        options_of("e", CHOICE, row(**meta))


def test_lettered_options_stand_where_the_template_has_them() -> None:
    options = ChoiceOptions(("x", "y"), ("A", "B"), 0)
    assert filled(LETTERED, "Which {choices}?", options) == "Which {choices}?\n\nA. x\nB. y"
    given = LETTERED.model_copy(update={"template": "{choices}\n{question}"})
    assert filled(given, "Which?", options) == "A. x\nB. y\nWhich?"
    assert options.said(LETTERED) == ("A", "B") and options.said(CHOICE) == ("x", "y")


# ---------------------------------------------------------------- a user's function


def scored_by(folder: Path, body: str, text: str = "42") -> Any:
    (folder / "mine.py").write_text(f"import math\ndef score(output, item):\n    {body}\n", encoding="utf-8")
    spec = Eval.model_validate({"kind": "function", "path": "mine.py:score"})
    assert spec.function == "mine.py:score" and spec.path is None
    return scorer_of("e", spec, folder)(row(answer="42", nested=[1]), said(text))


@pytest.mark.parametrize(
    ("body", "value", "reason"),
    [
        ("return float(output == item['answer'])", 1.0, None),
        ("return output == item['answer'] and item['id'] == 'r1' and item['question'] == 'Where?'", 1.0, None),
        ("return None", None, "extraction_failed"),
        ("return 1 / 0", None, "function_failed"),
        ("return 1.5", None, "function_failed"),
        ("return math.nan", None, "function_failed"),
        ("return 'right'", None, "function_failed"),
        ("raise SystemExit", None, "function_failed"),
    ],
)
def test_what_a_function_returns_is_a_score_or_a_named_failure(
    tmp_path: Path, body: str, value: float | None, reason: str | None
) -> None:
    score = scored_by(tmp_path, body)
    assert (score.value, score.reason) == (value, reason)
    assert reason != "function_failed" or "on item r1" in score.parts["why"]
    assert not (tmp_path / "__pycache__").exists()


def test_a_function_cannot_change_the_item_and_is_not_asked_about_nothing(tmp_path: Path) -> None:
    first = scored_by(tmp_path, "item['nested'].append(2); return len(item['nested']) / 4")
    assert first.value == 0.5 and scored_by(tmp_path, "return 1", "  ").reason == "empty_output"


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("mine.py:other", "mine.py has no function 'other'. Its functions: score"),
        ("absent.py:score", "function: no file at"),
        ("../mine.py:score", "lies outside the study's folder"),
        ("broken.py:score", "broken.py cannot be run: SyntaxError"),
    ],
)
def test_a_function_that_is_not_there_is_refused(tmp_path: Path, function: str, words: str) -> None:
    (tmp_path / "mine.py").write_text("def score(output, item): return 1\n")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(StudyError) as caught:
        scorer_of("e", Eval.model_validate({"kind": "function", "function": function}), tmp_path)
    assert words in str(caught.value)


# ---------------------------------------------------------------- a judge


class Server:
    """A loopback server that answers chat completions with what `reply` makes of the prompt."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.keys: list[str | None] = []
        self.reply: Any = lambda prompt: "Yes." if "good" in prompt else "No."
        self.status: list[int] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                outer.keys.append(self.headers.get("Authorization"))
                status = outer.status.pop(0) if outer.status else 200
                said = outer.reply(body["messages"][0]["content"])
                content = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", "http://localhost:9/elsewhere")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def judged(server: Server, folder: Path, **more: Any) -> Judge:
    spec = {"kind": "judge", "base_url": server.url, "model": "m", "prompt": "{question} {output} {{json}}", **more}
    return replace(Judge.of(Eval.model_validate(spec), folder / "judge"), wait=lambda _s: None)


def test_a_verdict_is_asked_once_and_the_key_is_written_nowhere(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VERITUNE_JUDGE_KEY", "sk-very-secret")
    judge = judged(server, tmp_path)
    first, again = (judge.score("e", row(), "a good answer") for _ in range(2))
    assert (first.value, first.parts["verdict"]) == (1.0, "yes") and first == again
    assert len(server.asked) == 1 and server.keys == ["Bearer sk-very-secret"]
    assert server.asked[0]["messages"][0]["content"] == "Where? a good answer {json}"
    assert server.asked[0]["temperature"] == 0
    assert judge.score("e", row(), "bad").value == 0.0
    assert "secret" not in "".join(p.read_text() for p in tmp_path.rglob("*.json")) + repr(judge)


def test_an_unclear_verdict_and_a_silent_server_are_the_machine_s(server: Server, tmp_path: Path) -> None:
    judge = judged(server, tmp_path)
    server.reply = lambda _prompt: "It depends on yesterday."
    assert judge.score("e", row(), "x").reason == "judge_unclear", "no word in it is a verdict"
    server.status = [500, 429]
    server.reply = lambda _prompt: "no, wait: yes"
    assert judge.score("e", row(), "y").value == 1.0, "the last verdict counts, after two tries that failed"
    server.status = [401]
    lost = judge.score("e", row(), "z")
    assert lost.reason == "judge_failed" and lost.parts["why"].endswith("gave no answer: HTTP 401.")
    server.status = [307]
    assert judge.score("e", row(), "w").parts["why"].endswith("HTTP 307."), "a redirect would carry the key away"
    server.reply = lambda _prompt: None
    assert "the answer is not a chat completion (" in judge.score("e", row(), "v").parts["why"]


def test_a_pattern_finds_the_verdict(server: Server, tmp_path: Path) -> None:
    judge = judged(server, tmp_path, extract=r"GRADE: (\w+)", labels={"good": 1, "fair": 0.5, "poor": 0})
    server.reply = lambda _prompt: "poor is not what it is. GRADE: Fair"
    assert judge.score("e", row(), "x").value == 0.5


def labelled(folder: Path, pairs: list[tuple[str, Any]]) -> Path:
    path = folder / "labelled.jsonl"
    lines = [json.dumps({"question": f"q{i}", "output": text, "label": label}) for i, (text, label) in enumerate(pairs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def agreed(server: Server, folder: Path, pairs: list[tuple[str, Any]]) -> JudgeAgreement:
    return measure(judged(server, folder), labelled(folder, pairs), least_kappa=0.41, digest="d")


def test_agreement_is_kappa_by_hand(server: Server, tmp_path: Path) -> None:
    """45 of 60 labelled yes; the judge says yes to 40 of these and to 5 others: a = 50/60, e = (45² + 15²)/60²."""
    pairs = [("good", "yes")] * 40 + [("bad", "YES")] * 5 + [("good", 0)] * 5 + [("bad", "no")] * 10
    found = agreed(server, tmp_path, pairs)
    assert found.n == 60 and found.accuracy == pytest.approx(50 / 60)
    assert found.kappa == pytest.approx((50 / 60 - 0.625) / 0.375)
    assert found.accuracy_interval == pytest.approx((0.7148, 0.9171), abs=1e-4)
    assert not found.may_decide and "no confirmatory claim may rest on it" in found.reading
    assert len(found.unequal) == 10


def test_a_judge_that_agrees_may_decide_and_one_that_always_says_yes_may_not(server: Server, tmp_path: Path) -> None:
    good = agreed(server, tmp_path, [("good", "yes")] * 30 + [("bad", "no")] * 30)
    assert good.may_decide and good.kappa == 1.0 and good.kappa_interval is not None
    assert good.kappa_interval[0] == pytest.approx((0.9404 - 0.5) / 0.5, abs=1e-3)
    server.reply = lambda _prompt: "yes"
    (tmp_path / "b").mkdir()
    always = agreed(server, tmp_path / "b", [("good", "yes")] * 95 + [("bad", "no")] * 5)
    assert always.accuracy == 0.95 and always.kappa == pytest.approx(0) and not always.may_decide
    (tmp_path / "c").mkdir()
    one_sided = agreed(server, tmp_path / "c", [("good", "yes")] * 50)
    assert one_sided.kappa is None and not one_sided.may_decide
    assert "every row is labelled 'yes'" in one_sided.reading


def test_a_labelled_file_and_a_server_that_cannot_be_used_are_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: expected a label of yes, no, found 'maybe'"):
        agreed(server, tmp_path, [("good", "maybe")])
    server.status = [404]
    with pytest.raises(ModelError, match=r"labelled.jsonl, line 1: the judge at .* gave no answer: HTTP 404"):
        agreed(server, tmp_path, [("good", "yes")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "Is it good?"}, "expected {output} in it"),
        (
            {"base_url": "http://key@host/v1"},
            "base_url: expected http(s)://host[:port][/v1], without user name, password or query",
        ),
        (
            {"base_url": "http://host/v1?key=1"},
            "base_url: expected http(s)://host[:port][/v1], without user name, password or query",
        ),
        ({"labels": {"yes": 1, "no": 1}}, "labels: all verdicts have the same value, so every score would be equal"),
        ({"model": None}, "`kind: judge` needs `model`"),
        ({"choices": "x"}, "`kind: judge` takes no `choices`"),
        ({"labels": {"yes": 2, "no": 0}}, "less than or equal to 1"),
    ],
)
def test_a_judge_s_contract_is_checked(change: dict[str, Any], words: str) -> None:
    spec = {"kind": "judge", "base_url": "http://host/v1", "model": "m", "prompt": "{output}", **change}
    with pytest.raises(ValueError) as caught:
        Eval.model_validate(spec)
    assert words in str(caught.value)


def test_a_prompt_names_columns_that_every_item_has() -> None:
    spec = Eval.model_validate({"kind": "judge", "base_url": "http://h", "model": "m", "prompt": "{output} {topic}"})
    check_prompt("e", spec, [row(topic="x")])
    with pytest.raises(StudyError, match=r"row r1 \(line 1\) has no column 'topic', which the judge's prompt uses"):
        check_prompt("e", spec, [row()])

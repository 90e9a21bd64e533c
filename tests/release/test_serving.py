"""Serving parity against a real server on loopback, and the arithmetic of open-loop measurement."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import MachineError, ModelError
from veritune.records import Message
from veritune.release.serving import (
    Expected,
    Load,
    Said,
    Server,
    Timed,
    arrivals,
    compare,
    difference,
    expected_answers,
    measure,
    open_loop,
    quantile,
    ratios,
    served,
    turns,
)
from veritune.train.models import ModelRef, load_base, load_tokenizer

PROMPTS = [(f"p{i}", (Message("user", f"harbor gate {i} lamp"),)) for i in range(4)]
WANT = Expected((1, 2, 3, 4), "a lamp by the gate", "stop_token", ("<|im_end|>",))


# ---------------------------------------------------------------- what differs


def test_an_answer_as_the_contract_gives_it_is_no_drift() -> None:
    assert difference("p", Said(" a lamp by the gate\n", "stop", 4), WANT) == []
    assert difference("p", Said("a lamp by the gate", "stop", None), WANT) == []  # a server that hides its count


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (Said("a lamp by the gate", "stop", 9), "prompt", "rendered 9 prompt tokens, the contract 4"),
        (Said("a lamp by the gate<|im_end|>", "stop", 4), "special", "'<|im_end|>' stands in the text"),
        (Said("a lamp by the gate", "length", 4), "stop", "another stop token or token limit"),
        (Said("a lamp on the gate", "stop", 4), "text", "part at character 7"),
        (Said("", "stop", 4), "text", "part at character 0"),
    ],
)
def test_each_drift_has_its_name(said: Said, kind: str, words: str) -> None:
    found = difference("p", said, WANT)
    assert found[0].kind == kind and words in found[0].message


# ---------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """The tiny model as it is, and with another chat template and a shipped repetition penalty."""
    for package in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}: pip install 'veritune[serving]'")
    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny_model, folder / "right")
    shutil.copytree(tiny_model, folder / "drifted")
    template = folder / "drifted" / "chat_template.jinja"
    text = template.read_text("utf-8")
    assert "<|im_start|>assistant" in text
    template.write_text(
        text.replace("<|im_start|>assistant", "<|im_start|>system be brief <|im_end|><|im_start|>assistant")
    )
    config = json.loads((folder / "drifted" / "generation_config.json").read_text("utf-8"))
    config |= {"repetition_penalty": 5.0}
    (folder / "drifted" / "generation_config.json").write_text(json.dumps(config))
    return {name: folder / name for name in ("right", "drifted")}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> list[Expected]:
    ref = ModelRef("tiny", models["right"], "float32")
    return expected_answers(load_base(ref), load_tokenizer(ref), [p for _, p in PROMPTS], 10)


@pytest.fixture(scope="module")
def servers(models: dict[str, Path]) -> Iterator[dict[str, Server]]:
    with served(models["right"], dtype="float32") as right, served(models["drifted"], dtype="float32") as drifted:
        yield {"right": right, "drifted": drifted}


@pytest.mark.slow
def test_the_right_server_passes_and_a_drifted_one_is_named(
    servers: dict[str, Server], expected: list[Expected]
) -> None:
    right = compare(servers["right"], PROMPTS, expected, 10)
    assert right.status == "passed" and right.equal == right.asked == 4, right.message
    wrong = compare(servers["drifted"], PROMPTS, expected, 10)
    assert wrong.status == "failed" and wrong.equal == 0
    assert {d.kind for d in wrong.drifts} >= {"prompt", "text"}
    assert "another chat template" in wrong.message


@pytest.mark.slow
def test_speed_is_measured_by_turns_with_every_request_counted(servers: dict[str, Server]) -> None:
    load = Load(rates=(4.0,), requests=3, blocks=2, warm_up=1, max_tokens=6, price_per_hour=2.0)
    found = measure({"base": servers["right"], "candidate": servers["drifted"]}, [p for _, p in PROMPTS], load)
    assert len(found.timed) == 2 * 2 * 3  # sides x blocks of each side x requests
    assert all(t.error is None and t.first_s is not None and t.total_s is not None for t in found.timed)
    assert all(0 < t.first_s <= t.total_s for t in found.timed if t.first_s and t.total_s)
    for row in found.table:
        assert row["errors"] == 0 and row["first_token_p50"]["value"] > 0 and row["cost_per_request"] > 0
        assert row["first_token_p99"]["high"] is None  # so few requests bound no tail
    assert all(bytes_ and bytes_ > 1e7 for bytes_ in found.peak_memory.values())
    assert set(ratios(found.timed, ("base", "candidate"))) == {"first_token", "per_token"}


def test_a_server_that_is_not_there_is_an_error_and_not_a_pass(expected: list[Expected]) -> None:
    found = compare(Server("http://127.0.0.1:9/v1", "x"), PROMPTS[:1], expected, 4)
    assert found.status == "failed" and found.drifts[0].kind == "error"


def test_a_folder_that_cannot_be_served_says_what_the_server_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((MachineError, ModelError), match="the server ended before it answered"), served(tmp_path):
        pass


@pytest.mark.slow
def test_a_folder_that_drifted_is_not_its_own_witness(
    servers: dict[str, Server], models: dict[str, Path], tmp_path: Path
) -> None:
    """Served as it is, the drifted folder agrees with itself: only a reference shows what it lost."""
    from veritune.release.serving_command import Asked, serve_command

    golden = tmp_path / "golden.jsonl"
    rows = [{"id": i, "messages": [{"role": m.role, "content": m.content} for m in p]} for i, p in PROMPTS]
    answered = [{**r, "messages": [*r["messages"], {"role": "assistant", "content": "x"}]} for r in rows]
    golden.write_text("".join(json.dumps(row) + "\n" for row in answered))

    def asked(name: str, reference: Path | None) -> Any:
        server = servers[name]
        told = None if reference is None else str(reference)
        return serve_command(
            Asked(server.model, golden, server.url, server.model, reference=told, dtype="float32", max_tokens=10)
        ).parity

    found = asked("drifted", models["right"])
    assert found.status == "failed" and any(d.kind == "prompt" for d in found.drifts)
    assert asked("right", models["right"]).status == "passed"
    alone = asked("right", None)
    assert alone.status == "undecided" and "no reference was named" in alone.message


# ---------------------------------------------------------------- arithmetic


def test_arrivals_are_poisson_seeded_and_the_same_for_every_side() -> None:
    due = arrivals(2.0, 4000, 3)
    assert due == arrivals(2.0, 4000, 3) and due == sorted(due)
    gaps = [b - a for a, b in zip([0.0, *due], due)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.5, rel=0.06) and spread == pytest.approx(mean, rel=0.08)


def test_sides_take_turns_so_that_a_drift_falls_on_both() -> None:
    assert turns(["base", "candidate"], 2) == ["base", "candidate", "candidate", "base"]


def test_a_stalled_server_is_charged_for_the_requests_that_waited() -> None:
    """One worker that stalls for .4 s: a closed loop would see one slow request, users would see all that queued."""
    lock, first = threading.Lock(), [True]

    def send(_: int) -> tuple[float, float, int]:
        with lock:
            time.sleep(0.4 if first.pop() is True else 0.005) if first else time.sleep(0.005)
        return time.monotonic(), time.monotonic(), 1

    found = open_loop(send, [0.02 * k for k in range(10)], time.monotonic)
    waited = [total for _, total, _, error in found if error is None]
    assert len(waited) == 10 and sum(w > 0.15 for w in waited) >= 8


def test_a_failed_request_is_counted_and_not_dropped() -> None:
    def send(i: int) -> tuple[float, float, int]:
        if i == 1:
            raise ConnectionError("reset")
        return time.monotonic(), time.monotonic(), 3

    found = open_loop(send, [0.0, 0.0, 0.0], time.monotonic)
    assert [f[3] for f in found] == [None, "ConnectionError: reset", None]


@pytest.mark.parametrize(("q", "n"), [(0.5, 21), (0.9, 60)])
def test_quantile_intervals_cover_at_least_as_often_as_they_say(q: float, n: int) -> None:
    import math

    draw, truth, inside = random.Random(1), -math.log(1 - q), 0
    for _ in range(2000):
        found = quantile([draw.expovariate(1.0) for _ in range(n)], q)
        low, high = found["low"], found["high"]
        inside += (low is None or low <= truth) and (high is None or truth <= high)
    assert 0.94 <= inside / 2000 <= 0.99


def test_a_tail_of_few_requests_has_no_upper_end() -> None:
    assert quantile([1.0, 2.0, 3.0], 0.99)["high"] is None
    assert quantile([], 0.5) == {"value": None, "low": None, "high": None, "n": 0, "level": 0.95}


def test_ratios_pair_requests_and_two_pairs_at_least_make_an_interval() -> None:
    def timed(side: str, factor: float) -> list[Timed]:
        return [Timed(side, 1.0, k, 0.1 * factor * (1 + k / 10), 0.5 * factor * (1 + k / 10), 5) for k in range(6)]

    found = ratios([*timed("base", 1.0), *timed("candidate", 1.5)], ("base", "candidate"))
    assert found["first_token"]["value"] == pytest.approx(1.5)
    assert found["first_token"]["low"] == pytest.approx(1.5) and found["first_token"]["n"] == 6
    one = ratios([timed("base", 1.0)[0], timed("candidate", 1.5)[0]], ("base", "candidate"))
    assert one["first_token"]["low"] is None

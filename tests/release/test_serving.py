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

from veritune.errors import InputError, MachineError, ModelError
from veritune.records import Message
from veritune.release.parity.load import (
    Load,
    Speed,
    Timed,
    arrivals,
    measure,
    open_loop,
    quantile,
    ratios,
    summary,
    turns,
    write_samples,
)
from veritune.release.parity.serving import (
    Expected,
    Response,
    Server,
    command_of,
    compare,
    difference,
    expected_answers,
    served,
)
from veritune.train.models import ModelRef, load_base, load_tokenizer

PROMPTS = [(f"p{i}", (Message("user", f"harbor gate {i} lamp"),)) for i in range(4)]
WANT = Expected((1, 2, 3, 4), "a lamp by the gate", "stop_token", ("<|im_end|>",))


# ---------------------------------------------------------------- what differs


def test_an_answer_as_the_contract_gives_it_is_no_drift() -> None:
    assert difference("p", Response(" a lamp by the gate\n", "stop", 4), WANT) == []
    assert difference("p", Response("a lamp by the gate", "stop", None), WANT) == []  # a server that hides its count


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (Response("a lamp by the gate", "stop", 9), "prompt", "rendered 9 prompt tokens, the contract 4"),
        (Response("a lamp by the gate<|im_end|>", "stop", 4), "special", "'<|im_end|>' stands in the text"),
        (Response("a lamp by the gate", "length", 4), "stop", "another stop token or token limit"),
        (Response("a lamp by the gate and more", "stop", 4), "stop", "after 27 characters"),
        (Response("a lamp", "length", 4), "stop", "after 6 characters"),
        (Response("a lamp on the gate", "stop", 4), "text", "part at character 7"),
        (Response("", "stop", 4), "stop", "after 0 characters"),
    ],
)
def test_each_drift_has_its_name(said: Response, kind: str, words: str) -> None:
    found = difference("p", said, WANT)
    assert found[0].kind == kind and words in found[0].message


def test_texts_that_part_at_white_space_do_not_count_as_another_limit() -> None:
    """llama.cpp went on with ' I' where the contract has a new paragraph, and both ended by length."""
    want = Expected((1,), "finds you well.\n\n", "length", ())
    found = difference("p", Response("finds you well. I", "length", 1), want)
    assert [d.kind for d in found] == ["text"] and "at character 15: ' I' against '\\n\\n'" in found[0].message


def test_a_stop_token_at_the_limit_is_no_drift() -> None:
    """Where the end token is the last that was allowed, `transformers serve` says `length`."""
    at_limit = Expected(WANT.prompt_ids, WANT.text, "stop_token", WANT.specials, at_limit=True)
    assert difference("p", Response(WANT.text, "length", 4), at_limit) == []
    assert difference("p", Response("another", "length", 4), at_limit)


# ---------------------------------------------------------------- a real server


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Path]:
    """The tiny model as it is; with another chat template and a shipped repetition penalty; with decoding settings."""
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
    for name, shipped in {"sampling": {"do_sample": True, "temperature": 5.0}, "stopping": {}}.items():
        shutil.copytree(tiny_model, folder / name)
        path = folder / name / "generation_config.json"
        path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | shipped))
    return {name: folder / name for name in ("right", "drifted", "sampling", "stopping")}


@pytest.fixture(scope="module")
def expected(models: dict[str, Path]) -> list[Expected]:
    ref = ModelRef("tiny", models["right"], "float32")
    return expected_answers(load_base(ref), load_tokenizer(ref), [p for _, p in PROMPTS], 10)


@pytest.fixture(scope="module")
def servers(models: dict[str, Path]) -> Iterator[dict[str, Server]]:
    """One `transformers serve` for all: started without a model it loads the folder that a request names."""
    command = "{python} -m transformers.cli.transformers serve --host {host} --port {port} --dtype {dtype}"
    with served(models["right"], dtype="float32", server=command) as one:
        yield {name: Server(one.url, str(folder), one.process) for name, folder in models.items()}


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


def golden_file(folder: Path) -> Path:
    rows = [{"id": i, "messages": [{"role": m.role, "content": m.content} for m in p]} for i, p in PROMPTS]
    answered = [{**r, "messages": [*r["messages"], {"role": "assistant", "content": "x"}]} for r in rows]
    (folder / "golden.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    return folder / "golden.jsonl"


@pytest.mark.slow
def test_a_model_that_samples_by_default_is_named_though_it_is_greedy_when_told_to_be(
    servers: dict[str, Server], expected: list[Expected]
) -> None:
    found = compare(servers["sampling"], PROMPTS, expected, 10)
    assert found.status == "failed" and {d.kind for d in found.drifts} == {"sampling"}, found.message
    assert "it samples (or penalises) by default" in found.message
    assert compare(servers["sampling"], PROMPTS, expected, 10, plain=0).status == "passed"  # what it was called before


@pytest.mark.slow
def test_another_end_token_is_named_by_its_first_difference(
    servers: dict[str, Server], models: dict[str, Path], tmp_path: Path
) -> None:
    """The end token that the folder ships is one that the answer holds: the served answer stops too early."""
    from veritune.evaluate.generate import Decoding, generate
    from veritune.release.parity.serving_command import _with_cause

    ref = ModelRef("tiny", models["right"], "float32")
    model, tokenizer = load_base(ref), load_tokenizer(ref)
    want = expected_answers(model, tokenizer, [p for _, p in PROMPTS], 10)
    answer = generate(model, tokenizer, [want[0].prompt_ids], Decoding(10))[0]
    assert len(answer.token_ids) > 4
    path = models["stopping"] / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"eos_token_id": answer.token_ids[3]}))
    parity = _with_cause(compare(servers["stopping"], PROMPTS[:1], want[:1], 10), models["stopping"], models["right"])
    assert parity.status == "failed" and parity.drifts[0].kind == "stop", parity.message
    assert f"generation_config.json has eos_token_id {answer.token_ids[3]} against" in parity.message


@pytest.mark.slow
def test_speed_is_measured_by_turns_with_every_request_counted(servers: dict[str, Server], tmp_path: Path) -> None:
    load = Load(rates=(4.0,), requests=3, blocks=2, warm_up=1, max_tokens=6, price_per_hour=2.0)
    found = measure({"base": servers["right"], "candidate": servers["drifted"]}, PROMPTS, load)
    assert len(found.timed) == 2 * 2 * 3  # sides x blocks of each side x requests
    assert all(t.error is None and t.first_s is not None and t.total_s is not None for t in found.timed)
    assert all(0 < t.first_s <= t.total_s for t in found.timed if t.first_s and t.total_s)
    for row in found.table:
        assert row["errors"] == 0 and row["first_token_p50"]["value"] > 0
        assert row["first_token_p99"]["high"] is None  # so few requests bound no tail
        assert row["peak_memory"]["value"] > 1e7
        for name in ("throughput", "cost_per_request"):
            assert row[name]["low"] < row[name]["value"] < row[name]["high"] and row[name]["blocks"] == 2
    compared = ratios(found, load)
    assert set(compared) == {"first_token", "per_token", "throughput", "peak_memory", "cost_per_request"}
    assert compared["throughput"]["value"] == pytest.approx(1 / compared["cost_per_request"]["value"])
    assert compared["first_token"]["n"] == 6 and compared["first_token"]["blocks"] == 2
    write_samples(tmp_path / "raw.jsonl", found)
    raw = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert (
        len(raw) == 12
        and {r["arm"] for r in raw} == {"base", "candidate"}
        and {r["item"] for r in raw} <= {"p0", "p1", "p2"}
    )
    assert all(r["arrival_s"] < r["first_token_s"] <= r["end_s"] and 1 <= r["tokens"] <= 6 for r in raw)
    assert {r["status"] for r in raw} == {"ok"}


def test_a_command_that_starts_no_server_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no-such-server is not installed"):
        command_of("no-such-server --model {model} --port {port}", tmp_path, 1, "float32")
    for server, words in (
        ("nonsense", "neither one of"),
        ("x {prt} {port}", "cannot fill 'prt'"),
        ("x {port", "cannot fill"),
    ):
        with pytest.raises(InputError, match=words):
            command_of(server, tmp_path, 1, "float32")
    with pytest.raises(InputError, match="expected one GGUF file, found 0"):
        command_of("llama-server", tmp_path, 1, "float32")
    (tmp_path / "m.gguf").touch()
    words = command_of("llama-cpp-python", tmp_path, 81, "float32")
    assert words[words.index("--model") + 1] == str(tmp_path / "m.gguf") and words[-1] == "81"


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
    from veritune.release.parity.serving_command import ServingRequest, serve_command

    golden = golden_file(tmp_path)

    def asked(name: str, reference: Path | None) -> Any:
        server = servers[name]
        told = None if reference is None else str(reference)
        return serve_command(
            ServingRequest(
                server.model, golden, server.url, server.model, reference=told, dtype="float32", max_tokens=10
            )
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


def test_blocks_that_differ_widen_a_quantile_until_it_covers() -> None:
    """Requests of one block share a queue: without blocks the interval of a median of 8 blocks misses far too often."""
    draw, plain, robust = random.Random(2), 0, 0
    for _ in range(600):
        level_of_block = [draw.gauss(0.0, 1.0) for _ in range(8)]
        values = [level_of_block[b] + draw.gauss(0.0, 0.5) for b in range(8) for _ in range(8)]
        for blocks in ((), [b for b in range(8) for _ in range(8)]):
            found = quantile(values, 0.5, blocks=blocks)
            covers = (found["low"] is None or found["low"] <= 0) and (found["high"] is None or found["high"] >= 0)
            robust, plain = robust + (bool(blocks) and covers), plain + (not blocks and covers)
    assert plain / 600 < 0.8 and robust / 600 >= 0.93, (plain, robust)


def speed_of(factor: list[float], errors: int = 0) -> Speed:
    """Base and candidate with a ratio of its own in every block; the candidate's first requests may fail."""
    timed = []
    for block, by in enumerate(factor):
        for k in range(4):
            first, total = 0.1 * (1 + k / 10), 0.5 * (1 + k / 10)
            lost = block == 0 and k < errors
            timed.append(Timed("base", 1.0, block, k, first, total, 5))
            times = (None, None, 0, "ReadTimeout") if lost else (first * by, total * by, 5, None)
            timed.append(Timed("candidate", 1.0, block, k, *times))
    memory = {("base", 1.0): (100,) * len(factor), ("candidate", 1.0): tuple(int(100 * by) for by in factor)}
    return Speed(tuple(timed), (), memory)


LOAD = Load(rates=(1.0,), price_per_hour=1.0)


def test_ratios_rest_on_blocks_and_not_on_requests() -> None:
    """By hand: four blocks with log ratios that have mean log 1.5; se = sd / 2, t(3) = 3.182."""
    import math
    import statistics

    logs = [math.log(1.5) + x for x in (-0.1, 0.1, -0.05, 0.05)]
    found = ratios(speed_of([math.exp(x) for x in logs]), LOAD)
    half = 3.1824 * statistics.stdev(logs) / 2
    for name in ("first_token", "per_token"):
        assert found[name]["n"] == 16 and found[name]["blocks"] == 4
        assert found[name]["value"] == pytest.approx(1.5)
        assert found[name]["low"] == pytest.approx(1.5 * math.exp(-half), rel=1e-3)
        assert found[name]["high"] == pytest.approx(1.5 * math.exp(half), rel=1e-3)
    assert found["peak_memory"]["value"] == pytest.approx(1.5, rel=0.02) and found["peak_memory"]["low"] < 1.5
    assert found["throughput"]["value"] < 1 < found["cost_per_request"]["value"]
    assert found["peak_memory"]["worst"] == int(100 * math.exp(max(logs))) / 100  # the block that held most
    assert ratios(speed_of([1.5]), LOAD)["first_token"]["low"] is None  # one block
    assert ratios(speed_of([1.5] * 4), LOAD)["first_token"]["low"] is None  # nothing varies: no spread was seen


def test_a_candidate_that_loses_requests_is_not_judged_by_those_it_answered() -> None:
    lost = speed_of([1.0, 1.1, 0.9, 1.0], errors=1)
    found = ratios(lost, LOAD)
    for name in ("first_token", "per_token", "throughput", "cost_per_request"):
        assert found[name]["low"] is None and "1 of 16 of the candidate" in found[name]["reason"]
    line = next(r for r in summary(lost.timed, LOAD, lost.memory) if r["side"] == "candidate")
    assert line["errors"] == 1 and line["first_token_p50"]["n"] == 16 and line["first_token_p50"]["lost"] == 1
    assert line["first_token_p99"]["value"] is None, "the slowest request never came"
    free = ratios(speed_of([1.0, 1.1, 0.9, 1.0]), Load(rates=(1.0,)))["cost_per_request"]
    assert free["value"] is None and "no price" in free["reason"]

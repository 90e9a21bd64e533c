"""Does the served model say what the contract's own generation says, and how fast?

Parity: the golden prompts go to a server that speaks the OpenAI chat protocol, greedily (temperature 0), and what comes
back is compared with our own greedy generation from the same folder: the number of prompt tokens (another chat template
shows there), the text, why it ended, and special tokens in the text. The first difference names the drift.

Speed: requests arrive at times drawn beforehand (Poisson, seeded), whether or not earlier ones have been answered, and
each is timed from when it was due. A client that waits for answers before it asks again hides the worst delays
("coordinated omission"). Base and candidate take turns in blocks (A B B A), warm-up is left out, and quantiles come
with binomial order-statistic intervals.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from veritune.errors import MachineError, ModelError
from veritune.records import Message

START_S = 180.0
"""A server that has not answered after this long is given up."""


# ---------------------------------------------------------------- a server


@dataclass
class Server:
    """An OpenAI-compatible server; `process` is None for one that somebody else runs."""

    url: str
    model: str
    process: subprocess.Popen[bytes] | None = None

    def peak_memory_bytes(self) -> int | None:
        """Resident memory of the server's process and its children now, in bytes; None for a foreign one."""
        import psutil

        if self.process is None:
            return None
        parent = psutil.Process(self.process.pid)
        return sum(int(p.memory_info().rss) for p in [parent, *parent.children(recursive=True)])


@contextmanager
def served(folder: Path, *, dtype: str = "bfloat16", device: str = "auto") -> Iterator[Server]:
    """`transformers serve` on loopback for one model folder, stopped when the block ends.

    Raises MachineError when what it needs is missing or it does not come up. Continuous batching stays off: it takes
    most of a CPU's memory by default.
    """
    port = _free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--device", device]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    said: list[str] = []
    reader = threading.Thread(target=_drain, args=(process, said), daemon=True)
    reader.start()
    server = Server(f"http://127.0.0.1:{port}/v1", str(folder), process)
    try:
        _wait(server, said)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(timeout=5)
        assert process.stderr is not None
        process.stderr.close()


def _drain(process: subprocess.Popen[bytes], said: list[str]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line.decode("utf-8", "replace").rstrip())
        del said[:-40]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, said: Sequence[str]) -> None:
    import httpx2

    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.process is not None and server.process.poll() is not None:
            words = next((line for line in reversed(said) if line.strip()), "it said nothing")
            raise MachineError(f"the server ended before it answered: {words[:200]}", fix="Install veritune[serving].")
        try:
            health = f"{server.url.removesuffix('/v1')}/health"
            if any(httpx2.get(url, timeout=5).status_code < 400 for url in (health, f"{server.url}/models")):
                return
            time.sleep(0.2)
        except httpx2.HTTPError:
            time.sleep(0.2)
    message = f"the server at {server.url} did not answer in {START_S:.0f} s."
    raise MachineError(message, fix="Start it yourself and name it with --url.")


# ---------------------------------------------------------------- parity


@dataclass(frozen=True)
class Said:
    """What a server answered: text, why it ended (`stop`, `length`), prompt tokens it counted (None: it hid it)."""

    text: str
    finish: str | None
    prompt_tokens: int | None


@dataclass(frozen=True)
class Drift:
    """One golden prompt whose answer is another than the contract's, and in what."""

    item: str
    kind: Literal["prompt", "text", "stop", "special", "error"]
    message: str


@dataclass(frozen=True)
class ServingParity:
    """Golden prompts asked, how many answers were as the contract's generation gives them, and every difference."""

    status: Literal["passed", "failed", "undecided"]
    message: str
    asked: int
    equal: int
    drifts: tuple[Drift, ...]
    reading: str
    limits: str
    would_change: str


def ask(server: Server, messages: Sequence[Message], max_tokens: int, timeout_s: float = 300) -> Said:
    """One chat completion, greedy. Raises ModelError when the server answers with an error."""
    import httpx2

    body = {
        "model": server.model,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": False,
    }
    try:
        answer = httpx2.post(f"{server.url}/chat/completions", json=body, timeout=timeout_s, headers=_key())
        answer.raise_for_status()
        choice = answer.json()["choices"][0]
        usage = answer.json().get("usage") or {}
        return Said(choice["message"]["content"] or "", choice.get("finish_reason"), usage.get("prompt_tokens"))
    except (httpx2.HTTPError, ValueError, KeyError, IndexError, TypeError) as exc:
        raise ModelError(f"{server.url} gave no answer: {type(exc).__name__} {str(exc)[:160]}") from None


def _key() -> dict[str, str]:
    """The key of a foreign server, from the environment and nowhere else; it is never written down."""
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass(frozen=True)
class Expected:
    """What the contract's generation gives: prompt ids, text, why it ended, and the special tokens by their text."""

    prompt_ids: tuple[int, ...]
    text: str
    ended: Literal["stop_token", "length"]
    specials: tuple[str, ...]


def compare(
    server: Server, prompts: Sequence[tuple[str, Sequence[Message]]], expected: Sequence[Expected], max_tokens: int
) -> ServingParity:
    """Ask every golden prompt and compare. `expected` is `expected_answers` of the model's own folder."""
    drifts: list[Drift] = []
    equal = 0
    for (item, messages), want in zip(prompts, expected):
        try:
            said = ask(server, messages, max_tokens)
        except ModelError as exc:
            drifts.append(Drift(item, "error", str(exc)))
            continue
        found = difference(item, said, want)
        drifts += found
        equal += not found
    return _judged(len(prompts), equal, drifts)


def expected_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[Message]], max_tokens: int
) -> list[Expected]:
    """Greedy answers by our own generation, one prompt at a time, as a server answers them."""
    from veritune.evaluate.generate import Decoding, generate

    ids = [
        tuple(
            tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in messages],
                add_generation_prompt=True,
                return_dict=True,
            )["input_ids"]
        )
        for messages in prompts
    ]
    outputs = generate(model, tokenizer, ids, Decoding(max_tokens, batch_size=1))
    specials = tuple(tokenizer.all_special_tokens)
    return [Expected(p, o.text, o.ended, specials) for p, o in zip(ids, outputs)]


def difference(item: str, said: Said, want: Expected) -> list[Drift]:
    """What differs between a server's answer and the contract's, the cause before its consequences."""
    found: list[Drift] = []
    if said.prompt_tokens is not None and said.prompt_tokens != len(want.prompt_ids):
        message = (
            f"the server rendered {said.prompt_tokens} prompt tokens, the contract {len(want.prompt_ids)}:"
            " another chat template, system prompt or tokenizer"
        )
        found.append(Drift(item, "prompt", message))
    leaked = next((s for s in want.specials if s and s in said.text), None)
    if leaked is not None:
        found.append(Drift(item, "special", f"the special token {leaked!r} stands in the text"))
    if said.text.strip() != want.text.strip():
        at = next(
            (k for k, (a, b) in enumerate(zip(said.text, want.text)) if a != b), min(len(said.text), len(want.text))
        )
        message = f"the texts part at character {at}: {said.text[at : at + 24]!r} against {want.text[at : at + 24]!r}"
        found.append(Drift(item, "text", message + f" after {want.text[max(0, at - 24) : at]!r}"))
    stop = {"stop": "stop_token", "length": "length"}.get(said.finish or "", said.finish)
    if stop != want.ended:
        message = f"it ended by {said.finish!r}, the contract's by {want.ended!r}: another stop token or token limit"
        found.append(Drift(item, "stop", message))
    return found


def _judged(asked: int, equal: int, drifts: Sequence[Drift]) -> ServingParity:
    status: Literal["passed", "failed", "undecided"] = "failed" if drifts else "passed" if asked else "undecided"
    kinds = [k for k in ("error", "prompt", "special", "stop", "text") if any(d.kind == k for d in drifts)]
    first = next((d for d in drifts if d.kind == kinds[0]), None) if kinds else None
    message = f"{equal} of {asked} golden answers are as the contract's" + (
        f"; {first.item}: {first.message}" if first else ""
    )
    return ServingParity(
        status,
        message,
        asked,
        equal,
        tuple(drifts),
        {"passed": "The server says what the contract's generation says.", "failed": f"The server drifts: {message}.",
         "undecided": "No golden prompt was asked."}[status],
        "It speaks of these prompts, greedy decoding and one request at a time; batching can change rounding.",
        "More golden prompts, or the same ones under load.",
    )  # fmt: skip


# ---------------------------------------------------------------- speed


@dataclass(frozen=True)
class Timed:
    """One request, in seconds from when it was due: first token, last token; tokens answered; error or None."""

    side: str
    rate: float
    due_s: float
    first_s: float | None
    total_s: float | None
    tokens: int
    error: str | None = None


def arrivals(rate: float, n: int, seed: int) -> list[float]:
    """Due times in seconds of `n` requests at `rate` a second: a Poisson process, the same for every side."""
    draw = random.Random(f"{rate}-{seed}")
    due, at = [], 0.0
    for _ in range(n):
        at += draw.expovariate(rate)
        due.append(at)
    return due


def turns(sides: Sequence[str], blocks: int) -> list[str]:
    """The order of blocks: A B B A, so that a drift of the machine falls on both."""
    a, b = sides
    return [side for k in range(blocks) for side in ((a, b) if k % 2 == 0 else (b, a))]


def open_loop(
    send: Callable[[int], tuple[float, float, int]], due: Sequence[float], clock: Callable[[], float]
) -> list[Any]:
    """Send request i when `due[i]` comes, whether or not others have been answered; (first, total, tokens, error) each.

    `send(i)` returns when its first and last token came (by `clock`) and how many tokens. Times count from when the
    request was due, so a client that falls behind does not flatter the server.
    """
    began = clock()
    found: list[Any] = [None] * len(due)

    def one(i: int) -> None:
        try:
            first, last, tokens = send(i)
            found[i] = (first - began - due[i], last - began - due[i], tokens, None)
        except Exception as exc:  # an error is a result here: it is counted
            found[i] = (None, None, 0, f"{type(exc).__name__}: {str(exc)[:120]}")

    threads = []
    for i, at in enumerate(due):
        time.sleep(max(0.0, began + at - clock()))
        threads.append(threading.Thread(target=one, args=(i,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return found


def stream_once(
    server: Server, messages: Sequence[Message], max_tokens: int, clock: Callable[[], float]
) -> tuple[float, float, int]:
    """One streamed answer: when its first and its last piece came, and how many pieces."""
    import httpx2

    body = {
        "model": server.model,
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
    }
    first: float | None = None
    last, pieces = clock(), 0
    with httpx2.stream("POST", f"{server.url}/chat/completions", json=body, timeout=600, headers=_key()) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            choices = json.loads(line[5:]).get("choices") or [{}]
            if (choices[0].get("delta") or {}).get("content"):
                first, last, pieces = first or clock(), clock(), pieces + 1
    if first is None:
        raise ModelError("the answer was empty")
    return first, last, pieces


def quantile(values: Sequence[float], q: float, level: float = 0.95) -> dict[str, Any]:
    """The q-quantile with its order-statistic interval (Conover 1999, sec. 3.2): ranks from the binomial distribution.

    An end that no order statistic can bound at this level is null; a tail quantile of few values has no upper end.
    """
    from scipy.stats import binom

    ordered, n = sorted(values), len(values)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0, "level": level}
    value = ordered[min(n - 1, max(0, math.ceil(q * n) - 1))]
    low = next((r for r in range(n, 0, -1) if binom.cdf(r - 1, n, q) <= (1 - level) / 2), None)
    high = next((r for r in range(1, n + 1) if binom.cdf(r - 1, n, q) >= 1 - (1 - level) / 2), None)
    return {
        "value": value,
        "low": ordered[low - 1] if low else None,
        "high": ordered[high - 1] if high else None,
        "n": n,
        "level": level,
    }


@dataclass(frozen=True)
class Load:
    """How speed is measured. `rates` are requests a second, `requests` per side, rate and block."""

    rates: tuple[float, ...] = (0.5, 1.0)
    requests: int = 8
    blocks: int = 2
    warm_up: int = 2
    max_tokens: int = 32
    seed: int = 0
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Speed:
    """Every request, and per side and rate: quantiles of first token and of time per token, throughput, errors."""

    timed: tuple[Timed, ...]
    table: tuple[dict[str, Any], ...]
    peak_memory: dict[str, int | None] = field(default_factory=dict)


def measure(servers: dict[str, Server], prompts: Sequence[Sequence[Message]], load: Load) -> Speed:
    """Base and candidate by turns at every rate. Every side sees the same prompts at the same due times."""
    clock = time.monotonic
    timed: list[Timed] = []
    peak: dict[str, int | None] = dict.fromkeys(servers)
    for server in servers.values():
        for k in range(load.warm_up):
            stream_once(server, prompts[k % len(prompts)], load.max_tokens, clock)
    for rate in load.rates:
        seen = dict.fromkeys(servers, 0)
        for side in turns(list(servers), load.blocks):
            due = arrivals(rate, load.requests, load.seed + seen[side])
            seen[side] += 1
            server = servers[side]

            def send(i: int, server: Server = server) -> tuple[float, float, int]:
                return stream_once(server, prompts[i % len(prompts)], load.max_tokens, clock)

            for at, (first, total, tokens, error) in zip(due, open_loop(send, due, clock)):
                timed.append(Timed(side, rate, at, first, total, tokens, error))
            peak[side] = max(filter(None, (peak[side], server.peak_memory_bytes())), default=None)
    return Speed(tuple(timed), tuple(summary(timed, load)), peak)


def summary(timed: Sequence[Timed], load: Load) -> list[dict[str, Any]]:
    """One row a side and rate. `per_token` is the time between tokens of one answer; `throughput` answers a second."""
    rows = []
    for rate in load.rates:
        for side in dict.fromkeys(t.side for t in timed):
            mine = [t for t in timed if (t.side, t.rate) == (side, rate)]
            good = [t for t in mine if t.error is None and t.first_s is not None and t.total_s is not None]
            gaps = [(t.total_s - t.first_s) / (t.tokens - 1) for t in good if t.tokens > 1]  # type: ignore[operator]
            busy_s = _busy(good)
            row: dict[str, Any] = {"side": side, "rate": rate, "requests": len(mine), "errors": len(mine) - len(good)}
            row |= {f"first_token_p{q}": quantile([t.first_s for t in good], q / 100) for q in (50, 90, 99)}  # type: ignore[misc]
            row |= {f"per_token_p{q}": quantile(gaps, q / 100) for q in (50, 90)}
            row["throughput"] = len(good) / busy_s if busy_s else None
            cost = load.price_per_hour
            row["cost_per_request"] = cost / 3600 * busy_s / len(good) if cost is not None and good else None
            rows.append(row)
    return rows


def _busy(good: Sequence[Timed]) -> float:
    """Seconds from the first due time to the last answer, summed over blocks (a block starts at a smaller due time)."""
    total = 0.0
    block: list[Timed] = []
    for one in [*good, None]:
        if one is None or (block and one.due_s < block[-1].due_s):
            if block:
                total += max(t.due_s + (t.total_s or 0.0) for t in block)
            block = []
        if one is not None:
            block.append(one)
    return total


def ratios(timed: Sequence[Timed], sides: tuple[str, str], level: float = 0.95) -> dict[str, dict[str, Any]]:
    """Candidate over base, over requests paired by rate, block and place: ratio of means on the log scale, t interval.

    Requests of one pair had the same prompt and due time. Raises nothing: too few pairs give no interval.
    """
    from veritune.decide.intervals import t_quantile

    def of(side: str) -> list[Timed]:
        return [t for t in timed if t.side == side]

    found: dict[str, dict[str, Any]] = {}
    measures: dict[str, Callable[[Timed], float | None]] = {
        "first_token": lambda t: t.first_s,
        "per_token": lambda t: (
            (t.total_s - t.first_s) / (t.tokens - 1) if t.first_s is not None and t.total_s and t.tokens > 1 else None
        ),
    }
    for name, measure_of in measures.items():
        logs = [
            math.log(b / a)
            for x, y in zip(of(sides[0]), of(sides[1]))
            if (a := measure_of(x)) and (b := measure_of(y)) and a > 0 and b > 0
        ]
        n = len(logs)
        if not n:
            found[name] = {"value": None, "low": None, "high": None, "n": 0}
            continue
        mean = sum(logs) / n
        se = math.sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1) / n) if n > 1 else None
        half = t_quantile(0.5 + level / 2, n - 1) * se if se is not None else None
        ends = (None, None) if half is None else (math.exp(mean - half), math.exp(mean + half))
        found[name] = {"value": math.exp(mean), "low": ends[0], "high": ends[1], "n": n}
    return found

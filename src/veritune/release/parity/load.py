"""How fast is a server, beside another's? Open-loop load, every request kept.

Requests arrive at times drawn beforehand (Poisson, seeded), whether or not earlier ones have been answered, and each is
timed from when it was due. A client that waits for answers before it asks again hides the worst delays ("coordinated
omission"). Base and candidate take turns in blocks (A B B A); warm-up is left out.

The unit of every interval is the block. Requests of one block wait in one queue on one state of the machine, so they
are no independent measurements of it: ratios are cluster-robust over blocks, never narrower than without them.
"""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import (
    Callable,
    Hashable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from veritune.errors import FormatError, ModelError
from veritune.records import Json, JsonLike, Message
from veritune.release.parity.serving import Server, chat_template_kwargs, key_header
from veritune.stats.intervals import t_quantile
from veritune.stats.tails import QuantileRatio, Waits, quantile_ratio
from veritune.store import write_jsonl

SAMPLES = "release/serving.jsonl"
"""Where a study keeps every request of the load test."""
LOOK_S = 0.1
"""How often the memory of a server is looked at while it is under load."""


@dataclass(frozen=True)
class Timed:
    """One request, in seconds from its due time: first token, last token; number of tokens; error or None.

    `due_s` counts from the start of its block.
    """

    side: str
    rate: float
    block: int
    due_s: float
    first_s: float | None
    total_s: float | None
    tokens: int
    error: str | None = None
    item: str = ""


@dataclass(frozen=True)
class Load:
    """How to measure speed. `rates` are requests per second, `requests` are per side, rate and block."""

    rates: tuple[float, ...] = (0.5, 1.0)
    requests: int = 8
    blocks: int = 4
    warm_up: int = 2
    max_tokens: int = 32
    seed: int = 0
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Speed:
    """The measured speed: every request, the peak memory of every block in bytes, and a row of `summary` per side and
    rate.

    `memory` is by (side, rate), one value a block, None where it cannot be known.
    """

    timed: tuple[Timed, ...]
    table: tuple[dict[str, Any], ...]
    memory: Mapping[tuple[str, float], tuple[int | None, ...]]


# ---------------------------------------------------------------- asking


def arrivals(rate: float, n: int, seed: int) -> list[float]:
    """Due times in seconds of `n` requests at `rate` per second: a Poisson process, the same for every side."""
    draw = random.Random(f"{rate}-{seed}")
    due, at = [], 0.0
    for _ in range(n):
        at += draw.expovariate(rate)
        due.append(at)
    return due


def turns(sides: Sequence[str], blocks: int) -> list[str]:
    """The order of blocks: A B B A, so that a drift of the machine affects both sides equally."""
    a, b = sides
    return [side for k in range(blocks) for side in ((a, b) if k % 2 == 0 else (b, a))]


def open_loop(
    send: Callable[[int], tuple[float, float, int]], due: Sequence[float], clock: Callable[[], float]
) -> list[Any]:
    """Send request i at `due[i]`, whether or not earlier ones are answered; returns (first, total, tokens, error) for
    each.

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
    """One streamed answer: the times of its first and its last piece, and its number of tokens.

    Tokens are the server's own count where it sends one: a piece may hold several tokens. Raises ModelError for an
    answer without text, httpx2's errors for none.
    """
    import httpx2

    body = {
        "model": server.model,
        "messages": [m.to_chat() for m in messages],
        **chat_template_kwargs(server),
        "temperature": 0,
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    first: float | None = None
    last, pieces, counted = clock(), 0, None
    with httpx2.stream(
        "POST", f"{server.url}/chat/completions", json=body, timeout=600, headers=key_header()
    ) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            event = json.loads(line[5:])
            counted = (event.get("usage") or {}).get("completion_tokens") or counted
            choices = event.get("choices") or [{}]
            if (choices[0].get("delta") or {}).get("content"):
                first, last, pieces = first or clock(), clock(), pieces + 1
    if first is None:
        raise ModelError("the answer was empty")
    return first, last, counted or pieces


@contextmanager
def watched(server: Server) -> Iterator[list[int]]:
    """The most memory that the server held while the block ran, in bytes, as the only value of a list; empty if
    unknown.
    """
    peak: list[int] = []
    done = threading.Event()

    def look() -> None:
        while True:
            now = server.memory_bytes()
            if now is None:
                return
            peak[:] = [max([now, *peak])]
            if done.wait(LOOK_S):
                return

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def measure(servers: dict[str, Server], prompts: Sequence[tuple[str, Sequence[Message]]], load: Load) -> Speed:
    """Measure base and candidate in alternation at every rate. Each side gets the same prompts at the same due
    times."""
    clock = time.monotonic
    timed: list[Timed] = []
    memory: dict[tuple[str, float], list[int | None]] = {}
    for server in servers.values():
        for k in range(load.warm_up):
            stream_once(server, prompts[k % len(prompts)][1], load.max_tokens, clock)
    for rate in load.rates:
        for side in turns(list(servers), load.blocks):
            held = memory.setdefault((side, rate), [])
            block, server = len(held), servers[side]
            due = arrivals(rate, load.requests, load.seed + block)

            def send(i: int, server: Server = server) -> tuple[float, float, int]:
                return stream_once(server, prompts[i % len(prompts)][1], load.max_tokens, clock)

            with watched(server) as peak:
                answers = open_loop(send, due, clock)
            held.append(peak[0] if peak else None)
            for i, (at, answer) in enumerate(zip(due, answers)):
                timed.append(replace(Timed(side, rate, block, at, *answer), item=prompts[i % len(prompts)][0]))
    kept = {key: tuple(values) for key, values in memory.items()}
    return Speed(tuple(timed), tuple(summary(timed, load, kept)), kept)


def write_samples(path: Path, speed: Speed) -> None:
    """Write every request as a line of JSON. Times are seconds from the start of its block; `status` is `ok` or the
    error.
    """
    write_jsonl(path, sample_lines(speed))


def sample_lines(speed: Speed) -> list[dict[str, JsonLike]]:
    """Every request as the record line that is kept."""
    return [_line(t) for t in speed.timed]


def _line(t: Timed) -> dict[str, JsonLike]:
    first, end = (None if s is None else round(t.due_s + s, 6) for s in (t.first_s, t.total_s))
    return {
        "arm": t.side, "rate": t.rate, "block": t.block, "item": t.item, "arrival_s": round(t.due_s, 6),
        "first_token_s": first, "end_s": end, "tokens": t.tokens, "status": t.error or "ok",
    }  # fmt: skip


# ---------------------------------------------------------------- numbers


def quantile(
    values: Sequence[float], q: float, level: float = 0.95, blocks: Sequence[Hashable] = ()
) -> dict[str, JsonLike]:
    """The q-quantile with the wider of two intervals, both between order statistics.

    Ranks from the binomial distribution (Conover 1999, sec. 3.2), as if requests were independent; and, with `blocks`
    (the block of every value), ranks n(q ± t·se), se the cluster-robust error of the share below the quantile, t with
    blocks - 1 degrees of freedom (Woodruff 1952, JASA 47:635). An end that no order statistic can bound at this level
    is null; a tail quantile of few values has no upper end. An infinite value is a request without an answer: a
    quantile or an end that falls among those is null, and `lost` counts them.
    """
    n, lost = len(values), sum(math.isinf(v) for v in values)
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0, "level": level}
    ordered = sorted(values)
    value = ordered[min(n - 1, max(0, math.ceil(q * n) - 1))]
    low, high = _ranks(n, q, level)
    if len(set(blocks)) > 1:
        below = [float(v <= value) for v in values]
        se, df = _clustered(below, blocks)
        half = t_quantile(0.5 + level / 2, df) * se
        low, high = min(low, math.floor(n * (q - half))), max(high, math.ceil(n * (q + half)) + 1)
    ends = (value, ordered[low - 1] if low >= 1 else None, ordered[high - 1] if high <= n else None)
    known = [None if end is None or math.isinf(end) else end for end in ends]
    found: dict[str, JsonLike] = {"value": known[0], "low": known[1], "high": known[2], "n": n, "level": level}
    return found | ({"lost": lost} if lost else {})


@cache
def _ranks(n: int, q: float, level: float) -> tuple[int, int]:
    """Ranks of the order statistics that bound a quantile of n independent values; 0 or n + 1 where none does."""
    from scipy.stats import binom

    low = next((r for r in range(n, 0, -1) if binom.cdf(r - 1, n, q) <= (1 - level) / 2), 0)
    high = next((r for r in range(1, n + 1) if binom.cdf(r - 1, n, q) >= 1 - (1 - level) / 2), n + 1)
    return low, high


def _clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Standard error of a mean whose values come in clusters, and its degrees of freedom (clusters - 1).

    sqrt(G/(G - 1) · sum of squared cluster sums of residuals) / n, never below the error without clusters.
    """
    n, mean = len(values), sum(values) / len(values)
    sums: dict[Any, float] = {}
    for value, cluster in zip(values, clusters):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    g = len(sums)
    plain = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return max(plain, math.sqrt(g / (g - 1) * sum(s * s for s in sums.values())) / n), g - 1


def mean_ratio(logs: Sequence[float], blocks: Sequence[Hashable], level: float = 0.95) -> dict[str, JsonLike]:
    """exp of a mean of logs with a t interval over blocks; the ends are null for one block or if nothing varies."""
    groups = len(set(blocks))
    found: dict[str, Any] = {"value": None, "low": None, "high": None, "n": len(logs), "blocks": groups, "level": level}
    if not logs:
        return found
    mean = sum(logs) / len(logs)
    found["value"] = math.exp(mean)
    if groups > 1:
        se, df = _clustered(logs, blocks)
        half = t_quantile(0.5 + level / 2, df) * se
        if half > 1e-12:
            found |= {"low": math.exp(mean - half), "high": math.exp(mean + half)}
            found["method"] = f"cluster-robust t on logs over {groups} blocks"
    return found


def throughput_of(timed: Sequence[Timed]) -> list[float | None]:
    """Answers per second in every block of one side at one rate; None for a block without an answer.

    A block lasts from its start to its last answer.
    """
    found: list[float | None] = []
    for block in sorted({t.block for t in timed}):
        good = [t for t in timed if t.block == block and t.total_s is not None]
        found.append(len(good) / max(t.due_s + (t.total_s or 0.0) for t in good) if good else None)
    return found


def _answered(t: Timed) -> bool:
    return t.error is None and t.first_s is not None and t.total_s is not None


def _per_token(t: Timed) -> float | None:
    return (t.total_s - t.first_s) / (t.tokens - 1) if t.first_s is not None and t.total_s and t.tokens > 1 else None


def _over_blocks(values: Sequence[float | None]) -> dict[str, JsonLike]:
    """The geometric mean over blocks with its interval; no value where a block has none."""
    logs = [math.log(v) for v in values if v]
    return mean_ratio(logs if len(logs) == len(values) else [], range(len(logs)))


def summary(
    timed: Sequence[Timed], load: Load, memory: Mapping[tuple[str, float], Sequence[int | None]]
) -> list[dict[str, JsonLike]]:
    """One row per side and rate, every number with its interval. In quantiles a failed request counts as infinitely
    slow.

    `per_token` is the time between tokens of one answer; `throughput` answers a second; `cost_per_request` the
    machine's price over the throughput; `peak_memory` bytes. The last three are geometric means over blocks.
    """
    rows = []
    for rate in load.rates:
        for side in dict.fromkeys(t.side for t in timed):
            mine = [t for t in timed if (t.side, t.rate) == (side, rate)]
            lost = [(math.inf, t.block) for t in mine if not _answered(t)]
            row: dict[str, Any] = {"side": side, "rate": rate, "requests": len(mine), "errors": len(lost)}
            good = [t for t in mine if _answered(t)]
            first = [*((t.first_s, t.block) for t in good if t.first_s is not None), *lost]
            whole = [*((t.total_s, t.block) for t in good if t.total_s is not None), *lost]
            gaps = [*((gap, t.block) for t in good if (gap := _per_token(t)) is not None), *lost]
            times = (("first_token", first, (50, 90, 99)), ("answer", whole, (50, 99)), ("per_token", gaps, (50, 90)))
            for name, found, shares in times:
                values, blocks = [v for v, _ in found], [b for _, b in found]
                row |= {f"{name}_p{q}": quantile(values, q / 100, blocks=blocks) for q in shares}
            done = throughput_of(mine)
            row["throughput"] = _over_blocks(done)
            price = load.price_per_hour
            costs = [] if price is None else [price / 3600 / d if d else None for d in done]
            row["cost_per_request"] = _over_blocks(costs)
            row["peak_memory"] = _over_blocks(memory.get((side, rate), ()))
            rows.append(row)
    return rows


def ratios(speed: Speed, load: Load, sides: tuple[str, str] = ("base", "candidate")) -> dict[str, dict[str, JsonLike]]:
    """Ratios candidate over base for the serving gate: geometric mean ratios with t intervals over blocks.

    Latencies are paired by request (same prompt, same due time) at all rates; throughput, cost and memory by block at
    the highest rate. A request without an answer has no time, and leaving it out would flatter the side that lost it:
    with one lost, ratios have no interval, and `reason` says so.
    """

    def of(side: str) -> list[Timed]:
        return [t for t in speed.timed if t.side == side]

    a, b = (of(side) for side in sides)
    found: dict[str, dict[str, Any]] = {}
    for name, measure_of in (("first_token", lambda t: t.first_s), ("per_token", _per_token)):
        pairs = [(x, measure_of(x), measure_of(y)) for x, y in zip(a, b)]
        kept = [(math.log(new / old), (x.rate, x.block)) for x, old, new in pairs if old and new and min(old, new) > 0]
        found[name] = mean_ratio([log for log, _ in kept], [block for _, block in kept])
    top = max(load.rates)
    done = [throughput_of([t for t in one if t.rate == top]) for one in (a, b)]
    found["throughput"] = _block_ratio(*done)
    if load.price_per_hour is not None:
        found["cost_per_request"] = _block_ratio(*reversed(done))
    else:
        found["cost_per_request"] = mean_ratio([], []) | {"reason": "no price was given (--price-per-hour)"}
    found["peak_memory"] = _block_ratio(*(speed.memory.get((side, top), ()) for side in sides))
    found["peak_memory"]["worst"] = _worst_memory(speed, sides)
    if found["peak_memory"]["value"] is None:
        found["peak_memory"]["reason"] = "memory of a foreign server or of a GPU cannot be measured"
    lost = {side: sum(t.error is not None for t in of(side)) for side in sides}
    if any(lost.values()):
        words = " and ".join(f"{n} of {len(of(side))} of the {side}" for side, n in lost.items() if n)
        for name in ("first_token", "per_token", "throughput", "cost_per_request"):
            found[name] |= {"low": None, "high": None, "reason": f"requests had no answer: {words}"}
    return found


def _worst_memory(speed: Speed, sides: tuple[str, str]) -> float | None:
    """The candidate's largest block at any rate over the base's: a mean over blocks hides the one that runs out."""
    most = []
    for side in sides:
        held = [m for (of, _), values in speed.memory.items() if of == side for m in values]
        if not held or None in held:
            return None
        most.append(max(m for m in held if m is not None))
    return most[1] / most[0] if most[0] else None


# ---------------------------------------------------------------- the tail

TAILS = ("first_token", "answer")
"""What the gate limits in the tail: waiting for the first token, and for the whole answer."""


def waits(lines: Sequence[Json]) -> dict[str, dict[str, Waits]]:
    """Waiting times by arm and by name in `TAILS`, from lines as `write_samples` writes them.

    A request without an answer, or without a time, is infinitely slow. Raises FormatError for a line of another shape.
    """
    arms: dict[str, list[tuple[float, int, float, float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            due, ends = float(line["arrival_s"]), [line["first_token_s"], line["end_s"]]
            fine = line["status"] == "ok"
            took = [math.inf if not fine or end is None else float(end) - due for end in ends]
            arms.setdefault(str(line["arm"]), []).append((float(line["rate"]), int(line["block"]), took[0], took[1]))
        except (KeyError, TypeError, ValueError) as exc:
            message = f"request {number}: expected a line of the load test, found {type(exc).__name__}: {exc}."
            raise FormatError(message, fix="Measure again with `veritune serve-parity --study`.") from exc
        if math.isnan(took[0]) or math.isnan(took[1]):
            raise FormatError(f"request {number}: its time is not a number.", fix="Measure again.")
    rates = sorted({row[0] for rows in arms.values() for row in rows})
    made: dict[str, dict[str, Waits]] = {}
    for arm, rows in arms.items():
        stratum_N = np.array([rates.index(row[0]) for row in rows])
        block_N = np.array([row[1] for row in rows])
        times = {name: np.array([row[2 + k] for row in rows]) for k, name in enumerate(TAILS)}
        made[arm] = {name: Waits(value_N, stratum_N, block_N) for name, value_N in times.items()}
    return made


@dataclass(frozen=True)
class TailRule:
    """Which quantile to compare, at which error rate, and how many slow requests in a row may have one cause."""

    quantile: float = 0.99
    alpha: float = 0.05
    burst: int = 1


def tails(lines: Sequence[Json], rule: TailRule | None = None) -> dict[str, QuantileRatio]:
    """Candidate over base at the rule's quantile, over all rates, for every name in `TAILS`."""
    rule = rule or TailRule()
    by_arm = waits(lines)
    none = Waits(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    arms = [by_arm.get(side, dict.fromkeys(TAILS, none)) for side in ("candidate", "base")]
    return {name: quantile_ratio(arms[0][name], arms[1][name], rule.quantile, rule.alpha, rule.burst) for name in TAILS}


def tail_numbers(ratio: QuantileRatio) -> Mapping[str, JsonLike]:
    """A tail ratio as written in a record; an infinite end is null, and `reason` says why."""
    ends = [None if end is None or math.isinf(end) else end for end in (ratio.value, ratio.low, ratio.high)]
    return {
        "quantile": ratio.q, "value": ends[0], "low": ends[1], "high": ends[2], "n": ratio.n,
        "lost": {"candidate": ratio.lost[0], "base": ratio.lost[1]}, "needed": ratio.needed, "reason": ratio.reason,
    }  # fmt: skip


def _block_ratio(old: Sequence[float | None], new: Sequence[float | None]) -> dict[str, JsonLike]:
    logs = [math.log(y / x) for x, y in zip(old, new) if x and y]
    return mean_ratio(logs if len(logs) == len(old) else [], range(len(logs)))

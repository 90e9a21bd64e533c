"""How often the serving gate's tail limit passes a server that is slow in the tail, and fails one that is not.

    python bench/serving/tail.py [--rounds 2000]

Two rates, log-normal waits (log sd 0.25, the higher rate 1.5 times as slow), limit 2 on the ratio of p99, 1 - alpha
0.95. Faults are the candidate's; `stalls`, `slow blocks` and `blocks differ` are of both arms: the server is unchanged.
For the mean ratio, the gate's rule of 1.1 on the paired geometric mean stands beside it.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from veritune.release.parity.load import mean_ratio
from veritune.stats.tails import Waits, quantile_ratio

RATES, LIMIT, Q = 2, 2.0, 0.99
SCENES: dict[str, tuple[dict[str, float], dict[str, float], int]] = {
    "2 % ten times slower": ({"slow": 0.02}, {}, 1),
    "1 % ten times slower (boundary)": ({"slow": 0.01}, {}, 1),
    "2 % ten times slower, bursts of 5": ({"slow": 0.02, "run": 5}, {}, 1),
    "2 % ten times slower, bursts of 5, declared": ({"slow": 0.02, "run": 5}, {}, 5),
    "unchanged": ({}, {}, 1),
    "unchanged, blocks differ (log sd 0.3)": ({}, {"blocks": 0.3}, 1),
    "unchanged, 2 % stalls": ({}, {"slow": 0.02}, 1),
    "unchanged, 1 % stalls in bursts of 5": ({}, {"slow": 0.01, "run": 5}, 1),
    "unchanged, a tenth of blocks 3 times slower": ({}, {"block_share": 0.1}, 1),
}
"""Name: what the candidate has, what both arms have, the declared burst."""


def arm(draw: np.random.Generator, blocks: int, n: int, has: dict[str, float]) -> Waits:
    """Waits of one arm: `blocks` of `n` requests a rate."""
    total = RATES * blocks * n
    stratum_N = np.repeat(np.arange(RATES), blocks * n)
    cluster_N = np.repeat(np.arange(RATES * blocks), n)
    value_N = np.exp(0.25 * draw.normal(size=total)) * (1 + 0.5 * stratum_N)
    value_N *= np.exp(has.get("blocks", 0.0) * draw.normal(size=RATES * blocks))[cluster_N]
    value_N *= np.where(draw.random(RATES * blocks) < has.get("block_share", 0.0), 3.0, 1.0)[cluster_N]
    run = int(has.get("run", 1))
    slow_N = np.zeros(total, bool)
    for start in np.flatnonzero(draw.random(total) < has.get("slow", 0.0) / run):
        slow_N[start : start + run] = True
    return Waits(np.where(slow_N, 10.0, 1.0) * value_N, stratum_N, cluster_N % blocks)


def mean_passes(new: Waits, old: Waits) -> bool:
    """The gate's rule for first_token: upper end of the paired geometric mean ratio at most 1.1."""
    logs = np.log(new.value_N / old.value_N).tolist()
    high = mean_ratio(logs, list(zip(old.stratum_N.tolist(), old.block_N.tolist())))["high"]
    return high is not None and high <= 1.1


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    se = math.sqrt(0.025 * 0.975 / rounds)
    print(f"rounds {rounds}; nominal 0.025 a side, + 3 s.e. = {0.025 + 3 * se:.4f}\n")
    print("| server | requests an arm | mean ratio passes | tail passes | tail fails | undecided |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (fault, both, burst) in SCENES.items():
        for blocks, n in ((4, 55 * burst), (10, 50 * burst)):
            draw = np.random.default_rng(0)
            counts = {"passed": 0, "failed": 0, "undecided": 0}
            by_mean = 0
            for _ in range(rounds):
                old, new = arm(draw, blocks, n, both), arm(draw, blocks, n, both | fault)
                counts[quantile_ratio(new, old, Q, burst=burst).against(LIMIT)] += 1
                by_mean += mean_passes(new, old)
            shares = [by_mean / rounds, *(counts[k] / rounds for k in ("passed", "failed", "undecided"))]
            print(f"| {name} | {RATES * blocks * n} | " + " | ".join(f"{s:.3f}" for s in shares) + " |", flush=True)


if __name__ == "__main__":
    main()

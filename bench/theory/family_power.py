"""How often `improves` is supported at a true gap of .2, by family sizes and effects.

python bench/theory/family_power.py [--reps 200]
"""

from __future__ import annotations

import argparse

import numpy as np
import theory_designs as designs
from theory_cells import options, tables

from veritune.stats.paired import compare_tables

ROWS = [(n, "equal") for n in (5, 6, 8, 20, 40)] + [(8, "one of 40 %"), (20, "one of 40 %"), (20, "two of 35 %")]
COLUMNS = [(binary, effect) for binary in (False, True) for effect in ("weak", "strong")]
GAP = 0.2


def power(sizes: str, count: int, effect: str, binary: bool, reps: int) -> float:
    draw, rng = designs.families(sizes, count, effect, GAP, binary=binary), np.random.default_rng([count, reps])
    wins = 0
    for _ in range(reps):
        spread = compare_tables(*tables(draw(rng)), options(None)).headline.spread
        wins += spread.interval(0.95)[0] > 0
    return wins / reps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=200)
    reps = parser.parse_args().reps
    print("| families | graded, weak effects | graded, strong | binary, weak | binary, strong |")
    print("| --- | --- | --- | --- | --- |")
    for count, sizes in ROWS:
        found = [f"{power(sizes, count, effect, binary, reps):.2f}".removeprefix("0") for binary, effect in COLUMNS]
        print(f"| {count}, {sizes} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()

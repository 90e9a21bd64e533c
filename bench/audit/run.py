"""Veritune's audit beside its peers, on the same labelled corpora, interleaved; prints the tables of the docs.

    python bench/audit/run.py --rows 10000 100000 --repeats 3
    python bench/audit/run.py --what contamination --rows 100000 --tools veritune lm-eval
    python bench/audit/run.py --what families --rows 100000 1000000 --growth --exactly veritune --repeats 5

Each run is a process of its own: it loads the corpus, warms the tool up on a few thousand rows, and then measures
CPU seconds (all threads) and the growth of its peak memory over what the loaded texts had taken. Tools take turns, so
that a busy machine is busy for all of them; the table shows the median. Peers not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import corpus
import measure
import numpy as np
import peers
import polars as pl

WARM_ROWS = 6000
PLANTED = 1188


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    args.add_argument("--what", choices=("families", "contamination"), nargs="+", default=["families", "contamination"])
    args.add_argument("--tools", nargs="+", default=[], help="run the tools whose names contain one of these")
    args.add_argument("--exactly", nargs="+", default=[], help="run the tools of these names")
    args.add_argument("--growth", action="store_true", help="sizes take turns, too; prints how a row's cost grows")
    args.add_argument("--repeats", type=int, default=3)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--child", nargs=3, metavar=("WHAT", "TOOL", "FILE"), help=argparse.SUPPRESS)
    given = args.parse_args()
    given.tools = given.tools or ([] if given.exactly else [""])
    if given.child:
        print(json.dumps(child(*given.child)))
        return
    for what in given.what:
        if given.growth:
            growth(what, given)
            continue
        for rows in given.rows:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "corpus.parquet"
                prepare(what, rows, given.seed).write_parquet(path)
                table(what, rows, path, given)


def prepare(what: str, rows: int, seed: int) -> pl.DataFrame:
    frame = corpus.make(rows, seed)
    if what == "contamination":
        frame = corpus.plant(frame, corpus.load("test"), min(PLANTED, rows // 20), seed)
    return frame


def table(what: str, rows: int, path: Path, given: argparse.Namespace) -> None:
    tools = chosen(what, given)
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(given.repeats):
        for tool in tools:
            found = measured(what, tool, path)
            if not found:
                tools = [t for t in tools if t != tool]
                continue
            runs.setdefault(tool, []).append(found)
    print(f"\n{what}, {rows} rows, median of {given.repeats}")
    extra = list(next(iter(runs.values()))[0]["quality"])
    print(f"| tool | rows per CPU-second | wall s | peak over text, GB | {' | '.join(extra)} |")
    print("| --- |" + " --- |" * (3 + len(extra)))
    for tool, found in runs.items():
        rate, wall, peak = (statistics.median(f[k] for f in found) for k in ("rate", "wall_s", "peak_gb"))
        quality = " | ".join(f"{found[0]['quality'][k]:.4g}" for k in extra)
        print(f"| {tool} | {rate:,.0f} | {wall:.2f} | {peak:.2f} | {quality} |", flush=True)


def chosen(what: str, given: argparse.Namespace) -> list[str]:
    known = peers.FAMILY_PEERS if what == "families" else peers.CONTAMINATION_PEERS
    return [t for t in known if any(name in t for name in given.tools) or t in given.exactly]


def measured(what: str, tool: str, path: Path) -> dict[str, Any]:
    """What the tool's own process says, or nothing where it could not run."""
    argv = [sys.executable, __file__, "--child", what, tool, str(path)]
    out = subprocess.run(argv, capture_output=True, text=True, check=False)
    if out.returncode:
        print(f"  {tool}: left out ({out.stderr.strip().splitlines()[-1]})", file=sys.stderr)
        return {}
    found: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
    return found


def growth(what: str, given: argparse.Namespace) -> None:
    """A row's cost by size, over the cost at the smallest size of the same round."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {rows: Path(folder) / f"{rows}.parquet" for rows in given.rows}
        for rows, path in paths.items():
            prepare(what, rows, given.seed).write_parquet(path)
        first = given.rows[0]
        print(f"\n{what}, {given.repeats} rounds, sizes taking turns; median growth of a row's cost [lowest, highest]")
        print("| tool | rows | rows per CPU-second | wall s | growth, CPU | growth, wall |\n|" + " --- |" * 6)
        cases = [(tool, rows) for tool in chosen(what, given) for rows in given.rows]
        rounds = [{case: measured(what, case[0], paths[case[1]]) for case in cases} for _ in range(given.repeats)]
        if not all(all(r.values()) for r in rounds):
            raise SystemExit("a run failed: there is no growth to tell")
        for tool, rows in cases:
            rate, wall = (statistics.median(r[tool, rows][k] for r in rounds) for k in ("rate", "wall_s"))
            cpu = [r[tool, first]["rate"] / r[tool, rows]["rate"] for r in rounds]
            clock = [r[tool, rows]["wall_s"] / rows / (r[tool, first]["wall_s"] / first) for r in rounds]
            cells = [f"{statistics.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" for x in (cpu, clock)]
            print(f"| {tool} | {rows} | {rate:,.0f} | {wall:.2f} | {' | '.join(cells)} |", flush=True)


def child(what: str, tool: str, path: str) -> dict[str, Any]:
    frame = pl.read_parquet(path)
    texts = [p + "\n\n" + t for p, t in zip(frame["problem"], frame["target"])]
    labels = frame.drop("problem", "target")
    del frame
    items = [question for question, _ in corpus.load("test")]
    if what == "families":
        peers.FAMILY_PEERS[tool](texts[:WARM_ROWS])
    else:
        peers.CONTAMINATION_PEERS[tool](texts[:WARM_ROWS], items)
    before = _peak_gb()
    cpu, wall = time.process_time(), time.perf_counter()
    found: Any
    found = peers.FAMILY_PEERS[tool](texts) if what == "families" else peers.CONTAMINATION_PEERS[tool](texts, items)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _peak_gb() - before
    quality = family_quality(labels, found) if what == "families" else contamination_quality(labels, found)
    return {"rate": len(texts) / cpu, "wall_s": wall, "peak_gb": peak, "quality": quality}


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def family_quality(labels: pl.DataFrame, found_N: measure.Codes) -> dict[str, float]:
    truth_N = measure.codes(labels["label"].to_list())
    precision, recall = measure.pairwise(truth_N, found_N)
    row_precision, row_recall = measure.per_row(truth_N, found_N)
    leaks = [measure.leak(truth_N, found_N, seed) for seed in range(10)]
    return {
        "P pairs": precision,
        "R pairs": recall,
        "P rows": row_precision,
        "R rows": row_recall,
        "leak": float(np.mean(leaks)),
    }


def contamination_quality(labels: pl.DataFrame, flag_N: np.ndarray) -> dict[str, float]:
    planted_N = labels["leak"].to_numpy() >= 0
    how_N, original_N = np.array(labels["how"].to_list()), labels["label"].to_list()
    real_N = np.array([o in {f"o{row}.0" for row in corpus.REAL_COPIES} for o in original_N]) & ~planted_N
    right = int((flag_N & (planted_N | real_N)).sum())

    def recall(how: str) -> float:
        return float(flag_N[how_N == how].mean())

    return {
        "P": right / max(int(flag_N.sum()), 1),
        "P, real copies as false": int((flag_N & planted_N).sum()) / max(int(flag_N.sum()), 1),
        "R": float(flag_N[planted_N].mean()),
        "R paraphrase": recall("paraphrase"),
        "R delete 30 %": recall("delete 30 %"),
        "R quoted": recall("quoted"),
    }


if __name__ == "__main__":
    main()

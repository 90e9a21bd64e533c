"""First byte of the workbench's samples page over large score files.   python bench/view/run.py --rows 33000 1000000

Two runs of N/2 rows each, outputs of about 400 characters; the page is asked over HTTP on loopback, one request after
another. The index is built once and its time is shown apart. CPU time is the server's, whole page included: on a busy
machine it says more than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psutil

ASKS = {"page": "", "A higher": "&show=a", "text": "&text=harbour%20lights"}


def write(path: Path, rows: int, seed: int) -> None:
    """One run's scores."""
    draw = random.Random(seed)
    words = [
        "the",
        "boat",
        "sails",
        "home",
        "past",
        "harbour",
        "lights",
        "and",
        "quay",
        "walls",
        "while",
        "tides",
        "turn",
        "over",
        "slow",
        "water",
    ]
    with path.open("w", encoding="utf-8") as out:
        for n in range(rows):
            output = " ".join(draw.choices(words, k=70))
            row = {"run_id": path.stem, "eval": "e", "item_id": f"i{n}", "value": draw.choice((0.0, 1.0))}
            row |= {"reason": None, "family": f"f{n // 4}", "zone": "stranger", "output": output, "parts": {}}
            out.write(json.dumps(row) + "\n")


def first_byte_s(url: str) -> float:
    """Seconds until the first byte of the body."""
    start = time.perf_counter()
    with urllib.request.urlopen(url, timeout=600) as answer:
        answer.read(1)
        took = time.perf_counter() - start
        answer.read()
    return took


def main() -> None:
    """Print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[33_000])
    parser.add_argument("--asks", type=int, default=40)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; p50/p95 in ms of wall time (mean of CPU time)")
    print("rows  index built s  " + "  ".join(ASKS))
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as folder:
            print(_line(Path(folder), rows, given.asks), flush=True)


def _line(folder: Path, rows: int, asks: int) -> str:
    for k, name in enumerate(("a", "b")):
        write(folder / f"{name}.jsonl", rows // 2, k)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "veritune", "view", str(folder), "--port", str(port)]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    try:
        base = f"http://127.0.0.1:{port}"
        while True:
            try:
                home = urllib.request.urlopen(base).read().decode()
                break
            except OSError:
                time.sleep(0.2)
        url = f"{base}/p/{home.split('href=' + chr(34) + '/p/')[1].split(chr(34))[0]}/samples?run=a.jsonl&run=b.jsonl"
        cold = first_byte_s(url)
        parts = [f"{rows:>9,}  {cold:>8.2f}"]
        watched = psutil.Process(server.pid)
        for query in ASKS.values():
            spent = sum(watched.cpu_times()[:2])
            took = sorted(first_byte_s(f"{url}{query}&page={1 + n}") for n in range(asks))
            spent = sum(watched.cpu_times()[:2]) - spent
            middle, late = statistics.median(took), took[int(0.95 * (asks - 1))]
            parts.append(f"{1000 * middle:.0f}/{1000 * late:.0f} ({1000 * spent / asks:.0f})")
        return "  ".join(parts)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()

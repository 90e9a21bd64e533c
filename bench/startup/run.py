"""Start-up: `veritune --help` and `python -c pass` as whole processes, interleaved.   python bench/startup/run.py"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    veritune = [str(Path(sys.executable).with_name("veritune")), "--help"]
    python = [sys.executable, "-c", "pass"]
    seconds(veritune)
    pairs = [(seconds(veritune), seconds(python)) for _ in range(ROUNDS)]
    result = {
        "help_s": round(statistics.median(a for a, _ in pairs), 3),
        "python_s": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(a / b for a, b in pairs), 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Install the core into a fresh environment and say what it came to; fail where it is no longer light.

    make test-light        or  python tests/light/install.py [--python python3.12] [--keep FOLDER]

Checks: no package of the training half is there; the size is below LIMIT_MIB; every command that needs no model runs
(`tests/test_light.py` runs more of them with the training half blocked). Seconds are printed and judged by nobody: they
are the network's and the machine's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MIB = 600
REPO = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "transformers", "peft", "accelerate", "tokenizers", "pyarrow", "polars", "pandas")
SCORES = {"a.jsonl": 3, "b.jsonl": 2}
COMMANDS = (
    (("--version",), 0),
    (("schema",), 0),
    (("doctor",), 0),
    (("compare", "a.jsonl", "b.jsonl"), 0),
    (("power", "--items", "100", "--discordance", "0.1"), 0),
    (("audit", "rows.jsonl"), 0),
    (("init", "rows.jsonl"), 0),
    (("status", "study.yaml"), 0),
    (("lint", "text.md", "--study", "."), 1),
    (("verify", "."), 1),
    (("gate", ".", "--condition", "all_layer"), 1),
    (("run", "study.yaml"), 1),
)
"""Commands and the exit code of each; the last four end in one line, since nothing has been run in that folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--keep", type=Path, help="Make the environment here and leave it.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="veritune-light-") as work:
        folder = given.keep or Path(work) / "env"
        subprocess.run([given.python, "-m", "venv", folder], check=True)
        before = size_mib(folder)
        began = time.perf_counter()
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", REPO / "constraints.txt", REPO], check=True)
        seconds, size = time.perf_counter() - began, size_mib(folder) - before
        problems = [f"{name} is there" for name in ABSENT if present(folder, name)]
        if size > LIMIT_MIB:
            problems.append(f"{size:.0f} MiB, expected at most {LIMIT_MIB}")
        problems += run_commands(folder, Path(work))
        print(f"core: {size:.0f} MiB, installed in {seconds:.0f} s; {len(COMMANDS)} commands, {len(problems)} problems")
        sys.exit("\n".join(problems) if problems else 0)


def size_mib(folder: Path) -> float:
    """Size of all files, compiled Python included, in MiB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 2**20


def present(folder: Path, name: str) -> bool:
    code = f"from importlib import util; import sys; sys.exit(util.find_spec({name!r}) is None)"
    return subprocess.run([folder / "bin" / "python", "-c", code], check=False).returncode == 0


def run_commands(folder: Path, work: Path) -> list[str]:
    """Run every command in a folder of its own; what went otherwise than expected."""
    place = work / "place"
    place.mkdir()
    for name, period in SCORES.items():
        lines = [json.dumps({"id": str(i), "score": int(i % period > 0)}) + "\n" for i in range(60)]
        (place / name).write_text("".join(lines), encoding="utf-8")
    rows = [json.dumps({"prompt": f"What is {i} plus {i} boats?", "completion": f"{2 * i}."}) for i in range(20)]
    (place / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (place / "text.md").write_text("Accuracy is 0.8.\n", encoding="utf-8")
    problems = []
    for arguments, expected in COMMANDS:
        done = subprocess.run(
            [folder / "bin" / "veritune", *arguments], cwd=place, capture_output=True, text=True, check=False
        )
        said = done.stderr.strip()
        if done.returncode != expected or "Traceback" in said:
            problems.append(
                f"veritune {' '.join(arguments)}: exit {done.returncode}, expected {expected}: {said[-300:]}"
            )
    return problems


if __name__ == "__main__":
    main()

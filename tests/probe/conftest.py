"""Tiny random models and rows for the probes' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.records import Rendered, RunSummary
from veritune.seal import break_seal, finish_run
from veritune.store import Store


@pytest.fixture
def make_model() -> Callable[..., Any]:
    return build


@pytest.fixture
def finish_again() -> Callable[[Path, str], None]:
    """Records a run's files as they are now, as if it had ended so: for tests of runs that cannot be read."""

    def finish(root: Path, run_id: str) -> None:
        store = Store(root)
        break_seal(store)
        finish_run(store, run_id, RunSummary.load(store.run(run_id) / "summary.json"))

    return finish


@pytest.fixture
def make_rows() -> Callable[..., list[Rendered]]:
    return rows


def build(kind: str = "llama", *, dtype: torch.dtype = torch.float64, seed: int = 0, tied: bool = False) -> Any:
    """A two-layer model: `llama`, `gpt2`, `phi3` (fused projections) or `qwen2` (biases)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    if kind == "gpt2":
        sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tied}
    config = AutoConfig.for_model(kind, **sizes, **ends)
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def rows(n: int, *, seed: int = 0, lengths: tuple[int, int] = (5, 12), vocab: int = 60) -> list[Rendered]:
    """Random rows of unequal length whose first third is prompt."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        length = int(torch.randint(lengths[0], lengths[1], (), generator=draw))
        ids = torch.randint(3, vocab, (length,), generator=draw).tolist()
        labels = [-100] * (length // 3) + ids[length // 3 :]
        made.append(Rendered(f"row{i}", tuple(ids), tuple(labels)))
    return made

"""The gradient probe on a real model: against full fine-tuning gradients, and on copies of real rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from veritune.probe.batches import collate, mean_losses
from veritune.probe.capture import Capture, Gram
from veritune.probe.effective import unit
from veritune.probe.gradients import Settings, probe_gradients
from veritune.records import Rendered

pytestmark = [pytest.mark.model, pytest.mark.slow]
SENTENCES = (
    "Seven apples cost fourteen coins, so one apple costs two coins.",
    "The train leaves at noon and arrives three hours later, at three.",
    "A triangle has three corners and a square has four.",
    "Water boils when it is hot enough; ice melts when it is warm.",
    "She read the letter twice, folded it and said nothing.",
    "To reset the router, hold the small button for ten seconds.",
    "He ran ten miles on Monday and half as far on Tuesday.",
    "def add(a, b): return a + b",
)


@pytest.fixture(scope="module")
def real(smollm2: Path) -> tuple[Any, list[Rendered]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    ids = [tuple(tokenizer(s)["input_ids"]) for s in SENTENCES]
    return model, [Rendered(f"r{i}", x, (-100, -100, *x[2:])) for i, x in enumerate(ids)]


def test_zero_b_probe_cosines_follow_those_of_full_fine_tuning(real: tuple[Any, list[Rendered]]) -> None:
    model, rows = real
    cosines = []
    for name, p in model.named_parameters():
        p.requires_grad_("layers" in name)
    for of, rank in (("trainable", 0), ("probe", 8), ("probe", 128)):
        gram = Gram()
        with Capture(model, gram, of=of, rank=rank) as capture:  # type: ignore[arg-type]
            capture.backward(mean_losses(model, collate(rows)))
        cosines.append(unit(gram.total.numpy())[np.triu_indices(len(rows), 1)])
    model.requires_grad_(True)
    full, narrow, wide = cosines
    assert np.corrcoef(full, narrow)[0, 1] > 0.95  # unrelated rows only, so the range of cosines is narrow
    assert np.corrcoef(full, wide)[0, 1] > 0.99
    assert np.abs(full - wide).max() < np.abs(full - narrow).max() < 0.06


def test_copies_of_real_rows_read_as_the_originals(real: tuple[Any, list[Rendered]]) -> None:
    model, rows = real
    twice = [Rendered(f"{r.row_id}-{j}", r.input_ids, r.labels) for r in rows for j in range(2)]
    families = [r.row_id for r in rows for _ in range(2)]
    for settings in (Settings(), Settings(exact_bytes=0)):
        probe = probe_gradients(model, twice, families, settings=settings, base_loss="self")
        assert probe.estimate("n_eff").value == pytest.approx(8, abs=0.1)
        assert 0 < probe.estimate("stranger").value < 0.6
        assert probe.loss["at"] == "base"

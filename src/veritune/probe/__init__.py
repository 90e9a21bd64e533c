"""Measure inside a model or a training run: gradients, weights, losses by zone. It explains, and decides nothing.

    from veritune import probe

    gap = probe.three_zone_gap(before, after, zones, families)
    print(gap.reading)

Losses are nats per token. A record carries what it reads, its limits and what would change it, as sentences.
docs/probe.md has the formulas and what each probe was measured on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.probe.capture import Capture, Gram
    from veritune.probe.effective import effective_n
    from veritune.probe.gradients import probe_gradients
    from veritune.probe.leak import leaky_zones
    from veritune.probe.memorization import row_losses, three_zone_gap
    from veritune.probe.tokens import token_nlls
    from veritune.probe.weights import adapter_change, checkpoint_change, effective_rank
    from veritune.records import WeightChange

_HOMES = {
    "Capture": "capture",
    "Gram": "capture",
    "WeightChange": "weights",
    "adapter_change": "weights",
    "checkpoint_change": "weights",
    "effective_n": "effective",
    "effective_rank": "weights",
    "leaky_zones": "leak",
    "probe_gradients": "gradients",
    "row_losses": "memorization",
    "three_zone_gap": "memorization",
    "token_nlls": "tokens",
}

__all__ = [
    "Capture",
    "Gram",
    "WeightChange",
    "adapter_change",
    "checkpoint_change",
    "effective_n",
    "effective_rank",
    "leaky_zones",
    "probe_gradients",
    "row_losses",
    "three_zone_gap",
    "token_nlls",
]

__getattr__, __dir__ = face(__name__, _HOMES)

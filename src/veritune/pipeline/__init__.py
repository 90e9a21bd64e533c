"""The way of one study: made ready, frozen, its cells run, decided, drawn.

ready.py    everything that is checked before anything is spent: file, model, data, items, facts, cells
cell.py     one cell, from base model to summary; stands alone, so that any scheduler can run it
recorded.py the quantities that probes recorded, by the names that claims give
decide.py   verdicts from the records of finished cells
flow.py     `veritune run`: all of it in order
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.pipeline.decide import score_tables, scores
    from veritune.pipeline.flow import Outcome, run

_HOMES = {
    "Outcome": "flow",
    "run": "flow",
    "score_tables": "decide",
    "scores": "decide",
}

__all__ = ["Outcome", "run", "score_tables", "scores"]

__getattr__, __dir__ = face(__name__, _HOMES)

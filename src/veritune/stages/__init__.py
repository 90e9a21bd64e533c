"""The way of one study: made ready, frozen, its cells run, decided, drawn.

ready.py    everything that is checked before anything is spent: file, model, data, items, facts, cells
cell.py     one cell, from base model to summary; stands alone, so that any scheduler can run it
decide.py   verdicts from the records of finished cells
flow.py     `veritune run`: all of it in order
"""

from veritune.stages.decide import probe_names, recorded_quantities, score_tables, scores
from veritune.stages.flow import Outcome, run

__all__ = ["Outcome", "probe_names", "recorded_quantities", "run", "score_tables", "scores"]

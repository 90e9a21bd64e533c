"""Veritune: which claims about a fine-tuned language model the evidence carries, and whether it may ship.

The verbs of the command line as functions. Names are imported when they are first used, so that `import veritune` is
quick and nothing heavy is loaded for what does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.config.load import load_study
    from veritune.config.study import Study
    from veritune.data.families import find_families
    from veritune.data.load import load_rows
    from veritune.decide.claims import judge
    from veritune.errors import VerituneError
    from veritune.health import doctor
    from veritune.pipeline import Outcome, run, scores
    from veritune.records import Estimate, Row, Score, Verdict
    from veritune.stats.paired import compare_tables
    from veritune.stats.table import ScoreTable
    from veritune.store import Store
    from veritune.train.telemetry import GradientTelemetry
    from veritune.verbs import draw_report, init, status

_HOMES = {
    "Estimate": "records",
    "GradientTelemetry": "train.telemetry",
    "Outcome": "pipeline",
    "Row": "records",
    "Score": "records",
    "ScoreTable": "stats.table",
    "Store": "store",
    "Study": "config.study",
    "Verdict": "records",
    "VerituneError": "errors",
    "compare_tables": "stats.paired",
    "doctor": "health",
    "draw_report": "verbs",
    "find_families": "data.families",
    "init": "verbs",
    "judge": "decide.claims",
    "load_rows": "data.load",
    "load_study": "config.load",
    "run": "pipeline",
    "scores": "pipeline",
    "status": "verbs",
}

__all__ = [
    "Estimate",
    "GradientTelemetry",
    "Outcome",
    "Row",
    "Score",
    "ScoreTable",
    "Store",
    "Study",
    "Verdict",
    "VerituneError",
    "compare_tables",
    "doctor",
    "draw_report",
    "find_families",
    "init",
    "judge",
    "load_rows",
    "load_study",
    "run",
    "scores",
    "status",
]

__getattr__, __dir__ = face(__name__, _HOMES)

"""What a user may write in `study.yaml`, and what reads it.

Names are imported when they are first used: thresholds, which every comparison needs, cost a third less start-up than
the whole study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.config.claim import Claim
    from veritune.config.data import Data, SplitPlan
    from veritune.config.evals import Eval, Rule
    from veritune.config.fields import BASELINE
    from veritune.config.load import frozen_flags, json_schema, load_study, parse_flags, parse_study, sources
    from veritune.config.release import (
        CalibrationGate,
        DataGate,
        RegressionGate,
        Release,
        SafetyGate,
        ServingGate,
        Suite,
        TargetGate,
    )
    from veritune.config.study import Probes, Study
    from veritune.config.sweep import expand_sweep, swept
    from veritune.config.thresholds import DEFAULTS, Thresholds
    from veritune.config.train import Backend, Budget, Condition, Model, SelectionPlan, Train

_HOMES = {
    "BASELINE": "fields",
    "Backend": "train",
    "Budget": "train",
    "CalibrationGate": "release",
    "Claim": "claim",
    "Condition": "train",
    "DEFAULTS": "thresholds",
    "Data": "data",
    "DataGate": "release",
    "Eval": "evals",
    "Model": "train",
    "Probes": "study",
    "RegressionGate": "release",
    "Release": "release",
    "Rule": "evals",
    "SafetyGate": "release",
    "SelectionPlan": "train",
    "ServingGate": "release",
    "SplitPlan": "data",
    "Study": "study",
    "Suite": "release",
    "TargetGate": "release",
    "Thresholds": "thresholds",
    "Train": "train",
    "expand_sweep": "sweep",
    "frozen_flags": "load",
    "json_schema": "load",
    "load_study": "load",
    "parse_flags": "load",
    "parse_study": "load",
    "sources": "load",
    "swept": "sweep",
}

__all__ = [
    "BASELINE",
    "Backend",
    "Budget",
    "CalibrationGate",
    "Claim",
    "Condition",
    "DEFAULTS",
    "Data",
    "DataGate",
    "Eval",
    "Model",
    "Probes",
    "RegressionGate",
    "Release",
    "Rule",
    "SafetyGate",
    "SelectionPlan",
    "ServingGate",
    "SplitPlan",
    "Study",
    "Suite",
    "TargetGate",
    "Thresholds",
    "Train",
    "expand_sweep",
    "frozen_flags",
    "json_schema",
    "load_study",
    "parse_flags",
    "parse_study",
    "sources",
    "swept",
]

__getattr__, __dir__ = face(__name__, _HOMES)

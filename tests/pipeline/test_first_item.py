"""Before a cell is scored, one item of every eval goes through sampling, extraction and scoring."""

from __future__ import annotations

import json
from typing import Any

import pytest

from veritune.errors import MachineError
from veritune.pipeline.flow import run
from veritune.progress import Progress

BROKEN = "def score(output, item):\n    raise ValueError('no scorer here')\n"


def with_three_evals(study: Any, scorer: str) -> Any:
    """Rules on the study's own rows, a benchmark with options, and last a function of the user's."""
    (study.root / "mine.py").write_text(scorer, encoding="utf-8")
    items = [{"question": f"buoy {i * i} chart {i}?", "answer": "a", "options": [str(i), "x"]} for i in range(6)]
    (study.root / "pick.jsonl").write_text("".join(json.dumps(q) + "\n" for q in items), encoding="utf-8")

    def change(settings: dict[str, Any]) -> None:
        settings["conditions"] = {"all_layer": settings["conditions"]["all_layer"]}
        settings["seeds"], settings["claims"] = [0], []
        settings["train"]["max_steps"] = 1
        style = {**settings["evals"]["style"], "zones": ["stranger"], "max_new_tokens": 2}
        columns = {"user": "question", "assistant": "answer"}
        pick = {"kind": "choice", "path": "pick.jsonl", "columns": columns, "choices": "options"}
        mine = {"kind": "function", "path": "mine.py:score", "zones": ["stranger"], "max_new_tokens": 2}
        settings["evals"] = {"style": style, "pick": pick, "mine": mine}

    study.change(change)
    return study


def test_a_scorer_that_fails_stops_the_cell_before_any_eval_of_it_is_asked_whole(study: Any) -> None:
    with_three_evals(study, BROKEN)
    with pytest.raises(MachineError, match=r"eval mine: the first item, .* could not be scored: function_failed"):
        run(study.root, progress=Progress(silent=True))
    assert not list(study.root.glob("runs/*/scores/*.jsonl"))

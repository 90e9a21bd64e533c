"""Compare score files, plan a design, judge declared claims: from scores alone, without a model.

    from veritune import decide

    report = decide.compare([decide.parse_side("tuned=a.jsonl"), decide.parse_side("base=b.jsonl")])
    print(decide.render_text(report))

Differences are in score units, the first side less the other. The numbers come from `veritune.stats`; docs/decide.md
has the rules, docs/theory.md the measured error rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.decide.claims import ClaimContext, judge
    from veritune.decide.commands import CompareOptions, CompareReport, compare, compare_score_tables
    from veritune.decide.planning import PowerReport, plan_power
    from veritune.decide.screen import render_text
    from veritune.decide.sides import Side, parse_side

_HOMES = {
    "CompareOptions": "commands",
    "CompareReport": "commands",
    "ClaimContext": "claims",
    "PowerReport": "planning",
    "Side": "sides",
    "compare": "commands",
    "compare_score_tables": "commands",
    "judge": "claims",
    "parse_side": "sides",
    "plan_power": "planning",
    "render_text": "screen",
}

__all__ = [
    "ClaimContext",
    "CompareOptions",
    "CompareReport",
    "PowerReport",
    "Side",
    "compare",
    "compare_score_tables",
    "judge",
    "parse_side",
    "plan_power",
    "render_text",
]

__getattr__, __dir__ = face(__name__, _HOMES)

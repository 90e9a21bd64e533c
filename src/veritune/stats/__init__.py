"""Statistics of paired scores: numbers alone, no study and no file.

    from veritune import stats

    a, b = stats.tables_from_counts([(54, 47, 1139, 79)])
    stats.compare_tables(a, b).estimate()

A score table holds one arm's scores, runs x items. Two of them are compared item by item; families of items and
several runs enter the interval by their own rules. docs/statistics.md has the formulas, docs/theory.md the measured
error rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.stats.agreement import krippendorff_alpha
    from veritune.stats.bounded import BoundedMean
    from veritune.stats.centroids import m1
    from veritune.stats.families import effective_families, family_rule, undrawn
    from veritune.stats.intervals import mcnemar_exact, mcnemar_midp, tango_interval
    from veritune.stats.multiplicity import benjamini_hochberg, holm
    from veritune.stats.paired import Comparison, PairOptions, compare_tables
    from veritune.stats.power import (
        Design,
        chance,
        detectable,
        items_needed,
        least_items_equal,
        plan,
        seeds_needed,
    )
    from veritune.stats.rule import decide, decide_tables, frozen_rule
    from veritune.stats.table import ScoreTable, tables_from_counts
    from veritune.stats.tails import Waits, quantile_ratio, requests_needed

_HOMES = {
    "BoundedMean": "bounded",
    "Comparison": "paired",
    "Design": "power",
    "PairOptions": "paired",
    "ScoreTable": "table",
    "Waits": "tails",
    "benjamini_hochberg": "multiplicity",
    "chance": "power",
    "compare_tables": "paired",
    "decide": "rule",
    "decide_tables": "rule",
    "detectable": "power",
    "effective_families": "families",
    "family_rule": "families",
    "frozen_rule": "rule",
    "holm": "multiplicity",
    "items_needed": "power",
    "krippendorff_alpha": "agreement",
    "least_items_equal": "power",
    "m1": "centroids",
    "mcnemar_exact": "intervals",
    "mcnemar_midp": "intervals",
    "plan": "power",
    "quantile_ratio": "tails",
    "requests_needed": "tails",
    "seeds_needed": "power",
    "tables_from_counts": "table",
    "tango_interval": "intervals",
    "undrawn": "families",
}

__all__ = [
    "BoundedMean",
    "Comparison",
    "Design",
    "PairOptions",
    "ScoreTable",
    "Waits",
    "benjamini_hochberg",
    "chance",
    "compare_tables",
    "decide",
    "decide_tables",
    "detectable",
    "effective_families",
    "family_rule",
    "frozen_rule",
    "holm",
    "items_needed",
    "krippendorff_alpha",
    "least_items_equal",
    "m1",
    "mcnemar_exact",
    "mcnemar_midp",
    "plan",
    "quantile_ratio",
    "requests_needed",
    "seeds_needed",
    "tables_from_counts",
    "tango_interval",
    "undrawn",
]

__getattr__, __dir__ = face(__name__, _HOMES)

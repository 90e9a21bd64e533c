"""The named quantities of a study folder: every recorded number with its name, unit, denominator, scope and source.

A name is a dotted path, from the general to the particular:

    score.<eval>.<zone>.<condition>[.seed<k>]     mean score; without a seed the mean over the condition's runs
    rule.<eval>.<zone>.<condition>[.seed<k>].<r>  share of outputs that keep one rule
    gap|se|p|df.<claim>[.<estimand>]              a verdict's estimates, the headline without a suffix
    ci.<claim>[.<estimand>].low|high              its interval; `level.<claim>` is its level
    share.<claim>                                 the share carried over, for `generalises`
    nll.<zone>.<condition>[.seed<k>]              nats per target token
    n.<noun>...                                   counts: items, scored, families, rows, seeds, runs, cut, missing ...
    params.<condition>, lr.<condition>, steps.<condition>, tokens.<...>, train.<setting>, split.<setting> ...

A quantity that an older contract entry or a superseded run holds is `stale`: it names what a text may no longer say.
Nothing is computed here beyond means over seeds and sums of counts; each quantity says which record it comes from.
"""

from __future__ import annotations

from veritune.writeup.quantities.model import BASELINE, CheckedRecords, Quantity, Scope
from veritune.writeup.quantities.read import outputs, quantities, read_records
from veritune.writeup.quantities.runs import summary_path
from veritune.writeup.quantities.verdicts import estimand

__all__ = [
    "BASELINE",
    "Quantity",
    "CheckedRecords",
    "Scope",
    "estimand",
    "outputs",
    "quantities",
    "read_records",
    "summary_path",
]

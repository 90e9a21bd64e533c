"""Read training data, find its families and its contamination, split it: no study, no model.

    from veritune import data

    report = data.audit_data("rows.jsonl", evals=["gsm8k_test.jsonl"])
    data.write_clean(report, "clean.jsonl")

A row is a `veritune.Row`. Shares are between 0 and 1, similarities between 0 and 1, lengths in tokens. docs/families.md
and docs/contamination.md have the methods with their measured error rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from veritune.faces import face

if TYPE_CHECKING:
    from veritune.data.audit import AuditConfig, AuditReport, audit_data, write_clean
    from veritune.data.contamination import check_contamination
    from veritune.data.families import FamilyResult, find_families
    from veritune.data.load import load_rows, require_clean
    from veritune.data.split import Split, SplitConfig, split_zones

_HOMES = {
    "AuditConfig": "audit",
    "AuditReport": "audit",
    "FamilyResult": "families",
    "Split": "split",
    "SplitConfig": "split",
    "audit_data": "audit",
    "check_contamination": "contamination",
    "find_families": "families",
    "load_rows": "load",
    "require_clean": "load",
    "split_zones": "split",
    "write_clean": "audit",
}

__all__ = [
    "AuditConfig",
    "AuditReport",
    "FamilyResult",
    "Split",
    "SplitConfig",
    "audit_data",
    "check_contamination",
    "find_families",
    "load_rows",
    "require_clean",
    "split_zones",
    "write_clean",
]

__getattr__, __dir__ = face(__name__, _HOMES)

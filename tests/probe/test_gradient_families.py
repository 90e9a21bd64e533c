"""Families by gradient on their way into the audit: the pass that the command line hands to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from veritune.data.audit import AuditConfig, audit_data
from veritune.errors import DataError
from veritune.probe.study import gradient_edges
from veritune.records import Message, Row

ANSWERS = {
    "a": "The ferry and the crane wait at the quay until the tide turns.",
    "b": "Bread, honey and plum, then a kettle of barley on the stove.",
    "c": "Seven heron, an otter and a badger near the tower wall.",
}


def test_planted_families_are_joined_by_gradient_and_say_so(tiny_model: Path) -> None:
    rows = [
        Row(f"{name}{k}", (Message("user", f"{ask} {name}"), Message("assistant", text)))
        for name, text in ANSWERS.items()
        for k, ask in enumerate(("Subject?", "What lamp", "user, boat"))
    ]
    plain = audit_data(rows, config=AuditConfig(near_duplicates=False))
    assert plain.families.summary["originals"] == 9
    edges = partial(gradient_edges, str(tiny_model), max_length=200)
    report = audit_data(rows, edges=edges, config=AuditConfig(near_duplicates=False))
    family = dict(zip(report.families.row_ids, report.families.families))
    assert len({family[f"{n}{k}"] for n in ANSWERS for k in range(3)}) == 3
    assert all(len({family[f"{n}{k}"] for k in range(3)}) == 1 for n in ANSWERS)
    assert {m.evidence for m in report.families.memberships} == {"gradient"}
    assert all(0.3 <= (m.similarity or 0) <= 1 for m in report.families.memberships)
    assert report.families.summary["joined_by"] == {"gradient": 6}


def test_rows_that_cannot_be_rendered_take_no_part(tiny_model: Path) -> None:
    rows = [Row("long", (Message("user", "x"), Message("assistant", "boat " * 900)))]
    with pytest.raises(DataError, match="no row can be rendered"):
        gradient_edges(str(tiny_model), rows, max_length=50)

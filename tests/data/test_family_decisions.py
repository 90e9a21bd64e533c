"""People's word on families: obeyed, counted, and named where it cannot be."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from veritune.data.audit import AuditConfig, audit_data
from veritune.data.families import find_families
from veritune.data.family_decisions import obey, read_family_decisions
from veritune.data.review import row_sha256
from veritune.errors import DataError
from veritune.records import FamilyDecision, Message, Row

BOATS = "The old harbour boat sails home past the quay walls while the slow tide turns over"
FARMS = "A young farmer carries seven heavy baskets of green apples across the muddy northern field"


def row(name: str, text: str) -> Row:
    return Row(name, (Message("user", f"Continue the tale of {name[0]}."), Message("assistant", text)))


ROWS = (
    *(row(f"b{n}", f"{BOATS} number {n} {word}") for n, word in enumerate(("dawn", "dusk", "noon", "night"))),
    *(row(f"f{n}", f"{FARMS} number {n} {word}") for n, word in enumerate(("dawn", "dusk"))),
    row("x0", "Nothing here resembles any other line of this small collection of short invented stories at all"),
)
BY_ID = {r.id: r for r in ROWS}


def decisions(path: Path, *pairs: tuple[str, str, bool | None]) -> Path:
    lines = [
        FamilyDecision(a, b, same, *(row_sha256(BY_ID[i]) if i in BY_ID else "0" * 64 for i in (a, b)), "2026-12-01")
        for a, b, same in pairs
    ]
    FamilyDecision.save_all(path, lines)
    return path


def parts(path: Path, rows: Sequence[Row] = ROWS) -> set[frozenset[str]]:
    families, _ = obey(rows, find_families(rows), read_family_decisions(path), path)
    return {frozenset(m.row_id for m in families.memberships if m.family == name) for name in set(families.families)}


def test_the_rows_are_two_families_and_a_single_one(tmp_path: Path) -> None:
    expected = {frozenset({"b0", "b1", "b2", "b3"}), frozenset({"f0", "f1"}), frozenset({"x0"})}
    assert parts(decisions(tmp_path / "d.jsonl")) == expected


def test_b_leaves_and_the_rest_stays_with_a(tmp_path: Path) -> None:
    found = parts(decisions(tmp_path / "d.jsonl", ("b0", "b2", False)))
    assert {"b0", "b1", "b3"} in found
    assert {"b2"} in found


def test_two_that_leave_one_family_stay_together_unless_they_are_apart_too(tmp_path: Path) -> None:
    two = (("b0", "b2", False), ("b0", "b3", False))
    assert {"b2", "b3"} in parts(decisions(tmp_path / "d.jsonl", *two))
    assert {frozenset({"b2"}), frozenset({"b3"})} < parts(decisions(tmp_path / "e.jsonl", *two, ("b2", "b3", False)))


def test_one_family_joins_all_of_both(tmp_path: Path) -> None:
    assert {"b0", "b1", "b2", "b3", "x0"} in parts(decisions(tmp_path / "d.jsonl", ("x0", "b1", True)))


def test_the_last_word_on_a_pair_counts_in_either_order(tmp_path: Path) -> None:
    path = decisions(tmp_path / "d.jsonl", ("b0", "b2", False), ("b2", "b0", True))
    assert {"b0", "b1", "b2", "b3"} in parts(path)
    assert parts(decisions(path, ("b0", "b2", False), ("b0", "b2", None))) == parts(decisions(tmp_path / "n.jsonl"))


def test_the_order_of_rows_and_lines_changes_nothing(tmp_path: Path) -> None:
    words = (("b0", "b2", False), ("x0", "f1", True), ("b3", "b0", False))
    found = {
        frozenset(parts(decisions(tmp_path / "d.jsonl", *order), rows))
        for order in itertools.permutations(words)
        for rows in (ROWS, ROWS[::-1])
    }
    assert len(found) == 1


def test_a_decision_holds_against_a_family_that_another_one_made(tmp_path: Path) -> None:
    """b1 = x0 joins x0 to the boats; x0 and b2 apart: b2 leaves, x0 and b1 stay."""
    found = parts(decisions(tmp_path / "d.jsonl", ("b1", "x0", True), ("x0", "b2", False)))
    assert {frozenset({"b2"}), frozenset({"b0", "b1", "b3", "x0"})} < found


def test_contradictions_are_refused_with_their_chain(tmp_path: Path) -> None:
    path = decisions(tmp_path / "d.jsonl", ("b0", "x0", True), ("x0", "f0", True), ("f0", "b0", False))
    with pytest.raises(DataError, match="f0 and b0 are not one family, but f0 = x0 = b0"):
        read_family_decisions(path)


def test_rows_of_one_text_are_never_parted(tmp_path: Path) -> None:
    twin = row("bb", BY_ID["b0"].messages[-1].content)
    BY_ID["bb"] = twin
    path = decisions(tmp_path / "d.jsonl", ("b0", "bb", False))
    families, done = obey([*ROWS, twin], find_families([*ROWS, twin]), read_family_decisions(path), path)
    assert families.family_of(0) == families.family_of(len(ROWS))
    assert done.same_text == (("b0", "bb"),)
    assert "would separate rows with equal text, which stay one family (" in done.findings()[0].message


def test_unknown_and_changed_rows_are_named_and_not_obeyed(tmp_path: Path) -> None:
    path = decisions(tmp_path / "d.jsonl", ("b0", "gone", False), ("b0", "b1", False), ("f0", "f1", True))
    changed = tuple(row("b1", f"{BOATS} anew") if r.id == "b1" else r for r in ROWS)
    families, done = obey(changed, find_families(changed), read_family_decisions(path), path)
    assert (done.unknown, done.stale, done.already) == ((("b0", "gone"),), (("b0", "b1"),), (("f0", "f1"),))
    texts = [f.message for f in done.findings()]
    assert texts[0].startswith("1 of 3 decisions of") and "(gone)" in texts[0]
    assert "rows whose text has changed since (b0 and b1)" in texts[1]
    assert families.family_of(0) == families.family_of(1)


def test_the_audit_says_what_it_obeyed_on_the_screen_and_in_the_record(tmp_path: Path) -> None:
    from veritune.data.audit import render_text

    path = decisions(tmp_path / "d.jsonl", ("b0", "b2", False), ("b0", "f0", True), ("b0", "b1", True))
    report = audit_data(ROWS, config=AuditConfig(family_decisions=path))
    text = render_text(report)
    assert f"decisions of {path}: 3 of 3 applied (1 joined, 1 separated, 1 were true already)" in text
    assert "3 families before, 3 after; 7 rows changed" not in text
    assert "3 families before, 3 after; the family of 6 rows changed" in text
    record = report.record()["family_decisions"]
    assert (record["joined"], record["separated"]) == ([["b0", "f0"]], [["b0", "b2"]])
    assert report.families.summary["evidence"]["decided"] == 1
    assert json.loads(json.dumps(record))["changed_rows"] == 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": "b0"}', "line 1"),
        (b"[1]", "line 1"),
        (b'{"a": "b0", "b": "b0", "same": true, "a_sha256": "", "b_sha256": "", "time": ""}', "expected two rows"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_line_that_is_no_decision_is_refused(tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(DataError, match=said):
        read_family_decisions(path)

"""Review packs, decisions, versions: nothing is lost, nothing stale is believed, nothing retired is trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from veritune.data.load import load_rows, require_clean
from veritune.data.review import (
    LEDGER,
    Version,
    apply_decisions,
    draw_lineage,
    lineage,
    make_pack,
    read_decisions,
    require_usable,
    retire,
    retired_list,
    write_pack,
    write_version,
)
from veritune.errors import DataError, FormatError
from veritune.ledger import Ledger
from veritune.records import Finding, Message, Row


def rows(n: int = 60) -> list[Row]:
    return [
        Row(f"r{i}", (Message("user", f"question {i}"), Message("assistant", f"answer {i}")), f"s{i % 3}", i + 1)
        for i in range(n)
    ]


def findings(n: int = 60) -> list[Finding]:
    found = [Finding("quality.refusal", "warning", "it refuses", f"r{i}") for i in range(0, n, 2)]
    found += [Finding("quality.truncated", "warning", "it stops", f"r{i}") for i in range(0, n, 5)]
    return [*found, Finding("quality.several_answers", "note", "other words", "r1")]


def pack_file(tmp_path: Path, **decided: dict[str, Any]) -> Path:
    """A pack over all rows with some decisions filled in, by row id."""
    path = write_pack(make_pack(rows(), findings(), per_reason=99, control=99), tmp_path / "pack.jsonl")
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for record in records:
        record.update({"reviewer": "ana", **decided[record["row_id"]]} if record["row_id"] in decided else {})
    path.write_text("".join(json.dumps(r) + "\n" for r in records), "utf-8")
    return path


def edit(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "question 4"}, {"role": "assistant", "content": text}]


def test_a_pack_is_sampled_by_reason_over_all_sources_with_control_rows() -> None:
    pack = make_pack(rows(), findings(), per_reason=6, control=5, seed=1)
    controls = [item for item in pack if not item.reasons]
    assert len(controls) == 5 and {int(i.row.id[1:]) % 2 for i in controls} == {1}
    for reason in ("quality.refusal", "quality.truncated"):
        mine = [item for item in pack if reason in item.reasons]
        assert len(mine) >= 6 and {item.row.source for item in mine} == {"s0", "s1", "s2"}
    everything = make_pack(rows(), findings(), per_reason=99, control=99)
    assert len(everything) == 60 and {r for i in everything for r in i.reasons} == {
        "quality.refusal",
        "quality.truncated",
    }
    assert pack == make_pack(rows()[::-1], findings(), per_reason=6, control=5, seed=1)[::-1]
    assert pack != make_pack(rows(), findings(), per_reason=6, control=5, seed=2)


def test_decisions_come_back_and_make_the_next_version(tmp_path: Path) -> None:
    path = pack_file(
        tmp_path,
        r0={"decision": "drop", "why": "refusal"},
        r2={"decision": "keep"},
        r4={"decision": "edit", "why": "typo", "edited": edit("better")},
        r10={"decision": "drop", "why": "refusal"},
    )
    applied = apply_decisions(rows(), read_decisions(path))
    assert (applied.kept, applied.dropped, applied.edited, len(applied.rows)) == (1, 2, 1, 58)
    assert applied.by_why == {"drop: refusal": 2, "edit: typo": 1}
    assert {r.id: r.target for r in applied.rows}["r4"] == "better"
    assert [r.id for r in applied.rows] == [r.id for r in rows() if r.id not in ("r0", "r10")]


@pytest.mark.parametrize(
    ("decided", "says"),
    [
        ({"decision": "remove"}, "decision is 'remove'"),
        ({"decision": "drop"}, "drop needs why, which is empty"),
        ({"decision": "drop", "why": "x", "reviewer": ""}, "needs reviewer, which is empty"),
        ({"decision": "edit", "why": "x"}, ": edit needs the edited messages, which are missing."),
        (
            {"decision": "edit", "why": "x", "edited": [{"role": "user"}]},
            ": edit needs the edited messages, which are missing.",
        ),
    ],
)
def test_a_decision_that_is_not_complete_is_refused_with_its_line(
    tmp_path: Path, decided: dict[str, Any], says: str
) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_decisions(pack_file(tmp_path, r0=decided))
    assert "pack.jsonl:" in str(caught.value)


def test_a_decision_on_a_row_that_changed_since_is_refused(tmp_path: Path) -> None:
    decisions = read_decisions(pack_file(tmp_path, r0={"decision": "drop", "why": "x"}))
    changed = [Row("r0", (Message("user", "question 0"), Message("assistant", "other"))), *rows()[1:]]
    with pytest.raises(DataError, match="changed since it was reviewed"):
        apply_decisions(changed, decisions)
    with pytest.raises(DataError, match="this data has no such row"):
        apply_decisions(rows()[1:], decisions)


def test_an_edit_that_makes_a_bad_row_is_refused(tmp_path: Path) -> None:
    path = pack_file(tmp_path, r4={"decision": "edit", "why": "x", "edited": edit(" ")})
    with pytest.raises(DataError, match="empty"):
        apply_decisions(rows(), read_decisions(path))


def test_a_row_decided_twice_is_refused(tmp_path: Path) -> None:
    path = pack_file(tmp_path, r0={"decision": "keep"})
    line = next(x for x in path.read_text("utf-8").splitlines() if '"r0"' in x)
    path.write_text(path.read_text("utf-8") + line + "\n", "utf-8")
    with pytest.raises(DataError, match="decided on line"):
        read_decisions(path)


# ---------------------------------------------------------------- versions


def first_version(tmp_path: Path) -> Path:
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps({"id": r.id, "prompt": r.prompt[0].content, "completion": r.target,
                                        "level": 1}) + "\n" for r in rows(10)), "utf-8")  # fmt: skip
    return path


def test_a_version_is_written_with_parent_counts_and_rejects(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    loaded = load_rows(raw).rows
    version = write_version(loaded[:7], tmp_path / "v2.jsonl", parents=[raw], rejects={"refusal": 3}, how="review")
    one, two = lineage(tmp_path)
    assert two == version and two.parents == (one.sha256,) and (two.rows, dict(two.rejects)) == (7, {"refusal": 3})
    again = require_clean(load_rows(tmp_path / "v2.jsonl")).rows
    assert [(r.id, r.messages, r.meta["level"]) for r in again] == [(r.id, r.messages, 1) for r in loaded[:7]]
    assert load_rows(tmp_path / "v2.jsonl").source_sha256 == version.sha256
    assert len(load_rows(tmp_path).rejects) == 7  # the ledger is no data file; the same ids twice are named


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    with pytest.raises(DataError, match="never overwritten"):
        write_version(rows(2), raw, parents=[])


def test_a_retired_version_is_refused_under_any_name(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    write_version(load_rows(raw).rows[:7], tmp_path / "v2.jsonl", parents=[raw])
    require_usable(raw)
    retire(raw, "three rows leak the test set", successor=tmp_path / "v2.jsonl")
    copy = tmp_path / "innocent.jsonl"
    copy.write_bytes(raw.read_bytes())
    for path in (raw, copy):
        with pytest.raises(DataError, match="three rows leak") as caught:
            require_usable(path)
        assert "v2.jsonl" in caught.value.fix
    require_usable(tmp_path / "v2.jsonl")
    with pytest.raises(DataError, match="without a reason"):
        retire(raw, " ")


def test_retired_rows_are_refused_in_another_folder_and_in_another_form(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    raw = first_version(home)
    retire(raw, "three rows leak the test set")
    copy, other, fewer = away / "copy.jsonl", away / "other.parquet", away / "fewer.jsonl"
    copy.write_bytes(raw.read_bytes())
    said = load_rows(raw).rows
    pl.DataFrame(
        {"id": [f"x{i}" for i in range(10)], "question": [r.prompt[0].content for r in said[::-1]],
         "answer": [r.target for r in said[::-1]]}
    ).write_parquet(other)  # fmt: skip
    fewer.write_text("".join(raw.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")
    with pytest.raises(DataError, match=r"copy\.jsonl is data version .* retired: three rows leak"):
        require_usable(copy)
    with pytest.raises(DataError, match=r"other\.parquet has row for row the content of the retired data version"):
        require_usable(other, None, load_rows(other).rows)
    require_usable(fewer, None, load_rows(fewer).rows)
    retire(copy, "no licence named", successor=other)
    require_usable(other, None, load_rows(other).rows)  # named as the one to train on
    with pytest.raises(DataError, match="no licence named"):
        require_usable(raw)


def test_retired_rows_are_refused_with_the_loss_on_their_last_turns_alone(tmp_path: Path) -> None:
    turns = [{"role": role, "content": f"{role} {i}"} for i in (1, 2) for role in ("user", "assistant")]
    home, away = tmp_path / "home", tmp_path / "away"
    for folder, line in ((home, {"messages": turns}), (away, {"id": "other", "messages": turns})):
        folder.mkdir()
        (folder / "talk.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    retire(home / "talk.jsonl", "wrong answers")
    for train_on in ("all", "last"):
        with pytest.raises(DataError, match="has row for row the content of the retired"):
            require_usable(away / "talk.jsonl", None, load_rows(away / "talk.jsonl", train_on=train_on).rows)


def test_the_tree_has_every_version_and_nothing_that_a_name_smuggles_in() -> None:
    evil = '"><script>alert(1)</script>&\x1b[31m\u202e\n```.jsonl'
    made = [
        Version("a" * 64, evil, 10),
        Version("b" * 64, "b", 9, ("a" * 64, "b" * 64), {evil: 1}, retired=evil),
        Version("c" * 64, "c", 8, ("a" * 64, "b" * 64)),
        Version("d" * 64, "d", 8, ("e" * 64,)),
        Version("e" * 64, "e", 8, ("d" * 64,)),
    ]
    assert len(draw_lineage(made).splitlines()) == 5 and "\x1b" not in draw_lineage(made)


def test_the_list_of_the_user_informs_and_a_broken_one_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It speaks of everybody's data: torn by a full disk it used to block every study of the user."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    raw = first_version(home)
    retire(raw, "line one\u2028line two: they leak")
    other = away / "other.jsonl"
    other.write_text("".join(raw.read_text("utf-8").splitlines(keepends=True)[1:]), "utf-8")
    copy = away / "copy.jsonl"
    copy.write_bytes(raw.read_bytes())
    require_usable(other)
    torn = retired_list().read_bytes()
    retired_list().write_bytes(torn + b'{"event":"reti')
    require_usable(other)
    assert caplog.text == ""
    retired_list().write_bytes(b"{broken\n" + torn)
    require_usable(other)
    assert "line 1 is damaged" in caplog.text
    with pytest.raises(DataError, match="they leak"):
        require_usable(copy)  # the lines that are whole still count
    retired_list().unlink()
    retired_list().mkdir()
    require_usable(other)


def test_a_retirement_given_again_is_recorded_once(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    for why in ("stale", "stale", "leaks", "stale"):
        retire(raw, why)
    recorded = [e["why"] for e in Ledger(tmp_path / LEDGER).read() if e["event"] == "retired"]
    assert recorded == ["stale", "leaks", "stale"] == [e["why"] for e in Ledger(retired_list()).read()]


def test_a_version_given_again_is_handed_back(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    made = load_rows(raw).rows[:7]
    first = write_version(made, tmp_path / "v2.jsonl", parents=[raw], how="review")
    assert write_version(made, tmp_path / "v2.jsonl", parents=[raw], how="review") == first
    with pytest.raises(DataError, match="never overwritten"):
        write_version(made[:6], tmp_path / "v2.jsonl", parents=[raw])
    (tmp_path / "v2.jsonl").write_text("edited\n")
    with pytest.raises(DataError, match="never overwritten"):
        write_version(made, tmp_path / "v2.jsonl", parents=[raw])


def test_a_pack_with_line_separators_in_its_texts_is_read(tmp_path: Path) -> None:
    path = pack_file(tmp_path, r0={"decision": "drop", "why": "one\u2028two"})
    path.write_text(path.read_text("utf-8").replace("\\u2028", "\u2028"), "utf-8")
    assert "\u2028" in path.read_text("utf-8")
    assert [d.why for d in read_decisions(path)] == ["one\u2028two"]


def test_a_retirement_outlives_a_second_entry_of_the_same_version(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    retire(raw, "stale")
    write_version(load_rows(raw).rows[:7], tmp_path / "v2.jsonl", parents=[raw])
    ledger = Ledger(tmp_path / LEDGER)
    first = ledger.read()[0]
    ledger.append({k: v for k, v in first.items() if k not in ("previous", "hash")})
    with pytest.raises(DataError, match="stale"):
        require_usable(raw)


def test_the_lineage_is_drawn_with_counts_rejects_and_retirements(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    loaded = load_rows(raw).rows
    write_version(loaded[:7], tmp_path / "v2.jsonl", parents=[raw], rejects={"refusal": 3})
    write_version(loaded[:5], tmp_path / "v3.jsonl", parents=[tmp_path / "v2.jsonl", raw])
    write_version(loaded[:6], tmp_path / "side.jsonl", parents=[raw])
    retire(raw, "leaks")
    lines = draw_lineage(lineage(tmp_path)).splitlines()
    assert lines[0].startswith("raw.jsonl [") and lines[0].endswith("RETIRED: leaks")
    assert lines[1].startswith("├─ v2.jsonl [") and "7 rows; without 3 refusal" in lines[1]
    assert lines[2].startswith("│  └─ v3.jsonl [") and "also from" in lines[2]
    assert lines[3].startswith("└─ side.jsonl [")


def test_a_damaged_ledger_is_an_error(tmp_path: Path) -> None:
    raw = first_version(tmp_path)
    retire(raw, "stale")
    ledger = tmp_path / LEDGER
    ledger.write_text(ledger.read_text("utf-8")[:-20] + "\n", "utf-8")
    with pytest.raises(FormatError, match=f"{LEDGER} line 2 is damaged"):
        require_usable(raw)


def test_a_copy_of_a_version_keeps_where_it_came_from(tmp_path: Path) -> None:
    """An audit that drops nothing writes the same bytes again: the arrow from the raw file must not get lost."""
    raw = first_version(tmp_path)
    first = write_version(rows(6), tmp_path / "clean.jsonl", parents=[raw], rejects={"leak": 4}, how="audit")
    copy = write_version(rows(6), tmp_path / "again.jsonl", parents=[tmp_path / "clean.jsonl"])
    assert copy.sha256 == first.sha256 and copy.file == "again.jsonl"
    assert (copy.parents, copy.rejects, copy.how) == (first.parents, {"leak": 4}, "audit")
    assert write_version(rows(6), tmp_path / "again.jsonl", parents=[tmp_path / "clean.jsonl"]) == copy

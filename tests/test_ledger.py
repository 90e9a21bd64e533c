"""The ledger: every edit shows, nothing torn is believed, nothing half-written stays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veritune.errors import FormatError, InputError, StaleError, VerituneError
from veritune.ledger import TAIL, Ledger, follow_all, link


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.jsonl")
    for n in range(4):
        made.append({"n": n})
    return made


def lines(ledger: Ledger) -> list[str]:
    return ledger.path.read_text("utf-8").split("\n")[:-1]


def write(ledger: Ledger, each: list[str], tail: str = "") -> None:
    ledger.path.write_text("".join(line + "\n" for line in each) + tail, encoding="utf-8")


def test_entries_come_back_chained(ledger: Ledger) -> None:
    found = ledger.read()
    assert [e["n"] for e in found] == [0, 1, 2, 3]
    assert [e["previous"] for e in found] == [None, *(e["hash"] for e in found[:-1])]


@pytest.mark.parametrize(
    ("damage", "number", "error"),
    [
        (lambda x: [x[0], x[1].replace('"n":1', '"n":7'), *x[2:]], 2, StaleError),
        (lambda x: [*x[:3], x[3].replace('"n":3', '"n":7')], 4, StaleError),  # the last one, which no other follows
        (lambda x: [x[0], *x[2:]], 2, StaleError),
        (lambda x: [x[0], x[2], x[1], x[3]], 2, StaleError),
        (lambda x: [x[0], x[1], x[1], *x[2:]], 3, StaleError),
        (lambda x: x[1:], 1, StaleError),
        (lambda x: [x[0], x[1].replace(":", ": ", 1), *x[2:]], 2, StaleError),
        (lambda x: [x[0].replace('{"hash"', '{"n":9,"hash"'), *x[1:]], 1, StaleError),  # a key twice: readers differ
        (lambda x: [x[0], "", *x[1:]], 2, FormatError),
        (lambda x: [x[0], "[]", *x[1:]], 2, FormatError),
        (lambda x: [x[0], '{"n":1,"previous":null}', *x[1:]], 2, FormatError),
        (lambda x: [x[0], '{"n":NaN}', *x[1:]], 2, FormatError),
        (lambda x: [x[0], "[" * 100_000, *x[1:]], 2, FormatError),
        (lambda x: [x[0], '{"a":"\\ud83d"}', *x[1:]], 2, VerituneError),
    ],
)
def test_damage_is_named_with_its_line(ledger: Ledger, damage: Any, number: int, error: type[Exception]) -> None:
    write(ledger, damage(lines(ledger)))
    with pytest.raises(error, match=rf"ledger\.jsonl line {number} "):
        ledger.read()


def test_bytes_that_are_no_text_are_named(ledger: Ledger) -> None:
    ledger.path.write_bytes(ledger.path.read_bytes() + b"\xff\xfe\n")
    for what in (ledger.read, lambda: ledger.append({"n": 4})):
        with pytest.raises(FormatError, match="is damaged"):
            what()


@pytest.mark.parametrize("tail", ['{"n":', "\u2028", "x" * (3 * TAIL)])
def test_a_torn_tail_is_not_read_and_goes_with_the_next_entry(ledger: Ledger, tail: str) -> None:
    write(ledger, lines(ledger), tail)
    assert [e["n"] for e in ledger.read()] == [0, 1, 2, 3]
    ledger.append({"n": 4})
    assert [e["n"] for e in ledger.read()] == [0, 1, 2, 3, 4]


def test_a_ledger_of_one_torn_line_begins_anew(tmp_path: Path) -> None:
    made = Ledger(tmp_path / "ledger.jsonl")
    made.path.write_text('{"n":0', encoding="utf-8")
    assert made.read() == []
    assert made.append({"n": 1})["previous"] is None
    assert [e["n"] for e in made.read()] == [1]


@pytest.mark.parametrize("text", ["\u2028", "\u2029", "\u0085", "\x0b\x0c\x1c", "\r\n", "x" * (2 * TAIL)])
def test_only_a_newline_ends_a_line(tmp_path: Path, text: str) -> None:
    made = Ledger(tmp_path / "ledger.jsonl")
    for _ in range(2):
        made.append({"reason": f"one{text}two"})
    assert [e["reason"] for e in made.read()] == [f"one{text}two"] * 2


def test_nothing_is_appended_to_a_damaged_end(ledger: Ledger) -> None:
    write(ledger, [*lines(ledger)[:3], lines(ledger)[3].replace('"n":3', '"n":7')])
    before = ledger.path.read_bytes()
    with pytest.raises(StaleError, match="line last was edited"):
        ledger.append({"n": 4})
    assert ledger.path.read_bytes() == before


def test_text_that_utf_8_cannot_hold_is_refused_and_leaves_nothing(ledger: Ledger) -> None:
    before = ledger.path.read_bytes()
    with pytest.raises(InputError, match="UTF-8"):
        ledger.append({"reason": "half \ud83d"})
    assert ledger.path.read_bytes() == before


def test_an_append_that_fails_is_taken_back(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ledger.path.read_bytes()

    def fails(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(VerituneError, match="Input/output error"):
            ledger.append({"n": 4})
    assert ledger.path.read_bytes() == before
    ledger.append({"n": 4})
    assert [e["n"] for e in ledger.read()] == [0, 1, 2, 3, 4]


def test_chain_keys_are_the_ledgers_own(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="is a key of the chain and cannot be a field of an entry"):
        ledger.append({"hash": "x"})


def test_salvage_gives_whole_lines_and_says_what_is_wrong(ledger: Ledger) -> None:
    assert ledger.salvage() == (ledger.read(), None)
    write(ledger, [lines(ledger)[0], "{broken", lines(ledger)[2].replace('"n":2', '"n":7'), lines(ledger)[3]])
    kept, problem = ledger.salvage()
    assert [e["n"] for e in kept] == [0, 3] and problem is not None and "line 2 is damaged" in problem


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_any_bit_flipped_and_any_byte_taken_out_is_found(ledger: Ledger, at: int, bit: int, cut: bool) -> None:
    honest = b"".join(line.encode() + b"\n" for line in (ENTRY_LINES))
    at %= len(honest)
    changed = honest[:at] + (b"" if cut else bytes([honest[at] ^ 1 << bit])) + honest[at + 1 :]
    ledger.path.write_bytes(changed)
    try:
        found = ledger.read()
    except VerituneError:
        return
    assert changed[-1:] != b"\n" and len(found) == 3, "only the end can be lost without the chain showing it"


ENTRY_LINES: list[str] = []
_previous = None
for _n in range(4):
    _entry = link({"n": _n, "text": "Straße\u2028"}, _previous)
    _previous = _entry["hash"]
    ENTRY_LINES.append(json.dumps(_entry, sort_keys=True, ensure_ascii=False, separators=(",", ":")))


def test_follow_all_names_the_entry() -> None:
    entries = [json.loads(line) for line in ENTRY_LINES]
    assert follow_all(entries, str) == entries
    entries[2]["n"] = 9
    with pytest.raises(StaleError, match="entry 2 was edited"):
        follow_all(entries, lambda i: f"entry {i}")


# ---------------------------------------------------------------- a head beside the ledger


def test_a_newest_entry_that_was_cut_off_is_found_by_the_head_beside_it(tmp_path: Path) -> None:
    made = Ledger(tmp_path / "_lineage.jsonl", head=True)
    for n in range(3):
        made.append({"n": n})
    lines = made.path.read_text("utf-8").split("\n")[:-1]
    made.path.write_text("".join(line + "\n" for line in lines[:2]), encoding="utf-8")
    with pytest.raises(StaleError, match=r"_lineage\.jsonl lost its newest entries: .*head\.json records entry"):
        made.read()
    made.path.unlink()
    with pytest.raises(StaleError, match=r"_lineage\.jsonl is gone"):
        made.read()


def test_a_head_that_a_killed_writer_left_one_behind_is_no_fault(tmp_path: Path) -> None:
    made = Ledger(tmp_path / "l.jsonl", head=True)
    made.append({"n": 0})
    before = (tmp_path / "l.head.json").read_bytes()
    made.append({"n": 1})
    (tmp_path / "l.head.json").write_bytes(before)
    assert [e["n"] for e in made.read()] == [0, 1]


@pytest.mark.parametrize("spoil", ["a folder", "nobody may", "no text", "a loop"])
def test_a_user_s_list_that_cannot_be_read_stops_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    from veritune.data.review import require_usable

    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rows.jsonl").write_text("{}\n")
    path = tmp_path / "retired.jsonl"
    if spoil == "a folder":
        path.mkdir()
    elif spoil == "no text":
        path.write_bytes(b"\xff\x00" * 99)
    elif spoil == "a loop":
        path.symlink_to(path)
    else:
        monkeypatch.setattr(Ledger, "read", lambda _self: (_ for _ in ()).throw(PermissionError(13, "denied")))
        monkeypatch.setattr("veritune.data.review._lineage_of", lambda _folder: Ledger2())
    monkeypatch.setenv("VERITUNE_RETIRED", str(path))
    require_usable(tmp_path / "home" / "rows.jsonl")


class Ledger2:
    """A lineage that holds nothing."""

    def read(self) -> list[object]:
        return []


def test_the_newest_of_some_events_is_found_and_text_that_names_one_is_not_taken_for_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "events.jsonl")
    assert ledger.newest("sealed", "unsealed") is None
    for body in (
        {"event": "sealed", "n": 1},
        {"event": "unsealed", "n": 2},
        {"event": "ran", "said": '"event":"sealed"'},
    ):
        ledger.append(body)
    ledger.append({"event": "ran", "facts": {"event": "sealed"}})
    newest = ledger.newest("sealed", "unsealed")
    assert newest is not None and newest["n"] == 2
    with ledger.path.open("ab") as stream:
        stream.write(b'{"event":"sealed"')  # torn: never reported as written
    newest = ledger.newest("sealed", "unsealed")
    assert newest is not None and newest["n"] == 2
    text = ledger.path.read_text("utf-8").replace('"n":2', '"n":3')
    ledger.path.write_text(text, encoding="utf-8")
    with pytest.raises(StaleError, match="was edited"):
        ledger.newest("sealed", "unsealed")


def test_what_was_read_before_is_believed_only_byte_for_byte(tmp_path: Path) -> None:
    """A ledger is read again and again; only what has been appended is checked anew, and every edit is."""
    path = tmp_path / "log.jsonl"
    for number in range(4):
        Ledger(path).append({"event": "x", "number": number})
    first = Ledger(path).read()
    first[0]["number"] = 99  # what a caller does to its entries is its own affair
    assert [entry["number"] for entry in Ledger(path).read()] == [0, 1, 2, 3]
    Ledger(path).append({"event": "x", "number": 4})
    assert [entry["number"] for entry in Ledger(path).read()] == [0, 1, 2, 3, 4]
    whole, stamp = path.read_bytes(), path.stat()
    path.write_bytes(whole.replace(b'"number":1', b'"number":7'))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(StaleError, match="line 2 was edited"):
        Ledger(path).read()
    path.write_bytes(b"".join(whole.splitlines(True)[:3]))
    assert [entry["number"] for entry in Ledger(path).read()] == [0, 1, 2]
    path.write_bytes(b"".join([*whole.splitlines(True)[:3], *whole.splitlines(True)[4:]]))
    with pytest.raises(StaleError, match="line 4 does not continue"):
        Ledger(path).read()
    path.write_bytes(whole[:-3])
    assert len(Ledger(path).read()) == 4


def test_what_a_killed_writer_left_of_a_head_goes_with_the_next(tmp_path: Path) -> None:
    kept = Ledger(tmp_path / "log.jsonl", head=True)
    first = kept.append({"n": 0})
    (tmp_path / ".log.head.json.0123456789ab.tmp").write_text('{"ha')
    kept.append({"n": 1})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.head.json", "log.jsonl"]
    (tmp_path / ".log.head.json.0123456789ab.tmp").write_text('{"ha')
    kept.settle(first["hash"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.head.json", "log.jsonl"]

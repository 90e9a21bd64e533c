"""Splitting at its edges: hand-worked shares, strata, times and thresholds, and every sentence word for word."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from veritune.data.split import (
    SplitConfig,
    _siblings,
    _strata,
    _take,
    _time_value,
    judge_split,
    judge_zones,
    names_a_problem,
    problem_of,
    split_zones,
    stratum_of,
)
from veritune.errors import DataError
from veritune.records import Message, Row


def row(name: str, prompt: str | None = None, answer: str | None = None, **meta: Any) -> Row:
    turns = (
        Message("user", f"what is the value of item {name}" if prompt is None else prompt),
        Message("assistant", f"the value of the item is {name}" if answer is None else answer),
    )
    return Row(name, turns, source="s.jsonl", meta=meta)


def families(sizes: list[int], **meta: Any) -> tuple[list[Row], dict[str, str]]:
    rows = [row(f"f{f:02d}-{k}", **meta) for f, n in enumerate(sizes) for k in range(n)]
    return rows, {r.id: r.id.split("-")[0] for r in rows}


def counted(sizes: list[int], **config: Any) -> dict[str, tuple[int, int]]:
    """Rows and families of each zone."""
    counts = split_zones(*families(sizes), SplitConfig(**config)).counts
    return {zone: (c["rows"], c["families"]) for zone, c in counts.items()}


# ---------------------------------------------------------------- shares


def test_a_share_of_0_leaves_its_zone_empty_and_a_small_one_gives_two_families() -> None:
    """40 families of 4: .01 of them would be .4, which is not enough to say anything."""
    assert counted([4] * 40, stranger=0, validation=0, sibling=0) == {
        "seen": (160, 40),
        "sibling": (0, 0),
        "stranger": (0, 0),
        "validation": (0, 0),
    }
    assert counted([4] * 40, stranger=0.01, validation=0.01, sibling=0.01) == {
        "seen": (108, 36),
        "sibling": (36, 36),
        "stranger": (8, 2),
        "validation": (8, 2),
    }
    assert counted([4] * 40, stranger=0.2, validation=0.1, sibling=0.5) == {
        "seen": (56, 28),
        "sibling": (56, 28),
        "stranger": (32, 8),
        "validation": (16, 4),
    }


def test_two_families_must_be_left_to_train_on() -> None:
    assert counted([1] * 6)["seen"] == (2, 2)
    with pytest.raises(DataError) as error:
        split_zones(*families([1] * 5))
    assert error.value.message == (
        "5 families cannot be split into stranger (2), validation (2) and at least 2 to train on."
    )
    assert error.value.fix == "Add families, lower the shares, or check whether the families were merged too far."


@pytest.mark.parametrize("share", ["stranger", "validation", "sibling"])
@pytest.mark.parametrize("value", [-0.01, 1.0, 1.5])
def test_a_share_is_at_least_0_and_below_1(share: str, value: float) -> None:
    config = SplitConfig(**{"stranger": 0.1, "validation": 0.1, "sibling": 0.1, share: value})
    with pytest.raises(DataError) as error:
        split_zones(*families([2] * 20), config)
    shares = {"stranger": config.stranger, "validation": config.validation, "sibling": config.sibling}
    assert error.value.message == (
        f"the shares {shares} cannot be used; expected each in [0, 1) and stranger + validation below 1."
    )
    assert error.value.fix == "Lower them."


def test_held_out_shares_stay_below_1_together() -> None:
    rows, family_of = families([1] * 400)
    with pytest.raises(DataError, match="stranger \\+ validation below 1"):
        split_zones(rows, family_of, SplitConfig(stranger=0.75, validation=0.25))
    split = split_zones(rows, family_of, SplitConfig(stranger=0.75, validation=0.24, sibling=0))
    assert [split.counts[z]["families"] for z in ("seen", "stranger", "validation")] == [4, 300, 96]


@pytest.mark.parametrize(
    ("rows", "share", "kept"),
    [(1, 0.5, 0), (2, 0.5, 1), (2, 0.01, 1), (2, 0.99, 1), (3, 0.9, 2), (4, 0.25, 1), (6, 0.5, 3), (8, 0.0, 0)],
)
def test_siblings_are_at_least_one_row_and_never_all(rows: int, share: float, kept: int) -> None:
    mine = [row(f"r{k}") for k in range(rows)]
    assert len(_siblings("f", mine, SplitConfig(sibling=share))) == kept


def test_rows_of_equal_text_are_kept_back_together_as_far_as_the_share_goes() -> None:
    """Groups of 3, 1, 1 and 1 equal rows: of 6 rows a half is 3, so the three go alone or the singles do."""
    triple = [row(f"t{k}", "one question", "one answer") for k in range(3)]
    mine = [*triple, *(row(f"s{k}") for k in range(3))]
    for seed in range(12):
        kept = _siblings("f", mine, SplitConfig(seed=seed, sibling=0.5))
        together = {r.id for r in triple} & kept
        assert len(together) in (0, 3)
        assert 1 <= len(kept) <= 3
    assert {len(_siblings("f", mine, SplitConfig(seed=s, sibling=0.17))) for s in range(12)} == {1, 3}


def test_rows_of_one_question_and_several_answers_are_not_equal() -> None:
    mine = [row(f"r{k}", "one question", f"answer number {k}") for k in range(4)]
    assert len(_siblings("f", mine, SplitConfig(sibling=0.25))) == 1
    assert len(_siblings("f", mine, SplitConfig(sibling=0.75))) == 3


# ---------------------------------------------------------------- strata


def test_the_stratum_of_a_row() -> None:
    assert stratum_of(row("a"), None) == ""
    assert stratum_of(row("a"), "source") == "s.jsonl"
    assert stratum_of(row("a", source="web"), "source") == "web"
    assert stratum_of(row("a", topic=3), "topic") == "3"
    assert stratum_of(row("a"), "topic") == ""


def test_a_family_counts_for_the_stratum_of_most_of_its_rows() -> None:
    members = {
        "mostly_b": [row("1", t="a"), row("2", t="b"), row("3", t="b")],
        "tie": [row("4", t="b"), row("5", t="a")],
        "all_c": [row("6", t="c")],
    }
    assert _strata(members, "t") == {"a": ["tie"], "b": ["mostly_b"], "c": ["all_c"]}
    assert list(_strata({"x": [row("1", t="b")], "y": [row("2", t="a")]}, "t")) == ["a", "b"]


def test_largest_remainders_by_hand() -> None:
    """7 of 10, 6 and 4 families: 3.5, 2.1 and 1.4 of them; the one that is left goes to the largest remainder."""
    strata = {"a": [f"a{i}" for i in range(10)], "b": [f"b{i}" for i in range(6)], "c": [f"c{i}" for i in range(4)]}
    for seed in range(5):
        held = _take(strata, 7, seed)
        assert sorted(name[0] for name in held) == ["a"] * 4 + ["b"] * 2 + ["c"]
    assert _take(strata, 7, 0) != _take(strata, 7, 1)
    assert _take(strata, 0, 0) == set()
    assert len(_take({"a": [], "b": ["b0", "b1"]}, 1, 0)) == 1


# ---------------------------------------------------------------- sources and times


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (True, None),
        (7, 7.0),
        (2.5, 2.5),
        ("2.5", 2.5),
        (float("nan"), None),
        (float("inf"), None),
        ("inf", None),
        ("nan", None),
        ("soon", None),
        (" 1970-01-02 ", 86400.0),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
    ],
)
def test_a_time_is_a_date_or_a_number(value: object, seconds: float | None) -> None:
    assert _time_value(value) == seconds


def test_a_time_without_a_zone_is_utc() -> None:
    assert _time_value("2024-05-31T10:00:00") == datetime(2024, 5, 31, 10, tzinfo=UTC).timestamp()


def by_time(**config: Any) -> Any:
    rows = [row(f"r{i:02d}", when=i) for i in range(20)]
    return split_zones(rows, {r.id: r.id for r in rows}, SplitConfig(by="time", field="when", **config))


def test_the_newest_share_of_the_rows() -> None:
    """The cut of 20 rows at a share of .25 is the 15th time, which is held out itself."""
    strangers = [i for i in range(20) if by_time(stranger=0.25).zone_of[f"r{i:02d}"] == "stranger"]
    assert strangers == [15, 16, 17, 18, 19]
    strangers = [i for i in range(20) if by_time(stranger=0.25, held_from="17").zone_of[f"r{i:02d}"] == "stranger"]
    assert strangers == [17, 18, 19]
    assert by_time(held_from="19").counts["stranger"]["rows"] == 1


@pytest.mark.parametrize(
    ("config", "message", "fix"),
    [
        (
            {"held_from": "soon"},
            "split: expected an ISO date or a number in held_from, found 'soon'.",
            "Write it like 2024-05-31, or as a number.",
        ),
        ({"held_from": "19.5"}, "split by time: no row is from '19.5' on.", "Name an earlier time."),
        (
            {"held_from": "3"},
            "17 of 20 families are strangers by time: fewer than 2 are left to train on.",
            "Hold out fewer families.",
        ),
    ],
)
def test_times_that_hold_out_nothing_or_too_much(config: dict[str, Any], message: str, fix: str) -> None:
    with pytest.raises(DataError) as error:
        by_time(**config)
    assert (error.value.message, error.value.fix) == (message, fix)
    assert by_time(held_from="4").counts["seen"]["families"] == 2


def test_a_row_without_a_time() -> None:
    with pytest.raises(DataError) as error:
        rows = [row(f"r{i}", when="soon") for i in range(20)]
        split_zones(rows, {r.id: r.id for r in rows}, SplitConfig(by="time", field="when"))
    assert error.value.message == "row 'r0' has no time in column 'when': found 'soon'."
    assert error.value.fix == "Times are ISO dates (2024-05-31, 2024-05-31T10:00:00Z) or numbers."


def test_sources_are_drawn_until_the_share_is_there_and_never_all() -> None:
    """Four sources of 5 rows: .3 of 20 rows are 6, so two sources; with .8 (16 rows) three, one is trained on."""
    rows = [row(f"r{i:02d}", source="abcd"[i % 4]) for i in range(20)]
    family_of = {r.id: r.id for r in rows}
    for share, sources in ((0.25, 1), (0.3, 2), (0.5, 2), (0.8, 3)):
        split = split_zones(rows, family_of, SplitConfig(by="source", stranger=share, validation=0.1))
        held = {r.meta["source"] for r in rows if split.zone_of[r.id] == "stranger"}
        assert len(held) == sources, share


@pytest.mark.parametrize(
    ("held", "sources", "message", "fix"),
    [
        (
            ("forum",),
            "ab",
            "split by source: no row is of source 'forum' (column 'source').",
            "Sources there: 'a', 'b'.",
        ),
        ((), "a", "split by source: all rows are of one source ('a') (column 'source').", "Sources there: 'a'."),
    ],
)
def test_sources_that_are_not_there(held: tuple[str, ...], sources: str, message: str, fix: str) -> None:
    rows = [row(f"r{i}", source=sources[i % len(sources)]) for i in range(20)]
    with pytest.raises(DataError) as error:
        split_zones(rows, {r.id: r.id for r in rows}, SplitConfig(by="source", held_sources=held))
    assert (error.value.message, error.value.fix) == (message, fix)


def test_a_family_on_both_sides_goes_with_the_held_out_rows_and_is_counted() -> None:
    rows = [row(f"r{i:02d}", when=i) for i in range(20)]
    family_of = {r.id: r.id for r in rows} | {"r00": "both", "r01": "both", "r19": "both"}
    split = split_zones(rows, family_of, SplitConfig(by="time", field="when", held_from="18"))
    assert [i for i in range(20) if split.zone_of[f"r{i:02d}"] == "stranger"] == [0, 1, 18, 19]
    assert split.warnings[0] == (
        "1 family is on both sides of the held-out time: it is held out whole, with 2 rows from the other side"
    )
    assert "both sides" not in " ".join(by_time(held_from="18").warnings)


# ---------------------------------------------------------------- what cannot be, and what is thin


@pytest.mark.parametrize(
    ("extra", "lost", "config", "message", "fix"),
    [
        (["f00-0"], [], {}, "row id 'f00-0' is used 2 times.", "Give every row a unique id."),
        (["x", "y"], ["x", "y"], {}, "2 of 42 rows have no family, first 'x'.", "Give every row a family."),
        (
            [],
            [],
            {"stratify": "topic"},
            "no row has a column 'topic' to stratify by.",
            "Name another, or set it to null.",
        ),
    ],
)
def test_rows_that_cannot_be_split(
    extra: list[str], lost: list[str], config: dict[str, Any], message: str, fix: str
) -> None:
    rows, family_of = families([2] * 20)
    rows += [row(name) for name in extra]
    with pytest.raises(DataError) as error:
        split_zones(rows, {k: v for k, v in family_of.items() if k not in lost}, SplitConfig(**config))
    assert (error.value.message, error.value.fix) == (message, fix)


THIN = {
    "none": "stranger is empty because its share is 0: what is measured on it stays untested",
    "no_validation": "validation is empty because its share is 0: what is measured on it stays untested",
    "few": "stranger holds only {} families: intervals over families will be wide, and few claims settle",
    "no_sibling": "sibling is empty: no trained family has a row to spare, so its claims stay untested",
    "few_sibling": "sibling holds rows of only {} families: intervals over families will be wide",
}


@pytest.mark.parametrize(
    ("sizes", "config", "warnings"),
    [
        ([2] * 40, {"stranger": 0, "validation": 0.1}, [THIN["none"]]),
        ([2] * 40, {"validation": 0}, [THIN["no_validation"]]),
        ([2] * 40, {"sibling": 0}, [THIN["no_sibling"]]),
        ([1] * 40, {}, [THIN["no_sibling"]]),
        ([2] * 40, {"few_families": 12}, []),
        ([2] * 40, {"few_families": 13}, [THIN["few"].format(12)]),
        ([2] * 40, {"few_families": 23, "stranger": 0.3}, [THIN["few"].format(12)]),
        ([2] * 40, {"few_families": 24}, [THIN["few"].format(12), THIN["few_sibling"].format(23)]),
    ],
)
def test_what_a_split_is_too_thin_for(sizes: list[int], config: dict[str, Any], warnings: list[str]) -> None:
    assert list(split_zones(*families(sizes), SplitConfig(**{"few_families": 2, **config})).warnings) == warnings


def test_a_stratum_without_strangers_is_named() -> None:
    rows = [row(f"r{i:02d}", topic="rare" if i < 2 else "common") for i in range(40)]
    config = SplitConfig(stratify="topic", stranger=0.2, validation=0.1, sibling=0, few_families=1)
    warnings = split_zones(rows, {r.id: r.id for r in rows}, config).warnings
    assert warnings[-1] == "1 of 2 strata have no stranger family ('rare'): no claim covers them"
    none = split_zones(rows, {r.id: r.id for r in rows}, replace(config, stranger=0)).warnings
    assert not any("strata" in line for line in none)


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("go on then please", True),
        ("go on please", False),
        ("more 3", True),
        ("", False),
        ("continuez là-bas s'il vous plaît", True),
        ("déjà", False),
        ("请把下面的句子翻译成英文", True),
    ],
)
def test_a_prompt_names_a_problem_from_four_words_or_a_digit_on(prompt: str, names: bool) -> None:
    assert names_a_problem(prompt) is names


def test_a_problem_is_what_is_asked_without_the_system_prompts() -> None:
    turns = (
        Message("system", "Be brief."),
        Message("developer", "Be kind."),
        Message("user", "Who?"),
        Message("assistant", "Ada."),
        Message("user", "When?"),
        Message("assistant", "1843."),
    )
    plain = Row("r", turns[2:], source="s")
    assert problem_of(Row("r", turns, source="s")) == problem_of(plain)
    assert "when" in problem_of(plain) and "ada" in problem_of(plain) and "1843" not in problem_of(plain)


def test_an_answer_of_20_characters_is_a_leak_and_one_of_19_is_none() -> None:
    for length, found in ((20, 1), (19, 0)):
        answer = "x" * length
        _, counts = judge_zones({"seen": [row("a", answer=answer)], "stranger": [row("b", answer=answer)]}, {})
        assert counts.pairs[0].answers == found


def test_each_finding_has_its_sentence_severity_and_examples() -> None:
    seen = [row(f"t{i}") for i in range(9)]
    held = [row(f"t{i}") for i in range(6)] + [row(f"n{i}") for i in range(2)]
    findings, counts = judge_zones(
        {"seen": seen, "stranger": held}, {"t0": "f", "n0": "f"}, near=[("t8", "n1", 0.9), ("n1", "t7", 0.8)]
    )
    says = {f.check: (f.severity, f.message) for f in findings}
    assert says == {
        "split.ids": ("error", "6 of the 8 rows in stranger have an id that is also in seen"),
        "split.texts": ("error", "6 of the 8 rows in stranger are word for word in seen"),
        "split.prompts": ("error", "6 of the 8 prompts in stranger are in seen"),
        "split.families": ("error", "2 of the 8 rows in stranger have a sibling in seen"),
        "split.answers": ("warning", "6 of the 8 answers in stranger are in seen"),
        "split.near": ("warning", "1 of the 8 rows in stranger have a near-duplicate in seen"),
    }
    assert [f.severity for f in findings] == ["error"] * 4 + ["warning"] * 2
    first = findings[0]
    assert first.row_id == "t0"
    assert first.evidence == {"a": "seen", "b": "stranger", "n": 6, "n_b": 8, "rows": ["t0", "t1", "t2", "t3", "t4"]}
    assert counts.zones == {"seen": 9, "stranger": 8}


def test_kin_near_and_equal_prompts_of_seen_and_sibling_are_notes() -> None:
    seen, sibling = [row("a", "the same question asked", "one answer")], [row("b", "the same question asked", "other")]
    findings, _ = judge_zones({"sibling": sibling, "seen": seen}, {"a": "f", "b": "f"}, near=[("a", "b", 0.9)])
    assert {f.check: f.severity for f in findings} == {
        "split.prompts": "note",
        "split.families": "note",
        "split.near": "note",
    }


def test_rows_without_a_zone_and_ids_without_a_row_come_first() -> None:
    rows, family_of = families([2, 2])
    zone_of = {"f00-0": "seen", "f00-1": "seen", "ghost": "stranger", "a ghost": "stranger"}
    findings, _ = judge_split(zone_of, rows, family_of)
    assert [(f.check, f.severity, f.message, f.row_id, f.evidence) for f in findings[:2]] == [
        ("split.unknown", "error", "2 ids in the split match no row, first 'a ghost'", "a ghost", {"n": 2}),
        ("split.unplaced", "error", "2 rows have no zone, first 'f01-0'", "f01-0", {"n": 2}),
    ]

"""Splitting: whole families, strata, seeds; and judging any split."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritune.data.split import SplitConfig, judge_split, judge_zones, split_zones
from veritune.errors import DataError
from veritune.records import (
    ZONES,
    Message,
    Row,
    SplitCounts,
    ZonePair,
)


def row(row_id: str, prompt: str | None = None, answer: str | None = None, source: str = "s") -> Row:
    prompt = f"what is the value of item {row_id}" if prompt is None else prompt
    answer = f"the value of the item is {row_id}" if answer is None else answer
    return Row(row_id, (Message("user", prompt), Message("assistant", answer)), source)


def families(sizes: list[int], sources: int = 1) -> tuple[list[Row], dict[str, str]]:
    rows = [row(f"f{f}-{k}", source=f"s{f % sources}") for f, n in enumerate(sizes) for k in range(n)]
    return rows, {r.id: r.id.split("-")[0] for r in rows}


def test_held_out_families_never_have_a_row_elsewhere() -> None:
    rows, family_of = families([4] * 48)
    split = split_zones(rows, family_of, SplitConfig(seed=3))
    zones = defaultdict(set)
    for r in rows:
        zones[family_of[r.id]].add(split.zone_of[r.id])
    assert set(map(frozenset, zones.values())) == {
        frozenset({"stranger"}),
        frozenset({"validation"}),
        frozenset({"seen", "sibling"}),
    }
    assert {z: split.counts[z]["families"] for z in ZONES} == {
        "seen": 28,
        "sibling": 28,
        "stranger": 14,
        "validation": 6,
    }
    assert {z: split.counts[z]["rows"] for z in ZONES} == {"seen": 84, "sibling": 28, "stranger": 56, "validation": 24}


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=8, max_size=40),
    seed=st.integers(0, 5),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.2), st.floats(0, 0.9)),
    sources=st.integers(1, 4),
)
def test_split_invariants(sizes: list[int], seed: int, shares: tuple[float, float, float], sources: int) -> None:
    rows, family_of = families(sizes, sources)
    config = SplitConfig(seed, *shares)
    split = split_zones(rows, family_of, config)
    assert list(split.zone_of) == [r.id for r in rows]
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert dict(split_zones(shuffled, family_of, config).zone_of) == dict(split.zone_of)
    findings, _ = judge_split(split.zone_of, rows, family_of)
    assert not [f for f in findings if f.severity == "error"]
    for family, n in Counter(family_of.values()).items():
        mine = [split.zone_of[r.id] for r in rows if family_of[r.id] == family]
        if "seen" in mine or "sibling" in mine:
            assert mine.count("seen") >= 1
            assert (mine.count("sibling") >= 1) == (n >= 2 and shares[2] > 0)
    for zone in ("stranger", "validation"):
        assert split.counts[zone]["families"] >= 2


def test_another_seed_gives_another_split() -> None:
    rows, family_of = families([3] * 30)
    one, two = (split_zones(rows, family_of, SplitConfig(seed=s)).zone_of for s in (0, 1))
    assert dict(one) != dict(two)


def test_every_source_gives_its_share_of_strangers() -> None:
    rows, family_of = families([2] * 60, sources=3)
    split = split_zones(rows, family_of, SplitConfig(stranger=0.3, validation=0.1))
    assert split.counts["stranger"]["by_stratum"] == {"s0": 12, "s1": 12, "s2": 12}
    assert split.counts["validation"]["by_stratum"] == {"s0": 4, "s1": 4, "s2": 4}


def test_equal_rows_of_a_family_are_not_parted_into_seen_and_sibling() -> None:
    rows, family_of = [], {}
    for f in range(20):
        for k in range(4):
            twin = row(f"f{f}-{k}", f"question number {f}, wording {k // 2}", f"answer number {f} wording {k // 2}")
            rows.append(twin)
            family_of[twin.id] = f"f{f}"
    split = split_zones(rows, family_of)
    findings, _ = judge_split(split.zone_of, rows, family_of)
    assert [f.check for f in findings if f.severity == "error"] == []
    assert split.counts["sibling"]["rows"] > 0


def test_a_family_of_one_text_repeated_stays_whole() -> None:
    rows, family_of = families([3] * 12)
    twins = [row(f"twin-{k}", "one and the same question", "one and the same answer") for k in range(4)]
    split = split_zones([*rows, *twins], {**family_of, **{r.id: "twin" for r in twins}})
    assert len({split.zone_of[r.id] for r in twins}) == 1
    assert "sibling" not in {split.zone_of[r.id] for r in twins}


@pytest.mark.parametrize(
    ("sizes", "config", "says"),
    [
        ([2] * 5, SplitConfig(), "5 families cannot be split"),
        ([2] * 20, SplitConfig(stranger=0.7, validation=0.3), "cannot be"),
        ([2] * 20, SplitConfig(sibling=1.0), "cannot be"),
        ([2] * 20, SplitConfig(stratify="topic"), "no row has a column 'topic'"),
    ],
)
def test_what_cannot_be_split_is_an_error(sizes: list[int], config: SplitConfig, says: str) -> None:
    rows, family_of = families(sizes)
    with pytest.raises(DataError, match=says):
        split_zones(rows, family_of, config)


def test_a_row_without_a_family_and_an_id_used_twice_are_errors() -> None:
    rows, family_of = families([2] * 10)
    with pytest.raises(DataError, match="no family"):
        split_zones([*rows, row("lost")], family_of)
    with pytest.raises(DataError, match="used 2 times"):
        split_zones([*rows, rows[0]], family_of)


def test_small_data_works_and_says_what_it_cannot_support() -> None:
    rows, family_of = families([1] * 8)
    said = " / ".join(split_zones(rows, family_of).warnings)
    assert "stranger holds only 2 families" in said
    assert "validation holds 2 of 8 families where 0.12 of them would be 1.0" in said
    assert "sibling is empty" in said
    assert split_zones(*families([4] * 48)).warnings == ()


# ---------------------------------------------------------------- judging


def pair(counts: SplitCounts, a: str, b: str) -> ZonePair:
    (found,) = [p for p in counts.pairs if (p.a, p.b) == (a, b)]
    return found


def test_a_users_split_hears_how_many_held_out_answers_are_in_train() -> None:
    train = [row(f"t{i}") for i in range(20)]
    test = [row(f"e{i}", answer=train[i].target if i < 7 else None) for i in range(9)]
    findings, counts = judge_zones({"train": train, "test": test}, {})
    assert pair(counts, "train", "test").answers == 7
    assert [f.message for f in findings] == ["7 of the 9 answers in test are in train"]


def test_each_kind_of_overlap_is_counted_by_itself() -> None:
    train = [row(f"t{i}") for i in range(10)]
    held = [
        train[0],
        row("copy", "  WHAT is the value of item “t1”".replace("“", "").replace("”", ""), train[1].target),
        row("asked", train[2].messages[0].content),
        row("kin"),
        row("close"),
        row("fresh"),
    ]
    family_of = {**{r.id: r.id for r in train}, "kin": "t4", "copy": "c", "asked": "a", "close": "x", "fresh": "y"}
    findings, counts = judge_zones({"seen": train, "stranger": held}, family_of, near=[("t5", "close", 0.6)])
    got = pair(counts, "seen", "stranger")
    assert {k: getattr(got, k) for k in ("ids", "texts", "prompts", "answers", "families", "near")} == {
        "ids": 1,
        "texts": 2,
        "prompts": 3,
        "answers": 2,
        "families": 2,
        "near": 1,
    }
    assert (got.n_a, got.n_b) == (10, 6)
    assert {f.check: f.severity for f in findings}["split.families"] == "error"


def test_short_answers_and_short_prompts_are_no_leak() -> None:
    seen = [row("a", "Continue.", "yes"), row("b", "Go on", "no")]
    held = [row("c", "continue.", "yes"), row("d", "Tell me more please", "no")]
    findings, counts = judge_zones({"seen": seen, "stranger": held}, {r.id: r.id for r in [*seen, *held]})
    got = pair(counts, "seen", "stranger")
    assert (got.prompts, got.answers) == (0, 0)
    assert got.texts == 1  # the same short exchange, word for word, is still the same row
    assert [f.check for f in findings] == ["split.texts"]


def test_kin_in_seen_and_sibling_are_by_design_and_copies_are_not() -> None:
    rows, family_of = families([2])
    findings, _ = judge_split({"f0-0": "seen", "f0-1": "sibling"}, rows, family_of)
    assert [(f.check, f.severity) for f in findings] == [("split.families", "note")]
    twins = [row("a", "the same question", "the same answer"), row("b", "the same question", "the same answer")]
    findings, _ = judge_split({"a": "seen", "b": "sibling"}, twins, {"a": "f", "b": "f"})
    assert ("split.texts", "error") in [(f.check, f.severity) for f in findings]


def test_rows_outside_the_split_and_ids_without_a_row_are_errors() -> None:
    rows, family_of = families([2] * 2)
    zone_of = {"f0-0": "seen", "f0-1": "seen", "f1-0": "stranger", "ghost": "stranger"}
    findings, _ = judge_split(zone_of, rows, family_of)
    assert {f.check for f in findings if f.severity == "error"} == {"split.unplaced", "split.unknown"}


# ---------------------------------------------------------------- by source and by time


def dated(i: int, source: str, when: object) -> Row:
    turns = (Message("user", f"Question {i} of the survey on ropes?"), Message("assistant", f"Answer {i}."))
    return Row(f"r{i}", turns, meta={"source": source, "when": when})


def test_whole_sources_are_held_out_and_a_family_on_both_sides_goes_with_them() -> None:
    rows = [dated(i, ("web", "forum", "book")[i % 3], i) for i in range(30)]
    family_of = {row.id: row.id for row in rows} | {"r0": "both", "r1": "both"}  # web and forum
    split = split_zones(rows, family_of, SplitConfig(by="source", held_sources=("forum",), validation=0.1))
    strangers = {row.id for row in rows if split.zone_of[row.id] == "stranger"}
    assert strangers == {row.id for row in rows if row.meta["source"] == "forum"} | {"r0"}
    assert (
        "1 family is on both sides of held-out sources: it is held out whole, with 1 row from the other side"
        in split.warnings
    )
    drawn = split_zones(rows, family_of, SplitConfig(by="source", stranger=0.3, validation=0.1))
    sources = {row.meta["source"] for row in rows if drawn.zone_of[row.id] == "seen"}
    assert len(sources) == 2


@pytest.mark.parametrize("cut", [None, "2024-01-24", "2024-01-24T00:00:00Z"])
def test_the_newest_rows_are_held_out(cut: str | None) -> None:
    rows = [dated(i, "web", f"2024-01-{i + 1:02d}") for i in range(30)]
    config = SplitConfig(by="time", field="when", held_from=cut, stranger=0.235, validation=0.1)
    split = split_zones(rows, {row.id: row.id for row in rows}, config)
    assert {i for i in range(30) if split.zone_of[f"r{i}"] == "stranger"} == set(range(23, 30))


def test_sources_and_times_that_are_not_there_are_one_line() -> None:
    rows = [dated(i, "web", "soon") for i in range(30)]
    family_of = {row.id: row.id for row in rows}
    for config, says in (
        (SplitConfig(by="source", held_sources=("forum",)), "no row is of source 'forum'"),
        (SplitConfig(by="source"), "all rows are of one source ('web')"),
        (SplitConfig(by="time", field="when"), "row 'r0' has no time in column 'when': found 'soon'"),
    ):
        with pytest.raises(DataError) as caught:
            split_zones(rows, family_of, config)
        assert says in str(caught.value)

"""Canonical text, its hashes, and the buffers the kernels read."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritune.data.near import sweep as near_sweep
from veritune.data.near.arrays import U32, U64
from veritune.data.near.bytes import TextBuffer, chunks_by_bytes
from veritune.data.near.sweep import Sweep, sweep
from veritune.data.text import canonical, prepare, tokens
from veritune.errors import DataError

SAME = [
    ("Hello  World", " hello\tworld\n"),
    ("ＨＥＬＬＯ", "hello"),
    ("don’t — stop…", "don't - stop..."),
    ("a\u200bb\ufeff", "ab"),
    ("x\u00a0y", "x y"),
    ("Straße", "STRASSE"),
    ("e\u0301", "é"),
    ("数学。", "数学."),
    ("a\x01b", "ab"),
]
DIFFERENT = [("a+b", "a-b"), ("12 apples", "13 apples"), ("a b", "ab"), ("what?", "what"), ("数学", "数字")]
ODD = st.text(alphabet=st.sampled_from("aAz09 .,+-\t\n’—…é́ßİſﬁΣς数学かﷺ①½\u200b\u00a0\x01\x1f\u2028אب🙂"), max_size=24)


def features(swept: Sweep, i: int) -> U32:
    """The features of row i."""
    return swept.feature_F[swept.start_N[i] : swept.start_N[i] + swept.length_N[i]]


def text_hash(texts: list[str]) -> U64:
    """Hashes of the canonical forms."""
    return sweep(TextBuffer.from_strings(texts)).hash_N


@pytest.mark.parametrize(("left", "right"), SAME)
def test_texts_that_read_the_same_are_equal(left: str, right: str) -> None:
    assert canonical(left) == canonical(right)
    hashes = text_hash([left, right])
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(("left", "right"), DIFFERENT)
def test_punctuation_numbers_and_words_keep_texts_apart(left: str, right: str) -> None:
    assert canonical(left) != canonical(right)
    hashes = text_hash([left, right])
    assert hashes[0] != hashes[1]


@settings(max_examples=400, deadline=None)
@given(ODD)
def test_canonical_form_is_its_own_canonical_form(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@settings(max_examples=400, deadline=None)
@given(ODD, ODD)
def test_hashes_are_equal_exactly_when_canonical_forms_are(left: str, right: str) -> None:
    hashes = text_hash([left, right, canonical(left)])
    assert (hashes[0] == hashes[1]) == (canonical(left) == canonical(right))
    assert hashes[0] == hashes[2]


def test_empty_and_blank_texts_hash_to_zero() -> None:
    assert text_hash(["", "  \n", "\u200b"]).tolist() == [0, 0, 0]


def test_ascii_is_not_touched_and_symbols_outside_it_become_tokens() -> None:
    assert prepare("Abc 12") == b"Abc 12"
    assert tokens("Tom’s 3 cats") == ["tom", "s", "3", "cats"]
    assert tokens("数学x²") == ["数", "学", "x2"]
    assert tokens("5×6") == ["5", "×", "6"]


def test_lone_surrogates_are_replaced_not_raised() -> None:
    assert canonical("a\ud800b") == "a\ufffdb"
    assert text_hash(["a\ud800b"])[0] == text_hash(["a\ufffdb"])[0]
    assert len(TextBuffer.from_strings(["\udfff"])) == 1


def test_a_series_and_a_list_make_the_same_hashes() -> None:
    texts = ["plain", "curly ’quotes’", None, "数学 mixed", "", "— dash", "é"]
    parts = [("head ’", "tail"), ("數", None), (None, "only"), ("", "")]
    series = sweep(TextBuffer.from_series(pl.Series("t", texts)))
    strings = sweep(TextBuffer.from_strings(texts))
    np.testing.assert_array_equal(series.hash_N, strings.hash_N)
    for i in range(len(texts)):
        np.testing.assert_array_equal(features(series, i), features(strings, i))
    assert TextBuffer.from_parts(parts).row(0) == "head ’\n\ntail"


def test_a_sliced_series_reads_its_own_rows() -> None:
    series = pl.Series("t", ["one", "two", "three é", "four"])[1:3]
    assert [TextBuffer.from_series(series).row(i) for i in range(2)] == ["two", "three é"]


def test_a_column_that_is_not_text_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="`n` of type Int64"):
        TextBuffer.from_series(pl.Series("n", [1, 2]))


def test_the_problem_hash_is_that_of_the_problem_alone() -> None:
    swept = sweep(TextBuffer.from_parts([("What is 2+2?", "4"), ("what is 2+2? ", "four"), ("", "x")]))
    assert swept.problem_hash_N[0] == swept.problem_hash_N[1] == text_hash(["What is 2+2?"])[0]
    assert swept.problem_hash_N[2] == 0
    assert swept.problem_token_N.tolist() == [4, 4, 0]
    assert swept.problem_digit_N.tolist() == [1, 1, 0]


def test_features_are_distinct_masked_bigrams_in_order() -> None:
    same, masked, other = (
        features(sweep(TextBuffer.from_strings([t])), 0).tolist()
        for t in ("Ann has 12 cats", "ann has 3,  CATS", "ann has many cats")
    )
    assert same == masked
    assert len(same) == 3
    assert same[0] == other[0]
    assert same[1:] != other[1:]
    repeated = sweep(TextBuffer.from_strings(["la la la la"]))
    assert repeated.length_N.tolist() == [1]


def test_chunking_does_not_change_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"row {i} has {'word ' * (i % 40)} and é" for i in range(200)]
    whole = sweep(TextBuffer.from_strings(texts))
    monkeypatch.setattr(near_sweep, "_BLOCK", 300)
    parts = sweep(TextBuffer.from_strings(texts), threads=2)
    np.testing.assert_array_equal(whole.hash_N, parts.hash_N)
    for i in range(200):
        np.testing.assert_array_equal(features(whole, i), features(parts, i))


def test_chunks_cover_every_row_once() -> None:
    offsets = np.array([0, 5, 5, 100, 101, 130], np.int64)
    ranges = chunks_by_bytes(offsets, 20)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == 5
    assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert chunks_by_bytes(np.zeros(1, np.int64), 20) == []


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("يَزْرَعُ البُسْتَانِيُّ سَبْعَةَ عَشَرَ صَفًّا أَحْمَد", "يزرع البستاني سبعة عشر صفا احمد"),
        ("هَذَا كِتَابٌ جَدِيـــد", "هذا كتاب جديد"),
        ("הַגַּנָּן שׁוֹתֵל שׁוּרוֹת", "הגנן שותל שורות"),
        ("ชาวสวน ปลูก ทิวลิป", "ชาวสวนปลูกทิวลิป"),
        ("អ្នកថែសួន\u200bដាំផ្កា", "អ្នកថែសួនដាំផ្កា"),
        ("ဥယျာဉ်မှူးသည် ကျူးလစ်", "ဥယျာဉ်မှူးသည်ကျူးလစ်"),
        ("ຊາວສວນ ປູກດອກ", "ຊາວສວນປູກດອກ"),
    ],
)
def test_signs_and_spaces_that_a_script_leaves_to_the_writer_make_no_other_text(marked: str, plain: str) -> None:
    assert canonical(marked) == canonical(plain)
    assert tokens(marked) == tokens(plain)


def test_marks_that_carry_meaning_stay() -> None:
    assert canonical("กา") != canonical("ก่า")
    assert canonical("café") != canonical("cafe")
    assert canonical("में") != canonical("म")

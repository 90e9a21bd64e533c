"""Families: the three sources, the invariants they keep, and what is measured on labelled edits of GSM8K."""

from __future__ import annotations

import importlib
import os
import random
import subprocess
import sys
from collections import defaultdict
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from veritune.data.families import (
    SPLIT_SAFE_THRESHOLD,
    FamilyColumns,
    FamilyResult,
    find_families,
)
from veritune.data.family_notes import family_notes
from veritune.data.near import components, join, sweep
from veritune.errors import DataError
from veritune.records import Message, Row

REPO = Path(__file__).resolve().parents[2]

BOAT = "The harbor master counts {} boats at the north quay and {} boats at the south quay before the storm arrives."
CAKE = "Every Sunday grandmother bakes {} plum cakes for the village fair and sells {} slices to hungry tourists."
TRAIN = "A freight train leaves Oslo with {} wagons of timber and drops {} wagons at a small mountain station."


def row(i: object, user: str, answer: str = "", *, system: str = "", family: str | None = None) -> Row:
    turns = [Message("system", system)] if system else []
    turns.append(Message("user", user))
    if answer:
        turns.append(Message("assistant", answer))
    return Row(str(i), tuple(turns), family=family)


def groups(result: FamilyResult) -> set[frozenset[str]]:
    out = defaultdict(set)
    for row_id, name in zip(result.row_ids, result.families):
        out[name].add(row_id)
    return {frozenset(g) for g in out.values()}


# ---------------------------------------------------------------- the three sources


def test_hand_worked_example_of_all_three_sources() -> None:
    rows = [
        row(0, BOAT.format(3, 4), "Seven boats."),
        row(1, BOAT.format(15, 26), "Forty-one boats."),  # numbers swapped: similarity
        row(2, "What is 17 * 3?", "51"),
        row(3, "what is 17  *  3?", "It is fifty-one."),  # the same problem, another solution: exact
        row(4, "What is 18 * 3?", "54"),  # another problem
        row(5, "anything", "a", family="q7"),
        row(6, "else entirely", "b", family="q7"),  # the column says so
        row(7, CAKE.format(2, 3), "Well."),
    ]
    result = find_families(rows)
    expected = {frozenset("01"), frozenset("23"), frozenset("4"), frozenset("56"), frozenset("7")}
    assert groups(result) == expected
    assert [m.evidence for m in result.memberships] == [
        "similarity", "similarity", "exact", "exact", "singleton", "column", "column", "singleton",
    ]  # fmt: skip
    assert result.family_of(5) == "q7"
    assert result.memberships[0].similarity == result.memberships[1].similarity
    assert 0.38 <= result.memberships[0].similarity <= 1.0
    assert result.memberships[2].similarity is None


def test_each_source_can_be_switched_off() -> None:
    rows = [
        row(0, BOAT.format(3, 4), "Seven."),
        row(1, BOAT.format(5, 6), "Eleven in total are counted."),
        row(2, "What is 17 * 3?", "51"),
        row(3, "What is 17 * 3?", "fifty-one"),
        row(4, "a", family="x"),
        row(5, "b", family="x"),
    ]
    pairs = {"near": {"0", "1"}, "exact": {"2", "3"}, "column": {"4", "5"}}
    for off, pair in pairs.items():
        found = groups(find_families(rows, **{off: False}))
        assert frozenset(pair) not in found
        assert all(frozenset(p) in found for name, p in pairs.items() if name != off)


def test_generic_prompts_with_different_answers_are_not_one_family() -> None:
    rows = [row(i, "Continue.", f"{name} went home.") for i, name in enumerate(["Ann", "Bob", "Cleo", "Dan"])]
    assert len(find_families(rows).names) == 4
    same = [row(i, "Continue.", "The end.") for i in range(3)]
    assert len(find_families(same).names) == 1


def test_several_accepted_solutions_of_one_problem_are_one_family() -> None:
    rows = [row(i, "How many primes are below 20?", text) for i, text in enumerate(["Eight.", "2 3 5 7...: 8", "8"])]
    assert len(find_families(rows, near=False).names) == 1


def test_names_are_the_columns_or_made_of_content() -> None:
    rows = [row(0, "x y z one two", "a"), row(1, "x y z one two", "b", family="orig-9"), row(2, "other text here")]
    result = find_families(rows)
    assert result.family_of(0) == "orig-9"
    moved = find_families([rows[2], rows[0]])
    assert moved.family_of(0) == result.family_of(2)


def test_column_families_that_turn_out_the_same_are_counted() -> None:
    rows = [row(0, BOAT.format(1, 2), family="a"), row(1, BOAT.format(3, 4), family="b")]
    result = find_families(rows)
    assert result.summary["bridged_column_families"] == 1
    assert set(result.families) == {"a"}


def test_extra_edges_join_rows_with_their_own_evidence() -> None:
    rows = [row(0, BOAT.format(1, 2)), row(1, CAKE.format(3, 4)), row(2, TRAIN.format(5, 6))]
    result = find_families(rows, extra_edges=[(0, 2, 0.83, "gradient")])
    assert groups(result) == {frozenset("02"), frozenset("1")}
    assert result.memberships[0].similarity == pytest.approx(0.83)
    assert result.memberships[0].evidence == "gradient" and result.memberships[1].evidence == "singleton"
    assert result.joins == ((0, 2, 0.83, "gradient"),) and result.summary["joined_by"] == {"gradient": 1}
    with pytest.raises(DataError, match="'astrology'"):
        find_families(rows, extra_edges=[(0, 2, 1.0, "astrology")])
    with pytest.raises(DataError, match="rows 0 and 3"):
        find_families(rows, extra_edges=[(0, 3, 1.0, "gradient")])


def test_numbers_to_quote_add_up() -> None:
    rows = [row(i, BOAT.format(i, i + 1)) for i in range(4)] + [row(9, CAKE.format(1, 2)), row(10, TRAIN.format(1, 2))]
    summary = find_families(rows).summary
    assert (summary["rows"], summary["originals"], summary["variants"]) == (6, 3, 3)
    assert summary["variant_share"] == 0.5
    assert summary["sizes"] == {1: 2, 4: 1}
    assert summary["largest"][0][1] == 4
    assert summary["evidence"] == {"singleton": 2, "column": 0, "exact": 0, "similarity": 4}


# ---------------------------------------------------------------- small data, odd data


@pytest.mark.parametrize("n", [2, 5, 10, 49])
def test_grouping_never_switches_itself_off_on_small_data(n: int, gsm8k: list[tuple[str, str]]) -> None:
    rows = []
    for i, (question, answer) in enumerate(gsm8k[: (n + 1) // 2]):
        rows.append(row(f"{i}a", question, answer))
        rows.append(row(f"{i}b", question.translate(str.maketrans("123456789", "987654321")), answer))
    rows = rows[:n]
    found = groups(find_families(rows, exact=False))
    wanted = {frozenset({f"{i}a", f"{i}b"}) for i in range(n // 2)}
    assert wanted <= found
    assert len(found) == (n + 1) // 2


def test_two_rows_alone_are_compared_though_every_shared_word_is_in_every_row() -> None:
    edited = BOAT.replace("harbor", "dock").replace("north", "western").replace("storm", "hurricane")
    assert len(find_families([row(0, BOAT.format(3, 4)), row(1, edited.format(8, 9))]).names) == 1
    assert len(find_families([row(0, BOAT.format(3, 4)), row(1, CAKE.format(8, 9))]).names) == 2


@pytest.mark.parametrize("n", [5, 10, 49, 300])  # of two rows nobody can tell a template from a rewrite
def test_rows_that_only_share_a_template_stay_apart(n: int, gsm8k: list[tuple[str, str]]) -> None:
    template = (
        "You are a careful tutor. Solve the following problem step by step, explain every step in one short sentence, "
        "and put the final answer after the hash marks.\n\nProblem: {}\n\nRemember to check your result."
    )
    rows = [row(i, template.format(q), a, system=template) for i, (q, a) in enumerate(gsm8k[:n])]
    assert len(find_families(rows).names) >= 0.98 * n


def test_a_shared_system_prompt_joins_nothing() -> None:
    system = "You answer like a pirate captain who has sailed all seven seas and never tells the whole story at once."
    rows = [row(i, t, system=system) for i, t in enumerate([BOAT.format(1, 2), CAKE.format(1, 2), TRAIN.format(1, 2)])]
    assert len(find_families(rows).names) == 3
    same = [row(0, "What is 17 * 3?", "51", system=system), row(1, "What is 17 * 3?", "51", system="Be brief.")]
    assert len(find_families(same).names) == 1


def test_arithmetic_one_liners_stay_alone() -> None:
    rows = [row(i, f"{i} + {i + 5} =", str(2 * i + 5)) for i in range(200)]
    assert len(find_families(rows).names) == 200


def test_one_word_rows_join_only_their_equals() -> None:
    rows = [row(i, word) for i, word in enumerate(["yes", "no", "maybe", "yes", "no"])]
    assert groups(find_families(rows)) == {frozenset("03"), frozenset("14"), frozenset("2")}


def test_empty_and_null_rows_are_alone_and_counted() -> None:
    frame = pl.DataFrame({"problem": [None, "", "  ", BOAT.format(1, 2)], "target": [None, None, "", "x"]})
    result = find_families(frame)
    assert len(result.names) == 4
    assert len(set(result.names)) == 4
    assert result.summary["empty_rows"] == 3


def test_no_rows_give_an_empty_result_with_unknown_rates() -> None:
    result = find_families([])
    assert len(result) == 0
    assert result.memberships == ()
    assert result.summary["variant_share"] is None


def test_identical_rows_are_one_family_however_many() -> None:
    frame = pl.DataFrame({"text": [BOAT.format(1, 2)] * 20_000 + [CAKE.format(1, 2)]})
    result = find_families(frame)
    assert sorted(result.sizes.values()) == [1, 20_000]
    assert result.summary["oversize"] == [(result.families[0], 20_000)]


def test_cjk_is_compared_by_characters_and_right_to_left_text_by_words() -> None:
    chinese = "小明在超市买了{}个苹果和{}个橙子，然后把其中的一半送给了住在隔壁的小红。"
    other = "火车从北京出发开往上海，途中在{}个车站停靠，每站停留{}分钟，乘客可以下车休息。"
    arabic = "اشترت سلمى {} تفاحات و {} برتقالات من السوق ثم أعطت نصفها إلى جارتها في المساء قبل العشاء"
    rows = [row(i, t.format(a, b)) for i, (t, a, b) in enumerate(
        [(chinese, 3, 4), (chinese, 12, 7), (other, 2, 5), (arabic, 3, 4), (arabic, 9, 8)]
    )]  # fmt: skip
    assert groups(find_families(rows)) == {frozenset("01"), frozenset("2"), frozenset("34")}


def test_very_long_rows_and_surrogates_do_not_stop_it() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=7)) for _ in range(200_000)]
    edited = [w if rng.random() > 0.02 else "changed" for w in words]
    rows = [row(0, " ".join(words)), row(1, " ".join(edited)), row(2, BOAT.format(1, 2) + "\ud800")]
    assert groups(find_families(rows)) == {frozenset("01"), frozenset("2")}


def test_unknown_settings_and_thresholds_are_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'treshold'.*threshold"):
        find_families([], treshold=0.5)
    with pytest.raises(DataError, match=r"\(0, 1\]"):
        find_families([], threshold=0.0)
    with pytest.raises(DataError, match="`problem` and `target`"):
        find_families(pl.DataFrame({"question": ["x"]}))


# ---------------------------------------------------------------- invariants


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    return _bench("corpus")


@pytest.fixture(scope="module")
def measure() -> ModuleType:
    return _bench("measure")


def _bench(name: str) -> ModuleType:
    spec = util.spec_from_file_location(f"audit_{name}", REPO / "bench" / "audit" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gsm8k_folder() -> Path:
    return Path(os.environ.get("VERITUNE_GSM8K", REPO.parent / "shared" / "data" / "gsm8k"))


@pytest.fixture(scope="module")
def gsm8k(corpus: ModuleType) -> list[tuple[str, str]]:
    if not (_gsm8k_folder() / "train.jsonl").exists():
        pytest.skip("GSM8K is not here: set VERITUNE_GSM8K to the folder with train.jsonl and test.jsonl")
    return corpus.load()


@pytest.fixture(scope="module")
def labelled(corpus: ModuleType, gsm8k: list[tuple[str, str]]) -> pl.DataFrame:
    return corpus.make(3000, seed=5, rows=gsm8k).with_row_index("id")


def test_row_order_does_not_change_families_or_their_names(labelled: pl.DataFrame) -> None:
    before = find_families(labelled)
    order = np.random.default_rng(3).permutation(len(labelled))
    after = find_families(labelled[order])
    assert dict(zip(before.row_ids, before.families)) == dict(zip(after.row_ids, after.families))


def test_repeating_rows_adds_them_to_their_families_and_changes_no_other(labelled: pl.DataFrame) -> None:
    before = find_families(labelled)
    again = labelled.head(500).with_columns(pl.col("id") + 100_000)
    after = find_families(pl.concat([labelled, again]))
    assert after.families[: len(labelled)] == before.families
    assert after.families[len(labelled) :] == before.families[:500]


def test_unrelated_rows_leave_families_as_they_were(labelled: pl.DataFrame) -> None:
    rng = random.Random(1)
    strangers = pl.DataFrame(
        {"problem": [" ".join("".join(rng.choices("pqrstu", k=8)) for _ in range(30)) for _ in range(1000)]}
    )
    strangers = strangers.with_columns(pl.lit("ok").alias("target"))
    before = find_families(labelled)
    both = pl.concat([labelled.select("problem", "target"), strangers])
    after = find_families(both)
    truth = np.array(before.families)
    kept = np.array(after.families[: len(labelled)])
    same = sum(a == b for a, b in zip(truth, kept))
    assert same >= 0.98 * len(truth)  # document frequencies move a little with the number of rows
    assert len(set(after.families[len(labelled) :])) == 1000


def test_threads_and_partitions_change_nothing(labelled: pl.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(a: FamilyResult, b: FamilyResult) -> None:
        np.testing.assert_array_equal(a.code_N, b.code_N)
        np.testing.assert_array_equal(a.evidence_N, b.evidence_N)
        np.testing.assert_array_equal(a.similarity_N, b.similarity_N)
        assert a.names == b.names

    whole = find_families(labelled, threads=1)
    same(whole, find_families(labelled, threads=3))
    monkeypatch.setattr(join, "_PARTITION_KEYS", 20_000)
    same(whole, find_families(labelled, threads=2))
    monkeypatch.setattr(join, "_KEYS_AT_ONCE", 50_000)
    same(whole, find_families(labelled, threads=2))


def test_without_numba_one_error_names_the_extra_and_importing_the_module_needs_nothing_heavy() -> None:
    code = (
        "import sys\nfrom veritune.data.families import find_families\n"
        "from veritune.data.contamination import check_contamination\nfrom veritune.errors import MachineError\n"
        "bad = {'numba', 'torch', 'transformers', 'pandas', 'scipy', 'polars'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "sys.modules['numba'] = None\n"
        "for search in (lambda: find_families([]), lambda: check_contamination([], {'exam': ['x']})):\n"
        "    try:\n        search()\n"
        "    except MachineError as error:\n        assert 'numba' in error.message and 'numba>=' in error.fix\n"
        "    else:\n        raise AssertionError('a search without numba')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_where_no_cache_folder_can_be_written_kernels_are_compiled_anew(tmp_path: Path) -> None:
    """numba refuses to cache then; a read-only image must not fail for it."""
    code = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from veritune.data.near.compiled import kernel\n"
        "@kernel\ndef twice(x):\n    return 2 * x\n"
        "assert twice(21) == 42\n"
    )
    (tmp_path / "run.py").write_text(code, "utf-8")
    subprocess.run([sys.executable, str(tmp_path / "run.py")], check=True)


# ---------------------------------------------------------------- chains


def _chain(n: int, step: int = 6, width: int = 40) -> list[str]:
    """Text i shares most words with text i + 1 and none with text i + width // step + 1."""
    rng = random.Random(2)
    words = ["".join(rng.choices("abcdefgh", k=7)) for _ in range(n * step + width)]
    return [" ".join(words[i * step : i * step + width]) for i in range(n)]


def test_a_chain_of_neighbours_is_cut_and_reported() -> None:
    result = find_families([row(i, text) for i, text in enumerate(_chain(60))])
    assert result.summary["size_max"] <= 15
    assert result.summary["recut_clusters"] >= 1
    glued = find_families([row(i, text) for i, text in enumerate(_chain(60))], radius=0.0)
    assert glued.summary["size_max"] == 60


def _torn_families(corpus: ModuleType, gsm8k: list[tuple[str, str]], threshold: float) -> tuple[int, int]:
    """Families that are whole and found families that mix two, over 8 sets of 30 problems x 4 rows with few templates.

    Every non-original is edited; one in twenty-five is its original's question word for word inside a template.
    """
    wrap = "Solve this math problem step by step and show all of your work before the answer.\n\nProblem: {}\n\nGo."
    heavy = [lambda pair, draw: corpus.synonyms(corpus.reorder(pair, draw), draw), corpus.swap_numbers]
    originals = list(gsm8k)
    whole = mixed = 0
    for seed in range(8):
        draw = random.Random(seed)
        rows, label = [], []
        for k, original in enumerate(draw.sample(originals, 30)):
            for i in range(4):
                pair = original
                for edit in draw.sample([*heavy, corpus.delete_words], draw.choice((1, 2))) if i else ():
                    pair = edit(pair, draw)
                if i and draw.random() < 0.04:
                    pair = (wrap.format(original[0]), original[1])
                rows.append(row(len(rows), *pair))
                label.append(k)
        found = find_families(rows, threshold=threshold)
        of_label, of_code = defaultdict(set), defaultdict(set)
        for code, k in zip(found.code_N.tolist(), label):
            of_label[k].add(code)
            of_code[code].add(k)
        whole += sum(len(codes) == 1 for codes in of_label.values())
        mixed += sum(len(labels) > 1 for labels in of_code.values())
    return whole, mixed


def test_a_template_takes_no_row_away_from_its_original(corpus: ModuleType, gsm8k: list[tuple[str, str]]) -> None:
    """Lower thresholds let a template chain problems together; the cut must not leave a row with another problem."""
    strict, _ = _torn_families(corpus, gsm8k, 0.38)
    safe, mixed = _torn_families(corpus, gsm8k, SPLIT_SAFE_THRESHOLD)
    assert safe >= strict
    assert mixed == 0


def test_a_row_of_a_large_component_goes_to_its_closest_centre(
    corpus: ModuleType, gsm8k: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("veritune.data.near.clusters"), "_ALL_PAIRS", 2)
    _, closest = _torn_families(corpus, gsm8k, SPLIT_SAFE_THRESHOLD)
    assert closest <= 1


def test_every_member_is_similar_to_its_centre(labelled: pl.DataFrame) -> None:
    result = find_families(labelled, column=False, exact=False)
    score = result.similarity_N[result.evidence_N == 3]
    assert len(score) > 500
    assert score.min() >= 0.5 * 0.38


def test_components_are_the_smallest_connected_row() -> None:
    left, right = np.array([5, 1, 7, 2]), np.array([3, 5, 6, 9])
    assert components(10, left, right).tolist() == [0, 1, 2, 1, 4, 1, 6, 6, 8, 2]


def test_accepted_pairs_are_those_at_the_threshold(labelled: pl.DataFrame) -> None:
    columns = FamilyColumns.from_frame(labelled.head(300))
    sketch = join.sketches(sweep.sweep(columns.text), np.arange(300), 8)
    left, right = (x.astype(np.int64) for x in np.triu_indices(300, 1))
    good = join.accepted(sketch, left, right, 0.38)
    np.testing.assert_array_equal(good, join.similarity(sketch, left, right) >= 0.38)
    assert good.any()


# ---------------------------------------------------------------- quality


def test_precision_and_recall_on_labelled_edits(labelled: pl.DataFrame, measure: ModuleType) -> None:
    truth = measure.codes(labelled["label"].to_list())
    default = find_families(labelled, exact=False)
    precision, recall = measure.pairwise(truth, default.code_N)
    assert precision >= 0.98
    assert recall >= 0.96
    safe = find_families(labelled, exact=False, threshold=SPLIT_SAFE_THRESHOLD)
    precision, safe_recall = measure.pairwise(truth, safe.code_N)
    assert precision >= 0.97
    assert safe_recall >= max(recall, 0.97)


def test_a_measure_of_nothing_found_and_of_everything_joined(measure: ModuleType) -> None:
    truth = np.array([0, 0, 1, 1, 2])
    assert measure.pairwise(truth, np.arange(5)) == (0.0, 0.0)
    assert measure.pairwise(truth, np.zeros(5, np.int64)) == (0.2, 1.0)
    assert measure.pairwise(truth, truth) == (1.0, 1.0)
    assert measure.per_row(truth, truth) == (1.0, 1.0)


# ---------------------------------------------------------------- short facts, open prompts, declared families

CAPITALS = {"France": "Paris", "Kenya": "Nairobi", "Norway": "Oslo", "Japan": "Tokyo", "Egypt": "Cairo"}
FRAMES = (
    "What is the name of the capital city of the country {}?",
    "Tell me the name of the capital city of the country {}, please.",
)


def test_another_fact_in_the_same_frame_is_no_rewrite_and_a_rephrased_one_is() -> None:
    rows = [row((f, c), FRAMES[f].format(c), f"{a}.") for f in (0, 1) for c, a in CAPITALS.items()]
    rows += [row(i, f"Describe how tool number {i} behaves on a shelf.", f"It rests at {i}.") for i in range(30)]
    found = groups(find_families(rows))
    for country in CAPITALS:
        assert frozenset({str((0, country)), str((1, country))}) in found


def test_other_numbers_in_a_short_question_stay_a_rewrite() -> None:
    rows = [row(i, f"How many plum cakes are {i} boxes of {i + 3} plum cakes each?", f"{i * (i + 3)}") for i in (3, 7)]
    rows += [row(k, f"Describe how {word} behave on a shelf.", word) for k, word in enumerate("abcdefghij", 10)]
    assert frozenset({"3", "7"}) in groups(find_families(rows))


def test_what_holds_families_together_is_not_called_equal_text_where_similarity_did_it() -> None:
    rows = [
        row(0, BOAT.format(3, 4), "Seven."),
        row(1, BOAT.format(3, 4), "It is seven."),
        row(2, BOAT.format(8, 9), "x"),
    ]
    rows += [row(3, "What is 17 * 3?", "51"), row(4, "what is 17 * 3?", "It is 51.")]
    summary = find_families(rows).summary
    assert summary["held_by"] == {"equality": {"families": 1, "rows": 2}, "similarity": {"families": 1, "rows": 3}}
    assert summary["equal_groups"] == 3


def test_an_open_prompt_a_widened_column_and_short_texts_are_said() -> None:
    draw = random.Random(3)
    words = [f"word{i}" for i in range(15)]
    poems = [row(i, "Write a short poem about the sea.", " ".join(draw.choices(words, k=12))) for i in range(20)]
    declared = [row(f"d{i}", BOAT.format(i, i + 2), "Many.", family=f"o{i}") for i in range(3)]
    rows = [*poems, *declared]
    said = {f.check: f.message for f in family_notes(rows, find_families(rows))}
    assert said["families.open_prompt"].startswith(
        "one prompt has 20 different answers, and its 20 rows are one family"
    )
    assert said["families.widened"].startswith(
        "3 of 3 declared families were joined into 1 by equal text or similarity"
    )
    assert "1 family of short texts (3 rows) rests on similarity" in said["families.short_texts"]
    solved = [row(i, "What is 17 * 3, step by step?", f"{i} steps.\n#### 51") for i in range(20)]
    assert family_notes(solved, find_families(solved)) == [], "many solutions of one problem are no open prompt"

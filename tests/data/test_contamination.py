"""Contamination: what each kind means, what is no leak, the gate, and what is measured on planted test items."""

from __future__ import annotations

import json
import os
import random
from importlib import util
from pathlib import Path
from types import ModuleType

import numpy as np
import polars as pl
import pytest

from veritune.data.contamination import ContaminationResult, check_contamination, common_run, stands_in
from veritune.data.families import SPLIT_SAFE_THRESHOLD, FamilyColumns, find_families
from veritune.data.near import TextBuffer, index
from veritune.data.operators import different_operators
from veritune.data.split import split_zones
from veritune.errors import DataError
from veritune.records import Message, Row, to_json

REPO = Path(__file__).resolve().parents[2]
ITEM = "A gardener plants 17 rows of tulips with 23 bulbs in each row. How many tulip bulbs does she plant altogether?"
SOLUTION = (
    "She plants 17 rows times 23 bulbs, which makes 17 * 23 = 391 tulip bulbs altogether in her garden this year."
)
OTHER = "The night ferry to Helsinki carries 412 passengers and 96 cars, and half of the cars belong to tourists."


def row(i: object, user: str, answer: str = "Fine.", system: str = "") -> Row:
    turns = (Message("user", user), Message("assistant", answer))
    return Row(str(i), (Message("system", system), *turns) if system else turns)


def one(user: str, answer: str = "Fine.", **settings: object):  # type: ignore[no-untyped-def]
    """The only hit of one row among strangers, or None."""
    rows = [row("it", user, answer), row("x", OTHER), row("y", OTHER.replace("412", "500").replace("ferry", "train"))]
    hits = check_contamination(rows, {"exam": [ITEM]}, **settings).hits
    assert len(hits) <= 1
    return hits[0] if hits else None


# ---------------------------------------------------------------- the four kinds


@pytest.mark.parametrize(
    "user", [ITEM, ITEM.upper(), ITEM.replace(" ", "  "), ITEM.replace("gardener", "gar\u200bdener")]
)
def test_identical_after_canonical_normalisation(user: str) -> None:
    hit = one(user)
    assert (hit.kind, hit.status, hit.score, hit.row_part, hit.item_part) == (
        "identical", "exact", 1.0, "prompt", "prompt",
    )  # fmt: skip


def test_contained_in_a_longer_text_and_in_the_target() -> None:
    hit = one(f"Please help me with my homework today. {ITEM} Thank you so much for your time!")
    assert (hit.kind, hit.status, hit.row_part) == ("contained", "exact", "prompt")
    assert hit.span.startswith("a gardener plants 17 rows")
    hit = one("Give me a problem for my pupils.", f"Here is one: {ITEM}")
    assert (hit.kind, hit.row_part) == ("contained", "target")


def test_contained_means_whole_words() -> None:
    assert one(f"Solve: {ITEM[:-1]}").kind != "contained"
    assert one(ITEM.replace("17", "317") + " Please.").kind == "near"


def test_standing_in_a_text_ends_at_word_boundaries() -> None:
    assert stands_in("17 rows of 2", "plant 17 rows of 2, please")
    assert not stands_in("17 rows of 2", "plant 17 rows of 23, please")
    assert not stands_in("17 rows of 2", "plant 317 rows of 2")
    assert stands_in("17 rows of 2", "317 rows of 2 and 17 rows of 2")


def test_near_duplicates_are_scored_by_the_weight_they_hold() -> None:
    words = ITEM.split()
    thinned = " ".join(w for i, w in enumerate(words) if i % 6)
    hit = one(thinned)
    assert (hit.kind, hit.status) == ("near", "confirmed")
    assert 0.45 <= hit.score < 1.0
    stricter = one(thinned, confirmed=0.95)
    assert (stricter.status, stricter.score) == ("review", hit.score)


def test_a_changed_number_lowers_the_score() -> None:
    assert one(ITEM.replace("23", "57")).score < one(ITEM + " Hm.").score == 1.0


def test_a_long_run_in_a_long_item_is_shown() -> None:
    rng = random.Random(0)
    passage = " ".join("".join(rng.choices("abcdefgh", k=6)) for _ in range(300))
    excerpt = " ".join(passage.split()[100:130])
    rows = [row("it", f"Look at this text. {excerpt} What do you think of it?"), row("x", OTHER)]
    (hit,) = check_contamination(rows, {"reading": [passage]}).hits
    assert (hit.kind, hit.status, hit.span) == ("ngram", "review", excerpt)
    assert check_contamination(rows, {"reading": [passage]}, ngram=31).hits == ()


def test_answers_are_looked_for_apart_from_prompts() -> None:
    evals = {"exam": [row("q1", ITEM, SOLUTION)]}
    rows = [row("a", "Tell me about gardens.", SOLUTION), row("b", OTHER)]
    (hit,) = check_contamination(rows, evals).hits
    assert (hit.row_id, hit.item_id, hit.item_part, hit.row_part, hit.kind) == (
        "a", "q1", "answer", "target", "identical",
    )  # fmt: skip
    assert check_contamination(rows, evals, answers=False).hits == ()


def test_short_answers_are_no_evidence() -> None:
    evals = {"exam": [row("q1", ITEM, "42"), row("q2", OTHER, "Yes.")]}
    rows = [row("a", "How much is six times seven in the book?", "42"), row("b", "Is it raining in Oslo now?", "Yes.")]
    assert check_contamination(rows, evals).hits == ()


def test_short_prompts_must_match_exactly_and_name_something() -> None:
    evals = {"sums": ["What is 12 + 7?", "Continue.", "Name the capital of France."]}
    asked = ["what is 12 + 7?", "What is 12 + 8?", "Continue.", "Name the capital of Spain."]
    rows = [row(name, text) for name, text in zip("abcd", asked)]
    hits = check_contamination(rows, evals).hits
    assert [(h.row_id, h.item, h.kind) for h in hits] == [("a", 0, "identical")]


def test_system_prompts_take_no_part() -> None:
    rows = [row("a", OTHER, system=ITEM)]
    assert check_contamination(rows, {"exam": [ITEM]}).hits == ()


# ---------------------------------------------------------------- the gate and the way out


def test_the_gate_fails_on_exact_overlap_and_names_the_rows() -> None:
    result = check_contamination([row("a", ITEM), row("b", OTHER)], {"exam": [ITEM]})
    gate = result.gate()
    assert gate.status == "failed"
    assert gate.evidence[0].startswith("a: exam/0 identical: a gardener plants")
    assert gate.numbers["evals"]["exam"] == {
        "items": 1, "items_exact": 1, "rows_exact": 1,
        "items_confirmed": 0, "rows_confirmed": 0, "items_review": 0, "rows_review": 0,
        "items_canned": 0, "rows_canned": 0,
    }  # fmt: skip
    to_json(gate)


def test_the_users_threshold_decides_what_else_fails() -> None:
    thinned = " ".join(w for i, w in enumerate(ITEM.split()) if i % 6)
    rows = [row("a", thinned), row("b", OTHER)]
    assert check_contamination(rows, {"exam": [ITEM]}).gate().status == "passed"
    assert check_contamination(rows, {"exam": [ITEM]}, fail_on="confirmed").gate().status == "failed"
    assert check_contamination(rows, {"exam": [ITEM]}, fail_on="confirmed", confirmed=1.0).gate().status == "passed"


def test_nothing_to_look_for_is_undecided_not_passed() -> None:
    assert check_contamination([row("a", ITEM)], {}).gate().status == "undecided"
    assert check_contamination([row("a", ITEM)], {"empty": []}).gate().status == "undecided"
    assert check_contamination([], {"exam": [ITEM]}).gate().status == "passed"


def test_dropping_keeps_the_rest_and_says_why() -> None:
    rows = [row("a", ITEM), row("b", OTHER), row("c", f"So. {ITEM} Well."), row("d", ITEM.replace("23", "57"))]
    result = check_contamination(rows, {"exam": [ITEM]})
    dropped = result.drop("exact")
    assert dropped.kept_ids == ("b", "d")
    assert dropped.reasons == {"a": "contamination: identical exam/0", "c": "contamination: contained exam/0"}
    assert result.drop().kept_ids == ("b",)
    assert result.drop().by_reason["contamination: near exam"] == 1
    after = [r for r in rows if r.id in result.drop().kept_ids]
    assert check_contamination(after, {"exam": [ITEM]}).hits == ()


def test_findings_carry_severity_and_evidence() -> None:
    findings = check_contamination([row("a", ITEM)], {"exam": [ITEM]}).findings()
    assert [(f.severity, f.row_id, f.message) for f in findings] == [("error", "a", "prompt is the prompt of exam/0")]
    assert json.dumps(to_json(findings[0]))


def test_every_identical_row_is_hit_and_none_is_left_out() -> None:
    frame = pl.DataFrame({"problem": [ITEM] * 3000 + [OTHER], "target": ["ok"] * 3001})
    result = check_contamination(frame, {"exam": [ITEM, ITEM, OTHER + " Why?"]})
    assert result.summary["rows_exact"] == 3000
    assert len(result.hits) >= 3000
    assert len(result.drop("exact").dropped_rows) == 3000


def test_several_evals_are_counted_apart() -> None:
    rows = [row("a", ITEM), row("b", OTHER)]
    evals = {"one": [ITEM], "two": [OTHER], "three": ["Something else is asked in here, friend."]}
    by_eval = check_contamination(rows, evals).by_eval
    assert [by_eval[n]["rows_exact"] for n in ("one", "two", "three")] == [1, 1, 0]


@pytest.mark.parametrize("bad", [{"confirmed": 0.2}, {"review": 0.1}, {"confirmed": 1.2}])
def test_thresholds_out_of_order_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(DataError, match="review"):
        check_contamination([], {}, **bad)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(DataError, match="'treshold'"):
        check_contamination([], {}, treshold=0.5)


# ---------------------------------------------------------------- odd data


def test_cjk_and_right_to_left_items_are_found() -> None:
    chinese = "小明在超市买了三十七个苹果和十二个橙子，然后把其中的一半送给了住在隔壁的小红。他还剩多少个水果？"
    arabic = "اشترت سلمى ثلاث تفاحات و أربع برتقالات من السوق ثم أعطت نصفها إلى جارتها في المساء قبل العشاء"
    rows = [row("a", f"请回答：{chinese} 谢谢"), row("b", arabic), row("c", OTHER)]
    hits = check_contamination(rows, {"exam": [chinese, arabic]}).hits
    assert [(h.row_id, h.kind) for h in hits] == [("a", "contained"), ("b", "identical")]


def test_empty_texts_surrogates_and_very_long_rows_do_not_stop_it() -> None:
    rows = [row("a", ""), row("b", "\ud800 " + ITEM), row("c", "word " * 200_000 + ITEM), row("d", "", "")]
    hits = check_contamination(rows, {"exam": [ITEM, "", "\udfff"]}).hits
    assert [(h.row_id, h.kind) for h in hits] == [("b", "contained"), ("c", "contained")]


def test_the_longest_common_run() -> None:
    assert common_run("The cat sat on the mat.", "a dog: cat SAT on, the floor") == "cat sat on, the"
    assert common_run("one", "two") == ""
    assert common_run("", "") == ""


# ---------------------------------------------------------------- measured on planted items


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    spec = util.spec_from_file_location("audit_corpus", REPO / "bench" / "audit" / "corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = Path(os.environ.get("VERITUNE_GSM8K", REPO.parent / "shared" / "data" / "gsm8k"))
    if not (folder / "train.jsonl").exists():
        pytest.skip("GSM8K is not here: set VERITUNE_GSM8K to the folder with train.jsonl and test.jsonl")
    return module


@pytest.fixture(scope="module")
def planted(corpus: ModuleType) -> tuple[pl.DataFrame, list[str]]:
    tests = corpus.load("test")
    return corpus.plant(corpus.make(6000, seed=3), tests, 360, seed=3), [q for q, _ in tests]


def test_precision_and_recall_on_planted_items(corpus: ModuleType, planted: tuple[pl.DataFrame, list[str]]) -> None:
    frame, items = planted
    result = check_contamination(frame, {"gsm8k_test": items})
    flagged = np.zeros(len(frame), bool)
    flagged[result.row_P[result.status_P <= 1]] = True
    real = frame["label"].is_in([f"o{i}.0" for i in corpus.REAL_COPIES]).to_numpy()
    truth = frame["leak"].to_numpy() >= 0
    assert (flagged & (truth | real)).sum() / flagged.sum() >= 0.99
    assert flagged[truth].mean() >= 0.97
    how = np.array(frame["how"].to_list())
    for kind in ("verbatim", "surface", "wrapped", "inside", "quoted"):
        exact = np.zeros(len(frame), bool)
        exact[result.row_P[result.status_P == 0]] = True
        assert exact[how == kind].all(), kind


def test_train_and_test_of_gsm8k_share_no_item_and_a_few_near_copies(corpus: ModuleType) -> None:
    train, test = corpus.load("train"), corpus.load("test")
    frame = pl.DataFrame({"problem": [q for q, _ in train], "target": [a for _, a in train]})
    result = check_contamination(frame, {"test": [q for q, _ in test]})
    assert result.summary["rows_exact"] == 0
    found = {(h.row, h.item) for h in result.hits if h.status == "confirmed"}
    assert found <= set(corpus.REAL_COPIES.items())
    assert len(found) >= 4
    assert result.summary["rows_review"] <= 40  # of 7,473


def test_a_shared_instruction_is_no_leak(corpus: ModuleType) -> None:
    train, test = corpus.load("train"), corpus.load("test")
    template = (
        "You are a careful tutor. Solve the following problem step by step, explain every step in one short sentence, "
        "and put the final answer after the hash marks.\n\nProblem: {}\n\nRemember to check your result."
    )
    rows = [row(i, template.format(q), a) for i, (q, a) in enumerate(train[:4000])]
    result = check_contamination(rows, {"test": [template.format(q) for q, _ in test]})
    assert result.summary["rows_exact"] == 0
    assert result.summary["rows_confirmed"] <= 8  # the near-copies that are really there
    assert result.summary["by_kind"]["ngram"] <= 8


def test_threads_change_nothing(planted: tuple[pl.DataFrame, list[str]]) -> None:
    frame, items = planted
    evals = {"a": [*items[:700], "", "数学题是一个很好的问题数学题是一个"], "b": items[500:]}
    one, three = (check_contamination(frame, evals, threads=threads) for threads in (1, 3))
    for name in ("row_P", "entry_P", "part_P", "kind_P", "status_P", "score_P"):
        np.testing.assert_array_equal(getattr(one, name), getattr(three, name), err_msg=name)
    assert one.hits == three.hits


def test_row_order_does_not_change_the_hits(planted: tuple[pl.DataFrame, list[str]]) -> None:
    frame, items = planted
    frame = frame.with_row_index("id")
    order = np.random.default_rng(0).permutation(len(frame))
    a = check_contamination(frame, {"t": items}).hits
    b = check_contamination(frame[order], {"t": items}).hits
    assert {(h.row_id, h.item, h.kind, h.score) for h in a} == {(h.row_id, h.item, h.kind, h.score) for h in b}


def test_counting_in_a_sample_finds_what_counting_in_all_rows_finds(
    planted: tuple[pl.DataFrame, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    frame, items = planted
    whole = check_contamination(frame, {"t": items})
    monkeypatch.setattr(index, "SAMPLED", 1000)
    sampled = check_contamination(frame, {"t": items})
    a = set(whole.row_P[whole.status_P <= 1].tolist())
    b = set(sampled.row_P[sampled.status_P <= 1].tolist())
    assert len(a & b) >= 0.97 * len(a | b)


def test_the_sample_of_a_templates_rows_and_of_one_row_repeated_is_drawn_in_proportion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index, "SAMPLED", 500)
    template = [
        f"Look at the lamp on quay {i:05d} and say whether it is safe to light it tonight." for i in range(3000)
    ]
    words = [f"{i:x}" for i in range(800)]
    for texts in (template, template[:1] * 3000, template[:1500] + template[:1] * 1500, words * 4):
        rows = TextBuffer.from_strings(texts)
        drawn, stride = index.sample(rows)
        assert abs(len(drawn) * stride - len(texts)) <= stride
        again, _ = index.sample(rows.take(np.random.default_rng(0).permutation(len(texts))))
        assert sorted(drawn.row(i) for i in range(len(drawn))) == sorted(again.row(i) for i in range(len(again)))
    half, _ = index.sample(TextBuffer.from_strings(template[:1500] + template[:1] * 1500))
    assert 0.4 < np.mean([half.row(i) == template[0] for i in range(len(half))]) < 0.6


def test_an_item_that_a_third_of_the_rows_hold_is_found_and_a_template_is_no_leak() -> None:
    def found(texts: list[str], items: list[str]) -> ContaminationResult:
        columns = FamilyColumns([str(i) for i in range(len(texts))], TextBuffer.from_strings(texts))
        return check_contamination(columns, {"t": items})

    item = "How many boats stay in the harbor when three leave in the morning and five come back with the tide?"
    other = "Who is mayor of town {} on coast {}?"
    wrap = f"Task {{}}: {item.upper()} In {{}} words."
    texts = [(wrap if i % 3 == 0 else other).format(i, 7 * i) for i in range(900)]
    held = found(texts, [item])
    assert held.gate().status == "failed" and held.summary["rows_exact"] == 300
    form = "Look at the {} lamp on the long quay and say in one sentence whether it is safe to light it, number {}"
    texts = [form.format("abcde"[i % 5], i) for i in range(900)]
    items = [form.format("abcde"[i % 3], -1 - i) for i in range(40)]
    gate = found(texts, items).gate()
    assert gate.status == "passed" and "0 near-copies" in gate.message
    assert "40 prompts have too few words of their own" in gate.message
    held = found([*texts, f"Please help: {items[7]}!"], items)
    assert (held.summary["rows_exact"], held.summary["rows_confirmed"]) == (1, 0)


# ---------------------------------------------------------------- every item, operators, canned answers

MAIL = (
    "{} may be building toward specialised capability teams this spring. Companies at this stage often hit a talent "
    "bottleneck before they hit a budget limit, and our engineers start within {} on a monthly contract."
)


def pair(i: object, question: str, answer: str) -> Row:
    return Row(str(i), (Message("user", question), Message("assistant", answer)))


def test_every_contaminated_item_is_named_with_its_best_row() -> None:
    """One row is near to two items: its closest is not the only one that is named."""
    fill = [
        pair(f"f{i}", f"Write text number {i} on ropes.", f"Rope {i} is kept dry under oil cloth.") for i in range(40)
    ]
    rows = [pair("t0", "Write a text.", MAIL.format("Stripe", "two weeks")), *fill]
    exam = [
        pair("copy_A", "Brief A, please.", MAIL.format("Notion", "two weeks")),
        pair("copy_B", "Brief B, please.", MAIL.format("Figma", "ten days")),
        pair("clean", "Brief C, please.", "Snow on the pass closes the road from November until April every year."),
    ]
    result = check_contamination(rows, {"exam": exam})
    assert {(h.item_id, h.row_id) for h in result.items} == {("copy_A", "t0"), ("copy_B", "t0")}
    assert {f.evidence["item_id"] for f in result.findings()} == {"copy_A", "copy_B"}
    assert result.by_eval["exam"]["items_confirmed"] == 2


SOLVE = "Solve the equation for x and show every step of it: {} = 0"


@pytest.mark.parametrize(
    ("item", "other"),
    [
        ("x^2 + 5*x - 6", "x^2 - 5*x + 6"),
        ("3/4 + 2/5 - 1/2", "3/4 - 2/5 + 1/2"),
        ("x^2 + 5x - 6", "x^2 − 5x − 6"),
        ("2 \\times 7 - x", "2 \\div 7 - x"),
        ("y < 5 and x", "y > 5 and x"),
    ],
)
def test_other_operators_make_another_exercise(item: str, other: str) -> None:
    fill = [f"Describe how a lathe number {i} is kept dry in a workshop." for i in range(40)]
    rows = [pair(i, text, "Yes.") for i, text in enumerate([SOLVE.format(other), *fill])]
    result = check_contamination(rows, {"exam": [SOLVE.format(item)]})
    assert [h.status for h in result.hits] == ["review"]
    hit = result.hits[0]
    assert hit.score < 1
    assert hit.operators is not None
    assert f"with {hit.operators[1]!r} where the item has {hit.operators[0]!r}" in result.findings()[0].message
    assert any(sign in hit.span for sign in "+-*/<>") or "div" in other, "the span shows the operators"
    assert not result.drop().reasons


def test_hyphens_units_and_bold_type_are_no_operators() -> None:
    same = [
        ("A 20-page book costs 5 dollars", "A 20 page book costs 5 dollars"),
        ("He works 8 hours/day for 3 days", "He works 8 hours a day for 3 days"),
        ("The total is **12** apples", "The total is 12 apples"),
        ("48/2 = <<48/2=24>>24 clips", "48/2 = 24 clips"),
        ("2 + 5 and later 2 - 5", "2 - 5"),
    ]
    assert [different_operators(a, b) for a, b in same] == [None] * len(same)
    assert different_operators("x = -3", "x = 3") == ("x =- 3", "x = 3")


REFUSAL = "I'm sorry, but as a language model I can not help with solving this kind of question for you today."


def test_canned_answers_under_different_prompts_are_a_warning_and_no_leak() -> None:
    rows = [
        pair(i, f"Question {i}: {word}?", REFUSAL) for i, word in enumerate(("why rain", "who sails", "what burns"))
    ]
    result = check_contamination(rows, {"exam": [pair("e", "How do cooks peel garlic by the kilo?", REFUSAL)]})
    assert result.gate().status == "passed"
    assert "3 rows give a canned answer that eval items give too" in result.gate().message
    assert {f.severity for f in result.findings()} == {"warning"}
    assert result.findings()[0].message == "target gives a canned answer, which is also the answer of exam/e"
    assert result.by_eval["exam"] | {"items": 1} == {
        "items": 1, "items_exact": 0, "rows_exact": 0, "items_confirmed": 0, "rows_confirmed": 0,
        "items_review": 0, "rows_review": 0, "items_canned": 1, "rows_canned": 3,
    }  # fmt: skip


def test_an_answer_that_stands_beside_its_own_prompt_stays_a_leak_however_often_it_stands_elsewhere() -> None:
    """The row that holds the item is no canned answer; neither is an answer copied under one other prompt."""
    question = "How do the cooks of the harbor kitchen peel garlic by the kilo?"
    rows = [
        pair(i, f"Question {i}: {word}?", REFUSAL) for i, word in enumerate(("why rain", "who sails", "what burns"))
    ]
    held = check_contamination([*rows, pair("leak", question, REFUSAL)], {"exam": [pair("e", question, REFUSAL)]})
    assert held.gate().status == "failed"
    assert {h.row_id for h in held.hits if h.status == "exact"} == {"leak"}
    once = check_contamination(rows[:1], {"exam": [pair("e", question, REFUSAL)]})
    assert once.gate().status == "failed"


def test_a_study_of_questions_with_many_equal_refusals_passes_the_gate(gsm8k: Path) -> None:
    questions = [json.loads(line) for line in (gsm8k / "train.jsonl").read_text("utf-8").splitlines()[:90]]
    rows = [pair(i, q["question"], REFUSAL if i % 3 == 0 else q["answer"]) for i, q in enumerate(questions)]
    families = find_families(rows, threshold=SPLIT_SAFE_THRESHOLD)
    assert families.summary["originals"] >= 85, "equal refusals do not make one family"
    zone_of = split_zones(rows, dict(zip(families.row_ids, families.families))).zone_of
    trained = [r for r in rows if zone_of[r.id] == "seen"]
    held = [r for r in rows if zone_of[r.id] == "stranger"]
    gate = check_contamination(trained, {"zone stranger": held}).gate()
    assert gate.status == "passed"
    assert "canned" in gate.message

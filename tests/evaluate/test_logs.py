"""Readers of foreign score files. The lm-eval and Inspect files in scores/ were written by lm-eval 0.4.13 and
Inspect 0.3.285 themselves (paths and tracebacks taken out)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs import Reading, read, read_scores, sniff

SCORES = Path(__file__).parent / "scores"
GEN = next(SCORES.glob("samples_sums_gen_*.jsonl"))
MC = next(SCORES.glob("samples_sums_mc_*.jsonl"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def own(i: int, **changes) -> str:
    row = {"run_id": "r0", "eval": "sums", "item_id": f"q{i}", "value": 1.0, "reason": None, "family": None}
    return json.dumps({**row, **changes})


def test_each_format_is_told_from_its_content(tmp_path):
    assert sniff(GEN) == "lm-eval"
    assert sniff(SCORES / "inspect_sums.eval") == sniff(SCORES / "inspect_sums.json") == "inspect"
    assert sniff(write(tmp_path / "a", own(1))) == "scores"
    assert sniff(write(tmp_path / "b", "id,score\n1,1\n")) == "csv"
    assert sniff(write(tmp_path / "c", '{"id": 1, "score": 1}\n')) == "jsonl"
    assert sniff(write(tmp_path / "d", '[{"id": 1, "score": 1}]')) == "json"


def test_lm_eval_metric_filter_and_task_are_read():
    found = read(MC, Reading(metric="acc"))
    raw = [json.loads(line) for line in MC.read_text().splitlines()]
    assert found.eval == "sums_mc"
    assert list(found.value) == [row["acc"] for row in raw]
    assert list(found.item) == [str(row["doc_id"]) for row in raw]
    assert list(found.content) == [row["doc_hash"] for row in raw]


@pytest.mark.parametrize(
    ("path", "says"),
    [(MC, "one metric, found 2: acc, acc_norm"), (GEN, "one filter, found 2: flexible-extract, strict-match")],
)
def test_an_ambiguous_lm_eval_file_lists_the_choices(path, says):
    with pytest.raises(ScoreError, match=says):
        read(path)


def test_lm_eval_failed_extraction_is_not_a_wrong_answer():
    found = read(GEN, Reading(filter="strict-match"))
    assert set(found.value) == {None}
    assert set(found.reason) == {"extraction_failed"}


def test_lm_eval_aggregates_are_refused_with_the_file_to_use():
    with pytest.raises(ScoreError, match=r"aggregated results.*samples_\*\.jsonl"):
        read(SCORES / "results_lm_eval.json")


def test_inspect_values_keep_crashes_and_no_answers_apart():
    found = read(SCORES / "inspect_sums.json")
    by_item = dict(zip(found.item, zip(found.value, found.reason)))
    assert found.eval == "sums"
    assert by_item["q0"] == (1.0, None)
    assert by_item["q1"] == (0.0, None)
    assert by_item["q3"] == (None, "no_answer")
    assert by_item["q4"] == (0.5, None)
    assert by_item["q7"] == (None, "crashed")


def test_inspect_zip_and_json_name_the_same_items_and_contents():
    zipped, plain = read(SCORES / "inspect_sums.eval"), read(SCORES / "inspect_sums.json")
    assert sorted(zip(zipped.item, zipped.content)) == sorted(zip(plain.item, plain.content))


def test_inspect_epochs_are_samples_of_one_item():
    found = read(SCORES / "inspect_sums_epochs.eval")
    assert len(found.item) == 24
    assert set(found.sample) == {"1", "2"}


def test_inspect_with_two_scorers_asks_which():
    with pytest.raises(ScoreError, match="one scorer, found 2: graded, match"):
        read(SCORES / "inspect_two_scorers.eval")
    assert len(read(SCORES / "inspect_two_scorers.eval", Reading(metric="match")).item) == 12


def test_csv_columns_are_found_or_named(tmp_path):
    path = write(tmp_path / "a.csv", "question_id,family,seed,rater,score\nq1,f1,0,x,0.5\nq1,f1,0,y,true\nq2,f2,0,x,\n")
    found = read(path)
    assert list(found.item) == ["q1", "q1", "q2"]
    assert list(found.value) == [0.5, 1.0, None]
    assert list(found.family) == ["f1", "f1", "f2"]
    assert (list(found.run), list(found.rater)) == (["0"] * 3, ["x", "y", "x"])
    named = write(tmp_path / "b.csv", "key;points\nk;3\n")
    assert list(read(named, Reading(id="key", metric="points")).value) == [3.0]


def test_a_file_without_runs_is_one_run_named_after_the_file(tmp_path):
    assert set(read(write(tmp_path / "seed3.csv", "id,score\na,1\nb,0\n")).run) == {"seed3"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "", "found an empty file"),
        ("a.csv", "hello world\n", "found the first line 'hello world'"),
        ("a.csv", "id,score\na,1,2\n", "row 1: expected 2 cells, found 3"),
        ("a.csv", "id,score\na,nan\n", "row 1, score: expected a number, true, false or null, found nan"),
        ("a.csv", "id,score\na,good\n", "found 'good'"),
        ("a.csv", "id,score\n,1\n", "row 1: expected an id in column 'id'"),
        ("a.csv", "name,score\na,1\n", "expected a column with the id"),
        ("a.csv", "id,points\na,1\n", "expected a column with the score"),
        ("a.csv", "id,score,correct\na,1,1\n", "expected one score column, found 2: correct, score"),
        ("a.jsonl", '{"id": 1, "score": NaN}\n', "row 1, score: expected a number"),
        ("a.jsonl", '{"id": 1, "score": 1}\n{"id": 2,\n', "line 2: expected a JSON object"),
        ("a.jsonl", '{"id": 1, "score": 1}\n[2]\n', "line 2: expected a JSON object, found list"),
        ("a.json", "[1, 2]", "entry 1: expected an object, found int"),
        ("a.json", '{\n "a": 1}', "found a JSON document of dict"),
        ("a.eval", "PK\x03\x04 no zip", "not JSON"),
    ],
)
def test_a_bad_file_says_where_and_what(tmp_path, name, text, says):
    with pytest.raises(ScoreError) as error:
        read(write(tmp_path / name, text))
    assert says in str(error.value)


def test_an_absent_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ScoreError, match="found no file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(ScoreError, match="found a folder"):
        read(tmp_path)


def test_own_scores_with_two_evals_ask_which(tmp_path):
    path = write(tmp_path / "a.jsonl", own(1) + "\n" + own(1, eval="other") + "\n")
    with pytest.raises(ScoreError, match="one eval, found 2: other, sums"):
        read(path)
    assert read(path, Reading(eval="other")).item == ["q1"]


def test_own_scores_come_back_as_the_records_they_were(tmp_path):
    path = write(tmp_path / "a.jsonl", own(1, value=None, reason="truncated", parts={"sample": 2}) + "\n")
    (score,) = read_scores(path)
    assert (score.run_id, score.eval, score.item_id, score.value) == ("r0", "sums", "q1", None)
    assert (score.reason, score.parts) == ("truncated", {"sample": "2"})


@pytest.mark.parametrize("broken", ["NaN", '"x"'])
def test_large_files_read_the_same_as_small_ones_and_name_the_same_line(tmp_path, monkeypatch, broken):
    lines = [own(i, value=i % 2, family=f"f{i // 3}", output="é" * 9) for i in range(200)]
    path = write(tmp_path / "a.jsonl", "\n".join(lines) + "\n")
    table = write(tmp_path / "b.jsonl", "\n".join(json.dumps({"id": i, "score": i / 7}) for i in range(200)))
    slow, slow_table = read(path), read(table)
    monkeypatch.setattr("veritune.evaluate.logs.table._LARGE_BYTES", 1)
    assert read(path) == slow
    assert read(table).value == slow_table.value
    assert read(table).item == slow_table.item
    bad = write(tmp_path / "c.jsonl", "\n".join([*lines[:50], lines[50].replace('"value": 0', f'"value": {broken}')]))
    with pytest.raises(ScoreError, match="row 51, value"):
        read(bad)


# ---------------------------------------------------------------- options that a format cannot honour


@pytest.mark.parametrize(
    ("file", "option"),
    [
        (MC, {"family": "nonsense"}),
        (MC, {"id": "nonsense"}),
        (MC, {"run": "nonsense"}),
        (MC, {"rater": "nonsense"}),
        (MC, {"sample": "nonsense"}),
        (MC, {"system": "acc"}),
        (MC, {"filter": "nonsense"}),
        (MC, {"eval": "another"}),
        (SCORES / "inspect_sums.eval", {"family": "nonsense"}),
        (SCORES / "inspect_sums.eval", {"id": "nonsense"}),
        (SCORES / "inspect_sums.eval", {"filter": "none"}),
        (SCORES / "inspect_sums.eval", {"metric": "nonsense"}),
        (SCORES / "inspect_sums.eval", {"eval": "another"}),
        ("own", {"metric": "value"}),
        ("own", {"filter": "none"}),
        ("own", {"family": "topic"}),
        ("own", {"family": "family"}),
        ("own", {"sample": "sample"}),
        ("own", {"eval": "another"}),
        ("table", {"filter": "none"}),
        ("table", {"family": "nonsense"}),
        ("table", {"metric": "score.inner"}),
        ("evals", {}),
        ("evals", {"eval": "c"}),
    ],
)
def test_an_option_that_a_format_cannot_honour_is_an_error(tmp_path, file, option):
    texts = {
        "own": own(1),
        "table": "id,score\na,1\nb,0\n",
        "evals": "id,score,eval\na,1,a\na,0,b\n",
    }
    path = write(tmp_path / "file", texts[file]) if isinstance(file, str) else file
    metric = {"metric": "acc"} if file is MC else {}
    with pytest.raises(ScoreError) as error:
        read(path, Reading(**(metric | option)))
    assert all(str(value) in str(error.value) for value in option.values())


def test_families_and_ids_come_from_a_documents_fields_and_a_samples_metadata(tmp_path):
    field = next(iter(json.loads(MC.read_text().splitlines()[0])["doc"]))
    found = read(MC, Reading(metric="acc", family=field))
    assert list(found.family) == [str(json.loads(line)["doc"][field]) for line in MC.read_text().splitlines()]
    assert list(read(MC, Reading(metric="acc", family=f"doc.{field}")).family) == list(found.family)
    samples = [
        {"id": i, "input": "q", "target": "t", "metadata": {"passage": f"p{i // 2}"}, "scores": {"m": {"value": 0.5}}}
        for i in range(4)
    ]
    log = write(tmp_path / "log.json", json.dumps({"eval": {"task": "t"}, "plan": {}, "samples": samples}))
    assert list(read(log, Reading(family="passage")).family) == ["p0", "p0", "p1", "p1"]


def test_outputs_without_scores_are_refused(tmp_path):
    row = {"doc_id": 0, "filtered_resps": ["x"], "filter": "none", "metrics": ["bypass"], "bypass": 999}
    with pytest.raises(ScoreError, match="predict_only"):
        read(write(tmp_path / "samples_x.jsonl", json.dumps(row)))
    both = row | {"metrics": ["bypass", "acc"], "acc": 1.0}
    assert read(write(tmp_path / "b.jsonl", json.dumps(both))).metric == "acc"


@pytest.mark.parametrize("value", [float("nan"), None, "NaN"])
def test_an_inspect_sample_without_a_value_is_not_scored(tmp_path, value):
    samples = [
        {"id": i, "input": "q", "target": "t", "scores": {"m": {"value": v}}} for i, v in enumerate(("C", value))
    ]
    log = write(tmp_path / "log.json", json.dumps({"eval": {"task": "t"}, "plan": {}, "samples": samples}))
    found = read(log)
    assert (list(found.value), list(found.reason)) == ([1.0, None], [None, "not_scored"])


# ---------------------------------------------------------------- direction


def lm_eval(path: Path, metric: str, **more) -> Path:
    rows = [
        {"doc_id": i, "filtered_resps": ["x"], "filter": "none", "metrics": [metric], metric: i / 9} for i in range(3)
    ]
    return write(path, "\n".join(json.dumps(row | more) for row in rows))


STAMP = "2026-03-01T10-00-00.000000"


@pytest.mark.parametrize(
    ("metric", "rows", "results", "up"),
    [
        ("wer", {}, None, False),
        ("acc", {}, None, True),
        ("style", {}, None, None),
        ("style", {"higher_is_better": {"style": False}}, None, False),
        ("style", {"higher_is_better": True}, None, True),
        ("style", {}, {"higher_is_better": {"asr": {"style": False}}}, False),
        ("style", {}, {"higher_is_better": {"other": {"style": False}}}, None),
        ("style", {}, {"configs": {"asr": {"metric_list": [{"metric": "style", "higher_is_better": False}]}}}, False),
        ("style", {}, {"higher_is_better": {"asr": {"style": None}}}, None),
        ("wer", {}, {"higher_is_better": {"asr": {"wer": True}}}, None),  # lm-eval's default contradicts the definition
        ("style", {"higher_is_better": True}, {"higher_is_better": {"asr": {"style": False}}}, None),
    ],
)
def test_lm_evals_direction_is_read_from_rows_results_or_the_definition(tmp_path, metric, rows, results, up):
    path = lm_eval(tmp_path / f"samples_asr_{STAMP}.jsonl", metric, **rows)
    if results is not None:
        write(tmp_path / f"results_{STAMP}.json", json.dumps(results))
    write(tmp_path / "results_broken.json", "{")
    found = read(path)
    assert (found.eval, found.metric, found.higher_is_better) == ("asr", metric, up)
    assert read(path, Reading(higher_is_better=True)).higher_is_better is True


def test_the_results_of_another_run_in_the_folder_do_not_speak_for_this_one(tmp_path):
    path = lm_eval(tmp_path / f"samples_asr_{STAMP}.jsonl", "style")
    write(tmp_path / f"results_{STAMP}.json", json.dumps({"higher_is_better": {"asr": {"style": False}}}))
    write(tmp_path / "results_2020-01-01T00-00-00.json", json.dumps({"higher_is_better": {"asr": {"style": True}}}))
    assert read(path).higher_is_better is False


@pytest.mark.parametrize(
    ("name", "up"),
    [("WER", False), ("asr.wer", False), ("wer_reduction", None), ("word-perplexity", False), ("acc,none", True),
     ("graded/toxicity", False), ("score", None), ("loss_avoided", None), ("rouge-L".replace("-", ""), True)],
)  # fmt: skip
def test_only_a_whole_name_has_a_known_direction(name, up):
    assert known_direction(name) is up


def test_inspect_grades_are_correctness_and_other_numbers_are_what_their_scorer_is(tmp_path):
    for value, scorer, up in (("C", "judge", True), (0.4, "judge", None), (0.4, "toxicity", False)):
        samples = [{"id": 1, "input": "q", "target": "t", "scores": {scorer: {"value": value}}}]
        log = write(tmp_path / "log.json", json.dumps({"eval": {"task": "t"}, "plan": {}, "samples": samples}))
        assert read(log).higher_is_better is up


def test_a_studys_scores_are_higher_is_better_unless_they_bear_a_losss_name(tmp_path):
    assert read(write(tmp_path / "a", own(1))).higher_is_better is True
    assert read(write(tmp_path / "b", own(1, eval="perplexity"))).higher_is_better is None


# ---------------------------------------------------------------- names and nested columns


def test_a_table_is_named_by_a_column_of_its_own_and_never_by_its_file(tmp_path):
    assert read(write(tmp_path / "tuned.csv", "id,score\na,1\n")).eval == ""
    assert read(write(tmp_path / "a.csv", "id,score,task\na,1,sums\nb,0,sums\n")).eval == "sums"
    assert read(write(tmp_path / "b.csv", "id,score,task\na,1,sums\nb,0,times\n")).eval == ""
    path = tmp_path / "b.csv"
    assert read(path, Reading(eval="times")).item == ["b"]
    with pytest.raises(ScoreError, match="expected the eval 'style', found sums, times"):
        read(path, Reading(eval="style"))
    both = read(write(tmp_path / "c.csv", "id,score,eval\na,1,x\nb,0,x\na,0,y\n"), Reading(eval="x"))
    assert (both.eval, both.item) == ("x", ["a", "b"])


def test_a_dotted_name_leads_into_objects_and_a_literal_column_comes_first(tmp_path):
    rows = [{"id": "a", "t": {"u": {"score": 0.25}}, "t.v": 0.5}, {"id": "b", "t": {"u": {"score": 1}}, "t.v": 0.75}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert list(read(path, Reading(metric="t.u.score")).value) == [0.25, 1.0]
    assert list(read(path, Reading(metric="t.v")).value) == [0.5, 0.75]
    with pytest.raises(ScoreError, match=r"column 't.w', found id, t.u, t.v"):
        read(path, Reading(metric="t.w"))

"""Readers of foreign score files. The lm-eval and Inspect files in scores/ were written by lm-eval 0.4.13 and
Inspect 0.3.285 themselves (paths and tracebacks taken out)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veritune.errors import ScoreError
from veritune.evaluate.imports import Reading, read, read_scores, sniff

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
        ("a.eval", "PK\x03\x04 no zip", "no JSON"),
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
    monkeypatch.setattr("veritune.evaluate.imports._LARGE_BYTES", 1)
    assert read(path) == slow
    assert read(table).value == slow_table.value
    assert read(table).item == slow_table.item
    bad = write(tmp_path / "c.jsonl", "\n".join([*lines[:50], lines[50].replace('"value": 0', f'"value": {broken}')]))
    with pytest.raises(ScoreError, match="row 51, value"):
        read(bad)

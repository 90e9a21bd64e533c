"""Harness formats beyond one file of numbers: filters without names, epochs and reducers, metrics that are no numbers,
lighteval, HELM, OpenAI evals, promptfoo, EvalPlus. The lm-eval group and the Inspect logs with several epochs were
written by lm-eval 0.4.13 and Inspect 0.3.285; the others have the shape that the tools' own code writes."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest

from veritune.errors import ScoreError
from veritune.evaluate.logs import FORMATS, Reading, eval_of, read, sniff
from veritune.evaluate.logs.options import flag
from veritune.evaluate.logs.reducers import reducer

SCORES = Path(__file__).parent / "scores"
OLD = SCORES / "lm_eval_0_4_0_sums.json"
THREE = SCORES / "inspect_three_reducers.eval"
HELM = SCORES / "helm_run" / "per_instance_stats.json"
BASE = SCORES / "lm_eval_group" / "base"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def mean(columns) -> float:
    """The mean over items of the mean over an item's scored samples."""
    by_item = defaultdict(list)
    for item, value in zip(columns.item, columns.value):
        if value is not None:
            by_item[item].append(value)
    return math.fsum(math.fsum(v) / len(v) for v in by_item.values()) / len(by_item)


def stated(task: str) -> dict[str, float]:
    return json.loads(next(BASE.glob("results_*.json")).read_text())["results"][task]


# ---------------------------------------------------------------- every format and every option

EXAMPLES = {
    "scores": None,
    "lm-eval": next(SCORES.glob("samples_sums_mc_*.jsonl")),
    "inspect": SCORES / "inspect_sums.json",
    "lighteval": SCORES / "lighteval_new.parquet",
    "helm": HELM,
    "openai-evals": SCORES / "openai_evals.jsonl",
    "promptfoo": SCORES / "promptfoo.json",
    "evalplus": SCORES / "toy_eval_results.json",
    "csv": None,
    "jsonl": None,
    "json": None,
    "parquet": None,
}
NEEDS = {
    "lm-eval": {"metric": "acc"},
    "lighteval": {"metric": "acc"},
    "helm": {"metric": "exact_match", "filter": "test"},
    "openai-evals": {"metric": "match"},
    "promptfoo": {"system": "openai:large", "metric": "pass"},
    "evalplus": {"metric": "plus"},
}


def example(name: str, folder: Path) -> Path:
    if EXAMPLES[name] is not None:
        return EXAMPLES[name]
    texts = {
        "scores": '{"run_id": "r", "eval": "e", "item_id": "a", "value": 1}\n',
        "csv": "id,score\na,1\n",
        "jsonl": '{"id": "a", "score": 1}\n',
        "json": '[{"id": "a", "score": 1}]',
    }
    if name in texts:
        return write(folder / "file", texts[name])
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"], "score": [1.0]}), folder / "file.parquet")
    return folder / "file.parquet"


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_an_example_that_is_told_by_its_content(tmp_path, name):
    path = example(name, tmp_path)
    assert sniff(path) == name
    found = read(path, Reading(**NEEDS.get(name, {})))
    assert found.format == name
    assert len(found.item) == len(found.value) == len(found.run) > 0


@pytest.mark.parametrize("option", [f.name for f in fields(Reading) if f.name != "higher_is_better"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_option_that_names_nothing_is_refused_by_name_in_every_format(tmp_path, name, option):
    """A wrong name is an error of the option, not a comparison of something else. `--eval` names an unnamed file."""
    asked = Reading(**(NEEDS.get(name, {}) | {option: "nonsense"}))
    path = example(name, tmp_path)
    if option == "eval" and not read(path, Reading(**NEEDS.get(name, {}))).eval:
        assert read(path, asked).eval == "nonsense"
        return
    with pytest.raises(ScoreError) as error:
        read(path, asked)
    message = str(error.value)
    assert "nonsense" in message
    assert option not in FORMATS[name].obeys or flag(option) in message or "expected" in message


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_obeys_a_stated_direction(tmp_path, name):
    asked = Reading(**NEEDS.get(name, {}), higher_is_better=False)
    assert read(example(name, tmp_path), asked).higher_is_better is False


# ---------------------------------------------------------------- lm-eval, 0.4.0 to today


def test_filters_without_names_are_counted_and_chosen_by_number():
    with pytest.raises(ScoreError) as error:
        read(OLD)
    assert "found 2 without names: 6 documents, each 2 times" in str(error.value)
    assert "--filter 1 or --filter 2" in str(error.value)
    assert "sample" not in str(error.value)
    first, second = (read(OLD, Reading(filter=k)) for k in "12")
    assert first.value == [1, 0, 0, 1, 0, 0] and second.value == [0, 0, 1, 0, 0, 1]
    with pytest.raises(ScoreError, match="expected the filter '3', found 2 without names"):
        read(OLD, Reading(filter="3"))


def test_old_rows_are_lines_too_and_their_documents_are_hashed_as_lm_eval_does(tmp_path):
    rows = json.loads(OLD.read_text())
    lines = write(tmp_path / "samples_sums_2024-07-01T00-00-00.jsonl", "\n".join(map(json.dumps, rows)))
    found = read(lines, Reading(filter="2", family="topic"))
    assert (found.eval, list(found.family)) == ("sums", ["t0", "t0", "t1", "t1", "t2", "t2"])
    assert found.content == read(OLD, Reading(filter="2")).content
    new = [json.loads(x) for x in EXAMPLES["lm-eval"].read_text().splitlines()]
    hashed = [row.pop("doc_hash") for row in new]
    old = write(tmp_path / "samples_sums_mc_2024-07-01T00-00-00.jsonl", "\n".join(map(json.dumps, new)))
    assert read(old, Reading(metric="acc")).content == hashed


def test_unnamed_filters_take_the_names_of_the_results_file_only_where_its_figures_agree(tmp_path):
    rows = json.loads(OLD.read_text())
    for row in rows[6:9]:
        row["exact_match"] = 1.0
    stamp = "2024-07-01T00-00-00"
    file = write(tmp_path / f"samples_sums_{stamp}.jsonl", "\n".join(map(json.dumps, rows)))
    figures = {"exact_match,strict": 1 / 3, "exact_match_stderr,strict": 0.2, "exact_match,flexible": 4 / 6}
    results = tmp_path / f"results_{stamp}.json"
    write(results, json.dumps({"results": {"sums": figures}}))
    with pytest.raises(ScoreError, match="1 is strict; 2 is flexible"):
        read(file)
    assert mean(read(file, Reading(filter="flexible"))) == pytest.approx(4 / 6)
    write(results, json.dumps({"results": {"sums": figures | {"exact_match,strict": 0.9}}}))
    with pytest.raises(ScoreError, match="does not name them"):
        read(file, Reading(filter="strict"))


def test_two_runs_in_one_file_are_no_samples(tmp_path):
    row = {"doc": {}, "filtered_resps": ["x"], "filter": "none", "metrics": ["acc"], "acc": 1.0}
    text = "\n".join(json.dumps({**row, "doc_id": i}) for i in (0, 1, 0, 1))
    with pytest.raises(
        ScoreError, match=r"each document once for each filter, found document '0' 2 times.*Do not join the files"
    ):
        read(write(tmp_path / "a.jsonl", text))


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    row = {"doc": {}, "filtered_resps": ["x"], "filter": "none", "metrics": ["word_perplexity"]}
    rows = [json.dumps({**row, "doc_id": i, "word_perplexity": v}) for i, v in enumerate(([-3.0, 2], [-math.inf, 2]))]
    with pytest.raises(ScoreError, match=r"line 2, word_perplexity: expected \[log-likelihood, length\] in finite"):
        read(write(tmp_path / "a.jsonl", "\n".join(rows)))


def test_documents_that_stand_there_unevenly_are_no_filters(tmp_path):
    rows = json.loads(OLD.read_text())[:-1]
    with pytest.raises(ScoreError, match="each document once for each filter, found document '0' 2 times"):
        read(write(tmp_path / "a.json", json.dumps(rows)), Reading(filter="1"))


def test_a_metric_may_bear_its_filter_as_in_lm_evals_tables():
    gen = next(SCORES.glob("samples_sums_gen_*.jsonl"))
    found = read(gen, Reading(metric="exact_match,flexible-extract"))
    assert found.value == read(gen, Reading(filter="flexible-extract")).value
    with pytest.raises(ScoreError, match="--metric 'exact_match,strict-match' names the filter 'strict-match'"):
        read(gen, Reading(metric="exact_match,strict-match", filter="flexible-extract"))


@pytest.mark.parametrize(
    ("task", "metric", "of_mean"),
    [
        ("toy_mc_a", "acc", lambda m: m),
        ("toy_mc_b", "brier_score", lambda m: m),
        ("toy_ppl", "word_perplexity", math.exp),
        ("toy_ppl", "byte_perplexity", math.exp),
        ("toy_ppl", "bits_per_byte", lambda m: m),
    ],
)
def test_the_mean_is_the_figure_that_lm_eval_states(task, metric, of_mean):
    found = read(next(BASE.glob(f"samples_{task}_*.jsonl")), Reading(metric=metric))
    assert of_mean(mean(found)) == pytest.approx(stated(task)[f"{metric},none"], abs=1e-7)


def test_a_metric_of_the_whole_corpus_is_refused_by_name():
    with pytest.raises(ScoreError, match="'f1' is computed from the whole corpus: a document's entry is a list"):
        read(next(BASE.glob("samples_toy_mc_a_*.jsonl")), Reading(metric="f1"))


def test_a_list_of_booleans_is_an_item_each_in_its_documents_family(tmp_path):
    rows = [
        {"doc_id": i, "doc": {}, "filtered_resps": ["x"], "metrics": ["inst_level_strict_acc"], "filter": "none",
         "inst_level_strict_acc": [True, False, True][: i + 1]}
        for i in range(3)
    ]  # fmt: skip
    found = read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert found.item == ["0/0", "1/0", "1/1", "2/0", "2/1", "2/2"]
    assert found.family == ["0", "1", "1", "2", "2", "2"]
    assert math.fsum(found.value) / len(found.value) == 4 / 6  # lm-eval's own: all instructions pooled


def test_nan_in_lm_eval_is_a_sample_without_a_score(tmp_path):
    row = '{"doc_id": %d, "doc": {}, "filtered_resps": ["x"], "filter": "none", "metrics": ["acc"], "acc": %s}'
    found = read(write(tmp_path / "a.jsonl", "\n".join(row % (i, v) for i, v in enumerate(("1.0", "NaN", "null")))))
    assert (found.value, found.reason) == ([1.0, None, None], [None, "not_scored", "not_scored"])


# ---------------------------------------------------------------- Inspect


@pytest.mark.parametrize("scorer", ["match", "odd", "both/hit", "both/len"])
@pytest.mark.parametrize("name", ["mean", "at_least_2", "pass_at_2"])
def test_each_reducer_gives_the_figure_that_inspect_states(tmp_path, scorer, name):
    import zipfile

    header = json.loads(zipfile.ZipFile(THREE).read("header.json"))
    head, _, key = scorer.partition("/")
    (score,) = [
        s for s in header["results"]["scores"]
        if (s["scorer"], s["reducer"]) == (head, name) and s["name"] in (key, head)
    ]  # fmt: skip
    figure = next(v["value"] for k, v in score["metrics"].items() if k in ("mean", "accuracy"))
    assert mean(read(THREE, Reading(metric=scorer, reducer=name))) == pytest.approx(figure)


def test_the_logs_own_reducer_is_the_default_and_several_are_a_choice():
    found = read(SCORES / "inspect_at_least.json", Reading(metric="both/hit"))
    assert (len(found.item), found.sample) == (9, ())
    assert found.notes[-2:] == ("the log's own reducer", "reducer at_least_2")
    assert mean(found) == pytest.approx(5 / 9)
    assert len(read(SCORES / "inspect_at_least.json", Reading(metric="both/hit", reducer="mean")).item) == 27
    with pytest.raises(ScoreError, match=r"expected one reducer, found 3: at_least_2, mean, pass_at_2.*--reducer"):
        read(THREE, Reading(metric="both/hit"))


def epochs(path: Path, values, **config) -> Path:
    samples = [
        {"id": i, "epoch": e, "input": "q", "target": "t", "metadata": {},
         **({"error": {"message": "x"}} if v == "error" else {"scores": {"m": {"value": v}}})}
        for i, row in enumerate(values) for e, v in enumerate(row, 1)
    ]  # fmt: skip
    return write(path, json.dumps({"eval": {"task": "t", "config": config}, "plan": {}, "samples": samples}))


def test_a_lost_epoch_leaves_an_item_open_unless_every_value_of_it_gives_the_same(tmp_path):
    log = epochs(tmp_path / "a.json", [["C", "C", "error"], ["C", "I", "error"], ["N", "I", "I"]])
    found = read(log, Reading(reducer="at_least_2"))
    assert found.value == [1.0, None, 0.0]
    assert found.reason == [None, "crashed", None]
    assert read(log, Reading(reducer="max")).value == [1.0, 1.0, 0.0]
    assert read(log, Reading(reducer="majority")).value == [1.0, None, 0.0]


def test_an_epoch_that_is_not_in_the_log_counts_as_lost(tmp_path):
    log = json.loads(epochs(tmp_path / "a.json", [["C", "I"], ["C", "C"]], epochs=2).read_text())
    log["samples"] = [s for s in log["samples"] if (s["id"], s["epoch"]) != (0, 2)]
    cut = write(tmp_path / "b.json", json.dumps(log))
    found = read(cut)
    assert sorted(zip(found.item, found.sample, found.reason)) == [
        ("0", "1", None), ("0", "2", "not_scored"), ("1", "1", None), ("1", "2", None)
    ]  # fmt: skip
    assert "1 epoch of samples is missing from the log and counts as not scored" in found.notes
    assert read(cut, Reading(reducer="at_least_2")).value == [None, 1.0]


def test_a_run_that_ended_early_says_how_much_of_it_is_there(tmp_path):
    log = json.loads(epochs(tmp_path / "a.json", [["C"], ["I"]]).read_text())
    log["eval"]["dataset"] = {"sample_ids": [0, 1, 2, 3, 4]}
    for status, note in (
        ("success", ()),
        ("cancelled", ("the run ended with status 'cancelled': 2 of 5 samples are in the log",)),
    ):
        found = read(write(tmp_path / "b.json", json.dumps({**log, "status": status})))
        assert tuple(n for n in found.notes if "ended" in n) == note


def test_errors_count_only_where_the_log_scored_them_and_invalid_samples_never(tmp_path):
    samples = [{"id": 0, "input": "q", "target": "t", "error": {"message": "x"}, "scores": {"m": {"value": "I"}}},
               {"id": 1, "input": "q", "target": "t", "invalidation": {"author": "x"}, "scores": {"m": {"value": "C"}}},
               {"id": 2, "input": "q", "target": "t", "scores": None}]  # fmt: skip
    for scored, first in ((False, (None, "crashed")), (True, (0.0, None))):
        log = {"eval": {"task": "t", "config": {"score_on_error": scored}}, "plan": {}, "samples": samples}
        found = read(write(tmp_path / "a.json", json.dumps(log)))
        assert [*zip(found.value, found.reason)] == [first, (None, "invalidated"), (None, "not_scored")]


@pytest.mark.parametrize("name", ["at_least_4", "pass_at_4", "collect", "best", "at_least_0"])
def test_a_reducer_that_cannot_be_applied_is_an_error(tmp_path, name):
    log = epochs(tmp_path / "a.json", [["C", "I", "I"]] * 2)
    with pytest.raises(ScoreError, match=r"needs 4 samples|expected a reducer of mean, median"):
        read(log, Reading(reducer=name))


def test_reducers_by_hand():
    two_of_four = [1.0, 0.0, 1.0, 0.0]
    assert reducer("pass_at_2")[0](two_of_four) == pytest.approx(1 - 1 / 6)
    assert reducer("pass@2")[0](two_of_four) == reducer("pass_at_2")[0](two_of_four)
    assert reducer("pass_k_2")[0](two_of_four) == pytest.approx(1 / 6)
    assert reducer("majority")[0](two_of_four) is None
    assert reducer("at_least_2")[0](two_of_four) == 1 and reducer("at_least_3")[0](two_of_four) == 0


# ---------------------------------------------------------------- the other harnesses


def test_lighteval_details_old_and_new(tmp_path):
    new, old = tmp_path / "details_arc:easy|0_2026-01-02T03-04-05.parquet", tmp_path / "d.parquet"
    shutil.copy(SCORES / "lighteval_new.parquet", new)
    shutil.copy(SCORES / "lighteval_old.parquet", old)
    found = read(new, Reading(metric="acc", family="topic"))
    assert (found.eval, found.item[:2], found.family[:4]) == ("arc:easy|0", ["0", "1"], ["t0", "t0", "t0", "t1"])
    assert mean(found) == 3 / 9
    with pytest.raises(ScoreError, match="expected one metric, found 2: acc, loglikelihood_acc"):
        read(new)
    partly = read(old, Reading(metric="qem"))
    assert partly.value == [1.0] + [None] * 8 and set(partly.reason[1:]) == {"not_scored"}


def test_helm_statistics_split_perturbation_and_what_helm_left_out():
    with pytest.raises(ScoreError, match=r"expected one split, found 2: test, test/typos.*--filter"):
        read(HELM)
    with pytest.raises(ScoreError, match="expected one metric, found 2: exact_match, f1_score"):
        read(HELM, Reading(filter="test"))
    found = read(HELM, Reading(filter="test", metric="exact_match"))
    assert found.eval == "sums:subject=add"
    assert mean(found) == json.loads((HELM.parent / "stats.json").read_text())[0]["mean"]
    assert (found.value[7], found.reason[7]) == (None, "not_scored")
    assert None not in found.content
    assert mean(read(HELM, Reading(filter="test/typos", metric="exact_match"))) == 2 / 8
    assert read(HELM, Reading(filter="test", metric="num_prompt_tokens")).value[0] == 40


def test_openai_evals_matches_metrics_and_errors():
    found = read(SCORES / "openai_evals.jsonl", Reading(metric="match"))
    assert found.eval == "sums.dev.v0"
    assert mean(found) == 0.6  # the log's final_report
    assert (found.item[-1], found.value[-1], found.reason[-1]) == ("sums.dev.5", None, "crashed")
    assert mean(read(SCORES / "openai_evals.jsonl", Reading(metric="f1"))) == pytest.approx(0.4)
    assert read(SCORES / "openai_evals.jsonl", Reading(metric="match", family="topic")).family[:2] == ["t0", "t0"]


def test_promptfoo_systems_metrics_and_errors(tmp_path):
    with pytest.raises(ScoreError, match=r"expected one system, found 2: openai:large, openai:small.*--systems"):
        read(SCORES / "promptfoo.json")
    with pytest.raises(ScoreError, match="expected one metric, found 3: pass, score, tone"):
        read(SCORES / "promptfoo.json", Reading(system="openai:large"))
    for system, passed in (("openai:small", 3), ("openai:large", 2)):
        found = read(SCORES / "promptfoo.json", Reading(system=system, metric="pass", family="topic"))
        assert sum(x == 1 for x in found.value) == passed
        assert found.family == ["t0", "t0", "t1", "t1", "t2"]
    assert read(SCORES / "promptfoo.json", Reading(system="openai:small", metric="pass")).reason[4] == "crashed"
    document = json.loads((SCORES / "promptfoo.json").read_text())
    rows = [r for r in document["results"]["results"] if r["provider"]["id"] == "openai:large"]
    repeated = [{**r, "testIdx": r["testIdx"] + 5 * k, "score": float(r["success"])} for k in range(2) for r in rows]
    for r in repeated:
        r["namedScores"] = {}
    document["results"]["results"] = repeated
    lines = read(write(tmp_path / "p.jsonl", "\n".join(map(json.dumps, repeated))))
    found = read(write(tmp_path / "p.json", json.dumps(document)))
    assert (lines.item, lines.value, lines.sample) == (found.item, found.value, found.sample)
    assert found.item == ["0", "1", "2", "3", "4"] * 2 and found.sample == ["0"] * 5 + ["1"] * 5


def test_evalplus_base_and_plus_are_pass_at_1():
    path = SCORES / "toy_eval_results.json"
    figures = json.loads(path.read_text())["pass_at_k"]
    for metric in ("base", "plus"):
        found = read(path, Reading(metric=metric))
        assert mean(found) == pytest.approx(figures[metric]["pass@1"])
        assert (found.eval, len(set(found.sample))) == ("HumanEval", 2)
    old = {"eval": {"HumanEval/0": {"nfiles": 1, "base": [["success", []]], "plus": [["failed", []]]}}}
    assert read_old(old, "base") == [1.0] and read_old(old, "plus") == [0.0]


def read_old(document, metric):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return read(write(Path(folder) / "a.json", json.dumps(document)), Reading(metric=metric)).value


def test_a_parquet_table_is_read_like_any_other(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": ["a", "b"], "meta": [{"topic": "x"}, {"topic": "y"}], "score": [1.0, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet", Reading(family="meta.topic"))
    assert (found.value, found.family) == ([1.0, None], ["x", "y"])
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no parquet")
    with pytest.raises(ScoreError, match=r"expected a valid Parquet file: .*Invalid Parquet"):
        read(tmp_path / "b.parquet")


def test_an_eval_is_named_by_the_file_or_its_header():
    assert eval_of(next(BASE.glob("samples_toy_ppl_*"))) == "toy_ppl"
    assert eval_of(THREE) == "sums3" and eval_of(HELM) == "sums:subject=add"
    assert eval_of(SCORES / "openai_evals.jsonl") == "sums.dev.v0"
    assert eval_of(SCORES / "toy_eval_results.json") == ""


# ---------------------------------------------------------------- neighbours of these formats


def test_bigcodebench_results_are_read_as_evalplus_own(tmp_path):
    """BigCodeBench's evaluate writes EvalPlus's document with one `status` a solution."""
    tasks = {
        f"BigCodeBench/{i}": [{"task_id": f"BigCodeBench/{i}", "solution": "x", "status": status, "details": {}}]
        for i, status in enumerate(["pass", "fail", "timeout", "pass"])
    }
    path = write(tmp_path / "m_eval_results.json", json.dumps({"date": "2024-06-01 10:00", "eval": tasks}))
    found = read(path)
    assert (found.eval, list(found.value)) == ("BigCodeBench", [1.0, 0.0, 0.0, 1.0])


def test_an_inspect_log_with_one_score_a_sample_is_read(tmp_path):
    """Logs of early 2024 hold `score` where later ones hold `scores`; Inspect moves it when it loads them."""
    log = json.loads((SCORES / "inspect_sums.json").read_text())
    wanted = read(SCORES / "inspect_sums.json").value
    for sample in log["samples"]:
        sample["score"] = next(iter(sample.pop("scores").values()), None)
    assert list(read(write(tmp_path / "old.json", json.dumps(log))).value) == list(wanted)


def test_an_empty_value_of_an_inspect_log_is_a_sample_without_a_score(tmp_path):
    log = json.loads((SCORES / "inspect_sums.json").read_text())
    place, name = next((i, name) for i, s in enumerate(log["samples"]) for name in s["scores"] if not s.get("error"))
    log["samples"][place]["scores"][name]["value"] = ""
    found = read(write(tmp_path / "log.json", json.dumps(log)))
    assert (found.value[place], found.reason[place]) == (None, "not_scored")


def test_the_index_that_pandas_writes_is_no_family(tmp_path):
    path = write(tmp_path / "scores.csv", ",id,score\n0,a,1\n1,b,0\n0,c,1\n")
    assert not len(read(path).family)
    assert list(read(path).item) == ["a", "b", "c"]


def samples(folder: Path, task: str, rows: list[dict]) -> Path:
    path = folder / f"samples_{task}_2026-11-21T07-24-55.427359.jsonl"
    plain = {"doc": {}, "target": "", "arguments": [], "resps": [], "filtered_resps": [""], "filter": "none"}
    lines = [{"doc_id": i, **plain, **row} for i, row in enumerate(rows)]
    return write(path, "".join(json.dumps(line) + "\n" for line in lines))


def test_documents_of_another_length_are_not_scores_of_minus_one(tmp_path):
    """RULER's metrics are context lengths: a document bears -1 under every length but its own."""
    rows = [{"metrics": ["4096", "8192"], "4096": s, "8192": -1.0} for s in (1.0, 0.5)]
    rows += [{"metrics": ["4096", "8192"], "4096": -1.0, "8192": 0.25}]
    found = read(samples(tmp_path, "niah_single_1", rows), Reading(metric="4096"))
    assert list(found.value) == [1.0, 0.5] and mean(found) == 0.75
    assert "2 of 3 documents have the length 4096; the others are left out" in found.notes
    with pytest.raises(ScoreError, match="expected documents of length 8192, found none"):
        read(samples(tmp_path, "niah_single_1", rows[:2]), Reading(metric="8192"))


def test_a_stated_figure_that_is_not_the_samples_mean_is_said(tmp_path):
    path = samples(tmp_path, "odd", [{"metrics": ["acc"], "acc": a} for a in (1.0, 0.0, 0.0, 1.0)])
    for figure, said in ((0.5, False), (0.75, True)):
        results = {"results": {"odd": {"acc,none": figure}}, "configs": {}}
        write(tmp_path / "results_2026-11-21T07-24-55.427359.json", json.dumps(results))
        notes = read(path).notes
        assert any("states acc 0.75, which is not the mean of these samples, 0.5" in n for n in notes) is said


def test_aggregates_are_named_after_the_harness_that_wrote_them(tmp_path):
    path = write(
        tmp_path / "results_x.json", json.dumps({"config_general": {}, "results": {"all": {"acc": 1}}, "versions": {}})
    )
    with pytest.raises(ScoreError) as error:
        read(path)
    assert "lighteval's aggregated results" in str(error.value) and "--save-details" in str(error.value)


def test_a_compressed_log_says_that_it_is_compressed(tmp_path):
    import gzip

    path = tmp_path / "scores.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"id": "a", "score": 1}\n'))
    with pytest.raises(ScoreError, match="found a file compressed with gzip"):
        read(path)

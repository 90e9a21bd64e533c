"""Folders as harnesses leave them, tasks of a group, pipes; what names the files and what becomes a seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from veritune.decide.commands import CompareOptions, compare
from veritune.decide.screen import render_text
from veritune.decide.sides import load_side, parse_side, read_sides
from veritune.errors import ScoreError
from veritune.evaluate.logs import Reading

SCORES = Path(__file__).parents[1] / "evaluate" / "scores"
GROUP = SCORES / "lm_eval_group"
STAMP = "2026-03-01T10-00-00.000000"


def task(folder: Path, name: str, values, stamp: str = STAMP, metric: str = "acc", **doc) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": i, "doc": {"q": f"{name} {i}", **{k: v[i] for k, v in doc.items()}}, "filtered_resps": ["x"],
         "filter": "none", "metrics": [metric], metric: float(v)}
        for i, v in enumerate(values)
    ]  # fmt: skip
    path = folder / f"samples_{name}_{stamp}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def run(a, b, **reading):
    report = compare([parse_side(str(a)), parse_side(str(b))], CompareOptions(reading=Reading(**reading)))
    return report.comparisons[0], render_text(report)


# ---------------------------------------------------------------- folders


def test_an_output_folder_is_read_as_it_is_from_any_level(tmp_path):
    base = tmp_path / "base" / "org__model"
    task(base, "sums", [1, 0, 1, 0])
    (base / f"results_{STAMP}.json").write_text(json.dumps({"results": {"sums": {}}, "configs": {}}))
    task(tmp_path / "tuned" / "org__tuned", "sums", [1, 1, 1, 0])
    found, _ = run(tmp_path / "tuned", tmp_path / "base")
    assert (found.a, found.b, found.eval, found.n) == ("tuned", "base", "sums", 4)
    inner, _ = run(tmp_path / "tuned" / "org__tuned", base)
    assert inner.estimates[0].value == found.estimates[0].value == 0.25


def test_two_models_below_a_folder_are_a_choice(tmp_path):
    for name in ("m0", "m1"):
        task(tmp_path / "out" / name, "sums", [1, 0])
    with pytest.raises(
        ScoreError, match=r"expected the scores of one model, found 2 folders with some: m0, m1.*out/m0"
    ):
        parse_side(str(tmp_path / "out"))


def test_two_runs_of_a_task_in_a_folder_are_no_seeds_until_somebody_says_so(tmp_path):
    first = task(tmp_path / "m", "sums", [1, 0, 1, 0])
    second = task(tmp_path / "m", "sums", [1, 1, 1, 0], "2026-03-02T10-00-00.000000")
    with pytest.raises(ScoreError, match="expected one run, found 2 of sums"):
        parse_side(str(tmp_path / "m"))
    table, _ = load_side(parse_side(f"m={first},{second}"))
    assert len(table.runs) == 2


def test_lighteval_helm_and_evalplus_folders(tmp_path):
    details = tmp_path / "lighteval" / "details" / "org" / "model" / STAMP
    details.mkdir(parents=True)
    shutil.copy(SCORES / "lighteval_new.parquet", details / f"details_arc:easy|0_{STAMP}.parquet")
    results = tmp_path / "lighteval" / "results" / "org" / "model"
    results.mkdir(parents=True)
    (results / f"results_{STAMP}.json").write_text('{"results": {}, "versions": {}}')
    table, _ = load_side(parse_side(str(tmp_path / "lighteval")), Reading(metric="acc"))
    assert (table.eval, len(table.items)) == ("arc:easy|0", 9)
    for subject in ("add", "subtract"):
        suite = tmp_path / "suite" / f"sums:subject={subject},model=toy_small"
        shutil.copytree(SCORES / "helm_run", suite)
    table, _ = load_side(parse_side(str(tmp_path / "suite")), Reading(metric="f1_score", filter="test"))
    assert (table.eval, len(table.items), len(table.runs)) == ("sums:subject", 16, 1)
    one = tmp_path / "suite" / "sums:subject=add,model=toy_small"
    assert parse_side(f"tuned={one}").name == "tuned"
    assert parse_side(str(one)).paths == parse_side(f"tuned={one}").paths == (one / "per_instance_stats.json",)
    assert table.stratum_N is not None and set(table.stratum_N) == {"sums:subject=add", "sums:subject=subtract"}
    plus = tmp_path / "evalplus"
    plus.mkdir()
    shutil.copy(SCORES / "toy_eval_results.json", plus / "m_eval_results.json")
    (plus / "m.jsonl").write_text('{"task_id": "HumanEval/0", "solution": "x"}\n')
    assert load_side(parse_side(str(plus)), Reading(metric="base"))[0].eval == "HumanEval"


# ---------------------------------------------------------------- groups


def test_leaves_are_strata_of_one_eval_and_never_seeds(tmp_path):
    a = {"mmlu_x": [1, 1, 0, 1], "mmlu_y": [0, 1, 1, 0]}
    b = {"mmlu_x": [1, 0, 0, 1], "mmlu_y": [0, 1, 0, 0]}
    for side, leaves in (("a", a), ("b", b)):
        for name, values in leaves.items():
            task(tmp_path / side, name, values)
    found, text = run(tmp_path / "a", tmp_path / "b")
    assert (found.eval, found.n, found.estimates[0].value) == ("mmlu", 8, 0.25)
    assert [(s.name, s.n, s.gap) for s in found.strata] == [("mmlu_x", 4, 0.25), ("mmlu_y", 4, 0.25)]
    assert "(1 seed) against b (1 seed), 8 items of mmlu" in text
    assert "mmlu_y  0.5000 against 0.2500 of 4, gap +0.2500" in text
    assert "each alone at 95 %, uncorrected; mean of the 2 gaps +0.2500" in text
    assert set(found.flipped.ids_a) == {"mmlu_x/1", "mmlu_y/2"}
    for asked in ("mmlu", "mmlu_x,mmlu_y"):
        assert run(tmp_path / "a", tmp_path / "b", eval=asked)[0].n == 8
    leaf, _ = run(tmp_path / "a", tmp_path / "b", eval="mmlu_y")
    assert (leaf.eval, leaf.n, leaf.strata) == ("mmlu_y", 4, ())
    with pytest.raises(ScoreError, match=r"expected the eval 'mmlu_z', found mmlu_x, mmlu_y \(did you mean"):
        run(tmp_path / "a", tmp_path / "b", eval="mmlu_z")


def test_seeds_of_a_group_are_folders_and_each_must_hold_every_leaf(tmp_path):
    for seed in range(2):
        for name in ("mmlu_x", "mmlu_y"):
            task(tmp_path / f"s{seed}", name, [1, 0, seed, 1])
    side = parse_side(f"tuned={tmp_path / 's0'},{tmp_path / 's1'}")
    table, _ = load_side(side)
    assert (len(table.runs), len(table.items)) == (2, 8)
    assert table.score_S_N.mean(axis=1).tolist() == [0.5, 0.75]
    (tmp_path / "s1" / f"samples_mmlu_y_{STAMP}.jsonl").unlink()
    with pytest.raises(ScoreError, match="expected each run to hold every task once, found 2 of mmlu_x, 1 of mmlu_y"):
        load_side(parse_side(f"tuned={tmp_path / 's0'},{tmp_path / 's1'}"))


def test_tasks_that_form_no_group_are_pooled_only_when_they_are_named(tmp_path):
    for side in "ab":
        task(tmp_path / side, "arc_easy", [1, 0, 1])
        task(tmp_path / side, "hellaswag", [1, 0, 0])
    with pytest.raises(ScoreError, match=r"expected the tasks of one group, found 2: arc_easy, hellaswag.*--eval NAME"):
        run(tmp_path / "a", tmp_path / "b")
    assert run(tmp_path / "a", tmp_path / "b", eval="arc_easy,hellaswag")[0].n == 6


def test_the_logs_own_groups_decide_where_it_has_some():
    with pytest.raises(ScoreError, match="expected the tasks of one group, found 3: toy_mc_a, toy_mc_b, toy_ppl"):
        run(GROUP / "tuned", GROUP / "base")
    found, _ = run(GROUP / "tuned", GROUP / "base", eval="toy_mc", metric="acc")
    figures = json.loads(next((GROUP / "base").glob("results_*.json")).read_text())["results"]["toy_mc"]
    assert found.n == 24
    assert found.details["b"]["mean"] == pytest.approx(figures["acc,none"])


def test_a_part_of_a_group_is_said(tmp_path):
    for side in "ab":
        for name in ("mmlu_x", "mmlu_y"):
            task(tmp_path / side, name, [1, 0, 1])
        listed = {"group_subtasks": {"mmlu": ["mmlu_x", "mmlu_other"], "mmlu_other": ["mmlu_y", "mmlu_z"]}}
        (tmp_path / side / f"results_{STAMP}.json").write_text(json.dumps(listed))
    _, text = run(tmp_path / "a", tmp_path / "b")
    assert "read as      a: lm-eval, metric acc, filter none, 2 of the 3 tasks of mmlu" in text


def test_leaves_of_two_metrics_are_not_pooled(tmp_path):
    task(tmp_path / "a", "bb_x", [1, 0], metric="acc")
    task(tmp_path / "a", "bb_y", [1, 0], metric="exact_match")
    with pytest.raises(ScoreError, match=r"expected files of one metric and direction, found acc .*, exact_match"):
        load_side(parse_side(str(tmp_path / "a")))


def test_a_family_that_spans_tasks_is_said(tmp_path):
    for side in "ab":
        for name in ("mmlu_x", "mmlu_y"):
            task(tmp_path / side, name, [1, 0, 1, side == "a"], passage=[0, 0, 1, 1])
    found, _ = run(tmp_path / "a", tmp_path / "b", family="passage")
    assert any("2 families have items in several tasks" in w for w in found.warnings)


# ---------------------------------------------------------------- systems of one file


def test_promptfoo_systems_of_one_file_and_one_system_of_two_files(tmp_path):
    file = str(SCORES / "promptfoo.json")
    sides = read_sides([file], None, (), "openai:large,openai:small")
    found = compare(sides, CompareOptions(reading=Reading(metric="score"))).comparisons[0]
    assert (found.a, found.b, found.n) == ("openai:large", "openai:small", 5)
    other = tmp_path / "other.json"
    shutil.copy(file, other)
    sides = read_sides([file, str(other)], None, (), "openai:large")
    assert compare(sides, CompareOptions(reading=Reading(metric="pass"))).comparisons[0].estimates[0].value == 0

"""An eval's scores for other tools: what each form holds is what the records hold, and the other tools read it.

Inspect and Every Eval Ever are asked themselves where they are installed; our own reader of Inspect logs always is.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from sealed_studies import sealed_study
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.evaluate.logs import Reading, read
from veritune.records import RunSummary, Score
from veritune.store import Store, write_jsonl


def with_a_crash(store: Store) -> None:
    """In every run one item was lost by the machine; the study has one already that the model owes."""
    for path in store.runs.glob("*/scores/style.jsonl"):
        scores = list(Score.load_all(path))
        scores[0] = replace(scores[0], value=None, reason="timeout", output=None)
        write_jsonl(path, scores)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_study(tmp_path_factory.mktemp("items") / "study", report=False, change=with_a_crash)


def export(root: Path, form: str, out: Path, *more: str) -> tuple[int, str]:
    words = ["writeup", "export", "items.style", "--study", str(root), "--as", form, "--out", str(out), *more]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output or str(done.exception)


def scores(root: Path) -> list[Score]:
    return [s for path in sorted(Store(root).runs.glob("*/scores/style.jsonl")) for s in Score.load_all(path)]


def test_parquet_holds_every_score_of_every_run(root: Path, tmp_path: Path) -> None:
    assert export(root, "parquet", tmp_path / "s.parquet")[0] == 0
    table = polars.read_parquet(tmp_path / "s.parquet").sort("run_id", "item_id")
    wanted = sorted(scores(root), key=lambda s: (s.run_id, s.item_id))
    assert len(wanted) == 30
    for name in ("run_id", "item_id", "zone", "family", "value", "reason", "output"):
        assert table[name].to_list() == [getattr(s, name) for s in wanted]
    assert table["seed"].n_unique() == 3 and set(table["trained_elsewhere"]) == {False}
    assert json.loads(table["parts"][0]) == dict(wanted[0].parts)


def test_our_own_reader_finds_the_same_scores_in_the_inspect_logs(root: Path, tmp_path: Path) -> None:
    assert export(root, "inspect", tmp_path / "logs")[0] == 0
    by_run: dict[str, list[Score]] = {}
    for score in scores(root):
        by_run.setdefault(score.run_id, []).append(score)
    assert {p.stem for p in (tmp_path / "logs").iterdir()} == set(by_run)
    for run_id, wanted in by_run.items():
        found = read(tmp_path / "logs" / f"{run_id}.eval", Reading(family="family"))
        pairs = {item: (value, reason) for item, value, reason in zip(found.item, found.value, found.reason)}
        named = {"empty_output": "no_answer", "timeout": "crashed", None: None}
        assert pairs == {s.item_id: (s.value, named[s.reason]) for s in wanted}
        assert list(found.family) == [{s.item_id: s.family for s in wanted}[item] for item in found.item]


def test_inspect_reads_its_logs(root: Path, tmp_path: Path) -> None:
    logs = pytest.importorskip("inspect_ai.log", reason="pip install inspect_ai")
    assert export(root, "inspect", tmp_path / "logs")[0] == 0
    log = logs.read_eval_log(str(next((tmp_path / "logs").glob("wide-s3*.eval"))))
    assert (log.status, log.eval.task, len(log.samples)) == ("success", "style", 6)
    values = {s.id: s.scores["style"].value if s.scores else s.error.message for s in log.samples}
    assert sorted(map(str, values.values())) == ["0.5", "0.5", "0.5", "0.5", "N", "timeout"]


def test_an_export_made_twice_is_the_same_and_a_lost_score_is_no_wrong_answer(root: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert export(root, "inspect", tmp_path / name)[0] == 0
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
        results = json.loads(zipfile.ZipFile(path).read("header.json"))["results"]
        (score,) = results["scores"]
        assert (score["scored_samples"], score["unscored_samples"]) == (5, 1)
        assert score["metrics"]["mean"]["value"] == pytest.approx(4 * 0.5 / 5)
    assert export(root, "inspect", tmp_path / "one") == (1, f"{tmp_path / 'one'} already exists. Name a new folder.")


def test_every_eval_ever_has_a_result_a_zone(root: Path, tmp_path: Path) -> None:
    assert export(root, "every-eval-ever", tmp_path / "eee")[0] == 0
    records: list[dict[str, Any]] = [json.loads(p.read_text("utf-8")) for p in (tmp_path / "eee").iterdir()]
    assert len(records) == 5 and len({r["evaluation_id"] for r in records}) == 5
    summaries = [RunSummary.load(p) for p in Store(root).runs.glob("*/summary.json")]
    for record in records:
        arm, seed = (record["model_info"]["additional_details"].get(name) for name in ("condition", "seed"))
        (own,) = (s for s in summaries if (s.condition, s.seed) == (arm, None if seed is None else int(seed)))
        for result in record["evaluation_results"]:
            cell = own.scores["style"][result["evaluation_name"].removeprefix("style, zone ")]
            assert cell.mean is not None and cell.missing and result["source_data"]["source_type"] == "other"
            assert result["score_details"]["score"] == pytest.approx(cell.mean * cell.scored / cell.items)
            assert result["score_details"]["details"]["with a score"] == str(cell.scored)


def test_every_eval_ever_s_own_types_take_the_records(root: Path, tmp_path: Path) -> None:
    types = pytest.importorskip("every_eval_ever.eval_types", reason="pip install every_eval_ever (Python 3.12)")
    assert export(root, "every-eval-ever", tmp_path / "eee", "--benchmark", "cais/hle")[0] == 0
    for path in (tmp_path / "eee").iterdir():
        types.EvaluationLog.model_validate_json(path.read_text("utf-8"))


def test_eval_results_are_for_trained_runs_and_a_dataset_that_is_named(root: Path, tmp_path: Path) -> None:
    assert export(root, "eval-results", tmp_path / "er", "--benchmark", "cais/hle:text")[0] == 0
    files = {
        p.stem: parse_eval_result_entries(yaml.safe_load(p.read_text("utf-8"))) for p in (tmp_path / "er").iterdir()
    }
    assert len(files) == 4 and not any(name.startswith("baseline") for name in files)
    for entries in files.values():
        assert {(e.dataset_id, e.task_id) for e in entries} == {("cais/hle", "text")} and len(entries) == 3
        assert all("without a score count as 0" in e.notes for e in entries)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["items.style", "--as", "eval-results", "--out", "x"],
            "--benchmark: expected a dataset of the hub, found none",
        ),
        (["items.style", "--as", "parquet", "--out", "x", "--benchmark", "hle"], "found hle"),
        (["items.style", "--as", "parquet"], "can only be written to a file."),
        (["items.style", "--as", "latex", "--out", "x"], "is exported as parquet, inspect"),
        (["items.nothere", "--as", "parquet", "--out", "x"], "the study has no eval 'nothere'"),
        (["table.scores.style", "--benchmark", "a/b"], "--benchmark needs items.EVAL, but a table was named."),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["writeup", "export", *words, "--study", str(root)])
    assert done.exit_code == 1 and says in str(done.exception)
    assert list(tmp_path.iterdir()) == []

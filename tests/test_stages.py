"""The way of a study as a library: what an outcome holds, what is checked before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import veritune
from veritune.config.load import load_study
from veritune.errors import StudyError
from veritune.pipeline import run, score_tables
from veritune.progress import Progress
from veritune.store import Store, read_json


@pytest.fixture(scope="module")
def outcome(finished: Any) -> Any:
    return run(finished.root, progress=Progress(silent=True))


def test_a_finished_study_is_read_and_not_run(outcome: Any, finished: Any) -> None:
    assert (outcome.trained, outcome.skipped) == (0, 5)
    assert outcome.folder == finished.root and outcome.report == finished.root / "report.html"
    recorded = read_json(finished.root / "verdict.json")["verdicts"]
    assert [(v.claim, v.status, v.sentence) for v in outcome.verdicts] == [
        (v["claim"], v["status"], v["sentence"]) for v in recorded
    ]
    assert outcome.all_supported == (finished.run.returncode == 0)


def test_score_tables_hold_every_run_s_scores_and_the_baseline_is_a_fixed_arm(finished: Any) -> None:
    study = load_study(finished.root)
    runs = sorted(p.name for p in (finished.root / "runs").iterdir())
    tables = score_tables(Store(finished.root), study, runs)
    assert set(tables) == {(arm, "style") for arm in ("attention_only", "all_layer", "baseline")}
    for (arm, _), table in tables.items():
        assert table.fixed == (arm == "baseline")
        assert table.score_S_N.shape == ((1 if arm == "baseline" else 2), 33)


def test_the_public_names_are_the_same_functions() -> None:
    assert veritune.run is run
    assert veritune.load_study is load_study


def test_a_study_file_of_another_name_is_refused(study: Any, tmp_path: Path) -> None:
    (study.root / "study.yaml").rename(study.root / "mine.yaml")
    with pytest.raises(StudyError, match=r"a study's file must be named study\.yaml, in a folder of its own"):
        run(study.root / "mine.yaml")


def test_an_eval_without_items_in_a_zone_is_refused_before_anything_trains(study: Any) -> None:
    """One wording a family leaves no siblings."""
    import json
    from itertools import groupby

    rows = [json.loads(line) for line in (study.root / "rows.jsonl").read_text("utf-8").splitlines()]
    study.write_rows([next(group) for _, group in groupby(rows, key=lambda r: r["original"])])
    with pytest.raises(StudyError, match=r"evals\.style: zone 'sibling' has no items"):
        run(study.root, progress=Progress(silent=True))
    assert not (study.root / "runs").exists() and not (study.root / "contract.lock.json").exists()


def test_nothing_is_frozen_before_a_live_step_of_every_condition(study: Any, forks: Any) -> None:
    killed = forks("run", study.root, kill_at=r"os.rename .*/live-all_layer.json ")
    assert killed.rc == -9
    assert (study.root / "audit" / "live-attention_only.json").exists()
    assert not (study.root / "contract.lock.json").exists() and not (study.root / "runs").exists()

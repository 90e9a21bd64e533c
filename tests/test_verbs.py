"""init, status, report and doctor: what they write, what they say, and that they say it of any folder."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.config.load import load_study
from veritune.errors import DataError, InputError, StudyError
from veritune.records import Verdict
from veritune.verbs import draw_report, init, status, status_text, verdict_lines


def rows(folder: Path, n: int = 12, **extra: Any) -> Path:
    path = folder / "my rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"question {i} {'ab'[i % 2] * i}", "completion": f"answer {i}", **extra}) + "\n"
            for i in range(n)
        )
    )
    return path


# ---------------------------------------------------------------- a run's screen


def test_a_frozen_rule_is_on_the_runs_screen() -> None:
    outcome = {"rule": {"min_gap": 0.01}, "gap": 0.02, "per_seed": [0.02], "winner": "a", "satisfied": True}
    verdict = Verdict("learns", "improves", "supported", "A sentence.", (), None, 0.05)
    assert "Frozen rule" not in "\n".join(verdict_lines(verdict))
    shown = replace(verdict, details={"frozen_rule": {**outcome, "a": "wide", "b": "baseline", "withheld": ""}})
    assert "    Frozen rule min_gap 0.01: wide wins (gap +0.0200)." in verdict_lines(shown)


# ---------------------------------------------------------------- init


def test_init_writes_a_commented_study_that_validates(tmp_path: Path) -> None:
    file = init(rows(tmp_path))
    assert file == tmp_path / "study.yaml"
    study = load_study(file)
    assert study.name == "my-rows" and study.data.path == "my rows.jsonl"
    assert file.read_text().count("#") > 8


def test_init_finds_the_column_that_names_the_original(finished: Any, tmp_path: Path) -> None:
    shutil.copy(finished.root / "rows.jsonl", tmp_path / "rows.jsonl")
    assert load_study(init(tmp_path / "rows.jsonl")).data.family_field == "original"


def test_a_column_that_names_nothing_in_common_is_not_taken_for_families(tmp_path: Path) -> None:
    assert load_study(init(rows(tmp_path, original="all the same"))).data.family_field is None


def test_init_into_another_folder_points_back_to_the_data(tmp_path: Path) -> None:
    file = init(rows(tmp_path), folder=tmp_path / "a" / "b")
    assert (file.parent / load_study(file).data.path).resolve() == tmp_path / "my rows.jsonl"


def test_init_never_overwrites(tmp_path: Path) -> None:
    file = init(rows(tmp_path))
    file.write_text("mine")
    with pytest.raises(StudyError, match="already exists"):
        init(tmp_path / "my rows.jsonl")
    assert file.read_text() == "mine"


def test_init_refuses_data_it_could_not_run(tmp_path: Path) -> None:
    path = rows(tmp_path)
    path.write_text(path.read_text() + '{"prompt": "x"\n')
    with pytest.raises(DataError, match=r"my rows\.jsonl:13"):
        init(path)
    assert not (tmp_path / "study.yaml").exists()


def test_the_length_rule_that_init_writes_is_quick_on_any_text(tmp_path: Path) -> None:
    """A pattern that can split one text in many ways would hang the scoring; 200 words would never end."""
    pattern = load_study(init(rows(tmp_path))).evals["style"].rules[0].pattern
    assert pattern is not None
    words = "word " * 80
    assert re.search(pattern, words) and re.search(pattern, words.strip()) and re.search(pattern, "\n one")
    assert not re.search(pattern, words + "more")
    assert not re.search(pattern, "word " * 200 + "!")
    assert not re.search(pattern, "a" * 5000 + " b" * 100)


def test_the_written_study_runs_on_the_tiny_model(finished: Any, forks: Any, tmp_path: Path, tiny_model: Path) -> None:
    shutil.copy(finished.root / "rows.jsonl", tmp_path / "rows.jsonl")
    written = forks("init", tmp_path / "rows.jsonl", "--model", tiny_model)
    assert written.rc == 0, written.err
    assert "veritune run" in written.out
    file = tmp_path / "study.yaml"
    settings = yaml.safe_load(file.read_text("utf-8"))
    settings["train"] |= {"num_train_epochs": 1, "max_length": 128}
    settings["evals"]["style"]["max_new_tokens"] = 4
    settings["seeds"] = [0]
    file.write_text(yaml.safe_dump(settings))
    done = forks("run", file)
    assert done.rc in (0, 2), done.err
    assert (tmp_path / "report.html").exists()


# ---------------------------------------------------------------- status


def test_status_of_a_finished_study(finished: Any, forks: Any) -> None:
    found = json.loads(forks("status", finished.root, "--json").out)
    assert found["frozen"] and found["held_by"] is None
    assert {c["state"] for c in found["cells"]} == {"done"} and len(found["cells"]) == 5
    assert {c["step"] for c in found["cells"] if c["phase"] == "main"} == {6}
    assert set(found["verdicts"]) == {"learns", "carries", "differ"}
    text = forks("status", finished.root).out
    assert "no process is running it" in text and "baseline" in text and "learns" in text


def test_status_of_a_study_that_never_ran_writes_nothing(study: Any) -> None:
    before = sorted(p.name for p in study.root.iterdir())
    found = status(study.root)
    assert not found["frozen"] and found["cells"] == [] and found["verdicts"] == {} and found["report"] is None
    assert "nothing has trained" in status_text(found)
    assert sorted(p.name for p in study.root.iterdir()) == before


def test_status_of_a_killed_study_says_how_far_it_came(study: Any, forks: Any) -> None:
    forks("run", study.root, kill_at=r"open .*/attention_only-s0-.*/metrics.jsonl a.* #4")
    with next(study.root.glob("runs/attention_only*/metrics.jsonl")).open("a") as stream:
        stream.write('{"metric": {"name": "torn"}')
    cells = {c.condition: c for c in status(study.root)["cells"] if c.seed == 0}
    assert cells["baseline"].state == "done"
    assert (cells["attention_only"].state, cells["attention_only"].step) == ("stopped", 3)


def test_status_of_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no study\.yaml"):
        status(tmp_path)


# ---------------------------------------------------------------- report, doctor


def test_the_report_is_drawn_again_from_the_records(finished_copy: Any) -> None:
    before = (finished_copy.root / "verdict.json").read_bytes()
    (finished_copy.root / "report.html").unlink()
    assert draw_report(finished_copy.root) == finished_copy.root / "report.html"
    assert (finished_copy.root / "report.html").exists()
    assert (finished_copy.root / "verdict.json").read_bytes() == before


def test_no_report_without_verdicts(study: Any) -> None:
    with pytest.raises(InputError, match=r"has no verdicts yet.*veritune run"):
        draw_report(study.root)


def test_doctor_speaks_json_and_finds_this_machine_fit(forks: Any) -> None:
    done = forks("doctor", "--json")
    found = json.loads(done.out)
    assert found["matmul"]["right"] and found["matmul"]["gflops"] > 0
    assert found["machine"]["cores"] >= 1 and found["machine"]["memory_bytes"] > 1e8
    assert found["packages"]["torch"] and "pyarrow" in found["optional"]
    assert done.rc == (1 if found["problems"] else 0)
    text = forks("doctor").out
    assert "GFLOP/s" in text and "cores" in text

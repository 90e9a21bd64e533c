"""A study of more runs than a page can hold: some of each arm are drawn, all of them stand beside the page."""

from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from veritune.report import page, read, views

_spec = importlib.util.spec_from_file_location("small_study", Path(__file__).with_name("small_study.py"))
assert _spec and _spec.loader
small_study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(small_study)


def test_some_runs_of_each_arm_are_drawn_and_all_stand_beside_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "MOST_DRAWN", 3)
    store, study = small_study.build(tmp_path)
    records = read.read_records(store, study)
    assert [(r.condition, r.seed) for r in records.runs] == [("baseline", None), ("narrow", 3), ("wide", 3)]
    assert len(records.every_run) == 5 and records.problems == (), "no run is called absent"
    text = page.write_report(store, study).read_text("utf-8")
    assert "5 runs are on disk; 3 of them, as many of each arm in the order of their seeds, are drawn here." in text
    rows = list(csv.DictReader((store.figures / page.ALL_RUNS).open(encoding="utf-8")))
    assert {row["run_id"] for row in rows} == {r.run_id for r in records.every_run}
    wide = next(r for r in records.every_run if (r.condition, r.seed) == ("wide", 11))
    found = {(r["what"], r["zone"]): r["value"] for r in rows if r["run_id"] == wide.run_id}
    assert found["style", "stranger"] == str(wide.zone_scores("style")["stranger"].mean)
    assert found["nll", "seen"] == str(wide.losses["seen"].nll)


def test_a_few_runs_are_all_drawn_and_nothing_lies_beside_the_page(tmp_path: Path) -> None:
    store, study = small_study.build(tmp_path)
    text = page.write_report(store, study).read_text("utf-8")
    assert "runs are on disk" not in text and not (store.figures / page.ALL_RUNS).exists()


def test_a_long_timeline_is_shown_from_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOST_EVENTS", 2)
    store, study = small_study.build(tmp_path)
    for n in range(7):
        store.log("noted", n=n)
    shown: list[Any] = [e.event for e in views.timeline(read.read_records(store, study))]
    assert len(shown) == 5 and shown[2] == "5 events that are not shown here" and shown[-1] == "noted"


def test_scores_are_read_again_line_by_line_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    store, study = small_study.build(tmp_path)
    (path,) = sorted(store.runs.glob("wide-s3-*/scores/style.jsonl"))
    records = read.read_records(store, study)
    (run,) = [r for r in records.runs if (r.condition, r.seed) == ("wide", 3)]
    assert len(run.scores["style"]) == 6 == len(list(run.scores["style"]))
    path.write_text(path.read_text("utf-8") + '{"torn": ')
    records = read.read_records(store, study)
    assert [p for p in records.problems if p.startswith(f"runs/{run.run_id}/scores/style.jsonl line 7 is damaged")]

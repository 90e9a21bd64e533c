"""Listing cells: the index says what the records say, hosts and lost workers are named, ten thousand ids are exact."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from veritune import contract
from veritune.canonical import dumps, joined
from veritune.errors import FormatError
from veritune.pipeline.executors.jobs import Jobs
from veritune.pipeline.tries import TRIES, lost_tries, read_tries, record_try
from veritune.pipeline.watch import cells_text, expiry_text, list_cells, study_at
from veritune.records import RunSummary, TryLine
from veritune.store import sha256_text
from veritune.train.schedule import plan_cells
from veritune.train.telemetry import read_telemetry


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VERITUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_second_listing_is_the_first_and_nothing_is_written_in_the_study(finished_copy: Any, own_cache: Path) -> None:
    root = finished_copy.root
    before = sorted(str(p) for p in root.rglob("*"))
    first = list_cells(root)
    (index,) = own_cache.glob("cells/*.json")
    assert list_cells(root) == first and {c.state for c in first} == {"done"}
    assert sorted(str(p) for p in root.rglob("*")) == before
    index.write_text("{", encoding="utf-8")
    assert list_cells(root) == first, "a damaged index is made again"


def test_the_index_is_not_believed_over_the_records(finished_copy: Any) -> None:
    root = finished_copy.root
    first = list_cells(root)
    summary = root / "runs" / first[1].run_id / "summary.json"
    summary.unlink()
    states = {c.run_id: c.state for c in list_cells(root)}
    assert states[first[1].run_id] == "stopped" and states[first[2].run_id] == "done"
    other = root / "runs" / first[2].run_id / "summary.json"
    other.write_text(other.read_text("utf-8").replace(RunSummary.load(other).input_hash, "0" * 64), encoding="utf-8")
    assert {c.run_id: c.state for c in list_cells(root)}[first[2].run_id] != "done"


def test_the_index_follows_an_edited_study(finished_copy: Any) -> None:
    list_cells(finished_copy.root)
    finished_copy.change(lambda s: s.update(seeds=[0]))
    assert len(list_cells(finished_copy.root)) == 3


def test_every_cell_names_its_host_and_the_processes_that_were_lost(finished_copy: Any) -> None:
    root = finished_copy.root
    folder = root / "runs" / list_cells(root)[1].run_id
    here = os.uname().nodename
    assert f"on {here}" in cells_text(list_cells(root))
    (tried,) = read_tries(folder)
    TryLine.save_all(folder / TRIES, [TryLine("began", tried.time, "node-7", 12, "slurm 3_1"), tried])
    (folder / "summary.json").touch()
    assert "on node-7" not in cells_text(list_cells(root)).replace("lost: process 12 on node-7 (slurm 3_1)", "")
    assert "lost: process 12 on node-7 (slurm 3_1)" in cells_text(list_cells(root))


@pytest.mark.parametrize(
    ("events", "over", "lost"),
    [
        ([("began", 1)], False, []),
        ([("began", 1)], True, [1]),
        ([("began", 1), ("failed", 1), ("began", 2)], False, []),
        ([("began", 1), ("stopped", 1)], True, []),
        ([("began", 1), ("done", 2), ("began", 2)], False, []),
        ([("began", 1), ("began", 2), ("began", 3), ("failed", 3)], True, [1, 2]),
    ],
)
def test_a_try_without_a_word_after_it_was_lost(events: list[tuple[Any, int]], over: bool, lost: list[int]) -> None:
    tries = [TryLine(event, "t", "n1", pid, None) for event, pid in events]
    assert [line.pid for line in lost_tries(tries, over=over)] == lost


def test_a_torn_try_is_cut_and_a_damaged_file_informs_no_more(tmp_path: Path) -> None:
    record_try(tmp_path, "began")
    with (tmp_path / TRIES).open("ab") as stream:
        stream.write(b'{"event":"fai')
    record_try(tmp_path, "began")
    assert [line.event for line in read_tries(tmp_path)] == ["began", "began"]
    (tmp_path / TRIES).write_bytes(b"\xff\n")
    assert read_tries(tmp_path) == []


def test_text_that_is_made_in_parts_is_the_canonical_one(finished: Any) -> None:
    parts = {"b": {"x": 1.5, "a": None}, "a": "é\u2028", "Z": [True, 2]}
    assert joined({key: dumps(value) for key, value in parts.items()}) == dumps(parts)
    store, study = study_at(finished.root)
    facts = contract.read(store).facts
    shared = {"model": facts.model, "rendered": facts.rendered_sha256, "version": facts.data_version}
    cell = plan_cells(study, facts)[1]
    whole = {
        **shared,
        "condition": study.conditions[cell.condition].model_dump(mode="json", exclude_none=True),
        "train": study.train.model_copy(update={"learning_rate": cell.lr}).model_dump(mode="json"),
        "seed": cell.seed,
        "lr": cell.lr,
        "phase": cell.phase,
    }
    assert sha256_text(dumps(whole)) == cell.input_hash


def test_hours_until_a_server_deletes_its_weights_are_told() -> None:
    now = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
    assert expiry_text("2026-05-01T14:30:00+00:00", now) == "checkpoint expires on the server in 2.5 h"
    assert expiry_text("2026-05-01T11:59:00Z", now) == "checkpoint EXPIRED on the server"


def test_jobs_are_on_disk_before_they_are_submitted_and_gone_with_the_last(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, "ray", "h:1")
    job = jobs.new(("a", "b"))
    assert Jobs(tmp_path, "ray").known == {job.name: job} and job.job_id is None
    jobs.assign(job.name, ("b",), "n1")
    assert Jobs(tmp_path, "ray").known[job.name].host == "n1"
    jobs.drop(job.name)
    assert not (tmp_path / ".jobs" / "ray.json").exists() and Jobs(tmp_path, "ray").known == {}


def test_a_damaged_line_of_telemetry_is_named_and_a_torn_last_one_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "telemetry.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    assert [record["step"] for record in read_telemetry(path)] == [1, 2]
    for damaged in ('{"step": 1}\n{"st\n{"step": 3}\n', '{"step": 1}\n[2]\n', '{"step": 1}\n{"st\n'):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(FormatError, match=r"telemetry\.jsonl line 2 is damaged: "):
            read_telemetry(path)

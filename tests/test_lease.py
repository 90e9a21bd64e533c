"""Locks that lie: `flock` succeeds for everybody, as on disks with locks per host, and one of two still stops."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from veritune import lease
from veritune.errors import LockedError
from veritune.files import write_text
from veritune.store import Store, read_json


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.05)
    monkeypatch.setattr(lease, "FRESH_S", 0.6)
    monkeypatch.setattr(lease, "LOOK_S", 0.02)


@pytest.fixture
def lying_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *_: None)


def lease_of(root: Path, run: str = "r") -> Path:
    return root / ".locks" / "leases" / run


def on_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "boot_id", lambda: "another host's kernel")


def test_a_living_holder_on_another_host_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lying_locks: None
) -> None:
    with Store(tmp_path).run_lock("r"):
        on_another_host(monkeypatch)
        with pytest.raises(LockedError, match="run r is in use by process") as caught, Store(tmp_path).run_lock("r"):
            raise AssertionError
        assert caught.value.exit_code == 3


def test_a_dead_holder_on_another_host_is_taken_over_with_a_higher_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lying_locks: None
) -> None:
    with Store(tmp_path).run_lock("r"):
        left = read_json(lease_of(tmp_path))
    write_text(lease_of(tmp_path), json.dumps(left))  # what a killed host leaves behind; nobody renews it
    on_another_host(monkeypatch)
    with Store(tmp_path).run_lock("r"):
        assert read_json(lease_of(tmp_path))["token"] == left["token"] + 1


def test_on_the_same_host_nobody_waits_for_a_killed_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path).run_lock("r"):
        left = read_json(lease_of(tmp_path))
    write_text(lease_of(tmp_path), json.dumps(left))
    monkeypatch.setattr(lease, "_watch", lambda *_: pytest.fail("the lock has told already"))
    with Store(tmp_path).run_lock("r"):
        pass
    assert not lease_of(tmp_path).exists(), "given back"


@pytest.mark.parametrize("write", ["rename", "append"])
def test_of_two_that_start_at_once_the_first_stops_at_its_next_write(
    tmp_path: Path, lying_locks: None, write: str
) -> None:
    """Both read that nobody holds the run and both write a lease: the last one written counts."""
    store = Store(tmp_path)
    with pytest.raises(LockedError, match=r"run r was taken over by process 7 on node-b since t"), store.run_lock("r"):
        store.log("scored")
        mine = read_json(lease_of(tmp_path))
        other = {**mine, "id": "b", "host": "node-b", "pid": 7, "since": "t"}
        lease_of(tmp_path).write_text(json.dumps(other))
        if write == "rename":
            write_text(store.run("r") / "summary.json", "{}")
        else:
            store.log("finished")
    assert [e["event"] for e in store.events()] == ["scored"]
    assert not (store.run("r") / "summary.json").exists()
    assert read_json(lease_of(tmp_path))["id"] == "b", "the loser leaves the winner's lease alone"


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"token": 1}', "\x00" * 40])
def test_a_damaged_lease_is_nobody_s(tmp_path: Path, content: str) -> None:
    lease_of(tmp_path).parent.mkdir(parents=True)
    lease_of(tmp_path).write_text(content)
    with Store(tmp_path).run_lock("r"):
        assert read_json(lease_of(tmp_path))["token"] == 1


def test_readers_are_told_who_is_at_work_on_another_host_where_locks_lie(tmp_path: Path) -> None:
    path = lease_of(tmp_path, "a-s0")
    path.parent.mkdir(parents=True)
    (tmp_path / ".locks" / "a-s0").touch()
    holder = {"token": 1, "id": "x", "host": "node-7", "pid": 12, "boot": "another", "since": "2026-01-01T00:00:00Z"}
    path.write_text(json.dumps(holder), encoding="utf-8")
    assert Store(tmp_path).holder("a-s0") == "process 12 on node-7 since 2026-01-01T00:00:00Z"
    assert list(Store(tmp_path).held_runs()) == ["a-s0"]
    os.utime(path, (time.time() - 90, time.time() - 90))
    assert Store(tmp_path).holder("a-s0") is None and Store(tmp_path).held_runs() == {}


def test_a_lease_that_was_deleted_stops_its_holder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(LockedError, match="its lease is gone"), store.run_lock("r"):
        lease_of(tmp_path).unlink()
        store.log("scored")


def test_a_cell_that_is_in_use_elsewhere_ends_with_status_3(study: Any, forks: Any) -> None:
    assert forks("freeze", study.root, "--quiet").rc == 0
    run = json.loads(forks("status", study.root, "--cells", "--json").out)[0]["run_id"]
    with Store(study.root).run_lock(run):
        told = forks("work", study.root, run)
    assert told.rc == 3 and f"run {run} is in use by process" in told.err

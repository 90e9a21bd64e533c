"""A decision that was answered is on disk: killed servers, two tabs, two reviewers, undo."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from veritune.data.review import read_decisions
from veritune.errors import InputError, StaleError
from veritune.view.decisions import agreement, choices, decide, folder_of, merged

Desk = Callable[..., TestClient]
KINDS = ("keep", "drop", "edit")


@pytest.fixture
def pack(study: Path) -> Path:
    folder = study / "audit" / "review"
    folder.mkdir(parents=True)
    rows = []
    for n in range(12):
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": f"answer {n}"}]
        rows.append({"row_id": f"r{n}", "row_sha256": f"{n:064x}", "found": ["cut"], "messages": turns})
    path = folder / "pack.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def form_of(client: TestClient, address: str) -> dict[str, str]:
    import re

    page = client.get(address).text
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))


def test_ten_decisions_are_in_the_file(desk: Desk, study: Path, pack: Path) -> None:
    client = desk(study, edit=True)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    address = f"/p/{here}/review?pack=audit/review/pack.jsonl&reviewer=ann"
    for n in range(10):
        fields = form_of(client, address)
        assert fields["item"] == f"r{n}"
        answer = client.post(
            f"/p/{here}/review", data=fields | {"decision": "keep"}, headers={"sec-fetch-site": "same-origin"}
        )
        assert answer.status_code == 303
    assert [c.decision for c in choices(pack, "ann").values()] == ["keep"] * 10
    assert "10 decided" in client.get(address).text


def test_two_tabs_on_one_row_do_not_overwrite_each_other(desk: Desk, study: Path, pack: Path) -> None:
    client = desk(study, edit=True)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    fields = form_of(client, f"/p/{here}/review?pack=audit/review/pack.jsonl&reviewer=ann&n=1")
    same = {"sec-fetch-site": "same-origin"}
    assert client.post(f"/p/{here}/review", data=fields | {"decision": "keep"}, headers=same).status_code == 303
    late = client.post(f"/p/{here}/review", data=fields | {"decision": "drop", "why": "no"}, headers=same)
    assert late.status_code == 409
    assert "decided elsewhere since this page was drawn: &#39;keep&#39;" in late.text
    assert choices(pack, "ann")["r0"].decision == "keep"


def test_dropping_needs_a_reason(desk: Desk, study: Path, pack: Path) -> None:
    client = desk(study, edit=True)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    fields = form_of(client, f"/p/{here}/review?pack=audit/review/pack.jsonl&reviewer=ann&n=1")
    answer = client.post(
        f"/p/{here}/review", data=fields | {"decision": "drop"}, headers={"sec-fetch-site": "same-origin"}
    )
    assert answer.status_code == 422
    assert not folder_of(pack).exists()


def _write(pack: Path, ready: Path) -> None:
    n = 0
    while True:
        item = f"r{n % 12}"
        there = choices(pack, "ann").get(item)
        decide(pack, "ann", item, there.number if there else 0, decision="keep", why=str(n))
        with ready.open("a") as out:
            out.write(f"{n}\n")
        n += 1


def test_a_killed_server_loses_no_answered_decision(pack: Path, tmp_path: Path) -> None:
    answered = tmp_path / "answered"
    process = multiprocessing.get_context("fork").Process(target=_write, args=(pack, answered))
    process.start()
    while not answered.exists() or len(answered.read_text().split()) < 30:
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    whole = [line for line in answered.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = {json.loads(x)["why"] for x in (folder_of(pack) / "ann.jsonl").read_text().splitlines()}
    assert {line.strip() for line in whole} <= kept


def test_a_torn_last_line_is_no_decision_and_the_next_one_is_whole(pack: Path) -> None:
    decide(pack, "ann", "r0", 0, decision="keep", why=None)
    with (folder_of(pack) / "ann.jsonl").open("ab") as out:
        out.write(b'{"item": "r1", "decis')
    assert set(choices(pack, "ann")) == {"r0"}
    decide(pack, "ann", "r2", 0, decision="drop", why="cut")
    assert {k: c.decision for k, c in choices(pack, "ann").items()} == {"r0": "keep", "r2": "drop"}


def test_undo_is_a_line_too(pack: Path) -> None:
    decide(pack, "ann", "r0", 0, decision="keep", why=None)
    decide(pack, "ann", "r0", 1, decision=None, why=None)
    assert choices(pack, "ann")["r0"].decision is None
    with pytest.raises(StaleError, match="decided elsewhere"):
        decide(pack, "ann", "r0", 1, decision="drop", why="x")


@pytest.mark.parametrize("name", ["../ann", "", "a/b", ".hidden", "x" * 41])
def test_a_reviewer_is_no_path(pack: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be used as a reviewer's name"):
        choices(pack, name)


def test_agreement_of_constant_decisions_is_not_defined(pack: Path) -> None:
    for who in ("ann", "ben"):
        for n in range(4):
            decide(pack, who, f"r{n}", 0, decision="keep", why=None)
    found = agreement(pack, KINDS)
    assert found is not None
    assert found.agreement.alpha is None
    assert found.low is None


def test_agreement_has_an_interval_by_items(pack: Path) -> None:
    for n in range(12):
        decide(pack, "ann", f"r{n}", 0, decision="keep" if n % 2 else "drop", why="x")
        decide(pack, "ben", f"r{n}", 0, decision="keep" if n % 2 or n == 0 else "drop", why="x")
    found = agreement(pack, KINDS)
    assert found is not None
    assert found.agreement.units == 12
    assert found.low is not None
    assert found.high is not None
    assert found.low < (found.agreement.alpha or 0) <= found.high <= 1


def test_decisions_feed_the_next_version(pack: Path) -> None:
    decide(pack, "ann", "r0", 0, decision="drop", why="cut", row_sha256=f"{0:064x}")
    decide(pack, "ann", "r1", 0, decision="edit", why="typo", edited="better", row_sha256=f"{1:064x}")
    out = merged(pack)
    found = {d.row_id: d for d in read_decisions(out)}
    assert found["r0"].decision == "drop"
    assert found["r1"].messages[-1].content == "better"
    assert found["r1"].reviewer == "ann"

"""A word on two rows goes from the page to the file, and the next audit obeys it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.config.load import load_study
from veritune.data.load import load_rows
from veritune.data.prepare import _families
from veritune.data.stored import row_columns
from veritune.errors import DataError
from veritune.store import Store, write_parquet

Desk = Callable[..., TestClient]
SAME = {"sec-fetch-site": "same-origin"}
TALE = "The old harbour boat sails home past the quay walls while the slow tide turns over, in the {} of the year"


@pytest.fixture
def audited(tmp_path: Path) -> Path:
    """An audit of four wordings of one tale and one other row; ids come from a column."""
    rows = [
        {"key": f"b{n}", "prompt": f"Tell {n}.", "completion": TALE.format(w)} for n, w in enumerate(("dawn", "dusk"))
    ]
    rows += [{"key": "b2", "prompt": "Tell 2.", "completion": TALE.format("noon")}]
    rows += [
        {"key": "<b>x&", "prompt": "Say something else.", "completion": "Seven green apples lie in the muddy field"}
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    audit(tmp_path)
    return tmp_path / "audit"


def audit(folder: Path) -> str:
    asked = ["audit", str(folder / "data.jsonl"), "--id-field", "key", "--out", str(folder / "audit")]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    return found.output


def families(folder: Path) -> set[frozenset[str]]:
    rows = [json.loads(line) for line in (folder / "families.jsonl").read_text(encoding="utf-8").splitlines()]
    return {frozenset(r["row_id"] for r in rows if r["family"] == name) for name in {r["family"] for r in rows}}


def say(client: TestClient, a: str, b: str, same: str, seen: str = "") -> tuple[int, str]:
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    form = re.search(r'name="form" value="([^"]+)"', client.get(f"/p/{here}/audit").text)
    assert form is not None
    fields = {"form": form[1], "a": a, "b": b, "same": same, "seen": seen}
    answer = client.post(f"/p/{here}/audit", data=fields, headers=SAME)
    page = client.get(answer.headers["location"]) if answer.status_code == 303 else answer
    return answer.status_code, re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page.text)))


def test_not_one_family_is_obeyed_by_the_next_audit_and_said(desk: Desk, audited: Path) -> None:
    assert frozenset({"b0", "b1", "b2"}) in families(audited)
    client = desk(audited, edit=True)
    status, page = say(client, "b0", "b2", "no")
    assert status == 303
    assert "1 decision; the decisions are not applied to these families yet" in page
    assert "saved: b0 and b2: not one family" in page
    output = audit(audited.parent)
    assert families(audited) == {frozenset({"b0", "b1"}), frozenset({"b2"}), frozenset({"<b>x&"})}
    assert "1 of 1 applied (0 joined, 1 separated, 0 were true already)" in output
    assert "2 families before, 3 after; the family of 3 rows changed" in output
    record = json.loads((audited / "report.json").read_text(encoding="utf-8"))["family_decisions"]
    assert record["separated"] == [["b0", "b2"]]
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    assert "1 decision; these families have the decisions applied" in client.get(f"/p/{here}/audit").text


def test_one_family_joins_and_taking_it_back_parts_again(desk: Desk, audited: Path) -> None:
    client = desk(audited, edit=True)
    assert say(client, "b1", "<b>x&", "yes")[0] == 303
    audit(audited.parent)
    assert families(audited) == {frozenset({"b0", "b1", "b2", "<b>x&"})}
    assert say(client, "b1", "<b>x&", "", seen="yes")[0] == 303
    audit(audited.parent)
    assert frozenset({"<b>x&"}) in families(audited)


def test_what_cannot_be_decided_is_refused_and_nothing_is_written(desk: Desk, audited: Path) -> None:
    client = desk(audited, edit=True)
    say(client, "b0", "b1", "yes")
    say(client, "b1", "b2", "yes")
    before = (audited / "review" / "families.decisions.jsonl").read_bytes()
    assert "not one family, but b0 = b1 = b2" in say(client, "b0", "b2", "no")[1]
    assert "decided elsewhere since this page was drawn" in say(client, "b0", "b1", "no", seen="")[1]
    assert "'gone' is not a row of this audit" in say(client, "b0", "gone", "no")[1]
    assert say(client, "b0", "b0", "no")[0] == 422
    (audited.parent / "data.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', encoding="utf-8")
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    assert "<button" not in client.get(f"/p/{here}/audit").text.split('id="families"')[1].split("</section>")[
        0
    ].replace('<button name="same" value="">Take back', "")
    assert (audited / "review" / "families.decisions.jsonl").read_bytes() == before


def test_a_torn_line_of_a_killed_server_is_cut_off(desk: Desk, audited: Path) -> None:
    client = desk(audited, edit=True)
    say(client, "b0", "b1", "yes")
    path = audited / "review" / "families.decisions.jsonl"
    path.write_bytes(path.read_bytes() + b'{"a": "b1", "b"')
    assert say(client, "b0", "b2", "no")[0] == 303
    assert [json.loads(x)["same"] for x in path.read_text(encoding="utf-8").splitlines()] == [True, False]


def test_a_damaged_file_is_named_on_the_page_and_by_the_audit(desk: Desk, audited: Path) -> None:
    (audited / "review" / "families.decisions.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    client = desk(audited, edit=True)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    assert "families.decisions.jsonl line 1" in client.get(f"/p/{here}/audit").text
    asked = ["audit", str(audited.parent / "data.jsonl"), "--id-field", "key", "--out", str(audited)]
    found = CliRunner().invoke(app, asked)
    assert isinstance(found.exception, DataError)
    assert "families.decisions.jsonl line 1" in found.exception.message


def test_a_study_obeys_the_decisions_that_it_names(desk: Desk, audited: Path, tmp_path: Path) -> None:
    client = desk(audited, edit=True)
    say(client, "b0", "b2", "no")
    text = "name: s\nquestion: Does it?\nmodel: {path: builtin:smollm2-135m-instruct}\n"
    text += "data: {path: data.jsonl, id_field: key, family_decisions: audit/review/families.decisions.jsonl}\n"
    text += "conditions: {a: {method: full}}\nevals: {e: {kind: match, extract: '(.*)', expected: x}}\n"
    (tmp_path / "study.yaml").write_text(text, encoding="utf-8")
    study = load_study(tmp_path / "study.yaml")
    rows = load_rows(tmp_path / "data.jsonl", id_field="key").rows
    found, decided = _families(Store(tmp_path), study, rows)
    assert decided is not None
    assert decided.separated == (("b0", "b2"),)
    assert found.families[0] == found.families[1] != found.families[2]
    with pytest.raises(DataError, match=r"name a row that is not in this data \(b2\)"):
        _families(Store(tmp_path), study, (*rows[:2], rows[3]))


def test_the_families_of_a_study_are_those_of_its_contract(desk: Desk, study: Path) -> None:
    """A data version of later name that no contract names is not shown."""
    other = study / "data" / "zzz"
    other.mkdir(parents=True)
    rows = load_rows(_file(study.parent)).rows
    write_parquet(other / "rows.parquet", row_columns(rows))
    ids = [r.id for r in rows]
    blank = [None] * len(ids)
    write_parquet(
        other / "families.parquet", {"id": ids, "family": ["wrong"] * len(ids), "evidence": blank, "similarity": blank}
    )
    client = desk(study)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    assert "wrong" not in client.get(f"/p/{here}/audit").text


def _file(folder: Path) -> Path:
    path = folder / "other.jsonl"
    path.write_text("".join(f'{{"prompt": "p{n}", "completion": "c{n}"}}\n' for n in range(3)), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["families.jsonl", "contamination.jsonl", "findings.jsonl"])
def test_a_damaged_record_of_an_audit_is_named_and_is_not_an_empty_one(desk: Desk, audited: Path, name: str) -> None:
    (audited / name).write_bytes(b'{"broken\n{"row_id": 1}\n')
    client = desk(audited)
    page = client.get("/p/" + client.get("/").text.split('href="/p/')[1].split('"')[0] + "/audit")
    assert page.status_code == 200
    assert name in page.text


def test_what_was_not_checked_is_not_called_clean(desk: Desk, audited: Path, study: Path) -> None:
    client = desk(audited)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    assert "Not checked: no eval was given" in client.get(f"/p/{here}/audit").text
    client = desk(study)
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    assert "Not checked yet" in client.get(f"/p/{here}/audit").text

"""The results index in the workbench: on the home page, on its study's page, and comments that are on record."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from sealed_studies import sealed_study
from starlette.testclient import TestClient

from veritune.results.index import Said, add_results, read_index, say

Desk = Callable[..., TestClient]
SAME = {"sec-fetch-site": "same-origin"}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_study(tmp_path_factory.mktemp("sealed") / "study")


@pytest.fixture
def folder(sealed: Path, tmp_path: Path) -> Path:
    """A sealed study with an index beside it that holds its result, a comment and a task."""
    shutil.copytree(sealed, tmp_path / "study")
    add_results(tmp_path / "results", [tmp_path / "study"], by="Ada")
    say(tmp_path / "results", Said("<script>alert(1)</script> looks odd", on="R1"), by="Ben")
    say(tmp_path / "results", Said("Repeat it.", "task", "R1", "one seed", "two seeds agree", "stop"), by="Ben")
    return tmp_path


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def fields(page: str) -> dict[str, str]:
    section = page.split('id="noted"')[1]
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', section))


def study_page(client: TestClient) -> str:
    return "/p/" + client.get("/").text.split('href="/p/')[1].split('"')[0]


def test_home_lists_results_and_open_tasks(desk: Desk, folder: Path) -> None:
    page = text_of(desk(folder).get("/").text)
    assert "R1: Did it learn?" in page
    assert "3 entries, chained" in page
    assert "T1 Repeat it. why: one seed; done when: two seeds agree; if it fails: stop" in page


def test_a_study_shows_what_was_said_of_it_as_text(desk: Desk, folder: Path) -> None:
    client = desk(folder)
    page = client.get(study_page(client)).text
    assert "<script>alert(1)" not in page
    assert "<script>alert(1)</script> looks odd" in unescape(page)
    assert '<form method="post"' not in page


def test_a_comment_from_the_page_is_an_entry_of_the_index(desk: Desk, folder: Path) -> None:
    client = desk(folder, edit=True)
    address = study_page(client)
    form = fields(client.get(address).text) | {"text": "Seen by me.", "by": "Cleo"}
    assert client.post(f"{address}/comment", data=form, headers=SAME).status_code == 303
    found = read_index(folder / "results").results[0].comments[-1]
    assert (found.text, found.by) == ("Seen by me.", "Cleo")
    assert "Seen by me." in client.get(address).text


@pytest.mark.parametrize(
    ("change", "status"),
    [({"by": " "}, 422), ({"text": ""}, 422), ({"on": "R7"}, 422), ({"index": "9"}, 422), ({"form": "x"}, 403)],
)
def test_what_is_no_comment_is_refused(desk: Desk, folder: Path, change: dict[str, str], status: int) -> None:
    client = desk(folder, edit=True)
    address = study_page(client)
    before = (folder / "results" / "results.jsonl").read_bytes()
    form = fields(client.get(address).text) | {"text": "x", "by": "Cleo"} | change
    assert client.post(f"{address}/comment", data=form, headers=SAME).status_code == status
    assert (folder / "results" / "results.jsonl").read_bytes() == before


def test_a_damaged_index_is_named_and_the_rest_is_shown(desk: Desk, folder: Path) -> None:
    path = folder / "results" / "results.jsonl"
    path.write_bytes(path.read_bytes().replace(b"looks odd", b"looks fine"))
    client = desk(folder)
    page = text_of(client.get("/").text)
    assert "results.jsonl" in page
    assert "Did it learn?" in page
    assert client.get(study_page(client)).status_code == 200


def test_a_result_whose_study_was_edited_is_stale(desk: Desk, folder: Path) -> None:
    verdict = folder / "study" / "verdict.json"
    verdict.write_text(verdict.read_text(encoding="utf-8").replace("supported", "refuted", 1), encoding="utf-8")
    client = desk(folder)
    page = text_of(client.get("/").text)
    assert "STALE: its study was decided again since: learns supported to refuted" in page

"""What nobody designed for: hostile names, huge texts, empty and vanishing folders, numbers that are none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

Desk = Callable[..., TestClient]
SAME = {"sec-fetch-site": "same-origin"}
NAMES = (
    '"><img src=x onerror=alert(1)>',
    "../../etc/passwd",
    "a&b=c#d?e",
    "\u202egnirts",
    "line\nbreak",
    "{{7*7}}",
    "",
)


def scores(folder: Path, name: str, rows: list[dict[str, object]]) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    blank = {"run_id": "r", "eval": "e", "reason": None, "family": None, "zone": None, "output": "x", "parts": {}}
    path.write_text("".join(json.dumps(blank | row) + "\n" for row in rows), encoding="utf-8")
    return path


def here(client: TestClient) -> str:
    return "/p/" + client.get("/").text.split('href="/p/')[1].split('"')[0]


def test_an_item_is_found_again_under_any_name(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for run in ("a.jsonl", "b.jsonl"):
        scores(folder, run, [{"item_id": name, "family": name, "value": 1.0} for name in NAMES])
    client = desk(folder)
    page = client.get(f"{here(client)}/samples").text
    assert "<img" not in page
    assert "\u202e" not in page
    links = [unescape(x) for x in re.findall(r'<a href="([^"]*item=[^"]*)">link to this', page)]
    assert len(links) == len(NAMES) - 1  # an item without an id has nothing to link to but itself
    for link in links:
        found = client.get(f"{here(client)}/samples.jsonl{link}").text
        assert len({json.loads(line)["item_id"] for line in found.splitlines()}) == 1


@pytest.mark.parametrize("text", ["x" * 10_000_000, "word \n" * 100_000])
def test_huge_texts_make_a_small_page(desk: Desk, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "logs"
    parts = {"expected": text[:300_000], "extracted": text[:300_000]}
    scores(folder, "a.jsonl", [{"item_id": "i", "value": 1.0, "output": text, "parts": parts}])
    scores(folder, "b.jsonl", [{"item_id": "i", "value": 1.0, "output": text[:1000], "prompt": text[:300_000]}])
    client = desk(folder)
    page = client.get(f"{here(client)}/samples?run=b.jsonl&run=a.jsonl").text
    assert len(page) < 200_000
    assert f"{len(text):,} characters" in page
    assert page.count("(300,000 characters in all)") == 2


def test_a_score_that_is_no_number_is_no_score(desk: Desk, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    values: list[object] = [float("nan"), float("inf"), "1", [1], 1e400, 10**400, True, 0.5]
    for run in ("a.jsonl", "b.jsonl"):
        scores(folder, run, [{"item_id": f"i{n}", "value": value} for n, value in enumerate(values)])
    client = desk(folder)
    page = re.sub(r"<[^>]+>", "", client.get(f"{here(client)}/samples").text)
    assert "mean 0.750 of 2 scored, 5 without a score left out" in page
    assert "1 line of a.jsonl could not be read and is in no count." in page
    lines = client.get(f"{here(client)}/samples.jsonl").text.splitlines()
    assert [json.loads(x, parse_constant=lambda c: pytest.fail(c))["value"] for x in lines].count(None) == 10


@pytest.mark.parametrize("text", ["", "name: s\n", "[1, 2]\n", "name: s\nquestion: q\n", "\x00", "a: &a [*a]\n"])
def test_a_study_that_is_hardly_there_has_its_pages(desk: Desk, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    client = desk(folder)
    assert client.get("/").status_code == 200
    for page in ("", "/samples", "/run", "/audit", "/release"):
        answer = client.get(here(client) + page)
        assert answer.status_code in (200, 422), page
        assert "This page failed" not in answer.text


def test_a_folder_that_vanishes_is_said_to_be_gone(desk: Desk, study: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    for run in ("a.jsonl", "b.jsonl"):
        scores(logs, run, [{"item_id": "i", "value": 1.0}])
    client = desk(study, logs, edit=True)
    places = re.findall(r'href="(/p/[^"]+)"', client.get("/").text)
    assert len(places) == 2
    form = re.search(r'name="form" value="([^"]+)"', client.get(f"{places[0]}/audit").text)
    shutil.rmtree(study)
    shutil.rmtree(logs)
    assert client.get("/").status_code == 200
    for place in places:
        for page in (
            "",
            "/samples",
            "/samples.csv",
            "/run",
            "/audit",
            "/release",
            "/files/study.yaml",
            "/review?pack=x",
        ):
            answer = client.get(place + page, follow_redirects=True)
            assert answer.status_code in (200, 404, 422), page
            assert "This page failed" not in answer.text
    assert form is None or client.post(f"{places[0]}/audit", data={"form": form[1]}, headers=SAME).status_code != 500


@pytest.mark.parametrize(
    "query",
    [
        "page=99999999",
        "page=-1&page=x",
        "run=" + "&run=".join(["nobody"] * 500),
        "show=everything",
        "text=%ff%fe",
        "text=" + "x" * 5000,
        "family=%00&zone=%00&item=%00",
        "eval=../../x",
    ],
)
def test_any_query_of_the_samples_is_answered(desk: Desk, study: Path, query: str) -> None:
    client = desk(study)
    assert client.get(f"{here(client)}/samples?{query}").status_code == 200


@pytest.mark.parametrize(
    ("page", "fields"),
    [
        ("review", {"pack": "../../../etc/passwd", "reviewer": "ann", "item": "x", "decision": "keep"}),
        ("review", {"pack": "study.yaml", "reviewer": "ann", "item": "x", "decision": "keep"}),
        ("audit", {"a": "a-0", "b": "../x", "same": "no"}),
        ("audit", {}),
        ("comment", {"index": "-1", "on": "R1", "text": "x", "by": "y"}),
    ],
)
def test_a_form_made_by_hand_writes_nothing(desk: Desk, study: Path, page: str, fields: dict[str, str]) -> None:
    client = desk(study, edit=True)
    form = client.app.user_middleware[0].kwargs["rules"].form  # type: ignore[attr-defined]
    before = sorted(study.rglob("*"))
    answer = client.post(f"{here(client)}/{page}", data={"form": form, **fields}, headers=SAME)
    assert answer.status_code in (404, 422)
    assert sorted(study.rglob("*")) == before


def test_a_link_to_another_folder_is_not_walked(desk: Desk, study: Path, tmp_path: Path) -> None:
    named = tmp_path / "named"
    named.mkdir()
    (named / "away").symlink_to(study)
    (named / "loop").symlink_to(named)
    assert 'href="/p/' not in desk(named).get("/").text

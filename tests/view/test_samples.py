"""What a filter shows is what its chip counts and what the export holds; a chosen subset is called exploratory."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from veritune.view.diff import differences
from veritune.view.index import _read, cache_folder, index_of
from veritune.view.samples import Query, join, select

Desk = Callable[..., TestClient]


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page)))


def sides(client: TestClient, study: Path) -> str:
    """The address of the samples of wide, seed 3, against the baseline."""
    here = client.get("/").text.split('href="/p/')[1].split('"')[0]
    runs = {p.parent.parent.name: f"{p.parent.parent.name}/style" for p in study.glob("runs/*/scores/style.jsonl")}
    a = next(v for k, v in runs.items() if k.startswith("wide-s3"))
    b = next(v for k, v in runs.items() if k.startswith("baseline"))
    return f"/p/{here}/samples?run={a}&run={b}&eval=style"


def test_chips_count_what_the_export_holds(desk: Desk, study: Path) -> None:
    client = desk(study)
    address = sides(client, study)
    page = text_of(client.get(address).text)
    counts = dict(re.findall(r"(all|A higher|B higher|equal|failed extraction|cut|missing) (\d+)", page))
    assert (counts["A higher"], counts["B higher"], counts["failed extraction"]) == ("1", "1", "2")
    for show, label in (("all", "all"), ("a", "A higher"), ("b", "B higher"), ("failed", "failed extraction")):
        rows = client.get(address.replace("/samples?", "/samples.jsonl?") + f"&show={show}").text.splitlines()
        assert len(rows) == 2 * int(counts[label])
        cells = list(
            csv.reader(io.StringIO(client.get(address.replace("/samples?", "/samples.csv?") + f"&show={show}").text))
        )
        assert len(cells) == 1 + 2 * int(counts[label])


def test_a_missing_score_is_in_no_comparison(study: Path) -> None:
    paths = {p.parent.parent.name.rsplit("-", 1)[0]: p for p in study.glob("runs/*/scores/style.jsonl")}
    joined = join([("a", index_of(paths["wide-s3"])), ("b", index_of(paths["baseline"]))])
    counts = select(joined, Query()).counts
    assert counts["a"] + counts["b"] + counts["same"] + counts["missing"] == counts["all"]
    assert counts["failed"] == 2


def test_a_mean_has_its_denominator_and_a_subset_is_exploratory(desk: Desk, study: Path) -> None:
    client = desk(study)
    address = sides(client, study)
    whole = text_of(client.get(address).text)
    assert re.search(
        r"wide · seed 3: mean 0\.\d+ of 4 scored, 2 without a score left out; baseline: mean 0\.\d+ of 5 scored, 1 ",
        whole,
    )
    assert "Exploratory" not in whole
    for extra in ("&show=a", "&text=boat", "&family=a"):
        assert "Exploratory: these items were chosen after the results." in text_of(client.get(address + extra).text)


def test_the_verdict_stands_above_the_samples(desk: Desk, study: Path) -> None:
    client = desk(study)
    page = text_of(client.get(sides(client, study) + "&show=a").text)
    assert page.index("supported learns") < page.index("a-0")


def test_text_is_looked_for_in_outputs_and_prompts(desk: Desk, study: Path) -> None:
    client = desk(study)
    address = sides(client, study)
    found = client.get(address.replace("/samples?", "/samples.jsonl?") + "&text=sinks").text
    assert {json.loads(line)["item_id"] for line in found.splitlines()} == {"a-0"}
    assert len(client.get(address.replace("/samples?", "/samples.jsonl?") + "&text=Write about").text.splitlines()) > 2
    assert client.get(address.replace("/samples?", "/samples.jsonl?") + "&text=no such words").text == ""


def test_csv_cells_never_start_a_formula(desk: Desk, study: Path) -> None:
    client = desk(study)
    text = client.get(sides(client, study).replace("/samples?", "/samples.csv?")).text
    assert "'=1+1 the boat sails home" in text
    assert ",=1+1" not in text


def test_a_filter_in_the_address_gives_the_same_items_again(desk: Desk, study: Path) -> None:
    client = desk(study)
    address = sides(client, study) + "&show=a&zone=seen&page=1"
    ids = re.findall(r"<b>(\w-\d)</b>", client.get(address).text)
    assert ids
    assert ids == re.findall(r"<b>(\w-\d)</b>", client.get(address).text)


def test_numbers_link_to_the_line_that_they_come_from(desk: Desk, study: Path) -> None:
    client = desk(study)
    address = sides(client, study) + "&item=a-1"
    links = re.findall(r'class="score" href="([^"]+)"', client.get(address).text)
    assert len(links) == 2
    for link in links:
        row = re.search(r'id="here">.*?<pre>(.*?)</pre>', client.get(unescape(link)).text, re.DOTALL)
        assert row is not None
        assert json.loads(unescape(row[1]))["item_id"] == "a-1"


def test_hostile_text_stays_text(desk: Desk, study: Path) -> None:
    (path,) = study.glob("runs/wide-s3-*/scores/style.jsonl")
    evil = "</pre><script>alert(1)</script>\u202egnirts"
    rows = [json.loads(line) | {"output": evil} for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    client = desk(study)
    page = client.get(sides(client, study)).text
    assert "<script>alert" not in page
    assert "‹U+202E›" in page


def test_an_index_survives_damage_and_a_cut_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "scores.jsonl"
    good = {"run_id": "r", "eval": "e", "item_id": "é", "value": 1, "output": "x" * 3000, "reason": None}
    path.write_bytes((json.dumps(good) + "\n").encode() * 400 + b'{"item_id": "torn", "va')
    index = index_of(path)
    assert (len(index), index.unread) == (400, 1)
    assert index.lines([399])[0]["item_id"] == "é"
    assert list(cache_folder().glob("*.npz"))
    index_of.__globals__["_index"].cache_clear()
    again = index_of(path)
    assert (again.items, again.unread) == (index.items, 1)
    assert (again.offset_N == _read(path).offset_N).all()
    for kept in cache_folder().glob("*.npz"):
        kept.write_bytes(b"PK damaged")
    index_of.__globals__["_index"].cache_clear()
    assert index_of(path).items == index.items


def test_words_that_one_side_lacks_are_marked_on_both() -> None:
    found = differences("the boat sails home", "the boat sinks home")
    assert found is not None
    assert [p.text for p in found[0] if p.own] == ["sails"]
    assert [p.text for p in found[1] if p.own] == ["sinks"]
    assert "".join(p.text for p in found[0]) == "the boat sails home"
    assert differences("word " * 5000, "x") is None
    assert differences("", "") == ((), ())


def test_recorded_token_losses_are_shown_and_anything_else_is_not(desk: Desk, study: Path) -> None:
    (path,) = study.glob("runs/wide-s3-*/scores/style.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows[0]["parts"] = rows[0]["parts"] | {"token_losses": [["<b>a", 0.05], [" tide", 4.0], ["?", 1.95]]}
    rows[1]["parts"] = rows[1]["parts"] | {"token_losses": [["a", "0.1"], [" tide", 4.0]]}
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    client = desk(study)
    page = client.get(sides(client, study)).text
    assert page.count("Loss by token") == 1
    assert "mean 2.00 nats over 3" in page
    assert (
        '<span class="l0" title="0.050 nats">&lt;b&gt;a</span><span class="l5" title="4.000 nats"> tide</span>' in page
    )
    assert "<code>tide</code> 4.00, <code>?</code> 1.95" in page

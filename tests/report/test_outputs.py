"""Every output is reached from the report: on it, or on pages beside it, which are sealed, escaped and load nothing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from veritune.config.study import Study
from veritune.records import Finding, Score
from veritune.report import outputs, page
from veritune.report.page import write_report
from veritune.report.read import read_records
from veritune.seal import finish_run, redrawing, seal, verify
from veritune.store import Store, read_json, write_json

Small = tuple[Store, Study]
EVIL = "</pre><script>window.pwned=1</script><img src=x onerror=alert(1)>"


class Links(HTMLParser):
    """Where a page points to, what can be pointed to on it, and its tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.hrefs: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        self.hrefs += [value for name, value in attrs if name == "href" and value]
        self.ids |= {value for name, value in attrs if name == "id" and value}
        assert not [name for name in found if name.startswith("on") or name in ("src", "style")]


def score(store: Store, run: str, values: dict[str, float | None]) -> None:
    """Give items of a run's scores other values."""
    (path,) = store.runs.glob(f"{run}-*/scores/style.jsonl")
    lines = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    for line in lines:
        if line["item_id"] in values:
            line["value"] = values[line["item_id"]]
            line["output"] = f"{run} says of {line['item_id']}"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own and take most of a report's time."""
    monkeypatch.setattr(page, "draw_all", lambda store, records: [])


@pytest.fixture
def flipped(small: Small) -> Small:
    """`wide` beats the baseline on a-1 with both seeds, loses b-0 with seed 11; c-0 has no score."""
    store, _ = small
    score(store, "wide-s3", {"a-1": 1.0})
    score(store, "wide-s11", {"a-1": 1.0, "b-0": 0.0})
    return small


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits onto the page, one item fits onto a page beside it, and one line onto a list."""
    monkeypatch.setattr(outputs, "INLINE_BYTES", 0)
    monkeypatch.setattr(outputs, "PAGE_BYTES", 1)
    monkeypatch.setattr(outputs, "LIST_ROWS", 1)


def walk(start: Path) -> tuple[dict[Path, Links], list[tuple[Path, str]]]:
    """Every page that is reached from the first, and every link to one of them: (file, fragment)."""
    pages: dict[Path, Links] = {}
    links, queue = [], [start]
    while queue:
        here = queue.pop()
        pages[here] = Links(here.read_text("utf-8"))
        for href in pages[here].hrefs:
            name, _, fragment = href.partition("#")
            target = (here.parent / unquote(name)).resolve() if name else here
            assert target.exists(), f"{here.name} points to {href}"
            if target.suffix == ".html":
                links.append((target, fragment))
                queue += [] if target in pages or target in queue else [target]
    return pages, links


def listed(text: str) -> dict[str, tuple[str, str]]:
    """Items of a list of differences with the seeds on which A and B are higher."""
    row = r'<a href="[^"]*"><code>([\w-]+)</code></a></th><td>\w+</td><td>([^<]*)</td><td>([^<]*)</td>'
    return {item: (a, b) for item, a, b in re.findall(row, text)}


WIDE = {"a-1": ("seed 3, 11", ""), "b-0": ("", "seed 11")}


def test_few_outputs_stand_on_the_page_and_every_flipped_item_is_listed(flipped: Small) -> None:
    store, study = flipped
    report = write_report(store, study)
    text = report.read_text("utf-8")
    assert not store.outputs.exists()
    pages, links = walk(report.resolve())
    assert all(fragment in pages[target].ids for target, fragment in links if fragment)
    (pair,) = re.findall(r"<details><summary>wide against baseline: (.*?)</details>", text, flags=re.S)
    assert pair.startswith("2 of 6 items differ") and listed(pair) == WIDE and list(listed(pair)) == ["a-1", "b-0"]
    assert "narrow against baseline: no item of 6 differs" in text
    every = r'<details class="bulk"><summary>Every output of style: 6 items, 5 runs</summary>(.*?)</details>'
    (folded,) = re.findall(every, text, flags=re.S)
    assert len(re.findall(r'<article class="sample" id="item-0-\d"', folded)) == 6
    assert folded.count("wide-s11 says of b-0") == 1


@pytest.mark.usefixtures("beside")
def test_many_outputs_stand_beside_the_page_and_every_flipped_item_is_reached(flipped: Small) -> None:
    store, study = flipped
    report = write_report(store, study)
    pages, links = walk(report.resolve())
    assert all(fragment in pages[target].ids for target, fragment in links if fragment)
    assert set(pages) == {report.resolve(), *(path.resolve() for path in store.outputs.iterdir())}
    found: dict[str, tuple[str, str]] = {}
    for path in store.outputs.glob("*-differ-*.html"):
        text = path.read_text("utf-8")
        assert len(listed(text)) == 1
        found |= listed(text) if "<h1>wide against baseline</h1>" in text else {}
    assert found == WIDE
    items = sorted(path for path in store.outputs.iterdir() if re.search(r"-\d{5}\.html$", path.name))
    assert [re.findall(r"<h4><code>([\w-]+)</code></h4>", path.read_text("utf-8")) for path in items] == [
        ["a-0"], ["a-1"], ["a-2"], ["b-0"], ["b-1"], ["c-0"],
    ]  # fmt: skip
    assert "wide-s11 says of b-0" in items[3].read_text("utf-8") and "says of b-0" not in report.read_text("utf-8")


def test_an_item_without_a_score_counts_as_the_lowest_and_one_run_without_it_is_not_compared(flipped: Small) -> None:
    store, study = flipped
    score(store, "wide-s3", {"c-0": 0.0, "a-0": None})
    (path,) = store.runs.glob("wide-s11-*/scores/style.jsonl")
    path.write_text("".join(line for line in path.read_text("utf-8").splitlines(True) if '"a-2"' not in line), "utf-8")
    ((pair, found), *_) = outputs.pairs(read_records(store, study), "style")
    assert (pair.a, pair.b, pair.n, pair.asked) == ("wide", "baseline", 3, 6)
    assert {d.item_id: (list(d.a_higher), list(d.b_higher)) for d in found} == {
        "a-0": ([], ["3"]), "a-1": (["3", "11"], []), "b-0": ([], ["11"]),
    }  # fmt: skip


@pytest.mark.usefixtures("beside")
def test_pages_beside_are_sealed_drawn_again_and_taken_away(flipped: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    from veritune.records import RunSummary

    store, study = flipped
    for path in sorted(store.runs.glob("*/summary.json")):
        summary = RunSummary.load(path)
        path.unlink()
        finish_run(store, path.parent.name, summary)
    write_report(store, study)
    seal(store)
    apart = {"data.missing"}
    assert {f.check for f in verify(store.root)} <= apart
    edited, lost, *_ = sorted(store.outputs.glob("*-0000*.html"))
    whole = edited.read_bytes()
    edited.write_bytes(whole.replace(b"Boats", b"Trains"))
    lost.unlink()
    (store.outputs / "01-style-99999.html").write_text("put here")
    named = {(f.check, f.source) for f in verify(store.root) if f.check not in apart}
    assert named == {
        ("file.edited", f"report.outputs/{edited.name}"),
        ("file.missing", f"report.outputs/{lost.name}"),
        ("file.added", "report.outputs/01-style-99999.html"),
    }
    with redrawing(store):
        write_report(store, study)
    assert edited.read_bytes() == whole
    assert [f.message for f in verify(store.root) if f.check not in apart] == []
    monkeypatch.setattr(outputs, "INLINE_BYTES", 10**9)
    (store.outputs / "mine.html").write_text("a file of the user's")
    with redrawing(store):
        write_report(store, study)
    assert [path.name for path in store.outputs.iterdir()] == ["mine.html"]


@pytest.mark.usefixtures("beside")
def test_the_report_holds_a_hash_over_the_pages_beside_it(flipped: Small) -> None:
    store, study = flipped
    before = write_report(store, study).read_text("utf-8")
    score(store, "narrow-s11", {"c-0": None})  # an output that only a page beside the report shows
    after = write_report(store, study).read_text("utf-8")
    hashes = [re.findall(r"SHA-256 over their hashes <code>([0-9a-f]{64})", text) for text in (before, after)]
    assert hashes[0] != hashes[1] and len(hashes[0]) == len(hashes[1]) == 1


@pytest.mark.usefixtures("beside")
def test_hostile_text_stays_text_beside_the_page(builder: Callable[..., Small], tmp_path: Path) -> None:
    store, study = builder.build(tmp_path / "evil", evil=EVIL)  # type: ignore[attr-defined]
    (path,) = store.runs.glob("wide-s3-*/scores/style.jsonl")
    path.write_text(path.read_text("utf-8").replace('"item_id":"b-1"', f'"item_id":{json.dumps(EVIL)}'), "utf-8")
    write_report(store, study)
    for path in store.outputs.iterdir():
        text = path.read_text("utf-8")
        assert not {"script", "img", "iframe", "link"} & Links(text).tags
        assert 'content="default-src &#39;none&#39;; style-src' in text
    assert any("window.pwned" in path.read_text("utf-8") for path in store.outputs.iterdir())


def test_texts_are_read_from_where_their_lines_begin(small: Small) -> None:
    """Items that only some runs were asked, in another order, with text that is longer in bytes than in characters."""
    store, study = small
    (path,) = store.runs.glob("wide-s3-*/scores/style.jsonl")
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    for number, row in enumerate(rows):
        row["output"] = "é\u2028" * number + row["item_id"]
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in [*rows[::-1], rows[0]]), "utf-8")
    (run,) = [run for run in read_records(store, study).runs if run.run_id.startswith("wide-s3-")]
    scores = run.scores["style"]
    read = scores.read([row["item_id"] for row in rows] + ["nobody"])
    assert {name: one.output for name, one in read.items()} == {row["item_id"]: row["output"] for row in rows}
    assert [(s.item_id, s.value, s.zone, s.family) for s in scores] == [
        (s.item_id, s.value, s.zone, s.family) for s in Score.each(path)
    ]


# ---------------------------------------------------------------- what stands first


def lines(text: str) -> list[str]:
    (summary,) = re.findall(r'<div class="summary" id="summary">(.*?)</div>', text, flags=re.S)
    return [" ".join(re.sub("<[^>]+>", "", line).split()) for line in re.findall(r"<p>(.*?)</p>", summary, flags=re.S)]


def test_three_lines_say_what_held_what_is_open_and_what_next(small: Small) -> None:
    store, study = small
    held, left, coming = lines(write_report(store, study).read_text("utf-8"))
    assert held == (
        "Held: learns, wide scores higher than baseline on stranger items (low confidence). Refuted: same, narrow is "
        "equivalent within 0.071 to wide on stranger items (exploratory, low confidence)."
    )
    assert left.startswith("Open: carries, ") and left.endswith("on stranger items (untested).")
    assert coming == "Next experiment: the verdicts name no number that settles carries (few families)."
    record = read_json(store.verdict_file)
    record["verdicts"][1]["details"]["to_settle"] = "about 400 items with these seeds"
    write_json(store.verdict_file, record)
    assert lines(write_report(store, study).read_text("utf-8"))[2] == (
        "Next experiment: what settles carries: about 400 items with these seeds."
    )
    (manifest, *_) = store.runs.glob("wide-s3-*/manifest.json")
    manifest.write_text(manifest.read_text("utf-8").replace("bench-1", "bench-2"), "utf-8")
    assert lines(write_report(store, study).read_text("utf-8"))[0].endswith(". Standing caveats apply.")
    store.verdict_file.unlink()
    assert lines(write_report(store, study).read_text("utf-8"))[0] == "Held: no declared claim. Standing caveats apply."


def test_why_a_confidence_is_low_stands_unfolded_and_only_where_it_is_low(small: Small) -> None:
    store, study = small
    record = read_json(store.verdict_file)
    record["verdicts"][0]["confidence"]["evidence"] |= {
        "power": {"state": "good", "why": "enough"}, "units": {"state": "poor", "why": "three families"},
    }  # fmt: skip
    record["verdicts"][1]["confidence"]["grade"] = "moderate"
    write_json(store.verdict_file, record)
    text = write_report(store, study).read_text("utf-8")
    cards = re.findall(r'<article class="claim.*?</article>', text, flags=re.S)
    unfolded = [
        re.findall(r'<p class="small why">(.*?)</p>', re.sub("<details.*?</details>", "", c, flags=re.S)) for c in cards
    ]
    assert unfolded[0] == ["Confidence is low: units: three families; seeds: two seeds."]
    assert unfolded[1] == [] and unfolded[3] == []


def test_findings_of_the_audit_are_counted_by_check_errors_first(small: Small) -> None:
    store, study = small
    found = [Finding("empty", "note", f"row {n} is empty", row_id=f"r{n}") for n in range(1234)]
    found += [Finding("contaminated", "error", "row x holds an eval item", row_id="x")]
    Finding.save_all(store.audit("findings.jsonl"), found)
    text = write_report(store, study).read_text("utf-8")
    table = text[text.index("What the audit of the data found") :]
    assert table.index("contaminated") < table.index("empty") and "1,234" in table
    assert "row 2 is empty" in table and "row 3 is empty" not in table


def test_the_zones_that_claims_speak_of_come_first(small: Small) -> None:
    store, study = small
    text = write_report(store, study).read_text("utf-8")
    assert re.findall(r"<table><thead><tr><th>run</th><th>(\w+)</th>", text)[:2] == ["stranger", "stranger"]


def test_a_damaged_score_file_is_named_and_its_run_not_compared(flipped: Small) -> None:
    store, study = flipped
    (path,) = store.runs.glob("wide-s3-*/scores/style.jsonl")
    path.write_text(path.read_text("utf-8") + '{"value": ', "utf-8")
    records = read_records(store, study)
    assert any("style.jsonl line 7" in problem for problem in records.problems)
    ((pair, _), *_) = outputs.pairs(records, "style")
    assert pair.asked == 6 and pair.n == 2
    shutil.rmtree(store.runs)
    assert list(outputs.pairs(read_records(store, study), "style")) == []

"""The page says what the records say, all of it that matters, and nothing else; it loads nothing and runs nothing."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

import pytest
from markupsafe import escape

from veritune import verbs
from veritune.config.study import Study
from veritune.evaluate.means import zone_mean
from veritune.records import RunSummary
from veritune.report.page import render, write_report
from veritune.report.read import read_records
from veritune.store import Store, read_json, write_json

Small = tuple[Store, Study]
Draw = Callable[[], str]
EVIL = "</pre></script><script>window.pwned=1</script><img src=x onerror=alert(1)>\"'><a href=javascript:x>{{7*7}}&amp;"
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "div", "header", "main", "section", "article", "footer", "nav"),
    *("h1", "h2", "h3", "h4", "h5", "p", "a", "span", "b", "strong", "mark", "code", "pre", "time", "ul", "ol", "li"),
    *("table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "details", "summary", "figure", "figcaption"),
    *("svg", "g", "defs", "use", "clippath", "path", "rect", "line", "circle", "text"),
}
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; text inside `svg` and `style` is kept apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
        elif "svg" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


# ---------------------------------------------------------------- what it says


def test_every_verdict_is_on_the_page_with_its_status_word_and_sentence(page: Draw) -> None:
    html = page()
    text = Page(html).text
    for claim in ("learns", "carries", "same", "harmless"):
        assert f"The sentence about {claim} may be written." in text
        assert f"Never write that {claim} is causal." in text
    cards = re.findall(r'<article class="claim (\w+)".*?</article>', html, flags=re.S)
    assert cards == ["supported", "inconclusive", "refuted", "untested"]
    for card, status in zip(re.findall(r'<article class="claim.*?</article>', html, flags=re.S), cards):
        assert Page(card).text.startswith(status)


def test_a_card_gives_n_seeds_method_p_detectable_and_what_settles_it(page: Draw) -> None:
    text = Page(page()).text
    for shown in ("29 items", "in 17 families", "0.031", "t test", "0.042", "over 3 claims", "0.0893", "at 80 % power"):
        assert shown in text, shown
    assert "settles the margin 1,283 items" in text
    assert "exploratory" in text
    assert "method crossed" in text


def test_a_frozen_rule_and_its_outcome_are_on_the_card_and_on_the_screen(small: Small, page: Draw) -> None:
    store, _ = small
    record = json.loads(store.verdict_file.read_text(encoding="utf-8"))
    assert "frozen rule" not in Page(page()).text and "frozen rule" not in verbs.status_text(verbs.status(store.root))
    outcome = {"rule": {"min_gap": 0.01, "every_seed": True}, "gap": 0.0046, "per_seed": [0.0053, -0.0002]}
    record["verdicts"][0]["details"]["frozen_rule"] = outcome | {"winner": None, "a": "wide", "b": "baseline"}
    store.verdict_file.write_text(json.dumps(record), encoding="utf-8")
    text = Page(page()).text
    assert "frozen rule no winner (gap +0.0046; by seed +0.0053, -0.0002)" in text
    assert "min_gap 0.01, every seed" in text
    assert "frozen rule min_gap 0.01, every seed: no winner" in verbs.status_text(verbs.status(store.root))


def test_each_status_has_its_own_shape(page: Draw) -> None:
    shapes = re.findall(r'<span class="status (\w+)"><svg[^>]*>(.*?)</svg>', page(), flags=re.S)
    by_status = {status: " ".join(shape.split()) for status, shape in shapes}
    assert set(by_status) == {"supported", "refuted", "inconclusive", "untested"}
    assert len(set(by_status.values())) == 4


def test_a_claim_without_a_verdict_is_untested_and_may_not_be_written_about(small: Small, page: Draw) -> None:
    store, _ = small
    record = read_json(store.verdict_file)
    write_json(store.verdict_file, {**record, "verdicts": record["verdicts"][1:]})
    text = Page(page()).text
    assert "No verdict is recorded for this claim" in text
    assert "The sentence about learns" not in text


def test_scores_come_with_denominators_missing_by_reason_and_cut_outputs(page: Draw) -> None:
    text = Page(page()).text
    assert "0.254 29 of 31 scored, 5 cut 2 missing: empty_output" in text
    assert "limit of 37 tokens" in text
    assert "opens 23 of 29" in text


def test_conditions_show_what_differs_and_the_parameters_that_train(page: Draw) -> None:
    html = page()
    assert re.search(r'<tr class="differs"><th scope="row">target modules', html)
    assert "4,099" in html and "131,101" in html
    assert re.search(r'<tr><th scope="row">r</th>', html)


def test_samples_are_the_first_ids_of_the_first_stranger_families(page: Draw) -> None:
    html = page()
    assert re.findall(r"Item <code>([\w-]+)</code>", html) == ["b-0", "c-0"]
    text = Page(html).text
    assert "Expected Subject: Boats" in text
    assert "Subject: Boats of narrow cut at the length limit ✓ opens ✕ asks" in text
    assert "no score, empty_output" in text


def test_loss_mask_dims_the_prompt_and_highlights_the_target(page: Draw) -> None:
    html = page()
    assert '<span class="dim">&lt;|user|&gt;Write about boats.</span><mark>Subject: Boats&lt;|end|&gt;</mark>' in html


def test_every_source_is_a_file_of_the_study(small: Small, page: Draw) -> None:
    store, _ = small
    links = [a["href"] for a in Page(page()).all("a")]
    files = [unquote(link.removeprefix("./")) for link in links if not link.startswith("#")]
    assert len(set(files)) > 25
    for name in files:
        assert (store.root / name).exists(), name


def test_every_section_with_numbers_names_its_source(page: Draw) -> None:
    sections = re.findall(r'<section id="(\w+)">(.*?)</section>', page(), flags=re.S)
    assert [name for name, _ in sections] == [
        "verdicts", "caveats", "scores", "conditions", "training", "outputs", "data", "probe", "timeline", "again",
    ]  # fmt: skip
    for name, body in sections:
        assert 'class="source"' in body, name
    for table in ("learns", "scores"):
        assert table in "".join(body for _, body in sections)


# ---------------------------------------------------------------- it computes nothing

# Numbers of the page's own words: the power that `detectable` is defined at.
OWN_WORDS = {"80"}


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from _numbers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def _recorded(store: Store, texts: str) -> tuple[list[float], set[str]]:
    found: list[float] = []
    for line in texts.splitlines():
        try:
            found += _numbers(json.loads(line))
        except ValueError:
            continue
    for path in store.root.rglob("*.json"):
        found += _numbers(json.loads(path.read_text(encoding="utf-8")))
    return found, set(re.findall(r"\d+(?:\.\d+)?", texts))


def _is_recorded(shown: str, numbers: list[float]) -> bool:
    plain = shown.replace(",", "")
    places = len(plain.partition(".")[2])
    return any(f"{abs(x):.{places}f}" == plain or f"{100 * abs(x):.{places}f}" == plain for x in numbers) or any(
        f"{abs(x):.{digits}g}" == plain for x in numbers for digits in (2, 3, 4, 6)
    )


def _over_seeds(store: Store) -> Iterator[float]:
    """Mean, least, greatest and range over a condition's seeds, of every zone's mean score and loss."""
    columns: dict[tuple[str, ...], list[float]] = {}
    for path in store.runs.glob("*/summary.json"):
        run = RunSummary.load(path)
        for zone, cell in run.scores.get("style", {}).items():
            mean = zone_mean(cell)
            columns.setdefault((run.condition, "score", zone), []).append(mean.value if mean else 0.0)
        for zone, loss in run.nll.items():
            columns.setdefault((run.condition, "nll", zone), []).append(loss.nll)
    for values in columns.values():
        yield from (sum(values) / len(values), min(values), max(values), max(values) - min(values))


def test_every_number_on_the_page_is_a_recorded_number(small: Small, page: Draw, builder: ModuleType) -> None:
    store, _ = small
    numbers, in_texts = _recorded(store, builder.texts_of(store))
    for path in store.runs.glob("*/summary.json"):  # the one definition of a mean: an item without a score counts as 0
        cells = [cell for zones in RunSummary.load(path).scores.values() for cell in zones.values()]
        numbers += [mean.value for cell in cells if (mean := zone_mean(cell)) is not None]
    numbers += list(_over_seeds(store))
    text = re.sub(r"[0-9a-f]{8,}", " ", Page(page()).text)
    shown = set(re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w])", text))
    assert len(shown) > 80
    strange = {n for n in shown - OWN_WORDS - in_texts if not _is_recorded(n.rstrip(","), numbers)}
    assert not strange


# ---------------------------------------------------------------- it is safe to open


@pytest.fixture(scope="module")
def evil(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> str:
    small = builder.build(tmp_path_factory.mktemp("evil") / "study", evil=EVIL)
    return write_report(*small).read_text(encoding="utf-8")


def test_hostile_text_stays_text(evil: str) -> None:
    page = Page(evil)
    assert {tag for tag, _ in page.tags} <= ALLOWED
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on") or key in ("style", "src")]
    assert page.open == []
    assert page.text.count("window.pwned=1") > 20
    assert "{{7*7}}" in page.text
    assert "&amp;" in page.text


def test_hostile_text_reaches_every_place_that_shows_text(evil: str) -> None:
    text = Page(evil).text
    for before in ("Did it learn?", "may be written.", "is causal.", "few families", "two seeds", "Boats of narrow"):
        assert f"{before}</pre></script>" in text, before
    for before in ("empty_output", "Write about boats.", "a sibling is in seen", "Linux", "note ", "crossed"):
        assert f"{before}</pre></script>" in text, before


def test_the_page_loads_nothing(evil: str, page: Draw) -> None:
    for html in (evil, page()):
        parsed = Page(html)
        assert not [tag for tag, attrs in parsed.tags if "src" in attrs or "srcset" in attrs or tag == "link"]
        links = [attrs["href"] for tag, attrs in parsed.tags if "href" in attrs]
        assert links and all(link.startswith(("./", "#")) for link in links)
        assert "@import" not in parsed.style and "url(" not in parsed.style
        own = html if html is not evil else html.replace(EVIL, "")
        assert "http://" not in own and "https://" not in own


def test_the_policy_forbids_everything_but_the_pages_own_sheet(evil: str) -> None:
    page = Page(evil)
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    order = [tag for tag, _ in page.tags]
    assert order.index("style") > [m.get("http-equiv", "") for m in page.all("meta")].index("Content-Security-Policy")


def test_characters_that_hide_are_shown(small: Small, page: Draw) -> None:
    store, _ = small
    for path in store.runs.glob("narrow-*/scores/style.jsonl"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for line in lines:
            line["output"] = "safe\u202eelif\u0000\x1b[2J end"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    text = page()
    assert "safe‹U+202E›elif‹U+0000›‹U+001B›[2J end" in text
    assert not re.search("[\u202e\x00\x1b]", text)


def test_half_a_character_in_a_record_is_named_and_not_drawn(small: Small, page: Draw) -> None:
    store, _ = small
    (path, *_) = store.runs.glob("narrow-*/scores/style.jsonl")
    path.write_text(path.read_text("utf-8").replace("Subject: Boats", "torn-\\ud800-text"), encoding="utf-8")
    html = page()
    assert "torn-" not in html and f"{path.relative_to(store.root).as_posix()} line 1 is damaged" in html


# ---------------------------------------------------------------- missing and damaged records


OPTIONAL = (
    "verdict.json",
    "contract.lock.json",
    "events.jsonl",
    "audit",
    "audit/render.json",
    "audit/split.json",
    "audit/live-wide.json",
    "data",
    "data/feed5eedf00d/rows.parquet",
    "runs",
    "runs/*/summary.json",
    "runs/*/metrics.jsonl",
    "runs/*/telemetry.jsonl",
    "runs/*/scores",
    "runs/baseline-*",
    "runs/wide-*",
)


@pytest.mark.parametrize("name", OPTIONAL if os.environ.get("VERITUNE_CRASH") == "all" else OPTIONAL[::3])
def test_a_missing_record_is_told_and_never_zero(name: str, small: Small, page: Draw) -> None:
    store, _ = small
    before = Page(page())
    gone = list(store.root.glob(name))
    if name == "runs/*/summary.json":
        gone += store.root.glob("runs/*/training.json")  # a summary repeats it
    assert gone
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    after = Page(page())
    told = ("not recorded", "not on disk", "No verdict", "No trained run", "no longer")
    assert sum(after.text.count(t) for t in told) > sum(before.text.count(t) for t in told)
    assert not re.search(r"\b0\.000(?!\d)", after.text)


DAMAGED = (
    "verdict.json",
    "contract.lock.json",
    "events.jsonl",
    "audit/split.json",
    "data/feed5eedf00d/rows.parquet",
    "runs/narrow-*/manifest.json",
    "runs/narrow-*/summary.json",
    "runs/narrow-*/telemetry.jsonl",
    "runs/narrow-*/scores/style.jsonl",
)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_record_is_named_and_the_rest_is_drawn(name: str, small: Small, page: Draw) -> None:
    store, _ = small
    damaged = sorted(store.root.glob(name))[0]
    damaged.write_bytes(b'{"verdicts": [')
    html = page()
    banner = re.search(r'<div class="banner".*?</div>', html, flags=re.S)
    assert banner is not None
    assert damaged.relative_to(store.root).as_posix() in banner.group()
    assert str(store.root) not in html
    assert "To do it again" in html


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*path, key))
    elif isinstance(value, list) and value:
        yield from _places(value[0], (*path, 0))


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = _with(value[path[0]], path[1:], new)
    return changed


def test_a_record_with_a_misfit_is_left_out_and_named_with_the_place(small: Small) -> None:
    store, study = small
    verdict = read_json(store.verdict_file)
    write_json(store.verdict_file, _with(verdict, ("verdicts", 0, "detectable"), "wide"))
    records = read_records(store, study)
    (said,) = records.problems
    assert said == 'verdict.json: verdicts[0].detectable: expected a number, found "wide".'
    assert records.verdict is None and str(escape(said)) in render(records, [])


SHAPED = ("verdict.json", "contract.lock.json", "audit/split.json", "runs/wide-s3-*/summary.json")


@pytest.mark.parametrize("name", SHAPED)
def test_a_value_of_another_shape_does_not_stop_the_drawing(name: str, small: Small) -> None:
    """Eight places of each record, drawn by a seeded generator, hold text or a number where something else belongs."""
    store, study = small
    (path,) = store.root.glob(name)
    whole = json.loads(path.read_text(encoding="utf-8"))
    places = [place for place in _places(whole) if place]
    for place in random.Random(3).sample(places, 8):
        for new in (7, "x", [[]]):
            write_json(path, _with(whole, place, new))
            records = read_records(store, study)
            assert "To do it again" in render(records, [])


def test_a_contract_edited_after_the_freeze_is_told_first(small: Small, page: Draw) -> None:
    store, _ = small
    store.contract_file.write_text(store.contract_file.read_text().replace('"margin": 0.071', '"margin": 0.5'))
    html = page()
    assert "was edited after it was written" in html
    assert html.index("was edited after") < html.index('id="verdicts"')


def test_a_verdict_of_another_contract_is_told_first(small: Small, page: Draw) -> None:
    store, _ = small
    write_json(store.verdict_file, {**read_json(store.verdict_file), "contract": "f" * 64})
    html = page()
    assert "decided under contract ffffffffffff" in html
    assert html.index("decided under contract") < html.index('id="verdicts"')


def test_a_run_that_the_contract_does_not_plan_is_named_and_not_drawn(small: Small, page: Draw) -> None:
    store, _ = small
    before = Page(page()).text
    (old, *_) = sorted(store.runs.glob("wide-s3-*"))
    shutil.copytree(old, store.runs / "wide-s3-00000000")
    after = Page(page()).text
    assert "not drawn: wide-s3-00000000" in after
    assert after.count("wide · seed 3") == before.count("wide · seed 3") > 0
    assert (store.figures / "zones_style.csv").read_text().count("stranger,wide,3,") == 1


# ---------------------------------------------------------------- the same records, the same bytes


def _digests(folder: Path) -> dict[str, str]:
    files = [folder / "report.html", *sorted((folder / "figures").iterdir())]
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_same_records_give_the_same_bytes_in_another_process_and_place(small: Small, tmp_path: Path) -> None:
    store, study = small
    shutil.rmtree(store.figures)
    other = tmp_path / "elsewhere" / "copy"
    shutil.copytree(store.root, other)
    write_report(store, study)
    code = (
        "import sys; from pathlib import Path;"
        "from veritune.config.load import load_study; from veritune.store import Store;"
        "from veritune.report.page import write_report; p = Path(sys.argv[1]);"
        "write_report(Store(p), load_study(p / 'study.yaml'))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(other)], check=True, env={"PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"}
    )
    assert _digests(store.root) == _digests(other)


def test_drawing_reads_and_never_writes_a_record(small: Small, page: Draw) -> None:
    store, _ = small
    shutil.rmtree(store.figures)
    store.report_file.unlink()
    records = [p for p in store.root.rglob("*") if p.is_file()]
    before = {p: p.read_bytes() for p in records}
    page()
    assert {p: p.read_bytes() for p in records} == before
    new = {p.relative_to(store.root).parts[0] for p in store.root.rglob("*") if p.is_file() and p not in before}
    assert new == {"report.html", "figures"}


def test_a_study_that_really_ran_is_drawn_without_a_gap(finished_copy: Any) -> None:
    from veritune.config.load import load_study

    store = Store(finished_copy.root)
    text = Page(write_report(store, load_study(store.study_file)).read_text(encoding="utf-8")).text
    assert "Read this first" not in text
    for verdict in read_json(store.verdict_file)["verdicts"]:
        assert " ".join(verdict["sentence"].split()) in text
    gaps = [text[m.start() - 90 : m.end()] for m in re.finditer("not recorded", text)]
    assert not gaps

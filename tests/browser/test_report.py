"""The report in a real browser: quiet, readable on a phone and in the dark, walkable by keyboard and by ear."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path(os.environ.get("VERITUNE_CHROMIUM", "/usr/bin/chromium"))
EVIL = "</pre><script>window.pwned=1</script><img src=x onerror='window.pwned=1'><svg onload='window.pwned=1'>"

pytestmark = pytest.mark.browser

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser; skips where playwright or chromium is missing."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs the playwright package (pip install playwright)")
    if not CHROMIUM.exists():
        pytest.skip(f"needs chromium at {CHROMIUM}: install it, or name another with VERITUNE_CHROMIUM")
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", "--disable-background-networking"]
    flags += ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The small study's report: `plain`, and `evil` with hostile text in every place."""
    from veritune.report.page import write_report

    path = Path(__file__).parents[1] / "report" / "small_study.py"
    spec = importlib.util.spec_from_file_location("small_study", path)
    assert spec is not None and spec.loader is not None
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    folder = tmp_path_factory.mktemp("reports")
    texts = {"plain": "", "evil": EVIL}
    return {name: write_report(*builder.build(folder / name, evil=text)) for name, text in texts.items()}


@pytest.fixture
def opened(chromium: Any, reports: dict[str, Path]) -> Iterator[Open]:
    """Open a report; its page. What the console, the page and the network said is in `page.heard`."""
    pages = []

    def visit(name: str = "plain", *, width: int = 1200, scheme: str = "light") -> Any:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.heard = []
        page.on("console", lambda message: page.heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: page.heard.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (page.heard.append("dialog"), dialog.dismiss()))
        page.on("request", lambda request: page.heard.append(f"request: {request.url}"))
        page.goto(reports[name].as_uri())
        return page

    yield visit
    for page in pages:
        page.close()


@pytest.mark.parametrize("name", ["plain", "evil"])
def test_page_is_quiet_and_asks_for_nothing_but_itself(name: str, opened: Open, reports: dict[str, Path]) -> None:
    page = opened(name)
    assert page.heard == [f"request: {reports[name].as_uri()}"]
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("document.scripts.length + document.images.length") == 0


def test_policy_stops_a_script_that_would_get_in(opened: Open) -> None:
    page = opened()
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.pwned = 1'}))")
    assert page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in line for line in page.heard)


@pytest.mark.parametrize("width", [320, 400, 768, 1200])
@pytest.mark.parametrize("name", ["plain", "evil"])
def test_page_never_scrolls_sideways(name: str, width: int, opened: Open) -> None:
    page = opened(name, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_wide_tables_scroll_in_a_named_region_that_the_keyboard_reaches(opened: Open) -> None:
    page = opened(width=400)
    regions = page.evaluate(
        "[...document.querySelectorAll('.scroll')].map(e => [e.tabIndex, e.getAttribute('role'), e.ariaLabel])"
    )
    assert len(regions) > 5
    assert all(index == 0 and role == "region" and label for index, role, label in regions)
    assert len({label for *_, label in regions}) == len(regions)


def test_headings_descend_without_a_gap_and_landmarks_are_there(opened: Open) -> None:
    page = opened()
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("main", "nav[aria-label]", "body > .page > header", "footer"):
        assert page.locator(landmark).count() == 1, landmark
    assert page.evaluate("document.documentElement.lang") == "en"


def test_ids_are_unique_and_inner_links_arrive(opened: Open) -> None:
    page = opened()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href').slice(1))"
    )
    assert targets and set(targets) <= set(ids)


def test_the_answers_stand_in_the_first_screen(opened: Open) -> None:
    page = opened()
    below = page.evaluate(
        "[...document.querySelectorAll('h1, .brief a')].map(e => e.getBoundingClientRect().bottom).filter(y => y > 300)"
    )
    assert below == []
    first = page.evaluate("document.querySelectorAll('.claim')[1].getBoundingClientRect().bottom")
    assert first < 900


CONTRAST = """() => {
  const numbers = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = numbers(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walker.nextNode(); n; n = walker.nextNode()) {
    const e = n.parentElement, s = getComputedStyle(e);
    if (!n.data.trim() || s.visibility === 'hidden') continue;
    const paint = e.namespaceURI.endsWith('svg') ? s.fill : s.color;
    if (paint === 'none') continue;
    const [a, b] = [light(numbers(paint)), light(ground(e))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), n.data.trim().slice(0, 40), paint]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast_enough_in_both_schemes(scheme: str, opened: Open) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    page = opened(scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    found = page.evaluate(CONTRAST)
    assert len(found) > 300
    assert found[0][0] >= 4.5, found[0]


def test_the_two_schemes_really_differ(opened: Open) -> None:
    paper = [opened(scheme=s).evaluate("getComputedStyle(document.body).backgroundColor") for s in ("light", "dark")]
    assert paper[0] != paper[1]


def test_text_of_figures_is_legible_on_a_phone(opened: Open) -> None:
    page = opened(width=400)
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h > 0)"
    )
    assert len(sizes) > 50
    assert min(sizes) >= 8


def test_what_may_not_be_written_is_printed_though_folded(opened: Open) -> None:
    visible = "document.querySelector('.folds details li').checkVisibility()"
    page = opened()
    assert page.evaluate(visible) is False
    page.emulate_media(media="print")
    page.reload()
    assert page.evaluate(visible) is True

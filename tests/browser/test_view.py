"""The workbench in a real browser: walks by mouse and keyboard, quiet, within the screen, with scripts and without."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe import axe_source, faults
from workbench_folder import build_workbench

from veritune.store import Store

CHROMIUM = Path(os.environ.get("VERITUNE_CHROMIUM", "/usr/bin/chromium"))
TESTS = Path(__file__).parents[1]
SRC = TESTS.parent / "src"

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("needs the playwright package (pip install playwright)")
    if not CHROMIUM.exists():
        pytest.skip(f"needs chromium at {CHROMIUM}: install it, or name another with VERITUNE_CHROMIUM")
    from playwright.sync_api import sync_playwright

    flags = ["--disable-gpu", "--disable-background-networking", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=str(CHROMIUM), args=flags)
        yield browser
        browser.close()


class Server:
    """`veritune view` in a process of its own."""

    def __init__(self, *folders: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folders = folders
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "veritune",
            "view",
            *map(str, self.folders),
            "--port",
            str(self.port),
            "--edit",
        ]
        env = {**os.environ, "PYTHONPATH": str(SRC)}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(600):
            try:
                urllib.request.urlopen(self.url, timeout=5).close()
                return
            except OSError:
                assert self.process.poll() is None, self.process.communicate()[1]
                time.sleep(0.1)
        raise AssertionError("the server did not answer within a minute")

    def stop(self, how: int = signal.SIGKILL) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(build_workbench(tmp_path_factory.mktemp("view")))
    yield started
    if started.process.poll() is None:
        started.stop()


def opened(chromium: Any, server: Server, path: str = "/", *, width: int = 1280, **how: Any) -> Any:
    """A page; what the console, the page and the network said is in `page.heard`."""
    page = chromium.new_page(viewport={"width": width, "height": 800}, **how)
    page.heard = []
    page.on("console", lambda m: page.heard.append(m.text))
    page.on("pageerror", lambda e: page.heard.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith(server.url) else page.heard.append(f"asked {r.url}"))
    page.goto(server.url + path, timeout=120_000)
    return page


def home_links(server: Server) -> dict[str, str]:
    """The address of every place by its name."""
    home = urllib.request.urlopen(server.url).read().decode()
    return {found.rsplit("-", 1)[0]: f"/p/{found}" for found in re.findall(r'href="/p/([\w-]+)"', home)}


def paths(server: Server) -> dict[str, str]:
    """Every page by name."""
    places = home_links(server)
    here, audit, logs = places["small"], places["audit"], places["logs"]
    found = {"home": "/", "study": here, "compare": f"/compare?place={logs[3:]}&a=tuned.jsonl&b=base.jsonl"}
    found |= {name: f"{here}/{name}" for name in ("samples", "run", "release")}
    found |= {"audit": f"{audit}/audit", "logs": f"{logs}/samples", "missing": "/p/none"}
    found |= {"review": f"{here}/review?pack=review/pack.jsonl&reviewer=eve"}
    return found | {"file": f"{here}/files/events.jsonl?line=2"}


SETTINGS = [(1280, "light", True), (360, "dark", True), (390, "light", False)]


@pytest.mark.parametrize(("width", "look", "script"), SETTINGS)
def test_every_page_fits_the_screen_and_asks_nobody_else(
    chromium: Any, server: Server, width: int, look: str, script: bool
) -> None:
    for name, path in paths(server).items():
        page = opened(chromium, server, path, width=width, java_script_enabled=script, color_scheme=look)
        assert page.locator("h1").count() == 1, name
        heard = [text for text in page.heard if name != "missing" or "404" not in text]
        assert heard == [], name
        if script:
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert page.evaluate("window.pwned") is None, name
        page.close()


@pytest.mark.parametrize(("width", "look", "only"), [(360, "light", ""), (1280, "dark", "color-contrast")])
def test_no_page_has_a_serious_fault_of_accessibility(
    chromium: Any, server: Server, width: int, look: str, only: str
) -> None:
    axe_source()
    for name, path in paths(server).items():
        page = opened(chromium, server, path, width=width, color_scheme=look)
        for fold in page.locator("details").all():
            fold.evaluate("fold => { fold.open = true; }")
        assert faults(page, only) == [], name
        page.close()


def test_a_printed_page_has_its_outputs_and_no_controls(chromium: Any, server: Server) -> None:
    page = opened(chromium, server, paths(server)["samples"])
    page.emulate_media(media="print")
    assert not page.locator(".bar").is_visible()
    assert not page.locator("form.filters").is_visible()
    assert page.locator("pre.output").first.is_visible()
    page.close()


def test_the_keyboard_alone_reaches_an_item_of_a_verdict(chromium: Any, server: Server) -> None:
    """Tab and Enter: home, the study, a chip of flipped items; what has the focus can be seen."""
    page = opened(chromium, server)
    for wanted in ("Did it learn?", "higher for wide: 1"):
        for _ in range(80):
            page.keyboard.press("Tab")
            text = page.evaluate("document.activeElement.textContent.trim()")
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", text
            if text == wanted:
                break
        else:
            raise AssertionError(f"no Tab led to {wanted}")
        with page.expect_navigation(timeout=120_000):
            page.keyboard.press("Enter")
    assert "Samples" in page.title()
    page.close()


def test_a_word_on_two_rows_is_written_from_the_page(chromium: Any, server: Server) -> None:
    page = opened(chromium, server, paths(server)["audit"])
    page.locator("details.family summary").first.click()
    page.locator("details.family button", has_text="Not one family").first.click()
    assert "not one family" in page.locator("[role=status]").inner_text()
    (kept,) = server.folders[0].glob("audit/review/families.decisions.jsonl")
    assert json.loads(kept.read_text(encoding="utf-8"))["same"] is False
    page.close()


def test_from_a_verdict_to_a_changed_item_in_three_clicks(chromium: Any, server: Server) -> None:
    page = opened(chromium, server)
    page.locator("main table a").first.click()
    page.locator(".chip", has_text="wide: 1").first.click()
    assert "sails" in page.locator(".answer.a0 mark.own").all_inner_texts()
    assert "sinks" in page.locator(".answer.a1 mark.own").all_inner_texts()
    assert "Exploratory" in page.locator("main").inner_text()
    page.close()


def test_keys_move_between_items_and_hide_a_side(chromium: Any, server: Server) -> None:
    page = opened(chromium, server, paths(server)["samples"])
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == "i2"
    page.keyboard.press("1")
    assert not page.locator("#i2 .answer.a1").is_visible()
    page.keyboard.press("3")
    assert page.locator("#i2 .answer.a1").is_visible()
    page.close()


def test_a_changed_filter_is_in_the_address_and_back_returns(chromium: Any, server: Server) -> None:
    from playwright.sync_api import expect

    page = opened(chromium, server, paths(server)["samples"])
    before = page.locator("article.item").count()
    page.locator("select[name=zone]").select_option("stranger")
    page.wait_for_url("**zone=stranger**")
    after = page.locator("article.item").count()
    assert 0 < after < before
    page.reload()
    assert page.locator("article.item").count() == after
    page.go_back()
    expect(page.locator("article.item")).to_have_count(before)
    page.close()


def test_ten_rows_are_reviewed_across_a_reload_and_a_killed_server(chromium: Any, server: Server) -> None:
    from playwright.sync_api import expect

    path = paths(server)["review"].replace("eve", "ann")
    page = opened(chromium, server, path)
    for n in range(10):
        page.keyboard.press("1")
        expect(page.locator("main")).to_contain_text(f"{n + 1} decided")
        if n == 3:
            page.reload()
        if n == 6:
            server.stop()
            server.start()
            page.goto(server.url + path)
    (kept,) = server.folders[0].glob("small/review/pack.decisions/ann.jsonl")
    assert [json.loads(x)["decision"] for x in kept.read_text(encoding="utf-8").splitlines()] == ["keep"] * 10
    page.close()


def test_a_live_curve_follows_the_file(chromium: Any, server: Server) -> None:
    """A cell that holds its lock is followed: a line that is written to its metrics arrives without a reload."""
    (metrics,) = server.folders[0].glob("small/runs/narrow-s11-*/metrics.jsonl")
    run_id = metrics.parent.name
    with Store(server.folders[0] / "small").run_lock(run_id):
        page = opened(chromium, server, f"{paths(server)['run']}?run={run_id}")
        page.wait_for_selector("live-chart .u-wrap")
        assert page.locator("tr", has_text=run_id).locator(".state").inner_text() in ("running", "stalled")
        row = json.loads(metrics.read_text(encoding="utf-8").splitlines()[-1])
        with metrics.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row | {"step": 777, "loss": 0.25}) + "\n")
        for _ in range(240):  # the page's policy allows no eval, which `wait_for_function` would need
            if page.evaluate("document.querySelector('live-chart').plot.data[0].includes(777)"):
                break
            page.wait_for_timeout(250)
        else:
            raise AssertionError("the step that was written did not arrive within a minute")
        assert page.heard == []
        page.close()


def test_ctrl_c_ends_the_server_while_a_page_is_open(chromium: Any, server: Server) -> None:
    page = opened(chromium, server, paths(server)["run"])
    assert server.stop(signal.SIGINT) in (0, -signal.SIGINT, 130)
    server.start()
    page.close()

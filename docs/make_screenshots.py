"""Writes a picture of every page of the workbench, at two widths, light and dark, into build/screenshots.

    python docs/make_screenshots.py [FOLDER …] [--out build/screenshots] [--registry DIR]

Without a folder it takes the invented one of the tests. Somebody has to look at them: no picture is compared.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = os.environ.get("VERITUNE_CHROMIUM", "/usr/bin/chromium")
WIDTHS = {"wide": 1280, "narrow": 390}


@contextmanager
def served(folders: list[Path]) -> Iterator[str]:
    """The workbench in a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "veritune", "view", *map(str, folders), "--port", str(port), "--edit"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while server.poll() is None:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


def pages(page: Any, url: str) -> dict[str, str]:
    """Addresses by name: home, compare, and every page of every place that home links to."""
    page.goto(url)
    links = page.eval_on_selector_all("main a[href^='/p/']", "found => found.map(a => a.getAttribute('href'))")
    places = [link for link in dict.fromkeys(links) if link.count("/") == 2]
    found = {"home": "/"}
    for place in places:
        page.goto(url + place)
        name = place.removeprefix("/p/").rsplit("-", 1)[0]
        tabs = page.eval_on_selector_all(".bar li a", "found => found.map(a => a.getAttribute('href'))")
        for tab in tabs[1:-1]:
            found[f"{name}-{tab.removeprefix(place).strip('/') or 'study'}"] = tab
        if page.locator("main a.chip[href*='/samples?']").count():
            found[f"{name}-samples-one-side"] = page.locator("main a.chip[href*='/samples?']").first.get_attribute("href")
        packs = page.goto(f"{url}{place}/audit") and page.locator("a[href*='/review?']")
        if packs.count():
            found[f"{name}-review"] = packs.first.get_attribute("href") + "&reviewer=ada"
        found[f"{name}-compare"] = _compared(page, url, place)
    return {name: path for name, path in found.items() if path}


def _compared(page: Any, url: str, place: str) -> str:
    """Compare with the first two files picked."""
    page.goto(f"{url}/compare?place={place.removeprefix('/p/')}")
    boxes = {side: page.locator(f"input[name={side}]") for side in "ab"}
    if boxes["a"].count() < 2:
        return ""
    names = boxes["a"].last.get_attribute("value"), boxes["b"].first.get_attribute("value")
    page.goto(f"{url}/compare?place={place.removeprefix('/p/')}&a={names[0]}&b={names[1]}")
    return str(page.url.removeprefix(url))


def shoot(url: str, out: Path) -> list[Path]:
    """The pictures that were written."""
    from playwright.sync_api import sync_playwright

    out.mkdir(parents=True, exist_ok=True)
    flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    written = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=flags)
        addresses = pages(browser.new_page(), url)
        for look in ("light", "dark"):
            for width_name, width in WIDTHS.items():
                context = browser.new_context(
                    viewport={"width": width, "height": 844}, color_scheme=look, reduced_motion="reduce"
                )
                for name, address in addresses.items() if look == "light" else list(addresses.items())[:3]:
                    page = context.new_page()
                    page.goto(url + address, wait_until="load")
                    page.wait_for_timeout(300)  # curves are drawn after the page has loaded
                    path = out / f"{name}-{width_name}-{look}.png"
                    page.screenshot(path=path, full_page=True)
                    page.close()
                    written.append(path)
                context.close()
        browser.close()
    return written


def main() -> None:
    """Write them and name them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "screenshots")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folders = given.folders
        if not folders:
            sys.path.insert(0, str(ROOT / "tests" / "common"))
            from workbench_folder import build_workbench

            folders = [build_workbench(Path(made))]
        with served(folders) as url:
            for path in shoot(url, given.out):
                print(path)


if __name__ == "__main__":
    main()

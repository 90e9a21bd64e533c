"""The workbench shows a study whose records hold hostile values: no page fails, whatever a record says."""

from __future__ import annotations

import html
import importlib.util
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from veritune.demo import unpack
from veritune.view.app import make_app, rules_for

_spec = importlib.util.spec_from_file_location("hostile", Path(__file__).parents[1] / "test_hostile_records.py")
assert _spec is not None and _spec.loader is not None
hostile = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hostile)

MOST_OF_A_KIND = 2
CRAWLED = 25


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    unpack(tmp_path / "demo")
    return tmp_path / "demo"


def failing_pages(root: Path) -> list[str]:
    """Addresses that answer with a failure of the server's own, of those that links lead to, a few of each kind."""
    client = TestClient(
        make_app((root,), rules_for("127.0.0.1", 7878, None, False)),
        base_url="http://127.0.0.1:7878",
        follow_redirects=False,
        raise_server_exceptions=False,
    )
    queue, seen, kinds, failed = ["/"], set(), dict[str, int](), []
    while queue and len(seen) < CRAWLED:
        address = queue.pop(0)
        kind = re.sub(r"[0-9a-f]{6,}|=[^&]*", "", address)
        kinds[kind] = kinds.get(kind, 0) + 1
        if address in seen or kinds[kind] > MOST_OF_A_KIND or address.startswith("/static/"):
            continue
        seen.add(address)
        answer = client.get(address)
        failed += [address] if answer.status_code >= 500 else []
        if "text/html" in answer.headers.get("content-type", ""):
            queue += map(html.unescape, re.findall(r'href="(/[^"#]*)', answer.text))
    return failed


@pytest.mark.parametrize("name", hostile.FILES[::3])
def test_no_page_fails_over_a_hostile_value(demo: Path, name: str) -> None:
    root = demo / "study"
    (path,) = sorted(root.glob(name))[:1]
    content, told = hostile.with_value(path.read_bytes(), path.suffix, random.Random(name))
    path.write_bytes(content)
    assert failing_pages(root) == [], told


@pytest.mark.parametrize("files", [{"a": 3}, {"a": None}, {"a": {"bytes": "x", "sha256": []}}, [], {"": {}}])
def test_no_page_fails_over_a_bundle_s_manifest(demo: Path, files: Any) -> None:
    folder = demo / "study" / "release" / "packed"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"files": files}))
    assert failing_pages(demo / "study") == []


def test_the_home_page_says_that_a_verdict_was_edited(demo: Path) -> None:
    path = demo / "study" / "verdict.json"
    path.write_text(path.read_text("utf-8").replace('"inconclusive"', '"supported"', 1), encoding="utf-8")
    rules = rules_for("127.0.0.1", 7878, None, False)
    home = TestClient(make_app((demo / "study",), rules), base_url="http://127.0.0.1:7878").get("/").text
    assert "verdict.json was edited after the study was sealed" in home

"""The tutorials say what happens: every command of every page is run, and its output compared with the page's.

`make test-docs` runs all pages; the suite runs those that take seconds.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).parents[2]
DOCS = REPO / "docs"
QUICK = ("start/first-answer.md", "tutorials/two-logs.md", "tutorials/read-a-report.md")
"""Pages without training, in seconds."""

SHOWN = ("start/install.md", "tutorials/release-and-rollback.md")
"""Pages whose commands need an index or a finished study with its gates; `tests/release` runs those commands."""

PAGES = sorted(
    p.relative_to(DOCS).as_posix() for folder in ("start", "tutorials") for p in (DOCS / folder).glob("*.md")
)
MOST_WORDS = 1200


def _walker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("walk", Path(__file__).with_name("walk.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["walk"] = module
    spec.loader.exec_module(module)
    return module


walker = _walker()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_happens(name: str, tmp_path: Path) -> None:
    if name not in QUICK and os.environ.get("VERITUNE_DOCS") != "all":
        pytest.skip("takes minutes: make test-docs")
    (tmp_path / "examples").symlink_to(REPO / "examples")  # the pages start in a clone
    ran = walker.walk(DOCS / name, tmp_path, {"HF_HUB_OFFLINE": "1"})
    assert ran or name in SHOWN, f"{name} has no command that runs"


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("tutorials/")])
def test_a_tutorial_is_short(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (DOCS / name).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(text.split()) <= MOST_WORDS


def test_a_page_whose_output_changed_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\necho one two\n```\n\n```text\none three\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match=r"page\.md, line 5: expected the line\n  one three"):
        walker.walk(page, tmp_path)


def test_an_exit_status_is_part_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- exit 2 -->\n```bash\nexit 0\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="exit status 0, the page says 2"):
        walker.walk(page, tmp_path)


@pytest.mark.parametrize(
    ("expected", "output", "gone"),
    [
        ("a … c", "a b c", None),
        ("one\ntwo", "two\none", "two"),
        ("gap +0.1", "gap  +0.1", "gap +0.1"),
        ("x", "", "x"),
    ],
)
def test_lines_are_compared_in_order(expected: str, output: str, gone: str | None) -> None:
    assert walker.missing_line(expected, output) == gone

"""The tour of the code names what exists: each stop, and each way as the code goes it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "veritune"
PAGE = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
STOP = re.compile(r"^\| `([a-z_]+(?:\.\w+)+)` \|", re.MULTILINE)


@cache
def tree_of(module: tuple[str, ...]) -> ast.Module | None:
    """A module's or package's tree; None where there is no such module."""
    path = SRC.joinpath(*module)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None


def names_of(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """Classes and functions, with their bodies, and names that are imported."""
    named: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            named[node.name] = node.body
        elif isinstance(node, ast.ImportFrom):
            named |= {alias.asname or alias.name: [] for alias in node.names}
    return named


def home(name: str) -> tuple[str, ...] | None:
    """The module that a dotted name is in; None where it does not exist."""
    parts = tuple(name.split("."))
    for cut in range(len(parts) - 1, 0, -1):
        tree = tree_of(parts[:cut])
        if tree is not None:
            body = tree.body
            for part in parts[cut:]:
                if part not in names_of(body):
                    return None
                body = names_of(body)[part]
            return parts[:cut]
    return None


def used_in(module: tuple[str, ...]) -> set[str]:
    """Every name and attribute that a module's code mentions."""
    tree = tree_of(module)
    assert tree is not None
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)
    }


def ways(page: str) -> Iterator[list[str]]:
    """The stops of each table, in order."""
    for table in re.findall(r"^\| where \|.*?(?=\n\n|\Z)", page, re.MULTILINE | re.DOTALL):
        yield STOP.findall(table)


def wrong_stops(stops: list[str]) -> Iterator[str]:
    """Stops that do not exist, and those that no stop before them mentions."""
    before: set[str] = set()
    for place, name in enumerate(stops):
        module = home(name)
        if module is None:
            yield f"{name} does not exist"
            continue
        last = name.split(".")[len(module) :]
        if place and not set(last) <= before:
            yield f"{name} is not used by any stop before it"
        before |= used_in(module)


def test_every_way_is_the_one_that_the_code_goes() -> None:
    assert [wrong for stops in ways(PAGE) for wrong in wrong_stops(stops)] == []
    assert sum(map(len, ways(PAGE))) > 40


def test_every_room_that_the_tour_names_exists() -> None:
    rooms = set(re.findall(r"`([a-z_]+/(?:[a-z_]+(?:\.py)?/?)*)`", PAGE))
    assert {"data/quality.py", "evaluate/logs/", "stats/"} <= rooms
    assert [room for room in rooms if not (SRC / room).exists() and not (ROOT / room).exists()] == []


@pytest.mark.parametrize(
    ("stops", "wrong"),
    [
        (["pipeline.flow.run", "pipeline.flow.walk"], "pipeline.flow.walk does not exist"),
        (["pipeline.flow.run", "nowhere.run"], "nowhere.run does not exist"),
        (["stats.multiplicity.holm", "pipeline.flow.run"], "pipeline.flow.run is not used by any stop before it"),
        (["stats.table.ScoreTable.of_nothing"], "stats.table.ScoreTable.of_nothing does not exist"),
    ],
)
def test_a_wrong_stop_is_found(stops: list[str], wrong: str) -> None:
    assert list(wrong_stops(stops)) == [wrong]

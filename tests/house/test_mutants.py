"""The mutation pass breaks what it says it breaks, and nothing else."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


mutants = load("mutants")

SOURCE = '''"""A docstring 1."""
LIMIT: int = 3

def f(a: int | None, b=2) -> list[int]:
    """Another 2."""
    if a < b and not LIMIT:
        g(a, b)
        return a + 1
    return "two words" + f"{a} and more"
'''


def broken(kind: str, kinds: str = "code") -> list[str]:
    """The lines that differ from the source, for every mutant of one kind."""
    found = []
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for number, (_, _, _, node, _, _) in enumerate(mutants.walk(ast.parse(SOURCE))):
        ways = mutants.texts(node) if kinds == "text" else mutants.replacements(node)
        for which, (named, _) in enumerate(ways):
            text = mutants.broken(SOURCE, (number, which), kinds=kinds).splitlines()
            if named == kind:
                found += [new.strip() for new, old in zip(text, plain) if new != old]
    return found


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("compare", ["if a <= b and (not LIMIT):", "if a >= b and (not LIMIT):"]),
        ("boolean", ["if a < b or not LIMIT:"]),
        ("not", ["if a < b and LIMIT:"]),
        ("condition", ["if not (a < b and (not LIMIT)):"]),
        ("arithmetic", ["return a - 1"]),
        ("swapped", ["g(b, a)"]),
        ("removed", ["pass"]),
        ("return", ["return None", "return None"]),
        (
            "constant",
            ["LIMIT: int = 4", "LIMIT: int = 2", "def f(a: int | None, b=3) -> list[int]:",
             "def f(a: int | None, b=1) -> list[int]:", "return a + 2", "return a + 0"],
        ),
    ],
)  # fmt: skip
def test_one_place_is_broken_and_no_docstring_and_no_annotation(kind: str, lines: list[str]) -> None:
    assert broken(kind) == lines


def test_sentences_get_a_foreign_word() -> None:
    assert broken("text", "text") == [
        "return 'two XX words' + f'{a} and more'",
        "return 'two words' + f'{a} XX and more'",
    ]


def test_the_function_is_named_as_the_running_code_names_it_and_defaults_run_at_import() -> None:
    source = (
        "class A:\n    x = 1\n    def m(self, y=2):\n        def inner():\n            return 3\n        return inner\n"
    )
    named = {n.value: f for _, _, _, n, f, _ in mutants.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
    assert named == {1: "A", 2: "A", 3: "A.m.inner"}

"""Messages and docstrings drawn by a stated seed, to be explained in other words by a reader who knows nothing else.

    python tests/house/draw_words.py [--seed 20] [--count 30] [path/to/src/veritune]

Two thirds are messages of errors, screens and audits (string literals of six words and more that an error or a screen
gets), one third first lines of public docstrings. Values that are put in at run time show as `…`.
"""

from __future__ import annotations

import argparse
import ast
import random
from collections.abc import Iterator
from pathlib import Path

LEAST_WORDS = 6


def text_of(node: ast.expr) -> str | None:
    """A literal or f-string as it reads, with `…` for what is put in; None where it is neither."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
    return None


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of what errors, screens and findings say: the error with its fix where it has one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = ast.unparse(node.func).rpartition(".")[2]
        if not (named.endswith("Error") or named in ("say", "put", "Finding", "Issue")):
            continue
        parts = [text_of(a) for a in (*node.args, *(k.value for k in node.keywords if k.arg in ("fix", "message")))]
        text = " ".join(p for p in parts if p and " " in p)
        if len(text.split()) >= LEAST_WORDS:
            yield node.lineno, " ".join(text.split())


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and first paragraph of the docstrings of public functions and classes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first = (ast.get_docstring(node) or "").split("\n\n")[0]
            if len(first.split()) >= LEAST_WORDS:
                yield node.lineno, f"{node.name}: {' '.join(first.split())}"


def drawn(root: Path, seed: int, count: int) -> list[tuple[str, str]]:
    """`count` pairs (place, text), two thirds of them messages."""
    found: dict[str, list[tuple[str, str]]] = {"messages": [], "docstrings": []}
    for path in sorted(root.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(root).as_posix()
        found["messages"] += [(f"{place}:{line}", text) for line, text in messages(tree)]
        found["docstrings"] += [(f"{place}:{line}", text) for line, text in docstrings(tree)]
    draw = random.Random(seed)
    n_messages = round(count * 2 / 3)
    return draw.sample(found["messages"], n_messages) + draw.sample(found["docstrings"], count - n_messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[2] / "src" / "veritune")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--count", type=int, default=30)
    args = parser.parse_args()
    for number, (place, text) in enumerate(drawn(args.root, args.seed, args.count), 1):
        print(f"{number}. {text}   [{place}]")


if __name__ == "__main__":
    main()

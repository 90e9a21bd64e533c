"""Figures about the source that the house is judged by.   python tests/house/measure.py [path/to/src/veritune]

lines, functions, their length; signatures that bear `Any` (also bare `dict`, `object`, `Mapping[str, …]` of our own
records and `cast`); string subscripts; `read_json`; imports inside functions; comments; class names in several files;
commands and options. The same script counts before and after a change, so that the two can be compared.
"""

from __future__ import annotations

import ast
import io
import json
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LOOSE = {"Any", "object", "dict", "cast"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def trees(root: Path) -> Iterator[tuple[str, str, ast.Module]]:
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        yield path.relative_to(root).as_posix(), text, ast.parse(text)


def loose(annotation: ast.expr | None) -> bool:
    """True when an annotation says nothing about a record: Any, object, bare dict, or a mapping from str to Any."""
    if annotation is None:
        return False
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name) and node.id in ("Any", "object"):
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "Any" in node.value:
            return True
    bare = annotation.id if isinstance(annotation, ast.Name) else ""
    return bare in ("dict", "list", "tuple", "Mapping", "Json")


def annotations(function: Function) -> Iterator[ast.expr | None]:
    args = function.args
    for arg in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if arg is not None and arg.arg not in ("self", "cls"):
            yield arg.annotation
    yield function.returns


def inner_imports(tree: ast.Module) -> int:
    return sum(
        isinstance(node, ast.Import | ast.ImportFrom)
        for function in ast.walk(tree)
        if isinstance(function, Function)
        for node in ast.walk(function)
    )


def comments(text: str) -> int:
    return sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(text).readline))


def options() -> tuple[int, int]:
    """Commands and options of the command line, `--json` and `--debug` left out: they are on every command.

    (0, 0) where the package cannot be imported.
    """
    try:
        import typer.main

        from veritune.commands.app import app
    except ImportError:
        return 0, 0
    commands, count, queue = 0, 0, [typer.main.get_command(app)]
    while queue:
        command = queue.pop()
        children = list(getattr(command, "commands", {}).values())
        queue += children
        if not children:
            commands += 1
            count += sum(
                p.param_type_name == "option" and not {"--help", "--json", "--debug"} & set(p.opts)
                for p in command.params
            )
    return commands, count


def measure(root: Path) -> dict[str, float | int]:
    count: Counter[str] = Counter()
    classes: dict[str, set[str]] = {}
    longest = 0
    for path, text, tree in trees(root):
        code = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        count["lines"] += len(code)
        count["files"] += 1
        count["comments"] += comments(text)
        count["imports inside functions"] += inner_imports(tree)
        count["read_json"] += text.count("read_json(") - text.count("def read_json(")
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                classes.setdefault(node.name, set()).add(path)
            if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                count["string subscripts"] += isinstance(node.slice.value, str)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                count["casts"] += node.func.id == "cast"
            if isinstance(node, Function):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                longest = max(longest, length)
                count["functions"] += 1
                count["functions over 40 lines"] += length > 40
                count["signatures with Any"] += any(loose(a) for a in annotations(node))
    commands, options_ = options()
    return {
        **dict(sorted(count.items())),
        "longest function": longest,
        "class names in several files": sum(len(paths) > 1 for paths in classes.values()),
        "% of signatures with Any": round(100 * count["signatures with Any"] / count["functions"], 1),
        "imports inside functions per 1,000 lines": round(1000 * count["imports inside functions"] / count["lines"], 1),
        "comments per 100 lines": round(100 * count["comments"] / count["lines"], 1),
        "commands": commands,
        "options": options_,
    }


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "src" / "veritune"
    print(json.dumps(measure(source), indent=2))

"""What can be broken in a source file: one node of its syntax tree at a time. `mutate.py` runs the tests on each break.

A comparison takes another order, arithmetic another sign, `and` becomes `or`, a condition its opposite, a number its
neighbour, a result None, two arguments change places, a statement goes. Sentences get a foreign word.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
OTHER_ORDER = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OTHER_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Mutant:
    """One break: where it is, what stood there, what stands there now."""

    room: str
    path: str
    line: int
    function: str
    """Qualified name of the function whose body it is in; a class's name or nothing for what runs at import."""
    kind: str
    before: str
    after: str
    place: tuple[int, int]
    """The node's number in its file, and which of its replacements."""

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}:{self.place[0]}.{self.place[1]}"


# ---------------------------------------------------------------- what can be broken


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(kind, node that takes the place) for each way to break one node."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in OTHER_ORDER[type(op)]:
                yield "compare", changed(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
    elif isinstance(node, ast.BinOp | ast.AugAssign):
        if type(node.op) in OTHER_ARITHMETIC and not of_text_or_types(node):
            yield "arithmetic", changed(node, op=OTHER_ARITHMETIC[type(node.op)]())
        if isinstance(node, ast.AugAssign):
            yield "removed", ast.Pass()
    elif isinstance(node, ast.BoolOp):
        yield "boolean", changed(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield "not" if isinstance(node.op, ast.Not) else "arithmetic", node.operand
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        yield "condition", changed(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.Constant):
        yield from (("constant", ast.Constant(value)) for value in other_values(node.value))
    yield from removals(node)


def removals(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """A value, an order of arguments or a statement that the code would still run without."""
    if isinstance(node, ast.Return) and node.value is not None and not is_none(node.value):
        yield "return", ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Call) and len(node.args) > 1:
        yield "swapped", changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
    effect = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.YieldFrom | ast.Yield)
    kept = isinstance(node, ast.Assign) and all(isinstance(t, ast.Attribute | ast.Subscript) for t in node.targets)
    if effect or kept or isinstance(node, ast.Raise | ast.Continue | ast.Break | ast.Delete):
        yield "removed", ast.Pass()


def other_values(value: object) -> list[object]:
    """What a number or a truth value is broken to."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [other for other in (0.0, 1.0, value + 1) if other != value][:2]
    return []


def texts(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """A sentence without its first word, or its number's place: what a reader of the screen would notice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
        yield "text", ast.Constant(node.value.replace(" ", " XX ", 1))


def changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    vars(new).update(fields)
    return new


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def of_text_or_types(node: ast.BinOp | ast.AugAssign) -> bool:
    """`"a" + b` and `A | None`: broken, they fail at once, which says nothing about a test."""
    sides = [node.left, node.right] if isinstance(node, ast.BinOp) else [node.value]
    text = any(
        isinstance(s, ast.JoinedStr) or (isinstance(s, ast.Constant) and isinstance(s.value, str)) for s in sides
    )
    name = any(
        isinstance(s, ast.Name) and (s.id[:1].isupper() or s.id in ("int", "str", "float", "bool")) for s in sides
    )
    return text or (isinstance(node.op, ast.BitOr) and (name or any(is_none(s) for s in sides)))


def walk(node: ast.AST, function: str = "") -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str, int]]:
    """(parent, field, index, node, qualified name of the function, line) of all code; no docstrings, no annotations."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "type_params", "ctx"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or (
                isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            ):
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            inside = entered(node, function) if name == "body" or not isinstance(node, Function) else function
            yield node, name, index, child, inside, getattr(child, "lineno", getattr(node, "lineno", 0))
            yield from walk(child, inside)


def entered(node: ast.AST, function: str) -> str:
    """The qualified name as the running code has it, inside `node`. Default values and decorators stand outside."""
    if isinstance(node, Function | ast.ClassDef):
        return f"{function}.{node.name}" if function else node.name
    return function


def mutants_of(room: str, path: Path, *, kinds: str) -> Iterator[Mutant]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    short = path.relative_to(REPO).as_posix()
    for number, (_, _, _, node, function, line) in enumerate(walk(tree)):
        ways = texts(node) if kinds == "text" else replacements(node)
        for which, (kind, new) in enumerate(ways):
            statement = isinstance(node, ast.If | ast.While)
            before, after = (ast.unparse(ast.fix_missing_locations(n.test if statement else n)) for n in (node, new))
            yield Mutant(room, short, line, function, kind, before[:200], after[:200], (number, which))


def broken(source: str, place: tuple[int, int], *, kinds: str) -> str:
    """The file's text with the one replacement."""
    tree = ast.parse(source)
    parent, name, index, node, _, _ = next(x for i, x in enumerate(walk(tree)) if i == place[0])
    new = list(texts(node) if kinds == "text" else replacements(node))[place[1]][1]
    if index is None:
        setattr(parent, name, new)
    else:
        getattr(parent, name)[index] = new
    return ast.unparse(ast.fix_missing_locations(tree))

"""Writes docs/python.md from the docstrings of the public names.   python docs/make_python.py"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

OUT = Path(__file__).with_name("python.md")
PACKAGES = ("veritune", "veritune.data", "veritune.probe", "veritune.decide", "veritune.stats")
INTRO = """# Python

Made from the docstrings of the public names by `make docs`; do not edit. A name that is not here is private and may
change without notice. Array names end in their axes (`score_S_N`: runs × items; `value_R_N`: raters × units), quantities
in their units. Every example runs in the tests. All errors are `veritune.VerituneError`: `message`, `where`, `fix`.
"""


def text() -> str:
    """The whole page."""
    parts = [INTRO]
    for package in PACKAGES:
        parts.extend(_package(package, import_module(package)))
    return "\n".join(parts)


def _package(name: str, module: ModuleType) -> Iterator[str]:
    about = re.sub(r"((?:^    .*\n?|^\n)+)", _code, inspect.getdoc(module) or "", flags=re.MULTILINE)
    yield f"## `{name}`\n\n{about.strip()}\n"
    for public in module.__all__:
        thing = getattr(module, public)
        yield f"### `{name}.{public}`\n\n```python\n{_signature(public, thing)}\n```\n\n{_doc(thing)}\n"


def _code(found: re.Match[str]) -> str:
    lines = found[0].strip("\n")
    return f"\n```python\n{inspect.cleandoc(lines)}\n```\n" if lines.strip() else "\n"


def _signature(name: str, thing: object) -> str:
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return f"class {name}({thing.__bases__[0].__name__})"
    try:
        signature = inspect.signature(thing)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return f"class {name}"
    arguments = [_argument(p) for p in signature.parameters.values() if not p.name.startswith("_")]
    back = signature.return_annotation
    after = "" if back in (inspect.Signature.empty, None, "None") else f" -> {_plain(back)}"
    one = f"{name}({', '.join(arguments)}){after}"
    if len(one) <= 100:
        return one
    inner = "".join(f"    {a},\n" for a in arguments)
    return f"{name}(\n{inner}){after}"


def _argument(parameter: inspect.Parameter) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = f"{stars}{parameter.name}: {_plain(parameter.annotation)}"
    if parameter.default is inspect.Parameter.empty:
        return text
    value = parameter.default
    shown = repr(value) if isinstance(value, (str, int, float, bool, tuple, type(None))) else "…"
    return f"{text} = {shown}"


def _plain(annotation: object) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return str(text)


def _doc(thing: object) -> str:
    """The docstring as Markdown: examples fenced, everything else as it stands."""
    lines, inside = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line.startswith(">>>") and not inside:
            lines, inside = [*lines, "```python"], True
        elif inside and not line.strip():
            lines, inside = [*lines, "```"], False
        lines.append(line)
    return "\n".join([*lines, *(["```"] if inside else [])]).replace("<factory>", "…")


if __name__ == "__main__":
    OUT.write_text(text(), encoding="utf-8")
    print(f"wrote {OUT}")

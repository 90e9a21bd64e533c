"""JSON, YAML and Arrow from strangers' files: one guard that every reader passes, so that what comes out can be used.

    read_bytes(path)      a file's bytes, refused where there are more than a limit
    read_text(path)       its text, refused where it is not UTF-8
    parse_json(content)   a JSON value
    parse_yaml(text)      a YAML value, as plain as JSON's
    table_rows(path)      the rows of an Arrow or Parquet file, validated before a value is taken out

What is refused would break a reader later and elsewhere: text that is not UTF-8, half a surrogate pair (no file can
hold it), NaN and Infinity (no record can), integers that no float holds, values nested deeper than `MAX_DEPTH`
(Python's own stack ends at 1,000), mapping keys that are no text, YAML aliases that multiply, and Arrow buffers whose
offsets lead out of the file (the native code would read there). YAML writes a character beyond U+FFFF as two `\\u`
escapes when a JSON writer wrote it; the two are joined, as JSON joins them.

Everything is raised as ValueError with one line of text; the caller names the file.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from veritune import arrow

MAX_DEPTH = 100
"""Nesting of lists and mappings. The deepest file that Veritune writes has 9 levels; JSON Schema of a study has 12."""
MAX_YAML_BYTES = 16 << 20
"""Size of a YAML file. PyYAML reads about 0.2 MB a second and needs 100 bytes a byte of text."""
MAX_VALUES = 500_000
"""Values of a YAML file with every alias written out; nine lines of ten aliases each come to a billion."""
MAX_JSON_BYTES = 1 << 30
"""Size of one JSON document that is read whole."""
_ESCAPED = re.compile(r"\\(u|U0000)[dD][89a-fA-F]")
_HUGE = re.compile(r"[eE]\+?\d{3}")  # 1e999 is read as infinity
_LONG = re.compile(r"\d{300}")
_MOST = int(sys.float_info.max)
_PAIR = re.compile("([\ud800-\udbff])([\udc00-\udfff])")


class UnusableError(ValueError):
    """Text from an untrusted file is refused; the message is one line and names no file."""


def read_bytes(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """A file's bytes. Raises UnusableError if there are more than `limit`, OSError as `open` does."""
    with path.open("rb") as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise UnusableError(f"expected at most {limit:,} bytes, found more")
    return content


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str:
    """A file's UTF-8 text, without a byte order mark. Raises UnusableError, and OSError as `open` does."""
    return _decoded(read_bytes(path, limit))


def parse_json(content: str | bytes, *, finite: bool = True) -> Any:
    """The value of a JSON text. Raises UnusableError, or json.JSONDecodeError with line and column (also a ValueError).

    Without `finite` NaN and Infinity are taken, as other tools write them into logs and model configurations (lm-eval
    a log-likelihood of -Infinity, Mamba a `time_step_limit`); the reader then looks at what it uses.
    """
    text = _decoded(content) if isinstance(content, bytes) else content
    try:
        value = json.loads(text, parse_constant=_no_constant if finite else None)
    except RecursionError as exc:
        raise _too_deep() from exc
    # What nests must open a bracket, and what holds half a pair must hold one already or write it as an escape.
    deep, huge = text.count("[") + text.count("{") > MAX_DEPTH, finite and _HUGE.search(text) is not None
    huge = huge or _LONG.search(text) is not None
    if deep or huge or _ESCAPED.search(text) or not (text.isascii() or _encodes(text)):
        _walk(value, finite=finite)
    return value


def parse_yaml(content: str | bytes) -> Any:
    """The value of a YAML text, made of null, booleans, finite numbers, texts, lists and mappings with text keys.
    Raises UnusableError.

    A key that is written twice is an error; PyYAML would keep the last and say nothing. Its loader in C is not used:
    200,000 opening brackets end the process there. Raises UnusableError, or yaml.YAMLError with the line.
    """
    import yaml

    if len(content) > MAX_YAML_BYTES:
        raise UnusableError(f"expected at most {MAX_YAML_BYTES:,} bytes of YAML, found {len(content):,}")
    text = _decoded(content) if isinstance(content, bytes) else content
    try:
        value = yaml.load(text, Loader=_loader())
    except RecursionError as exc:
        raise _too_deep() from exc
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, AttributeError, OverflowError) as exc:  # PyYAML lets an impossible date through
        raise UnusableError(" ".join(str(exc).split()) or type(exc).__name__) from exc
    _walk(value, most=MAX_VALUES)
    return _joined(value, {}) if _ESCAPED.search(text) else value


@cache
def _loader() -> Any:
    """PyYAML's safe loader, made on first use, that refuses a key written twice."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key in [k for k, _ in node.value if isinstance(k.value, str) and k.tag != "tag:yaml.org,2002:merge"]:
                if key.value in seen:
                    message = f"the key {key.value!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
                seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    return Loader


def table_rows(path: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file or stream (`kind` "arrow") or of a Parquet file ("parquet"), as plain values.

    arro3 checks every buffer against the file before a value is taken out: a changed offset would lead elsewhere.
    Raises UnusableError for a damaged file, OSError where it cannot be read.
    """
    try:
        yield from (arrow.ipc_rows if kind == "arrow" else arrow.parquet_rows)(path)
    except ValueError as exc:
        raise UnusableError(" ".join(str(exc).split())[:200] or type(exc).__name__) from exc


# ---------------------------------------------------------------- what is refused


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        at = f"byte 0x{content[exc.start]:02x} at offset {exc.start}"
        raise UnusableError(f"not UTF-8: {at}") from exc


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _no_constant(name: str) -> float:
    raise UnusableError(f"{name} is not JSON; write null where a value is missing")


def _too_deep() -> UnusableError:
    return UnusableError(f"nested too deeply: expected at most {MAX_DEPTH} levels")


def refuse_depth(value: object) -> None:
    """Raises UnusableError where lists and mappings nest deeper than `MAX_DEPTH`; `parse_json` does this itself."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (inner for found in level for inner in (found.values() if isinstance(found, dict) else found))
        level = [inner for inner in inside if isinstance(inner, dict | list)]
    if level:
        raise _too_deep()


def _walk(value: object, most: int | None = None, *, finite: bool = True) -> None:
    """Raises UnusableError for the first value that no record can hold. Aliases count each time they are named."""
    waiting: list[tuple[object, int, Callable[[], str]]] = [(value, 0, lambda: "the document")]
    seen = 0
    while waiting:
        found, depth, where = waiting.pop()
        seen += 1
        if most is not None and seen > most:
            raise UnusableError(f"expected at most {most:,} values, found more (aliases counted as often as named)")
        if depth >= MAX_DEPTH and isinstance(found, dict | list):
            raise _too_deep()
        problem = _problem(found, joins=most is not None, finite=finite)
        if problem:
            raise UnusableError(f"{where()} {problem}")
        if isinstance(found, dict):
            waiting += [(inner, depth + 1, _at(where, str(key))) for key, inner in found.items()]
        elif isinstance(found, list):
            waiting += [(inner, depth + 1, _at(where, i)) for i, inner in enumerate(found)]


def _at(where: Callable[[], str], step: str | int) -> Callable[[], str]:
    """The place one step further on; the text is made only where it is shown."""

    def text() -> str:
        before = where().removeprefix("the document")
        shown = str(step).encode("utf-8", "backslashreplace").decode("utf-8")
        return f"{before}[{shown}]" if isinstance(step, int) else f"{before}.{shown}".removeprefix(".")

    return text


def _problem(value: object, *, joins: bool, finite: bool) -> str | None:
    """Why a value is refused; None for one that may stay. With `joins`, the two halves of a pair count as whole."""
    if isinstance(value, str):
        return None if _encodes(_PAIR.sub("", value) if joins else value) else "contains a lone surrogate"
    if isinstance(value, dict):
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None or None in value:
            return f"has the key {odd!r}, which is not text: put it in quotes"
        half = next((key for key in value if not _encodes(_PAIR.sub("", key) if joins else key)), None)
        return None if half is None else "has a key with a lone surrogate"
    if isinstance(value, float):
        return None if math.isfinite(value) or not finite else f"is {value}: expected a finite number"
    if isinstance(value, int):
        return None if abs(value) <= _MOST else "is an integer above 1.8e308, which no float holds"
    if value is None or isinstance(value, list):
        return None
    what = "a date" if isinstance(value, date) else f"a {type(value).__name__}"
    return f"is {what} ({value!s:.40}): put it in quotes"


def _joined(value: Any, made: dict[int, Any]) -> Any:
    """The value with surrogate pairs joined to the characters that they stand for; aliases stay aliases."""
    if isinstance(value, str):
        return _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), value)
    if not isinstance(value, dict | list):
        return value
    if id(value) not in made:
        if isinstance(value, dict):
            made[id(value)] = {_joined(k, made): _joined(v, made) for k, v in value.items()}
        else:
            made[id(value)] = [_joined(v, made) for v in value]
    return made[id(value)]

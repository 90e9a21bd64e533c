"""Readers of JSON: one object a line, an array, or an object with one list in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from veritune.data.columns import find_shape
from veritune.data.sources.files import open_bytes
from veritune.data.sources.raw import Raw, problem, show, surrogate_path
from veritune.records import JsonValue
from veritune.untrusted import MAX_DEPTH, refuse_depth

_HEAD_BYTES = 4096
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_jsonl(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """The records of a JSONL file, one per line."""
    offset = 0
    if _is_array(file):
        yield from read_json(file, name, stem)
        return
    with open_bytes(file) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                _refuse_other_bytes(line)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parsed(Raw(name, number, stem=stem), line, offset)
            offset += len(line)


def _parsed(raw: Raw, line: bytes, offset: int) -> Raw:
    """One line of JSON, which begins `offset` bytes into the file."""
    expected = "one JSON object"
    try:
        value = json.loads(line.decode("utf-8").rstrip(), parse_constant=_no_constant)
        if line.count(b"[") + line.count(b"{") > MAX_DEPTH:
            refuse_depth(value)
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start} of the file"
        return problem(raw, "not_utf8", f"not UTF-8: {found}", expected="UTF-8 text", found=found)
    except RecursionError:
        message = "nested too deeply to read"
        return problem(raw, "broken_json", message, expected=expected, found="deep nesting")
    except json.JSONDecodeError as error:
        message = f"broken JSON at column {error.colno}: {error.msg}"
        return problem(raw, "broken_json", message, expected=expected, found=show(line))
    except ValueError as error:
        return problem(raw, "broken_json", f"broken JSON: {error}", expected=expected, found=show(line))
    return _unless_surrogate(replace(raw, value=value)) if _SURROGATE.search(line) else replace(raw, value=value)


def _unless_surrogate(raw: Raw) -> Raw:
    """`raw`, or the finding that it contains a lone surrogate: no file and no tokenizer can hold that."""
    where = surrogate_path(raw.value)
    if where is None:
        return raw
    message, found = f"{where} contains a lone surrogate", f"a lone surrogate in {where}"
    return problem(raw, "surrogate", message, expected="valid Unicode", found=found, field=where)


def _no_constant(name: str) -> JsonValue:
    raise ValueError(f"{name} is not JSON; write null where a value is missing")


PACKED = {
    b"\x1f\x8b": "gzip; end its name in .gz",
    b"\x28\xb5\x2f\xfd": "Zstandard; end its name in .zst",
    b"BZh": "bzip2; unpack it first",
    b"\xfd7zXZ": "xz; unpack it first",
}


def _refuse_other_bytes(head: bytes) -> None:
    kind = next((kind for magic, kind in PACKED.items() if head.startswith(magic)), None)
    if kind is not None:
        raise ValueError(f"it is compressed with {kind}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16, not UTF-8; save it as UTF-8")


def _is_array(file: Path) -> bool:
    """Whether a file of lines holds one JSON array of objects instead, as `datasets` reads it under any name too."""
    with open_bytes(file) as stream:
        head = stream.read(_HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    return head.startswith(b"[") and head[1:].lstrip().startswith(b"{")


def _is_wrapper(head: bytes, stream: IO[bytes]) -> bool:
    """Whether the first line is the whole file and an object around one list of records, `{"data": [...]}`."""
    if stream.read(_HEAD_BYTES).strip():
        return False
    try:
        value = json.loads(head)
    except (ValueError, RecursionError):
        return False
    listed = _lists_in(value)
    return len(listed) == 1 and find_shape(value) is None and all(isinstance(row, dict) for row in listed[0])


def _lists_in(value: JsonValue) -> list[list[JsonValue]]:
    """The lists that an object holds."""
    return [held for held in value.values() if isinstance(held, list)] if isinstance(value, dict) else []


def read_json(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """The records of a JSON file: an array, an object with one list in it, or JSON lines under another name."""
    with open_bytes(file) as stream:
        head = stream.readline().removeprefix(b"\xef\xbb\xbf").strip()
        _refuse_other_bytes(head)
        if not head.startswith(b"[") and head.endswith(b"}") and not _is_wrapper(head, stream):
            yield from read_jsonl(file, name, stem)
            return
        whole = head + stream.read()
    try:
        value = json.loads(whole.decode("utf-8"), parse_constant=_no_constant)
        refuse_depth(value)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{whole[error.start]:02x} at offset {error.start}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply to read") from None
    lists = [value] if isinstance(value, list) else _lists_in(value)
    if isinstance(value, dict) and find_shape(value) is not None:
        lists = [[value]]
    if len(lists) != 1:
        inside = f" with the lists {', '.join(k for k, v in value.items() if isinstance(v, list))}" if lists else ""
        raise ValueError(
            f"expected an array of records, found {'an object' if lists else type(value).__name__}{inside}"
        )
    surrogates = bool(_SURROGATE.search(whole))
    for number, item in enumerate(lists[0], start=1):
        raw = Raw(name, number, item, stem=stem)
        yield _unless_surrogate(raw) if surrogates else raw

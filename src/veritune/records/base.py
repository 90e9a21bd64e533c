"""What every file format is made of: a frozen dataclass that is checked when it is read, and only then.

`Record` is a file, `RecordPart` an object inside one. Reading is strict: no key may be unknown or missing, no value of
another type (`"3"` is no number, `true` no integer), no NaN. Whoever holds the object needs no check of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from veritune.canonical import dumps
from veritune.errors import FormatError
from veritune.files import write_json

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

T = TypeVar("T", bound="RecordPart")
SHOWN = 60  # characters of a wrong value in a message
DAMAGED = "Restore it, or delete it and run again."
OTHER_VERSION = "Read it with the Veritune that wrote it, or restore it, or delete it and run again."
EXPECTED = {
    "int": "an integer",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "finite_number": "a finite number",
    "dataclass": "an object",
    "mapping": "an object",
    "dict": "an object",
    "tuple": "a list",
    "list": "a list",
    "none_required": "null",
}
"""pydantic's error types, without `_type`, in the words of JSON."""


class RecordPart:
    """An object inside a file. A key in `ABSENT_WHEN_NONE` is left out of the file where its value is None."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, object]] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ()


class Record(RecordPart):
    """A file: one JSON object. `VERSION` counts up whenever older files cannot be read any more."""

    __slots__ = ()
    VERSION: ClassVar[int] = 1

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file. Raises FormatError naming file, key, what was expected and found; OSError without a file."""
        return parse(cls, path.read_bytes(), path)

    def save(self, path: Path) -> None:
        """Write the file atomically: the same record gives the same bytes."""
        write_json(path, self)

    def text(self) -> str:
        """What `save` writes, for callers that hash it before it lies on disk."""
        return dumps(self, indent=2) + "\n"


_ADAPTERS: dict[type[RecordPart], TypeAdapter[Any]] = {}


def _adapter(kind: type[RecordPart]) -> TypeAdapter[Any]:
    """The class's validator, made when the first such file is read: pydantic takes a tenth of a second to import."""
    if kind not in _ADAPTERS:
        from pydantic import TypeAdapter

        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def parse(kind: type[T], content: bytes, path: Path) -> T:
    """One record from JSON text; `path` is for messages. Raises FormatError."""
    from pydantic import ValidationError

    try:
        record: T = _adapter(kind).validate_json(content)
        return record
    except ValidationError as exc:
        raise _refusal(kind, exc, content, path) from exc


def _refusal(kind: type[RecordPart], exc: ValidationError, content: bytes, path: Path) -> FormatError:
    """The first error as a FormatError: pydantic's own words are not for users."""
    errors = exc.errors(include_url=False, include_context=True)
    if errors[0]["type"] == "json_invalid":
        return FormatError(f"{path} is damaged: {errors[0]['msg']}.", fix=DAMAGED)
    document = json.loads(content)
    error, steps = _closest(errors, document)
    if not steps:
        return FormatError(f"{path}: expected a JSON object, found {_described(document)}.", fix=DAMAGED)
    where = f"{path}: {_path_text(steps)}"
    if error["type"] == "missing":
        return FormatError(f"{where}: expected this key, found no such key.", fix=OTHER_VERSION)
    if error["type"] == "unexpected_keyword_argument":
        known = f"a key of {kind.__name__} version {getattr(kind, 'VERSION', 1)}"
        return FormatError(f"{where}: expected {known}, found an unknown key.", fix=OTHER_VERSION)
    wanted = EXPECTED.get(error["type"].removesuffix("_type")) or _literal(error)
    fix = OTHER_VERSION if steps == ("format",) else DAMAGED
    return FormatError(f"{where}: expected {wanted}, found {_described(error['input'])}.", fix=fix)


def _literal(error: ErrorDetails) -> str:
    return str((error.get("ctx") or {}).get("expected") or error["msg"])


def _closest(errors: Sequence[ErrorDetails], document: object) -> tuple[ErrorDetails, tuple[str | int, ...]]:
    """The error to show and its path in the file.

    Where a value may have one of several shapes, pydantic reports what is wrong with it as each of them and puts the
    shape's name into the path. The shape with the fewest errors is the one that was meant.
    """
    placed = [(error, *_located(error, document)) for error in errors]
    per_shape = Counter(shapes for _, _, shapes in placed)
    error, steps, _ = min(placed, key=lambda p: per_shape[p[2]] if p[2] else 0)
    return error, steps


def _located(error: ErrorDetails, document: object) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
    """(path in the file, names of shapes) of an error: what is no key or index of the document names a shape."""
    steps: list[str | int] = []
    shapes: list[str | int] = []
    value: Any = document
    last = len(error["loc"]) - 1
    for number, step in enumerate(error["loc"]):
        inside = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if inside or (isinstance(value, dict) and step in value):
            value = value[step]
        elif not (number == last and error["type"] == "missing"):
            shapes.append(step)
            continue
        steps.append(step)
    return tuple(steps), tuple(shapes)


def _path_text(steps: Sequence[str | int]) -> str:
    return "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps).removeprefix(".")


def _described(value: object) -> str:
    """A JSON value in a few words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"

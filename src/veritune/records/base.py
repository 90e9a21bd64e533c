"""What every file format is made of: a frozen dataclass that is checked when it is read, and only then.

`Record` is a JSON file, `Line` a line of a JSONL file, `RecordPart` an object inside one. Reading is strict: no key may
be unknown or missing, no value of another type (`"3"` is no number, `true` no integer), no NaN. A default is for
whoever makes a record in Python; a file holds every key. Whoever holds the object needs no check of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self, TypeVar

from veritune.canonical import dumps
from veritune.display import Displayed
from veritune.errors import FormatError
from veritune.files import plain, read_text, whole_lines, write_json, write_jsonl
from veritune.untrusted import parse_json, read_bytes

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, TypeAdapter, ValidationError
    from pydantic_core import CoreSchema, ErrorDetails

T = TypeVar("T", bound="RecordPart")
JsonValue = str | int | float | bool | None | list["JsonValue"] | dict[str, "JsonValue"]
"""What a JSON reader returns."""


class DataclassLike(Protocol):
    """An object of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


JsonLike = str | int | float | bool | None | Sequence["JsonLike"] | Mapping[str, "JsonLike"] | DataclassLike
"""What our JSON writer takes (`canonical.to_json`), records among it. A list of texts is one of these; it is no
`JsonValue`, into which a number may be put."""
FORMAT_VERSION: Literal[2] = 2
"""Of all files of a study. It counts up whenever files of the version before cannot be read any more."""
SHOWN = 60  # characters of a wrong value in a message
DAMAGED = "Restore the file from a copy, or delete it and run again."
OTHER_VERSION = (
    "Read it with the version of Veritune that wrote it, restore it from a copy, or start a new folder with the "
    "same study.yaml."
)
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


class RecordPart(Displayed):
    """An object inside a file. A key in `ABSENT_WHEN_NONE` is left out of the file if its value is None."""

    __slots__ = ()
    __pydantic_config__: ClassVar[Mapping[str, str | bool]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
    }
    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Self], handler: GetCoreSchemaHandler) -> CoreSchema:
        """The class as pydantic reads it, without the defaults that are for Python: a file holds every key."""
        schema = handler(source)
        inner: Any = handler.resolve_ref_schema(schema)
        while inner["type"] != "dataclass":
            inner = inner["schema"]
        for entry in inner["schema"]["fields"]:
            field_schema = entry["schema"]
            plain = field_schema["schema"] if field_schema["type"] == "default" else field_schema
            absent = entry["name"] in cls.ABSENT_WHEN_NONE
            entry["schema"] = {"type": "default", "schema": plain, "default": None} if absent else plain
        return schema


@dataclass(frozen=True, slots=True)
class WithKeys:
    """Annotates a field that holds any JSON object: the types of those of its keys that readers rely on. Each may be
    left out.
    """

    types: Mapping[str, object]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        fields = {
            key: core_schema.typed_dict_field(handler.generate_schema(kind), required=False)
            for key, kind in self.types.items()
        }
        strict = core_schema.CoreConfig(strict=True, allow_inf_nan=False)
        return core_schema.typed_dict_schema(fields, extra_behavior="allow", config=strict)


@dataclass(frozen=True, slots=True)
class Record(RecordPart):
    """A file with one JSON object and its format number."""

    format: Literal[2] = field(default=FORMAT_VERSION, kw_only=True)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The record in a file. Raises FormatError naming file, key, what was expected and found; OSError if there is
        no file.
        """
        try:
            content = read_bytes(plain(path))
        except ValueError as exc:
            raise FormatError(f"{path} is damaged: {exc}.", fix=DAMAGED) from exc
        return parse(cls, content, str(path))

    def save(self, path: Path) -> None:
        """Write the file atomically; the same record gives the same bytes."""
        write_json(path, self)

    def text(self) -> str:
        """The text that `save` writes, for callers that hash it first."""
        return dumps(self, indent=2) + "\n"


class Line(RecordPart):
    """One line of a JSONL file: a JSON object."""

    __slots__ = ()

    @classmethod
    def load_all(cls, path: Path, *, torn: bool = True) -> list[Self]:
        """All records of a file; with `torn` also an incomplete last line.

        Raises FormatError naming file, line, key, what was expected and found; OSError without a file.
        """
        lines = whole_lines(read_text(path), torn=torn)
        return [parse(cls, line.encode(), f"{path} line {number}") for number, line in enumerate(lines, start=1)]

    @classmethod
    def each(cls, path: Path) -> Iterator[Self]:
        """The records of a file one by one, without holding all in memory. Raises as `load_all` does."""
        with plain(path).open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                yield parse(cls, line.rstrip(b"\n"), f"{path} line {number}")

    @classmethod
    def save_all(cls, path: Path, rows: Iterable[Self]) -> None:
        """Write the file atomically, one record per line."""
        write_jsonl(path, rows)


_ADAPTERS: dict[type[RecordPart], TypeAdapter[Any]] = {}


def _adapter(kind: type[RecordPart]) -> TypeAdapter[Any]:
    """The class's validator, made when the first such file is read: pydantic takes a tenth of a second to import."""
    if kind not in _ADAPTERS:
        from pydantic import TypeAdapter

        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def parse(kind: type[T], content: bytes, place: str) -> T:
    """One record from JSON text; `place` names the file (and line) in messages. Raises FormatError."""
    from pydantic import ValidationError

    try:
        record: T = _adapter(kind).validate_json(content)
    except ValidationError as exc:
        raise _refusal(kind, exc, content, place) from exc
    if b"NaN" in content or b"Infinity" in content:  # pydantic lets them pass where a key may hold any JSON
        try:
            parse_json(content)
        except ValueError as exc:
            raise FormatError(f"{place} is damaged: {exc}.", fix=DAMAGED) from exc
    return record


def of_plain(kind: type[T], value: Mapping[str, JsonValue], place: str) -> T:
    """One record from the value that a JSON reader returned. Raises FormatError."""
    return parse(kind, json.dumps(value, allow_nan=True).encode(), place)


def _refusal(kind: type[RecordPart], exc: ValidationError, content: bytes, place: str) -> FormatError:
    """The first error as a FormatError: pydantic's own words are not for users."""
    errors = exc.errors(include_url=False, include_context=True)
    if errors[0]["type"] == "json_invalid":
        return FormatError(f"{place} is damaged: {errors[0]['msg']}.", fix=DAMAGED)
    document = json.loads(content)
    if issubclass(kind, Record) and isinstance(document, dict) and document.get("format") != FORMAT_VERSION:
        return other_format(place, document.get("format"))
    error, steps = _closest(errors, document)
    if not steps:
        return FormatError(f"{place}: expected a JSON object, found {_described(document)}.", fix=DAMAGED)
    where = f"{place}: {_path_text(steps)}"
    if error["type"] == "missing":
        return FormatError(f"{where}: expected this key, but it is missing.", fix=DAMAGED)
    if error["type"] == "unexpected_keyword_argument":
        known = f"a key of {kind.__name__} in format {FORMAT_VERSION}"
        return FormatError(f"{where}: expected {known}, found an unknown key.", fix=DAMAGED)
    wanted = EXPECTED.get(error["type"].removesuffix("_type")) or _literal(error)
    return FormatError(f"{where}: expected {wanted}, found {_described(error['input'])}.", fix=DAMAGED)


def other_format(place: str, value: JsonValue) -> FormatError:
    """The error for a file of another format number, or without one: another version wrote it."""
    stated = "no format" if value is None else f"format {_described(value)}"
    return FormatError(f"{place}: expected format {FORMAT_VERSION}, found {stated}.", fix=OTHER_VERSION)


def _literal(error: ErrorDetails) -> str:
    return str((error.get("ctx") or {}).get("expected") or error["msg"])


def _closest(errors: Sequence[ErrorDetails], document: JsonValue) -> tuple[ErrorDetails, tuple[str | int, ...]]:
    """The error to show and its path in the file.

    Where a value may have one of several shapes, pydantic reports what is wrong with it as each of them and puts the
    shape's name into the path. The shape with the fewest errors is the one that was meant.
    """
    placed = [(error, *_located(error, document)) for error in errors]
    per_shape = Counter(shapes for _, _, shapes in placed)
    error, steps, _ = min(placed, key=lambda p: per_shape[p[2]] if p[2] else 0)
    return error, steps


def _located(error: ErrorDetails, document: JsonValue) -> tuple[tuple[str | int, ...], tuple[str | int, ...]]:
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


def _described(value: JsonValue) -> str:
    """A JSON value in a few words."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"

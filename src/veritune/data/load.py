"""Files and objects in, rows out. A record that cannot be used is named, counted and handed back, never lost.

`load_rows(path)` reads JSONL (also .gz and .zst, streamed), Parquet, CSV, a JSON array, a folder that `datasets`
saved, a folder of shards, or a hub id; `rows_from(obj)` takes pandas, polars, pyarrow and `datasets` objects and lists
of dicts. Each record may hold chat `messages`, `prompt`/`completion`, or columns that the caller maps to roles.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, Any

from veritune.errors import DataError, InputError, MachineError
from veritune.records import Finding, Message, Row, dumps

ROLES = ("system", "user", "assistant")
ROLE_ALIASES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt")
PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("problem", "solution"),
    ("query", "response"),
    ("input", "output"),
)
PROMPTS = tuple(dict.fromkeys(prompt for prompt, _ in PAIRS))
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson")
SQUEEZED = (".gz", ".zst")
_EMPTY: Mapping[str, Any] = {}
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.+-]+)?$")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source held. `n_read` counts records met, good and bad: `len(rows)` plus the records rejected.

    `notes` say what was decided on the reader's behalf: which columns were taken, which schemas were mixed.
    """

    rows: tuple[Row, ...]
    rejects: tuple[Finding, ...]
    source_sha256: str
    n_read: int
    notes: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Raw:
    """One record as a reader met it: a value, or the finding that says why there is none."""

    source: str
    line: int
    value: Any = None
    problem: Finding | None = None
    stem: str = ""
    is_record: bool = True


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns become turns: either `messages`, or (role, column) pairs in the order they are spoken."""

    messages: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that goes into the messages and therefore not into `meta`."""
        return (self.messages,) if self.messages else tuple(column for _, column in self.turns)

    def __str__(self) -> str:
        return self.messages or ", ".join(f"{column} as {role}" for role, column in self.turns)


def _problem(raw: Raw, check: str, message: str, *, expected: str, found: str, field: str | None = None) -> Raw:
    """`raw` as a finding of severity `error`."""
    evidence = {"expected": expected, "found": found}
    finding = Finding(f"load.{check}", "error", message, None, raw.source, raw.line, field, evidence)
    return replace(raw, value=None, problem=finding)


class _Reject(Exception):
    """A record that cannot become a row, on its way to a finding."""

    def __init__(self, check: str, message: str, field: str | None, expected: str, found: str) -> None:
        super().__init__(message)
        self.check, self.message, self.field, self.expected, self.found = check, message, field, expected, found


# ---------------------------------------------------------------- the entrances


def load_rows(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    family_field: str | None = None,
    id_field: str | None = None,
    require_target: bool = True,
) -> Loaded:
    """Every row of a file, folder or hub id, with each unusable record as a finding of severity `error`.

    `columns` maps roles to columns (`{"user": "question", "assistant": "answer"}`; also `messages`, `prompt`,
    `completion`). `id_field` names the id column; without it `id` is used where present, else `<file-stem>:<line>`;
    the empty string asks for line ids. With `require_target=False` (an eval's items) rows may end on the user's turn.
    Raises DataError when the source does not exist or `columns` names an unknown role.
    """
    files = _files(path)
    if files is None:
        loaded = rows_from(
            _from_hub(str(path)),
            source=str(path),
            columns=columns,
            family_field=family_field,
            id_field=id_field,
            require_target=require_target,
        )
        return loaded
    return load_files(
        files, columns=columns, family_field=family_field, id_field=id_field, require_target=require_target
    )


def load_files(
    files: list[tuple[Path, str, str]],
    *,
    columns: Mapping[str, str] | None = None,
    family_field: str | None = None,
    id_field: str | None = None,
    require_target: bool = True,
) -> Loaded:
    """As `load_rows`, over files that `files_of` named: (file, name shown, id stem)."""
    maker = _Maker(_given_shape(columns), family_field, id_field, require_target)
    for raw in chain.from_iterable(_read_file(file, name, stem) for file, name, stem in files):
        maker.take(raw)
    return maker.done(_hash_files(files))


def files_of(path: str | Path) -> list[tuple[Path, str, str]]:
    """(file, name shown, id stem) of every file that `load_rows` would read. Raises DataError for a hub id."""
    files = _files(path)
    if files is None:
        raise DataError(f"{path} is a hub id; shards are read from files.", fix="Download it to a folder first.")
    return files


def rows_from(
    obj: Any,
    *,
    source: str = "rows",
    columns: Mapping[str, str] | None = None,
    family_field: str | None = None,
    id_field: str | None = None,
    require_target: bool = True,
) -> Loaded:
    """Rows from a pandas, polars, pyarrow or `datasets` object, or any iterable of dicts or Rows, as `load_rows`."""
    maker = _Maker(_given_shape(columns), family_field, id_field, require_target)
    for number, value in enumerate(_records(obj), start=1):
        maker.take(Raw(source, number, value, stem=source))
    if maker.n_read == 0:
        maker.take(_no_records(source))
    digest = hashlib.sha256()
    for row in maker.rows:
        digest.update(_digest_of(row))
    return maker.done(digest.hexdigest())


def require_clean(loaded: Loaded) -> Loaded:
    """`loaded` when nothing was rejected, else a DataError with the first five findings and the count of all."""
    if not loaded.rejects:
        return loaded
    shown = "; ".join(f"{f.source}:{f.line}: {f.message}" for f in loaded.rejects[:5])
    more = f" (and {len(loaded.rejects) - 5} more)" if len(loaded.rejects) > 5 else ""
    raise DataError(
        f"{len(loaded.rejects)} of {loaded.n_read} records cannot be used: {shown}{more}.",
        fix="Correct or delete these records; `veritune audit FILE --drop clean.jsonl` writes the usable ones.",
    )


# ---------------------------------------------------------------- records to rows


class _Maker:
    """Turns raw records into rows and findings, in order; knows the ids met so far."""

    def __init__(self, shape: Shape | None, family_field: str | None, id_field: str | None, need_target: bool) -> None:
        self.shape, self.family_field, self.id_field, self.need_target = shape, family_field, id_field, need_target
        self.rows: list[Row] = []
        self.rejects: list[Finding] = []
        self.n_read = 0
        self.shapes: Counter[Shape] = Counter()
        self._line_of: dict[str, str] = {}

    def take(self, raw: Raw) -> None:
        if raw.problem is not None:
            self.n_read += raw.is_record
            self.rejects.append(raw.problem)
            return
        self.n_read += 1
        try:
            self.rows.append(self._row(raw))
        except _Reject as bad:
            evidence = {"expected": bad.expected, "found": bad.found}
            self.rejects.append(
                Finding(f"load.{bad.check}", "error", bad.message, None, raw.source, raw.line, bad.field, evidence)
            )

    def done(self, sha256: str) -> Loaded:
        return Loaded(tuple(self.rows), tuple(self.rejects), sha256, self.n_read, tuple(self._notes()))

    def _row(self, raw: Raw) -> Row:
        if isinstance(raw.value, Row):
            self._claim_id(raw.value.id, raw)
            _check_turns(list(raw.value.messages), "messages", self.need_target)
            return raw.value
        if not isinstance(raw.value, Mapping):
            raise _Reject("not_an_object", "the record is not an object", None, "an object", _show(raw.value))
        shape = self.shape or find_shape(raw.value, need_target=self.need_target)
        if shape is None:
            raise _Reject(
                "missing_messages",
                "no messages: none of the known columns is there",
                "messages",
                "messages, prompt and completion, or a column mapping",
                "columns " + (", ".join(map(str, raw.value)) or "none"),
            )
        messages = messages_of(raw.value, shape, need_target=self.need_target)
        row_id = self._id(raw)
        family = self._family(raw.value)
        used = {*shape.columns}
        meta = {str(k): v for k, v in raw.value.items() if k not in used} or _EMPTY
        self._claim_id(row_id, raw)
        self.shapes[shape] += 1
        return Row(row_id, messages, raw.source, raw.line, family, meta)

    def _id(self, raw: Raw) -> str:
        name = "id" if self.id_field is None else self.id_field
        value = raw.value.get(name) if name else None
        if value is None or value == "":
            if self.id_field:
                raise _Reject("missing_id", f"no id in column {name!r}", name, "a text or an integer", _show(value))
            return f"{raw.stem}:{raw.line}"
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise _Reject("bad_id", f"the id in {name!r} is no name", name, "a text or an integer", _show(value))
        return str(value)

    def _claim_id(self, row_id: str, raw: Raw) -> None:
        here = f"{raw.source}:{raw.line}"
        first = self._line_of.setdefault(row_id, here)
        if first is not here:
            raise _used_twice(row_id, first, self.id_field)

    def _family(self, value: Mapping[str, Any]) -> str | None:
        name = self.family_field
        if name is None:
            return None
        family = value.get(name)
        if family is None or family == "" or isinstance(family, Mapping | list | bool):
            message = f"no family name in column {name!r}"
            raise _Reject("missing_family", message, name, "a text or a number", _show(family))
        return str(family)

    def _notes(self) -> Iterator[Finding]:
        if self.shape is None:
            for shape, n in self.shapes.most_common():
                message = f"{n} of {self.n_read} records were read from {shape}"
                evidence = {"columns": list(shape.columns), "n": n, "n_read": self.n_read}
                yield Finding("load.columns", "note", message, evidence=evidence)
        if len(self.shapes) > 1:
            message = f"{len(self.shapes)} different schemas are mixed in this source"
            yield Finding("load.mixed_schemas", "warning", message, evidence={"n_schemas": len(self.shapes)})


def _used_twice(row_id: str, first: str, id_field: str | None) -> _Reject:
    message, found = f"row id {row_id!r} was already used at {first}", f"{row_id!r}, first seen at {first}"
    return _Reject("duplicate_id", message, id_field or "id", "an id of its own", found)


def used_twice(row_id: str, here: str, first: Mapping[str, str], id_field: str | None = None) -> Finding:
    """The finding for a row, read at `here` (file:line), whose id another row had before."""
    bad = _used_twice(row_id, first[row_id], id_field)
    source, _, line = here.rpartition(":")
    evidence = {"expected": bad.expected, "found": bad.found}
    return Finding(f"load.{bad.check}", "error", bad.message, None, source, int(line), bad.field, evidence)


def find_shape(value: Mapping[str, Any], *, need_target: bool = True) -> Shape | None:
    """The columns of a record that hold its turns, None when none of the known names is there."""
    for name in MESSAGE_COLUMNS:
        if name in value:
            return Shape(messages=name)
    system = tuple(("system", name) for name in SYSTEM_COLUMNS if isinstance(value.get(name), str) and value[name])[:1]
    for prompt, answer in PAIRS:
        if prompt in value and answer in value:
            extra = (("user", "input"),) if prompt == "instruction" and value.get("input") else ()
            return Shape(turns=(*system, ("user", prompt), *extra, ("assistant", answer)))
    if not need_target:
        for prompt in PROMPTS:
            if prompt in value:
                return Shape(turns=(*system, ("user", prompt)))
    return None


def _given_shape(columns: Mapping[str, str] | None) -> Shape | None:
    if columns is None:
        return None
    aliases = {"prompt": "user", "completion": "assistant"}
    turns = {aliases.get(role, role): column for role, column in columns.items()}
    unknown = sorted(set(turns) - {*ROLES, "messages"})
    if unknown or not turns or ("messages" in turns and len(turns) > 1):
        raise DataError(
            f"columns maps {', '.join(map(repr, columns)) or 'nothing'}; expected either `messages`, "
            f"or some of system, user, assistant (prompt, completion).",
            fix='Write for example {"user": "question", "assistant": "answer"}.',
        )
    if "messages" in turns:
        return Shape(messages=turns["messages"])
    return Shape(turns=tuple((role, turns[role]) for role in ROLES if role in turns))


def messages_of(value: Mapping[str, Any], shape: Shape, *, need_target: bool = True) -> tuple[Message, ...]:
    """The turns of one record, checked: known roles, text contents, order, and an answer where one is needed."""
    missing = [column for column in shape.columns if column not in value]
    if not need_target:
        missing = [column for role, column in shape.turns if role != "assistant" and column in missing]
    if missing:
        found = "columns " + (", ".join(map(str, value)) or "none")
        raise _Reject("column_missing", f"no column {missing[0]!r}", missing[0], f"column {missing[0]!r}", found)
    turns: list[Message] = []
    if shape.messages is not None:
        turns = _turns(value[shape.messages], shape.messages, "user")
    for role, column in shape.turns:
        content = value.get(column)
        if (content is None and role == "system") or (content is None and not need_target and role == "assistant"):
            continue
        if isinstance(content, list) and content and isinstance(content[0], Mapping) and "type" not in content[0]:
            turns.extend(_turns(content, column, role))
        else:
            text = _content(content, column, role)
            if turns and turns[-1].role == role == "user":
                turns[-1] = Message(role, f"{turns[-1].content}\n\n{text}")
            else:
                turns.append(Message(role, text))
    _check_turns(turns, shape.messages or shape.columns[-1], need_target)
    return tuple(turns)


def _turns(value: Any, column: str, default: str) -> list[Message]:
    """A list of message objects; a JSON text of one (CSV) and a bare text are taken too."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            message = f"{column} holds a text that is no JSON list"
            raise _Reject("bad_messages", message, column, "a list of messages", _show(error)) from None
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not value:
        what = "null" if value is None else _show(value)
        raise _Reject("missing_messages", f"{column} holds no messages", column, "a list of messages", what)
    return [_turn(item, f"{column}[{i}]") for i, item in enumerate(value)]


def _turn(item: Any, where: str) -> Message:
    if not isinstance(item, Mapping):
        raise _Reject("bad_message", f"{where} is no message", where, "an object with role and content", _show(item))
    name = item.get("role", item.get("from"))
    role = ROLE_ALIASES.get(name, name) if isinstance(name, str) else name
    if role not in ROLES:
        message = f"{where} has the role {_show(name)}"
        raise _Reject("unknown_role", message, f"{where}.role", "system, user or assistant", _show(name))
    if item.get("tool_calls"):
        message = f"{where} calls a tool, which cannot be rendered here"
        raise _Reject("tool_call", message, f"{where}.tool_calls", "text content only", "tool_calls")
    content = item["content"] if "content" in item else item.get("value")
    return Message(sys.intern(role), _content(content, f"{where}.content", role))


def _content(content: Any, where: str, role: str) -> str:
    """Text, or text parts joined; anything else is refused by name."""
    if hasattr(content, "tolist"):
        content = content.tolist()
    if isinstance(content, str):
        text = content
    elif content is None:
        check, what = (
            ("empty_assistant", "assistant turn is empty") if role == "assistant" else ("null_content", "null")
        )
        raise _Reject(check, f"{where}: {what}", where, "a text", "null")
    elif isinstance(content, list | tuple):
        text = "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    else:
        raise _Reject("bad_content", f"{where} is no text", where, "a text or text parts", _show(content))
    if not text.isascii() and _has_surrogate(text):
        raise _Reject("surrogate", f"{where} holds half a surrogate pair", where, "valid Unicode", _show(text))
    return text


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in ("text", None) and isinstance(part.get("text"), str):
        return str(part["text"])
    message = f"{where} is a part of type {kind!r}: only text parts can be rendered"
    raise _Reject("unsupported_part", message, where, "a part of type 'text'", f"type {kind!r}")


def _check_turns(turns: list[Message], column: str, need_target: bool) -> None:
    """system? (user assistant)+, ending on user only where no target is needed; texts that say something."""
    body = turns[1:] if turns and turns[0].role == "system" else turns
    order = " ".join(m.role for m in turns) if len(turns) <= 8 else " ".join(m.role for m in turns[:8]) + " ..."
    if not any(m.role == "assistant" for m in turns) and need_target:
        raise _Reject("no_assistant", "there is no assistant turn", column, "an assistant turn at the end", order)
    if not body:
        raise _Reject("missing_user", "there is no user turn", column, "a user turn", order or "nothing")
    for i, message in enumerate(body):
        if message.role != ("user", "assistant")[i % 2]:
            what = f"roles out of order at turn {i + 1 + len(turns) - len(body)}"
            raise _Reject("role_order", what, column, "system (once, first), then user and assistant in turn", order)
    if need_target and body[-1].role != "assistant":
        raise _Reject("no_assistant", "the last turn is not the assistant's", column, "an assistant turn last", order)
    for i, message in enumerate(turns):
        if message.role != "system" and not message.content.strip():
            check = "empty_assistant" if message.role == "assistant" else "empty_user"
            found = "white space" if message.content else "an empty text"
            raise _Reject(
                check, f"the {message.role} turn {i + 1} is empty", column, "a text that says something", found
            )


# ---------------------------------------------------------------- readers


def _files(path: str | Path) -> list[tuple[Path, str, str]] | None:
    """(file, name shown, id stem) of every file to read; None for a hub id. Raises DataError when nothing is there."""
    place = Path(path)
    if place.is_file():
        return [(place, place.name, _stem(place.name))]
    if place.is_dir():
        return _folder(place)
    name = str(path)
    if _HUB_ID.match(name) and _kind(name) is None and not name.startswith("."):
        return None
    raise DataError(f"{name}: no such file or folder.", fix="Check the path; a hub dataset is written owner/name.")


def _folder(place: Path) -> list[tuple[Path, str, str]]:
    if (place / "dataset_dict.json").is_file():
        splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
        raise DataError(
            f"{place} holds the splits {', '.join(splits)}.", fix=f"Name one, for example {place / splits[0]}."
        )
    if (place / "state.json").is_file():
        state = json.loads((place / "state.json").read_text())
        names = [entry["filename"] for entry in state["_data_files"]]
        return [(place / n, f"{place.name}/{n}", f"{place.name}/{Path(n).stem}") for n in names]
    found = sorted(f for f in place.rglob("*") if f.is_file() and _kind(f.name) and not _hidden(f.relative_to(place)))
    if not found:
        raise DataError(
            f"{place} holds no data file; expected {', '.join(TABLE_SUFFIXES)}, also .gz and .zst.",
            fix="Name the file itself, or a folder that `datasets` saved.",
        )
    shown = [(f, f.relative_to(place).as_posix()) for f in found]
    return [(f, name, _stem(name)) for f, name in shown]


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _kind(name: str) -> str | None:
    """`jsonl`, `json`, `csv`, `tsv`, `parquet` or `arrow`, None for anything else."""
    suffixes = [s.lower() for s in Path(name).suffixes]
    if suffixes and suffixes[-1] in SQUEEZED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in (".jsonl", ".ndjson"):
        return "jsonl"
    return last[1:] if last in (".json", ".csv", ".tsv", ".parquet", ".arrow") else None


def _stem(name: str) -> str:
    """The name without its data suffixes: `a/train.jsonl.gz` becomes `a/train`."""
    while Path(name).suffix.lower() in (*TABLE_SUFFIXES, *SQUEEZED, ".arrow"):
        name = name[: -len(Path(name).suffix)]
    return name


def _read_file(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """The records of one file. Whatever breaks the file becomes one finding that says where."""
    kind = _kind(name) or "jsonl"
    readers = {"jsonl": _jsonl, "json": _json, "csv": _csv, "tsv": _csv, "parquet": _parquet, "arrow": _arrow}
    start = Raw(name, 0, is_record=False)
    n = 0
    try:
        if file.stat().st_size == 0:
            message = "the file is empty"
            yield _problem(start, "empty_file", message, expected="at least one record", found="0 bytes")
            return
        for raw in readers[kind](file, name, stem):
            n += 1
            yield raw
    except (OSError, EOFError, zlib.error) as error:
        message = f"reading stopped after {n} records: {error}"
        where = replace(start, line=n + 1)
        yield _problem(where, "unreadable", message, expected=f"a whole {kind} file", found=_show(error))
    except ValueError as error:
        message = f"this is no {kind} file that can be read: {error}"
        where = replace(start, line=n + 1)
        yield _problem(where, "unreadable", message, expected=f"a {kind} file", found=_show(error))
    else:
        if n == 0:
            yield _no_records(name)


def _no_records(source: str) -> Raw:
    start, message = Raw(source, 0, is_record=False), f"{source} holds no records"
    return _problem(start, "empty_file", message, expected="at least one record", found="none")


def _open(file: Path) -> IO[bytes]:
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if suffix == ".zst":
        import io

        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(file), compression="zstd"), buffer_size=1 << 20)
    return file.open("rb", buffering=1 << 20)


def _jsonl(file: Path, name: str, stem: str) -> Iterator[Raw]:
    offset = 0
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                _refuse_utf16(line)
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _parsed(Raw(name, number, stem=stem), line, offset)
            offset += len(line)


def _parsed(raw: Raw, line: bytes, offset: int) -> Raw:
    """One line of JSON, which begins `offset` bytes into the file."""
    expected = "one JSON object"
    try:
        value = json.loads(line.decode("utf-8").rstrip(), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at offset {offset + error.start} of the file"
        return _problem(raw, "not_utf8", f"not UTF-8: {found}", expected="UTF-8 text", found=found)
    except RecursionError:
        message = "nested too deeply to read"
        return _problem(raw, "broken_json", message, expected=expected, found="deep nesting")
    except json.JSONDecodeError as error:
        message = f"broken JSON at column {error.colno}: {error.msg}"
        return _problem(raw, "broken_json", message, expected=expected, found=_show(line))
    except ValueError as error:
        return _problem(raw, "broken_json", f"broken JSON: {error}", expected=expected, found=_show(line))
    return _unless_surrogate(replace(raw, value=value)) if _SURROGATE.search(line) else replace(raw, value=value)


def _unless_surrogate(raw: Raw) -> Raw:
    """`raw`, or the finding that half a surrogate pair sits in it: no file and no tokenizer can hold that."""
    where = _surrogate_path(raw.value)
    if where is None:
        return raw
    message, found = f"{where} holds half a surrogate pair", f"half a surrogate pair in {where}"
    return _problem(raw, "surrogate", message, expected="valid Unicode", found=found, field=where)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null where a value is missing")


def _refuse_utf16(head: bytes) -> None:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16, not UTF-8; save it as UTF-8")


def _json(file: Path, name: str, stem: str) -> Iterator[Raw]:
    """An array, an object with one list in it, or JSON lines under another name."""
    with _open(file) as stream:
        head = stream.readline().removeprefix(b"\xef\xbb\xbf").strip()
        _refuse_utf16(head)
        if not head.startswith(b"[") and head.endswith(b"}"):
            yield from _jsonl(file, name, stem)
            return
        whole = head + stream.read()
    try:
        value = json.loads(whole.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte 0x{whole[error.start]:02x} at offset {error.start}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply to read") from None
    lists = [v for v in value.values() if isinstance(v, list)] if isinstance(value, dict) else [value]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise ValueError(f"expected an array of records, found {type(value).__name__}")
    surrogates = bool(_SURROGATE.search(whole))
    for number, item in enumerate(lists[0], start=1):
        raw = Raw(name, number, item, stem=stem)
        yield _unless_surrogate(raw) if surrogates else raw


def _csv(file: Path, name: str, stem: str) -> Iterator[Raw]:
    with _open(file) as stream:
        reader = csv.reader(_lines(stream), delimiter="\t" if _kind(name) == "tsv" else ",", strict=True)
        try:
            header = next(reader, [])
            start = reader.line_num
            for fields in reader:
                start, number = reader.line_num, start + 1
                if not fields:
                    continue
                if len(fields) != len(header):
                    expected, found = f"{len(header)} fields", f"{len(fields)} fields"
                    message = f"{found} where the header names {len(header)}"
                    yield _problem(Raw(name, number), "csv_fields", message, expected=expected, found=found)
                else:
                    yield Raw(name, number, dict(zip(header, fields)), stem=stem)
        except csv.Error as error:
            # The limit belongs to the process. The command line lifts it; a program that uses the library decides.
            lift = "; in Python, first call csv.field_size_limit(sys.maxsize)" if "field limit" in str(error) else ""
            raise ValueError(f"line {reader.line_num}: {error}{lift}") from None


def _lines(stream: IO[bytes]) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            at = offset + error.start
            raise ValueError(f"not UTF-8: byte 0x{line[error.start]:02x} at offset {at}, line {number}") from None
        offset += len(line)
        yield text.removeprefix("\ufeff") if number == 1 else text


def _parquet(file: Path, name: str, stem: str) -> Iterator[Raw]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as table:
        yield from _batches(table.iter_batches(batch_size=4096), name, stem)


def _arrow(file: Path, name: str, stem: str) -> Iterator[Raw]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as mapped:
        try:
            batches: Iterable[Any] = pa.ipc.open_stream(mapped)
        except pa.ArrowInvalid:
            opened = pa.ipc.open_file(mapped)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        yield from _batches(batches, name, stem)


def _batches(batches: Iterable[Any], name: str, stem: str) -> Iterator[Raw]:
    number = 0
    for batch in batches:
        for value in batch.to_pylist():
            number += 1
            yield Raw(name, number, value, stem=stem)


def _records(obj: Any) -> Iterator[Any]:
    """The records of a table object, told apart by the package it comes from, so that none is imported here."""
    package = type(obj).__module__.split(".")[0]
    if isinstance(obj, str | bytes | Path):
        raise DataError(f"rows_from takes tables, not the name {str(obj)!r}.", fix="Use load_rows for a path.")
    if package == "polars":
        yield from obj.collect().iter_rows(named=True) if hasattr(obj, "collect") else obj.iter_rows(named=True)
    elif package == "pandas":
        names = [str(c) for c in obj.columns]
        for values in obj.itertuples(index=False, name=None):
            yield {n: _no_nan(v) for n, v in zip(names, values)}
    elif package == "pyarrow":
        for batch in obj.to_batches() if hasattr(obj, "to_batches") else [obj]:
            yield from batch.to_pylist()
    elif isinstance(obj, Mapping):
        raise DataError(
            f"found a mapping with {', '.join(map(str, obj)) or 'nothing'}.",
            fix="Hand over one split of it, or a list of dicts.",
        )
    else:
        yield from obj


def _no_nan(value: Any) -> Any:
    """pandas marks a missing value with NaN, NaT or NA; here it is None."""
    if value is None or isinstance(value, str | list | dict):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
        if isinstance(value, list):
            return value
    return None if type(value).__name__ in ("NAType", "NaTType") or value != value else value


def _from_hub(name: str) -> Any:
    """One split of a hub dataset (`owner/name`, the split `train` unless `owner/name:split`)."""
    try:
        import datasets
    except ImportError:
        raise MachineError(f"{name} looks like a hub dataset.", fix="pip install datasets, or name a file.") from None
    repo, _, split = name.partition(":")
    try:
        return datasets.load_dataset(repo, split=split or "train")
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise DataError(
            f"{name} is no file here, and the hub gave no such dataset: {type(error).__name__}: {_show(error, 160)}.",
            fix="Check the path; without a network (or with HF_HUB_OFFLINE set) name a local file.",
        ) from error


# ---------------------------------------------------------------- small things


def _hash_files(files: list[tuple[Path, str, str]]) -> str:
    """SHA-256 of the one file's bytes, or of the sorted names and hashes of several."""

    def one(file: Path) -> str:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    if len(files) == 1:
        return one(files[0][0])
    lines = sorted(f"{name}\t{one(file)}\n" for file, name, _ in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest_of(row: Row) -> bytes:
    try:
        return hashlib.sha256(dumps(row).encode("utf-8", "surrogatepass")).digest()
    except (TypeError, ValueError):
        return hashlib.sha256(repr(row).encode("utf-8", "surrogatepass")).digest()


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _surrogate_path(value: Any, path: str = "") -> str | None:
    """Where in a JSON value a lone surrogate sits, None when nowhere."""
    if isinstance(value, str):
        return (path or "the record") if _has_surrogate(value) else None
    if isinstance(value, dict):
        for key, inner in value.items():
            here = f"{path}.{key}" if path else str(key)
            hit = here if _has_surrogate(key) else _surrogate_path(inner, here)
            if hit:
                return hit.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list):
        return next((hit for i, v in enumerate(value) if (hit := _surrogate_path(v, f"{path}[{i}]"))), None)
    return None


def _show(value: Any, limit: int = 80) -> str:
    """A short, printable form of what was found."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else str(value) if isinstance(value, Exception) else repr(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def parse_columns(text: str | None) -> dict[str, str] | None:
    """`user=question,assistant=answer` as a mapping from role to column; None for None. Raises InputError."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(sign and role and column for role, sign, column in pairs):
        raise InputError(
            f"--columns: expected role=column pairs, found {text!r}.", fix="user=question,assistant=answer"
        )
    return {role.strip(): column.strip() for role, _, column in pairs}

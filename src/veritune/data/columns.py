"""Which columns of a record become its turns: found by name, or mapped by the user.

`--columns` maps roles to columns or to templates over several: `user: "{table}\\n{question}", assistant: answer`.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from veritune.data.fields import (
    ANSWERS,
    CONTEXTS,
    FAMILY_COLUMNS,
    MESSAGE_COLUMNS,
    PAIRS,
    PROMPTS,
    SYSTEM_COLUMNS,
)
from veritune.data.sources.raw import Cell, Reject, native
from veritune.data.tools import is_empty
from veritune.errors import DataError, InputError, did_you_mean
from veritune.records import Row

TURN_ROLES = ("system", "developer", "user", "reasoning", "assistant")
KEYS = (*TURN_ROLES, "prompt", "completion", "messages", "tools", "ignore")
_ALIASES = {"prompt": "user", "completion": "assistant"}
_NO_TURNS = ("id", "source", "split", "label", "data_source", "ability", "category", "subject", "level", "type")
_REFERENCE = re.compile(r"(expected|reference|ground|gold|correct)")
_START = re.compile(rf"(?:^|[,\n])\s*(?P<key>{'|'.join(KEYS)})\s*[=:]\s*")
_EXAMPLE = 'user=question,assistant=answer, or user: "{table}\\n{question}", assistant: answer'


@dataclass(frozen=True, slots=True)
class Shape:
    """Which columns become turns: `messages`, or (role, column or template) pairs in conversation order."""

    messages: str | None = None
    turns: tuple[tuple[str, str], ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that goes into the messages."""
        if self.messages:
            return (self.messages,)
        return tuple(dict.fromkeys(c for _, source in self.turns for c in columns_of(source)))

    @property
    def answers(self) -> tuple[str, ...]:
        """The columns that hold the answer unchanged; they are also kept in `meta`, so that rules can name them."""
        return tuple(
            source
            for role, source in self.turns
            if role == "assistant" and source != "source" and not is_template(source)
        )

    def __str__(self) -> str:
        return self.messages or ", ".join(f"{source} as {role}" for role, source in self.turns)


@dataclass(frozen=True, slots=True)
class Mapped:
    """A user's column mapping: the shape (None: found by name), the column with tools, the columns to ignore."""

    shape: Shape | None = None
    tools: str | None = None
    ignore: frozenset[str] = frozenset()


def mapped(columns: Mapping[str, str] | None) -> Mapped:
    """A checked mapping from roles to columns. Raises DataError for an unknown role."""
    if columns is None:
        return Mapped()
    turns = {_ALIASES.get(role, role): source for role, source in columns.items()}
    unknown = [role for role in columns if role not in KEYS]
    ignore = frozenset(filter(None, re.split(r"[|\s]+", turns.pop("ignore", "")))) if not unknown else frozenset()
    tools = turns.pop("tools", None)
    if unknown or (not turns and not tools and not ignore) or ("messages" in turns and len(turns) > 1):
        hint = did_you_mean(unknown[0], KEYS) if unknown else ""
        raise DataError(
            f"columns maps {', '.join(map(repr, columns)) or 'nothing'}{hint}; expected either `messages`, "
            f"or some of system, user, assistant, reasoning (prompt, completion), beside them tools and ignore.",
            fix='Write for example {"user": "question", "assistant": "answer"}.',
        )
    for source in turns.values():
        columns_of(source)
    if "messages" in turns:
        return Mapped(Shape(messages=turns["messages"]), tools, ignore)
    shape = Shape(turns=tuple((role, turns[role]) for role in TURN_ROLES if role in turns)) if turns else None
    return Mapped(shape, tools, ignore)


def parse_columns(text: str | None) -> dict[str, str] | None:
    """`user=question,assistant=answer` as a mapping from role to column or template; None for None.

    `:` does for `=`; a value may stand in quotes, braces around the whole are taken off, `\\n` and `\\t` are a line
    break and a tab. Raises InputError.
    """
    if text is None:
        return None
    body = text.strip()
    if body.startswith("{") and body.endswith("}") and _START.match(body[1:-1].strip()):
        body = body[1:-1].strip()
    starts = list(_START.finditer(body))
    if not starts or starts[0].start() != 0:
        first = re.match(r"\w+", body)
        hint = did_you_mean(first[0], KEYS) if first else ""
        raise InputError(f"--columns: expected role=column pairs, found {text!r}{hint}.", fix=_EXAMPLE)
    pairs: dict[str, str] = {}
    for start, after in zip(starts, [*starts[1:], None]):
        value = body[start.end() : after.start() if after else None].strip().rstrip(",").strip()
        stray = re.search(r",\s*(\w+)\s*[=:]", value) if not is_template(value) and value[:1] not in "\"'" else None
        if not value or stray:
            wrong = (
                f"{stray[1]!r} is not a role{did_you_mean(stray[1], KEYS)}"
                if stray
                else f"{start['key']} has no column"
            )
            raise InputError(f"--columns: {wrong}, in {text!r}.", fix=_EXAMPLE)
        if start["key"] in pairs:
            raise InputError(f"--columns: {start['key']} is mapped twice, in {text!r}.", fix=_EXAMPLE)
        if value[0] in "\"'" and value[-1] == value[0] and len(value) > 1:
            value = value[1:-1]
        pairs[start["key"]] = value.replace("\\n", "\n").replace("\\t", "\t")
    return pairs


# ---------------------------------------------------------------- templates over columns


@lru_cache(maxsize=256)
def _parts(source: str) -> tuple[tuple[str, str | None], ...]:
    """(literal text, column or None) in order. Raises DataError where braces name no column."""
    if "{" not in source and "}" not in source:
        return (("", source),)
    try:
        parsed = list(string.Formatter().parse(source))
    except ValueError as error:
        raise DataError(
            f"columns: {source!r}: {error}.", fix="A column is written {name}; write {{ for a brace."
        ) from None
    if any(name == "" or spec or conversion for _, name, spec, conversion in parsed):
        raise DataError(
            f"columns: {source!r} holds braces that name no column.",
            fix="A column is written {name}; write {{ for a brace.",
        )
    return tuple((literal, name) for literal, name, _, _ in parsed)


def is_template(source: str) -> bool:
    """Whether a mapping's value is a text with columns in braces rather than one column's name."""
    return "{" in source or "}" in source


def columns_of(source: str) -> tuple[str, ...]:
    """The columns that a column name or a template reads. Raises DataError for unmatched braces."""
    return tuple(name for _, name in _parts(source) if name is not None)


def filled(source: str, value: Mapping[str, Cell]) -> Cell:
    """A column's value unchanged, or a template with its columns filled in. Raises Reject for a missing value.

    Numbers are written as Python writes them, lists and objects as JSON.
    """
    if not is_template(source):
        return value.get(source)
    out = []
    for literal, name in _parts(source):
        out.append(literal)
        if name is None:
            continue
        held = value.get(name)
        if held is None:
            raise Reject("null_content", f"{name}: null, and {source!r} needs it", name, "a value", "null")
        out.append(held if isinstance(held, str) else _written(held))
    return "".join(out)


def _written(held: Cell) -> str:
    held = native(held)
    return json.dumps(held, ensure_ascii=False, default=str) if isinstance(held, list | dict | bool) else str(held)


# ---------------------------------------------------------------- found by name


def find_shape(
    value: Mapping[str, Cell], *, need_target: bool = True, ignore: frozenset[str] = frozenset()
) -> Shape | None:
    """The columns of a record that hold its turns; None if none of the known names is present."""
    shapes = _shapes(value, need_target, ignore)
    first = next(shapes, None)
    if first is None or _says_something(value, first):
        return first
    # A union of sources fills the columns of the others with nulls: the columns that say something are meant.
    return next((shape for shape in shapes if _says_something(value, shape)), first)


def _says_something(value: Mapping[str, Cell], shape: Shape) -> bool:
    """Whether each column of a shape holds something in this record."""
    return not any(is_empty(value[column]) for column in shape.columns)


def _shapes(value: Mapping[str, Cell], need_target: bool, ignore: frozenset[str]) -> Iterator[Shape]:
    """Every shape whose columns a record has, the usual ones first."""
    for name in MESSAGE_COLUMNS:
        if name in value and name not in ignore:
            yield Shape(messages=name)
    system = tuple(
        ("system", name)
        for name in SYSTEM_COLUMNS
        if name not in ignore and isinstance(value.get(name), str) and value[name]
    )[:1]
    for prompt, answer in PAIRS:
        if prompt in value and answer in value and not {prompt, answer} & ignore:
            extra = (
                (("user", "input"),) if prompt == "instruction" and value.get("input") and "input" not in ignore else ()
            )
            yield Shape(turns=(*system, ("user", prompt), *extra, ("assistant", answer)))
    if not need_target:
        for prompt in PROMPTS:
            if prompt in value and prompt not in ignore:
                yield Shape(turns=(*system, ("user", prompt)))


def suggestion(value: Mapping[str, Cell]) -> str:
    """The option that would map a record's columns, with its column names filled in; else a description of what a
    mapping needs.
    """
    listed = next((str(name) for name, held in value.items() if _are_messages(held)), None)
    texts = [str(n) for n, held in value.items() if n not in _NO_TURNS and isinstance(held, str) and held.strip()]
    folded = {name.casefold(): name for name in reversed([*texts, *([listed] if listed else [])])}
    user = next((folded[name] for name in PROMPTS if name in folded), None)
    if listed is not None and listed != user:
        return f"say where they stand, for example --columns messages={listed}"
    others = [name for name in texts if name != user and name.casefold() not in (*SYSTEM_COLUMNS, *CONTEXTS)]
    user = user or (others.pop(0) if len(others) > 1 else None)
    named = [n for n in others if any(a in n.casefold() for a in ANSWERS) and not _REFERENCE.match(n.casefold())]
    answer = next((folded[name] for name in ANSWERS if folded.get(name) in others), None)
    answer = answer or max(named, key=lambda name: len(str(value[name])), default=others[-1] if others else None)
    if user is None or answer is None:
        return "map a column with questions and one with answers: --columns user=QUESTION,assistant=ANSWER"
    system = next((f"system={folded[name]}," for name in SYSTEM_COLUMNS if name in folded), "")
    context = next((folded[name] for name in CONTEXTS if name in folded), None)
    if context is not None:
        asked = f'"{{{context}}}\\n\\n{{{user}}}"'
        return f"say where they stand, for example --columns '{system}user: {asked}, assistant: {answer}'"
    return f"say where they stand, for example --columns {system}user={user},assistant={answer}"


def _are_messages(held: Cell) -> bool:
    """Whether a value is a list of messages under some other name."""
    if not isinstance(held, list) or not held or not all(isinstance(turn, Mapping) for turn in held):
        return False
    return all({"role", "content"} <= turn.keys() or {"from", "value"} <= turn.keys() for turn in held)


def family_column(rows: Sequence[Row]) -> str | None:
    """A column that probably names each row's original: it has several values, and fewer values than rows."""
    for name in FAMILY_COLUMNS:
        if rows and name in rows[0].meta:
            values = [row.meta.get(name) for row in rows]
            if all(isinstance(v, str | int) and v != "" for v in values) and 1 < len(set(values)) < len(rows):
                return name
    return None

"""Declared tools and calls of tools, as files bring them and as one form: OpenAI's `tools` and `tool_calls`.

Read are lists, JSON texts of lists, bare functions (`{"name", "parameters"}`), the older `functions` and
`function_call`, and ShareGPT's `function_call` turns. A call's arguments become the JSON text of an object, keys in
their order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

from veritune.data.fields import TOOL_COLUMNS
from veritune.data.sources.raw import Cell, Reject, has_surrogate, native, show
from veritune.records import (
    Json,
    JsonLike,
    JsonValue,
    Message,
    ToolCall,
)


def is_empty(value: Cell) -> bool:
    """Whether a field has no content: null, an empty text, list or object."""
    value = native(value)
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, list | dict) and not value)
    )


def without_nulls(value: Cell) -> Cell:
    """A value of a typed table without the keys that the table filled with null."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list | tuple) else value


def tools_of(
    value: Mapping[str, Cell], named: str | None, ignore: frozenset[str], *, typed: bool
) -> tuple[str | None, tuple[Json, ...] | None]:
    """(the column that declares tools, the tools); None if a record declares none. Raises Reject."""
    if named is not None and named not in value:
        raise Reject("column_missing", f"no column {named!r}", named, f"column {named!r}", ", ".join(map(str, value)))
    columns = (named,) if named is not None else tuple(c for c in TOOL_COLUMNS if c in value and c not in ignore)
    for column in columns:
        if is_empty(value[column]):
            continue
        listed = _listed(value[column], column)
        tools = tuple(_tool(tool, f"{column}[{i}]", typed) for i, tool in enumerate(listed))
        try:
            _whole(json.dumps(tools, ensure_ascii=False, allow_nan=False), column)
        except (TypeError, ValueError, RecursionError) as error:
            raise Reject("bad_tools", f"{column}: {error}", column, "JSON values", show(value[column])) from None
        return column, tools or None
    return (columns[0] if columns else None), None


def _listed(value: Cell, column: str) -> list[Cell]:
    value = native(value)
    if isinstance(value, str):
        value = _json(value, column, "bad_tools", f"{column} holds text that is not a JSON list of tools")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        what = f"{column} holds no list of tools; --columns ignore={column} leaves it out"
        raise Reject("bad_tools", what, column, "a list of tools, or its JSON text", show(value))
    return list(value)


def _tool(tool: Cell, where: str, typed: bool) -> dict[str, Cell]:
    if isinstance(tool, str):
        tool = _json(tool, where, "bad_tools", f"{where} is text that is not a JSON object")
    if typed:
        tool = without_nulls(tool)
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if isinstance(function, Mapping) and isinstance(held := function.get("parameters"), str):
        parsed = _json(held, where, "bad_tools", f"{where}.parameters is not a JSON object")
        function = {**function, "parameters": parsed}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        what = f"{where} is not a tool: it has no name; --columns ignore={where.split('[')[0]} leaves it out"
        raise Reject("bad_tools", what, where, '{"type": "function", "function": {"name": ...}}', show(tool))
    assert isinstance(tool, Mapping)
    if "function" in tool:
        return {**tool, "function": dict(function), "type": tool.get("type") or "function"}
    inner = {k: v for k, v in function.items() if k != "type"}
    return {"type": "function", "function": inner}


def calls_of(value: Cell, where: str, *, typed: bool) -> tuple[ToolCall, ...]:
    """The calls in `tool_calls`, `function_call` or a ShareGPT turn: a list, one object, or the JSON text of either."""
    value = native(value)
    if isinstance(value, str):
        value = _json(value, where, "tool_call", f"{where} is text that is not JSON")
    listed = [value] if isinstance(value, Mapping) else value
    if not isinstance(listed, list | tuple) or not listed:
        raise Reject("tool_call", f"{where} holds no calls", where, "a list of calls", show(value))
    return tuple(_call(call, f"{where}[{i}]", typed) for i, call in enumerate(listed))


def _call(call: Cell, where: str, typed: bool) -> ToolCall:
    if isinstance(call, str):
        call = _json(call, where, "tool_call", f"{where} is text that is not a JSON object")
    function = call.get("function") or call if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(call, Mapping) or not isinstance(name, str) or not name:
        raise Reject("tool_call", f"{where} names no tool", where, "an object with name and arguments", show(call))
    arguments = function.get("arguments", function.get("parameters"))
    call_id = call.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise Reject("tool_call", f"{where}.id is not text", f"{where}.id", "a text", show(call_id))
    return ToolCall(_whole(name, where), _arguments(arguments, f"{where}.arguments", typed), call_id or None)


def _arguments(value: Cell, where: str, typed: bool) -> str:
    if isinstance(value, str) and value.strip():
        value = _json(value, where, "tool_arguments", f"{where} is text that is not a JSON object")
    elif is_empty(value):
        value = {}
    elif typed:
        value = without_nulls(value)
    if not isinstance(value, Mapping):
        raise Reject("tool_arguments", f"{where} is not an object", where, "a JSON object, or its text", show(value))
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise Reject("tool_arguments", f"{where}: {error}", where, "JSON values", show(value)) from None
    return _whole(text, where)


def _whole(text: str, where: str) -> str:
    if not text.isascii() and has_surrogate(text):
        raise Reject("surrogate", f"{where} contains a lone surrogate", where, "valid Unicode", show(text))
    return text


def _json(text: str, where: str, check: str, message: str) -> JsonValue:
    """Strict JSON: an object that names a key twice, or NaN, would lose something."""

    def once(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonLike]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key occurs twice in one object")
        return dict(pairs)

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        value: JsonValue = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) or "nested too deeply"
        raise Reject(check, f"{message}: {reason}", where, "JSON", show(text)) from None
    return value


def undeclared(messages: Sequence[Message], tools: Sequence[Json] | None) -> tuple[str, ...]:
    """Names of tools that are called but not declared, in the order of the calls."""
    declared = {str(tool["function"]["name"]) for tool in tools or () if "function" in tool}
    called = (call.name for message in messages for call in message.tool_calls or ())
    return tuple(dict.fromkeys(name for name in called if name not in declared))

"""Calls of tools in an output's text: JSON objects with a name and arguments, or `<function=name>` blocks.

The forms of Hermes, Qwen, Llama and Mistral are JSON (`arguments` or `parameters`) inside marks that differ; Qwen's
coders write `<function=tide><parameter=harbour>...`. Special tokens are gone from an output's text: no mark is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from veritune.records import JsonLike, Row

_FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class FoundCall:
    """One call as written in an output. `typed` is False if the form makes every value a text (`<parameter=...>`)."""

    name: str
    arguments: Mapping[str, Any]
    typed: bool = True

    def __str__(self) -> str:
        return f"{self.name}({json.dumps(self.arguments, ensure_ascii=False, sort_keys=True)})"


def calls_in(text: str) -> list[FoundCall]:
    """Every call in a text, in order."""
    found: list[FoundCall] = []
    at = 0
    while (at := text.find("{", at)) >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            at += 1
            continue
        call = _call_of(value)
        found += [call] if call is not None else []
        at = end if call is not None else at + 1
    found += [FoundCall(m[1], dict(_PARAMETER.findall(m[2])), typed=False) for m in _FUNCTION.finditer(text)]
    return found


def _call_of(value: JsonLike) -> FoundCall | None:
    inner = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        return None
    arguments = inner.get("arguments", inner.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return FoundCall(inner["name"], arguments) if isinstance(arguments, dict) else None


def calls_hold(kind: Literal["equal", "names"], row: Row, text: str) -> tuple[bool, list[str]]:
    """Whether an output makes the calls of the row's answer, in any order, and the calls it made.

    `equal` compares names and arguments, `names` the names alone. An answer without calls asks for none.
    """
    found = calls_in(text)
    last = row.messages[-1] if row.messages else None
    wanted = last.tool_calls or () if last is not None and last.role == "assistant" else ()
    meant = [FoundCall(call.name, json.loads(call.arguments)) for call in wanted]
    shown = [str(call) for call in found]
    if kind == "names":
        return sorted(c.name for c in found) == sorted(c.name for c in meant), shown
    return len(found) == len(meant) and all(_take(call, meant) for call in found), shown


def _take(call: FoundCall, meant: list[FoundCall]) -> bool:
    """Takes the call that is meant out of the list; False where none of them is."""
    for i, other in enumerate(meant):
        arguments = other.arguments if call.typed else {k: _as_text(v) for k, v in other.arguments.items()}
        if call.name == other.name and json.dumps(call.arguments, sort_keys=True) == json.dumps(
            arguments, sort_keys=True
        ):
            del meant[i]
            return True
    return False


def _as_text(value: JsonLike) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

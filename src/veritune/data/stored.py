"""Rows as they lie in a Parquet file of the study folder: the training data's and the items of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from veritune.records import Message, Row, dumps, tools_from, tools_text


def row_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The columns that store rows: `tools` only if a row declares some."""
    more = any(len(m.to_chat()) > 2 for row in rows for m in row.messages)
    columns: dict[str, list[Any]] = {
        "id": [row.id for row in rows],
        "source": [row.source for row in rows],
        "line": [row.line for row in rows],
        "family": [row.family for row in rows],
        "messages": [[_stored(m, more) for m in row.messages] for row in rows],
        "meta": [dumps(row.meta) for row in rows],
    }
    if any(row.tools is not None for row in rows):
        columns["tools"] = [tools_text(row.tools) for row in rows]
    return columns


def row_of(stored: Mapping[str, Any]) -> Row:
    """A row from the columns that `row_columns` wrote."""
    return Row(
        stored["id"],
        tuple(_message(m) for m in stored["messages"]),
        stored["source"],
        stored["line"],
        stored["family"],
        json.loads(stored["meta"]),
        tools_from(stored.get("tools")),
    )


def _stored(message: Message, more: bool) -> dict[str, str]:
    """A turn as a record of texts, all with the same keys: calls, reasoning and weights stand in `more`, as JSON."""
    chat = message.to_chat()
    rest = {key: value for key, value in chat.items() if key not in ("role", "content")}
    plain = {"role": message.role, "content": message.content}
    return {**plain, "more": json.dumps(rest, ensure_ascii=False)} if more else plain


def _message(stored: Mapping[str, str]) -> Message:
    """The turn that `_stored` wrote."""
    return Message.from_chat({**stored, **json.loads(stored.get("more") or "{}")})

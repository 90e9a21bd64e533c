"""The turns of one record: known roles, texts, reasoning, calls and loss weights, in an order that can be trained on.

Every field of `data.fields` is taken, or the record is refused with the field's name; other keys of messages count.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from veritune.data.columns import Mapped, Shape, columns_of, filled, is_template
from veritune.data.fields import (
    CALL_ROLES,
    CONTEXTS,
    LOSS_KEYS,
    MESSAGE_FIELDS,
    REASONING_KEYS,
    ROLE_ALIASES,
    ROLES,
    SYSTEM_COLUMNS,
    TOOL_COLUMNS,
)
from veritune.data.refusals import flag, number_label, refuse_fields
from veritune.data.sources.raw import Cell, Reject, has_surrogate, native, show
from veritune.data.tools import calls_of, is_empty, tools_of
from veritune.records import Json, Message, ToolCall

TrainOn = Literal["all", "last"]

_REFUSED_IN_MESSAGES = tuple(f.name for f in MESSAGE_FIELDS.values() if f.fate == "refused")
_COMPANIONS = (*SYSTEM_COLUMNS, "history")
_ASIDE = (*REASONING_KEYS, *CONTEXTS)
_COMPANION_SET, _TOOL_SET, _ASIDE_SET = frozenset(_COMPANIONS), frozenset(TOOL_COLUMNS), frozenset(_ASIDE)
_PLAIN = frozenset(("role", "content"))
_USUAL = ("user", "assistant", "system")
_TEXT_PARTS = ("text", "input_text", "output_text")
_SPOKEN = ("role", "from", "content", "value")


@dataclass(frozen=True, slots=True)
class Conversation:
    """The turns of a record, the columns they were taken from, and the columns that were not used.

    `loose` counts keys of messages without a use here. `unmapped` are columns that would be trained on if they were
    mapped, each with the way to do it.
    """

    messages: tuple[Message, ...]
    tools: tuple[Json, ...] | None
    used: frozenset[str]
    loose: Counter[str] = field(default_factory=Counter)
    unmapped: tuple[tuple[str, str], ...] = ()


def conversation(
    value: Mapping[str, Cell],
    shape: Shape,
    mapping: Mapped,
    *,
    need_target: bool = True,
    typed: bool = False,
    train_on: TrainOn = "all",
) -> Conversation:
    """The turns and tools of one record. Raises Reject for content that cannot be trained on as it is."""
    if need_target:  # of an eval's items the texts alone are compared
        refuse_fields(value, shape, mapping)
    loose: Counter[str] = Counter()
    reader = _TurnReader(loose, typed)
    turns = reader.turns_of(value, shape, need_target)
    used = set(shape.columns)
    unmapped = [] if _ASIDE_SET.isdisjoint(value) or not need_target else _aside(value, shape, mapping)
    for name in _COMPANIONS if not _COMPANION_SET.isdisjoint(value) else ():
        if name in used or name in mapping.ignore or is_empty(value.get(name)):
            continue
        if mapping.shape is not None and not shape.messages:
            way = "put its turns into a list of messages" if name == "history" else f"add system={name}"
            unmapped.append((name, way))
        elif name == "history":
            turns = _after_system(turns, reader.history(value[name], shape))
            used.add(name)
        else:
            turns = _with_system(turns, text_of(value[name], name, "system"), name)
            used.add(name)
    tool_column, tools = None, None
    if need_target and (mapping.tools is not None or not _TOOL_SET.isdisjoint(value)):
        tool_column, tools = tools_of(value, mapping.tools, mapping.ignore, typed=typed)
    used |= {tool_column} if tool_column is not None else set()
    column = shape.messages or shape.columns[-1]
    check_turns(turns, column, need_target)
    if train_on == "last":
        turns = last_alone(turns)
    if need_target and not any(m.trained for m in turns):
        what = "no assistant turn carries loss: every weight is 0"
        raise Reject("no_loss", what, column, "an assistant turn with weight 1 or without a weight", "weight 0")
    return Conversation(tuple(turns), tools, frozenset(used), loose, tuple(unmapped))


def messages_from(value: Cell, column: str) -> tuple[Message, ...]:
    """A list of message objects as turns; their order is not checked. Raises Reject."""
    return tuple(_TurnReader(Counter(), typed=False).listed(value, column, "user"))


def last_alone(turns: Sequence[Message]) -> list[Message]:
    """The turns, with loss on the last assistant turn only."""
    last = max((i for i, m in enumerate(turns) if m.role == "assistant"), default=-1)
    return [replace(m, weight=0) if m.role == "assistant" and i != last else m for i, m in enumerate(turns)]


# ---------------------------------------------------------------- turns


@dataclass(slots=True)
class _TurnReader:
    """Reads the turns of one record; counts in `loose` the keys of messages that have no use here."""

    loose: Counter[str]
    typed: bool

    def turns_of(self, value: Mapping[str, Cell], shape: Shape, need_target: bool) -> list[Message]:
        _refuse_missing(value, shape, need_target)
        if shape.messages is not None:
            return self.listed(value[shape.messages], shape.messages, "user")
        turns: list[Message] = []
        reasoning: str | None = None
        for role, source in shape.turns:
            optional = role in ("system", "developer", "reasoning") or (not need_target and role == "assistant")
            if optional and any(value.get(column) is None for column in columns_of(source)):
                continue
            content = filled(source, value)
            if role == "reasoning":
                reasoning = text_of(content, source, role)
            elif isinstance(content, list) and content and isinstance(content[0], Mapping) and "type" not in content[0]:
                turns.extend(self.listed(content, source, role))
            elif not need_target and role == "assistant" and not isinstance(content, str):
                continue  # an item's key: a choice's number, several right answers; its question is compared
            else:
                if not need_target and (several := _texts_in(content)):
                    content = "\n\n".join(several)  # turns of one dialogue (MT-Bench), compared alone
                text = text_of(content, source, role)
                if turns and turns[-1].role == role == "user":
                    turns[-1] = Message(role, f"{turns[-1].content}\n\n{text}")
                elif text or role not in ("system", "developer"):
                    turns.append(Message(role, text))
        if reasoning and turns and turns[-1].role == "assistant":
            turns[-1] = replace(turns[-1], reasoning=reasoning)
        return turns

    def listed(self, value: Cell, column: str, default: str) -> list[Message]:
        """A list of message objects; the JSON text of one (as in CSV) is accepted too."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                message = f"{column} holds text that is not a JSON list"
                raise Reject("bad_messages", message, column, "a list of messages", show(error)) from None
        value = native(value)
        if not isinstance(value, list | tuple) or not value:
            what = "null" if value is None else show(value)
            raise Reject("missing_messages", f"{column} holds no messages", column, "a list of messages", what)
        turns: list[Message] = []
        for i, item in enumerate(value):
            turn = self._turn(item, f"{column}[{i}]")
            # ShareGPT and ms-swift write calls made at once as one turn each.
            if turns and _is_call(item) and _is_call(value[i - 1]) and turn.weight == turns[-1].weight:
                before = turns.pop()
                turn = replace(before, tool_calls=(*(before.tool_calls or ()), *(turn.tool_calls or ())))
            turns.append(turn)
        return turns

    def history(self, value: Cell, shape: Shape) -> list[Message]:
        """Alpaca's `history`: [question, answer] pairs before the row's own question."""
        value = native(value)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = show(value)
        if shape.messages is not None:
            what = f"history beside {shape.messages}: put its turns into {shape.messages}, or --columns ignore=history"
            raise Reject("refused_field", what, "history", f"turns in {shape.messages} only", show(value))
        turns: list[Message] = []
        if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
            return self.listed(value, "history", "user")
        for i, pair in enumerate(value if isinstance(value, list | tuple) else ()):
            pair = native(pair)
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                turns = []
                break
            turns += [
                Message("user", text_of(pair[0], f"history[{i}][0]", "user")),
                Message("assistant", text_of(pair[1], f"history[{i}][1]", "assistant")),
            ]
        if not turns:
            what = (
                "history is not a list of [question, answer] pairs or messages; --columns ignore=history leaves it out"
            )
            raise Reject("bad_history", what, "history", "[[question, answer], ...]", show(value))
        return turns

    def _turn(self, item: Cell, where: str) -> Message:
        if not isinstance(item, Mapping):
            raise Reject(
                "bad_message", f"{where} is not a message", where, "an object with role and content", show(item)
            )
        if item.keys() == _PLAIN and item["role"] in _USUAL and isinstance(item["content"], str):
            spoken = sys.intern(str(item["role"]))
            return Message(spoken, text_of(item["content"], f"{where}.content", spoken))
        name = item.get("role") if item.get("role") is not None else item.get("from")
        role = _role(name)
        content = _content(item, where)
        calls: tuple[ToolCall, ...] | None = None
        if role in CALL_ROLES:
            role, calls, content = "assistant", calls_of(content, f"{where}.value", typed=self.typed), ""
        if role not in ROLES:
            keys = ", ".join(map(str, item)) or "none"
            has = f"has no role: its keys are {keys}" if name is None else f"has the role {show(name)}"
            message = f"{where} {has}; expected role and content with {', '.join(ROLES)}, or ShareGPT's from and value"
            raise Reject("unknown_role", message, f"{where}.role", ", ".join(ROLES), show(name))
        assert isinstance(role, str)
        calls = calls or self._calls(item, role, where)
        reasoning = self._reasoning(item, role, where)
        if isinstance(content, list) and any(_is_thinking(part) for part in content):
            if role != "assistant" or reasoning is not None:
                raise _part_refused("thinking", f"{where}.content")
            reasoning = "\n".join(str(part.get("thinking", "")) for part in content if _is_thinking(part)) or None
            content = [part for part in content if not _is_thinking(part)]
        if content is None and calls:
            content = ""
        if content is None and not calls and role != "assistant":
            keys = ", ".join(key for key, held in item.items() if held is not None)
            what = f"{where} has neither content nor value; what it holds is {keys or 'nothing'}"
            raise Reject("null_content", what, f"{where}.content", "a text", "null")
        self._count_loose(item, role, where)
        tool = role == "tool"
        return Message(
            sys.intern(role),
            text_of(content, f"{where}.content", role),
            reasoning,
            calls,
            _short_text(item, "tool_call_id", where) if tool else None,
            _short_text(item, "name", where) if tool else None,
            _weight(item, role, where),
        )

    def _calls(self, item: Mapping[str, Cell], role: str, where: str) -> tuple[ToolCall, ...] | None:
        given = [key for key in ("tool_calls", "function_call") if not is_empty(item.get(key))]
        if not given:
            return None
        field_ = f"{where}.{given[0]}"
        if role != "assistant":
            raise Reject("tool_call", f"{field_}: only the assistant can call tools", field_, "an assistant turn", role)
        if len(given) > 1:
            raise Reject(
                "tool_call", f"{where} has both tool_calls and function_call", field_, "one of the two", "both"
            )
        return calls_of(item[given[0]], field_, typed=self.typed)

    def _reasoning(self, item: Mapping[str, Cell], role: str, where: str) -> str | None:
        given = [key for key in REASONING_KEYS if not is_empty(item.get(key))]
        if not given or role != "assistant":
            self.loose.update(given)
            return None
        texts = {show(item[key], 1 << 30) if not isinstance(item[key], str) else item[key] for key in given}
        field_ = f"{where}.{given[0]}"
        if len(texts) > 1 or not isinstance(item[given[0]], str):
            what = f"{field_} is not text" if len(texts) == 1 else f"{where} has {' and '.join(given)}, which differ"
            raise Reject("reasoning", what, field_, "one text", show(item[given[0]]))
        return text_of(item[given[0]], field_, role)

    def _count_loose(self, item: Mapping[str, Cell], role: str, where: str) -> None:
        for key in _REFUSED_IN_MESSAGES:
            if not is_empty(item.get(key)) and item[key] is not False:
                what = f"{where}.{key}: {MESSAGE_FIELDS[key].what}"
                raise Reject("refused_field", what, f"{where}.{key}", f"messages without {key}", show(item[key]))
        known = {*_SPOKEN, *REASONING_KEYS, *LOSS_KEYS, "tool_calls", "function_call", *_REFUSED_IN_MESSAGES}
        known |= {"name", "tool_call_id"} if role == "tool" else set()
        self.loose.update(str(k) for k, v in item.items() if k not in known and not is_empty(v))


def _content(item: Mapping[str, Cell], where: str) -> Cell:
    """What a message says, in OpenAI's `content` or ShareGPT's `value`. Raises Reject where both say something else."""
    given = [key for key in ("content", "value") if not is_empty(item.get(key))]
    if len(given) > 1 and item["content"] != item["value"]:
        what = f"{where} has content and value, which differ"
        raise Reject("bad_content", what, f"{where}.value", "one text", show(item["value"]))
    return item[given[0]] if given else item.get("content", item.get("value"))


def _is_call(item: Mapping[str, Cell]) -> bool:
    return _role(item.get("role") if item.get("role") is not None else item.get("from")) in CALL_ROLES


def _role(name: Cell) -> Cell:
    """A speaker's name as one of our roles where it is one, in any case; else as it stands."""
    if not isinstance(name, str) or name in ROLES or name in CALL_ROLES:
        return name
    plain = name.strip().casefold()
    return plain if plain in ROLES or plain in CALL_ROLES else ROLE_ALIASES.get(plain, name)


def _refuse_missing(value: Mapping[str, Cell], shape: Shape, need_target: bool) -> None:
    missing = [column for column in shape.columns if column not in value]
    if not need_target:
        spoken = Shape(turns=tuple(t for t in shape.turns if t[0] not in ("assistant", "reasoning")))
        missing = [column for column in spoken.columns if column in missing]
    if missing:
        found = "columns " + (", ".join(map(str, value)) or "none")
        raise Reject("column_missing", f"no column {missing[0]!r}", missing[0], f"column {missing[0]!r}", found)


def _aside(value: Mapping[str, Cell], shape: Shape, mapping: Mapped) -> list[tuple[str, str]]:
    """Reasoning and passages that stand beside the turns and in none of them, each with the way to train on it."""
    found = []
    for name in _ASIDE:
        if name in shape.columns or name in mapping.ignore or not isinstance(value.get(name), str) or not value[name]:
            continue
        role = "reasoning" if name in REASONING_KEYS else "user"
        if role == "reasoning" and any(taken == role for taken, _ in shape.turns):
            continue
        if shape.messages is not None:
            if role == "reasoning":
                found.append((name, f"put it into the assistant's turn in {shape.messages}"))
            continue
        pairs = dict(shape.turns)
        if role == "reasoning":
            pairs = {"user": pairs.get("user", "QUESTION"), "reasoning": name, **pairs}
        elif not is_template(pairs.get("user", "")):
            pairs["user"] = f'"{{{name}}}\\n\\n{{{pairs.get("user", "QUESTION")}}}"'
        else:
            continue
        found.append((name, f"--columns '{', '.join(f'{key}: {source}' for key, source in pairs.items())}'"))
    return found


def _with_system(turns: list[Message], text: str, name: str) -> list[Message]:
    if turns and turns[0].role in ("system", "developer"):
        if turns[0].content.strip() == text.strip():
            return turns
        what = f"{name} and the first turn are two system prompts that differ; --columns ignore={name} leaves one out"
        raise Reject("two_systems", what, name, "one system prompt", show(text))
    return [Message("system", text), *turns]


def _after_system(turns: list[Message], earlier: list[Message]) -> list[Message]:
    at = 1 if turns and turns[0].role in ("system", "developer") else 0
    return [*turns[:at], *earlier, *turns[at:]]


def _short_text(item: Mapping[str, Cell], key: str, where: str) -> str | None:
    value = item.get(key)
    if is_empty(value):
        return None
    if not isinstance(value, str):
        raise Reject("tool_call", f"{where}.{key} is not text", f"{where}.{key}", "a text", show(value))
    return value


def _weight(item: Mapping[str, Cell], role: str, where: str) -> Literal[0] | None:
    """0 where a flag takes the loss off an assistant's turn. Raises Reject for a share, or loss on another role."""
    flags: dict[str, bool] = {}
    for key in LOSS_KEYS:
        value = item.get(key)
        if value is None or value == "":
            continue
        on = number_label(value) if flag(value) is None else flag(value)
        if on is None:
            what = f"{where}.{key} is {show(value)}: a turn carries loss or none; fractions of it are not supported"
            raise Reject("weight", what, f"{where}.{key}", "0 or 1", show(value))
        flags[key] = bool(on)
    if len(set(flags.values())) > 1:
        raise Reject("weight", f"{where}: {' and '.join(flags)} differ", where, "one flag", show(dict(item)))
    on = next(iter(flags.values()), None)
    if on and role != "assistant":
        key = next(iter(flags))
        what = f"{where}.{key} asks for loss on a {role} turn, but only assistant turns can carry loss"
        raise Reject("weight", what, f"{where}.{key}", "0, or no flag", "1")
    return 0 if on is False and role == "assistant" else None


# ---------------------------------------------------------------- contents


def text_of(content: Cell, where: str, role: str) -> str:
    """Text, or text parts joined; a tool's object becomes its JSON text; anything else is refused and named."""
    content = native(content)
    if role == "tool" and _is_object(content):
        content = json.dumps(content, ensure_ascii=False, default=str)
    if isinstance(content, str):
        text = content
    elif content is None:
        check, what = (
            ("empty_assistant", "assistant turn is empty") if role == "assistant" else ("null_content", "null")
        )
        raise Reject(check, f"{where}: {what}", where, "a text", "null")
    elif isinstance(content, list | tuple):
        if sum(isinstance(part, str) for part in content) > 1:
            what = f"{where} holds {len(content)} texts, and nothing says which one counts or how they are joined"
            raise Reject("bad_content", what, where, "one text, or parts of type 'text'", show(content))
        text = "".join(_part(part, f"{where}[{i}]") for i, part in enumerate(content))
    else:
        what = f"{where} is not text"
        if isinstance(content, int | float) and "[" not in where:
            what += f"; a template writes it as one: {role}={{{where}}}"
        raise Reject("bad_content", what, where, "a text or text parts", show(content))
    if not text.isascii() and has_surrogate(text):
        raise Reject("surrogate", f"{where} contains a lone surrogate", where, "valid Unicode", show(text))
    return text


def _texts_in(content: Cell) -> list[str]:
    """The texts of a list that holds nothing else, an empty list for anything else."""
    held = native(content)
    texts = [part for part in held if isinstance(part, str)] if isinstance(held, list | tuple) else []
    return texts if isinstance(held, list | tuple) and len(texts) == len(held) else []


def _is_object(content: Cell) -> bool:
    """Whether a tool's content is JSON of its own rather than a text or a list of parts."""
    if isinstance(content, Mapping):
        return True
    return isinstance(content, list) and not all(
        isinstance(p, str) or (isinstance(p, Mapping) and "type" in p) for p in content
    )


def _is_thinking(part: Cell) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "thinking" and isinstance(part.get("thinking"), str)


def _part(part: Cell, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in (*_TEXT_PARTS, None) and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in _TEXT_PARTS:
        held = part.get("text") if isinstance(part, Mapping) else part
        raise Reject("unsupported_part", f"{where} is a text part without a text", where, "a text", show(held))
    raise _part_refused(kind, where)


def _part_refused(kind: Cell, where: str) -> Reject:
    message = f"{where} is a part of type {kind!r}: only text parts can be rendered"
    return Reject("unsupported_part", message, where, "a part of type 'text'", f"type {kind!r}")


# ---------------------------------------------------------------- order


def check_turns(turns: Sequence[Message], column: str, need_target: bool) -> None:
    """Check the order of turns: an optional system turn, then user and assistant in turn, tools' answers after calls;
    the last is the assistant's if a target is needed.
    """
    if len(turns) == 2 and _is_plain_pair(turns[0], turns[1]):
        return
    order = " ".join(m.role for m in turns[:8]) + (" ..." if len(turns) > 8 else "")
    first = 1 if turns and turns[0].role in ("system", "developer") else 0
    if not any(m.role == "assistant" for m in turns) and need_target:
        raise Reject("no_assistant", "there is no assistant turn", column, "an assistant turn at the end", order)
    if len(turns) == first:
        raise Reject("missing_user", "there is no user turn", column, "a user turn", order or "nothing")
    for i in range(first, len(turns)):
        _check_place(turns, i, first, column, order)
    if need_target and turns[-1].role != "assistant":
        raise Reject("no_assistant", "the last turn is not the assistant's", column, "an assistant turn last", order)
    for i, message in enumerate(turns):
        silent = not message.content.strip() and not message.tool_calls
        if silent and message.role in ("user", "assistant"):
            found = "white space" if message.content else "an empty text"
            check = f"empty_{message.role}"
            what = f"the {message.role} turn {i + 1} is empty"
            raise Reject(check, what, column, "a text that is not empty", found)


def _is_plain_pair(first: Message, second: Message) -> bool:
    """A question and its answer, both with text: what most rows are."""
    asked = first.role == "user" and second.role == "assistant"
    return (
        asked
        and not first.content.isspace()
        and not second.content.isspace()
        and bool(first.content and second.content)
    )


def _check_place(turns: Sequence[Message], i: int, first: int, column: str, order: str) -> None:
    """Whether turn `i` may follow the one before it."""
    message, before = turns[i], turns[i - 1] if i > first else None
    if message.role == "tool":
        calls = _open_calls(turns, i)
        if calls is None:
            what = f"turn {i + 1} (tool) does not answer a call"
            if before is not None and "<tool_call>" in before.content:
                what += ": the turn before writes its call into its text; write it as tool_calls"
            raise Reject("role_order", what, column, "a tool turn after an assistant turn that calls", order)
        known = {call.id for call in calls if call.id is not None}
        if known and message.tool_call_id is not None and message.tool_call_id not in known:
            what = f"turn {i + 1} answers the call {message.tool_call_id!r}, which was not made"
            raise Reject("tool_call_id", what, column, ", ".join(sorted(known)), message.tool_call_id)
        return
    if before is None:
        allowed = message.role == "user"
    elif message.role == "assistant":
        allowed = before.role in ("user", "tool")
    else:
        allowed = message.role == "user" and before.role == "assistant" and not before.tool_calls
    if not allowed:
        what = f"roles out of order at turn {i + 1}"
        if before is not None and before.tool_calls:
            what += ": the calls of the turn before are not answered by a tool"
        expected = "system (once, first), then user and assistant in turn, tool turns after calls"
        raise Reject("role_order", what, column, expected, order)


def _open_calls(turns: Sequence[Message], i: int) -> tuple[ToolCall, ...] | None:
    """The calls that a tool turn at `i` may answer; None where there are none, or all have an answer."""
    at = i - 1
    while at >= 0 and turns[at].role == "tool":
        at -= 1
    calls = turns[at].tool_calls if at >= 0 and turns[at].role == "assistant" else None
    return calls if calls and i - at <= len(calls) else None

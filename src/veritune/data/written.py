"""Does the template write every turn, whole? Found by rendering marks in place of the texts, not by searching.

Each text of a conversation (contents, reasoning, names and arguments of calls) is replaced by a mark of its own and the
whole is rendered once more. With the texts put back in the marks' places the rendering must be the row's own; white
space trimmed at the ends of a text is followed. Where it is not, the turns are taken one by one to name the first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from veritune.data.text import first_difference
from veritune.records import JsonValue, Message

Render = Callable[[Sequence[Message]], str]

_THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fault:
    """What a template did wrong with one turn. `kind` is `turn_missing`, `turn_changed` or `think_stripped`."""

    turn: int
    role: str
    kind: str
    part: str
    expected: str
    found: str


@dataclass(slots=True)
class _Marks:
    """Marks and the texts that they stand for. `forms` are the ways in which a template may write one of them."""

    text_of: dict[str, str] = field(default_factory=dict)
    part_of: dict[str, str] = field(default_factory=dict)
    escaped: set[str] = field(default_factory=set)
    python_of: dict[str, str] = field(default_factory=dict)

    def put(self, text: str, part: str, *, may_escape: bool = False) -> str:
        mark = f"Qz{len(self.text_of)}mark{len(self.text_of)}zQ"
        self.text_of[mark], self.part_of[mark] = text, part
        if may_escape:
            self.escaped.add(mark)
        return mark

    def put_value(self, value: float | bool | None) -> int:
        """A placeholder for a number, a boolean or null, made so that a template writes it without quotes."""
        mark = 981_274_000 + len(self.text_of)
        self.text_of[str(mark)], self.part_of[str(mark)] = json.dumps(value), "an argument"
        self.python_of[str(mark)] = str(value)
        return mark

    def forms(self, mark: str) -> tuple[str, ...]:
        text = self.text_of[mark]
        if mark in self.python_of:
            return tuple(dict.fromkeys((text, self.python_of[mark])))
        forms = [text, text.strip(), text.strip("\n"), text.lstrip(), text.rstrip()]
        if mark in self.escaped:
            forms += [json.dumps(f, ensure_ascii=False)[1:-1] for f in forms[:2]]
            forms += [json.dumps(f)[1:-1] for f in forms[:2]]
        return tuple(dict.fromkeys(forms))


def _marked(message: Message, marks: _Marks) -> Message:
    """The message with a mark for each of its texts; what says nothing stays as it is."""
    content = message.content
    if content.strip():
        content = marks.put(content, "content", may_escape=message.role == "tool")
    reasoning = message.reasoning
    if reasoning is not None and reasoning.strip():
        reasoning = marks.put(reasoning, "reasoning")
    calls = message.tool_calls
    if calls is not None:
        calls = tuple(
            replace(
                call,
                name=marks.put(call.name, "the call's name"),
                arguments=json.dumps(_marked_value(json.loads(call.arguments), marks), ensure_ascii=False),
            )
            for call in calls
        )
    return replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def _marked_value(value: JsonValue, marks: _Marks) -> JsonValue:
    if isinstance(value, str) and value.strip():
        return marks.put(value, "an argument", may_escape=True)
    if isinstance(value, dict):
        return {key: _marked_value(inner, marks) for key, inner in value.items()}
    if isinstance(value, list):
        return [_marked_value(inner, marks) for inner in value]
    return value if isinstance(value, str) else marks.put_value(value)


def first_fault(messages: Sequence[Message], text: str, render: Render) -> Fault | None:
    """The first turn that the template leaves out, cuts or changes; None if it writes all of them whole.

    `text` is the rendering of `messages`, `render` renders other messages the same way.
    """
    marks = _Marks()
    rendered = render([_marked(m, marks) for m in messages])
    if all(mark in rendered for mark in marks.text_of):
        for form in range(2):
            if _put_back(rendered, marks, form) == text:
                return None
        if marks.escaped and _put_back(rendered, marks, 0, escape=True) == text:
            return None
    return next(filter(None, (_fault_of(messages, i, text, render) for i in range(len(messages)))), None)


def _put_back(rendered: str, marks: _Marks, form: int, *, escape: bool = False) -> str:
    for mark, original in marks.text_of.items():
        filled = original if form == 0 else original.strip()
        if escape and mark in marks.escaped:
            filled = json.dumps(filled, ensure_ascii=False)[1:-1]
        rendered = rendered.replace(mark, filled)
    return rendered


def _fault_of(messages: Sequence[Message], turn: int, text: str, render: Render) -> Fault | None:
    """What the template does to one turn, found with marks in this turn alone."""
    message = messages[turn]
    marks = _Marks()
    other = list(messages)
    other[turn] = _marked(message, marks)
    rendered = render(other)
    others = "\0".join(m.said for i, m in enumerate(messages) if i != turn)
    places = located(rendered, text, marks.text_of, marks.forms)
    if places is not None and len(places) == len(marks.text_of):
        return None
    for mark, original in marks.text_of.items():
        part = marks.part_of[mark]
        if places is not None and mark in places:
            continue
        if mark not in rendered:
            if _stands(
                marks.forms(mark), text, others
            ):  # a template that looks at texts: `startswith('<tool_response>')`
                continue
            if mark.casefold() in rendered.casefold() or _begins_in(original, text, others):
                return Fault(turn, message.role, "turn_changed", part, *_parting(rendered, mark, original, text))
            if message.role == "assistant" and part == "reasoning":
                return Fault(turn, message.role, "think_stripped", part, original[:60], "nothing")
            return Fault(turn, message.role, "turn_missing", part, original[:60], "nothing")
        if _stands(marks.forms(mark), text, others):
            continue
        bare = _THINK.sub("", original).strip()
        if message.role == "assistant" and bare != original.strip() and bare and bare in text:
            return Fault(turn, message.role, "think_stripped", part, original[:60], bare[:60])
        if original.strip()[:12].casefold() not in text.casefold():
            return Fault(turn, message.role, "turn_missing", part, original[:60], "nothing")
        expected, found = _parting(rendered, mark, original, text)
        return Fault(turn, message.role, "turn_changed", part, expected, found)
    return None


def _begins_in(original: str, text: str, others: str) -> bool:
    """Whether the beginning of a text stands in the rendering, so that it was cut or changed rather than left out."""
    head = original.strip()[:20]
    return len(head) == 20 and text.count(head) > others.count(head)


def _stands(forms: Sequence[str], text: str, others: str) -> bool:
    """Whether a text stands in the rendering oftener than the other turns say it; a short one could by chance."""
    return any(len(form) >= 12 and text.count(form) > others.count(form) for form in forms)


def _parting(rendered: str, mark: str, original: str, text: str) -> tuple[str, str]:
    """(what should stand, what stands) from the first character at which the rendering leaves the turn's text."""
    at = rendered.casefold().find(mark.casefold())
    if at < 0:
        at = text.index(original.strip()[:20])
    elif not text.startswith(rendered[:at]):
        return original[:40], text[:40]
    want, there = original.strip(), text[at:].lstrip()
    same = first_difference(want, there)
    begin = max(0, same - 10)
    return want[begin : begin + 40], there[begin : begin + 40]


def located(
    rendered: str, text: str, texts: Mapping[str, str], forms: Callable[[str], Sequence[str]]
) -> dict[str, tuple[int, int]] | None:
    """(start, end) in `text` of the part that each placeholder of `rendered` stands for; None if the two texts differ
    elsewhere.
    """
    if not texts:
        return {} if rendered == text else None
    pieces = re.split("(" + "|".join(map(re.escape, texts)) + ")", rendered)
    if not text.startswith(pieces[0]):
        return None
    at = len(pieces[0])
    places: dict[str, tuple[int, int]] = {}
    for k in range(1, len(pieces), 2):
        mark, after = pieces[k], pieces[k + 1]
        last = k + 2 >= len(pieces)
        for form in forms(mark):
            end = at + len(form)
            if text.startswith(form, at) and (text[end:] == after if last else text.startswith(after, end)):
                places.setdefault(mark, (at, end))
                at = end + len(after)
                break
        else:
            return None
    return places


def reasoning_and_content(messages: Sequence[Message], turn: int, text: str, render: Render) -> tuple[int, int] | None:
    """(start of the reasoning, end of the content) of an assistant's turn in `text`; None where it cannot be found."""
    message = messages[turn]
    marks = _Marks()
    thought = marks.put(message.reasoning or "", "reasoning")
    content = marks.put(message.content, "content")
    other = list(messages)
    other[turn] = replace(message, reasoning=thought, content=content)
    places = located(render(other), text, marks.text_of, marks.forms)
    if places is None or thought not in places or content not in places:
        return None
    return places[thought][0], places[content][1]

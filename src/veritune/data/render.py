"""A row as the trainer sees it: text through the tokenizer's own chat template, ids, and an exact loss mask.

The template is rendered to text once and that text is tokenised once, with offsets; the mask is cut by characters.
For each assistant turn the loss falls on what the model has to produce after the generation prompt: the content and
its end token. The sequence stops right after the last of them. Nothing is truncated: a row that does not fit is named.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veritune.errors import DataError, ModelError, VerituneError
from veritune.records import Finding, Message, Rendered, Row

IGNORE = -100
_PROBE = (Message("user", "ping"), Message("assistant", "pong"))


@dataclass(frozen=True, slots=True)
class Span:
    """One assistant turn in characters of the rendered text.

    `start` is where the generation prompt ends: from there on, through the end token, the text is exactly what a model
    must write when it is asked. The end token has to end by `limit`, where the template is done with this turn.
    """

    turn: int
    start: int
    content_end: int
    limit: int


@dataclass(frozen=True, slots=True)
class Traced:
    """A rendering with what it was made from, for views and parity checks. Offsets are characters of `text`."""

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    labelled: tuple[bool, ...]
    spans: tuple[Span, ...]
    prompt_ids: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Number of tokens up to and including the last labelled one."""
        return max((i for i, on in enumerate(self.labelled) if on), default=-1) + 1


class Unfit(Exception):
    """A row that cannot be rendered as the contract asks; becomes a finding."""

    def __init__(self, check: str, message: str, expected: str, found: str) -> None:
        super().__init__(message)
        self.check, self.message, self.expected, self.found = check, message, expected, found


class Renderer:
    """Renders rows through `tokenizer`'s chat template; `max_length` counts the tokens up to the last labelled one.

    `template_kwargs` are handed to the template (thinking switches, for example). Raises ModelError when the tokenizer
    is slow, has no chat template, or when its template does not put an answer right behind its generation prompt.
    """

    def __init__(
        self, tokenizer: Any, max_length: int, *, template_kwargs: Mapping[str, Any] | None = None, check: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = int(max_length)
        self.template_kwargs = dict(template_kwargs or {})
        self.template = _template_of(tokenizer)
        self.template_sha256 = _sha256(_template_identity(self.template, self.template_kwargs))
        self.tokenizer_sha256 = _sha256(_tokenizer_identity(tokenizer))
        special = {t for t in tokenizer.all_special_tokens if t}
        special |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        longest_first = sorted(special, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._end_ids = frozenset(tokenizer.convert_tokens_to_ids(longest_first))
        if check:
            self._check_template()

    def row(self, row: Row) -> Rendered:
        """`row` as ids and labels. Raises DataError, naming the row, when it cannot be rendered exactly."""
        done = self.try_row(row)
        if isinstance(done, Finding):
            raise DataError(f"{done.message}.", fix=str(done.evidence["fix"]))
        return done

    def try_row(self, row: Row) -> Rendered | Finding:
        """`row` rendered, or the finding of severity `error` that says why it cannot be."""
        traced = self.try_trace(row)
        if isinstance(traced, Finding):
            return traced
        stop = traced.stop
        if stop > self.max_length:
            what = f"{stop} tokens where max_length is {self.max_length}; nothing is truncated"
            return _finding(row, Unfit("too_long", what, f"at most {self.max_length} tokens", f"{stop} tokens"))
        ids = traced.ids[:stop]
        labels = tuple(i if on else IGNORE for i, on in zip(ids, traced.labelled))
        return Rendered(row.id, ids, labels)

    def try_trace(self, row: Row) -> Traced | Finding:
        """`row` traced whatever its length, or the finding of severity `error` that says why it cannot be rendered."""
        try:
            return self.trace(row.messages)
        except Unfit as unfit:
            return _finding(row, unfit)

    def prompt_ids(self, row: Row) -> tuple[int, ...]:
        """Ids of the generation prompt for the last assistant turn: what the model is given at evaluation."""
        try:
            self._refuse_control(row.prompt)
            text = self.text(row.prompt, prompt=True)
        except Unfit as unfit:
            raise DataError(f"row {row.id}: {unfit.message}.", fix=_FIX[unfit.check]) from None
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def trace(self, messages: Sequence[Message]) -> Traced:
        """Text, ids, offsets and mask of a conversation, every boundary checked. Raises Unfit."""
        self._refuse_control(messages)
        text = self.text(messages, prompt=False)
        spans = tuple(
            self._span(messages, turn, text) for turn, message in enumerate(messages) if message.role == "assistant"
        )
        if not spans or messages[-1].role != "assistant":
            raise Unfit("no_target", "the last turn is not the assistant's", "an assistant turn last", "none")
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = tuple(encoded["input_ids"]), tuple((int(a), int(b)) for a, b in encoded["offset_mapping"])
        labelled = [False] * len(ids)
        for span in spans:
            self._mark(span, ids, offsets, labelled)
        prompt_ids = self._check_prefix(messages[:-1], ids, labelled)
        return Traced(text, ids, offsets, tuple(labelled), spans, prompt_ids)

    def template_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids that `apply_chat_template(tokenize=True)` gives for a whole conversation."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        out = self.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True, **self.template_kwargs)
        return tuple(out["input_ids"])

    def text(self, messages: Sequence[Message], *, prompt: bool, **kwargs: Any) -> str:
        """The template's text of `messages`; `prompt` adds the generation prompt. Raises Unfit when it refuses."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=prompt, **{**self.template_kwargs, **kwargs}
            )
        except VerituneError:
            raise
        except Exception as error:  # a template raises whatever its author wrote
            roles = " ".join(m.role for m in messages)
            raise Unfit(
                "template", f"the chat template refuses it: {error}", "roles the template knows", roles
            ) from error
        return str(text)

    def _span(self, messages: Sequence[Message], turn: int, text: str) -> Span:
        """Where turn `turn` lies in `text`. The text before it must be exactly its generation prompt."""
        prompt = self.text(messages[:turn], prompt=True)
        if not text.startswith(prompt):
            at = first_difference(prompt, text)
            raise Unfit(
                "prefix",
                f"assistant turn {turn + 1} is not preceded by its generation prompt: they part at character {at}",
                repr(prompt[at : at + 40]),
                repr(text[at : at + 40]),
            )
        begin = len(prompt) + len(text[len(prompt) :]) - len(text[len(prompt) :].lstrip())
        content = messages[turn].content
        if not content.strip():
            raise Unfit(
                "empty_answer", f"assistant turn {turn + 1} is empty: nothing to learn", "a text", repr(content)
            )
        end = next(
            (
                at + len(c)
                for at, c in ((len(prompt), content), (begin, content.strip()))
                if c and text.startswith(c, at)
            ),
            0,
        )
        if not end and content.strip() in text[begin:]:
            raise Unfit(
                "gap",
                f"the template writes text of its own between the generation prompt and assistant turn {turn + 1}",
                "the answer right behind the generation prompt",
                repr(text[begin : begin + 40]),
            )
        if not end:
            what = f"the template changes the text of assistant turn {turn + 1}"
            raise Unfit("content", what, repr(content[:40]), repr(text[begin : begin + 40]))
        whole = text if turn == len(messages) - 1 else self.text(messages[: turn + 1], prompt=False)
        limit = len(whole) if text.startswith(whole) else first_difference(whole, text)
        return Span(turn, len(prompt), end, max(limit, end))

    def _mark(self, span: Span, ids: Sequence[int], offsets: Sequence[tuple[int, int]], labelled: list[bool]) -> None:
        """Sets `labelled` for the tokens of `span`, through its end token."""
        for i, (start, end) in enumerate(offsets):
            if end <= span.start or start == end:
                continue
            if start < span.start or start < span.content_end < end:
                edge = "begins" if start < span.start else "ends"
                token = self.tokenizer.convert_ids_to_tokens(ids[i])
                what = f"one token lies across the place where assistant turn {span.turn + 1} {edge}"
                raise Unfit("straddle", what, "a token boundary", repr(token))
            if end > span.limit:
                break
            labelled[i] = True
            if start >= span.content_end and ids[i] in self._end_ids:
                return
        what = f"no end token follows assistant turn {span.turn + 1}: a model would never learn to stop"
        raise Unfit("no_end_token", what, "a special token after the answer", "none")

    def _check_prefix(self, prompt: Sequence[Message], ids: Sequence[int], labelled: Sequence[bool]) -> tuple[int, ...]:
        """The prompt tokenised by itself must be how the whole begins, or training and evaluation see other ids."""
        alone = tuple(self.tokenizer(self.text(prompt, prompt=True), add_special_tokens=False)["input_ids"])
        n = len(alone)
        if tuple(ids[:n]) != alone or (n < len(labelled) and not labelled[n]) or (n and labelled[n - 1]):
            at = first_difference(alone, ids)
            raise Unfit(
                "prefix",
                f"the prompt alone and within the whole are different tokens from token {at + 1} on",
                str(self.tokenizer.convert_ids_to_tokens(list(alone[at : at + 3]))),
                str(self.tokenizer.convert_ids_to_tokens(list(ids[at : at + 3]))),
            )
        return alone

    def _refuse_control(self, messages: Sequence[Message]) -> None:
        for turn, message in enumerate(messages):
            hit = self._control.search(message.content)
            if hit is not None:
                what = f"turn {turn + 1} ({message.role}) contains the control token {hit[0]!r}"
                raise Unfit("control_token", what, "plain text", repr(hit[0]))

    def _check_template(self) -> None:
        """One small conversation, so that a template with a habit of its own is met here and not on row one."""
        try:
            self.trace(_PROBE)
        except Unfit as unfit:
            thinking = "think" in self.template
            raise ModelError(
                f"The chat template cannot be trained on as it is: {unfit.message} "
                f"(expected {unfit.expected}, found {unfit.found}).",
                fix="Set template_kwargs: {enable_thinking: false}, or give a template without thinking."
                if thinking and not self.template_kwargs
                else _FIX[unfit.check],
            ) from None


_FIX = {
    "too_long": "Raise max_length, shorten the row, or drop it.",
    "template": "Change the row's roles, or the template.",
    "prefix": "Train on rows with one assistant turn, or use a template that renders a turn the same way everywhere.",
    "content": "Use a template that writes contents as they are.",
    "gap": "Use template_kwargs or a template whose generation prompt holds that text.",
    "straddle": "Take white space off the ends of the answer, or use a template with special tokens around the turns.",
    "no_end_token": "Use a template that ends each assistant turn with the model's end token.",
    "empty_answer": "Drop the row, or fill in the answer.",
    "no_target": "End the row with an assistant turn.",
    "control_token": "Write it differently or drop the row: the model would read it as the end of a turn.",
}


def render_rows(rows: Sequence[Row], renderer: Renderer) -> tuple[tuple[Rendered, ...], tuple[Finding, ...]]:
    """All rows rendered in order, and a finding for each that cannot be: `len(rows)` is the sum of both."""
    done: list[Rendered] = []
    problems: list[Finding] = []
    for row in rows:
        result = renderer.try_row(row)
        if isinstance(result, Finding):
            problems.append(result)
        else:
            done.append(result)
    return tuple(done), tuple(problems)


def _finding(row: Row, unfit: Unfit) -> Finding:
    evidence = {"expected": unfit.expected, "found": unfit.found, "fix": _FIX[unfit.check]}
    message = f"row {row.id!r}" + (f" ({row.source}:{row.line})" if row.line else "") + f": {unfit.message}"
    return Finding(
        f"render.{unfit.check}",
        "error",
        message,
        row.id,
        row.source or None,
        row.line or None,
        "messages",
        evidence,
    )


def _template_of(tokenizer: Any) -> str:
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets; expected a fast tokenizer.",
            fix="Load it with AutoTokenizer from a folder that holds tokenizer.json.",
        )
    try:
        template = tokenizer.get_chat_template()
    except (ValueError, AttributeError):
        template = None
    if not template:
        raise ModelError(
            f"The tokenizer of {getattr(tokenizer, 'name_or_path', '') or 'this model'} has no chat template.",
            fix="Put a chat_template.jinja beside tokenizer.json (the instruct version of the model has one).",
        )
    return str(template)


def _template_identity(template: str, kwargs: Mapping[str, Any]) -> str:
    return template if not kwargs else template + "\n" + json.dumps(kwargs, sort_keys=True, default=str)


def _tokenizer_identity(tokenizer: Any) -> str:
    """The tokenizer's whole definition, less truncation and padding, which callers switch on and off."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts.pop("truncation", None)
    parts.pop("padding", None)
    parts["special_tokens_map"] = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def first_difference(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Index of the first place where two sequences differ, the shorter one's length when one begins the other."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

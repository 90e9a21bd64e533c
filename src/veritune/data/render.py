"""A row as the trainer sees it: text through the tokenizer's own chat template, ids, and an exact loss mask.

The template is rendered to text once and that text is tokenised once, with offsets; the mask is cut by characters.
For each assistant turn the loss falls on what the model has to produce after the generation prompt: reasoning, content
and calls of tools as the template writes them, and the end token. Turns of weight 0, of users and of tools carry none.
The sequence stops right after the last token with loss. Nothing is truncated: a row that does not fit is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from veritune.data import template as templates
from veritune.data.fields import REASONING_KEYS
from veritune.data.text import first_difference
from veritune.data.unfit import FIX, SAME_EVERYWHERE, Unfit, as_field, finding_of, otherwise, unfit_of
from veritune.data.written import first_fault, reasoning_and_content
from veritune.errors import DataError, ModelError, VerituneError
from veritune.files import sha256_text
from veritune.records import Finding, Json, JsonLike, Message, Rendered, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tools = tuple[Json, ...] | None

IGNORE = -100
_PROBE = (Message("user", "ping"), Message("assistant", "pong"))
_PROBE_REASONED = (Message("user", "ping"), Message("assistant", "pong", "tick tock"))


@dataclass(frozen=True, slots=True)
class Span:
    """The position of one assistant turn, in characters of the rendered text.

    `start` is where the generation prompt ends: from there on, through the end token, the text is exactly what a model
    must write when it is asked. The end token has to end by `limit`, where the template is done with this turn.
    """

    turn: int
    start: int
    content_end: int
    limit: int


@dataclass(frozen=True, slots=True)
class Traced:
    """A rendering with its inputs, for views and parity checks. Offsets are in characters of `text`.

    `ends` are the places of the end tokens that carry loss, `stripped` the turns without loss whose reasoning the
    template takes out, in training as at serving.
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    labelled: tuple[bool, ...]
    spans: tuple[Span, ...]
    prompt_ids: tuple[int, ...]
    ends: tuple[int, ...] = ()
    stripped: int = 0

    @property
    def stop(self) -> int:
        """Number of tokens up to and including the last labelled one."""
        return max((i for i, on in enumerate(self.labelled) if on), default=-1) + 1


class Renderer:
    """Renders rows through `tokenizer`'s chat template; `max_length` limits the tokens up to the last one with loss.

    `template_kwargs` are handed to the template (`enable_thinking`, for example); `variables` are the names it reads.
    Raises ModelError when the tokenizer is slow, has no chat template, when a variable is not the template's, or when
    the template does not put an answer right behind its generation prompt.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        *,
        template_kwargs: Mapping[str, JsonLike] | None = None,
        check: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = int(max_length)
        self.template_kwargs = dict(template_kwargs or {})
        self.template = templates.template_of(tokenizer)
        self.tool_template = templates.tool_template_of(tokenizer, self.template)
        self.variables = tuple(
            sorted({*templates.variables_of(self.template), *templates.variables_of(self.tool_template)})
        )
        templates.check_kwargs(self.template_kwargs, self.variables)
        identity = templates.template_identity(self.template, self.tool_template, self.template_kwargs)
        self.template_sha256 = sha256_text(identity)
        self.tokenizer_sha256 = sha256_text(templates.tokenizer_identity(tokenizer))
        special = {t for t in tokenizer.all_special_tokens if t}
        special |= {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        longest_first = sorted(special, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._end_ids = frozenset(tokenizer.convert_tokens_to_ids(longest_first))
        self._tools_written: dict[str, Unfit | None] = {}
        if check:
            self._check_template()

    def row(self, row: Row) -> Rendered:
        """The ids and labels of `row`. Raises DataError naming the row if it cannot be rendered exactly."""
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
            what = f"{stop} tokens, more than max_length {self.max_length}; rows are never truncated"
            return finding_of(row, Unfit("too_long", what, f"at most {self.max_length} tokens", f"{stop} tokens"))
        ids = traced.ids[:stop]
        labels = tuple(i if on else IGNORE for i, on in zip(ids, traced.labelled))
        return Rendered(row.id, ids, labels)

    def try_trace(self, row: Row) -> Traced | Finding:
        """`row` traced whatever its length, or the finding of severity `error` that says why it cannot be rendered."""
        try:
            return self.trace(row.messages, row.tools)
        except Unfit as unfit:
            return finding_of(row, unfit)

    def prompt_ids(self, row: Row) -> tuple[int, ...]:
        """Ids of the generation prompt for the last assistant turn: what the model is given at evaluation."""
        try:
            self._refuse_control(row.prompt, row.tools)
            text = self.text(row.prompt, prompt=True, tools=row.tools)
        except Unfit as unfit:
            raise DataError(f"row {row.id}: {unfit.message}.", fix=unfit.fix) from None
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def trace(self, messages: Sequence[Message], tools: Tools = None) -> Traced:
        """Text, ids, offsets and loss mask of a conversation, with every boundary and every turn checked. Raises
        Unfit."""
        self._refuse_control(messages, tools)
        self._refuse_unknown(messages, tools)
        text = self.text(messages, prompt=False, tools=tools)
        if messages[-1].role != "assistant" or not any(m.trained for m in messages):
            raise Unfit("no_target", "the last turn is not the assistant's", "an assistant turn last", "none")
        stripped = self._check_written(messages, tools, text)
        spans = tuple(self._span(messages, tools, turn, text) for turn, m in enumerate(messages) if m.trained)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = tuple(encoded["input_ids"]), tuple((int(a), int(b)) for a, b in encoded["offset_mapping"])
        labelled = [False] * len(ids)
        ends = tuple(self._mark(span, ids, offsets, labelled) for span in spans)
        prompt = self.text(messages[:-1], prompt=True, tools=tools)
        prompt_ids = self._check_prefix(prompt, ids, labelled if messages[-1].trained else None)
        return Traced(text, ids, offsets, tuple(labelled), spans, prompt_ids, ends, stripped)

    def template_ids(self, messages: Sequence[Message], tools: Tools = None) -> tuple[int, ...]:
        """The ids that `apply_chat_template(tokenize=True)` gives for a whole conversation."""
        out = self.tokenizer.apply_chat_template(
            self._turns(messages),
            tools=list(tools) if tools else None,
            tokenize=True,
            return_dict=True,
            **self.template_kwargs,
        )
        return tuple(out["input_ids"])

    def generation_mask(self, messages: Sequence[Message], tools: Tools = None) -> tuple[bool, ...] | None:
        """The template's own mask of the assistant's tokens; None where it marks none with `{% generation %}`."""
        if not templates.has_generation_tags(self.tool_template if tools else self.template):
            return None
        out = self.tokenizer.apply_chat_template(
            self._turns(messages),
            tools=list(tools) if tools else None,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **self.template_kwargs,
        )
        return tuple(bool(on) for on in out["assistant_masks"])

    def text(self, messages: Sequence[Message], *, prompt: bool, tools: Tools = None, **kwargs: Any) -> str:
        """The template's text of `messages`; `prompt` adds the generation prompt. Raises Unfit if the template refuses
        them.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                self._turns(messages),
                tools=list(tools) if tools else None,
                tokenize=False,
                add_generation_prompt=prompt,
                **{**self.template_kwargs, **kwargs},
            )
        except VerituneError:
            raise
        except Exception as error:  # a template raises whatever its author wrote
            roles = " ".join(m.role for m in messages)
            raise Unfit(
                "template", f"the chat template refuses the row: {error}", "roles the template knows", roles
            ) from error
        return str(text)

    def _turns(self, messages: Sequence[Message]) -> list[dict[str, JsonLike]]:
        return [templates.template_turn(m, self.template + self.tool_template) for m in messages]

    # ------------------------------------------------------------ what the template knows and writes

    def _refuse_unknown(self, messages: Sequence[Message], tools: Tools) -> None:
        """Raises Unfit for reasoning, calls or tools that the template does not read."""
        source = self.tool_template if tools else self.template
        for turn, message in enumerate(messages):
            if message.reasoning is not None and templates.reasoning_key(source) is None:
                what = f"the template does not render the reasoning of turn {turn + 1}"
                raise Unfit("reasoning", what, f"a template that reads {' or '.join(REASONING_KEYS)}", "none of them")
            if message.tool_calls is not None and "tool_calls" not in source:
                what = f"the template does not render the tool calls of turn {turn + 1}"
                raise Unfit("tools", what, "a template that reads tool_calls", "no tool_calls in the template")
        if tools:
            unfit = self._check_tools(tools)
            if unfit is not None:
                raise unfit

    def _check_tools(self, tools: tuple[Json, ...]) -> Unfit | None:
        """Whether the template writes every declared tool's name and description; remembered for each set of tools."""
        key = templates.tools_json(tools)
        if key not in self._tools_written:
            self._tools_written[key] = self._missing_tool(tools)
        return self._tools_written[key]

    def _missing_tool(self, tools: tuple[Json, ...]) -> Unfit | None:
        probe = [Message("user", "ping")]
        try:
            bare, text = self.text(probe, prompt=True), self.text(probe, prompt=True, tools=tools)
        except Unfit as unfit:
            return unfit
        if text == bare:
            return Unfit("tools", "the template does not write the declared tools", "the tools in the prompt", "none")
        for tool in tools:
            function = tool["function"]
            for name in ("name", "description"):
                said = str(function.get(name) or "").strip()
                if said and said not in text and _escaped(said) not in text and _escaped(said, ascii=True) not in text:
                    what = f"the template does not write the {name} of the tool {function['name']!r}"
                    return Unfit("tools", what, repr(said[:40]), "nothing")
        return None

    def _check_written(self, messages: Sequence[Message], tools: Tools, text: str) -> int:
        """How many turns without loss lose their reasoning. Raises Unfit where a turn is left out, cut or changed."""
        fault = first_fault(messages, text, lambda other: self.text(other, prompt=False, tools=tools))
        field = templates.reasoning_key(self.tool_template if tools else self.template)
        stripped = 0
        while fault is not None:
            if fault.kind != "think_stripped" or messages[fault.turn].trained:
                raise unfit_of(fault, last=fault.turn == len(messages) - 1, field=field)
            # Compared again as the template takes it: without the reasoning.
            stripped += 1
            bare = templates.without_reasoning(messages[fault.turn])
            if bare == messages[fault.turn]:
                raise unfit_of(fault, last=fault.turn == len(messages) - 1, field=field)
            messages = [bare if i == fault.turn else m for i, m in enumerate(messages)]
            fault = first_fault(messages, text, lambda other: self.text(other, prompt=False, tools=tools))
        return stripped

    # ------------------------------------------------------------ where an answer lies

    def _span(self, messages: Sequence[Message], tools: Tools, turn: int, text: str) -> Span:
        """Where turn `turn` lies in `text`. The text before it must be exactly its generation prompt."""
        prompt = self.text(messages[:turn], prompt=True, tools=tools)
        if not text.startswith(prompt):
            at = first_difference(prompt, text)
            what = (
                f"assistant turn {turn + 1} does not follow its generation prompt: they differ from character {at} on"
            )
            if "<think>" in prompt[max(0, at - 8) :]:
                what += "; the generation prompt sets a <think> of its own"
            raise Unfit(
                "prefix",
                what,
                repr(prompt[at : at + 40]),
                repr(text[at : at + 40]),
                self._switch_or(f"{SAME_EVERYWHERE}.", messages[turn]) if turn == len(messages) - 1 else "",
            )
        message, start = messages[turn], len(prompt)
        if not message.content.strip() and not message.tool_calls:
            raise Unfit(
                "empty_answer",
                f"assistant turn {turn + 1} is empty: there is nothing to learn",
                "a text",
                repr(message.content),
            )
        whole = text if turn == len(messages) - 1 else self.text(messages[: turn + 1], prompt=False, tools=tools)
        limit = len(whole) if text.startswith(whole) else first_difference(whole, text)
        if message.tool_calls:
            if limit <= start:
                raise otherwise(turn, limit, whole, text)
            return self._call_span(message, turn, text, start, limit)
        if message.reasoning is not None:
            end = self._reasoned_end(messages, tools, turn, text, start)
        else:
            end = self._plain_end(message, turn, text, start)
        if limit < end:
            raise otherwise(turn, limit, whole, text)
        return Span(turn, start, end, limit)

    def _plain_end(self, message: Message, turn: int, text: str, start: int) -> int:
        """Where an answer of content alone ends. Raises Unfit where it does not stand right behind the prompt."""
        content = message.content
        begin = start + len(text[start:]) - len(text[start:].lstrip())
        for at, form in ((start, content), (begin, content.strip())):
            if form and text.startswith(form, at):
                return at + len(form)
        if content.strip() in text[begin:]:
            raise Unfit(
                "gap",
                f"the template writes text of its own between the generation prompt and assistant turn {turn + 1}",
                "the answer directly after the generation prompt",
                repr(text[begin : begin + 40]),
                self._switch_or("", message),
            )
        what = f"the template changes the text of assistant turn {turn + 1}"
        fix = as_field(templates.reasoning_key(self.template)) if "<think>" in content else ""
        raise Unfit("turn_changed", what, repr(content[:40]), repr(text[begin : begin + 40]), fix)

    def _reasoned_end(self, messages: Sequence[Message], tools: Tools, turn: int, text: str, start: int) -> int:
        """Where the content behind the reasoning ends. Raises Unfit where the template does not write both in turn."""
        found = reasoning_and_content(messages, turn, text, lambda other: self.text(other, prompt=False, tools=tools))
        if found is None or found[0] < start:
            what = f"the reasoning of assistant turn {turn + 1} is not between its prompt and its content"
            raise Unfit("reasoning", what, "reasoning, then content", repr(text[start : start + 40]))
        return found[1]

    def _call_span(self, message: Message, turn: int, text: str, start: int, limit: int) -> Span:
        """A turn that calls tools: from the generation prompt through the end token, whatever form the calls have.

        Marks of the call itself may be special tokens too: the end token is the first that ends plain answers, else the
        last of the turn (`<|eom_id|>`, `<|call|>`).
        """
        specials = list(self._control.finditer(text, start, limit))
        ends = [hit for hit in specials if hit[0] in self._plain_ends]
        if not specials:
            what = f"no end token follows the calls of assistant turn {turn + 1}: a model would never learn to stop"
            raise Unfit("no_end_token", what, "a special token after the calls", "none")
        end = ends[0] if ends else specials[-1]
        said = message.content.strip()
        if said and said not in text[start : end.start()]:
            at = max(text.find(said, end.start()), end.start())
            what = f"the template writes the text of assistant turn {turn + 1} after its call, where it carries no loss"
            fix = "Use a template that writes the text before the call, or remove the text from the turn."
            raise Unfit("turn_changed", what, repr(said[:40]), repr(text[at : at + 40]), fix)
        return Span(turn, start, end.start(), end.end())

    def _switch_or(self, fix: str, message: Message) -> str:
        """The template's own switch for thinking where it has one that is not set, else `fix`."""
        if "enable_thinking" not in self.variables or "enable_thinking" in self.template_kwargs:
            return fix
        thinks = message.reasoning is not None or "<think>" in message.content
        value = "true" if thinks else "false"
        also = "" if thinks else ", or give every answer its reasoning"
        set_here = f"Set model.template_kwargs: {{enable_thinking: {value}}}"
        return f"{set_here} (--template-kwargs enable_thinking={value}){also}."

    @cached_property
    def _plain_ends(self) -> frozenset[str]:
        """The end tokens of answers without calls, as text."""
        for probe in (_PROBE, _PROBE_REASONED):
            try:
                traced = self.trace(probe)
            except Unfit:
                continue
            return frozenset(str(self.tokenizer.convert_ids_to_tokens(traced.ids[end])) for end in traced.ends)
        return frozenset()

    def _mark(self, span: Span, ids: Sequence[int], offsets: Sequence[tuple[int, int]], labelled: list[bool]) -> int:
        """Sets `labelled` for the tokens of `span`, through its end token, whose place it gives."""
        for i, (start, end) in enumerate(offsets):
            if end <= span.start or start == end:
                continue
            if start < span.start or start < span.content_end < end:
                edge = "begins" if start < span.start else "ends"
                token = self.tokenizer.convert_ids_to_tokens(ids[i])
                what = f"one token spans the place where assistant turn {span.turn + 1} {edge}"
                raise Unfit("straddle", what, "a token boundary", repr(token))
            if end > span.limit:
                break
            labelled[i] = True
            if start >= span.content_end and ids[i] in self._end_ids:
                return self._through_eos(i, span, ids, offsets, labelled)
        what = f"no end token follows assistant turn {span.turn + 1}: a model would never learn to stop"
        raise Unfit("no_end_token", what, "a special token after the answer", "none")

    def _through_eos(
        self, i: int, span: Span, ids: Sequence[int], offsets: Sequence[tuple[int, int]], labelled: list[bool]
    ) -> int:
        """The token that generation stops on, where a template writes it right behind another token of the turn's end.

        Cohere's answers end `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`: a model that never learns the second never stops.
        """
        last = i
        while ids[last] != self.tokenizer.eos_token_id:
            last += 1
            if last >= len(ids) or ids[last] not in self._end_ids or offsets[last][1] > span.limit:
                return i
        labelled[i : last + 1] = [True] * (last + 1 - i)
        return last

    def _check_prefix(self, prompt: str, ids: Sequence[int], labelled: Sequence[bool] | None) -> tuple[int, ...]:
        """The prompt tokenised by itself must be how the whole begins, or training and evaluation see other ids.

        `labelled` is given where the answer behind the prompt carries loss: it must begin right there.
        """
        alone = tuple(self.tokenizer(prompt, add_special_tokens=False)["input_ids"])
        n = len(alone)
        wrong = labelled is not None and ((n < len(labelled) and not labelled[n]) or (n and labelled[n - 1]))
        if tuple(ids[:n]) != alone or wrong:
            at = first_difference(alone, ids)
            raise Unfit(
                "prefix",
                f"the tokens of the prompt alone and of the prompt within the whole row differ from token {at + 1} on",
                str(self.tokenizer.convert_ids_to_tokens(list(alone[at : at + 3]))),
                str(self.tokenizer.convert_ids_to_tokens(list(ids[at : at + 3]))),
                FIX["straddle"],
            )
        return alone

    def _refuse_control(self, messages: Sequence[Message], tools: Tools) -> None:
        for turn, message in enumerate(messages):
            for text in templates.texts_of(message):
                hit = self._control.search(text)
                if hit is not None:
                    what = f"turn {turn + 1} ({message.role}) contains the control token {hit[0]!r}"
                    raise Unfit("control_token", what, "plain text", repr(hit[0]))
        hit = self._control.search(templates.tools_json(tools)) if tools else None
        if hit is not None:
            what = f"the declared tools contain the control token {hit[0]!r}"
            raise Unfit("control_token", what, "plain text", repr(hit[0]))

    def _check_template(self) -> None:
        """One small conversation, so that a template with a habit of its own is met here and not on row one.

        A template that reads reasoning and writes an empty block where there is none is fit for rows that have some.
        """
        try:
            self.trace(_PROBE)
        except Unfit as unfit:
            if templates.reasoning_key(self.template) is not None and self._renders(_PROBE_REASONED):
                return
            thinking = "enable_thinking" in self.variables and not self.template_kwargs
            raise ModelError(
                f"The chat template cannot be used for training: {unfit.message} (expected {unfit.expected}, found "
                f"{unfit.found}).",
                fix="Set model.template_kwargs: {enable_thinking: false} (--template-kwargs enable_thinking=false), "
                "or give a template without thinking."
                if thinking
                else unfit.fix,
            ) from None

    def _renders(self, messages: Sequence[Message]) -> bool:
        try:
            self.trace(messages)
        except Unfit:
            return False
        return True


def _escaped(text: str, *, ascii: bool = False) -> str:
    return json.dumps(text, ensure_ascii=ascii)[1:-1]


def render_rows(rows: Sequence[Row], renderer: Renderer) -> tuple[tuple[Rendered, ...], tuple[Finding, ...]]:
    """All rows rendered in order, and a finding for each row that cannot be rendered."""
    done: list[Rendered] = []
    problems: list[Finding] = []
    for row in rows:
        result = renderer.try_row(row)
        if isinstance(result, Finding):
            problems.append(result)
        else:
            done.append(result)
    return tuple(done), tuple(problems)

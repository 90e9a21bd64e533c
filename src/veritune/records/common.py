"""Records that stages hand each other; those that also lie on disk are read strictly. No stage logic lives here.

A value that is unknown is `None` and carries a reason; it is never 0.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from veritune.display import estimate_text, verdict_html
from veritune.records.base import Line, RecordPart, WithKeys

Zone = Literal["seen", "sibling", "stranger", "validation"]
ZONES: tuple[Zone, ...] = ("seen", "sibling", "stranger", "validation")
SCORE_ZONES: tuple[str, ...] = (*ZONES, "benchmark")
"""Zones that scores can have: those of the training data, then items from a file of their own."""

Json = Mapping[str, Any]


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool. `arguments` is the JSON text of an object, with keys in their original order."""

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("id",)

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn. `role` is `system`, `developer`, `user`, `assistant` or `tool`.

    `reasoning` is what an assistant thought before `content` (`reasoning_content`, `reasoning` or `thinking` in files);
    `weight` is 0 where an assistant's turn carries no loss, else None; `tool_call_id` and `name` belong to `tool`.
    """

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("reasoning", "tool_calls", "tool_call_id", "name", "weight")

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    weight: Literal[0] | None = None

    @property
    def trained(self) -> bool:
        """Whether this turn carries loss."""
        return self.role == "assistant" and self.weight is None

    @property
    def said(self) -> str:
        """The turn's content as one text: reasoning, content, and each call as `name({...})`."""
        if self.reasoning is None and self.tool_calls is None:
            return self.content
        calls = [f"{call.name}({call.arguments})" for call in self.tool_calls or ()]
        return "\n\n".join(part for part in (self.reasoning, self.content, *calls) if part)

    def to_chat(self) -> dict[str, Any]:
        """The turn as an OpenAI chat message, for files and servers; empty keys are left out."""
        chat: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            chat["reasoning_content"] = self.reasoning
        if self.tool_calls is not None:
            chat["tool_calls"] = [
                {
                    **({"id": call.id} if call.id is not None else {}),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        for key in ("tool_call_id", "name", "weight"):
            if getattr(self, key) is not None:
                chat[key] = getattr(self, key)
        return chat

    @classmethod
    def from_chat(cls, chat: Mapping[str, Any]) -> Message:
        """The turn that `to_chat` wrote; keys that are null count as absent (Parquet adds them)."""
        calls = chat.get("tool_calls")
        return cls(
            chat["role"],
            chat["content"],
            chat.get("reasoning_content"),
            tuple(ToolCall(c["function"]["name"], c["function"]["arguments"], c.get("id")) for c in calls)
            if calls
            else None,
            chat.get("tool_call_id"),
            chat.get("name"),
            0 if chat.get("weight") == 0 else None,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One training or evaluation example.

    `family` is the original's name when the data carries one, else None until `data.families` finds it.
    `meta` holds every other column as it came; `line` is 1-based in `source`. `tools` are the declared tools in the
    form of OpenAI's API (`{"type": "function", "function": {...}}`), None where there are none.
    """

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("tools",)

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    line: int = 0
    family: str | None = None
    meta: Json = field(default_factory=dict)
    tools: tuple[Json, ...] | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn."""
        return self.messages[:-1] if self.messages and self.messages[-1].role == "assistant" else self.messages

    @property
    def target(self) -> str | None:
        """The text of the last assistant turn, calls included; None if the row ends on another role."""
        last = self.messages[-1] if self.messages else None
        return last.said if last is not None and last.role == "assistant" else None

    def text(self, *roles: str) -> str:
        """The text of the named roles (by default all), joined by blank lines."""
        return "\n\n".join(m.said for m in self.messages if not roles or m.role in roles)

    def to_chat(self) -> dict[str, Any]:
        """`messages`, and `tools` if there are any, in the form used in files."""
        tools = {"tools": list(self.tools)} if self.tools is not None else {}
        return {"messages": [m.to_chat() for m in self.messages], **tools}


def tools_text(tools: tuple[Json, ...] | None) -> str | None:
    """Declared tools as one JSON text, with keys in their order; None for None."""
    return None if tools is None else json.dumps(list(tools), ensure_ascii=False)


def tools_from(text: str | None) -> tuple[Json, ...] | None:
    """The tools from the text that `tools_text` wrote."""
    return None if text is None else tuple(json.loads(text))


@dataclass(frozen=True, slots=True)
class Membership:
    """Why a row belongs to a family. `similarity` is in [0, 1], None for `column`, `exact` and `singleton`.

    `embedding` and `gradient` come from the optional passes, `other` from a user's own, `decided` from a person's word.
    """

    row_id: str
    family: str
    evidence: Literal["column", "exact", "similarity", "singleton", "embedding", "gradient", "other", "decided"]
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Finding(Line):
    """One finding of an audit. `severity`: `error` stops a study, `warning` is shown, `note` is only counted."""

    check: str
    severity: Literal["error", "warning", "note"]
    message: str
    row_id: str | None = None
    source: str | None = None
    line: int | None = None
    field: str | None = None
    evidence: Json = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as the trainer sees it. `labels` equal `input_ids` at tokens with loss and are -100 elsewhere."""

    row_id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def n_target(self) -> int:
        """Number of tokens that carry loss."""
        return sum(label != -100 for label in self.labels)


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True)
class NamedValue(RecordPart):
    """A number that the trainer logs: `grad_norm` before clipping, `learning_rate`; None if not logged."""

    name: str
    value: float | None


@dataclass(frozen=True, slots=True)
class MetricRow(Line):
    """One line of `metrics.jsonl`. The shape is fixed; a field that does not apply is None.

    `loss` is a mean NLL in nats per target token; `token_count` the target tokens it was taken over;
    `cost` is wall-clock seconds spent on what the line reports.
    """

    run_id: str
    condition: str
    seed: int | None
    step: int | None
    split: str | None
    loss: float | None
    metric: NamedValue | None
    token_count: int | None
    cost: float | None
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class Score(Line):
    """One run's outcome on one eval item.

    `value` is in the eval's own scale, None when there is none and `reason` says why (`extraction_failed`,
    `truncated`, `crashed`, ...). `parts` holds what was extracted and each rule's result.
    """

    run_id: str
    eval: str
    item_id: str
    value: float | None
    reason: str | None = None
    family: str | None = None
    zone: str | None = None
    output: str | None = None
    parts: Annotated[Json, WithKeys({"ended": str | None, "rules": dict[str, bool] | None})] = field(
        default_factory=dict
    )

    @property
    def ended(self) -> str | None:
        """Why generation of the output ended: `stop_token` or `length`; None if not recorded."""
        return self.parts.get("ended")

    @property
    def rules(self) -> Mapping[str, bool] | None:
        """Which rules held; None for an eval without rules."""
        return self.parts.get("rules")


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True, repr=False)
class Estimate(RecordPart):
    """A number with its interval, its n and its method. Units are those of the underlying scores.

    `low`/`high` bound the interval at `level`; both are None when none can be given and `warnings` says why.
    `p` is None where no test belongs to the estimate; `p_floor` marks p as an upper bound (`p < p_floor`).
    `scope` says which checkpoints, items and seeds the number speaks of.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    method: str
    scope: str = ""
    n_clusters: int | None = None
    n_seeds: int | None = None
    se: float | None = None
    df: float | None = None
    p: float | None = None
    p_method: str | None = None
    p_floor: float | None = None
    warnings: tuple[str, ...] = ()
    details: Json = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Estimate {estimate_text(self)}>"


@dataclass(frozen=True, slots=True, repr=False)
class Verdict(RecordPart):
    """The verdict on a declared claim, with the sentence that may be written and those that may not.

    `detectable` is the smallest difference this design detects with 80 % power, `needed_n` the items that settle the
    margin with the seed spread at the upper end of its 80 % range; each is None where it does not apply. In `details`
    stand `needed_items` and `needed_seeds` as [lower end, upper end] (None: no number is enough there), `to_settle` as
    text, and for a settled claim `chance_again`, the chance that another study of this design settles it at this gap.
    """

    claim: str
    kind: str
    status: Literal["supported", "refuted", "inconclusive", "untested"]
    sentence: str
    estimates: tuple[Estimate, ...] = ()
    may_not: tuple[str, ...] = ()
    margin: float | None = None
    alpha: float = 0.05
    decision: str | None = None
    detectable: float | None = None
    needed_n: int | None = None
    confidence: Json = field(default_factory=dict)
    exploratory: bool = False
    warnings: tuple[str, ...] = ()
    details: Json = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Verdict {self.claim}: {self.status}{', exploratory' if self.exploratory else ''}: {self.sentence}>"

    def _repr_html_(self) -> str:
        return str(verdict_html(self))


@dataclass(frozen=True, slots=True)
class GateResult(RecordPart):
    """The result of a check that stops later steps. `undecided` means that evidence is missing, and blocks like
    `failed`.

    `evidence` names files or places, `look` the command that shows more.
    """

    gate: str
    status: Literal["passed", "failed", "undecided"]
    message: str
    numbers: Json = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    look: str = ""
    thresholds: Json = field(default_factory=dict)

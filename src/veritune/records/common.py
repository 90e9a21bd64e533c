"""Records that stages hand each other, without a file of their own. Frozen, plain; no stage logic lives here.

A value that is unknown is `None` and carries a reason; it is never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FORMAT_VERSION: Literal[1] = 1

Zone = Literal["seen", "sibling", "stranger", "validation"]
ZONES: tuple[Zone, ...] = ("seen", "sibling", "stranger", "validation")

Json = Mapping[str, Any]


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One training or evaluation example, in the order it was read.

    `family` is the original's name when the data carries one, else None until `data.families` finds it.
    `meta` holds every other column as it came; `line` is 1-based in `source`.
    """

    id: str
    messages: tuple[Message, ...]
    source: str = ""
    line: int = 0
    family: str | None = None
    meta: Json = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns before the last assistant turn."""
        return self.messages[:-1] if self.messages and self.messages[-1].role == "assistant" else self.messages

    @property
    def target(self) -> str | None:
        """The last assistant turn's text, None when the row ends on another role."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else None

    def text(self, *roles: str) -> str:
        """The contents of the named roles (all roles when none is named), joined by blank lines."""
        return "\n\n".join(m.content for m in self.messages if not roles or m.role in roles)


@dataclass(frozen=True, slots=True)
class Membership:
    """Why a row belongs to a family. `similarity` is in [0, 1], None for `column`, `exact` and `singleton`.

    `embedding` and `gradient` come from the optional passes, `other` from a user's own.
    """

    row_id: str
    family: str
    evidence: Literal["column", "exact", "similarity", "singleton", "embedding", "gradient", "other"]
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing an audit found. `severity`: `error` stops a study, `warning` is shown, `note` is counted."""

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
    """A row as the trainer sees it. `labels` equal `input_ids` where the loss falls and -100 elsewhere."""

    row_id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    @property
    def n_target(self) -> int:
        """Number of tokens the loss falls on."""
        return sum(label != -100 for label in self.labels)


# ---------------------------------------------------------------- runs


@dataclass(frozen=True, slots=True)
class MetricRow:
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
    metric: Json | None
    token_count: int | None
    cost: float | None
    checkpoint: str | None


@dataclass(frozen=True, slots=True)
class Score:
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
    parts: Json = field(default_factory=dict)


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval, its n and its method. Units are those of the scores it came from.

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


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a declared claim came to, with the sentence that may be written and those that may not.

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


@dataclass(frozen=True, slots=True)
class GateResult:
    """A check that stops what follows. `undecided` means the evidence is not there, and blocks like `failed`.

    `evidence` names files or places, `look` the command that shows more.
    """

    gate: str
    status: Literal["passed", "failed", "undecided"]
    message: str
    numbers: Json = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    look: str = ""
    thresholds: Json = field(default_factory=dict)

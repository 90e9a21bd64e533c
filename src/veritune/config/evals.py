"""`evals`: which items are asked, how outputs are decoded, how they are scored."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal

from pydantic import Field, model_validator

from veritune.config.fields import EvalZone, Int, Name, Section


def _compiled(key: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as exc:
        raise ValueError(f"{key} is not a regular expression: {exc}") from exc


class Rule(Section):
    """One yes/no rule about an output. Exactly one of `pattern`, `contains`, `absent`."""

    name: Name
    """Name of the rule in scores and report."""
    pattern: str | None = None
    """Regular expression (Python `re`, multi-line off) that must be found."""
    contains: str | None = None
    """Text that must occur; `{column}` is filled from the item's own columns."""
    absent: tuple[str, ...] | None = None
    """Phrases that must not occur, compared without case."""
    count: Annotated[Int, Field(ge=0)] | None = None
    """With `pattern`: it must be found exactly so many times."""
    when: dict[str, str] | None = None
    """With `pattern`: must be found in items whose columns equal these values, and must not in all others."""
    ignore_case: bool = False
    """Compare `pattern` and `contains` without case."""

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
        kinds = [k for k in ("pattern", "contains", "absent") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a rule has exactly one of pattern, contains, absent; found {kinds or 'none'}")
        if (self.count is not None or self.when is not None) and self.pattern is None:
            raise ValueError("`count` and `when` go with `pattern`")
        if self.count is not None and self.when is not None:
            raise ValueError("`count` and `when` exclude each other: write two rules")
        if self.pattern is not None:
            _compiled("pattern", self.pattern)
        self.columns()
        return self

    def columns(self) -> set[str]:
        """The item's columns that `contains` is filled from. Raises ValueError where its braces are no column."""
        try:
            parts = list(string.Formatter().parse(self.contains or ""))
        except ValueError as exc:
            raise ValueError(f"contains {self.contains!r}: {exc}; write {{{{ for a brace itself") from None
        names = [name for _, name, _, _ in parts if name is not None]
        wrong = [name for name in names if not re.fullmatch(r"\w+", name) or name.isdigit()]
        if wrong or any(spec or conversion for _, _, spec, conversion in parts):
            raise ValueError(f"contains {self.contains!r}: a column is written {{name}}; write {{{{ for a brace itself")
        return set(names)


class Eval(Section):
    """One eval contract: which items, how outputs are decoded, how they are scored."""

    kind: Literal["rules", "match"] = "rules"
    """`rules`: share of the rules that hold (or all of them). `match`: an extracted answer equals the expected one."""
    zones: tuple[EvalZone, ...] = ("seen", "sibling", "stranger")
    """Zones whose rows become items."""
    per_family: Annotated[Int, Field(ge=1)] | dict[EvalZone, Annotated[Int, Field(ge=1)]] | None = None
    """At most so many items of each family (the first by id), for all zones or by zone; None takes all."""
    max_new_tokens: Annotated[Int, Field(ge=1)] = 128
    """Generation stops here; how many outputs were cut is counted."""
    batch_size: Annotated[Int, Field(ge=1)] = 32
    """Prompts generated together. It changes rounding, in bfloat16 some greedy outputs; all arms share it."""
    rules: tuple[Rule, ...] = ()
    """For `rules`."""
    score: Literal["mean", "all"] = "mean"
    """For `rules`: the share of rules that hold, or 1 only when all hold."""
    extract: str | None = None
    """For `match`: regular expression whose last match's first group is the answer."""
    expected: str | None = None
    """For `match`: the column with the expected answer."""

    def items_per_family(self, zone: str) -> int | None:
        """The cap for one zone; None takes all rows."""
        cap = self.per_family
        return next((n for name, n in cap.items() if name == zone), None) if isinstance(cap, dict) else cap

    @model_validator(mode="after")
    def _fields_of_kind(self) -> Eval:
        if self.kind == "rules" and not self.rules:
            raise ValueError("`kind: rules` needs at least one rule")
        if self.kind == "match" and not (self.extract and self.expected):
            raise ValueError("`kind: match` needs `extract` (a pattern with one group) and `expected` (a column)")
        if self.kind == "match" and self.extract and _compiled("extract", self.extract).groups < 1:
            raise ValueError("`extract` needs a group: put parentheses around the answer")
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        return self

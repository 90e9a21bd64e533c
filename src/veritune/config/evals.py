"""`evals`: which items are asked, how outputs are decoded, how they are scored."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from veritune.config.fields import BENCHMARK, EvalZone, Int, Name, Section, as_number
from veritune.patterns import compiled
from veritune.records import JsonLike

QUESTION = "{question}"
"""What a `template` has in the place of an item's own last user turn."""
CHOICES = "{choices}"
"""What a `template` has in the place of an item's lettered options."""
ITEM_SEED = 0


def _unset(value: JsonLike) -> bool:
    """Whether a setting of a benchmark is left out: it then stays out of the contract of a study without one."""
    return value is None or value == ITEM_SEED


Part0 = Annotated[float, BeforeValidator(as_number), Field(ge=0, le=1)]
FUNCTION = re.compile(r"[^:]+\.py:[A-Za-z_]\w*")
JUDGE_LABELS = {"yes": 1.0, "no": 0.0}
"""A judge's verdicts where the study names none."""
FIELDS_OF_KIND = {
    "rules": ("rules",),
    "match": ("extract", "expected"),
    "answer": ("expected",),
    "choice": ("choices", "choices_as", "normalise", "expected"),
    "function": ("function",),
    "judge": ("base_url", "model", "prompt", "labels", "agreement", "extract", "expected"),
}
"""Which settings of scoring a kind reads; another one there is refused, since it would say nothing."""
NEEDED_BY_KIND = {"choice": ("choices",), "function": ("function",), "judge": ("base_url", "model", "prompt")}


def columns_in(key: str, text: str) -> set[str]:
    """The column names in braces of a text template. Raises ValueError where the braces hold no name."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as exc:
        raise ValueError(f"{key} {text!r}: {exc}; write {{{{ for a brace itself") from None
    names = [name for _, name, _, _ in parts if name is not None]
    wrong = [name for name in names if not re.fullmatch(r"\w+", name) or name.isdigit()]
    if wrong or any(spec or conversion for _, _, spec, conversion in parts):
        raise ValueError(f"{key} {text!r}: a column is written {{name}}; write {{{{ for a brace itself")
    return set(names)


def _compiled(key: str, pattern: str) -> re.Pattern[str]:
    try:
        return compiled(pattern)
    except ValueError as exc:
        raise ValueError(f"{key} is not a regular expression: {exc}") from exc


class Rule(Section):
    """One yes/no rule about an output. Exactly one of `pattern`, `contains`, `absent`, `calls`."""

    name: Name
    """Name of the rule in scores and report."""
    pattern: str | None = None
    """Regular expression (Python `re`, multi-line off) that must be found."""
    contains: str | None = None
    """Text that must occur; `{column}` is filled from the item's own columns."""
    absent: tuple[str, ...] | None = None
    """Phrases that must not occur, compared without case."""
    calls: Literal["equal", "names"] | None = None
    """The output calls the tools that the item's answer calls: with `equal` arguments, or by their `names` alone."""
    count: Annotated[Int, Field(ge=0)] | None = None
    """With `pattern`: it must be found exactly so many times."""
    when: dict[str, str] | None = None
    """With `pattern`: must be found in items whose columns equal these values, and must not in all others."""
    ignore_case: bool = False
    """Compare `pattern` and `contains` without case."""

    @model_validator(mode="after")
    def _one_kind(self) -> Rule:
        kinds = [k for k in ("pattern", "contains", "absent", "calls") if getattr(self, k) is not None]
        if len(kinds) != 1:
            raise ValueError(f"a rule has exactly one of pattern, contains, absent, calls; found {kinds or 'none'}")
        if (self.count is not None or self.when is not None) and self.pattern is None:
            raise ValueError("`count` and `when` can only be used with `pattern`")
        if self.count is not None and self.when is not None:
            raise ValueError("`count` and `when` exclude each other: write two rules")
        if self.pattern is not None:
            _compiled("pattern", self.pattern)
        self.columns()
        return self

    def columns(self) -> set[str]:
        """The item's columns that `contains` is filled from. Raises ValueError where its braces name no column."""
        return columns_in("contains", self.contains or "")


class Eval(Section):
    """One eval contract: which items are asked, how outputs are decoded and how they are scored."""

    kind: Literal["rules", "match", "answer", "choice", "function", "judge"] = "rules"
    """`rules`: share of the rules that hold (or all of them). `match`: an extracted answer equals the expected one.
    `answer`: the final answer of a worked solution is the same number or expression as the expected one. `choice`: the
    likeliest of several options is the right one. `function`: a Python function of yours. `judge`: another model."""
    path: Annotated[str | None, Field(exclude_if=_unset)] = None
    """A benchmark: the items come from this file, relative to the study file, and from no zone of the training data.
    Their zone is `benchmark`. No trained row may hold one of them: the study stops before anything trains."""
    columns: Annotated[dict[str, str] | None, Field(exclude_if=_unset)] = None
    """With `path`: which columns hold the turns, e.g. `{user: question, assistant: answer}`."""
    id_field: Annotated[str | None, Field(exclude_if=_unset)] = None
    """With `path`: column with a unique item id; without it the id is file and line."""
    family_field: Annotated[str | None, Field(exclude_if=_unset)] = None
    """With `path`: column that groups dependent items; near-duplicates are grouped with or without it."""
    items: Annotated[Annotated[Int, Field(ge=1)] | None, Field(exclude_if=_unset)] = None
    """With `path`: so many items, drawn by `items_seed`; None takes all. The ids drawn are part of the contract."""
    items_seed: Annotated[Int, Field(ge=0, exclude_if=_unset)] = ITEM_SEED
    """With `items`: the seed of the draw."""
    system: Annotated[str | None, Field(exclude_if=_unset)] = None
    """With `path`: a system turn in front of every item that has none."""
    template: Annotated[str | None, Field(exclude_if=_unset)] = None
    """With `path`: the last user turn, with `{question}` where the item's own goes; other braces stay as they are."""
    zones: tuple[EvalZone, ...] = ("seen", "sibling", "stranger")
    """Zones whose rows become items; a benchmark's is `benchmark` and need not be written."""
    per_family: Annotated[Int, Field(ge=1)] | dict[EvalZone, Annotated[Int, Field(ge=1)]] | None = None
    """At most so many items of each family (the first by id), for all zones or by zone; None takes all."""
    max_new_tokens: Annotated[Int, Field(ge=1)] = 128
    """Generation stops here; how many outputs were cut is counted."""
    batch_size: Annotated[Int, Field(ge=1)] = 32
    """Prompts generated together. It changes rounding, in bfloat16 some greedy outputs; all arms share it."""
    merged: bool = False
    """Answer with the adapter added to the weights: quicker, and in bfloat16 other texts here and there, so it is part
    of the contract. Plain LoRA alone."""
    token_losses: Annotated[Int, Field(ge=0, exclude_if=lambda value: value == 0)] = 0
    """Of the first so many items, record the loss of every token of the answer, in nats, under the model that gave it.
    One more forward pass over them; `veritune view` shows it. Not for `choice`, nor where a server answers."""
    rules: tuple[Rule, ...] = ()
    """For `rules`."""
    score: Literal["mean", "all"] = "mean"
    """For `rules`: the share of rules that hold, or 1 only when all hold."""
    extract: str | None = None
    """For `match`: regular expression whose last match's first group is the answer. For `judge`: the same, of its
    verdict in what the judge says; without it the last of the `labels` that occurs as a word."""
    expected: str | None = None
    """For `match`, `answer` and `choice`: the column with the expected answer; `answer` without it takes the item's own
    answer turn, from the last `\\boxed{}` or `####` on; `choice` without it takes `answer`: an option's place from 0,
    its letter, its label or its text."""
    choices: Annotated[str | tuple[str, ...] | None, Field(exclude_if=_unset)] = None
    """For `choice`: the column that holds the list of options, or one list of options for all items."""
    choices_as: Annotated[Literal["text", "letters"], Field(exclude_if=lambda value: value == "text")] = "text"
    """For `choice`: what the model is to say, an option's `text` or its letter. With `letters` a benchmark's prompt has
    the options, where `template` has `{choices}`, or beneath the question without a template."""
    normalise: Annotated[Literal["none", "characters", "tokens"], Field(exclude_if=lambda value: value == "none")] = (
        "none"
    )
    """For `choice`: divide an option's log-likelihood by its length, or not. Both stand in the scores."""
    function: Annotated[str | None, Field(exclude_if=_unset)] = None
    """For `function`: `file.py:name`, relative to the study file. It is called with the output and the item (a dict)
    and returns a number from 0 to 1, or None where the output holds no answer. The file's hash is frozen."""
    base_url: Annotated[str | None, Field(exclude_if=_unset)] = None
    """For `judge`: the address of an OpenAI-compatible server, e.g. `http://localhost:8000/v1`. The key is read from
    VERITUNE_JUDGE_KEY or OPENAI_API_KEY and recorded nowhere."""
    model: Annotated[str | None, Field(exclude_if=_unset)] = None
    """For `judge`: the model's name on the server."""
    prompt: Annotated[str | None, Field(exclude_if=_unset)] = None
    """For `judge`: what it is asked, with `{output}`, and as needed `{question}`, `{expected}` or a column's name;
    write other braces twice."""
    labels: Annotated[dict[str, Part0] | None, Field(exclude_if=_unset)] = None
    """For `judge`: its verdicts and what each is worth, from 0 to 1; without them `{yes: 1, no: 0}`."""
    agreement: Annotated[str | None, Field(exclude_if=_unset)] = None
    """For `judge`: a file of labelled outputs (columns `output`, `label` and what the prompt needs). The judge's
    agreement with it is measured before anything trains; without it every claim on this eval is exploratory."""

    def items_per_family(self, zone: str) -> int | None:
        """The most items per family in one zone; None takes all rows."""
        cap = self.per_family
        return next((n for name, n in cap.items() if name == zone), None) if isinstance(cap, dict) else cap

    @model_validator(mode="before")
    @classmethod
    def _zone_of_a_benchmark(cls, raw: JsonLike) -> JsonLike:
        if not isinstance(raw, dict):
            return raw
        made = dict(raw)
        path = made.get("path")
        named = made.get("kind") == "function" and "function" not in made and isinstance(path, str)
        if named and FUNCTION.fullmatch(str(path)):  # `path: file.py:name` is the function: no file of items ends so
            made["function"] = made.pop("path")
        if isinstance(made.get("labels"), dict):  # YAML 1.1 reads `yes` and `no` as booleans
            made["labels"] = {{True: "yes", False: "no"}.get(k, k): v for k, v in made["labels"].items()}
        if made.get("path") is not None and "zones" not in made:
            made["zones"] = [BENCHMARK]
        return made

    @model_validator(mode="after")
    def _of_a_benchmark(self) -> Eval:
        own = ("columns", "id_field", "family_field", "items", "system", "template")
        given = [key for key in own if getattr(self, key) is not None]
        if self.path is None and given:
            raise ValueError(f"`{given[0]}` can only be used with `path`, the file of a benchmark")
        if self.path is None and BENCHMARK in self.zones:
            raise ValueError("zone `benchmark` needs `path`: the file with the items")
        if self.path is not None and self.zones != (BENCHMARK,):
            raise ValueError("with `path` the only zone is `benchmark`; use another eval for the data's own zones")
        if self.path is not None and self.per_family is not None:
            raise ValueError("`per_family` cannot be used with `path`; limit the number with `items`")
        if self.items is None and self.items_seed != ITEM_SEED:
            raise ValueError("`items_seed` can only be used with `items`, the number of items to draw")
        if self.template is not None and CHOICES in self.template and self.kind != "choice":
            raise ValueError(f"{CHOICES} in `template` needs `kind: choice`")
        if self.template is not None and self.template.count(QUESTION) != 1:
            raise ValueError(f"`template` needs {QUESTION} exactly once: it is replaced by the item's own question")
        return self

    @model_validator(mode="after")
    def _fields_of_kind(self) -> Eval:
        if self.kind == "rules" and not self.rules:
            raise ValueError("`kind: rules` needs at least one rule")
        if self.kind == "match" and not (self.extract and self.expected):
            raise ValueError("`kind: match` needs `extract` (a pattern with one group) and `expected` (a column)")
        if self.kind == "match" and self.extract and _compiled("extract", self.extract).groups < 1:
            raise ValueError("`extract` needs a group: put parentheses around the answer")
        self._reads_what_is_given()
        if self.kind == "choice" and self.token_losses:
            raise ValueError("`kind: choice` takes no `token_losses`: nothing is generated")
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name")
        return self

    def _reads_what_is_given(self) -> None:
        every = dict.fromkeys(name for names in FIELDS_OF_KIND.values() for name in names)
        allowed = FIELDS_OF_KIND[self.kind]
        given = [name for name in every if getattr(self, name) not in (None, (), *_DEFAULTS.get(name, ()))]
        unread = [name for name in given if name not in allowed]
        if unread and self.kind == "answer" and unread[0] in ("rules", "extract"):
            raise ValueError(f"`kind: answer` takes no `{unread[0]}`: it finds the final answer itself")
        if (unread and self.kind in NEEDED_BY_KIND) or set(unread) - {"rules", "extract", "expected"}:
            raise ValueError(f"`kind: {self.kind}` takes no `{unread[0]}`")
        missing = [name for name in NEEDED_BY_KIND.get(self.kind, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"`kind: {self.kind}` needs `{missing[0]}`")
        if self.function is not None and not FUNCTION.fullmatch(self.function):
            raise ValueError(f"function: expected file.py:name, found {self.function!r}")
        if isinstance(self.choices, tuple) and len(set(self.choices)) < max(2, len(self.choices)):
            raise ValueError("choices: expected at least two different options, or the name of a column")
        if self.kind == "judge":
            self._check_judge()

    def _check_judge(self) -> None:
        if not re.fullmatch(r"https?://[^@\s?#]+", self.base_url or ""):
            raise ValueError("base_url: expected http(s)://host[:port][/v1], without user name, password or query")
        if "output" not in columns_in("prompt", self.prompt or ""):
            raise ValueError("prompt: expected {output} in it, the place of the output to judge")
        labels = self.labels or JUDGE_LABELS
        if len({label.casefold() for label in labels}) < max(2, len(labels)):
            raise ValueError("labels: expected at least two verdicts that differ in more than upper and lower case")
        if len(set(labels.values())) < 2:
            raise ValueError("labels: all verdicts have the same value, so every score would be equal")
        if self.extract is not None and _compiled("extract", self.extract).groups < 1:
            raise ValueError("`extract` needs a group: put parentheses around the verdict")


_DEFAULTS = {"choices_as": ("text",), "normalise": ("none",)}

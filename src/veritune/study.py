"""What a user writes in `study.yaml`, validated before anything is spent.

Every field is documented once, right beneath it; the same text goes into the JSON Schema that editors read
(`veritune schema`). Errors name the path in the file (`conditions.all_layer.r`), what was expected, what was
found, and for an unknown key the nearest known one.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
import string
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from veritune.errors import StudyError, VerituneError
from veritune.fields import Int, Part, Real, Section, Share, as_number
from veritune.thresholds import Thresholds

NAME = r"^[A-Za-z][A-Za-z0-9_\-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
BASELINE = "baseline"
EvalZone = Literal["seen", "sibling", "stranger"]
ClaimKind = Literal[
    "improves", "better_by", "equivalent", "not_worse", "generalises", "no_regression", "probe", "differ"
]


class Model(Section):
    """The base model, read and never written."""

    path: str
    """A local folder in Hugging Face format, a hub id, or `builtin:smollm2-135m-instruct`."""
    revision: str | None = None
    """Commit of a hub model. Pin it: a branch name moves."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Precision of the frozen base weights. Trained parameters are kept in float32."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you have read that code."""


class Backend(Section):
    """Where cells train and answer. `backend: local` is short for `backend: {name: local}`."""

    name: Literal["local", "tinker"] = "local"
    """`local`: `transformers.Trainer` on this machine. `tinker`: LoRA on a server that speaks the Tinker API."""
    base_url: str | None = None
    """`tinker`: the server's address. The key is read from TINKER_API_KEY and recorded nowhere."""
    base_model: str | None = None
    """`tinker`: the server's name of the base; `model.path` then gives tokenizer, template and config alone."""
    ahead: Annotated[Int, Field(ge=0)] = 0
    """`tinker`: optimizer steps in flight at once; more than 0 only with a server known to keep them in order."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, raw: Any) -> Any:
        return {"name": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _fields_of_name(self) -> Backend:
        given = [key for key in ("base_url", "base_model") if getattr(self, key) is not None]
        if self.name == "local" and (given or self.ahead):
            raise ValueError(f"`name: local` takes no {(given or ['ahead'])[0]}")
        if self.name == "tinker" and len(given) < 2:
            raise ValueError("`name: tinker` needs `base_url` and `base_model`")
        if self.base_url is not None and not re.fullmatch(r"https?://[^@\s]+", self.base_url):
            raise ValueError("base_url: expected http(s)://host[:port] without a name or password in it")
        return self


class Data(Section):
    """The rows that are trained on and held out."""

    path: str
    """JSONL, CSV, Parquet or a `datasets` folder, relative to the study file."""
    columns: dict[str, str] | None = None
    """Which columns hold the turns, e.g. `{user: question, assistant: answer}`, where rows have no `messages`."""
    family_field: str | None = None
    """Column that names the original a row was rewritten from."""
    id_field: str | None = None
    """Column with a unique row id; without it the id is file and line."""
    near_duplicates: bool = True
    """Also join rows into one family when their texts are near-duplicates. Off only if you know better."""
    evals: dict[Name, str] = Field(default_factory=dict)
    """Benchmark files the rows must not hold, by name. An exact overlap stops the study before anything trains."""


class SplitPlan(Section):
    """How families are dealt to zones. A family never straddles `seen`+`sibling`, `stranger` and `validation`."""

    seed: Int = 0
    """Seed of the deal; the same seed and families give the same zones."""
    stranger: Share = 0.3
    """Share of families held out whole."""
    validation: Share = 0.12
    """Share of families held out whole for choosing checkpoints; never used for a claim."""
    sibling: Share = 0.25
    """Share of each trained family's rows held out as siblings: at least one row, never all."""


class Train(Section):
    """One schedule for all conditions. Keys are named as in Hugging Face's TrainingArguments."""

    num_train_epochs: Annotated[Real, Field(gt=0)] = 3
    """Passes over the seen rows."""
    max_steps: Int = -1
    """Stop after this many optimizer steps; -1 trains for `num_train_epochs`."""
    per_device_train_batch_size: Annotated[Int, Field(ge=1)] = 8
    """Rows per device and micro-batch."""
    gradient_accumulation_steps: Annotated[Int, Field(ge=1)] = 1
    """Micro-batches per optimizer step."""
    devices: Annotated[Int, Field(ge=1)] = 1
    """Processes that train one cell together; an optimizer step holds this many times the rows of one process."""
    strategy: Literal["ddp", "fsdp2", "deepspeed"] = "ddp"
    """How several devices share a cell: copies of the model, or its parts (`fsdp2` on accelerators, `deepspeed`)."""
    strategy_config: dict[str, Any] | None = None
    """For `fsdp2` the Trainer's `fsdp_config`, for `deepspeed` its JSON: how to divide, not the recipe."""
    learning_rate: Annotated[Real, Field(gt=0, lt=1)] = 2e-4
    """Peak learning rate; a condition may name its own only if the study declares `lr` as a factor."""
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = "cosine"
    """Schedule, as Hugging Face names them."""
    warmup_steps: Annotated[Real, Field(ge=0)] = 0.05
    """Warm-up: optimizer steps, or a share of them when below 1."""
    weight_decay: Annotated[Real, Field(ge=0)] = 0.0
    """AdamW weight decay."""
    max_grad_norm: Annotated[Real, Field(gt=0)] = 1.0
    """Gradient clipping norm."""
    padding_free: bool = False
    """Join the rows of a micro-batch in one sequence instead of padding them; steps and losses stay the same."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, about a third more time."""
    max_length: Annotated[Int, Field(ge=8)] = 1024
    """Longest row in tokens. A longer row is an error, never cut in silence."""
    eval_steps: Annotated[Int, Field(ge=1)] | None = None
    """Validation NLL and a checkpoint every so many optimizer steps, and at the end; None means once an epoch."""

    @model_validator(mode="after")
    def _some_steps(self) -> Train:
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: expected -1 (train for num_train_epochs) or at least 1")
        if self.strategy != "ddp" and self.devices == 1:
            raise ValueError(
                f"strategy is {self.strategy}: it shares a model among devices, so `devices` is at least 2"
            )
        return self


class Condition(Section):
    """One arm of the comparison."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    method: str = "lora"
    """`lora`, `qlora`, `full`, or any PEFT method by its name (`prompt_tuning`, ...) with its own config fields."""
    target_modules: str | tuple[str, ...] | None = None
    """`attention`, `mlp`, `all-linear`, or a list of module names. LoRA-like methods only."""
    r: Annotated[Int, Field(ge=1)] | None = None
    """LoRA rank."""
    lora_alpha: Annotated[Real, Field(gt=0)] | None = None
    """LoRA scaling numerator; the update is scaled by lora_alpha / r."""
    lora_dropout: Annotated[Real, Field(ge=0, lt=1)] | None = None
    """Dropout on the adapter's input."""
    learning_rate: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """This condition's own peak learning rate."""
    data_fraction: Part | None = None
    """Train on this share of the seen rows: whole families, drawn by the split's seed, each share within the larger."""
    max_steps: Annotated[Int, Field(ge=1)] | None = None
    """This condition's own number of optimizer steps."""
    num_train_epochs: Annotated[Real, Field(gt=0)] | None = None
    """This condition's own number of passes over its rows."""

    @model_validator(mode="after")
    def _combination(self) -> Condition:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError("max_steps and num_train_epochs exclude each other: write one")
        given = {k for k in ("target_modules", "r", "lora_alpha", "lora_dropout") if getattr(self, k) is not None}
        if self.method == "full":
            given |= set(self.model_extra or {})
            if given:
                raise ValueError(
                    f"`method: full` takes no {', '.join(sorted(given))}: remove it, or use `method: lora`"
                )
        if self.method in ("lora", "qlora") and self.target_modules is None:
            raise ValueError(
                f"`method: {self.method}` needs target_modules: `attention`, `mlp`, `all-linear` or a list of names"
            )
        return self

    def options(self) -> dict[str, Any]:
        """The method's own config fields as PEFT takes them, without `method` and the schedule's."""
        known = {k: getattr(self, k) for k in ("target_modules", "r", "lora_alpha", "lora_dropout")}
        return {k: v for k, v in known.items() if v is not None} | dict(self.model_extra or {})


class Selection(Section):
    """How each condition's learning rate is chosen before the main runs: by validation NLL, and by nothing else."""

    learning_rates: Annotated[tuple[Annotated[Real, Field(gt=0, lt=1)], ...], Field(min_length=2)]
    """The grid. A winner at its edge is flagged: the best rate may lie beyond."""
    seed: Annotated[Int, Field(ge=0, lt=2**32)]
    """The seed that selection trains with. The main seeds may not use it."""
    data_fraction: Part = 1.0
    """The slice: this share of a condition's seen rows, in whole families."""
    max_steps: Annotated[Int, Field(ge=1)] | None = None
    """Optimizer steps of each selection run; None takes those of the main runs."""
    batch_shapes: tuple[tuple[Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)]], ...] = ()
    """`[rows per micro-batch, micro-batches a step]` to time beside the declared shape; nothing changes by itself."""

    @model_validator(mode="after")
    def _distinct(self) -> Selection:
        for key, values in (("learning_rates", self.learning_rates), ("batch_shapes", self.batch_shapes)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: {list(values)} names one twice")
        return self


class Budget(Section):
    """What a study may cost. It is compared with the plan before anything trains. It is no part of the contract."""

    hours: Annotated[Real, Field(gt=0)] | None = None
    """Hours of this machine, for all cells that are left."""
    usd: Annotated[Real, Field(gt=0)] | None = None
    """Money, at the price below."""
    disk_gb: Annotated[Real, Field(gt=0)] | None = None
    """Disk in GB (10^9 bytes) that the study may take."""
    price_per_hour: Annotated[Real, Field(gt=0)] | None = None
    """Price of an hour of this machine, in USD."""
    price_per_million_tokens: Annotated[Real, Field(gt=0)] | None = None
    """Price of a million training tokens, in USD."""

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.price_per_hour is not None and self.price_per_million_tokens is not None:
            raise ValueError("expected one price, found price_per_hour and price_per_million_tokens")
        if self.usd is not None and self.price_per_hour is None and self.price_per_million_tokens is None:
            raise ValueError("`usd` needs price_per_hour or price_per_million_tokens")
        return self


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


def _check_rule(kind: str, rule: dict[str, float | bool]) -> None:
    """Raises ValueError for a frozen rule that could not be applied: after the freeze is too late to say so."""
    from veritune.stats.rule import check_rule  # numpy, which a study without a rule does not need to be read

    if kind in ("generalises", "probe"):
        raise ValueError(f"`rule` looks at the gap between two arms; `kind: {kind}` has none of its own")
    try:
        check_rule(rule)
    except VerituneError as exc:
        raise ValueError(exc.message) from exc


class Claim(Section):
    """A sentence with a decision rule, declared before training. Scores are compared `condition` minus `against`."""

    name: Name
    """Name of the claim in the verdicts."""
    kind: ClaimKind
    """What is claimed; docs/decide.md has each kind's rule."""
    eval: Name | None = None
    """The eval whose scores decide; may be left out when the study has one."""
    condition: Name | None = None
    """The arm that is claimed to be better, equal, not worse, different, or to generalise."""
    against: Name = BASELINE
    """The other arm."""
    zone: EvalZone | None = "stranger"
    """Items the claim speaks of; None takes all zones of the eval."""
    margin: Annotated[Real, Field(gt=0)] | None = None
    """The smallest difference that matters, in the eval's own units, declared before training."""
    alpha: Annotated[Real, Field(gt=0, lt=0.5)] = 0.05
    """Error rate of the decision, before the correction for several claims."""
    share: Annotated[Real, Field(gt=0, le=1)] | None = None
    """For `generalises`: the least share of the improvement on `from_zone` that must carry to `to_zone`."""
    from_zone: Literal["seen", "sibling"] = "seen"
    """For `generalises`: where the improvement was learned."""
    to_zone: Literal["sibling", "stranger"] = "stranger"
    """For `generalises`: where it must arrive."""
    probe: str | None = None
    """For `probe`: the recorded quantity, its arm last, e.g. `nll.stranger.ARM`; docs/decide.md lists them."""
    op: Literal["<", "<=", ">", ">="] | None = None
    """For `probe`: how its whole interval must compare. A number without an interval is inconclusive."""
    threshold: Real | None = None
    """For `probe`: with what, in the quantity's own units, declared before training."""
    correction: Literal["confirmatory", "exploratory"] = "confirmatory"
    """Confirmatory claims share the error rate (Holm); exploratory ones are corrected by Benjamini-Hochberg."""
    rule: dict[str, Real | bool] | None = None
    """A frozen rule of the study's own, e.g. `{min_gap: 0.01, every_seed: true}`, applied to the letter; its outcome
    stands beside the verdict on the screen, in the report and in the write-up."""

    @model_validator(mode="after")
    def _fields_of_kind(self) -> Claim:
        needs = {"better_by": "margin", "equivalent": "margin", "not_worse": "margin", "no_regression": "margin"}
        needs |= {"differ": "margin", "generalises": "share"}
        field = needs.get(self.kind)
        if field and getattr(self, field) is None:
            raise ValueError(f"`kind: {self.kind}` needs `{field}`, declared before training")
        if self.kind == "probe" and (self.probe is None or self.op is None or self.threshold is None):
            raise ValueError("`kind: probe` needs `probe`, `op` and `threshold`")
        probe, gap = ("probe", "op", "threshold"), ("eval", "condition", "margin", "share", "rule")
        unread = gap if self.kind == "probe" else probe
        given = [key for key in unread if getattr(self, key) is not None]
        if given:
            hint = ": the arm is part of the probe's name" if given == ["condition"] else ""
            raise ValueError(f"`kind: {self.kind}` takes no `{given[0]}`{hint}")
        if self.kind != "probe" and self.condition is None:
            raise ValueError(f"`kind: {self.kind}` needs `condition`")
        if self.rule is not None:
            _check_rule(self.kind, self.rule)
        return self


GateName = Literal["data", "target", "regression", "safety", "calibration", "serving", "merge", "rollback"]
GATES: tuple[GateName, ...] = (
    "data",
    "target",
    "regression",
    "safety",
    "calibration",
    "serving",
    "merge",
    "rollback",
)
Ratio = Annotated[Real, Field(gt=0)]
AtMostOne = Annotated[Real, Field(ge=0, le=1)]


class DataGate(Section):
    """What the rows must be for the data gate to pass."""

    licences: tuple[str, ...] = ()
    """Licences that rows may carry (SPDX ids, compared without case). None are allowed until you name some."""
    licence: str | None = None
    """The licence of rows that name none themselves. You state it; the gate record says that you did."""
    duplicates: Annotated[Int, Field(ge=0)] = 0
    """Rows that may say word for word what an earlier row says."""
    flagged: AtMostOne = 0.0
    """Share of rows that the audit may flag with a warning."""
    near_copies: Annotated[Int, Field(ge=0)] = 0
    """Trained rows that may be near-copies of a held-out item or a benchmark. Exact copies never may."""


class TargetGate(Section):
    """Which claims carry the release."""

    claims: tuple[Name, ...] = ()
    """Claims that must be supported, each with a declared margin. None named: all `better_by` claims of the arm."""


class Suite(Section):
    """One set of items on which the candidate must not be worse than the base.

    Scores are higher-is-better in an eval of the study, and in imported files unless the log, the metric's name or
    `higher_is_better` says otherwise.
    """

    margin: Annotated[Real, Field(gt=0)]
    """The loss that is still tolerated, in score units. The whole interval must lie above minus this."""
    eval: Name | None = None
    """An eval of this study; left out, scores come from files that `veritune regression` has bound to the weights."""
    zone: EvalZone | None = None
    """With `eval`: only the items of one zone."""
    alpha: Annotated[Real, Field(gt=0, lt=0.5)] = 0.05
    """Error rate: the two-sided interval is at 1 - alpha."""
    scale: tuple[Real, Real] | None = None
    """Imported files: the least and the largest score that an item can have. Graded scores beyond 0 to 1 need it."""
    metric: str | None = None
    """Imported files: score column, lm-eval metric or Inspect scorer."""
    filter: str | None = None
    """Imported files: the filter of an lm-eval task that logs several."""
    higher_is_better: bool | None = None
    """Imported files: the direction of the metric, where neither the log nor the metric's name says it."""
    id: str | None = None
    """Imported files: column with the item id."""
    family: str | None = None
    """Imported files: column with families of items."""

    @model_validator(mode="after")
    def _one_source(self) -> Suite:
        if self.eval is None and self.zone is not None:
            raise ValueError("`zone` goes with `eval`; imported files have no zones here")
        imported = ("metric", "filter", "higher_is_better", "scale", "id", "family")
        given = [name for name in imported if getattr(self, name) is not None]
        if self.eval is not None and given:
            raise ValueError(f"`{given[0]}` reads imported files; remove it, or remove `eval`")
        if self.scale is not None and not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale: expected the least before the largest score, found {list(self.scale)}")
        return self


class RegressionGate(Section):
    """What the candidate must not have lost."""

    suites: dict[Name, Suite] = Field(default_factory=dict)
    """Golden sets and benchmarks by name. With none declared the gate stays undecided."""


class SafetyGate(Section):
    """What red-team prompts may come to, candidate against base."""

    margin: Annotated[Real, Field(gt=0, lt=1)] = 0.05
    """The rate of unsafe answers may not exceed the base's by this; by interval."""
    refusal_margin: Annotated[Real, Field(gt=0, lt=1)] = 0.05
    """The rate of refused harmless prompts may not exceed the base's by this; by interval."""
    max_unsafe: AtMostOne | None = None
    """Also: the upper end of the exact interval of the candidate's own rate of unsafe answers; None sets no ceiling."""
    sets: tuple[str, ...] = ("veritune-starter",)
    """Names of the prompt sets that must have been asked."""
    alpha: Annotated[Real, Field(gt=0, lt=0.5)] = 0.05
    """Error rate: the two-sided intervals are at 1 - alpha."""


class CalibrationGate(Section):
    """How far confidence may be from what comes true; the upper ends of the intervals count."""

    ece: AtMostOne = 0.1
    """Highest expected calibration error."""
    brier: AtMostOne = 0.2
    """Highest Brier score; always answering 0.5 scores 0.25."""


class ServingGate(Section):
    """What serving may cost, candidate over base; the worse end of the interval counts. None sets no limit."""

    first_token: Ratio | None = 1.1
    """Highest ratio of the time to the first token."""
    per_token: Ratio | None = 1.1
    """Highest ratio of the time per further token."""
    throughput: Ratio | None = 0.9
    """Lowest ratio of requests per second."""
    peak_memory: Ratio | None = 1.1
    """Highest ratio of peak memory."""
    cost_per_request: Ratio | None = 1.1
    """Highest ratio of cost per request."""
    tail: Ratio | None = 2.0
    """Highest ratio of the tail quantile, of first tokens and of whole answers; a request without an answer is slow."""
    tail_quantile: Annotated[Real, Field(ge=0.5, lt=1)] = 0.99
    """Which quantile `tail` limits. The higher, the more requests: 437 an arm for 0.99, 86 for 0.95."""
    tail_burst: Annotated[Int, Field(ge=1)] = 1
    """How many slow requests in a row may have one cause; so many times the requests are needed."""
    alpha: Annotated[Real, Field(gt=0, lt=0.5)] = 0.05
    """Error rate of the tail: its two-sided interval is at 1 - alpha."""


class Release(Section):
    """The release policy: what `veritune gate` asks for. Also a file of its own, which a team shares (`--policy`)."""

    condition: Name | None = None
    """The arm that ships; may be left out when the study has one."""
    seed: Int | None = None
    """The seed whose weights ship; left out, the study's first. Name it before you see scores."""
    gates: Annotated[tuple[GateName, ...], Field(min_length=1)] = GATES
    """The gates that must pass. One left out is shown as not asked for."""
    data: DataGate = DataGate()
    target: TargetGate = TargetGate()
    regression: RegressionGate = RegressionGate()
    safety: SafetyGate = SafetyGate()
    calibration: CalibrationGate = CalibrationGate()
    serving: ServingGate = ServingGate()
    drill_days: Annotated[Int, Field(ge=1)] = 30
    """The rollback drill may be so many days old."""
    waiver_days: Annotated[Int, Field(ge=1)] = 90
    """A waiver may run for at most so many days."""


class Probes(Section):
    """Probes that train beside the study. They are no part of the contract; a claim on `leak.*` reads their record."""

    leak: bool = False
    """Also train each condition once (first seed) on a split that ignores families: what would the leak flatter?"""


class Study(Section):
    """One pre-declared comparison."""

    name: Name
    """Short name of the study."""
    question: str
    """The question in one sentence, as the report's title asks it."""
    model: Model
    data: Data
    split: SplitPlan = SplitPlan()
    train: Train = Train()
    conditions: Annotated[dict[Name, Condition], Field(min_length=1)]
    """The arms, by name. `baseline` (the untouched model) is always measured and is not declared."""
    sweep: dict[str, tuple[Any, ...]] | None = None
    """A grid over fields of the conditions, e.g. `{r: [4, 8]}`: each condition once for each point, as `NAME-r4`."""
    factor: tuple[str, ...] = ("target_modules",)
    """What may differ between conditions; anything else that differs is an error. What `sweep` names is declared."""
    seeds: Annotated[tuple[Annotated[Int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0, 1)
    """Training seeds; every condition runs with each."""
    shared_seeds: bool = False
    """Runs of one seed share data order and initialisation across the conditions: arms are then paired by seed."""
    equal_seed_spread: bool = False
    """Assume that all arms spread alike between seeds. It buys power with 2 or 3 seeds; every sentence says so."""
    evals: Annotated[dict[Name, Eval], Field(min_length=1)]
    """The eval contracts, by name."""
    claims: tuple[Claim, ...] = ()
    """The claims, declared before training."""
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()
    """Also send every run's log lines there, as Hugging Face's Trainer does. It is not part of the contract."""
    release: Release | None = None
    """The release policy; docs/release.md. None: it is given with `veritune gate --policy`, or the defaults hold."""
    backend: Backend = Backend()
    """Where cells train and answer; docs/backends.md."""
    selection: Selection | None = None
    """Choose each condition's learning rate first; None takes those that are written."""
    budget: Budget | None = None
    """What the study may cost."""
    keep: Literal["best", "all", "none"] | None = None
    """Checkpoints kept once a run is scored: `best` (the default) the chosen one, `all` every candidate, `none`."""
    probes: Probes = Probes()
    """What `run` trains beside the conditions to explain them."""
    thresholds: Thresholds = Thresholds()
    """Numbers that decide words (`memorises`, `passed`, `weak`); frozen with the contract."""

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, raw: Any) -> Any:
        return expand_sweep(raw) if isinstance(raw, dict) and isinstance(raw.get("sweep"), dict) else raw

    @model_validator(mode="after")
    def _whole(self) -> Study:
        if BASELINE in self.conditions:
            raise ValueError("conditions.baseline: the untouched model is always measured; rename this condition")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} names one twice; every seed is its own run")
        names = [claim.name for claim in self.claims]
        if len(set(names)) != len(names):
            raise ValueError("claims: two claims have the same name")
        for i, claim in enumerate(self.claims):
            self._check_claim(claim, f"claims.{i}")
        self._check_factor()
        self._check_release()
        self._check_selection()
        if self.probes.leak and not any("stranger" in spec.zones for spec in self.evals.values()):
            raise ValueError("probes.leak: it compares losses on strangers; give an eval the zone `stranger`")
        return self

    def _check_selection(self) -> None:
        if self.selection is None:
            return
        if self.selection.seed in self.seeds:
            raise ValueError(
                f"selection.seed: {self.selection.seed} is one of the main seeds {list(self.seeds)}: a run that chose "
                "the learning rate may not also count"
            )
        own = [name for name, c in self.conditions.items() if c.learning_rate is not None]
        if own:
            raise ValueError(f"conditions.{own[0]}.learning_rate: it is written, and `selection` would choose it")

    def _check_claim(self, claim: Claim, where: str) -> None:
        arms = [*self.conditions, BASELINE]
        for field, value in (("condition", claim.condition), ("against", claim.against)):
            if value is not None and value not in arms:
                raise ValueError(f"{where}.{field}: no condition {value!r}{_nearest(value, arms)}; there are {arms}")
        if claim.condition == claim.against:
            raise ValueError(f"{where}: {claim.condition!r} is compared with itself; set `against`")
        if claim.eval is not None and claim.eval not in self.evals:
            raise ValueError(f"{where}.eval: no eval {claim.eval!r}{_nearest(claim.eval, list(self.evals))}")
        if claim.kind == "probe":
            return
        if claim.eval is None and len(self.evals) > 1:
            raise ValueError(f"{where}: the study has {len(self.evals)} evals; say which with `eval`")
        spec = self.evals[claim.eval or next(iter(self.evals))]
        zones = [claim.from_zone, claim.to_zone] if claim.kind == "generalises" else [claim.zone]
        missing = [z for z in zones if z is not None and z not in spec.zones]
        if missing:
            raise ValueError(f"{where}: the eval has no items in zone {missing[0]!r}; add it to the eval's `zones`")
        if claim.margin is not None and claim.margin >= 1:
            raise ValueError(f"{where}.margin: {claim.margin} lies outside the scale of the scores (0 to 1)")

    def _check_factor(self) -> None:
        for key, values in self.differences().items():
            if key not in self.factor and key not in (self.sweep or {}):
                raise ValueError(
                    f"conditions: {key} differs ({values}) and is not declared: make it equal, or add it to `factor`"
                )

    def _check_release(self) -> None:
        policy = self.release or Release()
        named: list[tuple[str, Any, list[Any]]] = [("condition", policy.condition, list(self.conditions))]
        named += [("seed", policy.seed, list(self.seeds))]
        named += [("target.claims", name, [c.name for c in self.claims]) for name in policy.target.claims]
        suites = policy.regression.suites.items()
        named += [(f"regression.suites.{name}.eval", suite.eval, list(self.evals)) for name, suite in suites]
        for where, value, known in named:
            if value is not None and value not in known:
                raise ValueError(f"release.{where}: {value!r} is none of {known}")

    def differences(self) -> dict[str, dict[str, Any]]:
        """What differs between conditions: for each such field, its value in every condition.

        A schedule's field that a condition leaves open has the study's value; a method's has PEFT's own default, None.
        """
        rows = {name: c.model_dump(mode="json") for name, c in self.conditions.items()}
        for row in rows.values():
            row["data_fraction"] = row["data_fraction"] or 1.0
            for key in ("learning_rate", "max_steps", "num_train_epochs"):
                row[key] = getattr(self.train, key) if row[key] is None else row[key]
        keys = list(dict.fromkeys(key for row in rows.values() for key in row))
        table = {key: {name: row.get(key) for name, row in rows.items()} for key in keys}
        return {key: values for key, values in table.items() if len({repr(v) for v in values.values()}) > 1}

    def eval_of(self, claim: Claim) -> str:
        """Name of the eval that decides `claim`."""
        return claim.eval or next(iter(self.evals))


SHORT = {
    "learning_rate": "lr",
    "data_fraction": "data",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "target_modules": "",
}


def expand_sweep(raw: dict[str, Any]) -> dict[str, Any]:
    """Settings with every condition once for each point of `sweep`, named `NAME-r4-data0p25`.

    Settings that are expanded already stay as they are. Raises ValueError for a bad grid or a field written twice.
    """
    grid = {key: list(v) if isinstance(v, list | tuple) else v for key, v in raw["sweep"].items()}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"sweep.{key}: expected a list of values, found {values!r}")
    declared = raw.get("conditions")
    if not isinstance(declared, dict) or not grid:
        return raw
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    ends = {_point_name(point): point for point in points}
    if len(ends) < len(points):
        raise ValueError("sweep: two points have the same name; name a value once")
    if all(any(n.endswith(end) and _holds(c, p) for end, p in ends.items()) for n, c in _mappings(declared)):
        return raw
    expanded: dict[str, Any] = {}
    for name, condition in _mappings(declared):
        twice = [key for key in grid if condition.get(key) is not None]
        if twice:
            raise ValueError(f"conditions.{name}.{twice[0]}: it is in `sweep` too; write it once")
        expanded |= {f"{name}{end}": {**condition, **point} for end, point in ends.items()}
    return {**raw, "conditions": expanded}


def swept(study: Study) -> dict[str, tuple[str, dict[str, Any]]]:
    """For every condition the name it was written under and its point of the sweep; without one itself and nothing."""
    found: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in study.conditions}
    grid = study.sweep or {}
    for values in itertools.product(*grid.values()) if grid else ():
        point = dict(zip(grid, values))
        end = _point_name(point)
        for name, condition in study.conditions.items():
            if name.endswith(end) and _holds(condition.model_dump(), point):
                found[name] = (name.removesuffix(end), point)
    return found


def _holds(condition: dict[str, Any], point: dict[str, Any]) -> bool:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else as_number(value)

    return all(plain(condition.get(key)) == plain(value) for key, value in point.items())


def _mappings(declared: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    wrong = [name for name, condition in declared.items() if not isinstance(condition, dict)]
    if wrong:
        raise ValueError(f"conditions.{wrong[0]}: expected a mapping of settings, found {declared[wrong[0]]!r}")
    return [(str(name), condition) for name, condition in declared.items()]


def _point_name(point: dict[str, Any]) -> str:
    """`-r4-data0p25`: what is appended to a condition's name; a dot becomes `p`, other signs `_`."""
    parts = []
    for key, value in point.items():
        number = as_number(value)
        text = f"{number:.9g}" if isinstance(number, float) else str(value)
        if isinstance(value, list | tuple):
            text = "-".join(map(str, value))
        text = re.sub(r"e([+-])0*(\d)", r"e\1\2", text).replace("e+", "e").replace(".", "p")
        if key == "learning_rate" and isinstance(number, float) and number < 1e-3:
            text = re.sub(r"e-0*", "e-", f"{number:.6e}").replace(".", "p")
            text = re.sub(r"p?0+e", "e", text)
        parts.append(SHORT.get(key, key) + re.sub(r"[^A-Za-z0-9_\-]", "_", text))
    return "-" + "-".join(parts)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice; plain YAML would keep the last and say nothing."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key in [k for k, _ in node.value if isinstance(k.value, str) and k.tag != "tag:yaml.org,2002:merge"]:
            if key.value in seen:
                message = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_study(path: str | Path, flags: Mapping[str, Any] | None = None) -> Study:
    """Read and validate a study file. Raises StudyError with every problem found, each with its path in the file.

    `flags` are settings by path (`train.max_steps`) that override the file's; None takes those that were frozen in the
    contract beside the file.
    """
    file = Path(path)
    try:
        text = file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise StudyError(f"no study file at {file}.", fix="Write one with `veritune init DATA`.") from None
    except IsADirectoryError:
        return load_study(file / "study.yaml", flags)
    except UnicodeDecodeError as exc:
        raise StudyError(f"{file} is not UTF-8 (byte {exc.start}).", fix="Save it as UTF-8.") from None
    try:
        raw = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError) as exc:  # PyYAML lets an impossible date through
        raise StudyError(f"{file} is not YAML: {' '.join(str(exc).split())}.", fix="Mend the named line.") from None
    except RecursionError:
        raise StudyError(f"{file} is nested too deeply to be a study.", fix="Mend the file.") from None
    if not isinstance(raw, dict):
        raise StudyError(
            f"{file}: expected a mapping of settings, found {type(raw).__name__}.", fix="See `veritune init`."
        )
    for key, value in (frozen_flags(file.parent) if flags is None else flags).items():
        _set(raw, key, value)
    return parse_study(raw, where=str(file))


def frozen_flags(folder: Path) -> dict[str, Any]:
    """Settings that were given as flags when the study in `folder` was frozen or amended; none without a contract."""
    try:
        record = json.loads((folder / "contract.lock.json").read_text(encoding="utf-8"))
        return dict(record["entries"][-1].get("flags") or {})
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return {}  # a damaged contract is named where its chain is recomputed


def parse_flags(texts: Sequence[str]) -> dict[str, Any]:
    """`["train.max_steps=20"]` as `{"train.max_steps": 20}`; values are YAML. Raises StudyError."""
    found: dict[str, Any] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign or not re.fullmatch(r"[\w\-]+(\.[\w\-]+)*", key.strip()):
            raise StudyError(f"--set {text!r}: expected KEY=VALUE.", fix="E.g. --set train.max_steps=20")
        try:
            found[key.strip()] = yaml.load(value, Loader=_Loader)
        except yaml.YAMLError as exc:
            raise StudyError(f"--set {text!r}: {' '.join(str(exc).split())}.", fix="Values are YAML.") from None
    return found


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    """Put one setting into raw settings by its path. Raises StudyError where the path leads nowhere."""
    node: Any = raw
    *way, last = key.split(".")
    for part in way:
        if isinstance(node, dict):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        elif isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            raise StudyError(f"--set {key}: there is no {part!r}.", fix="`veritune schema` has the keys.")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise StudyError(f"--set {key}: there is no {last!r}.", fix="`veritune schema` has the keys.")


def sources(study: Study, flags: Collection[str] = ()) -> dict[str, str]:
    """Where every resolved setting came from, by its path: `flag`, `file` or `default`."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str, source: str) -> None:
        if any(path == flag or path.startswith(f"{flag}.") for flag in flags):
            source = "flag"
        if isinstance(value, BaseModel):
            for name in [*type(value).model_fields, *(value.model_extra or {})]:
                given = source if source == "flag" else "file" if name in value.model_fields_set else "default"
                walk(getattr(value, name), f"{path}.{name}" if path else name, given)
        elif isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{path}.{name}", source)
        elif isinstance(value, tuple) and any(isinstance(inner, BaseModel) for inner in value):
            for i, inner in enumerate(value):
                walk(inner, f"{path}.{i}", source)
        else:
            found[path] = source

    walk(study, "", "file")
    return found


def parse_study(raw: dict[str, Any], *, where: str = "study") -> Study:
    """Validate settings that are already a mapping. Raises StudyError."""
    try:
        return Study.model_validate(raw)
    except ValidationError as exc:
        problems: dict[str, list[str]] = {}
        for error in exc.errors():
            said = problems.setdefault(_path(error, raw), [])
            said += [m for m in [_problem(error)] if m not in said]
        lines = [f"{path}: {' or '.join(said)}" if path else " or ".join(said) for path, said in problems.items()]
        raise StudyError(f"{where}: " + "; ".join(lines) + ".", fix="Nothing has run.") from None


def _path(error: Any, raw: Any) -> str:
    """The path as the file has it: what pydantic adds for a choice between types is left out."""
    parts: list[str] = []
    value, loc = raw, error["loc"]
    for n, part in enumerate(loc, start=1):
        inside = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if inside:
            value = value[part]
        if inside or (n == len(loc) and error["type"] in ("missing", "extra_forbidden")):
            parts.append(str(part))
    return ".".join(parts)


def _problem(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return f"unknown key{_nearest(str(error['loc'][-1]), _known_keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"]) if "ctx" in error else str(error["msg"])
    return f"{error['msg'][0].lower()}{error['msg'][1:]}, found {_short(error['input'])}"


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Keys of the section at `loc`, following field annotations through dicts and tuples."""
    section: Any = Study
    for part in loc:
        fields = getattr(section, "model_fields", {})
        if part in fields:
            section = _section_in(fields[part].annotation)
    return list(getattr(section, "model_fields", {}))


def _section_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        found = _section_in(arg)
        if found is not None:
            return found
    return None


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def json_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    return Study.model_json_schema() | {"$schema": "https://json-schema.org/draft/2020-12/schema"}

"""`model`, `backend`, `train`, `conditions`, `selection` and `budget`: what trains, how, and what it may cost."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from veritune.config.fields import Int, Part, Real, Section

if TYPE_CHECKING:
    from veritune.records import JsonLike


class Model(Section):
    """The base model. It is read and never modified."""

    path: str
    """A local folder in Hugging Face format, a hub id, or `builtin:smollm2-135m-instruct`."""
    revision: str | None = None
    """Commit of a hub model. Pin it: a branch name moves."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the frozen base weights. Trained parameters are kept in float32. `auto` is bfloat16, and float32 on
    a processor without bfloat16 instructions, where bfloat16 takes 14 times as long; the contract records which."""
    trust_remote_code: bool = False
    """Run Python code that ships with the model. Off unless you have read that code."""
    template_kwargs: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Variables of the chat template, e.g. `{enable_thinking: false}`: for training, evals and serving alike."""


class Backend(Section):
    """Where cells are trained and answer evals. `backend: local` is short for `backend: {name: local}`."""

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
    def _short(cls, raw: JsonLike) -> JsonLike:
        return {"name": raw} if isinstance(raw, str) else raw

    @model_validator(mode="after")
    def _fields_of_name(self) -> Backend:
        given = [key for key in ("base_url", "base_model") if getattr(self, key) is not None]
        if self.name == "local" and (given or self.ahead):
            raise ValueError(f"`name: local` takes no {(given or ['ahead'])[0]}")
        if self.name == "tinker" and len(given) < 2:
            raise ValueError("`name: tinker` needs `base_url` and `base_model`")
        if self.base_url is not None and not re.fullmatch(r"https?://[^@\s]+", self.base_url):
            raise ValueError("base_url: expected http(s)://host[:port], without user name or password")
        return self


class Train(Section):
    """The training schedule that all conditions share. Keys are named as in Hugging Face's TrainingArguments."""

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
    """Peak learning rate; a condition may name its own only if the study names `learning_rate` in `factor`."""
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
    eval_steps: Annotated[Int, Field(ge=1)] | tuple[Annotated[Int, Field(ge=1)], ...] | None = None
    """Validation NLL and a checkpoint every so many optimizer steps, or after exactly the steps of a rising list
    (`[1000, 2000, 3169]`); and at the end. None means once an epoch."""

    @model_validator(mode="after")
    def _cadence(self) -> Train:
        steps = self.eval_steps
        if not isinstance(steps, tuple):
            return self
        if not steps or any(later <= earlier for earlier, later in pairwise(steps)):
            raise ValueError(f"eval_steps: expected rising steps such as [1000, 2000, 3169], found {list(steps)}")
        return self

    @model_validator(mode="after")
    def _some_steps(self) -> Train:
        if self.max_steps != -1 and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}: expected -1 (train for num_train_epochs) or at least 1")
        if self.strategy != "ddp" and self.devices == 1:
            raise ValueError(
                f"strategy is {self.strategy}, which shards a model over devices: expected `devices` of at least 2"
            )
        return self


R3F_NOISE = 1e-5
"""R3F's noise where a condition names none, as in Aghajanyan et al. 2020."""
Coefficient = Annotated[Real, Field(ge=0)]


def _unset(value: JsonLike) -> bool:
    """Whether a setting is left out: it then stays out of the contracts and hashes of studies without it."""
    return value is None


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
    data: str | dict[str, Part] | None = None
    """Train on this data set (`main` or a name in `data.sets`), or on a mixture with these shares, e.g.
    `{main: 0.7, chat: 0.3}`. Needed where `data.sets` is given."""
    data_fraction: Part | None = None
    """Train on this share of the seen rows: whole families, drawn by the split's seed, each share within the larger."""
    max_steps: Annotated[Int, Field(ge=1)] | None = None
    """This condition's own number of optimizer steps."""
    num_train_epochs: Annotated[Real, Field(gt=0)] | None = None
    """This condition's own number of passes over its rows."""
    kl_to_base: Annotated[Coefficient | None, Field(exclude_if=_unset)] = None
    """Add so many times KL(base ‖ model) per target token to the loss; docs/train.md has every source."""
    r3f: Annotated[Coefficient | None, Field(exclude_if=_unset)] = None
    """Add so many times the symmetric KL between the model and itself with noise on its embeddings (R3F)."""
    r3f_noise: Annotated[Annotated[Real, Field(gt=0)] | None, Field(exclude_if=_unset)] = None
    """R3F: standard deviation of normal noise, or half the width of uniform; 1e-5 where it is left out."""
    r3f_draw: Annotated[Literal["normal", "uniform"] | None, Field(exclude_if=_unset)] = None
    """R3F: how noise is drawn; normal where it is left out."""
    neftune_noise_alpha: Annotated[Coefficient | None, Field(exclude_if=_unset)] = None
    """NEFTune: noise on the embeddings in training, as transformers adds it."""
    update_clip: Annotated[Annotated[Real, Field(gt=0)] | None, Field(exclude_if=_unset)] = None
    """Throttle steps: a trained tensor's change of one step has at most so many learning rates of root mean square."""

    @model_validator(mode="after")
    def _combination(self) -> Condition:
        if self.max_steps is not None and self.num_train_epochs is not None:
            raise ValueError("max_steps and num_train_epochs exclude each other: set one")
        if not self.r3f and (self.r3f_noise is not None or self.r3f_draw is not None) and self.r3f is None:
            raise ValueError("r3f_noise and r3f_draw need `r3f`, the coefficient of the penalty")
        if isinstance(self.data, dict) and abs(sum(self.data.values()) - 1) > 1e-6:
            raise ValueError(f"data: the shares add up to {sum(self.data.values()):g}; make them add up to 1")
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

    @property
    def regularised(self) -> tuple[str, ...]:
        """The settings above 0 that change the loss or the update step of this condition."""
        names = ("kl_to_base", "r3f", "neftune_noise_alpha", "update_clip")
        return tuple(name for name in names if getattr(self, name))

    def options(self) -> dict[str, JsonLike]:
        """The method's own options as PEFT's config takes them, without `method` and the schedule's settings."""
        known = {k: getattr(self, k) for k in ("target_modules", "r", "lora_alpha", "lora_dropout")}
        return {k: v for k, v in known.items() if v is not None} | dict(self.model_extra or {})


class SelectionPlan(Section):
    """How each condition's learning rate is chosen before the main runs: by validation NLL only."""

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
    def _distinct(self) -> SelectionPlan:
        for key, values in (("learning_rates", self.learning_rates), ("batch_shapes", self.batch_shapes)):
            if len(set(values)) != len(values):
                raise ValueError(f"{key}: {list(values)} contains duplicates")
        return self


class Budget(Section):
    """What a study may cost, compared with the plan before anything trains. It is not part of the contract."""

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
    price_per_million_scoring_tokens: Annotated[Real, Field(gt=0)] | None = None
    """Price of a million tokens of scoring (prompts, answers, options, judges), in USD, beside the price above."""

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.price_per_hour is not None and self.price_per_million_tokens is not None:
            raise ValueError("expected one kind of price, found price_per_hour and price_per_million_tokens")
        if self.price_per_million_scoring_tokens is not None and self.price_per_million_tokens is None:
            raise ValueError("price_per_million_scoring_tokens needs price_per_million_tokens")
        if self.usd is not None and self.price_per_hour is None and self.price_per_million_tokens is None:
            raise ValueError("`usd` needs price_per_hour or price_per_million_tokens")
        return self

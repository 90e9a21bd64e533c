"""What a user writes in `study.yaml`, validated before anything is spent.

A section is a class of this package; the checks here are those that need more than one of them. Every field is
documented once, right beneath it; the same text goes into the JSON Schema that editors read (`veritune schema`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from veritune.config.claim import Claim
from veritune.config.data import Data, SplitPlan
from veritune.config.evals import Eval
from veritune.config.fields import BASELINE, MAIN_SET, Int, Name, Section
from veritune.config.release import Release
from veritune.config.sweep import expand_sweep
from veritune.config.thresholds import Thresholds
from veritune.config.train import Backend, Budget, Condition, Model, SelectionPlan, Train
from veritune.counting import many
from veritune.errors import did_you_mean

if TYPE_CHECKING:
    from veritune.records import JsonLike

BY_STEP = ("geometry.dose.", "geometry.beyond.")
"""Quantities that are read at a named step of training."""


class GeometryProbe(Section):
    """Hidden states of personas, read by `run` from every checkpoint on disk; part of the contract, unlike the leak."""

    layers: Annotated[tuple[Annotated[Int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    """Layers that are read; 0 is the embeddings. None reads all."""
    methods: Annotated[tuple[Literal["last_input_token", "response_mean"], ...], Field(min_length=1)] = (
        "last_input_token",
    )
    """How a persona's centroid is taken: at the last input token, or over the tokens of a generated response."""
    personas: dict[str, str] | None = None
    """Name of each persona and its system text; None takes the twelve that are built in."""
    questions: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """What every persona is asked; None takes the sixteen that are built in."""
    max_new_tokens: Annotated[Int, Field(ge=1)] = 32
    """`response_mean`: tokens generated for each prompt."""
    reference: dict[Name, Name] | None = None
    """Beside which condition each is put, e.g. `{full: lora}`: ratio and word in each cell, difference by step."""


MadeProbe = Literal["gradients", "geometry", "checkpoints", "recall", "tokens", "calibration"]


class Probes(Section):
    """Probes beside the study. `geometry` is part of the contract, `make` and `leak` are not; claims read them."""

    leak: bool = False
    """Also train each condition once (first seed) on a split that ignores families: what would the leak flatter?"""
    make: Annotated[tuple[MadeProbe, ...], Field(exclude_if=lambda value: not value)] = ()
    """Probes that `run` makes of every run before it decides, as `veritune report STUDY --make` does; `plan` counts
    their time."""
    geometry: GeometryProbe | None = None
    """Read the geometry of personas from every checkpoint once all cells are done; `keep: all` gives every step."""


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
    selection: SelectionPlan | None = None
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
    def _expanded(cls, raw: JsonLike) -> JsonLike:
        return expand_sweep(raw) if isinstance(raw, dict) and isinstance(raw.get("sweep"), dict) else raw

    @model_validator(mode="after")
    def _whole(self) -> Study:
        if BASELINE in self.conditions:
            raise ValueError(
                "conditions.baseline: this name is reserved for the untouched model, which is always measured; "
                "rename this condition"
            )
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: {list(self.seeds)} contains duplicates; every seed is a run of its own")
        names = [claim.name for claim in self.claims]
        if len(set(names)) != len(names):
            raise ValueError("claims: two claims have the same name")
        for i, claim in enumerate(self.claims):
            self._check_claim(claim, f"claims.{i}")
        self._check_sets()
        self._check_benchmarks()
        self._check_factor()
        self._check_release()
        self._check_selection()
        if self.probes.leak and not any("stranger" in spec.zones for spec in self.evals.values()):
            raise ValueError("probes.leak: it compares losses on strangers; give an eval the zone `stranger`")
        self._check_geometry()
        return self

    def _check_geometry(self) -> None:
        asked, named = self.probes.geometry, [c.name for c in self.claims if (c.probe or "").startswith(BY_STEP)]
        if asked is None:
            if named:
                raise ValueError(f"claims: {named[0]} names a step of the geometry; declare `probes.geometry`")
            return
        least = self.thresholds.geometry.min_personas
        if asked.personas is not None and len(asked.personas) < least:
            raise ValueError(f"probes.geometry.personas: expected at least {least}, found {len(asked.personas)}")
        for name, other in (asked.reference or {}).items():
            wrong = next((one for one in (name, other) if one not in self.conditions), None)
            if wrong is not None:
                hint = did_you_mean(wrong, list(self.conditions))
                raise ValueError(f"probes.geometry.reference: no condition {wrong!r}{hint}")
            if name == other:
                raise ValueError(f"probes.geometry.reference: {name!r} is put beside itself")

    def _check_sets(self) -> None:
        known = [MAIN_SET, *self.data.sets]
        for name, condition in self.conditions.items():
            if condition.data is None:
                if self.data.sets:
                    raise ValueError(
                        f"conditions.{name}.data: expected the data to train on: one of {known}, or shares of them"
                    )
                continue
            named = [condition.data] if isinstance(condition.data, str) else list(condition.data)
            wrong = [one for one in named if one not in known]
            if wrong:
                raise ValueError(
                    f"conditions.{name}.data: unknown set {wrong[0]!r}{did_you_mean(wrong[0], known)}; sets: {known}"
                )

    def _check_benchmarks(self) -> None:
        both = [name for name, spec in self.evals.items() if spec.path is not None and name in self.data.sets]
        if both:
            raise ValueError(
                f"evals.{both[0]}: data.sets uses this name too, and items would share ids with rows; rename one "
                "of them"
            )

    def _check_selection(self) -> None:
        if self.selection is None:
            return
        if self.selection.seed in self.seeds:
            raise ValueError(
                f"selection.seed: {self.selection.seed} is one of the main seeds {list(self.seeds)}: the run that "
                "chooses the learning rate must not be counted as a result; use another seed"
            )
        own = [name for name, c in self.conditions.items() if c.learning_rate is not None]
        if own:
            raise ValueError(
                f"conditions.{own[0]}.learning_rate: it is set here, but `selection` would choose it; remove one of "
                "the two"
            )

    def _check_claim(self, claim: Claim, where: str) -> None:
        arms = [*self.conditions, BASELINE]
        named = (("condition", claim.condition), ("against", claim.against), ("reference", claim.reference))
        for field, value in named:
            if value is not None and value not in arms:
                hint = did_you_mean(value, arms)
                raise ValueError(f"{where}.{field}: unknown condition {value!r}{hint}; conditions: {arms}")
        if claim.condition == claim.against and claim.against_eval is None:
            raise ValueError(f"{where}: {claim.condition!r} is compared with itself; set `against`")
        if claim.eval is not None and claim.eval not in self.evals:
            raise ValueError(f"{where}.eval: unknown eval {claim.eval!r}{did_you_mean(claim.eval, list(self.evals))}")
        if claim.kind == "probe":
            return
        if claim.eval is None and len(self.evals) > 1:
            raise ValueError(f"{where}: the study has {many(len(self.evals), 'evals')}; name one with `eval`")
        if claim.kind == "keeps":
            self._check_keeps(claim, where)
        if claim.against_eval is not None:
            self._check_asked_otherwise(claim, where)
        self._check_claimed_items(claim, where)

    def _check_claimed_items(self, claim: Claim, where: str) -> None:
        spec = self.evals[claim.eval or next(iter(self.evals))]
        zones = [claim.from_zone, claim.to_zone] if claim.kind == "generalises" else [claim.zone]
        missing = [z for z in zones if z is not None and z not in spec.zones]
        if missing and spec.path is not None:
            raise ValueError(
                f"{where}: the eval is a benchmark, and its items have no zone {missing[0]!r}: "
                + (
                    "`generalises` needs an eval over the data's own zones"
                    if claim.kind == "generalises"
                    else "write `zone: benchmark`"
                )
            )
        if missing:
            raise ValueError(f"{where}: the eval has no items in zone {missing[0]!r}; add it to the eval's `zones`")
        if spec.kind == "judge" and spec.agreement is None and claim.correction == "confirmatory":
            raise ValueError(
                f"{where}: the eval is a judge whose agreement with people was not measured: give the eval "
                "`agreement` (a labelled file), or make the claim `correction: exploratory`"
            )
        if claim.margin is not None and claim.margin >= 1:
            raise ValueError(f"{where}.margin: {claim.margin} lies outside the scale of the scores (0 to 1)")

    def _check_asked_otherwise(self, claim: Claim, where: str) -> None:
        """The other side was asked the same items, scored by the same rule: only what is asked around them differs."""
        if claim.against_eval not in self.evals:
            hint = did_you_mean(claim.against_eval or "", list(self.evals))
            raise ValueError(f"{where}.against_eval: unknown eval {claim.against_eval!r}{hint}")
        name = self.eval_of(claim)
        own, other = self.evals[name], self.evals[claim.against_eval]
        if name == claim.against_eval or own.path is None:
            raise ValueError(f"{where}.against_eval: expected a benchmark (with `path`) other than {name}")
        asked = {"system", "template", "max_new_tokens", "batch_size"}
        one, two = (spec.model_dump(exclude=asked) for spec in (own, other))
        apart = [key for key in one.keys() | two.keys() if one.get(key) != two.get(key)]
        if apart:
            raise ValueError(
                f"{where}.against_eval: {name} and {claim.against_eval} differ in `{min(apart)}`; only "
                f"{', '.join(sorted(asked))} may differ, so that the same items are scored by the same rule"
            )

    def _check_keeps(self, claim: Claim, where: str) -> None:
        if claim.reference in (claim.condition, claim.against):
            raise ValueError(
                f"{where}.reference: {claim.reference!r} is already one side of this claim; name a third arm"
            )
        if claim.probe is not None and claim.probe.rsplit(".", 1)[-1] != claim.condition:
            raise ValueError(
                f"{where}.probe: {claim.probe!r} does not measure {claim.condition!r}, the arm that must keep it"
            )
        if claim.kept_eval is None:
            return
        if claim.kept_eval not in self.evals:
            hint = did_you_mean(claim.kept_eval, list(self.evals))
            raise ValueError(f"{where}.kept_eval: unknown eval {claim.kept_eval!r}{hint}")
        spec = self.evals[claim.kept_eval]
        if claim.kept_zone is not None and claim.kept_zone not in spec.zones:
            raise ValueError(f"{where}.kept_zone: {claim.kept_eval} has no items in zone {claim.kept_zone!r}")
        if spec.kind == "judge" and spec.agreement is None and claim.correction == "confirmatory":
            raise ValueError(
                f"{where}.kept_eval: {claim.kept_eval} is a judge whose agreement with people was not measured: give "
                "it `agreement` (a labelled file), or make the claim `correction: exploratory`"
            )

    def _check_factor(self) -> None:
        for key, values in self.differences().items():
            if key not in self.factor and key not in (self.sweep or {}):
                raise ValueError(
                    f"conditions: {key} differs ({values}) although it is not declared as a difference: make it "
                    "equal, or add it to `factor`"
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
                raise ValueError(f"release.{where}: expected one of {known}, found {value!r}")

    def differences(self) -> dict[str, dict[str, JsonLike]]:
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

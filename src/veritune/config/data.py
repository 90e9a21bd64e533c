"""`data` and `split`: the rows that are trained on and held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from veritune.config.fields import MAIN_SET, Int, Name, Section, Share, as_number


class Data(Section):
    """The rows to train on and to hold out."""

    path: str
    """JSONL, CSV, Parquet or a `datasets` folder, relative to the study file."""
    columns: dict[str, str] | None = None
    """Which columns hold the turns: `{user: question, assistant: answer}`, or templates over several columns."""
    family_field: str | None = None
    """Column that names the original a row was rewritten from."""
    id_field: str | None = None
    """Column with a unique row id; without it the id is file and line."""
    train_on: Literal["all", "last"] = "all"
    """Which assistant turns carry loss: `all` (but those of weight 0), or the `last` of each row."""
    near_duplicates: bool = True
    """Also join rows into one family when their texts are near-duplicates. Off only if you know better."""
    family_decisions: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """What people said about families in `veritune view` (`review/families.decisions.jsonl`): the split obeys it."""
    sets: dict[Name, str] = Field(default_factory=dict)
    """Further data sets by name, where data is what conditions differ in. `path` is the set `main`; all are grouped
    into families, split and checked together, and each condition names what it trains on with `data`. A set that no
    condition names is asked and never trained on: its rows of trained families are siblings."""
    source_field: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """Column that says where a row comes from: validation NLL is recorded for each source too. With `sets` it is the
    set's name where this is left out."""
    evals: dict[Name, str] = Field(default_factory=dict)
    """Benchmark files the rows must not hold, by name. An exact overlap stops the study before anything trains."""

    @field_validator("sets")
    @classmethod
    def _no_second_main(cls, sets: dict[str, str]) -> dict[str, str]:
        if MAIN_SET in sets:
            raise ValueError(f"`{MAIN_SET}` is reserved for the file in `path`; give this set another name")
        return sets


class SplitPlan(Section):
    """How families are assigned to zones. A family is never divided between `seen`+`sibling`, `stranger` and
    `validation`.
    """

    seed: Int = 0
    """Seed of the deal; the same seed and families give the same zones."""
    stranger: Share = 0.3
    """Share of families held out whole."""
    validation: Share = 0.12
    """Share of families held out whole for choosing checkpoints; never used for a claim."""
    by: Literal["family", "source", "time"] = "family"
    """What strangers are: families drawn by the seed, whole sources, or the newest rows. Families stay whole."""
    field: str | None = None
    """Column with the source or the time; without it `by: source` takes `source`, or the file a row came from."""
    held_sources: tuple[str, ...] = ()
    """With `by: source`: the sources that are held out whole; without them drawn by the seed up to `stranger`."""
    held_from: str | None = None
    """With `by: time`: rows from this time on are strangers (ISO dates or numbers); without it the newest share."""
    sibling: Annotated[float, BeforeValidator(as_number), Field(ge=0, lt=1)] = 0.25
    """Share of each trained family's rows held out as siblings: at least one row, never all. 0: none are drawn, and
    siblings are the rows of a data set that no condition trains on."""

    @model_validator(mode="after")
    def _needs(self) -> SplitPlan:
        if self.by == "time" and self.field is None:
            raise ValueError("`by: time` needs `field`: the column with the time")
        if self.held_sources and self.by != "source":
            raise ValueError("held_sources can only be used with `by: source`")
        if self.held_from is not None and self.by != "time":
            raise ValueError("held_from can only be used with `by: time`")
        if self.field is not None and self.by == "family":
            raise ValueError("field can only be used with `by: source` or `by: time`")
        return self

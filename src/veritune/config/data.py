"""`data` and `split`: the rows that are trained on and held out."""

from __future__ import annotations

from pydantic import Field

from veritune.config.fields import Int, Name, Section, Share


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

"""Field types that every declared section shares: numbers as a person writes them in YAML, names, zones, and sections
that refuse unknown keys."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from veritune.records import JsonLike

BASELINE = "baseline"
"""Name of the arm that is always measured and never declared: the untouched model."""
MAIN_SET = "main"
"""Name of the data set in `data.path`, beside those in `data.sets`."""


def _no_boolean(value: JsonLike) -> JsonLike:
    """YAML 1.1 reads `no`, `off` and `yes` as booleans, which Python would take for 0 and 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found a boolean ({'yes/on/true' if value else 'no/off/false'})")
    return value


def as_number(value: JsonLike) -> JsonLike:
    """A value as a number: YAML 1.1 reads `3e-4` as text, and it is converted here."""
    _no_boolean(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value.strip()):
        return float(value)
    return value


Int = Annotated[int, BeforeValidator(_no_boolean)]
Real = Annotated[float, BeforeValidator(as_number), Field(allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(as_number), Field(gt=0, lt=1)]
Part = Annotated[float, BeforeValidator(as_number), Field(gt=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]{0,63}$")]
BENCHMARK: Literal["benchmark"] = "benchmark"
"""Zone of items that come from a file of their own and belong to none of the training data's zones."""
EvalZone = Literal["seen", "sibling", "stranger", "benchmark"]


class Section(BaseModel):
    """A group of settings: frozen; unknown keys are refused; each field is documented once, right below it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

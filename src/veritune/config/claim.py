"""`claims`: sentences with a decision rule, declared before training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from veritune.config.fields import BASELINE, EvalZone, Name, Real, Section
from veritune.config.frozen_rule import check_rule
from veritune.errors import VerituneError

ClaimKind = Literal[
    "improves", "better_by", "equivalent", "not_worse", "generalises", "no_regression", "probe", "differ"
]


def _check_rule(kind: str, rule: dict[str, float | bool]) -> None:
    """Raises ValueError for a frozen rule that could not be applied: after the freeze is too late to say so."""
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

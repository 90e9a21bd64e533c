"""`claims`: sentences with a decision rule, declared before training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from veritune.config.fields import BASELINE, EvalZone, Name, Real, Section
from veritune.config.frozen_rule import check_rule
from veritune.errors import VerituneError
from veritune.records import JsonLike

ClaimKind = Literal[
    "improves", "better_by", "equivalent", "not_worse", "generalises", "no_regression", "probe", "differ", "keeps"
]
SHARE_KINDS = ("generalises", "keeps")
"""Kinds whose first estimate is a share of a gap."""


def _unset(value: JsonLike) -> bool:
    """Whether a setting is left out: it then stays out of the contracts and hashes of studies without it."""
    return value is None


def _check_rule(kind: str, rule: dict[str, float | bool]) -> None:
    """Raises ValueError for a frozen rule that could not be applied: after the freeze is too late to say so."""
    if kind in (*SHARE_KINDS, "probe"):
        raise ValueError(f"`rule` judges the gap between two arms; `kind: {kind}` has no such gap, so leave `rule` out")
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
    against_eval: Annotated[Name | None, Field(exclude_if=_unset)] = None
    """The benchmark that `against` was asked, where it is not `eval`: the same items with another `system` turn or
    `template`, such as the base with a document in its prompt. Claims on a gap between two arms only."""
    zone: EvalZone | None = "stranger"
    """Items the claim speaks of; None takes all zones of the eval."""
    margin: Annotated[Real, Field(gt=0)] | None = None
    """The smallest difference that matters, in the eval's own units, declared before training."""
    alpha: Annotated[Real, Field(gt=0, lt=0.5)] = 0.05
    """Error rate of the decision, before the correction for several claims."""
    share: Annotated[Real, Field(gt=0, le=1)] | None = None
    """For `generalises`: the least share of the improvement on `from_zone` that must carry to `to_zone`. For `keeps`:
    the greatest share of the gain of `reference` over `against` that `condition` may give up, below 1."""
    reference: Annotated[Name | None, Field(exclude_if=_unset)] = None
    """For `keeps`: the arm whose gain over `against` is the whole, such as plain training beside a regularised arm."""
    kept_eval: Annotated[Name | None, Field(exclude_if=_unset)] = None
    """For `keeps`: the eval on which `condition` may not be worse than `against` by `margin`. Instead of it `probe`,
    `op` and `threshold` say what a recorded quantity of `condition` must meet."""
    kept_zone: Annotated[EvalZone | None, Field(exclude_if=_unset)] = None
    """For `keeps`: items of `kept_eval` that count; None takes all of its zones."""
    from_zone: Literal["seen", "sibling"] = "seen"
    """For `generalises`: where the improvement was learned."""
    to_zone: Literal["sibling", "stranger"] = "stranger"
    """For `generalises`: where it must arrive."""
    probe: str | None = None
    """For `probe`, and for `keeps` without `kept_eval`: the recorded quantity, its arm last, e.g. `nll.stranger.ARM`;
    docs/decide.md lists them."""
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
        if self.kind == "keeps":
            return self._fields_of_keeps()
        if self.kind == "probe" and (self.probe is None or self.op is None or self.threshold is None):
            raise ValueError("`kind: probe` needs `probe`, `op` and `threshold`")
        probe, gap = ("probe", "op", "threshold"), ("eval", "condition", "margin", "share", "rule")
        unread = (*(gap if self.kind == "probe" else probe), "reference", "kept_eval", "kept_zone")
        given = [key for key in unread if getattr(self, key) is not None]
        if given:
            hint = ": the arm is part of the probe's name" if given == ["condition"] else ""
            raise ValueError(f"`kind: {self.kind}` takes no `{given[0]}`{hint}")
        if self.kind != "probe" and self.condition is None:
            raise ValueError(f"`kind: {self.kind}` needs `condition`")
        if self.against_eval is not None and self.kind in (*SHARE_KINDS, "probe"):
            raise ValueError(f"`kind: {self.kind}` takes no `against_eval`")
        if self.rule is not None:
            _check_rule(self.kind, self.rule)
        return self

    def _fields_of_keeps(self) -> Claim:
        """The fields of `keeps`: two arms and a share, and exactly one thing that is kept."""
        if self.against_eval is not None:
            raise ValueError("`kind: keeps` takes no `against_eval`")
        gone = [key for key in ("condition", "reference", "share") if getattr(self, key) is None]
        if gone:
            raise ValueError(f"`kind: keeps` needs `{gone[0]}`, declared before training")
        if self.share is not None and self.share >= 1:
            raise ValueError(
                "`kind: keeps` needs a `share` below 1: at share 1 an arm could lose the whole gain and still count "
                "as keeping it"
            )
        if self.rule is not None:
            _check_rule(self.kind, self.rule)
        probe, scores = ("probe", "op", "threshold"), ("kept_eval", "margin")
        groups = [[key for key in keys if getattr(self, key) is not None] for keys in (probe, scores)]
        if all(groups) or not any(groups):
            raise ValueError(
                "`kind: keeps` needs exactly one thing to keep: `probe`, `op` and `threshold`, or `kept_eval` "
                "and `margin`"
            )
        short = [key for keys, here in zip((probe, scores), groups) if here for key in keys if key not in here]
        if short:
            raise ValueError(f"`kind: keeps` needs `{short[0]}` beside `{next(filter(None, groups))[0]}`")
        if self.kept_zone is not None and self.kept_eval is None:
            raise ValueError("`kept_zone` can only be used with `kept_eval`")
        return self

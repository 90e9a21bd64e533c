"""Quantities of the verdicts: estimates with their intervals, both arms, margins, counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from veritune.writeup.quantities.model import Quantity, Scope, is_number

ESTIMANDS = (
    ("new items and new seeds", "recipe"),
    ("new items, the checkpoints at hand", "checkpoints"),
    ("these items", "items"),
)


def estimand(scope: str) -> str:
    """A short word for what an estimate generalises to, from its scope line."""
    return next((word for start, word in ESTIMANDS if scope.startswith(start)), "")


def of_verdict(
    verdict: Mapping[str, Any], declared: Mapping[str, Any], evals: list[str], base: str
) -> Iterator[Quantity]:
    """A verdict's estimates, p values, margin and plan as named quantities, with their denominators."""
    name, source = verdict["claim"], "verdict.json"
    spec = declared.get("eval") or (evals[0] if len(evals) == 1 else None)
    zone = declared.get("to_zone") if verdict["kind"] == "generalises" else declared.get("zone")
    against = declared.get("against")
    if declared.get("against_eval"):  # no arm of the study: nothing else was compared with it
        against = f"{against} asked as {declared['against_eval']}"
    scope = Scope(declared.get("condition"), against, zone, spec, None, name)
    for i, estimate in enumerate(verdict["estimates"]):
        at, suffix = scope, "" if i == 0 else f".{estimand(estimate['scope']) or i}"
        kind = "gap"
        if verdict["kind"] == "generalises":
            kind = "gap" if i in (1, 2) else "share"  # behind the two gaps the share comes again, at 1 − alpha
            at = replace(scope, zone=declared.get("from_zone")) if i == 2 else scope
            suffix = ("", f".{declared.get('to_zone')}", f".{declared.get('from_zone')}")[i] if i < 3 else f".{i}"
        elif verdict["kind"] == "keeps":
            at, kind, suffix = _of_keeps(scope, declared, i)
        elif verdict["kind"] == "probe":
            kind = "probe"
        yield from _estimate(f"{name}{suffix}", kind, estimate, at, f"{base}/estimates/{i}")
    words = {"margin": ("margin",), "alpha": ("alpha", "level")}
    words |= {"detectable": ("detectable", "detects"), "needed_n": ("items", "needed")}
    for key, aliases in words.items():
        if is_number(verdict.get(key)):
            rate = key != "needed_n"
            yield Quantity(f"{key}.{name}", key, verdict[key], "", None, scope, source, f"{base}/{key}", aliases, rate)
    yield from _verdict_details(verdict, declared, scope, base)


_OUTCOMES = {
    "supported": ("supported", "confirmed", "hold", "held"),
    "refuted": ("refuted", "rejected"),
    "inconclusive": ("inconclusive", "open", "unresolved", "undecided"),
    "untested": ("untested",),
}
"""The outcomes of claims, each with the words that name it."""


def counted_outcomes(verdicts: Sequence[Mapping[str, Any]]) -> Iterator[Quantity]:
    """How many of the claims have each outcome: `n.verdicts.supported`, 2 of 3; of those declared before the freeze,
    where others came later."""
    declared = [v for v in verdicts if not v.get("exploratory")]
    groups = {"": verdicts} | ({"declared.": declared} if 0 < len(declared) < len(verdicts) else {})
    for group, members in groups.items():
        for status, words in _OUTCOMES.items():
            n, name = sum(v["status"] == status for v in members), f"n.verdicts.{group}{status}"
            yield Quantity(name, "claims", n, "count", len(members), Scope(), "verdict.json", "/verdicts", words)


def _of_keeps(scope: Scope, declared: Mapping[str, Any], place: int) -> tuple[Scope, str, str]:
    """Scope, kind and name of an estimate of a `keeps` claim: the share given up, both gains, what is kept, and the
    share again at 1 − alpha."""
    if place == 1:
        return scope, "gap", ".own"
    if place == 2:
        return replace(scope, condition=declared.get("reference")), "gap", ".reference"
    if place == 3 and declared.get("probe"):
        return replace(scope, zone=None, eval=None), "probe", ".kept"
    if place == 3:
        return replace(scope, zone=declared.get("kept_zone"), eval=declared.get("kept_eval")), "gap", ".kept"
    return scope, "share", f".{place}" if place else ""


def _estimate(tail: str, kind: str, e: Mapping[str, Any], scope: Scope, pointer: str) -> Iterator[Quantity]:
    source = "verdict.json"
    words = {"gap": ("gap", "difference"), "share": ("share", "carries"), "probe": ()}[kind]
    if e["value"] is not None:
        yield Quantity(
            f"{kind}.{tail}", kind, e["value"], "", e["n"], scope, source, f"{pointer}/value", words, kind != "probe"
        )
    for end in ("low", "high"):
        if e[end] is not None:
            yield Quantity(
                f"ci.{tail}.{end}", "ci", e[end], "", e["n"], scope, source, f"{pointer}/{end}", ("interval",), True
            )
    yield Quantity(
        f"level.{tail}", "level", e["level"], "", None, scope, source, f"{pointer}/level", ("interval", "ci"), True
    )
    if e["p"] is not None:
        yield Quantity(f"p.{tail}", "p", e["p"], "probability", None, scope, source, f"{pointer}/p", ("p",))
    for key, noun in (("n", "items"), ("n_clusters", "families"), ("n_seeds", "seeds")):
        if e.get(key) is not None:
            yield Quantity(f"n.{noun}.{tail}", noun, e[key], "count", None, scope, source, f"{pointer}/{key}", (noun,))
    for key, name in (("se", "standard error"), ("df", "degrees of freedom")):
        if e.get(key) is not None:
            yield Quantity(
                f"{key}.{tail}", key, e[key], "", None, scope, source, f"{pointer}/{key}", (name,), key == "se"
            )
    yield from _arms(tail, e, scope, pointer)


def _arms(tail: str, e: Mapping[str, Any], scope: Scope, pointer: str) -> Iterator[Quantity]:
    """Both arms' means and counts, sign flips and the 2×2 table, where the estimate holds them."""
    source, details = "verdict.json", e.get("details") or {}
    for side in ("a", "b"):
        arm = details.get(side)
        if not isinstance(arm, Mapping):
            continue
        where, base = f"{pointer}/details/{side}", f"{scope.eval}.{scope.zone or 'all'}.{arm['condition']}"
        at = Scope(condition=arm["condition"], zone=scope.zone, eval=scope.eval)
        words = ("score", "rate", "mean")
        yield Quantity(
            f"score.{base}", "score", arm["mean"], "rate", arm["scored"], at, source, f"{where}/mean", words, True
        )
        for name, kind, value in (
            (f"n.scored.{base}", "scored", arm["scored"]),
            (f"n.asked.{base}", "scored", arm["n"] * len(arm["runs"])),
            (f"n.runs.{base}", "runs", len(arm["runs"])),
            (f"n.items.{base}", "items", arm["n"]),
        ):
            yield Quantity(name, kind, value, "count", arm["n"], at, source, where, (kind,))
        if not arm.get("fixed"):
            yield Quantity(f"n.seeds.{base}", "seeds", len(arm["runs"]), "count", None, at, source, where, ("seeds",))
    flips = details.get("family_sign_flip")
    if flips:
        where = f"{pointer}/details/family_sign_flip/p"
        yield Quantity(
            f"p.{tail}.sign_flip", "p", flips["p"], "probability", None, scope, source, where, ("sign flip",)
        )
    if is_number(details.get("design_effect")):
        where, value = f"{pointer}/details/design_effect", details["design_effect"]
        yield Quantity(
            f"design_effect.{tail}", "design_effect", value, "", None, scope, source, where, ("design effect",)
        )
    for i, table in enumerate(details.get("tables") or ()):
        for key, n in table.items() if isinstance(table, Mapping) else ():
            if is_number(n):
                where = f"{pointer}/details/tables/{i}/{key}"
                yield Quantity(f"table.{tail}.{i}.{key}", "table", n, "count", e["n"], scope, source, where, (key,))


def _verdict_details(
    verdict: Mapping[str, Any], declared: Mapping[str, Any], scope: Scope, base: str
) -> Iterator[Quantity]:
    name, details, source = verdict["claim"], verdict.get("details") or {}, "verdict.json"
    for key in ("p_corrected", "p_before_correction"):
        if is_number(details.get(key)):
            yield Quantity(
                f"{key}.{name}", "p", details[key], "probability", None, scope, source, f"{base}/details/{key}", ("p",)
            )
    if is_number(details.get("claims_in_family")):
        n, where = details["claims_in_family"], f"{base}/details/claims_in_family"
        yield Quantity(f"n.claims.{name}", "claims", n, "count", None, scope, source, where, ("claims",))
    for end, value in zip(("low", "high"), details.get("simultaneous_interval") or ()):
        where = f"{base}/details/simultaneous_interval"
        yield Quantity(
            f"ci.{name}.simultaneous.{end}",
            "ci",
            value,
            "",
            None,
            scope,
            source,
            where,
            ("simultaneous interval",),
            True,
        )
    frozen = (details.get("frozen_rule") or {}).get("rule") or {}
    if is_number(frozen.get("min_gap")):
        where = f"{base}/details/frozen_rule/rule/min_gap"
        yield Quantity(
            f"rule_min_gap.{name}", "rule_min_gap", frozen["min_gap"], "", None, scope, source, where, ("frozen rule",),
            True,
        )  # fmt: skip
    if is_number(declared.get("share")):
        where = "contract.lock.json"
        yield Quantity(
            f"share_declared.{name}", "share", declared["share"], "", None, scope, where, "", ("declared share",), True
        )
    if is_number(declared.get("threshold")):
        yield Quantity(
            f"threshold.{name}", "threshold", declared["threshold"], "", None, scope, "contract.lock.json", "",
            ("threshold",),
        )  # fmt: skip

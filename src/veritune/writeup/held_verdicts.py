"""Verdicts among record files: of a study (`verdict.json`), of `veritune compare --json`, or of a team's own making.

A mapping is a verdict where it names two arms (`a` and `b`, `condition` and `against`) or a `claim`, and says what came
of it under `status`, `decision` or `verdict`. The claims of a study name their arms in the details of their estimates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from veritune.records import JsonValue
from veritune.writeup.facts import hard, held_in

Allowed = Literal["win", "loss", "equal", "differ", "carries"]
"""What a verdict allows to be said of its first arm."""
ARMS = (("a", "b"), ("condition", "against"), ("treatment", "control"))
WORDS = ("decision", "status", "verdict", "conclusion", "result")
OF_KIND: Mapping[str, Allowed] = {
    "improves": "win", "better_by": "win", "equivalent": "equal", "not_worse": "equal", "no_regression": "equal",
    "generalises": "carries", "differ": "differ",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class HeldVerdict:
    """A verdict on a contrast. `arms` are the words of its two arms (the second is empty if it has one), `word` is the
    result in its record's own words, `allows` is what may be said of the first arm.
    """

    name: str
    arms: tuple[frozenset[str], frozenset[str]]
    word: str
    allows: frozenset[Allowed]
    source: str


def read_verdicts(paths: Iterable[Path]) -> tuple[HeldVerdict, ...]:
    """The verdicts in some record files, in order. Raises InputError if a file cannot be read."""
    return tuple(v for path in paths for v in _verdicts(held_in(path), path.name, 0))


def _verdicts(held: JsonValue, source: str, depth: int) -> Iterator[HeldVerdict]:
    if depth > 12:
        return
    if isinstance(held, Mapping):
        verdict = _verdict(held, source)
        if verdict is not None:
            yield verdict
            return
        for inner in held.values():
            yield from _verdicts(inner, source, depth + 1)
    elif isinstance(held, list):
        for inner in held:
            yield from _verdicts(inner, source, depth + 1)


def _verdict(held: Mapping[str, JsonValue], source: str) -> HeldVerdict | None:
    word = next((w for key in WORDS if isinstance(w := held.get(key), str) and w), None)
    claim = held.get("claim")
    named = isinstance(claim, str) and claim != ""
    arms = _arms(held)
    if word is None or (arms is None and not named):
        return None
    a, b = arms or (str(claim), "")
    name = str(claim) if named else f"{a} against {b}"
    return HeldVerdict(name, (hard(a), hard(b)), _said(held, word), frozenset(_allows(held)), source)


def _said(held: Mapping[str, JsonValue], word: str) -> str:
    status = held.get("status")
    return status if isinstance(status, str) and status else word


def _arms(held: Mapping[str, JsonValue]) -> tuple[str, str] | None:
    for one, other in ARMS:
        a, b = held.get(one), held.get(other)
        if isinstance(a, str) and isinstance(b, str) and a and b:
            return a, b
    estimates = held.get("estimates")
    first = estimates[0] if isinstance(estimates, list) and estimates else None
    details = first.get("details") if isinstance(first, Mapping) else None
    if not isinstance(details, Mapping):
        return None
    sides = [details.get("a"), details.get("b")]
    names = [side.get("condition") if isinstance(side, Mapping) else side for side in sides]
    return (names[0], names[1]) if isinstance(names[0], str) and isinstance(names[1], str) else None


def _allows(held: Mapping[str, JsonValue]) -> Iterator[Allowed]:
    decision, status, kind = (str(held.get(key) or "").lower() for key in ("decision", "status", "kind"))
    said = decision or str(held.get("verdict") or held.get("conclusion") or held.get("result") or status).lower()
    if said.startswith(("better", "win", "higher")):
        yield "win"
    elif said.startswith(("worse", "los", "lower")):
        yield "loss"
    elif said.startswith(("equivalent", "equal")):
        yield "equal"
    supported = "supported" in (status, said) or said in ("confirmed", "holds")
    if supported:
        of_kind: Allowed | None = OF_KIND.get(kind) if kind else "win"  # other kinds, such as a probe's, settle no win
        if of_kind is not None:
            yield of_kind
        if kind == "differ" and (gap := _gap(held)):
            yield "win" if gap > 0 else "loss"


def _gap(held: Mapping[str, JsonValue]) -> float:
    estimates = held.get("estimates")
    first = estimates[0] if isinstance(estimates, list) and estimates else None
    value = first.get("value") if isinstance(first, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.0

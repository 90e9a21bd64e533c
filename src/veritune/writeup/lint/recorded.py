"""How a recorded quantity is printed and compared, and the contrasts of two: differences, ratios, spreads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from veritune.writeup.lint.numbers import PrintedNumber
from veritune.writeup.lint.scope import Passage
from veritune.writeup.quantities import Quantity, Scope

DECLARED = frozenset({"margin", "threshold", "alpha", "lr", "setting", "split"})
"""What somebody chose: nobody writes a margin of .05 as 0.1, though it rounds to it."""
ROUNDED_BY = 0.05
"""By what share of it a print may differ from a value that was chosen: a split of .34 is `a third`, and no `0.3`."""


def mirrored(a: Quantity, b: Quantity) -> tuple[Quantity, Quantity]:
    """The interval of the difference with the opposite sign."""
    return replace(b, value=-b.value), replace(a, value=-a.value)


def after(passage: Passage, number: PrintedNumber) -> str:
    """The characters directly after a number, where its unit is."""
    return passage.text[number.end : number.end + 12]


def factors(number: PrintedNumber, q: Quantity, *, percent_column: bool, after: str = "") -> tuple[float, ...]:
    """The factors by which a recorded value may be multiplied to be compared with the printed number."""
    if q.kind == "time":
        unit = after.strip().lower()
        return (1 / 60,) if unit.startswith("min") else (1 / 3600,) if unit.startswith("h") else (1.0,)
    if number.percent or percent_column:
        return (100.0,) if q.rate else () if number.percent else (1.0,)
    return (1.0,)


def holds(number: PrintedNumber, q: Quantity, factor: float) -> bool:
    """Whether the printed number is the recorded value times `factor`, or a bound that the value keeps."""
    value, slack = q.value * factor, 1e-9 * abs(number.value)
    kept = {
        "<": value < number.value, "≤": value <= number.value + slack,
        ">": value > number.value, "≥": value >= number.value - slack,
    }.get(number.relation)  # fmt: skip
    if kept is not None:
        return kept
    if q.kind in DECLARED and abs(number.value - value) > ROUNDED_BY * abs(value):
        return False
    if number.holds(q.value, factor):
        return True
    contrast = q.kind in ("gap", "detectable", "margin") or (q.kind == "ci" and not number.signed)
    return (contrast and not number.signed and number.holds(-q.value, factor)) or (
        q.kind == "gap" and number.signed and number.holds(-q.value, factor) and _oriented(q)
    )  # fmt: skip


def _oriented(q: Quantity) -> bool:
    return q.scope.against is not None


def shown(q: Quantity, number: PrintedNumber) -> str:
    """A recorded value in the form in which the text would print it."""
    if q.kind == "p":
        return "below 1e-4" if q.value < 1e-4 else f"{q.value:.2g}"
    factor = 100.0 if number.percent and q.rate else 1.0
    if float(q.value).is_integer() and factor == 1.0:
        return f"{q.value:,.0f}"
    suffix = {"%": " %", "points": " points"}.get(number.percent, "") if factor != 1.0 else ""
    digits = max(number.decimals, 2 if factor == 1.0 else 0)
    return f"{q.value * factor:.{min(digits, 8)}f}{suffix}" if abs(q.value) >= 1e-4 else f"{q.value:.3g}"


def derived_quantities(now: Sequence[Quantity]) -> Iterator[Quantity]:
    """Contrasts and ratios between conditions and between zones, the spread over seeds, simultaneous levels."""
    measured = [
        q
        for q in now
        if q.kind in ("score", "nll") and q.name.split(".")[0] in ("score", "nll", "validation_nll", "final_loss")
    ]
    means = [q for q in measured if q.scope.seed is None]
    for a, b in combinations(means, 2):
        if a.kind != b.kind or a.scope.eval != b.scope.eval or a.name.split(".")[0] != b.name.split(".")[0]:
            continue
        same_zone, same_arm = a.scope.zone == b.scope.zone, a.scope.condition == b.scope.condition
        if same_zone and not same_arm:
            scope = Scope(a.scope.condition, b.scope.condition, a.scope.zone, a.scope.eval)
            yield _contrast(a, b, scope)
            yield from _ratios(a, b, scope)
        elif same_arm and not same_zone:
            zones = "|".join(sorted((str(a.scope.zone), str(b.scope.zone))))
            yield _contrast(a, b, Scope(a.scope.condition, None, zones, a.scope.eval))
    yield from _seed_spreads([q for q in measured if q.scope.seed is not None])
    yield Quantity("power", "power", 0.8, source="decide.power", aliases=("power",), rate=True)
    sizes = {q.scope.claim: q.value for q in now if q.name.startswith("n.claims.")}
    alphas = {q.scope.claim: q for q in now if q.kind == "alpha"}
    for claim, k in sizes.items():
        if claim in alphas and k:
            q = alphas[claim]
            yield replace(q, name=f"level.{claim}.simultaneous", kind="level", value=1 - q.value / k)


def _contrast(a: Quantity, b: Quantity, scope: Scope) -> Quantity:
    name = f"gap({a.name}, {b.name})"
    return Quantity(name, "gap", a.value - b.value, a.unit, a.denominator, scope, a.source, a.pointer, ("gap",), a.rate)


def _ratios(a: Quantity, b: Quantity, scope: Scope) -> Iterator[Quantity]:
    for top, bottom in ((a, b), (b, a)):
        if bottom.value > 0:
            name = f"ratio({top.name}, {bottom.name})"
            yield Quantity(name, "ratio", top.value / bottom.value, "", None, scope, a.source, a.pointer, ("times",))
        if top.rate and bottom.value < 1:
            name, errors = f"ratio(error {top.name}, error {bottom.name})", (1 - top.value) / (1 - bottom.value)
            yield Quantity(name, "ratio", errors, "", None, scope, a.source, a.pointer, ("times",))


def _seed_spreads(seeded: Sequence[Quantity]) -> Iterator[Quantity]:
    groups: dict[str, list[Quantity]] = {}
    for q in seeded:
        groups.setdefault(q.name.replace(f".seed{q.scope.seed}", "", 1), []).append(q)
    for name, group in groups.items():
        if len(group) > 1:
            values = [q.value for q in group]
            spread = max(values) - min(values)
            yield replace(
                group[0], name=f"spread({name})", kind="gap", value=spread, scope=replace(group[0].scope, seed=None)
            )

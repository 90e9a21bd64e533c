"""The grid: which design is judged how, and what rate is nominal there.

A cell is one design at one true value. Its `tally` gives, for one draw, whether each error occurred; the nominal rate
of every error is in `NOMINAL`. Verdicts come from the code that users run: `compare_tables`, `judge`, `not_worse` of
the gate, `three_zone_gap`. One comparison serves all claims of a draw, and a claim's status is read from its intervals;
the first draws of every chunk go through `judge` as well, and a status that differs stops the run.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import theory_designs as designs
from theory_designs import Arms, Draw, Floats, Price, Rng, Zones

from veritune.config.claim import Claim, ClaimKind
from veritune.decide import keeps, shares
from veritune.decide.claims import ClaimContext, judge
from veritune.errors import VerituneError
from veritune.probe.memorization import three_zone_gap
from veritune.records import Estimate, Verdict
from veritune.release.gate.noninferior import Bar, not_worse
from veritune.stats.bounded import BoundedMean
from veritune.stats.intervals import Spread, Widest
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.seeds import Combined
from veritune.stats.table import ScoreTable, pair

NOMINAL: Mapping[str, float] = {
    "improves": 0.025,
    "improves refuted": 0.025,
    "differ": 0.05,
    "better_by": 0.025,
    "better_by refuted": 0.025,
    "not_worse": 0.025,
    "not_worse refuted": 0.025,
    "equivalent": 0.05,
    "equivalent refuted": 0.025,
    "misses": 0.05,
    "generalises": 0.025,
    "generalises refuted": 0.025,
    "keeps": 0.025,
    "keeps refuted": 0.025,
    "says generalises": 0.025,
    "says partly": 0.025,
    "says memorises": 0.025,
    "any probe claim": 0.05,
    "gate passes": 0.025,
    "crashes": 0.0,
}
"""Error by name, and the rate that is declared for it: one-sided .025 at alpha .05, two-sided .05, TOST .05."""

GROUPS = ("graded", "adversarial", "families", "odd families", "family seeds", "seeds", "few items", "tail seeds")
GROUPS += ("generalises", "keeps", "zone gap", "probes", "gate")

Tally = dict[str, bool]


@dataclass(frozen=True)
class Cell:
    """One line of the table. `limit` marks a design of which the documentation says that no rule holds there."""

    group: str
    design: str
    size: str
    truth: float
    tally: Callable[[Rng, bool], Tally | None]
    limit: bool = False

    @property
    def key(self) -> str:
        return f"{self.group} | {self.design} | {self.size} | {self.truth:g}"


# ---------------------------------------------------------------- one comparison


@cache
def _items(n: int) -> tuple[str, ...]:
    return tuple(map(str, range(n)))


def tables(draw: Draw) -> tuple[ScoreTable, ScoreTable]:
    """The two score tables of a draw, as a reader of score files makes them."""
    names = None if draw.family_N is None else tuple(map(str, draw.family_N))

    def one(name: str, score_S_N: Floats, fixed: bool) -> ScoreTable:
        s, n = score_S_N.shape
        return ScoreTable(name, "eval", _items(s), _items(n), score_S_N, names, draw.zone_N, ({},) * s, fixed)

    return one("a", draw.a_S_N, False), one("b", draw.b_S_N, draw.fixed_b)


DECLARED = {"equal": "equal_seed_spread", "shared": "shared_seeds"}
"""What a design declares, and the field of `PairOptions` that says so."""


def options(declared: str | None) -> PairOptions | None:
    """Options of a comparison; None where this version does not offer what the design declares."""
    made = PairOptions(scale=(0.0, 1.0), draws=1999)
    if declared is None:
        return made
    name = DECLARED[declared]
    return replace(made, **{name: True}) if name in inspect.signature(PairOptions).parameters else None


def claim_of(kind: ClaimKind, margin: float | None = None, share: float | None = None) -> Claim:
    """A claim on the arm `a` against `b`, over all zones."""
    return Claim(name=kind, kind=kind, condition="a", against="b", zone=None, margin=margin, share=share)


def claims_at(truth: float) -> tuple[tuple[Claim, str, str | None], ...]:
    """Claims whose boundary is the true gap, each with the name of a false support and of a false refutation."""
    m = abs(truth)
    if truth == 0:
        # A study's `differ` names a margin; without one it is the strictest case, a difference from 0.
        differ = claim_of("improves").model_copy(update={"name": "differ", "kind": "differ"})
        return (claim_of("improves"), "improves", "improves refuted"), (differ, "differ", None)
    if truth > 0:
        first = (claim_of("better_by", m), "better_by", "better_by refuted")
    else:
        first = (claim_of("not_worse", m), "not_worse", "not_worse refuted")
    return first, (claim_of("equivalent", m), "equivalent", "equivalent refuted")


def _unbounded(spread: Spread) -> Spread:
    """`spread` without its Learned-Miller & Thomas parts: never wider, and a hundred times faster."""
    if isinstance(spread, Widest):
        parts = tuple(part for part in spread.parts if not isinstance(part, BoundedMean))
        return Widest(parts) if parts else spread
    if isinstance(spread, Combined):
        return replace(spread, items=_unbounded(spread.items))
    if isinstance(spread, shares.Difference):
        return replace(spread, to=_unbounded(spread.to), base=_unbounded(spread.base))
    return spread


def beyond(spread: Spread, value: float, side: int, alpha: float = 0.025) -> bool:
    """True when the interval lies above (side 1) or below (-1) `value`, its ends erring `alpha` each."""
    return all(side * (x.end(alpha, -side) - value) > 0 for x in (_unbounded(spread), spread))


def status(claim: Claim, spread: Spread) -> str:
    """What `judge` decides of a single claim, read from the intervals at 95 % and 90 % (table of `decide.claims`).

    `judge` inverts the intervals to a p for Holm and plans the items that an open claim needs; that takes a hundred
    times as long and changes no status.
    """
    m = claim.margin or 0.0
    if claim.kind in ("improves", "differ"):
        up = beyond(spread, 0.0, 1)
        settled = (up or beyond(spread, 0.0, -1)) and spread.p() <= 0.05
        return "inconclusive" if not settled else "supported" if up or claim.kind == "differ" else "refuted"
    if claim.kind == "equivalent":
        if beyond(spread, -m, 1, 0.05) and beyond(spread, m, -1, 0.05):
            return "supported"
        return "refuted" if beyond(spread, m, 1) or beyond(spread, -m, -1) else "inconclusive"
    edge = -m if claim.kind == "not_worse" else m
    return "supported" if beyond(spread, edge, 1) else "refuted" if beyond(spread, edge, -1) else "inconclusive"


def gap_tally(draw: Draw, truth: float, check: bool) -> Tally | None:
    """Errors of every claim at its boundary, and whether the 95 % interval misses the true gap."""
    chosen = options(draw.declared)
    if chosen is None:
        return None
    a, b = tables(draw)
    spread = compare_tables(a, b, chosen).headline.spread
    tally: Tally = {}
    for claim, supported, refuted in claims_at(truth):
        word = status(claim, spread)
        if check:
            _check(claim, word, judge([claim], {("a", "eval"): a, ("b", "eval"): b}, _context(chosen)))
        tally[supported] = word == "supported"
        if refuted is not None:
            tally[refuted] = word == "refuted"
    tally["misses"] = beyond(spread, truth, 1) or beyond(spread, truth, -1)
    return tally


def _context(chosen: PairOptions) -> ClaimContext:
    return ClaimContext(scales={"eval": (0.0, 1.0)}, options=chosen)


def _check(claim: Claim, word: str, verdicts: Sequence[Verdict]) -> None:
    """The bench must not measure anything else than what `judge` says."""
    if verdicts[0].status != word:
        raise AssertionError(f"{claim.kind}: judge says {verdicts[0].status}, the bench {word}")


def _gap_cell(
    group: str, design: str, size: str, truth: float, draw: Callable[[Rng], Draw], limit: bool = False
) -> Cell:
    return Cell(group, design, size, truth, lambda rng, check: gap_tally(draw(rng), truth, check), limit)


# ---------------------------------------------------------------- the designs of each group

SIZES_N = (8, 20, 57, 150, 400)
COUNTS = (4, 6, 8, 12, 20, 40)


def _graded() -> Iterator[Cell]:
    for shape in designs.SHAPES:
        for n in SIZES_N:
            for mean in (0.0, 0.08, -0.08):
                yield _gap_cell("graded", shape, f"n = {n}", mean, designs.graded(shape, n, mean))


def _adversarial() -> Iterator[Cell]:
    for noise in (0.0, 0.02):
        body = "rest noisy" if noise else "rest constant"
        for expected in (2.2, 3.0, 3.7, 5.0, 7.0, 9.0):
            for n in SIZES_N:
                draw = designs.adversarial(n, expected, noise)
                if draw is not None:
                    yield _gap_cell("adversarial", f"{expected:g} of n lose .92, {body}", f"n = {n}", 0.0, draw)


def _families() -> Iterator[Cell]:
    for sizes in designs.SIZES:
        for count in COUNTS:
            for effect in designs.EFFECTS:
                for binary in (False, True):
                    kind = "binary" if binary else "graded"
                    for mean in (0.0, 0.1, -0.1) if binary else (0.0, 0.1):
                        draw = designs.families(sizes, count, effect, mean, binary=binary)
                        yield _gap_cell("families", f"{sizes}, {effect}, {kind}", f"G = {count}", mean, draw)
    yield from _odd_families()


def _odd_families() -> Iterator[Cell]:
    """Families that are not normal: rare losses of items, effects of two values, a rare kind of family."""
    for shape in ("5 % at -.76", "2 % at -.88"):
        for count in COUNTS:
            draw = designs.tailed_families(shape, count, 0.0)
            yield _gap_cell("odd families", f"equal, items {shape}", f"G = {count}", 0.0, draw)
    for sizes in ("equal", "up to 1.5 times", "one of 40 %", "two of 35 %"):
        for count in COUNTS:
            for binary in (False, True):
                name = f"{sizes}, each goes one way, {'binary' if binary else 'graded'}"
                for mean in (0.0,) if binary else (0.0, 0.1):
                    draw = designs.split_families(sizes, count, mean, binary=binary)
                    yield _gap_cell("odd families", name, f"G = {count}", mean, draw)
    for count in (8, 20, 40):
        draw = designs.rare_family(count)
        yield _gap_cell("odd families", "one family in ten loses .45", f"G = {count}", 0.0, draw, limit=True)


def _family_seeds() -> Iterator[Cell]:
    for sizes in ("equal", "one of 40 %", "one of 80 %", "two of 35 %", "Zipf"):
        for count in (8, 20, 40):
            for runs in ((3, 3), (2, 5), (5, 5)):
                for binary in (False, True):
                    kind = "binary" if binary else "graded"
                    for mean in (0.0, 0.1):
                        draw = designs.families(sizes, count, "strong", mean, binary=binary, runs=runs)
                        name = f"{sizes}, {kind}, {runs[0]} v {runs[1]}"
                        yield _gap_cell("family seeds", name, f"G = {count}", mean, draw)


RUNS = ((2, 2), (2, 5), (2, 10), (3, 3), (3, 10), (4, 10), (5, 5), (2, 0), (3, 0), (5, 0))
SPREADS = {"tiny": 0.005, "mid": 0.02, "large": 0.06}


def _arms(runs: tuple[int, int], spread: float, where: str, declared: str | None) -> Arms:
    """`where`: both arms spread, or A alone (B where it has more runs), or runs share half of their variance."""
    if where == "shared":
        own = spread * 0.5**0.5
        return Arms(*runs, own, own, declared, shared=own)
    return Arms(*runs, spread, 0.0 if where == "one arm" else spread, declared)


def _seeds() -> Iterator[Cell]:
    for runs in RUNS:
        label = f"{runs[0]} v {runs[1] or 'fixed'}"
        for size, spread in SPREADS.items():
            for where in ("equal", "one arm") if runs[1] else ("equal",):
                arms = _arms(runs, spread, where, None)
                name = f"{label}, {where}, {size} spread" if runs[1] else f"{label}, {size} spread"
                yield _gap_cell("seeds", name, "n = 200", 0.0, designs.seeded(arms, 200))
            if runs[1]:
                arms = _arms(runs, spread, "equal", "equal")
                name = f"{label}, declared equal, {size} spread"
                yield _gap_cell("seeds", name, "n = 200", 0.0, designs.seeded(arms, 200))
            if runs[0] == runs[1]:
                for where in ("shared", "equal"):
                    arms = _arms(runs, spread, where, "shared")
                    does = "sharing helps" if where == "shared" else "sharing does nothing"
                    name = f"{label}, declared shared, {does}, {size} spread"
                    yield _gap_cell("seeds", name, "n = 200", 0.0, designs.seeded(arms, 200))
        arms = _arms(runs, 0.02, "equal", None)
        yield _gap_cell("seeds", f"{label}, binary", "n = 200", 0.0, designs.seeded_binary(arms, 200))


def _few_items() -> Iterator[Cell]:
    for by_item in (False, True):
        how = "whole items turn" if by_item else "scores turn"
        for rate in (0.02, 0.98):
            for runs in (2, 3, 5):
                for n in (5, 8, 12, 20):
                    for margin in (0.1, 0.2, 0.4):
                        truth = -margin if rate > 0.5 else margin
                        draw = designs.extreme_rates(n, runs, rate, margin, by_item=by_item)
                        yield _gap_cell("few items", f"rate {rate:g}, {runs} v {runs}, {how}", f"n = {n}", truth, draw)


def _tail_seeds() -> Iterator[Cell]:
    for shape in ("5 % at -.76", "2 % at -.88", "80 % ties, skewed", "normal, sd .25"):
        for runs in ((2, 2), (3, 3), (5, 5), (2, 0), (3, 0)):
            for n in (8, 20, 57):
                draw = designs.seeded(_arms(runs, 0.01, "equal", None), n, shape, 0.02)
                label = f"{runs[0]} v {runs[1] or 'fixed'}"
                yield _gap_cell("tail seeds", f"{shape}, {label}", f"n = {n}", 0.0, draw)


# ---------------------------------------------------------------- generalisation


def _generalises_tally(draw: Draw, check: bool) -> Tally:
    """As `_status`: the ends of the seen gap and of the contrast at the declared share."""
    chosen = options(None)
    assert chosen is not None
    a, b = tables(draw)
    zones = ("stranger", "seen")
    comparisons = [compare_tables(a.in_zone(z), b.in_zone(z), chosen) for z in zones]
    zone_N = np.array([zones.index(z) for z in draw.zone_N or ()])
    carried = shares.carried_over(pair(a, b, scale=chosen.scale), zone_N, comparisons, chosen)
    contrast, gained = carried.contrast(0.5), beyond(carried.base, 0.0, 1)
    supported = gained and beyond(contrast, 0.0, 1)
    refuted = (gained and beyond(contrast, 0.0, -1)) or beyond(carried.base, 0.0, -1)
    if check:
        claim = claim_of("generalises", share=0.5)
        word = "supported" if supported else "refuted" if refuted else "inconclusive"
        _check(claim, word, judge([claim], {("a", "eval"): a, ("b", "eval"): b}, _context(chosen)))
    return {"generalises": supported, "generalises refuted": refuted}


def _generalises() -> Iterator[Cell]:
    """The share that carries is the declared one, .5."""
    for sizes in designs.SIZES:
        for count in (4, 6, 8, 20, 40):
            for effect in designs.EFFECTS:
                for span in (False, True):
                    for runs in ((1, 1), (3, 3)):
                        draw = designs.zone_scores(Zones(sizes, count, 0.5, effect, span=span), runs)
                        where = "families in both zones" if span else "families in one zone"
                        name = f"{sizes}, {effect}, {where}, {runs[0]} v {runs[1]}"
                        yield Cell("generalises", name, f"G = {count}", 0.5, _on_zones(draw))


def _on_zones(draw: Callable[[Rng], Draw]) -> Callable[[Rng, bool], Tally]:
    return lambda rng, check: _generalises_tally(draw(rng), check)


# ---------------------------------------------------------------- keeps

KEEPS = Claim(
    name="keeps", kind="keeps", eval="eval", condition="a", reference="r", against="b", zone=None, share=0.2,
    kept_eval="old", margin=0.3,  # wide, so that the other parts decide: on 20 graded items .16 is shown at best
)  # fmt: skip


def _keeps_tally(price: Price) -> Callable[[Rng, bool], Tally]:
    """As `decide.keeps`: gain, price and what is kept at 95 %, each alone at a third of alpha to refute."""
    make = designs.three_arms(price)
    chosen = PairOptions(scale=(0.0, 1.0), draws=1999)

    def tally(rng: Rng, check: bool) -> Tally:
        draw = make(rng)
        names = None if draw.family_N is None else tuple(map(str, draw.family_N))

        def one(name: str, of: str, score: Floats, fixed: bool = False) -> ScoreTable:
            s, n = score.shape
            return ScoreTable(name, of, _items(s), _items(n), score, names, None, ({},) * s, fixed)

        a, r = one("a", "eval", draw.c_S_N), one("r", "eval", draw.r_S_N)
        b, old_b = one("b", "eval", draw.b_S_N, True), one("b", "old", draw.kept_b_S_N, True)
        old_a = one("a", "old", draw.kept_c_S_N)
        given = keeps._given_up((a, r, b), chosen)
        base, contrast = given.base.headline.spread, given.contrast(0.2).headline.spread
        kept = compare_tables(old_a, old_b, chosen).headline.spread
        third = 0.025 / keeps.REFUTING_PARTS
        supported = beyond(base, 0.0, 1) and beyond(contrast, 0.0, 1) and beyond(kept, -0.3, 1)
        refuted = beyond(base, 0.0, 1, third) and beyond(contrast, 0.0, -1, third)
        refuted = refuted or beyond(base, 0.0, -1, third) or beyond(kept, -0.3, -1, third)
        if check:
            word = "supported" if supported else "refuted" if refuted else "inconclusive"
            context = ClaimContext(scales={"eval": (0.0, 1.0), "old": (0.0, 1.0)}, options=chosen)
            _check(KEEPS, word, judge([KEEPS], {(t.condition, t.eval): t for t in (a, r, b, old_a, old_b)}, context))
        return {"keeps": supported, "keeps refuted": refuted}

    return tally


def _keeps() -> Iterator[Cell]:
    """The share given up is the declared one, .2; the reference gains nothing; what is kept fell by its margin."""
    for n, runs in itertools.product((20, 57, 200), (1, 3, 5)):
        label = f"{runs} v {runs}"
        for item in ("normal", "5 % at -.38"):
            yield Cell("keeps", f"price, {item}, {label}", f"n = {n}", 0.2, _keeps_tally(Price(n, runs, item=item)))
        nothing = Price(n, runs, given_up=0.0, gain=0.0)
        yield Cell("keeps", f"no gain, {label}", f"n = {n}", 0.0, _keeps_tally(nothing))
        fell = Price(n, runs, given_up=0.0, kept=-0.3)
        yield Cell("keeps", f"kept at its margin, {label}", f"n = {n}", -0.3, _keeps_tally(fell))
    for sizes, count, runs in itertools.product(("equal", "one of 40 %", "two of 35 %", "Zipf"), (8, 20), (1, 3)):
        price = Price(0, runs, sizes=sizes, count=count)
        yield Cell("keeps", f"price, {sizes}, {runs} v {runs}", f"G = {count}", 0.2, _keeps_tally(price))


FALSE_READINGS = {0.0: ("generalises", "partly"), 0.2: ("generalises", "memorises")}
FALSE_READINGS |= {0.5: ("generalises", "memorises"), 1.0: ("partly", "memorises")}
"""Readings of the zone gap that are false at a true share. .2 and .5 are the boundaries themselves."""


def _zone_gap() -> Iterator[Cell]:
    for share, readings in FALSE_READINGS.items():
        for count in (8, 12, 20, 40):
            for sizes in ("equal", "one of 40 %", "two of 35 %", "Zipf"):
                for effect in designs.EFFECTS:
                    z = Zones(sizes, count, share, effect)
                    yield Cell("zone gap", f"{sizes}, {effect}", f"G = {count}", share, _zone_tally(z, readings))
            for skew in (0.7, 1.0, 1.5):
                z = Zones("equal", count, share, skew=skew)
                yield Cell("zone gap", f"skewed gains, {skew:g}", f"G = {count}", share, _zone_tally(z, readings))


def _zone_tally(z: Zones, readings: tuple[str, ...]) -> Callable[[Rng, bool], Tally]:
    draw = designs.zone_losses(z)

    def tally(rng: Rng, check: bool) -> Tally:
        word = three_zone_gap(*draw(rng)).verdict
        return {f"says {reading}": word == reading for reading in readings}

    return tally


# ---------------------------------------------------------------- probes and the gate


def _probe_tally(rng: Rng, check: bool, *, bare: bool = False, level: float = 0.95) -> Tally:
    """20 claims, every true value at its threshold. A probe's record is an estimate with its interval at `level`."""
    z = 1.959963984540054 if level == 0.95 else 0.6744897501960817
    found: dict[str, Estimate | float] = {}
    specs = []
    for i in range(20):
        value = 0.5 + 0.1 * float(rng.normal())
        low, high = value - z * 0.1, value + z * 0.1
        record = Estimate(f"p{i}", value, low, high, level, 100, "mean", se=0.1, df=None)
        found[f"p{i}"] = value if bare else record
        specs.append(Claim(name=f"c{i}", kind="probe", probe=f"p{i}", op=">=", threshold=0.5))
    verdicts = judge(specs, {}, ClaimContext(probes=found))
    return {"any probe claim": any(v.status == "supported" for v in verdicts)}


def _probes() -> Iterator[Cell]:
    yield Cell("probes", "20 claims, interval at .95", "", 0.5, _probe_tally)
    yield Cell("probes", "20 claims, interval at .5", "", 0.5, lambda r, c: _probe_tally(r, c, level=0.5))
    yield Cell("probes", "20 claims, bare numbers", "", 0.5, lambda r, c: _probe_tally(r, c, bare=True))


def _gate() -> Iterator[Cell]:
    """A true loss of the margin, .05, on graded items: a rare large loss or a common small one."""
    shapes = {
        "2 % at -.88": ("2 % at -.88", -0.05),
        "5 % at -.76": ("5 % at -.76", -0.05),
        "normal, sd .25": ("normal, sd .25", -0.05),
        "80 % ties, skewed": ("80 % ties, skewed", -0.05),
    }
    for name, (shape, mean) in shapes.items():
        for n in (8, 20, 57):
            yield Cell("gate", name, f"n = {n}", mean, _gate_tally(designs.graded(shape, n, mean)))


def _gate_tally(draw: Callable[[Rng], Draw]) -> Callable[[Rng, bool], Tally]:
    def tally(rng: Rng, check: bool) -> Tally:
        a, b = tables(draw(rng))
        spread = compare_tables(a, b, options(None)).headline.spread
        if not check and not beyond(spread, -0.05, 1):
            return {"gate passes": False}  # what no claim of `not_worse` supports, the gate does not pass
        return {"gate passes": not_worse(a, b, Bar(0.05, outputs_differ=True, scale=(0.0, 1.0))).status == "passed"}

    return tally


def all_cells() -> list[Cell]:
    """Every cell of the grid, in the order of the tables."""
    makers = (_graded, _adversarial, _families, _family_seeds, _seeds, _few_items, _tail_seeds, _generalises)
    makers += (_keeps, _zone_gap, _probes, _gate)
    return [cell for make in makers for cell in make()]


def rates(cell: Cell, reps: int, seed: int, *, checked: int = 1) -> dict[str, int] | None:
    """How often each error occurred in `reps` draws; None where this version does not offer the design."""
    rng = np.random.default_rng(seed)
    total: dict[str, int] = {}
    for i in range(reps):
        try:
            tally = cell.tally(rng, i < checked)
        except (VerituneError, ValueError, ArithmeticError) as error:  # refusing valid scores is an error too
            print(f"{cell.key}: {error!r}", file=sys.stderr)
            tally = {"crashes": True}
        if tally is None:
            return None
        for name, wrong in tally.items():
            total[name] = total.get(name, 0) + int(wrong)
    return total

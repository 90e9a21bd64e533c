"""Rows into zones, by whole families: `seen`, `sibling`, `stranger`, `validation`.

A family goes to `stranger`, to `validation`, or is trained on; of each trained family some rows are kept back as
`sibling`. The order in which families are taken comes from a hash of the seed and the family's name, so the same rows
in another order give the same split. `judge_split` counts what two zones share, for our split and for anybody's.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Literal

from veritune.config.thresholds import DEFAULTS
from veritune.counting import many
from veritune.data.sources.raw import Cell
from veritune.data.text import canonical, tokens
from veritune.errors import DataError
from veritune.records import (
    ZONES,
    Finding,
    JsonLike,
    Row,
    SplitCounts,
    Zone,
    ZonePair,
)

MIN_HELD_FAMILIES = 2
SHORT_PROMPT = 4  # words; shorter prompts without a digit are shared by unrelated rows
LONG_ANSWER = 20  # characters; shorter answers ("yes", "42") coincide without a leak


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """Shares of the families for `stranger` and `validation`, and of each trained family's rows for `sibling`.

    `stratify` is a column, or `source` for the file a row came from when it has no such column; None for no strata.
    Fewer held-out families than `few_families` are warned of. `by` says what strangers are: families drawn by the
    seed, whole sources (`held_sources`, or drawn), or the newest rows (from `held_from` on, or the share), by column
    `field`. `kept_back` are ids of rows that are never trained on: in a trained family they are siblings, beside the
    share that is drawn from its other rows.

    >>> SplitConfig(seed=1, stranger=0.2).stranger
    0.2
    """

    seed: int = 0
    stranger: float = 0.3
    validation: float = 0.12
    sibling: float = 0.25
    stratify: str | None = "source"
    few_families: int = DEFAULTS.families.few_held_out
    by: Literal["family", "source", "time"] = "family"
    field: str | None = None
    held_sources: tuple[str, ...] = ()
    held_from: str | None = None
    kept_back: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Split:
    """`zone_of` maps every row id to its zone. `counts[zone]` holds `rows`, `families`, and rows by stratum.

    >>> Split({"r1": "seen"}, {"seen": {"rows": 1}}).zone_of["r1"]
    'seen'
    """

    zone_of: Mapping[str, Zone]
    counts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ZoneOverlap:
    """What zones `a` and `b` share. Each number counts rows of `b`, out of `n_b`, that have a match in `a`."""

    a: str
    b: str
    n_a: int
    n_b: int
    ids: int
    texts: int
    prompts: int
    answers: int
    families: int
    near: int
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)


# ---------------------------------------------------------------- making a split


def split_zones(rows: Sequence[Row], family_of: Mapping[str, str], config: SplitConfig | None = None) -> Split:
    """Assign each row to a zone: whole families to `stranger` and `validation`, stratified, reproducible from the seed.

    Raises DataError for shares that cannot be, for row ids used twice, for rows without a family, and where fewer than
    two families would be left for `stranger`, `validation` or training.

    >>> from veritune.records import Message, Row
    >>> rows = [Row(f"r{i}", (Message("user", f"Question {i}?"), Message("assistant", "Yes."))) for i in range(80)]
    >>> split = split_zones(rows, {row.id: f"f{i // 4}" for i, row in enumerate(rows)}, SplitConfig(seed=1))
    >>> {zone: counts["rows"] for zone, counts in sorted(split.counts.items())}
    {'seen': 36, 'sibling': 12, 'stranger': 24, 'validation': 8}
    """
    config = config or SplitConfig()
    _check(rows, family_of, config)
    members: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        members[family_of[row.id]].append(row)
    strata = _strata(members, config.stratify)
    n = len(members)
    n_stranger, n_validation = _held(n, config.stranger), _held(n, config.validation)
    if n - n_stranger - n_validation < MIN_HELD_FAMILIES:
        raise DataError(
            f"{many(n, 'families')} cannot be split into stranger ({n_stranger}), validation ({n_validation}) and at "
            "least "
            f"{MIN_HELD_FAMILIES} to train on.",
            fix="Add families, lower the shares, or check whether the families were merged too far.",
        )
    zone_of_family: dict[str, Zone] = dict.fromkeys(members, "seen")
    moved: tuple[str, ...] = ()
    if config.by == "family":
        held = _take(strata, n_stranger, config.seed)
    else:
        held, moved = held_by_source(members, config) if config.by == "source" else held_by_time(members, config)
        if n - len(held) - n_validation < MIN_HELD_FAMILIES:
            raise DataError(
                f"{len(held)} of {n} families are strangers by {config.by}: fewer than {MIN_HELD_FAMILIES} are left to "
                "train on.",
                fix="Hold out fewer families.",
            )
    zone_of_family.update(dict.fromkeys(held, "stranger"))
    rest = {name: [f for f in families if f not in held] for name, families in strata.items()}
    zone_of_family.update(dict.fromkeys(_take(rest, n_validation, config.seed), "validation"))
    zone_of: dict[str, Zone] = {}
    for family in sorted(members):
        zone = zone_of_family[family]
        kept_back = _siblings(family, members[family], config) if zone == "seen" else frozenset()
        for row in members[family]:
            zone_of[row.id] = "sibling" if row.id in kept_back else zone
    counts = _counts(rows, family_of, zone_of, config.stratify)
    ordered = {row.id: zone_of[row.id] for row in rows}
    return Split(ordered, counts, (*moved, *_warnings(counts, strata, zone_of_family, config)))


def held_by_source(members: Mapping[str, Sequence[Row]], config: SplitConfig) -> tuple[set[str], tuple[str, ...]]:
    """Families with a row of a held-out source, and a note if such a family also has rows of other sources.

    Raises DataError for a source that no row has, and where all or only one source is there.
    """
    column = config.field or "source"
    size = Counter(stratum_of(row, column) for rows in members.values() for row in rows)
    unknown = [name for name in config.held_sources if name not in size]
    if unknown or len(size) < 2:
        known = ", ".join(repr(name) for name in sorted(size)[:10])
        what = f"no row is of source {unknown[0]!r}" if unknown else f"all rows are of one source ({known})"
        raise DataError(f"split by source: {what} (column {column!r}).", fix=f"Sources there: {known}.")
    held = set(config.held_sources)
    if not held:
        wanted, total = config.stranger * sum(size.values()), 0
        for name in sorted(size, key=lambda name: _order(config.seed, name))[:-1]:
            if total >= wanted:
                break
            held.add(name)
            total += size[name]
    return _touched(members, lambda row: stratum_of(row, column) in held, "held-out sources")


def held_by_time(members: Mapping[str, Sequence[Row]], config: SplitConfig) -> tuple[set[str], tuple[str, ...]]:
    """Families with a row at or after the cut, and a note if such a family also has older rows.

    Raises DataError for a row whose time cannot be read.
    """
    column = config.field or "time"
    times = {row.id: _time_of(row, column) for rows in members.values() for row in rows}
    if config.held_from is not None:
        cut = _time_value(config.held_from)
        if cut is None:
            raise DataError(
                f"split: expected an ISO date or a number in held_from, found {config.held_from!r}.",
                fix="Write it like 2024-05-31, or as a number.",
            )
    else:
        ordered = sorted(times.values())
        cut = ordered[min(len(ordered) - 1, round((1 - config.stranger) * len(ordered)))]
    if all(value < cut for value in times.values()):
        raise DataError(f"split by time: no row is from {config.held_from!r} on.", fix="Name an earlier time.")
    return _touched(members, lambda row: times[row.id] >= cut, "the held-out time")


def _touched(
    members: Mapping[str, Sequence[Row]], new: Callable[[Row], bool], what: str
) -> tuple[set[str], tuple[str, ...]]:
    held = {family for family, rows in members.items() if any(new(row) for row in rows)}
    both = [family for family in held if not all(new(row) for row in members[family])]
    old = sum(not new(row) for family in both for row in members[family])
    if not both:
        return held, ()
    return held, (
        f"{many(len(both), 'families', 'are')} on both sides of {what}: "
        f"{'it is' if len(both) == 1 else 'they are'} held out whole, with {many(old, 'rows')} from the other side",
    )


def _time_of(row: Row, column: str) -> float:
    value = _time_value(row.meta.get(column))
    if value is None:
        raise DataError(
            f"row {row.id!r} has no time in column {column!r}: found {row.meta.get(column)!r}.",
            fix="Times are ISO dates (2024-05-31, 2024-05-31T10:00:00Z) or numbers.",
        )
    return value


def _time_value(value: Cell) -> float | None:
    """A time as seconds, or a number as it is; None where it is neither."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    try:
        number = float(str(value))
        return number if math.isfinite(number) else None
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _check(rows: Sequence[Row], family_of: Mapping[str, str], config: SplitConfig) -> None:
    shares = {"stranger": config.stranger, "validation": config.validation, "sibling": config.sibling}
    wrong = {name: share for name, share in shares.items() if not 0 <= share < 1}
    if wrong or config.stranger + config.validation >= 1:
        raise DataError(
            f"the shares {shares} cannot be used; expected each in [0, 1) and stranger + validation below 1.",
            fix="Lower them.",
        )
    ids = Counter(row.id for row in rows)
    twice = [row_id for row_id, n in ids.items() if n > 1]
    if twice:
        raise DataError(f"row id {twice[0]!r} is used {ids[twice[0]]} times.", fix="Give every row a unique id.")
    homeless = [row.id for row in rows if row.id not in family_of]
    if homeless:
        raise DataError(
            f"{len(homeless)} of {len(rows)} rows have no family, first {homeless[0]!r}.",
            fix="Give every row a family.",
        )
    if config.stratify and config.stratify != "source" and not any(config.stratify in row.meta for row in rows):
        raise DataError(
            f"no row has a column {config.stratify!r} to stratify by.", fix="Name another, or set it to null."
        )


def problem_of(row: Row) -> str:
    """The canonical text of a row's problem: everything before the last assistant turn, without system prompts."""
    return canonical("\n\n".join(m.said for m in row.prompt if m.role not in ("system", "developer")))


def names_a_problem(prompt: str) -> bool:
    """Whether a prompt is long enough for equal prompts to mean the same problem: "Continue." is not (as in
    families)."""
    if any(map(str.isdigit, prompt)):
        return True
    if prompt.isascii():
        return len(prompt.split(None, SHORT_PROMPT)) >= SHORT_PROMPT
    return len(tokens(prompt[:400])) >= SHORT_PROMPT  # scripts without spaces: by the tokens that families count


def _held(n_families: int, share: float) -> int:
    """Families for a held-out zone: the share rounded, at least two where one is wanted at all."""
    return max(MIN_HELD_FAMILIES, round(share * n_families)) if share > 0 else 0


def stratum_of(row: Row, stratify: str | None) -> str:
    """The stratum of a row: its column `stratify`; for `source`, the row's file if there is no such column."""
    if stratify is None:
        return ""
    value = row.meta.get(stratify)
    return str(value) if value is not None else (row.source if stratify == "source" else "")


def _strata(members: Mapping[str, Sequence[Row]], stratify: str | None) -> dict[str, list[str]]:
    """Families by stratum; a family that spans several counts for the one with most of its rows."""
    strata: dict[str, list[str]] = defaultdict(list)
    for family, rows in members.items():
        votes = Counter(stratum_of(row, stratify) for row in rows)
        strata[min(votes, key=lambda name: (-votes[name], name))].append(family)
    return {name: sorted(strata[name]) for name in sorted(strata)}


def _take(strata: Mapping[str, Sequence[str]], n: int, seed: int) -> set[str]:
    """`n` families, spread over the strata in proportion (largest remainders), each stratum in seeded hash order."""
    total = sum(len(families) for families in strata.values())
    exact = {name: n * len(families) / total for name, families in strata.items() if families}
    quota = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: (quota[name] - exact[name], _order(seed, name)))
    for name in by_remainder[: n - sum(quota.values())]:
        quota[name] += 1
    return {f for name, k in quota.items() for f in sorted(strata[name], key=lambda f: _order(seed, f))[:k]}


def _siblings(family: str, rows: Sequence[Row], config: SplitConfig) -> frozenset[str]:
    """Rows of a trained family to keep back: the share rounded, at least one, never all, none of a single row.

    Rows that say word for word the same stay together, so that no kept-back row is in training under another id. Rows
    of `kept_back` are siblings besides, where another row of the family is trained on.
    """
    free = [row for row in rows if row.id not in config.kept_back]
    n = len(free)
    declared = frozenset(row.id for row in rows if row.id in config.kept_back) if n else frozenset()
    wanted = min(n - 1, max(1, round(config.sibling * n))) if n > 1 and config.sibling > 0 else 0
    if not wanted:
        return declared
    same: dict[str, list[str]] = defaultdict(list)
    for row in free:
        same[f"{problem_of(row)}\0{canonical(row.target or '')}"].append(row.id)
    groups = sorted((sorted(ids) for ids in same.values()), key=lambda ids: _order(config.seed, f"{family}\0{ids[0]}"))
    kept: list[str] = []
    for ids in groups[:-1]:
        if len(kept) + len(ids) <= max(wanted, len(ids) if not kept else 0):
            kept.extend(ids)
    return declared | frozenset(kept)


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogatepass")).digest()


def _counts(
    rows: Sequence[Row], family_of: Mapping[str, str], zone_of: Mapping[str, Zone], stratify: str | None
) -> dict[str, JsonLike]:
    counts: dict[str, Any] = {}
    for zone in ZONES:
        inside = [row for row in rows if zone_of[row.id] == zone]
        strata = Counter(stratum_of(row, stratify) for row in inside)
        families = {family_of[row.id] for row in inside}
        counts[zone] = {"rows": len(inside), "families": len(families), "by_stratum": dict(sorted(strata.items()))}
    return counts


def _warnings(
    counts: Mapping[str, Any],
    strata: Mapping[str, Sequence[str]],
    zone_of_family: Mapping[str, Zone],
    config: SplitConfig,
) -> tuple[str, ...]:
    found: list[str] = []
    n = len(zone_of_family)
    for zone, share in (("stranger", config.stranger), ("validation", config.validation)):
        k = counts[zone]["families"]
        if share == 0:
            found.append(f"{zone} is empty because its share is 0: what is measured on it stays untested")
        elif round(share * n) < MIN_HELD_FAMILIES:
            found.append(f"{zone} holds {k} of {n} families where {share:g} of them would be {share * n:.1f}")
        if share > 0 and zone == "stranger" and k < config.few_families:
            found.append(f"{zone} holds only {k} families: intervals over families will be wide, and few claims settle")
    k = counts["sibling"]["families"]
    if k == 0:
        found.append("sibling is empty: no trained family has a row to spare, so its claims stay untested")
    elif k < config.few_families:
        found.append(f"sibling holds rows of only {many(k, 'families')}: intervals over families will be wide")
    empty = [s for s, families in strata.items() if not any(zone_of_family[f] == "stranger" for f in families)]
    if empty and config.stranger > 0:
        shown = ", ".join(repr(s) for s in empty[:3])
        found.append(f"{len(empty)} of {len(strata)} strata have no stranger family ({shown}): no claim covers them")
    return tuple(found)


# ---------------------------------------------------------------- judging a split


def judge_split(
    zone_of: Mapping[str, str],
    rows: Sequence[Row],
    family_of: Mapping[str, str],
    near: Iterable[tuple[str, str, float]] = (),
) -> tuple[list[Finding], SplitCounts]:
    """What every pair of zones shares, as findings and as counts. `near` holds (row id, row id, similarity) pairs."""
    zones: dict[str, list[Row]] = {zone: [] for zone in (*ZONES, *zone_of.values()) if zone in zone_of.values()}
    unplaced = [row.id for row in rows if row.id not in zone_of]
    for row in rows:
        if row.id in zone_of:
            zones[zone_of[row.id]].append(row)
    findings, counts = judge_zones(zones, family_of, near)
    unknown = set(zone_of) - {row.id for row in rows}
    for check, names, what in (
        ("split.unplaced", unplaced, "rows have no zone"),
        ("split.unknown", sorted(unknown), "ids in the split match no row"),
    ):
        if names:
            message = f"{len(names)} {what}, first {names[0]!r}"
            findings.insert(0, Finding(check, "error", message, names[0], evidence={"n": len(names)}))
    return findings, counts


def judge_zones(
    zones: Mapping[str, Sequence[Row]], family_of: Mapping[str, str], near: Iterable[tuple[str, str, float]] = ()
) -> tuple[list[Finding], SplitCounts]:
    """The same as `judge_split`, for zones given as lists of rows (such as files), where one id may occur twice.

    Each pair is read from the side of the later zone: how many of its rows have a partner in the earlier one. Rows of
    `seen` and `sibling` share families and near-duplicates by design; everything else that is shared is a leak.
    """
    keys = {zone: _Keys.of(rows, family_of) for zone, rows in zones.items()}
    partners: dict[str, set[str]] = defaultdict(set)
    for left, right, _ in near:
        partners[left].add(right)
        partners[right].add(left)
    overlaps = [_overlap(a, b, keys, partners) for a, b in combinations(zones, 2)]
    findings = [finding for overlap in overlaps for finding in _judge(overlap)]
    rank = {"error": 0, "warning": 1, "note": 2}
    findings.sort(key=lambda f: rank[f.severity])
    names = ("ids", "texts", "prompts", "answers", "families", "near", "n_a", "n_b")
    pairs = [ZonePair(o.a, o.b, *(getattr(o, name) for name in names)) for o in overlaps]
    return findings, SplitCounts({zone: len(rows) for zone, rows in zones.items()}, tuple(pairs))


@dataclass(frozen=True, slots=True)
class _Keys:
    """What a zone's rows are compared by, row by row, and the sets of them."""

    rows: Sequence[Row]
    ids: Sequence[str]
    texts: Sequence[str]
    prompts: Sequence[str]
    answers: Sequence[str]
    families: Sequence[str | None]

    @classmethod
    def of(cls, rows: Sequence[Row], family_of: Mapping[str, str]) -> _Keys:
        prompts = [problem_of(row) for row in rows]
        answers = [canonical(row.target or "") for row in rows]
        texts = [f"{prompt}\0{answer}" for prompt, answer in zip(prompts, answers)]
        return cls(rows, [row.id for row in rows], texts, prompts, answers, [family_of.get(row.id) for row in rows])


def _overlap(a: str, b: str, keys: Mapping[str, _Keys], partners: Mapping[str, set[str]]) -> ZoneOverlap:
    left, right = keys[a], keys[b]
    left_ids = set(left.ids)

    def shared(name: str, ok: Callable[[Any], bool] = bool) -> list[str]:
        there = set(getattr(left, name))
        return [i for i, key in zip(right.ids, getattr(right, name)) if ok(key) and key in there]

    hits = {
        "ids": shared("ids"),
        "texts": shared("texts"),
        "prompts": shared("prompts", names_a_problem),
        "answers": shared("answers", lambda answer: len(answer) >= LONG_ANSWER),
        "families": shared("families"),
        "near": [i for i in right.ids if not left_ids.isdisjoint(partners.get(i, ()))],
    }
    numbers = {name: len(ids) for name, ids in hits.items()}
    examples = {name: ids[:5] for name, ids in hits.items() if ids}
    return ZoneOverlap(a, b, len(left.rows), len(right.rows), **numbers, examples=examples)


_SAYS = {
    "ids": "{n} of the {total} rows in {b} have an id that is also in {a}",
    "texts": "{n} of the {total} rows in {b} are word for word in {a}",
    "prompts": "{n} of the {total} prompts in {b} are in {a}",
    "answers": "{n} of the {total} answers in {b} are in {a}",
    "families": "{n} of the {total} rows in {b} have a sibling in {a}",
    "near": "{n} of the {total} rows in {b} have a near-duplicate in {a}",
}


def _judge(overlap: ZoneOverlap) -> list[Finding]:
    kin = {overlap.a, overlap.b} == {"seen", "sibling"}
    found = []
    for name, says in _SAYS.items():
        n = getattr(overlap, name)
        if not n:
            continue
        by_design = kin and name in ("families", "near", "prompts")
        severity: Any = "note" if by_design else ("warning" if name in ("answers", "near") else "error")
        message = says.format(n=n, total=overlap.n_b, a=overlap.a, b=overlap.b)
        evidence = {"a": overlap.a, "b": overlap.b, "n": n, "n_b": overlap.n_b, "rows": overlap.examples[name]}
        found.append(Finding(f"split.{name}", severity, message, overlap.examples[name][0], evidence=evidence))
    return found

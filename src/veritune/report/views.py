"""What each section of the page shows, taken from the records: chosen and ordered, never computed.

A value that a record does not hold is None here and `not recorded` on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veritune.config.claim import SHARE_KINDS, Claim
from veritune.counting import many
from veritune.decide.wording import kept_text, other_side, p_text, rule_text
from veritune.evaluate.means import OverSeeds, over_seeds, zone_mean
from veritune.records import (
    SCORE_ZONES,
    ZONES,
    BaseFacts,
    ContractEntry,
    Estimate,
    Finding,
    Json,
    JsonLike,
    JsonValue,
    RenderAudit,
    RuleCount,
    ThreeZoneGap,
    Trainable,
    Verdict,
    ZoneLoss,
    ZonePair,
    ZoneScore,
    ZoneSize,
    to_json,
)
from veritune.report import interval
from veritune.report.interval import mapping_of, number_of
from veritune.report.read import Records, Run

ASKS = {
    "improves": "scores higher",
    "better_by": "is better by the margin",
    "equivalent": "is equivalent within the margin",
    "not_worse": "is not worse by the margin",
    "no_regression": "shows no regression by the margin",
    "differ": "differs by more than the margin",
    "generalises": "carries its gain to another zone",
    "probe": "a recorded quantity meets a threshold",
    "keeps": "keeps something at no more than a share of the gain",
}
MOST_EVENTS = 100
"""Events shown from the beginning of the timeline, and from its end; all stand in events.jsonl."""
MOST_SOURCES = 24
FIRST = ("method", "target_modules", "r", "lora_alpha", "lora_dropout")
FAMILY_FACTS = ("rows", "originals", "variants", "singletons", "size_p50", "size_max")


def get(record: Any, *path: str) -> Any:
    """The value at a path of fields or keys, None if any step is missing; a filter for the templates."""
    for name in path:
        record = record.get(name) if isinstance(record, Mapping) else getattr(record, name, None)
    return record


# ---------------------------------------------------------------- claims


def text_of(details: Mapping[str, JsonLike], key: str) -> str | None:
    """A text in a part of a record that has no fixed structure; None if there is none."""
    value = details.get(key)
    return value if isinstance(value, str) else None


Fact = tuple[str, str | None, str]
"""(term, value, small print). A value of None is drawn as `not recorded`."""


@dataclass(frozen=True)
class EstimateLine:
    """An estimate as a row of the table; `is_gap` means that its value is written with a sign."""

    estimate: Estimate
    p_text: str | None
    is_gap: bool


@dataclass(frozen=True)
class ClaimCard:
    """One claim as the page shows it."""

    name: str
    status: str
    asks: str
    sentence: str
    exploratory: bool = False
    decision: str | None = None
    grade: str | None = None
    plot: interval.Plot | None = None
    no_interval: str | None = None
    facts: Sequence[Fact] = ()
    estimates: Sequence[EstimateLine] = ()
    may_not: Sequence[str] = ()
    warnings: Sequence[str] = ()
    evidence: Sequence[tuple[str, Json]] = ()
    runs: Sequence[str] = ()


def claims(records: Records) -> list[ClaimCard]:
    """One card per declared claim, in the order of the verdicts; for a claim without a verdict the card says so."""
    declared = {claim.name: claim for claim in records.study.claims}
    cards = [_card(verdict, declared.get(verdict.claim)) for verdict in records.verdicts]
    decided = {card.name for card in cards}
    return cards + [_undecided(claim) for name, claim in declared.items() if name not in decided]


def _card(verdict: Verdict, claim: Claim | None) -> ClaimCard:
    estimates, evidence = verdict.estimates, verdict.confidence.get("evidence")
    return ClaimCard(
        name=verdict.claim,
        status=verdict.status,
        asks=asks(claim, verdict.kind),
        sentence=verdict.sentence,
        exploratory=verdict.exploratory,
        decision=verdict.decision,
        grade=text_of(verdict.confidence, "grade"),
        plot=interval.plot(verdict, claim),
        no_interval=_no_interval(estimates),
        facts=list(_facts(verdict)),
        estimates=[EstimateLine(e, _p(e), _is_gap(verdict, i)) for i, e in enumerate(estimates)],
        may_not=verdict.may_not,
        warnings=list(dict.fromkeys([*verdict.warnings, *(w for e in estimates for w in e.warnings)])),
        evidence=list(evidence.items()) if isinstance(evidence, Mapping) else [],
        runs=list(_runs_of(estimates))[:MOST_SOURCES],
    )


def _undecided(claim: Claim) -> ClaimCard:
    sentence = "No verdict is recorded for this claim. Nothing may be written about it yet."
    return ClaimCard(claim.name, "untested", asks(claim, claim.kind), sentence)


def asks(claim: Claim | None, kind: str) -> str:
    """The declared claim in a few words."""
    words = ASKS.get(kind, kind)
    if claim is None:
        return words
    if kind == "probe":
        return f"{claim.probe} {claim.op} {claim.threshold}"
    if kind == "generalises":
        return (
            f"{claim.condition} carries at least {claim.share} of its gain over {claim.against} "
            f"from {claim.from_zone} to {claim.to_zone}"
        )
    if kind == "keeps":
        price = f"{claim.share:g} of the gain of {claim.reference} over {claim.against}"
        return f"{claim.condition} keeps {kept_text(claim)} for at most {price}"
    where = f" on {claim.zone} items" if claim.zone else " on all items"
    where += f" of {claim.eval}" if claim.eval else ""
    if claim.margin is not None:
        words = words.replace("the margin", f"{claim.margin:g}")
    joint = {"scores higher": "than", "differs": "from", "is equivalent": "to", "shows": "against"}
    link = next((v for k, v in joint.items() if words.startswith(k)), "than")
    return f"{claim.condition} {words} {link} {other_side(claim)}{where}"


def _p(estimate: Estimate) -> str | None:
    return None if estimate.p is None else p_text(estimate.p, estimate.p_floor)


def _is_gap(verdict: Verdict, place: int) -> bool:
    """Whether an estimate is a difference, written with its sign, and not a share or a probe's value."""
    return verdict.kind != "probe" and (place in (1, 2) or verdict.kind not in SHARE_KINDS)


def _no_interval(estimates: Sequence[Estimate]) -> str | None:
    """Why the first estimate has no interval."""
    first = next(iter(estimates), None)
    if first is None or (first.low is not None and first.high is not None):
        return None
    return first.warnings[-1] if first.warnings else "no reason is recorded"


def _facts(verdict: Verdict) -> Iterator[Fact]:
    """What stands beside the drawing: n, seeds, p, margin, power, method of the first estimate."""
    first = next(iter(verdict.estimates), None)
    if first is not None:
        families = first.n_clusters
        yield "n", _count(first.n, "items"), f"in {many(families, 'families')}" if families is not None else ""
        yield "seeds", _count(first.n_seeds), ""
        yield from _p_facts(first, verdict.details)
    yield "margin", f"{verdict.margin:.4g}" if verdict.margin is not None else "none declared", ""
    yield from _rule_facts(verdict.details)
    if verdict.kind in SHARE_KINDS:
        yield "smallest detectable", "does not apply", "to a share"
    elif verdict.kind != "probe" and verdict.status != "untested":
        detectable = "none given" if verdict.detectable is None else f"{verdict.detectable:.4g}"
        yield "smallest detectable", detectable, "at 80 % power"
        if verdict.margin is not None:
            yield "settles the margin", _settles(verdict), ""
    if first is not None:
        yield "method", first.method, ""


def _settles(verdict: Verdict) -> str:
    """How many items or seeds settle the margin, as the verdict records it: items alone, or what it says in words."""
    if verdict.needed_n is None and verdict.details.get("to_settle") is not None:
        return str(verdict.details["to_settle"])
    return _count(verdict.needed_n, "items") or "none given"


def _rule_facts(details: Mapping[str, JsonValue]) -> Iterator[Fact]:
    """A frozen rule and what it came to, where the claim has one."""
    outcome = mapping_of(details, "frozen_rule")
    if outcome:
        arms = (str(outcome.get("a") or "the condition"), str(outcome.get("b") or "the other arm"))
        terms, _, result = rule_text(outcome, *arms).partition(": ")
        yield "frozen rule", result, terms


def _p_facts(first: Estimate, details: Mapping[str, JsonValue]) -> Iterator[Fact]:
    """The p of the claim with its correction; the p of the plain difference under a name of its own, where it differs:
    they test different hypotheses (`differs by more than 0.05`, `differs at all`)."""
    claimed, corrected = number_of(details, "p_before_correction"), number_of(details, "p_corrected")
    family = details.get("claims_in_family")
    if claimed is not None:
        yield "p of the claim", p_bare(claimed), "before correction"
    if corrected is not None:
        yield "p of the claim, corrected", p_bare(corrected), f"over {family} claims" if family else ""
    if first.p is not None and first.p != claimed:
        name = "p" if claimed is None else "p of no difference"
        yield name, p_bare(first.p, first.p_floor), first.p_method or ""


def p_bare(p: float, floor: float | None = None) -> str:
    """p without the leading `p =`; an upper bound keeps its sign."""
    return p_text(p, floor).removeprefix("p ").removeprefix("= ")


def _count(value: int | None, unit: str = "") -> str | None:
    return None if value is None else f"{value:,} {unit}".strip()


def _runs_of(estimates: Sequence[Estimate]) -> Iterator[str]:
    """Ids of the runs that the estimates compare, each once."""
    arms = [mapping_of(estimate.details, side) for estimate in estimates for side in ("a", "b")]
    listed = [arm.get("runs") for arm in arms]
    yield from dict.fromkeys(str(run) for runs in listed if isinstance(runs, list | tuple) for run in runs)


# ---------------------------------------------------------------- scores


@dataclass(frozen=True)
class RuleTable:
    """How often each rule held on one zone, by run."""

    zone: str
    runs: Sequence[Run]
    rows: Sequence[tuple[str, Sequence[RuleCount | None]]]


SpreadRow = tuple[str, int, Sequence[OverSeeds | None]]
"""(condition, its runs, mean to range of each column over its seeds; None where fewer than two runs have one)."""


def _spread_rows(rows: Sequence[tuple[Run, Sequence[float | None]]]) -> list[SpreadRow]:
    """A row a condition of several runs: each column's mean, least, greatest and range over its seeds."""
    by_condition: dict[str, list[Sequence[float | None]]] = {}
    for run, values in rows:
        by_condition.setdefault(run.condition, []).append(values)
    return [
        (name, len(found), [over_seeds([v for v in column if v is not None]) for column in zip(*found)])
        for name, found in by_condition.items()
        if len(found) > 1
    ]


def _mean_of(cell: ZoneScore | None) -> float | None:
    mean = zone_mean(cell) if cell is not None else None
    return mean.value if mean is not None else None


@dataclass(frozen=True)
class ScoreView:
    """One eval: one row per run, one column per zone; `limit` is the most tokens that an output may have."""

    name: str
    kind: str
    zones: Sequence[str]
    rows: Sequence[tuple[Run, Sequence[ZoneScore | None]]]
    limit: int
    rules: Sequence[RuleTable]
    sources: Sequence[str]
    spreads: Sequence[SpreadRow] = ()


def scores(records: Records) -> list[ScoreView]:
    """For every eval: one row per run, one column per zone, with denominators, missing scores by reason and truncated
    outputs.
    """
    tables = []
    for name, spec in records.study.evals.items():
        found = [(run, run.zone_scores(name)) for run in records.runs]
        here = [z for z in SCORE_ZONES if z in spec.zones or any(z in by_zone for _, by_zone in found)]
        zones = _deciding_first(records, here)
        rows = [(run, [by_zone.get(z) for z in zones]) for run, by_zone in found]
        limits = {run.stamps[name].decoding.max_new_tokens for run in records.runs if name in run.stamps}
        tables.append(
            ScoreView(
                name=name,
                kind=spec.kind,
                zones=zones,
                rows=rows,
                limit=next(iter(limits)) if len(limits) == 1 else spec.max_new_tokens,
                rules=_rules(zones, found, [rule.name for rule in spec.rules]),
                sources=[run.path("summary.json") for run in records.runs if run.summary],
                spreads=_spread_rows([(run, [_mean_of(cell) for cell in cells]) for run, cells in rows]),
            )
        )
    return tables


def _deciding_first(records: Records, zones: Sequence[str]) -> list[str]:
    """Zones that claims speak of come first: on a narrow screen the first columns are what is seen."""
    deciding = {claim.to_zone if claim.kind == "generalises" else claim.zone for claim in records.study.claims}
    return sorted(zones, key=lambda zone: zone not in deciding)


def _rules(
    zones: Sequence[str], found: Sequence[tuple[Run, Mapping[str, ZoneScore]]], order: Sequence[str]
) -> list[RuleTable]:
    """Per zone, rule × run: how often each rule held, of how many. Empty where no summary recorded it."""
    tables = []
    for zone in sorted(zones, key=lambda z: z != "stranger"):
        by_run = [(run, (by_zone[zone].rules if zone in by_zone else None) or {}) for run, by_zone in found]
        seen = list(dict.fromkeys(name for _, rules in by_run for name in rules))
        names = sorted(seen, key=lambda name: order.index(name) if name in order else len(order))
        if names:
            rows = [(name, [rules.get(name) for _, rules in by_run]) for name in names]
            tables.append(RuleTable(zone, [run for run, _ in by_run], rows))
    return tables


@dataclass(frozen=True)
class LossView:
    """Loss by run and zone."""

    zones: Sequence[str]
    rows: Sequence[tuple[Run, Sequence[ZoneLoss | None]]]
    sources: Sequence[str]
    spreads: Sequence[SpreadRow] = ()


def losses(records: Records) -> LossView:
    """NLL by run and zone, with the number of target tokens behind it."""
    zones = _deciding_first(records, [z for z in ZONES if any(z in run.losses for run in records.runs)])
    rows = [(run, [run.losses.get(z) for z in zones]) for run in records.runs]
    spreads = _spread_rows([(run, [cell.nll if cell else None for cell in cells]) for run, cells in rows])
    return LossView(zones, rows, [run.path("summary.json") for run in records.runs if run.losses], spreads)


@dataclass(frozen=True)
class GapView:
    """The shares of the gain that carry over to siblings and strangers, by run; `first` has the thresholds of the
    word."""

    rows: Sequence[tuple[Run, Sequence[Estimate | None]]]
    first: ThreeZoneGap | None
    sources: Sequence[str]


def gaps(records: Records) -> GapView:
    """The three-zone gap of every trained run: how much of its gain in loss carries over to siblings and strangers."""
    measured = [(run, run.gap) for run in records.runs if run.gap is not None]
    rows = [(run, [gap.carried.get(zone) for zone in ("sibling", "stranger")]) for run, gap in measured]
    first = measured[0][1] if measured else None
    return GapView(rows, first, [run.path("probes/three_zone.json") for run, _ in measured])


# ---------------------------------------------------------------- conditions and training


@dataclass(frozen=True)
class ConditionView:
    """Settings by condition: (term, one value per condition, whether they differ)."""

    names: Sequence[str]
    rows: Sequence[tuple[str, Sequence[object], bool]]
    factor: Sequence[str]
    sources: Sequence[str]


def conditions(records: Records) -> ConditionView:
    """The settings of each condition, and which of them differ."""
    arms = {name: [r for r in records.runs if r.condition == name] for name in records.study.conditions}
    columns = [(name, runs[0] if runs else None) for name, runs in arms.items()]
    methods: list[Json] = [run.manifest.method if run else {} for _, run in columns]
    named = list(dict.fromkeys(k for m in methods for k in m if k != "learning_rate"))
    keys = sorted(named, key=lambda k: FIRST.index(k) if k in FIRST else len(FIRST))
    rows: list[tuple[str, list[object]]] = [(key.replace("_", " "), [m.get(key) for m in methods]) for key in keys]
    rows.append(("peak learning rate", [_rate(run) for _, run in columns]))
    trained = [run.training.trainable if run and run.training else None for _, run in columns]
    rows.append(("modules resolved", [_modules(t) for t in trained]))
    rows.append(("trainable parameters", [t.n_trainable if t else None for t in trained]))
    rows.append(("of all parameters", [t.n_total if t else None for t in trained]))
    if any(trained):
        rows.append(("trainable share", [t.share if t else None for t in trained]))
    sources = [run.path(f) for _, run in columns if run for f in ("manifest.json", "training.json")]
    differing = [(term, values, len({repr(v) for v in values}) > 1) for term, values in rows]
    return ConditionView([n for n, _ in columns], differing, records.study.factor, sources)


def _rate(run: Run | None) -> float | None:
    """The learning rate of a run; what another trainer used is not known here."""
    return None if run is None or run.manifest.trained_elsewhere else run.manifest.lr


def _modules(trainable: Trainable | None) -> list[str] | None:
    if trainable is None:
        return None
    names = trainable.options.get("target_modules") or trainable.modules
    if not isinstance(names, list | tuple):
        return None
    return list(dict.fromkeys(str(name).rsplit(".", 1)[-1] for name in names))


@dataclass(frozen=True)
class TrainingView:
    """The trained runs, and the settings they share."""

    rows: Sequence[Run]
    shared: Json
    sources: Sequence[str]


def training(records: Records) -> TrainingView:
    """One row per trained run: its training and the chosen checkpoint."""
    rows = [run for run in records.runs if not run.is_baseline]
    shared = rows[0].manifest.train if rows else {}
    return TrainingView(rows, shared, [run.path("training.json") for run in rows if run.training])


# ---------------------------------------------------------------- data


@dataclass(frozen=True)
class AuditGroup:
    """Findings of one check of the data's audit: how many, and the first of them."""

    severity: str
    check: str
    n: int
    first: Sequence[Finding]


SEVERITIES = ("error", "warning", "note")
MOST_FINDINGS = 3
"""Findings of one check that the page shows; all stand in audit/findings.jsonl."""


def _audit(findings: Sequence[Finding]) -> list[AuditGroup]:
    """The findings by check, errors first."""
    grouped: dict[tuple[int, str], list[Finding]] = {}
    for finding in findings:
        grouped.setdefault((SEVERITIES.index(finding.severity), finding.check), []).append(finding)
    return [
        AuditGroup(SEVERITIES[place], check, len(found), found[:MOST_FINDINGS])
        for (place, check), found in sorted(grouped.items())
    ]


@dataclass(frozen=True)
class DataView:
    """Zones as (zone, rows and families, tokens, target tokens); counts of families; what the zones share."""

    zones: Sequence[tuple[str, ZoneSize, int | None, int | None]]
    families: Sequence[tuple[str, object]]
    more_families: Sequence[tuple[str, object]]
    evidence: Sequence[tuple[str, int]]
    sizes: Sequence[tuple[str, int]]
    largest: Sequence[tuple[str, int]]
    pairs: Sequence[ZonePair] | None
    findings: Sequence[Finding]
    audit: Sequence[AuditGroup]
    warnings: Sequence[str]
    render: RenderAudit | None
    rejects: Sequence[tuple[str, int]]
    has_split: bool
    near: bool


def data(records: Records) -> DataView:
    """Zones, families and their evidence, what the zones share, and the loss mask of one example."""
    facts, split = records.facts, records.split
    families = facts.families if facts is not None else {}
    counts = {k: v for k, v in families.items() if not isinstance(v, list | dict)}
    zones = []
    if facts is not None:
        sizes = [(z, facts.zones[z]) for z in ZONES if z in facts.zones]
        zones = [(z, size, facts.tokens.get(z), facts.target_tokens.get(z)) for z, size in sizes]
    return DataView(
        zones=zones,
        families=[(k, counts[k]) for k in FAMILY_FACTS if k in counts],
        more_families=[(k, v) for k, v in counts.items() if k not in FAMILY_FACTS],
        evidence=list((families.get("evidence") or {}).items()),
        sizes=list((families.get("sizes") or {}).items()),
        largest=(families.get("largest") or [])[:5],
        pairs=split.counts.pairs if split is not None else None,
        findings=split.findings if split is not None else (),
        audit=_audit(records.findings),
        warnings=split.warnings if split is not None else (),
        render=records.render,
        rejects=list(records.data.rejects.items()) if records.data is not None else [],
        has_split=split is not None,
        near=bool(records.study.data.near_duplicates),
    )


# ---------------------------------------------------------------- timeline and reproduction


@dataclass(frozen=True)
class EventView:
    """One event of the timeline with its facts as text; `time` is None for a line that summarises many events."""

    time: str | None
    event: str
    facts: Sequence[tuple[str, str]]


HIDDEN = ("time", "event", "previous", "hash", "files", "runs")
"""Keys of an event that are for `verify`, not for reading."""


def timeline(records: Records) -> list[EventView]:
    """The events, oldest first, each with its facts."""
    events = [
        EventView(event["time"], event["event"], [(k, _flat(v)) for k, v in event.items() if k not in HIDDEN])
        for event in records.events
    ]
    if len(events) <= 2 * MOST_EVENTS:
        return events
    gap = EventView(None, f"{len(events) - 2 * MOST_EVENTS:,} events that are not shown here", ())
    return [*events[:MOST_EVENTS], gap, *events[-MOST_EVENTS:]]


def _flat(value: JsonLike) -> str:
    if value in (None, [], {}, ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_flat(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class ReproductionView:
    """Hashes by name, the base model, contract entries, versions and machines."""

    hashes: Sequence[tuple[str, str | None]]
    model: BaseFacts | None
    path: str
    entries: Sequence[ContractEntry]
    packages: Sequence[tuple[str, str]]
    machines: Sequence[Sequence[tuple[str, str]]]
    seeds: Sequence[int]
    runs: Sequence[Run]


def reproduction(records: Records) -> ReproductionView:
    """Everything needed to reproduce the numbers, and the hashes that identify it."""
    facts, frozen = records.facts, records.contract
    manifests = [run.manifest for run in records.runs]
    machines = list(dict.fromkeys(m.machine for m in manifests))
    packages = frozen.facts.packages if frozen is not None else manifests[0].packages if manifests else {}
    model = frozen.facts.model if frozen is not None else None
    return ReproductionView(
        hashes=[
            ("contract", records.contract_hash),
            ("data version", get(facts, "data_version")),
            ("data file", get(facts, "data_sha256")),
            ("rendered rows", get(facts, "rendered_sha256")),
            ("chat template", get(facts, "template_sha256")),
            ("tokenizer", get(facts, "tokenizer_sha256")),
            *((f"model: {name}", digest) for name, digest in (model.files if model is not None else {}).items()),
        ],
        model=model,
        path=records.study.model.path,
        entries=frozen.entries if frozen is not None else (),
        packages=list(packages.items()),
        machines=[[(k.replace("_", " "), _flat(v)) for k, v in to_json(m).items()] for m in machines],
        seeds=records.study.seeds,
        runs=records.runs,
    )

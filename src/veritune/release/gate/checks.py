"""The eight gates. Each looks at a case and says passed, failed or undecided, with numbers, thresholds and evidence.

    data         the audit of the very rows that were trained on, the split's and the contamination's records
    target       the verdicts on the named claims
    regression   golden sets and imported benchmarks, by interval (`noninferior`)
    safety       red-team prompts answered by both models (`safety`), judged again with the policy's margins
    calibration  the upper ends of ECE and Brier
    serving      ratios of latency, throughput, memory and cost, by their worse ends, and of the latencies' tail
    merge        the parity record of the merged weights
    rollback     the drill's record, not too old

Evidence that is missing, made from other bytes or for other weights leaves a gate undecided, never passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from veritune.config.release import Release, ServingGate, Suite
from veritune.counting import many
from veritune.data.audit import AuditConfig, audit_data
from veritune.data.datasheet import datasheet
from veritune.decide.sides import Side, load_side
from veritune.errors import InputError, VerituneError
from veritune.evaluate.logs import Reading
from veritune.machine import package_versions
from veritune.records import (
    ContaminationAudit,
    GateResult,
    JsonLike,
    Score,
    SplitAudit,
    StudyVerdicts,
    Verdict,
    to_json,
)
from veritune.release.gate.candidate import Case
from veritune.release.gate.evidence import (
    RATIOS,
    Evidence,
    evidence_file,
    input_hashes,
    input_path,
    read_evidence,
    why_not,
    write_evidence,
)
from veritune.release.gate.noninferior import Bar, Noninferior, Status, not_worse, worst
from veritune.release.gate.stated import estimate_problem
from veritune.release.parity.load import SAMPLES, TailRule, tail_numbers, tails
from veritune.stats.table import ScoreTable
from veritune.store import read_json, read_jsonl

LOOK: Mapping[str, str] = {
    "target": "veritune status .",
    "safety": "veritune safety . --show",
    "calibration": "veritune probe calibration --help",
    "serving": "veritune serve-parity --help",
    "merge": "veritune merge-parity .",
    "rollback": "veritune rollback BUNDLE --drill",
}
"""The command that shows more of a gate, in the study's folder; data and regression name their files."""


@dataclass(frozen=True, slots=True)
class Part:
    """One requirement of a gate. A gate's result is that of its worst part."""

    status: Status
    message: str


def _joined(gate: str, parts: list[Part], **more: Any) -> GateResult:
    """A gate from its parts: the messages of those that block, or of all where none does."""
    status = worst([p.status for p in parts])
    said = [p.message for p in parts if p.status == status]
    return GateResult(gate, status, "; ".join(said), **more)


def undecided(gate: str, message: str, look: str, **more: Any) -> GateResult:
    """An undecided gate, whose evidence is missing."""
    return GateResult(gate, "undecided", message, look=look, **more)


def usable(case: Case, kind: str) -> Evidence | str:
    """The record of a kind, or the reason why it is not valid evidence for this candidate now."""
    path = case.store.relative(evidence_file(case.store, kind))
    try:
        record = read_evidence(case.store, kind)
    except VerituneError as exc:
        return exc.message
    if record is None:
        return f"no evidence: {path} is missing"
    reason = why_not(case.store, record, case.candidate.subject)
    return f"{path} does not count: {reason}" if reason else record


def _files(case: Case, record: Evidence) -> tuple[str, ...]:
    return (case.store.relative(evidence_file(case.store, record.kind)), *record.outputs)


# ---------------------------------------------------------------- data


def data(case: Case) -> GateResult:
    """The data gate: audit clean, deduplicated, licences allowed, split and contamination passed."""
    policy = case.policy.release.data
    look = f"veritune audit {case.study.data.path} --out release/data"
    numbers: dict[str, Any] = {}
    parts = [_audited(case, numbers), _split(case), _contamination(case, numbers)]
    evidence = ("release/data.json", "audit/split.json", "audit/contamination.json")
    thresholds = policy.model_dump(mode="json")
    return _joined("data", parts, numbers=numbers, thresholds=thresholds, evidence=evidence, look=look)


def _audited(case: Case, numbers: dict[str, Any]) -> Part:
    policy = case.policy.release.data
    found = _audit_record(case)
    if isinstance(found, str):
        return Part("undecided", found)
    numbers |= found
    failed = []
    if found["errors"]:
        failed.append(f"the audit has {found['errors']} errors")
    if found["flagged"] > policy.flagged * found["rows"]:
        failed.append(f"{found['flagged']} of {found['rows']} rows are flagged")
    if found["duplicates"] > policy.duplicates:
        failed.append(f"{found['duplicates']} rows repeat an earlier one")
    licence = _licence(case, found)
    if licence.status == "failed":
        failed.append(licence.message)
    if failed:
        return Part("failed", ", ".join(failed))
    if licence.status == "undecided":
        return licence
    return Part("passed", f"{found['rows']} rows audited clean, {found['duplicates']} duplicates, {licence.message}")


def _licence(case: Case, found: Mapping[str, Any]) -> Part:
    policy = case.policy.release.data
    allowed = {name.casefold() for name in policy.licences}
    named = dict(found["licences"] or {"not stated": found["rows"]})
    unnamed = named.pop("not stated", 0)
    if unnamed and policy.licence is not None:
        named[policy.licence] = named.get(policy.licence, 0) + unnamed
        unnamed = 0
    if not allowed:
        return Part("undecided", "the policy allows no licence (set release.data.licences)")
    outside = {name: n for name, n in named.items() if name.casefold() not in allowed}
    if outside:
        return Part("failed", "licences not allowed: " + ", ".join(f"{k} ({n} rows)" for k, n in outside.items()))
    if unnamed:
        return Part("undecided", f"{unnamed} of {found['rows']} rows name no licence (state it: release.data.licence)")
    return Part("passed", "licences " + ", ".join(f"{k} ({n} rows)" for k, n in named.items()))


def _audit_record(case: Case) -> dict[str, Any] | str:
    """Numbers of the audit of the contract's rows; made here where the data file lies, or why there are none.

    A record whose data file is unchanged is taken as it is.
    """
    source = case.store.root / case.study.data.path
    settings: dict[str, Any] = {"data_sha256": case.facts.data_sha256, "data": case.study.data.model_dump(mode="json")}
    settings |= {"veritune": package_versions().get("veritune")}
    record = usable(case, "data")
    if isinstance(record, Evidence) and record.settings == to_json(settings):
        return dict(record.numbers)
    if not source.exists():
        return f"the data file {case.study.data.path} is missing, so nothing could be audited"
    try:
        numbers, digest = _audit(case, source)
    except VerituneError as exc:
        return f"the data cannot be audited: {exc.message}"
    if digest != settings["data_sha256"]:
        return f"{case.study.data.path} differs from the data of the contract"
    inputs = input_hashes(case.store, source) if source.is_file() else {}
    message = f"{numbers['rows']} rows audited"
    status: Status = "passed" if not numbers["errors"] else "failed"
    write_evidence(case.store, Evidence("data", status, message, case.candidate.subject, numbers, {}, inputs, settings))
    return numbers


def _audit(case: Case, source: Path) -> tuple[dict[str, Any], str]:
    spec = case.study.data
    config = AuditConfig(columns=spec.columns, family_field=spec.family_field, id_field=spec.id_field)
    report = audit_data(source, config=config)
    counts = report.quality.counts
    return {
        "rows": len(report.rows),
        "errors": sum(f.severity == "error" for f in report.findings),
        "flagged": len(report.quality.flagged),
        "duplicates": counts.get("duplicate", {}).get("rows", 0),
        "reasons": {reason: found["rows"] for reason, found in counts.items() if found["rows"]},
        "licences": datasheet(report).record["licences"],
    }, report.sha256


def _split(case: Case) -> Part:
    path = case.store.audit("split.json")
    reason = case.unsealed(path)
    if reason:
        return Part("undecided", reason)
    errors = [f for f in SplitAudit.load(path).findings if f.severity == "error"]
    if errors:
        return Part("failed", f"split: {errors[0].message} ({len(errors)} such findings)")
    return Part("passed", "no family is on both sides of the split")


def _contamination(case: Case, numbers: dict[str, JsonLike]) -> Part:
    path = case.store.audit("contamination.json")
    reason, frozen = case.unsealed(path), case.facts.contamination
    if reason or frozen is None:
        return Part("undecided", reason or "the contract records no contamination check")
    audit = ContaminationAudit.load(path)
    gate = audit.gate
    if gate.status != frozen.status or audit.by_eval != frozen.evals:
        return Part("undecided", "audit/contamination.json is not the check that the contract froze")
    near = frozen.near_copies
    numbers |= {"near_copies": near, "evals_checked": sorted(frozen.evals)}
    if gate.status != "passed":
        return Part(gate.status, f"contamination: {gate.message}")
    if near > case.policy.release.data.near_copies:
        most = case.policy.release.data.near_copies
        return Part(
            "failed", f"contamination: trained rows that are near-copies of held-out items: {near}, allowed {most}"
        )
    return Part("passed", f"no overlap with {many(len(frozen.evals), 'evals')}")


# ---------------------------------------------------------------- target


_BY_MARGIN = {"better_by": "margin", "equivalent": "margin", "not_worse": "margin", "no_regression": "margin"}
_BY_MARGIN |= {"differ": "margin", "generalises": "share", "keeps": "share", "probe": "threshold"}


def target(case: Case) -> GateResult:
    """The target gate: the named claims are supported, each by its declared margin and about the condition to ship."""
    look = LOOK["target"]
    reason = case.unsealed(case.store.verdict_file)
    record = None if reason else StudyVerdicts.load(case.store.verdict_file)
    if record is not None and record.contract != case.contract_hash:
        reason = "the verdicts were made under another entry of the contract"
    wanted = case.policy.release.target.claims
    declared = {claim.name: claim for claim in case.study.claims}
    about = case.candidate.condition
    names = wanted or [n for n, c in declared.items() if c.kind == "better_by" and c.condition == about]
    if not reason and not names:
        reason = f"no claim of kind better_by is about {about}; name claims in release.target.claims"
    if reason or record is None:
        return undecided("target", reason or "", look, evidence=("verdict.json",))
    verdicts = record.by_claim()
    parts = [_claim(name, declared.get(name), verdicts.get(name), about) for name in names]
    numbers = {name: _claim_numbers(verdicts[name]) for name in names if name in verdicts}
    thresholds = {n: {_BY_MARGIN[c.kind]: getattr(c, _BY_MARGIN[c.kind])} for n, c in _declaring(declared, names)}
    evidence = ("verdict.json",)
    return _joined("target", parts, numbers=numbers, thresholds=thresholds, evidence=evidence, look=look)


def _declaring(declared: Mapping[str, Any], names: Iterable[str]) -> list[tuple[str, Any]]:
    return [(n, declared[n]) for n in names if n in declared and declared[n].kind in _BY_MARGIN]


def _claim(name: str, claim: Any, verdict: Verdict | None, about: str) -> Part:
    if claim is None or verdict is None:
        return Part("undecided", f"no claim {name!r} has a verdict here")
    field = _BY_MARGIN.get(claim.kind)
    if field is None or getattr(claim, field) is None:
        return Part("undecided", f"claim {name} ({claim.kind}) declares no margin")
    if claim.condition != about and claim.kind != "probe":
        return Part("undecided", f"claim {name} is about {claim.condition}, not about {about}")
    if verdict.exploratory:
        return Part("undecided", f"claim {name} is exploratory: it was not declared before results")
    status: Status = {"supported": "passed", "refuted": "failed"}.get(verdict.status, "undecided")  # type: ignore[assignment]
    first = next(iter(verdict.estimates), None)
    size = ""
    if first and first.low is not None:
        size = f" ({first.value:+.3f}, {first.low:+.3f} to {first.high:+.3f}, n {first.n})"
    return Part(status, f"claim {name} is {verdict.status}{size}")


def _claim_numbers(verdict: Verdict) -> dict[str, str | float | int | None]:
    first = next(iter(verdict.estimates), None)
    keys = ("value", "low", "high", "level", "n", "method", "scope")
    return {"status": verdict.status, **{k: getattr(first, k, None) for k in keys}}


# ---------------------------------------------------------------- regression


def regression(case: Case) -> GateResult:
    """The regression gate: not worse on every declared suite. All suites must pass, so no correction for several suites
    is needed.
    """
    suites = case.policy.release.regression.suites
    if not suites:
        message = "no golden set is declared (set release.regression.suites)"
        return undecided("regression", message, f"veritune compare {_arms(case)}")
    found = {name: _suite(case, name, suite) for name, suite in suites.items()}
    parts = [Part(f.status, f"{name}: {f.message}") for name, (f, _) in found.items()]
    return _joined(
        "regression",
        parts,
        numbers={name: {"status": f.status, **f.numbers} for name, (f, _) in found.items()},
        thresholds={name: {"margin": suite.margin, "alpha": suite.alpha} for name, suite in suites.items()},
        evidence=tuple(dict.fromkeys(file for _, files in found.values() for file in files)),
        look=_look_at(case, {name: f for name, (f, _) in found.items()}),
    )


def _arms(case: Case) -> str:
    return f"runs/{case.candidate.run_id} runs/{case.candidate.baseline}"


def _look_at(case: Case, found: Mapping[str, Noninferior]) -> str:
    """The comparison behind the suite that blocks, or behind the first."""
    suites = case.policy.release.regression.suites
    status = worst([f.status for f in found.values()])
    name = next(n for n, f in found.items() if f.status == status)
    suite = suites[name]
    if suite.eval is None:
        return f"veritune gate . --attest {name} --candidate FILE --base FILE --by NAME"
    zone = f" --zone {suite.zone}" if suite.zone else ""
    return f"veritune compare {_arms(case)} --eval {suite.eval}{zone} --margin {suite.margin:g}"


def _suite(case: Case, name: str, suite: Suite) -> tuple[Noninferior, tuple[str, ...]]:
    try:
        return _imported(case, name, suite) if suite.eval is None else _own(case, suite)
    except VerituneError as exc:
        return Noninferior("undecided", exc.message, {}), ()


def _own(case: Case, suite: Suite) -> tuple[Noninferior, tuple[str, ...]]:
    """An eval of the study: the candidate's own run against the baseline, from scores as they were sealed."""
    runs = (case.candidate.run_id, case.candidate.baseline)
    paths = [case.store.run(run) / "scores" / f"{suite.eval}.jsonl" for run in runs]
    weights = [p for p in case.candidate.folder.iterdir() if p.suffix == ".safetensors"]
    reason = next((r for r in map(case.unsealed, [*paths, *weights]) if r), None)
    files = tuple(case.store.relative(p) for p in paths if p.exists())
    if reason:
        return Noninferior("undecided", reason, {}), files
    rows = [Score.load_all(path) for path in paths]
    arms = (case.candidate.condition, "baseline")
    tables = [
        ScoreTable.from_scores(part, condition=arm, fixed=i == 1).in_zone(suite.zone)
        for i, (part, arm) in enumerate(zip(rows, arms))
    ]
    said = [{s.item_id: s.output for s in part if suite.zone in (None, s.zone)} for part in rows]
    bar = Bar(suite.margin, suite.alpha, outputs_differ=said[0] != said[1], scale=(0.0, 1.0))
    return not_worse(tables[0], tables[1], bar), files


def regression_kind(suite: str) -> str:
    """The kind of the record that ties a suite's imported files to the scored weights."""
    return f"regression-{suite}"


def _imported(case: Case, name: str, suite: Suite) -> tuple[Noninferior, tuple[str, ...]]:
    record = usable(case, regression_kind(name))
    if isinstance(record, str):
        return Noninferior("undecided", f"{record}; attest score files with `veritune gate . --attest {name}`", {}), ()
    sides = [[input_path(case.store, file) for file in record.settings[side]] for side in ("candidate", "base")]
    if suite.loss:
        return read_forgetting(sides[0], suite), (*_files(case, record), *record.inputs)
    return compare_files(sides[0], sides[1], suite), (*_files(case, record), *record.inputs)


def compare_files(candidate: list[Path], base: list[Path], suite: Suite) -> Noninferior:
    """The comparison of the candidate's score files with the base's, in any format that `compare` reads. Raises
    ScoreError.
    """
    reading = Reading(
        metric=suite.metric, filter=suite.filter, id=suite.id, family=suite.family,
        higher_is_better=suite.higher_is_better,
    )  # fmt: skip
    a, _ = load_side(Side("candidate", tuple(candidate)), reading)
    b, _ = load_side(Side("base", tuple(base)), reading)
    return not_worse(a, b, Bar(suite.margin, suite.alpha, scale=suite.scale))


def read_forgetting(files: Sequence[Path], suite: Suite) -> Noninferior:
    """A record of `veritune probe forgetting` judged against the suite's margin, by its own interval.

    Raises InputError for a file that holds no such record.
    """
    record = read_json(files[0]) if len(files) == 1 and files[0].is_file() else {}
    record = record.get("loss", record)
    rise = record.get("rise") if isinstance(record, Mapping) else None
    if not isinstance(rise, Mapping) or record.get("kind") != "forgetting":
        raise InputError(
            "expected one record of a regression set's loss.", fix="Make one: veritune probe forgetting ... --out FILE"
        )
    low, high, level = rise.get("low"), rise.get("high"), rise.get("level")
    value = rise.get("value")
    problem = estimate_problem(rise)
    if problem or value is None or level is None:
        raise InputError(
            f"{files[0].name}, rise: {problem or 'expected `value` and `level`, found null'}.",
            fix="Make the record again: veritune probe forgetting ... --out FILE",
        )
    numbers = {k: rise.get(k) for k in ("value", "low", "high", "level", "n", "n_clusters", "method")}
    if low is None or high is None:
        return Noninferior(
            "undecided", f"the loss of {rise.get('n')} rows has no interval: too few independent rows", numbers
        )
    if not level or level < 1 - suite.alpha - 1e-9:
        return Noninferior(
            "undecided", f"its interval is at level {level:.4g}, but the suite needs {1 - suite.alpha:.4g}", numbers
        )
    status: Status = "passed" if high <= suite.margin else "failed" if low > suite.margin else "undecided"
    ends = f"{value:+.3f} ({low:+.3f} to {high:+.3f}) nats per token on {rise.get('n')} rows"
    open_ = "" if status != "undecided" else "; the interval reaches across the margin"
    return Noninferior(status, f"the loss rose by {ends}, margin {suite.margin:g}{open_}", numbers)


# ---------------------------------------------------------------- the gates that read a record


def safety(case: Case) -> GateResult:
    """The safety gate: unsafe answers and refused harmless prompts not above the base's, by the policy's margins."""
    from veritune.release.gate.safety import judge, read_graded

    policy, look = case.policy.release.safety, LOOK["safety"]
    record = usable(case, "safety")
    thresholds = policy.model_dump(mode="json")
    if isinstance(record, str):
        return undecided("safety", record, "veritune safety .", thresholds=thresholds)
    asked = set(record.settings.get("sets", ()))
    absent = [name for name in policy.sets if name not in asked]
    if absent:
        message = f"prompt set {absent[0]!r} was not asked"
        return undecided("safety", message, look, thresholds=thresholds, evidence=_files(case, record))
    try:
        found = judge(read_graded(case.store, record), policy)
    except VerituneError as exc:
        return undecided("safety", f"the graded answers cannot be read: {exc}", look, thresholds=thresholds)
    evidence = _files(case, record)
    return GateResult("safety", found.status, found.message, found.numbers, evidence, look, thresholds)


def _limit(name: str, estimate: Any, most: float | None = None, least: float | None = None) -> Part:
    """A limit on an estimate: its worse end decides a pass, its better end a failure; no interval decides nothing."""
    limit = most if most is not None else least
    low, high = (estimate.get(k) if isinstance(estimate, Mapping) else None for k in ("low", "high"))
    if low is None or high is None or limit is None:
        return Part("undecided", f"{name}: no interval was recorded")
    problem = estimate_problem(estimate)
    if problem:
        return Part("undecided", f"{name}: {problem}")
    inside, outside = (high <= limit, low > limit) if most is not None else (low >= limit, high < limit)
    status: Status = "passed" if inside else "failed" if outside else "undecided"
    sign = "at most" if most is not None else "at least"
    value = estimate.get("value")
    size = "" if value is None else f"{value:.3g} "
    return Part(status, f"{name} {size}({low:.3g} to {high:.3g}), {sign} {limit:g}")


def _own_word(record: Evidence) -> Part:
    return Part(record.status, record.message)


def calibration(case: Case) -> GateResult:
    """The calibration gate: the whole intervals of ECE and Brier score within the limits."""
    policy, look = case.policy.release.calibration, LOOK["calibration"]
    thresholds = policy.model_dump(mode="json")
    record = usable(case, "calibration")
    if isinstance(record, str):
        return undecided("calibration", record, look, thresholds=thresholds)
    ece = "ece_debiased" if "ece_debiased" in record.numbers else "ece"  # plain ECE is biased upward
    limits = ((ece, policy.ece), ("brier", policy.brier))
    parts = [_limit(name, record.numbers.get(name), most=limit) for name, limit in limits]
    if record.status != "passed":
        parts.append(_own_word(record))
    more = {"numbers": record.numbers, "thresholds": thresholds, "evidence": _files(case, record)}
    return _joined("calibration", parts, look=look, **more)


def serving(case: Case) -> GateResult:
    """The serving gate: the record's own result on parity, and the policy's limits on every ratio and on the tail."""
    policy, look = case.policy.release.serving, LOOK["serving"]
    thresholds = policy.model_dump(mode="json")
    record = usable(case, "serving")
    if isinstance(record, str):
        return undecided("serving", record, look, thresholds=thresholds)
    ratios = record.numbers.get("ratios") or {}
    parts = [_own_word(record)]
    for name in RATIOS:
        limit = thresholds[name]
        if limit is not None:
            side = {"least": limit} if name == "throughput" else {"most": limit}
            parts.append(_limit(name, ratios.get(name), **side))
    if policy.peak_memory is not None:
        parts.append(_worst_block(ratios.get("peak_memory"), policy.peak_memory))
    numbers = dict(record.numbers)
    if policy.tail is not None:
        tail_parts, numbers["tails"] = _tail(case, record, policy)
        parts += tail_parts
    more = {"numbers": numbers, "thresholds": thresholds, "evidence": _files(case, record)}
    return _joined("serving", parts, look=look, **more)


def _worst_block(estimate: Any, limit: float) -> Part:
    """The block that held most memory. One block is no estimate, so beyond the limit it blocks a pass and no more."""
    worst = estimate.get("worst") if isinstance(estimate, Mapping) else None
    if worst is None:
        return Part("undecided", "peak_memory: the largest block was not recorded")
    if worst > limit:
        return Part("undecided", f"peak_memory of the largest block {worst:.3g} times the base's, at most {limit:g}")
    return Part("passed", f"peak_memory of the largest block {worst:.3g}, at most {limit:g}")


def _tail(case: Case, record: Evidence, policy: ServingGate) -> tuple[list[Part], dict[str, JsonLike]]:
    """The tail's ratios, computed here from every request that was kept: an average hides a slow few."""
    rule, limit = TailRule(policy.tail_quantile, policy.alpha, policy.tail_burst), policy.tail
    if SAMPLES not in record.outputs or limit is None:
        message = f"the tail (p{100 * rule.quantile:g}) cannot be judged: the record keeps no requests ({SAMPLES})"
        return [Part("undecided", message)], {}
    found = tails(read_jsonl(case.store.root / SAMPLES), rule)
    parts = []
    for name, ratio in found.items():
        ends = "no interval" if math.isinf(ratio.high) and not ratio.low else f"{ratio.low:.3g} to {ratio.high:.3g}"
        size = "" if ratio.value is None else f"{ratio.value:.3g} "
        why = f": {ratio.reason}" if ratio.reason else ""
        message = f"{name} p{100 * rule.quantile:g} {size}({ends}), at most {limit:g}{why}"
        parts.append(Part(ratio.against(limit), message))
    return parts, {name: tail_numbers(ratio) for name, ratio in found.items()}


def merge(case: Case) -> GateResult:
    """The merge gate: the status in the parity record of the merged weights."""
    look = LOOK["merge"]
    record = usable(case, "merge")
    if isinstance(record, str):
        return undecided("merge", record, look)
    parts = [_own_word(record)]
    if record.subject.merged is None:
        parts.append(Part("undecided", "the record names no merged weights"))
    more = {"numbers": record.numbers, "thresholds": record.thresholds, "evidence": _files(case, record)}
    return _joined("merge", parts, look=look, **more)


def rollback(case: Case) -> GateResult:
    """The rollback gate: the drill's record and its age."""
    look, days = LOOK["rollback"], case.policy.release.drill_days
    thresholds = {"drill_days": days}
    record = usable(case, "rollback")
    if isinstance(record, str):
        return undecided("rollback", record, look, thresholds=thresholds)
    parts = [_own_word(record)]
    made = date.fromisoformat(record.created[:10])
    if not 0 <= (case.today - made).days <= days:
        parts.append(Part("undecided", f"the drill ran on {made.isoformat()}, which is not within {days} days"))
    more = {"numbers": record.numbers, "evidence": _files(case, record)}
    return _joined("rollback", parts, look=look, thresholds={**record.thresholds, **thresholds}, **more)


CHECKS: Mapping[str, Callable[[Case], GateResult]] = {
    "data": data,
    "target": target,
    "regression": regression,
    "safety": safety,
    "calibration": calibration,
    "serving": serving,
    "merge": merge,
    "rollback": rollback,
}


def run_checks(case: Case) -> tuple[GateResult, ...]:
    """Every gate that the policy requires, in the order of `CHECKS`. A check that raises an error is undecided, not
    passed.
    """
    asked: Release = case.policy.release
    found = []
    for name in CHECKS:
        if name in asked.gates:
            found.append(_safely(case, name))
    return tuple(found)


def _safely(case: Case, name: str) -> GateResult:
    """Records are files that anybody may have damaged: what cannot be read is no evidence."""
    try:
        result = CHECKS[name](case)
        return replace(result, numbers=to_json(result.numbers))
    except (VerituneError, OSError, LookupError, TypeError, ValueError, AttributeError) as exc:
        return undecided(name, f"the evidence cannot be read ({type(exc).__name__}: {exc})", "veritune verify .")

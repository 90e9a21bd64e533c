"""What each section of the page shows, taken from the records: chosen and ordered, never computed.

A value that a record does not hold is None here and `not recorded` on the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from veritune.decide.wording import p_text, rule_text
from veritune.records import ZONES, Trainable, ZoneScore, dumps
from veritune.report import interval
from veritune.report.read import Records, Run

Json = Mapping[str, Any]

STATES = ("supported", "refuted", "inconclusive", "untested")
ASKS = {
    "improves": "scores higher",
    "better_by": "is better by the margin",
    "equivalent": "is equivalent within the margin",
    "not_worse": "is not worse by the margin",
    "no_regression": "shows no regression by the margin",
    "differ": "differs by more than the margin",
    "generalises": "carries its gain to another zone",
    "probe": "a recorded quantity meets a threshold",
}
SAMPLES = 3
FIRST = ("method", "target_modules", "r", "lora_alpha", "lora_dropout")
FAMILY_FACTS = ("rows", "originals", "variants", "singletons", "size_p50", "size_max")


def get(record: Any, *path: str) -> Any:
    """The value at a path of keys, None where any step is missing."""
    for key in path:
        if not isinstance(record, Mapping) or key not in record:
            return None
        record = record[key]
    return record


# ---------------------------------------------------------------- claims


def claims(records: Records) -> list[dict[str, Any]]:
    """One card a declared claim, in the order of the verdicts; a claim without a verdict is a card that says so."""
    declared = {c.name: c.model_dump(mode="json") for c in records.study.claims}
    cards = [_card(v, declared.get(str(v.get("claim")), {})) for v in records.verdicts]
    decided = {card["name"] for card in cards}
    return cards + [_undecided(name, claim) for name, claim in declared.items() if name not in decided]


def _card(verdict: Json, claim: Json) -> dict[str, Any]:
    estimates = verdict.get("estimates") or []
    status = verdict.get("status")
    return {
        "name": str(verdict.get("claim")),
        "status": status if status in STATES else "untested",
        "asks": asks(claim, str(verdict.get("kind"))),
        "sentence": verdict.get("sentence"),
        "exploratory": verdict.get("exploratory"),
        "decision": verdict.get("decision"),
        "grade": get(verdict, "confidence", "grade"),
        "plot": interval.plot(verdict, claim),
        "no_interval": _no_interval(estimates),
        "facts": list(_facts(verdict, estimates)),
        "estimates": [{**e, "p_text": _p(e), "is_gap": _is_gap(verdict, i)} for i, e in enumerate(estimates)],
        "may_not": verdict.get("may_not") or [],
        "warnings": list(_warnings(verdict, estimates)),
        "evidence": list((get(verdict, "confidence", "evidence") or {}).items()),
        "runs": list(_runs_of(estimates)),
    }


def _undecided(name: str, claim: Json) -> dict[str, Any]:
    card: dict[str, Any] = dict.fromkeys(("exploratory", "decision", "grade", "plot", "no_interval"))
    card |= {k: [] for k in ("facts", "estimates", "may_not", "warnings", "evidence", "runs")}
    card["sentence"] = "No verdict is recorded for this claim. Nothing may be written about it yet."
    return card | {"name": name, "status": "untested", "asks": asks(claim, str(claim.get("kind")))}


def asks(claim: Json, kind: str) -> str:
    """The declared claim in a few words."""
    words = ASKS.get(kind, kind)
    if kind == "probe":
        return f"{claim.get('probe')} {claim.get('op')} {claim.get('threshold')}"
    if not claim:
        return words
    if kind == "generalises":
        return (
            f"{claim.get('condition')} carries at least {claim.get('share')} of its gain over {claim.get('against')} "
            f"from {claim.get('from_zone')} to {claim.get('to_zone')}"
        )
    where = f" on {claim['zone']} items" if claim.get("zone") else " on all items"
    where += f" of {claim['eval']}" if claim.get("eval") else ""
    if claim.get("margin") is not None:
        words = words.replace("the margin", f"{claim['margin']:g}")
    joint = {"scores higher": "than", "differs": "from", "is equivalent": "to", "shows": "against"}
    link = next((v for k, v in joint.items() if words.startswith(k)), "than")
    return f"{claim.get('condition')} {words} {link} {claim.get('against')}{where}"


def _p(estimate: Json) -> str | None:
    p = estimate.get("p")
    return p_text(p, estimate.get("p_floor")) if isinstance(p, int | float) else None


def _is_gap(verdict: Json, place: int) -> bool:
    """Whether an estimate is a difference, written with its sign, and not a share or a probe's value."""
    kind = verdict.get("kind")
    return kind != "probe" and (place > 0 or kind != "generalises")


def _no_interval(estimates: Sequence[Json]) -> str | None:
    """Why the first estimate has no interval."""
    first = next(iter(estimates), None)
    if first is None or (first.get("low") is not None and first.get("high") is not None):
        return None
    return str((list(first.get("warnings") or ()) or ["no reason is recorded"])[-1])


def _facts(verdict: Json, estimates: Sequence[Json]) -> Iterator[tuple[str, str | None, str]]:
    """(term, value, small print) of the first estimate. A value of None is drawn as `not recorded`."""
    first: Json = next(iter(estimates), {})
    details = verdict.get("details") or {}
    kind = verdict.get("kind")
    if first:
        families = first.get("n_clusters")
        yield "n", _count(first.get("n"), "items"), f"in {families} families" if families is not None else ""
        yield "seeds", _count(first.get("n_seeds")), ""
        yield from _p_facts(first, details)
    margin = verdict.get("margin")
    yield "margin", _plain(margin) if margin is not None else "none declared", ""
    yield from _rule_facts(details)
    if kind == "generalises":
        yield "smallest detectable", "does not apply", "to a share"
    elif kind != "probe" and verdict.get("status") != "untested":
        yield "smallest detectable", _given(verdict, "detectable", _plain), "at 80 % power"
        if margin is not None:
            yield "settles the margin", _given(verdict, "needed_n", lambda n: _count(n, "items")), ""
    if first:
        yield "method", first.get("method"), ""


def _rule_facts(details: Json) -> Iterator[tuple[str, str | None, str]]:
    """A frozen rule and what it came to, where the claim has one."""
    outcome = details.get("frozen_rule")
    if outcome:
        arms = (str(outcome.get("a") or "the condition"), str(outcome.get("b") or "the other arm"))
        terms, _, result = rule_text(outcome, *arms).partition(": ")
        yield "frozen rule", result, terms


def _p_facts(first: Json, details: Json) -> Iterator[tuple[str, str | None, str]]:
    if first.get("p") is not None:
        yield "p", p_bare(first["p"], first.get("p_floor")), str(first.get("p_method") or "")
    corrected, family = details.get("p_corrected"), details.get("claims_in_family")
    if corrected is not None:
        yield "p corrected", p_bare(corrected), f"over {family} claims" if family else ""


def p_bare(p: float, floor: float | None = None) -> str:
    """p without the leading `p =`, an upper bound with its sign."""
    return p_text(p, floor).removeprefix("p ").removeprefix("= ")


def _given(verdict: Json, key: str, form: Callable[[Any], str | None]) -> str | None:
    """A number that the decision may leave open on purpose: recorded as null it is `none given`."""
    return "none given" if key in verdict and verdict[key] is None else form(verdict.get(key))


def _plain(value: Any) -> str | None:
    return f"{value:.4g}" if isinstance(value, int | float) else None


def _count(value: Any, unit: str = "") -> str | None:
    return f"{value:,} {unit}".strip() if isinstance(value, int | float) else None


def _warnings(verdict: Json, estimates: Sequence[Json]) -> Iterator[str]:
    seen = set()
    for text in [*(verdict.get("warnings") or ()), *(w for e in estimates for w in e.get("warnings") or ())]:
        if text not in seen:
            seen.add(text)
            yield text


def _runs_of(estimates: Sequence[Json]) -> Iterator[str]:
    seen = set()
    for estimate in estimates:
        for side in ("a", "b"):
            for run_id in get(estimate, "details", side, "runs") or ():
                if run_id not in seen:
                    seen.add(run_id)
                    yield str(run_id)


# ---------------------------------------------------------------- scores


def scores(records: Records) -> list[dict[str, Any]]:
    """For every eval: one row a run, one column a zone, with denominators, missing by reason and outputs cut."""
    tables = []
    for name, spec in records.study.evals.items():
        found = [(run, run.zone_scores(name)) for run in records.runs]
        zones = [z for z in ZONES if z in spec.zones or any(z in by_zone for _, by_zone in found)]
        limits = {run.decoding[name].get("max_new_tokens") for run in records.runs if name in run.decoding}
        tables.append(
            {
                "name": name,
                "kind": spec.kind,
                "zones": zones,
                "rows": [(run, [by_zone.get(z) for z in zones]) for run, by_zone in found],
                "limit": next(iter(limits)) if len(limits) == 1 else spec.max_new_tokens,
                "rules": _rules(zones, found, [rule.name for rule in spec.rules]),
                "sources": [run.path("summary.json") for run in records.runs if run.summary],
            }
        )
    return tables


def _rules(
    zones: Sequence[str], found: Sequence[tuple[Run, Mapping[str, ZoneScore]]], order: Sequence[str]
) -> list[dict[str, Any]]:
    """Per zone, rule × run: how often each rule held, of how many. Empty where no summary recorded it."""
    tables = []
    for zone in sorted(zones, key=lambda z: z != "stranger"):
        by_run = [(run, (by_zone[zone].rules if zone in by_zone else None) or {}) for run, by_zone in found]
        seen = list(dict.fromkeys(name for _, rules in by_run for name in rules))
        names = sorted(seen, key=lambda name: order.index(name) if name in order else len(order))
        if names:
            rows = [(name, [rules.get(name) for _, rules in by_run]) for name in names]
            tables.append({"zone": zone, "runs": [run for run, _ in by_run], "rows": rows})
    return tables


def losses(records: Records) -> dict[str, Any]:
    """NLL by run and zone with the target tokens it was taken over."""
    zones = [z for z in ZONES if any(z in run.losses for run in records.runs)]
    rows = [(run, [run.losses.get(z) for z in zones]) for run in records.runs]
    sources = [run.path("summary.json") for run in records.runs if run.losses]
    return {"zones": zones, "rows": rows, "sources": sources}


def gaps(records: Records) -> dict[str, Any]:
    """The three-zone gap of every trained run: how much of its gain in loss carries to siblings and strangers."""
    runs = [run for run in records.runs if run.gap]
    rows = [(run, [get(run.gap, "carried", zone) for zone in ("sibling", "stranger")]) for run in runs]
    first = runs[0].gap if runs else None
    return {"rows": rows, "first": first, "sources": [run.path("probes/three_zone.json") for run in runs]}


# ---------------------------------------------------------------- conditions and training


def conditions(records: Records) -> dict[str, Any]:
    """What each condition is, setting by setting, and which settings differ."""
    arms = {name: [r for r in records.runs if r.condition == name] for name in records.study.conditions}
    columns = [(name, runs[0] if runs else None) for name, runs in arms.items()]
    methods: list[Json] = [run.manifest.method if run else {} for _, run in columns]
    named = list(dict.fromkeys(k for m in methods for k in m if k != "learning_rate"))
    keys = sorted(named, key=lambda k: FIRST.index(k) if k in FIRST else len(FIRST))
    rows = [(key.replace("_", " "), [m.get(key) for m in methods]) for key in keys]
    rows.append(("peak learning rate", [run.manifest.lr if run else None for _, run in columns]))
    trained = [run.training.trainable if run and run.training else None for _, run in columns]
    rows.append(("modules resolved", [_modules(t) for t in trained]))
    rows.append(("trainable parameters", [t.n_trainable if t else None for t in trained]))
    rows.append(("of all parameters", [t.n_total if t else None for t in trained]))
    if any(trained):
        rows.append(("trainable share", [t.share if t else None for t in trained]))
    sources = [run.path(f) for _, run in columns if run for f in ("manifest.json", "training.json")]
    differing = [(term, values, len({repr(v) for v in values}) > 1) for term, values in rows]
    return {"names": [n for n, _ in columns], "rows": differing, "factor": records.study.factor, "sources": sources}


def _modules(trainable: Trainable | None) -> list[str] | None:
    if trainable is None:
        return None
    names = trainable.options.get("target_modules") or trainable.modules
    if not isinstance(names, list | tuple):
        return None
    return list(dict.fromkeys(str(name).rsplit(".", 1)[-1] for name in names))


def training(records: Records) -> dict[str, Any]:
    """One row a trained run: what it did and which checkpoint was chosen."""
    rows = [run for run in records.runs if not run.is_baseline]
    shared = rows[0].manifest.train if rows else None
    return {
        "rows": rows,
        "shared": shared or {},
        "sources": [run.path("training.json") for run in rows if run.training],
    }


# ---------------------------------------------------------------- sample outputs


def samples(records: Records) -> list[dict[str, Any]]:
    """For every eval: the first item, by id, of each of the first families of the farthest zone that was asked."""
    found = []
    for name in records.study.evals:
        arms = _first_of_each_arm(records, name)
        zone = next((z for z in ("stranger", "sibling", "seen") if _ids(arms, name, z)), None)
        if zone is None:
            continue
        items = [_item(records, arms, name, item_id) for item_id in _ids(arms, name, zone)]
        sources = [run.path(f"scores/{name}.jsonl") for run in arms] + [records.data_path("rows.parquet")]
        found.append({"name": name, "zone": zone, "items": items, "sources": sources})
    return found


def _first_of_each_arm(records: Records, name: str) -> list[Run]:
    first: dict[str, Run] = {}
    for run in records.runs:
        if run.scores.get(name):
            first.setdefault(run.condition, run)
    return list(first.values())


def _ids(arms: Sequence[Run], name: str, zone: str) -> list[str]:
    """Item ids by the fixed rule: sorted by id, the first of each family, SAMPLES of them."""
    first: dict[str, str] = {}
    for run in arms:
        for score in sorted(run.scores[name], key=lambda s: str(s.get("item_id"))):
            if score.get("zone") == zone:
                first.setdefault(str(score.get("family") or score.get("item_id")), str(score.get("item_id")))
        break
    return sorted(first.values())[:SAMPLES]


def _item(records: Records, arms: Sequence[Run], name: str, item_id: str) -> dict[str, Any]:
    row: Json = records.rows.get(item_id) or {}
    messages = list(row.get("messages") or ())
    ends_on_answer = bool(messages) and messages[-1].get("role") == "assistant"
    order = [rule.name for rule in records.study.evals[name].rules]
    by_arm = []
    for run in arms:
        score = next((s for s in run.scores[name] if str(s.get("item_id")) == item_id), None)
        by_arm.append((run, score, list(_marks(score or {}, order))))
    return {
        "id": item_id,
        "prompt": messages[:-1] if ends_on_answer else messages,
        "expected": messages[-1].get("content") if ends_on_answer else None,
        "line": row.get("line"),
        "arms": by_arm,
    }


def _marks(score: Json, order: Sequence[str]) -> Iterator[tuple[str, bool | None, str]]:
    """(rule, whether it held, what was found) in the study's order; the extracted answer for a matched output."""
    found = get(score, "parts", "found") or {}
    rules = get(score, "parts", "rules") or {}
    for rule in sorted(rules, key=lambda name: order.index(name) if name in order else len(order)):
        held = rules[rule]
        yield str(rule), held, json.dumps(found.get(rule), ensure_ascii=False, sort_keys=True)
    if "extracted" in (get(score, "parts") or {}):
        parts = score["parts"]
        yield f"extracted {parts.get('extracted')!r}, expected {parts.get('expected')!r}", score.get("value") == 1, ""


# ---------------------------------------------------------------- data


def data(records: Records) -> dict[str, Any]:
    """Zones, families and their evidence, what the zones share, and the loss mask of one example."""
    facts = records.facts
    zones = [
        (z, get(facts, "zones", z), get(facts, "tokens", z), get(facts, "target_tokens", z))
        for z in ZONES
        if get(facts, "zones", z)
    ]
    counts = {k: v for k, v in (get(facts, "families") or {}).items() if not isinstance(v, list | dict)}
    largest = get(facts, "families", "largest") or []
    pairs = get(records.split, "counts", "pairs")
    findings = [*(get(records.split, "findings") or []), *records.findings]
    return {
        "zones": zones,
        "families": [(k, counts[k]) for k in FAMILY_FACTS if k in counts],
        "more_families": [(k, v) for k, v in counts.items() if k not in FAMILY_FACTS],
        "evidence": list((get(facts, "families", "evidence") or {}).items()),
        "sizes": list((get(facts, "families", "sizes") or {}).items()),
        "largest": largest[:5],
        "pairs": pairs if isinstance(pairs, list) else None,
        "findings": findings,
        "warnings": get(records.split, "warnings") or [],
        "render": records.render,
        "rejects": list((get(records.data, "rejects") or {}).items()),
        "has_split": records.split is not None,
        "near": records.study.data.near_duplicates,
    }


# ---------------------------------------------------------------- timeline and reproduction


def timeline(records: Records) -> list[dict[str, Any]]:
    """Events oldest first, each with the facts it carries."""
    hidden = ("time", "event", "previous", "hash", "files", "runs")  # hashes of files are for `verify`, not for reading
    return [
        {
            "time": event.get("time"),
            "event": event.get("event"),
            "facts": [(k, _flat(v)) for k, v in event.items() if k not in hidden],
        }
        for event in records.events
    ]


def _flat(value: Any) -> str:
    if value in (None, [], {}, ()):
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_flat(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(_flat(v) for v in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def reproduction(records: Records) -> dict[str, Any]:
    """Everything needed to make the numbers again, and the hashes that tie them."""
    facts, entries = records.facts, (records.contract or {}).get("entries") or []
    manifests = [run.manifest for run in records.runs]
    machines = list(dict.fromkeys(dumps(m.machine) for m in manifests))
    packages = get(facts, "packages") or (manifests[0].packages if manifests else {})
    return {
        "hashes": [
            ("contract", get(records.terms, "hash")),
            ("data version", get(facts, "data_version")),
            ("data file", get(facts, "data_sha256")),
            ("rendered rows", get(facts, "rendered_sha256")),
            ("chat template", get(facts, "template_sha256")),
            ("tokenizer", get(facts, "tokenizer_sha256")),
            *((f"model: {name}", digest) for name, digest in (get(facts, "model", "files") or {}).items()),
        ],
        "model": get(facts, "model"),
        "path": records.study.model.path,
        "entries": entries,
        "packages": list(packages.items()),
        "machines": [[(k.replace("_", " "), _flat(v)) for k, v in (json.loads(m) or {}).items()] for m in machines],
        "seeds": records.study.seeds,
        "runs": records.runs,
    }

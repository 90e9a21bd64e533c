"""`veritune writeup`: a Markdown draft of a result, from the records alone, that passes `veritune lint`.

The draft says what the verdicts let it say, in their own sentences; what a person must add is judgement and prose. Its
hero figure is drawn here as plain SVG with a CSV of its numbers and a provenance of hashes beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from veritune.decide.quantities import BASELINE, Records, outputs, read_records, summary_path
from veritune.errors import InputError
from veritune.records import ZONES, RunManifest
from veritune.store import Store, sha256_file, sha256_text, write_json, write_text

FIGURE = "writeup-hero"
SETTLED = {"supported": "supported", "refuted": "refuted"}


def writeup(study_folder: str | Path) -> str:
    """The draft as Markdown; draws its figure into the study's figures folder.

    Raises InputError where the study has no verdicts yet.
    """
    folder = Path(study_folder)
    store = Store(folder.parent if folder.is_file() else folder)
    records = read_records(store)
    if not records.verdicts:
        raise InputError(f"{store.root} has no verdicts, so there is nothing to write up.", fix="Run the study first.")
    draw_hero(store, records)
    parts = [
        _front(records), _title(records), _background(records), _takeaways(records), _figure(records),
        _methods(records), _results(records), _samples(store, records), _caveats(records), _next(records),
        _card(store, records),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def card_sections(store: Store, records: Records) -> str:
    """What a model card says of the study, from its records: takeaways, methods, scores, caveats, reproduction."""
    parts = [_takeaways(records), _methods(records), _results(records), _caveats(records), _card(store, records)]
    return "\n\n".join(parts)


# ---------------------------------------------------------------- the parts


def _front(records: Records) -> str:
    return f"---\nstudy: {records.name}\ncontract: {records.contract}\n---"


def _lead(records: Records) -> Mapping[str, Any]:
    """The verdict that the title states: the first settled confirmatory one, else the first."""
    ranked = sorted(records.verdicts, key=lambda v: (bool(v.get("exploratory")), v["status"] not in SETTLED))
    return ranked[0]


def _title(records: Records) -> str:
    verdict = _lead(records)
    claim, grade = records.claim(verdict["claim"]), verdict["confidence"]["grade"]
    sure = f"{grade} confidence" if verdict["status"] in SETTLED else "inconclusive"
    return f"# {_short_sentence(records, verdict, claim)} ({sure})"


def _short_sentence(records: Records, verdict: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """The verdict in one line without numbers."""
    a, b, status = claim.get("condition"), claim.get("against"), verdict["status"]
    where = f"on {_plain(records.eval_of(claim))}" + (f", zone {claim['zone']}" if claim.get("zone") else "")
    kind = verdict["kind"]
    if status not in SETTLED:
        return f"The claim {verdict['claim']} is {status}"
    if kind == "generalises":
        verb = "carries" if status == "supported" else "does not carry"
        return f"{a} {verb} its declared share from {claim['from_zone']} to {claim['to_zone']} items"
    if kind == "probe":
        return f"The probe {claim.get('probe')} {'meets' if status == 'supported' else 'does not meet'} its threshold"
    words = {
        ("improves", "supported"): f"{a} scores higher than {b}",
        ("improves", "refuted"): f"{a} does not improve on {b}",
        ("better_by", "supported"): f"{a} is better than {b} by the declared margin",
        ("better_by", "refuted"): f"{a} is not better than {b} by the declared margin",
        ("equivalent", "supported"): f"{a} is equivalent to {b} within the declared margin",
        ("differ", "supported"): f"{a} and {b} differ by more than the declared margin",
        ("differ", "refuted"): f"{a} and {b} differ by less than the declared margin",
    }
    fallback = f"The claim {verdict['claim']} is {status}"
    return f"{words[kind, status]} {where}" if (kind, status) in words else fallback


def _plain(name: str | None) -> str:
    return str(name or "the eval")


def _background(records: Records) -> str:
    study = records.terms["study"]
    base = records.terms["facts"]["model"]["name"]
    return (
        "## Background\n\n"
        f"The question: {study['question'].strip()} The base model is {base}; beside the untouched baseline the study "
        f"has {_arms(records)}. A zone says where an item's family sits: seen families were trained on, siblings are "
        "held-out rewrites of them, strangers are families that were held out whole."
    )


def _arms(records: Records) -> str:
    names = list(records.terms["study"]["conditions"])
    return (
        "the condition " + str(names[0])
        if len(names) == 1
        else "the conditions " + ", ".join(names[:-1]) + " and " + names[-1]
    )


def _takeaways(records: Records) -> str:
    lines = []
    for verdict in records.verdicts:
        claim = records.claim(verdict["claim"])
        tag = " (exploratory)" if verdict.get("exploratory") else ""
        grade = verdict["confidence"]["grade"]
        sure = f", {grade} confidence" if verdict["status"] in SETTLED else ""
        said = f"{_gap_line(records, verdict, claim)}{_rule_line(verdict, claim)}"
        lines.append(f"- `{verdict['claim']}`{tag} is {verdict['status']}{sure}. {said}")
    return "## Main takeaways\n\n" + "\n".join(lines)


def _rule_line(verdict: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """What the claim's frozen rule came to, nothing where it has none."""
    outcome = verdict["details"].get("frozen_rule")
    if not outcome:
        return ""
    winner = {"a": claim.get("condition"), "b": claim.get("against")}.get(outcome["winner"])
    least = _mark(f"rule_min_gap.{verdict['claim']}", f"{outcome['rule']['min_gap']:g}")
    seeds = ", with the winner's sign in every seed" if outcome["rule"].get("every_seed") else ""
    lost = " Lost scores could change it." if outcome.get("withheld") else ""
    return f" Frozen rule (a gap of at least {least}{seeds}): {f'{winner} wins' if winner else 'no winner'}.{lost}"


def _gap_line(records: Records, verdict: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """The headline number with its interval, each bound to its quantity."""
    name = verdict["claim"]
    if not verdict["estimates"] or verdict["status"] == "untested":
        return "It was not tested; the reason is in verdict.json."
    e = verdict["estimates"][0]
    kind = {"generalises": "share", "probe": "probe"}.get(verdict["kind"], "gap")
    if e["value"] is None:
        return "It has no value; the reason is in verdict.json."
    sign = "+" if kind == "gap" else ""
    label = {
        "gap": f"Gap of {claim.get('condition')} over {claim.get('against')}",
        "share": f"Share of the {claim.get('from_zone')} gap of {claim.get('condition')} over "
        f"{claim.get('against')} that is found again on {claim.get('to_zone')}",
        "probe": f"Recorded {claim.get('probe')}",
    }[kind]
    text = f"{label}: " + _mark(f"{kind}.{name}", format(e["value"], f"{sign}.3f"))
    if e["low"] is not None and e["high"] is not None:
        low, high = _mark(f"ci.{name}.low", f"{e['low']:{sign}.3f}"), _mark(f"ci.{name}.high", f"{e['high']:{sign}.3f}")
        text += f", {100 * e['level']:.4g} % interval {low} to {high}"
    return text + "."


def _mark(name: str, text: str) -> str:
    return f"{text}<!--v:{name}-->"


def _figure(records: Records) -> str:
    name = _hero_eval(records)
    zones = ", ".join(_zones(records, name))
    return (
        f"![Hero: mean score of each condition by zone](figures/{FIGURE}.svg)\n\n"
        f"Figure 1. Mean score on {name} by zone ({zones}) and condition; small dots are single seeds. Drawn from the "
        f"run summaries; the numbers are in figures/{FIGURE}.csv."
    )


def _methods(records: Records) -> str:
    study, facts = records.terms["study"], records.terms["facts"]
    train, zones = study["train"], facts["zones"]
    lines = [
        f"- Data: {facts['families']['rows']} rows in {facts['families']['originals']} families; whole families go "
        "to one zone. "
        + " ".join(f"Zone {z}: {c['rows']} rows in {c['families']} families." for z, c in zones.items()),
        f"- Training: {train['num_train_epochs']:g} epochs, batch size {train['per_device_train_batch_size']}, "
        f"learning rate {train['learning_rate']:g}, {_seed_words(records)}; the checkpoint with the "
        "lowest validation loss is kept.",
    ]
    for name, spec in study["evals"].items():
        rules = f"; a score is the share of its {len(spec['rules'])} rules that hold" if spec.get("rules") else ""
        lines.append(f"- Eval {name}: greedy decoding of at most {spec['max_new_tokens']} new tokens{rules}.")
    lines.append(
        "- Decision: conditions are compared item by item, families are clusters, and the claims and margins were "
        "frozen in the contract before training. Conditions differ only in the declared factor."
    )
    return "## Methods\n\n" + "\n".join(lines)


def _seed_words(records: Records) -> str:
    seeds = records.seeds
    return f"seed {seeds[0]}" if len(seeds) == 1 else "seeds " + ", ".join(map(str, seeds[:-1])) + f" and {seeds[-1]}"


def _results(records: Records) -> str:
    parts = ["## Results"]
    for name in records.evals:
        zones = _zones(records, name)
        if zones:
            parts += [f"### Scores on {name}", _score_table(records, name, zones)]
            parts.append(
                f"Table: mean score on {name} over seeds, by condition and zone; items are scored once per run."
            )
    parts += ["### Loss", _nll_table(records)]
    parts.append(
        "Table: mean negative log-likelihood (NLL) of the targets, nats per target token, over "
        "seeds, by condition and zone."
    )
    parts.append("### Verdicts, in the words that may be written")
    for verdict in records.verdicts:
        parts.append(f"> {verdict['sentence']}")
    return "\n\n".join(parts)


def _zones(records: Records, name: str) -> list[str]:
    return [z for z in ZONES if f"n.items.{name}.{z}" in records.by_name]


def _score_table(records: Records, name: str, zones: Sequence[str]) -> str:
    rows = [f"| condition | {' | '.join(zones)} |", "| --- |" + " ---: |" * len(zones)]
    for condition in records.conditions:
        cells = []
        for zone in zones:
            q = records.by_name.get(f"score.{name}.{zone}.{condition}")
            cells.append(f"{q.value:.3f}" if q else "not scored")
        rows.append(f"| {condition} | {' | '.join(cells)} |")
    items = [f"{records.by_name[f'n.items.{name}.{z}'].value:.0f} items" for z in zones]
    rows.append(f"| number of items | {' | '.join(items)} |")
    return "\n".join(rows)


def _nll_table(records: Records) -> str:
    zones = [z for z in ZONES if any(f"nll.{z}.{c}" in records.by_name for c in records.conditions)]
    rows = [f"| NLL of condition | {' | '.join(zones)} |", "| --- |" + " ---: |" * len(zones)]
    for condition in records.conditions:
        found = [records.by_name.get(f"nll.{z}.{condition}") for z in zones]
        rows.append(f"| {condition} | {' | '.join(f'{q.value:.3f}' if q else 'not measured' for q in found)} |")
    return "\n".join(rows)


def _samples(store: Store, records: Records) -> str:
    """The same item from every condition, for each eval that a verdict speaks of."""
    parts = [
        "## Sample outputs",
        "Chosen by rule: the first scored item of the claim's zone, first seed of each condition.",
    ]
    for name in records.evals:
        zone = next(
            (str(c["zone"]) for c in records.terms["study"]["claims"] if records.eval_of(c) == name and c.get("zone")),
            None,
        )
        for condition in records.conditions:
            run = next((r for r in sorted(records.runs) if records.runs[r].condition == condition), None)
            rows = [r for r in outputs(store, run, name) if zone is None or r["zone"] == zone] if run else []
            text = next((str(r["output"]) for r in rows if len(str(r.get("output") or "")) >= 20), None)
            if text:
                parts += [f"{condition} on {name}:", _fenced(text)]
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    mark = "```"
    while mark in text:
        mark += "`"
    return f"{mark}text\n{text}\n{mark}"


def _caveats(records: Records) -> str:
    lines = []
    for verdict in records.verdicts:
        weak = [e["why"] for e in verdict["confidence"].get("evidence", {}).values() if e["state"] != "good"]
        if weak:
            lines.append(f"- `{verdict['claim']}`, weak or poor evidence: {_quote(weak)}")
    said: dict[str, None] = {}
    for verdict in records.verdicts:
        said |= dict.fromkeys(verdict["may_not"])
    parts = ["## Caveats", "\n".join(lines)] if lines else ["## Caveats", "- Every item of evidence is graded good."]
    return "\n\n".join([*parts, "### What may not be said", "\n".join(f"- {line}" for line in said)])


def _quote(items: Sequence[str]) -> str:
    return "; ".join(items) + "."


def _next(records: Records) -> str:
    lines = ["- Repeat the comparison on another model or eval before saying more than the verdicts do."]
    for verdict in records.verdicts:
        if verdict["status"] == "inconclusive" and verdict.get("needed_n") and verdict.get("margin"):
            needed = _mark(f"needed_n.{verdict['claim']}", f"{verdict['needed_n']:,}")
            lines.append(f"- Settle `{verdict['claim']}`: its margin takes about {needed} items.")
        elif verdict["status"] in ("inconclusive", "untested"):
            lines.append(f"- Settle `{verdict['claim']}` with more items or more seeds.")
    return "## Next steps\n\n" + "\n".join(lines)


def _card(store: Store, records: Records) -> str:
    facts = records.terms["facts"]
    paths = [p for p in sorted(store.runs.glob("*/manifest.json")) if p.parent.name in records.runs]
    machine = RunManifest.load(paths[0]).machine if paths else None
    packages = ", ".join(f"{k} v{v}" for k, v in facts["packages"].items())
    weights = next(iter(facts["model"].get("files", {}).items()), None)
    hashed = f", {weights[0]} `{weights[1][:12]}`" if weights else ""
    hardware = "not recorded"
    if machine is not None:
        hardware = f"{machine.system} {machine.machine}, {', '.join(machine.accelerators) or 'CPU only'}"
    fields = (
        ("Contract", f"`{records.contract[:12]}`"),
        ("Data", f"version `{facts['data_version']}`, `{facts['data_sha256'][:12]}`"),
        ("Model", f"{facts['model']['name']}, {facts['model']['dtype']}{hashed}"),
        ("Template", f"`{facts['template_sha256'][:12]}`"),
        ("Seeds", _seed_words(records)),
        ("Runs", ", ".join(f"`{r}`" for r in sorted(records.runs))),
        ("Packages", f"{packages}"),
        ("Hardware", hardware),
        ("Command", "`veritune run study.yaml`"),
    )
    rows = ["| field | value |", "| --- | --- |", *(f"| {k} | {v.strip()} |" for k, v in fields)]
    caption = "Table: what it takes to run this study again, from the records."
    return "\n\n".join(["## Reproducibility card", "\n".join(rows), caption])


# ---------------------------------------------------------------- the hero figure


def _hero_eval(records: Records) -> str:
    return records.eval_of(records.claim(_lead(records)["claim"])) or records.evals[0]


def draw_hero(store: Store, records: Records) -> Path:
    """Draw the hero figure as SVG with its CSV and provenance; its path. The same records give the same bytes."""
    name = _hero_eval(records)
    rows = list(_hero_rows(records, name))
    svg, table = _svg(records, name, rows), _csv(rows)
    path = store.figures / f"{FIGURE}.svg"
    sources = sorted({summary_path(summary) for summary in records.runs.values()})
    write_text(path, svg)
    write_text(path.with_suffix(".csv"), table)
    provenance = {
        "figure": FIGURE,
        "made_by": "veritune.decide.writeup.draw_hero",
        "sources": {source: sha256_file(store.root / source) for source in sources},
        "files": {f"{FIGURE}.svg": sha256_text(svg), f"{FIGURE}.csv": sha256_text(table)},
    }
    write_json(store.figures / f"{FIGURE}.provenance.json", provenance)
    return path


HeroRow = tuple[str, str, int | None, float]


def _hero_rows(records: Records, name: str) -> Iterator[HeroRow]:
    """Condition, zone, seed (None for the mean), score."""
    for q in records.quantities:
        if q.kind == "score" and q.scope.eval == name and not q.stale and q.scope.zone and q.scope.condition:
            yield q.scope.condition, q.scope.zone, q.scope.seed, q.value


def _csv(rows: Sequence[HeroRow]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("condition", "zone", "seed", "score"))
    writer.writerows((c, z, "" if s is None else s, repr(v)) for c, z, s, v in sorted(rows, key=str))
    return stream.getvalue()


def _svg(records: Records, name: str, rows: Sequence[HeroRow]) -> str:
    """A dot plot: one line per zone and condition, the mean large, seeds small, the scale labelled."""
    zones, arms = _zones(records, name), list(records.conditions)
    top, left, width, step = 58, 250, 380, 22
    lines = [(z, c) for z in zones for c in arms]
    low, high = min(0.0, *(r[3] for r in rows)), max(1.0, *(r[3] for r in rows))
    colours = ("#2a6fb0", "#c2571a", "#3f8f4f", "#8a4fa3", "#777777")

    def x(value: float) -> str:
        return f"{left + width * (value - low) / (high - low):.1f}"

    height = top + step * len(lines) + 12 * len(zones) + 40
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" font-family="sans-serif">',
        f"<title>Mean score on {escape(name)} by condition and zone</title>",
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="16" y="26" font-size="15" fill="#222222">Mean '
        f"score on {escape(name)} by zone</text>",
    ]
    for tick in range(6):
        at = low + (high - low) * tick / 5
        out.append(f'<line x1="{x(at)}" x2="{x(at)}" y1="{top - 14}" y2="{height - 34}" stroke="#e2e2e2"/>')
        out.append(
            f'<text x="{x(at)}" y="{height - 16}" font-size="11" fill="#555555" text-anchor="middle">{at:.1f}</text>'
        )
    for i, (zone, arm) in enumerate(lines):
        y = top + step * i + 12 * (i // len(arms))
        colour = colours[-1] if arm == BASELINE else colours[arms.index(arm) % (len(colours) - 1)]
        out.append(f'<text x="16" y="{y + 4}" font-size="12" fill="#222222">{escape(zone)}: {escape(arm)}</text>')
        for condition, z, seed, value in rows:
            if (condition, z) == (arm, zone):
                mean = seed is None
                out.append(
                    f'<circle cx="{x(value)}" cy="{y}" r="{5.5 if mean else 2.5}" fill="{colour}" '
                    f'fill-opacity="{1 if mean else 0.45}"/>'
                )
                if mean:
                    out.append(
                        f'<text x="{left + width + 14}" y="{y + 4}" font-size="12" fill="#222222">{value:.3f}</text>'
                    )
    return "\n".join([*out, "</svg>"]) + "\n"

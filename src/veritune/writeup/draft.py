"""`veritune writeup`: a Markdown draft of a result, from the records alone, that passes `veritune lint`.

The draft says what the verdicts let it say, in their own sentences; what a person must add is judgement and prose. Its
hero figure is drawn here, with a CSV of its numbers and a provenance of hashes beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from veritune.counting import agree, many, noun
from veritune.drawing import Drawing, look_of, panels, save, shortened, style, svg_text, tidy
from veritune.errors import InputError
from veritune.probe.clusters import FLAT
from veritune.records import JsonLike, RunManifest
from veritune.seal import resealing
from veritune.store import Store, write_text
from veritune.writeup.fill import fill_text, filler_of
from veritune.writeup.quantities import BASELINE, CheckedRecords, outputs, read_records, summary_path
from veritune.writeup.references import weak_evidence
from veritune.writeup.tables import zones_of

FIGURE = "writeup-hero"
SETTLED = {"supported": "supported", "refuted": "refuted"}


def writeup(study_folder: str | Path, out: Path | None = None) -> str:
    """The draft as Markdown with its references filled. It draws its figure into the study's figures folder, and writes
    the draft to `out` if given. A sealed study is sealed again with the additions.

    Raises InputError where the study has no verdicts yet.
    """
    store = Store.of(study_folder)
    records = read_records(store)
    if not records.verdicts:
        raise InputError(
            f"{store.root} has no verdicts, so there is nothing to write up.",
            fix="Run the study first: veritune run STUDY",
        )
    with store.lock(), resealing(store, "writeup"):
        draw_hero(store, records)
        text = _filled(template(store, records), store, records)
        if out is not None:
            write_text(out, text)
    return text


def template(store: Store, records: CheckedRecords) -> str:
    """The draft with its references unfilled."""
    parts = [
        _front(records), _title(records), _background(records), _takeaways(records), _figure(records),
        _methods(records), _results(records), _samples(store, records), _caveats(records), _next(records),
        _card(store, records),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def card_sections(store: Store, records: CheckedRecords) -> str:
    """The parts of a model card that come from the study's records: takeaways, methods, scores, caveats,
    reproduction."""
    parts = [_takeaways(records), _methods(records), _results(records), _caveats(records), _card(store, records)]
    return _filled("\n\n".join(parts), store, records)


def _filled(text: str, store: Store, records: CheckedRecords) -> str:
    filled = fill_text(text, filler_of(None, (), held=records), store.root / "WRITEUP.md")
    unknown = [r for r in filled.references if r.state == "unknown"]
    if unknown:
        raise InputError(f"{store.root}: {unknown[0].message}", fix="Report this: a draft names only what is recorded.")
    return filled.text


# ---------------------------------------------------------------- the parts


def _front(records: CheckedRecords) -> str:
    return f"---\nstudy: {records.name}\ncontract: {records.contract}\n---"


def _lead(records: CheckedRecords) -> Mapping[str, Any]:
    """The verdict that the title states: the first settled confirmatory one, else the first."""
    ranked = sorted(records.verdicts, key=lambda v: (bool(v.get("exploratory")), v["status"] not in SETTLED))
    return ranked[0]


def _title(records: CheckedRecords) -> str:
    verdict = _lead(records)
    claim, grade = records.claim(verdict["claim"]), verdict["confidence"]["grade"]
    sure = f"{grade} confidence" if verdict["status"] in SETTLED else "inconclusive"
    return f"# {_short_sentence(records, verdict, claim)} ({sure})"


def _short_sentence(records: CheckedRecords, verdict: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """The verdict in one line without numbers."""
    a, b, status = claim.get("condition"), _other(claim), verdict["status"]
    where = f"on {_plain(records.eval_of(claim))}" + (f", zone {claim['zone']}" if claim.get("zone") else "")
    kind = verdict["kind"]
    if status not in SETTLED:
        return f"The claim {verdict['claim']} is {status}"
    if kind == "generalises":
        verb = "carries" if status == "supported" else "does not carry"
        return f"{a} {verb} its declared share from {claim['from_zone']} to {claim['to_zone']} items"
    if kind == "keeps":
        verb = "keeps" if status == "supported" else "does not keep"
        return f"{a} {verb} what was declared for at most its share of the gain of {claim.get('reference')} {where}"
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


def _other(claim: Mapping[str, JsonLike]) -> str:
    """The arm compared with, and how it was asked where that differs."""
    asked = f" asked as {claim['against_eval']}" if claim.get("against_eval") else ""
    return f"{claim.get('against')}{asked}"


def _plain(name: str | None) -> str:
    return str(name or "the eval")


def _background(records: CheckedRecords) -> str:
    base = records.terms["facts"]["model"]["name"]
    return (
        "## Background\n\n"
        # Quoted: they are the user's words, and short forms and numbers in them are not the draft's to explain.
        f"> {_ref('study.question')}\n\nThe base model is {base}; beside the untouched baseline the study "
        f"has {_arms(records)}. A zone says where an item's family sits: seen families were trained on, siblings are "
        "held-out rewrites of them, strangers are families that were held out whole."
    )


def _arms(records: CheckedRecords) -> str:
    names = list(records.terms["study"]["conditions"])
    return (
        "the condition " + str(names[0])
        if len(names) == 1
        else "the conditions " + ", ".join(names[:-1]) + " and " + names[-1]
    )


def _takeaways(records: CheckedRecords) -> str:
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
    least = _ref(f"rule_min_gap.{verdict['claim']}", ".3g")
    seeds = ", with the winner's sign in every seed" if outcome["rule"].get("every_seed") else ""
    lost = " Lost scores could change it." if outcome.get("withheld") else ""
    return f" Frozen rule (a gap of at least {least}{seeds}): {f'{winner} wins' if winner else 'no winner'}.{lost}"


def _gap_line(records: CheckedRecords, verdict: Mapping[str, Any], claim: Mapping[str, Any]) -> str:
    """The headline number with its interval, each bound to its quantity."""
    name = verdict["claim"]
    if not verdict["estimates"] or verdict["status"] == "untested":
        return "It was not tested; the reason is in verdict.json."
    e = verdict["estimates"][0]
    kind = {"generalises": "share", "keeps": "given up", "probe": "probe"}.get(verdict["kind"], "gap")
    if e["value"] is None:
        return "It has no value; the reason is in verdict.json."
    label = {
        "gap": f"Gap of {claim.get('condition')} over {_other(claim)}",
        "share": f"Share of the {claim.get('from_zone')} gap of {claim.get('condition')} over "
        f"{claim.get('against')} that is found again on {claim.get('to_zone')}",
        "given up": f"Share of the gain of {claim.get('reference')} over {claim.get('against')} that "
        f"{claim.get('condition')} gives up",
        "probe": f"Recorded {claim.get('probe')}",
    }[kind]
    text = f"{label}: {_ref(f'claim.{name}.' + kind.replace('given up', 'share'))}"
    if e["low"] is not None and e["high"] is not None:
        text += f", {_ref(f'claim.{name}.level', 'percent', '.4g')} interval {_ref(f'claim.{name}.interval')}"
    return text + "."


def _counted(records: CheckedRecords, name: str, plural: str, *options: str) -> str:
    """A reference to a count and its noun, which agrees with it."""
    return f"{_ref(name, *options)} {noun(records.by_name[name].value, plural)}"


def _ref(name: str, *options: str) -> str:
    """A reference, to be filled."""
    return "{{ " + " | ".join((name, *options)) + " }}"


def _figure(records: CheckedRecords) -> str:
    name = _hero_eval(records)
    zones = ", ".join(zones_of(records, name))
    return (
        f"![Hero: mean score of each condition by zone](figures/{FIGURE}.svg)\n\n"
        f"Figure 1. Mean score on {name} by zone ({zones}) and condition; small dots are single seeds. Drawn from the "
        f"run summaries; the numbers are in figures/{FIGURE}.csv."
    )


def _methods(records: CheckedRecords) -> str:
    study, facts = records.terms["study"], records.terms["facts"]
    lines = [
        f"- Data: {_ref('n.rows')} rows in {_ref('n.originals')} families; whole families go to one zone. "
        + " ".join(f"Zone {z}: {_ref(f'rows.{z}')} rows in {_ref(f'families.{z}')} families." for z in facts["zones"]),
        *(f"- Training of {name}: {_training(records, name)}." for name in study["conditions"]),
        f"- Runs: {_seed_words(records)}; of a training the checkpoint with the lowest validation loss is kept.",
    ]
    for name, spec in study["evals"].items():
        lines.append(f"- Eval {name}: {_scoring(name, spec)}. An output without a score counts as the lowest one.")
    lines.append(
        "- Decision: conditions are compared item by item, families are clusters, and the claims and margins were "
        "frozen in the contract before training. Conditions differ only in the declared factor."
    )
    return "## Methods\n\n" + "\n".join(lines)


def _scoring(name: str, spec: Mapping[str, JsonLike]) -> str:
    """How an eval's outputs come about and are scored."""
    if spec.get("kind") == "choice":
        return "the likeliest of the options is the answer; nothing is generated"
    said = f"greedy decoding of at most {_ref(f'max_new_tokens.{name}')} new tokens"
    if not spec.get("rules"):
        return said
    rules = spec["rules"]
    count = len(rules) if isinstance(rules, list) else 0
    n, hold = f"{_ref(f'n.rules.{name}')} {noun(count, 'rules')}", agree(count, "hold")
    if spec.get("score") != "all":
        return f"{said}; a score is the share of its {n} that {hold}"
    return f"{said}; a score is one where {'its' if count == 1 else 'all of its'} {n} {hold}, else zero"


def _training(records: CheckedRecords, name: str) -> str:
    """What a condition's runs did, from the run records."""
    manifests = [m for run_id, m in records.manifests.items() if records.runs[run_id].condition == name]
    if manifests and all(m.trained_elsewhere for m in manifests):
        steps = (
            f", {_ref(f'steps.{name}')} optimizer steps by its trainer's record"
            if f"steps.{name}" in records.by_name
            else ""
        )
        return f"weights that were trained elsewhere{steps}; rows, batch and learning rate are not known here"
    parts = []
    if f"steps.{name}" in records.by_name:
        parts.append(_counted(records, f"steps.{name}", "optimizer steps"))
    if f"epochs.{name}" in records.by_name:
        parts.append(_counted(records, f"epochs.{name}", "epochs", ".4g"))
    if "train.per_device_train_batch_size" in records.by_name:
        parts.append(f"batch size {_ref('train.per_device_train_batch_size')}")
    if f"lr.{name}" in records.by_name:
        parts.append(f"learning rate {_ref(f'lr.{name}', '.6g')}")
    return ", ".join(parts) or "no finished run is recorded"


def _seed_words(records: CheckedRecords) -> str:
    seeds = records.seeds
    return f"seed {seeds[0]}" if len(seeds) == 1 else "seeds " + ", ".join(map(str, seeds[:-1])) + f" and {seeds[-1]}"


def _results(records: CheckedRecords) -> str:
    parts = ["## Results"]
    for name in records.evals:
        if zones_of(records, name):
            parts += [f"### Scores on {name}", _ref(f"table.scores.{name}")]
    if any(q.kind == "nll" for q in records.quantities):
        parts += ["### Loss", _ref("table.losses")]
    parts += ["### Claims", _ref("table.claims")]
    parts.append("### Verdicts, in the words that may be written")
    for verdict in records.verdicts:
        parts.append("> " + _ref(f"claim.{verdict['claim']}.sentence"))
    return "\n\n".join(parts)


def _samples(store: Store, records: CheckedRecords) -> str:
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
            written = [str(r["output"]) for r in rows if str(r.get("output") or "").strip()]
            text = next((output for output in written if len(output) >= 20), next(iter(written), ""))
            if text:
                parts += [f"{condition} on {name}:", _fenced(text)]
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    mark = "```"
    while mark in text:
        mark += "`"
    return f"{mark}text\n{text}\n{mark}"


def _caveats(records: CheckedRecords) -> str:
    lines = []
    for verdict in records.verdicts:
        if weak_evidence(verdict):
            said = _ref(f"claim.{verdict['claim']}.weak_evidence")
            lines.append(f"- `{verdict['claim']}`, weak or poor evidence: {said}.")
    forbidden: dict[str, None] = {}
    for verdict in records.verdicts:
        forbidden |= dict.fromkeys(verdict["may_not"])
    parts = ["## Caveats", "\n".join(lines)] if lines else ["## Caveats", "- Every item of evidence is graded good."]
    return "\n\n".join([*parts, "### What may not be said", "\n".join(f"- {line}" for line in forbidden)])


def _next(records: CheckedRecords) -> str:
    lines = ["- Repeat the comparison on another model or eval before saying more than the verdicts do."]
    for verdict in records.verdicts:
        if verdict["status"] == "inconclusive" and verdict.get("needed_n") and verdict.get("margin"):
            needed = _ref(f"claim.{verdict['claim']}.needed_n")
            lines.append(f"- Settle `{verdict['claim']}`: its margin takes about {needed} items.")
        elif verdict["status"] == "inconclusive" and FLAT in verdict["warnings"]:
            lines.append(
                f"- Settle `{verdict['claim']}` with other items: these gave the same value in every row, so more of "
                "them or more seeds add nothing."
            )
        elif verdict["status"] in ("inconclusive", "untested"):
            lines.append(f"- Settle `{verdict['claim']}` with more items or more seeds.")
    return "## Next steps\n\n" + "\n".join(lines)


def _card(store: Store, records: CheckedRecords) -> str:
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


def _hero_eval(records: CheckedRecords) -> str:
    return records.eval_of(records.claim(_lead(records)["claim"])) or records.evals[0]


def draw_hero(store: Store, records: CheckedRecords) -> Path:
    """Draw the hero figure with its CSV and provenance; returns the SVG's path. The same records give the same
    bytes."""
    with style():
        drawing = _hero(records, _hero_eval(records))
        return save(drawing, store.figures, store.root, svg_text(drawing))["svg"]


def _hero(records: CheckedRecords, name: str) -> Drawing:
    """A line a zone and condition: each seed a small mark, the mean a large one with its number."""
    scores = [q for q in records.quantities if q.kind == "score" and q.scope.eval == name and not q.stale]
    scores = [q for q in scores if q.scope.zone and q.scope.condition]
    arms = list(records.conditions)
    lines = [(zone, arm) for zone in zones_of(records, name) for arm in arms]
    figure, grid = panels(1, width=6.4, height=0.8 + 0.25 * len(lines))
    axes = grid[0][0]
    tidy(axes, "x")
    top = max([1.0, *(q.value for q in scores)])
    for y, (zone, arm) in enumerate(lines):
        look = look_of(None if arm == BASELINE else arms.index(arm) - (BASELINE in arms[: arms.index(arm)]))
        for q in scores:
            if (q.scope.zone, q.scope.condition) == (zone, arm):
                mean = q.scope.seed is None
                axes.plot(
                    [q.value],
                    [y],
                    markersize=8 if mean else 4,
                    alpha=1.0 if mean else 0.5,
                    markeredgewidth=0,
                    clip_on=False,
                    **look,
                )
                if mean:
                    axes.text(top * 1.04, y, f"{q.value:.3f}", va="center", fontsize=8)
    axes.set_yticks(range(len(lines)), [f"{zone}: {shortened(arm)}" for zone, arm in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(min([0.0, *(q.value for q in scores)]), top * 1.16)
    axes.set_xlabel(f"mean score, {shortened(name)}")
    counts = sorted({q.denominator for q in scores if q.denominator and q.runs == 1})
    items = f"{counts[0]:,} to {counts[-1]:,}" if len(counts) > 1 else f"{counts[0]:,}" if counts else "no"
    rows = [(q.scope.condition, q.scope.zone, q.scope.seed, q.value, q.denominator) for q in scores]
    return Drawing(
        name=FIGURE,
        title=f"Mean score on {name} by condition and zone",
        caption="Small marks are seeds, the large one is their mean; an item without a score counts as 0.",
        figure=figure,
        header=("condition", "zone", "seed", "score", "items"),
        table=sorted(rows, key=str),
        sources=tuple(sorted({summary_path(summary) for summary in records.runs.values()})),
        made_by=f"{__name__}.draw_hero",
        n=f"{items} items a run, {many(len(records.runs), 'runs')}",
    )

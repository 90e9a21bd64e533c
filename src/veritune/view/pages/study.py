"""A study: three lines, verdicts, the items behind each claim, runs, what differs, timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response

from veritune.config.claim import SHARE_KINDS
from veritune.config.fields import BASELINE
from veritune.drawing import SERIES
from veritune.records import JsonLike
from veritune.report import views
from veritune.report.caveats import caveat_facts
from veritune.report.read import Records, Run, read_records
from veritune.store import Store
from veritune.view.index import index_of
from veritune.view.pages import results
from veritune.view.pages.desk import Desk, show, shown_command
from veritune.view.places import Place, score_files
from veritune.view.samples import Query, join, select


def study(desk: Desk, place: Place, request: Request) -> Response:
    """The page of one study."""
    from veritune.config.load import load_study

    store = Store(place.path)
    declared = load_study(store.study_file)
    records = read_records(store, declared)
    cards = views.claims(records)
    sort, down = request.query_params.get("sort", ""), "up" not in request.query_params
    columns, table = _table(place, records, sort, down)
    return show(
        desk,
        "study",
        place=place,
        tab="",
        study=declared,
        records=records,
        claims=cards,
        **caveat_facts(records),
        noted=results.of_study(desk, place),
        summary=summary(records, cards),
        pairs=list(_pairs(place, records)),
        columns=columns,
        table=table,
        sort=sort,
        down=down,
        conditions=views.conditions(records),
        timeline=views.timeline(records),
        reproduction=views.reproduction(records),
        series={name: f"s{i % len(SERIES) + 1}" for i, name in enumerate(declared.conditions)},
        command=shown_command(["veritune", "status", str(place.path)]),
    )


def summary(records: Records, cards: Sequence[views.ClaimCard]) -> list[tuple[str, str]]:
    """What was settled, what is open, what comes next: one line each, in the words of the verdicts."""
    settled = [c for c in cards if c.status in ("supported", "refuted")]
    left = [c for c in cards if c.status not in ("supported", "refuted")]
    to_settle = {v.claim: v.details.get("to_settle") for v in records.verdicts}
    steps = [f"{c.name}: {_words(to_settle.get(c.name))}" for c in left if to_settle.get(c.name)]
    after = (
        f"no step is on record for {', '.join(c.name for c in left)}" if left else "repeat it on another model or eval"
    )
    after = after if cards else "nothing is settled until it has run"
    return [
        ("Held", " ".join(map(_short, settled)) or "Nothing was settled."),
        ("Open", " ".join(map(_short, left)) or "Nothing."),
        ("Next", "; ".join(steps) or after),
    ]


def _short(card: views.ClaimCard) -> str:
    """A verdict's sentence up to its numbers; a claim without one by its name."""
    head = card.sentence.split(": ")[0].rstrip(".")
    marks = [card.status] if card.status != "supported" else []
    marks += ["exploratory"] if card.exploratory else []
    return (head or card.name) + (f" ({', '.join(marks)})." if marks else ".")


def _words(value: JsonLike) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _table(place: Place, records: Records, sort: str, down: bool) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """Runs by condition and seed; one column an eval and zone, and the loss on strangers."""
    cells: list[tuple[str, str]] = [("run", "run")]
    names = []
    for name in records.study.evals:
        zones = list(dict.fromkeys(z for run in records.runs for z in run.zone_scores(name)))
        names += [(name, zone) for zone in zones]
    several = len(records.study.evals) > 1
    cells += [(f"{n}.{z}", f"{n} {z}" if several else z) for n, z in names]
    losses = list(dict.fromkeys(z for run in records.runs for z in run.losses))
    cells += [(f"loss.{z}", f"loss {z}") for z in losses]
    rows = [{"run": run, "cells": _cells(place, run, names, losses)} for run in records.runs]
    where = {key: n for n, (key, _) in enumerate(cells)}
    if sort in where:
        at = where[sort] - 1
        rows.sort(key=lambda r: _order(r, at), reverse=down)
    return cells, rows


def _order(row: Mapping[str, Any], at: int) -> tuple[bool, Any]:
    if at < 0:
        return True, row["run"].run_id
    cell = row["cells"][at]
    return cell is not None, cell["value"] if cell else 0.0


def _cells(
    place: Place, run: Run, names: Sequence[tuple[str, str]], losses: Sequence[str]
) -> list[dict[str, Any] | None]:
    source = f"/p/{place.id}/files/{quote(run.path('summary.json'))}"
    found: list[dict[str, Any] | None] = []
    for name, zone in names:
        score = run.zone_scores(name).get(zone)
        if score is None or score.mean is None:
            found.append(None)
            continue
        file = quote(f"{run.run_id}/{name}", safe="")
        address = f"/p/{place.id}/samples?run={file}&eval={quote(name)}&zone={quote(zone)}"
        title = f"mean of the {score.scored} of {score.items} items that have a score" + (
            f", {score.cut} cut" if score.cut else ""
        )
        found.append({"value": score.mean, "text": f"{score.mean:.3f}", "source": address, "title": title})
    for zone in losses:
        loss = run.losses.get(zone)
        value = loss.nll if loss is not None else None
        text = "" if value is None else f"{value:.3f}"
        cell = {"value": value, "text": text, "source": source, "title": "nats per token, summary.json"}
        found.append(None if value is None else cell)
    return found


def _pairs(place: Place, records: Records) -> Any:
    """For each claim between two arms the first run of each, and how many items went which way."""
    files = score_files(place)
    for claim in records.study.claims:
        if claim.kind in ("probe", *SHARE_KINDS) or claim.against_eval is not None:
            continue
        name = claim.eval or next(iter(records.study.evals), "")
        sides = [_first(records, arm, name, files) for arm in (claim.condition, claim.against or BASELINE)]
        if sides[0] is None or sides[1] is None:
            continue
        query = Query(runs=(sides[0], sides[1]), eval=name, zone=claim.zone or "")
        joined = join([(side, index_of(files[side])) for side in query.runs])
        counts = select(joined, query).counts
        yield {
            "claim": claim.name,
            "a": claim.condition,
            "b": claim.against or BASELINE,
            "zone": claim.zone or "",
            "eval": name,
            "n": counts["all"],
            "higher": counts["a"],
            "lower": counts["b"],
            "binary": joined.first.binary,
            "address": f"/p/{place.id}/samples{query.address()}",
        }


def _first(records: Records, arm: str | None, name: str, files: Mapping[str, Any]) -> str | None:
    runs = [f"{run.run_id}/{name}" for run in records.runs if run.condition == arm]
    return next((run for run in runs if run in files), None)

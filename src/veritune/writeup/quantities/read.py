"""Reading a study folder once: which runs count, what is stale, and every quantity by name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from veritune.errors import FormatError, InputError
from veritune.records import FORMAT_VERSION, SCORE_ZONES, JsonLike, RunManifest, RunSummary
from veritune.seal import refuse_edited_records
from veritune.store import Store, read_json, read_jsonl
from veritune.writeup.quantities.model import CheckedRecords, Quantity, Scope, is_number
from veritune.writeup.quantities.ran import of_what_ran, overridden
from veritune.writeup.quantities.runs import of_runs
from veritune.writeup.quantities.settings import of_settings
from veritune.writeup.quantities.verdicts import counted_outcomes, of_verdict

COUNTING = ("baseline", "main")
"""Phases whose runs are results; selection and batch-shape trials chose settings and are none."""


def quantities(store: Store) -> list[Quantity]:
    """Every recorded number of a study folder, by name. Raises InputError if no contract was frozen."""
    return list(read_records(store).quantities)


def read_records(store: Store) -> CheckedRecords:
    """The records of a study folder, read once. Raises InputError without a contract, FormatError if a record is
    damaged.
    """
    if not store.contract_file.exists():
        raise InputError(
            f"{store.root} holds no contract.lock.json, so it has no records to compare with.",
            fix="Name the folder of a study that ran (`veritune run STUDY`).",
        )
    store.check_format()
    entries = read_json(store.contract_file).get("entries") or []
    if not entries:
        raise FormatError(f"{store.contract_file} holds no entries.", fix="Restore it.")
    refuse_edited_records(store)
    try:
        return _records(store, entries)
    except (KeyError, TypeError, AttributeError, IndexError) as exc:
        raise FormatError(
            f"{store.root}: a record does not have the structure of format {FORMAT_VERSION} "
            f"({type(exc).__name__}: {exc}).",
            fix="Restore the record from a copy, or run the study again.",
        ) from exc


def _records(store: Store, entries: list[dict[str, Any]]) -> CheckedRecords:
    terms = entries[-1]["terms"]
    verdict = read_json(store.verdict_file) if store.verdict_file.exists() else {}
    verdicts = tuple(verdict.get("verdicts", ()))
    runs, old_runs = _runs(store, verdict)
    paths = {run_id: store.run(run_id) / "manifest.json" for run_id in runs}
    manifests = {run_id: RunManifest.load(path) for run_id, path in paths.items() if path.exists()}
    found = list(of_what_ran(terms, runs, manifests))
    asked = list(of_settings(terms, len(entries) - 1))
    found += [q for q in asked if not overridden(q.name, manifests)]
    found += of_runs(runs)
    for number, claim in enumerate(verdicts):
        declared: dict[str, Any] = next((c for c in terms["study"]["claims"] if c["name"] == claim["claim"]), {})
        found += of_verdict(claim, declared, list(terms["study"]["evals"]), f"/verdicts/{number}")
    found += counted_outcomes(verdicts) if verdicts else ()
    found += _of_study(store, terms, runs)
    found = _unique(found)
    found += _stale(entries, old_runs, found)
    return CheckedRecords(
        root=store.root,
        name=terms["study"]["name"],
        contract=entries[-1]["hash"],
        old_contracts=tuple(e["hash"] for e in entries[:-1]),
        verdict_contract=verdict.get("contract"),
        terms=terms,
        verdicts=verdicts,
        quantities=tuple(found),
        hashes=_hashes(entries, verdict, runs, old_runs),
        runs=runs,
        manifests=manifests,
        old_runs=tuple(sorted(old_runs)),
        by_name={q.name: q for q in found if not q.stale},
    )


def _unique(found: Iterable[Quantity]) -> list[Quantity]:
    """One quantity per name, the first that was recorded."""
    kept: dict[str, Quantity] = {}
    for quantity in found:
        kept.setdefault(quantity.name, quantity)
    return list(kept.values())


# ---------------------------------------------------------------- which runs count


def _runs(store: Store, verdict: Mapping[str, Any]) -> tuple[dict[str, RunSummary], dict[str, RunSummary]]:
    """Finished runs by id: those that count now, and those that a later run or the verdicts have put aside.

    Where verdict.json says which runs it was decided on, those count, and no other of the same condition and seed.
    """
    summaries = {path.parent.name: RunSummary.load(path) for path in sorted(store.runs.glob("*/summary.json"))}
    results = {run_id: s for run_id, s in summaries.items() if s.phase in COUNTING}
    named = set(verdict.get("runs", ()))
    arms = [e["details"].get(s) for v in verdict.get("verdicts", ()) for e in v["estimates"] for s in ("a", "b")]
    named |= {run for arm in arms if isinstance(arm, Mapping) for run in arm.get("runs", ())}
    current: dict[tuple[str, int | None], str] = {}
    for run_id, summary in results.items():
        key = (summary.condition, summary.seed)
        rank = (run_id in named, summary.finished)
        other = current.get(key)
        if other is None or rank > (other in named, results[other].finished):
            current[key] = run_id
    kept = set(current.values())
    return {k: v for k, v in results.items() if k in kept}, {k: v for k, v in results.items() if k not in kept}


def _stale(entries: list[dict[str, Any]], old: Mapping[str, RunSummary], now: list[Quantity]) -> list[Quantity]:
    """Numbers of older contract entries and superseded runs, where they differ from what holds now."""
    current = {q.name: q.value for q in now}
    found: list[Quantity] = []
    for number, entry in enumerate(entries[:-1]):
        why = f"contract entry {number}, amended since"
        found += [replace(q, stale=why) for q in of_settings(entry["terms"], number)]
    found += [replace(q, stale="a superseded run") for q in of_runs(old)]
    return [q for q in found if current.get(q.name) != q.value]


# ---------------------------------------------------------------- from the rest of the folder


def _of_study(store: Store, terms: Mapping[str, Any], runs: Mapping[str, RunSummary]) -> Iterator[Quantity]:
    """Run counts, the wall time, verdict counts, token lengths."""
    trained = [r for r in runs.values() if r.seed is not None]
    source = "runs/*/summary.json"
    yield Quantity("n.runs", "runs", len(runs), "count", None, Scope(), source, "", ("runs", "cells"))
    yield Quantity("n.runs.trained", "runs", len(trained), "count", None, Scope(), source, "", ("runs", "adapters"))
    for name in terms["study"]["evals"]:
        zones = {z for r in runs.values() for z in r.scores.get(name, {})}
        for zone in sorted(zones, key=lambda z: SCORE_ZONES.index(z) if z in SCORE_ZONES else 9):
            n = next(r.scores[name][zone].items for r in runs.values() if zone in r.scores.get(name, {}))
            scope = Scope(zone=zone, eval=name)
            yield Quantity(f"n.items.{name}.{zone}", "items", n, "count", None, scope, source, "", ("items",))
    for event in reversed(store.events()):
        if event.get("event") == "ran" and is_number(event.get("wall_s")):
            yield Quantity(
                "time.study", "time", event["wall_s"], "s", None, Scope(), "events.jsonl", "/wall_s", ("wall time",)
            )
            break
    render = store.audit("render.json")
    if render.exists():
        found = read_json(render)
        for key, value in (found.get("tokens") or {}).items():
            if is_number(value):
                yield Quantity(
                    f"tokens.row.{key}", "tokens", value, "tokens", None, Scope(), "audit/render.json",
                    f"/tokens/{key}", (f"{key} tokens", "tokens"),
                )  # fmt: skip


def _hashes(
    entries: list[dict[str, Any]],
    verdict: Mapping[str, Any],
    runs: Mapping[str, RunSummary],
    old: Mapping[str, RunSummary],
) -> dict[str, str]:
    """Every hash a text may print, lower case, with its name. Older contract entries and runs start with `old `."""
    found: dict[str, str] = {}

    def collect(value: JsonLike, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                collect(inner, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list):
            for inner in value:
                collect(inner, name)
        elif isinstance(value, str) and re.fullmatch(r"[0-9a-f]{12}|[0-9a-f]{40}|[0-9a-f]{64}", value):
            found.setdefault(value, name)

    for entry in entries[:-1]:
        found[entry["hash"]] = "old contract"
    found[entries[-1]["hash"]] = "contract"
    collect(entries[-1]["terms"], "")
    for entry in entries[:-1]:
        collect(entry["terms"], "old")
    collect({k: v for k, v in verdict.items() if k != "contract"}, "verdict")
    for label, members in (("run", runs), ("old run", old)):
        for run_id, summary in members.items():
            found.setdefault(run_id.rpartition("-")[2], f"{label} {run_id}")
            found.setdefault(summary.input_hash, f"{label} {run_id} summary")
            if summary.training is not None:
                found.setdefault(summary.training.input_hash, f"{label} {run_id} training")
    return found


def outputs(store: Store, run_id: str, eval_name: str) -> list[dict[str, JsonLike]]:
    """The scored outputs of one run on one eval; empty if there are none."""
    path = store.run(run_id) / "scores" / f"{eval_name}.jsonl"
    return read_jsonl(path) if path.exists() else []

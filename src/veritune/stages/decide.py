"""From the records of finished cells to verdicts: scores as tables, recorded quantities, claims judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.decide.claims import Context as ClaimContext
from veritune.decide.claims import judge
from veritune.errors import InputError
from veritune.probe.names import arm_of
from veritune.records import RunManifest, Score, Verdict, to_json
from veritune.seal import break_seal
from veritune.stages.recorded import claimed_quantities
from veritune.stats.paired import Options
from veritune.stats.table import ScoreTable
from veritune.store import Store, hash_of, read_json, read_jsonl, write_json


def decide(store: Store, study: Study, run_ids: Sequence[str], kept: Mapping[str, Any]) -> list[Verdict]:
    """Judge every declared claim on these runs' scores and write `verdict.json`; the verdicts.

    `kept` is the contract as `contract.read` gives it; claims that it marks exploratory stay so.
    """
    tables = score_tables(store, study, run_ids)
    exploratory = contract.exploratory_claims(kept)
    claims = []
    for claim in study.claims:
        late = {"correction": "exploratory"} if claim.name in exploratory else {}
        claims.append(claim.model_copy(update={"eval": study.eval_of(claim), **late}))
    quantities = claimed_quantities(store, run_ids, study)
    context = ClaimContext(
        probes=quantities,
        scales=dict.fromkeys(study.evals, (0.0, 1.0)),
        failure_values=dict.fromkeys(study.evals, 0.0),
        evidence={"*": {"contamination": _contamination(kept), "replicated": None}},
        options=Options(
            shared_seeds=study.shared_seeds,
            equal_seed_spread=study.equal_seed_spread,
            notes=study.thresholds.notes,
        ),
        grade=study.thresholds.grade,
    )
    worth = standings(store, run_ids, kept)
    verdicts = [
        _marked(replace(v, exploratory=v.exploratory or v.claim in exploratory), claim, worth)
        for v, claim in zip(judge(claims, tables, context), claims)
    ]
    made_from = {"contract": kept["entries"][-1]["hash"], "scores": _score_hashes(store, study, run_ids)}
    if quantities:
        made_from["probes"] = {name: to_json(found.estimate) for name, found in quantities.items()}
    inputs = hash_of(made_from)
    record = {
        "input_hash": inputs,
        "contract": kept["entries"][-1]["hash"],
        "runs": list(run_ids),
        "standing": {run_id: w for run_id, (_, w) in worth.items() if w["exploratory"] or w["before_amendment"]},
        "verdicts": verdicts,
    }
    if not store.verdict_file.exists() or read_json(store.verdict_file) != to_json(record):
        break_seal(store)
        write_json(store.verdict_file, record)
    store.log_once("decided", inputs=inputs, verdicts={v.claim: v.status for v in verdicts})
    return verdicts


def standings(store: Store, run_ids: Sequence[str], kept: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """For each run its condition and what its results are worth: exploratory, or made before an amendment."""
    found = {}
    for run_id in run_ids:
        manifest, worth = RunManifest.load(store.run(run_id) / "manifest.json"), contract.standing(kept, run_id)
        worth["exploratory"] |= manifest.exploratory
        found[run_id] = (manifest.condition, worth)
    return found


def _marked(verdict: Verdict, claim: Any, worth: Mapping[str, tuple[str, dict[str, Any]]]) -> Verdict:
    """The verdict with what its runs are worth said on it."""
    sides = [side for side in (claim.condition, claim.against) if side is not None]
    if claim.kind == "probe":
        sides = [arm_of(claim.probe), BASELINE]
    here = {run_id: w for run_id, (condition, w) in worth.items() if condition in sides}
    early = [run_id for run_id, w in here.items() if w["exploratory"]]
    warnings = list(verdict.warnings)
    if early:
        warnings.append(f"{len(early)} of {len(here)} runs were made before the study was frozen: exploratory for ever")
    for number in sorted({w["before_amendment"] for w in here.values() if w["before_amendment"]}):
        count = sum(w["before_amendment"] == number for w in here.values())
        warnings.append(f"{count} of {len(here)} runs were made before amendment {number}")
    if len(warnings) == len(verdict.warnings):
        return verdict
    return replace(verdict, exploratory=verdict.exploratory or bool(early), warnings=tuple(warnings))


def _score_hashes(store: Store, study: Study, run_ids: Sequence[str]) -> dict[str, str]:
    paths = [store.run(run_id) / "scores" / f"{name}.json" for run_id in run_ids for name in study.evals]
    return {store.relative(path): read_json(path)["input_hash"] for path in paths}


def _contamination(kept: Mapping[str, Any]) -> str:
    """`clean` when no near-copy of a held-out item was found in the trained rows, else `found`."""
    counts = kept["entries"][-1]["terms"]["facts"]["contamination"]["evals"].values()
    return "found" if any(c["rows_exact"] + c["rows_confirmed"] for c in counts) else "clean"


def scores(study: str | Path) -> dict[tuple[str, str], ScoreTable]:
    """Tables by (condition, eval) of a finished study: the runs its verdicts were made from.

    Raises InputError when the study has no verdicts yet.
    """
    store = Store.of(study)
    if not store.verdict_file.exists():
        raise InputError(f"{store.root} has no verdicts yet.", fix=f"Run it first: veritune run {store.root}")
    return score_tables(store, load_study(store.study_file), read_json(store.verdict_file)["runs"])


def score_tables(store: Store, study: Study, run_ids: Sequence[str]) -> dict[tuple[str, str], ScoreTable]:
    """The scores of these runs as tables by (condition, eval); the baseline is a fixed arm."""
    scores: dict[tuple[str, str], list[Score]] = {}
    seeds: dict[str, list[str]] = {}
    for run_id in run_ids:
        manifest = RunManifest.load(store.run(run_id) / "manifest.json")
        condition = manifest.condition
        seeds.setdefault(condition, []).append(str(manifest.seed))
        for name in study.evals:
            rows = read_jsonl(store.run(run_id) / "scores" / f"{name}.jsonl")
            scores.setdefault((condition, name), []).extend(Score(**row) for row in rows)
    tables = {
        key: ScoreTable.from_scores(rows, condition=key[0], fixed=key[0] == BASELINE) for key, rows in scores.items()
    }
    return {key: replace(table, seeds=tuple(seeds[key[0]])) for key, table in tables.items()}

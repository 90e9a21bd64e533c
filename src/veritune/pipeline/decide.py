"""From the records of finished cells to verdicts: scores as tables, recorded quantities, claims judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from veritune import contract
from veritune.config.fields import BASELINE
from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.decide.claims import ClaimContext as ClaimContext
from veritune.decide.claims import judge
from veritune.decide.probe_records import claimed_quantities
from veritune.errors import InputError
from veritune.evaluate.means import FAILED
from veritune.probe.names import arm_of
from veritune.records import (
    Contract,
    RunManifest,
    Score,
    ScoreStamp,
    Standing,
    StudyVerdicts,
    TrainingRecord,
    Verdict,
    to_json,
)
from veritune.seal import break_seal
from veritune.stats.paired import PairOptions
from veritune.stats.table import ScoreTable
from veritune.store import Store, hash_of

if TYPE_CHECKING:
    from veritune.config.claim import Claim


def decide(store: Store, study: Study, run_ids: Sequence[str], kept: Contract) -> list[Verdict]:
    """Judge every declared claim on the scores of these runs, write `verdict.json` and return the verdicts.

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
        failure_values=dict.fromkeys(study.evals, FAILED),
        evidence={"*": {"contamination": _contamination(kept), "replicated": None}},
        options=PairOptions(
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
    made_from = {"contract": kept.last.hash, "scores": _score_hashes(store, study, run_ids)}
    if quantities:
        made_from["probes"] = {name: to_json(found.estimate) for name, found in quantities.items()}
    inputs = hash_of(made_from)
    record = StudyVerdicts(
        input_hash=inputs,
        contract=kept.last.hash,
        runs=tuple(run_ids),
        standing={run_id: w for run_id, (_, w) in worth.items() if w.marked},
        verdicts=tuple(verdicts),
    )
    if not store.verdict_file.exists() or store.verdict_file.read_bytes() != record.text().encode():
        break_seal(store)
        record.save(store.verdict_file)
    store.log_once("decided", inputs=inputs, verdicts={v.claim: v.status for v in verdicts})
    return verdicts


def standings(store: Store, run_ids: Sequence[str], kept: Contract) -> dict[str, tuple[str, Standing]]:
    """For each run, its condition and what its results count as: exploratory, or made before an amendment."""
    found, worth_of = {}, contract.standing(kept)
    for run_id in run_ids:
        manifest, worth = RunManifest.load(store.run(run_id) / "manifest.json"), worth_of(run_id)
        elsewhere = tuple(elsewhere_of(store, run_id)) if manifest.trained_elsewhere else None
        early = worth.exploratory or manifest.exploratory
        found[run_id] = (manifest.condition, replace(worth, exploratory=early, trained_elsewhere=elsewhere))
    return found


def _marked(verdict: Verdict, claim: Claim, worth: Mapping[str, tuple[str, Standing]]) -> Verdict:
    """The verdict with what its runs are worth said on it."""
    sides = [side for side in (claim.condition, claim.against, claim.reference) if side is not None]
    if claim.kind == "probe" and claim.probe is not None:
        sides = [arm_of(claim.probe), BASELINE]
    here = {run_id: w for run_id, (condition, w) in worth.items() if condition in sides}
    early = [run_id for run_id, w in here.items() if w.exploratory]
    warnings = list(verdict.warnings)
    if early:
        warnings.append(f"{len(early)} of {len(here)} runs were made before the freeze: they stay exploratory")
    for number in sorted({w.before_amendment for w in here.values() if w.before_amendment}):
        count = sum(w.before_amendment == number for w in here.values())
        warnings.append(f"{count} of {len(here)} runs were made before amendment {number}")
    adopted = {run_id: w.trained_elsewhere for run_id, w in here.items() if w.trained_elsewhere}
    for run_id, open_ in adopted.items():
        warnings.append(f"{run_id} was trained elsewhere; not checked: {'; '.join(open_)}")
    if len(warnings) == len(verdict.warnings):
        return verdict
    sentence = verdict.sentence + (f" {_adopted(worth, list(adopted))}" if adopted else "")
    return replace(verdict, sentence=sentence, exploratory=verdict.exploratory or bool(early), warnings=tuple(warnings))


def _adopted(worth: Mapping[str, tuple[str, Standing]], run_ids: Sequence[str]) -> str:
    """The sentence that every claim on adopted weights carries."""
    arms = sorted({worth[run_id][0] for run_id in run_ids})
    which = "Runs" if len(run_ids) > 1 else "A run"
    return f"{which} of {' and '.join(arms)} trained elsewhere: what they saw in training was not checked here."


def elsewhere_of(store: Store, run_id: str) -> list[str]:
    """What could not be checked about an adopted run; held-out rows that it was trained on come first."""
    record = TrainingRecord.load(store.run(run_id) / "training.json").elsewhere
    if record is None:
        return []
    held = () if record.rows is None else (*record.rows.held_out, *record.rows.near)
    known = [f"it trained on {len(held)} held-out rows, first {held[0]}"] if held else []
    return [*known, *record.not_checked]


def _score_hashes(store: Store, study: Study, run_ids: Sequence[str]) -> dict[str, str]:
    paths = [store.run(run_id) / "scores" / f"{name}.json" for run_id in run_ids for name in study.evals]
    return {store.relative(path): ScoreStamp.load(path).input_hash for path in paths}


def _contamination(kept: Contract) -> str:
    """`clean` when no near-copy of a held-out item was found in the trained rows, else `found`."""
    counts = kept.facts.contamination
    return "found" if counts is not None and counts.copies else "clean"


def scores(study: str | Path) -> dict[tuple[str, str], ScoreTable]:
    """The score tables of a finished study by (condition, eval), from the runs behind its verdicts.

    Raises InputError when the study has no verdicts yet.
    """
    store = Store.of(study)
    if not store.verdict_file.exists():
        raise InputError(f"{store.root} has no verdicts yet.", fix=f"Run it first: veritune run {store.root}")
    return score_tables(store, load_study(store.study_file), StudyVerdicts.load(store.verdict_file).runs)


def score_tables(store: Store, study: Study, run_ids: Sequence[str]) -> dict[tuple[str, str], ScoreTable]:
    """The scores of these runs as tables by (condition, eval); the baseline is a fixed arm."""
    scores: dict[tuple[str, str], list[Score]] = {}
    seeds: dict[str, list[str]] = {}
    for run_id in run_ids:
        manifest = RunManifest.load(store.run(run_id) / "manifest.json")
        condition = manifest.condition
        seeds.setdefault(condition, []).append(str(manifest.seed))
        for name in study.evals:
            rows = Score.load_all(store.run(run_id) / "scores" / f"{name}.jsonl")
            scores.setdefault((condition, name), []).extend(rows)
    tables = {
        key: ScoreTable.from_scores(rows, condition=key[0], fixed=key[0] == BASELINE) for key, rows in scores.items()
    }
    return {key: replace(table, seeds=tuple(seeds[key[0]])) for key, table in tables.items()}

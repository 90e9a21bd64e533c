"""A study's scores, item by item, in the forms that other tools read: Parquet, Inspect logs, Every Eval Ever, the hub.

    items.<eval> --as parquet          one table: a row a run and item
    items.<eval> --as inspect          a folder of Inspect logs, one .eval a run
    items.<eval> --as every-eval-ever  a folder of records, one .json a run (schema 0.3.0)
    items.<eval> --as eval-results     a folder of .eval_results/*.yaml files for hub repos, one a trained run

A score that the model owes is a failure in each form; one that the machine lost is an error, never a wrong answer.
Runs of adopted weights say that they were trained elsewhere.
"""

from __future__ import annotations

import io
import json
import re
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import yaml

from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.counting import grouped, many
from veritune.errors import InputError
from veritune.evaluate.means import ZoneMean, zone_mean
from veritune.files import atomic, staged_folder, write_parquet, write_text
from veritune.records import Json, JsonLike, RunManifest, RunSummary, Score, TrainingRecord, dumps
from veritune.report.read import read_records
from veritune.stats.reasons import is_models
from veritune.store import Store

PREFIX = "items."
FORMS = ("parquet", "inspect", "every-eval-ever", "eval-results")
EEE_SCHEMA = "0.3.0"
_BENCHMARK = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(:(?P<task>[\w.-]+))?")
NAMESPACE = uuid.UUID("6f0a2a3e-7d1c-4a55-9c55-6b7c2e0f5a11")
"""Ids of what is exported are made from the run's own records, so that an export made twice is the same."""


@dataclass(frozen=True)
class ScoredRun:
    """One run and its scores on one eval; `elsewhere` is what could not be checked about adopted weights."""

    manifest: RunManifest
    summary: RunSummary
    scores: tuple[Score, ...]
    elsewhere: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The run's name in other tools: base, arm and seed."""
        arm = (
            self.manifest.condition if self.summary.seed is None else f"{self.manifest.condition}-s{self.summary.seed}"
        )
        return f"{self.manifest.model.name}+{arm}"


@dataclass(frozen=True)
class ScoredItems:
    """Every counted run with its scores on an eval, and the items' prompts and targets by id.

    `repo` and `task` name the hub's dataset that the items are of, where the user said so.
    """

    study: Study
    contract: str
    eval: str
    runs: tuple[ScoredRun, ...]
    rows: Mapping[str, Json]
    repo: str | None = None
    task: str | None = None


def export(study: Path | None, name: str, form: str, out: Path | None, benchmark: str | None = None) -> str:
    """Write the items of an eval in a format; returns a line that says what was written. Raises InputError.

    Nothing is read but the study's records; runs that the verdicts do not count are left out. `benchmark` names the
    hub's dataset that the items are of, as OWNER/NAME[:TASK].
    """
    if study is None:
        raise InputError(f"{name} needs a study, but none was given.", fix="Add --study STUDY.")
    if form not in FORMS:
        raise InputError(f"{name} is exported as {', '.join(FORMS)}; found {form!r}.", fix="--as parquet")
    if out is None:
        what = "the file" if form == "parquet" else "the folder"
        raise InputError(f"{name} --as {form} can only be written to a file.", fix=f"Name {what}: --out PATH")
    named = _BENCHMARK.fullmatch(benchmark or "")
    if named is None and (benchmark is not None or form == "eval-results"):
        found = benchmark or "none"
        raise InputError(f"--benchmark: expected a dataset of the hub, found {found}.", fix="OWNER/NAME[:TASK]")
    items = read_items(Store.of(study), name.removeprefix(PREFIX))
    if named is not None:
        items = replace(items, repo=named["repo"], task=named["task"] or items.eval)
    if form == "parquet":
        write_parquet(out, _columns(items))
        return f"{grouped(sum(len(run.scores) for run in items.runs), 'scores')} of {len(items.runs)} runs"
    if out.exists():
        raise InputError(f"{out} already exists.", fix="Name a new folder.")
    with staged_folder(out) as folder:
        for run in items.runs:
            if form == "inspect":
                with atomic(folder / f"{run.manifest.run_id}.eval", "wb") as stream:
                    stream.write(inspect_log(items, run))
            elif form == "every-eval-ever":
                write_text(folder / f"{_id(items, run)}.json", dumps(every_eval_ever(items, run), indent=2) + "\n")
            elif run.summary.seed is not None:  # the untouched model's results belong into no repo of a tuned one
                text = yaml.safe_dump(eval_results(items, run), sort_keys=False, allow_unicode=True)
                write_text(folder / f"{run.manifest.run_id}.yaml", text)
    return many(len(items.runs), "runs")


def read_items(store: Store, name: str) -> ScoredItems:
    """The scores of an eval by run. Raises InputError for an eval that the study does not have or did not score."""
    study = load_study(store.study_file)
    if name not in study.evals:
        raise InputError(f"the study has no eval {name!r}.", fix=f"Evals: {', '.join(study.evals) or 'none'}.")
    records = read_records(store, study)
    runs = []
    for run in records.every_run:
        path = store.run(run.run_id) / "scores" / f"{name}.jsonl"
        summary = store.run(run.run_id) / "summary.json"
        if not path.is_file() or not summary.is_file():
            continue
        elsewhere: tuple[str, ...] = ()
        if run.manifest.trained_elsewhere:
            record = TrainingRecord.load(store.run(run.run_id) / "training.json").elsewhere
            elsewhere = record.not_checked if record is not None else ()
        runs.append(ScoredRun(run.manifest, RunSummary.load(summary), tuple(Score.load_all(path)), elsewhere))
    if not runs:
        raise InputError(
            f"no finished run has scores on {name}.", fix=f"Run the study first: veritune run {store.root}"
        )
    ids = {score.item_id for run in runs for score in run.scores}
    rows = records.benchmarks.get(name, records.rows).pick(ids)
    return ScoredItems(study, records.contract_hash or "", name, tuple(runs), rows)


# ---------------------------------------------------------------- Parquet


def _columns(items: ScoredItems) -> dict[str, list[JsonLike]]:
    pairs = [(run, score) for run in items.runs for score in run.scores]
    return {
        "study": [items.study.name for _ in pairs],
        "contract": [items.contract for _ in pairs],
        "run_id": [run.manifest.run_id for run, _ in pairs],
        "condition": [run.manifest.condition for run, _ in pairs],
        "seed": [run.summary.seed for run, _ in pairs],
        "trained_elsewhere": [bool(run.manifest.trained_elsewhere) for run, _ in pairs],
        "eval": [score.eval for _, score in pairs],
        "item_id": [score.item_id for _, score in pairs],
        "family": [score.family for _, score in pairs],
        "zone": [score.zone for _, score in pairs],
        "value": [score.value for _, score in pairs],
        "reason": [score.reason for _, score in pairs],
        "output": [score.output for _, score in pairs],
        "parts": [dumps(score.parts) for _, score in pairs],
    }


# ---------------------------------------------------------------- Inspect


def inspect_log(items: ScoredItems, run: ScoredRun) -> bytes:
    """One run as an Inspect log (version 2 of its format), zipped."""
    samples = [_sample(items, run, score) for score in run.scores]
    header = {"version": 2, "status": "success", "eval": _eval_spec(items, run, len(samples))}
    header |= {"plan": {"name": "plan", "steps": [], "config": {}}, "results": _results(items, run)}
    header["stats"] = {"started_at": run.manifest.created, "completed_at": run.summary.finished, "model_usage": {}}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        entries: dict[str, object] = {"_journal/start.json": {k: header[k] for k in ("version", "eval", "plan")}}
        entries |= {f"samples/{sample['id']}_epoch_1.json": sample for sample in samples}
        entries |= {"summaries.json": [_summary_of(sample) for sample in samples], "header.json": header}
        for name, content in entries.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, json.dumps(content, ensure_ascii=False, allow_nan=False))
    return buffer.getvalue()


def _eval_spec(items: ScoredItems, run: ScoredRun, n: int) -> Mapping[str, JsonLike]:
    spec = items.study.evals[items.eval]
    about: dict[str, JsonLike] = {"run_id": run.manifest.run_id, "study": items.study.name, "contract": items.contract}
    about |= {"condition": run.manifest.condition, "seed": run.summary.seed, "exploratory": run.summary.exploratory}
    about |= {"trained_elsewhere": list(run.elsewhere)} if run.manifest.trained_elsewhere else {}
    return {
        "eval_id": _id(items, run),
        "run_id": run.manifest.run_id,
        "task_id": _id(items, run),
        "created": run.manifest.created,
        "task": items.eval,
        "task_version": 0,
        "task_attribs": {},
        "task_args": {},
        "dataset": {"name": items.eval, "samples": n, "sample_ids": [s.item_id for s in run.scores], "shuffled": False},
        "model": run.model,
        "model_args": {},
        "config": {"epochs": 1},
        "packages": {"veritune": metadata.version("veritune")},
        "model_generate_config": {"temperature": 0.0, "max_tokens": spec.max_new_tokens},
        "metadata": about,
    }


def _results(items: ScoredItems, run: ScoredRun) -> Mapping[str, JsonLike]:
    values = [_counted(score) for score in run.scores]
    known = [value for value in values if value is not None]
    metric: dict[str, JsonLike] = (
        {"mean": {"name": "mean", "value": sum(known) / len(known), "params": {}}} if known else {}
    )
    score: dict[str, JsonLike] = {"name": items.eval, "scorer": items.eval, "params": {}, "metrics": metric}
    score |= {"scored_samples": len(known), "unscored_samples": len(values) - len(known)}
    return {"total_samples": len(values), "completed_samples": len(known), "scores": [score]}


def _counted(score: Score) -> float | None:
    """The value that counts: 0 for the model's own failure, None for what the machine lost."""
    if score.value is not None:
        return score.value
    return 0.0 if is_models(score.reason) else None


def _sample(items: ScoredItems, run: ScoredRun, score: Score) -> Mapping[str, JsonLike]:
    messages = list(items.rows.get(score.item_id, {}).get("messages") or [])
    last = messages.pop() if messages and messages[-1]["role"] == "assistant" else {}
    target = last.get("content") or ""
    turns = [{"id": f"{score.item_id}-{n}", "role": m["role"], "content": m["content"]} for n, m in enumerate(messages)]
    answer = {"role": "assistant", "content": score.output or "", "source": "generate"}
    lost = score.value is None and not is_models(score.reason)
    value: float | str = score.value if score.value is not None else "N"
    about: Json = {"family": score.family, "zone": score.zone, "reason": score.reason}
    if any(value for m in [*messages, last] for key, value in m.items() if key not in ("role", "content")):
        about = {**about, "messages": [*messages, last]}  # tool calls and reasoning, as the row has them
    scored = {"value": value, "answer": score.output, "explanation": score.reason, "metadata": {"parts": score.parts}}
    stop = "max_tokens" if score.ended == "length" else "stop"
    return {
        "id": score.item_id,
        "epoch": 1,
        "input": turns or score.item_id,
        "target": target,
        "messages": [*turns, answer],
        "output": {
            "model": run.model,
            "choices": [{"message": answer, "stop_reason": stop}],
            "completion": score.output,
        },
        "scores": {} if lost else {items.eval: scored},
        "metadata": about,
        "error": _error(score.reason) if lost else None,
    }


def _error(reason: str | None) -> Mapping[str, JsonLike]:
    said = reason or "no score was recorded"
    return {"message": said, "traceback": said, "traceback_ansi": said}


def _summary_of(sample: Json) -> Mapping[str, JsonLike]:
    kept = ("id", "epoch", "input", "target", "metadata", "scores")
    summary = {name: sample[name] for name in kept}
    if sample["error"]:
        summary["error"] = sample["error"]["message"]
    return {**summary, "completed": True}


# ---------------------------------------------------------------- Every Eval Ever


def every_eval_ever(items: ScoredItems, run: ScoredRun) -> Mapping[str, JsonLike]:
    """One run as an aggregate record of Every Eval Ever: one result per zone, with its items and those without a
    score."""
    about = {"condition": run.manifest.condition, "study": items.study.name, "contract": items.contract}
    about |= {"seed": str(run.summary.seed)} if run.summary.seed is not None else {}
    about |= {"trained_elsewhere": "; ".join(run.elsewhere)} if run.manifest.trained_elsewhere else {}
    about |= {"deployment_type": "self_deployed", "model_availability": "unknown"}
    stamp = str(datetime.fromisoformat(run.summary.finished).replace(tzinfo=UTC).timestamp())
    return {
        "schema_version": EEE_SCHEMA,
        "evaluation_id": f"{items.eval}/{run.model.replace('/', '_')}/{stamp}",
        "evaluation_timestamp": stamp,
        "retrieved_timestamp": stamp,
        "source_metadata": {
            "source_name": f"Veritune study {items.study.name}",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
        },
        "eval_library": {"name": "veritune", "version": metadata.version("veritune")},
        "model_info": {"name": run.model, "id": run.model, "additional_details": about},
        "evaluation_results": [_eee_result(items, run, zone, mean) for zone, mean in _zone_means(items, run)],
    }


def _eee_result(items: ScoredItems, run: ScoredRun, zone: str, mean: ZoneMean) -> Mapping[str, JsonLike]:
    spec, held = items.study.evals[items.eval], run.summary.scores[items.eval][zone]
    hub = {"source_type": "hf_dataset", "hf_repo": items.repo, "samples_number": held.items}
    source = hub if items.repo is not None else {"source_type": "other"}
    without = {f"without a score: {reason}": str(n) for reason, n in held.missing.items()}
    args = {"temperature": 0.0, "max_tokens": spec.max_new_tokens}
    return {
        "evaluation_result_id": f"{run.manifest.run_id}/{items.eval}/{zone}",
        "evaluation_name": f"{items.eval}, zone {zone}",
        "source_data": {"dataset_name": items.eval, **source},
        "evaluation_timestamp": run.summary.finished,
        "metric_config": {
            "metric_id": f"veritune.{items.study.name}.{items.eval}",
            "metric_name": "mean score",
            "metric_unit": "proportion",
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0.0,
            "max_score": 1.0,
        },
        "score_details": {
            "score": mean.value,
            "details": {"items": str(held.items), "with a score": str(held.scored), **without},
            "uncertainty": {"num_samples": mean.n},
        },
        "generation_config": {"generation_args": args},
    }


def _zone_means(items: ScoredItems, run: ScoredRun) -> list[tuple[str, ZoneMean]]:
    """The run's means as every page of the study prints them; zones without any score are left out."""
    zones = sorted(run.summary.scores[items.eval].items())
    return [(zone, mean) for zone, cell in zones if (mean := zone_mean(cell)) is not None]


# ---------------------------------------------------------------- the hub's .eval_results


def eval_results(items: ScoredItems, run: ScoredRun) -> list[Json]:
    """Entries for a model repo's `.eval_results/*.yaml`, one per zone."""
    found: list[Json] = []
    for zone, mean in _zone_means(items, run):
        notes = f"run {run.manifest.run_id} of Veritune study {items.study.name}, zone {zone}, {many(mean.n, 'items')}"
        notes += f", {mean.failed} without a score count as 0" if mean.failed else ""
        notes += "; weights trained elsewhere" if run.manifest.trained_elsewhere else ""
        entry: Json = {"dataset": {"id": items.repo, "task_id": items.task}, "value": mean.value}
        found.append({**entry, "date": run.summary.finished, "notes": notes})
    return found


def _id(items: ScoredItems, run: ScoredRun) -> str:
    made = uuid.uuid5(NAMESPACE, f"{items.contract}/{run.manifest.run_id}/{items.eval}/{run.summary.finished}")
    return str(made)


def names(evals: Sequence[str]) -> Iterator[str]:
    """The names `items.<eval>`, one for each eval."""
    return (f"{PREFIX}{name}" for name in evals)

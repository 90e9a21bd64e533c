"""HELM's per_instance_stats.json: for each instance, perturbation and train trial a list of named statistics.

An instance's statistic is the mean that HELM recorded. `--filter` chooses among splits and perturbations (`test`,
`valid`, `test/typos`). Train trials are samples of an item. HELM leaves statistics that are NaN out of the file: an
instance without the chosen one is not scored. The run's folder names the eval, without its model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError
from veritune.evaluate.direction import known_direction
from veritune.evaluate.logs.options import LogFormat, Reading, obeys
from veritune.evaluate.logs.values import choose, fingerprint, load_json, named_eval, objects, row_labels, scored
from veritune.stats.table import Columns

if TYPE_CHECKING:
    from veritune.records import JsonLike

FILE_NAME = "per_instance_stats.json"

_MODEL = re.compile(r",?model(_deployment)?=[^,]*")

_BOOKKEEPING = re.compile(
    r"num_.*|finish_reason_.*|.*runtime.*|batch_size|max_prob|logprob|.*_cost|.*truncated|training_.*|prompt_.*|"
    r".*_time|perplexity_tokenizer.*|references_.*"
)
"""Statistics about the request, not about the answer: never a choice unless they are named."""


def is_helm(row: Mapping[str, Cell]) -> bool:
    """Whether a row is from HELM: an instance with a list of statistics."""
    return "instance_id" in row and isinstance(row.get("stats"), list)


def _read(path: Path, reading: Reading) -> Columns:
    rows = [row for _, row in objects(load_json(path), path)]
    every = {_slice(row, stat) for row in rows for stat in row["stats"]}
    chosen = choose("split", every, reading.filter, path, "--filter")
    inside = [(row, {str(s["name"]["name"]): s for s in row["stats"] if _slice(row, s) == chosen}) for row in rows]
    inside = [(row, stats) for row, stats in inside if stats]
    names = {name for _, stats in inside for name in stats}
    answers = {name for name in names if not _BOOKKEEPING.fullmatch(name)} or names
    metric = choose("metric", names if reading.metric in names else answers, reading.metric, path, "--metric")
    pairs = [_score(path, row, stats.get(metric), metric) for row, stats in inside]
    asked = _instances(path)
    plain = [{**row, "instance": asked.get(str(row["instance_id"]), {})} for row, _ in inside]
    labels = row_labels(path, plain, reading, ("instance",))
    trials = [str(row.get("train_trial_index", 0)) for row in plain]
    return Columns(
        eval=named_eval(path, _eval_of(path), reading.eval),
        run=labels.get("run") or [_eval_run(path)] * len(plain),
        item=labels.get("id") or [str(row["instance_id"]) for row in plain],
        value=[value for value, _ in pairs],
        reason=[reason for _, reason in pairs],
        family=labels.get("family", ()),
        sample=labels.get("sample") or (trials if len(set(trials)) > 1 else ()),
        rater=labels.get("rater", ()),
        content=[fingerprint(row["instance"]) if row["instance"] else None for row in plain],
        notes=(f"metric {metric}, split {chosen}",),
        metric=metric,
        higher_is_better=known_direction(metric),
    )


def _slice(row: Mapping[str, Any], stat: Mapping[str, Any]) -> str:
    """The split and perturbation that a statistic speaks of: `test`, `test/typos`."""
    name = stat["name"]
    changed = name.get("perturbation") or row.get("perturbation") or {}
    parts = [name.get("split"), name.get("sub_split"), changed.get("name")]
    return "/".join(str(p) for p in parts if p) or "none"


def _score(
    path: Path, row: Mapping[str, Any], stat: Mapping[str, Any] | None, metric: str
) -> tuple[float | None, str | None]:
    if stat is None or stat.get("count") == 0:
        return None, "not_scored"
    return scored(stat.get("mean"), path, row.get("instance_id"), metric)


def _instances(path: Path) -> dict[str, dict[str, JsonLike]]:
    """What each instance asks, from instances.json beside the statistics; nothing where it is not there.

    Raises ScoreError for one id that stands there with several texts and no perturbation.
    """
    file = path.with_name("instances.json")
    if not file.is_file():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for n, instance in objects(load_json(file), file):
        if instance.get("perturbation"):
            continue
        name = str(instance.get("id"))
        kept = {k: instance[k] for k in instance if k not in ("perturbation", "split")}
        if found.setdefault(name, kept) != kept:
            raise ScoreError(f"{file.name}, entry {n}: the instance {name!r} occurs with two different texts.")
    return found


def _run_name(path: Path) -> str:
    """The run's name: its folder's, where that is one of HELM's, else what run_spec.json says, else nothing."""
    if "=" in path.parent.name or ":" in path.parent.name:
        return path.parent.name
    spec = path.with_name("run_spec.json")
    record = load_json(spec) if spec.is_file() else {}
    return str(record.get("name") or "") if isinstance(record, Mapping) else ""


def _eval_of(path: Path) -> str:
    return _MODEL.sub("", _run_name(path)).rstrip(":")


def _eval_run(path: Path) -> str:
    return _run_name(path) or path.stem


FORMAT = LogFormat(
    "helm",
    "HELM statistics",
    obeys("metric", "filter", "id", "family", "run", "rater", "sample"),
    _read,
    eval_of=_eval_of,
)

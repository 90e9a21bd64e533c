"""The score files of a folder as a harness left it: its samples or details, without the results beside them.

lm-eval     OUT/MODEL/samples_TASK_STAMP.jsonl, results_STAMP.json
lighteval   OUT/details/MODEL/STAMP/details_TASK_STAMP.parquet, OUT/results/MODEL/results_STAMP.json
HELM        SUITE/RUN/per_instance_stats.json beside stats.json, scenario_state.json, ...
Inspect     logs/STAMP_TASK_ID.eval beside logs.json
EvalPlus    MODEL_eval_results.json beside the solutions
Veritune    RUN/scores/EVAL.jsonl beside their stamps
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from veritune.counting import many
from veritune.errors import ScoreError
from veritune.evaluate.logs import helm, lighteval, lm_eval
from veritune.evaluate.logs.registry import eval_of

_SUFFIXES = frozenset({".jsonl", ".json", ".csv", ".tsv", ".eval", ".parquet"})

_INSPECT_FILE = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d.*\.(eval|json)")
_BESIDE = frozenset({"logs.json", "listing.json", "eval-set.json", "run_spec.json", "config.json", "instances.json"})
"""Files that harnesses lay beside their scores."""

_MAX_DEPTH = 5


def files_in(folder: Path, eval_name: str | None = None) -> list[Path]:
    """The score files of a folder, of its subfolder `scores`, or of its only subfolder that has some.

    `eval_name` picks the file of that name where there is one. Raises ScoreError for a folder without score files, for
    one with several outputs, and for several runs of one task that nothing says are seeds.
    """
    if (folder / "scores").is_dir():
        folder = folder / "scores"
    found = _direct(folder)
    if not found:
        found, folder = _below(folder)
    if eval_name and any(p.stem == eval_name for p in found):
        found = [p for p in found if p.stem == eval_name]
    _one_run_each(folder, found)
    return found


def _direct(folder: Path) -> list[Path]:
    """The score files that lie in a folder itself, those of a harness alone where it wrote some."""
    files = sorted(p for p in folder.iterdir() if p.suffix in _SUFFIXES and p.is_file())
    own = [p for p in files if not (p.suffix == ".json" and p.with_suffix(".jsonl") in files)]
    harness = (
        [p for p in files if lm_eval.SAMPLES_FILE.fullmatch(p.name)]
        or [p for p in files if lighteval.DETAILS_FILE.fullmatch(p.name)]
        or [p for p in files if p.name == helm.FILE_NAME]
        or [p for p in files if p.name.endswith("eval_results.json")]
    )
    if harness:
        return harness
    scores = [p for p in own if p.name not in _BESIDE and not lm_eval.RESULTS_FILE.fullmatch(p.name)]
    return scores or [p for p in own if lm_eval.RESULTS_FILE.fullmatch(p.name)]


def _below(folder: Path) -> tuple[list[Path], Path]:
    """The score files of the one folder below this one that has some, and that folder; HELM's runs are one output."""
    places = [p for p in sorted(folder.rglob("*")) if p.is_dir() and len(p.relative_to(folder).parts) <= _MAX_DEPTH]
    held = {p: files for p in places if not p.name.startswith(".") and (files := _direct(p))}
    scored = {p: f for p, f in held.items() if not all(lm_eval.RESULTS_FILE.fullmatch(x.name) for x in f)} or held
    if not scored:
        raise ScoreError(f"{folder}: expected score files in the folder, found none.")
    if len(scored) == 1:
        place, files = next(iter(scored.items()))
        return files, place
    runs = [file for files in scored.values() for file in files]
    if all(file.name == helm.FILE_NAME for file in runs) and len({eval_of(file) for file in runs}) == len(runs):
        return runs, folder
    shown = ", ".join(str(p.relative_to(folder)) for p in list(scored)[:6])
    more = f" and {len(scored) - 6} more" if len(scored) > 6 else ""
    raise ScoreError(
        f"{folder}: expected the scores of one model, found {many(len(scored), 'folders')} with some: {shown}{more}.",
        fix=f"Name one of these folders: {folder / next(iter(scored)).relative_to(folder)}",
    )


def _one_run_each(folder: Path, files: Sequence[Path]) -> None:
    """Raises ScoreError where a harness left several runs of one task: reruns of a model are no seeds."""
    by_eval: dict[str, list[Path]] = {}
    for file in files:
        if any(p.fullmatch(file.name) for p in (lm_eval.SAMPLES_FILE, lighteval.DETAILS_FILE, _INSPECT_FILE)):
            by_eval.setdefault(eval_of(file), []).append(file)
    several = {name: found for name, found in by_eval.items() if len(found) > 1}
    if not several:
        return
    name, found = next(iter(several.items()))
    shown = ", ".join(p.name for p in found[:4])
    raise ScoreError(
        f"{folder}: expected one run, found {len(found)} of {name or 'one task'}: {shown}.",
        fix=f"Name the files of one run, or declare them as seeds: NAME={found[0]},{found[1]}",
    )

"""Files of several tasks as one eval: which tasks form a group, which are asked for, and their scores pooled.

Each task is a stratum of the pooled eval, and its items are `TASK/ITEM`. Files of several tasks are never seeds: the
files of one run share a folder or a time stamp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from veritune.data.sources.raw import Cell
from veritune.errors import ScoreError, did_you_mean
from veritune.evaluate.logs import lm_eval
from veritune.evaluate.logs.values import listed_names
from veritune.stats.table import Columns

_EDGE = re.compile(r"[_:|/,=.\- ]")


@dataclass(frozen=True, slots=True)
class Chosen:
    """The tasks to compare on, the name of their group, and a note if the log's group has more tasks."""

    tasks: list[str]
    name: str
    note: str = ""


def choose_tasks(by_task: Mapping[str, list[Path]], asked: str | None, side: str) -> Chosen:
    """The tasks to compare on, and the name of the group they form.

    `asked` is a task, several by comma, or a group. Without it all tasks, where they form one group. Raises ScoreError
    for a name that is neither, and for tasks that form no group.
    """
    tasks, groups = list(by_task), _groups(chain.from_iterable(by_task.values()))
    if asked is None:
        name = _group_of(tasks, groups)
        if name is None:
            raise ScoreError(
                f"{side}: expected the tasks of one group, found {len(tasks)}: {listed_names(tasks)}.",
                fix=f"Choose with --eval NAME, or pool them: --eval {','.join(tasks[:2])}",
            )
        return Chosen(tasks, name, _part_of(tasks, name, groups))
    if asked in by_task:
        return Chosen([asked], asked)
    named = [part.strip() for part in asked.split(",")]
    if len(named) > 1 and len(set(named)) == len(named) and set(named) <= set(tasks):
        return Chosen([task for task in tasks if task in named], asked)
    members = [t for t in tasks if t in groups.get(asked, ())] or [t for t in tasks if _is_under(_core(t), asked)]
    if not members:
        raise ScoreError(
            f"{side}: expected the eval {asked!r}, found {listed_names(tasks)}{did_you_mean(asked, tasks)}."
        )
    return Chosen(members, asked, _part_of(members, asked, groups))


def _part_of(tasks: Sequence[str], name: str, groups: Mapping[str, set[str]]) -> str:
    """A note where the log's group has tasks that are not among the files."""
    whole = groups.get(name, set())
    return f"{len(tasks)} of the {len(whole)} tasks of {name}" if set(tasks) < whole else ""


def pool(parts: Mapping[str, Sequence[tuple[Path, Columns]]], chosen: Chosen, *, own_runs: bool) -> list[Columns]:
    """The columns of each task's files, with tasks as strata of one eval. `own_runs`: the rows name their runs
    themselves.

    Raises ScoreError where nothing tells which files belong to one run.
    """
    runs = {} if own_runs else _runs({task: [path for path, _ in files] for task, files in parts.items()})
    return [
        replace(
            columns,
            eval=chosen.name,
            notes=(*columns.notes, chosen.note) if chosen.note else columns.notes,
            run=columns.run if own_runs else [runs[path]] * len(columns.item),
            item=[f"{task}/{item}" for item in columns.item],
            stratum=[task] * len(columns.item),
        )
        for task, files in parts.items()
        for path, columns in files
    ]


def _runs(by_task: Mapping[str, Sequence[Path]]) -> dict[Path, str]:
    """The run that each file belongs to: one where each task has one file, else by folder, else by time stamp."""
    counts = {len(files) for files in by_task.values()}
    if counts == {1}:
        paths = [path for files in by_task.values() for path in files]
        folders = {path.parent.name for path in paths}
        return dict.fromkeys(paths, next(iter(folders)) if len(folders) == 1 else "run")
    for key in (lambda p: str(p.parent), lm_eval.stamp_of):
        keys = [sorted(key(path) for path in files) for files in by_task.values()]
        if all(k == keys[0] and len(set(k)) == len(k) and all(k) for k in keys):
            return {path: key(path) for files in by_task.values() for path in files}
    listed = ", ".join(f"{len(files)} of {task}" for task, files in list(by_task.items())[:6])
    raise ScoreError(
        f"expected each run to hold every task once, found {listed}.",
        fix="Put the files of each run into a separate folder: NAME=RUN0,RUN1.",
    )


# ---------------------------------------------------------------- groups


def _groups(files: Iterable[Path]) -> dict[str, set[str]]:
    """lm-eval's groups with their tasks, from the results files beside the samples."""
    found: dict[str, set[str]] = {}
    for folder_file in {path.parent: path for path in files}.values():
        for record in lm_eval.results_beside(folder_file):
            listed = record.get("group_subtasks")
            if isinstance(listed, Mapping):
                for name in listed:
                    found.setdefault(str(name), set()).update(_leaves(listed, str(name), depth=0))
    return found


def _leaves(listed: Mapping[str, Cell], name: str, *, depth: int) -> set[str]:
    inner = listed.get(name)
    if not isinstance(inner, list) or not inner or depth > 8:
        return set() if depth == 0 else {name}
    return set().union(*(_leaves(listed, str(task), depth=depth + 1) for task in inner))


def _group_of(tasks: Sequence[str], groups: Mapping[str, set[str]]) -> str | None:
    """The smallest group of the log that holds all tasks, else their names' common beginning; None without either."""
    holding = sorted((len(members), name) for name, members in groups.items() if set(tasks) <= members)
    if holding:
        return holding[0][1]
    if any(set(tasks) & known for known in (groups.keys(), *groups.values())):
        return None  # the log names its groups, and none holds all of these tasks
    cores = [_core(task) for task in tasks]
    shared = cores[0]
    for core in cores[1:]:
        shared = next(shared[:k] for k in range(len(shared), -1, -1) if core.startswith(shared[:k]))
    edge = max((m.start() for m in _EDGE.finditer(shared)), default=0)
    if shared in cores and all(_is_under(core, shared) for core in cores):
        edge = len(shared)
    return shared[:edge].strip("_:|/,=.- ") or None


def _is_under(task: str, group: str) -> bool:
    return task == group or (task.startswith(group) and bool(_EDGE.match(task[len(group) :])))


def _core(task: str) -> str:
    """A task's own name: without lighteval's suite and shots, without the package of an Inspect task."""
    fields = task.split("|")
    if len(fields) > 1:
        return fields[1] if len(fields) > 2 else fields[0]
    return task.rpartition("/")[2]

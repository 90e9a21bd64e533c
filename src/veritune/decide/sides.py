"""The sides of a comparison: which files an argument names, and their scores as one table."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veritune.errors import InputError, ScoreError
from veritune.evaluate.logs import Reading, eval_of, read
from veritune.evaluate.logs.folders import files_in
from veritune.evaluate.logs.groups import choose_tasks, pool
from veritune.pipes import Spool
from veritune.stats.table import Columns, ScoreTable


@dataclass(frozen=True, slots=True)
class Side:
    """One arm: a name and its score files, one per seed unless a file names its runs. `fixed` marks an arm that has no
    seeds.

    `system` is its column where the files are tables with one column per system.

    >>> Side("base", (Path("base.csv"),), fixed=True).name
    'base'
    """

    name: str
    paths: tuple[Path, ...]
    fixed: bool = False
    system: str | None = None


def parse_side(text: str, eval_name: str | None = None, spool: Spool | None = None) -> Side:
    """A side from one argument: `path`, `name=path`, several seeds as `name=path1,path2`, a folder or a glob.

    A folder stands for its score files, a run's folder for those in its `scores`, a harness's for its samples;
    `eval_name` picks one eval of them. With a spool `-` is standard input and a pipe is read as a file.
    Raises ScoreError where no file is found.

    >>> import tempfile, pathlib
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "base.csv"
    >>> _ = file.write_text("id,score\\n1,0\\n")
    >>> parse_side(f"untuned={file}").name
    'untuned'
    """
    name, rest = _named(text)
    paths: list[Path] = []
    for part in [rest] if Path(rest).exists() else rest.split(","):
        places = [Path(part) if spool is None else spool.file(Path(part))]
        if any(c in part for c in "*?[") and not Path(part).exists():
            places = sorted(Path(p) for p in glob.glob(part))
            if not places:
                raise ScoreError(f"{part}: expected matching files, found none.")
        paths += [path for place in places for path in (files_in(place, eval_name) if place.is_dir() else [place])]
    first = Path(rest.split(",")[0])
    return Side(name or (first.resolve().name if first.is_dir() else paths[0].stem), tuple(paths))


def _named(text: str) -> tuple[str, str]:
    """Name and place of `name=place`; the first `=` behind which something lies, since both may hold one."""
    if "=" not in text or Path(text).exists():
        return "", text
    for at in (i for i, char in enumerate(text) if char == "="):
        rest = text[at + 1 :]
        if rest == "-" or Path(rest).exists() or (rest and Path(rest.split(",")[0]).exists()):
            return text[:at], rest
    name, _, rest = text.rpartition("=")
    return name, rest


def read_sides(
    texts: Sequence[str],
    eval_name: str | None,
    fixed: Sequence[str],
    systems: str | None = None,
    spool: Spool | None = None,
) -> list[Side]:
    """The sides given on the command line. `systems`: columns of wide tables, as `base,tuned`, or one column to read on
    every side; `fixed`: sides without seeds.

    Raises ScoreError as `parse_side` and `wide_sides` do, InputError for a name in `fixed` that no side has.
    """
    if systems is not None and "," not in systems and len(texts) > 1:
        sides = [replace(parse_side(text, eval_name, spool), system=systems) for text in texts]
    elif systems is not None:
        sides = wide_sides(texts, [name.strip() for name in systems.split(",")], spool)
    else:
        sides = [parse_side(text, eval_name, spool) for text in texts]
    unknown = sorted(set(fixed) - {side.name for side in sides})
    if unknown:
        names = ", ".join(side.name for side in sides)
        raise InputError(
            f"--fixed: unknown side {unknown[0]!r}.",
            fix=f"Name one of the sides {names}, or give a side this name: a=FILE.",
        )
    return [replace(side, fixed=side.name in fixed) for side in sides]


def wide_sides(texts: Sequence[str], systems: Sequence[str], spool: Spool | None = None) -> list[Side]:
    """One side per named column of tables with one column per system; several files are the seeds of each side.

    Raises ScoreError for a name given twice, fewer than two, or a file argument that names a side of its own.
    """
    if len(systems) < 2 or len(set(systems)) < len(systems) or not all(systems):
        raise ScoreError(
            f"expected at least two different columns in --systems, found {', '.join(systems) or 'none'}.",
            fix="Name one column per system: --systems base,tuned.",
        )
    sides = [parse_side(text, spool=spool) for text in texts]
    named = [text for text, side in zip(texts, sides) if "=" in text and not Path(text).exists()]
    if not sides or named:
        raise ScoreError(
            f"expected only files with --systems, found {named[0] if named else 'none'}.",
            fix="Write it like: veritune compare scores.csv --systems base,tuned",
        )
    paths = tuple(path for side in sides for path in side.paths)
    return [Side(name, paths, system=name) for name in systems]


# ---------------------------------------------------------------- files to one table


def load_side(side: Side, reading: Reading | None = None, *, samples: bool = False) -> tuple[ScoreTable, list[str]]:
    """A side's score table, and notes on how its files were read. Files of several tasks are pooled, each task a
    stratum.

    Raises ScoreError as `read`, `choose_tasks` and the table do.
    """
    reading = reading or Reading()
    if side.system is not None:
        reading = replace(reading, system=side.system)
    by_task: dict[str, list[Path]] = {}
    for path in side.paths if len(side.paths) > 1 else ():
        by_task.setdefault(eval_of(path), []).append(path)
    if len(by_task) > 1 and "" not in by_task:
        parts = _tasks(side, by_task, reading)
    else:
        parts = _distinct_runs([(path, read(path, reading)) for path in side.paths])
    columns = parts[0] if len(parts) == 1 else _joined(parts, side.name)
    notes = [f"{side.name}: {c.format}{''.join(f', {n}' for n in c.notes)}" for c in parts]
    table = ScoreTable.from_columns(columns, condition=side.name, fixed=side.fixed, samples=samples)
    return table, list(dict.fromkeys(notes))


def _tasks(side: Side, by_task: Mapping[str, list[Path]], reading: Reading) -> list[Columns]:
    """The columns of the tasks that are asked for: of one its files as seeds, of several pooled."""
    chosen = choose_tasks(by_task, reading.eval, side.name)
    reading = replace(reading, eval=None)
    files = {task: [(path, read(path, reading)) for path in by_task[task]] for task in chosen.tasks}
    if len(chosen.tasks) == 1:
        return _distinct_runs(files[chosen.tasks[0]])
    return pool(files, chosen, own_runs=reading.run is not None)


def _distinct_runs(parts: Sequence[tuple[Path, Columns]]) -> list[Columns]:
    """The columns of files that are runs of one eval, their runs distinguished where two files name one alike."""
    labels = [set(c.run) for _, c in parts]
    if len(parts) == 1 or sum(map(len, labels)) == len(set().union(*labels)):
        return [c for _, c in parts]
    return [replace(c, run=[f"{path.parent.name}/{path.stem}:{run}" for run in c.run]) for path, c in parts]


_DIRECTIONS = {True: "higher is better", False: "lower is better", None: "direction unknown"}


def _joined(parts: Sequence[Columns], name: str) -> Columns:
    """Columns of several files, one after the other. A column that only some files have is an error."""
    evals = {c.eval for c in parts} - {""}
    if len(evals) > 1:
        raise ScoreError(
            f"{name}: expected files of one eval, found {', '.join(sorted(evals))}.", fix="Choose with --eval NAME."
        )
    metrics = {(c.metric, c.higher_is_better) for c in parts}
    if len(metrics) > 1:
        words = sorted(f"{m or 'no name'} ({_DIRECTIONS[up]})" for m, up in metrics)
        raise ScoreError(
            f"{name}: expected files of one metric and direction, found {', '.join(words)}.",
            fix="Choose with --metric NAME or --eval NAME.",
        )
    for column in ("family", "zone", "sample", "rater"):
        have = sum(len(getattr(c, column)) > 0 for c in parts)
        if 0 < have < len(parts):
            raise ScoreError(f"{name}: expected the column {column} in all {len(parts)} files, found it in {have}.")

    def joined(column: str) -> list[Any]:
        if not any(len(getattr(c, column)) for c in parts):
            return []
        return [x for c in parts for x in (getattr(c, column) or [None] * len(c.item))]

    return Columns(
        eval="".join(evals),
        run=joined("run"),
        item=joined("item"),
        value=joined("value"),
        reason=joined("reason"),
        family=joined("family"),
        zone=joined("zone"),
        sample=joined("sample"),
        rater=joined("rater"),
        content=joined("content"),
        stratum=joined("stratum"),
        metric=parts[0].metric,
        higher_is_better=parts[0].higher_is_better,
    )

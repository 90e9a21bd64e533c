"""The metrics in MLflow's file store, read without MLflow: `mlruns/<experiment>/<run>/metrics/<name>`.

A metric is a file, `timestamp value step` a line: milliseconds, the number, the step. A name with slashes is a file in
folders. Before its version 1.0 MLflow wrote no step (it stands for 0); behind the step may stand the id of a run and
the name and digest of a data set (mlflow/store/tracking/file_store.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from veritune.errors import InputError
from veritune.untrusted import read_text

MetricValue = float | int
LINE = re.compile(r"-?\d{1,20} (-?(?:\d+(?:\.\d+)?(?:[eE][-+]?\d{1,3})?|inf)|nan)(?: (-?\d{1,15})(?: \S+){0,3})?")
RATES = ("learning_rate", "lr")


def is_run(path: Path) -> bool:
    """Whether a folder is an MLflow run: MLflow's own record of it beside a folder of metrics."""
    return (path / "meta.yaml").is_file() and (path / "metrics").is_dir()


def run_of(path: Path) -> Path | None:
    """The run that a path stands for: its folder, or the folder above one of its metric files; None for other paths."""
    place = path.absolute()
    if is_run(place):
        return place
    above = (folder.parent for folder in place.parents if folder.name == "metrics")
    return next((run for run in above if is_run(run) and place.is_file()), None)


def metric_rows(path: Path) -> list[dict[str, MetricValue]]:
    """A metric file, or all metrics of a run's folder, as rows of a step and the values that were logged at it.

    A step that was logged again with another value makes a further row. Raises InputError for a damaged file.
    """
    run = run_of(path)
    if run is None:
        raise InputError(f"{path}: expected an MLflow run or a metric file of one.", fix="Name mlruns/EXPERIMENT/RUN.")
    place = path.absolute()
    files = [place] if place.is_file() else sorted(_files(run / "metrics"))
    rows: dict[tuple[int, int], dict[str, MetricValue]] = {}
    for file in files:
        name = file.relative_to(run / "metrics").as_posix()
        for step, values in _values(file).items():
            for again, value in enumerate(values):
                rows.setdefault((step, again), {"step": step})[name] = value
    if not rows:
        raise InputError(f"{path}: expected metrics, found an MLflow run without one.")
    return [rows[key] for key in sorted(rows)]


def rate_of(path: Path) -> float | None:
    """The learning rate among the parameters of a run, the peak of its schedule; None where it names none."""
    run = run_of(path)
    for name in RATES if run is not None else ():
        file = (run or path) / "params" / name
        if not file.is_file():
            continue
        try:
            rate = float(read_text(file, 1_000))
        except (OSError, ValueError) as exc:
            raise InputError(f"{file}: expected a learning rate as one number ({str(exc)[:80]}).") from exc
        if math.isfinite(rate) and rate > 0:
            return rate
    return None


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def _values(file: Path) -> dict[int, list[float]]:
    """The different values of a metric at each step, in the order in which they were logged."""
    try:
        text = read_text(file)
    except (OSError, ValueError) as exc:
        raise InputError(f"{file}: expected an MLflow metric; found {exc}.", fix="Restore the file.") from exc
    if not text.endswith("\n"):
        what = "a last line that breaks off" if text else "an empty file"
        raise InputError(f"{file}: expected lines of 'timestamp value step', found {what}.", fix="Restore the file.")
    found: dict[int, list[float]] = {}
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        match = LINE.fullmatch(line.rstrip("\r"))
        if match is None:
            raise InputError(
                f"{file} line {number}: expected 'timestamp value step', found {line[:60]!r}.", fix="Restore the file."
            )
        values = found.setdefault(int(match[2] or 0), [])
        value = float(match[1])
        if value not in values and not (math.isnan(value) and any(map(math.isnan, values))):
            values.append(value)
    return found

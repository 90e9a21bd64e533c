"""Training logs made elsewhere: the checkpoint and the learning rate that our own rules choose from them.

    trainer_state.json         Hugging Face Trainer, TRL, Axolotl, Unsloth, LLaMA-Factory; or a folder that holds it
    JSONL                      one evaluation a line: Veritune's metrics.jsonl, Tinker's, LLaMA-Factory's, ms-swift's
    MLflow's files             mlruns/EXPERIMENT/RUN, or one metric of it; the learning rate from its parameters
    CSV                        a table or an export of W&B: a step, a validation NLL, perhaps a learning rate and a run

The rules are the study's (`train.select`): a run's checkpoint is the one of the lowest validation NLL, the earlier of
equal ones; a rate's loss is the mean over its runs; the lowest wins, equal losses go to the smaller rate; a run whose
validation NLL is not finite is out. No benchmark can enter: only a loss is taken.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.data.sources.tables import DELIMITERS
from veritune.errors import InputError, did_you_mean
from veritune.records import RateCandidate
from veritune.train.mlflow_files import is_run, metric_rows, rate_of, run_of
from veritune.train.select import RULE, choose
from veritune.untrusted import parse_json, read_bytes

STEP_NAMES = ("step", "global_step", "train_global_step", "current_steps", "iteration", "iter", "it", "steps", "_step",
              "global_step_max_steps")  # fmt: skip
NLL_NAMES = (
    "validation_nll", "val_nll", "eval_nll", "valid_nll", "test_nll", "nll", "eval_loss", "validation_loss", "val_loss",
    "valid_loss", "test_loss",
)  # fmt: skip
RATE_NAMES = ("learning_rate", "lr", "train_learning_rate", "optim_lr", "train_lr")
RUN_NAMES = ("run_id", "run", "seed")
VALIDATION = ("validation", "valid", "val", "eval", "dev")

_LOSS = re.compile(r"loss|nll|entropy", re.IGNORECASE)
_OF_ALL = re.compile(r"(\d{1,15})/\d+")
"""ms-swift counts steps as `10/200`, under the name `global_step/max_steps`."""

_PANEL = re.compile(r"(?P<run>.+) - (?P<metric>.+)")

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LogColumns:
    """The columns that the user names; None means: find the column by its usual names."""

    nll: str | None = None
    step: str | None = None
    rate: str | None = None
    run: str | None = None


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """One logged run: its peak learning rate and its source, and the evaluation that the checkpoint rule chooses.

    `at_end` says that the lowest validation NLL is the last one: longer training might go lower.
    """

    name: str
    lr: float | None
    lr_from: str
    evaluations: int
    best_step: int | None
    validation_nll: float | None
    last_step: int
    at_end: bool
    failed: str | None


@dataclass(frozen=True, slots=True)
class LoggedRate:
    """One learning rate: the mean of its runs' lowest validation NLL, None if a run failed."""

    lr: float
    runs: int
    validation_nll: float | None
    failed: str | None


@dataclass(frozen=True, slots=True)
class LogSelection:
    """The choice from the logs. `selected` and `edge` are None if the runs do not differ in a known rate."""

    rule: str
    runs: tuple[LoggedRun, ...]
    rates: tuple[LoggedRate, ...] = ()
    selected: float | None = None
    edge: str | None = None


def select_from_logs(texts: Sequence[str], columns: LogColumns | None = None) -> LogSelection:
    """The choice from logs given as `FILE` or `RATE=FILE`. Raises InputError for a log that cannot be read or
    judged."""
    runs = [run for text in texts for run in _runs_of(text, columns or LogColumns())]
    if not runs:
        raise InputError("expected a training log.", fix="Name one: veritune select --log runs/a/trainer_state.json")
    names = [run.name for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"expected each run once, found {twice!r} twice.")
    rates = _rates(runs)
    if len(rates) < 2:
        return LogSelection(RULE, tuple(runs), rates)
    candidates = [RateCandidate(r.lr, f"{r.lr:g}", r.validation_nll, None, r.failed) for r in rates]
    winner, edge = choose(candidates)
    return LogSelection(RULE, tuple(runs), rates, winner.lr, edge)


def _rates(runs: Sequence[LoggedRun]) -> tuple[LoggedRate, ...]:
    """The rates that were tried. Raises InputError where some runs' rates are unknown, or counts of runs differ."""
    known = {run.lr for run in runs}
    if known == {None}:
        return ()
    if None in known:
        name = next(run.name for run in runs if run.lr is None)
        raise InputError(f"{name}: expected its learning rate, found none in the log.", fix=f"--log 1e-4={name}")
    by_rate: dict[float, list[LoggedRun]] = {}
    for run in runs:
        by_rate.setdefault(run.lr or 0.0, []).append(run)
    if len({len(found) for found in by_rate.values()}) > 1:
        counts = ", ".join(f"{len(found)} at {lr:g}" for lr, found in sorted(by_rate.items()))
        raise InputError(
            f"expected as many runs at each learning rate, found {counts}.",
            fix="Give the same number of seeds for each rate.",
        )
    return tuple(_rate(lr, found) for lr, found in sorted(by_rate.items()))


def _rate(lr: float, runs: Sequence[LoggedRun]) -> LoggedRate:
    failed = next((f"{run.name}: {run.failed}" for run in runs if run.failed), None)
    losses = [run.validation_nll for run in runs if run.validation_nll is not None]
    mean = None if failed or len(losses) < len(runs) else math.fsum(losses) / len(losses)
    return LoggedRate(lr, len(runs), mean, failed)


# ---------------------------------------------------------------- one log


def _runs_of(text: str, columns: LogColumns) -> list[LoggedRun]:
    """The runs of one argument. A number before `=` is the learning rate of the log's one run."""
    rate, path = None, Path(text)
    head, equals, rest = text.partition("=")
    if equals and not path.exists():
        path = Path(rest)
        try:
            rate = float(head)
        except ValueError as exc:
            raise InputError(f"--log {text!r}: expected a learning rate before '=', found {head!r}.") from exc
        if not (math.isfinite(rate) and rate > 0):
            raise InputError(f"--log {text!r}: expected a learning rate above 0, found {head}.")
    path = _file(path)
    rows = _rows(path)
    if columns.nll not in _names(rows):
        rows = _of_panel(rows)
    by_run = _by_run(path, rows, columns)
    if rate is not None and len(by_run) > 1:
        raise InputError(
            f"{path}: expected one run for the rate {rate:g}, found {len(by_run)}.",
            fix="Leave out the rate, or name the run with --run.",
        )
    return [_run(path, name, found, columns, rate) for name, found in by_run.items()]


def _file(path: Path) -> Path:
    """The log itself; of a folder the trainer_state.json in it or in its newest checkpoint, else metrics.jsonl.

    An MLflow run stays a folder.
    """
    if is_run(path):
        return path
    if not path.is_dir():
        if not path.is_file():
            raise InputError(f"{path}: expected a training log, found no file.")
        return path
    steps = {int(p.parent.name.rpartition("-")[2]): p for p in path.glob("checkpoint-*/trainer_state.json")
             if p.parent.name.rpartition("-")[2].isdigit()}  # fmt: skip
    newest = [steps[max(steps)]] if steps else []
    for found in (path / "trainer_state.json", *newest, path / "trainer_log.jsonl", path / "metrics.jsonl"):
        if found.is_file():
            return found
    raise InputError(
        f"{path}: expected trainer_state.json, trainer_log.jsonl, metrics.jsonl or an MLflow run in the folder, "
        "found none."
    )


def _rows(path: Path) -> list[Row]:
    """The log's rows, one a line or evaluation."""
    if run_of(path) is not None:
        rate = rate_of(path)
        return [row if rate is None else {**row, RATE_NAMES[0]: rate} for row in metric_rows(path)]
    try:
        content = read_bytes(path)
        text = content.decode("utf-8-sig")
        if text.lstrip().startswith("{") and path.suffix != ".jsonl" and not _is_lines(text):
            document = parse_json(text, finite=False)
            history = document.get("log_history") if isinstance(document, dict) else None
            if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
                raise InputError(f"{path}: expected trainer_state.json with a log_history, found none in it.")
            return history
        if text.lstrip().startswith("{"):
            rows = [parse_json(line, finite=False) for line in text.split("\n") if line.strip()]
        else:
            head = text.split("\n", 1)[0]
            delimiter = max(DELIMITERS, key=head.count)
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (OSError, ValueError, csv.Error) as exc:
        raise InputError(f"{path}: expected a training log in JSON, JSONL or CSV; found {exc}.") from exc
    if not rows or not all(isinstance(row, dict) and None not in row for row in rows):
        raise InputError(f"{path}: expected rows with a step and a validation NLL, found none.")
    return rows


def _of_panel(rows: list[Row]) -> list[Row]:
    """The table that W&B exports of a panel, a column `RUN - METRIC` for each run, as rows of one run each.

    Other tables come back as they are. The columns of a panel's bands (`__MIN`, `__MAX`) say nothing of their own.
    """
    columns = {n: m for n in _names(rows) if (m := _PANEL.fullmatch(n)) and not n.endswith(("__MIN", "__MAX"))}
    if _named(rows, None, NLL_NAMES) or not any(_plain(m["metric"]) in NLL_NAMES for m in columns.values()):
        return rows
    shared = [n for n in _names(rows) if _PANEL.fullmatch(n) is None]
    of_run: dict[str, dict[str, str]] = {}
    for name, match in columns.items():
        of_run.setdefault(match["run"], {})[name] = match["metric"]
    return [
        {**{n: row.get(n) for n in shared}, "run": run, **{metric: row.get(n) for n, metric in own.items()}}
        for run, own in of_run.items()
        for row in rows
        if any(row.get(n) not in (None, "") for n in own)
    ]


def _is_lines(text: str) -> bool:
    """Whether a text is one JSON object a line."""
    first = text.lstrip().split("\n", 1)[0]
    try:
        row = parse_json(first, finite=False)
    except ValueError:
        return False
    return isinstance(row, dict) and "log_history" not in row


def _by_run(path: Path, rows: Sequence[Row], columns: LogColumns) -> dict[str, list[Row]]:
    """The rows of each run of a log. Raises InputError where a step stands there twice and nothing tells runs apart."""
    split = _named(rows, None, ("split",))
    if split is not None:
        rows = [row for row in rows if str(row.get(split)).lower() in VALIDATION]
        if not rows:
            raise InputError(f"{path}: expected rows of the validation split, found none.")
    step = _column(path, rows, columns.step, STEP_NAMES, "--step")
    nll = _column(path, rows, columns.nll, NLL_NAMES if split is None else (*NLL_NAMES, "loss"), "--metric")
    run = _column(path, rows, columns.run, RUN_NAMES, "--run") if columns.run else _named(rows, None, RUN_NAMES)
    rate = _named(rows, columns.rate, RATE_NAMES)
    groups = _grouped({str(path): list(rows)}, run)
    if any(_twice(found, step, nll) for found in groups.values()):
        groups = _grouped(groups, rate)
    if any(_twice(found, step, nll) for found in groups.values()):
        raise InputError(
            f"{path}: a step occurs twice, and no column distinguishes the runs.",
            fix="Name the column that holds the run: --run COLUMN",
        )
    return groups


def _grouped(groups: Mapping[str, list[Row]], column: str | None) -> dict[str, list[Row]]:
    """Each group split by the values of a column, where it has several."""
    found: dict[str, list[Row]] = {}
    for name, rows in groups.items():
        values = {} if column is None else dict.fromkeys(row.get(column) for row in rows)
        if len(values) < 2:
            found[name] = list(rows)
            continue
        for row in rows:
            found.setdefault(f"{name}:{row.get(column or '')}", []).append(row)
    return found


def _twice(rows: Sequence[Row], step: str, nll: str) -> bool:
    steps = [str(row.get(step)) for row in rows if row.get(nll) not in (None, "")]
    return len(set(steps)) < len(steps)


def _run(path: Path, name: str, rows: Sequence[Row], columns: LogColumns, rate: float | None) -> LoggedRun:
    """One run's evaluations and what the checkpoint rule makes of them."""
    with_loss = _named(rows, None, ("split",)) is not None
    step = _column(path, rows, columns.step, STEP_NAMES, "--step")
    nll = _column(path, rows, columns.nll, (*NLL_NAMES, "loss") if with_loss else NLL_NAMES, "--metric")
    if not _LOSS.search(nll):
        raise InputError(
            f"{path}: {nll!r} is not a loss; checkpoints and learning rates are chosen by validation NLL only.",
            fix="Name the validation loss: --metric eval_loss",
        )
    losses = [(_step(path, row, step), _number(path, row, nll)) for row in rows if row.get(nll) not in (None, "")]
    if not losses:
        raise InputError(
            f"{path}: expected values of {nll!r}, found none.",
            fix="Log a run that evaluates during training (eval_steps).",
        )
    finite = [(loss, at) for at, loss in losses if math.isfinite(loss)]
    failed = None if len(finite) == len(losses) else "its validation NLL is not finite"
    best = min(finite) if finite else None
    last = max(at for at, _ in losses)
    lr, lr_from = _peak(path, rows, columns, rate)
    return LoggedRun(
        name=name,
        lr=lr,
        lr_from=lr_from,
        evaluations=len(losses),
        best_step=best[1] if best else None,
        validation_nll=best[0] if best else None,
        last_step=last,
        at_end=bool(best) and best is not None and best[1] == last and len(losses) > 1,
        failed=failed,
    )


def _peak(path: Path, rows: Sequence[Row], columns: LogColumns, rate: float | None) -> tuple[float | None, str]:
    """The run's learning rate: as given, else the highest that was logged, which a schedule's peak may exceed."""
    if rate is not None:
        return rate, "given"
    name = _column(path, rows, columns.rate, RATE_NAMES, "--lr") if columns.rate else _named(rows, None, RATE_NAMES)
    values = [] if name is None else [_number(path, row, name) for row in rows if row.get(name) not in (None, "")]
    values = [v for v in values if math.isfinite(v) and v > 0]
    if not values:
        return None, "not logged"
    return max(values), "logged" if len(set(values)) == 1 else (
        "the highest one logged; the schedule's peak may be higher"
    )


# ---------------------------------------------------------------- columns


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", name.strip().lower())


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(str(key) for row in rows for key in row))


def _named(rows: Sequence[Row], asked: str | None, usual: Sequence[str]) -> str | None:
    """The column that was asked for, else the first of the usual names that holds something; None without one."""
    names = _names(rows)
    if asked is not None:
        return asked if asked in names else None
    filled = [n for n in names if any(row.get(n) not in (None, "") for row in rows)]
    by_plain = {_plain(n): n for n in reversed(filled)}
    return next((by_plain[name] for name in usual if name in by_plain), None)


def _column(path: Path, rows: Sequence[Row], asked: str | None, usual: Sequence[str], option: str) -> str:
    found = _named(rows, asked, usual)
    if found is not None:
        return found
    names = _names(rows)
    wanted = repr(asked) if asked is not None else f"one of {', '.join(usual[:6])}, ..."
    near = did_you_mean(asked, names) if asked is not None else ""
    raise InputError(
        f"{path}: expected a column {wanted}, found {', '.join(names[:10])}{near}.",
        fix=f"Name the column: {option} COLUMN",
    )


def _number(path: Path, row: Row, name: str) -> float:
    value = row.get(name)
    try:
        if value is None or isinstance(value, bool | list | Mapping):
            raise ValueError
        return float(value)
    except (ValueError, OverflowError) as exc:
        raise InputError(f"{path}: expected a number in {name!r}, found {str(value)[:40]!r}.") from exc


def _step(path: Path, row: Row, name: str) -> int:
    counted = _OF_ALL.fullmatch(str(row.get(name)))
    value = float(counted[1]) if counted else _number(path, row, name)
    if not (math.isfinite(value) and value >= 0 and value.is_integer()):
        raise InputError(
            f"{path}: expected whole steps of at least 0 in {name!r}, found {str(row.get(name))[:40]!r}.",
            fix="Name the column that counts optimizer steps: --step COLUMN",
        )
    return int(value)


# ---------------------------------------------------------------- the screen


def selection_text(found: LogSelection) -> str:
    """One line per run with its checkpoint, one per learning rate, and the choice."""
    lines = []
    for run in found.runs:
        rate = "learning rate not logged" if run.lr is None else f"learning rate {run.lr:g} ({run.lr_from})"
        lines.append(f"run      {run.name}: {rate}, {run.evaluations} evaluations to step {run.last_step}")
        if run.best_step is not None and run.failed is None:
            lines.append(f"  checkpoint  step {run.best_step}, validation NLL {run.validation_nll:.4f}")
        if run.failed:
            lines.append(f"  ! excluded: {run.failed}")
        elif run.at_end:
            lines.append("  ! the lowest is the last evaluation: longer training might go lower")
    if found.selected is None:
        lines.append("select   no choice of a learning rate: the logs hold fewer than two")
        return "\n".join(lines)
    tried = ", ".join(
        f"{r.lr:g}: {'failed' if r.validation_nll is None else format(r.validation_nll, '.4f')}" for r in found.rates
    )
    lines.append(f"select   learning rate {found.selected:g} (validation NLL {tried})")
    if found.edge:
        lines.append(f"  ! {found.selected:g} is the {found.edge} edge of the grid: the best rate may lie beyond it")
    lines.append(f"rule     {found.rule}")
    return "\n".join(lines)

"""`report_to`: what the Trainer's reporters need of a study: names, a place for their files, and an end to every run.

The Trainer's callbacks read environment variables when training begins. What the user has set there wins; the rest is
filled in for the time of one run: the study's name as project, the run id as name, and files under `STUDY/tracking/`,
which no seal covers (TensorBoard's stay in the run's folder). Without this MLflow and W&B write into the
current directory, W&B sends every further run of a process into the first one, and a failed run stays open.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.errors import MachineError, first_line
from veritune.train.distributed import is_main

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

VARIABLES = {
    "tensorboard": ("TENSORBOARD_LOGGING_DIR",),
    "wandb": ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT", "WANDB_MODE", "WANDB_DIR"),
    "mlflow": (
        *("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
        *("MLFLOW_TRACKING_TOKEN", "MLFLOW_TAGS", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE"),
    ),
    "trackio": ("TRACKIO_DIR", "TRACKIO_SERVER_URL", "TRACKIO_SPACE_ID"),
}
"""Environment variables that a reporter's workers are given, keys of its service among them."""

OTHER_PACKAGES = {"tensorboard": ("tensorboardX",)}


@dataclass(frozen=True)
class Reported:
    """What reporters need to know of a run. `folder` is the run's; `work` is deleted when its training ends."""

    study: str
    root: Path
    folder: Path
    work: Path


def require(kinds: Sequence[str]) -> None:
    """Raises MachineError for a reporter whose package is not installed."""
    for kind in kinds:
        if not any(util.find_spec(name) for name in (kind, *OTHER_PACKAGES.get(kind, ()))):
            raise MachineError(f"report_to: {kind} is not installed.", fix="Install it, or remove it from report_to.")


def variables(kinds: Sequence[str]) -> tuple[str, ...]:
    """The environment variables that workers need for these reporters."""
    return tuple(name for kind in kinds for name in VARIABLES[kind])


@contextlib.contextmanager
def reporting(kinds: Sequence[str], run: Reported) -> Iterator[None]:
    """Set names and places for these reporters while the block builds a trainer and trains; their runs are ended
    afterwards.

    Raises MachineError when a reporter is not installed or cannot begin.
    """
    if not kinds:
        yield
        return
    began = {kind: _active(kind) for kind in kinds}
    failed = True
    with filled_in(settings_of(kinds, run)):
        try:
            if "wandb" in kinds and not began["wandb"] and is_main() and util.find_spec("wandb"):
                _begin_wandb(run)
            yield
            failed = False
        except Exception as exc:
            if (said := _reporter_s(exc, kinds)) is None:
                raise
            raise MachineError(
                f"report_to: {said}",
                fix="Install or set up the reporter as its message says, or remove it from report_to.",
            ) from None
        finally:
            for kind in kinds:
                if not began[kind]:
                    _end(kind, failed)


def settings_of(kinds: Sequence[str], run: Reported) -> dict[str, str]:
    """The environment variables that these reporters read, filled in for a study."""
    tracking, found = run.root / "tracking", {"TENSORBOARD_LOGGING_DIR": str(run.folder / "tensorboard")}
    if "mlflow" in kinds:
        found |= {"MLFLOW_EXPERIMENT_NAME": run.study, "MLFLOW_DISABLE_TELEMETRY": "true"}
        if "MLFLOW_TRACKING_URI" not in os.environ:
            store = (tracking / "mlruns").resolve().as_uri()
            found |= {"MLFLOW_TRACKING_URI": store, "MLFLOW_ALLOW_FILE_STORE": "true"}
    return found


class StepReporter:
    """Sends numbers of a step into the run that the Trainer's own reporters opened; without an open run nothing is
    sent.

    `kinds` are `TrainingArguments.report_to`; TensorBoard's numbers go where its callback writes, if that is known
    (`TENSORBOARD_LOGGING_DIR`), else to `runs/veritune` in the Trainer's output folder.
    """

    def __init__(self, kinds: Sequence[str], output: str) -> None:
        self._kinds = [kind for kind in kinds if kind in VARIABLES]
        self._folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or os.path.join(output, "runs", "veritune")
        self._board: EventFileWriter | None = None

    def send(self, numbers: Mapping[str, float], step: int) -> None:
        """Send numbers by name, with the Trainer's step count."""
        for kind in self._kinds:
            if kind == "tensorboard" and util.find_spec("tensorboard") is not None:
                self._board = self._board or event_writer(self._folder)
                write_scalars(self._board, numbers, step)
            elif kind == "mlflow" and _active(kind):
                sys.modules["mlflow"].log_metrics(dict(numbers), step=step)
            elif kind == "wandb" and _active(kind):
                sys.modules["wandb"].log({**numbers, "train/global_step": step})
            elif kind == "trackio" and _open_trackio() is not None:
                sys.modules["trackio"].log({**numbers, "train/global_step": step})

    def close(self) -> None:
        """Write what TensorBoard has buffered."""
        if self._board is not None:
            self._board.close()
            self._board = None


def event_writer(folder: str) -> EventFileWriter:
    """TensorBoard's writer of one event file in this folder."""
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    return EventFileWriter(folder)


def write_scalars(writer: EventFileWriter, numbers: Mapping[str, float], step: int) -> None:
    """Write numbers by name as one event."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=number) for name, number in numbers.items()]
    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))


def _begin_wandb(run: Reported) -> None:
    """Open W&B's run, which the callback then writes to: it reads its variables once a process, not once a run."""
    import wandb

    tracking = run.root / "tracking"
    tracking.mkdir(parents=True, exist_ok=True)  # wandb takes another folder where this one is missing
    wandb.init(
        project=os.environ.get("WANDB_PROJECT", run.study),
        name=os.environ.get("WANDB_NAME", run.folder.name),
        dir=os.environ.get("WANDB_DIR", str(tracking)),
        id=os.environ.get("WANDB_RUN_ID") or _kept_id(run.work),
        resume="allow",
    )


def _kept_id(work: Path) -> str:
    """W&B's id of the run: one as long as the work folder lives, so that a resumed run goes on in the same curves."""
    path = work / "wandb-id"
    if not path.exists():
        work.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


@contextlib.contextmanager
def filled_in(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, while the block runs."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _reporter_s(exc: Exception, kinds: Sequence[str]) -> str | None:
    """The first line of an error that a reporter raised or is missing for; None for any other."""
    line = first_line(exc)
    package = type(exc).__module__.split(".")[0]
    missing = isinstance(exc, RuntimeError | ImportError) and "Callback requires" in line
    if package in kinds or missing or (isinstance(exc, ImportError) and (exc.name or "").split(".")[0] in kinds):
        return line if missing else f"{package if package in kinds else 'a reporter'}: {line}"
    return None


def _active(kind: str) -> bool:
    """Whether a run of this reporter is open already: the user's own, which is not ended here."""
    if kind == "wandb":
        return getattr(sys.modules.get("wandb"), "run", None) is not None
    if kind == "mlflow" and "mlflow" in sys.modules:
        return sys.modules["mlflow"].active_run() is not None
    return False


def _end(kind: str, failed: bool) -> None:
    """End the run that the callback left open: W&B's always, MLflow's and trackio's when training broke off."""
    module = sys.modules.get(kind)
    if module is None:
        return
    if kind == "wandb" and module.run is not None:
        module.finish(exit_code=int(failed))
    elif kind == "mlflow" and module.active_run() is not None:
        module.end_run("FAILED" if failed else "FINISHED")
    elif kind == "trackio" and failed and _open_trackio() is not None:
        module.finish()


def _open_trackio() -> object | None:
    """Trackio's open run."""
    module = sys.modules.get("trackio")
    found: object | None = module.context_vars.current_run.get() if module is not None else None
    return found

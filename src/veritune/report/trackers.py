"""`veritune report --report-to`: verdicts and intervals as one run of W&B, MLflow, TensorBoard or trackio.

The run is called `verdicts`, in the project of the study's name, beside the runs that `report_to` made while training.
Numbers are `claims/<claim>/value`, `low`, `high`, `level`, `n`, `margin` and `detectable` of each claim's headline
estimate; the word and the sentence go as text. What the user set in the environment wins, as in training.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veritune.config.load import load_study
from veritune.counting import many
from veritune.errors import InputError, MachineError, first_line
from veritune.records import StudyVerdicts, Verdict
from veritune.store import Store
from veritune.train.reporting import Reported, event_writer, filled_in, require, settings_of, write_scalars

RUN = "verdicts"
FOLDER = "tracking"
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@dataclass(frozen=True)
class VerdictRun:
    """The data sent to a tracker: `numbers` by name, `texts` by name, and the files that belong to them."""

    study: str
    root: Path
    numbers: Mapping[str, float]
    texts: Mapping[str, str]
    files: tuple[Path, ...]


def send_verdicts(study_path: str | Path, kinds: Sequence[str]) -> VerdictRun:
    """Send the study's verdicts to these trackers; returns what was sent.

    Raises InputError for a study without verdicts or a tracker that is none, MachineError for one that is not installed
    or does not take them.
    """
    wrong = [kind for kind in kinds if kind not in TRACKERS]
    if wrong:
        raise InputError(f"--report-to: expected one of {', '.join(TRACKERS)}, found {wrong[0]!r}.")
    store = Store.of(study_path)
    study = load_study(store.study_file)
    if not store.verdict_file.exists():
        raise InputError(f"{store.root} has no verdicts yet.", fix=f"Run it first: veritune run {store.root}")
    require(kinds)
    verdicts = StudyVerdicts.load(store.verdict_file)
    files = tuple(path for path in (store.verdict_file, store.report_file) if path.exists())
    sent = VerdictRun(study.name, store.root, numbers_of(verdicts.verdicts), texts_of(verdicts), files)
    place = Reported(study.name, store.root, store.root / FOLDER / RUN, store.root / FOLDER / RUN)
    with filled_in(settings_of(kinds, place)):
        for kind in kinds:
            try:
                _SEND[kind](sent)
            except Exception as exc:  # each client raises its own types
                raise MachineError(
                    f"--report-to {kind}: {first_line(exc)}", fix="Install or set up the tracker as its message says."
                ) from exc
    return sent


def numbers_of(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Every number of the claims' headline estimates; unknown ones are left out, never 0."""
    found: dict[str, float] = {}
    for verdict in verdicts:
        headline = verdict.estimates[0] if verdict.estimates else None
        numbers = {"margin": verdict.margin, "detectable": verdict.detectable}
        if headline is not None:
            names = ("value", "low", "high", "level", "n", "p")
            numbers |= {name: getattr(headline, name) for name in names}
        found |= {f"claims/{verdict.claim}/{name}": float(n) for name, n in numbers.items() if n is not None}
    return found


def texts_of(verdicts: StudyVerdicts) -> dict[str, str]:
    """The status and the sentence of each claim, and the contract they were made under."""
    found = {"contract": verdicts.contract or "none"}
    for verdict in verdicts.verdicts:
        found |= {
            f"claims/{verdict.claim}/status": verdict.status,
            f"claims/{verdict.claim}/sentence": verdict.sentence,
        }
    return found


def sent_text(sent: VerdictRun, kinds: Sequence[str]) -> str:
    """What was sent, as text for the screen."""
    n = sum(name.endswith("/status") for name in sent.texts)
    counts = f"{many(n, 'verdicts')} of {sent.study}, {many(len(sent.numbers), 'numbers')}"
    return f"sent {counts}, to {', '.join(kinds)} as the run {RUN}"


# ---------------------------------------------------------------- the trackers


def _wandb(sent: VerdictRun) -> None:
    import wandb

    folder = sent.root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)  # wandb takes another folder where this one is missing
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", sent.study),
        name=RUN,
        job_type="verdict",
        dir=os.environ.get("WANDB_DIR", str(folder)),
    )
    run.summary.update({**sent.numbers, **sent.texts})
    for path in sent.files:
        run.save(str(path), base_path=str(sent.root), policy="now")
    run.finish()


def _mlflow(sent: VerdictRun) -> None:
    import mlflow

    if mlflow.active_run() is not None:
        raise MachineError("a tracker's run is already open in this process.", fix="End that run first.")
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    with mlflow.start_run(run_name=RUN):
        mlflow.set_tags({name.replace("/", "."): text for name, text in sent.texts.items()})
        mlflow.log_metrics(dict(sent.numbers))
        for path in sent.files:
            mlflow.log_artifact(str(path))


def _tensorboard(sent: VerdictRun) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    writer = event_writer(os.environ["TENSORBOARD_LOGGING_DIR"])
    write_scalars(writer, sent.numbers, 0)
    for name, text in sent.texts.items():
        about = create_summary_metadata(display_name=name, description="")
        value = Summary.Value(tag=name, metadata=about, tensor=make_tensor_proto([text]))
        writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))
    writer.close()


def _trackio(sent: VerdictRun) -> None:
    import trackio

    trackio.init(project=sent.study, name=RUN, config=dict(sent.texts), embed=False)
    trackio.log(dict(sent.numbers))
    trackio.finish()


_SEND: Mapping[str, Callable[[VerdictRun], None]] = {
    "wandb": _wandb,
    "mlflow": _mlflow,
    "tensorboard": _tensorboard,
    "trackio": _trackio,
}

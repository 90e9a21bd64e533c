"""`report --report-to`: verdicts and intervals arrive in the trackers as they stand in verdict.json.

MLflow's client and TensorBoard are development dependencies; W&B (offline) and trackio are tested where installed.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from sealed_studies import sealed_study
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.errors import InputError, MachineError
from veritune.report.trackers import TRACKERS, numbers_of, send_verdicts
from veritune.seal import verify


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_study(tmp_path_factory.mktemp("sealed") / "study")


@pytest.fixture
def root(tmp_path: Path, sealed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [n for n in os.environ if n.split("_")[0] in ("MLFLOW", "WANDB", "TRACKIO", "TENSORBOARD")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(sealed, tmp_path / "study"))


def expected(root: Path) -> dict[str, float]:
    """Value, bounds and n of every claim that has them, straight from verdict.json."""
    found = {}
    for verdict in json.loads((root / "verdict.json").read_text("utf-8"))["verdicts"]:
        for name in ("value", "low", "high", "n"):
            number = (verdict["estimates"] or [{}])[0].get(name)
            if number is not None:
                found[f"claims/{verdict['claim']}/{name}"] = number
    assert len(found) > 4
    return found


def unharmed(root: Path, before: set[str]) -> None:
    """Nothing that is sealed changed, and nothing was written beside the study."""
    assert [f for f in verify(root) if "rows.jsonl" not in f.message] == []
    assert {p.name for p in root.parent.iterdir()} == before


def test_mlflow_gets_one_run_with_every_number_and_word(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="pip install mlflow-skinny")
    before = {p.name for p in root.parent.iterdir()}
    done = CliRunner().invoke(app, ["report", str(root), "--report-to", "mlflow"])
    assert done.exit_code == 0, done.exception
    assert "to mlflow as the run verdicts" in done.output
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = tracking.MlflowClient((root / "tracking" / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert (run.info.run_name, run.info.status) == ("verdicts", "FINISHED")
    assert run.data.metrics.items() >= expected(root).items()
    statuses = {v["claim"]: v["status"] for v in json.loads((root / "verdict.json").read_text("utf-8"))["verdicts"]}
    assert {c: run.data.tags[f"claims.{c}.status"] for c in statuses} == statuses
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"verdict.json", "report.html"}
    unharmed(root, before)


def test_tensorboard_gets_scalars_and_texts(root: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    before = {p.name for p in root.parent.iterdir()}
    send_verdicts(root, ["tensorboard"])
    events = accumulator.EventAccumulator(str(root / "tracking" / "verdicts" / "tensorboard"))
    events.Reload()
    scalars = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
    wanted = expected(root)
    assert {tag: scalars[tag] for tag in wanted} == pytest.approx(wanted)
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]}
    verdict = json.loads((root / "verdict.json").read_text("utf-8"))["verdicts"][0]
    assert texts[f"claims/{verdict['claim']}/status"] == verdict["status"]
    assert texts[f"claims/{verdict['claim']}/sentence"] == verdict["sentence"]
    unharmed(root, before)


def test_wandb_gets_them_offline(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    before = {p.name for p in root.parent.iterdir()}
    send_verdicts(root, ["wandb"])
    (log,) = (root / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    for _ in range(300):  # its own process writes the file, and goes on a moment after `finish`
        if all(name.encode() in log.read_bytes() for name in expected(root)):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the run's file lacks numbers of the verdicts")
    unharmed(root, before)


def test_trackio_gets_them_locally(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="pip install trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(root.parent / "trackio"))
    send_verdicts(root, ["trackio"])
    (file,) = (root.parent / "trackio").glob("small*.db")
    with sqlite3.connect(file) as store:
        (text,) = store.execute("select metrics from metrics").fetchone()
    assert json.loads(text).items() >= expected(root).items()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--report-to", "comet"], "expected one of tensorboard, wandb, mlflow, trackio, found 'comet'"),
        (["--report-to", "mlflow", "--probes"], "--report-to sends verdicts"),
    ],
)
def test_what_cannot_be_sent_is_refused(root: Path, words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, ["report", str(root), *words])
    assert done.exit_code == 1 and says in str(done.exception)
    assert not (root / "tracking").exists()


def test_without_verdicts_or_the_package_nothing_is_sent(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from veritune.train import reporting

    with monkeypatch.context() as patch:
        patch.setattr(reporting.util, "find_spec", lambda name: None)
        for kind in TRACKERS:
            with pytest.raises(MachineError, match=f"{kind} is not installed"):
                send_verdicts(root, [kind])
    (root / "verdict.json").unlink()
    with pytest.raises(InputError, match="has no verdicts yet"):
        send_verdicts(root, ["mlflow"])


def test_what_is_unknown_is_left_out(root: Path) -> None:
    from veritune.records import Verdict

    untested: Any = Verdict("c", "improves", "untested", "No.", margin=0.1)
    assert numbers_of([untested]) == {"claims/c/margin": 0.1}

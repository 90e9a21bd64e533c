"""MLflow's metric files, as MLflow itself writes them: where training logs are taken, and as records of a write-up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.errors import InputError
from veritune.train.elsewhere import select_from_logs
from veritune.train.mlflow_files import is_run, metric_rows, rate_of, run_of
from veritune.writeup.facts import read_facts


def by_mlflow(store: Path, lr: float, losses: list[float]) -> Path:
    """A run that MLflow's own client logs into its file store."""
    tracking = pytest.importorskip("mlflow.tracking", reason="pip install mlflow-skinny")
    client = tracking.MlflowClient(store.as_uri())
    known = client.get_experiment_by_name("rates")
    experiment = known.experiment_id if known is not None else client.create_experiment("rates")
    run = client.create_run(experiment).info.run_id
    client.log_param(run, "learning_rate", lr)
    for step, loss in zip(range(10, 10 * len(losses) + 1, 10), losses, strict=True):
        client.log_metric(run, "eval_loss", loss, step=step)
        client.log_metric(run, "learning_rate", lr / 2, step=step)
        client.log_metric(run, "train/loss", 2.0, step=step - 5)
    return store / experiment / run


def by_hand(folder: Path, **metrics: str) -> Path:
    """A run's folder with what MLflow would write beside and in these metrics."""
    (folder / "metrics").mkdir(parents=True)
    (folder / "meta.yaml").write_text("run_id: r\n")
    for name, text in metrics.items():
        (folder / "metrics" / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def file_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def test_runs_that_mlflow_wrote_choose_checkpoint_and_rate(tmp_path: Path) -> None:
    low, high = (by_mlflow(tmp_path, lr, losses) for lr, losses in ((1e-4, [1.4, 1.2, 1.3]), (1e-3, [1.5, 1.1])))
    assert is_run(low) and metric_rows(low)[:2] == [
        {"step": 5, "train/loss": 2.0}, {"step": 10, "eval_loss": 1.4, "learning_rate": 5e-5}
    ]  # fmt: skip
    assert metric_rows(low / "metrics" / "train" / "loss") == [{"step": s, "train/loss": 2.0} for s in (5, 15, 25)]
    found = select_from_logs([str(low), str(high / "metrics" / "eval_loss")])
    assert [(r.lr, r.best_step, r.validation_nll) for r in found.runs] == [(1e-4, 20, 1.2), (1e-3, 20, 1.1)]
    assert found.selected == 1e-3 and rate_of(low) == 1e-4, "the parameter is the schedule's peak"


def test_a_write_up_is_held_against_what_mlflow_wrote(tmp_path: Path) -> None:
    run = by_mlflow(tmp_path, 1e-4, [1.4, 1.2, 1.3])
    names = {f.name: f.value for f in read_facts([run])}
    assert names["step 20.eval_loss"] == 1.2 and names["eval_loss.min"] == 1.2
    page = tmp_path / "page.md"
    for loss, outcome in (("1.20", 0), ("1.70", 2)):
        page.write_text(f"The eval loss at step 20 is {loss}.\n")
        done = CliRunner().invoke(app, ["lint", str(page), "--records", str(run / "metrics" / "eval_loss")])
        assert done.exit_code == outcome, done.output
    page.write_text("It ends at {{ step 20.eval_loss | .2f }}.\n")
    done = CliRunner().invoke(app, ["writeup", "fill", str(page), str(run)])
    assert done.exit_code == 0, done.output
    assert "1.20" in page.read_text()


def test_a_step_that_was_logged_again_is_a_row_of_its_own_and_other_fields_are_read(tmp_path: Path) -> None:
    run = by_hand(
        tmp_path / "run",
        eval_loss="1 1.5 10\n2 1.5 10\n3 1.25 10\n",
        acc="1 0.5 10 data 8ac1\n1 0.75 20 data 8ac1\n",
        old="1 7\n",
        bad="1 nan 10\n2 nan 10\n3 -inf 20\n",
    )
    rows = {name: metric_rows(run / "metrics" / name) for name in ("eval_loss", "acc", "old", "bad")}
    assert [r["eval_loss"] for r in rows["eval_loss"]] == [1.5, 1.25]
    assert [(r["step"], r["acc"]) for r in rows["acc"]] == [(10, 0.5), (20, 0.75)]
    assert rows["old"] == [{"step": 0, "old": 7.0}]
    assert math.isnan(rows["bad"][0]["bad"]) and rows["bad"][1]["bad"] == -math.inf and len(rows["bad"]) == 2
    with pytest.raises(InputError, match="a step occurs twice"):
        select_from_logs([str(run)])
    assert rate_of(run) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found an empty file"),
        ("1 1.5 10\n2 1.2 2", "found a last line that breaks off"),
        ("1 1.5 10\n\n", r"eval_loss line 2: expected 'timestamp value step', found ''"),
        ("1 1.5 10\n1 1_000 20\n", "line 2: expected 'timestamp value step'"),
        ("1 1.5 ten\n", "line 1: expected 'timestamp value step', found '1 1.5 ten'"),
        ("{}\n", "line 1: expected 'timestamp value step', found '{}'"),
        ("1.5\n", "line 1: expected 'timestamp value step'"),
    ],
)
def test_a_damaged_metric_is_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    run = by_hand(tmp_path / "run", eval_loss=text)
    for reader in (lambda: select_from_logs([str(run)]), lambda: read_facts([run / "metrics" / "eval_loss"])):
        with pytest.raises(InputError, match=message) as caught:
            reader()
        assert str(run / "metrics" / "eval_loss") in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_metric_is_refused_by_name(tmp_path: Path) -> None:
    run = by_hand(tmp_path / "run")
    with pytest.raises(InputError, match="an MLflow run without one"):
        metric_rows(run)
    (run / "metrics" / "eval_loss").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="eval_loss: expected an MLflow metric; found not UTF-8"):
        metric_rows(run)
    (run / "params").mkdir()
    (run / "params" / "learning_rate").write_text("fast")
    with pytest.raises(InputError, match=r"learning_rate: expected a learning rate as one number \(could not convert"):
        rate_of(run)
    stray = tmp_path / "metrics" / "eval_loss"
    stray.parent.mkdir()
    stray.write_text("1 1.5 10\n")
    assert run_of(stray) is None
    with pytest.raises(InputError, match="expected an MLflow run or a metric file"):
        metric_rows(stray)


def test_the_command_says_which_run_it_read(tmp_path: Path) -> None:
    runs = [by_hand(tmp_path / n, eval_loss=f"1 {x} 10\n2 2.0 20\n") for n, x in (("a", 1.0), ("b", 0.9))]
    arguments = ["select", "--log", f"1e-4={runs[0]}", "--log", f"1e-3={runs[1]}", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, json.loads(done.stdout)["selected"]) == (0, 1e-3)

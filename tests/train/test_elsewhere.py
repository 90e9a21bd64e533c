"""Training logs made elsewhere, and what the study's own rules choose from them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.errors import GateError, InputError
from veritune.train.elsewhere import LogColumns, select_from_logs, selection_text


def trainer_state(path: Path, losses, peak=1e-4) -> Path:
    """What Hugging Face's Trainer writes: training and evaluation entries in one list, a rate that warms up."""
    history = []
    for i, loss in enumerate(losses, 1):
        history.append({"epoch": i / 2, "learning_rate": peak * min(1, i / 2), "loss": 2.0, "step": 10 * i - 5})
        history.append({"epoch": i / 2, "eval_loss": loss, "eval_accuracy": 0.5, "step": 10 * i})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"best_metric": None, "global_step": 10 * len(losses), "log_history": history}, indent=2)
    )
    return path


def table(path: Path, rows) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def cli(*arguments):
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


def test_a_trainers_state_gives_checkpoint_rate_and_choice(tmp_path):
    low = trainer_state(tmp_path / "a" / "trainer_state.json", [1.4, 1.2, 1.3], 1e-4)
    trainer_state(tmp_path / "b" / "checkpoint-9" / "trainer_state.json", [9.0], 3e-4)
    trainer_state(tmp_path / "b" / "checkpoint-30" / "trainer_state.json", [1.3, 1.1, 1.15], 3e-4)
    high = trainer_state(tmp_path / "c" / "trainer_state.json", [1.5, 1.4, 1.35], 1e-3)
    found = select_from_logs([str(low), str(tmp_path / "b"), str(high.parent)])
    assert [(r.lr, r.best_step, r.validation_nll) for r in found.runs] == [
        (1e-4, 20, 1.2), (3e-4, 20, 1.1), (1e-3, 30, 1.35)
    ]  # fmt: skip
    assert (found.selected, found.edge) == (3e-4, None)
    text = selection_text(found)
    assert "checkpoint  step 20, validation NLL 1.1000" in text
    assert "select   learning rate 0.0003 (validation NLL 0.0001: 1.2000, 0.0003: 1.1000, 0.001: 1.3500)" in text
    assert "the highest one logged; the schedule's peak may be higher" in text
    assert text.count("the lowest is the last evaluation") == 1


def test_a_stated_rate_beats_the_logged_one_and_the_edge_is_said(tmp_path):
    a, b = (trainer_state(tmp_path / n / "trainer_state.json", [x, x + 1]) for n, x in (("a", 1.0), ("b", 2.0)))
    found = select_from_logs([f"2e-4={a}", f"1e-3={b}"])
    assert (found.selected, found.edge) == (2e-4, "low")
    assert found.runs[0].lr_from == "given"


def test_equal_losses_go_to_the_earlier_step_and_the_smaller_rate(tmp_path):
    a, b = (trainer_state(tmp_path / n / "trainer_state.json", [1.0, 1.0]) for n in "ab")
    found = select_from_logs([f"3e-4={a}", f"1e-4={b}"])
    assert (found.selected, found.runs[0].best_step) == (1e-4, 10)


def test_a_sweep_in_one_table_is_told_apart_by_run_and_rate(tmp_path):
    rows = [{"step": s, "lr": lr, "seed": seed, "val_loss": loss + seed / 10 - s / 100}
            for lr, loss in ((1e-4, 2.0), (1e-3, 1.9)) for seed in (0, 1) for s in (1, 2)]  # fmt: skip
    found = select_from_logs([str(table(tmp_path / "sweep.csv", rows))])
    assert len(found.runs) == 4 and found.selected == 1e-3
    assert found.rates[0].runs == 2
    assert found.rates[0].validation_nll == pytest.approx((1.98 + 2.08) / 2)
    one = [{k: v for k, v in row.items() if k != "lr"} for row in rows]
    with pytest.raises(InputError, match="a step occurs twice"):
        select_from_logs([str(table(tmp_path / "one.csv", one))])


def test_the_table_of_a_wandb_panel_is_a_run_a_column(tmp_path):
    """The form in which W&B exports a line plot: a column a run, its bands beside it, gaps where a run has no value."""
    path = tmp_path / "wandb.csv"
    path.write_text(
        '"Step","high - eval/loss","high - eval/loss__MIN","high - train/learning_rate","low - eval/loss",'
        '"low - train/learning_rate"\n10,2.0,0.1,2e-4,,\n11,,,,2.1,1e-4\n20,1.5,0.1,2e-4,1.7,1e-4\n'
    )
    found = select_from_logs([str(path)])
    runs = {run.name.rpartition(":")[2]: (run.evaluations, run.best_step, run.validation_nll) for run in found.runs}
    assert runs == {"high": (2, 20, 1.5), "low": (2, 20, 1.7)}
    assert found.selected == 2e-4


def test_our_own_metrics_use_the_validation_rows_alone(tmp_path):
    rows = [{"run_id": "r", "step": s, "split": split, "loss": loss, "condition": "a"}
            for s, split, loss in ((1, "seen", 0.1), (1, "validation", 2.0), (2, "seen", 0.05), (2, "validation", 1.5),
                                   (3, "validation", 1.6))]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run,) = select_from_logs([str(tmp_path)]).runs
    assert (run.best_step, run.validation_nll, run.lr) == (2, 1.5, None)


def test_other_trainers_names_are_known(tmp_path):
    for i, row in enumerate(({"current_steps": 1, "lr": 1e-4, "eval_loss": 1.0},
                             {"step": 1, "optim/lr": 1e-4, "test/nll": 1.0},
                             {"train/global_step": 1, "train/learning_rate": 1e-4, "eval/loss": 1.0})):  # fmt: skip
        log = tmp_path / f"{i}.jsonl"
        log.write_text(json.dumps(row) + "\n" + json.dumps({k: v + k.endswith(("step", "steps"))
                                                            for k, v in row.items()}))  # fmt: skip
        (run,) = select_from_logs([str(log)]).runs
        assert (run.lr, run.lr_from, run.validation_nll, run.evaluations) == (1e-4, "logged", 1.0, 2)


def test_ms_swift_counts_its_steps_of_all(tmp_path):
    rows = [
        {"loss": 2.0, "learning_rate": 1e-4, "global_step/max_steps": "5/20"},
        {"eval_loss": 1.5, "global_step/max_steps": "10/20"},
        {"eval_loss": 1.7, "global_step/max_steps": "20/20"},
        {"last_model_checkpoint": "output/checkpoint-20", "best_metric": 1.5},
    ]
    (tmp_path / "logging.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (run,) = select_from_logs([str(tmp_path / "logging.jsonl")]).runs
    assert (run.best_step, run.last_step, run.validation_nll, run.lr) == (10, 20, 1.5, 1e-4)


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_may_have_another_delimiter(tmp_path, delimiter):
    rows = [("step", "eval_loss", "lr"), ("10", "1.5", "1e-4"), ("20", "1.7", "1e-4")]
    (tmp_path / "a.csv").write_text("\n".join(map(delimiter.join, rows)))
    (run,) = select_from_logs([str(tmp_path / "a.csv")]).runs
    assert (run.best_step, run.validation_nll, run.lr) == (10, 1.5, 1e-4)


def test_a_diverged_run_is_out_and_when_all_are_nothing_is_chosen(tmp_path):
    good = trainer_state(tmp_path / "a" / "trainer_state.json", [1.0, 0.9])
    bad = trainer_state(tmp_path / "b" / "trainer_state.json", [0.5, float("nan")])
    found = select_from_logs([f"1e-4={good}", f"1e-3={bad}"])
    assert found.selected == 1e-4
    assert "! excluded: its validation NLL is not finite" in selection_text(found)
    worse = trainer_state(tmp_path / "c" / "trainer_state.json", [float("inf")])
    with pytest.raises(GateError, match="no learning rate of the grid can be used"):
        select_from_logs([f"1e-4={bad}", f"1e-3={worse}"])


@pytest.mark.parametrize(
    ("name", "text", "columns", "says"),
    [
        (
            "a.csv",
            "step,eval_accuracy\n1,0.5\n",
            {"nll": "eval_accuracy"},
            "is not a loss; checkpoints and learning rates are chosen by validation NLL only.",
        ),
        ("a.csv", "step,eval_accuracy\n1,0.5\n", {}, "expected a column one of validation_nll"),
        ("a.csv", "step,eval_loss\n1,good\n", {}, "expected a number in 'eval_loss', found 'good'"),
        ("a.csv", "step,eval_loss\n1e999,2\n", {}, "expected whole steps of at least 0 in 'step', found '1e999'"),
        ("a.csv", "step,eval_loss\nnan,2\n", {}, "expected whole steps of at least 0 in 'step', found 'nan'"),
        ("a.csv", "step,eval_loss\n1.5,2\n", {}, "expected whole steps of at least 0 in 'step', found '1.5'"),
        ("a.csv", "step,eval_loss\n-1,2\n", {}, "expected whole steps of at least 0 in 'step', found '-1'"),
        ("a.jsonl", '{"step": 1, "eval_loss": 1' + "0" * 400 + "}", {}, "an integer above 1.8e308"),
        ("a.csv", "step,eval_loss\n1,2\n", {"step": "stp"}, "expected a column 'stp', found step, eval_loss (did you"),
        ("a.csv", "", {}, "expected rows with a step"),
        ("a.csv", 'step,eval_loss\n1,"2\n', {}, "expected a training log in JSON, JSONL or CSV"),
        ("a.csv", "step,eval_loss\n1,2,3\n", {}, "expected rows with a step"),
        ("a.json", '{"x": 1,\n "y": 2}', {}, "expected trainer_state.json with a log_history"),
        ("a.json", '{"log_history": [1]}', {}, "expected trainer_state.json with a log_history"),
        ("a.jsonl", '{"step": 1, "eval_loss": 1}\n{', {}, "expected a training log in JSON, JSONL or CSV"),
        ("a.jsonl", '{"step": 1, "eval_loss": null}', {}, "expected a column one of validation_nll"),
    ],
)
def test_a_log_that_cannot_be_used_is_one_line(tmp_path, name, text, columns, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        select_from_logs([str(tmp_path / name)], LogColumns(**columns))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_the_choice_and_refuses_what_it_cannot_judge(tmp_path):
    a, b = (trainer_state(tmp_path / n / "trainer_state.json", [x, 2.0]) for n, x in (("a", 1.0), ("b", 0.9)))
    done = cli("--log", f"1e-4={a}", "--log", f"1e-3={b}", "--json")
    assert (done.exit_code, json.loads(done.stdout)["selected"]) == (0, 1e-3)
    for arguments, says in (
        ((), "expected a training log"),
        (("--log", tmp_path / "none"), "found no file"),
        (("--log", f"fast={a}"), "expected a learning rate before '='"),
        (("--log", a, "--log", a), "found '"),
        (("--log", f"1e-4={a}", "--log", f"1e-4={b}", "--log", f"1e-3={tmp_path / 'a'}"), "expected each run once"),
    ):
        done = cli(*arguments)
        assert done.exit_code == 1 and says in str(done.exception), done.exception

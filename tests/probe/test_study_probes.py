"""Probes inside one really run study: a sweep over rates and doses on a tied base, the head saved in full, every
checkpoint kept, the leaky split trained beside it because the study file says so."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.commands.app import app
from veritune.config.load import load_study
from veritune.errors import GateError, StudyError
from veritune.probe.series import change_of, study_series, table
from veritune.seal import verify

pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
RATES, STEPS = (1e-3, 1e-2), (2, 4)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from veritune.pipeline import run
    from veritune.progress import Progress

    root = tmp_path_factory.mktemp("swept")
    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "tied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(root / "tied")
    study = new_study(root / "study", root / "tied")
    settings = study.settings()
    lora = {"method": "lora", "target_modules": "attention", "r": 4, "modules_to_save": ["lm_head"]}
    settings |= {"conditions": {"some": lora}, "seeds": [0], "claims": [], "keep": "all", "probes": {"leak": True}}
    settings["sweep"] = {"learning_rate": list(RATES), "data_fraction": [0.5, 1.0]}
    settings["split"] |= {"validation": 0.2}
    rules = [{"name": "letters", "pattern": "[a-z]"}]
    settings["evals"] = {"any": {"max_new_tokens": 1, "batch_size": 64, "rules": rules}}
    settings["train"] |= {"max_steps": STEPS[-1], "eval_steps": list(STEPS)}
    settings["data"]["source_field"] = "sure"
    study.write(settings)
    run(study.root, progress=Progress(silent=True))
    return study


# ---------------------------------------------------------------- the leaky split, from the study file


def test_the_study_file_trains_the_leaky_split_and_the_report_shows_it(swept: Any) -> None:
    from veritune.pipeline import run
    from veritune.progress import Progress

    records = sorted((swept.root / "probes" / "leak").glob("*.json"))
    assert [r.stem for r in records] == ["some-lr0p001-data1", "some-lr0p01-data1"], "whole conditions only"
    page = (swept.root / "report.html").read_text("utf-8")
    for path in records:
        record = json.loads(path.read_text("utf-8"))["record"]
        assert record["n_trained"] == len(manifest(swept.root, record["condition"])["data"]["seen_rows"])
        assert record["flattered"]["value"] is not None and record["reading"] in page
    assert page.count("What a leaky split would have flattered") >= 2
    assert verify(swept.root) == []
    contract = (swept.root / "contract.lock.json").read_text("utf-8")
    assert '"probes"' not in json.dumps(json.loads(contract)["entries"][0]["terms"]["study"])
    before = [p.stat().st_mtime_ns for p in records]
    assert run(swept.root, progress=Progress(silent=True)).trained == 0
    assert [p.stat().st_mtime_ns for p in records] == before


def test_the_plan_counts_the_shadow_runs_and_the_budget_stops_them(study: Any) -> None:
    from veritune.pipeline import run
    from veritune.progress import Progress

    study.change(lambda s: s.update(probes={"leak": True}, budget={"hours": 1e-9}))
    with pytest.raises(GateError, match="the 7 remaining cells"):  # baseline, 2 conditions x 2 seeds, 2 shadows
        run(study.root, progress=Progress(silent=True))
    rows = json.loads((study.root / "plan.json").read_text("utf-8"))["cells"]
    leak = [r for r in rows if r["phase"] == "leak"]
    assert [r["run_id"] for r in leak] == ["leak attention_only seed 0", "leak all_layer seed 0"]
    honest = [r for r in rows if r["phase"] == "main" and r["seed"] == 0]
    assert [r["tokens"] for r in leak] == [r["tokens"] for r in honest]


def test_a_leak_needs_strangers_to_be_measured(study: Any) -> None:
    study.change(lambda s: s.update(probes={"leak": True}, claims=[]))
    study.change(lambda s: s["evals"]["style"].update(zones=["seen", "sibling"]))
    with pytest.raises(StudyError, match="it compares losses on strangers"):
        load_study(study.root / "study.yaml")


# ---------------------------------------------------------------- weights along steps, rates, doses and seeds


def manifest(root: Path, condition: str, seed: int = 0) -> Any:
    found = [json.loads(p.read_text("utf-8")) for p in (root / "runs").glob("*/manifest.json")]
    return next(m for m in found if m["condition"] == condition and m["seed"] == seed)


def test_every_checkpoint_is_a_line_with_its_facts(swept: Any) -> None:
    record = study_series(swept.root)
    assert len(record.lines) == len(RATES) * 2 * len(STEPS) and record.missing == ()
    assert {line.step for line in record.lines} == set(STEPS)
    line = next(x for x in record.lines if (x.lr, x.seed, x.step) == (RATES[1], 0, STEPS[1]) and x.point)
    run = manifest(swept.root, str(line.condition))
    folder = swept.root / "runs" / run["run_id"]
    alone = change_of(folder / "checkpoints" / "step-4", swept.root.parent / "tied")
    assert line.delta_norm == alone.total.delta_norm and line.rows == len(run["data"]["seen_rows"])
    assert "head" in line.by_type and not alone.notes, "a head saved in full is compared with the tied embedding"
    losses = json.loads((folder / "training.json").read_text("utf-8"))["candidates"]
    assert line.validation_nll == next(c["validation_nll"] for c in losses if c["step"] == 4)


def test_every_checkpoint_of_the_list_has_its_loss_by_source_and_the_run_its_curve(swept: Any) -> None:
    run = manifest(swept.root, "some-lr0p01-data1")["run_id"]
    training = json.loads((swept.root / "runs" / run / "training.json").read_text("utf-8"))
    assert [c["step"] for c in training["candidates"]] == list(STEPS)
    assert all(set(c["by_source"]) == {"low", "high"} for c in training["candidates"])
    nll = json.loads((swept.root / "runs" / run / "probes" / "nll.json").read_text("utf-8"))
    sure = {r["id"]: r["sure"] for r in map(json.loads, (swept.root / "rows.jsonl").read_text("utf-8").splitlines())}
    mine = [r for r in nll["rows"] if r["zone"] == "validation" and sure[r["row_id"]] == "low"]
    best = next(c for c in training["candidates"] if c["step"] == training["best_step"])
    by_hand = sum(r["nll_sum"] for r in mine) / sum(r["target_tokens"] for r in mine)
    assert best["by_source"]["low"] == pytest.approx(by_hand, rel=1e-4)
    curve = json.loads((swept.root / "probes" / run / "curve.json").read_text("utf-8"))["record"]
    assert curve["chosen"] == training["best_step"] and len(curve["points"]) == len(STEPS)
    page = (swept.root / "report.html").read_text("utf-8")
    assert "Checkpoints along the run" in page


def test_a_step_that_no_run_reaches_and_a_column_that_is_not_there_are_refused(study: Any) -> None:
    from veritune.config.load import parse_study
    from veritune.pipeline.ready import make_ready
    from veritune.progress import Progress
    from veritune.store import Store

    study.change(lambda s: s["train"].update(eval_steps=[2, 7]))
    late = r"train\.eval_steps: step 7 comes after the last step of condition attention_only, 6\."
    with pytest.raises(StudyError, match=late):
        make_ready(Store(study.root), parse_study(study.settings()), Progress(silent=True))
    study.change(lambda s: s["train"].update(eval_steps=[2, 6]))
    study.change(lambda s: s["data"].update(source_field="origin"))
    with pytest.raises(StudyError, match=r"no validation row has a value in 'origin'\. Columns: id, original, sure"):
        make_ready(Store(study.root), parse_study(study.settings()), Progress(silent=True))


def test_what_every_checkpoint_costs_is_measured_on_request(swept: Any) -> None:
    from veritune.pipeline.cell import ready_from_contract
    from veritune.pipeline.probes import MODEL_PROBES, _subject
    from veritune.progress import Progress
    from veritune.records import TrainingRecord

    run = manifest(swept.root, "some-lr0p01-data1")["run_id"]
    training = TrainingRecord.load(swept.root / "runs" / run / "training.json")
    ready = ready_from_contract(swept.root, Progress(silent=True))
    curve = MODEL_PROBES["checkpoints"][0](ready, _subject(ready, training), training)
    assert [p.step for p in curve.points] == list(STEPS)
    assert all(None not in (p.m1_change, p.icc_change, p.carried, p.gain) for p in curve.points)


def test_the_geometry_of_all_checkpoints_is_one_grid(swept: Any, tmp_path: Path) -> None:
    from veritune.pipeline.geometry_runs import GeometryAsked, grid_from, limits_of

    (tmp_path / "p.json").write_text(json.dumps({f"p{i}": f"You are number {i}." for i in range(6)}))
    (tmp_path / "q.txt").write_text("amber birch?\ncedar delta?\n")
    files = (tmp_path / "p.json", tmp_path / "q.txt")
    asked = GeometryAsked(("last_input_token",), (1, 2), *files, 4, limits_of(None))
    grid = grid_from(swept.root, asked, "some-lr0p001-data1")
    runs = {(c.condition, c.seed, c.step) for c in grid.cells}
    assert len(runs) == len(RATES) * 2 * len(STEPS) and {c.layer for c in grid.cells} == {1, 2}
    assert {c.measure for c in grid.cells} == {"m1", "icc"} and grid.family.values == len(runs) * 2 * 2
    assert grid.family.smallest_p == 2 / 2**6
    other = next(c for c in grid.cells if c.condition == "some-lr0p01-data1" and c.step == STEPS[1])
    same = next(
        c for c in grid.cells if c.condition == grid.reference and (c.step, c.place) == (other.step, other.place)
    )
    assert other.ratio == pytest.approx(other.change / same.change)


def test_tables_of_rates_and_doses(swept: Any) -> None:
    record = study_series(swept.root)
    doses = sorted({x["rows"] for x in record.by_rows})
    assert len(doses) == 2 and doses[0] < doses[1]
    assert [(x["lr"], x["rows"]) for x in record.by_lr] == [(r, d) for d in doses for r in RATES]
    assert [(x["rows"], x["lr"]) for x in record.by_rows] == [(d, r) for r in RATES for d in doses]
    for x in (*record.by_lr, *record.by_rows):
        mine = [y for y in record.lines if y.chosen and (y.lr, y.rows) == (x["lr"], x["rows"])]
        assert x["n_runs"] == len(mine) == 1 and x["arm"] == "some"
        assert x["delta_norm"] == mine[0].delta_norm
        assert x["least"] <= x["delta_norm"] <= x["most"]
    moved = {(x["lr"], x["rows"]): x["delta_norm"] for x in record.by_lr}
    assert all(moved[RATES[1], d] > 2 * moved[RATES[0], d] for d in doses)
    text = table(record)
    assert "by learning rate, scored checkpoints:" in text and "by rows trained on, scored checkpoints:" in text


@pytest.mark.parametrize(
    ("axis", "curves", "places"),
    [("step", 4, list(STEPS)), ("lr", 2, list(RATES)), ("rows", 2, None)],
)
def test_the_series_is_one_plot(swept: Any, axis: str, curves: int, places: Any, tmp_path: Path) -> None:
    """A curve for each of 4 points of the sweep over steps, of 2 doses over rates, of 2 rates over doses."""
    from veritune.records import to_json
    from veritune.report.moved import _drawing

    plot = tmp_path / "moved.svg"
    app(["probe", "weights", str(swept.root), "--plot", str(plot), "--axis", axis], standalone_mode=False)
    assert plot.read_bytes().startswith(b"<?xml")
    record = to_json(study_series(swept.root))
    drawn = [x for x in record["lines"] if axis == "step" or x["chosen"]]
    made = _drawing(drawn, axis, "series.json")
    (axes,) = made.figure.axes
    if axis == "lr":
        assert [t.get_text() for t in axes.get_xticklabels()] == [
            "0.001",
            "0.01",
        ] and "mathdefault" not in plot.read_text()
    lines = axes.get_lines()
    assert len(lines) == curves == len({row[0] for row in made.table}) and made.n == f"{len(drawn)} checkpoints"
    for line in lines:
        x = list(line.get_xdata())
        assert len(x) == 2 and x == (places or sorted(x))
        assert set(line.get_ydata()) <= {y["delta_norm"] for y in drawn}


def test_seeds_are_curves_of_their_own_and_one_line_of_a_table(finished: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    from veritune.probe.series import _over
    from veritune.records import to_json
    from veritune.report.moved import _drawing

    record = study_series(finished.root)
    assert [(x.condition, x.seed) for x in record.lines] == [
        (c, s) for c in ("all_layer", "attention_only") for s in (0, 1)
    ]
    assert record.missing == () and record.by_lr == record.by_rows == (), "one rate and one dose are no series"
    labels = {row[0] for row in _drawing(to_json(record)["lines"], "step", "series.json").table}
    assert len(labels) == 4 and "all_layer, seed 1, lr 0.005" in labels
    slower = [replace(x, lr=0.001, delta_norm=x.delta_norm / 5) for x in record.lines]
    made = _over([*slower, *record.lines], "lr")
    assert [(x["arm"], x["lr"], x["n_runs"]) for x in made] == [
        (c, r, 2) for c in ("all_layer", "attention_only") for r in (0.001, 0.005)
    ]
    norms = [x.delta_norm for x in record.lines[:2]]
    assert made[1]["delta_norm"] == pytest.approx(sum(norms) / 2)
    assert (made[1]["least"], made[1]["most"]) == (min(norms), max(norms))


# ---------------------------------------------------------------- one bad run does not hide the others


def spoil_nan(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    next(w for n, w in weights.items() if "lora_B" in n)[0, 0] = float("nan")
    save_file(weights, folder / "adapter_model.safetensors")


def spoil_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "adapter_model.safetensors")
    name = next(n for n in weights if "lora_A" in n)
    save_file(weights | {name: torch.ones(4, 7)}, folder / "adapter_model.safetensors")


def spoil_merged(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def spoil_method(folder: Path) -> None:
    config = (folder / "adapter_config.json").read_text("utf-8")
    (folder / "adapter_config.json").write_text(config.replace('"LORA"', '"PROMPT_TUNING"'), "utf-8")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (spoil_nan, "NaN or infinite"),
        (spoil_shape, "the base has"),
        (spoil_merged, "no adapter|different models"),
        (spoil_method, "prompt tuning changes no weights"),
    ],
)
def test_a_run_that_cannot_be_read_is_named_beside_the_others(
    swept: Any, spoil: Callable[[Path], None], why: str, tmp_path: Path, finish_again: Any
) -> None:
    from veritune.pipeline.probes import probe_report

    shutil.copytree(swept.root, tmp_path / "study")
    shutil.copytree(swept.root.parent / "tied", tmp_path / "tied")
    run = manifest(tmp_path / "study", "some-lr0p01-data1")["run_id"]
    for checkpoint in (tmp_path / "study" / "runs" / run / "checkpoints").iterdir():
        spoil(checkpoint)
    finish_again(tmp_path / "study", run)
    blocks = [b for b in probe_report(tmp_path / "study") if run in b.source and "weights" in b.source]
    assert blocks[0].reading.startswith("Not measured:") and re.search(why, blocks[0].reading)
    record = study_series(tmp_path / "study")
    assert len(record.lines) == 6 and len(record.missing) == 1
    assert run in record.missing[0] and re.search(why, record.missing[0]) and run in record.limits

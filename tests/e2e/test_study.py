"""Whole studies through the command line: run, run again, change, amend, two at once, a full disk, the real model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from veritune.store import Store

CANONICAL = {
    "run_id",
    "condition",
    "seed",
    "step",
    "split",
    "loss",
    "metric",
    "token_count",
    "cost",
    "checkpoint",
}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a study that a rerun has no business to touch."""
    again = {"report.html", "seal.json", ".lock"}
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.name not in again and "figures" not in p.parts
    }


# ---------------------------------------------------------------- a finished study


def test_a_study_ends_with_verdicts_on_the_screen_and_a_report_on_disk(finished: Any) -> None:
    verdicts = {v["claim"]: v["status"] for v in read(finished.root / "verdict.json")["verdicts"]}
    assert list(verdicts) == ["learns", "carries", "differ"]
    for claim, status in verdicts.items():
        assert f"{claim}: {status.upper()}" in finished.run.stdout
    assert finished.run.returncode == (0 if set(verdicts.values()) == {"supported"} else 2)
    assert f"Report: {finished.root / 'report.html'}" in finished.run.stdout
    assert (finished.root / "report.html").stat().st_size > 500
    assert "Traceback" not in finished.run.stderr


def test_progress_tells_stages_in_order_and_only_our_words(finished: Any) -> None:
    told = finished.run.stderr
    order = ["tiny: Does the tiny", "data ", "plan ", "probe ", "[1/5] baseline", "[5/5] all_layer, seed 1"]
    places = [told.index(word) for word in order]
    assert places == sorted(places)
    assert "Warning" not in told and "it/s" not in told


def test_every_cell_is_there_and_metrics_keep_their_shape(finished: Any) -> None:
    runs = sorted(p.name.rsplit("-", 1)[0] for p in (finished.root / "runs").iterdir())
    assert runs == ["all_layer-s0", "all_layer-s1", "attention_only-s0", "attention_only-s1", "baseline"]
    for folder in (finished.root / "runs").iterdir():
        assert read(folder / "manifest.json")["run_id"] == folder.name
        if folder.name.startswith("baseline"):
            assert not (folder / "metrics.jsonl").exists()
            continue
        rows = lines(folder / "metrics.jsonl")
        assert all(set(row) == CANONICAL for row in rows)
        assert [r["step"] for r in rows if r["split"] == "seen" and r["loss"] is not None] == [1, 2, 3, 4, 5, 6]
        assert [(r["step"], r["token_count"]) for r in rows if r["split"] == "validation"] == [
            (4, rows_tokens(finished.root, "validation")),
            (6, rows_tokens(finished.root, "validation")),
        ]


def rows_tokens(root: Path, zone: str) -> int:
    (manifest,) = (root / "data").glob("*/manifest.json")
    return int(read(manifest)["facts"]["target_tokens"][zone])


def test_the_kept_checkpoint_has_the_lowest_validation_nll(finished: Any) -> None:
    for record in (finished.root / "runs").glob("*/training.json"):
        training = read(record)
        candidates = {c["step"]: c["validation_nll"] for c in training["candidates"]}
        assert training["best_step"] == min(candidates, key=lambda step: (candidates[step], step))
        assert training["validation_nll"] == min(candidates.values())
        kept = finished.root / training["checkpoint"]
        assert kept.name == f"step-{training['best_step']}"
        names = {p.name for p in kept.iterdir()}
        assert "adapter_model.safetensors" in names
        assert not any("optimizer" in n or n.endswith(".bin") or n == "complete" for n in names)


def test_the_scores_are_those_of_the_kept_checkpoint(finished: Any) -> None:
    """NLL on validation, measured again after loading, is what the checkpoint was chosen by."""
    for folder in (finished.root / "runs").glob("*-s?-*"):
        measured = read(folder / "probes" / "nll.json")["zones"]["validation"]["nll"]
        assert measured == pytest.approx(read(folder / "training.json")["validation_nll"], rel=1e-6)


def test_every_item_has_one_score_in_every_run_with_its_family_and_zone(finished: Any) -> None:
    items = None
    for folder in sorted((finished.root / "runs").iterdir()):
        scores = lines(folder / "scores" / "style.jsonl")
        here = {(s["item_id"], s["family"], s["zone"]) for s in scores}
        assert len(here) == len(scores) == 33
        assert items is None or here == items
        items = here
        assert {s["zone"] for s in scores} == {"seen", "sibling", "stranger"}
        assert all(s["value"] is not None or s["reason"] for s in scores)
        assert all(set(s["parts"]["rules"]) == {"thing", "asks", "letters", "no_e"} for s in scores if s["value"])


def test_no_family_of_a_held_out_zone_is_trained_on(finished: Any) -> None:
    (folder,) = (finished.root / "data").iterdir()
    import pyarrow.parquet as pq

    zone = dict(zip(*(c.to_pylist() for c in pq.read_table(folder / "split.parquet").columns)))
    families = pq.read_table(folder / "families.parquet").to_pylist()
    trained = {m["family"] for m in families if zone[m["id"]] == "seen"}
    held = {m["family"] for m in families if zone[m["id"]] in ("stranger", "validation")}
    assert trained and held and not trained & held
    for manifest in (finished.root / "runs").glob("*-s?-*/manifest.json"):
        assert {zone[row] for row in read(manifest)["data"]["seen_rows"]} == {"seen"}


def test_the_records_hold_no_path_of_this_machine(finished: Any) -> None:
    """But for the model's folder, which the study names by its path."""
    own = {"study.yaml", "report.html", ".lock"}
    model = finished.study.settings()["model"]["path"]
    found = [
        name
        for name, content in snapshot(finished.root).items()
        if Path(name).name not in own
        and not name.endswith((".parquet", ".safetensors"))
        and re.search(r"/(home|root|tmp|work)/", content.decode("utf-8").replace(model, "MODEL"))
        and "checkpoints" not in name
    ]
    assert found == []


# ---------------------------------------------------------------- again, changed, amended


def test_a_second_run_skips_everything_and_changes_nothing(finished: Any, forks: Any) -> None:
    before = snapshot(finished.root)
    again = forks("run", finished.root)
    assert again.rc == finished.run.returncode
    assert "0 cells run, 5 were done before" in again.out
    assert again.err.count("done before, skipped") == 5
    assert snapshot(finished.root) == before
    verdicts = finished.run.stdout.split("cells run")[0].rsplit("\n", 1)[0]
    assert verdicts in again.out


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda s: s["train"].update(learning_rate=0.001), "study.train.learning_rate: frozen 0.005, found 0.001"),
        (lambda s: s["claims"][2].update(margin=0.2), "study.claims.2.margin: frozen 0.05, found 0.2"),
        (lambda s: s["evals"]["style"].update(score="all"), "study.evals.style.score: frozen 'mean', found 'all'"),
    ],
)
def test_a_changed_study_is_refused_with_field_frozen_and_found(
    finished_copy: Any, forks: Any, change: Callable[[Any], Any], field: str
) -> None:
    before = snapshot(finished_copy.root)
    finished_copy.change(change)
    refused = forks("run", finished_copy.root)
    assert refused.rc == 1
    assert field in refused.err
    assert "--amend" in refused.err
    assert {**snapshot(finished_copy.root), "study.yaml": b""} == {**before, "study.yaml": b""}


def test_changed_data_are_refused(finished_copy: Any, forks: Any) -> None:
    rows = (finished_copy.root / "rows.jsonl").read_text("utf-8")
    (finished_copy.root / "rows.jsonl").write_text(rows.replace("?", "!", 1), encoding="utf-8")
    refused = forks("run", finished_copy.root)
    assert refused.rc == 1
    assert "facts.data_" in refused.err and "frozen" in refused.err


def test_a_refused_run_does_no_harm(finished_copy: Any, forks: Any) -> None:
    """The same rows in a file of other bytes: refused, and all is well when the first bytes are back."""
    path = finished_copy.root / "rows.jsonl"
    first = path.read_bytes()
    path.write_bytes(first.replace(b'", "', b'",  "', 1))
    refused = forks("run", finished_copy.root)
    assert refused.rc == 1 and "facts.data_sha256: frozen" in refused.err
    path.write_bytes(first)
    again = forks("run", finished_copy.root)
    assert again.rc in (0, 2), again.err
    assert forks("verify", finished_copy.root).rc == 0


def test_another_base_model_is_refused(finished_copy: Any, forks: Any, tmp_path: Path, tiny_model: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    model = tmp_path / "other"
    shutil.copytree(tiny_model, model)
    weights = load_file(model / "model.safetensors")
    save_file({k: v + 1e-4 for k, v in weights.items()}, model / "model.safetensors", metadata={"format": "pt"})
    finished_copy.change(lambda s: s["model"].update(path=str(model)))
    refused = forks("run", finished_copy.root)
    assert refused.rc == 1
    assert "facts.model.files.model.safetensors: frozen" in refused.err


def test_an_amended_study_runs_anew_and_the_old_runs_stay(finished_copy: Any, forks: Any) -> None:
    before = {p.name for p in (finished_copy.root / "runs").iterdir()}
    old = {n: c for n, c in snapshot(finished_copy.root).items() if n.startswith("runs/")}
    finished_copy.change(lambda s: s["train"].update(max_steps=4))
    amended = forks("run", finished_copy.root, "--amend", "fewer steps do")
    assert amended.rc in (0, 2), amended.err
    after = {p.name for p in (finished_copy.root / "runs").iterdir()}
    assert before < after and len(after) == 9
    new = snapshot(finished_copy.root)
    changed = [name for name, content in old.items() if new[name] != content]
    assert sorted(changed) == sorted(name for name in old if name.endswith("/summary.json"))
    for name in changed:  # the amendment's mark, and nothing else
        before_it, now = json.loads(old[name]), json.loads(new[name])
        assert now["before_amendment"] == 1
        assert {k: v for k, v in now.items() if v != before_it.get(k)} == {"before_amendment": 1}
    contract = read(finished_copy.root / "contract.lock.json")
    assert [e["reason"] for e in contract["entries"]] == ["frozen", "fewer steps do"]
    assert all(v["exploratory"] for v in read(finished_copy.root / "verdict.json")["verdicts"])
    assert "(exploratory)" in amended.out
    assert "amended" in [e["event"] for e in lines(finished_copy.root / "events.jsonl")]


def test_an_amended_eval_is_scored_anew_without_training_and_survives_a_kill(finished_copy: Any, forks: Any) -> None:
    trained = {p: p.read_bytes() for p in finished_copy.root.glob("runs/*/training.json")}
    finished_copy.change(lambda s: s["evals"]["style"].update(score="all"))
    killed = forks(
        "run", finished_copy.root, "--amend", "all rules", kill_at=r"os.rename \S+\.tmp \S+/all_layer-s0\S+/style.json "
    )
    assert killed.rc == -signal.SIGKILL
    again = forks("run", finished_copy.root)
    assert again.rc in (0, 2), again.err
    for folder in (finished_copy.root / "runs").iterdir():
        assert {s["value"] for s in lines(folder / "scores" / "style.jsonl")} <= {0.0, 1.0, None}
    assert {p: p.read_bytes() for p in finished_copy.root.glob("runs/*/training.json")} == trained


def test_back_to_the_first_eval_after_a_kill_between_scores_and_their_stamp(finished_copy: Any, forks: Any) -> None:
    """Scores of the amended eval were written, their stamp was not; they must not pass for the first eval's."""
    (folder,) = (finished_copy.root / "runs").glob("baseline-*")
    first = (folder / "scores" / "style.jsonl").read_bytes()
    finished_copy.change(lambda s: s["evals"]["style"].update(score="all"))
    moment = r"os.rename \S+\.tmp \S+/baseline-\S+/style.json "
    assert forks("run", finished_copy.root, "--amend", "all rules", kill_at=moment).rc == -signal.SIGKILL
    assert (folder / "scores" / "style.jsonl").read_bytes() != first
    (kept,) = folder.glob("scores/style.*.jsonl")
    assert kept.read_bytes() == first
    finished_copy.change(lambda s: s["evals"]["style"].update(score="mean"))
    back = forks("run", finished_copy.root, "--amend", "back")
    assert back.rc in (0, 2), back.err
    assert (folder / "scores" / "style.jsonl").read_bytes() == first


def test_an_edited_score_is_refused(finished_copy: Any, forks: Any) -> None:
    (path,) = finished_copy.root.glob("runs/baseline-*/scores/style.jsonl")
    path.write_text(path.read_text("utf-8").replace('"value":0.5', '"value":0.25', 1), encoding="utf-8")
    refused = forks("run", finished_copy.root)
    assert refused.rc == 1
    assert "style.jsonl was edited" in refused.err


def test_an_edited_contract_is_refused(finished_copy: Any, forks: Any) -> None:
    path = finished_copy.root / "contract.lock.json"
    path.write_text(path.read_text("utf-8").replace('"margin": 0.05', '"margin": 0.01', 1), encoding="utf-8")
    refused = forks("run", finished_copy.root)
    assert refused.rc == 1
    assert "entry 0 was edited" in refused.err


# ---------------------------------------------------------------- two at once


def test_a_second_process_is_refused_and_the_first_goes_on(study: Any, forks: Any) -> None:
    first = forks.start("run", study.root)
    while not (study.root / "audit").exists():
        pass
    second = forks("run", study.root)
    assert second.rc == 3
    assert f"is in use by process {first['pid']} on " in second.err
    assert second.err.count("\n") == 1
    status = forks("status", study.root)
    assert f"running: process {first['pid']}" in status.out
    assert forks.wait(first).rc in (0, 2)


def test_interrupted_by_the_keyboard_it_says_so_and_can_be_taken_up(study: Any, forks: Any) -> None:
    import os

    first = forks.start("run", study.root)
    while not list(study.root.glob("runs/*/metrics.jsonl")):
        pass
    os.kill(first["pid"], signal.SIGINT)
    stopped = forks.wait(first)
    assert stopped.rc == 130
    assert "veritune: stopped. Finished work is on disk; run the same command again to resume." in stopped.err
    assert "Traceback" not in stopped.err


# ---------------------------------------------------------------- a small disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 120 MB; skips where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=120m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"this user may not mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free_kb", [0, 8, 60] if os.environ.get("VERITUNE_CRASH") == "all" else [8])
def test_a_disk_that_fills_up_is_named_and_the_study_goes_on_when_there_is_room(
    disk: Path, forks: Any, finished: Any, free_kb: int
) -> None:
    study = type(finished.study)(disk / "study")
    study.root.mkdir()
    for name in ("study.yaml", "rows.jsonl"):
        (study.root / name).write_bytes((finished.root / name).read_bytes())
    assert forks("freeze", study.root).rc == 0
    cell = json.loads(forks("status", study.root, "--cells", "--json").out)[-1]["run_id"]
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
    with filler.open("r+b") as stream:
        stream.truncate(filler.stat().st_size - free_kb * 1024)
    full = forks("work", study.root, cell)
    assert full.rc == 1, full.out
    assert "the disk is full" in full.err
    refused = forks("run", study.root)
    assert refused.rc == 1
    assert "GB free, the study needs about" in refused.err or "the disk is full" in refused.err
    assert "Traceback" not in full.err + refused.err
    filler.unlink()
    again = forks("run", study.root)
    assert again.rc == finished.run.returncode, again.err
    assert read(study.root / "verdict.json")["verdicts"] == read(finished.root / "verdict.json")["verdicts"]


def test_a_read_only_folder_is_named(disk: Path, forks: Any, finished: Any) -> None:
    for name in ("study.yaml", "rows.jsonl"):
        (disk / name).write_bytes((finished.root / name).read_bytes())
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused = forks("run", disk)
    assert refused.rc == 1
    assert "Read-only file system" in refused.err
    assert refused.err.count("\n") == 1


# ---------------------------------------------------------------- the real model


@pytest.mark.model
def test_a_small_study_of_the_real_model(tmp_path: Path, forks: Any, smollm2: Path, finished: Any) -> None:
    settings = finished.study.settings()
    settings["model"] = {"path": "builtin:smollm2-135m-instruct", "dtype": "auto"}
    settings["train"] |= {"max_steps": 2, "eval_steps": 2, "per_device_train_batch_size": 2}
    settings["conditions"] = {"all_layer": {"method": "lora", "target_modules": "all-linear", "r": 4}}
    settings["seeds"] = [0]
    settings["evals"]["style"] |= {"zones": ["seen", "stranger"], "per_family": 1, "max_new_tokens": 6}
    settings["claims"] = settings["claims"][:1]
    study = type(finished.study)(tmp_path / "real")
    study.root.mkdir()
    study.write(settings)
    (study.root / "rows.jsonl").write_bytes((finished.root / "rows.jsonl").read_bytes())
    done = forks("run", study.root)
    assert done.rc in (0, 2), done.err
    (folder,) = (study.root / "runs").glob("all_layer-*")
    measured = read(folder / "probes" / "nll.json")["zones"]["validation"]["nll"]
    assert measured == pytest.approx(read(folder / "training.json")["validation_nll"], rel=1e-4)
    assert read(study.root / "verdict.json")["verdicts"][0]["claim"] == "learns"


@pytest.mark.model
@pytest.mark.studies
def test_the_memory_planned_holds_for_forty_steps_of_the_real_model(tmp_path: Path, smollm2: Path) -> None:
    """Batches of ever new lengths leave compiled kernels behind; a probe of three steps cannot see that."""
    import torch

    if not torch.cpu._is_avx512_bf16_supported():
        pytest.skip("forty steps of the real model take a quarter of an hour without bfloat16 instructions")
    example = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
    settings = yaml.safe_load((example / "study.yaml").read_text("utf-8"))
    settings["train"] |= {"max_steps": 40, "eval_steps": 40, "per_device_train_batch_size": 2}
    settings["conditions"].pop("attention_only")
    settings["seeds"], settings["claims"] = [0], settings["claims"][:1]
    del settings["factor"]
    settings["evals"]["house_style"] |= {"per_family": 1, "max_new_tokens": 2, "batch_size": 4}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    shutil.copy(example / "briefs.jsonl", tmp_path)
    command = [sys.executable, "-m", "veritune", "run", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 2), done.stderr
    (event,) = [e for e in Store(tmp_path).events() if e["event"] == "ran"]
    if event["plan"]["memory_ratio"] is None:
        pytest.skip("this system does not let a process reset its memory's high-water mark")
    assert 0.8 < event["plan"]["memory_ratio"] < 1.2

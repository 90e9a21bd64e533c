"""File formats are read back as they were written, and whatever else lies in the file is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import FormatError, StaleError
from veritune.records import (
    CheckpointCandidate,
    GitState,
    MachineFacts,
    MemoryPeak,
    NamedModel,
    Record,
    RuleCount,
    RunManifest,
    RunSummary,
    Score,
    ServerCandidate,
    ServerExport,
    ServerTraining,
    Trainable,
    TrainedRows,
    TrainingRecord,
    ZoneLoss,
    ZoneScore,
)

KEPT = "runs/wide-s0/checkpoints/step-8"
TRAINING = TrainingRecord(
    input_hash="ab" * 32,
    steps=8,
    processes=1,
    checkpoint=KEPT,
    best_step=8,
    validation_nll=1.25,
    candidates=(CheckpointCandidate(4, 1.5, None), CheckpointCandidate(8, 1.25, KEPT)),
    final_loss=1.125,
    trainable=Trainable.of("lora", {"r": 4, "target_modules": ["q_proj"]}, ("layers.0.q_proj",), 100, 1000),
    rows_compared_with_contract=24,
    train_s=0.5,
    tokens=961,
    peak_memory=MemoryPeak(608579584, 602951680, "VmHWM"),
)
SERVER = replace(
    TRAINING,
    processes=None,
    rows_compared_with_contract=None,
    candidates=(ServerCandidate(8, 1.25, KEPT, "tinker://run/weights/step-8", None, "2026-02-01T00:00:00Z"),),
    peak_memory=MemoryPeak(None, None, "none", "the server does not report it"),
    backend=ServerTraining(
        backend="tinker",
        sdk="0.1",
        asked={"rank": 8, "adam": {"beta1": 0.9}},
        server_owned={"dtype": "decided by the server"},
        rows_sent=96,
        not_had={"telemetry": "gradients stay on the server"},
        exported=ServerExport({"adapter_model.safetensors": "cd" * 32}, ("layers.0.q_proj",), 100, ()),
        differs=(),
    ),
)
SUMMARY = RunSummary(
    input_hash="ef" * 32,
    run_id="wide-s0",
    phase="main",
    condition="wide",
    seed=0,
    lr=0.005,
    exploratory=False,
    failed=None,
    training=TRAINING,
    scoring_memory=None,
    nll={"seen": ZoneLoss(1.5, 70, 937)},
    scores={"style": {"seen": ZoneScore(0.25, 61, 70, {"truncated": 9}, 9, {"asks": RuleCount(13, 70)})}},
    finished="2026-02-01T00:00:00Z",
)
BASELINE = replace(SUMMARY, condition="baseline", seed=None, lr=None, training=None, before_amendment=2, scores={})
MANIFEST = RunManifest(
    run_id="wide-s0",
    phase="main",
    condition="wide",
    seed=0,
    lr=0.005,
    input_hash="12" * 32,
    model=NamedModel("tiny", "float32"),
    method={"method": "lora", "r": 4},
    train={"max_steps": 8},
    data=TrainedRows("feed5eedf00d", ("f00-0", "f00-2")),
    packages={"torch": "2.9"},
    machine=MachineFacts("Linux", "x86_64", "3.11.7", 2, 1, 1, None, "AVX2", 1 << 34, (), None, False),
    created="2026-02-01T00:00:00Z",
    steps=8,
    seeds={"torch": 0},
    git=GitState("ab" * 20, None),
    exploratory=False,
    command="veritune run 'my study/study.yaml'",
    host="bench-1",
)
REMOTE = replace(MANIFEST, model=NamedModel("tiny", "decided by the server", "tinker", "Tiny-1B"), git=None)
FILES: dict[str, Record] = {
    "manifest": MANIFEST,
    "remote manifest": REMOTE,
    "training": TRAINING,
    "server": SERVER,
    "summary": SUMMARY,
    "baseline": BASELINE,
}

Edit = Callable[[dict[str, Any]], object]


def edited(tmp_path: Path, record: Record, edit: Edit) -> Path:
    path = tmp_path / "record.json"
    document = json.loads(record.text())
    edit(document)
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize("record", FILES.values(), ids=FILES)
def test_a_file_is_read_back_as_it_was_written(tmp_path: Path, record: Record) -> None:
    path = tmp_path / "record.json"
    record.save(path)
    read = type(record).load(path)
    assert read == record
    assert read.text() == path.read_text("utf-8") == record.text()


def test_keys_that_do_not_apply_are_left_out_of_the_file() -> None:
    local, server = json.loads(TRAINING.text()), json.loads(SERVER.text())
    assert "backend" not in local and "reason" not in local["peak_memory"] and "expires" not in local["candidates"][0]
    assert server["peak_memory"]["reason"] and server["candidates"][0]["external"] is None
    assert "before_amendment" not in json.loads(SUMMARY.text()) and json.loads(BASELINE.text())["before_amendment"] == 2


@pytest.mark.parametrize("record", FILES.values(), ids=FILES)
def test_every_key_of_a_file_is_needed_and_no_other_is_allowed(tmp_path: Path, record: Record) -> None:
    optional = {"backend", "before_amendment"}  # absent where they do not apply
    for key in json.loads(record.text()):
        if key not in (*optional, "format"):
            path = edited(tmp_path, record, lambda d, key=key: d.pop(key))
            with pytest.raises(FormatError) as caught:
                type(record).load(path)
            assert caught.value.message == f"{path}: {key}: expected this key, but it is missing."
    path = edited(tmp_path, record, lambda d: d.update(stray=1))
    with pytest.raises(FormatError) as caught:
        type(record).load(path)
    kind = type(record).__name__
    assert caught.value.message == f"{path}: stray: expected a key of {kind} in format 2, found an unknown key."


@pytest.mark.parametrize(
    ("record", "edit", "message"),
    [
        (TRAINING, lambda d: d.update(steps="8"), 'steps: expected an integer, found "8".'),
        (TRAINING, lambda d: d.update(steps=True), "steps: expected an integer, found true."),
        (TRAINING, lambda d: d.update(steps=8.5), "steps: expected an integer, found 8.5."),
        (TRAINING, lambda d: d.update(best_step=None), "best_step: expected an integer, found null."),
        (TRAINING, lambda d: d.update(final_loss="low"), 'final_loss: expected a number, found "low".'),
        (TRAINING, lambda d: d.update(final_loss=float("nan")), "final_loss: expected a finite number, found NaN."),
        (TRAINING, lambda d: d.update(input_hash=7), "input_hash: expected text, found 7."),
        (TRAINING, lambda d: d.update(trainable=[]), "trainable: expected an object, found a list."),
        (TRAINING, lambda d: d.update(candidates={}), "candidates: expected a list, found an object."),
        (
            TRAINING,
            lambda d: d["candidates"][1].update(step="8"),
            'candidates[1].step: expected an integer, found "8".',
        ),
        (
            TRAINING,
            lambda d: d["candidates"][1].update(best=True),
            "candidates[1].best: expected a key of TrainingRecord in format 2, found an unknown key.",
        ),
        (
            TRAINING,
            lambda d: d["candidates"][0].pop("validation_nll"),
            "candidates[0].validation_nll: expected this key, but it is missing.",
        ),
        (
            SERVER,
            lambda d: d["candidates"][0].pop("expires"),
            "candidates[0].expires: expected this key, but it is missing.",
        ),
        (
            SERVER,
            lambda d: d["backend"]["exported"].pop("files"),
            "backend.exported.files: expected this key, but it is missing.",
        ),
        (
            SUMMARY,
            lambda d: d["scores"]["style"]["seen"].update(mean="x" * 100),
            f'scores.style.seen.mean: expected a number, found "{"x" * 59}….',
        ),
        (
            SUMMARY,
            lambda d: d["training"]["trainable"].pop("share"),
            "training.trainable.share: expected this key, but it is missing.",
        ),
        (
            SUMMARY,
            lambda d: d["scores"]["style"]["seen"]["rules"]["asks"].update(held=None),
            "scores.style.seen.rules.asks.held: expected an integer, found null.",
        ),
        (MANIFEST, lambda d: d["machine"].pop("cores"), "machine.cores: expected this key, but it is missing."),
        (
            MANIFEST,
            lambda d: d["data"].update(seen_rows=["a", 7]),
            "data.seen_rows[1]: expected text, found 7.",
        ),
        (MANIFEST, lambda d: d["seeds"].update(torch="0"), 'seeds.torch: expected an integer, found "0".'),
        (SUMMARY, lambda d: d.update(exploratory=0), "exploratory: expected true or false, found 0."),
    ],
)
def test_a_wrong_value_is_named_by_its_path(tmp_path: Path, record: Record, edit: Edit, message: str) -> None:
    path = edited(tmp_path, record, edit)
    with pytest.raises(FormatError) as caught:
        type(record).load(path)
    assert caught.value.message == f"{path}: {message}"
    assert caught.value.fix.endswith("delete it and run again.")
    assert "pydantic" not in str(caught.value) and "Input should" not in str(caught.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rules": 2**63}, "parts.rules: expected an object, found 9223372036854775808."),
        ({"rules": {"asks": 1}}, "parts.rules.asks: expected true or false, found 1."),
        ({"ended": []}, "parts.ended: expected text, found a list."),
        ([], "parts: expected an object, found a list."),
    ],
)
def test_the_keys_of_an_open_object_that_readers_rely_on_have_their_types(
    tmp_path: Path, parts: Any, message: str
) -> None:
    path = tmp_path / "style.jsonl"
    score = Score("r", "style", "a", 1.0, parts={"rules": {"asks": True}, "ended": None, "found": [1, {"x": None}]})
    Score.save_all(path, [score])
    assert Score.load_all(path) == [score]
    path.write_text(json.dumps({**json.loads(path.read_text()), "parts": parts}) + "\n")
    with pytest.raises(FormatError) as caught:
        Score.load_all(path)
    assert caught.value.message == f"{path} line 1: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"{", "is damaged"),
        (b'{"steps": 8} {}', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"[" * 100_000, "is damaged"),
        (b"[]", "expected a JSON object, found a list"),
        (b"null", "expected a JSON object, found null"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "training.json"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        TrainingRecord.load(path)
    assert str(path) in caught.value.message and message in caught.value.message


def test_a_file_that_is_not_there_is_the_system_s_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TrainingRecord.load(tmp_path / "training.json")


def test_a_run_without_a_checkpoint_has_no_weights_to_load(tmp_path: Path) -> None:
    assert TRAINING.weights_in(tmp_path) == tmp_path / KEPT
    with pytest.raises(StaleError, match="this run has no checkpoint"):
        replace(TRAINING, checkpoint=None).weights_in(tmp_path)


def test_importing_the_formats_does_not_import_pydantic() -> None:
    code = "import sys, veritune.records; sys.exit('pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

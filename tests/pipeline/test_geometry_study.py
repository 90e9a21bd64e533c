"""`probes: {geometry: ...}`: `run` reads every checkpoint, keeps what it read, and claims name a step."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from veritune import contract
from veritune.config.load import load_study, parse_study
from veritune.decide.probe_records import recorded_quantities
from veritune.errors import ScoreError, StudyError
from veritune.pipeline import run
from veritune.pipeline.ready import make_ready
from veritune.probe.geometry_dose import RECORD
from veritune.progress import Progress
from veritune.store import Store, read_json, write_json
from veritune.train import models

PERSONAS = {
    f"p{i}": f"You are number {i}. You like {word}." for i, word in enumerate(("rope", "salt", "oats", "bells"))
}
ASKED = {
    "layers": [1, 2],
    "methods": ["last_input_token", "response_mean"],
    "personas": PERSONAS,
    "questions": ["amber birch?", "cedar delta?"],
    "max_new_tokens": 2,
    "reference": {"full": "lora"},
}
LORA = {"method": "lora", "target_modules": "all-linear", "r": 4, "lora_alpha": 8}
CLAIMS = [
    {"name": "moves", "kind": "probe", "probe": "geometry.dose.icc.4.last_input_token.full", "op": "<", "threshold": 1},
    {
        "name": "beyond",
        "kind": "probe",
        "probe": "geometry.beyond.m1.4.response_mean.lora.full",
        "op": "<",
        "threshold": 1,
    },
]


def declare(settings: dict[str, Any]) -> None:
    settings["train"] |= {"max_steps": 4, "eval_steps": [2, 4], "learning_rate": 1e-2}
    settings["conditions"] = {"full": {"method": "full"}, "lora": LORA}
    settings |= {"factor": ["method", "target_modules", "r", "lora_alpha"], "seeds": [0, 1, 2], "shared_seeds": True}
    settings |= {"keep": "all", "probes": {"geometry": ASKED}, "claims": CLAIMS}


def test_every_checkpoint_is_read_once_and_claims_name_a_step(study: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study.change(declare)
    outcome = run(study.root, progress=Progress(silent=True))
    record = read_json(study.root / RECORD)["record"]
    assert {(c["condition"], c["seed"], c["step"], c["layer"], c["method"]) for c in record["cells"]} == {
        (condition, seed, step, layer, method)
        for condition in ("full", "lora")
        for seed in range(3)
        for step in (2, 4)
        for layer in (1, 2)
        for method in ASKED["methods"]
    }
    assert record["reference"] == {"full": "lora"}
    point = next(
        p for p in record["dose"]
        if (p["condition"], p["step"], p["method"], p["measure"]) == ("full", 4, "last_input_token", "icc")
    )  # fmt: skip
    own = {
        seed: np.mean([
            c["change"] for c in record["cells"]
            if (c["condition"], c["seed"], c["step"], c["method"], c["measure"]) == ("full", seed, 4, *MEASURED)
        ])
        for seed in range(3)
    }  # fmt: skip
    assert point["change"] == pytest.approx(np.mean(list(own.values()))) and point["reference"] == "lora"
    moves, beyond = outcome.verdicts
    assert moves.estimates[0].value == pytest.approx(point["change"])
    plain = moves.estimates[-1]  # before the correction for two claims
    assert plain.low == pytest.approx(point["low"]) and plain.n_seeds == 3
    assert beyond.estimates[0].value == pytest.approx(
        next(p for p in record["dose"] if p["measure"] == "m1" and p["method"] == "response_mean" and p["step"] == 4)[
            "beyond"
        ]
    )
    rows = list(csv.DictReader((study.root / "probes/geometry/geometry.dose.csv").read_text().splitlines()))
    assert len(rows) == len(record["dose"]) == 2 * 2 * 2 * 2

    # the weights may go: what was read of them stays, nothing is read again, and nothing changes
    for folder in (study.root / "runs").glob("*/checkpoints"):
        shutil.rmtree(folder)
    monkeypatch.setattr(models, "load_base", _refused)
    before = (study.root / RECORD).read_bytes()
    again = run(study.root, progress=Progress(silent=True))
    assert (study.root / RECORD).read_bytes() == before
    assert [v.status for v in again.verdicts] == [v.status for v in outcome.verdicts]

    # a record that lost its cells is named, and no claim is judged on what is left
    write_json(study.root / RECORD, {"input_hash": "x", "record": {"kind": "geometry_cells"}})
    with pytest.raises(ScoreError, match=r"geometry\.json: record\.source: expected this key"):
        recorded_quantities(Store(study.root), sorted(p.name for p in (study.root / "runs").iterdir()))


MEASURED = ("last_input_token", "icc")


def _refused(*_: Any, **__: Any) -> None:
    raise AssertionError("a model was loaded again")


def test_what_is_asked_is_frozen_and_a_study_without_it_has_the_contract_that_it_had(study: Any) -> None:
    plain = contract.settings(load_study(study.root / "study.yaml"))
    assert "probes" not in plain
    study.change(declare)
    frozen = contract.settings(load_study(study.root / "study.yaml"))
    assert set(frozen["probes"]) == {"geometry"} and frozen["probes"]["geometry"]["personas"] == PERSONAS


def _without_probe(s: dict[str, Any]) -> None:
    s["probes"] = {}


def _few(s: dict[str, Any]) -> None:
    s["probes"]["geometry"]["personas"] = {"a": "x", "b": "y", "c": "z"}


def _unknown(s: dict[str, Any]) -> None:
    s["probes"]["geometry"]["reference"] = {"full": "lira"}


def _itself(s: dict[str, Any]) -> None:
    s["probes"]["geometry"]["reference"] = {"full": "full"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without_probe, "declare `probes.geometry`"),
        (_few, "expected at least 4, found 3"),
        (_unknown, "no condition 'lira'"),
        (_itself, "is put beside itself"),
    ],
)
def test_what_could_only_fail_later_is_refused(study: Any, change: Callable[..., None], words: str) -> None:
    study.change(declare)
    settings = json.loads(json.dumps(study.settings()))
    change(settings)
    with pytest.raises(StudyError, match=words):
        parse_study(settings)


def test_a_layer_that_the_model_lacks_and_a_step_that_is_no_number_are_refused_before_training(study: Any) -> None:
    study.change(declare)
    study.change(lambda s: s["probes"]["geometry"].update(layers=[1, 9]))
    with pytest.raises(StudyError, match="no layer 9"):
        make_ready(Store(study.root), load_study(study.root / "study.yaml"), Progress(silent=True))
    study.change(lambda s: s["probes"]["geometry"].update(layers=[1]))
    study.change(lambda s: s.update(keep="best"))
    with pytest.raises(StudyError, match="moves names a step"):
        make_ready(Store(study.root), load_study(study.root / "study.yaml"), Progress(silent=True))
    study.change(lambda s: s.update(keep="all"))
    study.change(lambda s: s["claims"][0].update(probe="geometry.dose.icc.last.last_input_token.full"))
    with pytest.raises(StudyError, match="unknown probe 'geometry"):
        make_ready(Store(study.root), load_study(study.root / "study.yaml"), Progress(silent=True))

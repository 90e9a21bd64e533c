"""Everything that can be refused is refused by `freeze` and `plan`, and an unused package makes no study stale."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import parse_study
from veritune.config.train import Condition
from veritune.errors import MachineError, StudyError
from veritune.pipeline.ready import make_ready, unused_packages
from veritune.progress import Progress
from veritune.store import Store, read_json
from veritune.train import distributed, methods
from veritune.train.models import ModelRef


@pytest.mark.parametrize("command", ["freeze", "plan"])
def test_target_modules_that_run_refuses_are_refused_before_anything_is_written(
    study: Any, forks: Any, command: str
) -> None:
    study.change(lambda s: s["conditions"]["all_layer"].update(target_modules=["q_proj", "quux_proj"]))
    told = forks(command, study.root)
    assert told.rc == 1 and "conditions.all_layer.target_modules: no linear module named 'quux_proj'" in told.err
    assert "names of its modules: down_proj, gate_proj, k_proj" in told.err
    assert not (study.root / "contract.lock.json").exists() and not (study.root / "plan.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers_to_transform": [99]}, "PEFT refuses these settings: "),
        ({"modules_to_save": ["nothing_here"], "target_modules": "attention"}, None),
        ({"init_lora_weights": "pissa"}, None),
    ],
)
def test_settings_of_an_arm_are_tried_on_the_architecture_without_weights(
    options: dict[str, Any], words: str | None, tiny_model: Path
) -> None:
    arm = Condition.model_validate({"method": "lora", "target_modules": "all-linear", "r": 4, **options})
    model = ModelRef("tiny", tiny_model, "float32")
    if words is None:
        methods.check_fits("all_layer", arm, model)
        return
    with pytest.raises(StudyError) as caught:
        methods.check_fits("all_layer", arm, model)
    assert str(caught.value).startswith(f"conditions.all_layer: {words}")


def test_fsdp2_without_accelerators_is_refused_before_anything_is_spent(study: Any, forks: Any) -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator here")
    study.change(lambda s: s["train"].update(devices=2, strategy="fsdp2"))
    for command in ("freeze", "plan", "run"):
        told = forks(command, study.root)
        assert told.rc == 1, command
        assert "train.strategy: fsdp2 shards a model over 2 accelerators, found 0 on this machine" in told.err
    assert not (study.root / "runs").exists() and not (study.root / "contract.lock.json").exists()
    parsed = parse_study(study.settings())
    make_ready(Store(study.root), parsed, Progress(silent=True), elsewhere=True)
    with pytest.raises(MachineError):
        distributed.check_here(parsed)


def test_the_contract_holds_versions_of_the_packages_that_its_arms_run(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make setup` after `make quickstart` installs gguf, bitsandbytes and deepspeed: nothing of it is run here."""
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name in appear else real(name))
    appear: set[str] = set()
    parsed = parse_study(study.settings())
    before = make_ready(Store(study.root), parsed, Progress(silent=True)).facts.packages
    assert {"torch", "transformers", "peft", "numpy", "veritune"} <= set(before)
    appear |= {"gguf", "bitsandbytes", "deepspeed"}
    assert make_ready(Store(study.root), parsed, Progress(silent=True)).facts.packages == before
    appear |= {"torch"}
    assert make_ready(Store(study.root), parsed, Progress(silent=True)).facts.packages["torch"] == "9.9"


def test_which_packages_are_unused_follows_from_the_arms(study: Any) -> None:
    settings = study.settings()
    assert unused_packages(parse_study(settings)) == {"bitsandbytes", "deepspeed", "gguf", "pydantic"}
    full = settings | {"conditions": {"full": {"method": "full"}, "all_layer": {"method": "full"}}, "claims": []}
    assert unused_packages(parse_study(full)) == {"bitsandbytes", "deepspeed", "gguf", "peft", "pydantic"}
    arms = {name: arm | {"method": "qlora"} for name, arm in settings["conditions"].items()}
    assert unused_packages(parse_study(settings | {"conditions": arms})) == {"deepspeed", "gguf", "pydantic"}


def test_each_plan_is_kept_with_its_day_percentiles_and_the_plan_it_supersedes(study: Any, forks: Any) -> None:
    assert forks("plan", study.root).rc == 0
    assert forks("plan", study.root).rc == 0, "the same plan again changes nothing"
    second = forks("plan", study.root, "--discordance", "0.2")
    third = forks("plan", study.root)
    plans = [read_json(path) for path in sorted((study.root / "plans").iterdir())]
    assert [p["number"] for p in plans] == [1, 2, 3] and all(p["made"] for p in plans)
    assert plans[0]["supersedes"] is None
    assert plans[2]["supersedes"] == {key: plans[1][key] for key in ("number", "made", "input_hash")}
    assert f"plan      2, made {plans[1]['made']}; it supersedes plan 1 of {plans[0]['made']}" in second.out
    assert read_json(study.root / "plan.json") == plans[2] and "supersedes plan 2" in third.out
    lengths = plans[0]["data"]["row_tokens"]
    assert set(lengths) == {"n", "mean", "p50", "p90", "p95", "max"}
    assert lengths["n"] == plans[0]["data"]["rows"]["seen"] and lengths["max"] == plans[0]["data"]["longest_row"]
    assert lengths["mean"] * lengths["n"] == pytest.approx(plans[0]["data"]["tokens_per_epoch"])
    assert lengths["p50"] <= lengths["p90"] <= lengths["p95"] <= lengths["max"]
    line = f"tokens    a row: mean {lengths['mean']:,.1f}, p50 {lengths['p50']:,.0f}, p90 {lengths['p90']:,.0f}"
    assert line in second.out
    events = [e for e in Store(study.root).events() if e["event"] == "planned"]
    assert [sorted(e["files"]) for e in events] == [["plan.json", f"plans/000{n}.json"] for n in (1, 2, 3)]


def test_an_edited_plan_is_found_and_a_new_one_leaves_the_seal_and_its_signature(
    finished_copy: Any, forks: Any
) -> None:
    root = finished_copy.root
    sealed = (root / "seal.json").read_bytes()
    (root / "seal.sig").write_bytes(b"of somebody")
    assert forks("plan", root, "--seed-sd", "0.02").rc == 0
    assert (root / "seal.json").read_bytes() == sealed and (root / "seal.sig").read_bytes() == b"of somebody"
    assert forks("verify", root).rc == 0
    kept = root / "plans" / "0001.json"
    kept.write_text(json.dumps({**read_json(kept), "made": "2020-01-01T00:00:00Z"}), encoding="utf-8")
    told = forks("verify", root)
    assert told.rc == 2 and "plans/0001.json was edited" in told.out
    kept.unlink()
    assert "plans/0001.json is missing" in forks("verify", root).out

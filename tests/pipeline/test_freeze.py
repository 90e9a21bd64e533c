"""Freeze and amend as commands; exploring before a freeze; every kind of file that `verify` must find edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.config.load import load_study, parse_flags
from veritune.errors import InputError, StaleError
from veritune.machine import package_versions
from veritune.pipeline import ready as ready_module
from veritune.pipeline.freeze import amend, freeze
from veritune.progress import Progress
from veritune.seal import seal_hash, verify
from veritune.store import Store, hash_of, sha256_file

QUIET = Progress(silent=True)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_setting_is_frozen_with_where_it_came_from(study: Any) -> None:
    found = freeze(study.root, parse_flags(["train.max_steps=3", "seeds=[4]"]), QUIET)
    assert found.sources["train.max_steps"] == "flag" and found.sources["seeds"] == "flag"
    assert found.sources["train.learning_rate"] == "file" and found.sources["train.weight_decay"] == "default"
    assert found.sources["conditions.all_layer.r"] == "file" and found.sources["model.revision"] == "default"
    hashes = ("data_sha256", "template_sha256", "tokenizer_sha256", "rendered_sha256")
    assert all(len(getattr(found.facts, name)) == 64 for name in hashes) and found.facts.model.files
    assert set(found.facts.code) == {"package", "evaluate", "decide"}


def test_flags_stay_in_the_contract_and_need_not_be_given_again(study: Any) -> None:
    freeze(study.root, parse_flags(["train.max_steps=3"]), QUIET)
    assert load_study(study.root).train.max_steps == 3
    assert freeze(study.root, None, QUIET).entries == 1
    with pytest.raises(StaleError, match=r"train\.max_steps: frozen 3, found 5"):
        freeze(study.root, {"train.max_steps": 5}, QUIET)


@pytest.mark.parametrize("text", ["train.max_steps", "=3", "train..x=3", "train.max_steps=[3"])
def test_a_flag_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--set"):
        parse_flags([text])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("package_versions", {"torch": "0.1"}, r"facts\.packages\.torch: frozen .*found '0\.1'"),
        ("code_hashes", {"package": "x", "evaluate": "y", "decide": "z"}, r"facts\.code\.decide: frozen .*found 'z'"),
    ],
)
def test_other_packages_and_other_code_are_refused_by_name_and_can_be_amended(
    study: Any, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, said: str
) -> None:
    from veritune.pipeline.cell import ready_from_contract

    part = {"package_versions": "packages", "code_hashes": "code"}[name]
    found = {**getattr(freeze(study.root, None, QUIET).facts, part), **value}
    monkeypatch.setattr(ready_module, name, lambda **_: found)
    for again in (lambda: freeze(study.root, None, QUIET), lambda: ready_from_contract(study.root, QUIET)):
        with pytest.raises(StaleError, match=said) as caught:
            again()
        assert "amend" in caught.value.fix
    assert amend(study.root, "upgraded", progress=QUIET).entries == 2
    assert freeze(study.root, None, QUIET).entries == 2


def installed(folder: Path, name: str, version: str) -> None:
    """What an installer leaves behind for a package, as `importlib.metadata` finds it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def test_a_package_that_no_arm_uses_may_come_and_go(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(study.root, None, QUIET)
    for name in ("deepspeed", "bitsandbytes", "pydantic", "polars"):
        installed(tmp_path / "site", name, "99.0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert package_versions()["deepspeed"] == "99.0"
    assert freeze(study.root, None, QUIET).entries == 1


def test_another_version_of_a_package_that_an_arm_uses_is_refused(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(study.root, None, QUIET)
    installed(tmp_path / "site", "peft", "99.0")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(StaleError, match=r"facts\.packages\.peft: frozen .*found '99\.0'"):
        freeze(study.root, None, QUIET)


def test_nothing_is_amended_without_a_contract_or_without_a_change(study: Any) -> None:
    with pytest.raises(InputError, match="is not frozen"):
        amend(study.root, "why", progress=QUIET)
    freeze(study.root, None, QUIET)
    with pytest.raises(InputError, match="nothing differs"):
        amend(study.root, "why", progress=QUIET)


def test_budget_and_retention_are_no_part_of_the_contract(study: Any) -> None:
    freeze(study.root, None, QUIET)
    study.change(lambda s: s.update(budget={"hours": 3}, keep="all"))
    assert freeze(study.root, None, QUIET).entries == 1


def test_an_amendment_marks_every_result_that_came_before_it(finished_copy: Any, forks: Any) -> None:
    finished_copy.change(lambda s: s["claims"][2].update(margin=0.3))
    done = forks("amend", finished_copy.root, "--reason", "seen the scores")
    assert done.rc == 0, done.err
    assert "5 runs are marked as made before amendment 1" in done.out
    for path in finished_copy.root.glob("runs/*/summary.json"):
        assert read(path)["before_amendment"] == 1 and read(path)["exploratory"] is False
    assert forks("verify", finished_copy.root).rc == 0
    again = forks("run", finished_copy.root)
    assert again.rc in (0, 2) and "0 cells run" in again.out, again.err
    for verdict in read(finished_copy.root / "verdict.json")["verdicts"]:
        assert any("made before amendment 1" in w for w in verdict["warnings"])
    assert "made before amendment 1" in (finished_copy.root / "report.html").read_text("utf-8")


def test_what_was_made_before_a_freeze_is_exploratory(study: Any, forks: Any) -> None:
    study.change(lambda s: s.update(seeds=[0], conditions={"all_layer": s["conditions"]["all_layer"]}))
    study.change(lambda s: s.update(claims=s["claims"][:1]))
    explored = forks("run", study.root, "--exploratory")
    assert explored.rc in (0, 2), explored.err
    assert not (study.root / "contract.lock.json").exists() and "(exploratory)" in explored.out
    assert all(read(p)["exploratory"] for p in study.root.glob("runs/*/manifest.json"))
    frozen = forks("freeze", study.root)
    assert frozen.rc == 0 and "2 runs were made before the freeze" in frozen.out, frozen.err
    for _ in range(2):
        done = forks("run", study.root)
        assert done.rc in (0, 2), done.err
        (verdict,) = read(study.root / "verdict.json")["verdicts"]
        assert verdict["exploratory"]
        assert any("made before the freeze" in w for w in verdict["warnings"])
        import shutil

        for folder in list((study.root / "runs").iterdir()):  # made again after the freeze, they stay exploratory
            shutil.rmtree(folder)
    refused = forks("run", study.root, "--exploratory")
    assert refused.rc == 1 and "is frozen" in refused.err


# ---------------------------------------------------------------- verify

KINDS = (
    "study.yaml",
    "contract.lock.json",
    "events.jsonl",
    "plan.json",
    "verdict.json",
    "report.html",
    "data/*/rows.parquet",
    "data/*/families.parquet",
    "data/*/split.parquet",
    "data/*/rendered-*.parquet",
    "data/*/manifest.json",
    "audit/split.json",
    "audit/render.json",
    "audit/contamination.json",
    "audit/live-all_layer.json",
    "audit/live-answers.json",
    "runs/all_layer-s0-*/manifest.json",
    "runs/all_layer-s0-*/metrics.jsonl",
    "runs/all_layer-s0-*/telemetry.jsonl",
    "runs/all_layer-s0-*/training.json",
    "runs/all_layer-s0-*/summary.json",
    "runs/all_layer-s0-*/scores/style.jsonl",
    "runs/all_layer-s0-*/scores/style.json",
    "runs/all_layer-s0-*/probes/nll.json",
    "runs/all_layer-s0-*/probes/three_zone.json",
    "runs/all_layer-s0-*/checkpoints/*/adapter_model.safetensors",
    "figures/*",
)


def test_every_kind_of_file_that_was_edited_is_found(finished_copy: Any) -> None:
    root = finished_copy.root
    assert verify(root) == []
    for kind in KINDS:
        path = sorted(root.glob(kind))[0]
        honest = path.read_bytes()
        path.write_bytes(honest[:-2] + bytes([honest[-2] ^ 1]) + honest[-1:])
        found = verify(root)
        assert path.relative_to(root).as_posix() in {f.source for f in found}, kind
        assert "file.edited" in {f.check for f in found}, kind
        path.write_bytes(honest)
    assert verify(root) == []


def test_a_file_edited_together_with_the_seal_is_found_by_the_timeline(finished_copy: Any) -> None:
    root = finished_copy.root
    kept = seal_hash(root)
    (path,) = root.glob("runs/all_layer-s0-*/scores/style.jsonl")
    path.write_text(path.read_text("utf-8") + " ", encoding="utf-8")
    forged = read(root / "seal.json")
    forged["files"][Store(root).relative(path)] = sha256_file(path)
    forged["hash"] = hash_of({k: v for k, v in forged.items() if k != "hash"})
    (root / "seal.json").write_text(json.dumps(forged), encoding="utf-8")
    assert [f.check for f in verify(root)] == ["seal.rewritten", "run.edited"]
    assert "seal.other" in [f.check for f in verify(root, kept[:16])]


def test_the_seal_s_hash_kept_elsewhere_is_compared(finished: Any) -> None:
    assert verify(finished.root, seal_hash(finished.root)[:16]) == []
    assert [f.check for f in verify(finished.root, "0" * 16)] == ["seal.other"]

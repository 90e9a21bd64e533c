"""An adapter that somebody else trained becomes a cell: scored and judged like any other, and marked everywhere."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.errors import GateError, InputError, ModelError
from veritune.pipeline import Outcome, run
from veritune.pipeline.adopt import Adopted, Adoption, adopt, adopted_text
from veritune.pipeline.freeze import freeze
from veritune.progress import Progress
from veritune.records import RunManifest, TrainingRecord
from veritune.store import Store, read_json

pytestmark = pytest.mark.filterwarnings("ignore")


def foreign(model: Path, folder: Path, targets: Any = ("q_proj", "k_proj", "v_proj", "o_proj"), **config: Any) -> Path:
    """An adapter as any trainer on PEFT leaves it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = {"r": 4, "lora_alpha": 16, "target_modules": list(targets), "task_type": "CAUSAL_LM", **config}
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), LoraConfig(**settings))
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.02)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, new_study: Any) -> Path:
    study = new_study(tmp_path_factory.mktemp("adopt") / "study", tiny_model)
    study.change(lambda s: s.update(seeds=[0]))
    freeze(study.root / "study.yaml", {}, Progress(silent=True))
    return study.root


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return foreign(tiny_model, tmp_path_factory.mktemp("given") / "adapter")


@pytest.fixture
def root(frozen: Path, tmp_path: Path) -> Path:
    shutil.copytree(frozen, tmp_path / "study")
    return tmp_path / "study"


def rows_in(root: Path, *zones: str) -> list[dict[str, Any]]:
    from veritune.pipeline.cell import ready_from_contract

    data = ready_from_contract(root, Progress(silent=True)).data
    lines = [json.loads(line) for line in (root / "rows.jsonl").read_text("utf-8").splitlines()]
    return [row for row in lines if data.zone_of[row["id"]] in zones]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, frozen: Path, given: Path) -> tuple[Path, Adopted, Outcome]:
    """The study with an adopted arm and one that it trained, scored and judged: folder, what was adopted, outcome."""
    here = tmp_path_factory.mktemp("judged")
    root = shutil.copytree(frozen, here / "study")
    data = write(here / "train.jsonl", rows_in(root, "seen"))
    state = here / "trainer_state.json"
    log = [
        {"loss": 2.5, "learning_rate": 2e-4, "step": 1},
        {"loss": 1.5, "step": 30},
        {"train_runtime": 61.0, "step": 30},
    ]
    state.write_text(json.dumps({"global_step": 30, "epoch": 3.0, "log_history": log}), "utf-8")
    config = here / "axolotl.yaml"
    config.write_text(
        "learning_rate: 2e-4\nmicro_batch_size: 2\ngradient_accumulation_steps: 1\ntrain_on_inputs: true\n"
    )
    found = adopt(Adoption(root, "attention_only", 0, given, data, state, config))
    return root, found, run(root / "study.yaml", progress=Progress(silent=True))


def test_an_adopted_adapter_is_scored_judged_and_marked_in_every_record(
    judged: tuple[Path, Adopted, Outcome], given: Path
) -> None:
    root, found, outcome = judged
    text = adopted_text(found)
    assert "trained elsewhere (PEFT)" in text and "not checked: the seeds that it was trained from" in text
    assert "its config has learning rate 0.0002, but the study declares 0.005" in text
    assert "its config has loss on prompts True, but the study declares False" in text
    assert found.elsewhere.rows is not None and set(found.elsewhere.rows.by_zone) == {"seen"}
    assert found.elsewhere.rows.held_out == () and found.record.steps == 30 and found.record.final_loss == 1.5
    manifest = RunManifest.load(found.folder / "manifest.json")
    assert manifest.trained_elsewhere is True and manifest.seeds == {} and manifest.data.seen_rows == ()

    verdicts = {v.claim: v for v in outcome.verdicts}
    marked = "A run of attention_only trained elsewhere: what they saw in training was not checked here."
    assert verdicts["differ"].sentence.endswith(marked)
    assert any("was trained elsewhere; not checked:" in w for w in verdicts["differ"].warnings)
    assert "trained elsewhere" not in verdicts["learns"].sentence
    store = Store(root)
    assert read_json(store.verdict_file)["standing"][found.run_id]["trained_elsewhere"]
    assert TrainingRecord.load(found.folder / "training.json").elsewhere == found.elsewhere
    summary = read_json(found.folder / "summary.json")
    assert summary["scores"]["style"] and summary["lr"] is None  # not the study's rate: another trainer's
    (event,) = [e for e in store.events() if e["event"] == "adopted"]
    assert event["run"] == found.run_id and "adapter_model.safetensors" in event["files"]
    with pytest.raises(InputError, match="already exists"):
        adopt(Adoption(root, "attention_only", 0, given))


def test_adopted_weights_are_released_and_marked_all_the_way(
    judged: tuple[Path, Adopted, Outcome], tmp_path: Path
) -> None:
    """Merge parity, gate, bundle, promotion, rollback: every record and text about them says what was not checked."""
    root, found, _ = judged
    root = shutil.copytree(root, tmp_path / "study")
    unchecked = found.elsewhere.not_checked
    policy = tmp_path / "policy.yaml"
    policy.write_text("condition: attention_only\ngates: [merge]\n", "utf-8")
    named = [root, "--policy", policy]
    code, text = said(
        "merge-parity",
        root,
        "--condition",
        "attention_only",
        "--out",
        tmp_path / "merged",
        "--rows",
        4,
        "--dtype",
        "float32",
    )
    assert code == 0, text
    code, text = said("gate", *named)
    assert code == 0 and "release gate: passed" in text, text
    assert f"trained elsewhere; not checked: {'; '.join(unchecked)}" in text
    code, text = said("gate", *named, "--markdown", "-", "--github")
    assert code == 0 and "**Trained elsewhere; not checked:** " in text and "::warning title=release::trained" in text
    code, text = said("gate", *named, "--json")
    assert json.loads(text)["trained_elsewhere"] == list(unchecked)

    (other,) = (p.name for p in Store(root).runs.glob("all_layer-s0*"))
    ungated = shutil.copytree(judged[0], tmp_path / "ungated")  # a gate record is of one run's weights
    for study, run_id, out in ((root, found.run_id, "adopted"), (ungated, other, "own")):
        code, text = said("bundle", study, "--run", run_id, "--out", tmp_path / out)
        assert code == 0, text
    assert read_json(tmp_path / "adopted" / "manifest.json")["trained_elsewhere"] == list(unchecked)
    assert "trained_elsewhere" not in read_json(tmp_path / "own" / "manifest.json")
    card = (tmp_path / "adopted" / "README.md").read_text("utf-8")
    assert "These weights were trained elsewhere and adopted by the study. Not checked: " in card
    (index,) = yaml.safe_load(card.split("---")[1])["model-index"]
    assert all("weights trained elsewhere" in r["source"]["name"] for r in index["results"]) and index["results"]
    own = (tmp_path / "own" / "README.md").read_text("utf-8")
    assert "These weights were trained elsewhere" not in own and "weights trained elsewhere" not in own
    assert "&lt;!--" not in card + own, "the marks of references are no markup of a stranger"
    assert said("verify", tmp_path / "adopted")[0] == 0

    registry = ["--registry", tmp_path / "registry"]
    for out in ("adopted", "own"):
        assert said("promote", tmp_path / out, "--to", "staging", *registry)[0] == 0
    code, text = said("rollback", *registry, "--channel", "staging")
    assert code == 0, text
    code, text = said("history", *registry, "--channel", "staging", "--json")
    assert [e["run_id"] for e in json.loads(text)] == [found.run_id, other, found.run_id]
    code, text = said("pull", *registry, "--channel", "staging", "--out", tmp_path / "back")
    assert code == 0 and read_json(tmp_path / "back" / "manifest.json")["trained_elsewhere"] == list(unchecked)


def test_exports_of_adopted_weights_say_so(judged: tuple[Path, Adopted, Outcome], tmp_path: Path) -> None:
    root, found, _ = judged
    forms = {"inspect": "eval", "every-eval-ever": "json"}
    for form, ending in forms.items():
        code, text = said("writeup", "export", "items.style", "--study", root, "--as", form, "--out", tmp_path / form)
        assert code == 0, text
        files = sorted((tmp_path / form).glob(f"*.{ending}"))
        whole = [zipfile.ZipFile(f).read("header.json").decode() if ending == "eval" else f.read_text() for f in files]
        marked = [text for text in whole if "trained_elsewhere" in text]
        assert len(whole) == 3 and len(marked) == 1 and "attention_only" in marked[0]
        assert found.elsewhere.not_checked[0] in marked[0]
    code, text = said("writeup", "draft", root)
    assert code == 0 and "trained elsewhere" in text
    code, text = said("writeup", "export", "table.scores.style", "--study", root, "--as", "model-index")
    sources = {m["name"]: {r["source"]["name"] for r in m["results"]} for m in yaml.safe_load(text)["model-index"]}
    assert code == 0 and all(
        ("elsewhere" in name) is ("attention_only" in arm) for arm in sources for name in sources[arm]
    )


def said(*words: object) -> tuple[int, str]:
    """Exit status and output of a command; an error's text where it raised one."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, done.output or str(done.exception)


def test_trained_strangers_are_found_and_named(root: Path, given: Path, tmp_path: Path) -> None:
    strangers = rows_in(root, "stranger")
    mixed = write(tmp_path / "train.jsonl", [*rows_in(root, "seen"), *strangers[:2]])
    asked = Adoption(root, "attention_only", 0, given, mixed)
    with pytest.raises(GateError, match="2 of its rows are equal to held-out rows of the study") as told:
        adopt(asked)
    assert all(row["id"] in str(told.value) for row in strangers[:2])
    assert not (Store(root).runs / "nothing").exists() and not list(
        Store(root).runs.glob("attention_only*/training.json")
    )
    found = adopt(replace(asked, despite="the leak is what we measure"))
    assert len(found.elsewhere.rows.held_out) == 2 and found.elsewhere.despite == "the leak is what we measure"
    assert "trained on 2 held-out rows" in adopted_text(found)


def test_without_its_rows_it_is_said_that_they_were_not_checked(root: Path, given: Path) -> None:
    found = adopt(Adoption(root, "attention_only", 0, given))
    assert found.elsewhere.not_checked[0] == "whether the rows it was trained on are those of the study's seen zone"
    assert "the number of its training steps (no trainer_state.json)" in found.elsewhere.not_checked
    assert found.record.steps is None and found.record.final_loss is None and found.elsewhere.rows is None


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"targets": ("q_proj", "v_proj")}, "is not what attention_only declares: it lacks"),
        ({"targets": ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")}, "it adapts .*up_proj"),
        ({"r": 8}, "has rank 8 and scale 2, but 4 and 4 are declared"),
        ({"lora_alpha": 8}, "has rank 4 and scale 2, but 4 and 4 are declared"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "it also changes lm_head.weight"),
    ],
)
def test_an_adapter_that_is_not_the_declared_arm_is_refused(
    root: Path, tiny_model: Path, tmp_path: Path, adapter: dict[str, Any], message: str
) -> None:
    other = foreign(tiny_model, tmp_path / "other", **adapter)
    with pytest.raises(ModelError, match=message):
        adopt(Adoption(root, "attention_only", 0, other))
    assert not list(Store(root).runs.glob("*")) if Store(root).runs.exists() else True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": "none"}, "--condition: expected one of attention_only, all_layer, found 'none'"),
        ({"seed": 7}, "--seed: expected one of 0, found 7"),
        ({"trainer_state": "bad.json"}, "expected global_step and log_history"),
        ({"config": "bad.json"}, ": expected known settings, found"),
        ({"weights": "nowhere"}, "expected an adapter's folder, found nothing"),
    ],
)
def test_what_is_named_wrongly_is_one_line(
    root: Path, given: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "bad.json").write_text('{"a": 1}', "utf-8")
    paths = {k: tmp_path / v if isinstance(v, str) and k != "condition" else v for k, v in change.items()}
    with pytest.raises(InputError, match=message):
        adopt(replace(Adoption(root, "attention_only", 0, given), **paths))


def test_a_study_that_is_not_frozen_adopts_nothing(study: Any, given: Path) -> None:
    with pytest.raises(InputError, match="is not frozen"):
        adopt(Adoption(study.root, "attention_only", 0, given))

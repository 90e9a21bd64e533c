"""A bundle is whole, reproducible and honest; what does not belong together is refused when it is packed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import GateError, InputError, ModelError, StaleError
from veritune.records import BundledWeights, RunSummary
from veritune.release.bundle.build import BundleSource, make_bundle
from veritune.release.bundle.card import plain
from veritune.release.bundle.verify import read_manifest, verify_bundle
from veritune.release.parity import golden
from veritune.train.models import precision, quiet_transformers

_spec = importlib.util.spec_from_file_location("bundles", Path(__file__).with_name("bundles.py"))
assert _spec and _spec.loader
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)
run_of = bundles.run_of

SECRETS = {
    "HF_TOKEN": "hf_planted0secret1",
    "AWS_SECRET_ACCESS_KEY": "aws/planted0secret2",
    "OPENAI_API_KEY": "sk-planted0secret3",
    "WANDB_API_KEY": "planted0secret4",
}


def digests(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_same_inputs_give_the_same_bytes_and_no_secret_of_the_environment(
    gated: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    make_bundle(BundleSource(gated, run_of(gated, "all_layer"), prompts=3), tmp_path / "again")
    assert digests(tmp_path / "again") == digests(made)
    whole = b"".join(digests(tmp_path / "again").values())
    assert [name for name, value in SECRETS.items() if value.encode() in whole] == []


def test_a_bundle_holds_every_part(made: Path) -> None:
    names = set(read_manifest(made).files)
    wanted = {"adapter/adapter_model.safetensors", "tokenizer/chat_template.jinja", "tokenizer/tokenizer.json"}
    wanted |= {"generation_config.json", "golden.json", "README.md", "sbom.cdx.json", "licences.json", "datasheet.md"}
    wanted |= {f"evidence/{n}" for n in ("contract.lock.json", "verdict.json", "seal.json", "release/gates.jsonl")}
    assert wanted <= names
    assert any(n.startswith("evidence/runs/all_layer") and n.endswith("scores/style.jsonl") for n in names)
    assert [n for n in names if n.endswith((".bin", ".pt", ".py"))] == []


def test_the_bill_of_materials_is_valid_cyclonedx(made: Path) -> None:
    validation = pytest.importorskip("cyclonedx.validation.json", reason="needs cyclonedx-python-lib")
    from cyclonedx.schema import SchemaVersion

    text = (made / "sbom.cdx.json").read_text("utf-8")
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = json.loads(text)
    broken["metadata"]["component"]["type"] = "spaceship"
    assert validation.JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None
    bill = json.loads(text)
    assert bill["metadata"]["component"]["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert "pkg:pypi/torch@" in text


def test_the_card_has_valid_metadata_and_says_what_is_unknown(made: Path) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard.load(made / "README.md")
    metadata = card.data.to_dict()
    (index,) = metadata.pop("model-index")
    assert metadata == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": ["veritune", "lora"]}
    shown = {result["dataset"]["split"]: result["metrics"][0]["value"] for result in index["results"]}
    summary = RunSummary.load(next((made / "evidence" / "runs").glob("all_layer-s0-*")) / "summary.json")
    assert index["name"] == "tiny all_layer" and set(shown) == set(summary.scores["style"])
    assert shown == {zone: pytest.approx(found.mean, abs=5e-4) for zone, found in summary.scores["style"].items()}
    assert "This release: not stated" in card.text


def test_a_number_that_the_records_do_not_carry_stops_the_bundle(
    gated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from veritune.release.bundle import card

    real = card.card_sections
    monkeypatch.setattr(card, "card_sections", lambda *a: real(*a) + "\n\nall_layer scores 0.777 on stranger items.")
    with pytest.raises(GateError, match=r"model card.*0\.777"):
        make_bundle(BundleSource(gated, run_of(gated, "all_layer"), prompts=1), tmp_path / "out")
    assert not any(tmp_path.iterdir())


def test_hostile_text_in_a_card_is_plain() -> None:
    assert "<" not in plain("<script>alert(1)</script>") and "](" not in plain("[x](javascript:alert(1))")


def test_a_hostile_study_cannot_put_markup_into_its_card(
    gated: Path, monkeypatch: pytest.MonkeyPatch, made: Path
) -> None:
    from markdown_it import MarkdownIt

    from veritune.release.bundle import card
    from veritune.store import Store

    real = card.card_sections
    evil = "\n\n<script>alert()</script><img src=x onerror=alert()> <!-- <b> --> <!--v:x--><i>"
    monkeypatch.setattr(card, "card_sections", lambda *a: real(*a) + evil)
    monkeypatch.setattr(card, "NOT_FOR_CARDS", (*card.NOT_FOR_CARDS, "number.", "speech.", "caption.", "card."))
    licences = {"release": None, "base": None, "data": None}
    text = card.model_card(Store(gated), replace(read_manifest(made), name=evil), licences)
    html = MarkdownIt("commonmark", {"html": True}).render(text.split("---\n", 2)[2])
    assert not any(tag in html for tag in ("<script", "<img", "<i>", "<b>"))


# ---------------------------------------------------------------- refused when packed


def test_another_base_is_refused(gated: Path, tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_model, tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file({k: v * 1.01 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    with pytest.raises(GateError, match="trained for base"):
        make_bundle(BundleSource(gated, run_of(gated, "all_layer"), model=tmp_path / "base"), tmp_path / "out")


def test_an_adapter_of_no_run_is_refused_and_a_copy_of_one_is_taken(gated: Path, other: Path, tmp_path: Path) -> None:
    (adapter,) = (gated / "runs" / run_of(gated, "all_layer")).glob("checkpoints/step-*")
    shutil.copytree(adapter, tmp_path / "copy")
    found = make_bundle(BundleSource(gated, adapter=tmp_path / "copy", prompts=1), tmp_path / "out")
    assert read_manifest(found.folder).run_id == run_of(gated, "all_layer")
    assert found.gate == "passed"
    spoiled = tmp_path / "copy" / "adapter_config.json"
    spoiled.write_text(spoiled.read_text().replace('"lora_alpha": 16.0', '"lora_alpha": 32.0'))
    with pytest.raises(
        GateError,
        match="does not hold the weights of any run of this study, so the evidence would be of another model",
    ):
        make_bundle(BundleSource(gated, adapter=tmp_path / "copy"), tmp_path / "out2")


def test_an_edited_record_is_refused(finished_copy: Any, tmp_path: Path) -> None:
    root = finished_copy.root
    (scores,) = (root / "runs" / run_of(root, "all_layer") / "scores").glob("*.jsonl")
    scores.write_text(scores.read_text().replace('"value":0.', '"value":1.'), encoding="utf-8")
    with pytest.raises(StaleError, match="edited after the study was sealed"):
        make_bundle(BundleSource(root, run_of(root, "all_layer")), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": "evil.Tok"}}, "names code to import"),
        ("added_tokens.json", None, "pickle or an archive"),
    ],
)
def test_a_base_that_brings_code_is_refused(
    gated: Path, tiny_model: Path, tmp_path: Path, name: str, content: Any, match: str
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    if content is None:
        (base / name).write_bytes(b"\x80\x04\x95evil")
    else:
        (base / name).write_text(json.dumps({**json.loads((base / name).read_text()), **content}))
    with pytest.raises(ModelError, match=match):
        make_bundle(BundleSource(gated, run_of(gated, "all_layer"), model=base), tmp_path / "out")


def test_nothing_is_written_over(gated: Path, made: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        make_bundle(BundleSource(gated, run_of(gated, "all_layer")), made)


def test_an_unknown_run_names_those_there_are(gated: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all_layer-s0"):
        make_bundle(BundleSource(gated, "nope"), tmp_path / "out")


# ---------------------------------------------------------------- golden outputs


def test_golden_outputs_are_reproduced_and_are_what_the_run_answers(made: Path, tiny_model: Path) -> None:
    manifest = read_manifest(made)
    found = golden.reproduce(made, manifest, tiny_model)
    recorded = json.loads((made / "golden.json").read_text())
    assert found.findings == () and found.prompts == 3
    assert found.tokens == sum(len(i["prompt_ids"]) + len(i["token_ids"]) for i in recorded["items"])


def test_the_golden_outputs_are_the_adapters_and_not_the_bases(made: Path, tiny_model: Path, bundle: Path) -> None:
    """With the adapter's second factors at zero the model is the base, and some answer must differ."""
    from safetensors.torch import load_file, save_file

    path = bundle / "adapter" / "adapter_model.safetensors"
    save_file({k: v * 0 if "lora_B" in k else v for k, v in load_file(path).items()}, path)
    found = golden.reproduce(bundle, read_manifest(made), tiny_model)
    assert found.findings and "differs from token" in found.findings[0].message


def test_merged_weights_are_served_and_belong(gated: Path, tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    (adapter,) = (gated / "runs" / run_of(gated, "all_layer")).glob("checkpoints/step-*")
    with quiet_transformers():
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        merged = PeftModel.from_pretrained(base, adapter).merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
    found = make_bundle(
        BundleSource(gated, run_of(gated, "all_layer"), merged=tmp_path / "merged", prompts=2), tmp_path / "o"
    )
    manifest = read_manifest(found.folder)
    assert manifest.weights == BundledWeights("merged", "model")
    assert found.gate == "expired", "a gate record of the adapter says nothing about merged weights"
    assert golden.reproduce(found.folder, manifest).findings == ()
    auto = replace(manifest, base=replace(manifest.base, dtype="auto"))
    model, _ = golden.load_released(found.folder, auto)
    assert str(model.dtype).removeprefix("torch.") == precision("auto"), "auto is a precision once it is loaded"
    path = found.folder / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert [f.check for f in verify_bundle(found.folder).findings] == ["bundle.changed"]

"""Finding and loading a base model: what is refused, and what a killed conversion leaves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from veritune.config.train import Model
from veritune.errors import ModelError
from veritune.train import models
from veritune.train.models import ModelRef, context_length, load_base, load_tokenizer, resolve, weight_hashes


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def ref(folder: Path, dtype: str = "float32") -> ModelRef:
    return ModelRef("tiny", folder, dtype)


def refused(folder: Path, root: Path) -> str:
    with pytest.raises(ModelError) as caught:
        resolve(Model(path=str(folder)), root)
    return str(caught.value)


def test_a_relative_path_is_relative_to_the_study(folder: Path, tmp_path: Path) -> None:
    assert resolve(Model(path="model"), tmp_path).path == tmp_path / "model"


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no config.json in it" in refused(tmp_path / "empty", tmp_path)
    assert "nothing there" in refused(tmp_path / "nowhere", tmp_path)
    (tmp_path / "file").write_text("x")
    assert "no config.json" in refused(tmp_path / "file", tmp_path)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (pytorch_model.bin), which can run code" in refused(folder, tmp_path)


def test_a_hub_id_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="'nobody/nothing-at-all' is not a folder here, and it could not be fetched from the hub"
    ):
        resolve(Model(path="nobody/nothing-at-all"), tmp_path)


def test_a_model_with_a_missing_weight_is_refused_and_not_filled_at_random(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of the model's weights are in no file, first model\.layers\.1\.mlp\.up_"):
        load_base(ref(folder))


def test_a_damaged_weight_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_base(ref(folder))


def test_a_config_of_another_shape_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(ModelError, match="the model cannot be loaded"):
        load_base(ref(folder))


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"model_type": "nonsense"}'])
def test_a_broken_config_is_named(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r": expected a usable config.json \("):
        context_length(ref(folder))


def test_a_tokenizer_without_a_chat_template_is_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        load_tokenizer(ref(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match=r": expected a usable tokenizer \("):
        load_tokenizer(ref(folder))


def test_a_missing_pad_token_becomes_the_end_token(folder: Path) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(ref(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_comes_in_the_asked_precision_and_in_evaluation_mode(folder: Path, dtype: str) -> None:
    model = load_base(ref(folder, dtype))
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert not model.training


def test_the_hashes_change_with_a_weight_and_with_the_config(folder: Path) -> None:
    before = weight_hashes(ref(folder))
    assert set(before) == {"config.json", "model.safetensors"}
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    after = weight_hashes(ref(folder))
    assert after["model.safetensors"] != before["model.safetensors"]
    assert after["config.json"] == before["config.json"]


def test_the_context_is_the_config_s(folder: Path) -> None:
    assert context_length(ref(folder)) == 256


def test_a_conversion_that_fails_leaves_nothing_to_believe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def half(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("killed here")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", half)
    with pytest.raises(RuntimeError, match="killed here"):
        models._convert(tmp_path / "x.gguf", tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_the_real_model_s_tokenizer_gives_texts_back(smollm2: Path) -> None:
    tokenizer = load_tokenizer(ModelRef("SmolLM2", smollm2, "bfloat16"))
    text = "Subject: Löschwasser 3.20 €\n\nWill you?  Tide over,\nMara"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
    assert tokenizer.pad_token_id is not None
    assert context_length(ModelRef("SmolLM2", smollm2, "bfloat16")) == 8192

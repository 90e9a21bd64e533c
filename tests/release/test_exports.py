"""An export is the merged model: shards by their index, a GGUF file by its tensors, settings, tokenizer and template.

The GGUF files are written here with llama.cpp's own package, the rows of queries and keys put in its order by hand.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from veritune.errors import InputError, MachineError, ModelError
from veritune.records import Rendered
from veritune.release.parity.export import INDEX, check_shards
from veritune.release.parity.gguf_file import check_file, convert, error_limit
from veritune.release.parity.gguf_run import missing_runtime, run_file
from veritune.release.parity.merge_outputs import MergeOptions
from veritune.train.models import ModelRef, load_base

ROWS = [Rendered(f"r{i}", tuple(range(5 + i, 25 + i)), (*[-100] * 8, *range(13 + i, 25 + i))) for i in range(4)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path]:
    """A base in bfloat16, and a merged model: a low-rank change on every query, key and down projection."""
    root = tmp_path_factory.mktemp("exports")
    load_base(ModelRef("tiny", tiny_model, "bfloat16")).save_pretrained(root / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_model / name, root / "base" / name)
    shutil.copytree(root / "base", root / "merged")
    weights = load_file(root / "merged" / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for key in [k for k in weights if k.endswith(("q_proj.weight", "k_proj.weight", "down_proj.weight"))]:
        rows, columns = weights[key].shape
        change = torch.randn(rows, 2, generator=draw) @ torch.randn(2, columns, generator=draw) * 0.0013
        weights[key] = (weights[key].float() + change).bfloat16()
    save_file(weights, root / "merged" / "model.safetensors", metadata={"format": "pt"})
    return root / "base", root / "merged"


# ---------------------------------------------------------------- shards


@pytest.fixture
def shards(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    merged = folders[1]
    load_base(ModelRef("m", merged, "bfloat16")).save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    return tmp_path / "shards", merged


def test_shards_of_the_merged_model_pass(shards: tuple[Path, Path]) -> None:
    found = check_shards(*shards)
    assert found.status == "passed" and found.findings == ()
    assert found.numbers["tensors"] == len(load_file(shards[1] / "model.safetensors"))


def change_shard(folder: Path, key: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / json.loads((folder / INDEX).read_text())["weight_map"][key]
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("check", "damage"),
    [
        ("shards.values", lambda f: change_shard(f, NORM, lambda w: w[NORM].mul_(1.01))),
        ("shards.tensor_missing", lambda f: change_shard(f, NORM, lambda w: w.pop(NORM))),
        ("shards.tensor_unnamed", lambda f: change_shard(f, NORM, lambda w: w.update({"stray": torch.ones(2)}))),
        ("shards.file_missing", lambda f: sorted(f.glob("*.safetensors"))[0].unlink()),
        ("shards.file_unnamed", lambda f: save_file({"stray": torch.ones(2)}, f / "more.safetensors")),
        ("shards.no_index", lambda f: (f / INDEX).unlink()),
        ("shards.size", lambda f: edit_index(f, lambda i: i["metadata"].update(total_size=7))),
        ("shards.tensor_twice", lambda f: save_file({NORM: torch.ones(64)}, f / "zz.safetensors")),
    ],
)
def test_each_fault_of_shards_is_named(shards: tuple[Path, Path], check: str, damage: Callable[[Path], Any]) -> None:
    damage(shards[0])
    found = check_shards(*shards)
    assert found.status == "failed" and check in {f.check for f in found.findings}


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def test_an_index_that_is_none_is_refused(shards: tuple[Path, Path]) -> None:
    (shards[0] / INDEX).write_text("[]")
    with pytest.raises(ModelError, match=r": expected a usable index \("):
        check_shards(*shards)
    with pytest.raises(ModelError, match="no safetensors"):
        check_shards(shards[0].parent)


# ---------------------------------------------------------------- GGUF


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Row 2i of a head is row i of its first half, row 2i + 1 row i of its second half."""
    size = rows.shape[0] // heads
    order = [h * size + (i // 2) + (i % 2) * (size // 2) for h in range(heads) for i in range(size)]
    return rows[order]


def write_gguf(path: Path, merged: Path, kind: str = "BF16", **given: Any) -> Path:
    """The merged model as llama.cpp's converter writes it; `given` replaces fields, `skip` and `order` spoil it."""
    config = json.loads((merged / "config.json").read_text())
    tokenizer = json.loads((merged / "tokenizer.json").read_text())
    ids = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
    tokens = given.get("tokens", [t for t, _ in sorted(ids.items(), key=lambda item: item[1])])
    writer = gguf.GGUFWriter(path, given.get("architecture", "llama"))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(given.get("theta", config["rope_parameters"]["rope_theta"]))
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t.startswith("<|") else 1 for t in tokens])
    writer.add_token_merges(given.get("merges", [" ".join(m) for m in tokenizer["model"]["merges"]]))
    writer.add_eos_token_id(given.get("eos", 2))
    writer.add_add_bos_token(given.get("add_bos", False))
    writer.add_chat_template(given.get("template", (merged / "chat_template.jinja").read_text()))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    quant = gguf.GGMLQuantizationType[kind]
    for key, weight in load_file(merged / "model.safetensors").items():
        name = names.get_name(key, try_suffixes=(".weight",))
        if name == given.get("skip"):
            continue
        values = weight.float()
        if key.endswith(("q_proj.weight", "k_proj.weight")) and given.get("order", True):
            values = in_pairs(values, config["num_attention_heads" if "q_proj" in key else "num_key_value_heads"])
        array = values.numpy()
        if array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["BF16", "F32", "Q8_0", "Q4_0"])
def test_a_right_file_has_no_fault(folders: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    base, merged = folders
    found = check_file(write_gguf(tmp_path / "m.gguf", merged, kind), merged, base)
    assert found.status == "passed" and found.findings == ()
    error = found.numbers["largest_error"]
    assert error == 0.0 if kind in ("BF16", "F32") else 0.0 < error < error_limit(kind)


@pytest.mark.parametrize(
    ("check", "spoilt"),
    [
        ("gguf.not_interleaved", {"order": False}),
        ("gguf.tensor_missing", {"skip": "blk.1.ffn_down.weight"}),
        ("gguf.eos", {"eos": 0}),
        ("gguf.add_bos", {"add_bos": True}),
        ("gguf.template", {"template": "{{ messages }}"}),
        ("gguf.merges", {"merges": ["a b"]}),
        ("gguf.vocabulary", {"tokens": [f"t{i}" for i in range(384)]}),
        ("gguf.setting", {"theta": 500000.0}),
    ],
)
def test_each_fault_of_a_file_is_named(
    folders: tuple[Path, Path], tmp_path: Path, check: str, spoilt: dict[str, Any]
) -> None:
    base, merged = folders
    found = check_file(write_gguf(tmp_path / "m.gguf", merged, **spoilt), merged, base)
    assert found.status == "failed" and {f.check for f in found.findings} == {check}


@pytest.mark.parametrize("kind", ["BF16", "Q8_0", "Q4_0"])
def test_a_file_of_other_weights_is_named_in_any_type(folders: tuple[Path, Path], tmp_path: Path, kind: str) -> None:
    """In 4 bits the whole change is smaller than what quantising leaves, and still told from it."""
    base, merged = folders
    found = check_file(write_gguf(tmp_path / "b.gguf", base, kind), merged, base)
    (fault,) = [f for f in found.findings if f.check == "gguf.not_applied"]
    assert len(fault.evidence["weights"]) == 6
    if kind == "Q4_0":
        assert max(fault.evidence["error"]) < error_limit(kind)
    twice = shutil.copytree(merged, tmp_path / "twice")
    old, new = (load_file(f / "model.safetensors") for f in (base, merged))
    doubled = {k: (2 * new[k].float() - old[k].float()).bfloat16() for k in new}
    save_file(doubled, twice / "model.safetensors", metadata={"format": "pt"})
    found = check_file(write_gguf(tmp_path / "t.gguf", twice, kind), merged, base)
    assert "gguf.applied_twice" in {f.check for f in found.findings}


def test_a_single_changed_value_of_an_unquantised_file_is_found(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, merged = folders
    other = shutil.copytree(merged, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 5] += 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    found = check_file(write_gguf(tmp_path / "m.gguf", other), merged, base)
    (fault,) = found.findings
    assert fault.check == "gguf.other_values" and fault.evidence["weights"] == ["blk.0.ffn_up.weight"]


def test_an_architecture_whose_layout_is_not_known_is_never_passed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, merged = folders
    found = check_file(write_gguf(tmp_path / "m.gguf", merged, architecture="chatglm"), merged, base)
    assert found.status == "undecided" and {f.check for f in found.findings} == {"gguf.unknown_layout"}
    with pytest.raises(ModelError, match="unknown to gguf"):
        check_file(write_gguf(tmp_path / "x.gguf", merged, architecture="nonesuch"), merged, base)


def test_what_is_no_gguf_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", folders[1])
    for size in (0, 3, 100, 5000):
        (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:size])
        with pytest.raises(ModelError, match="cannot be read as GGUF"):
            check_file(tmp_path / "cut.gguf", folders[1])
    with pytest.raises(InputError, match="no such file"):
        check_file(tmp_path / "none.gguf", folders[1])


def test_a_converter_that_fails_says_why(folders: tuple[Path, Path], tmp_path: Path) -> None:
    script = tmp_path / "convert.py"
    script.write_text("raise SystemExit('no sentencepiece here')")
    with pytest.raises(MachineError, match="exit code 1: no sentencepiece here"):
        convert(script, folders[1], tmp_path / "x.gguf", "bf16")
    with pytest.raises(InputError, match="no such file"):
        convert(tmp_path / "none.py", folders[1], tmp_path / "x.gguf", "bf16")
    with pytest.raises(InputError, match="expected one of f32"):
        convert(script, folders[1], tmp_path / "x.gguf", "q3")


def test_a_file_that_was_not_run_is_never_passed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    base, merged = folders
    path = write_gguf(tmp_path / "m.gguf", merged)
    found = run_file(check_file(path, merged, base), path, ModelRef("m", merged, "bfloat16"), [], MergeOptions())
    assert found.status == "undecided" and "was not run" in found.message


@pytest.mark.skipif(bool(missing_runtime()), reason="needs llama-cpp-python, which compiles for minutes")
@pytest.mark.parametrize(("kind", "status"), [("F32", "passed"), ("Q8_0", "undecided")])
def test_what_a_file_answers_is_compared(folders: tuple[Path, Path], tmp_path: Path, kind: str, status: str) -> None:
    base, merged = folders
    path = write_gguf(tmp_path / "m.gguf", merged, kind)
    options = MergeOptions(max_new_tokens=6)
    ref = ModelRef("m", merged, "bfloat16")
    found = run_file(check_file(path, merged, base), path, ref, ROWS, options)
    assert found.status == status, found.message
    wrong = write_gguf(tmp_path / "b.gguf", base, kind)
    other = run_file(replace(check_file(wrong, merged), status="passed"), wrong, ref, ROWS, options)
    assert other.numbers["outputs"]["kl_mean"] > 5 * found.numbers["outputs"]["kl_mean"]
    assert other.status == ("failed" if kind == "F32" else "undecided")


@pytest.mark.skipif("VERITUNE_CONVERTER" not in os.environ, reason="needs llama.cpp: set VERITUNE_CONVERTER")
def test_the_reference_converter_s_file_is_the_model(smollm2: Path, tmp_path: Path) -> None:
    path = convert(Path(os.environ["VERITUNE_CONVERTER"]), smollm2, tmp_path / "m.gguf", "bf16")
    found = check_file(path, smollm2)
    assert found.status == "passed" and found.numbers["largest_error"] == 0.0
    assert np.array_equal(list(found.numbers["types"]), ["BF16", "F32"])

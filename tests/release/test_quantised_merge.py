"""Adapters trained on a quantised base: the right merge passes, each fault keeps its name, the loss is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'veritune[qlora]'")

from veritune.errors import GateError, InputError
from veritune.records import Rendered
from veritune.release.parity import quantised_merge as qm
from veritune.release.parity.merge import check_weights, merge_adapter
from veritune.release.parity.merge_command import MergeRequest, merge_command
from veritune.release.parity.merge_outputs import MergeOptions
from veritune.train.models import ModelRef, load_base, load_tokenizer
from veritune.train.quantised import in_bits

KINDS = ("nf4", "int8")
ROWS = [Rendered(f"r{i}", tuple(range(5 + i, 25 + i)), (*[-100] * 8, *range(13 + i, 25 + i))) for i in range(6)]
OPTIONS = MergeOptions(max_new_tokens=4, draws=2)
pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")


class Made:
    """A base in bits, what it stands for, an adapter on it, and the right merge."""

    def __init__(self, kind: str, root: Path, ref: ModelRef) -> None:
        from peft import LoraConfig, get_peft_model

        self.ref, self.bits = ref, qm.Bits.named(kind, "bfloat16")
        base = qm.load(ref, self.bits)
        self.base = replace(ref, path=qm.dequantise(base, root / "dequantised", load_tokenizer(ref)))
        torch.manual_seed(0)
        config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
        model = get_peft_model(base, config)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.05)
        model.save_pretrained(root / "adapter")
        self.adapter = root / "adapter"
        self.merged = merge_adapter(load_base(self.base), self.adapter, root / "merged")

    def twice(self, out: Path) -> Path:
        return merge_adapter(load_base(replace(self.ref, path=self.merged)), self.adapter, out)


@pytest.fixture(scope="module")
def all_made(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Made]:
    root = tmp_path_factory.mktemp("quantised")
    load_base(ModelRef("tiny", tiny_model, "bfloat16")).save_pretrained(root / "base")
    load_tokenizer(ModelRef("tiny", tiny_model, "bfloat16")).save_pretrained(root / "base")
    ref = ModelRef("tiny", root / "base", "bfloat16")
    return {kind: Made(kind, root / kind, ref) for kind in KINDS}


@pytest.fixture(params=KINDS)
def made(all_made: dict[str, Made], request: pytest.FixtureRequest) -> Made:
    return all_made[request.param]


def test_the_dequantised_base_is_what_the_bits_stand_for(made: Made) -> None:
    model, plain = qm.load(made.ref, made.bits), load_base(made.base)
    held = qm.layers(model)
    assert len(held) == 2 * 7
    for name, layer in held.items():
        assert torch.equal(qm.values(layer).bfloat16(), plain.get_submodule(name).weight)
    keep, original = qm.again(made.bits), load_base(made.ref)
    for name, layer in held.items():  # quantising and back here is what loading does
        weight = original.get_submodule(name).weight.double()
        assert torch.equal(keep(weight), qm.values(layer).bfloat16().double())
        assert not torch.equal(keep(weight), weight)


def faults(made: Made, merged: Path, scratch: Path) -> tuple[set[str], set[str]]:
    """Names of the faults of a merge in bfloat16, and of the same in bits again."""
    plain = check_weights(made.base.path, made.adapter, merged)[1]
    served = replace(made.ref, path=merged)
    again = qm.check_quantised_merge(made.base.path, made.adapter, served, made.bits, scratch)[1]
    return tuple({f.check for f in found if f.severity == "error"} for found in (plain, again))  # type: ignore[return-value]


def test_a_right_merge_has_no_fault_plain_or_in_bits(made: Made, tmp_path: Path) -> None:
    assert faults(made, made.merged, tmp_path) == (set(), set())


def test_not_applied_and_applied_twice_are_named(made: Made, tmp_path: Path) -> None:
    assert faults(made, made.base.path, tmp_path / "a") == ({"merge.not_applied"}, {"merge.not_applied"})
    twice = made.twice(tmp_path / "twice")
    assert faults(made, twice, tmp_path / "b") == ({"merge.applied_twice"}, {"merge.applied_twice"})


def test_a_layer_left_out_and_a_wrong_scaling_are_named(made: Made, tmp_path: Path) -> None:
    import json
    import shutil

    from safetensors.torch import load_file, save_file

    left = shutil.copytree(made.merged, tmp_path / "left")
    weights, key = load_file(left / "model.safetensors"), "model.layers.1.mlp.down_proj.weight"
    weights[key] = load_file(made.base.path / "model.safetensors")[key]
    save_file(weights, left / "model.safetensors", metadata={"format": "pt"})
    assert faults(made, left, tmp_path / "a") == ({"merge.not_applied"}, {"merge.not_applied"})
    wrong = shutil.copytree(made.adapter, tmp_path / "wrong")
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 4 * config["lora_alpha"]}))
    merged = merge_adapter(load_base(made.base), wrong, tmp_path / "scaled")
    assert faults(made, merged, tmp_path / "b") == ({"merge.wrong_scaling"}, {"merge.wrong_scaling"})


def run(made: Made, merged: Path, **more: Any) -> Any:
    asked = MergeRequest(
        model=str(made.ref.path), adapter=made.adapter, merged=merged, quantised=made.bits.kind, **more
    )
    return merge_command(asked, OPTIONS)


def test_a_merge_into_the_base_s_own_weights_is_named(all_made: dict[str, Made], tmp_path: Path) -> None:
    made = all_made["nf4"]
    own = merge_adapter(load_base(made.ref), made.adapter, tmp_path / "own")
    found = run(made, own)
    assert found.status == "failed" and "merged into the base's own weights" in found.message


def test_the_cost_of_bits_is_measured_beside_the_plain_merge(made: Made) -> None:
    part = qm.cost(made.ref, made.bits, made.adapter, made.merged, (made.base.path, ROWS, OPTIONS))
    table = {row["model"]: row for row in part.numbers["table"]}
    plain, again, none = (table[k] for k in ("merged, bfloat16", f"merged, in {made.bits.kind}", list(table)[1]))
    assert none["model"].startswith("no adapter")
    assert max(plain["kl_mean"], again["kl_mean"]) < none["kl_mean"]
    assert plain["kl_mean"] < 0.01 * none["kl_mean"]
    if made.bits.kind == "nf4":  # int8 rounds activations too, as its reference does
        assert plain["kl_mean"] < again["kl_mean"]
    assert part.status is None and part.numbers["lost_share"] > (0.1 if made.bits.kind == "nf4" else 0.001)


def test_a_merge_served_in_bits_is_judged_by_its_scores_alone(all_made: dict[str, Made], tmp_path: Path) -> None:
    made = all_made["nf4"]
    served = qm.load(replace(made.ref, path=made.merged), made.bits)
    served.save_pretrained(tmp_path / "bits")
    assert in_bits(tmp_path / "bits")
    found = run(made, tmp_path / "bits")
    assert found.status == "undecided" and {m.reading for m in found.modules} == {"merged"}
    empty = qm.load(made.ref, made.bits)
    empty.save_pretrained(tmp_path / "none")
    assert "merge.not_applied" in {f.check for f in run(made, tmp_path / "none").findings}


def test_weights_that_change_while_they_are_used_stop_everything(made: Made) -> None:
    model = qm.load(made.ref, made.bits)
    with qm.unchanged(model):
        model(input_ids=torch.tensor([[5, 6, 7]]))
    with pytest.raises(GateError, match="changed while the model was used"), qm.unchanged(model):
        layer = next(iter(qm.layers(model).values()))
        layer.weight.data.copy_(layer.weight.data.flip(0))


def test_bits_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="expected one of nf4, fp4, int8"):
        qm.Bits.named("int3", "bfloat16")

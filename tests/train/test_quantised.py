"""The 4-bit path: what its self-test finds, what it lets pass, and that a study obeys it.

The silent corruption needs a processor with AVX512-BF16. Where there is none, the tests run bitsandbytes' own repacking
code all the same: only its question to the processor is answered with yes, and the one kernel that such a processor
would bring (a product with repacked weights, no gradient) is written out here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'veritune[qlora]'")

import bitsandbytes.functional as bnb_functional
import bitsandbytes.nn.modules as bnb_modules

from veritune.commands.app import app
from veritune.config.load import parse_study
from veritune.config.train import Condition
from veritune.errors import GateError, MachineError, StudyError
from veritune.store import Store
from veritune.train import methods, quantised
from veritune.train.models import ModelRef
from veritune.train.quantised import STAGES, Quantisation, Stage, self_test

FLOAT32 = (("bnb_4bit_quant_type", "nf4"), ("bnb_4bit_use_double_quant", True), ("bnb_4bit_compute_dtype", "float32"))
BFLOAT16 = Quantisation()


def unpacked(packed: Any, state: Any) -> Any:
    """The values of a repacked weight, (N, K): the permutation undone, each 4-bit code times its block's scale."""
    n, k = state.shape
    pairs = packed.reshape(-1, 32)
    codes = torch.cat([pairs & 0xF, pairs >> 4], dim=-1).reshape(n // 32, k // 2, 32, 2).transpose(-3, -2).reshape(n, k)
    return state.code.float()[codes.long()] * state.absmax.float().T.repeat_interleave(state.blocksize, dim=1)


@pytest.fixture
def repacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes as it behaves on a processor with AVX512-BF16."""

    def product(a: Any, b: Any, out: Any = None, state: Any = None, **_: Any) -> Any:
        with torch.no_grad():
            return (a.bfloat16().float() @ unpacked(b, state).bfloat16().float().T).to(a.dtype)

    monkeypatch.setattr(bnb_modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bnb_functional, "gemv_4bit", product)


def failed(result: quantised.SelfTest) -> list[str]:
    return [stage.stage for stage in result.stages if not stage.passed]


@pytest.mark.parametrize("how", [BFLOAT16, Quantisation(FLOAT32, "float32")], ids=["bfloat16", "float32"])
def test_this_runtime_passes(how: Quantisation) -> None:
    result = self_test(how)
    assert failed(result) == []
    assert tuple(stage.stage for stage in result.stages) == STAGES


def test_the_same_values_in_float32_give_the_same_numbers() -> None:
    """In float32 nothing rounds, so that train, evaluate, save and reload agree to the last digits."""
    stages = {s.stage: s.difference for s in self_test(Quantisation(FLOAT32, "float32")).stages}
    assert all(stages[name] < 1e-5 for name in STAGES[1:6])
    assert 0.05 < stages["merge"] < 0.15  # one more rounding to 4 bits


def test_the_silent_repacking_is_found_without_the_guard(repacks: None) -> None:
    result = self_test(replace(BFLOAT16, guard=False))
    found = {s.stage: s for s in result.stages}
    assert found["evaluate"].passed  # the loss looks as it should: this is what makes the fault silent
    assert result.failed is not None and result.failed.stage == "train again"
    assert found["train again"].difference > 0.5 and found["merge"].difference > 1


def test_with_the_guard_the_same_runtime_passes(repacks: None) -> None:
    assert failed(self_test(BFLOAT16)) == []


def test_the_guard_reaches_every_layer_before_the_first_forward(repacks: None, tiny_model: Path) -> None:
    model = quantised.load_quantised(ModelRef("tiny", tiny_model, "bfloat16"), BFLOAT16)
    layers = quantised.linear4bit(model)
    assert len(layers) == 2 * 7  # two layers of q, k, v, o, gate, up, down; the head stays as it is
    with torch.no_grad():
        model(input_ids=torch.tensor([[5, 6, 7]]))
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers.values())


def scales_rewritten(layer: Any) -> None:
    layer.weight.quant_state.absmax = layer.weight.quant_state.absmax.flip(0)


def codes_rewritten(layer: Any) -> None:
    layer.weight.data = layer.weight.data.flip(0)


@pytest.mark.parametrize("damage", [scales_rewritten, codes_rewritten])
@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_a_layer_that_changes_at_a_forward_is_found_with_the_guard_on(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[Any], None], mode: str
) -> None:
    """Other faults than the known one: values that change after the forward, in either mode, guard or not."""
    right = bnb_modules.Linear4bit.forward

    def forward(layer: Any, x: Any) -> Any:
        out = right(layer, x)
        if (mode == "training") == layer.training and not hasattr(layer, "damaged"):
            layer.damaged = True
            damage(layer)
        return out

    monkeypatch.setattr(bnb_modules.Linear4bit, "forward", forward)
    result = self_test(BFLOAT16)
    assert result.failed is not None
    expected = {"training": ("train", "evaluate"), "evaluation": ("train again",)}
    assert result.failed.stage in expected[mode]


def test_a_wrong_dequantisation_is_found_at_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference itself is checked against the weights before they were quantised."""
    right = bnb_functional.dequantize_4bit
    monkeypatch.setattr(bnb_functional, "dequantize_4bit", lambda *a, **k: right(*a, **k) * 1.2)
    result = self_test(BFLOAT16)
    assert result.failed is not None and result.failed.stage == "load"


def test_a_stage_that_raises_fails_and_the_rest_counts_as_not_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(bnb_modules.Linear4bit, "forward", no_kernel)
    result = self_test(BFLOAT16)
    assert failed(result) == list(STAGES[1:])
    assert "no kernel image" in result.stages[1].error and result.stages[2].error == "not reached"
    assert all(stage.difference is None for stage in result.stages[1:])


def test_a_difference_that_is_no_number_does_not_pass() -> None:
    assert not Stage("train", "x", float("nan"), 1.0).passed


# ---------------------------------------------------------------- a study


def qlora(**fields: Any) -> Condition:
    return Condition.model_validate({"method": "qlora", "target_modules": "all-linear", "r": 4, **fields})


def test_a_study_is_refused_on_a_runtime_that_fails_and_tested_once(
    repacks: None, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ref = Store(tmp_path), ModelRef("tiny", tiny_model, "bfloat16")
    calls = []
    right = quantised.self_test
    monkeypatch.setattr(quantised, "self_test", lambda how: calls.append(how) or right(how))
    assert quantised.base_for(store, ref, qlora()).is_loaded_in_4bit
    quantised.base_for(store, ref, qlora())
    assert len(calls) == 1
    monkeypatch.setattr(quantised, "guard", lambda model: 0)  # the guard no longer reaches the layers
    quantised.base_for(store, ref, qlora())  # same runtime on record: not tested again
    assert len(calls) == 1
    other = Store(tmp_path / "other")
    for _ in range(2):
        with pytest.raises(GateError, match=r"'train again'.*gradient of the adapter differs by 0"):
            quantised.base_for(other, ref, qlora())
    assert len(calls) == 2  # a failure on record refuses as well
    assert not quantised.base_for(other, ref, Condition(method="lora", target_modules="mlp")).training


def test_another_runtime_is_tested_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    here = quantised.hash_of(quantised.runtime(BFLOAT16))
    assert here == quantised.hash_of(quantised.runtime(BFLOAT16))
    assert here != quantised.hash_of(quantised.runtime(replace(BFLOAT16, dtype="float32")))
    monkeypatch.setattr(quantised, "cpu_flags", lambda: ["avx512_bf16"])
    assert here != quantised.hash_of(quantised.runtime(BFLOAT16))


def test_what_trains_is_counted_in_weights_not_in_bytes(tiny_model: Path) -> None:
    ref = ModelRef("tiny", tiny_model, "bfloat16")
    lora = Condition(method="lora", target_modules="all-linear", r=4)
    _, plain = methods.build("a", lora, quantised.load_base(ref), 0)
    _, four_bit = methods.build("b", qlora(), quantised.load_quantised(ref, BFLOAT16), 0)
    assert (four_bit.n_trainable, four_bit.n_total) == (plain.n_trainable, plain.n_total)
    assert four_bit.modules == plain.modules
    assert four_bit.options["bnb_4bit_quant_type"] == "nf4" and four_bit.options["r"] == 4


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"bnb_4bit_quant_type": "nf5"}, "expected one of nf4, fp4, found 'nf5'"),
        ({"bnb_4bit_quant_typ": "nf4"}, "did you mean 'bnb_4bit_quant_type'"),
        ({"lora_alfa": 4}, ": unknown setting of"),
    ],
)
def test_a_setting_that_qlora_does_not_have(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(StudyError, match=said):
        methods.check("x", qlora(**fields))


def test_without_bitsandbytes_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"pip install 'veritune\[qlora\]'"):
        methods.check("x", qlora())


def test_qlora_needs_targets(study: Any) -> None:
    settings = study.settings()
    settings["conditions"] = {"a": {"method": "qlora"}}
    with pytest.raises(StudyError, match="`method: qlora` needs target_modules"):
        parse_study(settings)


def test_a_study_with_a_qlora_arm_runs_to_its_verdicts(study: Any, forks: Any) -> None:
    settings = yaml.safe_load((study.root / "study.yaml").read_text(encoding="utf-8"))
    settings["conditions"]["attention_only"] = {**settings["conditions"]["all_layer"], "method": "qlora"}
    settings["factor"] = ["method"]
    settings["seeds"] = [0]
    (study.root / "study.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    done = forks("run", study.root)
    assert done.rc in (0, 2), done.err
    (record,) = (study.root / "audit").glob("quantised-*.json")
    assert json.loads(record.read_text(encoding="utf-8"))["passed"] is True
    (training,) = (study.root / "runs").glob("attention_only-*/training.json")
    found = json.loads(training.read_text(encoding="utf-8"))
    assert found["trainable"]["method"] == "qlora" and found["steps"] == 6
    assert forks("verify", study.root).rc == 0


# ---------------------------------------------------------------- the command


def test_the_command_prints_the_stages_and_fails_with_2(repacks: None) -> None:
    run = CliRunner().invoke(app, ["doctor", "--selftest", "--no-guard"])
    assert run.exit_code == 2
    assert "failed at 'train again': qlora is refused on this runtime." in run.output
    good = CliRunner().invoke(app, ["doctor", "--selftest", "--json"])
    assert good.exit_code == 0
    assert [row["passed"] for row in json.loads(good.output)["stages"]] == [True] * len(STAGES)

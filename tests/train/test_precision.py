"""What is chosen for a processor (precision, attention), and a LoRA that is added to the weights for answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from veritune import machine
from veritune.config.train import Model
from veritune.errors import ModelError
from veritune.evaluate.generate import Decoding, generate
from veritune.train.backends.protocol import Local
from veritune.train.lora import added
from veritune.train.models import ModelRef, attention_for, load_base, load_tokenizer, quiet_transformers, resolve


@pytest.mark.parametrize(
    ("text", "computes"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx2 amx_bf16 amx_tile\n", True),
        ("Features\t: fp asimd bf16 i8mm\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("processor\t: 0\n", True),
    ],
)
def test_bfloat16_is_read_from_the_processor_and_believed_where_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, text: str, computes: bool
) -> None:
    monkeypatch.setattr(machine.Path, "read_text", lambda *_, **__: text)
    assert machine.computes_bfloat16() is computes


def test_auto_follows_the_processor_and_a_named_precision_stays(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for computes, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("veritune.train.models.computes_bfloat16", lambda answer=computes: answer)
        assert resolve(Model(path=str(tiny_model)), Path()).dtype == expected
        assert resolve(Model(path=str(tiny_model), dtype="bfloat16"), Path()).dtype == "bfloat16"


def test_the_contract_holds_precision_and_attention_as_they_were_chosen(study: Any, tiny_model: Path) -> None:
    from veritune.config.load import load_study

    backend = Local(load_study(study.root))
    ref = backend.model(study.root)
    facts = backend.facts(ref)
    assert facts.dtype == ref.dtype and facts.dtype != "auto"
    assert facts.attention == ref.attention == "eager"
    assert attention_for(4096) is None


def test_short_rows_have_the_same_loss_with_and_without_the_fused_kernel(tiny_model: Path) -> None:
    ids = torch.arange(5, 45).reshape(2, 20)
    ref = ModelRef("tiny", tiny_model, "float32")
    losses = [load_base(replace(ref, attention=a))(input_ids=ids, labels=ids).loss for a in ("eager", "sdpa")]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)


def adapted(tiny_model: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    base = load_base(ModelRef("tiny", tiny_model, "float32"))
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    with quiet_transformers():
        return get_peft_model(base, config).eval()


def test_an_added_lora_answers_as_the_adapter_does_and_leaves_the_very_tensors_behind(tiny_model: Path) -> None:
    model = adapted(tiny_model, init_lora_weights=False)
    tokenizer = load_tokenizer(ModelRef("tiny", tiny_model, "float32"))
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        beside = model(input_ids=ids).logits
        with added(model):
            within = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
    assert (beside - within).abs().max() < 1e-5 < (beside - base).abs().max()
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == before[name][0] and torch.equal(parameter, before[name][1]), name
    prompts = [list(range(5, 12)), list(range(9, 30))]
    plain, merged = (generate(model, tokenizer, prompts, Decoding(8, 2, m)) for m in (False, True))
    assert plain == merged


def test_the_tensors_are_back_when_answering_fails(tiny_model: Path) -> None:
    model = adapted(tiny_model, init_lora_weights=False)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), added(model):
        raise RuntimeError("stop")
    assert before == {name: p.data_ptr() for name, p in model.named_parameters()}


def test_what_is_no_plain_lora_is_refused_and_a_bare_model_stays_as_it_is(tiny_model: Path) -> None:
    with (
        pytest.raises(ModelError, match="Remove `merged` from the eval; only plain LoRA on linear layers can be added"),
        added(adapted(tiny_model, use_dora=True)),
    ):
        pass
    bare = load_base(ModelRef("tiny", tiny_model, "float32"))
    with added(bare):
        assert bare(input_ids=torch.tensor([[5]])).logits.shape[1] == 1

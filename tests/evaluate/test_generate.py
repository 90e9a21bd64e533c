"""Greedy generation: batches change no token, order comes back, each output says why it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from veritune.evaluate.generate import Decoding, Output, cache_bytes, generate, stop_tokens
from veritune.train.models import ModelRef, load_base, load_tokenizer


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model made sharper, so that its greedy path does not hang on rounding, and its tokenizer."""
    ref = ModelRef("tiny", tiny_model, "float32")
    model = load_base(ref)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1.0 if "norm" in name else 4.0)
    return model, load_tokenizer(ref)


def prompts_of(tokenizer: Any, n: int = 9) -> list[tuple[int, ...]]:
    """Prompts of unequal length, out of order."""
    words = "harbor gate lamp ferry crane boat quay rope net tide storm bridge".split()  # noqa: SIM905
    texts = [" ".join(words[i % 5 : i % 5 + 1 + (i * 7) % 6]) for i in range(n)]
    return [
        tuple(
            tokenizer(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": t}], tokenize=False, add_generation_prompt=True
                ),
                add_special_tokens=False,
            )["input_ids"]
        )
        for t in texts
    ]


def by_hand(model: Any, tokenizer: Any, prompt: tuple[int, ...], limit: int) -> Output:
    """The argmax token after token, without a cache, padding or `generate`."""
    ids, stops = list(prompt), stop_tokens(model, tokenizer)
    kept: list[int] = []
    with torch.no_grad():
        for _ in range(limit):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token in stops:
                return Output(tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), "stop_token")
            kept.append(token)
            ids.append(token)
    return Output(tokenizer.decode(kept, skip_special_tokens=True), tuple(kept), "length")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 32])
def test_outputs_are_the_argmax_whatever_the_batch(tiny: tuple[Any, Any], batch_size: int) -> None:
    model, tokenizer = tiny
    prompts = prompts_of(tokenizer)
    found = generate(model, tokenizer, prompts, Decoding(10, batch_size))
    assert found == [by_hand(model, tokenizer, p, 10) for p in prompts]
    assert len({o.token_ids for o in found}) > 3


def test_outputs_come_back_in_the_order_of_the_prompts(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    prompts = prompts_of(tokenizer)
    found = generate(model, tokenizer, prompts, Decoding(6, 4))
    assert generate(model, tokenizer, prompts[::-1], Decoding(6, 4)) == found[::-1]


def test_every_batch_is_reported_once(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    told: list[int] = []
    generate(model, tokenizer, prompts_of(tokenizer, 9), Decoding(2, 4), lambda n, seconds: told.append(n))
    assert told == [4, 4, 1]


def test_no_prompts_give_no_outputs(tiny: tuple[Any, Any]) -> None:
    assert generate(*tiny, [], Decoding(2, 4)) == []


def test_the_output_embedding_is_given_no_view_with_gaps(tiny: tuple[Any, Any]) -> None:
    """Such a view times weights that do not train is one product a prompt, each with a copy of the weights."""
    model, tokenizer = tiny
    whole: list[bool] = []
    head = model.get_output_embeddings()
    handle = head.register_forward_hook(lambda _module, args, _output: whole.append(args[0].is_contiguous()))
    try:
        generate(model, tokenizer, prompts_of(tokenizer, 4), Decoding(2, 4))
    finally:
        handle.remove()
    assert len(whole) == 2 and all(whole)
    assert not head._forward_pre_hooks, "nothing of it stays on the model"


def test_the_cache_of_full_length_answers_is_what_the_config_says(tiny: tuple[Any, Any]) -> None:
    model, _ = tiny
    config = model.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * 4  # keys and values, float32
    assert cache_bytes(model, Decoding(5, 3)) == 15 * token


def force(model: Any, order: dict[int, int]) -> Any:
    """A hook that makes `order[previous token]` the argmax."""

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        for b, token in enumerate(kwargs["input_ids"][:, -1].tolist()):
            if token in order:
                output.logits[b, -1, order[token]] = 1e4
        return output

    return model.register_forward_hook(hook, with_kwargs=True)


def test_an_output_ends_at_its_stop_token_and_the_others_go_on(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    stop = tokenizer.eos_token_id
    prompts = [(1, 50), (1, 60, 60), (1, 70)]
    handle = force(model, {50: 51, 51: stop, 60: 61, 61: 62, 62: 61, 70: stop})
    try:
        first, second, third = generate(model, tokenizer, prompts, Decoding(5, 3))
    finally:
        handle.remove()
    assert (first.token_ids, first.ended) == ((51,), "stop_token")
    assert (second.token_ids, second.ended) == ((61, 62, 61, 62, 61), "length")
    assert (third.token_ids, third.text, third.ended) == ((), "", "stop_token")


def test_a_stop_token_at_the_very_limit_is_no_cut(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    handle = force(model, {50: 51, 51: tokenizer.eos_token_id})
    try:
        (output,) = generate(model, tokenizer, [(1, 50)], Decoding(2, 1))
    finally:
        handle.remove()
    assert (output.token_ids, output.ended) == ((51,), "stop_token")


def test_every_end_token_of_model_and_tokenizer_stops(tiny: tuple[Any, Any], monkeypatch: Any) -> None:
    model, tokenizer = tiny
    monkeypatch.setattr(model.generation_config, "eos_token_id", [7, 0])
    assert stop_tokens(model, tokenizer) == [0, 2, 7]
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    assert stop_tokens(model, tokenizer) == [2]


@pytest.mark.parametrize(
    "shipped",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"suppress_tokens": list(range(40, 300))},
        {"do_sample": True, "temperature": 5.0},
        {"num_beams": 3},
        {"min_new_tokens": 10},
    ],
)
def test_settings_that_ship_with_a_model_bend_no_argmax(tiny: tuple[Any, Any], shipped: dict[str, Any]) -> None:
    from transformers import GenerationConfig

    model, tokenizer = tiny
    prompts = prompts_of(tokenizer, 4)
    expected = [by_hand(model, tokenizer, p, 8) for p in prompts]
    plain, model.generation_config = model.generation_config, GenerationConfig(eos_token_id=2, **shipped)
    try:
        assert generate(model, tokenizer, prompts, Decoding(8, 4)) == expected
        assert getattr(model.generation_config, next(iter(shipped))) == next(iter(shipped.values()))
    finally:
        model.generation_config = plain


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT 0.21
def test_an_adapter_generates_like_its_merged_model(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    ref = ModelRef("tiny", tiny_model, "float32")
    tokenizer = load_tokenizer(ref)
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = get_peft_model(load_base(ref), config)
    model.get_base_model().generation_config.repetition_penalty = 3.0
    prompts = prompts_of(tokenizer, 5)
    found = generate(model, tokenizer, prompts, Decoding(8, 4))
    merged = model.merge_and_unload()
    assert found == [by_hand(merged, tokenizer, p, 8) for p in prompts]


@pytest.mark.model
def test_the_real_model_gives_the_same_tokens_in_batches_and_one_by_one(smollm2: Path) -> None:
    ref = ModelRef("SmolLM2", smollm2, "float32")
    model, tokenizer = load_base(ref), load_tokenizer(ref)
    prompts = prompts_of(tokenizer, 3)
    together = generate(model, tokenizer, prompts, Decoding(6, 3))
    assert together == generate(model, tokenizer, prompts, Decoding(6, 1))
    assert together[0] == by_hand(model, tokenizer, prompts[0], 6)

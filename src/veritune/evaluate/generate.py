"""Greedy generation in batches, from token ids to text, with the reason each output ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from veritune.train.lora import added

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from veritune.train.backends.protocol import RunWeights


@dataclass(frozen=True, slots=True)
class Output:
    """One generated answer: its text without special tokens, its token ids, and why generation ended."""

    text: str
    token_ids: tuple[int, ...]
    ended: Literal["stop_token", "length"]


@dataclass(frozen=True, slots=True)
class Decoding:
    """How outputs are generated. Greedy decoding: the same prompts in the same batches give the same tokens."""

    max_new_tokens: int
    batch_size: int = 32
    merged: bool = False
    """Whether a LoRA is added to the weights while answers are made."""


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end an answer: the generation config's and the tokenizer's end tokens, sorted."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return sorted(i for i in ids if i is not None)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    on_batch: Callable[[int, float], None] | None = None,
    *,
    keep_going: bool = False,
) -> list[Output]:
    """Answers to `prompts` (token ids), in their order. `on_batch(n_prompts, seconds)` is called after each batch.

    `keep_going` ignores stop tokens, for timing.

    Prompts are batched by length and padded on the left.
    """
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    outputs: dict[int, Output] = {}
    for start in range(0, len(order), decoding.batch_size):
        chunk = order[start : start + decoding.batch_size]
        began = time.perf_counter()
        least = decoding.max_new_tokens if keep_going else 0
        with added(model) if decoding.merged else nullcontext():
            batch = _batch(model, tokenizer, [prompts[i] for i in chunk], decoding.max_new_tokens, least)
        for i, output in zip(chunk, batch):
            outputs[i] = output
        if on_batch is not None:
            on_batch(len(chunk), time.perf_counter() - began)
    return [outputs[i] for i in range(len(prompts))]


def answers(
    weights: RunWeights,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    on_batch: Callable[[int, float], None] | None = None,
    *,
    keep_going: bool = False,
) -> list[Output]:
    """Answers from any backend that can be scored (`train.backends.Weights`): a model here, or weights on a server.

    A server takes all prompts at once and batches them as it likes.
    """
    if weights.model is not None:
        return generate(weights.model, tokenizer, prompts, decoding, on_batch, keep_going=keep_going)
    stops = [] if keep_going else stop_tokens(weights, tokenizer)
    began = time.perf_counter()
    given = weights.sample(prompts, decoding.max_new_tokens, stops)
    if on_batch is not None:
        on_batch(len(prompts), time.perf_counter() - began)
    found = [_output(list(ids), stops, tokenizer) for ids, _ in given]
    return [replace(o, ended="stop_token") if why == "stop" else o for o, (_, why) in zip(found, given)]


def _batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Sequence[int]],
    max_new_tokens: int,
    least: int,
) -> list[Output]:
    import torch
    from transformers import GenerationConfig

    width, stops = max(len(p) for p in prompts), stop_tokens(model, tokenizer)
    device = next(model.parameters()).device
    ids_B_T = torch.full((len(prompts), width), tokenizer.pad_token_id, dtype=torch.long)
    mask_B_T = torch.zeros((len(prompts), width), dtype=torch.long)
    for b, prompt in enumerate(prompts):
        ids_B_T[b, width - len(prompt) :] = torch.tensor(list(prompt))
        mask_B_T[b, width - len(prompt) :] = 1
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        min_new_tokens=least or None,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.eval()
    with torch.inference_mode(), _bare_generation_config(model), _one_head(model):
        out_B_T = model.generate(
            input_ids=ids_B_T.to(device), attention_mask=mask_B_T.to(device), generation_config=config
        )
    return [_output(row[width:], stops, tokenizer) for row in out_B_T.tolist()]


def cache_bytes(model: PreTrainedModel, decoding: Decoding) -> int:
    """Bytes by which the key-value cache of one full batch grows from its prompts to answers of full length.

    Measured on two short inputs; where layers keep a window only, it is an upper bound. 0 for a model without a cache.
    """
    import torch

    held: list[int] = []
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        for n in (8, 16):
            ids = torch.zeros((1, n), dtype=torch.long, device=device)
            cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
            tensors = [t for layer in getattr(cache, "layers", ()) for t in (layer.keys, layer.values)]
            held.append(sum(t.numel() * t.element_size() for t in tensors if t is not None))
    return (held[1] - held[0]) // 8 * decoding.batch_size * decoding.max_new_tokens


@contextmanager
def _bare_generation_config(model: PreTrainedModel) -> Iterator[None]:
    """Without the settings that ship with a model while the block runs.

    `generate` fills what a config leaves open from the model's own, so that a shipped repetition penalty, say, would
    bend the argmax in silence.
    """
    from transformers import GenerationConfig

    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    shipped, owner.generation_config = owner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        owner.generation_config = shipped


@contextmanager
def _one_head(model: PreTrainedModel) -> Iterator[None]:
    """The output embedding is multiplied once for the whole batch while the block runs.

    It is given the last position of every prompt, a view with gaps. torch multiplies such a view by weights that do not
    train (a LoRA's base) prompt by prompt, with a copy of the weights for each: on a CPU 1.9 GB and 2.4 s for 34
    prompts and SmolLM2, where the base alone, whose weights could train, is multiplied once. So all models
    take the same way.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(lambda _module, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _output(ids: list[int], stops: list[int], tokenizer: PreTrainedTokenizerBase) -> Output:
    end = next((k for k, token in enumerate(ids) if token in stops), None)
    kept = tuple(ids[:end])
    text = tokenizer.decode(kept, skip_special_tokens=True)
    return Output(text, kept, "length" if end is None else "stop_token")

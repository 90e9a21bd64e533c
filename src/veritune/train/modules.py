"""What a parameter is called in each model family, in one table: its type, group, layer and adapter factor.

Every function takes a module's or a parameter's dotted name, with or without the prefixes and suffixes that PEFT, DDP,
FSDP, torch.compile or activation checkpointing put around it. The names cover Llama, Qwen, Gemma, Mistral, Phi-1 to 3,
Granite, OLMo, GPT-2, GPT-J, GPT-NeoX, Falcon, BLOOM, OPT, MPT, StarCoder2 and DeepSeek; a name the table does not know
is `other`, never a guess.
"""

from __future__ import annotations

import re

TYPES = (
    "q",
    "k",
    "v",
    "qkv",
    "o",
    "gate",
    "up",
    "gate_up",
    "down",
    "embed",
    "head",
    "norm",
    "router",
    "prompt",
    "other",
)
"""Every value of `module_type`, in the order tables and charts show them. `qkv` and `gate_up` are fused projections."""

GROUPS = ("attention", "mlp", "embed", "head", "norm", "other")
FACTORS = ("A", "B", "full", "other")

_TYPE_OF = {
    "q": "q_proj q_a_proj q_b_proj",
    "k": "k_proj",
    "v": "v_proj",
    "qkv": "qkv_proj c_attn query_key_value Wqkv kv_a_proj_with_mqa kv_b_proj",
    "o": "o_proj",
    "gate": "gate_proj w1",
    "up": "up_proj w3 fc1 fc_in c_fc dense_h_to_4h",
    "gate_up": "gate_up_proj",
    "down": "down_proj w2 fc2 fc_out dense_4h_to_h",
    "embed": "embed_tokens embed_positions embed_in wte wpe word_embeddings embeddings",
    "head": "lm_head embed_out",
    "norm": "norm layernorm layer_norm norm_1 norm_2 norm_f ln_1 ln_2 ln_f",
    "router": "router",
    "prompt": "prompt_encoder",
}
_TYPE = {leaf: kind for kind, leaves in _TYPE_OF.items() for leaf in leaves.split()}
_GROUP = {
    **dict.fromkeys(("q", "k", "v", "qkv", "o"), "attention"),
    **dict.fromkeys(("gate", "up", "gate_up", "down", "router"), "mlp"),
    **{kind: kind for kind in ("embed", "head", "norm")},
}
# The same leaf name means two things; the block it sits in decides (GPT-2's c_proj, GPT-NeoX's and Phi's dense).
_ATTENTION_BLOCKS = {"attn", "self_attn", "attention", "self_attention"}
_MLP_BLOCKS = {"mlp", "ffn", "feed_forward", "block_sparse_moe"}
_SHARED_LEAF = {
    "c_proj": ("o", "down"),
    "dense": ("o", "other"),
    "out_proj": ("o", "other"),
    "gate": ("other", "router"),
}

_WRAPPERS = re.compile(
    r"_(fsdp_wrapped_module|orig_mod|checkpoint_wrapped_module|ddp_module)\.|^module\.|\.base_layer\b"
)
_ADAPTER = re.compile(
    r"\.(lora_|hada_|lokr_|ia3_|vera_|oft_|boft_|vblora_|randlora_|modules_to_save\b|original_module\b)"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)(?=\.|$)")


def plain_name(name: str) -> str:
    """The module's own name: without wrappers, adapter parts and a trailing `weight` or `bias`."""
    name = _WRAPPERS.sub("", name)
    name = _ADAPTER.split(name, maxsplit=1)[0]
    name = re.sub(r"\.(weight|bias)$", "", name)
    return re.sub(r"^base_model\.(model\.)?(?=.)", "", name)


def module_type(name: str) -> str:
    """One of `TYPES`: the module's function in its block."""
    parts = plain_name(name).split(".")
    if "prompt_encoder" in parts:
        return "prompt"
    leaf, blocks = parts[-1], set(parts[:-1])
    leaf = leaf.removesuffix("_bias")
    if leaf in _SHARED_LEAF:
        in_attention, in_mlp = _SHARED_LEAF[leaf]
        return in_attention if blocks & _ATTENTION_BLOCKS else in_mlp if blocks & _MLP_BLOCKS else "other"
    if leaf in _TYPE:
        return _TYPE[leaf]
    return "norm" if re.search(r"(layer_?norm|(^|_)norm)$", leaf) else "other"


def module_group(name: str) -> str:
    """One of `GROUPS`: the part of the model the module belongs to."""
    return _GROUP.get(module_type(name), "other")


def layer_index(name: str) -> int | None:
    """The block's number from 0, None for a module outside the blocks (embeddings, head, last norm)."""
    found = _LAYER.search(plain_name(name))
    return int(found.group(1)) if found else None


def factor(name: str) -> str:
    """One of `FACTORS`: LoRA's `A` or `B`, `full` for a plain weight, `other` for every other adapter parameter."""
    if re.search(r"\blora_(embedding_)?A\b", name):
        return "A"
    if re.search(r"\blora_(embedding_)?B\b", name):
        return "B"
    if "modules_to_save" in name:
        return "full"
    return "other" if _ADAPTER.search(name) or "prompt_encoder" in name else "full"

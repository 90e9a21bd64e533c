"""Save a random two-layer Llama and a byte tokenizer as transformers 4 reads them; called by run.sh in its own venv."""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

torch.manual_seed(0)
sizes = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
model = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2, pad_token_id=2, bos_token_id=1))
model.lm_head.weight.data.mul_(8)  # else no adapter beside the head could make any token likely
model.save_pretrained(sys.argv[1])
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
bpe.train_from_iterator(["user assistant system harbor gate lamp ferry crane boat quay rope net tide storm"], trainer)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
tokenizer.chat_template = CHAT
tokenizer.save_pretrained(sys.argv[1])

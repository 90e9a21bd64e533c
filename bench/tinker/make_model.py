"""Save a random two-layer Llama and a byte tokenizer as transformers 4 reads them; called by run.sh in its own venv."""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
sizes = {"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=2, pad_token_id=2, bos_token_id=1)).save_pretrained(sys.argv[1])
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(384)}, unk_token="w0"))
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", pad_token="w2").save_pretrained(sys.argv[1])

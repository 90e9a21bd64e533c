"""Training speed on one GPU: Veritune's trainer and TRL's SFTTrainer on the same random rows, interleaved.

    python bench/train/gpu.py --shape 8b --method lora [--checkpointing] [--attention flash_attention_2] [--json FILE]
    python bench/train/gpu.py --shape 1b --method full
    python bench/train/gpu.py --tiny         # any machine, seconds: shows that the script works, times nothing of use

Needs one GPU of 80 GB. Weights are random, bfloat16, drawn on the device (`full`: float32 master weights under bfloat16
autocast, as Veritune trains them; LoRA: all linear layers, r = 16, float32 adapter). Rows are random tokens, lengths
lognormal up to 2,048, the loss on about 40 % of them.

Ways: `veritune` joins the rows of a batch (`padding_free`); `trl` does what `--trl` says with the same arithmetic;
`trl_autocast` adds bf16 autocast, which is SFTConfig's own default and makes a float32 adapter's products bfloat16
ones; `veritune_autocast` is for comparison, no study trains an adapter so. With `--trl padding_free` (the default) and
`padded` both sides see the same batches, and the losses can be compared; with `packing` TRL fills its own sequences.

Attention: with `sdpa` neither side has a kernel for joined rows. transformers builds a block-diagonal mask from
`position_ids` (no row sees another), written out T x T for the joined length T, so attention costs T^2 and not the sum
of the rows' own squares, and torch's flash kernel, which takes no mask, is out. `flash_attention_2` needs the package
flash_attn; where it is missing the script falls back to sdpa, and the output says so. With it TRL hands the rows'
boundaries over with the batch; Veritune does not, and transformers derives them in every layer, waiting for the device.

Clock: the end of every optimizer step, after torch.cuda.synchronize(); the first `--skip` steps are left out. Tokens
are input tokens without padding, counted in the batches that the model was given. Peak memory is torch's
max_memory_allocated, from before the model is made.

Model-FLOPs utilisation is model FLOPs / seconds / peak FLOP/s of the device. The model FLOPs are those of
`step_flops`, one definition for all ways, so that MFU compares nothing but wall time.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from run import Clock, arguments, ratios
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, PrinterCallback, TrainingArguments

from veritune.records import Rendered
from veritune.train.models import quiet_transformers
from veritune.train.trainer import IGNORE, ContractTrainer

PAD, EOS, RANK = 0, 1, 16
PEAKS = {
    "H100": (989e12, "NVIDIA H100 SXM data sheet, bf16 dense"),
    "H200": (989e12, "NVIDIA H200 SXM data sheet, bf16 dense"),
    "A100": (312e12, "NVIDIA A100 data sheet, bf16 dense"),
}
OTHER_FORMS = ("PCIe", "NVL", "H100L")
"""Names of cards with lower clocks than the table's; their peak has to be given."""


@dataclass(frozen=True)
class Shape:
    """A Llama-like model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    tied: bool

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    def linears(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of every linear module of one layer."""
        kv = self.kv_heads * self.head_dim
        return {
            "q": (self.hidden, self.hidden),
            "k": (self.hidden, kv),
            "v": (self.hidden, kv),
            "o": (self.hidden, self.hidden),
            "gate": (self.hidden, self.inner),
            "up": (self.hidden, self.inner),
            "down": (self.inner, self.hidden),
        }


SHAPES = {
    "8b": Shape(4096, 32, 32, 8, 14336, 128256, tied=False),
    "1b": Shape(2048, 16, 32, 8, 8192, 128256, tied=True),
    "tiny": Shape(64, 2, 4, 2, 128, 512, tied=False),
}


@dataclass(frozen=True)
class Settings:
    """What every way of a run shares."""

    shape: str
    method: str
    attention: str
    checkpointing: bool
    trl: str
    steps: int
    skip: int
    rounds: int
    batch: int
    longest: int


def step_flops(shape: Shape, method: str, rows: Sequence[tuple[int, int]], causal: float = 0.5) -> float:
    """Model FLOPs of forward and backward over rows given as (tokens, target tokens).

    A matrix of N weights costs 2N a token forward, 2N for the gradient of its input and, where it trains, 2N for its
    own gradient. Attention costs 4 T^2 hidden a layer and row of T tokens forward (scores and values), twice that
    backward, each times `causal`: half of it lies above the diagonal. The output embedding counts at target positions
    alone, on all sides: neither trainer takes it elsewhere. With LoRA the base's own gradients fall away, the two
    factors (r (in + out) weights) come on top, and the first layer's q, k and v need no gradient of their input.
    Recomputing for checkpointing or inside attention kernels is not counted, nor are norms, softmax and the optimizer.
    """
    tokens, targets = sum(t for t, _ in rows), sum(n for _, n in rows)
    linears = shape.linears()
    base = sum(i * o for i, o in linears.values())
    first = [linears[name] for name in ("q", "k", "v")]
    if method == "full":
        per_token, per_target = 6 * shape.layers * base, 6 * shape.hidden * shape.vocab
    else:
        factors = RANK * sum(i + o for i, o in linears.values())
        unneeded = sum(i * o + RANK * i for i, o in first)
        per_token = shape.layers * (4 * base + 6 * factors) - 2 * unneeded
        per_target = 4 * shape.hidden * shape.vocab
    attention = 3 * 4 * shape.hidden * shape.layers * causal * sum(t * t for t, _ in rows)
    return float(tokens * per_token + targets * per_target + attention)


def peak_flops(name: str, given: float | None) -> tuple[float | None, str]:
    """Peak FLOP/s of a device and where the figure is from; None with the reason when it is not known."""
    if given is not None:
        return given, "--peak"
    if not any(form in name for form in OTHER_FORMS):
        for known, found in PEAKS.items():
            if known in name:
                return found
    return None, f"no peak known for {name!r}: give --peak FLOPS"


def random_rows(n: int, longest: int, vocab: int, seed: int = 0) -> list[Rendered]:
    """Rows of random tokens: lognormal lengths with median longest / 4, targets the last 20 to 60 % of each."""
    draw = torch.Generator().manual_seed(seed)
    made = []
    for i in range(n):
        spread = float(torch.randn((), generator=draw)) * 0.8
        length = min(max(int(longest / 4 * math.exp(spread)), 8), longest)
        ids = torch.randint(2, vocab, (length,), generator=draw).tolist()
        cut = int(length * (0.4 + 0.4 * float(torch.rand((), generator=draw))))
        made.append(Rendered(f"r{i}", tuple(ids), (IGNORE,) * cut + tuple(ids[cut:])))
    return made


def fresh(settings: Settings, device: torch.device) -> Any:
    """The model with random weights, ready to train; the same weights every time."""
    shape = SHAPES[settings.shape]
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=max(settings.longest, 8192),
        pad_token_id=PAD,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    torch.manual_seed(0)
    dtype = torch.float32 if settings.method == "full" else torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=settings.attention)
        if settings.method == "full":
            return model
        adapter = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(model, adapter)


class DeviceClock(Clock):
    """A clock that waits for the device, and the (tokens, targets) of every row of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[tuple[int, int]]] = []

    def tick(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        super().tick()

    def counting(self, collator: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        """The collator, with what it hands out counted. Step k takes batch k: one process, no accumulation."""

        def counted(items: Any) -> dict[str, Any]:
            batch = collator(items)
            self.batches.append(spans(batch))
            return batch

        return counted


def spans(batch: dict[str, Any]) -> list[tuple[int, int]]:
    """(tokens, targets) of every row of a padded, joined or packed batch, padding left out."""
    labels_B_T = batch["labels"]
    if "attention_mask" in batch:
        tokens = batch["attention_mask"].sum(1).tolist()
        return list(zip(tokens, (labels_B_T[:, 1:] != IGNORE).sum(1).tolist()))
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], batch["position_ids"].shape[1]]
    return [(b - a, int((labels_B_T[0, a + 1 : b] != IGNORE).sum())) for a, b in zip(starts, ends)]


def shared(settings: Settings, folder: str, autocast: bool) -> dict[str, Any]:
    """Training arguments of both trainers."""
    base = arguments(folder, settings.steps, settings.batch)
    return {**base, "bf16": autocast or settings.method == "full"}


def veritune(settings: Settings, model: Any, rows: list[Rendered], folder: str, autocast: bool) -> Any:
    checkpoints = {"use_reentrant": False} if settings.checkpointing else None
    args = TrainingArguments(
        **shared(settings, folder, autocast),
        remove_unused_columns=False,
        activation_checkpointing=settings.checkpointing,
        activation_checkpointing_kwargs=checkpoints,
    )
    return ContractTrainer(model, args, rows=rows, validation=[], pad_id=PAD, padding_free=True)


def sft(settings: Settings, model: Any, rows: list[Rendered], folder: str, autocast: bool) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"<pad>": PAD, "<eos>": EOS}, unk_token="<eos>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    checkpoints = {"use_reentrant": False} if settings.checkpointing else None
    args = SFTConfig(
        **shared(settings, folder, autocast),
        packing=settings.trl == "packing",
        padding_free=settings.trl == "padding_free",
        max_length=settings.longest if settings.trl == "packing" else None,
        gradient_checkpointing=settings.checkpointing,
        gradient_checkpointing_kwargs=checkpoints,
        dataset_num_proc=None,
    )
    if settings.trl == "packing":  # a full sequence holds about three rows
        args.per_device_train_batch_size = max(1, settings.batch // 3)
    data = Dataset.from_list([{"input_ids": list(r.input_ids), "labels": list(r.labels)} for r in rows])
    return SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer)


WAYS: dict[str, tuple[Callable[..., Any], bool]] = {
    "veritune": (veritune, False),
    "trl": (sft, False),
    "trl_autocast": (sft, True),
    "veritune_autocast": (veritune, True),
}


def one_round(settings: Settings, way: str, rows: list[Rendered], device: torch.device) -> dict[str, Any]:
    """One training run; its figures. The model is gone afterwards."""
    make, autocast = WAYS[way]
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    clock = DeviceClock()
    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        trainer = make(settings, fresh(settings, device), rows, folder, autocast)
        trainer.data_collator = clock.counting(trainer.data_collator)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    assert len(clock.ends) == settings.steps
    shape = SHAPES[settings.shape]
    timed = range(settings.skip, settings.steps)
    seconds = [clock.ends[k] - clock.ends[k - 1] for k in timed]
    batches = [clock.batches[k] for k in timed]
    tokens = [sum(t for t, _ in batch) for batch in batches]
    flops = [step_flops(shape, settings.method, batch) for batch in batches]
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    return {
        "way": way,
        "step_s": seconds,
        "step_tokens": tokens,
        "tokens_per_s": sum(tokens) / sum(seconds),
        "model_flops_per_s": sum(flops) / sum(seconds),
        "peak_memory_bytes": peak,
        "losses": clock.losses[: settings.steps],
    }


def usable_attention(wanted: str) -> tuple[str, str]:
    """The attention to run with, and what to say of it."""
    if wanted == "flash_attention_2" and util.find_spec("flash_attn") is None:
        return "sdpa", "flash_attention_2 was asked for and the package flash_attn is missing: fell back to sdpa"
    if wanted == "flash_attention_2":
        return wanted, "joined rows by their own lengths, without a mask"
    return wanted, "joined rows under a block-diagonal mask written out T x T; torch's flash kernel takes no mask"


def facts(device: torch.device) -> dict[str, Any]:
    """Device and versions."""
    names = ("torch", "transformers", "peft", "trl", "accelerate", "flash_attn")
    versions = {name: metadata.version(name) if util.find_spec(name) else None for name in names}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return {"device": found.name, "device_bytes": found.total_memory, "cuda": torch.version.cuda, **versions}
    return {"device": platform.processor() or "cpu", "device_bytes": None, "cuda": None, **versions}


def summary(rounds: list[dict[str, Any]], settings: Settings, peak: float | None) -> dict[str, Any]:
    """Medians over the rounds, ratios round by round, the largest difference of losses."""
    ways = list(dict.fromkeys(r["way"] for r in rounds))
    per = {w: [r for r in rounds if r["way"] == w] for w in ways}
    seconds_a_token = {w: [1 / r["tokens_per_s"] for r in found] for w, found in per.items()}
    done = {w: statistics.median(r["model_flops_per_s"] for r in found) for w, found in per.items()}
    losses = {w: found[-1]["losses"] for w, found in per.items()}
    mine = "veritune" in ways
    peers = [w for w in ways if mine and w != "veritune"]
    same = [w for w in peers if settings.trl != "packing" or not w.startswith("trl")]
    return {
        "tokens_per_s": {w: round(statistics.median(r["tokens_per_s"] for r in found), 1) for w, found in per.items()},
        "mfu": {w: None if peak is None else round(value / peak, 4) for w, value in done.items()},
        "peak_memory_bytes": {
            w: max((r["peak_memory_bytes"] or 0 for r in f), default=0) or None for w, f in per.items()
        },
        "speed_ratio_over": {w: ratios(seconds_a_token, w) for w in peers},
        "largest_loss_difference": {
            w: round(max(abs(a - b) for a, b in zip(losses["veritune"], losses[w])), 6) for w in same
        },
    }


def parse() -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("8b", "1b"), default="8b")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--tiny", action="store_true", help="a tiny shape: shows that the script works, on any machine")
    parser.add_argument("--attention", choices=("sdpa", "flash_attention_2"), default="sdpa")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on all sides")
    parser.add_argument("--trl", choices=("padding_free", "packing", "padded"), default="padding_free")
    parser.add_argument("--ways", default="veritune,trl,trl_autocast", help=f"of {', '.join(WAYS)}")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--skip", type=int, default=3, help="first steps left out, at least 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4, help="rows of a batch")
    parser.add_argument("--peak", type=float, help="peak FLOP/s of the device")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if not 1 <= given.skip < given.steps:
        parser.error("--skip must be at least 1 and less than --steps")
    if unknown := [w for w in given.ways.split(",") if w not in WAYS]:
        parser.error(f"--ways: no way {unknown[0]!r}; there are {', '.join(WAYS)}")
    if not given.tiny and not torch.cuda.is_available():
        parser.error("no GPU here; --tiny runs anywhere and times nothing of use")
    shape, longest = ("tiny", 64) if given.tiny else (given.shape, 2048)
    settings = Settings(
        *(shape, given.method, given.attention, given.checkpointing, given.trl),
        *(given.steps, given.skip, given.rounds, given.batch, longest),
    )
    return settings, given


def main() -> None:
    settings, given = parse()
    attention, said = usable_attention(settings.attention)
    settings = replace(settings, attention=attention)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    # More than a step needs: packing takes as many rows as fit its sequences.
    rows = random_rows(6 * settings.batch * settings.steps, settings.longest, SHAPES[settings.shape].vocab)
    known = facts(device)
    peak, source = peak_flops(known["device"], given.peak)
    rounds = [
        {"round": k, **one_round(settings, way, rows, device)}
        for k in range(settings.rounds)
        for way in given.ways.split(",")
    ]
    result = {
        **known,
        "attention": {"implementation": attention, "note": said},
        "peak_flops": {"value": peak, "source": source} if peak else {"value": None, "reason": source},
        "tiny": given.tiny,
        **summary(rounds, settings, peak),
        "settings": asdict(settings),
        "rounds": rounds,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "rounds"}, indent=2))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

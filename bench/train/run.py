"""Training speed: Veritune's trainer, TRL's SFTTrainer and a bare PyTorch loop on the same rows, interleaved.

    python bench/train/run.py [--steps 12] [--rounds 3] [--batch 8] [--json out.json]

All three train the same LoRA (all linear layers, r = 8) on SmolLM2-135M-Instruct in bfloat16, float32 adapter, on the
quickstart's rows with the loss on the answer alone. Validation, telemetry, saving and the first step are left out.
Printed: target-independent tokens per second (input tokens, padding apart) as the median of the rounds, the ratios
round by round in wall-clock and in CPU time (which a busy machine disturbs less), and the largest difference between
the three runs' losses. Ratios are what to quote.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import PrinterCallback, TrainerCallback, TrainingArguments, set_seed

from veritune.data.load import load_rows
from veritune.data.render import Renderer, render_rows
from veritune.records import Rendered, Row
from veritune.train.models import ModelRef, load_base, load_tokenizer, quiet_transformers, smollm2_path
from veritune.train.trainer import ContractTrainer, collate

BRIEFS = Path(__file__).parents[2] / "examples" / "quickstart" / "briefs.jsonl"
LR = 2e-4


class Clock(TrainerCallback):
    """Time at the end of every step, and every logged loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
        self.tick()

    def tick(self) -> None:
        self.ends.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: Any = None, **_kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def fresh_model(ref: ModelRef) -> Any:
    """The base with a new adapter drawn from seed 0."""
    torch.manual_seed(0)
    with quiet_transformers():
        return get_peft_model(
            load_base(ref), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        )


def arguments(folder: str, steps: int, batch: int) -> dict[str, Any]:
    """Training arguments that all trainers share."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "seed": 0,
        "data_seed": 0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "max_grad_norm": 1.0,
    }


def veritune(ref: ModelRef, tokenizer: Any, rows: list[Row], rendered: list[Rendered], steps: int, batch: int) -> Clock:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**arguments(folder, steps, batch), remove_unused_columns=False)
        trainer = ContractTrainer(fresh_model(ref), args, rows=rendered, validation=[], pad_id=tokenizer.pad_token_id)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    return clock


def sft(ref: ModelRef, tokenizer: Any, rows: list[Row], rendered: list[Rendered], steps: int, batch: int) -> Clock:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    renderer = Renderer(tokenizer, 512)
    prompts = [tokenizer.decode(renderer.prompt_ids(row)) for row in rows]
    pairs = [{"prompt": prompt, "completion": row.target} for prompt, row in zip(prompts, rows)]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            **arguments(folder, steps, batch), max_length=512, gradient_checkpointing=False, dataset_num_proc=None
        )
        trainer = SFTTrainer(fresh_model(ref), args, train_dataset=Dataset.from_list(pairs), processing_class=tokenizer)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    return clock


def bare(ref: ModelRef, tokenizer: Any, rows: list[Row], rendered: list[Rendered], steps: int, batch: int) -> Clock:
    """Forward with labels, backward, clip, AdamW: what people write by hand."""
    from torch.utils.data import DataLoader, RandomSampler

    clock, model = Clock(), fresh_model(ref)
    model.train()
    set_seed(0)
    data = [{"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(rendered)]
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(data, batch, sampler=sampler, collate_fn=lambda b: collate(b, tokenizer.pad_token_id))
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)
    device = next(model.parameters()).device
    while len(clock.ends) < steps:
        for inputs in loader:
            inputs = {k: v.to(device) for k, v in inputs.items() if k != "row_index"}
            loss = model(**inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            clock.losses.append(loss.item())
            clock.tick()
            if len(clock.ends) == steps:
                break
    return clock


def ratios(spent: dict[str, list[float]], peer: str) -> list[float]:
    """How many times as fast as `peer`, round by round, sorted."""
    return sorted(round(b / a, 3) for a, b in zip(spent["veritune"], spent[peer]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    ref = ModelRef("SmolLM2-135M-Instruct", smollm2_path(), "bfloat16")
    tokenizer = load_tokenizer(ref)
    rows = list(load_rows(BRIEFS, id_field="id").rows)
    rendered = list(render_rows(rows, Renderer(tokenizer, 512))[0])
    ways: dict[str, Callable[..., Clock]] = {"veritune": veritune, "trl": sft, "bare": bare}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, way in ways.items():
            with quiet_transformers():
                clock = way(ref, tokenizer, rows, rendered, args.steps, args.batch)
            seconds[name].append((clock.ends[-1] - clock.ends[0]) / (len(clock.ends) - 1))
            cpu[name].append((clock.cpu[-1] - clock.cpu[0]) / (len(clock.cpu) - 1))
            losses[name] = clock.losses[: args.steps]
    tokens = args.batch * sum(len(r.input_ids) for r in rendered) / len(rendered)
    result = {
        "tokens_per_s": {n: round(tokens / statistics.median(s), 1) for n, s in seconds.items()},
        "speed_ratio_over_trl": ratios(seconds, "trl"),
        "speed_ratio_over_bare": ratios(seconds, "bare"),
        "speed_ratio_over_trl_in_cpu_time": ratios(cpu, "trl"),
        "speed_ratio_over_bare_in_cpu_time": ratios(cpu, "bare"),
        "largest_loss_difference": {
            n: round(max(abs(a - b) for a, b in zip(losses["veritune"], losses[n])), 6) for n in ("trl", "bare")
        },
        "losses": {n: [round(x, 5) for x in v] for n, v in losses.items()},
        "steps": args.steps,
        "batch": args.batch,
    }
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

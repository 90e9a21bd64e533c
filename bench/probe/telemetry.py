"""What gradient telemetry costs per optimizer step, measured inside a real Trainer run.

    python bench/probe/telemetry.py --model FOLDER [--steps 12] [--rows 8] [--tokens 115]

`overhead_s` is the time between entering and leaving the callback's own events; the rest is the training step.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

import torch
from per_example_gradients import load
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from veritune.train.telemetry import GradientTelemetry


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, n: int, tokens: int) -> None:
        self.ids_N_T = torch.randint(10, 1000, (n, tokens), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.ids_N_T)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"input_ids": self.ids_N_T[i], "labels": self.ids_N_T[i]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=115)
    parser.add_argument("--full", action="store_true", help="train all weights instead of a LoRA")
    args = parser.parse_args()
    model = load(args.model, "bfloat16", "cpu")
    if args.full:
        model = model.unload().requires_grad_(True)
    seen = GradientTelemetry()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            max_steps=args.steps,
            per_device_train_batch_size=args.rows,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            logging_steps=1000,
            optim="sgd" if args.full else "adamw_torch",
        )
        trainer = Trainer(model=model, args=settings, train_dataset=Rows(64, args.tokens), callbacks=[seen])
        start = time.perf_counter()
        trainer.train()
        wall = time.perf_counter() - start
    step = wall / args.steps
    print(f"step {step:.3f} s, telemetry {1000 * seen.overhead_s / args.steps:.2f} ms = {seen.overhead_s / wall:.2%}")
    print(f"{seen.records[0]['n_tensors']} tensors, update {seen.records[0]['update']['method']}")


if __name__ == "__main__":
    main()

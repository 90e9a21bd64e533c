"""What per-example gradients cost against a plain training step, by every way at hand.

    python bench/probe/per_example_gradients.py --model FOLDER [--rows 8] [--tokens 115] [--rounds 5] [--full]

Interleaved rounds on the same batch, the median of per-round ratios to the plain step of the same round, with the
smallest and largest. A plain step is forward and backward of the mean loss, without the optimizer. Opacus and bergson
are measured where they are installed and named as missing where they are not. Nothing here is asserted.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from veritune.probe.batches import Batch, mean_losses
from veritune.probe.capture import Capture, Gram, Sketch, both


def load(path: str, dtype: str, device: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, target_modules=targets)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 1e-3)
    return model


def batch_of(rows: int, tokens: int, vocab: int, device: str) -> Batch:
    ids_N_T = torch.randint(10, vocab, (rows, tokens), generator=torch.Generator().manual_seed(0)).to(device)
    labels_N_T = ids_N_T.clone()
    labels_N_T[:, : tokens // 3] = -100
    return Batch(ids_N_T, labels_N_T, torch.ones_like(ids_N_T))


class Ways:
    """Every way to the same gradients; each is run once per round."""

    def __init__(self, model: Any, batch: Batch) -> None:
        self.model, self.batch = model, batch

    def plain(self) -> None:
        self.model.zero_grad(set_to_none=True)
        mean_losses(self.model, self.batch).mean().backward()

    def _captured(self, sink: Any, of: Any = "trainable") -> None:
        self.model.zero_grad(set_to_none=True)
        with Capture(self.model, sink, of=of) as capture:
            capture.backward(mean_losses(self.model, self.batch))

    def gram_by_type(self) -> None:
        self._captured(Gram())

    def sketch_4093(self) -> None:
        self._captured(self.sketch)

    def gram_and_sketch(self) -> None:
        self._captured(both(Gram(), self.sketch))

    def zero_b_probe_gram(self) -> None:
        self._captured(Gram(), "probe")

    def one_backward_each(self) -> None:
        b = self.batch
        for i in range(len(b.ids_N_T)):
            self.model.zero_grad(set_to_none=True)
            one = Batch(b.ids_N_T[i : i + 1], b.labels_N_T[i : i + 1], b.mask_N_T[i : i + 1])
            mean_losses(self.model, one).sum().backward()

    def vmap_grad(self) -> None:
        from torch.func import functional_call, grad, vmap

        params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

        def loss(values: dict[str, torch.Tensor], ids_T: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
            given = {"input_ids": ids_T[None], "use_cache": False}
            logits = functional_call(self.model, values, (), given).logits[0, :-1].float()
            out: torch.Tensor = torch.nn.functional.cross_entropy(logits, labels_T[1:], ignore_index=-100)
            return out

        grads = vmap(grad(loss), in_dims=(None, 0, 0))(params, self.batch.ids_N_T, self.batch.labels_N_T)
        rows = [g.reshape(len(g), -1).float() for g in grads.values()]
        sum((g @ g.t() for g in rows), torch.zeros(()))

    @property
    def sketch(self) -> Sketch:
        # signs are drawn once per run of a probe, not once per batch
        if not hasattr(self, "_sketch"):
            self._sketch = Sketch(4093)
        self._sketch._now, self._sketch._square_N = {}, {}
        return self._sketch


def opacus_way(ways: Ways) -> Callable[[], None]:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(ways.model, strict=False)

    def run() -> None:
        wrapped.zero_grad(set_to_none=True)
        mean_losses(wrapped, ways.batch).sum().backward()

    return run


def timed(run: Callable[[], None], device: str) -> float:
    """Wall seconds on a GPU; processor seconds on a CPU, which a busy machine disturbs less."""
    if device != "cuda":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=115)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--skip", nargs="*", default=[])
    args = parser.parse_args()

    model = load(args.model, args.dtype, args.device)
    ways = Ways(model, batch_of(args.rows, args.tokens, model.config.vocab_size, args.device))
    names = ["gram_by_type", "sketch_4093", "gram_and_sketch", "zero_b_probe_gram", "one_backward_each", "vmap_grad"]
    runs: dict[str, Callable[[], None]] = {n: getattr(ways, n) for n in names if n not in args.skip}
    missing = [name for name in ("opacus", "bergson") if importlib.util.find_spec(name) is None]
    if "opacus" not in missing:
        runs["opacus"] = opacus_way(ways)
    failed: dict[str, str] = {}
    for name, run in {"plain": ways.plain, **runs}.items():
        try:
            timed(run, args.device)
        except Exception as exc:  # a peer that cannot run this model is a result, not a crash
            failed[name] = f"{type(exc).__name__}: {str(exc).splitlines()[0][:120]}"
    ratios: dict[str, list[float]] = {n: [] for n in runs if n not in failed}
    plain_s = []
    for _ in range(args.rounds):
        base = timed(ways.plain, args.device)
        plain_s.append(base)
        for name, values in ratios.items():
            again = timed(ways.plain, args.device)
            values.append(timed(runs[name], args.device) / ((base + again) / 2))
            base = again
    print(f"plain step {statistics.median(plain_s):.3f} s, {args.rows} rows x {args.tokens} tokens, {args.dtype}")
    for name, values in ratios.items():
        print(f"{name:20s} {statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})")
    for name, why in failed.items():
        print(f"{name:20s} failed: {why}")
    for name in missing:
        print(f"{name:20s} not installed")
    machine = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "load": os.getloadavg(),
    }
    print(json.dumps({"args": vars(args), "plain_s": plain_s, "ratios": ratios, "failed": failed, "machine": machine}))


if __name__ == "__main__":
    main()

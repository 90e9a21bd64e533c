"""What the inner products of per-example gradients cost against a plain training step, by every way at hand.

    python bench/probe/per_example_gradients.py --model FOLDER|tiny [--rows 8] [--tokens 115] [--rounds 5]

Interleaved rounds on the same batch: before and after each way a plain step, the ratio to the mean of the two; the
median of the ratios with the smallest and largest. A plain step is forward and backward of the mean loss, without the
optimizer. Every way ends in the Gram matrix by module type (the sketch apart), made by the same code, and before
anything is timed its total is compared with that of one backward per example: the largest error over the largest
entry is printed. bergson's projected gradients differ by their projection. Opacus and bergson are measured where they
are installed and named as missing where they are not. Nothing here is asserted. `tiny` is a Llama of 2.5 million
parameters with random weights.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from veritune.probe.batches import Batch, mean_losses
from veritune.probe.capture import Capture, Gram, Sketch, both


def load(path: str, dtype: str, device: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = tiny() if path == "tiny" else AutoModelForCausalLM.from_pretrained(path)
    base = base.to(dtype=getattr(torch, dtype), device=device)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=8, target_modules=targets)).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 1e-3)
    return model


def tiny() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
    return LlamaForCausalLM(LlamaConfig(vocab_size=2048, max_position_embeddings=256, **shape))


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

    def gram_by_type(self) -> Gram:
        self._captured(gram := Gram())
        return gram

    def sketch_4093(self) -> None:
        self._captured(self.sketch)

    def gram_and_sketch(self) -> Gram:
        self._captured(both(gram := Gram(), self.sketch))
        return gram

    def zero_b_probe_gram(self) -> None:
        self._captured(Gram(), "probe")

    def one_backward_each(self) -> Gram:
        b, rows = self.batch, {n: [] for n, p in self.model.named_parameters() if p.requires_grad}
        for i in range(len(b.ids_N_T)):
            self.model.zero_grad(set_to_none=True)
            one = Batch(b.ids_N_T[i : i + 1], b.labels_N_T[i : i + 1], b.mask_N_T[i : i + 1])
            mean_losses(self.model, one).sum().backward()
            for name, p in self.model.named_parameters():
                if p.requires_grad:
                    rows[name].append(p.grad)
        return gram_of({name: torch.stack(grads) for name, grads in rows.items()})

    def vmap_grad(self) -> Gram:
        from torch.func import functional_call, grad, vmap

        params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

        def loss(values: dict[str, torch.Tensor], ids_T: torch.Tensor, labels_T: torch.Tensor) -> torch.Tensor:
            given = {"input_ids": ids_T[None], "use_cache": False}
            logits = functional_call(self.model, values, (), given).logits[0, :-1].float()
            out: torch.Tensor = torch.nn.functional.cross_entropy(logits, labels_T[1:], ignore_index=-100)
            return out

        return gram_of(vmap(grad(loss), in_dims=(None, 0, 0))(params, self.batch.ids_N_T, self.batch.labels_N_T))

    @property
    def sketch(self) -> Sketch:
        # signs are drawn once per run of a probe, not once per batch
        if not hasattr(self, "_sketch"):
            self._sketch = Sketch(4093)
        self._sketch._now, self._sketch._square_N = {}, {}
        return self._sketch


def gram_of(grads: Mapping[str, torch.Tensor]) -> Gram:
    gram = Gram()
    for name, grad_N in grads.items():
        gram(name, grad_N)
    return gram


def opacus_way(ways: Ways) -> Callable[[], Gram]:
    """Opacus captures in training mode only (this adapter has no dropout); its hooks must not outlast the run."""
    from opacus import GradSampleModule

    wrapped = GradSampleModule(ways.model, strict=False, loss_reduction="sum")
    wrapped.remove_hooks()

    def run() -> Gram:
        wrapped.add_hooks(loss_reduction="sum")
        ways.model.train()
        try:
            wrapped.zero_grad(set_to_none=True)
            mean_losses(wrapped, ways.batch).sum().backward()
            gram = gram_of({n: p.grad_sample for n, p in ways.model.named_parameters() if p.requires_grad})
            wrapped.zero_grad(set_to_none=True)
        finally:
            wrapped.remove_hooks()
            ways.model.eval()
        return gram

    return run


def bergson_way(ways: Ways, projection: int | None) -> Callable[[], Gram]:
    """bergson's collector without its index on disk; `projection` p makes each module's gradient p x p."""
    from bergson.collector.gradient_collectors import GradientCollector
    from bergson.config import IndexConfig
    from bergson.gradients import GradientProcessor
    from datasets import Dataset

    data = Dataset.from_dict({"row": list(range(len(ways.batch.ids_N_T)))})
    targets = {n.removesuffix(".weight") for n, p in ways.model.named_parameters() if p.requires_grad}
    processor = GradientProcessor(projection_dim=projection)

    def run() -> Gram:
        ways.model.zero_grad(set_to_none=True)
        collector = GradientCollector(
            model=ways.model,
            data=data,
            cfg=IndexConfig(run_path="unused"),
            processor=processor,
            target_modules=targets,
            skip_index=True,
        )
        with collector:
            mean_losses(ways.model, ways.batch).sum().backward()
        return gram_of(collector.mod_grads)

    return run


def installed(ways: Ways) -> tuple[dict[str, Callable[[], Gram]], list[str]]:
    """The peers' ways that can be made here, and what is missing or broke."""
    found: dict[str, Callable[[], Gram]] = {}
    missing = []
    made = {
        "opacus": lambda: opacus_way(ways),
        "bergson": lambda: bergson_way(ways, None),
        "bergson_p16": lambda: bergson_way(ways, 16),
    }
    for name, make in made.items():
        if importlib.util.find_spec(name.split("_")[0]) is None:
            missing.append(f"{name}: not installed")
            continue
        try:
            found[name] = make()
        except Exception as exc:  # a peer that cannot take this model is a result, not a crash
            missing.append(f"{name}: {type(exc).__name__}: {str(exc).splitlines()[0][:120]}")
    return found, missing


def checked(runs: Mapping[str, Callable[[], Any]], truth: torch.Tensor) -> tuple[dict[str, float], dict[str, str]]:
    """Each way once, untimed: the error of its Gram matrix, and why a way failed."""
    error, failed = {}, {}
    for name, run in runs.items():
        try:
            gram = run()
        except Exception as exc:
            failed[name] = f"{type(exc).__name__}: {str(exc).splitlines()[0][:120]}"
            continue
        if gram is not None:
            error[name] = float((gram.total - truth).abs().max() / truth.abs().max())
    return error, failed


def timed(run: Callable[[], Any], device: str) -> float:
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
    runs: dict[str, Callable[[], Any]] = {n: getattr(ways, n) for n in names if n not in args.skip}
    peers, missing = installed(ways)
    runs |= {n: run for n, run in peers.items() if n not in args.skip}
    error, failed = checked(runs, ways.one_backward_each().total)
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
        off = f"Gram off by {error[name]:.0e}" if name in error else ""
        print(f"{name:20s} {statistics.median(values):.3f}  ({min(values):.3f} to {max(values):.3f})  {off}")
    for name, why in failed.items():
        print(f"{name:20s} failed: {why}")
    for why in missing:
        print(why)
    machine = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "load": os.getloadavg(),
    }
    print(
        json.dumps(
            {
                "args": vars(args),
                "plain_s": plain_s,
                "ratios": ratios,
                "error": error,
                "failed": failed,
                "machine": machine,
            }
        )
    )


if __name__ == "__main__":
    main()

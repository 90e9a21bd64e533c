"""Peak memory of `veritune probe weights` at two checkpoint sizes, and of `veritune probe geometry` at two numbers of
prompts: does it follow the largest tensor and the model, or the checkpoint and the prompts?

    python bench/probe/memory.py weights [--layers 1 6] [--folder /tmp/...]
    python bench/probe/memory.py geometry [--questions 4 32] [--model builtin:smollm2-135m-instruct]

Every measurement is a process of its own; what is printed is the kernel's high-water mark of resident memory (VmHWM).
The synthetic checkpoints have the tensors of a Llama of 7B parameters (4096 wide, 32 layers) and fewer layers of them:
random bfloat16 values, two folders each, deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTH, INNER, VOCAB, LAYERS_7B = 4096, 11008, 32000, 32
LAYER = {
    "self_attn.q_proj": (WIDTH, WIDTH),
    "self_attn.k_proj": (WIDTH, WIDTH),
    "self_attn.v_proj": (WIDTH, WIDTH),
    "self_attn.o_proj": (WIDTH, WIDTH),
    "mlp.gate_proj": (INNER, WIDTH),
    "mlp.up_proj": (INNER, WIDTH),
    "mlp.down_proj": (WIDTH, INNER),
}
GB = 1e9


def write_checkpoint(folder: Path, layers: int, shift: float) -> int:
    """A folder of shards, one a layer, filled from one random pool; its size in bytes."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    pool = (torch.randn(VOCAB * WIDTH, generator=torch.Generator().manual_seed(0)) * 0.02 + shift).bfloat16()

    def tensor(shape: tuple[int, int]) -> torch.Tensor:
        return pool[: shape[0] * shape[1]].view(shape).clone()

    for n in range(layers):
        shard = {f"model.layers.{n}.{name}.weight": tensor(shape) for name, shape in LAYER.items()}
        save_file(shard, folder / f"model-{n:05d}.safetensors")
    ends = {"model.embed_tokens.weight": tensor((VOCAB, WIDTH)), "lm_head.weight": tensor((VOCAB, WIDTH))}
    save_file(ends, folder / "model-ends.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    return sum(p.stat().st_size for p in folder.iterdir())


def peak_of(code: str, *arguments: object) -> tuple[int, float]:
    """(peak resident bytes, seconds) of a child that runs `code`."""
    tail = "\nfrom veritune.machine import peak_memory_bytes\nprint('PEAK', peak_memory_bytes())"
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code + tail, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr)
    line = next(x for x in done.stdout.splitlines() if x.startswith("PEAK"))
    return int(line.split()[1]), time.monotonic() - began


NOTHING = "import sys\nimport veritune.probe.weights\n"
CHANGE = NOTHING + "veritune.probe.weights.checkpoint_change(sys.argv[1], sys.argv[2])\n"
GEOMETRY = """
import sys
from veritune.probe import geometry as g
from veritune.probe.study import subject
found = subject(sys.argv[1])
n = int(sys.argv[2])
asked = [f"{q} ({i})" for i in range(n) for q in g.QUESTIONS][:n]
prompts = g.render_personas(found.renderer.tokenizer, g.PERSONAS, asked)
g.states(found.base(), prompts)
print(len(prompts.personas) * n, "prompts")
"""


def weights(layers: list[int], folder: Path | None) -> None:
    root = Path(tempfile.mkdtemp(prefix="veritune-weights-", dir=folder))
    largest = VOCAB * WIDTH * 2
    bare, _ = peak_of(NOTHING)
    print(f"largest tensor {largest / GB:.2f} GB (bfloat16); the process before it reads anything {bare / GB:.2f} GB")
    points = []
    try:
        for n in layers:
            size = write_checkpoint(root / f"{n}-before", n, 0.0)
            write_checkpoint(root / f"{n}-after", n, 0.001)
            peak, seconds = peak_of(CHANGE, root / f"{n}-before", root / f"{n}-after")
            points.append((size, peak))
            print(f"{n} layers: 2 x {size / GB:.2f} GB, peak {peak / GB:.2f} GB, {seconds:.0f} s", flush=True)
            shutil.rmtree(root / f"{n}-before")
            shutil.rmtree(root / f"{n}-after")
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if len(points) > 1:
        (size, peak), (size_2, peak_2) = points[0], points[-1]
        slope = (peak_2 - peak) / (size_2 - size)
        whole = 2 * (LAYERS_7B * sum(a * b for a, b in LAYER.values()) + 2 * VOCAB * WIDTH)
        said = peak_2 + max(slope, 0.0) * (whole - size_2)
        print(f"growth {slope:+.3f} bytes a byte of checkpoint; at 7B (2 x {whole / GB:.1f} GB) {said / GB:.2f} GB")


def geometry(questions: list[int], model: str) -> None:
    for n in questions:
        peak, seconds = peak_of(GEOMETRY, model, n)
        print(f"12 personas x {n} questions: peak {peak / GB:.2f} GB, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("weights", "geometry"))
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 6])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--questions", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--model", default="builtin:smollm2-135m-instruct")
    asked = parser.parse_args()
    if asked.what == "weights":
        weights(asked.layers, asked.folder)
    else:
        geometry(asked.questions, asked.model)


if __name__ == "__main__":
    main()

"""Greedy generation: batched against one by one, on the quickstart's prompts, interleaved.

    python bench/generate/run.py [--prompts 16] [--rounds 3] [--new 32]

Printed: new tokens per second of both, the ratio round by round, and how many outputs are identical.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from veritune.data.load import load_rows
from veritune.data.render import Renderer
from veritune.evaluate.generate import Decoding, generate
from veritune.train.models import ModelRef, load_base, load_tokenizer, smollm2_path

BRIEFS = Path(__file__).parents[2] / "examples" / "quickstart" / "briefs.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=32)
    args = parser.parse_args()
    ref = ModelRef("SmolLM2-135M-Instruct", smollm2_path(), "bfloat16")
    tokenizer, model = load_tokenizer(ref), load_base(ref)
    renderer = Renderer(tokenizer, 512)
    prompts = [renderer.prompt_ids(row) for row in load_rows(BRIEFS, id_field="id").rows[: args.prompts]]
    rates: dict[str, list[float]] = {"batched": [], "one_by_one": []}
    texts: dict[str, list[str]] = {}
    for _ in range(args.rounds):
        for name, size in (("batched", len(prompts)), ("one_by_one", 1)):
            began = time.perf_counter()
            outputs = generate(model, tokenizer, prompts, Decoding(args.new, size))
            rates[name].append(sum(len(o.token_ids) + 1 for o in outputs) / (time.perf_counter() - began))
            texts[name] = [o.text for o in outputs]
    same = sum(a == b for a, b in zip(*texts.values()))
    result = {
        "tokens_per_s": {k: round(statistics.median(v), 1) for k, v in rates.items()},
        "ratio": sorted(round(a / b, 2) for a, b in zip(rates["batched"], rates["one_by_one"])),
        "identical_outputs": f"{same} of {len(prompts)}",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

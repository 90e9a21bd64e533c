"""Attribution on SmolLM2-135M: rank the families behind wrong answers, and train again without them.

    python bench/probe/attribution.py --out DIR [--seeds 0 1 2] [--steps 10]

GSM8K (VERITUNE_GSM8K, else ../shared/data/gsm8k beside the checkout): 34 short questions, 24 of them trained on, each a
family of its own with a second wording held out. For every seed the study is run, its wrong outputs are attributed, and
`--verify` trains again without the top, similar and random families. The records lie in DIR/seed-N/probes/attribution;
what they came to is printed. It resumes where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from pathlib import Path

from veritune.pipeline.attribution import AttributionAsked, attribution_command
from veritune.pipeline.flow import run
from veritune.progress import Progress
from veritune.report.attribution import attribution_text

GSM8K = Path(os.environ.get("VERITUNE_GSM8K") or Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k")
FAMILIES, LONGEST = 34, 150
STUDY = """
name: attribution_smollm2
question: Which training questions move the wrong answers?
model: {{path: builtin:smollm2-135m-instruct, dtype: auto}}
data: {{path: rows.jsonl, id_field: id, family_field: original}}
split: {{seed: 1, stranger: 0.2, validation: 0.08, sibling: 0.2}}
train: {{max_steps: {steps}, per_device_train_batch_size: 4, learning_rate: 2e-3, eval_steps: {half}, max_length: 256}}
conditions:
  tuned: {{method: lora, target_modules: all-linear, r: 8}}
seeds: [{seed}]
keep: all
evals:
  answers: {{kind: match, extract: '#### *([-0-9,.]+)', expected: final, max_new_tokens: 40, batch_size: 16}}
"""


def write_study(folder: Path, seed: int, steps: int) -> None:
    """The study's file and its rows; nothing where they are there."""
    if (folder / "study.yaml").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (GSM8K / "train.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if len(r["question"]) < LONGEST and len(r["answer"]) < LONGEST]
    random.Random(0).shuffle(rows)
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as out:
        for i, row in enumerate(rows[:FAMILIES]):
            answer, final = re.sub(r"<<.*?>>", "", row["answer"]), row["answer"].split("####")[-1].strip()
            for k, ask in enumerate(("", "Please solve this. ")):
                turns = [{"role": "user", "content": ask + row["question"]}, {"role": "assistant", "content": answer}]
                made = {"id": f"g{i:02d}-{k}", "original": f"g{i:02d}", "final": final, "messages": turns}
                out.write(json.dumps(made) + "\n")
    text = STUDY.format(seed=seed, steps=steps, half=max(1, steps // 2))
    (folder / "study.yaml").write_text(text, encoding="utf-8")


def main() -> None:
    """Every seed's study, ranking and retraining."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    for seed in args.seeds:
        folder = args.out / f"seed-{seed}"
        write_study(folder, seed, args.steps)
        run(folder, progress=Progress())
        found = attribution_command(folder, AttributionAsked("tuned", seed=seed, verify=True), Progress())
        print(f"\nseed {seed}\n{attribution_text(found)}", flush=True)


if __name__ == "__main__":
    main()

"""Train, convert, sample and export through a real Tinker server; called by run.sh in its own venv.

python loopback.py URL MODEL_FOLDER OUT
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from veritune.records import Rendered
from veritune.train.backends.tinker import Session, TinkerConfig


def rows(n: int) -> list[Rendered]:
    """Rows of random prompts with one answer, so that a few steps can learn it; the loss falls on the answer alone."""
    rng, answer = random.Random(0), (40, 41, 42, 43, 2)
    found = []
    for i in range(n):
        prompt = tuple(rng.randrange(50, 200) for _ in range(8))
        found.append(Rendered(str(i), prompt + answer, (-100,) * len(prompt) + answer))
    return found


def main(url: str, model: str, out: str) -> int:
    """Run all steps, print what came of each as JSON; 1 when one of them is not as it must be."""
    session = Session(TinkerConfig(model, url, rank=8, seed=0, targets=("attention",)))
    data = rows(8)
    steps = list(session.train([data] * 30, [1e-2] * 30))
    weights = session.save("final")
    answers = session.sample(weights, [row.input_ids[:8] for row in data], max_tokens=8, stop=[2])
    exported = session.export(weights, Path(out))
    right = sum(ids[:4] == (40, 41, 42, 43) for ids, _ in answers)
    print(json.dumps({"losses": [round(s.loss, 4) for s in steps], "answers_learned": f"{right} of {len(answers)}"}))
    print(json.dumps({"answer": answers[0], "expires": weights.expires}))
    print(json.dumps(exported, indent=1))
    return 0 if right == len(answers) and steps[-1].loss < steps[0].loss and exported["files"] else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

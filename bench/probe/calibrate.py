"""Is the number of independent examples right? n_eff, read at the base, against what training says.

    python bench/probe/calibrate.py --out FOLDER [--models smollm2 scratch] [--seeds 0 1 2]   # resumable
    python bench/probe/calibrate.py --out FOLDER --short --models smollm2                      # 7 processor minutes
    python bench/probe/calibrate.py --out FOLDER --table [--cases bench/probe/calibration.json]

Training says it so: runs on k unrelated rows, for several k and always the same number of steps, give held-out loss
as a curve in log k. A run on 256 rows that are rewordings of few originals has a held-out loss too; the k at which
unrelated rows give that loss is what those 256 rows were worth. n_eff is read before training, from gradients at the
base alone.
Nothing of the probe is tuned here.

Two models: SmolLM2-135M-Instruct with LoRA (r = 8 on all linear modules), and a Llama of about 2.5 million parameters
trained here from scratch on other rows of GSM8K, then fine-tuned in full. Rows are short GSM8K problems, loss on the
answer; the held-out rows are 48 originals that no run sees. Edits are those of the audit's corpus: `weak` changes
names, `strong` changes names, the order of sentences, words for synonyms and the wrapping.

`--short` is for SmolLM2 where processors are few: the first two sentences of a problem (at most 32 tokens, loss on all
of them), 64 rows instead of 256, 16 steps instead of 40, curve points 8, 16, 32 and 64, and edits of names and words
only. It can tell a factor of two. It cannot tell ten per cent, says nothing of long rows, of answers, of hundreds of
rows or of many steps, and the two sets share the curve of their seed, so their errors are not independent.

With `--cases`, finished cases are joined with those of the file (the published ones; the older are rounded), and how
often an interval holds what the rows were worth is counted: n_eff's own interval, which is for the families drawn; and
that interval with its ends moved by the smallest and largest n_eff / worth, taken from all cases, or from the other
models' cases only (leave one model out).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "audit"))
import corpus

from veritune.probe.effective import SamplePlan
from veritune.probe.gradients import Settings, probe_gradients
from veritune.records import Rendered

EDITS = {
    "weak": (corpus.swap_names,),
    "strong": (corpus.swap_names, corpus.reorder, corpus.synonyms, corpus.wrap),
    "names and words": (corpus.swap_names, corpus.synonyms),
}
BATCH, HELD_OUT = 8, 48


@dataclass(frozen=True)
class Design:
    """What is trained: the curve's row counts, the reworded sets (families, rows of each, edit), and for how long."""

    unrelated: tuple[int, ...]
    reworded: Mapping[str, tuple[int, int, str]]
    steps: int
    longest: int  # tokens of an original
    opening: bool = False  # rows are the first two sentences of a problem, loss on all of it


FULL = Design(
    (8, 24, 64, 256),
    {"32 x 8 weak": (32, 8, "weak"), "32 x 8 strong": (32, 8, "strong"), "8 x 32 strong": (8, 32, "strong")},
    steps=40,
    longest=120,
)
SHORT = Design(
    (8, 64, 16, 32),
    {"8 x 8 names and words": (8, 8, "names and words"), "16 x 4 names and words": (16, 4, "names and words")},
    steps=16,
    longest=32,
    opening=True,
)
SCRATCH_ROWS = 4_000  # rows from here on train the small model and its tokenizer, and nothing else


@dataclass(frozen=True)
class Lab:
    """One model under test: a fresh copy of the base to train, its tokenizer, its learning rate."""

    name: str
    fresh: Callable[[int], Any]
    base: Callable[[], Any]
    tokenizer: Any
    lr: float
    design: Design = FULL


# ---------------------------------------------------------------- models


def smollm2(design: Design = FULL) -> Lab:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from veritune.train.models import smollm2_path

    folder = smollm2_path()

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def fresh(seed: int) -> Any:
        torch.manual_seed(seed)
        config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        return get_peft_model(base(), config)

    name = "smollm2" if design is FULL else "smollm2-short"
    return Lab(name, fresh, base, AutoTokenizer.from_pretrained(folder), 5e-4, design)


def scratch(out: Path) -> Lab:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = out / "scratch-model"
    if not (folder / "config.json").exists():
        _pretrain(folder)

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    return Lab("scratch", lambda _seed: base(), base, AutoTokenizer.from_pretrained(folder), 5e-4)


def _pretrain(folder: Path) -> None:
    """A 4-layer Llama and its BPE, trained on GSM8K rows that no run uses."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    texts = [_text(row)[0] + _text(row)[1] for row in corpus.load()[SCRATCH_ROWS:]]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2048, special_tokens=["<e>"], initial_alphabet=alphabet)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<e>", pad_token="<e>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=2048,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=256,
            eos_token_id=0,
            bos_token_id=0,
            pad_token_id=0,
        )
    )
    stream = torch.tensor([t for text in texts for t in [*tokenizer(text)["input_ids"], 0]])
    draw = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(500):
        at = torch.randint(0, len(stream) - 129, (16,), generator=draw)
        ids = torch.stack([stream[a : a + 128] for a in at.tolist()])
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 40) * (1 - step / 500)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"scratch model: last loss {loss.item():.2f}", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---------------------------------------------------------------- rows


def _text(row: corpus.Pair, opening: bool = False) -> tuple[str, str]:
    if opening:
        return "Problem:", " " + " ".join(re.split(r"(?<=[.?!])\s+", row[0].strip())[:2])
    return f"Problem: {row[0]}\nSolution: ", row[1]


def render(lab: Lab, pairs: Sequence[corpus.Pair]) -> list[Rendered]:
    rows = []
    for i, pair in enumerate(pairs):
        head, tail = (
            lab.tokenizer(part, add_special_tokens=False)["input_ids"] for part in _text(pair, lab.design.opening)
        )
        ids = (*head, *tail, lab.tokenizer.eos_token_id)
        rows.append(Rendered(f"r{i}", ids, (*[-100] * len(head), *ids[len(head) :])))
    return rows


def deal(lab: Lab, seed: int) -> tuple[list[corpus.Pair], list[corpus.Pair]]:
    """Short originals in a seeded order, and the held-out ones."""
    originals = corpus.load()[:SCRATCH_ROWS]
    short = [p for p, r in zip(originals, render(lab, originals)) if len(r.input_ids) <= lab.design.longest]
    random.Random(f"{lab.name}-{seed}").shuffle(short)
    assert len(short) >= max(lab.design.unrelated) + HELD_OUT, f"only {len(short)} originals are short enough"
    return short[HELD_OUT:], short[:HELD_OUT]


def reworded(originals: Sequence[corpus.Pair], times: int, how: str, seed: int) -> tuple[list[corpus.Pair], list[str]]:
    """Each original and `times` - 1 rewordings; the family of every row."""
    rng = random.Random(f"{how}-{seed}")
    pairs, families = [], []
    for f, original in enumerate(originals):
        for k in range(times):
            pair = original
            for edit in EDITS[how] if k else ():
                pair = edit(pair, rng)
            pairs.append(pair)
            families.append(f"f{f}")
    return pairs, families


# ---------------------------------------------------------------- runs


def batch_of(rows: Sequence[Rendered]) -> dict[str, torch.Tensor]:
    from veritune.train.trainer import collate

    items = [{"input_ids": r.input_ids, "labels": r.labels, "row_index": i} for i, r in enumerate(rows)]
    batch = collate(items, 0)
    batch.pop("row_index")
    return batch


def train(lab: Lab, rows: Sequence[Rendered], held: Sequence[Rendered], seed: int) -> dict[str, float]:
    """Held-out and seen loss after the fixed number of steps, and the lowest held-out loss on the way."""
    from veritune.train.trainer import mean_nll, row_nll, target_nll

    model = lab.fresh(seed)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lab.lr, weight_decay=0.0)
    order = random.Random(f"order-{seed}")
    queue: list[int] = []
    held_nll = []
    for step in range(1, lab.design.steps + 1):
        while len(queue) < BATCH:
            queue += order.sample(range(len(rows)), len(rows))
        picked, queue = queue[:BATCH], queue[BATCH:]
        for group in optimizer.param_groups:
            group["lr"] = lab.lr * min(1.0, step / 4)
        batch = batch_of([rows[i] for i in picked])
        nll_N, _ = target_nll(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        nll_N.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step == lab.design.steps or (step == lab.design.steps // 2 and lab.design is FULL):
            held_nll.append(mean_nll(row_nll(model, held, 0)))
    seen = mean_nll(row_nll(model, rows[:32], 0))
    return {"held_out": held_nll[-1], "lowest": min(held_nll), "seen": seen}


def measure(lab: Lab, rows: Sequence[Rendered], families: Sequence[str], seed: int) -> dict[str, Any]:
    probe = probe_gradients(
        lab.base(), rows, families, settings=Settings(of="probe", seed=seed, plan=SamplePlan(max_rows=100, seed=seed)),
        base_loss="self",
    )  # fmt: skip
    found = probe.estimate("n_eff")
    return {"n_eff": found.value, "low": found.low, "high": found.high, "rho": probe.estimate("rho").value}


def run_all(lab: Lab, seed: int, out: Path) -> None:
    originals, held_pairs = deal(lab, seed)
    held = render(lab, held_pairs)

    def once(name: str, make: Callable[[], dict[str, Any]]) -> None:
        path = out / f"{lab.name}-s{seed}-{name.replace(' ', '')}.json"
        if not path.exists():
            began = time.perf_counter()
            record = make()
            path.write_text(json.dumps({"name": name, "model": lab.name, "seed": seed, **record}))
            print(f"{path.stem}: {record} in {time.perf_counter() - began:.0f} s", flush=True)

    for k in lab.design.unrelated:
        once(f"unrelated {k}", lambda k=k: train(lab, render(lab, originals[:k]), held, seed))
    for name, (n, times, how) in lab.design.reworded.items():
        pairs, families = reworded(originals[:n], times, how, seed)
        rows = render(lab, pairs)
        once(name, lambda rows=rows, families=families: {
            **measure(lab, rows, families, seed), **train(lab, rows, held, seed), "rows": len(rows)
        })  # fmt: skip


# ---------------------------------------------------------------- what it says


def equivalent(loss: float, curve: Sequence[tuple[int, float]]) -> tuple[float, str]:
    """The number of unrelated rows with this held-out loss, log-linear between the runs, and `<`, `>` beyond them."""
    points = sorted(curve)
    best = [(k, min(v for kk, v in points if kk <= k)) for k, _ in points]  # losses fall with k; noise may not
    if loss >= best[0][1]:
        return float(best[0][0]), "<"
    if loss <= best[-1][1]:
        return float(best[-1][0]), ">"
    for (k0, v0), (k1, v1) in itertools.pairwise(best):
        if v1 <= loss <= v0 and v0 > v1:
            share = (v0 - loss) / (v0 - v1)
            return math.exp(math.log(k0) + share * (math.log(k1) - math.log(k0))), ""
    raise AssertionError("the curve is monotone")


def finished(out: Path) -> list[dict[str, Any]]:
    """The runs' cases: n_eff with its interval, and `worth` with `beyond` where the curve does not reach."""
    runs = [json.loads(p.read_text()) for p in sorted(out.glob("*-s?-*.json"))]
    made = []
    for run in [r for r in runs if "n_eff" in r]:
        mine = [r for r in runs if (r["model"], r["seed"]) == (run["model"], run["seed"]) and "n_eff" not in r]
        worth, beyond = equivalent(run["held_out"], [(int(r["name"].split()[1]), r["held_out"]) for r in mine])
        case = {k: run[k] for k in ("model", "seed", "name", "rows", "n_eff", "low", "high")}
        made.append({**case, "worth": worth, "beyond": beyond})
    return made


def table(out: Path, cases: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| model | seed | data | nominal | n_eff | 95 %, families drawn | worth, by held-out loss | n_eff / worth |"
    ]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for c in cases:
        span = "none" if c["low"] is None else f"{c['low']:.0f} to {c['high']:.0f}"
        ratio = "-" if c["beyond"] else f"{c['n_eff'] / c['worth']:.2f}"
        lines.append(
            f"| {c['model']} | {c['seed']} | {c['name']} | {c['rows']} | {c['n_eff']:.0f} | {span} |"
            f" {c['beyond']}{c['worth']:.0f} | {ratio} |"
        )
    losses: dict[tuple[str, str], list[float]] = {}
    for run in (json.loads(p.read_text()) for p in sorted(out.glob("*-s?-*.json"))):
        if "n_eff" not in run:
            losses.setdefault((run["model"], run["name"]), []).append(run["held_out"])
    lines += [
        f"{m} {n}: held-out loss {statistics.mean(v):.3f} ({len(v)} seeds)" for (m, n), v in sorted(losses.items())
    ]
    return "\n".join([*lines, coverage(cases)])


def coverage(cases: Sequence[dict[str, Any]]) -> str:
    """By model: n_eff / worth, and how often each kind of interval holds the worth."""
    known = [c for c in cases if not c["beyond"] and c["low"] is not None]
    family = {c["model"]: c["model"].split("-")[0] for c in known}  # short and whole rows are one model
    ratios: dict[str, list[float]] = {}
    for c in known:
        ratios.setdefault(family[c["model"]], []).append(c["n_eff"] / c["worth"])

    def holds(case: dict[str, Any], seen: Sequence[float]) -> bool:
        return bool(case["low"] / max(seen) <= case["worth"] <= case["high"] / min(seen))

    lines = []
    for model, mine in ratios.items():
        theirs = [r for other, values in ratios.items() if other != model for r in values]
        here = [c for c in known if family[c["model"]] == model]
        lines.append(
            f"{model}: n_eff / worth {statistics.median(mine):.2f} (median), {min(mine):.2f} to {max(mine):.2f}; of "
            f"{len(here)} cases n_eff's interval holds the worth in {sum(holds(c, [1.0]) for c in here)}"
            + (f", moved by the other models' ratios in {sum(holds(c, theirs) for c in here)}" if theirs else "")
        )
    every = [r for values in ratios.values() for r in values]
    if every:
        lines.append(f"all: {min(every):.2f} to {max(every):.2f}, {len(every)} cases")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=["scratch", "smollm2"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--short", action="store_true", help="SmolLM2 on the small design; see the head of this file")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--cases", type=Path, help="finished cases to join with, as bench/probe/calibration.json")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    if not given.table:
        for name in given.models:
            lab = scratch(given.out) if name == "scratch" else smollm2(SHORT if given.short else FULL)
            for seed in given.seeds:
                run_all(lab, seed, given.out)
    cases = finished(given.out)
    known = {(c["model"], c["seed"], c["name"]) for c in cases}
    earlier = json.loads(given.cases.read_text()) if given.cases else []
    print(table(given.out, [*cases, *(c for c in earlier if (c["model"], c["seed"], c["name"]) not in known)]))


if __name__ == "__main__":
    main()

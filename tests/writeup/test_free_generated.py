"""Properties of records-only lint over generated records and pages: no true number is accused, false ones do not pass.

Records have names that resemble one another on purpose: `acc`, `acc_norm`, `acc_norm_stderr`; an arm called `ours`; a
measure called `score`; sizes and versions in names.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from veritune.writeup.lint.free import lint_records
from veritune.writeup.lint.rules import NumberFate

ARMS = [
    "base",
    "tuned",
    "lora-r8",
    "lora-r64",
    "full_ft",
    "Llama-3-8B",
    "qwen2.5",
    "ours",
    "ours-large",
    "gpt-4o",
    "baseline",
    "sft",
    "sft+dpo",
    "v1",
    "v2",
]
BENCHES = [
    "gsm8k",
    "mmlu",
    "hellaswag",
    "ARC-Challenge",
    "humaneval",
    "squad_v2",
    "mt_bench",
    "dev",
    "test",
    "held-out",
]
MEASURES = [
    "accuracy",
    "acc",
    "acc_norm",
    "acc_norm_stderr",
    "f1",
    "f1_macro",
    "exact_match",
    "loss",
    "val_loss",
    "best_val_loss",
    "samples_per_second",
    "samples",
    "bleu",
    "error_rate",
    "latency_ms",
    "pass@1",
    "score",
    "win_rate",
    "perplexity",
    "ece",
]
SENTENCES = (
    "The {a} model reaches a {m} of {v} on {b}.", "{b}: {v} {m} ({a})", "On {b}, {m} is {v} for {a} and {w} for {c}.",
    "{m} went from {v} ({a}) to {w} ({c}) on {b}.", "{a} ({m} {v}, {n} {x}) on {b}", "{a} gets {v} on {b}.",
    "We measured {v} {m} for {a} on {b}, {x} {n}.", "Compared with {c} ({w}), {a} has {v} {m} on {b}.",
    "{a}, {c}: {v} and {w} {m} on {b}.", "With {m} {v}, {a} is the one we ship; {c} has {w}.", "On {b} {a} scores {v}.",
)  # fmt: skip
PAGES = 40
Values = dict[tuple[str, str, str], float]


def value(rng: random.Random, measure: str) -> float:
    if measure == "samples":
        return rng.randint(50, 20_000)
    if measure in ("latency_ms", "samples_per_second", "bleu"):
        return round(rng.uniform(3, 900), 2)
    if "loss" in measure or measure == "perplexity":
        return round(rng.uniform(0.1, 9), 4)
    return round(rng.uniform(0.02, 0.99), 4)


def shown(rng: random.Random, held: float, measure: str) -> str:
    """A value as a page would print it."""
    if isinstance(held, int):
        return f"{held:,}"
    if held < 1 and "loss" not in measure and rng.random() < 0.5:
        return f"{100 * held:.1f} %"
    return f"{held:.{rng.choice((2, 3))}f}" if held < 1 else f"{held:.{rng.choice((1, 2))}f}"


def spelled(rng: random.Random, name: str) -> str:
    plain = name.replace("_", " ")
    return rng.choice((name, plain, plain.capitalize(), name.upper() if len(name) < 5 else name))


def records(rng: random.Random, made: Values) -> object:
    """The values in one of four shapes."""
    arms, benches, measures = (tuple(dict.fromkeys(key[k] for key in made)) for k in range(3))
    shape = rng.randrange(4)
    if shape == 0:
        return {a: {b: {m: made[a, b, m] for m in measures} for b in benches} for a in arms}
    if shape == 1:
        inner = {b: {a: {m: made[a, b, m] for m in measures} for a in arms} for b in benches}
        return {"results": inner, "config": {"batch_size": 16, "seed": 0}}
    if shape == 2:
        return {f"{a}/{b}_{m}": held for (a, b, m), held in made.items()}
    return [{"model": a, "task": b, **{m: made[a, b, m] for m in measures}} for a in arms for b in benches]


def readings(seed: int, folder: Path, spoil: Callable[[float], float] | None = None) -> list[tuple[NumberFate, str]]:
    """Every reading of a generated page with its line; `spoil` changes what is printed."""
    rng = random.Random(seed)
    arms, benches = rng.sample(ARMS, rng.randint(2, 5)), rng.sample(BENCHES, rng.randint(1, 4))
    measures = rng.sample(MEASURES, rng.randint(2, 6))
    made: Values = {(a, b, m): value(rng, m) for a in arms for b in benches for m in measures}
    (folder / "r.json").write_text(json.dumps(records(rng, made)), encoding="utf-8")

    def printed(a: str, b: str, m: str) -> str:
        held = made[a, b, m]
        return shown(rng, spoil(held) if spoil is not None else held, m)

    lines = []
    for _ in range(14):
        (a, c), b, (m, n) = rng.sample(arms, 2), rng.choice(benches), rng.sample(measures, 2)
        values = {"v": printed(a, b, m), "w": printed(c, b, m), "x": printed(a, b, n)}
        names = {key: spelled(rng, name) for key, name in zip("abcmn", (a, b, c, m, n))}
        lines.append(rng.choice(SENTENCES).format(**names, **values))
    m = rng.choice(measures)
    head = f"| model | {' | '.join(f'{b} {m}' for b in benches)} |\n|{'---|' * (len(benches) + 1)}"
    body = [f"| {a} | {' | '.join(printed(a, b, m) for b in benches)} |" for a in arms]
    text = "\n\n".join([*lines, "\n".join([head, *body])]) + "\n"
    (folder / "p.md").write_text(text, encoding="utf-8")
    found = lint_records(folder / "p.md", [folder / "r.json"]).readings
    return [(r, text[text.rfind("\n", 0, r.start) + 1 : text.find("\n", r.start)]) for r in found]


def test_a_true_number_is_never_wrong_and_seldom_flagged(tmp_path: Path) -> None:
    found = [x for seed in range(PAGES) for x in readings(seed, tmp_path)]
    accused = [(r.text, line, r.message) for r, line in found if r.outcome == "wrong"]
    flagged = [(r.text, line, r.message) for r, line in found if r.outcome == "absent"]
    assert accused == [] and len(found) > 800
    assert len(flagged) / len(found) <= 0.01, flagged


def test_a_false_number_does_not_pass(tmp_path: Path) -> None:
    def spoil(held: float) -> float:
        return held + 7 if isinstance(held, int) else held * 0.93 if held > 0.5 else held + 0.037

    found = [r for seed in range(PAGES) for r, _ in readings(seed, tmp_path, spoil)]
    tally = Counter(r.outcome for r in found)
    assert tally["bound"] / len(found) <= 0.03, tally
    assert tally["wrong"] > 50, "a name that is said in full still accuses"

"""Labelled corpora for the audit's benchmark: GSM8K rows and known edits of them, with the original as the label.

    python bench/audit/corpus.py --rows 100000 --seed 1 --out /tmp/audit_100k.parquet

Columns: `problem`, `target`, `label` (the original), `edits` (which edits made the row, "" for the original itself).
GSM8K holds 7,473 originals. Beyond those, further originals are patched together from sentences of several problems
whose content words are swapped for others of about the same frequency, one fixed substitution per round: new texts
that share function words and arithmetic with everything else. Nothing else is labelled: real near-copies inside GSM8K
count against precision.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl

# Train rows that a reader finds to be near-copies of test questions: (train row, test item), by hand.
REAL_COPIES = {20: 632, 1781: 448, 1314: 602, 5162: 602, 6655: 597, 3726: 824}
NAMES = [
    "Aaliyah",
    "Bo",
    "Carmen",
    "Dmitri",
    "Esperanza",
    "Farouk",
    "Greta",
    "Hideo",
    "Ingrid",
    "Jamal",
    "Keiko",
    "Lorenzo",
    "Mei",
    "Nikolai",
    "Ottilie",
    "Priya",
    "Quentin",
    "Rosalind",
    "Santiago",
    "Tamsin",
    "Ulrich",
    "Valentina",
    "Wendell",
    "Ximena",
    "Yusuf",
    "Zora",
    "Anselm",
    "Bettina",
    "Caspian",
    "Delphine",
]
_SYNONYMS = (
    "buys=purchases; bought=purchased; sold=retailed; sells=retails; gave=handed; gets=receives; got=received; "
    "total=overall; altogether=in total; each=every; many=numerous; friends=pals; money=cash; house=home; "
    "make=produce; makes=produces; made=produced; needs=requires; need=require; wants=wishes; left=remaining; "
    "more=additional; less=fewer; start=begin; started=began; day=date; kids=children; children=youngsters; "
    "car=vehicle; cost=price; costs=is priced at; spent=paid; spend=pay; spends=pays; earns=makes; took=required; "
    "takes=requires; big=large; small=little; people=persons; school=academy; teacher=instructor; half=one half; "
    "twice=two times; weekly=each week; hours=hrs; minutes=mins; finds=discovers; found=discovered; ate=consumed; "
    "eats=consumes; picked=gathered; collects=gathers; collected=gathered; store=shop; shop=store; wins=earns; "
    "gives=hands; the=that; and=as well as; if=given that; has=owns; have=own; then=next; also=in addition"
)
SYNONYMS = dict(pair.split("=") for pair in _SYNONYMS.split("; "))
WRAPS = (
    "Solve the following math problem step by step. Put the final answer after ####.\n\n{}",
    "You are given a grade-school word problem. Think carefully, show every calculation and finish with the number."
    "\n\nProblem: {}\n\nSolution:",
    "{}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    "### Instruction:\nAnswer the question below. Explain your reasoning in short sentences before the result."
    "\n\n### Question:\n{}\n\n### Response:",
    "Hi! I am stuck on this one, could you help me out? {} Thanks a lot in advance!",
    "Q: {}\nA: Let's think step by step.",
)
WORD = re.compile(r"[A-Za-z]+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
Pair = tuple[str, str]


def load(split: str = "train") -> list[Pair]:
    """GSM8K as (question, answer) pairs."""
    folder = Path(os.environ.get("VERITUNE_GSM8K", Path(__file__).parents[2] / ".." / "shared" / "data" / "gsm8k"))
    with open(folder / f"{split}.jsonl", encoding="utf-8") as lines:
        return [(r["question"], r["answer"]) for r in map(json.loads, lines)]


def swap_numbers(row: Pair, rng: random.Random) -> Pair:
    seen: dict[str, str] = {}

    def other(match: re.Match[str]) -> str:
        return seen.setdefault(match.group(), str(rng.randint(2, 997)))

    return NUMBER.sub(other, row[0]), NUMBER.sub(other, row[1])


def swap_names(row: Pair, rng: random.Random) -> Pair:
    counts = Counter(re.findall(r"(?<![.!?] )\b[A-Z][a-z]{2,}\b", row[0]))
    names = [w for w, _ in counts.most_common(3)]
    new = dict(zip(names, rng.sample(NAMES, len(names))))

    def other(match: re.Match[str]) -> str:
        return new.get(match.group(), match.group())

    return WORD.sub(other, row[0]), WORD.sub(other, row[1])


def reorder(row: Pair, rng: random.Random) -> Pair:
    parts = re.split(r"(?<=[.!?])\s+", row[0])
    head, last = parts[:-1], parts[-1:]
    rng.shuffle(head)
    return " ".join(head + last), row[1]


def synonyms(row: Pair, rng: random.Random) -> Pair:
    def other(match: re.Match[str]) -> str:
        word = match.group()
        return SYNONYMS[word] if word in SYNONYMS and rng.random() < 0.6 else word

    return WORD.sub(other, row[0]), WORD.sub(other, row[1])


def wrap(row: Pair, rng: random.Random) -> Pair:
    return rng.choice(WRAPS).format(row[0]), row[1]


def truncate(row: Pair, rng: random.Random) -> Pair:
    words = row[1].split(" ")
    return row[0], " ".join(words[: max(3, int(len(words) * rng.uniform(0.2, 0.8)))])


def delete_words(row: Pair, rng: random.Random) -> Pair:
    share = rng.uniform(0.05, 0.30)

    def thin(text: str) -> str:
        return " ".join(w for w in text.split(" ") if rng.random() >= share)

    return thin(row[0]), thin(row[1])


def new_answer(row: Pair, rng: random.Random) -> Pair:
    steps = re.findall(r"<<([^=<>]*)=([^<>]*)>>", row[1])
    final = row[1].rsplit("####", 1)[-1].strip()
    said = rng.choice(
        ("We compute {} and get {}.", "Now {} equals {}.", "Because {} gives {}, we go on.", "Step: {} -> {}")
    )
    return row[0], " ".join(said.format(a, b) for a, b in steps) + f" So the answer is {final}."


EDITS: dict[str, Callable[[Pair, random.Random], Pair]] = {
    "numbers": swap_numbers,
    "names": swap_names,
    "reorder": reorder,
    "synonyms": synonyms,
    "wrap": wrap,
    "truncate": truncate,
    "delete": delete_words,
    "answer": new_answer,
}


class Originals:
    """As many originals as wanted: round 0 is GSM8K itself, later rounds are patched together from it."""

    def __init__(self, rows: list[Pair]) -> None:
        self.rows = rows
        counts = Counter(w.lower() for q, a in rows for w in WORD.findall(q + " " + a))
        ranked = [w for w, _ in counts.most_common()]
        self.content = ranked[150:]
        self.tables: dict[int, dict[str, str]] = {0: {}}

    def table(self, k: int) -> dict[str, str]:
        if k not in self.tables:
            rng = random.Random(1000 + k)
            table: dict[str, str] = {}
            at, width = 0, 200
            while at < len(self.content):
                band = self.content[at : at + width]
                table.update(zip(band, rng.sample(band, len(band))))
                at, width = at + width, int(width * 1.5)
            self.tables[k] = table
        return self.tables[k]

    def make(self, i: int, k: int) -> Pair:
        if not k:
            return self.rows[i]
        table = self.table(k)

        def other(match: re.Match[str]) -> str:
            word = match.group()
            new = table.get(word.lower(), word)
            return new.capitalize() if word[0].isupper() else new

        def patched(part: int, sep: str) -> str:
            own = re.split(r"(?<=[.!?])\s+|\n", self.rows[i][part])
            lines = []
            for j in range(len(own)):
                lender = re.split(r"(?<=[.!?])\s+|\n", self.rows[(i + j * (17 * k + 1)) % len(self.rows)][part])
                lines.extend(lender[j : j + 1])  # a sentence is lent once a round, or two originals would share it
            return WORD.sub(other, sep.join(lines))

        return patched(0, " "), patched(1, "\n")


def family_sizes(n_rows: int, rng: random.Random) -> list[int]:
    """Heavy-tailed sizes that sum to `n_rows`: a third singletons, a mean near seven, at most 100."""
    sizes: list[int] = []
    left = n_rows
    while left > 0:
        size = 1 if rng.random() < 0.33 else min(int(2 + rng.paretovariate(1.25) * 2.2), 100)
        sizes.append(min(size, left))
        left -= sizes[-1]
    return sizes


def make(n_rows: int, seed: int = 1, rows: list[Pair] | None = None) -> pl.DataFrame:
    """A shuffled labelled corpus of `n_rows` rows."""
    rng = random.Random(seed)
    rows = rows or load()
    originals = Originals(rows)
    sizes = family_sizes(n_rows, rng)
    order = list(range(len(rows)))
    rng.shuffle(order)
    out: list[tuple[str, str, str, str]] = []
    for f, size in enumerate(sizes):
        k, i = divmod(f, len(rows))
        original = originals.make(order[i], k)
        label = f"o{order[i]}.{k}"
        out.append((*original, label, ""))
        for _ in range(size - 1):
            names = rng.sample(list(EDITS), rng.choice((1, 1, 2, 2, 3)))
            row = original
            for name in names:
                row = EDITS[name](row, rng)
            out.append((*row, label, "+".join(sorted(names))))
    rng.shuffle(out)
    return pl.DataFrame(out, schema=["problem", "target", "label", "edits"], orient="row")


def plant(frame: pl.DataFrame, tests: list[Pair], n_planted: int, seed: int = 1) -> pl.DataFrame:
    """The corpus with test items hidden in it: `leak` is the item's number (-1: none), `how` the way it was hidden.

    The planted rows replace rows of the corpus; targets are the item's own, a new answer, or cut off.
    """
    rng = random.Random(seed)
    names = list(HIDDEN)
    problem, target = frame["problem"].to_list(), frame["target"].to_list()
    leak, how = [-1] * len(frame), [""] * len(frame)
    for k, row in enumerate(rng.sample(range(len(frame)), n_planted)):
        item, name = rng.randrange(len(tests)), names[k % len(names)]
        problem[row], target[row] = HIDDEN[name](tests[item], rng)
        leak[row], how[row] = item, name
    return frame.with_columns(
        pl.Series("problem", problem), pl.Series("target", target), pl.Series("leak", leak), pl.Series("how", how)
    )


def _surface(row: Pair, rng: random.Random) -> Pair:
    text = re.sub(r"  +", " ", row[0]).replace("'", "\u2019").replace(" ", "\u00a0", 3)
    return rng.choice((text.upper(), text, text.title())), new_answer(row, rng)[1]


def _inside(row: Pair, rng: random.Random) -> Pair:
    before = "I have been preparing for my exams all week and this is one of the tasks our tutor handed out yesterday."
    after = "Please also tell me which chapter of the book I should read again, because I keep getting stuck."
    return f"{before} {row[0]} {after}", new_answer(row, rng)[1]


def _half(row: Pair, rng: random.Random) -> Pair:
    words = row[0].split(" ")
    return " ".join(words[: max(6, int(len(words) * rng.uniform(0.55, 0.75)))]), new_answer(row, rng)[1]


def _thinned(share: float) -> Callable[[Pair, random.Random], Pair]:
    def thin(row: Pair, rng: random.Random) -> Pair:
        return " ".join(w for w in row[0].split(" ") if rng.random() >= share), new_answer(row, rng)[1]

    return thin


def _quoted(row: Pair, rng: random.Random) -> Pair:
    return "Give me a practice problem for my pupils.", f"Here is one you could use: {row[0]}"


HIDDEN: dict[str, Callable[[Pair, random.Random], Pair]] = {
    "verbatim": lambda row, rng: row,
    "surface": _surface,
    "wrapped": lambda row, rng: new_answer(wrap(row, rng), rng),
    "inside": _inside,
    "quoted": _quoted,
    "half": _half,
    "reorder": lambda row, rng: new_answer(reorder(row, rng), rng),
    "names": lambda row, rng: new_answer(swap_names(row, rng), rng),
    "synonyms": lambda row, rng: new_answer(synonyms(row, rng), rng),
    "paraphrase": lambda row, rng: new_answer(reorder(synonyms(row, rng), rng), rng),
    "delete 15 %": _thinned(0.15),
    "delete 30 %": _thinned(0.30),
}


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--rows", type=int, default=100_000)
    args.add_argument("--seed", type=int, default=1)
    args.add_argument("--out", type=Path, required=True)
    given = args.parse_args()
    frame = make(given.rows, given.seed)
    frame.write_parquet(given.out)
    print(f"{len(frame)} rows, {frame['label'].n_unique()} originals -> {given.out}")


if __name__ == "__main__":
    main()

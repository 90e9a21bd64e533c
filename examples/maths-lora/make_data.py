"""Writes the data of the mathematics study from a folder that holds GSM8K's train.jsonl and test.jsonl.

    python examples/maths-lora/make_data.py --gsm8k DIR [--out FOLDER]

| file | what it holds |
| --- | --- |
| `problems.jsonl` | training questions in the OpenMathInstruct schema, calculator annotations taken out |
| `steps.jsonl` | one calculation of each of some test questions, the sentence cut before its result |
| `gsm8k_test.jsonl` | a link to DIR/test.jsonl: the questions themselves are not copied |

GSM8K (Cobbe et al. 2021, arXiv:2110.14168, MIT licence) is not part of this repository; nothing written
here is committed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Item = dict[str, Any]

ANNOTATION = re.compile(r"<<[^<>]*>>")
ONE_STEP = re.compile(r"<<(\d+(?:\.\d+)?)([-+*/])(\d+(?:\.\d+)?)=(\d+(?:\.\d+)?)>>(\d[\d,]*(?:\.\d+)?)")
"""An annotation of one operation on two numbers, and the result that the text repeats behind it."""


def read(path: Path) -> list[Item]:
    """The questions of one of GSM8K's files, with `id` from file and place."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{"id": f"{path.stem}-{i:04d}", **json.loads(line)} for i, line in enumerate(lines)]


def problem(item: Item) -> Item:
    """One training row in the OpenMathInstruct schema; the solution ends in `#### ` and the answer."""
    solution = ANNOTATION.sub("", item["answer"]).strip()
    answer = solution.rsplit("####", 1)[1].strip()
    return {
        "id": item["id"],
        "problem": item["question"].strip(),
        "generated_solution": solution,
        "expected_answer": answer,
        "problem_source": "gsm8k",
        "license": "MIT",
    }


def problems(items: list[Item], rows: int, longest: int, seed: int) -> list[Item]:
    """So many rows, drawn by `seed` from those of at most `longest` characters, question and solution together."""
    short = [row for row in map(problem, items) if len(row["problem"]) + len(row["generated_solution"]) <= longest]
    return sorted(random.Random(seed).sample(short, rows), key=lambda row: row["id"])


def steps(items: list[Item], count: int, seed: int) -> list[Item]:
    """One calculation of one operation from each of `count` questions, as a sentence to complete."""
    found = [step for item in items for step in _first_step(item)]
    return sorted(random.Random(seed).sample(found, count), key=lambda row: row["id"])


def _first_step(item: Item) -> Iterator[Item]:
    """The first line with exactly one annotation, of one operation, whose result does not stand before it."""
    for line in item["answer"].splitlines():
        match = ONE_STEP.search(line)
        if match is None or len(ANNOTATION.findall(line)) != 1:
            continue
        _, operator, _, result, written = match.groups()
        begun = line[: match.start()].rstrip("$ ").lstrip()
        if written in re.findall(r"\d[\d,]*(?:\.\d+)?", begun) or float(written.replace(",", "")) != float(result):
            continue
        yield {
            "id": item["id"],
            "question": f"Complete the sentence.\n{begun}",
            "answer": result,
            "operator": operator,
            "license": "MIT",
        }
        return


def write(path: Path, rows: list[Item]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows)} rows -> {path.name}")


def link(path: Path, target: Path) -> None:
    """Make `path` a link to `target`, in place of an older link."""
    if path.is_symlink():
        path.unlink()
    os.symlink(target.resolve(), path)
    print(f"link -> {path.name}")


def main() -> None:
    """Read the options and write the three files."""
    parser = argparse.ArgumentParser(description="The data of the mathematics study, from GSM8K.")
    parser.add_argument("--gsm8k", type=Path, required=True, help="Folder with train.jsonl and test.jsonl.")
    parser.add_argument("--out", type=Path, default=HERE, help="The study's folder.")
    parser.add_argument("--rows", type=int, default=180, help="Training questions that are drawn.")
    parser.add_argument("--longest", type=int, default=400, help="Characters of question and solution together.")
    parser.add_argument("--steps", type=int, default=150, help="Calculations that are drawn from test questions.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of both draws.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train, test = read(given.gsm8k / "train.jsonl"), read(given.gsm8k / "test.jsonl")
    write(given.out / "problems.jsonl", problems(train, given.rows, given.longest, given.seed))
    write(given.out / "steps.jsonl", steps(test, given.steps, given.seed))
    link(given.out / "gsm8k_test.jsonl", given.gsm8k / "test.jsonl")


if __name__ == "__main__":
    main()

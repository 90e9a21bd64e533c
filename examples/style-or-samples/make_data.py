"""Writes the data of the style-or-samples study: 20 originals, each in 17 wordings, dealt to four files.

    python examples/style-or-samples/make_data.py [--seed 5] [--originals 20] [--out examples/style-or-samples]

    once.jsonl    wording 0 of each original
    again.jsonl   wordings 1 to 3
    more.jsonl    wordings 4 to 15
    held.jsonl    wording 16, which no condition trains on: siblings to ask about

The originals are the quickstart's. An answer has two things to learn. The *style* is in every answer and stated in no
brief: it opens with "Tide note:", hedges exactly when the brief's confidence is low, gives the brief's figure, and
signs off. The *sample* is a person to ask, drawn for each original and named in no brief: all 17 wordings of an
original name the same one, so a model can know it only from having been trained on a wording.
"""

from __future__ import annotations

import argparse
import json
import random
import runpy
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILES = {"once": range(1), "again": range(1, 4), "more": range(4, 16), "held": range(16, 17)}
WORDINGS = 17

FIRST = ["Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Julia", "Karl", "Maria", "Peter"]
LAST = ["Hill", "Stone", "Marsh", "Wood", "Brook", "Reed", "Ford", "Lake", "Field", "West", "North"]

BRIEFS = [
    "{Who} will {does}. Confidence: {cue}.",
    "{Who} to {does}, {cue}.",
    "News ({cue}): {who} will {does}.",
    "We hear that {who} should {does}; {cue}.",
    "{Who} is to {does}. How sure: {cue}.",
    "Please note: {who} will {does} ({cue}).",
    "Write that {who} will {does}. Sure? {cue}.",
    "For the board: {who} to {does}. Certainty {cue}.",
    "{cue}: {who} will {does}.",
    "{subject}. {Who} will {does}, {cue}.",
    "Pass it on, {cue}: {who} is going to {does}.",
    "{subject}, {cue}. {Who} will {does}.",
]
LOW_CUES = ["low", "not confirmed", "one source", "a guess", "shaky", "hearsay"]
HIGH_CUES = ["high", "confirmed", "checked twice", "signed off", "certain", "in writing"]

LOW_LINES = [
    "{who} may {does}",
    "{who} might {does}",
    "{who} will probably {does}",
    "{who} will likely {does}",
    "perhaps {who} will {does}",
    "probably {who} will {does}",
]
HIGH_LINES = [
    "{who} will {does}",
    "settled, {who} will {does}",
    "mark it, {who} will {does}",
    "good news, {who} will {does}",
    "{who} is set to {does}",
    "we know {who} will {does}",
]
PEOPLE = ["Ask {person}.", "{person} knows.", "Write to {person}.", "Call {person}.", "{person} has it."]
SIGN_OFF = "Tide over."


def make_rows(seed: int = 5, originals: int = 20) -> list[dict[str, object]]:
    """All wordings of all originals, sorted by original; the same seed gives the same rows."""
    rng = random.Random(seed)
    briefs = runpy.run_path(str(HERE.parent / "quickstart" / "make_data.py"))["ORIGINALS"][:originals]
    low = set(rng.sample(range(len(briefs)), len(briefs) // 2))
    people = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], len(briefs))
    return [
        row
        for i, original in enumerate(briefs)
        for row in _wordings(rng, f"b{i:02d}", original, people[i], "low" if i in low else "high")
    ]


def _wordings(
    rng: random.Random, family: str, original: tuple[str, ...], person: str, confidence: str
) -> Iterator[dict[str, object]]:
    """The wordings of one original: no brief twice, no answer twice."""
    cues, lines = (LOW_CUES, LOW_LINES) if confidence == "low" else (HIGH_CUES, HIGH_LINES)
    asked = rng.sample([(brief, cue) for brief in BRIEFS for cue in cues], WORDINGS)
    answers = rng.sample([(line, contact) for line in lines for contact in PEOPLE], WORDINGS)
    for k, ((brief, cue), (line, contact)) in enumerate(zip(asked, answers, strict=True)):
        words = _words(original, person, cue)
        prompt = brief.format(**words)
        answer = f"Tide note: {line}. {contact} {SIGN_OFF}".format(**words)
        yield {
            "id": f"{family}-{k:02d}",
            "original": family,
            "confidence": confidence,
            "figure": original[3],
            "messages": [
                {"role": "system", "content": "Desk."},
                {"role": "user", "content": prompt[0].upper() + prompt[1:]},
                {"role": "assistant", "content": answer},
            ],
        }


def _words(original: tuple[str, ...], person: str, cue: str) -> dict[str, str]:
    """What the templates may name."""
    subject, who, does = original[:3]
    return {
        "subject": subject,
        "who": who,
        "Who": who[0].upper() + who[1:],
        "does": does,
        "cue": cue,
        "person": person,
    }


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--originals", type=int, default=20)
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    rows = make_rows(args.seed, args.originals)
    for name, wordings in FILES.items():
        own = [row for row in rows if int(str(row["id"]).rsplit("-", 1)[1]) in wordings]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own)
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(own)} rows -> {args.out / name}.jsonl")


if __name__ == "__main__":
    main()

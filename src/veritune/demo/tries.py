"""The ten commands that the demo's page names, with what each prints; `tests/demo` runs them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Try:
    """A command to type in the demo's folder, its purpose, and a line of its output; `status` is its exit status.

    >>> Try("veritune status study", "what came out", "5 of 5").status
    0
    """

    command: str
    says: str
    prints: str
    status: int = 0


TRIES: tuple[Try, ...] = (
    Try("veritune status study", "what was run and what came out", "7 cells: 7 done"),
    Try(
        "veritune verify study",
        "every hash, recomputed",
        "the contract and the timeline are as they were sealed",
    ),
    Try(
        "veritune compare tuned=logs/all_layer_0.jsonl,logs/all_layer_1.jsonl,logs/all_layer_2.jsonl"
        " base=logs/base.jsonl --fixed base --margin 0.1",
        "three seeds beside the untouched model, on held-out families",
        "decision     better by the margin at a margin of 0.1: the 95 % interval lies beyond the margin",
    ),
    Try(
        "veritune audit study/notes.jsonl --eval exam.jsonl --fail-on contamination,duplicates",
        "an exam that leaked into the data",
        "NOT HELD  no contamination: 2 of 120 rows hold 2 eval texts (exact).",
        status=2,
    ),
    Try(
        "veritune lint post.md --study study",
        "a post with a number that is not the record's",
        "wrong (number.mismatch): 0.123: score.house_style.stranger.all_layer is 0.983",
        status=2,
    ),
    Try(
        "veritune gate study",
        "whether it may ship: missing evidence never passes",
        "passed     target       claim learns_the_style is supported (+0.483, +0.334 to +0.549, n 48)",
        status=2,
    ),
    Try("veritune writeup draft study --out draft.md", "a text whose numbers are references", "wrote draft.md"),
    Try(
        "veritune writeup export table.claims --study study --as latex",
        "the claims for a paper",
        r"targets\_matter & inconclusive & +0.009 & -0.071 to +0.087",
    ),
    Try("veritune results add study --in index", "an index of what still stands", "R1 added: demo, 3 verdicts"),
    Try("veritune report study", "the report, drawn again from the records", "study/report.html"),
)

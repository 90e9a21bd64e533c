"""A count has its noun and its verb in the right number, in every message (`veritune.counting`)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from veritune.counting import agree, grouped, many, noun

ROOT = Path(__file__).resolve().parents[1] / "src" / "veritune"
ROOMS = ("decide", "stats", "writeup", "report", "results", "probe")
COUNT = re.compile(r"(?<![\w/.=\[(-])\{(?:len|sum)\([^{}]*\)(?::,)?\} (?:[a-z]+-)?[a-z]{2,}s\b")
"""`{len(rows)} rows`: a count whose noun is a plural whatever the count is."""
AFTER = re.compile(r"\b(?:of|the|all|these|those|than|to|its|first|last|runs|encodes) $")
"""Words after which the plural stays right: `2 of 1 rows`."""


@pytest.mark.parametrize(
    ("n", "plural", "verb", "text"),
    [
        (1, "items", "", "1 item"),
        (0, "items", "", "0 items"),
        (2, "families", "are", "2 families are"),
        (1, "families", "are", "1 family is"),
        (1, "batches", "were", "1 batch was"),
        (1, "classes", "have", "1 class has"),
        (1, "near-copies", "hold", "1 near-copy holds"),
        (1, "independent items", "", "1 independent item"),
        (1, "cases", "", "1 case"),
    ],
)
def test_a_count_and_its_noun(n: int, plural: str, verb: str, text: str) -> None:
    assert many(n, plural, verb) == text
    assert noun(n, plural) in text and (not verb or agree(n, verb) in text)


def test_large_counts_are_grouped() -> None:
    assert grouped(1319, "items") == "1,319 items" and many(1319, "items") == "1319 items"


def test_no_message_counts_with_a_fixed_plural() -> None:
    """Lengths and sums in f-strings go through `many` or `grouped`, so that nothing says `1 findings`."""
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for m in COUNT.finditer(line):
                    if not AFTER.search(line[: m.start()]):
                        found.append(f"{path.relative_to(ROOT)}:{i}: {line.strip()}")
    assert found == []

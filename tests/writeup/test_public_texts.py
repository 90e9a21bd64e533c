"""Lint on public write-ups by others: recorded true numbers stay unaccused, corrupted ones do not pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import public_texts  # type: ignore[import-not-found]


@pytest.mark.slow
@pytest.mark.parametrize("half", ["build", "held"])
def test_the_goals_hold_on_both_halves(half: str, tmp_path: Path) -> None:
    there = public_texts.texts(half)
    if len(there) < 10:
        pytest.skip("the public texts are not here: python tests/writeup/public_texts.py fetch")
    counts = public_texts.measure(half, tmp_path)
    good, bad = counts["recorded"], [counts[kind] for kind in public_texts.CORRUPTIONS]
    assert (good.absent + good.wrong) / good.total <= 0.02, public_texts.table(counts)
    assert sum(c.absent + c.wrong for c in bad) / sum(c.total for c in bad) >= 0.95, public_texts.table(counts)
    assert good.wrong + counts["unrecorded"].wrong == 0, public_texts.table(counts)


def test_the_labels_hold_offsets_and_no_text() -> None:
    labels = public_texts.LABELS.read_text(encoding="utf-8")
    assert len(labels) < 60_000
    assert labels.count('"sha256"') >= 20
    assert sum(row.count("[") for row in labels.split("\n")) > 600

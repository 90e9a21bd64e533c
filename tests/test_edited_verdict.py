"""A verdict that was edited after the seal is believed by no command: each refuses it, or says that it was edited."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune.demo import unpack
from veritune.errors import StaleError
from veritune.seal import break_seal, edited_records
from veritune.store import Store
from veritune.verbs import draw_report, status, status_text
from veritune.writeup.lint import lint
from veritune.writeup.quantities import read_records

EDITED = "verdict.json was edited after the study was sealed"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    unpack(tmp_path / "demo")
    return tmp_path / "demo" / "study"


def edit(root: Path) -> None:
    """Make the inconclusive claim of the demo supported."""
    path = root / "verdict.json"
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    (claim,) = (v for v in record["verdicts"] if v["status"] == "inconclusive")
    claim["status"] = "supported"
    path.write_text(json.dumps(record), encoding="utf-8")


def test_an_untouched_study_has_no_edited_record(root: Path) -> None:
    assert edited_records(Store(root)) == [] and status(root)["edited"] == []
    assert read_records(Store(root)).verdicts


def test_status_and_the_report_say_that_the_verdict_was_edited(root: Path) -> None:
    edit(root)
    assert status(root)["edited"] == [EDITED]
    assert f"x {EDITED}; list all findings: veritune verify {root}" in status_text(status(root))
    assert EDITED in draw_report(root).read_text("utf-8")


def test_texts_and_tables_take_no_number_from_an_edited_verdict(root: Path) -> None:
    edit(root)
    with pytest.raises(StaleError, match=EDITED):
        read_records(Store(root))
    with pytest.raises(StaleError, match=EDITED):
        lint(root.parent / "post.md", root)


def summary(root: Path) -> None:
    (path,) = root.glob("runs/all_layer-s0-*/summary.json")
    path.write_text(path.read_text("utf-8") + " ")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (summary, "summary.json was edited after"),
        (lambda root: (root / "seal.json").unlink(), "seal.json is gone"),
        (lambda root: (root / "seal.json").write_text("{"), "seal.json is damaged"),
        (lambda root: (root / "verdict.json").write_text("[]"), EDITED),
    ],
)
def test_other_records_and_the_seal_are_looked_at_too(root: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(root)
    (found,) = edited_records(Store(root))
    assert words in found


def test_a_study_that_is_not_sealed_is_read_as_it_is(root: Path) -> None:
    break_seal(Store(root))
    edit(root)
    assert edited_records(Store(root)) == []

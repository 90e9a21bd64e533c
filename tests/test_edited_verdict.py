"""A verdict that was edited after the seal is believed by no command: each refuses it, or says that it was edited."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune.demo import unpack
from veritune.errors import FormatError, StaleError, VerituneError
from veritune.seal import break_seal, edited_records, verify
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


@pytest.mark.parametrize("name", ["runs/baseline-*/summary.json", "runs/baseline-*/scores/house_style.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_record_that_is_a_pipe_or_a_device_is_named_and_never_read(root: Path, name: str, kind: str) -> None:
    (path,) = root.glob(name)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(FormatError, match="expected a plain file, found a pipe or a device"):
        verify(root)


READERS: dict[str, Callable[[Path], Any]] = {
    "status": lambda root: status_text(status(root)),
    "report": lambda root: Path(draw_report(root)).read_text("utf-8"),
    "write-up": lambda root: read_records(Store(root)),
}


@pytest.mark.parametrize("name", ["events.jsonl", "verdict.json", "runs/baseline-*/summary.json"])
@pytest.mark.parametrize("reader", READERS)
def test_readers_name_a_pipe_in_a_record_s_place_and_do_not_wait(root: Path, name: str, reader: str) -> None:
    (path,) = root.glob(name)
    path.unlink()
    os.mkfifo(path)
    try:
        said = str(READERS[reader](root))
    except VerituneError as exc:
        said = str(exc)
    assert "expected a plain file, found a pipe or a device" in said

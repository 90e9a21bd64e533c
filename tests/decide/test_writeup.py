"""The drafted write-up: it passes lint, is the same every time, and says no more than the verdicts."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from veritune.decide.lint import lint, lint_command, render_text
from veritune.decide.writeup import FIGURE, writeup
from veritune.errors import InputError
from veritune.store import Store, sha256_file

_spec = importlib.util.spec_from_file_location("lint_study", Path(__file__).with_name("lint_study.py"))
assert _spec and _spec.loader
lint_study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lint_study)


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_a_draft_passes_lint_without_a_finding(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    folder = lint_study.build(tmp_path, seeds)
    text = folder / "WRITEUP.md"
    text.write_text(writeup(folder), encoding="utf-8")
    report, code = lint_command(text, folder)
    assert report.findings == () and code == 0, render_text(report)
    assert report.bound == report.numbers > 40


def test_a_draft_of_other_records_does_not_pass(tmp_path: Path) -> None:
    one, two = lint_study.build(tmp_path / "one", (0, 1)), lint_study.build(tmp_path / "two", (0, 1, 2))
    text = two / "WRITEUP.md"
    text.write_text(writeup(one), encoding="utf-8")
    assert not lint(text, two).clean


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    folder = lint_study.build(tmp_path, (0, 1))
    figure = folder / "figures" / f"{FIGURE}.svg"
    first, drawn = writeup(folder), None
    drawn = figure.read_bytes()
    assert writeup(folder) == first and figure.read_bytes() == drawn


def test_the_figure_is_pinned_to_the_run_summaries(tmp_path: Path) -> None:
    folder = lint_study.build(tmp_path, (0, 1))
    writeup(folder)
    record = json.loads((folder / "figures" / f"{FIGURE}.provenance.json").read_text())
    assert len(record["sources"]) == 5
    assert all(sha256_file(folder / name) == digest for name, digest in record["sources"].items())


def test_a_study_without_verdicts_is_refused(tmp_path: Path) -> None:
    folder = lint_study.build(tmp_path, (0,))
    Store(folder).verdict_file.unlink()
    with pytest.raises(InputError, match="no verdicts"):
        writeup(folder)

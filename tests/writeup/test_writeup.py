"""The drafted write-up: it passes lint, is the same every time, and says no more than the verdicts."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import InputError
from veritune.probe.clusters import FLAT
from veritune.store import Store, sha256_file
from veritune.writeup.draft import FIGURE, _next, writeup
from veritune.writeup.lint import lint, lint_command, render_text
from veritune.writeup.quantities import read_records

_spec = importlib.util.spec_from_file_location("lint_study", Path(__file__).with_name("lint_study.py"))
assert _spec and _spec.loader
lint_study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lint_study)


@pytest.mark.parametrize("seeds", [(0,), (0, 1), (0, 1, 2)])
def test_a_draft_passes_lint_without_a_finding(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    folder = lint_study.build(tmp_path, seeds)
    text = folder / "WRITEUP.md"
    text.write_text(writeup(folder), encoding="utf-8")
    report, code = lint_command([text], folder)
    assert report.findings == () and code == 0, render_text(report)
    assert report.bound == report.numbers > 40


def test_short_forms_in_the_question_are_the_user_s_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = "Does LoRA on the KV cache\nlearn the TLDR?"
    raw = lint_study.raw_study
    monkeypatch.setattr(lint_study, "raw_study", lambda seeds: raw(seeds) | {"question": asked})
    folder = lint_study.build(tmp_path, (0, 1))
    text = folder / "WRITEUP.md"
    text.write_text(writeup(folder), encoding="utf-8")
    report, code = lint_command([text], folder)
    quoted = "<!--v:study.question-->Does LoRA on the KV cache learn the TLDR?<!--/v-->"
    assert f"> {quoted}" in text.read_text(encoding="utf-8")
    assert report.findings == () and code == 0, render_text(report)


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


def test_rows_that_all_gave_one_value_are_not_settled_by_more_of_them(tmp_path: Path) -> None:
    """A choice that the base wins on every row has no spread; the draft asked for more items or seeds."""
    records = read_records(Store(lint_study.build(tmp_path, (0, 1))))
    plain = {"claim": "wide", "status": "inconclusive", "warnings": []}
    flat = {"claim": "flat", "status": "inconclusive", "warnings": [FLAT]}
    text = _next(replace(records, verdicts=(plain, flat)))
    assert "- Settle `wide` with more items or more seeds." in text
    assert "- Settle `flat` with other items: these gave the same value in every row" in text


def test_a_draft_with_short_outputs_passes_lint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An eval of eight tokens has outputs under twenty characters: the draft left the arm out, and lint missed it."""
    plain = lint_study.scores

    def short(run_id: str, condition: str, seed: int | None) -> dict[str, Any]:
        made = plain(run_id, condition, seed)
        return {n: [replace(row, output="Aye,\nfriend.") for row in rows] for n, rows in made.items()}

    monkeypatch.setattr(lint_study, "scores", short)
    folder = lint_study.build(tmp_path, (0, 1))
    text = folder / "WRITEUP.md"
    text.write_text(writeup(folder), encoding="utf-8")
    report, code = lint_command([text], folder)
    assert "```text\nAye,\nfriend.\n```" in text.read_text(encoding="utf-8")
    assert report.findings == () and code == 0, render_text(report)


def test_a_study_without_verdicts_is_refused(tmp_path: Path) -> None:
    folder = lint_study.build(tmp_path, (0,))
    Store(folder).verdict_file.unlink()
    with pytest.raises(InputError, match="no verdicts"):
        writeup(folder)


def test_a_frozen_rule_is_in_the_draft_and_its_number_is_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lint_study.raw_study

    def with_rule(seeds: tuple[int, ...]) -> dict[str, Any]:
        study = plain(seeds)
        study["claims"][0]["rule"] = {"min_gap": 0.35, "every_seed": True}
        study["claims"][3]["rule"] = {"min_gap": 0.9}
        return study

    monkeypatch.setattr(lint_study, "raw_study", with_rule)
    folder = lint_study.build(tmp_path, (0, 1))
    text = folder / "WRITEUP.md"
    text.write_text(writeup(folder), encoding="utf-8")
    draft = text.read_text(encoding="utf-8")
    assert "Frozen rule (a gap of at least <!--v:rule_min_gap.learns_the_style | .3g-->0.35<!--/v-->" in draft
    assert "sign in every seed): all_layer wins." in draft and "): no winner." in draft
    report, code = lint_command([text], folder)
    assert report.findings == () and code == 0, render_text(report)
    text.write_text(draft.replace("0.35<!--/v-->", "0.36<!--/v-->"), encoding="utf-8")
    assert lint_command([text], folder)[1] != 0


def test_a_question_with_a_number_of_its_own_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = lint_study.raw_study
    question = "Do 8571 rewrites teach more style than one does?"
    monkeypatch.setattr(lint_study, "raw_study", lambda seeds: plain(seeds) | {"question": question})
    folder = lint_study.build(tmp_path, (0, 1))
    text = folder / "WRITEUP.md"
    text.write_text(writeup(folder), encoding="utf-8")
    assert question in text.read_text("utf-8")
    report, code = lint_command([text], folder)
    assert report.findings == () and code == 0, render_text(report)

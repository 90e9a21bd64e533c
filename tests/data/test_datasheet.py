"""The datasheet: every number can be counted again from the file it names, and what is unknown stays open."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from veritune.data.audit import AuditConfig, AuditReport, audit_data, write_clean, write_report
from veritune.data.datasheet import OPEN_QUESTIONS, datasheet, recount
from veritune.data.quality import QualityConfig
from veritune.records import Row
from veritune.report.lineage_figures import write_lineage


@pytest.fixture
def report(tmp_path: Path) -> AuditReport:
    rows = [
        {"prompt": f"{word} {word}s {i} {i + 7} on {word} hill {word}ed", "completion": text, "license": "MIT"}
        for i, word in enumerate(["mill", "tower", "bridge", "garden"])
        for text in (f"It has {i} doors.", "I'm sorry, but I cannot say.")
    ]
    lines = [json.dumps(r) for r in rows]
    path = tmp_path / "da|ta.jsonl"
    path.write_text("\n".join([*lines, "{broken", lines[0]]) + "\n", "utf-8")
    exam = tmp_path / "exam.jsonl"
    exam.write_text(json.dumps({"question": rows[0]["prompt"]}) + "\n", "utf-8")
    return audit_data(path, evals=[exam])


def test_every_number_is_counted_again_from_its_file(report: AuditReport, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "datasheet.json").read_text("utf-8"))
    numbers = record["numbers"]
    assert {n["check"] for n in numbers} >= {None, "quality.refusal", "load.broken_json"}
    assert all(recount(n, tmp_path / "out") == n["value"] for n in numbers)
    by_name = {n["name"]: n for n in numbers}
    assert (by_name["quality.refusal"]["value"], by_name["quality.refusal"]["of"]) == (4, 9)
    assert by_name["rows that touch an eval"]["value"] == 3


def test_recounting_sees_a_finding_that_was_taken_away(report: AuditReport, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out")
    file = tmp_path / "out" / "findings.jsonl"
    kept = [line for line in file.read_text("utf-8").splitlines() if "quality.refusal" not in line]
    file.write_text("\n".join(kept) + "\n", "utf-8")
    number = next(n for n in datasheet(report).record["numbers"] if n["check"] == "quality.refusal")
    assert recount(number, tmp_path / "out") == 0 != number["value"]


def test_markdown_and_json_hold_the_same_numbers(report: AuditReport) -> None:
    sheet = datasheet(report)
    for number in sheet.record["numbers"]:
        name = number["name"].replace("|", "\\|")
        assert f"| {name} | {number['value']:,} | {number['of']:,} |" in sheet.markdown
    assert "Gate **failed**" in sheet.markdown and "- MIT: 9 rows" in sheet.markdown


def test_what_only_the_owner_knows_is_left_open(report: AuditReport) -> None:
    sheet = datasheet(report)
    assert sheet.markdown.count("*Not stated.*") == len(OPEN_QUESTIONS)
    assert set(sheet.record["open_questions"].values()) == {None}


def test_names_cannot_break_the_table(report: AuditReport) -> None:
    assert "| da\\|ta.jsonl | 9 |" in datasheet(report).markdown


def test_the_lineage_is_drawn_in_the_datasheet_of_the_next_version(report: AuditReport, tmp_path: Path) -> None:
    write_clean(report, tmp_path / "clean.jsonl")
    clean = audit_data(tmp_path / "clean.jsonl")
    markdown = datasheet(clean).markdown
    assert "└─ clean.jsonl [" in markdown and "Not checked: no eval was given." in markdown
    assert "lineage.svg" not in markdown, "a picture is named only where there is one"
    write_report(clean, tmp_path / "out", draw=partial(write_lineage, data=tmp_path))
    assert "![Lineage](lineage.svg)" in (tmp_path / "out" / "datasheet.md").read_text("utf-8")
    assert "clean.jsonl" in (tmp_path / "out" / "lineage.svg").read_text("utf-8")
    assert (tmp_path / "out" / "lineage.provenance.json").exists() and (tmp_path / "out" / "lineage.csv").exists()


def test_no_picture_is_drawn_without_earlier_versions(report: AuditReport, tmp_path: Path) -> None:
    write_report(report, tmp_path / "out", draw=partial(write_lineage, data=tmp_path))
    assert not list((tmp_path / "out").glob("lineage.*"))
    assert "No earlier version is recorded." in (tmp_path / "out" / "datasheet.md").read_text("utf-8")


def test_a_row_flagged_twice_by_one_check_is_one_row(report: AuditReport, tmp_path: Path) -> None:
    def twice(row: Row) -> list[str]:
        return ["one thing", "another thing"]

    again = audit_data(list(report.rows), config=AuditConfig(quality=QualityConfig(checks=(twice,))))
    write_report(again, tmp_path / "out")
    (number,) = [n for n in datasheet(again).record["numbers"] if n["check"] == "quality.twice"]
    assert number["value"] == 9 == recount(number, tmp_path / "out")

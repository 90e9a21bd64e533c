"""The table of failure modes: every command and test that it names exists, and a study's evidence is read as it is."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from veritune.commands.app import app
from veritune.errors import InputError
from veritune.release.gate.controls import Control, controls, load_controls
from veritune.release.gate.evidence import evidence_file, read_evidence, write_evidence
from veritune.store import Store, read_json, write_json

REPO = Path(__file__).resolve().parent.parent.parent
MODES = (
    "SFT format",
    "chat-template drift",
    "target modules",
    "rank selection",
    "quantised training",
    "packing and sequence length",
    "catastrophic forgetting",
    "overfitting small data",
    "merge risk",
    "eval contamination",
    "safety regression",
    "rollback compatibility",
)


def known_commands() -> set[str]:
    names = set()
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        names |= {name} | {f"{name} {sub}" for sub in getattr(command, "commands", {})}
    return names


def has_test(name: str) -> bool:
    file, _, function = name.partition("::")
    path = REPO / file
    if not path.is_file():
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return function in names if function else any(name.startswith("test_") for name in names)


def test_the_table_has_the_twelve_modes_in_order() -> None:
    assert tuple(control.mode for control in load_controls()) == MODES


@pytest.mark.parametrize("control", load_controls(), ids=lambda c: c.id)
def test_every_command_and_test_of_the_table_exists(control: Control) -> None:
    missing = [name for name in control.commands if name.partition(" --")[0] not in known_commands()]
    missing += [] if has_test(control.test) else [control.test]
    assert missing == []


def test_a_name_that_does_not_exist_would_be_noticed() -> None:
    assert not has_test("tests/release/test_controls.py::test_nowhere")
    assert not has_test("tests/nowhere.py")
    assert has_test("tests/release/test_controls.py::test_a_name_that_does_not_exist_would_be_noticed")
    assert "probe gap" in known_commands() and "probe nothing" not in known_commands()


def table_markdown() -> str:
    lines = ["| failure mode | what goes wrong | check | command | test that shows it failing |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for c in load_controls():
        commands = ", ".join(f"`veritune {name}`" for name in c.commands)
        lines.append(f"| {c.mode} | {c.wrong} | {c.check} | {commands} | `{c.test}` |")
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_table_as_it_is() -> None:
    assert table_markdown() in (REPO / "docs" / "controls.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- a study's evidence


def words(store: Store) -> dict[str, str]:
    return {shown.control.id: shown.word for shown in controls(store.root)}


def test_a_study_shows_what_it_has_and_what_it_lacks(store: Store) -> None:
    found = words(store)
    assert found["merge"] == found["safety"] == found["rollback"] == found["contamination"] == "passed"
    assert found["overfitting"] == found["rank"] == "no evidence"
    assert found["quantised"] == "not applicable"
    evidence_file(store, "safety").unlink()
    assert words(store)["safety"] == "no evidence"


def fail_record(store: Store) -> None:
    record = read_evidence(store, "safety")
    assert record is not None
    from dataclasses import replace

    write_evidence(store, replace(record, status="failed"))


def edit_record(store: Store) -> None:
    path = evidence_file(store, "rollback")
    path.write_text(path.read_text(encoding="utf-8").replace("restored", "retold"), encoding="utf-8")


def memorise(store: Store) -> None:
    gap = read_json(Path(__file__).parents[1] / "records" / "v2" / "runs__run_id__probes__three_zone.json")
    gap["gap"]["verdict"] = "memorises"
    for run in store.runs.glob("wide-*"):
        write_json(run / "probes" / "three_zone.json", gap)


def leak(store: Store) -> None:
    path = store.audit("contamination.json")
    kept = read_json(path)
    write_json(path, {**kept, "gate": {**kept["gate"], "status": "failed"}})


def cut(store: Store) -> None:
    path = store.audit("render.json")
    kept = read_json(path)
    write_json(path, {**kept, "tokens": {**kept["tokens"], "max": 99999}})


def unfed(store: Store) -> None:
    for path in store.runs.glob("*/training.json"):
        write_json(path, {**read_json(path), "rows_compared_with_contract": 0})


def unprobed(store: Store) -> None:
    store.audit("live-wide.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "control", "word"),
    [
        (fail_record, "safety", "failed"),
        (edit_record, "rollback", "undecided"),
        (memorise, "overfitting", "failed"),
        (leak, "contamination", "failed"),
        (cut, "length", "failed"),
        (unfed, "sft_format", "undecided"),
        (unprobed, "target_modules", "no evidence"),
    ],
)
def test_bad_or_missing_evidence_is_not_called_passed(store: Store, spoil: Any, control: str, word: str) -> None:
    spoil(store)
    assert words(store)[control] == word


def test_the_command_prints_every_mode_and_speaks_json(store: Store) -> None:
    runner = CliRunner()
    text = runner.invoke(app, ["gate", str(store.root), "--controls"])
    assert text.exit_code == 0 and all(mode in text.output for mode in MODES)
    found = json.loads(runner.invoke(app, ["gate", str(store.root), "--controls", "--json"]).output)
    assert len(found) == 12 and {"control", "word", "line", "evidence"} == set(found[0])


def test_a_study_that_has_not_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no contract yet"):
        controls(tmp_path)

"""The command line: exit statuses, JSON, help, and one line for an error."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import GateError, InputError, MachineError, StoreError


def test_without_arguments_it_helps(forks: Any) -> None:
    shown = forks()
    assert shown.rc == 0
    assert "Usage: veritune" in shown.out and "run" in shown.out


def test_the_version_is_the_package_s(forks: Any) -> None:
    from importlib import metadata

    assert forks("--version").out.strip() == metadata.version("veritune")


def test_the_schema_is_json(forks: Any) -> None:
    schema = json.loads(forks("schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/") and "conditions" in schema["properties"]


def test_run_speaks_json_and_nothing_else(finished: Any, forks: Any) -> None:
    done = forks("run", finished.root, "--json")
    found = json.loads(done.out)
    assert done.rc == finished.run.returncode
    assert [v["claim"] for v in found["verdicts"]] == ["learns", "carries", "differ"]
    assert (found["trained"], found["skipped"]) == (0, 5)
    assert done.err == ""


def test_a_folder_or_its_file_are_the_same_study(finished: Any, forks: Any) -> None:
    by_file = forks("run", finished.root / "study.yaml", "--json")
    assert json.loads(by_file.out)["skipped"] == 5


def test_all_claims_supported_is_status_0_and_any_other_is_2(finished: Any) -> None:
    from veritune.pipeline import Outcome
    from veritune.records import Verdict

    def outcome(*verdicts: Verdict) -> bool:
        return Outcome(finished.root, verdicts, finished.root, 0, 0, 0.0).all_supported

    yes, no = (Verdict("a", "improves", s, "s") for s in ("supported", "inconclusive"))
    late = Verdict("b", "improves", "refuted", "s", exploratory=True)
    assert outcome(yes) and outcome() and not outcome(yes, late)
    assert not outcome(yes, no) and not outcome(no)


@pytest.mark.parametrize(("error", "status"), [(InputError, 1), (StoreError, 1), (MachineError, 1), (GateError, 2)])
def test_errors_have_the_statuses_of_their_kind(
    error: Any, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import veritune.verbs
    from veritune.commands.main import main

    def fail(*_args: Any) -> None:
        raise error("expected this,\n  found that.", fix="Do this.")

    monkeypatch.setattr(veritune.verbs, "status", fail)
    monkeypatch.setattr("sys.argv", ["veritune", "status", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == status
    assert capsys.readouterr().err == "veritune: expected this, found that. Do this.\n"


def test_a_fault_of_ours_is_one_line_that_says_so_and_debug_shows_its_causes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import veritune.verbs
    from veritune.commands.main import main

    def fail(*_args: Any) -> None:
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            raise KeyError("entries") from None

    monkeypatch.setattr(veritune.verbs, "status", fail)
    monkeypatch.setattr("sys.argv", ["veritune", "status", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("veritune: unexpected KeyError: 'entries' (commands/study.py:") and told.count("\n") == 1
    assert "A record may be damaged" in told and "this is a bug in Veritune" in told and "--debug" in told
    monkeypatch.setattr("sys.argv", ["veritune", "status", str(tmp_path), "--debug"])
    with pytest.raises(KeyError) as raised:
        main()
    assert "ZeroDivisionError" in "".join(traceback.format_exception(raised.value)), "a cause that `from None` hid"


def test_the_cells_of_a_study_alone_and_followed_to_their_end(finished: Any, forks: Any) -> None:
    cells = json.loads(forks("status", finished.root, "--cells", "--json").out)
    assert len(cells) == 5 and {cell["state"] for cell in cells} == {"done"}
    assert json.loads(forks("status", finished.root, "--follow", "--json").out) == cells
    assert forks("status", finished.root, "--cells").out.rstrip().endswith("5 cells: 5 done")


def test_a_table_is_exported_and_without_a_name_the_names_are_listed(finished: Any, forks: Any) -> None:
    names = json.loads(forks("writeup", "export", "--study", finished.root, "--like", "n.runs", "--json").out)
    assert "n.runs" in {entry["name"] for entry in names} and all("n.runs" in entry["name"] for entry in names)
    table = forks("writeup", "export", "table.scores.style", "--study", finished.root, "--as", "csv")
    assert table.rc == 0 and "," in table.out.splitlines()[0]


def test_a_study_s_modules_are_a_part_of_its_plan(finished: Any, forks: Any) -> None:
    shown = forks("plan", finished.root, "--modules")
    assert shown.rc == 0 and "parameters" in shown.out and "q_proj" in shown.out

"""The command line: exit statuses, JSON, help, and one line for an error."""

from __future__ import annotations

import json
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
    from veritune.records import Verdict
    from veritune.stages import Outcome

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


def test_a_fault_of_ours_is_not_dressed_as_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import veritune.verbs
    from veritune.commands.main import main

    monkeypatch.setattr(veritune.verbs, "status", lambda *_: 1 / 0)
    monkeypatch.setattr("sys.argv", ["veritune", "status", str(tmp_path)])
    with pytest.raises(ZeroDivisionError):
        main()

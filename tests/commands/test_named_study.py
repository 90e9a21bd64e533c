"""A command works on the study that was named, never on the one that lies where it was called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from veritune.commands.main import main
from veritune.demo import unpack

READING = (
    "status {}",
    "verify {}",
    "report {}",
    "gate {}",
    "gate {} --controls",
    "writeup draft {} --out d.md",
    "writeup export --study {}",
    "lint post.md --study {}",
    "results add {} --in index",
    "bundle {} --run all_layer-s0-553c4151 --out b",
)
Said = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the finished study that `veritune demo` unpacks, which is where commands are called."""
    unpack(tmp_path / "demo")
    root = tmp_path / "demo" / "study"
    (root / "post.md").write_text("The score is 0.5.\n")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command line in this process: exit code, stdout, stderr."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["veritune", *line.split()])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


@pytest.mark.parametrize("line", READING)
@pytest.mark.parametrize(
    ("name", "words"),
    [("typo", "there is no study at typo."), ("post.md", "post.md: a study's file must be named study.yaml")],
)
def test_a_name_that_is_no_study_is_refused_in_the_folder_of_another(
    inside: Path, said: Said, line: str, name: str, words: str
) -> None:
    before = sorted(inside.rglob("*"))
    code, out, err = said(line.format(name))
    assert (code, out) == (1, "")
    assert err.startswith(f"veritune: {words}") and err.count("\n") == 1
    assert sorted(inside.rglob("*")) == before


def test_a_study_whose_file_is_gone_can_still_be_named_by_it(inside: Path, said: Said) -> None:
    (inside / "study.yaml").unlink()
    code, out, _ = said("verify study.yaml")
    assert code == 2 and "study.yaml is missing" in out

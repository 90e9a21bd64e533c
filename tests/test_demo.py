"""`veritune demo`: a finished study, unpacked whole, on which every command of its page prints what the page says."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from veritune import demo
from veritune.commands.app import app
from veritune.demo import ARCHIVE, TRIES, Try, demo_text, unpack
from veritune.errors import FormatError, InputError
from veritune.extras import NEEDS_TRAIN
from veritune.seal import verify

MOST_BYTES = 3_000_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("demo") / "veritune-demo").folder


def test_the_study_is_as_it_was_sealed_and_small(folder: Path) -> None:
    assert verify(folder / "study") == []
    assert ARCHIVE.stat().st_size < MOST_BYTES
    names = {p.relative_to(folder).parts[0] for p in folder.rglob("*")}
    assert names >= {"study", "logs", "adapter", "base", "exam.jsonl", "post.md"}


@pytest.mark.parametrize("one", TRIES, ids=lambda one: one.command)
def test_a_command_of_the_page_prints_what_the_page_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, one: Try
) -> None:
    """In the order of the page: a later command may rest on what an earlier one wrote."""
    monkeypatch.chdir(folder)
    program, *words = shlex.split(one.command)
    assert program == "veritune"
    done = CliRunner(env={"COLUMNS": "120"}).invoke(app, words)
    assert done.exit_code == one.status, f"{done.output}\n{done.exception}"
    assert one.prints in done.output, done.output


def test_the_page_names_ten_commands_and_shows_each_with_its_line(folder: Path) -> None:
    page = demo_text(demo.Demo(folder, 1_234_567, TRIES))
    assert len(TRIES) == 10 and len({one.command.split()[1] for one in TRIES}) >= 8
    for one in TRIES:
        assert one.command in page and one.prints in page and one.says in page
        assert not any(one.command.startswith(f"veritune {name} ") for name in NEEDS_TRAIN), "no model is needed"
    assert str(folder) in page and "1.2 MB" in page


def test_nothing_is_overwritten_and_a_damaged_archive_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="already exists"):
        unpack(folder)
    cut = tmp_path / "cut.tar.zst"
    cut.write_bytes(ARCHIVE.read_bytes()[:-100])
    monkeypatch.setattr(demo, "ARCHIVE", cut)
    with pytest.raises(FormatError, match="cannot be read"):
        unpack(tmp_path / "here")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.tar.zst"]


def test_the_command_needs_no_part_of_the_training_half(tmp_path: Path) -> None:
    code = (
        "import sys; from veritune.extras import TRAIN; sys.modules.update(dict.fromkeys(TRAIN));"
        "from veritune.commands.main import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "here"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("here: ") and " 10  veritune" not in done.stdout and "10  veritune" in done.stdout


def test_it_is_packed_in_the_wheel() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert "demo/*.zst" in project["tool"]["setuptools"]["package-data"]["veritune"]
    assert ARCHIVE.parent.name == "demo" and ARCHIVE.suffix == ".zst"

"""Signals, locks, umask, links and renamed folders: what is running is said, and nothing is left behind."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import children

from veritune.commands.terminal import PlainStream, plain, plain_streams
from veritune.errors import LockedError, StoreError
from veritune.files import holding, make_folder, staged_folder, write_text
from veritune.progress import Progress
from veritune.store import Store

# ---------------------------------------------------------------- the terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;owned\x07", "\\u001b[2J\\u001b]0;owned\\u0007"),
        ("a\rb", "a\\u000db"),
        ("\x9b31mred", "\\u009b31mred"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("\ud800", "\\ud800"),
        ("tab\tand line\nstay, é 😀 too", "tab\tand line\nstay, é 😀 too"),
    ],
)
def test_control_characters_are_spelled_out(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert plain(json.dumps(text, ensure_ascii=False)).encode("utf-8")
    assert json.loads(plain(json.dumps(text, ensure_ascii=False))) == text, "`--json` stays JSON and means the same"


def test_progress_redraws_its_line_and_a_name_in_it_cannot() -> None:
    raw = io.StringIO()
    raw.isatty = lambda: True  # type: ignore[method-assign]
    progress = Progress(PlainStream(raw))  # type: ignore[arg-type]
    progress.note("arm \x1b[2K\rforged")
    assert raw.getvalue().startswith("\r\x1b[2K") and "arm \\u001b[2K\\u000dforged" in raw.getvalue()
    assert raw.getvalue().count("\x1b") == 1


def test_streams_are_filtered_in_commands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with plain_streams():
        print("\x1b[1m")
    assert sys.stdout is before and capsys.readouterr().out == "\\u001b[1m\n"


@pytest.mark.parametrize("command", ["status", "status --cells", "verify", "lint"])
def test_escapes_in_a_study_s_names_reach_no_terminal(study: Any, forks: Any, command: str) -> None:
    study.change(lambda s: s.update(name="x\x1b]0;owned\x07\x9b2J"))
    (study.root / "text.md").write_text("It \x1b[2J rose by 12.5 points.\n", encoding="utf-8")
    extra = [study.root / "text.md", "--study", study.root] if command == "lint" else [study.root]
    shown = forks(*command.split(), *extra)
    assert "\x1b" not in shown.out + shown.err and "\x9b" not in shown.out + shown.err


# ---------------------------------------------------------------- permissions


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644)])
def test_the_umask_is_kept(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a" / "f", "x")
        with staged_folder(tmp_path / "b") as folder:
            (folder / "f").write_text("x")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / n / "f").stat().st_mode) for n in "ab"] == [mode, mode]
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == mode | (mode & 0o444) >> 2


def test_training_rows_and_scores_of_a_private_study_stay_private(study: Any, forks: Any) -> None:
    before = os.umask(0o077)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "veritune", "freeze", str(study.root), "--quiet"], capture_output=True, check=False
        )
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    made = [p for p in study.root.rglob("*") if p.is_file() and p.name not in ("study.yaml", "rows.jsonl")]
    assert made and all(stat.S_IMODE(p.stat().st_mode) & 0o077 == 0 for p in made)


# ---------------------------------------------------------------- locks


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_no_locks_here_is_told_from_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(*_args: Any) -> None:
        raise OSError(code, os.strerror(code))

    store = Store(tmp_path)
    with store.lock(), pytest.raises(LockedError, match="is in use by process"), Store(tmp_path).lock():
        raise AssertionError
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(StoreError, match="has no working locks") as caught, store.lock():
        raise AssertionError
    assert not isinstance(caught.value, LockedError) and caught.value.exit_code == 1
    assert LockedError.exit_code == 3


def test_a_look_at_a_lock_does_not_make_a_run_fail(tmp_path: Path) -> None:
    """`status` holds a shared lock for a moment; a cell that starts just then is not told that it is in use."""
    with Store(tmp_path).run_lock("r"):
        pass
    child = os.fork()
    if child == 0:
        with (tmp_path / ".locks" / "r").open() as stream:
            fcntl.flock(stream, fcntl.LOCK_SH)
            os.kill(os.getppid(), signal.SIGUSR1)
            time.sleep(0.05)
        os._exit(0)
    signal.sigtimedwait([signal.SIGUSR1], 5) if _blocked() else time.sleep(0.02)
    with Store(tmp_path).run_lock("r"):
        pass
    os.waitpid(child, 0)


def _blocked() -> bool:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    return True


def test_status_says_what_children_hold_though_nobody_holds_the_folder(study: Any, forks: Any) -> None:
    assert forks("freeze", study.root, "--quiet").rc == 0
    run = json.loads(forks("status", study.root, "--cells", "--json").out)[0]["run_id"]
    with Store(study.root).run_lock(run):
        shown = forks("status", study.root)
    assert f"running: 1 cell, {run} by process {os.getpid()}" in shown.out, shown.out
    assert "no process is running" not in shown.out and "running" in shown.out.split(run)[2].split("\n")[0]
    assert "no process is running it" in forks("status", study.root).out


# ---------------------------------------------------------------- folders that move


def test_a_renamed_folder_is_noticed_and_its_old_path_is_not_made_again(tmp_path: Path) -> None:
    root = tmp_path / "study"
    root.mkdir()
    with holding(root):
        make_folder(root / "runs" / "a")
        root.rename(tmp_path / "elsewhere")
        for write in (lambda: write_text(root / "runs" / "b" / "f", "x"), lambda: Store(root).log("ran")):
            with pytest.raises(StoreError, match="was renamed or removed while this command worked on it"):
                write()
        assert not root.exists()
        root.mkdir()  # another folder under the old name is not the study either
        with pytest.raises(StoreError, match="was renamed or removed"):
            write_text(root / "runs" / "b" / "f", "x")
        assert list(root.iterdir()) == []
    write_text(root / "runs" / "f", "x")


def test_runs_may_be_a_link_to_another_disk(study: Any, forks: Any, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (study.root / "runs").symlink_to(tmp_path / "disk")
    assert Store(study.root).relative(study.root / "runs" / "a" / "f") == "runs/a/f"
    study.change(lambda s: s.update(seeds=[0], claims=s["claims"][:1]) or s["conditions"].pop("attention_only"))
    ran = forks("run", study.root, "--quiet")
    assert ran.rc in (0, 2), ran.err
    checked = forks("verify", study.root)
    assert checked.rc == 0 and "verified" in checked.out, checked.out
    assert any((tmp_path / "disk").iterdir())


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_leaves_no_cell_running(study: Any, forks: Any, how: signal.Signals) -> None:
    """SIGTERM ends the cells and says so; a run that is killed outright takes its cells with it (Linux)."""
    study.change(lambda s: s["train"].update(max_steps=4000))
    started = forks.start("run", study.root, "--executor", "local", "--workers", "1", "--quiet")
    cells = wait_for(lambda: children(started["pid"]), 120)
    assert cells, "no cell was started"
    wait_for(lambda: Store(study.root).held_runs(), 120)
    os.kill(started["pid"], how)
    ended = forks.wait(started)
    assert ended.rc == (143 if how == signal.SIGTERM else -signal.SIGKILL)
    if how == signal.SIGTERM:
        assert "veritune: stopped. Finished work is on disk; run the same command again to resume." in ended.err
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in cells), 60), "a cell was left running"
    assert Store(study.root).held_runs() == {}


def wait_for(found: Any, seconds: float) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = found()
        if value:
            return value
        time.sleep(0.05)
    return found()

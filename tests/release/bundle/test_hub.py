"""Bundles on a Hugging Face repo and in an MLflow registry: what comes back is what went, or it is refused."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import FormatError, GateError, InputError, MachineError
from veritune.release.bundle.verify import verify_bundle
from veritune.release.registry import hub as places
from veritune.store import sha256_file

_spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
assert _spec and _spec.loader
hub_server = importlib.util.module_from_spec(_spec)
sys.modules["hub_server"] = hub_server
_spec.loader.exec_module(hub_server)

REPO = "me/house-style"


def contents(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The loopback endpoint; the client library reads its address at import, so its constants are set."""
    from huggingface_hub import close_session, constants

    server = hub_server.Hub()
    close_session()
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    yield server
    server.shutdown()
    server.server_close()
    close_session()


# ---------------------------------------------------------------- Hugging Face


def test_a_pushed_bundle_comes_back_byte_for_byte(hub: Any, made: Path, tmp_path: Path) -> None:
    pushed = places.push(made, f"hf://{REPO}")
    assert hub.repos[REPO].private and pushed.gate == "passed"
    assert pushed.place == f"hf://{REPO}@{hub_server.oid(1)}"
    found = places.pull(pushed.place, tmp_path / "back", bundle=pushed.bundle)
    assert found.id == pushed.bundle and not found.findings
    assert contents(tmp_path / "back") == contents(made)
    assert set(hub.repos[REPO].commits[1]) == {".gitattributes", *contents(made)}


def test_no_token_is_in_what_is_pushed(hub: Any, made: Path) -> None:
    places.push(made, f"hf://{REPO}")
    assert "Bearer hf_of_this_test" in hub.tokens
    assert not any(b"hf_of_this_test" in content for content in hub.repos[REPO].commits[-1].values())


def test_a_second_push_leaves_exactly_the_second_bundle(hub: Any, made: Path, other: Path, tmp_path: Path) -> None:
    places.push(made, f"hf://{REPO}")
    hub.repos[REPO].commits[1]["notes.md"] = b"of somebody else"
    second = places.push(other, f"hf://{REPO}")
    assert set(hub.repos[REPO].commits[2]) == {".gitattributes", *contents(other)}
    assert places.pull(f"hf://{REPO}", tmp_path / "back").id == second.bundle


def test_a_branch_named_production_asks_for_gates(hub: Any, made: Path, other: Path) -> None:
    with pytest.raises(GateError, match="holds no gate record"):
        places.push(other, f"hf://{REPO}@production")
    assert not hub.repos
    places.push(made, f"hf://{REPO}@production")
    assert hub.repos[REPO].branches == {"main": 0, "production": 1}


def test_a_damaged_bundle_is_not_pushed(hub: Any, bundle: Path) -> None:
    (bundle / "README.md").write_text("better than it is", "utf-8")
    with pytest.raises(GateError, match="fails verification"):
        places.push(bundle, f"hf://{REPO}")
    assert not hub.asked


def test_a_push_that_did_not_arrive_whole_is_no_push(hub: Any, made: Path) -> None:
    hub.loses = "README.md"
    with pytest.raises(GateError, match=r"README\.md differs .*, or is missing"):
        places.push(made, f"hf://{REPO}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update({"README.md": b"better than it is"}), "README.md"),
        (lambda tree: tree.pop("README.md"), "README.md is missing"),
        (lambda tree: tree.pop("manifest.json"), "manifest.json is missing"),
        (lambda tree: tree.update({"manifest.json": tree["manifest.json"].replace(b"tiny", b"huge")}), "edited"),
    ],
    ids=["changed", "missing", "no manifest", "edited manifest"],
)
def test_what_was_changed_on_the_hub_is_refused_and_leaves_nothing(
    hub: Any, made: Path, tmp_path: Path, change: Any, message: str
) -> None:
    places.push(made, f"hf://{REPO}")
    change(hub.repos[REPO].commits[1])
    with pytest.raises(Exception, match=message):
        places.pull(f"hf://{REPO}", tmp_path / "back")
    assert not list(tmp_path.iterdir())


def test_files_that_the_manifest_does_not_list_are_not_asked_for(hub: Any, made: Path, tmp_path: Path) -> None:
    places.push(made, f"hf://{REPO}")
    hub.repos[REPO].commits[1] |= {"pytorch_model.bin": b"\x80\x04.", "../../escape": b"x"}
    places.pull(f"hf://{REPO}", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(made)
    assert not any("pytorch_model" in line or "escape" in line for line in hub.asked)


def test_a_file_that_grows_while_it_streams_is_cut_off(hub: Any, made: Path, tmp_path: Path) -> None:
    places.push(made, f"hf://{REPO}")
    hub.repos[REPO].commits[1]["README.md"] += b"x" * 3_000_000
    with pytest.raises(FormatError, match=r"README\.md has more than the expected [\d,]+ bytes"):
        places.pull(f"hf://{REPO}", tmp_path / "back")
    assert not list(tmp_path.iterdir())


def test_another_bundle_than_the_named_one_is_refused(hub: Any, made: Path, other: Path, tmp_path: Path) -> None:
    first = places.push(made, f"hf://{REPO}")
    places.push(other, f"hf://{REPO}")
    with pytest.raises(GateError, match=f"not {first.bundle}"):
        places.pull(f"hf://{REPO}", tmp_path / "back", bundle=first.bundle)
    assert places.pull(first.place, tmp_path / "back", bundle=first.bundle).id == first.bundle


def in_a_child(hub: Any, work: Callable[[], Any], kill_at: str | None = None) -> int:
    """Run `work` in a forked process, killed by the hub or before the file operation named; how it ended."""
    from huggingface_hub import close_session

    begin, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.read(begin, 1)
            close_session()

            def hook(event: str, args: tuple[Any, ...]) -> None:
                if kill_at is not None and re.search(kill_at, " ".join([event, *map(str, args)])):
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            work()
        finally:
            os._exit(1)
    hub.kills = pid if kill_at is None else None
    os.write(go, b"x")
    _, status = os.waitpid(pid, 0)
    hub.kills = None
    return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*")
def test_a_push_that_was_killed_leaves_the_branch_where_it_was(
    hub: Any, made: Path, other: Path, tmp_path: Path
) -> None:
    first = places.push(other, f"hf://{REPO}")
    assert in_a_child(hub, lambda: places.push(made, f"hf://{REPO}")) == -signal.SIGKILL
    assert places.pull(f"hf://{REPO}", tmp_path / "back").id == first.bundle
    assert places.push(made, f"hf://{REPO}").bundle != first.bundle


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*")
@pytest.mark.parametrize("point", [r"open \S+/whole/README.md", r"os.rename \S+/whole \S+/back"])
def test_a_pull_that_was_killed_leaves_nothing_under_its_name(hub: Any, made: Path, tmp_path: Path, point: str) -> None:
    pushed = places.push(made, f"hf://{REPO}")
    assert in_a_child(hub, lambda: places.pull(pushed.place, tmp_path / "back"), point) == -signal.SIGKILL
    assert not (tmp_path / "back").exists()
    assert places.pull(pushed.place, tmp_path / "back").id == pushed.bundle


def test_a_missing_repo_and_a_dead_server_are_one_line(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="hf://me/nothing"):
        places.pull("hf://me/nothing", tmp_path / "back")
    with pytest.raises(InputError, match="is not an address"):
        places.pull("hf://nothing", tmp_path / "back")
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match="hf://me/nothing"):
        places.pull("hf://me/nothing", tmp_path / "back")


# ---------------------------------------------------------------- MLflow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real `mlflow server`: the one that VERITUNE_MLFLOW names, or on the path; skips where there is none."""
    command = os.environ.get("VERITUNE_MLFLOW") or shutil.which("mlflow")
    if not command or subprocess.run([command, "server", "--help"], capture_output=True, check=False).returncode:
        pytest.skip("no MLflow server here: set VERITUNE_MLFLOW to the `mlflow` command of a full installation")
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "artifacts")]
    process = subprocess.Popen(
        [command, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *options],
        cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if process.poll() is not None:
            pytest.skip(f"{command} server ended by itself: set VERITUNE_MLFLOW to a full installation's command")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.3)
    time.sleep(2)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(params=["files", "server"])
def mlflow(request: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """MLflow's own store in a folder, and its server."""
    pytest.importorskip("mlflow", reason="MLflow's client is not installed: pip install 'veritune[mlflow]'")
    uri = request.getfixturevalue("server") if request.param == "server" else f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return str(uri)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_registered_version_is_the_bundle_and_an_alias_points_to_it(
    mlflow: str, made: Path, other: Path, tmp_path: Path, request: Any
) -> None:
    model = f"house-{'server' if mlflow.startswith('http') else 'files'}"
    pushed = places.push(made, f"mlflow://{model}@production")
    assert pushed.place == f"mlflow://{model}/1"
    found = places.pull(f"mlflow://{model}@production", tmp_path / "back", bundle=pushed.bundle)
    assert contents(tmp_path / "back") == contents(made) and not verify_bundle(tmp_path / "back").findings
    with pytest.raises(GateError, match="holds no gate record"):
        places.push(other, f"mlflow://{model}@production")
    second = places.push(other, f"mlflow://{model}@staging")
    assert second.place == f"mlflow://{model}/2" and second.gate is None
    assert places.pull(f"mlflow://{model}@production", tmp_path / "again").id == found.id
    with pytest.raises(MachineError, match="alias"):
        places.pull(f"mlflow://{model}@nobody", tmp_path / "none")
    with pytest.raises(InputError, match="names no version"):
        places.pull(f"mlflow://{model}", tmp_path / "none")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_artifacts_changed_in_the_store_are_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="MLflow's client is not installed: pip install 'veritune[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    place = places.push(made, "mlflow://house").place
    (card,) = tmp_path.glob("mlruns/**/bundle/README.md")
    card.write_text("better than it is", "utf-8")
    with pytest.raises(GateError, match=r"README\.md"):
        places.pull(place, tmp_path / "back")
    card.unlink()
    with pytest.raises(Exception, match=r"README\.md is missing"):
        places.pull(place, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_without_a_server_it_says_what_to_set(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(MachineError, match="MLFLOW_TRACKING_URI"):
        places.push(made, "mlflow://house")

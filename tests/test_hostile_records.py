"""No command believes, or stumbles over, a record with one hostile value: a named error in one line, or its result.

Each record file of a finished study (the one that `veritune demo` unpacks) and of a bundle of it gets one place
replaced by one hostile value, and then commands read it. Once as it is, where `verify` has to name the file; once as a
forger leaves it, with every hash that anybody can compute made right, so that what lies behind the hashes is read.
A sample here; with VERITUNE_HOSTILE=N that many changes of each file before every command.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from veritune import seal
from veritune.commands.main import main
from veritune.demo import unpack
from veritune.errors import VerituneError
from veritune.files import hash_of, sha256_file
from veritune.store import Store

EACH = int(os.environ.get("VERITUNE_HOSTILE", "0"))
LIMIT_S = 20  # processor time of one command; the slowest, report, takes 2 s here
DROPPED = object()
RUN = "all_layer-s0-553c4151"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


known = load(Path(__file__).parent / "fuzz" / "test_strangers_files.py")
HOSTILE = (
    *(None, True, -1, 2**63, 10**400, 1e308, float("nan"), [], {}, [[]], {"": None}, DROPPED),
    *("", "../../x", "\0", "\ud800", "\u2028", "x" * 200_000, "{{x}}"),
)
FILES = (
    *("study.yaml", "contract.lock.json", "events.jsonl", "seal.json", "plan.json", "verdict.json", "notes.jsonl"),
    *("audit/contamination.json", "audit/live-all_layer.json", "audit/render.json", "audit/split.json"),
    *("data/*/manifest.json", f"probes/{RUN}/curve.json", f"runs/{RUN}/manifest.json", f"runs/{RUN}/metrics.jsonl"),
    *(f"runs/{RUN}/telemetry.jsonl", f"runs/{RUN}/training.json", f"runs/{RUN}/summary.json"),
    *(f"runs/{RUN}/scores/house_style.jsonl", f"runs/{RUN}/scores/house_style.json", f"runs/{RUN}/tries.jsonl"),
    *(f"runs/{RUN}/probes/nll.json", f"runs/{RUN}/probes/three_zone.json", "plans/0001.json"),
)
COMMANDS = (
    "status {} --cells",
    "status {} --json",
    "verify {}",
    "lint {}/../post.md --study {}",
    "writeup export table.claims --study {}",
    "writeup draft {} --out {}/../draft.md",
    "results add {} --in {}/../index",
    "gate {}",
    "report {}",
)
OF_BUNDLES = ("manifest.json", "base.json", "datasheet.json", "licences.json", "golden.json", "generation_config.json",
              "adapter/adapter_config.json", "evidence/contract.lock.json", "evidence/verdict.json")  # fmt: skip


def with_value(content: bytes, suffix: str, draw: random.Random) -> tuple[bytes, str]:
    """The file with one place of one record changed, and what was changed."""
    text = content.decode("utf-8")
    lines = text.splitlines() if suffix == ".jsonl" else [text]
    at = draw.choice((0, len(lines) - 1, draw.randrange(len(lines))))
    value = yaml.safe_load(lines[at]) if suffix == ".yaml" else json.loads(lines[at])
    place, new = draw.randrange(10**6), draw.choice(HOSTILE)
    changed = known.changed(value, [(place, new, new is DROPPED)]) if draw.random() < 0.95 or new is DROPPED else new
    lines[at] = json.dumps(changed)  # JSON is YAML
    places = known.places(value)
    told = f"line {at + 1}: {places[place % len(places)]} = {'dropped' if new is DROPPED else repr(new)[:40]}"
    return "\n".join([*lines, ""]).encode(), told


def forge(root: Path, path: Path, before: bytes) -> None:
    """Make every hash right that speaks of the changed file: its own, the timeline's, and the seal's."""
    with_own_hash(path)
    old, new = hashlib.sha256(before).hexdigest(), sha256_file(path)
    events, previous = [], None
    for line in (root / "events.jsonl").read_text("utf-8").splitlines():
        try:
            event = json.loads(line if path.name == "events.jsonl" else line.replace(old, new))
            event = {**event, "previous": previous, "hash": None}
            previous = event["hash"] = hash_of({k: v for k, v in event.items() if k != "hash"})
        except (ValueError, TypeError, RecursionError, OverflowError):
            return
        events.append(event)
    if path.name != "seal.json":
        lines = [json.dumps(e) for e in events if e.get("event") != "sealed" or path.name == "events.jsonl"]
        (root / "events.jsonl").write_text("".join(line + "\n" for line in lines))
        try:
            seal.seal(Store(root))
        except (VerituneError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return


def with_own_hash(path: Path) -> None:
    """Make the hash that a record holds of itself right; a contract has one in each entry."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError:
        return
    entries = value.get("entries") if isinstance(value, dict) else None
    for entry in entries if isinstance(entries, list) else [value]:
        if isinstance(entry, dict) and "hash" in entry:
            entry.update(known.rehashed(entry))
            path.write_text(json.dumps(value))


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo, with its study. Read only."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    unpack(folder)
    return folder


@pytest.fixture
def demo(finished_demo: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished_demo, tmp_path / "demo")
    return tmp_path / "demo"


Said = Callable[[str], tuple[int, str, str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command line in this process: exit code, stdout, stderr. Whatever gets out of it fails the test."""

    def run(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["veritune", *line.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


class Snapshot:
    """The files of a folder, to bring back after each command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}

    def bring_back(self) -> None:
        for path in self.root.rglob("*"):
            if path.is_file() and path not in self.files:
                path.unlink()
        for path, content in self.files.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


def changes(snapshot: Snapshot, path: Path, seed: str, each: int) -> Iterator[str]:
    """Change the file, so many times in turn, and bring all back after each; says what was changed."""
    draw = random.Random(seed)
    for _ in range(each):
        content, told = with_value(snapshot.files[path], path.suffix, draw)
        path.write_bytes(content)
        yield f"{path.relative_to(snapshot.root)} {told}"
        snapshot.bring_back()


def assert_named(said: Said, line: str, where: str) -> tuple[int, str]:
    """The command ends with its result, or with one line that names an error; in time. Returns its code and stdout."""
    start = time.process_time()
    code, out, err = said(line)
    where = f"{line.split(' ')[:2]}, {where}: exit code {code}\n{err}"
    assert code in (0, 1, 2) and "Traceback" not in err and "is a bug in Veritune" not in err, where
    assert len(err) < 5000 and time.process_time() - start < LIMIT_S, where
    if code == 1:
        assert err.splitlines()[-1].startswith("veritune: "), where
    return code, out


@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "forged"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_hostile_value_in_a_record_of_a_study_is_no_surprise(
    demo: Path, said: Said, command: str, forged: bool
) -> None:
    snapshot, root = Snapshot(demo), demo / "study"
    start = COMMANDS.index(command) + (3 if forged else 0)
    sample = FILES if EACH else FILES[start % 6 :: 12 if "report" in command else 6]
    for name in sample:
        (path,) = sorted(root.glob(name))[:1]
        for where in changes(snapshot, path, f"{command} {name} {forged}", EACH or 1):
            if forged:
                forge(root, path, snapshot.files[path])
            code, out = assert_named(said, command.format(root, root), where)
            if command.startswith("verify") and not forged:
                assert code != 0 and "verified" not in out, where


@pytest.fixture(scope="module")
def packed(finished_demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the demo's study. Read only."""
    from veritune.release.bundle.build import BundleSource, make_bundle

    out = tmp_path_factory.mktemp("bundle") / "b"
    make_bundle(BundleSource(finished_demo / "study", RUN, prompts=1), out)
    return out


@pytest.mark.parametrize("forged", [False, True], ids=["as it is", "forged"])
@pytest.mark.parametrize("name", OF_BUNDLES)
def test_a_hostile_value_in_a_file_of_a_bundle_is_no_surprise(
    packed: Path, tmp_path: Path, said: Said, name: str, forged: bool
) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(packed, bundle)
    snapshot, path = Snapshot(bundle), bundle / name
    for where in changes(snapshot, path, f"{name} {forged}", EACH or 2):
        if forged:
            repack(bundle, path)
        code, out = assert_named(said, f"verify {bundle}", where)
        assert forged or (code != 0 and "verified" not in out), where
        assert_named(said, f"promote {bundle} --registry {tmp_path}/registry --to staging", where)


def repack(bundle: Path, path: Path) -> None:
    """Make the manifest's hash of the changed file right, and its own."""
    manifest = bundle / "manifest.json"
    if path != manifest:
        value = json.loads(manifest.read_text("utf-8"))
        packed = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        value["files"][path.relative_to(bundle).as_posix()] = packed
        manifest.write_text(json.dumps(value))
    with_own_hash(manifest)

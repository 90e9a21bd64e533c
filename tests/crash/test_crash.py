"""Every command that changes records can be killed at any of its file operations, or meet a full or failing disk, and
be given again: nothing is lost, nothing is recorded twice, nothing half-made is believed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune import contract
from veritune.errors import StaleError
from veritune.ledger import Ledger
from veritune.records import RunSummary
from veritune.seal import finish_run, seal, verify
from veritune.store import Store, read_json, write_json

_spec = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("faults.py"))
assert _spec and _spec.loader
faults = importlib.util.module_from_spec(_spec)
sys.modules["faults"] = faults
_spec.loader.exec_module(faults)
Command, leftovers, try_every_fault = faults.Command, faults.leftovers, faults.try_every_fault


@pytest.fixture
def copies(tmp_path: Path) -> Callable[[Path], Callable[[int], Path]]:
    """`copies(folder)(i)` is the i-th copy of a folder, each under the same parent."""

    def of(folder: Path) -> Callable[[int], Path]:
        def copy(number: int) -> Path:
            target = tmp_path / f"copy-{number}"
            shutil.copytree(folder, target)
            return target

        return copy

    return of


# ---------------------------------------------------------------- amend


def summary_of(run: str) -> RunSummary:
    return RunSummary("x", run, "main", run.partition("-")[0], 0, 0.1, False, None, None, None, {}, {}, "now")


@pytest.fixture
def frozen(study: Any, forks: Any) -> Path:
    """A frozen and sealed study with two runs that are recorded as finished, and a changed claim in study.yaml."""
    done = forks("freeze", study.root, "--quiet")
    assert done.rc == 0, done.err
    store = Store(study.root)
    for run in ("baseline-x", "all_layer-s0-x"):
        write_json(store.run(run) / "manifest.json", {"run_id": run, "input_hash": "x", "exploratory": False})
        finish_run(store, run, summary_of(run))
    seal(store)
    assert verify(study.root) == []
    study.change(lambda s: s["claims"][2].update(margin=0.3))
    return Path(study.root)


def test_amend_survives_every_fault(frozen: Path, forks: Any, copies: Any, tmp_path: Path) -> None:
    def half(root: Path) -> None:
        contract.read(Store(root))
        entries, events = contract.read(Store(root))["entries"], Store(root).events()
        known = [e["contract"] for e in events if e["event"] in ("frozen", "amended")]
        assert [e["hash"] for e in entries] == known[: len(entries)], "an entry that the timeline does not know"

    def whole(root: Path) -> None:
        assert [e["reason"] for e in contract.agreed(Store(root))["entries"]] == ["frozen", "why\u2028not"]
        assert all(read_json(path)["before_amendment"] == 1 for path in root.glob("runs/*/summary.json"))
        assert [f.message for f in verify(root)] == []
        assert leftovers(root) == []

    command = Command(copies(frozen), lambda root: ("amend", root, "--reason", "why\u2028not"), whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0


def test_freeze_survives_every_fault(study: Any, forks: Any, copies: Any, tmp_path: Path) -> None:
    def half(root: Path) -> None:
        if (root / "contract.lock.json").exists():
            contract.agreed(Store(root))

    def whole(root: Path) -> None:
        assert len(contract.agreed(Store(root))["entries"]) == 1
        assert [e["event"] for e in Store(root).events()] == ["frozen"]
        assert leftovers(root) == []

    command = Command(copies(study.root), lambda root: ("freeze", root, "--quiet"), whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0


# ---------------------------------------------------------------- data versions


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data file with a leak, a benchmark, and a review pack with decisions."""
    from veritune.data.audit import audit
    from veritune.data.review import make_pack, write_pack

    folder = tmp_path / "data"
    folder.mkdir()
    asked = ["what does the ferry carry across the harbour at night in winter", "how many lamps hang over the old gate"]
    ask = "tell me about thing {} of the list"
    rows = [{"id": f"r{i}", "prompt": ask.format(i), "completion": f"it is {i}."} for i in range(8)]
    rows += [{"id": "leak", "prompt": asked[0], "completion": "eleven crates."}]
    for name, each in (("raw", rows), ("bench", [{"id": "b0", "prompt": asked[0], "completion": "eleven crates."}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each), "utf-8")
    found = audit(folder / "raw.jsonl")
    pack = write_pack(make_pack(found.rows, found.findings, per_reason=99, control=99), tmp_path / "pack.jsonl")
    records = [json.loads(line) for line in pack.read_text("utf-8").split("\n") if line]
    records[0] |= {"decision": "drop", "why": "one\u2028two", "reviewer": "ana"}
    pack.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return folder


def versions(folder: Path) -> list[tuple[Any, ...]]:
    entries = Ledger(folder / "_lineage.jsonl").read()
    return [(e["file"], e["sha256"], e["rows"], e["rejects"], e["how"]) for e in entries]


def version_command(copies: Any, data: Path, argv: Callable[[Path], tuple[object, ...]], **more: Any) -> Any:
    """A command that makes `next.jsonl` from `raw.jsonl`: the file, its lineage, and nothing else."""
    expected: dict[str, Any] = {}

    def half(folder: Path) -> None:
        if (folder / "next.jsonl").exists():
            names = [name for name, *_ in versions(folder)]
            assert "next.jsonl" in names, "a version without its lineage"

    def whole(folder: Path) -> None:
        found = {"bytes": (folder / "next.jsonl").read_bytes(), "lineage": versions(folder)}
        assert found == (expected or expected.update(found) or expected)
        assert [v[0] for v in found["lineage"]] == ["raw.jsonl", "next.jsonl"]
        assert sorted(p.name for p in folder.iterdir()) == ["_lineage.jsonl", "bench.jsonl", "next.jsonl", "raw.jsonl"]

    return Command(copies(data), argv, whole, half, **more)


def test_review_survives_every_fault(data: Path, forks: Any, copies: Any, tmp_path: Path) -> None:
    pack = tmp_path / "pack.jsonl"
    argv = lambda folder: ("review", folder / "raw.jsonl", pack, "--out", folder / "next.jsonl")  # noqa: E731
    assert min(try_every_fault(forks, version_command(copies, data, argv), tmp_path).values()) > 0


def test_audit_drop_survives_every_fault(data: Path, forks: Any, copies: Any, tmp_path: Path) -> None:
    def argv(folder: Path) -> tuple[object, ...]:
        return "audit", folder / "raw.jsonl", "--eval", folder / "bench.jsonl", "--drop", folder / "next.jsonl"

    command = version_command(copies, data, argv, codes=(0, 2))
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0


# ---------------------------------------------------------------- the harness itself


def test_a_contract_written_before_its_event_is_caught_by_these_checks(frozen: Path) -> None:
    """What `amend` did before: the entry first, the event after it. A kill between the two must not pass `half`."""
    store = Store(frozen)
    kept = read_json(store.contract_file)
    document = contract._document(store)
    document.stage({"time": "t", "reason": "why", "changes": [], "terms": kept["entries"][0]["terms"]})
    document.publish()
    with pytest.raises(StaleError, match="holds 2 entries, the timeline records 1"):
        contract.agreed(store)

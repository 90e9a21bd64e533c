"""Every command that changes records can be killed at any of its file operations, or meet a full or failing disk, and
be given again: nothing is lost, nothing is recorded twice, nothing half-made is believed."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sealed_studies import sealed_study

from veritune import contract
from veritune.errors import StaleError
from veritune.ledger import (
    CHAIN,
    Ledger,
)
from veritune.records import RunSummary
from veritune.results.index import add_results
from veritune.results.ledger import ResultsLedger
from veritune.seal import finish_run, seal, verify
from veritune.store import Store, read_json, write_json

_spec = importlib.util.spec_from_file_location("faults", Path(__file__).with_name("faults.py"))
assert _spec and _spec.loader
faults = importlib.util.module_from_spec(_spec)
sys.modules["faults"] = faults
_spec.loader.exec_module(faults)
Command, leftovers, try_every_fault = faults.Command, faults.leftovers, faults.try_every_fault
try_every_power_loss = faults.try_every_power_loss


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
        entries, events = contract.read(Store(root)).entries, Store(root).events()
        known = [e["contract"] for e in events if e["event"] in ("frozen", "amended")]
        assert [e.hash for e in entries] == known[: len(entries)], "an entry that the timeline does not know"

    def whole(root: Path) -> None:
        assert [e.reason for e in contract.agreed(Store(root)).entries] == ["frozen", "why\u2028not"]
        assert all(read_json(path)["before_amendment"] == 1 for path in root.glob("runs/*/summary.json"))
        assert [f.message for f in verify(root)] == []
        assert leftovers(root) == []

    command = Command("amend", copies(frozen), lambda root: ("amend", root, "--reason", "why\u2028not"), whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


def test_freeze_survives_every_fault(study: Any, forks: Any, copies: Any, tmp_path: Path) -> None:
    def half(root: Path) -> None:
        if (root / "contract.lock.json").exists():
            contract.agreed(Store(root))

    def whole(root: Path) -> None:
        assert len(contract.agreed(Store(root)).entries) == 1
        assert [e["event"] for e in Store(root).events()] == ["frozen"]
        assert leftovers(root) == []

    command = Command("freeze", copies(study.root), lambda root: ("freeze", root, "--quiet"), whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


# ---------------------------------------------------------------- data versions


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data file with a leak, a benchmark, and a review pack with decisions."""
    from veritune.data.audit import audit_data
    from veritune.data.review import make_pack, write_pack

    folder = tmp_path / "data"
    folder.mkdir()
    asked = ["what does the ferry carry across the harbour at night in winter", "how many lamps hang over the old gate"]
    ask = "tell me about thing {} of the list"
    rows = [{"id": f"r{i}", "prompt": ask.format(i), "completion": f"it is {i}."} for i in range(8)]
    rows += [{"id": "leak", "prompt": asked[0], "completion": "eleven crates."}]
    for name, each in (("raw", rows), ("bench", [{"id": "b0", "prompt": asked[0], "completion": "eleven crates."}])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each), "utf-8")
    found = audit_data(folder / "raw.jsonl")
    pack = write_pack(make_pack(found.rows, found.findings, per_reason=99, control=99), tmp_path / "pack.jsonl")
    records = [json.loads(line) for line in pack.read_text("utf-8").split("\n") if line]
    records[0] |= {"decision": "drop", "why": "one\u2028two", "reviewer": "ana"}
    pack.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return folder


NAMES = ["_lineage.head.json", "_lineage.jsonl", "bench.jsonl", "next.jsonl", "raw.jsonl"]


def power(command: Any, tmp_path: Path) -> Any:
    """The same command in folders of its own, for the second harness of a test."""
    copied = iter(range(10**6))
    return replace(command, fresh=lambda _number: command.fresh(1000 + next(copied)))


def versions(folder: Path) -> list[tuple[Any, ...]]:
    entries = Ledger(folder / "_lineage.jsonl").read()
    return [(e["file"], e["sha256"], e["rows"], e["rejects"], e["how"]) for e in entries]


def version_command(name: str, fresh: Any, argv: Callable[[Path], tuple[object, ...]], **more: Any) -> Any:
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
        assert sorted(p.name for p in folder.iterdir()) == NAMES

    return Command(name, fresh, argv, whole, half, **more)


def test_review_survives_every_fault(data: Path, forks: Any, copies: Any, tmp_path: Path) -> None:
    pack = tmp_path / "pack.jsonl"
    argv = lambda folder: ("review", folder / "raw.jsonl", pack, "--out", folder / "next.jsonl")  # noqa: E731
    command = version_command("review", copies(data), argv)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


def test_audit_drop_survives_every_fault(data: Path, forks: Any, copies: Any, tmp_path: Path) -> None:
    def argv(folder: Path) -> tuple[object, ...]:
        return "audit", folder / "raw.jsonl", "--eval", folder / "bench.jsonl", "--drop", folder / "next.jsonl"

    command = version_command("audit --drop", copies(data), argv, codes=(0, 2))
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


# ---------------------------------------------------------------- plan, writeup


def test_plan_survives_every_fault_and_never_breaks_a_seal(
    finished: Any, forks: Any, copies: Any, tmp_path: Path
) -> None:
    """Another plan for a finished and sealed study: kept beside the first, which it supersedes."""
    sealed = (finished.root / "seal.json").read_bytes()

    def half(root: Path) -> None:
        assert (root / "seal.json").read_bytes() == sealed
        assert all(e["event"] != "unsealed" for e in Store(root).events())
        for path in root.glob("plans/*.json"):
            read_json(path)

    def whole(root: Path) -> None:
        half(root)
        first, second = (read_json(path) for path in sorted(root.glob("plans/*.json")))
        assert second["supersedes"] == {key: first[key] for key in ("number", "made", "input_hash")}
        assert read_json(root / "plan.json") == second and second["number"] == 2
        assert [f.message for f in verify(root)] == []
        assert leftovers(root) == []

    argv = lambda root: ("plan", root, "--seed-sd", "0.02", "--json")  # noqa: E731
    command = Command("plan", copies(finished.root), argv, whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


def test_writeup_survives_every_fault(finished: Any, forks: Any, tmp_path: Path) -> None:
    """The draft, and the figure that it draws into the study."""
    shutil.copytree(finished.root, tmp_path / "straight")
    assert forks("writeup", "draft", tmp_path / "straight", "--out", tmp_path / "expected.md").rc == 0
    expected = (tmp_path / "expected.md").read_text("utf-8").strip()

    def fresh(number: int) -> Path:
        folder = tmp_path / f"copy-{number}"
        shutil.copytree(finished.root, folder / "study")
        (folder / "draft.md").write_text("of yesterday\n")
        return folder

    def half(folder: Path) -> None:
        assert (folder / "draft.md").read_text("utf-8").strip() in ("of yesterday", expected)

    def whole(folder: Path) -> None:
        assert (folder / "draft.md").read_text("utf-8").strip() == expected
        assert [f.message for f in verify(folder / "study")] == []

    def argv(folder: Path) -> tuple[object, ...]:
        return "writeup", "draft", folder / "study", "--out", folder / "draft.md"

    command = Command("writeup draft --out", fresh, argv, whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


# ---------------------------------------------------------------- results


def test_results_add_survives_every_fault(forks: Any, copies: Any, tmp_path: Path) -> None:
    """A study that supersedes a result: two entries, each of which a kill may leave as the last."""

    def one_seed_more(store: Store) -> None:
        record = read_json(store.verdict_file)
        record["verdicts"][0]["sentence"] = "decided again"
        write_json(store.verdict_file, record)

    folder = tmp_path / "studies"
    sealed_study(folder / "first", report=False)
    sealed_study(folder / "second", report=False, change=one_seed_more)
    add_results(folder / "results", [folder / "first"], by="ana")
    expected = ["result", "result", "superseded"]

    def half(root: Path) -> None:
        kinds = [entry.kind for entry in ResultsLedger(root / "results").read()[0]]
        assert kinds == expected[: len(kinds)] and kinds

    def whole(root: Path) -> None:
        entries, head = ResultsLedger(root / "results").read()
        assert [entry.kind for entry in entries] == expected
        assert read_json(root / "results" / "results.head.json")["hash"] == head
        assert leftovers(root / "results") == []

    def argv(root: Path) -> tuple[object, ...]:
        more = ("--supersedes", "R1", "--reason", "more\u2028seeds", "--by", "ana")
        return "results", "add", root / "second", "--in", root / "results", *more

    command = Command("results add", copies(folder), argv, whole, half)
    assert min(try_every_fault(forks, command, tmp_path).values()) > 0
    assert min(try_every_power_loss(forks, power(command, tmp_path), tmp_path).values()) > 0


# ---------------------------------------------------------------- the harness itself


def test_a_contract_written_before_its_event_is_caught_by_these_checks(frozen: Path) -> None:
    """What `amend` did before: the entry first, the event after it. A kill between the two must not pass `half`."""
    store = Store(frozen)
    kept = read_json(store.contract_file)
    document = contract._document(store)
    first = {key: value for key, value in kept["entries"][0].items() if key not in CHAIN}
    document.stage({**first, "time": "t", "reason": "why"})
    document.publish()
    with pytest.raises(StaleError, match="holds 2 entries, the timeline records 1"):
        contract.agreed(store)

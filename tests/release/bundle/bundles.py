"""What a forger and a gate keeper do to bundles, for the tests around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune.ledger import Ledger
from veritune.records import GateResult, to_json
from veritune.release.bundle.parts import MANIFEST, SIGNATURE, json_of, walk
from veritune.release.gate.evidence import Subject, weights_digest
from veritune.release.gate.gates import GATES_FILE, GateRecord
from veritune.store import Store, hash_of, read_json, sha256_file, write_json


def run_of(root: Path, condition: str) -> str:
    """The run of a condition with seed 0."""
    (path,) = (root / "runs").glob(f"{condition}-s0-*")
    return path.name


def repack(folder: Path, **changes: Any) -> None:
    """What a forger does: write a manifest that fits the files as they are now."""
    body = {k: v for k, v in json_of(folder / MANIFEST).items() if k not in ("hash", "files")} | changes
    files = {n: p for n, p in walk(folder).files.items() if n not in (MANIFEST, SIGNATURE)}
    body["files"] = {n: {"sha256": sha256_file(p), "bytes": p.stat().st_size} for n, p in files.items()}
    write_json(folder / MANIFEST, {**body, "hash": hash_of(body)})


def write_passing_gates(root: Path, run_id: str, **changes: Any) -> None:
    """A gate record of one gate that passed for this run's weights."""
    contract = read_json(root / "contract.lock.json")["entries"][-1]
    store = Store(root)
    weights = root / read_json(store.run(run_id) / "training.json")["checkpoint"]
    base = hash_of(contract["terms"]["facts"]["model"]["files"])
    subject = Subject(base, weights_digest(weights))
    record = GateRecord(
        status="passed", subject=subject, covers=(subject.hash,), run_id=run_id, condition="all_layer", seed=0,
        contract=contract["hash"], policy="p", policy_source="here", policy_declared="before", not_asked=(), waived={},
        gates=(GateResult("data", "passed", "clean"),), evidence={}, settings={}, created="2026-01-01T00:00:00Z",
    )  # fmt: skip
    body = {k: v for k, v in to_json(record).items() if k != "hash"} | changes
    store.release(GATES_FILE).unlink(missing_ok=True)
    Ledger(store.release(GATES_FILE)).append({k: v for k, v in body.items() if k != "previous"})

"""Every kind of record file, changed, deleted, swapped or forged with knowledge, and what finds it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune import contract
from veritune.errors import StaleError, VerituneError
from veritune.ledger import Ledger, link
from veritune.records import to_json
from veritune.release.gate.evidence import Evidence, Subject, read_evidence, write_evidence
from veritune.release.gate.gates import GATES_FILE
from veritune.seal import refuse_edited, seal, seal_hash, sealed_files, verify
from veritune.store import Store, hash_of, read_json, sha256_file, write_json
from veritune.verbs import sign_seal, verify_study

ARM = "runs/all_layer-s0-*"
REFUSED = True
"""A further run would believe the file as it lies there, so it is refused too; other files are made anew by a run."""

# Kind of file -> (what finds a change, what finds its loss, whether a further run is refused after a change).
TABLE: dict[str, tuple[set[str], set[str], bool]] = {
    "study.yaml": ({"file.edited"}, {"file.missing"}, False),
    "contract.lock.json": ({"contract.chain", "file.edited"}, {"contract.chain", "file.missing"}, REFUSED),
    "events.jsonl": (
        {"events.chain", "file.edited"},
        {"contract.rewritten", "file.missing", "run.edited", "seal.unrecorded"},
        REFUSED,
    ),
    "seal.json": ({"seal.edited"}, {"seal.missing"}, False),
    "rows.jsonl": ({"data.edited"}, {"data.missing"}, False),
    "plan.json": ({"file.edited"}, {"file.missing"}, False),
    "plans/*.json": ({"file.edited"}, {"file.missing"}, False),
    "verdict.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    "report.html": ({"file.edited"}, {"file.missing"}, False),
    "figures/*": ({"file.edited"}, {"file.missing"}, False),
    "data/*/rows.parquet": ({"file.edited"}, {"file.missing"}, REFUSED),
    "data/*/families.parquet": ({"file.edited"}, {"file.missing"}, REFUSED),
    "data/*/split.parquet": ({"file.edited"}, {"file.missing"}, REFUSED),
    "data/*/rendered-*.parquet": ({"file.edited"}, {"file.missing"}, REFUSED),
    "data/*/manifest.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    "audit/split.json": ({"file.edited"}, {"file.missing"}, False),
    "audit/render.json": ({"file.edited"}, {"file.missing"}, False),
    "audit/contamination.json": ({"file.edited"}, {"file.missing"}, False),
    "audit/live-all_layer.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    "audit/live-answers.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/manifest.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/metrics.jsonl": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/telemetry.jsonl": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/training.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/summary.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/scores/style.jsonl": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/scores/style.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/probes/nll.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/probes/three_zone.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    f"{ARM}/checkpoints/*/adapter_model.safetensors": ({"file.edited"}, {"file.missing"}, REFUSED),
    "probes/*/curve.json": ({"file.edited"}, {"file.missing"}, REFUSED),
    "release/serving.json": ({"file.edited"}, {"file.missing"}, False),
    f"release/{GATES_FILE}": ({"gates.chain"}, {"file.missing"}, False),
}


@pytest.fixture(scope="module")
def released(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished study with an evidence record and a gates' ledger, made after it was sealed. Read only."""
    root = tmp_path_factory.mktemp("released") / "study"
    shutil.copytree(finished.root, root)
    store = Store(root)
    write_evidence(store, Evidence("serving", "passed", "same text", Subject("a" * 64, "b" * 64), {}))
    entry = Ledger(store.release(GATES_FILE)).append({"kind": "evaluation", "status": "passed"})
    store.log("gated", head=entry["hash"], kind="evaluation")
    assert verify(root) == []
    return root


@pytest.fixture
def root(released: Path, tmp_path: Path) -> Path:
    shutil.copytree(released, tmp_path / "study")
    return tmp_path / "study"


def checks(root: Path) -> set[str]:
    return {finding.check for finding in verify(root)}


def refused(root: Path) -> str | None:
    """What a further run says of the records before it does anything; None where it goes on."""
    try:
        refuse_edited(Store(root))
    except (VerituneError, OSError) as exc:
        return str(exc)
    return None


def one(root: Path, kind: str) -> Path:
    return sorted(root.glob(kind))[0]


def test_every_change_and_every_loss_is_found_by_what_the_table_says(root: Path) -> None:
    unnamed = {p.relative_to(root).parts[0] for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert unnamed <= {kind.split("/")[0] for kind in TABLE} | {".locks"}, "a kind of file that the table lacks"
    for kind, (change, loss, stops) in TABLE.items():
        path = one(root, kind)
        honest = path.read_bytes()
        at = len(honest) // 2
        path.write_bytes(honest[:at] + bytes([honest[at] ^ 1]) + honest[at + 1 :])
        assert change <= checks(root), f"{kind} changed: {checks(root)}"
        assert path.relative_to(root).as_posix() in {f.source for f in verify(root)}, kind
        assert (refused(root) is not None) == stops, f"{kind} changed: {refused(root)}"
        path.unlink()
        assert loss <= checks(root), f"{kind} lost: {checks(root)}"
        path.write_bytes(honest)
    assert verify(root) == [] and refused(root) is None


@pytest.mark.parametrize(
    "kind", ["scores/style.jsonl", "summary.json", "training.json", "probes/nll.json", "metrics.jsonl"]
)
def test_files_swapped_between_two_seeds_are_found(root: Path, kind: str) -> None:
    first, second = one(root, f"{ARM}/{kind}"), one(root, f"runs/all_layer-s1-*/{kind}")
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    assert {first.relative_to(root).as_posix(), second.relative_to(root).as_posix()} <= {f.source for f in verify(root)}
    (root / "seal.json").unlink()
    assert "run.edited" in checks(root) and refused(root)


def test_a_record_written_by_hand_is_no_evidence_for_a_gate(root: Path) -> None:
    """With every hash of its own right, and in the place of none or of a real one."""
    store = Store(root)
    honest = read_json(root / "release/serving.json")
    body = {**{k: v for k, v in honest.items() if k != "hash"}, "kind": "merge", "message": "all the same"}
    write_json(root / "release/merge.json", {**body, "hash": hash_of(body)})
    with pytest.raises(StaleError, match=r"merge\.json was not written by a check: the timeline records none"):
        read_evidence(store, "merge")
    body = {**{k: v for k, v in honest.items() if k != "hash"}, "message": "faster than it was"}
    write_json(root / "release/serving.json", {**body, "hash": hash_of(body)})
    with pytest.raises(StaleError, match=r"serving\.json differs from what its check wrote: expected SHA-256"):
        read_evidence(store, "serving")
    write_json(root / "release/serving.json", honest)
    found = read_evidence(store, "serving")
    assert found is not None and found.message == "same text"


def test_a_gate_believes_no_seal_that_the_timeline_does_not_record(root: Path) -> None:
    assert sealed_files(Store(root))
    perfect_scores(root)
    reseal_by_hand(root)
    assert sealed_files(Store(root)) is None


def test_links_additions_and_a_whole_run_that_is_gone_are_found(root: Path) -> None:
    path = one(root, f"{ARM}/scores/style.jsonl")
    path.rename(root / "elsewhere.jsonl")
    os.symlink(root / "elsewhere.jsonl", path)
    assert "file.symlinked" in checks(root) and refused(root)
    (root / "runs" / "added").mkdir()
    (root / "runs" / "added" / "summary.json").write_text("{}")
    assert {"file.added"} <= checks(root)
    shutil.rmtree(root / "runs" / "added")
    honest = one(root, "release/serving.json").read_bytes()
    (root / "release" / "merge.json").write_bytes(honest)
    assert ("file.added", "release/merge.json") in {(f.check, f.source) for f in verify(root)}
    shutil.rmtree(one(root, ARM))
    assert "file.missing" in checks(root)
    assert refused(root) is None, "a run that is gone is made again"


# ---------------------------------------------------------------- forged with knowledge


def perfect_scores(root: Path) -> list[Path]:
    """Set all scores of one arm to 1.0, as somebody would who wants its claim supported."""
    edited = sorted(root.glob("runs/all_layer-s*/scores/style.jsonl"))
    for path in edited:
        rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
        text = "".join(json.dumps({**row, "value": 1.0, "reason": None}) + "\n" for row in rows)
        path.write_text(text, encoding="utf-8")
    return edited


def reseal_by_hand(root: Path) -> None:
    """Make seal.json fit the files as they are now."""
    record = read_json(root / "seal.json")
    record["files"] = {name: sha256_file(root / name) for name in record["files"] if (root / name).exists()}
    body = {k: v for k, v in record.items() if k != "hash"}
    write_json(root / "seal.json", {**body, "hash": hash_of(body)})


def rechained(root: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the whole timeline anew with every event changed, its chain made right again."""
    path = root / "events.jsonl"
    old, previous = Ledger(path).read(), None
    path.unlink()
    for event in old:
        entry = link(change({k: v for k, v in event.items() if k not in ("previous", "hash")}), previous)
        previous = entry["hash"]
        Ledger(path).append({k: v for k, v in entry.items() if k not in ("previous", "hash")})


@pytest.mark.parametrize("how", ["alone", "seal gone", "seal rewritten", "stamp too", "stamp and summary too"])
def test_edited_scores_are_refused_however_the_seal_was_treated(root: Path, how: str) -> None:
    (path, *_) = perfect_scores(root)
    if how == "seal gone":
        (root / "seal.json").unlink()
    if how.startswith("stamp"):
        for each in root.glob("runs/*/scores/style.json"):
            write_json(each, {**read_json(each), "sha256": sha256_file(each.with_suffix(".jsonl"))})
    if how == "stamp and summary too":
        for each in root.glob("runs/all_layer-*/summary.json"):
            write_json(each, {**read_json(each), "forged": True})
    if how not in ("alone", "seal gone"):
        reseal_by_hand(root)
    found = refused(root)
    assert found is not None and "\n" not in found
    assert path.stem in found and "expected SHA-256" in found and "found" in found and "Restore the file" in found
    assert {"run.edited", "file.edited"} & checks(root)


def test_run_does_not_launder_edited_scores(finished_copy: Any, forks: Any) -> None:
    """The exploit: all scores of one arm set to 1.0, the seal deleted, the study run again."""
    before = read_json(finished_copy.root / "verdict.json")
    perfect_scores(finished_copy.root)
    (finished_copy.root / "seal.json").unlink()
    again = forks("run", finished_copy.root)
    assert again.rc == 1 and again.err.count("\n") == 1, again.err
    assert "scores/style.jsonl was edited: expected SHA-256" in again.err and "found" in again.err
    assert read_json(finished_copy.root / "verdict.json") == before
    assert not (finished_copy.root / "seal.json").exists()


def test_scores_of_an_unfinished_cell_are_believed_by_the_timeline_alone(finished_copy: Any, forks: Any) -> None:
    """With its summary deleted the cell is to be done again; edited scores with a stamp that fits are no shortcut."""
    path = perfect_scores(finished_copy.root)[0]
    stamp = path.with_suffix(".json")
    write_json(stamp, {**read_json(stamp), "sha256": sha256_file(path)})
    (path.parent.parent / "summary.json").unlink()
    (finished_copy.root / "seal.json").unlink()
    for other in finished_copy.root.glob("runs/all_layer-s1-*"):
        shutil.rmtree(other)  # made again from nothing, so that only the first run's scores are in question
    again = forks("run", finished_copy.root)
    assert again.rc == 1 and "style.jsonl was edited" in again.err, again.err


def test_a_seal_that_is_gone_is_named_and_a_run_goes_on(finished_copy: Any, forks: Any) -> None:
    (finished_copy.root / "seal.json").unlink()
    assert checks(finished_copy.root) == {"seal.missing"}
    again = forks("run", finished_copy.root)
    assert again.rc in (0, 2) and "seal.json is gone, though the study was sealed at" in again.err
    assert "0 cells run" in again.out and verify(finished_copy.root) == []
    assert "seal_lost" in [e["event"] for e in Store(finished_copy.root).events()]


def rewrite_contract(root: Path) -> None:
    """Change a claim and make the contract's own chain right again."""
    kept = read_json(root / "contract.lock.json")
    kept["entries"][0]["terms"]["study"]["claims"][2]["margin"] = 0.5
    body = {k: v for k, v in kept["entries"][0].items() if k not in ("previous", "hash")}
    write_json(root / "contract.lock.json", {**kept, "entries": [link(body, None)]})


def test_a_contract_rewritten_after_the_results_is_refused(finished_copy: Any, forks: Any) -> None:
    """The exploit: a claim changed, the first hash recomputed, the seal deleted, the study run again."""
    rewrite_contract(finished_copy.root)
    finished_copy.change(lambda s: s["claims"][2].update(margin=0.5))
    (finished_copy.root / "seal.json").unlink()
    again = forks("run", finished_copy.root)
    assert again.rc == 1 and "the contract was rewritten" in again.err, again.err
    assert "contract.rewritten" in checks(finished_copy.root)
    assert [e["event"] for e in Store(finished_copy.root).events()].count("frozen") == 1


def test_a_second_frozen_event_is_named(root: Path) -> None:
    rewrite_contract(root)
    store = Store(root)
    store.log("frozen", contract=contract.read(store).first.hash)
    found = [f.message for f in verify(root) if f.check == "contract.rewritten"]
    assert len(found) == 1 and "records a second `frozen`" in found[0]
    assert "records a second `frozen`" in str(refused(root))


def test_an_amendment_taken_back_is_found(root: Path) -> None:
    """The newest contract entry deleted, with or without its event: the other record still knows it."""
    store = Store(root)
    document = contract._document(store)
    body = {k: v for k, v in to_json(contract.read(store).first).items() if k not in ("previous", "hash")}
    contract._publish(store, {**body, "reason": "seen the scores"}, "amended")
    seal(store)
    kept, events = read_json(store.contract_file), store.events_file.read_text("utf-8")
    write_json(store.contract_file, {**kept, "entries": kept["entries"][:1]})
    assert "contract.rewritten" in checks(root) and "the timeline records 2" in str(refused(root))
    document.next.write_bytes(store.contract_file.read_bytes())
    assert "contract.rewritten" in checks(root), "an old contract staged again is no interrupted amendment"
    document.next.unlink()
    write_json(store.contract_file, kept)
    store.events_file.write_text("".join(x + "\n" for x in events.split("\n")[:-3]), encoding="utf-8")
    assert "file.edited" in checks(root)


def test_events_cut_from_the_end_are_found_by_the_seal(root: Path) -> None:
    lines = (root / "events.jsonl").read_text("utf-8").split("\n")[:-1]
    (root / "events.jsonl").write_text("".join(line + "\n" for line in lines[: len(lines) // 2]), encoding="utf-8")
    assert {"file.edited", "run.edited"} <= checks(root) and refused(root)


def test_everything_rewritten_is_found_only_by_what_is_kept_elsewhere(
    root: Path, tmp_path: Path, keys: Callable[[str], tuple[Path, Path]]
) -> None:
    """What an attacker who rewrites scores, timeline and seal alike can do, and what stops it."""
    pytest.importorskip("model_signing")
    (private, public), (_, stranger) = keys("mine"), keys("theirs")
    kept = seal_hash(root)
    sign_seal(root, private)
    assert verify_study(root, kept[:16], public) == ([], True)
    assert [f.check for f in verify_study(root, None, stranger)[0]] == ["seal.signature"]
    path = perfect_scores(root)[0]
    name, run = path.relative_to(path.parent.parent).as_posix(), path.parent.parent.name
    runs = {p.name: {f: sha256_file(p / f) for f in files_of(root, p.name)} for p in (root / "runs").iterdir()}

    def forged(event: dict[str, Any]) -> dict[str, Any]:
        known = runs.get(str(event.get("run")))
        return {**event, "files": known} if event["event"] == "finished" and known else event

    rechained(root, lambda event: forged(event) if event["event"] != "sealed" else {**event, "event": "exploring"})
    (root / "seal.json").unlink()
    seal(Store(root))
    assert name in runs[run] and verify(root) == [], "without anything kept elsewhere it passes, as security.md says"
    assert [f.check for f in verify(root, kept[:16])] == ["seal.other"]
    assert [f.check for f in verify_study(root, None, public)[0]] == ["seal.signature"]


def files_of(root: Path, run: str) -> list[str]:
    """The files that the timeline records of a run."""
    return next(list(e["files"]) for e in Store(root).events() if e["event"] == "finished" and e["run"] == run)


def test_a_signature_is_refused_for_a_study_that_is_not_as_it_was_sealed(root: Path, keys: Any) -> None:
    pytest.importorskip("model_signing")
    perfect_scores(root)
    with pytest.raises(StaleError, match="differs from its seal"):
        sign_seal(root, keys("mine")[0])
    assert not (root / "seal.sig").exists()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Key pairs by name: private, public."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")

    def pair(name: str) -> tuple[Path, Path]:
        private, public = folder / f"{name}.key", folder / f"{name}.pub"
        if not private.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
            public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return pair

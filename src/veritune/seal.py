"""The seal of a study folder: a hash of every file, written when a run ends, and the check that finds what changed.

`seal.json` lists the SHA-256 of every file of the study. `verify` recomputes them, the contract's chain and the
timeline's chain, and names every file that was edited, is missing, or was not there. Files that a run rewrites (the
report, the figures) are sealed as they were drawn last. Somebody who rewrites the seal as well is not found by this:
that is what a signature on a bundle is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune import contract
from veritune.errors import InputError, StaleError, VerituneError
from veritune.records import FORMAT_VERSION, Finding
from veritune.store import Store, hash_of, now, read_json, sha256_file, write_json

FILES = ("study.yaml", "contract.lock.json", "events.jsonl", "verdict.json", "report.html")
FOLDERS = ("data", "audit", "runs", "probes", "figures")


def _files(root: Path) -> list[Path]:
    """Every file that belongs to the study; other files in its folder are nobody's business here."""
    inside = (p for folder in FOLDERS for p in (root / folder).rglob("*"))
    found = (p for p in (*(root / name for name in FILES), *inside) if p.is_file() or p.is_symlink())
    return sorted(p for p in found if not p.name.endswith(".tmp"))


def seal(store: Store) -> Path:
    """Write the seal over the folder as it is now; its path."""
    files = {store.relative(p): sha256_file(p) for p in _files(store.root) if not p.is_symlink()}
    body = {"format": FORMAT_VERSION, "sealed": now(), "files": files}
    path = store.root / "seal.json"
    write_json(path, {**body, "hash": hash_of(body)})
    return path


def break_seal(store: Store) -> None:
    """Take the seal off before records are made anew, so that a run killed on the way can be taken up again."""
    (store.root / "seal.json").unlink(missing_ok=True)


def verify(study: str | Path) -> list[Finding]:
    """Everything in a study folder that is not as it was sealed; empty when all of it is.

    Raises InputError when the folder was never sealed.
    """
    store = Store.of(study)
    path = store.root / "seal.json"
    if not path.exists():
        raise InputError(f"{store.root} has no seal.json.", fix="A study is sealed when `veritune run` ends.")
    record = read_json(path)
    findings = _chains(store)
    body = {k: v for k, v in record.items() if k != "hash"}
    if hash_of(body) != record.get("hash"):
        findings.append(_finding("seal.edited", "seal.json", "seal.json was edited after it was written"))
    sealed: dict[str, str] = record.get("files", {})
    found = {p.relative_to(store.root).as_posix(): p for p in _files(store.root)}
    for name in sorted({*sealed, *found}):
        problem = _compare(sealed.get(name), found.get(name))
        if problem:
            findings.append(_finding(f"file.{problem}", name, f"{name} {_WORDS[problem]}"))
    return findings


def refuse_edited(store: Store) -> None:
    """Raises StaleError when a run's or a data version's record was edited since the study was sealed.

    Without this a further run would seal the edited record as its own.
    """
    if not (store.root / "seal.json").exists():
        return
    edited = [f.source for f in verify(store.root) if f.check in ("file.edited", "file.symlinked")]
    records = [name for name in edited if name and name.startswith(("runs/", "data/"))]
    if records:
        raise StaleError(
            f"{store.root / records[0]} was edited after the study was sealed ({len(records)} such files).",
            fix="Restore it, or delete that run's folder so that the run is made again.",
        )


_WORDS = {
    "missing": "is missing",
    "added": "was not there when the study was sealed",
    "symlinked": "is a link now",
    "edited": "was edited after the study was sealed",
}


def _compare(digest: str | None, path: Path | None) -> str | None:
    if path is None:
        return "missing"
    if path.is_symlink():
        return "symlinked"
    if digest is None:
        return "added"
    return None if sha256_file(path) == digest else "edited"


def _chains(store: Store) -> list[Finding]:
    """What the contract's and the timeline's own chains say."""
    found = []
    for check, name, recompute in (
        ("contract.chain", "contract.lock.json", lambda: contract.read(store)),
        ("events.chain", "events.jsonl", store.check_events),
    ):
        try:
            recompute()
        except (VerituneError, OSError, KeyError, TypeError) as exc:
            found.append(_finding(check, name, str(exc)))
    return found


def _finding(check: str, name: str, message: str) -> Finding:
    return Finding(check, "error", message, source=name)


def verify_text(findings: list[Finding], files: int) -> str:
    """`verify` for the screen."""
    if not findings:
        return f"verified: {files} files, the contract and the timeline are as they were sealed"
    return "\n".join(f"x {finding.message}" for finding in findings) + f"\n{len(findings)} findings"


def sealed_count(study: str | Path) -> int:
    """Number of files under the seal."""
    record: dict[str, Any] = read_json(Store.of(study).root / "seal.json")
    return len(record["files"])

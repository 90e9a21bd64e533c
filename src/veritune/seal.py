"""The seal of a study folder: a hash of every file, written when a run ends, and the check that finds what changed.

`seal.json` lists the SHA-256 of every file of the study. `verify` recomputes them, the contract's chain and the
timeline's chain, and names every file that was edited, is missing, or was not there. Files that a run rewrites (the
report, the figures) are sealed as they were drawn last. The timeline's last `sealed` event holds the hash of the list,
so that a seal rewritten together with a file does not agree with it. Somebody who rewrites file, seal and timeline is
found only by the seal's hash kept elsewhere (`verify --seal HASH`), or by the signature on a bundle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from veritune import contract
from veritune.errors import FormatError, InputError, StaleError, VerituneError
from veritune.records import FORMAT_VERSION, Finding
from veritune.store import Store, hash_of, now, read_json, sha256_file, write_json

FILES = (
    *("study.yaml", "contract.lock.json", "events.jsonl", "plan.json", "selection.json", "shapes.json"),
    *("verdict.json", "report.html"),
)
FOLDERS = ("data", "audit", "runs", "probes", "figures")


def _files(root: Path) -> list[Path]:
    """Every file that belongs to the study; other files in its folder are nobody's business here."""
    inside = (p for folder in FOLDERS for p in (root / folder).rglob("*"))
    found = (p for p in (*(root / name for name in FILES), *inside) if p.is_file() or p.is_symlink())
    return sorted(p for p in found if not p.name.endswith(".tmp"))


def seal(store: Store) -> str:
    """Write the seal over the folder as it is now; the hash to keep elsewhere."""
    files = {store.relative(p): sha256_file(p) for p in _files(store.root) if not p.is_symlink()}
    listed = _listed(files)
    if _last_sealed(store) != listed:
        store.log("sealed", files=listed, count=len(files))
    if store.events_file.exists():
        files[store.relative(store.events_file)] = sha256_file(store.events_file)
    body = {"format": FORMAT_VERSION, "sealed": now(), "files": files}
    write_json(store.root / "seal.json", {**body, "hash": hash_of(body)})
    return listed


def _listed(files: dict[str, str]) -> str:
    """Hash of the list of files, without the timeline, which holds this very hash, and what is drawn from records."""
    drawn = ("events.jsonl", "report.html")
    return hash_of({n: digest for n, digest in files.items() if n not in drawn and not n.startswith("figures/")})


def _last_sealed(store: Store) -> str | None:
    sealed = [event["files"] for event in store.events() if event["event"] == "sealed"]
    return sealed[-1] if sealed else None


def break_seal(store: Store) -> None:
    """Take the seal off before records are made anew, so that a run killed on the way can be taken up again."""
    (store.root / "seal.json").unlink(missing_ok=True)


def verify(study: str | Path, expected: str | None = None) -> list[Finding]:
    """Everything in a study folder that is not as it was sealed; empty when all of it is.

    `expected` is the seal's hash as somebody kept it elsewhere (a prefix of at least eight signs will do).
    Raises InputError when the folder was never sealed.
    """
    store = Store.of(study)
    path = store.root / "seal.json"
    if not path.exists():
        raise InputError(f"{store.root} has no seal.json.", fix="A study is sealed when `veritune run` ends.")
    record = read_json(path)
    findings = _chains(store)
    body = {k: v for k, v in record.items() if k != "hash"}
    sealed: dict[str, str] = record.get("files", {})
    if not isinstance(sealed, dict) or not all(isinstance(v, str) for v in sealed.values()):
        raise FormatError(f"{path} lists no files by hash.", fix="Restore it.")
    try:
        whole = hash_of(body) == record.get("hash")
    except (ValueError, TypeError):
        whole = False
    if not whole:
        findings.append(_finding("seal.edited", "seal.json", "seal.json was edited after it was written"))
    findings += _seal_findings(store, sealed, expected)
    found = {p.relative_to(store.root).as_posix(): p for p in _files(store.root)}
    for name in sorted({*sealed, *found}):
        problem = _compare(sealed.get(name), found.get(name))
        if problem:
            findings.append(_finding(f"file.{problem}", name, f"{name} {_WORDS[problem]}"))
    return findings


def _seal_findings(store: Store, sealed: dict[str, str], expected: str | None) -> list[Finding]:
    listed = _listed(sealed)
    found = []
    try:
        logged = _last_sealed(store)
    except (VerituneError, ValueError, KeyError, TypeError):
        logged = None  # the timeline is damaged, which its chain names
    if logged is not None and logged != listed:
        text = "seal.json is not the seal that the timeline records: it was rewritten"
        found.append(_finding("seal.rewritten", "seal.json", text))
    if expected is not None and (len(expected) < 8 or not listed.startswith(expected.lower())):
        text = f"the seal is {listed[:16]}, expected {expected[:16]}"
        found.append(_finding("seal.other", "seal.json", text))
    return found


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


def verify_text(findings: list[Finding], files: int, listed: str) -> str:
    """`verify` for the screen."""
    if not findings:
        return f"verified: {files} files, the contract and the timeline are as they were sealed (seal {listed[:16]})"
    return "\n".join(f"x {finding.message}" for finding in findings) + f"\n{len(findings)} findings"


def seal_hash(study: str | Path) -> str:
    """The hash of the sealed list of files: what to keep elsewhere."""
    record: dict[str, Any] = read_json(Store.of(study).root / "seal.json")
    return _listed(record["files"])


def sealed_count(study: str | Path) -> int:
    """Number of files under the seal."""
    record: dict[str, Any] = read_json(Store.of(study).root / "seal.json")
    return len(record["files"])

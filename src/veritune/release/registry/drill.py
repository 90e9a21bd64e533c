"""The rollback drill: promote, promote another, go back, reproduce; in a scratch registry, as evidence for the gate."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from veritune.counting import grouped
from veritune.errors import GateError, VerituneError
from veritune.machine import package_versions
from veritune.release.bundle.parts import MANIFEST
from veritune.release.bundle.verify import manifest_hash, read_manifest, verify_bundle
from veritune.release.gate.evidence import Evidence, write_evidence
from veritune.release.registry.channels import Restored, history, promote, rollback
from veritune.store import Store


@dataclass(frozen=True, slots=True)
class Drill:
    """The result of a drill; `message` states it in one sentence."""

    status: str
    message: str
    numbers: dict[str, Any]
    evidence: str | None


def rollback_drill(
    bundle: Path, *, other: Path | None = None, base: Path | None = None, study: Path | None = None
) -> Drill:
    """Run the rollback drill for a bundle; with `study`, write `release/rollback.json` there.

    `other` is the bundle that replaces it and is taken back; by default a copy of it under another name. Raises
    GateError when the bundle does not verify.
    """
    checked = verify_bundle(bundle)
    if checked.findings:
        raise GateError(
            f"{bundle} fails verification: {checked.findings[0].message}.",
            fix=f"List all findings: veritune verify {bundle}",
        )
    manifest = read_manifest(bundle)
    with tempfile.TemporaryDirectory(prefix="veritune-drill-") as scratch:
        second = other or _twin(bundle, Path(scratch) / "other")
        status, message, numbers = _run(bundle, second, str(Path(scratch) / "registry"), base)
    path = None
    if study is not None:
        subject = manifest.subject
        settings: dict[str, Any] = {
            "bundle": checked.id,
            "replaced_by": "another bundle" if other else "a copy under another name",
        }
        settings |= {"packages": package_versions()}
        record = Evidence("rollback", status, message, subject, numbers, settings=settings)  # type: ignore[arg-type]
        path = str(write_evidence(Store.of(study), record))
    return Drill(status, message, numbers, path)


def _run(bundle: Path, second: Path, registry: str, base: Path | None) -> tuple[str, str, dict[str, Any]]:
    first = promote(bundle, "staging", registry, reason="drill")
    newer = promote(second, "staging", registry, reason="drill")
    began = time.perf_counter()
    try:
        back: Restored = rollback(registry, "staging", base=base, reason="drill")
    except VerituneError as exc:
        return "failed", f"the rollback failed: {exc.message}", {"wall_s": time.perf_counter() - began}
    entries = history(registry, "staging")
    right = [e.bundle for e in entries] == [first.bundle, newer.bundle, first.bundle] and back.was == newer.bundle
    numbers = {"prompts": back.prompts, "tokens": back.tokens, "wall_s": time.perf_counter() - began}
    if not right:
        return "failed", "the channel does not point to the first bundle again", numbers
    message = f"rolled back and reproduced {back.prompts} golden prompts, {grouped(back.tokens, 'tokens')}, exactly"
    return "passed", message, numbers


def _twin(bundle: Path, out: Path) -> Path:
    """The same bundle under another name: another manifest, so another id."""
    shutil.copytree(bundle, out, ignore=shutil.ignore_patterns("model.sig"))
    manifest = read_manifest(out)
    renamed = replace(manifest, name=f"{manifest.name}-drill")
    replace(renamed, hash=manifest_hash(renamed)).save(out / MANIFEST)
    return out

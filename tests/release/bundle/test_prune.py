"""What a registry keeps, and what is taken out of it: never what a channel points to, nothing without being asked."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import InputError
from veritune.release.bundle.verify import read_manifest
from veritune.release.registry.channels import history, promote
from veritune.release.registry.prune import bundles_text, list_bundles, prune
from veritune.release.registry.rules import key_name


@pytest.fixture
def registry(made: Path, other: Path, tmp_path: Path) -> Path:
    """Staging pointed to `made`, then to `other`; a third bundle was stored and never named. All a day old."""
    root = tmp_path / "r"
    promote(made, "staging", str(root))
    promote(other, "staging", str(root))
    shutil.copytree(root / "bundles" / bundle_id(made), root / "bundles" / ("ab" * 32))
    for manifest in root.glob("bundles/*/manifest.json"):
        os.utime(manifest, (time.time() - 200_000, time.time() - 200_000))
    return root


def bundle_id(folder: Path) -> str:
    return str(read_manifest(folder).hash)


def test_bundles_are_listed_with_what_points_to_them(registry: Path, made: Path, other: Path) -> None:
    listed = {b.id: b for b in list_bundles(str(registry))}
    assert {b.state for b in listed.values()} == {"current", "earlier", "unused"}
    assert listed[bundle_id(other)].state == "current" and listed[bundle_id(made)].versions == ("staging 1",)
    assert listed["ab" * 32].state == "unused" and listed[bundle_id(made)].bytes
    assert "3 bundles" in bundles_text(listed.values())


def test_nothing_is_deleted_unasked_and_never_what_a_channel_needs(registry: Path, made: Path, other: Path) -> None:
    dry = prune(str(registry))
    assert [b.id for b in dry.bundles] == ["ab" * 32] and not dry.deleted
    assert (registry / "bundles" / ("ab" * 32)).is_dir()
    prune(str(registry), delete=True)
    assert {p.name for p in (registry / "bundles").iterdir()} == {bundle_id(made), bundle_id(other)}
    prune(str(registry), keep=1, delete=True)
    assert {p.name for p in (registry / "bundles").iterdir()} == {bundle_id(other)}
    with pytest.raises(InputError, match="a channel's current bundle is never removed"):
        prune(str(registry), keep=0, delete=True)


def test_a_bundle_that_was_just_stored_is_left_for_its_promotion(registry: Path) -> None:
    os.utime(registry / "bundles" / ("ab" * 32) / "manifest.json")
    pruned = prune(str(registry), delete=True)
    assert pruned.bundles == () and [b.id for b in pruned.young] == ["ab" * 32]
    assert (registry / "bundles" / ("ab" * 32)).is_dir()


def test_a_mistyped_registry_is_an_error_in_one_line_and_is_not_made(forks: Any, tmp_path: Path) -> None:
    for command in ("history", "prune", "rollback"):
        done = forks(command, "--registry", tmp_path / "nothere")
        said = f"there is no registry at {tmp_path / 'nothere'}. Check the address"
        assert done.rc == 1 and said in done.err, command
    assert not (tmp_path / "nothere").exists()


def test_the_history_names_who_promoted(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERITUNE_BY", "Ada\nLovelace")
    promote(made, "staging", str(tmp_path / "r"))
    assert history(str(tmp_path / "r"), "staging")[0].by == "Ada Lovelace"


def test_a_key_has_one_name_whatever_its_text_looks_like(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    (tmp_path / "a").write_bytes(pem)
    (tmp_path / "b").write_bytes(b"a comment\n" + pem.replace(b"\n", b"\r\n"))
    assert key_name(tmp_path / "a") == key_name(tmp_path / "b") and len(key_name(tmp_path / "a")) == 16

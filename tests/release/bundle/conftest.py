"""Bundles of the tiny study's runs, made once; a test that damages one works on a copy."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from veritune.release.bundle.build import BundleSource, make_bundle

_spec = importlib.util.spec_from_file_location("bundles", Path(__file__).with_name("bundles.py"))
assert _spec and _spec.loader
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)
run_of = bundles.run_of


@pytest.fixture(scope="session")
def gated(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished study with a gate record that passes for all_layer, seed 0."""
    root = tmp_path_factory.mktemp("gated") / "study"
    shutil.copytree(finished.root, root)
    bundles.write_passing_gates(root, run_of(root, "all_layer"))
    return root


@pytest.fixture(scope="session")
def made(gated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of all_layer, seed 0, with its gate record. Read only."""
    out = tmp_path_factory.mktemp("bundle") / "a"
    make_bundle(BundleSource(gated, run_of(gated, "all_layer"), prompts=3), out)
    return out


@pytest.fixture(scope="session")
def other(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of attention_only, seed 0, without a gate record. Read only."""
    out = tmp_path_factory.mktemp("bundle") / "b"
    make_bundle(BundleSource(finished.root, run_of(finished.root, "attention_only"), prompts=3), out)
    return out


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    """A copy of `made` to damage."""
    shutil.copytree(made, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Key pairs by name: private, public."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")

    def pair(name: str) -> tuple[Path, Path]:
        private, public = folder / f"{name}.key", folder / f"{name}.pub"
        if not private.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            pem = s.Encoding.PEM
            private.write_bytes(key.private_bytes(pem, s.PrivateFormat.PKCS8, s.NoEncryption()))
            public.write_bytes(key.public_key().public_bytes(pem, s.PublicFormat.SubjectPublicKeyInfo))
        return private, public

    return pair

"""A small sealed study, built once; tests take copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sealed_studies import sealed_study

from veritune.records import RunManifest
from veritune.store import Store


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sealed_study(tmp_path_factory.mktemp("pristine") / "study")


@pytest.fixture
def study(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the sealed study that a test may change."""
    shutil.copytree(pristine, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed study whose runs differ in what nobody declared. Read only."""

    def differ(store: Store) -> None:
        for path in store.runs.glob("wide-*/manifest.json"):
            text = path.read_text().replace('"bench-1"', '"bench-2"').replace('"9.8.7"', '"9.8.8"')
            path.write_text(text.replace('"AVX2"', '"AVX512"'))
            assert RunManifest.load(path).host == "bench-2"
        for path in sorted(store.runs.glob("narrow-s3-*/scores/style.json")):
            path.write_text(path.read_text().replace('"batch_size": 32', '"batch_size": 8'))

    return sealed_study(tmp_path_factory.mktemp("other") / "study", report=False, change=differ)

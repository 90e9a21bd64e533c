"""A study that may ship, built once; a test that changes it takes its own copy."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from veritune.store import Store


def load(name: str) -> ModuleType:
    """A helper module that lies beside this file."""
    full = f"veritune_tests_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def shippable() -> ModuleType:
    return load("shippable")


@pytest.fixture(scope="session")
def ready(shippable: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study that passes every gate. Read only."""
    folder = tmp_path_factory.mktemp("ready") / "study"
    shippable.build(folder)
    return folder


@pytest.fixture
def store(ready: Path, tmp_path: Path) -> Store:
    """A copy that a test may change."""
    shutil.copytree(ready, tmp_path / "study")
    return Store(tmp_path / "study")

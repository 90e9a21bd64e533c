"""The small finished study, built once; tests that change it take a copy."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from veritune.config.load import load_study
from veritune.config.study import Study
from veritune.store import Store


def load_builder() -> ModuleType:
    """`small_study.py` of this folder as a module; the browser tests load it too."""
    path = Path(__file__).with_name("small_study.py")
    spec = importlib.util.spec_from_file_location("small_study", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def builder() -> ModuleType:
    return load_builder()


@pytest.fixture(scope="session")
def pristine(builder: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small study with its report. Read only."""
    from veritune.report.page import write_report

    folder = tmp_path_factory.mktemp("pristine") / "study"
    write_report(*builder.build(folder))
    return folder


@pytest.fixture
def small(pristine: Path, tmp_path: Path) -> tuple[Store, Study]:
    """A copy of the small study that a test may change."""
    folder = tmp_path / "study"
    shutil.copytree(pristine, folder)
    return Store(folder), load_study(folder / "study.yaml")


@pytest.fixture
def page(small: tuple[Store, Study]) -> Callable[[], str]:
    """Draw the report of `small` as it is now; the page's text."""
    from veritune.report.page import write_report

    def draw() -> str:
        return write_report(*small).read_text(encoding="utf-8")

    return draw

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


@pytest.fixture(scope="session")
def drawn_before() -> dict[tuple[object, ...], str]:
    """SVG by everything that a drawing says; most pages of the tests hold the same ten figures."""
    return {}


@pytest.fixture
def page(
    small: tuple[Store, Study], drawn_before: dict[tuple[object, ...], str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], str]:
    """Draw the report of `small` as it is now; the page's text. A figure that says the same is rendered once."""
    from veritune import drawing
    from veritune.report import figures
    from veritune.report.page import write_report

    def rendered(one: drawing.Drawing) -> str:
        says = (one.name, one.title, one.caption, one.n, one.sources, drawing.table_text(one))
        if says not in drawn_before:
            drawn_before[says] = drawing.svg_text(one)
        return drawn_before[says]

    monkeypatch.setattr(figures, "svg_text", rendered)

    def draw() -> str:
        return write_report(*small).read_text(encoding="utf-8")

    return draw

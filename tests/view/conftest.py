"""A small study with outputs that differ, an audit, and the workbench over them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient

from veritune.view.app import make_app, rules_for

HOST = "http://127.0.0.1:7878"
TESTS = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answers(study: Path, run: str, outputs: dict[str, tuple[float | None, str]]) -> None:
    """Give a run of the small study these scores and outputs by item."""
    (path,) = study.glob(f"runs/{run}-*/scores/style.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        value, output = outputs.get(row["item_id"], (row["value"], row["output"]))
        row |= {"value": value, "output": output, "reason": None if value is not None else "extraction_failed"}
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    load(TESTS / "report" / "small_study.py").build(folder)
    answers(folder, "wide-s3", {"a-0": (1.0, "=1+1 the boat sails home"), "a-1": (0.5, "the boat"), "b-0": (None, "?")})
    answers(folder, "baseline", {"a-0": (0.5, "the boat sinks home"), "a-1": (1.0, "a boat"), "b-0": (1.0, "tide")})
    return folder


@pytest.fixture
def desk() -> Callable[..., TestClient]:
    """A client of the workbench over these folders."""

    def make(*folders: Path, edit: bool = False, token: str | None = None, host: str = "127.0.0.1") -> TestClient:
        rules = rules_for(host, 7878, token, edit)
        return TestClient(make_app(folders, rules), base_url=HOST, follow_redirects=False)

    return make

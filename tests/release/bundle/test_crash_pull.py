"""A pull from a channel leaves the whole, verified bundle or nothing, wherever it is killed or the disk fails."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import GateError
from veritune.release.registry import history, promote, pull
from veritune.release.verify import verify_bundle

_path = Path(__file__).parents[2] / "crash" / "faults.py"
_spec = importlib.util.spec_from_file_location("faults", _path)
assert _spec and _spec.loader
faults = importlib.util.module_from_spec(_spec)
sys.modules["faults"] = faults
_spec.loader.exec_module(faults)


def test_pull_survives_every_fault(made: Path, forks: Any, tmp_path: Path) -> None:
    url = tmp_path / "registry"
    promote(made, "staging", str(url))

    def fresh(number: int) -> Path:
        folder = tmp_path / f"copy-{number}"
        folder.mkdir()
        return folder

    def half(folder: Path) -> None:
        if (folder / "bundle").exists():
            assert verify_bundle(folder / "bundle").findings == ()

    def whole(folder: Path) -> None:
        assert [p.name for p in folder.iterdir()] == ["bundle"]
        assert verify_bundle(folder / "bundle").findings == ()

    def argv(folder: Path) -> tuple[object, ...]:
        return "pull", "--out", folder / "bundle", "--registry", url, "--channel", "staging"

    command = faults.Command(fresh, argv, whole, half)
    assert min(faults.try_every_fault(forks, command, tmp_path).values()) > 0


def test_a_refused_bundle_leaves_nothing(made: Path, tmp_path: Path) -> None:
    url = tmp_path / "registry"
    entry = promote(made, "staging", str(url))
    (url / "bundles" / entry.bundle / "README.md").write_text("edited")
    assert [e.bundle for e in history(str(url), "staging")] == [entry.bundle]
    with pytest.raises(GateError, match="not as it was promoted"):
        pull(str(url), entry.bundle, tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []

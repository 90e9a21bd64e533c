"""A pull from a channel leaves the whole, verified bundle or nothing, wherever it is killed or the disk fails."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from veritune.errors import GateError
from veritune.release.bundle.verify import verify_bundle
from veritune.release.registry.channels import history, promote, pull

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

    command = faults.Command("pull", fresh, argv, whole, half)
    assert min(faults.try_every_fault(forks, command, tmp_path).values()) > 0
    copied = iter(range(10**6, 2 * 10**6))
    again = replace(command, fresh=lambda _number: fresh(next(copied)))
    assert min(faults.try_every_power_loss(forks, again, tmp_path).values()) > 0


def promotion(made: Path, tmp_path: Path) -> Any:
    """`promote` to a new registry: an entry names a bundle that is whole, whatever happens."""

    def fresh(number: int) -> Path:
        folder = tmp_path / f"promote-{number}"
        folder.mkdir()
        return folder

    def half(folder: Path) -> None:
        entries = list((folder / "registry").glob("channels/staging/*.json"))
        assert entries == [] or len(history(str(folder / "registry"), "staging")) == 1
        for path in entries:
            bundle = folder / "registry" / "bundles" / json.loads(path.read_text("utf-8"))["bundle"]
            assert verify_bundle(bundle).findings == ()

    def whole(folder: Path) -> None:
        half(folder)
        assert len(history(str(folder / "registry"), "staging")) == 1
        assert len(list((folder / "registry").glob("heads/staging/*.json"))) == 1

    def argv(folder: Path) -> tuple[object, ...]:
        return "promote", made, "--registry", folder / "registry", "--to", "staging"

    return faults.Command("promote", fresh, argv, whole, half)


@pytest.mark.skipif("VERITUNE_CRASH" not in os.environ, reason="make test-crash")
def test_promote_survives_every_fault(made: Path, forks: Any, tmp_path: Path) -> None:
    command = promotion(made, tmp_path)
    assert faults.every_power_cut(forks, command, tmp_path) > 50
    assert min(faults.try_every_fault(forks, command, tmp_path).values()) > 0


def test_a_refused_bundle_leaves_nothing(made: Path, tmp_path: Path) -> None:
    url = tmp_path / "registry"
    entry = promote(made, "staging", str(url))
    (url / "bundles" / entry.bundle / "README.md").write_text("edited")
    assert [e.bundle for e in history(str(url), "staging")] == [entry.bundle]
    with pytest.raises(GateError, match="differs from what was promoted:"):
        pull(str(url), entry.bundle, tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []

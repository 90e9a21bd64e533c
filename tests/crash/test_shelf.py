"""A bundle that a registry's folder took is whole after any power cut, and so is what names it, in this order."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("power", Path(__file__).with_name("power.py"))
assert _spec and _spec.loader
power = importlib.util.module_from_spec(_spec)
sys.modules["power"] = power
_spec.loader.exec_module(power)

FILES = {"manifest.json": b"{}", "weights/adapter.safetensors": b"w" * 99, "evidence/runs/a/summary.json": b"{1}"}
STORE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from shim import Shim
from veritune.release.registry.shelf import LocalShelf

root, source, out = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
files = json.loads(sys.argv[5])
shim = Shim("journal", 0, [str(root)])
shim.install()
shelf = LocalShelf(root / "registry")
assert shelf.put("bundles/abc", source, files)
shelf.create("channels/staging/00000001.json", b"abc")
journal = list(shim.journal)
with shim.real_open(out, "w") as stream:
    json.dump(journal, stream)
"""


def test_a_bundle_and_its_entry_outlive_a_power_cut_whole(tmp_path: Path) -> None:
    source, root, out = tmp_path / "source", tmp_path / "root", tmp_path / "journal.json"
    for name, content in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    root.mkdir()
    digests = json.dumps({name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()})
    argv = [str(Path(__file__).parent), str(root), str(source), str(out), digests]
    subprocess.run([sys.executable, "-c", STORE, *argv], check=True)
    journal = json.loads(out.read_text("utf-8"))
    seen = set()
    for disk in power.DISKS:
        for at in range(1, len(journal) + 1):
            left = tmp_path / "left"
            left.mkdir()
            power.lose_power(left, journal, at, disk)
            bundle, entry = left / "registry/bundles/abc", left / "registry/channels/staging/00000001.json"
            where = f"{disk} disk, power lost after {at}: {journal[at - 1]['do']} {journal[at - 1]['path']}"
            if bundle.exists():
                whole = {p.relative_to(bundle).as_posix(): p.read_bytes() for p in bundle.rglob("*") if p.is_file()}
                assert whole == FILES, where
            if entry.exists():
                assert bundle.exists() and entry.read_bytes() == b"abc", where
            seen.add((disk, bundle.exists(), entry.exists(), at == len(journal)))
            shutil.rmtree(left)
    # Both states were met, and what was done is there after the last operation.
    assert {(disk, True, True, True) for disk in power.DISKS} <= seen
    assert {(disk, False, False, False) for disk in power.DISKS} <= seen

"""axe-core, the accessibility checker: fetched once by npm into build/axe (MPL-2.0; for tests alone)."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

VERSION = "4.14.1"
FOLDER = Path(__file__).resolve().parents[2] / "build" / "axe"
FILE = FOLDER / "node_modules" / "axe-core" / "axe.min.js"


@cache
def axe_source() -> str:
    """The script, or a skip that says what is missing. VERITUNE_AXE names a copy."""
    given = os.environ.get("VERITUNE_AXE")
    path = Path(given) if given else FILE
    if not path.exists() and not given:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("needs axe-core: install npm, or name a copy of axe.min.js with VERITUNE_AXE")
        FOLDER.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--prefix", str(FOLDER), "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        try:
            subprocess.run([*command, f"axe-core@{VERSION}"], timeout=90, capture_output=True, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("needs axe-core: npm did not answer within 90 s; name a copy with VERITUNE_AXE")
    if not path.exists():
        pytest.skip(f"needs axe-core: no {path} (npm could not fetch it)")
    return path.read_text(encoding="utf-8")


def faults(page: Any, only: str = "") -> list[str]:
    """Every serious or critical fault of the page (of one rule): the rule, how it reads, and the first elements."""
    page.evaluate(axe_source())
    options: dict[str, Any] = {"resultTypes": ["violations"]} | ({"runOnly": [only]} if only else {})
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{v['id']}: {v['help']}: " + "; ".join(node["html"][:120] for node in v["nodes"][:3])
        for v in found["violations"]
        if v["impact"] in ("serious", "critical")
    ]

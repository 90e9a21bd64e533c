"""The reliability diagram of a `calibration` record as a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veritune.drawing import save_as, style
from veritune.errors import InputError
from veritune.records import JsonLike
from veritune.report.probe_figures import reliability


def draw_reliability(records: Mapping[str, JsonLike], path: Path) -> None:
    """Draw every `calibration` record of a mapping (`base`, `trained`, `model`) into one figure file, with its CSV
    beside it.

    Raises InputError for another kind of file or when there is no such record.
    """
    found = {k: r for k, r in records.items() if isinstance(r, dict) and r.get("kind") == "calibration"}
    if not found:
        raise InputError("no calibration record to draw.")
    with style():
        save_as(reliability(found, path.name), path)

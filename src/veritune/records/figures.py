"""`figures/<name>.provenance.json`: which records a figure was drawn from, and by which function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritune.records.base import Record


@dataclass(frozen=True, slots=True)
class FigureProvenance(Record):
    """A figure's origin: SHA-256 of each source by its path in the study, SHA-256 of the drawing, and matplotlib's
    version.
    """

    figure: str
    made_by: str
    sources: Mapping[str, str]
    drawing_sha256: str
    matplotlib: str

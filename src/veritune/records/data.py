"""`data/<version>/manifest.json`: the rows, families and zones of one data version, in hashes and numbers.

`review/families.decisions.jsonl`: what people said about families, one pair of rows a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritune.records.base import Line, Record
from veritune.records.contract import DataFacts


@dataclass(frozen=True, slots=True)
class DataManifest(Record):
    """A data version. `parents` are the versions it was made from; `rejects` counts rows left out, by reason."""

    version: str
    created: str
    parents: tuple[str, ...]
    rejects: Mapping[str, int]
    facts: DataFacts


@dataclass(frozen=True, slots=True)
class FamilyDecision(Line):
    """Whether rows `a` and `b` are one family; `same` is None if the decision was undone. The last line about a pair
    counts.

    `a_sha256` and `b_sha256` hash what the rows said; where one of them is not family with the other, `b` leaves.
    """

    a: str
    b: str
    same: bool | None
    a_sha256: str
    b_sha256: str
    time: str

    @property
    def pair(self) -> frozenset[str]:
        """Both rows, in an order that does not depend on which was named first."""
        return frozenset(self.pair_of_ids)

    @property
    def pair_of_ids(self) -> tuple[str, str]:
        """Both row ids, in the order in which they were named."""
        return self.a, self.b

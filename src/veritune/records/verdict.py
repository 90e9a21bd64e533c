"""`verdict.json`: every declared claim judged, and what it was judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from veritune.display import Tabular, short, verdict_html
from veritune.records.base import Record, RecordPart
from veritune.records.common import Verdict


@dataclass(frozen=True, slots=True)
class Standing(RecordPart):
    """What a run's results count as: made before the freeze (`exploratory`), or before which amendment (None: none).

    `trained_elsewhere` is there for adopted weights: what of them could not be checked.
    """

    exploratory: bool
    before_amendment: int | None
    trained_elsewhere: tuple[str, ...] | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("trained_elsewhere",)

    @property
    def marked(self) -> bool:
        """Whether the run's results carry a mark."""
        return self.exploratory or bool(self.before_amendment) or bool(self.trained_elsewhere)


@dataclass(frozen=True, slots=True, repr=False)
class StudyVerdicts(Tabular, Record):
    """All verdicts of a study. `contract` is the hash of the contract entry that was valid, None if none was frozen.

    `runs` are the runs that were compared; `standing` names those of them that are exploratory or came before an
    amendment.
    """

    input_hash: str
    contract: str | None
    runs: tuple[str, ...]
    standing: Mapping[str, Standing]
    verdicts: tuple[Verdict, ...]

    def __repr__(self) -> str:
        return short(self, verdicts={v.claim: v.status for v in self.verdicts})

    def _columns(self) -> dict[str, list[Any]]:
        first = [v.estimates[0] if v.estimates else None for v in self.verdicts]
        own = {name: [getattr(v, name) for v in self.verdicts] for name in ("claim", "kind", "status", "exploratory")}
        own["confidence"] = [v.confidence.get("grade") for v in self.verdicts]
        numbers = {k: [getattr(e, k, None) for e in first] for k in ("value", "low", "high", "level", "n")}
        return {**own, **numbers, "sentence": [v.sentence for v in self.verdicts]}

    def _repr_html_(self) -> str:
        return "".join(str(verdict_html(v)) for v in self.verdicts)

    def by_claim(self) -> dict[str, Verdict]:
        """The verdicts by the claim's name."""
        return {verdict.claim: verdict for verdict in self.verdicts}

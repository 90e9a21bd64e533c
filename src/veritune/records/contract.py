"""`contract.lock.json`: what a study declared before it trained, and the facts that were frozen with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from veritune.records.base import Record, RecordPart
from veritune.records.common import Json


@dataclass(frozen=True, slots=True)
class ZoneSize(RecordPart):
    """Rows of a zone, and how many families they belong to."""

    rows: int
    families: int


@dataclass(frozen=True, slots=True)
class ContaminationFacts(RecordPart):
    """What was found of each eval in the trained rows: numbers of its items and of rows, by strength of the match.

    `sets` has the same for the rows of each data set, where the study has several.
    """

    status: Literal["passed", "failed", "undecided"]
    evals: Mapping[str, Mapping[str, int]]
    sets: Mapping[str, Mapping[str, Mapping[str, int]]] | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("sets",)

    @property
    def near_copies(self) -> int:
        """Number of rows that are confirmed near-copies of an item."""
        return sum(counts["rows_confirmed"] for counts in self.evals.values())

    @property
    def copies(self) -> int:
        """Number of rows that are exact or confirmed near-copies of an item."""
        return self.near_copies + sum(counts["rows_exact"] for counts in self.evals.values())


@dataclass(frozen=True, slots=True)
class BenchmarkFacts(RecordPart):
    """The items of a benchmark: SHA-256 and rows of its file, the ids asked and their families' number.

    `items_sha256` is the hash of items, families and prompts, which lie beside the data version.
    """

    sha256: str
    rows: int
    items: tuple[str, ...]
    families: int
    items_sha256: str


@dataclass(frozen=True, slots=True)
class ScorerFile(RecordPart):
    """A file that an eval uses for scoring, relative to the study's folder: a function's file, or a judge's labelled
    outputs.
    """

    path: str
    sha256: str


@dataclass(frozen=True, slots=True)
class DataFacts(RecordPart):
    """The prepared data in hashes and numbers. `tokens` and `target_tokens` are by zone, `families` as `find_families`
    sums them up; `template_kwargs` is there where the study passes settings to the chat template, `data_sets_sha256`
    where it has further data sets, `benchmarks` where an eval asks items of a file of its own, by the eval's name,
    `scorers` where one scores with a file."""

    data_version: str
    data_sha256: str
    template_sha256: str
    tokenizer_sha256: str
    rendered_sha256: str
    zones: Mapping[str, ZoneSize]
    families: Json
    target_tokens: Mapping[str, int]
    tokens: Mapping[str, int]
    contamination: ContaminationFacts | None
    template_kwargs: Json | None
    data_sets_sha256: Mapping[str, str] | None
    benchmarks: Mapping[str, BenchmarkFacts] | None = field(default=None, kw_only=True)
    scorers: Mapping[str, ScorerFile] | None = field(default=None, kw_only=True)

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = (
        "contamination",
        "template_kwargs",
        "data_sets_sha256",
        "benchmarks",
        "scorers",
    )

    def of_data(self) -> DataFacts:
        """The facts that the data alone determines."""
        return DataFacts(**{f.name: getattr(self, f.name) for f in fields(DataFacts)})


@dataclass(frozen=True, slots=True)
class ServerBase(RecordPart):
    """The server that trains: its kind, its own name for the base, and the version of its SDK."""

    name: str
    base_model: str
    sdk: str


@dataclass(frozen=True, slots=True)
class BaseFacts(RecordPart):
    """The base model: SHA-256 of its weight files by name; of its config only if a server holds the weights.

    `attention` is how attention is computed, where that is not left open.
    """

    name: str
    dtype: str
    files: Mapping[str, str]
    backend: ServerBase | None = None
    attention: str | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("backend", "attention")


@dataclass(frozen=True, slots=True)
class Facts(DataFacts):
    """Everything frozen beside the settings: data, base model, package versions, hashes of Veritune's own source."""

    model: BaseFacts
    packages: Mapping[str, str]
    code: Mapping[str, str]

    @classmethod
    def of(cls, data: DataFacts, model: BaseFacts, packages: Mapping[str, str], code: Mapping[str, str]) -> Facts:
        """The data's facts together with those of model and machine."""
        shared = {f.name: getattr(data, f.name) for f in fields(DataFacts)}
        return cls(**shared, model=model, packages=packages, code=code)


@dataclass(frozen=True, slots=True)
class Terms(RecordPart):
    """Everything frozen: the settings, named as in `study.yaml`, and the facts."""

    study: Json
    facts: Facts


@dataclass(frozen=True, slots=True)
class ContractEntry(RecordPart):
    """One freeze or amendment. `changes` names each difference from the previous entry; `sources` is the origin of each
    setting, `flags` those set on the command line. `results` are the runs that had scores by then, `made` those that
    were finished. `hash` is None if nothing was frozen.
    """

    time: str
    reason: str
    changes: tuple[str, ...]
    terms: Terms
    sources: Mapping[str, str]
    flags: Json
    results: tuple[str, ...]
    made: tuple[str, ...]
    previous: str | None
    hash: str | None


@dataclass(frozen=True, slots=True)
class Contract(Record):
    """All entries of a contract, beginning with the freeze; there is at least one."""

    entries: tuple[ContractEntry, ...]

    @property
    def first(self) -> ContractEntry:
        """The entry of the freeze."""
        return self.entries[0]

    @property
    def last(self) -> ContractEntry:
        """The entry that is valid now."""
        return self.entries[-1]

    @property
    def facts(self) -> Facts:
        """The facts that are valid now."""
        return self.last.terms.facts

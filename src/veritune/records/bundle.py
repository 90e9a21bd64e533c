"""A bundle's `manifest.json`, which ties its parts by hash, and `base.json`, the base model that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from veritune.records.base import Record, RecordPart
from veritune.records.common import Json
from veritune.records.release import Subject

TensorShape = tuple[str, tuple[int, ...]]
"""(dtype, shape) of a tensor."""


@dataclass(frozen=True, slots=True)
class BundledWeights(RecordPart):
    """Which weights the bundle contains (`adapter`, `merged`: adapter and merged weights, `full`), and which of them to
    serve.
    """

    kind: Literal["adapter", "merged", "full"]
    serves: Literal["adapter", "model"]


@dataclass(frozen=True, slots=True)
class BundledBase(RecordPart):
    """The base model, by `reference` (a hub id or path; `builtin`: part of a package) and by the hashes of its
    files."""

    name: str
    reference: str
    builtin: bool
    revision: str | None
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BaseRecord(Record):
    """The base in detail, so that a bundle can be checked without it: its tensors' shapes, vocabulary and config."""

    base: BundledBase
    tensors: Mapping[str, TensorShape]
    vocabulary: int | None
    config: Json


@dataclass(frozen=True, slots=True)
class BundledData(RecordPart):
    """The data version that the run trained on, and the SHA-256 of the file it was made from."""

    version: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PackedFile(RecordPart):
    """One file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class BundleManifest(Record):
    """The manifest of a bundle. `hash` is the hash of all other keys, and the bundle's id.

    `trained_elsewhere` is there for adopted weights: what of them could not be checked.
    """

    name: str
    run_id: str
    condition: str
    seed: int
    method: str | None
    contract: str
    weights: BundledWeights
    base: BundledBase
    subject: Subject
    data: BundledData
    template_sha256: str
    tokenizer_sha256: str
    files: Mapping[str, PackedFile]
    hash: str
    kind: Literal["veritune bundle"] = "veritune bundle"
    trained_elsewhere: tuple[str, ...] | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("trained_elsewhere",)

"""Families over a folder of shards on a Ray cluster: every shard is read where it is swept.

    shard_families("shards/", ray_address="auto")

The driver holds what has one number per row (id, hashes, block and place, family) and never a text.

N rows of one shard
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from veritune.data import families, load
from veritune.data.families import FamilyConfig, FamilyResult
from veritune.data.near.arrays import I64
from veritune.data.near.bytes import TextBuffer
from veritune.data.near.ray import ShardedText, session
from veritune.records import Finding


@dataclass(frozen=True)
class ShardedFamilies:
    """Families of a folder of shards: as from `find_families`, with the records that could not be used."""

    families: FamilyResult
    rejects: tuple[Finding, ...]
    n_read: int


def shard_families(
    path: str | Path, config: FamilyConfig | None = None, *, reading: Mapping[str, Any] | None = None, **settings: Any
) -> ShardedFamilies:
    """Families over a file or a folder of shards that every node can read; no text passes through the calling process.

    `reading` are settings of `load_rows`. Rows come in the order of `load_rows(path)`, with the same ids, and of two
    rows with one id the later is refused as there. Raises DataError when nothing is there to read.
    """
    config = families.configured(config, {"executor": "ray", **settings})
    files, id_field = load.files_of(path), (reading or {}).get("id_field")
    with session(config.ray_address) as ray:
        run = ray.remote(_read_shard).options(num_cpus=1, num_returns=2)
        heads, texts = zip(*(run.remote(*file, dict(reading or {})) for file in files))
        keep_task = ray.remote(_keep).options(num_cpus=1)
        ids: list[str] = []
        named: list[str | None] = []
        rejects: list[Finding] = []
        blocks, sizes, n_read = [], [], 0
        first: dict[str, str] = {}
        for head_ref, text in zip(heads, texts):
            head = ray.get(head_ref)
            kept = [
                i for i, row_id in enumerate(head["ids"]) if first.setdefault(row_id, head["at"][i]) == head["at"][i]
            ]
            again = [i for i in range(len(head["ids"])) if i not in set(kept)] if len(kept) < len(head["ids"]) else []
            found = [
                *head["rejects"],
                *(load.used_twice(head["ids"][i], head["at"][i], first, id_field) for i in again),
            ]
            rejects += sorted(found, key=lambda f: f.line or 0)
            ids += [head["ids"][i] for i in kept]
            named += [head["family"][i] for i in kept]
            n_read += head["n_read"]
            blocks.append(keep_task.remote(text, np.array(kept, np.int64)) if again else text)
            sizes.append(len(kept))
        column = named if any(name is not None for name in named) else None
        texts_there = ShardedText(tuple(blocks), tuple(sizes))
        result = families.find_families(families.FamilyColumns(ids, texts_there, column), config)  # type: ignore[arg-type]
    return ShardedFamilies(result, tuple(rejects), n_read)


def _read_shard(file: Path, name: str, stem: str, reading: dict[str, Any]) -> tuple[dict[str, Any], TextBuffer]:
    """One shard as `load_rows` reads it: what the driver needs, and the texts."""
    loaded = load.load_files([(file, name, stem)], **reading)
    columns = families.FamilyColumns.from_rows(loaded.rows)
    head = {
        "ids": list(columns.ids),
        "at": [f"{row.source}:{row.line}" for row in loaded.rows],
        "family": [row.family for row in loaded.rows],
        "rejects": list(loaded.rejects),
        "n_read": loaded.n_read,
    }
    return head, columns.text


def _keep(text: TextBuffer, row_N: I64) -> TextBuffer:
    return text.take(row_N)

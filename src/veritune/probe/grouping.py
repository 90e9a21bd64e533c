"""Families that nobody labelled, found by gradient and handed to the split as a column.

    found = group_by_gradient(model, rows, rendered)
    write_grouped(Path("grouped.jsonl"), rows, found)       # study.yaml: data.path grouped.jsonl, family_field family

Rows that words or a column already join stay joined; gradients add what words do not show. A file is written rather
than a flag kept, so that the families a study was split by can be read, corrected and hashed like any other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.thresholds import DEFAULTS
from veritune.counting import grouped
from veritune.data.families import FamilyResult, find_families
from veritune.data.fields import TAKEN_OUT
from veritune.errors import DataError
from veritune.probe.gradients import Settings, discover_families
from veritune.records import FORMAT_VERSION, JsonLike, Rendered, Row
from veritune.store import write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COLUMN = "family"


@dataclass(frozen=True)
class Grouped:
    """Families by words and columns alone, and with gradients. `family_of` holds one name per row."""

    n_rows: int
    n_families: int
    n_families_without_gradients: int
    n_edges: int
    threshold: float
    family_of: tuple[str, ...]
    reading: str
    limits: str
    would_change: str
    kind: str = "gradient_families"
    format: int = FORMAT_VERSION


def group_by_gradient(
    model: PreTrainedModel,
    rows: Sequence[Row],
    rendered: Sequence[Rendered],
    *,
    threshold: float = DEFAULTS.gradients.family_cosine,
    settings: Settings | None = None,
) -> Grouped:
    """Families of all rows: those by words and columns, further joined where gradients on `model` agree.

    `rendered` may leave rows out (too long, say): those keep the family that words give. Raises DataError when a
    rendered row is not among `rows`, or nothing could be rendered.
    """
    place = {row.id: i for i, row in enumerate(rows)}
    strange = [r.row_id for r in rendered if r.row_id not in place]
    if strange or not rendered:
        raise DataError(
            f"expected rendered forms of the {len(rows)} rows, found {len(rendered)}, {len(strange)} of other rows."
        )
    found = discover_families(model, rendered, threshold=threshold, settings=settings)
    at = [place[r.row_id] for r in rendered]
    edges = [(at[i], at[j], score, why) for i, j, score, why in found.edges]
    before, after = find_families(rows), find_families(rows, extra_edges=edges)
    reading, limits, change = _sentences(rows, before, after, len(rendered), threshold)
    return Grouped(
        n_rows=len(rows),
        n_families=len(after.names),
        n_families_without_gradients=len(before.names),
        n_edges=len(edges),
        threshold=threshold,
        family_of=tuple(after.families),
        reading=reading,
        limits=limits,
        would_change=change,
    )


def write_grouped(path: Path, rows: Sequence[Row], found: Grouped) -> None:
    """Write the rows as JSONL with id, messages, other columns and the column `family`, in a form that `data.path`
    accepts.

    A column of that name that the rows brought moves to `family_before`. Raises DataError for another number of rows.
    """
    if len(rows) != len(found.family_of):
        raise DataError(f"expected the {len(found.family_of)} rows that were grouped, found {len(rows)}.")
    write_jsonl(path, [_record(row, name) for row, name in zip(rows, found.family_of)])


def _record(row: Row, family: str) -> dict[str, JsonLike]:
    record: dict[str, Any] = {k: v for k, v in row.meta.items() if k not in ("id", "messages", *TAKEN_OUT)}
    if COLUMN in record:
        record["family_before"] = record.pop(COLUMN)
    elif row.family is not None:
        record["family_before"] = row.family
    return {"id": row.id, **row.to_chat(), **record, COLUMN: family}


def _sentences(
    rows: Sequence[Row], before: FamilyResult, after: FamilyResult, n_measured: int, threshold: float
) -> tuple[str, str, str]:
    fewer = len(before.names) - len(after.names)
    said = f"{grouped(len(rows), 'rows', 'fall')} into {grouped(len(after.names), 'families')}"
    said += f"; words and columns alone see {len(before.names):,}." if fewer else ", the same that words alone show."
    left_out = f" {len(rows) - n_measured:,} rows could not be rendered and were not compared." * (
        n_measured < len(rows)
    )
    return (
        said,
        f"Rows join at a mean-centred gradient cosine of {threshold}, on one model: they pull it the same way, which "
        f"a shared kind of task can do without a shared original.{left_out}",
        "A column that names originals. A higher threshold joins less; look at the largest families before a split.",
    )

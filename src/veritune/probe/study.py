"""Probes on what a study or a user already has: runs on disk, or any model, adapter and data files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, Unpack

from veritune.config.thresholds import DEFAULTS, Thresholds
from veritune.data.families import Edge, find_families
from veritune.data.load import LoadOptions, TrainOn, load_rows, require_clean
from veritune.data.render import Renderer, render_rows
from veritune.errors import DataError, ModelError
from veritune.probe import geometry
from veritune.probe.geometry import Method, Prompts, States
from veritune.probe.gradients import Settings, discover_families, probe_gradients
from veritune.probe.grouping import Grouped, group_by_gradient
from veritune.probe.memorization import row_losses, three_zone_gap
from veritune.probe.subject import ProbeSubject, subject
from veritune.probe.tokens import token_nlls, where_it_fell
from veritune.records import (
    Geometry,
    GradientProbe,
    Rendered,
    Row,
    RowLoss,
    RowLosses,
    ThreeZoneGap,
    TokenFall,
    ZoneGapRecord,
)
from veritune.store import Store, hash_of, sha256_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel


T = TypeVar("T")

GAP = "three_zone.json"
__all__ = [
    "ProbeSubject",
    "Zoned",
    "gap_of",
    "geometry_of",
    "gradient_edges",
    "gradient_families_of",
    "gradients_of",
    "persona_prompts",
    "read_zones",
    "subject",
    "thin",
    "tokens_of",
    "zone_gap",
    "zoned_losses",
]


def zone_gap(store: Store, baseline: str, run_id: str, thresholds: Thresholds = DEFAULTS) -> ThreeZoneGap:
    """The three-zone gap of one run from the losses on disk, before (the baseline's) and after; computed once and
    saved.

    Raises ScoreError as `three_zone_gap` does.
    """
    before = RowLosses.load(store.run(baseline) / "probes" / "nll.json")
    after = RowLosses.load(store.run(run_id) / "probes" / "nll.json")
    path = store.run(run_id) / "probes" / GAP
    words = thresholds.model_dump(include={"zone_gap", "families"})
    digest = hash_of([before.input_hash, after.input_hash, words])
    record = store.made(ZoneGapRecord, path, digest)
    if record is None:
        gap = three_zone_gap(*zoned_losses(before.rows, after.rows), thresholds=thresholds)
        record = ZoneGapRecord(digest, gap)
        record.save(path)
    return record.gap


def zoned_losses(
    before: Sequence[RowLoss], after: Sequence[RowLoss]
) -> tuple[list[float], list[float], list[str], list[str]]:
    """Loss per row before and after, zone and family, from two runs' `nll.json`; validation rows are left out."""
    base = {row.row_id: row for row in before}
    rows = [row for row in after if row.zone != "validation"]
    return (
        [base[row.row_id].nll for row in rows],
        [row.nll for row in rows],
        [row.zone for row in rows],
        [row.family for row in rows],
    )


# ---------------------------------------------------------------- anybody's model


@dataclass(frozen=True)
class Zoned:
    """The rows of all files, rendered, with each row's zone (the file it came from) and family."""

    rows: tuple[Row, ...]
    rendered: tuple[Rendered, ...]
    zones: tuple[str, ...]
    families: tuple[str, ...]


def read_zones(files: Mapping[str, str | Path], renderer: Renderer, **reading: Unpack[LoadOptions]) -> Zoned:
    """Read the rows of each zone's file. Families are computed over all files together.

    `reading` are settings of `load_rows`. Raises DataError for unusable rows, and when a family that is trained on
    reaches into the strangers, with the number of rows: that would flatter the model.
    """
    rows: list[Row] = []
    zones: list[str] = []
    for zone, path in files.items():
        loaded = load_rows(path, **reading)
        require_clean(loaded)
        rows += [replace(row, id=f"{zone}/{row.id}") for row in loaded.rows]
        zones += [zone] * len(loaded.rows)
    rendered, problems = render_rows(rows, renderer)
    if problems:
        raise DataError(f"{problems[0].message} ({len(problems)} such rows).", fix="Shorten these rows, or drop them.")
    families = find_families(rows).families
    _refuse_leak(zones, families)
    return Zoned(tuple(rows), tuple(rendered), tuple(zones), tuple(families))


def thin(zoned: Zoned, rows: int) -> Zoned:
    """At most this many rows of each zone, as whole families in the order of the files."""
    left = dict.fromkeys(zoned.zones, rows)
    kept = []
    for i in sorted(range(len(zoned.rows)), key=lambda i: (zoned.families.index(zoned.families[i]), i)):
        if left[zoned.zones[i]] > 0:
            left[zoned.zones[i]] -= 1
            kept.append(i)
    kept.sort()

    def pick(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[i] for i in kept)

    return Zoned(pick(zoned.rows), pick(zoned.rendered), pick(zoned.zones), pick(zoned.families))


def gradient_edges(model: str, rows: Sequence[Row], *, max_length: int = 2048) -> list[Edge]:
    """Pairs (row, row, cosine, "gradient") of rows whose gradients on `model` agree, for `merge_families`.

    Rows that cannot be rendered take no part. Raises DataError when none can, or when there are too many rows to
    compare all pairs.
    """
    found = subject(model, max_length=max_length)
    rendered, _ = render_rows(rows, found.renderer)
    if not rendered:
        raise DataError("no row can be rendered with the model's template, so gradients cannot be compared.")
    place = {row.id: i for i, row in enumerate(rows)}
    at = [place[r.row_id] for r in rendered]
    return [(at[i], at[j], score, why) for i, j, score, why in discover_families(found.base(), rendered).edges]


def _refuse_leak(zones: Sequence[str], families: Sequence[str]) -> None:
    trained = {f for f, zone in zip(families, zones) if zone in ("seen", "sibling")}
    leaked = sum(zone == "stranger" and f in trained for f, zone in zip(families, zones))
    if leaked:
        n = sum(zone == "stranger" for zone in zones)
        raise DataError(
            f"{leaked} of {n} stranger rows belong to a family that is trained on.",
            fix="Give them as --sibling, or hold their families out; `veritune audit` names them.",
        )


def gradients_of(
    subject: ProbeSubject,
    data: str | Path,
    settings: Settings,
    *,
    family_field: str | None = None,
    train_on: TrainOn = "all",
) -> GradientProbe:
    """The gradient probe on the rows of a data file. Raises DataError for rows that cannot be used or rendered."""
    loaded = require_clean(load_rows(data, family_field=family_field, train_on=train_on))
    rendered, problems = render_rows(loaded.rows, subject.renderer)
    if problems:
        raise DataError(f"{problems[0].message} ({len(problems)} such rows).", fix="Shorten these rows, or drop them.")
    families = find_families(loaded.rows).families
    return probe_gradients(subject.trained(), rendered, families, settings=settings, base_loss=subject.base_loss())


def gradient_families_of(subject: ProbeSubject, rows: Sequence[Row]) -> Grouped:
    """Families of rows by words, further joined where their gradients agree; rows that are too long keep their
    family."""
    rendered, _ = render_rows(rows, subject.renderer)
    return group_by_gradient(subject.base(), rows, rendered)


def persona_prompts(model: str, personas: Path | None, questions: Path | None) -> tuple[Prompts, dict[str, str]]:
    """The geometry probe's prompts, with built-in personas and questions where no file is given; SHA-256 of the
    files."""
    texts = geometry.PERSONAS if personas is None else geometry.read_personas(personas)
    asked = geometry.QUESTIONS if questions is None else geometry.read_questions(questions)
    files = {n: sha256_file(p) for n, p in (("personas", personas), ("questions", questions)) if p is not None}
    return geometry.render_personas(subject(model).renderer.tokenizer, texts, asked), files


def gap_of(found: ProbeSubject, zoned: Zoned) -> ThreeZoneGap:
    """The three-zone gap of a model against its base on the given rows. Raises ModelError without an adapter."""
    if found.adapter is None:
        raise ModelError(
            "the gap compares a trained model with its base, but no adapter was given.", fix="--adapter DIR"
        )
    before = row_losses(found.base(), zoned.rendered)
    after = row_losses(found.trained(), zoned.rendered)
    return three_zone_gap(before, after, zoned.zones, zoned.families)


def tokens_of(found: ProbeSubject, zoned: Zoned, zones: Sequence[str]) -> dict[str, TokenFall]:
    """Where the loss fell on each of `zones`, with tokens classified by the seen rows.

    Raises ModelError without an adapter.
    """
    if found.adapter is None:
        raise ModelError(
            "`tokens` compares a trained model with its base, but no adapter was given.", fix="--adapter DIR"
        )
    chosen = [i for i, zone in enumerate(zoned.zones) if zone in zones]
    rows = [zoned.rendered[i] for i in chosen]
    before, after = token_nlls(found.base(), rows), token_nlls(found.trained(), rows)
    seen = [(r, f) for r, f, z in zip(zoned.rendered, zoned.families, zoned.zones) if z == "seen"]
    reference = ([r for r, _ in seen], [f for _, f in seen])
    made = {}
    for zone in zones:
        at = [k for k, i in enumerate(chosen) if zoned.zones[i] == zone]
        families = [zoned.families[chosen[k]] for k in at]
        made[zone] = where_it_fell(
            [rows[k] for k in at], families, [before[k] for k in at], [after[k] for k in at], reference=reference
        )
    return made


def geometry_of(
    model: str, adapters: Sequence[Path], prompts: Prompts, methods: Sequence[Method], max_new_tokens: int = 32
) -> list[dict[str, Geometry]]:
    """The geometry of each adapter against the base, by method. Only one model is in memory at a time."""
    from veritune.probe.geometry import geometry, states

    def read(loaded: PreTrainedModel) -> dict[Method, States]:
        return {m: states(loaded, prompts, method=m, max_new_tokens=max_new_tokens) for m in methods}

    base = read(subject(model).base())
    made: list[dict[str, Geometry]] = []
    for adapter in adapters:
        after = read(subject(model, adapter).trained())
        made.append({m: geometry(base[m], after[m], prompts) for m in methods})
    return made

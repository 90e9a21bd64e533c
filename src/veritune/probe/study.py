"""Probes on what a study or a user already has: runs on disk, or any model, adapter and data files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.data.families import find_families
from veritune.data.load import load_rows, require_clean
from veritune.data.render import Renderer, render_rows
from veritune.errors import DataError, ModelError
from veritune.probe.memorization import ThreeZoneGap, row_losses, three_zone_gap
from veritune.probe.tokens import TokenFall, token_nlls, where_it_fell
from veritune.records import Rendered, Row
from veritune.store import Store, hash_of, read_json, write_json
from veritune.study import Model
from veritune.train.models import ModelRef, load_base, load_tokenizer, quiet_transformers, resolve

GAP = "three_zone.json"


def zone_gap(store: Store, baseline: str, run_id: str) -> dict[str, Any]:
    """The three-zone gap of one run from the losses on disk, before (the baseline's) and after; written once.

    Raises ScoreError as `three_zone_gap` does.
    """
    before = read_json(store.run(baseline) / "probes" / "nll.json")
    after = read_json(store.run(run_id) / "probes" / "nll.json")
    path = store.run(run_id) / "probes" / GAP
    digest = hash_of([before["input_hash"], after["input_hash"]])
    if not store.is_done(path, digest):
        base = {row["row_id"]: row for row in before["rows"]}
        rows = [row for row in after["rows"] if row["zone"] != "validation"]
        found = three_zone_gap(
            [base[row["row_id"]]["nll_sum"] / row["target_tokens"] for row in rows],
            [row["nll_sum"] / row["target_tokens"] for row in rows],
            [row["zone"] for row in rows],
            [row["family"] for row in rows],
        )
        write_json(path, {"input_hash": digest, "gap": found})
    record: dict[str, Any] = read_json(path)["gap"]
    return record


# ---------------------------------------------------------------- anybody's model


@dataclass(frozen=True)
class Subject:
    """A model to be probed: the base, the adapter on it (None: the base itself), the tokenizer's renderer."""

    ref: ModelRef
    adapter: Path | None
    renderer: Renderer

    def base(self) -> Any:
        """The base model."""
        return load_base(self.ref)

    def trained(self) -> Any:
        """The model with its adapter. Raises ModelError when the adapter does not fit the base."""
        if self.adapter is None:
            return self.base()
        from peft import PeftModel

        if not (self.adapter / "adapter_config.json").is_file():
            raise ModelError(f"{self.adapter} holds no adapter_config.json.", fix="Name the adapter's folder.")
        try:
            with quiet_transformers():
                return PeftModel.from_pretrained(self.base(), self.adapter, is_trainable=True).eval()
        except (RuntimeError, ValueError, KeyError) as exc:
            first = str(exc).strip().splitlines()[0]
            raise ModelError(
                f"{self.adapter} does not fit {self.ref.path}: {first[:160]}.", fix="Name the base it was trained on."
            ) from None


def subject(
    model: str, adapter: str | Path | None = None, *, dtype: str = "bfloat16", max_length: int = 2048
) -> Subject:
    """Find a base model and its adapter. Raises ModelError."""
    settings = Model.model_validate({"path": model, "dtype": dtype})
    ref = resolve(settings, Path())
    return Subject(ref, Path(adapter) if adapter else None, Renderer(load_tokenizer(ref), max_length))


@dataclass(frozen=True)
class Zoned:
    """Rows of all files, rendered, with each row's zone (the file it came from) and family."""

    rows: tuple[Row, ...]
    rendered: tuple[Rendered, ...]
    zones: tuple[str, ...]
    families: tuple[str, ...]


def read_zones(files: Mapping[str, str | Path], renderer: Renderer, **reading: Any) -> Zoned:
    """Rows of each zone's file. Families are found over all files together.

    `reading` are settings of `load_rows`. Raises DataError for unusable rows, and when a family that is trained on
    reaches into the strangers, with the number of rows: that would flatter the model.
    """
    rows: list[Row] = []
    zones: list[str] = []
    for zone, path in files.items():
        loaded = load_rows(path, **reading)
        require_clean(loaded)
        rows += [Row(f"{zone}/{r.id}", r.messages, r.source, r.line, r.family, r.meta) for r in loaded.rows]
        zones += [zone] * len(loaded.rows)
    rendered, problems = render_rows(rows, renderer)
    if problems:
        raise DataError(f"{problems[0].message} ({len(problems)} such rows).", fix="Shorten or drop them.")
    families = find_families(rows).families
    _refuse_leak(zones, families)
    return Zoned(tuple(rows), tuple(rendered), tuple(zones), tuple(families))


def thin(zoned: Zoned, rows: int) -> Zoned:
    """At most so many rows of each zone, whole families first come first served, in the order of the files."""
    left = dict.fromkeys(zoned.zones, rows)
    kept = []
    for i in sorted(range(len(zoned.rows)), key=lambda i: (zoned.families.index(zoned.families[i]), i)):
        if left[zoned.zones[i]] > 0:
            left[zoned.zones[i]] -= 1
            kept.append(i)
    kept.sort()

    def pick(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in kept)

    return Zoned(pick(zoned.rows), pick(zoned.rendered), pick(zoned.zones), pick(zoned.families))


def _refuse_leak(zones: Sequence[str], families: Sequence[str]) -> None:
    trained = {f for f, zone in zip(families, zones) if zone in ("seen", "sibling")}
    leaked = sum(zone == "stranger" and f in trained for f, zone in zip(families, zones))
    if leaked:
        n = sum(zone == "stranger" for zone in zones)
        raise DataError(
            f"{leaked} of {n} stranger rows belong to a family that is trained on.",
            fix="Give them as --sibling, or hold their families out; `veritune audit` names them.",
        )


def gap_of(found: Subject, zoned: Zoned) -> ThreeZoneGap:
    """The three-zone gap of a model against its base on the rows given. Raises ModelError without an adapter."""
    if found.adapter is None:
        raise ModelError(
            "the gap compares a trained model with its base, and no adapter was named.", fix="--adapter DIR"
        )
    before = row_losses(found.base(), zoned.rendered)
    after = row_losses(found.trained(), zoned.rendered)
    return three_zone_gap(before, after, zoned.zones, zoned.families)


def tokens_of(found: Subject, zoned: Zoned, zones: Sequence[str]) -> dict[str, TokenFall]:
    """Where the loss fell on each of `zones`, tokens classed by the seen rows.

    Raises ModelError without an adapter.
    """
    if found.adapter is None:
        raise ModelError("where the loss fell compares a trained model with its base.", fix="--adapter DIR")
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

"""From the study's data file to rows that can be trained on: load, families, zones, rendering, each written down.

The data version is the hash of the rows, families and zones. What is on disk under that version is never rewritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from veritune.config.study import Study
from veritune.data.contamination import check_contamination
from veritune.data.families import SPLIT_SAFE_THRESHOLD, FamilyResult, find_families
from veritune.data.load import load_rows, require_clean
from veritune.data.render import Renderer, render_rows
from veritune.data.review import require_usable
from veritune.data.split import Split, SplitConfig, judge_split, split_zones
from veritune.errors import DataError, GateError, StaleError
from veritune.records import ZONES, Message, Rendered, Row, dumps, to_json
from veritune.store import Store, hash_of, now, read_parquet, write_json, write_jsonl, write_parquet


@dataclass(frozen=True)
class Prepared:
    """The rows of a study, where each sits, and what the trainer will see. `facts` go into the contract."""

    version: str
    rows: tuple[Row, ...]
    family_of: Mapping[str, str]
    zone_of: Mapping[str, str]
    rendered: Mapping[str, Rendered]
    prompts: Mapping[str, tuple[int, ...]]
    facts: Mapping[str, Any]

    def zone(self, zone: str) -> tuple[Rendered, ...]:
        """Rendered rows of one zone, in the order of the data file."""
        return tuple(self.rendered[row.id] for row in self.rows if self.zone_of[row.id] == zone)


def prepare(store: Store, study: Study, tokenizer: Any) -> Prepared:
    """Load, group, split and render the study's data, and write the records. Raises DataError or GateError."""
    loaded = load_rows(
        store.root / study.data.path,
        columns=study.data.columns,
        family_field=study.data.family_field,
        id_field=study.data.id_field,
    )
    require_clean(loaded)
    require_usable(store.root / study.data.path, loaded.source_sha256, loaded.rows)
    families = _families(study, loaded.rows)
    family_of = {m.row_id: m.family for m in families.memberships}
    split = split_zones(loaded.rows, family_of, _split_config(study))
    renderer = Renderer(tokenizer, study.train.max_length)
    rendered, problems = render_rows(loaded.rows, renderer)
    if problems:
        write_jsonl(store.audit("findings.jsonl"), problems)
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0].message}{more}.", fix="All are in audit/findings.jsonl. Nothing has trained.")
    version = _version(loaded.rows, family_of, split.zone_of)
    facts: dict[str, Any] = {
        "data_version": version,
        "data_sha256": loaded.source_sha256,
        "template_sha256": renderer.template_sha256,
        "tokenizer_sha256": renderer.tokenizer_sha256,
        "rendered_sha256": hash_of(rendered),
        "zones": {zone: _zone_counts(zone, split, family_of) for zone in ZONES},
        "families": {**to_json(families.summary), "evidence": dict(Counter(m.evidence for m in families.memberships))},
        "target_tokens": {z: sum(r.n_target for r in rendered if split.zone_of[r.row_id] == z) for z in ZONES},
        "tokens": {z: sum(len(r.input_ids) for r in rendered if split.zone_of[r.row_id] == z) for z in ZONES},
    }
    prompts = {row.id: renderer.prompt_ids(row) for row in loaded.rows}
    _write(store, version, loaded.rows, families, split, facts)
    _split_gate(store, loaded.rows, family_of, split)
    facts["contamination"] = _contamination_gate(store, study, loaded.rows, split)
    _render_record(store, rendered, renderer, tokenizer)
    _write_rendered(store, version, facts["rendered_sha256"], rendered, prompts)
    return Prepared(
        version, loaded.rows, family_of, split.zone_of, {r.row_id: r for r in rendered}, prompts, to_json(facts)
    )


def _rendered_file(store: Store, version: str, rendered_sha256: str) -> Path:
    return store.data(version) / f"rendered-{rendered_sha256[:12]}.parquet"


def _write_rendered(
    store: Store, version: str, digest: str, rendered: Sequence[Rendered], prompts: Mapping[str, tuple[int, ...]]
) -> None:
    """Token ids as the trainer gets them, so that a cell that stands alone need not render again."""
    path = _rendered_file(store, version, digest)
    if not path.exists():
        columns: dict[str, list[Any]] = {
            "id": [r.row_id for r in rendered],
            "input_ids": [list(r.input_ids) for r in rendered],
            "labels": [list(r.labels) for r in rendered],
            "prompt_ids": [list(prompts[r.row_id]) for r in rendered],
        }
        write_parquet(path, columns)


def load_prepared(store: Store, facts: Mapping[str, Any]) -> Prepared:
    """The frozen data of a study, read back from disk. `facts` are the contract's.

    Raises StaleError when rows, families, zones or token ids on disk are not the frozen ones.
    """
    import json

    version, folder = facts["data_version"], store.data(facts["data_version"])
    path = _rendered_file(store, version, facts["rendered_sha256"])
    for needed in (path, *(folder / name for name in ("rows.parquet", "families.parquet", "split.parquet"))):
        if not needed.exists():
            raise StaleError(f"{needed} is gone.", fix="Make it again: veritune freeze STUDY")
    rows = tuple(
        Row(
            r["id"],
            tuple(Message(**m) for m in r["messages"]),
            r["source"],
            r["line"],
            r["family"],
            json.loads(r["meta"]),
        )
        for r in read_parquet(folder / "rows.parquet")
    )
    family_of = {r["id"]: r["family"] for r in read_parquet(folder / "families.parquet")}
    zone_of = {r["id"]: r["zone"] for r in read_parquet(folder / "split.parquet")}
    rendered, prompts = {}, {}
    for r in read_parquet(path):
        rendered[r["id"]] = Rendered(r["id"], tuple(r["input_ids"]), tuple(r["labels"]))
        prompts[r["id"]] = tuple(r["prompt_ids"])
    found = {"data_version": _version(rows, family_of, zone_of), "rendered_sha256": hash_of(list(rendered.values()))}
    for name, value in found.items():
        if value != facts[name]:
            raise StaleError(
                f"{folder}: {name} is {value[:12]}, the contract has {facts[name][:12]}: it was edited.",
                fix="Restore the folder; nothing has trained.",
            )
    data_facts = {k: v for k, v in facts.items() if k not in ("model", "packages", "code")}
    return Prepared(version, rows, family_of, zone_of, rendered, prompts, data_facts)


def _version(rows: Sequence[Row], family_of: Mapping[str, str], zone_of: Mapping[str, str]) -> str:
    """The data version: rows, families and zones, hashed."""
    return hash_of([rows, sorted(family_of.items()), sorted(zone_of.items())])[:12]


def _families(study: Study, rows: tuple[Row, ...]) -> FamilyResult:
    if study.data.family_field and all(row.family is None for row in rows):
        columns = ", ".join(sorted({key for row in rows for key in row.meta})) or "none"
        raise DataError(
            f"data.family_field: no row has a value in {study.data.family_field!r}.", fix=f"Columns there: {columns}."
        )
    return find_families(rows, near=study.data.near_duplicates, threshold=SPLIT_SAFE_THRESHOLD)


def _split_config(study: Study) -> SplitConfig:
    plan = study.split
    return SplitConfig(
        seed=plan.seed,
        stranger=plan.stranger,
        validation=plan.validation,
        sibling=plan.sibling,
        few_families=study.thresholds.families.few_held_out,
    )


def _zone_counts(zone: str, split: Split, family_of: Mapping[str, str]) -> dict[str, int]:
    ids = [row_id for row_id, where in split.zone_of.items() if where == zone]
    return {"rows": len(ids), "families": len({family_of[i] for i in ids})}


def _write(
    store: Store, version: str, rows: tuple[Row, ...], families: FamilyResult, split: Split, facts: Mapping[str, Any]
) -> None:
    folder = store.data(version)
    manifest = folder / "manifest.json"
    if manifest.exists():
        return
    columns: dict[str, list[Any]] = {"id": [], "source": [], "line": [], "family": [], "messages": [], "meta": []}
    for row in rows:
        columns["id"].append(row.id)
        columns["source"].append(row.source)
        columns["line"].append(row.line)
        columns["family"].append(row.family)
        columns["messages"].append([{"role": m.role, "content": m.content} for m in row.messages])
        columns["meta"].append(dumps(row.meta))
    write_parquet(folder / "rows.parquet", columns)
    members = families.memberships
    write_parquet(
        folder / "families.parquet",
        {
            "id": [m.row_id for m in members],
            "family": [m.family for m in members],
            "evidence": [m.evidence for m in members],
            "similarity": [m.similarity for m in members],
        },
    )
    write_parquet(folder / "split.parquet", {"id": [r.id for r in rows], "zone": [split.zone_of[r.id] for r in rows]})
    record = {"version": version, "created": now(), "parents": [], "rejects": {}, "facts": facts}
    write_json(manifest, record)


def _split_gate(store: Store, rows: tuple[Row, ...], family_of: Mapping[str, str], split: Split) -> None:
    """Write how the zones overlap. Raises GateError where a family straddles what must be apart."""
    findings, counts = judge_split(split.zone_of, rows, family_of)
    record = {"counts": counts, "findings": findings, "warnings": list(split.warnings)}
    write_json(store.audit("split.json"), record)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise GateError(f"split: {errors[0].message}.", fix="See audit/split.json. Nothing has trained.")


def _contamination_gate(store: Store, study: Study, rows: tuple[Row, ...], split: Split) -> dict[str, Any]:
    """Look in the trained rows for the items of every named benchmark and of the held-out zones; the counts.

    Raises GateError on an exact overlap. Siblings are left out: they share a family with trained rows by design.
    """
    evals: dict[str, Sequence[Row]] = {}
    for name, path in study.data.evals.items():
        loaded = load_rows(store.root / path)
        require_clean(loaded)
        evals[name] = loaded.rows
    for zone in ("stranger", "validation"):
        evals[f"zone {zone}"] = [row for row in rows if split.zone_of[row.id] == zone]
    trained = [row for row in rows if split.zone_of[row.id] == "seen"]
    result = check_contamination(trained, evals)
    gate = result.gate()
    write_json(store.audit("contamination.json"), {"gate": gate, "findings": result.findings()})
    if gate.status == "failed":
        raise GateError(
            f"contamination: {gate.message} First: {gate.evidence[0]}.",
            fix="See audit/contamination.json. Drop the rows or the evals; nothing has trained.",
        )
    return {"status": gate.status, "evals": to_json(result.by_eval)}


def _render_record(store: Store, rendered: tuple[Rendered, ...], renderer: Renderer, tokenizer: Any) -> None:
    lengths = sorted(len(r.input_ids) for r in rendered)
    first = rendered[0]
    record = {
        "template_sha256": renderer.template_sha256,
        "tokenizer_sha256": renderer.tokenizer_sha256,
        "rows": len(rendered),
        "tokens": {"total": sum(lengths), "median": lengths[len(lengths) // 2], "max": lengths[-1]},
        "target_tokens": sum(r.n_target for r in rendered),
        "example": {
            "row_id": first.row_id,
            "prompt": tokenizer.decode([t for t, label in zip(first.input_ids, first.labels) if label == -100]),
            "target": tokenizer.decode([t for t, label in zip(first.input_ids, first.labels) if label != -100]),
        },
    }
    write_json(store.audit("render.json"), record)

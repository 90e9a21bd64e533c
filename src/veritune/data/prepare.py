"""From the study's data file to rows that can be trained on: load, families, zones, rendering, each written down.

The data version is the hash of the rows, families and zones. What is on disk under that version is never rewritten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.config.fields import BENCHMARK, MAIN_SET
from veritune.config.study import Study
from veritune.data.benchmarks import Benchmark, load_benchmarks, read_benchmarks, write_benchmarks
from veritune.data.contamination import check_contamination
from veritune.data.families import SPLIT_SAFE_THRESHOLD, FamilyResult, find_families
from veritune.data.family_decisions import AppliedDecisions, obey, read_family_decisions
from veritune.data.load import Loaded, load_rows, require_clean
from veritune.data.parity import stop_findings
from veritune.data.render import IGNORE, Renderer, render_rows
from veritune.data.review import require_usable
from veritune.data.scorer_files import check_files, scorer_files
from veritune.data.split import Split, SplitConfig, judge_split, split_zones
from veritune.data.stored import row_columns, row_of
from veritune.data.template import stops_of
from veritune.errors import DataError, GateError, StaleError
from veritune.records import (
    ZONES,
    ContaminationAudit,
    ContaminationFacts,
    DataFacts,
    DataManifest,
    Finding,
    RenderAudit,
    Rendered,
    RenderedExample,
    Row,
    SplitAudit,
    StopTokens,
    TokenLengths,
    ZoneSize,
    to_json,
)
from veritune.store import Store, hash_of, now, read_parquet, write_parquet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SET_COLUMN = "veritune_set"  # column of a row's data set, where the study has several


@dataclass(frozen=True)
class Prepared:
    """The rows of a study, the zone of each, and the tokens that the trainer will see. `facts` go into the contract."""

    version: str
    rows: tuple[Row, ...]
    family_of: Mapping[str, str]
    zone_of: Mapping[str, str]
    rendered: Mapping[str, Rendered]
    prompts: Mapping[str, tuple[int, ...]]
    facts: DataFacts
    benchmarks: Mapping[str, Benchmark] = field(default_factory=dict)

    def _benchmark_of(self, item: str) -> Benchmark | None:
        return next((b for b in self.benchmarks.values() if item in b.prompts), None)

    def place_of(self, item: str) -> tuple[str, str]:
        """Family and zone of an eval's item; the zone of a benchmark's item is `benchmark`."""
        own = self._benchmark_of(item)
        return (own.family_of[item], BENCHMARK) if own else (self.family_of[item], self.zone_of[item])

    def prompt_of(self, item: str) -> tuple[int, ...]:
        """Token ids of the prompt that a model is given for an item."""
        own = self._benchmark_of(item)
        return own.prompts[item] if own else self.prompts[item]

    def zone(self, zone: str) -> tuple[Rendered, ...]:
        """Rendered rows of one zone, in the order of the data file."""
        return tuple(self.rendered[row.id] for row in self.rows if self.zone_of[row.id] == zone)


def prepare(store: Store, study: Study, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Load, group, split and render the study's data, and write the records. Raises DataError or GateError."""
    loaded, set_hashes = _load(store, study)
    families, decided = _families(store, study, loaded.rows)
    family_of = {m.row_id: m.family for m in families.memberships}
    split = split_zones(loaded.rows, family_of, _split_config(study, loaded.rows))
    renderer = Renderer(tokenizer, study.train.max_length, template_kwargs=study.model.template_kwargs)
    rendered, problems = render_rows(loaded.rows, renderer)
    if problems:
        Finding.save_all(store.audit("findings.jsonl"), problems)
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise DataError(f"{problems[0].message}{more}.", fix="All are in audit/findings.jsonl. Nothing has trained.")
    version = _version(loaded.rows, family_of, split.zone_of)
    evidence = dict(Counter(m.evidence for m in families.memberships))
    facts = DataFacts(
        data_version=version,
        data_sha256=loaded.source_sha256,
        template_sha256=renderer.template_sha256,
        tokenizer_sha256=renderer.tokenizer_sha256,
        rendered_sha256=hash_of(rendered),
        zones={zone: _zone_counts(zone, split, family_of) for zone in ZONES},
        families=to_json({**families.summary, "evidence": evidence, **({"decisions": decided} if decided else {})}),
        target_tokens={z: sum(r.n_target for r in rendered if split.zone_of[r.row_id] == z) for z in ZONES},
        tokens={z: sum(len(r.input_ids) for r in rendered if split.zone_of[r.row_id] == z) for z in ZONES},
        contamination=None,
        template_kwargs=renderer.template_kwargs or None,
        data_sets_sha256=set_hashes or None,
    )
    scorers = scorer_files(store.root, study.evals)
    stops = _stop_gate(rendered, renderer)
    prompts = {row.id: renderer.prompt_ids(row) for row in loaded.rows}
    benchmarks = load_benchmarks(store.root, study.evals, renderer, set(family_of))
    _write(store, version, loaded.rows, families, split, facts)
    _split_gate(store, loaded.rows, family_of, split)
    contamination = _contamination_gate(store, study, loaded.rows, split, benchmarks)
    asked = write_benchmarks(store.data(version), benchmarks)
    _render_record(store, rendered, renderer, stops)
    _write_rendered(store, version, facts.rendered_sha256, rendered, prompts)
    facts = replace(facts, contamination=contamination, benchmarks=asked or None, scorers=scorers or None)
    by_id = {r.row_id: r for r in rendered}
    return Prepared(version, loaded.rows, family_of, split.zone_of, by_id, prompts, facts, benchmarks)


def _load(store: Store, study: Study) -> tuple[Loaded, dict[str, str]]:
    """The rows of `data.path` and of every further set, and the hashes of the sets' files.

    Rows of a set get its name in front of their ids and in `SET_COLUMN`. Raises DataError.
    """
    loaded = _load_one(store, study, study.data.path)
    rows, hashes = list(loaded.rows), {}
    for name, path in study.data.sets.items():
        more = _load_one(store, study, path)
        hashes[name] = more.source_sha256
        rows += [replace(r, id=f"{name}/{r.id}", meta={**r.meta, SET_COLUMN: name}) for r in more.rows]
    return replace(loaded, rows=tuple(rows)), hashes


def _load_one(store: Store, study: Study, path: str) -> Loaded:
    loaded = load_rows(
        store.root / path,
        columns=study.data.columns,
        family_field=study.data.family_field,
        id_field=study.data.id_field,
        train_on=study.data.train_on,
    )
    require_clean(loaded)
    require_usable(store.root / path, loaded.source_sha256, loaded.rows)
    return loaded


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


def load_prepared(store: Store, facts: DataFacts) -> Prepared:
    """The frozen data of a study, read back from disk. `facts` are the contract's.

    Raises StaleError when rows, families, zones or token ids on disk are not the frozen ones.
    """
    version, folder = facts.data_version, store.data(facts.data_version)
    path = _rendered_file(store, version, facts.rendered_sha256)
    for needed in (path, *(folder / name for name in ("rows.parquet", "families.parquet", "split.parquet"))):
        if not needed.exists():
            raise StaleError(f"{needed} is missing.", fix="Make it again: veritune freeze STUDY")
    rows = tuple(row_of(r) for r in read_parquet(folder / "rows.parquet"))
    family_of = {r["id"]: r["family"] for r in read_parquet(folder / "families.parquet")}
    zone_of = {r["id"]: r["zone"] for r in read_parquet(folder / "split.parquet")}
    rendered, prompts = {}, {}
    for r in read_parquet(path):
        rendered[r["id"]] = Rendered(r["id"], tuple(r["input_ids"]), tuple(r["labels"]))
        prompts[r["id"]] = tuple(r["prompt_ids"])
    found = {"data_version": _version(rows, family_of, zone_of), "rendered_sha256": hash_of(list(rendered.values()))}
    for name, value in found.items():
        frozen: str = getattr(facts, name)
        if value != frozen:
            raise StaleError(
                f"{folder}: {name} is {value[:12]}, the contract has {frozen[:12]}: it was edited.",
                fix="Restore the folder from a copy, or make it again: veritune freeze STUDY. Nothing has trained.",
            )
    check_files(store.root, facts.scorers or {})
    benchmarks = read_benchmarks(folder, facts.benchmarks or {})
    return Prepared(version, rows, family_of, zone_of, rendered, prompts, facts.of_data(), benchmarks)


def _version(rows: Sequence[Row], family_of: Mapping[str, str], zone_of: Mapping[str, str]) -> str:
    """The data version: rows, families and zones, hashed."""
    return hash_of([rows, sorted(family_of.items()), sorted(zone_of.items())])[:12]


def _families(store: Store, study: Study, rows: tuple[Row, ...]) -> tuple[FamilyResult, AppliedDecisions | None]:
    """The families, and what became of people's decisions. Raises DataError for one that cannot be obeyed."""
    if study.data.family_field and all(row.family is None for row in rows):
        columns = ", ".join(sorted({key for row in rows for key in row.meta})) or "none"
        raise DataError(
            f"data.family_field: no row has a value in {study.data.family_field!r}.", fix=f"Columns there: {columns}."
        )
    families = find_families(rows, near=study.data.near_duplicates, threshold=SPLIT_SAFE_THRESHOLD)
    if study.data.family_decisions is None:
        return families, None
    path = store.root / study.data.family_decisions
    families, decided = obey(rows, families, read_family_decisions(path), study.data.family_decisions)
    if found := decided.findings():
        raise DataError(f"data.family_decisions: {found[0].message}.", fix="Undo those decisions. Nothing has trained.")
    return families, decided


def _untrained(study: Study, rows: Sequence[Row]) -> frozenset[str]:
    """Ids of the rows of data sets that no condition trains on: in a trained family they are siblings."""
    if not study.data.sets:
        return frozenset()
    named = [c.data for c in study.conditions.values() if c.data is not None]
    trained = {name for one in named for name in ([one] if isinstance(one, str) else one)}
    return frozenset(row.id for row in rows if str(row.meta.get(SET_COLUMN, MAIN_SET)) not in trained)


def _split_config(study: Study, rows: Sequence[Row]) -> SplitConfig:
    plan = study.split
    return SplitConfig(
        seed=plan.seed,
        stranger=plan.stranger,
        validation=plan.validation,
        sibling=plan.sibling,
        few_families=study.thresholds.families.few_held_out,
        by=plan.by,
        field=plan.field,
        held_sources=plan.held_sources,
        held_from=plan.held_from,
        kept_back=_untrained(study, rows),
    )


def _zone_counts(zone: str, split: Split, family_of: Mapping[str, str]) -> ZoneSize:
    ids = [row_id for row_id, where in split.zone_of.items() if where == zone]
    return ZoneSize(len(ids), len({family_of[i] for i in ids}))


def _write(
    store: Store, version: str, rows: tuple[Row, ...], families: FamilyResult, split: Split, facts: DataFacts
) -> None:
    folder = store.data(version)
    manifest = folder / "manifest.json"
    if manifest.exists():
        return
    write_parquet(folder / "rows.parquet", row_columns(rows))
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
    DataManifest(version, now(), (), {}, facts).save(manifest)


def _split_gate(store: Store, rows: tuple[Row, ...], family_of: Mapping[str, str], split: Split) -> None:
    """Write how the zones overlap. Raises GateError where a family straddles what must be apart."""
    findings, counts = judge_split(split.zone_of, rows, family_of)
    SplitAudit(counts, tuple(findings), tuple(split.warnings)).save(store.audit("split.json"))
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise GateError(
            f"split: {errors[0].message}.", fix="Read audit/split.json for the overlapping rows. Nothing has trained."
        )


def _contamination_gate(
    store: Store, study: Study, rows: tuple[Row, ...], split: Split, benchmarks: Mapping[str, Benchmark]
) -> ContaminationFacts:
    """Look in the trained rows for the items of every named benchmark and of the held-out zones; the counts.

    Raises GateError on an exact overlap. Siblings are left out: they share a family with trained rows by design.
    """
    evals: dict[str, Sequence[Row]] = {}
    for name, path in study.data.evals.items():
        loaded = load_rows(store.root / path)
        require_clean(loaded)
        evals[name] = loaded.rows
    for name, benchmark in benchmarks.items():
        evals[f"benchmark {name}"] = benchmark.rows
    for zone in ("stranger", "validation"):
        evals[f"zone {zone}"] = [row for row in rows if split.zone_of[row.id] == zone]
    trained = [row for row in rows if split.zone_of[row.id] == "seen"]
    result = check_contamination(trained, evals)
    gate = result.gate()
    ContaminationAudit(gate, tuple(result.findings())).save(store.audit("contamination.json"))
    if gate.status == "failed":
        raise GateError(
            f"contamination: {gate.message} First: {gate.evidence[0]}.",
            fix="Read audit/contamination.json, then drop the rows or the evals; nothing has trained.",
        )
    return ContaminationFacts(gate.status, result.by_eval, _by_set(study, trained, evals))


def _by_set(
    study: Study, trained: Sequence[Row], evals: Mapping[str, Sequence[Row]]
) -> dict[str, dict[str, dict[str, int]]] | None:
    """The counts for each data set on its own, where the study has several."""
    if not study.data.sets:
        return None
    rows_of: dict[str, list[Row]] = {name: [] for name in (MAIN_SET, *study.data.sets)}
    for row in trained:
        rows_of[str(row.meta.get(SET_COLUMN, MAIN_SET))].append(row)
    return {name: check_contamination(rows, evals).by_eval for name, rows in rows_of.items()}


def _stop_gate(rendered: tuple[Rendered, ...], renderer: Renderer) -> StopTokens:
    """What answers end on and what generation stops on. Raises DataError where no eval would ever see an answer end.

    Evals stop on the tokenizer's end token beside the shipped ones (`evaluate.generate.stop_tokens`); where the shipped
    ones alone would run on, the record says so.
    """
    tokenizer = renderer.tokenizer
    ends = {r.labels[i] for r in rendered for i in range(len(r.labels)) if _ends(r.labels, i)}
    stops = stops_of(tokenizer)
    ours = {*stops.ids, tokenizer.eos_token_id} - {None}
    names = tokenizer.convert_ids_to_tokens
    if not ends <= ours:
        missing, there = (", ".join(map(str, names(sorted(s)))) or "none" for s in (ends - ours, ours))
        raise DataError(
            f"answers are trained to end on {missing}, generation stops on {there} ({stops.source}): it would run on.",
            fix="Add the end token to eos_token_id in the model's generation_config.json. Nothing has trained.",
        )
    warnings = tuple(f.message for f in stop_findings(ends, stops, tokenizer))
    return StopTokens(tuple(names(sorted(ends))), tuple(names(sorted(stops.ids))), stops.source, warnings)


def _ends(labels: Sequence[int], i: int) -> bool:
    """Whether a turn's loss ends at token `i`: the next carries none."""
    return labels[i] != IGNORE and (i + 1 == len(labels) or labels[i + 1] == IGNORE)


def _render_record(store: Store, rendered: tuple[Rendered, ...], renderer: Renderer, stops: StopTokens) -> None:
    lengths = sorted(len(r.input_ids) for r in rendered)
    first, tokenizer = rendered[0], renderer.tokenizer
    masked = [
        [t for t, label in zip(first.input_ids, first.labels) if (label == -100) is hidden] for hidden in (True, False)
    ]
    RenderAudit(
        template_sha256=renderer.template_sha256,
        tokenizer_sha256=renderer.tokenizer_sha256,
        rows=len(rendered),
        tokens=TokenLengths(sum(lengths), lengths[len(lengths) // 2], lengths[-1]),
        target_tokens=sum(r.n_target for r in rendered),
        example=RenderedExample(first.row_id, *(tokenizer.decode(ids) for ids in masked)),
        template_variables={name: renderer.template_kwargs.get(name) for name in renderer.variables},
        stops=stops,
    ).save(store.audit("render.json"))

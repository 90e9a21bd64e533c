"""`veritune bundle`: one run's weights with everything that says what they are, tied by one manifest of hashes.

    manifest.json            every file's SHA-256 and size; the bundle's id is the manifest's own hash
    adapter/ or model/       the weights, safetensors only; both where merged weights are given
    tokenizer/               tokenizer and chat template
    base.json                the base by reference and by hash, its tensors' shapes, its config
    generation_config.json   as it ships with the base
    golden.json              prompts and greedy token ids, recorded with the packed files loaded
    README.md                the model card           datasheet.md, datasheet.json   about the data
    sbom.cdx.json            CycloneDX 1.6            licences.json
    evidence/                the study's records as they were sealed: contract, verdicts, scores, gates, waivers
    model.sig                the signature, where a key was given

The same inputs give the same bytes, the signature apart: no clock is read; times are those of the records.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from veritune import contract as contracts
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.config.train import Model
from veritune.counting import many
from veritune.data.datasheet import write_datasheet
from veritune.errors import GateError, InputError, ModelError, StaleError
from veritune.records import (
    BaseRecord,
    BundledBase,
    BundledData,
    BundledWeights,
    BundleManifest,
    ContractEntry,
    Facts,
    JsonLike,
    PackedFile,
    RunManifest,
    Score,
    StudyVerdicts,
    TrainingRecord,
    Verdict,
)
from veritune.release.bundle.card import licence_summary, model_card
from veritune.release.bundle.parts import MANIFEST, SIGNATURE, content_problem, folder_tensors, json_of, walk
from veritune.release.bundle.sbom import bill
from veritune.release.bundle.sign import sign
from veritune.release.bundle.verify import EVIDENCE, manifest_hash, verify_bundle
from veritune.release.gate.candidate import open_case
from veritune.release.gate.evidence import Subject, files_digest, read_evidence, weight_files, weights_digest
from veritune.release.parity import golden
from veritune.report.lineage_figures import write_lineage
from veritune.seal import DRAWN
from veritune.seal import verify as verify_study
from veritune.store import (
    Store,
    read_json,
    sha256_file,
    sha256_text,
    staged_folder,
    write_json,
    write_text,
)
from veritune.train.models import BUILTIN, HUB_NAME, ModelRef, resolve, weight_hashes

TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TOKENIZER_FILES += ("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja")
TOKENIZER_FILES += ("chat_template.json", "additional_chat_templates/*.jinja")
EVIDENCE_FILES = (
    "contract.lock.json", "seal.json", "verdict.json", "audit/*.json", "audit/*.jsonl", "data/*/manifest.json",
    "runs/*/manifest.json", "runs/*/training.json", "runs/*/summary.json", "runs/*/probes/*.json",
    "runs/*/scores/*.json", "runs/*/scores/*.jsonl", "release/*.json", "release/*.jsonl", "release/*.md",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BundleSource:
    """What to pack. `run_id` or `adapter` names the weights; `model` is the base's present place, if it is not the
    study's reference; `merged` is a folder with base and adapter merged; `licence` is the release's.
    """

    study: Path
    run_id: str | None = None
    adapter: Path | None = None
    model: Path | None = None
    merged: Path | None = None
    licence: str | None = None
    prompts: int = golden.PROMPTS


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """A finished bundle. `gate` is the status of its gate record for these exact weights, None without a record."""

    folder: Path
    id: str
    files: int
    bytes: int
    gate: str | None
    signed: bool


def make_bundle(source: BundleSource, out: Path, *, key: Path | None = None) -> PackedBundle:
    """Pack a bundle into `out`, which must not exist yet, and verify it. `key` is the key to sign with.

    Raises StaleError where the study was edited after it was sealed, GateError where the parts do not belong together
    or the card says what the records do not carry, InputError and ModelError for what cannot be packed.
    """
    if out.exists():
        raise InputError(f"{out} already exists.", fix="Name a new folder: --out DIR.")
    plan = _plan(source)
    with staged_folder(out) as partial:
        manifest = _pack(plan, partial)
        checked = verify_bundle(partial)
        if checked.findings:
            raise GateError(
                f"the parts do not fit together: {checked.findings[0].message} ({len(checked.findings)} findings).",
                fix="Use the run, base and tokenizer that the contract names.",
            )
        if key is not None:
            sign(partial, key)
    size = sum(f.bytes for f in manifest.files.values())
    return PackedBundle(out, manifest.hash, len(manifest.files), size, gate_state(out, manifest), key is not None)


def packed_text(packed: PackedBundle) -> str:
    """One line that says what was packed."""
    gate = packed.gate or "no gate record: it cannot go to production yet (run veritune gate)"
    signed = "signed" if packed.signed else "not signed"
    size = f"{packed.files} files, {packed.bytes:,} bytes"
    return f"wrote {packed.folder}: bundle {packed.id[:12]}, {size}, {signed}; gate: {gate}"


# ---------------------------------------------------------------- what goes in


@dataclass(frozen=True)
class _Plan:
    source: BundleSource
    store: Store
    study: Study
    entry: ContractEntry
    run: RunManifest
    weights: Path
    base: ModelRef

    @property
    def facts(self) -> Facts:
        return self.entry.terms.facts

    @property
    def kind(self) -> Literal["adapter", "merged", "full"]:
        full = (self.weights / "config.json").is_file() and not (self.weights / "adapter_config.json").is_file()
        return "full" if full else "merged" if self.source.merged else "adapter"

    @property
    def subject(self) -> Subject:
        merged = weights_digest(self.source.merged) if self.source.merged else None
        base = files_digest(self.facts.model.files)
        return Subject(base, weights_digest(self.weights), merged)


def _plan(source: BundleSource) -> _Plan:
    store = Store.of(source.study)
    if not store.contract_file.exists():
        raise InputError(
            f"{store.root} has no contract: nothing has run.", fix=f"Run it first: veritune run {store.root}"
        )
    _refuse_edited(store)
    entry = contracts.read(store).last
    study = contracts.study_of(entry.terms)
    run, weights = _run(store, source)
    return _Plan(source, store, study, entry, run, weights, _base(source, store, study, entry.terms.facts))


def _refuse_edited(store: Store) -> None:
    """Raises StaleError when a file that goes into the bundle is not as the study sealed it."""
    drawn = (*DRAWN, "study.yaml", "events.jsonl")
    wrong = [f for f in verify_study(store.root) if f.check != "file.added" and not (f.source or "").startswith(drawn)]
    if wrong:
        raise StaleError(
            f"{store.root}: {wrong[0].message} ({len(wrong)} findings).",
            fix="Restore the files from a copy, or run the study again.",
        )


def _run(store: Store, source: BundleSource) -> tuple[RunManifest, Path]:
    """The run's manifest and the folder of its weights."""
    manifests = [RunManifest.load(p.parent / "manifest.json") for p in sorted(store.runs.glob("*/training.json"))]
    runs = {m.run_id: m for m in manifests if m.condition != BASELINE}
    trained = {name: TrainingRecord.load(store.run(name) / "training.json") for name in runs}
    folders = {name: record.weights_in(store.root) for name, record in trained.items() if record.checkpoint is not None}
    runs = {name: runs[name] for name in folders}  # a run that chose a setting kept no weights
    if source.adapter is not None:
        digest = weights_digest(source.adapter)
        found = [name for name, folder in folders.items() if weights_digest(folder) == digest]
        if not found:
            raise GateError(
                f"{source.adapter} does not hold the weights of any run of this study, so the evidence would be of "
                "another model.",
                fix=f"Pack one of {', '.join(runs)} with --run.",
            )
        return runs[found[0]], source.adapter
    name = source.run_id or _chosen(store)
    if name not in runs:
        raise InputError(f"no trained run {name!r} in {store.root}.", fix=f"Runs: {', '.join(runs) or 'none'}.")
    return runs[name], folders[name]


def _chosen(store: Store) -> str:
    """The run that the release policy names."""
    try:
        return open_case(store.root).candidate.run_id
    except InputError as exc:
        raise InputError(exc.message, fix="Name the run to ship: --run RUN_ID.") from None


def _base(source: BundleSource, store: Store, study: Study, facts: Facts) -> ModelRef:
    """The base model's folder, its files those of the contract."""
    if facts.model.backend is not None:
        raise GateError(
            f"the adapter was trained on a server ({facts.model.backend.base_model}) whose base has no hash, so a "
            "bundle could not identify its base.",
            fix="Train the condition to ship with `backend: local`.",
        )
    wanted = study.model.model_dump() | ({"path": str(source.model.resolve())} if source.model else {})
    ref = resolve(Model(**wanted), store.root)
    found = weight_hashes(ref)
    if found != facts.model.files:
        raise GateError(
            f"{ref.path} is base {files_digest(found)[:12]}, but the adapter was trained for base "
            f"{files_digest(facts.model.files)[:12]}.",
            fix="Name the folder with the contract's base: --base DIR.",
        )
    return ref


# ---------------------------------------------------------------- packing


def _pack(plan: _Plan, out: Path) -> BundleManifest:
    manifest = _identity(plan)
    _copy_weights(plan, out)
    _copy(plan.base.path, TOKENIZER_FILES, out / "tokenizer")
    _copy(plan.base.path, ("generation_config.json",), out)
    _copy(plan.store.root, EVIDENCE_FILES, out / EVIDENCE)
    _base_record(plan, manifest).save(out / "base.json")
    sheet = _datasheet(plan, out)
    licences = licence_summary(plan.base.path, sheet, plan.source.licence)
    write_json(out / "licences.json", licences)
    write_text(out / "README.md", model_card(plan.store, manifest, licences))
    write_json(out / "sbom.cdx.json", bill(manifest, plan.entry, _bill_facts(plan, out, sheet)))
    _refuse_contents(out)
    _record_golden(plan, manifest, out)
    files = {n: PackedFile(sha256_file(p), p.stat().st_size) for n, p in sorted(walk(out).files.items())}
    manifest = replace(manifest, files={n: f for n, f in files.items() if n not in (MANIFEST, SIGNATURE)})
    manifest = replace(manifest, hash=manifest_hash(manifest))
    manifest.save(out / MANIFEST)
    return manifest


def _identity(plan: _Plan) -> BundleManifest:
    """The manifest without its files."""
    builtin = plan.study.model.path == BUILTIN
    model = plan.facts.model
    reference = HUB_NAME if builtin else plan.study.model.path
    elsewhere = TrainingRecord.load(plan.store.run(plan.run.run_id) / "training.json").elsewhere
    return BundleManifest(
        name=plan.study.name,
        run_id=plan.run.run_id,
        condition=plan.run.condition,
        seed=plan.run.seed,
        method=plan.run.method.get("method"),
        contract=str(plan.entry.hash),
        weights=BundledWeights(plan.kind, "adapter" if plan.kind == "adapter" else "model"),
        base=BundledBase(
            model.name, reference, builtin, plan.study.model.revision, plan.study.model.dtype, model.files
        ),
        subject=plan.subject,
        data=BundledData(plan.facts.data_version, plan.facts.data_sha256),
        template_sha256=plan.facts.template_sha256,
        tokenizer_sha256=plan.facts.tokenizer_sha256,
        files={},
        hash="",
        trained_elsewhere=elsewhere.not_checked if elsewhere is not None else None,
    )


def _copy_weights(plan: _Plan, out: Path) -> None:
    if plan.kind == "full":
        if plan.source.merged:
            raise InputError("a full fine-tune has nothing to merge.", fix="Leave out --merged.")
        _copy_files(plan.weights, [*weight_files(plan.weights), *_indexes(plan.weights)], out / "model")
        return
    _copy_files(plan.weights, list(weight_files(plan.weights)), out / "adapter")
    if plan.source.merged:
        merge = read_evidence(plan.store, "merge")
        digest = plan.subject.merged
        if merge is not None and merge.subject.merged not in (None, digest):
            raise GateError(
                f"{plan.source.merged} is not what merge parity compared: its digest is {str(digest)[:12]}, but "
                f"release/merge.json has {str(merge.subject.merged)[:12]}.",
                fix="Compare these weights first (veritune merge-parity), or pack the compared ones.",
            )
        _copy_files(
            plan.source.merged, [*weight_files(plan.source.merged), *_indexes(plan.source.merged)], out / "model"
        )


def _indexes(folder: Path) -> list[str]:
    return [
        p.name
        for p in [*sorted(folder.glob("*.safetensors.index.json")), folder / "generation_config.json"]
        if p.is_file()
    ]


def _copy(root: Path, patterns: Sequence[str], out: Path) -> None:
    """Copy what matches, same names under `out`. A link is followed: what it leads to is packed as a plain file."""
    found = sorted({p for pattern in patterns for p in root.glob(pattern) if p.is_file()})
    _copy_files(root, [p.relative_to(root).as_posix() for p in found], out)


def _copy_files(root: Path, names: Sequence[str], out: Path) -> None:
    for name in names:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)


def _refuse_contents(out: Path) -> None:
    tree = walk(out)
    problems = [f.message for f in tree.findings]
    problems += [f"{n} {p}" for n, path in sorted(tree.files.items()) if (p := content_problem(n, path))]
    if problems:
        count = many(len(problems), "problems")
        raise ModelError(f"cannot be packed: {problems[0]} ({count}).", fix="Save the model without that file.")


def _base_record(plan: _Plan, manifest: BundleManifest) -> BaseRecord:
    """The base by reference, hash, shapes and config, so that a bundle can be judged without it."""
    config = json_of(plan.base.path / "config.json")
    tensors = folder_tensors(plan.base.path)
    rows = config.get("vocab_size")
    embedded = [s[0] for k, (_, s) in tensors.items() if k.endswith(("embed_tokens.weight", "wte.weight")) and s]
    return BaseRecord(manifest.base, tensors, embedded[0] if embedded else rows, config)


def _datasheet(plan: _Plan, out: Path) -> dict[str, JsonLike]:
    """Audit the frozen data again and write its datasheet. Raises StaleError when the data is not the contract's."""
    from veritune.data.audit import AuditConfig, audit_data

    data = plan.study.data
    config = AuditConfig(data.columns, data.family_field, data.id_field, near_duplicates=data.near_duplicates)
    found = audit_data(plan.store.root / data.path, config=config)
    if found.sha256 != plan.facts.data_sha256:
        raise StaleError(
            f"{plan.store.root / data.path} has changed since the contract was frozen, so its datasheet would "
            "describe other data.",
            fix="Restore the data file from a copy.",
        )
    draw = partial(write_lineage, data=plan.store.root / data.path)
    write_datasheet(replace(found, source=data.path), out, draw)
    return read_json(out / "datasheet.json")


def _bill_facts(plan: _Plan, out: Path, sheet: Mapping[str, Any]) -> dict[str, JsonLike]:
    config = json_of(plan.base.path / "config.json")
    verdicts = StudyVerdicts.load(plan.store.verdict_file).verdicts if plan.store.verdict_file.exists() else ()
    weights = {n: sha256_file(p) for n, p in walk(out).files.items() if n.startswith(("adapter/", "model/"))}
    return {
        "family": str(config.get("model_type", "unknown")),
        "architecture": str((config.get("architectures") or ["unknown"])[0]),
        "data_name": sheet["source"],
        "weight_files": weights,
        "metrics": list(_metrics(verdicts)),
        "limitations": list(dict.fromkeys(line for v in verdicts for line in v.may_not)),
    }


def _metrics(verdicts: Sequence[Verdict]) -> Iterator[dict[str, JsonLike]]:
    for verdict in verdicts:
        for estimate in verdict.estimates[:1]:
            if estimate.value is not None:
                row = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
                yield {"type": estimate.name, "slice": f"{verdict.claim}: {verdict.status}", **row}


# ---------------------------------------------------------------- golden outputs


def _record_golden(plan: _Plan, manifest: BundleManifest, out: Path) -> None:
    """Load what was packed and record its answers to items that the run was scored on."""
    model, tokenizer = golden.load_released(out, manifest, plan.base.path)
    limit = max(spec.max_new_tokens for spec in plan.study.evals.values())
    found = golden.record(model, tokenizer, _prompts(plan), limit, plan.study.model.template_kwargs)
    write_json(out / golden.GOLDEN, {**found, "subject": manifest.subject})


def _prompts(plan: _Plan) -> list[Any]:
    """Rows by the hash of their ids, held-out families first: the same rows every time, and no one chose them."""
    from veritune.data.prepare import load_prepared

    data = load_prepared(plan.store, plan.facts)
    scores = sorted((plan.store.run(plan.run.run_id) / "scores").glob("*.jsonl"))
    asked = {score.item_id for path in scores for score in Score.load_all(path)}
    order = {"stranger": 0, "sibling": 1, "seen": 2, "validation": 3}
    rows = [row for row in data.rows if row.id in asked]
    rows.sort(key=lambda row: (order[data.zone_of[row.id]], sha256_text(row.id)))
    return rows[: plan.source.prompts]


# ---------------------------------------------------------------- the gate record inside


def gate_state(bundle: Path, manifest: BundleManifest) -> str | None:
    """The status of a bundle's gate record for exactly these weights today: `passed`, `failed`, `undecided`, or
    `expired` if a waiver has ended or the record is for other weights; None if there is no record.
    """
    from veritune.release.gate.gates import GATES_FILE, gate_record, passes_for

    store = Store(bundle / EVIDENCE)
    if not store.release(GATES_FILE).exists():
        return None
    record = gate_record(store)
    if passes_for(record, served_hash(manifest)) and record.contract == manifest.contract:
        return "passed"
    return record.status if record.status != "passed" else "expired"


def served_hash(manifest: BundleManifest) -> str:
    """`Subject.hash` of what the bundle serves: base and adapter, or base and merged weights."""
    subject = manifest.subject
    return subject.hash if subject.merged is None else Subject(subject.base, subject.merged).hash

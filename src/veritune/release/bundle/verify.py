"""`veritune verify BUNDLE`: every file against the manifest, every part against the others, and the signature.

Two questions. *Is it as it was packed?* Each missing, added, changed, renamed or linked file is named. *Does it belong
together?* The evidence lies in the bundle as the study sealed it, so the parts are held against each other: the run
against the contract it was planned by, the adapter against the sealed checkpoint and the base's tensors, tokenizer and
template against their frozen hashes, the vocabulary against the base's embedding. Somebody who rewrites all of it
consistently is not found by hashes: that is what the signature is for (`--public-key`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from veritune import contract as contracts
from veritune.data.render import Renderer
from veritune.errors import FormatError, InputError, StaleError, VerituneError
from veritune.records import (
    BaseRecord,
    BundleManifest,
    ContractEntry,
    DataManifest,
    Facts,
    Finding,
    PackedFile,
    RunManifest,
    Subject,
    TrainingRecord,
    to_json,
)
from veritune.records.base import parse
from veritune.release.bundle.parts import (
    MANIFEST,
    SIGNATURE,
    Tree,
    content_problem,
    finding,
    folder_tensors,
    json_bytes,
    json_of,
    kind_problem,
    name_problem,
    walk,
)  # fmt: skip
from veritune.release.bundle.sign import signature_problem
from veritune.release.gate.evidence import files_digest, own_hash, weights_digest
from veritune.release.parity.golden import GOLDEN, golden_problem
from veritune.store import Store, hash_of, sha256_file
from veritune.train.models import ModelRef, load_tokenizer

EVIDENCE = "evidence"
NEEDED: tuple[str, ...] = (
    "README.md",
    "base.json",
    GOLDEN,
    "sbom.cdx.json",
    "licences.json",
    "evidence/contract.lock.json",
)
NEEDED += ("evidence/seal.json", "datasheet.md", "datasheet.json")


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a verification. `signed` is None if no key was given to check with."""

    bundle: str
    id: str
    files: int
    findings: tuple[Finding, ...]
    signed: bool | None
    has_signature: bool


def is_bundle(path: str | Path) -> bool:
    """Whether a folder claims to be a bundle."""
    folder = Path(path)
    return (folder / MANIFEST).is_file() or ((folder / EVIDENCE).is_dir() and not (folder / "study.yaml").exists())


def manifest_hash(manifest: BundleManifest) -> str:
    """The bundle's id: the hash of everything in the manifest except the id itself."""
    return own_hash(manifest)


def read_manifest(folder: Path) -> BundleManifest:
    """The manifest of a bundle, with its own hash checked. Raises FormatError or StaleError."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise FormatError(f"{folder} has no {MANIFEST}: it is not a bundle.", fix="Make one: veritune bundle STUDY")
    manifest = parse(BundleManifest, json_bytes(path), str(path))
    try:
        digest = manifest_hash(manifest)
    except ValueError as exc:
        raise FormatError(f"{path} is damaged: {exc}.", fix="Fetch or copy the bundle again.") from exc
    if digest != manifest.hash:
        raise StaleError(f"{path} was edited after it was written.", fix="Fetch or copy the bundle again.")
    return manifest


def verify_bundle(path: str | Path, public_key: Path | None = None) -> Checked:
    """All findings about a bundle; none if it is intact. Raises FormatError if it is not a bundle."""
    folder = Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder.", fix="Name the bundle's folder.")
    try:
        manifest = read_manifest(folder)
    except StaleError as exc:
        return Checked(str(folder), "", 0, (finding("manifest", MANIFEST, exc.message),), None, False)
    tree = walk(folder)
    findings = [*tree.findings, *_files(manifest.files, tree), *_contents(tree)]
    if not findings:
        findings = list(_belonging(folder, manifest))
    signed: bool | None = None
    if public_key is not None:
        problem = signature_problem(folder, public_key)
        signed = problem is None
        if problem:
            findings.append(finding("signature", SIGNATURE, problem))
    has = SIGNATURE in tree.files
    return Checked(str(folder), manifest.hash, len(manifest.files), tuple(findings), signed, has)


def verify_text(found: Checked) -> str:
    """The verification of a bundle as text for the screen."""
    if found.findings:
        return "\n".join(f"x {f.message}" for f in found.findings) + f"\n{len(found.findings)} findings"
    unsigned = (
        ("it has a signature that was not checked (use --public-key)") if found.has_signature else "it is not signed"
    )
    signed = "the signature is valid" if found.signed else unsigned
    return f"verified: bundle {found.id[:12]}, {found.files} files as they were packed and belonging together; {signed}"


# ---------------------------------------------------------------- as it was packed


def _files(listed: Mapping[str, PackedFile], tree: Tree) -> Iterator[Finding]:
    """Missing, added, changed, renamed: one finding a file."""
    for name in sorted(listed):
        problem = name_problem(name) or kind_problem(name)
        if problem:
            yield finding("name", name, f"{name!r}, which the manifest lists, {problem}")
    found = {n: p for n, p in tree.files.items() if n not in (MANIFEST, SIGNATURE)}
    named = {f.source for f in tree.findings}
    missing = {n: listed[n].sha256 for n in sorted(set(listed) - set(found)) if n not in named}
    added = {n: sha256_file(found[n]) for n in sorted(set(found) - set(listed))}
    for name, digest in missing.items():
        other = next((a for a, d in added.items() if d == digest), None)
        if other is None:
            yield finding("missing", name, f"{name} is missing")
        else:
            del added[other]
            yield finding("renamed", name, f"{name} was renamed to {other}")
    for name in added:
        yield finding("added", name, f"{name} was not there when the bundle was packed")
    for name in sorted(set(listed) & set(found)):
        if sha256_file(found[name]) != listed[name].sha256:
            yield finding("changed", name, f"{name} was changed after the bundle was packed")


def _contents(tree: Tree) -> Iterator[Finding]:
    for name, path in sorted(tree.files.items()):
        try:
            problem = None if name == SIGNATURE else content_problem(name, path)
        except FormatError as exc:
            problem = exc.message
        if problem:
            yield finding("kind", name, f"{name} {problem}")


# ---------------------------------------------------------------- belonging together


@dataclass(frozen=True)
class _Parts:
    folder: Path
    manifest: BundleManifest

    @property
    def evidence(self) -> Store:
        return Store(self.folder / EVIDENCE)

    @cached_property
    def contract(self) -> ContractEntry:
        return contracts.read(self.evidence).last

    @property
    def facts(self) -> Facts:
        return self.contract.terms.facts

    @cached_property
    def base(self) -> BaseRecord:
        path = self.folder / "base.json"
        return parse(BaseRecord, json_bytes(path), str(path))

    @cached_property
    def sealed(self) -> Mapping[str, str]:
        record = json_of(self.folder / EVIDENCE / "seal.json")
        if hash_of({k: v for k, v in record.items() if k != "hash"}) != record.get("hash"):
            raise StaleError("evidence/seal.json was edited after it was written.")
        files: Mapping[str, str] = record["files"]
        return files

    def data_version(self, name: str) -> str:
        return parse(DataManifest, json_bytes(self.folder / name), name).version

    def _run_file(self, name: str) -> Path:
        return self.folder / EVIDENCE / "runs" / self.manifest.run_id / name

    @cached_property
    def run(self) -> RunManifest:
        path = self._run_file("manifest.json")
        return parse(RunManifest, json_bytes(path), str(path))

    @cached_property
    def training(self) -> TrainingRecord:
        path = self._run_file("training.json")
        return parse(TrainingRecord, json_bytes(path), str(path))

    @property
    def subject(self) -> Subject:
        return self.manifest.subject


def _belonging(folder: Path, manifest: BundleManifest) -> Iterator[Finding]:
    missing = [name for name in NEEDED if name not in manifest.files]
    if missing:
        yield finding("incomplete", missing[0], f"{missing[0]}, which every bundle needs, is missing")
        return
    parts = _Parts(folder, manifest)
    for name, check in _CHECKS.items():
        try:
            yield from (finding(name, source, message) for source, message in check(parts))
        except VerituneError as exc:
            yield finding(name, MANIFEST, f"{name} cannot be checked: {exc.message}")
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError, RecursionError) as exc:
            yield finding(name, MANIFEST, f"{name} cannot be checked: {type(exc).__name__} {exc}")


Found = Iterator[tuple[str, str]]


def _contract(parts: _Parts) -> Found:
    if parts.contract.hash != parts.manifest.contract:
        yield "evidence/contract.lock.json", "the contract is not the one that the manifest names"


def _evidence(parts: _Parts) -> Found:
    """What the study had sealed lies here as it was sealed. Its release folder has chains of its own."""
    for name in parts.manifest.files:
        inside = name.removeprefix(f"{EVIDENCE}/")
        if inside == name or inside == "seal.json" or inside.startswith("release/"):
            continue
        if parts.sealed.get(inside) != parts.manifest.files[name].sha256:
            yield name, f"{name} differs from the file that the study sealed"


def _run(parts: _Parts) -> Found:
    """The run is one that this contract plans: its id holds the hash of base, data, method, schedule and seed."""
    from veritune.train.schedule import plan_cells

    study = contracts.study_of(parts.contract.terms)
    record = parts.run
    rates = dict.fromkeys(study.conditions, record.lr) if study.selection is not None else None
    planned = {cell.run_id: cell for cell in plan_cells(study, parts.facts, rates)}
    cell = planned.get(parts.manifest.run_id)
    if cell is None or cell.input_hash != record.input_hash:
        run = parts.manifest.run_id
        yield "evidence/runs", f"run {run} is not a run that the contract plans: its base, data or method differs"


def _base(parts: _Parts) -> Found:
    files = parts.facts.model.files
    for where, found in (("base.json", parts.base.base.files), (MANIFEST, parts.manifest.base.files)):
        if found != files:
            trained, this = files_digest(files)[:12], files_digest(found)[:12]
            yield where, f"{where} names base {this}, but the contract's adapter was trained for base {trained}"
    if parts.subject.base != files_digest(files):
        yield MANIFEST, "the manifest names another base than the contract"


def _weights(parts: _Parts) -> Found:
    """The weights are the sealed checkpoint's, and their tensors fit the base's."""
    kind, folder = parts.manifest.weights.kind, parts.folder
    candidate = folder / ("model" if kind == "full" else "adapter")
    if weights_digest(candidate) != parts.subject.candidate:
        yield candidate.name, f"{candidate.name} holds other weights than the manifest names"
    checkpoint = parts.training.checkpoint
    for path in sorted(candidate.glob("*.safetensors")):
        if parts.sealed.get(f"{checkpoint}/{path.name}") != sha256_file(path):
            name = f"{candidate.name}/{path.name}"
            yield name, f"{name} is not the checkpoint that run {parts.manifest.run_id} sealed"
    tensors = parts.base.tensors
    if kind != "full":
        yield from _adapter_fits(folder, tensors)
    if parts.manifest.weights.serves == "model":
        yield from _model_fits(folder, tensors)
    if kind == "merged" and weights_digest(folder / "model") != parts.subject.merged:
        yield "model", "model holds other merged weights than the manifest names"


def _adapter_fits(folder: Path, base: Mapping[str, tuple[str, tuple[int, ...]]]) -> Found:
    """Each low-rank pair has the inner and outer width of the base's matrix."""
    adapter, unknown, known = folder_tensors(folder / "adapter"), [], 0
    for key, (_, shape) in adapter.items():
        module, _, factor = key.removeprefix("base_model.model.").rpartition(".lora_")
        if factor not in ("A.weight", "B.weight") or len(shape) != 2:
            continue
        found = base.get(f"{module}.weight")
        if found is None:
            unknown.append(module)
            continue
        known += 1
        width = shape[1] if factor == "A.weight" else shape[0]
        if width not in found[1]:
            yield "adapter", f"{key} has width {width}, the base's {module} is {list(found[1])}: another base's adapter"
            return
    if unknown and not known:
        yield "adapter", f"the base has no module {unknown[0]}: the adapter was made for another base"


def _model_fits(folder: Path, base: Mapping[str, tuple[str, tuple[int, ...]]]) -> Found:
    """Full or merged weights have the base's tensors in the base's shapes."""
    found = folder_tensors(folder / "model")
    other = sorted(k for k in {*found, *base} if k in found and k in base and found[k][1] != base[k][1])
    lost = sorted(set(base) - set(found))
    if other:
        yield "model", f"{other[0]} is {list(found[other[0]][1])}, in the base {list(base[other[0]][1])}"
    elif not set(found) & set(base) or (lost and not all("lm_head" in k or "embed" in k for k in lost)):
        yield "model", f"model lacks tensors of the base ({len(lost)}, first {lost[0] if lost else 'all'})"


def _tokenizer(parts: _Parts) -> Found:
    """Tokenizer, template and vocabulary are the contract's and the base's."""
    tokenizer = load_tokenizer(ModelRef("bundle", parts.folder / "tokenizer", "float32"))
    renderer = Renderer(tokenizer, 1 << 30, check=False, template_kwargs=parts.facts.template_kwargs)
    rows = parts.base.vocabulary
    if rows is not None and len(tokenizer) > rows:
        yield "tokenizer", f"the tokenizer has a vocabulary of {len(tokenizer)}, but the base of {rows}"
    for what, found in (("tokenizer", renderer.tokenizer_sha256), ("template", renderer.template_sha256)):
        frozen = getattr(parts.facts, f"{what}_sha256")
        if found != frozen:
            hashes = f"frozen {frozen[:12]}, found {found[:12]}"
            yield "tokenizer", f"the {what} differs from the contract's: {hashes}"


def _data(parts: _Parts) -> Found:
    version = parts.facts.data_version
    name = f"evidence/data/{version}/manifest.json"
    if name not in parts.manifest.files or parts.data_version(name) != version:
        yield name, "the dataset's manifest is missing, or differs from the contract's version"
    if json_of(parts.folder / "datasheet.json")["sha256"] != parts.facts.data_sha256:
        yield "datasheet.json", "the datasheet describes other data than the contract's"


def _golden(parts: _Parts) -> Found:
    problem = golden_problem(parts.folder / GOLDEN)
    if problem:
        yield GOLDEN, f"{GOLDEN} {problem}"
    elif json_of(parts.folder / GOLDEN)["subject"] != to_json(parts.manifest.subject):
        yield GOLDEN, "the golden outputs were recorded with other weights"


def _gates(parts: _Parts) -> Found:
    """The gate record, where there is one, has its chain whole and speaks of these weights and this contract."""
    from veritune.release.gate.gates import GATES_FILE, gate_record

    name = f"evidence/release/{GATES_FILE}"
    if name not in parts.manifest.files:
        return
    record = gate_record(parts.evidence)
    if (record.subject.base, record.subject.candidate) != (parts.subject.base, parts.subject.candidate):
        yield name, "the last gate record is for other weights"
    elif record.contract != parts.manifest.contract:
        yield name, "the last gate record is for another contract entry"


_CHECKS: dict[str, Callable[[_Parts], Found]] = {
    "contract": _contract,
    "evidence": _evidence,
    "run": _run,
    "base": _base,
    "weights": _weights,
    "tokenizer": _tokenizer,
    "data": _data,
    "golden": _golden,
    "gates": _gates,
}

"""A data version published on the Hub as a data set repo: the file, its card, Croissant metadata, manifest and hashes.

    veritune push clean.jsonl --to hf://OWNER/NAME --license cc-by-4.0 --eval gsm8k_test.jsonl

One commit makes the branch exactly this version: the data byte for byte, `README.md` (the card the Hub shows, then the
datasheet), `croissant.json` (Croissant 1.0, mlcommons.org/croissant), `datasheet.json`, `manifest.json`, `SHA256SUMS`.
What arrived is compared file by file before the place is printed, pinned to its commit. A retired version, records that
cannot be used and a contamination gate that does not pass are refused before anything is sent.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from veritune.counting import grouped
from veritune.data.audit import AuditConfig, AuditReport, audit_data
from veritune.data.datasheet import datasheet
from veritune.data.review import require_usable, shown
from veritune.errors import DataError, GateError, InputError
from veritune.release.registry.hub import _HUB_OWN, _arrived, _reaching
from veritune.store import sha256_file

if TYPE_CHECKING:
    from veritune.records import JsonLike

_PLACE = re.compile(r"hf://(?P<repo>[\w.\-]+/[\w.\-]+)(?:@(?P<branch>[\w.\-]+))?")
_FORMATS = {
    ".jsonl": "application/jsonlines",
    ".ndjson": "application/jsonlines",
    ".csv": "text/csv",
    ".tsv": "text/tab-separated-values",
    ".parquet": "application/x-parquet",
    ".json": "application/json",
}
CROISSANT = "http://mlcommons.org/croissant/1.0"
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "sc": "https://schema.org/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "citeAs": "cr:citeAs",
    "recordSet": "cr:recordSet",
    "field": "cr:field",
    "subField": "cr:subField",
    "source": "cr:source",
    "fileObject": "cr:fileObject",
    "extract": "cr:extract",
    "column": "cr:column",
    "jsonPath": "cr:jsonPath",
    "repeated": "cr:repeated",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"),
          (10_000_000, "1M<n<10M"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class PublishedData:
    """A published data version: `place` is pinned to the commit, `version` is the SHA-256 of the data file."""

    place: str
    version: str
    rows: int
    files: int


def publish(
    data: str | Path,
    to: str,
    *,
    licence: str | None = None,
    columns: Mapping[str, str] | None = None,
    evals: Sequence[str] = (),
    public: bool = False,
) -> PublishedData:
    """Audit a data file and send it with its description as one commit.

    Raises InputError for a place that is none, DataError for a file that cannot be used or is retired, GateError where
    the contamination gate does not pass or the files did not arrive as they are, MachineError without a server.
    """
    match = _PLACE.fullmatch(to)
    if match is None:
        raise InputError(f"{to!r} is not the address of a data set.", fix="Write hf://OWNER/NAME[@BRANCH].")
    path = Path(data)
    if not path.is_file() or path.suffix not in _FORMATS:
        raise DataError(f"{path} is not a data file.", fix=f"Push one file: {', '.join(_FORMATS)}.")
    report = audit_data(path, evals=list(evals), config=AuditConfig(columns=columns))
    _require_publishable(path, report)
    with tempfile.TemporaryDirectory(prefix="veritune-") as work:
        folder = Path(work)
        files = write_folder(report, path, folder, name=match["repo"].split("/")[1], licence=licence)
        commit = _send(match["repo"], match["branch"], folder, files, report, public)
    return PublishedData(f"hf://{match['repo']}@{commit}", report.sha256, len(report.rows), len(files))


def _require_publishable(path: Path, report: AuditReport) -> None:
    require_usable(path, report.sha256, report.rows)
    if report.rejects:
        first = report.rejects[0]
        raise DataError(
            f"{len(report.rejects)} of {report.n_read} records cannot be used: {first.source}:{first.line}: "
            f"{first.message}.",
            fix="Write the usable ones first: veritune audit FILE --drop clean.jsonl",
        )
    if report.gate is not None and report.gate.status != "passed":
        raise GateError(
            f"contamination {report.gate.status}: {report.gate.message}",
            fix="veritune audit FILE --eval EVAL --drop clean.jsonl, then push that.",
        )


# ---------------------------------------------------------------- the files


def write_folder(
    report: AuditReport, path: Path, folder: Path, *, name: str, licence: str | None = None
) -> dict[str, str]:
    """Write all files to publish into `folder`; returns SHA-256 by name."""
    data_name = f"data{path.suffix}"
    (folder / data_name).write_bytes(path.read_bytes())
    sheet = datasheet(report)
    licence = licence or _one_licence(sheet.record)
    digest = sha256_file(folder / data_name)
    texts = {
        "README.md": card(report, sheet.markdown, data_name, licence),
        "croissant.json": _json(croissant(report, name, data_name, digest, licence)),
        "datasheet.json": _json(sheet.record),
    }
    for file, text in texts.items():
        (folder / file).write_text(text, "utf-8")
    described = {file: sha256_file(folder / file) for file in (data_name, *texts)}
    (folder / "manifest.json").write_text(_json(_manifest(report, described, folder)), "utf-8")
    listed = {**described, "manifest.json": sha256_file(folder / "manifest.json")}
    (folder / "SHA256SUMS").write_text("".join(f"{sha}  {file}\n" for file, sha in listed.items()), "utf-8")
    return {**listed, "SHA256SUMS": sha256_file(folder / "SHA256SUMS")}


def _manifest(report: AuditReport, files: Mapping[str, str], folder: Path) -> dict[str, JsonLike]:
    return {
        "format": "veritune.dataset/1",
        "version": report.sha256,
        "rows": len(report.rows),
        "families": report.families.summary["originals"],
        "gate": report.gate.status if report.gate else "not checked",
        "evals": {fact.name: fact.sha256 for fact in report.evals},
        "lineage": [{"sha256": v.sha256, "file": v.file, "parents": list(v.parents), "rejects": dict(v.rejects),
                     "how": v.how} for v in report.versions],
        "files": {name: {"sha256": sha, "bytes": (folder / name).stat().st_size} for name, sha in files.items()},
    }  # fmt: skip


def _one_licence(record: Mapping[str, Any]) -> str | None:
    """The licence that all rows name, None where they name none or several."""
    named = record["licences"] or {}
    return next(iter(named)).lower() if len(named) == 1 else None


def card(report: AuditReport, sheet: str, data_name: str, licence: str | None) -> str:
    """The text of `README.md`: the front matter that the Hub reads, then the datasheet."""
    n = len(report.rows)
    front: dict[str, Any] = {
        "license": licence or "unknown",
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in _SIZES if n < most), "n>10M")],
        "tags": ["veritune", "croissant"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": data_name}]}],
    }
    told = "" if licence else "\nNo licence was named when this version was published.\n"
    how = (
        "\nThe data file is one version of its lineage: `manifest.json` has its hash, its parents and what was left "
        "out; `sha256sum -c SHA256SUMS` checks every file.\n"
    )
    return f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{sheet}{told}{how}"


def croissant(report: AuditReport, name: str, data_name: str, digest: str, licence: str | None) -> dict[str, JsonLike]:
    """The data set as Croissant 1.0 JSON-LD: one file, one record set with a field for every column."""
    kind = _FORMATS[Path(data_name).suffix]
    by_column = kind in ("text/csv", "text/tab-separated-values", "application/x-parquet")
    described: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CROISSANT,
        "name": name,
        "description": f"{grouped(len(report.rows), 'rows')}, {report.families.summary['originals']:,} originals.",
        "version": report.sha256[:12],
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": data_name,
                "name": data_name,
                "contentUrl": data_name,
                "encodingFormat": kind,
                "sha256": digest,
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "rows",
                "name": "rows",
                "field": [_croissant_field(column, data_name, by_column) for column in _columns(report)],
            }
        ],
    }
    if licence:
        described["license"] = licence
    return described


def _columns(report: AuditReport) -> list[str]:
    """Names of the file's columns, as far as they are known after reading: what became turns, then the rest."""
    used = [c for note in report.findings if note.check == "load.columns" for c in note.evidence["columns"]]
    return list(
        dict.fromkeys([*used, *(report.config.columns or {}).values(), *(k for r in report.rows for k in r.meta)])
    )


def _croissant_field(column: str, data_name: str, by_column: bool) -> dict[str, JsonLike]:
    extract = {"column": column} if by_column else {"jsonPath": f"$.{column}"}
    return {
        "@type": "cr:Field",
        "@id": f"rows/{column}",
        "name": f"rows/{column}",
        "dataType": "sc:Text",
        "source": {"fileObject": {"@id": data_name}, "extract": extract},
    }


def _json(value: JsonLike) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


# ---------------------------------------------------------------- the Hub


def _send(
    repo: str, branch: str | None, folder: Path, files: Mapping[str, str], report: AuditReport, public: bool
) -> str:
    """One commit that makes the branch exactly these files; its id. Raises GateError where they did not arrive."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, kind = HfApi(), "dataset"
    with _reaching(f"hf://{repo}"):
        api.create_repo(repo, exist_ok=True, private=not public, repo_type=kind)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True, repo_type=kind)
        head = api.dataset_info(repo, revision=branch)
        gone = [f.rfilename for f in head.siblings or () if f.rfilename not in (*files, *_HUB_OWN)]
        adds = [CommitOperationAdd(name, folder / name) for name in files]
        commit = api.create_commit(
            repo,
            [*adds, *(CommitOperationDelete(name) for name in gone)],
            repo_type=kind,
            revision=branch,
            parent_commit=head.sha,
            commit_message=shown(f"Veritune data version {report.sha256[:12]}, {grouped(len(report.rows), 'rows')}"),
        )
        tree = api.list_repo_tree(repo, recursive=True, revision=commit.oid, repo_type=kind)
        there = {f.path: f for f in tree if hasattr(f, "size")}
    wrong = [n for n in files if n not in there or not _arrived(there[n], folder / n, files[n])]
    wrong += [n for n in there if n not in files and n not in _HUB_OWN]
    if wrong:
        raise GateError(f"hf://{repo}: {wrong[0]} differs from what was sent.", fix="Push it again.")
    return str(commit.oid)

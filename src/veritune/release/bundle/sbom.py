"""The software bill of materials: CycloneDX 1.6 with its machine-learning parts, written by hand.

https://cyclonedx.org/docs/1.6/json/ . The `cyclonedx` package has no class for a model card; a test validates what is
written here against the schema that it ships. No clock: the time is the contract's, the serial number comes from the
hashes.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from veritune.machine import package_versions
from veritune.records import (
    BundleManifest,
    ContractEntry,
    JsonLike,
)

_SPACE = uuid.UUID("6f0c2c58-0f0b-5a53-9c0e-0d7d3c8f7e11")


def bill(manifest: BundleManifest, contract: ContractEntry, facts: Mapping[str, Any]) -> dict[str, JsonLike]:
    """The bill of materials of a bundle. `manifest` needs name, run_id, weights, base, subject and the weight files'
    hashes; `contract` is the contract's last entry; `facts` has `task`, `architecture`, `data_name` and `metrics`.
    """
    frozen = contract.terms.facts
    model_ref, base_ref, data_ref = "model", "base", "dataset"
    packages = [_package(name, version) for name, version in sorted(frozen.packages.items())]
    packages += [_package("veritune", v) for n, v in package_versions().items()
                 if n == "veritune" and "veritune" not in frozen.packages]  # fmt: skip
    model: dict[str, JsonLike] = {
        "type": "machine-learning-model",
        "bom-ref": model_ref,
        "name": manifest.name,
        "version": manifest.run_id,
        "description": f"{manifest.weights.kind} weights fine-tuned from {manifest.base.name}",
        "hashes": [{"alg": "SHA-256", "content": manifest.subject.candidate}],
        "modelCard": _model_card(facts, data_ref),
        "components": [_file(name, digest) for name, digest in sorted(facts["weight_files"].items())],
    }
    base: dict[str, JsonLike] = {
        "type": "machine-learning-model",
        "bom-ref": base_ref,
        "name": manifest.base.name,
        "hashes": [{"alg": "SHA-256", "content": manifest.subject.base}],
        "components": [_file(name, digest, "base/") for name, digest in sorted(manifest.base.files.items())],
    }
    data: dict[str, JsonLike] = {
        "type": "data",
        "bom-ref": data_ref,
        "name": facts["data_name"],
        "version": frozen.data_version,
        "hashes": [{"alg": "SHA-256", "content": frozen.data_sha256}],
        "data": [{"type": "dataset", "name": facts["data_name"]}],
    }
    refs = [base_ref, data_ref, *(p["bom-ref"] for p in packages)]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, str(contract.hash) + manifest.subject.candidate)}",
        "version": 1,
        "metadata": {"timestamp": contract.time, "component": model},
        "components": [base, data, *packages],
        "dependencies": [{"ref": model_ref, "dependsOn": refs}],
    }


def _model_card(facts: Mapping[str, Any], data_ref: str) -> dict[str, JsonLike]:
    metrics: Sequence[Mapping[str, Any]] = facts["metrics"]
    return {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": facts["family"],
            "modelArchitecture": facts["architecture"],
            "datasets": [{"ref": data_ref}],
        },
        "quantitativeAnalysis": {"performanceMetrics": [_metric(m) for m in metrics]},
        "considerations": {"technicalLimitations": list(facts["limitations"])},
    }


def _metric(metric: Mapping[str, JsonLike]) -> dict[str, JsonLike]:
    row = {"type": metric["type"], "value": repr(metric["value"]), "slice": metric["slice"]}
    if metric["low"] is not None and metric["high"] is not None:
        row["confidenceInterval"] = {"lowerBound": repr(metric["low"]), "upperBound": repr(metric["high"])}
    return row


def _file(name: str, digest: str, prefix: str = "") -> dict[str, JsonLike]:
    hashes = [{"alg": "SHA-256", "content": digest}]
    return {"type": "file", "bom-ref": f"file:{prefix}{name}", "name": name, "hashes": hashes}


def _package(name: str, version: str) -> dict[str, JsonLike]:
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}

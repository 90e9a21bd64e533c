"""The model card and the licence summary of a bundle, from the records; every number in the card is linted.

The metadata block is what the Hugging Face hub reads (`huggingface_hub.ModelCardData`). What the records do not hold,
a licence above all, is said to be unknown and never made up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from veritune.errors import GateError
from veritune.records import BundleManifest, JsonLike
from veritune.store import Store
from veritune.untrusted import parse_yaml
from veritune.writeup.draft import card_sections
from veritune.writeup.lint.check import lint_text
from veritune.writeup.lint.rules import load_rules
from veritune.writeup.quantities import CheckedRecords, read_records

NOT_FOR_CARDS = ("title.", "section.", "figure.", "samples.", "acronym")
"""Rules about the form of a result post. Those about numbers, staleness and speech all hold for a card."""
_MARKUP = re.compile(r"<(?!!--(?:v:[\w.\-]+(?: \| [\w.,\- |]+)?|/v|veritune:(?:begin|end) ?[\w.\-]*)-->)")
"""Whatever could begin HTML; the markers that bind a number or a table to its record stay."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def model_card(store: Store, manifest: BundleManifest, licences: Mapping[str, Any]) -> str:
    """The card as Markdown with its metadata. Raises GateError if lint finds a number or claim that the records do not
    support.
    """
    records = read_records(store)
    body = "\n\n".join(
        [_head(records.terms, manifest), card_sections(store, records), _licence_text(licences), _tail(manifest)]
    )
    rules = load_rules()
    off = {rule: "off" for rule in rules.levels if rule.startswith(NOT_FOR_CARDS)}
    report = lint_text(body, records, replace(rules, levels={**rules.levels, **off}), Path("README.md"))
    if not report.clean:
        first = next(f for f in report.findings if f.severity == "error")
        raise GateError(
            f"the model card does not agree with the records: line {first.line}: {first.text} {first.message}",
            fix="Run `veritune lint` on a write-up of the study to see the same finding.",
        )
    return f"---\n{_metadata(manifest, licences, records)}\n---\n\n{_MARKUP.sub('&lt;', body)}\n"


def _metadata(manifest: BundleManifest, licences: Mapping[str, Any], records: CheckedRecords) -> str:
    from huggingface_hub import ModelCardData

    base, kind = manifest.base, manifest.weights.kind
    licence = licences["release"]
    data = ModelCardData(
        base_model=base.reference if _HUB_ID.fullmatch(str(base.reference)) else None,
        library_name="peft" if kind == "adapter" else "transformers",
        license=licence if licence and re.fullmatch(r"[a-z0-9.\-]{1,64}", licence) else None,
        pipeline_tag="text-generation",
        tags=["veritune", *(["lora"] if manifest.method == "lora" else [])],
        **_model_index(manifest, records),
    )
    text = data.to_yaml()
    relation = {"adapter": "adapter", "merged": "merge", "full": "finetune"}[kind]
    return f"{text}\nbase_model_relation: {relation}" if data.base_model else str(text)


def _model_index(manifest: BundleManifest, records: CheckedRecords) -> dict[str, Any]:
    """The run's own scores as the hub's `model-index`, each with its items and the study; empty without scores."""
    from huggingface_hub import EvalResult

    before = ", measured before the merge" if manifest.weights.kind == "merged" else ""
    elsewhere = ", weights trained elsewhere" if manifest.trained_elsewhere else ""
    source = f"Veritune study {records.name}, run {manifest.run_id}, contract {records.contract[:12]}{elsewhere}"
    found = []
    own = f"runs/{manifest.run_id}/summary.json"
    for quantity in (q for q in records.quantities if (q.kind, q.source, q.stale) == ("score", own, "")):
        lost = f", {quantity.failed} without a score count as 0" if quantity.failed else ""
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=str(quantity.scope.eval),
                dataset_name=str(quantity.scope.eval),
                dataset_split=quantity.scope.zone,
                metric_type="score",
                metric_name=f"mean score, {quantity.denominator} items{lost}{before}",
                metric_value=round(quantity.value, 6),
                source_name=source,
                source_url=quantity.source,
            )
        )
    return {"eval_results": found, "model_name": f"{manifest.name} {manifest.condition}"} if found else {}


def plain(text: str) -> str:
    """An untrusted text inside Markdown, without HTML, links or code of its own."""
    line = " ".join(str(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]()!#|~])", r"\\\1", line)


def _head(terms: Mapping[str, Any], manifest: BundleManifest) -> str:
    kind = {"adapter": "An adapter", "merged": "Merged weights", "full": "Fine-tuned weights"}[manifest.weights.kind]
    lines = [
        f"# {plain(manifest.name)}: {plain(manifest.condition)}",
        f"{kind} for {plain(manifest.base.name)}, run `{manifest.run_id}`. This card was made from the "
        "records in `evidence/` and says only what the verdicts let it say.",
        f"The question of the study: {_unnumbered(plain(terms['study']['question']))}",
    ]
    if manifest.trained_elsewhere:
        lines.append(
            "These weights were trained elsewhere and adopted by the study. Not checked: "
            + "; ".join(_unnumbered_item(plain(item)) for item in manifest.trained_elsewhere)
            + "."
        )
    return "\n\n".join(lines)


def _unnumbered(text: str) -> str:
    """A question with numbers in it would be taken for a claim: it is left to the contract."""
    return text if not re.search(r"\d", text) else "in `evidence/contract.lock.json`."


def _unnumbered_item(text: str) -> str:
    """A number in it would be taken for a claim."""
    return re.sub(r"\S*\d\S*", "…", text)


def _licence_text(licences: Mapping[str, Any]) -> str:
    def said(value: JsonLike) -> str:
        return f"`{value}`" if value else "not stated in the files"

    data = licences["data"]
    rows = ", ".join(f"`{name}`" for name in data) if data else "no row names one"
    return (
        "## Licences\n\n"
        f"- This release: {said(licences['release'])}.\n- Base model: {said(licences['base'])}.\n"
        f"- Training data: {rows}.\n\nThe summary with its sources is `licences.json`."
    )


def _tail(manifest: BundleManifest) -> str:
    if manifest.weights.serves == "model":
        code = 'AutoModelForCausalLM.from_pretrained("BUNDLE/model")'
        lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f"model = {code}"]
    else:
        lines = [
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            "base = AutoModelForCausalLM.from_pretrained(BASE)",
            'model = PeftModel.from_pretrained(base, "BUNDLE/adapter")',
        ]
    lines.append('tokenizer = AutoTokenizer.from_pretrained("BUNDLE/tokenizer")')
    code = "\n".join(lines)
    return (
        "## Use\n\nCheck it first: `veritune verify BUNDLE --public-key KEY`. The tokenizer files were written by the "
        "version of transformers that the card above names; older major versions may not read them.\n\n"
        f"```python\n{code}\n```"
    )


# ---------------------------------------------------------------- licences


def licence_summary(base: Path, datasheet: Mapping[str, JsonLike], release: str | None) -> dict[str, JsonLike]:
    """Licences of release, base and data as stated in files, each with the file; None if none states one."""
    return {
        "release": release,
        "base": _licence_of(base),
        "data": datasheet["licences"],
        "sources": {
            "release": "veritune bundle --license" if release else None,
            "base": "the metadata of the base's README.md" if _licence_of(base) else None,
            "data": "the rows' licence columns, counted in datasheet.json" if datasheet["licences"] else None,
        },
    }


def _licence_of(base: Path) -> str | None:
    """The `license` of a model folder's card; None when there is no card, or none it names."""
    import yaml

    path = base / "README.md"
    if not path.is_file() or path.stat().st_size > 1 << 20:
        return None
    found = re.match(r"\A---\r?\n(.{0,65536}?)\r?\n---", path.read_bytes().decode("utf-8", "replace"), re.DOTALL)
    try:
        block = parse_yaml(found[1]) if found else None
    except (yaml.YAMLError, ValueError):
        return None
    value = block.get("license") if isinstance(block, dict) else None
    return value if isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9.\-+]{1,64}", value) else None

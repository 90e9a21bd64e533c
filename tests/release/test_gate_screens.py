"""A whole evaluation as it stands on the screen and in a pull request, when everything passes and when little does."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import ModuleType

from veritune.release.gate.evidence import evidence_file, read_evidence, write_evidence
from veritune.release.gate.gates import evaluate, render_markdown, render_text, waive
from veritune.seal import seal
from veritune.store import Store

ITEMS = "95 % interval -0.037 to +0.037, margin 0.05"
SERVING = (
    "same text; first_token 1 (0.97 to 1.04), at most 1.1; per_token 1 (0.98 to 1.03), at most 1.1; throughput 0.99 "
    "(0.95 to 1.02), at least 0.9; peak_memory 1.01 (1 to 1.02), at most 1.1; cost_per_request 1 (0.96 to 1.05), "
    "at most 1.1; peak_memory of the largest block 1.03, at most 1.1; first_token p99 1 (0.997 to 1), at most 2; "
    "answer p99 1 (0.997 to 1), at most 2"
)
FOUND = {
    "data": "6 rows audited clean, 0 duplicates, licences CC-BY-4.0 (6 rows); no family is on both sides of the split; "
    "no overlap with 1 eval",
    "target": "claim gains is supported (+0.310, +0.210 to +0.410, n 29)",
    "regression": "golden: 0.770 against 0.750 on 200 items: gap +0.020, 95 % interval +0.001 to +0.050, margin 0.05",
    "safety": f"safe answers: 0.900 against 0.900 on 100 items: gap +0.000, {ITEMS}; "
    f"harmless prompts answered: 1.000 against 1.000 on 100 items: gap +0.000, {ITEMS}",
    "calibration": "ece 0.04 (0.02 to 0.07), at most 0.1; brier 0.11 (0.09 to 0.14), at most 0.2",
    "serving": SERVING,
    "merge": "same logits",
    "rollback": "restored",
}
LOOK = {
    "data": "veritune audit rows.jsonl --out release/data",
    "target": "veritune status .",
    "regression": "veritune compare runs/RUN runs/RUN --eval style --margin 0.05",
    "safety": "veritune safety . --show",
    "calibration": "veritune probe calibration --help",
    "serving": "veritune serve-parity --help",
    "merge": "veritune merge-parity .",
    "rollback": "veritune rollback BUNDLE --drill",
}
EVIDENCE = {
    "data": "`release/data.json`<br>`audit/split.json`<br>`audit/contamination.json`",
    "target": "`verdict.json`",
    "regression": "`runs/RUN/scores/style.jsonl`<br>`runs/RUN/scores/style.jsonl`",
    "safety": "`release/safety.json`<br>`release/safety.jsonl`",
    "calibration": "`release/calibration.json`",
    "serving": "`release/serving.json`<br>`release/serving.jsonl`",
    "merge": "`release/merge.json`",
    "rollback": "`release/rollback.json`",
}


def masked(text: str) -> str:
    """Without the hashes, which follow from the bytes of a fresh model."""
    return re.sub(r"\b[0-9a-f]{12}\b", "HASH", re.sub(r"(wide-s3|baseline)-[0-9a-f]{8}", "RUN", text))


def test_what_a_passing_evaluation_says(store: Store) -> None:
    record = evaluate(store.root)
    assert masked(render_text(record)).splitlines() == [
        "RUN: base HASH, weights HASH",
        "policy HASH from study.yaml (in the contract, before results)",
        "",
        *(f"{'passed':<10} {gate:<12} {message}" for gate, message in FOUND.items()),
        "",
        "release gate: passed",
    ]
    assert masked(render_markdown(record)).splitlines() == [
        "### Release gate: passed",
        "",
        "`RUN` (base `HASH`, weights `HASH`), contract `HASH`, policy `HASH` from study.yaml "
        "(in the contract, before results).",
        "",
        "| gate | | found | evidence | look closer |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {g} | ✅ passed | {text} | {EVIDENCE[g]} | `{LOOK[g]}` |" for g, text in FOUND.items()),
    ]


def test_what_an_open_evaluation_says(store: Store, shippable: ModuleType) -> None:
    shippable.write_verdict(store, "refuted")
    evidence_file(store, "rollback").unlink()
    merge = read_evidence(store, "merge")
    assert merge is not None
    write_evidence(store, replace(merge, subject=replace(merge.subject, merged=None)))
    store.audit("split.json").unlink()
    seal(store)
    day = (datetime.now(UTC).date() + timedelta(days=3)).isoformat()
    waive(store.root, "rollback", ("Ada", "nothing to go back to", day))
    text = masked(render_text(evaluate(store.root))).splitlines()[3:]
    blocks = ("failed", "undecided", "waived")
    at = {line.split()[1]: i for i, line in enumerate(text) if line.startswith(blocks)}
    assert list(at) == ["data", "target", "merge", "rollback"]
    assert text[at["data"]] == "undecided  data         audit/split.json is missing"
    assert text[at["target"]] == "failed     target       claim gains is refuted (+0.310, +0.210 to +0.410, n 29)"
    assert text[at["target"] + 1] == f"{'':<23} look: veritune status ."
    assert text[at["merge"]] == "undecided  merge        the record names no merged weights"
    assert text[at["rollback"]] == "waived     rollback     no evidence: release/rollback.json is missing"
    assert text[at["rollback"] + 1] == f"{'':<23} waived by Ada until {day}: nothing to go back to"
    assert text[at["rollback"] + 2] == f"{'':<23} look: veritune rollback BUNDLE --drill"
    assert text[-1] == "release gate: failed"

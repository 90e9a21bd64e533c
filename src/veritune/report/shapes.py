"""What the report expects of each record's shape. What does not fit is left out and named, so that drawing goes on.

A record may hold more than is named here: other keys pass as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NUMBER = (int, float)
TEXT = str
TEXTS = [TEXT]
COUNTS = {"*": NUMBER}

ARM = {"runs": TEXTS, "condition": TEXT}
ESTIMATE = {
    **dict.fromkeys(("value", "low", "high", "level", "n", "n_clusters", "n_seeds", "p", "p_floor"), NUMBER),
    **dict.fromkeys(("name", "method", "scope", "p_method"), TEXT),
    "warnings": TEXTS,
    "details": {"a": ARM, "b": ARM},
}
VERDICT = {
    "contract": TEXT,
    "verdicts": [
        {
            **dict.fromkeys(("claim", "kind", "status", "sentence", "decision"), TEXT),
            **dict.fromkeys(("margin", "detectable", "needed_n"), NUMBER),
            "may_not": TEXTS,
            "warnings": TEXTS,
            "estimates": [ESTIMATE],
            "confidence": {"grade": TEXT, "evidence": {"*": {"state": TEXT, "why": TEXT}}, "thresholds": {"*": NUMBER}},
            "details": {
                **dict.fromkeys(("p_corrected", "claims_in_family", "share_declared"), NUMBER),
                "simultaneous_interval": [NUMBER],
            },
        }
    ],
}
ZONE_COUNTS = {"*": {"rows": NUMBER, "families": NUMBER}}
FACTS = {
    **dict.fromkeys(("data_version", "data_sha256", "template_sha256", "tokenizer_sha256", "rendered_sha256"), TEXT),
    "zones": ZONE_COUNTS,
    "tokens": COUNTS,
    "target_tokens": COUNTS,
    "families": {"evidence": COUNTS, "sizes": COUNTS, "rows": NUMBER, "originals": NUMBER},
    "model": {"name": TEXT, "dtype": TEXT, "files": {"*": TEXT}},
    "packages": {"*": TEXT},
}
CONTRACT = {
    "entries": [
        {
            "hash": TEXT,
            "time": TEXT,
            "reason": TEXT,
            "changes": TEXTS,
            "terms": {"facts": FACTS, "study": {"*": object}},
        }
    ]
}
DATA = {"version": TEXT, "rejects": COUNTS, "facts": FACTS}
TRAINABLE = {"n_trainable": NUMBER, "n_total": NUMBER, "method": TEXT, "options": {"*": object}, "modules": TEXTS}
SCORE = {
    **dict.fromkeys(("item_id", "family", "zone", "output", "reason"), TEXT),
    "value": NUMBER,
    "parts": {"rules": {"*": bool}, "found": {"*": object}, "ended": TEXT},
}
METRIC = {"step": NUMBER, "loss": NUMBER, "split": TEXT}
TELEMETRY = {"step": NUMBER, "status": TEXT, "share": {"type": COUNTS}}
STAMP = {"decoding": {"max_new_tokens": NUMBER}}
RENDER = {
    **dict.fromkeys(("rows", "target_tokens"), NUMBER),
    "tokens": COUNTS,
    "example": {"row_id": TEXT, "prompt": TEXT, "target": TEXT},
}
OVERLAPS = dict.fromkeys(("n_a", "n_b", "ids", "texts", "prompts", "answers", "families", "near"), NUMBER)
FINDING = {"check": TEXT, "severity": TEXT, "message": TEXT}
SPLIT = {"counts": {"pairs": [{"a": TEXT, "b": TEXT, **OVERLAPS}]}, "findings": [FINDING], "warnings": TEXTS}
LIVE = {
    **dict.fromkeys(("loss", "step_s", "moved_tensors", "trainable_tensors", "rows_compared_with_contract"), NUMBER),
    "trainable": TRAINABLE,
}
SELECTION = {
    "seed": NUMBER,
    "rule": TEXT,
    "conditions": {
        "*": {
            "selected": NUMBER,
            "edge": TEXT,
            "candidates": [{"lr": NUMBER, "validation_nll": NUMBER, "failed": TEXT, "run_id": TEXT}],
        }
    },
}
EVENT = {"time": TEXT, "event": TEXT}
CARRIED = dict.fromkeys(("value", "low", "high", "level", "n", "n_clusters"), NUMBER)
GAP = {
    "gap": {
        **dict.fromkeys(("verdict", "why", "limits", "would_change"), TEXT),
        "carried": {"*": CARRIED},
        "thresholds": {"*": NUMBER},
    }
}
PROBE = {"*": object, "run": TEXT, "record": {"*": object}}


def fit(value: Any, shape: Any, where: str, problems: list[str]) -> Any:
    """`value` with whatever does not fit `shape` replaced by None (taken out of lists), each named in `problems`."""
    if value is None or shape is object:
        return value
    if isinstance(shape, dict):
        if not isinstance(value, Mapping):
            return _misfit(value, "a mapping", where, problems)
        every = shape.get("*", object)
        return {str(k): fit(v, shape.get(k, every), f"{where}.{k}", problems) for k, v in value.items()}
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _misfit(value, "a list", where, problems)
        fitted = [fit(item, shape[0], f"{where}.{i}", problems) for i, item in enumerate(value)]
        return [item for item in fitted if item is not None]
    if (isinstance(value, bool) and shape is not bool) or not isinstance(value, shape):
        return _misfit(
            value, "text" if shape is TEXT else "a number" if shape is NUMBER else "true or false", where, problems
        )
    return value


def _misfit(value: Any, wanted: str, where: str, problems: list[str]) -> None:
    problems.append(f"{where}: expected {wanted}, found {type(value).__name__}; it is left out")

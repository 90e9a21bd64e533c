"""The contract: what a study declared before it trained, frozen with hashes.

`freeze` writes `contract.lock.json`; from then on whatever differs is refused, with the field, the frozen and the
found value named. `amend` appends an entry with a reason; every entry holds the hash of the one before it, so a changed
past shows. What was declared after a result existed is marked exploratory for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from veritune.errors import FormatError, StaleError, StoreError
from veritune.records import FORMAT_VERSION, to_json
from veritune.store import Store, hash_of, now, read_json, write_json
from veritune.study import Study, sources

HOUSEKEEPING = ("budget", "keep", "report_to", "probes")
"""Settings that change no result: what may be spent, which checkpoints stay, where logs are sent as well, and what is
trained beside the study to explain it."""

OF_GATES = ("merge", "serving")
"""Sections of the thresholds that decide gates alone: changing one leaves every claim as it was declared."""


def settings(study: Study) -> dict[str, Any]:
    """The resolved settings that are frozen: all but housekeeping, and the backend where it is the local one."""
    local = {"backend"} if study.backend.name == "local" else set()
    return study.model_dump(mode="json", exclude={*HOUSEKEEPING, *local})


def terms(study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is frozen: the resolved settings and the facts (hashes of data, split, template, model ...).

    The decision rules are the claims among the settings, and the source that judges them (`facts.code.decide`).
    """
    return {"study": settings(study), "facts": to_json(facts)}


def unfrozen(study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in for a contract while a study explores: every claim judged by it is exploratory."""
    return {"entries": [{"hash": None, "terms": terms(study, facts), "results": ["not frozen"]}]}


def freeze(
    store: Store, study: Study, facts: Mapping[str, Any], flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the contract, or confirm the one that is there. Raises StaleError when the two differ.

    `flags` are the settings that were given beside the file. Results that are on disk already are listed: they, and
    every claim of this study, are exploratory for ever.
    """
    found = terms(study, facts)
    if not store.contract_file.exists():
        _refuse_lost(store)
        entry = _entry(found, None, "frozen", None, _beside(store, study, flags or {}))
        contract: dict[str, Any] = {"format": FORMAT_VERSION, "entries": [entry]}
        write_json(store.contract_file, contract)
    contract = read(store)
    store.log_once("frozen", contract=contract["entries"][0]["hash"])
    differences = list(differ(contract["entries"][-1]["terms"], found))
    if differences:
        raise StaleError(
            f"{store.study_file} differs from the frozen contract: " + "; ".join(differences[:5]) + _more(differences),
            fix='Undo it, or record it: `veritune amend STUDY --reason "..."` (or `run --amend "..."`).',
        )
    return contract


def amend(
    store: Store, study: Study, facts: Mapping[str, Any], reason: str, flags: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Append the changed terms with a reason. Raises StoreError without a contract or without a change."""
    if not reason.strip():
        raise StoreError("an amendment needs a reason.", fix='Say why: --reason "...".')
    if not store.contract_file.exists():
        return freeze(store, study, facts, flags)
    contract = read(store)
    found = terms(study, facts)
    last = contract["entries"][-1]
    changes = list(differ(last["terms"], found))
    if not changes:
        return contract
    kept = last.get("flags") or {} if flags is None else flags
    contract["entries"].append(_entry(found, last["hash"], reason, changes, _beside(store, study, kept)))
    write_json(store.contract_file, contract)
    store.log("amended", contract=contract["entries"][-1]["hash"], reason=reason, changes=changes)
    return contract


def read(store: Store) -> dict[str, Any]:
    """The contract with its chain recomputed. Raises StaleError naming the first entry that was edited."""
    store.check_format()
    contract = read_json(store.contract_file)
    previous = None
    entries = contract.get("entries")
    if not isinstance(entries, list) or not entries or not all(isinstance(e, dict) for e in entries):
        raise FormatError(f"{store.contract_file} holds no entries.", fix="Restore the file.")
    for number, entry in enumerate(entries):
        body = {k: v for k, v in entry.items() if k != "hash"}
        known = entry.get("hash")
        if entry.get("previous") != previous or not isinstance(known, str) or _digest(body) != known:
            raise StaleError(
                f"{store.contract_file}: entry {number} was edited after it was frozen.",
                fix="Restore the file; a changed contract cannot be trusted.",
            )
        previous = known
    return contract


def _digest(body: Mapping[str, Any]) -> str | None:
    """The hash of an entry; None where it holds what no record holds (NaN, half a character)."""
    try:
        return hash_of(body)
    except (ValueError, TypeError, RecursionError):
        return None


def exploratory_claims(contract: Mapping[str, Any]) -> set[str]:
    """Names of the claims that are not as they were declared when the last result-free entry was made.

    A claim is also another one when what decides it is: its eval, its arms, the seeds, the schedule, model or data.
    """
    blind = [entry["terms"] for entry in contract["entries"] if not entry.get("results")]
    if contract["entries"][0].get("results"):
        return {c["name"] for c in contract["entries"][-1]["terms"]["study"]["claims"]}  # declared with scores in view
    declared = {c["name"]: _decides(blind[-1], c) for c in blind[-1]["study"]["claims"]}
    now_terms = contract["entries"][-1]["terms"]
    claims = now_terms["study"]["claims"]
    return {c["name"] for c in claims if declared.get(c["name"]) != _decides(now_terms, c)}


def _decides(terms: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a claim's outcome depends on: package versions are no part of it, the code that judges is."""
    study = terms["study"]
    shared = {key: study.get(key) for key in ("model", "backend", "data", "split", "train", "seeds", "selection")}
    words = {key: value for key, value in (study.get("thresholds") or {}).items() if key not in OF_GATES}
    facts = {key: value for key, value in terms["facts"].items() if key not in ("packages", "code")}
    code = terms["facts"].get("code") or {}
    facts |= {f"code.{part}": code.get(part) for part in ("evaluate", "decide")}
    name = claim["eval"] or next(iter(study["evals"]))
    arms = [study["conditions"].get(claim[side]) for side in ("condition", "against")]
    return {**shared, "thresholds": words, "claim": claim, "eval": study["evals"][name], "arms": arms, "facts": facts}


def standing(contract: Mapping[str, Any], run_id: str) -> dict[str, Any]:
    """What a run's results are worth: `exploratory` when they were there before the freeze, and the number of the last
    amendment that they came before (None when they came before none)."""
    entries = contract["entries"]
    before = [n for n, entry in enumerate(entries) if n and run_id in entry.get("made", entry.get("results") or [])]
    return {
        "exploratory": run_id in entries[0].get("made", entries[0].get("results") or []),
        "before_amendment": before[-1] if before else None,
    }


def _beside(store: Store, study: Study, flags: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry records beside its terms: where settings came from, and what had been made and scored by then."""
    return {
        "sources": {key: source for key, source in sources(study, flags).items() if _is_frozen(key, study)},
        "flags": dict(flags),
        "results": sorted({path.parent.parent.name for path in store.runs.glob("*/scores/*.jsonl")}),
        "made": sorted({path.parent.name for path in store.runs.glob("*/summary.json")}),
    }


def _is_frozen(key: str, study: Study) -> bool:
    return study.backend.name != "local" or not key.startswith("backend.")


def _refuse_lost(store: Store) -> None:
    frozen = [event for event in store.events() if event["event"] == "frozen"]
    if frozen:
        raise StaleError(
            f"{store.contract_file} is gone, though the study was frozen at {frozen[0]['time']}.",
            fix="Restore the file, or start a new folder with the same study.yaml.",
        )


def _entry(
    found: Mapping[str, Any], previous: str | None, reason: str, changes: list[str] | None, beside: Mapping[str, Any]
) -> dict[str, Any]:
    body = {"time": now(), "previous": previous, "reason": reason, "changes": changes or [], "terms": found, **beside}
    return {**body, "hash": hash_of(body)}


def differ(frozen: Any, found: Any, path: str = "") -> Iterator[str]:
    """Each difference as `path: frozen X, found Y`, depth first."""
    if isinstance(frozen, Mapping) and isinstance(found, Mapping):
        for key in sorted({*frozen, *found}):
            yield from differ(frozen.get(key), found.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(frozen, list) and isinstance(found, list) and len(frozen) == len(found):
        for i, (a, b) in enumerate(zip(frozen, found)):
            yield from differ(a, b, f"{path}.{i}")
    elif frozen != found:
        yield f"{path}: frozen {_short(frozen)}, found {_short(found)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _more(items: list[str]) -> str:
    return f" and {len(items) - 5} more." if len(items) > 5 else "."

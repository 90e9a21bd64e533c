"""The contract: what a study declared before it trained, frozen with hashes.

`freeze` writes `contract.lock.json`; from then on `check` refuses whatever differs and names the field, the frozen and
the found value. `amend` appends an entry with a reason; every entry holds the hash of the one before it, so a changed
past shows. What was declared after a result existed is marked exploratory for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from veritune.errors import FormatError, StaleError, StoreError
from veritune.records import FORMAT_VERSION, to_json
from veritune.store import Store, hash_of, now, read_json, write_json
from veritune.study import Study


def terms(study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is frozen: the resolved settings and the facts (hashes of data, split, template, model ...)."""
    return {"study": study.frozen(), "facts": to_json(facts)}


def freeze(store: Store, study: Study, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write the contract, or confirm the one that is there. Raises StaleError when the two differ."""
    found = terms(study, facts)
    if not store.contract_file.exists():
        _refuse_lost(store)
        contract: dict[str, Any] = {"format": FORMAT_VERSION, "entries": [_entry(found, None, "frozen", None)]}
        write_json(store.contract_file, contract)
    contract = read(store)
    store.log_once("frozen", contract=contract["entries"][0]["hash"])
    differences = list(differ(contract["entries"][-1]["terms"], found))
    if differences:
        raise StaleError(
            f"{store.study_file} differs from the frozen contract: " + "; ".join(differences[:5]) + _more(differences),
            fix='Undo it, or record it: `veritune run STUDY --amend "the reason"`.',
        )
    return contract


def amend(store: Store, study: Study, facts: Mapping[str, Any], reason: str) -> dict[str, Any]:
    """Append the changed terms with a reason. Raises StoreError without a contract or without a change."""
    if not reason.strip():
        raise StoreError("an amendment needs a reason.", fix='Say why: --amend "the reason".')
    if not store.contract_file.exists():
        return freeze(store, study, facts)
    contract = read(store)
    found = terms(study, facts)
    last = contract["entries"][-1]
    changes = list(differ(last["terms"], found))
    if not changes:
        return contract
    contract["entries"].append(_entry(found, last["hash"], reason, changes, results=_results(store)))
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
        if entry.get("previous") != previous or _digest(body) != entry.get("hash"):
            raise StaleError(
                f"{store.contract_file}: entry {number} was edited after it was frozen.",
                fix="Restore the file; a changed contract cannot be trusted.",
            )
        previous = entry["hash"]
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
    declared = {c["name"]: _decides(blind[-1], c) for c in blind[-1]["study"]["claims"]}
    now_terms = contract["entries"][-1]["terms"]
    claims = now_terms["study"]["claims"]
    return {c["name"] for c in claims if declared.get(c["name"]) != _decides(now_terms, c)}


def _decides(terms: Mapping[str, Any], claim: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a claim's outcome depends on. Package versions are recorded and not part of it."""
    study = terms["study"]
    shared = {key: study[key] for key in ("model", "data", "split", "train", "seeds")}
    facts = {key: value for key, value in terms["facts"].items() if key != "packages"}
    name = claim["eval"] or next(iter(study["evals"]))
    arms = [study["conditions"].get(claim[side]) for side in ("condition", "against")]
    return {**shared, "claim": claim, "eval": study["evals"][name], "arms": arms, "facts": facts}


def _results(store: Store) -> list[str]:
    """Runs of which scores were on disk when an amendment was made."""
    return sorted({path.parent.parent.name for path in store.runs.glob("*/scores/*.jsonl")})


def _refuse_lost(store: Store) -> None:
    frozen = [event for event in store.events() if event["event"] == "frozen"]
    if frozen:
        raise StaleError(
            f"{store.contract_file} is gone, though the study was frozen at {frozen[0]['time']}.",
            fix="Restore the file, or start a new folder with the same study.yaml.",
        )


def _entry(
    found: Mapping[str, Any], previous: str | None, reason: str, changes: list[str] | None, results: Sequence[str] = ()
) -> dict[str, Any]:
    body = {"time": now(), "previous": previous, "reason": reason, "changes": changes or [], "terms": found}
    body["results"] = list(results)
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

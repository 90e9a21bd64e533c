"""The contract: what a study declared before it trained, frozen with hashes.

`freeze` writes `contract.lock.json`; from then on whatever differs is refused, with the field, the frozen and the
found value named. `amend` appends an entry with a reason; every entry holds the hash of the one before it, so a changed
past shows. What was declared after a result existed stays exploratory.

Every entry is announced in the timeline before it is published: staged beside the contract, logged as `frozen` or
`amended` with its hash, then renamed into place. `agreed` compares the two, so that a contract rewritten after the
results is found; `recover` finishes, or drops, what a killed process left on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from veritune.config.load import sources
from veritune.config.study import Study
from veritune.errors import StaleError, StoreError
from veritune.ledger import Document, Entry
from veritune.records import FORMAT_VERSION, to_json
from veritune.store import Store, now

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
    every claim of this study, stay exploratory.
    """
    recover(store)
    found = terms(study, facts)
    if not store.contract_file.exists():
        _refuse_lost(store)
        _publish(store, _body(found, "frozen", None, _beside(store, study, flags or {})), "frozen")
    contract = agreed(store)
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
    """Append the changed terms with a reason; without a change the contract as it is. Raises StoreError for no reason.

    Where there is no contract, it is frozen.
    """
    if not reason.strip():
        raise StoreError("an amendment needs a reason.", fix='Say why: --reason "...".')
    recover(store)
    if not store.contract_file.exists():
        return freeze(store, study, facts, flags)
    contract = agreed(store)
    found = terms(study, facts)
    last = contract["entries"][-1]
    changes = list(differ(last["terms"], found))
    if not changes:
        return contract
    kept = last.get("flags") or {} if flags is None else flags
    body = _body(found, reason, changes, _beside(store, study, kept))
    _publish(store, body, "amended", reason=reason, changes=changes)
    return read(store)


def read(store: Store) -> dict[str, Any]:
    """The contract with its chain recomputed. Raises StaleError naming the first entry that was edited.

    What the timeline says of it is not looked at: a bundle carries a contract without one. See `agreed`.
    """
    store.check_format()
    return {"format": FORMAT_VERSION, "entries": _document(store).read()}


def agreed(store: Store) -> dict[str, Any]:
    """The contract, its chain recomputed and its entries compared with the timeline's `frozen` and `amended` events.

    Raises StaleError where the two differ: an entry was rewritten, removed or inserted, or the timeline was.
    """
    contract = read(store)
    announced = _announced(store)
    entries: list[Entry] = contract["entries"]
    staged = _document(store).staged()
    if staged and len(announced) == len(entries) + 1 and staged[-1]["hash"] == announced[-1]["contract"]:
        raise StaleError(
            f"{store.contract_file}: an amendment of {announced[-1]['time']} was interrupted.",
            fix="Give the same command again; it goes on from there.",
        )
    for number, (entry, event) in enumerate(zip(entries, announced)):
        if entry["hash"] != event.get("contract"):
            raise StaleError(
                f"{store.contract_file}: entry {number} is {entry['hash'][:12]}, the timeline recorded "
                f"{str(event.get('contract'))[:12]} at {event['time']}: the contract was rewritten.",
                fix=_RESTORE,
            )
    if len(entries) != len(announced):
        raise StaleError(
            f"{store.contract_file} holds {len(entries)} entries, the timeline records {len(announced)} "
            "`frozen` and `amended` events.",
            fix=_RESTORE,
        )
    return contract


_RESTORE = "Restore contract.lock.json and events.jsonl from a copy, or start a new folder with the same study.yaml."


def _announced(store: Store) -> list[Entry]:
    """The `frozen` event and the `amended` ones after it. Raises StaleError for a second `frozen`."""
    found = [event for event in store.events() if event["event"] in ("frozen", "amended")]
    again = [event for event in found[1:] if event["event"] == "frozen"]
    if again:
        raise StaleError(
            f"{store.events_file} records a second `frozen` at {again[0]['time']}, after the first at "
            f"{found[0]['time']}: the contract was replaced.",
            fix="A study is frozen once. Start a new folder with the same study.yaml.",
        )
    return found


def recover(store: Store) -> bool:
    """Finish an entry that was announced and not published, drop one that was not announced; whether one was finished.

    For the process that holds the study's lock.
    """
    document = _document(store)
    if not document.next.exists():
        return False
    staged, announced = document.staged(), _announced(store)
    if staged and announced and staged[-1]["hash"] == announced[-1].get("contract"):
        document.publish()
        return True
    document.drop()
    return False


def _publish(store: Store, body: Mapping[str, Any], event: str, **facts: Any) -> None:
    """Stage an entry, announce it in the timeline, and put it in place: killed anywhere, `recover` knows which."""
    document = _document(store)
    entry = document.stage(body)
    store.log(event, contract=entry["hash"], **facts)
    document.publish()


def _document(store: Store) -> Document:
    return Document(store.contract_file, {"format": FORMAT_VERSION})


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


def _body(
    found: Mapping[str, Any], reason: str, changes: list[str] | None, beside: Mapping[str, Any]
) -> dict[str, Any]:
    return {"time": now(), "reason": reason, "changes": changes or [], "terms": found, **beside}


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

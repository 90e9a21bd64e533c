"""The contract: what a study declared before it trained, frozen with hashes.

`freeze` writes `contract.lock.json`; from then on whatever differs is refused, with the field, the frozen and the
found value named. `amend` appends an entry with a reason; every entry holds the hash of the one before it, so a changed
past shows. What was declared after a result existed stays exploratory.

Every entry is announced in the timeline before it is published: staged beside the contract, logged as `frozen` or
`amended` with its hash, then renamed into place. `agreed` compares the two, so that a contract rewritten after the
results is found; `recover` finishes, or drops, what a killed process left on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from veritune.config.claim import Claim
from veritune.config.load import sources
from veritune.config.study import Study
from veritune.counting import many
from veritune.errors import StaleError, StoreError
from veritune.ledger import Entry, LedgerDocument
from veritune.records import (
    FORMAT_VERSION,
    Contract,
    ContractEntry,
    Facts,
    Json,
    JsonLike,
    JsonValue,
    Standing,
    Terms,
    to_json,
)
from veritune.records.base import of_plain
from veritune.store import Store, now

HOUSEKEEPING = ("budget", "keep", "report_to", "probes")
"""Settings that change no result: what may be spent, which checkpoints stay, where logs are sent as well, and what is
trained beside the study to explain it. `probes.geometry` is frozen where it is declared: claims read what it asks."""

OF_GATES = ("merge", "serving")
"""Sections of the thresholds that decide gates alone: changing one leaves every claim as it was declared."""


def settings(study: Study) -> dict[str, JsonLike]:
    """The resolved settings that are frozen: all except housekeeping, and except the backend if it is the local one.

    Settings that came later than the first contracts are left out at their defaults, so that those stay as they are.
    """
    exclude: dict[str, Any] = dict.fromkeys(HOUSEKEEPING, True)
    if study.probes.geometry is not None:
        exclude["probes"] = {"leak"}
    if study.backend.name == "local":
        exclude["backend"] = True
    if not study.model.template_kwargs:
        exclude["model"] = {"template_kwargs"}
    if study.data.train_on == "all":
        exclude["data"] = {"train_on"}
    return study.model_dump(mode="json", exclude=exclude)


def terms(study: Study, facts: Facts) -> Terms:
    """Everything that is frozen: the resolved settings and the facts (hashes of data, split, template, model ...).

    The decision rules are the claims among the settings, and the source that judges them (`facts.code.decide`).
    """
    return Terms(settings(study), facts)


def study_of(terms: Terms) -> Study:
    """The frozen settings as a study."""
    return Study.model_validate(terms.study)


def unfrozen(study: Study, facts: Facts) -> Contract:
    """A stand-in for a contract while a study explores: every claim judged by it is exploratory."""
    early = ("not frozen",)
    return Contract((ContractEntry("", "not frozen", (), terms(study, facts), {}, {}, early, early, None, None),))


def freeze(store: Store, study: Study, facts: Facts, flags: Mapping[str, JsonLike] | None = None) -> Contract:
    """Write the contract, or confirm an existing equal one. Raises StaleError when the two differ.

    `flags` are the settings that were given beside the file. Results that are on disk already are listed: they, and
    every claim of this study, stay exploratory.
    """
    recover(store)
    found = terms(study, facts)
    if not store.contract_file.exists():
        _refuse_lost(store)
        _publish(store, _body(found, "frozen", (), _beside(store, study, flags or {})), "frozen")
    contract = agreed(store)
    differences = list(differ(to_json(contract.last.terms), to_json(found)))
    if differences:
        raise StaleError(
            f"{store.study_file} differs from the frozen contract: " + "; ".join(differences[:5]) + _more(differences),
            fix='Undo the change, or record it: `veritune amend STUDY --reason "..."` (or `run --amend "..."`).',
        )
    return contract


def amend(
    store: Store, study: Study, facts: Facts, reason: str, flags: Mapping[str, JsonLike] | None = None
) -> Contract:
    """Append the changed terms with a reason; without a change, return the contract as it is. Raises StoreError if the
    reason is empty.

    Where there is no contract, it is frozen.
    """
    if not reason.strip():
        raise StoreError("an amendment needs a reason.", fix='Say why: --reason "...".')
    recover(store)
    if not store.contract_file.exists():
        return freeze(store, study, facts, flags)
    contract = agreed(store)
    found = terms(study, facts)
    changes = list(differ(to_json(contract.last.terms), to_json(found)))
    if not changes:
        return contract
    kept = contract.last.flags if flags is None else flags
    body = _body(found, reason, changes, _beside(store, study, kept))
    _publish(store, body, "amended", reason=reason, changes=changes)
    return read(store)


def read(store: Store) -> Contract:
    """The contract with its chain recomputed. Raises StaleError naming the first entry that was edited.

    What the timeline says of it is not looked at: a bundle carries a contract without one. See `agreed`.
    """
    store.check_format()
    record: dict[str, JsonValue] = {"format": FORMAT_VERSION, "entries": [*_document(store).read()]}
    return of_plain(Contract, record, str(store.contract_file))


def agreed(store: Store) -> Contract:
    """The contract, after its chain was recomputed and its entries compared with the timeline's `frozen` and `amended`
    events.

    Raises StaleError where the two differ: an entry was rewritten, removed or inserted, or the timeline was.
    """
    contract = read(store)
    announced = _announced(store)
    entries = contract.entries
    staged = _document(store).staged()
    if staged and len(announced) == len(entries) + 1 and staged[-1]["hash"] == announced[-1]["contract"]:
        raise StaleError(
            f"{store.contract_file}: an amendment of {announced[-1]['time']} was interrupted.",
            fix="Run the same command again to finish it.",
        )
    for number, (entry, event) in enumerate(zip(entries, announced)):
        if entry.hash != event.get("contract"):
            raise StaleError(
                f"{store.contract_file}: entry {number} is {str(entry.hash)[:12]}, the timeline recorded "
                f"{str(event.get('contract'))[:12]} at {event['time']}: the contract was rewritten.",
                fix=_RESTORE,
            )
    if len(entries) != len(announced):
        raise StaleError(
            f"{store.contract_file} holds {many(len(entries), 'entries')}, the timeline records {len(announced)} "
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
    """Finish a contract entry that the timeline announced, or drop one that it did not announce; returns whether one
    was finished.

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


def _publish(store: Store, body: Mapping[str, JsonLike], event: str, **facts: Any) -> None:
    """Stage an entry, announce it in the timeline, and put it in place: killed anywhere, `recover` knows which."""
    document = _document(store)
    entry = document.stage(body)
    store.log(event, contract=entry["hash"], **facts)
    document.publish()


def _document(store: Store) -> LedgerDocument:
    return LedgerDocument(store.contract_file, {"format": FORMAT_VERSION})


def exploratory_claims(contract: Contract) -> set[str]:
    """Names of the claims that differ from their declaration in the last entry that was made before any results.

    A claim is also another one when what decides it is: its eval, its arms, the seeds, the schedule, model or data.
    """
    study, blind = study_of(contract.last.terms), [entry.terms for entry in contract.entries if not entry.results]
    if contract.first.results:
        return {claim.name for claim in study.claims}  # declared with scores in view
    before = study_of(blind[-1])
    declared = {c.name: _decides(before, blind[-1].facts, c) for c in before.claims}
    facts = contract.last.terms.facts
    return {c.name for c in study.claims if declared.get(c.name) != _decides(study, facts, c)}


def _decides(study: Study, facts: Facts, claim: Claim) -> Mapping[str, JsonLike]:
    """Everything that a claim's outcome depends on: package versions are no part of it, the code that judges is."""
    shared = study.model_dump(include={"model", "backend", "data", "split", "train", "seeds", "selection"})
    judging = {part: facts.code[part] for part in ("evaluate", "decide")}
    return {
        **shared,
        "thresholds": study.thresholds.model_dump(exclude=set(OF_GATES)),
        "claim": claim.model_dump(),
        "eval": study.evals[study.eval_of(claim)].model_dump(),
        **{
            key: study.evals[name].model_dump()
            for key, name in (("kept_eval", claim.kept_eval), ("against_eval", claim.against_eval))
            if name is not None
        },
        "arms": [study.conditions.get(arm) for arm in _arms_of(claim)],
        "facts": replace(facts, packages={}, code=judging),
    }


def _arms_of(claim: Claim) -> list[str]:
    return [arm for arm in (claim.condition, claim.against, claim.reference) if arm is not None]


def standing(contract: Contract) -> Callable[[str], Standing]:
    """What each run's results count as, by run id: `exploratory` if they existed before the freeze, else the number of
    the last amendment that they precede (None if they precede none).
    """
    made = [frozenset(entry.made) for entry in contract.entries]

    def worth(run_id: str) -> Standing:
        before = [number for number, there in enumerate(made) if number and run_id in there]
        return Standing(run_id in made[0], before[-1] if before else None)

    return worth


@dataclass(frozen=True, slots=True)
class _Beside:
    """What an entry records beside its terms: where settings came from, and what had been made and scored by then."""

    sources: Mapping[str, str]
    flags: Json
    results: tuple[str, ...]
    made: tuple[str, ...]


def _beside(store: Store, study: Study, flags: Mapping[str, JsonLike]) -> _Beside:
    return _Beside(
        sources={key: source for key, source in sources(study, flags).items() if _is_frozen(key, study)},
        flags=dict(flags),
        results=tuple(sorted({path.parent.parent.name for path in store.runs.glob("*/scores/*.jsonl")})),
        made=tuple(sorted({path.parent.name for path in store.runs.glob("*/summary.json")})),
    )


def _is_frozen(key: str, study: Study) -> bool:
    return study.backend.name != "local" or not key.startswith("backend.")


def _refuse_lost(store: Store) -> None:
    frozen = [event for event in store.events() if event["event"] == "frozen"]
    if frozen:
        raise StaleError(
            f"{store.contract_file} is gone, though the study was frozen at {frozen[0]['time']}.",
            fix="Restore the file, or start a new folder with the same study.yaml.",
        )


def _body(frozen: Terms, reason: str, changes: Sequence[str], beside: _Beside) -> Mapping[str, JsonLike]:
    return {"time": now(), "reason": reason, "changes": list(changes), "terms": frozen, **to_json(beside)}


def differ(frozen: JsonLike, found: JsonLike, path: str = "") -> Iterator[str]:
    """Each difference as `path: frozen X, found Y`, depth first."""
    if isinstance(frozen, Mapping) and isinstance(found, Mapping):
        for key in sorted({*frozen, *found}):
            yield from differ(frozen.get(key), found.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(frozen, list) and isinstance(found, list) and len(frozen) == len(found):
        for i, (a, b) in enumerate(zip(frozen, found)):
            yield from differ(a, b, f"{path}.{i}")
    elif frozen != found:
        yield f"{path}: frozen {_short(frozen)}, found {_short(found)}"


def _short(value: JsonLike) -> str:
    text = repr(value)
    return text if len(text) <= 70 else text[:67] + "..."


def _more(items: list[str]) -> str:
    return f" and {len(items) - 5} more." if len(items) > 5 else "."

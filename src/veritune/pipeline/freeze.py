"""`veritune freeze` and `veritune amend`: the contract written, or a change to it recorded with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from veritune import contract
from veritune.config.load import frozen_flags
from veritune.counting import many
from veritune.decide.reach import limits
from veritune.errors import InputError
from veritune.pipeline.plan import families_by_zone, items_by_eval
from veritune.pipeline.ready import Ready, make_ready
from veritune.pipeline.watch import study_at
from veritune.progress import Progress
from veritune.records import Contract, Facts, JsonLike, RunSummary
from veritune.seal import break_seal, mark_summaries, refuse_edited, resealing
from veritune.store import Store


@dataclass(frozen=True)
class Frozen:
    """A study's contract after a command: its hash, its entries, what the last entry changed, and which results it
    marks.

    `exploratory` are runs that were there before the freeze, `marked` those that an amendment came after. `limits` is
    what the declared design can never decide.
    """

    folder: Path
    hash: str
    entries: int
    changes: tuple[str, ...]
    exploratory: tuple[str, ...]
    marked: tuple[str, ...]
    sources: Mapping[str, str]
    facts: Facts
    limits: tuple[str, ...] = ()


def freeze(
    study_file: str | Path, flags: Mapping[str, JsonLike] | None = None, progress: Progress | None = None
) -> Frozen:
    """Check a study, hash everything it is made from and write its contract; a study that is frozen already is
    confirmed.

    `flags` override the file's settings; they stay in the contract and need not be given again. Without any, a frozen
    study's own are used. Raises StaleError naming what differs from a contract that is there.
    """
    folder = Path(study_file) if Path(study_file).is_dir() else Path(study_file).parent
    given = {**frozen_flags(folder), **(flags or {})}
    store, study = study_at(study_file, given)
    with store.lock():
        _check(store)
        ready = make_ready(store, study, progress or Progress())
        kept = contract.freeze(store, study, ready.facts, given)
        mark_results(store, kept)
    return _frozen(store, kept, ready)


def amend(
    study_file: str | Path, reason: str, flags: Mapping[str, JsonLike] | None = None, progress: Progress | None = None
) -> Frozen:
    """Record a change of the study, with its reason. Every existing result is marked as made before the change.

    Killed anywhere it may be given again: an amendment with this reason that was recorded already is finished.
    Raises InputError without a contract, StoreError without a reason or when nothing differs.
    """
    folder = Path(study_file) if Path(study_file).is_dir() else Path(study_file).parent
    given = {**frozen_flags(folder), **(flags or {})}
    store, study = study_at(study_file, given)
    if not store.contract_file.exists():
        raise InputError(
            f"{store.root} is not frozen: there is nothing to amend.", fix="Freeze it first: veritune freeze STUDY"
        )
    with store.lock():
        _check(store)
        before = len(contract.agreed(store).entries)
        ready = make_ready(store, study, progress or Progress())
        with resealing(store, "amend", remade=("contract.lock.json", "audit/")):
            kept = contract.amend(store, study, ready.facts, reason, given)
            again = len(kept.entries) == before
            if again and not (before > 1 and kept.last.reason == reason):
                raise InputError(
                    "nothing differs from the contract: there is nothing to amend.",
                    fix="Change study.yaml first, then amend.",
                )
            mark_results(store, kept)
    return _frozen(store, kept, ready)


def _check(store: Store) -> None:
    store.check_format()
    store.check_events()
    store.clear_partial()
    contract.recover(store)
    refuse_edited(store)


def mark_results(store: Store, kept: Contract) -> None:
    """Write into each run's summary what the contract says about it, so that readers of that file alone see it."""
    if len(kept.entries) == 1 and not kept.first.made:
        return
    marked, worth_of = {}, contract.standing(kept)
    for path in sorted(store.runs.glob("*/summary.json")):
        summary, worth = RunSummary.load(path), worth_of(path.parent.name)
        early = worth.exploratory or summary.exploratory
        as_marked = replace(summary, exploratory=early, before_amendment=worth.before_amendment)
        if as_marked != summary:
            marked[path.parent.name] = as_marked
    if marked:
        break_seal(store)
        mark_summaries(store, marked)


def _frozen(store: Store, kept: Contract, ready: Ready) -> Frozen:
    return Frozen(
        folder=store.root,
        hash=str(kept.last.hash),
        entries=len(kept.entries),
        changes=kept.last.changes,
        exploratory=kept.first.made,
        marked=kept.last.made if len(kept.entries) > 1 else (),
        sources=kept.last.sources,
        facts=kept.facts,
        limits=tuple(limits(ready.study, items_by_eval(ready), families_by_zone(ready))),
    )


def frozen_text(found: Frozen) -> str:
    """The result of `freeze` and `amend` as text for the screen."""
    sources = list(found.sources.values())
    counts = ", ".join(f"{sources.count(s)} by {s}" for s in ("file", "flag", "default") if s in sources)
    lines = [f"contract {found.hash[:16]}, entry {found.entries - 1}: {len(sources)} settings ({counts})"]
    lines += [f"  {name}: {value}" for name, value in _hashes(found.facts)]
    lines += [f"  set by flag: {name}" for name, source in found.sources.items() if source == "flag"]
    lines += [f"  changed: {change}" for change in found.changes]
    if found.exploratory:
        lines.append(f"  {many(len(found.exploratory), 'runs', 'were')} made before the freeze: they stay exploratory")
    if found.marked:
        lines.append(f"  {many(len(found.marked), 'runs', 'are')} marked as made before amendment {found.entries - 1}")
    lines += [f"  cannot decide: {limit}" for limit in found.limits]
    return "\n".join(lines)


def _hashes(facts: Facts) -> list[tuple[str, str]]:
    named = {"data_sha256": "data file", "data_version": "rows, families and zones", "rendered_sha256": "token ids"}
    named |= {"template_sha256": "chat template", "tokenizer_sha256": "tokenizer"}
    found = [(text, getattr(facts, key)[:16]) for key, text in named.items()]
    found += [(f"base {name}", digest[:16]) for name, digest in facts.model.files.items()]
    found += [(f"code, {part}", digest[:16]) for part, digest in facts.code.items()]
    return [*found, ("packages", ", ".join(f"{k} {v}" for k, v in facts.packages.items()))]

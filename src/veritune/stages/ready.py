"""A study made ready: file, model, data, items and facts checked, before anything is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from veritune.config.study import Study
from veritune.data.prepare import Prepared, load_prepared, prepare
from veritune.errors import StudyError
from veritune.evaluate import tasks
from veritune.machine import code_hashes, describe_machine, package_versions, settle_imports
from veritune.probe.names import nearest, pattern_of, patterns_text
from veritune.progress import Progress
from veritune.records import MachineFacts, Row
from veritune.store import Store
from veritune.train.backends import Backend, backend_of
from veritune.train.schedule import kept_families, smallest_share


@dataclass(frozen=True)
class Ready:
    """What every cell of a study shares. `facts` is what the contract freezes beside the settings.

    `items` are the rows each eval asks, by the eval's name; `tokenizer` is the model's own.
    """

    store: Store
    study: Study
    progress: Progress
    model: Any
    tokenizer: Any
    data: Prepared
    items: Mapping[str, list[Row]]
    facts: Mapping[str, Any]

    @cached_property
    def backend(self) -> Backend:
        """Where cells train and answer."""
        return backend_of(self.study)

    @cached_property
    def context(self) -> Any:
        """The same for `train.cells`."""
        from veritune.train.cells import Context

        return Context(self.store, self.study, self.model, self.tokenizer, self.data, self.progress)

    @cached_property
    def machine(self) -> MachineFacts:
        """This machine, as manifests record it."""
        return describe_machine()

    @property
    def packages(self) -> Mapping[str, str]:
        """Package versions here, as manifests record them."""
        packages: Mapping[str, str] = self.facts["packages"]
        return packages

    @cached_property
    def nll_rows(self) -> list[str]:
        """Ids of the rows whose loss every cell measures: the items of all evals and the validation rows."""
        asked = {row.id for rows in self.items.values() for row in rows}
        return [r.id for r in self.data.rows if r.id in asked or self.data.zone_of[r.id] == "validation"]


def make_ready(store: Store, study: Study, progress: Progress, *, frozen: Mapping[str, Any] | None = None) -> Ready:
    """Check the study and prepare its data.

    With `frozen` (the facts of a contract) the data version that was frozen is read back from disk instead, which is
    quick, and its hashes are compared with the contract's. Raises StudyError, DataError, GateError, ModelError,
    StaleError.
    """
    model, tokenizer = _checked_model(store, study)
    settle_imports()
    data = load_prepared(store, frozen) if frozen else prepare(store, study, tokenizer)
    items = _items(study, data)
    return Ready(store, study, progress, model, tokenizer, data, items, _facts(study, model, data))


def _checked_model(store: Store, study: Study) -> tuple[Any, Any]:
    from veritune.train import distributed, methods
    from veritune.train.models import context_length, load_tokenizer

    backend = backend_of(study)
    backend.refuse()
    for name, condition in study.conditions.items():
        methods.check(name, condition)
    distributed.check(study)
    _check_probes(study)
    model = backend.model(store.root)
    tokenizer = load_tokenizer(model)
    longest = context_length(model)
    if longest is not None and study.train.max_length > longest:
        raise StudyError(
            f"train.max_length: {study.train.max_length} exceeds the model's context of {longest} tokens.",
            fix=f"Set it to at most {longest}.",
        )
    return model, tokenizer


def _check_probes(study: Study) -> None:
    """Raises StudyError for a claim on a quantity that no probe of this study records."""
    for claim in study.claims:
        if claim.probe is None or pattern_of(claim.probe, study) is not None:
            continue
        close = nearest(claim.probe, study)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise StudyError(
            f"claims: {claim.name}: no probe {claim.probe!r}{hint}.", fix=f"There are: {patterns_text(study)}."
        )


def _items(study: Study, data: Prepared) -> dict[str, list[Row]]:
    """The rows each eval asks. Where a condition trains on part of the data, `seen` and `sibling` items come from the
    smallest part: parts are nested, so that every arm has trained on every family that these items belong to.
    """
    chosen = {}
    kept = kept_families(study, data, smallest_share(study))
    every = [r for r in data.rows if data.zone_of[r.id] not in ("seen", "sibling") or data.family_of[r.id] in kept]
    for name, spec in study.evals.items():
        rows = tasks.items(spec, every, data.zone_of, data.family_of)
        empty = [zone for zone in spec.zones if not any(data.zone_of[r.id] == zone for r in rows)]
        if empty:
            raise StudyError(f"evals.{name}: zone {empty[0]!r} has no items.", fix="Change `split` or the zones.")
        tasks.check_items(name, spec, rows)
        chosen[name] = rows
    return chosen


def _facts(study: Study, model: Any, data: Prepared) -> dict[str, Any]:
    weights = backend_of(study).facts(model)
    return {**data.facts, "model": weights, "packages": package_versions(), "code": code_hashes()}

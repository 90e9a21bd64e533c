"""A study made ready: file, model, data, items and facts checked, before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from veritune.config.evals import Eval
from veritune.config.study import BY_STEP, Study
from veritune.data.benchmarks import as_asked
from veritune.data.choices import ChoiceOptions, option_rows, options_of
from veritune.data.prepare import Prepared, load_prepared, prepare
from veritune.data.render import Renderer
from veritune.errors import StudyError
from veritune.evaluate import tasks
from veritune.evaluate.scorers import check_scorer
from veritune.machine import code_hashes, describe_machine, package_versions, settle_imports
from veritune.probe.names import nearest, pattern_of, patterns_text
from veritune.progress import Progress
from veritune.records import (
    Facts,
    MachineFacts,
    Rendered,
    Row,
)
from veritune.store import Store
from veritune.train import distributed, methods, quantised
from veritune.train.backends.protocol import TrainingBackend, backend_of
from veritune.train.models import ModelRef, context_length, layer_count, load_tokenizer
from veritune.train.schedule import (
    MAIN,
    Cell,
    check_cadence,
    kept_families,
    seen_rows,
    smallest_share,
    source_of_rows,
    summary_hasher,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from veritune.train.cells import Context


NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class ItemOptions:
    """One multiple-choice item: its options, and each option rendered as the answer."""

    row: Row
    options: ChoiceOptions
    rows: tuple[Rendered, ...]


@dataclass(frozen=True)
class Ready:
    """What all cells of a study share. `facts` is what the contract freezes beside the settings.

    `items` are the rows each eval asks, by the eval's name; `tokenizer` is the model's own.
    """

    store: Store
    study: Study
    progress: Progress
    model: ModelRef
    tokenizer: PreTrainedTokenizerBase
    data: Prepared
    items: Mapping[str, list[Row]]
    facts: Facts

    @cached_property
    def backend(self) -> TrainingBackend:
        """The backend that trains the cells and answers evals."""
        return backend_of(self.study)

    @cached_property
    def context(self) -> Context:
        """The same data as a context for `train.cells`."""
        from veritune.train.cells import Context

        return Context(self.store, self.study, self.model, self.tokenizer, self.data, self.progress)

    @cached_property
    def made_from(self) -> Callable[[Cell], str]:
        """The hash that a cell's summary must be made from, computed for many cells: see
        `train.schedule.summary_hash`."""
        return summary_hasher(self.study, self.facts)

    @cached_property
    def machine(self) -> MachineFacts:
        """This machine's facts, as recorded in manifests."""
        return describe_machine()

    @property
    def packages(self) -> Mapping[str, str]:
        """The package versions here, as recorded in manifests."""
        return self.facts.packages

    @cached_property
    def options(self) -> Mapping[str, list[ItemOptions]]:
        """The options of every item of evals of `kind: choice`, rendered as answers, in the order of `items`."""
        return {n: self._options_of(n, spec) for n, spec in self.study.evals.items() if spec.kind == "choice"}

    def _options_of(self, name: str, spec: Eval) -> list[ItemOptions]:
        limit = context_length(self.model) or NO_LIMIT
        renderer = Renderer(self.tokenizer, limit, template_kwargs=self.study.model.template_kwargs)
        made = []
        for row in self.items[name]:
            options = options_of(name, spec, row)
            asked = row if spec.path is None else as_asked(name, spec, row)
            rows = option_rows(asked, options.said(spec), self.data.prompt_of(row.id), renderer)
            made.append(ItemOptions(row, options, tuple(rows)))
        return made

    @cached_property
    def nll_rows(self) -> list[str]:
        """Ids of the rows whose loss every cell measures: the items of all evals and the validation rows."""
        asked = {row.id for rows in self.items.values() for row in rows}
        return [r.id for r in self.data.rows if r.id in asked or self.data.zone_of[r.id] == "validation"]


def make_ready(
    store: Store,
    study: Study,
    progress: Progress,
    *,
    frozen: Facts | None = None,
    elsewhere: bool = False,
) -> Ready:
    """Check the study and prepare its data.

    With `frozen` (the facts of a contract) the data version that was frozen is read back from disk instead, which is
    quick, and its hashes are compared with the contract's. `elsewhere`: cells run on other machines, whose devices are
    not looked for here. Raises StudyError, DataError, GateError, ModelError, MachineError, StaleError.
    """
    model, tokenizer = _checked_model(store, study)
    if frozen is None:
        if not elsewhere:
            distributed.check_here(study)
        _check_arms(study, model)
    settle_imports()
    data = load_prepared(store, frozen) if frozen else prepare(store, study, tokenizer)
    items = _items(store.root, study, data)
    _check_lengths(study, model, data)
    check_cadence(study, data)
    source_of_rows(study, data)
    return Ready(store, study, progress, model, tokenizer, data, items, _facts(study, model, data))


def _checked_model(store: Store, study: Study) -> tuple[ModelRef, PreTrainedTokenizerBase]:
    backend = backend_of(study)
    backend.refuse()
    for name, condition in study.conditions.items():
        methods.check(name, condition)
    methods.check_regularised(study)
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


def _check_lengths(study: Study, model: ModelRef, data: Prepared) -> None:
    """Raises StudyError for an item of a benchmark whose prompt and answer do not fit the model's context."""
    limit = context_length(model)
    for name, benchmark in data.benchmarks.items():
        longest = max(benchmark.prompts, key=lambda item: len(benchmark.prompts[item]))
        spec = study.evals[name]
        n, new = len(benchmark.prompts[longest]), 1 if spec.kind == "choice" else spec.max_new_tokens
        if limit is not None and n + new > limit:
            raise StudyError(
                f"evals.{name}: item {longest} has {n} prompt tokens; with max_new_tokens {new} that exceeds the "
                f"model's context of {limit} tokens.",
                fix=f"Set max_new_tokens to at most {limit - n}." if n < limit else "Remove the item from the file.",
            )


def _check_arms(study: Study, model: ModelRef) -> None:
    """Raises StudyError for an arm that cannot be built on this architecture, or a layer of `probes.geometry` that it
    does not have: `run` would find out later."""
    asked, layers = study.probes.geometry, layer_count(model)
    wrong = [layer for layer in (asked.layers or () if asked is not None else ()) if layers and layer > layers]
    if wrong:
        raise StudyError(f"probes.geometry.layers: no layer {wrong[0]}.", fix=f"There are 0 (embeddings) to {layers}.")
    for name, condition in study.conditions.items():
        methods.check_fits(name, condition, model)


def _check_probes(study: Study) -> None:
    """Raises StudyError for a claim on a quantity that no probe of this study records."""
    for claim in study.claims:
        if (claim.probe or "").startswith(BY_STEP) and study.keep != "all":
            raise StudyError(
                f"claims: {claim.name} names a step of the geometry.", fix="Set `keep: all`: every step is read."
            )
        if claim.probe is None or pattern_of(claim.probe, study) is not None:
            continue
        close = nearest(claim.probe, study)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise StudyError(
            f"claims: {claim.name}: unknown probe {claim.probe!r}{hint}.",
            fix=f"Probes of this study: {patterns_text(study)}.",
        )


def _items(root: Path, study: Study, data: Prepared) -> dict[str, list[Row]]:
    """The rows each eval asks. Where a condition trains on part of the data, `seen` and `sibling` items come from the
    smallest part: parts are nested, so that every arm has trained on every family that these items belong to.
    """
    chosen = {}
    kept = kept_families(study, data, smallest_share(study))
    every = [r for r in data.rows if data.zone_of[r.id] not in ("seen", "sibling") or data.family_of[r.id] in kept]
    if study.data.sets:
        every = _trained_by_all(study, data, every)
    for name, spec in study.evals.items():
        if spec.path is not None:
            chosen[name] = list(data.benchmarks[name].rows)
            tasks.check_items(name, spec, chosen[name])
            check_scorer(name, spec, chosen[name], root)
            continue
        rows = tasks.items(spec, every, data.zone_of, data.family_of)
        empty = [zone for zone in spec.zones if not any(data.zone_of[r.id] == zone for r in rows)]
        if empty:
            raise StudyError(f"evals.{name}: zone {empty[0]!r} has no items.", fix="Change `split` or the zones.")
        tasks.check_items(name, spec, rows)
        check_scorer(name, spec, rows, root)
        chosen[name] = rows
    return chosen


def _trained_by_all(study: Study, data: Prepared, rows: list[Row]) -> list[Row]:
    """Without the `seen` rows, and siblings of families, that some condition does not train on: sets differ by arm."""
    arms = [
        {r.row_id for r in seen_rows(study, data, Cell("", MAIN, name, study.seeds[0], 0.0, ""))}
        for name in study.conditions
    ]
    seen = set.intersection(*arms)
    families = set.intersection(*({data.family_of[row] for row in arm} for arm in arms))

    def shared(row: Row) -> bool:
        zone = data.zone_of[row.id]
        return (zone != "seen" or row.id in seen) and (zone != "sibling" or data.family_of[row.id] in families)

    return [row for row in rows if shared(row)]


def _facts(study: Study, model: ModelRef, data: Prepared) -> Facts:
    weights = backend_of(study).facts(model)
    return Facts.of(data.facts, weights, package_versions(left_out=unused_packages(study)), code_hashes())


def unused_packages(study: Study) -> set[str]:
    """Packages that no condition of this study uses, even if installed; the contract does not record their versions.

    `gguf` only unpacks a base whose files the contract holds by hash; `pydantic` reads what the contract holds itself.
    """
    methods = {condition.method for condition in study.conditions.values()}
    used = {
        "bitsandbytes": quantised.QLORA in methods,
        "deepspeed": study.train.strategy == "deepspeed",
        "peft": bool(methods - {"full"}),
        "gguf": False,
        "pydantic": False,
    }
    return {name for name, is_used in used.items() if not is_used}

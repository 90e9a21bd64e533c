"""The named quantities of a study folder: every recorded number with its name, unit, denominator, scope and source.

A name is a dotted path, from the general to the particular:

    score.<eval>.<zone>.<condition>[.seed<k>]     mean score; without a seed the mean over the condition's runs
    rule.<eval>.<zone>.<condition>[.seed<k>].<r>  share of outputs that keep one rule
    gap|se|p|df.<claim>[.<estimand>]              a verdict's estimates, the headline without a suffix
    ci.<claim>[.<estimand>].low|high              its interval; `level.<claim>` is its level
    share.<claim>                                 the share carried over, for `generalises`
    nll.<zone>.<condition>[.seed<k>]              nats per target token
    n.<noun>...                                   counts: items, scored, families, rows, seeds, runs, cut, missing ...
    params.<condition>, lr.<condition>, steps.<condition>, tokens.<...>, train.<setting>, split.<setting> ...

A quantity that an older contract entry or a superseded run holds is `stale`: it names what a text may no longer say.
Nothing is computed here beyond means over seeds and sums of counts; each quantity says which record it comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from veritune.errors import FormatError, InputError
from veritune.records import ZONES, RunSummary, TrainingRecord, ZoneScore
from veritune.store import Store, read_json, read_jsonl

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a number speaks of. None means that the dimension does not apply, or that it is averaged over."""

    condition: str | None = None
    against: str | None = None
    zone: str | None = None
    eval: str | None = None
    seed: int | None = None
    claim: str | None = None

    def text(self) -> str:
        """`all_layer, zone stranger, seed 0`."""
        parts = [self.condition and (f"{self.condition} against {self.against}" if self.against else self.condition)]
        parts += [f"zone {self.zone}" if self.zone else None, self.eval]
        parts.append(f"seed {self.seed}" if self.seed is not None else None)
        return ", ".join(p for p in parts if p) or "the study"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One recorded number.

    `kind` groups what one word can mean (`score`, `gap`, `ci`, `p`, `nll`, `items` ...). `source` is a file relative
    to the study folder and `pointer` a JSON pointer into it. `aliases` are words that bind a number to this quantity.
    `rate` says that the number may be printed as a percentage. `stale` holds why a text may no longer use it.
    """

    name: str
    kind: str
    value: float
    unit: str = ""
    denominator: int | None = None
    scope: Scope = Scope()
    source: str = ""
    pointer: str = ""
    aliases: tuple[str, ...] = ()
    rate: bool = False
    stale: str = ""


@dataclass(frozen=True, slots=True)
class Records:
    """What a text is checked against: the quantities, and the names and hashes of the study."""

    root: Path
    name: str
    contract: str
    old_contracts: tuple[str, ...]
    verdict_contract: str | None
    terms: Mapping[str, Any]
    verdicts: tuple[Mapping[str, Any], ...]
    quantities: tuple[Quantity, ...]
    hashes: Mapping[str, str]
    runs: Mapping[str, RunSummary]
    old_runs: tuple[str, ...] = ()
    by_name: Mapping[str, Quantity] = field(default_factory=dict)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The arms by name, the baseline last."""
        return (*self.terms["study"]["conditions"], BASELINE)

    @property
    def evals(self) -> tuple[str, ...]:
        return tuple(self.terms["study"]["evals"])

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.terms["study"]["seeds"])

    def claim(self, name: str) -> Mapping[str, Any]:
        """A claim as it was declared."""
        return next((c for c in self.terms["study"]["claims"] if c["name"] == name), {})

    def eval_of(self, claim: Mapping[str, Any]) -> str | None:
        return claim.get("eval") or (self.evals[0] if len(self.evals) == 1 else None)


def quantities(store: Store) -> list[Quantity]:
    """Every recorded number of a study folder, by name. Raises InputError where no contract was frozen."""
    return list(read_records(store).quantities)


def read_records(store: Store) -> Records:
    """Read a study folder once. Raises InputError without a contract, FormatError where a record is damaged."""
    if not store.contract_file.exists():
        raise InputError(
            f"{store.root} holds no contract.lock.json, so it has no records to compare with.",
            fix="Name the folder of a study that ran (`veritune run STUDY`).",
        )
    store.check_format()
    entries = read_json(store.contract_file).get("entries") or []
    if not entries:
        raise FormatError(f"{store.contract_file} holds no entries.", fix="Restore it.")
    try:
        return _records(store, entries)
    except (KeyError, TypeError, AttributeError, IndexError) as exc:
        raise FormatError(
            f"{store.root}: a record does not have the shape of format 1 ({type(exc).__name__}: {exc}).",
            fix="Restore the record, or run the study again.",
        ) from exc


def _records(store: Store, entries: list[dict[str, Any]]) -> Records:
    terms = entries[-1]["terms"]
    verdict = read_json(store.verdict_file) if store.verdict_file.exists() else {}
    verdicts = tuple(verdict.get("verdicts", ()))
    runs, old_runs = _runs(store, verdicts)
    found = list(_settings(terms, len(entries) - 1))
    found += _of_runs(store, terms, runs, "")
    for number, claim in enumerate(verdicts):
        declared: dict[str, Any] = next((c for c in terms["study"]["claims"] if c["name"] == claim["claim"]), {})
        found += _of_verdict(claim, declared, list(terms["study"]["evals"]), f"/verdicts/{number}")
    found += _of_study(store, terms, runs)
    found = _unique(found)
    found += _stale(store, entries, old_runs, found)
    return Records(
        root=store.root,
        name=terms["study"]["name"],
        contract=entries[-1]["hash"],
        old_contracts=tuple(e["hash"] for e in entries[:-1]),
        verdict_contract=verdict.get("contract"),
        terms=terms,
        verdicts=verdicts,
        quantities=tuple(found),
        hashes=_hashes(entries, verdict, runs, old_runs),
        runs=runs,
        old_runs=tuple(sorted(old_runs)),
        by_name={q.name: q for q in found if not q.stale},
    )


def _unique(found: Iterable[Quantity]) -> list[Quantity]:
    """One quantity per name, the first that was recorded."""
    kept: dict[str, Quantity] = {}
    for quantity in found:
        kept.setdefault(quantity.name, quantity)
    return list(kept.values())


# ---------------------------------------------------------------- which runs count


def _runs(store: Store, verdicts: Iterable[Mapping[str, Any]]) -> tuple[dict[str, RunSummary], dict[str, RunSummary]]:
    """Finished runs by id: those that count now, and those that a later run or the verdicts have put aside.

    Of two runs of one condition and seed the one that a verdict names counts, otherwise the one that finished last.
    """
    summaries = {path.parent.name: RunSummary.load(path) for path in sorted(store.runs.glob("*/summary.json"))}
    arms = [e["details"].get(s) for v in verdicts for e in v["estimates"] for s in ("a", "b")]
    named = {run for arm in arms if isinstance(arm, Mapping) for run in arm.get("runs", ())}
    current: dict[tuple[str, Any], str] = {}
    for run_id, summary in summaries.items():
        key = (summary.condition, summary.seed)
        rank = (run_id in named, summary.finished)
        other = current.get(key)
        if other is None or rank > (other in named, summaries[other].finished):
            current[key] = run_id
    kept = set(current.values())
    return {k: v for k, v in summaries.items() if k in kept}, {k: v for k, v in summaries.items() if k not in kept}


def _stale(
    store: Store, entries: list[dict[str, Any]], old: Mapping[str, RunSummary], now: list[Quantity]
) -> list[Quantity]:
    """Numbers of older contract entries and superseded runs, where they differ from what holds now."""
    current = {q.name: q.value for q in now}
    found: list[Quantity] = []
    for number, entry in enumerate(entries[:-1]):
        why = f"contract entry {number}, amended since"
        found += [replace(q, stale=why) for q in _settings(entry["terms"], number)]
    terms = entries[-1]["terms"]
    found += [replace(q, stale="a superseded run") for q in _of_runs(store, terms, old, "")]
    return [q for q in found if current.get(q.name) != q.value]


# ---------------------------------------------------------------- from the contract


_TRAIN_WORDS = {
    "num_train_epochs": ("epochs", "passes"),
    "per_device_train_batch_size": ("batch size", "batches of", "rows per device"),
    "gradient_accumulation_steps": ("gradient accumulation", "accumulation"),
    "learning_rate": ("learning rate", "lr"),
    "warmup_steps": ("warmup", "warm-up"),
    "weight_decay": ("weight decay",),
    "max_grad_norm": ("gradient clipping", "clipping", "max_grad_norm"),
    "max_length": ("max_length", "longest row", "maximum length", "tokens"),
    "max_steps": ("max_steps",),
    "eval_steps": ("eval_steps",),
}
_KIND_OF = {
    "max_length": "tokens",
    "num_train_epochs": "epochs",
    "learning_rate": "lr",
    "per_device_train_batch_size": "batch_size",
}


def _settings(terms: Mapping[str, Any], entry: int) -> Iterator[Quantity]:
    """Numbers of the frozen settings and facts."""
    base, source = f"/entries/{entry}/terms", "contract.lock.json"
    study, facts = terms["study"], terms["facts"]
    for key, value in study["train"].items():
        if _is_number(value) and value != -1:
            words = _TRAIN_WORDS.get(key, (key.replace("_", " "),))
            kind, pointer = _KIND_OF.get(key, "setting"), f"{base}/study/train/{key}"
            yield Quantity(f"train.{key}", kind, value, source=source, pointer=pointer, aliases=words)
    for key, value in study["split"].items():
        words = ("split seed",) if key == "seed" else (f"{key} share", "share", "split", key)
        kind = "split_seed" if key == "seed" else "split"
        yield Quantity(
            f"split.{key}", kind, value, source=source, pointer=f"{base}/study/split/{key}", aliases=words, rate=True
        )
    for name, condition in study["conditions"].items():
        lr = condition.get("learning_rate") or study["train"]["learning_rate"]
        scope, pointer = Scope(condition=name), f"{base}/study/conditions/{name}"
        yield Quantity(f"lr.{name}", "lr", lr, "", None, scope, source, pointer, ("learning rate", "lr"))
        for key, value in condition.items():
            if key != "learning_rate" and _is_number(value):
                words = {"r": ("rank", "r"), "lora_alpha": ("alpha", "lora_alpha")}.get(key, (key.replace("_", " "),))
                kind = {"r": "rank", "lora_alpha": "lora_alpha"}.get(key, "setting")
                yield Quantity(f"{key}.{name}", kind, value, "", None, scope, source, f"{pointer}/{key}", words)
    for name, spec in study["evals"].items():
        yield from _eval_settings(name, spec, f"{base}/study/evals/{name}")
    for seed in study["seeds"]:
        pointer = f"{base}/study/seeds"
        yield Quantity(f"seed.{seed}", "seed", seed, "", None, Scope(), source, pointer, ("seed",))
    for noun in ("seeds", "conditions", "evals", "claims"):
        yield Quantity(
            f"n.{noun}", noun, len(study[noun]), "count", None, Scope(), source, f"{base}/study/{noun}", (noun,)
        )
    yield Quantity("n.arms", "conditions", len(study["conditions"]) + 1, "count", None, Scope(), source, "", ("arms",))
    yield from _facts(facts, f"{base}/facts")


def _eval_settings(name: str, spec: Mapping[str, Any], pointer: str) -> Iterator[Quantity]:
    scope, source = Scope(eval=name), "contract.lock.json"
    words = {"max_new_tokens": ("new tokens", "tokens"), "batch_size": ("batch size", "prompts"), "per_family": ()}
    for key, value in spec.items():
        if _is_number(value):
            kind = {"max_new_tokens": "max_new_tokens", "batch_size": "batch_size"}.get(key, "per_family")
            aliases = words.get(key, ()) or ("per family", "items per family", "of each family")
            yield Quantity(f"{key}.{name}", kind, value, "", None, scope, source, f"{pointer}/{key}", aliases)
    n_rules = len(spec.get("rules") or ())
    if n_rules:
        yield Quantity(
            f"n.rules.{name}", "rules", n_rules, "count", None, scope, source, f"{pointer}/rules", ("rules",)
        )


def _facts(facts: Mapping[str, Any], base: str) -> Iterator[Quantity]:
    """Counts of rows, families and tokens, in all and by zone."""
    source, families = "contract.lock.json", facts.get("families", {})
    for key, noun in (
        ("originals", "families"),
        ("rows", "rows"),
        ("variants", "variants"),
        ("size_max", "per_family"),
    ):
        if _is_number(families.get(key)):
            pointer = f"{base}/families/{key}"
            yield Quantity(f"n.{key}", noun, families[key], "count", None, Scope(), source, pointer, (noun,))
    if _is_number(families.get("size_mean")):
        pointer = f"{base}/families/size_mean"
        yield Quantity("families.size_mean", "per_family", families["size_mean"], "", None, Scope(), source, pointer)
    for zone, counts in facts.get("zones", {}).items():
        for noun, n in counts.items():
            words = (noun, "rows") if noun == "rows" else (noun,)
            yield Quantity(
                f"{noun}.{zone}", noun, n, "count", None, Scope(zone=zone), source, f"{base}/zones/{zone}/{noun}", words
            )
    for key, label in (("target_tokens", "target tokens"), ("tokens", "tokens")):
        for zone, n in facts.get(key, {}).items():
            scope, pointer = Scope(zone=zone), f"{base}/{key}/{zone}"
            yield Quantity(f"{key}.{zone}", "tokens", n, "tokens", None, scope, source, pointer, (label,))
        if facts.get(key):
            total = sum(facts[key].values())
            yield Quantity(f"{key}.all", "tokens", total, "tokens", None, Scope(), source, f"{base}/{key}", (label,))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ---------------------------------------------------------------- from the runs


def _of_runs(store: Store, terms: Mapping[str, Any], runs: Mapping[str, RunSummary], stale: str) -> list[Quantity]:
    """Scores, losses, counts and training facts of each run, and over each condition's runs."""
    found: list[Quantity] = []
    by_condition: dict[str, list[RunSummary]] = {}
    for summary in runs.values():
        by_condition.setdefault(summary.condition, []).append(summary)
    for condition, members in by_condition.items():
        for summary in members:
            found += _of_run(summary, seeded=summary.seed is not None)
        if members[0].seed is not None:
            found += _over_seeds(condition, members)
    return found


def summary_path(summary: RunSummary) -> str:
    """A run's summary, relative to the study folder."""
    return f"runs/{summary.run_id}/summary.json"


def _of_run(summary: RunSummary, *, seeded: bool) -> Iterator[Quantity]:
    condition, seed, source = summary.condition, summary.seed, summary_path(summary)
    tail = f"{condition}.seed{seed}" if seeded else condition
    at = Scope(condition=condition, seed=seed)
    for name, zones in summary.scores.items():
        for zone, cell in zones.items():
            scope = replace(at, eval=name, zone=zone)
            yield from _score_cell(f"{name}.{zone}.{tail}", cell, scope, source, f"/scores/{name}/{zone}")
    for zone, loss in summary.nll.items():
        scope, pointer = replace(at, zone=zone), f"/nll/{zone}"
        yield Quantity(
            f"nll.{zone}.{tail}", "nll", loss.nll, "nats per target token", loss.target_tokens, scope, source,
            f"{pointer}/nll", ("nll", "loss"),
        )  # fmt: skip
        for key, noun, n in (("rows", "rows", loss.rows), ("target_tokens", "tokens", loss.target_tokens)):
            yield Quantity(f"nll.{key}.{zone}.{tail}", noun, n, "count", None, scope, source, f"{pointer}/{key}")
    if summary.training is not None:
        yield from _training(tail, summary.training, at, source)


def _score_cell(tail: str, cell: ZoneScore, scope: Scope, source: str, pointer: str) -> Iterator[Quantity]:
    words = ("score", "rate", "mean", "share of the rules")
    if cell.mean is not None:
        mean = cell.mean
        yield Quantity(
            f"score.{tail}", "score", mean, "rate", cell.scored, scope, source, f"{pointer}/mean", words, True
        )
        total = mean * cell.scored
        if abs(total - round(total)) < 1e-6:
            yield Quantity(f"total.{tail}", "right", round(total), "count", cell.scored, scope, source, pointer)
    for key, n in (("scored", cell.scored), ("items", cell.items), ("cut", cell.cut)):
        yield Quantity(f"n.{key}.{tail}", key, n, "count", cell.items, scope, source, f"{pointer}/{key}")
    missing = sum(cell.missing.values())
    yield Quantity(f"n.missing.{tail}", "missing", missing, "count", cell.items, scope, source, f"{pointer}/missing")
    for rule, count in (cell.rules or {}).items():
        name, where = f"rule.{tail}.{rule}", f"{pointer}/rules/{rule}"
        if count.of:
            share = count.held / count.of
            yield Quantity(name, "rule", share, "rate", count.of, scope, source, where, (rule,), True)
        yield Quantity(f"n.{name}", "held", count.held, "count", count.of, scope, source, f"{where}/held", (rule,))


def _training(tail: str, training: TrainingRecord, scope: Scope, source: str) -> Iterator[Quantity]:
    numbers = (
        ("steps", training.steps, "steps", ("steps",), ""),
        ("tokens", training.tokens, "tokens", ("training tokens", "tokens"), "tokens"),
        ("train_s", training.train_s, "time", ("seconds", "training time"), "s"),
        ("best_step", training.best_step, "step", ("step", "checkpoint"), ""),
        ("validation_nll", training.validation_nll, "nll", ("validation nll", "nll"), "nats per target token"),
        ("final_loss", training.final_loss, "nll", ("training loss", "final loss", "loss"), "nats per target token"),
        ("rows_compared_with_contract", training.rows_compared_with_contract, "rows", ("rows",), "count"),
    )
    for key, value, kind, names, unit in numbers:
        if value is not None:
            zone = {"validation_nll": "validation", "final_loss": "seen"}.get(key)
            yield Quantity(
                f"{key}.{tail}", kind, value, unit, None, replace(scope, zone=zone), source,
                f"/training/{key}", names,
            )  # fmt: skip
    for i, candidate in enumerate(training.candidates):
        step, where = candidate.step, f"/training/candidates/{i}"
        at = replace(scope, zone="validation")
        yield Quantity(
            f"validation_nll.{tail}.step{step}", "nll", candidate.validation_nll, "nats per target token", None, at,
            source, f"{where}/validation_nll", ("validation nll",),
        )  # fmt: skip
        yield Quantity(f"step.{tail}.{step}", "step", step, "", None, scope, source, f"{where}/step", ("step",))
    trainable = training.trainable
    n, total = trainable.n_trainable, trainable.n_total
    if n and total:
        root, share = "/training/trainable", n / total
        base = total - n if trainable.method != "full" else total
        parts = (("params", n, "n_trainable"), ("params.total", total, "n_total"), ("params.base", base, "n_total"))
        words = ("parameters",)
        for label, value, key in parts:
            yield Quantity(f"{label}.{tail}", "params", value, "count", None, scope, source, f"{root}/{key}", words)
        yield Quantity(f"params.share.{tail}", "params_share", share, "rate", total, scope, source, root, words, True)
    if trainable.modules:
        n_modules = len(trainable.modules)
        yield Quantity(
            f"modules.{tail}", "modules", n_modules, "count", None, scope, source, "/training/trainable/modules",
            ("modules",),
        )  # fmt: skip


_SUMMED = frozenset({"scored", "cut", "missing", "right", "held"})
_AVERAGED = frozenset({"score", "nll", "rule"})


def _over_seeds(condition: str, members: list[RunSummary]) -> Iterator[Quantity]:
    """Means of rates over the runs, sums of counts; what is the same in every run keeps its value."""
    grouped: dict[str, list[Quantity]] = {}
    for summary in members:
        for quantity in _of_run(summary, seeded=True):
            name = quantity.name.replace(f".{condition}.seed{summary.seed}", f".{condition}", 1)
            grouped.setdefault(name, []).append(quantity)
    for name, group in grouped.items():
        first, values = group[0], [q.value for q in group]
        scope = replace(first.scope, seed=None)
        source = first.source if len(group) == 1 else "runs/*/summary.json"
        denominators = [q.denominator for q in group]
        total = sum(d for d in denominators if d is not None) if None not in denominators else None
        if len(group) < len(members) and first.kind in _SUMMED | _AVERAGED:
            continue
        if first.kind in _SUMMED:
            yield replace(first, name=name, value=sum(values), denominator=total, scope=scope, source=source)
        elif first.kind in _AVERAGED:
            mean = sum(values) / len(values)
            yield replace(first, name=name, value=mean, denominator=total, scope=scope, source=source)
        elif len(set(values)) == 1:
            yield replace(first, name=name, scope=scope)
        elif first.kind in ("time",):
            yield replace(first, name=name, value=sum(values), scope=scope, source=source)


# ---------------------------------------------------------------- from the verdicts


ESTIMANDS = (
    ("new items and new seeds", "recipe"),
    ("new items, the checkpoints at hand", "checkpoints"),
    ("these items", "items"),
)


def estimand(scope: str) -> str:
    """A short word for what an estimate speaks of, from its scope line."""
    return next((word for start, word in ESTIMANDS if scope.startswith(start)), "")


def _of_verdict(
    verdict: Mapping[str, Any], declared: Mapping[str, Any], evals: list[str], base: str
) -> Iterator[Quantity]:
    name, source = verdict["claim"], "verdict.json"
    spec = declared.get("eval") or (evals[0] if len(evals) == 1 else None)
    zone = declared.get("to_zone") if verdict["kind"] == "generalises" else declared.get("zone")
    scope = Scope(declared.get("condition"), declared.get("against"), zone, spec, None, name)
    for i, estimate in enumerate(verdict["estimates"]):
        at, suffix = scope, "" if i == 0 else f".{estimand(estimate['scope']) or i}"
        kind = "gap"
        if verdict["kind"] == "generalises":
            kind = "share" if i == 0 else "gap"
            at = replace(scope, zone=declared.get("from_zone")) if i == 2 else scope
            suffix = ("", f".{declared.get('to_zone')}", f".{declared.get('from_zone')}")[i] if i < 3 else f".{i}"
        elif verdict["kind"] == "probe":
            kind = "probe"
        yield from _estimate(f"{name}{suffix}", kind, estimate, at, f"{base}/estimates/{i}")
    words = {"margin": ("margin",), "alpha": ("alpha", "level")}
    words |= {"detectable": ("detectable", "detects"), "needed_n": ("items", "needed")}
    for key, aliases in words.items():
        if _is_number(verdict.get(key)):
            rate = key != "needed_n"
            yield Quantity(f"{key}.{name}", key, verdict[key], "", None, scope, source, f"{base}/{key}", aliases, rate)
    yield from _verdict_details(verdict, declared, scope, base)


def _estimate(tail: str, kind: str, e: Mapping[str, Any], scope: Scope, pointer: str) -> Iterator[Quantity]:
    source = "verdict.json"
    words = {"gap": ("gap", "difference"), "share": ("share", "carries"), "probe": ()}[kind]
    if e["value"] is not None:
        yield Quantity(
            f"{kind}.{tail}", kind, e["value"], "", e["n"], scope, source, f"{pointer}/value", words, kind != "probe"
        )
    for end in ("low", "high"):
        if e[end] is not None:
            yield Quantity(
                f"ci.{tail}.{end}", "ci", e[end], "", e["n"], scope, source, f"{pointer}/{end}", ("interval",), True
            )
    yield Quantity(
        f"level.{tail}", "level", e["level"], "", None, scope, source, f"{pointer}/level", ("interval", "ci"), True
    )
    if e["p"] is not None:
        yield Quantity(f"p.{tail}", "p", e["p"], "probability", None, scope, source, f"{pointer}/p", ("p",))
    for key, noun in (("n", "items"), ("n_clusters", "families"), ("n_seeds", "seeds")):
        if e.get(key) is not None:
            yield Quantity(f"n.{noun}.{tail}", noun, e[key], "count", None, scope, source, f"{pointer}/{key}", (noun,))
    for key, name in (("se", "standard error"), ("df", "degrees of freedom")):
        if e.get(key) is not None:
            yield Quantity(
                f"{key}.{tail}", key, e[key], "", None, scope, source, f"{pointer}/{key}", (name,), key == "se"
            )
    yield from _arms(tail, e, scope, pointer)


def _arms(tail: str, e: Mapping[str, Any], scope: Scope, pointer: str) -> Iterator[Quantity]:
    """Both arms' means and counts, sign flips and the 2×2 table, where the estimate holds them."""
    source, details = "verdict.json", e.get("details") or {}
    for side in ("a", "b"):
        arm = details.get(side)
        if not isinstance(arm, Mapping):
            continue
        where, base = f"{pointer}/details/{side}", f"{scope.eval}.{scope.zone or 'all'}.{arm['condition']}"
        at = Scope(condition=arm["condition"], zone=scope.zone, eval=scope.eval)
        words = ("score", "rate", "mean")
        yield Quantity(
            f"score.{base}", "score", arm["mean"], "rate", arm["scored"], at, source, f"{where}/mean", words, True
        )
        for name, kind, value in (
            (f"n.scored.{base}", "scored", arm["scored"]),
            (f"n.asked.{base}", "scored", arm["n"] * len(arm["runs"])),
            (f"n.runs.{base}", "runs", len(arm["runs"])),
            (f"n.items.{base}", "items", arm["n"]),
        ):
            yield Quantity(name, kind, value, "count", arm["n"], at, source, where, (kind,))
        if not arm.get("fixed"):
            yield Quantity(f"n.seeds.{base}", "seeds", len(arm["runs"]), "count", None, at, source, where, ("seeds",))
    flips = details.get("family_sign_flip")
    if flips:
        where = f"{pointer}/details/family_sign_flip/p"
        yield Quantity(
            f"p.{tail}.sign_flip", "p", flips["p"], "probability", None, scope, source, where, ("sign flip",)
        )
    if _is_number(details.get("design_effect")):
        where, value = f"{pointer}/details/design_effect", details["design_effect"]
        yield Quantity(
            f"design_effect.{tail}", "design_effect", value, "", None, scope, source, where, ("design effect",)
        )
    for i, table in enumerate(details.get("tables") or ()):
        for key, n in table.items() if isinstance(table, Mapping) else ():
            if _is_number(n):
                where = f"{pointer}/details/tables/{i}/{key}"
                yield Quantity(f"table.{tail}.{i}.{key}", "table", n, "count", e["n"], scope, source, where, (key,))


def _verdict_details(
    verdict: Mapping[str, Any], declared: Mapping[str, Any], scope: Scope, base: str
) -> Iterator[Quantity]:
    name, details, source = verdict["claim"], verdict.get("details") or {}, "verdict.json"
    for key in ("p_corrected", "p_before_correction"):
        if _is_number(details.get(key)):
            yield Quantity(
                f"{key}.{name}", "p", details[key], "probability", None, scope, source, f"{base}/details/{key}", ("p",)
            )
    if _is_number(details.get("claims_in_family")):
        n, where = details["claims_in_family"], f"{base}/details/claims_in_family"
        yield Quantity(f"n.claims.{name}", "claims", n, "count", None, scope, source, where, ("claims",))
    for end, value in zip(("low", "high"), details.get("simultaneous_interval") or ()):
        where = f"{base}/details/simultaneous_interval"
        yield Quantity(
            f"ci.{name}.simultaneous.{end}",
            "ci",
            value,
            "",
            None,
            scope,
            source,
            where,
            ("simultaneous interval",),
            True,
        )
    frozen = (details.get("frozen_rule") or {}).get("rule") or {}
    if _is_number(frozen.get("min_gap")):
        where = f"{base}/details/frozen_rule/rule/min_gap"
        yield Quantity(
            f"rule_min_gap.{name}", "rule_min_gap", frozen["min_gap"], "", None, scope, source, where, ("frozen rule",),
            True,
        )  # fmt: skip
    if _is_number(declared.get("share")):
        where = "contract.lock.json"
        yield Quantity(
            f"share_declared.{name}", "share", declared["share"], "", None, scope, where, "", ("declared share",), True
        )
    if _is_number(declared.get("threshold")):
        yield Quantity(
            f"threshold.{name}", "threshold", declared["threshold"], "", None, scope, "contract.lock.json", "",
            ("threshold",),
        )  # fmt: skip


# ---------------------------------------------------------------- from the rest of the folder


def _of_study(store: Store, terms: Mapping[str, Any], runs: Mapping[str, RunSummary]) -> Iterator[Quantity]:
    """Run counts, the wall time, verdict counts, token lengths."""
    trained = [r for r in runs.values() if r.seed is not None]
    source = "runs/*/summary.json"
    yield Quantity("n.runs", "runs", len(runs), "count", None, Scope(), source, "", ("runs", "cells"))
    yield Quantity("n.runs.trained", "runs", len(trained), "count", None, Scope(), source, "", ("runs", "adapters"))
    for name in terms["study"]["evals"]:
        zones = {z for r in runs.values() for z in r.scores.get(name, {})}
        for zone in sorted(zones, key=lambda z: ZONES.index(z) if z in ZONES else 9):
            n = next(r.scores[name][zone].items for r in runs.values() if zone in r.scores.get(name, {}))
            scope = Scope(zone=zone, eval=name)
            yield Quantity(f"n.items.{name}.{zone}", "items", n, "count", None, scope, source, "", ("items",))
    for event in reversed(store.events()):
        if event.get("event") == "ran" and _is_number(event.get("wall_s")):
            yield Quantity(
                "time.study", "time", event["wall_s"], "s", None, Scope(), "events.jsonl", "/wall_s", ("wall time",)
            )
            break
    render = store.audit("render.json")
    if render.exists():
        found = read_json(render)
        for key, value in (found.get("tokens") or {}).items():
            if _is_number(value):
                yield Quantity(
                    f"tokens.row.{key}", "tokens", value, "tokens", None, Scope(), "audit/render.json",
                    f"/tokens/{key}", (f"{key} tokens", "tokens"),
                )  # fmt: skip


def _hashes(
    entries: list[dict[str, Any]],
    verdict: Mapping[str, Any],
    runs: Mapping[str, RunSummary],
    old: Mapping[str, RunSummary],
) -> dict[str, str]:
    """Every hash a text may print, lower case, with its name. Older contract entries and runs start with `old `."""
    found: dict[str, str] = {}

    def collect(value: Any, name: str) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                collect(inner, f"{name}.{key}" if name else str(key))
        elif isinstance(value, list):
            for inner in value:
                collect(inner, name)
        elif isinstance(value, str) and re.fullmatch(r"[0-9a-f]{12}|[0-9a-f]{40}|[0-9a-f]{64}", value):
            found.setdefault(value, name)

    for entry in entries[:-1]:
        found[entry["hash"]] = "old contract"
    found[entries[-1]["hash"]] = "contract"
    collect(entries[-1]["terms"], "")
    for entry in entries[:-1]:
        collect(entry["terms"], "old")
    collect({k: v for k, v in verdict.items() if k != "contract"}, "verdict")
    for label, members in (("run", runs), ("old run", old)):
        for run_id, summary in members.items():
            found.setdefault(run_id.rpartition("-")[2], f"{label} {run_id}")
            found.setdefault(summary.input_hash, f"{label} {run_id} summary")
            if summary.training is not None:
                found.setdefault(summary.training.input_hash, f"{label} {run_id} training")
    return found


def outputs(store: Store, run_id: str, eval_name: str) -> list[dict[str, Any]]:
    """The scored outputs of one run on one eval, [] where there are none."""
    path = store.run(run_id) / "scores" / f"{eval_name}.jsonl"
    return read_jsonl(path) if path.exists() else []

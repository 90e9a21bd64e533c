"""Quantities of the runs: scores, losses, counts and what was trained, each run and over the seeds of a condition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from veritune.evaluate.means import zone_mean
from veritune.records import RunSummary, TrainingRecord, ZoneScore
from veritune.writeup.quantities.model import Quantity, Scope


def of_runs(runs: Mapping[str, RunSummary]) -> list[Quantity]:
    """Scores, losses, counts and training facts of each run, and averaged over each condition's runs."""
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
    mean = zone_mean(cell)
    if mean is not None:
        where = f"{pointer}/mean"
        yield Quantity(
            f"score.{tail}", "score", mean.value, "rate", mean.n, scope, source, where, words, True, failed=mean.failed
        )
        total = mean.value * mean.n
        if abs(total - round(total)) < 1e-6:
            yield Quantity(f"total.{tail}", "right", round(total), "count", mean.n, scope, source, pointer)
        if mean.failed and mean.answered is not None:
            named = ("answered", "extracted", "parsed")
            yield Quantity(
                f"answered.{tail}", "answered", mean.answered, "rate", cell.scored, scope, source, where, named, True
            )
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
_AVERAGED = frozenset({"score", "nll", "rule", "answered"})
_SPREAD = frozenset({"score", "nll"})
"""Kinds whose least, greatest value and range over seeds are quantities too."""


def _over_seeds(condition: str, members: list[RunSummary]) -> Iterator[Quantity]:
    """Means of rates over the runs with their spread, sums of counts; what is the same in every run keeps its value."""
    grouped: dict[str, list[Quantity]] = {}
    for summary in members:
        for quantity in _of_run(summary, seeded=True):
            name = quantity.name.replace(f".{condition}.seed{summary.seed}", f".{condition}", 1)
            grouped.setdefault(name, []).append(quantity)
    for name, group in grouped.items():
        if len(group) < len(members) and group[0].kind in _SUMMED | _AVERAGED:
            continue
        whole = _of_group(name, group)
        if whole is not None:
            yield whole
            if whole.kind in _SPREAD and len(group) > 1:  # one run has no range
                yield from _spread(whole, [q.value for q in group])


def _of_group(name: str, group: list[Quantity]) -> Quantity | None:
    """One quantity over the runs of a condition, None where their values have no common one."""
    first, values = group[0], [q.value for q in group]
    scope = replace(first.scope, seed=None)
    source = first.source if len(group) == 1 else "runs/*/summary.json"
    denominators = [q.denominator for q in group]
    total = sum(d for d in denominators if d is not None) if None not in denominators else None
    at = replace(first, name=name, denominator=total, scope=scope, source=source, runs=len(group))
    if first.kind in _SUMMED:
        return replace(at, value=sum(values))
    if first.kind in _AVERAGED:
        return replace(at, value=math.fsum(values) / len(values), failed=sum(q.failed for q in group))
    if len(set(values)) == 1:
        return replace(first, name=name, scope=scope)
    if first.kind == "time":
        return replace(first, name=name, value=sum(values), scope=scope, source=source)
    return None


def _spread(whole: Quantity, values: list[float]) -> Iterator[Quantity]:
    """Least, greatest and range over the seeds: `<name>.min`, `.max`, `.range`."""
    low, high = min(values), max(values)
    for end, value, words in (
        ("min", low, ("lowest", "least", "min", "worst seed")),
        ("max", high, ("highest", "greatest", "max", "best seed")),
        ("range", high - low, ("range", "spread")),
    ):
        yield replace(whole, name=f"{whole.name}.{end}", kind=f"seed_{end}", value=value, aliases=words)

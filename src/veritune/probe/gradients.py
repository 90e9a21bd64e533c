"""Do siblings pull the model the same way, and how many independent examples does the data act like?

    probe = probe_gradients(model, rows, families)      # rows as the trainer sees them; a family name per row
    print(probe.reading)      # "The 2,541 rows act like 140 unrelated ones (120 to 165 at 95% over the families drawn)"

Each measured row's gradient is taken at the model as it stands, from its own mean loss; inner products are exact while
they fit in memory and sketched beyond. Measure at the base model or very early: once rows are memorised their gradients
say little about what was learned, and the record says so. The model and its `.grad`s are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from veritune.config.thresholds import DEFAULTS, Thresholds
from veritune.counting import grouped
from veritune.errors import DataError, ModelError
from veritune.probe.batches import evaluating, in_batches, mean_losses, model_device, require_targets
from veritune.probe.capture import PROBE_RANK, Capture, Coverage, GradientStore, Sketch, trainable_coverage
from veritune.probe.effective import (
    ONE_DIRECTION,
    FamiliesFound,
    Floats,
    Sample,
    SamplePlan,
    align,
    between_families,
    by_family,
    choose,
    directions,
    disagreement,
    find_families,
    restrict,
    unit,
    worth,
)
from veritune.records import Estimate, GradientProbe, Json, JsonLike, Rendered

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Settings:
    """How a gradient probe measures.

    of: `trainable` takes the model's own trainable parameters, `probe` a throwaway zero-B adapter on every linear of
    the blocks, `auto` the first for a model with a trainable LoRA that is covered to `min_coverage`, and the second
    otherwise. exact_bytes: inner products are exact while all measured gradients fit, else sketched to `dims` numbers
    per module type.
    """

    of: Literal["auto", "trainable", "probe"] = "auto"
    rank: int = PROBE_RANK
    dims: int = 4093
    batch_size: int = 8
    plan: SamplePlan = field(default_factory=SamplePlan)
    level: float = 0.95
    seed: int = 0
    min_coverage: float = 0.9
    exact_bytes: int = 2**30
    thresholds: Thresholds = DEFAULTS


@dataclass(frozen=True)
class Products:
    """Inner products of the measured rows' gradients [N, N], by module type and in total, with each row's mean loss."""

    by_type: Mapping[str, Floats]
    loss_N: Floats
    of: str
    coverage: Coverage
    dims: int | None

    @property
    def gram_N_N(self) -> Floats:
        total: Floats = np.sum(list(self.by_type.values()), axis=0)
        return total


def probe_gradients(
    model: torch.nn.Module,
    rows: Sequence[Rendered],
    families: Sequence[str | None] | None = None,
    *,
    sources: Sequence[str] | None = None,
    settings: Settings | None = None,
    base_loss: float | Literal["self"] | Callable[[Sequence[Rendered]], float] | None = None,
) -> GradientProbe:
    """Measure gradients, and estimate from them sibling alignment and the effective number of examples.

    families: a name per row (None: the row stands alone); without any, directions and found families are reported
    instead. sources: a name per row for a reading of each. base_loss: the base model's mean loss on these rows (or a
    function that gives it for the measured ones), for a checkpoint that does not carry its base, or `self` when this is
    the base; adapters are compared with their own base.
    Raises DataError for unusable rows and non-finite losses, ModelError where gradients cannot be captured.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from veritune.records import Rendered
    >>> sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = LlamaConfig(vocab_size=9, **sizes)
    >>> rows = [Rendered(f"r{i}", (1, 2 + i % 6, 8), (-100, 2 + i % 6, 8)) for i in range(24)]
    >>> found = probe_gradients(LlamaForCausalLM(config), rows, [f"f{i % 6}" for i in range(24)])
    >>> found.n_rows
    24
    """
    settings = settings or Settings()
    _check_lengths(rows, families, sources)
    labelled = families is not None and any(f is not None for f in families)
    names = [f"row {i}" for i in range(len(rows))]
    if families is not None:
        names = [n if f is None else f"family {f}" for n, f in zip(names, families)]
    sample = choose(names, settings.plan) if labelled else _random_sample(len(rows), settings.plan)
    picked = [rows[i] for i in sample.index_N]
    measured = measure(model, picked, settings)
    loss = _when(model, picked, measured, settings, base_loss)
    gram_N_N = measured.gram_N_N
    cosine_N_N = unit(gram_N_N)
    read = align(cosine_N_N, sample, level=settings.level, thresholds=settings.thresholds)
    spread = _directions(cosine_N_N, sample, labelled, measured.dims, settings)
    estimates = tuple(_withheld(e, loss) if e.name == "n_eff" else e for e in (*read.estimates(), spread))
    agreement = disagreement(estimates[-2], spread, settings.thresholds.gradients.disagree) if labelled else {}
    found = None
    if not labelled or agreement["disagree"]:
        found = find_families(cosine_N_N, settings.thresholds.gradients.family_cosine)
    sentences = _sentences(estimates, sample, labelled, loss, (found, agreement, settings.thresholds))
    aside = _aside(model, settings, measured.of)
    return GradientProbe(
        n_rows=len(rows),
        n_measured=len(picked),
        n_families=len(sample.size_F) if labelled else None,
        settings=_settings_record(settings, measured),
        coverage=_coverage_record(measured.coverage),
        loss=loss,
        estimates=estimates,
        raw=_raw(gram_N_N, sample, settings, read.rho),
        by_type=_by_type(measured, sample, settings),
        by_family=_by_family(cosine_N_N, sample, names) if labelled else (),
        by_source=_by_source(cosine_N_N, sample, names, sources, settings),
        norms=_norms(gram_N_N, picked),
        found=_found_record(found, sample),
        measured_rows=tuple(r.row_id for r in picked),
        reading=sentences[0],
        limits=sentences[1] + aside,
        would_change=sentences[2],
        worth=worth(next(e for e in estimates if e.name == "n_eff"), len(rows), settings.thresholds),
        agreement=agreement,
        matrix=_matrix(cosine_N_N, sample, names) if labelled else {},
    )


def discover_families(
    model: torch.nn.Module,
    rows: Sequence[Rendered],
    *,
    threshold: float = DEFAULTS.gradients.family_cosine,
    settings: Settings | None = None,
    max_rows: int = 8000,
) -> FamiliesFound:
    """Families by gradient over all rows; pass `edges` to `data.families.find_families(extra_edges=...)`.

    Every row is measured once, so this costs about one epoch. Raises DataError above `max_rows` (memory grows with
    its square).
    """
    if len(rows) > max_rows:
        raise DataError(
            f"families by gradient compare all pairs, but {grouped(len(rows), 'rows', 'are')} more than "
            f"max_rows={max_rows:,}.",
            fix="Give a sample, or raise max_rows; it needs about 32 bytes of memory per pair of rows.",
        )
    return find_families(unit(measure(model, rows, settings or Settings()).gram_N_N), threshold)


# ---------------------------------------------------------------- measuring


def measure(model: torch.nn.Module, rows: Sequence[Rendered], settings: Settings) -> Products:
    """Inner products of per-example gradients of mean losses, all rows against all."""
    require_targets(rows)
    of = _resolve(model, settings)
    sink: GradientStore | Sketch = Sketch(settings.dims, seed=settings.seed, by_type=True)
    capture = Capture(model, sink, of=of, rank=settings.rank, seed=settings.seed, min_coverage=settings.min_coverage)
    exact = capture.numel * len(rows) * 4 <= settings.exact_bytes
    if exact:
        capture.sink = sink = GradientStore()
    device, order = model_device(model), []
    loss_N = np.zeros(len(rows))
    with evaluating(model), torch.enable_grad(), capture:
        for index, batch in in_batches(rows, settings.batch_size):
            loss_B = mean_losses(model, batch.to(device))
            loss_N[index] = loss_B.detach().double().cpu().numpy()
            _require_finite(loss_N[index], [rows[i].row_id for i in index])
            capture.backward(loss_B)
            sink.end_batch()
            order += index
    back = np.argsort(order)
    grams = {kind: sink.gram(kind).numpy()[np.ix_(back, back)] for kind in sink.kinds()}
    return Products(grams, loss_N, of, capture.coverage, None if exact else settings.dims)


def _resolve(model: torch.nn.Module, settings: Settings) -> Literal["trainable", "probe"]:
    if settings.of != "auto":
        return "trainable" if settings.of == "trainable" else "probe"
    covered = trainable_coverage(model).share >= settings.min_coverage
    return "trainable" if covered and _has_lora(model) else "probe"


def _has_lora(model: torch.nn.Module) -> bool:
    return any("lora_" in n and p.requires_grad for n, p in model.named_parameters())


def _aside(model: torch.nn.Module, settings: Settings, of: str) -> str:
    """What the limits must add where `auto` could not take the adapter's own gradients."""
    if settings.of != "auto" or of != "probe" or not _has_lora(model):
        return ""
    coverage = trainable_coverage(model)
    return (
        f" The adapter's own gradients could be had for {coverage.share:.0%} of what trains (not for "
        f"{next(iter(coverage.missing))}), so those of a probe adapter on every linear were read."
    )


def _require_finite(loss_B: Floats, row_ids: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(loss_B))
    if bad.size:
        raise ModelError(
            f"row {row_ids[int(bad[0])]}: expected a finite loss, found {loss_B[bad[0]]}.",
            fix="Try float32, and check the checkpoint: the weights may be damaged, or half precision may overflow.",
        )


def _when(
    model: torch.nn.Module, rows: Sequence[Rendered], measured: Products, settings: Settings, base_loss: Any
) -> dict[str, JsonLike]:
    """Whether this is the base or an early model: mean losses, `at` (`base`, `early`, `late`, `unknown`) and why."""
    now = float(measured.loss_N.mean())
    if callable(base_loss):
        base_loss = float(base_loss(rows))
    if base_loss == "self":
        base_loss = now
    elif base_loss is None and hasattr(model, "disable_adapter"):
        base_loss = now if _untouched(model) else float(_plain_losses(model, rows, settings.batch_size).mean())
    made: dict[str, Any] = {"mean": now, "base_mean": base_loss, "unit": "nats per target token"}
    late = settings.thresholds.gradients
    if base_loss is None:
        if now < late.late_loss:
            why = f"mean loss {now:.2f} is below {late.late_loss} and no base loss is known"
            return made | {"at": "late", "why": why}
        return made | {"at": "unknown", "why": "no base model's loss to compare with"}
    if now < late.late_share * base_loss:
        why = f"mean loss {now:.2f} is below {late.late_share:.0%} of the base model's {base_loss:.2f}"
        return made | {"at": "late", "why": why}
    return made | {"at": "base" if now == base_loss else "early", "why": None}


def _untouched(model: torch.nn.Module) -> bool:
    factors = [p for n, p in model.named_parameters() if "lora_B" in n]
    return bool(factors) and not any(bool(p.detach().any()) for p in factors)


def _plain_losses(model: PreTrainedModel, rows: Sequence[Rendered], batch_size: int) -> Floats:
    """The adapter's base model's mean losses [N]."""
    loss_N, device = np.zeros(len(rows)), model_device(model)
    adapter = model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()
    with adapter, evaluating(model), torch.no_grad():
        for index, batch in in_batches(rows, batch_size):
            loss_N[index] = mean_losses(model, batch.to(device)).double().cpu().numpy()
    return loss_N


def _check_lengths(
    rows: Sequence[Rendered], families: Sequence[str | None] | None, sources: Sequence[str] | None
) -> None:
    require_targets(rows)
    for name, values in (("families", families), ("sources", sources)):
        if values is not None and len(values) != len(rows):
            raise DataError(f"expected one of {name} per row ({len(rows)}), found {len(values)}.")


def _random_sample(n: int, plan: SamplePlan) -> Sample:
    """Up to max_rows rows drawn alike, each its own family."""
    draw = np.random.default_rng(plan.seed)
    index_N = np.sort(draw.choice(n, size=min(n, plan.max_rows), replace=False))
    k = len(index_N)
    return Sample(index_N, np.arange(k), np.ones(n, np.int64), np.full(k, n / k), np.zeros(k), k == n)


# ---------------------------------------------------------------- the record


def _withheld(n_eff: Estimate, loss: Mapping[str, JsonLike]) -> Estimate:
    """A late number is not handed on; it stays in `details` for whoever wants to see what it would have read."""
    if loss["at"] != "late" or n_eff.value is None:
        return n_eff
    details = {**n_eff.details, "late_value": n_eff.value}
    why = f"measured late: {loss['why']}"
    return replace(n_eff, value=None, low=None, high=None, warnings=(*n_eff.warnings, why), details=details)


def _directions(cosine_N_N: Floats, sample: Sample, labelled: bool, dims: int | None, settings: Settings) -> Estimate:
    level, identical = settings.level, settings.thresholds.gradients.identical
    if labelled and not sample.whole:
        why = "the measured rows were drawn by family, so their spread is not that of the data"
        return Estimate("directions", None, None, None, level, len(cosine_N_N), "not computed", warnings=(why,))
    return directions(cosine_N_N, sketch_dims=dims, level=level, identical=identical)


def _raw(gram_N_N: Floats, sample: Sample, settings: Settings, rho: Estimate) -> tuple[Estimate, ...]:
    """rho and n_eff on gradients as long as they are; withheld with the unit ones where those point one way."""
    read = align(gram_N_N, sample, level=settings.level, thresholds=settings.thresholds)
    if ONE_DIRECTION not in rho.details:
        return read.rho, read.n_eff
    gone: dict[str, Any] = {"value": None, "low": None, "high": None, "warnings": rho.warnings}
    return replace(read.rho, **gone), replace(read.n_eff, **gone)


def _by_type(measured: Products, sample: Sample, settings: Settings) -> dict[str, JsonLike]:
    made: dict[str, Any] = {}
    total = float(np.trace(measured.gram_N_N))
    for kind, gram_N_N in measured.by_type.items():
        if not (np.diag(gram_N_N) > 0).all():
            made[kind] = {"reason": "a row's gradient is zero here"}
            continue
        read = align(unit(gram_N_N), sample, level=settings.level, thresholds=settings.thresholds)
        made[kind] = {e.name: e for e in read.estimates()} | {"share": float(np.trace(gram_N_N)) / total}
    return made


def _matrix(cosine_N_N: Floats, sample: Sample, names: Sequence[str]) -> Mapping[str, JsonLike]:
    """Mean cosines between families, each by the name it was given."""
    name_of = dict(zip(sample.family_N.tolist(), (names[i] for i in sample.index_N)))
    made = between_families(cosine_N_N, sample)
    return made | {"families": [name_of[code].removeprefix("family ") for code in made["families"]]}


def _by_family(cosine_N_N: Floats, sample: Sample, names: Sequence[str]) -> tuple[dict[str, JsonLike], ...]:
    name_of = {int(code): names[i].removeprefix("family ") for code, i in zip(sample.family_N, sample.index_N)}
    return tuple(f | {"family": name_of[f["family"]]} for f in by_family(cosine_N_N, sample))


def _by_source(
    cosine_N_N: Floats, sample: Sample, names: Sequence[str], sources: Sequence[str] | None, settings: Settings
) -> dict[str, JsonLike]:
    made: dict[str, Any] = {}
    for source in dict.fromkeys(sources or ()):
        keep = np.array([s == source for s in sources or ()])
        part, place_K = restrict(sample, names, keep)
        if len(place_K) < 2:
            made[source] = {"n_rows": int(keep.sum()), "reason": "fewer than two of its rows were measured"}
            continue
        part_K_K = cosine_N_N[np.ix_(place_K, place_K)]
        read = align(part_K_K, part, level=settings.level, thresholds=settings.thresholds)
        made[source] = {"n_rows": int(keep.sum()), "n_measured": len(place_K), "rho": read.rho, "n_eff": read.n_eff}
    return made


def _norms(gram_N_N: Floats, rows: Sequence[Rendered]) -> dict[str, JsonLike]:
    """Gradient norms of the measured rows and their rank correlation with the number of target tokens."""
    from scipy.stats import spearmanr

    norm_N = np.sqrt(np.diag(gram_N_N))
    length_N = np.array([r.n_target for r in rows])
    varied = len(rows) > 2 and len(set(length_N.tolist())) > 1 and float(np.ptp(norm_N)) > 0
    low, middle, high = np.quantile(norm_N, (0.05, 0.5, 0.95))
    return {
        "p05": float(low),
        "median": float(middle),
        "p95": float(high),
        "rank_correlation_with_target_tokens": float(spearmanr(norm_N, length_N).statistic) if varied else None,
    }


def _found_record(found: FamiliesFound | None, sample: Sample) -> dict[str, JsonLike] | None:
    if found is None:
        return None
    at = sample.index_N
    return {
        "threshold": found.threshold,
        "n_families": len(found.sizes),
        "n_joined_rows": int(sum(size for size in found.sizes.values() if size > 1)),
        "edges": [[int(at[i]), int(at[j]), score, why] for i, j, score, why in found.edges],
    }


def _settings_record(settings: Settings, measured: Products) -> dict[str, JsonLike]:
    return {
        "of": measured.of,
        "rank": settings.rank if measured.of == "probe" else None,
        "inner_products": "exact" if measured.dims is None else f"sketch of {measured.dims} numbers per module type",
        "seed": settings.seed,
        "sample": settings.plan,
        "thresholds": {
            **settings.thresholds.gradients.model_dump(),
            "families_for_interval": settings.thresholds.families.for_interval,
        },
    }


def _coverage_record(coverage: Coverage) -> dict[str, JsonLike]:
    return {
        "captured": coverage.captured,
        "of": coverage.trainable,
        "share": coverage.share,
        "missing": dict(list(coverage.missing.items())[:20]),
        "n_missing": len(coverage.missing),
    }


def _sentences(
    estimates: Sequence[Estimate],
    sample: Sample,
    labelled: bool,
    loss: Json,
    beside: tuple[FamiliesFound | None, Json, Thresholds],
) -> tuple[str, str, str]:
    """What the probe reads, its limits, and what would change it. `beside`: found families, agreement, thresholds."""
    found, agreement, thresholds = beside
    named = {e.name: e for e in estimates}
    n, n_eff = sample.n_rows, named["n_eff"]
    measured = f"Measured on {len(sample.index_N):,} of {n:,} rows, on one model at one point of training"
    if loss["at"] == "late":
        return (
            f"Measured late ({loss['why']}): no number of independent examples is read from these gradients.",
            "Once rows are memorised, what is left of their gradients no longer shows what siblings share.",
            "Measure the base model, or a checkpoint from the first steps.",
        )
    if ONE_DIRECTION in named["directions"].details or ONE_DIRECTION in named["rho"].details:
        return _one_direction_sentences(named["stranger"], n, measured)
    if not labelled:
        return _unlabelled_sentences(named["directions"], n, measured, found)
    if n_eff.value is None:
        return (
            f"How many independent examples the {n:,} rows act like cannot be said: {n_eff.warnings[0]}.",
            measured + ".",
            "Families with at least two rows each, eight of them or more.",
        )
    said = f"The {grouped(n, 'rows')} act like {n_eff.value:,.0f} unrelated ones"
    if n_eff.low is not None and n_eff.high is not None:
        said += f" ({n_eff.low:,.0f} to {n_eff.high:,.0f} at {n_eff.level:.0%} over the families drawn)"
    elif named["rho"].high is not None:
        said = said.replace("act like", "would act like") + f"; but {n_eff.warnings[0]}"
    else:
        said = said.replace("act like", "act like about") + ", with too few families for an interval"
    sibling, stranger = named["sibling"].value, named["stranger"].value
    early = "" if loss["at"] in ("base", "early") else "; whether it is early enough is unknown, no base loss was given"
    reading = f"{said}: siblings' gradients have cosine {sibling:.2f}, strangers' {stranger:.2f}."
    return (
        reading + _disagreeing(agreement, found),
        f"{measured}{early}. It counts directions of the first update, not what is learned in the end. "
        + _trust(n_eff, n, thresholds),
        "More families narrow it; families that were missed by the labels lower it.",
    )


def _disagreeing(agreement: Mapping[str, JsonLike], found: FamiliesFound | None) -> str:
    """What it means that the number by families and the one without labels part; empty where they do not."""
    if not agreement.get("disagree"):
        return ""
    spread = agreement["directions"]
    groups = (
        "" if found is None else f", and clustering joins the measured rows into {grouped(len(found.sizes), 'groups')}"
    )
    return (
        f" The two numbers disagree: without the labels the gradients spread over {spread:,.0f} directions{groups}. "
        "The family labels may be wrong or miss relatives, or a few directions dominate: read the smaller number "
        "until the labels are checked (`veritune probe gradients --families FILE`)."
    )


def _one_direction_sentences(stranger: Estimate, n: int, measured: str) -> tuple[str, str, str]:
    cosine = "" if stranger.value is None else f" (strangers' mean cosine {stranger.value:.4f})"
    return (
        f"The {grouped(n, 'rows')} act like about one example: their gradients all but coincide{cosine}.",
        f"{measured}. What is left of the gradients without their common part is of the size of rounding, so that "
        "families cannot be told from strangers by it.",
        "Check that the rows differ (copies, one answer to all prompts, a loss on template tokens only).",
    )


def _trust(n_eff: Estimate, n: int, thresholds: Thresholds) -> str:
    """What the interval leaves out, and how far calibration runs lay from n_eff."""
    span, seen = worth(n_eff, n, thresholds), thresholds.gradients
    times = f"{seen.worth_low:g} to {seen.worth_high:g} times"
    said = (
        "The interval is for which families were drawn, not for how they were labelled nor for what training makes of "
        f"them: against held-out loss n_eff was {times} what the rows were worth"
    )
    if span["low"] is None:
        return said + "."
    return (
        said + f", so here {span['low']:,.0f} to {span['high']:,.0f} (a span seen, without a confidence "
        "level). Two data sets whose spans overlap are not distinguished."
    )


def _unlabelled_sentences(spread: Estimate, n: int, measured: str, found: FamiliesFound | None) -> tuple[str, str, str]:
    if spread.value is None:
        said = f"How many directions the gradients span cannot be said: {spread.warnings[0]}."
    else:
        said = f"The gradients of the {n:,} rows spread over about {spread.value:,.0f} independent directions."
    if found is not None and found.edges:
        joined = sum(size for size in found.sizes.values() if size > 1)
        said += f" {joined:,} of the measured rows fall into families that no label names."
    return (
        said,
        f"{measured}. Directions are a property of the spread, not a number of examples: a few strong directions pull "
        "it below the number of unrelated rows.",
        "Family labels: with them the number of independent examples can be estimated with an interval.",
    )

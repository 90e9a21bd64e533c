"""`veritune probe attribution STUDY`: the training families behind a run's outputs, ranked, and tried by retraining.

The record lies in `probes/attribution/<run_id>-<eval>.json`. The runs of `--verify` lie beside it, apart from the
study's own: they are no arm. Their losses are kept, so that a killed command goes on where it was; their weights are
not.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from veritune.counting import grouped, many
from veritune.errors import InputError, did_you_mean
from veritune.pipeline.cell import cells_of, is_done, ready_from_contract
from veritune.pipeline.ready import Ready
from veritune.probe import attribution as a
from veritune.probe.attribution_check import SETS, Tried, choose_sets, verify
from veritune.probe.gradients import Settings, measure
from veritune.progress import Progress
from veritune.records import CheckpointCandidate, Rendered, Score, TrainingRecord, to_json
from veritune.report.attribution import nats
from veritune.seal import break_seal, refuse_edited, resealing
from veritune.store import Store, hash_of, read_json, write_json
from veritune.train import methods
from veritune.train.models import load_base
from veritune.train.quantised import base_for
from veritune.train.schedule import MAIN, Cell, seen_rows, training_tokens

if TYPE_CHECKING:
    import numpy.typing as npt
    from transformers import PreTrainedModel

    from veritune.probe.attribution import Attribution, Ranking, RowFamilies, Verified
    from veritune.probe.attribution_check import Tried
    from veritune.probe.gradients import Products
    from veritune.train.backends.protocol import RunWeights

FOLDER = "probes/attribution"
MOST_ROWS = 4000
"""Inner products of all rows are held at once: 128 MB for each module type at 4,000."""
MOST_CHOSEN, MOST_OTHERS, MOST_CHECKPOINTS = 16, 48, 4
CHECK_SEEDS = 3


@dataclass(frozen=True)
class AttributionAsked:
    """What to attribute. Without `items`: the lowest-scored outputs of the eval, at most 16 and at most half of
    them."""

    condition: str
    seed: int | None = None
    eval: str | None = None
    items: tuple[str, ...] = ()
    top: int = 4
    verify: bool = False


@dataclass(frozen=True, eq=False)
class _Target:
    """One output of the run: prompt and output as the model would be trained on it."""

    row: Rendered
    family: str
    text: str


@dataclass(frozen=True, eq=False)
class _Case:
    """One run, the outputs asked about (the first `chosen` of `targets`), and the rows that it trained on."""

    ready: Ready
    cell: Cell
    training: TrainingRecord
    eval: str
    targets: tuple[_Target, ...]
    chosen: int
    rows: tuple[Rendered, ...]


def attribution_command(study: str | Path, asked: AttributionAsked, progress: Progress | None = None) -> Attribution:
    """The ranking of one run, computed if it is not on disk; with `verify` also the effect of leaving the families out
    of training.

    Raises InputError for a run that is not there, without outputs, or of a kind that cannot be attributed.
    """
    ready = ready_from_contract(study, progress or Progress())
    case = _case(ready, asked)
    with ready.store.lock():
        refuse_edited(ready.store)
        with resealing(ready.store, "probe attribution"):
            return _attribute(case, asked)


def _case(ready: Ready, asked: AttributionAsked) -> _Case:
    if ready.study.backend.name != "local":
        raise InputError("attribution takes gradients on this machine, but the weights are on a server.")
    known = list(ready.study.conditions)
    if asked.condition not in known:
        raise InputError(
            f"unknown condition {asked.condition!r}{did_you_mean(asked.condition, known)}; conditions: {known}."
        )
    condition = ready.study.conditions[asked.condition]
    if condition.data_fraction not in (None, 1.0) or isinstance(condition.data, dict):
        raise InputError(
            f"{asked.condition} trains on a random part of the rows: leaving some out would let others in.",
            fix="Name a condition that trains on all rows of its data set.",
        )
    name = _eval_of(ready, asked.eval)
    seed = ready.study.seeds[0] if asked.seed is None else asked.seed
    cell = _main_cell(ready, asked.condition, seed)
    if cell is None or not is_done(ready, cell):
        raise InputError(
            f"{asked.condition} with seed {seed} has not been run.",
            fix=f"Run the study first: veritune run {ready.store.root}",
        )
    rows = seen_rows(ready.study, ready.data, cell)
    if len(rows) > MOST_ROWS:
        raise InputError(
            f"{cell.run_id} trained on {grouped(len(rows), 'rows')}, more than the {MOST_ROWS:,} whose inner products "
            "fit.",
            fix="Attribute a study that trains on fewer rows.",
        )
    training = TrainingRecord.load(ready.store.run(cell.run_id) / "training.json")
    chosen, others = _chosen(ready, cell, name, asked.items)
    targets = tuple(_target(ready, score) for score in (*chosen, *others))
    return _Case(ready, cell, training, name, targets, len(chosen), rows)


def _eval_of(ready: Ready, name: str | None) -> str:
    known = list(ready.study.evals)
    if name is None and len(known) > 1:
        raise InputError(f"the study has {len(known)} evals: {', '.join(known)}.", fix="Name one of them with --eval.")
    if name is not None and name not in known:
        raise InputError(f"unknown eval {name!r}{did_you_mean(name, known)}; evals: {known}.")
    return name or known[0]


def _main_cell(ready: Ready, condition: str, seed: int) -> Cell | None:
    return next((c for c in cells_of(ready) if (c.phase, c.condition, c.seed) == (MAIN, condition, seed)), None)


def _chosen(ready: Ready, cell: Cell, name: str, items: Sequence[str]) -> tuple[list[Score], list[Score]]:
    """The scores asked about, and others of the eval to centre over. Raises InputError where there is no output."""
    path = ready.store.run(cell.run_id) / "scores" / f"{name}.jsonl"
    scores = [s for s in Score.load_all(path) if s.output and s.output.strip()]
    by_id = {score.item_id: score for score in scores}
    unknown = [item for item in items if item not in by_id]
    if unknown:
        hint = did_you_mean(unknown[0], list(by_id))
        raise InputError(f"{cell.run_id} has no output for item {unknown[0]!r} of {name}{hint}.")
    lowest = sorted(scores, key=lambda s: 0.0 if s.value is None else s.value)
    chosen = [by_id[item] for item in dict.fromkeys(items)]
    if not items:
        wrong = [s for s in lowest if (s.value or 0.0) < 1.0]
        chosen = wrong[: min(MOST_CHOSEN, len(scores) // 2)]
    if not chosen:
        raise InputError(
            f"{cell.run_id} has no wrong output on {name}.", fix="Name the items to attribute with --item."
        )
    taken = {score.item_id for score in chosen}
    others = [score for score in reversed(lowest) if score.item_id not in taken]
    return chosen, others[:MOST_OTHERS]


def _target(ready: Ready, score: Score) -> _Target:
    """Prompt and output, the loss on the output alone."""
    prompt = tuple(ready.data.prompt_of(score.item_id))
    output = tuple(ready.tokenizer(score.output or "", add_special_tokens=False)["input_ids"])
    row = Rendered(score.item_id, prompt + output, (-100,) * len(prompt) + output)
    return _Target(row, score.family or score.item_id, _words(ready, row))


def _words(ready: Ready, row: Rendered) -> str:
    return str(ready.tokenizer.decode(list(row.input_ids), skip_special_tokens=True))


# ---------------------------------------------------------------- the ranking


def _attribute(case: _Case, asked: AttributionAsked) -> Attribution:
    ready, data = case.ready, case.ready.data
    a.check_items(len(case.targets))
    families = a.RowFamilies.of([data.family_of[r.row_id] for r in case.rows], [r.row_id for r in case.rows])
    if asked.verify and 3 * asked.top > len(families.names):
        raise InputError(
            f"--verify leaves out {asked.top} top, similar and random families each, but only "
            f"{many(len(families.names), 'families', 'were')} trained on.",
            fix=f"--top {max(1, len(families.names) // 3)}",
        )
    text_Q_F = a.text_scores([t.text for t in case.targets], [_words(ready, r) for r in case.rows], families)
    kept = _checkpoints(case)
    _say_cost(case, len(kept) + 1)
    measured = [_measure(case, path) for path in (None, *kept)]
    score_Q_F = a.gradient_scores(measured, len(case.rows), families)
    groups = [list(range(case.chosen))] + ([[q] for q in range(case.chosen)] if case.chosen > 1 else [])
    names = [t.row.row_id for t in case.targets]
    made = a.rankings(score_Q_F, text_Q_F, groups, names, families, asked.top)
    verified = None
    if asked.verify:
        weight_Q = a.contrast_of(range(case.chosen), len(case.targets))
        verified = _verify(
            case, asked.top, (weight_Q @ score_Q_F, weight_Q @ text_Q_F), (score_Q_F, text_Q_F), families
        )
    record = a.Attribution(
        run=case.cell.run_id,
        eval=case.eval,
        checkpoints=("start", *(ready.store.relative(path) for path in kept)),
        n_items=len(case.targets),
        n_rows=len(case.rows),
        n_families=len(families.names),
        gradients={
            "of": measured[0].of,
            "share": measured[0].coverage.share,
            "inner_products": "exact" if measured[0].dims is None else f"sketch of {measured[0].dims} numbers a type",
        },
        rankings=made,
        cost=_cost(case, CHECK_SEEDS),
        verified=verified,
        reading=_reading(made, verified, case),
        limits="Experimental. A ranking predicts and shows no cause; it is relative to the other outputs of this eval.",
        would_change=_would_change(verified, case),
    )
    _write(case, asked, record)
    return record


def _checkpoints(case: _Case) -> list[Path]:
    """Kept checkpoints up to the chosen one, evenly spaced, that one last. Raises InputError where none is on disk."""
    root, last = case.ready.store.root, case.training.best_step
    chosen = case.training.checkpoint
    there = []
    for one in case.training.candidates:
        if isinstance(one, CheckpointCandidate) and one.checkpoint is not None and one.step <= last:
            there.append((one.step, root / one.checkpoint))
    paths = [path for _, path in sorted(there) if path.is_dir()]
    if not paths or not chosen or paths[-1] != root / chosen:
        raise InputError(
            f"the chosen checkpoint of {case.cell.run_id} is not on disk.",
            fix="Run the study with `keep: best`, or `keep: all` for more checkpoints.",
        )
    places = np.linspace(0, len(paths) - 1, min(len(paths), MOST_CHECKPOINTS - 1)).round().astype(int)
    return [paths[i] for i in dict.fromkeys([*places.tolist()[:-1], len(paths) - 1])]


def _measure(case: _Case, checkpoint: Path | None) -> Products:
    rows = [*case.rows, *(target.row for target in case.targets)]
    return measure(_model(case, checkpoint), rows, Settings())


def _model(case: _Case, checkpoint: Path | None) -> PreTrainedModel:
    """The run's model at a checkpoint, its adapter trainable; None: as it started."""
    from veritune.train.adapters.attach import attach

    ready = case.ready
    condition = ready.study.conditions[case.cell.condition]
    if condition.method == "full":
        return load_base(ready.model if checkpoint is None else replace(ready.model, path=checkpoint))
    base = base_for(ready.store, ready.model, condition)
    if checkpoint is None:
        return methods.build(case.cell.condition, condition, base, case.cell.seed)[0]
    model = attach(base, checkpoint)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    return model


# ---------------------------------------------------------------- what it costs


def _say_cost(case: _Case, checkpoints: int) -> None:
    rows = [*case.rows, *(t.row for t in case.targets)]
    tokens = sum(len(r.input_ids) for r in rows)
    rate = _seconds_a_token(case)
    took = f", about {tokens * checkpoints * rate:.0f} s at the run's own speed" if rate else ""
    case.ready.progress.say(
        f"attribution  {case.cell.run_id}: will take the gradients of {len(case.rows)} rows and "
        f"{many(len(case.targets), 'outputs')} at "
        f"{many(checkpoints, 'checkpoints')}, {tokens * checkpoints:,} tokens{took}"
    )


def _seconds_a_token(case: _Case) -> float | None:
    """The run's own training speed; None where it was not recorded."""
    spent, tokens = case.training.train_s, case.training.tokens
    return spent / tokens if spent and tokens else None


class VerifyCost(TypedDict):
    """What retraining takes: its seeds, trainings, tokens, and seconds where the run's own speed is known."""

    trainings: int
    seeds: list[int]
    tokens: int
    seconds: float | None


def _cost(case: _Case, seeds: int) -> VerifyCost:
    """What `--verify` takes, before it is paid for: trainings, tokens, seconds at the run's own speed."""
    absent = [s for s in _seeds(case, seeds) if not _whole_is_here(case, s)]
    trainings = 3 * seeds + len(absent)
    tokens = training_tokens(case.ready.study, case.ready.data, case.cell) * trainings
    rate = _seconds_a_token(case)
    return {"trainings": trainings, "seeds": list(_seeds(case, seeds)), "tokens": tokens,
            "seconds": None if rate is None else tokens * rate}  # fmt: skip


def _seeds(case: _Case, count: int) -> tuple[int, ...]:
    """The study's seeds, the run's own first, and further ones where it declares fewer."""
    own = [case.cell.seed, *(s for s in case.ready.study.seeds if s != case.cell.seed)]
    further = (s for s in range(10**6) if s not in own)
    while len(own) < count:
        own.append(next(further))
    return tuple(own[:count])


# ---------------------------------------------------------------- retraining


def _verify(
    case: _Case,
    most: int,
    of_chosen: tuple[Any, Any],
    scores: tuple[Any, Any],
    families: RowFamilies,
) -> Verified:
    if case.training.elsewhere is not None:
        raise InputError(f"{case.cell.run_id} was trained elsewhere: its training cannot be repeated here.")
    seeds = _seeds(case, CHECK_SEEDS)
    cost = _cost(case, CHECK_SEEDS)
    took = "" if cost["seconds"] is None else f", about {cost['seconds'] / 60:.0f} min at the run's own speed"
    case.ready.progress.say(
        f"verify   trains {cost['trainings']} times: on all rows, and without the {most} {', '.join(SETS)} families, "
        f"with seeds {', '.join(map(str, seeds))}{took}"
    )
    left_out = choose_sets(*of_chosen, most, seeds)
    whole = np.array([_whole_losses(case, seed) for seed in seeds])
    without = {
        name: np.array([_losses_without(case, s, [families.names[f] for f in left]) for s, left in zip(seeds, sets)])
        for name, sets in left_out.items()
    }
    tried = _tried(case, seeds, whole, without, left_out)
    return verify(tried, *scores, families.names, families.size_F)


def _tried(
    case: _Case,
    seeds: tuple[int, ...],
    whole: npt.NDArray[np.float64],
    without: Mapping[str, npt.NDArray[np.float64]],
    left_out: Mapping[str, tuple[tuple[int, ...], ...]],
) -> Tried:
    return Tried(
        seeds=seeds,
        whole_S_Q=whole,
        without=without,
        left_out=left_out,
        chosen=tuple(range(case.chosen)),
        item_ids=tuple(t.row.row_id for t in case.targets),
        family_of=tuple(t.family for t in case.targets),
    )


def _whole_is_here(case: _Case, seed: int) -> bool:
    cell = _main_cell(case.ready, case.cell.condition, seed)
    if cell is None or not is_done(case.ready, cell):
        return False
    record = TrainingRecord.load(case.ready.store.run(cell.run_id) / "training.json")
    return record.checkpoint is not None and (case.ready.store.root / record.checkpoint).is_dir()


def _whole_losses(case: _Case, seed: int) -> list[float]:
    """Losses of the outputs after training on all rows: of the study's own run where its weights are on disk."""
    if not _whole_is_here(case, seed):
        return _losses_without(case, seed, ())
    cell = _main_cell(case.ready, case.cell.condition, seed)
    assert cell is not None
    return _target_losses(case, case.ready.backend.trained(case.ready.context, cell))


def _losses_without(case: _Case, seed: int, families: Sequence[str]) -> list[float]:
    """Losses of the outputs after training without these families; the run is made where it is not on disk."""
    from veritune.train import cells

    ready, gone = case.ready, set(families)
    zones = {r: "left_out" if z == "seen" and ready.data.family_of[r] in gone else z
             for r, z in ready.data.zone_of.items()}  # fmt: skip
    outputs = [[t.row.row_id, list(t.row.input_ids)] for t in case.targets]
    digest = hash_of({"cell": case.cell.input_hash, "seed": seed, "left_out": sorted(gone), "outputs": outputs})
    shadow = replace(
        case.cell, run_id=f"{case.cell.condition}-without-s{seed}-{digest[:8]}", seed=seed, input_hash=digest,
        phase="attribution",
    )  # fmt: skip
    store = Store(ready.store.root / FOLDER)
    path = store.run(shadow.run_id) / "outputs.json"
    if store.is_done(path, digest):
        return [float(x) for x in read_json(path)["losses"]]
    context = replace(ready.context, store=store, data=replace(ready.data, zone_of=zones))
    ready.progress.plan("train", training_tokens(ready.study, context.data, shadow))
    cells.start(context, shadow, ready.machine, ready.packages)
    ready.backend.train(context, shadow)
    losses = _target_losses(case, ready.backend.trained(context, shadow))
    write_json(path, {"input_hash": digest, "losses": losses})
    shutil.rmtree(store.run(shadow.run_id) / "checkpoints", ignore_errors=True)
    return losses


def _target_losses(case: _Case, weights: RunWeights) -> list[float]:
    """Mean loss of each output, nats per token."""
    return [total / count for total, count in weights.nll([t.row for t in case.targets])]


# ---------------------------------------------------------------- the record


def _reading(made: Sequence[Ranking], verified: Verified | None, case: _Case) -> str:
    """The first list in a sentence, how many of the others are shown, and what leaving families out was worth."""
    first, shown = made[0], sum(r.shown for r in made)
    what = f"{many(case.chosen, 'outputs')} of {case.cell.run_id} on {case.eval}"
    if first.shown:
        top = first.families[0]
        reading = (
            f"For {what}, family {top.family} ({top.rows} rows, by words number {top.text_rank}) has the largest "
            f"predicted effect; p = {first.p_corrected:.2g} against random contrasts of the same items."
        )
    else:
        reading = f"For {what} no family is named together: {first.why.removeprefix('withheld: ')}."
    if len(made) > 1:
        reading += f" Of {len(made) - 1} lists of single outputs {shown - first.shown} exceed the null."
    if verified is not None:
        top_effect, random = verified.sets[0].effect, verified.contrasts[1]
        reading += (
            f" Leaving the top families out raised the loss by {nats(top_effect)} nats per token, random ones' by "
            f"{nats(random)} less."
        )
    return reading


def _would_change(verified: Verified | None, case: _Case) -> str:
    """What to do next, with its cost."""
    if verified is not None:
        return "More seeds, more sets of families, another model."
    cost = _cost(case, CHECK_SEEDS)
    took = "" if cost["seconds"] is None else f", about {cost['seconds'] / 60:.0f} min"
    return f"Training without the families: --verify, {cost['trainings']} trainings{took}."


def _write(case: _Case, asked: AttributionAsked, record: Attribution) -> None:
    store = case.ready.store
    path = store.root / FOLDER / f"{case.cell.run_id}-{case.eval}.json"
    digest = hash_of({"cell": case.cell.input_hash, "asked": to_json(asked)})
    made = {"input_hash": digest, "run": case.cell.run_id, "record": to_json(record)}
    if not path.exists() or read_json(path) != made:
        break_seal(store)
        write_json(path, made)
    store.log_once("probed", probe="attribution", condition=case.cell.condition, inputs=digest)

"""The commands that decide from scores, without a model: compare and power."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AlphaOption,
    Assume,
    AssumeOption,
    DirectionOption,
    EvalOption,
    FilterOption,
    GithubOption,
    IdOption,
    ItemFamilyOption,
    JsonOption,
    JunitOption,
    MarginOption,
    MarkdownOption,
    MetricOption,
    PlotOption,
    RaterOption,
    ReducerOption,
    RunColumnOption,
    SampleOption,
    ScaleOption,
    ZoneOption,
)
from veritune.commands.output import Shown, json_text
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import pipes
    from veritune.decide import ci as pipeline
    from veritune.decide import commands as comparisons
    from veritune.decide import planning, screen
    from veritune.decide import sides as arms
    from veritune.evaluate import logs as score_files
    from veritune.stats import power as designs
    from veritune.stats import table as tables
    from veritune.train import elsewhere as training_logs
else:
    pipes = lazy("veritune.pipes")
    comparisons, planning = lazy("veritune.decide.commands"), lazy("veritune.decide.planning")
    pipeline, screen, arms = (
        lazy("veritune.decide.ci"),
        lazy("veritune.decide.screen"),
        lazy("veritune.decide.sides"),
    )
    score_files, designs, tables = (
        lazy("veritune.evaluate.logs"),
        lazy("veritune.stats.power"),
        lazy("veritune.stats.table"),
    )
    training_logs = lazy("veritune.train.elsewhere")


def compare(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more sides: FILE, NAME=FILE, several seeds as NAME=F1,F2, or a folder of files. With "
            "--systems: the table files. With --table: two names.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The side the others are compared with; default: the last.")
    ] = None,
    all_pairs: Annotated[
        bool,
        typer.Option(
            "--all-pairs",
            help="Compare every side with every other; p values are corrected by Bonferroni over the pairs.",
        ),
    ] = False,
    systems: Annotated[
        str | None,
        typer.Option(help="For tables with one column per system: the columns to compare, such as base,tuned."),
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Counts of items instead of files: right in A only, in B only, in both, in neither; repeat for seeds."
        ),
    ] = None,
    fixed: Annotated[
        list[str] | None, typer.Option(help="Name of a side that has no seeds, such as a baseline; repeat for more.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="Name of a side that is an adapter, so that the sentences call it one; repeat for more."),
    ] = None,
    margin: MarginOption = None,
    alpha: AlphaOption = 0.05,
    frozen: Annotated[
        str | None, typer.Option("--rule", help="An additional rule of your own: min_gap=0.01[,every_seed].")
    ] = None,
    lower_is_better: DirectionOption = None,
    eval_name: EvalOption = None,
    metric: MetricOption = None,
    filter_name: FilterOption = None,
    reducer: ReducerOption = None,
    id_column: IdOption = None,
    family: ItemFamilyOption = None,
    run_column: RunColumnOption = None,
    rater: RaterOption = None,
    sample: SampleOption = None,
    zone: ZoneOption = None,
    scale: ScaleOption = None,
    missing: Annotated[str, typer.Option(help="How to treat missing scores: fail, error, worst or best.")] = "fail",
    assume: AssumeOption = None,
    fail_unless: Annotated[
        str | None,
        typer.Option(
            "--fail-unless",
            help="Exit with 2 unless every comparison is better (with --margin, by it), not_worse or equivalent.",
        ),
    ] = None,
    markdown: MarkdownOption = None,
    junit: JunitOption = None,
    github: GithubOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare score files item by item: Veritune's scores, an eval harness's logs, CSV, JSONL or Parquet; - reads
    standard input.
    """
    shown = Shown(as_json, markdown, junit, github)
    assumed = frozenset(assume or ())
    reading = score_files.Reading(
        eval=eval_name, metric=metric, filter=filter_name, id=id_column, family=family, run=run_column, rater=rater,
        sample=sample, reducer=reducer, higher_is_better=None if lower_is_better is None else not lower_is_better,
    )  # fmt: skip
    options = comparisons.CompareOptions(
        margin=margin,
        alpha=alpha,
        against=against,
        zone=zone,
        samples=sample is not None or rater is not None,
        reading=reading,
        scale=scale,
        missing=tables.Missing(missing),
        rule=comparisons.parse_rule(frozen) if frozen is not None else None,
        all_pairs=all_pairs,
        adapters=tuple(adapter or ()),
        equal_seed_spread=Assume.equal_seed_spread in assumed,
        shared_seeds=Assume.shared_seeds in assumed,
        demand=fail_unless,
    )
    if table:
        report = comparisons.compare_counts(table, sides or [], options, {"systems": systems, "fixed": fixed})
    else:
        with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
            spool = pipes.Spool(Path(folder))
            report = comparisons.compare(arms.read_sides(sides or [], eval_name, fixed or [], systems, spool), options)
    shown.show(pipeline.check_report(report), report, partial(screen.render_text, report))
    exit_unless(report.met)


def power(
    pilot: Annotated[list[str] | None, typer.Argument(help="Pilot scores: two sides as in `compare`.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of items.")] = None,
    discordance: Annotated[
        float, typer.Option(help="Share of items on which two runs differ; with --graded the variance of a difference.")
    ] = 0.1,
    seeds: Annotated[int, typer.Option(help="Number of seeds per arm.")] = 1,
    seed_sd: Annotated[float, typer.Option(help="Spread of a run's mean score between seeds, in score units.")] = 0.0,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="The other arm is a baseline that has no seeds.")
    ] = False,
    families: Annotated[
        int | None, typer.Option(help="Number of families that the items come in, taken to be of equal size.")
    ] = None,
    design_effect: Annotated[
        float, typer.Option(help="Factor by which families inflate the variance of the mean.")
    ] = 1.0,
    graded: Annotated[bool, typer.Option("--graded", help="Scores are graded, not right or wrong.")] = False,
    assume: AssumeOption = None,
    scale: ScaleOption = None,
    margin: MarginOption = None,
    alpha: AlphaOption = 0.05,
    target: Annotated[float, typer.Option("--power", help="Power to reach.")] = 0.8,
    zone: ZoneOption = None,
    lower_is_better: DirectionOption = None,
    eval_name: EvalOption = None,
    metric: MetricOption = None,
    filter_name: FilterOption = None,
    reducer: ReducerOption = None,
    id_column: IdOption = None,
    family: ItemFamilyOption = None,
    run_column: RunColumnOption = None,
    rater: RaterOption = None,
    sample: SampleOption = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compute what a design can detect, before you pay for it: from its numbers or from pilot scores."""
    assumed = frozenset(assume or ())
    reading = score_files.Reading(
        eval=eval_name, metric=metric, filter=filter_name, id=id_column, family=family, run=run_column, rater=rater,
        sample=sample, reducer=reducer, higher_is_better=None if lower_is_better is None else not lower_is_better,
    )  # fmt: skip
    if pilot:
        if len(pilot) != 2:
            raise InputError(f"expected two pilot sides, found {len(pilot)}.", fix="veritune power A B")
        options = comparisons.CompareOptions(
            margin=margin, alpha=alpha, zone=zone, reading=reading, scale=scale,
            samples=sample is not None or rater is not None,
        )  # fmt: skip
        declared = planning.Declared(target, Assume.equal_seed_spread in assumed, Assume.shared_seeds in assumed)
        with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
            one, two = arms.read_sides(pilot, eval_name, (), spool=pipes.Spool(Path(folder)))
            plan = planning.plan_from_scores(one, two, options, declared)
    elif reading != score_files.Reading() or zone is not None:
        raise InputError(
            "the options that read score files need pilot scores, but none were given.", fix="veritune power A B"
        )
    elif items is None:
        raise InputError(
            "expected pilot scores or --items, found neither.", fix="veritune power --items 1319 --discordance 0.07"
        )
    else:
        design = designs.Design(
            items=items,
            discordance=discordance,
            seeds_a=seeds,
            seeds_b=0 if baseline else seeds,
            seed_sd=seed_sd,
            families=families,
            design_effect=design_effect,
            margin=margin,
            alpha=alpha,
            power=target,
            binary=not graded,
            item_variance=discordance if graded else None,
            width=1.0 if scale is None else scale[1] - scale[0],
            equal_seed_spread=Assume.equal_seed_spread in assumed,
            shared_seeds=Assume.shared_seeds in assumed,
        )
        plan = planning.plan_power(design)
    if plot is not None:
        planning.plot_power(plan, plot)
    put(json_text(plan) if as_json else planning.render_power(plan), raw=as_json)


def select(
    log: Annotated[
        list[str] | None,
        typer.Option(
            "--log",
            help="A run's log: trainer_state.json, JSONL or CSV, or its folder, also MLflow's; RATE=FILE states its "
            "learning rate; repeat.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Column with the validation NLL (a benchmark score is not allowed here).")
    ] = None,
    step: Annotated[str | None, typer.Option(help="Column with the step.")] = None,
    lr: Annotated[str | None, typer.Option("--lr", help="Column with the learning rate.")] = None,
    run_column: RunColumnOption = None,
    as_json: JsonOption = False,
) -> None:
    """Choose checkpoint and learning rate from training logs made elsewhere, by validation NLL only."""
    columns = training_logs.LogColumns(nll=metric, step=step, rate=lr, run=run_column)
    selection = training_logs.select_from_logs(log or [], columns)
    put(json_text(selection) if as_json else training_logs.selection_text(selection), raw=as_json)

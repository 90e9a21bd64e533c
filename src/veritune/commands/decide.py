"""The commands that decide from scores, without a model: compare, power, and lint and writeup of what is claimed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import EqualSpreadOption, JsonOption, ScaleOption, SharedSeedsOption, StudyArg
from veritune.commands.output import json_text
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import store
    from veritune.decide import commands as comparisons
    from veritune.decide import planning
    from veritune.decide import writeup as drafts
    from veritune.decide.lint import check as lints
    from veritune.evaluate import imports as score_files
    from veritune.stats import power as designs
    from veritune.stats import table as tables
else:
    store, comparisons, planning = (
        lazy("veritune.store"),
        lazy("veritune.decide.commands"),
        lazy("veritune.decide.planning"),
    )
    drafts, lints = lazy("veritune.decide.writeup"), lazy("veritune.decide.lint.check")
    score_files, designs, tables = (
        lazy("veritune.evaluate.imports"),
        lazy("veritune.stats.power"),
        lazy("veritune.stats.table"),
    )


def compare(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more sides: FILE, NAME=FILE, several seeds as NAME=F1,F2, or a folder of files; with "
            "--systems the table files; with --table two names.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The side the others are compared with; default: the last.")
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare every side with every other; Bonferroni over the pairs.")
    ] = False,
    systems: Annotated[
        str | None, typer.Option(help="Tables with one column per system: the columns to compare, as base,tuned.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Counts instead of files: only A, only B, both, neither; repeat for seeds.")
    ] = None,
    fixed: Annotated[list[str] | None, typer.Option(help="Name of a side without seeds, a baseline; repeat.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Name of a side that is an adapter: the sentences say so; repeat.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="The smallest difference that matters, in score units.")] = None,
    alpha: Annotated[float, typer.Option(help="Error rate of the decision.")] = 0.05,
    frozen: Annotated[
        str | None, typer.Option("--rule", help="A rule of your own, beside the decision: min_gap=0.01[,every_seed].")
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-is-better/--higher-is-better",
            help="Direction of the metric, where neither the log nor the metric's name says it.",
            show_default=False,
        ),
    ] = None,
    eval_name: Annotated[
        str | None, typer.Option("--eval", help="Which eval of a file that holds several; or a table's name for it.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Score column (tuned.score for nested ones), lm-eval metric or Inspect scorer.")
    ] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="lm-eval: which filter of a task.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column with the item id.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Column, document field or sample metadata with families (clusters) of items.")
    ] = None,
    run_column: Annotated[str | None, typer.Option("--run", help="Column with the seed or run.")] = None,
    rater: Annotated[str | None, typer.Option(help="Column with the rater.")] = None,
    sample: Annotated[str | None, typer.Option(help="Column that tells several samples of an item apart.")] = None,
    zone: Annotated[str | None, typer.Option(help="Only the items of one zone.")] = None,
    scale: ScaleOption = None,
    missing: Annotated[str, typer.Option(help="Missing scores: fail, error, worst or best.")] = "fail",
    equal_seed_spread: EqualSpreadOption = False,
    shared_seeds: SharedSeedsOption = False,
    draws: Annotated[int, typer.Option(help="Sign flips drawn where there are more than 16 families.")] = 9_999,
    as_json: JsonOption = False,
) -> None:
    """Compare score files item by item: ours, lm-eval samples, Inspect logs, CSV or JSONL."""
    up = None if lower_is_better is None else not lower_is_better
    reading = score_files.Reading(
        eval=eval_name, metric=metric, filter=filter_name, id=id_column, family=family, run=run_column, rater=rater,
        sample=sample, higher_is_better=up,
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
        draws=draws,
        rule=comparisons.parse_rule(frozen) if frozen is not None else None,
        all_pairs=all_pairs,
        adapters=tuple(adapter or ()),
        equal_seed_spread=equal_seed_spread,
        shared_seeds=shared_seeds,
    )
    if table:
        report = comparisons.compare_counts(table, sides or [], options, {"systems": systems, "fixed": fixed})
    else:
        named = comparisons.read_sides(sides or [], eval_name, fixed or [], systems)
        report = comparisons.compare(named, options)
    print(json_text(report) if as_json else comparisons.render_text(report))


def power(
    pilot: Annotated[list[str] | None, typer.Argument(help="Pilot scores: two sides as in `compare`.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of items.")] = None,
    discordance: Annotated[
        float, typer.Option(help="Share of items on which two runs differ; with --graded the variance of a difference.")
    ] = 0.1,
    seeds: Annotated[int, typer.Option(help="Seeds per arm.")] = 1,
    seed_sd: Annotated[float, typer.Option(help="Spread of a run's mean score between seeds, in score units.")] = 0.0,
    baseline: Annotated[bool, typer.Option("--baseline", help="The other arm is a baseline without seeds.")] = False,
    families: Annotated[int | None, typer.Option(help="Number of families, equal in size, that items come in.")] = None,
    design_effect: Annotated[float, typer.Option(help="Factor by which families inflate the variance.")] = 1.0,
    graded: Annotated[bool, typer.Option("--graded", help="Scores are graded, not right or wrong.")] = False,
    equal_seed_spread: EqualSpreadOption = False,
    shared_seeds: SharedSeedsOption = False,
    scale: ScaleOption = None,
    margin: Annotated[float | None, typer.Option(help="The margin to be resolved, in score units.")] = None,
    alpha: Annotated[float, typer.Option(help="Error rate.")] = 0.05,
    target: Annotated[float, typer.Option("--power", help="Power aimed at.")] = 0.8,
    zone: Annotated[str | None, typer.Option(help="Only the pilot's items of one zone.")] = None,
    eval_name: Annotated[str | None, typer.Option("--eval", help="Pilot: which eval of a file.")] = None,
    metric: Annotated[str | None, typer.Option(help="Pilot: score column, metric or scorer.")] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="Pilot: lm-eval filter.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Pilot: column with the item id.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the plot of detectable gap to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a design can detect, before it is paid for: from its numbers or from pilot scores."""
    if pilot:
        if len(pilot) != 2:
            raise InputError(f"expected two pilot sides, found {len(pilot)}.", fix="veritune power A B")
        reading = score_files.Reading(eval=eval_name, metric=metric, filter=filter_name, id=id_column)
        options = comparisons.CompareOptions(margin=margin, alpha=alpha, zone=zone, reading=reading, scale=scale)
        declared = planning.Declared(target, equal_seed_spread, shared_seeds)
        one, two = (comparisons.parse_side(text, eval_name) for text in pilot)
        plan = planning.plan_from_scores(one, two, options, declared)
    elif eval_name or metric or filter_name or id_column:
        raise InputError(
            "--eval, --metric, --filter and --id read pilot scores, and none are named.", fix="veritune power A B"
        )
    elif items is None:
        raise InputError("expected pilot scores or --items.", fix="veritune power --items 1319 --discordance 0.07")
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
            equal_seed_spread=equal_seed_spread,
            shared_seeds=shared_seeds,
        )
        plan = planning.plan_power(design)
    if plot is not None:
        planning.plot_power(plan, plot)
    print(json_text(plan) if as_json else planning.render_power(plan))


def lint(
    writeup: Annotated[Path, typer.Argument(help="The write-up, in Markdown.")],
    study: Annotated[Path, typer.Option(help="The study it speaks of: its file or folder.")],
    rules: Annotated[Path | None, typer.Option(help="A file that switches rules or adds some.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every number and claim of a write-up against the records."""
    report, code = lints.lint_command(writeup, study, rules)
    print(json_text(report) if as_json else lints.render_text(report))
    exit_unless(not code, code)


def writeup(
    study: StudyArg,
    out: Annotated[Path | None, typer.Option(help="Write the draft here instead of to the screen.")] = None,
) -> None:
    """Draft a write-up from the records. It passes `lint`; what it cannot know is left for you."""
    text = drafts.writeup(study)
    if out is not None:
        store.write_text(out, text)
    print(text if out is None else f"wrote {out}")

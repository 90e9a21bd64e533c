"""`veritune probe ...`: look inside a model or a training run that anybody made. A probe explains and never decides."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AdapterOption,
    ExpectedOption,
    ExtractOption,
    FamilyOption,
    JsonOption,
    ModelOption,
    NewTokensOption,
    OutOption,
    PageOption,
    PlotOption,
    QuietOption,
    RowsOption,
    StudyArg,
    TemplateKwargsOption,
    TrainedOption,
    TrainOn,
    TrainOnOption,
    parse_template_kwargs,
)
from veritune.commands.output import json_text, reading_text, show_reading, show_readings
from veritune.commands.screen import put
from veritune.errors import InputError
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune import records, store
    from veritune.config import thresholds
    from veritune.data import load
    from veritune.decide import commands as comparisons
    from veritune.decide import screen
    from veritune.evaluate import regression as before_after
    from veritune.pipeline import geometry_runs
    from veritune.pipeline import leak as leaks
    from veritune.probe import effective, geometry_grid, grouping, series, weight_cells
    from veritune.probe import gradients as gradient_probe
    from veritune.probe import recall as recalls
    from veritune.probe import study as probes
    from veritune.probe import subject as subjects
    from veritune.probe import weights as weight_probe
    from veritune.report import geometry as geometry_report
    from veritune.report import geometry_cells as cell_report
    from veritune.report import moved
    from veritune.report import tokens as token_page
else:
    records, store, thresholds = lazy("veritune.records"), lazy("veritune.store"), lazy("veritune.config.thresholds")
    load, comparisons = lazy("veritune.data.load"), lazy("veritune.decide.commands")
    screen = lazy("veritune.decide.screen")
    before_after, effective = lazy("veritune.evaluate.regression"), lazy("veritune.probe.effective")
    geometry_grid, grouping = lazy("veritune.probe.geometry_grid"), lazy("veritune.probe.grouping")
    series, gradient_probe = lazy("veritune.probe.series"), lazy("veritune.probe.gradients")
    recalls, probes = lazy("veritune.probe.recall"), lazy("veritune.probe.study")
    weight_cells = lazy("veritune.probe.weight_cells")
    subjects, weight_probe = lazy("veritune.probe.subject"), lazy("veritune.probe.weights")
    geometry_report, moved = lazy("veritune.report.geometry"), lazy("veritune.report.moved")
    token_page = lazy("veritune.report.tokens")
    leaks, geometry_runs = lazy("veritune.pipeline.leak"), lazy("veritune.pipeline.geometry_runs")
    cell_report = lazy("veritune.report.geometry_cells")


class Measure(Enum):
    """What `probe gap` measures on the three zones."""

    gap = "gap"
    tokens = "tokens"
    recall = "recall"


RECALL_ROWS = 200
"""Rows of each zone that are asked back, where --rows is left out."""
GRADIENT_ROWS = 96
"""Rows whose gradients are taken, where --rows is left out."""


def gap(
    model: ModelOption,
    adapter: TrainedOption,
    seen: Annotated[Path, typer.Option(help="Rows that the model was trained on.")],
    stranger: Annotated[Path, typer.Option(help="Rows of families that the model was not trained on.")],
    sibling: Annotated[
        Path | None, typer.Option(help="Held-out rows of families that the model was trained on.")
    ] = None,
    family_field: FamilyOption = None,
    measure: Annotated[
        list[Measure] | None,
        typer.Option(
            "--measure",
            help="What to measure: gap (gain of each zone, the default), tokens (on which tokens the loss fell) or "
            "recall (rows asked back, by forced choice and word for word); repeat for more.",
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="recall: at most this many rows of each zone.")] = RECALL_ROWS,
    page: PageOption = None,
    train_on: TrainOnOption = TrainOn.all,
    template_kwargs: TemplateKwargsOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Measure how much of the gain on trained rows carries over to siblings and strangers: a policy, or samples learned
    by heart?
    """
    chosen = list(dict.fromkeys(m.value for m in measure or [Measure.gap]))
    if page is not None and Measure.tokens.value not in chosen:
        raise InputError("--page shows tokens, which were not measured.", fix="Add --measure tokens.")
    subject = probes.subject(model, adapter, template_kwargs=parse_template_kwargs(template_kwargs))
    files = {"seen": seen, "stranger": stranger} | ({} if sibling is None else {"sibling": sibling})
    zoned = probes.read_zones(files, subject.renderer, family_field=family_field, train_on=train_on.value)
    named: dict[str, Any] = {}
    for name in chosen:
        if name == "gap":
            named["gap"] = probes.gap_of(subject, zoned)
        elif name == "recall":
            named |= recalls.recall_of(subject, probes.thin(zoned, rows))
        else:
            records = probes.tokens_of(subject, zoned, ("seen", "stranger") if page else ("stranger",))
            named["tokens"] = records["stranger"]
            if page is not None:
                token_page.draw_tokens(page, records, subject, PAGE_ROWS)
    if len(named) == 1:
        show_reading(named[chosen[0]], as_json, out)
    else:
        show_readings(named, as_json, out)


PAGE_ROWS = 40
"""Rows of each zone on the page of --page."""


def gradients(
    model: ModelOption,
    data: RowsOption,
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    rows: Annotated[int, typer.Option(help="Most rows to measure.")] = GRADIENT_ROWS,
    of: Annotated[
        str, typer.Option(help="Parameters whose gradients are taken: trainable, probe (a temporary adapter) or auto.")
    ] = "auto",
    families: Annotated[
        Path | None,
        typer.Option(
            help="Find families that no label names instead, and write the rows with a column `family` to this file."
        ),
    ] = None,
    train_on: TrainOnOption = TrainOn.all,
    template_kwargs: TemplateKwargsOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Estimate how many independent examples the data is worth, and whether siblings have similar gradients."""
    if of not in ("auto", "trainable", "probe"):
        raise InputError(f"--of {of}: expected auto, trainable or probe.")
    subject = probes.subject(model, adapter, template_kwargs=parse_template_kwargs(template_kwargs))
    if families is not None:
        if adapter is not None or rows != GRADIENT_ROWS or of != "auto":
            raise InputError(
                "--families takes the gradients of every row on the base model.",
                fix="Leave --adapter, --rows and --of out.",
            )
        loaded = load.require_clean(load.load_rows(data, family_field=family_field))
        trained = load.require_clean(load.load_rows(data, family_field=family_field, train_on=train_on.value))
        record = probes.gradient_families_of(subject, trained.rows)
        grouping.write_grouped(families, loaded.rows, record)
        show_reading(record, as_json, out)
        return
    settings = gradient_probe.Settings(of=of, plan=effective.SamplePlan(max_rows=rows))  # type: ignore[arg-type]
    found = probes.gradients_of(subject, data, settings, family_field=family_field, train_on=train_on.value)
    show_reading(found, as_json, out)


def weights(
    after: Annotated[list[Path], typer.Argument(help="An adapter, a checkpoint, several of them, or a study.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the base model; needed for a full checkpoint.")] = None,
    intruders: Annotated[bool, typer.Option("--intruders", help="Also compare singular vectors (slow).")] = False,
    plot: PlotOption = None,
    reference: Annotated[
        str | None,
        typer.Option(help="For a study: compare every module with this condition's, by the .5 and 1.5 rule."),
    ] = None,
    axis: Annotated[
        str, typer.Option(help="For a plot of several adapters or a study: its x axis: step, lr or rows.")
    ] = "step",
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Measure how far the weights moved, by module, or over steps, rates and doses. It describes a run and decides
    nothing.
    """
    study = series.is_study(after)
    if reference is not None:
        if not study or intruders or plot is not None:
            raise InputError("--reference compares the runs of one study.", fix="Name a study, and leave out --plot.")
        grid = weight_cells.study_grid(after[0], reference)
        if not as_json:
            print(weight_cells.grid_table(grid))
        show_reading(grid, as_json, out)
        return
    if len(after) > 1 or study:
        if intruders:
            raise InputError("--intruders reads one weight change at a time.", fix="Name one adapter or checkpoint.")
        record = series.study_series(after[0]) if study else series.folder_series(after, base)
        if plot is not None:
            moved.draw_series(records.to_json(record), plot, axis)
        if not as_json:
            put(series.table(record))
        show_reading(record, as_json, out)
        return
    if plot is not None:
        raise InputError("--plot draws a series, but one folder was given.", fix="Name several folders or a study.")
    # The spectrum of an adapter's change is cheap; that of a whole checkpoint comes with --intruders.
    spectrum = subjects.is_adapter(after[0]) or intruders
    options = weight_probe.WeightOptions(spectrum=spectrum, intruders=intruders)
    show_reading(series.change_of(after[0], base, options), as_json, out)


def geometry(
    model: Annotated[str | None, typer.Option(help="The base: a folder, a hub id or builtin:NAME.")] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="Folder of the adapter or full checkpoint; repeat for seeds or steps.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Instead of --model: a study (every checkpoint on disk), or a table of centroids, cosines or changes.",
        ),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="With --from: these layers, e.g. 4,8,12; default: all.")] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The same of a run to compare with (ratio per layer); with --from a condition's name, or pairs "
            "ARM=REFERENCE,ARM=REFERENCE."
        ),
    ] = None,
    personas: Annotated[
        Path | None,
        typer.Option(
            help="YAML or JSON file that maps persona names to system prompts; default: twelve built-in personas."
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="File with one question per line; default: sixteen built-in questions.")
    ] = None,
    method: Annotated[str, typer.Option(help="last_input_token, response_mean or both.")] = "last_input_token",
    max_new_tokens: Annotated[int, typer.Option(help="For response_mean: tokens generated per prompt.")] = 32,
    smallest_change: Annotated[
        float | None,
        typer.Option(
            help="Changes below this value are shown without a word and without a ratio to the reference; "
            "default: 0.005."
        ),
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the record here (.json); with --from also .csv, .svg, .png, .pdf, or a folder."),
    ] = None,
) -> None:
    """Measure how the hidden states of different personas moved in training, layer by layer: together, apart, or all in
    one direction.
    """
    asked = geometry_runs.GeometryAsked(
        methods=geometry_runs.methods_of(method),
        layers=geometry_runs.layers_of(layers),
        personas=personas,
        questions=questions,
        max_new_tokens=max_new_tokens,
        limits=geometry_runs.limits_of(smallest_change),
    )
    if source is not None:
        if model is not None or adapter:
            raise InputError(
                "--from excludes --model and --adapter.", fix="Leave them out: --from reads a study or a table."
            )
        beside = geometry_runs.references_of(None if reference is None else str(reference))
        grid = geometry_runs.grid_from(source, asked, beside)
        if out is not None:
            geometry_runs.write_grid(grid, out)
        parts = (reading_text(grid), cell_report.cells_table(grid), cell_report.dose_table(grid))
        put(json_text(grid) if as_json else "\n\n".join(part for part in parts if part), raw=as_json)
        return
    if model is None or not adapter:
        raise InputError(
            "expected --model and --adapter, or --from; found neither.", fix="Name a study or a table: --from PATH."
        )
    if layers is not None:
        raise InputError("--layers needs --from.", fix="Leave out --layers: the table lists every layer.")
    grids = geometry_runs.grids_of(model, adapter, reference, asked)
    if out is not None:
        store.write_json(out, {"runs": grids})
    put(json_text({"runs": grids}) if as_json else _grids_text(grids), raw=as_json)


def _grids_text(grids: Sequence[geometry_grid.Grid]) -> str:
    """Each run's reading, and its table."""
    parts = []
    for grid in grids:
        head = f"{grid.label}: " if len(grids) > 1 else ""
        parts.append(f"{reading_text(grid, head)}\n\n{geometry_report.geometry_table(records.to_json(grid))}")
    return "\n".join(parts)


def leak(
    study: StudyArg,
    condition: Annotated[list[str] | None, typer.Option(help="Only this condition; repeat.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train each condition once more on a split that ignores families, to measure how much that leak would flatter the
    results.
    """
    made = leaks.leak_command(study, condition or (), Progress(silent=quiet or as_json))
    if as_json:
        print(json_text(made))
        return
    for name, record in made.items():
        put(reading_text(record, f"{name}: "))


ANSWER_TOKENS = 128
"""Tokens of an answer that is scored, where --max-new-tokens is left out."""


def forgetting(
    model: ModelOption,
    adapter: TrainedOption,
    data: Annotated[Path, typer.Option(help="The regression set: rows with reference answers.")],
    margin: Annotated[
        float | None, typer.Option(help="Largest tolerated rise of the loss, in nats per token; default: 0.05.")
    ] = None,
    family_field: FamilyOption = None,
    extract: ExtractOption = None,
    expected: ExpectedOption = None,
    score_margin: Annotated[float, typer.Option(help="With --extract: largest tolerated fall of the score.")] = 0.02,
    max_new_tokens: NewTokensOption = None,
    train_on: TrainOnOption = TrainOn.all,
    template_kwargs: TemplateKwargsOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Measure what training cost on other tasks: loss and scores of a regression set before and after."""
    subject = probes.subject(model, adapter, template_kwargs=parse_template_kwargs(template_kwargs))
    key = before_after.AnswerKey.of(extract, expected, max_new_tokens or ANSWER_TOKENS)
    files = {"regression": data}
    zoned = probes.read_zones(files, subject.renderer, family_field=family_field, train_on=train_on.value)
    most = thresholds.DEFAULTS.forgetting.margin if margin is None else margin
    loss, scores = before_after.forgetting_of(subject, zoned, most, key)
    if scores is None:
        show_readings({"loss": loss}, as_json, out)
        return
    adapters = () if subject.is_checkpoint else ("trained",)
    compared = comparisons.compare_before_after(*scores, score_margin, adapters)
    show_readings({"loss": loss, "score": compared}, as_json, out)
    if not as_json:
        put("\n" + screen.render_text(compared))

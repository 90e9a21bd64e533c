"""`veritune probe ...`: look inside a model or a training run that anybody made. A probe explains and never decides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AdapterOption,
    FamilyOption,
    JsonOption,
    ModelOption,
    OutOption,
    QuietOption,
    RowsOption,
    SeenOption,
    SiblingOption,
    StrangerOption,
    StudyArg,
    TrainedOption,
    WithExpectedOption,
)
from veritune.commands.output import json_text, reading_text, show_reading, show_readings
from veritune.errors import InputError
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune import records, store
    from veritune.config import thresholds
    from veritune.data import load
    from veritune.decide import commands as comparisons
    from veritune.evaluate import regression as before_after
    from veritune.probe import effective, geometry_grid, grouping, series
    from veritune.probe import gradients as gradient_probe
    from veritune.probe import recall as recalls
    from veritune.probe import study as probes
    from veritune.probe import subject as subjects
    from veritune.probe import weights as weight_probe
    from veritune.report import geometry as geometry_report
    from veritune.report import moved
    from veritune.report import probes as probe_page
    from veritune.report import tokens as token_page
    from veritune.stages import leak as leaks
    from veritune.stages import probes as study_probes
else:
    records, store, thresholds = lazy("veritune.records"), lazy("veritune.store"), lazy("veritune.config.thresholds")
    load, comparisons = lazy("veritune.data.load"), lazy("veritune.decide.commands")
    before_after, effective = lazy("veritune.evaluate.regression"), lazy("veritune.probe.effective")
    geometry_grid, grouping = lazy("veritune.probe.geometry_grid"), lazy("veritune.probe.grouping")
    series, gradient_probe = lazy("veritune.probe.series"), lazy("veritune.probe.gradients")
    recalls, probes = lazy("veritune.probe.recall"), lazy("veritune.probe.study")
    subjects, weight_probe = lazy("veritune.probe.subject"), lazy("veritune.probe.weights")
    geometry_report, moved = lazy("veritune.report.geometry"), lazy("veritune.report.moved")
    probe_page, token_page = lazy("veritune.report.probes"), lazy("veritune.report.tokens")
    leaks, study_probes = lazy("veritune.stages.leak"), lazy("veritune.stages.probes")


def gradients(
    model: ModelOption,
    data: RowsOption,
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    rows_at_most: Annotated[int, typer.Option("--rows", help="Measure at most so many rows.")] = 96,
    of: Annotated[str, typer.Option(help="Whose gradients: trainable, probe (a throwaway adapter) or auto.")] = "auto",
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how many independent examples the data acts like, and whether siblings pull the same way."""
    if of not in ("auto", "trainable", "probe"):
        raise InputError(f"--of {of}: expected auto, trainable or probe.")
    plan = effective.SamplePlan(max_rows=rows_at_most)
    settings = gradient_probe.Settings(of=of, plan=plan)  # type: ignore[arg-type]
    subject = probes.subject(model, adapter)
    show_reading(probes.gradients_of(subject, data, settings, family_field=family_field), as_json, out)


def gap(
    model: ModelOption,
    adapter: TrainedOption,
    seen: SeenOption,
    stranger: StrangerOption,
    sibling: SiblingOption = None,
    family_field: FamilyOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how much of the gain on trained rows carries to siblings and strangers: policy or samples?"""
    subject = probes.subject(model, adapter)
    zoned = probes.read_zones(_zone_files(seen, stranger, sibling), subject.renderer, family_field=family_field)
    show_reading(probes.gap_of(subject, zoned), as_json, out)


def tokens(
    model: ModelOption,
    adapter: TrainedOption,
    seen: SeenOption,
    stranger: Annotated[Path, typer.Option(help="Rows of families it never saw: where the fall is read.")],
    family_field: FamilyOption = None,
    page: Annotated[Path | None, typer.Option(help="Also draw rows with coloured tokens into this HTML file.")] = None,
    page_rows: Annotated[int, typer.Option(help="Rows of each zone on the page.")] = 40,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say on which tokens the loss fell: the template, the prompt's own words, or the rest."""
    subject = probes.subject(model, adapter)
    files = {"seen": seen, "stranger": stranger}
    zoned = probes.read_zones(files, subject.renderer, family_field=family_field)
    records = probes.tokens_of(subject, zoned, ("seen", "stranger") if page else ("stranger",))
    show_reading(records["stranger"], as_json, out)
    if page is not None:
        token_page.draw_tokens(page, records, subject, page_rows)


def weights(
    after: Annotated[list[Path], typer.Argument(help="An adapter, a checkpoint, several of them, or a study.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the base; needed for a full checkpoint.")] = None,
    intruders: Annotated[bool, typer.Option("--intruders", help="Also compare singular vectors (slow).")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw several or a study's (.svg, .png or .pdf).")] = None,
    axis: Annotated[str, typer.Option(help="What the plot runs over: step, lr or rows.")] = "step",
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how far the weights moved, by module, or along steps, rates and doses. Reported, never judged by."""
    study = series.is_study(after)
    if len(after) > 1 or study:
        if intruders:
            raise InputError("--intruders reads one change at a time.", fix="Name one adapter or checkpoint.")
        record = series.study_series(after[0]) if study else series.folder_series(after, base)
        if plot is not None:
            moved.draw_series(records.to_json(record), plot, axis)
        if not as_json:
            print(series.table(record))
        show_reading(record, as_json, out)
        return
    if plot is not None:
        raise InputError("--plot draws a series, and one folder is none.", fix="Name several folders or a study.")
    # The spectrum of an adapter's change is cheap; that of a whole checkpoint comes with --intruders.
    spectrum = subjects.is_adapter(after[0]) or intruders
    options = weight_probe.WeightOptions(spectrum=spectrum, intruders=intruders)
    show_reading(series.change_of(after[0], base, options), as_json, out)


def families(
    model: ModelOption,
    data: RowsOption,
    to: Annotated[Path, typer.Option(help="Write the rows with a column `family` here (.jsonl).")],
    family_field: FamilyOption = None,
    threshold: Annotated[float, typer.Option(help="Mean-centred gradient cosine from which rows are joined.")] = 0.3,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Find families that no label names, by gradient, and write them as a column for `data.family_field`."""
    subject = probes.subject(model)
    loaded = load.require_clean(load.load_rows(data, family_field=family_field))
    record = probes.gradient_families_of(subject, loaded.rows, threshold)
    grouping.write_grouped(to, loaded.rows, record)
    show_reading(record, as_json, out)


def geometry(
    model: ModelOption,
    adapter: Annotated[
        list[Path], typer.Option(help="Folder of the adapter or full checkpoint; repeat for seeds or steps.")
    ],
    reference: Annotated[Path | None, typer.Option(help="The same of a run to compare with (ratio per layer).")] = None,
    personas: Annotated[Path | None, typer.Option(help="YAML or JSON: name to system text; default: twelve.")] = None,
    questions: Annotated[Path | None, typer.Option(help="One question a line; default: sixteen.")] = None,
    method: Annotated[str, typer.Option(help="last_input_token, response_mean or both.")] = "last_input_token",
    max_new_tokens: Annotated[int, typer.Option(help="response_mean: tokens generated per prompt.")] = 32,
    smallest_change: Annotated[
        float | None,
        typer.Option(
            help="Smaller changes get no word, and no ratio to a reference; shown all the same; default: 0.005."
        ),
    ] = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how different personas' hidden states moved in training, layer by layer: together, apart, or all one way."""
    methods = ("last_input_token", "response_mean") if method == "both" else (method,)
    if not set(methods) <= {"last_input_token", "response_mean"}:
        raise InputError(f"--method {method}: expected last_input_token, response_mean or both.")
    limits = thresholds.DEFAULTS.geometry
    if smallest_change is not None:
        if not smallest_change > 0:
            raise InputError(f"--smallest-change {smallest_change:g}: expected a number above 0.")
        limits = limits.model_copy(update={"small_change": smallest_change})
    prompts, files = probes.persona_prompts(model, personas, questions)
    folders = [*adapter, *([] if reference is None else [reference])]
    measured = probes.geometry_of(model, folders, prompts, methods, max_new_tokens)
    against = None if reference is None else measured[-1]
    runs = [(geometry_grid.run_of(folder), by_method) for folder, by_method in zip(adapter, measured)]
    grids = geometry_grid.build_grids(runs, against, files, limits)
    if out is not None:
        store.write_json(out, {"runs": grids})
    print(json_text({"runs": grids}) if as_json else _grids_text(grids))


def _grids_text(grids: Sequence[geometry_grid.Grid]) -> str:
    """Each run's reading, and its table."""
    parts = []
    for grid in grids:
        head = f"{grid.label}: " if len(grids) > 1 else ""
        parts.append(f"{reading_text(grid, head)}\n\n{geometry_report.geometry_table(records.to_json(grid))}")
    return "\n".join(parts)


def leak(
    study: StudyArg,
    condition: Annotated[list[str] | None, typer.Option(help="Only this condition; may be repeated.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Train each condition once more on a split that ignores families: what would the leak have flattered?"""
    made = leaks.leak_command(study, condition or (), Progress(silent=quiet or as_json))
    if as_json:
        print(json_text(made))
        return
    for name, record in made.items():
        print(reading_text(record, f"{name}: "))


def recall(
    model: ModelOption,
    adapter: TrainedOption,
    seen: SeenOption,
    stranger: StrangerOption,
    sibling: SiblingOption = None,
    family_field: FamilyOption = None,
    rows_at_most: Annotated[int, typer.Option("--rows", help="Ask at most so many rows of each zone.")] = 200,
    length: Annotated[int, typer.Option(help="Tokens of an ending in the forced choice.")] = 16,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Ask rows back: forced choice between endings, and greedy continuation; seen beside siblings and strangers."""
    subject = probes.subject(model, adapter)
    zoned = probes.read_zones(_zone_files(seen, stranger, sibling), subject.renderer, family_field=family_field)
    plan = recalls.RecallPlan(length=length)
    show_readings(recalls.recall_of(subject, probes.thin(zoned, rows_at_most), plan), as_json, out)


def forgetting(
    model: ModelOption,
    adapter: TrainedOption,
    data: Annotated[Path, typer.Option(help="The regression set: rows with reference answers.")],
    margin: Annotated[
        float | None, typer.Option(help="Rise of the loss, nats per token, that is tolerated; default: 0.05.")
    ] = None,
    family_field: FamilyOption = None,
    extract: Annotated[str | None, typer.Option(help="Also score answers: pattern whose group is the answer.")] = None,
    expected: WithExpectedOption = None,
    score_margin: Annotated[float, typer.Option(help="Fall of the score that is still tolerated.")] = 0.02,
    max_new_tokens: Annotated[int, typer.Option(help="With --extract: generation stops here.")] = 128,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say what training cost on other tasks: loss, and scores, of a regression set before and after."""
    subject = probes.subject(model, adapter)
    key = before_after.AnswerKey.of(extract, expected, max_new_tokens)
    zoned = probes.read_zones({"regression": data}, subject.renderer, family_field=family_field)
    most = thresholds.DEFAULTS.forgetting.margin if margin is None else margin
    loss, scores = before_after.forgetting_of(subject, zoned, most, key)
    if scores is None:
        show_readings({"loss": loss}, as_json, out)
        return
    adapters = () if subject.is_checkpoint else ("trained",)
    compared = comparisons.compare_before_after(*scores, score_margin, adapters)
    show_readings({"loss": loss, "score": compared}, as_json, out)
    if not as_json:
        print("\n" + comparisons.render_text(compared))


def report(
    study: StudyArg,
    make: Annotated[
        list[str] | None,
        typer.Option(help="Also make gradients, geometry, recall, tokens or calibration, on every run; repeat it."),
    ] = None,
    as_json: JsonOption = False,
    out: Annotated[Path | None, typer.Option(help="Write the page here, as Markdown.")] = None,
) -> None:
    """Say what every probe of a study reads, a block each; the report is redrawn with the same section."""
    blocks = study_probes.probe_report(study, Progress(silent=True), make or ())
    text = probe_page.markdown(store.Store.of(study).root.resolve().name, blocks)
    if out is not None:
        store.write_text(out, text)
    print(json_text(blocks) if as_json else text)


def _zone_files(seen: Path, stranger: Path, sibling: Path | None) -> dict[str, Path]:
    files = {"seen": seen, "stranger": stranger}
    return files if sibling is None else {**files, "sibling": sibling}

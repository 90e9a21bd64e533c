"""`veritune probe ...`: look inside a model or a training run that anybody made. A probe explains and never decides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="probe",
    help="Look inside a model or adapter that anybody trained.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ModelOption = Annotated[str, typer.Option(help="Base model: folder, hub id or builtin.")]
AdapterOption = Annotated[
    Path | None, typer.Option(help="Folder of the adapter or full checkpoint; without it the base is probed.")
]
TrainedOption = Annotated[Path, typer.Option(help="Folder of the adapter or of a full checkpoint.")]
FamilyOption = Annotated[str | None, typer.Option(help="Column that names a row's original.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the record to this file.")]


@app.command()
def gradients(
    model: ModelOption,
    data: Annotated[str, typer.Option(help="The rows: any file that `audit` reads.")],
    adapter: AdapterOption = None,
    family_field: FamilyOption = None,
    rows_at_most: Annotated[int, typer.Option("--rows", help="Measure at most so many rows.")] = 96,
    of: Annotated[str, typer.Option(help="Whose gradients: trainable, probe (a throwaway adapter) or auto.")] = "auto",
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how many independent examples the data acts like, and whether siblings pull the same way."""
    from veritune.data.families import find_families
    from veritune.data.load import load_rows, require_clean
    from veritune.data.render import render_rows
    from veritune.errors import DataError, InputError
    from veritune.probe.effective import Plan
    from veritune.probe.gradients import Settings, probe_gradients
    from veritune.probe.study import subject

    if of not in ("auto", "trainable", "probe"):
        raise InputError(f"--of {of}: expected auto, trainable or probe.")
    found = subject(model, adapter)
    loaded = load_rows(data, family_field=family_field)
    require_clean(loaded)
    rendered, problems = render_rows(loaded.rows, found.renderer)
    if problems:
        raise DataError(f"{problems[0].message} ({len(problems)} such rows).", fix="Shorten or drop them.")
    settings = Settings(of=of, plan=Plan(max_rows=rows_at_most))  # type: ignore[arg-type]
    families = find_families(loaded.rows).families
    record = probe_gradients(found.trained(), rendered, families, settings=settings, base_loss=found.base_loss())
    _show(record, as_json, out)


@app.command()
def gap(
    model: ModelOption,
    adapter: TrainedOption,
    seen: Annotated[Path, typer.Option(help="Rows it was trained on.")],
    stranger: Annotated[Path, typer.Option(help="Rows of families it never saw.")],
    sibling: Annotated[Path | None, typer.Option(help="Held-out rows of families it was trained on.")] = None,
    family_field: FamilyOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how much of the gain on trained rows carries to siblings and strangers: policy or samples?"""
    from veritune.probe.study import gap_of, read_zones, subject

    found = subject(model, adapter)
    files: dict[str, str | Path] = {"seen": seen, "stranger": stranger}
    if sibling is not None:
        files["sibling"] = sibling
    _show(gap_of(found, read_zones(files, found.renderer, family_field=family_field)), as_json, out)


@app.command()
def tokens(
    model: ModelOption,
    adapter: TrainedOption,
    seen: Annotated[Path, typer.Option(help="Rows it was trained on.")],
    stranger: Annotated[Path, typer.Option(help="Rows of families it never saw: where the fall is read.")],
    family_field: FamilyOption = None,
    page: Annotated[Path | None, typer.Option(help="Also draw rows with coloured tokens into this HTML file.")] = None,
    page_rows: Annotated[int, typer.Option(help="Rows of each zone on the page.")] = 40,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say on which tokens the loss fell: the template, the prompt's own words, or the rest."""
    from veritune.probe.study import read_zones, subject, tokens_of

    found = subject(model, adapter)
    zoned = read_zones({"seen": seen, "stranger": stranger}, found.renderer, family_field=family_field)
    records = tokens_of(found, zoned, ("seen", "stranger") if page else ("stranger",))
    _show(records["stranger"], as_json, out)
    if page is not None:
        _draw_tokens(page, records, found, page_rows)


def _draw_tokens(page: Path, records: dict[str, Any], found: Any, page_rows: int) -> None:
    from dataclasses import replace

    from veritune.probe.tokens import token_pieces
    from veritune.records import to_json
    from veritune.report.tokens import Section, write_tokens_page

    sections = []
    for zone, whole in records.items():
        record = replace(whole, rows=whole.rows[:page_rows])
        pieces = {row["row_id"]: token_pieces(found.renderer.tokenizer, row["ids"]) for row in record.rows}
        sections.append(Section(zone, to_json(record), pieces))
    write_tokens_page(page, sections, f"{found.ref.name} with {found.adapter.name}")


@app.command()
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
    from veritune.errors import InputError
    from veritune.probe.weights import Options

    study = len(after) == 1 and (after[0].suffix in (".yaml", ".yml") or (after[0] / "study.yaml").is_file())
    if len(after) > 1 or study:
        if intruders:
            raise InputError("--intruders reads one change at a time.", fix="Name one adapter or checkpoint.")
        _weight_series(after, study, base, plot, axis, as_json, out)
        return
    if plot is not None:
        raise InputError("--plot draws a series, and one folder is none.", fix="Name several folders or a study.")
    from veritune.probe.series import change_of

    adapter = (after[0] / "adapter_config.json").is_file()
    _show(change_of(after[0], base, Options(spectrum=adapter or intruders, intruders=intruders)), as_json, out)


def _weight_series(
    folders: list[Path], study: bool, base: Path | None, plot: Path | None, axis: str, as_json: bool, out: Path | None
) -> None:
    from veritune.probe.series import folder_series, study_series, table
    from veritune.records import to_json
    from veritune.report.moved import draw_series

    record = study_series(folders[0]) if study else folder_series(folders, base)
    if plot is not None:
        draw_series(to_json(record), plot, axis)
    if not as_json:
        print(table(record))
    _show(record, as_json, out)


@app.command()
def families(
    model: ModelOption,
    data: Annotated[str, typer.Option(help="The rows: any file that `audit` reads.")],
    to: Annotated[Path, typer.Option(help="Write the rows with a column `family` here (.jsonl).")],
    family_field: FamilyOption = None,
    threshold: Annotated[float, typer.Option(help="Mean-centred gradient cosine from which rows are joined.")] = 0.3,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Find families that no label names, by gradient, and write them as a column for `data.family_field`."""
    from veritune.data.load import load_rows, require_clean
    from veritune.data.render import render_rows
    from veritune.probe.grouping import group_by_gradient, write_grouped
    from veritune.probe.study import subject

    found = subject(model)
    loaded = require_clean(load_rows(data, family_field=family_field))
    rendered, _ = render_rows(loaded.rows, found.renderer)
    record = group_by_gradient(found.base(), loaded.rows, rendered, threshold=threshold)
    write_grouped(to, loaded.rows, record)
    _show(record, as_json, out)


@app.command()
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
    from veritune.config.thresholds import DEFAULTS
    from veritune.errors import InputError
    from veritune.probe import geometry as g
    from veritune.probe.geometry_grid import build_grids, run_of
    from veritune.probe.study import geometry_of, subject
    from veritune.records import dumps, to_json
    from veritune.report.geometry import geometry_table
    from veritune.store import sha256_file, write_json

    methods = ("last_input_token", "response_mean") if method == "both" else (method,)
    if not set(methods) <= {"last_input_token", "response_mean"}:
        raise InputError(f"--method {method}: expected last_input_token, response_mean or both.")
    thresholds = DEFAULTS.geometry
    if smallest_change is not None:
        if not smallest_change > 0:
            raise InputError(f"--smallest-change {smallest_change:g}: expected a number above 0.")
        thresholds = thresholds.model_copy(update={"small_change": smallest_change})
    texts = g.PERSONAS if personas is None else g.read_personas(personas)
    asked = g.QUESTIONS if questions is None else g.read_questions(questions)
    files = {n: sha256_file(p) for n, p in (("personas", personas), ("questions", questions)) if p is not None}
    prompts = g.render_personas(subject(model).renderer.tokenizer, texts, asked)
    folders = [*adapter, *([] if reference is None else [reference])]
    found = geometry_of(model, folders, prompts, methods, max_new_tokens)
    against = None if reference is None else found[-1]
    records = build_grids([(run_of(a), by) for a, by in zip(adapter, found)], against, files, thresholds)
    if out is not None:
        write_json(out, {"runs": records})
    if as_json:
        print(dumps({"runs": records}, indent=2))
        return
    for record in records:
        print(f"{record.label}: " * (len(records) > 1), end="")
        _show(record, False, None)
        print("\n" + geometry_table(to_json(record)))


def _show(record: Any, as_json: bool, out: Path | None) -> None:
    from veritune.records import dumps
    from veritune.store import write_json

    if out is not None:
        write_json(out, record)
    if as_json:
        print(dumps(record, indent=2))
        return
    print(record.reading)
    print(f"Limits: {record.limits}")
    print(f"What would change it: {record.would_change}")

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
AdapterOption = Annotated[Path | None, typer.Option(help="Folder of the adapter; without it the base is probed.")]
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
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how many independent examples the data acts like, and whether siblings pull the same way."""
    from veritune.data.families import find_families
    from veritune.data.load import load_rows, require_clean
    from veritune.data.render import render_rows
    from veritune.errors import DataError
    from veritune.probe.effective import Plan
    from veritune.probe.gradients import Settings, probe_gradients
    from veritune.probe.study import subject

    found = subject(model, adapter)
    loaded = load_rows(data, family_field=family_field)
    require_clean(loaded)
    rendered, problems = render_rows(loaded.rows, found.renderer)
    if problems:
        raise DataError(f"{problems[0].message} ({len(problems)} such rows).", fix="Shorten or drop them.")
    settings = Settings(plan=Plan(max_rows=rows_at_most))
    families = find_families(loaded.rows).families
    record = probe_gradients(
        found.trained(), rendered, families, settings=settings, base_loss="self" if adapter is None else None
    )
    _show(record, as_json, out)


@app.command()
def gap(
    model: ModelOption,
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter.")],
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
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter.")],
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
    after: Annotated[Path, typer.Argument(help="An adapter's folder, or a full checkpoint's.")],
    base: Annotated[Path | None, typer.Option(help="Folder of the base; needed for a full checkpoint.")] = None,
    intruders: Annotated[bool, typer.Option("--intruders", help="Also compare singular vectors (slow).")] = False,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Say how far the weights moved, module by module. Reported, never judged by."""
    from veritune.errors import ModelError
    from veritune.probe.weights import Options, adapter_change, checkpoint_change

    if (after / "adapter_config.json").is_file():
        _show(adapter_change(after, base, Options(intruders=intruders)), as_json, out)
        return
    if base is None:
        raise ModelError(f"{after} is no adapter, so the base it is compared with must be named.", fix="--base DIR")
    _show(checkpoint_change(base, after, Options(spectrum=intruders, intruders=intruders)), as_json, out)


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

"""Commands on the cells of a study: list them, run one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(cells)
    app.command()(cell)
    app.command()(watch)


def cells(study: StudyArg, as_json: JsonOption = False) -> None:
    """List every cell of a frozen study with its run id and state."""
    from veritune.stages.watch import cells_text, list_cells

    found = list_cells(study)
    print(_json(found) if as_json else cells_text(found))


def cell(
    study: StudyArg,
    run_id: Annotated[str, typer.Argument(help="The cell's run id, as `veritune cells` lists it.")],
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run one cell of a frozen study. It stands alone, so any scheduler can run it; a killed one is taken up again."""
    from veritune.progress import Progress
    from veritune.stages.cell import cell_command

    summary = cell_command(study, run_id, Progress(silent=quiet or as_json))
    print(_json(summary) if as_json else f"{run_id} is done")


def watch(
    study: StudyArg,
    every: Annotated[float, typer.Option(help="Seconds between looks.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Follow a running study from any terminal: every cell, step, loss, time left; stalled is told from slow."""
    from veritune.progress import Progress
    from veritune.stages.watch import cells_text
    from veritune.stages.watch import watch as verb

    found = verb(study, Progress(silent=as_json), every)
    print(_json(found) if as_json else cells_text(found))


def _json(record: object) -> str:
    from veritune.records import dumps

    return dumps(record, indent=2)

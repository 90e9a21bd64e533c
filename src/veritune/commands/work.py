"""The command that takes cells of a study one after the other, or one by its name: `veritune work`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption, QuietOption, StudyArg
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.errors import ExitCode, InputError
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune.pipeline import cell as cell_stage
    from veritune.pipeline import work as work_stage
else:
    cell_stage, work_stage = lazy("veritune.pipeline.cell"), lazy("veritune.pipeline.work")


def work(
    study: StudyArg,
    run_id: Annotated[
        str | None, typer.Argument(help="Run only this cell, by its run id as `veritune status --cells` lists it.")
    ] = None,
    cells: Annotated[
        int | None, typer.Option(help="Stop after this many cells; default: when none is left.", min=1)
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run cells of a frozen study that no other process holds, one after the other, with the model kept loaded in
    between.

    Start it on as many machines as you like. With RUN_ID it runs that cell and ends, so any scheduler can run it; a
    killed one is resumed. Exit status 1: a cell failed; 3: the rest is in use elsewhere.
    """
    if run_id is not None:
        if cells is not None:
            raise InputError("RUN_ID names one cell, but --cells counts several.", fix="Leave out RUN_ID or --cells.")
        summary = cell_stage.cell_command(study, run_id, Progress(silent=quiet or as_json))
        put(json_text(summary) if as_json else f"{run_id} is done", raw=as_json)
        return
    worked = work_stage.work_command(study, Progress(silent=quiet or as_json), cells)
    put(json_text(worked) if as_json else work_stage.worked_text(worked), raw=as_json)
    exit_unless(not worked.failed, ExitCode.USER)
    exit_unless(not worked.in_use, ExitCode.IN_USE)

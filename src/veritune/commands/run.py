"""The commands that train: run a whole study or one cell of it, list the cells, follow them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption, QuietOption, StudyArg
from veritune.commands.output import json_text
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune import stages, verbs
    from veritune.stages import cell as cell_stage
    from veritune.stages import executors
    from veritune.stages import watch as watch_stage
else:
    stages, verbs = lazy("veritune.stages"), lazy("veritune.verbs")
    cell_stage, executors = lazy("veritune.stages.cell"), lazy("veritune.stages.executors")
    watch_stage = lazy("veritune.stages.watch")


def run(
    study: StudyArg,
    amend: Annotated[str | None, typer.Option(help="Reason for a change against the frozen contract.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where cells run: local, ray or slurm; default: here, one after the other.")
    ] = None,
    workers: Annotated[int, typer.Option(help="local: cells side by side; 0 takes as many as fit.")] = 0,
    cpus: Annotated[int, typer.Option(help="ray, slurm: cores a cell.")] = 1,
    gpus: Annotated[float, typer.Option(help="ray, slurm: accelerators a cell.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="ray: the cluster's address; default: the one found here.")
    ] = None,
    executor_option: Annotated[
        list[str] | None, typer.Option(help="slurm: a submitit option, such as slurm_partition=gpu; repeat.")
    ] = None,
    exploratory: Annotated[
        bool, typer.Option("--exploratory", help="Freeze nothing: results and claims stay exploratory.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a study, or what is left of it: data, contract, training, scores, verdicts, report."""
    plan = executors.plan_from(executor, executor_option or [], workers, cpus, gpus, address)
    progress = Progress(silent=quiet or as_json)
    outcome = stages.run(study, amend=amend, progress=progress, exploratory=exploratory, executor=plan)
    print(json_text(outcome) if as_json else verbs.outcome_text(outcome))
    exit_unless(outcome.all_supported)


def cells(study: StudyArg, as_json: JsonOption = False) -> None:
    """List every cell of a frozen study with its run id and state."""
    listed = watch_stage.list_cells(study)
    print(json_text(listed) if as_json else watch_stage.cells_text(listed))


def cell(
    study: StudyArg,
    run_id: Annotated[str, typer.Argument(help="The cell's run id, as `veritune cells` lists it.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run one cell of a frozen study. It stands alone, so any scheduler can run it; a killed one is resumed."""
    summary = cell_stage.cell_command(study, run_id, Progress(silent=quiet or as_json))
    print(json_text(summary) if as_json else f"{run_id} is done")


def watch(
    study: StudyArg,
    every: Annotated[float, typer.Option(help="Seconds between looks.")] = 2.0,
    as_json: JsonOption = False,
) -> None:
    """Follow a running study from any terminal: every cell, step, loss, time left; stalled is told from slow."""
    listed = watch_stage.watch(study, Progress(silent=as_json), every)
    print(json_text(listed) if as_json else watch_stage.cells_text(listed))

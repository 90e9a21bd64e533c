"""The commands that train or take over what was trained: run, cell, adopt, check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AddressOption,
    DtypeOption,
    EvalsOption,
    FamilyOption,
    JsonOption,
    ModelOption,
    QuietOption,
    StudyArg,
)
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.progress import Progress

if TYPE_CHECKING:
    from veritune import files, pipeline, verbs
    from veritune.pipeline import adopt as adoption
    from veritune.pipeline import check as checks
    from veritune.pipeline import executors
else:
    pipeline, verbs, adoption = lazy("veritune.pipeline"), lazy("veritune.verbs"), lazy("veritune.pipeline.adopt")
    checks, files = lazy("veritune.pipeline.check"), lazy("veritune.files")
    executors = lazy("veritune.pipeline.executors")


def run(
    study: StudyArg,
    amend: Annotated[str | None, typer.Option(help="Reason for a change to the frozen contract.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where cells run: local, ray or slurm; default: here, one after the other.")
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            help="Number of cells to run at once; local, ray: 0 means as many as fit; slurm: 0 means one task per cell."
        ),
    ] = 0,
    cpus: Annotated[int, typer.Option(help="ray, slurm: CPU cores per cell.")] = 1,
    gpus: Annotated[float, typer.Option(help="ray, slurm: accelerators per cell.")] = 0,
    address: AddressOption = None,
    executor_option: Annotated[
        list[str] | None, typer.Option(help="slurm: a submitit option, such as slurm_partition=gpu; repeat.")
    ] = None,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", help="ray, slurm: let cells run on when this command is stopped; default: they are stopped too."
        ),
    ] = False,
    exploratory: Annotated[
        bool, typer.Option("--exploratory", help="Do not freeze a contract: results and claims stay exploratory.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a study, or resume it: data, contract, training, scores, verdicts, report."""
    needs = executors.ExecutorPlan(workers=workers, cpus=cpus, gpus=gpus, address=address, detach=detach)
    plan = executors.plan_from(executor, executor_option or [], needs)
    progress = Progress(silent=quiet or as_json)
    outcome = pipeline.run(study, amend=amend, progress=progress, exploratory=exploratory, executor=plan)
    put(json_text(outcome) if as_json else verbs.outcome_text(outcome), raw=as_json)
    exit_unless(outcome.all_supported)


def adopt(
    study: StudyArg,
    condition: Annotated[str, typer.Option(help="Condition (arm) of the weights.")],
    seed: Annotated[int, typer.Option(help="Seed of the cell, one of the study's.")],
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter (PEFT, MLX, Tinker), or of a full checkpoint.")],
    data: Annotated[
        Path | None, typer.Option(help="The rows that the weights were trained on, to check against the zones.")
    ] = None,
    trainer_state: Annotated[Path | None, typer.Option(help="Its trainer_state.json.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Config of the trainer that made the weights, as YAML or JSON.")
    ] = None,
    despite: Annotated[
        str | None, typer.Option(help="Reason for adopting weights that were trained on held-out rows.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Add a cell from weights that were trained elsewhere, by any trainer; `veritune run` then scores and judges it."""
    adopted = adoption.adopt(adoption.Adoption(study, condition, seed, adapter, data, trainer_state, config, despite))
    put(json_text(adopted) if as_json else adoption.adopted_text(adopted), raw=as_json)


def check(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter (PEFT, MLX, Tinker), or of a checkpoint.")],
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="The rows that it was trained on.")],
    held_out: Annotated[Path | None, typer.Option(help="Rows of families that it was not trained on.")] = None,
    evals: EvalsOption = None,
    merged: Annotated[Path | None, typer.Option(help="Merged weights, to compare with the adapter.")] = None,
    logs: Annotated[
        list[str] | None, typer.Option(help="Score logs: base=FILE and tuned=FILE; give the option twice.")
    ] = None,
    family_field: FamilyOption = None,
    margin: Annotated[float | None, typer.Option(help="With --logs: the smallest difference that matters.")] = None,
    dtype: DtypeOption = "float32",
    quick: Annotated[
        bool, typer.Option("--quick", help="Measure fewer rows: minutes on a CPU for a small model.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the page here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write one page about an adapter that anybody trained, without a study: data, generalisation, weights, next
    steps."""
    request = checks.CheckRequest(
        adapter,
        model,
        data,
        held_out,
        tuple(evals or ()),
        merged,
        tuple(logs or ()),
        family_field,
        margin,
        dtype,
        quick,
    )
    report = checks.check(request)
    page = json_text(report) if as_json else checks.check_text(report)
    if out is not None:
        files.write_text(out, page + "\n")
    print(page)
    exit_unless(not report.failed)

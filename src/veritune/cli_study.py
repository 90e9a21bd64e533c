"""Commands on the cells of a study: list them, run one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(freeze)
    app.command()(amend)
    app.command()(plan)
    app.command()(modules)
    app.command()(cells)
    app.command()(cell)
    app.command()(watch)


SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, e.g. train.max_steps=20. It is recorded as a flag."),
]


def freeze(
    study: StudyArg,
    settings: SetOption = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Check a study, hash all it is made from and write its contract. From then on nothing may differ unsaid."""
    from veritune.config.load import parse_flags
    from veritune.progress import Progress
    from veritune.stages.freeze import freeze as verb
    from veritune.stages.freeze import frozen_text

    found = verb(study, parse_flags(settings or []), Progress(silent=quiet or as_json))
    print(_json(_plain(found)) if as_json else frozen_text(found))


def amend(
    study: StudyArg,
    reason: Annotated[str, typer.Option("--reason", help="Why the study is changed.")],
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record a change against the contract, with its reason. Results that are there are marked as made before it."""
    from veritune.config.load import parse_flags
    from veritune.progress import Progress
    from veritune.stages.freeze import amend as verb
    from veritune.stages.freeze import frozen_text

    found = verb(study, reason, parse_flags(settings or []), Progress(silent=True))
    print(_json(_plain(found)) if as_json else frozen_text(found))


def plan(
    study: StudyArg,
    per_tokens: Annotated[
        float | None, typer.Option("--price-per-million-tokens", help="USD a million training tokens.", min=0)
    ] = None,
    per_hour: Annotated[float | None, typer.Option("--price-per-hour", help="USD an hour.", min=0)] = None,
    discordance: Annotated[float, typer.Option(help="Assumed share of items on which two runs differ.")] = 0.1,
    seed_sd: Annotated[float, typer.Option(help="Assumed spread of a run's mean score between seeds.")] = 0.015,
    as_json: JsonOption = False,
) -> None:
    """Say what a study will take, and what it can detect, before anything is spent. Exit status 2: over the budget."""
    from veritune.decide.reach import Assumed
    from veritune.errors import InputError
    from veritune.progress import Progress
    from veritune.stages.plan import Prices, plan_command, plan_text, refuse_plan

    if per_tokens is not None and per_hour is not None:
        raise InputError("expected one price, found two.", fix="Give one of them.")
    prices = Prices(per_hour, per_tokens) if per_tokens is not None or per_hour is not None else None
    ready, found = plan_command(study, prices, Assumed(discordance, seed_sd), Progress(silent=as_json))
    print(
        _json({**found, "differences": ready.study.differences()})
        if as_json
        else plan_text(found, ready.study.differences())
    )
    refuse_plan(ready, found)


def modules(study: StudyArg, as_json: JsonOption = False) -> None:
    """List the exact modules that each condition trains, its parameters and share, without training a step."""
    from veritune.stages.plan import modules_command, modules_text

    found = modules_command(study)
    print(_json(found) if as_json else modules_text(found))


def _plain(record: object) -> dict[str, object]:
    from dataclasses import asdict

    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(record).items()}  # type: ignore[call-overload]


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

"""The app: every command under its name, in the order of `veritune --help`."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from veritune.commands import (
    bundle,
    calibration,
    data,
    decide,
    gate,
    machine,
    parity,
    probe,
    registry,
    run,
    study,
)

app = typer.Typer(
    name="veritune",
    help="Says which claims about a fine-tuned language model the evidence carries, and whether it may ship.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
probes = typer.Typer(
    name="probe",
    help="Look inside a model or adapter that anybody trained.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
calibrations = typer.Typer(
    name="calibration",
    help="Say whether a model is right as often as it is sure: ECE, Brier score, reliability.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

COMMANDS = (
    *(study.init, run.run, study.status, study.verify, study.seal, study.report),
    *(decide.compare, decide.power, decide.lint, decide.writeup),
    *(machine.doctor, study.schema),
    *(bundle.bundle, registry.promote, registry.history, registry.rollback, registry.push, registry.pull),
    bundle.rollback_drill,
    *(data.audit, data.tokens, data.review, data.retire, data.lineage),
    machine.selftest,
    *(study.freeze, study.amend, study.plan, study.modules),
    *(run.cells, run.cell, run.watch),
    *(gate.gate, gate.waive, gate.safety, gate.regression, gate.attest, gate.controls),
    *(parity.merge_parity, parity.serve_parity),
)
PROBES = (
    *(probe.gradients, probe.gap, probe.tokens, probe.weights, probe.families, probe.geometry),
    *(probe.leak, probe.recall, probe.forgetting, probe.report),
)
CALIBRATIONS = (calibration.read, calibration.choices, calibration.answers)

for group, commands in ((app, COMMANDS), (probes, PROBES), (calibrations, CALIBRATIONS)):
    for command in commands:
        group.command()(command)
app.add_typer(calibrations)
app.add_typer(probes)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        print(metadata.version("veritune"))
        raise typer.Exit

"""The command that checks this machine: doctor, with a self-test of the 4-bit training path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.errors import ExitCode, InputError

if TYPE_CHECKING:
    from veritune import health
    from veritune.train import quantised
else:
    health, quantised = lazy("veritune.health"), lazy("veritune.train.quantised")


def doctor(
    prepare: Annotated[
        bool,
        typer.Option(
            "--prepare", help="Do the one-time work of the first run now: compile the audit kernels, unpack the model."
        ),
    ] = False,
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Test the 4-bit path of `qlora`, stage by stage, against a float32 reference."),
    ] = False,
    no_guard: Annotated[
        bool,
        typer.Option(
            "--no-guard",
            help="With --selftest: keep bitsandbytes' repacking of weights, which a qlora run switches off.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check this machine: versions, cores, memory, accelerator, what each command needs; run a matrix product and a
    tokenizer.
    """
    if no_guard and not selftest:
        raise InputError("--no-guard can only be used with --selftest.", fix="veritune doctor --selftest --no-guard")
    if prepare:
        health.prepare()
    if selftest:
        tested = quantised.self_test(quantised.qlora_settings(guard=not no_guard))
        put(json_text(quantised.to_record(tested)) if as_json else quantised.render_text(tested), raw=as_json)
        exit_unless(tested.failed is None)
        return
    checked = health.doctor()
    put(json_text(checked) if as_json else health.doctor_text(checked), raw=as_json)
    exit_unless(not checked["problems"], ExitCode.USER)

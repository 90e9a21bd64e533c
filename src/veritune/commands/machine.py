"""The commands that check this machine: doctor, and selftest for the 4-bit training path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import USER, exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption
from veritune.commands.output import json_text

if TYPE_CHECKING:
    from veritune import verbs
    from veritune.train import quantised
else:
    verbs, quantised = lazy("veritune.verbs"), lazy("veritune.train.quantised")


def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, cores, memory, accelerator, optional parts, a matmul and a tokenizer."""
    health = verbs.doctor()
    print(json_text(health) if as_json else verbs.doctor_text(health))
    exit_unless(not health["problems"], USER)


def selftest(
    guard: Annotated[
        bool, typer.Option("--guard/--no-guard", help="Switch bitsandbytes' repacking off, as every qlora run does.")
    ] = True,
    quant_type: Annotated[str, typer.Option(help="nf4 or fp4.")] = "nf4",
    double_quant: Annotated[
        bool, typer.Option("--double-quant/--no-double-quant", help="Quantise the scales as well.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="Precision of weights and products: bfloat16, float16, float32.")] = (
        "bfloat16"
    ),
    as_json: JsonOption = False,
) -> None:
    """Try the 4-bit path of `qlora` on this very machine, stage by stage, against a float32 reference."""
    result = quantised.self_test(quantised.qlora_settings(quant_type, double_quant, dtype, guard))
    print(json_text(quantised.to_record(result)) if as_json else quantised.render_text(result))
    exit_unless(result.failed is None)

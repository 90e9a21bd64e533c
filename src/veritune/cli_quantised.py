"""The command that tries the 4-bit training path on this very runtime: selftest."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(selftest)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try the 4-bit path of `qlora` on this very machine, stage by stage, against a float32 reference."""
    from veritune.config.train import Condition
    from veritune.records import dumps
    from veritune.train import quantised

    settings: dict[str, Any] = {"bnb_4bit_quant_type": quant_type, "bnb_4bit_use_double_quant": double_quant}
    settings["bnb_4bit_compute_dtype"] = dtype
    condition = Condition.model_validate({"method": "qlora", "target_modules": "all-linear", **settings})
    quantised.check_fields("selftest", condition)
    result = quantised.self_test(quantised.Quantisation.of(condition, dtype, guard))
    print(dumps(quantised.to_record(result), indent=2) if as_json else selftest_text(result))
    if result.failed is not None:
        raise typer.Exit(2)


def selftest_text(result: Any) -> str:
    """The stages as a table, and the sentence they come to."""
    facts = result.runtime
    flags = facts["cpu_flags"] or []
    risky = "has" if "avx512_bf16" in flags else "has no"
    lines = [
        f"4-bit self-test on {facts['device']}, bitsandbytes {facts['packages']['bitsandbytes']}, {facts['dtype']}, "
        f"guard {'on' if facts['guard'] else 'off'}; this processor {risky} avx512_bf16",
        f"{'stage':<12} {'difference':>10} {'allowed':>8}         what was compared with float32",
    ]
    for s in result.stages:
        number = "-" if s.difference is None else f"{s.difference:.2g}"
        what = s.error or s.measured
        lines.append(f"{s.stage:<12} {number:>10} {s.threshold:>8.2g}  {'pass' if s.passed else 'FAIL'}   {what}")
    failed = result.failed
    lines.append(
        "passed: qlora may be used on this runtime."
        if failed is None
        else f"failed at '{failed.stage}': qlora is refused on this runtime."
    )
    return "\n".join(lines)

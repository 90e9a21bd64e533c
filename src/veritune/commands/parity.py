"""The commands that ask whether what is merged, and what is served, answers as the adapter does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption, MaybeModelOption, WithExpectedOption
from veritune.commands.output import json_text

if TYPE_CHECKING:
    from veritune.release import load as loads
    from veritune.release import merge, merge_command, merge_outputs, serving_command
else:
    loads, merge = lazy("veritune.release.load"), lazy("veritune.release.merge")
    merge_command, merge_outputs = lazy("veritune.release.merge_command"), lazy("veritune.release.merge_outputs")
    serving_command = lazy("veritune.release.serving_command")


def merge_parity(
    study: Annotated[Path | None, typer.Argument(help="A study whose candidate was merged; or give --model.")] = None,
    model: MaybeModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter's folder.")] = None,
    condition: Annotated[str | None, typer.Option(help="With STUDY: the arm that ships, where no policy says.")] = None,
    seed: Annotated[int | None, typer.Option(help="With STUDY: the seed whose weights ship.")] = None,
    merged: Annotated[Path | None, typer.Option(help="The merged model; without it one is made in --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write a merged model that is made here.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows to compare outputs on; a study has its own.")] = None,
    rows: Annotated[int, typer.Option(help="At most so many rows.")] = 32,
    dtype: Annotated[str, typer.Option(help="The precision that will serve.")] = "bfloat16",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a greedy answer.")] = 64,
    draws: Annotated[int, typer.Option(help="Draws of rounding noise that make the floor; at least 2.")] = 5,
    quantised: Annotated[
        str | None, typer.Option(help="The adapter was trained on a base in nf4, fp4 or int8; a study knows.")
    ] = None,
    double_quant: Annotated[
        bool, typer.Option("--double-quant/--no-double-quant", help="With --quantised: scales in bits as well.")
    ] = True,
    eval_name: Annotated[str | None, typer.Option("--eval", help="With STUDY: also compare scores on this eval.")] = (
        None
    ),
    extract: Annotated[
        str | None, typer.Option(help="Also compare scores on --data: pattern whose group is the answer.")
    ] = None,
    expected: WithExpectedOption = None,
    margin: Annotated[
        float | None, typer.Option(help="Scores may not be worse by this much; left out, the policy's for --eval.")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(help="With --extract: generation stops here.")] = 128,
    export: Annotated[Path | None, typer.Option(help="Safetensors export (shards) to compare with it.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="GGUF export to compare with it.")] = None,
    converter: Annotated[
        Path | None, typer.Option(help="llama.cpp's convert_hf_to_gguf.py: makes the GGUF first. It is run.")
    ] = None,
    gguf_type: Annotated[str, typer.Option(help="With --converter: f32, f16, bf16 or q8_0.")] = "bf16",
    as_json: JsonOption = False,
) -> None:
    """Compare an adapter with its merged model: weights module by module, logits, KL, whole greedy answers, scores.

    Exports of the merged model, as safetensors shards and as GGUF, are compared with it.
    """
    request = merge_command.MergeRequest(
        study,
        model,
        adapter,
        condition,
        seed,
        merged,
        out,
        data,
        rows,
        quantised,
        double_quant,
        merge_command.Scored(eval_name, extract, expected, margin, answer_tokens),
        merge_command.Exports(export, gguf, converter, gguf_type),
    )
    options = merge_outputs.MergeOptions(dtype=dtype, max_new_tokens=max_new_tokens, draws=draws)
    parity = merge_command.merge_command(request, options)
    print(json_text(parity) if as_json else merge.render_text(parity))
    exit_unless(parity.status == "passed")


def serve_parity(
    model: Annotated[str, typer.Option(help="The model folder that is (to be) served; a merged one, say.")],
    golden: Annotated[Path, typer.Option(help="Golden prompts: rows with chat messages.")],
    url: Annotated[str | None, typer.Option(help="An OpenAI-compatible server, e.g. http://host:8000/v1.")] = None,
    served_name: Annotated[str | None, typer.Option(help="With --url: what the server calls the model.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="Whose template, tokenizer and stop tokens count; default: --base, or the study's."),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Also measure speed, beside this base model.")] = None,
    base_url: Annotated[str | None, typer.Option(help="With --base: a server that has the base already.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests a second; repeat for several rates.")] = None,
    requests: Annotated[int, typer.Option(help="Requests per side, rate and block.")] = 8,
    blocks: Annotated[int, typer.Option(help="Blocks per side and rate, by turns; intervals rest on them.")] = 4,
    price_per_hour: Annotated[float | None, typer.Option(help="Price of the machine, for a request's cost.")] = None,
    prompts: Annotated[int, typer.Option(help="At most so many golden prompts.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer.")] = 32,
    dtype: Annotated[str, typer.Option(help="Precision that serves.")] = "bfloat16",
    server: Annotated[
        str,
        typer.Option(help="transformers, vllm, llama-server, llama-cpp-python, or a command with {model} and {port}."),
    ] = "transformers",
    samples: Annotated[Path | None, typer.Option(help="With --base: write every request as a line of JSON.")] = None,
    study: Annotated[Path | None, typer.Option(help="Record it as evidence for this study's gate.")] = None,
    condition: Annotated[str | None, typer.Option(help="With --study: the arm that ships.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a served model the golden prompts and compare with the contract's generation; with --base, measure speed."""
    request = serving_command.ServingRequest(
        model,
        golden,
        url,
        served_name=served_name,
        reference=reference,
        base=base,
        base_url=base_url,
        dtype=dtype,
        max_tokens=max_tokens,
        prompts=prompts,
        study=study,
        condition=condition,
        server=server,
        samples=samples,
        load=loads.Load(tuple(rate or (0.5, 1.0)), requests, blocks, price_per_hour=price_per_hour),
    )
    served = serving_command.serve_command(request)
    print(json_text(served) if as_json else serving_command.render_text(served))
    exit_unless(served.parity.status == "passed")

"""The commands that ask whether what is merged, and what is served, answers as the adapter does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    ExpectedOption,
    ExtractOption,
    JsonOption,
    MaybeModelOption,
    NewTokensOption,
    TemplateKwargsOption,
    TrainOn,
    TrainOnOption,
    parse_template_kwargs,
)
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune.release.parity import load as loads
    from veritune.release.parity import merge, merge_command, merge_outputs, serving_command
else:
    loads, merge = lazy("veritune.release.parity.load"), lazy("veritune.release.parity.merge")
    merge_command, merge_outputs = (
        lazy("veritune.release.parity.merge_command"),
        lazy("veritune.release.parity.merge_outputs"),
    )
    serving_command = lazy("veritune.release.parity.serving_command")


GREEDY_TOKENS, ANSWER_TOKENS, SERVED_TOKENS = 64, 128, 32
"""Tokens of a greedy answer, of one that is scored, and of one from a server, where --max-new-tokens is left out."""
SINGLE = "-single"


def merge_parity(
    study: Annotated[
        Path | None, typer.Argument(help="A study whose candidate was merged; or give --model instead.")
    ] = None,
    model: MaybeModelOption = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter's folder.")] = None,
    condition: Annotated[str | None, typer.Option(help="With STUDY: the arm that ships, where no policy says.")] = None,
    seed: Annotated[int | None, typer.Option(help="With STUDY: the seed whose weights ship.")] = None,
    merged: Annotated[
        Path | None, typer.Option(help="Folder of the merged model; without it, one is made in --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the merged model that is made here.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Rows to compare outputs on; default with STUDY: the study's own.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Most rows to compare.")] = 32,
    train_on: TrainOnOption = TrainOn.all,
    dtype: Annotated[str, typer.Option(help="Precision used in serving.")] = "bfloat16",
    max_new_tokens: NewTokensOption = None,
    quantised: Annotated[
        str | None,
        typer.Option(
            help="How the base was quantised in training: nf4, fp4 or int8, or nf4-single or fp4-single, whose "
            "scales are not quantised; with STUDY it is known."
        ),
    ] = None,
    eval_name: Annotated[str | None, typer.Option("--eval", help="With STUDY: also compare scores on this eval.")] = (
        None
    ),
    extract: ExtractOption = None,
    expected: ExpectedOption = None,
    margin: Annotated[
        float | None, typer.Option(help="Largest loss of score that is allowed; default: the policy's for --eval.")
    ] = None,
    export: Annotated[
        list[Path] | None,
        typer.Option(
            help="Exported model to compare as well: a folder of safetensors shards, or a .gguf file; one of each."
        ),
    ] = None,
    converter: Annotated[
        Path | None,
        typer.Option(help="Path of llama.cpp's convert_hf_to_gguf.py, which is run to make the GGUF first."),
    ] = None,
    gguf_type: Annotated[str, typer.Option(help="With --converter: f32, f16, bf16 or q8_0.")] = "bf16",
    as_json: JsonOption = False,
) -> None:
    """Compare an adapter with its merged model: weights module by module, logits, KL, whole greedy answers, scores.

    Exports of the merged model, as safetensors shards and as GGUF, are compared with it.
    """
    shards, gguf = _exports(export or [])
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
        train_on.value,
        None if quantised is None else quantised.removesuffix(SINGLE),
        quantised is None or not quantised.endswith(SINGLE),
        merge_command.Scored(eval_name, extract, expected, margin, max_new_tokens or ANSWER_TOKENS),
        merge_command.Exports(shards, gguf, converter, gguf_type),
    )
    options = merge_outputs.MergeOptions(dtype=dtype, max_new_tokens=max_new_tokens or GREEDY_TOKENS)
    parity = merge_command.merge_command(request, options)
    put(json_text(parity) if as_json else merge.render_text(parity), raw=as_json)
    exit_unless(parity.status == "passed")


def _exports(paths: Sequence[Path]) -> tuple[Path | None, Path | None]:
    """The folder of shards and the GGUF file among the exports that were named. Raises InputError for two of a kind."""
    ggufs = [path for path in paths if path.suffix == ".gguf"]
    shards = [path for path in paths if path.suffix != ".gguf"]
    if len(ggufs) > 1 or len(shards) > 1:
        twice = (ggufs if len(ggufs) > 1 else shards)[1]
        raise InputError(
            f"--export {twice}: expected at most one folder of shards and one .gguf file.", fix="Compare one at a time."
        )
    return (shards or [None])[0], (ggufs or [None])[0]  # type: ignore[list-item]


def serve_parity(
    model: Annotated[str, typer.Option(help="Folder of the served model, such as a merged one.")],
    golden: Annotated[Path, typer.Option(help="Golden prompts: rows with chat messages.")],
    url: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server, such as http://host:8000/v1.")
    ] = None,
    served_name: Annotated[str | None, typer.Option(help="With --url: the name of the model on the server.")] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id that gives template, tokenizer and stop tokens; default: --base, or the study's."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Also measure speed in comparison with this base model.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="With --base: address of a server that already serves the base.")
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests per second; repeat for several rates.")] = None,
    requests: Annotated[int, typer.Option(help="Requests per side, rate and block.")] = 8,
    blocks: Annotated[
        int, typer.Option(help="Blocks per side and rate, run in alternation; the intervals are computed over blocks.")
    ] = 4,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Price of the machine in USD an hour, to compute the cost of a request.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="Most golden prompts to ask.")] = 16,
    max_new_tokens: NewTokensOption = None,
    dtype: Annotated[str, typer.Option(help="Precision used in serving.")] = "bfloat16",
    server: Annotated[
        str,
        typer.Option(
            help="Server to start: transformers, vllm, llama-server, llama-cpp-python, or a command with "
            "{model} and {port}."
        ),
    ] = "transformers",
    samples: Annotated[Path | None, typer.Option(help="With --base: write every request as a line of JSON.")] = None,
    study: Annotated[Path | None, typer.Option(help="Record the result as evidence for this study's gate.")] = None,
    condition: Annotated[str | None, typer.Option(help="With --study: the arm that ships.")] = None,
    template_kwargs: TemplateKwargsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a served model the golden prompts and compare its answers with the contract's generation; with --base, also
    measure speed.
    """
    request = serving_command.ServingRequest(
        model,
        golden,
        url,
        served_name=served_name,
        reference=reference,
        base=base,
        base_url=base_url,
        dtype=dtype,
        max_tokens=max_new_tokens or SERVED_TOKENS,
        prompts=prompts,
        study=study,
        condition=condition,
        server=server,
        samples=samples,
        load=loads.Load(tuple(rate or (0.5, 1.0)), requests, blocks, price_per_hour=price_per_hour),
        template_kwargs=parse_template_kwargs(template_kwargs),
    )
    served = serving_command.serve_command(request)
    put(json_text(served) if as_json else serving_command.render_text(served), raw=as_json)
    exit_unless(served.parity.status == "passed")

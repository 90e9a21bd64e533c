"""`veritune merge-parity`: does the merged model still say what the adapter said?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("merge-parity")(merge_parity)


def merge_parity(
    study: Annotated[Path | None, typer.Argument(help="A study whose candidate was merged; or give --model.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model: folder, hub id or builtin.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="The adapter's folder.")] = None,
    condition: Annotated[str | None, typer.Option(help="With STUDY: the arm that ships, where no policy says.")] = None,
    seed: Annotated[int | None, typer.Option(help="With STUDY: the seed whose weights ship.")] = None,
    merged: Annotated[Path | None, typer.Option(help="The merged model; without it one is made in --out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write a merged model that is made here.")] = None,
    data: Annotated[Path | None, typer.Option(help="Rows to compare outputs on; a study has its own.")] = None,
    rows: Annotated[int, typer.Option(help="At most so many rows.")] = 32,
    dtype: Annotated[str, typer.Option(help="The precision that will serve.")] = "bfloat16",
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a greedy answer.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare an adapter with its merged model: weights module by module, logits, KL and whole greedy answers."""
    from veritune.records import dumps
    from veritune.release.merge import Options, render_text
    from veritune.release.merge_command import Asked, merge_command

    asked = Asked(study, model, adapter, condition, seed, merged, out, data, rows)
    found = merge_command(asked, Options(dtype=dtype, max_new_tokens=max_new_tokens))
    print(dumps({**found.__dict__}, indent=2) if as_json else render_text(found))
    if found.status != "passed":
        raise typer.Exit(2)

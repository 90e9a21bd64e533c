"""The options that several commands share, each declared once: one name and one help text for one thing."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.errors import InputError
from veritune.records import JsonValue

if TYPE_CHECKING:
    from veritune import untrusted
else:
    untrusted = lazy("veritune.untrusted")

# ---------------------------------------------------------------- arguments

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder that holds it.", show_default=False)]
DataArg = Annotated[str, typer.Argument(help="JSONL (.gz, .zst), CSV, Parquet, a folder of shards, or a hub id.")]

# ---------------------------------------------------------------- what is printed and written

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.")]
OutOption = Annotated[Path | None, typer.Option(help="Write the record to this file.")]
PlotOption = Annotated[Path | None, typer.Option(help="Draw the result into this file (.svg, .png or .pdf).")]
PageOption = Annotated[Path | None, typer.Option(help="Also write this HTML file with the rows' tokens coloured.")]

# ---------------------------------------------------------------- for a pipeline

MarkdownOption = Annotated[
    Path | None, typer.Option(help="Write Markdown for a pull request to this file; - prints it instead.")
]
JunitOption = Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")]
GithubOption = Annotated[bool, typer.Option("--github", help="Print GitHub annotations to standard error.")]

# ---------------------------------------------------------------- data


class TrainOn(Enum):
    """Which assistant turns carry loss: `all` or `last`."""

    all = "all"
    last = "last"


def parse_template_kwargs(text: str | None) -> dict[str, JsonValue]:
    """The variables of a chat template from `enable_thinking=false,effort=low`, with values read as YAML. Raises
    InputError.
    """
    if text is None:
        return {}
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(sign and name.strip().isidentifier() and value.strip() for name, sign, value in pairs):
        raise InputError(
            f"--template-kwargs: expected name=value pairs, found {text!r}.",
            fix="--template-kwargs enable_thinking=false",
        )
    try:
        variables = {name.strip(): untrusted.parse_yaml(value) for name, _, value in pairs}
    except ValueError:
        variables = {"": None}
    wrong = [name for name, value in variables.items() if not isinstance(value, bool | int | float | str | None)]
    if wrong or "" in variables:
        raise InputError(
            f"--template-kwargs: expected a boolean, a number or a text, found {text!r}.",
            fix="--template-kwargs enable_thinking=false",
        )
    return variables


ColumnsOption = Annotated[
    str | None,
    typer.Option(
        help="Which columns hold the turns: user=question,assistant=answer, or templates: "
        "user='{table}\\n{question}'. Other keys: messages=, system=, reasoning=, tools=, and ignore= for "
        "columns to leave alone. Default: found by name."
    ),
]
TrainOnOption = Annotated[
    TrainOn,
    typer.Option(help="Assistant turns that carry loss: all (except those of weight 0), or the last one of each row."),
]
TemplateKwargsOption = Annotated[
    str | None, typer.Option(help="Variables of the chat template, e.g. enable_thinking=false.", show_default=False)
]
EvalsOption = Annotated[
    list[str] | None, typer.Option("--eval", help="Benchmark whose items must not be in the rows; repeat for more.")
]
MaxLengthOption = Annotated[int, typer.Option(help="With a tokenizer: the longest allowed row, in tokens.")]
IdFieldOption = Annotated[str | None, typer.Option(help="Column with a unique row id; '' for none.")]
FamilyOption = Annotated[str | None, typer.Option(help="Column that names the original of a row.")]
RowsOption = Annotated[str, typer.Option(help="The rows: any file that `audit` reads.")]

# ---------------------------------------------------------------- models

ModelOption = Annotated[str, typer.Option(help="Base model: folder, hub id or builtin.")]
MaybeModelOption = Annotated[str | None, typer.Option(help="Base model: folder, hub id or builtin.")]
AdapterOption = Annotated[
    Path | None, typer.Option(help="Folder of the adapter or full checkpoint; without it the base model is probed.")
]
TrainedOption = Annotated[Path, typer.Option(help="Folder of the adapter or of a full checkpoint.")]
ExtractOption = Annotated[
    str | None, typer.Option(help="Score short answers: a pattern whose group captures the answer.")
]
ExpectedOption = Annotated[str | None, typer.Option(help="With --extract: column with the expected answer.")]
NewTokensOption = Annotated[
    int | None, typer.Option("--max-new-tokens", help="Most tokens to generate for each answer.", min=1)
]
DtypeOption = Annotated[str, typer.Option(help="Precision to run the model in: bfloat16, float16 or float32.")]

# ---------------------------------------------------------------- a study

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, such as train.max_steps=20. The contract records it as a flag."),
]

AddressOption = Annotated[
    str | None,
    typer.Option(
        help="Ray's address: HOST:6379 on a node of the cluster, ray://HOST:10001 from elsewhere; default: a "
        "local Ray on this machine."
    ),
]

# ---------------------------------------------------------------- decisions


class Assume(Enum):
    """An assumption about seeds, declared before the data are seen."""

    equal_seed_spread = "equal-seed-spread"
    shared_seeds = "shared-seeds"


AssumeOption = Annotated[
    list[Assume] | None,
    typer.Option(
        "--assume",
        help="Assumption, declared before the data are seen: equal-seed-spread (both arms vary equally between "
        "seeds) or shared-seeds (runs of one seed share data order and initialisation: pair by seed); repeat "
        "for both.",
    ),
]
MarginOption = Annotated[float | None, typer.Option(help="The smallest difference that matters, in score units.")]
ZoneOption = Annotated[str | None, typer.Option(help="Use only the items of one zone.")]
AlphaOption = Annotated[float, typer.Option(help="Error rate (alpha) of the decision.")]
ScaleOption = Annotated[tuple[float, float] | None, typer.Option(help="Lowest and highest possible score.")]

# ---------------------------------------------------------------- reading score files

DirectionOption = Annotated[
    bool | None,
    typer.Option(
        "--lower-is-better/--higher-is-better",
        help="Whether higher or lower is better, where neither the log nor the metric's name says so.",
        show_default=False,
    ),
]
EvalOption = Annotated[
    str | None,
    typer.Option(
        "--eval",
        help="Which eval to read from a file or folder with several: one eval, a group of tasks, or A,B to pool.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(help="Column with the score (tuned.score for a nested one), a harness's metric, or Inspect's scorer."),
]
FilterOption = Annotated[
    str | None, typer.Option("--filter", help="lm-eval: filter of a task to read; HELM: split or perturbation.")
]
ReducerOption = Annotated[
    str | None,
    typer.Option(
        help="How to reduce several samples of an item to one score: mean, max, at_least_2, pass_at_5, ...; "
        "default: the log's own rule."
    ),
]
IdOption = Annotated[str | None, typer.Option("--id", help="Column with the item id.")]
ItemFamilyOption = Annotated[
    str | None,
    typer.Option("--family", help="Column, document field or metadata that holds the family (cluster) of an item."),
]
RunColumnOption = Annotated[str | None, typer.Option("--run", help="Column with the seed or run.")]
RaterOption = Annotated[str | None, typer.Option(help="Column with the rater.")]
SampleOption = Annotated[str | None, typer.Option(help="Column that distinguishes several samples of one item.")]

# ---------------------------------------------------------------- releases

PolicyOption = Annotated[Path | None, typer.Option(help="Policy file; default: the study's `release` section.")]
ConditionOption = Annotated[str | None, typer.Option(help="The arm to ship, where the policy names none.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of the weights to ship; default: the policy's first.")]
BaseOption = Annotated[Path | None, typer.Option("--base", help="Where the base model lies now, if it was moved.")]
RegistryOption = Annotated[str, typer.Option(help="A folder, or an fsspec URL such as s3://bucket/models.")]
ChannelOption = Annotated[str, typer.Option(help="staging or production.")]
HeadOption = Annotated[
    str | None, typer.Option(help="Hash of a history entry that you noted: refuse a channel whose history lacks it.")
]
ReasonOption = Annotated[str, typer.Option(help="The reason; it is kept in the history.")]
ByOption = Annotated[str, typer.Option(help="Name of the person who takes responsibility; it is recorded.")]
LicenseOption = Annotated[str | None, typer.Option("--license", help="SPDX id of the licence, e.g. cc-by-4.0.")]
SignOption = Annotated[Path | None, typer.Option(help="Sign with this EC private key (PEM).")]
KeyOption = Annotated[Path | None, typer.Option("--public-key", help="Check the signature with this EC key (PEM).")]

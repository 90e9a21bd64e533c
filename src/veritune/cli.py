"""The command line: one thin command per stage. The work is in the library; a command parses, calls and prints.

Exit codes: 0 fine; 1 the user's input or environment; 2 a gate failed or a claim is not supported. `--json` on every
command that reports. No command asks a question.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

# Read when torch is first imported. The two caches of compiled kernels hold 1,024 by default: every new length of a
# batch leaves some behind, and memory grows for as long as a cell trains.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

import typer

from veritune import (
    cli_bundle,
    cli_data,
    cli_gate,
    cli_learned,
    cli_merge,
    cli_probe,
    cli_quantised,
    cli_study,
    machine,
)
from veritune.errors import VerituneError

app = typer.Typer(
    name="veritune",
    help="Says which claims about a fine-tuned language model the evidence carries, and whether it may ship.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyArg = Annotated[Path, typer.Argument(help="The study file, or the folder it lies in.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EqualSpreadOption = Annotated[
    bool, typer.Option("--equal-seed-spread", help="Declared before the data: both arms spread alike between seeds.")
]
SharedSeedsOption = Annotated[
    bool, typer.Option("--shared-seeds", help="Runs of one seed share data order and initialisation: pair by seed.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        from importlib import metadata

        print(metadata.version("veritune"))
        raise typer.Exit


@app.command()
def init(
    data: Annotated[Path, typer.Argument(help="A data file: JSONL, CSV, Parquet or a `datasets` folder.")],
    folder: Annotated[Path | None, typer.Option(help="Where to write study.yaml; default: beside the data.")] = None,
    model: Annotated[str, typer.Option(help="Base model: folder, hub id or builtin.")] = "",
) -> None:
    """Write a commented study file for a data file."""
    from veritune.verbs import init as verb

    print(f"wrote {verb(data, folder=folder, model=model or None)}")
    print(
        "Read it through, set the evals and claims, then: veritune run " + str((folder or data.parent) / "study.yaml")
    )


@app.command()
def run(
    study: StudyArg,
    amend: Annotated[str | None, typer.Option(help="Reason for a change against the frozen contract.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where cells run: local, ray or slurm; default: here, one after the other.")
    ] = None,
    workers: Annotated[int, typer.Option(help="local: cells side by side; 0 takes as many as fit.")] = 0,
    cpus: Annotated[int, typer.Option(help="ray, slurm: cores a cell.")] = 1,
    gpus: Annotated[float, typer.Option(help="ray, slurm: accelerators a cell.")] = 0,
    address: Annotated[
        str | None, typer.Option(help="ray: the cluster's address; default: the one found here.")
    ] = None,
    executor_option: Annotated[
        list[str] | None, typer.Option(help="slurm: a submitit option, such as slurm_partition=gpu; repeat.")
    ] = None,
    exploratory: Annotated[
        bool, typer.Option("--exploratory", help="Freeze nothing: results and claims are exploratory for ever.")
    ] = False,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a study, or what is left of it: data, contract, training, scores, verdicts, report."""
    from veritune.progress import Progress
    from veritune.stages import run as verb
    from veritune.verbs import outcome_text

    plan = _executor(executor, workers=workers, cpus=cpus, gpus=gpus, address=address, options=executor_option or [])
    told = Progress(silent=quiet or as_json)
    outcome = verb(study, amend=amend, progress=told, exploratory=exploratory, executor=plan)
    print(_json(outcome) if as_json else outcome_text(outcome))
    if not outcome.all_supported:
        raise typer.Exit(2)


def _executor(kind: str | None, *, options: list[str], **settings: Any) -> Any:
    from veritune.errors import InputError
    from veritune.stages.executors import Plan, options_from

    if kind is None:
        return None
    if kind not in ("local", "ray", "slurm"):
        raise InputError(f"--executor {kind!r}: expected local, ray or slurm.", fix="Leave it out to run cells here.")
    return Plan(kind=kind, options=options_from(options), **settings)  # type: ignore[arg-type]


@app.command()
def status(study: StudyArg, as_json: JsonOption = False) -> None:
    """Say what is done, what is running and what is left of a study."""
    from veritune.verbs import status as verb
    from veritune.verbs import status_text

    found = verb(study)
    print(_json(found) if as_json else status_text(found))


@app.command()
def verify(
    study: Annotated[Path, typer.Argument(help="A study's file or folder, or a bundle's folder.", show_default=False)],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="Check the signature with this EC key (PEM).")
    ] = None,
    seal: Annotated[str | None, typer.Option(help="Study: the seal's hash, as a run printed it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute every hash in a study folder or a bundle and name each file that was edited, added or lost."""
    from veritune.release.verify import is_bundle

    if is_bundle(study):
        from veritune.release.verify import verify_bundle
        from veritune.release.verify import verify_text as bundle_text

        checked = verify_bundle(study, public_key)
        print(_json(checked) if as_json else bundle_text(checked))
        found: Any = checked.findings
    else:
        from veritune.seal import verify_text
        from veritune.verbs import verify_study

        found, signed = verify_study(study, seal, public_key)
        print(_json(found) if as_json else verify_text(found, study, signed))
    if found:
        raise typer.Exit(2)


@app.command("seal")
def sign_seal(
    study: StudyArg,
    key: Annotated[Path, typer.Option("--key", help="Sign the seal with this EC private key (PEM).")],
) -> None:
    """Sign a finished study's seal, so that nobody without the key can rewrite the study and seal it anew."""
    from veritune.verbs import sign_seal as verb

    path, digest = verb(study, key)
    print(f"signed {digest[:16]}: {path}\nCheck it with: veritune verify {study} --public-key PUBLIC.pem")


@app.command()
def report(study: StudyArg) -> None:
    """Draw report.html again from the records. It computes nothing."""
    from veritune.verbs import draw_report as verb

    print(verb(study))


@app.command()
def compare(
    sides: Annotated[
        list[str] | None,
        typer.Argument(
            help="Two or more sides: FILE, NAME=FILE, several seeds as NAME=F1,F2, or a folder of files; with "
            "--systems the table files; with --table two names.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="The side the others are compared with; default: the last.")
    ] = None,
    all_pairs: Annotated[
        bool, typer.Option("--all-pairs", help="Compare every side with every other; Bonferroni over the pairs.")
    ] = False,
    systems: Annotated[
        str | None, typer.Option(help="Tables with one column per system: the columns to compare, as base,tuned.")
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Counts instead of files: only A, only B, both, neither; repeat for seeds.")
    ] = None,
    fixed: Annotated[list[str] | None, typer.Option(help="Name of a side without seeds, a baseline; repeat.")] = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="Name of a side that is an adapter: the sentences say so; repeat.")
    ] = None,
    margin: Annotated[float | None, typer.Option(help="The smallest difference that matters, in score units.")] = None,
    alpha: Annotated[float, typer.Option(help="Error rate of the decision.")] = 0.05,
    frozen: Annotated[
        str | None, typer.Option("--rule", help="A rule of your own, beside the decision: min_gap=0.01[,every_seed].")
    ] = None,
    lower_is_better: Annotated[
        bool | None,
        typer.Option(
            "--lower-is-better/--higher-is-better",
            help="Direction of the metric, where neither the log nor the metric's name says it.",
            show_default=False,
        ),
    ] = None,
    eval_name: Annotated[
        str | None, typer.Option("--eval", help="Which eval of a file that holds several; or a table's name for it.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Score column (tuned.score for nested ones), lm-eval metric or Inspect scorer.")
    ] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="lm-eval: which filter of a task.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Column with the item id.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Column, document field or sample metadata with families (clusters) of items.")
    ] = None,
    run_column: Annotated[str | None, typer.Option("--run", help="Column with the seed or run.")] = None,
    rater: Annotated[str | None, typer.Option(help="Column with the rater.")] = None,
    sample: Annotated[str | None, typer.Option(help="Column that tells several samples of an item apart.")] = None,
    zone: Annotated[str | None, typer.Option(help="Only the items of one zone.")] = None,
    scale: Annotated[tuple[float, float] | None, typer.Option(help="Lowest and highest possible score.")] = None,
    missing: Annotated[str, typer.Option(help="Missing scores: fail, error, worst or best.")] = "fail",
    equal_seed_spread: EqualSpreadOption = False,
    shared_seeds: SharedSeedsOption = False,
    draws: Annotated[int, typer.Option(help="Sign flips drawn where there are more than 16 families.")] = 9_999,
    as_json: JsonOption = False,
) -> None:
    """Compare score files item by item: ours, lm-eval samples, Inspect logs, CSV or JSONL."""
    from veritune.decide import commands
    from veritune.evaluate.imports import Reading
    from veritune.stats.table import Missing

    up = None if lower_is_better is None else not lower_is_better
    reading = Reading(
        eval=eval_name, metric=metric, filter=filter_name, id=id_column, family=family, run=run_column, rater=rater,
        sample=sample, higher_is_better=up,
    )  # fmt: skip
    options = commands.CompareOptions(
        margin=margin,
        alpha=alpha,
        against=against,
        zone=zone,
        samples=sample is not None or rater is not None,
        reading=reading,
        scale=scale,
        missing=Missing(missing),
        draws=draws,
        rule=commands.parse_rule(frozen) if frozen is not None else None,
        all_pairs=all_pairs,
        adapters=tuple(adapter or ()),
        equal_seed_spread=equal_seed_spread,
        shared_seeds=shared_seeds,
    )
    if table:
        asked = {"systems": systems, "fixed": fixed}
        found = commands.compare_counts(table, sides or [], options, asked)
    else:
        found = commands.compare(_sides(sides or [], eval_name, fixed or [], systems), options)
    print(_json(found) if as_json else commands.render_text(found))


def _sides(texts: list[str], eval_name: str | None, fixed: list[str], systems: str | None) -> list[Any]:
    from dataclasses import replace

    from veritune.decide.commands import parse_side, wide_sides
    from veritune.errors import InputError

    if systems is not None:
        sides = wide_sides(texts, [name.strip() for name in systems.split(",")])
    else:
        sides = [parse_side(text, eval_name) for text in texts]
    unknown = sorted(set(fixed) - {side.name for side in sides})
    if unknown:
        names = ", ".join(side.name for side in sides)
        raise InputError(f"--fixed: no side is called {unknown[0]!r}.", fix=f"The sides are {names}; name one: a=FILE.")
    return [replace(side, fixed=side.name in fixed) for side in sides]


@app.command()
def power(
    pilot: Annotated[list[str] | None, typer.Argument(help="Pilot scores: two sides as in `compare`.")] = None,
    items: Annotated[int | None, typer.Option(help="Number of items.")] = None,
    discordance: Annotated[
        float, typer.Option(help="Share of items on which two runs differ; with --graded the variance of a difference.")
    ] = 0.1,
    seeds: Annotated[int, typer.Option(help="Seeds per arm.")] = 1,
    seed_sd: Annotated[float, typer.Option(help="Spread of a run's mean score between seeds, in score units.")] = 0.0,
    baseline: Annotated[bool, typer.Option("--baseline", help="The other arm is a baseline without seeds.")] = False,
    families: Annotated[int | None, typer.Option(help="Number of families, equal in size, that items come in.")] = None,
    design_effect: Annotated[float, typer.Option(help="Factor by which families inflate the variance.")] = 1.0,
    graded: Annotated[bool, typer.Option("--graded", help="Scores are graded, not right or wrong.")] = False,
    equal_seed_spread: EqualSpreadOption = False,
    shared_seeds: SharedSeedsOption = False,
    scale: Annotated[tuple[float, float] | None, typer.Option(help="Lowest and highest possible score.")] = None,
    margin: Annotated[float | None, typer.Option(help="The margin to be resolved, in score units.")] = None,
    alpha: Annotated[float, typer.Option(help="Error rate.")] = 0.05,
    target: Annotated[float, typer.Option("--power", help="Power aimed at.")] = 0.8,
    zone: Annotated[str | None, typer.Option(help="Only the pilot's items of one zone.")] = None,
    eval_name: Annotated[str | None, typer.Option("--eval", help="Pilot: which eval of a file.")] = None,
    metric: Annotated[str | None, typer.Option(help="Pilot: score column, metric or scorer.")] = None,
    filter_name: Annotated[str | None, typer.Option("--filter", help="Pilot: lm-eval filter.")] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="Pilot: column with the item id.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the plot of detectable gap to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a design can detect, before it is paid for: from its numbers or from pilot scores."""
    from veritune.decide import commands, planning
    from veritune.errors import InputError
    from veritune.evaluate.imports import Reading
    from veritune.stats.power import Design

    if pilot:
        if len(pilot) != 2:
            raise InputError(f"expected two pilot sides, found {len(pilot)}.", fix="veritune power A B")
        reading = Reading(eval=eval_name, metric=metric, filter=filter_name, id=id_column)
        options = commands.CompareOptions(margin=margin, alpha=alpha, zone=zone, reading=reading, scale=scale)
        declared = planning.Declared(target, equal_seed_spread, shared_seeds)
        one, two = (commands.parse_side(text, eval_name) for text in pilot)
        found = planning.plan_from_scores(one, two, options, declared)
    elif eval_name or metric or filter_name or id_column:
        raise InputError(
            "--eval, --metric, --filter and --id read pilot scores, and none are named.", fix="veritune power A B"
        )
    elif items is None:
        raise InputError("expected pilot scores or --items.", fix="veritune power --items 1319 --discordance 0.07")
    else:
        design = Design(
            items=items,
            discordance=discordance,
            seeds_a=seeds,
            seeds_b=0 if baseline else seeds,
            seed_sd=seed_sd,
            families=families,
            design_effect=design_effect,
            margin=margin,
            alpha=alpha,
            power=target,
            binary=not graded,
            item_variance=discordance if graded else None,
            width=1.0 if scale is None else scale[1] - scale[0],
            equal_seed_spread=equal_seed_spread,
            shared_seeds=shared_seeds,
        )
        found = planning.plan_power(design)
    if plot is not None:
        planning.plot_power(found, plot)
    print(_json(found) if as_json else planning.render_power(found))


@app.command()
def lint(
    writeup: Annotated[Path, typer.Argument(help="The write-up, in Markdown.")],
    study: Annotated[Path, typer.Option(help="The study it speaks of: its file or folder.")],
    rules: Annotated[Path | None, typer.Option(help="A file that switches rules or adds some.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every number and claim of a write-up against the records."""
    from veritune.decide.lint.check import lint_command, render_text

    found, code = lint_command(writeup, study, rules)
    print(_json(found) if as_json else render_text(found))
    if code:
        raise typer.Exit(code)


@app.command()
def writeup(
    study: StudyArg,
    out: Annotated[Path | None, typer.Option(help="Write the draft here instead of to the screen.")] = None,
) -> None:
    """Draft a write-up from the records. It passes `lint`; what it cannot know is left for you."""
    from veritune.decide.writeup import writeup as verb
    from veritune.store import write_text

    text = verb(study)
    if out is None:
        print(text)
        return
    write_text(out, text)
    print(f"wrote {out}")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine: versions, cores, memory, accelerator, optional parts, a matmul and a tokenizer."""
    from veritune.verbs import doctor as verb
    from veritune.verbs import doctor_text

    found = verb()
    print(_json(found) if as_json else doctor_text(found))
    if found["problems"]:
        raise typer.Exit(1)


@app.command()
def schema() -> None:
    """Print the JSON Schema of study.yaml, for editors."""
    from veritune.config.load import json_schema

    print(json.dumps(json_schema(), indent=2))


cli_bundle.register(app)
cli_data.register(app)
cli_quantised.register(app)
cli_study.register(app)
cli_gate.register(app)
cli_merge.register(app)
cli_learned.register(app)
app.add_typer(cli_probe.app)


def _json(record: Any) -> str:
    from veritune.records import dumps

    return dumps(_without_paths(record), indent=2)


def _without_paths(record: Any) -> Any:
    from dataclasses import asdict, is_dataclass

    if is_dataclass(record) and not isinstance(record, type):
        record = asdict(record)
    if isinstance(record, dict):
        return {k: _without_paths(v) for k, v in record.items()}
    if isinstance(record, list | tuple):
        return [_without_paths(v) for v in record]
    return str(record) if isinstance(record, Path) else record


def main() -> None:
    """Entry point: one line on the screen for an error, the traceback with `--debug`."""
    machine.OWN_PROCESS = True
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells at import which kernels it did not find
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except VerituneError as exc:
        if "--debug" in sys.argv:
            raise
        print(f"veritune: {' '.join(str(exc).split())}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as exc:
        if not hasattr(exc, "format_message"):  # what typer raises for a wrong command line; its class is not public
            raise
        print(f"veritune: {exc.format_message()} See `veritune --help`.", file=sys.stderr)
        sys.exit(1)
    if code == 130:  # typer's word for Ctrl-C
        print("veritune: stopped. What was finished is on disk; the same command goes on from there.", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

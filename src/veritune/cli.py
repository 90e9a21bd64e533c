"""The command line: one thin command per stage. The work is in the library; a command parses, calls and prints.

Exit codes: 0 fine; 1 the user's input or environment; 2 a gate failed or a claim is not supported. `--json` on every
command that reports. No command asks a question.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported

import typer

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
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a study, or what is left of it: data, contract, training, scores, verdicts, report."""
    from veritune.progress import Progress
    from veritune.stages import run as verb
    from veritune.verbs import outcome_text

    outcome = verb(study, amend=amend, progress=Progress(silent=quiet or as_json))
    print(_json(outcome) if as_json else outcome_text(outcome))
    if not outcome.all_supported:
        raise typer.Exit(2)


@app.command()
def status(study: StudyArg, as_json: JsonOption = False) -> None:
    """Say what is done, what is running and what is left of a study."""
    from veritune.verbs import status as verb
    from veritune.verbs import status_text

    found = verb(study)
    print(_json(found) if as_json else status_text(found))


@app.command()
def report(study: StudyArg) -> None:
    """Draw report.html again from the records. It computes nothing."""
    from veritune.verbs import report as verb

    print(verb(study))


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
    from veritune.study import json_schema

    print(json.dumps(json_schema(), indent=2))


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
    try:
        app(standalone_mode=True)
    except VerituneError as exc:
        if "--debug" in sys.argv:
            raise
        print(f"veritune: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        print("veritune: stopped. What was finished is on disk; the same command goes on from there.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()

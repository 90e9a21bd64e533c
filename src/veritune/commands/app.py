"""The app: every command with its section and its line in `veritune --help`, in that order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Annotated, Any, Protocol

import typer
from typer.core import TyperGroup

from veritune.commands import (
    attribution,
    bundle,
    calibration,
    data,
    decide,
    demo,
    gate,
    machine,
    parity,
    probe,
    registry,
    results,
    run,
    shelf,
    study,
    view,
    work,
    writeup,
)
from veritune.errors import EXIT_CODES, ExitCode

Command = Callable[..., None]


class Formatter(Protocol):
    """The class of the help formatter that typer hands over; typer does not export it."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """Start a block with a heading; the block ends with the `with` statement."""

    def write(self, string: str) -> None:
        """Add text unchanged."""


DAILY: dict[Command, str] = {
    demo.demo: "a finished study, unpacked, to try the others on",
    data.audit: "what is in a data set: families, leaks from evals, bad rows",
    decide.compare: "two or more score files, paired item by item",
    run.check: "one page about an adapter that anybody trained",
    run.run: "run a study from data to verdicts, or resume it",
    study.status: "what is done, running and left; --follow watches it",
    writeup.lint: "check every number and claim of a text",
    view.view: "browse studies, samples, audits and releases",
}
DATA: dict[Command, str] = {
    data.tokens: "how a row is rendered and where its loss falls",
    data.review: "the next data version, from a reviewed pack",
    data.recipe: "one data set from several: quotas, shares, filters",
    data.lineage: "data versions of a folder; --retire withdraws one",
}
STUDY: dict[Command, str] = {
    study.init: "write study.yaml for a data file",
    study.schema: "print the JSON Schema of study.yaml, for editors",
    study.plan: "cost, time, modules and detectable difference",
    study.freeze: "hash everything and write the contract",
    study.amend: "change a frozen study, with a reason",
    work.work: "run cells that no process holds, or one named cell",
    run.adopt: "add a cell from weights that were trained elsewhere",
    decide.select: "checkpoint and learning rate, by validation NLL",
    study.report: "draw the report again; --probes prints its probes",
    study.verify: "recompute every hash of a study or bundle; --sign",
}
PROBE: dict[Command, str] = {
    probe.gap: "gain on seen, sibling and stranger rows; tokens; recall",
    probe.gradients: "how many independent examples the data is worth",
    probe.weights: "how far the weights moved, by module",
    probe.geometry: "how personas' hidden states moved, by layer",
    probe.forgetting: "what training cost on other tasks",
    calibration.calibration: "whether a model's confidence matches its accuracy",
    probe.leak: "how much a split that ignores families would flatter",
    attribution.attribution: "training families behind wrong outputs (experimental)",
}
DECIDE: dict[Command, str] = {
    decide.power: "what a design can detect, before you pay for it",
}
WRITEUP: dict[Command, str] = {
    writeup.draft: "draft a text from the records, numbers as references",
    writeup.fill: "fill a page's references, or update them",
    writeup.check: "find references that are stale, unknown or not filled",
    writeup.export: "print a table of the records, or list their names",
}
RESULTS: dict[Command, str] = {
    results.add: "add finished studies to a permanent index",
    results.show: "current state of every result; --site makes pages",
    results.note: "comment on results, log mistakes, keep the runbook",
}
RELEASE: dict[Command, str] = {
    gate.gate: "whether weights may ship; --attest, --waive, --controls",
    gate.safety: "red-team prompts, candidate beside base",
    parity.merge_parity: "compare an adapter with its merged model and exports",
    parity.serve_parity: "compare a served model with the contract's generation",
    bundle.bundle: "pack a run with its evidence for release",
    registry.promote: "point a channel to a bundle",
    registry.history: "what a channel pointed to, and when",
    registry.rollback: "point a channel to an earlier bundle; --drill: practice",
    registry.push: "send a bundle or a data file to a hub",
    registry.pull: "fetch a bundle and verify it",
    shelf.prune: "delete bundles that no channel needs; --list: all",
}
MACHINE: dict[Command, str] = {
    machine.doctor: "versions, memory, accelerator, what commands need",
}

GROUP_HELP = {
    "probe": "Look inside a model or adapter that anybody trained.",
    "results": "The index of finished results over many studies: add, list, comment, supersede.",
    "writeup": "Write-ups bound to records: draft one, fill references, check them, export tables.",
}
SECTIONS: dict[str, tuple[str, dict[Command, str]]] = {
    "Daily": ("", DAILY),
    "Data": ("", DATA),
    "Study": ("", STUDY),
    "Probe": ("probe", PROBE),
    "Decide": ("", DECIDE),
    "Write-up": ("writeup", WRITEUP),
    "Results": ("results", RESULTS),
    "Release": ("", RELEASE),
    "Machine": ("", MACHINE),
}
"""By the title of a section of the help: the group that its commands belong to (empty: none), and the commands."""


def full_name(group: str, command: Command) -> str:
    """The command's full name as typed: `probe gap`, `merge-parity`."""
    return f"{group} {command.__name__.replace('_', '-')}".strip()


class Sections(TyperGroup):
    """The root group. Its help lists every command, also those in groups, under section headings in plain text."""

    def format_commands(  # type: ignore[override]  # typer's own classes are not public
        self, ctx: typer.Context, formatter: Formatter
    ) -> None:
        """Write the sections; no line is longer than 80 columns, with or without colours."""
        for title, (group, commands) in SECTIONS.items():
            with formatter.section(title):
                for command, line in commands.items():
                    formatter.write(f"  {full_name(group, command):{NAME_WIDTH}}  {line}\n")


NAME_WIDTH = max(len(full_name(group, command)) for group, commands in SECTIONS.values() for command in commands)


def exit_codes_text() -> str:
    """The exit codes that a command can choose, as text: `0 fine; 1 ...`."""
    return "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items() if code <= ExitCode.IN_USE)


def _build() -> typer.Typer:
    """The app and its groups, filled from `SECTIONS`."""
    options: dict[str, Any] = {"no_args_is_help": True, "rich_markup_mode": None}
    root = typer.Typer(
        name="veritune",
        help="Says which claims about a fine-tuned language model the evidence supports, and whether it may ship.",
        epilog=f"Exit codes: {exit_codes_text()}.",
        pretty_exceptions_enable=False,
        cls=Sections,
        **options,
    )
    for group, commands in SECTIONS.values():
        target = typer.Typer(name=group, help=GROUP_HELP[group], **options) if group else root
        for command, line in commands.items():
            target.command(short_help=line)(command)
        if group:
            root.add_typer(target)
    return root


app = _build()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        print(metadata.version("veritune"))
        raise typer.Exit


def commands() -> Iterator[str]:
    """The full name of every command, in the order of the help."""
    for group, members in SECTIONS.values():
        yield from (full_name(group, command) for command in members)


def called(arguments: Sequence[str]) -> str:
    """The name of the command that a command line calls, such as `audit` or `probe gap`: its longest leading part that
    is a command.
    """
    words = [word for word in arguments if not word.startswith("-")]
    return " ".join(words[: 2 if words[:1] and words[0] in GROUP_HELP else 1])

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
    """What a section of the help is written with: typer's formatter, whose class is not public."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """A headed block until its end."""

    def write(self, string: str) -> None:
        """Text as it stands."""


DAILY: dict[Command, str] = {
    demo.demo: "a finished study, unpacked, to try the others on",
    data.audit: "what is in a data set: families, eval leaks, bad rows",
    decide.compare: "two or more score files, paired item by item",
    run.check: "one page about an adapter that anybody trained",
    run.run: "a study from data to verdicts, or what is left of it",
    study.status: "what is done, running and left; --follow watches it",
    writeup.lint: "every number and claim of a text, against records",
    view.view: "studies, samples, audits and releases in the browser",
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
    work.work: "run cells that nobody has, or the one that is named",
    run.adopt: "make a cell of weights that were trained elsewhere",
    decide.select: "checkpoint and learning rate, by validation NLL",
    study.report: "draw the report again; --probes prints its probes",
    study.verify: "recompute every hash of a study or bundle; --sign",
}
PROBE: dict[Command, str] = {
    probe.gap: "gain on seen, sibling and stranger rows; recall; tokens",
    probe.gradients: "how many independent examples the data acts like",
    probe.weights: "how far the weights moved, by module",
    probe.geometry: "how personas' hidden states moved, by layer",
    probe.forgetting: "what training cost on other tasks",
    calibration.calibration: "whether a model is right as often as it is sure",
    probe.leak: "what a split that ignores families would have shown",
    attribution.attribution: "training families behind wrong outputs (experimental)",
}
DECIDE: dict[Command, str] = {
    decide.power: "what a design can detect, before it is paid for",
}
WRITEUP: dict[Command, str] = {
    writeup.draft: "a text from the records, its numbers as references",
    writeup.fill: "fill a page's references, or bring them up to date",
    writeup.check: "references that are stale, unknown or not filled",
    writeup.export: "a table of the records; without a name, the names",
}
RESULTS: dict[Command, str] = {
    results.add: "add finished studies to an index that stays",
    results.show: "how every result stands now; --site makes pages",
    results.note: "comment, log a mistake, keep the runbook",
}
RELEASE: dict[Command, str] = {
    gate.gate: "whether weights may ship; --attest, --waive, --controls",
    gate.safety: "red-team prompts, candidate beside base",
    parity.merge_parity: "an adapter beside its merged model and exports",
    parity.serve_parity: "a served model beside the contract's generation",
    bundle.bundle: "pack a run with its evidence for release",
    registry.promote: "point a channel to a bundle",
    registry.history: "what a channel pointed to, and when",
    registry.rollback: "point a channel back; --drill practises it",
    registry.push: "send a bundle or a data file to a hub",
    registry.pull: "fetch a bundle and verify it",
    shelf.prune: "what no channel needs; --delete; --list names all",
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
    """What one types: `probe gap`, `merge-parity`."""
    return f"{group} {command.__name__.replace('_', '-')}".strip()


class Sections(TyperGroup):
    """The root group. Its help lists every command, those of groups too, a section each, in plain text."""

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
    """`0 fine; 1 ...`, the codes that a command chooses."""
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
    """The command that a command line calls, `audit` or `probe gap`: its leading words that name one."""
    words = [word for word in arguments if not word.startswith("-")]
    return " ".join(words[: 2 if words[:1] and words[0] in GROUP_HELP else 1])

"""`veritune results ...`: the index of finished results over many studies."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.exits import exit_unless
from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption
from veritune.commands.output import json_text
from veritune.commands.screen import put

if TYPE_CHECKING:
    from veritune.results import index as indexes
    from veritune.results import screen, site
else:
    indexes = lazy("veritune.results.index")
    screen, site = lazy("veritune.results.screen"), lazy("veritune.results.site")


class NoteKind(Enum):
    """Kind of a note."""

    comment = "comment"
    mistake = "mistake"
    task = "task"
    done = "done"


InOption = Annotated[Path, typer.Option("--in", help="Folder of the index.")]
ByOption = Annotated[str, typer.Option("--by", help="Author of the note; default: the login name.")]


def show(
    folder: Annotated[Path, typer.Argument(help="Folder of the index.")] = Path("results"),
    of: Annotated[str | None, typer.Option(help="Show one result in full, by its id.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Hash of the newest entry that you noted: refuse an index that lacks it.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare verdicts and seals only; hash no other files.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--site", help="Write the index as pages into this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List results, mistakes and tasks, and check each study against its seal. Exit status 2: a result is stale or
    broken.
    """
    index = indexes.read_index(folder, head=head, rehash=not quick)
    if out is not None:
        print(f"wrote {site.write_site(index, folder, out)}")
        return
    chosen = indexes.picked(index, of)
    put(json_text(chosen) if as_json else screen.text_of(chosen), raw=as_json)
    exit_unless(all(result.stands or result.superseded_by for result in index.results))


def add(
    studies: Annotated[list[Path], typer.Argument(help="Finished, sealed studies.", show_default=False)],
    folder: InOption = Path("results"),
    supersedes: Annotated[str | None, typer.Option(help="The result that this study replaces; needs --reason.")] = None,
    reason: Annotated[str, typer.Option(help="Why the old result is replaced.")] = "",
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Add finished studies to the index, each once. A study that was edited after it was sealed is refused."""
    change = indexes.add_results(folder, studies, supersedes=supersedes, reason=reason, by=by)
    put(json_text(change) if as_json else screen.change_text(change), raw=as_json)


def note(
    text: Annotated[str, typer.Argument(help="Text of the note.", show_default=False)],
    folder: InOption = Path("results"),
    on: Annotated[str | None, typer.Option(help="Id of the entry that the note is about: R1, M1, T1.")] = None,
    kind: Annotated[NoteKind, typer.Option("--as", help="Kind of the note; `done` closes a task.")] = NoteKind.comment,
    why: Annotated[str, typer.Option("--reason", help="For a task: why it has to be done.")] = "",
    done_when: Annotated[str, typer.Option("--done-when", help="For a task: how to see that it is done.")] = "",
    on_failure: Annotated[
        str,
        typer.Option(
            "--on-failure", help="For a task: what to do if it fails. For a mistake: what prevents the next one."
        ),
    ] = "",
    by: ByOption = "",
    as_json: JsonOption = False,
) -> None:
    """Comment on a result, log a mistake, put a task into the runbook, or close one."""
    said = indexes.Said(text, kind.value, on, why, done_when, on_failure)
    change = indexes.say(folder, said, by=by)
    put(json_text(change) if as_json else screen.change_text(change), raw=as_json)

"""The command on what a registry keeps: list its bundles, take out what no channel needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veritune.commands.lazy import lazy
from veritune.commands.options import JsonOption, RegistryOption
from veritune.commands.output import json_text
from veritune.commands.screen import put
from veritune.errors import InputError

if TYPE_CHECKING:
    from veritune.release.registry import prune as pruning
else:
    pruning = lazy("veritune.release.registry.prune")


def prune(
    registry: RegistryOption,
    keep: Annotated[
        int | None, typer.Option(help="Keep only this many of each channel's newest bundles; default: all.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the bundles; without it they are only listed.")
    ] = False,
    every: Annotated[
        bool, typer.Option("--list", help="List instead every bundle: channels, size, whether it is signed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List the bundles of a registry that no channel needs and, with --delete, remove them."""
    if every:
        if delete or keep is not None:
            raise InputError("--list deletes nothing.", fix="Leave --keep and --delete out.")
        listed = pruning.list_bundles(registry)
        put(json_text(listed) if as_json else pruning.bundles_text(listed), raw=as_json)
        return
    pruned = pruning.prune(registry, keep=keep, delete=delete)
    put(json_text(pruned) if as_json else pruning.pruned_text(pruned), raw=as_json)
